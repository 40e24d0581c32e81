//! StatefulSets: Pods with names that stay, in order, each with its own claims.
//!
//! In order (`OrderedReady`) nothing is made or ended while a Pod before it is not available; in `Parallel` everything
//! is done at once. Updates replace the highest ordinal first, one at a time (or as many as may be unavailable, where the
//! strategy says so), and never those below the partition. This file looks and reports, [`act`] makes and ends Pods,
//! [`identity`] says who a Pod is and [`claims`] to whom its claims belong.

mod act;
mod claims;
mod identity;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use sampan_client::owner::{self, Claimer};
use sampan_client::{Change, Informer, Key, WorkQueue, or_absent};

use crate::history::{History, REVISION_HASH, surplus, template_of};
use crate::pods::{self, BY_OWNER};
use crate::{Context, SyncError};

struct Controller {
    context: Context,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
    queue: WorkQueue<Key>,
}

pub(crate) fn start(context: Context) {
    let sets = context.informers.of::<StatefulSet>();
    let pods = context.informers.of::<Pod>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let revisions = context.informers.of::<ControllerRevision>();
    pods.add_index(BY_OWNER, pods::owner_keys);
    revisions.add_index(BY_OWNER, pods::owner_keys);
    let queue: WorkQueue<Key> = WorkQueue::default();
    let controller = Arc::new(Controller {
        context: context.clone(),
        sets: sets.clone(),
        pods: pods.clone(),
        claims: claims.clone(),
        revisions: revisions.clone(),
        queue: queue.clone(),
    });
    let changed = queue.clone();
    sets.on_change(move |change| changed.add(Key::of(change.object().as_ref())));
    let (changed, known) = (queue.clone(), sets.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        let namespace = pod.namespace().unwrap_or_default();
        if let Change::Modified { old, new } = change
            && owner::controller_of(&old.metadata) != owner::controller_of(&new.metadata)
            && let Some(name) = owner::controller_name::<StatefulSet>(&old.metadata)
        {
            changed.add(Key::new(namespace.clone(), name));
        }
        if let Some(name) = owner::controller_name::<StatefulSet>(&pod.metadata) {
            changed.add(Key::new(namespace, name));
        } else if owner::controller_of(&pod.metadata).is_none() && !matches!(change, Change::Deleted(_)) {
            for set in known.list_namespace(&namespace) {
                if owner::selects(selector(&set).as_ref(), &pod.metadata) {
                    changed.add(Key::of(set.as_ref()));
                }
            }
        }
    });
    let ready = async move {
        sets.synced().await;
        pods.synced().await;
        claims.synced().await;
        revisions.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(&key).await }
    });
}

fn selector(set: &StatefulSet) -> Option<kube::core::Selector> {
    owner::selector(set.spec.as_ref().map(|spec| &spec.selector))
}

/// A set in the middle of a sync.
struct Round<'a> {
    set: &'a StatefulSet,
    now: Timestamp,
    ordered: bool,
    current: (String, PodTemplateSpec),
    update: (String, PodTemplateSpec),
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(set) = self.sets.get_key(key) else {
            return Ok(());
        };
        let Some(selector) = selector(&set) else {
            return Ok(());
        };
        let history = History {
            client: &self.context.client,
            revisions: &self.revisions,
            label: REVISION_HASH,
        };
        let known = history
            .claim(set.as_ref(), &selector, || self.still_alive(&set))
            .await?;
        let pods = self.claim_pods(&set, &selector).await?;
        let before = set.status.clone().unwrap_or_default();
        let mut collisions = before.collision_count.unwrap_or(0);
        let spec = set.spec.clone().unwrap_or_default();
        let update = history
            .current(set.as_ref(), &spec.template, &known, &mut collisions)
            .await?;
        let current = known
            .iter()
            .find(|revision| Some(revision.name_any()) == before.current_revision)
            .unwrap_or(&update);
        let versioned = |revision: &ControllerRevision| {
            let template = template_of(revision).unwrap_or_else(|| spec.template.clone());
            (revision.name_any(), template)
        };
        let round = Round {
            set: &set,
            now: self.context.clock.now(),
            ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
            current: versioned(current),
            update: versioned(&update),
        };
        let mut replaced = 0;
        let outcome = if set.metadata.deletion_timestamp.is_none() {
            self.act(&round, &pods, &mut replaced).await
        } else {
            Ok(())
        };
        let status = status(&round, &pods, collisions, replaced);
        let written = self.write_status(&set, status).await;
        let names: Vec<String> = known.iter().map(ResourceExt::name_any).collect();
        let in_use = |name: &str| {
            name == round.current.0 || name == round.update.0 || pods.iter().any(|pod| identity::revision(pod) == name)
        };
        let unused = names.iter().filter(|name| !in_use(name)).count();
        let truncated = history
            .truncate(
                &known,
                |revision| in_use(&revision.name_any()),
                surplus(unused, spec.revision_history_limit),
            )
            .await;
        outcome.and(written).and(truncated)?;
        let soonest = pods
            .iter()
            .filter_map(|pod| pods::available_in(pod, spec.min_ready_seconds.unwrap_or(0), round.now))
            .filter(SignedDuration::is_positive)
            .min();
        if let Some(left) = soonest {
            self.queue.add_after(key.clone(), pods::delay(left));
        }
        Ok(())
    }

    async fn still_alive(&self, set: &StatefulSet) -> kube::Result<bool> {
        let namespace = set.namespace().unwrap_or_default();
        let api: Api<StatefulSet> = Api::namespaced(self.context.client.clone(), &namespace);
        let fresh = or_absent(api.get(&set.name_any()).await)?;
        Ok(fresh
            .is_some_and(|fresh| fresh.metadata.uid == set.metadata.uid && fresh.metadata.deletion_timestamp.is_none()))
    }

    async fn claim_pods(&self, set: &StatefulSet, selector: &kube::core::Selector) -> Result<Vec<Arc<Pod>>, SyncError> {
        let namespace = set.namespace().unwrap_or_default();
        let name = set.name_any();
        let mut candidates = self.pods.by_index(BY_OWNER, &set.uid().unwrap_or_default());
        candidates.extend(self.pods.by_index(BY_OWNER, &pods::orphans(&namespace)));
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let claimer = Claimer {
            api: &api,
            reference: owner::controller_ref(set),
            deleting: set.metadata.deletion_timestamp.is_some(),
            selector: Some(selector),
            also: &|pod: &Pod| identity::ordinal(&name, &pod.name_any()).is_some(),
            finalizers: &[],
        };
        Ok(claimer.claim(candidates, || self.still_alive(set)).await?)
    }

    async fn write_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> Result<(), SyncError> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut changed = set.clone();
        changed.status = Some(status);
        let namespace = set.namespace().unwrap_or_default();
        let api: Api<StatefulSet> = Api::namespaced(self.context.client.clone(), &namespace);
        let written = api
            .replace_status(&set.name_any(), &PostParams::default(), &changed)
            .await;
        or_absent(written)?;
        Ok(())
    }
}

/// `replaced` Pods of older revisions have just been ended for the update.
fn status(round: &Round<'_>, pods: &[Arc<Pod>], collisions: i32, replaced: i32) -> StatefulSetStatus {
    let count = |check: &dyn Fn(&Pod) -> bool| {
        let number = pods.iter().filter(|pod| check(pod)).count();
        i32::try_from(number).unwrap_or(i32::MAX)
    };
    let of = |revision: &str| count(&|pod| !pods::is_terminating(pod) && identity::revision(pod) == revision);
    let seconds = round.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
    let ready = count(&|pod| pods::phase(pod) == "Running" && pods::is_ready(pod));
    let available =
        count(&|pod| pods::phase(pod) == "Running" && pods::is_available(pod, seconds.unwrap_or(0), round.now));
    let replicas = count(&|_| true);
    let mut current = (round.current.0.clone(), (of(&round.current.0) - replaced).max(0));
    let updated = of(&round.update.0);
    let wanted = identity::replicas(round.set);
    let strategy = round.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    let rolls = strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    if rolls && updated == wanted && replicas == wanted && ready == wanted {
        current = (round.update.0.clone(), updated);
    }
    let nonzero = |number: i32| Some(number).filter(|number| *number != 0);
    StatefulSetStatus {
        observed_generation: round.set.metadata.generation,
        replicas,
        ready_replicas: nonzero(ready),
        available_replicas: nonzero(available),
        current_replicas: nonzero(current.1),
        updated_replicas: nonzero(updated),
        current_revision: Some(current.0),
        update_revision: Some(round.update.0.clone()),
        collision_count: Some(collisions),
        conditions: round.set.status.as_ref().and_then(|status| status.conditions.clone()),
    }
}

#[cfg(test)]
mod tests;
