//! The watchers of one scope, and when each is told.
//!
//! A few watchers are told at once. Telling a crowd is work (for each a wakeup, a TLS record, a write), and most of it is
//! the same for one change as for ten. So a crowd is told in rounds: the first change after a quiet while begins one at
//! once, and the next begins no sooner than a window later, which grows with the crowd and, where the machine is busy, with
//! what a round takes: those who make the changes must get on, too. A round goes through the watchers
//! in slices, between which the server does other things (a write that comes in the midst of it is not kept waiting
//! until all are told), and each watcher gets in its turn everything there is by then.
//!
//! Invariants: changes are numbered in order; `told` is the number up to which a watcher has them all; every watcher gets
//! every change after its `told` exactly once and in order; the log holds everything that somebody still lacks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Change;
use super::queue::{Batch, Sender};

/// From this many on, the watchers of a scope are a crowd.
const CROWD: usize = 32;
/// What lies between the beginnings of two rounds, for each of a crowd, and the most it may be.
const EACH: Duration = Duration::from_micros(25);
const WINDOW: Duration = Duration::from_millis(12);
/// The same on a busy machine, where a round may take up half of the time.
const SLOW: Duration = Duration::from_millis(30);
/// A round is not put off beyond this many changes.
const ROUND: usize = 64;
/// How many watchers are told together.
const SLICE: usize = 16;
/// With this many changes waiting everybody is told at once.
const FULL: usize = 512;

struct Watcher {
    id: u64,
    told: u64,
    queue: Sender,
}

/// The watchers of one scope.
#[derive(Default)]
pub(super) struct Group {
    watchers: Vec<Watcher>,
    /// Changes that somebody lacks; the first of them has the number `first`.
    log: VecDeque<Arc<Change>>,
    first: u64,
    /// When the last round began, and what the last one took that ended.
    began: Option<Instant>,
    took: Duration,
    /// The round under way: who is next, and the number it has to tell up to at least.
    round: Option<(usize, u64)>,
}

impl Group {
    pub fn len(&self) -> usize {
        self.watchers.len()
    }
    pub fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }

    /// The number of the next change.
    fn end(&self) -> u64 {
        self.first + self.log.len() as u64
    }

    /// A watcher for which what happened before is nothing new.
    pub fn add(&mut self, id: u64, queue: Sender) {
        let told = self.end();
        self.watchers.push(Watcher { id, told, queue });
    }

    pub fn remove(&mut self, id: u64) {
        if let Some(at) = self.watchers.iter().position(|watcher| watcher.id == id) {
            self.take_out(at);
        }
    }

    fn take_out(&mut self, at: usize) {
        self.watchers.remove(at);
        if let Some((next, _)) = &mut self.round
            && at < *next
        {
            *next -= 1;
        }
        if self.watchers.is_empty() {
            self.forget(self.end());
            self.round = None;
        }
    }

    /// Hands a change over; returns when a round is due, if that is news.
    pub fn offer(&mut self, change: &Arc<Change>) -> Option<Instant> {
        if self.watchers.is_empty() {
            return None;
        }
        self.log.push_back(change.clone());
        if self.watchers.len() < CROWD || self.log.len() >= FULL {
            self.flush();
            return None;
        }
        match self.log.len() {
            1 => Some(self.due().unwrap_or_else(Instant::now)),
            ROUND => Some(Instant::now()),
            _ => None,
        }
    }

    /// When the next round may begin; `None`: at any time.
    fn due(&self) -> Option<Instant> {
        let window = (EACH * self.watchers.len() as u32).min(WINDOW);
        let window = window.max((2 * self.took).min(SLOW));
        self.began.map(|began| began + window)
    }

    /// Tells everybody everything.
    pub fn flush(&mut self) {
        self.tell(0, usize::MAX);
        self.forget(self.end());
        self.round = None;
    }

    /// Tells one watcher everything.
    pub fn hurry(&mut self, id: u64) {
        if let Some(at) = self.watchers.iter().position(|watcher| watcher.id == id) {
            self.tell(at, 1);
        }
    }

    /// Begins a round if one is due at `now`, or goes on with the one under way. Returns when to come back.
    pub fn slice(&mut self, now: Instant) -> Option<Instant> {
        if self.log.is_empty() {
            self.round = None;
            return None;
        }
        let (at, goal) = match self.round {
            Some(round) => round,
            None => match self.due() {
                Some(due) if due > now && self.log.len() < ROUND => return Some(due),
                _ => {
                    self.began = Some(now);
                    (0, self.end())
                }
            },
        };
        let next = self.tell(at, SLICE);
        if next < self.watchers.len() {
            self.round = Some((next, goal));
            return Some(now);
        }
        self.round = None;
        self.took = self
            .began
            .map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
        self.forget(goal);
        if self.log.is_empty() {
            return None;
        }
        Some(self.due().unwrap_or(now))
    }

    /// Tells up to `most` of those from `at` on who lack something. Whoever has no room left is dropped. Returns who
    /// would be next.
    fn tell(&mut self, mut at: usize, most: usize) -> usize {
        let end = self.end();
        let mut count = 0;
        let mut shared: Option<(u64, Arc<Batch>)> = None;
        while let Some(watcher) = self.watchers.get_mut(at) {
            if watcher.told >= end {
                at += 1;
                continue;
            }
            if count == most {
                break;
            }
            let batch = match &shared {
                Some((told, batch)) if *told == watcher.told => batch.clone(),
                _ => {
                    let from = watcher.told.saturating_sub(self.first) as usize;
                    let batch = Batch::new(self.log.iter().skip(from).cloned().collect());
                    shared = Some((watcher.told, batch.clone()));
                    batch
                }
            };
            watcher.told = end;
            count += 1;
            if watcher.queue.send(&batch) {
                at += 1;
            } else {
                self.take_out(at);
            }
        }
        at
    }

    /// Drops changes below this number: everybody has them.
    fn forget(&mut self, number: u64) {
        let count = (number.saturating_sub(self.first) as usize).min(self.log.len());
        self.log.drain(..count);
        self.first += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::{Queue, queue};
    use super::super::{ChangeType, Entry};
    use super::*;

    fn change(revision: u64) -> Arc<Change> {
        let entry = Entry::new(
            "/registry/x/a".into(),
            12,
            b"{\"metadata\":{}}",
            revision,
            ChangeType::Modified,
        );
        Arc::new(Change::new(revision, ChangeType::Modified, Arc::new(entry), None))
    }

    fn crowd(count: u64) -> (Group, Vec<Queue>) {
        let mut group = Group::default();
        let queues = (0..count)
            .map(|id| {
                let (sender, receiver) = queue();
                group.add(id, sender);
                receiver
            })
            .collect();
        (group, queues)
    }

    fn seen(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.try_recv().ok())
            .map(|change| change.revision)
            .collect()
    }

    #[test]
    fn a_few_are_told_at_once() {
        let (mut group, mut queues) = crowd(CROWD as u64 - 1);
        assert_eq!(group.offer(&change(1)), None);
        assert!(queues.iter_mut().all(|queue| seen(queue) == [1]));
        assert_eq!(group.slice(Instant::now()), None);
    }

    #[test]
    fn a_crowd_is_told_in_slices_and_the_last_hear_of_what_came_meanwhile() {
        let (mut group, mut queues) = crowd(3 * SLICE as u64);
        let now = Instant::now();
        assert!(group.offer(&change(1)).is_some());
        assert_eq!(group.slice(now), Some(now));
        assert_eq!(group.offer(&change(2)), None);
        assert_eq!(group.slice(now), Some(now));
        let due = group.slice(now).unwrap();
        assert!(due > now, "the next round waits for its window");
        assert_eq!(seen(&mut queues[0]), [1]);
        assert_eq!(seen(&mut queues[SLICE]), [1, 2]);
        assert_eq!(seen(&mut queues[2 * SLICE]), [1, 2]);
        assert_eq!(group.slice(now), Some(due), "nobody is told sooner");
        // Only the first slice lacks anything.
        assert_eq!(group.slice(due), None);
        assert_eq!(seen(&mut queues[0]), [2]);
        assert!(seen(&mut queues[SLICE]).is_empty());
    }

    #[test]
    fn those_who_come_and_go_in_a_round_disturb_nobody() {
        let (mut group, mut queues) = crowd(2 * SLICE as u64 + 1);
        let now = Instant::now();
        group.offer(&change(1));
        group.slice(now);
        // One who was told, one who was not, and a new one.
        group.remove(0);
        group.remove(SLICE as u64 + 1);
        let (sender, mut late) = queue();
        group.add(1000, sender);
        group.offer(&change(2));
        group.hurry(SLICE as u64);
        assert_eq!(seen(&mut queues[SLICE]), [1, 2]);
        let mut at = now;
        while let Some(next) = group.slice(at) {
            at = next;
        }
        assert_eq!(seen(&mut late), [2]);
        for (id, queue) in queues.iter_mut().enumerate() {
            let expected: &[u64] = match id {
                0 => &[1],
                id if id == SLICE || id == SLICE + 1 => &[],
                _ => &[1, 2],
            };
            assert_eq!(seen(queue), expected, "watcher {id}");
        }
    }

    #[test]
    fn everything_is_told_when_much_waits_and_when_all_is_asked_for() {
        let (mut group, mut queues) = crowd(CROWD as u64);
        for revision in 0..FULL as u64 {
            group.offer(&change(revision));
        }
        assert!(queues.iter_mut().all(|queue| seen(queue).len() == FULL));
        group.offer(&change(1000));
        group.flush();
        assert!(queues.iter_mut().all(|queue| seen(queue) == [1000]));
        assert_eq!(group.slice(Instant::now()), None);
    }

    #[test]
    fn random_orders_lose_and_repeat_nothing() {
        use rand::{Rng, SeedableRng};
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        let (mut group, queues) = crowd(CROWD as u64 + 5);
        let mut all: Vec<(u64, u64, Queue)> = queues
            .into_iter()
            .enumerate()
            .map(|(id, queue)| (id as u64, 1, queue))
            .collect();
        let (mut revision, mut next, mut now) = (0, 1000, Instant::now());
        for _ in 0..20_000 {
            match random.random_range(0..20) {
                0 => {
                    let (sender, receiver) = queue();
                    group.add(next, sender);
                    all.push((next, revision + 1, receiver));
                    next += 1;
                }
                1 if all.len() > CROWD / 2 => {
                    let (id, ..) = all.swap_remove(random.random_range(0..all.len()));
                    group.remove(id);
                }
                2 => group.hurry(all[random.random_range(0..all.len())].0),
                3..8 => {
                    revision += 1;
                    group.offer(&change(revision));
                }
                _ => {
                    now += Duration::from_millis(random.random_range(0..4));
                    group.slice(now);
                }
            }
            for (_, expected, queue) in &mut all {
                for got in seen(queue) {
                    assert_eq!(got, *expected);
                    *expected += 1;
                }
            }
        }
        group.flush();
        for (_, mut expected, mut queue) in all {
            for got in seen(&mut queue) {
                assert_eq!(got, expected);
                expected += 1;
            }
            assert_eq!(expected, revision + 1);
        }
    }
}
