//! What a node's state means for its object, without I/O: conditions of the silent, taints by conditions, labels of old.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// condition, the status that taints, the taint
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The conditions that a node's agent keeps.
const AGENTS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Labels, and what they were called before.
const OLD_LABELS: [(&str, &str); 2] = [
    ("kubernetes.io/os", "beta.kubernetes.io/os"),
    ("kubernetes.io/arch", "beta.kubernetes.io/arch"),
];

pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

pub(super) fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Whether between two states of a node its agent has said something. `Unknown` is what we say ourselves.
pub(super) fn has_spoken(old: &Node, new: &Node) -> bool {
    let beat = |node: &Node| condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone());
    let agents = condition(new, "Ready").is_some_and(|ready| ready.status != "Unknown");
    agents && beat(old) != beat(new)
}

pub(super) fn no_execute(taints: &[Taint]) -> bool {
    let mut taints = taints.iter();
    taints.any(|taint| taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()))
}

fn whole_seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// The status of a node that has gone silent, unless it says so already.
pub(super) fn silent(node: &Node, now: Timestamp) -> Option<NodeStatus> {
    let now = whole_seconds(now);
    let unknown = |kind: &str| condition(node, kind).is_some_and(|known| known.status == "Unknown");
    if AGENTS.iter().all(|kind| unknown(kind)) {
        return None;
    }
    let mut status = node.status.clone().unwrap_or_default();
    let conditions = status.conditions.get_or_insert_default();
    for kind in AGENTS {
        match conditions.iter_mut().find(|known| known.type_ == kind) {
            Some(known) if known.status == "Unknown" => {}
            Some(known) => {
                known.status = "Unknown".into();
                known.reason = Some("NodeStatusUnknown".into());
                known.message = Some("Kubelet stopped posting node status.".into());
                known.last_transition_time = Some(now.clone());
            }
            None => {
                conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(now.clone()),
                });
            }
        }
    }
    Some(status)
}

/// The taints a node should have: other people's as they are, ours as its conditions say. `drive_away`: its Pods may be
/// driven away if it is not ready.
pub(super) fn taints(node: &Node, current: &[Taint], drive_away: bool, now: Timestamp) -> Vec<Taint> {
    let is = |kind: &str, status: &str| condition(node, kind).is_some_and(|c| c.status == status);
    let mut wanted: Vec<(&str, &str)> = BY_CONDITION
        .iter()
        .filter(|(kind, status, _)| is(kind, status))
        .map(|(_, _, taint)| (*taint, "NoSchedule"))
        .collect();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    // Nobody comes back to a node that is not well, but who is there stays until it is the node's turn.
    match condition(node, "Ready").map(|ready| ready.status.as_str()) {
        Some("Unknown") if drive_away => wanted.push((UNREACHABLE, "NoExecute")),
        Some("False") if drive_away => wanted.push((NOT_READY, "NoExecute")),
        _ => {}
    }
    // A node that has not said anything yet keeps what it was born with.
    let silent_yet = condition(node, "Ready").is_none();
    let ours = |taint: &Taint| {
        let by_condition = BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key);
        match taint.effect.as_str() {
            "NoSchedule" => (by_condition && !silent_yet) || taint.key == UNSCHEDULABLE,
            "NoExecute" => (taint.key == NOT_READY || taint.key == UNREACHABLE) && !silent_yet,
            _ => false,
        }
    };
    let is_wanted = |taint: &Taint| {
        wanted
            .iter()
            .any(|(key, effect)| *key == taint.key && *effect == taint.effect)
    };
    let mut result: Vec<Taint> = current
        .iter()
        .filter(|taint| !ours(taint) || is_wanted(taint))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !result.iter().any(|taint| taint.key == key && taint.effect == effect) {
            result.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(whole_seconds(now)),
            });
        }
    }
    result
}

/// The labels of old that a node lacks or that do not say what today's say.
pub(super) fn old_labels(node: &Node) -> Vec<(&'static str, String)> {
    let labels = node.labels();
    let behind = |(today, old): &(&str, &'static str)| {
        let value = labels.get(*today)?;
        (labels.get(*old) != Some(value)).then(|| (*old, value.clone()))
    };
    OLD_LABELS.iter().filter_map(behind).collect()
}
