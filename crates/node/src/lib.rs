//! The kubelet's job: run the Pods bound to this node and tell the API how they are.
//!
//! A Pod's change reaches its worker ([`worker`]) as an event, from the API, the runtime, a probe, a changed volume
//! source or a timer. The worker asks the runtime what is there, lets the pure functions of [`pod`] decide what to
//! do, does it, and leaves the new status to the status writer ([`status_writer`]). Nothing is polled but the
//! machine's own resources.
//!
//! Invariants:
//! - one worker per Pod uid, and one thing at a time in it; the API's Pod is intent, the runtime's records are the
//!   truth, the worker's memory is only a cache: a restarted node finds everything again by labels;
//! - a Pod's API object is removed by the node only after its containers have ended, its volumes are gone and its
//!   last status is written;
//! - statuses are written when they changed, merged with other writers' conditions.
//!
//! Differences from upstream: no PLEG and no periodic sync (runtime events replace both); the pod worker's phases
//! (sync, terminating, terminated) are one readable task; volumes are prepared within the sync.

pub mod admission;
pub mod config;
pub mod devices;
mod eviction;
mod gc;
mod logs;
pub mod machine;
mod manager;
pub mod network;
mod node;
mod node_status;
pub mod pod;
pub mod probes;
pub mod server;
mod sources;
mod status_writer;
mod thresholds;
mod user_ids;
mod worker;

pub use config::{Housekeeping, NodeConfig, Registration};
pub use network::{FakeNetworking, NetworkError, NetworkRequest, PodNetworkStatus, PodNetworking};
pub use node::{Node, NodeError, ServerTls};
pub use pod::files::ClusterDns;
pub use thresholds::Eviction;

/// The scheme of container ids in statuses (`sampan://…`) and of the runtime's version.
pub const RUNTIME_NAME: &str = "sampan";

#[cfg(test)]
mod tests;
