//! The scheduler's hands: informers in, bindings and explanations out.
//!
//! One task owns everything. Informer handlers only change the engine and ring a bell; the task then takes decisions
//! until its bounded sets of bindings and explanations in flight are full. Nothing here repeats on a timer: the only
//! deadlines are those of Pods that rest after a failure, of classes that wait for very long, and of reasons to be renewed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Binding, Namespace, Node, ObjectReference, Pod, PodResourceClaimStatus, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use sampan_client::{Change, EventType, Informer, Informers, Recorder, is_conflict, is_not_found};
use sampan_tasks::Drain;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Notify;

use crate::config::Configuration;
use crate::engine::{Decision, Engine, Followed};
use crate::extender::{Extenders, Opinions};
use crate::framework::{BindingPlugin, Event};
use crate::metrics::Metrics;
use crate::owners::OwnerKind;
use crate::plugins::dynamic_resources::{self, Devices};
use crate::plugins::volumes;
use crate::pod::PodInfo;
use crate::preemption::Victims;
use crate::queue::Backoff;
use crate::resources::pod_requests;
use crate::watch::{Part, Point, Status};

/// How the scheduler runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose Pods are scheduled, and how.
    pub configuration: Configuration,
    /// Bindings on their way to the API server at a time. They share its fsyncs, so many cost little more than one.
    pub bindings_in_flight: usize,
    /// Explanations on their way at a time.
    pub explanations_in_flight: usize,
    /// Decides between equally good nodes.
    pub seed: u64,
    /// Where is counted.
    pub metrics: Metrics,
    /// Set once the cluster is known.
    pub synced: Arc<AtomicBool>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            configuration: Configuration::default(),
            bindings_in_flight: 128,
            explanations_in_flight: 64,
            seed: rand::random(),
            metrics: Metrics::default(),
            synced: Arc::default(),
        }
    }
}

#[derive(Clone)]
struct Shared {
    engine: Arc<Mutex<Engine>>,
    bell: Arc<Notify>,
}

impl Shared {
    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    fn change(&self, change: impl FnOnce(&mut Engine)) {
        change(&mut self.engine());
        self.bell.notify_one();
    }
}

/// Runs the scheduler until `drain`. `client` writes bindings and conditions, `informers` are read from.
pub async fn run(config: Config, client: kube::Client, informers: Informers, recorder: Recorder, drain: Drain) {
    for idle in &config.configuration.ineffective {
        tracing::warn!("the scheduler's configuration says something that has no effect: {idle}");
    }
    let backoff = Backoff {
        first: config.configuration.initial_backoff,
        longest: config.configuration.max_backoff,
    };
    let extenders = match Extenders::new(&config.configuration) {
        Ok(extenders) => extenders,
        Err(error) => {
            // Not to ask them would put Pods where they must not be.
            tracing::error!(%error, "the scheduler cannot ask its extenders");
            return;
        }
    };
    let shared = Shared {
        engine: Arc::new(Mutex::new(Engine::new([], config.seed))),
        bell: Arc::new(Notify::new()),
    };
    let to = shared.clone();
    let view = volumes::View::new(&informers, move |event, claim| {
        to.change(|engine| engine.objects_changed(event, |class| volumes::concerned(class, claim)));
    });
    let storage = volumes::Storage::new(client.clone(), &view);
    let to = shared.clone();
    let devices = Devices::new(client.clone(), &informers, move |claim| {
        let event = Event::ResourceClaim;
        to.change(|engine| engine.objects_changed(event, |class| dynamic_resources::concerned(class, claim)));
    });
    let profiles = config.configuration.profiles.iter();
    let profiles = profiles.map(|profile| (profile.name.clone(), storage.framework(profile, &devices)));
    *shared.engine() = Engine::with_backoff(profiles, config.seed, backoff)
        .asking(extenders.interests())
        .counting(config.metrics.clone());
    // An API server may not have claims of devices; a Pod that names one waits until it is seen.
    let ready = async {
        storage.synced().await;
        tokio::time::timeout(CLAIMS, devices.synced()).await.is_ok()
    };
    if drain.until(ready).await.is_none() {
        return;
    }
    config.metrics.follow(&shared.engine);
    if drain.until(subscribe(&shared, &informers)).await.is_none() {
        return;
    }
    config.synced.store(true, Relaxed);
    for profile in &config.configuration.profiles {
        tracing::info!(scheduler = profile.name, "scheduling");
    }

    let hands = Hands {
        client,
        metrics: config.metrics.clone(),
        recorder,
        extenders,
        pods: informers.of::<Pod>(),
        shared: shared.clone(),
    };
    // Pods that wait for something before they are bound, and those that wait no longer. They take no one's turn.
    let mut preparations: FuturesUnordered<BoxFuture<'_, Result<Prepared, Unprepared>>> = FuturesUnordered::new();
    let mut prepared: VecDeque<Prepared> = VecDeque::new();
    let mut bindings: FuturesUnordered<BoxFuture<'_, Result<(), PodInfo>>> = FuturesUnordered::new();
    let mut preemptions: FuturesUnordered<BoxFuture<'_, Result<(), Failed>>> = FuturesUnordered::new();
    let mut explanations: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    let mut to_explain: VecDeque<(Why, PodInfo)> = VecDeque::new();
    let mut consultations: FuturesUnordered<BoxFuture<'_, Answer>> = FuturesUnordered::new();
    // What followed from extenders' answers.
    let mut followed: VecDeque<Decision> = VecDeque::new();
    loop {
        while bindings.len() + preemptions.len() < config.bindings_in_flight {
            if let Some((pod, node)) = prepared.pop_front() {
                bindings.push(Box::pin(hands.bind(pod, node)));
                continue;
            }
            let next = || shared.engine().next_binding(Instant::now());
            let decision = followed.pop_front().or_else(next);
            match decision {
                Some(Decision::Bind { pod, node }) => {
                    let plugins = shared.engine().binding_plugins(&pod);
                    let began = Instant::now();
                    if plugins.iter().any(|plugin| plugin.pre_bind(&pod, &node).is_some()) {
                        preparations.push(Box::pin(prepare(plugins, pod, node, &config.metrics)));
                    } else {
                        config.metrics.prepared(&pod.class.scheduler, true, began.elapsed());
                        bindings.push(Box::pin(hands.bind(pod, node)));
                    }
                }
                Some(Decision::Preempt {
                    pod,
                    node,
                    victims,
                    message,
                }) => preemptions.push(Box::pin(hands.preempt(pod, node, victims, message))),
                Some(Decision::Unnominate { pod }) => preemptions.push(Box::pin(hands.unnominate(pod))),
                Some(Decision::Consult { pod, nodes }) => consultations.push(Box::pin(hands.consult(pod, nodes))),
                Some(Decision::ConsultVictims {
                    pod,
                    candidates,
                    message,
                }) => consultations.push(Box::pin(hands.consult_victims(pod, candidates, message))),
                Some(Decision::Tell { .. }) | None => break,
            }
        }
        while explanations.len() < config.explanations_in_flight {
            if to_explain.is_empty() {
                let Some(Decision::Tell { message, pods }) = shared.engine().next_telling(Instant::now()) else {
                    break;
                };
                let why = Why {
                    reason: UNSCHEDULABLE,
                    message: message.into(),
                };
                to_explain.extend(pods.into_iter().map(|pod| (why.clone(), pod)));
            }
            let Some((why, pod)) = to_explain.pop_front() else {
                break;
            };
            // It may have found a place, or gone, since it was to be told.
            if shared.engine().is_waiting(&pod.uid) {
                explanations.push(Box::pin(hands.tell(pod, why)));
            }
        }
        // Nobody is woken for what there is no hand free to do.
        let (binds, tells) = (
            bindings.len() + preemptions.len() < config.bindings_in_flight,
            explanations.len() < config.explanations_in_flight,
        );
        let deadline = {
            let engine = shared.engine();
            let tries = binds.then(|| engine.next_try()).flatten();
            let retells = tells.then(|| engine.next_retelling()).flatten();
            tries.into_iter().chain(retells).min()
        };
        tokio::select! {
            () = drain.started() => break,
            () = shared.bell.notified() => {}
            Some(outcome) = preparations.next() => match outcome {
                Ok(ready) => prepared.push_back(ready),
                Err(Unprepared { pod, why }) => {
                    // Nobody is told of a Pod that is gone.
                    if shared.engine().bind_failed(pod.clone(), Instant::now()) {
                        hands.tell_unprepared(&pod, why);
                    }
                }
            },
            Some(outcome) = bindings.next() => if let Err(pod) = outcome {
                shared.engine().bind_failed(pod, Instant::now());
            },
            Some(outcome) = preemptions.next() => match outcome {
                Ok(()) => {}
                Err(Failed::Preemption(pod)) => shared.engine().preemption_failed(&pod, Instant::now()),
                Err(Failed::Unnomination(pod)) => shared.engine().unnominate_failed(pod, Instant::now()),
            },
            Some(()) = explanations.next() => {}
            Some(answer) = consultations.next() => {
                let now = Instant::now();
                let outcome = match answer {
                    Answer::Nodes(pod, opinions) => shared.engine().consulted(&pod.uid, opinions, now),
                    Answer::Victims(pod, victims, message) => {
                        shared.engine().victims_consulted(&pod.uid, victims, message, now)
                    }
                };
                match outcome {
                    Followed::Decision(decision) => followed.push_back(decision),
                    Followed::Tell(told) => {
                        let reason = if told.failed { SCHEDULER_ERROR } else { UNSCHEDULABLE };
                        let why = Why { reason, message: told.message.into() };
                        to_explain.push_back((why, told.pod));
                    }
                    Followed::Nothing => {}
                }
            }
            () = sleep_until(deadline), if deadline.is_some() => {}
        }
    }
    // A binding in flight may already be committed: let it be answered rather than guess.
    while bindings.next().await.is_some() {}
}

/// What could not be written.
enum Failed {
    Preemption(PodInfo),
    Unnomination(PodInfo),
}

type Prepared = (PodInfo, Arc<str>);

/// A Pod that cannot be bound yet.
struct Unprepared {
    pod: PodInfo,
    why: String,
}

/// Does what comes before a binding.
async fn prepare(
    plugins: Vec<Arc<dyn BindingPlugin>>,
    pod: PodInfo,
    node: Arc<str>,
    metrics: &Metrics,
) -> Result<Prepared, Unprepared> {
    let began = Instant::now();
    for plugin in &plugins {
        let Some(work) = plugin.pre_bind(&pod, &node) else {
            continue;
        };
        let since = Instant::now();
        let outcome = work.await;
        // Few Pods have such work, so all of it is told.
        metrics.parts(&[Part {
            plugin: plugin.name(),
            point: Point::PreBind,
            status: if outcome.is_ok() {
                Status::Success
            } else {
                Status::Error
            },
            took: since.elapsed(),
        }]);
        if let Err(error) = outcome {
            let why = format!("running PreBind plugin \"{}\": {error}", plugin.name());
            metrics.prepared(&pod.class.scheduler, false, began.elapsed());
            return Err(Unprepared { pod, why });
        }
    }
    metrics.prepared(&pod.class.scheduler, true, began.elapsed());
    Ok((pod, node))
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Feeds the engine from the informers, and waits until it knows the cluster as it is.
async fn subscribe(shared: &Shared, informers: &Informers) {
    let (pods, nodes, namespaces) = (
        informers.of::<Pod>(),
        informers.of::<Node>(),
        informers.of::<Namespace>(),
    );
    let to = shared.clone();
    namespaces.on_change(move |change: &Change<Namespace>| {
        let object = change.object();
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let labels = (!matches!(change, Change::Deleted(_))).then_some(labels);
        to.change(|engine| engine.namespace_changed(object.metadata.name.as_deref().unwrap_or_default(), labels));
    });
    let to = shared.clone();
    nodes.on_change(move |change: &Change<Node>| {
        to.change(|engine| match change {
            Change::Deleted(node) => engine.node_gone(node.metadata.name.as_deref().unwrap_or_default()),
            other => engine.node_changed(Arc::clone(other.object())),
        });
    });
    let budgets = informers.of::<PodDisruptionBudget>();
    let to = shared.clone();
    budgets.on_change(move |change: &Change<PodDisruptionBudget>| {
        let metadata = &change.object().metadata;
        to.change(|engine| match change {
            Change::Deleted(_) => engine.budget_gone(
                metadata.namespace.as_deref().unwrap_or_default(),
                metadata.name.as_deref().unwrap_or_default(),
            ),
            other => engine.budget_changed(other.object()),
        });
    });
    // Before the Pods: what their owners select decides which of their labels matter.
    if shared.engine().spreads_by_default() {
        subscribe_owners(shared, informers).await;
    }
    let to = shared.clone();
    pods.on_change(move |change: &Change<Pod>| {
        if let Change::Modified { old, new } = change
            && old.spec == new.spec
            && old.metadata.labels == new.metadata.labels
            && old.metadata.deletion_timestamp == new.metadata.deletion_timestamp
            && phase(old) == phase(new)
            && preemption_facts(old) == preemption_facts(new)
            && pod_requests(old) == pod_requests(new)
            && made_claims(old) == made_claims(new)
        {
            return;
        }
        to.change(|engine| match change {
            Change::Deleted(pod) => engine.pod_gone(pod.metadata.uid.as_deref().unwrap_or_default()),
            other => {
                // A new Pod under an old name: its predecessor is gone.
                if let Some(old) = other.old()
                    && old.metadata.uid != other.object().metadata.uid
                {
                    engine.pod_gone(old.metadata.uid.as_deref().unwrap_or_default());
                }
                engine.pod_changed(other.object());
            }
        });
    });
    budgets.synced().await;
    namespaces.synced().await;
    nodes.synced().await;
    pods.synced().await;
}

/// Follows what spreading by default looks at: Services and workloads.
async fn subscribe_owners(shared: &Shared, informers: &Informers) {
    let exactly = |labels: Option<BTreeMap<String, String>>| {
        labels.map(|labels| LabelSelector {
            match_labels: Some(labels),
            ..LabelSelector::default()
        })
    };
    let services = subscribe_owner(shared, informers, OwnerKind::Service, move |service: &Service| {
        exactly(service.spec.as_ref()?.selector.clone())
    });
    let controllers = subscribe_owner(
        shared,
        informers,
        OwnerKind::ReplicationController,
        move |controller: &ReplicationController| exactly(controller.spec.as_ref()?.selector.clone()),
    );
    let replica_sets = subscribe_owner(shared, informers, OwnerKind::ReplicaSet, |set: &ReplicaSet| {
        set.spec.as_ref().map(|spec| spec.selector.clone())
    });
    let stateful_sets = subscribe_owner(shared, informers, OwnerKind::StatefulSet, |set: &StatefulSet| {
        set.spec.as_ref().map(|spec| spec.selector.clone())
    });
    services.synced().await;
    controllers.synced().await;
    replica_sets.synced().await;
    stateful_sets.synced().await;
}

fn subscribe_owner<K>(
    shared: &Shared,
    informers: &Informers,
    kind: OwnerKind,
    selector: impl Fn(&K) -> Option<LabelSelector> + Send + 'static,
) -> Informer<K>
where
    K: kube::Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
{
    let informer = informers.of::<K>();
    let to = shared.clone();
    informer.on_change(move |change: &Change<K>| {
        let object = change.object();
        let selector = match change {
            Change::Deleted(_) => None,
            _ => selector(object),
        };
        // Their status changes often, and wakes nobody.
        let metadata = object.meta();
        to.engine().owner_changed(
            kind,
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
            selector,
        );
    });
    informer
}

/// What of a Pod's status preemption looks at, besides what comes with its deletion.
fn preemption_facts(pod: &Pod) -> (bool, Option<&str>) {
    let status = pod.status.as_ref();
    (
        status.is_some_and(|status| status.start_time.is_some()),
        status.and_then(|status| status.nominated_node_name.as_deref()),
    )
}

/// The claims of devices that were made for a Pod.
fn made_claims(pod: &Pod) -> Option<&[PodResourceClaimStatus]> {
    pod.status.as_ref()?.resource_claim_statuses.as_deref()
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// How long the start waits for the cluster's claims of devices.
const CLAIMS: std::time::Duration = std::time::Duration::from_secs(5);
/// The most that an event may say, in bytes.
const LONGEST_NOTE: usize = 1024;

/// A message cut to what an event takes.
fn shortened(message: &str) -> String {
    if message.len() <= LONGEST_NOTE {
        return message.to_owned();
    }
    const MORE: &str = " ...";
    let mut end = LONGEST_NOTE - MORE.len();
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MORE}", &message[..end])
}

struct Hands {
    client: kube::Client,
    metrics: Metrics,
    recorder: Recorder,
    extenders: Extenders,
    pods: Informer<Pod>,
    shared: Shared,
}

/// Reasons of the condition that says that a Pod waits: nothing fits, or that could not be found out.
const UNSCHEDULABLE: &str = "Unschedulable";
const SCHEDULER_ERROR: &str = "SchedulerError";

/// Why a Pod waits.
#[derive(Clone)]
struct Why {
    reason: &'static str,
    message: Arc<str>,
}

/// What extenders said about a Pod.
enum Answer {
    Nodes(PodInfo, Result<Opinions, String>),
    Victims(PodInfo, Result<BTreeMap<Arc<str>, Victims>, String>, String),
}

/// Said of a Pod that went while extenders were to be asked; nobody hears it.
const GONE: &str = "the Pod is gone";

fn is_unbound(pod: &Pod) -> bool {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    node.unwrap_or_default().is_empty()
}

/// The time as API objects write it, in whole seconds.
fn now() -> String {
    let second = jiff::Timestamp::now().as_second();
    jiff::Timestamp::from_second(second).unwrap_or_default().to_string()
}

fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.to_string()),
        name: Some(pod.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

impl Hands {
    fn tell_unprepared(&self, pod: &PodInfo, why: String) {
        tracing::warn!(pod = %pod.name, namespace = %pod.namespace, why, "cannot bind yet");
        let message = shortened(&why);
        self.recorder.event_by(
            (&pod.class.scheduler, "Scheduling"),
            reference(pod),
            EventType::Warning,
            "FailedScheduling",
            message,
        );
    }

    /// Binds; gives the Pod back if it has to be tried again.
    async fn bind(&self, pod: PodInfo, node: Arc<str>) -> Result<(), PodInfo> {
        let (began, class) = (Instant::now(), Arc::clone(&pod.class));
        let (by, outcome) = match self.extenders.bind(&pod, &node).await {
            None => (Some("DefaultBinder"), self.bind_plainly(pod, node).await),
            Some(Ok(())) => {
                self.say_bound(&pod, &node);
                (None, Ok(()))
            }
            Some(Err(error)) => {
                tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %node, %error, "an extender did not bind");
                // It may have, and not lived to say so.
                if self.object(&pod).is_some_and(|object| is_unbound(&object)) {
                    self.explain(&pod, SCHEDULER_ERROR, &error, None).await;
                }
                (None, Err(pod))
            }
        };
        self.metrics
            .bound(&class.scheduler, by, outcome.is_ok(), began.elapsed());
        outcome
    }

    async fn bind_plainly(&self, pod: PodInfo, node: Arc<str>) -> Result<(), PodInfo> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let mut binding = Binding {
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.to_string()),
                ..ObjectReference::default()
            },
            ..Binding::default()
        };
        binding.metadata.name = Some(pod.name.to_string());
        binding.metadata.namespace = Some(pod.namespace.to_string());
        binding.metadata.uid = Some(pod.uid.to_string());
        let outcome = api
            .create_subresource::<Binding, serde_json::Value>("binding", &pod.name, &PostParams::default(), &binding)
            .await;
        match outcome {
            Ok(_) => {
                self.say_bound(&pod, &node);
                Ok(())
            }
            Err(error) => {
                // Gone, or bound by someone else: the informer will say so, and until then it keeps its place in line.
                if !is_not_found(&error) && !is_conflict(&error) {
                    tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %node, %error, "a binding failed");
                }
                Err(pod)
            }
        }
    }

    fn say_bound(&self, pod: &PodInfo, node: &str) {
        let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
        self.recorder.event_by(
            (&pod.class.scheduler, "Binding"),
            reference(pod),
            EventType::Normal,
            "Scheduled",
            message,
        );
    }

    /// The Pod as the API server has it.
    fn object(&self, pod: &PodInfo) -> Option<Arc<Pod>> {
        let object = self.pods.get(&pod.namespace, &pod.name)?;
        (object.metadata.uid.as_deref() == Some(&*pod.uid)).then_some(object)
    }

    async fn consult(&self, pod: PodInfo, nodes: Vec<Arc<Node>>) -> Answer {
        let opinions = match self.object(&pod) {
            Some(object) => self.extenders.ask(&pod.class, &object, nodes).await,
            None => Err(GONE.to_owned()),
        };
        Answer::Nodes(pod, opinions)
    }

    async fn consult_victims(&self, pod: PodInfo, candidates: BTreeMap<Arc<str>, Victims>, message: String) -> Answer {
        let named = |node: &str, uid: &str| self.shared.engine().pod_on(node, uid);
        let victims = match self.object(&pod) {
            Some(object) => {
                let asking = self
                    .extenders
                    .ask_about_victims(&pod.class, &object, candidates, named, |victim| self.object(victim));
                asking.await
            }
            None => Err(GONE.to_owned()),
        };
        Answer::Victims(pod, victims, message)
    }

    /// Nominates a Pod and sends its victims away; gives the Pod back if that failed.
    async fn preempt(
        &self,
        pod: PodInfo,
        node: Arc<str>,
        victims: Vec<PodInfo>,
        message: String,
    ) -> Result<(), Failed> {
        if !self.explain(&pod, UNSCHEDULABLE, &message, Some(&node)).await {
            return Err(Failed::Preemption(pod));
        }
        let evictions = victims.iter().filter(|victim| !victim.leaving);
        let evictions: FuturesUnordered<_> = evictions.map(|victim| self.evict(victim, &pod, &node)).collect();
        let outcomes: Vec<bool> = evictions.collect().await;
        if outcomes.into_iter().all(|gone| gone) {
            Ok(())
        } else {
            Err(Failed::Preemption(pod))
        }
    }

    /// Says why a victim has to go, and deletes it. Whether it goes.
    async fn evict(&self, victim: &PodInfo, pod: &PodInfo, node: &str) -> bool {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &victim.namespace);
        let scheduler = &pod.class.scheduler;
        let patch = json!({
            "metadata": {"uid": &*victim.uid},
            "status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
                "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
                "lastProbeTime": null, "lastTransitionTime": now(),
            }]},
        });
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: Some(victim.uid.to_string()),
            resource_version: None,
        });
        let outcome = match api
            .patch_status(&victim.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Ok(_) => api.delete(&victim.name, &params).await.map(drop),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => {
                let message = format!("Preempted by pod {} on node {node}", pod.uid);
                self.recorder.event_by(
                    (scheduler, "Preempting"),
                    reference(victim),
                    EventType::Normal,
                    "Preempted",
                    message,
                );
                true
            }
            // Gone already, perhaps with another under its name.
            Err(error) if is_not_found(&error) || is_conflict(&error) => true,
            Err(error) => {
                tracing::warn!(victim = %victim.name, namespace = %victim.namespace, pod = %pod.name, %error, "a preemption failed");
                false
            }
        }
    }

    /// Tells a Pod why it waits. What could not be written was logged, and whether it was changes nothing: the Pod goes
    /// on waiting and is told the next reason.
    async fn tell(&self, pod: PodInfo, why: Why) {
        self.explain(&pod, why.reason, &why.message, None).await;
    }

    /// Takes a nomination out of a Pod's status.
    async fn unnominate(&self, pod: PodInfo) -> Result<(), Failed> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let patch = json!({"metadata": {"uid": &*pod.uid}, "status": {"nominatedNodeName": null}});
        if let Err(error) = api
            .patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
            && !is_not_found(&error)
            && !is_conflict(&error)
        {
            tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %error, "could not end a nomination");
            return Err(Failed::Unnomination(pod));
        }
        Ok(())
    }

    /// Writes why a Pod waits into its condition and its events, and where it is to come if room is being made. Whether
    /// it was written: the Pod may be gone.
    async fn explain(&self, pod: &PodInfo, reason: &str, message: &str, nominated: Option<&str>) -> bool {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let mut condition = json!({
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastProbeTime": null,
        });
        // It waited before: what is new is why.
        if !pod.told {
            condition["lastTransitionTime"] = now().into();
        }
        if pod.generation > 0 {
            condition["observedGeneration"] = pod.generation.into();
        }
        let mut patch = json!({"metadata": {"uid": &*pod.uid}, "status": {"conditions": [condition]}});
        if let Some(node) = nominated {
            patch["status"]["nominatedNodeName"] = node.into();
        }
        let written = api
            .patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        if let Err(error) = &written
            && !is_not_found(error)
            && !is_conflict(error)
        {
            tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %error, "could not say why a Pod waits");
        }
        self.recorder.event_by(
            (&pod.class.scheduler, "Scheduling"),
            reference(pod),
            EventType::Warning,
            "FailedScheduling",
            shortened(message),
        );
        written.is_ok()
    }
}
