//! Routes with a mark of who made them, so that they can be told from everybody else's.

use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::link::{
    GETROUTE, Links, NEWROUTE, RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, SCOPE_UNIVERSE,
};
use super::netlink::{Attrs, CREATE, DUMP, EXCL, Message, REPLACE, address_of, attr, u32_of};

pub(super) const DELROUTE: u16 = 25;

const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const MAIN_TABLE: u8 = 254;
const UNICAST: u8 = 1;
/// The gateway is on the link whether or not an address of the link says so.
const ON_LINK: u32 = 4;

/// A route by a gateway that is on the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub to: Ipv4Net,
    /// The link's index.
    pub link: u32,
    pub gateway: Option<Ipv4Addr>,
    /// The source of packets of this machine that have none yet.
    pub source: Option<Ipv4Addr>,
    /// How long packets may be, where it is less than the link says.
    pub mtu: Option<u32>,
    pub metric: Option<u32>,
}

fn header(to: Ipv4Net, protocol: u8, flags: u32) -> Vec<u8> {
    let fixed = [
        nix::libc::AF_INET as u8,
        to.prefix_len(),
        0,
        0,
        MAIN_TABLE,
        protocol,
        SCOPE_UNIVERSE,
        UNICAST,
    ];
    [&fixed[..], &flags.to_ne_bytes()].concat()
}

/// What an event about a route tells: who made it, and where it leads.
pub(super) fn parse_event(body: &[u8]) -> Option<(u8, Ipv4Net)> {
    let (length, table, protocol) = (*body.get(1)?, *body.get(4)?, *body.get(5)?);
    let to = address_of(attr(body.get(12..)?, RTA_DST)).unwrap_or(Ipv4Addr::UNSPECIFIED);
    let is_ours_to_know = *body.first()? == nix::libc::AF_INET as u8 && table == MAIN_TABLE;
    is_ours_to_know.then_some((protocol, Ipv4Net::new(to, length).ok()?))
}

fn parse(body: &[u8]) -> Option<(u8, Route)> {
    let (protocol, to) = parse_event(body)?;
    let attrs = body.get(12..)?;
    let in_main = u32_of(attr(attrs, RTA_TABLE)).is_none_or(|table| table == u32::from(MAIN_TABLE));
    let mtu = attr(attrs, RTA_METRICS).and_then(|metrics| u32_of(attr(metrics, RTAX_MTU)));
    let route = Route {
        to,
        link: u32_of(attr(attrs, RTA_OIF))?,
        gateway: address_of(attr(attrs, RTA_GATEWAY)),
        source: address_of(attr(attrs, RTA_PREFSRC)),
        mtu,
        metric: u32_of(attr(attrs, RTA_PRIORITY)).filter(|metric| *metric > 0),
    };
    in_main.then_some((protocol, route))
}

impl Links {
    /// The routes of the main table that `protocol` made.
    pub fn routes(&mut self, protocol: u8) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        let every = header(Ipv4Net::default(), 0, 0);
        self.0
            .exchange(&[Message::new(GETROUTE, DUMP, &every, Attrs::new())], |_, body| {
                let made = parse(body).filter(|(by, _)| *by == protocol);
                routes.extend(made.map(|(_, route)| route));
            })
            .map_err(|refused| refused.source)?;
        Ok(routes)
    }

    /// Adds a route; with `replace` it takes the place of the one to the same network, without it that is an error.
    pub fn put_route(&mut self, protocol: u8, route: &Route, replace: bool) -> io::Result<()> {
        let flags = CREATE | if replace { REPLACE } else { EXCL };
        self.0.request(message(NEWROUTE, flags, protocol, route))
    }

    /// Removes a route; one that is gone is no error.
    pub fn remove_route(&mut self, protocol: u8, route: &Route) -> io::Result<()> {
        match self.0.request(message(DELROUTE, 0, protocol, route)) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
            other => other,
        }
    }
}

fn message(kind: u16, flags: u16, protocol: u8, route: &Route) -> Message {
    let mut attrs = Attrs::new()
        .bytes(RTA_DST, &route.to.network().octets())
        .u32(RTA_OIF, route.link);
    if let Some(gateway) = route.gateway {
        attrs = attrs.bytes(RTA_GATEWAY, &gateway.octets());
    }
    if let Some(source) = route.source {
        attrs = attrs.bytes(RTA_PREFSRC, &source.octets());
    }
    if let Some(metric) = route.metric {
        attrs = attrs.u32(RTA_PRIORITY, metric);
    }
    if let Some(mtu) = route.mtu {
        attrs = attrs.nest(RTA_METRICS, Attrs::new().u32(RTAX_MTU, mtu));
    }
    let on_link = if route.gateway.is_some() { ON_LINK } else { 0 };
    Message::new(kind, flags, &header(route.to, protocol, on_link), attrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_read_back_as_it_was_written() {
        let route = Route {
            to: "10.244.1.0/24".parse().unwrap(),
            link: 7,
            gateway: Some(Ipv4Addr::new(192, 0, 2, 1)),
            source: Some(Ipv4Addr::new(10, 244, 0, 1)),
            mtu: Some(1450),
            metric: None,
        };
        assert_eq!(parse(&message(NEWROUTE, 0, 83, &route).body), Some((83, route)));
        for length in 0..12 {
            assert_eq!(parse(&vec![2; length]), None);
        }
    }
}
