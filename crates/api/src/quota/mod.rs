//! What objects use of a ResourceQuota, on trees and without I/O: admission charges with it, the controller sums up with
//! it, so that both always agree.
//!
//! Every resource has an [`Evaluator`]: Pods, Services and claims are weighed, everything else is counted
//! (`count/deployments.apps`). Invariant: an evaluator only ever reports names it [covers](Evaluator::covers).
//!
//! Differs from upstream: a device class's extended resource names are not looked up, so a ResourceClaim is charged to
//! its device class alone.

pub mod amounts;
mod pods;

use serde_json::Value;

use crate::meta;
use crate::quantity::Quantity;
pub use amounts::Amounts;
use amounts::number;
pub use pods::{PodTotals, is_best_effort, is_terminating};

const BY_STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const BY_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// How many devices a request for all of them may get.
const ALL_DEVICES: i64 = 32;
/// Core resources that quotas also count by their bare name.
const ALIASED: [&str; 4] = ["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];

/// How the objects of one resource are measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evaluator {
    Pods,
    Services,
    Claims,
    ResourceClaims,
    /// Counted under these names.
    Count(Vec<String>),
}

/// One condition a quota makes on what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub name: String,
    pub operator: String,
    pub values: Vec<String>,
}

/// What a quota is about: its `scopes` and its `scopeSelector`.
pub fn scopes(quota: &Value) -> Vec<Scope> {
    let texts = |value: Option<&Value>| -> Vec<String> {
        value
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    let mut all: Vec<Scope> = texts(quota.pointer("/spec/scopes"))
        .into_iter()
        .map(|name| Scope {
            name,
            operator: "Exists".into(),
            values: Vec::new(),
        })
        .collect();
    let selected = quota
        .pointer("/spec/scopeSelector/matchExpressions")
        .and_then(Value::as_array);
    for expression in selected.into_iter().flatten() {
        let text = |field: &str| {
            expression
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        all.push(Scope {
            name: text("scopeName"),
            operator: text("operator"),
            values: texts(expression.get("values")),
        });
    }
    all
}

impl Scope {
    /// Whether one of the names an object goes by fits; `names` may be empty.
    fn fits(&self, names: &[&str]) -> bool {
        let listed = |name: &&str| self.values.iter().any(|value| value == name);
        match self.operator.as_str() {
            "Exists" => !names.is_empty(),
            "DoesNotExist" => names.is_empty(),
            "In" => names.iter().any(listed),
            "NotIn" => names.is_empty() || names.iter().any(|name| !listed(name)),
            _ => false,
        }
    }
}

impl Evaluator {
    /// The evaluator of a resource.
    pub fn of(group: &str, plural: &str) -> Self {
        match (group, plural) {
            ("", "pods") => Evaluator::Pods,
            ("", "services") => Evaluator::Services,
            ("", "persistentvolumeclaims") => Evaluator::Claims,
            ("resource.k8s.io", "resourceclaims") => Evaluator::ResourceClaims,
            ("", plural) if ALIASED.contains(&plural) => {
                Evaluator::Count(vec![format!("count/{plural}"), plural.to_owned()])
            }
            ("", plural) => Evaluator::Count(vec![format!("count/{plural}")]),
            (group, plural) => Evaluator::Count(vec![format!("count/{plural}.{group}")]),
        }
    }

    /// Whether a name in a quota is about this resource.
    pub fn covers(&self, name: &str) -> bool {
        match self {
            Evaluator::Pods => pods::covers(name),
            Evaluator::Services => matches!(
                name,
                "count/services" | "services" | "services.nodeports" | "services.loadbalancers"
            ),
            Evaluator::Claims => {
                let plain = match name.split_once(BY_STORAGE_CLASS) {
                    Some((_, rest)) => rest,
                    None if name == "count/persistentvolumeclaims" => return true,
                    None => name,
                };
                matches!(plain, "persistentvolumeclaims" | "requests.storage")
            }
            Evaluator::ResourceClaims => {
                name == "count/resourceclaims.resource.k8s.io" || name.ends_with(BY_DEVICE_CLASS)
            }
            Evaluator::Count(names) => names.iter().any(|known| known == name),
        }
    }

    /// Whether every scope holds for the object. Only Pods and claims have scopes; nothing else is in one.
    pub fn in_scope(&self, scopes: &[Scope], object: &Value) -> bool {
        scopes.iter().all(|scope| match self {
            Evaluator::Pods => pods::matches(scope, object),
            Evaluator::Claims => scope.name == "VolumeAttributesClass" && scope.fits(&attributes_classes(object)),
            _ => false,
        })
    }

    /// What an object uses.
    pub fn usage(&self, object: &Value, now: jiff::Timestamp) -> Amounts {
        match self {
            Evaluator::Pods => pods::usage(object, now),
            Evaluator::Services => of_service(object),
            Evaluator::Claims => of_claim(object),
            Evaluator::ResourceClaims => of_resource_claim(object),
            Evaluator::Count(names) => names.iter().map(|name| (name.clone(), number(1))).collect(),
        }
    }

    /// What an object must state and does not, where a quota is about `names`.
    pub fn missing(&self, names: &[&str], object: &Value) -> Option<String> {
        match self {
            Evaluator::Pods => pods::missing(names, object),
            _ => None,
        }
    }
}

fn of_service(service: &Value) -> Amounts {
    let spec = service.get("spec").unwrap_or(&Value::Null);
    let ports = || spec.get("ports").and_then(Value::as_array).into_iter().flatten();
    let all = ports().count();
    let with_node_port = || {
        ports()
            .filter(|port| port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0)
            .count()
    };
    let (balancers, node_ports) = match spec.get("type").and_then(Value::as_str) {
        Some("NodePort") => (0, all),
        Some("LoadBalancer") if spec.get("allocateLoadBalancerNodePorts") == Some(&Value::Bool(false)) => {
            (1, with_node_port())
        }
        Some("LoadBalancer") => (1, all),
        _ => (0, 0),
    };
    [
        ("count/services", 1),
        ("services", 1),
        ("services.loadbalancers", balancers),
        ("services.nodeports", i64::try_from(node_ports).unwrap_or(i64::MAX)),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_owned(), number(count)))
    .collect()
}

fn of_claim(claim: &Value) -> Amounts {
    let class = match meta::annotation(claim, "volume.beta.kubernetes.io/storage-class") {
        Some(class) => class,
        None => claim
            .pointer("/spec/storageClassName")
            .and_then(Value::as_str)
            .unwrap_or_default(),
    };
    let quantity = |pointer: &str| {
        let quantity = Quantity::from_value(claim.pointer(pointer)?).ok()?;
        // Bytes are whole.
        let whole = number(quantity.value());
        Some(if whole == quantity { quantity } else { whole })
    };
    let asked = quantity("/spec/resources/requests/storage").map(|asked| {
        match quantity("/status/allocatedResources/storage") {
            Some(allocated) if allocated > asked => allocated,
            _ => asked,
        }
    });
    let mut used = Amounts::from([("count/persistentvolumeclaims".to_owned(), number(1))]);
    let by_class = format!("{class}{BY_STORAGE_CLASS}");
    for prefix in ["", by_class.as_str()]
        .into_iter()
        .take(if class.is_empty() { 1 } else { 2 })
    {
        used.insert(format!("{prefix}persistentvolumeclaims"), number(1));
        if let Some(asked) = &asked {
            used.insert(format!("{prefix}requests.storage"), asked.clone());
        }
    }
    used
}

/// The VolumeAttributesClasses a claim has, wants, or is on the way to.
fn attributes_classes(claim: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = [
        "/spec/volumeAttributesClassName",
        "/status/currentVolumeAttributesClassName",
        "/status/modifyVolumeStatus/targetVolumeAttributesClassName",
    ]
    .into_iter()
    .filter_map(|pointer| claim.pointer(pointer)?.as_str())
    .filter(|name| !name.is_empty())
    .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether a change of a claim's status changes what it is charged for.
pub fn claim_status_matters(new: &Value, old: &Value) -> bool {
    let allocated = |claim: &Value| claim.pointer("/status/allocatedResources/storage").cloned();
    allocated(new) != allocated(old) || attributes_classes(new) != attributes_classes(old)
}

fn of_resource_claim(claim: &Value) -> Amounts {
    let mut used = Amounts::from([("count/resourceclaims.resource.k8s.io".to_owned(), number(1))]);
    let devices = |request: &Value| -> Option<(String, i64)> {
        let class = request.get("deviceClassName")?.as_str()?;
        let count = match request.get("allocationMode").and_then(Value::as_str) {
            Some("ExactCount") => request.get("count").and_then(Value::as_i64).unwrap_or(0),
            Some("All") => ALL_DEVICES,
            _ => 0,
        };
        Some((format!("{class}{BY_DEVICE_CLASS}"), count))
    };
    let requests = claim.pointer("/spec/devices/requests").and_then(Value::as_array);
    for request in requests.into_iter().flatten() {
        // Of alternatives the most that any asks of a class.
        let mut most = Amounts::new();
        let alternatives = request.get("firstAvailable").and_then(Value::as_array);
        for (name, count) in alternatives
            .into_iter()
            .flatten()
            .chain(request.get("exactly"))
            .filter_map(devices)
        {
            amounts::raise_all(&mut most, &Amounts::from([(name, number(count))]));
        }
        amounts::add_all(&mut used, &most);
    }
    used
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn used(evaluator: &Evaluator, object: &Value) -> Value {
        let usage = evaluator.usage(object, jiff::Timestamp::UNIX_EPOCH);
        assert!(usage.keys().all(|name| evaluator.covers(name)), "{usage:?}");
        amounts::write(&usage)
    }

    #[test]
    fn services() {
        let cases = [
            (json!({"type": "ClusterIP", "ports": [{"port": 1}]}), "0", "0"),
            (
                json!({"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]}),
                "0",
                "2",
            ),
            (json!({"type": "LoadBalancer", "ports": [{"port": 1}]}), "1", "1"),
            (
                json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
                    "ports": [{"port": 1}, {"port": 2, "nodePort": 30000}]}),
                "1",
                "1",
            ),
        ];
        for (spec, balancers, ports) in cases {
            assert_eq!(
                used(&Evaluator::Services, &json!({"spec": spec})),
                json!({"count/services": "1", "services": "1", "services.loadbalancers": balancers, "services.nodeports": ports}),
            );
        }
    }

    #[test]
    fn claims() {
        let claim = json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "3Gi"}}}});
        assert_eq!(
            used(&Evaluator::Claims, &claim),
            json!({"count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "3Gi",
                "fast.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
                "fast.storageclass.storage.k8s.io/requests.storage": "3Gi"})
        );
        let shrunk = json!({"spec": {"resources": {"requests": {"storage": "1500m"}}},
            "status": {"allocatedResources": {"storage": "5"}}});
        assert_eq!(
            used(&Evaluator::Claims, &shrunk),
            json!({"count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "5"})
        );
    }

    #[test]
    fn device_claims_count_the_worst_case() {
        let claim = json!({"spec": {"devices": {"requests": [
            {"exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
            {"exactly": {"deviceClassName": "nic", "allocationMode": "All"}},
            {"firstAvailable": [
                {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1},
                {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 3}]},
        ]}}});
        assert_eq!(
            used(&Evaluator::ResourceClaims, &claim),
            json!({"count/resourceclaims.resource.k8s.io": "1",
                "gpu.deviceclass.resource.k8s.io/devices": "5", "nic.deviceclass.resource.k8s.io/devices": "32"})
        );
    }

    #[test]
    fn everything_else_is_counted() {
        for (group, plural, expected) in [
            ("", "secrets", json!({"count/secrets": "1", "secrets": "1"})),
            ("", "endpoints", json!({"count/endpoints": "1"})),
            ("apps", "deployments", json!({"count/deployments.apps": "1"})),
            ("example.com", "foos", json!({"count/foos.example.com": "1"})),
        ] {
            assert_eq!(used(&Evaluator::of(group, plural), &json!({})), expected);
        }
    }

    #[test]
    fn scopes_of_claims() {
        let quota = |operator: &str, values: &[&str]| {
            scopes(&json!({"spec": {"scopeSelector": {"matchExpressions": [
                {"scopeName": "VolumeAttributesClass", "operator": operator, "values": values}]}}}))
        };
        let plain = json!({"spec": {}});
        let gold = json!({"spec": {"volumeAttributesClassName": "gold"}});
        let moving = json!({"spec": {"volumeAttributesClassName": "gold"},
            "status": {"currentVolumeAttributesClassName": "silver"}});
        for (scopes, expected) in [
            (quota("Exists", &[]), [false, true, true]),
            (quota("DoesNotExist", &[]), [true, false, false]),
            (quota("In", &["silver"]), [false, false, true]),
            (quota("NotIn", &["gold"]), [true, false, true]),
        ] {
            let got = [&plain, &gold, &moving].map(|claim| Evaluator::Claims.in_scope(&scopes, claim));
            assert_eq!(got, expected, "{scopes:?}");
            assert!(!Evaluator::Services.in_scope(&scopes, &plain));
        }
    }
}
