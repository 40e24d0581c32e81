//! Auditing: what was asked, by whom, and what came of it, for those who have to know later.
//!
//! [`Audit`] holds the policy and the back ends; [`Record`] is one request on its way. A record is made before
//! impersonation and authorization, collects what the way of the request tells it, and makes an event at every stage
//! that the policy does not leave out. Its end is the end of the last one who holds it: the body of a watch, an
//! upgraded connection, or the request itself, also one whose client went away.
//!
//! Without a policy and a back end there is no [`Audit`], and nothing here costs anything.
//!
//! Objects are recorded as they come and go, Secrets and tokens included: levels decide, as upstream's do.
//!
//! Differs from upstream: the request of an aggregated API is recorded without its objects (they are the other server's
//! to record), and latency annotations are not made.

mod event;
mod log;
mod metrics;
mod policy;
mod sink;
mod webhook;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use http::header::{AUTHORIZATION, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, Response};
use jiff::Timestamp;
use sampan_api::status::Status;
use sampan_api::{Object, codec, meta};
use sampan_auth::UserInfo;
use sampan_tasks::{OnExit, Tasks};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::admission::Annotations;
use crate::body::Body;
use crate::front::{AuditId, Peer};
use crate::outbound::Outbound;
use crate::registry::reply::Refused;
use crate::request::{Query, RequestInfo};
use crate::sync::lock;

pub use log::Rotation;
pub use metrics::Metrics;
pub use policy::{Level, Policy, PolicyError, Stage};
pub use sink::{BatchOptions, Format, Mode, Truncation};
pub use webhook::WebhookError;

use event::{Event, ObjectRef, ResponseStatus};
use log::Log;
use policy::Verdict;
use sink::{Backend, Sink};
use webhook::Webhook;

/// The longest user agent, as upstream.
const USER_AGENT_MAX: usize = 1024;

/// What is recorded, and where it goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub policy_file: Option<PathBuf>,
    pub log: Option<LogOptions>,
    pub webhook: Option<WebhookOptions>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogOptions {
    /// `-`: standard output.
    pub path: PathBuf,
    pub format: Format,
    pub rotation: Rotation,
    pub batch: BatchOptions,
    pub truncation: Option<Truncation>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WebhookOptions {
    /// A kubeconfig.
    pub config_file: PathBuf,
    pub initial_backoff: Duration,
    pub batch: BatchOptions,
    pub truncation: Option<Truncation>,
}

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("the audit log {} cannot be opened: {source}", path.display())]
    Log { path: PathBuf, source: std::io::Error },
    #[error("initializing audit webhook: {0}")]
    Webhook(#[from] WebhookError),
}

/// The policy and the back ends.
pub struct Audit {
    policy: Policy,
    sinks: Vec<Sink>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

impl Audit {
    /// `None`: nothing is to be recorded.
    pub fn start(options: &Options, outbound: &Outbound, tasks: &Tasks) -> Result<Option<Arc<Audit>>, AuditError> {
        let Some(file) = &options.policy_file else {
            if options.log.is_some() || options.webhook.is_some() {
                tracing::warn!("there is no audit policy file: no audit events are recorded");
            }
            return Ok(None);
        };
        let policy = Policy::read(file)?;
        let metrics = Arc::new(Metrics::default());
        let mut sinks = Vec::new();
        if let Some(options) = &options.log {
            let log = Log::open(&options.path, options.rotation.clone()).map_err(|source| AuditError::Log {
                path: options.path.clone(),
                source,
            })?;
            let backend = Backend::Log(log, options.format);
            sinks.push(Sink::start(
                backend,
                &options.batch,
                options.truncation,
                &metrics,
                tasks,
            ));
        }
        if let Some(options) = &options.webhook {
            let webhook = Webhook::new(&options.config_file, options.initial_backoff, outbound, tasks.drain())?;
            let backend = Backend::Webhook(webhook);
            sinks.push(Sink::start(
                backend,
                &options.batch,
                options.truncation,
                &metrics,
                tasks,
            ));
        }
        if sinks.is_empty() {
            return Ok(None);
        }
        Ok(Some(Arc::new(Audit {
            policy,
            sinks,
            metrics,
            tasks: tasks.clone(),
        })))
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The record of a request, if it is to be recorded. `user`: who proved to be asking.
    pub fn begin(
        self: &Arc<Self>,
        parts: &Parts,
        info: &RequestInfo,
        user: Option<&Arc<UserInfo>>,
        long_running: bool,
    ) -> Option<Arc<Record>> {
        let verdict = self.policy.evaluate(user.map(|user| &**user), info);
        self.metrics.level(verdict.level);
        if verdict.level == Level::None {
            return None;
        }
        let now = Timestamp::now();
        let audit_id = parts.extensions.get::<AuditId>().map_or_else(
            || uuid::Uuid::new_v4().to_string(),
            |id| String::from_utf8_lossy(id.0.as_bytes()).into_owned(),
        );
        let event = Event {
            level: verdict.level,
            audit_id,
            stage: Stage::RequestReceived,
            request_uri: parts
                .uri
                .path_and_query()
                .map_or_else(|| parts.uri.path().to_owned(), |uri| uri.as_str().to_owned()),
            verb: info.verb.clone(),
            user: user.cloned().unwrap_or_default(),
            impersonated_user: None,
            source_ips: source_ips(&parts.headers, parts.extensions.get::<Peer>()),
            user_agent: user_agent(&parts.headers),
            object_ref: info.is_resource.then(|| ObjectRef {
                resource: info.resource.clone(),
                namespace: info.namespace.clone(),
                name: info.name.clone(),
                api_group: info.group.clone(),
                api_version: info.version.clone(),
                subresource: info.subresource.clone(),
                ..ObjectRef::default()
            }),
            response_status: None,
            request_object: None,
            response_object: None,
            received: now,
            staged: now,
            annotations: BTreeMap::new(),
        };
        Some(Arc::new(Record {
            audit: self.clone(),
            verdict,
            long_running,
            event: Mutex::new(event),
            ended: AtomicBool::new(false),
        }))
    }

    /// Records a request whose client could not prove who it is. `certificate`: it presented one.
    pub async fn unauthenticated(self: &Arc<Self>, parts: &Parts, certificate: bool, status: &Status) {
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let info = RequestInfo::resolve(&parts.method, parts.uri.path(), &query);
        let Some(record) = self.begin(parts, &info, None, false) else {
            return;
        };
        lock(&record.event).response_status = Some(ResponseStatus {
            message: attempted(&parts.headers, &query, certificate),
            ..ResponseStatus::code(status.code)
        });
        record.stage(Stage::ResponseStarted).await;
        record.ended.store(true, Ordering::Release);
    }
}

/// How the client tried to prove who it is.
fn attempted(headers: &HeaderMap, query: &Query, certificate: bool) -> String {
    let mut methods = Vec::new();
    let authorization = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let scheme = authorization
        .trim()
        .split_once(' ')
        .map_or("", |(scheme, _)| scheme)
        .to_ascii_lowercase();
    if matches!(scheme.as_str(), "basic" | "bearer") {
        methods.push(scheme.as_str());
    }
    if query.text("access_token").is_some_and(|token| !token.trim().is_empty()) {
        methods.push("access_token");
    }
    if certificate {
        methods.push("x509");
    }
    if methods.is_empty() {
        return "Authentication failed, no credentials provided".into();
    }
    format!("Authentication failed, attempted: {}", methods.join(", "))
}

fn user_agent(headers: &HeaderMap) -> String {
    let text = headers
        .get(USER_AGENT)
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .unwrap_or_default();
    match text
        .char_indices()
        .find(|(at, char)| at + char.len_utf8() > USER_AGENT_MAX)
    {
        Some((cut, _)) => format!("{}...TRUNCATED", &text[..cut]),
        None => text.into_owned(),
    }
}

/// What proxies say of where the request came from, and last the other end of the connection, which cannot lie.
fn source_ips(headers: &HeaderMap, peer: Option<&Peer>) -> Vec<IpAddr> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let parsed = |text: &str| text.trim().parse::<IpAddr>().ok();
    let mut addresses: Vec<IpAddr> = text("x-forwarded-for").split(',').filter_map(parsed).collect();
    if let Some(real) = parsed(text("x-real-ip"))
        && !addresses.contains(&real)
    {
        addresses.push(real);
    }
    // A client in this process.
    let remote = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.0.ip().to_canonical());
    if addresses.last() != Some(&remote) {
        addresses.push(remote);
    }
    addresses
}

/// One request that is recorded.
pub struct Record {
    audit: Arc<Audit>,
    verdict: Verdict,
    long_running: bool,
    event: Mutex<Event>,
    ended: AtomicBool,
}

impl Record {
    /// Makes the event of a stage. False: it is lost and the request must not go on.
    pub async fn stage(&self, stage: Stage) -> bool {
        if self.verdict.omit_stages.holds(stage) {
            return true;
        }
        self.audit.metrics.event();
        let sinks = &self.audit.sinks;
        let items: Vec<_> = {
            let mut event = lock(&self.event);
            event.stage = stage;
            if stage != Stage::RequestReceived {
                event.staged = Timestamp::now();
            }
            sinks.iter().map(|sink| sink.render(&event)).collect()
        };
        let mut stored = true;
        for (sink, item) in sinks.iter().zip(items) {
            stored &= sink.process(item).await;
        }
        stored
    }

    /// The request begins. False: its event could not be stored and it must not be worked on.
    pub async fn received(&self) -> bool {
        let stored = self.stage(Stage::RequestReceived).await;
        if !stored {
            self.ended.store(true, Ordering::Release);
            self.audit.metrics.rejected();
        }
        stored
    }

    pub fn annotate(&self, key: &str, value: impl Into<String>) {
        lock(&self.event)
            .annotations
            .entry(key.to_owned())
            .or_insert_with(|| value.into());
    }

    /// Whom the request acts as.
    pub fn impersonated(&self, user: &Arc<UserInfo>) {
        lock(&self.event).impersonated_user = Some(user.clone());
    }

    /// The decoded body of the request.
    pub fn request(&self, object: &Object) {
        let kept = (self.verdict.level >= Level::Request).then(|| self.encoded(object));
        let mut event = lock(&self.event);
        event.request_object = kept.flatten();
        let Some(reference) = &mut event.object_ref else {
            return;
        };
        for (known, said) in [
            (&mut reference.namespace, meta::namespace(object)),
            (&mut reference.name, meta::name(object)),
            (&mut reference.uid, meta::uid(object)),
            (&mut reference.resource_version, meta::resource_version(object)),
        ] {
            if known.is_empty() {
                said.clone_into(known);
            }
        }
    }

    /// A patch as it came; one in YAML is recorded as JSON.
    pub fn patch(&self, body: &[u8]) {
        if self.verdict.level < Level::Request {
            return;
        }
        let text = match std::str::from_utf8(body) {
            Ok(text) => text,
            Err(_) => return,
        };
        let raw = RawValue::from_string(text.to_owned()).ok().or_else(|| {
            let parsed = codec::yaml::decode(body).ok()?;
            serde_json::value::to_raw_value(&parsed.object).ok()
        });
        lock(&self.event).request_object = raw.map(Arc::from);
    }

    /// Whether the answer's object is recorded.
    pub fn wants_response(&self) -> bool {
        self.verdict.level == Level::RequestResponse
    }

    /// The answer as JSON.
    pub fn response(&self, json: &[u8]) {
        let raw = if self.verdict.omit_managed_fields {
            serde_json::from_slice::<Value>(json)
                .ok()
                .and_then(|value| self.encoded(&value))
        } else {
            String::from_utf8(json.trim_ascii_end().to_vec())
                .ok()
                .and_then(|text| RawValue::from_string(text).ok())
                .map(Arc::from)
        };
        lock(&self.event).response_object = raw;
    }

    /// The answer is a Status that is no refusal.
    pub fn status(&self, status: &Value, code: u16) {
        lock(&self.event).response_status = Some(ResponseStatus::of(status, code));
    }

    fn encoded(&self, object: &Value) -> Option<Arc<RawValue>> {
        let raw = if self.verdict.omit_managed_fields {
            let mut object = object.clone();
            event::without_managed_fields(&mut object);
            serde_json::value::to_raw_value(&object)
        } else {
            serde_json::value::to_raw_value(object)
        };
        raw.ok().map(Arc::from)
    }

    /// What is known once the answer is: its code, a refusal, what admission noted.
    fn answered(&self, response: &Response<Body>) {
        let code = response.status().as_u16();
        let refused = response.extensions().get::<Refused>();
        let value = refused.map(|refused| refused.0.to_value());
        if let Some(value) = &value {
            self.status(value, code);
            if self.wants_response()
                && let Some(raw) = self.encoded(value)
            {
                lock(&self.event).response_object = Some(raw);
            }
        }
        let mut event = lock(&self.event);
        event.response_status.get_or_insert_default().code = code;
        if let Some(Annotations(noted)) = response.extensions().get::<Annotations>() {
            for (key, value) in noted.iter() {
                event.annotations.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }

    /// The answer is there. A short request ends with it, a long-running one when its answer does.
    pub async fn end(self: Arc<Self>, response: Response<Body>) -> Response<Body> {
        if self.ended.load(Ordering::Acquire) {
            return response;
        }
        self.answered(&response);
        if !self.long_running {
            self.ended.store(true, Ordering::Release);
            self.stage(Stage::ResponseComplete).await;
            return response;
        }
        self.stage(Stage::ResponseStarted).await;
        // Whoever passes an upgraded connection on holds the record itself.
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return response;
        }
        response.map(|body| Body::Boxed(Box::pin(Watched { body, _record: self })))
    }

    /// The request's handler panicked.
    pub async fn panicked(&self, refused: &Status) {
        self.ended.store(true, Ordering::Release);
        lock(&self.event).response_status = Some(ResponseStatus::of(&refused.to_value(), refused.code));
        self.stage(Stage::Panic).await;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut event = lock(&self.event).clone();
        let unanswered = event.response_status.is_none();
        if unanswered {
            event.response_status = Some(ResponseStatus {
                status: "Success".into(),
                message: "Connection closed early".into(),
                ..ResponseStatus::code(200)
            });
        }
        let last = Record {
            audit: self.audit.clone(),
            verdict: self.verdict,
            long_running: self.long_running,
            event: Mutex::new(event),
            ended: AtomicBool::new(true),
        };
        let ending = async move {
            if unanswered && last.long_running {
                last.stage(Stage::ResponseStarted).await;
            }
            last.stage(Stage::ResponseComplete).await;
        };
        if tokio::runtime::Handle::try_current().is_ok() {
            self.audit.tasks.spawn("audit-end", OnExit::Expected, ending);
        } else {
            // The runtime is gone: what need not wait is still recorded.
            let _lost = ending.now_or_never();
        }
    }
}

/// The body of a long-running answer.
struct Watched {
    body: Body,
    _record: Arc<Record>,
}

impl http_body::Body for Watched {
    type Data = bytes::Bytes;
    type Error = crate::body::BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn addresses_are_told_the_nearest_last() {
        let peer = Peer("192.0.2.9:4711".parse().unwrap());
        let mut headers = HeaderMap::new();
        assert_eq!(source_ips(&headers, Some(&peer)), [peer.0.ip()]);
        headers.insert(
            "x-forwarded-for",
            HeaderValue::from_static("203.0.113.1, junk, 192.0.2.8"),
        );
        headers.insert("x-real-ip", HeaderValue::from_static("203.0.113.2"));
        let shown: Vec<_> = source_ips(&headers, Some(&peer))
            .iter()
            .map(IpAddr::to_string)
            .collect();
        assert_eq!(shown, ["203.0.113.1", "192.0.2.8", "203.0.113.2", "192.0.2.9"]);
        assert_eq!(source_ips(&HeaderMap::new(), None), [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    }

    #[test]
    fn attempts_are_named() {
        let mut headers = HeaderMap::new();
        let none = Query::parse("");
        assert_eq!(
            attempted(&headers, &none, false),
            "Authentication failed, no credentials provided"
        );
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer abc"));
        assert_eq!(
            attempted(&headers, &Query::parse("access_token=x"), true),
            "Authentication failed, attempted: bearer, access_token, x509"
        );
    }

    #[test]
    fn a_user_agent_has_an_end() {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_str(&"é".repeat(600)).unwrap());
        let told = user_agent(&headers);
        assert!(
            told.ends_with("...TRUNCATED") && told.len() <= USER_AGENT_MAX + 12,
            "{told}"
        );
    }
}
