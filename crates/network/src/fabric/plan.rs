//! The way to other nodes' Pods as it ought to be: a pure function of the nodes and of this machine's links.
//!
//! A node on our segment gets a route by its address. Any other is reached through the VXLAN device: a route by the
//! gateway of its Pods, which is its address on the virtual network, a neighbour (that gateway's hardware address) and
//! a forwarding entry (behind which machine that hardware address is). All three follow from the node's Pod range and
//! address, so nodes need to tell each other nothing, and nothing is learned from packets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;

use crate::kernel::link::{Link, Mac};
use crate::kernel::vxlan::Vxlan;

/// The device's name.
pub const DEVICE: &str = "sampan-vxlan";
/// What a frame in a datagram costs: Ethernet (14), VXLAN (8), UDP (8) and IPv4 (20) headers.
const OVERHEAD: u32 = 50;
/// The least an IPv4 link carries.
const LEAST_MTU: u32 = 68;
/// Assumed where no link of this machine has the node's address.
const USUAL_MTU: u32 = 1500;

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub pods: Option<Ipv4Net>,
    pub address: Option<Ipv4Addr>,
}

impl Peer {
    pub fn of(node: &Node) -> Self {
        let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
        let several = spec.and_then(|spec| spec.pod_cidrs.as_ref()).into_iter().flatten();
        let one = spec.and_then(|spec| spec.pod_cidr.as_ref());
        let addresses = status
            .and_then(|status| status.addresses.as_ref())
            .into_iter()
            .flatten();
        Peer {
            name: node.metadata.name.clone().unwrap_or_default(),
            pods: several
                .chain(one)
                .find_map(|range| range.parse::<Ipv4Net>().ok())
                .map(|range| range.trunc()),
            address: addresses
                .filter(|address| address.type_ == "InternalIP")
                .find_map(|address| address.address.parse().ok()),
        }
    }
}

/// The node the plan is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub name: String,
    pub pods: Ipv4Net,
    /// Pods of all nodes.
    pub cluster: Option<Ipv4Net>,
    /// The node's bridge: not a way to other nodes.
    pub bridge: String,
    pub vni: u32,
    pub port: u16,
}

/// The gateway of a Pod range: its first address.
pub fn gateway(pods: Ipv4Net) -> Ipv4Addr {
    pods.hosts().next().unwrap_or_else(|| pods.network())
}

/// The hardware address of a node's VXLAN device: locally administered, and another than its bridge has.
pub fn mac_of(gateway: Ipv4Addr) -> Mac {
    let [a, b, c, d] = gateway.octets();
    [0x0e, 0x58, a, b, c, d]
}

/// A route to a node's Pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub link: String,
    pub by: Ipv4Addr,
    /// The source of this machine's own packets; `None`: the link's address.
    pub source: Option<Ipv4Addr>,
    /// How long packets may be, where it is less than the link says.
    pub mtu: Option<u32>,
}

/// The VXLAN device and what it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    pub device: Vxlan,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub mtu: u32,
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
    pub forwarding: BTreeMap<Mac, Ipv4Addr>,
}

/// Everything that ought to be in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub routes: BTreeMap<Ipv4Net, Way>,
    /// `None` while every node is on our segment.
    pub overlay: Option<Overlay>,
    /// The machine's link other nodes are reached by, if one has the node's address.
    pub underlay: Option<String>,
    /// Nodes whose Pods stay out of reach, and why.
    pub refused: BTreeMap<String, Refusal>,
}

/// Why a node gets no route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    OutsideCluster { pods: Ipv4Net, cluster: Ipv4Net },
    SmallRange(Ipv4Net),
    OverlapsOwn { pods: Ipv4Net, own: Ipv4Net },
    OverlapsOther { pods: Ipv4Net, node: String },
    OwnAddress(Ipv4Addr),
    PodAddress(Ipv4Addr),
    NoMachine(Ipv4Addr),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::OutsideCluster { pods, cluster } => {
                write!(f, "its Pod range {pods} is not part of the cluster's, {cluster}")
            }
            Refusal::SmallRange(pods) => write!(f, "its Pod range {pods} has no room for Pods"),
            Refusal::OverlapsOwn { pods, own } => write!(f, "its Pod range {pods} overlaps this node's, {own}"),
            Refusal::OverlapsOther { pods, node } => write!(f, "its Pod range {pods} overlaps that of node {node}"),
            Refusal::OwnAddress(address) => write!(f, "its address {address} is one of this machine's"),
            Refusal::PodAddress(address) => write!(f, "its address {address} is one for Pods"),
            Refusal::NoMachine(address) => write!(f, "its address {address} is not that of a machine"),
        }
    }
}

/// What ought to be. Nodes that have no range or no address yet are left out, and so is this node itself.
pub fn plan(own: &Own, nodes: &[Peer], links: &[Link]) -> Plan {
    let is_others = |link: &&Link| link.name != own.bridge && link.name != DEVICE;
    let links: Vec<&Link> = links.iter().filter(is_others).collect();
    let own_address = nodes
        .iter()
        .find(|node| node.name == own.name)
        .and_then(|node| node.address);
    let has = |link: &Link, address| link.addresses.iter().any(|own| own.addr() == address);
    let underlay = own_address.and_then(|address| links.iter().find(|link| link.up && has(link, address)));
    // Both ends must come to the same answer, so only the segment of the node's own address counts: what else this
    // machine is connected to the other does not know.
    let on_segment = |address: Ipv4Addr| {
        underlay.is_some_and(|link| link.broadcast && link.addresses.iter().any(|net| net.contains(&address)))
    };
    let gateway_here = gateway(own.pods);
    let mtu = underlay
        .map_or(USUAL_MTU, |link| link.mtu)
        .saturating_sub(OVERHEAD)
        .max(LEAST_MTU);

    let mut plan = Plan {
        underlay: underlay.map(|link| link.name.clone()),
        ..Plan::default()
    };
    let mut overlay = Overlay {
        device: Vxlan {
            vni: own.vni,
            port: own.port,
            local: own_address.filter(|_| underlay.is_some()),
            learning: false,
        },
        mac: mac_of(gateway_here),
        address: gateway_here,
        mtu,
        neighbours: BTreeMap::new(),
        forwarding: BTreeMap::new(),
    };
    let mut ranges = Ranges::default();
    let mut nodes: Vec<_> = nodes.iter().filter(|node| node.name != own.name).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    for node in nodes {
        let (Some(pods), Some(address)) = (node.pods, node.address) else {
            continue;
        };
        let here = links.iter().any(|link| has(link, address));
        if let Some(refusal) = refusal(own, pods, address, here).or_else(|| ranges.claim(pods, &node.name)) {
            plan.refused.insert(node.name.clone(), refusal);
            continue;
        }
        let way = match underlay.filter(|_| on_segment(address)) {
            Some(link) => Way {
                link: link.name.clone(),
                by: address,
                source: None,
                mtu: None,
            },
            None => {
                let gateway = gateway(pods);
                overlay.neighbours.insert(gateway, mac_of(gateway));
                overlay.forwarding.insert(mac_of(gateway), address);
                Way {
                    link: DEVICE.to_owned(),
                    by: gateway,
                    source: Some(gateway_here),
                    mtu: Some(mtu),
                }
            }
        };
        plan.routes.insert(pods, way);
    }
    plan.overlay = (!overlay.neighbours.is_empty()).then_some(overlay);
    plan
}

/// What is wrong with a node by itself. `here`: this machine has its address.
fn refusal(own: &Own, pods: Ipv4Net, address: Ipv4Addr, here: bool) -> Option<Refusal> {
    let contains = |net: Ipv4Net| net.contains(&address);
    let outside = own.cluster.filter(|cluster| !cluster.contains(&pods));
    if let Some(cluster) = outside {
        return Some(Refusal::OutsideCluster { pods, cluster });
    }
    if pods.prefix_len() > 30 {
        return Some(Refusal::SmallRange(pods));
    }
    if own.pods.contains(&pods) || pods.contains(&own.pods) {
        return Some(Refusal::OverlapsOwn { pods, own: own.pods });
    }
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast() {
        return Some(Refusal::NoMachine(address));
    }
    if here {
        return Some(Refusal::OwnAddress(address));
    }
    // A way to Pods by way of a Pod would go in circles.
    (contains(own.pods) || contains(pods) || own.cluster.is_some_and(contains)).then_some(Refusal::PodAddress(address))
}

/// Ranges given so far, by their first address; none overlaps another.
#[derive(Default)]
struct Ranges(BTreeMap<Ipv4Addr, (Ipv4Net, String)>);

impl Ranges {
    /// The first who asks has it.
    fn claim(&mut self, pods: Ipv4Net, node: &str) -> Option<Refusal> {
        let around = self.0.range(..=pods.network()).next_back();
        let around = around.filter(|(_, (range, _))| range.contains(&pods));
        let within = || self.0.range(pods.network()..=pods.broadcast()).next();
        if let Some((_, (_, other))) = around.or_else(within) {
            let node = other.clone();
            return Some(Refusal::OverlapsOther { pods, node });
        }
        self.0.insert(pods.network(), (pods, node.to_owned()));
        None
    }
}

impl Plan {
    /// Machines that datagrams of the virtual network come from.
    pub fn machines(&self) -> BTreeSet<Ipv4Addr> {
        let overlay = self.overlay.iter();
        overlay
            .flat_map(|overlay| overlay.forwarding.values().copied())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn own() -> Own {
        Own {
            name: "a".into(),
            pods: "10.244.0.0/24".parse().unwrap(),
            cluster: Some("10.244.0.0/16".parse().unwrap()),
            bridge: "sampan0".into(),
            vni: 7,
            port: 4789,
        }
    }
    fn peer(name: &str, pods: &str, address: &str) -> Peer {
        Peer {
            name: name.into(),
            pods: pods.parse().ok(),
            address: address.parse().ok(),
        }
    }
    fn link(name: &str, mtu: u32, addresses: &[&str]) -> Link {
        Link {
            index: 2,
            name: name.into(),
            mtu,
            up: true,
            broadcast: true,
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
            ..Link::default()
        }
    }
    /// Each route as `range by gateway link mtu`.
    fn shown(plan: &Plan) -> Vec<String> {
        let way = |(range, way): (&Ipv4Net, &Way)| {
            let mtu = way.mtu.map_or(String::new(), |mtu| format!(" {mtu}"));
            format!("{range} by {} {}{mtu}", way.by, way.link)
        };
        plan.routes.iter().map(way).collect()
    }

    #[test]
    fn a_node_alone_needs_nothing() {
        let alone = [peer("a", "10.244.0.0/24", "192.0.2.1")];
        let plan = plan(&own(), &alone, &[link("eth0", 1500, &["192.0.2.1/24"])]);
        assert_eq!((shown(&plan), &plan.overlay), (vec![], &None));
    }

    #[test]
    fn the_way_depends_on_the_segment() {
        let a = || peer("a", "10.244.0.0/24", "192.0.2.1");
        let b = |address| peer("b", "10.244.1.0/24", address);
        let direct = |link: &str| vec![format!("10.244.1.0/24 by 192.0.2.2 {link}")];
        let overlay = |mtu: u32| vec![format!("10.244.1.0/24 by 10.244.1.1 {DEVICE} {mtu}")];
        let eth0 = || link("eth0", 1500, &["192.0.2.1/24"]);
        let down = Link { up: false, ..eth0() };
        let tunnel = Link {
            broadcast: false,
            ..eth0()
        };
        let cases: [(&str, Vec<Link>, &str, Vec<String>); 10] = [
            ("one segment", vec![eth0()], "192.0.2.2", direct("eth0")),
            ("another network", vec![eth0()], "198.51.100.2", overlay(1450)),
            (
                "a second address of the link",
                vec![link("eth0", 1500, &["10.9.9.9/32", "192.0.2.1/24"])],
                "192.0.2.2",
                direct("eth0"),
            ),
            (
                "a machine with a /32",
                vec![link("eth0", 1460, &["192.0.2.1/32"])],
                "192.0.2.2",
                overlay(1410),
            ),
            (
                "large frames",
                vec![link("eth0", 9000, &["192.0.2.1/24"])],
                "198.51.100.2",
                overlay(8950),
            ),
            (
                "another link's segment",
                vec![eth0(), link("eth1", 1500, &["198.51.100.1/24"])],
                "198.51.100.2",
                overlay(1450),
            ),
            ("the link is down", vec![down], "192.0.2.2", overlay(1450)),
            ("a tunnel has no segment", vec![tunnel], "192.0.2.2", overlay(1450)),
            (
                "nobody has the node's address",
                vec![link("eth0", 9000, &["203.0.113.1/24"])],
                "192.0.2.2",
                overlay(1450),
            ),
            (
                "the bridge is no segment",
                vec![link("sampan0", 1500, &["192.0.2.1/24"])],
                "192.0.2.2",
                overlay(1450),
            ),
        ];
        for (what, links, address, wanted) in cases {
            assert_eq!(shown(&plan(&own(), &[b(address), a()], &links)), wanted, "{what}");
        }
    }

    #[test]
    fn the_overlay_follows_from_ranges_and_addresses() {
        let nodes = [
            peer("a", "10.244.0.0/24", "192.0.2.1"),
            peer("b", "10.244.1.0/24", "198.51.100.2"),
            peer("c", "10.244.2.0/24", "192.0.2.3"),
        ];
        let planned = plan(&own(), &nodes, &[link("eth0", 1500, &["192.0.2.1/24"])]);
        let overlay = planned.overlay.clone().unwrap();
        let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let mac = [0x0e, 0x58, 10, 244, 1, 1];
        assert_eq!(overlay.neighbours, [(ip("10.244.1.1"), mac)].into());
        assert_eq!(overlay.forwarding, [(mac, ip("198.51.100.2"))].into());
        assert_eq!(
            (overlay.mac, overlay.address),
            (mac_of(ip("10.244.0.1")), ip("10.244.0.1"))
        );
        assert_eq!(overlay.device.local, Some(ip("192.0.2.1")));
        assert_eq!(
            planned.routes[&"10.244.1.0/24".parse().unwrap()].source,
            Some(ip("10.244.0.1"))
        );
        assert_eq!(planned.machines(), [ip("198.51.100.2")].into());
        // The other end comes to the same: each has the neighbour the other's device is.
        let other = Own {
            name: "b".into(),
            pods: "10.244.1.0/24".parse().unwrap(),
            ..own()
        };
        let other = plan(&other, &nodes, &[link("eth0", 1500, &["198.51.100.2/24"])])
            .overlay
            .unwrap();
        assert_eq!(overlay.neighbours[&other.address], other.mac);
        assert_eq!(other.neighbours[&overlay.address], overlay.mac);
    }

    #[test]
    fn nodes_that_cannot_be_are_refused_and_say_why() {
        let cases = [
            (
                "10.9.0.0/24",
                "192.0.2.2",
                "its Pod range 10.9.0.0/24 is not part of the cluster's, 10.244.0.0/16",
            ),
            (
                "10.244.1.0/31",
                "192.0.2.2",
                "its Pod range 10.244.1.0/31 has no room for Pods",
            ),
            (
                "10.244.0.0/16",
                "192.0.2.2",
                "its Pod range 10.244.0.0/16 overlaps this node's, 10.244.0.0/24",
            ),
            (
                "10.244.0.128/25",
                "192.0.2.2",
                "its Pod range 10.244.0.128/25 overlaps this node's, 10.244.0.0/24",
            ),
            (
                "10.244.1.0/24",
                "192.0.2.1",
                "its address 192.0.2.1 is one of this machine's",
            ),
            (
                "10.244.1.0/24",
                "127.0.0.1",
                "its address 127.0.0.1 is not that of a machine",
            ),
            ("10.244.1.0/24", "10.244.9.1", "its address 10.244.9.1 is one for Pods"),
        ];
        for (pods, address, wanted) in cases {
            let nodes = [peer("a", "10.244.0.0/24", "192.0.2.1"), peer("b", pods, address)];
            let plan = plan(&own(), &nodes, &[link("eth0", 1500, &["192.0.2.1/24"])]);
            assert_eq!(plan.refused["b"].to_string(), wanted);
            assert_eq!((plan.routes.len(), plan.overlay.is_none()), (0, true), "{wanted}");
        }
        let nodes = [
            peer("d", "10.244.2.0/25", "192.0.2.4"),
            peer("c", "10.244.2.0/24", "192.0.2.3"),
            peer("b", "10.244.2.128/25", "192.0.2.2"),
            peer("e", "", "192.0.2.5"),
            peer("f", "10.244.3.0/24", ""),
        ];
        let plan = plan(&own(), &nodes, &[]);
        let refused: Vec<_> = plan
            .refused
            .iter()
            .map(|(node, why)| format!("{node}: {why}"))
            .collect();
        assert_eq!(refused, ["c: its Pod range 10.244.2.0/24 overlaps that of node b"]);
        assert_eq!(plan.routes.len(), 2);
    }

    #[test]
    fn a_node_is_read_from_its_object() {
        let read = |object| Peer::of(&serde_json::from_value::<Node>(object).unwrap());
        let addresses = json!([
            {"type": "Hostname", "address": "b"}, {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "InternalIP", "address": "fd00::1"}, {"type": "InternalIP", "address": "192.0.2.2"},
        ]);
        let node = json!({
            "metadata": {"name": "b"}, "spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["fd00::/64", "10.244.1.7/24"]},
            "status": {"addresses": addresses},
        });
        assert_eq!(read(node), peer("b", "10.244.1.0/24", "192.0.2.2"));
        let bare = json!({"metadata": {"name": "b"}, "spec": {"podCIDR": "10.244.1.0/24"}});
        assert_eq!(read(bare), peer("b", "10.244.1.0/24", ""));
        assert_eq!(read(json!({"metadata": {"name": "b"}})), peer("b", "", ""));
    }
}
