//! ReplicaSets, and ReplicationControllers by the same code: as many Pods of a template as asked for.
//!
//! Invariants: Pods are only made or deleted when the cache shows everything asked for before (expectations); Pods that
//! match and belong to nobody are adopted, Pods that no longer match are released; a failing API is approached by slow
//! start; the status is written only when it differs.

mod kind;
mod rank;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use sampan_client::owner::{self, Claimer};
use sampan_client::{
    Change, Expectations, Informer, Key, WorkQueue, is_not_found, is_terminating_namespace, or_absent, slow_start_batch,
};

use crate::pods::{self, BY_OWNER, PodControl};
use crate::{Context, SyncError, add_paced};
use kind::{Condition, Replicated, Status};

/// The most Pods made or deleted in one sync.
const BURST: usize = 500;
const FAILURE: &str = "ReplicaFailure";

pub(crate) fn start(context: Context) {
    start_for::<ReplicaSet>(context);
}

pub(crate) fn start_replication_controllers(context: Context) {
    start_for::<ReplicationController>(context);
}

struct Controller<R> {
    context: Context,
    sets: Informer<R>,
    pods: Informer<Pod>,
    queue: WorkQueue<Key>,
    expectations: Expectations<Key>,
}

fn start_for<R: Replicated>(context: Context) {
    let sets = context.informers.of::<R>();
    let pods = context.informers.of::<Pod>();
    sets.add_index(BY_OWNER, pods::owner_keys);
    pods.add_index(BY_OWNER, pods::owner_keys);
    let controller = Arc::new(Controller {
        context: context.clone(),
        sets: sets.clone(),
        pods: pods.clone(),
        queue: WorkQueue::default(),
        expectations: Expectations::default(),
    });
    let this = Arc::clone(&controller);
    sets.on_change(move |change| {
        let key = Key::of(change.object().as_ref());
        if matches!(change, Change::Deleted(_)) {
            this.expectations.forget(&key);
        }
        this.queue.add(key);
    });
    let this = Arc::clone(&controller);
    pods.on_change(move |change| this.pod_changed(change));
    let ready = async move {
        sets.synced().await;
        pods.synced().await;
    };
    let queue = controller.queue.clone();
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(key).await }
    });
}

impl<R: Replicated> Controller<R> {
    /// The set that controls `pod`, if it is still the same one.
    fn owner_of(&self, pod: &Pod) -> Option<Arc<R>> {
        let name = owner::controller_name::<R>(&pod.metadata)?;
        let set = self.sets.get(&pod.namespace().unwrap_or_default(), name)?;
        owner::is_controlled_by(&pod.metadata, set.meta().uid.as_deref()?).then_some(set)
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let owner = self.owner_of(pod);
        match change {
            Change::Added(_) if !pods::is_terminating(pod) => {
                if let Some(set) = &owner {
                    self.expectations.creation_observed(&Key::of(set.as_ref()));
                }
            }
            Change::Modified { old, new } => {
                let before = owner::controller_of(&old.metadata).map(|reference| &reference.uid);
                let after = owner::controller_of(&new.metadata).map(|reference| &reference.uid);
                if before != after
                    && let Some(previous) = self.owner_of(old)
                {
                    self.queue.add(Key::of(previous.as_ref()));
                }
                // The first sign of a deletion is the timestamp; the Pod itself may stay for long.
                if pods::is_terminating(new) {
                    self.deletion_seen(owner.as_ref(), new);
                }
            }
            Change::Deleted(_) | Change::Added(_) => self.deletion_seen(owner.as_ref(), pod),
        }
        if let Some(set) = owner {
            let size = usize::try_from(set.replicas()).unwrap_or(0);
            add_paced(&self.queue, Key::of(set.as_ref()), size);
        } else if owner::controller_of(&pod.metadata).is_none() && !matches!(change, Change::Deleted(_)) {
            // An orphan: whoever matches it may adopt it.
            for set in self.sets.list_namespace(&pod.namespace().unwrap_or_default()) {
                if owner::selects(set.selector().as_ref(), &pod.metadata) {
                    self.queue.add(Key::of(set.as_ref()));
                }
            }
        }
    }

    fn deletion_seen(&self, owner: Option<&Arc<R>>, pod: &Pod) {
        if let (Some(set), Some(uid)) = (owner, &pod.metadata.uid) {
            self.expectations.deletion_observed(&Key::of(set.as_ref()), uid);
        }
    }

    async fn sync(&self, key: Key) -> Result<(), SyncError> {
        let Some(set) = self.sets.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(());
        };
        let may_act = self.expectations.satisfied(&key);
        let now = self.context.clock.now();
        let uid = set.meta().uid.clone().unwrap_or_default();
        let deleting = set.meta().deletion_timestamp.is_some();
        let selector = set.selector();

        let owned = self.pods.by_index(BY_OWNER, &uid);
        let terminating = owned
            .iter()
            .filter(|pod| pods::is_terminating(pod) && !pods::is_terminal(pod))
            .count();
        let mut candidates = owned;
        candidates.extend(self.pods.by_index(BY_OWNER, &pods::orphans(&key.namespace)));
        candidates.retain(|pod| pods::is_active(pod));
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let claimer = Claimer {
            api: &api,
            reference: owner::controller_ref(set.as_ref()),
            deleting,
            selector: selector.as_ref(),
            also: &|_| true,
            finalizers: &[],
        };
        let active = claimer.claim(candidates, || self.still_alive(&key, &uid)).await?;

        let mut failure = None;
        if may_act && !deleting {
            failure = self.manage(&key, &set, &active, now).await.err();
        }
        let old = set.status();
        let status = status(&*set, &active, terminating, failure.as_ref(), now);
        let written = if status == old && set.meta().generation.unwrap_or(0) == old.observed_generation {
            Ok(())
        } else {
            self.write_status(&set, status).await
        };
        self.look_again_when_available(&key, &set, &active, now);
        match failure {
            Some(failure) => Err(failure.error),
            None => written,
        }
    }

    async fn still_alive(&self, key: &Key, uid: &str) -> kube::Result<bool> {
        let api: Api<R> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let fresh = or_absent(api.get(&key.name).await)?;
        Ok(fresh
            .is_some_and(|fresh| fresh.meta().uid.as_deref() == Some(uid) && fresh.meta().deletion_timestamp.is_none()))
    }

    /// Makes or deletes Pods until there are as many as asked for.
    async fn manage(&self, key: &Key, set: &R, active: &[Arc<Pod>], now: Timestamp) -> Result<(), Failure> {
        let wanted = usize::try_from(set.replicas()).unwrap_or(0);
        let control = PodControl {
            client: &self.context.client,
            recorder: &self.context.recorder,
        };
        if active.len() < wanted {
            let Some(template) = set.template() else {
                return Ok(());
            };
            let missing = (wanted - active.len()).min(BURST);
            let pod = pods::from_template(template, &key.namespace, &key.name, owner::controller_ref(set));
            self.expectations.expect_creations(key, missing);
            let (made, error) = slow_start_batch(missing, 1, |_| async {
                match control.create(set, &pod).await {
                    // Nothing can be made here any more, and nothing needs to be.
                    Err(error) if is_terminating_namespace(&error) => Ok(()),
                    other => other.map(|_| ()),
                }
            })
            .await;
            // What was not asked for after a failed batch will not be seen either.
            self.expectations.creations_observed(key, missing.saturating_sub(made));
            if let Some(error) = error {
                return Err(Failure::new("FailedCreate", error));
            }
        } else if active.len() > wanted {
            let surplus = (active.len() - wanted).min(BURST);
            let related = self.related(set, active);
            let chosen = rank::choose(active.to_vec(), &related, surplus, now);
            self.expectations
                .expect_deletions(key, chosen.iter().filter_map(|pod| pod.uid()));
            let outcomes = futures::future::join_all(chosen.iter().map(|pod| async {
                let outcome = control.delete(set, pod).await;
                if !matches!(outcome, Ok(true)) {
                    self.expectations.deletion_observed(key, &pod.uid().unwrap_or_default());
                }
                outcome
            }))
            .await;
            for outcome in outcomes {
                match outcome {
                    Err(error) if is_not_found(&error) => {}
                    Err(error) => return Err(Failure::new("FailedDelete", error)),
                    Ok(_) => {}
                }
            }
        }
        Ok(())
    }

    /// The active Pods of all sets under the same controller (a Deployment), this one's included.
    fn related(&self, set: &R, active: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let Some(controller) = owner::controller_of(set.meta()) else {
            return active.to_vec();
        };
        self.sets
            .by_index(BY_OWNER, &controller.uid)
            .iter()
            .filter_map(|sibling| sibling.meta().uid.as_deref())
            .flat_map(|uid| self.pods.by_index(BY_OWNER, uid))
            .filter(|pod| pods::is_active(pod))
            .collect()
    }

    async fn write_status(&self, set: &R, status: Status) -> Result<(), SyncError> {
        let mut changed = set.clone();
        changed.set_status(status);
        let api: Api<R> = Api::namespaced(self.context.client.clone(), &set.namespace().unwrap_or_default());
        let written = api
            .replace_status(&set.name_any(), &PostParams::default(), &changed)
            .await;
        or_absent(written)?;
        Ok(())
    }

    /// A ready Pod becomes available by time alone, without an event.
    fn look_again_when_available(&self, key: &Key, set: &R, active: &[Arc<Pod>], now: Timestamp) {
        let soonest = active
            .iter()
            .filter_map(|pod| pods::available_in(pod, set.min_ready_seconds(), now))
            .filter(SignedDuration::is_positive)
            .min();
        if let Some(left) = soonest {
            self.queue.add_after(key.clone(), pods::delay(left));
        }
    }
}

/// A write that failed, and what the status says about it.
struct Failure {
    reason: &'static str,
    message: String,
    error: SyncError,
}

impl Failure {
    fn new(reason: &'static str, error: kube::Error) -> Self {
        Failure {
            reason,
            message: pods::api_message(&error),
            error: error.into(),
        }
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// The status that the Pods show.
fn status<R: Replicated>(
    set: &R,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Status {
    let template_labels = set
        .template()
        .and_then(|template| template.metadata.as_ref()?.labels.clone())
        .unwrap_or_default();
    let labeled = |pod: &&Arc<Pod>| {
        let labels = pod.labels();
        template_labels
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
    };
    let mut conditions = set.status().conditions;
    let known = conditions.iter().position(|c| c.type_ == FAILURE);
    match (failure, known) {
        (None, Some(place)) => {
            conditions.remove(place);
        }
        (Some(failure), None) => conditions.push(Condition {
            type_: FAILURE.into(),
            status: "True".into(),
            reason: Some(failure.reason.into()),
            message: Some(failure.message.clone()),
            last_transition_time: Timestamp::from_second(now.as_second())
                .ok()
                .map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time),
        }),
        _ => {}
    }
    Status {
        replicas: count(active.len()),
        fully_labeled: count(active.iter().filter(labeled).count()),
        ready: count(active.iter().filter(|pod| pods::is_ready(pod)).count()),
        available: count(
            active
                .iter()
                .filter(|pod| pods::is_available(pod, set.min_ready_seconds(), now))
                .count(),
        ),
        terminating: R::COUNTS_TERMINATING.then(|| count(terminating)),
        observed_generation: set.meta().generation.unwrap_or(0),
        conditions,
    }
}

#[cfg(test)]
mod tests;
