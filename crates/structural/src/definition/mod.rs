//! The rules a CustomResourceDefinition's schemas must keep.
//!
//! [`structural`] has the rules of structure, [`openapi`] those of every node, [`stated`] those of defaults. They run in
//! upstream's order: the structure first; only a sound structure has its defaults tried and its CEL rules compiled
//! ([`cost`]).

mod cost;
#[cfg(test)]
mod costs;
mod openapi;
mod paths;
mod stated;
mod structural;

use sampan_api::field::{Error, Errors, Path};
use serde_json::Value;

use crate::schema::Schema;

pub use paths::{FieldPath, field_path};

/// What an update is not held to, because what is stored breaks it already.
#[derive(Clone, Copy, Debug)]
pub struct Strictness {
    /// Property types must be JSON's.
    pub types: bool,
    /// Schemas must be structural.
    pub structural: bool,
    /// Defaults must have no unknown fields.
    pub pruned_defaults: bool,
    /// Items of sets must be compared whole.
    pub atomic_sets: bool,
    /// Keys of map-like lists must be there; items of sets and map-like lists are never null.
    pub list_keys: bool,
    /// No CEL expression may be estimated too dear (where the schema has not changed, it may).
    pub expression_cost: bool,
}

impl Default for Strictness {
    fn default() -> Self {
        Strictness {
            types: true,
            structural: true,
            pruned_defaults: true,
            atomic_sets: true,
            list_keys: true,
            expression_cost: true,
        }
    }
}

impl Strictness {
    /// What an update is held to, given the schemas that are stored.
    pub fn of_update<'a>(stored: impl Iterator<Item = &'a Value> + Clone) -> Self {
        let some = |broken: &dyn Fn(&Value) -> bool| stored.clone().any(broken);
        Strictness {
            types: !some(&|schema| openapi::any(schema, &openapi::has_unknown_type)),
            structural: !some(&|schema| !violations(schema, &Path::default()).is_empty()),
            pruned_defaults: !some(&stated::has_unpruned),
            atomic_sets: !some(&|schema| openapi::any(schema, &openapi::has_granular_set)),
            list_keys: !some(&|schema| openapi::any(schema, &openapi::has_loose_keys)),
            expression_cost: true,
        }
    }
}

/// How a schema breaks the rules of structure; one message where it has no structural form at all.
pub fn violations(schema: &Value, path: &Path) -> Errors {
    match Schema::parse(schema) {
        Err(why) => vec![Error::invalid(path, "", why)],
        Ok(_) => structural::check(schema, path),
    }
}

/// Whether a node of a schema satisfies a predicate.
pub fn any(schema: &Value, wanted: &dyn Fn(&Value) -> bool) -> bool {
    openapi::any(schema, wanted)
}

/// Checks the schema of one version, which lives at `path` (`spec.versions[0].schema`).
pub fn check(schema: &Value, has_status: bool, strict: Strictness, path: &Path, errors: &mut Errors) {
    let at = path.child("openAPIV3Schema");
    let before = errors.len();
    if has_status {
        root_fields(schema, path, &at, errors);
    }
    if schema.get("nullable") == Some(&Value::Bool(true)) {
        errors.push(Error::forbidden(
            &path.child("openAPIV3Schema.nullable"),
            "nullable cannot be true at the root",
        ));
    }
    let mut unparsed = None;
    let mut sound = false;
    if strict.structural {
        match Schema::parse(schema) {
            Err(why) => unparsed = Some(Error::invalid(&at, "", why)),
            Ok(parsed) => {
                let broken = structural::check(schema, &at);
                if broken.is_empty() {
                    let before = errors.len();
                    stated::check(schema, &parsed, strict.pruned_defaults, &at, errors);
                    sound = errors.len() == before;
                } else {
                    errors.extend(broken);
                }
            }
        }
    }
    let wrong = errors.len();
    openapi::check(schema, strict, &at, errors);
    // Types of a schema that breaks the rules would only confuse.
    if sound && errors.len() == wrong {
        cost::check(schema, strict.expression_cost, &at, errors);
    }
    if errors.len() == before {
        errors.extend(unparsed);
    }
}

/// With a status subresource the schema of `status` is used alone, so the root may state little else.
fn root_fields(schema: &Value, path: &Path, at: &Path, errors: &mut Errors) {
    const ALLOWED: [(&str, &str); 22] = [
        ("description", "Description"),
        ("type", "Type"),
        ("format", "Format"),
        ("title", "Title"),
        ("maximum", "Maximum"),
        ("exclusiveMaximum", "ExclusiveMaximum"),
        ("minimum", "Minimum"),
        ("exclusiveMinimum", "ExclusiveMinimum"),
        ("maxLength", "MaxLength"),
        ("minLength", "MinLength"),
        ("pattern", "Pattern"),
        ("maxItems", "MaxItems"),
        ("minItems", "MinItems"),
        ("uniqueItems", "UniqueItems"),
        ("multipleOf", "MultipleOf"),
        ("required", "Required"),
        ("items", "Items"),
        ("properties", "Properties"),
        ("externalDocs", "ExternalDocs"),
        ("example", "Example"),
        ("x-kubernetes-preserve-unknown-fields", "XPreserveUnknownFields"),
        ("x-kubernetes-validations", "XValidations"),
    ];
    let Some(map) = schema.as_object() else { return };
    let is_zero = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let ty = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    if !ty.is_empty() && ty != "object" {
        errors.push(Error::invalid(
            &path.child("openAPIV3Schema.type"),
            ty,
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled",
        ));
        return;
    }
    let stranger = map
        .iter()
        .any(|(key, value)| !is_zero(value) && !ALLOWED.iter().any(|(allowed, _)| allowed == key));
    if stranger {
        let names: Vec<&str> = ALLOWED.iter().map(|(_, name)| *name).collect();
        errors.push(Error::invalid(
            at,
            schema.clone(),
            format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                names.join(" ")
            ),
        ));
    }
}
