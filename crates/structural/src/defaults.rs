//! What a schema makes of a value: unknown fields go, nulls that may not be go, defaults come.

use serde_json::Value;

use crate::schema::Schema;

/// Drops the fields the schema does not know. `is_root`: the value is a whole object.
pub fn prune(schema: &Schema, value: &mut Value, is_root: bool) {
    match value {
        Value::Object(map) => {
            let whole = is_root || schema.embedded;
            map.retain(|key, value| {
                if whole && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                    return true;
                }
                match schema.below(key) {
                    Some(below) => {
                        prune(below, value, false);
                        true
                    }
                    None => schema.preserve_unknown || schema.additional_allowed == Some(true),
                }
            });
        }
        Value::Array(items) => {
            if let Some(below) = &schema.items {
                items.iter_mut().for_each(|item| prune(below, item, false));
            }
        }
        _ => {}
    }
}

/// Drops nulls that may not be and have no default.
pub fn drop_nulls(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(map) => map.retain(|key, value| match schema.below(key) {
            Some(below) if value.is_null() => below.nullable || below.default.is_some(),
            Some(below) => {
                drop_nulls(below, value);
                true
            }
            None => true,
        }),
        Value::Array(items) => {
            if let Some(below) = &schema.items {
                items.iter_mut().for_each(|item| drop_nulls(below, item));
            }
        }
        _ => {}
    }
}

/// Fills in defaults where a field is absent, or null and may not be.
pub fn fill(schema: &Schema, value: &mut Value) {
    let missing = |value: &Value, below: &Schema| value.is_null() && !below.nullable;
    match value {
        Value::Object(map) => {
            for (name, below) in &schema.properties {
                if let Some(default) = &below.default
                    && map.get(name).is_none_or(|value| missing(value, below))
                {
                    map.insert(name.clone(), default.clone());
                }
                if let Some(value) = map.get_mut(name) {
                    fill(below, value);
                }
            }
            if let Some(below) = &schema.additional {
                for (_, value) in map.iter_mut().filter(|(key, _)| !schema.properties.contains_key(*key)) {
                    if missing(value, below)
                        && let Some(default) = &below.default
                    {
                        *value = default.clone();
                    }
                    fill(below, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = &schema.items {
                for item in items {
                    if missing(item, below)
                        && let Some(default) = &below.default
                    {
                        *item = default.clone();
                    }
                    fill(below, item);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_come_and_nulls_and_strangers_go() {
        let schema = Schema::parse(&json!({"type": "object", "properties": {"spec": {"type": "object", "default": {}, "properties": {
            "replicas": {"type": "integer", "default": 1},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "maybe": {"type": "string", "nullable": true, "default": "x"},
            "plain": {"type": "string"},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "integer", "default": 2}}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}}}}}}))
        .unwrap();
        let made = |mut value: Value| {
            prune(&schema, &mut value, true);
            drop_nulls(&schema, &mut value);
            fill(&schema, &mut value);
            value
        };
        assert_eq!(
            made(json!({"kind": "X", "other": 1})),
            json!({"kind": "X", "spec": {"replicas": 1, "maybe": "x"}})
        );
        assert_eq!(
            made(
                json!({"spec": {"replicas": null, "maybe": null, "plain": null, "what": 1, "open": {"z": null},
                "map": {"k": {"b": 1}}, "list": [{}, {"p": "UDP", "q": 1}]}})
            ),
            json!({"spec": {"replicas": 1, "maybe": null, "open": {"z": null}, "map": {"k": {"a": 2}}, "list": [{"p": "TCP"}, {"p": "UDP"}]}})
        );
    }
}
