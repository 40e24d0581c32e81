//! Pod sandboxes: the namespaces and control group that a Pod's containers share.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::StringMap;

/// Whose namespace containers use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// The Pod's, shared by its containers.
    #[default]
    Pod,
    /// Each container its own (PID only).
    Container,
    /// The node's.
    Node,
}

/// Namespace choices of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamespaceOptions {
    /// `Pod`, or `Node` for `hostNetwork`.
    pub network: NamespaceMode,
    /// `Container` (default), `Pod` for `shareProcessNamespace`, `Node` for `hostPID`.
    pub pid: NamespaceMode,
    /// `Pod`, or `Node` for `hostIPC`.
    pub ipc: NamespaceMode,
}

impl Default for NamespaceOptions {
    fn default() -> Self {
        Self {
            network: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            ipc: NamespaceMode::Pod,
        }
    }
}

/// A user namespace: users and groups `0..length` inside are `first..first + length` on the node.
///
/// Nobody inside has any power over what belongs to others of the node, not even as root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserNamespace {
    /// Where it is kept.
    pub path: PathBuf,
    /// The node's id of user 0 inside.
    pub first: u32,
    /// How many there are.
    pub length: u32,
}

impl UserNamespace {
    /// The node's id of `id` inside. Ids beyond the namespace belong to nobody: they become its first.
    pub fn outside(&self, id: u32) -> u32 {
        self.first + if id < self.length { id } else { 0 }
    }
}

/// The content of `/etc/resolv.conf`. The engine writes it for containers that mount none themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// `search` domains.
    pub searches: Vec<String>,
    /// `options`.
    pub options: Vec<String>,
}

/// Who a sandbox is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSandboxMetadata {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod UID.
    pub uid: String,
    /// How many sandboxes this Pod had before.
    pub attempt: u32,
}

/// What a sandbox shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSandboxConfig {
    /// Who it is. UID and attempt together are unique.
    pub metadata: PodSandboxMetadata,
    /// Host name inside; empty means the node's.
    pub hostname: String,
    /// Directory that container log paths are relative to; created if absent.
    pub log_directory: PathBuf,
    /// Resolver configuration; `None` leaves `/etc/resolv.conf` to the mounts.
    pub dns: Option<DnsConfig>,
    /// Labels to find it by.
    pub labels: StringMap,
    /// Free annotations.
    pub annotations: StringMap,
    /// The kernel's side.
    pub linux: LinuxPodSandboxConfig,
}

/// The kernel's side of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxPodSandboxConfig {
    /// Control group of the Pod, as `/kubepods/burstable/pod<uid>`; created if absent, and removed
    /// with the last sandbox that names it.
    pub cgroup_parent: String,
    /// Kernel parameters of the Pod's namespaces.
    pub sysctls: StringMap,
    /// Which namespaces.
    pub namespaces: NamespaceOptions,
    /// Who the Pod's users are on the node; absent means themselves. Needs [`crate::Runtime::make_namespaces`]
    /// first.
    pub users: Option<UserNamespace>,
    /// The network namespace to join, made and named by the caller. Ignored with `network: Node`;
    /// absent means a new one with only loopback.
    pub netns: Option<PathBuf>,
    /// Size of `/dev/shm`; 64 MiB when absent.
    pub shm_size: Option<u64>,
    /// Limits for the Pod's group as a whole.
    pub resources: Option<super::LinuxContainerResources>,
}

/// Whether a sandbox can hold containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PodSandboxState {
    /// Its shim lives.
    Ready,
    /// It was stopped, or its shim died.
    #[default]
    NotReady,
}

/// A sandbox as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSandboxStatus {
    /// Its id.
    pub id: String,
    /// Who it is.
    pub metadata: PodSandboxMetadata,
    /// Whether it can hold containers.
    pub state: PodSandboxState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Labels as configured.
    pub labels: StringMap,
    /// Annotations as configured.
    pub annotations: StringMap,
    /// Namespace choices as configured.
    pub namespaces: NamespaceOptions,
    /// The network namespace's path as configured.
    pub netns: Option<PathBuf>,
    /// Process that holds its namespaces; 0 when not ready.
    pub pid: u32,
}

/// Which sandboxes to list. Empty matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSandboxFilter {
    /// Exactly this id.
    pub id: Option<String>,
    /// Only in this state.
    pub state: Option<PodSandboxState>,
    /// With all these labels.
    pub labels: StringMap,
}
