//! Connection tracking: forgetting UDP flows whose translation is out of date.
//!
//! A UDP "connection" lives as long as packets flow, so a client that keeps sending to a Service would stay with an
//! endpoint that is gone. TCP needs no help: the peer's reset ends the connection.

use std::io;
use std::net::Ipv4Addr;

use super::netlink::{Attrs, DUMP, Message, Socket, attr};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_SRC: u16 = 1;
const IP_DST: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;

/// What one tracked flow looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub protocol: u8,
    /// Where the client sends.
    pub destination: Ipv4Addr,
    pub port: u16,
    /// Who answers: the endpoint after translation.
    pub answers: Ipv4Addr,
}

fn header() -> [u8; 4] {
    [nix::libc::AF_INET as u8, 0, 0, 0]
}

fn address(tuple: &[u8], kind: u16) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = attr(attr(tuple, TUPLE_IP)?, kind)?.try_into().ok()?;
    Some(bytes.into())
}

fn parse(body: &[u8]) -> Option<(Flow, Vec<u8>)> {
    let attrs = body.get(4..)?;
    let (original, reply) = (attr(attrs, TUPLE_ORIG)?, attr(attrs, TUPLE_REPLY)?);
    let proto = attr(original, TUPLE_PROTO)?;
    let flow = Flow {
        protocol: *attr(proto, PROTO_NUM)?.first()?,
        destination: address(original, IP_DST)?,
        port: attr(proto, PROTO_DST_PORT)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u16::from_be_bytes),
        answers: address(reply, IP_SRC)?,
    };
    Some((flow, original.to_vec()))
}

/// Forgets the flows that `stale` names; says how many.
pub fn forget(stale: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let mut socket = Socket::netfilter()?;
    let mut found = Vec::new();
    socket
        .exchange(&[Message::new(GET, DUMP, &header(), Attrs::new())], |_, body| {
            found.extend(parse(body).filter(|(flow, _)| stale(flow)).map(|(_, tuple)| tuple));
        })
        .map_err(|refused| refused.source)?;
    for tuple in &found {
        let message = Message::new(
            DELETE,
            0,
            &header(),
            Attrs::new().nest(TUPLE_ORIG, Attrs(tuple.clone())),
        );
        match socket.request(message) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(found.len())
}
