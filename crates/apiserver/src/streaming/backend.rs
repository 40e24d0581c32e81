//! Connections to nodes (TLS with the server's own certificate) and to whatever a proxy path names.
//!
//! A request is passed on over a connection of its own. Nothing is waited for longer than for the connection:
//! what flows over it, and for how long, is between the client and the backend. When the client goes away, the
//! connection to the backend goes too. Failures are told in the words Go's client has for them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, EXPECT, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use sampan_api::Object;
use sampan_api::status::Status;
use sampan_pki::Pki;
use sampan_pki::tls::TlsError;
use sampan_tasks::{OnExit, Tasks};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::Body;
use crate::compress::Verbatim;
use crate::{Refusal, outbound, refuse};

const CONNECT: Duration = Duration::from_secs(30);
const DEFAULT_NODE_PORT: u16 = 10_250;
/// Of a backend's answer.
const MAX_HEADERS: usize = 500;

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

impl Target {
    /// `host:port`
    pub fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }
}

/// How the other side is talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    Plain,
    /// A node: its certificate must be of the cluster's authority.
    Node,
    /// TLS without a question: Pods have no certificate anybody could verify.
    Anyone,
}

/// Why a request did not come through.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No connection.
    #[error("{0}")]
    Dial(String),
    /// A connection, but no answer on it.
    #[error("{0}")]
    Answer(String),
    /// The address or a header cannot be sent.
    #[error("{0}")]
    Request(String),
}

impl Failure {
    /// As the proxies tell it.
    pub fn unreachable(&self) -> Refusal {
        refuse(match self {
            Failure::Request(why) => Status::bad_request(why),
            other => Status::unavailable(format!("error trying to reach service: {other}")),
        })
    }

    /// As exec and its relatives tell it.
    pub fn dialing(&self) -> Refusal {
        refuse(match self {
            Failure::Request(why) => Status::bad_request(why),
            Failure::Dial(why) => Status::new(500, "", format!("error dialing backend: {why}")),
            Failure::Answer(why) => Status::new(500, "", why.clone()),
        })
    }

    /// As reading logs tells it.
    pub fn getting(&self, target: &Target) -> Refusal {
        refuse(match self {
            Failure::Request(why) => Status::bad_request(why),
            other => Status::new(
                500,
                "",
                format!("Get \"https://{}{}\": {other}", target.authority(), target.path),
            ),
        })
    }
}

/// Opens connections to backends.
pub struct Backends {
    pki: Arc<Pki>,
    anyone: TlsConnector,
}

impl Backends {
    pub fn new(pki: Arc<Pki>) -> Result<Self, TlsError> {
        Ok(Backends {
            pki,
            anyone: TlsConnector::from(outbound::unverified().map_err(|error| TlsError::Authority(error.to_string()))?),
        })
    }

    pub async fn connect(&self, target: &Target) -> Result<Box<dyn Io>, Failure> {
        let address = target.authority();
        let connecting = async {
            let stream = TcpStream::connect((target.host.as_str(), target.port))
                .await
                .map_err(|error| Failure::Dial(dial_words(&address, &error)))?;
            stream
                .set_nodelay(true)
                .map_err(|error| Failure::Dial(dial_words(&address, &error)))?;
            let tls = match target.tls {
                Trust::Plain => return Ok(Box::new(stream) as Box<dyn Io>),
                Trust::Node => TlsConnector::from(self.pki.node_client_config()),
                Trust::Anyone => self.anyone.clone(),
            };
            let name = ServerName::try_from(target.host.clone()).map_err(|error| Failure::Dial(error.to_string()))?;
            let stream = tls
                .connect(name, stream)
                .await
                .map_err(|error| Failure::Dial(tls_words(&error)))?;
            Ok(Box::new(stream) as Box<dyn Io>)
        };
        tokio::time::timeout(CONNECT, connecting)
            .await
            .unwrap_or_else(|_| Err(Failure::Dial(format!("dial tcp {address}: i/o timeout"))))
    }
}

fn dial_words(address: &str, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        _ => error.to_string(),
    };
    match address.parse::<SocketAddr>() {
        Ok(_) => format!("dial tcp {address}: connect: {why}"),
        Err(_) => format!("dial tcp: lookup {address}: {why}"),
    }
}

fn tls_words(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            "http: server gave HTTP response to HTTPS client".to_owned()
        }
        Some(rustls::Error::InvalidCertificate(why)) => format!("tls: failed to verify certificate: x509: {why}"),
        Some(rustls::Error::AlertReceived(alert)) => format!("remote error: tls: {alert:?}"),
        Some(other) => format!("tls: {other}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        None => error.to_string(),
    }
}

/// Why there is no answer, as Go would say.
fn answer_words(error: &hyper::Error) -> String {
    if error.is_incomplete_message() {
        return "EOF".to_owned();
    }
    if error.is_parse() {
        return "net/http: HTTP/1.x transport connection broken: malformed HTTP response".to_owned();
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<io::Error>() {
            return match cause.kind() {
                io::ErrorKind::ConnectionReset => "read: connection reset by peer".to_owned(),
                io::ErrorKind::BrokenPipe => "write: broken pipe".to_owned(),
                io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
                _ => cause.to_string(),
            };
        }
        source = cause.source();
    }
    error.to_string()
}

/// Passes a request on, with `host` as its `Host`, and answers with what comes back, upgraded connections included.
pub async fn forward(
    backends: &Backends,
    tasks: &Tasks,
    mut request: Request<Body>,
    target: &Target,
    host: &str,
) -> Result<Response<Body>, Failure> {
    let io = backends.connect(target).await?;
    if sampan_streams::is_upgrade(request.headers()) {
        let response = sampan_streams::proxy_upgrade(&mut request, host, &target.path, io, tasks)
            .await
            .map_err(|error| Failure::Answer(error.to_string()))?;
        return Ok(response.map(Body::wrap));
    }
    let answer = |error: &hyper::Error| Failure::Answer(answer_words(error));
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| answer(&error))?;
    tasks.spawn_until_drain("proxied request", OnExit::Expected, async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a backend failed");
        }
    });
    let (mut parts, body) = request.into_parts();
    parts.uri = target
        .path
        .parse::<Uri>()
        .map_err(|error| Failure::Request(error.to_string()))?;
    parts.version = http::Version::HTTP_11;
    remove_hop_by_hop(&mut parts.headers);
    // The front has answered that one itself.
    parts.headers.remove(EXPECT);
    let host = HeaderValue::from_str(host).map_err(|error| Failure::Request(error.to_string()))?;
    parts.headers.insert(HOST, host);
    let response = sender
        .send_request(Request::from_parts(parts, body))
        .await
        .map_err(|error| answer(&error))?;
    Ok(verbatim(response.map(Body::incoming)))
}

/// A backend's answer, without what is about its own connection, to be sent as it is.
pub fn verbatim(mut response: Response<Body>) -> Response<Body> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        remove_hop_by_hop(response.headers_mut());
    }
    response.extensions_mut().insert(Verbatim);
    *response.version_mut() = http::Version::HTTP_11;
    response
}

/// Takes away what is about one connection only: the fixed list and whatever `Connection` names.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    const NAMES: [HeaderName; 3] = [CONNECTION, TRANSFER_ENCODING, UPGRADE];
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&NAMES).filter(|name| **name != TRAILER) {
        headers.remove(name);
    }
    for name in [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
    ] {
        headers.remove(name);
    }
    // A client that takes trailers may go on saying so; nothing else about transfer codings passes.
    let trailers = headers
        .get_all(TE)
        .iter()
        .any(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
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
