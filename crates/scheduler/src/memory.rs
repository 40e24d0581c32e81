//! What is remembered of Pods that were looked at, so that equal ones need not be.
//!
//! A [`Memory`] belongs to a shape: per node the node plugins' verdict, the nodes that fit ranked by their totals, and how
//! many nodes each reason refuses. [`Tracking`] belongs to a class: the cluster plugins' sums. Both catch up with the
//! snapshot by its log of changes: a node that did not change is not looked at.
//!
//! Verdicts are those with nominated Pods taken into account: a node is refused if it would be with the Pods nominated to
//! it that the shape's priority must yield to, or without them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::SmallRng;

use crate::framework::{Framework, Normalize, Refusal, Refused, Tracker};
use crate::pod::{Class, PodInfo};
use crate::preemption::{Outcome, Trial};
use crate::snapshot::{NodeIndex, NodeInfo, Snapshot};
use crate::standings::Standings;
use crate::watch::{Point, Watch};

/// A verdict in little room.
#[derive(Clone, Debug, Default, PartialEq)]
enum Seen {
    /// No such node.
    #[default]
    Nothing,
    /// Raw scores.
    Fits(Box<[i64]>),
    /// A place in [`Memory::kinds`].
    Refused(usize),
}

/// A refusal and how many nodes it holds for.
struct Kind {
    filter: usize,
    refusal: Refusal,
    nodes: usize,
}

/// What totals were made from: which memory, and which reckoning of it.
pub type Basis = (u64, u64);

/// See the module's text.
pub struct Memory {
    pub class: Arc<Class>,
    /// Tells it from others of its shape, before and after it.
    id: u64,
    synced: u64,
    seen: Vec<Seen>,
    /// By node: its generation when it was looked at.
    looked: Vec<u64>,
    kinds: Vec<Kind>,
    ranking: Ranking,
    /// What preemption found per node, with the node's generation and that of the disruption budgets then.
    outcomes: Vec<Option<(u64, u64, Arc<Outcome>)>>,
}

impl Memory {
    pub fn new(class: Arc<Class>, framework: &Framework, id: u64) -> Self {
        Memory {
            class,
            id,
            synced: 0,
            seen: Vec::new(),
            looked: Vec::new(),
            kinds: Vec::new(),
            ranking: Ranking::new(framework),
            outcomes: Vec::new(),
        }
    }

    /// Looks at what changed since the last time.
    pub fn catch_up(&mut self, framework: &Framework, snapshot: &Snapshot, watch: &mut Watch) {
        self.seen.resize(snapshot.places(), Seen::Nothing);
        self.looked.resize(snapshot.places(), 0);
        self.outcomes.resize(snapshot.places(), None);
        self.ranking.resize(snapshot.places());
        if self.synced == snapshot.generation() {
            return;
        }
        let checked: Vec<_> = match snapshot.changed_since(self.synced) {
            Some(changed) => changed.filter_map(|at| self.check(framework, snapshot, at)).collect(),
            None => {
                let all = 0..snapshot.places();
                all.filter_map(|at| self.check(framework, snapshot, at)).collect()
            }
        };
        watch.lap(Point::Filter);
        for (at, answer) in checked {
            self.note(framework, snapshot, at, answer);
        }
        watch.lap(Point::Score);
        self.synced = snapshot.generation();
    }

    /// Who refuses a node and why, if it changed.
    fn check(
        &mut self,
        framework: &Framework,
        snapshot: &Snapshot,
        at: NodeIndex,
    ) -> Option<(NodeIndex, Option<(usize, Refusal)>)> {
        let node = snapshot.node(at);
        let generation = node.map_or(0, |node| node.generation);
        // It may be in the log several times.
        if node.is_some() && self.looked[at] == generation {
            return None;
        }
        self.looked[at] = generation;
        Some((at, node.and_then(|node| refusal(framework, &self.class, node, None))))
    }

    fn note(&mut self, framework: &Framework, snapshot: &Snapshot, at: NodeIndex, answer: Option<(usize, Refusal)>) {
        let now = match (snapshot.node(at), answer) {
            (None, _) => Seen::Nothing,
            (Some(node), None) => Seen::Fits(framework.raw(&self.class, node)),
            (Some(_), Some((filter, refusal))) => {
                let same = |kind: &Kind| kind.filter == filter && kind.refusal == refusal;
                let free = |kind: &Kind| kind.nodes == 0;
                let place = self
                    .kinds
                    .iter()
                    .position(same)
                    .or_else(|| self.kinds.iter().position(free));
                let kind = Kind {
                    filter,
                    refusal,
                    nodes: 0,
                };
                Seen::Refused(match place {
                    Some(place) => {
                        if self.kinds[place].nodes == 0 {
                            self.kinds[place] = kind;
                        }
                        place
                    }
                    None => {
                        self.kinds.push(kind);
                        self.kinds.len() - 1
                    }
                })
            }
        };
        if let Seen::Refused(kind) = now {
            self.kinds[kind].nodes += 1;
        }
        let before = std::mem::replace(&mut self.seen[at], now);
        if let Seen::Refused(kind) = before {
            self.kinds[kind].nodes -= 1;
        }
        let raw = |seen: &Seen| match seen {
            Seen::Fits(raw) => Some(raw.clone()),
            _ => None,
        };
        self.ranking.replace(framework, at, raw(&before), raw(&self.seen[at]));
    }

    /// Nodes that fit, with their raw scores.
    pub fn fitting(&self) -> impl Iterator<Item = (NodeIndex, &[i64])> {
        self.seen.iter().enumerate().filter_map(|(at, seen)| match seen {
            Seen::Fits(raw) => Some((at, &**raw)),
            _ => None,
        })
    }

    /// What preemption would mean for a node, as far as it alone decides.
    pub fn outcome(&mut self, at: NodeIndex, trial: &Trial<'_>) -> &Arc<Outcome> {
        let node = trial.snapshot.node(at).map_or(0, |node| node.generation);
        let budgets = trial.budgets.generation;
        let held = self.outcomes[at].take();
        let held = held.filter(|(known, protected, _)| (*known, *protected) == (node, budgets));
        let (_, _, outcome) =
            self.outcomes[at].insert(held.unwrap_or_else(|| (node, budgets, Arc::new(trial.victims(at, None)))));
        outcome
    }

    /// Why a node does not fit: (filter, refusal).
    pub fn refusal(&self, at: NodeIndex) -> Option<(usize, &Refusal)> {
        match self.seen.get(at) {
            Some(Seen::Refused(kind)) => self.kinds.get(*kind).map(|kind| (kind.filter, &kind.refusal)),
            _ => None,
        }
    }

    /// All refusals: (filter, refusal, nodes).
    pub fn refusals(&self) -> impl Iterator<Item = (usize, &Refusal, usize)> {
        let held = self.kinds.iter().filter(|kind| kind.nodes > 0);
        held.map(|kind| (kind.filter, &kind.refusal, kind.nodes))
    }

    /// The best of all nodes that fit.
    pub fn best(&mut self, framework: &Framework, random: &mut SmallRng) -> Option<NodeIndex> {
        self.best_of(framework, random, |_| true)
    }

    /// The total of a node that fits, among all that do. Asked after [`Memory::rank`].
    pub fn total(&self, at: NodeIndex) -> Option<i64> {
        self.ranking.totals.get(at).copied().flatten()
    }

    /// Changes whenever totals do of nodes that did not change. Asked after [`Memory::rank`].
    pub fn basis(&self) -> Basis {
        (self.id, self.ranking.rebuilt)
    }

    /// Whether totals do not depend on which other nodes fit: no score is measured by the largest.
    pub fn is_flat(&self) -> bool {
        self.ranking.largest.iter().all(|largest| *largest == 0)
    }

    /// The best of the nodes that fit and pass. Only those that are better than it are looked at, so it means something
    /// only if all pass or [`Memory::is_flat`].
    pub fn best_of(
        &mut self,
        framework: &Framework,
        random: &mut SmallRng,
        passes: impl FnMut(NodeIndex) -> bool,
    ) -> Option<NodeIndex> {
        self.rank(framework);
        self.ranking.best_of(random, passes)
    }

    /// Makes the totals anew if they changed.
    pub fn rank(&mut self, framework: &Framework) {
        if self.ranking.stale {
            let fitting = self.seen.iter().enumerate().filter_map(|(at, seen)| match seen {
                Seen::Fits(raw) => Some((at, &**raw)),
                _ => None,
            });
            self.ranking.rebuild(framework, fitting);
        }
    }
}

/// Who of the node plugins refuses, nominated Pods taken into account; `asking` does not yield to itself.
pub fn refusal(
    framework: &Framework,
    class: &Class,
    node: &NodeInfo,
    asking: Option<&str>,
) -> Option<(usize, Refusal)> {
    let fuller = node.with_nominated(class.priority, asking);
    let fuller = fuller.and_then(|fuller| framework.refusal(class, &fuller));
    fuller.or_else(|| framework.refusal(class, node))
}

/// Nodes in buckets of equal totals. The totals depend on the largest raw scores among all nodes; when one of those
/// changes, which is rare, all totals are made anew.
struct Ranking {
    totals: Vec<Option<i64>>,
    /// By node: its place in its bucket.
    places: Vec<usize>,
    buckets: BTreeMap<i64, Vec<NodeIndex>>,
    /// By score row: how many nodes have which raw score; kept for rows that are normalized.
    raw: Vec<BTreeMap<i64, u32>>,
    largest: Vec<i64>,
    normalized: Vec<bool>,
    stale: bool,
    rebuilt: u64,
}

impl Ranking {
    fn new(framework: &Framework) -> Self {
        let normalized: Vec<bool> = framework
            .scores
            .iter()
            .map(|row| row.normalize != Normalize::No)
            .collect();
        Ranking {
            totals: Vec::new(),
            places: Vec::new(),
            buckets: BTreeMap::new(),
            raw: vec![BTreeMap::new(); normalized.len()],
            largest: vec![0; normalized.len()],
            normalized,
            stale: false,
            rebuilt: 0,
        }
    }

    fn resize(&mut self, places: usize) {
        self.totals.resize(places, None);
        self.places.resize(places, 0);
    }

    /// Puts a node's new raw scores in the place of its old ones.
    fn replace(&mut self, framework: &Framework, at: NodeIndex, old: Option<Box<[i64]>>, new: Option<Box<[i64]>>) {
        if old.is_none() && new.is_none() {
            return;
        }
        for row in (0..self.normalized.len()).filter(|row| self.normalized[*row]) {
            let of = |raw: &Option<Box<[i64]>>| raw.as_ref().and_then(|raw| raw.get(row).copied());
            let raw = &mut self.raw[row];
            if let Some(score) = of(&new) {
                *raw.entry(score).or_default() += 1;
            }
            if let Some(score) = of(&old)
                && let Some(nodes) = raw.get_mut(&score)
            {
                *nodes -= 1;
                if *nodes == 0 {
                    raw.remove(&score);
                }
            }
            let largest = raw.last_key_value().map_or(0, |(score, _)| *score);
            if largest != self.largest[row] {
                self.largest[row] = largest;
                self.stale = true;
            }
        }
        self.leave(at);
        if let Some(raw) = new
            && !self.stale
        {
            self.enter(at, framework.total(&raw, &self.largest));
        }
    }

    fn enter(&mut self, at: NodeIndex, total: i64) {
        let bucket = self.buckets.entry(total).or_default();
        self.places[at] = bucket.len();
        bucket.push(at);
        self.totals[at] = Some(total);
    }

    fn leave(&mut self, at: NodeIndex) {
        let Some(total) = self.totals[at].take() else { return };
        let Some(bucket) = self.buckets.get_mut(&total) else {
            return;
        };
        let place = self.places[at];
        bucket.swap_remove(place);
        if let Some(moved) = bucket.get(place) {
            self.places[*moved] = place;
        }
        if bucket.is_empty() {
            self.buckets.remove(&total);
        }
    }

    fn rebuild<'a>(&mut self, framework: &Framework, fitting: impl Iterator<Item = (NodeIndex, &'a [i64])>) {
        self.buckets.clear();
        self.totals.fill(None);
        for (at, raw) in fitting {
            self.enter(at, framework.total(raw, &self.largest));
        }
        self.stale = false;
        self.rebuilt += 1;
    }

    fn best_of(&self, random: &mut SmallRng, mut passes: impl FnMut(NodeIndex) -> bool) -> Option<NodeIndex> {
        // Buckets are never empty.
        self.buckets.values().rev().find_map(|bucket| {
            let (later, first) = bucket.split_at(random.random_range(0..bucket.len()));
            first.iter().chain(later).copied().find(|at| passes(*at))
        })
    }
}

/// See the module's text.
pub struct Tracking {
    synced: u64,
    namespaces: u64,
    owners: u64,
    /// Whether there were Pods with terms about others.
    terms: bool,
    /// One per row of [`Framework::cluster`] that concerns the class.
    pub rows: Vec<Row>,
    standings: Standings,
}

pub struct Row {
    pub name: &'static str,
    /// Whether it refuses nodes.
    pub filters: bool,
    pub weight: i64,
    pub tracker: Box<dyn Tracker>,
}

impl Tracking {
    pub fn new(framework: &Framework, class: &Arc<Class>, snapshot: &Snapshot, watch: &mut Watch) -> Self {
        let rows = framework.cluster.iter().filter(|row| row.concerns(class, snapshot));
        let mut tracking = Tracking {
            synced: snapshot.generation(),
            namespaces: snapshot.namespaces_generation(),
            owners: snapshot.owners().generation(&class.namespace),
            terms: !snapshot.with_terms().is_empty(),
            standings: Standings::default(),
            rows: rows
                .map(|row| Row {
                    name: row.name(),
                    filters: row.filters(),
                    weight: row.weight(),
                    tracker: row.track(class, snapshot),
                })
                .collect(),
        };
        for row in &mut tracking.rows {
            watch.part(row.name, Point::PreFilter, || {
                for (at, node) in snapshot.nodes() {
                    row.tracker.set(at, Some(node), snapshot);
                }
            });
        }
        tracking
    }

    /// Looks at what changed since the last time. `false`: it is too far behind, or what it knows of namespaces or owners no
    /// longer holds; make a new one.
    #[must_use]
    pub fn catch_up(&mut self, class: &Class, snapshot: &Snapshot, watch: &mut Watch) -> bool {
        if self.namespaces != snapshot.namespaces_generation()
            || self.owners != snapshot.owners().generation(&class.namespace)
            || (!self.terms && !snapshot.with_terms().is_empty())
        {
            return false;
        }
        for row in &mut self.rows {
            let Some(changed) = snapshot.changed_since(self.synced) else {
                return false;
            };
            watch.part(row.name, Point::PreFilter, || {
                for at in changed {
                    row.tracker.set(at, snapshot.node(at), snapshot);
                }
            });
        }
        self.synced = snapshot.generation();
        true
    }

    /// Whether the cluster plugins have nothing to say.
    pub fn is_idle(&self) -> bool {
        self.rows.iter().all(|row| row.tracker.is_idle())
    }

    /// Whether they prefer some nodes to others.
    pub fn ranks(&self) -> bool {
        self.rows.iter().any(|row| row.tracker.ranks())
    }

    /// Whether they could refuse a node.
    pub fn may_refuse(&self) -> bool {
        self.rows.iter().any(|row| row.filters && row.tracker.may_refuse())
    }

    /// Whether nominated Pods can matter to the cluster plugins for this class.
    pub fn concerned_by_nominated(&self, class: &Class, snapshot: &Snapshot) -> bool {
        !snapshot.with_nominations().is_empty() && (class.looks_beyond_the_node() || snapshot.any_nominated_terms())
    }

    /// The first refusal, with the plugin's name.
    pub fn check(&self, at: NodeIndex) -> Result<(), (&'static str, Refused)> {
        for row in self.rows.iter().filter(|row| row.filters) {
            row.tracker.check(at).map_err(|refused| (row.name, refused))?;
        }
        Ok(())
    }

    /// The best of the nodes that fit and pass, these plugins' scores taken into account. It means something only if
    /// the node plugins' totals do not depend on which nodes pass.
    pub fn best(
        &mut self,
        memory: &Memory,
        pod: &PodInfo,
        snapshot: &Snapshot,
        random: &mut SmallRng,
        watch: &mut Watch,
    ) -> Option<NodeIndex> {
        let mut standings = std::mem::take(&mut self.standings);
        standings.catch_up(&self.rows, memory, snapshot);
        watch.lap(Point::PreScore);
        let best = self.best_of(&standings, memory, pod, snapshot, random, watch);
        self.standings = standings;
        best
    }

    fn best_of(
        &mut self,
        standings: &Standings,
        memory: &Memory,
        pod: &PodInfo,
        snapshot: &Snapshot,
        random: &mut SmallRng,
        watch: &mut Watch,
    ) -> Option<NodeIndex> {
        let (mut nodes, mut alike, mut totals) = (Vec::new(), Vec::new(), Vec::new());
        let mut best: Vec<&[NodeIndex]> = Vec::new();
        for group in standings.groups() {
            if self.check(group.best[0]).is_ok() {
                nodes.push(group.best[0]);
                alike.push(group.size);
                totals.push(group.total);
                best.push(group.best);
            }
        }
        for at in snapshot.with_nominations() {
            if let Some(total) = memory.total(*at)
                && self.check_nominated(&pod.class, *at, Some(&pod.uid), snapshot).is_ok()
            {
                nodes.push(*at);
                alike.push(1);
                totals.push(total);
                best.push(std::slice::from_ref(at));
            }
        }
        watch.lap(Point::Filter);
        self.score(&nodes, &alike, &mut totals, watch);
        let most = totals.iter().max().copied()?;
        let winners = || totals.iter().zip(&best).filter(|(total, _)| **total == most);
        let among: usize = winners().map(|(_, best)| best.len()).sum();
        winners()
            .flat_map(|(_, best)| best.iter().copied())
            .nth(random.random_range(0..among))
    }

    /// The answer if the node's account were `instead`.
    pub fn check_if(
        &mut self,
        at: NodeIndex,
        instead: &NodeInfo,
        snapshot: &Snapshot,
    ) -> Result<(), (&'static str, Refused)> {
        self.put(at, Some(instead), snapshot);
        let answer = self.check(at);
        self.put(at, snapshot.node(at), snapshot);
        answer
    }

    /// [`Tracking::check`] with nominated Pods taken into account.
    pub fn check_nominated(
        &mut self,
        class: &Class,
        at: NodeIndex,
        asking: Option<&str>,
        snapshot: &Snapshot,
    ) -> Result<(), (&'static str, Refused)> {
        if snapshot.with_nominations().contains(&at)
            && let Some(node) = snapshot.node(at)
            && let Some(fuller) = node.with_nominated(class.priority, asking)
        {
            self.check_if(at, &fuller, snapshot)?;
        }
        self.check(at)
    }

    /// Adds what these plugins make of the nodes, each standing for as many as are alike, to their totals.
    pub fn score(&mut self, nodes: &[NodeIndex], alike: &[u32], totals: &mut [i64], watch: &mut Watch) {
        for row in &mut self.rows {
            watch.part(row.name, Point::Score, || {
                row.tracker.score(nodes, alike, row.weight, totals);
            });
        }
    }

    fn put(&mut self, at: NodeIndex, node: Option<&NodeInfo>, snapshot: &Snapshot) {
        for row in &mut self.rows {
            row.tracker.set(at, node, snapshot);
        }
    }
}
