//! Table output of the simpler core kinds.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::print::{AGE, NAME, age, cell, containers_and_images, count, first_three, labels, name, text};
use crate::spec::Column;
use crate::tree;

pub(super) const COMPONENT_STATUS: &[Column] = &[
    NAME,
    text("Status", "Whether the component is healthy."),
    text("Message", "What the component said."),
    text("Error", "What went wrong asking it."),
];

pub(super) fn component_status(object: &Object, _now: Timestamp) -> Vec<Value> {
    let condition = tree::items(object, "conditions")
        .iter()
        .find(|condition| tree::text(condition, "type") == "Healthy");
    let (status, message, error) = match condition {
        None => ("Unknown", "", ""),
        Some(condition) => (
            if tree::text(condition, "status") == "True" {
                "Healthy"
            } else {
                "Unhealthy"
            },
            tree::text(condition, "message"),
            tree::text(condition, "error"),
        ),
    };
    vec![name(object), status.into(), message.into(), error.into()]
}

pub(super) const CONFIG_MAP: &[Column] = &[NAME, text("Data", "Number of keys, text and binary."), AGE];

pub(super) fn config_map(object: &Object, now: Timestamp) -> Vec<Value> {
    let keys = tree::len(object, "data") + tree::len(object, "binaryData");
    vec![name(object), keys.into(), age(object, now)]
}

pub(super) const ENDPOINTS: &[Column] = &[NAME, text("Endpoints", "The first ready addresses and ports."), AGE];

pub(super) fn endpoints(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), format_endpoints(object).into(), age(object, now)]
}

/// The first three ready addresses of each subset, with every port.
fn format_endpoints(object: &Object) -> String {
    let mut found = Vec::new();
    for subset in tree::items(object, "subsets") {
        let addresses = || {
            tree::items(subset, "addresses")
                .iter()
                .map(|address| tree::text(address, "ip"))
        };
        let ports = tree::items(subset, "ports");
        if ports.is_empty() {
            found.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let port = tree::int(port, "port");
            found.extend(addresses().map(|ip| {
                if ip.contains(':') {
                    format!("[{ip}]:{port}")
                } else {
                    format!("{ip}:{port}")
                }
            }));
        }
    }
    if tree::items(object, "subsets").is_empty() {
        return "<none>".to_owned();
    }
    first_three(&found, "")
}

pub(super) const NAMESPACE: &[Column] = &[NAME, text("Status", "Active or Terminating."), AGE];

pub(super) fn namespace(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), cell(object, "status.phase"), age(object, now)]
}

pub(super) const POD_TEMPLATE: &[Column] = &[
    NAME,
    text("Containers", "Names of the template's containers."),
    text("Images", "Images of the template's containers."),
    text("Pod Labels", "Labels of the template's Pods."),
];

pub(super) fn pod_template(object: &Object, _now: Timestamp) -> Vec<Value> {
    let [names, images] = containers_and_images(object, "template.spec");
    vec![
        name(object),
        names,
        images,
        labels(object, "template.metadata.labels").into(),
    ]
}

pub(super) fn replication_controller(object: &Object, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers_and_images(object, "spec.template.spec");
    vec![
        name(object),
        count(object, "spec.replicas"),
        count(object, "status.replicas"),
        count(object, "status.readyReplicas"),
        age(object, now),
        names,
        images,
        labels(object, "spec.selector").into(),
    ]
}

pub(super) const RESOURCE_QUOTA: &[Column] = &[
    NAME,
    text("Request", "Used and hard amounts of everything but limits."),
    text("Limit", "Used and hard amounts of limits."),
    AGE,
];

pub(super) fn resource_quota(object: &Object, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in tree::map(object, "status.hard").into_iter().flatten() {
        let used = tree::map(object, "status.used").and_then(|used| used.get(resource));
        let text = format!(
            "{resource}: {}/{}",
            used.map_or_else(|| "0".to_owned(), tree::scalar),
            tree::scalar(hard)
        );
        if resource.starts_with("limits.") {
            limits.push(text);
        } else {
            requests.push(text);
        }
    }
    vec![
        name(object),
        requests.join(", ").into(),
        limits.join(", ").into(),
        age(object, now),
    ]
}

pub(super) const SECRET: &[Column] = &[
    NAME,
    text("Type", "What the data is for."),
    text("Data", "Number of keys."),
    AGE,
];

pub(super) fn secret(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        cell(object, "type"),
        tree::len(object, "data").into(),
        age(object, now),
    ]
}
