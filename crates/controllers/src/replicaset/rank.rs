//! Which Pods go first when there are too many: those whose loss costs least.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::pods;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` Pods of `candidates` to delete. `related` are all active Pods of the same workload (its other replica
/// sets included): among equals, those go first that share their node with most siblings.
pub(super) fn choose(
    mut candidates: Vec<Arc<Pod>>,
    related: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    if count < candidates.len() {
        let mut on_node: HashMap<&str, usize> = HashMap::new();
        for pod in related {
            *on_node.entry(pods::node_name(pod)).or_default() += 1;
        }
        candidates.sort_by(|a, b| {
            let siblings = |pod: &Pod| on_node.get(pods::node_name(pod)).copied().unwrap_or(0);
            order(a, b, siblings(a), siblings(b), now)
        });
        candidates.truncate(count);
    }
    candidates
}

/// `Less` means that `a` goes first.
fn order(a: &Pod, b: &Pod, siblings_a: usize, siblings_b: usize, now: Timestamp) -> Ordering {
    let unassigned = |pod: &Pod| !pods::node_name(pod).is_empty();
    let phase = |pod: &Pod| match pods::phase(pod) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    unassigned(a)
        .cmp(&unassigned(b))
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| siblings_b.cmp(&siblings_a))
        .then_with(|| {
            if pods::is_ready(a) && pods::is_ready(b) {
                younger_first(pods::ready_since(a), pods::ready_since(b), a, b, now)
            } else {
                Ordering::Equal
            }
        })
        .then_with(|| restarts(a).cmp(&restarts(b)))
        .then_with(|| {
            let created = |pod: &Pod| pod.creation_timestamp().map(|time| time.0);
            younger_first(created(a), created(b), a, b, now)
        })
}

/// Ages are compared by their order of magnitude only, so that scaling down does not always hit the newest Pods
/// (which often share a node or zone); within one magnitude the UID decides, which is as good as chance.
fn younger_first(a: Option<Timestamp>, b: Option<Timestamp>, pod_a: &Pod, pod_b: &Pod, now: Timestamp) -> Ordering {
    let (Some(time_a), Some(time_b)) = (a, b) else {
        // An unknown time counts as the youngest.
        return a.is_some().cmp(&b.is_some());
    };
    if time_a == time_b {
        return Ordering::Equal;
    }
    let magnitude = |time: Timestamp| {
        let age = now.duration_since(time).as_nanos();
        u128::try_from(age)
            .ok()
            .and_then(u128::checked_ilog2)
            .map_or(-1, i64::from)
    };
    magnitude(time_a)
        .cmp(&magnitude(time_b))
        .then_with(|| pod_a.metadata.uid.cmp(&pod_b.metadata.uid))
}

fn cost(pod: &Pod) -> i32 {
    pod.annotations()
        .get(DELETION_COST)
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

/// The most restarts of a container; containers before init containers. More restarts go first.
fn restarts(pod: &Pod) -> (Reverse<i32>, Reverse<i32>) {
    let most = |statuses: Option<&Vec<k8s_openapi::api::core::v1::ContainerStatus>>| {
        let counts = statuses.into_iter().flatten().map(|s| s.restart_count);
        Reverse(counts.max().unwrap_or(0))
    };
    let status = pod.status.as_ref();
    (
        most(status.and_then(|s| s.container_statuses.as_ref())),
        most(status.and_then(|s| s.init_container_statuses.as_ref())),
    )
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;
    use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn pod(name: &str, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(name.into());
        pod.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        pod.spec.get_or_insert_default().node_name = Some("n".into());
        pod.status.get_or_insert_default().phase = Some("Running".into());
        change(&mut pod);
        Arc::new(pod)
    }

    fn ready(pod: &mut Pod, hours_ago: i64, now: Timestamp) {
        let since = now.checked_sub(hours_ago.hours()).unwrap();
        pod.status.get_or_insert_default().conditions = Some(vec![PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(since)),
            ..Default::default()
        }]);
    }

    #[test]
    fn the_cheapest_go_first() {
        let now = Timestamp::from_second(1_000_000_000).unwrap();
        let mut expected = vec![
            pod("unassigned", |p| p.spec.as_mut().unwrap().node_name = None),
            pod("pending", |p| p.status.as_mut().unwrap().phase = Some("Pending".into())),
            pod("restarting", |p| {
                p.status.as_mut().unwrap().container_statuses = Some(vec![ContainerStatus {
                    restart_count: 9,
                    ..Default::default()
                }]);
            }),
            pod("not-ready", |_| {}),
            pod("cheap", |p| {
                p.annotations_mut().insert(DELETION_COST.into(), "-1".into());
                ready(p, 1, now);
            }),
            pod("doubled", |p| {
                ready(p, 1, now);
                p.spec.as_mut().unwrap().node_name = Some("busy".into());
            }),
            pod("young", |p| ready(p, 1, now)),
            pod("old-a", |p| ready(p, 50, now)),
            pod("old-b", |p| ready(p, 40, now)),
            pod("dear", |p| {
                p.annotations_mut().insert(DELETION_COST.into(), "5".into());
                ready(p, 1, now);
            }),
        ];
        let related: Vec<_> = (0..20)
            .map(|_| pod("x", |p| p.spec.as_mut().unwrap().node_name = Some("busy".into())))
            .chain(expected.iter().cloned())
            .collect();
        let names = |pods: &[Arc<Pod>]| -> Vec<String> { pods.iter().map(|pod| pod.name_any()).collect() };
        let wanted = names(&expected[..9]);
        expected.reverse();
        assert_eq!(names(&choose(expected, &related, 9, now)), wanted);
    }
}
