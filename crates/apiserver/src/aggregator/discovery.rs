//! What an extension server says it serves, in the one form the merged documents use: the resources of a version in
//! aggregated discovery.

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};

pub const ACCEPT_AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// Whether an answer is aggregated discovery.
pub fn is_aggregated(headers: &HeaderMap) -> bool {
    let text = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let mut parts = text.split(';').map(str::trim);
    if parts.next() != Some("application/json") {
        return false;
    }
    let parameters: Vec<&str> = parts.collect();
    let has = |wanted: &str| parameters.contains(&wanted);
    has("g=apidiscovery.k8s.io") && has("as=APIGroupDiscoveryList") && (has("v=v2") || has("v=v2beta1"))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn parse(body: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// The resources of a group version in an `APIGroupDiscoveryList`; none if it is not in there.
pub fn of_aggregated(body: &[u8], group: &str, version: &str) -> Result<Vec<Value>, String> {
    let document = parse(body)?;
    if text(&document, "kind") != "APIGroupDiscoveryList" {
        return Err(format!(
            "not an APIGroupDiscoveryList but {:?}",
            text(&document, "kind")
        ));
    }
    let name = |group: &Value| group.get("metadata").map_or("", |meta| text(meta, "name")).to_owned();
    let found = items(&document, "items")
        .filter(|one| name(one) == group)
        .flat_map(|one| items(one, "versions"))
        .find(|one| text(one, "version") == version);
    let resources = found.into_iter().flat_map(|version| items(version, "resources"));
    Ok(resources.filter(|one| one.is_object()).cloned().map(complete).collect())
}

/// Old clients fall over a missing kind.
fn complete(mut resource: Value) -> Value {
    let nothing = || json!({"group": "", "version": "", "kind": ""});
    if let Some(map) = resource.as_object_mut() {
        map.entry("responseKind").or_insert_with(nothing);
        let subresources = map.get_mut("subresources").and_then(Value::as_array_mut);
        for sub in subresources.into_iter().flatten().filter_map(Value::as_object_mut) {
            sub.entry("responseKind").or_insert_with(nothing);
        }
    }
    resource
}

/// The same of an `APIResourceList`.
pub fn of_plain(body: &[u8], group: &str, version: &str) -> Result<Vec<Value>, String> {
    let document = parse(body)?;
    if text(&document, "kind") != "APIResourceList" {
        return Err(format!("not an APIResourceList but {:?}", text(&document, "kind")));
    }
    let kind = |one: &Value| {
        let or = |own: &'_ str, usual: &str| {
            if own.is_empty() {
                usual.to_owned()
            } else {
                own.to_owned()
            }
        };
        let own_version = text(one, "version");
        // A group without a version is the core group's absence of one.
        let own_group = if own_version.is_empty() {
            group.to_owned()
        } else {
            text(one, "group").to_owned()
        };
        json!({"group": own_group, "version": or(own_version, version), "kind": text(one, "kind")})
    };
    let verbs = |one: &Value| one.get("verbs").cloned().unwrap_or_else(|| json!([]));
    let scope = |one: &Value| match one.get("namespaced") {
        Some(Value::Bool(true)) => "Namespaced",
        _ => "Cluster",
    };
    let mut resources: Vec<Map<String, Value>> = Vec::new();
    let place = |resources: &mut Vec<Map<String, Value>>, name: &str, one: &Value| {
        resources
            .iter()
            .position(|known| known.get("resource").and_then(Value::as_str) == Some(name))
            .unwrap_or_else(|| {
                let mut new = Map::new();
                new.insert("resource".into(), name.into());
                new.insert("scope".into(), scope(one).into());
                new.insert("singularResource".into(), "".into());
                new.insert("verbs".into(), json!([]));
                new.insert("responseKind".into(), json!({"group": "", "version": "", "kind": ""}));
                resources.push(new);
                resources.len() - 1
            })
    };
    for one in items(&document, "resources") {
        let (name, sub) = match text(one, "name").split_once('/') {
            Some((name, sub)) => (name, Some(sub)),
            None => (text(one, "name"), None),
        };
        if name.is_empty() {
            continue;
        }
        let at = place(&mut resources, name, one);
        let Some(resource) = resources.get_mut(at) else {
            continue;
        };
        let Some(sub) = sub else {
            resource.insert("scope".into(), scope(one).into());
            resource.insert("singularResource".into(), text(one, "singularName").into());
            resource.insert("verbs".into(), verbs(one));
            resource.insert("responseKind".into(), kind(one));
            for list in ["shortNames", "categories"] {
                if let Some(list_of) = one.get(list).filter(|list| list.is_array()) {
                    resource.insert(list.into(), list_of.clone());
                }
            }
            continue;
        };
        let new = json!({"subresource": sub, "responseKind": kind(one), "verbs": verbs(one)});
        if let Some(all) = resource
            .entry("subresources")
            .or_insert_with(|| json!([]))
            .as_array_mut()
        {
            all.push(new);
        }
    }
    Ok(resources.into_iter().map(Value::Object).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn plain_discovery_becomes_aggregated() {
        let list = json!({"kind": "APIResourceList", "groupVersion": "x/v1", "resources": [
            {"name": "foos/status", "singularName": "", "namespaced": true, "kind": "Foo", "verbs": ["get"]},
            {"name": "foos", "singularName": "foo", "namespaced": true, "kind": "Foo", "verbs": ["get", "list"], "shortNames": ["fo"]},
            {"name": "foos/scale", "namespaced": true, "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get"]},
            {"name": "", "kind": "Nameless"},
        ]});
        let expected = json!([{
            "resource": "foos", "scope": "Namespaced", "singularResource": "foo", "verbs": ["get", "list"], "shortNames": ["fo"],
            "responseKind": {"group": "x", "version": "v1", "kind": "Foo"},
            "subresources": [
                {"subresource": "status", "responseKind": {"group": "x", "version": "v1", "kind": "Foo"}, "verbs": ["get"]},
                {"subresource": "scale", "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}, "verbs": ["get"]},
            ],
        }]);
        assert_eq!(
            Value::from(of_plain(list.to_string().as_bytes(), "x", "v1").unwrap()),
            expected
        );
        assert!(of_plain(b"{}", "x", "v1").is_err());
        assert!(of_plain(b"<html>", "x", "v1").is_err());
    }

    #[test]
    fn a_version_is_found_in_the_list() {
        let list = json!({"kind": "APIGroupDiscoveryList", "items": [
            {"metadata": {"name": "y"}, "versions": [{"version": "v1", "resources": [{"resource": "no"}]}]},
            {"metadata": {"name": "x"}, "versions": [{"version": "v2"}, {"version": "v1", "resources": [{"resource": "foos"}, 7]}]},
        ]});
        let found = of_aggregated(list.to_string().as_bytes(), "x", "v1").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["responseKind"]["kind"], "");
        assert!(
            of_aggregated(list.to_string().as_bytes(), "x", "v3")
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn what_aggregated_discovery_is_called() {
        let is = |text: &str| {
            is_aggregated(&HeaderMap::from_iter([(
                CONTENT_TYPE,
                HeaderValue::from_str(text).unwrap(),
            )]))
        };
        assert!(is(
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        ));
        assert!(is(
            "application/json; as=APIGroupDiscoveryList; v=v2beta1; g=apidiscovery.k8s.io"
        ));
        assert!(!is("application/json"));
        assert!(!is(
            "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        ));
    }
}
