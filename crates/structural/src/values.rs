//! Values against a schema, in the words of upstream's OpenAPI validator.
//!
//! An update tolerates what it does not change: errors at or below a value equal to the old one it replaces are
//! dropped ([`Node`] says which old value that is).

use sampan_api::field::{Error, Errors, Kind, Path};
use serde_json::{Map, Value};

use crate::correlate::Node;
use crate::formats;
use crate::schema::Schema;

/// What is wrong with one value.
#[derive(Clone, Debug)]
struct Fault {
    what: What,
    /// `spec.list[0].name`; a leading dot where upstream writes one.
    at: String,
    value: Value,
    message: String,
}

#[derive(Clone, Debug)]
enum What {
    Required,
    Enum(Vec<Value>),
    TooLong(u64),
    TooMany(u64),
    Type,
    Invalid,
    /// About several schemas: upstream gives it no path.
    Composite,
}

/// What a check found, and how many checks passed: the best failed alternative is the one with most of those.
#[derive(Clone, Debug, Default)]
struct Outcome {
    faults: Vec<Fault>,
    matches: usize,
}

impl Outcome {
    fn add(&mut self, fault: Fault) {
        if !self.faults.iter().any(|known| known.message == fault.message) {
            self.faults.push(fault);
        }
    }
    fn merge(&mut self, other: Outcome) {
        self.matches += other.matches;
        for fault in other.faults {
            self.add(fault);
        }
    }
    fn fault(&mut self, what: What, at: &str, value: impl Into<Value>, message: String) {
        self.add(Fault {
            what,
            at: at.to_owned(),
            value: value.into(),
            message,
        });
    }
    fn composite(&mut self, message: String) {
        self.fault(What::Composite, "", Value::Null, message);
    }
}

/// Checks a value; `below` is where it lives (nothing for a whole object), `old` what it replaces.
pub fn check(schema: &Schema, value: &Value, old: Option<&Value>, below: &Path, errors: &mut Errors) {
    let node = old.map(|old| Node {
        new: value,
        old,
        schema,
    });
    let outcome = ratcheted(schema, value, "", node);
    for fault in outcome.faults {
        errors.push(field_error(fault, below));
    }
}

fn field_error(fault: Fault, below: &Path) -> Error {
    let name = fault.at.strip_prefix('.').unwrap_or(&fault.at);
    let path = if name.is_empty() {
        below.clone()
    } else {
        below.child(name)
    };
    let shown = if fault.value.is_null() {
        Value::from("")
    } else {
        fault.value.clone()
    };
    match fault.what {
        What::Required => Error::required(&path, ""),
        What::Enum(allowed) => {
            let mut error = Error::not_supported(&path, fault.value, &[]);
            error.detail = listed(&allowed);
            error
        }
        What::TooLong(most) => Error::too_long(&path, most as usize),
        What::TooMany(most) => Error::too_many(&path, shown.as_u64().unwrap_or_default() as usize, most as usize),
        What::Type => Error::new(Kind::TypeInvalid, &path, shown, fault.message),
        What::Invalid => Error::invalid(&path, shown, fault.message),
        What::Composite => Error::invalid(below, "", fault.message),
    }
}

/// `supported values: "A", "B"`, in the order the schema states them.
fn listed(allowed: &[Value]) -> String {
    let quoted: Vec<String> = allowed
        .iter()
        .map(|one| match one {
            Value::String(text) => sampan_api::field::quote(text),
            other => format!("\"{other}\""),
        })
        .collect();
    if quoted.is_empty() {
        String::new()
    } else {
        format!("supported values: {}", quoted.join(", "))
    }
}

/// Checks a value and forgets its faults when it is what it was.
fn ratcheted(schema: &Schema, value: &Value, at: &str, node: Option<Node<'_>>) -> Outcome {
    let mut outcome = plain(schema, value, at, node);
    if !outcome.faults.is_empty() && node.is_some_and(|node| node.is_unchanged()) {
        outcome.faults.clear();
    }
    outcome
}

fn type_names(schema: &Schema) -> &str {
    if schema.int_or_string {
        "integer,string"
    } else {
        &schema.ty
    }
}

fn allows(schema: &Schema, ty: &str) -> bool {
    if schema.int_or_string {
        matches!(ty, "integer" | "string")
    } else {
        schema.ty == ty
    }
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64()
}

/// The JSON type of a value and the format Go's representation of it has.
fn kind_of(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::Number(_) if is_integer(value) => ("integer", "int64"),
        Value::Number(_) => ("number", "float64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    }
}

/// One value against one schema; `node` only leads to the old values of what is below.
fn plain(schema: &Schema, value: &Value, at: &str, node: Option<Node<'_>>) -> Outcome {
    let mut out = Outcome::default();
    if value.is_null() {
        type_of(schema, value, at, &mut out);
        enumeration(schema, value, at, &mut out);
        return out;
    }
    if !type_names(schema).is_empty() || schema.format.is_some() {
        type_of(schema, value, at, &mut out);
        out.matches += 1;
    }
    alternatives(schema, value, at, node, &mut out);
    out.matches += 1;
    match value {
        Value::String(text) => {
            string(schema, text, at, &mut out);
            out.matches += 1;
            if let Some(format) = &schema.format
                && !matches!(format.as_str(), "int32" | "int64" | "float" | "double")
            {
                if !formats::fits(format, text) {
                    let message = format!(
                        "{at} in body must be of type {format}: {}",
                        sampan_api::field::quote(text)
                    );
                    out.fault(What::Type, at, text.as_str(), message);
                }
                out.matches += 1;
            }
        }
        Value::Number(_) => {
            number(schema, value, at, &mut out);
            out.matches += 2;
        }
        Value::Array(items) => {
            array(schema, items, at, node, &mut out);
            out.matches += 2;
        }
        _ => {}
    }
    enumeration(schema, value, at, &mut out);
    out.matches += 1;
    if let Value::Object(map) = value {
        object(schema, map, at, node, &mut out);
        out.matches += 1;
    }
    out.matches += 1;
    out
}

fn type_of(schema: &Schema, value: &Value, at: &str, out: &mut Outcome) {
    let names = type_names(schema);
    let mut wrong = |wanted: &str, actual: &str| {
        let message = format!("{at} in body must be of type {wanted}: {actual:?}");
        out.fault(What::Type, at, actual, message);
    };
    if value.is_null() {
        if !names.is_empty() && !schema.nullable {
            return wrong(names, "null");
        }
        out.matches += 1;
        return;
    }
    let (ty, own_format) = kind_of(value);
    let is_whole = ty == "number" && value.as_f64().is_some_and(|number| number.fract() == 0.0);
    let integral = is_whole && allows(schema, "integer");
    let widened = ty == "integer" && allows(schema, "number");
    let texts = matches!(value, Value::String(_) | Value::Array(_));
    if let Some(format) = &schema.format {
        if !(texts || allows(schema, ty) || own_format == format || integral || widened) {
            return wrong(format, own_format);
        }
        if texts && !(allows(schema, "number") || allows(schema, "integer")) {
            out.matches += 1;
            return;
        }
    }
    if !(names.is_empty() || allows(schema, ty) || integral || widened) {
        return wrong(names, ty);
    }
    out.matches += 1;
}

fn alternatives(schema: &Schema, value: &Value, at: &str, node: Option<Node<'_>>, out: &mut Outcome) {
    let shown = sampan_api::field::quote(at);
    if !schema.any_of.is_empty() {
        let mut best: Option<Outcome> = None;
        let mut passed = None;
        for one in &schema.any_of {
            let outcome = plain(one, value, at, node);
            if outcome.faults.is_empty() {
                passed = Some(outcome);
                break;
            }
            if best.as_ref().is_none_or(|best| outcome.matches > best.matches) {
                best = Some(outcome);
            }
        }
        match passed {
            Some(outcome) => out.merge(outcome),
            None => {
                out.composite(format!("{shown} must validate at least one schema (anyOf)"));
                out.merge(best.unwrap_or_default());
            }
        }
    }
    if !schema.one_of.is_empty() {
        let mut best: Option<Outcome> = None;
        let mut first = None;
        let mut passed = 0;
        for one in &schema.one_of {
            let outcome = plain(one, value, at, node);
            if outcome.faults.is_empty() {
                passed += 1;
                best = None;
                first.get_or_insert(outcome);
            } else if passed == 0 && best.as_ref().is_none_or(|best| outcome.matches > best.matches) {
                best = Some(outcome);
            }
        }
        if passed == 1 {
            out.merge(first.unwrap_or_default());
        } else {
            let why = if passed == 0 {
                "Found none valid".to_owned()
            } else {
                format!("Found {passed} valid alternatives")
            };
            out.composite(format!("{shown} must validate one and only one schema (oneOf). {why}"));
            out.merge(best.unwrap_or_default());
        }
    }
    if !schema.all_of.is_empty() {
        let mut passed = 0;
        for one in &schema.all_of {
            let outcome = plain(one, value, at, node);
            passed += usize::from(outcome.faults.is_empty());
            out.merge(outcome);
        }
        if passed != schema.all_of.len() {
            let none = if passed == 0 { ". None validated" } else { "" };
            out.composite(format!("{shown} must validate all the schemas (allOf){none}"));
        }
    }
    if let Some(not) = &schema.not
        && plain(not, value, at, node).faults.is_empty()
    {
        out.composite(format!("{shown} must not validate the schema (not)"));
    }
    out.matches += 1;
}

fn string(schema: &Schema, text: &str, at: &str, out: &mut Outcome) {
    let length = text.chars().count() as u64;
    if let Some(most) = schema.max_length
        && length > most
    {
        let message = format!("{at} in body should be at most {most} chars long");
        return out.fault(What::TooLong(most), at, text, message);
    }
    if let Some(least) = schema.min_length
        && length < least
    {
        let message = format!("{at} in body should be at least {least} chars long");
        return out.fault(What::Invalid, at, text, message);
    }
    if let Some(pattern) = &schema.pattern {
        let stated = match pattern.is_match(text) {
            Ok(true) => return,
            Ok(false) => pattern.text.clone(),
            Err(why) => format!("{}, but pattern is invalid: {why}", pattern.text),
        };
        out.fault(What::Invalid, at, text, format!("{at} in body should match '{stated}'"));
    }
}

/// A float as Go's `%v` prints it.
fn shown_float(number: f64) -> String {
    let magnitude = number.abs();
    if number.fract() == 0.0 && magnitude < 1e21 {
        return format!("{number:.0}");
    }
    if magnitude != 0.0 && !(1e-4..1e21).contains(&magnitude) {
        let text = format!("{number:e}");
        if let Some((digits, power)) = text.split_once('e') {
            let (sign, power) = match power.strip_prefix('-') {
                Some(power) => ('-', power),
                None => ('+', power),
            };
            return format!("{digits}e{sign}{power:0>2}");
        }
    }
    number.to_string()
}

fn number(schema: &Schema, value: &Value, at: &str, out: &mut Outcome) {
    let Some(own) = value.as_f64() else { return };
    let whole = value.as_i64();
    let format = schema.format.as_deref();
    if schema.ty == "integer" && !schema.int_or_string {
        let fits = match (whole, format) {
            (Some(whole), Some("int32")) => i32::try_from(whole).is_ok(),
            (Some(_), _) => true,
            (None, _) => own.fract() == 0.0 && own.abs() < 9.3e18 && !value.is_u64(),
        };
        if !fits {
            let message = match format {
                Some(format) => format!("Checked value must be of type integer with format {format} in {at}"),
                None => format!("Checked value must be of type integer (default format) in {at}"),
            };
            out.composite(message);
        }
    }
    if schema.ty == "number" && format == Some("float") && own.is_finite() && (own as f32).is_infinite() {
        out.composite(format!(
            "Checked value must be of type number with format float in {at}"
        ));
    }
    let mut invalid = |why: String| out.fault(What::Invalid, at, value.clone(), format!("{at} in body {why}"));
    if let Some(factor) = schema.multiple_of {
        let good = match whole {
            _ if factor <= 0.0 => false,
            Some(whole) if factor.fract() == 0.0 => whole % (factor as i64).max(1) == 0,
            _ => {
                let times = if factor < 1.0 {
                    own * (1.0 / factor)
                } else {
                    own / factor
                };
                (times - times.round()).abs() < 1e-9
            }
        };
        if !good {
            invalid(format!("should be a multiple of {}", shown_float(factor)));
        }
    }
    if let Some(least) = schema.minimum {
        let open = schema.exclusive_minimum;
        // Integers are compared as integers: a bound beyond 2^53 keeps its digits.
        let low = match whole {
            Some(whole) => whole < least as i64 || (open && whole == least as i64),
            None => own < least || (open && own == least),
        };
        if low {
            let or = if open { "" } else { "or equal to " };
            let bound = if whole.is_some() {
                (least as i64).to_string()
            } else {
                shown_float(least)
            };
            invalid(format!("should be greater than {or}{bound}"));
        }
    }
    if let Some(most) = schema.maximum {
        let open = schema.exclusive_maximum;
        let high = match whole {
            Some(whole) => whole > most as i64 || (open && whole == most as i64),
            None => own > most || (open && own == most),
        };
        if high {
            let or = if open { "" } else { "or equal to " };
            let bound = if whole.is_some() {
                (most as i64).to_string()
            } else {
                shown_float(most)
            };
            invalid(format!("should be less than {or}{bound}"));
        }
    }
    out.matches += 1;
}

fn array(schema: &Schema, items: &[Value], at: &str, node: Option<Node<'_>>, out: &mut Outcome) {
    if let Some(below) = &schema.items {
        for (index, item) in items.iter().enumerate() {
            let old = node.and_then(|node| node.index(index));
            out.merge(ratcheted(below, item, &format!("{at}[{index}]"), old));
        }
    }
    let size = items.len() as u64;
    if let Some(least) = schema.min_items
        && size < least
    {
        let message = format!("{at} in body should have at least {least} items");
        out.fault(What::Invalid, at, size, message);
    }
    if let Some(most) = schema.max_items
        && size > most
    {
        let message = format!("{at} in body should have at most {most} items");
        out.fault(What::TooMany(most), at, size, message);
    }
    out.matches += 1;
}

fn enumeration(schema: &Schema, value: &Value, at: &str, out: &mut Outcome) {
    if schema.enumeration.is_empty() {
        return;
    }
    let same = |allowed: &Value| {
        !value.is_null() && (allowed == value || (value.is_number() && allowed.as_f64() == value.as_f64()))
    };
    if !schema.enumeration.iter().any(same) {
        let all: Vec<String> = schema
            .enumeration
            .iter()
            .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
            .collect();
        let message = format!("{at} in body should be one of [{}]", all.join(" "));
        out.fault(What::Enum(schema.enumeration.clone()), at, value.clone(), message);
    }
}

fn object(schema: &Schema, map: &Map<String, Value>, at: &str, node: Option<Node<'_>>, out: &mut Outcome) {
    let size = map.len() as u64;
    if let Some(least) = schema.min_properties
        && size < least
    {
        let message = format!("{at} in body should have at least {least} properties");
        out.fault(What::Invalid, at, size, message);
    }
    if let Some(most) = schema.max_properties
        && size > most
    {
        let message = format!("{at} in body should have at most {most} properties");
        out.fault(What::TooMany(most), at, size, message);
    }
    let child = |key: &str| {
        if at.is_empty() && key.is_empty() {
            String::new()
        } else {
            format!("{at}.{key}")
        }
    };
    if schema.additional_allowed == Some(false) {
        for key in map.keys().filter(|key| !schema.properties.contains_key(*key)) {
            let message = format!("{at}.{key} in body is a forbidden property");
            out.fault(What::Invalid, at, key.as_str(), message);
        }
    } else if let Some(below) = &schema.additional {
        for (key, value) in map.iter().filter(|(key, _)| !schema.properties.contains_key(*key)) {
            let old = node.and_then(|node| node.key(key));
            out.merge(ratcheted(below, value, &child(key), old));
        }
    }
    for (name, below) in &schema.properties {
        let Some(value) = map.get(name) else { continue };
        let path = if at.is_empty() { name.clone() } else { child(name) };
        // What kind an object is cannot have been wrong before.
        let old = node
            .filter(|_| !(at.is_empty() && matches!(name.as_str(), "apiVersion" | "kind")))
            .and_then(|node| node.key(name));
        out.merge(ratcheted(below, value, &path, old));
    }
    for name in &schema.required {
        if !map.contains_key(name) {
            let message = format!("{at}.{name} in body is required");
            out.fault(What::Required, &child(name), Value::Null, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(schema: &Value, value: Value, old: Option<Value>) -> Vec<String> {
        let schema = Schema::parse(schema).unwrap();
        let mut errors = Errors::new();
        check(&schema, &value, old.as_ref(), &Path::default(), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_refused_in_upstreams_words() {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object", "required": ["image"],
            "minProperties": 1, "properties": {
            "image": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^[a-z]+$"},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "multipleOf": 2},
            "ratio": {"type": "number", "exclusiveMinimum": true, "minimum": 0.5},
            "mode": {"type": "string", "enum": ["B", "A"]},
            "level": {"type": "integer", "enum": [1, 2]},
            "tags": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "string"}},
            "labels": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "integer"}},
            "port": {"x-kubernetes-int-or-string": true},
            "small": {"type": "integer", "format": "int32"},
            "id": {"type": "string", "format": "uuid"},
            "maybe": {"type": "string", "nullable": true},
            "when": {"type": "string", "format": "date-time"}}}}});
        let cases: &[(Value, &[&str])] = &[
            (
                json!({"image": "ok", "maybe": null, "port": 1, "when": "2024-01-01T00:00:00Z"}),
                &[],
            ),
            (json!({"image": "ok", "port": "a", "ratio": 1}), &[]),
            (
                json!({}),
                &[
                    "spec: Invalid value: 0: spec in body should have at least 1 properties",
                    "spec.image: Required value",
                ],
            ),
            (
                json!({"image": "o"}),
                &["spec.image: Invalid value: \"o\": spec.image in body should be at least 2 chars long"],
            ),
            (
                json!({"image": "ooooo"}),
                &["spec.image: Too long: may not be more than 4 bytes"],
            ),
            (
                json!({"image": "OK"}),
                &["spec.image: Invalid value: \"OK\": spec.image in body should match '^[a-z]+$'"],
            ),
            (
                json!({"image": "ok", "replicas": 12}),
                &["spec.replicas: Invalid value: 12: spec.replicas in body should be less than or equal to 10"],
            ),
            (
                json!({"image": "ok", "replicas": 0}),
                &["spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1"],
            ),
            (
                json!({"image": "ok", "replicas": 3}),
                &["spec.replicas: Invalid value: 3: spec.replicas in body should be a multiple of 2"],
            ),
            (
                json!({"image": "ok", "ratio": 0.5}),
                &["spec.ratio: Invalid value: 0.5: spec.ratio in body should be greater than 0.5"],
            ),
            (
                json!({"image": "ok", "replicas": "x"}),
                &[
                    "spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\"",
                ],
            ),
            (
                json!({"image": "ok", "replicas": 1.5}),
                &[
                    "spec.replicas: Invalid value: \"number\": spec.replicas in body must be of type integer: \"number\"",
                    "Checked value must be of type integer (default format) in spec.replicas",
                    "spec.replicas: Invalid value: 1.5: spec.replicas in body should be a multiple of 2",
                ],
            ),
            (
                json!({"image": null}),
                &["spec.image: Invalid value: \"null\": spec.image in body must be of type string: \"null\""],
            ),
            (
                json!({"image": "ok", "mode": "C"}),
                &["spec.mode: Unsupported value: \"C\": supported values: \"B\", \"A\""],
            ),
            (
                json!({"image": "ok", "level": 3}),
                &["spec.level: Unsupported value: 3: supported values: \"1\", \"2\""],
            ),
            (
                json!({"image": "ok", "tags": []}),
                &["spec.tags: Invalid value: 0: spec.tags in body should have at least 1 items"],
            ),
            (
                json!({"image": "ok", "tags": ["a", 1]}),
                &[
                    "spec.tags[1]: Invalid value: \"integer\": spec.tags[1] in body must be of type string: \"integer\"",
                    "spec.tags: Too many: 2: must have at most 1 item",
                ],
            ),
            (
                json!({"image": "ok", "labels": {"a": 1, "b": "x"}}),
                &[
                    "spec.labels: Too many: 2: must have at most 1 item",
                    "spec.labels.b: Invalid value: \"string\": spec.labels.b in body must be of type integer: \"string\"",
                ],
            ),
            (
                json!({"image": "ok", "port": true}),
                &[
                    "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
                ],
            ),
            (
                json!({"image": "ok", "id": "x"}),
                &["spec.id: Invalid value: \"x\": spec.id in body must be of type uuid: \"x\""],
            ),
        ];
        for (spec, wanted) in cases {
            let found = errors(&schema, json!({ "spec": spec }), None);
            assert_eq!(found.len(), wanted.len(), "{spec}: {found:?}");
            for (found, wanted) in found.iter().zip(*wanted) {
                assert!(found.ends_with(wanted), "{found} should be {wanted}");
            }
        }
        assert_eq!(errors(&schema, json!({}), None), ["spec: Required value"]);
        let large = errors(&schema, json!({"spec": {"image": "ok", "small": 1i64 << 40}}), None);
        assert_eq!(
            large,
            ["<nil>: Invalid value: \"\": Checked value must be of type integer with format int32 in spec.small"]
        );
    }

    #[test]
    fn alternatives_are_told_apart() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"a": {"type": "string"}, "b": {"type": "string"}, "n": {"type": "integer"}},
            "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            "any": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            "not": {"type": "object", "properties": {"a": {"type": "string"}}, "not": {"required": ["a"]}},
            "all": {"type": "object", "properties": {"n": {"type": "integer"}}, "allOf": [{"properties": {"n": {"minimum": 2}}}, {"properties": {"n": {"maximum": 5}}}]}}});
        let found = |value: Value| errors(&schema, value, None);
        assert!(found(json!({"spec": {"a": "x"}, "any": {"a": "x", "b": "y"}, "not": {}, "all": {"n": 3}})).is_empty());
        assert_eq!(
            found(json!({"spec": {}})),
            [
                "<nil>: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found none valid",
                "spec.a: Required value",
            ]
        );
        assert_eq!(
            found(json!({"spec": {"a": "x", "b": "y"}})),
            [
                "<nil>: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found 2 valid alternatives"
            ]
        );
        assert_eq!(
            found(json!({"any": {}})),
            [
                "<nil>: Invalid value: \"\": \"any\" must validate at least one schema (anyOf)",
                "any.a: Required value",
            ]
        );
        assert_eq!(
            found(json!({"not": {"a": "x"}})),
            ["<nil>: Invalid value: \"\": \"not\" must not validate the schema (not)"]
        );
        assert_eq!(
            found(json!({"all": {"n": 1}})),
            [
                "all.n: Invalid value: 1: all.n in body should be greater than or equal to 2",
                "<nil>: Invalid value: \"\": \"all\" must validate all the schemas (allOf)",
            ]
        );
    }

    #[test]
    fn what_is_not_changed_is_tolerated() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "name": {"type": "string", "maxLength": 2}, "other": {"type": "string"},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                "items": {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}, "proto": {"type": "string", "enum": ["TCP"]}, "note": {"type": "string"}}}},
            "list": {"type": "array", "items": {"type": "string", "maxLength": 1}}}}}});
        let old = json!({"spec": {"name": "long", "other": "a", "ports": [{"id": 1, "proto": "X"}, {"id": 2, "proto": "TCP"}], "list": ["aa"]}});
        let update = |new: Value| errors(&schema, new, Some(old.clone()));
        let mut new = old.clone();
        new["spec"]["other"] = "b".into();
        assert_eq!(update(new.clone()), Vec::<String>::new());
        new["spec"]["ports"] = json!([{"id": 2, "proto": "TCP"}, {"id": 1, "proto": "X", "note": "moved"}]);
        assert_eq!(update(new.clone()), Vec::<String>::new());
        new["spec"]["name"] = "longer".into();
        assert_eq!(
            update(new.clone()),
            ["spec.name: Too long: may not be more than 2 bytes"]
        );
        new["spec"]["name"] = "a".into();
        new["spec"]["ports"] = json!([{"id": 3, "proto": "X"}]);
        assert_eq!(update(new.clone()).len(), 1);
        new["spec"]["ports"] = json!([]);
        new["spec"]["list"] = json!(["aa", "b"]);
        assert_eq!(update(new), ["spec.list[0]: Too long: may not be more than 1 byte"]);
    }
}
