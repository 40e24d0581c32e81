//! What is counted per schema and level; relaxed counters, read by the metrics page.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of waiting times, in seconds; execution times have one more.
pub const WAITS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
pub const RUNS: [f64; 14] = [
    0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0,
];

/// Why a request was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The level has no queues and no seats left.
    ConcurrencyLimit,
    QueueFull,
    /// It waited as long as it may.
    TimeOut,
    /// The client went away while it waited.
    Cancelled,
}

impl Reason {
    pub const ALL: [Reason; 4] = [
        Reason::ConcurrencyLimit,
        Reason::QueueFull,
        Reason::TimeOut,
        Reason::Cancelled,
    ];
    pub fn name(self) -> &'static str {
        match self {
            Reason::ConcurrencyLimit => "concurrency-limit",
            Reason::QueueFull => "queue-full",
            Reason::TimeOut => "time-out",
            Reason::Cancelled => "cancelled",
        }
    }
}

/// A histogram with `N` bounds; the last slot is everything above.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [f64; N],
    pub slots: [AtomicU64; N],
    pub above: AtomicU64,
    pub micros: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: &'static [f64; N]) -> Self {
        Histogram {
            bounds,
            slots: [const { AtomicU64::new(0) }; N],
            above: AtomicU64::new(0),
            micros: AtomicU64::new(0),
        }
    }
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let slot = self.bounds.iter().position(|bound| seconds <= *bound);
        slot.and_then(|slot| self.slots.get(slot))
            .unwrap_or(&self.above)
            .fetch_add(1, Relaxed);
        self.micros.fetch_add(took.as_micros() as u64, Relaxed);
    }
    /// Bounds with cumulative counts, the total, and the sum in seconds.
    pub fn read(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut total = 0;
        let rows = self
            .bounds
            .iter()
            .zip(&self.slots)
            .map(|(bound, slot)| {
                total += slot.load(Relaxed);
                (*bound, total)
            })
            .collect();
        (
            rows,
            total + self.above.load(Relaxed),
            self.micros.load(Relaxed) as f64 / 1e6,
        )
    }
}

/// The figures of one schema on one level.
#[derive(Debug)]
pub struct Stats {
    rejected: [AtomicU64; 4],
    pub executing: AtomicI64,
    pub executing_seats: AtomicI64,
    pub waiting: AtomicI64,
    pub waiting_seats: AtomicI64,
    /// Waited, then ran.
    pub waited: Histogram<13>,
    /// Waited in vain.
    pub waited_in_vain: Histogram<13>,
    pub ran: Histogram<14>,
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            rejected: [const { AtomicU64::new(0) }; 4],
            executing: AtomicI64::new(0),
            executing_seats: AtomicI64::new(0),
            waiting: AtomicI64::new(0),
            waiting_seats: AtomicI64::new(0),
            waited: Histogram::new(&WAITS),
            waited_in_vain: Histogram::new(&WAITS),
            ran: Histogram::new(&RUNS),
        }
    }
}

impl Stats {
    pub fn reject(&self, reason: Reason) {
        self.rejected[reason as usize].fetch_add(1, Relaxed);
    }
    pub fn rejected(&self, reason: Reason) -> u64 {
        self.rejected[reason as usize].load(Relaxed)
    }
    pub fn run(&self, requests: i64, seats: i64) {
        self.executing.fetch_add(requests, Relaxed);
        self.executing_seats.fetch_add(seats, Relaxed);
    }
    pub fn wait(&self, requests: i64, seats: i64) {
        self.waiting.fetch_add(requests, Relaxed);
        self.waiting_seats.fetch_add(seats, Relaxed);
    }
}
