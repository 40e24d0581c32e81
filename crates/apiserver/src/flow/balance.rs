//! Dividing the server's seats among its levels.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::level::{Level, Limits, Spec};
use super::queues::Shape;
use super::share::{Claim, divide};
use super::{Flow, Known, PERIOD};
use crate::sync::lock;

/// A single request may take this part of a level.
const LARGEST_PART: f64 = 0.15;

impl Flow {
    /// Nominal seats and bounds, from the shares of all levels.
    pub(super) fn allot(&self, known: &mut Known) {
        let total = self.total as f64;
        let sum: f64 = known.used.values().map(|(spec, _)| spec.shares).sum();
        for (spec, level) in known.used.values() {
            let nominal = (total * spec.shares / sum.max(1.0)).ceil();
            let lendable = (nominal * spec.lendable_percent / 100.0).round();
            let borrowing = spec
                .borrowing_percent
                .map_or(total, |percent| (nominal * percent / 100.0).round());
            let most = match spec.shape {
                Shape::Queue { hand, .. } => (nominal * LARGEST_PART)
                    .ceil()
                    .min((nominal / hand.max(1) as f64).floor())
                    .max(1.0) as usize,
                _ => 0,
            };
            level.max_seats.store(most, Ordering::Relaxed);
            let mut limits = lock(&level.limits);
            let fresh = *limits == Limits::default();
            limits.nominal = nominal as usize;
            limits.low = (nominal - lendable) as usize;
            limits.high = (nominal + borrowing) as usize;
            if fresh {
                limits.current = (nominal - (lendable / 2.0).floor()) as usize;
            }
        }
        self.balance(known);
    }

    /// Re-divides by demand. Returns whether there was none.
    pub(super) fn balance(&self, known: &mut Known) -> bool {
        known
            .used
            .retain(|_, (_, level)| !level.quiescing.load(Ordering::Relaxed) || !level.is_idle());
        let now = Instant::now();
        let mut quiet = true;
        let mut claims = Vec::new();
        let (mut low, mut low_now) = (0, 0);
        let nominal: usize = known.used.values().map(|(_, level)| lock(&level.limits).nominal).sum();
        let mut left = nominal;
        for (spec, level) in known.used.values() {
            let seen = lock(&level.state).demand.take(now);
            let mut limits = lock(&level.limits);
            limits.demand.update(seen, PERIOD);
            quiet &= limits.demand.high == 0;
            if spec.shape == Shape::Exempt {
                limits.current = limits.low.max(limits.demand.high);
                left = left.saturating_sub(limits.current);
                continue;
            }
            let floor = floor(&limits);
            limits.target = limits.demand.smoothed.max(floor as f64);
            claims.push(Claim {
                low: floor as f64,
                high: limits.high as f64,
                target: limits.target,
            });
            low += limits.low;
            low_now += floor;
        }
        let (parts, _) = divide(nominal as f64, &claims);
        let mut parts = parts.into_iter();
        for (spec, level) in known.used.values() {
            if spec.shape != Shape::Exempt {
                let part = parts.next().unwrap_or_default();
                let mut limits = lock(&level.limits);
                limits.current = if left <= low {
                    limits.low
                } else if left <= low_now {
                    let fraction = (left - low) as f64 / (low_now - low).max(1) as f64;
                    limits.low + ((floor(&limits) - limits.low) as f64 * fraction).round() as usize
                } else {
                    part.round() as usize
                };
            }
            apply(spec, level);
        }
        quiet
    }
}

/// The least a level gets now: what it used at most lately, but no more than is its own and no less than it keeps.
fn floor(limits: &Limits) -> usize {
    limits.demand.high.min(limits.nominal).max(limits.low)
}

fn apply(spec: &Spec, level: &Level) {
    let current = lock(&level.limits).current;
    level.configure(spec.shape, current);
}
