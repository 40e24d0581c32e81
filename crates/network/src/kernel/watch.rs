//! Noticing what others do: rules removed (a reload of the machine's firewall commonly flushes everything), links,
//! addresses and routes that come and go.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use ipnet::Ipv4Net;

use super::link::{DELADDR, DELLINK, IFLA_IFNAME, NEWADDR, NEWLINK};
use super::nft::Family;
use super::{neighbour, netlink, nft, route};
use crate::host::Host;

/// The multicast group of nftables' changes, as a bit.
const NFTABLES_GROUP: u32 = 1 << 6;

/// Hands a socket to tokio.
#[allow(unsafe_code)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, so it stays open and the same for as long as the `AsyncFd` has it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Says when a table is gone.
pub struct TableWatch {
    fd: AsyncFd<OwnedFd>,
    host: Host,
    family: Family,
    table: &'static str,
    /// A table's removal was heard of, and ours not looked for yet: who waits may stop waiting in between.
    unsure: AtomicBool,
}

/// A socket that hears of what the groups tell.
fn listen(host: &Host, protocol: SockProtocol, groups: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let open = || -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(fd)
    };
    register(host.run(open)??)
}

/// Waits for datagrams and says whether `relevant` says so of any of them.
async fn heard(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8], relevant: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
    let mut ready = fd.readable().await?;
    let mut found = false;
    loop {
        match recv(fd.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(length) => found |= relevant(buffer.get(..length).unwrap_or_default()),
            Err(Errno::EAGAIN) => break,
            // More happened than fits the buffer: it may have been among it.
            Err(Errno::ENOBUFS) => found = true,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ready.clear_ready();
    Ok(found)
}

impl TableWatch {
    pub fn open(host: &Host, table: &'static str) -> io::Result<Self> {
        Self::open_in(host, Family::Ipv4, table)
    }

    pub fn open_in(host: &Host, family: Family, table: &'static str) -> io::Result<Self> {
        let fd = listen(host, SockProtocol::NetlinkNetFilter, NFTABLES_GROUP)?;
        Ok(TableWatch {
            fd,
            host: host.clone(),
            family,
            table,
            unsure: AtomicBool::new(false),
        })
    }

    /// Resolves when the table is not there. What we do to it ourselves in one transaction (remove and make anew) is
    /// over by the time it is looked for.
    pub async fn gone(&self) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if !self.unsure.load(Ordering::Relaxed) {
                let is_removal = |datagram: &[u8]| netlink::kinds(datagram).any(nft::is_table_removal);
                let removed = heard(&self.fd, &mut buffer, is_removal).await?;
                self.unsure.store(removed, Ordering::Relaxed);
                continue;
            }
            let (host, family, table) = (self.host.clone(), self.family, self.table);
            let looked = tokio::task::spawn_blocking(move || host.run(|| nft::table_exists_in(family, table)));
            let exists = looked.await.map_err(io::Error::other)???;
            self.unsure.store(false, Ordering::Relaxed);
            if !exists {
                return Ok(());
            }
        }
    }
}

/// The multicast groups of links, neighbours, IPv4 addresses and IPv4 routes, as bits.
const ROUTING_GROUPS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6;

/// Something that happened to how packets find their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link came, went, or changed.
    Link(String),
    /// A link got or lost an address.
    Address,
    RouteGone {
        protocol: u8,
        to: Ipv4Net,
    },
    /// An entry of a link's neighbours or forwarding table went.
    NeighbourGone {
        link: u32,
    },
}

fn event(kind: u16, body: &[u8]) -> Option<Event> {
    match kind {
        NEWLINK | DELLINK => {
            let name = netlink::attr(body.get(16..)?, IFLA_IFNAME)?;
            Some(Event::Link(
                String::from_utf8_lossy(name).trim_end_matches('\0').to_owned(),
            ))
        }
        NEWADDR | DELADDR => Some(Event::Address),
        route::DELROUTE => route::parse_event(body).map(|(protocol, to)| Event::RouteGone { protocol, to }),
        neighbour::DELNEIGH => neighbour::link_of(body).map(|link| Event::NeighbourGone { link }),
        _ => None,
    }
}

/// Hears of links, addresses, routes and neighbours.
pub struct RoutingWatch(AsyncFd<OwnedFd>);

impl RoutingWatch {
    pub fn open(host: &Host) -> io::Result<Self> {
        listen(host, SockProtocol::NetlinkRoute, ROUTING_GROUPS).map(RoutingWatch)
    }

    /// Resolves when something `relevant` happened since the last time.
    pub async fn changed(&self, relevant: impl Fn(&Event) -> bool) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        let is_relevant = |datagram: &[u8]| {
            let mut events = netlink::messages(datagram).filter_map(|(kind, body)| event(kind, body));
            events.any(|event| relevant(&event))
        };
        while !heard(&self.0, &mut buffer, is_relevant).await? {}
        Ok(())
    }
}
