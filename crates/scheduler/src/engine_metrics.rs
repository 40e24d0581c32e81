//! What the engine counts of its own work, for [`crate::metrics`].

use std::time::Duration;

use super::*;
use crate::metrics::{Gauges, Metrics, Plugins, SAMPLED};
use crate::queue::Waiting;
use crate::watch::Part;

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
    looks: u64,
    /// Whether plugins of this decision are timed.
    sampled: bool,
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

    /// A decision begins: whether its plugins are to be timed.
    pub(super) fn sample(&mut self) -> bool {
        self.sampled = self.looks.is_multiple_of(SAMPLED);
        self.looks += 1;
        self.sampled
    }

    /// Whether plugins of the present decision are timed.
    pub(super) fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// Pods were looked for that could make room.
    pub(super) fn remedied(&self, pod: &PodInfo, helps: bool, took: Duration) {
        let status = if helps { Status::Success } else { Status::Unschedulable };
        self.metrics
            .point(&pod.class.scheduler, Point::PostFilter, status, took);
        if self.sampled {
            self.metrics.parts(&[Part {
                plugin: "DefaultPreemption",
                point: Point::PostFilter,
                status,
                took,
            }]);
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
    pub(super) fn looked(&mut self, pod: &PodInfo, began: Instant, found: bool, mut watch: Watch) {
        self.counting.tried(&pod.uid, began);
        let took = began.elapsed();
        self.counting.metrics.looked(&pod.class.scheduler, found, took, &watch);
        if self.counting.sampled {
            self.time_plugins(&pod.class, &mut watch);
            self.counting.metrics.parts(&watch.parts);
        }
    }

    /// Has the node checked and scored once more by every plugin, with a watch.
    fn time_plugins(&mut self, class: &Class, watch: &mut Watch) {
        let places = self.snapshot.places();
        if places == 0 {
            return;
        }
        // Not the engine's own dice: who counts must not change what is decided.
        let at = rand::rng().random_range(0..places);
        let (Some(framework), Some(info)) = (self.profiles.get(&class.scheduler), self.snapshot.node(at)) else {
            return;
        };
        let mut check = |plugin, check: &dyn Fn() -> bool| {
            let began = Instant::now();
            let passed = check();
            let status = if passed { Status::Success } else { Status::Unschedulable };
            watch.parts.push(Part {
                plugin,
                point: Point::Filter,
                status,
                took: began.elapsed(),
            });
            passed
        };
        for row in &framework.filters {
            if !check(row.name, &|| (row.check)(class, info).is_ok()) {
                return;
            }
        }
        let tracking = self.trackings.get(class.id);
        for row in tracking.iter().flat_map(|tracking| &tracking.rows) {
            if row.filters && row.tracker.may_refuse() && !check(row.name, &|| row.tracker.check(at).is_ok()) {
                return;
            }
        }
        for row in &framework.scores {
            watch.part(row.name, Point::Score, || (row.score)(class, info));
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
            let plugins = Plugins {
                pre_filter: framework.pre_filters.iter().map(|row| row.name).collect(),
                filter: framework.filters.iter().map(|row| row.name).collect(),
                score: framework.scores.iter().map(|row| row.name).collect(),
            };
            gauges.plugins.insert(name.clone(), plugins);
        }
        for (_, info) in self.snapshot.nodes() {
            gauges.pods += info.pods.len();
        }
        let booked = self.counting.ways.keys();
        gauges.assumed = booked.filter(|uid| self.snapshot.place_of(uid).is_some()).count();
        gauges
    }
}
