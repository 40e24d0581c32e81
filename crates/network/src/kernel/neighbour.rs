//! Neighbours that are told to the kernel instead of asked for: who has an address (ARP), and behind which machine a
//! hardware address is (the forwarding table of a VXLAN device).

use std::io;
use std::net::Ipv4Addr;

use super::link::{Links, Mac};
use super::netlink::{Attrs, CREATE, DUMP, Message, REPLACE, address_of, attr, u32_of};

const NEWNEIGH: u16 = 28;
pub(super) const DELNEIGH: u16 = 29;
const GETNEIGH: u16 = 30;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const PERMANENT: u16 = 0x80;
/// The entry is the device's own, not a bridge's it may be a port of.
const SELF: u8 = 2;
/// The entry is that of the bridge the device is a port of.
const MASTER: u8 = 4;
const NO_ARP: u16 = 0x40;

/// The two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Address → hardware address.
    Neighbours,
    /// Hardware address → machine.
    Forwarding,
}

impl Table {
    fn family(self) -> u8 {
        match self {
            Table::Neighbours => nix::libc::AF_INET as u8,
            Table::Forwarding => nix::libc::AF_BRIDGE as u8,
        }
    }
}

/// An entry of either table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub mac: Mac,
    pub address: Ipv4Addr,
}

fn header(table: Table, link: u32) -> Vec<u8> {
    let flags = if table == Table::Forwarding { SELF } else { 0 };
    [
        &[table.family(), 0, 0, 0][..],
        &link.to_ne_bytes(),
        &PERMANENT.to_ne_bytes(),
        &[flags, 0],
    ]
    .concat()
}

fn message(kind: u16, flags: u16, table: Table, link: u32, entry: Entry) -> Message {
    let attrs = Attrs::new()
        .bytes(NDA_DST, &entry.address.octets())
        .bytes(NDA_LLADDR, &entry.mac);
    Message::new(kind, flags, &header(table, link), attrs)
}

/// The link an event about a neighbour is of.
pub(super) fn link_of(body: &[u8]) -> Option<u32> {
    u32_of(body.get(4..8))
}

fn parse(body: &[u8], table: Table, link: u32) -> Option<Entry> {
    let state = u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?);
    let attrs = body.get(12..)?;
    let entry = Entry {
        mac: attr(attrs, NDA_LLADDR)?.try_into().ok()?,
        address: address_of(attr(attrs, NDA_DST))?,
    };
    let is_meant = *body.first()? == table.family() && link_of(body) == Some(link) && state & PERMANENT != 0;
    is_meant.then_some(entry)
}

impl Links {
    /// The permanent entries of a link.
    pub fn entries(&mut self, table: Table, link: u32) -> io::Result<Vec<Entry>> {
        // The forwarding tables are asked for by the longer header of links, which names the device.
        let mut ask = vec![table.family(), 0, 0, 0];
        ask.extend(link.to_ne_bytes());
        ask.resize(if table == Table::Forwarding { 16 } else { 12 }, 0);
        let mut entries = Vec::new();
        self.0
            .exchange(&[Message::new(GETNEIGH, DUMP, &ask, Attrs::new())], |_, body| {
                entries.extend(parse(body, table, link));
            })
            .map_err(|refused| refused.source)?;
        Ok(entries)
    }

    /// Adds an entry, in place of one with the same key.
    pub fn put_entry(&mut self, table: Table, link: u32, entry: Entry) -> io::Result<()> {
        self.0.request(message(NEWNEIGH, CREATE | REPLACE, table, link, entry))
    }

    /// Says which hardware address is behind a bridge's port, for good. It goes with the port.
    pub fn put_behind(&mut self, port: u32, mac: Mac) -> io::Result<()> {
        let header = [
            &[nix::libc::AF_BRIDGE as u8, 0, 0, 0][..],
            &port.to_ne_bytes(),
            &NO_ARP.to_ne_bytes(),
            &[MASTER, 0],
        ]
        .concat();
        let attrs = Attrs::new().bytes(NDA_LLADDR, &mac);
        self.0.request(Message::new(NEWNEIGH, CREATE | REPLACE, &header, attrs))
    }

    /// Removes an entry; one that is gone is no error.
    pub fn remove_entry(&mut self, table: Table, link: u32, entry: Entry) -> io::Result<()> {
        match self.0.request(message(DELNEIGH, 0, table, link, entry)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_back_by_table_and_link() {
        let entry = Entry {
            mac: [2, 0, 0, 0, 0, 1],
            address: Ipv4Addr::new(192, 0, 2, 1),
        };
        let body = message(NEWNEIGH, 0, Table::Forwarding, 7, entry).body;
        assert_eq!(parse(&body, Table::Forwarding, 7), Some(entry));
        assert_eq!(parse(&body, Table::Forwarding, 8), None);
        assert_eq!(parse(&body, Table::Neighbours, 7), None);
        assert_eq!(parse(&body[..10], Table::Forwarding, 7), None);
    }
}
