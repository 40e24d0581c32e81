//! The objects of an informer, by namespace and name, with secondary indexes.
//!
//! Everything holds the same `Arc`; an index files objects by address, so it costs two words an entry.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Cached;

type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

pub(super) struct Cache<K> {
    objects: BTreeMap<Box<str>, BTreeMap<Box<str>, Arc<K>>>,
    indexes: Vec<Index<K>>,
    len: usize,
}

struct Index<K> {
    name: &'static str,
    keys: IndexFn<K>,
    /// Value → address → object.
    entries: HashMap<String, HashMap<usize, Arc<K>>>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Cache {
            objects: BTreeMap::new(),
            indexes: Vec::new(),
            len: 0,
        }
    }
}

impl<K: Cached> Cache<K> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn len_namespace(&self, namespace: &str) -> usize {
        self.objects.get(namespace).map_or(0, BTreeMap::len)
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.objects.get(namespace)?.get(name).cloned()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values().flat_map(BTreeMap::values)
    }

    pub(super) fn iter_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        self.objects.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    /// Returns what was there before.
    pub(super) fn insert(&mut self, object: Arc<K>) -> Option<Arc<K>> {
        if !self.objects.contains_key(object.namespace()) {
            self.objects.insert(object.namespace().into(), BTreeMap::new());
        }
        let old = self
            .objects
            .get_mut(object.namespace())
            .and_then(|names| match names.get_mut(object.name()) {
                Some(slot) => Some(std::mem::replace(slot, Arc::clone(&object))),
                None => {
                    names.insert(object.name().into(), Arc::clone(&object));
                    None
                }
            });
        if old.is_none() {
            self.len += 1;
        }
        for index in &mut self.indexes {
            if let Some(old) = &old {
                index.remove(old);
            }
            index.insert(&object);
        }
        old
    }

    pub(super) fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let names = self.objects.get_mut(namespace)?;
        let old = names.remove(name)?;
        if names.is_empty() {
            self.objects.remove(namespace);
        }
        self.len -= 1;
        for index in &mut self.indexes {
            index.remove(&old);
        }
        Some(old)
    }

    pub(super) fn add_index(&mut self, name: &'static str, keys: IndexFn<K>) {
        if self.indexes.iter().any(|index| index.name == name) {
            return;
        }
        let mut index = Index {
            name,
            keys,
            entries: HashMap::new(),
        };
        for object in self.iter() {
            index.insert(object);
        }
        self.indexes.push(index);
    }

    pub(super) fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        self.entry(name, value)
            .map(|objects| objects.values().cloned().collect())
            .unwrap_or_default()
    }

    pub(super) fn count_by_index(&self, name: &str, value: &str) -> usize {
        self.entry(name, value).map_or(0, HashMap::len)
    }

    fn entry(&self, name: &str, value: &str) -> Option<&HashMap<usize, Arc<K>>> {
        self.indexes.iter().find(|index| index.name == name)?.entries.get(value)
    }
}

impl<K> Index<K> {
    fn insert(&mut self, object: &Arc<K>) {
        for key in (self.keys)(object) {
            self.entries
                .entry(key)
                .or_default()
                .insert(address(object), Arc::clone(object));
        }
    }

    fn remove(&mut self, object: &Arc<K>) {
        for key in (self.keys)(object) {
            if let Some(objects) = self.entries.get_mut(&key) {
                objects.remove(&address(object));
                if objects.is_empty() {
                    self.entries.remove(&key);
                }
            }
        }
    }
}

fn address<K>(object: &Arc<K>) -> usize {
    Arc::as_ptr(object) as usize
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod(namespace: &str, name: &str, node: &str) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some(namespace.into());
        pod.metadata.name = Some(name.into());
        pod.spec.get_or_insert_default().node_name = Some(node.into());
        Arc::new(pod)
    }

    #[test]
    fn indexes_follow_changes_whenever_they_were_added() {
        let mut cache = Cache::default();
        cache.insert(pod("a", "one", "n1"));
        cache.add_index(
            "node",
            Box::new(|pod: &Pod| pod.spec.iter().filter_map(|s| s.node_name.clone()).collect()),
        );
        cache.insert(pod("a", "two", "n1"));
        cache.insert(pod("b", "one", "n2"));
        assert_eq!(cache.by_index("node", "n1").len(), 2);
        assert!(cache.insert(pod("a", "one", "n2")).is_some());
        assert_eq!(cache.count_by_index("node", "n1"), 1);
        assert_eq!(cache.count_by_index("node", "n2"), 2);
        assert!(cache.remove("b", "one").is_some());
        assert!(cache.remove("b", "one").is_none());
        assert_eq!(cache.count_by_index("node", "n2"), 1);
        assert_eq!(cache.iter_namespace("a").count(), 2);
        assert_eq!(cache.len(), 2);
        assert!(cache.by_index("other", "n1").is_empty());
    }
}
