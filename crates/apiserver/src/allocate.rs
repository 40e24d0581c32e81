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
}

impl Reserved {
    fn nothing() -> Self {
        Reserved {
            services: None,
            path: String::new(),
            new: Holding::default(),
            claimed: Vec::new(),
            picked: false,
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
        let Some(services) = self.services.clone() else {
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
        let Some(services) = &self.services else { return };
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
        if change.kind == ChangeType::Deleted || meta::is_deleting(range) {
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

    /// Gives a Service what its type needs. Other rows need nothing.
    pub fn reserve(
        self: &Arc<Self>,
        row: &Row,
        service: &mut Object,
        old: Option<&Object>,
    ) -> Result<Reserved, Refusal> {
        if !row.is("", "services") {
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
        };
        let mut errors = field::Errors::new();
        if let Some(old) = old {
            carry_over(service, old);
        }
        self.reserve_addresses(service, &mut reserved, &mut errors);
        self.reserve_ports(service, &mut reserved, &mut errors);
        if !errors.is_empty() {
            return Err(refuse(Status::invalid("", "Service", meta::name(service), &errors)));
        }
        Ok(reserved)
    }

    fn reserve_addresses(&self, service: &mut Object, reserved: &mut Reserved, errors: &mut field::Errors) {
        let kind = service_type(service);
        let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
            return;
        };
        if kind == "ExternalName" {
            return;
        }
        let first = spec
            .get("clusterIPs")
            .and_then(|all| all.get(0))
            .and_then(Value::as_str)
            .unwrap_or_default();
        let asked = match spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default() {
            "" => first.to_owned(),
            one => one.to_owned(),
        };
        if asked == "None" {
            spec.insert("clusterIP".into(), "None".into());
            spec.insert("clusterIPs".into(), json!(["None"]));
        } else {
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
                })
            } else {
                self.check_address(&taken, &asked, &reserved.path)
            };
            match address {
                Ok(address) => {
                    let held = taken.addresses.get(&address).is_some_and(|owner| owner != BY_HAND);
                    if !held {
                        taken.addresses.insert(address, reserved.path.clone());
                        reserved.new.addresses.push(address);
                    }
                    spec.insert("clusterIP".into(), address.to_string().into());
                    if spec
                        .get("clusterIPs")
                        .and_then(Value::as_array)
                        .is_none_or(|all| all.len() < 2)
                    {
                        spec.insert("clusterIPs".into(), json!([address.to_string()]));
                    }
                }
                Err(error) => {
                    errors.push(error);
                    return;
                }
            }
        }
        if spec
            .get("ipFamilies")
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty)
        {
            spec.insert("ipFamilies".into(), json!(["IPv4"]));
        }
        if spec
            .get("ipFamilyPolicy")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .is_empty()
        {
            spec.insert("ipFamilyPolicy".into(), "SingleStack".into());
        }
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

    fn reserve_ports(&self, service: &mut Object, reserved: &mut Reserved, errors: &mut field::Errors) {
        let kind = service_type(service);
        let balanced = kind == "LoadBalancer";
        let wants = kind == "NodePort"
            || (balanced
                && service
                    .pointer("/spec/allocateLoadBalancerNodePorts")
                    .and_then(Value::as_bool)
                    != Some(false));
        let local = balanced && service.pointer("/spec/externalTrafficPolicy").and_then(Value::as_str) == Some("Local");
        let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
            return;
        };
        let mut taken = lock(&self.taken);
        let at = field::Path::new("spec").child("ports");
        // A number asked for twice (TCP and UDP of one Service) is one reservation.
        for (index, port) in spec
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .enumerate()
        {
            let Some(port) = port.as_object_mut() else { continue };
            let asked = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
            if asked == 0 {
                if !wants {
                    continue;
                }
                match take_free(&mut taken, reserved) {
                    Some(free) => {
                        port.insert("nodePort".into(), free.into());
                    }
                    None => errors.push(field::Error::new(
                        field::Kind::Internal,
                        &at.index(index).child("nodePort"),
                        Value::Null,
                        "failed to allocate a nodePort: range is full",
                    )),
                }
            } else if let Err(why) = take(&mut taken, reserved, asked) {
                errors.push(field::Error::invalid(&at.index(index).child("nodePort"), asked, why));
            }
        }
        if local {
            let asked = spec.get("healthCheckNodePort").and_then(Value::as_i64).unwrap_or(0);
            if asked == 0 {
                if let Some(free) = take_free(&mut taken, reserved) {
                    spec.insert("healthCheckNodePort".into(), free.into());
                }
            } else if let Err(why) = take(&mut taken, reserved, asked) {
                errors.push(field::Error::invalid(
                    &field::Path::new("spec").child("healthCheckNodePort"),
                    asked,
                    why,
                ));
            }
        }
    }
}

fn take(taken: &mut Taken, reserved: &mut Reserved, asked: i64) -> Result<(), String> {
    let (first, last) = taken.node_ports;
    let Some(port) = u16::try_from(asked).ok().filter(|port| (first..=last).contains(port)) else {
        return Err(format!(
            "provided port is not in the valid range. The range of valid ports is {first}-{last}"
        ));
    };
    match taken.ports.get(&port) {
        Some(owner) if *owner != reserved.path => Err("provided port is already allocated".into()),
        Some(_) => Ok(()),
        None => {
            taken.ports.insert(port, reserved.path.clone());
            reserved.new.ports.push(port);
            Ok(())
        }
    }
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
        .find(|port| !taken.ports.contains_key(port))?;
    taken.ports.insert(port, reserved.path.clone());
    reserved.new.ports.push(port);
    Some(port)
}

fn service_type(service: &Object) -> String {
    match service.pointer("/spec/type").and_then(Value::as_str) {
        None | Some("") => "ClusterIP".to_owned(),
        Some(kind) => kind.to_owned(),
    }
}

/// What an update leaves out and the type still needs, or left in and no longer may have.
fn carry_over(new: &mut Object, old: &Object) {
    let (new_type, old_type) = (service_type(new), service_type(old));
    let has_address = |kind: &str| kind != "ExternalName";
    let has_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    let old_spec = old.get("spec").cloned().unwrap_or_default();
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    if has_address(&new_type) && has_address(&old_type) {
        let unset = spec
            .get("clusterIP")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .is_empty()
            && spec
                .get("clusterIPs")
                .and_then(Value::as_array)
                .is_none_or(Vec::is_empty);
        if unset {
            for field in ["clusterIP", "clusterIPs"] {
                if let Some(value) = old_spec.get(field) {
                    spec.insert(field.into(), value.clone());
                }
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if let (None, Some(value)) = (spec.get(field), old_spec.get(field)) {
                spec.insert(field.into(), value.clone());
            }
        }
    }
    if !has_address(&new_type) && has_address(&old_type) {
        // The name of the field was not touched, so it is meant to go with the type.
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if spec.get(field) == old_spec.get(field) {
                spec.remove(field);
            }
        }
    }
    let old_ports: Vec<Value> = old_spec
        .get("ports")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let same = |a: &Value, b: &Value| a.get("port") == b.get("port") && protocol(a) == protocol(b);
    if has_ports(&new_type) && has_ports(&old_type) {
        let used: Vec<Value> = ports(spec).filter_map(|port| port.get("nodePort").cloned()).collect();
        for port in spec
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let unset = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) == 0;
            if unset
                && let Some(known) = old_ports
                    .iter()
                    .find(|known| same(known, port))
                    .and_then(|known| known.get("nodePort"))
                && !used.contains(known)
            {
                port["nodePort"] = known.clone();
            }
        }
    }
    if !has_ports(&new_type) && has_ports(&old_type) {
        for port in spec
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let kept = old_ports
                .iter()
                .any(|known| same(known, port) && known.get("nodePort") == port.get("nodePort"));
            if let (true, Some(port)) = (kept, port.as_object_mut()) {
                port.remove("nodePort");
            }
        }
        for field in [
            "externalTrafficPolicy",
            "healthCheckNodePort",
            "allocateLoadBalancerNodePorts",
        ] {
            if spec.get(field) == old_spec.get(field) {
                spec.remove(field);
            }
        }
    }
    if old_type == "LoadBalancer" && new_type == "NodePort" {
        for field in [
            "healthCheckNodePort",
            "allocateLoadBalancerNodePorts",
            "loadBalancerClass",
        ] {
            if spec.get(field) == old_spec.get(field) {
                spec.remove(field);
            }
        }
    }
}

fn ports(spec: &serde_json::Map<String, Value>) -> impl Iterator<Item = &Value> {
    spec.get("ports").and_then(Value::as_array).into_iter().flatten()
}

fn protocol(port: &Value) -> &str {
    port.get("protocol").and_then(Value::as_str).unwrap_or("TCP")
}
