//! What the kernel is to be told, as values: entries for isolated Pods, chains, sets; and what changed since.
//!
//! Names of sets and of chains that several things share are numbers that are never given twice, so a set with a name
//! always holds the same kind of thing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::spec::Direction;
use crate::pods::Protocol;

/// What a set's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Addresses,
    /// An address with one of its ports.
    Named,
    /// Ranges of addresses; made once and never changed.
    Blocks,
    /// Ranges of ports; made once and never changed.
    Ports,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    Address(IpAddr),
    Named(IpAddr, Protocol, u16),
    Block(IpAddr, IpAddr),
    Ports(Protocol, u16, u16),
}

/// Something a packet has to be found in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The other side's address: the source of what comes, the destination of what goes.
    Peer(Direction, String),
    /// Protocol and destination port.
    Port(String),
    /// Destination address, protocol and port.
    Named(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Looks at a policy, which may allow the packet.
    Ask(String),
    /// What all of these say yes to is allowed in this direction.
    Allow(Direction, Vec<Match>),
    Drop,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub kind: Kind,
    pub elements: BTreeSet<Element>,
}

pub type Entry = (Direction, IpAddr);
pub type Steps = Vec<Step>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Isolated Pods of this node, and the chain that judges their packets.
    pub entries: BTreeMap<Entry, String>,
    pub chains: BTreeMap<String, Vec<Step>>,
    pub sets: BTreeMap<String, Set>,
}

/// A plan that remembers what it was before.
#[derive(Debug, Default)]
pub struct Draft {
    pub plan: Plan,
    entries: BTreeMap<Entry, Option<String>>,
    chains: BTreeMap<String, Option<Vec<Step>>>,
    /// Sets made and removed.
    sets: BTreeMap<String, bool>,
    /// Of sets that stay: whether the element was in.
    elements: BTreeMap<(String, Element), bool>,
}

/// The way from one plan to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Before and after.
    pub entries: Vec<(Entry, Option<String>, Option<String>)>,
    /// Addresses that have entries now and had none, and the other way.
    pub isolated: Vec<(IpAddr, bool)>,
    pub chains: Vec<(String, Option<Steps>, Option<Steps>)>,
    pub new_sets: Vec<(String, Kind)>,
    pub old_sets: Vec<String>,
    pub added: BTreeMap<String, (Option<Kind>, Vec<Element>)>,
    pub removed: BTreeMap<String, Vec<Element>>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    /// The way from nothing.
    pub fn all(plan: &Plan) -> Self {
        let isolated: BTreeSet<IpAddr> = plan.entries.keys().map(|(_, ip)| *ip).collect();
        Changes {
            entries: plan
                .entries
                .iter()
                .map(|(entry, chain)| (*entry, None, Some(chain.clone())))
                .collect(),
            isolated: isolated.into_iter().map(|ip| (ip, true)).collect(),
            chains: plan
                .chains
                .iter()
                .map(|(name, steps)| (name.clone(), None, Some(steps.clone())))
                .collect(),
            new_sets: plan.sets.iter().map(|(name, set)| (name.clone(), set.kind)).collect(),
            added: plan
                .sets
                .iter()
                .map(|(name, set)| (name.clone(), (Some(set.kind), set.elements.iter().cloned().collect())))
                .collect(),
            ..Changes::default()
        }
    }
}

impl Draft {
    pub fn entry(&mut self, entry: Entry, chain: Option<String>) {
        let before = match chain {
            Some(chain) => self.plan.entries.insert(entry, chain),
            None => self.plan.entries.remove(&entry),
        };
        self.entries.entry(entry).or_insert(before);
    }

    pub fn chain(&mut self, name: &str, steps: Option<Vec<Step>>) {
        let before = match steps {
            Some(steps) => self.plan.chains.insert(name.to_owned(), steps),
            None => self.plan.chains.remove(name),
        };
        self.chains.entry(name.to_owned()).or_insert(before);
    }

    pub fn add_set(&mut self, name: &str, kind: Kind, elements: BTreeSet<Element>) {
        self.plan.sets.insert(name.to_owned(), Set { kind, elements });
        self.sets.entry(name.to_owned()).or_insert(false);
    }

    pub fn remove_set(&mut self, name: &str) {
        if self.plan.sets.remove(name).is_some() {
            self.sets.entry(name.to_owned()).or_insert(true);
        }
    }

    pub fn element(&mut self, set: &str, element: Element, inside: bool) {
        let Some(known) = self.plan.sets.get_mut(set) else {
            return;
        };
        let was = if inside {
            !known.elements.insert(element.clone())
        } else {
            known.elements.remove(&element)
        };
        self.elements.entry((set.to_owned(), element)).or_insert(was);
    }

    /// What changed since this was asked last.
    pub fn changes(&mut self) -> Changes {
        let (entries, chains, sets, elements) = (
            std::mem::take(&mut self.entries),
            std::mem::take(&mut self.chains),
            std::mem::take(&mut self.sets),
            std::mem::take(&mut self.elements),
        );
        let mut changes = Changes::default();
        let touched: BTreeSet<IpAddr> = entries.keys().map(|(_, ip)| *ip).collect();
        for ip in touched {
            let both = || super::spec::DIRECTIONS.map(|direction| (direction, ip));
            let is = both().iter().any(|entry| self.plan.entries.contains_key(entry));
            let was = both().iter().any(|entry| match entries.get(entry) {
                Some(before) => before.is_some(),
                None => self.plan.entries.contains_key(entry),
            });
            if is != was {
                changes.isolated.push((ip, is));
            }
        }
        for (entry, before) in entries {
            let after = self.plan.entries.get(&entry).cloned();
            if before != after {
                changes.entries.push((entry, before, after));
            }
        }
        for (name, before) in chains {
            let after = self.plan.chains.get(&name).cloned();
            if before != after {
                changes.chains.push((name, before, after));
            }
        }
        for (name, was) in &sets {
            match (was, self.plan.sets.get(name)) {
                (false, Some(set)) => {
                    changes.new_sets.push((name.clone(), set.kind));
                    let all = set.elements.iter().cloned().collect();
                    changes.added.insert(name.clone(), (Some(set.kind), all));
                }
                (true, None) => changes.old_sets.push(name.clone()),
                // Names are never given twice: made and removed between two transactions.
                _ => {}
            }
        }
        for ((name, element), was) in elements {
            let Some(set) = self.plan.sets.get(&name).filter(|_| !sets.contains_key(&name)) else {
                continue;
            };
            match (was, set.elements.contains(&element)) {
                (false, true) => {
                    let (_, added) = changes
                        .added
                        .entry(name)
                        .or_insert_with(|| (Some(set.kind), Vec::new()));
                    added.push(element);
                }
                (true, false) => changes.removed.entry(name).or_default().push(element),
                _ => {}
            }
        }
        changes
    }
}
