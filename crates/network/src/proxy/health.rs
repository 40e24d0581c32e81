//! What load balancers ask of a node: whether it has endpoints of a Service whose traffic stays on the node (the
//! Service's health-check node port), and whether the proxy keeps up (`/healthz` and `/livez`, port 10256).
//!
//! Answers are upstream's. The proxy is healthy unless changes have been waiting for [`LATE`]. `/healthz` adds whether
//! the node is to get new connections; it is not while it goes. A port that is somebody else's is said once and tried
//! again, since whoever has it may let go; of a Service's port an Event says it too.
//!
//! Different from upstream: what the label `node.kubernetes.io/exclude-from-external-load-balancers` asks for is, there
//! as here, up to whoever keeps the load balancer's list of nodes; the proxy answers truthfully on every node.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{AbortHandle, Abortable};
use futures::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node as NodeObject, ObjectReference, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sampan_client::{EventType, Informer, Key, Recorder};
use sampan_tasks::Drain;
use serde_json::json;
use tokio::sync::Notify;

use super::plan::is_ready;
use crate::host::Host;

/// How long changes may wait before the proxy is called unhealthy: two of upstream's periods.
const LATE: Duration = Duration::from_secs(60);
/// Between tries to listen where somebody else does.
const AGAIN: Duration = Duration::from_secs(10);
/// How long a client may take to ask, and to ask again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections of one port at a time.
const AT_ONCE: usize = 64;
/// The taint of a node that an autoscaler is about to take away.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// A Service that is asked after: its port, and how many endpoints it has here.
pub type Checked = (u16, usize);

/// What a Service wants to be asked after, if it does.
pub fn checked<'s>(
    service: &Service,
    slices: impl IntoIterator<Item = &'s EndpointSlice>,
    node: &str,
) -> Option<Checked> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() != Some("LoadBalancer") || spec.external_traffic_policy.as_deref() != Some("Local") {
        return None;
    }
    let port = u16::try_from(spec.health_check_node_port?)
        .ok()
        .filter(|port| *port > 0)?;
    let endpoints = slices.into_iter().filter(|slice| slice.address_type == "IPv4");
    let endpoints = endpoints.flat_map(|slice| slice.endpoints.iter().flatten());
    let here: std::collections::BTreeSet<&String> = endpoints
        .filter(|endpoint| endpoint.node_name.as_deref() == Some(node) && is_ready(endpoint))
        .filter_map(|endpoint| endpoint.addresses.first())
        .collect();
    Some((port, here.len()))
}

#[derive(Debug, Default)]
struct State {
    services: BTreeMap<Key, Checked>,
    /// When the rules were last as they should be.
    updated: Option<Timestamp>,
    /// Since when changes wait.
    waiting: Option<Instant>,
}

/// What is known of the proxy and its Services.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
    /// Which ports are asked at has changed.
    ports: Notify,
}

impl Health {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There are changes.
    pub fn waits(&self) {
        self.state().waiting.get_or_insert_with(Instant::now);
    }

    /// The rules follow all changes, or all but those that came meanwhile.
    pub fn updated(&self, more: bool) {
        let mut state = self.state();
        state.updated = Some(Timestamp::now());
        state.waiting = more.then(Instant::now);
    }

    /// What a Service wants to be asked after by now.
    pub fn set(&self, key: &Key, checked: Option<Checked>) {
        let mut state = self.state();
        let old = match checked {
            Some(checked) => state.services.insert(key.clone(), checked),
            None => state.services.remove(key),
        };
        if old.map(|(port, _)| port) != checked.map(|(port, _)| port) {
            drop(state);
            self.ports.notify_one();
        }
    }

    /// Forgets Services that are gone.
    pub fn keep(&self, is_there: impl Fn(&Key) -> bool) {
        self.state().services.retain(|key, _| is_there(key));
        self.ports.notify_one();
    }

    fn is_healthy(state: &State) -> bool {
        state.updated.is_none() || state.waiting.is_none_or(|since| since.elapsed() < LATE)
    }

    /// The answer at a Service's port; nothing for one that is not asked after any more.
    fn of_service(&self, port: u16) -> Option<Response<Full<Bytes>>> {
        let state = self.state();
        let (key, (_, count)) = state.services.iter().find(|(_, (asked, _))| *asked == port)?;
        let healthy = Self::is_healthy(&state);
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
            key.namespace, key.name
        );
        let mut response = answer(*count > 0 && healthy, body);
        let weight = hyper::header::HeaderValue::from(*count);
        response
            .headers_mut()
            .insert("x-load-balancing-endpoint-weight", weight);
        Some(response)
    }

    /// The proxy's own answer, with whether the node is to get connections where that is asked.
    fn of_proxy(&self, eligible: Option<bool>) -> Response<Full<Bytes>> {
        let state = self.state();
        let (proxy, now) = (Self::is_healthy(&state), Timestamp::now());
        let never = "0001-01-01T00:00:00Z".to_owned();
        let updated = state.updated.map_or(never, |updated| updated.to_string());
        let healthy = proxy && eligible != Some(false);
        let last = if healthy { now.to_string() } else { updated.clone() };
        let mut body = json!({"lastUpdated": last, "currentTime": now, "healthy": proxy});
        if let Some(eligible) = eligible {
            body["nodeEligible"] = eligible.into();
        }
        if state.updated.is_some() {
            body["status"] = json!({"IPv4": {"lastUpdated": updated, "healthy": proxy}});
        }
        answer(healthy, body.to_string())
    }
}

fn answer(well: bool, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    if !well {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(
        "content-type",
        hyper::header::HeaderValue::from_static("application/json"),
    );
    headers.insert(
        "x-content-type-options",
        hyper::header::HeaderValue::from_static("nosniff"),
    );
    response
}

/// Whether a node is to get connections: it is there and stays.
fn is_eligible(node: Option<&NodeObject>) -> bool {
    node.is_some_and(|node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let leaves = taints.into_iter().flatten().any(|taint| taint.key == TO_BE_DELETED);
        node.metadata.deletion_timestamp.is_none() && !leaves
    })
}

/// Who answers.
pub struct Server {
    pub health: Arc<Health>,
    pub host: Host,
    /// Where the proxy's own health is told.
    pub own: Option<SocketAddr>,
    pub node: String,
    pub nodes: Informer<NodeObject>,
    /// Says which ports are somebody else's.
    pub events: Option<Recorder>,
}

type Listening = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Server {
    /// Listens wherever somebody is to ask, until `drain`.
    pub async fn run(self, drain: Drain) {
        let server = Arc::new(self);
        let mut open: BTreeMap<SocketAddr, AbortHandle> = BTreeMap::new();
        let mut complained = std::collections::BTreeSet::new();
        let mut all: FuturesUnordered<Abortable<Listening>> = FuturesUnordered::new();
        loop {
            let wanted = server.wanted();
            open.retain(|address, listening| {
                let stays = wanted.contains_key(address);
                if !stays {
                    listening.abort();
                }
                stays
            });
            complained.retain(|address| wanted.contains_key(address));
            for (address, port) in wanted {
                if open.contains_key(&address) {
                    continue;
                }
                match server.listen(address) {
                    Ok(listener) => {
                        complained.remove(&address);
                        let (handle, registration) = AbortHandle::new_pair();
                        let listening: Listening = Box::pin(serve(Arc::clone(&server), listener, port));
                        all.push(Abortable::new(listening, registration));
                        open.insert(address, handle);
                    }
                    Err(error) => {
                        if complained.insert(address) {
                            tracing::warn!(%address, %error, "cannot tell load balancers of the proxy's health, will try again");
                            server.complain(port, &error);
                        }
                    }
                }
            }
            let again = async {
                if complained.is_empty() {
                    std::future::pending().await
                } else {
                    tokio::time::sleep(AGAIN).await
                }
            };
            tokio::select! {
                () = drain.started() => return,
                () = server.health.ports.notified() => {}
                () = again => {}
                Some(_aborted) = all.next(), if !all.is_empty() => {}
            }
        }
    }

    /// Tells the Service that nobody can be told of it.
    fn complain(&self, port: Option<u16>, error: &io::Error) {
        let (Some(port), Some(events)) = (port, &self.events) else {
            return;
        };
        let state = self.health.state();
        for (key, _) in state.services.iter().filter(|(_, (asked, _))| *asked == port) {
            let about = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Service".to_owned()),
                namespace: Some(key.namespace.to_string()),
                name: Some(key.name.to_string()),
                ..ObjectReference::default()
            };
            let message = format!(
                "node {} failed to start healthcheck \"{}/{}\" on port {port}: {error}",
                self.node, key.namespace, key.name
            );
            let by = ("kube-proxy", "Listen");
            events.event_by(
                by,
                about,
                EventType::Warning,
                "FailedToStartServiceHealthcheck",
                message,
            );
        }
    }

    /// Addresses to listen at, with the Service's port if it is one.
    fn wanted(&self) -> BTreeMap<SocketAddr, Option<u16>> {
        let state = self.health.state();
        let ports = state.services.values().map(|(port, _)| *port);
        let ports = ports.map(|port| (SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), Some(port)));
        ports.chain(self.own.map(|own| (own, None))).collect()
    }

    fn listen(&self, address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
        let listener = self.host.run(|| TcpListener::bind(address))??;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    }

    fn answer(&self, port: Option<u16>, path: &str) -> Response<Full<Bytes>> {
        let found = match (port, path) {
            (Some(port), _) => self.health.of_service(port),
            (None, "/livez") => Some(self.health.of_proxy(None)),
            (None, "/healthz") => {
                let node = self.nodes.get("", &self.node);
                Some(self.health.of_proxy(Some(is_eligible(node.as_deref()))))
            }
            _ => None,
        };
        found.unwrap_or_else(|| {
            let mut response = Response::new(Full::new(Bytes::from_static(b"404 page not found\n")));
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        })
    }
}

/// Answers at one port. Ends by being dropped.
async fn serve(server: Arc<Server>, listener: tokio::net::TcpListener, port: Option<u16>) {
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < AT_ONCE => match accepted {
                Ok((stream, _)) => {
                    let server = Arc::clone(&server);
                    let service = service_fn(move |request: Request<Incoming>| {
                        std::future::ready(Ok::<_, Infallible>(server.answer(port, request.uri().path())))
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(PATIENCE)
                        .serve_connection(TokioIo::new(stream), service);
                    connections.push(connection);
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection of a load balancer was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            // A client that went is no concern of ours.
            Some(_gone) = connections.next(), if !connections.is_empty() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{service, slice};
    use http_body_util::BodyExt;

    #[test]
    fn services_that_stay_on_the_node_are_asked_after() {
        let spec = |kind: &str, policy: &str, port: i32| json!({"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": port, "clusterIP": "10.96.0.9"});
        let here = |last: u8, more: serde_json::Value| (Ipv4Addr::new(10, 244, 0, last), more);
        let slice = slice(
            "web",
            json!({"port": 80}),
            &[
                here(2, json!({})),
                here(2, json!({})),
                here(3, json!({"nodeName": "there"})),
                here(
                    4,
                    json!({"conditions": {"ready": false, "serving": true, "terminating": true}}),
                ),
            ],
        );
        for (kind, policy, port, expected) in [
            ("LoadBalancer", "Local", 32000, Some((32000, 1))),
            ("LoadBalancer", "Cluster", 32000, None),
            ("NodePort", "Local", 32000, None),
            ("LoadBalancer", "Local", 0, None),
        ] {
            let service = service("web", spec(kind, policy, port));
            assert_eq!(checked(&service, [&slice], "here"), expected, "{kind} {policy} {port}");
        }
    }

    async fn text(response: Response<Full<Bytes>>) -> String {
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn answers_are_upstreams() {
        let health = Health::default();
        let key = Key::new("default", "web");
        assert!(health.of_service(32000).is_none());
        assert_eq!(health.of_proxy(Some(true)).status(), 200);
        assert!(text(health.of_proxy(None)).await.contains("\"healthy\":true"));
        health.updated(false);
        health.set(&key, Some((32000, 0)));
        assert_eq!(health.of_service(32000).unwrap().status(), 503);
        health.set(&key, Some((32000, 2)));
        let response = health.of_service(32000).unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-load-balancing-endpoint-weight"], "2");
        assert_eq!(
            text(response).await,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
        let status = text(health.of_proxy(Some(false))).await;
        assert!(
            status.contains("\"nodeEligible\":false") && status.contains("\"IPv4\""),
            "{status}"
        );
        assert_eq!(health.of_proxy(Some(false)).status(), 503);
        // Changes that wait too long.
        health.waits();
        assert_eq!(health.of_proxy(None).status(), 200);
        health.state().waiting = Instant::now().checked_sub(LATE);
        assert_eq!(health.of_proxy(None).status(), 503);
        assert_eq!(health.of_service(32000).unwrap().status(), 503);
        health.updated(true);
        assert_eq!(health.of_proxy(None).status(), 200);
        health.keep(|_| false);
        assert!(health.of_service(32000).is_none());
    }

    #[test]
    fn nodes_that_go_get_no_connections() {
        let node = |value: serde_json::Value| serde_json::from_value::<NodeObject>(value).unwrap();
        let going = json!({"metadata": {"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let tainted =
            json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": TO_BE_DELETED, "effect": "NoSchedule"}]}});
        assert!(!is_eligible(None));
        assert!(!is_eligible(Some(&node(going))) && !is_eligible(Some(&node(tainted))));
        assert!(is_eligible(Some(&node(json!({"metadata": {"name": "n"}})))));
    }
}
