//! An API in memory for tests of components: CRUD, patches, selectors, finalizers, watches, discovery.
//!
//! It knows just enough of the Kubernetes API for controllers to live on it: no validation, no admission, no
//! authorization. Pods bound to a node keep existing with a deletion timestamp until somebody deletes them with a grace
//! period of 0, as a node's agent would. Tests can make writes fail ([`FakeApi::fail_next`]), cut watches
//! ([`FakeApi::disconnect`]), forget history ([`FakeApi::compact`]) and read what was asked ([`FakeApi::actions`]).

mod fake;
mod http;
mod patch;
mod resources;

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

pub use fake::{Action, FakeApi};
pub use http::Reply;

use crate::Clock;

/// A wall clock that runs with tokio's clock, so that paused time moves both.
#[derive(Clone, Copy, Debug)]
pub struct PausedClock {
    begun: Instant,
    epoch: Timestamp,
}

impl Default for PausedClock {
    fn default() -> Self {
        PausedClock {
            begun: Instant::now(),
            epoch: Timestamp::from_second(1_800_000_000).unwrap_or_default(),
        }
    }
}

impl Clock for PausedClock {
    fn now(&self) -> Timestamp {
        let passed = i64::try_from(self.begun.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.epoch
            .checked_add(jiff::SignedDuration::from_millis(passed))
            .unwrap_or(self.epoch)
    }
}

/// Waits until `check` gives a value, for at most ten seconds; panics with `what` after that.
pub async fn eventually<T, F, Fut>(what: &str, mut check: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
