//! Which Pods are here: the API's changes and the runtime's events, handed to one worker per Pod; and the removal of
//! what belongs to no Pod any more.

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod};
use sampan_client::{Change, EventType, Informer};
use sampan_runtime::{ContainerEvent, ContainerFilter, PodSandboxFilter, PodSandboxStatus};
use sampan_tasks::OnExit;
use tokio::sync::{mpsc, watch};

use crate::admission;
use crate::network::NetworkRequest;
use crate::node_status::Pressure;
use crate::pod::status::Verdict;
use crate::pod::{self, label};
use crate::status_writer::StatusWriter;
use crate::worker::{Context, Worker};

/// All workers of the node.
pub struct Manager {
    pub cx: Arc<Context>,
    pub writer: StatusWriter,
    node: Informer<ApiNode>,
    /// As it was registered: until the informer has seen it.
    registered: OnceLock<ApiNode>,
    pressure: watch::Receiver<Pressure>,
    workers: Mutex<HashMap<String, Arc<Worker>>>,
}

impl Manager {
    pub fn new(
        cx: Arc<Context>,
        writer: StatusWriter,
        node: Informer<ApiNode>,
        pressure: watch::Receiver<Pressure>,
    ) -> Arc<Self> {
        Arc::new(Self {
            cx,
            writer,
            node,
            registered: OnceLock::new(),
            pressure,
            workers: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Worker>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the node's object is, before Pods come.
    pub fn set_registered(&self, node: ApiNode) {
        self.registered.get_or_init(|| node);
    }

    /// The worker of a Pod.
    pub fn worker(&self, uid: &str) -> Option<Arc<Worker>> {
        self.lock().get(uid).cloned()
    }

    /// The newest Pod of this name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Worker>> {
        let workers = self.lock();
        let mut named: Vec<&Arc<Worker>> = workers
            .values()
            .filter(|worker| {
                let pod = worker.pod();
                pod::namespace(&pod) == namespace && pod::name(&pod) == name
            })
            .collect();
        named.sort_by_key(|worker| worker.pod().metadata.creation_timestamp.clone());
        named.last().map(|worker| Arc::clone(worker))
    }

    /// Every Pod of this node, as this node knows it.
    pub fn pods(&self) -> Vec<Arc<Worker>> {
        self.lock().values().cloned().collect()
    }

    /// Wakes the worker of a Pod.
    pub fn poke(&self, uid: &str) {
        if let Some(worker) = self.worker(uid) {
            worker.poke();
        }
    }

    /// Follows the API's Pods of this node.
    pub fn follow(self: &Arc<Self>, pods: &Informer<Pod>) {
        let manager = Arc::downgrade(self);
        pods.on_change(move |change| {
            let Some(manager) = manager.upgrade() else {
                return;
            };
            match change {
                Change::Added(pod) | Change::Modified { new: pod, .. } => manager.upsert(pod),
                Change::Deleted(pod) => {
                    if let Some(worker) = manager.worker(pod::uid(pod)) {
                        worker.deleted(Arc::clone(pod));
                    }
                }
            }
        });
    }

    fn upsert(self: &Arc<Self>, pod: &Arc<Pod>) {
        let uid = pod::uid(pod);
        let mut workers = self.lock();
        if let Some(worker) = workers.get(uid) {
            worker.update(Arc::clone(pod));
            return;
        }
        let verdict = self.admit(pod, &workers);
        let worker = Worker::new(Arc::clone(&self.cx), Arc::clone(pod), verdict);
        workers.insert(uid.to_owned(), Arc::clone(&worker));
        drop(workers);
        let manager = Arc::clone(self);
        let title = format!("pod {}", pod::display(pod));
        let uid = uid.to_owned();
        self.cx.tasks.spawn_until_drain(title, OnExit::Expected, async move {
            // A bug in one Pod's way must not leave it without a worker: it begins again from what is there.
            while let Err(panic) = AssertUnwindSafe(Arc::clone(&worker).run()).catch_unwind().await {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                tracing::error!(uid, panic = text, "a pod worker panicked and is started again");
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
            manager.lock().remove(&uid);
            manager.writer.forget(&uid);
        });
    }

    /// Refuses a new Pod that this node cannot run. What has started before is never refused.
    fn admit(&self, pod: &Pod, workers: &HashMap<String, Arc<Worker>>) -> Option<Verdict> {
        let fresh =
            pod::phase(pod) == "Pending" && pod.status.as_ref().is_none_or(|status| status.start_time.is_none());
        if !fresh || pod::is_deleting(pod) {
            return None;
        }
        let mut node = match self.node.get("", &self.cx.config.name) {
            Some(node) => (*node).clone(),
            None => self.registered.get()?.clone(),
        };
        // What the machine has is known here first.
        let allocatable = self.cx.facts.allocatable.0.clone();
        node.status.get_or_insert_default().allocatable = Some(allocatable);
        let active: Vec<Arc<Pod>> = workers
            .values()
            .filter(|worker| worker.is_active())
            .map(|worker| worker.pod())
            .collect();
        let active: Vec<&Pod> = active.iter().map(|pod| &**pod).collect();
        let pressure = *self.pressure.borrow();
        let refusal = admission::check_pressure(pod, pressure)
            .or_else(|| admission::check(pod, &node, &active))
            .or_else(|| {
                // The API has seen that they ended; that their directories go takes a moment longer.
                let over = |uid: &str| workers.get(uid).is_some_and(|worker| worker.has_ended());
                self.cx.devices.give_back_of(over);
                let taken = self.cx.devices.take(pod, &self.cx.volumes.pod_dir(pod::uid(pod)));
                let error = taken.err()?;
                Some(admission::Refusal {
                    reason: "UnexpectedAdmissionError".into(),
                    message: error.to_string(),
                })
            })?;
        self.cx
            .recorder
            .event(pod, EventType::Warning, &refusal.reason, refusal.message.clone());
        Some(Verdict {
            phase: "Failed".into(),
            reason: refusal.reason,
            message: format!("Pod was rejected: {}", refusal.message),
            condition: None,
        })
    }

    /// Hands the runtime's events to the workers they concern.
    pub async fn route(self: Arc<Self>, mut events: mpsc::UnboundedReceiver<ContainerEvent>) {
        while let Some(event) = events.recv().await {
            self.poke(&event.pod_uid);
        }
    }

    /// Writes the status of one Pod: the status queue's work.
    pub async fn write_status(&self, uid: &str) -> Result<(), kube::Error> {
        let Some(worker) = self.worker(uid) else {
            return Ok(());
        };
        let (pod, status, finished) = worker.report();
        self.writer.write(&pod, &status, finished).await
    }

    /// Removes sandboxes, containers, networks and volumes of Pods that the API does not know (it forgot them while
    /// this process was away). Call once the Pods are known.
    pub async fn remove_orphans(&self) {
        let filter = PodSandboxFilter::default();
        let sandboxes = match self.cx.runtime.list_pod_sandboxes(&filter).await {
            Ok(sandboxes) => sandboxes,
            Err(error) => {
                tracing::warn!(%error, "left-over sandboxes cannot be looked for");
                return;
            }
        };
        let mut left: BTreeSet<String> = BTreeSet::new();
        for sandbox in sandboxes {
            // Only what a node's agent made.
            let Some(uid) = sandbox.labels.get(label::POD_UID) else {
                continue;
            };
            if self.worker(uid).is_some() {
                continue;
            }
            tracing::info!(
                pod = sandbox.metadata.name,
                uid,
                "ending a pod that the API has forgotten"
            );
            left.insert(uid.clone());
            if let Err(error) = self.remove_orphan(&sandbox).await {
                tracing::warn!(sandbox = sandbox.id, error, "a left-over sandbox could not be removed");
            }
        }
        match self.cx.volumes.reconstruct().await {
            Ok(found) => left.extend(found.into_iter().map(|pod| pod.uid)),
            Err(error) => tracing::warn!(%error, "left-over volumes cannot be looked for"),
        }
        for uid in left {
            if self.worker(&uid).is_some() {
                continue;
            }
            if let Err(error) = self.cx.remove_directory(&uid).await {
                tracing::warn!(uid, %error, "left-over volumes could not be removed");
            }
        }
        if let Err(error) = self.remove_orphaned_logs().await {
            tracing::warn!(%error, "left-over logs could not be removed");
        }
    }

    /// Removes the logs of Pods that nobody knows: `<namespace>_<name>_<uid>`.
    async fn remove_orphaned_logs(&self) -> std::io::Result<()> {
        let mut entries = tokio::fs::read_dir(self.cx.config.pod_logs_dir()).await?;
        while let Some(entry) = entries.next_entry().await? {
            let name = entry.file_name();
            let Some((_, uid)) = name.to_str().and_then(|name| name.rsplit_once('_')) else {
                continue;
            };
            if self.worker(uid).is_none() {
                tokio::fs::remove_dir_all(entry.path()).await?;
            }
        }
        Ok(())
    }

    async fn remove_orphan(&self, sandbox: &PodSandboxStatus) -> Result<(), String> {
        let text = |error: sampan_runtime::RuntimeError| error.to_string();
        let filter = ContainerFilter {
            sandbox_id: Some(sandbox.id.clone()),
            ..ContainerFilter::default()
        };
        let containers = self.cx.runtime.list_containers(&filter).await.map_err(text)?;
        let stops = containers.iter().map(|record| {
            let grace = record.annotations.get(label::GRACE_PERIOD);
            let grace = grace.and_then(|text| text.parse().ok()).unwrap_or(30);
            let grace = Duration::from_secs(grace);
            self.cx.runtime.stop_container(&record.id, grace)
        });
        for stopped in futures::future::join_all(stops).await {
            stopped.map_err(text)?;
        }
        self.cx.runtime.stop_pod_sandbox(&sandbox.id).await.map_err(text)?;
        let request = NetworkRequest {
            namespace: sandbox.metadata.namespace.clone(),
            name: sandbox.metadata.name.clone(),
            uid: sandbox.metadata.uid.clone(),
            attempt: sandbox.metadata.attempt,
            ..NetworkRequest::default()
        };
        if sandbox.netns.is_some() {
            let down = self.cx.network.teardown(&request).await;
            down.map_err(|error| error.to_string())?;
        }
        self.cx.runtime.remove_pod_sandbox(&sandbox.id).await.map_err(text)
    }
}
