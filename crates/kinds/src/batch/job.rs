//! Jobs.

use sampan_api::Object;
use serde_json::Value;

use crate::defaults::{Default, Fill};
use crate::rules::{RULES as PLAIN, Rules};
use crate::spec::Propagation;
use crate::tree;

pub(super) static RULES: Rules = Rules {
    generation: true,
    pod_spec: "spec.template.spec",
    defaults: DEFAULTS,
    default,
    propagation: Propagation::Orphan,
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
    ("spec.completionMode", Fill::Text("NonIndexed")),
    ("spec.suspend", Fill::Bool(false)),
    ("spec(podFailurePolicy).podReplacementPolicy", Fill::Text("Failed")),
    ("spec.podReplacementPolicy", Fill::Text("TerminatingOrFailed")),
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

/// The defaults a Job template of a CronJob gets: those of the Job's parts, not of the Job itself.
pub(super) fn default_template(spec: &mut Value) {
    crate::defaults::apply(
        &[("podFailurePolicy.rules[].onPodConditions[].status", Fill::Text("True"))],
        spec,
    );
}
