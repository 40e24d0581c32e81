//! A Pod's user namespace and the network namespace that belongs to it.
//!
//! Only a process with one thread can make a user namespace, so the server starts one: it makes the namespaces,
//! waits until the server has kept them by bind mounts, and ends. The server writes who is who: it has the power to.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setresgid, setresuid};

use crate::sys;
use crate::types::UserNamespace;

/// The shim's argument for this.
pub const ARGUMENT: &str = "namespaces";
const MADE: &str = "made";
const UP: &str = "up";

/// What the process does. Its words go to the server line by line; it waits for a line in between.
pub fn serve() -> Result<(), String> {
    let mut hear = BufReader::new(io::stdin());
    let mut answer = |said: Result<&str, String>| -> Result<(), String> {
        let text = match &said {
            Ok(text) => *text,
            Err(text) => text.as_str(),
        };
        let mut out = io::stdout();
        writeln!(out, "{text}")
            .and_then(|()| out.flush())
            .map_err(|error| format!("answer the server: {error}"))?;
        if said.is_ok() {
            hear.read_line(&mut String::new())
                .map_err(|error| format!("listen to the server: {error}"))?;
        }
        said.map(drop)
    };
    let made = unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| format!("make a user namespace: {error}"));
    answer(made.map(|()| MADE))?;
    answer(network().map(|()| UP))
}

/// A network namespace of the new user namespace, as the node's own are made.
fn network() -> Result<(), String> {
    let failed = |error: nix::Error| format!("become root of a user namespace: {error}");
    let (root, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(group, group, group).map_err(failed)?;
    setresuid(root, root, root).map_err(failed)?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("make a network namespace: {error}"))?;
    sys::loopback_up().map_err(|error| format!("bring loopback up: {error}"))?;
    let groups = fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    let last = groups
        .split_whitespace()
        .nth(2)
        .and_then(|length| length.parse::<u32>().ok());
    let last = last.map_or(0, |length| length.saturating_sub(1));
    for (name, value) in [
        ("ip_unprivileged_port_start", "0".to_owned()),
        ("ping_group_range", format!("0 {last}")),
    ] {
        let path = Path::new("/proc/sys/net/ipv4").join(name);
        fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Whether the kernel makes user namespaces and has id-mapped mounts of layers (5.19).
pub fn possible() -> bool {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let allowed = text("/proc/sys/user/max_user_namespaces");
    let release = text("/proc/sys/kernel/osrelease");
    let mut version = release
        .split(['.', '-', '\n'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (version.next().unwrap_or(0), version.next().unwrap_or(0));
    allowed.trim().parse::<u64>().is_ok_and(|count| count > 0) && version >= (5, 19)
}

/// Makes the namespaces and keeps them at `users.path` and `network`. `exe` is the program that has the shim.
pub fn make(exe: &Path, users: &UserNamespace, network: &Path) -> io::Result<()> {
    let mut command = Command::new(exe);
    std::os::unix::process::CommandExt::arg0(&mut command, "sampan");
    let mut child = command
        .args(["shim", ARGUMENT])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let made = keep(&mut child, users, network);
    // Without its input it ends.
    drop(child.stdin.take());
    child.wait()?;
    if made.is_err() {
        for path in [&users.path, network] {
            remove(path)?;
        }
    }
    made
}

fn keep(child: &mut std::process::Child, users: &UserNamespace, network: &Path) -> io::Result<()> {
    let (Some(mut tell), Some(hear)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("no pipes to the helper process"));
    };
    let mut hear = BufReader::new(hear.take(64 << 10));
    let mut expect = |word: &str| -> io::Result<()> {
        let mut line = String::new();
        hear.read_line(&mut line)?;
        match line.trim() {
            said if said == word => Ok(()),
            "" => Err(io::Error::other("the helper process ended early")),
            said => Err(io::Error::other(said.to_owned())),
        }
    };
    let proc = Path::new("/proc").join(child.id().to_string());
    expect(MADE)?;
    let map = format!("0 {} {}", users.first, users.length);
    for file in ["gid_map", "uid_map"] {
        fs::write(proc.join(file), &map)?;
    }
    writeln!(tell)?;
    expect(UP)?;
    for (name, path) in [("user", users.path.as_path()), ("net", network)] {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::File::create(path)?;
        let source = proc.join("ns").join(name);
        mount(Some(&source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    Ok(())
}

/// Whether a namespace is kept at `path`.
pub fn is_kept(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Lets go of what is kept at `path`. Idempotent.
fn remove(path: &Path) -> io::Result<()> {
    while is_kept(path) {
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
