//! The node's own server (port 10250): what the API server asks a node for on behalf of `kubectl logs`, `exec`,
//! `attach` and `port-forward`, and statistics.
//!
//! Every request is authenticated and authorized: see [`access`].

mod access;
mod logs;
mod rates;
mod stats;
mod streams;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use sampan_claims::local;
use sampan_pki::Present;
use sampan_tasks::{OnExit, Tasks};
use sampan_volumes::VolumeError;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::manager::Manager;
use crate::node::ServerTls;
use crate::pod;
use crate::worker::Worker;
use access::Access;
use sampan_client::reviews::Caller;

/// By any method, as upstream's plain handlers.
const ANY: &[Method] = &[];
const READ: &[Method] = &[Method::GET];
/// A WebSocket is asked for by GET, SPDY by POST.
const STREAM: &[Method] = &[Method::GET, Method::POST];

/// All that is served, and by which methods: nothing else reaches [`Server::route`]. A `{}` stands for any one part.
const ENDPOINTS: [(&str, &[Method]); 16] = [
    ("healthz", ANY),
    ("configz", ANY),
    ("pods", READ),
    ("containerLogs/{}/{}/{}", READ),
    ("exec/{}/{}/{}", STREAM),
    ("exec/{}/{}/{}/{}", STREAM),
    ("attach/{}/{}/{}", STREAM),
    ("attach/{}/{}/{}/{}", STREAM),
    ("portForward/{}/{}", STREAM),
    ("portForward/{}/{}/{}", STREAM),
    ("run/{}/{}/{}", &[Method::POST]),
    ("run/{}/{}/{}/{}", &[Method::POST]),
    ("stats/summary", READ),
    ("metrics", ANY),
    ("metrics/resource", ANY),
    ("localvolumes/{}", &[Method::DELETE]),
];

/// The methods of an endpoint, if there is one.
fn methods(parts: &[&str]) -> Option<&'static [Method]> {
    let fits = |pattern: &str| {
        let mut pattern = pattern.split('/');
        let same = parts
            .iter()
            .all(|part| pattern.next().is_some_and(|wanted| wanted == "{}" || wanted == *part));
        same && pattern.next().is_none()
    };
    let found = ENDPOINTS.iter().find(|(pattern, _)| fits(pattern));
    found.map(|(_, methods)| *methods)
}

/// A body of any kind.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "the node's server cannot listen on port {port}: {source}; is another node's agent running on this machine?"
    )]
    Listen { port: u16, source: std::io::Error },
}

/// The server. One per node.
pub struct Server {
    manager: Arc<Manager>,
    access: Access,
    tasks: Tasks,
    rates: rates::Rates,
}

/// A refusal: status and text.
pub struct Refusal(pub StatusCode, pub String);

impl Refusal {
    fn not_found(message: impl Into<String>) -> Self {
        Refusal(StatusCode::NOT_FOUND, message.into())
    }
    fn bad(message: impl Into<String>) -> Self {
        Refusal(StatusCode::BAD_REQUEST, message.into())
    }
    fn internal(message: impl std::fmt::Display) -> Self {
        Refusal(StatusCode::INTERNAL_SERVER_ERROR, message.to_string())
    }
}

type Answer = Result<Response<Body>, Refusal>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

fn text(content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

fn json_body(value: &serde_json::Value) -> Response<Body> {
    text("application/json", value.to_string())
}

impl Server {
    /// Listens and serves until drained. Returns the address.
    pub async fn start(
        manager: Arc<Manager>,
        client: kube::Client,
        tls: ServerTls,
        tasks: &Tasks,
    ) -> Result<SocketAddr, ServerError> {
        let port = manager.cx.config.port;
        let failed = |source| ServerError::Listen { port, source };
        let listener = TcpListener::bind(("0.0.0.0", port)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let server = Arc::new(Server {
            access: Access::new(client, tls.verifier, &manager.cx.config.name),
            manager,
            tasks: tasks.clone(),
            rates: rates::Rates::default(),
        });
        tasks.spawn_until_drain("node server", OnExit::Critical, server.listen(listener, tls.config));
        Ok(address)
    }

    async fn listen(self: Arc<Self>, listener: TcpListener, tls: Present<ServerConfig>) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // A stream whose client vanished without a word must not keep its command for ever.
                    let alive = socket2::TcpKeepalive::new()
                        .with_time(std::time::Duration::from_secs(60))
                        .with_interval(std::time::Duration::from_secs(15))
                        .with_retries(4);
                    if let Err(error) = socket2::SockRef::from(&stream).set_tcp_keepalive(&alive) {
                        tracing::debug!(%error, "a connection to the node's server is already gone");
                        continue;
                    }
                    let (server, acceptor) = (Arc::clone(&self), TlsAcceptor::from(tls.get()));
                    self.tasks
                        .spawn_until_drain("node server connection", OnExit::Expected, async move {
                            server.connection(stream, acceptor).await
                        });
                }
                Err(error) => {
                    // Usually too many open files: give others time to close some.
                    tracing::warn!(%error, "the node's server could not take a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, acceptor: TlsAcceptor) {
        let stream = match acceptor.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "a TLS handshake with the node's server failed");
                return;
            }
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain: Arc<[CertificateDer<'static>]> = chain.iter().map(|der| der.clone().into_owned()).collect();
        let service = hyper::service::service_fn(move |request| {
            let (server, chain) = (Arc::clone(&self), chain.clone());
            async move {
                // At every request: a connection may outlive its certificate, and who is believed may change.
                let certified = server.access.by_certificate(&chain);
                Ok::<_, Infallible>(server.answer(request, certified).await)
            }
        });
        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        if let Err(error) = serving.await {
            tracing::debug!(%error, "a connection to the node's server broke");
        }
    }

    async fn answer(&self, request: Request<Incoming>, certified: Option<Caller>) -> Response<Body> {
        let outcome = match self.access.check(&request, certified.as_ref()).await {
            Ok(()) => self.route(request).await,
            Err(refusal) => Err(refusal),
        };
        outcome.unwrap_or_else(|Refusal(status, message)| {
            let mut response = text("text/plain; charset=utf-8", message + "\n");
            *response.status_mut() = status;
            response
        })
    }

    async fn route(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let query: Vec<(String, String)> = query_pairs(request.uri().query().unwrap_or_default());
        match methods(&parts) {
            None => return Err(Refusal::not_found("404 page not found")),
            Some(allowed) if !allowed.is_empty() && !allowed.contains(request.method()) => {
                let text = "405: Method Not Allowed".to_owned();
                return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, text));
            }
            Some(_) => {}
        }
        match parts.as_slice() {
            ["healthz"] => Ok(text("text/plain; charset=utf-8", "ok")),
            ["pods"] => self.pods(),
            ["configz"] => Ok(self.configz()),
            ["containerLogs", namespace, pod, container] => {
                self.container_logs(namespace, pod, container, &query).await
            }
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
                self.exec(namespace, pod, container, request, &query).await
            }
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
                self.attach(namespace, pod, container, request).await
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                self.port_forward(namespace, pod, request).await
            }
            ["run", namespace, pod, container] | ["run", namespace, pod, _, container] => {
                self.run(namespace, pod, container, request, &query).await
            }
            ["stats", "summary"] => self.summary().await,
            ["metrics"] => self.metrics(),
            ["metrics", "resource"] => self.resource_metrics().await,
            [local::NODE_PATH, name] => self.remove_local_volume(name, &query).await,
            _ => Err(Refusal::not_found("404 page not found")),
        }
    }

    /// The local provisioner's volume is needed no more.
    async fn remove_local_volume(&self, name: &str, query: &[(String, String)]) -> Answer {
        let path = query
            .iter()
            .find(|(key, _)| key == "path")
            .map(|(_, path)| path.as_str());
        let outcome = self
            .manager
            .cx
            .volumes
            .remove_local(name, path.unwrap_or_default())
            .await;
        match outcome {
            Ok(()) => Ok(text("text/plain; charset=utf-8", "ok")),
            Err(error @ VolumeError::InUse(_)) => Err(Refusal(StatusCode::CONFLICT, error.to_string())),
            Err(error @ VolumeError::Invalid(_)) => Err(Refusal::bad(error.to_string())),
            Err(error) => Err(Refusal::internal(error)),
        }
    }

    fn pods(&self) -> Answer {
        let items: Vec<serde_json::Value> = self
            .manager
            .pods()
            .iter()
            .filter_map(|worker| {
                let (pod, status, _) = worker.report();
                let mut pod = (*pod).clone();
                pod.status = Some(status);
                serde_json::to_value(pod).ok()
            })
            .collect();
        Ok(json_body(&json!({
            "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items
        })))
    }

    fn configz(&self) -> Response<Body> {
        let config = &self.manager.cx.config;
        let housekeeping = &config.housekeeping;
        json_body(&json!({"kubeletconfig": {
            "maxPods": config.max_pods,
            "port": config.port,
            "clusterDomain": config.cluster_dns.domain,
            "clusterDNS": config.cluster_dns.servers,
            "cgroupRoot": config.cgroup_root,
            "seccompDefault": config.seccomp_default,
            "imageGCHighThresholdPercent": housekeeping.image_gc_high,
            "imageGCLowThresholdPercent": housekeeping.image_gc_low,
            "containerLogMaxSize": format!("{}Mi", housekeeping.log_max_bytes >> 20),
            "containerLogMaxFiles": housekeeping.log_max_files,
            "nodeStatusReportFrequency": format!("{}s", config.status_report_period.as_secs()),
            "evictionHard": housekeeping.eviction.named(),
        }}))
    }

    fn worker(&self, namespace: &str, name: &str) -> Result<Arc<Worker>, Refusal> {
        self.manager
            .find(namespace, name)
            .ok_or_else(|| Refusal::not_found(format!("pod \"{name}\" not found")))
    }

    /// The runtime id of a running container; an empty name means the first.
    fn running_container(&self, worker: &Worker, container: &str) -> Result<String, Refusal> {
        let (pod, status, _) = worker.report();
        let name = if container.is_empty() {
            pod::containers(&pod)
                .first()
                .map(|first| first.name.clone())
                .unwrap_or_default()
        } else {
            container.to_owned()
        };
        let all = status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .chain(&status.ephemeral_container_statuses)
            .flatten();
        all.filter(|status| status.name == name)
            .filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
            .find_map(|status| Some(status.container_id.as_deref()?.split_once("://")?.1.to_owned()))
            .ok_or_else(|| Refusal::not_found(format!("container not found (\"{name}\")")))
    }
}

/// The decoded pairs of a query, in order.
pub fn query_pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = bytes
            .get(at + 1..at + 3)
            .filter(|_| byte == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(escaped) => {
                out.push(escaped);
                at += 3;
            }
            None => {
                out.push(if byte == b'+' { b' ' } else { byte });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The last value of a name in a query.
pub fn value<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query
        .iter()
        .rev()
        .find(|(have, _)| have == name)
        .map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod query_tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let pairs = query_pairs("command=ls&command=-l+a%2Fb&x&bad=%zz%");
        assert_eq!(pairs[1].1, "-l a/b");
        assert_eq!(value(&pairs, "command"), Some("-l a/b"));
        assert_eq!(value(&pairs, "bad"), Some("%zz%"));
        assert_eq!(value(&pairs, "none"), None);
    }
}
