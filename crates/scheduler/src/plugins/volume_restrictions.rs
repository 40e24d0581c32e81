//! VolumeRestrictions: what only one Pod may use at a time.
//!
//! A claim of mode ReadWriteOncePod is for one Pod in the whole cluster. Which Pods have nodes is read from the
//! informer; a Pod that was just given a node is not seen there yet, so the claims of such Pods are kept by `reserve`
//! until it is. Disks that a Pod names itself clash with those of Pods on the same node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Volume;
use sampan_client::{Cached, Change};

use super::volumes::{View, is_placed, key, named_claims};
use crate::framework::{BindingPlugin, Event, NodeFilter, Refusal};
use crate::pod::{Class, PodInfo};
use crate::snapshot::NodeInfo;

pub const NAME: &str = "VolumeRestrictions";
const HELPED_BY: &[Event] = &[Event::Node, Event::PodGone, Event::Claim];

const DISK: &str = "node(s) had no available disk";
const IN_USE: &str =
    "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";

/// The claims of Pods that were given a node just now.
pub struct Restrictions {
    view: Arc<View>,
    /// By claim: the Pod's uid.
    kept: Mutex<HashMap<String, Arc<str>>>,
}

impl Restrictions {
    pub fn new(view: &Arc<View>) -> Arc<Self> {
        let restrictions = Arc::new(Restrictions {
            view: Arc::clone(view),
            kept: Mutex::default(),
        });
        let of = Arc::clone(&restrictions);
        view.pods.on_change(move |change| {
            let pod = change.object();
            if matches!(change, Change::Deleted(_)) || is_placed(pod) {
                of.let_go(pod.uid());
            }
        });
        restrictions
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, Arc<str>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_go(&self, pod: &str) {
        let mut kept = self.kept();
        // Nearly always there are none.
        if !kept.is_empty() {
            kept.retain(|_, holder| **holder != *pod);
        }
    }

    /// The claims of a class that only one Pod may use.
    fn exclusive(&self, class: &Class) -> Vec<String> {
        let named = named_claims(class).filter(|named| named.owner.is_none());
        named
            .filter(|named| self.view.is_exclusive(&class.namespace, &named.name))
            .map(|named| named.name)
            .collect()
    }

    fn check(&self, class: &Class, node: &NodeInfo) -> Result<(), Refusal> {
        let clashes = |volume: &Volume| {
            let others = node.pods.values().flat_map(|pod| &pod.class.volumes);
            names_disk(volume) && others.into_iter().any(|other| clash(volume, other))
        };
        if class.volumes.iter().any(clashes) {
            return Err(Refusal::resolvable(DISK));
        }
        for claim in self.exclusive(class) {
            let users = self.view.users(&class.namespace, &claim);
            // Whoever is on this node counts as long as the node's account has it: it may be about to make room.
            let used = users.iter().any(|pod| {
                let at = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
                at != Some(&*node.name) || node.pods.contains_key(pod.uid())
            });
            if used {
                return Err(Refusal::resolvable(IN_USE));
            }
        }
        Ok(())
    }
}

fn names_disk(volume: &Volume) -> bool {
    volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.iscsi.is_some()
        || volume.rbd.is_some()
}

/// Whether two Pods' volumes are one disk, and not both only read it.
pub(super) fn clash(left: &Volume, right: &Volume) -> bool {
    let reads = |left: Option<bool>, right: Option<bool>| left == Some(true) && right == Some(true);
    if let (Some(left), Some(right)) = (&left.gce_persistent_disk, &right.gce_persistent_disk) {
        return left.pd_name == right.pd_name && !reads(left.read_only, right.read_only);
    }
    if let (Some(left), Some(right)) = (&left.aws_elastic_block_store, &right.aws_elastic_block_store) {
        return left.volume_id == right.volume_id;
    }
    if let (Some(left), Some(right)) = (&left.iscsi, &right.iscsi) {
        return left.iqn == right.iqn && !reads(left.read_only, right.read_only);
    }
    if let (Some(left), Some(right)) = (&left.rbd, &right.rbd) {
        return left.monitors.iter().any(|monitor| right.monitors.contains(monitor))
            && left.pool == right.pool
            && left.image == right.image
            && !reads(left.read_only, right.read_only);
    }
    false
}

/// The check of a node.
pub fn filter(restrictions: &Arc<Restrictions>) -> NodeFilter {
    let restrictions = Arc::clone(restrictions);
    NodeFilter {
        name: NAME,
        check: Box::new(move |class, node| match class.volumes.is_empty() {
            true => Ok(()),
            false => restrictions.check(class, node),
        }),
        helped_by: HELPED_BY,
    }
}

impl BindingPlugin for Restrictions {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reserve(&self, pod: &PodInfo, _node: &str) -> Result<(), Refusal> {
        if pod.class.volumes.is_empty() {
            return Ok(());
        }
        let claims = self.exclusive(&pod.class);
        let mut kept = self.kept();
        let key = |name: &String| key(&pod.namespace, name);
        if claims
            .iter()
            .any(|name| kept.get(&key(name)).is_some_and(|holder| *holder != pod.uid))
        {
            return Err(Refusal::resolvable(IN_USE));
        }
        kept.extend(claims.iter().map(|name| (key(name), Arc::clone(&pod.uid))));
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo) {
        self.let_go(&pod.uid);
    }

    fn pre_bind<'a>(&'a self, _pod: &'a PodInfo, _node: &'a str) -> Option<BoxFuture<'a, Result<(), String>>> {
        None
    }

    fn helped_by(&self) -> &'static [Event] {
        HELPED_BY
    }
}
