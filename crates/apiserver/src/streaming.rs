//! Streams to the node: logs, exec, attach, port-forward, and proxying.

use std::sync::Arc;

use http::Response;
use sampan_api::status::Status;
use sampan_pki::Pki;
use sampan_pki::tls::TlsError;

use crate::body::Body;
use crate::control_plane::ControlPlane;
use crate::dispatch::Incoming;
use crate::rows::Row;
use crate::{Refusal, refuse};

/// Connections to nodes.
pub struct NodeClient;

impl NodeClient {
    pub fn new(_pki: &Pki) -> Result<Self, TlsError> {
        Ok(NodeClient)
    }
}

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
    _plane: &Arc<ControlPlane>,
    _stream: Stream,
    _incoming: Incoming,
) -> Result<Response<Body>, Refusal> {
    Err(refuse(Status::unavailable("streams are not there yet")))
}
