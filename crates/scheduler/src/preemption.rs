//! Room for the important: which Pods would have to leave a node so that another fits, and which node costs least.
//!
//! Per node the fewest victims are found as upstream finds them: all Pods of lower priority leave, then, those that
//! disruption budgets protect first and from the most important on, each that can stay does. Everything here is a dry
//! run: the snapshot is as it was afterwards.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::framework::{Framework, Refusal};
use crate::labels::selects;
use crate::pod::{Class, PodInfo};
use crate::snapshot::{NodeIndex, NodeInfo, Snapshot};

pub const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

#[derive(Clone, Debug, PartialEq)]
struct Budget {
    selector: Option<LabelSelector>,
    allowed: i64,
    /// Pods that were let go already and count no more.
    disrupted: BTreeSet<String>,
}

/// Disruption budgets by namespace and name, as far as preemption looks at them.
#[derive(Debug, Default)]
pub struct Budgets(BTreeMap<String, BTreeMap<String, Budget>>);

impl Budgets {
    pub fn set(&mut self, object: &PodDisruptionBudget) {
        let status = object.status.as_ref();
        let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
        let selector = object.spec.as_ref().and_then(|spec| spec.selector.clone());
        let budget = Budget {
            // An empty selector protects nobody here: upstream's rule.
            selector: selector.filter(|selector| {
                selector.match_labels.iter().flatten().next().is_some()
                    || selector.match_expressions.iter().flatten().next().is_some()
            }),
            allowed: i64::from(status.and_then(|status| status.disruptions_allowed).unwrap_or(0)),
            disrupted: disrupted.into_iter().flatten().map(|(name, _)| name.clone()).collect(),
        };
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        self.0.entry(namespace).or_default().insert(name, budget);
    }

    pub fn remove(&mut self, namespace: &str, name: &str) {
        if let Some(budgets) = self.0.get_mut(namespace) {
            budgets.remove(name);
        }
    }

    /// Splits Pods (the most important first) into those whose eviction a budget forbids and the others. Each Pod uses
    /// up what its budgets allow.
    fn split(&self, pods: Vec<PodInfo>) -> (Vec<PodInfo>, Vec<PodInfo>) {
        let mut left: BTreeMap<(String, &str), i64> = BTreeMap::new();
        pods.into_iter().partition(|pod| {
            let mut forbidden = false;
            // Without labels nothing selects it.
            let budgets = self.0.get(&*pod.namespace).filter(|_| !pod.class.labels.is_empty());
            for (name, budget) in budgets.into_iter().flatten() {
                if !selects(budget.selector.as_ref(), &pod.class.labels) || budget.disrupted.contains(&*pod.name) {
                    continue;
                }
                let left = left
                    .entry((pod.namespace.to_string(), name.as_str()))
                    .or_insert(budget.allowed);
                *left -= 1;
                forbidden |= *left < 0;
            }
            forbidden
        })
    }
}

#[derive(Debug, PartialEq)]
pub struct Victims {
    /// The most important first; never empty.
    pub pods: Vec<PodInfo>,
    /// How many of them a disruption budget protects.
    pub violations: usize,
}

/// A Pod without a start time is only about to start: later than all others.
fn started(pod: &PodInfo) -> i64 {
    pod.started.unwrap_or(i64::MAX)
}

fn by_importance(pods: &mut [PodInfo]) {
    pods.sort_by(|left, right| {
        let key = |pod: &PodInfo| (Reverse(pod.class.priority), started(pod));
        // Names last, so that the same cluster gives the same answer.
        key(left).cmp(&key(right)).then_with(|| left.uid.cmp(&right.uid))
    });
}

impl Victims {
    /// What decides between nodes: the smaller the better. Upstream's criteria in its order: protected victims, the
    /// most important one, all priorities together, how many, and how long the most important have been running.
    pub fn cost(&self) -> (usize, i32, i64, usize, Reverse<i64>) {
        let highest = self.pods.iter().map(|pod| pod.class.priority).max().unwrap_or(i32::MIN);
        // Shifted so that more victims of a negative priority cost more, not less.
        let sum = self
            .pods
            .iter()
            .map(|pod| i64::from(pod.class.priority) + (1 << 31))
            .sum();
        let most_important = self.pods.iter().filter(|pod| pod.class.priority == highest);
        let earliest = most_important.map(started).min().unwrap_or(i64::MAX);
        (self.violations, highest, sum, self.pods.len(), Reverse(earliest))
    }
}

/// What has to be known to try things out on a node.
pub struct Trial<'a> {
    pub framework: &'a Framework,
    pub class: &'a Class,
    pub budgets: &'a Budgets,
}

impl Trial<'_> {
    /// Whether the class fits a node whose account were this one: `(plugin, why not)`.
    fn fits_alone(
        &self,
        snapshot: &mut Snapshot,
        at: NodeIndex,
        info: &NodeInfo,
    ) -> Result<(), (&'static str, Refusal)> {
        for row in &self.framework.filters {
            (row.check)(self.class, info).map_err(|refusal| (row.name, refusal))?;
        }
        if self.framework.cluster.is_empty() || (!self.class.looks_beyond_the_node() && !snapshot.any_terms()) {
            return Ok(());
        }
        // Cluster plugins see the whole snapshot: the account takes the node's place while they look.
        let Some(before) = snapshot.exchange(at, info.clone()) else {
            return Ok(());
        };
        let answer = self.framework.cluster.iter().try_for_each(|plugin| {
            let Some(view) = plugin.prepare(self.class, snapshot) else {
                return Ok(());
            };
            view.check(info).map_err(|refusal| (plugin.name(), refusal))
        });
        snapshot.exchange(at, before);
        answer
    }

    /// Whether it fits with the Pods that are to come there as well as without them.
    pub fn fits(
        &self,
        snapshot: &mut Snapshot,
        at: NodeIndex,
        info: &NodeInfo,
        nominated: &[PodInfo],
    ) -> Result<(), (&'static str, Refusal)> {
        if !nominated.is_empty() {
            let mut fuller = info.clone();
            for pod in nominated {
                fuller.add_pod(pod.clone());
            }
            self.fits_alone(snapshot, at, &fuller)?;
        }
        self.fits_alone(snapshot, at, info)
    }

    /// Who would have to leave the node; otherwise why even that would not help.
    pub fn victims(
        &self,
        snapshot: &mut Snapshot,
        at: NodeIndex,
        nominated: &[PodInfo],
    ) -> Result<Victims, Vec<String>> {
        let Some(mut copy) = snapshot.node(at).cloned() else {
            return Err(vec![NOT_HELPFUL.to_owned()]);
        };
        let less_important = |pod: &&PodInfo| pod.class.priority < self.class.priority;
        let mut leaving: Vec<PodInfo> = copy.pods.values().filter(less_important).cloned().collect();
        if leaving.is_empty() {
            return Err(vec![NO_VICTIMS.to_owned()]);
        }
        for pod in &leaving {
            copy.remove_pod(&pod.uid);
        }
        self.fits(snapshot, at, &copy, nominated)
            .map_err(|(_, refusal)| refusal.reasons)?;
        by_importance(&mut leaving);
        let (protected, others) = self.budgets.split(leaving);
        let protected = protected.into_iter().map(|pod| (pod, 1));
        let mut victims = Victims {
            pods: Vec::new(),
            violations: 0,
        };
        for (pod, violation) in protected.chain(others.into_iter().map(|pod| (pod, 0))) {
            copy.add_pod(pod.clone());
            if self.fits(snapshot, at, &copy, nominated).is_err() {
                copy.remove_pod(&pod.uid);
                victims.violations += violation;
                victims.pods.push(pod);
            }
        }
        if victims.pods.is_empty() {
            // It fits as it is: the next try finds that out.
            return Err(vec![NOT_HELPFUL.to_owned()]);
        }
        by_importance(&mut victims.pods);
        Ok(victims)
    }
}
