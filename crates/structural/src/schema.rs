//! One node of a structural schema.
//!
//! Parsing refuses only what has no structural form at all, in the words upstream's conversion uses; whether a
//! schema keeps the rules is for [`crate::definition`] to say.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::formats;
use crate::pattern::Pattern;

/// How items of a list are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map,
}

/// An `x-kubernetes-validations` entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: Option<String>,
    pub field_path: String,
    pub optional_old_self: bool,
}

/// A schema, and the schemas below it.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    /// Empty when none is stated.
    pub ty: String,
    /// A format values are checked for; others are dropped at parsing.
    pub format: Option<String>,
    pub nullable: bool,
    pub default: Option<Value>,
    pub maximum: Option<f64>,
    pub minimum: Option<f64>,
    pub exclusive_maximum: bool,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<f64>,
    pub max_length: Option<u64>,
    pub min_length: Option<u64>,
    pub pattern: Option<Pattern>,
    pub max_items: Option<u64>,
    pub min_items: Option<u64>,
    pub max_properties: Option<u64>,
    pub min_properties: Option<u64>,
    pub required: Vec<String>,
    pub enumeration: Vec<Value>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
    pub properties: BTreeMap<String, Schema>,
    /// `additionalProperties` with a schema.
    pub additional: Option<Box<Schema>>,
    /// `additionalProperties: false` and `true`.
    pub additional_allowed: Option<bool>,
    pub items: Option<Box<Schema>>,
    pub preserve_unknown: bool,
    pub embedded: bool,
    pub int_or_string: bool,
    pub list_type: ListType,
    pub list_keys: Vec<String>,
    pub rules: Vec<Rule>,
}

impl Schema {
    /// The schema of a JSON tree, or why there is none.
    pub fn parse(stated: &Value) -> Result<Self, String> {
        const UNSUPPORTED: [(&str, &str); 6] = [
            ("id", "id"),
            ("$schema", "schema"),
            ("$ref", "$ref"),
            ("patternProperties", "patternProperties"),
            ("dependencies", "dependencies"),
            ("definitions", "definitions"),
        ];
        for (key, name) in UNSUPPORTED {
            let is_set = match stated.get(key) {
                None | Some(Value::Null) => false,
                Some(Value::String(text)) => !text.is_empty(),
                Some(Value::Object(map)) => !map.is_empty(),
                Some(_) => true,
            };
            if is_set {
                return Err(format!("OpenAPIV3Schema '{name}' is not supported"));
            }
        }
        if stated.get("additionalItems").is_some_and(|value| !value.is_null()) {
            return Err("OpenAPIV3Schema 'additionalItems' is not supported".into());
        }
        if stated.get("items").is_some_and(Value::is_array) {
            return Err("OpenAPIV3Schema 'items' must be a schema, but is an array".into());
        }
        if stated.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
            return Err("internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined".into());
        }
        let ty = text(stated, "type").to_owned();
        let int_or_string = flag(stated, "x-kubernetes-int-or-string");
        let format = formats::checked(&ty, int_or_string, text(stated, "format")).map(str::to_owned);
        let all = |key: &str| -> Result<Vec<Schema>, String> {
            stated
                .get(key)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(Schema::parse)
                .collect()
        };
        let one = |key: &str| -> Result<Option<Box<Schema>>, String> {
            match stated.get(key) {
                Some(below @ Value::Object(_)) => Ok(Some(Box::new(Schema::parse(below)?))),
                _ => Ok(None),
            }
        };
        let mut properties = BTreeMap::new();
        if let Some(all) = stated.get("properties").and_then(Value::as_object) {
            for (name, below) in all {
                properties.insert(name.clone(), Schema::parse(below)?);
            }
        }
        Ok(Schema {
            format,
            nullable: flag(stated, "nullable"),
            default: stated.get("default").filter(|value| !value.is_null()).cloned(),
            maximum: number(stated, "maximum"),
            minimum: number(stated, "minimum"),
            exclusive_maximum: flag(stated, "exclusiveMaximum"),
            exclusive_minimum: flag(stated, "exclusiveMinimum"),
            multiple_of: number(stated, "multipleOf"),
            max_length: count(stated, "maxLength"),
            min_length: count(stated, "minLength"),
            pattern: Some(text(stated, "pattern"))
                .filter(|pattern| !pattern.is_empty())
                .map(Pattern::new),
            max_items: count(stated, "maxItems"),
            min_items: count(stated, "minItems"),
            max_properties: count(stated, "maxProperties"),
            min_properties: count(stated, "minProperties"),
            required: texts(stated, "required"),
            enumeration: stated
                .get("enum")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
            all_of: all("allOf")?,
            any_of: all("anyOf")?,
            one_of: all("oneOf")?,
            not: one("not")?,
            properties,
            additional: one("additionalProperties")?,
            additional_allowed: stated.get("additionalProperties").and_then(Value::as_bool),
            items: one("items")?,
            preserve_unknown: flag(stated, "x-kubernetes-preserve-unknown-fields"),
            embedded: flag(stated, "x-kubernetes-embedded-resource"),
            int_or_string,
            list_type: match text(stated, "x-kubernetes-list-type") {
                "set" => ListType::Set,
                "map" => ListType::Map,
                _ => ListType::Atomic,
            },
            list_keys: texts(stated, "x-kubernetes-list-map-keys"),
            rules: stated
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(rule)
                .collect(),
            ty,
        })
    }

    /// The schema below a key of an object.
    pub fn below(&self, key: &str) -> Option<&Schema> {
        self.properties.get(key).or(self.additional.as_deref())
    }

    /// Whether this schema or one below it satisfies a predicate.
    pub fn any(&self, wanted: &dyn Fn(&Schema) -> bool) -> bool {
        wanted(self)
            || self.properties.values().any(|below| below.any(wanted))
            || [&self.items, &self.additional, &self.not]
                .into_iter()
                .flatten()
                .any(|below| below.any(wanted))
            || [&self.all_of, &self.any_of, &self.one_of]
                .into_iter()
                .flatten()
                .any(|below| below.any(wanted))
    }

    pub fn has_defaults(&self) -> bool {
        self.any(&|schema| schema.default.is_some())
    }

    pub fn has_rules(&self) -> bool {
        self.any(&|schema| !schema.rules.is_empty())
    }
}

fn rule(stated: &Value) -> Rule {
    Rule {
        rule: text(stated, "rule").into(),
        message: text(stated, "message").into(),
        message_expression: text(stated, "messageExpression").into(),
        reason: stated.get("reason").and_then(Value::as_str).map(str::to_owned),
        field_path: text(stated, "fieldPath").into(),
        optional_old_self: flag(stated, "optionalOldSelf"),
    }
}

pub(crate) fn text<'a>(stated: &'a Value, key: &str) -> &'a str {
    stated.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn flag(stated: &Value, key: &str) -> bool {
    stated.get(key) == Some(&Value::Bool(true))
}

pub(crate) fn texts(stated: &Value, key: &str) -> Vec<String> {
    stated
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|one| one.as_str().map(str::to_owned))
        .collect()
}

fn number(stated: &Value, key: &str) -> Option<f64> {
    stated.get(key).and_then(Value::as_f64)
}

/// A limit; a negative one is the same as zero.
fn count(stated: &Value, key: &str) -> Option<u64> {
    let value = stated.get(key)?;
    value.as_u64().or_else(|| value.as_i64().map(|_| 0))
}
