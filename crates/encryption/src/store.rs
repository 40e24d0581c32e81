//! A store whose values are encrypted below it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sampan_store::etcd::Options;
use sampan_store::{
    Change, Error, Event, KeyValue, LeaseId, Op, Page, Revision, Store, Update, WatchStream, Write, Written, unreadable,
};
use sampan_tasks::{OnExit, Tasks};
use tokio::sync::{mpsc, watch};

use crate::config::{ConfigurationError, GroupResource};
use crate::metrics::Metrics;
use crate::reload::{self, Source};
use crate::transformer::{Counted, Set, plain};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// The resource a key of the store belongs to, if it is one.
pub type Resources = Arc<dyn Fn(&str) -> Option<GroupResource> + Send + Sync>;

/// The store above, over the store below.
pub struct Encrypted {
    below: Arc<dyn Store>,
    resources: Resources,
    set: RwLock<Arc<Set>>,
    /// Whether something could not be read since everything was read last.
    unread: Arc<AtomicBool>,
    /// Told when what could not be read may be readable now.
    news: Arc<watch::Sender<u64>>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    /// Plug-ins may come and go, and are one check.
    reloads: bool,
    this: Weak<Encrypted>,
}

impl Encrypted {
    /// Reads the configuration, which must be right, and follows its file if that is asked for.
    pub async fn open(
        source: Source,
        below: Arc<dyn Store>,
        resources: Resources,
        tasks: &Tasks,
    ) -> Result<Arc<Encrypted>, ConfigurationError> {
        let news = Arc::new(watch::Sender::new(0));
        let metrics = Arc::new(Metrics::default());
        let (content, set) = reload::load(&source, &news, &metrics, tasks).await?;
        metrics.configuration(&content);
        let store = Arc::new_cyclic(|this| Encrypted {
            this: this.clone(),
            below,
            resources,
            set: RwLock::new(Arc::new(set)),
            unread: Arc::default(),
            news,
            tasks: tasks.clone(),
            metrics,
            reloads: source.reload.is_some(),
        });
        if let Some(interval) = source.reload {
            let following = reload::follow(Arc::downgrade(&store), source, content, interval);
            tasks.spawn_until_drain("encryption-configuration", OnExit::Critical, following);
        }
        Ok(store)
    }

    /// Another configuration from now on.
    pub(crate) fn replace(&self, set: Set) {
        *write(&self.set) = Arc::new(set);
        self.news.send_modify(|times| *times += 1);
    }

    pub(crate) fn news(&self) -> &Arc<watch::Sender<u64>> {
        &self.news
    }
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }
    pub(crate) fn counts(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The value as it is to be stored.
    fn sealed(&self, key: &str, value: Bytes) -> Result<Bytes, Error> {
        let Some(resource) = (self.resources)(key) else {
            return Ok(value);
        };
        let set = read(&self.set).clone();
        let Some(row) = set.row(&resource) else {
            return Ok(value);
        };
        let counted = Counted {
            metrics: &self.metrics,
            resource: &resource,
        };
        row.write(&value, key.as_bytes(), counted).map_err(|why| {
            tracing::error!(key, why, "a value could not be encrypted");
            Error::Engine {
                action: "encrypt",
                source: why.into(),
            }
        })
    }

    /// What is stored, and whether it should be stored differently.
    async fn opened(&self, key: &str, data: Bytes) -> Result<(Bytes, bool), String> {
        let Some(resource) = (self.resources)(key) else {
            return Ok((data, false));
        };
        let set = read(&self.set).clone();
        let read = match set.row(&resource) {
            Some(row) => {
                let counted = Counted {
                    metrics: &self.metrics,
                    resource: &resource,
                };
                row.read(data, key.as_bytes(), counted).await?
            }
            None => plain(data)?,
        };
        Ok((read.value, read.stale))
    }

    async fn open_entry(&self, entry: &mut KeyValue) {
        match self.opened(&entry.key, entry.value.clone()).await {
            Ok((value, _)) => entry.value = value,
            Err(why) => {
                if !self.unread.swap(true, Ordering::AcqRel) {
                    tracing::error!(
                        key = &*entry.key,
                        why,
                        "a value could not be decrypted; there may be more"
                    );
                }
                entry.value = unreadable(&why);
            }
        }
    }

    async fn open_page(&self, mut page: Page) -> Page {
        for entry in &mut page.entries {
            self.open_entry(entry).await;
        }
        page
    }

    async fn open_event(&self, event: &mut Event) {
        if let Change::Put(entry) = &mut event.change {
            self.open_entry(entry).await;
        }
        if let Some(entry) = &mut event.previous {
            self.open_entry(entry).await;
        }
    }
}

/// What a relay needs of its store; it must not keep it alive.
struct Relay {
    store: Weak<Encrypted>,
    from: WatchStream,
    to: mpsc::UnboundedSender<Result<Update, Error>>,
    news: watch::Receiver<u64>,
}

impl Relay {
    async fn run(mut self) {
        loop {
            let update = tokio::select! {
                biased;
                () = self.to.closed() => return,
                Ok(()) = self.news.changed() => {
                    let Some(store) = self.store.upgrade() else { return };
                    if !store.unread.swap(false, Ordering::AcqRel) {
                        continue;
                    }
                    // What could not be read is to be read again: whoever watches begins anew.
                    Some(Err(Error::Moved))
                }
                update = self.from.recv() => update,
            };
            let Some(mut update) = update else { return };
            if let Ok(Update::Event { event, .. }) = &mut update {
                let Some(store) = self.store.upgrade() else { return };
                store.open_event(event).await;
            }
            let ends = update.is_err();
            if self.to.send(update).is_err() || ends {
                return;
            }
        }
    }
}

#[async_trait]
impl Store for Encrypted {
    fn revision(&self) -> Revision {
        self.below.revision()
    }
    async fn newest(&self) -> Result<Revision, Error> {
        self.below.newest().await
    }
    async fn health(&self) -> Result<(), Error> {
        self.below.health().await
    }
    fn compacted(&self) -> Revision {
        self.below.compacted()
    }
    fn shared(&self) -> bool {
        self.below.shared()
    }
    async fn until_shared(&self) {
        self.below.until_shared().await;
    }
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let mut entry = self.below.get(key).await?;
        if let Some(entry) = &mut entry {
            self.open_entry(entry).await;
        }
        Ok(entry)
    }
    async fn range(&self, start: &str, end: &str, limit: usize) -> Result<Page, Error> {
        Ok(self.open_page(self.below.range(start, end, limit).await?).await)
    }
    async fn range_at(&self, start: &str, end: &str, limit: usize, revision: Revision) -> Result<Page, Error> {
        let page = self.below.range_at(start, end, limit, revision).await?;
        Ok(self.open_page(page).await)
    }
    async fn write(&self, mut write: Write) -> Result<Written, Error> {
        if let Op::Put { value, .. } = &mut write.op {
            *value = self.sealed(&write.key, std::mem::take(value))?;
        }
        let mut written = self.below.write(write).await?;
        if let Written::Refused {
            current: Some(current), ..
        } = &mut written
        {
            self.open_entry(current).await;
        }
        Ok(written)
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        // Before the watch: what happens from here on is news.
        let mut news = self.news.subscribe();
        news.mark_unchanged();
        let from = self.below.watch(prefix, after).await?;
        let (to, stream) = mpsc::unbounded_channel();
        let relay = Relay {
            store: self.this.clone(),
            from,
            to,
            news,
        };
        self.tasks.spawn("decrypt-watch", OnExit::Expected, relay.run());
        Ok(stream)
    }
    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.below.compact(revision).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.below.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.below.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.below.revoke(lease).await
    }
    async fn move_to(&self, options: &Options, force: bool, told: &mpsc::UnboundedSender<String>) -> Result<(), Error> {
        self.below.move_to(options, force, told).await
    }
    async fn size(&self) -> Result<u64, Error> {
        self.below.size().await
    }
    fn below(&self) -> Option<&Arc<dyn Store>> {
        Some(&self.below)
    }
    async fn is_stale(&self, key: &str) -> Result<bool, Error> {
        let Some(entry) = self.below.get(key).await? else {
            return Ok(false);
        };
        // What cannot be read is nobody's to write anew.
        Ok(self.opened(key, entry.value).await.is_ok_and(|(_, stale)| stale))
    }
    fn checks(&self) -> Vec<(String, Result<(), String>)> {
        let set = read(&self.set).clone();
        if self.reloads {
            return vec![("kms-providers".into(), set.health())];
        }
        let plugins = set.plugins().into_iter().enumerate();
        plugins
            .map(|(index, verdict)| (format!("kms-provider-{index}"), verdict))
            .collect()
    }
    fn metrics(&self, out: &mut String) {
        self.metrics.text(out);
    }
}
