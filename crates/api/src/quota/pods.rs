//! Pods in quotas: totals of what their containers ask for, scopes, and what they must state.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Scope;
use super::amounts::{self, Amounts, number};
use crate::meta;
use crate::time;

const COVERED: [&str; 11] = [
    "count/pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
/// A quota on one of these makes every container state it. Kept as it is for compatibility.
const STATED: [&str; 6] = [
    "cpu",
    "memory",
    "requests.cpu",
    "requests.memory",
    "limits.cpu",
    "limits.memory",
];
const HUGE_PAGES: &str = "hugepages-";
const DEVICE_CLASS: &str = "deviceclass.resource.kubernetes.io/";

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Resources that device plugins and drivers offer.
fn is_extended(name: &str) -> bool {
    name.starts_with(DEVICE_CLASS) || (!is_native(name) && !name.starts_with("requests."))
}

pub(super) fn covers(name: &str) -> bool {
    COVERED.contains(&name)
        || name.starts_with(HUGE_PAGES)
        || name
            .strip_prefix("requests.")
            .is_some_and(|inner| inner.starts_with(HUGE_PAGES) || inner.starts_with(DEVICE_CLASS) || !is_native(name))
}

fn list<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn is_sidecar(container: &Value) -> bool {
    container.get("restartPolicy").and_then(Value::as_str) == Some("Always")
}

/// Resources that may be stated for a Pod as a whole.
fn for_whole_pod(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with(HUGE_PAGES)
}

/// What a Pod asks for in all.
#[derive(Debug, Default)]
pub struct PodTotals {
    pub requests: Amounts,
    pub limits: Amounts,
}

/// Which figures count.
struct Rules<'a> {
    statuses: BTreeMap<&'a str, &'a Value>,
    /// A resize that the node cannot do: only what the containers have counts.
    infeasible: bool,
}

impl PodTotals {
    /// By the spec alone, without overhead.
    pub fn of_spec(pod: &Value) -> Self {
        Self::sum(
            pod,
            &Rules {
                statuses: BTreeMap::new(),
                infeasible: false,
            },
        )
    }

    /// The larger of what the containers ask for and what they have been given, and the overhead.
    pub fn effective(pod: &Value) -> Self {
        let statuses = list(pod, "/status/containerStatuses")
            .chain(list(pod, "/status/initContainerStatuses"))
            .filter(|status| status.get("resources").is_some_and(|resources| !resources.is_null()))
            .filter_map(|status| Some((status.get("name")?.as_str()?, status)))
            .collect();
        let infeasible = list(pod, "/status/conditions")
            .find(|condition| condition.get("type").and_then(Value::as_str) == Some("PodResizePending"))
            .is_some_and(|condition| condition.get("reason").and_then(Value::as_str) == Some("Infeasible"));
        let mut totals = Self::sum(pod, &Rules { statuses, infeasible });
        for (name, amount) in &amounts::read(pod.pointer("/spec/overhead")) {
            amounts::add(&mut totals.requests, name, amount);
            if totals.limits.get(name).is_some_and(|limit| !limit.is_zero()) {
                amounts::add(&mut totals.limits, name, amount);
            }
        }
        totals
    }

    fn sum(pod: &Value, rules: &Rules<'_>) -> Self {
        let mut totals = PodTotals {
            requests: sum(pod, |container, follow| rules.requests(container, follow)),
            limits: sum(pod, |container, follow| rules.limits(container, follow)),
        };
        for (sum, field) in [(&mut totals.requests, "requests"), (&mut totals.limits, "limits")] {
            let whole = amounts::read(pod.pointer(&format!("/spec/resources/{field}")));
            sum.extend(whole.into_iter().filter(|(name, _)| for_whole_pod(name)));
        }
        totals
    }
}

impl Rules<'_> {
    fn status<'a>(&'a self, container: &Value, follow: bool) -> Option<&'a Value> {
        let name = container.get("name")?.as_str()?;
        self.statuses.get(name).copied().filter(|_| follow)
    }

    fn requests(&self, container: &Value, follow: bool) -> Amounts {
        let spec = amounts::read(container.pointer("/resources/requests"));
        let Some(status) = self.status(container, follow) else {
            return spec;
        };
        let mut sum = if self.infeasible { Amounts::new() } else { spec };
        amounts::raise_all(&mut sum, &amounts::read(status.pointer("/resources/requests")));
        amounts::raise_all(&mut sum, &amounts::read(status.get("allocatedResources")));
        sum
    }

    fn limits(&self, container: &Value, follow: bool) -> Amounts {
        let spec = amounts::read(container.pointer("/resources/limits"));
        let Some(status) = self.status(container, follow) else {
            return spec;
        };
        let mut sum = if self.infeasible { Amounts::new() } else { spec };
        amounts::raise_all(&mut sum, &amounts::read(status.pointer("/resources/limits")));
        sum
    }
}

/// The most that the containers need at any time: all that run together, or one init container with the sidecars
/// started before it.
fn sum(pod: &Value, of: impl Fn(&Value, bool) -> Amounts) -> Amounts {
    let mut running = Amounts::new();
    for container in list(pod, "/spec/containers") {
        amounts::add_all(&mut running, &of(container, true));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in list(pod, "/spec/initContainers") {
        if is_sidecar(container) {
            let own = of(container, true);
            amounts::add_all(&mut running, &own);
            amounts::add_all(&mut sidecars, &own);
            amounts::raise_all(&mut peak, &sidecars);
        } else {
            let mut own = of(container, false);
            amounts::add_all(&mut own, &sidecars);
            amounts::raise_all(&mut peak, &own);
        }
    }
    amounts::raise_all(&mut running, &peak);
    running
}

/// Names under which requests and limits are charged.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), number(1))]);
    for (name, amount) in requests {
        let base = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with(HUGE_PAGES);
        if base {
            used.insert(name.clone(), amount.clone());
        }
        if base || is_extended(name) {
            used.insert(format!("requests.{name}"), amount.clone());
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), amount.clone());
        }
    }
    used
}

/// Finished Pods, and such as ought to be gone, use nothing but their place among the objects.
pub(super) fn usage(pod: &Value, now: jiff::Timestamp) -> Amounts {
    let mut used = Amounts::new();
    if !is_over(pod, now) {
        let totals = PodTotals::effective(pod);
        used = compute(&totals.requests, &totals.limits);
    }
    used.insert("count/pods".into(), number(1));
    used
}

fn is_over(pod: &Value, now: jiff::Timestamp) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    if matches!(phase, Some("Failed" | "Succeeded")) {
        return true;
    }
    let (Some(at), Some(grace)) = (
        meta::deletion_timestamp(pod).and_then(|at| time::parse(at).ok()),
        meta::deletion_grace_period_seconds(pod),
    ) else {
        return false;
    };
    at.checked_add(jiff::SignedDuration::from_secs(grace))
        .is_ok_and(|end| now > end)
}

pub(super) fn missing(names: &[&str], pod: &Value) -> Option<String> {
    let whole = ["/spec/resources/requests", "/spec/resources/limits"]
        .into_iter()
        .filter_map(|pointer| pod.pointer(pointer)?.as_object())
        .any(|map| map.keys().any(|name| for_whole_pod(name)));
    if whole {
        return None;
    }
    let required: Vec<&str> = STATED.into_iter().filter(|name| names.contains(name)).collect();
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in list(pod, "/spec/containers").chain(list(pod, "/spec/initContainers")) {
        let stated = compute(
            &amounts::read(container.pointer("/resources/requests")),
            &amounts::read(container.pointer("/resources/limits")),
        );
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        for required in required.iter().filter(|required| !stated.contains_key(**required)) {
            missing.entry(required).or_default().insert(name);
        }
    }
    if missing.is_empty() {
        return None;
    }
    let parts: Vec<String> = missing
        .into_iter()
        .map(|(resource, containers)| {
            let containers: Vec<&str> = containers.into_iter().collect();
            format!("{resource} for: {}", containers.join(","))
        })
        .collect();
    Some(format!("must specify {}", parts.join("; ")))
}

pub(super) fn matches(scope: &Scope, pod: &Value) -> bool {
    match scope.name.as_str() {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => {
            let class = pod
                .pointer("/spec/priorityClassName")
                .and_then(Value::as_str)
                .filter(|class| !class.is_empty());
            scope.fits(class.as_slice())
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

/// Whether a Pod is to end by itself.
pub fn is_terminating(pod: &Value) -> bool {
    pod.pointer("/spec/activeDeadlineSeconds")
        .and_then(Value::as_i64)
        .is_some_and(|deadline| deadline >= 0)
}

/// Whether a Pod asks for no processor time and no memory.
pub fn is_best_effort(pod: &Value) -> bool {
    if let Some(class) = pod
        .pointer("/status/qosClass")
        .and_then(Value::as_str)
        .filter(|class| !class.is_empty())
    {
        return class == "BestEffort";
    }
    let whole = pod.pointer("/spec/resources").into_iter();
    let containers = list(pod, "/spec/containers")
        .chain(list(pod, "/spec/initContainers"))
        .filter_map(|container| container.get("resources"));
    !whole.chain(containers).any(|resources| {
        ["requests", "limits"].iter().any(|field| {
            amounts::read(resources.get(field))
                .iter()
                .any(|(name, amount)| matches!(name.as_str(), "cpu" | "memory") && amount.sign() > 0)
        })
    })
}

fn crosses_namespaces(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let of = |rule: &str| format!("/spec/affinity/{kind}/{rule}DuringSchedulingIgnoredDuringExecution");
        let preferred = list(pod, &of("preferred")).filter_map(|weighted| weighted.get("podAffinityTerm"));
        list(pod, &of("required")).chain(preferred).any(|term| {
            let named = term.get("namespaces").and_then(Value::as_array);
            named.is_some_and(|named| !named.is_empty())
                || term
                    .get("namespaceSelector")
                    .is_some_and(|selector| !selector.is_null())
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Evaluator, scopes};
    use super::*;

    fn used(pod: &Value) -> Value {
        amounts::write(&usage(pod, jiff::Timestamp::UNIX_EPOCH))
    }

    #[test]
    fn what_a_pod_uses() {
        let asks = |cpu: &str| json!({"requests": {"cpu": cpu, "example.com/gpu": "1"}, "limits": {"memory": "1Gi"}});
        let spec = json!({
            "overhead": {"cpu": "50m"},
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "init", "resources": {"requests": {"cpu": "2"}}},
            ],
            "containers": [{"name": "a", "resources": asks("500m")}, {"name": "b", "resources": asks("1")}],
        });
        assert_eq!(
            used(&json!({"spec": spec})),
            json!({"count/pods": "1", "pods": "1", "cpu": "2150m", "requests.cpu": "2150m",
                "requests.example.com/gpu": "2", "limits.memory": "2Gi"})
        );
        assert_eq!(
            used(&json!({"spec": spec, "status": {"phase": "Succeeded"}})),
            json!({"count/pods": "1"})
        );
        let stuck = json!({"metadata": {"deletionTimestamp": "1969-12-31T23:00:00Z", "deletionGracePeriodSeconds": 30}, "spec": spec});
        assert_eq!(used(&stuck), json!({"count/pods": "1"}));
    }

    #[test]
    fn a_resize_counts_at_its_larger_end_until_it_is_found_infeasible() {
        let mut pod = json!({
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "2"}}}]},
            "status": {"containerStatuses": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]},
        });
        assert_eq!(used(&pod)["requests.cpu"], "2");
        pod["status"]["conditions"] = json!([{"type": "PodResizePending", "reason": "Infeasible"}]);
        assert_eq!(used(&pod)["requests.cpu"], "1");
        let whole = json!({"spec": {"resources": {"requests": {"cpu": "5"}}, "containers": [{"name": "a"}]}});
        assert_eq!(used(&whole)["requests.cpu"], "5");
    }

    #[test]
    fn what_must_be_stated() {
        let names = ["pods", "limits.cpu", "requests.memory"];
        let container = |name: &str, resources: Value| json!({"name": name, "resources": resources});
        let cases = [
            (
                json!([container(
                    "a",
                    json!({"limits": {"cpu": "1"}, "requests": {"memory": "1"}})
                )]),
                None,
            ),
            (
                json!([
                    container("b", json!({})),
                    container("a", json!({"limits": {"cpu": "1"}}))
                ]),
                Some("must specify limits.cpu for: b; requests.memory for: a,b"),
            ),
        ];
        for (containers, expected) in cases {
            let pod = json!({"spec": {"containers": containers}});
            assert_eq!(missing(&names, &pod).as_deref(), expected);
        }
    }

    #[test]
    fn scopes_of_pods() {
        let plain = json!({"spec": {"containers": []}});
        let limited = json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high"}});
        let busy = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["x"]}]}}}});
        let of = |spec: Value| scopes(&json!({"spec": spec}));
        let class = |operator: &str, values: &[&str]| {
            of(json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values}]}}))
        };
        for (scopes, expected) in [
            (of(json!({})), [true, true, true]),
            (of(json!({"scopes": ["Terminating"]})), [false, true, false]),
            (
                of(json!({"scopes": ["NotTerminating", "BestEffort"]})),
                [true, false, false],
            ),
            (of(json!({"scopes": ["NotBestEffort"]})), [false, false, true]),
            (
                of(json!({"scopes": ["CrossNamespacePodAffinity"]})),
                [false, false, true],
            ),
            (of(json!({"scopes": ["PriorityClass"]})), [false, true, false]),
            (class("In", &["high"]), [false, true, false]),
            (class("NotIn", &["high"]), [true, false, true]),
            (class("DoesNotExist", &[]), [true, false, true]),
        ] {
            let got = [&plain, &limited, &busy].map(|pod| Evaluator::Pods.in_scope(&scopes, pod));
            assert_eq!(got, expected, "{scopes:?}");
        }
    }

    #[test]
    fn names_about_pods() {
        for name in [
            "pods",
            "cpu",
            "limits.cpu",
            "requests.example.com/gpu",
            "hugepages-2Mi",
            "requests.hugepages-2Mi",
        ] {
            assert!(covers(name), "{name}");
        }
        for name in [
            "services",
            "requests.storage",
            "configmaps",
            "gold.storageclass.storage.k8s.io/requests.storage",
        ] {
            assert!(!covers(name), "{name}");
        }
    }
}
