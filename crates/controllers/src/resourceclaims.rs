//! ResourceClaims of Pods: made from templates, given back when nobody uses them.
//!
//! A Pod that names a template gets a claim of its own, with a generated name that its status records. A claim's
//! `status.reservedFor` names who may use it; Pods that are finished, gone or replaced are taken out, and with the last of
//! them the allocation and the finalizer go, so that the devices are free for others. A claim that was made for a Pod
//! that is done is deleted; the rest is the garbage collector's.
//!
//! Differs from upstream: the status is patched by the names of the Pod's claims, so that making one of them again leaves
//! the others recorded. PodGroups are not served, and entries in `reservedFor` that are no Pods are left alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use sampan_client::{Change, EventType, Informer, Key, WorkQueue, is_not_found, or_absent, owner};
use serde_json::json;

use crate::pods::{self, api_message};
use crate::{Context, SyncError};

/// Keeps an allocated claim, and with it the devices, until nobody uses it.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// On a claim made from a template: what the Pod calls it.
const MADE_FOR: &str = "resource.kubernetes.io/pod-claim-name";
const MANAGER: &str = "ResourceClaimController";

/// Pods by the claims they use, by the templates they name.
const BY_CLAIM: &str = "controllers/pods/resourceclaim";
const BY_TEMPLATE: &str = "controllers/pods/resourceclaimtemplate";
/// Claims by the Pod they were made for.
const BY_POD: &str = "controllers/resourceclaims/pod";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    Pod(Key),
    Claim(Key),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::Pod(key) => write!(f, "pod:{key}"),
            Work::Claim(key) => write!(f, "claim:{key}"),
        }
    }
}

struct Claims {
    context: Context,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    templates: Informer<ResourceClaimTemplate>,
    queue: WorkQueue<Work>,
    gone: Mutex<Gone>,
    /// Claims that were made and that the cache does not have yet: by the Pod's uid and what it calls the claim.
    made: Mutex<HashMap<(String, String), ResourceClaim>>,
}

/// The Pods that were seen to go last. Of others that the cache does not know the API is asked.
#[derive(Default)]
struct Gone {
    order: VecDeque<String>,
    uids: HashSet<String>,
}

impl Gone {
    const MOST: usize = 500;

    fn add(&mut self, uid: &str) {
        if self.uids.insert(uid.to_owned()) {
            self.order.push_back(uid.to_owned());
        }
        if self.order.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
    }
}

pub(crate) fn start(context: Context) {
    let this = Arc::new(Claims {
        pods: context.informers.of(),
        claims: context.informers.of(),
        templates: context.informers.of(),
        queue: WorkQueue::default(),
        gone: Mutex::default(),
        made: Mutex::default(),
        context: context.clone(),
    });
    this.pods.add_index(BY_CLAIM, |pod| {
        let names = asked(pod).filter_map(|asked| match named(pod, asked) {
            Named::Claim { name, .. } => Some(key_in(pod, name).to_string()),
            _ => None,
        });
        names.collect()
    });
    this.pods.add_index(BY_TEMPLATE, |pod| {
        let names = asked(pod).filter_map(|asked| asked.resource_claim_template_name.as_deref());
        names.map(|name| key_in(pod, name).to_string()).collect()
    });
    this.claims.add_index(BY_POD, |claim| {
        made_for(claim).map(|pod| pod.uid.clone()).into_iter().collect()
    });
    let on = Arc::clone(&this);
    this.pods
        .on_change(move |change| on.pod_changed(change.object(), matches!(change, Change::Deleted(_))));
    let on = Arc::clone(&this);
    this.claims.on_change(move |change| {
        let claim = change.object();
        on.forget_made(claim);
        if !matches!(change, Change::Deleted(_)) {
            on.queue.add(Work::Claim(Key::of(claim.as_ref())));
        }
        on.pods_changed(BY_CLAIM, &Key::of(claim.as_ref()));
    });
    let on = Arc::clone(&this);
    this.templates.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            on.pods_changed(BY_TEMPLATE, &Key::of(change.object().as_ref()));
        }
    });
    let waits = Arc::clone(&this);
    let ready = async move {
        waits.pods.synced().await;
        waits.claims.synced().await;
        waits.templates.synced().await;
    };
    let queue = this.queue.clone();
    context.run(&queue, ready, move |work| {
        let this = Arc::clone(&this);
        async move {
            match work {
                Work::Pod(key) => this.sync_pod(&key).await,
                Work::Claim(key) => this.sync_claim(&key).await,
            }
        }
    });
}

fn asked(pod: &Pod) -> impl Iterator<Item = &PodResourceClaim> {
    pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten())
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn key_in(pod: &Pod, name: &str) -> Key {
    Key::new(pod.metadata.namespace.as_deref().unwrap_or_default(), name)
}

/// Which claim stands behind what a Pod asks for.
enum Named<'a> {
    /// `own`: it was made for this Pod and must belong to it.
    Claim { name: &'a str, own: bool },
    /// It was decided before that none is needed.
    NotNeeded,
    /// There is none yet.
    NotMade,
    /// It asks in a way that is not known here.
    Unknown,
}

fn named<'a>(pod: &'a Pod, asked: &'a PodResourceClaim) -> Named<'a> {
    if let Some(name) = &asked.resource_claim_name {
        return Named::Claim { name, own: false };
    }
    if asked.resource_claim_template_name.is_none() {
        return Named::Unknown;
    }
    let recorded = pod
        .status
        .iter()
        .flat_map(|status| status.resource_claim_statuses.iter().flatten())
        .find(|status| status.name == asked.name);
    match recorded.map(|status| status.resource_claim_name.as_deref()) {
        None => Named::NotMade,
        Some(None) => Named::NotNeeded,
        Some(Some(name)) => Named::Claim { name, own: true },
    }
}

fn unknown(pod: &Pod, asked: &PodResourceClaim) -> String {
    let key = Key::of(pod);
    format!(
        "pod \"{key}\", spec.resourceClaim {:?}: none of the supported fields are set",
        asked.name
    )
}

/// The Pod a claim was made for.
fn made_for(claim: &ResourceClaim) -> Option<&OwnerReference> {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true) && owner.api_version == "v1" && owner.kind == "Pod")
}

fn belongs(claim: &ResourceClaim, pod: &Pod) -> Result<(), String> {
    if owner::is_controlled_by(&claim.metadata, uid(pod)) {
        return Ok(());
    }
    Err(format!(
        "ResourceClaim {} was not created for Pod {} (Pod is not owner)",
        Key::of(claim),
        Key::of(pod)
    ))
}

fn reserved(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    let status = claim.status.as_ref();
    status
        .and_then(|status| status.reserved_for.as_deref())
        .unwrap_or_default()
}

fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

/// Whether a claim is for a Pod on its node, and does not say so.
fn lacks(claim: &ResourceClaim, pod: &Pod) -> bool {
    is_allocated(claim) && !reserved(claim).iter().any(|user| user.uid == uid(pod))
}

/// A Pod that uses its claims no more: it has ended, or goes before it ever had a node.
fn is_done(pod: &Pod) -> bool {
    pods::is_terminal(pod) || pods::is_terminating(pod) && pods::node_name(pod).is_empty()
}

/// What a claim's name starts with. Long names are shortened both, so that something is left of either.
fn name_prefix(pod: &str, asked: &str) -> String {
    const MOST: usize = 57;
    let whole = format!("{pod}-{asked}-");
    if whole.len() <= MOST {
        return whole;
    }
    let part = |text: &str| {
        text.get(..text.len() * MOST / whole.len())
            .unwrap_or_default()
            .to_owned()
    };
    format!("{}-{}", part(pod), part(asked))
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Claims {
    fn pods_changed(&self, index: &str, key: &Key) {
        for pod in self.pods.by_index(index, &key.to_string()) {
            self.pod_changed(&pod, false);
        }
    }

    fn pod_changed(&self, pod: &Pod, deleted: bool) {
        let extended = pod
            .status
            .as_ref()
            .and_then(|status| status.extended_resource_claim_status.as_ref());
        if asked(pod).next().is_none() && extended.is_none() {
            return;
        }
        if deleted {
            lock(&self.gone).add(uid(pod));
            lock(&self.made).retain(|(by, _), _| by != uid(pod));
        }
        if deleted || is_done(pod) {
            let names = asked(pod).filter_map(|asked| match named(pod, asked) {
                Named::Claim { name, .. } => Some(name),
                _ => None,
            });
            let extended = extended.map(|status| status.resource_claim_name.as_str());
            for name in names.chain(extended) {
                self.queue.add(Work::Claim(key_in(pod, name)));
            }
        }
        if !deleted && !pods::is_terminating(pod) && asked(pod).any(|asked| self.needs_work(pod, asked)) {
            self.queue.add(Work::Pod(Key::of(pod)));
        }
    }

    fn needs_work(&self, pod: &Pod, asked: &PodResourceClaim) -> bool {
        let (name, own) = match named(pod, asked) {
            Named::Claim { name, own } => (name, own),
            Named::NotNeeded => return false,
            Named::NotMade | Named::Unknown => return true,
        };
        match self.claims.get_key(&key_in(pod, name)) {
            None => own,
            Some(claim) if own && belongs(&claim, pod).is_err() => false,
            Some(claim) => !pods::node_name(pod).is_empty() && lacks(&claim, pod),
        }
    }

    fn forget_made(&self, claim: &ResourceClaim) {
        let mut made = lock(&self.made);
        if !made.is_empty() {
            made.retain(|_, known| known.metadata.uid != claim.metadata.uid);
        }
    }

    async fn sync_pod(&self, key: &Key) -> Result<(), SyncError> {
        let Some(pod) = self.pods.get_key(key).filter(|pod| !pods::is_terminating(pod)) else {
            return Ok(());
        };
        let mut made = Vec::new();
        for asked in asked(&pod) {
            match self.provide(&pod, asked).await {
                Ok(None) => {}
                Ok(Some(name)) => made.push(json!({"name": asked.name, "resourceClaimName": name})),
                Err(why) => {
                    let text = format!("PodResourceClaim {}: {why}", asked.name);
                    self.context.recorder.event(
                        pod.as_ref(),
                        EventType::Warning,
                        "FailedResourceClaimCreation",
                        &*text,
                    );
                    return Err(SyncError::other(format!("pod {key}, {text}")));
                }
            }
        }
        if !made.is_empty() {
            let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
            let patch = json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"resourceClaimStatuses": made},
            });
            let params = PatchParams {
                field_manager: Some(MANAGER.into()),
                ..PatchParams::default()
            };
            let written = api.patch_status(&key.name, &params, &Patch::Strategic(patch)).await;
            if or_absent(written)?.is_none() {
                return Ok(());
            }
        }
        if pods::node_name(&pod).is_empty() {
            // The scheduler reserves what it allocates.
            return Ok(());
        }
        for asked in asked(&pod) {
            let (name, own) = match named(&pod, asked) {
                Named::Claim { name, own } => (name, own),
                Named::NotNeeded => continue,
                // It is looked at again when the cache has the status that was just written.
                Named::NotMade => return Ok(()),
                Named::Unknown => return Err(SyncError::other(unknown(&pod, asked))),
            };
            let Some(claim) = self.claims.get_key(&key_in(&pod, name)) else {
                return Ok(());
            };
            if own {
                belongs(&claim, &pod).map_err(SyncError::Other)?;
            }
            if lacks(&claim, &pod) {
                let mut users = reserved(&claim).to_vec();
                users.push(ResourceClaimConsumerReference {
                    api_group: None,
                    resource: "pods".into(),
                    name: pod.name_any(),
                    uid: uid(&pod).to_owned(),
                });
                self.write_status(&claim, json!({"reservedFor": users})).await?;
            }
        }
        Ok(())
    }

    /// Makes the claim a Pod asks for unless there is one. Its name, where the Pod's status does not have it yet.
    async fn provide(&self, pod: &Pod, asked: &PodResourceClaim) -> Result<Option<String>, String> {
        let mut recorded = None;
        match named(pod, asked) {
            Named::Unknown => {
                return Err(format!(
                    "checking for claim before creating it: {}",
                    unknown(pod, asked)
                ));
            }
            Named::NotNeeded => return Ok(None),
            Named::NotMade => {}
            Named::Claim { name, own } => {
                let known = self.claims.get_key(&key_in(pod, name));
                if known.is_some_and(|claim| !own || belongs(&claim, pod).is_ok()) {
                    return Ok(None);
                }
                recorded = Some(name);
            }
        }
        let Some(template) = &asked.resource_claim_template_name else {
            return Ok(None);
        };
        // One that was made before its name could be recorded.
        let own = self.claims.by_index(BY_POD, uid(pod));
        let cached = own.iter().find(|claim| {
            let annotations = claim.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(MADE_FOR)) == Some(&asked.name)
        });
        if let Some(claim) = cached {
            return Ok(Some(claim.name_any()));
        }
        let place = (uid(pod).to_owned(), asked.name.clone());
        let api: Api<ResourceClaim> = Api::namespaced(
            self.context.client.clone(),
            pod.metadata.namespace.as_deref().unwrap_or_default(),
        );
        let made = lock(&self.made).get(&place).map(|claim| claim.name_any());
        if let Some(made) = made {
            // It is recorded and still not cached: on its way here, or deleted again already.
            let there = match recorded == Some(made.as_str()) {
                true => api.get_opt(&made).await.map_err(|error| api_message(&error))?.is_some(),
                false => true,
            };
            if there {
                return Ok(Some(made));
            }
            lock(&self.made).remove(&place);
        }
        let Some(template) = self.templates.get_key(&key_in(pod, template)) else {
            return Err(format!(
                "resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"
            ));
        };
        let told = template.spec.metadata.clone().unwrap_or_default();
        let mut annotations = told.annotations.unwrap_or_default();
        annotations.insert(MADE_FOR.into(), asked.name.clone());
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                generate_name: Some(name_prefix(&pod.name_any(), &asked.name)),
                namespace: pod.metadata.namespace.clone(),
                owner_references: Some(vec![OwnerReference {
                    block_owner_deletion: None,
                    ..owner::controller_ref(pod)
                }]),
                annotations: Some(annotations),
                labels: told.labels,
                ..ObjectMeta::default()
            },
            spec: template.spec.spec.clone(),
            status: None,
        };
        let made = api
            .create(&PostParams::default(), &claim)
            .await
            .map_err(|error| format!("create ResourceClaim: {}", api_message(&error)))?;
        let name = made.name_any();
        lock(&self.made).insert(place, made);
        if let Some(cached) = self.claims.get_key(&key_in(pod, &name)) {
            self.forget_made(&cached);
        }
        Ok(Some(name))
    }

    /// Whether who reserved a claim may still use it.
    async fn is_used(&self, namespace: &str, by: &ResourceClaimConsumerReference) -> Result<bool, SyncError> {
        if by.resource != "pods" || by.api_group.as_deref().is_some_and(|group| !group.is_empty()) {
            return Ok(true);
        }
        if lock(&self.gone).uids.contains(&by.uid) {
            return Ok(false);
        }
        if let Some(pod) = self.pods.get(namespace, &by.name) {
            return Ok(uid(&pod) == by.uid && !is_done(&pod));
        }
        // The scheduler may know a Pod before this cache does: only the API can say that there is none.
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), namespace);
        let pod = api.get_opt(&by.name).await?;
        Ok(pod.is_some_and(|pod| uid(&pod) == by.uid))
    }

    async fn sync_claim(&self, key: &Key) -> Result<(), SyncError> {
        let Some(mut claim) = self.claims.get_key(key) else {
            return Ok(());
        };
        let mut users = Vec::new();
        for user in reserved(&claim) {
            if self.is_used(&key.namespace, user).await? {
                users.push(user.clone());
            }
        }
        let protects = |claim: &ResourceClaim| {
            claim
                .metadata
                .finalizers
                .iter()
                .flatten()
                .any(|known| known == FINALIZER)
        };
        if users.len() < reserved(&claim).len() {
            // Only with the last user the devices are given back: a driver may have allocated before anybody reserved.
            let mut status = json!({"reservedFor": users});
            if users.is_empty() && protects(&claim) {
                status = json!({"reservedFor": null, "allocation": null});
            }
            claim = Arc::new(self.write_status(&claim, status).await?);
            if protects(&claim) && !is_allocated(&claim) {
                claim = Arc::new(self.release(&claim).await?);
            }
        } else if users.is_empty() && protects(&claim) && claim.metadata.deletion_timestamp.is_some() {
            if is_allocated(&claim) {
                claim = Arc::new(self.write_status(&claim, json!({"allocation": null})).await?);
            }
            claim = Arc::new(self.release(&claim).await?);
        }
        let Some(of) = made_for(&claim).filter(|_| users.is_empty()) else {
            return Ok(());
        };
        // A Pod that is not known may be a new one; where it is gone, the garbage collector finds out.
        let unused = self
            .pods
            .get(&key.namespace, &of.name)
            .is_some_and(|pod| uid(&pod) != of.uid || is_done(&pod));
        if unused && claim.metadata.deletion_timestamp.is_none() {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: claim.metadata.uid.clone(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            match self.api(&claim).delete(&key.name, &params).await {
                Err(error) if !is_not_found(&error) => {
                    let text = format!("delete unused generated claim {key}: {}", api_message(&error));
                    return Err(SyncError::Other(text));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn api(&self, claim: &ResourceClaim) -> Api<ResourceClaim> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), namespace)
    }

    /// Writes parts of a claim's status, if it is still as it was seen.
    async fn write_status(&self, claim: &ResourceClaim, status: serde_json::Value) -> Result<ResourceClaim, SyncError> {
        let patch = json!({"metadata": {"resourceVersion": claim.metadata.resource_version}, "status": status});
        let params = PatchParams::default();
        let api = self.api(claim);
        Ok(api
            .patch_status(&claim.name_any(), &params, &Patch::Merge(patch))
            .await?)
    }

    /// Takes the finalizer off, if the claim is still as it was seen.
    async fn release(&self, claim: &ResourceClaim) -> Result<ResourceClaim, SyncError> {
        let others = claim
            .metadata
            .finalizers
            .iter()
            .flatten()
            .filter(|known| *known != FINALIZER);
        let patch = json!({"metadata": {
            "resourceVersion": claim.metadata.resource_version,
            "finalizers": others.collect::<Vec<_>>(),
        }});
        let params = PatchParams::default();
        Ok(self
            .api(claim)
            .patch(&claim.name_any(), &params, &Patch::Merge(patch))
            .await?)
    }
}

#[cfg(test)]
#[path = "resourceclaims_tests.rs"]
mod tests;
