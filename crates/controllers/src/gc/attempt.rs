//! What is done about one object: leave it, delete it, cut it loose from absent owners, or let it go.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::PartialObjectMeta;
use sampan_client::{is_conflict, or_absent, retry_on_conflict};
use serde_json::json;

use super::graph::{FOREGROUND, Node, ORPHAN, Work};
use super::{Collector, Identity, api, group_of, lock};
use crate::SyncError;

/// When an owner that exists and has not been seen is looked for again: it may come and go unseen.
const UNSEEN: Duration = Duration::from_secs(30);

/// What an owner reference leads to.
enum Found {
    Owner(Box<ObjectMeta>),
    Nothing,
    /// An object without a namespace refers to one that has one: nothing is concluded from that.
    Senseless,
}

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
        let Some(mut live) = read(&api, &node.name, uid).await? else {
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
        let Some(owners) = self.classify(&references, &node.namespace).await? else {
            return Ok(());
        };
        if owners.solid > 0 {
            if owners.absent.is_empty() && owners.waiting.is_empty() {
                return Ok(());
            }
            let unwanted: Vec<&String> = owners.absent.iter().chain(&owners.waiting).collect();
            let kept: Vec<&OwnerReference> = references
                .iter()
                .filter(|reference| !unwanted.contains(&&reference.uid))
                .collect();
            write(&api, &live, json!({ "ownerReferences": kept })).await?;
            return Ok(());
        }
        let has_dependents = !node.dependents.is_empty();
        let finalizers = live.finalizers.as_deref().unwrap_or_default();
        let has = |name: &str| finalizers.iter().any(|known| known == name);
        let policy = if !owners.waiting.is_empty() && has_dependents {
            if lock(&self.graph).has_waiting_dependent(uid) {
                // A circle of objects each waiting for the next: this one stops blocking its owners.
                let unblocked: Vec<OwnerReference> = references
                    .iter()
                    .cloned()
                    .map(|reference| OwnerReference {
                        block_owner_deletion: reference.block_owner_deletion.map(|_| false),
                        ..reference
                    })
                    .collect();
                let change = json!({ "ownerReferences": unblocked });
                let Some(changed) = write(&api, &live, change).await? else {
                    return Ok(());
                };
                live = changed;
            }
            PropagationPolicy::Foreground
        } else if has(ORPHAN) {
            PropagationPolicy::Orphan
        } else if has(FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        remove(&api, &live, policy).await
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
        match self.read_owner(&reference, &node.namespace).await? {
            Found::Owner(_) => self.queue.add_after(Work::Delete(uid.to_owned()), UNSEEN),
            Found::Nothing | Found::Senseless => {
                let work = lock(&self.graph).disproved(uid, |reference, namespace| {
                    let Some(identity) = self.identity(reference, namespace) else {
                        return true;
                    };
                    lock(&self.absent).contains(&identity)
                });
                for one in work {
                    self.queue.add(one);
                }
            }
        }
        Ok(())
    }

    /// What a reference in an object of `namespace` means; `None` where it can mean nothing.
    fn identity(&self, reference: &OwnerReference, namespace: &str) -> Option<Identity> {
        let kind = self.resource_of(&reference.api_version, &reference.kind);
        let cluster_wide = kind.is_some_and(|kind| !kind.namespaced);
        if namespace.is_empty() && !cluster_wide {
            return None;
        }
        Some(Identity {
            uid: reference.uid.clone(),
            group: group_of(&reference.api_version).to_owned(),
            kind: reference.kind.clone(),
            namespace: if cluster_wide {
                String::new()
            } else {
                namespace.to_owned()
            },
            name: reference.name.clone(),
        })
    }

    /// `None` where nothing can be said.
    async fn classify(&self, references: &[OwnerReference], namespace: &str) -> Result<Option<Owners>, SyncError> {
        let mut owners = Owners::default();
        for reference in references {
            let known = lock(&self.graph).owner(reference, namespace).map(|owner| owner.waiting);
            let waiting = match known {
                Some(waiting) => Some(waiting),
                None => match self.read_owner(reference, namespace).await? {
                    Found::Owner(owner) => Some(is_waiting(&owner)),
                    Found::Nothing => None,
                    Found::Senseless => return Ok(None),
                },
            };
            match waiting {
                Some(true) => owners.waiting.push(reference.uid.clone()),
                Some(false) => owners.solid += 1,
                None => owners.absent.push(reference.uid.clone()),
            }
        }
        Ok(Some(owners))
    }

    /// The owner as the API has it now.
    async fn read_owner(&self, reference: &OwnerReference, namespace: &str) -> Result<Found, SyncError> {
        let Some(kind) = self.resource_of(&reference.api_version, &reference.kind) else {
            return Err(SyncError::other(format!(
                "the owner {} {} is of a kind that is not served",
                reference.kind, reference.name
            )));
        };
        let Some(identity) = self.identity(reference, namespace) else {
            return Ok(Found::Senseless);
        };
        if lock(&self.absent).contains(&identity) {
            return Ok(Found::Nothing);
        }
        let api = api(&self.context.client, &kind.resource, kind.namespaced, namespace);
        match read(&api, &reference.name, &reference.uid).await? {
            Some(owner) => Ok(Found::Owner(Box::new(owner))),
            None => {
                self.note_absent(identity);
                Ok(Found::Nothing)
            }
        }
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
            write(&api, &live.metadata, json!({ "ownerReferences": kept }))
                .await
                .map(|_| ())
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
            write(api, &live.metadata, json!({ "finalizers": kept }))
                .await
                .map(|_| ())
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

/// Deletes an object as long as its owners are those that were read. What else of it changes does not matter, and may
/// change so often that no version holds long enough.
pub(super) async fn remove(
    api: &Api<DynamicObject>,
    read: &ObjectMeta,
    policy: PropagationPolicy,
) -> Result<(), SyncError> {
    let name = read.name.as_deref().unwrap_or_default();
    let params = |resource_version: Option<String>| DeleteParams {
        propagation_policy: Some(policy.clone()),
        preconditions: Some(Preconditions {
            uid: read.uid.clone(),
            resource_version,
        }),
        ..DeleteParams::default()
    };
    let error = match or_absent(api.delete(name, &params(read.resource_version.clone())).await) {
        Err(error) if is_conflict(&error) => error,
        outcome => return outcome.map(|_| ()).map_err(SyncError::from),
    };
    let Some(live) = or_absent(api.get_metadata(name).await)? else {
        return Ok(());
    };
    if live.metadata.uid != read.uid || live.metadata.owner_references != read.owner_references {
        return Err(error.into());
    }
    or_absent(api.delete(name, &params(None)).await)?;
    Ok(())
}

/// Patches metadata of exactly the version that was read. What became of it, if it was there still.
async fn write(
    api: &Api<DynamicObject>,
    live: &ObjectMeta,
    mut change: serde_json::Value,
) -> kube::Result<Option<ObjectMeta>> {
    change["uid"] = json!(live.uid);
    change["resourceVersion"] = json!(live.resource_version);
    let name = live.name.as_deref().unwrap_or_default();
    let patch = Patch::Merge(json!({ "metadata": change }));
    let written = or_absent(api.patch_metadata(name, &PatchParams::default(), &patch).await)?;
    Ok(written.map(|written| written.metadata))
}
