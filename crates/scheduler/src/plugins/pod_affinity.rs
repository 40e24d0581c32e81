//! Pods that want to be near other Pods, or far from them, by a topology label of their nodes. Existing Pods' terms bind
//! and draw newcomers too.
//!
//! Per class a [`Tracker`] holds, for each (topology key, domain), how many Pods each kind of term speaks of. It is a sum
//! over nodes: a node's part is a function of the Pods on it, and when the node changes its old part is taken off and its
//! new part put on. Nothing walks the cluster per decision but the comparison of the nodes' domains with those sums.
//!
//! Equal Pods are related to the class in the same way, so a relation is found once per class of Pods.

use std::collections::HashMap;
use std::sync::Arc;

use crate::framework::{ClusterPlugin, Event, MAX_SCORE, Refused, Tracker};
use crate::labels::Labels;
use crate::pod::{AffinityTerm, Class, ClassId};
use crate::snapshot::{NodeIndex, NodeInfo, Snapshot};
use crate::topology::{Domains, KeyId, NOWHERE, ValueId};

const AFFINITY: Refused = Refused {
    reason: "node(s) didn't match pod affinity rules",
    resolvable: false,
};
const ANTI_AFFINITY: Refused = Refused {
    reason: "node(s) didn't match pod anti-affinity rules",
    resolvable: true,
};
const EXISTING: Refused = Refused {
    reason: "node(s) didn't satisfy existing pods anti-affinity rules",
    resolvable: true,
};

/// The plugin with its arguments.
#[derive(Clone, Copy)]
pub struct InterPodAffinity {
    /// What a required affinity of an existing Pod that speaks of the newcomer is worth.
    pub hard_pod_affinity_weight: i64,
    /// Newcomers without preferences of their own are not drawn by those of existing Pods.
    pub ignore_preferred_terms_of_existing_pods: bool,
    pub weight: i64,
}

impl Default for InterPodAffinity {
    fn default() -> Self {
        InterPodAffinity {
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
            weight: 2,
        }
    }
}

impl ClusterPlugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }
    fn helped_by(&self) -> &'static [Event] {
        &[
            Event::Node,
            Event::NodeGone,
            Event::PodGone,
            Event::PodPlaced,
            Event::Namespace,
        ]
    }
    fn weight(&self) -> i64 {
        self.weight
    }
    fn concerns(&self, class: &Class, snapshot: &Snapshot) -> bool {
        class.has_terms() || !snapshot.with_terms().is_empty()
    }
    fn track(&self, class: &Arc<Class>, snapshot: &Snapshot) -> Box<dyn Tracker> {
        Box::new(Affinity::new(Arc::clone(class), *self, snapshot))
    }
    fn helped(&self, class: &Class, event: Event, pod: Option<&Class>, snapshot: &Snapshot) -> bool {
        let Some(other) = pod else { return true };
        let namespaces = |name: &str| snapshot.namespace_labels(name);
        let speaks = |terms: &[AffinityTerm], of: &Class| {
            terms
                .iter()
                .any(|term| term.speaks_of(&of.namespace, &of.labels, namespaces))
        };
        match event {
            Event::PodPlaced => speaks_of_all(&class.affinity, other, &namespaces),
            Event::PodGone => speaks(&class.anti_affinity, other) || speaks(&other.anti_affinity, class),
            _ => true,
        }
    }
}

/// Whether there are terms and every one speaks of such a Pod.
fn speaks_of_all<'a>(terms: &[AffinityTerm], of: &Class, namespaces: &impl Fn(&str) -> Option<&'a Labels>) -> bool {
    !terms.is_empty()
        && terms
            .iter()
            .all(|term| term.speaks_of(&of.namespace, &of.labels, namespaces))
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    /// Pods that all required affinity terms speak of.
    Wanted,
    /// Pods that a required anti-affinity term speaks of.
    Shunned,
    /// Pods with a required anti-affinity term that speaks of the class.
    Barring,
    /// Weights of preferences, in both directions.
    Liked,
}

/// The place of a topology key in this tracker.
type Key = usize;
/// What one Pod adds where.
type Relation = Arc<[(Table, Key, i64)]>;

#[derive(Default)]
struct Counts {
    /// By key, then domain.
    sums: Vec<Vec<i64>>,
    nonzero: usize,
}

impl Counts {
    fn add(&mut self, key: Key, domain: ValueId, amount: i64) {
        if self.sums.len() <= key {
            self.sums.resize_with(key + 1, Vec::new);
        }
        let (sums, at) = (&mut self.sums[key], domain as usize);
        if sums.len() <= at {
            sums.resize(at + 1, 0);
        }
        let before = sums[at];
        sums[at] += amount;
        match (before == 0, sums[at] == 0) {
            (true, false) => self.nonzero += 1,
            (false, true) => self.nonzero -= 1,
            _ => {}
        }
    }
    fn get(&self, key: Key, domain: ValueId) -> i64 {
        let sums = self.sums.get(key);
        sums.and_then(|sums| sums.get(domain as usize)).copied().unwrap_or(0)
    }
}

struct Affinity {
    class: Arc<Class>,
    args: InterPodAffinity,
    /// Whether the class may go first where all want company of their own kind and nobody is there yet.
    may_be_first: bool,
    keys: Vec<KeyId>,
    /// By key.
    domains: Vec<Domains>,
    counts: [Counts; 4],
    parts: HashMap<NodeIndex, Vec<(Table, Key, ValueId, i64)>>,
    relations: HashMap<ClassId, Relation>,
    own_affinity: Vec<Key>,
    own_anti_affinity: Vec<Key>,
}

/// Relations remembered; beyond that they are found again.
const RELATIONS: usize = 8192;

impl Affinity {
    fn new(class: Arc<Class>, args: InterPodAffinity, snapshot: &Snapshot) -> Self {
        let namespaces = |name: &str| snapshot.namespace_labels(name);
        let may_be_first = speaks_of_all(&class.affinity, &class, &namespaces);
        let mut affinity = Affinity {
            args,
            may_be_first,
            keys: Vec::new(),
            domains: Vec::new(),
            counts: Default::default(),
            parts: HashMap::new(),
            relations: HashMap::new(),
            own_affinity: Vec::new(),
            own_anti_affinity: Vec::new(),
            class: Arc::clone(&class),
        };
        let mut keys = |terms: &[AffinityTerm]| -> Vec<Key> {
            let keys = terms.iter().map(|term| &term.term.topology_key);
            keys.filter_map(|key| affinity.key(key, snapshot)).collect()
        };
        let (own_affinity, own_anti_affinity) = (keys(&class.affinity), keys(&class.anti_affinity));
        affinity.own_affinity = own_affinity;
        affinity.own_anti_affinity = own_anti_affinity;
        affinity
    }

    /// The tracker's number of a topology key, which the snapshot has learned when it met the class that names it.
    fn key(&mut self, name: &str, snapshot: &Snapshot) -> Option<Key> {
        let id = snapshot.key(name)?;
        if let Some(key) = self.keys.iter().position(|known| *known == id) {
            return Some(key);
        }
        self.keys.push(id);
        let mut domains = Domains::default();
        for (at, info) in snapshot.nodes() {
            domains.set(at, info.domain(id));
        }
        self.domains.push(domains);
        Some(self.keys.len() - 1)
    }

    fn relation(&mut self, other: &Arc<Class>, snapshot: &Snapshot) -> Relation {
        if let Some(known) = self.relations.get(&other.id) {
            return Arc::clone(known);
        }
        let class = Arc::clone(&self.class);
        let namespaces = |name: &str| snapshot.namespace_labels(name);
        let mut found: Vec<(Table, String, i64)> = Vec::new();
        if speaks_of_all(&class.affinity, other, &namespaces) {
            let keys = class.affinity.iter().map(|term| term.term.topology_key.clone());
            found.extend(keys.map(|key| (Table::Wanted, key, 1)));
        }
        let mut note = |table, weight: i64, term: &AffinityTerm, of: &Class| {
            if weight != 0 && term.speaks_of(&of.namespace, &of.labels, namespaces) {
                found.push((table, term.term.topology_key.clone(), weight));
            }
        };
        for term in &class.anti_affinity {
            note(Table::Shunned, 1, term, other);
        }
        for term in &other.anti_affinity {
            note(Table::Barring, 1, term, &class);
        }
        let has_preferences = !(class.preferred_affinity.is_empty() && class.preferred_anti_affinity.is_empty());
        if has_preferences || !self.args.ignore_preferred_terms_of_existing_pods {
            for (mine, theirs, sign) in [
                (&class.preferred_affinity, &other.preferred_affinity, 1),
                (&class.preferred_anti_affinity, &other.preferred_anti_affinity, -1),
            ] {
                for (weight, term) in mine {
                    note(Table::Liked, sign * i64::from(*weight), term, other);
                }
                for (weight, term) in theirs {
                    note(Table::Liked, sign * i64::from(*weight), term, &class);
                }
            }
            for term in &other.affinity {
                note(Table::Liked, self.args.hard_pod_affinity_weight, term, &class);
            }
        }
        let mut relation = Vec::with_capacity(found.len());
        for (table, key, weight) in found {
            relation.extend(self.key(&key, snapshot).map(|key| (table, key, weight)));
        }
        if self.relations.len() >= RELATIONS {
            self.relations.clear();
        }
        let relation: Relation = relation.into();
        self.relations.insert(other.id, Arc::clone(&relation));
        relation
    }

    fn counts(&self, table: Table) -> &Counts {
        &self.counts[table as usize]
    }

    fn domain(&self, key: Key, at: NodeIndex) -> ValueId {
        self.domains.get(key).map_or(NOWHERE, |domains| domains.of(at))
    }
}

impl Tracker for Affinity {
    fn set(&mut self, at: NodeIndex, node: Option<&NodeInfo>, snapshot: &Snapshot) {
        for (table, key, domain, amount) in self.parts.remove(&at).unwrap_or_default() {
            self.counts[table as usize].add(key, domain, -amount);
        }
        for (key, domains) in self.keys.iter().zip(&mut self.domains) {
            domains.set(at, node.map_or(NOWHERE, |node| node.domain(*key)));
        }
        let Some(node) = node else { return };
        let own_terms = self.class.has_terms();
        if !own_terms && node.pods_with_terms == 0 {
            return;
        }
        let mut part = Vec::new();
        for group in node.groups.values() {
            if !own_terms && !group.class.has_terms() {
                continue;
            }
            let pods = i64::from(group.live + group.leaving);
            for &(table, key, weight) in self.relation(&group.class, snapshot).iter() {
                // A copy of the node made to ask "what if" has the domains of the node.
                let domain = node.domain(self.keys[key]);
                if domain != NOWHERE {
                    part.push((table, key, domain, weight * pods));
                }
            }
        }
        if part.is_empty() {
            return;
        }
        for &(table, key, domain, amount) in &part {
            self.counts[table as usize].add(key, domain, amount);
        }
        self.parts.insert(at, part);
    }

    fn is_idle(&self) -> bool {
        self.class.affinity.is_empty()
            && [Table::Shunned, Table::Barring, Table::Liked]
                .iter()
                .all(|table| self.counts(*table).nonzero == 0)
    }

    fn may_refuse(&self) -> bool {
        let counted = |table| self.counts(table).nonzero > 0;
        !self.class.affinity.is_empty() || counted(Table::Shunned) || counted(Table::Barring)
    }

    fn ranks(&self) -> bool {
        self.counts(Table::Liked).nonzero > 0
    }

    fn check(&self, at: NodeIndex) -> Result<(), Refused> {
        let wanted = self.counts(Table::Wanted);
        let mut missing = false;
        for &key in &self.own_affinity {
            match self.domain(key, at) {
                NOWHERE => return Err(AFFINITY),
                domain => missing |= wanted.get(key, domain) <= 0,
            }
        }
        if missing && !(wanted.nonzero == 0 && self.may_be_first) {
            return Err(AFFINITY);
        }
        let shunned = self.counts(Table::Shunned);
        if shunned.nonzero > 0 {
            for &key in &self.own_anti_affinity {
                let domain = self.domain(key, at);
                if domain != NOWHERE && shunned.get(key, domain) > 0 {
                    return Err(ANTI_AFFINITY);
                }
            }
        }
        let barring = self.counts(Table::Barring);
        if barring.nonzero > 0 {
            for key in 0..self.keys.len() {
                let domain = self.domain(key, at);
                if domain != NOWHERE && barring.get(key, domain) > 0 {
                    return Err(EXISTING);
                }
            }
        }
        Ok(())
    }

    fn sign(&self, at: NodeIndex, signature: &mut Vec<i64>) {
        for (key, domains) in self.domains.iter().enumerate() {
            let domain = domains.of(at);
            if !domains.are_own() {
                signature.push(i64::from(domain));
                continue;
            }
            let there = |table, bit: i64| i64::from(self.counts(table).get(key, domain) > 0) * bit;
            signature.push(match domain {
                NOWHERE => -1,
                _ => there(Table::Wanted, 1) + there(Table::Shunned, 2) + there(Table::Barring, 4),
            });
            signature.push(self.counts(Table::Liked).get(key, domain));
        }
    }

    fn turns(&self) -> u64 {
        self.domains.iter().map(|domains| domains.turns() + 1).sum()
    }

    fn score(&mut self, nodes: &[NodeIndex], _: &[u32], weight: i64, totals: &mut [i64]) {
        let liked = self.counts(Table::Liked);
        if liked.nonzero == 0 {
            return;
        }
        let keys: Vec<Key> = (0..self.keys.len())
            .filter(|key| liked.sums.get(*key).is_some_and(|sums| !sums.is_empty()))
            .collect();
        let raw: Vec<i64> = nodes
            .iter()
            .map(|&at| {
                let domains = keys.iter().map(|&key| (key, self.domain(key, at)));
                let present = domains.filter(|(_, domain)| *domain != NOWHERE);
                present.map(|(key, domain)| liked.get(key, domain)).sum()
            })
            .collect();
        let least = raw.iter().min().copied().unwrap_or(0);
        let most = raw.iter().max().copied().unwrap_or(0);
        if most == least {
            return;
        }
        for (total, score) in totals.iter_mut().zip(raw) {
            let score = MAX_SCORE as f64 * ((score - least) as f64 / (most - least) as f64);
            *total += weight * score as i64;
        }
    }
}
