//! PersistentVolumeClaims: from the claim a pod names to the place on this node that backs it.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Pod, Volume};
use sampan_claims::local;

use crate::local::LocalVolumes;
use crate::{Sources, VolumeError};

/// What stands behind a bound claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    HostPath {
        path: String,
        kind: String,
    },
    Local {
        path: String,
    },
    /// A directory that this node keeps itself for the volume of this name.
    Kept {
        name: String,
        path: PathBuf,
    },
}

/// Finds the bound volume of `claim` and checks that the two agree.
pub(crate) async fn resolve(
    sources: &dyn Sources,
    kept: &LocalVolumes,
    pod: &Pod,
    volume: &Volume,
    claim: &str,
) -> Result<Backing, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let found = sources
        .claim(namespace, claim)
        .await?
        .ok_or_else(|| VolumeError::NotFound {
            kind: "persistentvolumeclaim",
            name: claim.to_owned(),
        })?;
    if volume.ephemeral.is_some() {
        let owned = found
            .metadata
            .owner_references
            .iter()
            .flatten()
            .any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref());
        if !owned {
            return Err(VolumeError::Invalid(format!(
                "PVC {namespace}/{claim} was not created for pod {namespace}/{} (pod is not owner)",
                pod.metadata.name.as_deref().unwrap_or_default()
            )));
        }
    }
    if found.metadata.deletion_timestamp.is_some() {
        return Err(VolumeError::Invalid(format!(
            "can't start pod because PVC {namespace}/{claim} is being deleted"
        )));
    }
    let bound = found.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let name = found
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.clone())
        .filter(|name| bound && !name.is_empty())
        .ok_or_else(|| VolumeError::Invalid(format!("PVC {namespace}/{claim} is not bound to a volume yet")))?;
    let pv = sources
        .persistent_volume(&name)
        .await?
        .ok_or_else(|| VolumeError::NotFound {
            kind: "persistentvolume",
            name: name.clone(),
        })?;
    let spec = pv.spec.clone().unwrap_or_default();
    let claimed = spec.claim_ref.as_ref().and_then(|claim| claim.uid.as_ref());
    if claimed != found.metadata.uid.as_ref() {
        return Err(VolumeError::Invalid(format!(
            "persistentvolume {name:?} is bound to another claim than {namespace}/{claim}"
        )));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(VolumeError::Unsupported("block device".into()));
    }
    if let Some(host) = spec.host_path {
        return Ok(Backing::HostPath {
            path: host.path,
            kind: host.type_.unwrap_or_default(),
        });
    }
    if let Some(local) = spec.local {
        let ours = local::is_ours(&pv).then(|| kept.owned(&name, &local.path)).flatten();
        if let Some(path) = ours {
            return Ok(Backing::Kept { name, path });
        }
        return Ok(Backing::Local { path: local.path });
    }
    Err(VolumeError::Unsupported(format!("of persistentvolume {name}")))
}
