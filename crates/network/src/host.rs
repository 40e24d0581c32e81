//! The network namespace that is "the machine": the process's own, or (for tests, and several nodes on one machine)
//! another one.

use std::io;
use std::path::PathBuf;

use crate::kernel::netns;

/// Where host-side work happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Host {
    /// The namespace this process runs in.
    #[default]
    This,
    /// The namespace at this path plays the machine.
    Namespace(PathBuf),
}

impl Host {
    /// Runs host-side work, blocking.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        match self {
            Host::This => Ok(work()),
            Host::Namespace(path) => netns::within(path, work),
        }
    }
}
