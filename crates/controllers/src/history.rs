//! ControllerRevisions: the past templates of StatefulSets and DaemonSets.
//!
//! A revision holds the template as a strategic merge patch that replaces it, which is what `kubectl rollout undo` sends
//! back. Its name is a hash of its content, so making it twice is one object; a template that comes back (a rollback)
//! takes its old revision and gives it the highest number.

use std::future::Future;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::core::{NamespaceResourceScope, Selector};
use kube::{Resource, ResourceExt};
use sampan_client::owner::{self, Claimer};
use sampan_client::{Informer, is_already_exists, or_absent};
use serde_json::{Value, json};

use crate::SyncError;
use crate::deployment::hash;
use crate::pods::{self, BY_OWNER};

/// On a StatefulSet's revision. A DaemonSet's revisions carry [`POD_HASH`] instead.
pub(crate) const REVISION_HASH: &str = "controller.kubernetes.io/hash";
/// On Pods: which revision they were made from.
pub(crate) const POD_HASH: &str = "controller-revision-hash";

/// The revisions of one owner.
pub(crate) struct History<'a> {
    pub(crate) client: &'a kube::Client,
    pub(crate) revisions: &'a Informer<ControllerRevision>,
    /// The label of a revision that holds its hash: kinds differ in it.
    pub(crate) label: &'static str,
}

/// The template that a revision holds.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let data = &revision.data.as_ref()?.0;
    serde_json::from_value(data.pointer("/spec/template")?.clone()).ok()
}

fn data(template: &PodTemplateSpec) -> Result<Value, SyncError> {
    let mut value = serde_json::to_value(template).map_err(|error| SyncError::other(error.to_string()))?;
    value["$patch"] = json!("replace");
    Ok(json!({"spec": {"template": value}}))
}

impl History<'_> {
    /// The hash in a revision's labels.
    pub(crate) fn hash_of<'r>(&self, revision: &'r ControllerRevision) -> &'r str {
        revision.labels().get(self.label).map_or("", String::as_str)
    }

    /// The revisions of `owner`, oldest first; those that match and belong to nobody are adopted.
    pub(crate) async fn claim<K, F, Fut>(
        &self,
        owner: &K,
        selector: &Selector,
        still_alive: F,
    ) -> Result<Vec<ControllerRevision>, SyncError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        F: FnOnce() -> Fut,
        Fut: Future<Output = kube::Result<bool>>,
    {
        let meta = owner.meta();
        let namespace = meta.namespace.clone().unwrap_or_default();
        let mut candidates = self
            .revisions
            .by_index(BY_OWNER, meta.uid.as_deref().unwrap_or_default());
        candidates.extend(self.revisions.by_index(BY_OWNER, &pods::orphans(&namespace)));
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &namespace);
        let claimer = Claimer {
            api: &api,
            reference: owner::controller_ref(owner),
            deleting: meta.deletion_timestamp.is_some(),
            selector: Some(selector),
            also: &|_| true,
            finalizers: &[],
        };
        let claimed = claimer.claim(candidates, still_alive).await?;
        let mut found: Vec<ControllerRevision> = claimed.iter().map(|r| ControllerRevision::clone(r)).collect();
        found.sort_by(|a, b| {
            a.revision
                .cmp(&b.revision)
                .then_with(|| a.creation_timestamp().cmp(&b.creation_timestamp()))
                .then_with(|| a.metadata.name.cmp(&b.metadata.name))
        });
        Ok(found)
    }

    /// The revision of `template`, made or made the newest as needed. `collisions` grows when a name is taken by another
    /// template.
    pub(crate) async fn current<K>(
        &self,
        owner: &K,
        template: &PodTemplateSpec,
        known: &[ControllerRevision],
        collisions: &mut i32,
    ) -> Result<ControllerRevision, SyncError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let namespace = owner.meta().namespace.clone().unwrap_or_default();
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &namespace);
        let wanted = data(template)?;
        let holds = |revision: &&ControllerRevision| revision.data.as_ref().is_some_and(|data| data.0 == wanted);
        let newest = known.last().map_or(0, |revision| revision.revision);
        if let Some(found) = known.iter().rev().find(holds) {
            if found.revision == newest {
                return Ok(found.clone());
            }
            let mut raised = found.clone();
            raised.revision = newest + 1;
            return Ok(api.replace(&found.name_any(), &PostParams::default(), &raised).await?);
        }
        loop {
            let hash = hash(&wanted, Some(*collisions)).map_err(|error| SyncError::other(error.to_string()))?;
            let mut prefix = owner.name_any();
            prefix.truncate(252_usize.saturating_sub(hash.len()));
            let meta = template.metadata.clone().unwrap_or_default();
            let mut labels = meta.labels.unwrap_or_default();
            labels.insert(self.label.into(), hash.clone());
            let revision = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(format!("{prefix}-{hash}")),
                    namespace: Some(namespace.clone()),
                    labels: Some(labels),
                    annotations: owner.meta().annotations.clone(),
                    owner_references: Some(vec![owner::controller_ref(owner)]),
                    ..Default::default()
                },
                data: Some(RawExtension(wanted.clone())),
                revision: newest + 1,
            };
            match api.create(&PostParams::default(), &revision).await {
                Ok(made) => return Ok(made),
                Err(error) if is_already_exists(&error) => {
                    let taken = api.get(&revision.name_any()).await?;
                    if holds(&&taken) {
                        return Ok(taken);
                    }
                    *collisions = collisions.saturating_add(1);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Deletes the oldest `surplus` revisions of those that `in_use` does not hold.
    pub(crate) async fn truncate(
        &self,
        known: &[ControllerRevision],
        in_use: impl Fn(&ControllerRevision) -> bool,
        surplus: usize,
    ) -> Result<(), SyncError> {
        for revision in known.iter().filter(|revision| !in_use(revision)).take(surplus) {
            let namespace = revision.namespace().unwrap_or_default();
            let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &namespace);
            or_absent(api.delete(&revision.name_any(), &DeleteParams::default()).await)?;
        }
        Ok(())
    }
}

/// How many of `count` revisions are too many; a negative limit keeps all.
pub(crate) fn surplus(count: usize, limit: Option<i32>) -> usize {
    usize::try_from(limit.unwrap_or(10)).map_or(0, |limit| count.saturating_sub(limit))
}
