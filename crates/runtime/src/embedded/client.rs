//! Speaking to a shim.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::protocol::{Frames, Reply, Request, encode};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::sys;

/// One connection: a request, its replies, and the descriptors that come with them.
pub struct Connection {
    socket: UnixStream,
    frames: Frames,
    fds: Vec<OwnedFd>,
}

impl Connection {
    /// Connects to the shim listening at `path`.
    pub async fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            socket: UnixStream::connect(path).await?,
            frames: Frames::default(),
            fds: Vec::new(),
        })
    }

    /// Sends a request.
    pub async fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let frame = encode(request)?;
        let (mut rest, mut fds) = (&frame[..], fds);
        while !rest.is_empty() {
            self.socket.writable().await?;
            let sent = self.socket.try_io(Interest::WRITABLE, || {
                Ok(sys::send_fds(self.socket.as_fd(), rest, fds)?)
            });
            match sent {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    fds = &[];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next reply; `None` when the shim has closed the connection.
    pub async fn receive(&mut self) -> io::Result<Option<Reply>> {
        loop {
            if let Some(reply) = self.frames.next()? {
                return Ok(Some(reply));
            }
            self.socket.readable().await?;
            let mut buffer = [0; 16 << 10];
            let fds = &mut self.fds;
            let received = self.socket.try_io(Interest::READABLE, || {
                Ok(sys::receive_fds(self.socket.as_fd(), &mut buffer, fds)?)
            });
            match received {
                Ok(0) => return Ok(None),
                Ok(count) => self.frames.push(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The descriptors that came with the last reply.
    pub fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }

    /// Sends a request and waits for its first reply, which is not an error.
    pub async fn ask(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply> {
        self.send(request, fds).await.map_err(gone)?;
        match self.receive().await.map_err(gone)? {
            Some(Reply::Error { message, missing }) => {
                let kind = if missing {
                    ErrorKind::NotFound
                } else {
                    ErrorKind::Internal
                };
                Err(RuntimeError::new(kind, message))
            }
            Some(reply) => Ok(reply),
            None => Err(gone("it closed the connection")),
        }
    }
}

fn gone(why: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::new(
        ErrorKind::Unavailable,
        format!("the sandbox's shim does not answer: {why}"),
    )
}

/// One request, one reply, on a connection of its own.
pub async fn ask(socket: &Path, request: &Request) -> Result<Reply> {
    let mut connection = Connection::open(socket).await.map_err(gone)?;
    connection.ask(request, &[]).await
}

/// A connection, or an error that says the shim is gone.
pub async fn connect(socket: &Path) -> Result<Connection> {
    Connection::open(socket).await.map_err(gone)
}
