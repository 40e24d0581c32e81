//! Plugins that are off unless they are asked for.

use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::{Object, meta};
use sampan_auth::{Attributes, Authorizer};
use serde_json::Value;

use super::{Notes, Operation, Plugin, Review, text};
use crate::Refusal;
use crate::rows::Rows;

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

fn writes(review: &Review<'_>) -> bool {
    matches!(review.operation, Operation::Create | Operation::Update)
}

/// AlwaysPullImages: a private image already on a node is not for everyone there.
pub struct AlwaysPullImages;

fn images(pod: &Object) -> Vec<&str> {
    CONTAINERS
        .iter()
        .filter_map(|field| pod.pointer(&format!("/spec/{field}"))?.as_array())
        .flatten()
        .map(|container| text(container, "/image"))
        .collect()
}

#[async_trait]
impl Plugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        writes(review) && review.is_core("pods")
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        if let Some(old) = review.old {
            let before = images(old);
            if images(pod).iter().all(|image| before.contains(image)) {
                return Ok(());
            }
        }
        for field in CONTAINERS {
            let list = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
            for container in list.into_iter().flatten().filter_map(Value::as_object_mut) {
                container.insert("imagePullPolicy".into(), "Always".into());
            }
        }
        let volumes = pod.pointer_mut("/spec/volumes").and_then(Value::as_array_mut);
        for volume in volumes.into_iter().flatten() {
            if let Some(image) = volume.get_mut("image").and_then(Value::as_object_mut) {
                image.insert("pullPolicy".into(), "Always".into());
            }
        }
        Ok(())
    }
}

/// DenyServiceExternalIPs: no new ones; those that are there may stay or go.
pub struct DenyExternalIps;

#[async_trait]
impl Plugin for DenyExternalIps {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        writes(review) && review.is_core("services")
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let Some(service) = object else { return Ok(()) };
        let of = |service: &Object| -> Vec<Value> {
            let list = service.pointer("/spec/externalIPs").and_then(Value::as_array);
            list.cloned().unwrap_or_default()
        };
        let before = review.old.map(of).unwrap_or_default();
        if of(service).iter().all(|address| before.contains(address)) {
            return Ok(());
        }
        Err(review.refuse(service, "Use of external IPs is denied by admission control"))
    }
}

/// OwnerReferencesPermissionEnforcement: who makes an object wait for another must have a say in both.
pub struct OwnerPermissions {
    pub authorizer: Authorizer,
    pub rows: Arc<Rows>,
}

impl OwnerPermissions {
    /// Whether the user may update the finalizers of what a reference names, or why not.
    fn may_block(&self, review: &Review<'_>, reference: &meta::OwnerReference) -> Result<(), String> {
        let (group, version) = meta::group_version(&reference.api_version).unwrap_or_default();
        let table = self.rows.get();
        let Some(row) = table.of_kind(group, version, &reference.kind) else {
            return Err(format!(
                "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {} Kind {}: no matches for kind {:?} in version {:?}",
                reference.api_version, reference.kind, reference.kind, reference.api_version
            ));
        };
        let decision = self.authorizer.authorize(&Attributes {
            version,
            subresource: "finalizers",
            namespace: if row.spec.namespaced { review.namespace } else { "" },
            name: &reference.name,
            ..Attributes::resource(review.user, "update", group, row.spec.plural)
        });
        if decision.allowed {
            return Ok(());
        }
        Err(format!(
            "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {}, <nil>",
            decision.reason
        ))
    }
}

#[async_trait]
impl Plugin for OwnerPermissions {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        // The scheduler binds Pods without the right to delete them.
        writes(review) && !(review.row.is("", "pods") && review.subresource == "status")
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let Some(object) = object else { return Ok(()) };
        let new: Vec<_> = meta::owner_references(object).collect();
        let old: Vec<_> = review.old.into_iter().flat_map(meta::owner_references).collect();
        let tree = |object: &Object| object.pointer("/metadata/ownerReferences").cloned();
        if new.is_empty() && old.is_empty() || review.old.is_some_and(|old| tree(old) == tree(object)) {
            return Ok(());
        }
        let spec = review.row.spec;
        if review.operation != Operation::Create {
            let decision = self.authorizer.authorize(&Attributes {
                version: spec.version,
                subresource: review.subresource,
                namespace: review.namespace,
                name: review.name,
                ..Attributes::resource(review.user, "delete", spec.group, spec.plural)
            });
            if !decision.allowed {
                let why = format!(
                    "cannot set an ownerRef on a resource you can't delete: {}, <nil>",
                    decision.reason
                );
                return Err(review.refuse(object, &why));
            }
        }
        let blocks = |reference: &meta::OwnerReference| reference.block_owner_deletion == Some(true);
        let fresh = new.iter().filter(|reference| {
            blocks(reference) && !old.iter().any(|known| known.uid == reference.uid && blocks(known))
        });
        for reference in fresh {
            self.may_block(review, reference)
                .map_err(|why| review.refuse(object, &why))?;
        }
        Ok(())
    }
}
