//! ControllerRevisions: the past templates of StatefulSets and DaemonSets.
//!
//! A revision holds the template as a strategic merge patch that replaces it, which is what `kubectl rollout undo` sends
//! back. Its name is a hash of its content, so making it twice is one object; a template that comes back (a rollback)
//! takes its old revision and gives it the highest number.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt};
use sampan_client::{Informer, is_already_exists, or_absent, owner};
use serde_json::{Value, json};

use crate::SyncError;
use crate::deployment::hash;
use crate::pods::BY_OWNER;

/// On the revision.
const HASH: &str = "controller.kubernetes.io/hash";
/// On Pods: which revision they were made from.
pub(crate) const POD_HASH: &str = "controller-revision-hash";

/// The revisions of one owner.
pub(crate) struct History<'a> {
    pub(crate) client: &'a kube::Client,
    pub(crate) revisions: &'a Informer<ControllerRevision>,
}

/// The hash in a revision's labels.
pub(crate) fn hash_of(revision: &ControllerRevision) -> String {
    revision.labels().get(HASH).cloned().unwrap_or_default()
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
    /// The revisions of `owner`, oldest first.
    pub(crate) fn list<K: Resource>(&self, owner: &K) -> Vec<ControllerRevision> {
        let mut found: Vec<ControllerRevision> = self
            .revisions
            .by_index(BY_OWNER, owner.meta().uid.as_deref().unwrap_or_default())
            .iter()
            .map(|revision| ControllerRevision::clone(revision))
            .collect();
        found.sort_by(|a, b| {
            a.revision
                .cmp(&b.revision)
                .then_with(|| a.creation_timestamp().cmp(&b.creation_timestamp()))
                .then_with(|| a.metadata.name.cmp(&b.metadata.name))
        });
        found
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
            labels.insert(HASH.into(), hash.clone());
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

    /// Deletes the oldest revisions that nobody uses, beyond `limit`.
    pub(crate) async fn truncate(
        &self,
        known: &[ControllerRevision],
        live: &BTreeSet<String>,
        limit: i32,
    ) -> Result<(), SyncError> {
        let unused: Vec<&ControllerRevision> = known
            .iter()
            .filter(|revision| !live.contains(&revision.name_any()))
            .collect();
        let limit = usize::try_from(limit).unwrap_or(0);
        let surplus = unused.len().saturating_sub(limit);
        for revision in unused.into_iter().take(surplus) {
            let namespace = revision.namespace().unwrap_or_default();
            let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &namespace);
            or_absent(api.delete(&revision.name_any(), &DeleteParams::default()).await)?;
        }
        Ok(())
    }
}
