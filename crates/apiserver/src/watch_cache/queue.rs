//! The queue of one watcher: batches of shared changes, bounded by the number of changes.
//!
//! What is told to many watchers is one [`Batch`] for all of them, and so are its bytes. A queue that would grow beyond
//! its bound is closed instead: the watcher gets what it has and then the end. Nobody waits for it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes, BytesMut};

use super::Change;
use crate::sync::lock;

/// How many changes may wait for one watcher. At about 4 KiB an object and all of them distinct, a stuck
/// watcher holds a few MiB until it is dropped; changes are shared, so a thousand hold hardly more.
const MOST: usize = 2048;

/// Changes told together.
pub struct Batch {
    pub changes: Vec<Arc<Change>>,
    lines: OnceLock<Bytes>,
}

impl Batch {
    pub fn new(changes: Vec<Arc<Change>>) -> Arc<Self> {
        Arc::new(Batch {
            changes,
            lines: OnceLock::new(),
        })
    }

    /// All changes as plain watch lines, put together once.
    pub fn lines(&self) -> Bytes {
        self.lines
            .get_or_init(|| match self.changes.as_slice() {
                [one] => one.entry.line(one.kind),
                many => {
                    let lines: Vec<_> = many.iter().map(|change| change.entry.line(change.kind)).collect();
                    let mut all = BytesMut::with_capacity(lines.iter().map(Bytes::len).sum());
                    lines.iter().for_each(|line| all.put_slice(line));
                    all.freeze()
                }
            })
            .clone()
    }
}

#[derive(Default)]
struct State {
    batches: VecDeque<Arc<Batch>>,
    waiting: usize,
    /// How many changes of the first batch were taken one by one.
    taken: usize,
    closed: bool,
    waker: Option<Waker>,
}

/// The telling end. Dropping it ends the watch.
pub struct Sender(Arc<Mutex<State>>);

/// The watcher's end.
pub struct Queue(Arc<Mutex<State>>);

/// Nothing is there at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Empty;

pub fn queue() -> (Sender, Queue) {
    let state = Arc::new(Mutex::new(State::default()));
    (Sender(state.clone()), Queue(state))
}

impl Sender {
    /// Hands over a batch; false if there was no room and the watcher is to be dropped.
    pub fn send(&self, batch: &Arc<Batch>) -> bool {
        let mut state = lock(&self.0);
        if state.waiting + batch.changes.len() > MOST {
            return false;
        }
        state.waiting += batch.changes.len();
        state.batches.push_back(batch.clone());
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Queue {
    /// The next batch; `None` once the watch has ended.
    pub fn poll_batch(&self, context: &mut Context<'_>) -> Poll<Option<Arc<Batch>>> {
        let mut state = lock(&self.0);
        if let Some(batch) = state.batches.pop_front() {
            let taken = std::mem::take(&mut state.taken);
            state.waiting -= batch.changes.len() - taken;
            if state.batches.is_empty() && state.batches.capacity() > 64 {
                state.batches = VecDeque::new();
            }
            return Poll::Ready(Some(match taken {
                0 => batch,
                _ => Batch::new(batch.changes.get(taken..).unwrap_or_default().to_vec()),
            }));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// The next change; `None` once the watch has ended.
    pub async fn recv(&mut self) -> Option<Arc<Change>> {
        poll_fn(|context| match self.try_recv() {
            Ok(change) => Poll::Ready(Some(change)),
            // Nothing is there, so this registers or ends.
            Err(Empty) => match self.poll_batch(context) {
                Poll::Ready(Some(batch)) => {
                    // It came in between: put it back and take from it.
                    let mut state = lock(&self.0);
                    state.waiting += batch.changes.len();
                    state.batches.push_front(batch);
                    drop(state);
                    Poll::Ready(self.try_recv().ok())
                }
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            },
        })
        .await
    }

    /// A change that is there already.
    pub fn try_recv(&mut self) -> Result<Arc<Change>, Empty> {
        let mut state = lock(&self.0);
        let at = state.taken;
        let batch = state.batches.front().ok_or(Empty)?;
        let (change, last) = (batch.changes.get(at).cloned(), at + 1 >= batch.changes.len());
        if last {
            state.batches.pop_front();
            state.taken = 0;
        } else {
            state.taken += 1;
        }
        state.waiting -= usize::from(change.is_some());
        change.ok_or(Empty)
    }
}
