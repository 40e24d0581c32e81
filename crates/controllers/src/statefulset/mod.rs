//! StatefulSets: Pods with names that stay, in order, each with its own claims.
//!
//! In order (`OrderedReady`) nothing is made or ended while a Pod before it is not available; in `Parallel` everything
//! is done at once. Updates replace the highest ordinal first, as many at a time as may be unavailable (one, unless the
//! strategy says more), and never those below the partition.

mod identity;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use sampan_client::owner::{self, Claimer};
use sampan_client::{
    Change, EventType, Informer, Key, WorkQueue, is_already_exists, is_terminating_namespace, or_absent,
};
use serde_json::json;

use crate::deployment::scaled;
use crate::history::{History, template_of};
use crate::pods::{self, BY_OWNER, PodControl};
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

/// Whether to go on with the next Pod.
#[derive(PartialEq)]
enum Step {
    Next,
    Wait,
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(set) = self.sets.get_key(key) else {
            return Ok(());
        };
        let Some(selector) = selector(&set) else {
            return Ok(());
        };
        let pods = self.claim_pods(&set, &selector).await?;
        let history = History {
            client: &self.context.client,
            revisions: &self.revisions,
        };
        let known = history.list(set.as_ref());
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
        let outcome = if set.metadata.deletion_timestamp.is_none() {
            self.act(&round, &pods).await
        } else {
            Ok(())
        };
        let status = status(&round, &pods, collisions);
        self.write_status(&set, status).await?;
        outcome?;
        let mut live: BTreeSet<String> = pods.iter().map(|pod| identity::revision(pod).to_owned()).collect();
        live.extend([round.current.0.clone(), round.update.0.clone()]);
        history
            .truncate(&known, &live, spec.revision_history_limit.unwrap_or(10))
            .await?;
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
        let claimed = claimer
            .claim(candidates, || async {
                let api: Api<StatefulSet> = Api::namespaced(self.context.client.clone(), &namespace);
                let fresh = or_absent(api.get(&name).await)?;
                Ok(fresh.is_some_and(|fresh| {
                    fresh.metadata.uid == set.metadata.uid && fresh.metadata.deletion_timestamp.is_none()
                }))
            })
            .await?;
        Ok(claimed)
    }

    async fn act(&self, round: &Round<'_>, pods: &[Arc<Pod>]) -> Result<(), SyncError> {
        let name = round.set.name_any();
        let first = identity::first_ordinal(round.set);
        let range = first..first.saturating_add(identity::replicas(round.set));
        let mut places: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        let mut condemned: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        for pod in pods {
            if let Some(ordinal) = identity::ordinal(&name, &pod.name_any()) {
                let place = if range.contains(&ordinal) {
                    &mut places
                } else {
                    &mut condemned
                };
                place.insert(ordinal, Arc::clone(pod));
            }
        }
        for ordinal in range {
            let step = self.tend(round, ordinal, places.get(&ordinal)).await?;
            if step == Step::Wait && round.ordered {
                return Ok(());
            }
        }
        // The first one in trouble may go although not everybody is well.
        let trouble = places
            .values()
            .chain(condemned.values())
            .find(|pod| !round.is_available(pod))
            .and_then(|pod| pod.metadata.name.clone());
        for (ordinal, pod) in condemned.iter().rev() {
            self.keep_claims(round, *ordinal, Some(pod)).await?;
            if pods::is_terminating(pod) {
                if round.ordered {
                    return Ok(());
                }
                continue;
            }
            if round.ordered && !round.is_available(pod) && pod.metadata.name != trouble {
                return Ok(());
            }
            self.delete(round, pod).await?;
            if round.ordered {
                return Ok(());
            }
        }
        self.update(round, &places).await
    }

    /// Makes the Pod of one place what it should be.
    async fn tend(&self, round: &Round<'_>, ordinal: i32, pod: Option<&Arc<Pod>>) -> Result<Step, SyncError> {
        let Some(pod) = pod else {
            return self.create(round, ordinal).await;
        };
        if pods::is_terminal(pod) {
            // However it ended, its place must be filled again.
            if !pods::is_terminating(pod) {
                self.delete(round, pod).await?;
            }
            return Ok(Step::Wait);
        }
        self.keep_claims(round, ordinal, None).await?;
        if pods::is_terminating(pod) || !round.is_available(pod) {
            return Ok(Step::Wait);
        }
        if !identity::matches(pod) {
            let labels: serde_json::Map<_, _> = identity::labels(&pod.name_any(), ordinal)
                .into_iter()
                .map(|(name, value)| (name.to_owned(), json!(value)))
                .collect();
            let namespace = pod.namespace().unwrap_or_default();
            let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
            let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
            or_absent(api.patch(&pod.name_any(), &PatchParams::default(), &patch).await)?;
        }
        Ok(Step::Next)
    }

    async fn create(&self, round: &Round<'_>, ordinal: i32) -> Result<Step, SyncError> {
        self.keep_claims(round, ordinal, None).await?;
        let (revision, template) = if round.keeps_current(ordinal) {
            &round.current
        } else {
            &round.update
        };
        let pod = identity::pod(round.set, template, revision, ordinal);
        let control = PodControl {
            client: &self.context.client,
            recorder: &self.context.recorder,
        };
        match control.create(round.set, &pod).await {
            Ok(_) => Ok(Step::Wait),
            Err(error) if is_terminating_namespace(&error) => Ok(Step::Wait),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete(&self, round: &Round<'_>, pod: &Pod) -> Result<(), SyncError> {
        let control = PodControl {
            client: &self.context.client,
            recorder: &self.context.recorder,
        };
        control.delete(round.set, pod).await?;
        Ok(())
    }

    /// Replaces Pods of older revisions, from the highest ordinal down to the partition.
    async fn update(&self, round: &Round<'_>, places: &BTreeMap<i32, Arc<Pod>>) -> Result<(), SyncError> {
        let spec = round.set.spec.clone().unwrap_or_default();
        let strategy = spec.update_strategy.unwrap_or_default();
        if strategy.type_.as_deref() == Some("OnDelete") {
            return Ok(());
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let replicas = identity::replicas(round.set);
        let most = rolling
            .max_unavailable
            .map_or(1, |most| scaled(&most, replicas, true).max(1));
        let lowest = identity::first_ordinal(round.set).saturating_add(rolling.partition.unwrap_or(0));
        let away = places.values().filter(|pod| !round.is_available(pod)).count();
        let mut left = usize::try_from(most).unwrap_or(1).saturating_sub(away);
        for (ordinal, pod) in places.iter().rev() {
            if *ordinal < lowest || left == 0 {
                break;
            }
            if identity::revision(pod) != round.update.0 && !pods::is_terminating(pod) {
                self.delete(round, pod).await?;
                left -= 1;
            }
        }
        Ok(())
    }

    /// Makes missing claims of a place and says who they go with. `condemned` is the Pod that is about to go for good.
    async fn keep_claims(
        &self,
        round: &Round<'_>,
        ordinal: i32,
        condemned: Option<&Arc<Pod>>,
    ) -> Result<(), SyncError> {
        let namespace = round.set.namespace().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), &namespace);
        let policy = round
            .set
            .spec
            .as_ref()
            .and_then(|spec| spec.persistent_volume_claim_retention_policy.clone())
            .unwrap_or_default();
        let deletes = |policy: &Option<String>| policy.as_deref() == Some("Delete");
        let holder: Option<OwnerReference> = match condemned {
            Some(pod) if deletes(&policy.when_scaled) => Some(OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: pod.name_any(),
                uid: pod.uid().unwrap_or_default(),
                ..Default::default()
            }),
            _ if deletes(&policy.when_deleted) => Some(owner::controller_ref(round.set)),
            _ => None,
        };
        for (_, mut claim) in identity::claims(round.set, ordinal) {
            let name = claim.name_any();
            match self.claims.get(&namespace, &name) {
                Some(known) => {
                    let ours = |reference: &OwnerReference| {
                        reference.kind == "StatefulSet" && reference.name == round.set.name_any()
                            || reference.kind == "Pod"
                                && reference.name == format!("{}-{ordinal}", round.set.name_any())
                    };
                    let mut references: Vec<OwnerReference> = known
                        .owner_references()
                        .iter()
                        .filter(|reference| !ours(reference))
                        .cloned()
                        .collect();
                    references.extend(holder.clone());
                    if references != known.owner_references() {
                        let patch = Patch::Merge(json!({"metadata": {
                            "resourceVersion": known.metadata.resource_version,
                            "ownerReferences": references,
                        }}));
                        or_absent(api.patch(&name, &PatchParams::default(), &patch).await)?;
                    }
                }
                None if condemned.is_some() => {}
                None => {
                    claim.metadata.owner_references = holder.clone().map(|holder| vec![holder]);
                    match api.create(&PostParams::default(), &claim).await {
                        Ok(_) => self.context.recorder.event(
                            round.set,
                            EventType::Normal,
                            "SuccessfulCreate",
                            format!(
                                "create Claim {name} Pod {}-{ordinal} in StatefulSet {} success",
                                round.set.name_any(),
                                round.set.name_any()
                            ),
                        ),
                        Err(error) if is_already_exists(&error) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Ok(())
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

impl Round<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        let seconds = self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        pods::phase(pod) == "Running"
            && !pods::is_terminating(pod)
            && pods::is_available(pod, seconds.unwrap_or(0), self.now)
    }

    /// Whether a missing Pod comes back as it was before the update under way.
    fn keeps_current(&self, ordinal: i32) -> bool {
        let strategy = self.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
        if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
            return false;
        }
        let first = identity::first_ordinal(self.set);
        let below = match strategy.and_then(|s| s.rolling_update.as_ref()) {
            Some(rolling) => rolling.partition.unwrap_or(0),
            None => {
                let status = self.set.status.as_ref();
                status.and_then(|s| s.current_replicas).unwrap_or(0)
            }
        };
        ordinal < first.saturating_add(below)
    }
}

fn status(round: &Round<'_>, pods: &[Arc<Pod>], collisions: i32) -> StatefulSetStatus {
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
    let mut current = (round.current.0.clone(), of(&round.current.0));
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
