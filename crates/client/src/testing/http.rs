//! The HTTP face of the fake: paths, queries, bodies.

use std::collections::HashMap;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};

use super::fake::{Failure, FakeApi, Query, Target};
use super::resources::{ROWS, Row};

/// An answer of the fake.
pub type Reply = Response<UnsyncBoxBody<Bytes, std::convert::Infallible>>;

/// Answers one request.
pub(super) async fn handle(api: FakeApi, user: String, request: Request<Body>) -> Reply {
    let (parts, body) = request.into_parts();
    let bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return failure(&Failure::new(400, "BadRequest", &error.to_string())),
    };
    let query = query(parts.uri.query().unwrap_or_default());
    let path = parts.uri.path().trim_matches('/').to_owned();
    if parts.method == Method::GET
        && let Some(found) = discovery(&path)
    {
        return json_reply(StatusCode::OK, &found);
    }
    let Some(target) = target(&path) else {
        return failure(&Failure::new(
            404,
            "NotFound",
            &format!("the server could not find the requested resource /{path}"),
        ));
    };
    let content = parts
        .headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let input: Value = if bytes.is_empty() {
        Value::Null
    } else {
        match serde_json::from_slice(&bytes) {
            Ok(input) => input,
            Err(error) => return failure(&Failure::new(400, "BadRequest", &error.to_string())),
        }
    };
    let watch = query.get("watch").is_some_and(|w| w == "true" || w == "1");
    let query = Query {
        labels: query.get("labelSelector").cloned().unwrap_or_default(),
        fields: query.get("fieldSelector").cloned().unwrap_or_default(),
        version: query.get("resourceVersion").cloned().unwrap_or_default(),
        dry_run: query.contains_key("dryRun"),
    };
    if parts.method == Method::GET && watch {
        return match api.watch(&target, &query) {
            Ok(receiver) => {
                let lines = futures::stream::unfold(receiver, |mut receiver| async move {
                    let line: String = receiver.recv().await?;
                    Some((
                        Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(Bytes::from(line))),
                        receiver,
                    ))
                });
                Response::new(UnsyncBoxBody::new(StreamBody::new(lines.boxed())))
            }
            Err(error) => failure(&error),
        };
    }
    let named = target.name.is_some();
    let outcome = match (&parts.method, named) {
        (&Method::GET, true) => api.read(&target),
        (&Method::GET, false) => api.list(&target, &query),
        (&Method::POST, _) => api.create_in(&user, &target, input, &query),
        (&Method::PUT, true) => api.update(&user, &target, input),
        (&Method::PATCH, true) => api.patch(&user, &target, content, &input),
        (&Method::DELETE, true) => api.delete(&user, &target, &input),
        (&Method::DELETE, false) => api.delete_collection(&user, &target, &query, &input),
        _ => Err(Failure::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )),
    };
    match outcome {
        Ok(object) => {
            let code = if parts.method == Method::POST {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            json_reply(code, &object)
        }
        Err(error) => failure(&error),
    }
}

fn json_reply(code: StatusCode, value: &Value) -> Reply {
    let mut reply = Response::new(UnsyncBoxBody::new(Full::new(Bytes::from(value.to_string()))));
    *reply.status_mut() = code;
    reply
}

fn failure(failure: &Failure) -> Reply {
    let code = StatusCode::from_u16(failure.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_reply(code, &failure.status())
}

fn query(text: &str) -> HashMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
                std::str::from_utf8(&hex)
                    .ok()
                    .and_then(|hex| u8::from_str_radix(hex, 16).ok())
                    .unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.split('/').collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let row = |plural: &str| {
        ROWS.iter()
            .find(|row| row.0 == group && row.1 == version && row.2 == plural)
    };
    let owned = |text: &str| Some(text.to_owned());
    let make = |row: &'static Row, namespace: Option<&str>, rest: &[&str]| Target {
        row,
        namespace: namespace.and_then(owned),
        name: rest.first().copied().and_then(owned),
        subresource: rest.get(1).copied().and_then(owned),
    };
    if let ["namespaces", namespace, plural, rest @ ..] = rest
        && let Some(row) = row(plural)
    {
        return Some(make(row, Some(namespace), rest));
    }
    let (plural, rest) = rest.split_first()?;
    Some(make(row(plural)?, None, rest))
}

fn discovery(path: &str) -> Option<Value> {
    let list = |group: &str, version: &str| {
        let resources: Vec<Value> = ROWS
            .iter()
            .filter(|row| row.0 == group && row.1 == version)
            .map(|(_, _, plural, kind, namespaced)| {
                json!({
                    "name": plural, "singularName": kind.to_lowercase(), "kind": kind, "namespaced": namespaced,
                    "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                })
            })
            .collect();
        let version = if group.is_empty() {
            version.to_owned()
        } else {
            format!("{group}/{version}")
        };
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
    };
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
        ["api", "v1"] => Some(list("", "v1")),
        ["apis"] => {
            let mut seen = std::collections::BTreeMap::new();
            for row in ROWS.iter().filter(|row| !row.0.is_empty()) {
                seen.insert(row.0, row.1);
            }
            let groups: Vec<Value> = seen
                .iter()
                .map(|(group, version)| {
                    let known = json!({"groupVersion": format!("{group}/{version}"), "version": version});
                    json!({"name": group, "versions": [known], "preferredVersion": known})
                })
                .collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", group, version] => Some(list(group, version)),
        _ => None,
    }
}
