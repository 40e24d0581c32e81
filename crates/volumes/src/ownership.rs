//! `fsGroup`: gives a volume's files to the pod's group.
//!
//! Depth first, the root last: a root with the right group and bits then tells `OnRootMismatch` that an earlier
//! walk was finished. Symlinks change owner but never lend their mode to what they point to.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use crate::VolumeError;

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
    let meta = fs::symlink_metadata(path).map_err(VolumeError::io("inspect", path))?;
    walk(path, &meta, meta.dev(), gid, read_only)
}

fn walk(path: &Path, meta: &fs::Metadata, device: u64, gid: u32, read_only: bool) -> Result<(), VolumeError> {
    if meta.is_dir() {
        let entries = fs::read_dir(path).map_err(VolumeError::io("read directory", path))?;
        for entry in entries {
            let entry = entry.map_err(VolumeError::io("read directory", path))?;
            let child = entry.path();
            // A container may be removing files meanwhile: what is gone needs no owner.
            match fs::symlink_metadata(&child) {
                Ok(meta) if meta.dev() == device => walk(&child, &meta, device, gid, read_only)?,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(VolumeError::io("inspect", child)(error)),
            }
        }
    }
    if meta.gid() != gid {
        lchown(path, None, Some(gid)).map_err(VolumeError::io("change group of", path))?;
    }
    if meta.is_symlink() {
        return Ok(());
    }
    let mut mode = meta.mode() & 0o7777 | mask(read_only);
    if meta.is_dir() {
        mode |= SETGID | EXECUTE;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(VolumeError::io("change mode of", path))
}
