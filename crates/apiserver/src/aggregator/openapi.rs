//! OpenAPI of extension servers, merged into ours.
//!
//! Version 3 has a document for every group version: the index names the remote's, which is asked for at the remote.
//! Of a remote without version 3 we make the document ourselves, from what version 2 says of the group version.
//! Version 2 is one document: the remote's own paths and the definitions they need are added to ours. A definition
//! whose name we have with other content gets a new name (`NAME_v2`, …), as does every one that refers to it; a path
//! we have stays ours.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sampan_api::openapi::v3_of_v2;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::Remotes;

const GVK: &str = "x-kubernetes-group-version-kind";
/// Places for shared parts, and how they are referred to.
const SHARED: [(&str, &str); 3] = [
    ("definitions", "#/definitions/"),
    ("parameters", "#/parameters/"),
    ("responses", "#/responses/"),
];
/// What a document says about all of it.
const ABOUT: [&str; 5] = ["info", "externalDocs", "securityDefinitions", "consumes", "produces"];

/// A hash of bytes, as an entity tag.
pub fn hash(bytes: &[u8]) -> String {
    format!("\"{}\"", hex::encode_upper(Sha256::digest(bytes)))
}

/// A document of version 3 that was made of version 2.
pub struct Converted {
    /// Its name, such as `apis/example.com/v1`.
    pub name: String,
    pub hash: String,
    pub document: Bytes,
}

impl Converted {
    /// From what [`own_part`] has left.
    pub fn of(part: &[u8], root: &str) -> Option<Self> {
        let document = v3_of_v2(&serde_json::from_slice(part).ok()?);
        let document = Bytes::from(serde_json::to_vec(&document).ok()?);
        Some(Converted {
            name: root.trim_start_matches('/').to_owned(),
            hash: hex::encode_upper(Sha256::digest(&document)),
            document,
        })
    }

    /// Its entry in the index.
    pub fn entry(&self) -> Value {
        json!({"serverRelativeURL": format!("/openapi/v3/{}?hash={}", self.name, self.hash)})
    }
}

/// Of a remote's `/openapi/v3`, what belongs to its group version.
pub fn v3_paths(body: &[u8], root: &str) -> BTreeMap<String, Value> {
    let own = root.trim_start_matches('/').to_owned();
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    let entry = document.get("paths").and_then(|paths| paths.get(&own));
    let url = entry
        .and_then(|entry| entry.get("serverRelativeURL"))
        .and_then(Value::as_str);
    // Whatever else it says, its documents are where ours are.
    url.filter(|url| url.starts_with("/openapi/v3/"))
        .map(|url| (own, json!({"serverRelativeURL": url})))
        .into_iter()
        .collect()
}

/// Of a remote's OpenAPI v2, what is below `root` and what that needs.
pub fn own_part(body: &[u8], root: &str) -> Option<Bytes> {
    let mut document: Value = serde_json::from_slice(body).ok()?;
    let below = format!("{root}/");
    let paths = document.get_mut("paths")?.as_object_mut()?;
    paths.retain(|path, _| path.starts_with(&below));
    if paths.is_empty() {
        return None;
    }
    let mut needed = BTreeSet::new();
    let mut pending = Vec::new();
    let mut want = |reference: &str, pending: &mut Vec<String>| {
        if needed.insert(reference.to_owned()) {
            pending.push(reference.to_owned());
        }
    };
    references(&document["paths"], &mut |reference| want(reference, &mut pending));
    while let Some(reference) = pending.pop() {
        let mut found = Vec::new();
        if let Some(part) = shared(&document, &reference) {
            references(part, &mut |reference| found.push(reference.to_owned()));
        }
        for reference in found {
            want(&reference, &mut pending);
        }
    }
    let mut part = json!({"paths": document["paths"].take()});
    for field in ABOUT {
        if let Some(found) = document.get_mut(field) {
            part[field] = found.take();
        }
    }
    for (place, prefix) in SHARED {
        let mut kept = Map::new();
        for reference in &needed {
            if let Some(name) = reference.strip_prefix(prefix)
                && let Some(found) = document.get_mut(place).and_then(|all| all.get_mut(name))
            {
                kept.insert(name.to_owned(), found.take());
            }
        }
        if !kept.is_empty() {
            part[place] = kept.into();
        }
    }
    serde_json::to_vec(&part).ok().map(Bytes::from)
}

fn shared<'a>(document: &'a Value, reference: &str) -> Option<&'a Value> {
    let (place, name) = SHARED
        .iter()
        .find_map(|(place, prefix)| Some((*place, reference.strip_prefix(prefix)?)))?;
    document.get(place)?.get(name)
}

/// Every `$ref` in a tree.
fn references(tree: &Value, each: &mut dyn FnMut(&str)) {
    match tree {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                each(reference);
            }
            for value in map.values() {
                references(value, each);
            }
        }
        Value::Array(all) => {
            for value in all {
                references(value, each);
            }
        }
        _ => {}
    }
}

/// Changes every `$ref` for which `rename` has a new one.
fn rename(tree: &mut Value, new: &BTreeMap<String, String>) {
    match tree {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(renamed) = new.get(reference.as_str())
            {
                reference.clone_from(renamed);
            }
            for value in map.values_mut() {
                rename(value, new);
            }
        }
        Value::Array(all) => {
            for value in all {
                rename(value, new);
            }
        }
        _ => {}
    }
}

/// Our document with those of the remotes. The tag changes with what they add.
pub fn merged_v2(mut document: Value, remotes: &Remotes) -> Value {
    for part in parts(remotes) {
        match serde_json::from_slice(&part) {
            Ok(part) => add(&mut document, part),
            Err(error) => tracing::debug!(%error, "a kept part of an OpenAPI document cannot be read"),
        }
    }
    document
}

/// What the remotes add, for the document's own tag; empty if nothing.
pub fn v2_tag(remotes: &Remotes) -> String {
    let mut digest = Sha256::new();
    let mut any = false;
    for part in parts(remotes) {
        any = true;
        digest.update(&part);
    }
    if any {
        format!("-{}", hex::encode(digest.finalize().get(..8).unwrap_or_default()))
    } else {
        String::new()
    }
}

fn parts(remotes: &Remotes) -> impl Iterator<Item = Bytes> {
    let mut all: Vec<_> = remotes.values().collect();
    all.sort_by_key(|remote| (-remote.priority().group, -remote.priority().version));
    all.into_iter().filter_map(|remote| remote.documents().v2)
}

fn add(document: &mut Value, mut part: Value) {
    let new = renamings(document, &part);
    rename(&mut part, &new);
    for (place, prefix) in SHARED {
        let Some(from) = part.get_mut(place).and_then(Value::as_object_mut).map(std::mem::take) else {
            continue;
        };
        let Some(into) = object(document, place) else { continue };
        for (name, value) in from {
            let name = match new.get(&format!("{prefix}{name}")) {
                Some(renamed) => renamed.strip_prefix(prefix).unwrap_or(&name).to_owned(),
                None => name,
            };
            match into.get_mut(&name) {
                Some(known) => unite_kinds(known, &value),
                None => {
                    into.insert(name, value);
                }
            }
        }
    }
    let Some(paths) = part.get_mut("paths").and_then(Value::as_object_mut).map(std::mem::take) else {
        return;
    };
    if let Some(into) = object(document, "paths") {
        for (path, item) in paths {
            into.entry(path).or_insert(item);
        }
    }
}

fn object<'a>(document: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    document
        .as_object_mut()?
        .entry(field)
        .or_insert_with(|| json!({}))
        .as_object_mut()
}

/// Which references of `part` get new names so that it can join `document`.
fn renamings(document: &Value, part: &Value) -> BTreeMap<String, String> {
    let mut conflicts: BTreeSet<String> = BTreeSet::new();
    let all = || {
        SHARED.iter().flat_map(|(place, prefix)| {
            let here = part.get(*place).and_then(Value::as_object).into_iter().flatten();
            here.map(move |(name, value)| (*place, *prefix, name.as_str(), value))
        })
    };
    for (place, prefix, name, value) in all() {
        let known = document.get(place).and_then(|known| known.get(name));
        if known.is_some_and(|known| !same(known, value)) {
            conflicts.insert(format!("{prefix}{name}"));
        }
    }
    // What refers to something renamed is no longer what we have under its name.
    loop {
        let before = conflicts.len();
        for (place, prefix, name, value) in all() {
            let key = format!("{prefix}{name}");
            if conflicts.contains(&key) || document.get(place).and_then(|known| known.get(name)).is_none() {
                continue;
            }
            let mut touched = false;
            references(value, &mut |reference| touched |= conflicts.contains(reference));
            if touched {
                conflicts.insert(key);
            }
        }
        if conflicts.len() == before {
            break;
        }
    }
    let taken = |reference: &str| shared(document, reference).is_some() || shared(part, reference).is_some();
    conflicts
        .into_iter()
        .map(|reference| {
            let mut number = 2;
            let mut new = format!("{reference}_v{number}");
            while taken(&new) {
                number += 1;
                new = format!("{reference}_v{number}");
            }
            (reference, new)
        })
        .collect()
}

/// Whether two definitions say the same, whatever kinds they are for.
fn same(one: &Value, other: &Value) -> bool {
    let bare = |value: &Value| {
        let mut value = value.clone();
        if let Some(map) = value.as_object_mut() {
            map.remove(GVK);
        }
        value
    };
    bare(one) == bare(other)
}

/// A definition two servers share is for the kinds of both.
fn unite_kinds(known: &mut Value, other: &Value) {
    let Some(more) = other.get(GVK).and_then(Value::as_array) else {
        return;
    };
    let Some(map) = known.as_object_mut() else { return };
    if let Some(kinds) = map.entry(GVK).or_insert_with(|| json!([])).as_array_mut() {
        for kind in more {
            if !kinds.contains(kind) {
                kinds.push(kind.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(field: &str) -> Value {
        json!({"properties": {field: {"type": "string"}}})
    }

    #[test]
    fn only_the_own_paths_and_what_they_need_are_kept() {
        let refer = |name: &str| json!({"$ref": format!("#/definitions/{name}")});
        let document = json!({
            "info": {"title": "x"},
            "paths": {"/apis/x/v1/foos": {"get": refer("Foo")}, "/apis/x/v1": {}, "/apis/y/v1/bars": {"get": refer("Bar")}},
            "definitions": {"Foo": {"items": refer("Meta")}, "Meta": {"self": refer("Meta"), "gone": refer("Gone")}, "Bar": {}},
            "parameters": {"p": {}},
        });
        let part: Value =
            serde_json::from_slice(&own_part(document.to_string().as_bytes(), "/apis/x/v1").unwrap()).unwrap();
        let names = |place: &str| {
            let named = part[place].as_object().into_iter().flatten();
            named.map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names("paths"), ["/apis/x/v1/foos"]);
        assert_eq!(names("definitions"), ["Foo", "Meta"]);
        assert!(names("parameters").is_empty());
        let converted = Converted::of(part.to_string().as_bytes(), "/apis/x/v1").unwrap();
        let document: Value = serde_json::from_slice(&converted.document).unwrap();
        assert_eq!(document["info"], json!({"title": "x"}));
        assert_eq!(
            document["components"]["schemas"]["Foo"]["items"],
            json!({"$ref": "#/components/schemas/Meta"})
        );
        let url = format!("/openapi/v3/apis/x/v1?hash={}", converted.hash);
        assert_eq!(converted.entry()["serverRelativeURL"], url);
        assert!(own_part(b"{}", "/apis/x/v1").is_none());
        assert!(own_part(b"[", "/apis/x/v1").is_none());
    }

    #[test]
    fn names_in_conflict_are_changed_with_all_that_refers_to_them() {
        let refer = |name: &str| json!({"$ref": format!("#/definitions/{name}")});
        let list = |of: &str| json!({"items": refer(of)});
        let mut document = json!({
            "paths": {"/ours": {"get": 1}},
            "definitions": {"Same": {"a": 1, GVK: [1]}, "Other": definition("a"), "Other_v2": {}, "List": list("Other")},
        });
        let part = json!({
            "paths": {"/ours": {"get": 2}, "/theirs": {"get": refer("List")}},
            "definitions": {"Same": {"a": 1, GVK: [2]}, "Other": definition("b"), "List": list("Other"), "New": list("Other")},
        });
        add(&mut document, part);
        assert_eq!(document["paths"]["/ours"]["get"], 1);
        assert_eq!(document["paths"]["/theirs"]["get"], refer("List_v2"));
        let definitions = &document["definitions"];
        assert_eq!(definitions["Same"][GVK], json!([1, 2]));
        assert_eq!(definitions["Other"], definition("a"));
        assert_eq!(definitions["Other_v3"], definition("b"));
        assert_eq!(definitions["List"], list("Other"));
        assert_eq!(definitions["List_v2"], list("Other_v3"));
        assert_eq!(definitions["New"], list("Other_v3"));
    }

    #[test]
    fn the_index_has_only_what_is_theirs() {
        let index = json!({"paths": {
            "apis/x/v1": {"serverRelativeURL": "/openapi/v3/apis/x/v1?hash=1"}, "version": {"serverRelativeURL": "/openapi/v3/version"}}});
        let found = v3_paths(index.to_string().as_bytes(), "/apis/x/v1");
        assert_eq!(found.keys().collect::<Vec<_>>(), ["apis/x/v1"]);
        let elsewhere = json!({"paths": {"apis/x/v1": {"serverRelativeURL": "https://elsewhere/"}}});
        assert!(v3_paths(elsewhere.to_string().as_bytes(), "/apis/x/v1").is_empty());
    }
}
