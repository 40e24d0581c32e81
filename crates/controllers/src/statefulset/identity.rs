//! Who a Pod of a StatefulSet is: its ordinal, name, host name, claims. Pure.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use kube::ResourceExt;
use sampan_client::owner;

use crate::history::POD_HASH;
use crate::pods;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in the name of a Pod, if it is one of the set's names.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let number = pod.strip_prefix(set)?.strip_prefix('-')?;
    let canonical = number == "0" || !number.starts_with(['0', '+', '-']);
    number.parse().ok().filter(|_| canonical)
}

pub(super) fn first_ordinal(set: &StatefulSet) -> i32 {
    let ordinals = set.spec.as_ref().and_then(|spec| spec.ordinals.as_ref());
    ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0)
}

pub(super) fn replicas(set: &StatefulSet) -> i32 {
    let spec = set.spec.as_ref();
    spec.and_then(|spec| spec.replicas).unwrap_or(1)
}

/// The Pod with this ordinal, from the template of a revision.
pub(super) fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let set_name = set.name_any();
    let name = format!("{set_name}-{ordinal}");
    let mut pod = pods::from_template(
        template,
        &set.namespace().unwrap_or_default(),
        &set_name,
        owner::controller_ref(set),
    );
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    pod.labels_mut().insert(POD_HASH.into(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set
        .spec
        .as_ref()
        .and_then(|spec| spec.service_name.clone())
        .filter(|name| !name.is_empty());
    settle(set, &mut pod, ordinal);
    pod
}

/// The claims of a Pod: the volume's name and the claim.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<(String, PersistentVolumeClaim)> {
    let Some(spec) = &set.spec else {
        return Vec::new();
    };
    spec.volume_claim_templates
        .iter()
        .flatten()
        .map(|template| {
            let volume = template.name_any();
            let mut claim = template.clone();
            claim.metadata.name = Some(format!("{volume}-{}-{ordinal}", set.name_any()));
            claim.metadata.namespace = set.namespace();
            claim.status = None;
            let selected = spec.selector.match_labels.clone().unwrap_or_default();
            claim.labels_mut().extend(selected);
            (volume, claim)
        })
        .collect()
}

/// Whether a Pod carries the label that its place demands.
pub(super) fn matches(pod: &Pod) -> bool {
    pod.labels().get(POD_NAME) == pod.metadata.name.as_ref()
}

/// Whether a Pod mounts the claims of its place.
pub(super) fn has_claims(set: &StatefulSet, pod: &Pod, ordinal: i32) -> bool {
    let volumes = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.volumes.as_deref())
        .unwrap_or_default();
    claims(set, ordinal).iter().all(|(name, claim)| {
        let volume = volumes.iter().find(|volume| volume.name == *name);
        volume
            .and_then(|volume| volume.persistent_volume_claim.as_ref())
            .is_some_and(|source| Some(&source.claim_name) == claim.metadata.name.as_ref())
    })
}

/// Gives a Pod the labels and volumes that its place demands.
pub(super) fn settle(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let name = pod.name_any();
    let labels = pod.labels_mut();
    labels.insert(POD_NAME.into(), name);
    labels.insert(POD_INDEX.into(), ordinal.to_string());
    let spec = pod.spec.get_or_insert_default();
    let volumes = spec.volumes.get_or_insert_default();
    for (volume, claim) in claims(set, ordinal) {
        volumes.retain(|known| known.name != volume);
        volumes.push(Volume {
            name: volume,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.name_any(),
                read_only: Some(false),
            }),
            ..Default::default()
        });
    }
    spec.volumes = spec.volumes.take().filter(|volumes| !volumes.is_empty());
}

pub(super) fn revision(pod: &Pod) -> &str {
    pod.labels().get(POD_HASH).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_in_names() {
        let cases = [
            ("web-0", Some(0)),
            ("web-12", Some(12)),
            ("web-01", None),
            ("web-+1", None),
            ("web-", None),
            ("web-x", None),
            ("other-1", None),
            ("web-a-1", None),
        ];
        for (name, expected) in cases {
            assert_eq!(ordinal("web", name), expected, "{name}");
        }
    }
}
