//! The embedded engine: redb behind one writer thread that commits in groups.
//!
//! The writer takes whatever queued while the last fsync ran, applies it as one transaction, and only after
//! the commit is on disk tells the watchers and then the callers. So N concurrent writers pay for one fsync,
//! and readers and watchers never wait for it. Reads go to redb's own snapshots.
//!
//! Invariants:
//! - a batch commits as a whole or not at all; revisions of a failed batch are not consumed;
//! - a watcher sees every change of its prefix exactly once, in revision order, with no gap between replayed
//!   history and live changes: registration happens on the writer thread, between two batches;
//! - one process per directory, by a lock the kernel drops when the process dies;
//! - after a failure (a full disk, an I/O error, a file system that became read-only) the file is opened anew, at once
//!   and then whenever there is something to write, until that works. What a failed commit left behind decides: either
//!   nothing of it is there, or all of it is and the watchers are told.
//!
//! Differs from etcd: leases start their time anew when the process starts, as etcd's do after a leader change.

mod disk;
mod read;
mod shared;
mod tables;
mod writer;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use redb::{Database, ReadableDatabase, ReadableTable};
use tokio::sync::oneshot;

use crate::backup::Backup;
use crate::testing::Faults;
use crate::types::{Error, Key, KeyValue, LeaseId, Page, Revision, Store, WatchStream, Write, Written};
use shared::Shared;
use tables::{FORMAT, HISTORY, KEYS, LEASE_KEYS, LEASES, META, META_FORMAT};
use writer::{Command, Wish, Writer};

/// There when the store was moved: where to.
pub(crate) const MOVED_KEY: &str = "/registry/sampan/moved-to";

/// How an embedded store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes redb may keep of the file in memory. The API server keeps the present in its own cache, so this can be small.
    pub cache_bytes: usize,
    /// Most writes in one commit.
    pub batch: usize,
    /// For tests of bad days.
    pub faults: Option<Arc<Faults>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_bytes: 16 << 20,
            batch: 1024,
            faults: None,
        }
    }
}

/// An open embedded store. Dropping it stops the writer after the batch in hand.
pub struct Embedded {
    shared: Arc<Shared>,
    commands: Mutex<Option<mpsc::Sender<Command>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Held for the kernel's lock on it.
    _lock: File,
}

/// Wraps an engine failure with what was being done.
fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Engine {
        action,
        source: source.into(),
    }
}

impl Embedded {
    /// Opens (or creates) the store in `dir`.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process holds `dir`; [`Error::Damaged`] when the file is not what was written;
    /// [`Error::Engine`] when it cannot be opened or has another format.
    pub fn open(dir: &Path, options: Options) -> Result<Arc<Self>, Error> {
        disk::private_dir(dir).map_err(failed("create its directory"))?;
        let lock = lock(dir)?;
        let batch = options.batch;
        let shared = Arc::new(Shared::open(dir.join("store.redb"), options)?);
        let database = shared.database();
        prepare(&database)?;
        refuse_moved(&database)?;
        let (commands, inbox) = mpsc::channel();
        let writer = Writer::load(shared.clone(), batch)?;
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&inbox))
            .map_err(failed("start its writer"))?;
        Ok(Arc::new(Embedded {
            shared,
            commands: Mutex::new(Some(commands)),
            writer: Mutex::new(Some(writer)),
            _lock: lock,
        }))
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        {
            let commands = self.commands.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let sender = commands.as_ref().ok_or(Error::Closed)?;
            sender.send(command(reply)).map_err(|_| Error::Closed)?;
        }
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Ends every watch with [`Error::Moved`].
    pub async fn end_watches(&self) -> Result<(), Error> {
        self.ask(|reply| Command::EndWatches { reply }).await
    }

    /// Makes `dir` a store that holds `backup`. What is there already is refused, or with `force` kept beside it.
    /// Returns where it was put.
    ///
    /// The counter goes on far beyond the backup's (and the old store's) revision and history begins there, so a
    /// client that knows anything newer than the backup reads everything anew.
    pub fn restore(dir: &Path, backup: &Backup, force: bool) -> Result<Option<PathBuf>, Error> {
        let action = "restore a backup";
        disk::private_dir(dir).map_err(failed("create its directory"))?;
        let _lock = lock(dir)?;
        let (path, new) = (dir.join("store.redb"), dir.join("store.redb.restoring"));
        let mut beyond = backup.revision;
        if path.exists() {
            if !force {
                return Err(failed(action)(format!(
                    "there is a store in {} already; choose another --data-dir, or give --force to replace it (the old one is kept beside the new)",
                    dir.display()
                )));
            }
            // A damaged store is a reason to restore: then only the backup's revision counts.
            if let Ok(old) = Database::builder().set_check_integrity_on_open(true).open(&path)
                && let Ok(transaction) = old.begin_read()
                && let Ok(meta) = transaction.open_table(META)
            {
                beyond = beyond.max(writer::counter(&meta, tables::META_REVISION).unwrap_or(0));
            }
        }
        let revision = beyond + crate::backup::LEAP;
        let database = shared::create(&new, &Options::default())?;
        let transaction = database.begin_write().map_err(failed(action))?;
        {
            let mut keys = transaction.open_table(KEYS).map_err(failed(action))?;
            let mut leases = transaction.open_table(LEASES).map_err(failed(action))?;
            let mut lease_keys = transaction.open_table(LEASE_KEYS).map_err(failed(action))?;
            let mut next = 1;
            for entry in &backup.entries {
                keys.insert(&*entry.key, tables::encode_entry(entry).as_slice())
                    .map_err(failed(action))?;
                if let Some(lease) = entry.lease {
                    // Every engine counts leases in its own way; here small numbers are expected to be free.
                    let ttl = u64::try_from(crate::backup::LEASE.as_millis()).unwrap_or(u64::MAX);
                    leases.insert(lease, ttl).map_err(failed(action))?;
                    lease_keys.insert((lease, &*entry.key), ()).map_err(failed(action))?;
                    next = next.max(lease + 1);
                }
            }
            let mut meta = transaction.open_table(META).map_err(failed(action))?;
            for (name, value) in [
                (tables::META_REVISION, revision),
                (tables::META_COMPACTED, revision),
                (tables::META_NEXT_LEASE, next),
            ] {
                meta.insert(name, value).map_err(failed(action))?;
            }
        }
        transaction.commit().map_err(failed(action))?;
        drop(database);
        let kept = path.exists().then(|| dir.join(format!("store.redb.before-{revision}")));
        if let Some(kept) = &kept {
            // At every moment there is a whole store in its place: a second name for the old one, then the new over the first.
            match std::fs::hard_link(&path, kept) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    // By a restore that was cut short here; the old store still counted on from the same revision.
                    std::fs::remove_file(kept)
                        .and_then(|()| std::fs::hard_link(&path, kept))
                        .map_err(failed(action))?;
                }
                linked => linked.map_err(failed(action))?,
            }
        }
        std::fs::rename(&new, &path).map_err(failed(action))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(action))?;
        Ok(kept)
    }

    /// Stops the writer once everything queued is committed, and closes the file. Later calls fail with [`Error::Closed`].
    pub fn close(&self) {
        drop(
            self.commands
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .take(),
        );
        if let Some(writer) = self
            .writer
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

/// Takes the directory's lock, and leaves this process's id in it for whoever finds it taken.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| failed("open its lock file")(format!("{}: {error}", path.display())))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The holder is only named to help; not being able to read it changes nothing.
            let holder = match file.read_to_string(&mut holder) {
                Ok(_) if !holder.trim().is_empty() => format!(" (process {})", holder.trim()),
                _ => String::new(),
            };
            return Err(Error::Locked {
                path: dir.display().to_string(),
                holder,
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed("lock its directory")(error)),
    }
    file.set_len(0)
        .and_then(|()| write!(file, "{}", std::process::id()))
        .map_err(|error| failed("write its lock file")(format!("{}: {error}", path.display())))?;
    Ok(file)
}

/// A store that was moved is of the past: serving it again would undo what happened since.
fn refuse_moved(database: &Database) -> Result<(), Error> {
    let action = "open its file";
    let transaction = database.begin_read().map_err(failed(action))?;
    let keys = transaction.open_table(KEYS).map_err(failed(action))?;
    let Some(found) = keys.get(MOVED_KEY).map_err(failed(action))? else {
        return Ok(());
    };
    let entry = tables::decode_entry(Key::from(MOVED_KEY), found.value()).map_err(failed(action))?;
    Err(failed(action)(format!(
        "it was moved to etcd; start with --etcd-servers {} (and its other --etcd- options)",
        String::from_utf8_lossy(&entry.value)
    )))
}

/// Makes sure every table exists and the format is ours.
fn prepare(database: &Database) -> Result<(), Error> {
    let action = "prepare its tables";
    let transaction = database.begin_write().map_err(failed(action))?;
    {
        transaction.open_table(KEYS).map_err(failed(action))?;
        transaction.open_table(HISTORY).map_err(failed(action))?;
        transaction.open_table(LEASES).map_err(failed(action))?;
        transaction.open_table(LEASE_KEYS).map_err(failed(action))?;
        let mut meta = transaction.open_table(META).map_err(failed(action))?;
        let format = meta
            .get(META_FORMAT)
            .map_err(failed(action))?
            .map(|guard| guard.value());
        match format {
            None => {
                meta.insert(META_FORMAT, FORMAT).map_err(failed(action))?;
            }
            Some(FORMAT) => {}
            Some(other) => {
                return Err(failed(action)(format!(
                    "its format is {other}, this version reads {FORMAT}; restore a backup or use the version that wrote it"
                )));
            }
        }
    }
    transaction.commit().map_err(failed(action))
}

#[async_trait]
impl Store for Embedded {
    fn revision(&self) -> Revision {
        self.shared.revision()
    }

    fn compacted(&self) -> Revision {
        self.shared.compacted()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let action = "read a key";
        let transaction = self.shared.database().begin_read().map_err(failed(action))?;
        let keys = transaction.open_table(KEYS).map_err(failed(action))?;
        let Some(found) = keys.get(key).map_err(failed(action))? else {
            return Ok(None);
        };
        tables::decode_entry(Key::from(key), found.value())
            .map(Some)
            .map_err(failed(action))
    }

    async fn health(&self) -> Result<(), Error> {
        if self.shared.failing().is_some() {
            // It may be over: nobody knows before something is tried.
            self.ask(|reply| Command::Recover { reply }).await?;
        }
        Ok(())
    }

    async fn range(&self, start: &str, end: &str, limit: usize) -> Result<Page, Error> {
        let (database, start, end) = (self.shared.database(), start.to_owned(), end.to_owned());
        let read = move || read::range(&database, &start, &end, limit);
        tokio::task::spawn_blocking(read)
            .await
            .map_err(failed("read a range"))?
    }

    async fn range_at(&self, start: &str, end: &str, limit: usize, revision: Revision) -> Result<Page, Error> {
        let (database, start, end) = (self.shared.database(), start.to_owned(), end.to_owned());
        let read = move || read::range_at(&database, &start, &end, limit, revision);
        tokio::task::spawn_blocking(read)
            .await
            .map_err(failed("read a range"))?
    }

    async fn write(&self, write: Write) -> Result<Written, Error> {
        self.ask(|reply| Command::Write(write, reply)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        self.ask(|reply| Command::Watch {
            prefix: prefix.into(),
            after,
            reply,
        })
        .await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        // The long look at what is kept is not the writer's.
        let database = self.shared.database();
        let (keep, looked) = tokio::task::spawn_blocking(move || read::led_back_to(&database, revision))
            .await
            .map_err(failed("compact its history"))??;
        self.ask(|reply| {
            Command::Compact(Wish {
                until: revision,
                keep,
                looked,
                reply,
            })
        })
        .await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.ask(|reply| Command::Grant { ttl, reply }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.ask(|reply| Command::KeepAlive { lease, reply }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.ask(|reply| Command::Revoke {
            lease,
            reply: Some(reply),
        })
        .await
    }

    async fn size(&self) -> Result<u64, Error> {
        Ok(std::fs::metadata(self.shared.path())
            .map_err(failed("measure its file"))?
            .len())
    }
}
