//! Cluster addresses and node ports of Services.
//!
//! What is taken is known from the watch cache (rebuilt at start, kept by a hook on every change) plus what
//! requests under way have reserved. A reservation that is not kept is given back when it is dropped, so a
//! refused or failed write leaks nothing.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, OnceLock};

use ipnet::Ipv4Net;
use rand::Rng;
use sampan_api::status::Status;
use sampan_api::{Object, field, meta};
use sampan_kinds::core::service as kinds;
use serde_json::{Value, json};

use crate::claims::{Claims, Owner};
use crate::rows::Row;
use crate::sync::lock;
use crate::watch_cache::{Change, ChangeType};
use crate::{Refusal, refuse};

/// Node ports, first and last.
pub const NODE_PORTS: (u16, u16) = (30_000, 32_767);

#[derive(Default)]
struct Taken {
    /// Owner (the Service's path) of each address and port.
    addresses: HashMap<Ipv4Addr, String>,
    ports: HashMap<u16, String>,
    /// What each stored Service holds.
    stored: HashMap<String, Holding>,
    /// The first and the last port that may be given.
    node_ports: (u16, u16),
    /// What ServiceCIDRs add to the first range, by name.
    ranges: BTreeMap<String, Vec<Ipv4Net>>,
}

/// Who holds an address that an IPAddress not made for a Service speaks of.
const BY_HAND: &str = "ipaddress";

#[derive(Clone, Debug, Default, PartialEq)]
struct Holding {
    uid: String,
    addresses: Vec<Ipv4Addr>,
    ports: Vec<u16>,
}

impl Holding {
    fn of(service: &Object) -> Self {
        let texts = |pointer: &str| -> Vec<String> {
            match service.pointer(pointer) {
                Some(Value::String(one)) => vec![one.clone()],
                Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                _ => Vec::new(),
            }
        };
        let mut addresses: Vec<Ipv4Addr> = texts("/spec/clusterIPs")
            .iter()
            .chain(&texts("/spec/clusterIP"))
            .filter_map(|text| text.parse().ok())
            .collect();
        addresses.sort();
        addresses.dedup();
        let mut ports: Vec<u16> = service
            .pointer("/spec/ports")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|port| port.get("nodePort")?.as_u64())
            .chain(service.pointer("/spec/healthCheckNodePort").and_then(Value::as_u64))
            .filter_map(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
            .collect();
        ports.sort_unstable();
        ports.dedup();
        Holding {
            uid: meta::uid(service).to_owned(),
            addresses,
            ports,
        }
    }

    /// What is held, by the names of claims, unless `other` holds it too.
    fn without(&self, other: &Holding) -> Vec<String> {
        let addresses = self
            .addresses
            .iter()
            .filter(|address| !other.addresses.contains(address));
        let ports = self.ports.iter().filter(|port| !other.ports.contains(port));
        addresses
            .map(|address| format!("ip/{address}"))
            .chain(ports.map(|port| format!("port/{port}")))
            .collect()
    }
}

/// The allocator of one control plane.
pub struct Services {
    range: Ipv4Net,
    taken: Mutex<Taken>,
    /// For what other servers may be about to take.
    claims: OnceLock<Claims>,
}

/// Addresses and ports held for a write under way. Dropped without [`Reserved::keep`], they are given back.
#[must_use]
pub struct Reserved {
    services: Option<Arc<Services>>,
    path: String,
    new: Holding,
    /// What of it was claimed in the store.
    claimed: Vec<String>,
    /// The client left the choice of the address to us.
    picked: bool,
    /// Nothing will be written: nobody else is to notice.
    dry: bool,
}

impl Reserved {
    pub fn nothing() -> Self {
        Reserved {
            services: None,
            path: String::new(),
            new: Holding::default(),
            claimed: Vec::new(),
            picked: false,
            dry: false,
        }
    }

    fn owner(&self) -> Owner {
        Owner {
            path: self.path.clone(),
            uid: self.new.uid.clone(),
        }
    }

    /// Makes what is new ours in the store too, where that is needed. `Some`: another Service was faster.
    pub async fn claim(&mut self) -> Result<Option<(String, Owner)>, sampan_store::Error> {
        let Some(services) = self.services.clone().filter(|_| !self.dry) else {
            return Ok(None);
        };
        let Some(claims) = services.claims.get().filter(|claims| claims.needed()) else {
            return Ok(None);
        };
        let owner = self.owner();
        for what in self.new.without(&Holding::default()) {
            let holds = |owner: &Owner| services.holds(owner, &what);
            match claims.take(&what, &owner, holds).await {
                Ok(()) => self.claimed.push(what),
                Err(Ok(other)) => return Ok(Some((what, other))),
                Err(Err(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Addresses the Service did not have before.
    pub fn addresses(&self) -> &[Ipv4Addr] {
        &self.new.addresses
    }
    /// The write committed: what it holds is now the cache's business.
    pub fn keep(mut self) {
        self.services = None;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Some(services) = self.services.as_ref().filter(|_| !self.dry) else {
            return;
        };
        if let Some(claims) = services.claims.get() {
            claims.release(std::mem::take(&mut self.claimed), self.owner());
        }
        let mut taken = lock(&services.taken);
        let stored = taken.stored.get(&self.path).cloned().unwrap_or_default();
        for address in self
            .new
            .addresses
            .iter()
            .filter(|address| !stored.addresses.contains(address))
        {
            if taken.addresses.get(address) == Some(&self.path) {
                taken.addresses.remove(address);
            }
        }
        for port in self.new.ports.iter().filter(|port| !stored.ports.contains(port)) {
            if taken.ports.get(port) == Some(&self.path) {
                taken.ports.remove(port);
            }
        }
    }
}

impl Services {
    /// `node_ports`: the first and the last.
    pub fn new(range: Ipv4Net, node_ports: (u16, u16)) -> Arc<Self> {
        let taken = Taken {
            node_ports,
            ..Taken::default()
        };
        Arc::new(Services {
            range,
            taken: Mutex::new(taken),
            claims: OnceLock::new(),
        })
    }

    /// Says where claims are made. Once.
    pub fn set_claims(&self, claims: Claims) {
        if self.claims.set(claims).is_err() {
            tracing::error!("the allocator has its claims already");
        }
    }

    /// Whether the Service `owner` is stored and holds `what`.
    fn holds(&self, owner: &Owner, what: &str) -> bool {
        let taken = lock(&self.taken);
        taken.stored.get(&owner.path).is_some_and(|holding| {
            holding.uid == owner.uid && holding.without(&Holding::default()).iter().any(|held| held == what)
        })
    }

    /// Notes that `path` of another server is about to hold `what`.
    pub fn block(&self, what: &str, path: &str) {
        let mut taken = lock(&self.taken);
        match what.split_once('/') {
            Some(("ip", address)) => {
                if let Ok(address) = address.parse() {
                    taken.addresses.entry(address).or_insert_with(|| path.to_owned());
                }
            }
            Some((_, port)) => {
                if let Ok(port) = port.parse() {
                    taken.ports.entry(port).or_insert_with(|| path.to_owned());
                }
            }
            None => {}
        }
    }

    /// Forgets [`Services::block`]: what is stored by now stays known.
    pub fn unblock(&self, what: &str, path: &str) {
        let mut taken = lock(&self.taken);
        let held = taken
            .stored
            .get(path)
            .is_some_and(|holding| holding.without(&Holding::default()).iter().any(|held| held == what));
        if held {
            return;
        }
        match what.split_once('/') {
            Some(("ip", address)) => {
                if let Ok(address) = address.parse()
                    && taken.addresses.get(&address).is_some_and(|owner| owner == path)
                {
                    taken.addresses.remove(&address);
                }
            }
            Some((_, port)) => {
                if let Ok(port) = port.parse()
                    && taken.ports.get(&port).is_some_and(|owner| owner == path)
                {
                    taken.ports.remove(&port);
                }
            }
            None => {}
        }
    }

    pub fn range(&self) -> Ipv4Net {
        self.range
    }

    /// The address of `default/kubernetes`: the first of the range.
    pub fn first_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.range.network()) + 1)
    }

    /// Follows the stored Services.
    pub fn observe(&self, change: &Change, service: &Object) {
        let path = change.entry.path().to_owned();
        let holding = match change.kind {
            ChangeType::Deleted => Holding::default(),
            _ => Holding::of(service),
        };
        let mut taken = lock(&self.taken);
        if let Some(old) = taken.stored.remove(&path) {
            if let Some(claims) = self.claims.get() {
                let owner = Owner {
                    path: path.clone(),
                    uid: old.uid.clone(),
                };
                claims.release(old.without(&holding), owner);
            }
            for address in old.addresses {
                taken.addresses.remove(&address);
            }
            for port in old.ports {
                taken.ports.remove(&port);
            }
        }
        if change.kind == ChangeType::Deleted {
            return;
        }
        for address in &holding.addresses {
            taken.addresses.insert(*address, path.clone());
        }
        for port in &holding.ports {
            taken.ports.insert(*port, path.clone());
        }
        taken.stored.insert(path, holding);
    }

    /// Follows IPAddress objects: those nobody's Service holds are respected too.
    pub fn observe_entry(&self, change: &Change) {
        let Ok(address) = change.entry.name().parse::<Ipv4Addr>() else {
            return;
        };
        let mut taken = lock(&self.taken);
        if change.kind == ChangeType::Deleted {
            if taken.addresses.get(&address).is_some_and(|owner| owner == BY_HAND) {
                taken.addresses.remove(&address);
            }
        } else {
            taken.addresses.entry(address).or_insert_with(|| BY_HAND.to_owned());
        }
    }

    /// Follows ServiceCIDRs.
    pub fn observe_range(&self, change: &Change, range: &Object) {
        let mut taken = lock(&self.taken);
        let name = change.entry.name().to_owned();
        // One that nobody speaks of is ready: there may be no controller.
        let conditions = range.pointer("/status/conditions").and_then(Value::as_array);
        let mut ready = conditions
            .into_iter()
            .flatten()
            .filter(|condition| condition["type"] == "Ready");
        let ready = ready.all(|condition| condition["status"] == "True");
        if change.kind == ChangeType::Deleted || meta::is_deleting(range) || !ready {
            taken.ranges.remove(&name);
            return;
        }
        let networks = range.pointer("/spec/cidrs").and_then(Value::as_array);
        let networks = networks
            .into_iter()
            .flatten()
            .filter_map(|text| text.as_str()?.parse().ok());
        taken.ranges.insert(name, networks.collect());
    }

    /// Another address for one that turned out to be taken; nothing if the client asked for that one.
    pub fn replace(&self, reserved: &mut Reserved, address: Ipv4Addr) -> Option<Ipv4Addr> {
        let mut taken = lock(&self.taken);
        taken.addresses.insert(address, BY_HAND.to_owned());
        reserved.new.addresses.retain(|own| *own != address);
        if !reserved.picked {
            return None;
        }
        let other = self.pick(&taken)?;
        taken.addresses.insert(other, reserved.path.clone());
        reserved.new.addresses.push(other);
        Some(other)
    }

    /// Whether objects of this row may need something.
    pub fn concerned(&self, row: &Row) -> bool {
        row.is("", "services")
    }

    /// Gives a Service what its type needs. Other rows need nothing. `dry`: only says what it would be.
    pub fn reserve(
        self: &Arc<Self>,
        row: &Row,
        service: &mut Object,
        old: Option<&Object>,
        dry: bool,
    ) -> Result<Reserved, Refusal> {
        if !self.concerned(row) {
            return Ok(Reserved::nothing());
        }
        let path = row.path(meta::namespace(service), meta::name(service));
        let mut reserved = Reserved {
            services: Some(self.clone()),
            path,
            new: Holding {
                uid: meta::uid(service).to_owned(),
                ..Holding::default()
            },
            claimed: Vec::new(),
            picked: false,
            dry,
        };
        let name = meta::name(service).to_owned();
        let invalid = |errors: &[field::Error]| refuse(Status::invalid("", "Service", &name, errors));
        let errors = kinds::settle_families(service, old, &FAMILIES);
        if !errors.is_empty() {
            return Err(invalid(&errors));
        }
        if old.is_none_or(|old| !kinds::needs_cluster_ip(old)) {
            self.reserve_address(service, &mut reserved)
                .map_err(|error| invalid(&[error]))?;
        }
        let mut taken = lock(&self.taken);
        if matches!(service_type(service), "NodePort" | "LoadBalancer") {
            match old {
                None => first_ports(&mut taken, service, &mut reserved),
                Some(old) => changed_ports(&mut taken, service, old, &mut reserved),
            }
            .map_err(|failure| match failure {
                NoPort::Wrong(error) => invalid(&[error]),
                NoPort::Full => refuse(Status::internal("failed to allocate a nodePort: range is full")),
                NoPort::Twice(protocol, port) => {
                    let message = format!("duplicate nodePort: {{{protocol} {port}}}");
                    refuse(Status::new(500, "", message))
                }
            })?;
        }
        let asks = kinds::needs_health_check_node_port;
        if asks(service) && !old.is_some_and(asks) {
            health_check_port(&mut taken, service, &mut reserved)
                .map_err(|why| refuse(Status::internal(format!("failed to allocate {why}"))))?;
        }
        drop(taken);
        Ok(reserved)
    }

    /// The first address of a Service that is to have one.
    fn reserve_address(&self, service: &mut Object, reserved: &mut Reserved) -> Result<(), field::Error> {
        if !kinds::needs_cluster_ip(service) || kinds::is_headless(service) {
            return Ok(());
        }
        let asked = service
            .pointer("/spec/clusterIP")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let mut taken = lock(&self.taken);
        reserved.picked = asked.is_empty();
        let address = if asked.is_empty() {
            self.pick(&taken).ok_or_else(|| {
                field::Error::new(
                    field::Kind::Internal,
                    &field::Path::new("spec").child("clusterIPs").index(0),
                    Value::Null,
                    "failed to allocate a serviceIP: range is full",
                )
            })?
        } else {
            self.check_address(&taken, &asked, &reserved.path)?
        };
        let held = taken.addresses.get(&address).is_some_and(|owner| owner != BY_HAND);
        if !held && !reserved.dry {
            taken.addresses.insert(address, reserved.path.clone());
            reserved.new.addresses.push(address);
        }
        if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("clusterIP".into(), address.to_string().into());
            spec.insert("clusterIPs".into(), json!([address.to_string()]));
        }
        Ok(())
    }

    fn check_address(&self, taken: &Taken, asked: &str, path: &str) -> Result<Ipv4Addr, field::Error> {
        let at = field::Path::new("spec").child("clusterIPs");
        let invalid = |why: String| field::Error::invalid(&at, json!([asked]), why);
        let address: Ipv4Addr = match asked.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => address,
            Ok(IpAddr::V6(_)) => {
                return Err(field::Error::invalid(
                    &field::Path::new("spec").child("ipFamilies").index(0),
                    "IPv6",
                    "not configured on this cluster",
                ));
            }
            Err(_) => {
                return Err(field::Error::invalid(
                    &at.index(0),
                    asked,
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ));
            }
        };
        let inside = self
            .all_ranges(taken)
            .any(|range| range.contains(&address) && address != range.network() && address != range.broadcast());
        if !inside {
            return Err(invalid(format!(
                "failed to allocate IP {asked}: the provided IP ({asked}) is not in the valid range. The range of valid IPs is {}",
                self.range
            )));
        }
        match taken.addresses.get(&address) {
            // An entry not seen to belong to anyone is looked at when the address is written down.
            Some(owner) if owner != path && owner != BY_HAND => Err(invalid(format!(
                "failed to allocate IP {asked}: provided IP is already allocated"
            ))),
            _ => Ok(address),
        }
    }

    /// The first range, then those ServiceCIDRs add.
    fn all_ranges<'a>(&'a self, taken: &'a Taken) -> impl Iterator<Item = Ipv4Net> + 'a {
        let added = taken.ranges.values().flatten().copied();
        std::iter::once(self.range).chain(added.filter(|range| *range != self.range))
    }

    fn pick(&self, taken: &Taken) -> Option<Ipv4Addr> {
        self.all_ranges(taken).find_map(|range| self.pick_in(range, taken))
    }

    /// A free address, from above the band people use for fixed ones, at random.
    fn pick_in(&self, range: Ipv4Net, taken: &Taken) -> Option<Ipv4Addr> {
        let base = u32::from(range.network());
        let size = 1u32.checked_shl(32 - u32::from(range.prefix_len())).unwrap_or(u32::MAX);
        let usable = size.saturating_sub(2).max(1);
        let band = (size / 16).clamp(16, 256).min(usable / 2);
        let free = |offset: u32| {
            let address = Ipv4Addr::from(base + 1 + offset);
            (address != self.first_address() && !taken.addresses.contains_key(&address)).then_some(address)
        };
        let above = usable - band;
        let start = rand::rng().random_range(0..above.max(1));
        (0..above)
            .map(|step| band + (start + step) % above)
            .chain(0..band)
            .find_map(free)
    }
}

/// The families this cluster gives addresses of.
const FAMILIES: [&str; 1] = ["IPv4"];

/// Why a Service gets no node port.
enum NoPort {
    Wrong(field::Error),
    Full,
    /// Asked for twice by one update.
    Twice(String, i64),
}

fn wrong_port(index: usize, asked: i64, why: String) -> NoPort {
    let at = field::Path::new("spec").child("ports").index(index).child("nodePort");
    NoPort::Wrong(field::Error::invalid(&at, asked, why))
}

fn ports_mut(service: &mut Object) -> &mut [Value] {
    service
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
        .map(Vec::as_mut_slice)
        .unwrap_or_default()
}

fn number(port: &Value, field: &str) -> i64 {
    port.get(field).and_then(Value::as_i64).unwrap_or(0)
}

/// Node ports of a new Service. Ports of one number (TCP and UDP, say) share theirs.
fn first_ports(taken: &mut Taken, service: &mut Object, reserved: &mut Reserved) -> Result<(), NoPort> {
    let wants = kinds::needs_node_port(service);
    let mut shared: HashMap<i64, i64> = HashMap::new();
    for index in 0..ports_mut(service).len() {
        let ports = ports_mut(service);
        let Some(port) = ports.get(index) else { break };
        let (own, asked) = (number(port, "port"), number(port, "nodePort"));
        if asked == 0 && !wants {
            continue;
        }
        let given = match shared.get(&own) {
            Some(known) if asked == 0 || asked == *known => *known,
            Some(_) => {
                take(taken, reserved, asked).map_err(|why| wrong_port(index, asked, why))?;
                asked
            }
            None => {
                let named = ports
                    .iter()
                    .filter(|port| number(port, "port") == own)
                    .map(|port| number(port, "nodePort"))
                    .find(|port| *port != 0);
                let given = match named {
                    Some(named) => {
                        take(taken, reserved, named).map_err(|why| wrong_port(index, named, why))?;
                        named
                    }
                    None => take_free(taken, reserved).ok_or(NoPort::Full)?.into(),
                };
                shared.insert(own, given);
                given
            }
        };
        if let Some(port) = ports_mut(service).get_mut(index).and_then(Value::as_object_mut) {
            port.insert("nodePort".into(), given.into());
        }
    }
    Ok(())
}

/// Node ports of a changed Service: those it had are its own.
fn changed_ports(taken: &mut Taken, service: &mut Object, old: &Object, reserved: &mut Reserved) -> Result<(), NoPort> {
    let wants = kinds::needs_node_port(service);
    let had = Holding::of(old).ports;
    let mut given: Vec<(String, i64)> = Vec::new();
    for (index, port) in ports_mut(service).iter_mut().enumerate() {
        let mut node_port = number(port, "nodePort");
        if node_port == 0 {
            if !wants {
                continue;
            }
            node_port = take_free(taken, reserved).ok_or(NoPort::Full)?.into();
            if let Some(port) = port.as_object_mut() {
                port.insert("nodePort".into(), node_port.into());
            }
        } else {
            let is = |known: &u16| i64::from(*known) == node_port;
            if !had.iter().any(is) && !reserved.new.ports.iter().any(is) {
                take(taken, reserved, node_port).map_err(|why| wrong_port(index, node_port, why))?;
            }
        }
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or_default();
        let pair = (protocol.to_owned(), node_port);
        if given.contains(&pair) {
            return Err(NoPort::Twice(pair.0, pair.1));
        }
        given.push(pair);
    }
    Ok(())
}

/// The port where a load balancer asks after the health of a node's part of a Service.
fn health_check_port(taken: &mut Taken, service: &mut Object, reserved: &mut Reserved) -> Result<(), String> {
    let asked = service
        .pointer("/spec/healthCheckNodePort")
        .and_then(Value::as_i64)
        .unwrap_or(0);
    if asked != 0 {
        return take(taken, reserved, asked).map_err(|why| format!("requested HealthCheck NodePort {asked}: {why}"));
    }
    let free = take_free(taken, reserved).ok_or("a HealthCheck NodePort 0: range is full")?;
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("healthCheckNodePort".into(), free.into());
    }
    Ok(())
}

fn take(taken: &mut Taken, reserved: &mut Reserved, asked: i64) -> Result<(), String> {
    let (first, last) = taken.node_ports;
    let Some(port) = u16::try_from(asked).ok().filter(|port| (first..=last).contains(port)) else {
        return Err(format!(
            "provided port is not in the valid range. The range of valid ports is {first}-{last}"
        ));
    };
    let others = taken.ports.get(&port).is_some_and(|owner| *owner != reserved.path);
    if others || reserved.new.ports.contains(&port) {
        return Err("provided port is already allocated".into());
    }
    if !reserved.dry {
        taken.ports.insert(port, reserved.path.clone());
    }
    reserved.new.ports.push(port);
    Ok(())
}

fn take_free(taken: &mut Taken, reserved: &mut Reserved) -> Option<u16> {
    let (first, last) = taken.node_ports;
    let size = u32::from(last.saturating_sub(first)) + 1;
    // The lowest ports are left for those who ask for a number, as far as there are others.
    let band = if size < 16 {
        0
    } else {
        (size / 32).clamp(16, 128).min(size - 1)
    };
    let span = size - band;
    let start = rand::rng().random_range(0..span);
    let port = (0..span)
        .map(|step| band + (start + step) % span)
        .chain(0..band)
        .filter_map(|offset| u16::try_from(u32::from(first) + offset).ok())
        .find(|port| !taken.ports.contains_key(port) && !reserved.new.ports.contains(port))?;
    if !reserved.dry {
        taken.ports.insert(port, reserved.path.clone());
    }
    reserved.new.ports.push(port);
    Some(port)
}

fn service_type(service: &Object) -> &str {
    match service.pointer("/spec/type").and_then(Value::as_str) {
        None | Some("") => "ClusterIP",
        Some(kind) => kind,
    }
}
