//! The contract between the node and a container runtime, and its error.
//!
//! Deliberately different from CRI: no sockets for streaming (exec, attach and port-forward take the
//! byte streams themselves), no polling list for exits ([`Runtime::events`] is lossless within one
//! process), and images carry their configuration so that the node needs no second look-up.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::types::*;

/// What kind of failure it was: what the caller decides by. The text is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The image, sandbox or container does not exist.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// The request itself cannot be right.
    InvalidArgument,
    /// The object is not in a state that allows the operation (image in use, container not running).
    FailedPrecondition,
    /// The image could not be pulled: the registry answered, and said no.
    ImagePull,
    /// The registry could not be reached, or the shim is gone.
    Unavailable,
    /// The container's process could not be started.
    StartFailed,
    /// The time limit passed (`exec_sync`).
    DeadlineExceeded,
    /// The engine does not offer it.
    Unsupported,
    /// Everything else: the kernel or the disk said no.
    Internal,
}

/// A failed operation of the runtime.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    /// What to decide by.
    pub kind: ErrorKind,
    /// What to tell people: what is wrong and, where there is one, the next step.
    pub message: String,
}

impl RuntimeError {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
    /// `what` named `id` does not exist.
    pub fn not_found(what: &str, id: &str) -> Self {
        Self::new(ErrorKind::NotFound, format!("{what} \"{id}\" not found"))
    }
    /// The request cannot be right.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }
    /// The object's state does not allow it.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::FailedPrecondition, message)
    }
    /// The kernel or the disk said no while doing `what`.
    pub fn internal(what: impl std::fmt::Display, cause: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, format!("{what}: {cause}"))
    }
    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }
}

/// Shorthand for results of the runtime.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// A container runtime. All identifiers are opaque strings the runtime chose.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Name and version of the engine.
    async fn version(&self) -> Result<RuntimeVersion>;
    /// Whether the engine and its network are ready, and what the kernel offers.
    async fn status(&self) -> Result<RuntimeStatus>;

    // ---- images ----

    /// Fetches `reference` and unpacks it; returns the image's id. Cheap when everything is present.
    async fn pull_image(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
        progress: Option<PullProgressFn>,
    ) -> Result<String>;
    /// Every image.
    async fn list_images(&self) -> Result<Vec<Image>>;
    /// The image `reference` names (tag, digest or id), or `None` when it is not present.
    async fn image_status(&self, reference: &str) -> Result<Option<Image>>;
    /// Removes the image `reference` names. Refused with `FailedPrecondition` while a container uses it.
    async fn remove_image(&self, reference: &str) -> Result<()>;
    /// What images occupy, and the file system they are on.
    async fn image_fs_info(&self) -> Result<FilesystemUsage>;

    // ---- sandboxes ----

    /// Makes a user namespace and a network namespace that belongs to it, and keeps both by bind mounts at
    /// `users.path` and `network`, which are the caller's to take away. Not part of CRI, where an engine makes both
    /// and calls the network itself. Idempotent.
    async fn make_namespaces(&self, users: &UserNamespace, network: &Path) -> Result<()>;
    /// Creates and starts a sandbox; returns its id.
    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<String>;
    /// Kills every container of the sandbox and lets go of its namespaces. Idempotent.
    async fn stop_pod_sandbox(&self, sandbox_id: &str) -> Result<()>;
    /// Stops and forgets the sandbox and its containers. Idempotent.
    async fn remove_pod_sandbox(&self, sandbox_id: &str) -> Result<()>;
    /// The state of one sandbox.
    async fn pod_sandbox_status(&self, sandbox_id: &str) -> Result<PodSandboxStatus>;
    /// Sandboxes that match.
    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> Result<Vec<PodSandboxStatus>>;

    // ---- containers ----

    /// Prepares a container in a ready sandbox; returns its id.
    async fn create_container(&self, sandbox_id: &str, config: &ContainerConfig) -> Result<String>;
    /// Starts a created container. Returns once its program runs (or could not be run: `StartFailed`,
    /// after which its status is exited with reason `StartError` and code 128).
    async fn start_container(&self, container_id: &str) -> Result<()>;
    /// Sends the stop signal, and kill after `grace`. Returns when it has exited. Idempotent.
    async fn stop_container(&self, container_id: &str, grace: Duration) -> Result<()>;
    /// Forgets a container, killing it first if it runs. Its log file stays. Idempotent.
    async fn remove_container(&self, container_id: &str) -> Result<()>;
    /// The state of one container.
    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus>;
    /// Containers that match.
    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStatus>>;
    /// Changes the limits of a container that is created or runs. Absent fields stay as they are.
    async fn update_container_resources(&self, container_id: &str, resources: &LinuxContainerResources) -> Result<()>;
    /// Closes and opens the log file again (after the node has renamed it).
    async fn reopen_container_log(&self, container_id: &str) -> Result<()>;

    // ---- statistics ----

    /// CPU, memory and disk of one container.
    async fn container_stats(&self, container_id: &str) -> Result<ContainerStats>;
    /// CPU, memory, network of one sandbox and the statistics of its running containers.
    async fn pod_sandbox_stats(&self, sandbox_id: &str) -> Result<PodSandboxStats>;
    /// CPU and memory alone of one sandbox and its running containers: cheap.
    async fn pod_usage(&self, sandbox_id: &str) -> Result<PodUsage>;

    // ---- streams ----

    /// Runs `command` in the container and collects what it prints (at most 16 MiB a stream).
    /// A zero `timeout` means none; when it passes the process is killed and the error's kind is
    /// `DeadlineExceeded`.
    async fn exec_sync(&self, container_id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput>;
    /// Runs a command with the given streams; returns its exit code when it has ended and its output
    /// was delivered.
    async fn exec(&self, container_id: &str, request: ExecRequest, streams: Streams) -> Result<i32>;
    /// Connects the streams to the container's own; returns when the container exits or the streams
    /// are closed by the caller.
    async fn attach(&self, container_id: &str, streams: Streams) -> Result<()>;
    /// Copies bytes between `stream` and `port` on the sandbox's loopback until both sides are done.
    async fn port_forward(&self, sandbox_id: &str, port: u16, stream: Box<dyn Duplex>) -> Result<()>;

    /// What happens to sandboxes and containers from now on. Lossless; the receiver must be read.
    /// Subscribe first, then list: nothing falls between.
    fn events(&self) -> mpsc::UnboundedReceiver<ContainerEvent>;
}
