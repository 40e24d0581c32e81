//! The structural schema of a custom kind as a [`Type`]: the same model every walker knows.
//!
//! Only the shape is taken over: fields, lists and maps with their merge markers, defaults, nullability, what
//! keeps unknown fields. Value validation (patterns, bounds, CEL) is validation's own business.

use std::sync::Arc;

use serde_json::{Map as Tree, Value};
use thiserror::Error;

use super::{Field, List, ListKind, Map, Name, Struct, Type, builtin};

/// Deeper schemas are refused.
const DEEPEST: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StructuralError {
    #[error("{0}: a structural schema must state a type")]
    NoType(String),
    #[error("{path}: unknown type {ty:?}")]
    UnknownType { path: String, ty: String },
    #[error("{0}: an array must state its items")]
    NoItems(String),
    #[error("{0}: the schema is nested too deeply")]
    TooDeep(String),
    #[error("the schema of a kind must be an object")]
    NotAnObject,
}

/// The type of a kind from its `openAPIV3Schema`; `apiVersion`, `kind` and `metadata` are every kind's.
pub fn of_kind(schema: &Value) -> Result<Type, StructuralError> {
    let Type::Struct(root) = at(schema, "", 0)? else {
        return Err(StructuralError::NotAnObject);
    };
    let mut root = Arc::unwrap_or_clone(root);
    root.fields
        .retain(|field| !matches!(field.name.as_ref(), "apiVersion" | "kind" | "metadata"));
    root.fields.push(Field::new("apiVersion", Type::String));
    root.fields.push(Field::new("kind", Type::String));
    if let Some(meta) = builtin().type_of("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
        root.fields.push(Field::new("metadata", meta));
    }
    root.fields.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Type::Struct(Arc::new(root)))
}

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

fn at(schema: &Value, path: &str, depth: usize) -> Result<Type, StructuralError> {
    if depth > DEEPEST {
        return Err(StructuralError::TooDeep(path.into()));
    }
    let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
    if flag(schema, "x-kubernetes-int-or-string") {
        return Ok(Type::IntOrString);
    }
    Ok(match text("type") {
        "string" => Type::String,
        "boolean" => Type::Bool,
        "number" => Type::Double,
        "integer" if text("format") == "int32" => Type::Int32,
        "integer" => Type::Int64,
        "array" => {
            let items = schema
                .get("items")
                .ok_or_else(|| StructuralError::NoItems(path.into()))?;
            let keys: Vec<Name> = schema
                .get("x-kubernetes-list-map-keys")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|key| key.as_str().map(|key| Name::from(key.to_owned())))
                .collect();
            Type::List(Box::new(List {
                items: at(items, &format!("{path}[]"), depth + 1)?,
                kind: match text("x-kubernetes-list-type") {
                    "set" => ListKind::Set,
                    "map" => ListKind::Map,
                    _ => ListKind::Atomic,
                },
                keys,
                nullable_items: flag(items, "nullable"),
            }))
        }
        "object" => object(schema, path, depth)?,
        "" if flag(schema, "x-kubernetes-preserve-unknown-fields") => object(schema, path, depth)?,
        "" => return Err(StructuralError::NoType(path.into())),
        other => {
            return Err(StructuralError::UnknownType {
                path: path.into(),
                ty: other.into(),
            });
        }
    })
}

fn object(schema: &Value, path: &str, depth: usize) -> Result<Type, StructuralError> {
    let atomic = schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic");
    let mut preserve_unknown = flag(schema, "x-kubernetes-preserve-unknown-fields");
    match schema.get("additionalProperties") {
        Some(values @ Value::Object(stated)) if !stated.is_empty() => {
            return Ok(Type::Map(Box::new(Map {
                values: at(values, &format!("{path}.*"), depth + 1)?,
                atomic,
                nullable_values: flag(values, "nullable"),
            })));
        }
        Some(Value::Object(_) | Value::Bool(true)) => preserve_unknown = true,
        _ => {}
    }
    let none = Tree::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    // Maps of JSON are sorted by key already.
    let fields = properties
        .iter()
        .map(|(name, below)| {
            let here = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            let mut field = Field::new(name.clone(), at(below, &here, depth + 1)?);
            field.required = required.contains(&name.as_str());
            field.nullable = flag(below, "nullable");
            field.list_marked = below.get("x-kubernetes-list-type").is_some();
            field.default = below.get("default").cloned().map(Box::new);
            Ok(field)
        })
        .collect::<Result<Vec<Field>, StructuralError>>()?;
    Ok(Type::Struct(Arc::new(Struct {
        name: Name::default(),
        fields,
        atomic,
        preserve_unknown,
        embedded: flag(schema, "x-kubernetes-embedded-resource"),
    })))
}
