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
