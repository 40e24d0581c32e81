//! JSON merge patches (RFC 7386): null removes, maps merge, everything else replaces.

use serde_json::Value;
use thiserror::Error;

use crate::meta::ensure_map;
use crate::status::Status;

/// The patch is not an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("Invalid JSON Patch")]
pub struct MergePatchError;

impl From<MergePatchError> for Status {
    fn from(error: MergePatchError) -> Status {
        Status::bad_request(error.to_string())
    }
}

/// Applies a merge patch to an object.
pub fn apply(object: &mut Value, patch: Value) -> Result<(), MergePatchError> {
    if !patch.is_object() {
        return Err(MergePatchError);
    }
    merge(object, patch);
    Ok(())
}

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    let target = ensure_map(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// The merge patch that takes `from` to `to`, which has no nulls in its maps.
pub fn diff(from: &Value, to: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (from, to) else {
        return to.clone();
    };
    let removed = old
        .keys()
        .filter(|key| !new.contains_key(*key))
        .map(|key| (key.clone(), Value::Null));
    let changed = new.iter().filter_map(|(key, value)| match old.get(key) {
        Some(have) if have == value => None,
        Some(have) => Some((key.clone(), diff(have, value))),
        None => Some((key.clone(), value.clone())),
    });
    Value::Object(removed.chain(changed).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_rfcs_own_examples() {
        for (mut target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (
                json!({"a": "foo"}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
        ] {
            apply(&mut target, patch).unwrap();
            assert_eq!(target, result);
        }
        for patch in [json!(null), json!([1]), json!("a")] {
            assert_eq!(apply(&mut json!({}), patch), Err(MergePatchError));
        }
    }

    proptest! {
        #[test]
        fn a_diff_reaches_its_target_and_again_changes_nothing(a in crate::patch::tests::tree(), b in crate::patch::tests::tree()) {
            let (mut at, target) = (json!({"r": a}), json!({"r": b}));
            let patch = diff(&at, &target);
            apply(&mut at, patch.clone()).unwrap();
            prop_assert_eq!(&at, &target);
            apply(&mut at, patch).unwrap();
            prop_assert_eq!(at, target);
        }
    }
}
