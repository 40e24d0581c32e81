//! From what the kernel has to what the plan says, by differences.
//!
//! What is ours is known by marks: routes by their protocol number, the device by its name and kind, the table by its
//! name. So what an earlier process left is found and mended or removed, and nobody else's is touched. An entry that
//! the kernel refuses does not keep the others from being made.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::plan::{DEVICE, Overlay, Own, Peer, Plan, plan};
use super::rules;
use crate::kernel::link::{Link, Links, Mac};
use crate::kernel::neighbour::{Entry, Table};
use crate::kernel::nft::{self, NftError, Transaction};
use crate::kernel::route::Route;
use crate::kernel::sysctl::{self, Remembered};

/// What our routes are marked with (`ip route show proto 83`); nobody else is known to use it.
pub const PROTOCOL: u8 = 83;

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("the network link {DEVICE} exists and is a {0}, not a VXLAN device; remove or rename it")]
    Taken(String),
    #[error(
        "cannot make the VXLAN device {DEVICE}: UDP port {port} or network {vni} is in use by something else; stop it, or give all nodes another port"
    )]
    PortTaken { port: u16, vni: u32 },
    #[error("cannot make the VXLAN device {DEVICE}: the kernel lacks VXLAN support (CONFIG_VXLAN, module vxlan)")]
    Unsupported,
    #[error(transparent)]
    Rules(#[from] NftError),
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> ApplyError {
    let what = what.into();
    move |source| ApplyError::Io { what, source }
}

/// What was applied.
#[derive(Debug, Default)]
pub struct Applied {
    pub plan: Plan,
    /// The VXLAN device's index, where there is one.
    pub device: Option<u32>,
    /// How many routes, neighbours and forwarding entries were added, changed or removed.
    pub changes: usize,
    /// What could not be, by what it was.
    pub problems: Vec<String>,
}

/// Brings the calling thread's network namespace to what the nodes and its own links ask for. `before`: what was
/// applied last.
pub fn sync(own: &Own, nodes: &[Peer], settings: &Remembered, before: &Plan) -> Result<Applied, ApplyError> {
    let mut links = Links::open().map_err(failed("open a netlink socket"))?;
    let have = links.list().map_err(failed("list the network links"))?;
    let plan = plan(own, nodes, &have);
    let mut applied = Applied::default();
    let mut known: BTreeMap<_, _> = have.iter().map(|link| (link.name.clone(), link.index)).collect();
    let routes = links.routes(PROTOCOL).map_err(failed("list routes"))?;
    let (kept, gone): (Vec<_>, Vec<_>) = routes.into_iter().partition(|route| is_wanted(&plan, &known, route));
    for route in gone
        .iter()
        .filter(|route| !plan.routes.contains_key(&route.to) || route.metric.is_some())
    {
        let removed = links.remove_route(PROTOCOL, route);
        applied.note(format!("remove the route to {}", route.to), removed);
    }
    // What routes lead by is there before them, and goes after them.
    let mut stale = Vec::new();
    if let Some(overlay) = &plan.overlay {
        let device = device(&mut links, have.iter().find(|link| link.name == DEVICE), overlay)?;
        known.insert(DEVICE.to_owned(), device);
        applied.device = Some(device);
        stale = entries(&mut links, device, overlay, &mut applied)?;
        let exists = nft::table_exists(rules::TABLE).map_err(failed("look for rules"))?;
        if !exists || before.machines() != plan.machines() {
            rules::sync(own, &plan)?;
        }
    }
    for (to, way) in &plan.routes {
        let Some(link) = known.get(&way.link) else {
            continue;
        };
        let route = Route {
            to: *to,
            link: *link,
            gateway: Some(way.by),
            source: way.source,
            mtu: way.mtu,
            metric: None,
        };
        if kept.contains(&route) {
            continue;
        }
        // In place of ours, at once; beside anybody else's, not at all.
        let ours = gone.iter().any(|old| old.to == *to && old.metric.is_none());
        let put = links
            .put_route(PROTOCOL, &route, ours)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => io::Error::other("somebody else made one; remove it (ip route)"),
                _ => error,
            });
        applied.note(format!("add the route to {to} by {} through {}", way.by, way.link), put);
    }
    match applied.device {
        Some(device) => {
            for (table, entry) in stale {
                let removed = links.remove_entry(table, device, entry);
                applied.note(format!("remove the neighbour {}", entry.address), removed);
            }
        }
        None => remove_device(&mut links, &have)?,
    }
    if let Some(link) = plan.underlay.as_ref().filter(|_| !plan.routes.is_empty()) {
        // Node ports asked for on 127.0.0.1 may lead to Pods on other nodes: packets with that source leave by this
        // link, once they have got its address. The rules of Pods drop what comes from outside with such an address.
        settings
            .set(&format!("net/ipv4/conf/{link}/route_localnet"), "1")
            .map_err(failed("set kernel network settings under /proc/sys/net"))?;
    }
    applied.plan = plan;
    Ok(applied)
}

impl Applied {
    fn note(&mut self, what: String, done: io::Result<()>) {
        match done {
            Ok(()) => self.changes += 1,
            Err(error) => self.problems.push(format!("cannot {what}: {error}")),
        }
    }
}

/// Whether a route is what the plan says.
fn is_wanted(plan: &Plan, known: &BTreeMap<String, u32>, route: &Route) -> bool {
    plan.routes.get(&route.to).is_some_and(|way| {
        known.get(&way.link) == Some(&route.link)
            && (route.gateway, route.source, route.mtu, route.metric) == (Some(way.by), way.source, way.mtu, None)
    })
}

/// Makes the device, or what differs about it anew; its index.
fn device(links: &mut Links, have: Option<&Link>, overlay: &Overlay) -> Result<u32, ApplyError> {
    let same = |link: &Link| link.vxlan.as_ref() == Some(&overlay.device) && link.mac == Some(overlay.mac);
    if let Some(other) = have.filter(|link| link.kind.as_deref() != Some("vxlan")) {
        return Err(ApplyError::Taken(other.kind.clone().unwrap_or_else(|| "device".into())));
    }
    let make = |links: &mut Links| links.add_vxlan(DEVICE, overlay.mac, overlay.mtu, &overlay.device);
    let made = match have {
        Some(link) if same(link) && link.mtu == overlay.mtu => Ok(()),
        Some(link) if same(link) => links.set_mtu(DEVICE, overlay.mtu),
        Some(_) => links.remove(DEVICE).and_then(|()| make(links)),
        None => make(links),
    };
    made.map_err(|error| match error.raw_os_error() {
        Some(nix::libc::EADDRINUSE | nix::libc::EEXIST) => ApplyError::PortTaken {
            port: overlay.device.port,
            vni: overlay.device.vni,
        },
        Some(nix::libc::EOPNOTSUPP) => ApplyError::Unsupported,
        _ => failed(format!("make the VXLAN device {DEVICE}"))(error),
    })?;
    let address = Ipv4Net::from(overlay.address);
    let fresh = !have.is_some_and(|link| same(link) && link.up && link.addresses.contains(&address));
    let mut settle = || -> io::Result<u32> {
        if fresh {
            // IPv4 alone travels here; nothing is to be announced to nobody.
            sysctl::set(&format!("net/ipv6/conf/{DEVICE}/disable_ipv6"), "1")?;
            sysctl::set(&format!("net/ipv4/conf/{DEVICE}/route_localnet"), "1")?;
            sysctl::set(&format!("net/ipv4/conf/{DEVICE}/send_redirects"), "0")?;
            // The larger of this and the machine's setting counts: any source that has a way back will do, since a
            // node's own address comes by the device and is reached without.
            sysctl::set(&format!("net/ipv4/conf/{DEVICE}/rp_filter"), "2")?;
            links.add_address(DEVICE, address)?;
            links.up(DEVICE)?;
        }
        for old in have
            .filter(|link| same(link))
            .into_iter()
            .flat_map(|link| &link.addresses)
        {
            if *old != address {
                links.remove_address(DEVICE, *old)?;
            }
        }
        links.find(DEVICE)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    settle().map_err(failed(format!("set up the VXLAN device {DEVICE}")))
}

/// Adds neighbours and forwarding entries of the device; says which are there that should not be.
fn entries(
    links: &mut Links,
    device: u32,
    overlay: &Overlay,
    applied: &mut Applied,
) -> Result<Vec<(Table, Entry)>, ApplyError> {
    let entry = |mac, address| Entry { mac, address };
    let neighbours = overlay.neighbours.iter().map(|(address, mac)| entry(*mac, *address));
    let forwarding = overlay.forwarding.iter().map(|(mac, address)| entry(*mac, *address));
    let wanted: [(Table, Vec<Entry>); 2] = [
        (Table::Forwarding, forwarding.collect()),
        (Table::Neighbours, neighbours.collect()),
    ];
    let mut stale = Vec::new();
    for (table, wanted) in wanted {
        let have = links
            .entries(table, device)
            .map_err(failed(format!("list the neighbours of {DEVICE}")))?;
        let have: BTreeSet<Entry> = have.into_iter().collect();
        for new in wanted.iter().filter(|entry| !have.contains(entry)) {
            let put = links.put_entry(table, device, *new);
            applied.note(format!("add the neighbour {}", new.address), put);
        }
        // An entry of a key that stays has been replaced.
        let keys: BTreeSet<_> = wanted.iter().map(|entry| key(table, entry)).collect();
        let gone = have.into_iter().filter(|entry| !keys.contains(&key(table, entry)));
        stale.extend(gone.map(|entry| (table, entry)));
    }
    Ok(stale)
}

/// What an entry is found by.
fn key(table: Table, entry: &Entry) -> (Option<Ipv4Addr>, Option<Mac>) {
    match table {
        Table::Neighbours => (Some(entry.address), None),
        Table::Forwarding => (None, Some(entry.mac)),
    }
}

/// Removes the device and its rules, if they are there. A link of that name that is no VXLAN device is not ours.
fn remove_device(links: &mut Links, have: &[Link]) -> Result<(), ApplyError> {
    let ours = |link: &&Link| link.name == DEVICE && link.kind.as_deref() == Some("vxlan");
    if have.iter().any(|link| ours(&link)) {
        links.remove(DEVICE).map_err(failed(format!("remove {DEVICE}")))?;
    }
    if nft::table_exists(rules::TABLE).map_err(failed("look for rules"))? {
        let mut transaction = Transaction::new(rules::TABLE);
        transaction.drop_table();
        transaction.commit()?;
    }
    Ok(())
}

/// Removes everything there may be.
pub fn remove_all() -> Result<(), ApplyError> {
    let mut links = Links::open().map_err(failed("open a netlink socket"))?;
    for route in links.routes(PROTOCOL).map_err(failed("list routes"))? {
        links
            .remove_route(PROTOCOL, &route)
            .map_err(failed(format!("remove the route to {}", route.to)))?;
    }
    let have = links.list().map_err(failed("list the network links"))?;
    remove_device(&mut links, &have)
}
