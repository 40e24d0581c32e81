//! Connections to nodes (TLS with the server's own certificate) and to whatever a proxy path names.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use sampan_api::Object;
use sampan_api::status::Status;
use sampan_pki::Pki;
use sampan_pki::tls::{self, TlsError};
use sampan_tasks::{OnExit, Tasks};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::Body;
use crate::{Refusal, refuse};

const CONNECT: Duration = Duration::from_secs(10);
const DEFAULT_NODE_PORT: u16 = 10_250;

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Where a request goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub tls: Trust,
    pub host: String,
    pub port: u16,
    /// Path and query.
    pub path: String,
}

/// How the other side is talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    Plain,
    /// A node: its certificate must be of the cluster's authority.
    Node,
}

/// Opens connections to backends.
pub struct NodeClient {
    tls: TlsConnector,
}

impl NodeClient {
    pub fn new(pki: &Pki) -> Result<Self, TlsError> {
        let config: Arc<ClientConfig> = tls::client_config(pki.ca(), Some(pki.kubelet_client()), &["http/1.1"])?;
        Ok(NodeClient {
            tls: TlsConnector::from(config),
        })
    }

    pub async fn connect(&self, target: &Target) -> Result<Box<dyn Io>, Refusal> {
        let failed = |why: String| {
            refuse(Status::internal(format!(
                "error dialing backend: {}:{}: {why}",
                target.host, target.port
            )))
        };
        let connecting = async {
            let stream = TcpStream::connect((target.host.as_str(), target.port))
                .await
                .map_err(|error| error.to_string())?;
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            let stream: Box<dyn Io> = match target.tls {
                Trust::Plain => Box::new(stream),
                Trust::Node => {
                    let name = ServerName::try_from(target.host.clone()).map_err(|error| error.to_string())?;
                    Box::new(
                        self.tls
                            .connect(name, stream)
                            .await
                            .map_err(|error| error.to_string())?,
                    )
                }
            };
            Ok::<_, String>(stream)
        };
        match tokio::time::timeout(CONNECT, connecting).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(why)) => Err(failed(why)),
            Err(_) => Err(failed("timed out".into())),
        }
    }
}

/// Passes a request on and answers with what comes back, upgraded connections included.
pub async fn forward(
    client: &NodeClient,
    tasks: &Tasks,
    mut request: Request<Body>,
    target: &Target,
) -> Result<Response<Body>, Refusal> {
    let io = client.connect(target).await?;
    let host = host_header(target);
    if sampan_streams::is_upgrade(request.headers()) {
        let response = sampan_streams::proxy_upgrade(&mut request, &host, &target.path, io, tasks)
            .await
            .map_err(|error| refuse(Status::internal(format!("error dialing backend: {error}"))))?;
        return Ok(response.map(Body::wrap));
    }
    let failed =
        |error: &dyn std::fmt::Display| refuse(Status::unavailable(format!("error trying to reach service: {error}")));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .map_err(|error| failed(&error))?;
    tasks.spawn_until_drain("proxied request", OnExit::Expected, async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a backend failed");
        }
    });
    let (mut parts, body) = request.into_parts();
    parts.uri = target
        .path
        .parse::<Uri>()
        .map_err(|error| refuse(Status::bad_request(error.to_string())))?;
    parts.version = http::Version::HTTP_11;
    remove_hop_by_hop(&mut parts.headers);
    parts
        .headers
        .insert(HOST, HeaderValue::from_str(&host).map_err(|error| failed(&error))?);
    let response = sender
        .send_request(Request::from_parts(parts, body))
        .await
        .map_err(|error| failed(&error))?;
    let (mut parts, body) = response.into_parts();
    remove_hop_by_hop(&mut parts.headers);
    Ok(Response::from_parts(parts, Body::incoming(body)))
}

fn host_header(target: &Target) -> String {
    match target.host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{}", target.port),
        _ => format!("{}:{}", target.host, target.port),
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    const NAMES: [HeaderName; 5] = [CONNECTION, TRANSFER_ENCODING, UPGRADE, TRAILER, TE];
    for name in NAMES {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// Where a node's server listens.
pub fn node_target(node: &Object, path: String) -> Result<Target, Refusal> {
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
    let address = |kind: &str| {
        addresses.into_iter().flatten().find_map(|address| {
            (address.get("type").and_then(Value::as_str) == Some(kind))
                .then(|| address.get("address").and_then(Value::as_str))
                .flatten()
        })
    };
    let host = ["InternalIP", "Hostname", "ExternalIP"]
        .iter()
        .find_map(|kind| address(kind))
        .ok_or_else(|| {
            refuse(Status::unavailable(format!(
                "no preferred addresses found for node {}",
                sampan_api::meta::name(node)
            )))
        })?;
    let port = node
        .pointer("/status/daemonEndpoints/kubeletEndpoint/Port")
        .and_then(Value::as_u64)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .unwrap_or(DEFAULT_NODE_PORT);
    Ok(Target {
        tls: Trust::Node,
        host: host.to_owned(),
        port,
        path,
    })
}
