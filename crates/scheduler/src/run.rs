//! The scheduler's hands: informers in, bindings and explanations out.
//!
//! One task owns everything. Informer handlers only change the engine and ring a bell; the task then takes decisions
//! until its bounded sets of bindings and explanations in flight are full. Nothing here repeats on a timer: the only
//! deadline is that of a Pod whose binding failed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use sampan_client::{Change, EventType, Informers, Recorder, is_conflict, is_not_found};
use sampan_tasks::Drain;
use serde_json::json;
use tokio::sync::Notify;

use crate::config::Configuration;
use crate::engine::{Decision, Engine};
use crate::framework::BindingPlugin;
use crate::pod::PodInfo;
use crate::resources::pod_requests;

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
}

impl Default for Config {
    fn default() -> Self {
        Config {
            configuration: Configuration::default(),
            bindings_in_flight: 128,
            explanations_in_flight: 64,
            seed: rand::random(),
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
    let profiles = config.configuration.profiles.iter();
    let profiles = profiles.map(|profile| (profile.name.clone(), profile.framework()));
    let engine = Engine::new(profiles, config.seed);
    let shared = Shared {
        engine: Arc::new(Mutex::new(engine)),
        bell: Arc::new(Notify::new()),
    };
    if drain.until(subscribe(&shared, &informers)).await.is_none() {
        return;
    }
    for profile in &config.configuration.profiles {
        tracing::info!(scheduler = profile.name, "scheduling");
    }

    let hands = Hands { client, recorder };
    let mut bindings: FuturesUnordered<BoxFuture<'_, Result<(), PodInfo>>> = FuturesUnordered::new();
    let mut explanations: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    let mut to_explain: VecDeque<(Arc<str>, PodInfo)> = VecDeque::new();
    loop {
        while bindings.len() < config.bindings_in_flight {
            let Some(Decision::Bind { pod, node }) = shared.engine().next_binding(Instant::now()) else {
                break;
            };
            let plugins = shared.engine().binding_plugins(&pod);
            bindings.push(Box::pin(hands.bind(plugins, pod, node)));
        }
        while explanations.len() < config.explanations_in_flight {
            if to_explain.is_empty() {
                let Some(Decision::Tell { message, pods }) = shared.engine().next_telling() else {
                    break;
                };
                let message: Arc<str> = message.into();
                to_explain.extend(pods.into_iter().map(|pod| (Arc::clone(&message), pod)));
            }
            let Some((message, pod)) = to_explain.pop_front() else {
                break;
            };
            // It may have found a place, or gone, since it was to be told.
            if shared.engine().is_waiting(&pod.uid) {
                explanations.push(Box::pin(hands.explain(pod, message)));
            }
        }
        let deadline = shared.engine().next_deadline();
        tokio::select! {
            () = drain.started() => break,
            () = shared.bell.notified() => {}
            Some(outcome) = bindings.next() => if let Err(pod) = outcome {
                shared.engine().bind_failed(pod, Instant::now());
            },
            Some(()) = explanations.next() => {}
            () = sleep_until(deadline), if deadline.is_some() => {}
        }
    }
    // A binding in flight may already be committed: let it be answered rather than guess.
    while bindings.next().await.is_some() {}
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
    let to = shared.clone();
    pods.on_change(move |change: &Change<Pod>| {
        if let Change::Modified { old, new } = change
            && old.spec == new.spec
            && old.metadata.labels == new.metadata.labels
            && old.metadata.deletion_timestamp == new.metadata.deletion_timestamp
            && phase(old) == phase(new)
            && pod_requests(old) == pod_requests(new)
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
    namespaces.synced().await;
    nodes.synced().await;
    pods.synced().await;
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

struct Hands {
    client: kube::Client,
    recorder: Recorder,
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
    /// Binds; gives the Pod back if it has to be tried again.
    async fn bind(&self, plugins: Vec<Arc<dyn BindingPlugin>>, pod: PodInfo, node: Arc<str>) -> Result<(), PodInfo> {
        for plugin in &plugins {
            let outcome = match plugin.pre_bind(&pod, &node) {
                Some(work) => work.await,
                None => Ok(()),
            };
            if let Err(error) = outcome {
                let name = plugin.name();
                tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %node, plugin = name, %error, "cannot bind yet");
                let message = format!("running PreBind plugin \"{name}\": {error}");
                self.recorder
                    .event_about(reference(&pod), EventType::Warning, "FailedScheduling", message);
                return Err(pod);
            }
        }
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
                let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
                self.recorder
                    .event_about(reference(&pod), EventType::Normal, "Scheduled", message);
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

    /// Writes why a Pod waits into its condition and its events.
    async fn explain(&self, pod: PodInfo, message: Arc<str>) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default();
        let patch = json!({
            "metadata": {"uid": &*pod.uid},
            "status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": &*message,
                "lastProbeTime": null, "lastTransitionTime": now.to_string(),
            }]},
        });
        if let Err(error) = api
            .patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
            && !is_not_found(&error)
            && !is_conflict(&error)
        {
            tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %error, "could not say why a Pod waits");
        }
        self.recorder
            .event_about(reference(&pod), EventType::Warning, "FailedScheduling", &*message);
    }
}
