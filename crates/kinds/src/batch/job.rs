//! Jobs.

use sampan_api::Object;
use serde_json::Value;

use crate::defaults::{Default, Fill};
use crate::rules::{RULES as PLAIN, Rules};
use crate::spec::{MetadataCheck, Propagation};
use crate::tree;
use crate::warnings;

pub(super) static RULES: Rules = Rules {
    generation: true,
    pod_spec: "spec.template.spec",
    defaults: DEFAULTS,
    default,
    create: generate_selector,
    metadata: &[MetadataCheck::Whole, MetadataCheck::Change],
    validate: super::validate::job,
    validate_update: super::validate::job_update,
    propagation: Propagation::Orphan,
    warnings: warnings::job,
    ..PLAIN
};

const DEFAULTS: &[Default] = &[
    ("spec", Fill::Map),
    ("spec.template", Fill::Map),
    ("spec.template.metadata", Fill::Map),
    ("spec.template.spec", Fill::Map),
    ("spec(!parallelism).completions", Fill::Int(1)),
    ("spec.parallelism", Fill::Int(1)),
    ("spec(backoffLimitPerIndex).backoffLimit", Fill::Int(i32::MAX as i64)),
    ("spec.backoffLimit", Fill::Int(6)),
    ("spec.completionMode", Fill::Pointer("NonIndexed")),
    ("spec.suspend", Fill::Bool(false)),
    ("spec(podFailurePolicy).podReplacementPolicy", Fill::Pointer("Failed")),
    ("spec.podReplacementPolicy", Fill::Pointer("TerminatingOrFailed")),
    ("spec.manualSelector", Fill::Bool(false)),
    (
        "spec.podFailurePolicy.rules[].onPodConditions[].status",
        Fill::Text("True"),
    ),
    ("status", Fill::Map),
];

/// A Job without labels gets those of its template.
fn default(job: &mut Object) {
    if tree::len(job, "metadata.labels") == 0
        && let Some(labels) = tree::get(job, "spec.template.metadata.labels")
            .filter(|labels| labels.as_object().is_some_and(|labels| !labels.is_empty()))
            .cloned()
    {
        tree::set(job, "metadata.labels", labels);
    }
}

pub(super) const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
pub(super) const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];

/// Pods of a Job are told apart by its uid, in labels and selector made here unless the user wants to do that by
/// hand. Labels that are there already stay: validation finds those that conflict.
fn generate_selector(job: &mut Object) {
    if tree::flag(job, "spec.manualSelector") || !job.get("spec").is_some_and(Value::is_object) {
        return;
    }
    let name = tree::text(job, "metadata.name").to_owned();
    let uid = tree::text(job, "metadata.uid").to_owned();
    let mut labels = tree::map(job, "spec.template.metadata.labels")
        .cloned()
        .unwrap_or_default();
    // A Job that has its template's labels (see `default`), or none at all, has these too.
    let own = tree::map(job, "metadata.labels").filter(|own| !own.is_empty());
    let shared = own.is_none_or(|own| *own == labels);
    for (keys, value) in [(NAME_LABELS, &name), (UID_LABELS, &uid)] {
        for key in keys {
            labels.entry(key).or_insert_with(|| value.clone().into());
        }
    }
    if shared {
        tree::set(job, "metadata.labels", labels.clone());
    }
    tree::set(job, "spec.template.metadata.labels", labels);
    let mut selected = tree::map(job, "spec.selector.matchLabels").cloned().unwrap_or_default();
    selected.entry(UID_LABELS[1]).or_insert_with(|| uid.into());
    tree::set(job, "spec.selector.matchLabels", selected);
}

/// The defaults a Job template of a CronJob gets: those of the Job's parts, not of the Job itself.
pub(super) fn default_template(spec: &mut Value) {
    crate::defaults::apply(
        &[("podFailurePolicy.rules[].onPodConditions[].status", Fill::Text("True"))],
        spec,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Strategy;
    use serde_json::json;

    #[test]
    fn a_job_selects_its_own_pods() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {}}}});
        RULES.default(&mut job);
        RULES.prepare_create(&mut job);
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"],
            json!({"job-name": "j", "batch.kubernetes.io/job-name": "j", "controller-uid": "u", "batch.kubernetes.io/controller-uid": "u"})
        );
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        assert_eq!(job["spec"]["completions"], 1);
        let mut labelled = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}});
        RULES.default(&mut labelled);
        RULES.prepare_create(&mut labelled);
        assert_eq!(
            labelled["metadata"]["labels"],
            labelled["spec"]["template"]["metadata"]["labels"]
        );
        assert_eq!(
            labelled["metadata"]["labels"].as_object().map(serde_json::Map::len),
            Some(5)
        );
        let mut manual = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"manualSelector": true}});
        RULES.prepare_create(&mut manual);
        assert_eq!(manual["spec"], json!({"manualSelector": true}));
    }

    #[test]
    fn defaults() {
        let mut job = json!({"spec": {"parallelism": 2, "backoffLimitPerIndex": 1, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}});
        RULES.default(&mut job);
        assert_eq!(job["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(job["spec"].get("completions"), None);
        assert_eq!(job["spec"]["backoffLimit"], i32::MAX);
        assert_eq!(job["spec"]["podReplacementPolicy"], "TerminatingOrFailed");
        assert_eq!(job["spec"]["template"]["spec"]["dnsPolicy"], "ClusterFirst");
    }
}
