//! Checks of what a node is: its name, cordon, labels and free ports.

use std::collections::BTreeSet;

use crate::framework::{NodeCheck, NodeRank, Refusal};
use crate::labels::{node_matches, term_matches};
use crate::plugins::taints::tolerated;
use crate::pod::Class;
use crate::snapshot::NodeInfo;
use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelector, Taint};

fn refuse(reason: &str) -> Result<(), Refusal> {
    Err(Refusal::unresolvable(reason))
}

/// A cordoned node takes only Pods that tolerate its taint.
pub fn unschedulable(class: &Class, info: &NodeInfo) -> Result<(), Refusal> {
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

pub fn name(class: &Class, info: &NodeInfo) -> Result<(), Refusal> {
    match &class.node_name {
        Some(name) if **name != *info.name => refuse("node(s) didn't match the requested node name"),
        _ => Ok(()),
    }
}

/// The node selector and the required node affinity must both match.
pub fn affinity(class: &Class, info: &NodeInfo) -> Result<(), Refusal> {
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

/// Terms that each name nodes no one of which can be meant can never be met.
pub fn affinity_conflict(class: &Class) -> Result<(), Refusal> {
    match &class.only_nodes {
        Some(names) if names.is_empty() => refuse("pod affinity terms conflict"),
        _ => Ok(()),
    }
}

/// The only nodes that the required affinity can mean, where every term names some: Pods of a DaemonSet.
pub fn named_nodes(required: Option<&NodeSelector>) -> Option<BTreeSet<String>> {
    let terms = &required?.node_selector_terms;
    if terms.is_empty() {
        return None;
    }
    let mut names = BTreeSet::new();
    for term in terms {
        let named = term
            .match_fields
            .iter()
            .flatten()
            .filter(|field| field.key == "metadata.name" && field.operator == "In")
            .map(|field| field.values.iter().flatten().cloned().collect::<BTreeSet<_>>());
        names.extend(named.reduce(|left, right| &left & &right)?);
    }
    Some(names)
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

/// [`affinity`], after what the configuration asks of nodes for all Pods.
pub fn affinity_with(added: &NodeAffinity) -> NodeCheck {
    let Some(required) = added.required_during_scheduling_ignored_during_execution.clone() else {
        return Box::new(affinity);
    };
    Box::new(move |class, info| {
        if info.node.as_ref().is_some_and(|node| node_matches(&required, node)) {
            affinity(class, info)
        } else {
            refuse("node(s) didn't match scheduler-enforced node affinity")
        }
    })
}

/// [`affinity_score`], and the preferences that the configuration has for all Pods.
pub fn affinity_score_with(added: &NodeAffinity) -> NodeRank {
    let preferred = added
        .preferred_during_scheduling_ignored_during_execution
        .clone()
        .unwrap_or_default();
    if preferred.is_empty() {
        return Box::new(affinity_score);
    }
    Box::new(move |class, info| {
        let Some(node) = &info.node else { return 0 };
        let met = preferred
            .iter()
            .filter(|preference| term_matches(&preference.preference, node));
        met.map(|preference| i64::from(preference.weight)).sum::<i64>() + affinity_score(class, info)
    })
}

pub fn ports(class: &Class, info: &NodeInfo) -> Result<(), Refusal> {
    let clash = class
        .host_ports
        .iter()
        .any(|wanted| info.host_ports.iter().any(|used| used.clashes(wanted)));
    if clash {
        Err(Refusal::resolvable(
            "node(s) didn't have free ports for the requested pod ports",
        ))
    } else {
        Ok(())
    }
}
