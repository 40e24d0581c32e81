//! Owner references, adoption and release.
//!
//! A controller owns the objects whose controller reference carries its UID. Among the rest it adopts those that its
//! selector matches and nobody controls, and it releases those of its own that its selector no longer matches. Before
//! the first adoption of a sync the controller's object is read anew from the API, not from the cache, so that an owner
//! already deleted (or replaced under its name) never adopts.

use std::future::Future;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{is_invalid, is_not_found};

/// The reference that marks its holder as controlled by `owner`; deletion of `owner` in the foreground waits for it.
pub fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The controller reference an object carries, if any.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|reference| reference.controller == Some(true))
}

/// Whether the object with `meta` is controlled by the object with `uid`.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|reference| reference.uid == uid)
}

/// The name of the controller of kind `K`, if `meta` has one.
pub fn controller_name<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<&str> {
    let reference = controller_of(meta)?;
    let group = reference.api_version.split_once('/').map_or("", |(group, _)| group);
    (reference.kind == K::kind(&()) && group == K::group(&())).then_some(reference.name.as_str())
}

/// For an index by controller: the UID of an object's controller.
pub fn controller_uid_index<K: Resource>(object: &K) -> Vec<String> {
    controller_of(object.meta())
        .map(|reference| reference.uid.clone())
        .into_iter()
        .collect()
}

/// A parsed selector of a workload. Empty or absent selects nothing, as workloads require; what cannot be parsed
/// selects nothing too (validation keeps it out).
pub fn selector(selector: Option<&LabelSelector>) -> Option<Selector> {
    let selector = Selector::try_from(selector?.clone()).ok()?;
    (!selector.selects_all()).then_some(selector)
}

/// Whether `selector` (as from [`selector`]) matches the labels of an object.
pub fn selects(selector: Option<&Selector>, meta: &ObjectMeta) -> bool {
    let empty = Default::default();
    selector.is_some_and(|selector| selector.matches(meta.labels.as_ref().unwrap_or(&empty)))
}

/// What a controller does with a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is ours and stays so.
    Keep,
    Adopt,
    Release,
    /// Somebody else's, or nobody's and none of our business.
    Ignore,
}

/// The decision of [`Claimer::claim`] for one candidate.
pub fn decide(controller_uid: &str, controller_deleting: bool, matches: bool, candidate: &ObjectMeta) -> Claim {
    match controller_of(candidate) {
        Some(reference) if reference.uid != controller_uid => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if controller_deleting => Claim::Ignore,
        Some(_) => Claim::Release,
        None if controller_deleting || !matches || candidate.deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// Claims objects of kind `K` for one controller.
pub struct Claimer<'a, K> {
    /// Writes the candidates; bound to the controller's namespace.
    pub api: &'a Api<K>,
    pub reference: OwnerReference,
    pub deleting: bool,
    pub selector: Option<&'a Selector>,
    /// Further conditions on adoption and keeping, beyond the selector (`|_| true` for none).
    pub also: &'a (dyn Fn(&K) -> bool + Send + Sync),
    /// Finalizers given with adoption and taken away with release.
    pub finalizers: &'a [&'a str],
}

impl<K> Claimer<'_, K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync,
{
    /// Returns the candidates that belong to the controller afterwards. `still_alive` reads the controller from the API
    /// and says whether it exists with the same UID and is not being deleted; it is asked at most once.
    pub async fn claim<F, Fut>(&self, candidates: Vec<Arc<K>>, still_alive: F) -> kube::Result<Vec<Arc<K>>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = kube::Result<bool>>,
    {
        let mut still_alive = Some(still_alive);
        let mut alive = false;
        let (mut ours, mut failure) = (Vec::new(), None);
        for candidate in candidates {
            let matches = selects(self.selector, candidate.meta()) && (self.also)(candidate.as_ref());
            let decision = decide(&self.reference.uid, self.deleting, matches, candidate.meta());
            let outcome = match decision {
                Claim::Keep => {
                    ours.push(candidate);
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Release => self.release(&candidate).await.map(|()| None),
                Claim::Adopt => {
                    if let Some(ask) = still_alive.take() {
                        alive = ask().await?;
                    }
                    if alive { self.adopt(&candidate).await } else { Ok(None) }
                }
            };
            match outcome {
                Ok(adopted) => ours.extend(adopted.map(Arc::new)),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(ours), Err)
    }

    async fn adopt(&self, object: &K) -> kube::Result<Option<K>> {
        let mut references = object.meta().owner_references.clone().unwrap_or_default();
        references.push(self.reference.clone());
        let mut metadata = json!({
            "uid": object.meta().uid,
            "resourceVersion": object.meta().resource_version,
            "ownerReferences": references,
        });
        let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
        let before = finalizers.len();
        for wanted in self.finalizers {
            if !finalizers.iter().any(|known| known == wanted) {
                finalizers.push((*wanted).to_owned());
            }
        }
        if finalizers.len() != before {
            metadata["finalizers"] = json!(finalizers);
        }
        match self.patch(object, json!({ "metadata": metadata })).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn release(&self, object: &K) -> kube::Result<()> {
        let mut references = object.meta().owner_references.clone().unwrap_or_default();
        references.retain(|reference| reference.uid != self.reference.uid);
        let mut metadata = json!({
            "uid": object.meta().uid,
            "resourceVersion": object.meta().resource_version,
            "ownerReferences": references,
        });
        let finalizers = object.meta().finalizers.as_deref().unwrap_or_default();
        let unwanted = |name: &String| self.finalizers.contains(&name.as_str());
        if finalizers.iter().any(unwanted) {
            let kept: Vec<_> = finalizers.iter().filter(|name| !unwanted(name)).collect();
            metadata["finalizers"] = json!(kept);
        }
        match self.patch(object, json!({ "metadata": metadata })).await {
            // Gone, or replaced under its name: nothing to release.
            Err(error) if is_not_found(&error) || is_invalid(&error) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }

    async fn patch(&self, object: &K, patch: serde_json::Value) -> kube::Result<K> {
        self.api
            .patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims() {
        let meta = |owner: Option<&str>, deleting: bool| ObjectMeta {
            owner_references: owner.map(|uid| {
                vec![OwnerReference {
                    uid: uid.into(),
                    controller: Some(true),
                    ..Default::default()
                }]
            }),
            deletion_timestamp: deleting.then_some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                jiff::Timestamp::UNIX_EPOCH,
            )),
            ..Default::default()
        };
        let (alive, dying) = (false, true);
        let cases = [
            (Some("me"), false, alive, true, Claim::Keep),
            (Some("me"), false, alive, false, Claim::Release),
            (Some("me"), false, dying, false, Claim::Ignore),
            (Some("me"), true, dying, true, Claim::Keep),
            (Some("other"), false, alive, true, Claim::Ignore),
            (None, false, alive, true, Claim::Adopt),
            (None, false, alive, false, Claim::Ignore),
            (None, false, dying, true, Claim::Ignore),
            (None, true, alive, true, Claim::Ignore),
        ];
        for (owner, object_dying, controller_dying, matches, expected) in cases {
            let got = decide("me", controller_dying, matches, &meta(owner, object_dying));
            assert_eq!(got, expected, "{owner:?} {object_dying} {controller_dying} {matches}");
        }
    }

    #[test]
    fn an_empty_selector_selects_nothing() {
        assert!(selector(None).is_none());
        assert!(selector(Some(&LabelSelector::default())).is_none());
        let labels = LabelSelector {
            match_labels: Some([("a".to_owned(), "b".to_owned())].into()),
            ..Default::default()
        };
        let parsed = selector(Some(&labels));
        let meta = ObjectMeta {
            labels: Some([("a".to_owned(), "b".to_owned())].into()),
            ..Default::default()
        };
        assert!(selects(parsed.as_ref(), &meta));
        assert!(!selects(parsed.as_ref(), &ObjectMeta::default()));
        assert!(!selects(None, &meta));
    }
}
