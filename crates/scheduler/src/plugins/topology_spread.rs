//! Keeps the Pods a constraint selects evenly spread over a topology.
//!
//! A hard constraint refuses a node whose domain would exceed the emptiest one by more than `maxSkew`; a soft one ranks
//! emptier domains higher. Pods without constraints get the profile's default ones, which select what the Pod's Services
//! and its workload select.
//!
//! As with pod affinity, a [`Tracker`] per class holds sums over nodes and replaces a node's part when the node changes.
//! Counted are the class's namespace's Pods that are not being deleted, on nodes that have all the topology keys and that the
//! constraint's policies let in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use crate::framework::{ClusterPlugin, Event, MAX_SCORE, Refused, Tracker};
use crate::labels::Labels;
use crate::owners::Selection;
use crate::plugins::{node, taints};
use crate::pod::{Class, ClassId};
use crate::snapshot::{NodeIndex, NodeInfo, Snapshot};
use crate::topology::{Domains, KeyId, NOWHERE, ValueId};

const SKEWED: Refused = Refused {
    reason: "node(s) didn't match pod topology spread constraints",
    resolvable: true,
};
const NO_LABEL: Refused = Refused {
    reason: "node(s) didn't match pod topology spread constraints (missing required label)",
    resolvable: false,
};

/// Nodes of this topology are their own domains: scoring counts on the node itself.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The plugin with its arguments.
pub struct PodTopologySpread {
    /// Constraints of Pods that have none of their own.
    pub defaults: Vec<TopologySpreadConstraint>,
    /// The defaults are the scheduler's own: nodes without the labels take part as well.
    pub system: bool,
    pub weight: i64,
}

impl Default for PodTopologySpread {
    fn default() -> Self {
        let args = crate::config::args::PodTopologySpread::default();
        PodTopologySpread {
            defaults: args.defaults,
            system: args.system,
            weight: 2,
        }
    }
}

impl ClusterPlugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }
    fn helped_by(&self) -> &'static [Event] {
        &[Event::Node, Event::NodeGone, Event::PodGone, Event::PodPlaced]
    }
    fn weight(&self) -> i64 {
        self.weight
    }
    fn topology_keys(&self) -> Vec<String> {
        let defaults = self.defaults.iter();
        defaults.map(|constraint| constraint.topology_key.clone()).collect()
    }
    fn concerns(&self, class: &Class, snapshot: &Snapshot) -> bool {
        !class.spread.is_empty() || (!self.defaults.is_empty() && !snapshot.owners().selection(class).is_empty())
    }
    fn track(&self, class: &Arc<Class>, snapshot: &Snapshot) -> Box<dyn Tracker> {
        Box::new(Spread::new(class, self, snapshot))
    }
    fn helped(&self, class: &Class, event: Event, pod: Option<&Class>, snapshot: &Snapshot) -> bool {
        let (Some(other), Event::PodGone | Event::PodPlaced) = (pod, event) else {
            return true;
        };
        if other.namespace != class.namespace {
            return false;
        }
        let hard = constraints(class, self, snapshot);
        hard.iter()
            .any(|constraint| constraint.selection.matches(&other.labels))
    }
}

/// A constraint with its defaults resolved.
struct Constraint {
    hard: bool,
    max_skew: i64,
    min_domains: usize,
    key: Option<KeyId>,
    hostname: bool,
    selection: Selection,
    /// The class's own Pods count.
    selects_itself: bool,
    honors_affinity: bool,
    honors_taints: bool,
}

fn constraints(class: &Class, plugin: &PodTopologySpread, snapshot: &Snapshot) -> Vec<Constraint> {
    let own = !class.spread.is_empty();
    let common = if own {
        None
    } else {
        let selection = snapshot.owners().selection(class);
        if selection.is_empty() {
            return Vec::new();
        }
        Some(selection)
    };
    let given: &[TopologySpreadConstraint] = if own { &class.spread } else { &plugin.defaults };
    let resolved = given.iter().map(|given| {
        let selection = common.clone().unwrap_or_else(|| own_selection(given, &class.labels));
        let honors = |policy: &Option<String>, default: bool| policy.as_deref().map_or(default, |is| is == "Honor");
        Constraint {
            hard: given.when_unsatisfiable == "DoNotSchedule",
            max_skew: i64::from(given.max_skew),
            min_domains: usize::try_from(given.min_domains.unwrap_or(1)).unwrap_or(1),
            key: snapshot.key(&given.topology_key),
            hostname: given.topology_key == HOSTNAME,
            selects_itself: selection.matches(&class.labels),
            selection,
            honors_affinity: honors(&given.node_affinity_policy, true),
            honors_taints: honors(&given.node_taints_policy, false),
        }
    });
    resolved.collect()
}

/// The constraint's selector with `matchLabelKeys` resolved against the Pod's own labels. No selector selects nothing.
fn own_selection(given: &TopologySpreadConstraint, labels: &Labels) -> Selection {
    let Some(selector) = &given.label_selector else {
        return Selection::nothing();
    };
    let keys = given.match_label_keys.iter().flatten();
    Selection {
        labels: keys
            .filter_map(|key| labels.get(key).map(|value| (key.clone(), value.clone())))
            .collect(),
        selectors: vec![selector.clone()],
        nothing: false,
    }
}

/// The sums of one constraint.
#[derive(Default)]
struct Sums {
    domains: Domains,
    /// By node: matching Pods on it, whether or not the node counts.
    here: Vec<i64>,
    /// By domain: matching Pods on the nodes that count.
    pods: Vec<i64>,
    /// By domain: nodes that count.
    nodes: Vec<u32>,
    /// How many domains have a node that counts.
    existing: usize,
    /// How many existing domains have how many Pods.
    levels: BTreeMap<i64, u32>,
}

impl Sums {
    fn add(&mut self, domain: ValueId, pods: i64, nodes: i32) {
        let at = domain as usize;
        if self.pods.len() <= at {
            self.pods.resize(at + 1, 0);
            self.nodes.resize(at + 1, 0);
        }
        if self.nodes[at] > 0 {
            self.existing -= 1;
            if let Some(level) = self.levels.get_mut(&self.pods[at]) {
                *level -= 1;
                if *level == 0 {
                    self.levels.remove(&self.pods[at]);
                }
            }
        }
        self.pods[at] += pods;
        self.nodes[at] = self.nodes[at].saturating_add_signed(nodes);
        if self.nodes[at] > 0 {
            self.existing += 1;
            *self.levels.entry(self.pods[at]).or_default() += 1;
        }
    }
    fn pods(&self, domain: ValueId) -> i64 {
        self.pods.get(domain as usize).copied().unwrap_or(0)
    }
}

struct Spread {
    class: Arc<Class>,
    constraints: Vec<Constraint>,
    sums: Vec<Sums>,
    /// Nodes without all the keys of soft constraints are not ranked; not so for the system's own defaults.
    all_keys: bool,
    /// Per node what it added to each constraint.
    parts: HashMap<NodeIndex, Vec<Option<(ValueId, i64)>>>,
    /// Per class of Pods the constraints that select them.
    selected: HashMap<ClassId, u64>,
    /// When a domain was last seen among the nodes to be ranked, by constraint.
    seen: Vec<Vec<u32>>,
    round: u32,
}

/// See [`Spread::selected`]; beyond that it is found again.
const SELECTED: usize = 8192;

impl Spread {
    fn new(class: &Arc<Class>, plugin: &PodTopologySpread, snapshot: &Snapshot) -> Self {
        let constraints = constraints(class, plugin, snapshot);
        Spread {
            class: Arc::clone(class),
            sums: constraints.iter().map(|_| Sums::default()).collect(),
            all_keys: !class.spread.is_empty() || !plugin.system,
            parts: HashMap::new(),
            selected: HashMap::new(),
            seen: vec![Vec::new(); constraints.len()],
            round: 0,
            constraints,
        }
    }

    /// Which constraints select Pods of this class, as bits. API servers accept far fewer constraints than bits.
    fn selected(&mut self, other: &Class) -> u64 {
        if other.namespace != self.class.namespace {
            return 0;
        }
        if let Some(known) = self.selected.get(&other.id) {
            return *known;
        }
        let mut bits = 0;
        for (index, constraint) in self.constraints.iter().enumerate().take(64) {
            // A selector that selects everything counts nobody: upstream's rule.
            if !constraint.selection.is_empty() && constraint.selection.matches(&other.labels) {
                bits |= 1 << index;
            }
        }
        if self.selected.len() >= SELECTED {
            self.selected.clear();
        }
        self.selected.insert(other.id, bits);
        bits
    }

    fn has_all_keys(&self, hard: bool, at: NodeIndex) -> bool {
        let of_kind = self
            .constraints
            .iter()
            .zip(&self.sums)
            .filter(|(constraint, _)| constraint.hard == hard);
        of_kind.into_iter().all(|(_, sums)| sums.domains.of(at) != NOWHERE)
    }
}

impl Tracker for Spread {
    fn set(&mut self, at: NodeIndex, node: Option<&NodeInfo>, _: &Snapshot) {
        for (sums, part) in self.sums.iter_mut().zip(self.parts.remove(&at).unwrap_or_default()) {
            if let Some((domain, pods)) = part {
                sums.add(domain, -pods, -1);
            }
        }
        for (constraint, sums) in self.constraints.iter().zip(&mut self.sums) {
            if sums.here.len() <= at {
                sums.here.resize(at + 1, 0);
            }
            let domain = |node: &NodeInfo| constraint.key.map_or(NOWHERE, |key| node.domain(key));
            sums.domains.set(at, node.map_or(NOWHERE, domain));
            sums.here[at] = 0;
        }
        let Some(node) = node else { return };
        for group in node.groups.values().filter(|group| group.live > 0) {
            let bits = self.selected(&group.class);
            for (index, sums) in self.sums.iter_mut().enumerate().take(64) {
                if bits & (1 << index) != 0 {
                    sums.here[at] += i64::from(group.live);
                }
            }
        }
        let (hard, soft) = (
            self.has_all_keys(true, at),
            self.has_all_keys(false, at) || !self.all_keys,
        );
        let mut part = Vec::with_capacity(self.constraints.len());
        for (constraint, sums) in self.constraints.iter().zip(&mut self.sums) {
            let counts = (if constraint.hard { hard } else { soft })
                && (!constraint.honors_affinity || node::affinity(&self.class, node).is_ok())
                && (!constraint.honors_taints || taints::filter(&self.class, node).is_ok());
            if !counts {
                part.push(None);
                continue;
            }
            let (domain, pods) = (sums.domains.of(at), sums.here[at]);
            sums.add(domain, pods, 1);
            part.push(Some((domain, pods)));
        }
        self.parts.insert(at, part);
    }

    fn is_idle(&self) -> bool {
        self.constraints.is_empty()
    }

    fn may_refuse(&self) -> bool {
        self.constraints.iter().any(|constraint| constraint.hard)
    }

    fn ranks(&self) -> bool {
        self.constraints.iter().any(|constraint| !constraint.hard)
    }

    fn check(&self, at: NodeIndex) -> Result<(), Refused> {
        for (constraint, sums) in self.constraints.iter().zip(&self.sums) {
            if !constraint.hard {
                continue;
            }
            let domain = sums.domains.of(at);
            if domain == NOWHERE {
                return Err(NO_LABEL);
            }
            let emptiest = match sums.levels.first_key_value() {
                _ if sums.existing < constraint.min_domains => 0,
                Some((pods, _)) => *pods,
                // Upstream's stand-in for "no domain at all".
                None => i64::from(i32::MAX),
            };
            if sums.pods(domain) + i64::from(constraint.selects_itself) - emptiest > constraint.max_skew {
                return Err(SKEWED);
            }
        }
        Ok(())
    }

    fn sign(&self, at: NodeIndex, signature: &mut Vec<i64>) {
        for (constraint, sums) in self.constraints.iter().zip(&self.sums) {
            signature.push(match sums.domains.of(at) {
                NOWHERE => i64::MIN,
                _ if constraint.hostname && !constraint.hard => sums.here[at],
                domain if sums.domains.are_own() => sums.pods(domain),
                domain => i64::from(domain),
            });
        }
    }

    fn turns(&self) -> u64 {
        self.sums.iter().map(|sums| sums.domains.turns()).sum()
    }

    fn score(&mut self, nodes: &[NodeIndex], alike: &[u32], weight: i64, totals: &mut [i64]) {
        if self.constraints.iter().all(|constraint| constraint.hard) {
            return;
        }
        let ranked: Vec<bool> = nodes
            .iter()
            .map(|&at| !self.all_keys || self.has_all_keys(false, at))
            .collect();
        self.round = self.round.wrapping_add(1);
        let mut raw = vec![0.0f64; nodes.len()];
        for (index, (constraint, sums)) in self.constraints.iter().zip(&self.sums).enumerate() {
            if constraint.hard {
                continue;
            }
            let seen = &mut self.seen[index];
            seen.resize(sums.pods.len().max(1), 0);
            let mut size = 0u32;
            let each = nodes.iter().zip(alike).zip(&ranked);
            for ((&at, &alike), _) in each.filter(|(_, ranked)| **ranked) {
                let domain = sums.domains.of(at) as usize;
                // Nodes that are alike are in one domain, or each in its own.
                if constraint.hostname || (domain != NOWHERE as usize && sums.domains.are_own()) {
                    size += alike;
                    continue;
                }
                if seen.len() <= domain {
                    seen.resize(domain + 1, 0);
                }
                if seen[domain] != self.round {
                    seen[domain] = self.round;
                    size += 1;
                }
            }
            // Topologies of few domains are not to be drowned by those of many.
            let scale = f64::from(size + 2).ln();
            for (raw, &at) in raw.iter_mut().zip(nodes) {
                let domain = sums.domains.of(at);
                if domain == NOWHERE {
                    continue;
                }
                let pods = if constraint.hostname {
                    sums.here[at]
                } else {
                    sums.pods(domain)
                };
                *raw += pods as f64 * scale + (constraint.max_skew - 1) as f64;
            }
        }
        let rounded = |index: usize| raw[index].round() as i64;
        let scores = || (0..nodes.len()).filter(|index| ranked[*index]).map(rounded);
        let most = scores().max().unwrap_or(0);
        let least = scores().min().unwrap_or(0);
        for (index, total) in totals.iter_mut().enumerate() {
            if !ranked[index] {
                continue;
            }
            let score = if most == 0 {
                MAX_SCORE
            } else {
                MAX_SCORE * (most + least - rounded(index)) / most
            };
            *total += weight * score;
        }
    }
}
