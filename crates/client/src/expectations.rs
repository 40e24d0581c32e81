//! What a controller has asked for and not yet seen in its cache.
//!
//! A controller that reads from a cache must not act on it while its own writes are still on their way back, or it
//! creates (or deletes) the same thing twice. Creations are counted; deletions are tracked by UID, because an object
//! with finalizers is seen changing more than once on its way out.
//!
//! Expectations older than five minutes count as met, so that a lost event delays a controller and never stops it.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const TIMEOUT: Duration = Duration::from_secs(300);

/// Expectations of one controller, by the key of the owner.
pub struct Expectations<K> {
    by_owner: Mutex<HashMap<K, Expected>>,
}

struct Expected {
    creations: i64,
    deletions: HashSet<String>,
    since: Instant,
}

impl<K: Clone + Eq + Hash> Default for Expectations<K> {
    fn default() -> Self {
        Expectations {
            by_owner: Mutex::default(),
        }
    }
}

impl<K: Clone + Eq + Hash> Expectations<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Expected>> {
        self.by_owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what is expected for `owner` by `count` creations.
    pub fn expect_creations(&self, owner: &K, count: usize) {
        self.set(owner, count, HashSet::new());
    }

    /// Replaces what is expected for `owner` by the deletions of these UIDs.
    pub fn expect_deletions(&self, owner: &K, uids: impl IntoIterator<Item = String>) {
        self.set(owner, 0, uids.into_iter().collect());
    }

    /// Replaces what is expected for `owner` by `count` creations and the deletions of these UIDs.
    pub fn expect(&self, owner: &K, count: usize, uids: impl IntoIterator<Item = String>) {
        self.set(owner, count, uids.into_iter().collect());
    }

    fn set(&self, owner: &K, creations: usize, deletions: HashSet<String>) {
        let expected = Expected {
            creations: i64::try_from(creations).unwrap_or(i64::MAX),
            deletions,
            since: Instant::now(),
        };
        self.lock().insert(owner.clone(), expected);
    }

    /// One creation was seen, or will not come because the write failed.
    pub fn creation_observed(&self, owner: &K) {
        self.creations_observed(owner, 1);
    }

    pub fn creations_observed(&self, owner: &K, count: usize) {
        if let Some(expected) = self.lock().get_mut(owner) {
            expected.creations -= i64::try_from(count).unwrap_or(i64::MAX);
        }
    }

    /// The deletion of `uid` was seen, or will not come because the write failed.
    pub fn deletion_observed(&self, owner: &K, uid: &str) {
        if let Some(expected) = self.lock().get_mut(owner) {
            expected.deletions.remove(uid);
        }
    }

    /// Whether the cache shows everything `owner` has asked for.
    pub fn satisfied(&self, owner: &K) -> bool {
        self.lock().get(owner).is_none_or(|expected| {
            (expected.creations <= 0 && expected.deletions.is_empty()) || expected.since.elapsed() > TIMEOUT
        })
    }

    /// Forgets an owner that is gone.
    pub fn forget(&self, owner: &K) {
        self.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn met_by_observation_or_age() {
        let expectations = Expectations::default();
        assert!(expectations.satisfied(&"rs"));
        expectations.expect_creations(&"rs", 2);
        expectations.creation_observed(&"rs");
        assert!(!expectations.satisfied(&"rs"));
        expectations.creation_observed(&"rs");
        assert!(expectations.satisfied(&"rs"));

        expectations.expect_deletions(&"rs", ["u1".to_owned(), "u2".to_owned()]);
        expectations.deletion_observed(&"rs", "u1");
        expectations.deletion_observed(&"rs", "u1");
        assert!(!expectations.satisfied(&"rs"), "the same UID counts once");
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(expectations.satisfied(&"rs"));
        expectations.forget(&"rs");
        assert!(expectations.satisfied(&"rs"));
    }
}
