//! OpenAPI documents over the resource table: `/openapi/v3` and its documents, `/openapi/v2`.
//!
//! Documents are large and asked for rarely (clients keep them by hash), so they are built for each request and
//! not kept; hashes and the index cost nothing.

use http::header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH, LOCATION, VARY};
use http::{HeaderMap, Response};
use sampan_api::openapi::{Api, CustomSchema, ResourceDesc, SubresourceDesc, v2, v3};
use sampan_api::status::Status;
use sampan_kinds::SubresourceKind;
use serde_json::Value;

use crate::aggregator;
use crate::body::Body;
use crate::discovery::{Asked, View};
use crate::registry::reply::response;
use crate::request::media::accept_clauses;
use crate::rows::Row;
use crate::{Refusal, refuse};

/// Serves every path below `/openapi`.
pub fn serve(version: &str, view: &View<'_>, segments: &[&str], asked: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    let headers = &asked.parts.headers;
    let api = describe(version, view);
    match segments {
        ["openapi", "v3"] => {
            let mut index = v3::index(&api);
            if let Some(paths) = index.get_mut("paths").and_then(Value::as_object_mut) {
                for remote in view.remotes.values() {
                    let theirs = remote.documents();
                    paths.extend(theirs.v3.iter().map(|(path, entry)| (path.clone(), entry.clone())));
                    paths.extend(theirs.converted.map(|made| (made.name.clone(), made.entry())));
                }
            }
            Ok(json(&index))
        }
        ["openapi", "v3", name @ ..] => {
            let name = name.join("/");
            let mut remotes = view.remotes.values();
            let converted = remotes.find_map(|remote| remote.documents().converted.filter(|made| made.name == name));
            let hash = match &converted {
                Some(made) => made.hash.clone(),
                None => v3::hash(&api, &name).ok_or_else(|| refuse(Status::no_such_path()))?,
            };
            if let Some(stale) = asked.query.text("hash").filter(|stale| *stale != hash) {
                tracing::debug!(stale, "a client asked for an older document");
                let mut moved = response(301, "text/plain; charset=utf-8", Body::Empty);
                let location = format!("/openapi/v3/{name}?hash={hash}");
                moved.headers_mut().insert(LOCATION, header(&location)?);
                return Ok(moved);
            }
            let immutable = asked.query.text("hash").is_some();
            if let Some(unchanged) = unchanged(headers, &hash) {
                return Ok(unchanged);
            }
            let mut response = match converted {
                Some(made) => response(200, "application/json", made.document.clone()),
                None => json(&v3::document(&api, &name).ok_or_else(|| refuse(Status::no_such_path()))?),
            };
            if immutable {
                response.headers_mut().insert(
                    CACHE_CONTROL,
                    HeaderValue::from_static("public, immutable, max-age=31536000"),
                );
            }
            tagged(response, &hash)
        }
        ["openapi", "v2"] => {
            let protobuf = accept_clauses(headers)
                .iter()
                .find_map(|clause| match clause.kind.as_str() {
                    kind if kind.contains("proto-openapi.spec.v2") => Some(true),
                    "application/json" | "*/*" | "application/*" => Some(false),
                    _ => None,
                })
                .unwrap_or(false);
            let theirs = aggregator::v2_tag(view.remotes);
            let hash = format!("{}{theirs}{}", v2::hash(&api), if protobuf { "-pb" } else { "" });
            if let Some(unchanged) = unchanged(headers, &hash) {
                return Ok(unchanged);
            }
            let document = aggregator::merged_v2(v2::document(&api), view.remotes);
            let response = if protobuf {
                response(200, "application/octet-stream", v2::protobuf(&document))
            } else {
                json(&document)
            };
            tagged(response, &hash)
        }
        _ => Err(refuse(Status::no_such_path())),
    }
}

fn json(document: &Value) -> Response<Body> {
    response(200, "application/json", document.to_string())
}

fn header(text: &str) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_str(text).map_err(|error| refuse(Status::internal(error)))
}

fn unchanged(headers: &HeaderMap, hash: &str) -> Option<Response<Body>> {
    let known = headers.get(IF_NONE_MATCH)?.to_str().ok()?;
    if known.trim_start_matches("W/").trim_matches('"') != hash {
        return None;
    }
    tagged(response(304, "application/json", Body::Empty), hash).ok()
}

fn tagged(mut response: Response<Body>, hash: &str) -> Result<Response<Body>, Refusal> {
    response.headers_mut().insert(ETAG, header(&format!("\"{hash}\""))?);
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// What the table serves, as the documents want it.
fn describe(version: &str, view: &View<'_>) -> Api {
    let theirs = |row: &Row| {
        !view.remotes.is_empty()
            && view
                .remotes
                .contains_key(&(row.spec.group.to_owned(), row.spec.version.to_owned()))
    };
    Api {
        version: version.to_owned(),
        resources: view
            .table
            .rows
            .iter()
            .filter(|row| !theirs(row))
            .map(|row| resource(row))
            .collect(),
    }
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|&text| text.to_owned()).collect()
}

fn resource(row: &Row) -> ResourceDesc {
    let spec = row.spec;
    ResourceDesc {
        group: spec.group.into(),
        version: spec.version.into(),
        plural: spec.plural.into(),
        kind: spec.kind.into(),
        list_kind: spec.list_kind.into(),
        namespaced: spec.namespaced,
        verbs: texts(spec.verbs.names()),
        subresources: spec
            .subresources
            .iter()
            .map(|sub| {
                let (group, version, kind) = match sub.gvk {
                    ("", "", kind) => (spec.group, spec.version, kind),
                    own => own,
                };
                SubresourceDesc {
                    name: sub.name.into(),
                    group: group.into(),
                    version: version.into(),
                    kind: kind.into(),
                    verbs: texts(sub.verbs),
                    connect: sub.kind == SubresourceKind::Special
                        && matches!(sub.name, "exec" | "attach" | "portforward" | "proxy"),
                }
            })
            .collect(),
        schema: row
            .custom
            .as_ref()
            .and_then(|custom| custom.schema.clone())
            .or_else(|| row.measured.clone())
            .map(CustomSchema),
    }
}
