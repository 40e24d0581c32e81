//! An in-memory [`Runtime`] for tests of the node: nothing runs, everything is programmable.
//!
//! Containers run until the test says otherwise ([`FakeRuntime::exit`]) or a script for their name
//! does ([`FakeRuntime::on_start`]). Operations can be made to fail ([`FakeRuntime::fail`]) and every
//! call is recorded ([`FakeRuntime::calls`]).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};

use crate::runtime::{ErrorKind, Result, Runtime, RuntimeError};
use crate::types::*;

/// What a container of the fake does by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// Runs until the test ends it.
    Run,
    /// Exits with this code as soon as it was started.
    Exit(i32),
    /// Cannot be started, for this reason.
    StartError(String),
    /// Runs, and ends with this code when asked to stop.
    ExitOnStop(i32),
}

/// Answers commands in place of a process.
pub type ExecFn = Arc<dyn Fn(&str, &[String]) -> ExecOutput + Send + Sync>;

struct FakeContainer {
    status: ContainerStatus,
    config: ContainerConfig,
    pod_uid: String,
    exited: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    next: u64,
    images: BTreeMap<String, Image>,
    sandboxes: BTreeMap<String, (PodSandboxStatus, PodSandboxConfig)>,
    containers: BTreeMap<String, FakeContainer>,
    scripts: HashMap<String, VecDeque<Script>>,
    failures: HashMap<String, VecDeque<RuntimeError>>,
    calls: Vec<String>,
    subscribers: Vec<mpsc::UnboundedSender<ContainerEvent>>,
    exec: Option<ExecFn>,
}

/// The fake. Clones share one state.
#[derive(Clone, Default)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
}

impl FakeRuntime {
    /// An empty runtime.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an image present.
    pub fn add_image(&self, reference: &str, config: ImageConfig) -> String {
        self.lock().add_image(reference, config)
    }

    /// What the next containers of this name do when started, one script each; the last one stays.
    pub fn on_start(&self, container_name: &str, scripts: impl IntoIterator<Item = Script>) {
        let queue = scripts.into_iter().collect();
        self.lock().scripts.insert(container_name.into(), queue);
    }

    /// The next call of `operation` (a method's name) fails with `error`. Queues up.
    pub fn fail(&self, operation: &str, error: RuntimeError) {
        let mut state = self.lock();
        let queue = state.failures.entry(operation.into()).or_default();
        queue.push_back(error);
    }

    /// Answers `exec` and `exec_sync`. Without it commands succeed and print nothing.
    pub fn on_exec(&self, answer: impl Fn(&str, &[String]) -> ExecOutput + Send + Sync + 'static) {
        self.lock().exec = Some(Arc::new(answer));
    }

    /// Ends a running container with `code`.
    pub fn exit(&self, container_id: &str, code: i32) {
        self.lock().exit(container_id, code, None);
    }

    /// Ends a running container as the kernel does when memory is short.
    pub fn oom_kill(&self, container_id: &str) {
        self.lock().exit(container_id, 137, Some(reason::OOM_KILLED));
    }

    /// Every call so far: `operation id-or-name`.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// The newest container of this name.
    pub fn container_named(&self, name: &str) -> Option<ContainerStatus> {
        let state = self.lock();
        let named = state.containers.values();
        named
            .filter(|c| c.config.metadata.name == name)
            .max_by_key(|c| c.status.id.clone())
            .map(|c| c.status.clone())
    }

    /// The configuration a container was created with.
    pub fn container_config(&self, container_id: &str) -> Option<ContainerConfig> {
        let state = self.lock();
        state.containers.get(container_id).map(|c| c.config.clone())
    }

    /// The configuration a sandbox was created with.
    pub fn sandbox_config(&self, sandbox_id: &str) -> Option<PodSandboxConfig> {
        let state = self.lock();
        state.sandboxes.get(sandbox_id).map(|s| s.1.clone())
    }

    fn begin(&self, operation: &str, about: &str) -> Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        state.calls.push(format!("{operation} {about}"));
        match state.failures.get_mut(operation).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(state),
        }
    }

    fn run_exec(&self, operation: &str, id: &str, command: &[String]) -> Result<ExecOutput> {
        let answer = {
            let state = self.begin(operation, &format!("{id} {}", command.join(" ")))?;
            state.running(id)?;
            state.exec.clone()
        };
        Ok(answer.map_or_else(ExecOutput::default, |answer| answer(id, command)))
    }
}

impl State {
    fn new_id(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}-{:08}", self.next)
    }

    fn add_image(&mut self, reference: &str, config: ImageConfig) -> String {
        let id = format!("sha256:{:064x}", {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let mut hasher = DefaultHasher::new();
            reference.hash(&mut hasher);
            hasher.finish()
        });
        let image = Image {
            id: id.clone(),
            repo_tags: vec![reference.into()],
            repo_digests: vec![format!("{reference}@{id}")],
            size: 1,
            config,
            ..Image::default()
        };
        self.images.insert(reference.into(), image);
        id
    }

    fn image(&self, reference: &str) -> Option<&Image> {
        let by_name = self.images.get(reference);
        by_name.or_else(|| self.images.values().find(|image| image.id == reference))
    }

    fn emit(&mut self, kind: ContainerEventKind, id: &str, sandbox_id: &str, pod_uid: &str) {
        let event = ContainerEvent {
            kind,
            container_id: id.into(),
            sandbox_id: sandbox_id.into(),
            pod_uid: pod_uid.into(),
            at: Timestamp::now(),
        };
        self.subscribers.retain(|s| s.send(event.clone()).is_ok());
    }

    fn running(&self, id: &str) -> Result<&FakeContainer> {
        let found = self.containers.get(id);
        let container = found.ok_or_else(|| RuntimeError::not_found("container", id))?;
        if container.status.state == ContainerState::Running {
            Ok(container)
        } else {
            Err(RuntimeError::precondition(format!("container \"{id}\" is not running")))
        }
    }

    fn exit(&mut self, id: &str, code: i32, why: Option<&str>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let status = &mut container.status;
        if status.state != ContainerState::Running {
            return;
        }
        status.state = ContainerState::Exited;
        status.exit_code = Some(code);
        status.finished_at = Some(Timestamp::now());
        status.pid = 0;
        let by_code = if code == 0 { reason::COMPLETED } else { reason::ERROR };
        status.reason = why.unwrap_or(by_code).into();
        container.exited.send_replace(true);
        let (sandbox, uid) = (status.sandbox_id.clone(), container.pod_uid.clone());
        self.emit(ContainerEventKind::Stopped, id, &sandbox, &uid);
    }

    fn stop(&mut self, id: &str) {
        let name = self.containers.get(id).map(|c| c.config.metadata.name.clone());
        let script = name.and_then(|name| self.scripts.get(&name)?.back().cloned());
        match script {
            Some(Script::ExitOnStop(code)) => self.exit(id, code, None),
            _ => self.exit(id, 137, None),
        }
    }

    fn remove_container(&mut self, id: &str) {
        self.exit(id, 137, None);
        if let Some(gone) = self.containers.remove(id) {
            let sandbox = gone.status.sandbox_id.clone();
            self.emit(ContainerEventKind::Deleted, id, &sandbox, &gone.pod_uid);
        }
    }

    fn containers_of(&self, sandbox_id: &str) -> Vec<String> {
        let all = self.containers.values();
        all.filter(|c| c.status.sandbox_id == sandbox_id)
            .map(|c| c.status.id.clone())
            .collect()
    }

    fn stop_sandbox(&mut self, id: &str) {
        for container in self.containers_of(id) {
            self.exit(&container, 137, None);
        }
        let Some((status, _)) = self.sandboxes.get_mut(id) else {
            return;
        };
        if status.state == PodSandboxState::Ready {
            status.state = PodSandboxState::NotReady;
            status.pid = 0;
            let uid = status.metadata.uid.clone();
            self.emit(ContainerEventKind::Stopped, id, id, &uid);
        }
    }

    fn stats(&self, container: &FakeContainer) -> ContainerStats {
        let status = &container.status;
        let running = status.state == ContainerState::Running;
        ContainerStats {
            id: status.id.clone(),
            sandbox_id: status.sandbox_id.clone(),
            metadata: status.metadata.clone(),
            labels: status.labels.clone(),
            started_at: status.started_at,
            timestamp: Timestamp::now(),
            cpu: running.then(CpuUsage::default),
            memory: running.then(MemoryUsage::default),
            writable_layer: no_usage(),
        }
    }
}

fn no_usage() -> FilesystemUsage {
    FilesystemUsage {
        timestamp: Timestamp::now(),
        path: PathBuf::from("/"),
        used_bytes: 0,
        inodes_used: 0,
        capacity_bytes: 1 << 40,
        available_bytes: 1 << 39,
        inodes: 1 << 20,
        inodes_free: 1 << 19,
    }
}

fn labels_match(wanted: &StringMap, labels: &StringMap) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        Ok(RuntimeVersion {
            runtime_name: "fake".into(),
            runtime_version: "0".into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        drop(self.begin("status", "")?);
        let ready = |kind: &str| RuntimeCondition {
            kind: kind.into(),
            status: true,
            ..RuntimeCondition::default()
        };
        Ok(RuntimeStatus {
            conditions: vec![ready("RuntimeReady"), ready("NetworkReady")],
            ..RuntimeStatus::default()
        })
    }

    async fn pull_image(
        &self,
        reference: &str,
        _auth: Option<&RegistryAuth>,
        _progress: Option<PullProgressFn>,
    ) -> Result<String> {
        let mut state = self.begin("pull_image", reference)?;
        if let Some(image) = state.image(reference) {
            return Ok(image.id.clone());
        }
        Ok(state.add_image(reference, ImageConfig::default()))
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        Ok(self.begin("list_images", "")?.images.values().cloned().collect())
    }

    async fn image_status(&self, reference: &str) -> Result<Option<Image>> {
        Ok(self.begin("image_status", reference)?.image(reference).cloned())
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        let mut state = self.begin("remove_image", reference)?;
        let Some(id) = state.image(reference).map(|image| image.id.clone()) else {
            return Ok(());
        };
        if state.containers.values().any(|c| c.status.image_id == id) {
            return Err(RuntimeError::precondition(format!("image \"{reference}\" is in use")));
        }
        state.images.retain(|_, image| image.id != id);
        Ok(())
    }

    async fn image_fs_info(&self) -> Result<FilesystemUsage> {
        drop(self.begin("image_fs_info", "")?);
        Ok(no_usage())
    }

    async fn make_namespaces(&self, users: &UserNamespace, _network: &Path) -> Result<()> {
        let name = users.path.display().to_string();
        self.begin("make_namespaces", &name).map(drop)
    }
    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<String> {
        let mut state = self.begin("run_pod_sandbox", &config.metadata.name)?;
        let id = state.new_id("sandbox");
        let status = PodSandboxStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: PodSandboxState::Ready,
            created_at: Timestamp::now(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            namespaces: config.linux.namespaces.clone(),
            netns: config.linux.netns.clone(),
            pid: 1,
        };
        state.sandboxes.insert(id.clone(), (status, config.clone()));
        let uid = &config.metadata.uid;
        state.emit(ContainerEventKind::Created, &id, &id, uid);
        state.emit(ContainerEventKind::Started, &id, &id, uid);
        Ok(id)
    }

    async fn stop_pod_sandbox(&self, sandbox_id: &str) -> Result<()> {
        self.begin("stop_pod_sandbox", sandbox_id)?.stop_sandbox(sandbox_id);
        Ok(())
    }

    async fn remove_pod_sandbox(&self, sandbox_id: &str) -> Result<()> {
        let mut state = self.begin("remove_pod_sandbox", sandbox_id)?;
        state.stop_sandbox(sandbox_id);
        for container in state.containers_of(sandbox_id) {
            state.remove_container(&container);
        }
        if let Some((status, _)) = state.sandboxes.remove(sandbox_id) {
            let uid = status.metadata.uid;
            state.emit(ContainerEventKind::Deleted, sandbox_id, sandbox_id, &uid);
        }
        Ok(())
    }

    async fn pod_sandbox_status(&self, sandbox_id: &str) -> Result<PodSandboxStatus> {
        let state = self.begin("pod_sandbox_status", sandbox_id)?;
        let found = state.sandboxes.get(sandbox_id).map(|s| s.0.clone());
        found.ok_or_else(|| RuntimeError::not_found("sandbox", sandbox_id))
    }

    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> Result<Vec<PodSandboxStatus>> {
        let state = self.begin("list_pod_sandboxes", "")?;
        let all = state.sandboxes.values().map(|s| &s.0);
        Ok(all
            .filter(|s| filter.id.as_ref().is_none_or(|id| *id == s.id))
            .filter(|s| filter.state.is_none_or(|state| state == s.state))
            .filter(|s| labels_match(&filter.labels, &s.labels))
            .cloned()
            .collect())
    }

    async fn create_container(&self, sandbox_id: &str, config: &ContainerConfig) -> Result<String> {
        let mut state = self.begin("create_container", &config.metadata.name)?;
        let (sandbox, sandbox_config) = state
            .sandboxes
            .get(sandbox_id)
            .ok_or_else(|| RuntimeError::not_found("sandbox", sandbox_id))?;
        if sandbox.state != PodSandboxState::Ready {
            return Err(RuntimeError::precondition("the sandbox is not ready"));
        }
        let pod_uid = sandbox.metadata.uid.clone();
        let log_path = sandbox_config.log_directory.join(&config.log_path);
        let image = state
            .image(&config.image)
            .ok_or_else(|| RuntimeError::not_found("image", &config.image))?
            .clone();
        let id = state.new_id("container");
        let status = ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox_id.into(),
            metadata: config.metadata.clone(),
            state: ContainerState::Created,
            created_at: Timestamp::now(),
            started_at: None,
            finished_at: None,
            exit_code: None,
            signal: None,
            image: config.image.clone(),
            image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
            image_id: image.id.clone(),
            reason: String::new(),
            message: String::new(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path,
            resources: config.linux.resources.clone(),
            pid: 0,
            user: None,
        };
        let container = FakeContainer {
            status,
            config: config.clone(),
            pod_uid: pod_uid.clone(),
            exited: watch::Sender::new(false),
        };
        state.containers.insert(id.clone(), container);
        state.emit(ContainerEventKind::Created, &id, sandbox_id, &pod_uid);
        Ok(id)
    }

    async fn start_container(&self, container_id: &str) -> Result<()> {
        let mut state = self.begin("start_container", container_id)?;
        let found = state.containers.get(container_id);
        let container = found.ok_or_else(|| RuntimeError::not_found("container", container_id))?;
        if container.status.state != ContainerState::Created {
            return Err(RuntimeError::precondition("the container was started before"));
        }
        let (sandbox, uid) = (container.status.sandbox_id.clone(), container.pod_uid.clone());
        let name = container.config.metadata.name.clone();
        let script = match state.scripts.get_mut(&name) {
            Some(queue) if queue.len() > 1 => queue.pop_front(),
            Some(queue) => queue.front().cloned(),
            None => None,
        };
        let Some(container) = state.containers.get_mut(container_id) else {
            return Err(RuntimeError::not_found("container", container_id));
        };
        if let Some(Script::StartError(message)) = script {
            container.status.state = ContainerState::Exited;
            container.status.exit_code = Some(128);
            container.status.reason = reason::START_ERROR.into();
            container.status.message = message.clone();
            container.status.finished_at = Some(Timestamp::now());
            container.exited.send_replace(true);
            state.emit(ContainerEventKind::Stopped, container_id, &sandbox, &uid);
            return Err(RuntimeError::new(ErrorKind::StartFailed, message));
        }
        container.status.state = ContainerState::Running;
        container.status.started_at = Some(Timestamp::now());
        container.status.pid = 2;
        state.emit(ContainerEventKind::Started, container_id, &sandbox, &uid);
        if let Some(Script::Exit(code)) = script {
            state.exit(container_id, code, None);
        }
        Ok(())
    }

    async fn stop_container(&self, container_id: &str, grace: Duration) -> Result<()> {
        let about = format!("{container_id} {}s", grace.as_secs());
        self.begin("stop_container", &about)?.stop(container_id);
        Ok(())
    }

    async fn remove_container(&self, container_id: &str) -> Result<()> {
        self.begin("remove_container", container_id)?
            .remove_container(container_id);
        Ok(())
    }

    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus> {
        let state = self.begin("container_status", container_id)?;
        let found = state.containers.get(container_id).map(|c| c.status.clone());
        found.ok_or_else(|| RuntimeError::not_found("container", container_id))
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStatus>> {
        let state = self.begin("list_containers", "")?;
        let all = state.containers.values().map(|c| &c.status);
        Ok(all
            .filter(|c| filter.id.as_ref().is_none_or(|id| *id == c.id))
            .filter(|c| filter.sandbox_id.as_ref().is_none_or(|id| *id == c.sandbox_id))
            .filter(|c| filter.state.is_none_or(|state| state == c.state))
            .filter(|c| labels_match(&filter.labels, &c.labels))
            .cloned()
            .collect())
    }

    async fn update_container_resources(&self, container_id: &str, resources: &LinuxContainerResources) -> Result<()> {
        let mut state = self.begin("update_container_resources", container_id)?;
        let found = state.containers.get_mut(container_id);
        let container = found.ok_or_else(|| RuntimeError::not_found("container", container_id))?;
        container.status.resources.update(resources);
        Ok(())
    }

    async fn reopen_container_log(&self, container_id: &str) -> Result<()> {
        self.begin("reopen_container_log", container_id)?
            .running(container_id)?;
        Ok(())
    }

    async fn container_stats(&self, container_id: &str) -> Result<ContainerStats> {
        let state = self.begin("container_stats", container_id)?;
        let found = state.containers.get(container_id).map(|c| state.stats(c));
        found.ok_or_else(|| RuntimeError::not_found("container", container_id))
    }

    async fn pod_sandbox_stats(&self, sandbox_id: &str) -> Result<PodSandboxStats> {
        let state = self.begin("pod_sandbox_stats", sandbox_id)?;
        if !state.sandboxes.contains_key(sandbox_id) {
            return Err(RuntimeError::not_found("sandbox", sandbox_id));
        }
        let running = state
            .containers
            .values()
            .filter(|c| c.status.sandbox_id == sandbox_id && c.status.state == ContainerState::Running);
        Ok(PodSandboxStats {
            id: sandbox_id.into(),
            timestamp: Timestamp::now(),
            cpu: Some(CpuUsage::default()),
            memory: Some(MemoryUsage::default()),
            network: Vec::new(),
            process_count: 0,
            containers: running.map(|c| state.stats(c)).collect(),
        })
    }

    async fn pod_usage(&self, sandbox_id: &str) -> Result<PodUsage> {
        let stats = self.pod_sandbox_stats(sandbox_id).await?;
        let containers = stats.containers.into_iter().map(|own| ContainerUsage {
            name: own.metadata.name,
            started_at: own.started_at,
            timestamp: own.timestamp,
            cpu: own.cpu,
            memory: own.memory,
        });
        Ok(PodUsage {
            timestamp: stats.timestamp,
            cpu: stats.cpu,
            memory: stats.memory,
            containers: containers.collect(),
        })
    }

    async fn exec_sync(&self, container_id: &str, command: &[String], _timeout: Duration) -> Result<ExecOutput> {
        self.run_exec("exec_sync", container_id, command)
    }

    async fn exec(&self, container_id: &str, request: ExecRequest, streams: Streams) -> Result<i32> {
        let output = self.run_exec("exec", container_id, &request.command)?;
        let ends = [(streams.stdout, output.stdout), (streams.stderr, output.stderr)];
        for (end, bytes) in ends {
            if let Some(mut end) = end {
                let written = end.write_all(&bytes).await;
                written.map_err(|error| RuntimeError::internal("write output", error))?;
            }
        }
        Ok(output.exit_code)
    }

    async fn attach(&self, container_id: &str, _streams: Streams) -> Result<()> {
        let mut exited = {
            let state = self.begin("attach", container_id)?;
            state.running(container_id)?.exited.subscribe()
        };
        // A removed container drops its sender: that ends the attachment too.
        let _exited_or_removed = exited.wait_for(|exited| *exited).await;
        Ok(())
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16, mut stream: Box<dyn Duplex>) -> Result<()> {
        drop(self.begin("port_forward", &format!("{sandbox_id} {port}"))?);
        let closed = stream.shutdown().await;
        closed.map_err(|error| RuntimeError::internal("close the forwarded stream", error))
    }

    fn events(&self) -> mpsc::UnboundedReceiver<ContainerEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().subscribers.push(sender);
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_container_runs_and_exits_as_scripted_and_says_so() {
        let fake = FakeRuntime::new();
        let mut events = fake.events();
        fake.add_image("app:1", ImageConfig::default());
        fake.on_start("job", [Script::Exit(3), Script::Run]);
        let sandbox = fake.run_pod_sandbox(&PodSandboxConfig::default()).await.unwrap();
        let config = ContainerConfig {
            metadata: ContainerMetadata {
                name: "job".into(),
                attempt: 0,
            },
            image: "app:1".into(),
            ..ContainerConfig::default()
        };
        let first = fake.create_container(&sandbox, &config).await.unwrap();
        fake.start_container(&first).await.unwrap();
        let status = fake.container_status(&first).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (Some(3), "Error"));

        let second = fake.create_container(&sandbox, &config).await.unwrap();
        fake.start_container(&second).await.unwrap();
        let status = fake.container_status(&second).await.unwrap();
        assert_eq!(status.state, ContainerState::Running);
        fake.oom_kill(&second);
        assert_eq!(fake.container_status(&second).await.unwrap().reason, "OOMKilled");

        fake.remove_pod_sandbox(&sandbox).await.unwrap();
        let mut kinds = Vec::new();
        while let Ok(event) = events.try_recv() {
            kinds.push(event.kind);
        }
        use ContainerEventKind::*;
        let expected = [
            Created, Started, Created, Started, Stopped, Created, Started, Stopped, Stopped, Deleted, Deleted, Deleted,
        ];
        assert_eq!(kinds, expected);
    }

    #[tokio::test]
    async fn a_programmed_failure_happens_once() {
        let fake = FakeRuntime::new();
        fake.fail("pull_image", RuntimeError::new(ErrorKind::ImagePull, "no"));
        assert!(fake.pull_image("a", None, None).await.is_err());
        assert!(fake.pull_image("a", None, None).await.is_ok());
    }
}
