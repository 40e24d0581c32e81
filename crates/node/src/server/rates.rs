//! CPU use over a window, of counters that only grow.
//!
//! Upstream reads every counter every ten seconds whether or not somebody asks. Here nothing happens until somebody
//! does: the window is since the question before, and where that is too long ago (or there was none) a moment is waited
//! for a second reading. Readings close to each other are answered with what was found last.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// How old a reading may be to begin a window.
const STALE: SignedDuration = SignedDuration::from_secs(60);
/// The shortest window worth anew.
const SHORTEST: SignedDuration = SignedDuration::from_millis(500);
/// The window of who is asked for the first time.
pub const FIRST: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Timestamp,
    /// Nanoseconds of all cores.
    used: u64,
    /// Billionths of a core, over the window that ended here.
    rate: Option<u64>,
}

/// The last readings, by what they are of.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<String, Reading>>);

impl Rates {
    /// Whether a reading taken at that time would be the end of a window.
    pub fn knows(&self, of: &str, at: Timestamp) -> bool {
        let readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = readings.get(of);
        begun.is_some_and(|begun| at.duration_since(begun.at) < STALE && (begun.rate.is_some() || at > begun.at))
    }

    /// Takes a reading; the use over the window it ends, if it ends one.
    pub fn take(&self, of: &str, at: Timestamp, used: u64) -> Option<u64> {
        let mut readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rate = None;
        if let Some(before) = readings.get(of) {
            let window = at.duration_since(before.at);
            if used >= before.used && !window.is_negative() && window < STALE {
                if window < SHORTEST && before.rate.is_some() {
                    return before.rate;
                }
                let nanos = u128::try_from(window.as_nanos()).unwrap_or_default();
                let all = u128::from(used - before.used) * 1_000_000_000;
                rate = all
                    .checked_div(nanos)
                    .map(|rate| u64::try_from(rate).unwrap_or(u64::MAX));
            }
        }
        readings.insert(of.to_owned(), Reading { at, used, rate });
        rate
    }

    /// Forgets what nobody has asked for lately: what is gone.
    pub fn forget(&self, now: Timestamp) {
        let mut readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        readings.retain(|_, reading| now.duration_since(reading.at) < STALE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_time_between_readings() {
        let at = |milliseconds: i64| Timestamp::from_millisecond(1_000_000 + milliseconds).unwrap();
        let rates = Rates::default();
        let second = 1_000_000_000u64;
        assert!(!rates.knows("c", at(0)));
        assert_eq!(rates.take("c", at(0), 5 * second), None);
        assert!(rates.knows("c", at(1)) && !rates.knows("d", at(1)));
        // Half a core for two seconds.
        assert_eq!(rates.take("c", at(2_000), 6 * second), Some(second / 2));
        // Too soon to say anything new; the window goes on.
        assert_eq!(rates.take("c", at(2_100), 7 * second), Some(second / 2));
        assert_eq!(rates.take("c", at(4_000), 10 * second), Some(2 * second));
        // A counter that began anew, a clock that went back, and a long silence begin anew.
        assert_eq!(rates.take("c", at(6_000), second), None);
        assert_eq!(rates.take("c", at(7_000), 2 * second), Some(second));
        assert_eq!(rates.take("c", at(5_000), 3 * second), None);
        assert!(!rates.knows("c", at(65_001)));
        assert_eq!(rates.take("c", at(65_001), 4 * second), None);
        rates.forget(at(130_000));
        assert!(!rates.knows("c", at(65_002)));
    }
}
