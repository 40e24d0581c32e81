//! The worker loop of a controller: keys out of a queue, through an idempotent `sync`, with retries.
//!
//! Invariants: a key is never in two workers at once; an error means a later retry and a log line; a panic in
//! `sync` is an error of that key alone. All workers of a controller share one task: a controller is bound by the
//! API's answers, not by CPU, and this way the process needs one task per controller however many workers it has.

use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use futures::future::join_all;
use sampan_tasks::Drain;

use crate::WorkQueue;

/// Runs `sync` over the keys of `queue` with `workers` at a time until `drain`. Work begun is finished first.
pub async fn run_controller<K, F, Fut, E>(name: &str, queue: WorkQueue<K>, workers: usize, sync: F, drain: Drain)
where
    K: Clone + Eq + Hash + fmt::Display + Send + Sync,
    F: Fn(K) -> Fut + Sync,
    Fut: Future<Output = Result<(), E>> + Send,
    E: fmt::Display + Send,
{
    let stop = async {
        drain.started().await;
        queue.drain();
    };
    let work = join_all((0..workers.max(1)).map(|_| worker(name, &queue, &sync)));
    tokio::join!(stop, work);
}

async fn worker<K, F, Fut, E>(name: &str, queue: &WorkQueue<K>, sync: &F)
where
    K: Clone + Eq + Hash + fmt::Display,
    F: Fn(K) -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: fmt::Display,
{
    while let Some(key) = queue.get().await {
        let outcome = AssertUnwindSafe(async { sync(key.clone()).await }).catch_unwind().await;
        match outcome {
            Ok(Ok(())) => queue.forget(&key),
            Ok(Err(error)) => {
                // The first failures of a key are usually conflicts and races that the next try settles.
                if queue.failures(&key) < 6 {
                    tracing::debug!(controller = name, %key, %error, "sync failed, will retry");
                } else {
                    tracing::warn!(controller = name, %key, %error, "sync keeps failing, will retry");
                }
                queue.add_rate_limited(key.clone());
            }
            Err(_) => {
                tracing::error!(controller = name, %key, "sync panicked, will retry");
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
        // A sync that never waits must not keep its siblings from running.
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn errors_and_panics_are_retried_and_contained() {
        let queue: WorkQueue<String> = WorkQueue::default();
        let drain = Drain::new();
        let calls = Arc::new(AtomicUsize::new(0));
        queue.add("k".into());
        let (counted, stop) = (Arc::clone(&calls), drain.clone());
        let sync = move |_key: String| {
            let (calls, stop) = (Arc::clone(&counted), stop.clone());
            async move {
                match calls.fetch_add(1, SeqCst) {
                    0 => Err("no luck"),
                    1 => panic!("worse"),
                    _ => {
                        stop.start();
                        Ok(())
                    }
                }
            }
        };
        run_controller("test", queue.clone(), 3, sync, drain).await;
        assert_eq!(calls.load(SeqCst), 3);
        assert_eq!(queue.failures(&"k".into()), 0);
    }
}
