//! How fast a number of replicas may change: limits, rates and stabilization, over the short memory of one autoscaler.
//!
//! Pure but for [`History`], which remembers what was recommended and done; it is kept by a clock that only goes
//! forward, so that a machine's clock that is set does not matter.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules};
use tokio::time::Instant;

/// A reason and a message, as conditions have them.
pub(super) type Why = (&'static str, &'static str);

const WITHIN: Why = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FAST_UP: Why = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const TOO_FAST_DOWN: Why = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);
const TOO_MANY: Why = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const TOO_FEW: Why = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const READY: Why = ("ReadyForNewScale", "recommended size matches current size");
const STABLE_UP: Why = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const STABLE_DOWN: Why = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);

#[derive(Clone, Copy, Debug)]
struct Noted {
    value: i32,
    at: Instant,
}

/// What one autoscaler recommended and did lately.
#[derive(Debug, Default)]
pub(super) struct History {
    recommended: Vec<Noted>,
    grown: Vec<Noted>,
    shrunk: Vec<Noted>,
}

/// What was made of a recommendation.
#[derive(Debug, PartialEq)]
pub(super) struct Decision {
    pub(super) replicas: i32,
    /// For `AbleToScale`.
    pub(super) able: Why,
    /// For `ScalingLimited`, and whether it is.
    pub(super) limited: (bool, Why),
}

/// The recommendation and what surrounds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) min: i32,
    pub(super) max: i32,
    pub(super) current: i32,
    pub(super) desired: i32,
}

/// The rules of both directions, completed.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) up: Direction,
    pub(super) down: Direction,
}

#[derive(Clone, Debug)]
pub(super) struct Direction {
    window: Duration,
    select: Select,
    policies: Vec<HPAScalingPolicy>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Select {
    Most,
    Least,
    Disabled,
}

fn policy(kind: &str, value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy {
        type_: kind.into(),
        value,
        period_seconds: 15,
    }
}

impl Rules {
    /// What is not said is as upstream's defaults say it; `downscale` is how long a recommendation to shrink waits.
    pub(super) fn of(up: Option<&HPAScalingRules>, down: Option<&HPAScalingRules>, downscale: Duration) -> Self {
        let all = || vec![policy("Percent", 100)];
        let more = || vec![policy("Pods", 4), policy("Percent", 100)];
        Rules {
            up: Direction::of(up, Duration::ZERO, more),
            down: Direction::of(down, downscale, all),
        }
    }
}

impl Direction {
    fn of(rules: Option<&HPAScalingRules>, window: Duration, policies: impl Fn() -> Vec<HPAScalingPolicy>) -> Self {
        let seconds = rules.and_then(|rules| rules.stabilization_window_seconds);
        let given = rules.and_then(|rules| rules.policies.clone());
        Direction {
            window: seconds.map_or(window, |seconds| {
                Duration::from_secs(seconds.max(0).unsigned_abs().into())
            }),
            select: match rules.and_then(|rules| rules.select_policy.as_deref()) {
                Some("Disabled") => Select::Disabled,
                Some("Min") => Select::Least,
                _ => Select::Most,
            },
            policies: given.filter(|given| !given.is_empty()).unwrap_or_else(policies),
        }
    }

    fn longest(&self) -> Duration {
        let periods = self.policies.iter().map(period);
        periods.max().unwrap_or_default()
    }
}

fn period(policy: &HPAScalingPolicy) -> Duration {
    Duration::from_secs(policy.period_seconds.max(0).unsigned_abs().into())
}

impl History {
    /// Before anything was recommended, what is there is as if it had been.
    pub(super) fn begin(&mut self, current: i32, now: Instant) {
        if self.recommended.is_empty() {
            self.recommend(current, now);
        }
    }

    fn recommend(&mut self, value: i32, at: Instant) {
        self.recommended.push(Noted { value, at });
    }

    /// Without rules: shrinks to the highest recommendation of the last while, grows to twice the size (or to 4).
    pub(super) fn plain(&mut self, wish: Wish, downscale: Duration, now: Instant) -> Decision {
        self.recommended.retain(|noted| now - noted.at <= downscale);
        let highest = self.recommended.iter().map(|noted| noted.value).max();
        let stable = highest.unwrap_or(wish.desired).max(wish.desired);
        self.recommend(wish.desired, now);
        let able = if stable == wish.desired { READY } else { STABLE_DOWN };
        let fastest = wish.current.saturating_mul(2).max(4);
        let (most, why) = if wish.max > fastest {
            (fastest, TOO_FAST_UP)
        } else {
            (wish.max, TOO_MANY)
        };
        let (replicas, why) = if stable < wish.min {
            (wish.min, TOO_FEW)
        } else if stable > most {
            (most, why)
        } else {
            (stable, WITHIN)
        };
        Decision {
            replicas,
            able,
            limited: (replicas != stable, why),
        }
    }

    /// With rules.
    pub(super) fn by_rules(&mut self, wish: Wish, rules: &Rules, now: Instant) -> Decision {
        let stable = self.stabilized(wish, rules, now);
        let able = match stable == wish.desired {
            true => READY,
            false if wish.desired >= wish.current => STABLE_UP,
            false => STABLE_DOWN,
        };
        let (replicas, why) = self.limited(
            Wish {
                desired: stable,
                ..wish
            },
            rules,
            now,
        );
        Decision {
            replicas,
            able,
            limited: (replicas != stable, why),
        }
    }

    fn stabilized(&mut self, wish: Wish, rules: &Rules, now: Instant) -> i32 {
        let (up, down) = (rules.up.window, rules.down.window);
        self.recommended.retain(|noted| now - noted.at <= up.max(down));
        let within = |window: Duration| {
            let lately = self.recommended.iter().filter(move |noted| now - noted.at < window);
            lately.map(|noted| noted.value)
        };
        let lowest = within(up).fold(wish.desired, i32::min);
        let highest = within(down).fold(wish.desired, i32::max);
        self.recommend(wish.desired, now);
        wish.current.max(lowest).min(highest)
    }

    fn limited(&self, wish: Wish, rules: &Rules, now: Instant) -> (i32, Why) {
        if wish.desired > wish.current {
            let fastest = self.most(wish.current, &rules.up, now).max(wish.current);
            let (most, why) = if wish.max > fastest {
                (fastest, TOO_FAST_UP)
            } else {
                (wish.max, TOO_MANY)
            };
            if wish.desired > most {
                return (most, why);
            }
        } else if wish.desired < wish.current {
            let fastest = self.fewest(wish.current, &rules.down, now).min(wish.current);
            let (least, why) = if wish.min < fastest {
                (fastest, TOO_FAST_DOWN)
            } else {
                (wish.min, TOO_FEW)
            };
            if wish.desired < least {
                return (least, why);
            }
        }
        (wish.desired, WITHIN)
    }

    /// How many there were when a period began.
    fn at_beginning(&self, current: i32, policy: &HPAScalingPolicy, now: Instant) -> i32 {
        let within = |all: &[Noted]| {
            let lately = all.iter().filter(|noted| now - noted.at < period(policy));
            lately.fold(0i32, |sum, noted| sum.saturating_add(noted.value))
        };
        current
            .saturating_sub(within(&self.grown))
            .saturating_add(within(&self.shrunk))
    }

    fn most(&self, current: i32, rules: &Direction, now: Instant) -> i32 {
        let proposals = rules.policies.iter().map(|policy| {
            let base = self.at_beginning(current, policy, now);
            match policy.type_.as_str() {
                "Pods" => base.saturating_add(policy.value),
                // Rounded up, or few would never grow.
                _ => (f64::from(base) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
            }
        });
        match rules.select {
            Select::Disabled => current,
            Select::Least => proposals.min().unwrap_or(current),
            Select::Most => proposals.max().unwrap_or(current),
        }
    }

    fn fewest(&self, current: i32, rules: &Direction, now: Instant) -> i32 {
        let proposals = rules.policies.iter().map(|policy| {
            let base = self.at_beginning(current, policy, now);
            match policy.type_.as_str() {
                "Pods" => base.saturating_sub(policy.value),
                _ => (f64::from(base) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
            }
        });
        match rules.select {
            Select::Disabled => current,
            Select::Least => proposals.max().unwrap_or(current),
            Select::Most => proposals.min().unwrap_or(current),
        }
    }

    /// A change that was made.
    pub(super) fn scaled(&mut self, from: i32, to: i32, rules: &Rules, now: Instant) {
        let (changes, longest) = if to > from {
            (&mut self.grown, rules.up.longest())
        } else {
            (&mut self.shrunk, rules.down.longest())
        };
        changes.retain(|noted| now - noted.at <= longest);
        let value = to.saturating_sub(from).saturating_abs();
        changes.push(Noted { value, at: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(300);

    fn wish(min: i32, max: i32, current: i32, desired: i32) -> Wish {
        Wish {
            min,
            max,
            current,
            desired,
        }
    }

    fn rules(window: Option<i32>, select: &str, policies: &[(&str, i32, i32)]) -> HPAScalingRules {
        let policy = |(kind, value, period): &(&str, i32, i32)| HPAScalingPolicy {
            type_: (*kind).into(),
            value: *value,
            period_seconds: *period,
        };
        HPAScalingRules {
            stabilization_window_seconds: window,
            select_policy: Some(select.into()),
            policies: Some(policies.iter().map(policy).collect()),
            tolerance: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_rules() {
        let now = Instant::now();
        let decide = |wish| {
            let decision = History::default().plain(wish, WAIT, now);
            (decision.replicas, decision.limited.0, decision.limited.1.0)
        };
        assert_eq!(decide(wish(1, 10, 3, 5)), (5, false, "DesiredWithinRange"));
        assert_eq!(decide(wish(1, 10, 3, 50)), (6, true, "ScaleUpLimit"));
        assert_eq!(decide(wish(1, 100, 1, 50)), (4, true, "ScaleUpLimit"));
        assert_eq!(decide(wish(1, 5, 3, 50)), (5, true, "TooManyReplicas"));
        assert_eq!(decide(wish(2, 5, 3, 0)), (2, true, "TooFewReplicas"));
        // Fewer are wanted, but not for long enough.
        let mut history = History::default();
        history.begin(8, now);
        let decision = history.plain(wish(1, 10, 8, 3), WAIT, now);
        assert_eq!((decision.replicas, decision.able.0), (8, "ScaleDownStabilized"));
        let later = now + Duration::from_secs(301);
        let decision = history.plain(wish(1, 10, 8, 2), WAIT, later);
        assert_eq!(
            (decision.replicas, decision.able.0),
            (2, "ReadyForNewScale"),
            "{history:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn rates() {
        let now = Instant::now();
        let up = |select: &str, policies: &[(&str, i32, i32)]| {
            Rules::of(Some(&rules(Some(0), select, policies)), None, WAIT)
        };
        let down = |select: &str, policies: &[(&str, i32, i32)]| {
            Rules::of(None, Some(&rules(Some(0), select, policies)), WAIT)
        };
        let both: &[(&str, i32, i32)] = &[("Pods", 4, 60), ("Percent", 50, 60)];
        let cases = [
            (up("Max", both), wish(1, 100, 10, 50), 15, "ScaleUpLimit"),
            (up("Min", both), wish(1, 100, 10, 50), 14, "ScaleUpLimit"),
            (up("Disabled", both), wish(1, 100, 10, 50), 10, "ScaleUpLimit"),
            (up("Max", both), wish(1, 12, 10, 50), 12, "TooManyReplicas"),
            (up("Max", &[("Percent", 10, 60)]), wish(1, 100, 1, 9), 2, "ScaleUpLimit"),
            (up("Max", both), wish(1, 100, 10, 11), 11, "DesiredWithinRange"),
            (down("Max", both), wish(1, 100, 10, 1), 5, "ScaleDownLimit"),
            (down("Min", both), wish(1, 100, 10, 1), 6, "ScaleDownLimit"),
            (down("Disabled", both), wish(1, 100, 10, 1), 10, "ScaleDownLimit"),
            (down("Max", both), wish(7, 100, 10, 1), 7, "TooFewReplicas"),
            (Rules::of(None, None, WAIT), wish(1, 100, 1, 50), 5, "ScaleUpLimit"),
            (Rules::of(None, None, WAIT), wish(1, 100, 10, 50), 20, "ScaleUpLimit"),
        ];
        for (rules, wish, replicas, why) in cases {
            let decision = History::default().by_rules(wish, &rules, now);
            assert_eq!(
                (decision.replicas, decision.limited.1.0),
                (replicas, why),
                "{rules:?} {wish:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_done_in_the_period_counts() {
        let start = Instant::now();
        let rules = Rules::of(Some(&rules(Some(0), "Max", &[("Pods", 4, 60)])), None, WAIT);
        let mut history = History::default();
        history.begin(2, start);
        let mut size = 2;
        let mut sizes = Vec::new();
        for step in 0..10u64 {
            let now = start + Duration::from_secs(15 * step);
            let replicas = history.by_rules(wish(1, 100, size, 50), &rules, now).replicas;
            if replicas != size {
                history.scaled(size, replicas, &rules, now);
                size = replicas;
            }
            sizes.push(size);
        }
        assert_eq!(sizes, [6, 6, 6, 6, 10, 10, 10, 10, 14, 14]);
    }

    #[tokio::test(start_paused = true)]
    async fn recommendations_are_stabilized_both_ways() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let policies: &[(&str, i32, i32)] = &[("Pods", 100, 15)];
        let own = Rules::of(
            Some(&rules(Some(60), "Max", policies)),
            Some(&rules(Some(120), "Max", policies)),
            WAIT,
        );
        let mut history = History::default();
        history.begin(10, start);
        let mut decide = |seconds, desired| {
            let decision = history.by_rules(wish(1, 100, 10, desired), &own, at(seconds));
            (decision.replicas, decision.able.0)
        };
        assert_eq!(decide(10, 15), (10, "ScaleUpStabilized"));
        assert_eq!(decide(30, 20), (10, "ScaleUpStabilized"));
        assert_eq!(decide(65, 20), (15, "ScaleUpStabilized"));
        assert_eq!(decide(66, 5), (10, "ScaleDownStabilized"));
        assert_eq!(decide(400, 5), (5, "ReadyForNewScale"));
    }
}
