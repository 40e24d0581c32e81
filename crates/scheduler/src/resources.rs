//! Resource accounts: what Pods ask for and what nodes have, as whole numbers.
//!
//! CPU counts in thousandths, memory and storage in bytes, everything else in units. The rules of how a Pod's
//! request follows from its containers (init containers run one after another, restartable ones stay) are upstream's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// An amount of every resource. Absent means none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Extended resources, huge pages and the like.
    pub other: BTreeMap<String, i64>,
}

/// What scoring assumes of a container that asks for no CPU, in thousandths.
const DEFAULT_MILLI_CPU: i64 = 100;
/// What scoring assumes of a container that asks for no memory.
const DEFAULT_MEMORY: i64 = 200 << 20;

impl Resources {
    /// Reads a resource list. An amount that does not parse counts as none: the API server lets no such thing in.
    pub fn from_list(list: &BTreeMap<String, Quantity>) -> Self {
        let mut resources = Resources::default();
        for (name, quantity) in list {
            let Ok(quantity) = sampan_api::quantity::Quantity::parse(&quantity.0) else {
                continue;
            };
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity.milli_value(),
                "memory" => resources.memory = quantity.value(),
                "ephemeral-storage" => resources.ephemeral_storage = quantity.value(),
                // Slots are counted per Pod, not asked for.
                "pods" => {}
                _ => {
                    resources.other.insert(name.clone(), quantity.value());
                }
            }
        }
        resources
    }

    pub fn add(&mut self, more: &Resources) {
        self.combine(more, i64::saturating_add);
    }

    pub fn subtract(&mut self, less: &Resources) {
        self.combine(less, i64::saturating_sub);
    }

    /// The larger of both, resource by resource.
    pub fn raise(&mut self, floor: &Resources) {
        self.combine(floor, i64::max);
    }

    fn combine(&mut self, with: &Resources, how: fn(i64, i64) -> i64) {
        self.milli_cpu = how(self.milli_cpu, with.milli_cpu);
        self.memory = how(self.memory, with.memory);
        self.ephemeral_storage = how(self.ephemeral_storage, with.ephemeral_storage);
        for (name, amount) in &with.other {
            let mine = self.other.entry(name.clone()).or_default();
            *mine = how(*mine, *amount);
        }
    }

    /// What of `asked` does not fit into `self` less `used`, as upstream words it; empty when all fits.
    pub fn lacks(&self, used: &Resources, asked: &Resources) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut check = |name: &str, asked: i64, used: i64, have: i64| {
            if asked > 0 && asked > have.saturating_sub(used) {
                reasons.push(format!("Insufficient {name}"));
            }
        };
        check("cpu", asked.milli_cpu, used.milli_cpu, self.milli_cpu);
        check("memory", asked.memory, used.memory, self.memory);
        check(
            "ephemeral-storage",
            asked.ephemeral_storage,
            used.ephemeral_storage,
            self.ephemeral_storage,
        );
        for (name, amount) in &asked.other {
            let of = |side: &Resources| side.other.get(name).copied().unwrap_or(0);
            check(name, *amount, of(used), of(self));
        }
        reasons
    }
}

fn container_requests(container: &Container) -> Resources {
    container
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref())
        .map(Resources::from_list)
        .unwrap_or_default()
}

/// Like [`container_requests`], with what scoring assumes of silent containers.
fn container_requests_assumed(container: &Container) -> Resources {
    let mut resources = container_requests(container);
    let asks = |name: &str| {
        container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref())
            .is_some_and(|requests| requests.contains_key(name))
    };
    if !asks("cpu") {
        resources.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if !asks("memory") {
        resources.memory = DEFAULT_MEMORY;
    }
    resources
}

/// What a Pod asks of its node: (exactly, as scoring assumes).
pub fn pod_requests(spec: &PodSpec) -> (Resources, Resources) {
    (
        sum_requests(spec, container_requests),
        sum_requests(spec, container_requests_assumed),
    )
}

fn sum_requests(spec: &PodSpec, of: fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let request = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&request);
            starting.raise(&sidecars);
        } else {
            let mut together = sidecars.clone();
            together.add(&request);
            starting.raise(&together);
        }
    }
    running.add(&sidecars);
    running.raise(&starting);
    // A request for the Pod as a whole replaces the sum for the resources it names.
    if let Some(requests) = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref())
    {
        let whole = Resources::from_list(requests);
        if requests.contains_key("cpu") {
            running.milli_cpu = whole.milli_cpu;
        }
        if requests.contains_key("memory") {
            running.memory = whole.memory;
        }
        running.other.extend(whole.other);
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::from_list(overhead));
    }
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn requests(spec: serde_json::Value) -> (Resources, Resources) {
        pod_requests(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_pods_request_is_the_larger_of_running_and_starting() {
        let ask = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "1Gi"}});
        let (exact, _) = requests(json!({
            "containers": [{"name": "a", "resources": ask("200m")}, {"name": "b", "resources": ask("300m")}],
            "initContainers": [
                {"name": "early", "resources": ask("400m")},
                {"name": "side", "restartPolicy": "Always", "resources": ask("100m")},
                {"name": "late", "resources": ask("900m")},
            ],
            "overhead": {"cpu": "10m"},
        }));
        assert_eq!(exact.milli_cpu, 1010, "late + side while starting");
        assert_eq!(exact.memory, 3 << 30, "a + b + side while running");
    }

    #[test]
    fn silent_containers_count_for_scoring_only() {
        let (exact, assumed) = requests(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        assert_eq!(exact, Resources::default());
        assert_eq!((assumed.milli_cpu, assumed.memory), (200, 400 << 20));
    }

    #[test]
    fn what_is_missing_is_named() {
        let have = Resources {
            milli_cpu: 1000,
            memory: 100,
            ..Default::default()
        };
        let used = Resources {
            milli_cpu: 900,
            ..Default::default()
        };
        let asked = Resources {
            milli_cpu: 200,
            memory: 100,
            other: [("example.com/gpu".to_owned(), 1)].into(),
            ..Default::default()
        };
        assert_eq!(
            have.lacks(&used, &asked),
            ["Insufficient cpu", "Insufficient example.com/gpu"]
        );
        assert!(have.lacks(&used, &Resources::default()).is_empty());
    }
}
