//! Every node gets a range of Pod addresses out of the cluster's.
//!
//! The ranges in use are what the nodes say (`spec.podCIDRs`); an allocation is reserved in memory until its node shows
//! it, so that two nodes syncing at once never get the same range. A range is free again when its node is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use sampan_client::{Change, EventType, Informer, Key, Recorder, WorkQueue, or_absent};
use serde_json::json;

use crate::{Context, SyncError};

struct Ipam {
    client: kube::Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    ranges: Mutex<Ranges>,
}

pub(crate) fn start(context: Context) {
    let nodes = context.informers.of::<Node>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let ipam = Arc::new(Ipam {
        client: context.client.clone(),
        recorder: context.recorder.clone(),
        nodes: nodes.clone(),
        ranges: Mutex::new(Ranges::new(context.config.cluster_cidr, context.config.node_mask)),
    });
    let (changed, seen) = (queue.clone(), Arc::clone(&ipam));
    nodes.on_change(move |change| {
        let node = change.object();
        let key = Key::of(node.as_ref());
        let mut ranges = seen.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        match (change, pod_cidr(node)) {
            (Change::Deleted(_), _) => ranges.release(&key.name),
            (_, Some(cidr)) => ranges.occupy(&key.name, cidr),
            (_, None) => changed.add(key),
        }
    });
    let ready = async move { nodes.synced().await };
    context.run(&queue, ready, move |key| {
        let ipam = Arc::clone(&ipam);
        async move { ipam.sync(&key).await }
    });
}

fn pod_cidr(node: &Node) -> Option<IpNet> {
    node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()
}

impl Ipam {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(node) = self.nodes.get("", &key.name) else {
            return Ok(());
        };
        if pod_cidr(&node).is_some() {
            return Ok(());
        }
        let given = self
            .ranges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .allocate(&key.name);
        let Some(cidr) = given else {
            self.recorder.event(
                node.as_ref(),
                EventType::Warning,
                "CIDRNotAvailable",
                format!("Node {} status is now: CIDRNotAvailable", key.name),
            );
            return Err(SyncError::other("no range of Pod addresses is free"));
        };
        let patch = json!({
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": cidr.to_string(), "podCIDRs": [cidr.to_string()]},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        let written = api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match or_absent(written) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
                ranges.release(&key.name);
                Ok(())
            }
            // The reservation stays with the node for the next try.
            Err(error) => Err(error.into()),
        }
    }
}

/// Which range each node has.
struct Ranges {
    cluster: IpNet,
    mask: u8,
    by_node: BTreeMap<String, IpNet>,
    used: BTreeSet<IpNet>,
}

impl Ranges {
    fn new(cluster: IpNet, mask: u8) -> Self {
        Ranges {
            cluster: cluster.trunc(),
            mask: mask.clamp(cluster.prefix_len(), cluster.max_prefix_len()),
            by_node: BTreeMap::new(),
            used: BTreeSet::new(),
        }
    }

    fn occupy(&mut self, node: &str, cidr: IpNet) {
        if self.by_node.get(node) == Some(&cidr) {
            return;
        }
        self.release(node);
        self.used.insert(cidr);
        self.by_node.insert(node.to_owned(), cidr);
    }

    fn release(&mut self, node: &str) {
        if let Some(cidr) = self.by_node.remove(node) {
            self.used.remove(&cidr);
        }
    }

    /// The node's range, or the first that is free and overlaps nobody's.
    fn allocate(&mut self, node: &str) -> Option<IpNet> {
        if let Some(known) = self.by_node.get(node) {
            return Some(*known);
        }
        let bits = u32::from(self.mask - self.cluster.prefix_len()).min(63);
        let free = (0..1_u64 << bits)
            .filter_map(|number| self.range(number))
            .find(|range| {
                !self.used.contains(range)
                    && !self
                        .used
                        .iter()
                        .any(|used| used.contains(range) || range.contains(used))
            })?;
        self.occupy(node, free);
        Some(free)
    }

    fn range(&self, number: u64) -> Option<IpNet> {
        let shift = u32::from(self.cluster.max_prefix_len() - self.mask);
        let offset = u128::from(number).checked_shl(shift).unwrap_or(0);
        let address = match self.cluster.network() {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).ok()?;
                IpAddr::V4(Ipv4Addr::from(u32::from(base).checked_add(offset)?))
            }
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base).checked_add(offset)?)),
        };
        IpNet::new(address, self.mask).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_once_and_come_back() {
        let mut ranges = Ranges::new("10.244.0.0/22".parse().unwrap(), 24);
        ranges.occupy("old", "10.244.1.0/24".parse().unwrap());
        let mut give = |node: &str| ranges.allocate(node).map(|range| range.to_string());
        assert_eq!(give("a").as_deref(), Some("10.244.0.0/24"));
        assert_eq!(give("a").as_deref(), Some("10.244.0.0/24"));
        assert_eq!(give("b").as_deref(), Some("10.244.2.0/24"));
        assert_eq!(give("c").as_deref(), Some("10.244.3.0/24"));
        assert_eq!(give("d"), None);
        ranges.release("old");
        let d = ranges.allocate("d").unwrap().to_string();
        assert_eq!(d, "10.244.1.0/24");
        let mut six = Ranges::new("fd00::/48".parse().unwrap(), 64);
        assert_eq!(six.allocate("a").unwrap().to_string(), "fd00::/64");
        assert_eq!(six.allocate("b").unwrap().to_string(), "fd00:0:0:1::/64");
    }
}
