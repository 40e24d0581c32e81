//! Local volumes: directories that this node keeps for PersistentVolumes of the local provisioner.
//!
//! A volume's directory is `root/NAME`, where NAME is the PersistentVolume's. An object decides nothing else: one that
//! says the local provisioner made it and names any other path is an ordinary local volume, whose path must exist, and
//! is never removed here. `root` is the node's own, so what is below it was put there by this module.
//!
//! Making and removing end in one rename each, so a node that is killed leaves a directory whole, absent, or in
//! `root/.gone`, from where the next attempt removes it. Containers of any user may write: the modes are those of an
//! empty directory volume, behind a parent that only root enters.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sampan_claims::local::is_directory_name;

use crate::{VolumeError, mounts};

const NEW: &str = ".new";
const GONE: &str = ".gone";

/// The node's local volumes.
#[derive(Clone, Debug)]
pub struct LocalVolumes {
    root: PathBuf,
}

impl LocalVolumes {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        LocalVolumes { root: root.into() }
    }

    /// Where a volume of this name is, if it is one of ours that says it is at `path`.
    pub fn owned(&self, name: &str, path: &str) -> Option<PathBuf> {
        let own = self.root.join(name);
        (is_directory_name(name) && own == Path::new(path) && own.as_os_str() == path).then_some(own)
    }

    /// Makes the directory of a volume unless it is there. Blocking.
    pub fn make(&self, name: &str) -> Result<(), VolumeError> {
        let at = self.directory(name)?;
        match fs::symlink_metadata(&at) {
            Ok(meta) if meta.is_dir() => return Ok(()),
            Ok(_) => {
                let path = at.display();
                return Err(VolumeError::Invalid(format!(
                    "local volume path {path} is not a directory"
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(VolumeError::io("inspect local volume", at)(error)),
        }
        let new = self.private(NEW)?.join(name);
        match DirBuilder::new().mode(0o700).create(&new) {
            // Left by an attempt that was cut short: empty, since nobody could have been shown it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(VolumeError::io("create directory", &new))?,
        }
        fs::set_permissions(&new, Permissions::from_mode(0o777)).map_err(VolumeError::io("change mode of", &new))?;
        fs::rename(&new, &at).map_err(VolumeError::io("put in place", at))
    }

    /// Removes the directory of a volume with all that is in it. Idempotent. Blocking.
    pub fn remove(&self, name: &str) -> Result<(), VolumeError> {
        let at = self.directory(name)?;
        let gone = self.private(GONE)?.join(name);
        mounts::remove_tree(&gone)?;
        match fs::rename(&at, &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(VolumeError::io("take away", at))?,
        }
        mounts::remove_tree(&gone)
    }

    fn directory(&self, name: &str) -> Result<PathBuf, VolumeError> {
        if !is_directory_name(name) {
            return Err(VolumeError::Invalid(format!("{name:?} cannot be a local volume")));
        }
        Ok(self.root.join(name))
    }

    /// A directory of this module's own, below a root that only root enters.
    fn private(&self, name: &str) -> Result<PathBuf, VolumeError> {
        let at = self.root.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&at);
        made.map_err(VolumeError::io("create directory", &at))?;
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn directories_come_and_go_whole() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volumes");
        let volumes = LocalVolumes::new(&root);
        volumes.make("pvc-1").unwrap();
        let at = root.join("pvc-1");
        assert_eq!((mode(&root), mode(&at)), (0o700, 0o777));
        fs::write(at.join("data"), "x").unwrap();
        volumes.make("pvc-1").unwrap();
        assert_eq!(fs::read_to_string(at.join("data")).unwrap(), "x");
        // A link inside leads nowhere when it goes.
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        symlink(&outside, at.join("link")).unwrap();
        volumes.remove("pvc-1").unwrap();
        volumes.remove("pvc-1").unwrap();
        assert!(!at.exists() && outside.join("kept").exists());
        // Cut short, in either direction.
        fs::create_dir_all(root.join(NEW).join("pvc-2")).unwrap();
        volumes.make("pvc-2").unwrap();
        assert_eq!(mode(&root.join("pvc-2")), 0o777);
        fs::rename(root.join("pvc-2"), root.join(GONE).join("pvc-2")).unwrap();
        volumes.remove("pvc-2").unwrap();
        assert_eq!(fs::read_dir(root.join(GONE)).unwrap().count(), 0);
    }

    #[test]
    fn an_object_decides_nothing_but_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volumes");
        let volumes = LocalVolumes::new(&root);
        let path = |name: &str| format!("{}/{name}", root.display());
        for (name, at, ours) in [
            ("pvc-1", path("pvc-1"), true),
            ("pvc-1", path("pvc-2"), false),
            ("pvc-1", path("x/../pvc-1"), false),
            ("pvc-1", path("./pvc-1"), false),
            ("pvc-1", path("/pvc-1"), false),
            ("..", path(".."), false),
            (".gone", path(".gone"), false),
            ("pvc-1", "/etc".to_owned(), false),
        ] {
            assert_eq!(volumes.owned(name, &at).is_some(), ours, "{name} {at}");
        }
        for name in ["", ".", "..", ".new", "../x", "a/b", "/etc"] {
            assert!(volumes.make(name).is_err() && volumes.remove(name).is_err(), "{name}");
        }
        // What is in the way is not followed.
        fs::create_dir_all(&root).unwrap();
        symlink("/etc", root.join("pvc-3")).unwrap();
        assert!(volumes.make("pvc-3").is_err());
        volumes.remove("pvc-3").unwrap();
        assert!(Path::new("/etc/passwd").exists());
    }
}
