//! The cluster's zone: names of Services and Pods, as the Kubernetes DNS specification 1.1 has them.
//!
//! A pure function of what a [`Source`] knows. Every answer lives five seconds. A name with names below it but no
//! records of its own (`svc.cluster.local`) has no data; a name that is neither does not exist.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::pods::Protocol;
use crate::proxy::plan::{cluster_ip, is_ready};

const TTL: u32 = 5;

/// Where the zone's facts come from.
pub trait Source {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>>;
    /// Whether the namespace has any Service: then it is a name with names below it.
    fn has_services(&self, namespace: &str) -> bool;
    /// Services with this address.
    fn services_with_ip(&self, ip: Ipv4Addr) -> Vec<Arc<Service>>;
    /// Slices with an endpoint of this address.
    fn slices_with_ip(&self, ip: Ipv4Addr) -> Vec<Arc<EndpointSlice>>;
}

/// What the zone says to a question.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub outcome: Outcome,
    pub answers: Vec<Record>,
    pub additionals: Vec<Record>,
    /// For answers without records: how long to believe that.
    pub authority: Option<Record>,
    /// The answer is an alias for this name, whose records are to follow.
    pub alias: Option<Name>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    #[default]
    Found,
    /// The name exists, but has no records of this type.
    NoData,
    NoSuchName,
    /// Not a name of this zone.
    NotOurs,
}

/// A zone, such as `cluster.local.`
#[derive(Clone, Debug)]
pub struct Zone {
    origin: Name,
}

/// An endpoint as a name sees it.
struct Target {
    host: String,
    ip: Ipv4Addr,
    ports: Vec<(String, Protocol, u16)>,
}

impl Zone {
    /// `None` when the text is no domain name.
    pub fn new(domain: &str) -> Option<Self> {
        let mut origin = Name::from_ascii(domain).ok()?.to_lowercase();
        origin.set_fqdn(true);
        Some(Zone { origin })
    }

    pub fn answer(&self, source: &impl Source, name: &Name, kind: RecordType) -> Answer {
        let lower = name.to_lowercase();
        let labels: Vec<String> = lower
            .iter()
            .map(|label| String::from_utf8_lossy(label).into_owned())
            .collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        if !self.origin.zone_of(&lower) {
            return match labels.as_slice() {
                [d, c, b, a, "in-addr", "arpa"] => self.reverse(source, name, kind, [a, b, c, d]),
                _ => Answer {
                    outcome: Outcome::NotOurs,
                    ..Answer::default()
                },
            };
        }
        let own = labels.len().saturating_sub(usize::from(self.origin.num_labels()));
        let answer = self.within(source, name, kind, labels.get(..own).unwrap_or_default());
        match answer.outcome {
            Outcome::NoData | Outcome::NoSuchName => Answer {
                authority: self.soa(),
                ..answer
            },
            Outcome::Found if answer.answers.is_empty() => Answer {
                outcome: Outcome::NoData,
                authority: self.soa(),
                ..answer
            },
            _ => answer,
        }
    }

    fn within(&self, source: &impl Source, name: &Name, kind: RecordType, labels: &[&str]) -> Answer {
        match labels {
            [] => self.apex(name, kind),
            ["dns-version"] => found(kind == RecordType::TXT, name, || {
                RData::TXT(TXT::new(vec!["1.1.0".to_owned()]))
            }),
            ["ns", "dns"] | ["dns"] | ["svc"] | ["pod"] => outcome(Outcome::NoData),
            [namespace, "svc"] => match source.has_services(namespace) {
                true => outcome(Outcome::NoData),
                false => outcome(Outcome::NoSuchName),
            },
            [_, "pod"] => outcome(Outcome::NoData),
            [dashed, _, "pod"] => match undashed(dashed) {
                Some(ip) => found(kind == RecordType::A, name, || RData::A(A(ip))),
                None => outcome(Outcome::NoSuchName),
            },
            [rest @ .., service, namespace, "svc"] => match source.service(namespace, service) {
                Some(service) => self.service(source, name, kind, rest, &service),
                None => outcome(Outcome::NoSuchName),
            },
            _ => outcome(Outcome::NoSuchName),
        }
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Answer {
        match kind {
            RecordType::SOA => Answer {
                answers: self.soa().into_iter().collect(),
                ..Answer::default()
            },
            RecordType::NS => match self.child("ns.dns") {
                Some(server) => found(true, name, || RData::NS(NS(server))),
                None => outcome(Outcome::NoData),
            },
            _ => outcome(Outcome::NoData),
        }
    }

    /// A name below the zone's own.
    fn child(&self, prefix: &str) -> Option<Name> {
        Name::from_ascii(prefix).ok()?.append_domain(&self.origin).ok()
    }

    fn soa(&self) -> Option<Record> {
        let (server, contact) = (self.child("ns.dns")?, self.child("hostmaster")?);
        let soa = SOA::new(server, contact, 1, 7200, 1800, 86400, TTL);
        Some(Record::from_rdata(self.origin.clone(), TTL, RData::SOA(soa)))
    }

    fn service(&self, source: &impl Source, name: &Name, kind: RecordType, rest: &[&str], service: &Service) -> Answer {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (namespace, own_name) = (text(&service.metadata.namespace), text(&service.metadata.name));
        let spec = service.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            let target = Name::from_ascii(spec.external_name.as_deref().unwrap_or_default());
            return match (rest, target) {
                ([], Ok(mut target)) => {
                    target.set_fqdn(true);
                    let record = Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target.clone())));
                    Answer {
                        answers: vec![record],
                        alias: (kind != RecordType::CNAME).then_some(target),
                        ..Answer::default()
                    }
                }
                ([], Err(_)) => outcome(Outcome::NoData),
                _ => outcome(Outcome::NoSuchName),
            };
        }
        let base = format!("{own_name}.{namespace}.svc");
        let ip = cluster_ip(service);
        let headless = spec
            .cluster_ip
            .as_deref()
            .is_none_or(|ip| ip == "None" || ip.is_empty());
        let targets = if headless {
            targets(&source.slices(&namespace, &own_name))
        } else {
            Vec::new()
        };
        let ports: Vec<(String, Protocol, u16)> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some((
                    text(&port.name),
                    Protocol::parse(port.protocol.as_deref())?,
                    u16::try_from(port.port).ok()?,
                ))
            })
            .collect();
        let addresses: Vec<Ipv4Addr> = if headless {
            targets.iter().map(|target| target.ip).collect()
        } else {
            ip.into_iter().collect()
        };
        match rest {
            [] if kind == RecordType::SRV => self.srv(
                name,
                &base,
                headless,
                &ports,
                &targets,
                addresses.first().copied(),
                |_, _| true,
            ),
            [] => a_records(name, kind, addresses),
            [host] if !host.starts_with('_') => {
                let matching: Vec<_> = targets
                    .iter()
                    .filter(|target| target.host == *host)
                    .map(|target| target.ip)
                    .collect();
                if matching.is_empty() {
                    outcome(Outcome::NoSuchName)
                } else {
                    a_records(name, kind, matching)
                }
            }
            [protocol] => {
                let exists = ports
                    .iter()
                    .chain(targets.iter().flat_map(|target| &target.ports))
                    .any(|(port, have, _)| !port.is_empty() && Some(have.name()) == protocol.strip_prefix('_'));
                outcome(if exists { Outcome::NoData } else { Outcome::NoSuchName })
            }
            [port, protocol] => {
                let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                    return outcome(Outcome::NoSuchName);
                };
                let wanted = |name: &str, have: Protocol| !name.is_empty() && name == port && have.name() == protocol;
                let known = ports
                    .iter()
                    .chain(targets.iter().flat_map(|target| &target.ports))
                    .any(|(name, have, _)| wanted(name, *have));
                match (known, kind) {
                    (false, _) => outcome(Outcome::NoSuchName),
                    (true, RecordType::SRV) => self.srv(
                        name,
                        &base,
                        headless,
                        &ports,
                        &targets,
                        addresses.first().copied(),
                        wanted,
                    ),
                    (true, _) => outcome(Outcome::NoData),
                }
            }
            _ => outcome(Outcome::NoSuchName),
        }
    }

    #[allow(clippy::too_many_arguments)] // the facts of one Service, all used once
    fn srv(
        &self,
        name: &Name,
        base: &str,
        headless: bool,
        ports: &[(String, Protocol, u16)],
        targets: &[Target],
        ip: Option<Ipv4Addr>,
        wanted: impl Fn(&str, Protocol) -> bool,
    ) -> Answer {
        let mut hosts: Vec<(Name, Ipv4Addr, u16)> = Vec::new();
        if headless {
            for target in targets {
                let Some(host) = self.child(&format!("{}.{base}", target.host)) else {
                    continue;
                };
                let ports = target
                    .ports
                    .iter()
                    .filter(|(name, protocol, _)| wanted(name, *protocol));
                hosts.extend(ports.map(|(_, _, port)| (host.clone(), target.ip, *port)));
            }
        } else if let (Some(host), Some(ip)) = (self.child(base), ip) {
            let ports = ports.iter().filter(|(name, protocol, _)| wanted(name, *protocol));
            hosts.extend(ports.map(|(_, _, port)| (host.clone(), ip, *port)));
        }
        let weight = 100 / u16::try_from(hosts.len()).unwrap_or(100).clamp(1, 100);
        let answers = hosts
            .iter()
            .map(|(host, _, port)| {
                Record::from_rdata(name.clone(), TTL, RData::SRV(SRV::new(0, weight, *port, host.clone())))
            })
            .collect();
        let distinct: BTreeSet<_> = hosts.into_iter().map(|(host, ip, _)| (host, ip)).collect();
        let additionals = distinct
            .into_iter()
            .map(|(host, ip)| Record::from_rdata(host, TTL, RData::A(A(ip))))
            .collect();
        Answer {
            answers,
            additionals,
            ..Answer::default()
        }
    }

    /// `d.c.b.a.in-addr.arpa`: Services and endpoints with names of their own; other addresses are not ours.
    fn reverse(&self, source: &impl Source, name: &Name, kind: RecordType, octets: [&str; 4]) -> Answer {
        let not_ours = Answer {
            outcome: Outcome::NotOurs,
            ..Answer::default()
        };
        let Ok(ip) = octets.join(".").parse::<Ipv4Addr>() else {
            return not_ours;
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let services = source.services_with_ip(ip);
        let mut names: BTreeSet<String> = services
            .iter()
            .map(|service| {
                format!(
                    "{}.{}.svc",
                    text(&service.metadata.name),
                    text(&service.metadata.namespace)
                )
            })
            .collect();
        if names.is_empty() {
            for slice in source.slices_with_ip(ip) {
                let Some(service) = crate::proxy::service_of(&slice) else {
                    continue;
                };
                let hosts = targets(std::slice::from_ref(&slice))
                    .into_iter()
                    .filter(|target| target.ip == ip);
                names.extend(hosts.map(|target| format!("{}.{}.{}.svc", target.host, service.name, service.namespace)));
            }
        }
        if names.is_empty() {
            return not_ours;
        }
        if kind != RecordType::PTR {
            return Answer {
                outcome: Outcome::NoData,
                ..Answer::default()
            };
        }
        let pointers = names.iter().filter_map(|target| self.child(target));
        let answers = pointers
            .map(|target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target))))
            .collect();
        Answer {
            answers,
            ..Answer::default()
        }
    }
}

fn outcome(outcome: Outcome) -> Answer {
    Answer {
        outcome,
        ..Answer::default()
    }
}

fn found(matches: bool, name: &Name, data: impl FnOnce() -> RData) -> Answer {
    if !matches {
        return outcome(Outcome::NoData);
    }
    Answer {
        answers: vec![Record::from_rdata(name.clone(), TTL, data())],
        ..Answer::default()
    }
}

fn a_records(name: &Name, kind: RecordType, addresses: Vec<Ipv4Addr>) -> Answer {
    if kind != RecordType::A {
        return outcome(Outcome::NoData);
    }
    let answers = addresses
        .into_iter()
        .map(|ip| Record::from_rdata(name.clone(), TTL, RData::A(A(ip))))
        .collect();
    Answer {
        answers,
        ..Answer::default()
    }
}

/// `10-0-0-1` → 10.0.0.1
fn undashed(label: &str) -> Option<Ipv4Addr> {
    label.replace('-', ".").parse().ok().filter(|_| !label.contains('.'))
}

/// Ready endpoints with the names they go by: their hostname, or their address with dashes.
fn targets(slices: &[Arc<EndpointSlice>]) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let ports: Vec<_> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                let name = port.name.clone().unwrap_or_default();
                Some((
                    name,
                    Protocol::parse(port.protocol.as_deref())?,
                    u16::try_from(port.port?).ok()?,
                ))
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint)) {
            targets.extend(target(endpoint, &ports));
        }
    }
    targets.sort_by(|a, b| (a.ip, &a.host).cmp(&(b.ip, &b.host)));
    targets.dedup_by(|next, kept| {
        let same = (next.ip, &next.host) == (kept.ip, &kept.host);
        if same {
            kept.ports.append(&mut next.ports);
            kept.ports.sort();
            kept.ports.dedup();
        }
        same
    });
    targets
}

fn target(endpoint: &Endpoint, ports: &[(String, Protocol, u16)]) -> Option<Target> {
    let ip: Ipv4Addr = endpoint.addresses.first()?.parse().ok()?;
    let host = endpoint
        .hostname
        .clone()
        .filter(|host| !host.is_empty())
        .unwrap_or_else(|| ip.to_string().replace('.', "-"));
    Some(Target {
        host,
        ip,
        ports: ports.to_vec(),
    })
}
