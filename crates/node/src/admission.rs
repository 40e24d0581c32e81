//! Whether this node takes a Pod that was bound to it: resources, selectors, ports, kernel parameters. Pure.
//!
//! The scheduler asked the same questions, but of an older picture, and not every Pod went through it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};
use sampan_api::selector;
use sampan_volumes::downward::{millis, units};

use crate::network::host_ports;
use crate::node_status::Pressure;
use crate::pod::{self, qos, security};

/// Why a Pod is refused: becomes its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
}

fn refusal(reason: &str, message: impl Into<String>) -> Option<Refusal> {
    Some(Refusal {
        reason: reason.to_owned(),
        message: message.into(),
    })
}

/// Checks whether `pod` may come while something is scarce.
pub fn check_pressure(pod: &Pod, pressure: Pressure) -> Option<Refusal> {
    if crate::eviction::is_critical(pod) {
        return None;
    }
    let refuse = |condition: &str| refusal("Evicted", format!("The node had condition: [{condition}]. "));
    if pressure.disk {
        return refuse("DiskPressure");
    }
    if pressure.pids {
        return refuse("PIDPressure");
    }
    // Pods with requests may still find memory; those without would be the first to go.
    if pressure.memory && qos::class(pod) == qos::Class::BestEffort {
        return refuse("MemoryPressure");
    }
    None
}

/// Checks `pod` against the node and the Pods that are active on it already.
pub fn check(pod: &Pod, node: &Node, active: &[&Pod]) -> Option<Refusal> {
    if let Some(name) = security::forbidden_sysctl(pod) {
        return refusal(
            "SysctlForbidden",
            format!("forbidden sysctl: \"{name}\" not allowlisted"),
        );
    }
    if !selects(pod, node) {
        return refusal(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        );
    }
    if ports_conflict(pod, active) {
        return refusal(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        );
    }
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let capacity = |name: &str| {
        let amount = allocatable?.get(name)?;
        if name == "cpu" { millis(amount) } else { units(amount) }
    };
    let count = i64::try_from(active.len()).unwrap_or(i64::MAX);
    if let Some(pods) = capacity("pods")
        && count >= pods
    {
        return refusal(
            "OutOfpods",
            format!("Node didn't have enough resource: pods, requested: 1, used: {count}, capacity: {pods}"),
        );
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        let requested = qos::pod_requests(pod, name);
        let used: i64 = active
            .iter()
            .map(|other| qos::pod_requests(other, name))
            .fold(0, i64::saturating_add);
        if let Some(capacity) = capacity(name)
            && requested > 0
            && used.saturating_add(requested) > capacity
        {
            return refusal(
                &format!("OutOf{name}"),
                format!(
                    "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
                ),
            );
        }
    }
    None
}

fn ports_conflict(pod: &Pod, active: &[&Pod]) -> bool {
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
    let wanted = host_ports(pod);
    if wanted.is_empty() {
        return false;
    }
    active.iter().flat_map(|other| host_ports(other)).any(|have| {
        wanted.iter().any(|want| {
            want.host_port == have.host_port
                && want.protocol == have.protocol
                && (any(&want.host_ip) || any(&have.host_ip) || want.host_ip == have.host_ip)
        })
    })
}

/// Whether the Pod's node selector and required affinity match the node.
pub fn selects(pod: &Pod, node: &Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let spec = pod::spec(pod);
    let by_labels = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let terms = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())
        .map(|selector| &selector.node_selector_terms);
    let by_terms = terms.is_none_or(|terms| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        terms.iter().any(|term| term_matches(term, labels, name))
    });
    by_labels && by_terms
}

fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions
        .iter()
        .all(|requirement| holds(requirement, labels.get(&requirement.key).map(String::as_str)))
        && fields
            .iter()
            .all(|requirement| requirement.key == "metadata.name" && holds(requirement, Some(name)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    selector::holds(&requirement.operator, value, values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod;
    use serde_json::{Value, json};

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"disk": "ssd", "rank": "5"}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3"}}
        }))
        .unwrap()
    }

    fn sized(cpu: &str) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
    }

    fn affinity(expressions: Value, fields: Value) -> Pod {
        pod(
            json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": expressions, "matchFields": fields}]}}}}),
        )
    }

    #[test]
    fn resources_and_counts() {
        let (node, one) = (node(), sized("1500m"));
        assert_eq!(check(&one, &node, &[]), None);
        let got = check(&sized("1"), &node, &[&one]).unwrap();
        assert_eq!(got.reason, "OutOfcpu");
        assert_eq!(
            got.message,
            "Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000"
        );
        let small = pod(json!({"containers": []}));
        let got = check(&small, &node, &[&small, &small, &small]).unwrap();
        assert_eq!(got.reason, "OutOfpods");
    }

    #[test]
    fn scarcity_keeps_new_pods_away() {
        let disk = Pressure {
            disk: true,
            ..Pressure::default()
        };
        let memory = Pressure {
            memory: true,
            ..Pressure::default()
        };
        let (modest, plain) = (sized("1"), pod(json!({"containers": []})));
        let critical = pod(json!({"priority": 2_000_001_000, "containers": []}));
        assert_eq!(
            check_pressure(&modest, disk).unwrap().message,
            "The node had condition: [DiskPressure]. "
        );
        assert_eq!(check_pressure(&critical, disk), None);
        assert_eq!(check_pressure(&modest, memory), None);
        assert!(check_pressure(&plain, memory).is_some());
        assert_eq!(check_pressure(&plain, Pressure::default()), None);
    }

    #[test]
    fn ports() {
        let with = |ip: &str, port: i32, protocol: &str| {
            pod(json!({"containers": [{"name": "c", "ports":
                [{"containerPort": 1, "hostPort": port, "hostIP": ip, "protocol": protocol}]}]}))
        };
        for (other, conflict) in [
            (with("", 80, "TCP"), true),
            (with("10.0.0.1", 80, "TCP"), true),
            (with("10.0.0.2", 80, "TCP"), false),
            (with("", 80, "UDP"), false),
            (with("", 81, "TCP"), false),
        ] {
            let got = check(&with("10.0.0.1", 80, "TCP"), &node(), &[&other]);
            assert_eq!(got.is_some(), conflict);
        }
    }

    #[test]
    fn selectors() {
        let of =
            |key: &str, operator: &str, values: Value| json!([{"key": key, "operator": operator, "values": values}]);
        for (expressions, fields, expected) in [
            (of("disk", "In", json!(["ssd"])), json!([]), true),
            (of("disk", "NotIn", json!(["ssd"])), json!([]), false),
            (of("none", "NotIn", json!(["x"])), json!([]), true),
            (of("rank", "Gt", json!(["4"])), json!([]), true),
            (of("rank", "Lt", json!(["4"])), json!([]), false),
            (of("disk", "Gt", json!(["4"])), json!([]), false),
            (of("none", "DoesNotExist", json!([])), json!([]), true),
            (json!([]), of("metadata.name", "In", json!(["n1"])), true),
            (json!([]), of("metadata.name", "In", json!(["n2"])), false),
            (json!([]), json!([]), false),
        ] {
            let pod = affinity(expressions.clone(), fields.clone());
            assert_eq!(selects(&pod, &node()), expected, "{expressions} {fields}");
        }
        let selected = pod(json!({"containers": [], "nodeSelector": {"disk": "hdd"}}));
        assert_eq!(check(&selected, &node(), &[]).unwrap().reason, "NodeAffinity");
    }
}
