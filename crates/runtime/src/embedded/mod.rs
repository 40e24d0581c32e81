//! The embedded engine.
//!
//! Everything that must survive is in files or in shims; this is the part that dies with the server
//! and is built again from them ([`Embedded::open`]). A sandbox is a shim process; the engine holds
//! one connection to each, on which exits arrive. See [`records`] for what is on disk.
//!
//! Invariants:
//! - a sandbox or container exists once its `record.json` does; directories without one are remains of
//!   an interrupted operation and are removed at the next start;
//! - one engine per directory: a lock is held for its whole life;
//! - for one container events come in the order Created, Started, Stopped, Deleted, each once.

mod adopt;
mod build;
mod client;
mod containers;
mod records;
mod sandboxes;
mod streams;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sampan_tasks::Tasks;
use tokio::sync::mpsc;

use self::records::{Container, Sandbox};
use crate::cgroups::Cgroups;
use crate::images::{ImageStore, Reference, Registry, RegistryConfig};
use crate::runtime::{ErrorKind, Result, Runtime, RuntimeError};
use crate::shim::namespaces;
use crate::sys::{self, MountChange};
use crate::types::*;

/// Where the engine lives.
#[derive(Clone, Debug)]
pub struct Config {
    /// What must survive a restart of the machine: images, records.
    pub root: PathBuf,
    /// What need not: the shims' sockets.
    pub state: PathBuf,
    /// The program to run as shim (`PROGRAM shim DIRECTORY`); this one when absent.
    pub exe: Option<PathBuf>,
    /// How registries are reached.
    pub registries: RegistryConfig,
    /// Control group the shims live in, apart from the server's.
    pub shim_cgroup: String,
    /// The control group layout to use on a machine that has both; found out when absent.
    pub cgroup_version: Option<CgroupVersion>,
}

impl Config {
    /// The usual configuration for these directories.
    pub fn new(root: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            state: state.into(),
            exe: None,
            registries: RegistryConfig::default(),
            shim_cgroup: "/sampan-shims".into(),
            cgroup_version: None,
        }
    }
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
}

/// The engine.
pub struct Embedded {
    config: Config,
    images: Arc<ImageStore>,
    registry: Registry,
    cgroups: Cgroups,
    /// The program for shims, on a read-only mount of its own.
    exe: OwnedFd,
    /// The directory of the sockets.
    state_dir: File,
    /// The process shims are forked from, once there is a sandbox.
    spawner: Mutex<Option<OwnedFd>>,
    tasks: Tasks,
    state: Mutex<State>,
    subscribers: Mutex<Vec<mpsc::UnboundedSender<ContainerEvent>>>,
    /// Itself, for tasks that must not keep it alive.
    this: OnceLock<Weak<Self>>,
    _lock: Flock<File>,
}

/// Adds what was being done to an error of the system.
fn internal<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> RuntimeError {
    move |error| RuntimeError::internal(what, error)
}

fn new_id() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// Runs blocking work off the event loop.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(internal("the operation was broken off"))?
}

/// Whether the machine can run containers at all, said before anything is made.
fn check_machine() -> Result<()> {
    let no = |why: &str| Err(RuntimeError::precondition(format!("containers cannot run here: {why}")));
    if !nix::unistd::geteuid().is_root() {
        return no("the server must run as root");
    }
    let kinds = fs::read_to_string("/proc/filesystems").map_err(internal("read /proc/filesystems"))?;
    let overlay = |kinds: &str| kinds.lines().any(|line| line.trim().ends_with("overlay"));
    if !overlay(&kinds) {
        // A module is loaded by its first use, or here.
        let loaded = std::process::Command::new("modprobe").arg("overlay").status();
        if !loaded.is_ok_and(|status| status.success()) {
            return no("the kernel has no overlayfs; load its module with: modprobe overlay");
        }
    }
    for (name, why) in [("net", "network"), ("ipc", "IPC"), ("uts", "UTS"), ("pid", "process")] {
        if !Path::new("/proc/self/ns").join(name).exists() {
            return no(&format!("the kernel has no {why} namespaces"));
        }
    }
    match sys::open_tree(Path::new("/"), false) {
        Ok(tree) => match sys::set_mount(
            tree.as_fd(),
            MountChange {
                nosuid: true,
                ..MountChange::default()
            },
        ) {
            Err(Errno::ENOSYS) => no("the kernel is too old; Linux 5.12 or newer is needed"),
            Err(error) => no(&format!("mounts cannot be changed: {error}")),
            Ok(()) => Ok(()),
        },
        Err(Errno::ENOSYS) => no("the kernel is too old; Linux 5.12 or newer is needed"),
        Err(error) => no(&format!("mounts cannot be made ({error}); CAP_SYS_ADMIN is needed")),
    }
}

/// The shim's program on a read-only mount that nobody else sees: a container that gets hold of it
/// (through `/proc/PID/exe` of a process about to become its own) cannot write to it.
fn sealed(exe: &Path) -> Result<OwnedFd> {
    let failed = || internal::<Errno>("seal the shim's program");
    let real = fs::canonicalize(exe).map_err(internal("find the shim's program"))?;
    let tree = sys::open_tree(&real, false).map_err(failed())?;
    let change = MountChange {
        readonly: true,
        nosuid: true,
        ..MountChange::default()
    };
    sys::set_mount(tree.as_fd(), change).map_err(failed())?;
    Ok(tree)
}

impl Embedded {
    /// Opens the engine on its directories and adopts what runs.
    pub async fn open(config: Config, tasks: &Tasks) -> Result<Arc<Self>> {
        check_machine()?;
        for dir in [&config.root, &config.state] {
            let text = dir.to_string_lossy();
            if text.contains([',', ':', '\\']) {
                return Err(RuntimeError::invalid(format!(
                    "directory {text:?} has a comma, colon or backslash, which overlayfs cannot \
                     take in a path; choose another"
                )));
            }
            fs::create_dir_all(dir).map_err(internal(format!("create {}", dir.display())))?;
            // Programs of images keep their setuid bits, and devices their numbers: not for the node's other users.
            // Containers reach what is theirs by mounts, whoever they run as.
            let private = fs::Permissions::from_mode(0o700);
            fs::set_permissions(dir, private).map_err(internal(format!("protect {}", dir.display())))?;
        }
        let kind = nix::sys::statfs::statfs(&config.root).map_err(internal("look at the file system"))?;
        if kind.filesystem_type() == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC {
            return Err(RuntimeError::precondition(format!(
                "{} is on an overlay file system, which cannot hold the layers of containers; \
                 choose a data directory on a disk (ext4, xfs) or a tmpfs",
                config.root.display()
            )));
        }
        let canonical = |dir: &Path| {
            dir.canonicalize()
                .map_err(internal(format!("resolve {}", dir.display())))
        };
        let config = Config {
            root: canonical(&config.root)?,
            state: canonical(&config.state)?,
            ..config
        };
        let path = config.root.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(internal(format!("open {}", path.display())))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            RuntimeError::precondition(format!(
                "another server uses the container directory {}; stop it, or choose another \
                 data directory",
                config.root.display()
            ))
        })?;
        for name in ["sandboxes", "containers"] {
            let dir = config.root.join(name);
            fs::create_dir_all(&dir).map_err(internal(format!("create {}", dir.display())))?;
        }
        let cgroups = Cgroups::detect_as(config.cgroup_version).map_err(internal("containers cannot run here"))?;
        cgroups
            .create(&config.shim_cgroup)
            .map_err(internal("containers cannot run here"))?;
        let images = Arc::new(ImageStore::open(config.root.join("images"))?);
        images.clean()?;
        let exe = config.exe.clone().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let engine = Arc::new(Self {
            registry: Registry::new(&config.registries)?,
            exe: sealed(&exe)?,
            state_dir: File::open(&config.state).map_err(internal("open the state directory"))?,
            config,
            images,
            cgroups,
            tasks: tasks.clone(),
            spawner: Mutex::default(),
            state: Mutex::default(),
            subscribers: Mutex::default(),
            this: OnceLock::new(),
            _lock: lock,
        });
        engine.adopt().await?;
        Ok(engine)
    }

    /// The image store, for importing archives.
    pub fn images(&self) -> &Arc<ImageStore> {
        &self.images
    }

    /// Imports an archive or OCI layout directory; `name` replaces the names in it. Returns the ids.
    pub async fn import_image(&self, source: &Path, name: Option<&str>) -> Result<Vec<String>> {
        let (images, source) = (self.images.clone(), source.to_path_buf());
        let name = name.map(str::to_owned);
        blocking(move || Ok(images.import(&source, name.as_deref())?)).await
    }

    /// Resolves when the container is not running (any more): what a log reader that follows waits for.
    pub fn exited(&self, container_id: &str) -> impl Future<Output = ()> + Send + 'static {
        let live = self
            .container(container_id)
            .ok()
            .map(|container| container.live.subscribe());
        async move {
            if let Some(mut live) = live {
                // A removed container's sender is gone: that is an end too.
                let _exited_or_removed = live.wait_for(|live| live.exit.is_some()).await;
            }
        }
    }

    /// Stops and removes every sandbox and container and what the engine made on the machine. Images
    /// stay.
    pub async fn cleanup(&self) -> Result<()> {
        let sandboxes: Vec<String> = self.lock().sandboxes.keys().cloned().collect();
        let mut parents = Vec::new();
        for id in sandboxes {
            parents.extend(self.sandbox(&id).ok().map(|sandbox| sandbox.record.cgroup.clone()));
            self.remove_pod_sandbox(&id).await?;
        }
        parents.push(self.config.shim_cgroup.clone());
        let cgroups = self.cgroups.clone();
        blocking(move || {
            for group in parents {
                // Only what is empty: groups above a Pod's may be somebody else's too.
                for above in Path::new(&group).ancestors().filter(|path| path.parent().is_some()) {
                    let dirs = cgroups.dirs(&above.to_string_lossy());
                    for (_, dir) in dirs.map_err(internal("remove control groups"))? {
                        match fs::remove_dir(&dir) {
                            Ok(()) => {}
                            Err(error) => tracing::debug!(%error, ?dir, "control group stays"),
                        }
                    }
                }
            }
            Ok(())
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.config.root.join("sandboxes").join(id)
    }

    fn container_dir(&self, id: &str) -> PathBuf {
        self.config.root.join("containers").join(id)
    }

    fn socket_name(sandbox_id: &str) -> String {
        format!("{}.sock", sandbox_id.get(..24).unwrap_or(sandbox_id))
    }

    /// The socket of a sandbox's shim, by way of a descriptor: socket addresses are short, directory
    /// names need not be.
    fn socket(&self, sandbox_id: &str) -> PathBuf {
        let dir = format!("/proc/self/fd/{}", self.state_dir.as_raw_fd());
        PathBuf::from(dir).join(Self::socket_name(sandbox_id))
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        let found = self.lock().sandboxes.get(id).cloned();
        found.ok_or_else(|| RuntimeError::not_found("sandbox", id))
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.lock().containers.get(id).cloned();
        found.ok_or_else(|| RuntimeError::not_found("container", id))
    }

    fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        let state = self.lock();
        let all = state.containers.values();
        all.filter(|c| c.record.sandbox_id == sandbox_id).cloned().collect()
    }

    fn emit(&self, kind: ContainerEventKind, container_id: &str, sandbox_id: &str, pod_uid: &str) {
        let event = ContainerEvent {
            kind,
            container_id: container_id.into(),
            sandbox_id: sandbox_id.into(),
            pod_uid: pod_uid.into(),
            at: Timestamp::now(),
        };
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| subscriber.send(event.clone()).is_ok());
    }

    fn pod_uid(&self, sandbox_id: &str) -> String {
        let sandbox = self.sandbox(sandbox_id);
        sandbox
            .map(|s| s.record.config.metadata.uid.clone())
            .unwrap_or_default()
    }
}

fn matches(wanted: &StringMap, labels: &StringMap) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[async_trait]
impl Runtime for Embedded {
    async fn version(&self) -> Result<RuntimeVersion> {
        Ok(RuntimeVersion {
            runtime_name: "sampan".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let ready = |kind: &str| RuntimeCondition {
            kind: kind.into(),
            status: true,
            ..RuntimeCondition::default()
        };
        Ok(RuntimeStatus {
            conditions: vec![ready("RuntimeReady"), ready("NetworkReady")],
            cgroup_version: self.cgroups.version(),
            seccomp: Path::new("/proc/sys/kernel/seccomp").exists(),
            apparmor: build::has_apparmor(),
            user_namespaces: namespaces::possible(),
        })
    }

    async fn pull_image(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
        progress: Option<PullProgressFn>,
    ) -> Result<String> {
        let reference: Reference = reference.parse().map_err(|error| {
            let error: crate::images::ReferenceError = error;
            RuntimeError::invalid(error.to_string())
        })?;
        Ok(self.registry.pull(&self.images, &reference, auth, progress).await?)
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        Ok(self.images.list()?)
    }

    async fn image_status(&self, reference: &str) -> Result<Option<Image>> {
        Ok(self.images.get(reference)?)
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        let used: BTreeMap<String, String> = {
            let state = self.lock();
            let records = state.containers.values().map(|container| &container.record);
            records
                .flat_map(|record| {
                    let images = record.mounted_images.iter().chain([&record.image_id]);
                    images.map(|image| (image.clone(), record.id.clone()))
                })
                .collect()
        };
        let (images, reference) = (self.images.clone(), reference.to_owned());
        blocking(move || match images.remove(&reference, |id| used.get(id).cloned()) {
            Err(crate::images::ImageError::NotFound(_)) => Ok(()),
            other => Ok(other?),
        })
        .await
    }

    async fn image_fs_info(&self) -> Result<FilesystemUsage> {
        let images = self.images.clone();
        blocking(move || Ok(images.usage()?)).await
    }

    async fn make_namespaces(&self, users: &UserNamespace, network: &Path) -> Result<()> {
        if namespaces::is_kept(&users.path) && namespaces::is_kept(network) {
            return Ok(());
        }
        let exe = PathBuf::from(format!("/proc/self/fd/{}", self.exe.as_raw_fd()));
        let (users, network) = (users.clone(), network.to_owned());
        blocking(move || namespaces::make(&exe, &users, &network).map_err(internal("make namespaces for the Pod")))
            .await
    }

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<String> {
        self.run_sandbox(config).await
    }

    async fn stop_pod_sandbox(&self, sandbox_id: &str) -> Result<()> {
        match self.sandbox(sandbox_id) {
            Ok(sandbox) => self.stop_sandbox(&sandbox).await,
            Err(_) => Ok(()),
        }
    }

    async fn remove_pod_sandbox(&self, sandbox_id: &str) -> Result<()> {
        match self.sandbox(sandbox_id) {
            Ok(sandbox) => self.remove_sandbox(&sandbox).await,
            Err(_) => Ok(()),
        }
    }

    async fn pod_sandbox_status(&self, sandbox_id: &str) -> Result<PodSandboxStatus> {
        Ok(self.sandbox(sandbox_id)?.status())
    }

    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> Result<Vec<PodSandboxStatus>> {
        let state = self.lock();
        let all = state.sandboxes.values().map(|sandbox| sandbox.status());
        Ok(all
            .filter(|s| filter.id.as_ref().is_none_or(|id| *id == s.id))
            .filter(|s| filter.state.is_none_or(|state| state == s.state))
            .filter(|s| matches(&filter.labels, &s.labels))
            .collect())
    }

    async fn create_container(&self, sandbox_id: &str, config: &ContainerConfig) -> Result<String> {
        let sandbox = self.sandbox(sandbox_id)?;
        self.create(&sandbox, config).await
    }

    async fn start_container(&self, container_id: &str) -> Result<()> {
        let container = self.container(container_id)?;
        self.start(&container).await
    }

    async fn stop_container(&self, container_id: &str, grace: Duration) -> Result<()> {
        match self.container(container_id) {
            Ok(container) => self.stop(&container, grace).await,
            Err(_) => Ok(()),
        }
    }

    async fn remove_container(&self, container_id: &str) -> Result<()> {
        match self.container(container_id) {
            Ok(container) => self.remove(&container).await,
            Err(_) => Ok(()),
        }
    }

    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus> {
        Ok(self.container(container_id)?.status())
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStatus>> {
        let state = self.lock();
        let all = state.containers.values();
        Ok(all
            .filter(|c| filter.id.as_ref().is_none_or(|id| *id == c.record.id))
            .filter(|c| filter.sandbox_id.as_ref().is_none_or(|id| *id == c.record.sandbox_id))
            .filter(|c| filter.state.is_none_or(|state| state == c.state()))
            .filter(|c| matches(&filter.labels, &c.record.config.labels))
            .map(|c| c.status())
            .collect())
    }

    async fn update_container_resources(&self, container_id: &str, resources: &LinuxContainerResources) -> Result<()> {
        let container = self.container(container_id)?;
        self.update(&container, resources).await
    }

    async fn reopen_container_log(&self, container_id: &str) -> Result<()> {
        let container = self.container(container_id)?;
        self.reopen_log(&container).await
    }

    async fn container_stats(&self, container_id: &str) -> Result<ContainerStats> {
        let container = self.container(container_id)?;
        self.stats_of(&container).await
    }

    async fn pod_sandbox_stats(&self, sandbox_id: &str) -> Result<PodSandboxStats> {
        let sandbox = self.sandbox(sandbox_id)?;
        self.sandbox_stats(&sandbox).await
    }

    async fn pod_usage(&self, sandbox_id: &str) -> Result<PodUsage> {
        let sandbox = self.sandbox(sandbox_id)?;
        self.sandbox_usage(&sandbox).await
    }

    async fn exec_sync(&self, container_id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        let container = self.container(container_id)?;
        self.run_command(&container, command, timeout).await
    }

    async fn exec(&self, container_id: &str, request: ExecRequest, streams: Streams) -> Result<i32> {
        let container = self.container(container_id)?;
        self.run_streams(&container, request, streams).await
    }

    async fn attach(&self, container_id: &str, streams: Streams) -> Result<()> {
        let container = self.container(container_id)?;
        self.attach_streams(&container, streams).await
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16, stream: Box<dyn Duplex>) -> Result<()> {
        let sandbox = self.sandbox(sandbox_id)?;
        self.forward(&sandbox, port, stream).await
    }

    fn events(&self) -> mpsc::UnboundedReceiver<ContainerEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.push(sender);
        receiver
    }
}

/// A container that uses an image, by the records on disk: for commands that run beside the server.
pub fn user_of_image(root: &Path, image_id: &str) -> Option<String> {
    let entries = fs::read_dir(root.join("containers")).ok()?.flatten();
    let records = entries
        .filter_map(|entry| crate::spec::read::<records::ContainerRecord>(&entry.path().join(records::RECORD)).ok());
    let mut users =
        records.filter(|record| record.image_id == image_id || record.mounted_images.iter().any(|id| id == image_id));
    users.next().map(|record| record.id)
}

impl RuntimeError {
    fn start_failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::StartFailed, message)
    }
}
