//! A container's output on its way to the log and to whoever is attached.
//!
//! Log lines look as the container runtime interface wants them: time, stream, `F` for a line or `P`
//! for a part of one, text. A slow reader holds the container back, as a pipe would; a reader that is
//! gone is forgotten.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::logs::{Stream, stamp};

/// Longer lines are logged in parts.
const MAX_LINE: usize = 16 << 10;
/// A reader that has so much waiting holds the container back.
const MAX_WAITING: usize = 1 << 20;

/// The log file.
#[derive(Debug, Default)]
pub struct Log {
    path: Option<PathBuf>,
    file: Option<File>,
    /// The last failure to write, not repeated.
    failing: bool,
}

impl Log {
    /// Opens the log; the directory is made if absent.
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let mut log = Self {
            path,
            ..Self::default()
        };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the path again: the file there may be another one now.
    pub fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            // As containerd's: for root, and collectors of logs in its group.
            let mut options = File::options();
            self.file = Some(options.create(true).append(true).mode(0o640).open(path)?);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        match file.write_all(bytes) {
            Ok(()) => self.failing = false,
            // A full disk must not stop the container; said once.
            Err(error) if !self.failing => {
                self.failing = true;
                complain!("write log {:?}: {error}", self.path);
            }
            Err(_) => {}
        }
    }
}

/// A descriptor that takes output, and what it has not taken yet.
#[derive(Debug)]
pub struct Sink {
    pub fd: OwnedFd,
    waiting: VecDeque<u8>,
}

impl Sink {
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            waiting: VecDeque::new(),
        }
    }

    /// Whether it waits for its reader.
    pub fn wants_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.waiting.len() > MAX_WAITING
    }

    /// Adds output and passes on what goes; false when the reader is gone.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        self.waiting.extend(bytes);
        self.flush()
    }

    /// Passes on what goes; false when the reader is gone.
    pub fn flush(&mut self) -> bool {
        while !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            match nix::unistd::write(&self.fd, front) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(Errno::EAGAIN) => return true,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// One stream's unfinished line.
#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    partial: Vec<u8>,
}

impl Lines {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            partial: Vec::new(),
        }
    }

    /// Logs `bytes`; what is not a whole line waits.
    pub fn push(&mut self, bytes: &[u8], log: &mut Log) {
        if log.path.is_none() {
            return;
        }
        let now = stamp();
        let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 4 + 64);
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            if self.partial.is_empty() {
                self.line(line, &now, &mut out);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole, &now, &mut out);
            }
        }
        self.partial.extend_from_slice(rest);
        while self.partial.len() > MAX_LINE {
            let tail = self.partial.split_off(MAX_LINE);
            let part = std::mem::replace(&mut self.partial, tail);
            self.record(&part, b'P', &now, &mut out);
        }
        log.write(&out);
    }

    /// The stream has ended: what waits is logged as it is.
    pub fn finish(&mut self, log: &mut Log) {
        if !self.partial.is_empty() {
            let mut out = Vec::new();
            let part = std::mem::take(&mut self.partial);
            self.record(&part, b'F', &stamp(), &mut out);
            log.write(&out);
        }
    }

    fn line(&self, line: &[u8], now: &str, out: &mut Vec<u8>) {
        let mut rest = line;
        while rest.len() > MAX_LINE {
            let (part, after) = rest.split_at(MAX_LINE);
            self.record(part, b'P', now, out);
            rest = after;
        }
        self.record(rest, b'F', now, out);
    }

    fn record(&self, text: &[u8], tag: u8, now: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(now.as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.stream.name().as_bytes());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.extend_from_slice(text);
        out.push(b'\n');
    }
}
