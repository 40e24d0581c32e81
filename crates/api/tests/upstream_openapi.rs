//! Our built-in definitions against upstream's published OpenAPI document: same definitions, fields, types,
//! required fields and markers. The document is not part of the project: the test skips when it is absent.
//! `SAMPAN_UPSTREAM_DATA` names the directory that holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::PathBuf;

use sampan_api::openapi::{self, Api, ResourceDesc, SubresourceDesc};
use sampan_api::schema::{self, Field, ListKind, Type};
use serde_json::{Map, Value, json};

const FILE: &str = "kubernetes-1.36-openapi-v2.json.gz";

const DISCOVERY: &str = "kubernetes-1.36-discovery-aggregated.json.gz";

fn upstream() -> Option<Value> {
    data(FILE)
}

fn data(file: &str) -> Option<Value> {
    let dir = std::env::var_os("SAMPAN_UPSTREAM_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let bytes = match std::fs::read(dir.join(file)) {
        Ok(bytes) => bytes,
        Err(_) => {
            eprintln!("skipped: {file} is not in {} (set SAMPAN_UPSTREAM_DATA)", dir.display());
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

/// The API upstream's discovery lists (everything but the core group).
fn served(discovery: &Value) -> Api {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut api = Api {
        version: "unversioned".into(),
        resources: Vec::new(),
    };
    for group in list(&discovery["items"]) {
        let name = text(&group["metadata"]["name"]);
        for version in list(&group["versions"]) {
            let own = text(&version["version"]);
            for resource in list(&version["resources"]) {
                let kind = text(&resource["responseKind"]["kind"]);
                let subresources = list(&resource["subresources"])
                    .iter()
                    .map(|sub| {
                        let gvk = &sub["responseKind"];
                        let inherits = text(&gvk["version"]).is_empty();
                        SubresourceDesc {
                            name: text(&sub["subresource"]),
                            group: if inherits { name.clone() } else { text(&gvk["group"]) },
                            version: if inherits { own.clone() } else { text(&gvk["version"]) },
                            kind: text(&gvk["kind"]),
                            verbs: list(&sub["verbs"]).iter().map(text).collect(),
                            connect: false,
                        }
                    })
                    .collect();
                api.resources.push(ResourceDesc {
                    group: name.clone(),
                    version: own.clone(),
                    plural: text(&resource["resource"]),
                    list_kind: format!("{kind}List"),
                    kind,
                    namespaced: resource["scope"] == "Namespaced",
                    verbs: list(&resource["verbs"]).iter().map(text).collect(),
                    subresources,
                    schema: None,
                });
            }
        }
    }
    api
}

/// Why a property's schema in version 3 may differ from upstream's: `Definition.field` and the reason.
const V3_ALLOWED: &[(&str, &str)] = &[
    ("io.k8s.api.core.v1.AppArmorProfile", UNIONS),
    ("io.k8s.api.core.v1.PodSchedulingGroup", UNIONS),
    ("io.k8s.api.core.v1.SeccompProfile", UNIONS),
    ("io.k8s.api.flowcontrol.v1.LimitResponse", UNIONS),
    ("io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationSpec", UNIONS),
    ("io.k8s.api.flowcontrol.v1.Subject", UNIONS),
];
const UNIONS: &str = "the marker of unions, which nothing reads, is left out";

/// Upstream's OpenAPI 3 documents, one file per group version, in the folder `v3` of the data if it is there.
fn upstream_v3() -> Vec<Value> {
    let dir = std::env::var_os("SAMPAN_UPSTREAM_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let Ok(files) = std::fs::read_dir(dir.join("v3")) else {
        eprintln!("skipped: no folder v3 in {} (set SAMPAN_UPSTREAM_DATA)", dir.display());
        return Vec::new();
    };
    files
        .filter_map(|file| std::fs::read(file.ok()?.path()).ok())
        .map(|bytes| serde_json::from_slice(&bytes).expect("a JSON document"))
        .collect()
}

#[test]
fn schemas_of_version_3_agree_with_upstream() {
    let (documents, Some(discovery)) = (upstream_v3(), data(DISCOVERY)) else {
        return;
    };
    let api = served(&discovery);
    let mut ours = Map::new();
    for name in openapi::v3::names(&api) {
        if let Some(Value::Object(schemas)) =
            openapi::v3::document(&api, &name).map(|mut document| document["components"]["schemas"].take())
        {
            ours.extend(schemas);
        }
    }
    let mut differences = BTreeMap::new();
    let mut compared = 0;
    for document in &documents {
        let schemas = document["components"]["schemas"].as_object();
        for (name, theirs) in schemas.into_iter().flatten() {
            // Kinds of versions that are off by default are not in our documents.
            let Some(own) = ours.get(name) else { continue };
            if name.contains("alpha") || name.contains("beta") {
                continue;
            }
            compared += 1;
            let keys = |schema: &Value| {
                let mut rest = schema.as_object().cloned().unwrap_or_default();
                rest.remove("properties");
                rest.remove("x-kubernetes-group-version-kind");
                rest.remove("description");
                // Upstream's order is that of Go's structs; it means nothing.
                if let Some(Value::Array(required)) = rest.get_mut("required") {
                    required.sort_by_key(Value::to_string);
                }
                rest
            };
            if keys(own) != keys(theirs) {
                differences.insert(name.clone(), format!("ours {:?}, theirs {:?}", keys(own), keys(theirs)));
            }
            for (field, property) in theirs["properties"].as_object().into_iter().flatten() {
                let mine = &own["properties"][field];
                let plain = |property: &Value| {
                    let mut property = property.clone();
                    if let Some(map) = property.as_object_mut() {
                        map.remove("description");
                    }
                    property
                };
                if plain(mine) != plain(property) {
                    let what = format!("ours {}, theirs {}", plain(mine), plain(property));
                    differences.insert(format!("{name}.{field}"), what);
                }
            }
        }
    }
    for (entry, _) in V3_ALLOWED {
        if differences.remove(*entry).is_none() && compared > 0 {
            differences.insert((*entry).to_owned(), "allowed, but there is no difference".into());
        }
    }
    assert!(
        differences.is_empty(),
        "{} differences in {compared} schemas:\n{}",
        differences.len(),
        differences
            .iter()
            .map(|(at, what)| format!("{at}: {what}"))
            .collect::<Vec<_>>()
            .join("\n")
    );
}

/// Names of an operation's parameters, references resolved.
fn parameter_names(document: &Value, owner: &Value) -> BTreeSet<String> {
    owner["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|parameter| match parameter["$ref"].as_str() {
            Some(reference) => &document["parameters"][reference.trim_start_matches("#/parameters/")],
            None => parameter,
        })
        .filter_map(|parameter| parameter["name"].as_str().map(str::to_owned))
        .collect()
}

/// Parameters upstream has and we leave out: sharded lists are an alpha feature.
const NO_PARAMETER: [&str; 1] = ["shardSelector"];

#[test]
fn paths_agree_with_upstream() {
    let (Some(upstream), Some(discovery)) = (upstream(), data(DISCOVERY)) else {
        return;
    };
    let api = served(&discovery);
    let ours = openapi::v2::document(&api);
    let mut differences = Vec::new();
    let versions: BTreeSet<String> = api
        .resources
        .iter()
        .map(|resource| format!("/apis/{}/{}/", resource.group, resource.version))
        .collect();
    let none = Map::new();
    let (left, right) = (
        ours["paths"].as_object().unwrap_or(&none),
        upstream["paths"].as_object().unwrap_or(&none),
    );
    let served = |path: &str| versions.iter().any(|root| path.starts_with(root));
    for (path, theirs) in right {
        if !served(path) || path.contains("/watch/") {
            continue;
        }
        let Some(own) = left.get(path) else {
            differences.push(format!("{path}: not ours"));
            continue;
        };
        for method in ["get", "put", "post", "delete", "patch"] {
            let (a, b) = (&own[method], &theirs[method]);
            if a.is_null() != b.is_null() {
                differences.push(format!("{method} {path}: ours {}", !a.is_null()));
                continue;
            }
            for key in [
                "operationId",
                "x-kubernetes-action",
                "x-kubernetes-group-version-kind",
                "tags",
                "description",
            ] {
                if a[key] != b[key] {
                    differences.push(format!("{method} {path} {key}: ours {}, theirs {}", a[key], b[key]));
                }
            }
            let codes = |operation: &Value| -> Vec<String> {
                let responses = operation["responses"].as_object();
                responses.into_iter().flatten().map(|(code, _)| code.clone()).collect()
            };
            if codes(a) != codes(b) {
                differences.push(format!("{method} {path}: codes {:?}, theirs {:?}", codes(a), codes(b)));
            }
            if a["responses"]["200"]["schema"] != b["responses"]["200"]["schema"] {
                differences.push(format!("{method} {path}: answers differ"));
            }
            let names = |document: &Value, item: &Value, operation: &Value| {
                let mut all = parameter_names(document, item);
                all.extend(parameter_names(document, operation));
                all.retain(|name| !NO_PARAMETER.contains(&name.as_str()));
                all
            };
            let (mine, other) = (names(&ours, own, a), names(&upstream, theirs, b));
            if !a.is_null() && mine != other {
                differences.push(format!("{method} {path}: parameters {mine:?}, theirs {other:?}"));
            }
        }
    }
    for path in left.keys().filter(|path| served(path)) {
        if !right.contains_key(path) {
            differences.push(format!("{path}: only ours"));
        }
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
}
