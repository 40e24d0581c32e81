//! exec, attach and port-forward.
//!
//! The streams of an exec'ed process are pipes (or a terminal) between it and us: the shim only makes
//! the process and says how it ended. Attaching hands the shim pipes, because the container's own
//! streams are its.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::client::{self, Connection};
use super::records::{Container, Sandbox};
use super::{Embedded, internal};
use crate::protocol::{Exec, Reply, Request};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::spec::ExitRecord;
use crate::sys;
use crate::types::*;

/// Output kept of a collected command, per stream.
const MAX_OUTPUT: u64 = 16 << 20;
/// How long output may come after the process has ended: what it started may hold its streams.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// Ctrl-D.
const END_OF_INPUT: u8 = 4;

/// The far ends of pipes, in the order in which they are sent.
#[derive(Default)]
struct Ends(Vec<OwnedFd>);

impl Ends {
    fn pipe() -> Result<(OwnedFd, OwnedFd)> {
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(internal("make a pipe"))
    }

    /// A pipe the far side reads from.
    fn input(&mut self) -> Result<Sender> {
        let (read, write) = Self::pipe()?;
        self.0.push(read);
        Sender::from_owned_fd(write).map_err(internal("make a pipe"))
    }

    /// A pipe the far side writes to.
    fn output(&mut self) -> Result<Receiver> {
        let (read, write) = Self::pipe()?;
        self.0.push(write);
        Receiver::from_owned_fd(read).map_err(internal("make a pipe"))
    }

    fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// The master of a terminal.
struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    fn new(fd: OwnedFd) -> Result<Self> {
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL);
        let flags = flags.map_err(internal("open the terminal"))?;
        let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(flags)).map_err(internal("open the terminal"))?;
        sys::watched(fd).map(Self).map_err(internal("open the terminal"))
    }

    /// Reads; 0 when the last process has closed it.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), buffer)?)) {
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), bytes)?)) {
                Ok(result) => bytes = bytes.get(result?..).unwrap_or_default(),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

/// Copies until either side ends, then closes `to`. How a stream ends is not an error: the other
/// streams and the exit code tell the story.
async fn copy<R, W>(from: Option<R>, to: Option<W>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (Some(mut from), Some(mut to)) = (from, to) else {
        return;
    };
    let mut buffer = vec![0; 32 << 10];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return tracing::debug!(%error, "a stream broke off"),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        // Flushed each time: people and prompts wait at the other end.
        let written = match to.write_all(bytes).await {
            Ok(()) => to.flush().await,
            failed => failed,
        };
        if let Err(error) = written {
            return tracing::debug!(%error, "a stream's reader is gone");
        }
    }
    if let Err(error) = to.shutdown().await {
        tracing::debug!(%error, "close a stream");
    }
}

/// Collects at most [`MAX_OUTPUT`]; the rest is read and dropped, so that the process is not held.
async fn collect(mut from: Receiver) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut limited = (&mut from).take(MAX_OUTPUT);
    if let Err(error) = limited.read_to_end(&mut kept).await {
        tracing::debug!(%error, "collect output");
    }
    if let Err(error) = tokio::io::copy(&mut from, &mut tokio::io::sink()).await {
        tracing::debug!(%error, "collect output");
    }
    kept
}

async fn exited(connection: &mut Connection) -> Result<ExitRecord> {
    loop {
        match connection.receive().await.map_err(internal("listen to the shim"))? {
            Some(Reply::Exited { exit, .. }) => return Ok(exit),
            Some(_) => {}
            None => {
                return Err(RuntimeError::new(
                    ErrorKind::Unavailable,
                    "the container's shim ended before the command",
                ));
            }
        }
    }
}

impl Embedded {
    fn running(&self, container: &Container) -> Result<std::path::PathBuf> {
        if container.state() != ContainerState::Running {
            return Err(RuntimeError::precondition(format!(
                "container \"{}\" is not running",
                container.record.config.metadata.name
            )));
        }
        Ok(self.socket(&container.record.sandbox_id))
    }

    /// Asks the shim for a process; the reply says that it runs.
    async fn begin(&self, container: &Container, exec: Exec, ends: Ends) -> Result<(Connection, Vec<OwnedFd>)> {
        let socket = self.running(container)?;
        let mut connection = client::connect(&socket).await?;
        let asked = connection.ask(&Request::Exec(exec), &ends.borrowed()).await;
        match asked {
            Ok(Reply::Started { .. }) => {}
            Ok(other) => return Err(RuntimeError::internal("exec", format!("{other:?}"))),
            Err(error) if error.kind == ErrorKind::Internal => {
                return Err(RuntimeError::start_failed(format!(
                    "unable to start container process: {}",
                    error.message
                )));
            }
            Err(error) => return Err(error),
        }
        let fds = connection.take_fds();
        Ok((connection, fds))
    }

    pub(super) async fn run_command(
        &self,
        container: &Arc<Container>,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput> {
        let work = async {
            let mut ends = Ends::default();
            let (stdout, stderr) = (ends.output()?, ends.output()?);
            let exec = Exec {
                id: container.record.id.clone(),
                args: command.to_vec(),
                stdout: true,
                stderr: true,
                bound: true,
                ..Exec::default()
            };
            let (mut connection, _) = self.begin(container, exec, ends).await?;
            let mut output = pin!(async { tokio::join!(collect(stdout), collect(stderr)) });
            let mut collected = None;
            let exit = {
                let mut exit = pin!(exited(&mut connection));
                loop {
                    tokio::select! {
                        exit = &mut exit => break exit?,
                        both = &mut output, if collected.is_none() => collected = Some(both),
                    }
                }
            };
            if collected.is_none() {
                collected = tokio::time::timeout(AFTERWARDS, output).await.ok();
            }
            let (stdout, stderr) = collected.unwrap_or_default();
            Ok(ExecOutput {
                stdout,
                stderr,
                exit_code: exit.code,
            })
        };
        if timeout.is_zero() {
            return work.await;
        }
        // Dropping the work closes its connection, and the shim kills the process.
        tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
            Err(RuntimeError::new(
                ErrorKind::DeadlineExceeded,
                format!("command {command:?} timed out after {timeout:?}"),
            ))
        })
    }

    pub(super) async fn run_streams(
        &self,
        container: &Arc<Container>,
        request: ExecRequest,
        streams: Streams,
    ) -> Result<i32> {
        let mut exec = Exec {
            id: container.record.id.clone(),
            args: request.command,
            tty: request.tty,
            ..Exec::default()
        };
        if request.tty {
            let (mut connection, fds) = self.begin(container, exec, Ends::default()).await?;
            let master = fds.into_iter().next();
            let master = master.ok_or_else(|| RuntimeError::internal("exec", "no terminal came"))?;
            return with_terminal(&mut connection, Terminal::new(master)?, streams).await;
        }
        (exec.stdin, exec.stdout, exec.stderr) = (
            streams.stdin.is_some(),
            streams.stdout.is_some(),
            streams.stderr.is_some(),
        );
        let mut ends = Ends::default();
        let stdin = exec.stdin.then(|| ends.input()).transpose()?;
        let stdout = exec.stdout.then(|| ends.output()).transpose()?;
        let stderr = exec.stderr.then(|| ends.output()).transpose()?;
        let (mut connection, _) = self.begin(container, exec, ends).await?;
        let mut input = pin!(copy(streams.stdin, stdin));
        let mut output = pin!(async { tokio::join!(copy(stdout, streams.stdout), copy(stderr, streams.stderr)) });
        let (mut input_done, mut output_done) = (false, false);
        let exit = {
            let mut exit = pin!(exited(&mut connection));
            loop {
                tokio::select! {
                    exit = &mut exit => break exit?,
                    _ = &mut output, if !output_done => output_done = true,
                    () = &mut input, if !input_done => input_done = true,
                }
            }
        };
        if !output_done && tokio::time::timeout(AFTERWARDS, output).await.is_err() {
            tracing::debug!("output goes on after the process has ended");
        }
        Ok(exit.code)
    }

    pub(super) async fn attach_streams(&self, container: &Arc<Container>, mut streams: Streams) -> Result<()> {
        let socket = self.running(container)?;
        let config = &container.record.config;
        if !config.stdin {
            streams.stdin = None;
        }
        if config.tty {
            streams.stderr = None;
        }
        let mut ends = Ends::default();
        let wanted = (
            streams.stdin.is_some(),
            streams.stdout.is_some(),
            streams.stderr.is_some(),
        );
        let stdin = wanted.0.then(|| ends.input()).transpose()?;
        let stdout = wanted.1.then(|| ends.output()).transpose()?;
        let stderr = wanted.2.then(|| ends.output()).transpose()?;
        let mut connection = client::connect(&socket).await?;
        let request = Request::Attach {
            id: container.record.id.clone(),
            stdin: wanted.0,
            stdout: wanted.1,
            stderr: wanted.2,
        };
        connection.ask(&request, &ends.borrowed()).await?;
        drop(ends);
        let mut input = pin!(copy(streams.stdin, stdin));
        let mut output = pin!(async { tokio::join!(copy(stdout, streams.stdout), copy(stderr, streams.stderr)) });
        let mut resize = streams.resize;
        let (mut input_done, output_done) = (!wanted.0, !(wanted.1 || wanted.2));
        let mut detached = pin!(async {
            // Detached, closed or broken: the attachment is over either way.
            match connection.receive().await {
                Ok(reply) => tracing::trace!(?reply, "detached"),
                Err(error) => tracing::debug!(%error, "attached to a container"),
            }
        });
        loop {
            if input_done && output_done {
                return Ok(());
            }
            tokio::select! {
                () = &mut detached => break,
                _ = &mut output, if !output_done => {
                    // The client is gone, or the container has closed its streams.
                    return Ok(());
                }
                () = &mut input, if !input_done => input_done = true,
                size = next(&mut resize) => {
                    let id = container.record.id.clone();
                    let resized = client::ask(&socket, &Request::Resize { id, size }).await;
                    if let Err(error) = resized {
                        tracing::debug!(%error, "resize a terminal");
                    }
                }
            }
        }
        // The shim has said that everything is written: our ends hold the rest.
        if !output_done && tokio::time::timeout(AFTERWARDS, output).await.is_err() {
            tracing::debug!("an attached client does not read");
        }
        Ok(())
    }

    pub(super) async fn forward(&self, sandbox: &Arc<Sandbox>, port: u16, mut stream: Box<dyn Duplex>) -> Result<()> {
        if !sandbox.is_ready() {
            return Err(RuntimeError::precondition("the sandbox is not ready"));
        }
        let mut connection = client::connect(&self.socket(&sandbox.record.id)).await?;
        connection.ask(&Request::Sockets, &[]).await?;
        let mut refused = None;
        let mut connected: Option<TcpStream> = None;
        for (socket, address) in connection.take_fds().into_iter().zip(["127.0.0.1", "::1"]) {
            // Born in the sandbox's network namespace, it connects there whoever uses it.
            let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
            let address = std::net::SocketAddr::new(address.parse().map_err(internal("address"))?, port);
            match socket.connect(address).await {
                Ok(stream) => {
                    connected = Some(stream);
                    break;
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let Some(mut connected) = connected else {
            let why = refused.map_or("no sockets".into(), |error| error.to_string());
            return Err(RuntimeError::new(
                ErrorKind::Unavailable,
                format!(
                    "failed to connect to localhost:{port} inside sandbox \"{}\": {why}",
                    sandbox.record.id
                ),
            ));
        };
        match tokio::io::copy_bidirectional(&mut stream, &mut connected).await {
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, port, "a forwarded connection broke off"),
        }
        Ok(())
    }
}

/// The next size, or never.
async fn next(resize: &mut Option<mpsc::Receiver<TerminalSize>>) -> TerminalSize {
    if let Some(receiver) = resize {
        if let Some(size) = receiver.recv().await {
            return size;
        }
        *resize = None;
    }
    std::future::pending().await
}

/// Runs a process's terminal until it has ended.
async fn with_terminal(connection: &mut Connection, terminal: Terminal, streams: Streams) -> Result<i32> {
    let Streams {
        stdin,
        stdout,
        mut resize,
        ..
    } = streams;
    let input = async {
        let Some(mut stdin) = stdin else { return };
        let mut buffer = vec![0; 4 << 10];
        loop {
            match stdin.read(&mut buffer).await {
                Ok(0) => {
                    // A terminal has no end of input but the key for it: shells nobody types into go.
                    if let Err(error) = terminal.write_all(&[END_OF_INPUT]).await {
                        tracing::debug!(%error, "end a terminal's input");
                    }
                    return;
                }
                Ok(count) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    if let Err(error) = terminal.write_all(bytes).await {
                        return tracing::debug!(%error, "write to a terminal");
                    }
                }
                Err(error) => return tracing::debug!(%error, "a terminal's client broke off"),
            }
        }
    };
    let output = async {
        let mut stdout = stdout;
        let mut buffer = vec![0; 32 << 10];
        loop {
            let count = match terminal.read(&mut buffer).await {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => {
                    tracing::debug!(%error, "read from a terminal");
                    break;
                }
            };
            let Some(out) = &mut stdout else { continue };
            let bytes = buffer.get(..count).unwrap_or_default();
            let written = match out.write_all(bytes).await {
                Ok(()) => out.flush().await,
                failed => failed,
            };
            if let Err(error) = written {
                tracing::debug!(%error, "a terminal's client is gone");
                return true;
            }
        }
        if let Some(out) = &mut stdout
            && let Err(error) = out.shutdown().await
        {
            tracing::debug!(%error, "close a terminal's output");
        }
        false
    };
    let (mut input, mut output) = (pin!(input), pin!(output));
    let (mut input_done, mut output_done) = (false, false);
    let exit = {
        let mut exit = pin!(exited(connection));
        loop {
            tokio::select! {
                exit = &mut exit => break exit?,
                gone = &mut output, if !output_done => {
                    if gone {
                        // Letting go of the terminal hangs up on the process.
                        return Err(RuntimeError::new(
                            ErrorKind::Unavailable,
                            "the client of the terminal is gone",
                        ));
                    }
                    output_done = true;
                }
                () = &mut input, if !input_done => input_done = true,
                size = next(&mut resize) => {
                    if let Err(error) = sys::resize_terminal(terminal.0.get_ref().as_fd(), size) {
                        tracing::debug!(%error, "resize a terminal");
                    }
                }
            }
        }
    };
    if !output_done && tokio::time::timeout(AFTERWARDS, output).await.is_err() {
        tracing::debug!("a terminal stays open after its process");
    }
    Ok(exit.code)
}
