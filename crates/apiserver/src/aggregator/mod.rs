//! Aggregation: group versions that somebody else's API server answers.
//!
//! An `APIService` says who answers a group version. Those of our own (built in or custom) have one too, kept by
//! [`local`]. One that names a Service makes a [`Remote`]: requests below its path go there ([`proxy`]), under the
//! identity of the requester, after our own authorization.
//!
//! For every remote there is one task ([`remote`]) that finds out whether it answers, tells so in the APIService's
//! status, and keeps what the merged documents need of it: its discovery and its OpenAPI. So an extension server
//! that is slow or broken costs nobody but those who ask for its own resources: documents are made of what is known,
//! and say what is stale.
//!
//! Invariants:
//! - the set of remotes follows the watch cache; readers take a snapshot;
//! - whether a remote is available is read from the APIService's status, so two servers on one store agree;
//! - what is kept of a remote is bounded in size, and fetching it in time and in number at once.

mod discovery;
mod identity;
mod local;
mod openapi;
pub mod priority;
mod proxy;
mod remote;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, RwLock};

use sampan_api::{Object, meta};
use sampan_tasks::OnExit;
use serde_json::Value;
use tokio::sync::Semaphore;

pub use openapi::{merged_v2, v2_tag};
pub use proxy::serve;
pub use remote::Remote;

use crate::control_plane::ControlPlane;
use crate::request::RequestInfo;
use crate::sync::{lock, read, write};
use crate::watch_cache::{Change, ChangeType, Scope, Snapshot, Start, Storage};

pub(crate) const GROUP: &str = "apiregistration.k8s.io";
pub(crate) const PLURAL: &str = "apiservices";
/// Extension servers that are asked about themselves at once.
const AT_ONCE: usize = 16;

/// Remotes by namespace and name of the Service they name.
type ByService = HashMap<(String, String), Vec<Arc<Remote>>>;

/// Remotes by group and version.
pub type Remotes = BTreeMap<(String, String), Arc<Remote>>;

/// Who answers what.
pub struct Aggregator {
    remotes: RwLock<Arc<Remotes>>,
    by_service: Mutex<ByService>,
    turns: Arc<Semaphore>,
}

impl Default for Aggregator {
    fn default() -> Self {
        Aggregator {
            remotes: RwLock::default(),
            by_service: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Aggregator {
    pub fn remotes(&self) -> Arc<Remotes> {
        read(&self.remotes).clone()
    }

    /// Who answers a request, if not we: requests for resources of a group version, and for its discovery.
    pub fn remote_of(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        let remotes = read(&self.remotes);
        if remotes.is_empty() {
            return None;
        }
        if info.is_resource {
            let key = (info.group.clone(), info.version.clone());
            return remotes.get(&key).filter(|_| info.is_served()).cloned();
        }
        let key = match info
            .path
            .trim_end_matches('/')
            .split('/')
            .collect::<Vec<_>>()
            .as_slice()
        {
            ["", "api", version] => (String::new(), (*version).to_owned()),
            ["", "apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
            _ => return None,
        };
        remotes.get(&key).cloned()
    }

    /// Whose OpenAPI document is asked for.
    pub fn openapi_of(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        let document = info.path.strip_prefix("/openapi/v3/")?;
        let remotes = read(&self.remotes);
        let remote = remotes
            .values()
            .find(|remote| remote.documents().v3.contains_key(document));
        remote.cloned()
    }

    /// Takes in one APIService as it is now.
    fn apply(&self, plane: &Arc<ControlPlane>, object: &Object) {
        let key = key_of(meta::name(object));
        let known = read(&self.remotes).get(&key).cloned();
        // Nobody takes over the registration itself: that could not be undone.
        let remote = Remote::of(plane, object).filter(|_| key.0 != GROUP);
        match (known, remote) {
            (Some(known), Some(new)) if known.is_same(&new) => known.observe(object),
            (known, Some(new)) => {
                if let Some(known) = known {
                    new.inherit(&known);
                    known.stop();
                }
                let new = Arc::new(new);
                new.observe(object);
                self.put(key, Some(new.clone()));
                remote::start(plane, &new, self.turns.clone());
            }
            (Some(known), None) => {
                known.stop();
                self.put(key, None);
            }
            (None, None) => {}
        }
    }

    fn forget(&self, name: &str) {
        let key = key_of(name);
        let known = read(&self.remotes).get(&key).cloned();
        if let Some(known) = known {
            known.stop();
            self.put(key, None);
        }
    }

    fn put(&self, key: (String, String), remote: Option<Arc<Remote>>) {
        let mut remotes = write(&self.remotes);
        let mut new = Remotes::clone(&remotes);
        match remote {
            Some(remote) => new.insert(key, remote),
            None => new.remove(&key),
        };
        let mut by_service = ByService::new();
        for remote in new.values() {
            by_service.entry(remote.service()).or_default().push(remote.clone());
        }
        *remotes = Arc::new(new);
        *lock(&self.by_service) = by_service;
    }

    /// Something about a Service has changed.
    fn wake(&self, namespace: &str, name: &str) {
        let by_service = lock(&self.by_service);
        if by_service.is_empty() {
            return;
        }
        let key = (namespace.to_owned(), name.to_owned());
        for remote in by_service.get(&key).into_iter().flatten() {
            remote.wake();
        }
    }

    fn wake_all(&self) {
        for remote in read(&self.remotes).values() {
            remote.wake();
        }
    }
}

/// Group and version of an APIService's name.
fn key_of(name: &str) -> (String, String) {
    let (version, group) = name.split_once('.').unwrap_or((name, ""));
    (group.to_owned(), version.to_owned())
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Follows APIServices and what their remotes depend on.
pub fn start(plane: &Arc<ControlPlane>) {
    let registry = &plane.registry;
    if let Some(storage) = registry.storage_of(GROUP, PLURAL) {
        let whole = plane.clone();
        follow(plane, "api-services", storage, move |seen| match seen {
            Seen::All(snapshot) => {
                let names: Vec<String> = whole
                    .aggregator
                    .remotes()
                    .values()
                    .map(|remote| remote.name().to_owned())
                    .collect();
                for name in names.iter().filter(|name| snapshot.index.get(name).is_none()) {
                    whole.aggregator.forget(name);
                }
                for entry in snapshot.index.iter() {
                    whole.aggregator.apply(&whole, &entry.object());
                }
            }
            Seen::Change(change) if change.kind == ChangeType::Deleted => {
                whole.aggregator.forget(change.entry.name());
            }
            Seen::Change(change) => whole.aggregator.apply(&whole, &change.entry.object()),
        });
    }
    if let Some(storage) = registry.storage_of("", "services") {
        let whole = plane.clone();
        follow(plane, "api-services-services", storage, move |seen| match seen {
            Seen::All(_) => whole.aggregator.wake_all(),
            Seen::Change(change) => whole.aggregator.wake(change.entry.namespace(), change.entry.name()),
        });
    }
    if let Some(storage) = registry.storage_of("discovery.k8s.io", "endpointslices") {
        let (whole, slices) = (plane.clone(), storage.clone());
        follow(plane, "api-services-endpoints", storage, move |seen| match seen {
            Seen::All(_) => whole.aggregator.wake_all(),
            Seen::Change(change) => {
                let labels = &change.entry.attributes(slices.fields()).labels;
                let service = labels.iter().find(|(key, _)| &**key == "kubernetes.io/service-name");
                if let Some((_, service)) = service {
                    whole.aggregator.wake(change.entry.namespace(), service);
                }
            }
        });
    }
    local::start(plane);
}

/// What a follower sees.
enum Seen<'a> {
    /// Everything, at the beginning and after a gap.
    All(&'a Snapshot),
    Change(&'a Change),
}

/// Shows `each` everything in a storage and then every change.
fn follow(
    plane: &Arc<ControlPlane>,
    name: &'static str,
    storage: Arc<Storage>,
    each: impl Fn(Seen<'_>) + Send + Sync + 'static,
) {
    let plane = plane.clone();
    plane
        .tasks
        .clone()
        .spawn_until_drain(name, OnExit::Critical, async move {
            while !plane.tasks.drain().is_started() {
                let known = plane.registry.cache.revision();
                let Ok(mut watch) = storage.watch(Scope::All, Start::Now, known) else {
                    continue;
                };
                if let Some(snapshot) = watch.initial.take() {
                    each(Seen::All(&snapshot));
                }
                while let Some(change) = watch.queue.recv().await {
                    each(Seen::Change(&change));
                }
                tokio::task::yield_now().await;
            }
        });
}
