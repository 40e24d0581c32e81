//! The plugins as plainly as they can be said: every decision walks every Pod of every node. The engine must come to the
//! same answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, TopologySpreadConstraint};

use crate::framework::{Framework, MAX_SCORE};
use crate::labels::{Labels, selects};
use crate::plugins::{node, taints};
use crate::pod::{AffinityTerm, Class, PodInfo};
use crate::snapshot::{NodeInfo, Snapshot};

/// All there is.
#[derive(Default)]
pub struct World {
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// By uid.
    pub pods: BTreeMap<String, Pod>,
    pub namespaces: BTreeMap<String, Labels>,
    /// Selectors of Services by (namespace, name).
    pub services: BTreeMap<(String, String), Labels>,
}

/// Per node: the total, or why not.
pub type Answer = BTreeMap<String, Result<i64, Vec<String>>>;

impl World {
    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for node in self.nodes.values() {
            snapshot.set_node(Arc::clone(node));
        }
        for pod in self.pods.values() {
            let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            if let Some(name) = name {
                let info = PodInfo::of(pod, Arc::new(Class::of(pod))).unwrap();
                snapshot.place(info, name);
            }
        }
        snapshot
    }

    fn speaks(&self, term: &AffinityTerm, of: &Class) -> bool {
        term.speaks_of(&of.namespace, &of.labels, |name| self.namespaces.get(name))
    }

    pub fn answer(&self, framework: &Framework, pod: &Pod) -> Answer {
        let class = Class::of(pod);
        let snapshot = self.snapshot();
        let mut answer = Answer::new();
        let mut fitting: Vec<&NodeInfo> = Vec::new();
        for (_, info) in snapshot.nodes() {
            let refused = framework.refusal(&class, info).map(|(_, refusal)| refusal.reasons);
            let refused = refused.or_else(|| self.unspread(&class, info, &snapshot).map(|why| vec![why.to_owned()]));
            let refused = refused.or_else(|| self.unloved(&class, info, &snapshot).map(|why| vec![why.to_owned()]));
            match refused {
                Some(reasons) => {
                    answer.insert(info.name.to_string(), Err(reasons));
                }
                None => fitting.push(info),
            }
        }
        let raw: Vec<Vec<i64>> = fitting
            .iter()
            .map(|info| framework.scores.iter().map(|row| (row.score)(&class, info)).collect())
            .collect();
        let mut totals = framework.totals(raw.iter().map(Vec::as_slice));
        let spread = self.spread_scores(&class, &fitting, &snapshot);
        let love = self.love_scores(&class, &fitting, &snapshot);
        for (at, total) in totals.iter_mut().enumerate() {
            *total += 2 * (spread[at] + love[at]);
            answer.insert(fitting[at].name.to_string(), Ok(*total));
        }
        answer
    }

    /// Constraints with whether each selects a Pod, and whether a node must have all keys to be ranked.
    fn constraints(&self, class: &Class) -> Vec<TopologySpreadConstraint> {
        if !class.spread.is_empty() {
            let mut all = class.spread.clone();
            for constraint in &mut all {
                for key in constraint.match_label_keys.clone().unwrap_or_default() {
                    if let (Some(value), Some(selector)) = (class.labels.get(&key), &mut constraint.label_selector) {
                        let labels = selector.match_labels.get_or_insert_default();
                        labels.insert(key, value.clone());
                    }
                }
            }
            return all;
        }
        let mut labels = Labels::new();
        for ((namespace, _), selector) in &self.services {
            if *namespace == class.namespace && selector.iter().all(|(key, value)| class.labels.get(key) == Some(value))
            {
                labels.extend(selector.clone());
            }
        }
        if labels.is_empty() {
            return Vec::new();
        }
        let mut all = crate::config::args::PodTopologySpread::default().defaults;
        for constraint in &mut all {
            constraint.label_selector.get_or_insert_default().match_labels = Some(labels.clone());
        }
        all
    }

    fn matching(&self, constraint: &TopologySpreadConstraint, class: &Class, info: &NodeInfo) -> i64 {
        let empty = constraint.label_selector.as_ref().is_some_and(|selector| {
            selector.match_labels.iter().flatten().count() + selector.match_expressions.iter().flatten().count() == 0
        });
        let pods = info.pods.values().filter(|pod| {
            !empty
                && !pod.leaving
                && pod.class.namespace == class.namespace
                && selects(constraint.label_selector.as_ref(), &pod.class.labels)
        });
        pods.count() as i64
    }

    fn counts(
        &self,
        index: usize,
        all: &[TopologySpreadConstraint],
        all_keys: bool,
        class: &Class,
        snapshot: &Snapshot,
    ) -> HashMap<String, i64> {
        let mut counts = HashMap::new();
        let constraint = &all[index];
        for (_, info) in snapshot.nodes() {
            let Some(value) = info.label(&constraint.topology_key) else {
                continue;
            };
            if all_keys && all.iter().any(|other| info.label(&other.topology_key).is_none()) {
                continue;
            }
            let honors = |policy: &Option<String>, usual: &str| policy.as_deref().unwrap_or(usual) == "Honor";
            if honors(&constraint.node_affinity_policy, "Honor") && node::affinity(class, info).is_err()
                || honors(&constraint.node_taints_policy, "Ignore") && taints::filter(class, info).is_err()
            {
                continue;
            }
            *counts.entry(value.to_owned()).or_default() += self.matching(constraint, class, info);
        }
        counts
    }

    fn of_kind(&self, class: &Class, hard: bool) -> Vec<TopologySpreadConstraint> {
        let mut all = self.constraints(class);
        all.retain(|constraint| (constraint.when_unsatisfiable == "DoNotSchedule") == hard);
        all
    }

    fn unspread(&self, class: &Class, info: &NodeInfo, snapshot: &Snapshot) -> Option<&'static str> {
        let hard = self.of_kind(class, true);
        for (index, constraint) in hard.iter().enumerate() {
            let Some(value) = info.label(&constraint.topology_key) else {
                return Some("node(s) didn't match pod topology spread constraints (missing required label)");
            };
            let counts = self.counts(index, &hard, true, class, snapshot);
            let too_few = (counts.len() as i32) < constraint.min_domains.unwrap_or(1);
            let least = if too_few {
                0
            } else {
                *counts.values().min().unwrap_or(&i64::MAX)
            };
            let myself = i64::from(selects(constraint.label_selector.as_ref(), &class.labels));
            let here = counts.get(value).copied().unwrap_or(0);
            if here + myself - least > i64::from(constraint.max_skew) {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    fn spread_scores(&self, class: &Class, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Vec<i64> {
        let soft = self.of_kind(class, false);
        if soft.is_empty() {
            return vec![0; nodes.len()];
        }
        let all_keys = !class.spread.is_empty();
        let ranked = |info: &NodeInfo| !all_keys || soft.iter().all(|other| info.label(&other.topology_key).is_some());
        let mut raw: Vec<Option<f64>> = nodes.iter().map(|info| ranked(info).then_some(0.0)).collect();
        for (index, constraint) in soft.iter().enumerate() {
            let counts = self.counts(index, &soft, all_keys, class, snapshot);
            let host = constraint.topology_key == "kubernetes.io/hostname";
            let present = nodes.iter().filter(|info| ranked(info));
            let size = if host {
                present.count()
            } else {
                let values: BTreeSet<_> = present.map(|info| info.label(&constraint.topology_key)).collect();
                values.len()
            };
            for (raw, info) in raw.iter_mut().zip(nodes) {
                let (Some(raw), Some(value)) = (raw.as_mut(), info.label(&constraint.topology_key)) else {
                    continue;
                };
                let count = if host {
                    self.matching(constraint, class, info)
                } else {
                    counts.get(value).copied().unwrap_or(0)
                };
                *raw += count as f64 * ((size + 2) as f64).ln() + f64::from(constraint.max_skew - 1);
            }
        }
        let raw: Vec<Option<i64>> = raw.into_iter().map(|raw| raw.map(|raw| raw.round() as i64)).collect();
        let most = raw.iter().flatten().max().copied().unwrap_or(0);
        let least = raw.iter().flatten().min().copied().unwrap_or(0);
        raw.into_iter()
            .map(|raw| match raw {
                None => 0,
                Some(_) if most == 0 => MAX_SCORE,
                Some(raw) => MAX_SCORE * (most + least - raw) / most,
            })
            .collect()
    }

    fn unloved(&self, class: &Class, info: &NodeInfo, snapshot: &Snapshot) -> Option<&'static str> {
        let same = |key: &str, other: &NodeInfo| info.label(key).is_some() && info.label(key) == other.label(key);
        let all_speak = |of: &Class| class.affinity.iter().all(|term| self.speaks(term, of));
        let others = || {
            snapshot
                .nodes()
                .flat_map(|(_, other)| other.pods.values().map(move |pod| (other, &pod.class)))
        };
        let key = |term: &AffinityTerm| term.term.topology_key.clone();
        if class.affinity.iter().any(|term| info.label(&key(term)).is_none()) {
            return Some("node(s) didn't match pod affinity rules");
        }
        let near = |term: &AffinityTerm| others().any(|(other, pod)| all_speak(pod) && same(&key(term), other));
        let company = others()
            .any(|(other, pod)| all_speak(pod) && class.affinity.iter().any(|term| other.label(&key(term)).is_some()));
        if !class.affinity.iter().all(near) && (company || !all_speak(class)) {
            return Some("node(s) didn't match pod affinity rules");
        }
        let shunned =
            |term: &AffinityTerm| others().any(|(other, pod)| same(&key(term), other) && self.speaks(term, pod));
        // Terms with the same key share what they found: upstream's rule, which changes no answer.
        if class.anti_affinity.iter().any(shunned) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        let barred = others().any(|(other, pod)| {
            let mut terms = pod.anti_affinity.iter();
            terms.any(|term| same(&key(term), other) && self.speaks(term, class))
        });
        barred.then_some("node(s) didn't satisfy existing pods anti-affinity rules")
    }

    fn love_scores(&self, class: &Class, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Vec<i64> {
        let raw: Vec<i64> = nodes
            .iter()
            .map(|info| {
                let mut sum = 0;
                for (_, other) in snapshot.nodes() {
                    let same = |term: &AffinityTerm| {
                        let key = &term.term.topology_key;
                        info.label(key).is_some() && info.label(key) == other.label(key)
                    };
                    for pod in other.pods.values().map(|pod| &pod.class) {
                        for (sign, mine, theirs) in [
                            (1, &class.preferred_affinity, &pod.preferred_affinity),
                            (-1, &class.preferred_anti_affinity, &pod.preferred_anti_affinity),
                        ] {
                            for (weight, term) in mine {
                                sum += i64::from(same(term) && self.speaks(term, pod)) * sign * i64::from(*weight);
                            }
                            for (weight, term) in theirs {
                                sum += i64::from(same(term) && self.speaks(term, class)) * sign * i64::from(*weight);
                            }
                        }
                        for term in &pod.affinity {
                            sum += i64::from(same(term) && self.speaks(term, class));
                        }
                    }
                }
                sum
            })
            .collect();
        let least = raw.iter().min().copied().unwrap_or(0);
        let most = raw.iter().max().copied().unwrap_or(0);
        let scaled = |raw: i64| match most > least {
            true => (MAX_SCORE as f64 * ((raw - least) as f64 / (most - least) as f64)) as i64,
            false => 0,
        };
        raw.into_iter().map(scaled).collect()
    }
}
