//! Reading and changing JSON trees by dotted path.
//!
//! A null is the same as an absent field everywhere in this crate, as it is to Go's decoder. Paths name plain
//! fields only (`spec.template.spec`); keys that may contain dots (labels, annotations, resource names) are
//! read with [`entry`] or from the map itself.

use serde_json::{Map, Value};

/// The value at a dotted path, unless absent or null.
pub(crate) fn get<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let mut at = value;
    if !path.is_empty() {
        for name in path.split('.') {
            at = at.get(name)?;
        }
    }
    (!at.is_null()).then_some(at)
}

/// The text at a path, "" when there is none.
pub(crate) fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    get(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at a path, 0 when there is none.
pub(crate) fn int(value: &Value, path: &str) -> i64 {
    opt_int(value, path).unwrap_or_default()
}

pub(crate) fn opt_int(value: &Value, path: &str) -> Option<i64> {
    get(value, path).and_then(Value::as_i64)
}

/// The boolean at a path, false when there is none.
pub(crate) fn flag(value: &Value, path: &str) -> bool {
    get(value, path).and_then(Value::as_bool).unwrap_or_default()
}

/// The elements of the list at a path, none when there is no list.
pub(crate) fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    get(value, path)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

pub(crate) fn map<'a>(value: &'a Value, path: &str) -> Option<&'a Map<String, Value>> {
    get(value, path).and_then(Value::as_object)
}

/// How many entries the map at a path has.
pub(crate) fn len(value: &Value, path: &str) -> usize {
    map(value, path).map_or(0, Map::len)
}

/// The text under `key` in the map at a path: for keys with dots in them.
pub(crate) fn entry<'a>(value: &'a Value, path: &str, key: &str) -> &'a str {
    map(value, path)
        .and_then(|map| map.get(key))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

pub(crate) fn annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    entry(object, "metadata.annotations", key)
}

/// A quantity or an int-or-string as text: numbers as they are written.
pub(crate) fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The map under `name`, made when absent or null. `None` when something else is there.
pub(crate) fn child<'a>(value: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    let map = value.as_object_mut()?;
    let slot = map.entry(name).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut()
}

/// The value at a dotted path, to be changed; nothing is made on the way.
pub(crate) fn get_mut<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut at = value;
    for name in path.split('.') {
        at = at.get_mut(name)?;
    }
    (!at.is_null()).then_some(at)
}

/// The list at a path, to be changed; empty when there is none.
pub(crate) fn items_mut<'a>(value: &'a mut Value, path: &str) -> &'a mut [Value] {
    get_mut(value, path)
        .and_then(Value::as_array_mut)
        .map(Vec::as_mut_slice)
        .unwrap_or_default()
}

/// Writes a value at a dotted path, making the maps on the way. Does nothing where something that is not a
/// map is in the way: such an object is refused by the schema before any rule sees it.
pub(crate) fn set(value: &mut Value, path: &str, new: impl Into<Value>) {
    match path.split_once('.') {
        None => {
            if let Some(map) = value.as_object_mut() {
                map.insert(path.to_owned(), new.into());
            }
        }
        Some((first, rest)) => {
            if child(value, first).is_some()
                && let Some(next) = value.get_mut(first)
            {
                set(next, rest, new);
            }
        }
    }
}

/// Removes what is at a dotted path.
pub(crate) fn remove(value: &mut Value, path: &str) -> Option<Value> {
    let (parent, name) = match path.rsplit_once('.') {
        Some((parent, name)) => (get_mut(value, parent)?, name),
        None => (value, path),
    };
    parent.as_object_mut()?.remove(name)
}

/// Makes `new` at a path what it is in `old`, absence included.
pub(crate) fn carry(new: &mut Value, old: &Value, path: &str) {
    match get(old, path) {
        Some(value) => set(new, path, value.clone()),
        None => {
            remove(new, path);
        }
    }
}

/// Equality as Go's semantic comparison sees it: null, absent and empty maps and lists are the same. A zero that is there
/// differs from an absent one: decoding drops zeros that mean nothing, what stays is behind a pointer.
pub(crate) fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(one), None) | (None, Some(one)) => is_nothing(one),
        (Some(a), Some(b)) => match (a, b) {
            (Value::Object(x), Value::Object(y)) => {
                x.iter().all(|(key, value)| same(Some(value), y.get(key)))
                    && y.iter().all(|(key, value)| x.contains_key(key) || is_nothing(value))
            }
            (Value::Array(x), Value::Array(y)) => {
                x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(Some(x), Some(y)))
            }
            _ => a == b || (is_nothing(a) && is_nothing(b)),
        },
    }
}

/// The same as absent to a comparison.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_nothing),
        _ => false,
    }
}

/// Absent as far as Go's encoder is concerned.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
    }
}

/// [`same`] for the values at one path of two trees.
pub(crate) fn same_at(a: &Value, b: &Value, path: &str) -> bool {
    same(get(a, path), get(b, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_are_made_changed_and_removed() {
        let mut tree = json!({"spec": null});
        set(&mut tree, "spec.a.b", 1);
        assert_eq!(tree, json!({"spec": {"a": {"b": 1}}}));
        assert_eq!(int(&tree, "spec.a.b"), 1);
        remove(&mut tree, "spec.a.b");
        assert_eq!(tree, json!({"spec": {"a": {}}}));
        set(&mut tree, "spec.a", "text");
        set(&mut tree, "spec.a.b", 1);
        assert_eq!(text(&tree, "spec.a"), "text", "a scalar in the way is left alone");
    }

    #[test]
    fn empty_and_absent_are_the_same() {
        let cases = [
            (json!({"a": []}), json!({}), true),
            (json!({"a": null, "b": 1}), json!({"b": 1}), true),
            (json!({"a": {"b": {}}}), json!({}), true),
            (json!({"a": {"b": ""}}), json!({}), false),
            (json!({"a": false}), json!({}), false),
            (json!({"a": [1]}), json!({"a": [2]}), false),
            (json!({"a": [1]}), json!({}), false),
            (json!({}), json!({"a": "x"}), false),
        ];
        for (a, b, equal) in cases {
            assert_eq!(same(Some(&a), Some(&b)), equal, "{a} {b}");
        }
    }
}
