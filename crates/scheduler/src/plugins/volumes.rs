//! What the volume plugins look at besides Pods and nodes: claims, volumes and classes, in the process's own informers.
//!
//! Whoever follows an informer here may take the engine's lock, so nothing here registers a handler while the engine is
//! locked; reading a cache under the engine's lock is fine.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use sampan_api::quantity::Quantity;
use sampan_claims as claims;
use sampan_client::{Cached, Change, Informer, Informers};

use super::dynamic_resources::{self, Devices, Reservation};
use super::volume_binding::{self, Binder, VolumeBinding};
use super::volume_restrictions::{self, Restrictions};
use super::{volume_limits, volume_zone};
use crate::config::Profile;
use crate::framework::{Event, Framework};
use crate::pod::{Class, is_finished};

/// Free volumes by class, others by the claim they name.
const VOLUMES: &str = "scheduler/volumes";
/// Pods that have a node by the claims they name.
const USERS: &str = "scheduler/pods/claims";
const ATTACHMENTS: &str = "scheduler/attachments/node";
const CAPACITIES: &str = "scheduler/capacities/class";

/// The claims and volumes of the cluster; shared by all profiles.
pub struct View {
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub classes: Informer<StorageClass>,
    pub nodes: Informer<Node>,
    pub pods: Informer<Pod>,
    pub csi_nodes: Informer<CSINode>,
    pub drivers: Informer<CSIDriver>,
    attachments: Informer<VolumeAttachment>,
    capacities: Informer<CSIStorageCapacity>,
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

/// Whether a Pod has a node and is not done.
pub fn is_placed(pod: &Pod) -> bool {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    !node.unwrap_or_default().is_empty() && !is_finished(pod)
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
            csi_nodes: informers.of(),
            drivers: informers.of(),
            attachments: informers.of(),
            capacities: informers.of(),
        });
        view.index();
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
        let tell = concerns.clone();
        view.classes.on_change(move |change| {
            if !matches!(change, Change::Deleted(_)) {
                tell(Event::StorageClass, None);
            }
        });
        view.follow_csi(&concerns);
        // What only one Pod may use is free, or used, everywhere.
        let of = Arc::clone(&view);
        view.pods.on_change(move |change| {
            let pod = change.object();
            let now = is_placed(pod) && !matches!(change, Change::Deleted(_));
            if now == change.old().is_some_and(|old| is_placed(old)) {
                return;
            }
            for claim in claims::claims_of(pod) {
                if of.is_exclusive(pod.namespace(), &claim) {
                    concerns(Event::Claim, Some((pod.namespace(), &claim)));
                }
            }
        });
        view
    }

    fn index(&self) {
        self.volumes.add_index(VOLUMES, |volume| {
            vec![match claims::claim_ref(volume) {
                Some(claim) => key(
                    claim.namespace.as_deref().unwrap_or_default(),
                    claim.name.as_deref().unwrap_or_default(),
                ),
                None => format!("class {}", claims::volume_class(volume)),
            }]
        });
        self.pods.add_index(USERS, |pod| match is_placed(pod) {
            true => {
                let claims = claims::claims_of(pod).into_iter();
                claims.map(|claim| key(pod.namespace(), &claim)).collect()
            }
            false => Vec::new(),
        });
        self.attachments
            .add_index(ATTACHMENTS, |attachment| vec![attachment.spec.node_name.clone()]);
        self.capacities
            .add_index(CAPACITIES, |capacity| vec![capacity.storage_class_name.clone()]);
    }

    fn follow_csi(&self, concerns: &(impl Fn(Event, Option<(&str, &str)>) + Clone + Send + 'static)) {
        let tell = concerns.clone();
        self.csi_nodes.on_change(move |_| tell(Event::CsiNode, None));
        let tell = concerns.clone();
        self.drivers.on_change(move |_| tell(Event::CsiDriver, None));
        let tell = concerns.clone();
        self.attachments.on_change(move |change| {
            if matches!(change, Change::Deleted(_)) {
                tell(Event::VolumeAttachment, None);
            }
        });
        let tell = concerns.clone();
        self.capacities.on_change(move |_| tell(Event::CsiCapacity, None));
    }

    /// Whether only one Pod may use a claim.
    pub fn is_exclusive(&self, namespace: &str, claim: &str) -> bool {
        let claim = self.claims.get(namespace, claim);
        let modes = claim
            .as_ref()
            .and_then(|claim| claim.spec.as_ref()?.access_modes.as_ref());
        modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteOncePod"))
    }

    /// The Pods that have a node and use a claim.
    pub fn users(&self, namespace: &str, claim: &str) -> Vec<Arc<Pod>> {
        self.pods.by_index(USERS, &key(namespace, claim))
    }

    pub fn attachments_on(&self, node: &str) -> Vec<Arc<VolumeAttachment>> {
        self.attachments.by_index(ATTACHMENTS, node)
    }

    /// Whether a volume of this class and size can be made where a node with these labels reaches it, as far as the
    /// class's driver says.
    pub fn has_room(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        labels: Option<&BTreeMap<String, String>>,
    ) -> bool {
        let driver = self.drivers.get("", &class.provisioner);
        if driver.is_none_or(|driver| driver.spec.storage_capacity != Some(true)) {
            return true;
        }
        let size = claims::request(claim);
        let capacities = self.capacities.by_index(CAPACITIES, class.name());
        capacities.iter().any(|capacity| {
            let limit = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref());
            let limit = limit.and_then(|limit| Quantity::parse(&limit.0).ok());
            limit.is_some_and(|limit| limit >= size)
                && capacity.node_topology.is_some()
                && claims::labels_match(capacity.node_topology.as_ref(), labels)
        })
    }

    pub async fn synced(&self) {
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.csi_nodes.synced().await;
        self.drivers.synced().await;
        self.attachments.synced().await;
        self.capacities.synced().await;
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

/// The volume plugins' parts that all profiles share.
pub struct Storage {
    view: Arc<View>,
    binder: Arc<Binder>,
    restrictions: Arc<Restrictions>,
}

impl Storage {
    pub fn new(client: kube::Client, view: &Arc<View>) -> Self {
        Storage {
            view: Arc::clone(view),
            binder: Binder::new(client, view),
            restrictions: Restrictions::new(view),
        }
    }

    pub async fn synced(&self) {
        self.view.synced().await;
    }

    /// A profile's plugins, with those that look at volumes and devices.
    pub fn framework(&self, profile: &Profile, devices: &Arc<Devices>) -> Framework {
        let mut framework = profile.framework();
        for name in profile.enabled_at("filter") {
            match name {
                volume_restrictions::NAME => {
                    framework.filters.push(volume_restrictions::filter(&self.restrictions));
                    framework.binding.push(Arc::clone(&self.restrictions) as _);
                }
                volume_limits::NAME => framework.filters.push(volume_limits::filter(&self.view)),
                volume_binding::NAME => {
                    framework.pre_filters.push(volume_binding::pre_filter(&self.binder));
                    framework.filters.push(volume_binding::filter(&self.binder));
                }
                volume_zone::NAME => framework.filters.push(volume_zone::filter(&self.view)),
                dynamic_resources::NAME => {
                    framework.pre_filters.push(devices.pre_filter());
                    framework.filters.push(devices.filter());
                }
                _ => {}
            }
        }
        if profile.enables("reserve", volume_binding::NAME) && profile.enables("preBind", volume_binding::NAME) {
            framework.binding.push(Arc::new(VolumeBinding {
                binder: Arc::clone(&self.binder),
                timeout: profile.arguments.volume_binding.bind_timeout,
            }));
        }
        if profile.enables("reserve", dynamic_resources::NAME) && profile.enables("preBind", dynamic_resources::NAME) {
            framework.binding.push(Arc::new(Reservation(Arc::clone(devices))));
        }
        framework
    }
}
