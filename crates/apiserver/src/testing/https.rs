//! An HTTPS server for tests, with a certificate of the cluster's authority and a function for its answers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use sampan_pki::tls::{self, ClientVerifier};
use sampan_pki::{LeafSpec, Pki};
use sampan_tasks::{OnExit, Tasks};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::AnyError;
use crate::body::{Body, BoxError};

/// What answers: the request's head and body in, a response out. An error breaks the connection off.
pub type Handler = Arc<dyn Fn(Parts, Bytes) -> BoxFuture<'static, Result<Response<Body>, BoxError>> + Send + Sync>;

/// A running server; it ends with its tasks.
pub struct HttpsServer {
    pub address: SocketAddr,
}

impl HttpsServer {
    /// Starts on a loopback port as `names` (and 127.0.0.1).
    pub async fn start(pki: &Pki, tasks: &Tasks, names: &[&str], handler: Handler) -> Result<Self, AnyError> {
        Self::start_on(IpAddr::V4(Ipv4Addr::LOCALHOST), pki, tasks, names, handler).await
    }

    /// The same on an address of this machine: endpoints of Services may not be loopback addresses.
    pub async fn start_on(
        ip: IpAddr,
        pki: &Pki,
        tasks: &Tasks,
        names: &[&str],
        handler: Handler,
    ) -> Result<Self, AnyError> {
        let identity = pki.issue(&LeafSpec::server("test", owned(names), [ip]))?;
        let tls = tls::server_config(&identity, &ClientVerifier::new(pki.ca())?)?;
        Self::serve(ip, tls, tasks, handler).await
    }

    /// Lets in nobody without a client certificate of `clients`.
    pub async fn start_strict(
        clients: &CertificateDer<'static>,
        pki: &Pki,
        tasks: &Tasks,
        names: &[&str],
        handler: Handler,
    ) -> Result<Self, AnyError> {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let identity = pki.issue(&LeafSpec::server("test", owned(names), [ip]))?;
        let tls = tls::strict_server_config(&identity, &ClientVerifier::new(clients)?)?;
        Self::serve(ip, tls, tasks, handler).await
    }

    async fn serve(ip: IpAddr, tls: Arc<ServerConfig>, tasks: &Tasks, handler: Handler) -> Result<Self, AnyError> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let address = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(tls);
        let spawner = tasks.clone();
        tasks.spawn_until_drain("test-https", OnExit::Expected, async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, handler) = (acceptor.clone(), handler.clone());
                spawner.spawn_until_drain("test-https-connection", OnExit::Expected, async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let handler = handler.clone();
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
                            handler(parts, body).await.map_err(std::io::Error::other)
                        }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    if let Err(error) = builder
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await
                    {
                        tracing::debug!(%error, "a connection of a test's server ended");
                    }
                });
            }
        });
        Ok(HttpsServer { address })
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
