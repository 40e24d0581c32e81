//! A connection from the server, and what is still to be said on it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use crate::protocol::{Frames, Reply, encode};
use crate::sys;

/// A connection from the server.
pub struct Client {
    pub socket: OwnedFd,
    pub frames: Frames,
    pub fds: Vec<OwnedFd>,
    pub out: VecDeque<u8>,
    pub events: bool,
    /// Closed once everything was said.
    pub done: bool,
}

impl Client {
    pub fn say(&mut self, reply: &Reply, fds: &[OwnedFd]) {
        let frame = match encode(reply) {
            Ok(frame) => frame,
            Err(error) => {
                complain!("encode a reply: {error}");
                self.done = true;
                return;
            }
        };
        if fds.is_empty() {
            self.out.extend(frame);
            return self.flush();
        }
        // Descriptors go with the first byte; they come first on a connection, so there is room.
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.flush();
        match sys::send_fds(self.socket.as_fd(), &frame, &borrowed) {
            Ok(count) => {
                self.out.extend(frame.get(count..).unwrap_or_default());
                self.flush();
            }
            Err(error) => {
                complain!("send descriptors: {error}");
                self.done = true;
            }
        }
    }

    pub fn flush(&mut self) {
        while !self.out.is_empty() {
            let (front, _) = self.out.as_slices();
            match sys::send_fds(self.socket.as_fd(), front, &[]) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(_) => {
                    self.out.clear();
                    self.done = true;
                }
            }
        }
    }
}
