//! Keeping the defaults: what a start must do about a role or binding that exists.
//!
//! As upstream: missing permissions, subjects, labels and annotations are added, additions of the administrator
//! stay, and an object whose `autoupdate` annotation is `false` is left alone.

use serde_json::{Map, Value};

use super::{AUTO_UPDATE, Rule};
use crate::rule;

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    None,
    /// Write this in its place.
    Update(Value),
    /// Its `roleRef` is another and cannot be changed: delete it, then create this.
    Recreate(Value),
}

/// Compares a default role or binding with the one that exists (of the same kind).
pub fn reconcile(existing: &Value, wanted: &Value) -> Change {
    let annotation = existing
        .pointer("/metadata/annotations")
        .and_then(|all| all.get(AUTO_UPDATE));
    if annotation.and_then(Value::as_str) == Some("false") {
        return Change::None;
    }
    if existing.get("roleRef") != wanted.get("roleRef") {
        return Change::Recreate(wanted.clone());
    }
    let mut merged = existing.clone();
    for field in ["labels", "annotations"] {
        add_missing(&mut merged, wanted, field);
    }
    let (have, want) = (Rule::all_of(existing), Rule::all_of(wanted));
    // An aggregated role follows the roles it is made of, not this list.
    if wanted.get("aggregationRule").is_none() {
        let missing = rule::missing(&have, &want);
        append(&mut merged, "rules", missing.iter().map(Rule::to_value));
        if let Some(map) = merged.as_object_mut() {
            map.remove("aggregationRule");
        }
    }
    append_unlike(&mut merged, wanted, &["aggregationRule", "clusterRoleSelectors"]);
    append_unlike(&mut merged, wanted, &["subjects"]);
    if merged == *existing {
        Change::None
    } else {
        Change::Update(merged)
    }
}

/// Adds labels or annotations that are not there; those that are keep their values.
fn add_missing(merged: &mut Value, wanted: &Value, field: &str) {
    let Some(wanted) = wanted.pointer(&format!("/metadata/{field}")).and_then(Value::as_object) else {
        return;
    };
    let Some(metadata) = merged.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    let own = metadata.entry(field).or_insert_with(|| Map::new().into());
    if let Some(own) = own.as_object_mut() {
        for (key, value) in wanted {
            own.entry(key.as_str()).or_insert_with(|| value.clone());
        }
    }
}

fn append(object: &mut Value, field: &str, items: impl Iterator<Item = Value>) {
    let mut items = items.peekable();
    let (Some(map), Some(_)) = (object.as_object_mut(), items.peek()) else {
        return;
    };
    match map.get_mut(field).and_then(Value::as_array_mut) {
        Some(list) => list.extend(items),
        None => {
            map.insert(field.into(), items.collect());
        }
    }
}

/// Adds the items of the wanted list at `path` that are not in the existing one.
fn append_unlike(merged: &mut Value, wanted: &Value, path: &[&str]) {
    let Some((field, parents)) = path.split_last() else {
        return;
    };
    let wanted = path.iter().try_fold(wanted, |value, name| value.get(*name));
    let wanted = wanted.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if wanted.is_empty() {
        return;
    }
    let mut parent = merged;
    for name in parents {
        let Some(map) = parent.as_object_mut() else {
            return;
        };
        parent = map.entry(*name).or_insert_with(|| Map::new().into());
    }
    let own = parent
        .get(*field)
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    append(parent, field, wanted.iter().filter(|item| !own.contains(item)).cloned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::objects;
    use serde_json::json;

    #[test]
    fn the_defaults_need_no_change() {
        for (_, object) in objects() {
            let mut stored = object.clone();
            stored["metadata"]["uid"] = "u".into();
            stored["metadata"]["resourceVersion"] = "7".into();
            assert_eq!(reconcile(&stored, &object), Change::None, "{object}");
        }
    }

    #[test]
    fn what_is_missing_is_added_and_what_is_more_stays() {
        let rule = |verb: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]});
        let role = |labels: Value, rules: Value| json!({"kind": "ClusterRole", "metadata": {"name": "r", "labels": labels}, "rules": rules});
        let wanted = role(json!({"a": "1", "b": "2"}), json!([rule("get"), rule("list")]));
        let stored = role(json!({"a": "own"}), json!([rule("get"), rule("delete")]));
        assert_eq!(
            reconcile(&stored, &wanted),
            Change::Update(role(
                json!({"a": "own", "b": "2"}),
                json!([rule("get"), rule("delete"), rule("list")])
            ))
        );
        let mut protected = stored.clone();
        protected["metadata"]["annotations"] = json!({AUTO_UPDATE: "false"});
        assert_eq!(reconcile(&protected, &wanted), Change::None);

        let binding = |role: &str, subjects: Value| json!({"metadata": {"name": "b"}, "roleRef": {"name": role}, "subjects": subjects});
        let wanted = binding("r", json!([{"kind": "User", "name": "a"}]));
        let stored = binding("r", json!([{"kind": "User", "name": "b"}]));
        assert_eq!(
            reconcile(&stored, &wanted),
            Change::Update(binding(
                "r",
                json!([{"kind": "User", "name": "b"}, {"kind": "User", "name": "a"}])
            ))
        );
        assert_eq!(
            reconcile(&binding("other", json!([])), &wanted),
            Change::Recreate(wanted.clone())
        );

        let mut aggregated = role(json!({}), json!([]));
        aggregated["aggregationRule"] = json!({"clusterRoleSelectors": [1]});
        let mut stored = role(json!({}), json!([rule("get")]));
        stored["aggregationRule"] = json!({"clusterRoleSelectors": [2]});
        let Change::Update(merged) = reconcile(&stored, &aggregated) else {
            panic!("no update")
        };
        assert_eq!(merged["aggregationRule"]["clusterRoleSelectors"], json!([2, 1]));
        assert_eq!(merged["rules"], stored["rules"]);
    }
}
