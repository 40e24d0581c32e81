//! One container in the shim: its process, its streams, its end.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::Pid;

use super::output::{Lines, Log, Sink};
use crate::init::Word;
use crate::logs::Stream;
use crate::spec::{self, ContainerSpec, ExitRecord, StartRecord, file};
use crate::sys;
use crate::types::{ContainerUser, NamespaceMode};

/// Input that waits for the container to read it is bounded by this.
const MAX_INPUT: usize = 64 << 10;

/// Makes a descriptor return instead of wait.
pub fn nonblocking(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// One output stream of the container.
#[derive(Debug)]
pub struct Source {
    pub fd: Option<OwnedFd>,
    lines: Lines,
}

impl Source {
    pub fn new(fd: Option<OwnedFd>, stream: Stream) -> Self {
        Self {
            fd,
            lines: Lines::new(stream),
        }
    }
}

/// Somebody attached to the container's streams.
#[derive(Debug)]
pub struct Attachment {
    /// The connection to tell when it is over.
    pub client: u64,
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<Sink>,
    pub stderr: Option<Sink>,
}

impl Attachment {
    pub fn sinks(&mut self) -> impl Iterator<Item = &mut Sink> {
        self.stdout.iter_mut().chain(self.stderr.iter_mut())
    }
}

/// How far the child has come before it was the program.
#[derive(Debug)]
pub struct Starting {
    pub channel: OwnedFd,
    /// The connection that asked.
    pub client: u64,
    pub user: Option<ContainerUser>,
    pub error: Option<String>,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
}

impl Starting {
    pub fn new(channel: OwnedFd, client: u64) -> Self {
        Self {
            channel,
            client,
            user: None,
            error: None,
            terminal: None,
        }
    }

    /// Hears what the child says; true when it has said all (it runs, or it failed).
    pub fn listen(&mut self) -> bool {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let mut fds = Vec::new();
            match sys::receive_fds(self.channel.as_fd(), &mut buffer, &mut fds) {
                Ok(0) => return true,
                Ok(count) => {
                    let word = buffer.get(..count).unwrap_or_default();
                    match serde_json::from_slice(word) {
                        Ok(Word::User(user)) => self.user = Some(user),
                        Ok(Word::Error(text)) => self.error = Some(text),
                        Err(error) => self.error = Some(format!("the child said nonsense: {error}")),
                    }
                    self.terminal = fds.pop().or(self.terminal.take());
                }
                Err(Errno::EAGAIN) => return false,
                Err(Errno::EINTR) => {}
                Err(error) => {
                    self.error = Some(format!("listen to the child: {error}"));
                    return true;
                }
            }
        }
    }
}

/// A container, from its start to being forgotten.
#[derive(Debug)]
pub struct Container {
    pub spec: ContainerSpec,
    dir: PathBuf,
    pub pid: Option<Pid>,
    pub starting: Option<Starting>,
    pub started: Option<StartRecord>,
    pub exit: Option<ExitRecord>,
    pub stdout: Source,
    pub stderr: Source,
    /// Where its input goes: a pipe, or the terminal.
    pub stdin: Option<OwnedFd>,
    /// The terminal's master.
    pub terminal: Option<OwnedFd>,
    input: Vec<u8>,
    /// `stdin_once` and the client has closed: close when the rest is written.
    close_input: bool,
    pub attachments: Vec<Attachment>,
    log: Log,
    oom_before: u64,
}

/// How often the kernel has killed for memory, by a control group's file.
fn oom_kills(file: Option<&Path>) -> u64 {
    let text = file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

impl Container {
    pub fn new(spec: ContainerSpec, dir: PathBuf) -> io::Result<Self> {
        let log = Log::open(spec.log_path.clone())?;
        let oom_before = oom_kills(spec.cgroups.oom_file.as_deref());
        Ok(Self {
            dir,
            pid: None,
            starting: None,
            started: None,
            exit: None,
            stdout: Source::new(None, Stream::Stdout),
            stderr: Source::new(None, Stream::Stderr),
            stdin: None,
            terminal: None,
            input: Vec::new(),
            close_input: false,
            attachments: Vec::new(),
            log,
            oom_before,
            spec,
        })
    }

    /// Whether its program runs.
    pub fn is_running(&self) -> bool {
        self.started.is_some() && self.exit.is_none()
    }

    pub fn reopen_log(&mut self) -> io::Result<()> {
        self.log.reopen()
    }

    /// The child has become the program.
    pub fn has_started(&mut self, starting: Starting) -> io::Result<StartRecord> {
        let pid = self.pid.map(|pid| pid.as_raw().unsigned_abs()).unwrap_or_default();
        if let Some(master) = starting.terminal {
            nonblocking(master.as_fd())?;
            self.stdout.fd = Some(master.try_clone()?);
            if self.spec.stdin {
                self.stdin = Some(master.try_clone()?);
            }
            self.terminal = Some(master);
        }
        let record = StartRecord {
            pid,
            started_at: Timestamp::now(),
            user: starting.user.unwrap_or_default(),
        };
        spec::write(&self.dir.join(file::START), &record, false)?;
        self.started = Some(record.clone());
        Ok(record)
    }

    /// Its process has ended (or never became the program): collects what it left, says how it ended.
    pub fn has_ended(&mut self, code: i32, signal: Option<i32>, start_error: Option<String>) {
        if self.spec.pid != NamespaceMode::Container {
            // Without a process namespace of its own, what it started is still there.
            super::kill_group(&self.spec.cgroups);
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            while self.pump(stream) {}
        }
        self.stdout.lines.finish(&mut self.log);
        self.stderr.lines.finish(&mut self.log);
        self.stdout.fd = None;
        self.stderr.fd = None;
        self.stdin = None;
        self.terminal = None;
        let exit = ExitRecord {
            code,
            signal,
            oom_killed: oom_kills(self.spec.cgroups.oom_file.as_deref()) > self.oom_before,
            at: Timestamp::now(),
            start_error,
            unseen: false,
        };
        if let Err(error) = spec::write(&self.dir.join(file::EXIT), &exit, false) {
            complain!("record the end of container {}: {error}", self.spec.id);
        }
        self.exit = Some(exit);
    }

    /// Whether output of this stream may be read: not while somebody is too slow for it.
    pub fn may_read(&self, stream: Stream) -> bool {
        self.attachments.iter().all(|attachment| {
            let sink = match stream {
                Stream::Stdout => &attachment.stdout,
                Stream::Stderr => &attachment.stderr,
            };
            sink.as_ref().is_none_or(|sink| !sink.is_full())
        })
    }

    /// Reads once; true when there may be more.
    pub fn pump(&mut self, stream: Stream) -> bool {
        let source = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(fd) = &source.fd else { return false };
        let mut buffer = [0; 32 << 10];
        let count = match nix::unistd::read(fd, &mut buffer) {
            Ok(count) if count > 0 => count,
            Err(Errno::EINTR) => return true,
            Err(Errno::EAGAIN) => return false,
            // A terminal says EIO when the last process has closed it.
            Ok(_) | Err(_) => {
                source.fd = None;
                return false;
            }
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        source.lines.push(bytes, &mut self.log);
        for attachment in &mut self.attachments {
            let sink = match stream {
                Stream::Stdout => &mut attachment.stdout,
                Stream::Stderr => &mut attachment.stderr,
            };
            if sink.as_mut().is_some_and(|sink| !sink.push(bytes)) {
                *sink = None;
            }
        }
        true
    }

    /// The connection of an attachment is closed. What was typed before still counts: its input is
    /// read to its end.
    pub fn client_gone(&mut self, client: u64) {
        for attachment in self.attachments.iter_mut().filter(|a| a.client == client) {
            (attachment.stdout, attachment.stderr) = (None, None);
        }
        self.sweep();
    }

    fn sweep(&mut self) {
        self.attachments
            .retain(|a| a.stdin.is_some() || a.stdout.is_some() || a.stderr.is_some());
    }

    /// Whether more input can be taken.
    pub fn wants_input(&self) -> bool {
        self.stdin.is_some() && self.input.len() < MAX_INPUT
    }

    /// Whether input waits for the container.
    pub fn has_input(&self) -> bool {
        self.stdin.is_some() && !self.input.is_empty()
    }

    /// Takes input from attachment `index`.
    pub fn take_input(&mut self, index: usize) {
        let Some(attachment) = self.attachments.get_mut(index) else {
            return;
        };
        let Some(fd) = &attachment.stdin else { return };
        let mut buffer = [0; 16 << 10];
        match nix::unistd::read(fd, &mut buffer) {
            Ok(count) if count > 0 => {
                self.input.extend_from_slice(buffer.get(..count).unwrap_or_default());
                self.give_input();
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(_) | Err(_) => {
                attachment.stdin = None;
                if self.spec.stdin_once {
                    self.close_input = true;
                    self.give_input();
                }
                self.sweep();
            }
        }
    }

    /// Passes input on to the container.
    pub fn give_input(&mut self) {
        while let Some(fd) = &self.stdin
            && !self.input.is_empty()
        {
            match nix::unistd::write(fd, &self.input) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.stdin = None;
                    self.input.clear();
                }
            }
        }
        if self.close_input && self.terminal.is_none() {
            self.stdin = None;
        }
    }
}
