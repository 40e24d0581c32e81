//! The writer thread: the only place that changes the database, and so the place that orders everything.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase, ReadableTable};
use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::tables::{self, HISTORY, KEYS, LEASE_KEYS, LEASES, META, META_COMPACTED, META_NEXT_LEASE, META_REVISION};
use super::{Counters, failed};
use crate::types::{
    Change, Condition, Error, Event, Key, KeyValue, LeaseId, Op, Revision, Update, WatchStream, Write, Written,
};

type Reply<T> = oneshot::Sender<Result<T, Error>>;

pub(super) enum Command {
    Write(Write, Reply<Written>),
    Watch {
        prefix: String,
        after: Revision,
        reply: Reply<WatchStream>,
    },
    EndWatches {
        reply: Reply<()>,
    },
    Compact {
        revision: Revision,
        reply: Reply<()>,
    },
    Grant {
        ttl: Duration,
        reply: Reply<LeaseId>,
    },
    KeepAlive {
        lease: LeaseId,
        reply: Reply<()>,
    },
    /// Without a reply it is the lease's own end.
    Revoke {
        lease: LeaseId,
        reply: Option<Reply<()>>,
    },
}

struct Watcher {
    prefix: String,
    events: async_mpsc::UnboundedSender<Result<Update, Error>>,
}

struct Lease {
    ttl: Duration,
    deadline: Instant,
}

pub(super) struct Writer {
    database: Arc<Database>,
    counters: Arc<Counters>,
    batch: usize,
    watchers: Vec<Watcher>,
    leases: HashMap<LeaseId, Lease>,
    /// Leases by when they end. An entry that no longer matches its lease's deadline is stale and ignored.
    deadlines: BTreeMap<(Instant, LeaseId), ()>,
    next_lease: LeaseId,
}

/// Longest history removed in one transaction, so that compaction never keeps a write waiting long.
const COMPACT_CHUNK: u64 = 4096;

pub(super) fn counter<T: ReadableTable<&'static str, u64>>(meta: &T, name: &str) -> Result<u64, redb::StorageError> {
    Ok(meta.get(name)?.map_or(0, |guard| guard.value()))
}

/// The outcome of one write inside a transaction: the reply it will get, and the events it made.
struct Applied {
    written: Written,
    event: Option<Event>,
}

impl Writer {
    pub(super) fn load(database: Arc<Database>, counters: Arc<Counters>, batch: usize) -> Result<Self, Error> {
        let action = "read its counters";
        let mut writer = Writer {
            counters,
            batch,
            watchers: Vec::new(),
            leases: HashMap::new(),
            deadlines: BTreeMap::new(),
            next_lease: 1,
            database: Arc::clone(&database),
        };
        let transaction = database.begin_read().map_err(failed(action))?;
        let meta = transaction.open_table(META).map_err(failed(action))?;
        let revision = counter(&meta, META_REVISION).map_err(failed(action))?;
        let compacted = counter(&meta, META_COMPACTED).map_err(failed(action))?;
        writer.next_lease = counter(&meta, META_NEXT_LEASE).map_err(failed(action))?.max(1);
        writer.counters.revision.store(revision, Ordering::Release);
        writer.counters.compacted.store(compacted, Ordering::Release);
        let leases = transaction.open_table(LEASES).map_err(failed(action))?;
        let now = Instant::now();
        for item in leases.iter().map_err(failed(action))? {
            let (lease, ttl) = item.map_err(failed(action))?;
            writer.start_lease(lease.value(), Duration::from_millis(ttl.value()), now);
        }
        Ok(writer)
    }

    pub(super) fn run(mut self, inbox: &mpsc::Receiver<Command>) {
        loop {
            let first = match self.deadlines.first_key_value() {
                None => inbox.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some((&(deadline, _), ())) => inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            };
            match first {
                Ok(command) => self.handle(command, inbox),
                Err(mpsc::RecvTimeoutError::Timeout) => self.end_leases(Instant::now()),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Handles one command and, when it is a write, every write queued behind it.
    fn handle(&mut self, first: Command, inbox: &mpsc::Receiver<Command>) {
        let mut next = Some(first);
        while let Some(command) = next.take() {
            match command {
                Command::Write(write, reply) => {
                    let mut writes = vec![(write, reply)];
                    while writes.len() < self.batch {
                        match inbox.try_recv() {
                            Ok(Command::Write(write, reply)) => writes.push((write, reply)),
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.commit(writes);
                }
                Command::Watch { prefix, after, reply } => answer(reply, self.watch(prefix, after)),
                Command::EndWatches { reply } => {
                    for watcher in self.watchers.drain(..) {
                        // A watcher that left needs no word.
                        let _gone = watcher.events.send(Err(Error::Moved));
                    }
                    answer(reply, Ok(()));
                }
                Command::Compact { revision, reply } => answer(reply, self.compact(revision)),
                Command::Grant { ttl, reply } => answer(reply, self.grant(ttl)),
                Command::KeepAlive { lease, reply } => answer(reply, self.keep_alive(lease)),
                Command::Revoke { lease, reply } => {
                    let outcome = self.revoke(lease);
                    match reply {
                        Some(reply) => answer(reply, outcome),
                        None => log_failure(lease, outcome),
                    }
                }
            }
        }
    }

    fn commit(&mut self, writes: Vec<(Write, Reply<Written>)>) {
        let (writes, replies): (Vec<_>, Vec<_>) = writes.into_iter().unzip();
        match self.apply_all(writes) {
            Ok(outcomes) => {
                // Watchers first: whoever gets the reply may rely on every cache having seen the change.
                for event in outcomes
                    .iter()
                    .filter_map(|outcome| outcome.as_ref().ok()?.event.as_ref())
                {
                    self.publish(event);
                }
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    answer(reply, outcome.map(|applied| applied.written));
                }
            }
            Err(error) => {
                tracing::error!(%error, "a commit failed; its {} writes are refused", replies.len());
                let text = error.to_string();
                for reply in replies {
                    answer(
                        reply,
                        Err(Error::Engine {
                            action: "commit",
                            source: text.clone().into(),
                        }),
                    );
                }
            }
        }
    }

    /// One transaction for all `writes`. The outer error means that nothing was written.
    fn apply_all(&mut self, writes: Vec<Write>) -> Result<Vec<Result<Applied, Error>>, Error> {
        let action = "commit";
        let before = self.counters.revision.load(Ordering::Acquire);
        let mut revision = before;
        let transaction = self.database.begin_write().map_err(failed(action))?;
        let mut outcomes = Vec::with_capacity(writes.len());
        {
            let mut keys = transaction.open_table(KEYS).map_err(failed(action))?;
            let mut history = transaction.open_table(HISTORY).map_err(failed(action))?;
            let mut lease_keys = transaction.open_table(LEASE_KEYS).map_err(failed(action))?;
            for Write { key, condition, op } in writes {
                let current = match keys.get(&*key).map_err(failed(action))? {
                    Some(found) => Some(tables::decode_entry(key.clone(), found.value()).map_err(failed(action))?),
                    None => None,
                };
                let standing = current.as_ref().map_or(0, |entry| entry.mod_revision);
                if let Condition::ModRevision(wanted) = condition
                    && wanted != standing
                {
                    outcomes.push(Ok(Applied {
                        written: Written::Refused { current, revision },
                        event: None,
                    }));
                    continue;
                }
                let change = match op {
                    Op::Delete if current.is_none() => {
                        outcomes.push(Ok(Applied {
                            written: Written::Committed { revision },
                            event: None,
                        }));
                        continue;
                    }
                    Op::Delete => {
                        keys.remove(&*key).map_err(failed(action))?;
                        revision += 1;
                        Change::Delete
                    }
                    Op::Put { lease: Some(lease), .. } if !self.leases.contains_key(&lease) => {
                        outcomes.push(Err(Error::LeaseNotFound(lease)));
                        continue;
                    }
                    Op::Put { value, lease } => {
                        revision += 1;
                        let create_revision = current.as_ref().map_or(revision, |entry| entry.create_revision);
                        let entry = KeyValue {
                            key: key.clone(),
                            value,
                            create_revision,
                            mod_revision: revision,
                            lease,
                        };
                        keys.insert(&*key, tables::encode_entry(&entry).as_slice())
                            .map_err(failed(action))?;
                        Change::Put(entry)
                    }
                };
                let lease_before = current.as_ref().and_then(|entry| entry.lease);
                let lease_now = if let Change::Put(entry) = &change {
                    entry.lease
                } else {
                    None
                };
                if lease_before != lease_now {
                    if let Some(lease) = lease_before {
                        lease_keys.remove((lease, &*key)).map_err(failed(action))?;
                    }
                    if let Some(lease) = lease_now {
                        lease_keys.insert((lease, &*key), ()).map_err(failed(action))?;
                    }
                }
                let event = Event {
                    revision,
                    key,
                    change,
                    previous: current,
                };
                history
                    .insert(revision, tables::encode_event(&event).as_slice())
                    .map_err(failed(action))?;
                outcomes.push(Ok(Applied {
                    written: Written::Committed { revision },
                    event: Some(event),
                }));
            }
            if revision != before {
                let mut meta = transaction.open_table(META).map_err(failed(action))?;
                meta.insert(META_REVISION, revision).map_err(failed(action))?;
            }
        }
        if revision == before {
            // Nothing changed: no reason to make the callers wait for the disk.
            transaction.abort().map_err(failed(action))?;
        } else {
            transaction.commit().map_err(failed(action))?;
            self.counters.revision.store(revision, Ordering::Release);
        }
        Ok(outcomes)
    }

    fn publish(&mut self, event: &Event) {
        self.watchers.retain(|watcher| {
            if event.key.starts_with(&watcher.prefix) {
                watcher.events.send(Ok(update(event.clone()))).is_ok()
            } else {
                !watcher.events.is_closed()
            }
        });
    }

    fn watch(&mut self, prefix: String, after: Revision) -> Result<WatchStream, Error> {
        let action = "replay its history";
        let (current, compacted) = (
            self.counters.revision.load(Ordering::Acquire),
            self.counters.compacted.load(Ordering::Acquire),
        );
        if after < compacted {
            return Err(Error::Compacted {
                requested: after,
                oldest: compacted,
            });
        }
        if after > current {
            return Err(Error::Future {
                requested: after,
                current,
            });
        }
        let (events, stream) = async_mpsc::unbounded_channel();
        if after < current {
            let transaction = self.database.begin_read().map_err(failed(action))?;
            let history = transaction.open_table(HISTORY).map_err(failed(action))?;
            for item in history.range(after + 1..=current).map_err(failed(action))? {
                let (revision, record) = item.map_err(failed(action))?;
                let (mut event, previous) =
                    tables::decode_event(revision.value(), record.value()).map_err(failed(action))?;
                if !event.key.starts_with(&prefix) {
                    continue;
                }
                if previous > compacted
                    && let Some(record) = history.get(previous).map_err(failed(action))?
                    && let Change::Put(entry) = tables::decode_event(previous, record.value())
                        .map_err(failed(action))?
                        .0
                        .change
                {
                    event.previous = Some(entry);
                }
                if events.send(Ok(update(event))).is_err() {
                    break;
                }
            }
        }
        self.watchers.push(Watcher { prefix, events });
        Ok(stream)
    }

    fn compact(&mut self, revision: Revision) -> Result<(), Error> {
        let action = "compact its history";
        let current = self.counters.revision.load(Ordering::Acquire);
        if revision > current {
            return Err(Error::Future {
                requested: revision,
                current,
            });
        }
        let mut compacted = self.counters.compacted.load(Ordering::Acquire);
        while compacted < revision {
            let until = revision.min(compacted.saturating_add(COMPACT_CHUNK));
            let transaction = self.database.begin_write().map_err(failed(action))?;
            {
                let mut history = transaction.open_table(HISTORY).map_err(failed(action))?;
                history.retain_in(..=until, |_, _| false).map_err(failed(action))?;
                let mut meta = transaction.open_table(META).map_err(failed(action))?;
                meta.insert(META_COMPACTED, until).map_err(failed(action))?;
            }
            transaction.commit().map_err(failed(action))?;
            self.counters.compacted.store(until, Ordering::Release);
            compacted = until;
        }
        Ok(())
    }

    fn start_lease(&mut self, lease: LeaseId, ttl: Duration, now: Instant) {
        let deadline = now + ttl;
        if let Some(before) = self.leases.insert(lease, Lease { ttl, deadline }) {
            self.deadlines.remove(&(before.deadline, lease));
        }
        self.deadlines.insert((deadline, lease), ());
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, Error> {
        let action = "grant a lease";
        let lease = self.next_lease;
        let transaction = self.database.begin_write().map_err(failed(action))?;
        {
            let mut leases = transaction.open_table(LEASES).map_err(failed(action))?;
            let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            leases.insert(lease, millis).map_err(failed(action))?;
            let mut meta = transaction.open_table(META).map_err(failed(action))?;
            meta.insert(META_NEXT_LEASE, lease + 1).map_err(failed(action))?;
        }
        transaction.commit().map_err(failed(action))?;
        self.next_lease = lease + 1;
        self.start_lease(lease, ttl, Instant::now());
        Ok(lease)
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<(), Error> {
        let ttl = self.leases.get(&lease).ok_or(Error::LeaseNotFound(lease))?.ttl;
        self.start_lease(lease, ttl, Instant::now());
        Ok(())
    }

    /// Deletes the lease's keys, then the lease. A crash between the two leaves a lease without keys, which ends by itself.
    fn revoke(&mut self, lease: LeaseId) -> Result<(), Error> {
        let action = "end a lease";
        let deadline = self.leases.get(&lease).ok_or(Error::LeaseNotFound(lease))?.deadline;
        let keys: Vec<Key> = {
            let transaction = self.database.begin_read().map_err(failed(action))?;
            let lease_keys = transaction.open_table(LEASE_KEYS).map_err(failed(action))?;
            let mut keys = Vec::new();
            for item in lease_keys.range((lease, "")..(lease + 1, "")).map_err(failed(action))? {
                keys.push(Key::from(item.map_err(failed(action))?.0.value().1));
            }
            keys
        };
        let deletes = keys
            .into_iter()
            .map(|key| Write {
                key,
                condition: Condition::None,
                op: Op::Delete,
            })
            .collect();
        let outcomes = self.apply_all(deletes)?;
        for event in outcomes
            .iter()
            .filter_map(|outcome| outcome.as_ref().ok()?.event.as_ref())
        {
            self.publish(event);
        }
        let transaction = self.database.begin_write().map_err(failed(action))?;
        transaction
            .open_table(LEASES)
            .map_err(failed(action))?
            .remove(lease)
            .map_err(failed(action))?;
        transaction.commit().map_err(failed(action))?;
        self.leases.remove(&lease);
        self.deadlines.remove(&(deadline, lease));
        Ok(())
    }

    fn end_leases(&mut self, now: Instant) {
        while let Some((&(deadline, lease), ())) = self.deadlines.first_key_value() {
            if deadline > now {
                return;
            }
            let outcome = self.revoke(lease);
            if outcome.is_err() {
                // Try again later rather than at once and forever.
                self.start_lease(lease, Duration::from_secs(5), now);
            }
            log_failure(lease, outcome);
        }
    }
}

/// Every change has a revision of its own here.
fn update(event: Event) -> Update {
    Update::Event { event, last: true }
}

fn log_failure(lease: LeaseId, outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        tracing::error!(lease, %error, "could not end a lease");
    }
}

/// Answers a caller, who may have gone away.
fn answer<T>(reply: Reply<T>, outcome: Result<T, Error>) {
    if reply.send(outcome).is_err() {
        tracing::trace!("a caller left before its answer");
    }
}
