//! Taking everything back.

use std::fs;
use std::io;
use std::path::Path;

use crate::fabric;
use crate::kernel::link::Links;
use crate::kernel::netns;
use crate::kernel::nft::{NftError, Transaction};
use crate::kernel::sysctl::Remembered;
use crate::pods::{self, PodNetworkConfig};
use crate::policy;
use crate::proxy;

#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("cannot remove the rules: {0}")]
    Rules(#[from] NftError),
    #[error("cannot remove the ways to other nodes: {0}")]
    Fabric(#[from] fabric::ApplyError),
    #[error("cannot remove {what}: {source}")]
    Io { what: String, source: io::Error },
}

/// Removes the ways to other nodes, the rules, the bridge with its ports, the namespaces made here, and puts changed settings back. What is
/// not there is no error. Blocking.
pub fn cleanup(config: &PodNetworkConfig) -> Result<(), CleanupError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| CleanupError::Io { what, source }
    };
    config
        .host
        .run(|| remove_from_kernel(config))
        .map_err(io("the network (cannot enter its namespace)"))??;
    remove_namespaces(&config.netns_dir).map_err(io(&config.netns_dir.display().to_string()))?;
    let records = pods::records_dir(config);
    match fs::remove_dir_all(&records) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io(&records.display().to_string())(source)),
        _ => Ok(()),
    }
}

fn remove_from_kernel(config: &PodNetworkConfig) -> Result<(), CleanupError> {
    fabric::remove_all()?;
    for table in [proxy::TABLE, policy::TABLE, pods::TABLE] {
        let mut transaction = Transaction::new(table);
        transaction.drop_table();
        transaction.commit()?;
    }
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| CleanupError::Io { what, source }
    };
    pods::frames::remove_all()?;
    let mut links = Links::open().map_err(io("links"))?;
    for record in pods::records(config).map_err(io("the Pods' links"))? {
        links.remove(&record.link).map_err(io(&record.link))?;
    }
    links.remove(&config.bridge).map_err(io(&config.bridge))?;
    Remembered::at(pods::settings_file(config))
        .restore()
        .map_err(io("changed kernel settings"))
}

fn remove_namespaces(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        netns::remove(&entry?.path())?;
    }
    fs::remove_dir(dir)
}
