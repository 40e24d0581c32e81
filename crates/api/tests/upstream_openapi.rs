//! Our built-in definitions against upstream's published OpenAPI document: same definitions, fields, types,
//! required fields and markers. The document is not part of the project: the test skips when it is absent.
//! `SAMPAN_UPSTREAM_DATA` names the directory that holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::PathBuf;

use sampan_api::schema::{self, Field, ListKind, Type};
use serde_json::{Map, Value, json};

const FILE: &str = "kubernetes-1.36-openapi-v2.json.gz";

fn upstream() -> Option<Value> {
    let dir = std::env::var_os("SAMPAN_UPSTREAM_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let bytes = match std::fs::read(dir.join(FILE)) {
        Ok(bytes) => bytes,
        Err(_) => {
            eprintln!("skipped: {FILE} is not in {} (set SAMPAN_UPSTREAM_DATA)", dir.display());
            return None;
        }
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(bytes.as_slice())
        .read_to_string(&mut text)
        .expect("a gzip file");
    Some(serde_json::from_str(&text).expect("a JSON document"))
}

/// What upstream's document says of a property, without texts.
fn stated(property: &Value) -> Value {
    let mut out = Map::new();
    for (key, value) in property.as_object().into_iter().flatten() {
        match key.as_str() {
            "description" | "default" => {}
            "items" | "additionalProperties" => {
                out.insert(key.clone(), stated(value));
            }
            "$ref" => {
                let name = value.as_str().unwrap_or_default();
                out.insert("$ref".into(), name.trim_start_matches("#/definitions/").into());
            }
            _ => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(out)
}

fn type_shape(ty: &Type) -> Value {
    let named = |name: &str| json!({ "$ref": name });
    match ty {
        Type::String => json!({"type": "string"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Double => json!({"type": "number", "format": "double"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::IntOrString => named("io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
        Type::Quantity => named("io.k8s.apimachinery.pkg.api.resource.Quantity"),
        Type::Time => named("io.k8s.apimachinery.pkg.apis.meta.v1.Time"),
        Type::MicroTime => named("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime"),
        Type::RawExtension => named("io.k8s.apimachinery.pkg.runtime.RawExtension"),
        Type::FieldsV1 => named("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1"),
        Type::Json => named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"),
        Type::PropsOrArray => named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray"),
        Type::PropsOrBool => named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool"),
        Type::PropsOrStrings => {
            named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray")
        }
        Type::Strings => json!({"type": "array", "items": {"type": "string"}}),
        Type::List(list) => json!({"type": "array", "items": type_shape(&list.items)}),
        Type::Map(map) => {
            json!({"type": "object", "additionalProperties": type_shape(&map.values)})
        }
        Type::Def(id) => named(&schema::builtin().definition_of(*id).name),
        Type::Struct(_) => json!({"type": "object"}),
    }
}

fn shape(field: &Field) -> Value {
    let mut out = type_shape(&field.ty);
    if field.list_marked {
        let (kind, keys) = match &field.ty {
            Type::List(list) => (list.kind, list.keys.clone()),
            _ => (ListKind::Atomic, Vec::new()),
        };
        out["x-kubernetes-list-type"] = match kind {
            ListKind::Atomic => "atomic",
            ListKind::Set => "set",
            ListKind::Map => "map",
        }
        .into();
        if !keys.is_empty() {
            out["x-kubernetes-list-map-keys"] = json!(keys);
        }
    }
    if let Some(atomic) = field.atomic {
        out["x-kubernetes-map-type"] = if atomic { "atomic" } else { "granular" }.into();
    }
    if let Some(patch) = &field.patch {
        let mut strategies = Vec::new();
        if patch.merge {
            strategies.push("merge");
        }
        if patch.retain_keys {
            strategies.push("retainKeys");
        }
        if patch.replace {
            strategies.push("replace");
        }
        if !strategies.is_empty() {
            out["x-kubernetes-patch-strategy"] = strategies.join(",").into();
        }
        if let Some(key) = &patch.key {
            out["x-kubernetes-patch-merge-key"] = key.as_ref().into();
        }
    }
    out
}

/// Differences that are meant: a suffix of the definition name and field, and why.
const ALLOWED: &[(&str, &str)] = &[];

#[test]
fn definitions_agree_with_upstream() {
    let Some(upstream) = upstream() else { return };
    let ours = schema::builtin();
    let mut differences = BTreeMap::new();
    let theirs = upstream["definitions"].as_object().expect("definitions");
    for (name, definition) in theirs {
        let Some(own) = ours.definition(name) else {
            differences.insert(name.clone(), "not ours".to_owned());
            continue;
        };
        let no_properties = Map::new();
        let properties = definition["properties"].as_object().unwrap_or(&no_properties);
        let Some(own) = own.as_struct() else {
            assert!(properties.is_empty(), "{name} has properties");
            continue;
        };
        let required: BTreeSet<&str> = definition["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if own.atomic != (definition["x-kubernetes-map-type"] == "atomic") {
            differences.insert(name.clone(), "map type".to_owned());
        }
        for (field, property) in properties {
            let at = format!("{name}.{field}");
            let Some(own) = own.field(field) else {
                differences.insert(at, "no such field".to_owned());
                continue;
            };
            let (left, right) = (shape(own), stated(property));
            if left != right {
                differences.insert(at.clone(), format!("ours {left}, theirs {right}"));
            }
            if own.required != required.contains(field.as_str()) {
                differences.insert(at + " (required)", format!("ours {}", own.required));
            }
        }
        for field in &own.fields {
            if !properties.contains_key(field.name.as_ref()) {
                differences.insert(format!("{name}.{}", field.name), "only ours".to_owned());
            }
        }
    }
    for (entry, _) in ALLOWED {
        if differences.remove(*entry).is_none() {
            differences.insert((*entry).to_owned(), "allowed, but there is no difference".into());
        }
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences
            .iter()
            .map(|(at, what)| format!("{at}: {what}"))
            .collect::<Vec<_>>()
            .join("\n")
    );
}
