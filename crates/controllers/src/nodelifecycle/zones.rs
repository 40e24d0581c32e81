//! Which nodes' Pods may be driven away, and how fast: a zone at a time, slower or not at all where much is not well.
//!
//! A state machine without I/O. Nodes that are to be tainted wait in their zone; the zone gives them their turn by its
//! rate: the normal one, a slower one while most of a large zone is not well, none while most of a small zone is not. A
//! zone of which no node is well goes on at the normal rate, unless all zones are like that: then it is more likely the
//! way to the nodes that is broken, everything stops, and nodes that are heard of again get a whole grace period.
//!
//! Differs from upstream: nobody's turn comes before it has waited for a moment, so that trouble of many nodes that is
//! told one by one is seen as a whole before anybody is driven away. Upstream looks at all nodes every five seconds,
//! which has the same effect, but only most of the time.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::NodeLifecycle;

/// Where a node is: region and zone, by the labels of today or those of old; nothing if it does not say.
pub(super) fn zone_of(node: &Node) -> String {
    let label = |names: [&str; 2]| {
        let mut values = names.iter().filter_map(|name| node.labels().get(*name));
        values.next().cloned().unwrap_or_default()
    };
    let zone = label(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]);
    let region = label([
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/region",
    ]);
    match (region.is_empty(), zone.is_empty()) {
        (true, true) => String::new(),
        _ => format!("{region}:{zone}"),
    }
}

/// Whether a node counts in the state of its zone.
pub(super) fn counts(node: &Node) -> bool {
    !node.labels().contains_key("node.kubernetes.io/exclude-disruption")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Normal,
    Partial,
    Full,
}

#[derive(Debug, Default)]
struct Zone {
    ready: usize,
    unready: usize,
    /// How many nodes are here, those that do not count with them.
    nodes: usize,
    /// Who waits, and since when.
    waiting: VecDeque<(String, Instant)>,
    last: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    zone: String,
    /// `None`: it does not count.
    ready: Option<bool>,
}

/// What a change of one node means for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shift {
    Nothing,
    /// From now on no node is well.
    AllUnwell,
    /// Some are again.
    Recovered,
}

/// Whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Node(String),
    /// Nobody's before so long.
    Wait(Duration),
    /// Nobody's until something changes.
    Nobody,
}

#[derive(Debug)]
pub(super) struct Zones {
    rates: NodeLifecycle,
    nodes: HashMap<String, Seen>,
    zones: BTreeMap<String, Zone>,
    /// Whose turn has come.
    granted: HashSet<String>,
    all_unwell: bool,
    /// Whether all nodes there are at the beginning have been seen; nothing is judged by some of them.
    complete: bool,
}

impl Zones {
    pub(super) fn new(rates: NodeLifecycle) -> Self {
        Zones {
            rates,
            nodes: HashMap::new(),
            zones: BTreeMap::new(),
            granted: HashSet::new(),
            all_unwell: false,
            complete: false,
        }
    }

    /// All nodes that there are have been observed once.
    pub(super) fn complete(&mut self) -> Shift {
        self.complete = true;
        self.judge()
    }

    /// Whether the Pods of a node may be driven away: its turn has come.
    pub(super) fn granted(&self, name: &str) -> bool {
        !self.all_unwell && self.granted.contains(name)
    }

    /// Whether no node at all is well, so that nothing may be driven away.
    pub(super) fn all_unwell(&self) -> bool {
        self.all_unwell
    }

    /// The zones in which somebody waits.
    pub(super) fn in_demand(&self) -> Vec<String> {
        let waited_for = self.zones.iter().filter(|(_, zone)| !zone.waiting.is_empty());
        waited_for.map(|(name, _)| name.clone()).collect()
    }

    /// How many nodes of a zone count, and how many of these are not well; nothing of a zone without nodes.
    pub(super) fn figures(&self, zone: &str) -> Option<(usize, usize)> {
        let zone = self.zones.get(zone).filter(|zone| zone.nodes > 0)?;
        Some((zone.ready + zone.unready, zone.unready))
    }

    /// A node as it is now.
    pub(super) fn observe(&mut self, name: &str, zone: &str, ready: bool, counts: bool) -> Shift {
        let seen = Seen {
            zone: zone.to_owned(),
            ready: counts.then_some(ready),
        };
        if self.nodes.get(name) == Some(&seen) {
            return Shift::Nothing;
        }
        self.leave(name, Some(zone));
        let own = self.zones.entry(zone.to_owned()).or_default();
        own.nodes += 1;
        match seen.ready {
            Some(true) => own.ready += 1,
            Some(false) => own.unready += 1,
            None => {}
        }
        self.nodes.insert(name.to_owned(), seen);
        self.judge()
    }

    pub(super) fn forget(&mut self, name: &str) -> Shift {
        self.leave(name, None);
        self.granted.remove(name);
        self.judge()
    }

    /// Takes a node out of the counts. It goes on waiting if it stays in its zone.
    fn leave(&mut self, name: &str, next: Option<&str>) {
        let Some(seen) = self.nodes.remove(name) else {
            return;
        };
        let Some(zone) = self.zones.get_mut(&seen.zone) else {
            return;
        };
        zone.nodes = zone.nodes.saturating_sub(1);
        match seen.ready {
            Some(true) => zone.ready = zone.ready.saturating_sub(1),
            Some(false) => zone.unready = zone.unready.saturating_sub(1),
            None => {}
        }
        if next == Some(seen.zone.as_str()) {
            return;
        }
        zone.waiting.retain(|(waiting, _)| waiting != name);
        if zone.nodes == 0 {
            self.zones.remove(&seen.zone);
        }
    }

    fn judge(&mut self) -> Shift {
        if !self.complete {
            return Shift::Nothing;
        }
        let mut states = self.zones.values().filter_map(|zone| self.state(zone)).peekable();
        let now = states.peek().is_some() && states.all(|state| state == State::Full);
        match (std::mem::replace(&mut self.all_unwell, now), now) {
            (false, true) => {
                self.granted.clear();
                Shift::AllUnwell
            }
            (true, false) => Shift::Recovered,
            _ => Shift::Nothing,
        }
    }

    /// `None`: no node of it counts.
    fn state(&self, zone: &Zone) -> Option<State> {
        let all = zone.ready + zone.unready;
        if all == 0 {
            return None;
        }
        // Counts of nodes are exact in a float.
        let share = zone.unready as f32 / all as f32;
        Some(match zone.unready {
            _ if zone.ready == 0 => State::Full,
            unready if unready > 2 && share >= self.rates.unhealthy_zone => State::Partial,
            _ => State::Normal,
        })
    }

    /// How long lies between two turns; `None`: there are none.
    fn pause(&self, zone: &Zone) -> Option<Duration> {
        let large = zone.ready + zone.unready > self.rates.large_cluster;
        let rate = match self.state(zone) {
            _ if self.all_unwell || !self.complete => return None,
            Some(State::Partial) if large => self.rates.secondary_eviction_rate,
            Some(State::Partial) => return None,
            _ => self.rates.eviction_rate,
        };
        Duration::try_from_secs_f32(1.0 / rate).ok().filter(|_| rate > 0.0)
    }

    /// A node that is to be tainted waits for its turn. Its zone, if that is news.
    pub(super) fn wait(&mut self, name: &str, now: Instant) -> Option<String> {
        let zone_name = self.nodes.get(name)?.zone.clone();
        let zone = self.zones.get_mut(&zone_name)?;
        if self.granted.contains(name) || zone.waiting.iter().any(|(waiting, _)| waiting == name) {
            return None;
        }
        zone.waiting.push_back((name.to_owned(), now));
        Some(zone_name)
    }

    /// A node that is not to be tainted any more.
    pub(super) fn cancel(&mut self, name: &str) {
        self.granted.remove(name);
        if let Some(zone) = self.nodes.get(name).and_then(|seen| self.zones.get_mut(&seen.zone)) {
            zone.waiting.retain(|(waiting, _)| waiting != name);
        }
    }

    /// Whose turn it is in a zone; whoever has it does not wait any more.
    pub(super) fn turn(&mut self, zone: &str, now: Instant) -> Turn {
        let Some(found) = self.zones.get(zone) else {
            return Turn::Nobody;
        };
        let (Some(pause), Some((_, since))) = (self.pause(found), found.waiting.front()) else {
            return Turn::Nobody;
        };
        let settled = *since + self.rates.settle;
        let due = found.last.and_then(|last| last.checked_add(pause));
        let due = due.map_or(settled, |due| due.max(settled));
        if due > now {
            return Turn::Wait(due - now);
        }
        let Some(found) = self.zones.get_mut(zone) else {
            return Turn::Nobody;
        };
        found.last = Some(now);
        match found.waiting.pop_front() {
            Some((name, _)) => {
                self.granted.insert(name.clone());
                Turn::Node(name)
            }
            None => Turn::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn empty() -> Zones {
        let mut zones = Zones::new(NodeLifecycle {
            settle: Duration::ZERO,
            ..NodeLifecycle::default()
        });
        zones.complete();
        zones
    }

    fn zones(ready: usize, unready: usize) -> Zones {
        let mut zones = empty();
        zones.observe("elsewhere", "other", true, true);
        for index in 0..ready + unready {
            zones.observe(&format!("n{index}"), "z", index >= unready, true);
        }
        for index in 0..unready {
            zones.wait(&format!("n{index}"), Instant::now());
        }
        zones
    }

    /// How many get their turn in so many seconds.
    fn turns(zones: &mut Zones, seconds: u64, start: Instant) -> usize {
        let mut count = 0;
        for second in 0..seconds {
            while let Turn::Node(_) = zones.turn("z", start + Duration::from_secs(second)) {
                count += 1;
            }
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn rates_by_the_state_of_the_zone() {
        let now = Instant::now();
        let cases = [
            ("few are not well", 97, 3, 3, 3),
            ("many but not most", 10, 10, 6, 10),
            ("most of a small zone", 4, 5, 0, 0),
            ("two are no crowd", 1, 2, 2, 2),
            ("most of a large zone", 40, 60, 1, 10),
            ("all of one zone", 0, 30, 6, 30),
        ];
        for (what, ready, unready, in_a_minute, in_long) in cases {
            assert_eq!(turns(&mut zones(ready, unready), 60, now), in_a_minute, "{what}");
            assert_eq!(turns(&mut zones(ready, unready), 1000, now), in_long, "{what}");
        }
        let mut never = zones(9, 1);
        never.rates.eviction_rate = 0.0;
        assert_eq!(turns(&mut never, 1000, now), 0, "a rate of nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_driven_away_when_nobody_is_well() {
        let now = Instant::now();
        let mut zones = zones(2, 0);
        for name in ["n0", "n1"] {
            assert_eq!(zones.observe(name, "z", false, true), Shift::Nothing);
            zones.wait(name, now);
        }
        assert_eq!(zones.turn("z", now), Turn::Node("n0".into()));
        assert!(zones.granted("n0"));
        assert_eq!(zones.observe("elsewhere", "other", false, true), Shift::AllUnwell);
        assert!(zones.all_unwell() && !zones.granted("n0"));
        assert_eq!(zones.turn("z", now + Duration::from_secs(60)), Turn::Nobody);
        // One that does not count changes nothing.
        assert_eq!(zones.observe("spare", "z", true, false), Shift::Nothing);
        assert_eq!(zones.observe("elsewhere", "other", true, true), Shift::Recovered);
        assert_eq!(zones.turn("z", now + Duration::from_secs(60)), Turn::Node("n1".into()));
        // Gone is not unwell.
        for name in ["n0", "n1", "spare", "elsewhere"] {
            zones.forget(name);
        }
        assert!(!zones.all_unwell() && zones.zones.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_in_order_and_can_be_cancelled() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut zones = zones(9, 3);
        assert_eq!(zones.wait("n1", now), None, "it waits already");
        zones.cancel("n1");
        assert_eq!(zones.turn("z", now), Turn::Node("n0".into()));
        assert_eq!(zones.wait("n0", now), None, "its turn has come");
        assert_eq!(zones.turn("z", at(4)), Turn::Wait(Duration::from_secs(6)));
        assert_eq!(zones.turn("z", at(10)), Turn::Node("n2".into()));
        assert_eq!(zones.turn("z", at(20)), Turn::Nobody);
        assert_eq!(zones.wait("stranger", now), None);
        // A node that moves waits anew, one that only changes does not.
        zones.wait("n1", now);
        zones.observe("n1", "z", true, true);
        assert_eq!(zones.in_demand(), ["z"]);
        zones.observe("n1", "other", false, true);
        assert_eq!(zones.turn("z", at(30)), Turn::Nobody);
        assert_eq!(zones.wait("n1", now).as_deref(), Some("other"));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_moves_before_the_picture_is_whole() {
        let now = Instant::now();
        let mut zones = Zones::new(NodeLifecycle::default());
        // The first node seen is not well: nothing follows from that.
        assert_eq!(zones.observe("bad", "", false, true), Shift::Nothing);
        assert_eq!(zones.wait("bad", now).as_deref(), Some(""));
        assert_eq!(zones.turn("", now + Duration::from_secs(60)), Turn::Nobody);
        assert_eq!(zones.observe("good", "", true, true), Shift::Nothing);
        assert_eq!(zones.complete(), Shift::Nothing);
        assert_eq!(zones.turn("", now), Turn::Wait(NodeLifecycle::default().settle));
        assert_eq!(
            zones.turn("", now + Duration::from_secs(60)),
            Turn::Node("bad".to_owned())
        );
    }

    #[test]
    fn zones_by_labels() {
        let node = |labels: &[(&str, &str)]| {
            let mut node = Node::default();
            let labels = labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            node.metadata.labels = Some(labels.collect());
            zone_of(&node)
        };
        assert_eq!(node(&[]), "");
        assert_eq!(node(&[("topology.kubernetes.io/zone", "a")]), ":a");
        assert_eq!(
            node(&[
                ("topology.kubernetes.io/region", "r"),
                ("failure-domain.beta.kubernetes.io/zone", "b")
            ]),
            "r:b"
        );
    }

    proptest! {
        /// Counts are those of the nodes seen last, whatever happened before.
        #[test]
        fn counts_agree_with_nodes(
            steps in prop::collection::vec((0usize..6, 0usize..3, any::<bool>(), 0usize..4), 0..60)
        ) {
            let mut zones = empty();
            let mut truth: HashMap<String, (String, bool)> = HashMap::new();
            for (node, zone, ready, kind) in steps {
                let (name, zone) = (format!("n{node}"), format!("z{zone}"));
                if kind == 0 {
                    zones.forget(&name);
                    truth.remove(&name);
                } else {
                    zones.observe(&name, &zone, ready, true);
                    truth.insert(name, (zone, ready));
                }
                let well = truth.values().any(|(_, ready)| *ready);
                prop_assert_eq!(zones.all_unwell(), !well && !truth.is_empty());
                for (zone, found) in &zones.zones {
                    let count = |wanted: bool| {
                        truth.values().filter(|(own, ready)| own == zone && *ready == wanted).count()
                    };
                    prop_assert_eq!((found.ready, found.unready), (count(true), count(false)));
                    prop_assert!(found.nodes > 0);
                }
            }
        }
    }
}
