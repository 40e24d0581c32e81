//! An ordered index of entries whose snapshots cost nothing.
//!
//! Two levels of sorted arrays behind `Arc`s. A clone shares everything; a change after a clone copies
//! one chunk of pointers and the top level. Readers walk a clone without holding any lock, and a list
//! that is being paged through stays exactly as it was.

use std::sync::Arc;

use super::Entry;

const MAX_CHUNK: usize = 128;

type Chunk = Vec<Arc<Entry>>;

/// Entries ordered by path. Clones are snapshots.
#[derive(Clone, Default)]
pub struct Index {
    chunks: Arc<Vec<Arc<Chunk>>>,
    len: usize,
}

impl Index {
    /// An index of entries that are already in order.
    pub fn from_sorted(entries: Vec<Arc<Entry>>) -> Self {
        let len = entries.len();
        let mut chunks = Vec::with_capacity(len / MAX_CHUNK + 1);
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            chunks.push(Arc::new(entries.by_ref().take(MAX_CHUNK).collect::<Chunk>()));
        }
        Index {
            chunks: Arc::new(chunks),
            len,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chunk that holds `path`, or would.
    fn chunk_of(&self, path: &str) -> usize {
        let found = self
            .chunks
            .partition_point(|chunk| chunk.last().is_some_and(|last| last.path() < path));
        found.min(self.chunks.len().saturating_sub(1))
    }

    pub fn get(&self, path: &str) -> Option<&Arc<Entry>> {
        let chunk = self.chunks.get(self.chunk_of(path))?;
        let at = chunk.binary_search_by(|entry| entry.path().cmp(path)).ok()?;
        chunk.get(at)
    }

    /// Puts an entry in its place; returns the one it replaces.
    pub fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        let at = self.chunk_of(entry.path());
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(at) else {
            chunks.push(Arc::new(vec![entry]));
            self.len += 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|other| other.path().cmp(entry.path())) {
            Ok(found) => Some(std::mem::replace(&mut chunk[found], entry)),
            Err(place) => {
                chunk.insert(place, entry);
                if chunk.len() > MAX_CHUNK {
                    // Ascending names (the common burst) leave full chunks behind; others split in halves.
                    let keep = if place == MAX_CHUNK {
                        MAX_CHUNK - MAX_CHUNK / 8
                    } else {
                        MAX_CHUNK / 2
                    };
                    let tail = chunk.split_off(keep);
                    chunks.insert(at + 1, Arc::new(tail));
                }
                self.len += 1;
                None
            }
        }
    }

    pub fn remove(&mut self, path: &str) -> Option<Arc<Entry>> {
        let at = self.chunk_of(path);
        let found = self
            .chunks
            .get(at)?
            .binary_search_by(|entry| entry.path().cmp(path))
            .ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[at]);
        let entry = chunk.remove(found);
        if chunk.is_empty() {
            chunks.remove(at);
        }
        self.len -= 1;
        Some(entry)
    }

    /// Entries whose path is at least `start`, in order.
    pub fn from(&self, start: &str) -> Iter<'_> {
        let chunk = self.chunk_of(start);
        let at = self
            .chunks
            .get(chunk)
            .map_or(0, |chunk| chunk.partition_point(|entry| entry.path() < start));
        Iter {
            chunks: &self.chunks,
            chunk,
            at,
        }
    }

    pub fn iter(&self) -> Iter<'_> {
        Iter {
            chunks: &self.chunks,
            chunk: 0,
            at: 0,
        }
    }
}

/// A walk over an [`Index`].
pub struct Iter<'a> {
    chunks: &'a [Arc<Chunk>],
    chunk: usize,
    at: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Arc<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let chunk = self.chunks.get(self.chunk)?;
            if let Some(entry) = chunk.get(self.at) {
                self.at += 1;
                return Some(entry);
            }
            self.chunk += 1;
            self.at = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch_cache::ChangeType;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(path: &str, revision: u64) -> Arc<Entry> {
        let key = format!("/registry/x/{path}");
        Arc::new(Entry::new(
            key.into(),
            12,
            br#"{"metadata":{}}"#,
            revision,
            ChangeType::Added,
        ))
    }

    proptest! {
        #[test]
        fn behaves_as_an_ordered_map_and_snapshots_stay(
            ops in proptest::collection::vec((0u16..600, any::<bool>()), 1..2000),
            cut in 0usize..2000,
        ) {
            let mut index = Index::default();
            let mut model = BTreeMap::new();
            let mut kept = None;
            for (step, (number, put)) in ops.into_iter().enumerate() {
                if step == cut {
                    kept = Some((index.clone(), model.clone()));
                }
                let path = format!("ns/{number}");
                let old = if put {
                    let old = index.insert(entry(&path, step as u64));
                    prop_assert_eq!(old.map(|old| old.revision()), model.insert(path, step as u64));
                    continue;
                } else {
                    index.remove(&path)
                };
                prop_assert_eq!(old.map(|old| old.revision()), model.remove(&path));
            }
            for (index, model) in kept.into_iter().chain([(index, model)]) {
                prop_assert_eq!(index.len(), model.len());
                let walked: Vec<_> = index.iter().map(|entry| (entry.path().to_owned(), entry.revision())).collect();
                let wanted: Vec<_> = model.iter().map(|(path, revision)| (path.clone(), *revision)).collect();
                prop_assert_eq!(&walked, &wanted);
                let tail: Vec<_> = index.from("ns/3").map(|entry| entry.path().to_owned()).collect();
                let wanted: Vec<_> = model.range("ns/3".to_owned()..).map(|(path, _)| path.clone()).collect();
                prop_assert_eq!(tail, wanted);
                for (path, revision) in &model {
                    prop_assert_eq!(index.get(path).map(|entry| entry.revision()), Some(*revision));
                }
            }
        }
    }

    #[test]
    fn a_sorted_load_equals_inserts() {
        let entries: Vec<_> = (1000..1500).map(|number| entry(&format!("{number}"), 1)).collect();
        let index = Index::from_sorted(entries.clone());
        assert_eq!(index.len(), 500);
        assert!(index.iter().zip(&entries).all(|(a, b)| a.path() == b.path()));
        assert!(index.get("1250").is_some() && index.get("999").is_none());
    }
}
