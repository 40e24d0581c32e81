//! DaemonSets: one Pod on every node that fits.
//!
//! A sync first puts every node in order (one Pod where one belongs, none where none does, failed ones replaced with
//! growing pauses), then, if all of that is done, takes the next step of a rolling update within `maxUnavailable` or
//! `maxSurge`.

mod node;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use sampan_client::owner::{self, Claimer};
use sampan_client::{
    Change, EventType, Expectations, Informer, Key, WorkQueue, is_terminating_namespace, or_absent, slow_start_batch,
};

use crate::deployment::scaled;
use crate::history::{History, POD_HASH, hash_of};
use crate::pods::{self, BY_OWNER, PodControl};
use crate::{Context, SyncError};
use node::Fit;

const BURST: usize = 250;
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
    /// How often a daemon has failed on a node, and when its Pod was last taken away for it.
    failed: Mutex<HashMap<(Key, String), (u32, Timestamp)>>,
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
    nodes.on_change(move |change| {
        let matters = |node: &Node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone());
            (node.metadata.labels.clone(), taints)
        };
        let same = matches!(change, Change::Modified { old, new } if matters(old) == matters(new));
        if !same {
            for set in this.sets.list() {
                this.queue.add(Key::of(set.as_ref()));
            }
        }
    });
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

/// What is to be done about the nodes.
#[derive(Default)]
struct Plan {
    create: Vec<String>,
    delete: Vec<Arc<Pod>>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.create.is_empty() && self.delete.is_empty()
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

    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(set) = self.sets.get_key(key) else {
            self.forget(key);
            return Ok(());
        };
        let (Some(spec), Some(selector)) = (set.spec.clone(), selector(&set)) else {
            return Ok(());
        };
        let may_act = self.expectations.satisfied(key) && set.metadata.deletion_timestamp.is_none();
        let history = History {
            client: &self.context.client,
            revisions: &self.revisions,
        };
        let known = history.list(set.as_ref());
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
            hash: hash_of(&current),
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
                plan = roll(&round, &fits, &by_node);
            }
            outcome = self.carry_out(key, &set, &round, plan).await;
        }
        let status = status(&set, &round, &fits, &by_node, collisions);
        self.write_status(&set, status).await?;
        outcome?;
        let mut live = BTreeSet::from([current.name_any()]);
        for pod in by_node.values().flatten() {
            let hash = pod.labels().get(POD_HASH);
            let used = known.iter().filter(|revision| Some(&hash_of(revision)) == hash);
            live.extend(used.map(ResourceExt::name_any));
        }
        history
            .truncate(&known, &live, spec.revision_history_limit.unwrap_or(10))
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
        let claimed = claimer
            .claim(candidates, || async {
                let api: Api<DaemonSet> = Api::namespaced(self.context.client.clone(), &namespace);
                let fresh = or_absent(api.get(&set.name_any()).await)?;
                Ok(fresh.is_some_and(|fresh| {
                    fresh.metadata.uid == set.metadata.uid && fresh.metadata.deletion_timestamp.is_none()
                }))
            })
            .await?;
        let mut found: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in claimed {
            if let Some(node) = node::target(&pod) {
                found.entry(node).or_default().push(pod);
            }
        }
        for pods in found.values_mut() {
            pods.sort_by_key(|pod| (pods::node_name(pod).is_empty(), pod.creation_timestamp()));
        }
        Ok(found)
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
                match pods::phase(pod) {
                    "Failed" => {
                        if self.may_replace(key, name, round.now) {
                            self.context.recorder.event(
                                set,
                                EventType::Warning,
                                "FailedDaemonPod",
                                format!(
                                    "Found failed daemon pod {}/{} on node {name}, will try to kill it",
                                    key.namespace,
                                    pod.name_any()
                                ),
                            );
                            plan.delete.push(Arc::clone(pod));
                        }
                    }
                    "Succeeded" => plan.delete.push(Arc::clone(pod)),
                    _ => running.push(Arc::clone(pod)),
                }
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
            plan.delete.extend(excess(round, running));
        }
        plan
    }

    /// Whether a failed daemon's pause is over: 1 s, doubling to 15 min.
    fn may_replace(&self, key: &Key, node: &str, now: Timestamp) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let id = (key.clone(), node.to_owned());
        let (times, last) = failed.get(&id).copied().unwrap_or((0, Timestamp::MIN));
        let pause = if times == 0 {
            SignedDuration::ZERO
        } else {
            SignedDuration::from_secs((1_i64 << times.min(10)).min(900))
        };
        let waited = now.duration_since(last);
        if waited < pause {
            self.queue.add_after(key.clone(), pods::delay(pause - waited));
            return false;
        }
        // A daemon that ran well for long starts over.
        let times = if waited > pause * 2 + SignedDuration::from_secs(900) {
            0
        } else {
            times
        };
        failed.insert(id, (times + 1, now));
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
        // One call replaces what was expected: creations and deletions of one sync are awaited one after the other.
        if !plan.delete.is_empty() {
            self.expectations
                .expect_deletions(key, plan.delete.iter().filter_map(|pod| pod.uid()));
            let outcomes = futures::future::join_all(plan.delete.iter().map(|pod| async {
                let outcome = control.delete(set, pod).await;
                if !matches!(outcome, Ok(true)) {
                    let uid = pod.uid().unwrap_or_default();
                    self.expectations.deletion_observed(key, &uid);
                }
                outcome
            }))
            .await;
            for outcome in outcomes {
                outcome?;
            }
            if !plan.create.is_empty() {
                // The deletions' events bring the set back for the rest.
                self.queue.add(key.clone());
            }
            return Ok(());
        }
        self.expectations.expect_creations(key, plan.create.len());
        let (made, error) = slow_start_batch(plan.create.len(), 1, |number| {
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
        error.map_or(Ok(()), |error| Err(error.into()))
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

/// The running Pods of a node that are too many.
fn excess(round: &Round, running: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    if round.most_surge == 0 {
        return running.into_iter().skip(1).collect();
    }
    let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| round.is_new(pod));
    let (mut new, mut old) = (new.into_iter(), old.into_iter());
    let (first_new, first_old) = (new.next(), old.next());
    let mut gone: Vec<_> = new.chain(old).collect();
    if let (Some(new), Some(old)) = (first_new, first_old)
        && (!pods::is_ready(&old) || round.is_available(&new))
    {
        gone.push(old);
    }
    gone
}

/// The next step of an update, once every node is in order.
fn roll(round: &Round, fits: &BTreeMap<String, Fit>, by_node: &BTreeMap<String, Vec<Arc<Pod>>>) -> Plan {
    let mut plan = Plan::default();
    let mut candidates = Vec::new();
    let mut away = 0;
    let none = Vec::new();
    let nodes = fits.iter().filter(|(_, fit)| **fit == Fit::Run);
    for (name, pods) in nodes.map(|(name, _)| (name, by_node.get(name).unwrap_or(&none))) {
        let living: Vec<&Arc<Pod>> = pods.iter().filter(|pod| !pods::is_terminating(pod)).collect();
        match living.as_slice() {
            [pod] if round.is_new(pod) => {
                away += usize::from(round.most_surge == 0 && !round.is_available(pod));
            }
            [pod] if !round.is_available(pod) => {
                // It does not serve anyway.
                if round.most_surge > 0 {
                    plan.create.push(name.clone());
                } else {
                    plan.delete.push(Arc::clone(pod));
                    away += 1;
                }
            }
            [pod] => candidates.push((name, Arc::clone(pod))),
            _ => away += 1,
        }
    }
    if round.most_surge > 0 {
        let room = round.most_surge.saturating_sub(away);
        let more = candidates.into_iter().take(room);
        plan.create.extend(more.map(|(name, _)| name.clone()));
    } else {
        let room = round.most_unavailable.saturating_sub(away);
        plan.delete
            .extend(candidates.into_iter().take(room).map(|(_, pod)| pod));
    }
    plan
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
) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
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
