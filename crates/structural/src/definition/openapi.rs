//! The rules of every node of a schema, structural or not.

use sampan_api::field::{Error, Errors, Path};
use serde_json::Value;

use super::{Strictness, paths};
use crate::schema::{Schema, flag, text, texts};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
pub(super) const REASONS: [&str; 4] = [
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];

/// What the place of a node in the schema forbids.
#[derive(Clone, Debug)]
struct Place {
    root: bool,
    /// Why defaults may not be stated here.
    no_defaults: Option<String>,
    inside_meta: bool,
}

pub(super) fn check(schema: &Value, strict: Strictness, path: &Path, errors: &mut Errors) {
    let place = Place {
        root: true,
        no_defaults: None,
        inside_meta: false,
    };
    node(schema, &place, strict, path, errors);
}

/// Whether a node of the schema, at any depth, satisfies a predicate.
pub(super) fn any(schema: &Value, wanted: &dyn Fn(&Value) -> bool) -> bool {
    wanted(schema) || children(schema).any(|below| any(below, wanted))
}

fn children(schema: &Value) -> impl Iterator<Item = &Value> {
    let direct = ["items", "additionalProperties", "additionalItems", "not"]
        .into_iter()
        .filter_map(|key| schema.get(key))
        .flat_map(|below| match below {
            Value::Array(all) => all.iter().collect::<Vec<_>>(),
            Value::Object(_) => vec![below],
            _ => Vec::new(),
        });
    let listed = ["allOf", "anyOf", "oneOf"]
        .into_iter()
        .filter_map(|key| schema.get(key).and_then(Value::as_array))
        .flatten();
    let named = ["properties", "patternProperties", "definitions", "dependencies"]
        .into_iter()
        .filter_map(|key| schema.get(key).and_then(Value::as_object))
        .flat_map(|all| all.values())
        .filter(|below| below.is_object());
    direct.chain(listed).chain(named)
}

pub(super) fn has_unknown_type(schema: &Value) -> bool {
    let ty = text(schema, "type");
    !ty.is_empty() && !TYPES.contains(&ty)
}

/// A set whose items are merged, not compared.
pub(super) fn has_granular_set(schema: &Value) -> bool {
    let Some(items) = schema.get("items") else { return false };
    text(schema, "x-kubernetes-list-type") == "set"
        && match text(items, "type") {
            "array" => !matches!(text(items, "x-kubernetes-list-type"), "" | "atomic"),
            "object" => text(items, "x-kubernetes-map-type") != "atomic",
            _ => false,
        }
}

pub(super) fn has_loose_keys(schema: &Value) -> bool {
    let mut errors = Errors::new();
    list_keys(schema, &Path::default(), &mut errors);
    !errors.is_empty()
}

fn node(schema: &Value, place: &Place, strict: Strictness, path: &Path, errors: &mut Errors) {
    standard(schema, place, strict, path, errors);
    if flag(schema, "uniqueItems") {
        errors.push(Error::forbidden(
            &path.child("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    let nested = Place {
        root: false,
        ..place.clone()
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    if let Some(additional) = schema.get("additionalProperties").filter(|value| !value.is_null()) {
        let at = path.child("additionalProperties");
        if properties.is_some_and(|all| !all.is_empty()) && *additional != Value::Bool(true) {
            errors.push(Error::forbidden(
                &at,
                "additionalProperties and properties are mutual exclusive",
            ));
        }
        if additional.is_object() {
            let mut below = nested.clone();
            if place.inside_meta {
                below.no_defaults = Some("inside additionalProperties applying to object metadata".into());
            }
            node(additional, &below, strict, &at, errors);
        }
    }
    for (name, property) in properties.into_iter().flatten() {
        let mut below = nested.clone();
        let whole = place.root || flag(schema, "x-kubernetes-embedded-resource");
        if whole && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
            below.inside_meta = true;
            if place.root {
                below.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        node(property, &below, strict, &path.child("properties").key(name), errors);
    }
    if let Some(not) = schema.get("not").filter(|value| value.is_object()) {
        node(not, &nested, strict, &path.child("not"), errors);
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        for (index, one) in schema
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .enumerate()
        {
            node(one, &nested, strict, &path.child(key).index(index), errors);
        }
    }
    for (name, one) in schema
        .get("definitions")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        node(one, &nested, strict, &path.child("definitions").key(name), errors);
    }
    match schema.get("items") {
        Some(items @ Value::Object(_)) => node(items, &nested, strict, &path.child("items"), errors),
        Some(Value::Array(all)) => {
            for (index, one) in all.iter().enumerate() {
                node(one, &nested, strict, &path.child("items").index(index), errors);
            }
        }
        _ => {}
    }
    for (name, one) in schema
        .get("dependencies")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, one)| one.is_object())
    {
        node(one, &nested, strict, &path.child("dependencies").key(name), errors);
    }
    markers(schema, strict, path, errors);
    if strict.list_keys {
        list_keys(schema, path, errors);
    }
    rules(schema, path, errors);
}

/// What the dialect has no place for.
fn standard(schema: &Value, place: &Place, strict: Strictness, path: &Path, errors: &mut Errors) {
    let ty = text(schema, "type");
    if strict.types && has_unknown_type(schema) {
        errors.push(Error::not_supported(&path.child("type"), ty, &TYPES));
    }
    if schema.get("default").is_some_and(|value| !value.is_null())
        && let Some(why) = &place.no_defaults
    {
        errors.push(Error::forbidden(
            &path.child("default"),
            format!("must not be set {why}"),
        ));
    }
    const FORBIDDEN: [(&str, &str); 6] = [
        ("id", "id is not supported"),
        ("additionalItems", "additionalItems is not supported"),
        ("patternProperties", "patternProperties is not supported"),
        ("definitions", "definitions is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("$ref", "$ref is not supported"),
    ];
    for (key, why) in FORBIDDEN {
        let is_set = match schema.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => key == "$ref" || !text.is_empty(),
            Some(Value::Object(map)) => key == "additionalItems" || key == "dependencies" || !map.is_empty(),
            Some(_) => true,
        };
        if is_set {
            errors.push(Error::forbidden(&path.child(key), why));
        }
    }
    if ty == "null" {
        errors.push(Error::forbidden(
            &path.child("type"),
            "type cannot be set to null, use nullable as an alternative",
        ));
    }
    if schema
        .get("items")
        .and_then(Value::as_array)
        .is_some_and(|all| !all.is_empty())
    {
        errors.push(Error::forbidden(
            &path.child("items"),
            "items must be a schema object and not an array",
        ));
    }
    if place.inside_meta && flag(schema, "x-kubernetes-embedded-resource") {
        errors.push(Error::forbidden(
            &path.child("x-kubernetes-embedded-resource"),
            "must not be used inside of resource meta",
        ));
    }
}

/// The `x-kubernetes-` markers of lists and maps.
fn markers(schema: &Value, strict: Strictness, path: &Path, errors: &mut Errors) {
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        errors.push(Error::invalid(
            &path.child("x-kubernetes-preserve-unknown-fields"),
            false,
            "must be true or undefined",
        ));
    }
    let ty = text(schema, "type");
    let wrong_type = |wanted: &str, marker: &str| {
        let why = format!("must be {wanted} if {marker} is specified");
        if ty.is_empty() {
            Error::required(&path.child("type"), why)
        } else {
            Error::invalid(&path.child("type"), ty, why)
        }
    };
    if let Some(map_type) = schema.get("x-kubernetes-map-type").and_then(Value::as_str) {
        let marker = "x-kubernetes-map-type";
        if ty != "object" {
            errors.push(wrong_type("object", marker));
        }
        if !matches!(map_type, "atomic" | "granular") {
            errors.push(Error::not_supported(
                &path.child(marker),
                map_type,
                &["atomic", "granular"],
            ));
        }
    }
    let marker = "x-kubernetes-list-type";
    let list_type = schema.get(marker).and_then(Value::as_str);
    let items = schema.get("items").filter(|items| items.is_object());
    if list_type.is_some() && ty != "array" {
        errors.push(wrong_type("array", marker));
    } else if strict.atomic_sets && has_granular_set(schema) {
        let items = items.unwrap_or(&Value::Null);
        let own = if text(items, "type") == "array" {
            marker
        } else {
            "x-kubernetes-map-type"
        };
        errors.push(Error::invalid(
            &path.child("items").child(own),
            items.get(marker).cloned().unwrap_or_default(),
            "must be atomic as item of a list with x-kubernetes-list-type=set",
        ));
    }
    if let Some(stated) = list_type
        && !matches!(stated, "atomic" | "set" | "map")
    {
        errors.push(Error::not_supported(
            &path.child(marker),
            stated,
            &["atomic", "set", "map"],
        ));
    }
    let keys = texts(schema, "x-kubernetes-list-map-keys");
    if !keys.is_empty() {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            None => errors.push(Error::required(&path.child(marker), why)),
            Some("map") => {}
            Some(other) => errors.push(Error::invalid(&path.child(marker), other, why)),
        }
    }
    if list_type == Some("map") {
        map_list(schema, &keys, path, errors);
    }
}

fn map_list(schema: &Value, keys: &[String], path: &Path, errors: &mut Errors) {
    let at = path.child("x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.push(Error::required(
            &at,
            "must not be empty if x-kubernetes-list-type is map",
        ));
    }
    let here = path.child("items");
    let items = match schema.get("items") {
        Some(items @ Value::Object(_)) => items,
        Some(other @ Value::Array(_)) => {
            errors.push(Error::invalid(
                &here,
                other.clone(),
                "must only have a single schema if x-kubernetes-list-type is map",
            ));
            return;
        }
        _ => {
            errors.push(Error::required(
                &here,
                "must have a schema if x-kubernetes-list-type is map",
            ));
            return;
        }
    };
    let ty = text(items, "type");
    if ty != "object" {
        errors.push(Error::invalid(
            &here.child("type"),
            ty,
            "must be object if parent array's x-kubernetes-list-type is map",
        ));
        return;
    }
    for (index, key) in keys.iter().enumerate() {
        match items.get("properties").and_then(|all| all.get(key)) {
            Some(property) => {
                if matches!(text(property, "type"), "array" | "object") {
                    errors.push(Error::invalid(
                        &here.child("properties").key(key).child("type"),
                        ty,
                        "must be a scalar type if parent array's x-kubernetes-list-type is map",
                    ));
                }
            }
            None => errors.push(Error::invalid(
                &at,
                keys.to_vec(),
                "entries must all be names of item properties",
            )),
        }
        if keys.iter().take(index).any(|earlier| earlier == key) {
            errors.push(Error::invalid(&at, keys.to_vec(), "must not contain duplicate entries"));
        }
    }
}

/// Items of sets and map-like lists are never null, and keys are always there.
fn list_keys(schema: &Value, path: &Path, errors: &mut Errors) {
    let list_type = text(schema, "x-kubernetes-list-type");
    let Some(items) = schema.get("items").filter(|items| items.is_object()) else {
        return;
    };
    if !matches!(list_type, "set" | "map") {
        return;
    }
    let here = path.child("items");
    if flag(items, "nullable") {
        errors.push(Error::forbidden(
            &here.child("nullable"),
            format!("cannot be nullable when x-kubernetes-list-type is {list_type}"),
        ));
    }
    if list_type != "map" {
        return;
    }
    let required = texts(items, "required");
    for key in texts(schema, "x-kubernetes-list-map-keys") {
        let Some(property) = items.get("properties").and_then(|all| all.get(&key)) else {
            continue;
        };
        let at = here.child("properties").key(&key);
        let has_default = property.get("default").is_some_and(|value| !value.is_null());
        if !required.contains(&key) && !has_default {
            errors.push(Error::required(
                &at.child("default"),
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ));
        }
        if flag(property, "nullable") {
            errors.push(Error::forbidden(
                &at.child("nullable"),
                "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
            ));
        }
    }
}

/// What can be said of CEL rules without compiling them.
fn rules(schema: &Value, path: &Path, errors: &mut Errors) {
    let lines = |text: &str| text.contains(['\n', '\r']);
    for (index, rule) in schema
        .get("x-kubernetes-validations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        let at = path.child("x-kubernetes-validations").index(index);
        let stated = |key: &str| (text(rule, key), text(rule, key).trim());
        let (_, expression) = stated("rule");
        let (message, trimmed) = stated("message");
        if expression.is_empty() {
            errors.push(Error::required(&at.child("rule"), "rule is not specified"));
        } else if !message.is_empty() && trimmed.is_empty() {
            errors.push(Error::invalid(
                &at.child("message"),
                message,
                "must be non-empty if specified",
            ));
        } else if lines(trimmed) {
            errors.push(Error::invalid(
                &at.child("message"),
                message,
                "must not contain line breaks",
            ));
        } else if lines(expression) && trimmed.is_empty() {
            errors.push(Error::required(
                &at.child("message"),
                "message must be specified if rule contains line breaks",
            ));
        }
        let (message_expression, trimmed) = stated("messageExpression");
        if !message_expression.is_empty() && trimmed.is_empty() {
            errors.push(Error::required(
                &at.child("messageExpression"),
                "messageExpression must be non-empty if specified",
            ));
        }
        if let Some(reason) = rule.get("reason").and_then(Value::as_str)
            && !REASONS.contains(&reason)
        {
            errors.push(Error::not_supported(&at.child("reason"), reason, &REASONS));
        }
        let (field_path, trimmed) = stated("fieldPath");
        if field_path.is_empty() {
            continue;
        }
        let mut wrong = |why: &str| errors.push(Error::invalid(&at.child("fieldPath"), field_path, why));
        if trimmed.is_empty() {
            wrong("must be non-empty if specified");
        }
        if lines(field_path) {
            wrong("must not contain line breaks");
        }
        if let Ok(parsed) = Schema::parse(schema)
            && paths::field_path(field_path, &parsed, true).is_err()
        {
            wrong("must be a valid path");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{check, violations};
    use super::*;
    use serde_json::json;

    fn said(schema: Value, has_status: bool) -> Vec<String> {
        let mut errors = Errors::new();
        check(&schema, has_status, Strictness::default(), &Path::new("s"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn schemas_are_refused_in_upstreams_words() {
        let spec = |spec: Value| json!({"type": "object", "properties": {"spec": spec}});
        let p = "s.openAPIV3Schema.properties[spec]";
        let cases: Vec<(Value, Vec<String>)> = vec![
            (spec(json!({"type": "string", "pattern": "^a$"})), vec![]),
            (spec(json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]})), vec![]),
            (json!({"properties": {}}), vec!["s.openAPIV3Schema.type: Required value: must not be empty at the root".into()]),
            (spec(json!({})), vec![format!("{p}.type: Required value: must not be empty for specified object fields")]),
            (spec(json!({"type": "array"})), vec![format!("{p}.items: Required value: must be specified")]),
            (spec(json!({"type": "text"})), vec![format!(
                "{p}.type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"")]),
            (spec(json!({"type": "string", "pattern": "("})), vec![format!(
                "{p}.pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: error parsing regexp: missing closing ): `(`")]),
            (spec(json!({"type": "object", "oneOf": [{"properties": {"a": {"type": "string"}}}]})), vec![
                format!("{p}.oneOf[0].properties[a].type: Forbidden: must be empty to be structural"),
            ]),
            (spec(json!({"type": "object", "additionalProperties": {"type": "string"}, "properties": {"a": {"type": "string"}}})), vec![
                format!("{p}.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive")]),
            (spec(json!({"type": "array", "uniqueItems": true, "items": {"type": "string"}})), vec![
                format!("{p}.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic")]),
            (spec(json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object", "properties": {"a": {"type": "string"}}}})), vec![
                format!("{p}.items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set")]),
            (spec(json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"], "items": {"type": "object", "properties": {"a": {"type": "string"}}}})), vec![
                format!("{p}.items.properties[a].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property")]),
            (spec(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false})), vec![
                format!("{p}.x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined")]),
            (spec(json!({"type": "object", "$ref": "#/x"})), vec![format!("{p}.$ref: Forbidden: $ref is not supported")]),
            (json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}), vec![
                "s.openAPIV3Schema.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified".into()]),
            (json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}}}}), vec![]),
            (spec(json!({"type": "object", "x-kubernetes-validations": [{"rule": " ", "reason": "X", "fieldPath": ".none"}]})), vec![
                format!("{p}.x-kubernetes-validations[0].rule: Required value: rule is not specified"),
                format!("{p}.x-kubernetes-validations[0].reason: Unsupported value: \"X\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\""),
                format!("{p}.x-kubernetes-validations[0].fieldPath: Invalid value: \".none\": must be a valid path")]),
        ];
        for (schema, wanted) in cases {
            assert_eq!(said(schema.clone(), false), wanted, "{schema}");
        }
        let with_status = said(json!({"type": "object", "oneOf": [{"required": ["a"]}]}), true);
        assert!(
            with_status[0]
                .contains("fields are allowed at the root of the schema if the status subresource is enabled"),
            "{with_status:?}"
        );
        assert!(!violations(&json!({"properties": {}}), &Path::new("s")).is_empty());
    }

    #[test]
    fn updates_are_not_held_to_what_is_broken_already() {
        let loose = json!({"type": "object", "properties": {"a": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}});
        let strict = Strictness::of_update([&loose].into_iter());
        assert!(!strict.list_keys && strict.structural && strict.types && strict.atomic_sets && strict.pruned_defaults);
        let mut errors = Errors::new();
        check(&loose, false, strict, &Path::new("s"), &mut errors);
        assert!(errors.is_empty());
    }
}
