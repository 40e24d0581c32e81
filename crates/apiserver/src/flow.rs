//! Flow control: how many requests are worked on at once, and how many may wait for their turn.
//!
//! Reading and writing have limits of their own, so that a storm of one does not starve the other. Watches and
//! streams are not counted. Beyond the waiting line a client is told to come back (429).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sampan_api::status::Status;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{Refusal, refuse};

/// How many may wait per lane, and how long.
const LINE: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(15);

struct Lane {
    seats: Semaphore,
    waiting: AtomicUsize,
}

pub struct Flow {
    reading: Lane,
    writing: Lane,
    patience: Duration,
}

impl Flow {
    pub fn new(reading: usize, writing: usize) -> Self {
        let lane = |seats| Lane {
            seats: Semaphore::new(seats),
            waiting: AtomicUsize::new(0),
        };
        Flow {
            reading: lane(reading),
            writing: lane(writing),
            patience: PATIENCE,
        }
    }

    /// A seat, now or after a wait.
    pub async fn enter(&self, read_only: bool) -> Result<SemaphorePermit<'_>, Refusal> {
        let lane = if read_only { &self.reading } else { &self.writing };
        if let Ok(permit) = lane.seats.try_acquire() {
            return Ok(permit);
        }
        let _place = Place::take(&lane.waiting).ok_or_else(full)?;
        match tokio::time::timeout(self.patience, lane.seats.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(full()),
        }
    }
}

fn full() -> Refusal {
    refuse(Status::too_many_requests("too many requests, please try again", 1))
}

/// A place in the waiting line, given up when dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Option<Self> {
        if waiting.fetch_add(1, Ordering::AcqRel) >= LINE {
            waiting.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Place(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_lanes_are_separate_and_patience_ends() {
        let flow = Flow {
            patience: Duration::from_millis(20),
            ..Flow::new(1, 1)
        };
        let held = flow.enter(false).await.unwrap();
        let _reading = flow.enter(true).await.unwrap();
        assert_eq!(flow.enter(false).await.err().unwrap().code, 429);
        drop(held);
        assert!(flow.enter(false).await.is_ok());
    }
}
