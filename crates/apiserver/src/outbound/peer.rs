//! One server on the other side, and the connections to it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rand::seq::SliceRandom;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use sampan_tasks::{OnExit, Tasks};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::resolve::{self, Found};
use super::{Error, Place};
use crate::admission::WeakReader;
use crate::body::Body;
use crate::sync::lock;

/// For a connection, where the caller sets no tighter bound.
const CONNECT: Duration = Duration::from_secs(30);
/// Connections kept open for later, and how long.
const IDLE: usize = 32;
const IDLE_TIME: Duration = Duration::from_secs(90);

/// A connection without HTTP on it, for upgrades and streams.
pub type Stream = tokio_rustls::client::TlsStream<TcpStream>;

/// One server that is called.
pub struct Peer {
    place: Place,
    authority: String,
    host: HeaderValue,
    name: ServerName<'static>,
    tls: TlsConnector,
    reader: WeakReader,
    tasks: Tasks,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    address: SocketAddr,
    since: Instant,
    sender: SendRequest<Body>,
}

/// A whole request that waits for a whole answer.
#[derive(Clone, Debug)]
pub struct Exchange<'a> {
    pub method: Method,
    /// Path and query.
    pub path: &'a str,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// For everything, from finding the address to the last byte of the answer.
    pub timeout: Duration,
    /// The largest answer.
    pub limit: usize,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Peer {
    pub(super) fn new(place: Place, tls: Arc<ClientConfig>, reader: WeakReader, tasks: Tasks) -> Result<Self, Error> {
        let authority = place.authority();
        let unusable = |why: String| Error::Unusable(format!("{authority}: {why}"));
        Ok(Peer {
            host: HeaderValue::from_str(&authority).map_err(|error| unusable(error.to_string()))?,
            name: ServerName::try_from(place.server_name()).map_err(|error| unusable(error.to_string()))?,
            tls: TlsConnector::from(tls),
            authority,
            place,
            reader,
            tasks,
            idle: Mutex::default(),
        })
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// `https://host:port` and the path, for messages.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.authority)
    }

    /// Sends a request and reads the whole answer.
    pub async fn call(&self, exchange: &Exchange<'_>) -> Result<Answer, Error> {
        let begun = AtomicBool::new(false);
        match tokio::time::timeout(exchange.timeout, self.exchange(exchange, &begun)).await {
            Ok(answer) => answer,
            Err(_) if begun.load(Ordering::Relaxed) => Err(Error::DeadlineReading),
            Err(_) => Err(Error::Deadline),
        }
    }

    async fn exchange(&self, exchange: &Exchange<'_>, begun: &AtomicBool) -> Result<Answer, Error> {
        let request = || -> Result<Request<Body>, Error> {
            let mut request = Request::new(Body::from(exchange.body.clone()));
            *request.method_mut() = exchange.method.clone();
            *request.headers_mut() = exchange.headers.clone();
            *request.uri_mut() = uri(exchange.path)?;
            Ok(request)
        };
        let first = self.start(request()?, true).await;
        let (response, sender, address) = match first {
            // The server closed a connection we had kept; such calls are made to be repeatable.
            Err((Error::Broken(_), true)) => self.start(request()?, false).await.map_err(|(error, _)| error)?,
            other => other.map_err(|(error, _)| error)?,
        };
        begun.store(true, Ordering::Relaxed);
        let (parts, body) = response.into_parts();
        let body = match Limited::new(body, exchange.limit).collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(Error::TooLarge(exchange.limit)),
            Err(_) => return Err(Error::Broken("unexpected EOF")),
        };
        self.keep(sender, address).await;
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    /// Sends a request with a body of any length and answers as soon as the other side begins to. Bounds are the
    /// caller's business.
    pub async fn send(self: &Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Error> {
        let (response, sender, address) = self.start(request, true).await.map_err(|(error, _)| error)?;
        let peer = self.clone();
        self.tasks
            .spawn_until_drain("outbound-answer", OnExit::Expected, async move {
                peer.keep(sender, address).await;
            });
        Ok(response.map(Body::incoming))
    }

    /// A connection for an upgrade.
    pub async fn connect(&self) -> Result<Stream, Error> {
        let connecting = async {
            let addresses = self.addresses().await?;
            self.dial(&addresses).await.map(|(stream, _)| stream)
        };
        tokio::time::timeout(CONNECT, connecting)
            .await
            .unwrap_or(Err(Error::Deadline))
    }

    /// The request up to the head of its answer. An error says whether it happened on a connection used before.
    async fn start(
        &self,
        mut request: Request<Body>,
        reuse: bool,
    ) -> Result<(Response<hyper::body::Incoming>, SendRequest<Body>, SocketAddr), (Error, bool)> {
        request.headers_mut().insert(HOST, self.host.clone());
        let fresh = |error| (error, false);
        let addresses = self.addresses().await.map_err(fresh)?;
        let mut kept = if reuse { self.take(&addresses) } else { None };
        loop {
            let reused = kept.is_some();
            let (mut sender, address) = match kept.take() {
                Some(idle) => (idle.sender, idle.address),
                None => self.open(&addresses).await.map_err(fresh)?,
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender, address)),
                Err(mut failed) => match (reused, failed.take_message()) {
                    // Nothing was sent: the connection had ended.
                    (true, Some(unsent)) => {
                        request = unsent;
                        kept = self.take(&addresses);
                    }
                    _ => return Err((Error::of_hyper(failed.error()), reused)),
                },
            }
        }
    }

    /// An open connection to one of the addresses; those to others are closed.
    fn take(&self, addresses: &[SocketAddr]) -> Option<Idle> {
        let mut idle = lock(&self.idle);
        idle.retain(|one| {
            !one.sender.is_closed() && one.since.elapsed() < IDLE_TIME && addresses.contains(&one.address)
        });
        idle.pop()
    }

    /// Keeps a connection once its answer has been read.
    async fn keep(&self, mut sender: SendRequest<Body>, address: SocketAddr) {
        if sender.ready().await.is_err() {
            return;
        }
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE {
            idle.push(Idle {
                address,
                since: Instant::now(),
                sender,
            });
        }
    }

    async fn open(&self, addresses: &[SocketAddr]) -> Result<(SendRequest<Body>, SocketAddr), Error> {
        let connecting = async {
            let (stream, address) = self.dial(addresses).await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| Error::of_hyper(&error))?;
            self.tasks
                .spawn_until_drain("outbound-connection", OnExit::Expected, async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "an outbound connection failed");
                    }
                });
            Ok((sender, address))
        };
        tokio::time::timeout(CONNECT, connecting)
            .await
            .unwrap_or(Err(Error::Deadline))
    }

    /// Connects to the first address that lets us.
    async fn dial(&self, addresses: &[SocketAddr]) -> Result<(Stream, SocketAddr), Error> {
        let mut failure = Error::NoEndpoints(self.authority.clone());
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(|error| Error::of_io(&error))?;
                    let stream = self
                        .tls
                        .connect(self.name.clone(), stream)
                        .await
                        .map_err(|error| Error::of_io(&error))?;
                    return Ok((stream, *address));
                }
                Err(error) => failure = Error::dial(*address, &error),
            }
        }
        Err(failure)
    }

    /// Where to connect, in random order.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, Error> {
        let gone = || Error::NoService(self.authority.clone());
        let (host, port) = match &self.place {
            Place::Host { host, port } => (host.clone(), *port),
            Place::Service { namespace, name, port } => {
                match resolve::service(&self.reader.upgrade().ok_or_else(gone)?, namespace, name, *port)? {
                    Found::Elsewhere(host, port) => (host, port),
                    Found::Addresses(found) => {
                        let mut addresses: Vec<SocketAddr> = found
                            .iter()
                            .filter_map(|(address, port)| Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, *port)))
                            .collect();
                        if addresses.is_empty() {
                            return Err(Error::NoEndpoints(name.clone()));
                        }
                        addresses.shuffle(&mut rand::rng());
                        return Ok(addresses);
                    }
                }
            }
        };
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let lookup = |why: String| Error::Lookup {
            host: host.clone(),
            why,
        };
        let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), port))
            .await
            .map_err(|_| lookup("no such host".into()))?
            .collect();
        if found.is_empty() {
            return Err(lookup("no such host".into()));
        }
        Ok(found)
    }
}

fn uri(path: &str) -> Result<Uri, Error> {
    path.parse()
        .map_err(|error| Error::Unusable(format!("the path {path:?} cannot be used: {error}")))
}
