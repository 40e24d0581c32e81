//! VXLAN devices: Ethernet frames in UDP datagrams between nodes.

use std::net::Ipv4Addr;

use super::netlink::{Attrs, address_of, attr, u32_of};

const ID: u16 = 1;
const GROUP: u16 = 2;
const LOCAL: u16 = 4;
const LEARNING: u16 = 7;
const PORT: u16 = 15;

/// What a device is like from its making to its end: to change any of it is to make another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The number of the virtual network, on all nodes the same.
    pub vni: u32,
    /// The UDP port, on all nodes the same.
    pub port: u16,
    /// The machine's address datagrams come from; `None`: by the route to each.
    pub local: Option<Ipv4Addr>,
    /// Whether it believes what frames say about where machines are.
    pub learning: bool,
}

pub(super) fn attrs(device: &Vxlan) -> Attrs {
    let attrs = Attrs::new()
        .u32(ID, device.vni)
        .u8(LEARNING, u8::from(device.learning))
        .bytes(PORT, &device.port.to_be_bytes());
    match device.local {
        Some(local) => attrs.bytes(LOCAL, &local.octets()),
        None => attrs,
    }
}

/// `None` for one that is not of our making, such as one with a multicast group.
pub(super) fn parse(data: &[u8]) -> Option<Vxlan> {
    if attr(data, GROUP).is_some() {
        return None;
    }
    Some(Vxlan {
        vni: u32_of(attr(data, ID))?,
        port: attr(data, PORT)?.try_into().ok().map(u16::from_be_bytes)?,
        local: address_of(attr(data, LOCAL)).filter(|local| !local.is_unspecified()),
        learning: attr(data, LEARNING)?.first().is_some_and(|on| *on != 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_back_as_it_was_written() {
        for local in [None, Some(Ipv4Addr::new(192, 0, 2, 1))] {
            let device = Vxlan {
                vni: 7,
                port: 4789,
                local,
                learning: false,
            };
            assert_eq!(parse(&attrs(&device).0), Some(device));
        }
        assert_eq!(parse(&[]), None);
    }
}
