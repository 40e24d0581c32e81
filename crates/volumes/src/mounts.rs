//! The mount table, and the few kinds of mounts volumes need.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::VolumeError;

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    pub kind: String,
}

/// Parses `/proc/self/mountinfo`; lines that make no sense are skipped.
pub fn parse(table: &str) -> Vec<Mount> {
    table
        .lines()
        .filter_map(|line| {
            let point = line.split(' ').nth(4)?;
            let (_, after) = line.split_once(" - ")?;
            Some(Mount {
                point: unescape(point),
                kind: after.split(' ').next()?.to_owned(),
            })
        })
        .collect()
}

fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(decoded) => {
                out.push(decoded);
                at += 4;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// The mounts of this process at or below `path`, in mount order.
pub fn below(path: &Path) -> Result<Vec<Mount>, VolumeError> {
    let table = "/proc/self/mountinfo";
    let text = fs::read_to_string(table).map_err(VolumeError::io("read", table))?;
    // The table has resolved paths.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let mut mounts = parse(&text);
    mounts.retain(|mount| mount.point.starts_with(&path));
    Ok(mounts)
}

/// The file system mounted exactly at `path`, if `path` is a mount point.
pub fn at(path: &Path) -> Result<Option<Mount>, VolumeError> {
    let resolved = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    Ok(below(path)?.into_iter().rfind(|mount| mount.point == resolved))
}

/// Mounts a new file system of `kind` at `target`.
pub fn mount_new(kind: &str, target: &Path, options: &str) -> Result<(), VolumeError> {
    let data = (!options.is_empty()).then_some(options);
    mount(
        Some(kind),
        target,
        Some(kind),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        data,
    )
    .map_err(VolumeError::io("mount a file system at", target))
}

/// Makes `source` appear at `target`.
pub fn bind(source: &Path, target: &Path) -> Result<(), VolumeError> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(VolumeError::io("bind mount at", target))
}

/// Unmounts what is at `target`; a busy mount is detached and goes when its last user does.
pub fn unmount(target: &Path) -> Result<(), VolumeError> {
    match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Err(nix::errno::Errno::EBUSY) => umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
            .map_err(VolumeError::io("unmount", target)),
        // Not a mount point any more.
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        other => other.map_err(VolumeError::io("unmount", target)),
    }
}

/// Unmounts everything at or below `path`, the latest first.
pub fn unmount_below(path: &Path) -> Result<(), VolumeError> {
    for mount in below(path)?.iter().rev() {
        unmount(&mount.point)?;
    }
    Ok(())
}

/// Unmounts below `path` and removes the tree; refuses while anything is still mounted there.
pub fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    unmount_below(path)?;
    if let Some(left) = below(path)?.first() {
        return Err(VolumeError::Invalid(format!(
            "{} is still mounted, so {} is not removed",
            left.point.display(),
            path.display()
        )));
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(VolumeError::io("remove", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_parsed_with_escapes() {
        let table = "36 35 98:0 / /mnt\\040two rw,noatime master:1 - tmpfs tmpfs rw\nnonsense\n\
                     37 35 98:0 /x /a rw - ext4 /dev/root rw";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].point, Path::new("/mnt two"));
        assert_eq!(mounts[0].kind, "tmpfs");
        assert_eq!(mounts[1].kind, "ext4");
    }
}
