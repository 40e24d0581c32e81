//! A socket whose writes must make progress.
//!
//! A client that stops reading holds an answer's memory, and keepalive does not notice it: its machine answers. Here a
//! write that has not moved for the limit fails, and the connection ends with it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::activity::Activity;

/// For answers.
pub const ANSWER: Duration = Duration::from_secs(60);
/// For watches, logs and whatever else somebody may be looking at.
pub const FOLLOWED: Duration = Duration::from_secs(15 * 60);

pub struct Stalling<S> {
    inner: S,
    activity: Arc<Activity>,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Stalling<S> {
    pub fn new(inner: S, activity: Arc<Activity>) -> Self {
        Stalling {
            inner,
            activity,
            waiting: None,
        }
    }

    /// Lets a result through; a wait is bounded.
    fn bounded<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = None;
            return result;
        }
        let limit = if self.activity.follows() { FOLLOWED } else { ANSWER };
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        match waiting.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read what it asked for",
            ))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.bounded(context, result)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(context, bytes);
        self.bounded(context, result)
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

    #[tokio::test(start_paused = true)]
    async fn a_write_nobody_takes_ends() {
        let (client, server) = tokio::io::duplex(1024);
        let mut server = Stalling::new(server, Activity::new());
        let error = server.write_all(&[0; 4096]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_a_reader() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Stalling::new(server, Activity::new());
        let reading = async {
            let mut all = vec![0; 640];
            for piece in all.chunks_mut(64) {
                tokio::time::sleep(ANSWER / 2).await;
                client.read_exact(piece).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(server.write_all(&[7; 640]), reading);
        written.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_has_more_time() {
        let (client, server) = tokio::io::duplex(64);
        let activity = Activity::new();
        activity.upgrade();
        let mut server = Stalling::new(server, activity);
        let started = tokio::time::Instant::now();
        server.write_all(&[0; 4096]).await.unwrap_err();
        assert!(started.elapsed() >= FOLLOWED);
        drop(client);
    }
}
