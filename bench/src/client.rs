//! A small HTTP client: one HTTP/1.1 connection per [`Lane`], nothing shared, nothing decoded unless asked. Watches may
//! also share HTTP/2 connections, as upstream's clients do.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, BodyStream, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use serde_json::Value;

use crate::Result;
use crate::kubeconfig::{self, Connection};

/// Knows how to connect; cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Connection>);

/// One connection, for one request at a time; reconnects when the server closed it.
pub struct Lane {
    connection: Arc<Connection>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub fn new(kubeconfig: &Path) -> Result<Self> {
        Ok(Client(Arc::new(kubeconfig::read(kubeconfig)?)))
    }
    pub fn lane(&self) -> Lane {
        Lane {
            connection: Arc::clone(&self.0),
            sender: None,
        }
    }
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.lane().json(Method::GET, path, None).await
    }
    /// Follows a watch; each item is one line.
    pub async fn watch(&self, path: &str) -> Result<impl Stream<Item = Result<Bytes>> + use<>> {
        let mut lane = self.lane();
        let response = lane.send(Method::GET, path, None).await?;
        let response = checked(response, path).await?;
        Ok(lines(response, lane.sender.take().map(Kept::One)))
    }
    /// The same watch many times, so many of them on each HTTP/2 connection.
    pub async fn watches(
        &self,
        path: &str,
        count: usize,
        each: usize,
    ) -> Result<Vec<impl Stream<Item = Result<Bytes>> + use<>>> {
        let mut watches = Vec::with_capacity(count);
        while watches.len() < count {
            let sender = self.shared().await?;
            for _ in 0..each.clamp(1, count - watches.len()) {
                let uri = format!("https://{}:{}{path}", self.0.host, self.0.port);
                let request = self.0.request(Method::GET, &uri).body(Full::default())?;
                let response = checked(sender.clone().send_request(request).await?, path).await?;
                watches.push(lines(response, Some(Kept::Shared(sender.clone()))));
            }
        }
        Ok(watches)
    }
    async fn shared(&self) -> Result<http2::SendRequest<Full<Bytes>>> {
        let stream = self.0.connect(b"h2").await?;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(64 << 20)
            .handshake(TokioIo::new(stream))
            .await?;
        #[allow(clippy::disallowed_methods)]
        drop(tokio::spawn(driver));
        Ok(sender)
    }
}

/// What keeps a watch's connection open.
#[allow(dead_code)]
enum Kept {
    One(SendRequest<Full<Bytes>>),
    Shared(http2::SendRequest<Full<Bytes>>),
}

/// Cuts a body into lines. The connection is kept alive with it. Lines of one frame are not copied.
fn lines(response: Response<Incoming>, kept: Option<Kept>) -> impl Stream<Item = Result<Bytes>> {
    let body = BodyStream::new(response.into_body());
    futures::stream::unfold((body, Bytes::new(), kept), |(mut body, mut rest, kept)| async move {
        let mut searched = 0;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &rest[searched..]) {
                let line = rest.split_to(searched + at + 1);
                return Some((Ok(line), (body, rest, kept)));
            }
            searched = rest.len();
            match body.next().await? {
                Ok(frame) => {
                    let data = frame.into_data().ok()?;
                    rest = if rest.is_empty() {
                        data
                    } else {
                        [rest, data].concat().into()
                    };
                }
                Err(error) => return Some((Err(error.into()), (body, rest, kept))),
            }
        }
    })
}

async fn checked(response: Response<Incoming>, path: &str) -> Result<Response<Incoming>> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Err(Refused {
        status,
        text: format!("{path}: {status}: {}", String::from_utf8_lossy(&body)),
    }
    .into())
}

/// The server answered with an error.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Refused {
    pub status: StatusCode,
    text: String,
}

impl Connection {
    async fn connect(&self, protocol: &[u8]) -> Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let stream = tokio::net::TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols = vec![protocol.to_vec()];
        Ok(tokio_rustls::TlsConnector::from(Arc::new(tls))
            .connect(ServerName::try_from(self.host.clone())?, stream)
            .await?)
    }

    fn request(&self, method: Method, uri: &str) -> http::request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("accept", "application/json");
        match &self.authorization {
            Some(authorization) => request.header("authorization", authorization),
            None => request,
        }
    }
}

impl Lane {
    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = self.connection.connect(b"http/1.1").await?;
        let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // A load generator has no tasks worth supervising: the driver ends with its connection, and whoever uses the
        // connection is told why.
        #[allow(clippy::disallowed_methods)]
        drop(tokio::spawn(driver));
        Ok(sender)
    }

    /// Sends and returns the response with its body still to be read.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Response<Incoming>> {
        let mut kept = self.sender.take();
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let request = self
            .connection
            .request(method, path)
            .header("host", &self.connection.host);
        let request = match body {
            None => request.body(Full::default())?,
            Some((kind, bytes)) => request.header("content-type", kind).body(Full::new(bytes))?,
        };
        let response = tokio::time::timeout(Duration::from_secs(120), sender.send_request(request)).await??;
        self.sender = Some(sender);
        Ok(response)
    }

    /// Sends, reads the body through and counts its bytes.
    pub async fn count(&mut self, method: Method, path: &str, body: Option<(&str, Bytes)>) -> Result<usize> {
        let response = checked(self.send(method, path, body).await?, path).await?;
        let mut body = response.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(bytes)
    }

    pub async fn json(&mut self, method: Method, path: &str, body: Option<(&str, Bytes)>) -> Result<Value> {
        let response = checked(self.send(method, path, body).await?, path).await?;
        let bytes = response.into_body().collect().await?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| format!("{path}: {error}").into())
    }
}

pub const JSON: &str = "application/json";
pub const MERGE: &str = "application/merge-patch+json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
