//! The revisioned key-value store under a control plane.
//!
//! One [`Store`] trait, two engines behind it: the embedded one ([`embedded::Embedded`], on redb) and etcd ([`etcd::Etcd`]).
//! The model is etcd's: one revision counter for the whole store, every committed change gets its own
//! revision, keys are ordered bytes, a write may be conditional on the revision a key was last modified
//! at, a watch replays from a revision, and compaction forgets history (never the present).
//!
//! Invariants:
//! - a write's reply follows its fsync; concurrent writes share one;
//! - revisions are dense and strictly increasing, and survive kill -9 at any instruction;
//! - subscribers are told of every change once, in revision order, and before the write's own reply.

pub mod backup;
pub mod embedded;
pub mod etcd;
pub mod movable;
pub mod testing;
mod types;
pub use types::*;
