//! Images: named, verified, unpacked, and counted while in use.
//!
//! [`ImageStore`] keeps unpacked layers (each under the digest of itself and all below it) and one
//! index of images. Compressed layers are not kept: once unpacked they only cost disk, and a pull
//! asks first which layers are there.
//!
//! Invariants:
//! - an image is in the index only if all its layers are unpacked and verified;
//! - the index is replaced atomically and changed under a file lock, so that the command line and a
//!   running server can both use it;
//! - whatever fails leaves only files in `tmp`, which the next start removes.

mod archive;
pub mod layer;
mod manifest;
pub mod reference;
mod registry;
mod store;

use std::io;
use std::path::{Path, PathBuf};

pub use layer::LayerError;
pub use reference::{Reference, ReferenceError};
pub use registry::{Registry, RegistryConfig};
pub use store::ImageStore;

use crate::runtime::{ErrorKind, RuntimeError};

/// Why an operation on images failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name is no name.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A layer is damaged or hostile.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A document is not what it should be.
    #[error("{0}")]
    Invalid(String),
    /// Content is not what its digest says.
    #[error("the content is damaged: its digest is {actual}, not {expected}; try again")]
    Digest {
        /// What was promised.
        expected: String,
        /// What came.
        actual: String,
    },
    /// No such image.
    #[error("image \"{0}\" not found")]
    NotFound(String),
    /// A container uses it.
    #[error("image \"{image}\" is in use by container {by}; remove the container first")]
    InUse {
        /// The image.
        image: String,
        /// A container.
        by: String,
    },
    /// The registry answered, and said no.
    #[error("failed to pull image \"{image}\": {why}")]
    Refused {
        /// What was asked for.
        image: String,
        /// What it said.
        why: String,
    },
    /// The registry could not be reached.
    #[error(
        "failed to pull image \"{image}\": registry {registry} cannot be reached: {why}; \
         check the name and the network, or import the image from an archive"
    )]
    Unreachable {
        /// What was asked for.
        image: String,
        /// Host and port.
        registry: String,
        /// The system's answer.
        why: String,
    },
    /// The disk said no.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

type Result<T, E = ImageError> = std::result::Result<T, E>;

impl From<ImageError> for RuntimeError {
    fn from(error: ImageError) -> Self {
        let kind = match &error {
            ImageError::Reference(_) | ImageError::Invalid(_) => ErrorKind::InvalidArgument,
            ImageError::NotFound(_) => ErrorKind::NotFound,
            ImageError::InUse { .. } => ErrorKind::FailedPrecondition,
            ImageError::Layer(_) | ImageError::Digest { .. } | ImageError::Refused { .. } => ErrorKind::ImagePull,
            ImageError::Unreachable { .. } => ErrorKind::Unavailable,
            ImageError::Disk { .. } => ErrorKind::Internal,
        };
        RuntimeError::new(kind, error.to_string())
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_path_buf();
    move |source| ImageError::Disk { path, source }
}

/// `sha256:…` of `bytes`.
fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    format!("sha256:{}", hex::encode(digest))
}

#[cfg(test)]
mod store_tests;
