//! A Job and its Pods at one moment, and what follows from them. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::indexes::{self, Indexes};
use super::policy::{self, Verdict};
use crate::pods;

pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
pub(super) const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const BACKOFF: Duration = Duration::from_secs(10);
pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(600);

pub(super) fn spec(job: &Job) -> JobSpec {
    job.spec.clone().unwrap_or_default()
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

pub(super) fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend == Some(true)
}

/// Whether a Pod on its way out is replaced only once it has failed.
pub(super) fn replaces_failed_only(spec: &JobSpec) -> bool {
    match spec.pod_replacement_policy.as_deref() {
        Some(policy) => policy == "Failed",
        None => spec.pod_failure_policy.is_some(),
    }
}

pub(super) fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    let conditions = status.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind && c.status == "True")
}

pub(super) fn is_finished(job: &Job) -> bool {
    job.status
        .as_ref()
        .is_some_and(|status| condition(status, "Complete").is_some() || condition(status, "Failed").is_some())
}

pub(super) fn has_finalizer(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|name| name == FINALIZER)
}

/// Whether a Pod counts as failed. One that is only being deleted does, unless the Job waits for its real end.
pub(super) fn is_failed(spec: &JobSpec, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => !replaces_failed_only(spec) && pods::is_terminating(pod),
    }
}

/// The failures that a Pod's index had before it: (those that count, those ignored).
pub(super) fn earlier_failures(pod: &Pod) -> (i32, i32) {
    let read = |name: &str| {
        let text = pod.annotations().get(name);
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    (read(FAILURES), read(IGNORED_FAILURES))
}

/// When a Pod ended: its last container's end, its becoming unready, its deletion, or (unlikely) its creation.
pub(super) fn finished_at(pod: &Pod) -> Timestamp {
    let status = pod.status.as_ref();
    let sidecars: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
        .map(|container| container.name.as_str())
        .collect();
    let ran = |status: &PodStatus| -> Option<Timestamp> {
        let own = status.container_statuses.iter().flatten();
        let beside = status.init_container_statuses.iter().flatten();
        let beside = beside.filter(|container| sidecars.contains(&container.name.as_str()));
        let mut last = None;
        for container in own.chain(beside) {
            let state = container.state.as_ref()?;
            let end = state.terminated.as_ref()?.finished_at.as_ref()?.0;
            last = last.max(Some(end));
        }
        last
    };
    let containers = status.and_then(ran);
    let unready = || {
        pods::condition(pod, "Ready")
            .filter(|ready| ready.status == "False")
            .and_then(|ready| ready.last_transition_time.as_ref())
            .map(|time| time.0)
    };
    let deleted = || {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        let at = pod.metadata.deletion_timestamp.as_ref()?.0;
        at.checked_sub(SignedDuration::from_secs(grace)).ok()
    };
    containers
        .or_else(unready)
        .or_else(deleted)
        .or_else(|| pod.creation_timestamp().map(|time| time.0))
        .unwrap_or_default()
}

/// How much longer a replacement has to wait after `failures` failures in a row, the last one `waited` ago.
pub(super) fn back_off(failures: i32, waited: Duration) -> Duration {
    if failures <= 0 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(failures - 1).unwrap_or(0).min(16);
    let pause = BACKOFF.saturating_mul(1 << doublings).min(MAX_BACKOFF);
    pause.saturating_sub(waited)
}

/// A Job with its Pods.
pub(super) struct View {
    pub(super) spec: JobSpec,
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) active: Vec<Arc<Pod>>,
    pub(super) ready: usize,
    pub(super) terminating: usize,
    /// UIDs of Pods that hold the finalizer, as far as we know.
    pub(super) tracked: HashSet<String>,
    pub(super) newly_succeeded: Vec<Arc<Pod>>,
    pub(super) newly_failed: Vec<Arc<Pod>>,
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    /// Of an Indexed Job.
    pub(super) succeeded_indexes: Indexes,
    /// Of a Job with a limit per index.
    pub(super) failed_indexes: Indexes,
    /// The last failed Pod of each index that waits for its replacement: it remembers the failures before.
    pub(super) held_back: HashMap<i32, Arc<Pod>>,
}

impl View {
    /// `released` are Pods whose finalizer was removed although the cache does not show it yet.
    pub(super) fn new(job: &Job, pods: Vec<Arc<Pod>>, released: &HashSet<String>) -> Self {
        let spec = spec(job);
        let status = job.status.clone().unwrap_or_default();
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let (counted_good, counted_bad) = (
            uncounted.succeeded.unwrap_or_default(),
            uncounted.failed.unwrap_or_default(),
        );
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        let tracked: HashSet<String> = pods
            .iter()
            .filter(|pod| has_finalizer(pod) && !released.contains(&uid(pod)))
            .map(|pod| uid(pod))
            .collect();
        let completions = spec.completions.unwrap_or(i32::MAX);
        let in_range = |pod: &Pod| !is_indexed(&spec) || indexes::of(pod).is_some_and(|index| index < completions);
        let fresh = |pod: &&Arc<Pod>| {
            let uid = uid(pod);
            tracked.contains(&uid) && in_range(pod) && !counted_good.contains(&uid) && !counted_bad.contains(&uid)
        };
        let newly_succeeded: Vec<_> = pods
            .iter()
            .filter(|pod| pods::phase(pod) == "Succeeded")
            .filter(fresh)
            .cloned()
            .collect();
        let newly_failed: Vec<_> = pods
            .iter()
            .filter(|pod| is_failed(&spec, pod))
            .filter(fresh)
            .cloned()
            .collect();
        let counting = newly_failed
            .iter()
            .filter(|pod| policy::judge(job, pod) != Verdict::Ignore)
            .count();
        let active: Vec<_> = pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        let mut view = View {
            ready: active.iter().filter(|pod| pods::is_ready(pod)).count(),
            terminating: pods
                .iter()
                .filter(|pod| pods::is_terminating(pod) && !pods::is_terminal(pod))
                .count(),
            succeeded: status.succeeded.unwrap_or(0) + count(newly_succeeded.len() + counted_good.len()),
            failed: status.failed.unwrap_or(0) + count(counting + counted_bad.len()),
            spec,
            active,
            tracked,
            newly_succeeded,
            newly_failed,
            succeeded_indexes: Indexes::default(),
            failed_indexes: Indexes::default(),
            held_back: HashMap::new(),
            pods,
        };
        if is_indexed(&view.spec) {
            view.index(job, &status, completions);
        }
        view
    }

    fn index(&mut self, job: &Job, status: &JobStatus, completions: i32) {
        let text = status.completed_indexes.as_deref().unwrap_or_default();
        self.succeeded_indexes = Indexes::parse(text, completions);
        for pod in &self.newly_succeeded {
            if let Some(index) = indexes::of(pod) {
                self.succeeded_indexes.insert(index);
            }
        }
        self.succeeded = self.succeeded_indexes.len();
        let Some(limit) = self.spec.backoff_limit_per_index else {
            return;
        };
        let text = status.failed_indexes.as_deref().unwrap_or_default();
        self.failed_indexes = Indexes::parse(text, completions);
        for pod in &self.newly_failed {
            let gone = match policy::judge(job, pod) {
                Verdict::FailIndex => true,
                Verdict::Ignore => false,
                _ => earlier_failures(pod).0 >= limit,
            };
            if let Some(index) = indexes::of(pod).filter(|_| gone) {
                self.failed_indexes.insert(index);
            }
        }
        let running: HashSet<i32> = self.active.iter().filter_map(|pod| indexes::of(pod)).collect();
        for pod in &self.newly_failed {
            let Some(index) = indexes::of(pod) else {
                continue;
            };
            if running.contains(&index) || self.succeeded_indexes.contains(index) || self.failed_indexes.contains(index)
            {
                continue;
            }
            let total = |pod: &Pod| {
                let (counted, ignored) = earlier_failures(pod);
                counted + ignored
            };
            let newer = self
                .held_back
                .get(&index)
                .is_none_or(|known| total(known) <= total(pod));
            if newer {
                self.held_back.insert(index, Arc::clone(pod));
            }
        }
    }

    /// Restarts of containers of Pods that restart in place, when those are limited.
    fn restarts_exceed(&self, limit: i32) -> bool {
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let restarts: i32 = self
            .pods
            .iter()
            .filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"))
            .filter_map(|pod| pod.status.as_ref())
            .flat_map(|status| {
                let own = status.container_statuses.iter().flatten();
                own.chain(status.init_container_statuses.iter().flatten())
            })
            .map(|container| container.restart_count)
            .sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    /// Whether and how the Job comes to an end because of what the Pods did (successful completion aside). The condition
    /// is the interim one, `FailureTarget` or `SuccessCriteriaMet`.
    pub(super) fn verdict(&self, job: &Job, started: Option<&Time>, now: Timestamp) -> Option<JobCondition> {
        let status = job.status.clone().unwrap_or_default();
        for kind in ["SuccessCriteriaMet", "FailureTarget"] {
            if let Some(known) = condition(&status, kind) {
                return Some(known.clone());
            }
        }
        let failure = |reason: &str, message: &str| Some(new_condition("FailureTarget", reason, message, now));
        for pod in self.pods.iter().filter(|pod| is_failed(&self.spec, pod)) {
            if let Verdict::FailJob(message) = policy::judge(job, pod) {
                return failure("PodFailurePolicy", &message);
            }
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if self.failed > limit || self.restarts_exceed(limit) {
            return failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        }
        if self
            .until_deadline(started, now)
            .is_some_and(|left| !left.is_positive())
        {
            return failure("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        if !is_indexed(&self.spec) {
            return None;
        }
        let completions = self.spec.completions.unwrap_or(0);
        let lost = self.failed_indexes.len();
        if self.spec.max_failed_indexes.is_some_and(|most| lost > most) {
            return failure(
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            );
        }
        if lost > 0 && lost + self.succeeded_indexes.len() >= completions {
            return failure("FailedIndexes", "Job has failed indexes");
        }
        let message = policy::succeeded(job, &self.succeeded_indexes, completions)?;
        Some(new_condition("SuccessCriteriaMet", "SuccessPolicy", &message, now))
    }

    /// How long the Job may still run.
    pub(super) fn until_deadline(&self, started: Option<&Time>, now: Timestamp) -> Option<SignedDuration> {
        if is_suspended(&self.spec) {
            return None;
        }
        let deadline = SignedDuration::from_secs(self.spec.active_deadline_seconds?);
        Some(deadline - now.duration_since(started?.0))
    }

    /// How many Pods should run now.
    pub(super) fn wanted(&self, active: i32) -> i32 {
        let parallelism = self.spec.parallelism.unwrap_or(1);
        match self.spec.completions {
            // A work queue: once one has succeeded the others only finish.
            None if self.succeeded > 0 => active,
            None => parallelism,
            Some(completions) => (completions - self.succeeded).min(parallelism).max(0),
        }
    }

    /// Whether enough has succeeded and nothing runs any more.
    pub(super) fn is_complete(&self, active: i32) -> bool {
        active == 0
            && match self.spec.completions {
                None => self.succeeded > 0,
                Some(completions) => self.succeeded >= completions,
            }
    }

    /// The Pods to take away so that `surplus` fewer run: of an Indexed Job first those whose index is out of range or
    /// taken, then the least useful.
    pub(super) fn surplus(&self, surplus: usize) -> Vec<Arc<Pod>> {
        let mut gone = Vec::new();
        let mut left = self.active.clone();
        left.sort_by_key(|pod| usefulness(pod));
        if is_indexed(&self.spec) {
            let completions = self.spec.completions.unwrap_or(0);
            let mut taken = HashSet::new();
            let mut kept = Vec::new();
            // The most useful of an index keeps it.
            for pod in left.into_iter().rev() {
                let keep = indexes::of(&pod).is_some_and(|index| {
                    index < completions && !self.succeeded_indexes.contains(index) && taken.insert(index)
                });
                if keep {
                    kept.push(pod);
                } else {
                    gone.push(pod);
                }
            }
            // Lower indexes stay.
            kept.sort_by_key(|pod| std::cmp::Reverse(indexes::of(pod)));
            left = kept;
        }
        let more = surplus.saturating_sub(gone.len()).min(left.len());
        gone.extend(left.drain(..more));
        gone
    }

    /// The next indexes without a Pod, at most `count`.
    pub(super) fn free_indexes(&self, count: usize) -> Vec<i32> {
        let running: Indexes = self
            .pods
            .iter()
            .filter(|pod| {
                pods::is_active(pod)
                    || (replaces_failed_only(&self.spec) && pods::is_terminating(pod) && !pods::is_terminal(pod))
            })
            .filter_map(|pod| indexes::of(pod))
            .collect();
        running
            .union(&self.succeeded_indexes)
            .union(&self.failed_indexes)
            .missing(self.spec.completions.unwrap_or(0))
            .take(count)
            .collect()
    }
}

/// The least useful first: unassigned, pending, not ready, youngest.
fn usefulness(pod: &Pod) -> (bool, bool, bool, std::cmp::Reverse<Option<Time>>) {
    (
        !pods::node_name(pod).is_empty(),
        pods::phase(pod) == "Running",
        pods::is_ready(pod),
        std::cmp::Reverse(pod.creation_timestamp()),
    )
}

pub(super) fn new_condition(kind: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    JobCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}
