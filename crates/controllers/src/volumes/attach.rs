//! Attaching volumes of CSI drivers to the nodes whose Pods use them, and detaching them afterwards.
//!
//! One queue of places: a node and a volume. A place is wanted while a Pod on the node uses a claim that has the volume;
//! a VolumeAttachment asks the driver for it. When it is wanted no longer the node is told first (the volume leaves
//! `status.volumesAttached`), and only if it does not use it the attachment is deleted. A node that is not Ready has six
//! minutes to stop using a volume; one that is tainted as out of service none.
//!
//! Everything is read from the objects, so a controller that starts anew continues. What is kept in memory is when a
//! place stopped being wanted, and what people were told. Differences from upstream: nothing is compared on a timer;
//! volumes of in-tree types are not translated to those of CSI drivers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{AttachedVolume, CSIPersistentVolumeSource, Node, PersistentVolume};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{
    CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec, VolumeAttachmentStatus,
};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use sampan_claims::{self as claims, access_modes, annotation};
use sampan_client::{
    Cached, Change, Clock, EventType, Informer, Key, Recorder, WorkQueue, is_already_exists, is_conflict, or_absent,
};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{Context, SyncError};

/// On a Node: its kubelet leaves attaching to this controller.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How long a node that is not Ready may go on using a volume.
const PATIENCE: Duration = Duration::from_secs(6 * 60);

/// Pods on nodes by the claims they use, `namespace/name`.
const PODS_BY_CLAIM: &str = "controllers/attach/claim";
/// Pods that use claims, by node.
const PODS_BY_NODE: &str = "controllers/attach/pods";
const ATTACHMENTS_BY_VOLUME: &str = "controllers/attach/volume";
const ATTACHMENTS_BY_NODE: &str = "controllers/attach/node";

struct Attacher {
    client: kube::Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    queue: WorkQueue<Key>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    nodes: Informer<Node>,
    drivers: Informer<CSIDriver>,
    attachments: Informer<VolumeAttachment>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Since when a place is not wanted.
    unwanted: HashMap<Key, Timestamp>,
    /// Places that are being given up: their nodes are told.
    leaving: HashSet<Key>,
    /// Places whose Pods were told that the volume is elsewhere.
    told: HashSet<Key>,
}

/// A node and a volume.
fn place(node: &str, volume: &str) -> Key {
    Key::new(node, volume)
}

fn place_of(attachment: &VolumeAttachment) -> Option<Key> {
    let volume = attachment.spec.source.persistent_volume_name.as_deref()?;
    Some(place(&attachment.spec.node_name, volume))
}

fn node_of(pod: &Pod) -> &str {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    node.unwrap_or_default()
}

/// Whether a Pod has a node and is not done.
fn is_there(pod: &Pod) -> bool {
    !node_of(pod).is_empty() && !crate::pods::is_terminal(pod)
}

fn csi(volume: &PersistentVolume) -> Option<&CSIPersistentVolumeSource> {
    volume.spec.as_ref()?.csi.as_ref()
}

/// The name that nodes know a volume by.
fn unique_name(csi: &CSIPersistentVolumeSource) -> String {
    format!("kubernetes.io/csi/{}^{}", csi.driver, csi.volume_handle)
}

/// The name of an attachment: drivers, nodes and controllers compute it alike.
fn attachment_name(csi: &CSIPersistentVolumeSource, node: &str) -> String {
    let digest = Sha256::digest(format!("{}{}{node}", csi.volume_handle, csi.driver));
    digest.iter().fold("csi-".to_owned(), |mut name, byte| {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// Whether several nodes may have a volume at a time.
fn is_shared(volume: &PersistentVolume) -> bool {
    let modes = access_modes(volume);
    modes.is_empty()
        || modes
            .iter()
            .any(|mode| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany"))
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|status| status.attached)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

fn uses(node: &Node, name: &str) -> bool {
    let used = node.status.as_ref().and_then(|status| status.volumes_in_use.as_ref());
    used.is_some_and(|used| used.iter().any(|known| known == name))
}

fn shown(node: &Node) -> BTreeSet<String> {
    let shown = node
        .status
        .iter()
        .flat_map(|status| status.volumes_attached.iter().flatten());
    shown.into_iter().map(|volume| volume.name.clone()).collect()
}

/// What of a node can change the answer for one of its places.
fn facts(node: &Node) -> (bool, bool, bool, Option<&Vec<String>>, BTreeSet<String>) {
    let used = node.status.as_ref().and_then(|status| status.volumes_in_use.as_ref());
    let managed = annotation(&node.metadata.annotations, MANAGED) == Some("true");
    (managed, is_ready(node), is_out_of_service(node), used, shown(node))
}

pub(crate) fn start(context: Context) {
    let informers = &context.informers;
    let attacher = Arc::new(Attacher {
        client: context.client.clone(),
        recorder: context.recorder.clone(),
        clock: Arc::clone(&context.clock),
        queue: WorkQueue::default(),
        pods: informers.of(),
        claims: informers.of(),
        volumes: informers.of(),
        nodes: informers.of(),
        drivers: informers.of(),
        attachments: informers.of(),
        known: Mutex::default(),
    });
    attacher.index();
    follow(&attacher);
    let waits = Arc::clone(&attacher);
    let ready = async move {
        waits.pods.synced().await;
        waits.claims.synced().await;
        waits.volumes.synced().await;
        waits.nodes.synced().await;
        waits.drivers.synced().await;
        waits.attachments.synced().await;
    };
    let queue = attacher.queue.clone();
    context.run(&queue, ready, move |key| {
        let attacher = Arc::clone(&attacher);
        async move { attacher.sync(&key).await }
    });
}

fn follow(attacher: &Arc<Attacher>) {
    let a = Arc::clone(attacher);
    attacher.pods.on_change(move |change| {
        let pod = change.object();
        let now = is_there(pod) && !matches!(change, Change::Deleted(_));
        let before = change.old().is_some_and(|old| is_there(old));
        let another = change.old().is_some_and(|old| old.uid() != pod.uid());
        if now != before || another {
            for pod in change.old().into_iter().chain([pod]) {
                a.add_all(pod);
            }
        }
    });
    let a = Arc::clone(attacher);
    attacher.claims.on_change(move |change| {
        let named = |claim: &Arc<PersistentVolumeClaim>| claims::volume_name(claim).map(str::to_owned);
        let (before, now) = (change.old().and_then(named), named(change.object()));
        if before != now || matches!(change, Change::Deleted(_)) {
            let users = a
                .pods
                .by_index(PODS_BY_CLAIM, &Key::of(change.object().as_ref()).to_string());
            for (pod, volume) in users
                .iter()
                .flat_map(|pod| before.iter().chain(&now).map(move |volume| (pod, volume)))
            {
                a.add(node_of(pod), volume);
            }
        }
    });
    let a = Arc::clone(attacher);
    attacher.volumes.on_change(move |change| {
        let reference = |volume: &PersistentVolume| claims::claim_ref(volume).map(|claim| claim.uid.clone());
        let changed = change
            .old()
            .is_none_or(|old| reference(old) != reference(change.object()));
        if changed || matches!(change, Change::Deleted(_)) {
            a.add_users(change.object());
        }
    });
    let a = Arc::clone(attacher);
    attacher.attachments.on_change(move |change| {
        let Some(place) = place_of(change.object()) else { return };
        if matches!(change, Change::Deleted(_)) {
            a.known().leaving.remove(&place);
            // Another node may be waiting for it.
            if let Some(volume) = a.volumes.get("", &place.name) {
                a.add_users(&volume);
            }
        }
        a.queue.add(place);
    });
    let a = Arc::clone(attacher);
    attacher.nodes.on_change(move |change| {
        if let Change::Modified { old, new } = change
            && facts(old) == facts(new)
        {
            return;
        }
        let name = change.object().name();
        for attachment in a.attachments.by_index(ATTACHMENTS_BY_NODE, name) {
            a.queue_of(&attachment);
        }
        for pod in a.pods.by_index(PODS_BY_NODE, name) {
            a.add_all(&pod);
        }
    });
    let a = Arc::clone(attacher);
    attacher.drivers.on_change(move |change| {
        let required = |driver: &CSIDriver| driver.spec.attach_required;
        let changed = change
            .old()
            .is_none_or(|old| required(old) != required(change.object()));
        if changed || matches!(change, Change::Deleted(_)) {
            // Rare: once per driver.
            for attachment in a.attachments.list() {
                if attachment.spec.attacher == change.object().name() {
                    a.queue_of(&attachment);
                }
            }
        }
    });
}

impl Attacher {
    fn index(&self) {
        self.pods.add_index(PODS_BY_CLAIM, |pod| match is_there(pod) {
            true => {
                let claims = claims::claims_of(pod).into_iter();
                claims
                    .map(|claim| Key::new(pod.namespace(), claim).to_string())
                    .collect()
            }
            false => Vec::new(),
        });
        self.pods.add_index(PODS_BY_NODE, |pod| {
            let concerned = is_there(pod) && !claims::claims_of(pod).is_empty();
            concerned.then(|| node_of(pod).to_owned()).into_iter().collect()
        });
        self.attachments.add_index(ATTACHMENTS_BY_VOLUME, |attachment| {
            place_of(attachment).map(|place| place.name).into_iter().collect()
        });
        self.attachments.add_index(ATTACHMENTS_BY_NODE, |attachment| {
            vec![attachment.spec.node_name.clone()]
        });
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, node: &str, volume: &str) {
        // Volumes that are not attached are most of all.
        if !node.is_empty() && self.volumes.get("", volume).is_none_or(|volume| csi(&volume).is_some()) {
            self.queue.add(place(node, volume));
        }
    }

    /// The places of a Pod.
    fn add_all(&self, pod: &Pod) {
        for claim in claims::claims_of(pod) {
            if let Some(claim) = self.claims.get(pod.namespace(), &claim)
                && let Some(volume) = claims::volume_name(&claim)
            {
                self.add(node_of(pod), volume);
            }
        }
    }

    /// The places where a volume is wanted.
    fn add_users(&self, volume: &PersistentVolume) {
        for pod in self.users(volume) {
            self.add(node_of(&pod), volume.name());
        }
    }

    fn queue_of(&self, attachment: &VolumeAttachment) {
        if let Some(place) = place_of(attachment) {
            self.queue.add(place);
        }
    }

    /// The Pods on nodes that use a volume.
    fn users(&self, volume: &PersistentVolume) -> Vec<Arc<Pod>> {
        let Some(reference) = claims::claim_ref(volume) else {
            return Vec::new();
        };
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let key = Key::new(text(&reference.namespace), text(&reference.name));
        let claim = self.claims.get_key(&key);
        let bound = claim.is_some_and(|claim| {
            claim.metadata.uid == reference.uid && claims::volume_name(&claim) == Some(volume.name())
        });
        match bound {
            true => self.pods.by_index(PODS_BY_CLAIM, &key.to_string()),
            false => Vec::new(),
        }
    }

    fn needs_attaching(&self, driver: &str) -> bool {
        let driver = self.drivers.get("", driver);
        driver.is_none_or(|driver| driver.spec.attach_required != Some(false))
    }

    /// The attachment of a place, if it is one that this controller would have made.
    fn attachment(&self, at: &Key, volume: Option<&PersistentVolume>) -> Option<Arc<VolumeAttachment>> {
        let name = volume.and_then(csi).map(|csi| attachment_name(csi, &at.namespace));
        let all = self.attachments.by_index(ATTACHMENTS_BY_VOLUME, &at.name);
        all.into_iter().find(|attachment| {
            attachment.spec.node_name == at.namespace
                && match &name {
                    Some(name) => attachment.name() == name,
                    None => attachment.name().starts_with("csi-"),
                }
        })
    }

    async fn sync(&self, at: &Key) -> Result<(), SyncError> {
        let volume = self.volumes.get("", &at.name);
        let node = self.nodes.get("", &at.namespace);
        let managed = node
            .as_ref()
            .is_some_and(|node| annotation(&node.metadata.annotations, MANAGED) == Some("true"));
        if let Some(volume) = &volume
            && let Some(csi) = csi(volume)
            && self.needs_attaching(&csi.driver)
        {
            let users = self.users(volume);
            let (here, elsewhere): (Vec<_>, Vec<_>) = users.into_iter().partition(|pod| node_of(pod) == at.namespace);
            if !here.is_empty() {
                // Somebody else's work, or nobody's yet.
                return match managed {
                    true => self.attach(at, volume, csi, &here, &elsewhere).await,
                    false => Ok(()),
                };
            }
        }
        self.known().told.remove(at);
        match self.attachment(at, volume.as_deref()) {
            Some(attachment) => self.detach(at, volume.as_deref(), node, &attachment).await,
            None => {
                self.known().unwanted.remove(at);
                self.report(&at.namespace).await.map(drop)
            }
        }
    }

    fn tell(&self, pods: &[Arc<Pod>], kind: EventType, reason: &str, message: &str) {
        for pod in pods {
            self.recorder.event(pod.as_ref(), kind, reason, message);
        }
    }

    async fn attach(
        &self,
        at: &Key,
        volume: &PersistentVolume,
        csi: &CSIPersistentVolumeSource,
        here: &[Arc<Pod>],
        elsewhere: &[Arc<Pod>],
    ) -> Result<(), SyncError> {
        {
            let mut known = self.known();
            known.unwanted.remove(at);
            known.leaving.remove(at);
        }
        let name = volume.name();
        if let Some(attachment) = self.attachment(at, Some(volume)) {
            if attachment.metadata.deletion_timestamp.is_some() {
                // It is made anew when it is gone.
                return Ok(());
            }
            let status = attachment.status.as_ref();
            if is_attached(&attachment) {
                let node = self.nodes.get("", &at.namespace);
                let news = node.is_some_and(|node| !shown(&node).contains(&unique_name(csi)));
                self.report(&at.namespace).await?;
                if news {
                    let message = format!("AttachVolume.Attach succeeded for volume {name:?} ");
                    self.tell(here, EventType::Normal, "SuccessfulAttachVolume", &message);
                }
            } else if let Some(error) = status.and_then(|status: &VolumeAttachmentStatus| status.attach_error.as_ref())
            {
                let why = error.message.as_deref().unwrap_or_default();
                let message = format!("AttachVolume.Attach failed for volume {name:?} : {why}");
                self.tell(here, EventType::Warning, "FailedAttachVolume", &message);
            }
            return Ok(());
        }
        if !is_shared(volume) {
            let attachments = self.attachments.by_index(ATTACHMENTS_BY_VOLUME, name);
            if attachments.iter().any(|other| other.spec.node_name != at.namespace) {
                // Tried again when that attachment is gone.
                if self.known().told.insert(at.clone()) {
                    self.tell_taken(name, here, elsewhere);
                }
                return Ok(());
            }
        }
        self.known().told.remove(at);
        let wanted = VolumeAttachment {
            metadata: ObjectMeta {
                name: Some(attachment_name(csi, &at.namespace)),
                ..ObjectMeta::default()
            },
            spec: VolumeAttachmentSpec {
                attacher: csi.driver.clone(),
                node_name: at.namespace.clone(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(name.to_owned()),
                    ..VolumeAttachmentSource::default()
                },
            },
            status: None,
        };
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &wanted).await {
            Ok(_) => Ok(()),
            Err(error) if is_already_exists(&error) => Ok(()),
            Err(error) => {
                let message = format!("AttachVolume.Attach failed for volume {name:?} : {error}");
                self.tell(here, EventType::Warning, "FailedAttachVolume", &message);
                Err(error.into())
            }
        }
    }

    /// Tells Pods that their volume is on another node. Names of Pods are told within their namespace only.
    fn tell_taken(&self, volume: &str, here: &[Arc<Pod>], elsewhere: &[Arc<Pod>]) {
        for pod in here {
            let (near, far): (Vec<_>, Vec<_>) =
                elsewhere.iter().partition(|other| other.namespace() == pod.namespace());
            let names: Vec<&str> = near.iter().map(|other| other.name()).collect();
            let why = match (names.as_slice(), far.len()) {
                ([], 0) => {
                    "Volume is already exclusively attached to one node and can't be attached to another".to_owned()
                }
                ([], far) => format!("Volume is already used by {far} pod(s) in different namespaces"),
                (names, 0) => format!("Volume is already used by pod(s) {}", names.join(", ")),
                (names, far) => format!(
                    "Volume is already used by pod(s) {} and {far} pod(s) in different namespaces",
                    names.join(", ")
                ),
            };
            let message = format!("Multi-Attach error for volume {volume:?} {why}");
            self.recorder
                .event(pod.as_ref(), EventType::Warning, "FailedAttachVolume", message);
        }
    }

    async fn detach(
        &self,
        at: &Key,
        volume: Option<&PersistentVolume>,
        node: Option<Arc<Node>>,
        attachment: &VolumeAttachment,
    ) -> Result<(), SyncError> {
        if attachment.metadata.deletion_timestamp.is_some() {
            return self.report(&at.namespace).await.map(drop);
        }
        let now = self.clock.now();
        let since = *self.known().unwanted.entry(at.clone()).or_insert(now);
        let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        let healthy = node.as_deref().is_some_and(is_ready);
        let forced = node.as_deref().is_some_and(is_out_of_service) || (!healthy && waited >= PATIENCE);
        let name = volume.and_then(csi).map(unique_name);
        let in_use = |node: &Node| name.as_deref().is_some_and(|name| uses(node, name));
        if node.as_deref().is_some_and(in_use) && !forced {
            if !healthy {
                self.queue.add_after(at.clone(), PATIENCE.saturating_sub(waited));
            }
            // A node that is well says when it is done.
            return Ok(());
        }
        self.known().leaving.insert(at.clone());
        let told = self.report(&at.namespace).await;
        // What the node uses may be news of this very moment.
        let refused = match &told {
            Ok(told) => !forced && told.as_ref().is_some_and(in_use),
            Err(_) => true,
        };
        if refused {
            self.known().leaving.remove(at);
            told?;
            return self.report(&at.namespace).await.map(drop);
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: attachment.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        or_absent(api.delete(attachment.name(), &params).await)?;
        Ok(())
    }

    /// Writes on a node which volumes it may use. Gives the node as it is then; `None`: it does not exist.
    async fn report(&self, name: &str) -> Result<Option<Node>, SyncError> {
        let Some(cached) = self.nodes.get("", name) else {
            return Ok(None);
        };
        if annotation(&cached.metadata.annotations, MANAGED) != Some("true") {
            return Ok(Some(Node::clone(&cached)));
        }
        let mut node = Node::clone(&cached);
        let api: Api<Node> = Api::all(self.client.clone());
        loop {
            let wanted = self.attached_to(name);
            if wanted == shown(&node) {
                return Ok(Some(node));
            }
            let listed: Vec<AttachedVolume> = wanted
                .into_iter()
                .map(|name| AttachedVolume {
                    name,
                    device_path: String::new(),
                })
                .collect();
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "status": {"volumesAttached": listed},
            });
            let written = api
                .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            match written {
                Ok(written) => return Ok(Some(written)),
                Err(error) if is_conflict(&error) => match or_absent(api.get(name).await)? {
                    Some(live) => node = live,
                    None => return Ok(None),
                },
                Err(error) => {
                    or_absent::<Node>(Err(error))?;
                    return Ok(None);
                }
            }
        }
    }

    /// The volumes that are attached to a node and stay so.
    fn attached_to(&self, node: &str) -> BTreeSet<String> {
        let attachments = self.attachments.by_index(ATTACHMENTS_BY_NODE, node);
        let known = self.known();
        let names = attachments.iter().filter_map(|attachment| {
            let at = place_of(attachment)?;
            let stays = is_attached(attachment)
                && attachment.metadata.deletion_timestamp.is_none()
                && !known.leaving.contains(&at);
            let volume = self.volumes.get("", &at.name).filter(|_| stays)?;
            csi(&volume).map(unique_name)
        });
        names.collect()
    }
}

#[cfg(test)]
#[path = "attach_tests.rs"]
mod tests;
