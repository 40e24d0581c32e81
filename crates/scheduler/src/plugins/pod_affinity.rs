//! Pods that want to be near other Pods, or far from them, by a topology label of their nodes.
//!
//! The cluster is walked once per decision, counting per (term, topology value) the Pods the term speaks of; each node
//! is then judged by looking up its own topology values. Existing Pods' required anti-affinity binds newcomers too.

use std::collections::{HashMap, HashSet};

use crate::framework::{ClusterPlugin, Event, MAX_SCORE, Prepared, Refusal};
use crate::pod::{AffinityTerm, Class};
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin with its arguments.
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

struct View<'a> {
    class: &'a Class,
    /// (topology key, value) pairs where Pods are that all required affinity terms speak of.
    wanted: HashSet<(&'a str, &'a str)>,
    /// It speaks of itself, so that the first of its kind may go where nobody is yet.
    may_be_first: bool,
    /// Per required anti-affinity term.
    shunned: Vec<HashMap<&'a str, usize>>,
    /// (topology key, value) pairs that existing Pods keep this class away from.
    barred: HashMap<(&'a str, &'a str), usize>,
    /// (topology key, value) → summed weights of preferences, both ways.
    liked: HashMap<(&'a str, &'a str), i64>,
}

impl ClusterPlugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }
    fn helped_by(&self) -> &'static [Event] {
        &[Event::Node, Event::PodGone, Event::PodPlaced, Event::Namespace]
    }
    fn weight(&self) -> i64 {
        self.weight
    }
    fn prepare<'a>(&self, class: &'a Class, snapshot: &'a Snapshot) -> Option<Box<dyn Prepared + 'a>> {
        let own_terms = class.has_terms();
        if !own_terms && !snapshot.any_terms() {
            return None;
        }
        let namespaces = |name: &str| snapshot.namespace_labels(name);
        let speaks_of_all = |other: &Class| {
            let mut terms = class.affinity.iter();
            !class.affinity.is_empty() && terms.all(|term| term.speaks_of(&other.namespace, &other.labels, namespaces))
        };
        let has_preferences = !(class.preferred_affinity.is_empty() && class.preferred_anti_affinity.is_empty());
        let preferences_count = has_preferences || !self.ignore_preferred_terms_of_existing_pods;
        let mut view = View {
            class,
            wanted: HashSet::new(),
            may_be_first: speaks_of_all(class),
            shunned: vec![HashMap::new(); class.anti_affinity.len()],
            barred: HashMap::new(),
            liked: HashMap::new(),
        };
        for (_, info) in snapshot.nodes() {
            if !own_terms && info.pods_with_terms == 0 {
                continue;
            }
            for pod in info.pods.values() {
                let other = &pod.class;
                let speaks_of_other = |term: &AffinityTerm| term.speaks_of(&other.namespace, &other.labels, namespaces);
                let count = |terms: &'a [AffinityTerm], counts: &mut [HashMap<&'a str, usize>]| {
                    for (term, counts) in terms.iter().zip(counts) {
                        if let Some(value) = info.label(&term.term.topology_key)
                            && speaks_of_other(term)
                        {
                            *counts.entry(value).or_default() += 1;
                        }
                    }
                };
                if speaks_of_all(other) {
                    let keys = class.affinity.iter().map(|term| term.term.topology_key.as_str());
                    let places = keys.filter_map(|key| Some((key, info.label(key)?)));
                    view.wanted.extend(places);
                }
                count(&class.anti_affinity, &mut view.shunned);
                for term in &other.anti_affinity {
                    let key = term.term.topology_key.as_str();
                    if let Some(value) = info.label(key)
                        && term.speaks_of(&class.namespace, &class.labels, namespaces)
                        && let Some((key, _)) = info.labels().and_then(|labels| labels.get_key_value(key))
                    {
                        *view.barred.entry((key, value)).or_default() += 1;
                    }
                }
                let preferences = class
                    .preferred_affinity
                    .iter()
                    .map(|(weight, term)| (i64::from(*weight), term));
                let aversions = class
                    .preferred_anti_affinity
                    .iter()
                    .map(|(weight, term)| (-i64::from(*weight), term));
                for (weight, term) in preferences.chain(aversions) {
                    let key = term.term.topology_key.as_str();
                    if let Some(value) = info.label(key)
                        && speaks_of_other(term)
                    {
                        *view.liked.entry((key, value)).or_default() += weight;
                    }
                }
                if !preferences_count {
                    continue;
                }
                // What existing Pods prefer, or require of others, draws or repels newcomers as well.
                let preferences = other.preferred_affinity.iter();
                let preferences = preferences.map(|(weight, term)| (i64::from(*weight), term));
                let aversions = other.preferred_anti_affinity.iter();
                let aversions = aversions.map(|(weight, term)| (-i64::from(*weight), term));
                let required = other.affinity.iter().map(|term| (self.hard_pod_affinity_weight, term));
                for (weight, term) in preferences.chain(aversions).chain(required) {
                    if weight != 0
                        && let Some((key, value)) = info
                            .labels()
                            .and_then(|labels| labels.get_key_value(&term.term.topology_key))
                        && term.speaks_of(&class.namespace, &class.labels, namespaces)
                    {
                        *view.liked.entry((key, value)).or_default() += weight;
                    }
                }
            }
        }
        Some(Box::new(view))
    }
}

impl View<'_> {
    /// The first Pod of a group that wants its own company may go anywhere with the topology label.
    fn is_first_of_its_kind(&self) -> bool {
        self.wanted.is_empty() && self.may_be_first
    }
}

impl Prepared for View<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let mut missing = false;
        for term in &self.class.affinity {
            let key = term.term.topology_key.as_str();
            match node.label(key) {
                None => return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules")),
                Some(value) => missing |= !self.wanted.contains(&(key, value)),
            }
        }
        if missing && !self.is_first_of_its_kind() {
            return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules"));
        }
        for (term, counts) in self.class.anti_affinity.iter().zip(&self.shunned) {
            if node
                .label(&term.term.topology_key)
                .is_some_and(|value| counts.contains_key(value))
            {
                return Err(Refusal::resolvable("node(s) didn't match pod anti-affinity rules"));
            }
        }
        if self.barred.keys().any(|&(key, value)| node.label(key) == Some(value)) {
            return Err(Refusal::resolvable(
                "node(s) didn't satisfy existing pods anti-affinity rules",
            ));
        }
        Ok(())
    }

    fn scores(&self, nodes: &[&NodeInfo]) -> Vec<i64> {
        let raw: Vec<i64> = nodes
            .iter()
            .map(|node| {
                self.liked
                    .iter()
                    .filter(|((key, value), _)| node.label(key) == Some(*value))
                    .map(|(_, weight)| weight)
                    .sum()
            })
            .collect();
        let (least, most) = (
            raw.iter().min().copied().unwrap_or(0),
            raw.iter().max().copied().unwrap_or(0),
        );
        raw.iter()
            .map(|score| {
                if most > least {
                    (MAX_SCORE as f64 * ((score - least) as f64 / (most - least) as f64)) as i64
                } else {
                    0
                }
            })
            .collect()
    }
}
