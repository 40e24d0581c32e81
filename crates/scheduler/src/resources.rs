//! Resource accounts: what Pods ask for and what nodes have, as whole numbers.
//!
//! CPU counts in thousandths, memory and storage in bytes, everything else in units. The rules of how a Pod's
//! request follows from its containers (init containers run one after another, restartable ones stay) are upstream's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, ResourceRequirements};
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

/// A container's request with what scoring assumes of silent ones.
fn assumed_requests(requests: &Requests) -> Resources {
    let mut resources = Resources::from_list(requests);
    if !requests.contains_key("cpu") {
        resources.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if !requests.contains_key("memory") {
        resources.memory = DEFAULT_MEMORY;
    }
    resources
}

/// What a Pod asks of its node: (exactly, as scoring assumes).
pub fn pod_requests(pod: &Pod) -> (Resources, Resources) {
    let (no_spec, no_status) = Default::default();
    let spec = pod.spec.as_ref().unwrap_or(&no_spec);
    let resized = Resized::of(pod.status.as_ref().unwrap_or(&no_status));
    (
        sum_requests(spec, &resized, Resources::from_list),
        sum_requests(spec, &resized, assumed_requests),
    )
}

type Requests = BTreeMap<String, Quantity>;

/// What a Pod's status says of its resources, which counts while a resize is under way: what is asked, what was
/// granted and what is in force may then differ, and the largest is taken. A resize that cannot be is not counted.
struct Resized<'a> {
    status: &'a PodStatus,
    infeasible: bool,
}

impl<'a> Resized<'a> {
    fn of(status: &'a PodStatus) -> Self {
        let mut conditions = status.conditions.iter().flatten();
        let pending = conditions.find(|condition| condition.type_ == "PodResizePending");
        Resized {
            status,
            infeasible: pending.is_some_and(|pending| pending.reason.as_deref() == Some("Infeasible")),
        }
    }

    fn effective(
        &self,
        asked: &Requests,
        in_force: Option<&ResourceRequirements>,
        granted: Option<&Requests>,
    ) -> Option<Requests> {
        let in_force = in_force?.requests.as_ref();
        let asked = (!self.infeasible).then_some(asked);
        let mut largest = Requests::new();
        for (name, quantity) in asked.into_iter().chain(in_force).chain(granted).flatten() {
            let value = |quantity: &Quantity| sampan_api::quantity::Quantity::parse(&quantity.0).ok();
            let larger = match (largest.get(name).map(value), value(quantity)) {
                (Some(Some(known)), Some(new)) => new > known,
                (Some(_), None) => false,
                _ => true,
            };
            if larger {
                largest.insert(name.clone(), quantity.clone());
            }
        }
        Some(largest)
    }

    fn container(&self, container: &Container) -> Option<Requests> {
        let statuses = self.status.container_statuses.iter().flatten();
        let mut statuses = statuses.chain(self.status.init_container_statuses.iter().flatten());
        let status = statuses.find(|status| status.name == container.name)?;
        let none = Requests::new();
        let asked = container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref());
        self.effective(
            asked.unwrap_or(&none),
            status.resources.as_ref(),
            status.allocated_resources.as_ref(),
        )
    }

    fn pod(&self, asked: &Requests) -> Option<Requests> {
        self.effective(
            asked,
            self.status.resources.as_ref(),
            self.status.allocated_resources.as_ref(),
        )
    }
}

/// Whether a request for the Pod as a whole may name the resource.
fn for_whole_pods(name: &str) -> bool {
    name == "cpu" || name == "memory" || name.starts_with("hugepages-")
}

fn sum_requests(spec: &PodSpec, resized: &Resized<'_>, read: fn(&Requests) -> Resources) -> Resources {
    let none = Requests::new();
    let of = |container: &Container| {
        let asked = container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref());
        let restarts = container.restart_policy.as_deref() == Some("Always");
        let stays = restarts || spec.containers.iter().any(|other| std::ptr::eq(other, container));
        match resized.container(container).filter(|_| stays) {
            Some(effective) => read(&effective),
            None => read(asked.unwrap_or(&none)),
        }
    };
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
        let mut asked = requests.clone();
        asked.retain(|name, _| for_whole_pods(name));
        let effective = resized.pod(&asked);
        let whole = Resources::from_list(effective.as_ref().unwrap_or(&asked));
        if asked.contains_key("cpu") {
            running.milli_cpu = whole.milli_cpu;
        }
        if asked.contains_key("memory") {
            running.memory = whole.memory;
        }
        let others = whole.other.into_iter().filter(|(name, _)| asked.contains_key(name));
        running.other.extend(others);
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
        pod_requests(&serde_json::from_value(json!({"spec": spec})).unwrap())
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
    fn while_a_resize_is_under_way_the_largest_counts() {
        let list = |cpu: &str| json!({"cpu": cpu});
        let pod = |asked: &str, granted: &str, in_force: &str, reason: &str| {
            json!({
                "spec": {"containers": [{"name": "c", "resources": {"requests": list(asked)}}]},
                "status": {
                    "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}],
                    "containerStatuses": [{
                        "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                        "allocatedResources": list(granted), "resources": {"requests": list(in_force)},
                    }],
                },
            })
        };
        for (asked, granted, in_force, reason, expected) in [
            ("1", "1", "1", "", 1000),
            ("2", "1", "1", "Deferred", 2000),
            ("2", "1", "1", "Infeasible", 1000),
            ("1", "1", "2", "", 2000),
            ("500m", "2", "1", "", 2000),
        ] {
            let pod = serde_json::from_value(pod(asked, granted, in_force, reason)).unwrap();
            assert_eq!(
                pod_requests(&pod).0.milli_cpu,
                expected,
                "{asked} {granted} {in_force} {reason}"
            );
        }
    }

    #[test]
    fn only_some_resources_can_be_asked_for_the_pod_as_a_whole() {
        let (exact, _) = requests(json!({
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "example.com/gpu": "1"}}}],
            "resources": {"requests": {"cpu": "3", "hugepages-2Mi": "4Mi", "example.com/gpu": "9"}},
        }));
        assert_eq!((exact.milli_cpu, exact.other["example.com/gpu"]), (3000, 1));
        assert_eq!(exact.other["hugepages-2Mi"], 4 << 20);
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
