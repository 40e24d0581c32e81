//! Links, addresses and routes through rtnetlink.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;

use ipnet::Ipv4Net;

use super::netlink::{Attrs, CREATE, DUMP, EXCL, Message, Socket, address_of, attr, u32_of};
use super::vxlan::{self, Vxlan};

pub(super) const NEWLINK: u16 = 16;
pub(super) const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
pub(super) const NEWADDR: u16 = 20;
pub(super) const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
pub(super) const NEWROUTE: u16 = 24;
pub(super) const GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const BRPORT_HAIRPIN: u16 = 4;
const BRPORT_LEARNING: u16 = 8;
const BRPORT_FLOOD: u16 = 9;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 0x1;
const IFF_BROADCAST: u32 = 0x2;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_POINT_TO_POINT: u32 = 0x10;
const IFF_NO_ARP: u32 = 0x80;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
pub(super) const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
pub(super) const RTA_GATEWAY: u16 = 5;
pub(super) const RTA_PRIORITY: u16 = 6;
pub(super) const RTA_PREFSRC: u16 = 7;

pub(super) const SCOPE_LINK: u8 = 253;
pub(super) const SCOPE_UNIVERSE: u8 = 0;

pub type Mac = [u8; 6];

/// `0a:58` and the address, as bridges of Kubernetes nodes have long had it: one address, one MAC.
pub fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// `0a:58:0a:f4:00:02`
pub fn show_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A link as the kernel tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub up: bool,
    /// Neighbours are asked for their hardware address: Ethernet and its like, no tunnel.
    pub broadcast: bool,
    pub loopback: bool,
    pub mac: Option<Mac>,
    pub kind: Option<String>,
    /// What a VXLAN device is like.
    pub vxlan: Option<Vxlan>,
    pub addresses: Vec<Ipv4Net>,
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let (index, flags) = (u32_of(body.get(4..8))?, u32_of(body.get(8..12))?);
    let attrs = body.get(16..)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    let info = attr(attrs, IFLA_LINKINFO);
    let kind = info.and_then(|info| attr(info, IFLA_INFO_KIND)).map(text);
    let data = info.and_then(|info| attr(info, IFLA_INFO_DATA));
    Some(Link {
        index,
        name: text(attr(attrs, IFLA_IFNAME)?),
        mtu: u32_of(attr(attrs, IFLA_MTU)).unwrap_or_default(),
        up: flags & IFF_UP != 0,
        broadcast: flags & IFF_BROADCAST != 0 && flags & (IFF_POINT_TO_POINT | IFF_NO_ARP) == 0,
        loopback: flags & IFF_LOOPBACK != 0,
        mac: attr(attrs, IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()),
        vxlan: data.filter(|_| kind.as_deref() == Some("vxlan")).and_then(vxlan::parse),
        kind,
        addresses: Vec::new(),
    })
}

/// A link's index and one of its addresses.
fn parse_address(body: &[u8]) -> Option<(u32, Ipv4Net)> {
    let (family, length) = (*body.first()?, *body.get(1)?);
    let attrs = body.get(8..)?;
    // Where both ends of a link have an address, the second is the other end's.
    let address = address_of(attr(attrs, IFA_LOCAL)).or(address_of(attr(attrs, IFA_ADDRESS)))?;
    let own_network = address_of(attr(attrs, IFA_ADDRESS)).is_none_or(|network| network == address);
    let net = Ipv4Net::new(address, if own_network { length } else { 32 }).ok()?;
    (family == nix::libc::AF_INET as u8).then_some((u32_of(body.get(4..8))?, net))
}

/// Links of the calling thread's network namespace.
pub struct Links(pub(super) Socket);

fn ifinfo(index: u32, up: bool) -> Vec<u8> {
    let flags = if up { IFF_UP } else { 0 };
    [
        &[0; 4][..],
        &index.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &flags.to_ne_bytes(),
    ]
    .concat()
}

fn exists(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

impl Links {
    pub fn open() -> io::Result<Self> {
        Socket::route().map(Links)
    }

    /// The index of a link, if it is there.
    pub fn find(&mut self, name: &str) -> io::Result<Option<u32>> {
        let message = Message::new(
            GETLINK,
            super::netlink::ACK,
            &ifinfo(0, false),
            Attrs::new().text(IFLA_IFNAME, name),
        );
        let mut index = None;
        let asked = self.0.exchange(&[message], |_, body| {
            index = body
                .get(4..8)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u32::from_ne_bytes);
        });
        match asked {
            Ok(()) => Ok(index),
            Err(refused) if refused.source.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            Err(refused) => Err(refused.source),
        }
    }

    fn index(&mut self, name: &str) -> io::Result<u32> {
        self.find(name)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no network link {name}")))
    }

    /// The kind of a link (`bridge`, `veth`), when it says.
    pub fn kind(&mut self, name: &str) -> io::Result<Option<String>> {
        let message = Message::new(
            GETLINK,
            super::netlink::ACK,
            &ifinfo(0, false),
            Attrs::new().text(IFLA_IFNAME, name),
        );
        let mut kind = None;
        self.0
            .exchange(&[message], |_, body| {
                let info = body.get(16..).and_then(|attrs| attr(attrs, IFLA_LINKINFO));
                kind = info
                    .and_then(|info| attr(info, IFLA_INFO_KIND))
                    .map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
            })
            .map_err(|refused| refused.source)?;
        Ok(kind)
    }

    /// All links with their IPv4 addresses.
    pub fn list(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        let message = Message::new(GETLINK, DUMP, &ifinfo(0, false), Attrs::new());
        self.0
            .exchange(&[message], |_, body| links.extend(parse_link(body)))
            .map_err(|refused| refused.source)?;
        let header = [nix::libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0];
        let message = Message::new(GETADDR, DUMP, &header, Attrs::new());
        let mut addresses = Vec::new();
        self.0
            .exchange(&[message], |_, body| addresses.extend(parse_address(body)))
            .map_err(|refused| refused.source)?;
        for link in &mut links {
            let own = addresses.iter().filter(|(index, _)| *index == link.index);
            link.addresses = own.map(|(_, address)| *address).collect();
        }
        Ok(links)
    }

    /// Makes a VXLAN device, down.
    pub fn add_vxlan(&mut self, name: &str, mac: Mac, mtu: u32, device: &Vxlan) -> io::Result<()> {
        let info = Attrs::new()
            .text(IFLA_INFO_KIND, "vxlan")
            .nest(IFLA_INFO_DATA, vxlan::attrs(device));
        let attrs = Attrs::new()
            .text(IFLA_IFNAME, name)
            .bytes(IFLA_ADDRESS, &mac)
            .u32(IFLA_MTU, mtu)
            .nest(IFLA_LINKINFO, info);
        self.0
            .request(Message::new(NEWLINK, CREATE | EXCL, &ifinfo(0, false), attrs))
    }

    /// Says how long packets through a link may be.
    pub fn set_mtu(&mut self, name: &str, mtu: u32) -> io::Result<()> {
        let index = self.index(name)?;
        let attrs = Attrs::new().u32(IFLA_MTU, mtu);
        // Neither up nor down: no flag is changed.
        self.0.request(Message::new(NEWLINK, 0, &ifinfo(index, false), attrs))
    }

    /// Takes an address from a link.
    pub fn remove_address(&mut self, name: &str, address: Ipv4Net) -> io::Result<()> {
        let index = self.index(name)?;
        let header = [
            &[nix::libc::AF_INET as u8, address.prefix_len(), 0, SCOPE_UNIVERSE][..],
            &index.to_ne_bytes(),
        ]
        .concat();
        let attrs = Attrs::new().bytes(IFA_LOCAL, &address.addr().octets());
        self.0.request(Message::new(DELADDR, 0, &header, attrs))
    }

    /// Makes a bridge unless it is there.
    pub fn add_bridge(&mut self, name: &str, mac: Mac) -> io::Result<()> {
        let attrs = Attrs::new()
            .text(IFLA_IFNAME, name)
            .bytes(IFLA_ADDRESS, &mac)
            .nest(IFLA_LINKINFO, Attrs::new().text(IFLA_INFO_KIND, "bridge"));
        exists(
            self.0
                .request(Message::new(NEWLINK, CREATE | EXCL, &ifinfo(0, false), attrs)),
        )?;
        match self.kind(name)?.as_deref() {
            Some("bridge") => Ok(()),
            other => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "the network link {name} exists and is a {}, not a bridge; remove or rename it",
                    other.unwrap_or("device")
                ),
            )),
        }
    }

    /// Makes a veth pair: `name` here, up; `eth0` in the namespace at `netns`.
    pub fn add_pair(&mut self, name: &str, netns: &Path, mac: Mac, mtu: Option<u32>) -> io::Result<()> {
        let namespace = File::open(netns)?;
        let with_mtu = |attrs: Attrs| match mtu {
            Some(mtu) => attrs.u32(IFLA_MTU, mtu),
            None => attrs,
        };
        let peer = Attrs::new()
            .text(IFLA_IFNAME, "eth0")
            .bytes(IFLA_ADDRESS, &mac)
            .bytes(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        let peer = [ifinfo(0, false), with_mtu(peer).0].concat();
        let data = Attrs::new().bytes(VETH_INFO_PEER, &peer);
        let attrs = Attrs::new().text(IFLA_IFNAME, name).nest(
            IFLA_LINKINFO,
            Attrs::new().text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, data),
        );
        self.0
            .request(Message::new(NEWLINK, CREATE | EXCL, &ifinfo(0, false), with_mtu(attrs)))?;
        self.up(name)
    }

    /// Makes a link a port of a bridge that may send back where it received (hairpin): where the bridge calls
    /// netfilter, a Pod that is sent to itself goes that way.
    pub fn attach(&mut self, name: &str, bridge: &str) -> io::Result<()> {
        let (index, master) = (self.index(name)?, self.index(bridge)?);
        let attrs = Attrs::new().u32(IFLA_MASTER, master);
        self.0.request(Message::new(NEWLINK, 0, &ifinfo(index, true), attrs))?;
        self.set_port(index, Attrs::new().u8(BRPORT_HAIRPIN, 1))
    }

    /// Behind a bridge's port is who has the hardware address and nobody else: nothing is learned of what comes from
    /// there, and it gets nothing that is for others.
    pub fn pin(&mut self, name: &str, mac: Mac) -> io::Result<()> {
        let index = self.index(name)?;
        self.put_behind(index, mac)?;
        self.set_port(index, Attrs::new().u8(BRPORT_LEARNING, 0).u8(BRPORT_FLOOD, 0))
    }

    fn set_port(&mut self, index: u32, settings: Attrs) -> io::Result<()> {
        let port = Attrs::new()
            .text(IFLA_INFO_SLAVE_KIND, "bridge")
            .nest(IFLA_INFO_SLAVE_DATA, settings);
        let attrs = Attrs::new().nest(IFLA_LINKINFO, port);
        self.0.request(Message::new(NEWLINK, 0, &ifinfo(index, true), attrs))
    }

    /// A link's hardware address.
    pub fn mac(&mut self, name: &str) -> io::Result<Mac> {
        let link = self.list()?.into_iter().find(|link| link.name == name);
        link.and_then(|link| link.mac)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{name} has no hardware address")))
    }

    pub fn up(&mut self, name: &str) -> io::Result<()> {
        let index = self.index(name)?;
        self.0
            .request(Message::new(NEWLINK, 0, &ifinfo(index, true), Attrs::new()))
    }

    /// Puts a link up or down.
    #[cfg(test)]
    pub fn set_up(&mut self, name: &str, up: bool) -> io::Result<()> {
        let index = self.index(name)?;
        let flags = if up { IFF_UP } else { 0 };
        let header = [
            &[0; 4][..],
            &index.to_ne_bytes(),
            &flags.to_ne_bytes(),
            &IFF_UP.to_ne_bytes(),
        ]
        .concat();
        self.0.request(Message::new(NEWLINK, 0, &header, Attrs::new()))
    }

    /// Removes a link; none of that name is no error.
    pub fn remove(&mut self, name: &str) -> io::Result<()> {
        let Some(index) = self.find(name)? else {
            return Ok(());
        };
        match self
            .0
            .request(Message::new(DELLINK, 0, &ifinfo(index, false), Attrs::new()))
        {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Gives a link an address unless it has it.
    pub fn add_address(&mut self, name: &str, address: Ipv4Net) -> io::Result<()> {
        let index = self.index(name)?;
        let header = [
            &[nix::libc::AF_INET as u8, address.prefix_len(), 0, SCOPE_UNIVERSE][..],
            &index.to_ne_bytes(),
        ]
        .concat();
        let octets = address.addr().octets();
        let attrs = Attrs::new().bytes(IFA_LOCAL, &octets).bytes(IFA_ADDRESS, &octets);
        exists(self.0.request(Message::new(NEWADDR, CREATE | EXCL, &header, attrs)))
    }

    /// Adds a route unless it is there: to the network, through the link, by the gateway if given.
    pub fn add_route(
        &mut self,
        link: &str,
        to: Ipv4Net,
        gateway: Option<Ipv4Addr>,
        source: Option<Ipv4Addr>,
        metric: Option<u32>,
    ) -> io::Result<()> {
        let index = self.index(link)?;
        let scope = if gateway.is_some() { SCOPE_UNIVERSE } else { SCOPE_LINK };
        let (main_table, by_administrator, unicast) = (254, 4, 1);
        let header = [
            nix::libc::AF_INET as u8,
            to.prefix_len(),
            0,
            0,
            main_table,
            by_administrator,
            scope,
            unicast,
            0,
            0,
            0,
            0,
        ];
        let mut attrs = Attrs::new().u32(RTA_OIF, index);
        if to.prefix_len() > 0 {
            attrs = attrs.bytes(RTA_DST, &to.network().octets());
        }
        if let Some(gateway) = gateway {
            attrs = attrs.bytes(RTA_GATEWAY, &gateway.octets());
        }
        if let Some(source) = source {
            attrs = attrs.bytes(RTA_PREFSRC, &source.octets());
        }
        if let Some(metric) = metric {
            attrs = attrs.u32(RTA_PRIORITY, metric);
        }
        exists(self.0.request(Message::new(NEWROUTE, CREATE | EXCL, &header, attrs)))
    }

    /// Whether packets to the address have somewhere to go.
    pub fn reaches(&mut self, address: Ipv4Addr) -> bool {
        let header = [nix::libc::AF_INET as u8, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let message = Message::new(
            GETROUTE,
            super::netlink::ACK,
            &header,
            Attrs::new().bytes(RTA_DST, &address.octets()),
        );
        self.0.exchange(&[message], |_, _| {}).is_ok()
    }
}
