//! Keeps the Pods a constraint selects evenly spread over a topology.
//!
//! Per constraint the matching Pods of the class's namespace are counted per topology value over the eligible nodes
//! (those that satisfy the node selector and affinity, by default policy). A hard constraint refuses a node whose
//! domain would exceed the emptiest one by more than `maxSkew`; a soft one ranks emptier domains higher.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::framework::{ClusterPlugin, Event, MAX_SCORE, Prepared, Refusal};
use crate::labels::{Labels, selects};
use crate::plugins::{node, taints};
use crate::pod::Class;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin with its arguments.
pub struct PodTopologySpread {
    /// Constraints of Pods that have none of their own; `None`: the system's.
    pub default_constraints: Option<Vec<TopologySpreadConstraint>>,
    pub weight: i64,
}

impl Default for PodTopologySpread {
    fn default() -> Self {
        PodTopologySpread {
            default_constraints: None,
            weight: 2,
        }
    }
}

struct Spread<'a> {
    constraint: &'a TopologySpreadConstraint,
    selector: Option<LabelSelector>,
    counts: HashMap<&'a str, i64>,
    hard: bool,
}

struct View<'a> {
    class: &'a Class,
    spreads: Vec<Spread<'a>>,
}

/// The constraint's selector with `matchLabelKeys` resolved against the Pod's own labels.
fn effective_selector(constraint: &TopologySpreadConstraint, labels: &Labels) -> Option<LabelSelector> {
    // No selector selects nothing, whatever labels are to match.
    let mut selector = constraint.label_selector.clone()?;
    for key in constraint.match_label_keys.iter().flatten() {
        if let Some(value) = labels.get(key) {
            selector
                .match_labels
                .get_or_insert_default()
                .insert(key.clone(), value.clone());
        }
    }
    Some(selector)
}

fn eligible(constraint: &TopologySpreadConstraint, class: &Class, info: &NodeInfo) -> bool {
    let honors = |policy: &Option<String>, default: &str| policy.as_deref().unwrap_or(default) == "Honor";
    (!honors(&constraint.node_affinity_policy, "Honor") || node::affinity(class, info).is_ok())
        && (!honors(&constraint.node_taints_policy, "Ignore") || taints::filter(class, info).is_ok())
}

impl ClusterPlugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }
    fn helped_by(&self) -> &'static [Event] {
        &[Event::Node, Event::PodGone, Event::PodPlaced]
    }
    fn weight(&self) -> i64 {
        self.weight
    }
    fn prepare<'a>(&self, class: &'a Class, snapshot: &'a Snapshot) -> Option<Box<dyn Prepared + 'a>> {
        if class.spread.is_empty() {
            return None;
        }
        let spreads = class.spread.iter().map(|constraint| {
            let selector = effective_selector(constraint, &class.labels);
            let selects_all = selector.as_ref().is_some_and(|selector| {
                selector.match_labels.iter().flatten().next().is_none()
                    && selector.match_expressions.iter().flatten().next().is_none()
            });
            let mut counts: HashMap<&str, i64> = HashMap::new();
            for (_, info) in snapshot.nodes() {
                let Some(value) = info.label(&constraint.topology_key) else {
                    continue;
                };
                // A node without all the keys of constraints of this kind counts for none of them.
                let mut same_kind = class
                    .spread
                    .iter()
                    .filter(|other| other.when_unsatisfiable == constraint.when_unsatisfiable);
                if same_kind.any(|other| info.label(&other.topology_key).is_none())
                    || !eligible(constraint, class, info)
                {
                    continue;
                }
                let matching = info.pods.values().filter(|pod| {
                    // A selector that selects everything counts nobody: upstream's rule.
                    !selects_all
                        && pod.class.namespace == class.namespace
                        && selects(selector.as_ref(), &pod.class.labels)
                });
                *counts.entry(value).or_default() += matching.count() as i64;
            }
            Spread {
                constraint,
                selector,
                counts,
                hard: constraint.when_unsatisfiable == "DoNotSchedule",
            }
        });
        Some(Box::new(View {
            class,
            spreads: spreads.collect(),
        }))
    }
}

impl Prepared for View<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        for spread in self.spreads.iter().filter(|spread| spread.hard) {
            let Some(value) = node.label(&spread.constraint.topology_key) else {
                return Err(Refusal::unresolvable(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let fewer_domains_than_asked = spread
                .constraint
                .min_domains
                .is_some_and(|wanted| (spread.counts.len() as i64) < i64::from(wanted));
            let emptiest = if fewer_domains_than_asked {
                0
            } else {
                spread.counts.values().min().copied().unwrap_or(0)
            };
            let myself = i64::from(selects(spread.selector.as_ref(), &self.class.labels));
            let here = spread.counts.get(value).copied().unwrap_or(0);
            if here + myself - emptiest > i64::from(spread.constraint.max_skew) {
                return Err(Refusal::resolvable(
                    "node(s) didn't match pod topology spread constraints",
                ));
            }
        }
        Ok(())
    }

    fn scores(&self, nodes: &[&NodeInfo]) -> Vec<i64> {
        let soft: Vec<_> = self.spreads.iter().filter(|spread| !spread.hard).collect();
        if soft.is_empty() {
            return vec![0; nodes.len()];
        }
        // Crowdedness, larger domains' counts weighing by the logarithm of how many domains there are.
        let crowd = |node: &&NodeInfo| -> Option<f64> {
            let mut sum = 0.0;
            for spread in &soft {
                let value = node.label(&spread.constraint.topology_key)?;
                let weight = ((spread.counts.len() + 2) as f64).ln();
                sum += spread.counts.get(value).copied().unwrap_or(0) as f64 * weight
                    + f64::from(spread.constraint.max_skew - 1);
            }
            Some(sum)
        };
        let raw: Vec<Option<i64>> = nodes
            .iter()
            .map(|node| crowd(node).map(|sum| sum.round() as i64))
            .collect();
        let most = raw.iter().flatten().max().copied().unwrap_or(0);
        let least = raw.iter().flatten().min().copied().unwrap_or(0);
        raw.into_iter()
            .map(|score| match score {
                None => 0,
                Some(_) if most == 0 => MAX_SCORE,
                Some(score) => MAX_SCORE * (most + least - score) / most,
            })
            .collect()
    }
}
