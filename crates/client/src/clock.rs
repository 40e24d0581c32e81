//! Wall-clock time as a dependency. Delays use tokio's clock, which tests can pause; the times written into
//! objects come from a [`Clock`], so that a test can make both run together (see [`crate::testing::PausedClock`]).

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

/// Where a component reads the time of day.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Timestamp;

    /// Now as an API timestamp, which has whole seconds.
    fn time(&self) -> Time {
        let now = self.now();
        Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
    }

    fn micro_time(&self) -> MicroTime {
        MicroTime(self.now())
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
