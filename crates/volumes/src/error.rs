//! What can go wrong with a volume, in words fit for a `FailedMount` event.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why an API object behind a volume could not be read.
#[derive(Clone, Debug, Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// Why a volume could not be prepared.
#[derive(Debug, Error)]
pub enum VolumeError {
    #[error("{kind} {name:?} not found")]
    NotFound { kind: &'static str, name: String },
    #[error("references non-existent {kind} key: {key}")]
    MissingKey { kind: &'static str, key: String },
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("path {path:?} is not allowed in a volume: {reason}")]
    BadPath { path: String, reason: &'static str },
    #[error("hostPath type check failed: {path} is not {expected}")]
    HostPathType { path: String, expected: &'static str },
    #[error("{0}")]
    Downward(String),
    #[error("{0}")]
    Invalid(String),
    #[error("local volume {0:?} is in use by a pod")]
    InUse(String),
    #[error("volume kind {0:?} is not supported on this node")]
    Unsupported(String),
    #[error("{what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl VolumeError {
    /// Adapts an I/O or system-call error, keeping what was being done and to which path.
    pub(crate) fn io<E: Into<io::Error>>(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> VolumeError {
        let path = path.into();
        move |source| VolumeError::Io {
            what,
            path,
            source: source.into(),
        }
    }
}
