//! How the server's seats are divided among levels: by demand, within what each may lend and borrow.

use std::time::{Duration, Instant};

/// Keeps about half of a past demand after five minutes of adjustments every ten seconds.
const SMOOTHING: f64 = 0.977;
/// No target is smaller, so that nothing is divided by zero.
const LEAST: f64 = 0.001;

/// Integrates the number of seats wanted over time.
#[derive(Debug)]
pub struct Integrator {
    value: f64,
    since: Instant,
    seconds: f64,
    sum: f64,
    squares: f64,
    most: f64,
}

/// What an [`Integrator`] saw in a period.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    pub seconds: f64,
    pub average: f64,
    pub deviation: f64,
    pub most: f64,
}

impl Integrator {
    pub fn new(now: Instant) -> Self {
        Integrator {
            value: 0.0,
            since: now,
            seconds: 0.0,
            sum: 0.0,
            squares: 0.0,
            most: 0.0,
        }
    }

    pub fn set(&mut self, now: Instant, value: f64) {
        self.advance(now);
        self.value = value;
        self.most = self.most.max(value);
    }

    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = self.since.max(now);
        self.seconds += passed;
        self.sum += passed * self.value;
        self.squares += passed * self.value * self.value;
    }

    /// What was seen since the last call.
    pub fn take(&mut self, now: Instant) -> Seen {
        self.advance(now);
        let mut seen = Seen {
            seconds: self.seconds,
            most: self.most,
            ..Seen::default()
        };
        if self.seconds > 0.0 {
            seen.average = self.sum / self.seconds;
            seen.deviation = (self.squares / self.seconds - seen.average * seen.average)
                .max(0.0)
                .sqrt();
        }
        (self.seconds, self.sum, self.squares) = (0.0, 0.0, 0.0);
        self.most = self.value;
        seen
    }
}

/// The demand of a level over the periods so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    pub high: usize,
    pub average: f64,
    pub deviation: f64,
    pub smoothed: f64,
}

impl Demand {
    pub fn update(&mut self, seen: Seen, period: Duration) {
        self.high = seen.most.round() as usize;
        if seen.seconds <= 0.0 {
            return;
        }
        self.average = seen.average;
        self.deviation = seen.deviation;
        let envelope = seen.average + seen.deviation;
        // Nothing wakes an idle server up; the periods it slept through count all the same.
        let periods = (seen.seconds / period.as_secs_f64()).max(1.0);
        let kept = SMOOTHING.powf(periods);
        self.smoothed = envelope.max(kept * self.smoothed + (1.0 - kept) * envelope);
    }
}

/// One taker of a shared sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    pub low: f64,
    pub high: f64,
    pub target: f64,
}

/// Divides `sum` so that every claim gets the same multiple of its target, as far as its bounds allow.
///
/// Returns the parts and that multiple. Bounds that cannot add up to `sum` give the nearest that they can.
pub fn divide(sum: f64, claims: &[Claim]) -> (Vec<f64>, f64) {
    let targets: Vec<f64> = claims.iter().map(|claim| claim.target.max(LEAST)).collect();
    let at = |multiple: f64| -> Vec<f64> {
        claims
            .iter()
            .zip(&targets)
            .map(|(claim, target)| (multiple * target).min(claim.high).max(claim.low))
            .collect()
    };
    // The total grows with the multiple, linearly between the multiples at which a bound is met.
    let mut knots: Vec<f64> = claims
        .iter()
        .zip(&targets)
        .flat_map(|(claim, target)| [claim.low / target, claim.high / target])
        .collect();
    knots.sort_by(f64::total_cmp);
    let mut before = (0.0, at(0.0).iter().sum::<f64>());
    for knot in knots {
        let total = at(knot).iter().sum::<f64>();
        if total >= sum {
            let (from, start) = before;
            let multiple = if total > start {
                from + (knot - from) * ((sum - start) / (total - start)).clamp(0.0, 1.0)
            } else {
                knot
            };
            return (at(multiple), multiple);
        }
        before = (knot, total);
    }
    (at(before.0), before.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shares_follow_targets_within_bounds() {
        let claim = |low, high, target| Claim { low, high, target };
        let cases = [
            (
                10.0,
                vec![claim(0.0, 100.0, 1.0), claim(0.0, 100.0, 1.0)],
                vec![5.0, 5.0],
            ),
            (
                12.0,
                vec![claim(0.0, 100.0, 1.0), claim(0.0, 100.0, 2.0)],
                vec![4.0, 8.0],
            ),
            (
                12.0,
                vec![claim(6.0, 100.0, 6.0), claim(0.0, 100.0, 12.0)],
                vec![6.0, 6.0],
            ),
            (12.0, vec![claim(0.0, 3.0, 6.0), claim(0.0, 100.0, 6.0)], vec![3.0, 9.0]),
            (9.0, vec![claim(4.0, 4.0, 4.0), claim(5.0, 5.0, 5.0)], vec![4.0, 5.0]),
        ];
        for (sum, claims, wanted) in cases {
            let (parts, _) = divide(sum, &claims);
            for (part, wanted) in parts.iter().zip(&wanted) {
                assert!((part - wanted).abs() < 1e-6, "{claims:?}: {parts:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn parts_add_up_and_keep_their_bounds(
            raw in proptest::collection::vec((0.0f64..50.0, 0.0f64..50.0, 0.0f64..50.0), 1..8),
            fraction in 0.0f64..1.0,
        ) {
            let claims: Vec<_> = raw
                .iter()
                .map(|(low, more, extra)| Claim { low: *low, high: low + more, target: low + extra })
                .collect();
            let (low, high): (f64, f64) = claims.iter().fold((0.0, 0.0), |(low, high), c| (low + c.low, high + c.high));
            let sum = low + (high - low) * fraction;
            let (parts, _) = divide(sum, &claims);
            prop_assert!((parts.iter().sum::<f64>() - sum).abs() < 1e-3 * sum.max(1.0));
            for (part, claim) in parts.iter().zip(&claims) {
                prop_assert!(*part >= claim.low - 1e-6 && *part <= claim.high + 1e-6);
            }
        }
    }

    #[test]
    fn demand_is_remembered_for_a_while() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut integrator = Integrator::new(start);
        integrator.set(start, 10.0);
        integrator.set(start + second, 0.0);
        let seen = integrator.take(start + 2 * second);
        assert_eq!((seen.average, seen.deviation, seen.most), (5.0, 5.0, 10.0));
        let mut demand = Demand::default();
        let period = 10 * second;
        demand.update(seen, period);
        assert_eq!((demand.high, demand.smoothed), (10, 10.0));
        demand.update(integrator.take(start + 12 * second), period);
        assert_eq!(demand.high, 0);
        assert!(demand.smoothed > 9.0 && demand.smoothed < 10.0);
        demand.update(integrator.take(start + 3600 * second), period);
        assert!(demand.smoothed < 0.1);
    }
}
