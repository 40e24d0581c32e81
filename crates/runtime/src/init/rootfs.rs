//! The container's files: overlay, mounts, devices, and the change of root.
//!
//! Everything is mounted in the child's own mount namespace, so the node's mount table never shows a
//! container and the kernel removes all of it with the last process.
//!
//! Invariants, because what is mounted may be the work of an attacker (CVE-2025-31133, -52565, -52881 and their kin):
//! - `/proc` is always the kernel's own, and nothing else is mounted over a part of it, or what this process writes there
//!   (an AppArmor profile) would go somewhere else;
//! - what hides and protects comes from the node and is put in place by descriptors before the change of root: no name
//!   of the container's is looked up twice, and none is followed out of the root.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, ResolveFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, fstat, makedev, mkdirat, mknodat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::{Gid, Uid, chdir, fchdir, fchownat, pivot_root, symlinkat};

use super::userns::Users;
use super::{Failure, Namespaces, Result, doing};
use crate::spec::{ContainerSpec, DeviceSpec, MountSpec, RootfsSpec};
use crate::sys::{self, MountChange};
use crate::types::MountPropagation;

const NONE: Option<&str> = None;
const NO_EXTRAS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// A bind mount whose source was taken from the node before its mounts were left behind.
struct Taken<'a> {
    mount: &'a MountSpec,
    tree: Option<OwnedFd>,
}

/// The container's root while it is put together, and whom new files in it belong to.
struct Root<'a> {
    fd: OwnedFd,
    users: Option<&'a Users>,
}

impl Root<'_> {
    /// The node's id of the container's root, or of another user in it.
    fn id(&self, inside: u32) -> u32 {
        self.users.map_or(inside, |users| users.outside(inside))
    }

    /// Mount options that make a new file system the container's.
    fn owner(&self) -> String {
        let root = self.id(0);
        format!("uid={root},gid={root}")
    }
}

/// Makes the container's root and changes to it.
pub fn enter(spec: &ContainerSpec, ns: Namespaces<'_>, users: Option<&Users>) -> Result<()> {
    let rootfs = &spec.rootfs;
    let shm = match ns.shm {
        Some(shm) => {
            setns(shm, CloneFlags::CLONE_NEWNS).map_err(doing("join the shared memory"))?;
            let tree = sys::open_tree(Path::new("/"), false).map_err(doing("take shared memory"))?;
            setns(ns.mounts, CloneFlags::CLONE_NEWNS).map_err(doing("return to the node's mounts"))?;
            Some(tree)
        }
        None => None,
    };
    // Taken while the node's mounts still are peers of ours: only so can propagation be kept.
    let taken = take(rootfs, users)?;
    let cgroups = spec.cgroups.v1.iter().map(|(name, dir)| {
        let tree = sys::open_tree(dir, false);
        Ok((name.as_str(), tree.map_err(doing(format!("take {}", dir.display())))?))
    });
    let cgroups: Vec<(&str, OwnedFd)> = cgroups.collect::<Result<_>>()?;

    unshare(CloneFlags::CLONE_NEWNS).map_err(doing("make a mount namespace"))?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(NONE, "/", NONE, flags, NONE).map_err(doing("detach the node's mounts"))?;
    let target = rootfs.dir.join("rootfs");
    overlay(rootfs, &target, users)?;
    let fd = open_dir(&target)?;
    let root = Root { fd, users };

    if rootfs.readonly {
        for path in &rootfs.volumes {
            keep_writable(&root, path)?;
        }
    }
    let overridden = |path: &str| rootfs.mounts.iter().any(|m| m.target == Path::new(path));
    fresh(&root, "/proc", "proc", NO_EXTRAS, NONE)?;
    if !overridden("/dev") {
        device_files(&root, rootfs, shm)?;
    }
    if !overridden("/sys") {
        let flags = if rootfs.privileged {
            NO_EXTRAS
        } else {
            NO_EXTRAS | MsFlags::MS_RDONLY
        };
        fresh(&root, "/sys", "sysfs", flags, NONE)?;
        if !overridden("/sys/fs/cgroup") {
            control_groups(&root, cgroups, rootfs.privileged)?;
        }
    }
    for taken in taken {
        attach(&root, rootfs, taken)?;
    }
    for path in &rootfs.read_only_paths {
        read_only(&root.fd, path)?;
    }
    for path in &rootfs.masked {
        mask(&root.fd, path)?;
    }
    change_root(&root.fd)?;
    drop(root);
    if rootfs.readonly {
        let root = open_dir(Path::new("/"))?;
        let change = MountChange {
            readonly: true,
            ..MountChange::default()
        };
        sys::set_mount(root.as_fd(), change).map_err(doing("make the root read-only"))?;
    }
    Ok(())
}

/// A mount of its own on a directory of the root: making the root read-only does not reach it.
fn keep_writable(root: &Root<'_>, path: &Path) -> Result<()> {
    let what = || format!("keep volume {} writable", path.display());
    let target = ensure(root, path, true)?;
    let tree = sys::open_tree(&fd_path(&target), false).map_err(doing(what()))?;
    sys::move_mount(tree.as_fd(), target.as_fd()).map_err(doing(what()))
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(doing(format!("open {}", path.display())))
}

/// A descriptor as a path, for calls that only take paths.
fn fd_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn take<'a>(rootfs: &'a RootfsSpec, users: Option<&Users>) -> Result<Vec<Taken<'a>>> {
    let mut taken = Vec::new();
    for mount in &rootfs.mounts {
        let tree = if mount.layers.is_empty() {
            let what = || format!("mount {} at {}", mount.source.display(), mount.target.display());
            let tree = sys::open_tree(&mount.source, true).map_err(doing(what()))?;
            if let Some(users) = users {
                users.map(&tree, true, &mount.source)?;
            }
            let propagation = match mount.propagation {
                MountPropagation::Private => libc::MS_PRIVATE,
                MountPropagation::HostToContainer => libc::MS_SLAVE,
                MountPropagation::Bidirectional => 0,
            };
            if propagation != 0 {
                let change = MountChange {
                    propagation,
                    recursive: true,
                    ..MountChange::default()
                };
                sys::set_mount(tree.as_fd(), change).map_err(doing(what()))?;
            }
            protect(&tree, mount)?;
            Some(tree)
        } else {
            None
        };
        taken.push(Taken { mount, tree });
    }
    // What contains comes before what is contained.
    taken.sort_by_key(|taken| taken.mount.target.components().count());
    Ok(taken)
}

fn protect(tree: &OwnedFd, mount: &MountSpec) -> Result<()> {
    if !mount.readonly {
        return Ok(());
    }
    let change = MountChange {
        readonly: true,
        recursive: mount.recursive_readonly,
        ..MountChange::default()
    };
    let what = format!("make {} read-only", mount.target.display());
    sys::set_mount(tree.as_fd(), change).map_err(doing(what))
}

fn joined(layers: &[PathBuf]) -> Vec<u8> {
    let parts: Vec<&[u8]> = layers.iter().map(|path| path.as_os_str().as_bytes()).collect();
    parts.join(&b':')
}

/// Names of `layers` for mount options, relative to the directory this enters: relative names keep the options
/// within the page the kernel gives them. With a user namespace the layers are shown under other owners, in a
/// directory of memory mounted at `place`; what is mounted there next covers it.
fn lower(rootfs: &RootfsSpec, layers: &[PathBuf], place: &Path, users: Option<&Users>) -> Result<Vec<u8>> {
    let Some(users) = users else {
        chdir(&rootfs.layers).map_err(doing(format!("enter {}", rootfs.layers.display())))?;
        return Ok(joined(layers));
    };
    let what = || doing("show the layers under other owners");
    mount(Some("layers"), place, Some("tmpfs"), NO_EXTRAS, Some("mode=700")).map_err(what())?;
    chdir(place).map_err(what())?;
    let here = open_dir(Path::new("."))?;
    let mut names = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let (name, layer) = (PathBuf::from(number.to_string()), rootfs.layers.join(layer));
        let tree = sys::open_tree(&layer, false).map_err(doing(format!("take {}", layer.display())))?;
        users.map(&tree, false, &layer)?;
        mkdirat(&here, &name, Mode::from_bits_truncate(0o700)).map_err(what())?;
        let target = openat(&here, &name, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        sys::move_mount(tree.as_fd(), target.map_err(what())?.as_fd()).map_err(what())?;
        names.push(name);
    }
    Ok(joined(&names))
}

fn overlay(rootfs: &RootfsSpec, target: &Path, users: Option<&Users>) -> Result<()> {
    let mut options = b"lowerdir=".to_vec();
    options.extend(lower(rootfs, &rootfs.lower, target, users)?);
    options.extend(b",upperdir=");
    options.extend(rootfs.dir.join("upper").as_os_str().as_bytes());
    options.extend(b",workdir=");
    options.extend(rootfs.dir.join("work").as_os_str().as_bytes());
    // A container's writes need not survive the machine: no flush when it ends.
    let mut volatile = options.clone();
    volatile.extend(b",volatile");
    let attempt = |options: &[u8]| {
        let options = Some(OsStr::from_bytes(options));
        mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), options)
    };
    let mounted = match attempt(&volatile) {
        Err(Errno::EINVAL) => attempt(&options),
        other => other,
    };
    mounted.map_err(doing("mount the container's layers"))
}

/// Opens `path` inside the root, creating what is missing.
fn ensure(root: &Root<'_>, path: &Path, directory: bool) -> Result<OwnedFd> {
    let relative: PathBuf = path
        .components()
        .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir))
        .collect();
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let look = || sampan_paths::open_in(&root.fd, &relative, OFlag::O_PATH, resolve);
    match look() {
        Err(Errno::ENOENT) => {}
        other => return other.map_err(doing(format!("open {} inside", path.display()))),
    }
    let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else {
        return Err(Failure(format!("{} cannot be created inside", path.display())));
    };
    let parent = ensure(root, parent, true)?;
    if directory {
        mkdirat(&parent, name, Mode::from_bits_truncate(0o755))
    } else {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        openat(&parent, name, flags, Mode::from_bits_truncate(0o644)).map(drop)
    }
    .map_err(doing(format!("create {} inside", path.display())))?;
    if root.users.is_some() {
        let (uid, gid) = (Uid::from_raw(root.id(0)), Gid::from_raw(root.id(0)));
        let owned = fchownat(&parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW);
        owned.map_err(doing(format!("give {} to its owner", path.display())))?;
    }
    look().map_err(doing(format!("open {} inside", path.display())))
}

/// Mounts a new file system inside.
fn fresh(root: &Root<'_>, path: &str, kind: &str, flags: MsFlags, data: Option<&str>) -> Result<()> {
    let target = ensure(root, Path::new(path), true)?;
    mount(Some(kind), &fd_path(&target), Some(kind), flags, data).map_err(doing(format!("mount {kind} at {path}")))
}

fn device_files(root: &Root<'_>, rootfs: &RootfsSpec, shm: Option<OwnedFd>) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
    let options = format!("mode=755,size=65536k,{}", root.owner());
    fresh(root, "/dev", "tmpfs", flags, Some(&options))?;
    let no_exec = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = format!("newinstance,ptmxmode=0666,mode=0620,gid={}", root.id(5));
    fresh(root, "/dev/pts", "devpts", no_exec, Some(&options))?;
    fresh(root, "/dev/mqueue", "mqueue", NO_EXTRAS, NONE)?;
    let target = ensure(root, Path::new("/dev/shm"), true)?;
    let shm = match shm {
        Some(shm) => Some(shm),
        None if rootfs.host_ipc => Some(sys::open_tree(Path::new("/dev/shm"), false).map_err(doing("take /dev/shm"))?),
        None => None,
    };
    match shm {
        Some(shm) => sys::move_mount(shm.as_fd(), target.as_fd()).map_err(doing("mount /dev/shm"))?,
        None => {
            let data = format!("mode=1777,size=65536k,{}", root.owner());
            let data = Some(data.as_str());
            mount(Some("shm"), &fd_path(&target), Some("tmpfs"), NO_EXTRAS, data).map_err(doing("mount /dev/shm"))?;
        }
    }
    for device in &rootfs.devices {
        make_device(root, device)?;
    }
    let dev = ensure(root, Path::new("/dev"), true)?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlinkat(target, &dev, name).map_err(doing(format!("link /dev/{name}")))?;
    }
    Ok(())
}

fn make_device(root: &Root<'_>, device: &DeviceSpec) -> Result<()> {
    let what = || format!("make device {}", device.path.display());
    let (Some(dir), Some(name)) = (device.path.parent(), device.path.file_name()) else {
        return Err(Failure(format!("{}: no such path", what())));
    };
    let dir = ensure(root, dir, true)?;
    let kind = if device.kind == "b" {
        SFlag::S_IFBLK
    } else {
        SFlag::S_IFCHR
    };
    let number = makedev(device.major, device.minor);
    let old = nix::sys::stat::umask(Mode::empty());
    let made = mknodat(&dir, name, kind, Mode::from_bits_truncate(device.mode), number);
    nix::sys::stat::umask(old);
    match made {
        Err(Errno::EEXIST) => return Ok(()),
        other => other.map_err(doing(what()))?,
    }
    let (uid, gid) = (Uid::from_raw(root.id(device.uid)), Gid::from_raw(root.id(device.gid)));
    fchownat(&dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(doing(what()))
}

/// What programs that look at their own limits read. Version 1 shows the container's directory of
/// each controller; version 2 is a mount of its own, whose root the cgroup namespace sets.
fn control_groups(root: &Root<'_>, v1: Vec<(&str, OwnedFd)>, writable: bool) -> Result<()> {
    let read_only = if writable { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    if v1.is_empty() {
        return fresh(root, "/sys/fs/cgroup", "cgroup2", NO_EXTRAS | read_only, NONE);
    }
    fresh(root, "/sys/fs/cgroup", "tmpfs", NO_EXTRAS, Some("mode=755"))?;
    for (name, tree) in v1 {
        let change = MountChange {
            readonly: !writable,
            ..MountChange::default()
        };
        let what = || format!("show control group {name}");
        sys::set_mount(tree.as_fd(), change).map_err(doing(what()))?;
        let target = ensure(root, &Path::new("/sys/fs/cgroup").join(name), true)?;
        sys::move_mount(tree.as_fd(), target.as_fd()).map_err(doing(what()))?;
    }
    let dir = ensure(root, Path::new("/sys/fs/cgroup"), true)?;
    let change = MountChange {
        readonly: !writable,
        ..MountChange::default()
    };
    sys::set_mount(dir.as_fd(), change).map_err(doing("make /sys/fs/cgroup read-only"))
}

fn attach(root: &Root<'_>, rootfs: &RootfsSpec, taken: Taken<'_>) -> Result<()> {
    let mount = taken.mount;
    let tree = match taken.tree {
        Some(tree) => tree,
        None => image_tree(rootfs, mount, root.users)?,
    };
    let what = || format!("mount {}", mount.target.display());
    let kind = fstat(&tree).map_err(doing(what()))?.st_mode & libc::S_IFMT;
    let target = ensure(root, &mount.target, kind == libc::S_IFDIR)?;
    if is_proc(&target)? && !is_proc(&tree)? && !PROC_FILES.iter().any(|file| mount.target == Path::new(file)) {
        return Err(Failure(format!(
            "{}: only a proc file system can be mounted in /proc",
            what()
        )));
    }
    sys::move_mount(tree.as_fd(), target.as_fd()).map_err(doing(what()))
}

/// Files of `/proc` that may be replaced: those by which a container is told of its limits.
const PROC_FILES: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

fn is_proc(file: impl AsFd) -> Result<bool> {
    let kind = fstatfs(file).map_err(doing("look at a file system"))?;
    Ok(kind.filesystem_type() == PROC_SUPER_MAGIC)
}

/// A file whose content this process writes for the kernel: in the kernel's own `/proc`, or an error.
pub(super) fn write_proc(path: &str, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    let mut file = options.write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    match is_proc(&file) {
        Ok(true) => std::io::Write::write_all(&mut file, text.as_bytes()),
        Ok(false) => Err(std::io::Error::other(format!("{path} is not the kernel's"))),
        Err(Failure(why)) => Err(std::io::Error::other(why)),
    }
}

/// An image's content as a mount: its layers without a writable one on top.
fn image_tree(rootfs: &RootfsSpec, spec: &MountSpec, users: Option<&Users>) -> Result<OwnedFd> {
    let what = || format!("mount an image at {}", spec.target.display());
    // Any directory of ours serves as a place to mount on for a moment.
    let place = rootfs.dir.join("work");
    let mut options = b"lowerdir=".to_vec();
    // An overlay needs two layers; an empty one changes nothing.
    options.extend(lower(rootfs, &spec.layers, &place, users)?);
    options.extend(b":");
    options.extend(rootfs.dir.join("empty").as_os_str().as_bytes());
    let options = Some(OsStr::from_bytes(&options));
    mount(Some("overlay"), &place, Some("overlay"), MsFlags::MS_RDONLY, options).map_err(doing(what()))?;
    let base = open_dir(&place)?;
    let tree = if spec.sub_path.as_os_str().is_empty() {
        sys::open_tree(&place, false).map_err(doing(what()))?
    } else {
        let sub = sampan_paths::open_in(&base, &spec.sub_path, OFlag::O_PATH, ResolveFlag::RESOLVE_IN_ROOT)
            .map_err(doing(what()))?;
        sys::open_tree(&fd_path(&sub), false).map_err(doing(what()))?
    };
    drop(base);
    umount2(&place, MntFlags::MNT_DETACH).map_err(doing(what()))?;
    if users.is_some() {
        // Where the layers were shown.
        chdir("/").map_err(doing(what()))?;
        umount2(&place, MntFlags::MNT_DETACH).map_err(doing(what()))?;
    }
    let change = MountChange {
        readonly: true,
        ..MountChange::default()
    };
    sys::set_mount(tree.as_fd(), change).map_err(doing(what()))?;
    Ok(tree)
}

fn change_root(root: &OwnedFd) -> Result<()> {
    fchdir(root).map_err(doing("enter the root"))?;
    // The old root comes to lie on the new one, and is taken away from there.
    pivot_root(".", ".").map_err(doing("change the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(doing("leave the node's root"))?;
    chdir("/").map_err(doing("enter the root"))
}

/// What is at `path` inside, if anything is.
fn inside(root: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    match sampan_paths::open_in(root, relative, OFlag::O_PATH, resolve) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(error) => Err(Failure(format!("open {} inside: {error}", path.display()))),
    }
}

fn read_only(root: &OwnedFd, path: &Path) -> Result<()> {
    let what = || format!("make {} read-only", path.display());
    let Some(target) = inside(root, path)? else {
        return Ok(());
    };
    let tree = sys::open_tree(&fd_path(&target), true).map_err(doing(what()))?;
    let change = MountChange {
        readonly: true,
        recursive: true,
        ..MountChange::default()
    };
    sys::set_mount(tree.as_fd(), change).map_err(doing(what()))?;
    sys::move_mount(tree.as_fd(), target.as_fd()).map_err(doing(what()))
}

fn mask(root: &OwnedFd, path: &Path) -> Result<()> {
    let what = || format!("hide {}", path.display());
    let Some(target) = inside(root, path)? else {
        return Ok(());
    };
    if fstat(&target).map_err(doing(what()))?.st_mode & libc::S_IFMT == libc::S_IFDIR {
        let flags = NO_EXTRAS | MsFlags::MS_RDONLY;
        mount(Some("tmpfs"), &fd_path(&target), Some("tmpfs"), flags, Some("size=0k")).map_err(doing(what()))
    } else {
        // The node's: what the container has at /dev/null may be anything.
        let null = sys::open_tree(Path::new("/dev/null"), false).map_err(doing(what()))?;
        sys::move_mount(null.as_fd(), target.as_fd()).map_err(doing(what()))
    }
}

/// The working directory of a program, made if it is missing. Opened inside the root, and through no magic link: one of
/// those leads to wherever a descriptor of this process does.
pub(super) fn working_directory(path: &Path) -> Result<OwnedFd> {
    let root = Root {
        fd: open_dir(Path::new("/"))?,
        users: None,
    };
    ensure(&root, path, true)
}

/// A new terminal of this container as standard streams; returns its master. The first process's is
/// also the console.
pub fn terminal(first: bool) -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = open("/dev/pts/ptmx", flags, Mode::empty()).map_err(doing("open a terminal"))?;
    let peer = sys::terminal_peer(master.as_fd()).map_err(doing("open a terminal"))?;
    nix::unistd::dup2_stdin(&peer).map_err(doing("connect the terminal"))?;
    nix::unistd::dup2_stdout(&peer).map_err(doing("connect the terminal"))?;
    nix::unistd::dup2_stderr(&peer).map_err(doing("connect the terminal"))?;
    sys::control_terminal().map_err(doing("control the terminal"))?;
    if first {
        let flags = OFlag::O_CREAT | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW;
        let console = open("/dev/console", flags, Mode::from_bits_truncate(0o600));
        let console = console.map_err(doing("make /dev/console"))?;
        let tree = sys::open_tree_of(peer.as_fd()).map_err(doing("show the terminal as /dev/console"))?;
        sys::move_mount(tree.as_fd(), console.as_fd()).map_err(doing("show the terminal as /dev/console"))?;
    }
    Ok(master)
}
