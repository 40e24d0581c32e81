//! Checks of what a node is: its name, cordon, labels and free ports.

use crate::framework::Reasons;
use crate::labels::{node_matches, term_matches};
use crate::plugins::taints::tolerated;
use crate::pod::Class;
use crate::snapshot::NodeInfo;
use k8s_openapi::api::core::v1::Taint;

fn refuse(reason: &str) -> Result<(), Reasons> {
    Err(vec![reason.to_owned()])
}

/// A cordoned node takes only Pods that tolerate its taint.
pub fn unschedulable(class: &Class, info: &NodeInfo) -> Result<(), Reasons> {
    let cordoned = info
        .node
        .as_ref()
        .and_then(|node| node.spec.as_ref())
        .and_then(|spec| spec.unschedulable)
        .unwrap_or(false);
    let taint = || Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    if cordoned && !tolerated(&taint(), &class.tolerations) {
        return refuse("node(s) were unschedulable");
    }
    Ok(())
}

pub fn name(class: &Class, info: &NodeInfo) -> Result<(), Reasons> {
    match &class.node_name {
        Some(name) if **name != *info.name => refuse("node(s) didn't match the requested node name"),
        _ => Ok(()),
    }
}

/// The node selector and the required node affinity must both match.
pub fn affinity(class: &Class, info: &NodeInfo) -> Result<(), Reasons> {
    let selected = class
        .node_selector
        .iter()
        .all(|(key, value)| info.label(key) == Some(value.as_str()));
    let required = match (&class.required_nodes, &info.node) {
        (Some(selector), Some(node)) => node_matches(selector, node),
        (Some(_), None) => false,
        (None, _) => true,
    };
    if selected && required {
        Ok(())
    } else {
        refuse("node(s) didn't match Pod's node affinity/selector")
    }
}

/// The summed weights of the preferences that the node meets.
pub fn affinity_score(class: &Class, info: &NodeInfo) -> i64 {
    let Some(node) = &info.node else { return 0 };
    let met = class
        .preferred_nodes
        .iter()
        .filter(|preference| term_matches(&preference.preference, node));
    met.map(|preference| i64::from(preference.weight)).sum()
}

pub fn ports(class: &Class, info: &NodeInfo) -> Result<(), Reasons> {
    let clash = class
        .host_ports
        .iter()
        .any(|wanted| info.host_ports.iter().any(|used| used.clashes(wanted)));
    if clash {
        refuse("node(s) didn't have free ports for the requested pod ports")
    } else {
        Ok(())
    }
}
