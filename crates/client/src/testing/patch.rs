//! The patch formats, as far as tests need them.

use serde_json::Value;

/// RFC 7386.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Default::default());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// The lists that strategic merge joins by key. Not the schema, only the usual ones.
fn merge_key(field: &str) -> Option<&'static str> {
    Some(match field {
        "conditions" => "type",
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" | "resourceClaimStatuses" => "name",
        "ownerReferences" => "uid",
        "taints" => "key",
        "addresses" => "type",
        _ => return None,
    })
}

/// A close relative of strategic merge: known lists are joined by key, `finalizers` as a set, the rest as RFC 7386.
pub(super) fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Default::default());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (field, value) in patch {
        if field.starts_with('$') {
            continue;
        }
        match (value, merge_key(field)) {
            (Value::Null, _) => {
                target.remove(field);
            }
            (Value::Array(changes), Some(key)) => {
                let list = target.entry(field.clone()).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(items) = list {
                    join(items, changes, key);
                }
            }
            (Value::Array(more), None) if field == "finalizers" => {
                let list = target.entry(field.clone()).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(items) = list {
                    for item in more {
                        if !items.contains(item) {
                            items.push(item.clone());
                        }
                    }
                }
            }
            _ => strategic(target.entry(field.clone()).or_insert(Value::Null), value),
        }
    }
}

fn join(items: &mut Vec<Value>, changes: &[Value], key: &str) {
    for change in changes {
        let place = items.iter().position(|item| item.get(key) == change.get(key));
        let delete = change.get("$patch").and_then(Value::as_str) == Some("delete");
        match place {
            Some(place) if delete => {
                items.remove(place);
            }
            Some(place) => {
                if let Some(item) = items.get_mut(place) {
                    strategic(item, change);
                }
            }
            None if delete => {}
            None => items.push(change.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strategic_joins_conditions() {
        let mut target = json!({"status": {"conditions": [{"type": "A", "status": "False"}, {"type": "B"}]}});
        strategic(
            &mut target,
            &json!({"status": {"conditions": [{"type": "A", "status": "True"}, {"type": "B", "$patch": "delete"}]}}),
        );
        assert_eq!(
            target,
            json!({"status": {"conditions": [{"type": "A", "status": "True"}]}})
        );
    }
}
