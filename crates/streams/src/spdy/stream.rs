//! One stream of a session: bytes both ways, each with its own end.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::{Frame, Headers, reset};
use super::session::Shared;
use crate::pipe::PipeReader;

/// The largest data frame we send.
const MAX_WRITE: usize = 16 * 1024;
/// The window we announce, for peers that keep one.
pub(super) const RECEIVE_WINDOW: u32 = 256 * 1024;

#[derive(Debug, Default)]
struct WindowState {
    sent: u64,
    credit: u64,
    /// What the peer announced; without it there is no limit.
    initial: Option<u32>,
    reset: bool,
    /// Our half has ended.
    finished: bool,
    waiting: Option<Waker>,
}

/// What the peer still takes.
#[derive(Debug, Default)]
pub(super) struct Window(Mutex<WindowState>);

impl Window {
    pub fn new(initial: Option<u32>) -> Self {
        let window = Window::default();
        window.state().initial = initial;
        window
    }
    fn state(&self) -> MutexGuard<'_, WindowState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn change(&self, change: impl FnOnce(&mut WindowState)) {
        let mut state = self.state();
        change(&mut state);
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
    pub fn announce(&self, initial: u32) {
        self.change(|state| state.initial = Some(initial));
    }
    pub fn credit(&self, bytes: u32) {
        self.change(|state| state.credit = state.credit.saturating_add(bytes.into()));
    }
    pub fn reset(&self) {
        self.change(|state| state.reset = true);
    }
    /// Ends our half; whether it had not ended before.
    pub fn finish(&self) -> bool {
        !std::mem::replace(&mut self.state().finished, true)
    }
    /// How many bytes may be sent now; at least one, or an error.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        let mut state = self.state();
        if state.reset || state.finished {
            let why = if state.finished {
                "the stream was already shut down"
            } else {
                "the peer ended the stream"
            };
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, why)));
        }
        let room = match state.initial {
            None => u64::MAX,
            Some(initial) => (u64::from(initial) + state.credit).saturating_sub(state.sent),
        };
        if room == 0 {
            state.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(room))
    }
    fn sent(&self, bytes: usize) {
        let mut state = self.state();
        state.sent = state.sent.saturating_add(bytes as u64);
    }
}

/// A stream. Shut down: no more bytes from us. Dropped: the peer learns that nobody reads or writes any more.
pub struct Stream {
    pub(super) id: u32,
    pub(super) headers: Headers,
    pub(super) shared: Arc<Shared>,
    pub(super) reader: PipeReader,
    pub(super) window: Arc<Window>,
    /// Read since the peer was last told.
    pub(super) consumed: u32,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.id)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

impl Stream {
    pub fn id(&self) -> u32 {
        self.id
    }
    /// Those it was created with.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Sends a few last bytes, room or not, and ends our half.
    pub(crate) fn finish_with(self, bytes: Bytes) {
        if !self.window.finish() {
            return;
        }
        let last = Frame::Data {
            stream: self.id,
            fin: true,
            bytes,
        };
        // On a connection that is closed there is nobody to tell.
        self.shared.outbox.push(last).unwrap_or_default();
    }

    fn finish(&self) -> io::Result<()> {
        if !self.window.finish() {
            return Ok(());
        }
        self.shared.outbox.push(Frame::Data {
            stream: self.id,
            fin: true,
            bytes: Bytes::new(),
        })?;
        Ok(())
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(cx, buf))?;
        let read = u32::try_from(buf.filled().len() - before).unwrap_or(u32::MAX);
        self.consumed = self.consumed.saturating_add(read);
        if self.consumed >= RECEIVE_WINDOW / 4 {
            let update = Frame::WindowUpdate {
                stream: self.id,
                delta: self.consumed,
            };
            self.consumed = 0;
            // On a connection that is closed there is nobody to tell.
            self.shared.outbox.push(update).unwrap_or_default();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.window.poll_room(cx))?;
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let length = buf.len().min(MAX_WRITE).min(room);
        let stream = self.id;
        ready!(self.shared.outbox.poll_push(cx, length, || Frame::Data {
            stream,
            fin: false,
            bytes: Bytes::copy_from_slice(&buf[..length]),
        }))?;
        self.window.sent(length);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The session's writer never holds anything back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // What was written still arrives: the end comes after it, and the reset after that.
        let told = self.finish();
        if told.is_ok() && !self.reader.is_ended() {
            let reset = Frame::Rst {
                stream: self.id,
                status: reset::CANCEL,
            };
            // On a connection that is closed there is nobody to tell.
            self.shared.outbox.push(reset).unwrap_or_default();
        }
        self.shared.forget(self.id);
    }
}
