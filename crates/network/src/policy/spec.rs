//! NetworkPolicies and Pods as enforcement reads them. Pure.
//!
//! What the API would refuse never widens what is allowed: an unknown protocol, an unreadable block or a peer that says
//! nothing matches nobody.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};

use super::selector::{Labels, Selector};
use crate::pods::Protocol;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Ingress,
    Egress,
}

pub const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Addresses from the first to the second, both included, of one family.
pub type Range = (IpAddr, IpAddr);

/// Which Pods of which namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodsOf {
    pub namespaces: Namespaces,
    pub pods: Selector,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Namespaces {
    Named(String),
    Labelled(Selector),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Pods(PodsOf),
    /// A block without its exceptions.
    Block(Vec<Range>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    Numbers(Protocol, u16, u16),
    Named(Protocol, String),
}

/// Traffic with one of the peers (`None`: anybody) to one of the ports (`None`: anything) is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub peers: Option<Vec<Peer>>,
    pub ports: Option<Vec<Port>>,
}

/// A policy: the Pods it isolates, and what they may do nevertheless, for each direction it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub pods: Selector,
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

impl Policy {
    pub fn of(policy: &NetworkPolicy) -> Self {
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        let spec = policy.spec.clone().unwrap_or_default();
        let rule = |peers: &Option<Vec<NetworkPolicyPeer>>, ports: &Option<Vec<NetworkPolicyPort>>| {
            let peers = peers.as_ref().filter(|peers| !peers.is_empty());
            let ports = ports.as_ref().filter(|ports| !ports.is_empty());
            Rule {
                peers: peers.map(|peers| peers.iter().filter_map(|entry| peer(namespace, entry)).collect()),
                ports: ports.map(|ports| ports.iter().filter_map(port).collect()),
            }
        };
        // The API server fills `policyTypes` in; objects of before have none.
        let about = |direction: &str, otherwise: bool| match spec.policy_types.as_deref() {
            None | Some([]) => otherwise,
            Some(types) => types.iter().any(|kind| kind == direction),
        };
        let (ingress, egress) = (spec.ingress.as_deref(), spec.egress.as_deref());
        let ingress_rules = || {
            ingress
                .unwrap_or_default()
                .iter()
                .map(|entry| rule(&entry.from, &entry.ports))
        };
        let egress_rules = || {
            egress
                .unwrap_or_default()
                .iter()
                .map(|entry| rule(&entry.to, &entry.ports))
        };
        Policy {
            pods: Selector::of(&spec.pod_selector.clone().unwrap_or_default()),
            ingress: about("Ingress", true).then(|| ingress_rules().collect()),
            egress: about("Egress", egress.is_some_and(|rules| !rules.is_empty())).then(|| egress_rules().collect()),
        }
    }

    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

fn peer(namespace: &str, peer: &NetworkPolicyPeer) -> Option<Peer> {
    if let Some(block) = &peer.ip_block {
        return Some(Peer::Block(ranges(block)));
    }
    let namespaces = match (&peer.namespace_selector, &peer.pod_selector) {
        (Some(selector), _) => Namespaces::Labelled(Selector::of(selector)),
        (None, Some(_)) => Namespaces::Named(namespace.to_owned()),
        (None, None) => return None,
    };
    let pods = peer.pod_selector.as_ref().map(Selector::of).unwrap_or_default();
    Some(Peer::Pods(PodsOf { namespaces, pods }))
}

fn port(port: &NetworkPolicyPort) -> Option<Port> {
    let protocol = Protocol::parse(port.protocol.as_deref())?;
    match &port.port {
        None => Some(Port::Numbers(protocol, 0, u16::MAX)),
        Some(IntOrString::Int(first)) => {
            let last = port.end_port.unwrap_or(*first);
            Some(Port::Numbers(
                protocol,
                u16::try_from(*first).ok()?,
                u16::try_from(last).ok()?,
            ))
        }
        Some(IntOrString::String(name)) => Some(Port::Named(protocol, name.clone())),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn like(family: IpAddr, number: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// The address behind, if there is one.
pub fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(IpAddr::V4(Ipv4Addr::from(u32::from(address).checked_add(1)?))),
        IpAddr::V6(address) => Some(IpAddr::V6(Ipv6Addr::from(u128::from(address).checked_add(1)?))),
    }
}

/// A block is written with or without the bits behind its prefix; an address alone is none.
fn network(text: &str) -> Option<IpNet> {
    text.trim().parse::<IpNet>().ok().map(|network| network.trunc())
}

/// What is left of a block without its exceptions.
fn ranges(block: &IPBlock) -> Vec<Range> {
    let Some(whole) = network(&block.cidr) else {
        return Vec::new();
    };
    let family = whole.network();
    let mut holes = Vec::new();
    for text in block.except.iter().flatten() {
        match network(text) {
            Some(hole) if hole.network().is_ipv4() == family.is_ipv4() => {
                holes.push((number(hole.network()), number(hole.broadcast())));
            }
            Some(_) => {}
            // An exception that cannot be read could be anything.
            None => return Vec::new(),
        }
    }
    holes.sort_unstable();
    let (mut from, last) = (Some(number(whole.network())), number(whole.broadcast()));
    let mut left = Vec::new();
    for (first, behind) in holes {
        let Some(start) = from.filter(|start| *start <= last) else {
            break;
        };
        if first > start {
            left.push((start, (first - 1).min(last)));
        }
        from = if behind >= start {
            behind.checked_add(1)
        } else {
            Some(start)
        };
    }
    left.extend(from.filter(|start| *start <= last).map(|start| (start, last)));
    left.into_iter()
        .map(|(a, b)| (like(family, a), like(family, b)))
        .collect()
}

/// The same addresses in as few ranges as possible, in order.
pub fn merged(mut all: Vec<Range>) -> Vec<Range> {
    all.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match merged.last_mut() {
            Some((_, end)) if end.is_ipv4() == first.is_ipv4() && next(*end).is_none_or(|behind| first <= behind) => {
                *end = last.max(*end);
            }
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// The same ports in as few ranges as possible, in order.
pub fn merged_ports(mut all: Vec<(Protocol, u16, u16)>) -> Vec<(Protocol, u16, u16)> {
    all.retain(|(_, first, last)| first <= last);
    all.sort_unstable();
    let mut merged: Vec<(Protocol, u16, u16)> = Vec::with_capacity(all.len());
    for (protocol, first, last) in all {
        match merged.last_mut() {
            Some((same, _, end)) if *same == protocol && u32::from(first) <= u32::from(*end) + 1 => {
                *end = last.max(*end)
            }
            _ => merged.push((protocol, first, last)),
        }
    }
    merged
}

/// A named port of a Pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPort {
    pub protocol: Protocol,
    pub name: String,
    pub number: u16,
}

/// What policies want to know of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodView {
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    #[serde(skip)]
    pub addresses: BTreeSet<IpAddr>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ports: BTreeSet<NamedPort>,
}

impl PodView {
    /// `None`: the Pod has no part in the Pod network, or none any more (its address may be another's by now).
    pub fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if spec.host_network == Some(true) || matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let status = pod.status.as_ref();
        let listed = status.into_iter().flat_map(|status| status.pod_ips.iter().flatten());
        let addresses = listed
            .map(|ip| &ip.ip)
            .chain(status.and_then(|status| status.pod_ip.as_ref()))
            .filter_map(|ip| ip.parse().ok());
        Some(PodView {
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            addresses: addresses.collect(),
            ports: named_ports(pod),
        })
    }
}

/// The ports that the Pod's containers and sidecars have names for.
pub fn named_ports(pod: &Pod) -> BTreeSet<NamedPort> {
    let Some(spec) = &pod.spec else {
        return BTreeSet::new();
    };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(NamedPort {
                protocol: Protocol::parse(port.protocol.as_deref())?,
                name: port.name.clone().filter(|name| !name.is_empty())?,
                number: u16::try_from(port.container_port).ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(spec: Value) -> Policy {
        let policy = json!({"metadata": {"namespace": "n", "name": "p"}, "spec": spec});
        Policy::of(&serde_json::from_value(policy).unwrap())
    }

    #[test]
    fn directions_are_defaulted_as_upstream_defaults_them() {
        let selector = json!({});
        for (spec, ingress, egress) in [
            (json!({"podSelector": selector}), true, false),
            (json!({"podSelector": selector, "egress": [{}]}), true, true),
            (json!({"podSelector": selector, "egress": []}), true, false),
            (json!({"podSelector": selector, "policyTypes": ["Egress"]}), false, true),
            (
                json!({"podSelector": selector, "policyTypes": ["Ingress"], "egress": [{}]}),
                true,
                false,
            ),
        ] {
            let policy = policy(spec.clone());
            assert_eq!(
                (policy.ingress.is_some(), policy.egress.is_some()),
                (ingress, egress),
                "{spec}"
            );
        }
    }

    #[test]
    fn an_empty_rule_allows_everything_and_an_unreadable_one_nothing() {
        let rules = policy(
            json!({"ingress": [{}, {"from": [], "ports": []}, {"ports": [{"protocol": "ICMP"}]}, {"from": [{}]}]}),
        );
        let any = Rule {
            peers: None,
            ports: None,
        };
        let rules = rules.ingress.unwrap();
        assert_eq!(rules[..2], [any.clone(), any]);
        assert_eq!(
            rules[2],
            Rule {
                peers: None,
                ports: Some(vec![])
            }
        );
        assert_eq!(
            rules[3],
            Rule {
                peers: Some(vec![]),
                ports: None
            }
        );
    }

    #[test]
    fn ports_are_numbers_ranges_and_names() {
        let rules = policy(json!({"ingress": [{"ports": [
            {"port": 80}, {"protocol": "UDP"}, {"protocol": "SCTP", "port": 100, "endPort": 200}, {"port": "http"}]}]}));
        let expected = vec![
            Port::Numbers(Protocol::Tcp, 80, 80),
            Port::Numbers(Protocol::Udp, 0, 65535),
            Port::Numbers(Protocol::Sctp, 100, 200),
            Port::Named(Protocol::Tcp, "http".into()),
        ];
        assert_eq!(rules.ingress.unwrap()[0].ports, Some(expected));
    }

    #[test]
    fn blocks_lose_their_exceptions() {
        type Case = (
            &'static str,
            &'static [&'static str],
            &'static [(&'static str, &'static str)],
        );
        let cases: [Case; 10] = [
            ("10.0.0.0/8", &[], &[("10.0.0.0", "10.255.255.255")]),
            ("0.0.0.0/0", &[], &[("0.0.0.0", "255.255.255.255")]),
            ("10.0.0.5/24", &[], &[("10.0.0.0", "10.0.0.255")]),
            ("10.0.0.0/24", &["10.0.0.0/25"], &[("10.0.0.128", "10.0.0.255")]),
            (
                "10.0.0.0/24",
                &["10.0.0.128/25", "10.0.0.64/26"],
                &[("10.0.0.0", "10.0.0.63")],
            ),
            (
                "10.0.0.0/24",
                &["10.0.0.7/32", "10.0.0.7/32"],
                &[("10.0.0.0", "10.0.0.6"), ("10.0.0.8", "10.0.0.255")],
            ),
            (
                "0.0.0.0/0",
                &["255.255.255.255/32", "0.0.0.0/32"],
                &[("0.0.0.1", "255.255.255.254")],
            ),
            ("10.0.0.0/24", &["10.0.0.0/24"], &[]),
            ("10.0.0.0/24", &["what"], &[]),
            ("nonsense", &[], &[]),
        ];
        for (cidr, except, expected) in cases {
            let block = IPBlock {
                cidr: cidr.into(),
                except: Some(except.iter().map(|text| (*text).to_owned()).collect()),
            };
            let expected: Vec<Range> = expected
                .iter()
                .map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap()))
                .collect();
            assert_eq!(ranges(&block), expected, "{cidr} {except:?}");
        }
        let six = IPBlock {
            cidr: "fd00::/64".into(),
            except: Some(vec!["fd00::/65".into(), "10.0.0.0/8".into()]),
        };
        assert_eq!(ranges(&six).len(), 1);
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let all = vec![
            (ip("10.0.0.4"), ip("10.0.0.9")),
            (ip("10.0.0.0"), ip("10.0.0.3")),
            (ip("10.0.1.0"), ip("10.0.1.0")),
            (ip("255.0.0.0"), ip("255.255.255.255")),
            (ip("255.1.0.0"), ip("255.1.0.0")),
            (ip("fd00::"), ip("fd00::1")),
        ];
        let expected = vec![
            (ip("10.0.0.0"), ip("10.0.0.9")),
            (ip("10.0.1.0"), ip("10.0.1.0")),
            (ip("255.0.0.0"), ip("255.255.255.255")),
            (ip("fd00::"), ip("fd00::1")),
        ];
        assert_eq!(merged(all), expected);
        let tcp = Protocol::Tcp;
        assert_eq!(
            merged_ports(vec![
                (tcp, 80, 90),
                (tcp, 91, 95),
                (Protocol::Udp, 96, 97),
                (tcp, 9, 8),
                (tcp, 65535, 65535)
            ]),
            vec![(tcp, 80, 95), (tcp, 65535, 65535), (Protocol::Udp, 96, 97)]
        );
    }

    #[test]
    fn a_pod_that_ended_or_has_the_nodes_network_is_no_peer() {
        let pod = |spec: Value, phase: &str| {
            let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": spec,
                "status": {"phase": phase, "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}});
            PodView::of(&serde_json::from_value(pod).unwrap())
        };
        let containers =
            json!([{"name": "c", "ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}]}]);
        let view = pod(json!({"containers": containers}), "Running").unwrap();
        assert_eq!((view.addresses.len(), view.ports.len()), (2, 1));
        assert_eq!(pod(json!({"containers": containers}), "Failed"), None);
        assert_eq!(
            pod(json!({"containers": containers, "hostNetwork": true}), "Running"),
            None
        );
    }
}
