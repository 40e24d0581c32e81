//! What the server tells the shim, in files: everything decided, nothing left to look up.
//!
//! The server writes `sandbox.json` and `containers/<id>/spec.json`; the shim writes beside the latter
//! `start.json` and `exit.json`. All are replaced atomically, so either side can be killed at any time.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::seccomp::Filter;
use crate::types::{ContainerUser, MountPropagation, NamespaceMode, StringMap, UserNamespace};

/// What the shim of a sandbox needs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxSpec {
    pub id: String,
    pub hostname: String,
    pub network: NamespaceMode,
    pub netns: Option<PathBuf>,
    pub ipc: NamespaceMode,
    pub pid: NamespaceMode,
    pub sysctls: StringMap,
    pub users: Option<UserNamespace>,
    pub shm_size: u64,
    /// Control group directories the shim itself goes to.
    pub cgroups: Vec<PathBuf>,
    /// Control group directories of the process that holds a shared process namespace.
    pub pause_cgroups: Vec<PathBuf>,
    /// Where the containers' directories are.
    pub containers: PathBuf,
}

/// What the process of a container needs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    pub id: String,
    pub process: ProcessSpec,
    pub rootfs: RootfsSpec,
    pub pid: NamespaceMode,
    pub cgroups: CgroupSpec,
    pub oom_score_adj: Option<i32>,
    pub log_path: Option<PathBuf>,
    pub stdin: bool,
    pub stdin_once: bool,
}

/// A process in a container: its own, or one that joins.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessSpec {
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub cwd: PathBuf,
    pub tty: bool,
    pub user: UserSpec,
    /// Capability numbers of the bounding, permitted and effective set.
    pub capabilities: Vec<u8>,
    pub no_new_privs: bool,
    pub seccomp: Option<Filter>,
    pub apparmor: Option<String>,
    pub users: Option<UserNamespace>,
}

/// Who to be; names are looked up in the container's `/etc/passwd` and `/etc/group`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserSpec {
    /// Name or number; empty is root.
    pub user: String,
    /// Name or number; empty is the user's own group.
    pub group: String,
    pub supplemental: Vec<u32>,
    /// Whether groups of the container's `/etc/group` are added.
    pub merge_groups: bool,
}

/// The container's view of files.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RootfsSpec {
    /// Directory that `lower` is relative to (mount options are short).
    pub layers: PathBuf,
    /// Topmost first.
    pub lower: Vec<PathBuf>,
    /// The container's directory: has `upper`, `work` and `rootfs`.
    pub dir: PathBuf,
    pub readonly: bool,
    /// Paths the image declares as volumes: they stay writable when the root is not.
    pub volumes: Vec<PathBuf>,
    /// Writable `/sys` and `/proc`, all devices.
    pub privileged: bool,
    pub host_network: bool,
    pub host_ipc: bool,
    pub mounts: Vec<MountSpec>,
    pub devices: Vec<DeviceSpec>,
    pub masked: Vec<PathBuf>,
    pub read_only_paths: Vec<PathBuf>,
}

/// One mount.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MountSpec {
    pub target: PathBuf,
    pub source: PathBuf,
    /// Instead of a source: layers of an image, relative to the layers directory, topmost first.
    pub layers: Vec<PathBuf>,
    /// Path within the image.
    pub sub_path: PathBuf,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub propagation: MountPropagation,
}

/// A device node to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceSpec {
    pub path: PathBuf,
    /// `c` or `b`.
    pub kind: String,
    pub major: u64,
    pub minor: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Some of `rwm`.
    pub access: String,
}

/// Where a container is accounted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupSpec {
    /// Directories whose `cgroup.procs` to enter.
    pub dirs: Vec<PathBuf>,
    /// File that counts kills for lack of memory: v1 `memory.oom_control`, v2 `memory.events`.
    pub oom_file: Option<PathBuf>,
    /// v1: controller name and directory, to show at `/sys/fs/cgroup`. Empty means v2.
    pub v1: Vec<(String, PathBuf)>,
}

/// Written by the shim when the container's program runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartRecord {
    pub pid: u32,
    pub started_at: Timestamp,
    pub user: ContainerUser,
}

/// Written by the shim when it has ended, or could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    pub at: Timestamp,
    /// Why it could not be started.
    pub start_error: Option<String>,
    /// Nobody saw how it ended.
    #[serde(default)]
    pub unseen: bool,
}

/// A container's directory.
pub fn container_dir(containers: &Path, id: &str) -> PathBuf {
    containers.join(id)
}

/// Names of the files in it.
pub mod file {
    pub const SPEC: &str = "spec.json";
    pub const START: &str = "start.json";
    pub const EXIT: &str = "exit.json";
    pub const SANDBOX: &str = "sandbox.json";
}

/// Reads a JSON file.
pub fn read<T: serde::de::DeserializeOwned>(path: &Path) -> std::io::Result<T> {
    let bytes = std::fs::read(path)?;
    serde_json::from_slice(&bytes).map_err(std::io::Error::other)
}

/// Replaces a JSON file.
pub fn write<T: Serialize>(path: &Path, value: &T, durable: bool) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(value).map_err(std::io::Error::other)?;
    crate::disk::write_atomic(path, &bytes, durable)
}
