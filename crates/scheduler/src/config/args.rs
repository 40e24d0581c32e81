//! The arguments of plugins, with upstream's defaults.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};

/// A resource that takes part in scoring.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourceWeight {
    pub name: String,
    pub weight: i64,
}

impl ResourceWeight {
    pub fn new(name: &str, weight: i64) -> Self {
        ResourceWeight {
            name: name.to_owned(),
            weight,
        }
    }
    /// What scoring looks at if nothing is said.
    pub fn usual() -> Vec<ResourceWeight> {
        vec![ResourceWeight::new("cpu", 1), ResourceWeight::new("memory", 1)]
    }
}

/// A point of a function of utilization (0 to 100) whose values go from 0 to 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapePoint {
    pub utilization: i64,
    pub score: i64,
}

/// How free or full a node should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Strategy {
    #[default]
    LeastAllocated,
    MostAllocated,
    RequestedToCapacityRatio(Vec<ShapePoint>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct NodeResourcesFit {
    /// Extended resources that are not checked.
    pub ignored: BTreeSet<String>,
    /// Prefixes of extended resources that are not checked.
    pub ignored_groups: BTreeSet<String>,
    pub strategy: Strategy,
    pub resources: Vec<ResourceWeight>,
}

impl Default for NodeResourcesFit {
    fn default() -> Self {
        NodeResourcesFit {
            ignored: BTreeSet::new(),
            ignored_groups: BTreeSet::new(),
            strategy: Strategy::default(),
            resources: ResourceWeight::usual(),
        }
    }
}

/// How many nodes preemption looks at before it chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultPreemption {
    pub min_candidate_nodes_percentage: u32,
    pub min_candidate_nodes_absolute: u32,
}

impl Default for DefaultPreemption {
    fn default() -> Self {
        DefaultPreemption {
            min_candidate_nodes_percentage: 10,
            min_candidate_nodes_absolute: 100,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterPodAffinity {
    /// What existing Pods' required affinity to a newcomer counts in scoring.
    pub hard_pod_affinity_weight: i32,
    /// Existing Pods' preferences do not count for a newcomer that has none.
    pub ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for InterPodAffinity {
    fn default() -> Self {
        InterPodAffinity {
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
        }
    }
}

/// Constraints of Pods that have none of their own but belong to a Service or a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct PodTopologySpread {
    /// Without selectors: those follow from what a Pod belongs to.
    pub defaults: Vec<TopologySpreadConstraint>,
    /// The defaults are the scheduler's own: nodes without the labels take part as well.
    pub system: bool,
}

impl Default for PodTopologySpread {
    fn default() -> Self {
        let soft = |topology_key: &str, max_skew| TopologySpreadConstraint {
            max_skew,
            topology_key: topology_key.to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            ..TopologySpreadConstraint::default()
        };
        PodTopologySpread {
            defaults: vec![
                soft("kubernetes.io/hostname", 3),
                soft("topology.kubernetes.io/zone", 5),
            ],
            system: true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeBinding {
    /// How long a Pod waits for its volumes to be bound.
    pub bind_timeout: Duration,
}

impl Default for VolumeBinding {
    fn default() -> Self {
        VolumeBinding {
            bind_timeout: Duration::from_secs(600),
        }
    }
}

/// The arguments of all plugins of a profile.
#[derive(Clone, Debug, PartialEq)]
pub struct Arguments {
    pub preemption: DefaultPreemption,
    pub pod_affinity: InterPodAffinity,
    /// Added to what Pods ask of nodes.
    pub node_affinity: NodeAffinity,
    pub fit: NodeResourcesFit,
    /// What NodeResourcesBalancedAllocation balances.
    pub balanced: Vec<ResourceWeight>,
    pub spread: PodTopologySpread,
    pub volume_binding: VolumeBinding,
}

impl Default for Arguments {
    fn default() -> Self {
        Arguments {
            preemption: DefaultPreemption::default(),
            pod_affinity: InterPodAffinity::default(),
            node_affinity: NodeAffinity::default(),
            fit: NodeResourcesFit::default(),
            balanced: ResourceWeight::usual(),
            spread: PodTopologySpread::default(),
            volume_binding: VolumeBinding::default(),
        }
    }
}
