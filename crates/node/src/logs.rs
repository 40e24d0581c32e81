//! Container logs on the node's side: rotation, and what is read of them beside `kubectl logs`.
//!
//! The runtime writes and reads logs; the node renames a file that has grown too large and tells the runtime to
//! open it again.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use sampan_runtime::logs::LogOptions;

/// The last `limit` bytes of a small file.
pub fn read_end(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut out = Vec::new();
    file.take(limit).read_to_end(&mut out)?;
    Ok(out)
}

/// The content of the last lines of a log, at most `limit` bytes of it: a termination message in place of a file.
pub async fn tail_text(path: &Path, lines: u64, limit: usize) -> String {
    let options = LogOptions {
        tail: Some(lines),
        ..LogOptions::default()
    };
    let mut bytes = Vec::new();
    match sampan_runtime::logs::read(path, &options, std::future::pending(), &mut bytes).await {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::debug!(path = %path.display(), %error, "the end of a log could not be read"),
    }
    let start = bytes.len().saturating_sub(limit);
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
}

/// The rotated parts of a log, the oldest first: `0.log.20060102-150405`.
pub fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let parent = path.parent().unwrap_or(Path::new("."));
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            out.push(entry.path());
        }
    }
    out.sort();
    Ok(out)
}

/// Moves a log that is larger than `max_bytes` aside and removes the oldest parts, so that with the live file at
/// most `max_files` stay. Says whether the live file was moved: the runtime must then open it again.
pub fn rotate(path: &Path, max_bytes: u64, max_files: usize, now: Timestamp) -> io::Result<bool> {
    let length = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if length < max_bytes {
        return Ok(false);
    }
    let parts = rotated(path)?;
    let keep = max_files.saturating_sub(2);
    for old in parts.iter().take(parts.len().saturating_sub(keep)) {
        fs::remove_file(old)?;
    }
    let mut target = path.as_os_str().to_owned();
    target.push(format!(".{}", now.strftime("%Y%m%d-%H%M%S%.3f")));
    fs::rename(path, target)?;
    Ok(true)
}

/// Removes a log and its rotated parts.
pub fn remove(path: &Path) -> io::Result<()> {
    for part in rotated(path)?.iter().map(PathBuf::as_path).chain([path]) {
        match fs::remove_file(part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn the_end_of_a_log_as_a_message() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        assert_eq!(tail_text(&path, 80, 4).await, "");
        let log = "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr P two-\n\
                   2026-01-01T00:00:02Z stderr F parts\n2026-01-01T00:00:04Z stdout F last one\n";
        fs::write(&path, log).unwrap();
        assert_eq!(tail_text(&path, 1, 100).await, "last one\n");
        assert_eq!(tail_text(&path, 80, 4).await, "one\n");
        assert_eq!(read_end(&path, 4).unwrap(), b"one\n");
    }

    #[test]
    fn rotation_keeps_a_bounded_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for round in 0..6i64 {
            let mut file = fs::File::create(&path).unwrap();
            file.write_all(&[b'x'; 100]).unwrap();
            let now = Timestamp::from_second(1_000_000 + round).unwrap();
            assert!(!rotate(&path, 101, 3, now).unwrap());
            assert!(rotate(&path, 100, 3, now).unwrap());
            assert!(!path.exists());
        }
        assert_eq!(rotated(&path).unwrap().len(), 2);
        fs::write(&path, "y").unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
