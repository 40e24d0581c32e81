//! Nodes that cluster plugins treat alike, kept together, so that a decision looks at a few groups instead of all nodes.
//!
//! A class whose nodes are ranked by Pods elsewhere (soft spreads, preferred affinity) has no ranking that could be kept:
//! one Pod placed may change the score of every node. What tells nodes from each other changes only with the nodes,
//! though, and is little: the zone, how many Pods of the kind are here. Nodes with the same signature
//! ([`crate::framework::Tracker::sign`]) pass or fail together and score the same, so within a group the best is the one
//! with the best total of the node plugins. [`Standings`] follow the nodes that changed and are made anew only when
//! totals or signatures changed their meaning.
//!
//! Nodes that Pods are nominated to are in no group: whether they pass is asked of each.

use std::collections::{BTreeMap, HashMap};

use crate::memory::{Basis, Memory, Row};
use crate::snapshot::{NodeIndex, Snapshot};

#[derive(Default)]
pub struct Standings {
    /// The snapshot's generation, and what totals and signatures were made from.
    synced: u64,
    basis: Option<(Basis, u64)>,
    /// By signature: its group, which has members.
    known: HashMap<Box<[i64]>, usize>,
    groups: Vec<Group>,
    free: Vec<usize>,
    /// By node.
    stands: Vec<Option<Stand>>,
    /// Room to make a signature in.
    signature: Vec<i64>,
}

#[derive(Default)]
struct Group {
    signature: Box<[i64]>,
    size: u32,
    /// By total; none is empty.
    buckets: BTreeMap<i64, Vec<NodeIndex>>,
}

struct Stand {
    group: usize,
    total: i64,
    place: usize,
}

/// A group as a decision sees it.
pub struct Alike<'a> {
    pub size: u32,
    /// The best total among its nodes, and who has it; never empty.
    pub total: i64,
    pub best: &'a [NodeIndex],
}

impl Standings {
    /// Looks at what changed since the last time. `memory` has its totals made.
    pub fn catch_up(&mut self, rows: &[Row], memory: &Memory, snapshot: &Snapshot) {
        let basis = (memory.basis(), rows.iter().map(|row| row.tracker.turns()).sum());
        let changed = match self.basis == Some(basis) {
            true => snapshot.changed_since(self.synced),
            false => None,
        };
        self.stands.resize_with(snapshot.places(), || None);
        match changed {
            Some(changed) => {
                for at in changed {
                    self.leave(at);
                    self.enter(at, rows, memory, snapshot);
                }
            }
            None => {
                self.known.clear();
                self.groups.clear();
                self.free.clear();
                self.stands.fill_with(|| None);
                for at in 0..snapshot.places() {
                    self.enter(at, rows, memory, snapshot);
                }
            }
        }
        (self.synced, self.basis) = (snapshot.generation(), Some(basis));
    }

    /// All groups, in an order that depends on what happened alone.
    pub fn groups(&self) -> impl Iterator<Item = Alike<'_>> {
        self.groups.iter().filter_map(|group| {
            let (total, best) = group.buckets.last_key_value()?;
            Some(Alike {
                size: group.size,
                total: *total,
                best,
            })
        })
    }

    fn enter(&mut self, at: NodeIndex, rows: &[Row], memory: &Memory, snapshot: &Snapshot) {
        if snapshot.with_nominations().contains(&at) {
            return;
        }
        let Some(total) = memory.total(at) else { return };
        self.signature.clear();
        for row in rows {
            row.tracker.sign(at, &mut self.signature);
        }
        let group = match self.known.get(self.signature.as_slice()) {
            Some(&group) => group,
            None => {
                let group = self.free.pop().unwrap_or(self.groups.len());
                if group == self.groups.len() {
                    self.groups.push(Group::default());
                }
                self.groups[group].signature = self.signature.as_slice().into();
                self.known.insert(self.signature.as_slice().into(), group);
                group
            }
        };
        let held = &mut self.groups[group];
        held.size += 1;
        let bucket = held.buckets.entry(total).or_default();
        self.stands[at] = Some(Stand {
            group,
            total,
            place: bucket.len(),
        });
        bucket.push(at);
    }

    fn leave(&mut self, at: NodeIndex) {
        let Some(stand) = self.stands[at].take() else { return };
        let group = &mut self.groups[stand.group];
        let Some(bucket) = group.buckets.get_mut(&stand.total) else {
            return;
        };
        bucket.swap_remove(stand.place);
        if let Some(moved) = bucket.get(stand.place)
            && let Some(moved) = &mut self.stands[*moved]
        {
            moved.place = stand.place;
        }
        if bucket.is_empty() {
            group.buckets.remove(&stand.total);
        }
        group.size -= 1;
        if group.size == 0 {
            self.known.remove(&group.signature);
            self.free.push(stand.group);
        }
    }
}
