//! The last steps before a program: directory, identity, capabilities, filter, `execve`.

use std::convert::Infallible;
use std::ffi::CString;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, execve, fchdir, setgroups, setresgid, setresuid};

use super::users::Identity;
use super::{Failure, Result, doing};
use crate::caps::Capability;
use crate::spec::ProcessSpec;
use crate::sys;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Becomes the program.
pub fn execute(process: &ProcessSpec, identity: &Identity) -> Result<Infallible> {
    let cwd = if process.cwd.as_os_str().is_empty() {
        Path::new("/")
    } else {
        &process.cwd
    };
    let dir = super::rootfs::working_directory(cwd)?;
    fchdir(&dir).map_err(doing(format!("change to working directory {}", cwd.display())))?;
    drop(dir);
    // A name like /proc/self/fd/7 could lead out of the container; the kernel then knows no path.
    nix::unistd::getcwd().map_err(doing("working directory is outside the container"))?;
    if let Some(profile) = &process.apparmor {
        // Of this thread, at the next execve. The older file is for kernels without the newer.
        let text = format!("exec {profile}");
        let write = super::rootfs::write_proc;
        let written = write("/proc/thread-self/attr/apparmor/exec", &text)
            .or_else(|_| write("/proc/thread-self/attr/exec", &text));
        written.map_err(doing(format!("apply AppArmor profile {profile}")))?;
    }
    sys::close_on_exec_from_3().map_err(doing("close descriptors"))?;
    // The server goes without huge pages, which is inherited; a container gets what the machine gives.
    prctl::set_thp_disable(false).map_err(doing("allow huge pages again"))?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    identify(process, identity)?;
    sys::default_signals().map_err(doing("reset signals"))?;
    run(process, identity)
}

/// Gives up what the program shall not have. The order is what makes it possible: see
/// [`crate::seccomp`] for the filter; the bounding set needs `CAP_SETPCAP`; groups before users.
fn identify(process: &ProcessSpec, identity: &Identity) -> Result<()> {
    let filter = process.seccomp.as_ref();
    let load = |filter: &crate::seccomp::Filter| sys::load_filter(&filter.0).map_err(doing("load the seccomp filter"));
    if let Some(filter) = filter
        && !process.no_new_privs
    {
        load(filter)?;
    }
    let keep: Vec<Capability> = process.capabilities.iter().map(|&c| Capability(c)).collect();
    for capability in Capability::all() {
        if !keep.contains(&capability) {
            sys::drop_bounding(capability).map_err(doing("limit capabilities"))?;
        }
    }
    let user = &identity.user;
    let groups: Vec<Gid> = user.supplemental_groups.iter().map(|&g| Gid::from_raw(g)).collect();
    setgroups(&groups).map_err(doing("set groups"))?;
    let gid = Gid::from_raw(user.gid);
    setresgid(gid, gid, gid).map_err(doing("set the group"))?;
    prctl::set_keepcaps(true).map_err(doing("keep capabilities"))?;
    let uid = Uid::from_raw(user.uid);
    setresuid(uid, uid, uid).map_err(doing("set the user"))?;
    prctl::set_keepcaps(false).map_err(doing("keep capabilities"))?;
    sys::set_capabilities(keep).map_err(doing("set capabilities"))?;
    if process.no_new_privs {
        prctl::set_no_new_privs().map_err(doing("forbid new privileges"))?;
        if let Some(filter) = filter {
            load(filter)?;
        }
    }
    Ok(())
}

fn run(process: &ProcessSpec, identity: &Identity) -> Result<Infallible> {
    let c = |text: &String| CString::new(text.as_str()).map_err(doing("a string with a zero byte"));
    let args: Vec<CString> = process.args.iter().map(c).collect::<Result<_>>()?;
    let mut env: Vec<CString> = process.env.iter().map(c).collect::<Result<_>>()?;
    if !process.env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(c(&format!("HOME={}", identity.home))?);
    }
    let Some(program) = process.args.first().filter(|program| !program.is_empty()) else {
        return Err(Failure("no command specified".into()));
    };
    let attempt = |path: &str| -> Result<Errno> {
        let path = c(&path.to_owned())?;
        Ok(execve(&path, &args, &env).unwrap_err())
    };
    if program.contains('/') {
        let errno = attempt(program)?;
        let why = match errno {
            Errno::ENOENT if !Path::new(program).exists() => {
                format!("stat {program}: no such file or directory")
            }
            Errno::ENOENT => "its interpreter does not exist: no such file or directory".into(),
            Errno::EACCES => "permission denied".into(),
            Errno::ENOEXEC => "exec format error".into(),
            other => other.desc().to_lowercase(),
        };
        return Err(Failure(format!("exec: {program:?}: {why}")));
    }
    let path = process.env.iter().find_map(|entry| entry.strip_prefix("PATH="));
    let mut denied = None;
    for dir in path.unwrap_or(DEFAULT_PATH).split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        match attempt(&format!("{dir}/{program}"))? {
            Errno::ENOENT | Errno::ENOTDIR => {}
            errno => denied = Some(errno),
        }
    }
    Err(Failure(match denied {
        Some(Errno::EACCES) => format!("exec: {program:?}: permission denied"),
        Some(errno) => format!("exec: {program:?}: {}", errno.desc().to_lowercase()),
        None => format!("exec: {program:?}: executable file not found in $PATH"),
    }))
}
