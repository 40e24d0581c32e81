//! Encryption at rest: values are encrypted on their way into the store and decrypted on their way out.
//!
//! [`Encrypted`] is a [`sampan_store::Store`] over another one, and the only place where values are transformed: what
//! is above it (the watch cache and everything else of the API server) sees objects, what is below it (the embedded
//! file, etcd, backups, a move from the one to the other) sees what is on the disk. Which values are encrypted, and
//! with what, is upstream's `EncryptionConfiguration`; what is stored is upstream's to the byte, so that either reads
//! what the other has written with the same configuration.
//!
//! Invariants:
//! - the first provider of a resource writes, all of them read;
//! - what cannot be decrypted is passed on as unreadable ([`sampan_store::unreadable`]), with its reason, never as an object;
//! - keys and plain text are in no log, error or debug output.
//!
//! Differs from upstream: the data that is authenticated is the canonical key (`/registry/…`) whatever `--etcd-prefix`
//! says, so that a store may be moved to another prefix. With the default prefix it is the same. Version 1 of KMS,
//! which upstream has switched off, is refused.

mod cipher;
mod config;
mod kms;
mod metrics;
mod proto;
mod reload;
mod store;
mod transformer;

pub use config::{Configuration, ConfigurationError, GroupResource};
pub use reload::Source;
pub use store::{Encrypted, Resources};
