//! Discovery, plain and aggregated, from the resource table.

use std::net::SocketAddr;

use http::header::{ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Response};
use sampan_kinds::Subresource;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::Refusal;
use crate::body::Body;
use crate::discovery::view::{Group, Version, View};
use crate::registry::reply::response;
use crate::request::media::accept_clauses;
use crate::rows::{Row, Table};

fn rows<'a>(table: &'a Table, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Row> {
    let mut rows: Vec<_> = table
        .rows
        .iter()
        .filter(|row| row.spec.group == group && row.spec.version == version)
        .map(|row| &**row)
        .collect();
    rows.sort_by_key(|row| row.spec.plural);
    rows.into_iter()
}

/// `/api`
pub fn core_versions(address: SocketAddr) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address.to_string()}],
    })
}

/// `/apis`
pub fn group_list(view: &View<'_>) -> Value {
    let groups: Vec<Value> = view
        .groups()
        .iter()
        .filter(|group| !group.name.is_empty())
        .map(describe)
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`
pub fn group(view: &View<'_>, name: &str) -> Option<Value> {
    let groups = view.groups();
    let group = groups.iter().find(|group| group.name == name && !name.is_empty())?;
    let mut document = describe(group);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

fn describe(group: &Group<'_>) -> Value {
    let name = group.name;
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{name}/{}", version.name), "version": version.name}))
        .collect();
    json!({"name": name, "preferredVersion": versions.first(), "versions": versions})
}

/// `/api/v1` and `/apis/GROUP/VERSION`
pub fn resources(table: &Table, group: &str, version: &str) -> Option<Value> {
    if !table.serves(group, version) {
        return None;
    }
    let mut resources = Vec::new();
    for row in rows(table, group, version) {
        let spec = row.spec;
        let mut resource = json!({
            "name": spec.plural, "singularName": spec.singular, "namespaced": spec.namespaced,
            "kind": spec.kind, "verbs": spec.verbs.names(),
        });
        if !spec.short_names.is_empty() {
            resource["shortNames"] = spec.short_names.into();
        }
        if !spec.categories.is_empty() {
            resource["categories"] = spec.categories.into();
        }
        if row.storage.is_some() {
            resource["storageVersionHash"] = storage_version(row).into();
        }
        resources.push(resource);
        for sub in sorted(spec.subresources) {
            let mut resource = json!({
                "name": format!("{}/{}", spec.plural, sub.name), "singularName": "",
                "namespaced": spec.namespaced, "kind": sub.gvk.2, "verbs": sub.verbs,
            });
            let (sub_group, sub_version, _) = sub.gvk;
            if !sub_version.is_empty() && (sub_group, sub_version) != (spec.group, spec.version) {
                resource["group"] = sub_group.into();
                resource["version"] = sub_version.into();
            }
            resources.push(resource);
        }
    }
    let group_version = sampan_api::meta::join_group_version(group, version);
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}))
}

fn sorted(subresources: &'static [Subresource]) -> Vec<&'static Subresource> {
    let mut all: Vec<_> = subresources.iter().collect();
    all.sort_by_key(|sub| sub.name);
    all
}

fn storage_version(row: &Row) -> String {
    use base64::Engine;
    let digest = Sha256::digest(format!(
        "{}/{}/{}",
        row.stored.group, row.stored.version, row.stored.kind
    ));
    base64::engine::general_purpose::STANDARD.encode(digest.get(..8).unwrap_or_default())
}

/// Which aggregated document a client takes.
pub struct Aggregated(&'static str);

impl Aggregated {
    /// The first aggregated version in the `Accept` header, unless plain JSON comes first.
    pub fn asked(headers: &HeaderMap) -> Option<Self> {
        for clause in accept_clauses(headers) {
            if clause.kind != "application/json" {
                continue;
            }
            return match (clause.parameter("g"), clause.parameter("v"), clause.parameter("as")) {
                ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => Some(Aggregated("v2")),
                ("apidiscovery.k8s.io", "v2beta1", "APIGroupDiscoveryList") => Some(Aggregated("v2beta1")),
                ("", ..) => None,
                _ => continue,
            };
        }
        None
    }

    pub fn respond(&self, view: &View<'_>, core: bool, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let text = self.document(view, core).to_string();
        let tag = format!("\"{}\"", hex::encode_upper(Sha256::digest(&text)));
        let content_type = match self.0 {
            "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        };
        let unchanged = headers
            .get(IF_NONE_MATCH)
            .is_some_and(|known| known.as_bytes() == tag.as_bytes());
        let mut response = if unchanged {
            response(304, content_type, Body::Empty)
        } else {
            response(200, content_type, text)
        };
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
        response
            .headers_mut()
            .insert(http::header::CACHE_CONTROL, HeaderValue::from_static("public"));
        Ok(response)
    }

    fn document(&self, view: &View<'_>, core: bool) -> Value {
        let items: Vec<Value> = view
            .groups()
            .iter()
            .filter(|group| group.name.is_empty() == core)
            .map(|group| {
                let mut metadata = Map::new();
                if !group.name.is_empty() {
                    metadata.insert("name".into(), group.name.into());
                }
                metadata.insert("creationTimestamp".into(), Value::Null);
                let versions: Vec<Value> = group
                    .versions
                    .iter()
                    .map(|version| version_entry(view.table, group.name, version))
                    .collect();
                json!({"metadata": metadata, "versions": versions})
            })
            .collect();
        json!({
            "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{}", self.0),
            "metadata": {}, "items": items,
        })
    }
}

/// Of an extension server, what was last heard of it.
fn version_entry(table: &Table, group: &str, version: &Version<'_>) -> Value {
    let Some(remote) = version.remote else {
        let resources: Vec<Value> = rows(table, group, version.name).map(aggregated).collect();
        return json!({"version": version.name, "resources": resources, "freshness": "Current"});
    };
    let documents = remote.documents();
    let mut entry = json!({
        "version": version.name, "freshness": if documents.fresh { "Current" } else { "Stale" },
    });
    if !documents.resources.is_empty() {
        entry["resources"] = documents.resources.to_vec().into();
    }
    entry
}

fn aggregated(row: &Row) -> Value {
    let spec = row.spec;
    let mut resource = json!({
        "resource": spec.plural,
        "responseKind": {"group": spec.group, "version": spec.version, "kind": spec.kind},
        "scope": if spec.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": spec.singular,
        "verbs": spec.verbs.names(),
    });
    if !spec.short_names.is_empty() {
        resource["shortNames"] = spec.short_names.into();
    }
    if !spec.categories.is_empty() {
        resource["categories"] = spec.categories.into();
    }
    if !spec.subresources.is_empty() {
        resource["subresources"] = sorted(spec.subresources)
            .into_iter()
            .map(|sub| {
                let (group, version, kind) = match sub.gvk {
                    ("", "", kind) => (spec.group, spec.version, kind),
                    own => own,
                };
                json!({
                    "subresource": sub.name,
                    "responseKind": {"group": group, "version": version, "kind": kind},
                    "verbs": sub.verbs,
                })
            })
            .collect();
    }
    resource
}
