//! One identity for all servers of a store.
//!
//! The first server makes the cluster's authorities and the key of service accounts, and puts them into the store,
//! sealed by the cluster's token. A further server is given the token's file and finds the rest in the store. A server
//! that has keys already must have those of the store: a mistaken address must not mix two clusters.

use std::path::Path;
use std::sync::Arc;

use sampan_pki::keys::Keys;
use sampan_pki::{Pki, share, write_private};
use sampan_store::{Condition, Op, Store, Write, Written};

use super::{Result, params};
use crate::keyring::{KEY, Place};
use crate::options::Settings;

/// Makes the keys in the data directory those of the cluster in `store`, or the other way round.
pub(super) async fn share(store: &dyn Store, settings: &Settings) -> Result<()> {
    let dir = settings.pki_dir();
    // A second round is needed only when another server was first.
    for _ in 0..2 {
        let record = store.get(KEY).await?;
        match (record, share::fingerprint(&dir)?) {
            (Some(record), Some(own)) if share::is_of(&record.value, &own)? => {
                return follow(&record.value, settings);
            }
            (Some(_), Some(_)) => {
                return Err(format!(
                    "the certificates in {} are of another cluster than the store; to join the store's cluster, move that directory away and give --cluster-token-file",
                    dir.display()
                )
                .into());
            }
            (Some(record), None) => {
                let path = &settings.cluster_token_file;
                let token = read(path).map_err(|error| {
                    format!(
                        "this cluster exists already and its keys are sealed; give --cluster-token-file, a copy of the file cluster-token in the data directory of one of its servers ({}: {error})",
                        path.display()
                    )
                })?;
                share::unseal(&record.value, &token)?.write(&dir)?;
                keep(settings, &token)?;
                tracing::info!("joined the cluster of the store");
                return Ok(());
            }
            (None, own) => {
                let token = match read(&settings.cluster_token_file) {
                    Ok(token) => token,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => share::new_token()?,
                    Err(error) => return Err(format!("{}: {error}", settings.cluster_token_file.display()).into()),
                };
                // Whatever is missing is made here, and is the cluster's if nobody was faster.
                drop(Pki::load_or_create(&dir, params(settings))?);
                keep(settings, &token)?;
                let write = Write {
                    key: Arc::from(KEY),
                    condition: Condition::ModRevision(0),
                    op: Op::Put {
                        value: share::seal(&Keys::read(&dir)?, &token, None)?.into(),
                        lease: None,
                    },
                };
                if let Written::Committed { .. } = store.write(write).await? {
                    return Ok(());
                }
                if own.is_none() {
                    std::fs::remove_dir_all(&dir)?;
                }
            }
        }
    }
    Err("the cluster's keys in the store keep changing".into())
}

/// Makes the keys in the data directory what the cluster's are now: they may have been replaced since this server last ran.
fn follow(record: &[u8], settings: &Settings) -> Result<()> {
    let place = Place::of(&settings.data_dir, Some(&settings.cluster_token_file));
    if !place.token_file.exists() {
        tracing::warn!(
            file = %place.token_file.display(),
            "the cluster's token is gone: what becomes of its keys elsewhere is not seen here"
        );
        return Ok(());
    }
    if place.follow(record).map_err(|error| error.to_string())? {
        tracing::info!("the cluster's keys were replaced while this server did not run");
    }
    Ok(())
}

fn read(path: &Path) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

/// Leaves the token where backups of this server and further servers find it.
fn keep(settings: &Settings, token: &str) -> Result<()> {
    let path = settings.data_dir.join("cluster-token");
    if !path.exists() {
        write_private(&path, format!("{token}\n").as_bytes())?;
    }
    Ok(())
}
