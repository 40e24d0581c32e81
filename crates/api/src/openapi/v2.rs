//! OpenAPI 2 (Swagger): one document for everything, as JSON and as gnostic's protobuf, which kubectl up to 1.28
//! asks for.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::paths::{self, Answer, Operation, Param, PathItem};
use super::schemas::{Dialect, Schemas};
use super::{Api, gnostic, v3};
use crate::schema;

/// The media type of [`protobuf`], as clients ask for it.
pub const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// A hash of what the document is made from, for its ETag.
pub fn hash(api: &Api) -> String {
    api.hash(api.resources.iter())
}

/// The whole document as JSON.
pub fn document(api: &Api) -> Value {
    let texts = schema::builtin().descriptions();
    let mut schemas = Schemas::new(Dialect::V2, api, &texts);
    let mut parameters = Map::new();
    let mut items: Vec<PathItem> = paths::of_roots(api).into_iter().map(|(_, item)| item).collect();
    for (group, version) in api.group_versions() {
        items.extend(paths::of_version(api, group, version, &texts));
    }
    let mut found = Map::new();
    for item in &items {
        let mut out = Map::new();
        for operation in &item.operations {
            let rendered = render_operation(operation, &mut schemas, &mut parameters);
            out.insert(operation.method.into(), rendered);
        }
        if !item.params.is_empty() {
            let shared = item.params.iter().map(|own| shared(own, &mut parameters)).collect();
            out.insert("parameters".into(), shared);
        }
        found.insert(item.path.clone(), out.into());
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": api.version},
        "paths": found,
        "definitions": schemas.finish(),
        "parameters": parameters,
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey", "in": "header", "name": "authorization",
            "description": "Bearer Token authentication",
        }},
        "security": [{"BearerToken": []}],
    })
}

/// A [`document`] as gnostic's protobuf.
pub fn protobuf(document: &Value) -> Vec<u8> {
    gnostic::encode(document)
}

fn param(param: &Param) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), param.name.into());
    out.insert("in".into(), param.place.into());
    out.insert("type".into(), param.ty.into());
    out.insert("uniqueItems".into(), true.into());
    if !param.description.is_empty() {
        out.insert("description".into(), param.description.as_str().into());
    }
    if param.place == "path" {
        out.insert("required".into(), true.into());
    }
    out.into()
}

/// A reference to the one copy of a parameter. `dryRun` and `fieldValidation` stay where they are: clients look
/// for them in the operation and do not follow references.
fn shared(own: &Param, parameters: &mut Map<String, Value>) -> Value {
    let rendered = param(own);
    if matches!(own.name, "dryRun" | "fieldValidation" | "name") {
        return rendered;
    }
    let digest = Sha256::digest(rendered.to_string());
    let key = format!("{}-{}", own.name, hex::encode(digest.get(..4).unwrap_or_default()));
    let reference = json!({ "$ref": format!("#/parameters/{key}") });
    parameters.insert(key, rendered);
    reference
}

fn render_operation(operation: &Operation, schemas: &mut Schemas<'_>, parameters: &mut Map<String, Value>) -> Value {
    let mut out = Map::new();
    out.insert("tags".into(), json!([operation.tag]));
    out.insert("description".into(), operation.description.as_str().into());
    out.insert("operationId".into(), operation.id.as_str().into());
    out.insert("schemes".into(), json!(["https"]));
    out.insert("produces".into(), json!(operation.produces));
    let consumes = operation
        .body
        .as_ref()
        .map_or_else(|| vec!["*/*"], |body| body.media.clone());
    out.insert("consumes".into(), json!(consumes));
    let mut params = Vec::new();
    if let Some(body) = &operation.body {
        let mut rendered = Map::new();
        rendered.insert("name".into(), "body".into());
        rendered.insert("in".into(), "body".into());
        rendered.insert("schema".into(), schemas.refer(&body.definition));
        if body.required {
            rendered.insert("required".into(), true.into());
        }
        params.push(rendered.into());
    }
    params.extend(operation.params.iter().map(|own| shared(own, parameters)));
    if !params.is_empty() {
        out.insert("parameters".into(), params.into());
    }
    let mut responses = Map::new();
    for code in operation.codes {
        let answer = match &operation.answer {
            Answer::Definition(name) => schemas.refer(name),
            Answer::Text => json!({"type": "string"}),
        };
        responses.insert(
            code.to_string(),
            json!({"description": v3::described(*code), "schema": answer}),
        );
    }
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    out.insert("responses".into(), responses.into());
    if !operation.action.is_empty() {
        out.insert("x-kubernetes-action".into(), operation.action.into());
    }
    if let Some((group, version, kind)) = &operation.gvk {
        out.insert(
            "x-kubernetes-group-version-kind".into(),
            json!({"group": group, "version": version, "kind": kind}),
        );
    }
    out.into()
}
