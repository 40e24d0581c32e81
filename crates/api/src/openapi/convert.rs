//! OpenAPI version 2 to version 3, for extension servers that know only the former.
//!
//! What version 3 says in another place goes there: definitions, responses and security below `components`, bodies
//! into `requestBody` and `content`, references after them. A reference with siblings becomes an `allOf`, because in
//! version 3 siblings do not count.
//!
//! Some of it is lost, as upstream loses it: of plain parameters only type, format and uniqueness stay; headers of
//! responses go. Where upstream's converter leaves documents that lead nowhere, this one does not: shared parameters
//! are kept (upstream drops what it still refers to), a shared body is a body, and media types that are said once for
//! the whole document count for every operation.

use serde_json::{Map, Value, json};

const VERBS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];
/// Where the parts are, before and after.
const MOVED: [(&str, &str); 3] = [
    ("#/definitions/", "#/components/schemas/"),
    ("#/parameters/", "#/components/parameters/"),
    ("#/responses/", "#/components/responses/"),
];

/// The document in version 3. Whatever is not as it should be is passed over.
pub fn v3_of_v2(document: &Value) -> Value {
    let whole = Whole {
        parameters: document.get("parameters").and_then(Value::as_object),
        consumes: document.get("consumes"),
        produces: document.get("produces"),
    };
    let mut new = json!({"openapi": "3.0.0"});
    keep(document, &mut new, &["info", "externalDocs"]);
    if let Some(paths) = document.get("paths") {
        new["paths"] = each(paths, |_, item| whole.path(item));
    }
    let mut components = Map::new();
    if let Some(definitions) = document.get("definitions") {
        components.insert("schemas".into(), each(definitions, |_, definition| schema(definition)));
    }
    if let Some(schemes) = document.get("securityDefinitions") {
        components.insert("securitySchemes".into(), each(schemes, |_, scheme| security(scheme)));
    }
    if let Some(responses) = document.get("responses") {
        let responses = each(responses, |_, one| response(one, whole.produces));
        components.insert("responses".into(), responses);
    }
    let shared: Map<String, Value> = whole
        .parameters
        .into_iter()
        .flatten()
        .filter(|(_, one)| !is_body(one))
        .map(|(name, one)| (name.clone(), parameter(one)))
        .collect();
    if !shared.is_empty() {
        components.insert("parameters".into(), shared.into());
    }
    new["components"] = components.into();
    new
}

/// What a document says for all its operations.
struct Whole<'a> {
    parameters: Option<&'a Map<String, Value>>,
    consumes: Option<&'a Value>,
    produces: Option<&'a Value>,
}

impl<'a> Whole<'a> {
    fn path(&self, item: &Value) -> Value {
        let mut new = json!({});
        keep(item, &mut new, &["$ref"]);
        extensions(item, &mut new);
        for verb in VERBS {
            if let Some(operation) = item.get(verb).filter(|operation| operation.is_object()) {
                new[verb] = self.operation(operation);
            }
        }
        let parameters: Vec<Value> = list(item, "parameters").map(parameter).collect();
        if !parameters.is_empty() {
            new["parameters"] = parameters.into();
        }
        new
    }

    fn operation(&self, operation: &Value) -> Value {
        let mut new = json!({});
        let same = [
            "description",
            "externalDocs",
            "tags",
            "summary",
            "deprecated",
            "operationId",
        ];
        keep(operation, &mut new, &same);
        extensions(operation, &mut new);
        let mut parameters = Vec::new();
        for one in list(operation, "parameters") {
            let meant = self.resolved(one);
            if is_body(meant) {
                let types = operation.get("consumes").or(self.consumes);
                new["requestBody"] = json!({});
                if let Some(content) = content(meant, types) {
                    new["requestBody"]["content"] = content;
                }
                keep(meant, &mut new["requestBody"], &["description", "required"]);
            } else {
                parameters.push(parameter(one));
            }
        }
        if !parameters.is_empty() {
            new["parameters"] = parameters.into();
        }
        let produces = operation.get("produces").or(self.produces);
        if let Some(responses) = operation.get("responses") {
            new["responses"] = each(responses, |code, one| {
                if code.starts_with("x-") {
                    one.clone()
                } else {
                    response(one, produces)
                }
            });
        }
        new
    }

    /// A shared parameter itself, not what refers to it.
    fn resolved<'b>(&self, parameter: &'b Value) -> &'b Value
    where
        'a: 'b,
    {
        let name = parameter.get("$ref").and_then(Value::as_str);
        name.and_then(|name| self.parameters?.get(name.strip_prefix("#/parameters/")?))
            .unwrap_or(parameter)
    }
}

/// Every entry of a map by a function of its name and value.
fn each(map: &Value, change: impl Fn(&str, &Value) -> Value) -> Value {
    let map = map.as_object().into_iter().flatten();
    map.map(|(name, value)| (name.clone(), change(name, value)))
        .collect::<Map<_, _>>()
        .into()
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn keep(from: &Value, into: &mut Value, fields: &[&str]) {
    for field in fields {
        if let Some(value) = from.get(field) {
            into[*field] = value.clone();
        }
    }
}

/// What vendors add goes along.
fn extensions(from: &Value, into: &mut Value) {
    for (name, value) in from
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("x-"))
    {
        into[name.as_str()] = value.clone();
    }
}

/// Where a reference leads in version 3.
fn led(reference: &Value) -> Value {
    let Some(text) = reference.as_str() else {
        return reference.clone();
    };
    let moved = MOVED
        .iter()
        .find_map(|(old, new)| Some(format!("{new}{}", text.strip_prefix(old)?)));
    moved.unwrap_or_else(|| text.to_owned()).into()
}

fn is_body(parameter: &Value) -> bool {
    parameter.get("in").and_then(Value::as_str) == Some("body") && parameter.get("schema").is_some()
}

/// The schema of a body or a response, for every media type.
fn content(of: &Value, types: Option<&Value>) -> Option<Value> {
    let made = schema(of.get("schema")?);
    let types = types?.as_array()?.iter().filter_map(Value::as_str);
    Some(
        types
            .map(|media| (media.to_owned(), json!({"schema": made})))
            .collect::<Map<_, _>>()
            .into(),
    )
}

fn response(response: &Value, produces: Option<&Value>) -> Value {
    if let Some(reference) = response.get("$ref") {
        return json!({"$ref": led(reference)});
    }
    let mut new = json!({});
    keep(response, &mut new, &["description"]);
    extensions(response, &mut new);
    if let Some(content) = content(response, produces) {
        new["content"] = content;
    }
    new
}

fn parameter(parameter: &Value) -> Value {
    if let Some(reference) = parameter.get("$ref") {
        return json!({"$ref": led(reference)});
    }
    let mut new = json!({});
    keep(
        parameter,
        &mut new,
        &["name", "description", "in", "required", "allowEmptyValue"],
    );
    extensions(parameter, &mut new);
    new["schema"] = match parameter.get("schema") {
        Some(own) => schema(own),
        None => {
            let mut plain = json!({});
            keep(parameter, &mut plain, &["type", "format", "uniqueItems"]);
            plain
        }
    };
    new
}

fn security(scheme: &Value) -> Value {
    let mut new = json!({});
    keep(scheme, &mut new, &["type", "description", "name", "in"]);
    extensions(scheme, &mut new);
    if let Some(flow) = scheme
        .get("flow")
        .and_then(Value::as_str)
        .filter(|flow| !flow.is_empty())
    {
        let mut how = json!({});
        keep(scheme, &mut how, &["authorizationUrl", "tokenUrl", "scopes"]);
        new["flows"] = json!({flow: how});
    }
    new
}

fn schema(old: &Value) -> Value {
    let Some(old) = old.as_object() else { return old.clone() };
    let mut new = Map::new();
    for (field, value) in old {
        let value = match field.as_str() {
            "$ref" => led(value),
            "properties" => each(value, |_, property| schema(property)),
            "items" | "allOf" if value.is_array() => list_of(value),
            "items" | "additionalProperties" | "additionalItems" => schema(value),
            _ => value.clone(),
        };
        new.insert(field.clone(), value);
    }
    if new.len() > 1
        && let Some(reference) = new.remove("$ref")
    {
        new.insert("allOf".into(), json!([{"$ref": reference}]));
    }
    new.into()
}

fn list_of(schemas: &Value) -> Value {
    schemas
        .as_array()
        .into_iter()
        .flatten()
        .map(schema)
        .collect::<Vec<_>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_go_where_version_3_has_them() {
        let v2 = json!({
            "swagger": "2.0", "info": {"title": "Generic API Server", "version": "v1"},
            "produces": ["application/json"],
            "paths": {"/apis/x/v1/foos/{name}": {
                "parameters": [{"name": "name", "in": "path", "type": "string", "required": true, "uniqueItems": true},
                    {"$ref": "#/parameters/pretty"}],
                "put": {"operationId": "replaceFoo", "consumes": ["application/json", "application/yaml"], "tags": ["x_v1"],
                    "schemes": ["https"], "x-kubernetes-action": "put",
                    "parameters": [{"name": "body", "in": "body", "required": true, "schema": {"$ref": "#/definitions/Foo"}},
                        {"name": "dryRun", "in": "query", "type": "string", "description": "d"}],
                    "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Foo"}, "headers": {}},
                        "401": {"$ref": "#/responses/none"}, "default": {"description": "?"}, "x-y": 1}},
                "post": {"produces": ["a/b"], "parameters": [{"$ref": "#/parameters/body"}], "responses": {"200": {"schema": {}}}},
                "get": 7}},
            "definitions": {"Foo": {"type": "object", "properties": {
                "spec": {"description": "what", "$ref": "#/definitions/Spec"}, "meta": {"$ref": "#/definitions/Meta"},
                "list": {"type": "array", "items": {"$ref": "#/definitions/Foo"}},
                "map": {"additionalProperties": {"default": {}, "$ref": "#/definitions/Foo"}}, "any": {"additionalProperties": true}},
                "x-kubernetes-group-version-kind": [{"group": "x", "kind": "Foo", "version": "v1"}]}},
            "parameters": {"pretty": {"name": "pretty", "in": "query", "type": "string"},
                "body": {"name": "body", "in": "body", "schema": {"type": "object"}}},
            "responses": {"none": {"description": "Unauthorized"}},
            "securityDefinitions": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header", "description": "b"},
                "o": {"type": "oauth2", "flow": "implicit", "authorizationUrl": "https://a", "scopes": {"s": "t"}}},
            "security": [{"BearerToken": []}],
        });
        let refer = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
        let foo = json!({"schema": refer("Foo")});
        assert_eq!(
            v3_of_v2(&v2),
            json!({
                "openapi": "3.0.0", "info": {"title": "Generic API Server", "version": "v1"},
                "paths": {"/apis/x/v1/foos/{name}": {
                    "parameters": [{"name": "name", "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}},
                        {"$ref": "#/components/parameters/pretty"}],
                    "put": {"operationId": "replaceFoo", "tags": ["x_v1"], "x-kubernetes-action": "put",
                        "requestBody": {"required": true, "content": {"application/json": foo, "application/yaml": foo}},
                        "parameters": [{"name": "dryRun", "in": "query", "description": "d", "schema": {"type": "string"}}],
                        "responses": {"200": {"description": "OK", "content": {"application/json": foo}},
                            "401": {"$ref": "#/components/responses/none"}, "default": {"description": "?"}, "x-y": 1}},
                    "post": {"requestBody": {}, "responses": {"200": {"content": {"a/b": {"schema": {}}}}}}}},
                "components": {
                    "schemas": {"Foo": {"type": "object", "properties": {
                        "spec": {"description": "what", "allOf": [refer("Spec")]}, "meta": refer("Meta"),
                        "list": {"type": "array", "items": refer("Foo")},
                        "map": {"additionalProperties": {"default": {}, "allOf": [refer("Foo")]}}, "any": {"additionalProperties": true}},
                        "x-kubernetes-group-version-kind": [{"group": "x", "kind": "Foo", "version": "v1"}]}},
                    "securitySchemes": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header", "description": "b"},
                        "o": {"type": "oauth2", "flows": {"implicit": {"authorizationUrl": "https://a", "scopes": {"s": "t"}}}}},
                    "responses": {"none": {"description": "Unauthorized"}},
                    "parameters": {"pretty": {"name": "pretty", "in": "query", "schema": {"type": "string"}}}},
            })
        );
    }

    #[test]
    fn a_property_may_be_called_like_a_keyword() {
        let v2 = json!({"definitions": {"Odd": {"properties": {"properties": {"type": "string"},
            "$ref": {"type": "string"}, "items": {"$ref": "#/definitions/Odd"}}}}});
        assert_eq!(
            v3_of_v2(&v2)["components"]["schemas"]["Odd"],
            json!({"properties": {"properties": {"type": "string"}, "$ref": {"type": "string"},
                "items": {"$ref": "#/components/schemas/Odd"}}})
        );
    }

    #[test]
    fn nonsense_is_passed_over() {
        for nonsense in [
            json!(null),
            json!([]),
            json!({"paths": 7, "definitions": [1], "parameters": ["x"]}),
            json!({"paths": {"/a": {"get": {"parameters": [7, {"$ref": 3}], "responses": {"200": 9}}}}}),
        ] {
            assert_eq!(v3_of_v2(&nonsense)["openapi"], "3.0.0");
        }
    }
}
