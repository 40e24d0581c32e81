//! Room for the important: which Pods would have to leave a node so that another fits, and which node costs least.
//!
//! Per node the fewest victims are found as upstream finds them: all Pods of lower priority leave, then, those that
//! disruption budgets protect first and from the most important on, each that can stay does. Everything here is a dry
//! run: the snapshot is as it was afterwards. What was found for a node holds for all equal Pods until the node or the
//! budgets change.
//!
//! A budget holds no preemption back: it makes a node the last choice, and a protected Pod leaves all the same if no other
//! would do (upstream's rule). A change of budgets can therefore help no Pod that waits, and wakes none, here as there.
//! Only extenders that have a say in preemption may refuse for a budget's sake; the Pods they refused when a victim was
//! protected try again when budgets change ([`crate::engine::Engine::budget_changed`]), where upstream's wait for another
//! event.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::framework::Framework;
use crate::labels::selects;
use crate::memory::Tracking;
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
pub struct Budgets {
    by_namespace: BTreeMap<String, BTreeMap<String, Budget>>,
    /// Changes whenever they do.
    pub generation: u64,
}

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
        let budgets = self.by_namespace.entry(namespace).or_default();
        if budgets.get(&name) != Some(&budget) {
            budgets.insert(name, budget);
            self.generation += 1;
        }
    }

    pub fn remove(&mut self, namespace: &str, name: &str) {
        self.generation += 1;
        if let Some(budgets) = self.by_namespace.get_mut(namespace) {
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
            let budgets = self
                .by_namespace
                .get(&*pod.namespace)
                .filter(|_| !pod.labels.is_empty());
            for (name, budget) in budgets.into_iter().flatten() {
                if !selects(budget.selector.as_ref(), &pod.labels) || budget.disrupted.contains(&*pod.name) {
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

#[derive(Clone, Debug, PartialEq)]
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

/// What preemption would mean for one node.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    Victims(Victims),
    /// Even that would not help: why.
    Refused(Vec<String>),
}

/// What has to be known to try things out on a node.
pub struct Trial<'a> {
    pub framework: &'a Framework,
    pub class: &'a Class,
    pub snapshot: &'a Snapshot,
    pub budgets: &'a Budgets,
    /// The Pod that asks, if it is nominated somewhere: it does not yield to itself.
    pub asking: Option<&'a str>,
}

impl Trial<'_> {
    /// Whether the class fits a node whose account is this, nominated Pods taken into account.
    fn fits(&self, at: NodeIndex, node: &NodeInfo, tracking: &mut Option<&mut Tracking>) -> Result<(), Vec<String>> {
        let fuller = node.with_nominated(self.class.priority, self.asking);
        for node in fuller.iter().chain([node]) {
            if let Some((_, refusal)) = self.framework.refusal(self.class, node) {
                return Err(refusal.reasons);
            }
            if let Some(tracking) = tracking {
                let answer = tracking.check_if(at, node, self.snapshot);
                answer.map_err(|(_, refused)| vec![refused.reason.to_owned()])?;
            }
        }
        Ok(())
    }

    /// Who would have to leave the node.
    pub fn victims(&self, at: NodeIndex, mut tracking: Option<&mut Tracking>) -> Outcome {
        let Some(node) = self.snapshot.node(at) else {
            return Outcome::Refused(vec![NOT_HELPFUL.to_owned()]);
        };
        let less_important = |pod: &&PodInfo| pod.class.priority < self.class.priority;
        let mut leaving: Vec<PodInfo> = node.pods.values().filter(less_important).cloned().collect();
        if leaving.is_empty() {
            return Outcome::Refused(vec![NO_VICTIMS.to_owned()]);
        }
        let mut copy = node.clone();
        for pod in &leaving {
            copy.remove_pod(&pod.uid);
        }
        if let Err(reasons) = self.fits(at, &copy, &mut tracking) {
            return Outcome::Refused(reasons);
        }
        by_importance(&mut leaving);
        let (protected, others) = self.budgets.split(leaving);
        let protected = protected.into_iter().map(|pod| (pod, 1));
        let mut victims = Victims {
            pods: Vec::new(),
            violations: 0,
        };
        for (pod, violation) in protected.chain(others.into_iter().map(|pod| (pod, 0))) {
            copy.add_pod(pod.clone());
            if self.fits(at, &copy, &mut tracking).is_err() {
                copy.remove_pod(&pod.uid);
                victims.violations += violation;
                victims.pods.push(pod);
            }
        }
        if victims.pods.is_empty() {
            // It fits as it is: the next try finds that out.
            return Outcome::Refused(vec![NOT_HELPFUL.to_owned()]);
        }
        by_importance(&mut victims.pods);
        Outcome::Victims(victims)
    }
}

/// Candidates as they are found.
#[derive(Default)]
pub struct Candidates {
    best: Option<(NodeIndex, Arc<Outcome>)>,
    found: usize,
    peaceful: bool,
    examined: usize,
    why_not: BTreeMap<String, usize>,
}

impl Candidates {
    pub fn add(&mut self, at: NodeIndex, outcome: &Arc<Outcome>) {
        self.examined += 1;
        match &**outcome {
            Outcome::Refused(reasons) => self.refuse(reasons, 1),
            Outcome::Victims(victims) => {
                self.found += 1;
                self.peaceful |= victims.violations == 0;
                let cheaper = match self.best.as_ref().map(|(_, best)| &**best) {
                    Some(Outcome::Victims(best)) => victims.cost() < best.cost(),
                    _ => true,
                };
                if cheaper {
                    self.best = Some((at, Arc::clone(outcome)));
                }
            }
        }
    }

    /// Nodes that need not be looked at: nobody on them could leave.
    pub fn add_without_victims(&mut self, nodes: usize) {
        self.examined += nodes;
        if nodes > 0 {
            self.refuse(&[NO_VICTIMS.to_owned()], nodes);
        }
    }

    fn refuse(&mut self, reasons: &[String], nodes: usize) {
        for reason in reasons {
            match self.why_not.get_mut(reason) {
                Some(count) => *count += nodes,
                None => {
                    self.why_not.insert(reason.clone(), nodes);
                }
            }
        }
    }

    /// Whether `enough` candidates were found, one of them without breaking a budget.
    pub fn suffice(&self, enough: usize) -> bool {
        self.peaceful && self.found >= enough
    }

    /// The best of them, or how many of `nodes` nodes will not do and why.
    pub fn into_best(mut self, nodes: usize) -> Result<(NodeIndex, Arc<Outcome>), BTreeMap<String, usize>> {
        if let Some(best) = self.best {
            return Ok(best);
        }
        if nodes > self.examined {
            self.refuse(&[NOT_HELPFUL.to_owned()], nodes - self.examined);
        }
        Err(self.why_not)
    }
}
