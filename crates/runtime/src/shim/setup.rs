//! What the shim does once: leave the server behind, enter the sandbox's namespaces.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, chdir, dup2_stdin, pivot_root, setsid};

use super::container::nonblocking;
use crate::init::{Namespaces, userns};
use crate::spec::{self, SandboxSpec, file};
use crate::sys;
use crate::types::{NamespaceMode, StringMap, UserNamespace};

/// What a helper process says when it has done its work.
const PREPARED: &str = "prepared";

/// What the shim holds of its sandbox.
pub struct Sandbox {
    pub spec: SandboxSpec,
    mounts: OwnedFd,
    shm: Option<OwnedFd>,
    /// The node's process namespace, to come back to.
    pub own_pids: OwnedFd,
    pub pause: Option<Pause>,
}

/// A Pod's user namespace, held.
struct Users<'a> {
    config: &'a UserNamespace,
    namespace: OwnedFd,
}

/// The first process of a shared process namespace.
pub struct Pause {
    pid: Pid,
    pub namespace: OwnedFd,
}

impl Sandbox {
    pub fn namespaces(&self) -> Namespaces<'_> {
        Namespaces {
            mounts: &self.mounts,
            shm: self.shm.as_ref(),
        }
    }

    /// The process to look at for the sandbox's namespaces.
    pub fn pid(&self) -> u32 {
        let own = Pid::this();
        self.pause
            .as_ref()
            .map_or(own, |pause| pause.pid)
            .as_raw()
            .unsigned_abs()
    }
}

/// Leaves the server: own session, no directory held, orphans of containers come to us. Returns the
/// listener and the signals that tell of children.
pub fn detach() -> Result<(OwnedFd, SignalFd), String> {
    let fail = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    let listener = sys::inherited(0).map_err(fail("take the listening socket"))?;
    nonblocking(listener.as_fd()).map_err(fail("take the listening socket"))?;
    let null = File::open("/dev/null").map_err(|error| format!("open /dev/null: {error}"))?;
    dup2_stdin(&null).map_err(fail("let standard input go"))?;
    prctl::set_name(c"sampan-shim").map_err(fail("take a name"))?;
    match setsid() {
        Ok(_) | Err(Errno::EPERM) => {} // a process that leads a group already is detached enough
        Err(error) => return Err(format!("start a session: {error}")),
    }
    prctl::set_child_subreaper(true).map_err(fail("become the reaper"))?;
    chdir("/").map_err(fail("leave the directory"))?;
    match sys::new_session_keyring() {
        // Kernels without keys have none to protect.
        Ok(()) | Err(Errno::ENOSYS) => {}
        Err(error) => return Err(format!("leave the node's keys: {error}")),
    }
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    let mut blocked = mask;
    // The server's terminal is not ours, and only the server ends us.
    for other in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE, Signal::SIGTERM] {
        blocked.add(other);
    }
    blocked.thread_block().map_err(fail("block signals"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&mask, flags).map_err(fail("listen to signals"))?;
    set_oom_score("self", -998);
    Ok((listener, signals))
}

/// Sets a process's place in the order in which the kernel kills. Lowering it needs a privilege that
/// containers-in-containers may lack; then it stays.
pub fn set_oom_score(pid: &str, score: i32) {
    let path = format!("/proc/{pid}/oom_score_adj");
    match fs::write(&path, score.to_string()) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
        Err(error) => complain!("{path}: {error}"),
    }
}

/// Enters the sandbox described in `dir`.
pub fn enter(dir: &Path) -> Result<Sandbox, String> {
    let path = dir.join(file::SANDBOX);
    let spec: SandboxSpec = spec::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
    for group in &spec.cgroups {
        let procs = group.join("cgroup.procs");
        fs::write(&procs, "0").map_err(|error| format!("enter {}: {error}", procs.display()))?;
    }
    let fail = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    let own = |name: &str| {
        let path = format!("/proc/self/ns/{name}");
        File::open(&path)
            .map(OwnedFd::from)
            .map_err(|error| format!("{path}: {error}"))
    };
    let (mounts, own_pids) = (own("mnt")?, own("pid")?);
    let users = match &spec.users {
        Some(config) => {
            let path = config.path.display();
            let namespace = File::open(&config.path).map_err(|error| format!("open user namespace {path}: {error}"))?;
            let namespace = namespace.into();
            Some(Users { config, namespace })
        }
        None => None,
    };
    let mut new = CloneFlags::empty();
    if spec.ipc != NamespaceMode::Node {
        new |= CloneFlags::CLONE_NEWIPC;
    }
    if spec.network != NamespaceMode::Node {
        // A Pod with the node's network has the node's name too.
        new |= CloneFlags::CLONE_NEWUTS;
    }
    match (&spec.netns, spec.network) {
        (_, NamespaceMode::Node) => {}
        (Some(path), _) => {
            let namespace =
                File::open(path).map_err(|error| format!("open network namespace {}: {error}", path.display()))?;
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|error| format!("join network namespace {}: {error}", path.display()))?;
        }
        (None, _) => new |= CloneFlags::CLONE_NEWNET,
    }
    match &users {
        Some(users) => unshare_as(users, new, &spec.sysctls)?,
        None => unshare(new).map_err(fail("make namespaces"))?,
    }
    if new.contains(CloneFlags::CLONE_NEWNET) {
        sys::loopback_up().map_err(fail("bring loopback up"))?;
    }
    if new.contains(CloneFlags::CLONE_NEWUTS) && !spec.hostname.is_empty() {
        nix::unistd::sethostname(&spec.hostname).map_err(fail("set the host name"))?;
    }
    if users.is_none() {
        // We are in the namespaces these belong to.
        set_sysctls(&spec.sysctls)?;
    }
    if spec.network != NamespaceMode::Node && users.is_none() {
        // As elsewhere: in a network of its own a Pod needs no privilege for low ports and ping.
        for (name, value) in [
            ("ip_unprivileged_port_start", "0"),
            ("ping_group_range", "0 2147483647"),
        ] {
            let path = Path::new("/proc/sys/net/ipv4").join(name);
            if !spec.sysctls.contains_key(&format!("net.ipv4.{name}"))
                && let Err(error) = fs::write(&path, value)
            {
                complain!("{}: {error}", path.display());
            }
        }
    }
    let shm = match spec.ipc {
        NamespaceMode::Node => None,
        _ => Some(shared_memory(dir, spec.shm_size, users.as_ref())?),
    };
    let pause = match spec.pid {
        NamespaceMode::Pod => Some(pause(&spec, users.as_ref())?),
        _ => None,
    };
    Ok(Sandbox {
        spec,
        mounts,
        shm,
        own_pids,
        pause,
    })
}

fn set_sysctls(sysctls: &StringMap) -> Result<(), String> {
    for (name, value) in sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).map_err(|error| format!("set sysctl {name}={value}: {error}"))?;
    }
    Ok(())
}

/// Makes namespaces that belong to a user namespace, sets their parameters as its root, and enters them. The shim
/// itself stays who it is: a process of the node that no container can touch.
fn unshare_as(users: &Users<'_>, new: CloneFlags, sysctls: &StringMap) -> Result<(), String> {
    let kinds = [
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("net", CloneFlags::CLONE_NEWNET),
    ];
    let prepare = || -> Result<(), String> {
        userns::enter(&users.namespace).map_err(|failure| failure.0)?;
        unshare(new).map_err(|error| format!("make namespaces: {error}"))?;
        set_sysctls(sysctls)
    };
    let (pid, go) = helper(CloneFlags::empty(), prepare)?;
    for (name, kind) in kinds {
        if !new.contains(kind) {
            continue;
        }
        let path = format!("/proc/{pid}/ns/{name}");
        let namespace = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
        setns(namespace, kind).map_err(|error| format!("enter a namespace of the Pod: {error}"))?;
    }
    drop(go);
    waitpid(pid, None).map_err(|error| format!("make namespaces: {error}"))?;
    Ok(())
}

/// Clones inside another process namespace. The namespace applies to children only, and is taken
/// back at once.
pub fn clone_in(namespace: &OwnedFd, own: &OwnedFd, flags: CloneFlags) -> nix::Result<Option<Pid>> {
    setns(namespace, CloneFlags::CLONE_NEWPID)?;
    let cloned = sys::clone_process(flags);
    if matches!(cloned, Ok(None)) {
        return cloned;
    }
    setns(own, CloneFlags::CLONE_NEWPID)?;
    cloned
}

/// Clones inside a container. The child has the container's root from its first moment: the container sees it at once, and
/// with `CAP_SYS_PTRACE` it could go where `/proc/PID/root` leads.
pub fn clone_inside(pids: &OwnedFd, mounts: &OwnedFd, sandbox: &Sandbox) -> nix::Result<Option<Pid>> {
    setns(mounts, CloneFlags::CLONE_NEWNS)?;
    let cloned = clone_in(pids, &sandbox.own_pids, CloneFlags::empty());
    if matches!(cloned, Ok(None)) {
        return cloned;
    }
    setns(&sandbox.mounts, CloneFlags::CLONE_NEWNS)?;
    cloned
}

/// A child that prepares something, says that it has (or why it could not), and waits to be told that it can go.
fn helper(flags: CloneFlags, prepare: impl FnOnce() -> Result<(), String>) -> Result<(Pid, OwnedFd), String> {
    let fail = |error: Errno| format!("make a helper process: {error}");
    let (ours, theirs) = crate::init::channel().map_err(fail)?;
    match sys::clone_process(flags).map_err(fail)? {
        None => {
            drop(ours);
            let said = match prepare() {
                Ok(()) => PREPARED.to_owned(),
                Err(error) => error,
            };
            if sys::send_fds(theirs.as_fd(), said.as_bytes(), &[]).is_err() || said != PREPARED {
                sys::exit_now(1);
            }
            let mut byte = [0];
            match sys::receive_fds(theirs.as_fd(), &mut byte, &mut Vec::new()) {
                Ok(_) => sys::exit_now(0),
                Err(_) => sys::exit_now(1),
            }
        }
        Some(pid) => {
            drop(theirs);
            let mut said = vec![0; 4 << 10];
            let count = sys::receive_fds(ours.as_fd(), &mut said, &mut Vec::new()).map_err(fail)?;
            match String::from_utf8_lossy(said.get(..count).unwrap_or_default()).as_ref() {
                PREPARED => Ok((pid, ours)),
                "" => Err("a helper process ended early".into()),
                error => Err(error.to_owned()),
            }
        }
    }
}

/// A mount namespace that holds nothing but the sandbox's `/dev/shm`: reachable by descriptor, in
/// nobody's mount table, gone with us.
fn shared_memory(dir: &Path, size: u64, users: Option<&Users<'_>>) -> Result<OwnedFd, String> {
    let none: Option<&str> = None;
    let root = users.map_or(0, |users| users.config.outside(0));
    let options = format!("mode=1777,size={size},uid={root},gid={root}");
    let mount_it = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        mount(Some("shm"), dir, Some("tmpfs"), flags, Some(options.as_str()))?;
        chdir(dir)?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)
    };
    let prepare = || mount_it().map_err(|error| format!("make shared memory: {error}"));
    let (pid, go) = helper(CloneFlags::empty(), prepare)?;
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"));
    drop(go);
    waitpid(pid, None).map_err(|error| format!("make shared memory: {error}"))?;
    namespace
        .map(OwnedFd::from)
        .map_err(|error| format!("make shared memory: {error}"))
}

/// The first process of a shared process namespace: reaps, and ends when told to.
fn pause(spec: &SandboxSpec, users: Option<&Users<'_>>) -> Result<Pause, String> {
    let fail = |error: Errno| format!("make the process namespace: {error}");
    let cloned = sys::clone_process(CloneFlags::CLONE_NEWPID).map_err(fail)?;
    let Some(pid) = cloned else {
        // Containers may see it and send it signals: it has no more rights than they.
        match users.map(|users| userns::enter(&users.namespace)) {
            Some(Err(_)) => sys::exit_now(1),
            _ => pause_main(),
        }
    };
    for group in &spec.pause_cgroups {
        let path = group.join("cgroup.procs");
        fs::write(&path, pid.to_string()).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let namespace = File::open(format!("/proc/{pid}/ns/pid"));
    let namespace = namespace.map_err(|error| format!("make the process namespace: {error}"))?;
    Ok(Pause {
        pid,
        namespace: namespace.into(),
    })
}

fn pause_main() -> ! {
    let wait = || -> nix::Result<()> {
        prctl::set_name(c"pause")?;
        prctl::set_dumpable(false)?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        sys::close_from_3()?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        loop {
            mask.wait()?;
            while let Ok(status) = waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
                if status == nix::sys::wait::WaitStatus::StillAlive {
                    break;
                }
            }
        }
    };
    match wait() {
        Ok(()) => sys::exit_now(0),
        Err(_) => sys::exit_now(1),
    }
}

/// TCP sockets of this network namespace: IPv4, and IPv6 if there is such.
pub fn sockets() -> Vec<OwnedFd> {
    let families = [AddressFamily::Inet, AddressFamily::Inet6];
    families
        .into_iter()
        .filter_map(|family| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(family, SockType::Stream, flags, None).ok()
        })
        .collect()
}
