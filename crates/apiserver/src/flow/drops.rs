//! How long turned-away clients of a level are told to stay away: longer while many are, shorter again after.

use std::collections::VecDeque;

/// Seconds; no client is told to wait longer.
const MOST: i64 = 32;

/// The recent history of one level.
#[derive(Debug)]
pub struct Drops {
    /// Second and how many were dropped in it, oldest first; the last is the current one.
    history: VecDeque<(i64, i64)>,
    retry_after: i64,
    raised_at: i64,
}

impl Default for Drops {
    fn default() -> Self {
        Drops {
            history: VecDeque::new(),
            retry_after: 1,
            raised_at: 0,
        }
    }
}

impl Drops {
    /// Counts a drop in this second of Unix time; returns the seconds to name.
    pub fn record(&mut self, second: i64) -> i64 {
        match self.history.back_mut() {
            Some((last, count)) if *last == second => {
                *count += 1;
                return self.retry_after;
            }
            _ => {}
        }
        self.adjust(second);
        self.history.push_back((second, 1));
        let oldest = second - (2 * self.retry_after).min(MOST);
        while self.history.front().is_some_and(|(at, _)| *at < oldest) {
            self.history.pop_front();
        }
        self.retry_after
    }

    fn adjust(&mut self, second: i64) {
        let window = second - self.retry_after..second;
        let dropped: i64 = self
            .history
            .iter()
            .filter(|(at, _)| window.contains(at))
            .map(|(_, count)| count)
            .sum();
        if second - self.raised_at >= self.retry_after && dropped >= 3 * self.retry_after {
            self.retry_after = (2 * self.retry_after).min(MOST);
            self.raised_at = second;
        } else if dropped < self.retry_after && self.retry_after > 1 {
            self.retry_after -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_raises_it_and_quiet_lowers_it() {
        let mut drops = Drops::default();
        let mut told = Vec::new();
        for second in 1000..1010 {
            for _ in 0..20 {
                drops.record(second);
            }
            told.push(drops.retry_after);
        }
        assert_eq!(told, [1, 2, 2, 4, 4, 4, 4, 8, 8, 8]);
        for step in 0..10 {
            drops.record(2000 + 100 * step);
        }
        assert_eq!(drops.retry_after, 1);
    }
}
