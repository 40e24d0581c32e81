//! What the engine counts of its own work, for [`crate::metrics`].

use super::*;
use crate::metrics::{Gauges, Metrics};
use crate::queue::Waiting;

/// What is known of a Pod's way to its node.
struct Way {
    came: Instant,
    tried: Instant,
    attempts: u32,
}

#[derive(Default)]
pub(super) struct Counting {
    pub(super) metrics: Metrics,
    ways: HashMap<Arc<str>, Way>,
    gated: HashSet<Arc<str>>,
}

impl Counting {
    /// A Pod came that needs a node.
    pub(super) fn came(&mut self, uid: &Arc<str>, now: Instant) {
        self.gated.remove(uid);
        if !self.ways.contains_key(uid) {
            let way = Way {
                came: now,
                tried: now,
                attempts: 0,
            };
            self.ways.insert(Arc::clone(uid), way);
            self.metrics.incoming("active", "PodAdd", 1);
        }
    }

    pub(super) fn is_gated(&mut self, uid: &str) {
        if !self.gated.contains(uid) {
            self.gated.insert(uid.into());
        }
    }

    /// A Pod needs no node any more, because it has one of ours (of this profile) or for another reason.
    pub(super) fn went(&mut self, uid: &str, bound: Option<&str>) {
        self.gated.remove(uid);
        if let Some(way) = self.ways.remove(uid)
            && let Some(profile) = bound
        {
            let (came, tried) = (way.came.elapsed(), way.tried.elapsed());
            self.metrics.scheduled(profile, came, tried, way.attempts.max(1));
        }
    }

    fn tried(&mut self, uid: &str, at: Instant) {
        if let Some(way) = self.ways.get_mut(uid) {
            way.tried = at;
            way.attempts = way.attempts.saturating_add(1);
        }
    }

    /// An attempt failed for want of an answer.
    pub(super) fn failed(&mut self, pod: &PodInfo) {
        let took = self.ways.get(&pod.uid).map(|way| way.tried.elapsed());
        self.metrics.failed(&pod.class.scheduler, took.unwrap_or_default());
        self.metrics.incoming("backoff", "ScheduleAttemptFailure", 1);
    }
}

/// Upstream's name of what happened.
pub(super) fn label(event: Event) -> &'static str {
    match event {
        Event::Node => "NodeUpdate",
        Event::NodeGone => "NodeDelete",
        Event::PodGone => "AssignedPodDelete",
        Event::PodPlaced => "AssignedPodAdd",
        Event::Namespace => "NamespaceUpdate",
        Event::Claim => "PersistentVolumeClaimUpdate",
        Event::Volume => "PersistentVolumeUpdate",
        Event::StorageClass => "StorageClassUpdate",
        Event::CsiNode => "CSINodeUpdate",
        Event::CsiDriver => "CSIDriverUpdate",
        Event::CsiCapacity => "CSIStorageCapacityUpdate",
        Event::VolumeAttachment => "VolumeAttachmentUpdate",
        Event::ResourceClaim => "ResourceClaimUpdate",
    }
}

impl Engine {
    /// The same engine, counting here.
    pub fn counting(mut self, metrics: Metrics) -> Self {
        self.counting.metrics = metrics;
        self
    }

    /// Notes an attempt that began then.
    pub(super) fn looked(&mut self, pod: &PodInfo, began: Instant, found: bool) {
        self.counting.tried(&pod.uid, began);
        let profile = &pod.class.scheduler;
        if self.counting.metrics.looked(profile, found, began.elapsed()) {
            self.time_plugins(&pod.class);
        }
    }

    /// Runs the node plugins once on some node, with a watch.
    fn time_plugins(&mut self, class: &Class) {
        let places = self.snapshot.places();
        if places == 0 {
            return;
        }
        // Not the engine's own dice: who counts must not change what is decided.
        let at = rand::rng().random_range(0..places);
        let (Some(framework), Some(info)) = (self.profiles.get(&class.scheduler), self.snapshot.node(at)) else {
            return;
        };
        for row in &framework.filters {
            let began = Instant::now();
            let passed = (row.check)(class, info).is_ok();
            self.counting
                .metrics
                .plugin(row.name, "Filter", passed, began.elapsed());
            if !passed {
                return;
            }
        }
        for row in &framework.scores {
            let began = Instant::now();
            (row.score)(class, info);
            self.counting.metrics.plugin(row.name, "Score", true, began.elapsed());
        }
    }

    /// What waits, and where.
    pub fn gauges(&self) -> Gauges {
        let mut gauges = Gauges {
            gated: self.counting.gated.len(),
            nodes: self.snapshot.count(),
            ..Gauges::default()
        };
        for (class, diagnosis, pods) in self.queue.all() {
            match diagnosis {
                Waiting::Now => gauges.active += pods,
                Waiting::Later => gauges.backoff += pods,
                Waiting::For(plugins) => {
                    gauges.unschedulable += pods;
                    for plugin in plugins {
                        *gauges.refused.entry((plugin, class.scheduler.clone())).or_default() += pods;
                    }
                }
            }
        }
        let (asked, refused) = self.extending.counts();
        gauges.active += asked;
        gauges.unschedulable += refused + self.nominations.len();
        gauges.backoff += self.delayed.due.len();
        if refused > 0 {
            for (profile, pods) in self.extending.refused_by_profile() {
                *gauges.refused.entry((PLUGIN, profile)).or_default() += pods;
            }
        }
        for (name, framework) in &self.profiles {
            let filters = framework.filters.iter().map(|row| row.name);
            let scores = framework.scores.iter().map(|row| row.name);
            let cluster = || framework.cluster.iter().map(|plugin| plugin.name());
            gauges.plugins.insert(
                name.clone(),
                (filters.chain(cluster()).collect(), scores.chain(cluster()).collect()),
            );
        }
        for (_, info) in self.snapshot.nodes() {
            gauges.pods += info.pods.len();
        }
        let booked = self.counting.ways.keys();
        gauges.assumed = booked.filter(|uid| self.snapshot.place_of(uid).is_some()).count();
        gauges
    }
}
