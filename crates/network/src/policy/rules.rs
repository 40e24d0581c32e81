//! The table `sampan-policy`: there as long as a Pod of this node is isolated.
//!
//! Policies are asked where packets are forwarded: behind the translation of destinations, so they see the Pod behind a
//! Service, and before that of sources, so they see who asks. What this machine itself sends or gets does not pass
//! there: the node always reaches its own Pods (probes) and they reach it, as upstream has it.
//!
//! A packet's way: answers and errors of connections pass; a Pod may talk to itself; then the chain of the source, if
//! it is isolated, and that of the destination. A policy that says yes to what goes leads on to `arriving`, one that
//! says yes to what comes accepts, and a Pod's chain that was through with all of them drops. Connections are not
//! remembered as allowed: a policy that comes cuts those it forbids.

use std::net::{IpAddr, Ipv4Addr};

use super::plan::{Changes, Element, Entry, Kind, Match, Plan, Step};
use super::spec::Direction;
use crate::kernel::nft::{
    self, Data, Element as Bytes, HOOK_FORWARD, NftError, Rule, SetData, SetSpec, Transaction, Verdict, show,
};

pub(crate) const TABLE: &str = "sampan-policy";

/// Isolated Pods, as verdicts by source and by destination.
const FROM: &str = "from";
const TO: &str = "to";
/// Isolated Pods, each as a pair of itself.
const SELVES: &str = "selves";
const ARRIVING: &str = "arriving";

/// Everything anew, or (nobody is isolated) nothing at all.
pub(super) fn sync(plan: &Plan) -> Result<(), NftError> {
    all(TABLE, plan).commit()
}

fn all(table: &str, plan: &Plan) -> Transaction {
    let mut t = Transaction::new(table);
    if plan.entries.is_empty() {
        t.drop_table();
    } else {
        t.fresh_table();
        frame(&mut t);
        emit(&mut t, &Changes::all(plan));
    }
    t
}

/// What changed. The table is there.
pub(super) fn change(changes: &Changes) -> Result<(), NftError> {
    let mut t = Transaction::new(TABLE);
    emit(&mut t, changes);
    t.commit()
}

/// Whether the kernel can do all this, found out with a table of another name.
pub(super) fn probe() -> Result<(), NftError> {
    const NAME: &str = "sampan-policy-probe";
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut plan = Plan::default();
    plan.entries.insert((Direction::Ingress, ip), "to/0".into());
    let (blocks, ports) = ("blocks/0".to_owned(), "ports/0".to_owned());
    let set = |kind, element| super::plan::Set {
        kind,
        elements: [element].into(),
    };
    plan.sets
        .insert(blocks.clone(), set(Kind::Blocks, Element::Block(ip, ip)));
    let tcp = crate::pods::Protocol::Tcp;
    plan.sets
        .insert(ports.clone(), set(Kind::Ports, Element::Ports(tcp, 1, 2)));
    let allowed = vec![Match::Peer(Direction::Ingress, blocks), Match::Port(ports)];
    plan.chains.insert(
        "to/0".into(),
        vec![Step::Allow(Direction::Ingress, allowed), Step::Drop],
    );
    all(NAME, &plan).commit()?;
    let mut t = Transaction::new(NAME);
    t.drop_table();
    t.commit()
}

fn spec(key: &[u32], data: SetData, intervals: bool) -> SetSpec {
    SetSpec {
        key_len: 4 * key.len() as u32,
        key_show: show::all(key),
        data,
        timeout_ms: None,
        intervals,
    }
}

fn frame(t: &mut Transaction) {
    t.add_set(FROM, &spec(&[show::ADDRESS], SetData::Verdicts, false));
    t.add_set(TO, &spec(&[show::ADDRESS], SetData::Verdicts, false));
    t.add_set(SELVES, &spec(&[show::ADDRESS, show::ADDRESS], SetData::None, false));
    t.add_chain(ARRIVING);
    t.add_rule(ARRIVING, Rule::new().load_destination(0).verdict_of(TO));
    t.add_rule(ARRIVING, Rule::new().verdict(&Verdict::Accept));

    t.add_base_chain("forward", "filter", HOOK_FORWARD, 0);
    let rules = [
        Rule::new().answering().verdict(&Verdict::Accept),
        Rule::new().related().verdict(&Verdict::Accept),
        Rule::new()
            .load_source(0)
            .load_destination(1)
            .in_set(SELVES)
            .verdict(&Verdict::Accept),
        Rule::new().load_source(0).verdict_of(FROM),
        Rule::new().verdict(&Verdict::Goto(ARRIVING.to_owned())),
    ];
    for rule in rules {
        t.add_rule("forward", rule);
    }
}

fn kind(kind: Kind) -> SetSpec {
    match kind {
        Kind::Addresses => spec(&[show::ADDRESS], SetData::None, false),
        Kind::Named => spec(&[show::ADDRESS, show::PROTOCOL, show::PORT], SetData::None, false),
        Kind::Blocks => spec(&[show::ADDRESS], SetData::None, true),
        Kind::Ports => spec(&[show::PROTOCOL, show::PORT], SetData::None, true),
    }
}

/// IPv4 addresses; those of the other family will have a table of their own.
fn four(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

/// An element as the kernel has it: one key, or where an interval begins and ends.
fn bytes(element: &Element) -> Vec<Bytes> {
    let one = |key: Vec<u8>| vec![(key, Data::None)];
    match element {
        Element::Address(ip) => four(*ip).map(|ip| one(nft::word(ip).to_vec())).unwrap_or_default(),
        Element::Named(ip, protocol, port) => four(*ip)
            .map(|ip| one([nft::word(ip), nft::protocol(protocol.number()), nft::port(*port)].concat()))
            .unwrap_or_default(),
        Element::Block(first, last) => {
            let (Some(first), Some(last)) = (four(*first), four(*last)) else {
                return Vec::new();
            };
            let mut interval = one(nft::word(first).to_vec());
            // Without an end it goes on to the last address there is.
            if let Some(behind) = u32::from(last).checked_add(1) {
                interval.push((behind.to_be_bytes().to_vec(), Data::End));
            }
            interval
        }
        Element::Ports(protocol, first, last) => {
            let key = |port: u16, behind: u8| {
                let [a, b] = port.to_be_bytes();
                [nft::protocol(protocol.number()), [a, b, 0, behind]].concat()
            };
            // Keys are compared byte by byte, and the last byte of a port's register is always 0.
            vec![(key(*first, 0), Data::None), (key(*last, 1), Data::End)]
        }
    }
}

fn map_of((direction, ip): &Entry) -> Option<(&'static str, Vec<u8>)> {
    let map = match direction {
        Direction::Ingress => TO,
        Direction::Egress => FROM,
    };
    Some((map, nft::word(four(*ip)?).to_vec()))
}

fn emit(t: &mut Transaction, changes: &Changes) {
    let pair = |ip: &IpAddr| four(*ip).map(|ip| [nft::word(ip), nft::word(ip)].concat());
    for map in [FROM, TO] {
        let gone = changes.entries.iter().filter(|(_, old, _)| old.is_some());
        let gone = gone
            .filter_map(|(entry, ..)| map_of(entry))
            .filter(|(name, _)| *name == map);
        t.delete_elements(map, gone.map(|(_, key)| key));
    }
    let free = changes.isolated.iter().filter(|(_, isolated)| !isolated);
    t.delete_elements(SELVES, free.filter_map(|(ip, _)| pair(ip)));
    for (set, elements) in &changes.removed {
        t.delete_elements(set, elements.iter().flat_map(bytes).map(|(key, _)| key));
    }

    for (set, of) in &changes.new_sets {
        t.add_set(set, &kind(*of));
    }
    for (set, (_, elements)) in &changes.added {
        let all: Vec<Bytes> = elements.iter().flat_map(bytes).collect();
        t.add_elements(set, &all);
    }
    for (chain, old, _) in &changes.chains {
        match old {
            None => t.add_chain(chain),
            Some(_) => t.flush_chain(chain),
        }
    }
    for (chain, _, new) in &changes.chains {
        for step in new.iter().flatten() {
            t.add_rule(chain, rule(step));
        }
    }

    for map in [FROM, TO] {
        let new = changes
            .entries
            .iter()
            .filter_map(|(entry, _, new)| Some((map_of(entry)?, new.clone()?)));
        let new: Vec<Bytes> = new
            .filter(|((name, _), _)| *name == map)
            .map(|((_, key), chain)| (key, Data::Verdict(Verdict::Goto(chain))))
            .collect();
        t.add_elements(map, &new);
    }
    let isolated = changes.isolated.iter().filter(|(_, isolated)| *isolated);
    let isolated: Vec<Bytes> = isolated.filter_map(|(ip, _)| Some((pair(ip)?, Data::None))).collect();
    t.add_elements(SELVES, &isolated);

    for (chain, _, new) in &changes.chains {
        if new.is_none() {
            t.delete_chain(chain);
        }
    }
    for set in &changes.old_sets {
        t.delete_set(set);
    }
}

fn rule(step: &Step) -> Rule {
    match step {
        Step::Ask(chain) => Rule::new().verdict(&Verdict::Jump(chain.clone())),
        Step::Drop => Rule::new().verdict(&Verdict::Drop),
        Step::Allow(direction, all) => {
            let rule = all.iter().fold(Rule::new(), |rule, one| match one {
                Match::Peer(Direction::Ingress, set) => rule.load_source(0).in_set(set),
                Match::Peer(Direction::Egress, set) => rule.load_destination(0).in_set(set),
                Match::Port(set) => rule.load_protocol(0).load_port(1).in_set(set),
                Match::Named(set) => rule.load_destination(0).load_protocol(1).load_port(2).in_set(set),
            });
            match direction {
                Direction::Ingress => rule.verdict(&Verdict::Accept),
                Direction::Egress => rule.verdict(&Verdict::Goto(ARRIVING.to_owned())),
            }
        }
    }
}
