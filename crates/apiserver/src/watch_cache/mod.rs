//! The watch cache: everything the store holds, in memory, encoded once, in revision order.
//!
//! One store watch feeds it. Reads, lists, watches, admission and the authorizer look here and never at
//! the database. A write is answered after the cache has reached its revision, so a client always reads
//! its own writes; a read without a resourceVersion first waits for the store's newest revision, so it
//! is as fresh as a read of the database would be.

mod change;
mod crowd;
mod entry;
mod index;
mod queue;
mod recent;
pub mod scan;
mod storage;
mod watchers;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use sampan_store::{self as store, Revision, Store};
use sampan_tasks::{OnExit, Tasks};
use tokio::sync::{mpsc, oneshot};

pub use change::{Change, FormKey};
pub use entry::{Attributes, ChangeType, Entry};
pub use index::{Index, Iter};
pub use queue::{Batch, Queue};
pub use recent::Offer;
pub use storage::{HISTORY, Hook, Snapshot, Start, Storage, TooOld, Watch};
pub use watchers::Scope;

use crate::sync::{lock, read, write};

/// Where everything lives in the store.
pub const ROOT: &str = "/registry/";
/// How far back history is read at start, so that watches survive a restart of the server.
const START_HISTORY: Revision = 5_000;
/// How long a replayed event may take to arrive.
const REPLAY: Duration = Duration::from_secs(1);
/// Between tries to reach the store.
const AGAIN: Duration = Duration::from_millis(500);
/// How many store events are applied before waiters are told.
const BATCH: usize = 256;

/// All cached storages and the revision they have reached.
pub struct Cache {
    store: Arc<dyn Store>,
    storages: RwLock<HashMap<String, Arc<Storage>>>,
    revision: AtomicU64,
    waiters: Mutex<BTreeMap<Revision, Vec<oneshot::Sender<()>>>>,
    /// Storages with a round of telling put off, and until when.
    rounds: mpsc::UnboundedSender<(Instant, Arc<Storage>)>,
}

impl Cache {
    /// Loads the store's content into `storages` and keeps following it.
    pub async fn start(
        store: Arc<dyn Store>,
        storages: Vec<Arc<Storage>>,
        tasks: &Tasks,
    ) -> Result<Arc<Cache>, store::Error> {
        let (rounds, due) = mpsc::unbounded_channel();
        tasks.spawn_until_drain("watch-rounds", OnExit::Critical, hold_rounds(due));
        let cache = Arc::new(Cache {
            store: store.clone(),
            storages: RwLock::new(
                storages
                    .into_iter()
                    .map(|storage| (storage.prefix().to_owned(), storage))
                    .collect(),
            ),
            revision: AtomicU64::new(0),
            waiters: Mutex::default(),
            rounds,
        });
        let page = store.range(ROOT, &store::prefix_end(ROOT), 0).await?;
        let mut history = store.compacted().max(page.revision.saturating_sub(START_HISTORY));
        let mut events = match store.watch(ROOT, history).await {
            // Another server has compacted meanwhile: history begins with what was read.
            Err(store::Error::Compacted { .. }) if history < page.revision => {
                history = page.revision;
                store.watch(ROOT, history).await?
            }
            events => events?,
        };
        let loaded = page.revision;
        cache.load(page.entries, loaded, history);
        // History first, so that a watch from before the start is complete from the first request on.
        let mut past = history;
        while past < loaded {
            match tokio::time::timeout(REPLAY, events.recv()).await {
                Ok(Some(update)) => past = cache.follow(update?, loaded),
                Ok(None) => return Err(store::Error::Closed),
                // The newest revisions were of keys that are not ours.
                Err(_) => break,
            }
        }
        let past = past.max(loaded);
        cache.publish(past);
        let feed = cache.clone();
        tasks.spawn_until_drain("watch-cache", OnExit::Critical, feed.feed(events, loaded));
        Ok(cache)
    }

    fn load(&self, entries: Vec<store::KeyValue>, revision: Revision, history: Revision) {
        let mut sorted = self.sort(entries);
        for storage in read(&self.storages).values() {
            storage.load(sorted.remove(storage.prefix()).unwrap_or_default(), revision, history);
        }
    }

    /// Entries by the prefix of their storage.
    fn sort(&self, entries: Vec<store::KeyValue>) -> HashMap<String, Vec<Arc<Entry>>> {
        let mut sorted: HashMap<String, Vec<Arc<Entry>>> = HashMap::new();
        for entry in entries {
            if let Some(storage) = self.storage_of(&entry.key) {
                let built = storage.entry(entry.key, &entry.value, entry.mod_revision, ChangeType::Added);
                sorted.entry(storage.prefix().to_owned()).or_default().push(built);
            }
        }
        sorted
    }

    /// Follows the store, reading everything anew where its history was lost.
    async fn feed(self: Arc<Self>, mut events: store::WatchStream, mut loaded: Revision) {
        let mut batch = Vec::with_capacity(BATCH);
        while events.recv_many(&mut batch, BATCH).await > 0 {
            let mut reached = 0;
            let mut lost = None;
            for update in batch.drain(..) {
                match update {
                    Ok(update) => reached = self.follow(update, loaded),
                    Err(error) => lost = Some(error),
                }
            }
            self.publish(reached);
            let Some(error) = lost else { continue };
            if !matches!(error, store::Error::Compacted { .. } | store::Error::Moved) {
                tracing::error!(%error, "the store's watch failed");
                return;
            }
            tracing::warn!(%error, "reading the store anew; clients begin their watches anew");
            (events, loaded) = self.reload().await;
        }
    }

    /// Replaces everything by what the store holds now, and follows from there. Tries until the store answers.
    async fn reload(&self) -> (store::WatchStream, Revision) {
        loop {
            let page = match self.store.range(ROOT, &store::prefix_end(ROOT), 0).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, "the store cannot be read; trying again");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            match self.store.watch(ROOT, page.revision).await {
                Ok(events) => {
                    let mut sorted = self.sort(page.entries);
                    for storage in read(&self.storages).values() {
                        let entries = sorted.remove(storage.prefix()).unwrap_or_default();
                        storage.reload(entries, page.revision);
                    }
                    self.publish(page.revision);
                    return (events, page.revision);
                }
                Err(error) => {
                    tracing::warn!(%error, "the store cannot be watched; trying again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Applies one update and says which revision is now complete.
    fn follow(&self, update: store::Update, loaded: Revision) -> Revision {
        match update {
            store::Update::Event { event, last } => {
                self.take(&event, loaded);
                if last { event.revision } else { event.revision - 1 }
            }
            store::Update::Reached(revision) => revision,
        }
    }

    fn take(&self, event: &store::Event, loaded: Revision) {
        let Some(storage) = self.storage_of(&event.key) else {
            return;
        };
        if event.revision <= loaded {
            storage.remember(event);
        } else {
            if let Some(due) = storage.apply(event) {
                // Its end is the server's end, and that of all watches.
                let _ended = self.rounds.send((due, storage));
            }
        }
    }

    fn publish(&self, revision: Revision) {
        self.revision.fetch_max(revision, Ordering::AcqRel);
        let mut waiters = lock(&self.waiters);
        while let Some(entry) = waiters.first_entry()
            && *entry.key() <= revision
        {
            for waiter in entry.remove() {
                // A waiter that gave up has dropped its receiver.
                let _gone = waiter.send(());
            }
        }
    }

    /// The storage a key belongs to: prefixes are one to three segments long.
    fn storage_of(&self, key: &str) -> Option<Arc<Storage>> {
        let path = key.strip_prefix(ROOT)?;
        let storages = read(&self.storages);
        path.match_indices('/')
            .take(3)
            .find_map(|(end, _)| storages.get(&path[..end]))
            .cloned()
    }

    /// The storage of a prefix.
    pub fn storage(&self, prefix: &str) -> Option<Arc<Storage>> {
        read(&self.storages).get(prefix).cloned()
    }

    /// Adds a storage while running (a new custom resource) and loads what the store already has for it.
    pub async fn add(&self, storage: Arc<Storage>) -> Result<Arc<Storage>, store::Error> {
        if let Some(known) = self.storage(storage.prefix()) {
            return Ok(known);
        }
        // Registered first, loaded second: what commits in between is applied and survives the load.
        let storage = write(&self.storages)
            .entry(storage.prefix().to_owned())
            .or_insert(storage)
            .clone();
        let root = format!("{ROOT}{}/", storage.prefix());
        let page = self.store.range(&root, &store::prefix_end(&root), 0).await?;
        let entries = page
            .entries
            .into_iter()
            .map(|entry| storage.entry(entry.key, &entry.value, entry.mod_revision, ChangeType::Added))
            .collect();
        storage.load(entries, page.revision, page.revision);
        Ok(storage)
    }

    /// Stops caching a prefix; its watches end.
    pub fn remove(&self, prefix: &str) {
        if let Some(storage) = write(&self.storages).remove(prefix) {
            storage.load(Vec::new(), self.revision(), self.revision());
        }
    }

    pub fn storages(&self) -> Vec<Arc<Storage>> {
        read(&self.storages).values().cloned().collect()
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The revision everything here has reached.
    pub fn revision(&self) -> Revision {
        self.revision.load(Ordering::Acquire)
    }

    /// Waits until the cache has reached `revision`.
    pub async fn reached(&self, revision: Revision) {
        if self.revision() >= revision {
            return;
        }
        let told = {
            let mut waiters = lock(&self.waiters);
            if self.revision() >= revision {
                return;
            }
            let (tell, told) = oneshot::channel();
            waiters.entry(revision).or_default().push(tell);
            told
        };
        // The sender only goes away with the cache itself.
        let _told = told.await;
    }

    /// Waits until reads here are as fresh as the store, other servers' writes included. While the store cannot be
    /// asked it waits on: the request's own deadline ends that.
    pub async fn caught_up(&self) -> Revision {
        loop {
            match self.store.newest().await {
                Ok(newest) => {
                    self.reached(newest).await;
                    return newest;
                }
                Err(error) => {
                    tracing::warn!(%error, "the store cannot be asked for its revision; trying again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// Tells crowds of watchers when their round is due, a slice at a time: whatever else the server has to do comes between.
async fn hold_rounds(mut put_off: mpsc::UnboundedReceiver<(Instant, Arc<Storage>)>) {
    // One entry for each storage, at the earliest of its rounds.
    let mut due: Vec<(Instant, Arc<Storage>)> = Vec::new();
    loop {
        let next = due.iter().map(|(at, _)| *at).min();
        let news = match next {
            None => match put_off.recv().await {
                Some(news) => Some(news),
                None => return,
            },
            Some(at) if at <= Instant::now() => put_off.try_recv().ok(),
            Some(at) => match tokio::time::timeout_at(at.into(), put_off.recv()).await {
                Ok(Some(news)) => Some(news),
                Ok(None) => return,
                Err(_) => None,
            },
        };
        if let Some((at, storage)) = news {
            match due.iter_mut().find(|(_, known)| Arc::ptr_eq(known, &storage)) {
                Some((known, _)) => *known = at.min(*known),
                None => due.push((at, storage)),
            }
            continue;
        }
        let now = Instant::now();
        due = due
            .into_iter()
            .filter_map(|(at, storage)| {
                if at > now {
                    return Some((at, storage));
                }
                storage.rounds(now).map(|next| (next, storage))
            })
            .collect();
        // Those just told write, and connections are looked at, before the next slice.
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests;
