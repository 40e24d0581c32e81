//! Bytes on their way from one connection to the reader of one stream, within a budget for all its streams.
//!
//! When the budget is used up the connection's reader waits, which stops the peer through TCP: the only flow
//! control every client understands. One slow reader can then hold up the others of its connection, as upstream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes that may wait to be read on one connection.
const CONNECTION_BYTES: usize = 4 * 1024 * 1024;
/// Pieces that may wait on one stream; a piece is at most [`MAX_PIECE`].
const STREAM_PIECES: usize = 64;
/// The largest piece put into a pipe at once.
pub(crate) const MAX_PIECE: usize = 16 * 1024;

/// What all pipes of a connection may hold together.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Budget {
    pub fn new() -> Self {
        Budget(Arc::new(Semaphore::new(CONNECTION_BYTES)))
    }
}

type Piece = (Bytes, Option<OwnedSemaphorePermit>);

const OPEN: u8 = 0;
const FINISHED: u8 = 1;
const BROKEN: u8 = 2;

/// The connection's end. Dropped without [`PipeSender::finish`] the reader gets an error, not an end.
#[derive(Debug)]
pub(crate) struct PipeSender {
    pieces: mpsc::Sender<Piece>,
    end: Arc<AtomicU8>,
    budget: Budget,
}

/// The stream's end.
#[derive(Debug)]
pub(crate) struct PipeReader {
    pieces: mpsc::Receiver<Piece>,
    end: Arc<AtomicU8>,
    current: Piece,
}

pub(crate) fn pipe(budget: &Budget) -> (PipeSender, PipeReader) {
    let (sender, receiver) = mpsc::channel(STREAM_PIECES);
    let end = Arc::new(AtomicU8::new(OPEN));
    let sender = PipeSender {
        pieces: sender,
        end: end.clone(),
        budget: budget.clone(),
    };
    let reader = PipeReader {
        pieces: receiver,
        end,
        current: (Bytes::new(), None),
    };
    (sender, reader)
}

impl PipeSender {
    /// A second sender of the same pipe, for use outside a lock.
    pub fn handle(&self) -> PipeHandle {
        PipeHandle {
            pieces: self.pieces.clone(),
            budget: self.budget.clone(),
        }
    }
    /// No more bytes will come, and that is how it should be.
    pub fn finish(self) {
        self.end.store(FINISHED, Ordering::Release);
    }
}

impl Drop for PipeSender {
    fn drop(&mut self) {
        // Fails if it was finished, which is right.
        let _already_finished = self
            .end
            .compare_exchange(OPEN, BROKEN, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// Sends into a pipe without deciding its end.
#[derive(Debug)]
pub(crate) struct PipeHandle {
    pieces: mpsc::Sender<Piece>,
    budget: Budget,
}

impl PipeHandle {
    /// Waits for room. Bytes nobody will read are dropped.
    pub async fn send(&self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MAX_PIECE));
            // Not both at once: whoever waits for a place must not hold bytes of the common budget.
            let Ok(place) = self.pieces.reserve().await else {
                return;
            };
            let size = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            let permit = tokio::select! {
                permit = self.budget.0.clone().acquire_many_owned(size) => permit.ok(),
                () = self.pieces.closed() => return,
            };
            place.send((piece, permit));
        }
    }
}

impl PipeReader {
    /// Whether nothing more will come.
    pub fn is_ended(&self) -> bool {
        self.end.load(Ordering::Acquire) != OPEN
    }
}

impl AsyncRead for PipeReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.0.is_empty() {
            match ready!(self.pieces.poll_recv(cx)) {
                Some(piece) => self.current = piece,
                None if self.end.load(Ordering::Acquire) == FINISHED => return Poll::Ready(Ok(())),
                None => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::ConnectionReset,
                        "the peer went away in the middle of the stream",
                    )));
                }
            }
        }
        let length = self.current.0.len().min(buf.remaining());
        buf.put_slice(&self.current.0[..length]);
        self.current.0.advance(length);
        if self.current.0.is_empty() {
            self.current.1 = None;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn the_end_is_an_end_only_when_said() {
        let budget = Budget::new();
        let (sender, mut reader) = pipe(&budget);
        sender.handle().send(Bytes::from_static(b"hello")).await;
        assert!(!reader.is_ended());
        sender.finish();
        let mut all = String::new();
        reader.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "hello");
        let (sender, mut reader) = pipe(&budget);
        sender.handle().send(Bytes::from_static(b"hel")).await;
        drop(sender);
        let error = reader.read_to_string(&mut String::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let (sender, reader) = pipe(&budget);
        drop(reader);
        sender.handle().send(Bytes::from_static(b"nobody reads")).await;
        assert_eq!(budget.0.available_permits(), CONNECTION_BYTES);
    }

    #[tokio::test]
    async fn what_waits_is_bounded_for_the_stream_and_the_connection() {
        let budget = Budget::new();
        let (sender, mut reader) = pipe(&budget);
        let handle = sender.handle();
        let flood = tokio::spawn(async move { handle.send(Bytes::from(vec![7; 8 << 20])).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!flood.is_finished());
        assert_eq!(
            budget.0.available_permits(),
            CONNECTION_BYTES - STREAM_PIECES * MAX_PIECE
        );
        let mut all = vec![0; 8 << 20];
        reader.read_exact(&mut all).await.unwrap();
        flood.await.unwrap();
        assert!(all.iter().all(|byte| *byte == 7));
        // Many streams together cannot take more than the connection may.
        let pipes: Vec<_> = (0..8).map(|_| pipe(&budget)).collect();
        for (sender, _) in &pipes {
            let handle = sender.handle();
            tokio::spawn(async move { handle.send(Bytes::from(vec![7; 2 << 20])).await });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(budget.0.available_permits() < MAX_PIECE);
        drop(pipes);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(budget.0.available_permits(), CONNECTION_BYTES);
    }
}
