//! The cached objects of one storage prefix: the index, the ring of recent changes, and the watchers.
//!
//! Invariants:
//! - the index is exact at `revision`, the last change applied; everything under one short lock;
//! - the ring holds every change after `ring_start`, so a watch from there on loses nothing, and the
//!   index can be rolled back to any revision from there on;
//! - snapshots kept for paged lists are bounded in number and age.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sampan_api::Object;
use sampan_kinds::SelectableField;
use sampan_store::{self as store, Revision};

use super::entry::ByPath;
use super::queue::Queue;
use super::recent::{Offer, Recent};
use super::watchers::{Scope, Watchers};
use super::{Change, ChangeType, Entry, Index};
use crate::sync::lock;

/// How long paged lists and old watches can count on history in memory; lists of older states ask the store.
pub const HISTORY: Duration = Duration::from_secs(300);
/// Changes kept whatever their size, and the bytes above which older ones go.
const RING_MIN: usize = 512;
const RING_BYTES: usize = 24 << 20;
const SNAPSHOTS: usize = 32;

/// Called for every change, in order, before anyone can read it: how in-process indexes (RBAC, allocators)
/// are never behind a reply.
pub type Hook = Box<dyn Fn(&Change, &Object) + Send + Sync>;

/// The cache of one storage prefix (`pods`, `services/specs`).
pub struct Storage {
    prefix: String,
    /// Length of `/registry/{prefix}/`.
    prefix_len: usize,
    fields: Vec<SelectableField>,
    /// Which selectable field is indexed, if any.
    indexed_field: Option<usize>,
    state: Mutex<State>,
    hook: OnceLock<Hook>,
    /// Whether there may be objects that cannot be read.
    unreadable: AtomicBool,
    recent: Recent,
}

#[derive(Default)]
struct State {
    index: Index,
    /// Objects by the indexed field, then by path.
    indexed: HashMap<String, BTreeSet<ByPath>>,
    /// The size of all objects in the index.
    bytes: usize,
    revision: Revision,
    /// The revision the whole was read at; changes up to it are in it already.
    loaded: Revision,
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    ring_start: Revision,
    snapshots: VecDeque<(Revision, Instant, Index)>,
    watchers: Watchers,
}

/// A consistent view of a resource.
pub struct Snapshot {
    pub revision: Revision,
    pub index: Index,
}

/// From where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Changes after this revision.
    After(Revision),
    /// The state as it is, as additions, then changes.
    Now,
}

/// A registered watch. Dropping it ends the registration.
pub struct Watch {
    storage: Arc<Storage>,
    scope: Scope,
    id: u64,
    /// The state to begin with, for [`Start::Now`].
    pub initial: Option<Snapshot>,
    /// Changes that happened before the registration.
    pub backlog: VecDeque<Arc<Change>>,
    pub queue: Queue,
}

impl Watch {
    /// Puts into the queue what still waits for this watcher's round.
    pub fn hurry(&self) {
        lock(&self.storage.state).watchers.hurry(&self.scope, self.id);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.storage.state).watchers.remove(&self.scope, self.id);
    }
}

/// The revision asked for is no longer in the ring; history begins at `oldest`.
#[derive(Debug, thiserror::Error)]
#[error("too old resource version: {requested} ({oldest})")]
pub struct TooOld {
    pub requested: Revision,
    pub oldest: Revision,
}

impl Storage {
    /// `indexed` names the selectable field kept as a secondary index.
    pub fn new(prefix: &str, fields: Vec<SelectableField>, indexed: Option<&str>) -> Self {
        Storage {
            prefix: prefix.to_owned(),
            prefix_len: super::ROOT.len() + prefix.len() + 1,
            indexed_field: indexed.and_then(|label| fields.iter().position(|field| field.label == label)),
            fields,
            state: Mutex::default(),
            hook: OnceLock::new(),
            unreadable: AtomicBool::new(false),
            recent: Recent::default(),
        }
    }

    /// The first of `entries` that cannot be read. Costs nothing where all could be.
    pub fn first_unreadable<'a>(&self, mut entries: impl Iterator<Item = &'a Arc<Entry>>) -> Option<&'a Arc<Entry>> {
        if !self.unreadable.load(Ordering::Acquire) {
            return None;
        }
        entries.find(|entry| entry.unreadable().is_some())
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }
    pub fn fields(&self) -> &[SelectableField] {
        &self.fields
    }
    /// The label of the indexed field.
    pub fn indexed_label(&self) -> Option<&'static str> {
        Some(self.fields.get(self.indexed_field?)?.label)
    }
    /// The store's key of the object at `path`.
    pub fn key(&self, path: &str) -> String {
        format!("{}{}/{path}", super::ROOT, self.prefix)
    }
    /// Sets the hook and calls it for what is already there. At most one per storage.
    pub fn set_hook(&self, hook: Hook) {
        let state = lock(&self.state);
        for entry in state.index.iter() {
            let object = entry.tree();
            entry.learn(&object, &self.fields);
            hook(
                &Change::new(entry.revision(), ChangeType::Added, entry.clone(), None),
                &object,
            );
        }
        if self.hook.set(hook).is_err() {
            tracing::error!(prefix = self.prefix, "a storage has two hooks; the second is ignored");
        }
    }

    /// An entry of this storage.
    pub fn entry(&self, key: Arc<str>, value: &[u8], revision: Revision, kind: ChangeType) -> Arc<Entry> {
        let entry = Entry::new(key, self.prefix_len, value, revision, kind);
        if entry.unreadable().is_some() {
            self.unreadable.store(true, Ordering::Release);
        }
        Arc::new(entry)
    }

    /// Offers the tree of which `value` was made to the entry it will become. Until the write is over.
    pub fn offer(&self, value: &Bytes, tree: Object) -> Offer<'_> {
        self.recent.offer(value, tree)
    }

    fn indexed_value<'a>(&self, entry: &'a Entry) -> Option<&'a str> {
        let field = self.indexed_field?;
        entry.attributes(&self.fields).fields.get(field).map(|value| &**value)
    }

    /// Whether `scope` holds the entry.
    pub fn in_scope(&self, scope: &Scope, entry: &Entry) -> bool {
        match scope {
            Scope::Indexed(_) => scope.holds(entry, self.indexed_value(entry).unwrap_or_default()),
            _ => scope.holds(entry, ""),
        }
    }

    /// Sets the starting state: sorted entries as of `revision`, history complete after `history`.
    /// Changes newer than `revision` that were applied meanwhile are kept.
    pub(super) fn load(&self, entries: Vec<Arc<Entry>>, revision: Revision, history: Revision) {
        let mut indexed: HashMap<String, BTreeSet<ByPath>> = HashMap::new();
        for entry in &entries {
            if let Some(value) = self.indexed_value(entry) {
                indexed
                    .entry(value.to_owned())
                    .or_default()
                    .insert(ByPath(entry.clone()));
            }
        }
        let mut state = lock(&self.state);
        let newer: Vec<_> = state
            .ring
            .drain(..)
            .filter(|change| change.revision > revision)
            .collect();
        state.watchers.clear();
        state.indexed = indexed;
        state.bytes = entries.iter().map(|entry| entry.size()).sum();
        state.index = Index::from_sorted(entries);
        state.revision = revision;
        state.loaded = revision;
        state.ring_bytes = 0;
        state.ring_start = history;
        for change in newer {
            let before = change.previous.as_deref().and_then(|entry| self.indexed_value(entry));
            state.put(&change, before, self.indexed_value(&change.entry));
        }
    }

    /// Replaces everything by `entries` as of `revision`, when what happened in between is unknown: indexes that
    /// follow are told the differences, watches end, and history begins here.
    pub(super) fn reload(&self, entries: Vec<Arc<Entry>>, revision: Revision) {
        let before = lock(&self.state).index.clone();
        if let Some(hook) = self.hook.get() {
            for old in before.iter() {
                let found = entries.binary_search_by(|entry| entry.path().cmp(old.path()));
                if found.is_err() {
                    let gone = Arc::new(old.deleted_at(revision));
                    let change = Change::new(revision, ChangeType::Deleted, gone, Some(old.clone()));
                    hook(&change, &old.tree());
                }
            }
        }
        self.load(entries.clone(), revision, revision);
        for entry in &entries {
            let old = before.get(entry.path());
            if old.is_some_and(|old| old.revision() == entry.revision()) {
                continue;
            }
            let kind = if old.is_some() {
                ChangeType::Modified
            } else {
                ChangeType::Added
            };
            if let Some(hook) = self.hook.get() {
                let object = entry.tree();
                entry.learn(&object, &self.fields);
                hook(
                    &Change::new(entry.revision(), kind, entry.clone(), old.cloned()),
                    &object,
                );
            }
        }
    }

    /// A change that the loaded state already contains: history only.
    pub(super) fn remember(&self, event: &store::Event) {
        let change = self.change_of(event, None);
        if let Some(change) = change {
            lock(&self.state).push(Arc::new(change));
        }
    }

    fn change_of(&self, event: &store::Event, cached: Option<Arc<Entry>>) -> Option<Change> {
        let previous = cached.or_else(|| {
            let previous = event.previous.as_ref()?;
            Some(self.entry(
                previous.key.clone(),
                &previous.value,
                previous.mod_revision,
                ChangeType::Modified,
            ))
        });
        Some(match &event.change {
            store::Change::Put(put) => {
                let kind = if put.create_revision == put.mod_revision {
                    ChangeType::Added
                } else {
                    ChangeType::Modified
                };
                let entry = self.entry(put.key.clone(), &put.value, event.revision, kind);
                self.recent.meet(&put.value, &entry, event.revision);
                Change::new(event.revision, kind, entry, previous)
            }
            store::Change::Delete => {
                self.recent.forget(&event.key);
                let previous = previous?;
                let entry = Arc::new(previous.deleted_at(event.revision));
                Change::new(event.revision, ChangeType::Deleted, entry, Some(previous))
            }
        })
    }

    /// Applies one committed change and tells the watchers. Returns when a round of telling is due, if one is put off.
    pub(super) fn apply(&self, event: &store::Event) -> Option<Instant> {
        let path = event.key.get(self.prefix_len..).unwrap_or_default();
        let cached = lock(&self.state).index.get(path).cloned();
        // Only the feed changes the index, so building the entry outside the lock is safe.
        let change = Arc::new(self.change_of(event, cached)?);
        // One parse for whoever needs the tree.
        let hook = self.hook.get();
        let object = (hook.is_some() || self.indexed_field.is_some()).then(|| change.entry.tree());
        if let Some(object) = &object {
            change.entry.learn(object, &self.fields);
        }
        let before = change.previous.as_deref().and_then(|entry| self.indexed_value(entry));
        let after = match change.kind {
            ChangeType::Deleted => before,
            _ => self.indexed_value(&change.entry),
        };
        let mut state = lock(&self.state);
        // The end of a lease in etcd changes several keys at one revision.
        if change.revision <= state.loaded || change.revision < state.revision {
            return None;
        }
        state.put(&change, before, after);
        if let (Some(hook), Some(object)) = (hook, &object) {
            hook(&change, object);
        }
        state.watchers.tell(&change, after, before)
    }

    /// Goes on telling crowds of watchers what is due by `now`. Returns when to go on.
    pub fn rounds(&self, now: Instant) -> Option<Instant> {
        lock(&self.state).watchers.rounds(now)
    }

    /// One object as it stands.
    pub fn get(&self, path: &str) -> Option<Arc<Entry>> {
        lock(&self.state).index.get(path).cloned()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        lock(&self.state).index.len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many objects there are, and their size together.
    pub fn weight(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.index.len(), state.bytes)
    }

    /// How many watches a change of this object would be told to; without a name, of one in this namespace.
    pub fn interested(&self, namespace: &str, name: &str) -> usize {
        lock(&self.state).watchers.interested(namespace, name)
    }

    #[cfg(test)]
    pub fn preload(&self, entries: Vec<Arc<Entry>>, revision: Revision) {
        self.load(entries, revision, revision);
    }

    /// Everything as it stands. `known` is the revision the whole cache has reached.
    pub fn snapshot(&self, known: Revision) -> Snapshot {
        let state = lock(&self.state);
        Snapshot {
            revision: known.max(state.revision),
            index: state.index.clone(),
        }
    }

    /// The objects whose indexed field has this value.
    pub fn indexed(&self, value: &str, known: Revision) -> Snapshot {
        let state = lock(&self.state);
        let entries = state
            .indexed
            .get(value)
            .map(|entries| entries.iter().map(|entry| entry.0.clone()).collect())
            .unwrap_or_default();
        Snapshot {
            revision: known.max(state.revision),
            index: Index::from_sorted(entries),
        }
    }

    /// Everything as it stood at `revision`, if history reaches back that far.
    pub fn snapshot_at(&self, revision: Revision) -> Option<Snapshot> {
        let state = lock(&self.state);
        if let Some((_, kept, index)) = state.snapshots.iter().find(|(kept, ..)| *kept == revision)
            && kept.elapsed() < HISTORY
        {
            return Some(Snapshot {
                revision,
                index: index.clone(),
            });
        }
        if revision < state.ring_start {
            return None;
        }
        let mut index = state.index.clone();
        for change in state.ring.iter().rev().take_while(|change| change.revision > revision) {
            match (&change.previous, change.kind) {
                (Some(previous), _) => {
                    index.insert(previous.clone());
                }
                (None, _) => {
                    index.remove(change.entry.path());
                }
            }
        }
        Some(Snapshot { revision, index })
    }

    /// A state of the past as the store told it. What still stands is shared with the present.
    pub fn snapshot_of(&self, page: store::Page) -> Snapshot {
        let present = lock(&self.state).index.clone();
        let entries = page.entries.into_iter().map(|entry| {
            let path = entry.key.get(self.prefix_len..).unwrap_or_default();
            match present.get(path) {
                Some(standing) if standing.revision() == entry.mod_revision => standing.clone(),
                _ => self.entry(entry.key, &entry.value, entry.mod_revision, ChangeType::Added),
            }
        });
        Snapshot {
            revision: page.revision,
            index: Index::from_sorted(entries.collect()),
        }
    }

    /// Keeps a snapshot for the pages to come.
    pub fn keep(&self, snapshot: &Snapshot) {
        let mut state = lock(&self.state);
        state.drop_old_snapshots();
        if state.snapshots.iter().any(|(kept, ..)| *kept == snapshot.revision) {
            return;
        }
        if state.snapshots.len() >= SNAPSHOTS {
            state.snapshots.pop_front();
        }
        state
            .snapshots
            .push_back((snapshot.revision, Instant::now(), snapshot.index.clone()));
    }

    /// Forgets history and trees older than [`HISTORY`].
    pub fn trim(&self) {
        let mut state = lock(&self.state);
        state.drop_old_snapshots();
        state.trim_ring();
        drop(state);
        self.recent.trim(HISTORY);
    }

    /// Ends every watch: their streams close after what they have.
    pub fn end_watches(&self) {
        lock(&self.state).watchers.clear();
    }

    /// How many watches there are.
    pub fn watchers(&self) -> usize {
        lock(&self.state).watchers.len()
    }

    /// Begins a watch. `known` is the revision the whole cache has reached.
    pub fn watch(self: &Arc<Self>, scope: Scope, start: Start, known: Revision) -> Result<Watch, TooOld> {
        let mut state = lock(&self.state);
        let mut backlog = VecDeque::new();
        let mut initial = None;
        match start {
            Start::Now => {
                let revision = known.max(state.revision);
                initial = Some(match &scope {
                    Scope::Indexed(value) => Snapshot {
                        revision,
                        index: Index::from_sorted(
                            state
                                .indexed
                                .get(value)
                                .map(|all| all.iter().map(|entry| entry.0.clone()).collect())
                                .unwrap_or_default(),
                        ),
                    },
                    _ => Snapshot {
                        revision,
                        index: state.index.clone(),
                    },
                });
            }
            Start::After(revision) => {
                if revision < state.ring_start {
                    return Err(TooOld {
                        requested: revision,
                        oldest: state.ring_start,
                    });
                }
                let from = state.ring.partition_point(|change| change.revision <= revision);
                for change in state.ring.range(from..) {
                    let wanted = self.in_scope(&scope, &change.entry)
                        || change
                            .previous
                            .as_deref()
                            .is_some_and(|entry| self.in_scope(&scope, entry));
                    if wanted {
                        backlog.push_back(change.clone());
                    }
                }
            }
        }
        let (id, queue) = state.watchers.add(&scope);
        Ok(Watch {
            storage: self.clone(),
            scope,
            id,
            initial,
            backlog,
            queue,
        })
    }
}

impl State {
    /// Applies a change to the index, the secondary index and the ring.
    fn put(&mut self, change: &Arc<Change>, before: Option<&str>, after: Option<&str>) {
        let path = change.entry.path();
        let gone = change.kind == ChangeType::Deleted;
        let old = if gone {
            self.index.remove(path)
        } else {
            self.bytes += change.entry.size();
            self.index.insert(change.entry.clone())
        };
        self.bytes -= old.map_or(0, |old| old.size());
        if let Some(value) = before
            && let Some(entries) = self.indexed.get_mut(value)
        {
            entries.remove(path);
            if entries.is_empty() {
                self.indexed.remove(value);
            }
        }
        if let Some(value) = after
            && !gone
        {
            self.indexed
                .entry(value.to_owned())
                .or_default()
                .replace(ByPath(change.entry.clone()));
        }
        self.revision = change.revision;
        self.push(change.clone());
    }

    fn push(&mut self, change: Arc<Change>) {
        self.ring_bytes += change.weight();
        self.ring.push_back(change);
        self.trim_ring();
    }

    fn trim_ring(&mut self) {
        while let Some(oldest) = self.ring.front() {
            let aged = oldest.at.elapsed() > HISTORY;
            let full = self.ring.len() > RING_MIN && self.ring_bytes > RING_BYTES;
            if !aged && !full {
                break;
            }
            self.ring_bytes -= oldest.weight();
            self.ring_start = oldest.revision;
            self.ring.pop_front();
        }
    }

    fn drop_old_snapshots(&mut self) {
        self.snapshots.retain(|(_, kept, _)| kept.elapsed() < HISTORY);
    }
}
