//! The rules of the workload kinds.

use sampan_api::Object;

use super::validate;
use crate::checks::Rule;
use crate::defaults::{Default, Fill};
use crate::names;
use crate::rules::{RULES, Rules, Status};
use crate::spec::{MetadataCheck, Part};
use crate::tree;
use crate::warnings;

const TEMPLATE: &str = "spec.template.spec";

pub(super) static CONTROLLER_REVISION: Rules = Rules {
    status: Status::Plain,
    checks: &[("data", Rule::Immutable)],
    metadata: &[MetadataCheck::Change, MetadataCheck::Whole],
    validate: validate::controller_revision,
    validate_create: validate::controller_revision_create,
    ..RULES
};

pub(super) static DAEMON_SET: Rules = Rules {
    generation: true,
    pod_spec: TEMPLATE,
    defaults: DAEMON_SET_DEFAULTS,
    // Upstream's annotation is always there, so that who writes a set owns it.
    default: |set| {
        if tree::annotation(set, TEMPLATE_GENERATION).is_empty() {
            set_template_generation(set, 0);
        }
    },
    unreadable: bad_generation,
    create: |set| set_template_generation(set, 1),
    update: count_template_generation,
    checks: validate::COUNTS,
    validate: validate::daemon_set,
    changes_first: true,
    validate_update: validate::fixed_selector,
    ..RULES
};

const DAEMON_SET_DEFAULTS: &[Default] = &[
    ("spec", Fill::Map),
    ("spec.template", Fill::Map),
    ("spec.template.metadata", Fill::Map),
    ("spec.template.spec", Fill::Map),
    ("spec.updateStrategy", Fill::Map),
    ("spec.updateStrategy.type", Fill::Text("RollingUpdate")),
    ("spec.updateStrategy(type=RollingUpdate).rollingUpdate", Fill::Map),
    (
        "spec.updateStrategy(type=RollingUpdate).rollingUpdate.maxUnavailable",
        Fill::Int(1),
    ),
    (
        "spec.updateStrategy(type=RollingUpdate).rollingUpdate.maxSurge",
        Fill::Int(0),
    ),
    ("spec.revisionHistoryLimit", Fill::Int(10)),
    ("status", Fill::Map),
    ("status.currentNumberScheduled", Fill::Int(0)),
    ("status.desiredNumberScheduled", Fill::Int(0)),
    ("status.numberMisscheduled", Fill::Int(0)),
    ("status.numberReady", Fill::Int(0)),
];

/// The generation of a DaemonSet's template, which upstream keeps in an annotation since the field went.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Upstream reads the generation as a number wherever there is one.
fn bad_generation(set: &Object) -> Option<String> {
    let text = tree::map(set, "metadata.annotations")?
        .get(TEMPLATE_GENERATION)?
        .as_str()?;
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let why = if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        "invalid syntax"
    } else if text.parse::<i64>().is_err() {
        "value out of range"
    } else {
        return None;
    };
    Some(format!(
        "strconv.ParseInt: parsing {}: {why}",
        sampan_api::field::quote(text)
    ))
}

fn set_template_generation(set: &mut Object, generation: i64) {
    if let Some(annotations) = set
        .get_mut("metadata")
        .and_then(|metadata| tree::child(metadata, "annotations"))
    {
        annotations.insert(TEMPLATE_GENERATION.to_owned(), generation.to_string().into());
    }
}

fn count_template_generation(part: Part<'_>, new: &mut Object, old: &Object) {
    if part != Part::Main {
        return;
    }
    let before: i64 = tree::annotation(old, TEMPLATE_GENERATION).parse().unwrap_or(1);
    let changed = !tree::same_at(new, old, "spec.template");
    set_template_generation(new, before + i64::from(changed));
}

pub(super) static DEPLOYMENT: Rules = Rules {
    generation: true,
    pod_spec: TEMPLATE,
    defaults: DEPLOYMENT_DEFAULTS,
    checks: validate::COUNTS,
    // Annotations are copied to ReplicaSets, so the controller has to look again when they change.
    metadata_counts: |new, old| !tree::same_at(new, old, "metadata.annotations"),
    reset: |part| (part == Part::View("status")).then_some(&["spec", "metadata.labels"]),
    validate: validate::deployment,
    validate_update: validate::fixed_selector,
    warnings: warnings::name_in_pods,
    ..RULES
};

const DEPLOYMENT_DEFAULTS: &[Default] = &[
    ("spec", Fill::Map),
    ("spec.replicas", Fill::Int(1)),
    ("spec.template", Fill::Map),
    ("spec.template.metadata", Fill::Map),
    ("spec.template.spec", Fill::Map),
    ("spec.strategy", Fill::Map),
    ("spec.strategy.type", Fill::Text("RollingUpdate")),
    ("spec.strategy(type=RollingUpdate).rollingUpdate", Fill::Map),
    (
        "spec.strategy(type=RollingUpdate).rollingUpdate.maxUnavailable",
        Fill::Pointer("25%"),
    ),
    (
        "spec.strategy(type=RollingUpdate).rollingUpdate.maxSurge",
        Fill::Pointer("25%"),
    ),
    ("spec.revisionHistoryLimit", Fill::Int(10)),
    ("spec.progressDeadlineSeconds", Fill::Int(600)),
    ("status", Fill::Map),
];

pub(super) static REPLICA_SET: Rules = Rules {
    generation: true,
    pod_spec: TEMPLATE,
    defaults: &[
        ("spec", Fill::Map),
        ("spec.replicas", Fill::Int(1)),
        ("spec.template", Fill::Map),
        ("spec.template.metadata", Fill::Map),
        ("spec.template.spec", Fill::Map),
        ("status", Fill::Map),
        ("status.replicas", Fill::Int(0)),
    ],
    checks: validate::COUNTS,
    validate: validate::replica_set,
    validate_update: validate::fixed_selector,
    warnings: warnings::name_in_pods,
    ..RULES
};

pub(super) static STATEFUL_SET: Rules = Rules {
    generation: true,
    pod_spec: TEMPLATE,
    defaults: STATEFUL_SET_DEFAULTS,
    default: |set| {
        // Whatever they are called, they are claims.
        for claim in tree::items_mut(set, "spec.volumeClaimTemplates") {
            tree::set(claim, "apiVersion", "v1");
            tree::set(claim, "kind", "PersistentVolumeClaim");
        }
    },
    name: names::label,
    create: |set| drop_max_unavailable(set, None),
    update: |_, new, old| drop_max_unavailable(new, Some(old)),
    validate_create: validate::stateful_set_create,
    validate_update: validate::stateful_set_update,
    warnings: warnings::stateful_set,
    ..RULES
};

/// How many Pods of a StatefulSet may be down during a rollout is behind a gate that upstream leaves closed: the field
/// is dropped from sets that do not have it yet.
fn drop_max_unavailable(new: &mut Object, old: Option<&Object>) {
    const FIELD: &str = "spec.updateStrategy.rollingUpdate.maxUnavailable";
    if old.is_none_or(|old| tree::get(old, FIELD).is_none()) {
        tree::remove(new, FIELD);
    }
}

const STATEFUL_SET_DEFAULTS: &[Default] = &[
    ("spec", Fill::Map),
    ("spec.replicas", Fill::Int(1)),
    ("spec.template", Fill::Map),
    ("spec.template.metadata", Fill::Map),
    ("spec.template.spec", Fill::Map),
    ("spec.serviceName", Fill::Text("")),
    ("spec.ordinals.start", Fill::Int(0)),
    ("spec.podManagementPolicy", Fill::Text("OrderedReady")),
    ("spec.updateStrategy", Fill::Map),
    // Only a strategy nobody chose gets its parameters made; a chosen one gets them filled.
    ("spec(!updateStrategy.type).updateStrategy.rollingUpdate", Fill::Map),
    ("spec.updateStrategy.type", Fill::Text("RollingUpdate")),
    (
        "spec.updateStrategy(type=RollingUpdate).rollingUpdate.partition",
        Fill::Int(0),
    ),
    ("spec.persistentVolumeClaimRetentionPolicy", Fill::Map),
    (
        "spec.persistentVolumeClaimRetentionPolicy.whenDeleted",
        Fill::Text("Retain"),
    ),
    (
        "spec.persistentVolumeClaimRetentionPolicy.whenScaled",
        Fill::Text("Retain"),
    ),
    ("spec.revisionHistoryLimit", Fill::Int(10)),
    (
        "spec.volumeClaimTemplates[].spec.volumeMode",
        Fill::Pointer("Filesystem"),
    ),
    ("spec.volumeClaimTemplates[].spec.resources", Fill::Map),
    ("spec.volumeClaimTemplates[].status", Fill::Map),
    ("spec.volumeClaimTemplates[].status.phase", Fill::Text("Pending")),
    ("status", Fill::Map),
    ("status.replicas", Fill::Int(0)),
    ("status.availableReplicas", Fill::Int(0)),
];
