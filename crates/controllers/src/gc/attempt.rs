//! What is done about one object: leave it, delete it, cut it loose from absent owners, or let it go.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::PartialObjectMeta;
use sampan_client::{or_absent, retry_on_conflict};
use serde_json::json;

use super::graph::{FOREGROUND, Node, ORPHAN, Work};
use super::{Collector, api, lock};
use crate::SyncError;

/// How many absent owners are remembered.
const ABSENT: usize = 500;

/// What the owners of an object say about it.
#[derive(Default)]
struct Owners {
    /// Present and staying.
    solid: usize,
    absent: Vec<String>,
    /// Deleted in the foreground, waiting for their dependents.
    waiting: Vec<String>,
}

impl Collector {
    /// Whether an object should go, and what stands in the way.
    pub(super) async fn attempt_delete(&self, uid: &str) -> Result<(), SyncError> {
        let Some(node) = lock(&self.graph).get(uid).cloned() else {
            return Ok(());
        };
        let Some(kind) = node.kind.clone() else {
            return self.look_for(uid, &node).await;
        };
        // On its way out and waiting for nobody here.
        if node.deleting && !node.waiting {
            return Ok(());
        }
        if !node.waiting && self.all_solid(&node) {
            return Ok(());
        }
        let api = api(&self.context.client, &kind.resource, kind.namespaced, &node.namespace);
        let Some(live) = read(&api, &node.name, uid).await? else {
            self.gone(uid);
            return Ok(());
        };
        if node.waiting {
            return self.let_go(uid, &api, &live).await;
        }
        let references = live.owner_references.clone().unwrap_or_default();
        if references.is_empty() {
            return Ok(());
        }
        let owners = self.classify(&references, &node.namespace).await?;
        if owners.solid > 0 {
            if owners.absent.is_empty() && owners.waiting.is_empty() {
                return Ok(());
            }
            let unwanted: Vec<&String> = owners.absent.iter().chain(&owners.waiting).collect();
            let kept: Vec<&OwnerReference> = references
                .iter()
                .filter(|reference| !unwanted.contains(&&reference.uid))
                .collect();
            return patch(&api, &live, json!({ "ownerReferences": kept })).await;
        }
        let has_dependents = !node.dependents.is_empty();
        let finalizers = live.finalizers.as_deref().unwrap_or_default();
        let has = |name: &str| finalizers.iter().any(|known| known == name);
        let policy = if !owners.waiting.is_empty() && has_dependents {
            if lock(&self.graph).has_waiting_dependent(uid) {
                // A circle of objects each waiting for the next: this one stops blocking its owners.
                let unblocked: Vec<OwnerReference> = references
                    .into_iter()
                    .map(|reference| OwnerReference {
                        block_owner_deletion: Some(false),
                        ..reference
                    })
                    .collect();
                let change = json!({ "ownerReferences": unblocked });
                patch(&api, &live, change).await?;
            }
            PropagationPolicy::Foreground
        } else if has(ORPHAN) {
            PropagationPolicy::Orphan
        } else if has(FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        or_absent(api.delete(&node.name, &params).await)?;
        Ok(())
    }

    /// Whether the graph already answers that every owner is there to stay.
    fn all_solid(&self, node: &Node) -> bool {
        let graph = lock(&self.graph);
        node.owners.iter().all(|reference| {
            graph
                .owner(reference, &node.namespace)
                .is_some_and(|owner| !owner.waiting)
        })
    }

    /// An owner that others refer to and nobody has seen: does it exist?
    async fn look_for(&self, uid: &str, node: &Node) -> Result<(), SyncError> {
        let reference = OwnerReference {
            api_version: node.api_version.clone(),
            kind: node.kind_name.clone(),
            name: node.name.clone(),
            uid: uid.to_owned(),
            ..Default::default()
        };
        if self.read_owner(&reference, &node.namespace).await?.is_none() {
            let mut absent = lock(&self.absent);
            if absent.len() >= ABSENT {
                absent.clear();
            }
            absent.insert(uid.to_owned());
            drop(absent);
            self.gone(uid);
        }
        Ok(())
    }

    async fn classify(&self, references: &[OwnerReference], namespace: &str) -> Result<Owners, SyncError> {
        let mut owners = Owners::default();
        for reference in references {
            let known = lock(&self.graph).owner(reference, namespace).map(|owner| owner.waiting);
            let waiting = match known {
                Some(waiting) => Some(waiting),
                None => self
                    .read_owner(reference, namespace)
                    .await?
                    .map(|owner| is_waiting(&owner)),
            };
            match waiting {
                Some(true) => owners.waiting.push(reference.uid.clone()),
                Some(false) => owners.solid += 1,
                None => owners.absent.push(reference.uid.clone()),
            }
        }
        Ok(owners)
    }

    /// The owner as the API has it now, or `None` if there is no such object.
    async fn read_owner(&self, reference: &OwnerReference, namespace: &str) -> Result<Option<ObjectMeta>, SyncError> {
        let Some(kind) = self.resource_of(&reference.api_version, &reference.kind) else {
            return Err(SyncError::other(format!(
                "the owner {} {} is of a kind that is not served",
                reference.kind, reference.name
            )));
        };
        if kind.namespaced && namespace.is_empty() {
            return Err(SyncError::other(format!(
                "a cluster-scoped object refers to the namespaced {} {}",
                reference.kind, reference.name
            )));
        }
        if lock(&self.absent).contains(&reference.uid) && kind.namespaced {
            return Ok(None);
        }
        let api = api(&self.context.client, &kind.resource, kind.namespaced, namespace);
        read(&api, &reference.name, &reference.uid).await
    }

    /// An object deleted in the foreground goes once nothing blocks it.
    async fn let_go(&self, uid: &str, api: &Api<DynamicObject>, live: &ObjectMeta) -> Result<(), SyncError> {
        let blocking = lock(&self.graph).blocking(uid);
        if blocking.is_empty() {
            return self.remove_finalizer(uid, api, live, FOREGROUND).await;
        }
        for dependent in blocking {
            let waits = lock(&self.graph)
                .get(&dependent)
                .is_some_and(|node| node.waiting || node.deleting);
            if !waits {
                self.queue.add(Work::Delete(dependent));
            }
        }
        Ok(())
    }

    /// Cuts the dependents loose, then takes the finalizer off.
    pub(super) async fn attempt_orphan(&self, uid: &str) -> Result<(), SyncError> {
        let Some(node) = lock(&self.graph).get(uid).cloned() else {
            return Ok(());
        };
        let Some(kind) = node.kind.clone() else {
            return Ok(());
        };
        let loosened = node.dependents.iter().map(|dependent| self.loosen(dependent, uid));
        for outcome in futures::future::join_all(loosened).await {
            outcome?;
        }
        let api = api(&self.context.client, &kind.resource, kind.namespaced, &node.namespace);
        match read(&api, &node.name, uid).await? {
            Some(live) => self.remove_finalizer(uid, &api, &live, ORPHAN).await,
            None => Ok(()),
        }
    }

    /// Takes the reference to `owner` off `dependent`.
    async fn loosen(&self, dependent: &str, owner: &str) -> Result<(), SyncError> {
        let Some(node) = lock(&self.graph).get(dependent).cloned() else {
            return Ok(());
        };
        let Some(kind) = node.kind.clone() else {
            return Ok(());
        };
        let api = api(&self.context.client, &kind.resource, kind.namespaced, &node.namespace);
        retry_on_conflict(|| async {
            let Some(live) = or_absent(api.get_metadata(&node.name).await)? else {
                return Ok(());
            };
            let references = live.metadata.owner_references.clone().unwrap_or_default();
            let is_same = live.metadata.uid.as_deref() == Some(dependent);
            if !is_same || !references.iter().any(|reference| reference.uid == owner) {
                return Ok(());
            }
            let kept: Vec<&OwnerReference> = references.iter().filter(|reference| reference.uid != owner).collect();
            write(&api, &live.metadata, json!({ "ownerReferences": kept })).await
        })
        .await?;
        Ok(())
    }

    async fn remove_finalizer(
        &self,
        uid: &str,
        api: &Api<DynamicObject>,
        live: &ObjectMeta,
        finalizer: &str,
    ) -> Result<(), SyncError> {
        let name = live.name.clone().unwrap_or_default();
        retry_on_conflict(|| async {
            let Some(live) = or_absent(api.get_metadata(&name).await)? else {
                return Ok(());
            };
            let finalizers = live.metadata.finalizers.clone().unwrap_or_default();
            let is_same = live.metadata.uid.as_deref() == Some(uid);
            if !is_same || !finalizers.iter().any(|known| known == finalizer) {
                return Ok(());
            }
            let kept: Vec<&String> = finalizers.iter().filter(|f| *f != finalizer).collect();
            write(api, &live.metadata, json!({ "finalizers": kept })).await
        })
        .await?;
        Ok(())
    }
}

fn is_waiting(owner: &ObjectMeta) -> bool {
    owner.deletion_timestamp.is_some()
        && owner
            .finalizers
            .iter()
            .flatten()
            .any(|finalizer| finalizer == FOREGROUND)
}

/// The metadata of `name` at the API, if it is still the object with `uid`.
async fn read(api: &Api<DynamicObject>, name: &str, uid: &str) -> Result<Option<ObjectMeta>, SyncError> {
    let live: Option<PartialObjectMeta<DynamicObject>> = or_absent(api.get_metadata(name).await)?;
    Ok(live
        .map(|live| live.metadata)
        .filter(|meta| meta.uid.as_deref() == Some(uid)))
}

async fn patch(api: &Api<DynamicObject>, live: &ObjectMeta, change: serde_json::Value) -> Result<(), SyncError> {
    Ok(write(api, live, change).await?)
}

/// Patches metadata of exactly the version that was read.
async fn write(api: &Api<DynamicObject>, live: &ObjectMeta, mut change: serde_json::Value) -> kube::Result<()> {
    change["uid"] = json!(live.uid);
    change["resourceVersion"] = json!(live.resource_version);
    let name = live.name.as_deref().unwrap_or_default();
    let patch = Patch::Merge(json!({ "metadata": change }));
    or_absent(api.patch_metadata(name, &PatchParams::default(), &patch).await)?;
    Ok(())
}
