//! A small HTTP/1.1 client: one connection per [`Lane`], nothing shared, nothing decoded unless asked.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, BodyStream, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
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
        Ok(lines(response, lane))
    }
}

/// Cuts a body into lines. The lane is kept alive with it.
fn lines(response: Response<Incoming>, lane: Lane) -> impl Stream<Item = Result<Bytes>> {
    let body = BodyStream::new(response.into_body());
    futures::stream::unfold(
        (body, bytes::BytesMut::new(), lane),
        |(mut body, mut buffer, lane)| async move {
            let mut searched = 0;
            loop {
                if let Some(at) = buffer[searched..].iter().position(|&byte| byte == b'\n') {
                    let line = buffer.split_to(searched + at + 1).freeze();
                    return Some((Ok(line), (body, buffer, lane)));
                }
                searched = buffer.len();
                match body.next().await? {
                    Ok(frame) => buffer.extend_from_slice(frame.data_ref()?),
                    Err(error) => return Some((Err(error.into()), (body, buffer, lane))),
                }
            }
        },
    )
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

impl Lane {
    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let connection = &self.connection;
        let stream = tokio::net::TcpStream::connect((connection.host.as_str(), connection.port)).await?;
        stream.set_nodelay(true)?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&connection.tls));
        let stream = connector
            .connect(ServerName::try_from(connection.host.clone())?, stream)
            .await?;
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
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.connection.host)
            .header("accept", "application/json");
        if let Some(authorization) = &self.connection.authorization {
            request = request.header("authorization", authorization);
        }
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
