//! Statistics of containers, sandboxes and file systems.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ContainerMetadata, StringMap};

/// A file system and what of it is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemUsage {
    /// When this was read.
    pub timestamp: Timestamp,
    /// The directory it is about.
    pub path: PathBuf,
    /// Bytes we use.
    pub used_bytes: u64,
    /// Inodes we use.
    pub inodes_used: u64,
    /// Bytes the file system has.
    pub capacity_bytes: u64,
    /// Bytes it has free for us.
    pub available_bytes: u64,
    /// Inodes it has.
    pub inodes: u64,
    /// Inodes it has free.
    pub inodes_free: u64,
}

/// CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuUsage {
    /// Nanoseconds of all cores since the start.
    pub usage_core_nano_seconds: u64,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// Everything charged to the group.
    pub usage_bytes: u64,
    /// Usage without inactive page cache.
    pub working_set_bytes: u64,
    /// Anonymous memory.
    pub rss_bytes: u64,
    /// Limit minus working set, where there is a limit.
    pub available_bytes: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that needed the disk.
    pub major_page_faults: u64,
}

/// Bytes and packets of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterfaceUsage {
    /// Its name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Send errors.
    pub tx_errors: u64,
}

/// One container's statistics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    /// Its id.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// Who it is.
    pub metadata: ContainerMetadata,
    /// Labels as configured.
    pub labels: StringMap,
    /// When it was started, if it was.
    pub started_at: Option<Timestamp>,
    /// When this was read.
    pub timestamp: Timestamp,
    /// CPU; absent unless it runs.
    pub cpu: Option<CpuUsage>,
    /// Memory; absent unless it runs.
    pub memory: Option<MemoryUsage>,
    /// Its writable layer.
    pub writable_layer: FilesystemUsage,
}

/// One sandbox's statistics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSandboxStats {
    /// Its id.
    pub id: String,
    /// When this was read.
    pub timestamp: Timestamp,
    /// CPU of the Pod's control group.
    pub cpu: Option<CpuUsage>,
    /// Memory of the Pod's control group.
    pub memory: Option<MemoryUsage>,
    /// Interfaces of the Pod's network namespace, without loopback. Empty with host network.
    pub network: Vec<NetworkInterfaceUsage>,
    /// Processes in the Pod's control group.
    pub process_count: u64,
    /// Its running containers.
    pub containers: Vec<ContainerStats>,
}

/// CPU and memory of one sandbox and its running containers: what is asked every few seconds while somebody looks, and
/// therefore nothing that has to walk a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUsage {
    /// When this was read.
    pub timestamp: Timestamp,
    /// CPU of the Pod's control group.
    pub cpu: Option<CpuUsage>,
    /// Memory of the Pod's control group.
    pub memory: Option<MemoryUsage>,
    /// Its running containers.
    pub containers: Vec<ContainerUsage>,
}

/// CPU and memory of one running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Its name in the Pod.
    pub name: String,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// When this was read.
    pub timestamp: Timestamp,
    /// CPU.
    pub cpu: Option<CpuUsage>,
    /// Memory.
    pub memory: Option<MemoryUsage>,
}
