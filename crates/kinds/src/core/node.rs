//! Nodes.

use std::collections::BTreeSet;

use jiff::Timestamp;
use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::Value;

use crate::checks::{self, Rule};
use crate::defaults::{Default, Fill};
use crate::internal;
use crate::pod_spec::scheduling::EFFECTS;
use crate::pod_spec::{quantities, resources};
use crate::print::{AGE, NAME, age, cell, cell_or, name, or, text};
use crate::rules::{RULES as PLAIN, Rules, Status};
use crate::spec::{Column, MetadataCheck, Part};
use crate::tree;
use crate::warnings;

pub(crate) static RULES: Rules = Rules {
    status: Status::FromCreator,
    defaults: DEFAULTS,
    default,
    metadata: &[MetadataCheck::Whole, MetadataCheck::Change],
    validate,
    validate_update,
    warnings: warnings::node,
    ..PLAIN
};

const DEFAULTS: &[Default] = &[
    ("spec", Fill::Map),
    ("status", Fill::Map),
    ("status.daemonEndpoints", Fill::Map),
    ("status.daemonEndpoints.kubeletEndpoint", Fill::Map),
    ("status.daemonEndpoints.kubeletEndpoint.Port", Fill::Int(0)),
    ("status.nodeInfo", Fill::Map),
    ("status.nodeInfo.architecture", Fill::Text("")),
    ("status.nodeInfo.bootID", Fill::Text("")),
    ("status.nodeInfo.containerRuntimeVersion", Fill::Text("")),
    ("status.nodeInfo.kernelVersion", Fill::Text("")),
    ("status.nodeInfo.kubeProxyVersion", Fill::Text("")),
    ("status.nodeInfo.kubeletVersion", Fill::Text("")),
    ("status.nodeInfo.machineID", Fill::Text("")),
    ("status.nodeInfo.operatingSystem", Fill::Text("")),
    ("status.nodeInfo.osImage", Fill::Text("")),
    ("status.nodeInfo.systemUUID", Fill::Text("")),
];

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
    for image in tree::items_mut(node, "status.images") {
        if tree::items(image, "names").is_empty() {
            // As Go prints a list that is not there.
            tree::set(image, "names", Value::Null);
        }
    }
    quantities::canonical_at(node, &["status.capacity", "status.allocatable"]);
    if tree::get(node, "status.allocatable").is_none()
        && let Some(capacity) = tree::get(node, "status.capacity").cloned()
    {
        tree::set(node, "status.allocatable", capacity);
    }
}

fn taints(node: &Object, errors: &mut Errors) {
    let path = Path::new("metadata").child("taints");
    let mut seen = BTreeSet::new();
    for (index, taint) in tree::items(node, "spec.taints").iter().enumerate() {
        let path = path.index(index);
        let (key, effect) = (tree::text(taint, "key"), tree::text(taint, "effect"));
        checks::named(&path.child("key"), key, api::qualified_name, errors);
        let wrong = api::label_value(tree::text(taint, "value"));
        if !wrong.is_empty() {
            errors.push(Error::invalid(
                &path.child("value"),
                tree::text(taint, "value"),
                wrong.join(";"),
            ));
        }
        checks::run_at(&[("effect", Rule::RequiredOneOf(&EFFECTS))], taint, &path, None, errors);
        if !seen.insert((key, effect)) {
            let shown = internal::object(internal::TAINT, Some(taint));
            let mut error = Error::duplicate(&path, Value::Null).showing(shown);
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
}

fn validate(node: &Object, errors: &mut Errors) {
    taints(node, errors);
    amounts(node, errors);
    let ranges = tree::items(node, "spec.podCIDRs");
    let path = Path::new("spec").child("podCIDRs");
    for (index, range) in ranges.iter().enumerate() {
        let text = range.as_str().unwrap_or_default();
        checks::named(&path.index(index), text, crate::names::cidr, errors);
    }
    let sixes = ranges.iter().filter(|range| tree::scalar(range).contains(':')).count();
    if ranges.len() > 1 && (ranges.len() > 2 || sixes != 1) {
        errors.push(Error::invalid(
            &path,
            ranges.to_vec(),
            "may specify no more than one CIDR for each IP family",
        ));
    }
}

fn amounts(node: &Object, errors: &mut Errors) {
    for list in ["capacity", "allocatable"] {
        let path = Path::new("status").child(list);
        let entries = tree::get(node, "status").and_then(|status| tree::map(status, list));
        for (name, value) in entries.into_iter().flatten() {
            resources::amount(name, value, &path.child(name), errors);
        }
    }
}

/// Ranges and provider are set once. Amounts and taints are looked at twice, as upstream does.
fn validate_update(_: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    amounts(new, errors);
    let mut addresses = Vec::new();
    for (index, address) in tree::items(new, "status.addresses").iter().enumerate() {
        if addresses.contains(&address) {
            let path = Path::new("status").child("addresses").index(index);
            let shown = internal::object(internal::NODE_ADDRESS, Some(address));
            errors.push(Error::duplicate(&path, Value::Null).showing(shown));
        }
        addresses.push(address);
    }
    for (field, shown) in [("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
        let dotted = format!("spec.{field}");
        let was_set = tree::get(old, &dotted).is_some_and(|was| !tree::is_empty(was));
        if was_set && !tree::same_at(new, old, &dotted) {
            errors.push(Error::forbidden(
                &Path::new("spec").child(field),
                format!("node updates may not change {shown} except from \"\" to valid"),
            ));
        }
    }
    taints(new, errors);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Strategy;
    use serde_json::json;

    #[test]
    fn taints_are_looked_at_twice_when_they_change() {
        let node =
            json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}, {"key": "k", "effect": "NoSchedule"}]}});
        let wanted = "metadata.taints[1]: Duplicate value: {\"Key\":\"k\",\"Value\":\"\",\"Effect\":\"NoSchedule\",\"TimeAdded\":null}: taints must be unique by key and effect pair";
        let texts = |errors: Errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(RULES.validate_create(&node)), [wanted]);
        assert_eq!(texts(RULES.validate_update(Part::Main, &node, &node)), [wanted, wanted]);
    }
}
