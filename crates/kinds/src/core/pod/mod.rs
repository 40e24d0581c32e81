//! Pods.

pub(crate) mod change;
mod defaults;
pub(crate) mod print;
pub(crate) mod qos;
mod validate;

use super::text_field;
use crate::defaults::Fill;
use crate::rules::{RULES as PLAIN, Rules};
use crate::spec::{MetadataCheck, Part, SelectableField};
use crate::tree;
use crate::warnings;

pub(crate) static RULES: Rules = Rules {
    generation: true,
    pod_spec: "spec",
    defaults: &[("spec", Fill::Map), ("status", Fill::Map)],
    default: defaults::default,
    create: change::prepare_create,
    view: change::prepare_view,
    reset: |part| {
        (part == Part::View("status")).then_some(&["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"])
    },
    grace: change::grace,
    metadata: &[MetadataCheck::Change, MetadataCheck::Whole],
    validate_create: validate::create,
    validate_update: validate::update,
    warnings: warnings::pod,
    ..PLAIN
};

pub(crate) const FIELDS: &[SelectableField] = &[
    text_field!("spec.nodeName"),
    SelectableField {
        label: "spec.host",
        read: |pod| tree::text(pod, "spec.nodeName").to_owned(),
    },
    text_field!("spec.restartPolicy"),
    text_field!("spec.schedulerName"),
    text_field!("spec.serviceAccountName"),
    SelectableField {
        label: "spec.hostNetwork",
        read: |pod| tree::flag(pod, "spec.hostNetwork").to_string(),
    },
    text_field!("status.phase"),
    SelectableField {
        label: "status.podIP",
        read: pod_ip,
    },
    SelectableField {
        label: "status.podIPs",
        read: pod_ip,
    },
    text_field!("status.nominatedNodeName"),
];

fn pod_ip(pod: &sampan_api::Object) -> String {
    tree::items(pod, "status.podIPs")
        .first()
        .map(|ip| tree::text(ip, "ip"))
        .unwrap_or_default()
        .to_owned()
}
