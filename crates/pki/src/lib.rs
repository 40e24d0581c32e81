//! The cluster's identity on disk and on the wire: certificate authorities, the certificates they issue,
//! service-account tokens, kubeconfig files and TLS configurations.
//!
//! Invariants:
//! - a certificate authority is created once and never replaced silently: a missing or unreadable half is an
//!   error that says what to do (its certificate alone can be made again from its key, which changes nothing
//!   for anyone who trusts it); it is replaced on request, in steps ([`keys`]);
//! - a leaf certificate is renewed when its names changed, its authority changed or between 70 and 90 % of its life are
//!   over, at a start and while others use it ([`Pki`]);
//! - every file is written whole (temporary file, fsync, rename, fsync of the directory), readable by its owner only;
//! - one cryptography provider (aws-lc-rs), handed to rustls explicitly: see [`tls::provider`].
//!
//! File names are those kubeadm uses, so that people find their way. All keys are ECDSA P-256: small, quick to
//! make, and accepted by every client; upstream defaults to RSA.

mod cert;
mod files;
pub mod inventory;
pub mod jws;
pub mod keys;
mod kubeconfig;
mod pki;
mod present;
pub mod request;
pub mod share;
mod stored;
pub mod tls;
pub mod token;

pub use cert::{Identity, LeafSpec, Subject, Usage};
pub use files::{private_dir, write_private};
pub use kubeconfig::{Kubeconfig, UserCredential};
pub use pki::{Params, Pki, State};
pub use present::Present;
pub use stored::renew as renew_stored;

use std::path::PathBuf;

/// Why the cluster's identity could not be loaded, made or written.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is damaged ({what}); restore it from a backup{}", path.display(), .remedy)]
    Corrupt {
        path: PathBuf,
        what: String,
        /// `, or …`: what else helps; empty where only a backup does.
        remedy: &'static str,
    },
    #[error(
        "{} and {} do not belong together; restore both from the same backup",
        certificate.display(), key.display()
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error(
        "{} is there but its key {} is missing; restore the key, or move the whole directory away to begin a new cluster identity",
        certificate.display(), key.display()
    )]
    KeyMissing { certificate: PathBuf, key: PathBuf },
    #[error(
        "the certificate authority {} expired or is not valid yet; check the clock, or move the directory away to begin a new cluster identity",
        path.display()
    )]
    AuthorityNotValid { path: PathBuf },
    #[error("cannot make {what}: {reason}")]
    Issue { what: String, reason: String },
}
