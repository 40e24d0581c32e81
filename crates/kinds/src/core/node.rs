//! Nodes.

use std::collections::BTreeSet;

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::defaults::{Default, Fill};
use crate::pod_spec::quantities;
use crate::print::{AGE, NAME, age, cell, cell_or, name, or, text};
use crate::rules::{RULES as PLAIN, Rules, Status};
use crate::spec::Column;
use crate::tree;

pub(crate) static RULES: Rules = Rules {
    status: Status::FromCreator,
    defaults: DEFAULTS,
    default,
    ..PLAIN
};

const DEFAULTS: &[Default] = &[("spec", Fill::Map), ("status", Fill::Map)];

fn default(node: &mut Object) {
    // `podCIDR` and the first of `podCIDRs` say the same; the singular wins, for old clients.
    let single = tree::text(node, "spec.podCIDR").to_owned();
    let first = tree::items(node, "spec.podCIDRs").first().map(tree::scalar);
    match first {
        Some(first) if single.is_empty() => tree::set(node, "spec.podCIDR", first),
        Some(first) if first == single => {}
        _ if single.is_empty() => {}
        _ => tree::set(node, "spec.podCIDRs", vec![single]),
    }
    quantities::canonical_at(node, &["status.capacity", "status.allocatable"]);
    if tree::get(node, "status.allocatable").is_none()
        && let Some(capacity) = tree::get(node, "status.capacity").cloned()
    {
        tree::set(node, "status.allocatable", capacity);
    }
}

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
