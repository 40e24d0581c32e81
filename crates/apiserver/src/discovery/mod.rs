//! Everything that is not a resource: what is served (discovery, OpenAPI, version), how the server feels
//! (health, metrics), and who signs tokens.

mod groups;
mod health;
mod view;

use std::sync::Arc;

use http::request::Parts;
use http::{Method, Response};
use sampan_api::status::Status;
use serde_json::{Value, json};

use crate::body::Body;
use crate::control_plane::ControlPlane;
use crate::registry::reply::{encode, response};
use crate::request::{Encoding, Query, RequestInfo, media};
use crate::rows::Table;
use crate::{Refusal, refuse};
pub use view::View;

/// A request for something that is no resource.
pub struct Asked<'a> {
    pub parts: &'a Parts,
    pub info: &'a RequestInfo,
    pub query: &'a Query,
}

pub async fn serve(plane: &Arc<ControlPlane>, incoming: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    let path = incoming.info.path.trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let (table, remotes) = (plane.registry.rows.get(), plane.aggregator.remotes());
    let view = View {
        table: &table,
        remotes: &remotes,
    };
    if !matches!(incoming.parts.method, Method::GET | Method::HEAD) {
        if !exists(&segments, &view, &table) {
            return Err(refuse(Status::no_such_path()));
        }
        let mut status = Status::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        status.details = Some(Default::default());
        return Err(refuse(status));
    }
    let document = match segments.as_slice() {
        [] | [""] => paths(&view, issuer(plane).is_some()),
        ["version"] => version(&plane.config.version),
        ["api"] | ["apis"] => {
            let core = segments == ["api"];
            if let Some(form) = groups::Aggregated::asked(&incoming.parts.headers) {
                return form.respond(&view, core, &incoming.parts.headers);
            }
            if core {
                groups::core_versions(plane.config.advertise)
            } else {
                groups::group_list(&view)
            }
        }
        ["api", version] => groups::resources(&table, "", version).ok_or_else(|| refuse(Status::no_such_path()))?,
        ["apis", group] => groups::group(&view, group).ok_or_else(|| refuse(Status::no_such_path()))?,
        ["apis", group, version] => {
            groups::resources(&table, group, version).ok_or_else(|| refuse(Status::no_such_path()))?
        }
        ["healthz" | "livez" | "readyz", ..] => {
            return Ok(health::serve(plane, &segments, incoming.query).await);
        }
        ["metrics"] => {
            return Ok(response(
                200,
                "text/plain; version=0.0.4; charset=utf-8",
                plane.metrics.text(plane),
            ));
        }
        ["debug", "api_priority_and_fairness", page] if plane.config.priority_and_fairness => {
            let details = incoming.query.text("includeRequestDetails").is_some();
            let page = crate::flow::page(&plane.flow, page, details).ok_or_else(|| refuse(Status::no_such_path()))?;
            return Ok(response(200, "text/plain; charset=utf-8", page));
        }
        ["openapi", ..] => return crate::openapi::serve(&plane.config.version, &view, &segments, incoming),
        [".well-known", "openid-configuration"] => {
            return published(issuer(plane), "application/json");
        }
        ["openid", "v1", "jwks"] => {
            let keys = issuer(plane).map(|_| plane.config.pki.tokens().jwks());
            return published(keys, "application/jwk-set+json");
        }
        _ => return Err(refuse(Status::no_such_path())),
    };
    let encoding =
        media::negotiate(&incoming.parts.headers, false, false).map_or(Encoding::Json, |media| media.encoding);
    // Discovery documents are small; clients that prefer protobuf take JSON too.
    let encoding = if encoding == Encoding::Protobuf {
        Encoding::Json
    } else {
        encoding
    };
    Ok(response(200, encoding.content_type(), encode(&document, encoding)?))
}

/// Whether something is served at a path, so that another method would be answered.
fn exists(segments: &[&str], view: &View<'_>, table: &Table) -> bool {
    match segments {
        [] | [""] | ["version" | "api" | "apis" | "metrics"] => true,
        ["healthz" | "livez" | "readyz", ..] | ["openapi", ..] => true,
        ["api", version] => groups::resources(table, "", version).is_some(),
        ["apis", group] => groups::group(view, group).is_some(),
        ["apis", group, version] => groups::resources(table, group, version).is_some(),
        [".well-known", "openid-configuration"] | ["openid", "v1", "jwks"] => true,
        _ => false,
    }
}

fn version(git_version: &str) -> Value {
    let mut numbers = git_version.trim_start_matches('v').split('.');
    json!({
        "major": numbers.next().unwrap_or("1"), "minor": numbers.next().unwrap_or_default(),
        "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": git_version, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": concat!("linux/", "amd64"),
    })
}

/// What OpenID Connect calls the metadata of who issues tokens; `None` where it is not published.
fn issuer(plane: &ControlPlane) -> Option<Value> {
    let pki = &plane.config.pki;
    let address = plane.config.advertise.to_string();
    pki.tokens()
        .openid_configuration(&address, pki.params().jwks_uri.as_deref())
}

/// A document about the issuer, which others may keep for an hour.
fn published(document: Option<Value>, content_type: &'static str) -> Result<Response<Body>, Refusal> {
    let document = document.ok_or_else(|| refuse(Status::no_such_path()))?;
    let mut answer = response(200, content_type, document.to_string());
    let kept = http::HeaderValue::from_static("public, max-age=3600");
    answer.headers_mut().insert(http::header::CACHE_CONTROL, kept);
    Ok(answer)
}

/// The list of paths at `/`.
fn paths(view: &View<'_>, with_issuer: bool) -> Value {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/apis/",
        "/healthz",
        "/livez",
        "/livez/ping",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/openid/v1/jwks",
        "/readyz",
        "/readyz/ping",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    if !with_issuer {
        paths.retain(|path| !path.starts_with("/.well-known/") && !path.starts_with("/openid/"));
    }
    for group in view.groups().iter().filter(|group| !group.name.is_empty()) {
        paths.push(format!("/apis/{}", group.name));
        for version in &group.versions {
            paths.push(format!("/apis/{}/{}", group.name, version.name));
        }
    }
    paths.sort();
    paths.dedup();
    json!({ "paths": paths })
}
