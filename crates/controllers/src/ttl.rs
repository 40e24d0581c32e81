//! Deletes finished Jobs when their `ttlSecondsAfterFinished` has passed.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, DeleteParams, Preconditions};
use sampan_client::{Change, Key, WorkQueue, or_absent};

use crate::metrics::JOB_EXPIRY;
use crate::pods::delay;
use crate::{Context, SyncError};

pub(crate) fn start(context: Context) {
    let jobs = context.informers.of::<Job>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let changed = queue.clone();
    jobs.on_change(move |change| {
        let job = change.object();
        if !matches!(change, Change::Deleted(_)) && expires(job).is_some() {
            changed.add(Key::of(job.as_ref()));
        }
    });
    let ready = {
        let jobs = jobs.clone();
        async move { jobs.synced().await }
    };
    let state = Arc::new((context.clone(), queue.clone()));
    context.run(&queue, ready, move |key| {
        let state = Arc::clone(&state);
        async move { sync(&state.0, &state.1, key).await }
    });
}

/// When a Job may go: after its end, if it has ended and says so.
fn expires(job: &Job) -> Option<Timestamp> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let ended = job
        .status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    let at = ended.last_transition_time.as_ref()?.0;
    at.checked_add(SignedDuration::from_secs(ttl.into())).ok()
}

async fn sync(context: &Context, queue: &WorkQueue<Key>, key: Key) -> Result<(), SyncError> {
    let api: Api<Job> = Api::namespaced(context.client.clone(), &key.namespace);
    // Asked anew: the time to live may just have been prolonged.
    let Some(job) = or_absent(api.get(&key.name).await)? else {
        return Ok(());
    };
    let Some(expires) = expires(&job) else {
        return Ok(());
    };
    let left = expires.duration_since(context.clock.now());
    if left.is_positive() {
        queue.add_after(key, delay(left));
        return Ok(());
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: job.metadata.uid.clone(),
            resource_version: job.metadata.resource_version.clone(),
        }),
        ..DeleteParams::foreground()
    };
    if or_absent(api.delete(&key.name, &params).await)?.is_some() {
        let late = context.clock.now().duration_since(expires);
        context.metrics().took(&JOB_EXPIRY, &[], delay(late));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};
    use kube::api::ObjectMeta;
    use sampan_client::Clock;

    use super::*;
    use crate::testing::Cluster;

    #[tokio::test(start_paused = true)]
    async fn finished_jobs_go_in_time() {
        let cluster = Cluster::start(&["ttl-after-finished-controller"]);
        let api = &cluster.api;
        let mut job = Job {
            metadata: ObjectMeta {
                name: Some("j".into()),
                namespace: Some("ns".into()),
                ..Default::default()
            },
            spec: Some(JobSpec {
                ttl_seconds_after_finished: Some(60),
                ..Default::default()
            }),
            ..Default::default()
        };
        api.create(&job);
        job.metadata.name = Some("done".into());
        job.status = Some(JobStatus {
            conditions: Some(vec![JobCondition {
                type_: "Complete".into(),
                status: "True".into(),
                last_transition_time: Some(cluster.clock.time()),
                ..Default::default()
            }]),
            ..Default::default()
        });
        api.create(&job);
        let dying = || {
            api.get::<Job>("ns", "done")
                .is_none_or(|job| job.metadata.deletion_timestamp.is_some())
        };
        tokio::time::sleep(Duration::from_secs(55)).await;
        assert!(!dying());
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(dying());
        assert!(api.get::<Job>("ns", "j").unwrap().metadata.deletion_timestamp.is_none());
    }
}
