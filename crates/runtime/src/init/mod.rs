//! Becoming a container: what a child of the shim does between `clone` and `execve`.
//!
//! The child is a copy of the single-threaded shim, so it may allocate and there is no state to hand
//! over. It reports on a channel whose end it loses at `execve`: silence then means success.
//!
//! This is our own code and not libcontainer's because three things did not fit: the filter must be
//! loaded at an exact moment that its executor hook cannot reach without the C library for seccomp;
//! containers are mounted here without ever touching the node's mount table (nothing to clean up
//! after a crash); and its process tree (intermediate processes, state directories, a notify socket)
//! costs more time and memory than the rest of a container's start.
//!
//! Invariants:
//! - no descriptor but 0–2 reaches the program;
//! - the child is not dumpable while it is in the container's namespaces with the node's powers, and
//!   the executable it was copied from sits on a read-only mount, so the container cannot write it;
//! - every path of the container is resolved inside its root by the kernel (`RESOLVE_IN_ROOT`), or
//!   after the root was changed;
//! - with a user namespace, the child enters it when the files are in place and nothing more is needed of the node.

mod process;
mod rootfs;
pub(crate) mod userns;
mod users;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use serde::{Deserialize, Serialize};

use self::userns::Users;
use crate::spec::{ContainerSpec, ProcessSpec};
use crate::sys;
use crate::types::ContainerUser;

/// What the child says before it becomes the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// Who it will be. With a terminal, the descriptor of its master comes along.
    User(ContainerUser),
    /// It failed.
    Error(String),
}

/// A failure, in words.
#[derive(Debug)]
pub struct Failure(pub String);

pub type Result<T> = std::result::Result<T, Failure>;

/// Adds what was being done to an error.
pub fn doing<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> Failure {
    move |error| Failure(format!("{what}: {error}"))
}

/// A channel between shim and child: keeps message boundaries and carries descriptors.
pub fn channel() -> nix::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
}

/// Standard streams of the child; unused with a terminal.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// Namespaces the shim holds.
#[derive(Clone, Copy, Debug)]
pub struct Namespaces<'a> {
    /// The node's mounts.
    pub mounts: &'a OwnedFd,
    /// A mount namespace whose root is the sandbox's shared memory.
    pub shm: Option<&'a OwnedFd>,
}

/// Becomes the container's first process. Only for a child of [`sys::clone_process`].
pub fn container(spec: &ContainerSpec, ns: Namespaces<'_>, channel: &OwnedFd, stdio: Stdio) -> ! {
    let prepare = || {
        prctl::set_dumpable(false).map_err(doing("make the process undumpable"))?;
        wait_for_go(channel)?;
        setsid().map_err(doing("start a session"))?;
        if spec.cgroups.v1.is_empty() {
            unshare(CloneFlags::CLONE_NEWCGROUP).map_err(doing("make a cgroup namespace"))?;
        }
        let users = Users::open(&spec.process)?;
        rootfs::enter(spec, ns, users.as_ref())?;
        Ok(users)
    };
    let result = prepare().and_then(|users| become_program(&spec.process, users, channel, stdio, true));
    report(channel, &result)
}

/// Becomes a further process of a container, inside whose process and mount namespaces it was cloned. `cgroup` is the
/// namespace of control groups it is to join, `users` that of its users.
pub fn join(
    process: &ProcessSpec,
    users: Option<Users>,
    cgroup: Option<&OwnedFd>,
    channel: &OwnedFd,
    stdio: Stdio,
) -> ! {
    let prepare = || {
        prctl::set_dumpable(false).map_err(doing("make the process undumpable"))?;
        // What the shim holds is none of the container's business, not even to look at in /proc/PID/fd.
        let streams = [&stdio.stdin, &stdio.stdout, &stdio.stderr];
        let users = users.as_ref().map(Users::namespace);
        let kept = streams
            .into_iter()
            .flatten()
            .chain(users)
            .chain(cgroup)
            .chain([channel]);
        sys::close_others(kept.map(AsRawFd::as_raw_fd).collect()).map_err(doing("close descriptors"))?;
        wait_for_go(channel)?;
        setsid().map_err(doing("start a session"))?;
        match cgroup {
            Some(cgroup) => setns(cgroup, CloneFlags::CLONE_NEWCGROUP).map_err(doing("join the cgroup namespace")),
            None => Ok(()),
        }
    };
    let result = prepare().and_then(|()| become_program(process, users, channel, stdio, false));
    report(channel, &result)
}

fn report(channel: &OwnedFd, result: &Result<std::convert::Infallible>) -> ! {
    let text = match result {
        Err(Failure(text)) => text.clone(),
        Ok(never) => match *never {},
    };
    let word = serde_json::to_vec(&Word::Error(text)).unwrap_or_default();
    match sys::send_fds(channel.as_fd(), &word, &[]) {
        Ok(_) => sys::exit_now(1),
        // The shim is gone: nobody to tell.
        Err(_) => sys::exit_now(2),
    }
}

/// The shim says so once the process is in its control groups.
fn wait_for_go(channel: &OwnedFd) -> Result<()> {
    let mut byte = [0];
    match sys::receive_fds(channel.as_fd(), &mut byte, &mut Vec::new()) {
        Ok(1) => Ok(()),
        Ok(_) => Err(Failure("the shim ended".into())),
        Err(error) => Err(Failure(format!("wait for the shim: {error}"))),
    }
}

fn become_program(
    process: &ProcessSpec,
    users: Option<Users>,
    channel: &OwnedFd,
    stdio: Stdio,
    first: bool,
) -> Result<std::convert::Infallible> {
    let identity = users::resolve(&process.user)?;
    let word = serde_json::to_vec(&Word::User(identity.user.clone()));
    let word = word.map_err(doing("say who it is"))?;
    if process.tty {
        let master = rootfs::terminal(first)?;
        sys::send_fds(channel.as_fd(), &word, &[master.as_fd()]).map_err(doing("hand over the terminal"))?;
    } else {
        sys::send_fds(channel.as_fd(), &word, &[]).map_err(doing("say who it is"))?;
        connect(stdio)?;
    }
    let uid = identity.user.uid;
    own_streams(users.as_ref().map_or(uid, |users| users.outside(uid)))?;
    if let Some(users) = users {
        users.enter(first)?;
    }
    process::execute(process, &identity)
}

/// Gives the streams to the user, so that programs can open `/dev/stdout` again.
fn own_streams(uid: u32) -> Result<()> {
    let null = nix::sys::stat::stat("/dev/null")
        .map(|stat| stat.st_rdev)
        .unwrap_or_default();
    for fd in 0..3 {
        let stream = sys::inherited(fd).map_err(doing("look at a stream"))?;
        let stat = nix::sys::stat::fstat(&stream).map_err(doing("look at a stream"))?;
        if stat.st_uid == uid || stat.st_rdev == null {
            continue;
        }
        use nix::errno::Errno::{EINVAL, EPERM, EROFS};
        match nix::unistd::fchown(&stream, Some(nix::unistd::Uid::from_raw(uid)), None) {
            // A stream that cannot be given away still works as it is.
            Ok(()) | Err(EINVAL | EPERM | EROFS) => {}
            Err(error) => return Err(Failure(format!("give a stream to its user: {error}"))),
        }
    }
    Ok(())
}

/// Makes the given streams 0–2; what is absent is `/dev/null`.
fn connect(stdio: Stdio) -> Result<()> {
    use nix::fcntl::{OFlag, open};
    let null = || {
        open(
            Path::new("/dev/null"),
            OFlag::O_RDWR | OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )
        .map_err(doing("open /dev/null"))
    };
    let or_null = |fd: Option<OwnedFd>| fd.map_or_else(null, Ok);
    // Taken above 2 first, so that no stream is overwritten before it was copied.
    let above = |fd: OwnedFd| {
        if fd.as_raw_fd() > 2 {
            return Ok(fd);
        }
        let minimum = nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3);
        let raw = nix::fcntl::fcntl(&fd, minimum).map_err(doing("copy a stream"))?;
        Ok(sys::adopted(raw))
    };
    let stdin = above(or_null(stdio.stdin)?)?;
    let stdout = above(or_null(stdio.stdout)?)?;
    let stderr = above(or_null(stdio.stderr)?)?;
    dup2_stdin(&stdin).map_err(doing("connect standard input"))?;
    dup2_stdout(&stdout).map_err(doing("connect standard output"))?;
    dup2_stderr(&stderr).map_err(doing("connect standard error"))
}
