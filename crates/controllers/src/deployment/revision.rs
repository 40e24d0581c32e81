//! Which replica set carries the template of a deployment, and the revisions in annotations.
//!
//! Differs from upstream in the hash of a template: FNV-1a over its JSON, in the same alphabet. Names of replica sets
//! therefore differ from upstream's; an existing set is found by its template, so taking over a cluster makes none anew.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde::Serialize;

use super::rolling;

pub(super) const HASH_LABEL: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations that belong to one object and are not passed from deployment to replica set.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    ROLLBACK,
];
pub(super) const ROLLBACK: &str = "deprecated.deployment.rollback.to";
/// In bytes.
const LONGEST_HISTORY: usize = 2000;
/// No vowels and nothing that looks like one: hashes spell no words.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A hash of anything with a JSON form, safe in names and labels.
pub(crate) fn hash(value: &impl Serialize, collisions: Option<i32>) -> Result<String, serde_json::Error> {
    let mut state = 0x811c_9dc5_u32;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            state = (state ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    feed(&serde_json::to_vec(value)?);
    if let Some(collisions) = collisions {
        feed(&collisions.to_le_bytes());
    }
    let digits = state.to_string();
    Ok(digits
        .bytes()
        .filter_map(|byte| ALPHABET.get(usize::from(byte) % ALPHABET.len()))
        .map(|letter| char::from(*letter))
        .collect())
}

/// Whether two templates are the same but for the hash label.
pub(super) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let bare = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(meta) = &mut template.metadata {
            if let Some(labels) = &mut meta.labels {
                labels.remove(HASH_LABEL);
            }
            meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
            meta.annotations = meta.annotations.take().filter(|a| !a.is_empty());
            meta.creation_timestamp = None;
        }
        template.metadata = template.metadata.filter(|meta| *meta != Default::default());
        template
    };
    bare(a) == bare(b)
}

/// Splits a deployment's sets (ordered by age) into the one with its template (the oldest, should there be several) and
/// the rest.
pub(super) fn split(deployment: &Deployment, mut sets: Vec<ReplicaSet>) -> (Option<ReplicaSet>, Vec<ReplicaSet>) {
    by_age(&mut sets);
    let template = deployment.spec.as_ref().map(|spec| &spec.template);
    let place = sets.iter().position(|set| {
        let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        matches!((own, template), (Some(own), Some(wanted)) if same_template(own, wanted))
    });
    let new = place.map(|place| sets.remove(place));
    (new, sets)
}

pub(super) fn by_age(sets: &mut [ReplicaSet]) {
    sets.sort_by(|a, b| {
        let age = |set: &ReplicaSet| set.metadata.creation_timestamp.clone();
        age(a).cmp(&age(b)).then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
}

fn annotation<'a>(set: &'a ReplicaSet, name: &str) -> Option<&'a String> {
    set.metadata.annotations.as_ref()?.get(name)
}

pub(super) fn revision(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

pub(super) fn desired_replicas(set: &ReplicaSet) -> Option<i32> {
    annotation(set, DESIRED)?.parse().ok()
}

pub(super) fn max_replicas(set: &ReplicaSet) -> Option<i32> {
    annotation(set, MAX)?.parse().ok()
}

/// Writes down for which size of the deployment a set was sized. Returns whether that changed anything.
pub(super) fn set_replicas(annotations: &mut BTreeMap<String, String>, deployment: &Deployment) -> bool {
    let wanted = rolling::wanted(deployment);
    let most = wanted + rolling::max_surge(deployment);
    let mut changed = false;
    for (name, value) in [(DESIRED, wanted.to_string()), (MAX, most.to_string())] {
        if annotations.get(name) != Some(&value) {
            annotations.insert(name.into(), value);
            changed = true;
        }
    }
    changed
}

/// Brings the annotations of the new set in line with its deployment and with being revision `revision`.
/// Returns whether that changed anything.
pub(super) fn update_new(
    set: &mut BTreeMap<String, String>,
    deployment: &Deployment,
    revision: i64,
    exists: bool,
) -> bool {
    let mut changed = false;
    for (name, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN.contains(&name.as_str()) && set.get(name) != Some(value) {
            set.insert(name.clone(), value.clone());
            changed = true;
        }
    }
    let old: i64 = set.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0);
    if old < revision {
        let before = set.insert(REVISION.into(), revision.to_string());
        changed = true;
        // A set that becomes current again (a rollback) remembers which revisions it was.
        if let Some(before) = before.filter(|before| exists && !before.is_empty()) {
            let history = set.entry(HISTORY.into()).or_default();
            *history = joined(history, &before);
        }
    }
    if !exists {
        changed |= set_replicas(set, deployment);
    }
    changed
}

/// The list of past revisions with one more; the oldest give way when it gets too long.
fn joined(history: &str, last: &str) -> String {
    if history.is_empty() {
        return last.to_owned();
    }
    let mut rest = history;
    while rest.len() + 1 + last.len() > LONGEST_HISTORY {
        match rest.split_once(',') {
            Some((_, newer)) => rest = newer,
            None => return last.to_owned(),
        }
    }
    format!("{rest},{last}")
}

/// The revision that a deployment is asked to go back to; 0 is the last one.
pub(super) fn rollback_to(deployment: &Deployment) -> Option<i64> {
    let annotations = deployment.metadata.annotations.as_ref()?;
    annotations.get(ROLLBACK).filter(|text| !text.is_empty())?.parse().ok()
}

/// Gives a deployment the template and the annotations of one of its sets.
pub(super) fn return_to(deployment: &mut Deployment, set: &ReplicaSet) {
    if let (Some(spec), Some(template)) = (
        &mut deployment.spec,
        set.spec.as_ref().and_then(|spec| spec.template.clone()),
    ) {
        spec.template = template;
        if let Some(labels) = spec.template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
            labels.remove(HASH_LABEL);
        }
    }
    let own = |name: &String| OWN.contains(&name.as_str());
    let mut annotations = deployment.metadata.annotations.take().unwrap_or_default();
    annotations.retain(|name, _| own(name));
    let theirs = set.metadata.annotations.iter().flatten();
    annotations.extend(
        theirs
            .filter(|(name, _)| !own(name))
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    deployment.metadata.annotations = Some(annotations);
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;

    use super::*;

    fn template(image: &str, hash: Option<&str>) -> PodTemplateSpec {
        let mut labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        if let Some(hash) = hash {
            labels.insert(HASH_LABEL.into(), hash.into());
        }
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(labels),
                ..Default::default()
            }),
            spec: Some(k8s_openapi::api::core::v1::PodSpec {
                containers: vec![k8s_openapi::api::core::v1::Container {
                    image: Some(image.into()),
                    ..Default::default()
                }],
                ..Default::default()
            }),
        }
    }

    #[test]
    fn hashes_are_stable_and_depend_on_collisions() {
        let one = hash(&template("a", None), None).unwrap();
        assert_eq!(one, hash(&template("a", None), None).unwrap());
        assert_ne!(one, hash(&template("b", None), None).unwrap());
        assert_ne!(one, hash(&template("a", None), Some(1)).unwrap());
        assert!(one.bytes().all(|byte| ALPHABET.contains(&byte)), "{one}");
    }

    #[test]
    fn templates_are_compared_without_the_hash() {
        assert!(same_template(&template("a", None), &template("a", Some("x"))));
        assert!(!same_template(&template("a", None), &template("b", None)));
    }

    #[test]
    fn revisions_move_on_and_are_remembered() {
        let mut deployment = Deployment::default();
        deployment.metadata.annotations = Some(
            [
                ("note".to_owned(), "hello".to_owned()),
                (REVISION.to_owned(), "7".to_owned()),
            ]
            .into(),
        );
        let mut set = BTreeMap::new();
        assert!(update_new(&mut set, &deployment, 1, false));
        assert_eq!(set[REVISION], "1");
        assert_eq!(set["note"], "hello");
        assert!(set.contains_key(DESIRED));
        assert!(!update_new(&mut set, &deployment, 1, true));
        assert!(update_new(&mut set, &deployment, 3, true));
        assert!(update_new(&mut set, &deployment, 5, true));
        assert_eq!((set[REVISION].as_str(), set[HISTORY].as_str()), ("5", "1,3"));
    }

    #[test]
    fn a_long_history_loses_its_oldest_revisions() {
        assert_eq!(joined("", "1"), "1");
        assert_eq!(joined("1,2", "3"), "1,2,3");
        let many: Vec<String> = (1000..1400).map(|n| n.to_string()).collect();
        let history = joined(&many.join(","), "1400");
        assert_eq!(history.len(), 1999);
        assert!(
            history.starts_with("1001,1002") && history.ends_with("1399,1400"),
            "{history}"
        );
    }
}
