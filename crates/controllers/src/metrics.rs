//! What the controllers count, under upstream's names.
//!
//! A figure is a row ([`Family`]); who counts names the row and says what its labels are. A short lock and a look-up each, at
//! most a few for a sync. Rows that nothing was counted in are not told. What says how something is (gauges) goes when the
//! controllers stop, since somebody else may go on with it.
//!
//! Different from upstream: there is no round over all nodes, so no time of one; `node_collector_*` call zones
//! `REGION:ZONE`; a Pod's deletion has buckets of powers of two.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sampan_client::metrics::{Exposition, Histogram};

/// What kind of figure a row is. A histogram: its first bound, the factor between bounds, how many there are.
#[derive(Debug)]
enum Kind {
    Counter,
    Gauge,
    Histogram(f64, f64, i32),
}

#[derive(Debug)]
pub(crate) struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    labels: &'static [&'static str],
}

const fn family(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Family {
    Family {
        name,
        kind,
        help,
        labels,
    }
}

const ZONE: &[&str] = &["zone"];
pub(crate) static ZONE_HEALTH: Family = family(
    "node_collector_zone_health",
    Kind::Gauge,
    ZONE,
    "How many of a hundred nodes of a zone are well.",
);
pub(crate) static ZONE_SIZE: Family = family("node_collector_zone_size", Kind::Gauge, ZONE, "Nodes of a zone.");
pub(crate) static ZONE_UNHEALTHY: Family = family(
    "node_collector_unhealthy_nodes_in_zone",
    Kind::Gauge,
    ZONE,
    "Nodes of a zone that are not well.",
);
pub(crate) static EVICTIONS: Family = family(
    "node_collector_evictions_total",
    Kind::Counter,
    ZONE,
    "Nodes whose Pods were begun to be driven away.",
);
pub(crate) static NODE_HEALTH: Family = family(
    "node_collector_update_node_health_duration_seconds",
    Kind::Histogram(0.001, 4.0, 8),
    &[],
    "How long a look at one node took.",
);
pub(crate) static TAINT_DELETIONS: Family = family(
    "taint_eviction_controller_pod_deletions_total",
    Kind::Counter,
    &[],
    "Pods deleted because of taints.",
);
pub(crate) static TAINT_LATENCY: Family = family(
    "taint_eviction_controller_pod_deletion_duration_seconds",
    Kind::Histogram(0.005, 2.0, 16),
    &[],
    "From when a Pod was to go because of taints until it was deleted.",
);
const GC: &[&str] = &["namespace", "reason"];
pub(crate) static FORCED_DELETIONS: Family = family(
    "pod_gc_collector_force_delete_pods_total",
    Kind::Counter,
    GC,
    "Pods deleted without waiting for anybody.",
);
pub(crate) static FORCED_ERRORS: Family = family(
    "pod_gc_collector_force_delete_pod_errors_total",
    Kind::Counter,
    GC,
    "Pods that could not be deleted so.",
);

const LOOK: &[&str] = &["action", "error"];
const METRIC: &[&str] = &["action", "error", "metric_type"];
pub(crate) static RECONCILIATIONS: Family = family(
    "horizontal_pod_autoscaler_controller_reconciliations_total",
    Kind::Counter,
    LOOK,
    "Looks at autoscalers, by what was done and what went wrong.",
);
pub(crate) static RECONCILIATION_TIME: Family = family(
    "horizontal_pod_autoscaler_controller_reconciliation_duration_seconds",
    Kind::Histogram(0.001, 2.0, 15),
    LOOK,
    "How long a look at an autoscaler took.",
);
pub(crate) static COMPUTATIONS: Family = family(
    "horizontal_pod_autoscaler_controller_metric_computation_total",
    Kind::Counter,
    METRIC,
    "Metrics asked for replicas, by what they asked for and what went wrong.",
);
pub(crate) static COMPUTATION_TIME: Family = family(
    "horizontal_pod_autoscaler_controller_metric_computation_duration_seconds",
    Kind::Histogram(0.001, 2.0, 15),
    METRIC,
    "How long asking one metric took.",
);
pub(crate) static AUTOSCALERS: Family = family(
    "horizontal_pod_autoscaler_controller_num_horizontal_pod_autoscalers",
    Kind::Gauge,
    &[],
    "Autoscalers that are looked at.",
);
pub(crate) static DESIRED_REPLICAS: Family = family(
    "horizontal_pod_autoscaler_controller_desired_replicas",
    Kind::Gauge,
    &["namespace", "hpa_name"],
    "Replicas an autoscaler wants.",
);

const SYNC: &[&str] = &["completion_mode", "result", "action"];
pub(crate) static JOB_SYNC_TIME: Family = family(
    "job_controller_job_sync_duration_seconds",
    Kind::Histogram(0.004, 2.0, 15),
    SYNC,
    "How long a sync of a Job took.",
);
pub(crate) static JOB_SYNCS: Family = family("job_controller_job_syncs_total", Kind::Counter, SYNC, "Syncs of Jobs.");
pub(crate) static JOBS_FINISHED: Family = family(
    "job_controller_jobs_finished_total",
    Kind::Counter,
    &["completion_mode", "result", "reason"],
    "Jobs that have ended.",
);
pub(crate) static JOBS_FOREIGN: Family = family(
    "job_controller_jobs_by_external_controller_total",
    Kind::Counter,
    &["controller_name"],
    "Jobs that somebody else manages.",
);
pub(crate) static JOB_PODS_FINISHED: Family = family(
    "job_controller_job_pods_finished_total",
    Kind::Counter,
    &["completion_mode", "result"],
    "Finished Pods that are in their Job's counters.",
);
pub(crate) static JOB_INDEXES_FINISHED: Family = family(
    "job_controller_job_finished_indexes_total",
    Kind::Counter,
    &["status", "backoffLimit"],
    "Indexes of Jobs that have ended.",
);
pub(crate) static JOB_PODS_CREATED: Family = family(
    "job_controller_job_pods_creation_total",
    Kind::Counter,
    &["reason", "status"],
    "Pods made for Jobs, or tried to be made.",
);
pub(crate) static JOB_PODS_TRACKED: Family = family(
    "job_controller_terminated_pods_tracking_finalizer_total",
    Kind::Counter,
    &["event"],
    "Ended Pods that have the tracking finalizer (add), or have it no longer (delete).",
);
pub(crate) static JOB_SKEW: Family = family(
    "cronjob_controller_job_creation_skew_duration_seconds",
    Kind::Histogram(1.0, 2.0, 10),
    &[],
    "From when a CronJob was due until its Job was made.",
);
pub(crate) static JOB_EXPIRY: Family = family(
    "ttl_after_finished_controller_job_deletion_duration_seconds",
    Kind::Histogram(0.1, 2.0, 14),
    &[],
    "From when a finished Job was to go until it was deleted.",
);

pub(crate) static SLICE_SYNCS: Family = family(
    "endpoint_slice_controller_syncs",
    Kind::Counter,
    &["result"],
    "Syncs of Services.",
);
pub(crate) static SLICE_CHANGES: Family = family(
    "endpoint_slice_controller_changes",
    Kind::Counter,
    &["operation"],
    "EndpointSlices made, changed and deleted.",
);
pub(crate) static SLICES_CHANGED: Family = family(
    "endpoint_slice_controller_endpointslices_changed_per_sync",
    Kind::Histogram(1.0, 2.0, 8),
    &["topology", "traffic_distribution"],
    "EndpointSlices written in a sync.",
);
pub(crate) static ENDPOINTS_ADDED: Family = family(
    "endpoint_slice_controller_endpoints_added_per_sync",
    Kind::Histogram(2.0, 2.0, 15),
    &[],
    "Endpoints that a sync added.",
);
pub(crate) static ENDPOINTS_REMOVED: Family = family(
    "endpoint_slice_controller_endpoints_removed_per_sync",
    Kind::Histogram(2.0, 2.0, 15),
    &[],
    "Endpoints that a sync removed.",
);
pub(crate) static ENDPOINTS_DESIRED: Family = family(
    "endpoint_slice_controller_endpoints_desired",
    Kind::Gauge,
    &[],
    "Endpoints that there ought to be.",
);
pub(crate) static SLICES_DESIRED: Family = family(
    "endpoint_slice_controller_desired_endpoint_slices",
    Kind::Gauge,
    &[],
    "EndpointSlices that would do.",
);
pub(crate) static SLICES: Family = family(
    "endpoint_slice_controller_num_endpoint_slices",
    Kind::Gauge,
    &[],
    "EndpointSlices there are.",
);

enum Value {
    Number(f64),
    Histogram(Histogram),
}

type Rows = BTreeMap<Vec<String>, Value>;

/// What has been counted. Clones share it.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<BTreeMap<&'static str, (&'static Family, Rows)>>>);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, (&'static Family, Rows)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, family: &'static Family, labels: &[&str], change: impl FnOnce(&mut Value)) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let mut all = self.lock();
        let (_, rows) = all.entry(family.name).or_insert_with(|| (family, Rows::new()));
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        change(rows.entry(labels).or_insert_with(|| match family.kind {
            Kind::Histogram(first, factor, buckets) => Value::Histogram(Histogram::exponential(first, factor, buckets)),
            Kind::Counter | Kind::Gauge => Value::Number(0.0),
        }));
    }

    pub(crate) fn add(&self, family: &'static Family, labels: &[&str], number: usize) {
        self.with(family, labels, |value| {
            if let Value::Number(sum) = value {
                *sum += number as f64;
            }
        });
    }

    pub(crate) fn set(&self, family: &'static Family, labels: &[&str], number: f64) {
        self.with(family, labels, |value| *value = Value::Number(number));
    }

    pub(crate) fn observe(&self, family: &'static Family, labels: &[&str], number: f64) {
        self.with(family, labels, |value| {
            if let Value::Histogram(histogram) = value {
                histogram.observe(number);
            }
        });
    }

    pub(crate) fn took(&self, family: &'static Family, labels: &[&str], time: Duration) {
        self.observe(family, labels, time.as_secs_f64());
    }

    /// Tells no longer of something that is gone.
    pub(crate) fn forget(&self, family: &'static Family, labels: &[&str]) {
        if let Some((_, rows)) = self.lock().get_mut(family.name) {
            rows.retain(|known, _| known != labels);
        }
    }

    /// The controllers stop: how things are is somebody else's to say.
    pub(crate) fn rest(&self) {
        self.lock().retain(|_, (family, _)| !matches!(family.kind, Kind::Gauge));
    }

    pub fn tell(&self, out: &mut Exposition) {
        for (name, (family, rows)) in &*self.lock() {
            if rows.is_empty() {
                continue;
            }
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(..) => "histogram",
            };
            out.heading(name, kind, family.help);
            for (labels, value) in rows {
                let labels: Vec<(&str, &str)> = family
                    .labels
                    .iter()
                    .copied()
                    .zip(labels.iter().map(String::as_str))
                    .collect();
                match value {
                    Value::Number(number) => out.sample(name, &labels, number),
                    Value::Histogram(histogram) => out.histogram(name, &labels, histogram),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(metrics: &Metrics) -> String {
        let mut out = Exposition::default();
        metrics.tell(&mut out);
        out.into_text()
    }

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::default();
        metrics.add(&EVICTIONS, &["r:a"], 0);
        metrics.add(&EVICTIONS, &["r:b"], 2);
        metrics.add(&EVICTIONS, &["r:b"], 1);
        metrics.set(&ZONE_SIZE, &["r:a"], 3.0);
        metrics.set(&ZONE_SIZE, &["r:b"], 5.0);
        metrics.forget(&ZONE_SIZE, &["r:b"]);
        metrics.took(&NODE_HEALTH, &[], Duration::from_millis(2));
        let text = told(&metrics);
        for line in [
            "# TYPE node_collector_evictions_total counter\n",
            "node_collector_evictions_total{zone=\"r:a\"} 0\nnode_collector_evictions_total{zone=\"r:b\"} 3\n",
            "node_collector_zone_size{zone=\"r:a\"} 3\n",
            "node_collector_update_node_health_duration_seconds_bucket{le=\"0.004\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("zone_size{zone=\"r:b\"}"), "{text}");
        metrics.rest();
        let text = told(&metrics);
        assert!(
            !text.contains("zone_size") && text.contains("evictions_total"),
            "{text}"
        );
    }
}
