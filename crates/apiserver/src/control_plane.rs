//! One control plane: the whole API as a value, with one async function in front of it.
//!
//! Everything that answers requests hangs here; nothing is global. A process may hold several.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::FutureExt;
use http::request::Parts;
use http::{Request, Response};
use ipnet::Ipv4Net;
use rustls::ServerConfig;
use sampan_api::selector::{FieldSelector, LabelSelector, Operator};
use sampan_api::status::Status;
use sampan_auth::{
    Attributes, Authenticator, Authorizer, Decision, Found, Impersonation, LookupKind, ObjectLookup, Reasons,
    Requirement, Selectors, UserInfo, authentication as auth, impersonation,
};
use sampan_encryption::Encrypted;
use sampan_pki::tls::ClientVerifier;
use sampan_pki::{Pki, Present};
use sampan_store::Store;
use sampan_tasks::{OnExit, Tasks};

use crate::admission::{Chain, Reader, Selection, SelectionError, Wiring};
use crate::allocate::{NODE_PORTS, Services};
use crate::audit::{self, Audit, Record};
use crate::authentication::{self, Tracker};
use crate::authorization;
use crate::body::Body;
use crate::bootstrap;
use crate::dispatch;
use crate::flow::{self, Flow, Mark};
use crate::metrics::Metrics;
use crate::outbound::Outbound;
use crate::pretty;
use crate::registry::reply::refusal;
use crate::registry::{Leases, Registry};
use crate::request::{Encoding, Query, RequestInfo, media};
use crate::rows::Rows;
use crate::watch_cache::{Cache, ChangeType, HISTORY};
use crate::{Refusal, refuse};

/// How a control plane is set up. Everything has a default but its identity.
pub struct Config {
    /// Certificates and the key of service-account tokens.
    pub pki: Arc<Pki>,
    /// Where Services get their addresses.
    pub service_range: Ipv4Net,
    /// The first and the last port that NodePort Services get.
    pub node_ports: (u16, u16),
    /// Where clients reach this API server; what `default/kubernetes` leads to.
    pub advertise: SocketAddr,
    /// `gitVersion` in `/version`.
    pub version: String,
    /// Requests in progress at once, reading and writing; their sum is what priority levels share.
    pub in_flight: (usize, usize),
    /// Whether priority levels share those; else they are limits of their own.
    pub priority_and_fairness: bool,
    /// For everything but watches and streams.
    pub request_timeout: Duration,
    /// How long Events live.
    pub event_ttl: Duration,
    /// Tokens that name a user as long as the process runs.
    pub fixed_tokens: Vec<(String, UserInfo)>,
    /// How much history the store keeps, and how often older history is forgotten; `None`: all of it, forever.
    pub compaction_interval: Option<Duration>,
    /// Which admission plugins are on.
    pub admission: Selection,
    /// Where it is said which values are encrypted in the store; `None`: none are, and encrypted ones are not read.
    pub encryption: Option<sampan_encryption::Source>,
    /// What is recorded of requests, and where.
    pub audit: audit::Options,
    pub authentication: authentication::Options,
    pub authorization: authorization::Options,
}

impl Config {
    pub fn new(pki: Arc<Pki>, advertise: SocketAddr) -> Self {
        Config {
            pki,
            service_range: DEFAULT_SERVICE_RANGE,
            node_ports: NODE_PORTS,
            advertise,
            version: VERSION.to_owned(),
            in_flight: (400, 200),
            priority_and_fairness: true,
            request_timeout: Duration::from_secs(60),
            event_ttl: Duration::from_secs(3600),
            fixed_tokens: Vec::new(),
            compaction_interval: Some(HISTORY),
            admission: Selection::default(),
            encryption: None,
            audit: audit::Options::default(),
            authentication: authentication::Options::default(),
            authorization: authorization::Options::default(),
        }
    }
}

/// What this server calls itself.
pub const VERSION: &str = "v1.36.1+sampan";
/// As kubeadm has it.
pub const DEFAULT_SERVICE_RANGE: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the control plane cannot read its store: {0}")]
    Store(#[from] sampan_store::Error),
    #[error("the control plane's certificates are unusable: {0}")]
    Tls(#[from] sampan_pki::tls::TlsError),
    #[error(transparent)]
    Admission(#[from] SelectionError),
    #[error(transparent)]
    Encryption(#[from] sampan_encryption::ConfigurationError),
    #[error(transparent)]
    Audit(#[from] audit::AuditError),
    #[error(transparent)]
    Authentication(#[from] authentication::SetupError),
    #[error(transparent)]
    Authorization(#[from] authorization::SetupError),
    #[error("the cluster's own objects cannot be made: {0}")]
    Bootstrap(String),
}

/// Keeps history for one interval, as upstream keeps it.
async fn compact(store: Arc<dyn Store>, interval: Duration) {
    let mut before = store.revision();
    loop {
        tokio::time::sleep(interval).await;
        let now = store.revision();
        if before > store.compacted()
            && let Err(error) = store.compact(before).await
        {
            tracing::warn!(%error, "the store's history could not be compacted; trying again later");
        }
        before = now;
    }
}

/// A running API server without its network.
pub struct ControlPlane {
    pub(crate) config: Config,
    pub(crate) registry: Arc<Registry>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) authentication: authentication::Setup,
    pub(crate) authorization: authorization::Setup,
    pub(crate) authorizer: Authorizer,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
    pub(crate) backends: crate::streaming::Backends,
    /// Group versions others answer.
    pub(crate) aggregator: crate::aggregator::Aggregator,
    /// How everything else outside is called.
    pub(crate) outbound: Outbound,
    /// The API servers of this cluster.
    pub(crate) peers: crate::peers::Peers,
    /// What nodes and Pods use, as far as somebody has asked.
    pub(crate) usage: crate::usage::Usage,
    pub(crate) flow: Arc<Flow>,
    /// Who keeps the cluster's keys.
    pub(crate) certificates: OnceLock<Arc<dyn crate::admin::Certificates>>,
    /// `None`: nothing is recorded.
    pub(crate) audit: Option<Arc<Audit>>,
    /// In place of `flow`, where that is off.
    in_flight: Option<flow::InFlight>,
    ready: AtomicBool,
}

impl ControlPlane {
    /// Loads the store, starts the watch cache, and brings the cluster's own objects into being.
    pub async fn start(config: Config, store: Arc<dyn Store>, tasks: &Tasks) -> Result<Arc<Self>, StartError> {
        config.admission.check()?;
        let (rows, storages) = Rows::build(sampan_kinds::resources());
        rows.add_measured();
        let rows = Arc::new(rows);
        let store: Arc<dyn Store> = match &config.encryption {
            None => store,
            Some(source) => Encrypted::open(source.clone(), store, crate::rows::stored_resources(), tasks).await?,
        };
        let cache = Cache::start(store, storages, tasks).await?;
        let authorizer = Authorizer::new();
        let services = Services::new(config.service_range, config.node_ports);
        services.set_claims(crate::claims::Claims::new(cache.store().clone(), tasks));
        let reader = Reader::new(cache.clone());
        let outbound = Outbound::new(&reader, tasks);
        // Its connections outlive the drain: the last events are sent then.
        let farewell = Outbound::new(&reader, &Tasks::new());
        let flow = Flow::new(config.in_flight.0 + config.in_flight.1);
        flow.start(tasks);
        follow(&rows, &authorizer, &services, &flow);
        let authorization = authorization::setup(&config.authorization, &authorizer, &outbound, tasks)?;
        let authentication = authentication::setup(&config, &reader, &outbound, tasks)?;
        let registry = Arc::new(Registry {
            admission: Chain::standard(&Wiring {
                reader: &reader,
                rows: &rows,
                authorizer: &authorizer,
                outbound: &outbound,
                tasks,
                metrics: Arc::default(),
                selection: &config.admission,
            }),
            authorizer: authorizer.clone(),
            leases: Leases::new(config.event_ttl),
            cache: cache.clone(),
            rows,
            services,
        });
        let audit = Audit::start(&config.audit, &farewell, tasks)?;
        let plane = Arc::new(ControlPlane {
            flow,
            audit,
            in_flight: (!config.priority_and_fairness).then(|| flow::InFlight::new(config.in_flight)),
            backends: crate::streaming::Backends::new(config.pki.clone())?,
            aggregator: crate::aggregator::Aggregator::default(),
            outbound: outbound.clone(),
            usage: crate::usage::Usage::default(),
            certificates: OnceLock::new(),
            peers: crate::peers::Peers::new(config.advertise),
            config,
            registry,
            authenticator: authentication.authenticator.clone(),
            authentication,
            authorization,
            authorizer,
            metrics: Metrics::default(),
            tasks: tasks.clone(),
            ready: AtomicBool::new(false),
        });
        bootstrap::run(&plane)
            .await
            .map_err(|refusal| StartError::Bootstrap(refusal.message.clone()))?;
        crate::custom::start(&plane)
            .await
            .map_err(|refusal| StartError::Bootstrap(refusal.message.clone()))?;
        crate::registry::addresses::keep(&plane);
        crate::certificates::publish(&plane);
        crate::aggregation::start(&plane);
        crate::aggregator::start(&plane);
        crate::flow::keeper::start(&plane);
        plane.authentication.tracker.start(&plane, tasks);
        plane.ready.store(true, Ordering::Release);
        let drain = tasks.drain();
        let kept = cache.clone();
        tasks.spawn("end-watches", OnExit::Critical, async move {
            drain.started().await;
            for storage in kept.storages() {
                storage.end_watches();
            }
        });
        let trimmed = cache.clone();
        tasks.spawn_until_drain("history", OnExit::Critical, async move {
            loop {
                tokio::time::sleep(HISTORY).await;
                for storage in trimmed.storages() {
                    storage.trim();
                }
            }
        });
        if let Some(interval) = plane.config.compaction_interval {
            let store = cache.store().clone();
            tasks.spawn_until_drain("compaction", OnExit::Critical, compact(store, interval));
        }
        Ok(plane)
    }

    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }
    pub fn outbound(&self) -> &Outbound {
        &self.outbound
    }
    pub fn authorizer(&self) -> &Authorizer {
        &self.authorizer
    }
    pub fn authenticator(&self) -> &Authenticator {
        &self.authenticator
    }
    /// Which certificates clients are asked for: of the cluster's authority, and of the front proxy's.
    pub fn client_verifier(&self) -> Result<ClientVerifier, StartError> {
        let cluster = self.config.pki.verifier();
        let proxy = self.config.authentication.request_header.front_proxy(&self.config.pki);
        Ok(match proxy.map_err(authentication::SetupError::FrontProxy)? {
            Some(proxy) => cluster.asking_also_for(&proxy.verifier),
            None => cluster,
        })
    }
    /// What the listener shows and asks for, now and whenever certificates change.
    pub fn serving_tls(self: &Arc<Self>) -> Result<Present<ServerConfig>, StartError> {
        crate::certificates::serving(self)
    }
    /// Has another part of this process tell at `/metrics` what it counts.
    pub fn tell_also(&self, other: impl Fn(&mut String) + Send + Sync + 'static) {
        self.metrics.tell_also(Box::new(other));
    }
    /// Whom to ask for what concerns certificates below `/sampan/v1/`, from now on. The first who offers stays.
    pub fn look_after_certificates(&self, keeper: Arc<dyn crate::admin::Certificates>) {
        if self.certificates.set(keeper).is_err() {
            tracing::warn!("somebody looks after certificates already");
        }
    }
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// Whether the cluster's own objects are in place.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// The whole API. Who is asking stands in the request's extensions (`Arc<UserInfo>` or `UserInfo`).
    pub async fn handle(self: &Arc<Self>, request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let (mut parts, body) = request.into_parts();
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let info = RequestInfo::resolve(&parts.method, parts.uri.path(), &query);
        let long_running = info.is_long_running(&query);
        let record = self.audit.as_ref().and_then(|audit| {
            let user = parts.extensions.get::<UserInfo>().cloned().map(Arc::new);
            let user = parts.extensions.get::<Arc<UserInfo>>().or(user.as_ref());
            audit.begin(&parts, &info, user, long_running)
        });
        let served = info.is_resource
            && self
                .registry
                .rows
                .get()
                .find(&info.group, &info.version, &info.resource)
                .is_some();
        let measured = self.metrics.begin(&info, served, long_running);
        let encoding = asked_encoding(&parts);
        let head = parts.method == http::Method::HEAD;
        let indented = !long_running && pretty::asked(&parts.headers, &query);
        if let Some(record) = &record {
            if !record.received().await {
                let response = refusal(&Status::internal("failed to store audit event"), encoding);
                measured.end(response.status().as_u16(), started.elapsed());
                return response;
            }
            parts.extensions.insert(record.clone());
            if long_running {
                parts.extensions.insert(sampan_streams::Held(record.clone()));
            }
        }
        let limit = match self.time_limit(&query, long_running) {
            Ok(limit) => limit,
            Err(refused) => {
                let mut response = refusal(&refused, encoding);
                if let Some(record) = record {
                    response = record.end(response).await;
                }
                measured.end(response.status().as_u16(), started.elapsed());
                return response;
            }
        };
        let mut mark = None;
        let wait = limit.unwrap_or(self.config.request_timeout) / 4;
        let work = AssertUnwindSafe(self.route(parts, body, info, query, wait, &mut mark)).catch_unwind();
        let outcome = match limit {
            None => Ok(work.await),
            Some(limit) => tokio::time::timeout(limit, work).await,
        };
        let mut response = match outcome {
            Ok(Ok(Ok(response))) => response,
            Ok(Ok(Err(refused))) => refusal(&refused, encoding),
            Ok(Err(_panic)) => {
                tracing::error!("a request handler panicked");
                let refused = Status::internal("the server panicked while answering this request");
                if let Some(record) = &record {
                    record.panicked(&refused).await;
                }
                refusal(&refused, encoding)
            }
            Err(_late) => refusal(
                &Status::timeout("Timeout: request did not complete within the allotted timeout"),
                encoding,
            ),
        };
        if let Some(mark) = mark {
            mark.put(response.headers_mut());
        }
        if let Some(record) = record {
            response = record.end(response).await;
        }
        measured.end(response.status().as_u16(), started.elapsed());
        let response = if indented { pretty::response(response) } else { response };
        if head { without_body(response) } else { response }
    }

    /// How long the answer may take to begin: what the client says, if that is less than what the server allows.
    fn time_limit(&self, query: &Query, long_running: bool) -> Result<Option<Duration>, Refusal> {
        let most = self.config.request_timeout;
        if long_running {
            return Ok(None);
        }
        let Some(text) = query.text("timeout") else {
            return Ok(Some(most));
        };
        match crate::request::go_duration(text) {
            Some(Duration::ZERO) => Ok(Some(most)),
            Some(asked) => Ok(Some(asked.min(most))),
            None => Err(refuse(Status::bad_request(format!(
                "invalid timeout specified in the request URL - time: invalid duration {text:?}"
            )))),
        }
    }

    async fn route(
        self: &Arc<Self>,
        mut parts: Parts,
        body: Body,
        info: RequestInfo,
        query: Query,
        wait: Duration,
        mark: &mut Option<Mark>,
    ) -> Result<Response<Body>, Refusal> {
        let requestor = parts
            .extensions
            .remove::<Arc<UserInfo>>()
            .or_else(|| parts.extensions.remove::<UserInfo>().map(Arc::new))
            .ok_or_else(|| refuse(Status::unauthorized()))?;
        let record = parts.extensions.get::<Arc<Record>>().cloned();
        let user = self.impersonated(&requestor, &mut parts).await?;
        if let Some(record) = record.as_ref().filter(|_| !Arc::ptr_eq(&user, &requestor)) {
            record.impersonated(&user);
        }
        // Streams are not counted; a watch is until it has sent the state it begins with.
        let mut seat = None;
        let keeps = flow::keeps_seat(&info, &query);
        if let Some(limits) = &self.in_flight {
            if !info.is_long_running(&query) {
                match limits.enter(&user, &info) {
                    Ok(place) => seat = place.map(flow::Place::InFlight),
                    Err(seconds) => return Ok(flow::come_back(seconds)),
                }
            }
        } else if info.verb == "watch" || !info.is_long_running(&query) {
            let entered = self.flow.enter(&user, &info, &query, &self.registry.rows, wait).await;
            if let Some((classified, outcome)) = entered {
                *mark = Some(classified);
                match outcome {
                    Ok(taken) => seat = Some(flow::Place::Seat(taken)),
                    Err(seconds) => return Ok(flow::come_back(seconds)),
                }
            }
        }
        self.authorize(&user, &info, &info.verb, &query, &parts).await?;
        let response = dispatch::run(
            self,
            dispatch::Incoming {
                parts,
                body,
                info,
                query,
                user,
            },
        )
        .await?;
        Ok(match seat {
            Some(seat) if keeps => response.map(|body| flow::hold(body, seat)),
            _ => response,
        })
    }

    /// Whom the request wants to act as, if it may.
    async fn impersonated(&self, requestor: &Arc<UserInfo>, parts: &mut Parts) -> Result<Arc<UserInfo>, Refusal> {
        let asked = Impersonation::from_headers(&parts.headers)
            .map_err(|error| refuse(Status::bad_request(error.to_string())))?;
        let Some(asked) = asked else {
            return Ok(requestor.clone());
        };
        for check in asked.checks(requestor) {
            self.authorizer
                .permit(&check)
                .await
                .map_err(|why| refuse(Status::forbidden(check.group, check.resource, check.name, &why)))?;
        }
        impersonation::remove_headers(&mut parts.headers);
        Ok(Arc::new(asked.user))
    }

    /// Whether `user` may do `verb` to what the request is about.
    pub(crate) async fn authorize(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        verb: &str,
        query: &Query,
        parts: &Parts,
    ) -> Result<(), Refusal> {
        let selector;
        let mut fields: Vec<(&str, &str)> = Vec::new();
        if user.is_node()
            && let Some(text) = query.text("fieldSelector")
        {
            selector = FieldSelector::parse(text).unwrap_or_default();
            fields = selector
                .requirements()
                .iter()
                .filter(|requirement| !requirement.negated)
                .map(|requirement| (requirement.field.as_str(), requirement.value.as_str()))
                .collect();
        }
        let selectors = self.authorizer.has("Webhook").then(|| selectors(info, query)).flatten();
        let request = if info.is_resource {
            Attributes {
                selectors: selectors.as_ref(),
                version: &info.version,
                subresource: &info.subresource,
                namespace: &info.namespace,
                name: &info.name,
                path: &info.path,
                field_equals: &fields,
                ..Attributes::resource(user, verb, &info.group, &info.resource)
            }
        } else {
            Attributes::path(user, verb, &info.path)
        };
        let record = parts.extensions.get::<Arc<Record>>();
        let reasons = match record {
            Some(_) => Reasons::All,
            None => Reasons::OfRefusals,
        };
        let decision = self.authorizer.decide_with(&request, reasons).await;
        if let Some(record) = record {
            let (decided, reason) = match &decision {
                Decision { allowed: true, .. } => ("allow", decision.reason.as_str()),
                Decision { error, .. } if !error.is_empty() => ("forbid", "internal error"),
                _ => ("forbid", decision.reason.as_str()),
            };
            record.annotate("authorization.k8s.io/decision", decided);
            record.annotate("authorization.k8s.io/reason", reason);
        }
        decision.into_permission(&request).map_err(|why| {
            refuse(if info.is_resource {
                Status::forbidden(&info.group, &info.resource, &info.name, &why)
            } else {
                Status::forbidden("", "", "", &why)
            })
        })
    }
}

/// What a request for many objects demands of them.
fn selectors(info: &RequestInfo, query: &Query) -> Option<Selectors> {
    if !info.is_resource || !matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
        return None;
    }
    Some(Selectors {
        fields: field_demands(query.text("fieldSelector").unwrap_or_default()),
        labels: label_demands(query.text("labelSelector").unwrap_or_default()),
    })
}

/// What a field selector demands, as authorizers are told. What is malformed is left out: it narrows nothing.
pub(crate) fn field_demands(text: &str) -> Vec<Requirement> {
    let selector = FieldSelector::parse(text).unwrap_or_default();
    let demands = selector.requirements().iter().map(|requirement| Requirement {
        key: requirement.field.clone(),
        operator: if requirement.negated { "NotIn" } else { "In" },
        values: vec![requirement.value.clone()],
    });
    demands.collect()
}

/// The same of a label selector.
pub(crate) fn label_demands(text: &str) -> Vec<Requirement> {
    let Ok(selector) = LabelSelector::parse(text) else {
        return Vec::new();
    };
    let demands = selector.requirements().iter().filter_map(|requirement| {
        let operator = match requirement.operator() {
            Operator::Equals | Operator::DoubleEquals | Operator::In => "In",
            Operator::NotEquals | Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            Operator::GreaterThan | Operator::LessThan => return None,
        };
        Some(Requirement {
            key: requirement.key().to_owned(),
            operator,
            values: requirement.values().to_vec(),
        })
    });
    demands.collect()
}

/// Feeds the in-memory indexes that must never be behind a reply.
fn follow(rows: &Rows, authorizer: &Authorizer, services: &Arc<Services>, flow: &Arc<Flow>) {
    let table = rows.get();
    for row in table.rows.iter().filter(|row| !row.converts()) {
        let Some(storage) = &row.storage else { continue };
        let plural = row.spec.plural;
        let authorizer = authorizer.clone();
        if row.spec.group == "rbac.authorization.k8s.io"
            && let Some(kind) = sampan_auth::Kind::from_plural(plural)
        {
            storage.set_hook(Box::new(move |change, object| match change.kind {
                ChangeType::Deleted => authorizer
                    .rbac
                    .remove(kind, change.entry.namespace(), change.entry.name()),
                _ => authorizer.rbac.apply(kind, object),
            }));
        } else if sampan_auth::NodeGraph::follows().contains(&(row.spec.group, plural)) {
            storage.set_hook(Box::new(move |change, object| match change.kind {
                ChangeType::Deleted => authorizer
                    .nodes
                    .remove(plural, change.entry.namespace(), change.entry.name()),
                _ => authorizer.nodes.apply(plural, object),
            }));
        } else if row.is("", "services") {
            let services = services.clone();
            storage.set_hook(Box::new(move |change, object| services.observe(change, object)));
        } else if row.spec.group == "flowcontrol.apiserver.k8s.io" {
            let kind = match plural {
                "flowschemas" => flow::Kind::Schema,
                _ => flow::Kind::Level,
            };
            let flow = flow.clone();
            storage.set_hook(Box::new(move |change, object| flow.observe(kind, change, object)));
        } else if row.is("networking.k8s.io", "ipaddresses") {
            let services = services.clone();
            storage.set_hook(Box::new(move |change, _| services.observe_entry(change)));
        } else if row.is("networking.k8s.io", "servicecidrs") {
            let services = services.clone();
            storage.set_hook(Box::new(move |change, object| services.observe_range(change, object)));
        }
    }
}

/// The answer to a HEAD: its length is said, the rest is not. HTTP/2 clients take a body for a fault. What an
/// application behind a proxy said of its length stays.
fn without_body(response: Response<Body>) -> Response<Body> {
    let length = http_body::Body::size_hint(response.body()).exact();
    let mut response = response.map(|_| Body::Empty);
    if let Some(length) = length
        && !response.headers().contains_key(http::header::CONTENT_LENGTH)
    {
        response
            .headers_mut()
            .insert(http::header::CONTENT_LENGTH, length.into());
    }
    response
}

/// The encoding errors are answered in: the first the client takes, transformations left out of account.
fn asked_encoding(parts: &Parts) -> Encoding {
    media::negotiate(&parts.headers, false, true).map_or(Encoding::Json, |media| media.encoding)
}

/// The objects tokens are bound to.
pub(crate) struct BoundObjects {
    pub reader: Reader,
    pub tracker: Tracker,
}

impl ObjectLookup for BoundObjects {
    fn find(&self, kind: LookupKind, namespace: &str, name: &str) -> Option<Found> {
        let (prefix, path) = match kind {
            LookupKind::ServiceAccount => ("serviceaccounts", format!("{namespace}/{name}")),
            LookupKind::Pod => ("pods", format!("{namespace}/{name}")),
            LookupKind::Secret => ("secrets", format!("{namespace}/{name}")),
            LookupKind::Node => ("minions", name.to_owned()),
        };
        let entry = self.reader.get(prefix, &path)?;
        let object = match kind {
            LookupKind::Secret => entry.object(),
            // Every request of a Pod's token comes here: its metadata is enough.
            _ => serde_json::json!({"metadata": entry.metadata()}),
        };
        let deleted_at = sampan_api::meta::deletion_timestamp(&object)
            .and_then(|at| sampan_api::time::parse(at).ok())
            .map(|at| at.as_second());
        let token = (kind == LookupKind::Secret).then(|| {
            use base64::Engine;
            let text = object.pointer("/data/token").and_then(serde_json::Value::as_str)?;
            base64::engine::general_purpose::STANDARD.decode(text).ok()
        });
        Some(Found {
            uid: sampan_api::meta::uid(&object).to_owned(),
            deleted_at,
            token: token.flatten(),
            invalid_since: sampan_api::meta::label(&object, auth::INVALID_SINCE)
                .filter(|since| !since.is_empty())
                .map(str::to_owned),
        })
    }

    fn used(&self, namespace: &str, secret: &str) {
        let entry = self.reader.get("secrets", &format!("{namespace}/{secret}"));
        let object = entry
            .map(|entry| serde_json::json!({"metadata": entry.metadata()}))
            .unwrap_or_default();
        self.tracker
            .used(namespace, secret, sampan_api::meta::label(&object, auth::LAST_USED));
    }
}
