//! OpenAPI 3: an index with a hash per document, and a document per group version.

use serde_json::{Map, Value, json};

use super::paths::{self, Answer, Operation, Param, PathItem};
use super::schemas::{Dialect, Schemas};
use super::{Api, ResourceDesc};
use crate::schema::{self, Descriptions};

/// The document of `/openapi/v3`: where each document is, with a hash of what it is made from.
pub fn index(api: &Api) -> Value {
    let mut found = Map::new();
    for name in names(api) {
        if let Some(hash) = hash(api, &name) {
            found.insert(
                name.clone(),
                json!({ "serverRelativeURL": format!("/openapi/v3/{name}?hash={hash}") }),
            );
        }
    }
    json!({ "paths": found })
}

/// The names of all documents, such as `api/v1` and `apis/apps/v1`.
pub fn names(api: &Api) -> Vec<String> {
    let mut all: Vec<String> = paths::of_roots(api).into_iter().map(|(name, _)| name).collect();
    all.extend(
        api.group_versions()
            .into_iter()
            .map(|(group, version)| name(group, version)),
    );
    all
}

fn name(group: &str, version: &str) -> String {
    paths::root(group, version).trim_start_matches('/').to_owned()
}

/// The hash of a document, for its URL and ETag; nothing when there is no such document.
pub fn hash(api: &Api, document: &str) -> Option<String> {
    if !names(api).iter().any(|own| own == document) {
        return None;
    }
    let own = |resource: &&ResourceDesc| name(&resource.group, &resource.version) == document;
    Some(api.hash(api.resources.iter().filter(own)))
}

/// A document by its name; nothing when there is none.
pub fn document(api: &Api, document: &str) -> Option<Value> {
    let texts = schema::builtin().descriptions();
    let items = match paths::of_roots(api).into_iter().find(|(name, _)| name == document) {
        Some((_, item)) => vec![item],
        None => {
            let (group, version) = api
                .group_versions()
                .into_iter()
                .find(|(group, version)| name(group, version) == document)?;
            paths::of_version(api, group, version, &texts)
        }
    };
    Some(render(api, &items, &texts))
}

fn render(api: &Api, items: &[PathItem], texts: &Descriptions) -> Value {
    let mut schemas = Schemas::new(Dialect::V3, api, texts);
    let mut found = Map::new();
    for item in items {
        let mut out = Map::new();
        for operation in &item.operations {
            out.insert(operation.method.into(), render_operation(operation, &mut schemas));
        }
        if !item.params.is_empty() {
            out.insert("parameters".into(), item.params.iter().map(param).collect());
        }
        found.insert(item.path.clone(), out.into());
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": api.version},
        "paths": found,
        "components": {
            "schemas": schemas.finish(),
            "securitySchemes": {"BearerToken": {
                "type": "apiKey", "in": "header", "name": "authorization",
                "description": "Bearer Token authentication",
            }},
        },
    })
}

fn param(param: &Param) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), param.name.into());
    out.insert("in".into(), param.place.into());
    if !param.description.is_empty() {
        out.insert("description".into(), param.description.as_str().into());
    }
    if param.place == "path" {
        out.insert("required".into(), true.into());
    }
    out.insert("schema".into(), json!({"type": param.ty, "uniqueItems": true}));
    out.into()
}

fn render_operation(operation: &Operation, schemas: &mut Schemas<'_>) -> Value {
    let mut out = Map::new();
    out.insert("tags".into(), json!([operation.tag]));
    out.insert("description".into(), operation.description.as_str().into());
    out.insert("operationId".into(), operation.id.as_str().into());
    if !operation.params.is_empty() {
        out.insert("parameters".into(), operation.params.iter().map(param).collect());
    }
    if let Some(body) = &operation.body {
        let reference = schemas.refer(&body.definition);
        let content: Map<String, Value> = body
            .media
            .iter()
            .map(|media| ((*media).to_owned(), json!({"schema": reference})))
            .collect();
        let mut request = Map::new();
        request.insert("content".into(), content.into());
        if body.required {
            request.insert("required".into(), true.into());
        }
        out.insert("requestBody".into(), request.into());
    }
    let mut responses = Map::new();
    for code in operation.codes {
        let answer = match &operation.answer {
            Answer::Definition(name) => schemas.refer(name),
            Answer::Text => json!({"type": "string"}),
        };
        let content: Map<String, Value> = operation
            .produces
            .iter()
            .map(|media| ((*media).to_owned(), json!({"schema": answer})))
            .collect();
        responses.insert(
            code.to_string(),
            json!({"description": described(*code), "content": content}),
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

pub(super) fn described(code: u16) -> &'static str {
    match code {
        201 => "Created",
        202 => "Accepted",
        _ => "OK",
    }
}
