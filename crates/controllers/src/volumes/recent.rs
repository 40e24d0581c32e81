//! What was just written, until the cache has it.
//!
//! The binder decides by two objects at a time; looking at one that is older than its own last write would make it
//! bind twice, find out, and undo. Versions are compared as numbers, as the API server promises they can be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sampan_client::{Cached, Change, Informer};

pub(crate) struct Recent<K> {
    written: Arc<Mutex<HashMap<String, Arc<K>>>>,
}

impl<K> Clone for Recent<K> {
    fn clone(&self) -> Self {
        Recent {
            written: Arc::clone(&self.written),
        }
    }
}

fn version<K: Cached>(object: &K) -> u64 {
    object.resource_version().parse().unwrap_or(0)
}

impl<K: Cached> Recent<K> {
    pub(crate) fn of(informer: &Informer<K>) -> Self {
        let recent: Recent<K> = Recent {
            written: Arc::default(),
        };
        let seen = recent.clone();
        informer.on_change(move |change| {
            let object = change.object();
            let mut written = seen.lock();
            let known = written.get(object.uid());
            let gone = matches!(change, Change::Deleted(_));
            if gone || known.is_some_and(|known| version(known.as_ref()) <= version(object.as_ref())) {
                written.remove(object.uid());
            }
        });
        recent
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<K>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what a write gave back.
    pub(crate) fn wrote(&self, object: K) -> Arc<K> {
        let object = Arc::new(object);
        let mut written = self.lock();
        match written.get(object.uid()) {
            Some(known) if version(known.as_ref()) >= version(object.as_ref()) => {}
            _ => {
                written.insert(object.uid().to_owned(), Arc::clone(&object));
            }
        }
        object
    }

    /// The newer of the cache's object and the last one written.
    pub(crate) fn newest(&self, cached: Arc<K>) -> Arc<K> {
        match self.lock().get(cached.uid()) {
            Some(known) if version(known.as_ref()) > version(cached.as_ref()) => Arc::clone(known),
            _ => cached,
        }
    }
}
