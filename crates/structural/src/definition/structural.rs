//! What makes a schema structural: every field is stated once, outside of logic, with its type.

use sampan_api::field::{Error, Errors, Path};
use serde_json::{Map, Value, json};

use crate::pattern;
use crate::schema::{flag, text};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Every way the schema breaks the rules, sorted by text.
pub(super) fn check(schema: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    invariants(schema, Level::Root, path, &mut errors);
    complete(schema, path, &mut errors);
    errors.sort_by_cached_key(ToString::to_string);
    errors
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

fn all<'a>(schema: &'a Value, key: &str) -> &'a [Value] {
    schema
        .get(key)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn below<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    schema.get(key).filter(|value| value.is_object())
}

fn invariants(schema: &Value, level: Level, path: &Path, errors: &mut Errors) {
    let ty = text(schema, "type");
    match below(schema, "items") {
        Some(items) => invariants(items, Level::Item, &path.child("items"), errors),
        None if ty == "array" => errors.push(Error::required(&path.child("items"), "must be specified")),
        None => {}
    }
    for (name, property) in properties(schema) {
        invariants(property, Level::Field, &path.child("properties").key(name), errors);
    }
    let additional = schema.get("additionalProperties").filter(|value| !value.is_null());
    let at = path.child("additionalProperties");
    if let Some(additional) = additional {
        if level == Level::Root {
            errors.push(Error::forbidden(&at, "must not be used at the root"));
        }
        if additional.is_object() {
            invariants(additional, Level::Field, &at, errors);
        }
    }
    extensions(schema, path, errors);
    let either = int_or_string(schema, "anyOf");
    let first = all(schema, "allOf")
        .first()
        .is_some_and(|first| int_or_string(first, "anyOf"));
    value_validation(schema, either, first, level, path, errors);
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let preserve = flag(schema, "x-kubernetes-preserve-unknown-fields");
    if embedded && ty != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if ty.is_empty() {
            Error::required(&path.child("type"), why)
        } else {
            Error::invalid(&path.child("type"), ty, why)
        });
    } else if ty.is_empty() && !flag(schema, "x-kubernetes-int-or-string") && !preserve {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(Error::required(&path.child("type"), why));
    }
    if embedded && additional.is_some() {
        errors.push(Error::forbidden(
            &at,
            "must not be used if x-kubernetes-embedded-resource is set",
        ));
    }
    if level == Level::Root && !ty.is_empty() && ty != "object" {
        errors.push(Error::invalid(&path.child("type"), ty, "must be object at the root"));
    }
    let whole = level == Level::Root || embedded;
    let property = |name: &str| schema.get("properties").and_then(|all| all.get(name));
    if whole {
        for name in ["kind", "apiVersion"] {
            if let Some(own) = property(name)
                && text(own, "type") != "string"
            {
                errors.push(Error::invalid(
                    &path.child("properties").key(name).child("type"),
                    text(own, "type"),
                    "must be string",
                ));
            }
        }
        if let Some(own) = property("metadata") {
            metadata(own, level, &path.child("properties").key("metadata"), errors);
        }
    }
    if embedded && !preserve && properties(schema).next().is_none() {
        errors.push(Error::required(
            &path.child("properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
}

fn metadata(schema: &Value, level: Level, path: &Path, errors: &mut Errors) {
    if text(schema, "type") != "object" {
        errors.push(Error::invalid(
            &path.child("type"),
            text(schema, "type"),
            "must be object",
        ));
    }
    if level != Level::Root {
        return;
    }
    // Descriptions and the like count, too: nothing but the two names may be said.
    let only_names = properties(schema).all(|(name, _)| matches!(name.as_str(), "name" | "generateName"));
    let others = schema
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| !matches!(key.as_str(), "type" | "properties" | "default") && !is_empty(value))
        .count();
    if !only_names || others > 0 {
        errors.push(Error::forbidden(
            path,
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ));
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// `anyOf: [{type: integer}, {type: string}]`, the one place where logic may state types.
fn int_or_string(schema: &Value, key: &str) -> bool {
    schema.get(key) == Some(&json!([{"type": "integer"}, {"type": "string"}]))
}

fn extensions(schema: &Value, path: &Path, errors: &mut Errors) {
    if !flag(schema, "x-kubernetes-int-or-string") {
        return;
    }
    for name in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
        if flag(schema, name) {
            errors.push(Error::invalid(
                &path.child(name),
                true,
                "must be false if x-kubernetes-int-or-string is true",
            ));
        }
    }
}

fn value_validation(schema: &Value, skip_any: bool, skip_first: bool, level: Level, path: &Path, errors: &mut Errors) {
    if !skip_any {
        for (index, one) in all(schema, "anyOf").iter().enumerate() {
            nested(one, false, level, &path.child("anyOf").index(index), errors);
        }
    }
    for (index, one) in all(schema, "allOf").iter().enumerate() {
        let skip = skip_first && index == 0;
        nested(one, skip, level, &path.child("allOf").index(index), errors);
    }
    for (index, one) in all(schema, "oneOf").iter().enumerate() {
        nested(one, false, level, &path.child("oneOf").index(index), errors);
    }
    if let Some(not) = below(schema, "not") {
        nested(not, false, level, &path.child("not"), errors);
    }
    let stated = text(schema, "pattern");
    if !stated.is_empty()
        && let Err(why) = pattern::compile(stated)
    {
        errors.push(Error::invalid(
            &path.child("pattern"),
            stated,
            format!("must be a valid regular expression, but isn't: {why}"),
        ));
    }
}

/// A schema inside logic: it may only restrict values.
fn nested(schema: &Value, skip_any: bool, level: Level, path: &Path, errors: &mut Errors) {
    value_validation(schema, skip_any, false, level, path, errors);
    if let Some(items) = below(schema, "items") {
        nested(items, false, level, &path.child("items"), errors);
    }
    for (name, property) in properties(schema) {
        nested(
            property,
            false,
            Level::Field,
            &path.child("properties").key(name),
            errors,
        );
    }
    const FORBIDDEN: [(&str, &str); 13] = [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ];
    for (key, why) in FORBIDDEN {
        let Some(value) = schema.get(key) else { continue };
        let is_set = match key {
            "additionalProperties" => *value != Value::Bool(false) && !value.is_null(),
            "default" => !value.is_null(),
            _ => !is_empty(value),
        };
        if is_set {
            errors.push(Error::forbidden(&path.child(key), why));
        }
    }
    if schema.get("properties").and_then(|all| all.get("metadata")).is_some() {
        errors.push(Error::forbidden(
            &path.child("properties").key("metadata"),
            "must not be specified in a nested context",
        ));
    }
}

/// Everything the logic at the root speaks of is also stated outside of it.
fn complete(schema: &Value, path: &Path, errors: &mut Errors) {
    covered(schema, schema, path, path, errors);
}

fn covered(logic: &Value, schema: &Value, spath: &Path, path: &Path, errors: &mut Errors) {
    for key in ["anyOf", "oneOf", "allOf"] {
        for (index, one) in all(logic, key).iter().enumerate() {
            covered_nested(one, schema, spath, &path.child(key).index(index), errors);
        }
    }
    if let Some(not) = below(logic, "not") {
        covered_nested(not, schema, spath, &path.child("not"), errors);
    }
}

fn covered_nested(logic: &Value, schema: &Value, spath: &Path, path: &Path, errors: &mut Errors) {
    covered(logic, schema, spath, path, errors);
    if let Some(items) = below(logic, "items") {
        let at = spath.child("items");
        match below(schema, "items") {
            None => errors.push(Error::required(
                &at,
                format!("because it is defined in {}", path.child("items")),
            )),
            Some(own) => covered_nested(items, own, &at, &path.child("items"), errors),
        }
    }
    let none = Map::new();
    let own = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    for (name, property) in properties(logic) {
        let here = path.child("properties").key(name);
        match own.get(name) {
            Some(own) => covered_nested(property, own, &spath.child("properties").key(name), &here, errors),
            None => errors.push(Error::required(
                &spath.child("properties").key(name),
                format!("because it is defined in {here}"),
            )),
        }
    }
}
