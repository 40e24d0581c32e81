//! Network namespaces: made, kept alive by a bind mount, entered by a thread of their own.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::link;

/// Where namespaces are kept unless configured otherwise.
pub const DIR: &str = "/run/sampan/netns";

/// Runs `work` on a thread inside the namespace at `path`, and waits for it.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = File::open(path)?;
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, move || -> io::Result<T> {
                    setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                    Ok(work())
                })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread inside the network namespace panicked")))
    })
}

/// Makes the namespace `name` in `dir` unless it is there, with its loopback up, and says where it is.
///
/// Low ports and ICMP sockets are open to every user inside, as containerd sets namespaces up: the port space is the
/// Pod's own.
pub fn create(dir: &Path, name: &str) -> io::Result<PathBuf> {
    let path = dir.join(name);
    if is_namespace(&path) {
        return Ok(path);
    }
    fs::create_dir_all(dir)?;
    File::create(&path)?;
    let made = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns-create".to_owned())
            .spawn_scoped(scope, || -> io::Result<()> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                link::Links::open()?.up("lo")?;
                fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
                fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
                mount(
                    Some("/proc/thread-self/ns/net"),
                    &path,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )?;
                Ok(())
            })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread making a network namespace panicked")))
    });
    if let Err(error) = made {
        remove(&path)?;
        return Err(error);
    }
    Ok(path)
}

/// Whether something is mounted at the path that is a namespace (and not just a file left behind).
pub fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Lets go of a namespace made by [`create`]; it ends when its last process does. Idempotent.
pub fn remove(path: &Path) -> io::Result<()> {
    while is_namespace(path) {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
