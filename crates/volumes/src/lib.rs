//! Volume plugins: what a Pod's volumes look like on this node's disk.
//!
//! [`Volumes::prepare`] makes every volume that some container mounts exist below the pod's directory (or finds the
//! host path it names) and is idempotent: the pod worker calls it on each sync, and a changed ConfigMap, Secret,
//! label or token reaches the running containers through the same call. [`Volumes::teardown`] removes what a pod left.
//!
//! Invariants:
//! - what a volume contains ([`render`]) is computed without touching the disk, and written by one atomic
//!   writer ([`atomic`]): a container sees all of the old content or all of the new;
//! - secrets, tokens and downward API files live on tmpfs, never on disk;
//! - nothing a container can write decides where this process writes: sub-paths are resolved by the kernel
//!   beneath the volume, and handed on as bind mounts of the opened file;
//! - a pod directory is deleted only after no mount is left below it, so a host path is never emptied by mistake.
//!
//! Differences from upstream: there is no desired/actual state loop. The caller is event-driven and serialises the
//! calls of one pod; state that matters after a restart is read back from the disk and the mount table.

pub mod atomic;
mod claims;
pub mod downward;
mod error;
mod hostpath;
pub mod local;
pub mod mounts;
pub mod ownership;
mod plugins;
pub mod render;
mod sources;
mod subpath;
pub mod tokens;
mod volumes;

pub use claims::Backing;
pub use error::{SourceError, VolumeError};
pub use render::{FileProjection, Payload};
pub use sources::{FakeSources, Sources, Token};
pub use volumes::{NodeFacts, PodOnDisk, Prepared, PreparedVolume, Volumes, referenced_objects};

#[cfg(test)]
mod tests;

/// Unmounts what volumes mounted below the node's directory. Files stay: they are Pods' data. Blocking.
pub fn cleanup(root: &std::path::Path) -> Result<(), VolumeError> {
    mounts::unmount_below(root)
}
