//! The container runtime: what the node asks for, and an engine that does it.
//!
//! [`Runtime`] is the contract. It has the shape of the container runtime interface (CRI v1) in plain
//! Rust types ([`types`]), so that an engine behind a CRI socket could stand beside the embedded one.
//! [`embedded`] is the engine in this binary: images on overlayfs, sandboxes, containers, and one small
//! shim process per sandbox that outlives the server. [`fake`] implements the contract in memory for
//! tests of whoever uses it.
//!
//! Invariants:
//! - an exit is learned from an event, never by listing ([`Runtime::events`]);
//! - every operation is idempotent where CRI says so: stopping what is stopped and removing what is
//!   gone succeed;
//! - what the runtime said exists survives the server: a new engine on the same directories adopts
//!   running containers and knows the exits it slept through.

mod caps;
pub mod cgroups;
mod disk;
pub mod embedded;
pub mod fake;
pub mod images;
mod init;
pub mod logs;
mod protocol;
mod runtime;
pub mod seccomp;
mod shim;
mod spec;
mod sys;
#[cfg(test)]
#[allow(dead_code)]
mod testing;
pub mod types;

use std::ffi::OsString;
use std::process::ExitCode;

pub use runtime::{ErrorKind, Runtime, RuntimeError};
pub use types::*;

/// Runs a shim; to be entered before any thread exists when the first argument is `shim`. `args` are
/// the arguments after it.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    shim::main(args)
}
