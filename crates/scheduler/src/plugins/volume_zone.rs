//! VolumeZone: a bound volume whose labels say zones or regions is reached from nodes there.
//!
//! Nodes without such labels are of a cluster without zones: they reach everything.

use std::sync::Arc;

use super::volumes::{View, named_claims};
use crate::framework::{Event, NodeFilter, Refusal};
use crate::pod::Class;
use crate::snapshot::NodeInfo;
use sampan_claims as claims;

pub const NAME: &str = "VolumeZone";
const HELPED_BY: &[Event] = &[Event::Node, Event::Claim, Event::Volume, Event::StorageClass];
const CONFLICT: &str = "node(s) had no available volume zone";

const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";
/// Labels of volumes and nodes, with those that nodes may have instead.
const LABELS: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", ZONE),
    ("failure-domain.beta.kubernetes.io/region", REGION),
    (ZONE, ZONE),
    (REGION, REGION),
];

/// The zones a volume's label lists; `None`: the label says nothing.
fn zones(value: &str) -> Option<Vec<&str>> {
    let zones: Vec<&str> = value.split("__").map(str::trim).collect();
    zones.iter().all(|zone| !zone.is_empty()).then_some(zones)
}

fn check(view: &View, class: &Class, node: &NodeInfo) -> Result<(), Refusal> {
    let labels = node.node.as_ref().and_then(|node| node.metadata.labels.as_ref());
    let Some(labels) = labels.filter(|labels| LABELS.iter().any(|(key, _)| labels.contains_key(*key))) else {
        return Ok(());
    };
    for named in named_claims(class).filter(|named| named.owner.is_none()) {
        let claim = view.claims.get(&class.namespace, &named.name);
        let volume = claim.and_then(|claim| view.volumes.get("", claims::volume_name(&claim)?));
        // What is missing is VolumeBinding's to say.
        let Some(of_volume) = volume.as_ref().and_then(|volume| volume.metadata.labels.as_ref()) else {
            continue;
        };
        for (key, instead) in LABELS {
            let Some(zones) = of_volume.get(key).and_then(|value| zones(value)) else {
                continue;
            };
            let here = labels.get(key).or_else(|| labels.get(instead));
            if !here.is_some_and(|here| zones.contains(&here.as_str())) {
                return Err(Refusal::unresolvable(CONFLICT));
            }
        }
    }
    Ok(())
}

/// The check of a node.
pub fn filter(view: &Arc<View>) -> NodeFilter {
    let view = Arc::clone(view);
    NodeFilter {
        name: NAME,
        check: Box::new(move |class, node| match class.volumes.is_empty() {
            true => Ok(()),
            false => check(&view, class, node),
        }),
        helped_by: HELPED_BY,
    }
}
