//! The scheduler: finds a node for every Pod that has none.
//!
//! [`engine`] is the whole of the thinking, without I/O; [`run`] feeds it from shared informers and carries out what it
//! decides. It runs inside the server or alone against any API server.
//!
//! What makes it calm: equal Pods form a class that is examined once per change of the cluster, a class without a
//! place is parked and costs nothing until an event that can help it, and what a waiting Pod is told is written once.
//! What makes it fast: nothing walks the cluster for a decision. [`memory`] follows the nodes that changed, for what one
//! node decides as for the sums over Pods everywhere that affinity and spreads need.
//!
//! Where it differs from upstream: all nodes are scored rather than a sample (remembered verdicts make that cheap),
//! and Pods that an event wakes rest only after they were woken in vain a few times.

pub mod classes;
pub mod config;
pub mod engine;
pub mod extender;
pub mod framework;
pub mod labels;
pub mod memory;
pub mod metrics;
pub mod owners;
pub mod plugins;
pub mod pod;
pub mod preemption;
pub mod queue;
pub mod resources;
mod run;

#[cfg(test)]
mod naive;
pub mod snapshot;
pub mod standings;
#[cfg(test)]
mod testing;
pub mod topology;
pub mod watch;

pub use config::{Configuration, ConfigurationError};
pub use metrics::Metrics;
pub use run::{Config, run};
