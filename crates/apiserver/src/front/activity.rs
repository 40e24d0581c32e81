//! What a connection is doing: how many requests are under way on it, and whether any may take for ever.
//!
//! Two decisions rest on it. A connection on which nothing happens is closed after a while, whatever pings its owner
//! answers: HTTP/1.1 has a timer of its own for that, HTTP/2 has none. And a client that does not take what it asked
//! for is cut off, soon when it asked for an answer, late when it follows something (somebody may have paused a pager).

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use crate::body::{Body, BoxError};
use crate::sync::lock;

/// One connection's state.
pub struct Activity {
    requests: AtomicUsize,
    /// Requests there ever were.
    seen: AtomicUsize,
    /// Of those, answers without an end in sight.
    open_ended: AtomicUsize,
    upgraded: AtomicBool,
    since: Mutex<Instant>,
}

impl Activity {
    pub fn new() -> Arc<Self> {
        Arc::new(Activity {
            requests: AtomicUsize::new(0),
            seen: AtomicUsize::new(0),
            open_ended: AtomicUsize::new(0),
            upgraded: AtomicBool::new(false),
            since: Mutex::new(Instant::now()),
        })
    }

    /// A request begins; it ends when the guard goes.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::AcqRel);
        self.seen.fetch_add(1, Ordering::AcqRel);
        Busy {
            activity: self.clone(),
            open_ended: false,
        }
    }

    /// Bytes of another protocol flow from now on.
    pub fn upgrade(&self) {
        self.upgraded.store(true, Ordering::Release);
    }

    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::Acquire)
    }

    /// Whether a request is under way, or something that is none.
    pub fn is_busy(&self) -> bool {
        self.upgraded.load(Ordering::Acquire) || self.requests.load(Ordering::Acquire) > 0
    }

    pub fn follows(&self) -> bool {
        self.upgraded.load(Ordering::Acquire) || self.open_ended.load(Ordering::Acquire) > 0
    }

    /// Resolves once nothing has happened for `limit`.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let since = *lock(&self.since);
            tokio::time::sleep_until(since + limit).await;
            let still = *lock(&self.since) == since;
            if still && self.requests.load(Ordering::Acquire) == 0 {
                return;
            }
            if still {
                // Something long is under way; its end starts the clock again.
                tokio::time::sleep(limit).await;
            }
        }
    }
}

/// A request under way.
pub struct Busy {
    activity: Arc<Activity>,
    open_ended: bool,
}

impl Busy {
    /// Binds the request's end to the end of its answer's body.
    pub fn until_end_of(mut self, body: Body) -> Body {
        if !matches!(body, Body::Boxed(_)) {
            return body;
        }
        if body.size_hint().exact().is_none() {
            self.open_ended = true;
            self.activity.open_ended.fetch_add(1, Ordering::AcqRel);
        }
        Body::Boxed(Box::pin(Tracked {
            inner: body,
            _busy: self,
        }))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *lock(&self.activity.since) = Instant::now();
        if self.open_ended {
            self.activity.open_ended.fetch_sub(1, Ordering::AcqRel);
        }
        self.activity.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Tracked {
    inner: Body,
    _busy: Busy,
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;

    const LIMIT: Duration = Duration::from_secs(90);

    fn endless() -> Body {
        Body::wrap(StreamBody::new(futures::stream::pending::<
            Result<Frame<Bytes>, BoxError>,
        >()))
    }

    #[tokio::test(start_paused = true)]
    async fn only_quiet_connections_are_idle() {
        let activity = Activity::new();
        let watch = activity.begin().until_end_of(endless());
        assert!(activity.follows());
        let late = tokio::time::timeout(LIMIT * 20, activity.idle(LIMIT)).await;
        assert!(late.is_err(), "a watch is no idleness");
        let started = Instant::now();
        drop(watch);
        assert!(!activity.follows());
        activity.idle(LIMIT).await;
        assert!(started.elapsed() >= LIMIT);
        drop(activity.begin().until_end_of(Body::from("done")));
        assert!(tokio::time::timeout(LIMIT / 2, activity.idle(LIMIT)).await.is_err());
    }
}
