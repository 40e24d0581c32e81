//! A store that can be moved to etcd while it serves, and the copying that backups and moves share.
//!
//! What a move guarantees:
//! - everything acknowledged before or during it is in etcd: the copy follows the old store's watch, and the last
//!   changes are copied while writes wait at the gate (a short pause; reads and watches go on);
//! - the two are compared key by key before the old store is left; until then a failure changes nothing for anyone;
//! - revisions only grow: etcd's are counted on from the old store's, so every resourceVersion is newer than any
//!   client has seen; history does not move along, so watches end and clients read anew (410 Gone, as after
//!   compaction);
//! - the old store is marked and refuses to be served again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use sampan_tasks::Tasks;
use tokio::sync::{Mutex, RwLock as Gate, mpsc, watch};

use crate::backup::{Backup, LEASE};
use crate::embedded::{Embedded, MOVED_KEY};
use crate::etcd::{Etcd, Options};
use crate::types::{
    Change, Condition, Error, Key, KeyValue, LeaseId, Op, Page, Revision, Store, Update, WatchStream, Write, Written,
};

/// Writes to etcd in flight at once while copying.
const WIDTH: usize = 64;
/// Changes left when writes are made to wait.
const FEW: usize = 256;
/// Rounds of copying ahead; with more the writers are too fast to be caught up with.
const ROUNDS: usize = 50;

/// A store that begins embedded and may move.
pub struct Movable {
    embedded: Arc<Embedded>,
    current: RwLock<Arc<dyn Store>>,
    /// Writes pass it; a move closes it.
    gate: Gate<()>,
    moved: watch::Sender<bool>,
    moving: Mutex<()>,
    tasks: Tasks,
}

fn failed(why: String) -> Error {
    Error::Engine {
        action: "move",
        source: why.into(),
    }
}

impl Movable {
    pub fn new(embedded: Arc<Embedded>, tasks: &Tasks) -> Arc<Self> {
        Arc::new(Movable {
            current: RwLock::new(embedded.clone()),
            embedded,
            gate: Gate::new(()),
            moved: watch::Sender::new(false),
            moving: Mutex::new(()),
            tasks: tasks.clone(),
        })
    }

    fn current(&self) -> Arc<dyn Store> {
        self.current
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// Moves everything to etcd, saying on `told` how far it is.
    pub async fn move_to(
        &self,
        options: &Options,
        force: bool,
        told: &mpsc::UnboundedSender<String>,
    ) -> Result<(), Error> {
        let Ok(_one) = self.moving.try_lock() else {
            return Err(failed("it is being moved already".into()));
        };
        if *self.moved.borrow() {
            return Err(failed("it was moved already".into()));
        }
        // Whoever asked may be gone; the move goes on.
        let tell = |line: String| drop(told.send(line));
        let target = Etcd::connect_to_fill(options, force, &self.tasks).await?;
        let backup = Backup::of(&*self.embedded).await?;
        let mut events = self.embedded.watch("/registry/", backup.revision).await?;
        tell(format!(
            "copying {} keys as of revision {}",
            backup.entries.len(),
            backup.revision
        ));
        let mut copy = Copy::new(target.clone());
        copy.all(backup.entries).await?;
        for _ in 0..ROUNDS {
            let behind = copy.catch_up(&mut events).await?;
            if behind < FEW {
                break;
            }
            tell(format!("copied {behind} changes made meanwhile"));
        }
        tell("writes wait".into());
        let begun = std::time::Instant::now();
        let closed = self.gate.write().await;
        // Events were sent before their writes were answered, and every write has been.
        copy.catch_up(&mut events).await?;
        let last = self.embedded.revision();
        let there = compare(&self.embedded, &target).await?;
        target.filled(last).await?;
        let etcd = Etcd::connect(options, &self.tasks).await?;
        if etcd.newest().await? <= last {
            return Err(failed("etcd's revision is not beyond the old one".into()));
        }
        let mark = Write {
            key: MOVED_KEY.into(),
            condition: Condition::None,
            op: Op::Put {
                value: options.servers.join(",").into(),
                lease: None,
            },
        };
        self.embedded.write(mark).await?;
        *self.current.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = etcd;
        self.moved.send_replace(true);
        self.embedded.end_watches().await?;
        drop(closed);
        tell(format!(
            "moved {there} keys; writes waited {} ms. From now on start with --etcd-servers {}",
            begun.elapsed().as_millis(),
            options.servers.join(",")
        ));
        Ok(())
    }
}

/// Puts a backup into an empty etcd.
pub async fn restore(options: &Options, backup: Backup, force: bool, tasks: &Tasks) -> Result<(), Error> {
    let target = Etcd::connect_to_fill(options, force, tasks).await?;
    let beyond = backup.revision.max(target.newest().await?) + crate::backup::LEAP;
    Copy::new(target.clone()).all(backup.entries).await?;
    target.filled(beyond).await
}

/// Writes entries to etcd. Leases are made anew, one for each.
struct Copy {
    target: Arc<Etcd>,
    leases: HashMap<LeaseId, LeaseId>,
}

impl Copy {
    fn new(target: Arc<Etcd>) -> Self {
        Copy {
            target,
            leases: HashMap::new(),
        }
    }

    async fn all(&mut self, entries: Vec<KeyValue>) -> Result<(), Error> {
        let changes = entries
            .into_iter()
            .map(|entry| (entry.key.clone(), Some(entry)))
            .collect();
        self.changes(changes).await
    }

    /// The newest state of each key: order between keys does not matter, within one it is settled.
    async fn changes(&mut self, changes: BTreeMap<Key, Option<KeyValue>>) -> Result<(), Error> {
        let mut writes = Vec::with_capacity(changes.len());
        for (key, entry) in changes {
            let op = match entry {
                None => Op::Delete,
                Some(KeyValue { value, lease, .. }) => {
                    let lease = match lease {
                        Some(old) => Some(self.lease(old).await?),
                        None => None,
                    };
                    Op::Put { value, lease }
                }
            };
            writes.push(Write {
                key,
                condition: Condition::None,
                op,
            });
        }
        let target = &self.target;
        futures::stream::iter(writes)
            .map(|write| async move {
                // Nobody else writes here, so writing the same again is safe.
                match target.write(write.clone()).await {
                    Err(Error::Uncertain { .. } | Error::Unavailable { .. }) => target.write(write).await,
                    outcome => outcome,
                }
            })
            .buffer_unordered(WIDTH)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
    }

    async fn lease(&mut self, old: LeaseId) -> Result<LeaseId, Error> {
        if let Some(lease) = self.leases.get(&old) {
            return Ok(*lease);
        }
        let lease = self.target.grant(LEASE).await?;
        self.leases.insert(old, lease);
        Ok(lease)
    }

    /// Copies the changes that are there to be read; says how many keys they were of.
    async fn catch_up(&mut self, events: &mut WatchStream) -> Result<usize, Error> {
        let mut changes = BTreeMap::new();
        while let Ok(update) = events.try_recv() {
            if let Update::Event { event, .. } = update? {
                let entry = match event.change {
                    Change::Put(entry) => Some(entry),
                    Change::Delete => None,
                };
                changes.insert(event.key, entry);
            }
        }
        let count = changes.len();
        self.changes(changes).await?;
        Ok(count)
    }
}

/// Whether two stores hold the same keys and values; how many.
async fn compare(old: &Embedded, new: &Etcd) -> Result<usize, Error> {
    let (old, new) = futures::try_join!(Backup::of(old), Backup::of(new))?;
    fn content(backup: &Backup) -> impl Iterator<Item = (&Key, &Bytes)> {
        backup.entries.iter().map(|entry| (&entry.key, &entry.value))
    }
    if content(&old).eq(content(&new)) {
        Ok(new.entries.len())
    } else {
        Err(failed(
            "the copy differs from the store (does somebody else write to this etcd prefix?); nothing was changed here"
                .into(),
        ))
    }
}

#[async_trait]
impl Store for Movable {
    fn revision(&self) -> Revision {
        self.current().revision()
    }
    async fn newest(&self) -> Result<Revision, Error> {
        self.current().newest().await
    }
    async fn health(&self) -> Result<(), Error> {
        self.current().health().await
    }
    fn compacted(&self) -> Revision {
        self.current().compacted()
    }
    fn shared(&self) -> bool {
        self.current().shared()
    }
    async fn until_shared(&self) {
        let mut moved = self.moved.subscribe();
        // The sender lives as long as we do.
        let _moved = moved.wait_for(|moved| *moved).await;
    }
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.current().get(key).await
    }
    async fn range(&self, start: &str, end: &str, limit: usize) -> Result<Page, Error> {
        self.current().range(start, end, limit).await
    }
    async fn range_at(&self, start: &str, end: &str, limit: usize, revision: Revision) -> Result<Page, Error> {
        self.current().range_at(start, end, limit, revision).await
    }
    async fn write(&self, write: Write) -> Result<Written, Error> {
        let _pass = self.gate.read().await;
        self.current().write(write).await
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        self.current().watch(prefix, after).await
    }
    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.current().compact(revision).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.current().grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.current().keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        let _pass = self.gate.read().await;
        self.current().revoke(lease).await
    }
    async fn size(&self) -> Result<u64, Error> {
        self.current().size().await
    }
    async fn move_to(&self, options: &Options, force: bool, told: &mpsc::UnboundedSender<String>) -> Result<(), Error> {
        Movable::move_to(self, options, force, told).await
    }
}
