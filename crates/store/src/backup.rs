//! Backups: the whole present of a store at one revision, in one file that says whether it is whole.
//!
//! The file: `SAMPANBK`, format (4 bytes), revision and count (8 each); then per key its length (4), the key, its create
//! and mod revision and lease (8 each), the value's length (4) and the value; last the SHA-256 of all before it. Integers
//! are big-endian. It holds Secrets as they are stored: keep it as the cluster's own disk. The keys of the cluster's
//! authorities are in it sealed, and need the cluster's token.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::types::{Error, KeyValue, Page, Revision, Store, prefix_end};

/// Revisions left out after a restore: nobody can have seen so many since the backup.
pub const LEAP: Revision = 1_000_000_000;
/// What is left to live of keys with a lease (Events) after they came from elsewhere.
pub const LEASE: Duration = Duration::from_secs(3600);

const MAGIC: &[u8; 8] = b"SAMPANBK";
const FORMAT: u32 = 1;
/// No key or value is larger; a length above it is damage and not a reason to allocate.
const LARGEST: u32 = 64 << 20;

/// A store's present.
#[derive(Debug)]
pub struct Backup {
    pub revision: Revision,
    pub entries: Vec<KeyValue>,
}

/// Why a file is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("it is not a backup of Sampan")]
    Foreign,
    #[error("its format is {0}, this version reads {FORMAT}; restore it with the version that wrote it")]
    Format(u32),
    #[error("it is cut short or damaged (its checksum does not match); take another")]
    Damaged,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Backup {
    /// What `store` holds now, without what belongs to the engine itself.
    pub async fn of(store: &dyn Store) -> Result<Backup, Error> {
        let root = "/registry/";
        let Page { entries, revision, .. } = store.range(root, &prefix_end(root), 0).await?;
        let ours =
            |entry: &KeyValue| !crate::etcd::Etcd::is_own(&entry.key) && &*entry.key != crate::embedded::MOVED_KEY;
        Ok(Backup {
            revision,
            entries: entries.into_iter().filter(ours).collect(),
        })
    }

    /// Writes the file.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        let mut to = Summing::new(to);
        to.write_all(MAGIC)?;
        to.write_all(&FORMAT.to_be_bytes())?;
        to.write_all(&self.revision.to_be_bytes())?;
        to.write_all(&(self.entries.len() as u64).to_be_bytes())?;
        for entry in &self.entries {
            for (bytes, numbers) in [
                (
                    entry.key.as_bytes(),
                    &[entry.create_revision, entry.mod_revision, entry.lease.unwrap_or(0)][..],
                ),
                (&entry.value[..], &[][..]),
            ] {
                let length = u32::try_from(bytes.len())
                    .ok()
                    .filter(|length| *length <= LARGEST)
                    .ok_or_else(|| io::Error::other(format!("{} is too large for a backup", entry.key)))?;
                to.write_all(&length.to_be_bytes())?;
                to.write_all(bytes)?;
                for number in numbers {
                    to.write_all(&number.to_be_bytes())?;
                }
            }
        }
        let sum = to.sum.finalize();
        to.inner.write_all(&sum)?;
        to.inner.flush()
    }

    /// Reads a file whole; nothing of a damaged one is believed.
    pub fn read(from: impl Read) -> Result<Backup, BackupError> {
        let mut from = Summing::new(from);
        let mut magic = [0; 8];
        from.exact(&mut magic).map_err(|error| match error {
            BackupError::Damaged => BackupError::Foreign,
            error => error,
        })?;
        if &magic != MAGIC {
            return Err(BackupError::Foreign);
        }
        let format = from.u32()?;
        if format != FORMAT {
            return Err(BackupError::Format(format));
        }
        let (revision, count) = (from.u64()?, from.u64()?);
        let mut entries: Vec<KeyValue> = Vec::new();
        for _ in 0..count {
            let key = from.bytes()?;
            let key: Arc<str> = std::str::from_utf8(&key).map_err(|_| BackupError::Damaged)?.into();
            let (create_revision, mod_revision, lease) = (from.u64()?, from.u64()?, from.u64()?);
            entries.push(KeyValue {
                key,
                value: from.bytes()?,
                create_revision,
                mod_revision,
                lease: (lease != 0).then_some(lease),
            });
        }
        let sum = from.sum.clone().finalize();
        let (mut stated, mut rest) = ([0; 32], [0]);
        from.exact(&mut stated)?;
        if stated != sum[..] || from.inner.read(&mut rest)? != 0 {
            return Err(BackupError::Damaged);
        }
        Ok(Backup { revision, entries })
    }
}

/// Sums up what passes.
struct Summing<T> {
    inner: T,
    sum: Sha256,
}

impl<T> Summing<T> {
    fn new(inner: T) -> Self {
        Summing {
            inner,
            sum: Sha256::new(),
        }
    }
}

impl<T: Write> Write for Summing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Summing<T> {
    fn exact(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        self.inner.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::Damaged,
            _ => error.into(),
        })?;
        self.sum.update(&*bytes);
        Ok(())
    }
    fn u32(&mut self) -> Result<u32, BackupError> {
        let mut bytes = [0; 4];
        self.exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }
    fn u64(&mut self) -> Result<u64, BackupError> {
        let mut bytes = [0; 8];
        self.exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
    fn bytes(&mut self) -> Result<Bytes, BackupError> {
        let length = self.u32()?;
        if length > LARGEST {
            return Err(BackupError::Damaged);
        }
        let mut bytes = vec![0; length as usize];
        self.exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry() -> impl Strategy<Value = KeyValue> {
        let value = proptest::collection::vec(any::<u8>(), 0..100);
        (
            "/registry/[a-z/]{0,20}",
            value,
            1u64..,
            1u64..,
            proptest::option::of(1u64..),
        )
            .prop_map(|(key, value, create_revision, mod_revision, lease)| KeyValue {
                key: key.into(),
                value: value.into(),
                create_revision,
                mod_revision,
                lease,
            })
    }

    proptest! {
        #[test]
        fn a_backup_survives_and_any_damage_is_noticed(
            entries in proptest::collection::vec(entry(), 0..8), revision: u64, at: prop::sample::Index, cut: bool,
        ) {
            let mut file = Vec::new();
            Backup { revision, entries: entries.clone() }.write(&mut file).unwrap();
            let read = Backup::read(&*file).unwrap();
            prop_assert_eq!((read.revision, read.entries), (revision, entries));
            let at = at.index(file.len());
            if cut {
                file.truncate(at);
            } else {
                file[at] ^= 1;
            }
            prop_assert!(Backup::read(&*file).is_err());
        }
    }
}
