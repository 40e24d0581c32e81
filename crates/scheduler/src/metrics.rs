//! What the scheduler counts, under upstream's names.
//!
//! Counting costs two short locks per decision and two per binding; what can be derived (how often each node plugin was
//! asked, what waits where) is worked out when somebody looks. A class of equal Pods is examined once, so an attempt in vain
//! is counted once for it and not for each of its Pods; a Pod's own attempts are those made for it.
//!
//! Extension points are told as [`crate::watch`] cuts a decision. Nothing runs at Permit and PostBind: they are counted, as
//! upstream counts a point without plugins, and take no time. Plugins' own times are a sample, as upstream's: of one
//! decision in ten what each cluster plugin took in all, and node plugins once more on one node, since in the decision
//! itself they look at no node that did not change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sampan_client::metrics::{Exposition, Histogram};

use crate::engine::Engine;
use crate::watch::{Part, Point, Status, Watch};

/// One decision, and one binding, in so many has its plugins timed.
pub(crate) const SAMPLED: u64 = 10;
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
    points: BTreeMap<(Point, Status), Histogram>,
    /// Decisions, those in which nodes were looked at, and those that found one.
    looks: u64,
    filtered: u64,
    found: u64,
    /// By cluster plugin: decisions it had a part in, by point.
    beyond: BTreeMap<&'static str, Beyond>,
}

#[derive(Clone, Copy, Default)]
struct Beyond {
    pre_filter: u64,
    filter: u64,
    score: u64,
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
    plugins: BTreeMap<(&'static str, Point, Status), Histogram>,
    bindings: u64,
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
            bindings: 0,
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
    fn part(&mut self, plugin: &'static str, point: Point, status: Status, took: Duration) {
        let row = self.plugins.entry((plugin, point, status));
        row.or_insert_with(|| Histogram::exponential(0.000_01, 1.5, 20))
            .took(took);
    }
}

impl Profile {
    fn ended(&mut self, outcome: Outcome, took: Duration) {
        self.attempts.entry(outcome).or_insert_with(decisions).took(took);
    }
    fn point(&mut self, point: Point, status: Status, took: Duration) {
        let row = self.points.entry((point, status));
        row.or_insert_with(|| Histogram::exponential(0.0001, 2.0, 12))
            .took(took);
    }
}

/// The plugins that take part in every decision, by point.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plugins {
    pub pre_filter: Vec<&'static str>,
    pub filter: Vec<&'static str>,
    pub score: Vec<&'static str>,
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
    /// By profile.
    pub plugins: BTreeMap<String, Plugins>,
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

    /// A decision was looked for.
    pub fn looked(&self, profile: &str, found: bool, took: Duration, watch: &Watch) {
        let mut counts = self.counts();
        counts.algorithm.took(took);
        let profile = counts.profile(profile);
        profile.looks += 1;
        profile.found += u64::from(found);
        let filtered = watch.spent(Point::Filter).is_some();
        profile.filtered += u64::from(filtered);
        for (plugin, filters, ranks) in &watch.beyond {
            let beyond = profile.beyond.entry(plugin).or_default();
            beyond.pre_filter += 1;
            beyond.filter += u64::from(*filters);
            beyond.score += u64::from(*ranks && found);
        }
        let refused = |by_this: bool| {
            if by_this {
                Status::Unschedulable
            } else {
                Status::Success
            }
        };
        for (point, status) in [
            (Point::PreFilter, refused(!filtered)),
            (Point::Filter, refused(!found)),
            (Point::PreScore, Status::Success),
            (Point::Score, Status::Success),
        ] {
            // What was ranked in vain is ranked for a later decision.
            if let Some(took) = watch.spent(point)
                && (found || point < Point::PreScore)
            {
                profile.point(point, status, took);
            }
        }
        if !found {
            profile.ended(Outcome::Unschedulable, took);
        }
    }

    /// What a Pod needs on its node was taken there, or could not be.
    pub fn reserved(&self, profile: &str, taken: bool, took: Duration) {
        let mut counts = self.counts();
        let profile = counts.profile(profile);
        if taken {
            profile.point(Point::Reserve, Status::Success, took);
            profile.point(Point::Permit, Status::Success, Duration::ZERO);
        } else {
            profile.point(Point::Reserve, Status::Unschedulable, took);
        }
    }

    /// What comes before a binding was done, or failed.
    pub fn prepared(&self, profile: &str, done: bool, took: Duration) {
        let status = if done { Status::Success } else { Status::Error };
        self.point(profile, Point::PreBind, status, took);
    }

    /// A binding was written, or failed; `by` the plugin, if it was one.
    pub fn bound(&self, profile: &str, by: Option<&'static str>, done: bool, took: Duration) {
        let mut counts = self.counts();
        counts.bindings += 1;
        let status = if done { Status::Success } else { Status::Error };
        if let Some(plugin) = by
            && counts.bindings % SAMPLED == 1
        {
            counts.part(plugin, Point::Bind, status, took);
        }
        let profile = counts.profile(profile);
        profile.point(Point::Bind, status, took);
        if done {
            profile.point(Point::PostBind, Status::Success, Duration::ZERO);
        }
    }

    /// Plugins had these parts in a decision.
    pub fn parts(&self, parts: &[Part]) {
        if parts.is_empty() {
            return;
        }
        let mut counts = self.counts();
        for part in parts {
            counts.part(part.plugin, part.point, part.status, part.took);
        }
    }

    /// All plugins of an extension point took so long.
    pub fn point(&self, profile: &str, point: Point, status: Status, took: Duration) {
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
                let labels = [
                    ("extension_point", point.label()),
                    ("profile", profile.as_str()),
                    ("status", status.label()),
                ];
                out.histogram(name, &labels, durations);
            }
        }
        let name = "scheduler_plugin_execution_duration_seconds";
        out.heading(name, "histogram", "How long a plugin took; a sample.");
        for ((plugin, point, status), durations) in &self.plugins {
            let labels = [
                ("extension_point", point.label()),
                ("plugin", *plugin),
                ("status", status.label()),
            ];
            out.histogram(name, &labels, durations);
        }
        let name = "scheduler_plugin_evaluation_total";
        out.heading(name, "counter", "Attempts that a plugin took part in.");
        for (profile, counts) in &self.profiles {
            let Some(plugins) = gauges.plugins.get(profile) else {
                continue;
            };
            let mut tell = |point: Point, plugin: &str, times: u64| {
                let labels = [
                    ("extension_point", point.label()),
                    ("plugin", plugin),
                    ("profile", profile.as_str()),
                ];
                out.sample(name, &labels, times);
            };
            for (point, plugins, times) in [
                (Point::PreFilter, &plugins.pre_filter, counts.looks),
                (Point::Filter, &plugins.filter, counts.filtered),
                (Point::Score, &plugins.score, counts.found),
            ] {
                for plugin in plugins {
                    tell(point, plugin, times);
                }
            }
            for (plugin, beyond) in &counts.beyond {
                tell(Point::PreFilter, plugin, beyond.pre_filter);
                tell(Point::Filter, plugin, beyond.filter);
                tell(Point::PreScore, plugin, beyond.score);
                tell(Point::Score, plugin, beyond.score);
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
