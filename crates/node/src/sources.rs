//! ConfigMaps and Secrets that Pods of this node use, each watched by name while some Pod needs it.
//!
//! A node must not read every Secret of the cluster: only those its Pods name. One watch per object, shared by its
//! Pods; a change wakes exactly those. Immutable objects are not watched once they are known.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount};
use kube::api::{Api, PostParams};
use kube::runtime::watcher;
use sampan_tasks::{Drain, OnExit, Tasks};
use sampan_volumes::{SourceError, Sources, Token};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

type Wake = Arc<dyn Fn(&str) + Send + Sync>;

/// What is known of one object. `None` inside: it does not exist.
type Known<K> = Option<Option<Arc<K>>>;

struct Entry<K> {
    users: BTreeSet<String>,
    value: watch::Sender<Known<K>>,
    stop: Drain,
}

/// The watched objects of one kind.
struct Watched<K> {
    client: kube::Client,
    tasks: Tasks,
    wake: Wake,
    immutable: fn(&K) -> bool,
    entries: Mutex<HashMap<(String, String), Entry<K>>>,
}

impl<K> Watched<K>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Entry<K>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `names` exactly the objects that the Pod uses.
    fn set_used(self: &Arc<Self>, pod_uid: &str, namespace: &str, names: &BTreeSet<String>) {
        let mut fresh = Vec::new();
        {
            let mut entries = self.lock();
            entries.retain(|(in_namespace, name), entry| {
                if !(in_namespace == namespace && names.contains(name)) {
                    entry.users.remove(pod_uid);
                }
                if entry.users.is_empty() {
                    entry.stop.start();
                }
                !entry.users.is_empty()
            });
            for name in names {
                let key = (namespace.to_owned(), name.clone());
                let entry = entries.entry(key.clone()).or_insert_with(|| {
                    fresh.push(key);
                    Entry {
                        users: BTreeSet::new(),
                        value: watch::Sender::new(None),
                        stop: self.tasks.drain().child(),
                    }
                });
                entry.users.insert(pod_uid.to_owned());
            }
        }
        for (namespace, name) in fresh {
            let stop = match self.lock().get(&(namespace.clone(), name.clone())) {
                Some(entry) => entry.stop.clone(),
                None => continue,
            };
            let this = Arc::clone(self);
            self.tasks.spawn(
                format!("watch of {} {namespace}/{name}", K::kind(&())),
                OnExit::Expected,
                async move {
                    let _stopped = stop.until(this.follow(&namespace, &name)).await;
                },
            );
        }
    }

    async fn follow(&self, namespace: &str, name: &str) {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let events = watcher::watcher(api, config);
        let mut events = std::pin::pin!(kube::runtime::WatchStreamExt::default_backoff(events));
        let mut listed: Option<Arc<K>> = None;
        while let Some(event) = events.next().await {
            let object = match event {
                Ok(watcher::Event::Init) => {
                    listed = None;
                    continue;
                }
                Ok(watcher::Event::InitApply(object)) => {
                    listed = Some(Arc::new(object));
                    continue;
                }
                Ok(watcher::Event::InitDone) => listed.take(),
                Ok(watcher::Event::Apply(object)) => Some(Arc::new(object)),
                Ok(watcher::Event::Delete(_)) => None,
                Err(error) => {
                    tracing::debug!(kind = %K::kind(&()), namespace, name, %error, "a watch was interrupted");
                    continue;
                }
            };
            let done = object.as_ref().is_some_and(|object| (self.immutable)(object));
            self.publish(namespace, name, object);
            if done {
                return;
            }
        }
    }

    fn publish(&self, namespace: &str, name: &str, object: Option<Arc<K>>) {
        let version = |known: &Known<K>| {
            known
                .as_ref()
                .map(|object| object.as_ref().map(|o| o.meta().resource_version.clone()))
        };
        let users = {
            let entries = self.lock();
            let Some(entry) = entries.get(&(namespace.to_owned(), name.to_owned())) else {
                return;
            };
            let fresh = Some(object);
            let changed = entry.value.send_if_modified(|known| {
                let changed = version(known) != version(&fresh);
                *known = fresh;
                changed
            });
            if !changed {
                return;
            }
            entry.users.clone()
        };
        for uid in users {
            (self.wake)(&uid);
        }
    }

    /// The object, once its watch has seen it; asked for directly when nothing watches it.
    async fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, SourceError> {
        let kind = K::kind(&()).to_lowercase();
        let receiver = self
            .lock()
            .get(&(namespace.to_owned(), name.to_owned()))
            .map(|entry| entry.value.subscribe());
        let Some(mut receiver) = receiver else {
            let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
            let found = api.get_opt(name).await;
            return found
                .map(|found| found.map(Arc::new))
                .map_err(|error| SourceError(format!("cannot read {kind} {name:?}: {error}")));
        };
        let known = tokio::time::timeout(Duration::from_secs(10), receiver.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(known)) => Ok(known.clone().flatten()),
            _ => Err(SourceError(format!(
                "failed to sync {kind} cache: {kind} {name:?} could not be read in time; the API server may be out of reach"
            ))),
        }
    }
}

/// What volumes and variables read, through the API.
pub struct ObjectSources {
    client: kube::Client,
    config_maps: Arc<Watched<ConfigMap>>,
    secrets: Arc<Watched<Secret>>,
}

impl ObjectSources {
    /// `wake` is called with the uid of every Pod whose objects changed.
    pub fn new(client: kube::Client, tasks: &Tasks, wake: Wake) -> Self {
        Self {
            config_maps: Arc::new(Watched {
                client: client.clone(),
                tasks: tasks.clone(),
                wake: Arc::clone(&wake),
                immutable: |map| map.immutable == Some(true),
                entries: Mutex::default(),
            }),
            secrets: Arc::new(Watched {
                client: client.clone(),
                tasks: tasks.clone(),
                wake,
                immutable: |secret| secret.immutable == Some(true),
                entries: Mutex::default(),
            }),
            client,
        }
    }

    /// Watches what the Pod uses from now on, and nothing else for it. Idempotent.
    pub fn register(&self, pod: &Pod) {
        let mut names: HashMap<&str, BTreeSet<String>> = HashMap::new();
        let references = sampan_volumes::referenced_objects(pod)
            .into_iter()
            .chain(crate::pod::env::referenced(pod));
        for (kind, name) in references {
            names.entry(kind).or_default().insert(name);
        }
        let of = |kind: &str| names.get(kind).cloned().unwrap_or_default();
        let (uid, namespace) = (crate::pod::uid(pod), crate::pod::namespace(pod));
        self.config_maps.set_used(uid, namespace, &of("ConfigMap"));
        self.secrets.set_used(uid, namespace, &of("Secret"));
    }

    /// Forgets a Pod.
    pub fn unregister(&self, uid: &str) {
        self.config_maps.set_used(uid, "", &BTreeSet::new());
        self.secrets.set_used(uid, "", &BTreeSet::new());
    }
}

#[async_trait]
impl Sources for ObjectSources {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, SourceError> {
        self.config_maps.get(namespace, name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, SourceError> {
        self.secrets.get(namespace, name).await
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<Arc<PersistentVolumeClaim>>, SourceError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await;
        found
            .map(|found| found.map(Arc::new))
            .map_err(|error| SourceError(format!("cannot read persistentvolumeclaim {name:?}: {error}")))
    }

    async fn persistent_volume(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>, SourceError> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = api.get_opt(name).await;
        found
            .map(|found| found.map(Arc::new))
            .map_err(|error| SourceError(format!("cannot read persistentvolume {name:?}: {error}")))
    }

    async fn token(
        &self,
        namespace: &str,
        service_account: &str,
        spec: &TokenRequestSpec,
    ) -> Result<Token, SourceError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let request = TokenRequest {
            spec: Some(spec.clone()),
            ..TokenRequest::default()
        };
        let failed = |why: String| {
            SourceError(format!(
                "failed to fetch token of service account {namespace}/{service_account}: {why}"
            ))
        };
        let answer = api
            .create_token_request(service_account, &PostParams::default(), &request)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let status = answer.status.ok_or_else(|| failed("the answer has no status".into()))?;
        match (status.token, status.expiration_timestamp) {
            (Some(token), Some(expires)) => Ok(Token {
                token,
                expires: expires.0,
            }),
            _ => Err(failed("the answer has no token".into())),
        }
    }
}
