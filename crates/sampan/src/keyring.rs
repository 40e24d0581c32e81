//! The cluster's keys in its store, and their replacement.
//!
//! The record in the store (sealed, see [`share`]) is the truth: a step of a replacement is one conditional write of it. Every
//! server follows the record, the one that wrote it too, and a server that slept finds it at its next start. So a step happens
//! whole or not at all, whenever somebody is killed, and no server is left behind.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sampan_pki::keys::{Keys, Rotating, Step};
use sampan_pki::share;
use sampan_store::{Condition, Op, Store, Write, Written};

pub const KEY: &str = "/registry/sampan/identity";

/// Another server may be faster a few times.
const ATTEMPTS: usize = 5;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Where a server keeps its copy of the keys, and what opens the record.
#[derive(Clone, Debug)]
pub struct Place {
    pub dir: PathBuf,
    pub token_file: PathBuf,
}

impl Place {
    /// In a data directory; `told` is the token's file where there is no copy of it.
    pub fn of(data_dir: &Path, told: Option<&Path>) -> Self {
        let kept = data_dir.join("cluster-token");
        let token_file = match told {
            Some(told) if !kept.exists() => told.to_owned(),
            _ => kept,
        };
        Place {
            dir: data_dir.join("pki"),
            token_file,
        }
    }

    fn token(&self) -> Result<String> {
        let text = std::fs::read_to_string(&self.token_file).map_err(|error| {
            format!(
                "the cluster's token opens its keys, and {}: {error}",
                self.token_file.display()
            )
        })?;
        Ok(text.trim().to_owned())
    }

    /// Makes the directory hold the keys of a record; whether it did not.
    pub fn follow(&self, record: &[u8]) -> Result<bool> {
        Ok(share::unseal(record, &self.token()?)?.write(&self.dir)?)
    }
}

/// Makes a step in the store. The directory follows when the caller lets it.
pub async fn step(store: &dyn Store, place: &Place, what: Rotating, step: Step) -> Result<Vec<u8>> {
    let token = place.token()?;
    for _ in 0..ATTEMPTS {
        let found = store.get(KEY).await?;
        let found = found.ok_or("the store holds no keys of a cluster; start its server once")?;
        let keys = share::unseal(&found.value, &token)?.step(what, step)?;
        let record = share::seal(&keys, &token, Some(&found.value))?;
        let write = Write {
            key: Arc::from(KEY),
            condition: Condition::ModRevision(found.mod_revision),
            op: Op::Put {
                value: record.clone().into(),
                lease: None,
            },
        };
        if let Written::Committed { .. } = store.write(write).await? {
            return Ok(record);
        }
    }
    Err("another server keeps changing the cluster's keys".into())
}

/// What the directory holds.
pub fn keys(place: &Place) -> Result<Keys> {
    Ok(Keys::read(&place.dir)?)
}
