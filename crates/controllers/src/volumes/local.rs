//! The local provisioner: volumes that are directories on the disk of the node where a claim's first Pod runs.
//!
//! It lives on the same signs as any external provisioner: the binder's annotation on the claim asks for a volume, the
//! scheduler's names the node, and a released volume whose policy is `Delete` is deleted. It writes objects only. The
//! directory is the node's: made when a Pod first needs it, removed when this controller asks the node to, by way of
//! the API server. A volume's finalizer comes off after the node has said that the directory is gone, so a node that
//! is away keeps the object until it is back; one that was deleted takes its volumes with it.
//!
//! What it does not do: limit what a volume holds (the size of a claim is a wish), copy data, or offer blocks. A claim
//! that wants that is told.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use sampan_claims::local::{CLASS, DIRECTORY, FINALIZER, NODE_PATH, PROVISIONER, is_directory_name, is_ours};
use sampan_claims::{self as claims, BOUND_BY_CONTROLLER, PROVISIONED_BY, SELECTED_NODE, annotation};
use sampan_client::{
    Backoff, Change, EventType, Informer, Key, Recorder, WorkQueue, is_already_exists, or_absent, retry_on_conflict,
};
use serde_json::json;

use crate::{Context, SyncError};

/// Our volumes by the node they are on.
const VOLUMES_BY_NODE: &str = "controllers/volumes/local";
/// Claims that ask for one of ours, by the node they are to be on.
const CLAIMS_BY_NODE: &str = "controllers/claims/local";
/// On a volume: the name of its node.
const NODE: &str = "sampan.io/node";

struct Provisioner {
    client: kube::Client,
    recorder: Recorder,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
}

pub(crate) fn start(context: Context) {
    let informers = &context.informers;
    let provisioner = Arc::new(Provisioner {
        client: context.client.clone(),
        recorder: context.recorder.clone(),
        claims: informers.of(),
        volumes: informers.of(),
        classes: informers.of(),
        nodes: informers.of(),
    });
    // A node that is away is asked again before long, and at once when it is back.
    let queue = WorkQueue::new(Backoff {
        base: Duration::from_millis(50),
        max: Duration::from_secs(300),
    });
    follow(&provisioner, &queue);
    let waits = Arc::clone(&provisioner);
    let ready = async move {
        waits.claims.synced().await;
        waits.volumes.synced().await;
        waits.classes.synced().await;
        waits.nodes.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let provisioner = Arc::clone(&provisioner);
        async move {
            match key.namespace.is_empty() {
                true => provisioner.sync_volume(&key).await,
                false => provisioner.sync_claim(&key).await,
            }
        }
    });
}

fn follow(provisioner: &Arc<Provisioner>, queue: &WorkQueue<Key>) {
    let p = provisioner;
    p.volumes.add_index(VOLUMES_BY_NODE, |volume| match is_ours(volume) {
        true => annotation(&volume.metadata.annotations, NODE)
            .map(str::to_owned)
            .into_iter()
            .collect(),
        false => Vec::new(),
    });
    p.claims.add_index(CLAIMS_BY_NODE, |claim| {
        wanted_node(claim).map(str::to_owned).into_iter().collect()
    });
    let added = queue.clone();
    p.claims.on_change(move |change| {
        let claim = change.object();
        if !matches!(change, Change::Deleted(_)) && wanted_node(claim).is_some() {
            added.add(Key::of(claim.as_ref()));
        }
    });
    let added = queue.clone();
    p.volumes.on_change(move |change| {
        let volume = change.object();
        if !matches!(change, Change::Deleted(_)) && is_ours(volume) {
            added.add(Key::of(volume.as_ref()));
        }
    });
    let (added, of) = (queue.clone(), Arc::clone(provisioner));
    p.nodes.on_change(move |change| {
        let node = change.object();
        let came_back = match change {
            Change::Added(_) => true,
            Change::Modified { old, new } => (!is_ready(old) && is_ready(new)) || directory(old) != directory(new),
            Change::Deleted(_) => true,
        };
        if !came_back {
            return;
        }
        let name = node.metadata.name.as_deref().unwrap_or_default();
        for volume in of.volumes.by_index(VOLUMES_BY_NODE, name) {
            if is_released(&volume) || volume.metadata.deletion_timestamp.is_some() {
                added.forget(&Key::of(volume.as_ref()));
                added.add(Key::of(volume.as_ref()));
            }
        }
        for claim in of.claims.by_index(CLAIMS_BY_NODE, name) {
            added.add(Key::of(claim.as_ref()));
        }
    });
}

/// The node on which a claim is to have a volume of ours, as long as it has none.
fn wanted_node(claim: &PersistentVolumeClaim) -> Option<&str> {
    let asked = annotation(&claim.metadata.annotations, claims::PROVISIONER) == Some(PROVISIONER);
    let node = annotation(&claim.metadata.annotations, SELECTED_NODE)?;
    (asked && claims::volume_name(claim).is_none()).then_some(node)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Where a node keeps local volumes.
fn directory(node: &Node) -> Option<&str> {
    annotation(&node.metadata.annotations, DIRECTORY).filter(|path| path.starts_with('/'))
}

fn is_released(volume: &PersistentVolume) -> bool {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Released" | "Failed"))
}

fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref())
        .unwrap_or("Retain")
}

impl Provisioner {
    async fn sync_claim(&self, key: &Key) -> Result<(), SyncError> {
        let Some(claim) = self.claims.get_key(key) else {
            return Ok(());
        };
        let Some(node) = wanted_node(&claim) else {
            return Ok(());
        };
        let class = self.classes.get("", claims::claim_class(&claim));
        let Some(class) = class.filter(|class| class.provisioner == PROVISIONER) else {
            return Ok(());
        };
        if claim.metadata.deletion_timestamp.is_some()
            || self.volumes.get("", &claims::provisioned_name(&claim)).is_some()
        {
            return Ok(());
        }
        let volume = match self.plan(&claim, &class, node) {
            Ok(volume) => volume,
            Err(why) => return self.refuse(&claim, &class, why).await,
        };
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &volume).await {
            Ok(_) => {
                let name = volume.metadata.name.unwrap_or_default();
                let message = format!("Successfully provisioned volume {name}");
                self.recorder
                    .event(claim.as_ref(), EventType::Normal, "ProvisioningSucceeded", message);
                Ok(())
            }
            // Made before, and the cache does not know yet.
            Err(error) if is_already_exists(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The volume for a claim. The outer error is for the user; whether another node could do better is in it.
    fn plan(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        node: &str,
    ) -> Result<PersistentVolume, Refused> {
        let spec = claim.spec.clone().unwrap_or_default();
        let never = |why: &str| Err(Refused::Always(why.to_owned()));
        let modes = spec.access_modes.clone().unwrap_or_default();
        if spec.volume_mode.as_deref() == Some("Block") {
            return never("local volumes are directories, not block devices");
        }
        if modes
            .iter()
            .any(|mode| !matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"))
        {
            return never("a local volume is on one node: only ReadWriteOnce and ReadWriteOncePod are possible");
        }
        if spec.data_source.is_some() || spec.data_source_ref.is_some() {
            return never("a local volume cannot be made from a data source");
        }
        if spec.selector.is_some() {
            return never("claim.Spec.Selector is not supported for dynamic provisioning");
        }
        if class.mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
            return never("mount options are not possible for local volumes");
        }
        let Some(found) = self.nodes.get("", node) else {
            return Err(Refused::Here(format!("node {node:?} not found")));
        };
        let Some(directory) = directory(&found) else {
            return Err(Refused::Here(format!("node {node:?} keeps no local volumes")));
        };
        let host = found.metadata.labels.as_ref();
        let Some(host) = host.and_then(|labels| labels.get("kubernetes.io/hostname")) else {
            return Err(Refused::Here(format!(
                "node {node:?} has no label kubernetes.io/hostname"
            )));
        };
        let name = claims::provisioned_name(claim);
        if !is_directory_name(&name) {
            return never("the claim's uid cannot be part of a name");
        }
        let request = spec
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref()?.get("storage").cloned());
        let volume = json!({
            "metadata": {
                "name": name,
                "annotations": {PROVISIONED_BY: PROVISIONER, BOUND_BY_CONTROLLER: "yes", NODE: node},
                "finalizers": [FINALIZER],
            },
            "spec": {
                "capacity": {"storage": request},
                "accessModes": modes,
                "volumeMode": "Filesystem",
                "claimRef": claims::reference(claim),
                "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
                "storageClassName": claims::claim_class(claim),
                "volumeAttributesClassName": spec.volume_attributes_class_name,
                "local": {"path": format!("{}/{name}", directory.trim_end_matches('/'))},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}},
            },
        });
        serde_json::from_value(volume).map_err(|error| Refused::Always(error.to_string()))
    }

    async fn refuse(&self, claim: &PersistentVolumeClaim, class: &StorageClass, why: Refused) -> Result<(), SyncError> {
        let (Refused::Always(text) | Refused::Here(text)) = &why;
        let name = class.metadata.name.as_deref().unwrap_or(CLASS);
        let message = format!("failed to provision volume with StorageClass {name:?}: {text}");
        self.recorder
            .event(claim, EventType::Warning, "ProvisioningFailed", message);
        if matches!(why, Refused::Always(_)) {
            return Ok(());
        }
        // The scheduler is to choose again.
        let mut free = claim.clone();
        free.metadata.annotations.get_or_insert_default().remove(SELECTED_NODE);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(
            self.client.clone(),
            claim.metadata.namespace.as_deref().unwrap_or_default(),
        );
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        or_absent(api.replace(name, &PostParams::default(), &free).await)?;
        Ok(())
    }

    async fn sync_volume(&self, key: &Key) -> Result<(), SyncError> {
        let Some(volume) = self.volumes.get_key(key).filter(|volume| is_ours(volume)) else {
            return Ok(());
        };
        let kept = volume
            .metadata
            .finalizers
            .iter()
            .flatten()
            .any(|name| name == FINALIZER);
        let leaving = volume.metadata.deletion_timestamp.is_some();
        if policy(&volume) != "Delete" {
            // The data stays; the object may go.
            return match leaving && kept {
                true => self.let_go(&volume).await,
                false => Ok(()),
            };
        }
        if !is_released(&volume) || claims::claim_ref(&volume).is_none() {
            return Ok(());
        }
        if kept {
            self.remove_directory(&volume).await?;
        }
        if !leaving {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: volume.metadata.uid.clone(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            or_absent(api.delete(&key.name, &params).await)?;
        }
        match kept {
            true => self.let_go(&volume).await,
            false => Ok(()),
        }
    }

    /// Has the node remove a volume's directory. A node that no longer exists has taken it along.
    async fn remove_directory(&self, volume: &PersistentVolume) -> Result<(), SyncError> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let node = annotation(&volume.metadata.annotations, NODE).unwrap_or_default();
        let path = volume.spec.as_ref().and_then(|spec| spec.local.as_ref());
        let Some(path) = path.map(|local| local.path.as_str()) else {
            return Ok(());
        };
        if !is_directory_name(node) || !is_directory_name(name) {
            return Ok(());
        }
        if self.nodes.get("", node).is_none() {
            let api: Api<Node> = Api::all(self.client.clone());
            if or_absent(api.get(node).await)?.is_none() {
                tracing::warn!(
                    volume = name,
                    node,
                    "the node of a local volume is gone, and its data with it"
                );
                return Ok(());
            }
        }
        let uri = format!("/api/v1/nodes/{node}/proxy/{NODE_PATH}/{name}?path={}", encoded(path));
        let request = Request::builder()
            .method(Method::DELETE)
            .uri(uri)
            .body(kube::client::Body::empty())
            .map_err(|error| SyncError::other(error.to_string()))?;
        let answer = self.client.send(request).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let body = http_body_util::BodyExt::collect(answer.into_body()).await;
        let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
        let why = format!(
            "node {node} did not remove the volume: {status} {}",
            text.unwrap_or_default()
        );
        self.recorder
            .event(volume, EventType::Warning, "VolumeFailedDelete", &*why);
        Err(SyncError::other(why))
    }

    /// Takes our finalizer off.
    async fn let_go(&self, volume: &PersistentVolume) -> Result<(), SyncError> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let written = retry_on_conflict(|| async {
            let mut live = api.get(name).await?;
            let finalizers = live.metadata.finalizers.get_or_insert_default();
            let before = finalizers.len();
            finalizers.retain(|known| known != FINALIZER);
            if finalizers.len() == before || live.metadata.uid != volume.metadata.uid {
                return Ok(());
            }
            api.replace(name, &PostParams::default(), &live).await.map(drop)
        })
        .await;
        or_absent(written)?;
        Ok(())
    }
}

/// Why a claim gets no volume.
enum Refused {
    /// On no node.
    Always(String),
    /// On this node.
    Here(String),
}

/// A path as the value of a query.
fn encoded(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}
