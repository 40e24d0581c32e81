//! The file under the engine, on good days and bad ones.
//!
//! redb refuses everything after its first I/O error until the file is opened anew. [`Disk`] makes that safe while
//! readers still hold the old handle: it can be cut off, after which it touches the file no more, and it keeps the
//! first error, which redb's later ones no longer name.
//!
//! Space runs out in two steps. Below [`RESERVE`] the engine refuses new values by itself (as etcd does above its
//! quota), so that deletions and compaction still find room; a file system that is full all the same makes an
//! I/O error like any other.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statvfs::statvfs;

use crate::testing::Faults;

/// What deletions and compaction may use after everything else was refused.
const RESERVE: u64 = 16 << 20;

/// One open file, shared by redb and whoever may have to cut it off.
#[derive(Clone, Debug)]
pub(super) struct Disk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: File,
    cut: AtomicBool,
    first_error: OnceLock<(io::ErrorKind, String)>,
    faults: Option<Arc<Faults>>,
}

/// Makes the directory, or makes it private: what is in it is nobody else's business, whoever may traverse its parent.
/// Files that earlier versions left readable are tightened too.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::set_permissions(entry.path(), Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

impl Disk {
    /// Opens (or, if `new`, creates) the file.
    pub fn open(path: &Path, new: bool, faults: Option<Arc<Faults>>) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(new)
            .truncate(new)
            .mode(0o600)
            .open(path)?;
        // Also one that an earlier version made.
        file.set_permissions(Permissions::from_mode(0o600))?;
        Ok(Disk(Arc::new(Inner {
            file,
            cut: AtomicBool::new(false),
            first_error: OnceLock::new(),
            faults,
        })))
    }

    /// What is read from now on comes from the disk: after a failed write-back the kernel takes pages for clean that
    /// never reached it. This is advice; where it is not taken, nothing is lost but the precaution.
    pub fn distrust_cache(&self) {
        if let Err(error) = posix_fadvise(&self.0.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
            tracing::debug!(%error, "the store's file stays in the kernel's cache");
        }
    }

    /// Nothing that still holds this file reads or writes it from now on.
    pub fn cut_off(&self) {
        self.0.cut.store(true, Ordering::Release);
    }

    /// The first thing that went wrong.
    pub fn first_error(&self) -> Option<&(io::ErrorKind, String)> {
        self.0.first_error.get()
    }

    fn run<T>(&self, writes: bool, work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        if self.0.cut.load(Ordering::Acquire) {
            return Err(io::Error::other("the file was opened anew"));
        }
        let fault = self.0.faults.as_ref().and_then(|faults| faults.next(writes));
        let outcome = match fault {
            Some(error) => Err(error),
            None => work(&self.0.file),
        };
        outcome.inspect_err(|error| {
            self.0.first_error.get_or_init(|| (error.kind(), error.to_string()));
        })
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.run(false, |file| Ok(file.metadata()?.len()))
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.run(false, |file| file.read_exact_at(out, offset))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.run(true, |file| file.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.run(true, File::sync_data)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.run(true, |file| file.write_all_at(data, offset))
    }
}

/// How much room is left where new values are no longer taken; `None`: enough.
pub(super) fn too_little_room(dir: &Path) -> Option<u64> {
    let room = statvfs(dir).ok()?;
    let left = room.blocks_available().saturating_mul(room.fragment_size());
    (left < RESERVE).then_some(left)
}

/// Whether an error means that there is no room.
pub(super) fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
