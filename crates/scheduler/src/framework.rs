//! The framework: which checks a node must pass, how the nodes that pass are ranked, and what kind of change could
//! turn a "no" into a "yes".
//!
//! There are two sorts of plugins. A **node plugin** looks at one class of Pods and one node's account and nothing else,
//! so its answer holds until that account changes and is remembered. A **cluster plugin** (pod affinity, topology
//! spread) looks at Pods everywhere; per class it keeps sums that follow every change of a node ([`Tracker`]). Both are rows
//! of a table, in upstream's order.
//!
//! A plugin that also looks at objects the snapshot does not hold (claims, volumes, classes) closes over its own view of
//! them, concerns itself only with classes that name such objects, and has the engine told when that view changed
//! ([`crate::engine::Engine::objects_changed`]). What has to happen around a binding is a [`BindingPlugin`].

use std::sync::Arc;

use futures::future::BoxFuture;

pub use crate::config::args::DefaultPreemption as Preemption;

use crate::config::Profile;
use crate::config::args::Arguments;
use crate::plugins;
use crate::pod::{Class, PodInfo};
use crate::snapshot::{NodeIndex, NodeInfo, Snapshot};

/// Scores run from 0 to this.
pub const MAX_SCORE: i64 = 100;

/// Why a node will not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Worded as upstream words it. Usually one; resources may lack several.
    pub reasons: Vec<String>,
    /// Whether removing Pods from the node could help: only then preemption looks at it.
    pub resolvable: bool,
}

impl Refusal {
    /// A refusal that other Pods' leaving the node could end.
    pub fn resolvable(reason: impl Into<String>) -> Self {
        Refusal {
            reasons: vec![reason.into()],
            resolvable: true,
        }
    }
    /// A refusal that nothing but a change of the Pod or of the node itself ends.
    pub fn unresolvable(reason: impl Into<String>) -> Self {
        Refusal {
            reasons: vec![reason.into()],
            resolvable: false,
        }
    }
}

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
    /// A node went away.
    NodeGone,
    /// Objects of these kinds changed.
    Claim,
    Volume,
    StorageClass,
    CsiNode,
    CsiDriver,
    CsiCapacity,
    VolumeAttachment,
    ResourceClaim,
}

pub type PodCheck = Box<dyn Fn(&Class) -> Result<(), Refusal> + Send + Sync>;

/// A check of the Pod alone, before any node is looked at. Its refusal counts for every node.
pub struct PreFilter {
    pub name: &'static str,
    pub check: PodCheck,
    pub helped_by: &'static [Event],
}

pub type NodeCheck = Box<dyn Fn(&Class, &NodeInfo) -> Result<(), Refusal> + Send + Sync>;

/// A check of one node.
pub struct NodeFilter {
    pub name: &'static str,
    pub check: NodeCheck,
    pub helped_by: &'static [Event],
}

/// Work around a binding that a plugin does beyond choosing the node.
pub trait BindingPlugin: Send + Sync {
    fn name(&self) -> &'static str;
    /// Takes what the Pod needs on the node for it, at once and without waiting: the next decision must see it taken.
    /// A refusal sends the Pod back to wait for what [`BindingPlugin::helped_by`] lists.
    fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), Refusal>;
    /// Gives it back: the Pod is not bound after all, or is gone. Also called where `reserve` refused, and may come twice.
    fn unreserve(&self, pod: &PodInfo);
    /// What must be done before the binding is written, if anything. An error undoes the reservation; the Pod tries
    /// again after a while.
    fn pre_bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> Option<BoxFuture<'a, Result<(), String>>>;
    fn helped_by(&self) -> &'static [Event];
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

pub type NodeRank = Box<dyn Fn(&Class, &NodeInfo) -> i64 + Send + Sync>;

/// A ranking of one node.
pub struct NodeScore {
    pub name: &'static str,
    pub weight: i64,
    pub normalize: Normalize,
    pub score: NodeRank,
}

/// A plugin whose answer depends on Pods beyond the node.
pub trait ClusterPlugin: Send + Sync {
    fn name(&self) -> &'static str;
    fn helped_by(&self) -> &'static [Event];
    fn weight(&self) -> i64;
    /// Whether it refuses nodes, not only ranks them.
    fn filters(&self) -> bool {
        true
    }
    /// Topology keys it may ask for beyond those that Pods' terms name.
    fn topology_keys(&self) -> Vec<String> {
        Vec::new()
    }
    /// Whether it could have anything to say of the class as the cluster is.
    fn concerns(&self, class: &Class, snapshot: &Snapshot) -> bool;
    /// Sums for the class. It is then given every node once.
    fn track(&self, class: &Arc<Class>, snapshot: &Snapshot) -> Box<dyn Tracker>;
    /// Whether the event could end a refusal of a node that the event is not about. `pod`: what came or went.
    fn helped(&self, class: &Class, event: Event, pod: Option<&Class>, snapshot: &Snapshot) -> bool;
}

/// A cluster plugin's sums for one class.
pub trait Tracker: Send {
    /// Replaces what it holds of a node by the node's present account.
    fn set(&mut self, at: NodeIndex, node: Option<&NodeInfo>, snapshot: &Snapshot);
    /// Whether it refuses no node and ranks all alike, as long as nobody is nominated anywhere.
    fn is_idle(&self) -> bool;
    /// Whether it could refuse a node.
    fn may_refuse(&self) -> bool;
    /// Whether it may score nodes differently.
    fn ranks(&self) -> bool;
    fn check(&self, at: NodeIndex) -> Result<(), Refused>;
    /// Appends what tells the node from others: those with equal signatures are checked and scored alike. Only what a
    /// node is given by [`Tracker::set`] changes its own signature, until [`Tracker::turns`] does.
    fn sign(&self, at: NodeIndex, signature: &mut Vec<i64>);
    /// Changes whenever signatures are made differently from before.
    fn turns(&self) -> u64;
    /// Adds `weight` times its scores (from 0 to 100) of the nodes that passed all checks to their totals, in order.
    /// Each node stands for as many as are `alike`.
    fn score(&mut self, nodes: &[NodeIndex], alike: &[u32], weight: i64, totals: &mut [i64]);
}

/// A refusal that costs nothing to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reason: &'static str,
    /// See [`Refusal::resolvable`].
    pub resolvable: bool,
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Refusal {
            reasons: vec![refused.reason.to_owned()],
            resolvable: refused.resolvable,
        }
    }
}

/// The set of plugins in force for Pods that name one scheduler (a profile).
pub struct Framework {
    pub pre_filters: Vec<PreFilter>,
    pub binding: Vec<Arc<dyn BindingPlugin>>,
    /// `None`: Pods wait however important they are.
    pub preemption: Option<Preemption>,
    pub filters: Vec<NodeFilter>,
    pub scores: Vec<NodeScore>,
    pub cluster: Vec<Box<dyn ClusterPlugin>>,
}

/// Upstream's name of the scheduler of Pods that name none.
pub const DEFAULT_SCHEDULER: &str = "default-scheduler";

impl Default for Framework {
    /// Upstream's default plugins with their default weights, as far as this scheduler has them.
    fn default() -> Self {
        Profile::default().framework()
    }
}

/// A node plugin's check by its name.
fn node_filter(name: &str, arguments: &Arguments) -> Option<NodeFilter> {
    use Event::{Node, PodGone};
    let (name, helped_by, check): (_, &'static [Event], NodeCheck) = match name {
        "NodeUnschedulable" => ("NodeUnschedulable", &[Node], Box::new(plugins::node::unschedulable)),
        "NodeName" => ("NodeName", &[Node], Box::new(plugins::node::name)),
        "TaintToleration" => ("TaintToleration", &[Node], Box::new(plugins::taints::filter)),
        "NodeAffinity" => (
            "NodeAffinity",
            &[Node],
            plugins::node::affinity_with(&arguments.node_affinity),
        ),
        "NodePorts" => ("NodePorts", &[Node, PodGone], Box::new(plugins::node::ports)),
        "NodeResourcesFit" => (
            "NodeResourcesFit",
            &[Node, PodGone],
            plugins::resources::fit(&arguments.fit),
        ),
        _ => return None,
    };
    Some(NodeFilter { name, check, helped_by })
}

/// A node plugin's score by its name.
fn node_score(name: &str, weight: i64, arguments: &Arguments) -> Option<NodeScore> {
    let (name, normalize, score): (_, _, NodeRank) = match name {
        "TaintToleration" => (
            "TaintToleration",
            Normalize::ByMaxReversed,
            Box::new(plugins::taints::score),
        ),
        "NodeAffinity" => (
            "NodeAffinity",
            Normalize::ByMax,
            plugins::node::affinity_score_with(&arguments.node_affinity),
        ),
        "NodeResourcesFit" => (
            "NodeResourcesFit",
            Normalize::No,
            plugins::resources::allocation(&arguments.fit),
        ),
        "NodeResourcesBalancedAllocation" => (
            "NodeResourcesBalancedAllocation",
            Normalize::No,
            plugins::resources::balanced(&arguments.balanced),
        ),
        "ImageLocality" => ("ImageLocality", Normalize::No, Box::new(plugins::images::score)),
        _ => return None,
    };
    Some(NodeScore {
        name,
        weight,
        normalize,
        score,
    })
}

/// A cluster plugin by its name. `weight` 0: it does not score.
fn cluster_plugin(name: &str, weight: i64, arguments: &Arguments) -> Option<Box<dyn ClusterPlugin>> {
    let plugin: Box<dyn ClusterPlugin> = match name {
        "InterPodAffinity" => Box::new(plugins::pod_affinity::InterPodAffinity {
            hard_pod_affinity_weight: i64::from(arguments.pod_affinity.hard_pod_affinity_weight),
            ignore_preferred_terms_of_existing_pods: arguments.pod_affinity.ignore_preferred_terms_of_existing_pods,
            weight,
        }),
        "PodTopologySpread" => Box::new(plugins::topology_spread::PodTopologySpread {
            defaults: arguments.spread.defaults.clone(),
            system: arguments.spread.system,
            weight,
        }),
        _ => return None,
    };
    Some(plugin)
}

/// A cluster plugin that ranks nodes and refuses none.
struct RanksOnly(Box<dyn ClusterPlugin>);

impl ClusterPlugin for RanksOnly {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn helped_by(&self) -> &'static [Event] {
        &[]
    }
    fn weight(&self) -> i64 {
        self.0.weight()
    }
    fn filters(&self) -> bool {
        false
    }
    fn topology_keys(&self) -> Vec<String> {
        self.0.topology_keys()
    }
    fn concerns(&self, class: &Class, snapshot: &Snapshot) -> bool {
        self.0.concerns(class, snapshot)
    }
    fn track(&self, class: &Arc<Class>, snapshot: &Snapshot) -> Box<dyn Tracker> {
        self.0.track(class, snapshot)
    }
    fn helped(&self, _: &Class, _: Event, _: Option<&Class>, _: &Snapshot) -> bool {
        false
    }
}

impl Framework {
    /// A profile that filters and scores with these plugins. Names that have no check or score are passed over: whether
    /// they may be there is the configuration's business.
    pub fn new<'a>(
        filters: impl IntoIterator<Item = &'a str>,
        scores: impl IntoIterator<Item = (&'a str, i64)>,
        arguments: &Arguments,
    ) -> Self {
        let mut framework = Framework {
            pre_filters: Vec::new(),
            binding: Vec::new(),
            preemption: None,
            filters: Vec::new(),
            scores: Vec::new(),
            cluster: Vec::new(),
        };
        let scores: Vec<(&str, i64)> = scores.into_iter().collect();
        let filters: Vec<&str> = filters.into_iter().collect();
        let weight = |name: &str| {
            scores
                .iter()
                .find(|(scored, _)| *scored == name)
                .map(|(_, weight)| *weight)
        };
        for name in &filters {
            if *name == "NodeAffinity" {
                framework.pre_filters.push(PreFilter {
                    name: "NodeAffinity",
                    check: Box::new(plugins::node::affinity_conflict),
                    helped_by: &[],
                });
            }
            framework.filters.extend(node_filter(name, arguments));
            framework
                .cluster
                .extend(cluster_plugin(name, weight(name).unwrap_or(0), arguments));
        }
        for (name, weight) in &scores {
            framework.scores.extend(node_score(name, *weight, arguments));
            if !filters.contains(name)
                && let Some(plugin) = cluster_plugin(name, *weight, arguments)
            {
                framework.cluster.push(Box::new(RanksOnly(plugin)));
            }
        }
        framework
    }
}

impl Framework {
    /// The plugins whose refusal `event` can end.
    pub fn helped_by(&self, event: Event) -> Vec<&'static str> {
        let rows = self.pre_filters.iter().map(|row| (row.name, row.helped_by));
        let rows = rows.chain(self.filters.iter().map(|row| (row.name, row.helped_by)));
        let rows = rows.chain(self.cluster.iter().map(|row| (row.name(), row.helped_by())));
        let rows = rows.chain(self.binding.iter().map(|row| (row.name(), row.helped_by())));
        rows.filter(|(_, helped_by)| helped_by.contains(&event))
            .map(|(name, _)| name)
            .collect()
    }

    /// Raw scores of a node, one per row of [`Framework::scores`].
    pub fn raw(&self, class: &Class, node: &NodeInfo) -> Box<[i64]> {
        self.scores.iter().map(|row| (row.score)(class, node)).collect()
    }

    /// The first refusal, with its row of [`Framework::filters`]; the others are not asked, as upstream's are not.
    pub fn refusal(&self, class: &Class, node: &NodeInfo) -> Option<(usize, Refusal)> {
        let mut checks = self.filters.iter().enumerate();
        checks.find_map(|(filter, row)| Some((filter, (row.check)(class, node).err()?)))
    }

    /// The weighted total of a node with these raw scores, where these are the largest among all nodes.
    pub fn total(&self, raw: &[i64], largest: &[i64]) -> i64 {
        let rows = self.scores.iter().zip(raw).zip(largest);
        rows.map(|((row, &score), &largest)| row.weight * normalized(row.normalize, score, largest))
            .sum()
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
        raw.map(|scores| self.total(scores, &largest)).collect()
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
