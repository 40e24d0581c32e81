//! What becomes of a claim.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use sampan_claims::{
    self as claims, BETA_PROVISIONER, BIND_COMPLETED, BOUND_BY_CONTROLLER, MIGRATED_TO, PROVISIONER, SELECTED_NODE,
    annotation, mark,
};
use sampan_client::{EventType, Key, or_absent};

use super::binder::Binder;
use crate::SyncError;

type Claim = Arc<PersistentVolumeClaim>;

impl Binder {
    pub(super) async fn sync_claim(&self, key: &Key) -> Result<(), SyncError> {
        let Some(claim) = self.claims.get_key(key) else {
            return Ok(());
        };
        let claim = self.recent_claims.newest(claim);
        if annotation(&claim.metadata.annotations, BIND_COMPLETED).is_some() {
            self.keep_bound(&claim).await
        } else {
            match claims::volume_name(&claim) {
                Some(name) => self.bind_named(&claim, name).await,
                None => self.bind_any(&claim).await,
            }
        }
    }

    fn tell(&self, claim: &PersistentVolumeClaim, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event(claim, kind, reason, message);
    }

    /// A claim that takes any volume that suits it.
    async fn bind_any(&self, claim: &Claim) -> Result<(), SyncError> {
        let class = self.class(claims::claim_class(claim));
        let delayed = class.as_ref().is_some_and(|class| claims::is_delayed(class));
        if let Some(chosen) = self.choose(claim, delayed) {
            return self.bind(&chosen.volume, claim).await;
        }
        if self.give_class(claim).await? {
            return Ok(());
        }
        let placed = annotation(&claim.metadata.annotations, SELECTED_NODE).is_some();
        if delayed && !placed {
            let pods = self.waiting_pods(claim);
            let (reason, message) = match pods.as_slice() {
                [] => (
                    "WaitForFirstConsumer",
                    "waiting for first consumer to be created before binding".to_owned(),
                ),
                [pod] => ("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
                pods => (
                    "WaitForPodScheduled",
                    format!("waiting for pods {} to be scheduled", pods.join(",")),
                ),
            };
            self.tell(claim, EventType::Normal, reason, message);
        } else if !claims::claim_class(claim).is_empty() {
            return self.ask_provisioner(claim).await;
        } else {
            let message = "no persistent volumes available for this claim and no storage class is set";
            self.tell(claim, EventType::Normal, "FailedBinding", message);
        }
        self.set_claim_phase(claim, "Pending", None).await?;
        Ok(())
    }

    /// A claim that came before there was a default class gets it now.
    async fn give_class(&self, claim: &Claim) -> Result<bool, SyncError> {
        if claims::has_class(claim) {
            return Ok(false);
        }
        let classes = self.classes.list();
        let Some(class) = claims::default_class(classes.iter().map(AsRef::as_ref)) else {
            return Ok(false);
        };
        let mut changed = PersistentVolumeClaim::clone(claim);
        changed.spec.get_or_insert_default().storage_class_name = class.metadata.name.clone();
        self.write_claim(&changed).await?;
        Ok(true)
    }

    /// Says on the claim who is to make its volume. Making it is theirs.
    async fn ask_provisioner(&self, claim: &Claim) -> Result<(), SyncError> {
        let name = claims::claim_class(claim);
        let Some(class) = self.class(name) else {
            let message = format!("storageclass.storage.k8s.io {name:?} not found");
            self.tell(claim, EventType::Warning, "ProvisioningFailed", message);
            return Ok(());
        };
        let driver = claims::migrated(&class.provisioner);
        if driver.is_none() && class.provisioner.starts_with("kubernetes.io/") {
            let message = format!("no volume plugin matched name: {}", class.provisioner);
            self.tell(claim, EventType::Warning, "ProvisioningFailed", message);
            return Ok(());
        }
        let provisioner = driver.unwrap_or(&class.provisioner);
        if annotation(&claim.metadata.annotations, PROVISIONER) != Some(provisioner) {
            let mut asked = PersistentVolumeClaim::clone(claim);
            let annotations = &mut asked.metadata.annotations;
            mark(annotations, BETA_PROVISIONER, provisioner);
            mark(annotations, PROVISIONER, provisioner);
            if let Some(driver) = driver {
                mark(annotations, MIGRATED_TO, driver);
            }
            self.write_claim(&asked).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by \
             the system administrator. If volume creation is delayed, please verify that the provisioner is running \
             and correctly registered."
        );
        self.tell(claim, EventType::Normal, "ExternalProvisioning", message);
        Ok(())
    }

    /// A claim whose user named the volume.
    async fn bind_named(&self, claim: &Claim, name: &str) -> Result<(), SyncError> {
        let Some(volume) = self.volume(name) else {
            self.set_claim_phase(claim, "Pending", None).await?;
            return Ok(());
        };
        if claims::claim_ref(&volume).is_none() {
            if let Err(claims::Mismatch(why)) = claims::satisfies(&volume, claim) {
                let message = format!("Cannot bind to requested volume {name:?}: {why}");
                self.tell(claim, EventType::Warning, "VolumeMismatch", message);
                self.set_claim_phase(claim, "Pending", None).await?;
                return Ok(());
            }
            return self.bind(&volume, claim).await;
        }
        if claims::is_for(&volume, claim) {
            return self.bind(&volume, claim).await;
        }
        let message = format!("volume {name:?} already bound to a different claim.");
        self.tell(claim, EventType::Warning, "FailedBinding", message);
        // One that we had bound lost its mark to somebody's edit: nothing is right that we could write.
        if annotation(&claim.metadata.annotations, BOUND_BY_CONTROLLER).is_none() {
            self.set_claim_phase(claim, "Pending", None).await?;
        }
        Ok(())
    }

    /// A claim that has been bound stays so, or is lost.
    async fn keep_bound(&self, claim: &Claim) -> Result<(), SyncError> {
        let Some(name) = claims::volume_name(claim) else {
            let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, "ClaimLost", message).await;
        };
        let volume = match self.volume(name) {
            Some(volume) => volume,
            None => match or_absent(self.volumes_api().get(name).await)? {
                Some(volume) => Arc::new(volume),
                None => {
                    let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                    return self.lose(claim, "ClaimLost", message).await;
                }
            },
        };
        match claims::claim_ref(&volume) {
            Some(known) if known.uid != claim.metadata.uid => {
                let message = "Two claims are bound to the same volume, this one is bound incorrectly";
                self.lose(claim, "ClaimMisbound", message).await
            }
            _ => self.bind(&volume, claim).await,
        }
    }

    async fn lose(&self, claim: &Claim, reason: &str, message: &str) -> Result<(), SyncError> {
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase != Some("Lost") {
            let lost = self.set_claim_phase(claim, "Lost", None).await?;
            self.tell(&lost, EventType::Warning, reason, message);
        }
        Ok(())
    }
}
