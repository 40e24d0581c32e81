//! `fsGroup`: gives a volume's files to the pod's group.
//!
//! Depth first, the root last: a root with the right group and bits then tells `OnRootMismatch` that an earlier
//! walk was finished. Symlinks change owner but never lend their mode to what they point to.
//!
//! Invariant: nothing outside the volume is changed, whatever a container does meanwhile. Every step goes by the
//! descriptor of what was looked at, never again by its name, which may be a symlink by then.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{Gid, fchownat};

use crate::VolumeError;

/// Deeper trees are nobody's honest work; each level holds a descriptor.
const DEEPEST: usize = 512;

const SETGID: u32 = 0o2000;
const EXECUTE: u32 = 0o110;

fn mask(read_only: bool) -> u32 {
    if read_only { 0o440 } else { 0o660 }
}

/// Whether the root already carries the group and the bits a finished walk leaves.
pub fn root_matches(root: &Path, gid: u32, read_only: bool) -> bool {
    let Ok(meta) = fs::metadata(root) else {
        return false;
    };
    let needed = mask(read_only) | EXECUTE | SETGID;
    meta.is_dir() && meta.gid() == gid && meta.mode() & needed == needed
}

/// Applies group and mode to everything below and including `path`. Other file systems mounted below are left out.
pub fn apply(path: &Path, gid: u32, read_only: bool) -> Result<(), VolumeError> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = open(path, flags, Mode::empty()).map_err(VolumeError::io("inspect", path))?;
    let stat = fstat(&root).map_err(VolumeError::io("inspect", path))?;
    let walk = Walk {
        device: stat.st_dev,
        gid,
        read_only,
    };
    walk.entry(path, &root, &stat, 0)
}

struct Walk {
    device: nix::libc::dev_t,
    gid: u32,
    read_only: bool,
}

/// A descriptor as a path, for calls that take no `O_PATH` descriptor.
fn by_number(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

impl Walk {
    /// `path` is only for messages.
    fn entry(&self, path: &Path, file: &OwnedFd, stat: &FileStat, depth: usize) -> Result<(), VolumeError> {
        let kind = stat.st_mode & nix::libc::S_IFMT;
        if kind == nix::libc::S_IFDIR {
            if depth > DEEPEST {
                return Err(VolumeError::io("go deeper than 512 directories into", path)(
                    Errno::ELOOP,
                ));
            }
            let entries = fs::read_dir(by_number(file)).map_err(VolumeError::io("read directory", path))?;
            for entry in entries {
                let name = entry.map_err(VolumeError::io("read directory", path))?.file_name();
                self.child(path, file, &name, depth)?;
            }
        }
        if stat.st_gid != self.gid {
            let gid = Some(Gid::from_raw(self.gid));
            fchownat(file, "", None, gid, AtFlags::AT_EMPTY_PATH).map_err(VolumeError::io("change group of", path))?;
        }
        if kind == nix::libc::S_IFLNK {
            return Ok(());
        }
        let mut mode = stat.st_mode & 0o7777 | mask(self.read_only);
        if kind == nix::libc::S_IFDIR {
            mode |= SETGID | EXECUTE;
        }
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(by_number(file), permissions).map_err(VolumeError::io("change mode of", path))
    }

    fn child(&self, path: &Path, dir: &OwnedFd, name: &OsStr, depth: usize) -> Result<(), VolumeError> {
        let path = path.join(name);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match openat(dir, name, flags, Mode::empty()) {
            Ok(file) => file,
            // A container may be removing files meanwhile: what is gone needs no owner.
            Err(Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(VolumeError::io("inspect", &path)(error)),
        };
        let stat = fstat(&file).map_err(VolumeError::io("inspect", &path))?;
        if stat.st_dev != self.device {
            return Ok(());
        }
        self.entry(&path, &file, &stat, depth + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A container exchanges a directory for a link to the node's files and back, as fast as it can.
    #[test]
    fn links_swapped_in_meanwhile_lead_nowhere() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (volume, victim) = (dir.path().join("volume"), dir.path().join("victim"));
        for made in [volume.join("a"), volume.join("d"), victim.join("d")] {
            fs::create_dir_all(made).unwrap();
        }
        for file in ["f", "d/g"] {
            fs::write(victim.join(file), "x").unwrap();
            fs::set_permissions(victim.join(file), fs::Permissions::from_mode(0o600)).unwrap();
        }
        symlink(&victim, volume.join("b")).unwrap();
        symlink(victim.join("f"), volume.join("link")).unwrap();
        let (done, a, b) = (AtomicBool::new(false), volume.join("a"), volume.join("b"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                while !done.load(Ordering::Relaxed) {
                    nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, &a, nix::fcntl::AT_FDCWD, &b, flags).unwrap();
                }
            });
            let mut attempts = 0;
            for round in 0..2000 {
                let _gone_or_not = apply(&volume, 4000 + round % 2, false).is_ok();
                attempts += 1;
            }
            done.store(true, Ordering::Relaxed);
            println!("fsGroup over links swapped in: {attempts} attempts");
        });
        for path in [victim.clone(), victim.join("f"), victim.join("d"), victim.join("d/g")] {
            let meta = fs::metadata(&path).unwrap();
            assert_eq!(meta.gid(), 0, "{}", path.display());
            assert_eq!(
                meta.mode() & 0o2070 & if meta.is_dir() { 0o2000 } else { 0o070 },
                0,
                "{}",
                path.display()
            );
        }
        assert!([4000, 4001].contains(&fs::metadata(volume.join("d")).unwrap().gid()));
    }
}
