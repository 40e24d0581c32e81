//! The trees of what was just written, so that it need not be parsed again.
//!
//! Who writes has the object as a tree. It offers that together with the bytes it hands to the store; when the very same
//! bytes come back with the change (the store in this process passes them on untouched), the tree goes to the new entry.
//! Bytes that come from elsewhere (etcd, another server, a decryption) are parsed when somebody asks, as ever.
//!
//! Invariants: an offered tree is what reading its bytes would give, but for the resourceVersion; an offer ends with its
//! writer; the trees kept are bounded by their number and by the bytes they were made of.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sampan_api::{Object, meta};
use sampan_store::Revision;

use super::Entry;
use crate::sync::lock;

/// How many entries of a storage keep their trees, and the bytes of all of them. A tree takes several times its bytes.
const MOST: usize = 512;
const MOST_BYTES: usize = 2 << 20;

/// The trees of one storage.
#[derive(Default)]
pub(super) struct Recent {
    /// By where the bytes are, which are held with the tree: nothing else can be there meanwhile.
    offered: Mutex<HashMap<usize, (Bytes, Object)>>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
}

/// A tree that its writer offers until the write is over.
pub struct Offer<'a> {
    recent: &'a Recent,
    at: usize,
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        lock(&self.recent.offered).remove(&self.at);
    }
}

impl Recent {
    /// `tree`: what reading `value` would give.
    pub fn offer(&self, value: &Bytes, tree: Object) -> Offer<'_> {
        let at = value.as_ptr().addr();
        lock(&self.offered).insert(at, (value.clone(), tree));
        Offer { recent: self, at }
    }

    /// Gives the entry made of `value` at `revision` its tree, if one was offered.
    pub fn meet(&self, value: &Bytes, entry: &Arc<Entry>, revision: Revision) {
        let at = value.as_ptr().addr();
        let mut offered = lock(&self.offered);
        if !offered.get(&at).is_some_and(|(bytes, _)| bytes.len() == value.len()) {
            return;
        }
        let Some((_, mut tree)) = offered.remove(&at) else {
            return;
        };
        drop(offered);
        if entry.size() > MOST_BYTES / 4 {
            return;
        }
        meta::set_resource_version(&mut tree, &revision.to_string());
        entry.keep(tree);
        let mut kept = lock(&self.kept);
        kept.bytes += entry.size();
        kept.entries.push_back(entry.clone());
        while (kept.entries.len() > MOST || kept.bytes > MOST_BYTES)
            && let Some(oldest) = kept.entries.pop_front()
        {
            kept.bytes -= oldest.size();
            oldest.let_go();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ChangeType;
    use super::*;
    use serde_json::json;

    fn tree(name: &str) -> Object {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
    }
    fn bytes(tree: &Object) -> Bytes {
        tree.to_string().into()
    }
    fn entry(value: &Bytes, revision: Revision) -> Arc<Entry> {
        Arc::new(Entry::new(
            "/registry/configmaps/n/a".into(),
            21,
            value,
            revision,
            ChangeType::Added,
        ))
    }

    #[test]
    fn only_the_very_bytes_get_the_tree() {
        let recent = Recent::default();
        let value = bytes(&tree("a"));
        let offer = recent.offer(&value, tree("a"));
        let (copy, prefix) = (Bytes::copy_from_slice(&value), value.slice(..value.len() - 1));
        for other in [copy, prefix] {
            let stranger = entry(&value, 7);
            recent.meet(&other, &stranger, 7);
            assert!(lock(&recent.kept).entries.is_empty());
        }
        let own = entry(&value, 7);
        recent.meet(&value, &own, 7);
        assert_eq!(meta::resource_version(&own.tree()), "7");
        assert!(Arc::ptr_eq(&own.tree(), &own.settled()));
        drop(offer);
        assert!(lock(&recent.offered).is_empty());
    }

    #[test]
    fn an_offer_ends_with_its_writer() {
        let recent = Recent::default();
        let value = bytes(&tree("a"));
        drop(recent.offer(&value, tree("a")));
        let entry = entry(&value, 7);
        recent.meet(&value, &entry, 7);
        assert!(lock(&recent.kept).entries.is_empty());
        assert_eq!(meta::name(&entry.tree()), "a");
    }

    #[test]
    fn the_trees_kept_are_bounded() {
        let recent = Recent::default();
        let mut made = Vec::new();
        for revision in 1..=MOST as u64 + 10 {
            let value = bytes(&tree("a"));
            let _offer = recent.offer(&value, tree("a"));
            let entry = entry(&value, revision);
            recent.meet(&value, &entry, revision);
            made.push(entry);
        }
        let kept = made
            .iter()
            .filter(|entry| Arc::ptr_eq(&entry.tree(), &entry.tree()))
            .count();
        assert_eq!(kept, MOST);
        let all: usize = made[10..].iter().map(|entry| entry.size()).sum();
        assert_eq!(lock(&recent.kept).bytes, all);
        let big =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "x".repeat(MOST_BYTES / 2)}, "metadata": {}});
        let value = bytes(&big);
        let _offer = recent.offer(&value, big);
        let entry = entry(&value, 9999);
        recent.meet(&value, &entry, 9999);
        assert_eq!(lock(&recent.kept).entries.len(), MOST);
    }
}
