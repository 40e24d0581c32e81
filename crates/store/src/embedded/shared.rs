//! The open database as the writer and the readers share it, and how it is opened (again).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use redb::{Database, DatabaseError, StorageError};

use super::Options;
use super::disk::Disk;
use crate::types::{Error, Revision};

/// What everyone who reads or writes the embedded store knows of it.
pub(super) struct Shared {
    path: PathBuf,
    options: Options,
    opened: RwLock<Opened>,
    revision: AtomicU64,
    compacted: AtomicU64,
    /// Why nothing can be written at present.
    failing: Mutex<Option<String>>,
}

struct Opened {
    database: Arc<Database>,
    disk: Disk,
}

impl Shared {
    /// Opens the file at `path`, or makes it. A new file comes into its place whole.
    pub fn open(path: PathBuf, options: Options) -> Result<Self, Error> {
        if !path.exists() {
            let new = path.with_extension("new");
            drop(create(&new, &options)?);
            std::fs::rename(&new, &path)
                .and_then(|()| File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all())
                .map_err(|error| problem(&path, "create its file", &error))?;
        }
        let opened = open(&path, &options)?;
        Ok(Shared {
            path,
            options,
            opened: RwLock::new(opened),
            revision: AtomicU64::new(0),
            compacted: AtomicU64::new(0),
            failing: Mutex::default(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn database(&self) -> Arc<Database> {
        let opened = self.opened.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        opened.database.clone()
    }

    fn disk(&self) -> Disk {
        let opened = self.opened.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        opened.disk.clone()
    }

    /// Opens the file anew after a failure. Whoever still reads from the old handle gets an error.
    pub fn reopen(&self) -> Result<(), Error> {
        let before = self.disk();
        before.cut_off();
        before.distrust_cache();
        let again = open(&self.path, &self.options)?;
        let mut opened = self.opened.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        *opened = again;
        Ok(())
    }

    /// The first I/O error since the file was opened.
    pub fn first_error(&self) -> Option<(io::ErrorKind, String)> {
        self.disk().first_error().cloned()
    }

    pub fn failing(&self) -> Option<String> {
        let failing = self.failing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        failing.clone()
    }

    /// Notes why nothing can be written, or that it can again. Gives what was noted before.
    pub fn set_failing(&self, why: Option<String>) -> Option<String> {
        let mut failing = self.failing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        std::mem::replace(&mut failing, why)
    }

    pub fn revision(&self) -> Revision {
        self.revision.load(Ordering::Acquire)
    }
    pub fn set_revision(&self, revision: Revision) {
        self.revision.store(revision, Ordering::Release);
    }
    pub fn compacted(&self) -> Revision {
        self.compacted.load(Ordering::Acquire)
    }
    pub fn set_compacted(&self, revision: Revision) {
        self.compacted.store(revision, Ordering::Release);
    }
}

/// An empty database at `path`, whatever was there.
pub(super) fn create(path: &Path, options: &Options) -> Result<Database, Error> {
    let action = "create its file";
    let disk = Disk::open(path, true, None).map_err(|error| problem(path, action, &error))?;
    let database = Database::builder()
        .set_cache_size(options.cache_bytes)
        .create_with_backend(disk)
        .map_err(|error| problem(path, action, &error))?;
    super::prepare(&database)?;
    Ok(database)
}

/// Every page is checked against its sum: a damaged file is found now, not by whoever reads it one day.
fn open(path: &Path, options: &Options) -> Result<Opened, Error> {
    let action = "open its file";
    let disk = Disk::open(path, false, options.faults.clone()).map_err(|error| problem(path, action, &error))?;
    // redb would make a new database of an empty file.
    if std::fs::metadata(path).is_ok_and(|file| file.len() == 0) {
        return Err(damaged(path, "it is empty"));
    }
    let opened = Database::builder()
        .set_cache_size(options.cache_bytes)
        .set_check_integrity_on_open(true)
        .create_with_backend(disk.clone());
    match opened {
        Ok(database) => Ok(Opened {
            database: Arc::new(database),
            disk,
        }),
        Err(DatabaseError::Storage(StorageError::Corrupted(why))) => Err(damaged(path, &why)),
        Err(DatabaseError::Storage(StorageError::Io(error)))
            if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            Err(damaged(path, &error.to_string()))
        }
        Err(error @ (DatabaseError::UpgradeRequired(_) | DatabaseError::RepairAborted)) => {
            Err(damaged(path, &error.to_string()))
        }
        Err(error) => Err(problem(path, action, &error)),
    }
}

pub(super) fn damaged(path: &Path, why: &str) -> Error {
    Error::Damaged {
        path: path.display().to_string(),
        reason: why.to_owned(),
    }
}

/// A failure that names the file.
fn problem(path: &Path, action: &'static str, error: &dyn std::error::Error) -> Error {
    Error::Engine {
        action,
        source: format!("{}: {error}", path.display()).into(),
    }
}
