//! Writes a volume's files so that a reader sees all of the old content or all of the new.
//!
//! Layout, the one that programs in containers know: files live in a time-stamped directory, `..data` is a symlink
//! to it, and every top-level name is a symlink through `..data`. An update writes a new directory and renames a
//! new `..data` over the old one. What a crash leaves behind is removed by the next write.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use crate::VolumeError;
use crate::render::Payload;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Refuses paths that would leave the volume or collide with the writer's own names.
pub fn check_path(path: &str) -> Result<(), VolumeError> {
    let refuse = |reason| {
        Err(VolumeError::BadPath {
            path: path.to_owned(),
            reason,
        })
    };
    if path.is_empty() {
        return refuse("it is empty");
    }
    if path.len() > 4096 || path.split('/').any(|part| part.len() > 255) {
        return refuse("it is too long");
    }
    if path.contains('\0') {
        return refuse("it contains a NUL byte");
    }
    if path.starts_with("..") {
        return refuse("it must not start with '..'");
    }
    for component in Path::new(path).components() {
        match component {
            Component::Normal(_) => {}
            Component::RootDir | Component::Prefix(_) => return refuse("it must be relative"),
            Component::ParentDir => return refuse("it must not contain '..'"),
            Component::CurDir => return refuse("it must not contain '.'"),
        }
    }
    Ok(())
}

/// Makes `volume` contain exactly `payload`. `own` sets ownership on the volume's root and a new directory's tree
/// before it becomes visible. Returns whether anything was written.
pub fn write(
    volume: &Path,
    payload: &Payload,
    own: &dyn Fn(&Path) -> Result<(), VolumeError>,
) -> Result<bool, VolumeError> {
    for path in payload.keys() {
        check_path(path)?;
    }
    let data = volume.join(DATA);
    let old = match fs::read_link(&data) {
        Ok(target) => Some(target),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(VolumeError::io("read link", &data)(error)),
    };
    let top_level: BTreeSet<&str> = payload
        .keys()
        .filter_map(|path| path.split('/').find(|part| !part.is_empty()))
        .collect();
    if let Some(old) = &old
        && same_content(&volume.join(old), payload)?
    {
        link_names(volume, &top_level)?;
        return Ok(false);
    }
    let fresh = new_directory(volume)?;
    for (path, file) in payload {
        write_file(&fresh, path, &file.data, file.mode, file.uid)?;
    }
    own(&fresh)?;
    let new_link = volume.join(DATA_NEW);
    remove_if_there(&new_link)?;
    let name = fresh.file_name().map(PathBuf::from).unwrap_or_default();
    symlink(&name, &new_link).map_err(VolumeError::io("create link", &new_link))?;
    fs::rename(&new_link, &data).map_err(VolumeError::io("rename link to", &data))?;
    link_names(volume, &top_level)?;
    remove_stale(volume, &name, &top_level)?;
    own(volume)?;
    Ok(true)
}

/// Whether the directory holds exactly the payload. Modes belong to the immutable spec and are not compared.
fn same_content(dir: &Path, payload: &Payload) -> Result<bool, VolumeError> {
    let mut found = BTreeSet::new();
    let mut pending = vec![(dir.to_path_buf(), String::new())];
    while let Some((dir, prefix)) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(VolumeError::io("read directory", &dir)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(VolumeError::io("read directory", &dir))?;
            let Ok(name) = entry.file_name().into_string() else {
                return Ok(false);
            };
            let path = format!("{prefix}{name}");
            let kind = entry.file_type().map_err(VolumeError::io("inspect", entry.path()))?;
            if kind.is_dir() {
                pending.push((entry.path(), format!("{path}/")));
                continue;
            }
            let Some(file) = payload.get(&path) else {
                return Ok(false);
            };
            let bytes = fs::read(entry.path()).map_err(VolumeError::io("read file", entry.path()))?;
            if bytes != file.data {
                return Ok(false);
            }
            found.insert(path);
        }
    }
    Ok(found.len() == payload.len())
}

fn new_directory(volume: &Path) -> Result<PathBuf, VolumeError> {
    let now = jiff::Timestamp::now();
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S");
    for attempt in 0u32..1000 {
        let nanos = now.subsec_nanosecond().unsigned_abs().wrapping_add(attempt);
        let path = volume.join(format!("{stamp}.{nanos}"));
        match fs::DirBuilder::new().mode(0o755).create(&path) {
            Ok(()) => {
                set_mode(&path, 0o755)?;
                return Ok(path);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(VolumeError::io("create directory", path)(error)),
        }
    }
    Err(VolumeError::Invalid(format!(
        "no free directory name in {}",
        volume.display()
    )))
}

fn write_file(root: &Path, relative: &str, data: &[u8], mode: u32, uid: Option<u32>) -> Result<(), VolumeError> {
    let path = root.join(relative);
    let mut parents: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .take_while(|ancestor| *ancestor != root)
        .collect();
    parents.reverse();
    for parent in parents {
        match fs::DirBuilder::new().mode(0o755).create(parent) {
            Ok(()) => set_mode(parent, 0o755)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(VolumeError::io("create directory", parent)(error)),
        }
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(VolumeError::io("create file", &path))?;
    io::Write::write_all(&mut file, data).map_err(VolumeError::io("write file", &path))?;
    // The owner first: a change of owner clears the set-id bits.
    if let Some(uid) = uid {
        lchown(&path, Some(uid), None).map_err(VolumeError::io("change owner of", &path))?;
    }
    set_mode(&path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), VolumeError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(VolumeError::io("change mode of", path))
}

fn link_names(volume: &Path, names: &BTreeSet<&str>) -> Result<(), VolumeError> {
    for name in names {
        let link = volume.join(name);
        match fs::symlink_metadata(&link) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                symlink(Path::new(DATA).join(name), &link).map_err(VolumeError::io("create link", &link))?;
            }
            Err(error) => return Err(VolumeError::io("inspect", link)(error)),
        }
    }
    Ok(())
}

/// Removes old time-stamped directories and links of names that are gone.
fn remove_stale(volume: &Path, current: &Path, names: &BTreeSet<&str>) -> Result<(), VolumeError> {
    let entries = fs::read_dir(volume).map_err(VolumeError::io("read directory", volume))?;
    for entry in entries {
        let entry = entry.map_err(VolumeError::io("read directory", volume))?;
        let name = entry.file_name();
        let Some(text) = name.to_str() else { continue };
        let kind = entry.file_type().map_err(VolumeError::io("inspect", entry.path()))?;
        if kind.is_dir() && text.starts_with("..") && Path::new(text) != current {
            fs::remove_dir_all(entry.path()).map_err(VolumeError::io("remove directory", entry.path()))?;
        } else if kind.is_symlink() && text != DATA && !names.contains(text) {
            // Only links of our own making: nested mount points are directories.
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileProjection;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, data)| {
                let file = FileProjection {
                    data: data.as_bytes().to_vec(),
                    mode: 0o640,
                    uid: None,
                };
                ((*path).to_owned(), file)
            })
            .collect()
    }

    fn nobody(_: &Path) -> Result<(), VolumeError> {
        Ok(())
    }

    #[test]
    fn paths_that_escape_are_refused() {
        for (path, good) in [
            ("a", true),
            ("a/b", true),
            (".hidden", true),
            ("a..b", true),
            ("", false),
            ("/a", false),
            ("..", false),
            ("..a", false),
            ("a/../b", false),
            ("../a", false),
            ("a\0b", false),
        ] {
            assert_eq!(check_path(path).is_ok(), good, "{path:?}");
        }
        assert!(check_path(&"x".repeat(256)).is_err());
    }

    #[test]
    fn writes_updates_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let first = payload(&[("a", "1"), ("d/e", "2")]);
        assert!(write(root, &first, &nobody).unwrap());
        assert_eq!(fs::read_to_string(root.join("d/e")).unwrap(), "2");
        let mode = fs::metadata(root.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let before = fs::read_link(root.join("..data")).unwrap();
        assert!(!write(root, &first, &nobody).unwrap());
        assert_eq!(before, fs::read_link(root.join("..data")).unwrap());

        // Leftovers of a crash are swept away, an open old file stays readable.
        fs::create_dir(root.join("..2001_01_01_00_00_00.1")).unwrap();
        symlink("nowhere", root.join("..data_tmp")).unwrap();
        fs::create_dir(root.join("nested-mount")).unwrap();
        let second = payload(&[("a", "one"), ("f", "3")]);
        assert!(write(root, &second, &nobody).unwrap());
        let mut names: Vec<String> = fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with("..2"))
            .collect();
        names.sort();
        assert_eq!(names, ["..data", "a", "f", "nested-mount"]);
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "one");
        assert!(!root.join(before).exists());
    }

    #[test]
    fn an_empty_payload_is_a_valid_volume() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &payload(&[]), &nobody).unwrap());
        assert!(!write(dir.path(), &payload(&[]), &nobody).unwrap());
        assert!(write(dir.path(), &payload(&[("a", "1")]), &nobody).unwrap());
        assert!(write(dir.path(), &payload(&[]), &nobody).unwrap());
        assert!(!dir.path().join("a").exists());
    }
}
