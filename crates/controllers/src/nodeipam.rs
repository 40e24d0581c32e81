//! Every node gets a range of Pod addresses out of each of the cluster's: of one family, or of both.
//!
//! The ranges in use are what the nodes say (`spec.podCIDRs`); an allocation is reserved in memory until its node shows
//! it, so that two nodes syncing at once never get the same range. A range is free again when its node is gone, and who
//! found none left is looked at again then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use sampan_client::{Change, EventType, Informer, Key, Recorder, WorkQueue, or_absent};
use serde_json::json;

use crate::{Config, Context, SyncError};

struct Ipam {
    client: kube::Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    /// One for each of the cluster's ranges, in their order.
    ranges: Mutex<Vec<Ranges>>,
}

pub(crate) fn start(context: Context) {
    let nodes = context.informers.of::<Node>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let ipam = Arc::new(Ipam {
        client: context.client.clone(),
        recorder: context.recorder.clone(),
        nodes: nodes.clone(),
        ranges: Mutex::new(all_ranges(&context.config)),
    });
    let (changed, seen) = (queue.clone(), Arc::clone(&ipam));
    nodes.on_change(move |change| {
        let node = change.object();
        let key = Key::of(node.as_ref());
        let given = pod_cidrs(node);
        let mut ranges = seen.ranges();
        match change {
            Change::Deleted(_) => {
                for range in ranges.iter_mut() {
                    range.release(&key.name);
                }
                drop(ranges);
                for other in seen.nodes.list() {
                    if pod_cidrs(&other).is_empty() {
                        changed.add(Key::of(other.as_ref()));
                    }
                }
            }
            _ if given.is_empty() => changed.add(key),
            _ => occupy(&mut ranges, &key.name, &given),
        }
    });
    let ready = async move { nodes.synced().await };
    context.run(&queue, ready, move |key| {
        let ipam = Arc::clone(&ipam);
        async move { ipam.sync(&key).await }
    });
}

/// The ranges a node has. Those before dual stack have one.
fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let all = spec.pod_cidrs.iter().flatten();
    let first = spec.pod_cidr.iter().filter(|_| spec.pod_cidrs.is_none());
    all.chain(first).filter_map(|cidr| cidr.parse().ok()).collect()
}

fn all_ranges(config: &Config) -> Vec<Ranges> {
    let mask = |cidr: &IpNet| match cidr {
        IpNet::V4(_) => config.node_mask,
        IpNet::V6(_) => config.node_mask_v6,
    };
    config
        .cluster_cidrs
        .iter()
        .map(|cidr| Ranges::new(*cidr, mask(cidr)))
        .collect()
}

/// Notes what a node says it has; each is looked for where it is from.
fn occupy(ranges: &mut [Ranges], node: &str, given: &[IpNet]) {
    for range in ranges.iter_mut() {
        let family = |cidr: &&IpNet| cidr.max_prefix_len() == range.cluster.max_prefix_len();
        if let Some(cidr) = given.iter().find(family) {
            range.occupy(node, *cidr);
        }
    }
}

/// A range out of each, or nothing at all.
fn allocate(ranges: &mut [Ranges], node: &str) -> Option<Vec<IpNet>> {
    let given: Option<Vec<IpNet>> = ranges.iter_mut().map(|range| range.allocate(node)).collect();
    if given.is_none() {
        for range in ranges {
            range.release(node);
        }
    }
    given
}

impl Ipam {
    fn ranges(&self) -> MutexGuard<'_, Vec<Ranges>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(node) = self.nodes.get("", &key.name) else {
            return Ok(());
        };
        if !pod_cidrs(&node).is_empty() {
            return Ok(());
        }
        let given = allocate(&mut self.ranges(), &key.name);
        let Some(cidrs) = given else {
            self.recorder.event(
                node.as_ref(),
                EventType::Normal,
                "CIDRNotAvailable",
                format!("Node {} status is now: CIDRNotAvailable", key.name),
            );
            return Err(SyncError::other("no range of Pod addresses is free"));
        };
        let cidrs: Vec<String> = cidrs.iter().map(IpNet::to_string).collect();
        let patch = json!({
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        let written = api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match or_absent(written) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                for range in self.ranges().iter_mut() {
                    range.release(&key.name);
                }
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
    use sampan_client::testing::eventually;

    use super::*;
    use crate::testing::Cluster;

    #[test]
    fn both_families_or_nothing() {
        let config = Config {
            cluster_cidrs: vec!["10.0.0.0/23".parse().unwrap(), "fd00::/63".parse().unwrap()],
            ..Config::default()
        };
        let mut ranges = all_ranges(&config);
        let mut given = |node: &str| {
            allocate(&mut ranges, node).map(|given| given.iter().map(IpNet::to_string).collect::<Vec<_>>())
        };
        assert_eq!(given("a").unwrap(), ["10.0.0.0/24", "fd00::/64"]);
        assert_eq!(given("b").unwrap(), ["10.0.1.0/24", "fd00:0:0:1::/64"]);
        assert_eq!(given("c"), None);
        // One family is free again, the other is not: nothing is kept of it.
        let mut node = Node::default();
        node.spec.get_or_insert_default().pod_cidrs = Some(vec!["fd00::/64".into()]);
        for range in &mut ranges {
            range.release("a");
        }
        occupy(&mut ranges, "six", &pod_cidrs(&node));
        assert_eq!(allocate(&mut ranges, "c"), None);
        ranges[1].release("six");
        let given = allocate(&mut ranges, "d").unwrap();
        assert_eq!(given[0].to_string(), "10.0.0.0/24");
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_get_theirs_and_wait_for_others_to_go() {
        let cluster = Cluster::with(Default::default(), &["node-ipam-controller"], |config| {
            config.cluster_cidrs = vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
        });
        let api = &cluster.api;
        let node = |name: &str| {
            let mut node = Node::default();
            node.metadata.name = Some(name.into());
            node
        };
        let has = |name: &str| api.get::<Node>("", name).unwrap().spec.and_then(|spec| spec.pod_cidrs);
        api.create(&node("first"));
        eventually("the first", || async { has("first") }).await;
        let spec = api.get::<Node>("", "first").unwrap().spec.unwrap();
        assert_eq!(spec.pod_cidr.as_deref(), Some("10.0.0.0/24"));
        assert_eq!(spec.pod_cidrs.unwrap(), ["10.0.0.0/24", "fd00::/64"]);
        api.create(&node("second"));
        tokio::time::sleep(std::time::Duration::from_secs(300)).await;
        assert_eq!(has("second"), None);
        api.remove::<Node>("", "first");
        eventually("what was the first's", || async { has("second") }).await;
    }

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
