//! The pod worker: one task per Pod that brings the runtime to what the Pod asks for, and at last ends it.
//!
//! Phases, in order and never back:
//! 1. *sync*: decide, act, report; again after every event;
//! 2. *terminating*: the Pod was deleted, completed, evicted or refused: stop everything within its grace period;
//! 3. *terminated*: volumes and network are gone, the last status is written (the status writer then removes a
//!    deleted Pod from the API); wait until the API has no such Pod, and remove what is left.
//!
//! The worker may be dropped at any await: everything it needs is found again from the runtime and the disk.

mod hooks;
mod images;
mod kill;
mod start;
mod sync;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, ObjectReference, Pod, PodStatus, Service};
use kube::Resource;
use sampan_client::{EventType, Informer, Recorder, WorkQueue};
use sampan_runtime::{ContainerFilter, ContainerState, PodSandboxFilter, Runtime, RuntimeError};
use sampan_tasks::{Drain, OnExit, Tasks};
use sampan_volumes::{NodeFacts, Volumes};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::NodeConfig;
use crate::devices::Devices;
use crate::network::PodNetworking;
use crate::pod::status::{self, Verdict, Waiting};
use crate::pod::{self, Observed, label};
use crate::probes::run::{Assignment, Prober, keep_asking};
use crate::probes::{ProbeKind, ProbeResults};
use crate::sources::ObjectSources;
use crate::user_ids::UserIds;

pub use images::Images;

/// What all workers of a node share.
pub struct Context {
    pub config: NodeConfig,
    pub runtime: Arc<dyn Runtime>,
    pub network: Arc<dyn PodNetworking>,
    pub volumes: Volumes,
    /// Ids of Pods whose users are not the node's.
    pub users: UserIds,
    pub devices: Arc<Devices>,
    pub sources: Arc<ObjectSources>,
    pub recorder: Recorder,
    pub services: Informer<Service>,
    pub facts: NodeFacts,
    pub memory_capacity: i64,
    pub images: Images,
    pub restarts: Mutex<pod::backoff::Backoff>,
    pub statuses: WorkQueue<String>,
    pub tasks: Tasks,
    /// When this node's agent started.
    pub started: Timestamp,
}

impl Context {
    /// Removes a Pod's volumes and its directory, and gives its ids and devices back. Idempotent.
    pub async fn remove_directory(&self, uid: &str) -> Result<(), sampan_volumes::VolumeError> {
        self.volumes.teardown(uid).await?;
        self.users.give_back(uid);
        self.devices.give_back(uid);
        Ok(())
    }
}

/// What the worker remembers between events. Lost without harm when the process ends.
struct Memory {
    pod: Arc<Pod>,
    /// The API has no such Pod any more.
    gone: bool,
    verdict: Option<Verdict>,
    waiting: BTreeMap<String, Waiting>,
    /// The newest computed status.
    status: PodStatus,
    /// Everything has ended and is cleaned up: the status is the last one.
    finished: bool,
    /// Nothing will be started again.
    terminal: bool,
    messages: HashMap<String, String>,
    /// Pre-stop hooks that have been run, by container id.
    hooks_run: HashSet<String>,
    adopted: bool,
    failures: u32,
    wake_at: Option<Instant>,
}

/// The worker of one Pod.
pub struct Worker {
    pub uid: String,
    cx: Arc<Context>,
    memory: Mutex<Memory>,
    probes: Mutex<ProbeResults>,
    probe_tasks: Mutex<HashMap<(String, ProbeKind), Drain>>,
    /// Something changed: sync again.
    wake: Notify,
    /// Something changed that the status shows.
    changed: Notify,
    /// The grace period became shorter.
    hurry: Notify,
    /// Stop starting things.
    stopping: Drain,
}

impl Worker {
    pub fn new(cx: Arc<Context>, pod: Arc<Pod>, verdict: Option<Verdict>) -> Arc<Self> {
        let status = pod.status.clone().unwrap_or_default();
        let worker = Arc::new(Self {
            uid: pod::uid(&pod).to_owned(),
            cx,
            memory: Mutex::new(Memory {
                pod: Arc::clone(&pod),
                gone: false,
                verdict,
                waiting: BTreeMap::new(),
                status,
                finished: false,
                terminal: false,
                messages: HashMap::new(),
                hooks_run: HashSet::new(),
                adopted: false,
                failures: 0,
                wake_at: None,
            }),
            probes: Mutex::default(),
            probe_tasks: Mutex::default(),
            wake: Notify::new(),
            changed: Notify::new(),
            hurry: Notify::new(),
            stopping: Drain::new(),
        });
        worker.check_stopping();
        worker
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_probes(&self) -> MutexGuard<'_, ProbeResults> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest Pod from the API.
    pub fn pod(&self) -> Arc<Pod> {
        Arc::clone(&self.lock().pod)
    }

    /// What the status writer needs: the Pod, its newest status, and whether it is the last.
    pub fn report(&self) -> (Arc<Pod>, PodStatus, bool) {
        let memory = self.lock();
        (Arc::clone(&memory.pod), memory.status.clone(), memory.finished)
    }

    /// Whether the Pod uses the node's resources (or may again).
    pub fn is_active(&self) -> bool {
        let memory = self.lock();
        let phase = memory.status.phase.as_deref().unwrap_or("Pending");
        !memory.finished && !pod::is_terminal_phase(phase) && memory.verdict.is_none()
    }

    /// Whether nothing of the Pod runs any more, nor will.
    pub fn has_ended(&self) -> bool {
        let memory = self.lock();
        let status = &memory.status;
        let containers = status.init_container_statuses.iter().chain(&status.container_statuses);
        let running = |status: &ContainerStatus| status.state.as_ref().is_some_and(|state| state.running.is_some());
        let over = status.phase.as_deref().is_some_and(pod::is_terminal_phase);
        memory.finished || over && !containers.flatten().any(running)
    }

    /// A newer Pod from the API.
    pub fn update(&self, pod: Arc<Pod>) {
        let old_grace = {
            let mut memory = self.lock();
            let old = pod::is_deleting(&memory.pod).then(|| pod::grace_seconds(&memory.pod));
            let only_status = memory.pod.metadata.generation == pod.metadata.generation
                && memory.pod.metadata.labels == pod.metadata.labels
                && memory.pod.metadata.annotations == pod.metadata.annotations
                && memory.pod.metadata.deletion_timestamp == pod.metadata.deletion_timestamp
                && memory.pod.metadata.deletion_grace_period_seconds == pod.metadata.deletion_grace_period_seconds;
            let conditions = |pod: &Pod| pod.status.as_ref().and_then(|s| s.conditions.clone());
            let same_conditions = conditions(&memory.pod) == conditions(&pod);
            memory.pod = Arc::clone(&pod);
            if only_status {
                drop(memory);
                // Mostly our own writing come back; others' conditions may open readiness gates.
                if !same_conditions {
                    self.changed.notify_one();
                }
                return;
            }
            old
        };
        self.check_stopping();
        if old_grace.is_some_and(|old| pod::grace_seconds(&pod) < old) {
            self.hurry.notify_one();
        }
        self.poke();
    }

    /// The API has no such Pod any more; `last` is how it was seen last.
    pub fn deleted(&self, last: Arc<Pod>) {
        {
            let mut memory = self.lock();
            memory.pod = last;
            memory.gone = true;
        }
        self.stopping.start();
        self.hurry.notify_one();
        self.poke();
    }

    /// Ends the Pod with this verdict (eviction).
    pub fn condemn(&self, verdict: Verdict) {
        {
            let mut memory = self.lock();
            if memory.verdict.is_some() {
                return;
            }
            memory.verdict = Some(verdict);
        }
        self.stopping.start();
        self.poke();
    }

    /// Something happened that may matter.
    pub fn poke(&self) {
        self.wake.notify_one();
        self.changed.notify_one();
    }

    fn check_stopping(&self) {
        let stop = {
            let memory = self.lock();
            memory.gone || memory.verdict.is_some() || pod::is_deleting(&memory.pod)
        };
        if stop {
            self.stopping.start();
        }
    }

    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.cx.recorder.event(&*self.pod(), kind, reason, message);
    }

    fn container_event(&self, container: &str, kind: EventType, reason: &str, message: impl Into<String>) {
        container_event(&self.cx.recorder, &self.pod(), container, kind, reason, message);
    }

    /// Asks the runtime what there is of this Pod.
    async fn observe(&self) -> Result<Observed, RuntimeError> {
        let labels: BTreeMap<String, String> = [(label::POD_UID.to_owned(), self.uid.clone())].into();
        let sandboxes = self
            .cx
            .runtime
            .list_pod_sandboxes(&PodSandboxFilter {
                labels: labels.clone(),
                ..PodSandboxFilter::default()
            })
            .await?;
        let containers = self
            .cx
            .runtime
            .list_containers(&ContainerFilter {
                labels,
                ..ContainerFilter::default()
            })
            .await?;
        let mut observed = Observed::new(sandboxes, containers);
        let known = self.lock().messages.clone();
        for record in &observed.containers {
            if record.state != ContainerState::Exited {
                continue;
            }
            let message = match known.get(&record.id) {
                Some(message) => message.clone(),
                None => termination_message(record).await,
            };
            observed.messages.insert(record.id.clone(), message);
        }
        let mut memory = self.lock();
        memory.messages.clone_from(&observed.messages);
        let known = |id: &String| observed.containers.iter().any(|record| record.id == *id);
        memory.hooks_run.retain(known);
        drop(memory);
        Ok(observed)
    }

    /// Computes the status from `observed` and leaves it to the status writer. Returns it.
    fn publish(&self, observed: &Observed) -> PodStatus {
        let probes = self.lock_probes().clone();
        let host_ips = self.cx.config.host_ips();
        let mut memory = self.lock();
        let new = status::compute(&status::Input {
            pod: &memory.pod,
            old: &memory.status,
            observed,
            waiting: &memory.waiting,
            probes: &probes,
            host_ips: &host_ips,
            terminal: memory.terminal,
            verdict: memory.verdict.as_ref(),
            now: Timestamp::now(),
        });
        memory.status = new.clone();
        drop(memory);
        self.cx.statuses.add(self.uid.clone());
        new
    }

    async fn publish_now(&self) {
        match self.observe().await {
            Ok(observed) => {
                self.publish(&observed);
            }
            Err(error) => tracing::warn!(uid = self.uid, %error, "the runtime could not be asked"),
        }
    }

    /// The whole life of the Pod on this node.
    pub async fn run(self: Arc<Self>) {
        self.sync_until_stopping().await;
        self.lock().terminal = true;
        self.stop_probes();
        let mut failures = 0;
        while let Err(error) = self.terminate().await {
            failures += 1;
            tracing::warn!(uid = self.uid, %error, "a pod could not be ended, will retry");
            self.event(
                EventType::Warning,
                "FailedKillPod",
                format!("error killing pod: {error}"),
            );
            tokio::time::sleep(retry_delay(failures)).await;
        }
        failures = 0;
        while let Err(error) = self.finish().await {
            failures += 1;
            tracing::warn!(uid = self.uid, %error, "a pod could not be cleaned up, will retry");
            tokio::time::sleep(retry_delay(failures)).await;
        }
        // From here on only the API matters: the status writer removes a deleted Pod, a finished one stays.
        loop {
            if self.lock().gone {
                break;
            }
            // A deletion of a finished Pod needs one more visit of the status writer.
            self.cx.statuses.add(self.uid.clone());
            self.wake.notified().await;
        }
        failures = 0;
        while let Err(error) = self.remove_records().await {
            failures += 1;
            tracing::warn!(uid = self.uid, %error, "records of a pod could not be removed, will retry");
            tokio::time::sleep(retry_delay(failures)).await;
        }
        self.cx.sources.unregister(&self.uid);
        self.cx.images.forget_pod(&self.uid);
        let prefix = format!("{}/", self.uid);
        let mut restarts = self.cx.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        restarts.forget(|key| key.starts_with(&prefix));
    }

    async fn sync_until_stopping(self: &Arc<Self>) {
        loop {
            if self.stopping.is_started() {
                return;
            }
            let over = {
                let sync = self.sync();
                tokio::pin!(sync);
                loop {
                    tokio::select! {
                        over = &mut sync => break over,
                        // A sync may pull an image for minutes; the status must not wait for it.
                        () = self.changed.notified() => self.publish_now().await,
                    }
                }
            };
            if over {
                return;
            }
            let wake_at = self.lock().wake_at.take();
            let timer = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(timer);
            loop {
                tokio::select! {
                    () = self.wake.notified() => break,
                    () = self.stopping.started() => break,
                    () = &mut timer => break,
                    () = self.changed.notified() => self.publish_now().await,
                }
            }
        }
    }

    /// Wakes this worker no later than in `delay`.
    fn wake_in(&self, delay: Duration) {
        let at = Instant::now() + delay;
        let mut memory = self.lock();
        memory.wake_at = Some(memory.wake_at.map_or(at, |before| before.min(at)));
    }

    /// Starts probes of containers that run and ends those of containers that do not.
    fn arrange_probes(self: &Arc<Self>, pod: &Pod, observed: &Observed) {
        let ips = observed.ips();
        let host_ips = self.cx.config.host_ips();
        let ip = ips
            .first()
            .or_else(|| host_ips.first().filter(|_| pod::host_network(pod)))
            .cloned()
            .unwrap_or_default();
        let running: HashSet<&str> = observed.running().map(|record| record.id.as_str()).collect();
        let results = {
            let mut results = self.lock_probes();
            results.retain(|id| running.contains(id));
            results.clone()
        };
        let mut tasks = self.probe_tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|(id, _), stop| {
            let keep = running.contains(id.as_str());
            if !keep {
                stop.start();
            }
            keep
        });
        for record in observed.running() {
            let Some((_, container)) = pod::find_container(pod, &record.metadata.name) else {
                continue;
            };
            let started =
                container.startup_probe.is_none() || results.get(&record.id, ProbeKind::Startup) == Some(true);
            for kind in ProbeKind::ALL {
                let Some(probe) = kind.of(&container) else {
                    continue;
                };
                let due = match kind {
                    ProbeKind::Startup => results.get(&record.id, kind).is_none(),
                    _ => started,
                };
                let key = (record.id.clone(), kind);
                if !due || tasks.contains_key(&key) {
                    continue;
                }
                let stop = self.cx.tasks.drain().child();
                tasks.insert(key, stop.clone());
                let assignment = Assignment {
                    kind,
                    probe: probe.clone(),
                    container: container.clone(),
                    container_id: record.id.clone(),
                    started_at: record.started_at.unwrap_or(record.created_at),
                    pod_ip: ip.clone(),
                };
                self.spawn_probe(assignment, stop);
            }
        }
    }

    fn spawn_probe(self: &Arc<Self>, assignment: Assignment, stop: Drain) {
        let prober = Prober {
            runtime: Arc::clone(&self.cx.runtime),
        };
        // Weak: a probe must not keep the worker of a Pod that is gone.
        let worker = Arc::downgrade(self);
        let (id, kind) = (assignment.container_id.clone(), assignment.kind);
        let settled = {
            let worker = worker.clone();
            move |success| {
                if let Some(worker) = worker.upgrade()
                    && worker.lock_probes().set(&id, kind, success)
                {
                    worker.poke();
                }
            }
        };
        let name = assignment.container.name.clone();
        let note = move |reason: &'static str, message: String| {
            if let Some(worker) = worker.upgrade() {
                worker.container_event(&name, EventType::Warning, reason, message);
            }
        };
        let title = format!("{} probe of {}", kind.title(), assignment.container_id);
        self.cx.tasks.spawn(title, OnExit::Expected, async move {
            let _stopped = stop.until(keep_asking(prober, assignment, settled, note)).await;
        });
    }

    fn stop_probes(&self) {
        let mut tasks = self.probe_tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Readiness goes on: traffic must stop as soon as the program says so.
        tasks.retain(|(_, kind), stop| {
            let keep = *kind == ProbeKind::Readiness;
            if !keep {
                stop.start();
            }
            keep
        });
    }

    fn stop_all_probes(&self) {
        let mut tasks = self.probe_tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, stop) in tasks.drain() {
            stop.start();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop_all_probes();
    }
}

/// An event about one container of a Pod.
pub fn container_event(
    recorder: &Recorder,
    pod: &Pod,
    container: &str,
    kind: EventType,
    reason: &str,
    message: impl Into<String>,
) {
    let list = match pod::find_container(pod, container) {
        Some((pod::Role::Init | pod::Role::Sidecar, _)) => "initContainers",
        Some((pod::Role::Ephemeral, _)) => "ephemeralContainers",
        _ => "containers",
    };
    let about = ObjectReference {
        resource_version: pod.metadata.resource_version.clone(),
        field_path: Some(format!("spec.{list}{{{container}}}")),
        ..pod.object_ref(&())
    };
    recorder.event_about(about, kind, reason, message);
}

fn retry_delay(failures: u32) -> Duration {
    Duration::from_millis(500 << failures.min(7)).min(Duration::from_secs(60))
}

/// At most this much of a termination message is kept, or of the log in its place.
const MESSAGE_LIMIT: usize = 4096;
const FALLBACK_LIMIT: usize = 2048;
const FALLBACK_LINES: u64 = 80;

/// The file on the node that stands for a container's termination message path.
fn message_path(record: &sampan_runtime::ContainerStatus) -> Option<std::path::PathBuf> {
    let path = record.annotations.get(label::TERMINATION_MESSAGE_PATH)?;
    let mut mounts = record.mounts.iter();
    let mount = mounts.find(|mount| mount.container_path == std::path::Path::new(path))?;
    Some(mount.host_path.clone())
}

/// What an ended container left as its last words: the file, or the end of its log where the policy says so.
async fn termination_message(record: &sampan_runtime::ContainerStatus) -> String {
    let file = message_path(record);
    let policy = record.annotations.get(label::TERMINATION_MESSAGE_POLICY);
    let fall_back = policy.is_some_and(|policy| policy == "FallbackToLogsOnError") && record.exit_code != Some(0);
    let bytes = tokio::task::spawn_blocking(move || {
        file.and_then(|file| crate::logs::read_end(&file, MESSAGE_LIMIT as u64).ok())
            .unwrap_or_default()
    })
    .await
    .unwrap_or_default();
    let read = if bytes.is_empty() && fall_back {
        crate::logs::tail_text(&record.log_path, FALLBACK_LINES, FALLBACK_LIMIT).await
    } else {
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let from_runtime = &record.message;
    match (from_runtime.is_empty(), read.is_empty()) {
        (true, _) => read,
        (false, true) => from_runtime.clone(),
        (false, false) => format!("{from_runtime}: {read}"),
    }
}
