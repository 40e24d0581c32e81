//! The words of the contract: configurations in, states out. Plain data, CRI v1's names.
//!
//! All types can be stored as JSON; the embedded engine keeps them on disk as they are, so a field
//! that is added must have a default.

mod container;
mod image;
mod sandbox;
mod stats;
mod stream;

pub use container::*;
pub use image::*;
pub use sandbox::*;
pub use stats::*;
pub use stream::*;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Labels and annotations.
pub type StringMap = BTreeMap<String, String>;

/// Name and version of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeVersion {
    /// As in `containerRuntimeVersion: NAME://VERSION` of a node's status.
    pub runtime_name: String,
    /// The engine's version.
    pub runtime_version: String,
    /// The interface's version: `v1`.
    pub runtime_api_version: String,
}

/// One condition of the engine: `RuntimeReady` or `NetworkReady`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeCondition {
    /// Name of the condition.
    pub kind: String,
    /// Whether it holds.
    pub status: bool,
    /// Why not, in one word.
    pub reason: String,
    /// Why not, for people.
    pub message: String,
}

/// Which control group layout the machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupVersion {
    /// One hierarchy per controller (also a hybrid machine, whose controllers are all in v1).
    V1,
    /// One unified hierarchy.
    #[default]
    V2,
}

/// The engine's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeStatus {
    /// Its conditions.
    pub conditions: Vec<RuntimeCondition>,
    /// The control group layout in use.
    pub cgroup_version: CgroupVersion,
    /// Whether seccomp filters can be loaded.
    pub seccomp: bool,
    /// Whether AppArmor profiles can be applied.
    pub apparmor: bool,
    /// Whether Pods can have users of their own.
    pub user_namespaces: bool,
}

/// What happened to a sandbox or container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContainerEventKind {
    /// It exists.
    Created,
    /// Its process runs.
    Started,
    /// It has exited (a sandbox: it is no longer ready).
    Stopped,
    /// It is forgotten.
    Deleted,
}

/// Something happened. For sandboxes `container_id` equals `sandbox_id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerEvent {
    /// What happened.
    pub kind: ContainerEventKind,
    /// To which container.
    pub container_id: String,
    /// In which sandbox.
    pub sandbox_id: String,
    /// Of which Pod (its UID, from the sandbox's configuration).
    pub pod_uid: String,
    /// When.
    pub at: Timestamp,
}
