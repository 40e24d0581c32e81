//! Lists that are sets or maps hold everything once.

use std::collections::HashMap;

use sampan_api::field::{Error, Errors, Path};
use serde_json::{Map, Value};

use crate::schema::{ListType, Schema};

/// Checks every list below an object.
pub fn check(schema: &Schema, value: &Value, path: &Path, errors: &mut Errors) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if let Some(below) = schema.properties.get(key) {
                    check(below, value, &path.child(key), errors);
                } else if let Some(below) = &schema.additional {
                    check(below, value, &path.key(key), errors);
                }
            }
        }
        Value::Array(items) => {
            match schema.list_type {
                ListType::Atomic => {}
                ListType::Set => {
                    for index in repeated(items.iter()) {
                        errors.push(Error::duplicate(
                            &path.index(index),
                            items.get(index).cloned().unwrap_or_default(),
                        ));
                    }
                }
                ListType::Map => map_items(schema, items, path, errors),
            }
            if let Some(below) = &schema.items {
                for (index, item) in items.iter().enumerate() {
                    check(below, item, &path.index(index), errors);
                }
            }
        }
        _ => {}
    }
}

fn map_items(schema: &Schema, items: &[Value], path: &Path, errors: &mut Errors) {
    for (index, item) in items.iter().enumerate() {
        if !item.is_null() && !item.is_object() {
            errors.push(Error::invalid(
                &path.index(index),
                item.clone(),
                "must be an object for an array of list-type map",
            ));
            return;
        }
    }
    let keys: Vec<Value> = items
        .iter()
        .map(|item| {
            let key: Map<String, Value> = schema
                .list_keys
                .iter()
                .filter_map(|name| Some((name.clone(), item.get(name)?.clone())))
                .collect();
            Value::Object(key)
        })
        .collect();
    for index in repeated(keys.iter()) {
        errors.push(Error::duplicate(
            &path.index(index),
            keys.get(index).cloned().unwrap_or_default(),
        ));
    }
}

/// Where something is there for the second time; a third is not told again.
fn repeated<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<usize> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut found = Vec::new();
    for (index, value) in values.enumerate() {
        let times = seen.entry(value.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            found.push(index);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn repetitions_are_found() {
        let schema = Schema::parse(&json!({"type": "object", "properties": {
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "b"], "items": {"type": "object",
                "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}}}}))
        .unwrap();
        let mut errors = Errors::new();
        let object =
            json!({"set": ["x", "y", "x", "x"], "map": [{"a": "1", "b": 1}, {"a": "1"}, {"a": "1", "b": 1}, null]});
        check(&schema, &object, &Path::default(), &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                r#"map[2]: Duplicate value: {"a":"1","b":1}"#,
                r#"set[2]: Duplicate value: "x""#
            ]
        );
    }
}
