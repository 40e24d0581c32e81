//! Table output of the storage kinds.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::networking::default_name;
use crate::print::{AGE, NAME, age, boolean, cell, cell_or, integer, name, or, text};
use crate::spec::Column;
use crate::tree;

pub(super) const CSI_DRIVER: &[Column] = &[
    NAME,
    boolean(
        "AttachRequired",
        "Whether volumes are attached before they are mounted.",
    ),
    boolean("PodInfoOnMount", "Whether the driver is told about the Pod."),
    boolean("StorageCapacity", "Whether the driver publishes capacities."),
    text("TokenRequests", "Audiences of the tokens it is given."),
    boolean("RequiresRepublish", "Whether volumes are published again and again."),
    text("Modes", "Kinds of volumes it serves."),
    AGE,
];

pub(super) fn csi_driver(object: &Object, now: Timestamp) -> Vec<Value> {
    let attach = tree::get(object, "spec.attachRequired")
        .and_then(Value::as_bool)
        .unwrap_or(true);
    let audiences = match tree::get(object, "spec.tokenRequests") {
        None => "<unset>".to_owned(),
        Some(requests) => tree::items(requests, "")
            .iter()
            .map(|request| tree::text(request, "audience"))
            .collect::<Vec<_>>()
            .join(","),
    };
    let modes: Vec<_> = tree::items(object, "spec.volumeLifecycleModes")
        .iter()
        .map(tree::scalar)
        .collect();
    vec![
        name(object),
        attach.into(),
        tree::flag(object, "spec.podInfoOnMount").into(),
        tree::flag(object, "spec.storageCapacity").into(),
        audiences.into(),
        tree::flag(object, "spec.requiresRepublish").into(),
        or(&modes.join(","), "<none>").into(),
        age(object, now),
    ]
}

pub(super) const CSI_NODE: &[Column] = &[NAME, integer("Drivers", "CSI drivers on the node."), AGE];

pub(super) fn csi_node(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        tree::items(object, "spec.drivers").len().into(),
        age(object, now),
    ]
}

pub(super) const STORAGE_CLASS: &[Column] = &[
    NAME,
    text("Provisioner", "Who makes its volumes."),
    text("ReclaimPolicy", "What happens to a volume when its claim goes."),
    text("VolumeBindingMode", "When claims are bound."),
    text("AllowVolumeExpansion", "Whether claims may grow."),
    AGE,
];

pub(super) fn storage_class(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        default_name(object, "storageclass.kubernetes.io/is-default-class"),
        cell(object, "provisioner"),
        cell_or(object, "reclaimPolicy", "Delete"),
        cell_or(object, "volumeBindingMode", "Immediate"),
        tree::flag(object, "allowVolumeExpansion").into(),
        age(object, now),
    ]
}

pub(super) const VOLUME_ATTACHMENT: &[Column] = &[
    NAME,
    Column {
        format: "name",
        ..text("Attacher", "The driver that attaches.")
    },
    text("PV", "What is attached."),
    text("Node", "Where it is attached."),
    boolean("Attached", "Whether it is attached."),
    AGE,
];

pub(super) fn volume_attachment(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        cell(object, "spec.attacher"),
        cell(object, "spec.source.persistentVolumeName"),
        cell(object, "spec.nodeName"),
        tree::flag(object, "status.attached").into(),
        age(object, now),
    ]
}

pub(super) const VOLUME_ATTRIBUTES_CLASS: &[Column] = &[NAME, text("DriverName", "The CSI driver it is for."), AGE];

pub(super) fn volume_attributes_class(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), cell(object, "driverName"), age(object, now)]
}
