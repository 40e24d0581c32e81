//! DaemonSets: one Pod on every node that fits.
//!
//! A sync first puts every node in order (one Pod where one belongs, none where none does, failed ones replaced with
//! growing pauses), then, if all of that is done, takes the next step of a rolling update within `maxUnavailable` or
//! `maxSurge`.

mod node;
mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use sampan_client::owner::{self, Claimer};
use sampan_client::{
    Change, EventType, Expectations, Informer, Key, WorkQueue, is_terminating_namespace, or_absent, slow_start_batch,
};

use crate::deployment::scaled;
use crate::history::{History, POD_HASH, surplus, template_of};
use crate::pods::{self, BY_OWNER, PodControl};
use crate::{Context, SyncError};
use node::Fit;
use plan::Plan;
use serde_json::json;

const BURST: usize = 250;
/// The longest pause before a failed daemon is replaced, in seconds.
const MOST_PAUSE: i64 = 900;
const TEMPLATE_GENERATION: &str = "pod-template-generation";
const TEMPLATE_GENERATION_NOTE: &str = "deprecated.daemonset.template.generation";

struct Controller {
    context: Context,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    queue: WorkQueue<Key>,
    expectations: Expectations<Key>,
    failed: Mutex<HashMap<(Key, String), Failed>>,
}

/// How often the daemon of a generation has failed on a node, and when its Pod was last taken away for it.
#[derive(Clone, Copy)]
struct Failed {
    generation: i64,
    times: u32,
    last: Timestamp,
}

pub(crate) fn start(context: Context) {
    let sets = context.informers.of::<DaemonSet>();
    let pods = context.informers.of::<Pod>();
    let nodes = context.informers.of::<Node>();
    let revisions = context.informers.of::<ControllerRevision>();
    pods.add_index(BY_OWNER, pods::owner_keys);
    revisions.add_index(BY_OWNER, pods::owner_keys);
    let queue: WorkQueue<Key> = WorkQueue::default();
    let controller = Arc::new(Controller {
        context: context.clone(),
        sets: sets.clone(),
        pods: pods.clone(),
        nodes: nodes.clone(),
        revisions: revisions.clone(),
        queue: queue.clone(),
        expectations: Expectations::default(),
        failed: Mutex::default(),
    });
    let this = Arc::clone(&controller);
    sets.on_change(move |change| {
        let key = Key::of(change.object().as_ref());
        if matches!(change, Change::Deleted(_)) {
            this.forget(&key);
        }
        this.queue.add(key);
    });
    let this = Arc::clone(&controller);
    pods.on_change(move |change| this.pod_changed(change));
    let this = Arc::clone(&controller);
    nodes.on_change(move |change| this.node_changed(change));
    let ready = async move {
        sets.synced().await;
        pods.synced().await;
        nodes.synced().await;
        revisions.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(&key).await }
    });
}

fn selector(set: &DaemonSet) -> Option<kube::core::Selector> {
    owner::selector(set.spec.as_ref().map(|spec| &spec.selector))
}

/// A set in the middle of a sync.
struct Round {
    template: PodTemplateSpec,
    hash: String,
    min_ready: i32,
    most_unavailable: usize,
    most_surge: usize,
    now: Timestamp,
}

impl Round {
    fn is_new(&self, pod: &Pod) -> bool {
        pod.labels().get(POD_HASH) == Some(&self.hash)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.min_ready, self.now)
    }
}

impl Controller {
    fn forget(&self, key: &Key) {
        self.expectations.forget(key);
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(owner, _), _| owner != key);
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let namespace = pod.namespace().unwrap_or_default();
        if let Some(name) = owner::controller_name::<DaemonSet>(&pod.metadata) {
            let key = Key::new(namespace, name);
            match change {
                Change::Added(_) if !pods::is_terminating(pod) => {
                    self.expectations.creation_observed(&key);
                }
                Change::Modified { .. } if !pods::is_terminating(pod) => {}
                _ => {
                    let uid = pod.uid().unwrap_or_default();
                    self.expectations.deletion_observed(&key, &uid);
                }
            }
            self.queue.add(key);
        } else if owner::controller_of(&pod.metadata).is_none() && !matches!(change, Change::Deleted(_)) {
            for set in self.sets.list_namespace(&namespace) {
                if owner::selects(selector(&set).as_ref(), &pod.metadata) {
                    self.queue.add(Key::of(set.as_ref()));
                }
            }
        }
    }

    /// A node matters to the sets whose daemon it starts or stops to fit.
    fn node_changed(&self, change: &Change<Node>) {
        let matters = |node: &Node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone());
            (node.metadata.labels.clone(), taints)
        };
        if matches!(change, Change::Modified { old, new } if matters(old) == matters(new)) {
            return;
        }
        for set in self.sets.list() {
            let mut spec = set
                .spec
                .as_ref()
                .and_then(|spec| spec.template.spec.clone())
                .unwrap_or_default();
            node::add_tolerations(&mut spec);
            let same = match change {
                Change::Modified { old, new } => node::fit(&spec, old) == node::fit(&spec, new),
                Change::Added(node) | Change::Deleted(node) => node::fit(&spec, node) == Fit::No,
            };
            if !same {
                self.queue.add(Key::of(set.as_ref()));
            }
        }
    }

    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(set) = self.sets.get_key(key) else {
            self.forget(key);
            return Ok(());
        };
        let Some(spec) = set.spec.clone() else {
            return Ok(());
        };
        let Some(selector) = selector(&set) else {
            self.context.recorder.event(
                set.as_ref(),
                EventType::Warning,
                "SelectingAll",
                "This daemon set is selecting all pods. A non-empty selector is required.",
            );
            return Ok(());
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let may_act = self.expectations.satisfied(key);
        let history = History {
            client: &self.context.client,
            revisions: &self.revisions,
            label: POD_HASH,
        };
        let known = history
            .claim(set.as_ref(), &selector, || self.still_alive(&set))
            .await?;
        let known = self.merge_twins(&set, &history, &spec.template, known).await?;
        let before = set.status.clone().unwrap_or_default();
        let mut collisions = before.collision_count.unwrap_or(0);
        let current = history
            .current(set.as_ref(), &spec.template, &known, &mut collisions)
            .await?;
        let mut template = spec.template.clone();
        node::add_tolerations(template.spec.get_or_insert_default());
        let by_node = self.by_node(&set, &selector).await?;
        let fits = self.fits(&template);
        let desired = fits.values().filter(|fit| **fit == Fit::Run).count();
        let (most_unavailable, most_surge) = limits(&set, desired);
        let round = Round {
            template,
            hash: history.hash_of(&current).to_owned(),
            min_ready: spec.min_ready_seconds.unwrap_or(0),
            most_unavailable,
            most_surge,
            now: self.context.clock.now(),
        };
        let mut outcome = Ok(());
        if may_act {
            let mut plan = self.put_in_order(key, &set, &round, &fits, &by_node);
            let strategy = spec.update_strategy.as_ref();
            let rolls = strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete");
            if plan.is_empty() && rolls {
                plan = plan::roll(&round, &fits, &by_node);
            }
            outcome = self.carry_out(key, &set, &round, plan).await;
        }
        let status = status(&set, &round, &fits, &by_node, collisions, may_act);
        self.write_status(&set, status).await?;
        outcome?;
        let current_name = current.name_any();
        let old = known
            .iter()
            .filter(|revision| revision.name_any() != current_name)
            .count();
        let live: HashSet<&str> = self
            .pods
            .by_index(BY_OWNER, &set.uid().unwrap_or_default())
            .iter()
            .filter_map(|pod| pod.labels().get(POD_HASH))
            .filter_map(|hash| {
                known
                    .iter()
                    .map(|revision| history.hash_of(revision))
                    .find(|known| known == hash)
            })
            .collect();
        let in_use = |revision: &ControllerRevision| {
            revision.name_any() == current_name || live.contains(history.hash_of(revision))
        };
        history
            .truncate(&known, in_use, surplus(old, spec.revision_history_limit))
            .await?;
        let soonest = by_node
            .values()
            .flatten()
            .filter_map(|pod| pods::available_in(pod, round.min_ready, round.now))
            .filter(SignedDuration::is_positive)
            .min();
        if let Some(left) = soonest {
            self.queue.add_after(key.clone(), pods::delay(left));
        }
        Ok(())
    }

    /// The set's Pods by the node they belong to, oldest first.
    async fn by_node(
        &self,
        set: &DaemonSet,
        selector: &kube::core::Selector,
    ) -> Result<BTreeMap<String, Vec<Arc<Pod>>>, SyncError> {
        let namespace = set.namespace().unwrap_or_default();
        let mut candidates = self.pods.by_index(BY_OWNER, &set.uid().unwrap_or_default());
        candidates.extend(self.pods.by_index(BY_OWNER, &pods::orphans(&namespace)));
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let claimer = Claimer {
            api: &api,
            reference: owner::controller_ref(set),
            deleting: set.metadata.deletion_timestamp.is_some(),
            selector: Some(selector),
            also: &|_| true,
            finalizers: &[],
        };
        let claimed = claimer.claim(candidates, || self.still_alive(set)).await?;
        let mut found: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in claimed {
            // A finished one on its way out only waits for its finalizers.
            if pods::is_terminal(&pod) && pods::is_terminating(&pod) {
                continue;
            }
            if let Some(node) = node::target(&pod) {
                found.entry(node).or_default().push(pod);
            }
        }
        for pods in found.values_mut() {
            pods.sort_by_key(|pod| {
                (
                    pods::node_name(pod).is_empty(),
                    pod.creation_timestamp(),
                    pod.name_any(),
                )
            });
        }
        Ok(found)
    }

    async fn still_alive(&self, set: &DaemonSet) -> kube::Result<bool> {
        let namespace = set.namespace().unwrap_or_default();
        let api: Api<DaemonSet> = Api::namespaced(self.context.client.clone(), &namespace);
        let fresh = or_absent(api.get(&set.name_any()).await)?;
        Ok(fresh
            .is_some_and(|fresh| fresh.metadata.uid == set.metadata.uid && fresh.metadata.deletion_timestamp.is_none()))
    }

    /// Of several revisions with the current template only the newest stays; Pods of the others become its Pods.
    async fn merge_twins(
        &self,
        set: &DaemonSet,
        history: &History<'_>,
        template: &PodTemplateSpec,
        known: Vec<ControllerRevision>,
    ) -> Result<Vec<ControllerRevision>, SyncError> {
        let twins: Vec<&ControllerRevision> = known
            .iter()
            .filter(|revision| template_of(revision).as_ref() == Some(template))
            .collect();
        let Some((kept, others)) = twins.split_last().filter(|(_, others)| !others.is_empty()) else {
            return Ok(known);
        };
        let namespace = set.namespace().unwrap_or_default();
        let hash = history.hash_of(kept);
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        for pod in self.pods.by_index(BY_OWNER, &set.uid().unwrap_or_default()) {
            if pod.labels().get(POD_HASH).map(String::as_str) != Some(hash)
                && others
                    .iter()
                    .any(|other| pod.labels().get(POD_HASH).map(String::as_str) == Some(history.hash_of(other)))
            {
                let patch = Patch::Merge(json!({"metadata": {
                    "uid": pod.metadata.uid,
                    "labels": {POD_HASH: hash},
                }}));
                or_absent(pods.patch(&pod.name_any(), &PatchParams::default(), &patch).await)?;
            }
        }
        let revisions: Api<ControllerRevision> = Api::namespaced(self.context.client.clone(), &namespace);
        let gone: BTreeSet<String> = others.iter().map(|other| other.name_any()).collect();
        for name in &gone {
            or_absent(revisions.delete(name, &DeleteParams::default()).await)?;
        }
        Ok(known
            .into_iter()
            .filter(|revision| !gone.contains(&revision.name_any()))
            .collect())
    }

    fn fits(&self, template: &PodTemplateSpec) -> BTreeMap<String, Fit> {
        let spec = template.spec.clone().unwrap_or_default();
        self.nodes
            .list()
            .iter()
            .map(|node| (node.name_any(), node::fit(&spec, node)))
            .collect()
    }

    /// One daemon where one belongs, none where none does.
    fn put_in_order(
        &self,
        key: &Key,
        set: &DaemonSet,
        round: &Round,
        fits: &BTreeMap<String, Fit>,
        by_node: &BTreeMap<String, Vec<Arc<Pod>>>,
    ) -> Plan {
        let mut plan = Plan::default();
        let none = Vec::new();
        for (name, fit) in fits {
            let pods = by_node.get(name).unwrap_or(&none);
            if *fit == Fit::No {
                let there = pods.iter().filter(|pod| !pods::is_terminating(pod));
                plan.delete.extend(there.cloned());
                continue;
            }
            let mut running = Vec::new();
            for pod in pods.iter().filter(|pod| !pods::is_terminating(pod)) {
                let whose = format!("daemon pod {}/{} on node {name}", key.namespace, pod.name_any());
                let (kind, reason, text) = match pods::phase(pod) {
                    "Failed" if !self.may_replace(key, set, name, round.now) => continue,
                    "Failed" => (
                        EventType::Warning,
                        "FailedDaemonPod",
                        format!("Found failed {whose}, will try to kill it"),
                    ),
                    "Succeeded" => (
                        EventType::Normal,
                        "SucceededDaemonPod",
                        format!("Found succeeded {whose}, will try to delete it"),
                    ),
                    _ => {
                        running.push(Arc::clone(pod));
                        continue;
                    }
                };
                self.context.recorder.event(set, kind, reason, text);
                plan.delete.push(Arc::clone(pod));
            }
            // While one ends the next waits, unless they may be there together.
            let occupied = if round.most_surge > 0 {
                !running.is_empty()
            } else {
                !pods.is_empty()
            };
            if !occupied && *fit == Fit::Run {
                plan.create.push(name.clone());
            }
            plan.delete.extend(plan::excess(round, running));
        }
        // Waiting for a node that is gone: they will never be bound.
        let lost = by_node.iter().filter(|(name, _)| !fits.contains_key(*name));
        let unbound = lost
            .flat_map(|(_, pods)| pods)
            .filter(|pod| pods::node_name(pod).is_empty());
        plan.delete.extend(unbound.cloned());
        plan
    }

    /// Whether a failed daemon's pause is over: 1 s, doubling to 15 min.
    fn may_replace(&self, key: &Key, set: &DaemonSet, node: &str, now: Timestamp) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let id = (key.clone(), node.to_owned());
        let generation = set.metadata.generation.unwrap_or(0);
        let known = failed.get(&id).copied().filter(|known| known.generation == generation);
        let mut times = 0;
        if let Some(known) = known {
            let pause = SignedDuration::from_secs((1_i64 << known.times.saturating_sub(1).min(10)).min(MOST_PAUSE));
            let waited = now.duration_since(known.last);
            if waited < pause {
                self.queue.add_after(key.clone(), pods::delay(pause - waited));
                return false;
            }
            // A daemon that ran well for long starts over.
            if waited <= SignedDuration::from_secs(2 * MOST_PAUSE) {
                times = known.times;
            }
        }
        let known = Failed {
            generation,
            times: times.saturating_add(1),
            last: now,
        };
        failed.insert(id, known);
        true
    }

    async fn carry_out(&self, key: &Key, set: &DaemonSet, round: &Round, mut plan: Plan) -> Result<(), SyncError> {
        plan.create.truncate(BURST);
        plan.delete.truncate(BURST);
        if plan.is_empty() {
            return Ok(());
        }
        let control = PodControl {
            client: &self.context.client,
            recorder: &self.context.recorder,
        };
        self.expectations
            .expect(key, plan.create.len(), plan.delete.iter().filter_map(|pod| pod.uid()));
        let (made, failure) = slow_start_batch(plan.create.len(), 1, |number| {
            let pod = plan
                .create
                .get(number)
                .map(|node| new_pod(set, round, node))
                .unwrap_or_default();
            let control = &control;
            async move {
                match control.create(set, &pod).await {
                    Err(error) if is_terminating_namespace(&error) => Ok(()),
                    other => other.map(|_| ()),
                }
            }
        })
        .await;
        self.expectations
            .creations_observed(key, plan.create.len().saturating_sub(made));
        let outcomes = futures::future::join_all(plan.delete.iter().map(|pod| async {
            let outcome = control.delete(set, pod).await;
            if !matches!(outcome, Ok(true)) {
                let uid = pod.uid().unwrap_or_default();
                self.expectations.deletion_observed(key, &uid);
            }
            outcome
        }))
        .await;
        let failure = failure.or_else(|| outcomes.into_iter().find_map(Result::err));
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn write_status(&self, set: &DaemonSet, status: DaemonSetStatus) -> Result<(), SyncError> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut changed = set.clone();
        changed.status = Some(status);
        let namespace = set.namespace().unwrap_or_default();
        let api: Api<DaemonSet> = Api::namespaced(self.context.client.clone(), &namespace);
        let written = api
            .replace_status(&set.name_any(), &PostParams::default(), &changed)
            .await;
        or_absent(written)?;
        Ok(())
    }
}

/// (how many may be unavailable, how many may be there twice) during an update.
fn limits(set: &DaemonSet, desired: usize) -> (usize, usize) {
    let rolling = set
        .spec
        .as_ref()
        .and_then(|spec| spec.update_strategy.as_ref()?.rolling_update.clone())
        .unwrap_or_default();
    let total = i32::try_from(desired).unwrap_or(i32::MAX);
    let number = |value: Option<IntOrString>, default: i32| {
        let value = value.unwrap_or(IntOrString::Int(default));
        usize::try_from(scaled(&value, total, true)).unwrap_or(0)
    };
    let surge = number(rolling.max_surge, 0);
    let unavailable = number(rolling.max_unavailable, 1);
    // Neither would be no update at all.
    if surge == 0 && unavailable == 0 {
        (1, 0)
    } else {
        (unavailable, surge)
    }
}

fn new_pod(set: &DaemonSet, round: &Round, node: &str) -> Pod {
    let mut pod = pods::from_template(
        &round.template,
        &set.namespace().unwrap_or_default(),
        &set.name_any(),
        owner::controller_ref(set),
    );
    node::pin(pod.spec.get_or_insert_default(), node);
    let generation = set.annotations().get(TEMPLATE_GENERATION_NOTE).cloned();
    let labels = pod.labels_mut();
    labels.insert(POD_HASH.into(), round.hash.clone());
    if let Some(generation) = generation {
        labels.insert(TEMPLATE_GENERATION.into(), generation);
    }
    pod
}

fn status(
    set: &DaemonSet,
    round: &Round,
    fits: &BTreeMap<String, Fit>,
    by_node: &BTreeMap<String, Vec<Arc<Pod>>>,
    collisions: i32,
    acted: bool,
) -> DaemonSetStatus {
    let before = set.status.as_ref().and_then(|status| status.observed_generation);
    let mut status = DaemonSetStatus {
        // A generation counts as observed once something could be done about it.
        observed_generation: if acted { set.metadata.generation } else { before },
        collision_count: Some(collisions).filter(|count| *count != 0),
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
        ..Default::default()
    };
    let (mut available, mut updated) = (0, 0);
    for (name, fit) in fits {
        let pod = by_node.get(name).and_then(|pods| pods.first());
        match (fit, pod) {
            (Fit::Run, None) => status.desired_number_scheduled += 1,
            (Fit::Run, Some(pod)) => {
                status.desired_number_scheduled += 1;
                status.current_number_scheduled += 1;
                status.number_ready += i32::from(pods::is_ready(pod));
                available += i32::from(round.is_available(pod));
                updated += i32::from(round.is_new(pod));
            }
            (_, Some(_)) => status.number_misscheduled += 1,
            (_, None) => {}
        }
    }
    let nonzero = |number: i32| Some(number).filter(|number| *number != 0);
    status.number_available = nonzero(available);
    status.updated_number_scheduled = nonzero(updated);
    status.number_unavailable = nonzero(status.desired_number_scheduled - available);
    status
}

#[cfg(test)]
mod tests;
