//! Quality of service: class, control-group names and numbers, and who is killed first when memory runs out.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sampan_runtime::{HugepageLimit, LinuxContainerResources};
use sampan_volumes::downward::{millis, units};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Class {
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Guaranteed => "Guaranteed",
            Class::Burstable => "Burstable",
            Class::BestEffort => "BestEffort",
        }
    }
}

type Amounts = BTreeMap<String, Quantity>;

fn requests(resources: Option<&ResourceRequirements>) -> Option<&Amounts> {
    resources?.requests.as_ref()
}

fn limits(resources: Option<&ResourceRequirements>) -> Option<&Amounts> {
    resources?.limits.as_ref()
}

fn positive(amounts: Option<&Amounts>, name: &str) -> Option<i64> {
    let value = amounts?.get(name)?;
    let value = if name == "cpu" { millis(value) } else { units(value) };
    value.filter(|value| *value > 0)
}

/// The class of a Pod: from its own resources where it has them, else from its containers'.
pub fn class(pod: &Pod) -> Class {
    let spec = super::spec(pod);
    let all: Vec<Option<&ResourceRequirements>> = match &spec.resources {
        Some(own) if own.requests.is_some() || own.limits.is_some() => vec![Some(own)],
        _ => super::containers(pod)
            .iter()
            .chain(super::init_containers(pod))
            .map(|container| container.resources.as_ref())
            .collect(),
    };
    let names = ["cpu", "memory"];
    let any = all.iter().any(|resources| {
        names
            .iter()
            .any(|name| positive(requests(*resources), name).is_some() || positive(limits(*resources), name).is_some())
    });
    if !any {
        return Class::BestEffort;
    }
    let guaranteed = all.iter().all(|resources| {
        names.iter().all(|name| {
            let limit = positive(limits(*resources), name);
            // A missing request takes the limit's value.
            let request = positive(requests(*resources), name).or(limit);
            limit.is_some() && request == limit
        })
    });
    if guaranteed {
        Class::Guaranteed
    } else {
        Class::Burstable
    }
}

/// The control group of a Pod below `root`, as upstream lays it out.
pub fn cgroup_parent(root: &str, pod: &Pod) -> String {
    let root = root.trim_end_matches('/');
    let uid = super::uid(pod);
    match class(pod) {
        Class::Guaranteed => format!("{root}/kubepods/pod{uid}"),
        Class::Burstable => format!("{root}/kubepods/burstable/pod{uid}"),
        Class::BestEffort => format!("{root}/kubepods/besteffort/pod{uid}"),
    }
}

const PERIOD: i64 = 100_000;

fn shares(milli: i64) -> u64 {
    u64::try_from(milli.saturating_mul(1024) / 1000)
        .unwrap_or(0)
        .clamp(2, 262_144)
}

fn quota(milli: i64) -> i64 {
    (milli.saturating_mul(PERIOD) / 1000).max(1000)
}

/// The order in which the kernel kills when memory is short.
fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i32 {
    if super::spec(pod).priority.unwrap_or(0) >= 2_000_000_000 {
        return -997;
    }
    match class(pod) {
        Class::Guaranteed => -997,
        Class::BestEffort => 1000,
        Class::Burstable => {
            let request = positive(requests(container.resources.as_ref()), "memory")
                .or_else(|| positive(limits(container.resources.as_ref()), "memory"))
                .unwrap_or(0);
            let share = i128::from(request) * 1000 / i128::from(memory_capacity.max(1));
            let score = 1000 - i64::try_from(share).unwrap_or(1000);
            // Never as safe as guaranteed Pods, never as exposed as those without any request.
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// Limits of one container.
pub fn container_resources(
    pod: &Pod,
    container: &Container,
    memory_capacity: i64,
    pids_limit: Option<i64>,
) -> LinuxContainerResources {
    let resources = container.resources.as_ref();
    let pod_limits = limits(super::spec(pod).resources.as_ref());
    let cpu_limit = positive(limits(resources), "cpu");
    let cpu_request = positive(requests(resources), "cpu").or(cpu_limit);
    // A container without a limit of its own lives under the Pod's.
    let memory = positive(limits(resources), "memory").or_else(|| positive(pod_limits, "memory"));
    LinuxContainerResources {
        cpu_shares: Some(cpu_request.map_or(2, shares)),
        cpu_period: Some(PERIOD),
        cpu_quota: cpu_limit.map(quota),
        memory_limit_in_bytes: memory,
        memory_swap_limit_in_bytes: memory,
        oom_score_adj: Some(oom_score_adj(pod, container, memory_capacity)),
        pids_limit,
        hugepage_limits: hugepages(limits(resources)),
        ..LinuxContainerResources::default()
    }
}

fn hugepages(limits: Option<&Amounts>) -> Vec<HugepageLimit> {
    limits
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| {
            let size = units(&Quantity(name.strip_prefix("hugepages-")?.to_owned()))?;
            Some(HugepageLimit {
                page_size: page_size_name(size),
                limit: u64::try_from(units(value)?).ok()?,
            })
        })
        .collect()
}

/// As the kernel names sizes in the control group: `2MB`, `1GB`.
fn page_size_name(bytes: i64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

/// What a Pod asks for in all: the larger of its running containers together and of its initialization, plus
/// overhead; or what the Pod itself says.
pub fn pod_requests(pod: &Pod, name: &str) -> i64 {
    let amount = |amounts: Option<&Amounts>| positive(amounts, name).unwrap_or(0);
    let spec = super::spec(pod);
    let overhead = amount(spec.overhead.as_ref());
    if let Some(own) =
        positive(requests(spec.resources.as_ref()), name).or_else(|| positive(limits(spec.resources.as_ref()), name))
    {
        return own.saturating_add(overhead);
    }
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        match amount(requests(resources)) {
            0 => amount(limits(resources)),
            request => request,
        }
    };
    let mut sidecars = 0i64;
    let mut peak = 0i64;
    for container in super::init_containers(pod) {
        let request = of(container);
        if super::is_sidecar(container) {
            sidecars = sidecars.saturating_add(request);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.saturating_add(request));
        }
    }
    let main: i64 = super::containers(pod).iter().map(of).fold(0, i64::saturating_add);
    peak.max(main.saturating_add(sidecars)).saturating_add(overhead)
}

/// The sum of limits; `None` as soon as one container has none.
fn pod_limit(pod: &Pod, name: &str) -> Option<i64> {
    let spec = super::spec(pod);
    let overhead = positive(spec.overhead.as_ref(), name).unwrap_or(0);
    if let Some(own) = positive(limits(spec.resources.as_ref()), name) {
        return Some(own.saturating_add(overhead));
    }
    let of = |container: &Container| positive(limits(container.resources.as_ref()), name);
    let mut sidecars = 0i64;
    let mut peak = 0i64;
    for container in super::init_containers(pod) {
        let limit = of(container)?;
        if super::is_sidecar(container) {
            sidecars = sidecars.saturating_add(limit);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.saturating_add(limit));
        }
    }
    let main = super::containers(pod)
        .iter()
        .map(of)
        .try_fold(0i64, |sum, limit| Some(sum.saturating_add(limit?)))?;
    Some(peak.max(main.saturating_add(sidecars)).saturating_add(overhead))
}

/// Limits of the Pod's own control group.
pub fn pod_resources(pod: &Pod) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_shares: Some(shares(pod_requests(pod, "cpu"))),
        cpu_period: Some(PERIOD),
        cpu_quota: pod_limit(pod, "cpu").map(quota),
        memory_limit_in_bytes: pod_limit(pod, "memory"),
        ..LinuxContainerResources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::pod;
    use super::*;
    use serde_json::json;

    #[test]
    fn classes_and_groups() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
        for (resources, class_name, group) in [
            (json!({}), "BestEffort", "/kubepods/besteffort/poduid-1"),
            (full, "Guaranteed", "/kubepods/poduid-1"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
                "Guaranteed",
                "/kubepods/poduid-1",
            ),
            (
                json!({"limits": {"cpu": "1"}}),
                "Burstable",
                "/kubepods/burstable/poduid-1",
            ),
            (
                json!({"requests": {"memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}}),
                "Burstable",
                "/kubepods/burstable/poduid-1",
            ),
            (
                json!({"requests": {"cpu": "0"}}),
                "BestEffort",
                "/kubepods/besteffort/poduid-1",
            ),
        ] {
            let pod = pod(json!({"containers": [{"name": "c", "resources": resources}]}));
            assert_eq!(class(&pod).as_str(), class_name, "{resources}");
            assert_eq!(cgroup_parent("", &pod), group);
        }
    }

    #[test]
    fn numbers() {
        let pod = pod(json!({"containers": [
            {"name": "c", "resources": {"requests": {"cpu": "250m", "memory": "1Gi"},
                "limits": {"cpu": "500m", "memory": "2Gi", "hugepages-2Mi": "4Mi"}}},
            {"name": "bare"}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}}},
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}}]}));
        let got = container_resources(&pod, &super::super::containers(&pod)[0], 4 << 30, Some(100));
        assert_eq!(got.cpu_shares, Some(256));
        assert_eq!((got.cpu_period, got.cpu_quota), (Some(100_000), Some(50_000)));
        assert_eq!(got.memory_limit_in_bytes, Some(2 << 30));
        assert_eq!(got.oom_score_adj, Some(750));
        assert_eq!(got.hugepage_limits[0].page_size, "2MB");
        let bare = container_resources(&pod, &super::super::containers(&pod)[1], 4 << 30, None);
        assert_eq!((bare.cpu_shares, bare.oom_score_adj), (Some(2), Some(999)));
        assert_eq!(pod_requests(&pod, "cpu"), 1000);
        assert_eq!(pod_requests(&pod, "memory"), 1 << 30);
        // One container is unlimited, so the Pod is.
        assert_eq!(pod_resources(&pod).memory_limit_in_bytes, None);
    }
}
