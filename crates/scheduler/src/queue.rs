//! The queue: classes of equal Pods, in the order of their first Pod.
//!
//! A class is *active* (worth trying), *parked* (the cluster as it stands has no place for it) or *resting* (worth trying,
//! but it was so in vain so often that it waits a little). Parking and waking a class costs the same whether it holds one
//! Pod or thirty thousand, and a parked class is found by the plugins that refused it, so that an event which helps none
//! of them costs it nothing. Within and between classes the order is priority, then arrival.
//!
//! What Pods are told: a reason by new plugins, at once; one that only counts differently ("0/4 nodes" for "0/3"), once the
//! class has been parked with it for a while, and so many Pods a second among all classes ([`RETOLD`]). As upstream's, a
//! reason is that of the last try: events that help no plugin of a class change the cluster under it, but do not have it
//! looked at, and after [`LONGEST_PARKED`] it is tried, and its reason renewed, in any case. Upstream rewrites every Pod's
//! condition with each try that counts differently; that is a write per waiting Pod, as often as the cluster changes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pod::{Class, ClassId, PodInfo};

/// A Pod's place in the order of things: (priority, arrival).
pub type Order = (Reverse<i32>, u64);

/// Why a class is parked.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnosis {
    /// For people: `0/3 nodes are available: …`.
    pub message: String,
    /// The plugins that refused, for deciding which events can help.
    pub plugins: Vec<&'static str>,
}

/// How long what failed rests: doubling from the first to the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(10),
        }
    }
}

impl Backoff {
    /// The rest after so many failures.
    pub fn after(&self, failures: u32) -> Duration {
        let doubled = 2u32.checked_pow(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(doubled).min(self.longest)
    }
}

/// Tries in vain that cost no rest: an event says that they are worth it.
const FREE_TRIES: u32 = 2;
/// A class parked for so long is tried once more, should an event have been judged wrongly.
const LONGEST_PARKED: Duration = Duration::from_secs(300);
/// A reason that counts differently is told when it has stood for so long.
const SETTLED: Duration = Duration::from_secs(10);
/// How many Pods are told such a reason at a time, and the pause after each of them.
const RETOLD: usize = 10;
const PAUSE: Duration = Duration::from_millis(20);
/// Where classes are listed that nobody refused: there was no node.
pub const NOBODY: &str = "";

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Active,
    Parked(Instant),
    /// To be tried, at once or after a rest: [`Queue::advance`] says which.
    Woken,
    Resting(Instant),
}

/// How a class waits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Waiting<'a> {
    /// For its turn.
    Now,
    /// Until it has rested.
    Later,
    /// Until something helps these plugins.
    For(&'a [&'static str]),
}

struct Queued {
    class: Arc<Class>,
    pods: BTreeMap<Order, PodInfo>,
    state: State,
    /// Why it was parked last.
    diagnosis: Option<Diagnosis>,
    /// Pods not yet told why they wait, or told something else.
    untold: BTreeSet<Order>,
    /// The plugins they were last told of, and in which words.
    told: Vec<&'static str>,
    said: String,
    /// Since when the reason is worded otherwise than said.
    outdated: Option<Instant>,
    /// When that is worth saying, as listed.
    renewal: Option<Instant>,
    /// Pods told, but in other words than what is said.
    stale: BTreeSet<Order>,
    /// Tries in vain since one of its Pods last found a node, and the last of them.
    vain: u32,
    tried: Option<Instant>,
}

impl Queued {
    fn first(&self) -> Option<Order> {
        self.pods.first_key_value().map(|(order, _)| *order)
    }
    fn is_parked(&self) -> bool {
        matches!(self.state, State::Parked(_))
    }
}

/// The plugins a parked class is listed under.
fn refusing(diagnosis: Option<&Diagnosis>) -> Vec<&'static str> {
    match diagnosis {
        Some(diagnosis) if !diagnosis.plugins.is_empty() => diagnosis.plugins.clone(),
        _ => vec![NOBODY],
    }
}

#[derive(Default)]
pub struct Queue {
    classes: HashMap<ClassId, Queued>,
    active: BTreeSet<(Order, ClassId)>,
    woken: BTreeSet<ClassId>,
    resting: BTreeSet<(Instant, ClassId)>,
    parked: BTreeSet<(Instant, ClassId)>,
    /// Parked classes by the plugins that refused.
    refused_by: HashMap<&'static str, BTreeSet<ClassId>>,
    place: HashMap<Arc<str>, (ClassId, Order)>,
    /// Parked classes with Pods that wait for an explanation.
    to_tell: BTreeSet<ClassId>,
    /// Classes whose reason is worded otherwise than said, by when that is worth saying.
    renewals: BTreeSet<(Instant, ClassId)>,
    /// Parked classes with stale Pods, and until when none is told.
    stale: BTreeSet<ClassId>,
    pause: Option<Instant>,
    arrivals: u64,
    backoff: Backoff,
}

impl Queue {
    pub fn new(backoff: Backoff) -> Self {
        Queue {
            backoff,
            ..Queue::default()
        }
    }
    pub fn len(&self) -> usize {
        self.place.len()
    }
    pub fn is_empty(&self) -> bool {
        self.place.is_empty()
    }
    /// (active, parked) Pods; those that rest are active.
    pub fn counts(&self) -> (usize, usize) {
        let parked = self.classes.values().filter(|queued| queued.is_parked());
        let parked = parked.map(|queued| queued.pods.len()).sum();
        (self.len() - parked, parked)
    }
    #[cfg(test)]
    pub(crate) fn all_parked(&self) -> Vec<Arc<Class>> {
        let parked = self.classes.values().filter(|queued| queued.is_parked());
        parked.map(|queued| Arc::clone(&queued.class)).collect()
    }
    pub fn any_parked(&self) -> bool {
        !self.parked.is_empty()
    }
    pub fn contains(&self, uid: &str) -> bool {
        self.place.contains_key(uid)
    }
    pub fn get(&self, uid: &str) -> Option<&PodInfo> {
        let (class, order) = self.place.get(uid)?;
        self.classes.get(class)?.pods.get(order)
    }

    /// Queues a Pod. One that is already queued in the same class stays where it is; one whose class changed moves.
    pub fn add(&mut self, pod: PodInfo) {
        if let Some((class, order)) = self.place.get(&pod.uid) {
            if *class == pod.class.id {
                let known = self
                    .classes
                    .get_mut(class)
                    .and_then(|queued| queued.pods.get_mut(order));
                if let Some(known) = known {
                    let told = known.told || pod.told;
                    *known = PodInfo { told, ..pod };
                }
                return;
            }
            self.remove(&pod.uid);
        }
        self.arrivals += 1;
        let order = (Reverse(pod.class.priority), self.arrivals);
        self.insert(order, pod);
    }

    fn insert(&mut self, order: Order, pod: PodInfo) {
        let class = pod.class.id;
        self.place.insert(Arc::clone(&pod.uid), (class, order));
        let queued = self.classes.entry(class).or_insert_with(|| Queued {
            class: Arc::clone(&pod.class),
            pods: BTreeMap::new(),
            state: State::Active,
            diagnosis: None,
            untold: BTreeSet::new(),
            told: Vec::new(),
            said: String::new(),
            outdated: None,
            renewal: None,
            stale: BTreeSet::new(),
            vain: 0,
            tried: None,
        });
        let before = queued.first();
        queued.pods.insert(order, pod);
        queued.untold.insert(order);
        match queued.state {
            State::Parked(_) => {
                self.to_tell.insert(class);
            }
            State::Active if before.is_none_or(|before| order < before) => {
                if let Some(before) = before {
                    self.active.remove(&(before, class));
                }
                self.active.insert((order, class));
            }
            State::Active | State::Woken | State::Resting(_) => {}
        }
    }

    /// Takes a Pod out, wherever it is.
    pub fn remove(&mut self, uid: &str) -> Option<PodInfo> {
        self.take(uid).map(|(_, pod)| pod)
    }

    fn take(&mut self, uid: &str) -> Option<(Order, PodInfo)> {
        let (class, order) = self.place.remove(uid)?;
        let queued = self.classes.get_mut(&class)?;
        let was_first = queued.first() == Some(order);
        let pod = queued.pods.remove(&order)?;
        queued.untold.remove(&order);
        if queued.untold.is_empty() {
            self.to_tell.remove(&class);
        }
        queued.stale.remove(&order);
        if queued.stale.is_empty() {
            self.stale.remove(&class);
        }
        if queued.state == State::Active && was_first {
            self.active.remove(&(order, class));
            if let Some(next) = queued.first() {
                self.active.insert((next, class));
            }
        }
        if queued.pods.is_empty() {
            if let Some(due) = queued.renewal {
                self.renewals.remove(&(due, class));
            }
            self.leave(class);
            self.classes.remove(&class);
        }
        Some((order, pod))
    }

    /// Takes a Pod out because it has a place: its class is getting somewhere.
    pub fn placed(&mut self, uid: &str) -> Option<PodInfo> {
        if let Some((class, _)) = self.place.get(uid)
            && let Some(queued) = self.classes.get_mut(class)
        {
            queued.vain = 0;
        }
        self.remove(uid)
    }

    /// Gives Pods another class, where the function has one for them. They keep their place in the order.
    pub fn reclassify(&mut self, mut class: impl FnMut(&PodInfo) -> Option<Arc<Class>>) {
        let pods = self.classes.values().flat_map(|queued| queued.pods.values());
        let changed: Vec<_> = pods
            .filter_map(|pod| Some((Arc::clone(&pod.uid), class(pod)?)))
            .collect();
        for (uid, class) in changed {
            if let Some((order, pod)) = self.take(&uid) {
                self.insert(order, PodInfo { class, ..pod });
            }
        }
    }

    /// The next Pod worth trying, left in its place.
    pub fn first(&self) -> Option<&PodInfo> {
        let (_, class) = self.active.first()?;
        self.classes.get(class)?.pods.first_key_value().map(|(_, pod)| pod)
    }

    /// Takes a class off whatever list its state has it on.
    fn leave(&mut self, class: ClassId) {
        let Some(queued) = self.classes.get(&class) else {
            return;
        };
        match queued.state {
            State::Active => {
                if let Some(first) = queued.first() {
                    self.active.remove(&(first, class));
                }
            }
            State::Parked(since) => {
                self.parked.remove(&(since, class));
                for plugin in refusing(queued.diagnosis.as_ref()) {
                    if let Some(classes) = self.refused_by.get_mut(plugin) {
                        classes.remove(&class);
                    }
                }
            }
            State::Woken => {
                self.woken.remove(&class);
            }
            State::Resting(until) => {
                self.resting.remove(&(until, class));
            }
        }
    }

    fn enter(&mut self, class: ClassId, state: State) {
        self.leave(class);
        let Some(queued) = self.classes.get_mut(&class) else {
            return;
        };
        queued.state = state;
        match state {
            State::Active => {
                if let Some(first) = queued.first() {
                    self.active.insert((first, class));
                }
            }
            State::Parked(since) => {
                self.parked.insert((since, class));
                for plugin in refusing(queued.diagnosis.as_ref()) {
                    self.refused_by.entry(plugin).or_default().insert(class);
                }
            }
            State::Woken => {
                self.woken.insert(class);
            }
            State::Resting(until) => {
                self.resting.insert((until, class));
            }
        }
    }

    /// Sets a class aside. Its Pods are told again at once only if other plugins refuse than last time.
    /// How many Pods it has.
    pub fn park(&mut self, class: ClassId, diagnosis: Diagnosis, now: Instant) -> usize {
        // Under its old diagnosis it is listed elsewhere.
        self.leave(class);
        let Some(queued) = self.classes.get_mut(&class) else {
            return 0;
        };
        let pods = queued.pods.len();
        queued.state = State::Woken;
        queued.vain = queued.vain.saturating_add(1);
        queued.tried = Some(now);
        if queued.told != diagnosis.plugins {
            queued.untold = queued.pods.keys().copied().collect();
            queued.told.clone_from(&diagnosis.plugins);
            queued.said.clone_from(&diagnosis.message);
            queued.stale.clear();
            self.stale.remove(&class);
        }
        if !queued.untold.is_empty() {
            self.to_tell.insert(class);
        }
        if !queued.stale.is_empty() {
            self.stale.insert(class);
        }
        queued.outdated = match queued.said == diagnosis.message {
            true => None,
            false => Some(queued.outdated.unwrap_or(now)),
        };
        let due = queued.outdated.map(|since| (now + SETTLED).min(since + LONGEST_PARKED));
        if queued.renewal != due {
            if let Some(before) = queued.renewal {
                self.renewals.remove(&(before, class));
            }
            queued.renewal = due;
            self.renewals.extend(due.map(|due| (due, class)));
        }
        queued.diagnosis = Some(diagnosis);
        self.enter(class, State::Parked(now));
        pods
    }

    /// Classes parked because one of these plugins refused.
    pub fn parked_for<'a>(&self, plugins: impl IntoIterator<Item = &'a str>) -> Vec<(Arc<Class>, Vec<&'static str>)> {
        let ids = plugins
            .into_iter()
            .filter_map(|plugin| self.refused_by.get(plugin))
            .flatten();
        let ids: BTreeSet<&ClassId> = ids.collect();
        let queued = ids.into_iter().filter_map(|id| self.classes.get(id));
        queued
            .map(|queued| (Arc::clone(&queued.class), refusing(queued.diagnosis.as_ref())))
            .collect()
    }

    pub fn is_parked(&self, class: ClassId) -> bool {
        self.classes.get(&class).is_some_and(Queued::is_parked)
    }

    /// Lists a parked class under one more plugin: on a node that changed, it is the one that refuses now.
    pub fn refused_also(&mut self, class: ClassId, plugin: &'static str) {
        if let Some(queued) = self.classes.get_mut(&class)
            && queued.is_parked()
            && let Some(diagnosis) = queued.diagnosis.as_mut()
            && !diagnosis.plugins.contains(&plugin)
        {
            if diagnosis.plugins.is_empty()
                && let Some(classes) = self.refused_by.get_mut(NOBODY)
            {
                classes.remove(&class);
            }
            diagnosis.plugins.push(plugin);
            self.refused_by.entry(plugin).or_default().insert(class);
        }
    }

    /// Makes a parked class worth trying again. `sure`: it was seen that it will find a place, so that it need not rest.
    /// How many Pods of it were parked.
    pub fn wake(&mut self, class: ClassId, sure: bool) -> usize {
        let Some(queued) = self.classes.get(&class) else {
            return 0;
        };
        let parked = if queued.is_parked() { queued.pods.len() } else { 0 };
        match queued.state {
            State::Parked(_) | State::Woken | State::Resting(_) if sure => self.enter(class, State::Active),
            State::Parked(_) => self.enter(class, State::Woken),
            _ => {}
        }
        parked
    }

    /// All classes: how each waits, and how many Pods it has.
    pub fn all(&self) -> impl Iterator<Item = (&Class, Waiting<'_>, usize)> {
        self.classes.values().map(|queued| {
            let waiting = match (queued.state, &queued.diagnosis) {
                (State::Parked(_), Some(diagnosis)) => Waiting::For(&diagnosis.plugins),
                (State::Parked(_), None) => Waiting::For(&[]),
                (State::Resting(_), _) => Waiting::Later,
                (State::Active | State::Woken, _) => Waiting::Now,
            };
            (&*queued.class, waiting, queued.pods.len())
        })
    }

    /// Lets those try whose time has come.
    pub fn advance(&mut self, now: Instant) {
        while let Some(&class) = self.woken.first() {
            let queued = self.classes.get(&class);
            let rest = queued.and_then(|queued| {
                let failures = queued.vain.checked_sub(FREE_TRIES).filter(|failures| *failures > 0)?;
                Some(queued.tried? + self.backoff.after(failures))
            });
            self.enter(
                class,
                rest.filter(|until| *until > now).map_or(State::Active, State::Resting),
            );
            // Were the class unknown, entering would have left it there.
            self.woken.remove(&class);
        }
        while let Some(&(until, class)) = self.resting.first()
            && until <= now
        {
            self.enter(class, State::Active);
            self.resting.remove(&(until, class));
        }
        while let Some(&(since, class)) = self.parked.first()
            && since + LONGEST_PARKED <= now
        {
            self.enter(class, State::Active);
            self.parked.remove(&(since, class));
        }
    }

    /// When [`Queue::tell`] has more to say though nothing happened.
    pub fn next_telling(&self) -> Option<Instant> {
        let stale = self.pause.filter(|_| !self.stale.is_empty());
        let renewal = self.renewals.first().map(|(at, _)| *at);
        stale.into_iter().chain(renewal).min()
    }

    /// When [`Queue::advance`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let rested = self.resting.first().map(|(until, _)| *until);
        let parked = self.parked.first().map(|(since, _)| *since + LONGEST_PARKED);
        rested.into_iter().chain(parked).min()
    }

    /// At most `limit` Pods of one parked class that were not yet told why they wait, or not as it is now, with the
    /// explanation.
    pub fn tell(&mut self, limit: usize, now: Instant) -> Option<(String, Vec<PodInfo>)> {
        self.tell_new(limit).or_else(|| self.retell(now))
    }

    fn retell(&mut self, now: Instant) -> Option<(String, Vec<PodInfo>)> {
        while let Some(&(due, class)) = self.renewals.first()
            && due <= now
        {
            self.renewals.pop_first();
            let Some(queued) = self.classes.get_mut(&class) else {
                continue;
            };
            queued.renewal = None;
            let (State::Parked(_), Some(diagnosis)) = (queued.state, &queued.diagnosis) else {
                // Awake again: the next try says whether it is still outdated.
                continue;
            };
            if !queued.stale.is_empty() {
                // Each Pod has its turn before any has it again; the others hear it as it is now.
                let due = now + SETTLED;
                queued.renewal = Some(due);
                self.renewals.insert((due, class));
                continue;
            }
            queued.outdated = None;
            queued.said.clone_from(&diagnosis.message);
            let told = queued.pods.keys().filter(|order| !queued.untold.contains(order));
            queued.stale = told.copied().collect();
            if !queued.stale.is_empty() {
                self.stale.insert(class);
            }
        }
        if self.pause.is_some_and(|pause| pause > now) {
            return None;
        }
        while let Some(&class) = self.stale.first() {
            let queued = self.classes.get_mut(&class).filter(|queued| queued.is_parked());
            let Some((queued, message)) = queued.and_then(|queued| {
                let message = queued.diagnosis.as_ref()?.message.clone();
                Some((queued, message))
            }) else {
                // Parking puts it back.
                self.stale.remove(&class);
                continue;
            };
            let mut pods = Vec::new();
            while pods.len() < RETOLD
                && let Some(order) = queued.stale.pop_first()
            {
                pods.extend(queued.pods.get(&order).cloned());
            }
            if queued.stale.is_empty() {
                self.stale.remove(&class);
            }
            if !pods.is_empty() {
                self.pause = Some(now + PAUSE * u32::try_from(pods.len()).unwrap_or(u32::MAX));
                return Some((message, pods));
            }
        }
        None
    }

    fn tell_new(&mut self, limit: usize) -> Option<(String, Vec<PodInfo>)> {
        loop {
            let class = *self.to_tell.first()?;
            let Some(queued) = self.classes.get_mut(&class) else {
                self.to_tell.remove(&class);
                continue;
            };
            let (true, Some(diagnosis)) = (queued.is_parked(), &queued.diagnosis) else {
                // Awake again: whatever comes of the next try will be told then.
                self.to_tell.remove(&class);
                continue;
            };
            let mut pods = Vec::new();
            while pods.len() < limit
                && let Some(order) = queued.untold.pop_first()
            {
                if let Some(pod) = queued.pods.get_mut(&order) {
                    pods.push(pod.clone());
                    pod.told = true;
                }
            }
            if queued.untold.is_empty() {
                self.to_tell.remove(&class);
            }
            if !pods.is_empty() {
                return Some((diagnosis.message.clone(), pods));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod_info;
    use serde_json::json;

    fn diagnosis(plugin: &'static str) -> Diagnosis {
        Diagnosis {
            message: format!("because of {plugin}"),
            plugins: vec![plugin],
        }
    }
    fn spec(priority: i32, cpu: &str) -> serde_json::Value {
        json!({"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
    }
    fn take(queue: &mut Queue) -> String {
        let name = queue.first().unwrap().name.to_string();
        queue.remove(&name);
        name
    }

    #[test]
    fn order_is_priority_then_arrival_across_classes() {
        let mut queue = Queue::default();
        for (name, priority, cpu) in [("a1", 0, "1"), ("b1", 0, "2"), ("a2", 0, "1"), ("high", 9, "1")] {
            queue.add(pod_info(name, spec(priority, cpu)));
        }
        let order: Vec<_> = (0..4).map(|_| take(&mut queue)).collect();
        assert_eq!(order, ["high", "a1", "b1", "a2"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_parked_class_is_told_once_and_newcomers_too() {
        let mut queue = Queue::default();
        for name in ["p1", "p2", "p3"] {
            queue.add(pod_info(name, spec(0, "1")));
        }
        let class = queue.first().unwrap().class.id;
        queue.park(class, diagnosis("Fit"), Instant::now());
        assert!(queue.first().is_none());
        assert_eq!(queue.tell(2, Instant::now()).unwrap().1.len(), 2);
        assert_eq!(queue.tell(2, Instant::now()).unwrap().1.len(), 1);
        assert!(queue.tell(2, Instant::now()).is_none());
        queue.add(pod_info("p4", spec(0, "1")));
        assert!(queue.first().is_none(), "joins the parked class");
        assert_eq!(&*queue.tell(9, Instant::now()).unwrap().1[0].name, "p4");
        queue.wake(class, true);
        assert_eq!(take(&mut queue), "p1");
        queue.park(class, diagnosis("Fit"), Instant::now());
        assert!(queue.tell(9, Instant::now()).is_none(), "nothing new to say");
        queue.wake(class, true);
        queue.park(class, diagnosis("Taints"), Instant::now());
        assert_eq!(queue.tell(9, Instant::now()).unwrap().1.len(), 3);
    }

    #[test]
    fn a_reason_that_counts_differently_is_renewed_when_it_stood_for_a_while() {
        let mut queue = Queue::default();
        let start = Instant::now();
        for index in 0..25 {
            queue.add(pod_info(&format!("p{index}"), spec(0, "1")));
        }
        let class = queue.first().unwrap().class.id;
        let park = |queue: &mut Queue, nodes: u32, now| {
            let message = format!("0/{nodes} nodes are available");
            let plugins = vec!["Fit"];
            queue.park(class, Diagnosis { message, plugins }, now);
        };
        park(&mut queue, 3, start);
        assert_eq!(queue.tell(99, start).unwrap().1.len(), 25);
        // It changes again and again, and back: there is nothing to say.
        for (after, nodes) in [(1, 4), (2, 5), (3, 3)] {
            park(&mut queue, nodes, start + Duration::from_secs(after));
            assert!(queue.tell(99, start + Duration::from_secs(after + 1)).is_none());
        }
        assert_eq!(queue.next_telling(), None);
        let changed = start + Duration::from_secs(20);
        park(&mut queue, 4, changed);
        let mut now = queue.next_telling().unwrap();
        assert_eq!(now, changed + SETTLED);
        let mut told = Vec::new();
        while let Some((message, pods)) = queue.tell(99, now) {
            assert_eq!(message, "0/4 nodes are available");
            assert!(queue.tell(99, now).is_none(), "not faster than is said");
            told.push(pods.len());
            let Some(next) = queue.next_telling() else { break };
            assert_eq!(next - now, PAUSE * pods.len() as u32);
            now = next;
        }
        assert_eq!(told, [10, 10, 5]);
        // Where it never stands for long it is said in the end; who was not told yet hears it at once.
        queue.add(pod_info("new", spec(0, "1")));
        let mut renewed = None;
        for second in (0..400).step_by(5) {
            let now = changed + Duration::from_secs(60 + second);
            park(&mut queue, 10 + u32::try_from(second).unwrap(), now);
            if let Some((_, pods)) = queue.tell(99, now) {
                if second == 0 {
                    assert_eq!(pods.len(), 1);
                } else {
                    renewed = renewed.or(Some(second));
                }
            }
        }
        assert_eq!(renewed, Some(300));
        // Other plugins: at once, all.
        queue.park(class, diagnosis("Taints"), now + Duration::from_secs(900));
        assert_eq!(queue.tell(99, now).unwrap().1.len(), 26);
        let uids: Vec<String> = (0..25).map(|index| format!("p{index}")).chain(["new".into()]).collect();
        park(&mut queue, 1, now);
        queue.tell(99, now);
        park(&mut queue, 2, now);
        for uid in &uids {
            queue.remove(uid);
        }
        assert_eq!((queue.next_telling(), queue.next_deadline()), (None, None));
    }

    #[test]
    fn a_pod_whose_wishes_change_moves_to_another_class() {
        let mut queue = Queue::default();
        queue.add(pod_info("p1", spec(0, "1")));
        let parked = queue.first().unwrap().class.id;
        queue.park(parked, diagnosis("Fit"), Instant::now());
        queue.add(pod_info("p1", spec(0, "2")));
        assert_eq!(queue.len(), 1);
        assert_eq!(&*queue.first().unwrap().name, "p1");
        assert!(queue.tell(9, Instant::now()).is_none());
    }

    #[test]
    fn who_woke_in_vain_too_often_rests() {
        let mut queue = Queue::default();
        let start = Instant::now();
        queue.add(pod_info("p1", spec(0, "1")));
        let class = queue.first().unwrap().class.id;
        let mut rests = Vec::new();
        let mut now = start;
        for _ in 0..8 {
            queue.park(class, diagnosis("Fit"), now);
            queue.wake(class, false);
            queue.advance(now);
            if queue.first().is_none() {
                let due = queue.next_deadline().unwrap();
                rests.push((due - now).as_secs());
                queue.advance(due);
                now = due;
            }
            assert!(queue.first().is_some());
        }
        assert_eq!(rests, [1, 2, 4, 8, 10, 10]);
        queue.park(class, diagnosis("Fit"), now);
        queue.wake(class, true);
        assert!(queue.first().is_some(), "what is known to fit need not rest");
        queue.add(pod_info("p2", spec(0, "1")));
        queue.placed("p1");
        queue.park(class, diagnosis("Fit"), now);
        queue.wake(class, false);
        queue.advance(now);
        assert!(queue.first().is_some(), "a class that gets somewhere starts over");
    }

    #[test]
    fn a_parked_class_is_found_by_who_refused_it_and_tried_after_a_long_time() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.add(pod_info("p1", spec(0, "1")));
        let class = queue.first().unwrap().class.id;
        queue.park(class, diagnosis("Fit"), now);
        assert_eq!(queue.parked_for(["Fit", "Taints"]).len(), 1);
        assert!(queue.parked_for(["Taints"]).is_empty());
        let due = queue.next_deadline().unwrap();
        assert_eq!(due - now, LONGEST_PARKED);
        queue.advance(due);
        assert!(queue.first().is_some() && queue.parked_for(["Fit"]).is_empty());
        queue.remove("p1");
        assert_eq!((queue.next_deadline(), queue.len()), (None, 0));
    }
}
