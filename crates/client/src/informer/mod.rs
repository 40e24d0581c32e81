//! Shared informers: one list and watch per kind and process, one cache, any number of readers.
//!
//! Invariants:
//! - an object is decoded once and shared as `Arc<K>`; `metadata.managedFields` is dropped on the way in;
//! - a handler sees the changes of one object in order, and the cache is never older than what a handler was told;
//! - a handler registered late first sees every cached object as [`Change::Added`];
//! - an object that was deleted and made anew under its old name is `Deleted` then `Added`, even when the watch was
//!   interrupted in between (upstream reports `Modified` with another uid);
//! - an object that cannot be decoded is logged and skipped: it never stops the informer.
//!
//! A watch that ends is resumed from the last version seen, bookmarks included; a list is taken again only when the
//! server no longer keeps that version (410).

mod cache;
mod reflector;
mod wire;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::core::ApiResource;
use sampan_tasks::{Drain, OnExit, Tasks};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::Key;
use cache::Cache;

/// What an informer needs to know of an object.
pub trait Cached: DeserializeOwned + Send + Sync + 'static {
    /// Empty for cluster-scoped objects.
    fn namespace(&self) -> &str;
    fn name(&self) -> &str;
    fn uid(&self) -> &str;
    fn resource_version(&self) -> &str;
    /// Drops what nobody in this process reads.
    fn slim(&mut self);
}

impl<K> Cached for K
where
    K: kube::Resource + DeserializeOwned + Send + Sync + 'static,
{
    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }
    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }
    fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }
    fn resource_version(&self) -> &str {
        self.meta().resource_version.as_deref().unwrap_or_default()
    }
    fn slim(&mut self) {
        self.meta_mut().managed_fields = None;
    }
}

/// The part of any object's metadata that ownership and deletion depend on, and nothing else.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Summary {
    pub metadata: SummaryMeta,
}

/// See [`Summary`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SummaryMeta {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub deletion_timestamp: Option<Time>,
    pub owner_references: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
}

impl Cached for Summary {
    fn namespace(&self) -> &str {
        &self.metadata.namespace
    }
    fn name(&self) -> &str {
        &self.metadata.name
    }
    fn uid(&self) -> &str {
        &self.metadata.uid
    }
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
    fn slim(&mut self) {}
}

/// Which objects of a kind an informer holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    pub labels: Option<String>,
    pub fields: Option<String>,
}

impl Selection {
    pub fn labels(selector: impl Into<String>) -> Self {
        Selection {
            labels: Some(selector.into()),
            fields: None,
        }
    }
    pub fn fields(selector: impl Into<String>) -> Self {
        Selection {
            labels: None,
            fields: Some(selector.into()),
        }
    }
}

/// One change of the cache.
#[derive(Debug)]
pub enum Change<K> {
    Added(Arc<K>),
    Modified { old: Arc<K>, new: Arc<K> },
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The newest state of the object concerned.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Added(object) | Change::Deleted(object) => object,
            Change::Modified { new, .. } => new,
        }
    }

    /// The state before, where there was one.
    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Change::Added(_) => None,
            Change::Modified { old, .. } | Change::Deleted(old) => Some(old),
        }
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send>;
type Transform<K> = Arc<dyn Fn(&mut K) + Send + Sync>;

/// Informers by the type they hold and the place they read from.
type Known = HashMap<(TypeId, String), Box<dyn Any + Send>>;

/// The informers of a process. Clones share them.
#[derive(Clone)]
pub struct Informers {
    client: kube::Client,
    tasks: Tasks,
    known: Arc<Mutex<Known>>,
}

impl Informers {
    /// Informers that read through `client` and run on `tasks`. Nothing is read until a kind is asked for.
    pub fn new(client: kube::Client, tasks: &Tasks) -> Self {
        Informers {
            client,
            tasks: tasks.clone(),
            known: Arc::default(),
        }
    }

    /// The client the informers read through.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    /// The informer of all objects of a kind.
    pub fn of<K>(&self) -> Informer<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
    {
        self.with(Selection::default())
    }

    /// The informer of the selected objects of a kind. Equal selections share one informer.
    pub fn with<K>(&self, selection: Selection) -> Informer<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
    {
        self.start(K::url_path(&(), None), selection, false, None)
    }

    /// Like [`Informers::with`], and `transform` slims each object before it is kept. The first caller's transform
    /// counts for everyone who asks for the same selection.
    pub fn transformed<K>(
        &self,
        selection: Selection,
        transform: impl Fn(&mut K) + Send + Sync + 'static,
    ) -> Informer<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
    {
        self.start(K::url_path(&(), None), selection, false, Some(Arc::new(transform)))
    }

    /// The metadata of all objects of a resource known only by discovery.
    pub fn metadata(&self, resource: &ApiResource) -> Informer<Summary> {
        let prefix = if resource.group.is_empty() { "/api" } else { "/apis" };
        let path = format!("{prefix}/{}/{}", resource.api_version, resource.plural);
        self.start(path, Selection::default(), true, None)
    }

    fn start<K: Cached>(
        &self,
        path: String,
        selection: Selection,
        metadata_only: bool,
        transform: Option<Transform<K>>,
    ) -> Informer<K> {
        let id = (
            TypeId::of::<K>(),
            format!(
                "{path}?{}&{}",
                selection.labels.as_deref().unwrap_or_default(),
                selection.fields.as_deref().unwrap_or_default()
            ),
        );
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(informer) = known.get(&id).and_then(|known| known.downcast_ref::<Informer<K>>())
            && !informer.shared.stop.is_started()
        {
            return informer.clone();
        }
        let informer = Informer {
            shared: Arc::new(Shared {
                cache: RwLock::new(Cache::default()),
                handlers: Mutex::new(Vec::new()),
                synced: watch::Sender::new(false),
                stop: self.tasks.drain().child(),
            }),
        };
        known.insert(id, Box::new(informer.clone()));
        drop(known);
        let source = wire::Source {
            client: self.client.clone(),
            path: path.clone(),
            selection,
            metadata_only,
        };
        let (shared, stop) = (Arc::clone(&informer.shared), informer.shared.stop.clone());
        let follow = async move {
            loop {
                let run = reflector::run(&source, &shared, transform.as_ref());
                if AssertUnwindSafe(run).catch_unwind().await.is_err() {
                    tracing::error!(path = source.path, "an informer panicked, it lists again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        self.tasks
            .spawn(format!("informer {path}"), OnExit::Expected, async move {
                let _stopped: Option<std::convert::Infallible> = stop.until(follow).await;
            });
        informer
    }
}

impl fmt::Debug for Informers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informers").finish_non_exhaustive()
    }
}

/// The shared cache of one kind. Clones share it.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer {
            shared: Arc::clone(&self.shared),
        }
    }
}

pub(crate) struct Shared<K> {
    cache: RwLock<Cache<K>>,
    /// Held while a change is put into the cache and told to the handlers, so that registration is atomic with both.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    stop: Drain,
}

impl<K: Cached> Informer<K> {
    /// The object `namespace`/`name`; the namespace is "" for cluster-scoped kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.read(|cache| cache.get(namespace, name))
    }

    pub fn get_key(&self, key: &Key) -> Option<Arc<K>> {
        self.get(&key.namespace, &key.name)
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read(|cache| cache.iter().cloned().collect())
    }

    /// The objects of one namespace, ordered by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.read(|cache| cache.iter_namespace(namespace).cloned().collect())
    }

    /// How many objects of a namespace are cached.
    pub fn len_namespace(&self, namespace: &str) -> usize {
        self.read(|cache| cache.len_namespace(namespace))
    }

    /// How many objects are cached.
    pub fn len(&self) -> usize {
        self.read(Cache::len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps an index under `name`: `keys` says which values an object is found by. The first registration of a name
    /// counts; later ones are ignored, so components may each ask for the index they need.
    pub fn add_index(&self, name: &'static str, keys: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        self.shared
            .cache
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .add_index(name, Box::new(keys));
    }

    /// The objects an index files under `value`, in no particular order. Empty when there is no such index.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        self.read(|cache| cache.by_index(name, value))
    }

    /// How many objects an index files under `value`.
    pub fn count_by_index(&self, name: &str, value: &str) -> usize {
        self.read(|cache| cache.count_by_index(name, value))
    }

    /// Calls `handler` for every change from now on, in order; before that, here and now, with `Added` for every
    /// object already cached. Handlers run between cache and watch: they must be quick (usually: put a key into a
    /// queue) and must not register handlers on the same informer.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + 'static) {
        let mut handlers = self.shared.lock_handlers();
        let known = self.list();
        for object in known {
            call(&handler, &Change::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    /// Whether the first list is in the cache and has been told to the handlers.
    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Resolves once [`Informer::has_synced`].
    pub async fn synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        // The sender lives as long as `self`.
        let _seen = synced.wait_for(|synced| *synced).await;
    }

    /// Stops following the kind, for everyone. The cache stays as it is.
    pub fn stop(&self) {
        self.shared.stop.start();
    }

    fn read<T>(&self, read: impl FnOnce(&Cache<K>) -> T) -> T {
        read(&self.shared.cache.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<K: Cached> Shared<K> {
    fn lock_handlers(&self) -> MutexGuard<'_, Vec<Handler<K>>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `object` into the cache and tells the handlers.
    fn upsert(&self, object: Arc<K>) {
        let handlers = self.lock_handlers();
        let old = self
            .cache
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(Arc::clone(&object));
        match old {
            None => tell(&handlers, &Change::Added(object)),
            Some(old) if old.uid() != object.uid() => {
                tell(&handlers, &Change::Deleted(old));
                tell(&handlers, &Change::Added(object));
            }
            Some(old) if old.resource_version() == object.resource_version() && !old.resource_version().is_empty() => {}
            Some(old) => tell(&handlers, &Change::Modified { old, new: object }),
        }
    }

    /// Takes an object out of the cache; `last` is its last state where the watch told it.
    fn remove(&self, namespace: &str, name: &str, last: Option<Arc<K>>) {
        let handlers = self.lock_handlers();
        let old = self
            .cache
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(namespace, name);
        if let Some(old) = old {
            tell(&handlers, &Change::Deleted(last.unwrap_or(old)));
        }
    }
}

fn tell<K>(handlers: &[Handler<K>], change: &Change<K>) {
    for handler in handlers {
        call(handler, change);
    }
}

fn call<K>(handler: &(impl Fn(&Change<K>) + ?Sized), change: &Change<K>) {
    if std::panic::catch_unwind(AssertUnwindSafe(|| handler(change))).is_err() {
        tracing::error!("an informer's handler panicked; the change is lost to it");
    }
}
