//! Two samples of one node, and the rates between them.
//!
//! A rate needs two samples. Whoever asks takes the second: the first was taken when somebody asked before, if that is
//! neither just now nor long ago. Where there is none the first is taken now and the second a moment later, so the
//! very first answer is there after [`FIRST`], for a window that short. Between answers nothing happens.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::sample::{Point, Sample};

/// How old figures may be that are told again.
const FRESH: Duration = Duration::from_secs(10);
/// How old a sample may be to be the beginning of a window.
const STALE: Duration = Duration::from_secs(60);
/// The window when nobody has asked before.
const FIRST: Duration = Duration::from_secs(1);
/// The shortest time a container may have run to be measured from its start.
const SHORTEST: SignedDuration = SignedDuration::from_secs(1);
/// How long a node that did not answer is left alone; it doubles with every time.
const REST: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(120));

/// What is remembered of one node.
#[derive(Default)]
pub struct Series {
    before: Option<Taken>,
    last: Option<Taken>,
    rest: Option<(Instant, Duration)>,
}

#[derive(Clone)]
struct Taken {
    at: Instant,
    sample: Arc<Sample>,
}

/// The two ends of a window.
#[derive(Clone)]
pub struct Window {
    before: Arc<Sample>,
    last: Arc<Sample>,
}

/// Use over a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Of one core, in billionths.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
    /// The end of the window.
    pub at: Timestamp,
    pub window: SignedDuration,
}

impl Series {
    /// A window that ends now or was told lately; `None` while the node does not answer.
    pub async fn window<F, E>(&mut self, take: impl Fn() -> F) -> Option<Window>
    where
        F: Future<Output = Result<Sample, E>>,
        E: std::fmt::Display,
    {
        let now = Instant::now();
        if self.last.as_ref().is_some_and(|last| now - last.at >= STALE) {
            (self.before, self.last) = (None, None);
        }
        let old = self.last.as_ref().is_none_or(|last| now - last.at >= FRESH);
        if old {
            self.take(&take).await?;
        }
        if self.before.is_none() || !self.counts_on() {
            tokio::time::sleep(FIRST).await;
            self.take(&take).await?;
        }
        Some(Window {
            before: self.before.as_ref()?.sample.clone(),
            last: self.last.as_ref()?.sample.clone(),
        })
    }

    async fn take<F, E>(&mut self, take: &impl Fn() -> F) -> Option<()>
    where
        F: Future<Output = Result<Sample, E>>,
        E: std::fmt::Display,
    {
        let now = Instant::now();
        if self.rest.is_some_and(|(until, _)| now < until) {
            return None;
        }
        match take().await {
            Ok(sample) => {
                let new = Taken {
                    at: Instant::now(),
                    sample: Arc::new(sample),
                };
                self.before = self.last.replace(new);
                self.rest = None;
                Some(())
            }
            Err(error) => {
                let rest = self.rest.map_or(REST.0, |(_, rest)| (rest * 2).min(REST.1));
                tracing::debug!(%error, ?rest, "a node does not say what it uses");
                self.rest = Some((Instant::now() + rest, rest));
                None
            }
        }
    }

    /// Whether the node's own clock and counters went on between the samples: they do not where it was started anew or
    /// its clock was set back.
    fn counts_on(&self) -> bool {
        let cpu = |taken: &Option<Taken>| taken.as_ref().and_then(|taken| taken.sample.node.cpu);
        match (cpu(&self.before), cpu(&self.last)) {
            (Some((before, from)), Some((now, to))) => now >= before && to > from,
            _ => true,
        }
    }
}

impl Window {
    pub fn node(&self) -> Option<Rate> {
        rate(Some(&self.before.node), &self.last.node)
    }

    /// The containers of a Pod that run, if all of them could be measured.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Vec<(&str, Rate)>> {
        let before = self.before.pod(namespace, name);
        let containers = self.last.pod(namespace, name)?;
        let measured = containers.iter().map(|(container, now)| {
            let before = before.and_then(|before| before.get(container));
            Some((container.as_str(), rate(before, now)?))
        });
        measured.collect()
    }
}

/// The rate between two points of one container. One that was started meanwhile is measured from its start.
fn rate(before: Option<&Point>, now: &Point) -> Option<Rate> {
    let ((used, at), memory) = (now.cpu?, now.memory?);
    let earlier = before.and_then(|before| before.cpu);
    let anew = |from: Timestamp| now.started.filter(|started| *started > from);
    let (from, seconds) = match earlier {
        Some((_, read)) if anew(read).is_some() => (anew(read)?, used),
        Some((before, read)) => (read, used - before),
        None => (now.started?, used),
    };
    let window = at.duration_since(from);
    let shortest = match earlier {
        Some((_, read)) if read == from => SignedDuration::from_millis(1),
        _ => SHORTEST,
    };
    if window < shortest || seconds < 0.0 {
        return None;
    }
    Some(Rate {
        cpu: (seconds / window.as_secs_f64() * 1e9) as u64,
        memory: memory as u64,
        at,
        window,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn point(cpu: f64, at: i64, started: i64) -> Point {
        Point {
            cpu: Some((cpu, second(at))),
            memory: Some(100.0),
            started: Some(second(started)),
        }
    }

    #[test]
    fn rates_are_of_one_life_of_a_container() {
        let of = |before: Option<Point>, now: Point| {
            let rate = rate(before.as_ref(), &now)?;
            Some((rate.cpu, rate.window.as_secs()))
        };
        let now = || point(30.0, 120, 50);
        // Through the whole window.
        assert_eq!(of(Some(point(20.0, 100, 50)), now()), Some((500_000_000, 20)));
        // Started in the window, under a name that was there before or not.
        assert_eq!(
            of(Some(point(2000.0, 100, 50)), point(5.0, 120, 110)),
            Some((500_000_000, 10))
        );
        assert_eq!(of(None, point(5.0, 120, 110)), Some((500_000_000, 10)));
        // Just started; counters that went back; a clock that did; the same sample twice.
        assert_eq!(of(None, point(5.0, 120, 120)), None);
        assert_eq!(of(Some(point(31.0, 100, 50)), now()), None);
        assert_eq!(of(Some(point(20.0, 130, 50)), now()), None);
        assert_eq!(of(Some(now()), now()), None);
        // Nothing is known of memory, or of when it started.
        assert_eq!(of(None, Point { memory: None, ..now() }), None);
        assert_eq!(of(None, Point { started: None, ..now() }), None);
    }

    struct Machine {
        asked: Cell<u32>,
        start: Instant,
        fails: Cell<bool>,
    }

    impl Machine {
        async fn window(&self, series: &mut Series) -> Option<(u64, i64)> {
            let take = || async {
                self.asked.set(self.asked.get() + 1);
                if self.fails.get() {
                    return Err("away");
                }
                let seconds = self.start.elapsed().as_secs_f64();
                let sample = Sample {
                    node: Point {
                        cpu: Some((seconds / 2.0, second(1000) + self.start.elapsed())),
                        memory: Some(1.0),
                        started: None,
                    },
                    ..Sample::default()
                };
                Ok(sample)
            };
            let rate = series.window(take).await?.node()?;
            Some((rate.cpu / 1_000_000, rate.window.as_secs()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn samples_are_taken_when_somebody_asks() {
        let machine = Machine {
            asked: Cell::new(0),
            start: Instant::now(),
            fails: Cell::new(false),
        };
        let series = &mut Series::default();
        let pass = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        assert_eq!(machine.window(series).await, Some((500, 1)));
        assert_eq!(machine.asked.get(), 2);
        pass(5).await;
        assert_eq!(machine.window(series).await, Some((500, 1)), "told again");
        assert_eq!(machine.asked.get(), 2);
        pass(15).await;
        assert_eq!(machine.window(series).await, Some((500, 20)));
        assert_eq!(machine.asked.get(), 3);
        pass(3600).await;
        assert_eq!(machine.window(series).await, Some((500, 1)), "nobody asked for long");
        assert_eq!(machine.asked.get(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_answer_is_left_alone() {
        let machine = Machine {
            asked: Cell::new(0),
            start: Instant::now(),
            fails: Cell::new(true),
        };
        let series = &mut Series::default();
        for _ in 0..5 {
            assert_eq!(machine.window(series).await, None);
        }
        assert_eq!(machine.asked.get(), 1);
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            machine.window(series).await;
        }
        assert!((5..=9).contains(&machine.asked.get()), "{}", machine.asked.get());
        machine.fails.set(false);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(machine.window(series).await, Some((500, 1)));
    }
}
