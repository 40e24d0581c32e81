//! To whom a Pod's claims belong: what the retention policy makes of their owner references. Pure.
//!
//! A claim that goes with the set is owned by the set, one that goes with a Pod scaled away is owned by that Pod, and the
//! garbage collector does the rest. A claim that refers to an earlier object of the same name is left alone until that
//! reference has done its work, and so is one that somebody else controls.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use sampan_client::owner;

/// The set and the Pod that a claim may belong to.
pub(super) struct Owners<'a> {
    pub(super) set: &'a StatefulSet,
    pub(super) pod: &'a str,
    /// Empty for a Pod that is not there yet.
    pub(super) pod_uid: &'a str,
    /// Whether the Pod is beyond the set's size.
    pub(super) scaled_away: bool,
}

fn deletes(policy: Option<&String>) -> bool {
    policy.is_some_and(|policy| policy == "Delete")
}

/// (when the set is deleted, when it is scaled down): whether claims go too.
pub(super) fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    policy.map_or((false, false), |policy| {
        (
            deletes(policy.when_deleted.as_ref()),
            deletes(policy.when_scaled.as_ref()),
        )
    })
}

impl Owners<'_> {
    fn set_uid(&self) -> String {
        self.set.uid().unwrap_or_default()
    }

    fn is_set(&self, reference: &OwnerReference) -> bool {
        reference.api_version == "apps/v1" && reference.kind == "StatefulSet" && reference.name == self.set.name_any()
    }

    fn is_pod(&self, reference: &OwnerReference) -> bool {
        reference.api_version == "v1" && reference.kind == "Pod" && reference.name == self.pod
    }

    /// The references that the policy asks for.
    fn wanted(&self) -> Option<OwnerReference> {
        let (with_set, when_scaled) = policy(self.set);
        if when_scaled && self.scaled_away {
            Some(OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: self.pod.to_owned(),
                uid: self.pod_uid.to_owned(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            })
        } else {
            with_set.then(|| owner::controller_ref(self.set))
        }
    }

    /// Whether the claim refers to a Pod of this name that was there before.
    pub(super) fn is_stale(&self, claim: &PersistentVolumeClaim) -> bool {
        let of_pod = claim.owner_references().iter().find(|reference| self.is_pod(reference));
        of_pod.is_some_and(|reference| reference.uid != self.pod_uid)
    }

    /// Whether somebody else controls the claim, so that the policy cannot be followed.
    pub(super) fn is_contested(&self, claim: &PersistentVolumeClaim) -> bool {
        if policy(self.set) == (false, false) {
            return false;
        }
        claim.owner_references().iter().any(|reference| {
            if self.is_set(reference) {
                reference.uid != self.set_uid()
            } else if self.is_pod(reference) {
                reference.uid != self.pod_uid
            } else {
                reference.controller == Some(true)
            }
        })
    }

    /// What the claim's references should be; `None` if they may stay as they are.
    pub(super) fn changed(&self, claim: &PersistentVolumeClaim) -> Option<Vec<OwnerReference>> {
        let references = claim.owner_references();
        let set_uid = self.set_uid();
        let of_set = references.iter().find(|reference| self.is_set(reference));
        if of_set.is_some_and(|reference| reference.uid != set_uid) || self.is_stale(claim) {
            return None;
        }
        let kept = || -> Vec<OwnerReference> {
            references
                .iter()
                .filter(|reference| !self.is_set(reference) && !self.is_pod(reference))
                .cloned()
                .collect()
        };
        let ours: Vec<&OwnerReference> = references
            .iter()
            .filter(|reference| reference.uid == set_uid || reference.uid == self.pod_uid)
            .collect();
        if self.is_contested(claim) {
            return (!ours.is_empty()).then(kept);
        }
        let wanted = self.wanted();
        let right = match (&wanted, ours.as_slice()) {
            (None, []) => true,
            (Some(wanted), [one]) => one.uid == wanted.uid && one.controller == Some(true),
            _ => false,
        };
        if right {
            return None;
        }
        let mut changed = kept();
        changed.extend(wanted);
        Some(changed)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec};

    use super::*;

    fn set(deleted: &str, scaled: &str) -> StatefulSet {
        let mut set = StatefulSet {
            spec: Some(StatefulSetSpec {
                persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some(deleted.into()),
                    when_scaled: Some(scaled.into()),
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        set.metadata.name = Some("db".into());
        set.metadata.uid = Some("set".into());
        set
    }

    fn reference(kind: &str, name: &str, uid: &str, controller: bool) -> OwnerReference {
        OwnerReference {
            api_version: if kind == "StatefulSet" { "apps/v1" } else { "v1" }.into(),
            kind: kind.into(),
            name: name.into(),
            uid: uid.into(),
            controller: controller.then_some(true),
            block_owner_deletion: controller.then_some(true),
        }
    }

    #[test]
    fn references_follow_the_policy() {
        let by_set = || reference("StatefulSet", "db", "set", true);
        let by_pod = || reference("Pod", "db-0", "pod", true);
        let other = || reference("ConfigMap", "c", "other", false);
        type Case = (
            &'static str,
            &'static str,
            bool,
            Vec<OwnerReference>,
            Option<Vec<OwnerReference>>,
        );
        let cases: Vec<Case> = vec![
            ("Retain", "Retain", false, vec![], None),
            ("Retain", "Retain", false, vec![by_set(), other()], Some(vec![other()])),
            ("Delete", "Retain", false, vec![], Some(vec![by_set()])),
            ("Delete", "Retain", true, vec![by_set()], None),
            ("Delete", "Retain", false, vec![by_pod()], Some(vec![by_set()])),
            ("Retain", "Delete", false, vec![], None),
            ("Retain", "Delete", true, vec![], Some(vec![by_pod()])),
            ("Delete", "Delete", false, vec![by_pod()], Some(vec![by_set()])),
            ("Delete", "Delete", true, vec![by_set()], Some(vec![by_pod()])),
            ("Delete", "Delete", true, vec![by_pod()], None),
            // An old reference that does not control is made one that does.
            (
                "Delete",
                "Retain",
                false,
                vec![reference("StatefulSet", "db", "set", false)],
                Some(vec![by_set()]),
            ),
            // References to earlier objects of the same name are left alone.
            (
                "Delete",
                "Retain",
                false,
                vec![reference("StatefulSet", "db", "old", true)],
                None,
            ),
            (
                "Delete",
                "Delete",
                true,
                vec![reference("Pod", "db-0", "old", true)],
                None,
            ),
            // Somebody else is in charge.
            (
                "Delete",
                "Retain",
                false,
                vec![reference("Foo", "f", "foo", true)],
                None,
            ),
            (
                "Delete",
                "Retain",
                false,
                vec![reference("Foo", "f", "foo", true), by_set()],
                Some(vec![reference("Foo", "f", "foo", true)]),
            ),
        ];
        for (deleted, scaled, scaled_away, before, expected) in cases {
            let set = set(deleted, scaled);
            let mut claim = PersistentVolumeClaim::default();
            claim.metadata.owner_references = Some(before.clone());
            let owners = Owners {
                set: &set,
                pod: "db-0",
                pod_uid: "pod",
                scaled_away,
            };
            let got = owners.changed(&claim);
            assert_eq!(got, expected, "{deleted} {scaled} {scaled_away} {before:?}");
            if let Some(after) = got {
                claim.metadata.owner_references = Some(after);
                assert_eq!(owners.changed(&claim), None, "and then it stays");
            }
        }
    }
}
