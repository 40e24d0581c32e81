//! What the scheduler counts, under upstream's names.
//!
//! Counting costs a short lock per decision and per binding; what can be derived (how often each plugin was asked, what
//! waits where) is worked out when somebody looks. A class of equal Pods is examined once, so an attempt in vain is
//! counted once for it and not for each of its Pods; a Pod's own attempts are those made for it. To filter and to rank is
//! one step here, and its time stands under `Filter`. Plugins' own times are a sample: one decision in ten has the node
//! plugins run once more, on one node, with a watch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sampan_client::metrics::{Exposition, Histogram};

use crate::engine::Engine;

/// One decision in so many has its plugins timed.
const SAMPLED: u64 = 10;
/// Attempts beyond this are one label.
const MANY_ATTEMPTS: u32 = 15;

#[derive(Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    counts: Mutex<Counts>,
    /// What waits is read off it.
    engine: Mutex<Weak<Mutex<Engine>>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Scheduled,
    Unschedulable,
    Error,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Outcome::Scheduled => "scheduled",
            Outcome::Unschedulable => "unschedulable",
            Outcome::Error => "error",
        }
    }
}

/// What is counted of one profile.
#[derive(Default)]
struct Profile {
    attempts: BTreeMap<Outcome, Histogram>,
    /// By extension point and status.
    points: BTreeMap<(&'static str, &'static str), Histogram>,
    looks: u64,
    found: u64,
}

struct Counts {
    profiles: BTreeMap<String, Profile>,
    algorithm: Histogram,
    /// By attempts.
    sli: BTreeMap<u32, Histogram>,
    attempts: Histogram,
    preemptions: u64,
    victims: Histogram,
    /// By queue and event.
    incoming: BTreeMap<(&'static str, &'static str), u64>,
    /// By plugin, extension point and status.
    plugins: BTreeMap<(&'static str, &'static str, &'static str), Histogram>,
    looks: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Counts {
            profiles: BTreeMap::new(),
            algorithm: decisions(),
            sli: BTreeMap::new(),
            attempts: Histogram::exponential(1.0, 2.0, 5),
            preemptions: 0,
            victims: Histogram::exponential(1.0, 2.0, 7),
            incoming: BTreeMap::new(),
            plugins: BTreeMap::new(),
            looks: 0,
        }
    }
}

fn decisions() -> Histogram {
    Histogram::exponential(0.001, 2.0, 15)
}

impl Counts {
    fn profile(&mut self, name: &str) -> &mut Profile {
        self.profiles.entry(name.to_owned()).or_default()
    }
}

impl Profile {
    fn ended(&mut self, outcome: Outcome, took: Duration) {
        self.attempts.entry(outcome).or_insert_with(decisions).took(took);
    }
    fn point(&mut self, point: &'static str, status: &'static str, took: Duration) {
        let row = self.points.entry((point, status));
        row.or_insert_with(|| Histogram::exponential(0.0001, 2.0, 12))
            .took(took);
    }
}

/// What waits, and where.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    pub active: usize,
    pub backoff: usize,
    pub unschedulable: usize,
    pub gated: usize,
    /// By plugin and profile.
    pub refused: BTreeMap<(&'static str, String), usize>,
    /// By profile: the plugins that filter, and those that rank.
    pub plugins: BTreeMap<String, (Vec<&'static str>, Vec<&'static str>)>,
    pub nodes: usize,
    pub pods: usize,
    pub assumed: usize,
}

impl Metrics {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what waits off this engine from now on.
    pub fn follow(&self, engine: &Arc<Mutex<Engine>>) {
        let mut followed = self.0.engine.lock().unwrap_or_else(PoisonError::into_inner);
        *followed = Arc::downgrade(engine);
    }

    /// A decision was looked for. Whether its plugins are to be timed.
    pub fn looked(&self, profile: &str, found: bool, took: Duration) -> bool {
        let mut counts = self.counts();
        counts.looks += 1;
        let sampled = counts.looks % SAMPLED == 1;
        counts.algorithm.took(took);
        let profile = counts.profile(profile);
        profile.looks += 1;
        profile.found += u64::from(found);
        profile.point("Filter", if found { "Success" } else { "Unschedulable" }, took);
        if !found {
            profile.ended(Outcome::Unschedulable, took);
        }
        sampled
    }

    /// A plugin took so long on one node.
    pub fn plugin(&self, plugin: &'static str, point: &'static str, passed: bool, took: Duration) {
        let status = if passed { "Success" } else { "Unschedulable" };
        let mut counts = self.counts();
        let row = counts.plugins.entry((plugin, point, status));
        row.or_insert_with(|| Histogram::exponential(0.000_01, 1.5, 20))
            .took(took);
    }

    /// All plugins of an extension point took so long.
    pub fn point(&self, profile: &str, point: &'static str, passed: bool, took: Duration) {
        let status = if passed { "Success" } else { "Error" };
        self.counts().profile(profile).point(point, status, took);
    }

    /// An attempt failed for want of an answer, not of a node.
    pub fn failed(&self, profile: &str, took: Duration) {
        self.counts().profile(profile).ended(Outcome::Error, took);
    }

    /// A Pod is bound: how long ago it came, and was tried last, and how often it was tried.
    pub fn scheduled(&self, profile: &str, came: Duration, tried: Duration, attempts: u32) {
        let mut counts = self.counts();
        counts.attempts.observe(f64::from(attempts));
        let row = counts.sli.entry(attempts.min(MANY_ATTEMPTS));
        row.or_insert_with(|| Histogram::exponential(0.01, 2.0, 20)).took(came);
        counts.profile(profile).ended(Outcome::Scheduled, tried);
    }

    pub fn preemption_tried(&self) {
        self.counts().preemptions += 1;
    }

    pub fn preempted(&self, victims: usize) {
        self.counts().victims.observe(victims as f64);
    }

    /// So many Pods entered a queue because of an event.
    pub fn incoming(&self, queue: &'static str, event: &'static str, pods: usize) {
        if pods > 0 {
            *self.counts().incoming.entry((queue, event)).or_default() += pods as u64;
        }
    }

    /// The whole exposition.
    pub fn tell(&self, out: &mut Exposition) {
        let engine = self.0.engine.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let gauges = engine.map(|engine| engine.lock().unwrap_or_else(PoisonError::into_inner).gauges());
        let gauges = gauges.unwrap_or_default();
        let counts = self.counts();
        counts.tell_attempts(out);
        counts.tell_plugins(out, &gauges);
        gauges.tell(out);
    }
}

impl Counts {
    fn tell_attempts(&self, out: &mut Exposition) {
        let name = "scheduler_schedule_attempts_total";
        out.heading(name, "counter", "Attempts to find a node, by how they ended.");
        for (profile, counts) in &self.profiles {
            for (outcome, durations) in &counts.attempts {
                let labels = [("profile", profile.as_str()), ("result", outcome.label())];
                out.sample(name, &labels, durations.count());
            }
        }
        let name = "scheduler_scheduling_attempt_duration_seconds";
        out.heading(name, "histogram", "How long attempts took, with the binding.");
        for (profile, counts) in &self.profiles {
            for (outcome, durations) in &counts.attempts {
                let labels = [("profile", profile.as_str()), ("result", outcome.label())];
                out.histogram(name, &labels, durations);
            }
        }
        let name = "scheduler_scheduling_algorithm_duration_seconds";
        out.heading(name, "histogram", "How long it took to find a node, or none.");
        out.histogram(name, &[], &self.algorithm);
        let name = "scheduler_pod_scheduling_sli_duration_seconds";
        out.heading(name, "histogram", "From a Pod's coming to its binding, by attempts.");
        for (attempts, durations) in &self.sli {
            let label = match *attempts {
                MANY_ATTEMPTS => format!("{MANY_ATTEMPTS}+"),
                few => few.to_string(),
            };
            out.histogram(name, &[("attempts", &label)], durations);
        }
        let name = "scheduler_pod_scheduling_attempts";
        out.heading(name, "histogram", "Attempts that Pods took until they were bound.");
        out.histogram(name, &[], &self.attempts);
        let name = "scheduler_preemption_attempts_total";
        out.heading(name, "counter", "How often Pods were looked for that could make room.");
        out.sample(name, &[], self.preemptions);
        let name = "scheduler_preemption_victims";
        out.heading(name, "histogram", "How many Pods had to leave at a time.");
        out.histogram(name, &[], &self.victims);
        let name = "scheduler_queue_incoming_pods_total";
        out.heading(name, "counter", "Pods that entered a queue, and what for.");
        for ((queue, event), pods) in &self.incoming {
            out.sample(name, &[("event", event), ("queue", queue)], pods);
        }
    }

    fn tell_plugins(&self, out: &mut Exposition, gauges: &Gauges) {
        let name = "scheduler_framework_extension_point_duration_seconds";
        out.heading(name, "histogram", "How long all plugins of an extension point took.");
        for (profile, counts) in &self.profiles {
            for ((point, status), durations) in &counts.points {
                let labels = [("extension_point", *point), ("profile", profile), ("status", status)];
                out.histogram(name, &labels, durations);
            }
        }
        let name = "scheduler_plugin_execution_duration_seconds";
        out.heading(name, "histogram", "How long a plugin took for one node; a sample.");
        for ((plugin, point, status), durations) in &self.plugins {
            let labels = [("extension_point", *point), ("plugin", plugin), ("status", status)];
            out.histogram(name, &labels, durations);
        }
        let name = "scheduler_plugin_evaluation_total";
        out.heading(name, "counter", "Attempts that a plugin took part in.");
        for (profile, counts) in &self.profiles {
            let Some((filter, score)) = gauges.plugins.get(profile) else {
                continue;
            };
            for (point, plugins, times) in [("Filter", filter, counts.looks), ("Score", score, counts.found)] {
                for plugin in plugins {
                    let labels = [("extension_point", point), ("plugin", plugin), ("profile", profile)];
                    out.sample(name, &labels, times);
                }
            }
        }
    }
}

impl Gauges {
    fn tell(&self, out: &mut Exposition) {
        let name = "scheduler_pending_pods";
        out.heading(name, "gauge", "Pods without a node, by where they wait.");
        for (queue, pods) in [
            ("active", self.active),
            ("backoff", self.backoff),
            ("gated", self.gated),
            ("unschedulable", self.unschedulable),
        ] {
            out.sample(name, &[("queue", queue)], pods);
        }
        let name = "scheduler_unschedulable_pods";
        out.heading(name, "gauge", "Pods that wait, by the plugins that refused them.");
        for ((plugin, profile), pods) in &self.refused {
            out.sample(name, &[("plugin", plugin), ("profile", profile)], pods);
        }
        let name = "scheduler_cache_size";
        out.heading(name, "gauge", "What is known of the cluster.");
        for (kind, count) in [
            ("assumed_pods", self.assumed),
            ("nodes", self.nodes),
            ("pods", self.pods),
        ] {
            out.sample(name, &[("type", kind)], count);
        }
    }
}
