//! Long-running work: named, supervised, drained.
//!
//! Nothing in Sampan calls `tokio::spawn` directly. A [`Tasks`] handle spawns work under a name and
//! says what its end means ([`OnExit`]); one [`Drain`] signal tells every task to finish, and
//! [`Tasks::shutdown`] waits for them with a bound. A task that panics or ends when it must not is
//! reported with its name and, where its policy says so, drains the whole process.
//!
//! Invariants:
//! - a task always has a name, and its end is always logged if it was not asked for;
//! - the drain signal is sticky: a task that looks late still sees it;
//! - a failed `Critical` task makes [`Tasks::failed`] resolve, so the process never lives on half dead.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The signal that asks every task to finish. Cheap to clone, sticky.
#[derive(Clone, Debug, Default)]
pub struct Drain(CancellationToken);

impl Drain {
    /// A signal nobody has given yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// Resolves once draining has begun.
    pub async fn started(&self) {
        self.0.cancelled().await;
    }
    /// Whether draining has begun.
    pub fn is_started(&self) -> bool {
        self.0.is_cancelled()
    }
    /// Begins draining. Idempotent.
    pub fn start(&self) {
        self.0.cancel();
    }
    /// A signal that follows this one and can also be given on its own.
    pub fn child(&self) -> Drain {
        Drain(self.0.child_token())
    }
    /// Runs `future` until it is done or draining begins, whichever is first.
    pub async fn until<F: Future>(&self, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            () = self.started() => None,
            output = future => Some(output),
        }
    }
}

/// What the end of a task means when nobody asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// The process cannot go on without it: report and drain everything.
    Critical,
    /// Its end is part of its life (a connection, one request's stream).
    Expected,
}

/// Spawns and watches tasks. Clones share one set.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    drain: Drain,
    failed: Arc<watch::Sender<Option<String>>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// An empty set with its own drain signal.
    pub fn new() -> Self {
        Self {
            tracker: TaskTracker::new(),
            drain: Drain::new(),
            failed: Arc::new(watch::Sender::new(None)),
        }
    }

    /// A set tied to this one: it drains with it, and can be drained and awaited alone.
    /// A critical failure inside it drains only the child set; the owner watches [`Tasks::failed`].
    pub fn child(&self) -> Tasks {
        Tasks {
            tracker: TaskTracker::new(),
            drain: self.drain.child(),
            failed: Arc::new(watch::Sender::new(None)),
        }
    }

    /// The drain signal of this set.
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }

    /// Runs `future` as the task `name`. The future should end soon after [`Drain::started`].
    #[allow(clippy::disallowed_methods)]
    pub fn spawn<F>(&self, name: impl Into<String>, on_exit: OnExit, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let name = name.into();
        let (drain, failed) = (self.drain.clone(), self.failed.clone());
        self.tracker.spawn(async move {
            let outcome = std::panic::AssertUnwindSafe(future).catch_unwind().await;
            let reason = match outcome {
                Err(panic) => format!("task {name} panicked: {}", panic_text(&panic)),
                Ok(()) if on_exit == OnExit::Critical && !drain.is_started() => {
                    format!("task {name} ended although it must not")
                }
                Ok(()) => return,
            };
            tracing::error!("{reason}");
            if on_exit == OnExit::Critical {
                failed.send_if_modified(|slot| {
                    slot.is_none() && {
                        *slot = Some(reason);
                        true
                    }
                });
                drain.start();
            }
        })
    }

    /// Like [`Tasks::spawn`], but the future is dropped at its next await once draining begins.
    pub fn spawn_until_drain<F>(&self, name: impl Into<String>, on_exit: OnExit, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let drain = self.drain.clone();
        self.spawn(name, on_exit, async move {
            let _finished_or_drained = drain.until(future).await;
        })
    }

    /// Resolves with the reason when a critical task of this set has failed.
    pub async fn failed(&self) -> String {
        let mut seen = self.failed.subscribe();
        let reason = match seen.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        };
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Begins draining and waits for every task, at most `bound`. Returns how many were left.
    pub async fn shutdown(&self, bound: Duration) -> usize {
        self.drain.start();
        self.tracker.close();
        let _in_time = tokio::time::timeout(bound, self.tracker.wait()).await;
        self.tracker.len()
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_critical_task_that_ends_drains_the_set_and_says_why() {
        let tasks = Tasks::new();
        tasks.spawn("leaver", OnExit::Critical, async {});
        assert!(tasks.failed().await.contains("leaver"));
        assert!(tasks.drain().is_started());
    }

    #[tokio::test]
    async fn shutdown_waits_for_tasks_and_counts_those_that_stay() {
        let tasks = Tasks::new();
        let drain = tasks.drain();
        tasks.spawn("good", OnExit::Critical, async move { drain.started().await });
        tasks.spawn("stubborn", OnExit::Expected, std::future::pending());
        assert_eq!(tasks.shutdown(Duration::from_millis(50)).await, 1);
    }

    #[tokio::test]
    async fn a_panic_in_an_expected_task_is_contained() {
        let tasks = Tasks::new();
        let _joined = tasks.spawn("thrower", OnExit::Expected, async { panic!("boom") }).await;
        assert!(!tasks.drain().is_started());
        assert_eq!(tasks.shutdown(Duration::from_secs(1)).await, 0);
    }
}
