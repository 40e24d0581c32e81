//! What a Service's rules ought to be: a pure function of the Service, its EndpointSlices and the node.
//!
//! Every port of a Service has up to three chains: `svc` (what the cluster itself uses), `local` (endpoints of this
//! node, where a policy says so) and `ext` (the way in from outside). Packets find them through two maps, by Service
//! address and by node port; ports without endpoints are in the same maps of the filter, and refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::pods::Protocol;

/// One thing a chain does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The source is to be this node's.
    Mark,
    /// The same, for packets that do not come from a Pod. This machine's own too: their source was chosen for the way
    /// to the Service's address, and the way to the endpoint may be another.
    MarkOutside,
    /// Packets from this network go on in the chain.
    FromGoto(Ipv4Net, String),
    /// Packets from this machine get its address as source and go on in the chain.
    FromHostGoto(String),
    Goto(String),
    Drop,
    /// Clients remembered in the set go on in the chain.
    Stick {
        set: String,
        chain: String,
    },
    /// Goes on in one of the chains, each as likely.
    Spread(Vec<String>),
    /// Goes to one of the endpoints, each as likely.
    Balance(Vec<SocketAddrV4>),
    /// Remembers the client in the set and goes to the endpoint.
    Remember {
        set: String,
        endpoint: SocketAddrV4,
    },
}

/// Where an entry of a map leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Chain(String),
    /// No endpoints: told so at once.
    Reject,
    /// No endpoints here, but elsewhere: no answer, so that load balancers look elsewhere.
    Drop,
}

pub type Address = (Ipv4Addr, Protocol, u16);
pub type NodePort = (Protocol, u16);

/// Everything one Service asks of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRules {
    pub chains: BTreeMap<String, Vec<Step>>,
    /// Sets of remembered clients, with their time to live in seconds.
    pub sticky: BTreeMap<String, u64>,
    pub addresses: BTreeMap<Address, Target>,
    pub node_ports: BTreeMap<NodePort, Target>,
    /// Addresses on which every other port is refused.
    pub cluster_ips: BTreeSet<Ipv4Addr>,
    /// Where UDP packets may be on their way to, by port: for forgetting flows to others.
    pub udp: BTreeMap<UdpPort, BTreeSet<Ipv4Addr>>,
}

/// Where UDP clients send: a Service's address, or `None` for a node port.
pub type UdpPort = (Option<Ipv4Addr>, u16);

/// The node the rules are for.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    /// The node's `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Addresses of Pods, on any node.
    pub pods: Ipv4Net,
}

/// The rules of one Service. `slices` are those that name it.
pub fn desired<'s>(
    service: &Service,
    slices: impl IntoIterator<Item = &'s EndpointSlice>,
    node: &Node,
) -> ServiceRules {
    let mut rules = ServiceRules::default();
    let Some(spec) = &service.spec else {
        return rules;
    };
    let Some(cluster_ip) = cluster_ip(service) else {
        return rules;
    };
    let slices: Vec<_> = slices
        .into_iter()
        .filter(|slice| slice.address_type == "IPv4")
        .collect();
    let name = |text: &Option<String>| text.clone().unwrap_or_default();
    let base = format!("{}/{}", name(&service.metadata.namespace), name(&service.metadata.name));
    rules.cluster_ips.insert(cluster_ip);
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Ok(number)) = (Protocol::parse(port.protocol.as_deref()), u16::try_from(port.port)) else {
            continue;
        };
        let id = format!("{base}/{}", port.name.as_deref().unwrap_or_default());
        let plan = PortPlan {
            service,
            port,
            protocol,
            number,
            id,
            node,
        };
        plan.add(cluster_ip, &slices, &mut rules);
    }
    rules
}

/// The Service's IPv4 address, if it has one.
pub fn cluster_ip(service: &Service) -> Option<Ipv4Addr> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.cluster_ip
        .iter()
        .chain(spec.cluster_ips.iter().flatten())
        .find_map(|ip| ip.parse().ok())
}

/// Endpoints of one port that take traffic: the ready ones; while there are none, those that are ending but still
/// serve.
fn usable<'e>(endpoints: impl Iterator<Item = (&'e Endpoint, u16)> + Clone) -> Vec<SocketAddrV4> {
    let pick = |wanted: fn(&Endpoint) -> bool| -> Vec<SocketAddrV4> {
        let picked: BTreeSet<_> = endpoints
            .clone()
            .filter(|(endpoint, _)| wanted(endpoint))
            .filter_map(|(endpoint, port)| Some(SocketAddrV4::new(endpoint.addresses.first()?.parse().ok()?, port)))
            .collect();
        picked.into_iter().collect()
    };
    let ready = pick(is_ready);
    if ready.is_empty() {
        pick(is_ending_but_serving)
    } else {
        ready
    }
}

/// The endpoints meant for this node, or else for its zone: where every ready one says for whom it is and one of them
/// for us. Otherwise all, so hints never leave a node without.
fn nearest<'e>(endpoints: Vec<(&'e Endpoint, u16)>, node: &Node) -> Vec<(&'e Endpoint, u16)> {
    let near = [
        (nodes_of as fn(&Endpoint) -> Vec<&str>, Some(&node.name)),
        (zones_of, node.zone.as_ref()),
    ];
    for (meant_for, us) in near {
        let mut ready = endpoints
            .iter()
            .filter(|(endpoint, _)| is_ready(endpoint))
            .map(|(endpoint, _)| endpoint);
        let Some(us) = us.filter(|_| ready.clone().all(|endpoint| !meant_for(endpoint).is_empty())) else {
            continue;
        };
        let is_ours = |endpoint: &Endpoint| meant_for(endpoint).contains(&us.as_str());
        if ready.any(|endpoint| is_ours(endpoint)) {
            let is_near = |(endpoint, _): &(&Endpoint, u16)| is_ready(endpoint) && is_ours(endpoint);
            return endpoints.into_iter().filter(is_near).collect();
        }
    }
    endpoints
}

fn nodes_of(endpoint: &Endpoint) -> Vec<&str> {
    let hints = endpoint.hints.as_ref().and_then(|hints| hints.for_nodes.as_ref());
    hints.into_iter().flatten().map(|node| node.name.as_str()).collect()
}

fn zones_of(endpoint: &Endpoint) -> Vec<&str> {
    let hints = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
    hints.into_iter().flatten().map(|zone| zone.name.as_str()).collect()
}

pub fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready)
        .unwrap_or(true)
}

fn is_ending_but_serving(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_some_and(|conditions| {
        conditions.terminating == Some(true) && conditions.serving.or(conditions.ready).unwrap_or(false)
    })
}

/// One port of a Service, while its rules are made.
struct PortPlan<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    protocol: Protocol,
    number: u16,
    /// `namespace/name/port`: what chains are called after.
    id: String,
    node: &'a Node,
}

impl PortPlan<'_> {
    fn policy_is_local(&self, policy: Option<&String>) -> bool {
        policy.is_some_and(|policy| policy == "Local")
    }

    fn add(&self, cluster_ip: Ipv4Addr, slices: &[&EndpointSlice], rules: &mut ServiceRules) {
        let Some(spec) = &self.service.spec else {
            return;
        };
        let named = |slice: &&&EndpointSlice| -> Option<u16> {
            let port = slice.ports.iter().flatten().find(|port| {
                port.name.as_deref().unwrap_or_default() == self.port.name.as_deref().unwrap_or_default()
                    && Protocol::parse(port.protocol.as_deref()) == Some(self.protocol)
            })?;
            u16::try_from(port.port?).ok()
        };
        let all = slices
            .iter()
            .filter_map(|slice| Some((slice, named(&slice)?)))
            .flat_map(|(slice, port)| slice.endpoints.iter().flatten().map(move |endpoint| (endpoint, port)));
        let here = all
            .clone()
            .filter(|(endpoint, _)| endpoint.node_name.as_deref() == Some(&self.node.name));
        let (everywhere, here) = (usable(nearest(all.collect(), self.node).into_iter()), usable(here));

        let external_local = self.policy_is_local(spec.external_traffic_policy.as_ref());
        let internal_local = self.policy_is_local(spec.internal_traffic_policy.as_ref());
        let outside = self.outside_addresses();
        let node_port = self.node_port();
        let has_outside = !outside.is_empty() || node_port.is_some();

        let (svc, local, ext) = (
            format!("svc/{}", self.id),
            format!("local/{}", self.id),
            format!("ext/{}", self.id),
        );
        if !everywhere.is_empty() {
            self.endpoints_chain(&svc, vec![Step::MarkOutside], &everywhere, rules);
        }
        if !here.is_empty() && (internal_local || (external_local && has_outside)) {
            // Answers of endpoints here pass here whatever the client's address, so it is kept.
            self.endpoints_chain(&local, Vec::new(), &here, rules);
        }

        let target = |chain: &String, endpoints: &[SocketAddrV4], other: Target| {
            if endpoints.is_empty() {
                other
            } else {
                Target::Chain(chain.clone())
            }
        };
        // Endpoints elsewhere but none here: silence. None at all: refusal.
        let none = if everywhere.is_empty() {
            Target::Reject
        } else {
            Target::Drop
        };
        let inside = if internal_local {
            target(&local, &here, none)
        } else {
            target(&svc, &everywhere, Target::Reject)
        };
        rules.addresses.insert((cluster_ip, self.protocol, self.number), inside);

        if has_outside {
            let external = target(&ext, &everywhere, Target::Reject);
            if !everywhere.is_empty() {
                let steps = if external_local {
                    let last = if here.is_empty() { Step::Drop } else { Step::Goto(local) };
                    vec![
                        Step::FromGoto(self.node.pods, svc.clone()),
                        Step::FromHostGoto(svc),
                        last,
                    ]
                } else {
                    vec![Step::Mark, Step::Goto(svc)]
                };
                rules.chains.insert(ext.clone(), steps);
            }
            for (address, ranges) in &outside {
                let entry = match (&external, ranges.is_empty()) {
                    (Target::Chain(_), false) => {
                        let chain = format!("lb/{}", self.id);
                        let mut steps: Vec<_> =
                            ranges.iter().map(|range| Step::FromGoto(*range, ext.clone())).collect();
                        steps.push(Step::Drop);
                        rules.chains.insert(chain.clone(), steps);
                        Target::Chain(chain)
                    }
                    (external, _) => external.clone(),
                };
                rules.addresses.insert((*address, self.protocol, self.number), entry);
            }
            if let Some(port) = node_port {
                rules.node_ports.insert((self.protocol, port), external);
            }
        }

        if self.protocol == Protocol::Udp {
            let endpoints: BTreeSet<_> = everywhere.iter().chain(&here).map(|endpoint| *endpoint.ip()).collect();
            let ports = std::iter::once((Some(cluster_ip), self.number))
                .chain(outside.iter().map(|(address, _)| (Some(*address), self.number)))
                .chain(node_port.map(|port| (None, port)));
            rules.udp.extend(ports.map(|port| (port, endpoints.clone())));
        }
    }

    /// Addresses from outside the cluster that lead here, with the sources that may use them (none: all).
    fn outside_addresses(&self) -> Vec<(Ipv4Addr, Vec<Ipv4Net>)> {
        let Some(spec) = &self.service.spec else {
            return Vec::new();
        };
        let external = spec
            .external_ips
            .iter()
            .flatten()
            .filter_map(|ip| Some((ip.parse().ok()?, Vec::new())));
        let ranges: Vec<Ipv4Net> = spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .filter_map(|range| range.trim().parse().ok())
            .collect();
        let status = self
            .service
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        let balanced = status
            .and_then(|status| status.ingress.as_ref())
            .into_iter()
            .flatten()
            .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|ingress| Some((ingress.ip.as_ref()?.parse().ok()?, ranges.clone())));
        external.chain(balanced).collect()
    }

    fn node_port(&self) -> Option<u16> {
        let kind = self.service.spec.as_ref()?.type_.as_deref()?;
        let port = self.port.node_port.filter(|port| *port > 0)?;
        matches!(kind, "NodePort" | "LoadBalancer").then(|| u16::try_from(port).ok())?
    }

    /// How long a client stays with its endpoint, where it does.
    fn affinity_seconds(&self) -> Option<u64> {
        let spec = self.service.spec.as_ref()?;
        if spec.session_affinity.as_deref() != Some("ClientIP") {
            return None;
        }
        let configured = spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
        Some(
            configured
                .and_then(|seconds| u64::try_from(seconds).ok())
                .unwrap_or(10_800),
        )
    }

    fn endpoints_chain(&self, chain: &str, mut steps: Vec<Step>, endpoints: &[SocketAddrV4], rules: &mut ServiceRules) {
        match self.affinity_seconds() {
            None => steps.push(Step::Balance(endpoints.to_vec())),
            Some(seconds) => {
                let mut all = Vec::new();
                for endpoint in endpoints {
                    let own = format!("ep/{}/{endpoint}", self.id);
                    // The time is in the name: a set's time cannot change, so another time is another set.
                    let set = format!("{own}/{seconds}");
                    rules.sticky.insert(set.clone(), seconds);
                    rules.chains.insert(
                        own.clone(),
                        vec![Step::Remember {
                            set: set.clone(),
                            endpoint: *endpoint,
                        }],
                    );
                    steps.push(Step::Stick {
                        set,
                        chain: own.clone(),
                    });
                    all.push(own);
                }
                steps.push(Step::Spread(all));
            }
        }
        rules.chains.insert(chain.to_owned(), steps);
    }
}
