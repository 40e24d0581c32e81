//! The trees of what was just written, so that it need not be parsed again.
//!
//! Who writes has the object as a tree. It offers that together with the bytes it hands to the store; when the very same
//! bytes come back with the change (the store in this process passes them on untouched), the tree goes to the new entry.
//! Bytes that come from elsewhere (etcd, another server, a decryption) are parsed when somebody asks, as ever.
//!
//! Invariants: an offered tree is what reading its bytes would give, but for the resourceVersion; an offer ends with its
//! writer; the trees kept are bounded by their number, by the bytes they were made of and by their age, and an object has
//! at most one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sampan_api::{Object, meta};
use sampan_store::Revision;

use super::Entry;
use crate::sync::lock;

/// How many entries of a storage keep their trees, and the bytes of all of them. A tree takes some ten times its bytes.
const MOST: usize = 512;
const MOST_BYTES: usize = 640 << 10;

/// The trees of one storage.
#[derive(Default)]
pub(super) struct Recent {
    /// By where the bytes are; the offer holds them, so that nothing else can be there meanwhile.
    offered: Mutex<HashMap<usize, (usize, Object)>>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// In the order they came.
    entries: BTreeMap<Revision, (Instant, Arc<Entry>)>,
    by_key: HashMap<Arc<str>, Revision>,
    bytes: usize,
}

/// A tree that its writer offers until the write is over.
pub struct Offer<'a> {
    recent: &'a Recent,
    value: Bytes,
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        lock(&self.recent.offered).remove(&address(&self.value));
    }
}

fn address(value: &Bytes) -> usize {
    value.as_ptr().addr()
}

impl Recent {
    /// `tree`: what reading `value` would give.
    pub fn offer(&self, value: &Bytes, tree: Object) -> Offer<'_> {
        lock(&self.offered).insert(address(value), (value.len(), tree));
        Offer {
            recent: self,
            value: value.clone(),
        }
    }

    /// Gives the entry made of `value` at `revision` its tree, if one was offered.
    pub fn meet(&self, value: &Bytes, entry: &Arc<Entry>, revision: Revision) {
        let tree = {
            let mut offered = lock(&self.offered);
            match offered.get(&address(value)) {
                Some((len, _)) if *len == value.len() => offered.remove(&address(value)),
                _ => None,
            }
        };
        // Of what was written elsewhere meanwhile nobody needs the tree either.
        lock(&self.kept).forget(entry.key());
        if let Some((_, mut tree)) = tree
            && entry.size() <= MOST_BYTES / 4
        {
            meta::set_resource_version(&mut tree, &revision.to_string());
            entry.keep(tree);
            lock(&self.kept).put(revision, entry);
        }
    }

    /// The object is gone.
    pub fn forget(&self, key: &str) {
        lock(&self.kept).forget(key);
    }

    /// Lets go of trees older than this.
    pub fn trim(&self, age: Duration) {
        let mut kept = lock(&self.kept);
        while kept
            .entries
            .first_key_value()
            .is_some_and(|(_, (at, _))| at.elapsed() > age)
        {
            kept.pop();
        }
    }
}

impl Kept {
    fn put(&mut self, revision: Revision, entry: &Arc<Entry>) {
        self.bytes += entry.size();
        self.by_key.insert(entry.key().clone(), revision);
        self.entries.insert(revision, (Instant::now(), entry.clone()));
        while self.entries.len() > MOST || self.bytes > MOST_BYTES {
            self.pop();
        }
    }

    fn forget(&mut self, key: &str) {
        if let Some(revision) = self.by_key.remove(key)
            && let Some((_, entry)) = self.entries.remove(&revision)
        {
            self.bytes -= entry.size();
            entry.let_go();
        }
    }

    fn pop(&mut self) {
        if let Some((_, (_, oldest))) = self.entries.pop_first() {
            self.by_key.remove(oldest.key());
            self.bytes -= oldest.size();
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
    fn entry(name: &str, value: &Bytes, revision: Revision) -> Arc<Entry> {
        Arc::new(Entry::new(
            format!("/registry/configmaps/n/{name}").into(),
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
            let stranger = entry("a", &value, 7);
            recent.meet(&other, &stranger, 7);
            assert!(lock(&recent.kept).entries.is_empty());
        }
        let own = entry("a", &value, 7);
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
        let entry = entry("a", &value, 7);
        recent.meet(&value, &entry, 7);
        assert!(lock(&recent.kept).entries.is_empty());
        assert_eq!(meta::name(&entry.tree()), "a");
    }

    #[test]
    fn the_trees_kept_are_bounded() {
        let recent = Recent::default();
        let write = |name: &str, tree: Object, revision| {
            let value = bytes(&tree);
            let _offer = recent.offer(&value, tree);
            let entry = entry(name, &value, revision);
            recent.meet(&value, &entry, revision);
            entry
        };
        let made: Vec<_> = (1..=MOST as u64 + 10)
            .map(|revision| write(&format!("c{revision}"), tree("a"), revision))
            .collect();
        let is_kept = |entry: &&Arc<Entry>| Arc::ptr_eq(&entry.tree(), &entry.tree());
        assert_eq!(made.iter().filter(is_kept).count(), MOST);
        let bytes = |entries: &[Arc<Entry>]| entries.iter().map(|entry| entry.size()).sum::<usize>();
        assert_eq!(lock(&recent.kept).bytes, bytes(&made[10..]));
        // One tree for an object, and none for one that is gone.
        let again = write("c522", tree("b"), 1000);
        assert!(is_kept(&&again) && !is_kept(&&made[521]));
        recent.forget(again.key());
        recent.forget(again.key());
        assert!(!is_kept(&&again));
        assert_eq!(lock(&recent.kept).bytes, bytes(&made[10..521]));
        let large =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "x".repeat(MOST_BYTES / 2)}, "metadata": {}});
        assert!(!is_kept(&&write("large", large, 1001)));
        recent.trim(Duration::from_secs(3600));
        assert_eq!(made.iter().filter(is_kept).count(), MOST - 1);
        recent.trim(Duration::ZERO);
        let kept = lock(&recent.kept);
        assert_eq!((kept.entries.len(), kept.by_key.len(), kept.bytes), (0, 0, 0));
    }
}
