//! Nodes.

use std::collections::BTreeSet;

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::defaults::Default;
use crate::print::{AGE, NAME, age, cell, cell_or, name, or, text};
use crate::rules::{RULES as PLAIN, Rules};
use crate::spec::Column;
use crate::tree;

pub(crate) static RULES: Rules = Rules {
    keeps_status: false,
    ..PLAIN
};

#[allow(dead_code)]
const DEFAULTS: &[Default] = &[];

pub(crate) const COLUMNS: &[Column] = &[
    NAME,
    text("Status", "Whether the node is ready and takes new Pods."),
    text("Roles", "Roles its labels give it."),
    AGE,
    text("Version", "Version of its node agent."),
    text("Internal-IP", "Its first address inside the cluster.").wide(),
    text("External-IP", "Its first address outside.").wide(),
    text("OS-Image", "Its operating system.").wide(),
    text("Kernel-Version", "Its kernel.").wide(),
    text("Container-Runtime", "Its container runtime and version.").wide(),
];

pub(crate) fn cells(node: &Object, now: Timestamp) -> Vec<Value> {
    let ready = tree::items(node, "status.conditions")
        .iter()
        .rfind(|condition| tree::text(condition, "type") == "Ready");
    let mut status = match ready.map(|condition| tree::text(condition, "status")) {
        None => "Unknown",
        Some("True") => "Ready",
        Some(_) => "NotReady",
    }
    .to_owned();
    if tree::flag(node, "spec.unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let mut kernel = or(tree::text(node, "status.nodeInfo.kernelVersion"), "<unknown>").to_owned();
    let architecture = tree::text(node, "status.nodeInfo.architecture");
    if !architecture.is_empty() {
        kernel.push_str(&format!(" ({architecture})"));
    }
    vec![
        name(node),
        status.into(),
        or(&roles(node), "<none>").into(),
        age(node, now),
        cell(node, "status.nodeInfo.kubeletVersion"),
        address(node, "InternalIP").into(),
        address(node, "ExternalIP").into(),
        cell_or(node, "status.nodeInfo.osImage", "<unknown>"),
        kernel.into(),
        cell_or(node, "status.nodeInfo.containerRuntimeVersion", "<unknown>"),
    ]
}

fn roles(node: &Object) -> String {
    let roles: BTreeSet<_> = tree::map(node, "metadata.labels")
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.into_iter().collect::<Vec<_>>().join(",")
}

fn address<'a>(node: &'a Object, kind: &str) -> &'a str {
    tree::items(node, "status.addresses")
        .iter()
        .find(|address| tree::text(address, "type") == kind)
        .map_or("<none>", |address| tree::text(address, "address"))
}
