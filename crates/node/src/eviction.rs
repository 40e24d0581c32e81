//! Eviction: when memory, disk or process ids run short, reclaim first, then end one Pod at a time.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use sampan_client::EventType;
use sampan_runtime::PodSandboxFilter;
use sampan_tasks::Drain;
use sampan_volumes::downward::units;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::gc::{self, ImageCollector};
use crate::machine::{self, Disk, Memory, Pids};
use crate::manager::Manager;
use crate::node_status::Pressure;
use crate::pod::status::Verdict;
use crate::pod::{self, label, qos};
use crate::thresholds::Eviction;

/// A pressure stays reported this long after it was seen last, so that the scheduler does not follow every wave.
const TRANSITION: Duration = Duration::from_secs(300);

/// What was measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signals {
    pub memory: Memory,
    pub nodefs: Disk,
    pub imagefs: Disk,
    pub pids: Pids,
}

/// A threshold that was crossed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub resource: &'static str,
    pub threshold: String,
    pub available: u64,
}

/// The hard thresholds that are crossed, the most urgent first.
pub fn shortages(signals: &Signals, limits: &Eviction) -> Vec<Shortage> {
    let (memory, pids) = (signals.memory, signals.pids);
    let (node, image) = (signals.nodefs, signals.imagefs);
    let left = pids.max.saturating_sub(pids.used);
    [
        (limits.memory, "memory", memory.available, memory.total),
        (limits.nodefs, "ephemeral-storage", node.available, node.usable()),
        (limits.nodefs_inodes, "inodes", node.inodes_free, node.inodes),
        (limits.imagefs, "ephemeral-storage", image.available, image.usable()),
        (limits.imagefs_inodes, "inodes", image.inodes_free, image.inodes),
        (limits.pids, "pids", left, pids.max),
    ]
    .into_iter()
    .filter_map(|(least, resource, available, whole)| {
        let least = least.filter(|least| least.is_above(available, whole))?;
        Some(Shortage {
            resource,
            threshold: least.to_string(),
            available,
        })
    })
    .collect()
}

pub fn pressure(shortages: &[Shortage]) -> Pressure {
    let any = |names: &[&str]| shortages.iter().any(|short| names.contains(&short.resource));
    Pressure {
        memory: any(&["memory"]),
        disk: any(&["ephemeral-storage", "inodes"]),
        pids: any(&["pids"]),
    }
}

/// Whether a Pod is never evicted.
pub fn is_critical(pod: &Pod) -> bool {
    pod::spec(pod).priority.unwrap_or(0) >= 2_000_000_000
}

/// Candidates, the first to go first: those over their request before those within it, then low priority before
/// high, then by how much they are over.
pub fn rank(mut candidates: Vec<(Arc<Pod>, u64)>, resource: &str) -> Vec<(Arc<Pod>, u64)> {
    candidates.retain(|(pod, _)| !is_critical(pod));
    candidates.sort_by_key(|(pod, usage)| {
        let request = u64::try_from(qos::pod_requests(pod, resource)).unwrap_or(0);
        let priority = pod::spec(pod).priority.unwrap_or(0);
        (
            *usage <= request,
            priority,
            std::cmp::Reverse(usage.saturating_sub(request)),
        )
    });
    candidates
}

/// The emptyDirs on disk that have a limit: name, bytes, and the limit as written.
fn limited_empty_dirs(pod: &Pod) -> Vec<(&str, u64, &str)> {
    let volumes = pod::spec(pod).volumes.iter().flatten();
    volumes
        .filter_map(|volume| {
            let source = volume.empty_dir.as_ref()?;
            let on_disk = source.medium.as_deref().unwrap_or_default().is_empty();
            let limit = source.size_limit.as_ref().filter(|_| on_disk)?;
            let bytes = u64::try_from(units(limit)?).ok().filter(|bytes| *bytes > 0)?;
            Some((volume.name.as_str(), bytes, limit.0.as_str()))
        })
        .collect()
}

/// The verdict of an eviction.
fn evicted(message: String) -> Verdict {
    Verdict {
        phase: "Failed".into(),
        reason: "Evicted".into(),
        message: message.clone(),
        condition: Some(("DisruptionTarget".into(), "TerminationByKubelet".into(), message)),
    }
}

/// Looks at the machine's resources and logs now and then, and acts.
pub struct Housekeeper {
    pub manager: Arc<Manager>,
    pub pressure: watch::Sender<Pressure>,
    pub node: ObjectReference,
}

impl Housekeeper {
    pub async fn run(self, drain: Drain) {
        let collector = ImageCollector::default();
        let mut ticks = tokio::time::interval(self.manager.cx.config.housekeeping.period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen: [Option<Instant>; 3] = [None; 3];
        let mut round = 0u32;
        loop {
            tokio::select! {
                () = drain.started() => return,
                _ = ticks.tick() => {}
            }
            gc::rotate_logs(&self.manager.cx).await;
            // Images change slowly: every fifth minute is upstream's rhythm.
            if round.is_multiple_of(30) {
                gc::collect_images(&self.manager.cx, &collector, &self.node).await;
            }
            round = round.wrapping_add(1);
            self.relieve(&collector, &mut seen).await;
            self.check_size_limits().await;
        }
    }

    /// Ends Pods whose emptyDirs on disk have outgrown their limits. Those in memory are bounded by their mount.
    async fn check_size_limits(&self) {
        let cx = &self.manager.cx;
        for worker in self.manager.pods() {
            let pod = worker.pod();
            if !worker.is_active() {
                continue;
            }
            for (volume, limit, shown) in limited_empty_dirs(&pod) {
                match cx.volumes.empty_dir_usage(&worker.uid, volume).await {
                    Ok(usage) if usage > limit => {
                        let message = format!("Usage of EmptyDir volume \"{volume}\" exceeds the limit \"{shown}\". ");
                        cx.recorder.event(&*pod, EventType::Warning, "Evicted", message.clone());
                        worker.condemn(evicted(message));
                        break;
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(volume, %error, "a volume could not be measured"),
                }
            }
        }
    }

    async fn measure(&self) -> Signals {
        let cx = &self.manager.cx;
        let imagefs = cx.runtime.image_fs_info().await.ok();
        Signals {
            memory: machine::memory(),
            nodefs: machine::disk(&cx.config.data_dir).unwrap_or_default(),
            imagefs: imagefs.and_then(|fs| machine::disk(&fs.path)).unwrap_or_default(),
            pids: machine::pids(),
        }
    }

    async fn relieve(&self, collector: &ImageCollector, seen: &mut [Option<Instant>; 3]) {
        let limits = &self.manager.cx.config.housekeeping.eviction;
        let mut short = shortages(&self.measure().await, limits);
        if pressure(&short).disk {
            // Everything unused goes before any Pod does; then look again.
            if let Err(error) = collector.collect(&self.manager.cx, u64::MAX).await {
                tracing::warn!(%error, "images could not be collected");
            }
            short = shortages(&self.measure().await, limits);
        }
        let now = Instant::now();
        let current = pressure(&short);
        let held = |at: &mut Option<Instant>, is: bool| {
            if is {
                *at = Some(now);
            }
            at.is_some_and(|at| now.duration_since(at) < TRANSITION)
        };
        let [memory, disk, pids] = seen;
        let shown = Pressure {
            memory: held(memory, current.memory),
            disk: held(disk, current.disk),
            pids: held(pids, current.pids),
        };
        let changed = self.pressure.send_if_modified(|old| {
            let changed = *old != shown;
            *old = shown;
            changed
        });
        if changed && short.is_empty() {
            tracing::info!("the node is out of pressure and takes Pods again");
        }
        // Said here too: the Pods that wait for it only say that the node has a taint.
        for short in short.iter().filter(|_| changed) {
            let Shortage {
                resource,
                threshold,
                available,
            } = short;
            tracing::warn!(
                resource,
                available,
                threshold,
                "the node is short of a resource and takes no Pods; free some, or set --eviction-hard"
            );
        }
        if let Some(worst) = short.first() {
            let message = format!("Attempting to reclaim {}", worst.resource);
            self.manager.cx.recorder.event_about(
                self.node.clone(),
                EventType::Warning,
                "EvictionThresholdMet",
                message,
            );
            self.evict_one(worst).await;
        }
    }

    async fn evict_one(&self, short: &Shortage) {
        let cx = &self.manager.cx;
        let mut candidates = Vec::new();
        for worker in self.manager.pods() {
            if !worker.is_active() {
                continue;
            }
            let filter = PodSandboxFilter {
                labels: [(label::POD_UID.to_owned(), worker.uid.clone())].into(),
                ..PodSandboxFilter::default()
            };
            let Ok(sandboxes) = cx.runtime.list_pod_sandboxes(&filter).await else {
                continue;
            };
            let mut usage = 0u64;
            for sandbox in sandboxes {
                let Ok(stats) = cx.runtime.pod_sandbox_stats(&sandbox.id).await else {
                    continue;
                };
                usage = usage.saturating_add(match short.resource {
                    "memory" => stats.memory.map_or(0, |memory| memory.working_set_bytes),
                    "pids" => stats.process_count,
                    _ => stats
                        .containers
                        .iter()
                        .map(|container| container.writable_layer.used_bytes)
                        .fold(0, u64::saturating_add),
                });
            }
            candidates.push((worker.pod(), usage));
        }
        let Some((pod, usage)) = rank(candidates, short.resource).into_iter().next() else {
            return;
        };
        let message = format!(
            "The node was low on resource: {}. Threshold quantity: {}, available: {}. The pod was using {usage}.",
            short.resource, short.threshold, short.available
        );
        cx.recorder.event(&*pod, EventType::Warning, "Evicted", message.clone());
        if let Some(worker) = self.manager.worker(pod::uid(&pod)) {
            worker.condemn(evicted(message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod;
    use serde_json::json;

    #[test]
    fn thresholds_are_crossed_one_by_one() {
        let limits = Eviction::default();
        let gib = 1u64 << 30;
        let disk = |available| Disk {
            total: 1000 * gib,
            used: 100 * gib - available,
            available,
            inodes: 100,
            inodes_free: 50,
        };
        let good = Signals {
            memory: Memory {
                total: 4 * gib,
                available: gib,
            },
            nodefs: disk(50 * gib),
            imagefs: disk(50 * gib),
            pids: Pids { used: 1, max: 100 },
        };
        assert!(shortages(&good, &limits).is_empty());
        for (signals, resource, expected) in [
            (
                Signals {
                    memory: Memory {
                        total: 4 * gib,
                        available: 99 << 20,
                    },
                    ..good
                },
                "memory",
                Pressure {
                    memory: true,
                    ..Pressure::default()
                },
            ),
            (
                Signals {
                    nodefs: disk(9 * gib),
                    ..good
                },
                "ephemeral-storage",
                Pressure {
                    disk: true,
                    ..Pressure::default()
                },
            ),
            (
                Signals {
                    imagefs: disk(14 * gib),
                    ..good
                },
                "ephemeral-storage",
                Pressure {
                    disk: true,
                    ..Pressure::default()
                },
            ),
            (
                Signals {
                    nodefs: Disk {
                        inodes_free: 4,
                        ..disk(50 * gib)
                    },
                    ..good
                },
                "inodes",
                Pressure {
                    disk: true,
                    ..Pressure::default()
                },
            ),
            (
                Signals {
                    pids: Pids { used: 97, max: 100 },
                    ..good
                },
                "pids",
                Pressure {
                    pids: true,
                    ..Pressure::default()
                },
            ),
        ] {
            let short = shortages(&signals, &limits);
            assert_eq!(short[0].resource, resource);
            assert_eq!(pressure(&short), expected);
        }
    }

    #[test]
    fn who_goes_first() {
        let with = |name: &str, request: &str, priority: i32| {
            let mut pod = pod(json!({"priority": priority, "containers": [{"name": "c",
                "resources": {"requests": {"memory": request}}}]}));
            pod.metadata.name = Some(name.into());
            Arc::new(pod)
        };
        let ranked = rank(
            vec![
                (with("within", "100", 0), 50),
                (with("critical", "0", 2_000_000_000), 9999),
                (with("over-important", "10", 5), 90),
                (with("over-little", "10", 0), 20),
                (with("over-much", "10", 0), 90),
            ],
            "memory",
        );
        let names: Vec<&str> = ranked.iter().map(|(pod, _)| pod::name(pod)).collect();
        assert_eq!(names, ["over-much", "over-little", "over-important", "within"]);
    }

    #[test]
    fn only_limited_disk_directories_are_measured() {
        let pod = pod(json!({"containers": [], "volumes": [
            {"name": "a", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "b", "emptyDir": {}},
            {"name": "c", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]}));
        assert_eq!(limited_empty_dirs(&pod), [("a", 1 << 20, "1Mi")]);
    }
}
