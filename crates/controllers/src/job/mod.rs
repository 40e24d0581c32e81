//! Jobs: Pods that run to their end, as often as asked for, counted exactly once.
//!
//! [`view`] looks at a Job and its Pods and decides, [`policy`] reads its rules, [`track`] keeps the books, [`manage`]
//! makes and ends Pods, and this file holds it together. Besides expectations of Pods the controller remembers the version of each Job that it wrote
//! last and waits until its cache shows it: counters and Pods must be seen from the same side of a write.

mod indexes;
mod manage;
mod policy;
mod track;
mod view;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use sampan_client::owner::{self, Claimer};
use sampan_client::{Change, EventType, Expectations, Informer, Key, WorkQueue, or_absent, retry_on_conflict};
use serde_json::json;
use tokio::time::Instant;

use crate::metrics::{
    JOB_INDEXES_FINISHED, JOB_PODS_FINISHED, JOB_PODS_TRACKED, JOB_SYNC_TIME, JOB_SYNCS, JOBS_FINISHED, JOBS_FOREIGN,
};
use crate::pods::{self, BY_OWNER, PodControl};
use crate::{Context, SyncError, add_paced};
use view::{FINALIZER, View};

/// Marks the key of a Pod among the keys of Jobs; no Job's name has a slash.
const POD: &str = "pod/";

/// Failures of a Job's Pods since the last success.
#[derive(Clone, Copy, Default)]
struct Failures {
    count: i32,
    /// Since when a replacement waits, by the steady clock: what nodes say of the time, and who sets it, changes nothing.
    since: Option<Instant>,
}

/// By index, the failed Pod (by UID) whose replacement waits, and since when it does, by the steady clock.
type Waits = HashMap<i32, (String, Instant)>;

/// What is remembered of a Job between syncs.
#[derive(Default)]
struct Memory {
    /// `None` until what was first seen of the Job has been noted in its status.
    failures: Option<Failures>,
    /// `None` until the Job has been looked at once.
    waits: Option<Waits>,
    /// UIDs of Pods whose finalizer we removed and whose change we have not seen.
    released: HashSet<String>,
    /// UID and version of the Job as we last wrote it.
    written: Option<(Option<String>, u64)>,
    /// Until when a change of nothing but the ready count may wait for company.
    ready_due: Option<Instant>,
}

/// Readiness comes and goes with every Pod: it is told together with something else, or after this long.
const READY_PAUSE: Duration = Duration::from_secs(1);

struct Controller {
    context: Context,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    queue: WorkQueue<Key>,
    expectations: Expectations<Key>,
    memory: Mutex<HashMap<Key, Memory>>,
    /// UIDs of Pods of ended Jobs whose finalizer is being removed.
    releasing: Mutex<HashSet<String>>,
}

pub(crate) fn start(context: Context) {
    let jobs = context.informers.of::<Job>();
    let pods = context.informers.of::<Pod>();
    pods.add_index(BY_OWNER, pods::owner_keys);
    let controller = Arc::new(Controller {
        context: context.clone(),
        jobs: jobs.clone(),
        pods: pods.clone(),
        queue: WorkQueue::default(),
        expectations: Expectations::default(),
        memory: Mutex::default(),
        releasing: Mutex::default(),
    });
    let this = Arc::clone(&controller);
    jobs.on_change(move |change| this.job_changed(change));
    let this = Arc::clone(&controller);
    pods.on_change(move |change| this.pod_changed(change));
    let ready = async move {
        jobs.synced().await;
        pods.synced().await;
    };
    let queue = controller.queue.clone();
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move {
            match key.name.strip_prefix(POD) {
                Some(name) => controller.sync_orphan(&key.namespace, name).await,
                None => controller.sync(key).await,
            }
        }
    });
}

fn version(job: &Job) -> u64 {
    let text = job.metadata.resource_version.as_deref();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether somebody else manages the Job.
fn is_foreign(job: &Job) -> bool {
    let by = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
    by.is_some_and(|by| by != "kubernetes.io/job-controller")
}

impl Controller {
    fn memory(&self) -> MutexGuard<'_, HashMap<Key, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn releasing(&self) -> MutexGuard<'_, HashSet<String>> {
        self.releasing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn job_changed(&self, change: &Change<Job>) {
        let job = change.object();
        let key = Key::of(job.as_ref());
        let gone = matches!(change, Change::Deleted(_));
        if let (Change::Added(_), true) = (change, is_foreign(job)) {
            let by = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
            self.context.metrics().add(&JOBS_FOREIGN, &[by.unwrap_or_default()], 1);
        }
        if gone {
            self.expectations.forget(&key);
            self.memory().remove(&key);
        }
        if gone || view::is_finished(job) {
            // Whatever still holds the finalizer is nobody's business any more.
            for pod in self.pods.by_index(BY_OWNER, &job.uid().unwrap_or_default()) {
                self.release_later(&pod);
            }
        }
        self.queue.add(key);
    }

    fn release_later(&self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if view::has_finalizer(pod) && !self.releasing().contains(uid) {
            let name = format!("{POD}{}", pod.name_any());
            self.queue.add(Key::new(pod.namespace().unwrap_or_default(), name));
        }
    }

    fn owner_of(&self, pod: &Pod) -> Option<Arc<Job>> {
        let name = owner::controller_name::<Job>(&pod.metadata)?;
        let job = self.jobs.get(&pod.namespace().unwrap_or_default(), name)?;
        owner::is_controlled_by(&pod.metadata, job.metadata.uid.as_deref()?).then_some(job)
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let owner = self.owner_of(pod);
        let gone = matches!(change, Change::Deleted(_));
        let tracked = |pod: &Pod| pods::is_terminal(pod) && view::has_finalizer(pod);
        let before = match change {
            Change::Deleted(_) => tracked(pod),
            _ => change.old().is_some_and(|old| tracked(old)),
        };
        if before != (tracked(pod) && !gone) {
            let event = if before { "delete" } else { "add" };
            self.context.metrics().add(&JOB_PODS_TRACKED, &[event], 1);
        }
        if gone || !view::has_finalizer(pod) {
            self.releasing().remove(pod.metadata.uid.as_deref().unwrap_or_default());
        }
        if let (Some(job), Some(uid)) = (&owner, &pod.metadata.uid) {
            let key = Key::of(job.as_ref());
            if matches!(change, Change::Added(_)) && !pods::is_terminating(pod) {
                self.expectations.creation_observed(&key);
            }
            if gone || pods::is_terminating(pod) {
                self.expectations.deletion_observed(&key, uid);
            }
            if (gone || !view::has_finalizer(pod))
                && let Some(memory) = self.memory().get_mut(&key)
            {
                memory.released.remove(uid);
            }
        }
        if let Change::Modified { old, .. } = change
            && owner::controller_of(&old.metadata) != owner::controller_of(&pod.metadata)
            && let Some(previous) = self.owner_of(old)
        {
            self.queue.add(Key::of(previous.as_ref()));
        }
        match owner {
            Some(job) => {
                if view::is_finished(&job) && !gone {
                    self.release_later(pod);
                }
                let size = job.spec.as_ref().and_then(|spec| spec.parallelism).unwrap_or(1);
                add_paced(&self.queue, Key::of(job.as_ref()), usize::try_from(size).unwrap_or(0));
            }
            None if gone => {}
            None => {
                let controlled = owner::controller_of(&pod.metadata);
                if controlled.is_none_or(|by| by.kind == "Job") {
                    self.release_later(pod);
                }
                if controlled.is_none() {
                    for job in self.jobs.list_namespace(&pod.namespace().unwrap_or_default()) {
                        if owner::selects(selector(&job).as_ref(), &pod.metadata) {
                            self.queue.add(Key::of(job.as_ref()));
                        }
                    }
                }
            }
        }
    }

    /// Takes the finalizer off a Pod whose Job is gone or has finished.
    async fn sync_orphan(&self, namespace: &str, name: &str) -> Result<(), SyncError> {
        let Some(pod) = self.pods.get(namespace, name) else {
            return Ok(());
        };
        match owner::controller_of(&pod.metadata) {
            Some(reference) if reference.kind == "Job" => {
                let known = self.jobs.get(namespace, &reference.name).map(|job| Job::clone(&job));
                let ours = |job: &Job| job.metadata.uid.as_deref() == Some(&reference.uid);
                let job = match known.filter(ours) {
                    Some(known) => Some(known),
                    None => {
                        // Ask the API: a Job that the cache does not have yet is not gone.
                        let api: Api<Job> = Api::namespaced(self.context.client.clone(), namespace);
                        or_absent(api.get(&reference.name).await)?.filter(ours)
                    }
                };
                let alive = job.is_some_and(|job| !view::is_finished(&job) || is_foreign(&job));
                if alive {
                    return Ok(());
                }
            }
            Some(_) => return Ok(()),
            None => {
                let adoptable = self.jobs.list_namespace(namespace).iter().any(|job| {
                    !view::is_finished(job)
                        && job.metadata.deletion_timestamp.is_none()
                        && owner::selects(selector(job).as_ref(), &pod.metadata)
                });
                if adoptable {
                    return Ok(());
                }
            }
        }
        self.remove_finalizer(&pod).await?;
        Ok(())
    }

    async fn sync(&self, key: Key) -> Result<(), SyncError> {
        let Some(job) = self.jobs.get_key(&key) else {
            self.expectations.forget(&key);
            self.memory().remove(&key);
            return Ok(());
        };
        if is_foreign(&job) {
            return Ok(());
        }
        if view::is_finished(&job) {
            self.memory().remove(&key);
            return Ok(());
        }
        let mode = job.spec.as_ref().and_then(|spec| spec.completion_mode.as_deref());
        if !matches!(mode, None | Some("NonIndexed" | "Indexed")) {
            let message = "Skipped Job sync because completion mode is unknown";
            self.context
                .recorder
                .event(job.as_ref(), EventType::Warning, "UnknownCompletionMode", message);
            return Ok(());
        }
        let may_act = self.expectations.satisfied(&key);
        let (released, failures, waits, current) = {
            let mut memory = self.memory();
            let memory = memory.entry(key.clone()).or_default();
            let current = memory
                .written
                .as_ref()
                .is_none_or(|(uid, written)| *uid != job.metadata.uid || version(&job) >= *written);
            (memory.released.clone(), memory.failures, memory.waits.clone(), current)
        };
        if !current {
            // The change we wait for is on its way.
            return Ok(());
        }
        let (began, mut action) = (Instant::now(), "reconciling");
        let seen = (may_act, released, failures, waits);
        let done = self.round(&key, &job, seen, &mut action).await;
        let result = if done.is_ok() { "success" } else { "error" };
        let (metrics, labels) = (self.context.metrics(), [mode.unwrap_or("NonIndexed"), result, action]);
        metrics.add(&JOB_SYNCS, &labels, 1);
        metrics.took(&JOB_SYNC_TIME, &labels, began.elapsed());
        done
    }

    /// Looks at a Job and does what is to be done; `action` becomes what that was.
    async fn round(
        &self,
        key: &Key,
        job: &Job,
        (may_act, released, failures, waits): (bool, HashSet<String>, Option<Failures>, Option<Waits>),
        action: &mut &'static str,
    ) -> Result<(), SyncError> {
        let pods = self.claim(job).await?;
        let now = self.context.clock.now();
        let view = View::new(job, pods, &released);
        let waits = waiting(waits, &view, now);
        if let Some(memory) = self.memory().get_mut(key) {
            memory.waits = Some(waits.clone());
        }
        let mut round = Round {
            status: job.status.clone().unwrap_or_default(),
            active: count(view.active.len()),
            ready: count(view.ready),
            terminating: count(view.terminating),
            failures: after(failures, &view, now),
            waits,
            ending: None,
            action,
        };
        if round.status.start_time.is_none() && !view::is_suspended(&view.spec) {
            round.status.start_time = Some(self.context.clock.time());
        }
        let verdict = view.verdict(job, round.status.start_time.as_ref(), now);
        let managed = match verdict {
            Some(ending) => self.stop(key, job, &view, &mut round, may_act, ending).await,
            None => {
                if let Some(left) = view.until_deadline(round.status.start_time.as_ref(), now) {
                    self.queue.add_after(key.clone(), pods::delay(left));
                }
                self.go_on(key, job, &view, &mut round, may_act, now).await
            }
        };
        round.status.active = Some(round.active).filter(|number| *number != 0);
        round.status.ready = Some(round.ready.max(0));
        round.status.terminating = Some(round.terminating);
        *action = round.action;
        self.keep_books(key, job, &view, round, now).await?;
        managed
    }

    async fn claim(&self, job: &Job) -> Result<Vec<Arc<Pod>>, SyncError> {
        let namespace = job.namespace().unwrap_or_default();
        let mut candidates = self.pods.by_index(BY_OWNER, &job.uid().unwrap_or_default());
        candidates.extend(self.pods.by_index(BY_OWNER, &pods::orphans(&namespace)));
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let selector = selector(job);
        let claimer = Claimer {
            api: &api,
            reference: owner::controller_ref(job),
            deleting: job.metadata.deletion_timestamp.is_some(),
            selector: selector.as_ref(),
            also: &|_| true,
            finalizers: &[FINALIZER],
        };
        let client = self.context.client.clone();
        let claimed = claimer
            .claim(candidates, || async {
                let api: Api<Job> = Api::namespaced(client, &namespace);
                let fresh = or_absent(api.get(&job.name_any()).await)?;
                Ok(fresh.is_some_and(|fresh| {
                    fresh.metadata.uid == job.metadata.uid && fresh.metadata.deletion_timestamp.is_none()
                }))
            })
            .await?;
        Ok(claimed)
    }

    /// Ends what still runs of a Job that is decided.
    async fn stop(
        &self,
        key: &Key,
        job: &Job,
        view: &View,
        round: &mut Round,
        may_act: bool,
        ending: JobCondition,
    ) -> Result<(), SyncError> {
        let control = PodControl {
            client: &self.context.client,
            recorder: &self.context.recorder,
        };
        let deletions = view.active.iter().map(|pod| control.delete(job, pod));
        let outcomes = futures::future::join_all(deletions).await;
        let mut failure = None;
        for (pod, outcome) in view.active.iter().zip(outcomes) {
            match outcome {
                Ok(_) => {
                    round.active -= 1;
                    round.terminating += 1;
                    round.ready -= i32::from(pods::is_ready(pod));
                }
                Err(error) => failure = Some(error),
            }
        }
        if may_act && failure.is_none() {
            round.ending = Some(ending);
        } else if !may_act {
            // Pods that the cache does not show yet may still run: look again when it does.
            tracing::debug!(%key, "the Job is decided, waiting for the cache to show all its Pods");
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn go_on(
        &self,
        key: &Key,
        job: &Job,
        view: &View,
        round: &mut Round,
        may_act: bool,
        now: Timestamp,
    ) -> Result<(), SyncError> {
        let acted = may_act && job.metadata.deletion_timestamp.is_none();
        let outcome = if acted {
            self.manage(key, job, view, round).await
        } else {
            Ok(())
        };
        if view.is_complete(round.active) {
            round.ending = Some(view::new_condition(
                "SuccessCriteriaMet",
                "CompletionsReached",
                "Reached expected number of succeeded pods",
                now,
            ));
        } else if acted {
            let suspended = view::is_suspended(&view.spec);
            if track::note_suspension(&mut round.status, suspended, now) {
                let (reason, message) = if suspended {
                    ("Suspended", "Job suspended")
                } else {
                    ("Resumed", "Job resumed")
                };
                self.context.recorder.event(job, EventType::Normal, reason, message);
            }
        }
        outcome
    }

    /// Returns whether the finalizer is off.
    async fn remove_finalizer(&self, pod: &Pod) -> kube::Result<bool> {
        if !view::has_finalizer(pod) {
            return Ok(true);
        }
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        // The cache is almost always right; only a conflict makes us read.
        let mut known = Some(Pod::clone(pod));
        let name = pod.name_any();
        retry_on_conflict(|| {
            let cached = known.take();
            let (api, name) = (&api, &name);
            async move {
                let current = match cached {
                    Some(pod) => pod,
                    None => match or_absent(api.get(name).await)? {
                        Some(current) if current.metadata.uid == pod.metadata.uid => current,
                        _ => return Ok(()),
                    },
                };
                let kept: Vec<&String> = current
                    .finalizers()
                    .iter()
                    .filter(|finalizer| *finalizer != FINALIZER)
                    .collect();
                if kept.len() == current.finalizers().len() {
                    return Ok(());
                }
                let patch = json!({"metadata": {
                    "uid": current.metadata.uid,
                    "resourceVersion": current.metadata.resource_version,
                    "finalizers": kept,
                }});
                let params = PatchParams::default();
                or_absent(api.patch(name, &params, &Patch::Merge(patch)).await)?;
                Ok(())
            }
        })
        .await?;
        Ok(true)
    }

    /// Notes finished Pods, lets them go, counts them, and ends the Job if that was all.
    async fn keep_books(
        &self,
        key: &Key,
        job: &Job,
        view: &View,
        mut round: Round,
        now: Timestamp,
    ) -> Result<(), SyncError> {
        let mut tracked = view.tracked.clone();
        track::count(&mut round.status, &tracked);
        let (release, more) = track::note(job, &mut round.status, view, round.ending.as_ref());
        if let Some(ending) = &round.ending {
            track::announce(&mut round.status, ending);
        }
        let mut stored = Job::clone(job);
        if let Some(ending) = round.ending.as_ref().filter(|_| !more)
            && round.active == 0
            && round.terminating == 0
        {
            let ending = ending.clone();
            return self.end(key, &mut stored, round.status, &ending, &release, now).await;
        }
        if release.is_empty() && round.ending.is_none() && self.may_wait(key, &stored, &round.status) {
            // No Pod has ended that is not in the status.
            if let Some(memory) = self.memory().get_mut(key) {
                memory.failures = Some(round.failures);
            }
            return Ok(());
        }
        self.write(key, &mut stored, &round.status).await?;
        if let Some(memory) = self.memory().get_mut(key) {
            memory.failures = Some(round.failures);
        }
        let removals = release.iter().map(|pod| self.remove_finalizer(pod));
        let outcomes = futures::future::join_all(removals).await;
        let mut failure = None;
        for (pod, outcome) in release.iter().zip(outcomes) {
            let uid = pod.uid().unwrap_or_default();
            match outcome {
                Ok(_) => {
                    tracked.remove(&uid);
                    // If the cache shows it already there is nothing to remember.
                    let shown = self
                        .pods
                        .get(&key.namespace, &pod.name_any())
                        .is_none_or(|pod| !view::has_finalizer(&pod));
                    if let Some(memory) = self.memory().get_mut(key).filter(|_| !shown) {
                        memory.released.insert(uid);
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        track::count(&mut round.status, &tracked);
        let mut last = None;
        if let Some(ending) = round.ending.as_ref().filter(|_| !more && failure.is_none()) {
            last = track::finish(&mut round.status, ending, now);
        }
        self.write(key, &mut stored, &round.status).await?;
        if more {
            self.queue.add(key.clone());
        }
        if let Some(last) = last {
            self.say_ended(job, &round.status, last);
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Whether nothing but the ready count differs, and that may wait.
    fn may_wait(&self, key: &Key, stored: &Job, status: &JobStatus) -> bool {
        let before = stored.status.clone().unwrap_or_default();
        let only_ready = before.ready != status.ready
            && before
                == JobStatus {
                    ready: before.ready,
                    ..status.clone()
                };
        let mut memory = self.memory();
        let Some(memory) = memory.get_mut(key) else {
            return false;
        };
        if !only_ready {
            memory.ready_due = None;
            return false;
        }
        let now = Instant::now();
        let due = memory.ready_due.unwrap_or(now + READY_PAUSE);
        memory.ready_due = Some(due).filter(|due| *due > now);
        if memory.ready_due.is_some() {
            self.queue.add_after(key.clone(), due.saturating_duration_since(now));
        }
        memory.ready_due.is_some()
    }

    /// Counts the last Pods and ends the Job in one write, then lets the Pods go.
    async fn end(
        &self,
        key: &Key,
        stored: &mut Job,
        mut status: JobStatus,
        ending: &JobCondition,
        release: &[Arc<Pod>],
        now: Timestamp,
    ) -> Result<(), SyncError> {
        track::count_all(&mut status);
        let last = track::finish(&mut status, ending, now);
        let uids: Vec<String> = release.iter().filter_map(|pod| pod.uid()).collect();
        self.releasing().extend(uids.iter().cloned());
        if let Err(error) = self.write(key, stored, &status).await {
            let mut releasing = self.releasing();
            for uid in &uids {
                releasing.remove(uid);
            }
            return Err(error);
        }
        if let Some(last) = last {
            self.say_ended(stored, &status, last);
        }
        let removals = release.iter().map(|pod| self.remove_finalizer(pod));
        let outcomes = futures::future::join_all(removals).await;
        for (pod, outcome) in release.iter().zip(outcomes) {
            let known = self.pods.get(&key.namespace, &pod.name_any());
            let shown = known.is_none_or(|known| known.uid() != pod.uid() || !view::has_finalizer(&known));
            if shown || outcome.is_err() {
                self.releasing().remove(pod.metadata.uid.as_deref().unwrap_or_default());
            }
            if let Err(error) = outcome {
                tracing::debug!(%key, %error, "cannot let a Pod of an ended Job go yet, will retry");
                self.release_later(pod);
            }
        }
        Ok(())
    }

    fn say_ended(&self, job: &Job, status: &JobStatus, last: JobCondition) {
        let say = |kind, reason: &str, message: String| self.context.recorder.event(job, kind, reason, message);
        let text = |value: Option<String>| value.unwrap_or_default();
        let result = if last.type_ == "Complete" {
            "succeeded"
        } else {
            "failed"
        };
        let labels = [mode(job), result, last.reason.as_deref().unwrap_or_default()];
        self.context.metrics().add(&JOBS_FINISHED, &labels, 1);
        if last.type_ != "Complete" {
            say(EventType::Warning, &text(last.reason), text(last.message));
            return;
        }
        let completions = job.spec.as_ref().and_then(|spec| spec.completions);
        if completions.is_some_and(|wanted| status.succeeded.unwrap_or(0) > wanted) {
            let message = "Too many succeeded pods running after completion count reached";
            say(EventType::Warning, "TooManySucceededPods", message.into());
        }
        say(EventType::Normal, "Completed", "Job completed".into());
    }

    /// Counts what is new in the counters of a status that was written in the place of `stored`'s.
    fn count_finished(&self, stored: &Job, status: &JobStatus) {
        let before = stored.status.clone().unwrap_or_default();
        let spec = stored.spec.as_ref();
        let completions = spec.and_then(|spec| spec.completions).unwrap_or(i32::MAX);
        let number = |text: &Option<String>| match text {
            Some(text) => indexes::Indexes::parse(text, completions).len(),
            None => 0,
        };
        let more = |before: i32, now: i32| usize::try_from(now.saturating_sub(before)).unwrap_or(0);
        let (metrics, mode) = (self.context.metrics(), mode(stored));
        let mut good = more(before.succeeded.unwrap_or(0), status.succeeded.unwrap_or(0));
        if mode == "Indexed" {
            let limit = match spec.and_then(|spec| spec.backoff_limit_per_index) {
                Some(_) => "perIndex",
                None => "global",
            };
            good = more(number(&before.completed_indexes), number(&status.completed_indexes));
            let bad = more(number(&before.failed_indexes), number(&status.failed_indexes));
            for (result, number) in [("succeeded", good), ("failed", bad)] {
                if number > 0 {
                    metrics.add(&JOB_INDEXES_FINISHED, &[result, limit], number);
                }
            }
        }
        let bad = more(before.failed.unwrap_or(0), status.failed.unwrap_or(0));
        for (result, number) in [("succeeded", good), ("failed", bad)] {
            if number > 0 {
                metrics.add(&JOB_PODS_FINISHED, &[mode, result], number);
            }
        }
    }

    /// Writes the status if it differs from what is stored.
    async fn write(&self, key: &Key, stored: &mut Job, status: &JobStatus) -> Result<(), SyncError> {
        if stored.status.as_ref() == Some(status) {
            return Ok(());
        }
        let mut changed = stored.clone();
        changed.status = Some(status.clone());
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let written = api.replace_status(&key.name, &PostParams::default(), &changed).await;
        if let Some(written) = or_absent(written)? {
            self.count_finished(stored, status);
            if let Some(memory) = self.memory().get_mut(key) {
                memory.written = Some((written.metadata.uid.clone(), version(&written)));
            }
            *stored = written;
        }
        Ok(())
    }
}

/// One sync of one Job.
struct Round {
    status: JobStatus,
    active: i32,
    ready: i32,
    terminating: i32,
    failures: Failures,
    waits: Waits,
    /// `FailureTarget` or `SuccessCriteriaMet`, once the Job is decided.
    ending: Option<JobCondition>,
    /// What was done, as it is counted.
    action: &'static str,
}

/// How a Job is complete, as it is counted.
fn mode(job: &Job) -> &'static str {
    match job.spec.as_ref().is_some_and(view::is_indexed) {
        true => "Indexed",
        false => "NonIndexed",
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn selector(job: &Job) -> Option<kube::core::Selector> {
    owner::selector(job.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
}

/// Since when a failed Pod's replacement waits. What failed before this process saw the Job is judged by what its node said
/// of the time; what is seen to fail fails now.
fn waiting(before: Option<Waits>, view: &View, now: Timestamp) -> Waits {
    let seen = Instant::now();
    let since = |index: &i32, pod: &Pod| {
        let ago = match &before {
            None => pods::delay(now.duration_since(view::finished_at(pod))).min(view::MAX_BACKOFF),
            Some(known) => match known.get(index) {
                Some((uid, since)) if Some(uid) == pod.metadata.uid.as_ref() => return *since,
                _ => Duration::ZERO,
            },
        };
        seen.checked_sub(ago).unwrap_or(seen)
    };
    let held_back = view.held_back.iter();
    held_back
        .map(|(index, pod)| (*index, (pod.uid().unwrap_or_default(), since(index, pod))))
        .collect()
}

/// The failures in a row after what was newly seen: a success ends the row. `before`: `None` as long as
/// nothing that was seen of the Job has been noted.
fn after(before: Option<Failures>, view: &View, now: Timestamp) -> Failures {
    let ends = |pods: &[Arc<Pod>]| -> Vec<Timestamp> { pods.iter().map(|pod| view::finished_at(pod)).collect() };
    let good = ends(&view.newly_succeeded).into_iter().max();
    let bad = ends(&view.newly_failed);
    let row: Vec<Timestamp> = match good {
        Some(good) => bad.into_iter().filter(|end| *end > good).collect(),
        None => bad,
    };
    let base = if good.is_some() { None } else { before }.unwrap_or_default();
    let since = row.iter().max().map(|last| {
        let seen = Instant::now();
        // What others saw before us may be long ago; what we see happens now.
        let ago = match before {
            None => pods::delay(now.duration_since(*last)).min(view::MAX_BACKOFF),
            Some(_) => Duration::ZERO,
        };
        seen.checked_sub(ago).unwrap_or(seen)
    });
    Failures {
        count: base.count.saturating_add(count(row.len())),
        since: since.or(base.since),
    }
}

#[cfg(test)]
mod tests;
