//! Exponential back-off for restarts of containers and for image pulls, with upstream's arithmetic.
//!
//! Pure: time comes in as an argument. An entry is forgotten once nothing has happened for twice the maximum.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: SignedDuration,
    updated: Timestamp,
}

/// Back-off per key.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: SignedDuration,
    max: SignedDuration,
    entries: HashMap<String, Entry>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(SignedDuration::from_secs(10), SignedDuration::from_secs(300))
    }
}

impl Backoff {
    pub fn new(initial: SignedDuration, max: SignedDuration) -> Self {
        Self {
            initial,
            max,
            entries: HashMap::new(),
        }
    }

    fn expired(&self, entry: &Entry, at: Timestamp) -> bool {
        at.duration_since(entry.updated) > self.max * 2
    }

    /// How long from `now` to wait after an event (a container's end) at `event`: `None` when there is no need,
    /// else the full delay and what is left of it.
    pub fn wait_since(&self, key: &str, event: Timestamp, now: Timestamp) -> Option<(SignedDuration, SignedDuration)> {
        let entry = self.entries.get(key)?;
        if self.expired(entry, event) {
            return None;
        }
        let left = entry.delay - now.duration_since(event);
        (left > SignedDuration::ZERO).then_some((entry.delay, left))
    }

    /// The same, counted from the last failure noted.
    pub fn wait_since_update(&self, key: &str, now: Timestamp) -> Option<(SignedDuration, SignedDuration)> {
        let updated = self.entries.get(key)?.updated;
        self.wait_since(key, updated, now)
    }

    /// Notes another failure (or restart) at `event`: the delay doubles, or begins anew after a quiet time.
    pub fn next(&mut self, key: &str, event: Timestamp) {
        let (initial, max) = (self.initial, self.max);
        let delay = match self.entries.get(key) {
            Some(entry) if !self.expired(entry, event) => (entry.delay * 2).min(max),
            _ => initial,
        };
        self.entries.insert(key.to_owned(), Entry { delay, updated: event });
    }

    /// Ends the back-off of all keys that `which` names.
    pub fn forget(&mut self, which: impl Fn(&str) -> bool) {
        self.entries.retain(|key, _| !which(key));
    }

    /// Ends the back-off of `key`.
    pub fn reset(&mut self, key: &str) {
        self.entries.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn doubles_to_the_maximum_and_forgets_after_ten_quiet_minutes() {
        let mut backoff = Backoff::default();
        let mut now = 0;
        assert_eq!(backoff.wait_since("k", at(now), at(now)), None);
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            backoff.next("k", at(now));
            let (delay, left) = backoff.wait_since("k", at(now), at(now + 3)).unwrap();
            assert_eq!((delay.as_secs(), left.as_secs()), (expected, expected - 3));
            now += expected;
            assert_eq!(backoff.wait_since("k", at(now - expected), at(now)), None);
        }
        // It then runs for more than ten minutes and ends: no wait, and a fresh start.
        let end = at(now + 700);
        assert_eq!(backoff.wait_since("k", end, end), None);
        backoff.next("k", end);
        assert_eq!(backoff.wait_since("k", end, end).unwrap().0.as_secs(), 10);
        backoff.reset("k");
        assert_eq!(backoff.wait_since_update("k", end), None);
    }
}
