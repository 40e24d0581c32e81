//! The store's vocabulary: keys, entries, conditions, events and errors.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

/// A point in the store's history. 0 means "no revision": as a condition, that the key must not exist.
pub type Revision = u64;

/// Identifies a lease (a TTL). Never 0.
pub type LeaseId = u64;

/// An ordered key, by convention a path such as `/registry/pods/default/web-0`.
pub type Key = Arc<str>;

/// One key as it stood after the change that made `mod_revision`.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Key,
    pub value: Bytes,
    /// The revision at which the key came into being (since it was last absent).
    pub create_revision: Revision,
    /// The revision of the last change.
    pub mod_revision: Revision,
    pub lease: Option<LeaseId>,
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be Secrets: only their size is ever printed.
        write!(f, "{}@{} ({} bytes)", self.key, self.mod_revision, self.value.len())
    }
}

/// What stands for a value that is there and cannot be read; no object begins so.
const UNREADABLE: &[u8] = b"\0unreadable\0";

/// Stands for a value that cannot be read, and says why.
pub fn unreadable(why: &str) -> Bytes {
    [UNREADABLE, why.as_bytes()].concat().into()
}

/// What an encrypted value begins with. Where nothing decrypts, it comes up as it is stored.
const ENCRYPTED: &[u8] = b"k8s:enc:";

/// Why a value cannot be read, if it cannot.
pub fn why_unreadable(value: &[u8]) -> Option<&str> {
    if value.starts_with(ENCRYPTED) {
        return Some("identity transformer tried to read encrypted data");
    }
    std::str::from_utf8(value.strip_prefix(UNREADABLE)?).ok()
}

/// One committed change.
#[derive(Clone, Debug)]
pub struct Event {
    pub revision: Revision,
    pub key: Key,
    pub change: Change,
    /// The entry before the change; `None` for a creation, or when history before it was compacted.
    pub previous: Option<KeyValue>,
}

#[derive(Clone, Debug)]
pub enum Change {
    Put(KeyValue),
    Delete,
}

/// What a write does.
#[derive(Clone, Debug)]
pub enum Op {
    Put { value: Bytes, lease: Option<LeaseId> },
    Delete,
}

/// When a write may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    None,
    /// Only if the key was last modified at this revision; 0: only if it does not exist.
    ModRevision(Revision),
}

/// One conditional write of one key.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: Key,
    pub condition: Condition,
    pub op: Op,
}

/// What became of a [`Write`].
#[derive(Clone, Debug)]
pub enum Written {
    /// Committed and durable. For a delete, `revision` is the deletion's own revision.
    /// Deleting an absent key commits nothing and reports the current revision.
    Committed { revision: Revision },
    /// The condition did not hold; nothing was written. `current` is the key as it stands.
    Refused {
        current: Option<KeyValue>,
        revision: Revision,
    },
}

/// A page of an ordered range.
#[derive(Clone, Debug)]
pub struct Page {
    pub entries: Vec<KeyValue>,
    /// Whether the range holds more keys after the last entry.
    pub more: bool,
    /// The store's revision at which the page is exact.
    pub revision: Revision,
}

/// What a watch tells.
#[derive(Clone, Debug)]
pub enum Update {
    /// A change. `last`: no other change of the same revision follows (only the end of a lease changes several
    /// keys at one revision, and only in etcd).
    Event { event: Event, last: bool },
    /// Everything up to this revision was told; the revisions since the last event were of other keys.
    Reached(Revision),
}

/// A watch: updates in revision order, until it is dropped or ends with an error.
/// [`Error::Compacted`] ends it when history was lost while the engine could not follow; read everything anew.
pub type WatchStream = mpsc::UnboundedReceiver<Result<Update, Error>>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The requested revision is older than the compaction point.
    #[error("required revision {requested} has been compacted (oldest kept: {oldest})")]
    Compacted { requested: Revision, oldest: Revision },
    /// The requested revision has not happened yet.
    #[error("required revision {requested} is in the future (current: {current})")]
    Future { requested: Revision, current: Revision },
    #[error("lease {0} not found")]
    LeaseNotFound(LeaseId),
    /// Another process holds the data directory.
    #[error("the data directory {path} is in use by another process{holder}; stop it or choose another --data-dir")]
    Locked { path: String, holder: String },
    /// The store cannot be reached. Nothing was written.
    #[error("the store cannot be reached: {reason}")]
    Unavailable { reason: String },
    /// The answer to a write did not come: it may have been committed, or may still be.
    #[error("{reason}")]
    Uncertain { reason: String },
    /// The store refused, in its own words. Nothing was written.
    #[error("{reason}")]
    Rejected { reason: String },
    /// The store was moved elsewhere while it was open; what is asked next is asked there.
    #[error("the store was moved")]
    Moved,
    /// The file is not what was written.
    #[error(
        "the store's file {path} is damaged ({reason}). To go on from a backup: sampan restore FILE --data-dir DIR --force (the damaged file is kept beside the new one)"
    )]
    Damaged { path: String, reason: String },
    /// The engine failed: disk full, corruption, I/O error. The write was not acknowledged.
    #[error("the store failed to {action}: {source}")]
    Engine {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// A revisioned, ordered, durable map. All methods are cancel-safe; a write whose future is dropped
/// may still commit.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest committed revision this process knows of.
    fn revision(&self) -> Revision;
    /// The newest committed revision, other processes' writes included: at least that of every write acknowledged
    /// to anyone before the call.
    async fn newest(&self) -> Result<Revision, Error> {
        Ok(self.revision())
    }
    /// Whether the store works now; what is wrong if it does not.
    async fn health(&self) -> Result<(), Error> {
        self.newest().await.map(|_| ())
    }
    /// What else has to work for it to serve, by upstream's names, and what is wrong. Reading goes on without: a server
    /// is not ready then, but it lives.
    fn checks(&self) -> Vec<(String, Result<(), String>)> {
        Vec::new()
    }
    /// The oldest revision that can still be watched from or read at.
    fn compacted(&self) -> Revision;
    /// Whether other processes may write to this store too.
    fn shared(&self) -> bool {
        false
    }
    /// Resolves once [`Store::shared`] is true; a store can be moved while it serves.
    async fn until_shared(&self) {
        if !self.shared() {
            std::future::pending::<()>().await;
        }
    }
    /// One key as it stands.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error>;
    /// Keys of `[start, end)` in order, at most `limit` (0: all), as they stand now.
    async fn range(&self, start: &str, end: &str, limit: usize) -> Result<Page, Error>;
    /// The same as everything stood at `revision`, which must be known and not older than the last compaction:
    /// [`Error::Compacted`] and [`Error::Future`] say what it is instead.
    async fn range_at(&self, start: &str, end: &str, limit: usize, revision: Revision) -> Result<Page, Error>;
    /// Commits one conditional write. Returns after it is durable and every subscriber was told.
    async fn write(&self, write: Write) -> Result<Written, Error>;
    /// All changes of keys starting with `prefix` with a revision greater than `after`, and then new ones as they commit.
    /// Fails with [`Error::Compacted`] if history after `after` is no longer complete.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error>;
    /// Forgets history up to and including `revision`. Where several processes share the store, one of them does it
    /// and the others' calls change nothing.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;
    /// Starts a lease of `ttl`; keys attached to it are deleted when it ends.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error>;
    /// Starts the lease's time anew.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error>;
    /// Ends a lease now, deleting its keys.
    async fn revoke(&self, lease: LeaseId) -> Result<(), Error>;
    /// Moves everything to etcd while it serves, saying how far it is; see [`crate::movable`].
    async fn move_to(
        &self,
        _options: &crate::etcd::Options,
        _force: bool,
        _told: &mpsc::UnboundedSender<String>,
    ) -> Result<(), Error> {
        Err(Error::Rejected {
            reason: "only an embedded store can be moved".into(),
        })
    }
    /// The store under this one, if this one transforms its values: what is copied elsewhere is copied from there.
    fn below(&self) -> Option<&Arc<dyn Store>> {
        None
    }
    /// Whether writing the value of `key` anew would store it differently.
    async fn is_stale(&self, _key: &str) -> Result<bool, Error> {
        Ok(false)
    }
    /// What it counts, in Prometheus' text format.
    fn metrics(&self, _out: &mut String) {}
    /// Bytes on disk.
    async fn size(&self) -> Result<u64, Error>;
}

/// The first key after every key that starts with `prefix`.
pub fn prefix_end(prefix: &str) -> String {
    // Keys are ASCII paths; '\u{7f}' sorts after all of them, and no key contains it.
    format!("{prefix}\u{7f}")
}
