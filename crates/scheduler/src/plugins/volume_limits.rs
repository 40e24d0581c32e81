//! NodeVolumeLimits: no more volumes of a CSI driver on a node than its CSINode says.
//!
//! What counts is what is different: one volume that several Pods use counts once, and a claim without a volume counts
//! as one of its own. Volumes that are attached though no Pod uses them count too. Difference from upstream: volumes of
//! in-tree types are not translated to those of CSI drivers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;
use sampan_claims as claims;

use super::volumes::{View, key_of, named_claims, names_claims};
use crate::framework::{Event, NodeFilter, Refusal};
use crate::pod::Class;
use crate::snapshot::NodeInfo;

pub const NAME: &str = "NodeVolumeLimits";
const HELPED_BY: &[Event] = &[
    Event::CsiNode,
    Event::PodGone,
    Event::Claim,
    Event::VolumeAttachment,
    Event::Node,
];
const EXCEEDED: &str = "node(s) exceed max volume count";

/// A driver and which of its volumes.
type Used = (String, String);

fn of_volume(volume: &PersistentVolume) -> Option<Used> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    Some((csi.driver.clone(), csi.volume_handle.clone()))
}

/// The volumes of CSI drivers that a class of Pods uses.
fn used(view: &View, class: &Class) -> HashSet<Used> {
    let claims = named_claims(class).filter_map(|named| view.claims.get(&class.namespace, &named.name));
    let used = claims.filter_map(|claim| {
        let volume = claims::volume_name(&claim).and_then(|volume| view.volumes.get("", volume));
        if let Some(volume) = volume {
            return of_volume(&volume).filter(|(_, handle)| !handle.is_empty());
        }
        let class = view.classes.get("", claims::claim_class(&claim))?;
        Some((class.provisioner.clone(), key_of(&claim)))
    });
    used.collect()
}

fn check(view: &View, class: &Class, node: &NodeInfo) -> Result<(), Refusal> {
    let Some(csi) = view.csi_nodes.get("", &node.name) else {
        return Ok(());
    };
    let limits: HashMap<&str, i64> = csi
        .spec
        .drivers
        .iter()
        .filter_map(|driver| Some((driver.name.as_str(), i64::from(driver.allocatable.as_ref()?.count?))))
        .collect();
    if limits.is_empty() {
        return Ok(());
    }
    let new: HashSet<Used> = used(view, class)
        .into_iter()
        .filter(|(driver, _)| limits.contains_key(driver.as_str()))
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let mut there: HashSet<Used> = HashSet::new();
    for pod in node.pods.values() {
        there.extend(used(view, &pod.class));
    }
    let new: Vec<&Used> = new.iter().filter(|used| !there.contains(*used)).collect();
    // Attached to the node for whomever.
    let mut attached = there.clone();
    for attachment in view.attachments_on(&node.name) {
        let volume = attachment.spec.source.persistent_volume_name.as_deref();
        let volume = volume.and_then(|volume| view.volumes.get("", volume));
        if let Some((_, handle)) = volume.as_ref().and_then(|volume| of_volume(volume)) {
            attached.insert((attachment.spec.attacher.clone(), handle));
        }
    }
    let count = |driver: &str, all: &mut dyn Iterator<Item = &Used>| all.filter(|(of, _)| of == driver).count();
    for (driver, limit) in limits {
        let more = count(driver, &mut new.iter().copied());
        let now = count(driver, &mut attached.iter());
        if more > 0 && i64::try_from(more + now).unwrap_or(i64::MAX) > limit {
            return Err(Refusal::resolvable(EXCEEDED));
        }
    }
    Ok(())
}

/// The check of a node.
pub fn filter(view: &Arc<View>) -> NodeFilter {
    let view = Arc::clone(view);
    NodeFilter {
        name: NAME,
        check: Box::new(move |class, node| match names_claims(class) {
            true => check(&view, class, node),
            false => Ok(()),
        }),
        helped_by: HELPED_BY,
    }
}
