//! nftables over netlink: transactions of tables, chains, rules, sets and maps.
//!
//! Only the expressions this crate's rules are made of. A [`Transaction`] is applied as a whole or not at all.
//! Registers are the 32-bit ones, counted from 0.

use std::io;
use std::net::Ipv4Addr;

use super::link::Mac;
use super::netlink::{ACK, APPEND, Attrs, CREATE, Message, REQUEST, Refused, Socket};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

/// Which packets a table is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4 = 2,
    /// Frames that arrive at bridges' ports.
    Bridge = 7,
}

const SET_ANONYMOUS: u32 = 0x1;
const SET_CONSTANT: u32 = 0x2;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const ELEMENT_INTERVAL_END: u32 = 0x1;
const DATA_VERDICT: u32 = 0xffff_ff00;
/// The first 32-bit register, as messages number it.
const REG0: u32 = 8;
const REG_VERDICT: u32 = 0;
/// Elements per message: an attribute holds 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 256;

/// How the `nft` tool is to show keys and data; the kernel does not care.
pub mod show {
    pub const ADDRESS: u32 = 7;
    pub const PROTOCOL: u32 = 12;
    pub const PORT: u32 = 13;
    pub const HARDWARE: u32 = 9;
    pub const LINK: u32 = 41;
    pub const NUMBER: u32 = 4;
    /// A concatenation.
    pub const fn all(parts: &[u32]) -> u32 {
        let (mut sum, mut at) = (0, 0);
        while at < parts.len() {
            sum = sum << 6 | parts[at];
            at += 1;
        }
        sum
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Drop,
    /// Ends the hook's chain; others of the hook still see the packet.
    Accept,
    /// Comes back when the chain ends.
    Jump(String),
    Goto(String),
}

impl Verdict {
    fn attrs(&self) -> Attrs {
        let (drop, accept, jump, goto) = (0, 1, (-3i32).cast_unsigned(), (-4i32).cast_unsigned());
        let verdict = match self {
            Verdict::Drop => Attrs::new().be32(1, drop),
            Verdict::Accept => Attrs::new().be32(1, accept),
            Verdict::Jump(chain) => Attrs::new().be32(1, jump).text(2, chain),
            Verdict::Goto(chain) => Attrs::new().be32(1, goto).text(2, chain),
        };
        Attrs::new().nest(2, verdict)
    }
}

/// What a map holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    None,
    Verdict(Verdict),
    Value(Vec<u8>),
    /// In a set of intervals: the key is the first that is not in the interval any more.
    End,
}

/// What a set is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    pub key_len: u32,
    pub key_show: u32,
    pub data: SetData,
    /// Rules add to it, and what they add expires after so many milliseconds.
    pub timeout_ms: Option<u64>,
    /// Keys are where intervals begin and ([`Data::End`]) end.
    pub intervals: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetData {
    None,
    Verdicts,
    Values { len: u32, show: u32 },
}

/// A key or value of four bytes: an address, or a number in the machine's order.
pub fn word(address: Ipv4Addr) -> [u8; 4] {
    address.octets()
}
/// A port in a register.
pub fn port(port: u16) -> [u8; 4] {
    let [a, b] = port.to_be_bytes();
    [a, b, 0, 0]
}
/// A hardware address in two registers.
pub fn hardware(mac: Mac) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac;
    [a, b, c, d, e, f, 0, 0]
}
/// A link's name in four registers.
pub fn link_name(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    padded.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    padded
}
/// A protocol number in a register.
pub fn protocol(number: u8) -> [u8; 4] {
    [number, 0, 0, 0]
}

pub const HOOK_PREROUTING: u32 = 0;
pub const HOOK_INPUT: u32 = 1;
pub const HOOK_FORWARD: u32 = 2;
pub const HOOK_OUTPUT: u32 = 3;
pub const HOOK_POSTROUTING: u32 = 4;

/// A key, and what it maps to.
pub type Element = (Vec<u8>, Data);

/// A set that lives and dies with its rule.
#[derive(Clone, Debug)]
struct Anonymous {
    spec: SetSpec,
    elements: Vec<Element>,
    /// Where in the rule's bytes the set's number belongs.
    hole: usize,
}

/// The expressions of one rule. Sets it brings along are anonymous and end with it.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    expressions: Attrs,
    anonymous: Vec<Anonymous>,
}

/// Where a lookup's set id goes: patched when the rule joins a transaction, which numbers sets.
const SET_ID_HOLE: u32 = 0x5e7_1d00;

impl Rule {
    pub fn new() -> Self {
        Self::default()
    }
    fn expression(mut self, name: &str, attrs: Attrs) -> Self {
        let expression = Attrs::new().text(1, name).nest(2, attrs);
        self.expressions = self.expressions.nest(1, expression);
        self
    }
    fn payload(self, register: u32, base: u32, offset: u32, len: u32) -> Self {
        self.expression(
            "payload",
            Attrs::new()
                .be32(1, REG0 + register)
                .be32(2, base)
                .be32(3, offset)
                .be32(4, len),
        )
    }
    pub fn load_source(self, register: u32) -> Self {
        self.payload(register, 1, 12, 4)
    }
    pub fn load_destination(self, register: u32) -> Self {
        self.payload(register, 1, 16, 4)
    }
    pub fn load_port(self, register: u32) -> Self {
        self.payload(register, 2, 2, 2)
    }
    fn meta(self, register: u32, key: u32) -> Self {
        self.expression("meta", Attrs::new().be32(1, REG0 + register).be32(2, key))
    }
    pub fn load_protocol(self, register: u32) -> Self {
        self.meta(register, 16)
    }
    fn compare(self, register: u32, equal: bool, value: &[u8]) -> Self {
        let data = Attrs::new().bytes(1, value);
        self.expression(
            "cmp",
            Attrs::new()
                .be32(1, REG0 + register)
                .be32(2, u32::from(!equal))
                .nest(3, data),
        )
    }
    fn mask(self, register: u32, mask: [u8; 4], xor: [u8; 4]) -> Self {
        let data = |bytes: &[u8]| Attrs::new().bytes(1, bytes);
        let attrs = Attrs::new()
            .be32(1, REG0 + register)
            .be32(2, REG0 + register)
            .be32(3, 4);
        self.expression("bitwise", attrs.nest(4, data(&mask)).nest(5, data(&xor)))
    }
    fn in_network(self, register: u32, network: ipnet::Ipv4Net, inside: bool) -> Self {
        self.mask(register, network.netmask().octets(), [0; 4])
            .compare(register, inside, &network.network().octets())
    }
    pub fn source_in(self, network: ipnet::Ipv4Net, inside: bool) -> Self {
        self.load_source(0).in_network(0, network, inside)
    }
    pub fn destination_in(self, network: ipnet::Ipv4Net, inside: bool) -> Self {
        self.load_destination(0).in_network(0, network, inside)
    }
    fn link(self, key: u32, name: &str, same: bool) -> Self {
        self.meta(0, key).compare(0, same, &link_name(name))
    }
    pub fn arrives_by(self, name: &str, same: bool) -> Self {
        self.link(6, name, same)
    }
    /// The name of the link it arrived by, into four registers.
    pub fn load_link(self, register: u32) -> Self {
        self.meta(register, 6)
    }
    /// Who sent the frame, into two registers.
    pub fn load_frame_source(self, register: u32) -> Self {
        self.payload(register, 0, 6, 6)
    }
    pub fn frame_to(self, mac: Mac) -> Self {
        self.payload(0, 0, 0, 6).compare(0, true, &mac)
    }
    /// The type is read from the frame itself: one with a tag is of another type, whatever is in it.
    pub fn frame_of_ipv4(self, is: bool) -> Self {
        self.payload(0, 0, 12, 2).compare(0, is, &[0x08, 0x00])
    }
    /// ARP about IPv4 on Ethernet.
    pub fn frame_of_arp(self) -> Self {
        self.payload(0, 0, 12, 2)
            .compare(0, true, &[0x08, 0x06])
            .payload(0, 1, 0, 6)
            .compare(0, true, &[0, 1, 8, 0, 6, 4])
    }
    /// Which hardware address the sender says is its own, into two registers.
    pub fn load_arp_hardware(self, register: u32) -> Self {
        self.payload(register, 1, 8, 6)
    }
    /// Which address the sender says is its own.
    pub fn load_arp_address(self, register: u32) -> Self {
        self.payload(register, 1, 14, 4)
    }
    pub fn leaves_by(self, name: &str, same: bool) -> Self {
        self.link(7, name, same)
    }
    /// Whether the source (or destination) is an address of this machine.
    fn local(self, flag: u32, local: bool) -> Self {
        let (address_type, rtn_local) = (3, 2u32);
        self.expression("fib", Attrs::new().be32(1, REG0).be32(2, address_type).be32(3, flag))
            .compare(0, local, &rtn_local.to_ne_bytes())
    }
    pub fn source_is_local(self, local: bool) -> Self {
        self.local(1, local)
    }
    pub fn destination_is_local(self) -> Self {
        self.local(2, true)
    }
    fn conntrack_has(self, key: u32, bits: u32) -> Self {
        self.expression("ct", Attrs::new().be32(1, REG0).be32(2, key))
            .mask(0, bits.to_ne_bytes(), [0; 4])
            .compare(0, false, &[0; 4])
    }
    /// The first packet of a connection.
    pub fn new_connection(self) -> Self {
        self.conntrack_has(0, 8)
    }
    /// Something the kernel relates to a connection: an error about one of its packets.
    pub fn related(self) -> Self {
        self.conntrack_has(0, 4)
    }
    /// A packet to who began the connection.
    pub fn answering(self) -> Self {
        let (direction, reply) = (1, 1);
        self.expression("ct", Attrs::new().be32(1, REG0).be32(2, direction))
            .compare(0, true, &[reply])
    }
    /// The connection's destination was translated.
    pub fn translated(self) -> Self {
        self.conntrack_has(2, 0x20)
    }
    /// Sets a bit of the packet's mark.
    pub fn set_mark(self, bit: u32) -> Self {
        self.meta(0, 3)
            .mask(0, (!bit).to_ne_bytes(), bit.to_ne_bytes())
            .expression("meta", Attrs::new().be32(2, 3).be32(3, REG0))
    }
    /// Goes on only with the mark's bit, and takes it off.
    pub fn take_mark(self, bit: u32) -> Self {
        self.meta(0, 3)
            .mask(0, bit.to_ne_bytes(), [0; 4])
            .compare(0, false, &[0; 4])
            .meta(0, 3)
            .mask(0, (!bit).to_ne_bytes(), [0; 4])
            .expression("meta", Attrs::new().be32(2, 3).be32(3, REG0))
    }
    /// Goes on only when the registers' key is in the set.
    pub fn in_set(self, set: &str) -> Self {
        self.expression("lookup", Attrs::new().text(1, set).be32(2, REG0))
    }
    /// Goes on only when the registers' key is not in the set.
    pub fn not_in_set(self, set: &str) -> Self {
        let inverted = 1;
        self.expression("lookup", Attrs::new().text(1, set).be32(2, REG0).be32(5, inverted))
    }
    /// Takes the verdict a map has for the key, if it has one.
    pub fn verdict_of(self, map: &str) -> Self {
        self.expression("lookup", Attrs::new().text(1, map).be32(2, REG0).be32(3, REG_VERDICT))
    }
    /// Loads the data a map has for the key into the registers; stops the rule if it has none.
    pub fn load_from(self, map: &str) -> Self {
        self.expression("lookup", Attrs::new().text(1, map).be32(2, REG0).be32(3, REG0))
    }
    /// Loads a value.
    pub fn load(self, register: u32, value: &[u8]) -> Self {
        let data = Attrs::new().bytes(1, value);
        self.expression("immediate", Attrs::new().be32(1, REG0 + register).nest(2, data))
    }
    pub fn verdict(self, verdict: &Verdict) -> Self {
        self.expression("immediate", Attrs::new().be32(1, REG_VERDICT).nest(2, verdict.attrs()))
    }
    /// A random number below `modulus`, looked up in a map of its own.
    fn random_of(mut self, spec: SetSpec, verdicts: bool, items: Vec<Data>) -> Self {
        let modulus = u32::try_from(items.len()).unwrap_or(u32::MAX);
        let random = 1;
        self = self.expression(
            "numgen",
            Attrs::new().be32(1, REG0).be32(2, modulus).be32(3, random).be32(4, 0),
        );
        let elements = items
            .into_iter()
            .zip(0u32..)
            .map(|(data, index)| (index.to_ne_bytes().to_vec(), data))
            .collect();
        let target = if verdicts { REG_VERDICT } else { REG0 };
        let marker = SET_ID_HOLE.to_be_bytes();
        self = self.expression(
            "lookup",
            Attrs::new()
                .text(1, "__map%d")
                .be32(2, REG0)
                .be32(3, target)
                .be32(4, SET_ID_HOLE),
        );
        let hole = self
            .expressions
            .0
            .windows(4)
            .rposition(|bytes| bytes == marker)
            .unwrap_or_default();
        self.anonymous.push(Anonymous { spec, elements, hole });
        self
    }
    /// Loads one of the values, each as likely.
    pub fn load_random(self, len: u32, show: u32, values: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let data = SetData::Values { len, show };
        let spec = SetSpec {
            key_len: 4,
            key_show: show::NUMBER,
            data,
            timeout_ms: None,
            intervals: false,
        };
        self.random_of(spec, false, values.into_iter().map(Data::Value).collect())
    }
    /// Takes one of the verdicts, each as likely.
    pub fn random_verdict(self, verdicts: impl IntoIterator<Item = Verdict>) -> Self {
        let spec = SetSpec {
            key_len: 4,
            key_show: show::NUMBER,
            data: SetData::Verdicts,
            timeout_ms: None,
            intervals: false,
        };
        self.random_of(spec, true, verdicts.into_iter().map(Data::Verdict).collect())
    }
    /// Adds the key in the registers to a set, or renews it.
    pub fn remember_in(self, set: &str) -> Self {
        let update = 1;
        self.expression("dynset", Attrs::new().text(1, set).be32(3, update).be32(4, REG0))
    }
    /// Translates the destination to the address in register 0 and the port in register 1.
    pub fn translate_destination(self) -> Self {
        let (dnat, ipv4) = (1, 2);
        self.expression(
            "nat",
            Attrs::new().be32(1, dnat).be32(2, ipv4).be32(3, REG0).be32(5, REG0 + 1),
        )
    }
    /// Translates the source to this machine's address on the way out.
    pub fn masquerade(self) -> Self {
        let fully_random = 16;
        self.expression("masq", Attrs::new().be32(1, fully_random))
    }
    /// Goes on only with packets of TCP.
    pub fn only_tcp(self) -> Self {
        self.load_protocol(0).compare(0, true, &[6])
    }
    /// Goes on only with VXLAN datagrams of the network to the port.
    pub fn only_vxlan(self, port: u16, vni: u32) -> Self {
        let [_, vni @ ..] = vni.to_be_bytes();
        // Behind the header of UDP (8 bytes) and four bytes of VXLAN's.
        self.load_protocol(0)
            .compare(0, true, &[17])
            .payload(0, 2, 2, 2)
            .compare(0, true, &port.to_be_bytes())
            .payload(0, 2, 12, 3)
            .compare(0, true, &vni)
    }
    /// Answers with a reset of TCP. Unlike ICMP's answers the kernel does not ration these.
    pub fn reset(self) -> Self {
        let tcp_reset = 1;
        self.expression("reject", Attrs::new().be32(1, tcp_reset).u8(2, 0))
    }
    /// Answers that the port is unreachable.
    pub fn reject(self) -> Self {
        let (icmp, port_unreachable) = (0, 3);
        self.expression("reject", Attrs::new().be32(1, icmp).u8(2, port_unreachable))
    }
}

/// Whether a message of this type tells of a table's removal.
pub fn is_table_removal(kind: u16) -> bool {
    kind == SUBSYSTEM | DELTABLE
}

/// Whether there is such a table.
pub fn table_exists(table: &str) -> io::Result<bool> {
    table_exists_in(Family::Ipv4, table)
}

/// The same of a family.
pub fn table_exists_in(family: Family, table: &str) -> io::Result<bool> {
    let attrs = Attrs::new().text(1, table);
    let asked = Socket::netfilter()?.request(Message::new(SUBSYSTEM | GETTABLE, 0, &header(family as u8, 0), attrs));
    match asked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    }
}

/// Changes to one table, applied together.
#[derive(Debug)]
pub struct Transaction {
    family: Family,
    table: String,
    messages: Vec<Message>,
    what: Vec<String>,
    next_set: u32,
}

/// Why the kernel refused a transaction. Nothing of it was applied.
#[derive(Debug, thiserror::Error)]
#[error("nftables table {table}: {what}: {source}{}", hint(.source))]
pub struct NftError {
    pub table: String,
    pub what: String,
    pub source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(nix::libc::EPERM) => "; this needs root (CAP_NET_ADMIN)",
        Some(nix::libc::EPROTONOSUPPORT | nix::libc::EOPNOTSUPP | nix::libc::EAFNOSUPPORT) => {
            "; the kernel lacks nftables support (CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_NUMGEN, CONFIG_NFT_FIB_IPV4, CONFIG_NF_TABLES_BRIDGE)"
        }
        _ => "",
    }
}

fn header(family: u8, resource: u16) -> [u8; 4] {
    let [a, b] = resource.to_be_bytes();
    [family, 0, a, b]
}

impl Transaction {
    pub fn new(table: &str) -> Self {
        Self::of(Family::Ipv4, table)
    }
    pub fn of(family: Family, table: &str) -> Self {
        Transaction {
            family,
            table: table.to_owned(),
            messages: Vec::new(),
            what: Vec::new(),
            next_set: 1,
        }
    }
    fn push(&mut self, kind: u16, flags: u16, attrs: Attrs, what: impl Into<String>) {
        let header = header(self.family as u8, 0);
        self.messages
            .push(Message::new(SUBSYSTEM | kind, flags, &header, attrs));
        self.what.push(what.into());
    }
    fn own(&self) -> Attrs {
        Attrs::new().text(1, &self.table)
    }

    /// Begins anew: whatever the table held is gone.
    pub fn fresh_table(&mut self) {
        self.drop_table();
        self.push(NEWTABLE, CREATE, self.own(), "add table");
    }
    /// Removes the table, there or not.
    pub fn drop_table(&mut self) {
        self.push(NEWTABLE, CREATE, self.own(), "add table");
        self.push(DELTABLE, 0, self.own(), "delete table");
    }
    pub fn add_base_chain(&mut self, name: &str, kind: &str, hook: u32, priority: i32) {
        let hook = Attrs::new().be32(1, hook).be32(2, priority.cast_unsigned());
        let attrs = self.own().text(3, name).nest(4, hook).text(7, kind);
        self.push(NEWCHAIN, CREATE, attrs, format!("add chain {name}"));
    }
    pub fn add_chain(&mut self, name: &str) {
        self.push(NEWCHAIN, CREATE, self.own().text(3, name), format!("add chain {name}"));
    }
    pub fn flush_chain(&mut self, name: &str) {
        self.push(DELRULE, 0, self.own().text(2, name), format!("flush chain {name}"));
    }
    pub fn delete_chain(&mut self, name: &str) {
        self.push(DELCHAIN, 0, self.own().text(3, name), format!("delete chain {name}"));
    }
    pub fn add_rule(&mut self, chain: &str, rule: Rule) {
        let mut expressions = rule.expressions;
        for Anonymous { spec, elements, hole } in rule.anonymous {
            let id = self.next_set;
            self.put_set("__map%d", &spec, SET_ANONYMOUS | SET_CONSTANT);
            self.put_elements(NEWSETELEM, "__map%d", Some(id), &elements);
            if let Some(bytes) = expressions.0.get_mut(hole..hole + 4) {
                bytes.copy_from_slice(&id.to_be_bytes());
            }
        }
        let attrs = self.own().text(2, chain).nest(4, expressions);
        self.push(NEWRULE, CREATE | APPEND, attrs, format!("add rule to {chain}"));
    }
    pub fn add_set(&mut self, name: &str, spec: &SetSpec) {
        self.put_set(name, spec, 0);
    }
    fn put_set(&mut self, name: &str, spec: &SetSpec, mut flags: u32) {
        let id = self.next_set;
        self.next_set += 1;
        let mut attrs = self
            .own()
            .text(2, name)
            .be32(4, spec.key_show)
            .be32(5, spec.key_len)
            .be32(10, id);
        match spec.data {
            SetData::None => {}
            SetData::Verdicts => {
                flags |= SET_MAP;
                attrs = attrs.be32(6, DATA_VERDICT).be32(7, 0);
            }
            SetData::Values { len, show } => {
                flags |= SET_MAP;
                attrs = attrs.be32(6, show).be32(7, len);
            }
        }
        if spec.intervals {
            flags |= SET_INTERVAL;
        }
        if let Some(timeout) = spec.timeout_ms {
            flags |= SET_TIMEOUT | SET_EVAL;
            // Bounds what rules may add.
            attrs = attrs.be64(11, timeout).nest(9, Attrs::new().be32(1, 65_536));
        }
        self.push(NEWSET, CREATE, attrs.be32(3, flags), format!("add set {name}"));
    }
    pub fn delete_set(&mut self, name: &str) {
        self.push(DELSET, 0, self.own().text(2, name), format!("delete set {name}"));
    }
    pub fn add_elements(&mut self, set: &str, elements: &[Element]) {
        self.put_elements(NEWSETELEM, set, None, elements);
    }
    pub fn delete_elements(&mut self, set: &str, keys: impl IntoIterator<Item = Vec<u8>>) {
        let elements: Vec<_> = keys.into_iter().map(|key| (key, Data::None)).collect();
        self.put_elements(DELSETELEM, set, None, &elements);
    }
    fn put_elements(&mut self, kind: u16, set: &str, id: Option<u32>, elements: &[Element]) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let mut list = Attrs::new();
            for (key, data) in chunk {
                let element = Attrs::new().nest(1, Attrs::new().bytes(1, key));
                let element = match data {
                    Data::None => element,
                    Data::Verdict(verdict) => element.nest(2, verdict.attrs()),
                    Data::Value(value) => element.nest(2, Attrs::new().bytes(1, value)),
                    Data::End => element.be32(3, ELEMENT_INTERVAL_END),
                };
                list = list.nest(1, element);
            }
            let mut attrs = self.own().text(2, set);
            if let Some(id) = id {
                attrs = attrs.be32(4, id);
            }
            let flags = if kind == NEWSETELEM { CREATE } else { 0 };
            let verb = if kind == NEWSETELEM {
                "add elements to"
            } else {
                "delete elements of"
            };
            self.push(kind, flags, attrs.nest(3, list), format!("{verb} {set}"));
        }
    }

    /// Applies everything, or nothing.
    pub fn commit(mut self) -> Result<(), NftError> {
        let Some(last) = self.messages.last_mut() else {
            return Ok(());
        };
        last.flags |= ACK;
        let edge = |kind| Message {
            kind,
            flags: REQUEST,
            body: header(0, 10).to_vec(),
        };
        let mut all = vec![edge(BATCH_BEGIN)];
        all.append(&mut self.messages);
        all.push(edge(BATCH_END));
        let sent = Socket::netfilter()
            .map_err(Refused::from)
            .and_then(|mut socket| socket.exchange(&all, |_, _| {}));
        sent.map_err(|refused| NftError {
            table: self.table.clone(),
            what: refused
                .at
                .checked_sub(1)
                .and_then(|at| self.what.get(at))
                .cloned()
                .unwrap_or_else(|| "commit".to_owned()),
            source: refused.source,
        })
    }
}
