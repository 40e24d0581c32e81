//! Which resources the API server serves, for the controllers that must act on all of them.
//!
//! Aggregated discovery (two requests) where the server has it, the plain one (a request per group) where not. Of a
//! resource served in several versions the group's preferred one is taken.

use http::{Request, header};
use kube::core::ApiResource;
use serde_json::Value;

const ACCEPT: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// One served resource.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    verbs: Vec<String>,
}

impl Served {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }
}

/// What is served, as far as it could be found out.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Without subresources.
    pub(crate) resources: Vec<Served>,
    /// Groups that could not be asked (the extension server is away): group, version and why.
    pub(crate) failed: Vec<Failed>,
}

/// A group and version that is registered and does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) why: String,
}

impl Found {
    /// What is unknown, in upstream's words.
    pub(crate) fn trouble(&self) -> Option<String> {
        if self.failed.is_empty() {
            return None;
        }
        let mut groups: Vec<String> = self
            .failed
            .iter()
            .map(|failed| format!("{}/{}: {}", failed.group, failed.version, failed.why))
            .collect();
        groups.sort();
        Some(format!(
            "unable to retrieve the complete list of server APIs: {}",
            groups.join(", ")
        ))
    }

    /// Whether all versions of a group are known.
    pub(crate) fn knows(&self, group: &str) -> bool {
        !self.failed.iter().any(|failed| failed.group == group)
    }
}

/// All served resources, without subresources.
pub(crate) async fn served(client: &kube::Client) -> kube::Result<Vec<Served>> {
    Ok(discover(client).await?.resources)
}

/// All that is served, and what cannot be known.
pub(crate) async fn discover(client: &kube::Client) -> kube::Result<Found> {
    let mut found = Found::default();
    for root in ["/api", "/apis"] {
        let answer = get(client, root).await?;
        if text(&answer, "kind") == "APIGroupDiscoveryList" {
            aggregated(&answer, &mut found);
        } else if root == "/api" {
            plain(&get(client, "/api/v1").await?, "", "v1", &mut found.resources);
        } else {
            groups(client, &answer, &mut found).await?;
        }
    }
    Ok(found)
}

async fn get(client: &kube::Client, path: &str) -> kube::Result<Value> {
    let request = Request::get(path)
        .header(header::ACCEPT, ACCEPT)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn aggregated(answer: &Value, found: &mut Found) {
    for group in items(answer, "items") {
        let name = group.get("metadata").map_or("", |meta| text(meta, "name"));
        for version in items(group, "versions") {
            if text(version, "freshness") == "Stale" {
                let version = text(version, "version");
                found.failed.push(Failed {
                    group: name.to_owned(),
                    version: version.to_owned(),
                    why: format!("stale GroupVersion discovery: {name}/{version}"),
                });
                continue;
            }
            for resource in items(version, "resources") {
                let kind = resource.get("responseKind").map_or("", |k| text(k, "kind"));
                let namespaced = text(resource, "scope") == "Namespaced";
                add(
                    &mut found.resources,
                    name,
                    text(version, "version"),
                    text(resource, "resource"),
                    kind,
                    namespaced,
                    resource,
                );
            }
        }
    }
}

async fn groups(client: &kube::Client, answer: &Value, found: &mut Found) -> kube::Result<()> {
    for group in items(answer, "groups") {
        let preferred = group
            .get("preferredVersion")
            .map_or("", |version| text(version, "version"));
        let mut versions: Vec<&str> = items(group, "versions")
            .iter()
            .map(|version| text(version, "version"))
            .collect();
        versions.sort_by_key(|version| *version != preferred);
        for version in versions {
            let name = text(group, "name");
            match get(client, &format!("/apis/{name}/{version}")).await {
                Ok(list) => plain(&list, name, version, &mut found.resources),
                // A group behind an extension server that is away must not hide all the others.
                Err(error) => found.failed.push(Failed {
                    group: name.to_owned(),
                    version: version.to_owned(),
                    why: crate::pods::api_message(&error),
                }),
            }
        }
    }
    Ok(())
}

fn plain(list: &Value, group: &str, version: &str, found: &mut Vec<Served>) {
    for resource in items(list, "resources") {
        let namespaced = resource.get("namespaced") == Some(&Value::Bool(true));
        add(
            found,
            group,
            version,
            text(resource, "name"),
            text(resource, "kind"),
            namespaced,
            resource,
        );
    }
}

fn add(
    found: &mut Vec<Served>,
    group: &str,
    version: &str,
    plural: &str,
    kind: &str,
    namespaced: bool,
    resource: &Value,
) {
    let known = |served: &Served| served.resource.group == group && served.resource.plural == plural;
    if plural.is_empty() || plural.contains('/') || found.iter().any(known) {
        return;
    }
    let api_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    found.push(Served {
        resource: ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        },
        namespaced,
        verbs: items(resource, "verbs")
            .iter()
            .filter_map(|verb| verb.as_str().map(str::to_owned))
            .collect(),
    });
}
