//! Streams to where containers run: logs, exec, attach, port-forward, and the three proxies.
//!
//! The API server decides whether and where to; what flows is not its business. Upgraded connections are
//! passed on byte for byte, everything else as it arrives.

pub mod backend;
mod connect;
pub mod links;
mod pods;
pub mod proxy;

use std::sync::Arc;

use http::Response;
use sampan_api::status::Status;
use sampan_kinds::Resource;

pub use backend::{Backends, forward, node_target};

use crate::body::Body;
use crate::control_plane::ControlPlane;
use crate::dispatch::Incoming;
use crate::rows::Row;
use crate::{Refusal, refuse};

/// A streaming subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Log,
    Exec,
    Attach,
    PortForward,
    Proxy,
}

impl Stream {
    pub fn of(row: &Row, subresource: &str) -> Option<Self> {
        if !row.spec.group.is_empty() {
            return None;
        }
        match (row.spec.plural, subresource) {
            ("pods", "log") => Some(Stream::Log),
            ("pods", "exec") => Some(Stream::Exec),
            ("pods", "attach") => Some(Stream::Attach),
            ("pods", "portforward") => Some(Stream::PortForward),
            ("pods" | "services" | "nodes", "proxy") => Some(Stream::Proxy),
            _ => None,
        }
    }
}

pub async fn serve(
    plane: &Arc<ControlPlane>,
    stream: Stream,
    row: &Arc<Row>,
    mut incoming: Incoming,
) -> Result<Response<Body>, Refusal> {
    let verbs = row
        .spec
        .subresource(&incoming.info.subresource)
        .map_or(&[][..], |sub| sub.verbs);
    let verb = incoming.info.verb.as_str();
    // A stream is a create (SPDY's POST) or a get (a WebSocket). A proxy takes every method, OPTIONS too, which is no verb.
    let options = stream == Stream::Proxy && incoming.parts.method == http::Method::OPTIONS;
    if !options && !verbs.contains(&verb) {
        return Err(refuse(Status::method_not_supported(
            row.spec.group,
            row.spec.plural,
            verb,
        )));
    }
    plane.registry.cache.caught_up().await;
    let (notes, admitted) = connect::admit(plane, stream, row, &mut incoming).await;
    if let Err(refused) = admitted {
        if notes.are_empty() {
            return Err(refused);
        }
        let mut response = crate::registry::reply::refusal(&refused, crate::request::Encoding::Json);
        crate::registry::reply::add_notes(&mut response, &notes);
        return Ok(response);
    }
    let commands = matches!(stream, Stream::Exec | Stream::Attach | Stream::PortForward);
    if commands && incoming.info.verb != "create" {
        // A WebSocket can only be asked for by GET. Whoever may merely read must not run commands by it.
        let Incoming {
            parts,
            info,
            query,
            user,
            ..
        } = &incoming;
        plane.authorize(user, info, "create", query, parts).await?;
    }
    let answered = match stream {
        Stream::Log => pods::log(plane, incoming).await,
        Stream::Exec | Stream::Attach | Stream::PortForward => pods::stream(plane, stream, incoming).await,
        Stream::Proxy => proxy::serve(plane, row.spec, incoming).await,
    };
    answered.map(|mut response| {
        crate::registry::reply::add_notes(&mut response, &notes);
        response
    })
}

/// The object at `path`, or a 404 in its resource's words.
fn find(plane: &ControlPlane, resource: &Resource, namespace: &str, name: &str) -> Result<sampan_api::Object, Refusal> {
    let path = if resource.namespaced {
        format!("{namespace}/{name}")
    } else {
        name.to_owned()
    };
    plane
        .registry
        .cache
        .storage(resource.storage_prefix)
        .and_then(|storage| storage.get(&path))
        .map(|entry| entry.object())
        .ok_or_else(|| refuse(Status::not_found(resource.group, resource.plural, name)))
}
