//! Kernel settings under `/proc/sys/net`, remembered so that [`Remembered::restore`] puts the machine back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::files;

fn file(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

/// Sets a setting of something that is ours, such as our own bridge: nothing to put back. A setting this kernel does
/// not have is no error.
pub fn set(name: &str, value: &str) -> io::Result<()> {
    match fs::write(file(name), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Settings of the machine that were changed, with their values before.
#[derive(Clone, Debug)]
pub struct Remembered {
    path: PathBuf,
}

impl Remembered {
    pub fn at(path: PathBuf) -> Self {
        Remembered { path }
    }

    fn load(&self) -> io::Result<BTreeMap<String, String>> {
        files::read_json(&self.path).map(Option::unwrap_or_default)
    }

    /// Sets a machine-wide setting; its old value is on disk before it changes.
    pub fn set(&self, name: &str, value: &str) -> io::Result<()> {
        let old = match fs::read_to_string(file(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?.trim().to_owned(),
        };
        if old == value {
            return Ok(());
        }
        let mut saved = self.load()?;
        if !saved.contains_key(name) {
            saved.insert(name.to_owned(), old);
            files::write_json(&self.path, &saved)?;
        }
        fs::write(file(name), value)
    }

    /// Puts every changed setting back.
    pub fn restore(&self) -> io::Result<()> {
        for (name, value) in self.load()? {
            set(&name, &value)?;
        }
        files::remove(&self.path)
    }
}
