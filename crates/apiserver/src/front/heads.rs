//! A request's head must come in one go.
//!
//! HTTP/1.1 connections may be idle for a while between requests; but once a head has begun, the rest of it has to
//! follow soon, or somebody is holding a connection by a byte now and then. HTTP/2 has limits of its own and is left
//! alone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::activity::Activity;

/// As upstream has it.
pub const HEAD: Duration = Duration::from_secs(32);
/// How every HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI ";

pub struct Heads<S> {
    inner: S,
    activity: Arc<Activity>,
    /// Until when the head that has begun must be here, and how many requests there had been by then.
    due: Option<(Pin<Box<Sleep>>, usize)>,
    started: bool,
    multiplexed: bool,
}

impl<S> Heads<S> {
    pub fn new(inner: S, activity: Arc<Activity>, multiplexed: bool) -> Self {
        Heads {
            inner,
            activity,
            due: None,
            started: false,
            multiplexed,
        }
    }

    fn late(&mut self, context: &mut Context<'_>) -> bool {
        if let Some((due, seen)) = &mut self.due {
            if self.activity.seen() != *seen {
                self.due = None;
                return false;
            }
            return due.as_mut().poll(context).is_ready();
        }
        false
    }

    fn received(&mut self, bytes: &[u8]) {
        if !self.started && !bytes.is_empty() {
            self.started = true;
            self.multiplexed |= bytes.starts_with(PREFACE);
        }
        if !self.multiplexed && !bytes.is_empty() && self.due.is_none() && !self.activity.is_busy() {
            self.due = Some((Box::pin(tokio::time::sleep(HEAD)), self.activity.seen()));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heads<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.late(context) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the head of a request took too long",
            )));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(context, buffer);
        if result.is_ready() {
            let new = buffer.filled().get(before..).unwrap_or_default();
            self.received(new);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heads<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, bytes)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, timeout};

    const LONG: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn a_head_that_dribbles_in_ends() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Heads::new(server, Activity::new(), false);
        // Waiting for a first byte is idleness, and somebody else's business.
        assert!(timeout(LONG, server.read_u8()).await.is_err());
        let started = Instant::now();
        let dribble = async {
            loop {
                if client.write_all(b"x").await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        };
        let read = async {
            loop {
                if let Err(error) = server.read_u8().await {
                    return error;
                }
            }
        };
        let error = tokio::select! { error = read => error, () = dribble => unreachable!() };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= HEAD && started.elapsed() < HEAD * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_and_http_2_have_their_time() {
        for multiplexed in [false, true] {
            let (mut client, server) = tokio::io::duplex(64);
            let activity = Activity::new();
            let mut server = Heads::new(server, activity.clone(), false);
            client
                .write_all(if multiplexed { b"PRI *" } else { b"GET /" })
                .await
                .unwrap();
            let mut got = [0; 5];
            server.read_exact(&mut got).await.unwrap();
            // The head was whole: the request is under way, or the protocol knows what to wait for.
            let busy = (!multiplexed).then(|| activity.begin());
            assert!(timeout(LONG, server.read_u8()).await.is_err(), "{multiplexed}");
            drop(busy);
            assert!(timeout(LONG, server.read_u8()).await.is_err(), "{multiplexed}");
        }
    }
}
