//! From figures to a number of replicas: pure functions over what the metrics APIs have said.
//!
//! The number wanted is the usage over the target, times the Pods that count. Pods that are not ready yet, or of which
//! nothing is known, are counted against the direction of the change: as idle when more are wanted, as fully used
//! when fewer are. What would turn the direction around, or is within the tolerance, changes nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use sampan_api::quantity::Quantity;

use crate::pods;

/// A figure of one Pod, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PodMetric {
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
    pub(super) value: i64,
}

/// By the Pods' names.
pub(super) type PodMetrics = HashMap<String, PodMetric>;

/// How far the usage may be from the target without consequence, as parts of the target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerances {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerances {
    fn hold(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What Pods' figures are held against.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Target {
    /// A percentage of what the Pods request, by name, in thousandths.
    Utilization {
        percent: i32,
        requests: HashMap<String, i64>,
    },
    /// An average, in thousandths.
    Average(i64),
}

/// Usage beside its target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usage {
    pub(super) ratio: f64,
    /// In percent, for [`Target::Utilization`].
    pub(super) utilization: Option<i32>,
    /// The average, in thousandths.
    pub(super) average: i64,
}

fn narrow(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// A ratio of two figures; by a target of nothing it is without bound.
fn over(value: f64, target: f64) -> f64 {
    value / target
}

/// Rounded up; what no number of replicas can be is the largest.
fn ceiling(value: f64) -> i32 {
    value.ceil() as i32
}

impl Target {
    fn usage(&self, metrics: &PodMetrics) -> Result<Usage, String> {
        match self {
            Target::Utilization { percent, requests } => {
                let (mut used, mut requested, mut count) = (0i128, 0i128, 0i128);
                for (pod, metric) in metrics {
                    if let Some(request) = requests.get(pod) {
                        used += i128::from(metric.value);
                        requested += i128::from(*request);
                        count += 1;
                    }
                }
                if requested == 0 {
                    return Err("no metrics returned matched known pods".into());
                }
                let utilization = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
                Ok(Usage {
                    ratio: over(utilization.into(), (*percent).into()),
                    utilization: Some(utilization),
                    average: narrow(used / count),
                })
            }
            Target::Average(target) => {
                let sum: i128 = metrics.values().map(|metric| i128::from(metric.value)).sum();
                let average = narrow(sum / (metrics.len().max(1) as i128));
                Ok(Usage {
                    ratio: over(average as f64, *target as f64),
                    utilization: None,
                    average,
                })
            }
        }
    }

    /// What a Pod of which nothing is known is taken to use when fewer are wanted.
    fn assumed(&self, pod: &str) -> i64 {
        match self {
            Target::Utilization { percent, requests } => {
                let request = requests.get(pod).copied().unwrap_or(0);
                narrow(i128::from(request) * i128::from((*percent).max(100)) / 100)
            }
            Target::Average(target) => *target,
        }
    }
}

/// When Pods count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readiness {
    pub(super) now: Timestamp,
    /// How long after its start a Pod's processor time may be that of its start.
    pub(super) cpu_initialization: SignedDuration,
    /// How long after its start a Pod may become unready and count as never having been ready.
    pub(super) initial_delay: SignedDuration,
}

#[derive(Debug, Default, PartialEq)]
struct Groups {
    ready: usize,
    unready: HashSet<String>,
    missing: HashSet<String>,
    ignored: HashSet<String>,
}

impl Readiness {
    fn group(&self, pods: &[Arc<Pod>], metrics: &PodMetrics, cpu: bool) -> Groups {
        let mut groups = Groups::default();
        for pod in pods {
            let name = pod.name_any();
            if pods::is_terminating(pod) || pods::phase(pod) == "Failed" {
                groups.ignored.insert(name);
            } else if pods::phase(pod) == "Pending" {
                groups.unready.insert(name);
            } else {
                match metrics.get(&name) {
                    None => {
                        groups.missing.insert(name);
                    }
                    Some(metric) if cpu && self.is_unready(pod, metric) => {
                        groups.unready.insert(name);
                    }
                    Some(_) => groups.ready += 1,
                }
            }
        }
        groups
    }

    fn is_unready(&self, pod: &Pod, metric: &PodMetric) -> bool {
        let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let (Some(ready), Some(started)) = (pods::condition(pod, "Ready"), started) else {
            return true;
        };
        let unready = ready.status == "False";
        let since = ready
            .last_transition_time
            .as_ref()
            .map_or(Timestamp::MIN, |time| time.0);
        let after = |time: Timestamp, span: SignedDuration| time.checked_add(span).unwrap_or(Timestamp::MAX);
        if after(started.0, self.cpu_initialization) > self.now {
            unready || metric.at < after(since, metric.window)
        } else {
            unready && after(started.0, self.initial_delay) > since
        }
    }
}

const NO_PODS: &str = "no pods returned by selector while calculating replica count";

/// The number of replicas for a figure that every Pod has. `target` is asked once it is known that any Pod counts.
pub(super) fn for_pods(
    current: i32,
    pods: &[Arc<Pod>],
    mut metrics: PodMetrics,
    cpu: bool,
    readiness: Readiness,
    tolerances: Tolerances,
    target: impl FnOnce() -> Result<Target, String>,
) -> Result<(i32, Usage), String> {
    if pods.is_empty() {
        return Err(NO_PODS.into());
    }
    let groups = readiness.group(pods, &metrics, cpu);
    metrics.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
    if metrics.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let target = target()?;
    let usage = target.usage(&metrics)?;
    let grows = usage.ratio > 1.0;
    let counts_unready = grows && !groups.unready.is_empty();
    if !counts_unready && groups.missing.is_empty() {
        let wanted = if tolerances.hold(usage.ratio) {
            current
        } else {
            ceiling(usage.ratio * groups.ready as f64)
        };
        return Ok((wanted, usage));
    }
    let mut assume = |pod: &String, value: i64| {
        let metric = PodMetric {
            at: readiness.now,
            window: SignedDuration::ZERO,
            value,
        };
        metrics.insert(pod.clone(), metric);
    };
    if usage.ratio < 1.0 {
        groups.missing.iter().for_each(|pod| assume(pod, target.assumed(pod)));
    } else if grows {
        groups.missing.iter().for_each(|pod| assume(pod, 0));
    }
    if counts_unready {
        groups.unready.iter().for_each(|pod| assume(pod, 0));
    }
    let ratio = target.usage(&metrics)?.ratio;
    let turned = (usage.ratio < 1.0 && ratio > 1.0) || (grows && ratio < 1.0);
    if tolerances.hold(ratio) || turned {
        return Ok((current, usage));
    }
    let wanted = ceiling(ratio * metrics.len() as f64);
    if (ratio < 1.0 && wanted > current) || (ratio > 1.0 && wanted < current) {
        return Ok((current, usage));
    }
    Ok((wanted, usage))
}

/// The number for one figure of something else. Without replicas there is nothing to hold it against but the target.
pub(super) fn for_value(
    current: i32,
    pods: &[Arc<Pod>],
    value: i64,
    target: i64,
    tolerances: Tolerances,
) -> Result<i32, String> {
    let ratio = over(value as f64, target as f64);
    if current == 0 {
        return Ok(ceiling(ratio));
    }
    if tolerances.hold(ratio) {
        return Ok(current);
    }
    if pods.is_empty() {
        return Err(format!("unable to calculate ready pods: {NO_PODS}"));
    }
    let ready = pods
        .iter()
        .filter(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod));
    Ok(ceiling(ratio * ready.count() as f64))
}

/// The number for a figure that is to be shared by the replicas, and the share of each now.
pub(super) fn for_share(replicas: i32, value: i64, target: i64, tolerances: Tolerances) -> (i32, i64) {
    let ratio = over(value as f64, target as f64 * f64::from(replicas));
    let wanted = if tolerances.hold(ratio) {
        replicas
    } else {
        ceiling(value as f64 / target as f64)
    };
    (wanted, over(value as f64, replicas.into()).ceil() as i64)
}

/// What Pods request of a resource, in thousandths: one container, or all that keep running.
pub(super) fn requests(pods: &[Arc<Pod>], container: &str, resource: &str) -> Result<HashMap<String, i64>, String> {
    pods.iter()
        .map(|pod| Ok((pod.name_any(), request(pod, container, resource)?)))
        .collect()
}

type Requests = BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

fn amount(requests: Option<&Requests>, resource: &str) -> Option<Quantity> {
    Quantity::parse(&requests?.get(resource)?.0).ok()
}

fn request(pod: &Pod, container: &str, resource: &str) -> Result<i64, String> {
    let name = pod.name_any();
    let Some(spec) = pod.spec.as_ref() else {
        return Err(format!("missing request for {resource} in Pod {name}"));
    };
    let stays = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let lasting = spec.init_containers.iter().flatten().filter(stays);
    let containers = spec.containers.iter().chain(lasting);
    let of = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|own| own.requests.as_ref());
        amount(requests, resource)
    };
    let whole = spec.resources.as_ref().and_then(|own| own.requests.as_ref());
    let supported = |name: &String| matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-");
    if container.is_empty() && whole.is_some_and(|requests| requests.keys().any(supported)) {
        let own = amount(whole, resource).or_else(|| containers.filter_map(of).reduce(|sum, one| sum.add(&one)));
        let own = own.ok_or_else(|| format!("missing pod-level request for {resource} in Pod {name}"))?;
        let overhead = amount(spec.overhead.as_ref(), resource);
        return Ok(overhead
            .map_or(own.clone(), |overhead| own.add(&overhead))
            .milli_value());
    }
    let mut sum = 0i64;
    for each in containers {
        if !container.is_empty() && container != each.name {
            continue;
        }
        let Some(request) = of(each) else {
            let of = &each.name;
            return Err(format!(
                "missing request for {resource} in container {of} of Pod {name}"
            ));
        };
        sum = sum.saturating_add(request.milli_value());
        if container == each.name {
            return Ok(sum);
        }
    }
    if container.is_empty() {
        Ok(sum)
    } else {
        Err(format!("container {container} not found in Pod {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TOLERANCES: Tolerances = Tolerances { down: 0.1, up: 0.1 };

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const NOW: i64 = 100_000;

    fn readiness() -> Readiness {
        Readiness {
            now: second(NOW),
            cpu_initialization: SignedDuration::from_secs(300),
            initial_delay: SignedDuration::from_secs(30),
        }
    }

    /// A Pod that was started and became ready (or unready) so long ago.
    fn pod(index: usize, phase: &str, started: i64, ready: &str, since: i64, request: &str) -> Arc<Pod> {
        let time = |ago: i64| second(NOW - ago).to_string();
        let pod = json!({
            "metadata": {"name": format!("p{index}")},
            "spec": {"containers": [
                {"name": "a", "resources": {"requests": {"cpu": request, "memory": "1Gi"}}}]},
            "status": {"phase": phase, "startTime": time(started),
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": time(since)}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn running(count: usize) -> Vec<Arc<Pod>> {
        (0..count)
            .map(|index| pod(index, "Running", 3600, "True", 3500, "1"))
            .collect()
    }

    fn metrics(values: &[i64]) -> PodMetrics {
        let each = values.iter().enumerate().filter(|(_, value)| **value >= 0);
        each.map(|(index, value)| {
            let metric = PodMetric {
                at: second(NOW - 5),
                window: SignedDuration::from_secs(30),
                value: *value,
            };
            (format!("p{index}"), metric)
        })
        .collect()
    }

    fn by_percent(current: i32, pods: &[Arc<Pod>], values: &[i64], percent: i32) -> Result<(i32, i32, i64), String> {
        let target = || {
            Ok(Target::Utilization {
                percent,
                requests: requests(pods, "", "cpu")?,
            })
        };
        let (wanted, usage) = for_pods(current, pods, metrics(values), true, readiness(), TOLERANCES, target)?;
        Ok((wanted, usage.utilization.unwrap(), usage.average))
    }

    #[test]
    fn utilization_of_requests() {
        // Replicas, values, the target; what is wanted.
        type Case<'a> = (&'a [i64], i32, (i32, i32, i64));
        let cases: [Case<'_>; 9] = [
            (&[300, 500, 700], 30, (5, 50, 500)),
            (&[100, 300, 500, 250, 250], 100, (2, 28, 280)),
            // Within a tenth of the target.
            (&[1010, 1030, 1020], 100, (3, 102, 1020)),
            (&[910, 930, 920], 100, (3, 92, 920)),
            // Not known of all: idle when more are wanted, at the request when fewer are.
            (&[1000, -1, -1], 30, (3, 100, 1000)),
            (&[700, -1], 50, (2, 70, 700)),
            (&[100, 100, -1], 100, (2, 10, 100)),
            (&[400, 400, -1, -1, -1], 50, (5, 40, 400)),
            // With a target above what is requested, that much.
            (&[1000, 1000, -1], 150, (3, 100, 1000)),
        ];
        for (values, percent, expected) in cases {
            let pods = running(values.len());
            let found = by_percent(values.len() as i32, &pods, values, percent);
            assert_eq!(found, Ok(expected), "{values:?} of {percent}");
        }
    }

    #[test]
    fn pods_that_do_not_count_yet() {
        let cold = |index| pod(index, "Running", 60, "False", 60, "1");
        let fresh = |index| pod(index, "Running", 60, "True", 20, "1");
        let warm = |index| pod(index, "Running", 60, "True", 50, "1");
        let lost = |index| pod(index, "Running", 3600, "False", 100, "1");
        let never = |index| pod(index, "Running", 3600, "False", 3590, "1");
        let waits = |index| pod(index, "Pending", 3600, "False", 3590, "1");
        let failed = |index| pod(index, "Failed", 3600, "True", 3500, "1");
        type Make<'a> = &'a dyn Fn(usize) -> Arc<Pod>;
        let old: Make<'_> = &|index| pod(index, "Running", 3600, "True", 3500, "1");
        type Case<'a> = (&'a str, Vec<Make<'a>>, &'a [i64], i32, i32);
        let cases: [Case<'_>; 8] = [
            (
                "unready ones are idle",
                vec![old, &cold, &cold],
                &[900, 1000, 1000],
                30,
                3,
            ),
            ("too fresh for a whole window", vec![old, &fresh], &[900, 1000], 30, 3),
            ("warm enough", vec![old, &warm], &[900, 900], 30, 6),
            ("was ready once", vec![old, &lost], &[900, 900], 30, 6),
            ("was never ready", vec![old, &never], &[900, 900], 30, 3),
            ("pending", vec![old, &waits], &[900, -1], 30, 3),
            ("failed ones are not there", vec![old, &failed], &[600, 6000], 30, 2),
            (
                "fewer are wanted: unready ones do not matter",
                vec![old, old, &cold],
                &[100, 100, 1000],
                30,
                1,
            ),
        ];
        for (what, made, values, percent, expected) in cases {
            let pods: Vec<_> = made.iter().enumerate().map(|(index, make)| make(index)).collect();
            let (wanted, ..) = by_percent(pods.len() as i32, &pods, values, percent).expect(what);
            assert_eq!(wanted, expected, "{what}");
        }
        let all_cold = [cold(0), cold(1)];
        let error = by_percent(2, &all_cold, &[100, 100], 30).unwrap_err();
        assert_eq!(
            error,
            "did not receive metrics for targeted pods (pods might be unready)"
        );
        assert_eq!(by_percent(2, &[], &[100], 30).unwrap_err(), NO_PODS);
    }

    #[test]
    fn averages_values_and_shares() {
        let average = |values: &[i64], target: i64| {
            let pods = running(values.len());
            let target = || Ok(Target::Average(target));
            let found = for_pods(
                pods.len() as i32,
                &pods,
                metrics(values),
                false,
                readiness(),
                TOLERANCES,
                target,
            );
            found.map(|(wanted, usage)| (wanted, usage.average))
        };
        assert_eq!(average(&[20_000, 10_000, 30_000], 15_000), Ok((4, 20_000)));
        assert_eq!(average(&[12_000; 5], 20_000), Ok((3, 12_000)));
        assert_eq!(
            average(&[12_000, -1], 20_000),
            Ok((2, 12_000)),
            "the missing one is at the target"
        );
        assert_eq!(average(&[60_000, -1], 20_000), Ok((3, 60_000)));

        let pods = running(3);
        let value = |current, value, target| for_value(current, &pods, value, target, TOLERANCES);
        assert_eq!(value(3, 20_000, 15_000), Ok(4));
        assert_eq!(value(3, 15_500, 15_000), Ok(3));
        assert_eq!(value(0, 31_000, 15_000), Ok(3));
        assert_eq!(value(3, i64::MAX, 1), Ok(i32::MAX));
        assert!(
            for_value(3, &[], 20_000, 15_000, TOLERANCES)
                .unwrap_err()
                .contains("ready pods")
        );
        assert_eq!(for_share(3, 8_600, 2_867, TOLERANCES), (3, 2_867));
        assert_eq!(for_share(3, 8_600, 2_000, TOLERANCES), (5, 2_867));
        assert_eq!(for_share(3, i64::MAX, 1, TOLERANCES).0, i32::MAX);

        let uneven = Tolerances { down: 0.0, up: 0.5 };
        assert_eq!(for_value(3, &pods, 20_000, 15_000, uneven), Ok(3));
        assert_eq!(for_value(3, &pods, 14_999, 15_000, uneven), Ok(3));
        assert_eq!(for_value(3, &pods, 9_999, 15_000, uneven), Ok(2));
    }

    #[test]
    fn what_pods_request() {
        let of = |spec: serde_json::Value, container: &str| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            request(&pod, container, "cpu")
        };
        let cpu = |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
        let mut side = cpu("side", "200m");
        side["restartPolicy"] = "Always".into();
        let containers = json!([cpu("a", "1"), cpu("b", "500m")]);
        let plain = json!({"containers": containers, "initContainers": [cpu("init", "9"), side]});
        assert_eq!(of(plain.clone(), ""), Ok(1700));
        assert_eq!(of(plain.clone(), "b"), Ok(500));
        assert_eq!(of(plain.clone(), "side"), Ok(200));
        assert_eq!(of(plain, "c").unwrap_err(), "container c not found in Pod p");
        let lacks = json!({"containers": [cpu("a", "1"), {"name": "b"}]});
        let missing = "missing request for cpu in container b of Pod p";
        assert_eq!(of(lacks.clone(), "").unwrap_err(), missing);
        assert_eq!(of(lacks.clone(), "a"), Ok(1000));
        let mut whole = lacks;
        whole["resources"] = json!({"requests": {"cpu": "3"}});
        whole["overhead"] = json!({"cpu": "100m"});
        assert_eq!(of(whole.clone(), ""), Ok(3100));
        assert_eq!(of(whole, "b").unwrap_err(), missing);
    }
}
