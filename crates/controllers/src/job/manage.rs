//! Making and taking away a Job's Pods.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodTemplateSpec};
use kube::ResourceExt;
use sampan_client::{Key, is_terminating_namespace, owner, slow_start_batch};

use super::policy::{self, Verdict};
use super::view::{self, FINALIZER, View};
use super::{Controller, Round, Waits, count, indexes};
use crate::SyncError;
use crate::metrics::JOB_PODS_CREATED;
use crate::pods::{self, PodControl};

/// The most Pods made or deleted in one sync.
const BURST: usize = 500;
const COMPLETION_INDEX: &str = "JOB_COMPLETION_INDEX";

impl Controller {
    /// Makes or takes away Pods until as many run as should.
    pub(super) async fn manage(&self, key: &Key, job: &Job, view: &View, round: &mut Round) -> Result<(), SyncError> {
        round.action = "tracking";
        let wanted = if view::is_suspended(&view.spec) {
            0
        } else {
            view.wanted(round.active)
        };
        let surplus = usize::try_from(round.active - wanted).unwrap_or(0);
        let mut gone = if wanted == 0 {
            view.active.clone()
        } else {
            view.surplus(surplus)
        };
        gone.truncate(BURST);
        if !gone.is_empty() {
            round.action = "pods_deleted";
            return self.take_away(key, job, round, &gone).await;
        }
        let waiting = if view::replaces_failed_only(&view.spec) {
            round.terminating
        } else {
            0
        };
        let missing = usize::try_from(wanted - waiting - round.active).unwrap_or(0).min(BURST);
        if missing == 0 {
            return Ok(());
        }
        round.action = "pods_created";
        let per_index = view.spec.backoff_limit_per_index.is_some();
        if !per_index && let Some(since) = round.failures.since {
            let left = view::back_off(round.failures.count, since.elapsed());
            if !left.is_zero() {
                self.queue.add_after(key.clone(), left);
                return Ok(());
            }
        }
        let mut plans: Vec<Option<i32>> = vec![None; missing];
        if view::is_indexed(&view.spec) {
            plans = self.due_indexes(key, view, missing, &round.waits);
        }
        self.create(key, job, view, round, &plans).await
    }

    /// The free indexes whose back-off has passed; the queue brings the Job back for the others.
    fn due_indexes(&self, key: &Key, view: &View, missing: usize, waits: &Waits) -> Vec<Option<i32>> {
        let mut soonest: Option<std::time::Duration> = None;
        let due = view
            .free_indexes(missing)
            .into_iter()
            .filter(|index| {
                let Some(last) = view.held_back.get(index) else {
                    return true;
                };
                let (counted, ignored) = view::earlier_failures(last);
                let waited = waits
                    .get(index)
                    .map_or_else(Default::default, |(_, since)| since.elapsed());
                let left = view::back_off(counted + ignored + 1, waited);
                if !left.is_zero() {
                    soonest = Some(soonest.map_or(left, |known| known.min(left)));
                }
                left.is_zero()
            })
            .map(Some)
            .collect();
        if let Some(left) = soonest {
            self.queue.add_after(key.clone(), left);
        }
        due
    }

    async fn create(
        &self,
        key: &Key,
        job: &Job,
        view: &View,
        round: &mut Round,
        plans: &[Option<i32>],
    ) -> Result<(), SyncError> {
        if plans.is_empty() {
            return Ok(());
        }
        let control = PodControl {
            client: &self.context.client,
            recorder: &self.context.recorder,
        };
        self.expectations.expect_creations(key, plans.len());
        let failed = AtomicUsize::new(0);
        let (made, error) = slow_start_batch(plans.len(), 1, |number| {
            let pod = new_pod(job, view, plans.get(number).copied().flatten());
            let (control, failed) = (&control, &failed);
            async move {
                match control.create(job, &pod).await {
                    Err(error) if is_terminating_namespace(&error) => Ok(()),
                    Ok(_) => Ok(()),
                    Err(error) => {
                        failed.fetch_add(1, Ordering::Relaxed);
                        Err(error)
                    }
                }
            }
        })
        .await;
        self.count_created(view, round, made, failed.into_inner());
        self.expectations
            .creations_observed(key, plans.len().saturating_sub(made));
        round.active += count(made);
        error.map_or(Ok(()), |error| Err(error.into()))
    }

    fn count_created(&self, view: &View, round: &Round, made: usize, failed: usize) {
        let ended_badly = round.status.failed.unwrap_or(0) > 0 || !view.newly_failed.is_empty();
        let reason = if view.spec.pod_replacement_policy.as_deref() == Some("Failed") && ended_badly {
            "recreate_failed"
        } else if ended_badly || round.terminating > 0 {
            "recreate_terminating_or_failed"
        } else {
            "new"
        };
        for (status, number) in [("succeeded", made), ("failed", failed)] {
            if number > 0 {
                let labels = [reason, status];
                self.context.metrics().add(&JOB_PODS_CREATED, &labels, number);
            }
        }
    }

    /// Takes Pods away without counting them as failed: their finalizer goes first.
    async fn take_away(&self, key: &Key, job: &Job, round: &mut Round, gone: &[Arc<Pod>]) -> Result<(), SyncError> {
        let control = PodControl {
            client: &self.context.client,
            recorder: &self.context.recorder,
        };
        self.expectations
            .expect_deletions(key, gone.iter().filter_map(|pod| pod.uid()));
        let outcomes = futures::future::join_all(gone.iter().map(|pod| async {
            let outcome = match self.remove_finalizer(pod).await {
                Ok(_) => control.delete(job, pod).await,
                Err(error) => Err(error),
            };
            if !matches!(outcome, Ok(true)) {
                let uid = pod.uid().unwrap_or_default();
                self.expectations.deletion_observed(key, &uid);
            }
            outcome
        }))
        .await;
        let mut failure = None;
        for (pod, outcome) in gone.iter().zip(outcomes) {
            match outcome {
                Ok(_) => {
                    round.active -= 1;
                    round.terminating += 1;
                    round.ready -= i32::from(pods::is_ready(pod));
                    let uid = pod.uid().unwrap_or_default();
                    if let Some(memory) = self.memory().get_mut(key) {
                        memory.released.insert(uid);
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// A Pod for the Job, with its place among the others where it has one.
fn new_pod(job: &Job, view: &View, index: Option<i32>) -> Pod {
    let mut template: PodTemplateSpec = view.spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    let finalizers = meta.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|name| name == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    let mut prefix = job.name_any();
    if let Some(index) = index {
        let text = index.to_string();
        meta.labels
            .get_or_insert_default()
            .insert(indexes::INDEX.into(), text.clone());
        let annotations = meta.annotations.get_or_insert_default();
        annotations.insert(indexes::INDEX.into(), text);
        if view.spec.backoff_limit_per_index.is_some() {
            let (counted, ignored) = failures_before(job, view, index);
            annotations.insert(view::FAILURES.into(), counted.to_string());
            if ignored > 0 {
                annotations.insert(view::IGNORED_FAILURES.into(), ignored.to_string());
            }
        }
        let spec = template.spec.get_or_insert_default();
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            add_index(container);
        }
        prefix = format!("{prefix}-{index}");
        spec.hostname = Some(prefix.clone());
    }
    pods::from_template(
        &template,
        &job.namespace().unwrap_or_default(),
        &prefix,
        owner::controller_ref(job),
    )
}

/// How often the index has failed so far: (counted, ignored).
fn failures_before(job: &Job, view: &View, index: i32) -> (i32, i32) {
    let Some(last) = view.held_back.get(&index) else {
        return (0, 0);
    };
    let (counted, ignored) = view::earlier_failures(last);
    if policy::judge(job, last) == Verdict::Ignore {
        (counted, ignored + 1)
    } else {
        (counted + 1, ignored)
    }
}

fn add_index(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|known| known.name == COMPLETION_INDEX) {
        return;
    }
    env.push(EnvVar {
        name: COMPLETION_INDEX.into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.labels['{}']", indexes::INDEX),
            }),
            ..Default::default()
        }),
    });
}
