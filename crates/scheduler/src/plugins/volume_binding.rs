//! VolumeBinding: a Pod goes where its claims' volumes are or can be, and is bound once they are.
//!
//! A claim that waits for its first consumer gets, on the node chosen, either a free volume that can be reached from
//! there (its `claimRef` is written here, the binder does the rest) or the annotation that tells its provisioner the
//! node. `reserve` promises the claim one of the two, so that no other Pod takes the same volume or sends the same claim
//! elsewhere in the meantime; the promise lives until the objects say it themselves. Promises are not part of what is
//! remembered of nodes: a Pod that finds its choice taken waits for the write that is under way anyway.
//!
//! Difference from upstream: volumes are not scored.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, PostParams};
use sampan_claims::{self as claims, NO_PROVISIONER, SELECTED_NODE, annotation};
use sampan_client::{Cached, Change, is_conflict};
use tokio::sync::{Notify, Semaphore};

use super::volumes::{View, key, key_of, named_claims, names_claims};
use crate::framework::{BindingPlugin, Event, NodeFilter, PreFilter, Refusal};
use crate::pod::{Class, PodInfo};

pub const NAME: &str = "VolumeBinding";
const HELPED_BY: &[Event] = &[
    Event::Node,
    Event::Claim,
    Event::Volume,
    Event::StorageClass,
    Event::CsiNode,
    Event::CsiDriver,
    Event::CsiCapacity,
    Event::PodGone,
];
/// Writes under way at a time.
const WRITES: usize = 32;

const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
const NO_ROOM: &str = "node(s) did not have enough free storage";
const ELSEWHERE: &str = "node(s) didn't match PersistentVolume's node affinity";
const NOT_THERE: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const IMMEDIATE: &str = "pod has unbound immediate PersistentVolumeClaims";

/// What is to become of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// It gets this volume.
    Volume(String),
    /// Its provisioner makes one for this node.
    Provision(String),
}

/// By claim.
type Plans = BTreeMap<String, Plan>;

struct Promise {
    plan: Plan,
    /// The Pods it was made for.
    pods: BTreeSet<Arc<str>>,
}

/// A Pod that is about to be bound.
struct Waiting {
    plans: Plans,
    /// Rung when something happened to one of its claims or to itself.
    bell: Arc<Notify>,
}

#[derive(Default)]
struct Promises {
    claims: HashMap<String, Promise>,
    /// The volumes of all promises.
    volumes: HashSet<String>,
    pods: HashMap<Arc<str>, Waiting>,
}

impl Promises {
    fn make(&mut self, pod: &Arc<str>, plans: Plans) {
        self.take_back(pod);
        for (claim, plan) in &plans {
            if let Plan::Volume(volume) = plan {
                self.volumes.insert(volume.clone());
            }
            let promise = self.claims.entry(claim.clone()).or_insert_with(|| Promise {
                plan: plan.clone(),
                pods: BTreeSet::new(),
            });
            promise.pods.insert(Arc::clone(pod));
        }
        let bell = Arc::default();
        self.pods.insert(Arc::clone(pod), Waiting { plans, bell });
    }

    fn take_back(&mut self, pod: &str) {
        let Some(waiting) = self.pods.remove(pod) else { return };
        for claim in waiting.plans.keys() {
            let Some(promise) = self.claims.get_mut(claim) else {
                continue;
            };
            promise.pods.remove(pod);
            if promise.pods.is_empty()
                && let Some(Promise {
                    plan: Plan::Volume(volume),
                    ..
                }) = self.claims.remove(claim)
            {
                self.volumes.remove(&volume);
            }
        }
        waiting.bell.notify_one();
    }

    fn ring(&self, claim: &str) {
        for pod in self.claims.get(claim).into_iter().flat_map(|promise| &promise.pods) {
            if let Some(waiting) = self.pods.get(pod) {
                waiting.bell.notify_one();
            }
        }
    }
}

/// The plugin's part that all profiles share.
pub struct Binder {
    client: kube::Client,
    view: Arc<View>,
    promises: Mutex<Promises>,
    writes: Semaphore,
}

/// Why a node will not do that cannot have all of a Pod's claims.
fn refuse<T>(why: &str) -> Result<T, Refusal> {
    Err(Refusal::unresolvable(why))
}

impl Binder {
    pub fn new(client: kube::Client, view: &Arc<View>) -> Arc<Self> {
        let binder = Arc::new(Binder {
            client,
            view: Arc::clone(view),
            promises: Mutex::default(),
            writes: Semaphore::new(WRITES),
        });
        let of = Arc::clone(&binder);
        view.claims
            .on_change(move |change| of.promises().ring(&key_of(change.object())));
        let of = Arc::clone(&binder);
        view.volumes.on_change(move |change| {
            if let Some(claim) = claims::claim_ref(change.object()) {
                let (namespace, name) = (claim.namespace.as_deref(), claim.name.as_deref());
                of.promises()
                    .ring(&key(namespace.unwrap_or_default(), name.unwrap_or_default()));
            }
        });
        let of = Arc::clone(&binder);
        view.pods.on_change(move |change| {
            if matches!(change, Change::Deleted(_)) {
                // Nobody else would, if the Pod went before its turn to be bound came.
                of.promises().take_back(change.object().uid());
            }
        });
        binder
    }

    fn promises(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_delayed(&self, claim: &PersistentVolumeClaim) -> bool {
        let class = self.view.classes.get("", claims::claim_class(claim));
        class.is_some_and(|class| claims::is_delayed(&class))
    }

    /// Whether the Pod's claims can be looked at node by node.
    fn check(&self, class: &Class) -> Result<(), Refusal> {
        let mut immediate = false;
        for named in named_claims(class) {
            let name = &named.name;
            let Some(claim) = self.view.claims.get(&class.namespace, name) else {
                return refuse(&match named.owner {
                    Some(_) => {
                        format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
                    }
                    None => format!("persistentvolumeclaim {name:?} not found"),
                });
            };
            let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
            if phase == Some("Lost") {
                let volume = claims::volume_name(&claim).unwrap_or_default();
                return refuse(&format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return refuse(&format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if let (Some(uid), Some((pod, _))) = (&named.owner, &class.pod)
                && !claims::is_owned_by(&claim, uid)
            {
                let namespace = &class.namespace;
                return refuse(&format!(
                    "PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
                ));
            }
            immediate |= !claims::is_bound(&claim) && !self.may_wait(&claim);
        }
        match immediate {
            true => refuse(IMMEDIATE),
            false => Ok(()),
        }
    }

    /// Whether a claim gets its volume when its Pod has a node.
    fn may_wait(&self, claim: &PersistentVolumeClaim) -> bool {
        claims::volume_name(claim).is_none() && self.is_delayed(claim)
    }

    /// What is to become of the Pod's unbound claims on a node, if it can be there at all.
    fn plan(&self, class: &Class, node: &Node, promises: Option<&Promises>) -> Result<Plans, Refusal> {
        let labels = node.metadata.labels.as_ref();
        let mut unbound: Vec<Arc<PersistentVolumeClaim>> = Vec::new();
        for named in named_claims(class) {
            let Some(claim) = self.view.claims.get(&class.namespace, &named.name) else {
                return refuse(&format!("persistentvolumeclaim {:?} not found", named.name));
            };
            if !claims::is_bound(&claim) {
                unbound.push(claim);
                continue;
            }
            let volume = claims::volume_name(&claim).and_then(|volume| self.view.volumes.get("", volume));
            match volume {
                None => return refuse(NOT_THERE),
                Some(volume) if !claims::node_affinity(&volume, labels) => return refuse(ELSEWHERE),
                Some(_) => {}
            }
        }
        // The smallest first, so that it does not take the volume that a larger one needs.
        unbound.sort_by_cached_key(|claim| claims::request(claim));
        let nothing = HashSet::new();
        let mut taken = Cow::Borrowed(promises.map_or(&nothing, |promises| &promises.volumes));
        let mut plans = Plans::new();
        for claim in unbound {
            let key = key_of(&claim);
            if plans.contains_key(&key) {
                continue;
            }
            let promise = promises.and_then(|promises| promises.claims.get(&key));
            let plan = match promise {
                Some(promise) => self.same_promise(&promise.plan, node)?,
                None => self.new_promise(&claim, node, &taken)?,
            };
            if let Plan::Volume(volume) = &plan {
                taken.to_mut().insert(volume.clone());
            }
            plans.insert(key, plan);
        }
        Ok(plans)
    }

    /// What another Pod was promised for the same claim, if that can be reached from this node too.
    fn same_promise(&self, plan: &Plan, node: &Node) -> Result<Plan, Refusal> {
        let reached = match plan {
            Plan::Provision(there) => node.name() == there,
            Plan::Volume(volume) => {
                let volume = self.view.volumes.get("", volume);
                volume.is_some_and(|volume| claims::node_affinity(&volume, node.metadata.labels.as_ref()))
            }
        };
        match reached {
            true => Ok(plan.clone()),
            false => refuse(NO_VOLUME),
        }
    }

    fn new_promise(
        &self,
        claim: &PersistentVolumeClaim,
        node: &Node,
        taken: &HashSet<String>,
    ) -> Result<Plan, Refusal> {
        let labels = node.metadata.labels.as_ref();
        let class = self.view.classes.get("", claims::claim_class(claim));
        let Some(class) = class.filter(|_| self.may_wait(claim)) else {
            return refuse(IMMEDIATE);
        };
        match annotation(&claim.metadata.annotations, SELECTED_NODE) {
            Some(chosen) if chosen != node.name() => return refuse(NO_VOLUME),
            Some(_) => {}
            None => {
                let offered = self.view.offered(claim);
                if let Some(volume) = claims::find(claim, offered, Some(labels), false, taken) {
                    return Ok(Plan::Volume(volume.name().to_owned()));
                }
            }
        }
        let terms = class.allowed_topologies.as_deref().unwrap_or_default();
        if class.provisioner == NO_PROVISIONER || !claims::terms_match(terms, labels) {
            return refuse(NO_VOLUME);
        }
        if !self.view.has_room(claim, &class, labels) {
            return refuse(NO_ROOM);
        }
        Ok(Plan::Provision(node.name().to_owned()))
    }

    /// Makes the plan real and waits until the Pod's claims are bound.
    async fn make_real(&self, pod: &PodInfo, node: &str, timeout: Duration) -> Result<(), String> {
        let waiting = || {
            let promises = self.promises();
            let waiting = promises.pods.get(&pod.uid);
            waiting.map(|waiting| (waiting.plans.clone(), Arc::clone(&waiting.bell)))
        };
        let Some((plans, bell)) = waiting() else {
            return Err("the Pod is gone".into());
        };
        let bound = async {
            // The versions that were written of claims: what is older says nothing about them.
            let mut written: HashMap<String, u64> = HashMap::new();
            for named in named_claims(&pod.class) {
                let key = key(&pod.namespace, &named.name);
                let Some(plan) = plans.get(&key) else { continue };
                let claim = self.view.claims.get(&pod.namespace, &named.name);
                let claim = claim.ok_or_else(|| format!("persistentvolumeclaim {:?} not found", named.name))?;
                let permit = self.writes.acquire().await.map_err(|error| error.to_string())?;
                match plan {
                    Plan::Volume(volume) => self.give(volume, &claim).await?,
                    Plan::Provision(node) => {
                        written.insert(key, self.select(&claim, node).await?);
                    }
                }
                drop(permit);
            }
            while !self.are_bound(pod, node, &plans, &written)? {
                bell.notified().await;
            }
            Ok(())
        };
        match tokio::time::timeout(timeout, bound).await {
            Ok(outcome) => outcome.map_err(|error: String| format!("binding volumes: {error}")),
            Err(_) => Err("binding volumes: context deadline exceeded".into()),
        }
    }

    /// Writes on a volume that it is the claim's. The binder does the rest.
    async fn give(&self, volume: &str, claim: &PersistentVolumeClaim) -> Result<(), String> {
        let known = self.view.volumes.get("", volume);
        let known = known.ok_or_else(|| format!("persistentvolume {volume:?} not found"))?;
        let Some(bound) = claims::bound_to(&known, claim) else {
            return Ok(());
        };
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match api.replace(volume, &PostParams::default(), &bound).await {
            Ok(_) => Ok(()),
            // Another Pod of the same claim may have been first.
            Err(error) if is_conflict(&error) => {
                let live = api.get(volume).await.map_err(|error| error.to_string())?;
                match claims::claim_ref(&live).is_some() && claims::is_for(&live, claim) {
                    true => Ok(()),
                    false => Err(error.to_string()),
                }
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Writes on a claim for which node its volume is to be made, and says in which version it is written.
    async fn select(&self, claim: &PersistentVolumeClaim, node: &str) -> Result<u64, String> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), claim.namespace());
        let mut known = Cow::Borrowed(claim);
        loop {
            let chosen = annotation(&known.metadata.annotations, SELECTED_NODE);
            if chosen == Some(node) || claims::volume_name(&known).is_some() {
                return Ok(version(&known));
            }
            if chosen.is_some() || known.metadata.uid != claim.metadata.uid {
                return Err(format!("provisioning failed for PVC {:?}", claim.name()));
            }
            let mut asked = known.into_owned();
            claims::mark(&mut asked.metadata.annotations, SELECTED_NODE, node);
            match api.replace(claim.name(), &PostParams::default(), &asked).await {
                Ok(asked) => return Ok(version(&asked)),
                Err(error) if is_conflict(&error) => {
                    known = Cow::Owned(api.get(claim.name()).await.map_err(|error| error.to_string())?);
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Whether all claims are bound; an error if they will not be.
    fn are_bound(
        &self,
        pod: &PodInfo,
        node: &str,
        plans: &Plans,
        written: &HashMap<String, u64>,
    ) -> Result<bool, String> {
        if !self.promises().pods.contains_key(&pod.uid) {
            return Err("the Pod is gone".into());
        }
        let at = self.view.nodes.get("", node);
        let labels = at.as_ref().and_then(|node| node.metadata.labels.as_ref());
        let mut all = true;
        for named in named_claims(&pod.class) {
            let key = key(&pod.namespace, &named.name);
            let claim = self.view.claims.get(&pod.namespace, &named.name);
            let claim = claim.ok_or_else(|| format!("persistentvolumeclaim {:?} not found", named.name))?;
            if claims::is_bound(&claim) {
                let volume = claims::volume_name(&claim).and_then(|volume| self.view.volumes.get("", volume));
                // The cache of volumes may lag behind that of claims.
                let Some(volume) = volume.filter(|volume| claims::is_for(volume, &claim)) else {
                    all = false;
                    continue;
                };
                if !claims::node_affinity(&volume, labels) {
                    let name = volume.name();
                    return Err(format!("pv {name:?} node affinity doesn't match node {node:?}"));
                }
                continue;
            }
            all = false;
            let seen = written.get(&key).is_none_or(|written| version(&claim) >= *written);
            let chosen = annotation(&claim.metadata.annotations, SELECTED_NODE);
            if seen && matches!(plans.get(&key), Some(Plan::Provision(node)) if chosen != Some(node)) {
                return Err(format!("provisioning failed for PVC {:?}", named.name));
            }
        }
        Ok(all)
    }
}

fn version(claim: &PersistentVolumeClaim) -> u64 {
    claim.resource_version().parse().unwrap_or(0)
}

/// The check of the Pod's claims.
pub fn pre_filter(binder: &Arc<Binder>) -> PreFilter {
    let binder = Arc::clone(binder);
    PreFilter {
        name: NAME,
        check: Box::new(move |class| binder.check(class)),
        helped_by: HELPED_BY,
    }
}

/// The check of a node.
pub fn filter(binder: &Arc<Binder>) -> NodeFilter {
    let binder = Arc::clone(binder);
    NodeFilter {
        name: NAME,
        check: Box::new(move |class, info| match &info.node {
            Some(node) if names_claims(class) => binder.plan(class, node, None).map(drop),
            _ => Ok(()),
        }),
        helped_by: HELPED_BY,
    }
}

/// The work around a binding.
pub struct VolumeBinding {
    pub binder: Arc<Binder>,
    pub timeout: Duration,
}

impl BindingPlugin for VolumeBinding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), Refusal> {
        if !names_claims(&pod.class) {
            return Ok(());
        }
        let Some(known) = self.binder.view.nodes.get("", node) else {
            return refuse(NO_VOLUME);
        };
        let mut promises = self.binder.promises();
        let plans = self.binder.plan(&pod.class, &known, Some(&promises))?;
        if !plans.is_empty() {
            promises.make(&pod.uid, plans);
        }
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo) {
        self.binder.promises().take_back(&pod.uid);
    }

    fn pre_bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> Option<BoxFuture<'a, Result<(), String>>> {
        if !self.binder.promises().pods.contains_key(&pod.uid) {
            return None;
        }
        Some(Box::pin(async move {
            let outcome = self.binder.make_real(pod, node, self.timeout).await;
            // The objects say it now, or it is not to be.
            self.binder.promises().take_back(&pod.uid);
            outcome
        }))
    }

    fn helped_by(&self) -> &'static [Event] {
        HELPED_BY
    }
}

#[cfg(test)]
#[path = "volume_binding_tests.rs"]
mod tests;
