//! Topology labels as small numbers: which domain of a topology key each node is in.
//!
//! Only keys that some Pod's terms name are kept; a key that is new is read off all nodes once. Numbers are never
//! reused, so that counts kept by number stay right when nodes come and go.

use std::collections::HashMap;

use crate::labels::Labels;

/// A topology key.
pub type KeyId = usize;
/// A value of one topology key.
pub type ValueId = u32;
/// The node has no such label.
pub const NOWHERE: ValueId = 0;

#[derive(Debug, Default)]
pub struct Topology {
    ids: HashMap<String, KeyId>,
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    name: String,
    values: HashMap<String, ValueId>,
}

impl Topology {
    pub fn key(&self, name: &str) -> Option<KeyId> {
        self.ids.get(name).copied()
    }

    /// Starts to keep a key; `None` if it is kept already.
    pub fn learn(&mut self, name: &str) -> Option<KeyId> {
        if self.ids.contains_key(name) {
            return None;
        }
        let id = self.keys.len();
        self.ids.insert(name.to_owned(), id);
        self.keys.push(Key {
            name: name.to_owned(),
            values: HashMap::new(),
        });
        Some(id)
    }

    /// The domain of `key` that labels put a node in.
    pub fn domain(&mut self, key: KeyId, labels: Option<&Labels>) -> ValueId {
        let Some(key) = self.keys.get_mut(key) else {
            return NOWHERE;
        };
        let Some(value) = labels.and_then(|labels| labels.get(&key.name)) else {
            return NOWHERE;
        };
        if let Some(&id) = key.values.get(value) {
            return id;
        }
        let id = key.values.len() as ValueId + 1;
        key.values.insert(value.clone(), id);
        id
    }

    /// The domains of all keys.
    pub fn domains(&mut self, labels: Option<&Labels>) -> Vec<ValueId> {
        (0..self.keys.len()).map(|key| self.domain(key, labels)).collect()
    }
}

/// Which domain of one topology key each node is in, for whoever keeps sums by domain.
#[derive(Debug, Default)]
pub struct Domains {
    /// By node.
    of: Vec<ValueId>,
    /// By domain: how many nodes.
    nodes: Vec<u32>,
    /// Domains of several nodes.
    shared: usize,
    /// How often there came to be such domains, or none.
    turns: u64,
}

impl Domains {
    pub fn of(&self, at: usize) -> ValueId {
        self.of.get(at).copied().unwrap_or(NOWHERE)
    }

    /// Whether no two nodes share a domain, so that what is true of a domain is true of a node.
    pub fn are_own(&self) -> bool {
        self.shared == 0
    }

    /// Changes whenever [`Domains::are_own`] does.
    pub fn turns(&self) -> u64 {
        self.turns
    }

    pub fn set(&mut self, at: usize, domain: ValueId) {
        if self.of.len() <= at {
            self.of.resize(at + 1, NOWHERE);
        }
        let before = std::mem::replace(&mut self.of[at], domain);
        if before == domain {
            return;
        }
        let own = self.are_own();
        if before != NOWHERE
            && let Some(nodes) = self.nodes.get_mut(before as usize)
        {
            *nodes -= 1;
            self.shared -= usize::from(*nodes == 1);
        }
        if domain != NOWHERE {
            if self.nodes.len() <= domain as usize {
                self.nodes.resize(domain as usize + 1, 0);
            }
            let nodes = &mut self.nodes[domain as usize];
            *nodes += 1;
            self.shared += usize::from(*nodes == 2);
        }
        self.turns += u64::from(own != self.are_own());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_know_whether_they_are_shared() {
        let mut domains = Domains::default();
        domains.set(0, 1);
        domains.set(2, 2);
        domains.set(1, NOWHERE);
        assert!(domains.are_own() && domains.turns() == 0);
        domains.set(3, 2);
        domains.set(4, 2);
        assert!(!domains.are_own() && domains.turns() == 1);
        domains.set(2, 2);
        domains.set(2, NOWHERE);
        assert!(!domains.are_own());
        domains.set(4, 3);
        assert!(domains.are_own() && domains.turns() == 2);
        assert_eq!((0..6).map(|at| domains.of(at)).collect::<Vec<_>>(), [1, 0, 0, 2, 3, 0]);
    }
}
