//! Table output of the workload kinds.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::print::{
    AGE, CONTAINERS, IMAGES, NAME, SELECTOR, age, containers_and_images, count, integer, labels, name, selector,
    selector_text, text,
};
use crate::spec::Column;
use crate::tree;

const TEMPLATE: &str = "spec.template.spec";

pub(super) const CONTROLLER_REVISION: &[Column] = &[
    NAME,
    text("Controller", "The object whose revision this is."),
    text("Revision", "Its number."),
    AGE,
];

pub(super) fn controller_revision(object: &Object, now: Timestamp) -> Vec<Value> {
    let controller = tree::items(object, "metadata.ownerReferences")
        .iter()
        .find(|owner| tree::flag(owner, "controller"))
        .map_or_else(
            || "<none>".to_owned(),
            |owner| {
                let kind = tree::text(owner, "kind");
                let kind = match tree::text(owner, "apiVersion").split_once('/') {
                    Some((group, _)) => format!("{kind}.{group}"),
                    None => kind.to_owned(),
                };
                format!("{}/{}", kind.to_lowercase(), tree::text(owner, "name"))
            },
        );
    vec![
        name(object),
        controller.into(),
        count(object, "revision"),
        age(object, now),
    ]
}

pub(super) const DAEMON_SET: &[Column] = &[
    NAME,
    integer("Desired", "Nodes that should run its Pod."),
    integer("Current", "Nodes that run at least one of its Pods."),
    integer("Ready", "Nodes whose Pod is ready."),
    integer("Up-to-date", "Nodes whose Pod is of the current template."),
    integer("Available", "Nodes whose Pod has been ready long enough."),
    text("Node Selector", "Labels a node needs to get a Pod."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn daemon_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers_and_images(object, TEMPLATE);
    vec![
        name(object),
        count(object, "status.desiredNumberScheduled"),
        count(object, "status.currentNumberScheduled"),
        count(object, "status.numberReady"),
        count(object, "status.updatedNumberScheduled"),
        count(object, "status.numberAvailable"),
        labels(object, "spec.template.spec.nodeSelector").into(),
        age(object, now),
        names,
        images,
        selector(object, "spec.selector").into(),
    ]
}

pub(super) const DEPLOYMENT: &[Column] = &[
    NAME,
    text("Ready", "Ready Pods of those wanted."),
    text("Up-to-date", "Pods of the current template."),
    text("Available", "Pods that have been ready long enough."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// `ready/wanted`
fn ready(object: &Object) -> Value {
    format!(
        "{}/{}",
        tree::int(object, "status.readyReplicas"),
        tree::int(object, "spec.replicas")
    )
    .into()
}

pub(super) fn deployment(object: &Object, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers_and_images(object, TEMPLATE);
    // Unlike its siblings upstream prints an empty selector as nothing.
    let selector = tree::get(object, "spec.selector")
        .map_or_else(|| Some(String::new()), selector_text)
        .unwrap_or_else(|| "<invalid>".to_owned());
    vec![
        name(object),
        ready(object),
        count(object, "status.updatedReplicas"),
        count(object, "status.availableReplicas"),
        age(object, now),
        names,
        images,
        selector.into(),
    ]
}

/// ReplicaSets and ReplicationControllers.
pub(crate) const REPLICA_SET: &[Column] = &[
    NAME,
    integer("Desired", "Pods wanted."),
    integer("Current", "Pods there are."),
    integer("Ready", "Pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn replica_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers_and_images(object, TEMPLATE);
    vec![
        name(object),
        count(object, "spec.replicas"),
        count(object, "status.replicas"),
        count(object, "status.readyReplicas"),
        age(object, now),
        names,
        images,
        selector(object, "spec.selector").into(),
    ]
}

pub(super) const STATEFUL_SET: &[Column] = &[
    NAME,
    text("Ready", "Ready Pods of those wanted."),
    AGE,
    CONTAINERS,
    IMAGES,
];

pub(super) fn stateful_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers_and_images(object, TEMPLATE);
    vec![name(object), ready(object), age(object, now), names, images]
}
