//! A deduplicating queue of keys.
//!
//! Invariants:
//! - a key waits at most once, however often it is added;
//! - a key handed to a worker is not handed to another until [`WorkQueue::done`]; if it was added meanwhile
//!   it waits again after that;
//! - of several delayed adds of one key the earliest counts;
//! - keys leave in the order they came.
//!
//! Differs from upstream: there is no timer goroutine. Idle workers sleep until the earliest delayed key is due,
//! and busy ones look at the clock when they come back, so an empty queue costs nothing at all.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::{Histogram, QueueFigures};

/// Exponential back-off of one key.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            base: Duration::from_millis(5),
            max: Duration::from_secs(1000),
        }
    }
}

impl Backoff {
    /// How long to wait after `failures` failures in a row (0: the first).
    pub fn delay(&self, failures: u32) -> Duration {
        self.base
            .saturating_mul(1_u32.checked_shl(failures.min(31)).unwrap_or(u32::MAX))
            .min(self.max)
    }
}

/// See the module. Clones share one queue.
pub struct WorkQueue<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        WorkQueue {
            inner: Arc::clone(&self.inner),
        }
    }
}

struct Inner<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    backoff: Backoff,
}

struct State<K> {
    /// With when they came.
    order: VecDeque<(K, Instant)>,
    /// Keys that wait, or that came back while they were being worked on.
    dirty: HashSet<K>,
    /// With when work on them began.
    processing: HashMap<K, Instant>,
    delayed: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    sequence: u64,
    draining: bool,
    added: u64,
    retried: u64,
    waited: Histogram,
    worked: Histogram,
}

impl<K: Clone + Eq + Hash> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new(Backoff::default())
    }
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    pub fn new(backoff: Backoff) -> Self {
        WorkQueue {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    order: VecDeque::new(),
                    dirty: HashSet::new(),
                    processing: HashMap::new(),
                    delayed: BTreeMap::new(),
                    due: HashMap::new(),
                    failures: HashMap::new(),
                    sequence: 0,
                    draining: false,
                    added: 0,
                    retried: 0,
                    waited: Histogram::exponential(1e-8, 10.0, 11),
                    worked: Histogram::exponential(1e-8, 10.0, 11),
                }),
                changed: Notify::new(),
                backoff,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues `key` unless it waits already.
    pub fn add(&self, key: K) {
        let queued = self.state().add(key);
        if queued {
            self.inner.changed.notify_one();
        }
    }

    /// Queues `key` once `delay` has passed.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.state();
        if state.draining {
            return;
        }
        let at = Instant::now() + delay;
        if let Some(known) = state.due.get(&key).copied() {
            if known.0 <= at {
                return;
            }
            state.delayed.remove(&known);
        }
        state.sequence += 1;
        let slot = (at, state.sequence);
        let earliest = state.delayed.first_key_value().is_none_or(|(first, _)| slot < *first);
        state.due.insert(key.clone(), slot);
        state.delayed.insert(slot, key);
        drop(state);
        if earliest {
            self.inner.changed.notify_one();
        }
    }

    /// Queues `key` after its back-off, which doubles with every call until [`WorkQueue::forget`].
    pub fn add_rate_limited(&self, key: K) {
        let failures = {
            let mut state = self.state();
            state.retried += 1;
            let count = state.failures.entry(key.clone()).or_insert(0);
            let before = *count;
            *count = count.saturating_add(1);
            before
        };
        self.add_after(key, self.inner.backoff.delay(failures));
    }

    /// Ends the back-off of `key`.
    pub fn forget(&self, key: &K) {
        self.state().failures.remove(key);
    }

    /// How often `key` has failed in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.state().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key, or `None` once the queue drains. The caller must call [`WorkQueue::done`] with it.
    pub async fn get(&self) -> Option<K> {
        loop {
            let due = {
                let mut state = self.state();
                if state.draining {
                    drop(state);
                    self.inner.changed.notify_one();
                    return None;
                }
                state.promote(Instant::now());
                if let Some((key, since)) = state.order.pop_front() {
                    let now = Instant::now();
                    state.waited.took(now.duration_since(since));
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone(), now);
                    let more = !state.order.is_empty() || !state.delayed.is_empty();
                    drop(state);
                    if more {
                        // Another idle worker takes the next key, or the watch over the next due time.
                        self.inner.changed.notify_one();
                    }
                    return Some(key);
                }
                state.delayed.first_key_value().map(|((at, _), _)| *at)
            };
            match due {
                Some(at) => {
                    tokio::select! {
                        () = self.inner.changed.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.inner.changed.notified().await,
            }
        }
    }

    /// Says that work on `key` has ended; queues it again if it was added meanwhile.
    pub fn done(&self, key: &K) {
        let mut state = self.state();
        if let Some(since) = state.processing.remove(key) {
            state.worked.took(since.elapsed());
        }
        let again = state.dirty.contains(key) && !state.draining;
        if again {
            state.order.push_back((key.clone(), Instant::now()));
        }
        drop(state);
        if again {
            self.inner.changed.notify_one();
        }
    }

    /// Wakes every worker to end; later adds are ignored.
    pub fn drain(&self) {
        let mut state = self.state();
        state.draining = true;
        state.order.clear();
        state.delayed.clear();
        state.due.clear();
        drop(state);
        self.inner.changed.notify_one();
    }

    /// How many keys wait now (delayed ones not counted).
    pub fn len(&self) -> usize {
        self.state().order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Nothing waits, nothing is delayed, nothing is being worked on.
    pub fn is_idle(&self) -> bool {
        let state = self.state();
        state.order.is_empty() && state.processing.is_empty() && state.delayed.is_empty()
    }

    /// What it has seen, for metrics.
    pub fn figures(&self) -> QueueFigures {
        let state = self.state();
        let now = Instant::now();
        let in_work = || state.processing.values().map(|since| now.duration_since(*since));
        QueueFigures {
            waiting: state.order.len(),
            added: state.added,
            retried: state.retried,
            waited: state.waited.clone(),
            worked: state.worked.clone(),
            unfinished: in_work().sum(),
            longest: in_work().max().unwrap_or_default(),
        }
    }

    /// Counters for metrics: (waiting, delayed, in work, added ever, retried ever).
    pub fn counts(&self) -> (usize, usize, usize, u64, u64) {
        let state = self.state();
        (
            state.order.len(),
            state.delayed.len(),
            state.processing.len(),
            state.added,
            state.retried,
        )
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    /// Whether a worker should wake.
    fn add(&mut self, key: K) -> bool {
        if self.draining || !self.dirty.insert(key.clone()) {
            return false;
        }
        self.added += 1;
        if self.processing.contains_key(&key) {
            return false;
        }
        self.order.push_back((key, Instant::now()));
        true
    }

    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_waits_once_and_is_never_with_two_workers() {
        let queue = WorkQueue::default();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.get().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.get().await, Some("b"));
        let second = tokio::time::timeout(Duration::from_millis(20), queue.get()).await;
        assert!(second.is_err(), "a is still in work");
        queue.done(&"a");
        assert_eq!(queue.get().await, Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_keys_come_when_due_and_the_earliest_delay_counts() {
        let queue = WorkQueue::default();
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(60));
        queue.add_after("soon", Duration::from_secs(30));
        queue.add_after("soon", Duration::from_secs(5));
        queue.add_after("soon", Duration::from_secs(50));
        assert_eq!(queue.get().await, Some("soon"));
        assert_eq!(start.elapsed().as_secs(), 5);
        queue.done(&"soon");
        assert_eq!(queue.get().await, Some("late"));
        assert_eq!(start.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleeping_worker_notices_an_earlier_delay() {
        let queue = WorkQueue::default();
        queue.add_after("late", Duration::from_secs(60));
        let start = Instant::now();
        let worker = async { queue.get().await };
        let adder = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            queue.add_after("early", Duration::from_secs(1));
        };
        let (got, ()) = tokio::join!(worker, adder);
        assert_eq!(got, Some("early"));
        assert_eq!(start.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn back_off_doubles_until_forgotten() {
        let queue = WorkQueue::new(Backoff {
            base: Duration::from_secs(1),
            max: Duration::from_secs(3),
        });
        let start = Instant::now();
        let mut seen = Vec::new();
        for _ in 0..4 {
            queue.add_rate_limited("k");
            let key = queue.get().await.unwrap();
            queue.done(&key);
            seen.push(start.elapsed().as_secs());
        }
        assert_eq!(seen, [1, 3, 6, 9]);
        assert_eq!(queue.failures(&"k"), 4);
        queue.forget(&"k");
        queue.add_rate_limited("k");
        queue.get().await;
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test]
    async fn drain_wakes_every_worker() {
        let queue: WorkQueue<&str> = WorkQueue::default();
        let (a, b, ()) = tokio::join!(queue.get(), queue.get(), async {
            tokio::task::yield_now().await;
            queue.drain();
        });
        assert_eq!((a, b), (None, None));
        queue.add("x");
        assert_eq!(queue.get().await, None);
    }
}
