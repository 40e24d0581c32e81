//! Passing a request on to an extension server.
//!
//! It goes as it came, with what names or proves the client replaced by the headers of the identity we established.
//! Answers come back as they are; a redirect of the server to itself leads the client back here and not to an address
//! it cannot reach. Failures are plain text in upstream's words, as they are not the extension server's.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, Method, Request, Response};
use sampan_api::status::Status;

use super::{Remote, identity};
use crate::body::Body;
use crate::control_plane::ControlPlane;
use crate::dispatch::Incoming;
use crate::front::{AUDIT_ID, AuditId, Peer as Client};
use crate::outbound::{Error, Peer};
use crate::registry::reply::response;
use crate::streaming::backend::{remove_hop_by_hop, verbatim};
use crate::streaming::links::Links;
use crate::streaming::proxy::append_forwarded_for;
use crate::{Refusal, refuse};

/// Discovery must not wait long for one that is slow.
const DISCOVERY: Duration = Duration::from_secs(5);
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

pub async fn serve(plane: &Arc<ControlPlane>, remote: &Remote, incoming: Incoming) -> Result<Response<Body>, Refusal> {
    if !remote.is_available() {
        return Ok(failure(503, "service unavailable"));
    }
    let peer = match remote.peer() {
        Ok(peer) => peer,
        Err(why) => return Ok(failure(500, &why)),
    };
    let Incoming {
        mut parts,
        body,
        info,
        user,
        ..
    } = incoming;
    let path = parts
        .uri
        .path_and_query()
        .map_or_else(|| info.path.clone(), |path| path.as_str().to_owned());
    let own = own_headers(&parts, &user, &peer)?;
    identity::strip(&mut parts.headers);
    if let Some(Client(client)) = parts.extensions.get::<Client>() {
        append_forwarded_for(&mut parts.headers, *client);
    }
    for name in own.keys() {
        parts.headers.remove(name);
    }
    if sampan_streams::is_upgrade(&parts.headers) {
        let mut request = Request::from_parts(parts, body);
        return Ok(upgrade(plane, &peer, &mut request, &path, own).await);
    }
    remove_hop_by_hop(&mut parts.headers);
    parts.headers.remove(http::header::EXPECT);
    parts.headers.extend(own);
    parts.uri = path
        .parse()
        .map_err(|error: http::uri::InvalidUri| refuse(Status::bad_request(error.to_string())))?;
    parts.version = http::Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    let sending = send(&peer, Request::from_parts(parts, body));
    let answer = if info.is_resource {
        sending.await
    } else {
        tokio::time::timeout(DISCOVERY, sending)
            .await
            .unwrap_or(Err(Error::Deadline))
    };
    match answer {
        Ok(response) => Ok(kept_here(verbatim(response), &peer)),
        Err(error @ (Error::NoService(_) | Error::NoPort { .. } | Error::NoEndpoints(_))) => {
            tracing::debug!(name = remote.name(), %error, "an extension server cannot be found");
            Ok(failure(503, "service unavailable"))
        }
        Err(error) => Ok(failure(503, &format!("error trying to reach service: {error}"))),
    }
}

/// What we say on our own: on whose behalf, and how the request came.
fn own_headers(parts: &http::request::Parts, user: &sampan_auth::UserInfo, peer: &Peer) -> Result<HeaderMap, Refusal> {
    let unsayable = |error: http::Error| refuse(Status::internal(format!("the user cannot be named: {error}")));
    let mut own = identity::headers(user).map_err(unsayable)?;
    let text = |text: &str| HeaderValue::from_str(text).map_err(|error| unsayable(error.into()));
    let authority = peer.place().authority();
    own.insert(X_FORWARDED_URI, text(parts.uri.path())?);
    own.insert(X_FORWARDED_HOST, text(&authority)?);
    own.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
    if let Some(AuditId(id)) = parts.extensions.get::<AuditId>() {
        own.insert(AUDIT_ID, id.clone());
    }
    Ok(own)
}

/// Sends a request; one that can be repeated is, when a kept connection turns out to have ended.
async fn send(peer: &Arc<Peer>, request: Request<Body>) -> Result<Response<Body>, Error> {
    let repeatable = matches!(*request.method(), Method::GET | Method::HEAD) && request.body().is_empty();
    if !repeatable {
        return peer.send(request).await;
    }
    let copy = |request: &Request<Body>| {
        let mut copy = Request::new(Body::Empty);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        copy
    };
    match peer.send(copy(&request)).await {
        Err(Error::Broken(_)) => peer.send(copy(&request)).await,
        other => other,
    }
}

async fn upgrade(
    plane: &ControlPlane,
    peer: &Peer,
    request: &mut Request<Body>,
    path: &str,
    own: HeaderMap,
) -> Response<Body> {
    let io = match peer.connect().await {
        Ok(io) => io,
        Err(error) => return failure(503, &format!("error dialing backend: {error}")),
    };
    let authority = peer.place().authority();
    match sampan_streams::proxy_upgrade_with(request, &authority, path, own, io, &plane.tasks).await {
        Ok(response) => {
            let status = response.status().as_u16();
            if status != 101 && status < 400 {
                return failure(503, &format!("invalid upgrade response: status code {status}"));
            }
            verbatim(response.map(Body::wrap))
        }
        Err(error) => failure(503, &error.to_string()),
    }
}

/// A redirect of the server to itself, as a path here.
fn kept_here(mut response: Response<Body>, peer: &Peer) -> Response<Body> {
    let links = Links {
        base: String::new(),
        backend: peer.place().authority(),
        asked: String::new(),
    };
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|location| location.to_str().ok());
    let moved = location.and_then(|location| links.rewritten(location));
    if let Some(moved) = moved.and_then(|moved| HeaderValue::from_str(&moved).ok()) {
        response.headers_mut().insert(LOCATION, moved);
    }
    response
}

/// A failure of ours.
fn failure(code: u16, why: &str) -> Response<Body> {
    let mut response = response(code, "text/plain; charset=utf-8", format!("{why}\n"));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
