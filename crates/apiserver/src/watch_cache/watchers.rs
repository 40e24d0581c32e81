//! The watchers of one resource, indexed so that a change touches only those that could match.
//!
//! A few watchers are told at once. Telling a crowd is work (a wakeup, a TLS record and a write each), so a crowd is told
//! in rounds: the first change after a quiet while goes out at once, and what follows within a window that grows with
//! the crowd goes out together when the window ends. Each watcher has a bounded [`queue`] of shared changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queue::{self, Batch, Queue, Sender};
use super::{Change, Entry};

/// From this many on, watchers of one scope are a crowd.
const CROWD: usize = 32;
/// What a round takes for each of a crowd, about, and the longest that a change may wait for its round.
const EACH: Duration = Duration::from_micros(20);
const WINDOW: Duration = Duration::from_millis(8);
/// A round is not put off beyond this many changes.
const ROUND: usize = 64;

/// Which changes a watcher could be interested in. Selectors beyond this are its own business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// The whole resource.
    #[default]
    All,
    Namespace(String),
    /// One object, by path (`namespace/name` or `name`).
    Object(String),
    /// Objects whose indexed field (Pods: `spec.nodeName`) has this value.
    Indexed(String),
}

impl Scope {
    /// Whether an entry is in scope. `indexed` is its indexed field.
    pub fn holds(&self, entry: &Entry, indexed: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Namespace(namespace) => entry.namespace() == namespace,
            Scope::Object(path) => entry.path() == path,
            Scope::Indexed(value) => indexed == value,
        }
    }
}

struct Watcher {
    id: u64,
    queue: Sender,
}

/// The watchers of one scope.
#[derive(Default)]
struct Group {
    watchers: Vec<Watcher>,
    /// Changes that wait for the next round.
    pending: Vec<Arc<Change>>,
    last: Option<Instant>,
}

impl Group {
    /// Hands a change over; returns when the round it waits for is due.
    fn offer(&mut self, change: &Arc<Change>) -> Option<Instant> {
        if self.watchers.len() < CROWD {
            self.flush(None);
            self.tell(vec![change.clone()]);
            return None;
        }
        self.pending.push(change.clone());
        let now = Instant::now();
        let due = self.last.map_or(now, |last| last + self.window());
        if due <= now || self.pending.len() >= ROUND {
            self.flush(Some(now));
            return None;
        }
        (self.pending.len() == 1).then_some(due)
    }

    fn window(&self) -> Duration {
        (EACH * self.watchers.len() as u32).min(WINDOW)
    }

    /// Tells what is pending.
    fn flush(&mut self, now: Option<Instant>) {
        if !self.pending.is_empty() {
            self.last = now.or(self.last);
            let changes = std::mem::take(&mut self.pending);
            self.tell(changes);
        }
    }

    fn tell(&mut self, changes: Vec<Arc<Change>>) {
        if !self.watchers.is_empty() {
            let batch = Batch::new(changes);
            self.watchers.retain(|watcher| watcher.queue.send(&batch));
        }
    }
}

#[derive(Default)]
pub(super) struct Watchers {
    next: u64,
    /// Whether some group may have changes pending.
    put_off: bool,
    all: Group,
    namespaces: HashMap<String, Group>,
    objects: HashMap<String, Group>,
    indexed: HashMap<String, Group>,
}

impl Watchers {
    pub fn add(&mut self, scope: &Scope) -> (u64, Queue) {
        let (sender, receiver) = queue::queue();
        self.next += 1;
        let group = match scope {
            Scope::All => &mut self.all,
            Scope::Namespace(name) => self.namespaces.entry(name.clone()).or_default(),
            Scope::Object(path) => self.objects.entry(path.clone()).or_default(),
            Scope::Indexed(value) => self.indexed.entry(value.clone()).or_default(),
        };
        // What happened before is not for the new one.
        group.flush(Some(Instant::now()));
        group.watchers.push(Watcher {
            id: self.next,
            queue: sender,
        });
        (self.next, receiver)
    }

    pub fn remove(&mut self, scope: &Scope, id: u64) {
        match scope {
            Scope::All => self.all.watchers.retain(|watcher| watcher.id != id),
            Scope::Namespace(key) => drop_from(&mut self.namespaces, key, id),
            Scope::Object(key) => drop_from(&mut self.objects, key, id),
            Scope::Indexed(key) => drop_from(&mut self.indexed, key, id),
        }
    }

    pub fn len(&self) -> usize {
        let of = |map: &HashMap<String, Group>| map.values().map(|group| group.watchers.len()).sum::<usize>();
        self.all.watchers.len() + of(&self.namespaces) + of(&self.objects) + of(&self.indexed)
    }

    /// How many could want a change of this object. Those that watch by the indexed field are not counted: only
    /// a few of them are told.
    pub fn interested(&self, namespace: &str, name: &str) -> usize {
        let of = |map: &HashMap<String, Group>, key: &str| map.get(key).map_or(0, |group| group.watchers.len());
        let mut count = self.all.watchers.len();
        if !namespace.is_empty() {
            count += of(&self.namespaces, namespace);
        }
        if !name.is_empty() && !self.objects.is_empty() {
            let path = if namespace.is_empty() {
                name.to_owned()
            } else {
                format!("{namespace}/{name}")
            };
            count += of(&self.objects, &path);
        }
        count
    }

    /// Ends every watch, after what it was to be told.
    pub fn clear(&mut self) {
        self.rounds(None);
        *self = Watchers {
            next: self.next,
            ..Watchers::default()
        };
    }

    /// Hands a change to whoever could want it. `now` and `before` are the indexed field's values. Returns when
    /// the first round is due that some of it waits for.
    pub fn tell(&mut self, change: &Arc<Change>, now: Option<&str>, before: Option<&str>) -> Option<Instant> {
        let mut due = self.all.offer(change);
        let mut also = |group: Option<&mut Group>| {
            if let Some(at) = group.and_then(|group| group.offer(change)) {
                due = Some(due.map_or(at, |known| known.min(at)));
            }
        };
        if !self.namespaces.is_empty() {
            also(self.namespaces.get_mut(change.entry.namespace()));
        }
        if !self.objects.is_empty() {
            also(self.objects.get_mut(change.entry.path()));
        }
        if !self.indexed.is_empty() {
            also(now.and_then(|value| self.indexed.get_mut(value)));
            if before != now {
                also(before.and_then(|value| self.indexed.get_mut(value)));
            }
        }
        self.put_off |= due.is_some();
        due
    }

    /// Holds the rounds that are due at `now`, or all of them. Returns when the next one is.
    pub fn rounds(&mut self, now: Option<Instant>) -> Option<Instant> {
        if !self.put_off {
            return None;
        }
        let groups = std::iter::once(&mut self.all)
            .chain(self.namespaces.values_mut())
            .chain(self.objects.values_mut())
            .chain(self.indexed.values_mut());
        let mut next: Option<Instant> = None;
        for group in groups.filter(|group| !group.pending.is_empty()) {
            let due = group.last.map(|last| last + group.window());
            match (due, now) {
                (Some(due), Some(now)) if due > now => next = Some(next.map_or(due, |known| known.min(due))),
                _ => group.flush(Some(now.unwrap_or_else(Instant::now))),
            }
        }
        self.put_off = next.is_some();
        next
    }
}

fn drop_from(map: &mut HashMap<String, Group>, key: &str, id: u64) {
    if let Some(group) = map.get_mut(key) {
        group.watchers.retain(|watcher| watcher.id != id);
        if group.watchers.is_empty() {
            map.remove(key);
        }
    }
}
