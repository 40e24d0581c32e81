//! The watchers of one resource, indexed so that a change touches only those that could match.
//!
//! Each watcher has a bounded queue of shared changes. One whose queue is full is dropped on the spot:
//! its stream ends after what it has, and the client watches again from where it was. Nobody waits for it.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Change, Entry};

/// How many changes may wait for one watcher. At about 4 KiB an object and all of them distinct, a stuck
/// watcher holds a few MiB until it is dropped.
const QUEUE: usize = 2048;

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
    queue: mpsc::Sender<Arc<Change>>,
}

#[derive(Default)]
pub(super) struct Watchers {
    next: u64,
    all: Vec<Watcher>,
    namespaces: HashMap<String, Vec<Watcher>>,
    objects: HashMap<String, Vec<Watcher>>,
    indexed: HashMap<String, Vec<Watcher>>,
}

impl Watchers {
    pub fn add(&mut self, scope: &Scope) -> (u64, mpsc::Receiver<Arc<Change>>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        self.next += 1;
        let watcher = Watcher { id: self.next, queue };
        match scope {
            Scope::All => self.all.push(watcher),
            Scope::Namespace(name) => self.namespaces.entry(name.clone()).or_default().push(watcher),
            Scope::Object(path) => self.objects.entry(path.clone()).or_default().push(watcher),
            Scope::Indexed(value) => self.indexed.entry(value.clone()).or_default().push(watcher),
        }
        (self.next, receiver)
    }

    pub fn remove(&mut self, scope: &Scope, id: u64) {
        match scope {
            Scope::All => self.all.retain(|watcher| watcher.id != id),
            Scope::Namespace(key) => drop_from(&mut self.namespaces, key, id),
            Scope::Object(key) => drop_from(&mut self.objects, key, id),
            Scope::Indexed(key) => drop_from(&mut self.indexed, key, id),
        }
    }

    pub fn len(&self) -> usize {
        let of = |map: &HashMap<String, Vec<Watcher>>| map.values().map(Vec::len).sum::<usize>();
        self.all.len() + of(&self.namespaces) + of(&self.objects) + of(&self.indexed)
    }

    /// Ends every watch.
    pub fn clear(&mut self) {
        *self = Watchers {
            next: self.next,
            ..Watchers::default()
        };
    }

    /// Hands a change to whoever could want it. `now` and `before` are the indexed field's values.
    pub fn tell(&mut self, change: &Arc<Change>, now: Option<&str>, before: Option<&str>) {
        offer(&mut self.all, change);
        if !self.namespaces.is_empty()
            && let Some(watchers) = self.namespaces.get_mut(change.entry.namespace())
        {
            offer(watchers, change);
        }
        if !self.objects.is_empty()
            && let Some(watchers) = self.objects.get_mut(change.entry.path())
        {
            offer(watchers, change);
        }
        if !self.indexed.is_empty() {
            if let Some(watchers) = now.and_then(|value| self.indexed.get_mut(value)) {
                offer(watchers, change);
            }
            if before != now
                && let Some(watchers) = before.and_then(|value| self.indexed.get_mut(value))
            {
                offer(watchers, change);
            }
        }
    }
}

fn drop_from(map: &mut HashMap<String, Vec<Watcher>>, key: &str, id: u64) {
    if let Some(watchers) = map.get_mut(key) {
        watchers.retain(|watcher| watcher.id != id);
        if watchers.is_empty() {
            map.remove(key);
        }
    }
}

fn offer(watchers: &mut Vec<Watcher>, change: &Arc<Change>) {
    watchers.retain(|watcher| watcher.queue.try_send(change.clone()).is_ok());
}
