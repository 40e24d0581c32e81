//! The shim: one small process per sandbox that holds its namespaces and its containers.
//!
//! It is the same executable, `shim DIRECTORY`, with its listening socket as standard input; usually
//! not started but forked from the [`spawner`]. It has one thread and one `poll` loop, knows nothing of Kubernetes, and outlives the server:
//! containers are its children, their output passes through it into the log, and how they end is on
//! disk before anybody is told.
//!
//! It lives inside the sandbox's network, IPC and UTS namespaces, so its children are born there and
//! no pause container is needed; only a shared process namespace needs a first process, which is a
//! child that does nothing but wait.
//!
//! Invariants:
//! - never more than one thread (children are copies of it);
//! - nothing blocks the loop: every descriptor is non-blocking, every queue bounded;
//! - `exit.json` is written after the last byte of the log and before the event.

/// Says something in the shim's log. `eprintln!` panics when it cannot write, and a full disk must not
/// end a shim.
macro_rules! complain {
    ($($text:tt)*) => {{
        use std::io::Write;
        if writeln!(std::io::stderr(), $($text)*).is_err() {
            // Nobody is left to tell.
        }
    }};
}

mod client;
mod container;
pub(crate) mod namespaces;
mod output;
mod setup;
pub(crate) mod spawner;

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::accept4;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use self::client::Client;
use self::container::{Attachment, Container, Starting, nonblocking};
use self::output::Sink;
use self::setup::Sandbox;
use crate::init::userns::Users;
use crate::init::{self, Stdio};
use crate::logs::Stream;
use crate::protocol::{Exec, Frames, Reply, Request};
use crate::spec::{self, CgroupSpec, ContainerSpec, ExitRecord, StartRecord, UserSpec, file};
use crate::sys;
use crate::types::NamespaceMode;

/// Exit code of a program that could not be started.
const START_ERROR: i32 = 128;

/// The shim's `main`. `args` are the arguments after `shim`: the sandbox's directory, or what makes it
/// the [`spawner`].
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Some(dir) = args.into_iter().next() else {
        complain!("usage: shim DIRECTORY (started by the server, with its socket as standard input)");
        return ExitCode::from(2);
    };
    let run = || -> Result<(), String> {
        if dir == namespaces::ARGUMENT {
            return namespaces::serve();
        }
        let dir = match spawner::is_argument(&dir) {
            true => match spawner::serve()? {
                Some(dir) => dir,
                None => return Ok(()),
            },
            false => dir,
        };
        let (listener, signals) = setup::detach()?;
        let sandbox = setup::enter(Path::new(&dir));
        let mut shim = Shim {
            listener,
            signals,
            sandbox,
            next_client: 0,
            clients: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            stopping: false,
        };
        shim.run()
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain!("shim: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A process the server runs in a container.
struct Running {
    client: u64,
    starting: Option<Starting>,
    started: bool,
    bound: bool,
}

struct Shim {
    listener: OwnedFd,
    signals: SignalFd,
    sandbox: Result<Sandbox, String>,
    next_client: u64,
    clients: BTreeMap<u64, Client>,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<i32, Running>,
    stopping: bool,
}

/// What a descriptor in the poll set is.
#[derive(Clone)]
enum Token {
    Listener,
    Signals,
    Client(u64),
    Starting(String),
    ExecStarting(i32),
    Output(String, Stream),
    Input(String),
    AttachedInput(String, usize),
    AttachedOutput(String, usize),
}

/// Kills every process in a control group.
pub(crate) fn kill_group(cgroups: &CgroupSpec) {
    for dir in cgroups.dirs.iter().take(1) {
        crate::cgroups::kill_all(dir);
    }
}

fn error_reply(message: impl Into<String>) -> Reply {
    Reply::Error {
        message: message.into(),
        missing: false,
    }
}

fn missing(id: &str) -> Reply {
    Reply::Error {
        message: format!("container \"{id}\" is not known to its shim"),
        missing: true,
    }
}

impl Shim {
    fn run(&mut self) -> Result<(), String> {
        loop {
            if self.stopping && self.containers.values().all(|c| c.pid.is_none() || c.exit.is_some()) {
                self.clients.values_mut().for_each(|client| client.done = true);
                if self.clients.values().all(|client| client.out.is_empty()) {
                    return Ok(());
                }
            }
            let tokens = self.wait()?;
            for (token, flags) in tokens {
                self.handle(token, flags);
            }
            self.clients.retain(|_, client| !(client.done && client.out.is_empty()));
        }
    }

    /// Waits until something is ready.
    fn wait(&self) -> Result<Vec<(Token, PollFlags)>, String> {
        let (read, write) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        let mut tokens = vec![Token::Listener, Token::Signals];
        let mut fds = vec![
            PollFd::new(self.listener.as_fd(), read),
            PollFd::new(self.signals.as_fd(), read),
        ];
        for (&id, client) in &self.clients {
            let flags = if client.out.is_empty() { read } else { read | write };
            tokens.push(Token::Client(id));
            fds.push(PollFd::new(client.socket.as_fd(), flags));
        }
        for (&pid, exec) in &self.execs {
            if let Some(starting) = &exec.starting {
                tokens.push(Token::ExecStarting(pid));
                fds.push(PollFd::new(starting.channel.as_fd(), read));
            }
        }
        for (id, container) in &self.containers {
            if let Some(starting) = &container.starting {
                tokens.push(Token::Starting(id.clone()));
                fds.push(PollFd::new(starting.channel.as_fd(), read));
            }
            for (stream, source) in [(Stream::Stdout, &container.stdout), (Stream::Stderr, &container.stderr)] {
                if let Some(fd) = &source.fd
                    && container.may_read(stream)
                {
                    tokens.push(Token::Output(id.clone(), stream));
                    fds.push(PollFd::new(fd.as_fd(), read));
                }
            }
            if let Some(fd) = &container.stdin
                && container.has_input()
            {
                tokens.push(Token::Input(id.clone()));
                fds.push(PollFd::new(fd.as_fd(), write));
            }
            for (index, attachment) in container.attachments.iter().enumerate() {
                if let Some(fd) = &attachment.stdin
                    && container.wants_input()
                {
                    tokens.push(Token::AttachedInput(id.clone(), index));
                    fds.push(PollFd::new(fd.as_fd(), read));
                }
                for sink in attachment.stdout.iter().chain(&attachment.stderr) {
                    // Without interest only the end of the reader is reported.
                    let flags = if sink.wants_write() { write } else { PollFlags::empty() };
                    tokens.push(Token::AttachedOutput(id.clone(), index));
                    fds.push(PollFd::new(sink.fd.as_fd(), flags));
                }
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(format!("poll: {error}")),
        }
        let ready = tokens.into_iter().zip(fds);
        Ok(ready
            .filter_map(|(token, fd)| {
                let flags = fd.revents().unwrap_or(PollFlags::empty());
                (!flags.is_empty()).then_some((token, flags))
            })
            .collect())
    }

    fn handle(&mut self, token: Token, flags: PollFlags) {
        match token {
            Token::Listener => self.accept(),
            Token::Signals => self.reap(),
            Token::Client(id) => self.client_ready(id, flags),
            Token::Starting(id) => self.start_progress(&id),
            Token::ExecStarting(pid) => self.exec_progress(pid),
            Token::Output(id, stream) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.pump(stream);
                }
            }
            Token::Input(id) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.give_input();
                }
            }
            Token::AttachedInput(id, index) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.take_input(index);
                }
            }
            Token::AttachedOutput(id, index) => self.attached_ready(&id, index, flags),
        }
    }

    // ---- connections ----

    fn accept(&mut self) {
        use nix::sys::socket::SockFlag;
        use std::os::fd::AsRawFd;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        match accept4(self.listener.as_raw_fd(), flags).map(sys::adopted) {
            Ok(socket) => {
                self.next_client += 1;
                let client = Client {
                    socket,
                    frames: Frames::default(),
                    fds: Vec::new(),
                    out: VecDeque::new(),
                    events: false,
                    done: false,
                };
                self.clients.insert(self.next_client, client);
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(error) => complain!("accept: {error}"),
        }
    }

    fn client_ready(&mut self, id: u64, flags: PollFlags) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if flags.contains(PollFlags::POLLOUT) {
            client.flush();
        }
        let mut closed = flags.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL);
        if flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP) {
            let mut buffer = [0; 16 << 10];
            match sys::receive_fds(client.socket.as_fd(), &mut buffer, &mut client.fds) {
                Ok(0) => closed = true,
                Ok(count) => client.frames.push(buffer.get(..count).unwrap_or_default()),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => closed = true,
            }
            loop {
                let Some(client) = self.clients.get_mut(&id) else {
                    return;
                };
                match client.frames.next::<Request>() {
                    Ok(Some(request)) => self.request(id, request),
                    Ok(None) => break,
                    Err(error) => {
                        self.say(id, error_reply(error.to_string()), &[]);
                        closed = true;
                        break;
                    }
                }
            }
        }
        if closed {
            self.clients.remove(&id);
            for (pid, exec) in &self.execs {
                if exec.client == id && exec.bound {
                    // Its session too: what it started must not outlive a probe's time limit.
                    signal(Pid::from_raw(-*pid), libc::SIGKILL);
                    signal(Pid::from_raw(*pid), libc::SIGKILL);
                }
            }
            for container in self.containers.values_mut() {
                container.client_gone(id);
            }
        }
    }

    fn say(&mut self, id: u64, reply: Reply, fds: &[OwnedFd]) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.say(&reply, fds);
        }
    }

    fn tell_events(&mut self, reply: &Reply) {
        for client in self.clients.values_mut().filter(|client| client.events) {
            client.say(reply, &[]);
        }
    }

    fn request(&mut self, client: u64, request: Request) {
        let ok = || Reply::Ok { fds: 0 };
        let reply = match request {
            Request::Hello => match &self.sandbox {
                Ok(sandbox) => Reply::Hello { pid: sandbox.pid() },
                Err(error) => {
                    // A sandbox that could not be set up has nothing to live for.
                    self.stopping = true;
                    error_reply(error.clone())
                }
            },
            Request::Events => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.events = true;
                    for (id, container) in &self.containers {
                        if let Some(exit) = &container.exit {
                            let (id, exit) = (id.clone(), exit.clone());
                            client.say(&Reply::Exited { id, exit }, &[]);
                        }
                    }
                }
                Reply::Current
            }
            Request::Start { id } => match self.start(client, &id) {
                Ok(()) => return,
                Err(error) => error_reply(error),
            },
            Request::Kill {
                id,
                signal: number,
                all,
            } => match self.containers.get(&id) {
                Some(container) if container.exit.is_none() => {
                    if let Some(pid) = container.pid {
                        signal(pid, number);
                    }
                    if all {
                        kill_group(&container.spec.cgroups);
                    }
                    ok()
                }
                Some(_) => ok(),
                None => missing(&id),
            },
            Request::Exec(exec) => match self.exec(client, exec) {
                Ok(()) => return,
                Err(reply) => reply,
            },
            Request::Attach {
                id,
                stdin,
                stdout,
                stderr,
            } => match self.attach(client, &id, [stdin, stdout, stderr]) {
                Ok(()) => ok(),
                Err(reply) => reply,
            },
            Request::Resize { id, size } => match self.containers.get(&id) {
                Some(container) => match &container.terminal {
                    Some(terminal) => match sys::resize_terminal(terminal.as_fd(), size) {
                        Ok(()) => ok(),
                        Err(error) => error_reply(format!("resize: {error}")),
                    },
                    None => ok(),
                },
                None => missing(&id),
            },
            Request::ReopenLog { id } => match self.containers.get_mut(&id) {
                Some(container) => match container.reopen_log() {
                    Ok(()) => ok(),
                    Err(error) => error_reply(format!("reopen the log: {error}")),
                },
                None => missing(&id),
            },
            Request::Sockets => {
                let sockets = setup::sockets();
                let reply = Reply::Ok { fds: sockets.len() };
                return self.say(client, reply, &sockets);
            }
            Request::Forget { id } => {
                if self
                    .containers
                    .get(&id)
                    .is_some_and(|c| !c.is_running() && c.starting.is_none())
                {
                    self.containers.remove(&id);
                }
                ok()
            }
            Request::Shutdown => {
                self.stopping = true;
                for container in self.containers.values().filter(|c| c.exit.is_none()) {
                    if let Some(pid) = container.pid {
                        signal(pid, libc::SIGKILL);
                    }
                    kill_group(&container.spec.cgroups);
                }
                ok()
            }
        };
        self.say(client, reply, &[]);
    }

    // ---- containers ----

    fn start(&mut self, client: u64, id: &str) -> Result<(), String> {
        let sandbox = self.sandbox.as_ref().map_err(Clone::clone)?;
        if self.containers.contains_key(id) {
            return Err("the container was started before".into());
        }
        let dir = spec::container_dir(&sandbox.spec.containers, id);
        let spec: ContainerSpec = spec::read(&dir.join(file::SPEC))
            .map_err(|error| format!("read the container's specification: {error}"))?;
        let mut container = Container::new(spec, dir).map_err(|error| format!("open the container's log: {error}"))?;
        let fail = |what: &str, error: Errno| format!("{what}: {error}");
        let (ours, theirs) = init::channel().map_err(|e| fail("make a channel", e))?;
        let mut stdio = Stdio::default();
        if !container.spec.process.tty {
            let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
            let (out, out_child) = pipe().map_err(|e| fail("make a pipe", e))?;
            let (err, err_child) = pipe().map_err(|e| fail("make a pipe", e))?;
            for fd in [&out, &err] {
                nonblocking(fd.as_fd()).map_err(|e| fail("make a pipe", e))?;
            }
            (stdio.stdout, stdio.stderr) = (Some(out_child), Some(err_child));
            (container.stdout.fd, container.stderr.fd) = (Some(out), Some(err));
            if container.spec.stdin {
                let (child, input) = pipe().map_err(|e| fail("make a pipe", e))?;
                nonblocking(input.as_fd()).map_err(|e| fail("make a pipe", e))?;
                (stdio.stdin, container.stdin) = (Some(child), Some(input));
            }
        }
        let mut flags = CloneFlags::empty();
        if container.spec.pid == NamespaceMode::Container {
            flags |= CloneFlags::CLONE_NEWPID;
        }
        let shared = (container.spec.pid == NamespaceMode::Pod).then_some(sandbox.pause.as_ref());
        let cloned = match shared.flatten() {
            Some(pause) => setup::clone_in(&pause.namespace, &sandbox.own_pids, flags),
            None => sys::clone_process(flags),
        };
        match cloned.map_err(|e| fail("make a process", e))? {
            None => {
                drop(ours);
                init::container(&container.spec, sandbox.namespaces(), &theirs, stdio)
            }
            Some(pid) => {
                drop((theirs, stdio));
                container.pid = Some(pid);
                let mut starting = Starting::new(ours, client);
                if let Err(error) = place(pid, &container.spec, &starting) {
                    starting.error = Some(error);
                    signal(pid, libc::SIGKILL);
                }
                container.starting = Some(starting);
                self.containers.insert(id.to_owned(), container);
                Ok(())
            }
        }
    }

    /// The child of a container has said something, or has become the program.
    fn start_progress(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(mut starting) = container.starting.take() else {
            return;
        };
        if !starting.listen() {
            container.starting = Some(starting);
            return;
        }
        let client = starting.client;
        if let Some(error) = starting.error.take() {
            // Its end is told as an exit when it is reaped; the reason is kept for it.
            starting.error = Some(error.clone());
            container.starting = Some(starting);
            if let Some(pid) = container.pid {
                signal(pid, libc::SIGKILL);
            }
            self.finish_failed_start(id, &error);
            return;
        }
        let reply = match container.has_started(starting) {
            Ok(start) => Reply::Started { start, fds: 0 },
            Err(error) => {
                if let Some(pid) = container.pid {
                    signal(pid, libc::SIGKILL);
                }
                error_reply(format!("record the start: {error}"))
            }
        };
        self.say(client, reply, &[]);
    }

    fn finish_failed_start(&mut self, id: &str, error: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let client = container.starting.take().map(|starting| starting.client);
        container.has_ended(START_ERROR, None, Some(error.into()));
        if let Some(client) = client {
            self.say(client, error_reply(error), &[]);
        }
        self.announce_exit(id);
    }

    fn announce_exit(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(exit) = container.exit.clone() else {
            return;
        };
        self.end_attachments(id);
        let id = id.to_owned();
        self.tell_events(&Reply::Exited { id, exit });
    }

    fn exec(&mut self, client: u64, request: Exec) -> Result<(), Reply> {
        let sandbox = self.sandbox.as_ref().map_err(|error| error_reply(error.clone()))?;
        let container = self.containers.get(&request.id).ok_or_else(|| missing(&request.id))?;
        let target = match container.pid {
            Some(pid) if container.is_running() => pid,
            _ => return Err(error_reply("the container is not running")),
        };
        let mut given = self
            .clients
            .get_mut(&client)
            .map(|client| std::mem::take(&mut client.fds))
            .unwrap_or_default()
            .into_iter();
        let mut stdio = Stdio::default();
        if !request.tty {
            let mut take = |wanted: bool| if wanted { given.next() } else { None };
            stdio.stdin = take(request.stdin);
            stdio.stdout = take(request.stdout);
            stdio.stderr = take(request.stderr);
        }
        let mut process = container.spec.process.clone();
        process.args = request.args;
        process.tty = request.tty;
        if let Some(start) = &container.started {
            // Who it was found to be when it started: its files may say something else by now.
            process.user = UserSpec {
                user: start.user.uid.to_string(),
                group: start.user.gid.to_string(),
                supplemental: start.user.supplemental_groups.clone(),
                merge_groups: false,
            };
        }
        if request.tty && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
            process.env.push("TERM=xterm".into());
        }
        let failed = |what: &'static str| move |e: std::io::Error| error_reply(format!("{what}: {e}"));
        let namespace = |name: &str| {
            let opened = std::fs::File::open(format!("/proc/{target}/ns/{name}"));
            opened
                .map(OwnedFd::from)
                .map_err(failed("open the container's namespaces"))
        };
        let mounts = namespace("mnt")?;
        let pids = namespace("pid")?;
        let v2 = container.spec.cgroups.v1.is_empty();
        let cgroup = if v2 { Some(namespace("cgroup")?) } else { None };
        let users = Users::open(&process).map_err(|failure| error_reply(failure.0))?;
        let (ours, theirs) = init::channel().map_err(|e| failed("make a channel")(e.into()))?;
        let cloned = setup::clone_inside(&pids, &mounts, sandbox);
        match cloned.map_err(|e| failed("make a process")(e.into()))? {
            None => {
                drop(ours);
                init::join(&process, users, cgroup.as_ref(), &theirs, stdio)
            }
            Some(pid) => {
                drop((theirs, stdio));
                let mut starting = Starting::new(ours, client);
                if let Err(error) = place(pid, &container.spec, &starting) {
                    starting.error = Some(error);
                    signal(pid, libc::SIGKILL);
                }
                let exec = Running {
                    client,
                    starting: Some(starting),
                    started: false,
                    bound: request.bound,
                };
                self.execs.insert(pid.as_raw(), exec);
                Ok(())
            }
        }
    }

    fn exec_progress(&mut self, pid: i32) {
        let Some(exec) = self.execs.get_mut(&pid) else {
            return;
        };
        let Some(mut starting) = exec.starting.take() else {
            return;
        };
        if !starting.listen() {
            exec.starting = Some(starting);
            return;
        }
        let client = exec.client;
        if let Some(error) = starting.error {
            return self.say(client, error_reply(error), &[]);
        }
        exec.started = true;
        let start = StartRecord {
            pid: pid.unsigned_abs(),
            started_at: jiff::Timestamp::now(),
            user: starting.user.unwrap_or_default(),
        };
        let fds: Vec<OwnedFd> = starting.terminal.into_iter().collect();
        let reply = Reply::Started { start, fds: fds.len() };
        self.say(client, reply, &fds);
    }

    fn attach(&mut self, client: u64, id: &str, wanted: [bool; 3]) -> Result<(), Reply> {
        let container = self.containers.get_mut(id).ok_or_else(|| missing(id))?;
        if !container.is_running() {
            return Err(error_reply("the container is not running"));
        }
        let given = self
            .clients
            .get_mut(&client)
            .map(|client| std::mem::take(&mut client.fds));
        let mut given = given.unwrap_or_default().into_iter();
        let mut take = |wanted: bool| {
            let fd = if wanted { given.next() } else { None };
            match fd.map(|fd| nonblocking(fd.as_fd()).map(|()| fd)).transpose() {
                Ok(fd) => Ok(fd),
                Err(error) => Err(error_reply(format!("attach: {error}"))),
            }
        };
        let [stdin, stdout, stderr] = wanted;
        let attachment = Attachment {
            client,
            stdin: take(stdin)?,
            stdout: take(stdout)?.map(Sink::new),
            stderr: take(stderr)?.map(Sink::new),
        };
        container.attachments.push(attachment);
        Ok(())
    }

    fn attached_ready(&mut self, id: &str, index: usize, flags: PollFlags) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if let Some(attachment) = container.attachments.get_mut(index) {
            let gone = flags.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL);
            for sink in [&mut attachment.stdout, &mut attachment.stderr] {
                // Both share a token; a write tells which one is gone.
                let keep = sink
                    .as_mut()
                    .is_none_or(|sink| sink.flush() && !(gone && sink.wants_write()));
                let closed = gone && sink.as_ref().is_some_and(|sink| reader_gone(&sink.fd));
                if !keep || closed {
                    *sink = None;
                }
            }
        }
        if container.exit.is_some() {
            self.end_attachments(id);
        }
    }

    /// After the container's end: attachments whose readers have everything are over.
    fn end_attachments(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let mut over = Vec::new();
        container.attachments.retain_mut(|attachment| {
            attachment.stdin = None;
            let waits = attachment.sinks().any(|sink| sink.wants_write());
            if !waits {
                over.push(attachment.client);
            }
            waits
        });
        for client in over {
            self.say(client, Reply::Detached, &[]);
        }
    }

    // ---- ends ----

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let (pid, code, number) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code, None),
                Ok(WaitStatus::Signaled(pid, number, _)) => {
                    let number = number as i32;
                    (pid, 128 + number, Some(number))
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            self.ended(pid, code, number);
        }
    }

    fn ended(&mut self, pid: Pid, code: i32, number: Option<i32>) {
        if let Some(mut exec) = self.execs.remove(&pid.as_raw()) {
            if exec.starting.is_some() {
                self.execs.insert(pid.as_raw(), exec);
                self.exec_progress(pid.as_raw());
                match self.execs.remove(&pid.as_raw()) {
                    Some(again) => exec = again,
                    None => return,
                }
            }
            if exec.started {
                let exit = ExitRecord {
                    code,
                    signal: number,
                    oom_killed: false,
                    at: jiff::Timestamp::now(),
                    start_error: None,
                    unseen: false,
                };
                let id = String::new();
                self.say(exec.client, Reply::Exited { id, exit }, &[]);
            }
            if let Some(client) = self.clients.get_mut(&exec.client) {
                client.done = true;
            }
            return;
        }
        let found = self.containers.iter().find(|(_, container)| container.pid == Some(pid));
        let Some(id) = found.map(|(id, _)| id.clone()) else {
            return; // an orphan of a container, or the sandbox's first process
        };
        // What it said before it ended comes first.
        self.start_progress(&id);
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        if container.exit.is_some() {
            container.pid = None;
            return;
        }
        if container.starting.is_some() || container.started.is_none() {
            return self.finish_failed_start(&id, "the process ended before it became the program");
        }
        container.has_ended(code, number, None);
        container.pid = None;
        self.announce_exit(&id);
    }
}

/// Whether nobody reads what is written to `fd` any more.
fn reader_gone(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    let [fd] = &fds;
    polled.is_ok() && fd.revents().is_some_and(|flags| flags.contains(PollFlags::POLLERR))
}

/// Puts a new child into its control groups and lets it go.
fn place(pid: Pid, spec: &ContainerSpec, starting: &Starting) -> Result<(), String> {
    for dir in &spec.cgroups.dirs {
        let path = dir.join("cgroup.procs");
        std::fs::write(&path, pid.to_string())
            .map_err(|error| format!("enter control group {}: {error}", dir.display()))?;
    }
    setup::set_oom_score(&pid.to_string(), spec.oom_score_adj.unwrap_or(0));
    nonblocking(starting.channel.as_fd()).map_err(|error| format!("make a channel: {error}"))?;
    sys::send_fds(starting.channel.as_fd(), &[1], &[])
        .map(drop)
        .map_err(|error| format!("let the process go: {error}"))
}

fn signal(pid: Pid, number: i32) {
    // A number the kernel knows but nix does not (real-time signals) goes as it is.
    let sent = match Signal::try_from(number) {
        Ok(number) => kill(pid, number),
        Err(_) => sys::kill_raw(pid, number),
    };
    match sent {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => complain!("signal {number} to {pid}: {error}"),
    }
}
