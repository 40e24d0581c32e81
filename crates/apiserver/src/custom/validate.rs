//! Values of custom objects against their OpenAPI schema: types, required fields, enumerations, bounds.
//! Patterns, formats and CEL rules are not checked yet.

use sampan_api::Object;
use sampan_api::field::{Error, Errors, Kind, Path};
use serde_json::Value;

/// Checks everything but metadata.
pub fn object(schema: &Value, object: &Object, errors: &mut Errors) {
    let Some(map) = object.as_object() else { return };
    for (name, value) in map {
        if matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        if let Some(below) = schema.get("properties").and_then(|all| all.get(name)) {
            check(below, value, &Path::new(name), errors);
        }
    }
    required(schema, map, &Path::default(), errors);
}

fn required(schema: &Value, map: &serde_json::Map<String, Value>, path: &Path, errors: &mut Errors) {
    for name in schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if !map.contains_key(name) {
            errors.push(Error::required(&path.child(name), ""));
        }
    }
}

fn wrong_type(path: &Path, value: &Value, wanted: &str, errors: &mut Errors) {
    let shown = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let why = format!("{path} in body must be of type {wanted}: {shown:?}");
    errors.push(Error::new(Kind::TypeInvalid, path, shown, why));
}

fn check(schema: &Value, value: &Value, path: &Path, errors: &mut Errors) {
    let flag = |name: &str| schema.get(name).and_then(Value::as_bool).unwrap_or(false);
    if value.is_null() {
        if !flag("nullable") && schema.get("type").is_some() {
            let wanted = schema.get("type").and_then(Value::as_str).unwrap_or_default();
            wrong_type(path, value, wanted, errors);
        }
        return;
    }
    if flag("x-kubernetes-int-or-string") {
        if !(value.is_i64() || value.is_u64() || value.is_string()) {
            wrong_type(path, value, "integer,string", errors);
        }
        return;
    }
    let wanted = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    let fits = match wanted {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    };
    if !fits {
        wrong_type(path, value, wanted, errors);
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let names: Vec<String> = allowed
            .iter()
            .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        errors.push(Error::not_supported(path, value.clone(), &names));
    }
    bounds(schema, value, path, errors);
    match value {
        Value::Array(items) => {
            if let Some(below) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    check(below, item, &path.index(index), errors);
                }
            }
        }
        Value::Object(map) => {
            required(schema, map, path, errors);
            let properties = schema.get("properties").and_then(Value::as_object);
            let others = schema.get("additionalProperties").filter(|below| below.is_object());
            for (name, value) in map {
                if let Some(below) = properties.and_then(|all| all.get(name)) {
                    check(below, value, &path.child(name), errors);
                } else if let Some(below) = others {
                    check(below, value, &path.key(name), errors);
                }
            }
        }
        _ => {}
    }
}

fn bounds(schema: &Value, value: &Value, path: &Path, errors: &mut Errors) {
    let number = |name: &str| schema.get(name).and_then(Value::as_f64);
    let length = |name: &str| schema.get(name).and_then(Value::as_u64).map(|limit| limit as usize);
    let exclusive = |name: &str| schema.get(name).and_then(Value::as_bool).unwrap_or(false);
    let mut invalid = |why: String| errors.push(Error::invalid(path, value.clone(), format!("{path} in body {why}")));
    if let Some(own) = value.as_f64() {
        if let Some(least) = number("minimum") {
            let open = exclusive("exclusiveMinimum");
            if own < least || (open && own == least) {
                invalid(format!(
                    "should be greater than {}{least}",
                    if open { "" } else { "or equal to " }
                ));
            }
        }
        if let Some(most) = number("maximum") {
            let open = exclusive("exclusiveMaximum");
            if own > most || (open && own == most) {
                invalid(format!(
                    "should be less than {}{most}",
                    if open { "" } else { "or equal to " }
                ));
            }
        }
    }
    let size = match value {
        Value::String(text) => Some((text.chars().count(), "minLength", "maxLength", "chars long")),
        Value::Array(items) => Some((items.len(), "minItems", "maxItems", "items")),
        Value::Object(map) => Some((map.len(), "minProperties", "maxProperties", "properties")),
        _ => None,
    };
    if let Some((own, least, most, what)) = size {
        let verb = if what == "chars long" { "be" } else { "have" };
        if let Some(limit) = length(least)
            && own < limit
        {
            invalid(format!("should {verb} at least {limit} {what}"));
        }
        if let Some(limit) = length(most)
            && own > limit
        {
            invalid(format!("should {verb} at most {limit} {what}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_checked() {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object", "required": ["image"], "properties": {
            "image": {"type": "string", "minLength": 2}, "replicas": {"type": "integer", "minimum": 1, "maximum": 10},
            "mode": {"type": "string", "enum": ["A", "B"]}, "tags": {"type": "array", "maxItems": 1, "items": {"type": "string"}}}}}});
        let errors = |object: Value| {
            let mut errors = Errors::new();
            super::object(&schema, &object, &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(errors(json!({"spec": {"image": "ok", "replicas": 3, "mode": "A", "tags": ["x"]}})).is_empty());
        assert_eq!(errors(json!({})), ["spec: Required value"]);
        assert_eq!(errors(json!({"spec": {}})), ["spec.image: Required value"]);
        assert_eq!(
            errors(json!({"spec": {"image": "ok", "replicas": 11}})),
            ["spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10"]
        );
        assert_eq!(
            errors(json!({"spec": {"image": "ok", "replicas": "x"}})),
            ["spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\""]
        );
        assert_eq!(
            errors(json!({"spec": {"image": "ok", "mode": "C"}})),
            ["spec.mode: Unsupported value: \"C\": supported values: \"A\", \"B\""]
        );
        assert_eq!(errors(json!({"spec": {"image": "ok", "tags": ["a", 1]}})).len(), 2);
    }
}
