//! Sub-paths: a file or directory inside a volume, opened without ever leaving it.
//!
//! A container may replace any path component by a symlink at any time, so a checked path string is worth nothing.
//! The sub-path is opened with `openat2(RESOLVE_BENEATH)` and the opened file, not its name, is bind mounted.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, open};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat};

use crate::{VolumeError, mounts};

fn beneath<Fd: AsFd>(dir: Fd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    sampan_paths::open_in(dir, path, flags, resolve)
}

/// Refuses what is not a plain relative path.
pub fn check(sub_path: &str) -> Result<(), VolumeError> {
    let refuse = |reason| {
        Err(VolumeError::BadPath {
            path: sub_path.to_owned(),
            reason,
        })
    };
    let path = Path::new(sub_path);
    if path.is_absolute() {
        return refuse("a subPath must be relative");
    }
    if path.components().any(|part| matches!(part, Component::ParentDir)) {
        return refuse("a subPath must not contain '..'");
    }
    Ok(())
}

/// Opens `sub_path` beneath `volume`, creating missing directories with the volume's own mode.
fn open_beneath(volume: &Path, sub_path: &str) -> Result<OwnedFd, VolumeError> {
    let full = volume.join(sub_path);
    let failed = |error: Errno| match error {
        Errno::EXDEV | Errno::ELOOP => VolumeError::BadPath {
            path: sub_path.to_owned(),
            reason: "it leads out of the volume",
        },
        Errno::ENOSYS => {
            VolumeError::Invalid("sub-paths need the openat2 system call; run a Linux kernel of 5.6 or later".into())
        }
        other => VolumeError::io("open", &full)(other),
    };
    let root = open(
        volume,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(VolumeError::io("open", volume))?;
    match beneath(&root, Path::new(sub_path), OFlag::O_PATH) {
        Ok(fd) => return Ok(fd),
        Err(Errno::ENOENT) => {}
        Err(error) => return Err(failed(error)),
    }
    let mode = fstat(&root).map_err(VolumeError::io("inspect", volume))?.st_mode;
    let mode = Mode::from_bits_truncate(mode & 0o7777);
    let mut dir = root;
    for part in Path::new(sub_path).components() {
        let Component::Normal(name) = part else {
            continue;
        };
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        dir = match beneath(&dir, Path::new(name), OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(next) => next,
            Err(Errno::ENOENT) => {
                match mkdirat(&dir, name, mode) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(failed(error)),
                }
                let next = beneath(&dir, Path::new(name), OFlag::O_RDONLY | flags).map_err(failed)?;
                fchmod(&next, mode).map_err(failed)?;
                next
            }
            Err(error) => return Err(failed(error)),
        };
    }
    Ok(dir)
}

/// Bind mounts `sub_path` of `volume` at `target` and returns `target`. Idempotent; a target that shows an older
/// file (an atomic update has happened since) is mounted anew for the next container.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, VolumeError> {
    check(sub_path)?;
    let fd = open_beneath(volume, sub_path)?;
    let found = fstat(&fd).map_err(VolumeError::io("inspect", volume))?;
    if mounts::at(target)?.is_some() {
        let shown = fs::metadata(target).map_err(VolumeError::io("inspect", target))?;
        if (shown.dev(), shown.ino()) == (found.st_dev, found.st_ino) {
            return Ok(target.to_path_buf());
        }
        mounts::unmount(target)?;
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(VolumeError::io("create directory", parent))?;
    }
    let is_dir = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR;
    let wrong_kind = fs::symlink_metadata(target).is_ok_and(|meta| meta.is_dir() != is_dir);
    if wrong_kind {
        // The content changed its kind since the last container: the mount point must follow.
        if is_dir {
            fs::remove_file(target).map_err(VolumeError::io("remove", target))?;
        } else {
            fs::remove_dir(target).map_err(VolumeError::io("remove", target))?;
        }
    }
    let made = if is_dir {
        fs::create_dir(target)
    } else {
        fs::File::create_new(target).map(drop)
    };
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(VolumeError::io("create mount point", target)(error));
        }
        _ => {}
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    mounts::bind(&source, target)?;
    Ok(target.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_out_of_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::create_dir(volume.join("inside")).unwrap();
        symlink("inside", volume.join("good")).unwrap();
        symlink("/etc", volume.join("absolute")).unwrap();
        symlink("../..", volume.join("upwards")).unwrap();
        for (sub_path, good) in [
            ("inside", true),
            ("good", true),
            ("good/new/deep", true),
            ("absolute", false),
            ("absolute/passwd", false),
            ("upwards", false),
            ("upwards/x", false),
            ("../volume", false),
            ("/inside", false),
        ] {
            let opened = check(sub_path).and_then(|()| open_beneath(&volume, sub_path));
            assert_eq!(opened.is_ok(), good, "{sub_path}");
        }
        assert!(volume.join("inside/new/deep").is_dir());
    }

    /// A container exchanges a component for a link to the node's files while the sub-path is opened (CVE-2017-1002101,
    /// CVE-2021-25741): what is opened, or made on the way, is in the volume.
    #[test]
    fn components_swapped_meanwhile_lead_nowhere() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let (volume, victim) = (dir.path().join("volume"), dir.path().join("victim"));
        for made in [volume.join("a/deep"), victim.join("deep")] {
            fs::create_dir_all(made).unwrap();
        }
        fs::write(volume.join("a/file"), "").unwrap();
        fs::write(victim.join("file"), "").unwrap();
        symlink(&victim, volume.join("b")).unwrap();
        let ours: Vec<u64> = ["a", "a/deep", "a/file"]
            .iter()
            .map(|path| fs::metadata(volume.join(path)).unwrap().ino())
            .collect();
        let (done, a, b) = (AtomicBool::new(false), volume.join("a"), volume.join("b"));
        let (mut opened, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                while !done.load(Ordering::Relaxed) {
                    nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, &a, nix::fcntl::AT_FDCWD, &b, flags).unwrap();
                }
            });
            for round in 0..20_000 {
                let path = [
                    "a",
                    "a/deep",
                    "a/file",
                    "b",
                    "b/deep",
                    "b/file",
                    "a/new/dir",
                    "b/new/dir",
                ][round % 8];
                match open_beneath(&volume, path) {
                    Ok(fd) => {
                        opened += 1;
                        let inode = fstat(&fd).unwrap().st_ino;
                        assert!(path.contains("new") || ours.contains(&inode), "{path}");
                    }
                    Err(_) => refused += 1,
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(!victim.join("new").exists());
        assert!(opened > 0 && refused > 0, "{opened} opened, {refused} refused");
        println!(
            "sub-paths through links swapped in: {} attempts, none led out",
            opened + refused
        );
    }
}
