//! The watchers of one resource, indexed so that a change touches only those that could match. How a change reaches the
//! watchers of one scope is the business of a [`Group`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::crowd::Group;
use super::queue::{self, Queue};
use super::{Change, Entry};

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
        group.add(self.next, sender);
        (self.next, receiver)
    }

    /// Tells one watcher now what waits for its round.
    pub fn hurry(&mut self, scope: &Scope, id: u64) {
        let group = match scope {
            Scope::All => Some(&mut self.all),
            Scope::Namespace(key) => self.namespaces.get_mut(key),
            Scope::Object(key) => self.objects.get_mut(key),
            Scope::Indexed(key) => self.indexed.get_mut(key),
        };
        if let Some(group) = group {
            group.hurry(id);
        }
    }

    pub fn remove(&mut self, scope: &Scope, id: u64) {
        match scope {
            Scope::All => self.all.remove(id),
            Scope::Namespace(key) => drop_from(&mut self.namespaces, key, id),
            Scope::Object(key) => drop_from(&mut self.objects, key, id),
            Scope::Indexed(key) => drop_from(&mut self.indexed, key, id),
        }
    }

    pub fn len(&self) -> usize {
        let of = |map: &HashMap<String, Group>| map.values().map(|group| group.len()).sum::<usize>();
        self.all.len() + of(&self.namespaces) + of(&self.objects) + of(&self.indexed)
    }

    /// How many could want a change of this object. Those that watch by the indexed field are not counted: only
    /// a few of them are told.
    pub fn interested(&self, namespace: &str, name: &str) -> usize {
        let of = |map: &HashMap<String, Group>, key: &str| map.get(key).map_or(0, |group| group.len());
        let mut count = self.all.len();
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
        self.groups().for_each(Group::flush);
        *self = Watchers {
            next: self.next,
            ..Watchers::default()
        };
    }

    fn groups(&mut self) -> impl Iterator<Item = &mut Group> {
        std::iter::once(&mut self.all)
            .chain(self.namespaces.values_mut())
            .chain(self.objects.values_mut())
            .chain(self.indexed.values_mut())
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

    /// Goes on with the rounds that are due at `now`, a slice of each. Returns when to come back: at once while one is
    /// under way.
    pub fn rounds(&mut self, now: Instant) -> Option<Instant> {
        if !self.put_off {
            return None;
        }
        let next = self.groups().filter_map(|group| group.slice(now)).min();
        self.put_off = next.is_some();
        next
    }
}

fn drop_from(map: &mut HashMap<String, Group>, key: &str, id: u64) {
    if let Some(group) = map.get_mut(key) {
        group.remove(id);
        if group.is_empty() {
            map.remove(key);
        }
    }
}
