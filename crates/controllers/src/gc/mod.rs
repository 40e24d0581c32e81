//! Garbage collection: what belongs to nobody any more goes, and what waits for its dependents is let go after them.
//!
//! A graph of all objects by UID follows informers over every resource that can be listed, watched and deleted; kinds
//! that typed informers of this process hold anyway are read from those. Custom resources join and leave as their
//! definitions do.
//!
//! Nothing is deleted on the word of a cache: an owner that the graph does not know is asked for at the API first, and so
//! is the object itself; a delete carries its UID and, as long as its owners are as they were, its version.
//!
//! Differs from upstream: an owner that the graph knows counts as present without asking the API; should it be gone
//! already, its deletion is an event that brings its dependents back here. That event alone proves nothing (upstream takes
//! the owner for absent then): the first dependent asks, and others of the same owner rely on that answer.

mod attempt;
mod graph;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::ApiResource;
use sampan_client::informer::SummaryMeta;
use sampan_client::{Cached, Change, EventType, Informer, Summary, WorkQueue, run_controller};
use sampan_tasks::OnExit;
use serde::de::DeserializeOwned;

use crate::discovery::discover;
use crate::{Context, SyncError};
use graph::{Graph, Kind, Work};

/// Never worth collecting, and many.
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];

struct Collector {
    context: Context,
    queue: WorkQueue<Work>,
    graph: Mutex<Graph>,
    /// group and plural → what follows it
    followed: Mutex<HashMap<(String, String), Followed>>,
    /// group and kind → the resource
    kinds: Mutex<HashMap<(String, String), Arc<Kind>>>,
    /// Owners that the API lately said are absent: many dependents of one owner ask it once.
    absent: Mutex<HashSet<Identity>>,
}

/// How many absent owners are remembered.
const ABSENT: usize = 500;

/// What a reference means. The UID alone would not do: a reference can have a UID that exists and a name that does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    uid: String,
    group: String,
    kind: String,
    /// Empty for what is in none.
    namespace: String,
    name: String,
}

fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

struct Followed {
    kind: Arc<Kind>,
    /// Absent for kinds read from typed informers, which are not ours to stop.
    informer: Option<Informer<Summary>>,
}

pub(crate) fn start(context: Context) {
    let collector = Arc::new(Collector {
        context: context.clone(),
        queue: WorkQueue::default(),
        graph: Mutex::default(),
        followed: Mutex::default(),
        kinds: Mutex::default(),
        absent: Mutex::default(),
    });
    let drain = context.drain();
    context.config.queues.add(context.name, collector.queue.clone());
    context
        .tasks
        .spawn(format!("controller {}", context.name), OnExit::Critical, async move {
            let (name, queue) = (collector.context.name, collector.queue.clone());
            if drain.until(collector.prepare()).await.is_none() {
                return;
            }
            let workers = collector.context.config.workers;
            let sync = |work: Work| {
                let collector = Arc::clone(&collector);
                async move { collector.sync(work).await }
            };
            run_controller(name, queue, workers, sync, drain).await;
        });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collector {
    /// Follows everything that is served now, and waits until the graph has it all.
    async fn prepare(self: &Arc<Self>) {
        let mut pause = Duration::from_millis(100);
        while let Err(error) = self.discover().await {
            tracing::debug!(%error, "cannot discover the served resources yet, will retry");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    async fn sync(self: &Arc<Self>, work: Work) -> Result<(), SyncError> {
        match work {
            Work::Delete(uid) => self.attempt_delete(&uid).await,
            Work::Orphan(uid) => self.attempt_orphan(&uid).await,
            Work::Discover => self.discover().await,
        }
    }

    /// Brings what is followed in line with what is served.
    async fn discover(self: &Arc<Self>) -> Result<(), SyncError> {
        let found = discover(&self.context.client).await?;
        let mut current = HashSet::new();
        let mut waiting: Vec<futures::future::BoxFuture<'static, ()>> = Vec::new();
        for one in found.resources.iter().cloned() {
            let id = (one.resource.group.clone(), one.resource.plural.clone());
            let ignored = IGNORED.contains(&(id.0.as_str(), id.1.as_str()));
            if ignored || !["delete", "list", "watch"].iter().all(|verb| one.can(verb)) {
                continue;
            }
            current.insert(id.clone());
            let known = lock(&self.followed)
                .get(&id)
                .is_some_and(|known| known.kind.resource == one.resource);
            if known {
                continue;
            }
            let kind = Arc::new(Kind {
                resource: one.resource,
                namespaced: one.namespaced,
            });
            let names = (id.0.clone(), kind.resource.kind.clone());
            lock(&self.kinds).insert(names, Arc::clone(&kind));
            let informer = self.follow(&kind, &mut waiting);
            let before = lock(&self.followed).insert(id, Followed { kind, informer });
            // Served in another version now: the old way of reading it leads nowhere.
            if let Some(old) = before.and_then(|before| before.informer) {
                old.stop();
            }
        }
        let mut vanished = Vec::new();
        lock(&self.followed).retain(|id, gone| {
            // An extension server that is away may come back: what is known of its objects stays.
            if current.contains(id) || !found.knows(&id.0) {
                return true;
            }
            if let Some(informer) = &gone.informer {
                informer.stop();
            }
            let names = (id.0.clone(), gone.kind.resource.kind.clone());
            lock(&self.kinds).remove(&names);
            vanished.push(Arc::clone(&gone.kind));
            false
        });
        for kind in vanished {
            let work = lock(&self.graph).forget(&kind);
            for one in work {
                self.queue.add(one);
            }
        }
        // A resource that cannot be listed (an extension server that is away) must not hold up all others for ever.
        let all = futures::future::join_all(waiting);
        if tokio::time::timeout(Duration::from_secs(30), all).await.is_err() {
            tracing::warn!("some resources cannot be listed; garbage collection goes on without them");
        }
        Ok(())
    }

    fn follow(
        self: &Arc<Self>,
        kind: &Arc<Kind>,
        waiting: &mut Vec<futures::future::BoxFuture<'static, ()>>,
    ) -> Option<Informer<Summary>> {
        let typed = self.follow_typed::<Pod>(kind, waiting)
            || self.follow_typed::<ReplicaSet>(kind, waiting)
            || self.follow_typed::<Deployment>(kind, waiting)
            || self.follow_typed::<Job>(kind, waiting)
            || self.follow_typed::<EndpointSlice>(kind, waiting)
            || self.follow_typed::<Service>(kind, waiting)
            || self.follow_typed::<ServiceAccount>(kind, waiting)
            || self.follow_typed::<Namespace>(kind, waiting)
            || self.follow_typed::<Node>(kind, waiting);
        if typed {
            return None;
        }
        let informer = self.context.informers.metadata(&kind.resource);
        let (this, own) = (Arc::clone(self), Arc::clone(kind));
        let defines = matches!(
            kind.resource.plural.as_str(),
            "customresourcedefinitions" | "apiservices"
        );
        informer.on_change(move |change| {
            if defines {
                // Definitions need a moment to be served, and come in groups.
                this.queue.add_after(Work::Discover, Duration::from_millis(500));
            }
            match change {
                Change::Deleted(object) => this.gone(object.uid()),
                other => this.seen(&own, other.object()),
            }
        });
        let synced = informer.clone();
        waiting.push(Box::pin(async move { synced.synced().await }));
        Some(informer)
    }

    /// Reads `kind` from the typed informer of `K` if that is its type.
    fn follow_typed<K>(
        self: &Arc<Self>,
        kind: &Arc<Kind>,
        waiting: &mut Vec<futures::future::BoxFuture<'static, ()>>,
    ) -> bool
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
    {
        if kind.resource.group != K::group(&()) || kind.resource.plural != K::plural(&()) {
            return false;
        }
        let informer = self.context.informers.of::<K>();
        let (this, own) = (Arc::clone(self), Arc::clone(kind));
        informer.on_change(move |change| match change {
            Change::Deleted(object) => this.gone(object.uid()),
            other => this.seen(&own, &summary(other.object().as_ref())),
        });
        waiting.push(Box::pin(async move { informer.synced().await }));
        true
    }

    fn seen(&self, kind: &Arc<Kind>, object: &Summary) {
        let (work, invalid) = lock(&self.graph).upsert(kind, object);
        for one in work {
            self.queue.add(one);
        }
        for wrong in invalid {
            let (namespace, owner) = (wrong.namespace, wrong.reference);
            let about = ObjectReference {
                api_version: Some(wrong.api_version),
                kind: Some(wrong.kind),
                namespace: Some(namespace.clone()).filter(|namespace| !namespace.is_empty()),
                name: Some(wrong.name),
                uid: Some(wrong.dependent),
                ..Default::default()
            };
            self.context.recorder.event_about(
                about,
                EventType::Warning,
                "OwnerRefInvalidNamespace",
                format!(
                    "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace {namespace:?}",
                    owner.api_version, owner.kind, owner.name, owner.uid
                ),
            );
        }
    }

    fn gone(&self, uid: &str) {
        let work = lock(&self.graph).remove(uid);
        for one in work {
            self.queue.add(one);
        }
    }

    /// The resource that a reference names.
    fn resource_of(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        let group = group_of(api_version);
        lock(&self.kinds).get(&(group.to_owned(), kind.to_owned())).cloned()
    }

    fn note_absent(&self, owner: Identity) {
        let mut absent = lock(&self.absent);
        if absent.len() >= ABSENT {
            absent.clear();
        }
        absent.insert(owner);
    }
}

fn summary<K: kube::Resource>(object: &K) -> Summary {
    let meta = object.meta();
    Summary {
        metadata: SummaryMeta {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            deletion_timestamp: meta.deletion_timestamp.clone(),
            owner_references: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
        },
    }
}

fn api(
    client: &kube::Client,
    resource: &ApiResource,
    namespaced: bool,
    namespace: &str,
) -> kube::Api<kube::api::DynamicObject> {
    if namespaced {
        kube::Api::namespaced_with(client.clone(), namespace, resource)
    } else {
        kube::Api::all_with(client.clone(), resource)
    }
}

#[cfg(test)]
mod tests;
