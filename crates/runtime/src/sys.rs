//! System calls that have no safe wrapper in nix.
//!
//! All `unsafe` of this crate is here. Each function is safe to call: what it passes to the kernel it
//! owns or borrows for the length of the call. [`clone_process`] has one rule of its own.
#![allow(unsafe_code)] // justified above; each block says what it relies on

use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use nix::unistd::Pid;

use crate::caps::Capability;
use crate::seccomp::Instruction;
use crate::types::TerminalSize;

type Result<T> = nix::Result<T>;

fn path_of(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

fn owned(result: libc::c_long) -> Result<OwnedFd> {
    let fd = Errno::result(result)?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Like fork, with namespaces. Returns the child's id in the parent and `None` in the child.
///
/// The calling process must have one thread (the shim does, from its first to its last instruction):
/// then the child is a full copy and may allocate.
pub fn clone_process(flags: CloneFlags) -> Result<Option<Pid>> {
    let flags = libc::c_long::from(flags.bits()) | libc::c_long::from(libc::SIGCHLD);
    // SAFETY: no stack and no pointers are passed, so the child continues on a copy of ours.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    let pid = Errno::result(pid)?;
    let pid = i32::try_from(pid).map_err(|_| Errno::EINVAL)?;
    Ok((pid != 0).then(|| Pid::from_raw(pid)))
}

/// Ends the process at once, without unwinding or buffers: for children of [`clone_process`].
pub fn exit_now(code: i32) -> ! {
    // SAFETY: always sound.
    unsafe { libc::_exit(code) }
}

/// A detached copy of the mount at `path`; with `recursive` of those below it too.
pub fn open_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let path = path_of(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    if recursive {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    // SAFETY: `path` lives through the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// A detached copy of the mount that a file is on, showing just the file: whatever its name leads to by now.
pub fn open_tree_of(file: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | (libc::O_CLOEXEC | libc::AT_EMPTY_PATH).cast_unsigned();
    // SAFETY: the empty string is static.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, file.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Attaches a detached mount at `target`.
pub fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    const F_EMPTY_PATH: libc::c_uint = 0x4;
    const T_EMPTY_PATH: libc::c_uint = 0x40;
    // SAFETY: the empty strings are static.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            F_EMPTY_PATH | T_EMPTY_PATH,
        )
    };
    Errno::result(result).map(drop)
}

/// What [`set_mount`] changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountChange {
    pub readonly: bool,
    pub nosuid: bool,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, or 0 to leave it.
    pub propagation: u64,
    pub recursive: bool,
}

/// Changes the mount `fd` is in (the root of).
pub fn set_mount(fd: BorrowedFd<'_>, change: MountChange) -> Result<()> {
    const RDONLY: u64 = 1;
    const NOSUID: u64 = 2;
    let mut set = 0;
    if change.readonly {
        set |= RDONLY;
    }
    if change.nosuid {
        set |= NOSUID;
    }
    let attr = MountAttr {
        set,
        propagation: change.propagation,
        ..MountAttr::default()
    };
    mount_setattr(fd, attr, change.recursive)
}

/// Shows the owners of files in a detached mount as the user namespace has them: what belongs to 0 on disk belongs
/// to its root. `EINVAL` when the file system cannot.
pub fn map_ids(mount: BorrowedFd<'_>, users: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    const IDMAP: u64 = 0x0010_0000;
    let attr = MountAttr {
        set: IDMAP,
        userns: u64::try_from(users.as_raw_fd()).map_err(|_| Errno::EBADF)?,
        ..MountAttr::default()
    };
    mount_setattr(mount, attr, recursive)
}

/// As the kernel lays it out.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn mount_setattr(fd: BorrowedFd<'_>, attr: MountAttr, recursive: bool) -> Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `attr` has the kernel's layout and its size is passed; both live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Marks every descriptor from 3 up to be closed by `execve`.
pub fn close_on_exec_from_3() -> Result<()> {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Closes every descriptor from 3 up. Only for a process that uses none of them any more.
pub fn close_from_3() -> Result<()> {
    // SAFETY: the only caller is a child that then only waits.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    Errno::result(result).map(drop)
}

/// Closes all descriptors above 2 but those in `kept`: for children of [`clone_process`], whose copies of the owners are
/// never dropped.
pub fn close_others(mut kept: Vec<RawFd>) -> Result<()> {
    kept.sort_unstable();
    let mut from = 3_u32;
    let gaps = kept.into_iter().filter_map(|fd| u32::try_from(fd).ok());
    for until in gaps.chain([u32::MAX]) {
        if until > from {
            let last = if until == u32::MAX { until } else { until - 1 };
            // SAFETY: nobody in this process uses the closed descriptors any more.
            let result = unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) };
            Errno::result(result)?;
        }
        from = from.max(until.saturating_add(1));
    }
    Ok(())
}

/// Leaves the session keyring of whoever started us for a new, empty one.
pub fn new_session_keyring() -> Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: no name is passed: an anonymous keyring.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0_usize) };
    Errno::result(result).map(drop)
}

/// Loads a system call filter for this process and its children.
pub fn load_filter(program: &[Instruction]) -> Result<()> {
    let program: Vec<libc::sock_filter> = program
        .iter()
        .map(|i| libc::sock_filter {
            code: i.code,
            jt: i.jump_true,
            jf: i.jump_false,
            k: i.operand,
        })
        .collect();
    let header = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program during the call and does not write to it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const header) };
    Errno::result(result).map(drop)
}

/// Takes a capability out of the bounding set.
pub fn drop_bounding(capability: Capability) -> Result<()> {
    // SAFETY: numbers only.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability.0)) };
    Errno::result(result).map(drop)
}

/// Sets effective and permitted to `set`; inheritable is empty.
pub fn set_capabilities(set: impl IntoIterator<Item = Capability>) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let bits = set
        .into_iter()
        .fold(0_u64, |bits, capability| bits | (1 << capability.0));
    let half = |bits: u32| Data {
        effective: bits,
        permitted: bits,
        inheritable: 0,
    };
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let data = [half(bits as u32), half((bits >> 32) as u32)];
    // SAFETY: version 3 of the interface reads one header and two data records of this layout.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Lets the kernel reap children by itself.
pub fn ignore_children() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Overwrites an argument of this process, as the list of processes shows it.
pub fn replace_argument(old: &str, new: &std::ffi::OsStr) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |number: usize| fields.get(number - 3).and_then(|f| f.trim().parse::<usize>().ok());
    let (Some(start), Some(end)) = (field(48), field(49)) else {
        return;
    };
    if start == 0 || end <= start || end - start > 1 << 20 {
        return;
    }
    // SAFETY: the kernel says that the arguments' strings lie from `start` to `end`. They are this
    // process's own writable memory (its stack); it has one thread, and has taken its arguments.
    let memory =
        unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut::<u8>(start), end - start) };
    let found = memory.windows(old.len()).position(|window| window == old.as_bytes());
    let room = found.and_then(|at| memory.get_mut(at..at + old.len()));
    if let Some(room) = room {
        let bytes = new.as_bytes().iter().copied().chain(std::iter::repeat(0));
        room.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
}

/// Every signal back to its default and none blocked: the state programs expect at their start.
pub fn default_signals() -> Result<()> {
    for signal in 1..=64 {
        // SAFETY: no handler is installed, one is taken away. SIGKILL and SIGSTOP refuse; so do the
        // two the C library keeps for itself.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::SigSet::all().thread_unblock()
}

/// The other end of a terminal whose master is `master`.
pub fn terminal_peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: the argument lives through the call.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
    Errno::result(result)?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: a number is passed and a new descriptor comes back.
    owned(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())
}

/// Makes standard input the controlling terminal of this session.
pub fn control_terminal() -> Result<()> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).map(drop)
}

/// Tells a terminal its size.
pub fn resize_terminal(terminal: BorrowedFd<'_>, size: TerminalSize) -> Result<()> {
    let size = libc::winsize {
        ws_row: size.height,
        ws_col: size.width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the argument lives through the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    Errno::result(result).map(drop)
}

/// Brings the loopback interface of this network namespace up.
pub fn loopback_up() -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero request is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request lives through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    Errno::result(result).map(drop)
}

/// Sends bytes with descriptors on a Unix socket; returns how many bytes went.
pub fn send_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let messages = if raw.is_empty() { &[] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(bytes)], messages, flags, None)
}

/// Receives bytes and descriptors from a Unix socket.
pub fn receive_fds(socket: BorrowedFd<'_>, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; 16]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            for fd in received {
                // SAFETY: the kernel has just installed this descriptor for us.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok(message.bytes)
}

/// Takes ownership of a descriptor a system call has just returned as a number.
pub fn adopted(fd: RawFd) -> OwnedFd {
    // SAFETY: every caller passes what accept or fcntl gave it and keeps no copy.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Sends a signal by number: real-time signals have no name in nix.
pub fn kill_raw(pid: Pid, signal: i32) -> Result<()> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// The descriptor a parent process left at `fd`.
pub fn inherited(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: the descriptor is only looked at here.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    nix::unistd::dup(borrowed.as_fd())
}

/// One eBPF instruction as the kernel lays it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Bpf {
    pub code: u8,
    /// Target in the low half, source in the high one.
    pub registers: u8,
    pub offset: i16,
    pub value: i32,
}

/// Loads a device program and attaches it to a version 2 control group.
pub fn attach_device_program(group: BorrowedFd<'_>, program: &[Bpf]) -> Result<()> {
    const PROG_LOAD: libc::c_int = 5;
    const PROG_ATTACH: libc::c_int = 8;
    const CGROUP_DEVICE_PROGRAM: u32 = 15;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        rest: [u64; 13],
    }
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let license = c"Apache-2.0";
    let load = Load {
        kind: CGROUP_DEVICE_PROGRAM,
        count: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        instructions: program.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        rest: [0; 13],
    };
    // SAFETY: the attribute begins as the kernel lays it out, the rest is zero as it demands; the
    // instructions and the license live through the call.
    let fd = owned(unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) })?;
    let attach = Attach {
        target: group.as_raw_fd().cast_unsigned(),
        program: fd.as_raw_fd().cast_unsigned(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: as above; the group keeps the program when our descriptor is closed.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    Errno::result(result).map(drop)
}

/// A watch on a directory: readable when a file in it is written, made, or renamed.
pub fn watch_directory(dir: &Path) -> Result<OwnedFd> {
    let path = path_of(dir)?;
    // SAFETY: a number is passed and a new descriptor comes back.
    let fd = owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) }.into())?;
    let mask = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_MOVED_FROM;
    // SAFETY: `path` lives through the call.
    let result = unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) };
    Errno::result(result).map(|_| fd)
}

/// A descriptor the event loop watches.
pub fn watched(fd: OwnedFd) -> std::io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open and the same for the registration's life; nobody takes
    // it out of the wrapper.
    let registered = unsafe { tokio::io::unix::AsyncFd::register(fd) };
    registered.map_err(std::io::Error::from)
}
