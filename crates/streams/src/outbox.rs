//! What waits to be sent on one connection: written by many streams, taken by one writer task.
//!
//! Data waits for room ([`Outbox::poll_push`]); control messages never do ([`Outbox::push`]), so that a full queue
//! cannot keep a stream from ending. Order is kept across both, which is what makes "data, then its end" true.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

/// Bytes of data that may wait.
const MAX_BYTES: usize = 512 * 1024;
/// A peer that makes us answer more than this without reading the answers is up to no good.
const MAX_ITEMS: usize = 16 * 1024;

/// The connection takes nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

impl From<Closed> for std::io::Error {
    fn from(_: Closed) -> Self {
        std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the connection is closed")
    }
}

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<(T, usize)>,
    bytes: usize,
    closed: bool,
    waiting: Vec<Waker>,
}

#[derive(Debug)]
pub(crate) struct Outbox<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

impl<T> Outbox<T> {
    pub fn new() -> Self {
        Outbox {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                bytes: 0,
                closed: false,
                waiting: Vec::new(),
            }),
            changed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a control message, room or not.
    pub fn push(&self, item: T) -> Result<(), Closed> {
        let mut state = self.state();
        if state.closed || state.queue.len() >= MAX_ITEMS {
            return Err(Closed);
        }
        state.queue.push_back((item, 0));
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Adds `weight` bytes of data once there is room; `make` is called at most once, when there is.
    pub fn poll_push(&self, cx: &mut Context<'_>, weight: usize, make: impl FnOnce() -> T) -> Poll<Result<(), Closed>> {
        let mut state = self.state();
        if state.closed {
            return Poll::Ready(Err(Closed));
        }
        // An empty queue takes anything, so that nothing waits for ever.
        if state.bytes > 0 && state.bytes + weight > MAX_BYTES {
            if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.waiting.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        state.queue.push_back((make(), weight));
        state.bytes += weight;
        drop(state);
        self.changed.notify_one();
        Poll::Ready(Ok(()))
    }

    fn take(&self) -> Poll<Option<T>> {
        let mut state = self.state();
        let Some((item, weight)) = state.queue.pop_front() else {
            return if state.closed { Poll::Ready(None) } else { Poll::Pending };
        };
        state.bytes -= weight;
        let waiting = if state.bytes <= MAX_BYTES / 2 {
            std::mem::take(&mut state.waiting)
        } else {
            Vec::new()
        };
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        Poll::Ready(Some(item))
    }

    /// The next message if one is waiting.
    pub fn try_next(&self) -> Option<T> {
        match self.take() {
            Poll::Ready(item) => item,
            Poll::Pending => None,
        }
    }

    /// The next message; `None` once closed and empty. For the one writer.
    pub async fn next(&self) -> Option<T> {
        loop {
            let changed = self.changed.notified();
            if let Poll::Ready(item) = self.take() {
                return item;
            }
            changed.await;
        }
    }

    /// Takes nothing more; what is here is still sent.
    pub fn close(&self) {
        self.end(false);
    }

    /// Takes nothing more and forgets what is here.
    pub fn abort(&self) {
        self.end(true);
    }

    fn end(&self, forget: bool) {
        let mut state = self.state();
        state.closed = true;
        if forget {
            state.queue.clear();
            state.bytes = 0;
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::time::Duration;

    #[tokio::test]
    async fn data_waits_for_room_and_control_does_not() {
        let outbox = Arc::new(Outbox::new());
        poll_fn(|cx| outbox.poll_push(cx, MAX_BYTES, || "first")).await.unwrap();
        let waiting = {
            let outbox = outbox.clone();
            tokio::spawn(async move { poll_fn(|cx| outbox.poll_push(cx, 1, || "second")).await })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        outbox.push("control").unwrap();
        assert_eq!(outbox.next().await, Some("first"));
        waiting.await.unwrap().unwrap();
        assert_eq!(outbox.next().await, Some("control"));
        outbox.close();
        assert_eq!(outbox.push("late"), Err(Closed));
        assert_eq!(outbox.next().await, Some("second"));
        assert_eq!(outbox.next().await, None);
    }

    #[tokio::test]
    async fn ending_wakes_everyone() {
        let outbox = Arc::new(Outbox::new());
        poll_fn(|cx| outbox.poll_push(cx, MAX_BYTES, || 1)).await.unwrap();
        let waiting = {
            let outbox = outbox.clone();
            tokio::spawn(async move { poll_fn(|cx| outbox.poll_push(cx, 1, || 2)).await })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        outbox.abort();
        assert_eq!(waiting.await.unwrap(), Err(Closed));
        assert_eq!(outbox.next().await, None);
        let flood: Outbox<()> = Outbox::new();
        assert!((0..MAX_ITEMS).all(|_| flood.push(()).is_ok()));
        assert!(flood.push(()).is_err());
    }
}
