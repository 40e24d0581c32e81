//! What becomes of a volume.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use sampan_claims::{self as claims, MIGRATED_TO, PROVISIONED_BY, annotation, mark, mode};
use sampan_client::{EventType, Key, or_absent};

use super::binder::{Binder, phase_of};
use crate::SyncError;

type Volume = Arc<PersistentVolume>;

impl Binder {
    pub(super) async fn sync_volume(&self, key: &Key) -> Result<(), SyncError> {
        let Some(volume) = self.volume(&key.name) else {
            return Ok(());
        };
        let volume = self.note_migration(volume).await?;
        let reference = match claims::claim_ref(&volume) {
            // Free, or kept for a claim that has not come yet.
            None => return self.set_phase(&volume, "Available", "").await.map(drop),
            Some(reference) if reference.uid.as_deref().unwrap_or_default().is_empty() => {
                return self.set_phase(&volume, "Available", "").await.map(drop);
            }
            Some(reference) => reference,
        };
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let (namespace, name, uid) = (text(&reference.namespace), text(&reference.name), text(&reference.uid));
        let Some(claim) = self.claim_of(&volume, &namespace, &name, &uid).await? else {
            return self.release(&volume).await;
        };
        match claims::volume_name(&claim) {
            None => {
                self.expect_binding(&volume, &claim);
                Ok(())
            }
            Some(bound) if Some(bound) == volume.metadata.name.as_deref() => {
                self.set_phase(&volume, "Bound", "").await.map(drop)
            }
            // The claim has another volume. One that was made for it is not needed, others are free again.
            Some(_)
                if annotation(&volume.metadata.annotations, PROVISIONED_BY).is_some()
                    && policy(&volume) == "Delete" =>
            {
                self.release(&volume).await
            }
            Some(_) => self.unbind(&volume).await,
        }
    }

    /// The claim that a volume is bound to. Before a volume is given up the API server is asked: the claim may be
    /// newer than the cache.
    async fn claim_of(
        &self,
        volume: &PersistentVolume,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, SyncError> {
        let cached = self.claims.get(namespace, name);
        if let Some(claim) = cached.filter(|claim| claim.metadata.uid.as_deref() == Some(uid)) {
            return Ok(Some(self.recent_claims.newest(claim)));
        }
        if matches!(phase_of(volume), "Released" | "Failed") {
            return Ok(None);
        }
        let live = or_absent(self.claims_api(namespace).get(name).await)?;
        Ok(live
            .filter(|claim| claim.metadata.uid.as_deref() == Some(uid))
            .map(Arc::new))
    }

    /// The volume is the claim's, and the claim does not know yet: the claim's sync is to finish it.
    fn expect_binding(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) {
        let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
        let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
        if mode(of_volume) == mode(of_claim) {
            self.queue.add(Key::of(claim));
            return;
        }
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        let message = format!(
            "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
            name(&claim.metadata.name)
        );
        self.recorder
            .event(volume, EventType::Warning, "VolumeMismatch", message);
        let message = format!(
            "Cannot bind PersistentVolume {:?} to requested PersistentVolumeClaim due to incompatible volumeMode.",
            name(&volume.metadata.name)
        );
        self.recorder
            .event(claim, EventType::Warning, "VolumeMismatch", message);
    }

    /// A volume whose claim is gone: what its policy says.
    async fn release(&self, volume: &Volume) -> Result<(), SyncError> {
        let volume = match phase_of(volume) {
            // What went wrong stays to be seen.
            "Released" | "Failed" => Arc::clone(volume),
            _ => self.set_phase(volume, "Released", "").await?,
        };
        if annotation(&volume.metadata.annotations, MIGRATED_TO).is_some_and(|driver| !driver.is_empty()) {
            return Ok(());
        }
        match policy(&volume) {
            "Retain" => Ok(()),
            "Delete" => match undeletable(&volume) {
                Some(why) => self.fail(&volume, "VolumeFailedDelete", &why).await,
                None => Ok(()),
            },
            "Recycle" => {
                let message = "No recycler plugin found for the volume!";
                self.fail(&volume, "VolumeFailedRecycle", message).await
            }
            _ => {
                let message = "Volume has unrecognized PersistentVolumeReclaimPolicy";
                self.fail(&volume, "VolumeUnknownReclaimPolicy", message).await
            }
        }
    }

    /// Says on a volume of an in-tree provisioner which CSI driver has it now.
    async fn note_migration(&self, volume: Volume) -> Result<Volume, SyncError> {
        let provisioner = annotation(&volume.metadata.annotations, PROVISIONED_BY).unwrap_or_default();
        let Some(driver) = claims::migrated(provisioner) else {
            return Ok(volume);
        };
        if annotation(&volume.metadata.annotations, MIGRATED_TO) == Some(driver) {
            return Ok(volume);
        }
        let mut noted = PersistentVolume::clone(&volume);
        mark(&mut noted.metadata.annotations, MIGRATED_TO, driver);
        self.write_volume(&noted).await
    }
}

fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref())
        .unwrap_or("Retain")
}

/// Why nobody will delete what is behind a volume; `None` if its provisioner will.
fn undeletable(volume: &PersistentVolume) -> Option<String> {
    let provisioner = annotation(&volume.metadata.annotations, PROVISIONED_BY).unwrap_or_default();
    if provisioner.starts_with("kubernetes.io/") {
        return Some(format!("no volume plugin matched name: {provisioner}"));
    }
    if !provisioner.is_empty() || volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some()) {
        return None;
    }
    Some(format!(
        "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
        volume.metadata.name.as_deref().unwrap_or_default()
    ))
}
