//! The server of a role's own port.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use sampan_tasks::{OnExit, Tasks};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::Component;
use super::access::{Access, Refusal};

pub struct Server {
    pub component: Component,
    pub access: Access,
}

type Answer = Response<Full<Bytes>>;

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-cache, private"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    response
}

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn start(server: Arc<Server>, listener: TcpListener, tls: Arc<ServerConfig>, tasks: &Tasks) {
    let spawner = tasks.clone();
    tasks.spawn_until_drain("component port", OnExit::Critical, async move {
        let acceptor = TlsAcceptor::from(tls);
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (server, acceptor) = (Arc::clone(&server), acceptor.clone());
                    spawner.spawn_until_drain("component port connection", OnExit::Expected, async move {
                        connection(server, stream, acceptor).await;
                    });
                }
                Err(error) => {
                    // Usually too many open files: give others time to close some.
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
}

async fn connection(server: Arc<Server>, stream: TcpStream, acceptor: TlsAcceptor) {
    let stream = match tokio::time::timeout(Duration::from_secs(10), acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return,
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain: Arc<[CertificateDer<'static>]> = chain.iter().map(|der| der.clone().into_owned()).collect();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (server, chain) = (Arc::clone(&server), chain.clone());
        async move { Ok::<_, Infallible>(server.answer(&request, &chain).await) }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection broke");
    }
}

impl Server {
    pub async fn answer<B>(&self, request: &Request<B>, chain: &[CertificateDer<'_>]) -> Answer {
        if let Err(Refusal(code, message)) = self.access.check(request, chain).await {
            let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": message, "reason": reason, "details": {}, "code": code.as_u16(),
            });
            return answer(code, "application/json", status.to_string());
        }
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        let path = request.uri().path();
        match path {
            _ if !read => answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "405 method not allowed\n"),
            "/metrics" => answer(StatusCode::OK, METRICS, (self.component.metrics)()),
            "/configz" => {
                let (name, document) = &self.component.configuration;
                answer(StatusCode::OK, "application/json", json!({*name: document}).to_string())
            }
            _ => match self.health(path, request.uri().query().unwrap_or_default()) {
                Some(health) => health,
                None => answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n"),
            },
        }
    }

    /// `/healthz`, `/livez` and `/readyz`, whole or one check of them.
    fn health(&self, path: &str, query: &str) -> Option<Answer> {
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let which = parts.next()?;
        let one = parts.next().filter(|name| !name.is_empty());
        let checks = self.component.checks.iter().filter(|check| match which {
            "healthz" => !check.only_ready,
            "readyz" => true,
            _ => false,
        });
        if !matches!(which, "healthz" | "livez" | "readyz") {
            return None;
        }
        let results = checks.map(|check| (check.name, (check.well)()));
        let results: Vec<(&str, bool)> = [("ping", true)].into_iter().chain(results).collect();
        if let Some(one) = one {
            let (name, well) = results.into_iter().find(|(name, _)| *name == one)?;
            return Some(match well {
                true => answer(StatusCode::OK, TEXT, "ok"),
                false => answer(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    TEXT,
                    format!("internal server error: {name} is not well\n"),
                ),
            });
        }
        let excluded = |name: &str| query.split('&').any(|pair| pair.strip_prefix("exclude=") == Some(name));
        let verbose = query
            .split('&')
            .any(|pair| pair == "verbose" || pair.starts_with("verbose="));
        let (mut text, mut all) = (String::new(), true);
        for (name, well) in results.into_iter().filter(|(name, _)| !excluded(name)) {
            all &= well;
            // Writing to a String cannot fail.
            let _ok = match well {
                true => writeln!(text, "[+]{name} ok"),
                false => writeln!(text, "[-]{name} failed: reason withheld"),
            };
        }
        Some(match (all, verbose) {
            (true, false) => answer(StatusCode::OK, TEXT, "ok"),
            (true, true) => answer(StatusCode::OK, TEXT, format!("{text}{which} check passed\n")),
            (false, _) => answer(
                StatusCode::INTERNAL_SERVER_ERROR,
                TEXT,
                format!("{text}{which} check failed\n"),
            ),
        })
    }
}
