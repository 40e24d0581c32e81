//! Which old value a new one replaces: what ratcheting and transition rules ask.

use serde_json::Value;

use crate::schema::{ListType, Schema};

/// A new value beside the old one it replaces.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    pub new: &'a Value,
    pub old: &'a Value,
    pub schema: &'a Schema,
}

impl<'a> Node<'a> {
    /// The value under a key, where both sides have one and a schema says what it is.
    pub fn key(&self, key: &str) -> Option<Node<'a>> {
        Some(Node {
            new: self.new.as_object()?.get(key)?,
            old: self.old.as_object()?.get(key)?,
            schema: self.schema.below(key)?,
        })
    }

    /// The item at an index: items of a map-like list only, found by their keys.
    pub fn index(&self, index: usize) -> Option<Node<'a>> {
        let new = self.new.as_array()?.get(index)?;
        Some(Node {
            new,
            old: self.old_item(new)?,
            schema: self.schema.items.as_deref()?,
        })
    }

    fn old_item(&self, new: &Value) -> Option<&'a Value> {
        old_item(self.schema, self.old.as_array()?, new)
    }

    /// Whether nothing has changed, as far as values can be matched.
    pub fn is_unchanged(&self) -> bool {
        match (self.new, self.old) {
            (Value::Array(new), Value::Array(old)) => {
                if new.len() != old.len() {
                    return false;
                }
                if self.schema.list_type != ListType::Map {
                    return new == old;
                }
                (0..new.len()).all(|index| self.index(index).is_some_and(|item| item.is_unchanged()))
            }
            (Value::Object(new), Value::Object(old)) => {
                new.len() == old.len()
                    && new
                        .keys()
                        .all(|key| self.key(key).is_some_and(|below| below.is_unchanged()))
            }
            (new, old) => new == old,
        }
    }
}

/// The old item that has the keys of a new one.
pub(crate) fn old_item<'a>(schema: &Schema, old: &'a [Value], new: &Value) -> Option<&'a Value> {
    if schema.list_type != ListType::Map || schema.list_keys.is_empty() || !new.is_object() {
        return None;
    }
    old.iter()
        .find(|item| item.is_object() && schema.list_keys.iter().all(|key| item.get(key) == new.get(key)))
}
