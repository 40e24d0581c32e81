//! Whole objects inside objects (`x-kubernetes-embedded-resource`): they state what they are, and their metadata
//! keeps the rules of metadata.

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{meta, names};
use serde_json::{Value, json};

use crate::schema::Schema;

/// Checks every embedded object below a value; `is_root`: the value is one itself, whatever its schema says.
pub fn check(schema: &Schema, value: &Value, is_root: bool, path: &Path, errors: &mut Errors) {
    match value {
        Value::Object(map) => {
            if schema.embedded || is_root {
                object(value, path, errors);
            }
            for (key, value) in map {
                if let Some(below) = schema.properties.get(key) {
                    check(below, value, false, &path.child(key), errors);
                } else if let Some(below) = &schema.additional {
                    check(below, value, false, &path.key(key), errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = &schema.items {
                for (index, item) in items.iter().enumerate() {
                    check(below, item, false, &path.index(index), errors);
                }
            }
        }
        _ => {}
    }
}

fn object(value: &Value, path: &Path, errors: &mut Errors) {
    for field in ["apiVersion", "kind"] {
        if value.get(field).is_none() {
            errors.push(Error::required(&path.child(field), ""));
        }
    }
    if let Some(stated) = value.get("apiVersion") {
        let at = path.child("apiVersion");
        match stated.as_str() {
            None => errors.push(Error::invalid(&at, stated.clone(), "must be a string")),
            Some("") => errors.push(Error::invalid(&at, "", "must not be empty")),
            Some(text) if text.matches('/').count() > 1 => {
                errors.push(Error::invalid(
                    &at,
                    text,
                    format!("unexpected GroupVersion string: {text}"),
                ));
            }
            Some(_) => {}
        }
    }
    if let Some(stated) = value.get("kind") {
        let at = path.child("kind");
        match stated.as_str() {
            None => errors.push(Error::invalid(&at, stated.clone(), "must be a string")),
            Some("") => errors.push(Error::invalid(&at, "", "must not be empty")),
            Some(text) => {
                let wrong = names::dns1035_label(&text.to_lowercase());
                if !wrong.is_empty() {
                    let why = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                    errors.push(Error::invalid(&at, text, why));
                }
            }
        }
    }
    let Some(metadata) = value.get("metadata") else {
        return;
    };
    let at = path.child("metadata");
    if !metadata.is_object() {
        errors.push(Error::invalid(
            &at,
            metadata.clone(),
            "json: cannot unmarshal value into Go value of type v1.ObjectMeta",
        ));
        return;
    }
    let mut named = json!({ "metadata": metadata });
    if meta::name(&named).is_empty() {
        meta::set_name(&mut named, "fakename");
    }
    let namespaced = !meta::namespace(&named).is_empty();
    errors.extend(names::validate_object_meta(
        &named,
        namespaced,
        names::name_is_path_segment,
        &at,
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_objects_keep_the_rules() {
        let schema = Schema::parse(&json!({"type": "object", "properties": {"template":
            {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}))
        .unwrap();
        let found = |template: Value| {
            let mut errors = Errors::new();
            check(
                &schema,
                &json!({ "template": template }),
                false,
                &Path::default(),
                &mut errors,
            );
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(found(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}})).is_empty());
        assert_eq!(
            found(json!({"metadata": {"name": "a/b"}, "kind": 1})),
            [
                "template.apiVersion: Required value",
                "template.kind: Invalid value: 1: must be a string",
                "template.metadata.name: Invalid value: \"a/b\": may not contain '/'",
            ]
        );
    }
}
