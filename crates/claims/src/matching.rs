//! Which volume a claim gets.
//!
//! A volume that is kept for the claim by name comes first, wherever it is; then the smallest free one that is large
//! enough, of the fewest access modes. Deliberate difference: upstream looks at volumes of few access modes first even
//! when one of more modes is kept for the claim, so that a user's own binding can be missed.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use sampan_api::quantity::Quantity;

use crate::{claim_class, claim_ref, is_for, labels_match, node_affinity, request, volume_class};

/// Why a claim cannot have the volume it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch(pub String);

/// How large a volume is.
pub fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    let capacity = volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?;
    Quantity::parse(&capacity.0).ok()
}

/// A volume mode with its default.
pub fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

fn modes_agree(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
    let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
    mode(of_volume) == mode(of_claim)
}

/// The access modes of a volume.
pub fn access_modes(volume: &PersistentVolume) -> &[String] {
    let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref());
    modes.unwrap_or_default()
}

fn access_suffices(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = access_modes(volume);
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref());
    wanted.unwrap_or_default().iter().all(|mode| offered.contains(mode))
}

fn attributes_agree(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let of_claim = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_attributes_class_name.as_deref());
    of_volume.unwrap_or_default() == of_claim.unwrap_or_default()
}

fn is_large_enough(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    capacity(volume).unwrap_or_else(Quantity::zero) >= request(claim)
}

/// Whether a claim can have the volume that it names.
pub fn satisfies(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Mismatch> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let why = if volume.metadata.deletion_timestamp.is_some() {
        format!("the volume is marked for deletion {name:?}")
    } else if !is_large_enough(volume, claim) {
        "requested PV is too small".into()
    } else if volume_class(volume) != claim_class(claim) {
        "storageClassName does not match".into()
    } else if !attributes_agree(volume, claim) {
        "volumeAttributesClassName does not match".into()
    } else if !modes_agree(volume, claim) {
        "incompatible volumeMode".into()
    } else if !access_suffices(volume, claim) {
        "incompatible accessMode".into()
    } else {
        return Ok(());
    };
    Err(Mismatch(why))
}

/// The volume that a claim is to have among `volumes`.
///
/// `node`: the labels of the node from which it must be reached (the scheduler's question). `only_kept`: a free volume
/// will not do (the binder's question about a claim that waits for its Pod). `taken`: names that are spoken for.
pub fn find<'a, V>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = V>,
    node: Option<Option<&BTreeMap<String, String>>>,
    only_kept: bool,
    taken: &HashSet<String>,
) -> Option<V>
where
    V: AsRef<PersistentVolume> + 'a,
{
    let class = claim_class(claim);
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let mut best: Option<(usize, Quantity, V)> = None;
    for candidate in volumes {
        let volume = candidate.as_ref();
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let kept = is_for(volume, claim);
        if taken.contains(name)
            || (claim_ref(volume).is_some() && !kept)
            || !is_large_enough(volume, claim)
            || !modes_agree(volume, claim)
            || !attributes_agree(volume, claim)
            || !access_suffices(volume, claim)
            || volume.metadata.deletion_timestamp.is_some()
        {
            continue;
        }
        let in_reach = node.is_none_or(|labels| node_affinity(volume, labels));
        if kept {
            // What is kept for the claim is its volume, or none is.
            return in_reach.then_some(candidate);
        }
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        if only_kept
            || phase != Some("Available")
            || volume_class(volume) != class
            || !labels_match(selector, volume.metadata.labels.as_ref())
            || !in_reach
        {
            continue;
        }
        let rank = if node.is_some() { 0 } else { access_modes(volume).len() };
        let size = capacity(volume).unwrap_or_else(Quantity::zero);
        let better = best.as_ref().is_none_or(|(modes, smallest, known)| {
            let known = known.as_ref().metadata.name.as_deref().unwrap_or_default();
            // Names decide between equals, so that everyone who asks gets the same answer.
            rank.cmp(modes)
                .then_with(|| size.cmp(smallest))
                .then_with(|| name.cmp(known))
                .is_lt()
        });
        if better {
            best = Some((rank, size, candidate));
        }
    }
    best.map(|(_, _, volume)| volume)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn volume(name: &str, size: &str, change: Value) -> Arc<PersistentVolume> {
        let mut value = json!({"metadata": {"name": name}, "status": {"phase": "Available"},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]}});
        merge(&mut value, change);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn claim(change: Value) -> PersistentVolumeClaim {
        let mut value = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}}});
        merge(&mut value, change);
        serde_json::from_value(value).unwrap()
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    #[test]
    fn a_claim_gets_the_smallest_volume_that_will_do() {
        let both = json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}});
        let kept = json!({"spec": {"claimRef": {"name": "c", "namespace": "n"}}});
        let on = |node: &str| {
            json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "host", "operator": "In", "values": [node]}]}]}}}})
        };
        let none = json!({});
        let large = volume("large", "10Gi", none.clone());
        type Case = (&'static str, Vec<Arc<PersistentVolume>>, Value, Option<&'static str>);
        let cases: Vec<Case> = vec![
            (
                "smallest",
                vec![large.clone(), volume("fit", "5Gi", none.clone())],
                none.clone(),
                Some("fit"),
            ),
            ("too small", vec![volume("v", "4Gi", none.clone())], none.clone(), None),
            (
                "fewest modes",
                vec![volume("two", "5Gi", both), large.clone()],
                none.clone(),
                Some("large"),
            ),
            (
                "kept first",
                vec![volume("fit", "5Gi", none.clone()), volume("kept", "50Gi", kept.clone())],
                none.clone(),
                Some("kept"),
            ),
            (
                "kept even if not free",
                vec![volume(
                    "kept",
                    "5Gi",
                    json!({"status": {"phase": "Bound"}, "spec": {"claimRef": {"name": "c", "namespace": "n", "uid": "u"}}}),
                )],
                none.clone(),
                Some("kept"),
            ),
            (
                "kept for another",
                vec![volume(
                    "v",
                    "5Gi",
                    json!({"spec": {"claimRef": {"name": "d", "namespace": "n"}}}),
                )],
                none.clone(),
                None,
            ),
            (
                "not free",
                vec![volume("v", "5Gi", json!({"status": {"phase": "Released"}}))],
                none.clone(),
                None,
            ),
            (
                "class",
                vec![volume("v", "5Gi", json!({"spec": {"storageClassName": "fast"}}))],
                none.clone(),
                None,
            ),
            (
                "class asked for",
                vec![volume("v", "5Gi", json!({"spec": {"storageClassName": "fast"}}))],
                json!({"spec": {"storageClassName": "fast"}}),
                Some("v"),
            ),
            (
                "modes",
                vec![large.clone()],
                json!({"spec": {"accessModes": ["ReadWriteMany"]}}),
                None,
            ),
            (
                "block",
                vec![large.clone()],
                json!({"spec": {"volumeMode": "Block"}}),
                None,
            ),
            (
                "selector",
                vec![
                    large.clone(),
                    volume("v", "20Gi", json!({"metadata": {"labels": {"a": "b"}}})),
                ],
                json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}),
                Some("v"),
            ),
            (
                "leaving",
                vec![volume(
                    "v",
                    "5Gi",
                    json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                )],
                none.clone(),
                None,
            ),
            (
                "attributes",
                vec![volume(
                    "v",
                    "5Gi",
                    json!({"spec": {"volumeAttributesClassName": "gold"}}),
                )],
                none.clone(),
                None,
            ),
            (
                "any node will do for the binder",
                vec![volume("v", "5Gi", on("b"))],
                none.clone(),
                Some("v"),
            ),
        ];
        for (what, volumes, change, expected) in cases {
            let claim = claim(change);
            let found = find(&claim, volumes.iter().cloned(), None, false, &HashSet::new());
            let found = found.and_then(|volume| volume.metadata.name.clone());
            assert_eq!(found.as_deref(), expected, "{what}");
        }
        let labels: BTreeMap<String, String> = [("host".to_owned(), "a".to_owned())].into();
        let volumes = [volume("there", "5Gi", on("b")), volume("here", "50Gi", on("a"))];
        let from = |volumes: &[Arc<PersistentVolume>]| {
            find(
                &claim(json!({})),
                volumes.iter().cloned(),
                Some(Some(&labels)),
                false,
                &HashSet::new(),
            )
            .and_then(|volume| volume.metadata.name.clone())
        };
        assert_eq!(from(&volumes).as_deref(), Some("here"));
        let mut far = kept;
        merge(&mut far, on("b"));
        assert_eq!(
            from(&[volume("kept", "5Gi", far), volume("here", "50Gi", on("a"))]),
            None
        );
        assert!(find(&claim(json!({})), [large].into_iter(), None, true, &HashSet::new()).is_none());
    }

    #[test]
    fn a_named_volume_is_checked() {
        for (change, of_claim, expected) in [
            (json!({}), json!({}), None),
            (
                json!({"spec": {"capacity": {"storage": "1Gi"}}}),
                json!({}),
                Some("requested PV is too small"),
            ),
            (
                json!({}),
                json!({"spec": {"storageClassName": "x"}}),
                Some("storageClassName does not match"),
            ),
            (
                json!({}),
                json!({"spec": {"volumeMode": "Block"}}),
                Some("incompatible volumeMode"),
            ),
            (
                json!({}),
                json!({"spec": {"accessModes": ["ReadWriteMany"]}}),
                Some("incompatible accessMode"),
            ),
            (
                json!({}),
                json!({"spec": {"volumeAttributesClassName": "x"}}),
                Some("volumeAttributesClassName does not match"),
            ),
        ] {
            let why = satisfies(&volume("v", "5Gi", change), &claim(of_claim)).err();
            assert_eq!(why.map(|Mismatch(why)| why).as_deref(), expected);
        }
    }
}
