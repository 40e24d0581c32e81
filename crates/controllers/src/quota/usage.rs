//! What objects use of a quota. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, ResourceQuotaSpec, ScopedResourceSelectorRequirement, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use sampan_api::quantity::{Format, Quantity};

use crate::pods;

/// Amounts by resource name.
pub(super) type Amounts = BTreeMap<String, Quantity>;

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

fn parse(text: &Text) -> Quantity {
    Quantity::parse(&text.0).unwrap_or_else(|_| Quantity::zero())
}

pub(super) fn add(sum: &mut Amounts, name: &str, amount: &Quantity) {
    let known = sum.entry(name.to_owned()).or_insert_with(Quantity::zero);
    *known = known.add(amount);
}

/// Whether a name of a quota is about Pods; only those are subject to scopes.
pub(super) fn is_about_pods(name: &str) -> bool {
    let compute = |name: &str| {
        matches!(name, "cpu" | "memory" | "ephemeral-storage")
            || name.starts_with("hugepages-")
            || (name.contains('/') && !name.contains(".storageclass.storage.k8s.io/"))
    };
    let inner = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits."));
    match inner {
        Some("storage") => false,
        Some(inner) => compute(inner),
        None => matches!(name, "pods" | "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-"),
    }
}

/// What a Pod uses. A finished one uses nothing but its place among the objects.
pub(super) fn of_pod(pod: &Pod) -> Amounts {
    let mut used = Amounts::new();
    add(&mut used, "count/pods", &one());
    if pods::is_terminal(pod) {
        return used;
    }
    add(&mut used, "pods", &one());
    let requests = total(pod, |container| {
        container.resources.as_ref().and_then(|r| r.requests.as_ref())
    });
    let limits = total(pod, |container| {
        container.resources.as_ref().and_then(|r| r.limits.as_ref())
    });
    for (name, amount) in &requests {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            add(&mut used, name, amount);
        }
        add(&mut used, &format!("requests.{name}"), amount);
    }
    for (name, amount) in &limits {
        add(&mut used, &format!("limits.{name}"), amount);
    }
    used
}

type Resources = BTreeMap<String, Text>;

/// The most that a Pod's containers need at any time: all that run together, or one init container with the sidecars
/// started before it; plus the overhead. What is said of the Pod as a whole counts instead.
fn total(pod: &Pod, of: fn(&Container) -> Option<&Resources>) -> Amounts {
    let Some(spec) = &pod.spec else {
        return Amounts::new();
    };
    let sum_of = |container: &Container| -> Amounts {
        let resources = of(container).into_iter().flatten();
        resources.map(|(name, text)| (name.clone(), parse(text))).collect()
    };
    let mut running = Amounts::new();
    for container in &spec.containers {
        for (name, amount) in sum_of(container) {
            add(&mut running, &name, &amount);
        }
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = sum_of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            for (name, amount) in own {
                add(&mut sidecars, &name, &amount);
                add(&mut running, &name, &amount);
            }
        } else {
            for (name, amount) in own {
                let before = sidecars.get(&name).cloned().unwrap_or_else(Quantity::zero);
                raise(&mut peak, &name, amount.add(&before));
            }
        }
    }
    for (name, amount) in peak {
        raise(&mut running, &name, amount);
    }
    if let Some(whole) = &spec.resources {
        let asks = Container {
            resources: Some(k8s_openapi::api::core::v1::ResourceRequirements {
                requests: whole.requests.clone(),
                limits: whole.limits.clone(),
                claims: None,
            }),
            ..Default::default()
        };
        running.extend(sum_of(&asks));
    }
    for (name, text) in spec.overhead.iter().flatten() {
        if running.contains_key(name) {
            add(&mut running, name, &parse(text));
        }
    }
    running
}

fn raise(amounts: &mut Amounts, name: &str, amount: Quantity) {
    match amounts.get_mut(name) {
        Some(known) if *known >= amount => {}
        Some(known) => *known = amount,
        None => {
            amounts.insert(name.to_owned(), amount);
        }
    }
}

pub(super) fn of_service(service: &Service) -> Amounts {
    let mut used = Amounts::new();
    add(&mut used, "services", &one());
    let spec = service.spec.as_ref();
    let kind = spec.and_then(|spec| spec.type_.as_deref()).unwrap_or_default();
    let ports = spec.and_then(|spec| spec.ports.as_ref()).map_or(0, Vec::len);
    let ports = Quantity::new(i64::try_from(ports).unwrap_or(i64::MAX), Format::DecimalSi);
    match kind {
        "NodePort" => add(&mut used, "services.nodeports", &ports),
        "LoadBalancer" => {
            add(&mut used, "services.loadbalancers", &one());
            let own = spec.and_then(|spec| spec.allocate_load_balancer_node_ports);
            if own != Some(false) {
                add(&mut used, "services.nodeports", &ports);
            }
        }
        _ => {}
    }
    used
}

pub(super) fn of_claim(claim: &PersistentVolumeClaim) -> Amounts {
    let mut used = Amounts::new();
    let spec = claim.spec.as_ref();
    let class = spec.and_then(|spec| spec.storage_class_name.as_deref());
    let asked = spec
        .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"))
        .map(parse);
    let prefixes = [
        Some(String::new()),
        class.map(|class| format!("{class}.storageclass.storage.k8s.io/")),
    ];
    for prefix in prefixes.into_iter().flatten() {
        add(&mut used, &format!("{prefix}persistentvolumeclaims"), &one());
        if let Some(asked) = &asked {
            add(&mut used, &format!("{prefix}requests.storage"), asked);
        }
    }
    used
}

/// Whether a quota's scopes include a Pod.
pub(super) fn in_scope(spec: &ResourceQuotaSpec, pod: &Pod) -> bool {
    let plain = spec.scopes.iter().flatten().all(|scope| has_scope(scope, pod));
    let selector = spec.scope_selector.as_ref();
    let mut selected = selector.into_iter().flat_map(|s| s.match_expressions.iter().flatten());
    plain && selected.all(|requirement| matches(requirement, pod))
}

fn has_scope(scope: &str, pod: &Pod) -> bool {
    let deadline = pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
    match scope {
        "Terminating" => deadline.is_some(),
        "NotTerminating" => deadline.is_none(),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => priority_class(pod).is_some(),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn matches(requirement: &ScopedResourceSelectorRequirement, pod: &Pod) -> bool {
    if requirement.scope_name != "PriorityClass" {
        return has_scope(&requirement.scope_name, pod);
    }
    let class = priority_class(pod);
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = class.is_some_and(|class| values.iter().any(|value| value == class));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => class.is_some(),
        "DoesNotExist" => class.is_none(),
        _ => false,
    }
}

fn priority_class(pod: &Pod) -> Option<&str> {
    let class = pod.spec.as_ref()?.priority_class_name.as_deref();
    class.filter(|class| !class.is_empty())
}

fn is_best_effort(pod: &Pod) -> bool {
    if let Some(class) = pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        return class == "BestEffort";
    }
    let asks = |of: fn(&Container) -> Option<&Resources>| {
        total(pod, of)
            .iter()
            .any(|(name, amount)| matches!(name.as_str(), "cpu" | "memory") && !amount.is_zero())
    };
    !asks(|c| c.resources.as_ref().and_then(|r| r.requests.as_ref()))
        && !asks(|c| c.resources.as_ref().and_then(|r| r.limits.as_ref()))
}

fn crosses_namespaces(pod: &Pod) -> bool {
    let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()) else {
        return false;
    };
    let (near, far) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
    let required = near
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .chain(far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()))
        .flatten();
    let preferred = near
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .chain(far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()))
        .flatten()
        .map(|weighted| &weighted.pod_affinity_term);
    required
        .chain(preferred)
        .any(|term| term.namespace_selector.is_some() || term.namespaces.as_ref().is_some_and(|list| !list.is_empty()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn shown(amounts: &Amounts) -> Value {
        amounts
            .iter()
            .map(|(name, amount)| (name.clone(), json!(amount.to_string())))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    #[test]
    fn what_a_pod_uses() {
        let asks = |cpu: &str| json!({"requests": {"cpu": cpu, "example.com/gpu": "1"}, "limits": {"memory": "1Gi"}});
        let used = of_pod(&pod(json!({
            "overhead": {"cpu": "50m"},
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "init", "resources": {"requests": {"cpu": "2"}}},
            ],
            "containers": [{"name": "a", "resources": asks("500m")}, {"name": "b", "resources": asks("1")}],
        })));
        assert_eq!(
            shown(&used),
            json!({
                "count/pods": "1", "pods": "1", "cpu": "2150m", "requests.cpu": "2150m",
                "requests.example.com/gpu": "2", "limits.memory": "2Gi",
            })
        );
        let mut done = pod(json!({"containers": []}));
        done.status.get_or_insert_default().phase = Some("Succeeded".into());
        assert_eq!(shown(&of_pod(&done)), json!({"count/pods": "1"}));
    }

    #[test]
    fn services_and_claims() {
        let service: Service =
            serde_json::from_value(json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}}))
                .unwrap();
        assert_eq!(
            shown(&of_service(&service)),
            json!({"services": "1", "services.loadbalancers": "1", "services.nodeports": "2"})
        );
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"spec": {
            "storageClassName": "fast", "resources": {"requests": {"storage": "3Gi"}}}}))
        .unwrap();
        assert_eq!(
            shown(&of_claim(&claim)),
            json!({
                "persistentvolumeclaims": "1", "requests.storage": "3Gi",
                "fast.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
                "fast.storageclass.storage.k8s.io/requests.storage": "3Gi",
            })
        );
    }

    #[test]
    fn scopes() {
        let plain = pod(json!({"containers": []}));
        let limited = pod(json!({"containers": [], "activeDeadlineSeconds": 5, "priorityClassName": "high"}));
        let busy = pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}));
        let scopes = |names: &[&str]| ResourceQuotaSpec {
            scopes: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            ..Default::default()
        };
        let cases = [
            (scopes(&[]), [true, true, true]),
            (scopes(&["Terminating"]), [false, true, false]),
            (scopes(&["NotTerminating", "BestEffort"]), [true, false, false]),
            (scopes(&["NotBestEffort"]), [false, false, true]),
            (
                serde_json::from_value(json!({"scopeSelector": {"matchExpressions": [
                    {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}))
                .unwrap(),
                [false, true, false],
            ),
        ];
        for (spec, expected) in cases {
            let got = [&plain, &limited, &busy].map(|pod| in_scope(&spec, pod));
            assert_eq!(got, expected, "{spec:?}");
        }
    }

    #[test]
    fn names_about_pods() {
        for name in [
            "pods",
            "cpu",
            "requests.memory",
            "limits.cpu",
            "requests.example.com/gpu",
            "hugepages-2Mi",
        ] {
            assert!(is_about_pods(name), "{name}");
        }
        for name in [
            "services",
            "requests.storage",
            "configmaps",
            "count/pods",
            "gold.storageclass.storage.k8s.io/requests.storage",
        ] {
            assert!(!is_about_pods(name), "{name}");
        }
    }
}
