//! The configuration's file, read at start and, if asked for, whenever it has changed.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use sampan_tasks::Tasks;
use tokio::sync::watch;

use crate::config::{Configuration, ConfigurationError};
use crate::metrics::Metrics;
use crate::store::Encrypted;
use crate::transformer::Set;

/// Where the configuration is.
#[derive(Clone, Debug)]
pub struct Source {
    pub path: PathBuf,
    /// How often the file is looked at; `None`: once. It may be a link into a directory that is swapped, or on a file
    /// system that tells nobody: so it is read.
    pub reload: Option<Duration>,
}

pub(crate) async fn load(
    source: &Source,
    news: &Arc<watch::Sender<u64>>,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
) -> Result<(Vec<u8>, Set), ConfigurationError> {
    let (content, configuration) = Configuration::read(&source.path)?;
    let set = Set::build(configuration, news, metrics, tasks)
        .await
        .map_err(|why| ConfigurationError::Invalid {
            path: source.path.clone(),
            why,
        })?;
    Ok((content, set))
}

/// Follows the file. What is wrong is told, and the last configuration that was right stays.
pub(crate) async fn follow(store: Weak<Encrypted>, source: Source, content: Vec<u8>, interval: Duration) {
    let mut seen = digest(&content);
    drop(content);
    loop {
        tokio::time::sleep(interval).await;
        let changed = match std::fs::read(&source.path) {
            Ok(content) => Some(digest(&content)).filter(|now| *now != seen),
            Err(error) => {
                tracing::warn!(%error, path = %source.path.display(), "the encryption configuration cannot be read; the last one stays");
                None
            }
        };
        let Some(now) = changed else { continue };
        let Some(store) = store.upgrade() else { return };
        let (news, metrics, tasks) = (store.news().clone(), store.counts().clone(), store.tasks().clone());
        match load(&source, &news, &metrics, &tasks).await {
            // A plug-in that does not work at once would leave writes without a key.
            Ok((content, set)) => match set.health() {
                Ok(()) => {
                    seen = now;
                    store.replace(set);
                    metrics.configuration(&content);
                    metrics.reloaded(true);
                    tracing::info!(path = %source.path.display(), "the encryption configuration was read anew");
                }
                Err(why) => {
                    metrics.reloaded(false);
                    tracing::warn!(
                        why,
                        "the new encryption configuration does not work yet; the last one stays"
                    );
                }
            },
            Err(error) => {
                seen = now;
                metrics.reloaded(false);
                tracing::error!(%error, "the new encryption configuration is wrong; the last one stays");
            }
        }
    }
}

/// No keys are kept here.
fn digest(content: &[u8]) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    Sha256::digest(content).into()
}
