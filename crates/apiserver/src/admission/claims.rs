//! Volumes in use: what is used is not deleted under its user, and claims grow only where their class lets them.

use async_trait::async_trait;
use sampan_api::quantity::Quantity;
use sampan_api::{Object, meta};
use serde_json::Value;

use super::{Notes, Operation, Plugin, Reader, Review, text};
use crate::Refusal;

/// StorageObjectInUseProtection. The finalizers are taken off by controllers once nothing uses the object.
pub struct InUseProtection;

fn finalizer(review: &Review<'_>) -> Option<&'static str> {
    match (review.row.spec.group, review.row.spec.plural) {
        ("", "persistentvolumes") => Some("kubernetes.io/pv-protection"),
        ("", "persistentvolumeclaims") => Some("kubernetes.io/pvc-protection"),
        ("storage.k8s.io", "volumeattributesclasses") => Some("kubernetes.io/vac-protection"),
        _ => None,
    }
}

#[async_trait]
impl Plugin for InUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Create && review.subresource.is_empty() && finalizer(review).is_some()
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        if let Some(finalizer) = finalizer(review) {
            meta::add_finalizer(object, finalizer);
        }
        Ok(())
    }
}

/// PersistentVolumeClaimResize.
pub struct Resize(pub Reader);

/// The class of a claim, by field or by the old annotation.
fn class(claim: &Object) -> &str {
    meta::annotation(claim, "volume.beta.kubernetes.io/storage-class")
        .unwrap_or_else(|| text(claim, "/spec/storageClassName"))
}

#[async_trait]
impl Plugin for Resize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Update && review.is_core("persistentvolumeclaims")
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let (Some(new), Some(old)) = (object, review.old) else {
            return Ok(());
        };
        let size = |claim: &Object| {
            let asked = claim
                .pointer("/spec/resources/requests/storage")
                .unwrap_or(&Value::Null);
            Quantity::from_value(asked).unwrap_or_else(|_| Quantity::zero())
        };
        if size(new) <= size(old) {
            return Ok(());
        }
        if text(old, "/status/phase") != "Bound" {
            return Err(review.refuse(new, "Only bound persistent volume claims can be expanded"));
        }
        let name = class(new);
        let grows = !name.is_empty()
            && name == class(old)
            && self
                .0
                .get("storageclasses", name)
                .is_some_and(|class| class.object().get("allowVolumeExpansion").and_then(Value::as_bool) == Some(true));
        if grows {
            return Ok(());
        }
        Err(review.refuse(
            new,
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ))
    }
}
