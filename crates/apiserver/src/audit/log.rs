//! The audit log as a file: appended to, rotated by size, old ones kept by number and age and compressed.
//!
//! Names of rotated files are upstream's (`audit-2006-01-02T15-04-05.000.log`, `.gz` when compressed), so that what
//! collects those goes on working. All of them are 0600 and the directory, where it is made here, is 0700: at level
//! Request the log may hold Secrets.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use jiff::tz::Offset;

use crate::sync::lock;

const MEGABYTE: u64 = 1 << 20;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// When files are rotated and which old ones stay. 0 switches a limit off.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Megabytes
    pub max_size: u64,
    /// Days
    pub max_age: u64,
    pub max_backups: usize,
    pub compress: bool,
}

/// Where lines go.
pub enum Log {
    Stdout,
    File(Arc<LogFile>),
}

pub struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    open: Mutex<Open>,
    /// One cleaning at a time.
    cleaning: Mutex<()>,
}

struct Open {
    file: File,
    size: u64,
}

impl Log {
    /// `-` is standard output.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Log> {
        if path.as_os_str() == "-" {
            return Ok(Log::Stdout);
        }
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let (file, size) = open(path)?;
        let log = Arc::new(LogFile {
            path: path.to_owned(),
            rotation,
            open: Mutex::new(Open { file, size }),
            cleaning: Mutex::default(),
        });
        Ok(Log::File(log))
    }

    /// Appends whole lines. A rotation that fails is told and the old file written on: a line lost is worse than a
    /// file too large.
    pub fn write(&self, lines: &[u8]) -> io::Result<()> {
        match self {
            Log::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(lines)?;
                out.flush()
            }
            Log::File(log) => log.write(lines),
        }
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

impl LogFile {
    fn write(self: &Arc<Self>, lines: &[u8]) -> io::Result<()> {
        let mut open = lock(&self.open);
        let limit = self.rotation.max_size * MEGABYTE;
        if limit > 0 && open.size > 0 && open.size + lines.len() as u64 > limit {
            match self.rotate() {
                Ok(fresh) => {
                    *open = fresh;
                    let log = self.clone();
                    // On a thread of its own: compressing takes its time.
                    let cleaner = std::thread::Builder::new().name("audit-log".into());
                    if let Err(error) = cleaner.spawn(move || log.clean(Timestamp::now())) {
                        tracing::warn!(%error, "old audit logs cannot be looked after");
                    }
                }
                Err(error) => tracing::warn!(%error, path = %self.path.display(), "the audit log cannot be rotated"),
            }
        }
        open.file.write_all(lines)?;
        open.size += lines.len() as u64;
        Ok(())
    }

    fn rotate(&self) -> io::Result<Open> {
        let mut at = Timestamp::now();
        let mut aside = self.backup(at);
        while aside.exists() {
            at = at.checked_add(Duration::from_millis(1)).unwrap_or(Timestamp::MAX);
            aside = self.backup(at);
        }
        fs::rename(&self.path, aside)?;
        let (file, size) = open(&self.path)?;
        Ok(Open { file, size })
    }

    /// The stem and the extension, with its point.
    fn name(&self) -> (OsString, OsString) {
        let stem = self.path.file_stem().unwrap_or_default().to_owned();
        let mut extension = OsString::new();
        if let Some(given) = self.path.extension() {
            extension.push(".");
            extension.push(given);
        }
        (stem, extension)
    }

    fn backup(&self, at: Timestamp) -> PathBuf {
        let time = Offset::UTC.to_datetime(at);
        let (mut name, extension) = self.name();
        name.push(format!(
            "-{:04}-{:02}-{:02}T{:02}-{:02}-{:02}.{:03}",
            time.year(),
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.millisecond()
        ));
        name.push(extension);
        self.path.with_file_name(name)
    }

    /// Old files, the newest first, with their time and whether they are compressed.
    fn backups(&self) -> io::Result<Vec<(Timestamp, PathBuf, bool)>> {
        let dir = match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let (stem, extension) = self.name();
        let (Some(stem), Some(extension)) = (stem.to_str(), extension.to_str()) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let (plain, compressed) = name.strip_suffix(".gz").map_or((name, false), |plain| (plain, true));
            let time = plain
                .strip_prefix(stem)
                .and_then(|rest| rest.strip_prefix('-'))
                .and_then(|rest| rest.strip_suffix(extension))
                .and_then(time_of);
            if let Some(time) = time {
                found.push((time, path, compressed));
            }
        }
        found.sort_by(|a, b| b.cmp(a));
        Ok(found)
    }

    /// Removes what is too old or too many and compresses the rest.
    fn clean(&self, now: Timestamp) {
        let _one = lock(&self.cleaning);
        let backups = match self.backups() {
            Ok(backups) => backups,
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "old audit logs cannot be listed");
                return;
            }
        };
        let oldest = match self.rotation.max_age {
            0 => Timestamp::MIN,
            days => now
                .checked_sub(DAY.saturating_mul(u32::try_from(days).unwrap_or(u32::MAX)))
                .unwrap_or(Timestamp::MIN),
        };
        let most = match self.rotation.max_backups {
            0 => usize::MAX,
            most => most,
        };
        for (index, (time, path, compressed)) in backups.iter().enumerate() {
            let result = if index >= most || *time < oldest {
                fs::remove_file(path)
            } else if self.rotation.compress && !compressed {
                compress(path)
            } else {
                Ok(())
            };
            if let Err(error) = result {
                tracing::warn!(%error, path = %path.display(), "an old audit log could not be put away");
            }
        }
    }
}

fn time_of(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once('T')?;
    let mut parts = time.splitn(3, '-');
    let (hour, minute, second) = (parts.next()?, parts.next()?, parts.next()?);
    format!("{date}T{hour}:{minute}:{second}Z").parse().ok()
}

/// `path` becomes `path.gz`; what is there after a crash is either of them, whole.
fn compress(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    let target = PathBuf::from(name);
    let mut unfinished = target.as_os_str().to_owned();
    unfinished.push(".tmp");
    let unfinished = PathBuf::from(unfinished);
    let out = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&unfinished)?;
    let mut encoder = GzEncoder::new(out, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::rename(&unfinished, &target)?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn log(dir: &Path, rotation: Rotation) -> Arc<LogFile> {
        match Log::open(&dir.join("logs/audit.log"), rotation).unwrap() {
            Log::File(log) => log,
            Log::Stdout => unreachable!(),
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir.join("logs"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_rotated_kept_private_and_put_away() {
        let dir = tempfile::tempdir().unwrap();
        let rotation = Rotation {
            max_size: 1,
            max_age: 0,
            max_backups: 2,
            compress: true,
        };
        let log = log(dir.path(), rotation);
        let line = vec![b'x'; 600 << 10];
        for _ in 0..5 {
            log.write(&line).unwrap();
        }
        // The cleaner's own threads may be under way; this one waits its turn behind them.
        log.clean(Timestamp::now());
        let left = names(dir.path());
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(
            left.iter().filter(|name| name.ends_with(".log.gz")).count() == 2,
            "{left:?}"
        );
        for name in &left {
            let path = dir.path().join("logs").join(name);
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600,
                "{name}"
            );
            if name.ends_with(".gz") {
                let mut text = Vec::new();
                flate2::read::GzDecoder::new(File::open(&path).unwrap())
                    .read_to_end(&mut text)
                    .unwrap();
                assert_eq!(text, line);
            }
        }
        assert_eq!(
            fs::metadata(dir.path().join("logs")).unwrap().permissions().mode() & 0o777,
            0o700
        );
        // What is there is appended to.
        drop(log);
        let again = self::log(
            dir.path(),
            Rotation {
                max_size: 0,
                max_age: 1,
                max_backups: 0,
                compress: false,
            },
        );
        again.write(b"y\n").unwrap();
        assert_eq!(
            fs::metadata(dir.path().join("logs/audit.log")).unwrap().len(),
            (600 << 10) + 2
        );
        let later = Timestamp::now().checked_add(DAY * 2).unwrap();
        again.clean(later);
        assert_eq!(names(dir.path()), ["audit.log"]);
    }

    #[test]
    fn names_of_old_files_are_read_as_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(
            dir.path(),
            Rotation {
                max_size: 1,
                max_age: 0,
                max_backups: 0,
                compress: false,
            },
        );
        let at = Timestamp::new(1_700_000_000, 250_000_000).unwrap();
        let path = log.backup(at);
        assert!(path.ends_with("audit-2023-11-14T22-13-20.250.log"), "{path:?}");
        fs::write(&path, "").unwrap();
        fs::write(dir.path().join("logs/audit-other.log"), "").unwrap();
        assert_eq!(log.backups().unwrap(), [(at, path, false)]);
    }
}
