//! The process that shims are copies of.
//!
//! A program of many megabytes has megabytes of addresses to fix when it is started; started for each
//! sandbox, that is private memory of each shim. One spawner per server is started, with the first
//! sandbox; shims are forked from it and share those pages. It has one thread, so that forking it is
//! sound (forking the server is not), does nothing else, and ends with the server: shims stay.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use crate::sys;

/// Tells the spawner's argument from a directory. It is long, to leave room for a shim's own.
const ARGUMENT: &str = "spawner";
const ROOM: usize = 240;

/// The argument to start a spawner with.
pub fn argument() -> String {
    format!("{ARGUMENT:-<ROOM$}")
}

/// Whether this is that argument.
pub fn is_argument(argument: &OsStr) -> bool {
    argument == OsStr::new(&self::argument())
}

/// Forks a shim for each message (a directory, with its listener and its log) until the server has
/// gone. Returns the directory in each child, `None` at the end.
pub fn serve() -> Result<Option<OsString>, String> {
    let fail = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    let socket = sys::inherited(0).map_err(fail("take the server's socket"))?;
    prctl::set_name(c"sampan-spawner").map_err(fail("take a name"))?;
    match setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => return Err(format!("start a session: {error}")),
    }
    // Shims answer to nobody here; their ends are none of our business.
    sys::ignore_children();
    let mut buffer = vec![0; 8 << 10];
    loop {
        let mut fds = Vec::new();
        let count = match sys::receive_fds(socket.as_fd(), &mut buffer, &mut fds) {
            Ok(0) => return Ok(None),
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(format!("listen to the server: {error}")),
        };
        let dir = OsString::from_vec(buffer.get(..count).unwrap_or_default().to_vec());
        match sys::clone_process(CloneFlags::empty()) {
            Ok(Some(_)) => {}
            Ok(None) => {
                drop(socket);
                become_shim(Path::new(&dir), fds)?;
                return Ok(Some(dir));
            }
            Err(error) => complain!("fork a shim: {error}"),
        }
    }
}

fn become_shim(dir: &Path, fds: Vec<OwnedFd>) -> Result<(), String> {
    let fail = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    let Ok([listener, log]) = <[OwnedFd; 2]>::try_from(fds) else {
        return Err("a shim needs its listener and its log".into());
    };
    sys::default_signals().map_err(fail("reset signals"))?;
    let null = File::options().write(true).open("/dev/null");
    let null = null.map_err(|error| format!("open /dev/null: {error}"))?;
    dup2_stdin(&listener).map_err(fail("connect the listener"))?;
    dup2_stdout(&null).map_err(fail("connect the output"))?;
    dup2_stderr(&log).map_err(fail("connect the log"))?;
    // For people who look at a list of processes.
    sys::replace_argument(&argument(), dir.as_os_str());
    Ok(())
}
