//! Containers: what one shall be, and what it is.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Image, StringMap};

/// Who a container is within its sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerMetadata {
    /// Name of the container in the Pod.
    pub name: String,
    /// How often it was started before.
    pub attempt: u32,
}

/// One environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// Name.
    pub key: String,
    /// Value.
    pub value: String,
}

/// How mounts travel between node and container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    /// `None`: neither way.
    #[default]
    Private,
    /// New mounts of the node appear inside.
    HostToContainer,
    /// Both ways; for privileged containers.
    Bidirectional,
}

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Absolute path inside.
    pub container_path: PathBuf,
    /// Path on the node, subpath already resolved by the caller. Ignored when `image` is set.
    pub host_path: PathBuf,
    /// Read-only.
    pub readonly: bool,
    /// Read-only for mounts below it too.
    pub recursive_readonly: bool,
    /// Propagation.
    pub propagation: MountPropagation,
    /// Mount this image's content read-only instead of a path of the node.
    pub image: Option<String>,
    /// Subpath within the image.
    pub image_sub_path: String,
}

/// A device node of the host to offer inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Path on the node; a directory offers every device in it.
    pub host_path: PathBuf,
    /// Path inside.
    pub container_path: PathBuf,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// Limits. Absent means not limited (create) or unchanged (update).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxContainerResources {
    /// CFS period in microseconds.
    pub cpu_period: Option<i64>,
    /// CFS quota in microseconds a period; -1 for none.
    pub cpu_quota: Option<i64>,
    /// Relative weight in cgroup v1's range 2–262144; converted for v2.
    pub cpu_shares: Option<u64>,
    /// Memory limit in bytes; -1 for none.
    pub memory_limit_in_bytes: Option<i64>,
    /// Memory and swap together, bytes; -1 for none.
    pub memory_swap_limit_in_bytes: Option<i64>,
    /// Processes at most; -1 for no limit.
    pub pids_limit: Option<i64>,
    /// The kernel's killing order, -1000–1000.
    pub oom_score_adj: Option<i32>,
    /// `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// Huge page limits: page size (`2MB`) to bytes.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// cgroup v2 files to write as they are, e.g. `memory.high`.
    pub unified: StringMap,
}

/// A limit on huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Capabilities to change from the default set. Names with or without `CAP_`; `ALL` is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Added.
    pub add: Vec<String>,
    /// Dropped.
    pub drop: Vec<String>,
}

/// Which confinement profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SecurityProfile {
    /// The engine's default profile.
    RuntimeDefault,
    /// None.
    #[default]
    Unconfined,
    /// Seccomp: an absolute path of a profile in OCI JSON. AppArmor: the name of a loaded profile.
    Localhost(String),
}

/// How groups of the image's `/etc/group` count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SupplementalGroupsPolicy {
    /// The image's groups of the user are added to the given ones.
    #[default]
    Merge,
    /// Only the given ones.
    Strict,
}

/// What a container's processes may do and who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxContainerSecurityContext {
    /// Changes to the default capability set.
    pub capabilities: Capabilities,
    /// All capabilities and devices, nothing masked, no seccomp.
    pub privileged: bool,
    /// Numeric user; wins over `run_as_username`.
    pub run_as_user: Option<i64>,
    /// Numeric group; needs a user.
    pub run_as_group: Option<i64>,
    /// User by name from the image's `/etc/passwd`.
    pub run_as_username: String,
    /// Additional groups.
    pub supplemental_groups: Vec<i64>,
    /// Whether the image's groups are added.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// The root file system cannot be written.
    pub readonly_rootfs: bool,
    /// Set-user-id programs and file capabilities gain nothing.
    pub no_new_privs: bool,
    /// System call filter.
    pub seccomp: SecurityProfile,
    /// AppArmor; ignored where the kernel has none unless `Localhost`.
    pub apparmor: SecurityProfile,
    /// Paths hidden. `None` means the usual list.
    pub masked_paths: Option<Vec<String>>,
    /// Paths made read-only. `None` means the usual list.
    pub readonly_paths: Option<Vec<String>>,
}

/// The kernel's side of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxContainerConfig {
    /// Limits.
    pub resources: LinuxContainerResources,
    /// Confinement.
    pub security_context: LinuxContainerSecurityContext,
}

/// What a container shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// Who it is.
    pub metadata: ContainerMetadata,
    /// Image: tag, digest or id. Must be present.
    pub image: String,
    /// Program; replaces the image's entrypoint and its arguments.
    pub command: Vec<String>,
    /// Arguments; replace the image's.
    pub args: Vec<String>,
    /// Directory to start in; the image's when empty.
    pub working_dir: String,
    /// Added to the image's environment.
    pub envs: Vec<KeyValue>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Labels to find it by.
    pub labels: StringMap,
    /// Free annotations.
    pub annotations: StringMap,
    /// Log file, relative to the sandbox's log directory. Empty: output is not kept.
    pub log_path: String,
    /// Keep standard input open for attach.
    pub stdin: bool,
    /// Close standard input when the first attached client closes its own.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Signal that asks it to stop; the image's, else `SIGTERM`.
    pub stop_signal: Option<String>,
    /// The kernel's side.
    pub linux: LinuxContainerConfig,
}

/// In which part of its life a container is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContainerState {
    /// Prepared, not started.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// Its process ended, or could not be started.
    Exited,
    /// The engine cannot tell.
    Unknown,
}

/// Reasons in [`ContainerStatus::reason`].
pub mod reason {
    /// Exit code 0.
    pub const COMPLETED: &str = "Completed";
    /// Another exit code.
    pub const ERROR: &str = "Error";
    /// The kernel killed a process for memory.
    pub const OOM_KILLED: &str = "OOMKilled";
    /// The program could not be started.
    pub const START_ERROR: &str = "StartError";
    /// Nobody saw how it ended (the shim died, or the machine restarted).
    pub const UNKNOWN: &str = "ContainerStatusUnknown";
}

/// The user a container's process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Additional groups.
    pub supplemental_groups: Vec<u32>,
}

/// A container as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// Who it is.
    pub metadata: ContainerMetadata,
    /// Where in its life.
    pub state: ContainerState,
    /// When it was prepared.
    pub created_at: Timestamp,
    /// When its process was started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Exit code; 128 + signal when killed by one.
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// The image as asked for.
    pub image: String,
    /// The image's digest reference (or id when it has none).
    pub image_ref: String,
    /// The image's id.
    pub image_id: String,
    /// Why it is in this state: see [`reason`].
    pub reason: String,
    /// The same for people.
    pub message: String,
    /// Labels as configured.
    pub labels: StringMap,
    /// Annotations as configured.
    pub annotations: StringMap,
    /// Mounts as configured.
    pub mounts: Vec<Mount>,
    /// Absolute path of the log file.
    pub log_path: PathBuf,
    /// Limits in force.
    pub resources: LinuxContainerResources,
    /// Process id on the node; 0 unless running.
    pub pid: u32,
    /// Who its process is, once started.
    pub user: Option<ContainerUser>,
}

/// Which containers to list. Empty matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerFilter {
    /// Exactly this id.
    pub id: Option<String>,
    /// In this sandbox.
    pub sandbox_id: Option<String>,
    /// Only in this state.
    pub state: Option<ContainerState>,
    /// With all these labels.
    pub labels: StringMap,
}

impl ContainerConfig {
    /// The command line: the configuration's, completed from the image as CRI and Docker do.
    pub fn command_line(&self, image: &Image) -> Vec<String> {
        let (mut line, args) = match (self.command.is_empty(), self.args.is_empty()) {
            (true, true) => (image.config.entrypoint.clone(), &image.config.cmd),
            (true, false) => (image.config.entrypoint.clone(), &self.args),
            (false, _) => (self.command.clone(), &self.args),
        };
        line.extend(args.iter().cloned());
        line
    }
}

impl LinuxContainerResources {
    /// Takes over what `change` says; what it leaves out stays.
    pub fn update(&mut self, change: &Self) {
        fn take<T: Clone>(old: &mut Option<T>, new: &Option<T>) {
            if new.is_some() {
                old.clone_from(new);
            }
        }
        take(&mut self.cpu_period, &change.cpu_period);
        take(&mut self.cpu_quota, &change.cpu_quota);
        take(&mut self.cpu_shares, &change.cpu_shares);
        take(&mut self.memory_limit_in_bytes, &change.memory_limit_in_bytes);
        take(&mut self.memory_swap_limit_in_bytes, &change.memory_swap_limit_in_bytes);
        take(&mut self.pids_limit, &change.pids_limit);
        take(&mut self.oom_score_adj, &change.oom_score_adj);
        take(&mut self.cpuset_cpus, &change.cpuset_cpus);
        take(&mut self.cpuset_mems, &change.cpuset_mems);
        for limit in &change.hugepage_limits {
            self.hugepage_limits.retain(|l| l.page_size != limit.page_size);
            self.hugepage_limits.push(limit.clone());
        }
        let unified = change.unified.iter().map(|(k, v)| (k.clone(), v.clone()));
        self.unified.extend(unified);
    }
}
