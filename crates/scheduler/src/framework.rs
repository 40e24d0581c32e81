//! The framework: which checks a node must pass, how the nodes that pass are ranked, and what kind of change could
//! turn a "no" into a "yes".
//!
//! There are two sorts of plugins. A **node plugin** looks at one class of Pods and one node's account and nothing else,
//! so its answer holds until that account changes and is remembered. A **cluster plugin** (pod affinity, topology
//! spread) looks at Pods everywhere; it prepares once per decision. Both are rows of a table, in upstream's order.

use crate::plugins;
use crate::pod::Class;
use crate::snapshot::{NodeInfo, Snapshot};

/// Scores run from 0 to this.
pub const MAX_SCORE: i64 = 100;

/// Why a node will not do, worded as upstream words it. Usually one reason; resources may lack several.
pub type Reasons = Vec<String>;

/// What happened in the cluster, as far as it can matter to a Pod that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node came, or changed in what it has, its labels, taints or cordon.
    Node,
    /// A Pod left a node (or shrank): room, ports and anti-affinity may have been freed.
    PodGone,
    /// A Pod was placed, or its labels changed: affinity may have been satisfied.
    PodPlaced,
    /// A namespace's labels changed.
    Namespace,
}

/// A check of one node.
pub struct NodeFilter {
    pub name: &'static str,
    pub check: fn(&Class, &NodeInfo) -> Result<(), Reasons>,
    pub helped_by: &'static [Event],
}

/// How raw scores become 0..=100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalize {
    /// They already are.
    No,
    /// The largest becomes 100.
    ByMax,
    /// The largest becomes 0: less is better.
    ByMaxReversed,
}

/// A ranking of one node.
pub struct NodeScore {
    pub name: &'static str,
    pub weight: i64,
    pub normalize: Normalize,
    pub score: fn(&Class, &NodeInfo) -> i64,
}

/// A plugin whose answer depends on Pods beyond the node.
pub trait ClusterPlugin: Send + Sync {
    fn name(&self) -> &'static str;
    fn helped_by(&self) -> &'static [Event];
    fn weight(&self) -> i64;
    /// Looks at the cluster once. `None`: this class does not concern the plugin.
    fn prepare<'a>(&self, class: &'a Class, snapshot: &'a Snapshot) -> Option<Box<dyn Prepared + 'a>>;
}

/// A cluster plugin's view for one decision.
pub trait Prepared {
    fn check(&self, node: &NodeInfo) -> Result<(), Reasons>;
    /// Raw scores of the nodes that passed, to be normalized by the plugin: one per node, in order.
    fn scores(&self, nodes: &[&NodeInfo]) -> Vec<i64>;
}

/// The set of plugins in force.
pub struct Framework {
    pub filters: Vec<NodeFilter>,
    pub scores: Vec<NodeScore>,
    pub cluster: Vec<Box<dyn ClusterPlugin>>,
}

impl Default for Framework {
    /// Upstream's default plugins with their default weights, as far as this scheduler has them.
    fn default() -> Self {
        use Event::{Node, PodGone};
        let filter = |name, check, helped_by| NodeFilter { name, check, helped_by };
        let score = |name, weight, normalize, score| NodeScore {
            name,
            weight,
            normalize,
            score,
        };
        Framework {
            filters: vec![
                filter("NodeUnschedulable", plugins::node::unschedulable, &[Node]),
                filter("NodeName", plugins::node::name, &[Node]),
                filter("TaintToleration", plugins::taints::filter, &[Node]),
                filter("NodeAffinity", plugins::node::affinity, &[Node]),
                filter("NodePorts", plugins::node::ports, &[Node, PodGone]),
                filter("NodeResourcesFit", plugins::resources::fit, &[Node, PodGone]),
            ],
            scores: vec![
                score("TaintToleration", 3, Normalize::ByMaxReversed, plugins::taints::score),
                score("NodeAffinity", 2, Normalize::ByMax, plugins::node::affinity_score),
                score(
                    "NodeResourcesFit",
                    1,
                    Normalize::No,
                    plugins::resources::least_allocated,
                ),
                score(
                    "NodeResourcesBalancedAllocation",
                    1,
                    Normalize::No,
                    plugins::resources::balanced,
                ),
                score("ImageLocality", 1, Normalize::No, plugins::images::score),
            ],
            cluster: vec![
                Box::new(plugins::pod_affinity::InterPodAffinity),
                Box::new(plugins::topology_spread::PodTopologySpread),
            ],
        }
    }
}

/// A node plugin's whole answer about one node.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Raw scores, one per row of [`Framework::scores`].
    Fits(Box<[i64]>),
    /// The row of [`Framework::filters`] that refused, and why.
    Refused { filter: usize, reasons: Reasons },
}

impl Framework {
    /// Runs the node plugins, stopping at the first refusal as upstream does.
    pub fn judge(&self, class: &Class, node: &NodeInfo) -> Verdict {
        for (filter, row) in self.filters.iter().enumerate() {
            if let Err(reasons) = (row.check)(class, node) {
                return Verdict::Refused { filter, reasons };
            }
        }
        Verdict::Fits(self.scores.iter().map(|row| (row.score)(class, node)).collect())
    }

    /// Weighted totals of nodes with the given raw scores.
    pub fn totals<'a>(&self, raw: impl Iterator<Item = &'a [i64]> + Clone) -> Vec<i64> {
        let largest: Vec<i64> = (0..self.scores.len())
            .map(|row| match self.scores[row].normalize {
                Normalize::No => 0,
                _ => raw
                    .clone()
                    .filter_map(|scores| scores.get(row))
                    .copied()
                    .max()
                    .unwrap_or(0),
            })
            .collect();
        raw.map(|scores| {
            let rows = self.scores.iter().zip(scores).zip(&largest);
            rows.map(|((row, &score), &largest)| row.weight * normalized(row.normalize, score, largest))
                .sum()
        })
        .collect()
    }
}

fn normalized(how: Normalize, score: i64, largest: i64) -> i64 {
    match how {
        Normalize::No => score,
        Normalize::ByMax if largest == 0 => 0,
        Normalize::ByMax => score * MAX_SCORE / largest,
        Normalize::ByMaxReversed if largest == 0 => MAX_SCORE,
        Normalize::ByMaxReversed => MAX_SCORE - score * MAX_SCORE / largest,
    }
}
