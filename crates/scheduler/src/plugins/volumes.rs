//! What the volume plugins look at besides Pods and nodes: claims, volumes and classes, in the process's own informers.
//!
//! Whoever follows an informer here may take the engine's lock, so nothing here registers a handler while the engine is
//! locked; reading a cache under the engine's lock is fine.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::StorageClass;
use sampan_claims as claims;
use sampan_client::{Cached, Change, Informer, Informers};

use crate::framework::Event;
use crate::pod::Class;

/// Free volumes by class, others by the claim they name.
const VOLUMES: &str = "scheduler/volumes";

/// The claims and volumes of the cluster; shared by all profiles.
pub struct View {
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub classes: Informer<StorageClass>,
    pub nodes: Informer<Node>,
    pub pods: Informer<Pod>,
}

/// A claim that a class of Pods names.
pub struct Named {
    pub name: String,
    /// The Pod it must belong to, where it stands for a volume made for that Pod alone.
    pub owner: Option<String>,
}

fn named(class: &Class, volume: &Volume) -> Option<Named> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(Named {
            name: source.claim_name.clone(),
            owner: None,
        });
    }
    volume.ephemeral.as_ref()?;
    let (pod, uid) = class.pod.as_ref()?;
    Some(Named {
        name: format!("{pod}-{}", volume.name),
        owner: Some(uid.clone()),
    })
}

/// The claims a class of Pods names.
pub fn named_claims(class: &Class) -> impl Iterator<Item = Named> + '_ {
    class.volumes.iter().filter_map(|volume| named(class, volume))
}

/// Whether Pods of a class name any claim.
pub fn names_claims(class: &Class) -> bool {
    named_claims(class).next().is_some()
}

/// A claim among the claims and volumes.
pub fn key(namespace: &str, name: &str) -> String {
    format!("claim {namespace}/{name}")
}

pub fn key_of(claim: &PersistentVolumeClaim) -> String {
    key(claim.namespace(), claim.name())
}

impl View {
    /// `concerns` is told what changed, and about which claim (namespace and name; `None`: any).
    pub fn new(
        informers: &Informers,
        concerns: impl Fn(Event, Option<(&str, &str)>) + Clone + Send + 'static,
    ) -> Arc<Self> {
        let view = Arc::new(View {
            claims: informers.of(),
            volumes: informers.of(),
            classes: informers.of(),
            nodes: informers.of(),
            pods: informers.of(),
        });
        view.volumes.add_index(VOLUMES, |volume| {
            vec![match claims::claim_ref(volume) {
                Some(claim) => key(
                    claim.namespace.as_deref().unwrap_or_default(),
                    claim.name.as_deref().unwrap_or_default(),
                ),
                None => format!("class {}", claims::volume_class(volume)),
            }]
        });
        let tell = concerns.clone();
        view.claims.on_change(move |change| {
            let claim = change.object();
            let name = (claim.namespace(), claim.name());
            tell(Event::Claim, Some(name));
        });
        let tell = concerns.clone();
        view.volumes.on_change(move |change| {
            // One that names its claim is of no use to others.
            let named = claims::claim_ref(change.object());
            let before = change.old().map_or(named, |old| claims::claim_ref(old));
            let same = named.filter(|named| {
                before.is_some_and(|before| before.name == named.name && before.namespace == named.namespace)
            });
            let name = same.map(|claim| {
                (
                    claim.namespace.as_deref().unwrap_or_default(),
                    claim.name.as_deref().unwrap_or_default(),
                )
            });
            tell(Event::Volume, name);
        });
        view.classes.on_change(move |change| {
            if !matches!(change, Change::Deleted(_)) {
                concerns(Event::StorageClass, None);
            }
        });
        view
    }

    pub async fn synced(&self) {
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
    }

    /// The volumes that a claim could get: those kept for it and those of its class that are free.
    pub fn offered(&self, claim: &PersistentVolumeClaim) -> impl Iterator<Item = Arc<PersistentVolume>> {
        let kept = self.volumes.by_index(VOLUMES, &key_of(claim));
        let free = format!("class {}", claims::claim_class(claim));
        kept.into_iter().chain(self.volumes.by_index(VOLUMES, &free))
    }
}

/// Whether Pods of a class name the claim, or any.
pub fn concerned(class: &Class, claim: Option<(&str, &str)>) -> bool {
    match claim {
        None => names_claims(class),
        Some((namespace, name)) => class.namespace == namespace && named_claims(class).any(|named| named.name == name),
    }
}
