//! One group version that a Service answers: whether it does, and what is known of it.
//!
//! A change of the APIService, its Service or its endpoints wakes the remote's task; beyond that it looks again after
//! a while (nobody tells us when an extension server dies or serves something new), after a failure sooner and then
//! less and less often. Every look has a bound in time and size.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http::header::{ACCEPT, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{HeaderMap, Method, StatusCode};
use sampan_api::{Object, meta};
use sampan_auth::UserInfo;
use sampan_pki::{Identity, Pki};
use sampan_tasks::{Drain, OnExit};
use serde_json::Value;
use tokio::sync::{Notify, Semaphore};

use super::local::{Verdict, condition, says, set_available};
use super::openapi::Converted;
use super::priority::Priority;
use super::{discovery, identity, openapi, text};
use crate::control_plane::ControlPlane;
use crate::outbound::{Answer, Exchange, Outbound, Peer, Place, Spec, Trust};
use crate::sync::{lock, read, write};

/// When all is well, and at most when it is not.
const AGAIN: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Endpoints change in groups.
const SETTLE: Duration = Duration::from_millis(30);
/// One question to a remote.
const ANSWER: Duration = Duration::from_secs(5);
/// Tries of a check that has failed once, side by side: they may reach other endpoints.
const TRIES: usize = 3;
const MAX_DISCOVERY: usize = 4 << 20;
const MAX_OPENAPI: usize = 8 << 20;

/// What is known of a remote.
#[derive(Clone, Default)]
pub struct Documents {
    /// Its resources, as aggregated discovery lists them.
    pub resources: Arc<Vec<Value>>,
    discovery_tag: Option<HeaderValue>,
    /// Whether that is what it says now.
    pub fresh: bool,
    /// OpenAPI v3: where each document is.
    pub v3: Arc<BTreeMap<String, Value>>,
    /// The remote has no OpenAPI v3: this is made of its v2.
    pub converted: Option<Arc<Converted>>,
    /// OpenAPI v2: its own paths and what they need, as JSON.
    pub v2: Option<Bytes>,
    pub v2_tag: String,
}

pub struct Remote {
    name: String,
    group: String,
    version: String,
    namespace: String,
    service: String,
    port: u16,
    trust: Trust,
    priority: Priority,
    /// By the certificate the front proxy had when it was made. Or why nobody can be called.
    peer: Mutex<(Identity, Result<Arc<Peer>, String>)>,
    outbound: Outbound,
    pki: Arc<Pki>,
    place: Place,
    available: AtomicBool,
    documents: RwLock<Documents>,
    /// What its status should say.
    told: Mutex<Option<Verdict>>,
    woken: Notify,
    stopped: Drain,
}

impl Remote {
    /// Of an APIService that names a Service.
    pub(super) fn of(plane: &ControlPlane, object: &Object) -> Option<Self> {
        let service = object.pointer("/spec/service").filter(|service| service.is_object())?;
        let port = service.get("port").and_then(Value::as_u64).unwrap_or(443);
        let bundle = base64::engine::general_purpose::STANDARD
            .decode(text(object, "/spec/caBundle"))
            .unwrap_or_default();
        let insecure = object.pointer("/spec/insecureSkipTLSVerify") == Some(&Value::Bool(true));
        let trust = if insecure { Trust::Anyone } else { Trust::Bundle(bundle) };
        let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default();
        let place = Place::Service {
            namespace: text(service, "/namespace").to_owned(),
            name: text(service, "/name").to_owned(),
            port: u16::try_from(port).unwrap_or_default(),
        };
        let identity = plane.config.pki.front_proxy_client();
        let peer = connect(&plane.outbound, &place, &trust, &identity);
        Some(Remote {
            name: meta::name(object).to_owned(),
            group: text(object, "/spec/group").to_owned(),
            version: text(object, "/spec/version").to_owned(),
            namespace: text(service, "/namespace").to_owned(),
            service: text(service, "/name").to_owned(),
            port: u16::try_from(port).unwrap_or_default(),
            trust,
            priority: Priority {
                group: number("/spec/groupPriorityMinimum"),
                version: number("/spec/versionPriority"),
            },
            peer: Mutex::new((identity, peer)),
            outbound: plane.outbound.clone(),
            pki: plane.config.pki.clone(),
            place,
            available: AtomicBool::new(false),
            documents: RwLock::default(),
            told: Mutex::default(),
            woken: Notify::new(),
            stopped: plane.tasks.drain().child(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn priority(&self) -> Priority {
        self.priority
    }
    pub(super) fn service(&self) -> (String, String) {
        (self.namespace.clone(), self.service.clone())
    }
    /// Who is called, with the certificate the front proxy has now: what was connected with an older one is left to end.
    pub(super) fn peer(&self) -> Result<Arc<Peer>, String> {
        let identity = self.pki.front_proxy_client();
        let mut known = lock(&self.peer);
        if !known.0.is_same(&identity) {
            let peer = connect(&self.outbound, &self.place, &self.trust, &identity);
            *known = (identity, peer);
        }
        known.1.clone()
    }
    /// Whether requests go there, as its status says.
    pub fn is_available(&self) -> bool {
        self.available.load(Ordering::Acquire)
    }
    pub fn documents(&self) -> Documents {
        read(&self.documents).clone()
    }

    /// `/apis/GROUP/VERSION`
    pub(super) fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// Whether another description leads to the same place in the same way.
    pub(super) fn is_same(&self, other: &Remote) -> bool {
        let of = |one: &Remote| (one.service(), one.port, one.trust.clone(), one.priority);
        of(self) == of(other)
    }

    /// Takes over what is known, from the remote this one replaces.
    pub(super) fn inherit(&self, old: &Remote) {
        let mut documents = old.documents();
        documents.fresh = false;
        *write(&self.documents) = documents;
    }

    /// Takes in the status of the stored APIService.
    pub(super) fn observe(&self, object: &Object) {
        let condition = condition(object);
        let available = condition.is_some_and(|known| text(known, "/status") == "True");
        self.available.store(available, Ordering::Release);
        let told = lock(&self.told);
        let as_told = matches!((&*told, condition), (Some(told), Some(known)) if says(known, told));
        if told.is_some() && !as_told {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }

    pub(super) fn stop(&self) {
        self.stopped.start();
    }

    async fn run(&self, plane: &Arc<ControlPlane>, turns: &Semaphore) {
        let mut pause = FIRST_PAUSE;
        loop {
            let passed = match turns.acquire().await {
                Ok(_turn) => self.look(plane).await,
                Err(_) => return,
            };
            pause = if passed { FIRST_PAUSE } else { (pause * 2).min(AGAIN) };
            tokio::select! {
                () = self.woken.notified() => {
                    tokio::time::sleep(SETTLE).await;
                    pause = FIRST_PAUSE;
                }
                () = tokio::time::sleep(if passed { AGAIN } else { pause }) => {}
            }
        }
    }

    /// Finds out how the remote is and tells; whether it is well.
    async fn look(&self, plane: &Arc<ControlPlane>) -> bool {
        let (verdict, answer) = match self.check(plane).await {
            Ok(answer) => (passed(), Some(answer)),
            Err(verdict) => (verdict, None),
        };
        // Documents first: whoever waits for the status finds them.
        match answer {
            Some(answer) => self.learn(&answer).await,
            None => write(&self.documents).fresh = false,
        }
        let available = verdict.available;
        *lock(&self.told) = Some(verdict.clone());
        let stored = plane
            .registry
            .storage_of(super::GROUP, super::PLURAL)
            .and_then(|storage| storage.get(&self.name))
            .map(|entry| entry.object());
        let known = stored.as_ref().and_then(condition);
        if stored.is_none() || known.is_some_and(|known| says(known, &verdict)) {
            return available;
        }
        tracing::info!(
            name = self.name,
            available,
            reason = verdict.reason,
            message = verdict.message,
            "an APIService has changed its availability"
        );
        // Before it is written: whoever reads the status finds it so.
        self.available.store(available, Ordering::Release);
        match set_available(plane, &self.name, &verdict).await {
            Err(refusal) if refusal.reason != "NotFound" => {
                tracing::warn!(
                    name = self.name,
                    error = refusal.message,
                    "a status could not be written"
                );
                false
            }
            _ => available,
        }
    }

    /// The answer of a remote that is well.
    async fn check(&self, plane: &ControlPlane) -> Result<Answer, Verdict> {
        let failed = |reason: &'static str, message: String| Verdict {
            available: false,
            reason,
            message,
        };
        let (namespace, name) = (&self.namespace, &self.service);
        let service = plane
            .registry
            .storage_of("", "services")
            .and_then(|services| services.get(&format!("{namespace}/{name}")))
            .ok_or_else(|| {
                failed(
                    "ServiceNotFound",
                    format!("service/{name} in {namespace:?} is not present"),
                )
            })?
            .object();
        if text(&service, "/spec/type") == "ClusterIP" {
            let port = service
                .pointer("/spec/ports")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .find(|port| port.get("port").and_then(Value::as_u64) == Some(self.port.into()))
                .ok_or_else(|| {
                    failed(
                        "ServicePortError",
                        format!("service/{name} in {namespace:?} is not listening on port {}", self.port),
                    )
                })?;
            let port = text(port, "/name");
            match self.has_endpoints(plane, port) {
                None => {
                    return Err(failed(
                        "EndpointsNotFound",
                        format!("cannot find endpointslices for service/{name} in {namespace:?}"),
                    ));
                }
                Some(false) => {
                    return Err(failed(
                        "MissingEndpoints",
                        format!(
                            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port:?}"
                        ),
                    ));
                }
                Some(true) => {}
            }
        }
        let no = |why: String| failed("FailedDiscoveryCheck", why);
        match self.probe().await {
            Ok(answer) => Ok(answer),
            Err(_) => {
                let tries = futures::future::join_all((0..TRIES).map(|_| self.probe())).await;
                let mut why = String::new();
                for one in tries {
                    match one {
                        Ok(answer) => return Ok(answer),
                        Err(error) => why = error,
                    }
                }
                Err(no(why))
            }
        }
    }

    /// Whether a slice of the Service has a ready endpoint and the port; `None` without slices.
    fn has_endpoints(&self, plane: &ControlPlane, port: &str) -> Option<bool> {
        let slices = plane.registry.storage_of("discovery.k8s.io", "endpointslices")?;
        let prefix = format!("{}/", self.namespace);
        let snapshot = slices.snapshot(0);
        let mut found = None;
        let all = snapshot
            .index
            .from(&prefix)
            .take_while(|entry| entry.path().starts_with(&prefix))
            .map(|entry| entry.object())
            .filter(|slice| meta::label(slice, "kubernetes.io/service-name") == Some(&self.service));
        for slice in all {
            let items = |field: &str| slice.get(field).and_then(Value::as_array).into_iter().flatten();
            let ready = items("endpoints").any(|endpoint| {
                endpoint
                    .pointer("/conditions/ready")
                    .and_then(Value::as_bool)
                    .unwrap_or(true)
            });
            let listens = items("ports").any(|own| text(own, "/name") == port && own.get("port").is_some());
            found = Some(found.unwrap_or(false) || (ready && listens));
        }
        found
    }

    /// Asks for what every server of the group version must serve.
    async fn probe(&self) -> Result<Answer, String> {
        let path = self.root();
        let peer = self.peer()?;
        let url = peer.url(&path);
        let missing = |why: String| format!("failing or missing response from {url}: {why}");
        let answer = self
            .ask(&path, &inspector(), HeaderMap::new(), MAX_DISCOVERY)
            .await
            .map_err(missing)?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(missing(format!("bad status from {url}: {}", answer.status.as_u16())))
    }

    async fn ask(&self, path: &str, user: &UserInfo, headers: HeaderMap, limit: usize) -> Result<Answer, String> {
        let peer = self.peer()?;
        let mut all = identity::headers(user).map_err(|error| error.to_string())?;
        all.extend(headers);
        let exchange = Exchange {
            method: Method::GET,
            path,
            headers: all,
            body: Bytes::new(),
            timeout: ANSWER,
            limit,
        };
        peer.call(&exchange)
            .await
            .map_err(|error| error.during("Get", &peer.url(path)))
    }

    /// Learns what the merged documents need. `plain` is the remote's plain discovery.
    async fn learn(&self, plain: &Answer) {
        let known = self.documents();
        let mut new = known.clone();
        match self.discovery(&known, plain).await {
            Ok((resources, tag)) => {
                new.resources = resources;
                new.discovery_tag = tag;
                new.fresh = true;
            }
            Err(why) => {
                tracing::debug!(name = self.name, why, "an extension server's discovery cannot be used");
                new.fresh = false;
            }
        }
        let reader = UserInfo {
            name: "system:aggregator".to_owned(),
            ..UserInfo::default()
        };
        let accept = || HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
        let mut legacy = known.converted.is_some();
        match self.ask("/openapi/v3", &reader, accept(), MAX_OPENAPI).await {
            Ok(answer) if answer.status == StatusCode::OK => {
                new.v3 = Arc::new(openapi::v3_paths(&answer.body, &self.root()));
                legacy = false;
            }
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => {
                new.v3 = Arc::default();
                legacy = true;
            }
            // We may not see it.
            Ok(_) => {
                new.v3 = Arc::default();
                legacy = false;
            }
            Err(why) => tracing::debug!(name = self.name, why, "an extension server's OpenAPI v3 cannot be read"),
        }
        let mut asking = accept();
        if let Ok(tag) = HeaderValue::from_str(&known.v2_tag)
            && !tag.is_empty()
        {
            asking.insert(IF_NONE_MATCH, tag);
        }
        match self.ask("/openapi/v2", &reader, asking, MAX_OPENAPI).await {
            Ok(answer) if answer.status == StatusCode::OK => {
                let tag = answer.headers.get(ETAG).and_then(|tag| tag.to_str().ok());
                new.v2_tag = tag.map_or_else(|| openapi::hash(&answer.body), str::to_owned);
                if new.v2_tag != known.v2_tag || known.v2.is_none() {
                    new.v2 = openapi::own_part(&answer.body, &self.root());
                }
            }
            Ok(answer) if answer.status == StatusCode::NOT_MODIFIED => {}
            Ok(_) => (new.v2, new.v2_tag) = (None, String::new()),
            Err(why) => tracing::debug!(name = self.name, why, "an extension server's OpenAPI v2 cannot be read"),
        }
        if !legacy {
            new.converted = None;
        } else if new.converted.is_none() || new.v2_tag != known.v2_tag {
            let root = self.root();
            let converted = new.v2.as_ref().and_then(|part| Converted::of(part, &root));
            new.converted = converted.map(Arc::new);
        }
        *write(&self.documents) = new;
    }

    /// Aggregated discovery if the remote has it, else the plain one.
    async fn discovery(
        &self,
        known: &Documents,
        plain: &Answer,
    ) -> Result<(Arc<Vec<Value>>, Option<HeaderValue>), String> {
        let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(discovery::ACCEPT_AGGREGATED))]);
        if let Some(tag) = &known.discovery_tag {
            headers.insert(IF_NONE_MATCH, tag.clone());
        }
        let path = if self.group.is_empty() { "/api" } else { "/apis" };
        let answer = self.ask(path, &inspector(), headers, MAX_DISCOVERY).await?;
        if answer.status == StatusCode::NOT_MODIFIED && known.discovery_tag.is_some() {
            return Ok((known.resources.clone(), known.discovery_tag.clone()));
        }
        if answer.status == StatusCode::OK && discovery::is_aggregated(&answer.headers) {
            let resources = discovery::of_aggregated(&answer.body, &self.group, &self.version)?;
            return Ok((Arc::new(resources), answer.headers.get(ETAG).cloned()));
        }
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            return Err("the server is unavailable".to_owned());
        }
        let resources = discovery::of_plain(&plain.body, &self.group, &self.version)?;
        Ok((Arc::new(resources), None))
    }
}

fn connect(outbound: &Outbound, place: &Place, trust: &Trust, identity: &Identity) -> Result<Arc<Peer>, String> {
    let spec = Spec {
        place: place.clone(),
        trust: trust.clone(),
        identity: Some(identity.clone()),
    };
    outbound.peer(&spec).map_err(|error| error.to_string())
}

/// As whom the server itself looks: always with enough rights.
fn inspector() -> UserInfo {
    UserInfo {
        name: "system:kube-aggregator".to_owned(),
        groups: vec![sampan_auth::user::MASTERS.to_owned()],
        ..UserInfo::default()
    }
}

fn passed() -> Verdict {
    Verdict {
        available: true,
        reason: "Passed",
        message: "all checks passed".to_owned(),
    }
}

/// Looks after a remote until it is stopped.
pub(super) fn start(plane: &Arc<ControlPlane>, remote: &Arc<Remote>, turns: Arc<Semaphore>) {
    let (plane, remote) = (plane.clone(), remote.clone());
    let name = format!("extension server of {}", remote.name);
    plane.tasks.clone().spawn(name, OnExit::Expected, async move {
        let stopped = remote.stopped.clone();
        let _stopped = stopped.until(remote.run(&plane, &turns)).await;
    });
}
