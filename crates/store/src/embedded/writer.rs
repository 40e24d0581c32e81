//! The writer thread: the only place that changes the database, and so the place that orders everything.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use redb::{ReadableDatabase, ReadableTable};
use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::shared::Shared;
use super::tables::{self, HISTORY, KEYS, LEASE_KEYS, LEASES, META, META_COMPACTED, META_NEXT_LEASE, META_REVISION};
use super::{disk, failed};
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
    /// Tries to write again after a failure.
    Recover {
        reply: Reply<()>,
    },
    EndWatches {
        reply: Reply<()>,
    },
    Compact(Wish),
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

/// What is to be forgotten: history up to `until`, but for what changes after it lead back to; `keep` is that for the
/// changes up to `looked`.
pub(super) struct Wish {
    pub until: Revision,
    pub keep: HashSet<Revision>,
    pub looked: Revision,
    pub reply: Reply<()>,
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
    shared: Arc<Shared>,
    batch: usize,
    watchers: Vec<Watcher>,
    leases: HashMap<LeaseId, Lease>,
    /// Leases by when they end. An entry that no longer matches its lease's deadline is stale and ignored.
    deadlines: BTreeMap<(Instant, LeaseId), ()>,
    next_lease: LeaseId,
    /// Under way, a piece between any two batches; and what is asked next.
    compaction: Option<Compaction>,
    compactions: VecDeque<Wish>,
    /// When the file was last opened anew in vain.
    tried: Option<Instant>,
    /// Whether new values were refused for want of room.
    full: bool,
}

/// History that is being forgotten. What is asked for up to `until` is refused from the beginning.
struct Compaction {
    until: Revision,
    /// Removed up to here.
    done: Revision,
    /// What changes after `until` lead back to.
    keep: HashSet<Revision>,
    reply: Reply<()>,
}

/// Longest history removed in one transaction, so that compaction never keeps a write waiting long.
const COMPACT_CHUNK: usize = 2048;
/// Between tries to open a file that could not be.
const TRY_AGAIN: Duration = Duration::from_secs(1);

pub(super) fn counter<T: ReadableTable<&'static str, u64>>(meta: &T, name: &str) -> Result<u64, redb::StorageError> {
    Ok(meta.get(name)?.map_or(0, |guard| guard.value()))
}

/// The outcome of one write inside a transaction: the reply it will get, and the events it made.
struct Applied {
    written: Written,
    event: Option<Event>,
}

impl Writer {
    pub(super) fn load(shared: Arc<Shared>, batch: usize) -> Result<Self, Error> {
        let action = "read its counters";
        let database = shared.database();
        let mut writer = Writer {
            shared,
            batch,
            watchers: Vec::new(),
            leases: HashMap::new(),
            deadlines: BTreeMap::new(),
            next_lease: 1,
            compaction: None,
            compactions: VecDeque::new(),
            tried: None,
            full: false,
        };
        let transaction = database.begin_read().map_err(failed(action))?;
        let meta = transaction.open_table(META).map_err(failed(action))?;
        let revision = counter(&meta, META_REVISION).map_err(failed(action))?;
        let compacted = counter(&meta, META_COMPACTED).map_err(failed(action))?;
        writer.next_lease = counter(&meta, META_NEXT_LEASE).map_err(failed(action))?.max(1);
        writer.shared.set_revision(revision);
        writer.shared.set_compacted(compacted);
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
            let compacting = self.compaction.is_some() || !self.compactions.is_empty();
            let first = match self.deadlines.first_key_value() {
                _ if compacting => inbox.try_recv().map_err(|error| match error {
                    mpsc::TryRecvError::Empty => mpsc::RecvTimeoutError::Timeout,
                    mpsc::TryRecvError::Disconnected => mpsc::RecvTimeoutError::Disconnected,
                }),
                None => inbox.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some((&(deadline, _), ())) => inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            };
            match first {
                Ok(command) => self.handle(command, inbox),
                Err(mpsc::RecvTimeoutError::Timeout) => self.end_leases(Instant::now()),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            self.go_on_compacting();
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
                Command::Watch { prefix, after, reply } => {
                    let outcome = self.usable().and_then(|()| self.watch(prefix, after));
                    let outcome = self.judge(outcome);
                    answer(reply, outcome);
                }
                Command::Recover { reply } => {
                    let outcome = self.usable();
                    answer(reply, outcome);
                }
                Command::EndWatches { reply } => {
                    for watcher in self.watchers.drain(..) {
                        // A watcher that left needs no word.
                        let _gone = watcher.events.send(Err(Error::Moved));
                    }
                    answer(reply, Ok(()));
                }
                Command::Compact(wish) => self.compactions.push_back(wish),
                Command::Grant { ttl, reply } => {
                    let outcome = self.usable().and_then(|()| self.grant(ttl));
                    let outcome = self.judge(outcome);
                    answer(reply, outcome);
                }
                Command::KeepAlive { lease, reply } => answer(reply, self.keep_alive(lease)),
                Command::Revoke { lease, reply } => {
                    let outcome = self.usable().and_then(|()| self.revoke(lease));
                    let outcome = self.judge(outcome);
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
        let outcomes = self.usable().and_then(|()| self.apply_all(writes));
        match self.judge(outcomes) {
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
                for reply in replies {
                    answer(reply, Err(again(&error)));
                }
            }
        }
    }

    /// Makes sure that the file is open; it is not after a failure that lasts.
    fn usable(&mut self) -> Result<(), Error> {
        let Some(why) = self.shared.failing() else {
            return Ok(());
        };
        if self.tried.is_some_and(|tried| tried.elapsed() < TRY_AGAIN) {
            return Err(unavailable(why));
        }
        self.recover().map_err(|why| {
            self.tried = Some(Instant::now());
            self.shared.set_failing(Some(why.clone()));
            unavailable(why)
        })
    }

    /// After a failure of the engine the file is opened anew; the error says what began it.
    fn judge<T>(&mut self, outcome: Result<T, Error>) -> Result<T, Error> {
        let Err(Error::Engine { action, source }) = outcome else {
            return outcome;
        };
        let first = self.shared.first_error();
        let path = self.shared.path().display().to_string();
        let full = first.as_ref().is_some_and(|(kind, _)| disk::is_full(*kind));
        let source = match first {
            Some((_, first)) => format!("{path}: {first}"),
            None => format!("{path}: {source}"),
        };
        tracing::error!(action, error = source, "the store failed; opening its file anew");
        if let Err(why) = self.recover() {
            tracing::error!(why, "the store takes no writes until its file can be opened");
            self.tried = Some(Instant::now());
            self.shared.set_failing(Some(why));
        }
        if full {
            return Err(no_room(self.shared.path(), 0));
        }
        Err(Error::Engine {
            action,
            source: source.into(),
        })
    }

    /// Opens the file anew and tells the watchers what a commit that seemed to fail left there after all.
    fn recover(&mut self) -> Result<(), String> {
        let reopen = || -> Result<(Vec<Event>, Revision, Revision, LeaseId), Error> {
            let action = "read its file";
            self.shared.reopen()?;
            let transaction = self.shared.database().begin_read().map_err(failed(action))?;
            let meta = transaction.open_table(META).map_err(failed(action))?;
            let revision = counter(&meta, META_REVISION).map_err(failed(action))?;
            let compacted = counter(&meta, META_COMPACTED).map_err(failed(action))?;
            let next_lease = counter(&meta, META_NEXT_LEASE).map_err(failed(action))?;
            let events = self.events(self.shared.revision(), revision)?;
            Ok((events, revision, compacted, next_lease))
        };
        let (events, revision, compacted, next_lease) = reopen().map_err(|error| error.to_string())?;
        if revision < self.shared.revision() {
            return Err(format!(
                "{}: its revision is {revision}, and {} was written before; a disk that forgets cannot be used",
                self.shared.path().display(),
                self.shared.revision()
            ));
        }
        self.next_lease = self.next_lease.max(next_lease);
        self.shared.set_revision(revision);
        self.shared.set_compacted(compacted);
        for event in &events {
            self.publish(event);
        }
        self.tried = None;
        if self.shared.set_failing(None).is_some() {
            tracing::info!("the store's file is open again");
        }
        Ok(())
    }

    /// Whether there is room for new values; says so when that changes.
    fn room(&mut self) -> Result<(), Error> {
        let left = self.shared.path().parent().and_then(disk::too_little_room);
        if left.is_some() != self.full {
            self.full = left.is_some();
            match left {
                Some(left) => tracing::error!(
                    left,
                    "the store's disk is nearly full: only deletions are taken until there is room"
                ),
                None => tracing::info!("the store's disk has room again"),
            }
        }
        match left {
            Some(left) => Err(no_room(self.shared.path(), left)),
            None => Ok(()),
        }
    }

    /// One transaction for all `writes`. The outer error means that nothing was written.
    fn apply_all(&mut self, writes: Vec<Write>) -> Result<Vec<Result<Applied, Error>>, Error> {
        let action = "commit";
        let before = self.shared.revision();
        let compacted = self.shared.compacted();
        let mut revision = before;
        let room = self.room();
        let transaction = self.shared.database().begin_write().map_err(failed(action))?;
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
                    Op::Put { .. } if let Err(full) = &room => {
                        outcomes.push(Err(again(full)));
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
                if let Some(previous) = &event.previous
                    && previous.mod_revision <= compacted
                {
                    // Compaction had no reason to keep it; now the state before this change needs it.
                    let record = Event {
                        revision: previous.mod_revision,
                        key: previous.key.clone(),
                        change: Change::Put(previous.clone()),
                        previous: None,
                    };
                    history
                        .insert(previous.mod_revision, tables::encode_event(&record).as_slice())
                        .map_err(failed(action))?;
                    if let Some(compaction) = &mut self.compaction {
                        compaction.keep.insert(previous.mod_revision);
                    }
                }
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
            self.shared.set_revision(revision);
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
        let (current, compacted) = (self.shared.revision(), self.shared.compacted());
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
        for event in self.events(after, current)? {
            if event.key.starts_with(&prefix) && events.send(Ok(update(event))).is_err() {
                break;
            }
        }
        self.watchers.push(Watcher { prefix, events });
        Ok(stream)
    }

    /// The changes after one revision, up to another.
    fn events(&self, after: Revision, until: Revision) -> Result<Vec<Event>, Error> {
        let action = "replay its history";
        let mut events = Vec::new();
        if after >= until {
            return Ok(events);
        }
        let transaction = self.shared.database().begin_read().map_err(failed(action))?;
        let history = transaction.open_table(HISTORY).map_err(failed(action))?;
        for item in history.range(after + 1..=until).map_err(failed(action))? {
            let (revision, record) = item.map_err(failed(action))?;
            let (mut event, previous) =
                tables::decode_event(revision.value(), record.value()).map_err(failed(action))?;
            if previous > 0
                && let Some(record) = history.get(previous).map_err(failed(action))?
                && let Change::Put(entry) = tables::decode_event(previous, record.value())
                    .map_err(failed(action))?
                    .0
                    .change
            {
                event.previous = Some(entry);
            }
            events.push(event);
        }
        Ok(events)
    }

    /// A piece of the compaction under way, or the beginning of the next.
    fn go_on_compacting(&mut self) {
        if self.compaction.is_none() {
            let Some(mut wish) = self.compactions.pop_front() else {
                return;
            };
            let begun = self.usable().and_then(|()| self.begin_compaction(&mut wish));
            match self.judge(begun) {
                Ok(false) => answer(wish.reply, Ok(())),
                Ok(true) => {
                    self.compaction = Some(Compaction {
                        until: wish.until,
                        done: 0,
                        keep: wish.keep,
                        reply: wish.reply,
                    });
                }
                Err(error) => answer(wish.reply, Err(error)),
            }
            return;
        }
        let Some(mut compaction) = self.compaction.take() else {
            return;
        };
        let outcome = self.usable().and_then(|()| self.compact_piece(&mut compaction));
        match self.judge(outcome) {
            Ok(true) => answer(compaction.reply, Ok(())),
            Ok(false) => self.compaction = Some(compaction),
            // What is left of the history goes with the next compaction.
            Err(error) => answer(compaction.reply, Err(error)),
        }
    }

    /// Moves the compaction's mark and completes what is kept; false: that was done before.
    fn begin_compaction(&mut self, wish: &mut Wish) -> Result<bool, Error> {
        let until = wish.until;
        let action = "compact its history";
        let current = self.shared.revision();
        if until > current {
            return Err(Error::Future {
                requested: until,
                current,
            });
        }
        if until <= self.shared.compacted() {
            return Ok(false);
        }
        let transaction = self.shared.database().begin_write().map_err(failed(action))?;
        {
            let history = transaction.open_table(HISTORY).map_err(failed(action))?;
            for item in history.range(wish.looked + 1..).map_err(failed(action))? {
                let (_, record) = item.map_err(failed(action))?;
                let (_, previous) = tables::decode_previous(record.value()).map_err(failed(action))?;
                if (1..=until).contains(&previous) {
                    wish.keep.insert(previous);
                }
            }
            let mut meta = transaction.open_table(META).map_err(failed(action))?;
            meta.insert(META_COMPACTED, until).map_err(failed(action))?;
        }
        transaction.commit().map_err(failed(action))?;
        self.shared.set_compacted(until);
        Ok(true)
    }

    /// Removes some of the history; true: all of it that goes is gone.
    fn compact_piece(&mut self, compaction: &mut Compaction) -> Result<bool, Error> {
        let action = "compact its history";
        let transaction = self.shared.database().begin_write().map_err(failed(action))?;
        let mut over = true;
        {
            let mut history = transaction.open_table(HISTORY).map_err(failed(action))?;
            let mut last = compaction.until;
            let piece = history
                .range(compaction.done + 1..=compaction.until)
                .map_err(failed(action))?;
            if let Some(item) = { piece }.nth(COMPACT_CHUNK) {
                last = item.map_err(failed(action))?.0.value();
                over = false;
            }
            let keep = &compaction.keep;
            history
                .retain_in(compaction.done + 1..=last, |revision, _| keep.contains(&revision))
                .map_err(failed(action))?;
            compaction.done = last;
        }
        transaction.commit().map_err(failed(action))?;
        Ok(over)
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
        self.room()?;
        let lease = self.next_lease;
        let transaction = self.shared.database().begin_write().map_err(failed(action))?;
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
            let transaction = self.shared.database().begin_read().map_err(failed(action))?;
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
        let transaction = self.shared.database().begin_write().map_err(failed(action))?;
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
            let outcome = self.usable().and_then(|()| self.revoke(lease));
            let outcome = self.judge(outcome);
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

/// The same error for the next caller.
fn again(error: &Error) -> Error {
    match error {
        Error::Unavailable { reason } => Error::Unavailable { reason: reason.clone() },
        Error::Rejected { reason } => Error::Rejected { reason: reason.clone() },
        Error::Engine { action, source } => Error::Engine {
            action,
            source: source.to_string().into(),
        },
        other => Error::Engine {
            action: "commit",
            source: other.to_string().into(),
        },
    }
}

fn unavailable(reason: String) -> Error {
    Error::Unavailable { reason }
}

/// In etcd's words, which clients know, and then in ours.
fn no_room(path: &Path, left: u64) -> Error {
    Error::Rejected {
        reason: format!(
            "etcdserver: mvcc: database space exceeded: the disk of {} has only {} MiB left; only deletions are taken until there is room",
            path.display(),
            left >> 20
        ),
    }
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
