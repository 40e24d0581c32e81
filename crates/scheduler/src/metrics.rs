//! What the scheduler counts, under upstream's names and with its buckets, in Prometheus' text format.
//!
//! Everything that can be counted is laid out at the start, so counting is an addition to a number in memory: no lock,
//! no allocation. Gauges are not kept but asked for when somebody looks ([`Gauges`]).
//!
//! Equal Pods share what is learned, so some figures count work rather than Pods: `plugin_evaluation_total` counts nodes
//! that were really looked at, and `plugin_execution_duration_seconds` is taken of a sample of them, as upstream does.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config::Configuration;

/// `count` bounds, each `factor` times the one before.
fn exponential(start: f64, factor: f64, count: usize) -> Box<[f64]> {
    std::iter::successors(Some(start), |bound| Some(bound * factor))
        .take(count)
        .collect()
}

/// A distribution of lengths of time or of numbers.
struct Histogram {
    bounds: Arc<[f64]>,
    /// One more than bounds: beyond the last.
    counts: Box<[AtomicU64]>,
    /// In billionths.
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &Arc<[f64]>) -> Self {
        Histogram {
            bounds: Arc::clone(bounds),
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    fn count(&self, value: f64, billionths: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.counts.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(billionths, Relaxed);
    }

    fn time(&self, took: Duration) {
        self.count(
            took.as_secs_f64(),
            u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
        );
    }

    fn number(&self, number: u64) {
        self.count(number as f64, number.saturating_mul(1_000_000_000));
    }

    fn show(&self, out: &mut String, name: &str, labels: &str) {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        // A row nobody has counted in is not there, as with Prometheus' own library; one without labels always is.
        if total == 0 && !labels.is_empty() {
            return;
        }
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&counts) {
            below += count;
            put(out, format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}"));
        }
        put(out, format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {total}"));
        let sum = self.sum.load(Relaxed) as f64 / 1e9;
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        put(out, format_args!("{name}_sum{braced} {sum}"));
        put(out, format_args!("{name}_count{braced} {total}"));
    }
}

fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ok = writeln!(out, "{line}");
}

fn heading(out: &mut String, name: &str, kind: &str, help: &str) {
    put(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
}

/// How an attempt to schedule a Pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Scheduled,
    Unschedulable,
    Error,
}
const OUTCOMES: [&str; 3] = ["scheduled", "unschedulable", "error"];

/// Where plugins work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    PreFilter,
    Filter,
    PostFilter,
    PreScore,
    Score,
    Reserve,
    PreBind,
    Bind,
}
const POINTS: [&str; 8] = [
    "PreFilter",
    "Filter",
    "PostFilter",
    "PreScore",
    "Score",
    "Reserve",
    "PreBind",
    "Bind",
];

/// How a point, or a plugin at it, answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Success,
    Unschedulable,
    Error,
}
const STATUSES: [&str; 3] = ["Success", "Unschedulable", "Error"];

/// Where Pods wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    Active,
    Backoff,
    Unschedulable,
}
const QUEUES: [&str; 3] = ["active", "backoff", "unschedulable"];

/// What happened, in upstream's words. The queue is told of it, or a Pod enters the queue because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    UnschedulablePodAdd,
    UnschedulablePodUpdate,
    UnschedulablePodDelete,
    AssignedPodAdd,
    AssignedPodUpdate,
    AssignedPodDelete,
    NodeAdd,
    NodeUpdate,
    NodeDelete,
    NamespaceUpdate,
    ScheduleAttemptFailure,
    BackoffComplete,
    Other,
}
const CAUSES: [&str; 13] = [
    "UnschedulablePodAdd",
    "UnschedulablePodUpdate",
    "UnschedulablePodDelete",
    "AssignedPodAdd",
    "AssignedPodUpdate",
    "AssignedPodDelete",
    "NodeAdd",
    "NodeUpdate",
    "NodeDelete",
    "NamespaceUpdate",
    "ScheduleAttemptFailure",
    "BackoffComplete",
    "Other",
];

/// The plugins that may be timed. A plugin that is not here is not timed.
const PLUGINS: [&str; 17] = [
    "NodeUnschedulable",
    "NodeName",
    "TaintToleration",
    "NodeAffinity",
    "NodePorts",
    "NodeResourcesFit",
    "NodeResourcesBalancedAllocation",
    "ImageLocality",
    "PodTopologySpread",
    "InterPodAffinity",
    "VolumeRestrictions",
    "NodeVolumeLimits",
    "VolumeBinding",
    "VolumeZone",
    "DefaultPreemption",
    "DefaultBinder",
    "Extender",
];

/// Attempts that have a label of their own; more are `15+`.
const ATTEMPTS: usize = 15;

/// What is counted per profile.
struct OfProfile {
    name: String,
    attempts: [Histogram; OUTCOMES.len()],
    points: Box<[[Histogram; STATUSES.len()]]>,
    /// By plugin: evaluations at PreFilter, Filter, PreScore and Score.
    evaluated: Box<[[AtomicU64; 4]]>,
}

/// What is true when somebody looks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    pub active: usize,
    pub backoff: usize,
    pub unschedulable: usize,
    pub gated: usize,
    pub nodes: usize,
    pub pods: usize,
    pub assumed_pods: usize,
    /// (plugin, profile, Pods it keeps waiting).
    pub refusing: Vec<(String, String, usize)>,
}

type Look = Box<dyn Fn() -> Gauges + Send + Sync>;

/// Everything that is counted.
pub struct Metrics {
    profiles: Box<[OfProfile]>,
    algorithm: Histogram,
    handling: Box<[Histogram]>,
    victims: Histogram,
    preemptions: AtomicU64,
    sli: Box<[Histogram]>,
    tries: Histogram,
    executed: Box<[[[Histogram; STATUSES.len()]; POINTS.len()]]>,
    incoming: Box<[[AtomicU64; CAUSES.len()]; QUEUES.len()]>,
    binding: AtomicU64,
    asking: AtomicU64,
    look: Mutex<Option<Look>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub fn new(configuration: &Configuration) -> Self {
        let milliseconds: Arc<[f64]> = exponential(0.001, 2.0, 15).into();
        let short: Arc<[f64]> = exponential(0.0001, 2.0, 12).into();
        let plugin: Arc<[f64]> = exponential(0.00001, 1.5, 20).into();
        let long: Arc<[f64]> = exponential(0.01, 2.0, 20).into();
        let profiles = configuration.profiles.iter().map(|profile| OfProfile {
            name: profile.name.clone(),
            attempts: std::array::from_fn(|_| Histogram::new(&milliseconds)),
            points: POINTS.map(|_| std::array::from_fn(|_| Histogram::new(&short))).into(),
            evaluated: PLUGINS.map(|_| std::array::from_fn(|_| AtomicU64::new(0))).into(),
        });
        Metrics {
            profiles: profiles.collect(),
            algorithm: Histogram::new(&milliseconds),
            handling: CAUSES.map(|_| Histogram::new(&short)).into(),
            victims: Histogram::new(&exponential(1.0, 2.0, 7).into()),
            preemptions: AtomicU64::new(0),
            sli: (0..=ATTEMPTS).map(|_| Histogram::new(&long)).collect(),
            tries: Histogram::new(&exponential(1.0, 2.0, 5).into()),
            executed: PLUGINS
                .map(|_| std::array::from_fn(|_| std::array::from_fn(|_| Histogram::new(&plugin))))
                .into(),
            incoming: Box::new(std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0)))),
            binding: AtomicU64::new(0),
            asking: AtomicU64::new(0),
            look: Mutex::new(None),
        }
    }

    fn profile(&self, name: &str) -> Option<&OfProfile> {
        self.profiles.iter().find(|profile| profile.name == name)
    }

    /// Whom to ask for gauges.
    pub fn look_with(&self, look: impl Fn() -> Gauges + Send + Sync + 'static) {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(look));
    }

    /// There is nothing to see any more: the scheduler ended.
    pub fn look_away(&self) {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A Pod was tried. `took`: the choice of a node and, where there was one, the binding.
    pub fn attempt(&self, profile: &str, outcome: Outcome, took: Duration) {
        if let Some(attempts) = self.profile(profile).and_then(|of| of.attempts.get(outcome as usize)) {
            attempts.time(took);
        }
    }

    /// A node was looked for.
    pub fn algorithm(&self, took: Duration) {
        self.algorithm.time(took);
    }

    /// A Pod got its node, so long after it was first seen and at the so many-th attempt.
    pub fn scheduled(&self, attempts: usize, waited: Duration) {
        let row = attempts.clamp(1, ATTEMPTS + 1) - 1;
        if let Some(sli) = self.sli.get(row) {
            sli.time(waited);
        }
        self.tries.number(attempts as u64);
    }

    /// All plugins of an extension point worked.
    pub fn point(&self, profile: &str, point: Point, status: Status, took: Duration) {
        let rows = self.profile(profile).and_then(|of| of.points.get(point as usize));
        if let Some(row) = rows.and_then(|rows| rows.get(status as usize)) {
            row.time(took);
        }
    }

    /// One plugin worked: call it for a sample.
    pub fn executed(&self, plugin: &str, point: Point, status: Status, took: Duration) {
        let at = PLUGINS.iter().position(|known| *known == plugin);
        let rows = at.and_then(|at| self.executed.get(at)?.get(point as usize));
        if let Some(row) = rows.and_then(|rows| rows.get(status as usize)) {
            row.time(took);
        }
    }

    /// A plugin looked at so many nodes (or, before nodes are looked at, at one Pod).
    pub fn evaluated(&self, profile: &str, plugin: &str, point: Point, times: u64) {
        let column = match point {
            Point::PreFilter => 0,
            Point::Filter => 1,
            Point::PreScore => 2,
            Point::Score => 3,
            _ => return,
        };
        let at = PLUGINS.iter().position(|known| *known == plugin);
        let rows = self.profile(profile).zip(at).and_then(|(of, at)| of.evaluated.get(at));
        if let Some(count) = rows.and_then(|rows| rows.get(column)) {
            count.fetch_add(times, Relaxed);
        }
    }

    /// So many Pods entered a queue.
    pub fn incoming(&self, queue: Queue, cause: Cause, pods: u64) {
        let row = self.incoming.get(queue as usize);
        if let Some(count) = row.and_then(|row| row.get(cause as usize)) {
            count.fetch_add(pods, Relaxed);
        }
    }

    /// An event was taken in.
    pub fn handled(&self, cause: Cause, took: Duration) {
        if let Some(row) = self.handling.get(cause as usize) {
            row.time(took);
        }
    }

    /// Room was sought by preemption.
    pub fn preemption_tried(&self) {
        self.preemptions.fetch_add(1, Relaxed);
    }

    /// Room was made: so many Pods have to go.
    pub fn preempted(&self, victims: usize) {
        self.victims.number(victims as u64);
    }

    /// A binding is under way until the guard goes.
    pub fn binding(&self) -> InFlight<'_> {
        InFlight::new(&self.binding)
    }

    /// An extender is being asked until the guard goes.
    pub fn asking(&self) -> InFlight<'_> {
        InFlight::new(&self.asking)
    }

    /// The whole exposition.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let gauges = {
            let look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
            look.as_ref().map(|look| look()).unwrap_or_default()
        };
        self.show_attempts(&mut out);
        self.show_gauges(&mut out, &gauges);
        self.show_plugins(&mut out);
        let name = "scheduler_event_handling_duration_seconds";
        heading(&mut out, name, "histogram", "Time to take in an event.");
        for (cause, row) in CAUSES.iter().zip(&self.handling) {
            row.show(&mut out, name, &format!("event=\"{cause}\""));
        }
        let name = "scheduler_queue_incoming_pods_total";
        heading(&mut out, name, "counter", "Pods added to the queues, by what brought them.");
        for (queue, row) in QUEUES.iter().zip(self.incoming.iter()) {
            for (cause, count) in CAUSES.iter().zip(row) {
                let count = count.load(Relaxed);
                if count > 0 {
                    put(&mut out, format_args!("{name}{{event=\"{cause}\",queue=\"{queue}\"}} {count}"));
                }
            }
        }
        let name = "scheduler_preemption_attempts_total";
        heading(&mut out, name, "counter", "Times that preemption looked for room.");
        put(&mut out, format_args!("{name} {}", self.preemptions.load(Relaxed)));
        let name = "scheduler_preemption_victims";
        heading(&mut out, name, "histogram", "Pods that had to go, by preemption.");
        self.victims.show(&mut out, name, "");
        out
    }

    fn show_attempts(&self, out: &mut String) {
        let name = "scheduler_schedule_attempts_total";
        heading(out, name, "counter", "Attempts to schedule Pods, by how they ended.");
        for profile in &self.profiles {
            for (outcome, row) in OUTCOMES.iter().zip(&profile.attempts) {
                let count: u64 = row.counts.iter().map(|count| count.load(Relaxed)).sum();
                if count > 0 {
                    let profile = &profile.name;
                    put(out, format_args!("{name}{{profile=\"{profile}\",result=\"{outcome}\"}} {count}"));
                }
            }
        }
        let name = "scheduler_scheduling_attempt_duration_seconds";
        heading(out, name, "histogram", "Time of an attempt: the choice of a node and the binding.");
        for profile in &self.profiles {
            for (outcome, row) in OUTCOMES.iter().zip(&profile.attempts) {
                row.show(out, name, &format!("profile=\"{}\",result=\"{outcome}\"", profile.name));
            }
        }
        let name = "scheduler_scheduling_algorithm_duration_seconds";
        heading(out, name, "histogram", "Time of the choice of a node.");
        self.algorithm.show(out, name, "");
        let name = "scheduler_pod_scheduling_sli_duration_seconds";
        heading(out, name, "histogram", "Time from when a Pod is first seen until it is bound.");
        for (at, row) in self.sli.iter().enumerate() {
            let more = if at == ATTEMPTS { "+" } else { "" };
            row.show(out, name, &format!("attempts=\"{}{more}\"", (at + 1).min(ATTEMPTS)));
        }
        let name = "scheduler_pod_scheduling_attempts";
        heading(out, name, "histogram", "Attempts that a bound Pod took.");
        self.tries.show(out, name, "");
    }

    fn show_gauges(&self, out: &mut String, gauges: &Gauges) {
        let name = "scheduler_pending_pods";
        heading(
            out,
            name,
            "gauge",
            "Pods that wait: to be tried, after a failure, for a change of the cluster, for their gates.",
        );
        for (queue, count) in [
            ("active", gauges.active),
            ("backoff", gauges.backoff),
            ("gated", gauges.gated),
            ("unschedulable", gauges.unschedulable),
        ] {
            put(out, format_args!("{name}{{queue=\"{queue}\"}} {count}"));
        }
        let name = "scheduler_unschedulable_pods";
        heading(out, name, "gauge", "Pods that wait, by each plugin that keeps them waiting.");
        for (plugin, profile, count) in &gauges.refusing {
            put(out, format_args!("{name}{{plugin=\"{plugin}\",profile=\"{profile}\"}} {count}"));
        }
        let name = "scheduler_cache_size";
        heading(out, name, "gauge", "Nodes, placed Pods, and Pods whose binding is under way.");
        for (kind, count) in [
            ("assumed_pods", gauges.assumed_pods),
            ("nodes", gauges.nodes),
            ("pods", gauges.pods),
        ] {
            put(out, format_args!("{name}{{type=\"{kind}\"}} {count}"));
        }
        let name = "scheduler_goroutines";
        heading(out, name, "gauge", "Work under way, by kind.");
        put(out, format_args!("{name}{{operation=\"binding\"}} {}", self.binding.load(Relaxed)));
        put(
            out,
            format_args!("{name}{{operation=\"prioritizing_extender\"}} {}", self.asking.load(Relaxed)),
        );
    }

    fn show_plugins(&self, out: &mut String) {
        let name = "scheduler_framework_extension_point_duration_seconds";
        heading(out, name, "histogram", "Time of all plugins of an extension point.");
        for profile in &self.profiles {
            for (point, rows) in POINTS.iter().zip(&profile.points) {
                for (status, row) in STATUSES.iter().zip(rows) {
                    let of = &profile.name;
                    row.show(
                        out,
                        name,
                        &format!("extension_point=\"{point}\",profile=\"{of}\",status=\"{status}\""),
                    );
                }
            }
        }
        let name = "scheduler_plugin_execution_duration_seconds";
        heading(out, name, "histogram", "Time of one plugin at an extension point, of a sample.");
        for (plugin, points) in PLUGINS.iter().zip(&self.executed) {
            for (point, rows) in POINTS.iter().zip(points) {
                for (status, row) in STATUSES.iter().zip(rows) {
                    let labels = format!("extension_point=\"{point}\",plugin=\"{plugin}\",status=\"{status}\"");
                    row.show(out, name, &labels);
                }
            }
        }
        let name = "scheduler_plugin_evaluation_total";
        heading(out, name, "counter", "Times that a plugin was really asked.");
        for profile in &self.profiles {
            for (plugin, counts) in PLUGINS.iter().zip(&profile.evaluated) {
                for (point, count) in ["PreFilter", "Filter", "PreScore", "Score"].iter().zip(counts) {
                    let (count, of) = (count.load(Relaxed), &profile.name);
                    if count > 0 {
                        put(
                            out,
                            format_args!(
                                "{name}{{extension_point=\"{point}\",plugin=\"{plugin}\",profile=\"{of}\"}} {count}"
                            ),
                        );
                    }
                }
            }
        }
    }
}

/// Something under way, counted while it is.
pub struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    fn new(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Relaxed);
        InFlight(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown_under_upstreams_names() {
        let metrics = Metrics::new(&Configuration::default());
        let profile = "default-scheduler";
        metrics.attempt(profile, Outcome::Scheduled, Duration::from_millis(3));
        metrics.attempt(profile, Outcome::Unschedulable, Duration::from_millis(1));
        metrics.attempt("nobody", Outcome::Scheduled, Duration::ZERO);
        metrics.scheduled(1, Duration::from_millis(20));
        metrics.scheduled(40, Duration::from_secs(50_000));
        metrics.point(profile, Point::Filter, Status::Success, Duration::from_micros(150));
        metrics.executed("NodeName", Point::Filter, Status::Unschedulable, Duration::from_micros(11));
        metrics.evaluated(profile, "NodeName", Point::Filter, 7);
        metrics.incoming(Queue::Active, Cause::UnschedulablePodAdd, 2);
        metrics.handled(Cause::NodeAdd, Duration::from_millis(900));
        metrics.preemption_tried();
        metrics.preempted(3);
        metrics.look_with(|| Gauges {
            unschedulable: 5,
            nodes: 2,
            refusing: vec![("NodePorts".into(), "default-scheduler".into(), 5)],
            ..Gauges::default()
        });
        let guard = metrics.binding();
        let text = metrics.text();
        drop(guard);
        for line in [
            "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"scheduled\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_bucket{profile=\"default-scheduler\",result=\"scheduled\",le=\"0.002\"} 0",
            "scheduler_scheduling_attempt_duration_seconds_bucket{profile=\"default-scheduler\",result=\"scheduled\",le=\"0.004\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_sum{profile=\"default-scheduler\",result=\"scheduled\"} 0.003",
            "scheduler_scheduling_attempt_duration_seconds_bucket{profile=\"default-scheduler\",result=\"unschedulable\",le=\"0.001\"} 1",
            "scheduler_pod_scheduling_sli_duration_seconds_count{attempts=\"1\"} 1",
            "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"15+\",le=\"5242.88\"} 0",
            "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"15+\",le=\"+Inf\"} 1",
            "scheduler_pod_scheduling_attempts_count 2",
            "scheduler_framework_extension_point_duration_seconds_count{extension_point=\"Filter\",profile=\"default-scheduler\",status=\"Success\"} 1",
            "scheduler_plugin_execution_duration_seconds_count{extension_point=\"Filter\",plugin=\"NodeName\",status=\"Unschedulable\"} 1",
            "scheduler_plugin_evaluation_total{extension_point=\"Filter\",plugin=\"NodeName\",profile=\"default-scheduler\"} 7",
            "scheduler_queue_incoming_pods_total{event=\"UnschedulablePodAdd\",queue=\"active\"} 2",
            "scheduler_event_handling_duration_seconds_count{event=\"NodeAdd\"} 1",
            "scheduler_preemption_attempts_total 1",
            "scheduler_preemption_victims_sum 3",
            "scheduler_pending_pods{queue=\"unschedulable\"} 5",
            "scheduler_unschedulable_pods{plugin=\"NodePorts\",profile=\"default-scheduler\"} 5",
            "scheduler_cache_size{type=\"nodes\"} 2",
            "scheduler_goroutines{operation=\"binding\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("nobody"));
        assert!(metrics.text().contains("scheduler_goroutines{operation=\"binding\"} 0"));
        // Every family is explained once, before its rows.
        let mut families = std::collections::BTreeSet::new();
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            assert!(families.insert(line), "{line} twice");
        }
    }
}
