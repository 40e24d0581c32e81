//! Request bodies nobody read to their end.
//!
//! An answer may be there before the request is: a refusal needs no body. A client that is still sending then finds its
//! stream reset (HTTP/2) or its connection closed (HTTP/1.1) and often does not see the answer. So what is left of a
//! body is read and thrown away for a moment, within bounds, while the answer goes out.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sampan_tasks::{OnExit, Tasks};

use crate::body::{Body, BoxError};

/// How much is thrown away, and for how long.
const MOST: usize = 16 << 20;
const LONGEST: Duration = Duration::from_secs(5);

/// A request's body that is read to its end, if need be by nobody.
pub fn drained(body: Incoming, tasks: &Tasks) -> Body {
    if body.is_end_stream() {
        return Body::Empty;
    }
    Body::Boxed(Box::pin(Drained {
        inner: Some(body),
        tasks: tasks.clone(),
    }))
}

struct Drained {
    /// Absent once its end was seen.
    inner: Option<Incoming>,
    tasks: Tasks,
}

impl http_body::Body for Drained {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(inner).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.inner = None;
        }
        polled.map_err(BoxError::from)
    }
    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }
    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let Some(mut body) = self.inner.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        self.tasks
            .spawn_until_drain("unread body", OnExit::Expected, async move {
                let reading = async {
                    let mut read = 0;
                    while let Some(Ok(frame)) = body.frame().await {
                        read += frame.data_ref().map_or(0, Bytes::len);
                        if read > MOST {
                            break;
                        }
                    }
                };
                if tokio::time::timeout(LONGEST, reading).await.is_err() {
                    tracing::debug!("a client goes on sending what was refused");
                }
            });
    }
}
