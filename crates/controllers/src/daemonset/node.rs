//! Which nodes a daemon runs on. Pure.

use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use kube::ResourceExt;
use sampan_api::selector;

use crate::pods;
use crate::tainteviction::tolerates;

/// Taints of a troubled node that daemons live with: (key, effect, only on the host's network).
const TOLERATED: [(&str, &str, bool); 7] = [
    ("node.kubernetes.io/not-ready", "NoExecute", false),
    ("node.kubernetes.io/unreachable", "NoExecute", false),
    ("node.kubernetes.io/disk-pressure", "NoSchedule", false),
    ("node.kubernetes.io/memory-pressure", "NoSchedule", false),
    ("node.kubernetes.io/pid-pressure", "NoSchedule", false),
    ("node.kubernetes.io/unschedulable", "NoSchedule", false),
    ("node.kubernetes.io/network-unavailable", "NoSchedule", true),
];

/// Whether a daemon belongs on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Yes.
    Run,
    /// Not a new one, but one that is there may stay.
    Stay,
    No,
}

/// Adds the tolerations that daemons have.
pub(super) fn add_tolerations(spec: &mut PodSpec) {
    let on_host = spec.host_network == Some(true);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect, host_only) in TOLERATED {
        if host_only && !on_host {
            continue;
        }
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Default::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// Binds a daemon to its node by affinity, so that the scheduler still has its say.
pub(super) fn pin(spec: &mut PodSpec, node: &str) {
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.to_owned()]),
            }]),
        }],
    });
}

/// The node a daemon's Pod is on or bound for.
pub(super) fn target(pod: &Pod) -> Option<String> {
    let bound = pods::node_name(pod);
    if !bound.is_empty() {
        return Some(bound.to_owned());
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.first()?.match_fields.as_ref()?;
    fields
        .iter()
        .find(|field| field.key == "metadata.name")?
        .values
        .as_ref()?
        .first()
        .cloned()
}

/// `spec` is the template's, with [`add_tolerations`].
pub(super) fn fit(spec: &PodSpec, node: &Node) -> Fit {
    let name = node.name_any();
    if spec.node_name.as_ref().is_some_and(|wanted| *wanted != name) || !selected(spec, node) {
        return Fit::No;
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let untolerated = |effect: &str| {
        node.spec
            .iter()
            .flat_map(|spec| spec.taints.iter().flatten())
            .filter(|taint| taint.effect == effect)
            .any(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
    };
    if untolerated("NoExecute") {
        Fit::No
    } else if untolerated("NoSchedule") {
        Fit::Stay
    } else {
        Fit::Run
    }
}

fn selected(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.labels();
    let simple = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    simple
        && required.is_none_or(|required| {
            let mut terms = required.node_selector_terms.iter();
            terms.any(|term| term_matches(term, node))
        })
}

fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let name = node.name_any();
    expressions
        .iter()
        .all(|one| matches(one, node.labels().get(&one.key).map(String::as_str)))
        && fields
            .iter()
            .all(|one| one.key == "metadata.name" && matches(one, Some(&name)))
}

fn matches(requirement: &NodeSelectorRequirement, have: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    selector::holds(&requirement.operator, have, values)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(spec: Value, node: Value) -> Fit {
        let mut spec: PodSpec = serde_json::from_value(spec).unwrap();
        add_tolerations(&mut spec);
        fit(&spec, &serde_json::from_value(node).unwrap())
    }

    #[test]
    fn selectors_and_taints() {
        let node = json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "size": "8"}}});
        let affinity = |operator: &str, values: Value| {
            json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}]}}}})
        };
        let cases = [
            (json!({"containers": []}), Fit::Run),
            (json!({"containers": [], "nodeName": "other"}), Fit::No),
            (json!({"containers": [], "nodeSelector": {"disk": "ssd"}}), Fit::Run),
            (json!({"containers": [], "nodeSelector": {"disk": "hdd"}}), Fit::No),
            (affinity("Gt", json!(["4"])), Fit::Run),
            (affinity("Lt", json!(["4"])), Fit::No),
            (affinity("In", json!(["7", "8"])), Fit::Run),
            (affinity("DoesNotExist", json!(null)), Fit::No),
        ];
        for (spec, expected) in cases {
            assert_eq!(check(spec.clone(), node.clone()), expected, "{spec}");
        }
        let tainted = |key: &str, effect: &str| json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": key, "effect": effect}]}});
        let plain = || json!({"containers": []});
        assert_eq!(check(plain(), tainted("mine", "NoSchedule")), Fit::Stay);
        assert_eq!(check(plain(), tainted("mine", "NoExecute")), Fit::No);
        assert_eq!(
            check(plain(), tainted("node.kubernetes.io/unschedulable", "NoSchedule")),
            Fit::Run
        );
        assert_eq!(
            check(plain(), tainted("node.kubernetes.io/not-ready", "NoExecute")),
            Fit::Run
        );
        let network = tainted("node.kubernetes.io/network-unavailable", "NoSchedule");
        assert_eq!(check(plain(), network.clone()), Fit::Stay);
        assert_eq!(check(json!({"containers": [], "hostNetwork": true}), network), Fit::Run);
    }
}
