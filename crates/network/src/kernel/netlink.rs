//! Netlink messages and sockets: just enough encoding for what this crate says to the kernel.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};

pub const REQUEST: u16 = 0x1;
pub const ACK: u16 = 0x4;
pub const DUMP: u16 = 0x300;
/// Create the object; with [`EXCL`], fail if it is there.
pub const CREATE: u16 = 0x400;
pub const EXCL: u16 = 0x200;
/// Take the place of what is there.
pub const REPLACE: u16 = 0x100;
/// Put it last.
pub const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
const HEADER: usize = 16;

const MSG_ERROR: u16 = 2;
const MSG_DONE: u16 = 3;

/// A sequence of attributes being written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attrs(pub Vec<u8>);

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

impl Attrs {
    pub fn new() -> Self {
        Self::default()
    }
    fn put(mut self, kind: u16, payload: &[u8]) -> Self {
        // An attribute's length has 16 bits; callers split what could be longer.
        let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        pad(&mut self.0);
        self
    }
    pub fn bytes(self, kind: u16, payload: &[u8]) -> Self {
        self.put(kind, payload)
    }
    /// A NUL-terminated text.
    pub fn text(self, kind: u16, text: &str) -> Self {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        self.put(kind, &payload)
    }
    pub fn u8(self, kind: u16, value: u8) -> Self {
        self.put(kind, &[value])
    }
    /// In the machine's byte order, as rtnetlink has it.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }
    /// In network byte order, as netfilter has it.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }
    pub fn be64(self, kind: u16, value: u64) -> Self {
        self.put(kind, &value.to_be_bytes())
    }
    pub fn nest(self, kind: u16, inner: Attrs) -> Self {
        self.put(kind | NESTED, &inner.0)
    }
}

/// One message: its type, flags, and body (fixed header and attributes).
#[derive(Clone, Debug)]
pub struct Message {
    pub kind: u16,
    pub flags: u16,
    pub body: Vec<u8>,
}

impl Message {
    pub fn new(kind: u16, flags: u16, header: &[u8], attrs: Attrs) -> Self {
        let mut body = header.to_vec();
        pad(&mut body);
        body.extend_from_slice(&attrs.0);
        Message {
            kind,
            flags: flags | REQUEST,
            body,
        }
    }
    fn write(&self, sequence: u32, out: &mut Vec<u8>) {
        let length = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&self.flags.to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&self.body);
        pad(out);
    }
}

/// Something the kernel refused: which message of a batch, and why.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct Refused {
    /// Index of the message within what was sent.
    pub at: usize,
    pub source: io::Error,
}

impl From<io::Error> for Refused {
    fn from(source: io::Error) -> Self {
        Refused { at: 0, source }
    }
}

/// A socket of one netlink family in the calling thread's network namespace.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }
    pub fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }
    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // Without the privilege the default sizes stay, which do for all but very large batches.
        let _sized = setsockopt(&fd, sockopt::RcvBufForce, &(4 << 20));
        let _sized = setsockopt(&fd, sockopt::SndBufForce, &(16 << 20));
        Ok(Socket { fd, sequence: 1 })
    }

    /// Sends messages as one datagram and waits until the last is acknowledged. The answer to each message that has
    /// one is handed to `each` (its type and body).
    pub fn exchange(&mut self, messages: &[Message], mut each: impl FnMut(u16, &[u8])) -> Result<(), Refused> {
        let Some(count) = u32::try_from(messages.len()).ok().filter(|count| *count > 0) else {
            return Ok(());
        };
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(count);
        let mut out = Vec::new();
        for (message, offset) in messages.iter().zip(0..) {
            message.write(first.wrapping_add(offset), &mut out);
        }
        send(self.fd.as_raw_fd(), &out, MsgFlags::empty()).map_err(io::Error::from)?;
        // A batch of nftables is acknowledged by its last message but the closing one.
        let awaited = messages
            .iter()
            .rposition(|message| message.flags & (ACK | DUMP) != 0)
            .unwrap_or(0);
        let mut buffer = vec![0; 256 * 1024];
        let mut refused = None;
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other.map_err(io::Error::from)?,
            };
            for (kind, sequence, body) in Parsed(buffer.get(..length).unwrap_or_default()) {
                let at = sequence.wrapping_sub(first) as usize;
                if at >= messages.len() {
                    continue; // An answer to something older.
                }
                match kind {
                    MSG_ERROR => {
                        let code = body.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                        if code != 0 && refused.is_none() {
                            refused = Some(Refused {
                                at,
                                source: io::Error::from_raw_os_error(-code),
                            });
                        }
                        // A batch that failed as a whole is refused at its opening message.
                        if at >= awaited || (code != 0 && at == 0) {
                            return refused.map_or(Ok(()), Err);
                        }
                    }
                    MSG_DONE if at >= awaited => return refused.map_or(Ok(()), Err),
                    MSG_DONE => {}
                    kind => each(kind, body),
                }
            }
        }
    }

    /// One message, acknowledged.
    pub fn request(&mut self, mut message: Message) -> io::Result<()> {
        message.flags |= ACK;
        self.exchange(&[message], |_, _| {}).map_err(|refused| refused.source)
    }
}

/// The messages in a datagram: type, sequence, body.
struct Parsed<'a>(&'a [u8]);

impl<'a> Iterator for Parsed<'a> {
    type Item = (u16, u32, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    }
}

/// The messages in a datagram: type and body.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    Parsed(datagram).map(|(kind, _, body)| (kind, body))
}

/// The types of the messages in a datagram.
pub fn kinds(datagram: &[u8]) -> impl Iterator<Item = u16> {
    Parsed(datagram).map(|(kind, ..)| kind)
}

/// The attributes in a body: type without flags, payload.
pub struct ParsedAttrs<'a>(pub &'a [u8]);

impl<'a> Iterator for ParsedAttrs<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// The payload of the named attribute.
pub fn attr(body: &[u8], kind: u16) -> Option<&[u8]> {
    ParsedAttrs(body)
        .find(|(have, _)| *have == kind)
        .map(|(_, payload)| payload)
}

/// A number in the machine's byte order, of as many bytes as a header or an attribute has.
pub fn u32_of(bytes: Option<&[u8]>) -> Option<u32> {
    bytes?.try_into().ok().map(u32::from_ne_bytes)
}

/// An IPv4 address.
pub fn address_of(bytes: Option<&[u8]>) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes?).ok().map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let attrs = Attrs::new().text(3, "ab").u8(4, 7).nest(5, Attrs::new().be32(1, 9));
        assert_eq!(attrs.0.len() % 4, 0);
        assert_eq!(attr(&attrs.0, 3), Some(&b"ab\0"[..]));
        assert_eq!(attr(&attrs.0, 4), Some(&[7][..]));
        assert_eq!(
            attr(&attrs.0, 5).and_then(|inner| attr(inner, 1)),
            Some(&[0, 0, 0, 9][..])
        );
        assert_eq!(attr(&attrs.0, 6), None);
    }

    #[test]
    fn torn_bytes_end_the_reading() {
        for bytes in [&b""[..], &[1], &[4, 0, 1, 0, 9], &[0, 0, 0, 0], &[200, 0, 1, 0, 1]] {
            assert!(ParsedAttrs(bytes).count() <= 1);
            assert_eq!(Parsed(bytes).count(), 0);
        }
    }
}
