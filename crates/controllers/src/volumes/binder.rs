//! The binder's frame: what wakes it, what it reads, and its writes.
//!
//! One queue holds claims (keys with a namespace) and volumes (keys without). A binding is at most four writes in a
//! fixed order: the volume's reference, the volume's phase, the claim's reference, the claim's phase. Each is made
//! against the version that was read, and each sync starts from the objects alone, so a binder that dies between any
//! two of them is continued by the next. A race for a volume is decided by its first write.
//!
//! Differences from upstream: no periodic resync (what can change an answer is followed instead), several workers,
//! no recycler. `Lost` is said only after the API server was asked, so that a cache that lags cannot say it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, PostParams};
use sampan_claims::{self as claims, BIND_COMPLETED, BOUND_BY_CONTROLLER, PRE_RESIZE_CAPACITY, annotation, mark};
use sampan_client::{Change, EventType, Informer, Key, Recorder, WorkQueue};

use super::recent::Recent;
use crate::{Context, SyncError};

/// Volumes by the claim they name, `namespace/name`.
const VOLUMES_BY_CLAIM: &str = "controllers/volumes/claim";
/// Volumes that name no claim, by class.
const FREE_VOLUMES: &str = "controllers/volumes/free";
/// Claims that were never bound, by class.
const UNBOUND_CLAIMS: &str = "controllers/claims/unbound";
/// Claims by the volume they name.
const CLAIMS_BY_VOLUME: &str = "controllers/claims/volume";
/// Pods by the claims they use, `namespace/name`.
const PODS_BY_CLAIM: &str = "controllers/pods/claim";

pub(super) struct Binder {
    pub(super) client: kube::Client,
    pub(super) recorder: Recorder,
    pub(super) queue: WorkQueue<Key>,
    pub(super) claims: Informer<PersistentVolumeClaim>,
    pub(super) volumes: Informer<PersistentVolume>,
    pub(super) classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    pub(super) recent_claims: Recent<PersistentVolumeClaim>,
    pub(super) recent_volumes: Recent<PersistentVolume>,
    /// Volumes that a worker is binding now, so that two do not want the same.
    choosing: Arc<Mutex<HashSet<String>>>,
}

/// A volume that nobody else chooses while this lives.
pub(super) struct Chosen {
    pub(super) volume: Arc<PersistentVolume>,
    all: Arc<Mutex<HashSet<String>>>,
}

impl Drop for Chosen {
    fn drop(&mut self) {
        let name = self.volume.metadata.name.as_deref().unwrap_or_default();
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

pub(crate) fn start(context: Context) {
    let informers = &context.informers;
    let (claims, volumes) = (
        informers.of::<PersistentVolumeClaim>(),
        informers.of::<PersistentVolume>(),
    );
    let (classes, pods) = (informers.of::<StorageClass>(), informers.of::<Pod>());
    index(&claims, &volumes, &pods);
    let binder = Arc::new(Binder {
        client: context.client.clone(),
        recorder: context.recorder.clone(),
        queue: WorkQueue::default(),
        recent_claims: Recent::of(&claims),
        recent_volumes: Recent::of(&volumes),
        choosing: Arc::default(),
        claims,
        volumes,
        classes,
        pods,
    });
    follow(&binder);
    let waits = Arc::clone(&binder);
    let ready = async move {
        waits.claims.synced().await;
        waits.volumes.synced().await;
        waits.classes.synced().await;
        waits.pods.synced().await;
    };
    let queue = binder.queue.clone();
    context.run(&queue, ready, move |key| {
        let binder = Arc::clone(&binder);
        async move {
            match key.namespace.is_empty() {
                true => binder.sync_volume(&key).await,
                false => binder.sync_claim(&key).await,
            }
        }
    });
}

fn index(claims: &Informer<PersistentVolumeClaim>, volumes: &Informer<PersistentVolume>, pods: &Informer<Pod>) {
    volumes.add_index(VOLUMES_BY_CLAIM, |volume| {
        claims::claim_ref(volume)
            .map(|claim| key_of(&claim.namespace, &claim.name))
            .into_iter()
            .collect()
    });
    volumes.add_index(FREE_VOLUMES, |volume| match claims::claim_ref(volume) {
        Some(_) => Vec::new(),
        None => vec![claims::volume_class(volume).to_owned()],
    });
    claims.add_index(UNBOUND_CLAIMS, |claim| {
        match annotation(&claim.metadata.annotations, BIND_COMPLETED) {
            Some(_) => Vec::new(),
            None => vec![claims::claim_class(claim).to_owned()],
        }
    });
    claims.add_index(CLAIMS_BY_VOLUME, |claim| {
        claims::volume_name(claim).map(str::to_owned).into_iter().collect()
    });
    pods.add_index(PODS_BY_CLAIM, |pod| {
        let names = claims::claims_of(pod);
        names
            .into_iter()
            .map(|name| key_of(&pod.metadata.namespace, &Some(name)))
            .collect()
    });
}

fn key_of(namespace: &Option<String>, name: &Option<String>) -> String {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", text(namespace), text(name))
}

/// What wakes which claims and volumes.
fn follow(binder: &Arc<Binder>) {
    let b = Arc::clone(binder);
    binder.claims.on_change(move |change| {
        let claim = change.object();
        if matches!(change, Change::Deleted(_)) {
            for volume in b
                .volumes
                .by_index(VOLUMES_BY_CLAIM, &Key::of(claim.as_ref()).to_string())
            {
                b.queue.add(Key::of(volume.as_ref()));
            }
            if let Some(name) = claims::volume_name(claim) {
                b.queue.add(Key::new("", name));
            }
        } else {
            b.queue.add(Key::of(claim.as_ref()));
        }
    });
    let b = Arc::clone(binder);
    binder.volumes.on_change(move |change| {
        let volume = change.object();
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let gone = matches!(change, Change::Deleted(_));
        if !gone {
            b.queue.add(Key::new("", name));
        }
        for claim in b.claims.by_index(CLAIMS_BY_VOLUME, name) {
            let news = !matches!(change, Change::Modified { .. });
            if news || annotation(&claim.metadata.annotations, BIND_COMPLETED).is_none() {
                b.queue.add(Key::of(claim.as_ref()));
            }
        }
        match claims::claim_ref(volume) {
            Some(claim) => {
                let text = |part: &Option<String>| part.clone().unwrap_or_default();
                b.queue.add(Key::new(text(&claim.namespace), text(&claim.name)));
            }
            None if gone => {}
            None => {
                // Only those that would take it.
                for claim in b.claims.by_index(UNBOUND_CLAIMS, claims::volume_class(volume)) {
                    let offered = std::iter::once(Arc::clone(volume));
                    if claims::find(&claim, offered, None, false, &HashSet::new()).is_some() {
                        b.queue.add(Key::of(claim.as_ref()));
                    }
                }
            }
        }
    });
    let b = Arc::clone(binder);
    binder.classes.on_change(move |change| {
        if matches!(change, Change::Deleted(_)) {
            return;
        }
        let class = change.object();
        let mut concerned = b
            .claims
            .by_index(UNBOUND_CLAIMS, class.metadata.name.as_deref().unwrap_or_default());
        if claims::default_class(std::iter::once(class.as_ref())).is_some() {
            let unclassed = b.claims.by_index(UNBOUND_CLAIMS, "");
            concerned.extend(unclassed.into_iter().filter(|claim| !claims::has_class(claim)));
        }
        for claim in concerned {
            b.queue.add(Key::of(claim.as_ref()));
        }
    });
    let b = Arc::clone(binder);
    binder.pods.on_change(move |change| {
        // What a claim that waits for its first Pod is told depends on which Pods wait for it.
        let pod = change.object();
        let before = match change {
            Change::Added(_) => false,
            Change::Modified { old, .. } | Change::Deleted(old) => waits(old),
        };
        if before == (waits(pod) && !matches!(change, Change::Deleted(_))) {
            return;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for name in claims::claims_of(pod) {
            let unbound = b
                .claims
                .get(namespace, &name)
                .is_some_and(|claim| annotation(&claim.metadata.annotations, BIND_COMPLETED).is_none());
            if unbound {
                b.queue.add(Key::new(namespace, &name));
            }
        }
    });
}

/// Whether a Pod still looks for a node.
fn waits(pod: &Pod) -> bool {
    let placed = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    placed.unwrap_or_default().is_empty() && !crate::pods::is_terminal(pod)
}

impl Binder {
    pub(super) fn claims_api(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(super) fn volumes_api(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    pub(super) fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        Some(self.recent_volumes.newest(self.volumes.get("", name)?))
    }

    pub(super) fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get("", name)
    }

    /// Pods that use a claim and have no node.
    pub(super) fn waiting_pods(&self, claim: &PersistentVolumeClaim) -> Vec<String> {
        let key = Key::of(claim).to_string();
        let pods = self.pods.by_index(PODS_BY_CLAIM, &key);
        let mut names: Vec<String> = pods
            .into_iter()
            .filter(|pod| waits(pod))
            .filter_map(|pod| pod.metadata.name.clone())
            .collect();
        names.sort();
        names
    }

    /// The best volume for a claim, kept from other workers while it is being bound.
    pub(super) fn choose(&self, claim: &PersistentVolumeClaim, only_kept: bool) -> Option<Chosen> {
        let mut offered = self.volumes.by_index(VOLUMES_BY_CLAIM, &Key::of(claim).to_string());
        if !only_kept {
            offered.extend(self.volumes.by_index(FREE_VOLUMES, claims::claim_class(claim)));
        }
        let newest = offered.into_iter().map(|volume| self.recent_volumes.newest(volume));
        let mut choosing = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        let volume = claims::find(claim, newest, None, only_kept, &choosing)?;
        choosing.insert(volume.metadata.name.clone().unwrap_or_default());
        Some(Chosen {
            volume,
            all: Arc::clone(&self.choosing),
        })
    }

    /// Ties the two together, as far as they are not yet.
    pub(super) async fn bind(
        &self,
        volume: &Arc<PersistentVolume>,
        claim: &Arc<PersistentVolumeClaim>,
    ) -> Result<(), SyncError> {
        let volume = match claims::bound_to(volume, claim) {
            Some(bound) => self.write_volume(&bound).await?,
            None => Arc::clone(volume),
        };
        let volume = self.set_phase(&volume, "Bound", "").await?;
        let claim = self.bind_claim(claim, &volume).await?;
        self.set_claim_phase(&claim, "Bound", Some(&volume)).await?;
        Ok(())
    }

    async fn bind_claim(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        volume: &PersistentVolume,
    ) -> Result<Arc<PersistentVolumeClaim>, SyncError> {
        let named = claims::volume_name(claim) == volume.metadata.name.as_deref();
        if named && annotation(&claim.metadata.annotations, BIND_COMPLETED).is_some() {
            return Ok(Arc::clone(claim));
        }
        let mut bound = PersistentVolumeClaim::clone(claim);
        if !named {
            bound.spec.get_or_insert_default().volume_name = volume.metadata.name.clone();
            mark(&mut bound.metadata.annotations, BOUND_BY_CONTROLLER, "yes");
        }
        mark(&mut bound.metadata.annotations, BIND_COMPLETED, "yes");
        self.write_claim(&bound).await
    }

    /// Takes a binding back: wholly if it was ours, else only as far as it was ours.
    pub(super) async fn unbind(&self, volume: &PersistentVolume) -> Result<(), SyncError> {
        let mut free = volume.clone();
        let marks = free.metadata.annotations.get_or_insert_default();
        let spec = free.spec.get_or_insert_default();
        if marks.remove(BOUND_BY_CONTROLLER).is_some() {
            spec.claim_ref = None;
        } else if let Some(claim) = &mut spec.claim_ref {
            claim.uid = None;
        }
        let free = self.write_volume(&free).await?;
        self.set_phase(&free, "Available", "").await?;
        Ok(())
    }

    pub(super) async fn write_volume(&self, volume: &PersistentVolume) -> Result<Arc<PersistentVolume>, SyncError> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let written = self.volumes_api().replace(name, &PostParams::default(), volume).await?;
        Ok(self.recent_volumes.wrote(written))
    }

    pub(super) async fn write_claim(
        &self,
        claim: &PersistentVolumeClaim,
    ) -> Result<Arc<PersistentVolumeClaim>, SyncError> {
        let (namespace, name) = (
            claim.metadata.namespace.as_deref().unwrap_or_default(),
            claim.metadata.name.as_deref().unwrap_or_default(),
        );
        let api = self.claims_api(namespace);
        let written = api.replace(name, &PostParams::default(), claim).await?;
        Ok(self.recent_claims.wrote(written))
    }

    pub(super) async fn set_phase(
        &self,
        volume: &Arc<PersistentVolume>,
        phase: &str,
        message: &str,
    ) -> Result<Arc<PersistentVolume>, SyncError> {
        if phase_of(volume) == phase {
            return Ok(Arc::clone(volume));
        }
        let mut changed = PersistentVolume::clone(volume);
        let status = changed.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        status.message = Some(message.to_owned()).filter(|message| !message.is_empty());
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let api = self.volumes_api();
        let written = api.replace_status(name, &PostParams::default(), &changed).await?;
        Ok(self.recent_volumes.wrote(written))
    }

    /// The same, told to people if it is news.
    pub(super) async fn fail(
        &self,
        volume: &Arc<PersistentVolume>,
        reason: &str,
        message: &str,
    ) -> Result<(), SyncError> {
        if phase_of(volume) != "Failed" {
            let failed = self.set_phase(volume, "Failed", message).await?;
            self.recorder
                .event(failed.as_ref(), EventType::Warning, reason, message);
        }
        Ok(())
    }

    /// Writes a claim's phase and what it has of its volume.
    pub(super) async fn set_claim_phase(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<Arc<PersistentVolumeClaim>, SyncError> {
        let mut changed = PersistentVolumeClaim::clone(claim);
        let before = claim.status.clone().unwrap_or_default();
        let status = changed.status.get_or_insert_default();
        let spec = volume.and_then(|volume| volume.spec.as_ref());
        status.access_modes = spec.and_then(|spec| spec.access_modes.clone());
        match volume {
            None => {
                status.capacity = None;
                status.current_volume_attributes_class_name = None;
            }
            // Once bound, the file system may be smaller than the volume, and both may be on their way to something
            // else: that is for those to say who change them.
            Some(volume) if before.phase.as_deref() != Some(phase) => {
                let name = volume.metadata.name.as_deref().unwrap_or_default();
                let capacity = spec.and_then(|spec| spec.capacity.clone()).unwrap_or_default();
                if !capacity.contains_key("storage") {
                    return Err(SyncError::other(format!(
                        "PersistentVolume {name:?} is without a storage capacity"
                    )));
                }
                match annotation(&volume.metadata.annotations, PRE_RESIZE_CAPACITY) {
                    Some(size) => {
                        let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(size.to_owned());
                        let known = status.capacity.get_or_insert_default();
                        known.insert("storage".into(), quantity);
                    }
                    None => status.capacity = Some(capacity),
                }
                if before.phase.as_deref() == Some("Pending") {
                    status.current_volume_attributes_class_name =
                        spec.and_then(|spec| spec.volume_attributes_class_name.clone());
                }
            }
            Some(_) => {}
        }
        status.phase = Some(phase.to_owned());
        if *status == before {
            return Ok(Arc::clone(claim));
        }
        let (namespace, name) = (
            claim.metadata.namespace.as_deref().unwrap_or_default(),
            claim.metadata.name.as_deref().unwrap_or_default(),
        );
        let api = self.claims_api(namespace);
        let written = api.replace_status(name, &PostParams::default(), &changed).await?;
        Ok(self.recent_claims.wrote(written))
    }
}

pub(super) fn phase_of(volume: &PersistentVolume) -> &str {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    phase.unwrap_or_default()
}
