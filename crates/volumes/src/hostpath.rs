//! `hostPath`: checks that the path is what the manifest says, creating it where asked.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::VolumeError;

/// Checks (and for the `OrCreate` types makes) `path`.
pub fn check(path: &str, kind: &str) -> Result<(), VolumeError> {
    let at = Path::new(path);
    if !at.is_absolute() || at.components().any(|part| part.as_os_str() == "..") {
        return Err(VolumeError::BadPath {
            path: path.to_owned(),
            reason: "a host path must be absolute and without '..'",
        });
    }
    let found = match fs::metadata(at) {
        Ok(meta) => Some(meta.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(VolumeError::io("inspect", at)(error)),
    };
    let wrong = |expected| {
        Err(VolumeError::HostPathType {
            path: path.to_owned(),
            expected,
        })
    };
    match (kind, found) {
        ("", Some(_)) => Ok(()),
        // As container engines do: an unnamed kind that is missing becomes a directory.
        ("" | "DirectoryOrCreate", None) => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(at)
            .map_err(VolumeError::io("create directory", at)),
        ("FileOrCreate", None) => fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(at)
            .map(drop)
            .map_err(VolumeError::io("create file", at)),
        ("Directory" | "DirectoryOrCreate", Some(kind)) if kind.is_dir() => Ok(()),
        ("File" | "FileOrCreate", Some(kind)) if kind.is_file() => Ok(()),
        ("Socket", Some(kind)) if kind.is_socket() => Ok(()),
        ("CharDevice", Some(kind)) if kind.is_char_device() => Ok(()),
        ("BlockDevice", Some(kind)) if kind.is_block_device() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => wrong("a directory"),
        ("File" | "FileOrCreate", _) => wrong("a file"),
        ("Socket", _) => wrong("a socket file"),
        ("CharDevice", _) => wrong("a character device"),
        ("BlockDevice", _) => wrong("a block device"),
        (other, _) => Err(VolumeError::Invalid(format!("{other:?} is an invalid hostPath type"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap().to_owned();
        let file = format!("{root}/file");
        fs::write(&file, "").unwrap();
        for (path, kind, good) in [
            (root.clone(), "Directory", true),
            (root.clone(), "File", false),
            (root.clone(), "", true),
            (file.clone(), "File", true),
            (file.clone(), "Directory", false),
            (file.clone(), "Socket", false),
            (format!("{root}/absent"), "Directory", false),
            (format!("{root}/absent"), "File", false),
            (format!("{root}/made"), "DirectoryOrCreate", true),
            (format!("{root}/made-too"), "FileOrCreate", true),
            (format!("{root}/made-quietly"), "", true),
            ("/dev/null".into(), "CharDevice", true),
            ("/dev/null".into(), "BlockDevice", false),
            (format!("{root}/../x"), "", false),
            ("relative".into(), "", false),
            (root.clone(), "Nonsense", false),
        ] {
            assert_eq!(check(&path, kind).is_ok(), good, "{path} {kind}");
        }
        assert!(Path::new(&format!("{root}/made")).is_dir());
        assert!(Path::new(&format!("{root}/made-too")).is_file());
    }
}
