//! The scheduler without I/O: events in, decisions out.
//!
//! The caller tells it what changed ([`Engine::node_changed`], [`Engine::pod_changed`], …) and asks for the next
//! [`Decision`] until there is none. A Pod decided for a node is booked there at once, before the API server knows;
//! [`Engine::bind_failed`] takes that back.
//!
//! Invariants:
//! - node plugins judge a node once per change of its account for all Pods of one shape, and cluster plugins' sums follow
//!   the nodes that changed: nothing walks the cluster's Pods for a decision;
//! - a parked class is looked at again only for an event that can help the plugins that refused it;
//! - the same events in the same order give the same decisions for the same seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::classes::Classes;
use crate::extender::PLUGIN;
use crate::framework::{BindingPlugin, Event, Framework, Refusal};
use crate::labels::Labels;
use crate::memory::{Memory, Tracking, refusal};
use crate::owners::OwnerKind;
use crate::plugins::dynamic_resources;
use crate::pod::{Class, ClassId, PodInfo, is_finished, scheduler_of};
use crate::preemption::{Budgets, Candidates, Outcome, Trial, Victims};
use crate::queue::{Backoff, Diagnosis, Order, Queue};
use crate::resources::pod_requests;
use crate::snapshot::{NodeIndex, NodeInfo, Snapshot};
use crate::watch::{Point, Status, Watch};

#[path = "engine_preemption.rs"]
mod preempting;
use preempting::{Nominations, Refused, Remedy};
#[path = "engine_metrics.rs"]
mod counting;
#[path = "engine_extenders.rs"]
mod extending;
use counting::Counting;
#[path = "engine_wake.rs"]
mod waking;
#[cfg(test)]
use extending::LEFTOVER;
use extending::{Extending, Gate, with_remedy};
pub use extending::{Followed, Told};

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Bind the Pod to the node; it is already booked there.
    Bind { pod: PodInfo, node: Arc<str> },
    /// Send the victims away, for the Pod is nominated to their node; tell it why it waits.
    Preempt {
        pod: PodInfo,
        node: Arc<str>,
        victims: Vec<PodInfo>,
        message: String,
    },
    /// Write that the Pod is nominated no longer.
    Unnominate { pod: PodInfo },
    /// Ask extenders about these nodes for the Pod; [`Engine::consulted`] takes the answer.
    Consult { pod: PodInfo, nodes: Vec<Arc<Node>> },
    /// Ask extenders who has to leave for the Pod; [`Engine::victims_consulted`] takes the answer.
    ConsultVictims {
        pod: PodInfo,
        candidates: BTreeMap<Arc<str>, Victims>,
        message: String,
    },
    /// Tell these Pods why they wait.
    Tell { message: String, pods: Vec<PodInfo> },
}

/// Most Pods in one [`Decision::Tell`].
const TELL: usize = 256;
/// How many shapes' and classes' answers are remembered at a time.
const MEMORIES: usize = 64;
const TRACKINGS: usize = 128;

/// A bounded number of things that are remembered: the least recently used go first.
struct Recent<K, V> {
    limit: usize,
    uses: u64,
    values: HashMap<K, (u64, V)>,
}

impl<K: Eq + Hash + Copy, V> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Recent {
            limit,
            uses: 0,
            values: HashMap::new(),
        }
    }
    fn get(&mut self, key: K) -> Option<&mut V> {
        self.uses += 1;
        let (used, value) = self.values.get_mut(&key)?;
        *used = self.uses;
        Some(value)
    }
    fn put(&mut self, key: K, value: V) {
        self.uses += 1;
        self.values.insert(key, (self.uses, value));
        if self.values.len() > self.limit {
            let oldest = self.values.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.values.remove(&oldest);
            }
        }
    }
}

/// Pods that are left alone for a while because something failed.
#[derive(Default)]
struct Delayed {
    due: BTreeMap<(Instant, Arc<str>), PodInfo>,
    when: HashMap<Arc<str>, Instant>,
}

impl Delayed {
    fn add(&mut self, pod: PodInfo, until: Instant) {
        self.remove(&pod.uid);
        self.when.insert(Arc::clone(&pod.uid), until);
        self.due.insert((until, Arc::clone(&pod.uid)), pod);
    }
    fn remove(&mut self, uid: &str) -> Option<PodInfo> {
        let (uid, until) = self.when.remove_entry(uid)?;
        self.due.remove(&(until, uid))
    }
    fn next(&mut self, now: Instant) -> Option<PodInfo> {
        let entry = self.due.first_entry().filter(|entry| entry.key().0 <= now)?;
        let pod = entry.remove();
        self.when.remove(&pod.uid);
        Some(pod)
    }
    fn deadline(&self) -> Option<Instant> {
        self.due.keys().next().map(|(at, _)| *at)
    }
}

pub struct Engine {
    /// By the scheduler's name that Pods give.
    profiles: HashMap<String, Framework>,
    snapshot: Snapshot,
    classes: Classes,
    queue: Queue,
    backoff: Backoff,
    /// By shape.
    memories: Recent<ClassId, Memory>,
    /// By class.
    trackings: Recent<ClassId, Tracking>,
    /// Pods whose binding failed, until they may try again.
    delayed: Delayed,
    failures: HashMap<Arc<str>, u32>,
    nominations: Nominations,
    extending: Extending,
    counting: Counting,
    budgets: Budgets,
    random: SmallRng,
}

impl Engine {
    /// An engine for Pods that name one of the profiles. `seed` decides between equally good nodes.
    pub fn new(profiles: impl IntoIterator<Item = (String, Framework)>, seed: u64) -> Self {
        Engine::with_backoff(profiles, seed, Backoff::default())
    }

    pub fn with_backoff(profiles: impl IntoIterator<Item = (String, Framework)>, seed: u64, backoff: Backoff) -> Self {
        let profiles: HashMap<String, Framework> = profiles.into_iter().collect();
        let mut snapshot = Snapshot::default();
        let plugins = profiles.values().flat_map(|framework| &framework.cluster);
        for key in plugins.flat_map(|plugin| plugin.topology_keys()) {
            snapshot.learn_key(&key);
        }
        Engine {
            profiles,
            snapshot,
            classes: Classes::default(),
            queue: Queue::new(backoff),
            backoff,
            memories: Recent::new(MEMORIES),
            trackings: Recent::new(TRACKINGS),
            delayed: Delayed::default(),
            failures: HashMap::new(),
            nominations: Nominations::default(),
            extending: Extending::default(),
            counting: Counting::default(),
            budgets: Budgets::default(),
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// (active, parked, delayed) Pods.
    pub fn counts(&self) -> (usize, usize, usize) {
        let (active, parked) = self.queue.counts();
        let delayed = self.delayed.due.len();
        let (asked, refused) = self.extending.counts();
        (active + asked, parked + self.nominations.len() + refused, delayed)
    }

    pub fn node_changed(&mut self, node: Arc<Node>) {
        let known = node.metadata.name.as_deref().and_then(|name| self.snapshot.find(name));
        let before = known
            .and_then(|at| self.snapshot.node(at))
            .and_then(|info| info.node.clone());
        // Heartbeats change a node's status without changing anything a Pod could ask for.
        if before.as_deref().is_some_and(|before| same_offer(before, &node)) {
            return;
        }
        let moved = before.as_ref().is_some_and(|before| !same_domains(before, &node));
        if let Some(at) = self.snapshot.set_node(node) {
            let came_with_pods = || self.snapshot.node(at).is_some_and(|info| !info.pods.is_empty());
            if moved || (before.is_none() && came_with_pods()) {
                // What it was for spreads and affinity elsewhere, it is no longer.
                self.wake(Event::NodeGone, None, None);
            }
            self.wake(Event::Node, Some(at), None);
        }
    }

    pub fn node_gone(&mut self, name: &str) {
        self.snapshot.remove_node(name);
        self.nominations.make_ready_on(name);
        // Fewer domains can satisfy a spread that was refused.
        self.wake(Event::NodeGone, None, None);
    }

    pub fn namespace_changed(&mut self, name: &str, labels: Option<Labels>) {
        if self.snapshot.namespace_labels(name) != labels.as_ref() {
            self.snapshot.set_namespace(name, labels);
            self.wake(Event::Namespace, None, None);
        }
    }

    /// Whether it has to know what Services and workloads select.
    pub fn spreads_by_default(&self) -> bool {
        let mut plugins = self.profiles.values().flat_map(|framework| &framework.cluster);
        plugins.any(|plugin| !plugin.topology_keys().is_empty())
    }

    /// What a Service or workload selects; `None`: it is gone, or selects nothing.
    pub fn owner_changed(&mut self, kind: OwnerKind, namespace: &str, name: &str, selector: Option<LabelSelector>) {
        if let Some(selector) = &selector {
            let new = self.classes.learn(crate::labels::keys(selector));
            self.reclassify(&new);
        }
        self.snapshot.owners_mut().set(kind, namespace, name, selector);
    }

    /// Pods with labels that are read from now on may be of other classes.
    fn reclassify(&mut self, keys: &[String]) {
        if keys.is_empty() {
            return;
        }
        let classes = &mut self.classes;
        let mut class = |pod: &PodInfo| {
            let has_any = keys.iter().any(|key| pod.labels.contains_key(key));
            has_any.then(|| classes.again(&pod.class, &pod.labels))
        };
        self.snapshot.reclassify(&mut class);
        self.queue.reclassify(&mut class);
        self.nominations.reclassify(&mut class);
        self.extending.reclassify(&mut class);
        for pod in self.delayed.due.values_mut() {
            if let Some(class) = class(pod) {
                pod.class = class;
            }
        }
    }

    /// A Pod as the engine keeps it; `known`: as it knew it before. `None` for an object without a uid.
    fn read(&mut self, pod: &Pod, known: Option<&PodInfo>) -> Option<PodInfo> {
        let no_labels = Labels::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
        let generation = pod.metadata.generation.unwrap_or(0);
        // To digest a Pod is the dearest part of taking notice of it.
        let unchanged = known.filter(|known| {
            generation != 0
                && known.generation == generation
                && *known.labels == *labels
                && known.class.requests == pod_requests(pod).0
                && known.class.claims == dynamic_resources::asked(pod)
        });
        let class = match unchanged {
            Some(known) => Arc::clone(&known.class),
            None => {
                let class = Class::without_labels(pod);
                let new = self.classes.learn(class.label_keys());
                self.reclassify(&new);
                self.snapshot.learn(&class);
                self.classes.of(class, labels)
            }
        };
        PodInfo::of(pod, class)
    }

    pub fn pod_changed(&mut self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.as_deref() else { return };
        if is_finished(pod) {
            return self.pod_gone(uid);
        }
        let spec = pod.spec.as_ref();
        let node = spec
            .and_then(|spec| spec.node_name.as_deref())
            .filter(|name| !name.is_empty());
        if let Some(node) = node {
            return self.pod_placed(pod, uid, node);
        }
        if self.snapshot.place_of(uid).is_some() {
            // Booked by us, and the binding is under way: this is an older view of it.
            return;
        }
        let ours = self.profiles.contains_key(scheduler_of(pod));
        let gated = spec
            .and_then(|spec| spec.scheduling_gates.as_ref())
            .is_some_and(|gates| !gates.is_empty());
        if !ours || gated || pod.metadata.deletion_timestamp.is_some() {
            self.queue.remove(uid);
            self.delayed.remove(uid);
            self.extending.forget(uid);
            self.counting.went(uid, None);
            if ours && gated {
                self.counting.is_gated(uid);
            }
            self.end_nomination(uid);
            return;
        }
        if self.delayed.when.contains_key(uid) {
            return;
        }
        let known = self.queue.get(uid).or_else(|| self.extending.get(uid)).cloned();
        let Some(info) = self.read(pod, known.as_ref()) else {
            return;
        };
        self.counting.came(&info.uid, Instant::now());
        if let Some(before) = self.extending.get(uid) {
            if before.class.id == info.class.id && before.labels == info.labels {
                return;
            }
            self.extending.forget(uid);
        }
        if let Some(nomination) = self.nominations.get(uid) {
            if nomination.pod.class.id == info.class.id {
                return;
            }
            // It asks for something else now: what was found for it holds no longer.
            self.end_nomination(uid);
        } else if known.is_none()
            && let Some(node) = pod
                .status
                .as_ref()
                .and_then(|status| status.nominated_node_name.as_deref())
            && !node.is_empty()
            && !self.nominations.is_ending(uid)
        {
            // Nominated before this scheduler started.
            self.add_nomination(info, node.into(), HashSet::new());
            self.nominations.make_ready(uid);
            return;
        }
        self.queue.add(info);
    }

    fn pod_placed(&mut self, pod: &Pod, uid: &str, node: &str) {
        let booked = self.snapshot.pod(uid).cloned();
        let queued = self.queue.remove(uid);
        self.delayed.remove(uid);
        self.extending.forget(uid);
        self.failures.remove(uid);
        let was_here = booked.is_some() && self.snapshot.place_of(uid) == self.snapshot.find(node);
        let Some(info) = self.read(pod, booked.as_ref().or(queued.as_ref())) else {
            return;
        };
        let (class, leaving) = (Arc::clone(&info.class), info.leaving);
        self.counting.went(uid, was_here.then_some(&class.scheduler));
        let at = self.snapshot.place(info, node);
        let same_class = booked.as_ref().is_some_and(|booked| booked.class.id == class.id);
        if !was_here || !same_class {
            self.wake(Event::PodPlaced, Some(at), Some(&class));
        }
        if let Some(booked) = booked
            && (!same_class || booked.leaving != leaving)
        {
            self.wake(Event::PodGone, Some(at), Some(&booked.class));
        }
        self.end_nomination(uid);
        self.nominations.reserved(uid);
    }

    pub fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.counting.went(uid, None);
        self.extending.forget(uid);
        self.delayed.remove(uid);
        self.failures.remove(uid);
        self.end_nomination(uid);
        self.nominations.reserved(uid);
        self.nominations.victim_gone(uid);
        if let Some((at, pod)) = self.snapshot.remove_pod(uid) {
            self.wake(Event::PodGone, Some(at), Some(&pod.class));
        }
    }

    /// Objects that plugins keep a view of changed: wakes the classes they concern and forgets what was learned of them.
    pub fn objects_changed(&mut self, event: Event, concerns: impl Fn(&Class) -> bool) {
        self.memories.values.retain(|_, (_, memory)| !concerns(&memory.class));
        self.wake_where(event, None, None, concerns);
    }

    /// Whether the Pod still waits for a node (so that telling it why makes sense).
    pub fn is_waiting(&self, uid: &str) -> bool {
        self.queue.contains(uid) || self.nominations.contains(uid) || self.extending.contains(uid)
    }

    /// The binding did not happen: the room is free again and the Pod tries again after a while, unless it is gone.
    pub fn bind_failed(&mut self, pod: PodInfo, now: Instant) -> bool {
        let booked = self.snapshot.remove_pod(&pod.uid);
        // What plugins took for a Pod that is gone goes back too.
        self.unreserve(&pod);
        let Some((at, booked)) = booked else {
            return false;
        };
        // Its class may have another name by now.
        let pod = PodInfo {
            class: booked.class,
            ..pod
        };
        let class = Arc::clone(&pod.class);
        self.counting.failed(&pod);
        self.delay(pod, now);
        self.wake(Event::PodGone, Some(at), Some(&class));
        true
    }

    /// Has the plugins give back what they took for a Pod, and wakes who waited to see what becomes of its claims.
    fn unreserve(&mut self, pod: &PodInfo) {
        let Some(framework) = self.profiles.get(&pod.class.scheduler) else {
            return;
        };
        let began = Instant::now();
        for plugin in &framework.binding {
            plugin.unreserve(pod);
        }
        let metrics = &self.counting.metrics;
        metrics.point(&pod.class.scheduler, Point::Unreserve, Status::Success, began.elapsed());
        if !pod.class.claims.is_empty() {
            let event = Event::ResourceClaim;
            self.objects_changed(event, |class| dynamic_resources::share_a_claim(class, &pod.class));
        }
    }

    /// Until when a Pod rests that failed once more: longer each time.
    fn rest(&mut self, uid: &Arc<str>, now: Instant) -> Instant {
        let failures = self.failures.entry(Arc::clone(uid)).or_default();
        *failures += 1;
        now + self.backoff.after(*failures)
    }

    /// Sets a Pod aside for longer each time.
    fn delay(&mut self, pod: PodInfo, now: Instant) {
        let until = self.rest(&pod.uid, now);
        if let Some(node) = self.nominations.reserved(&pod.uid) {
            // The room that was made for it stays its own.
            self.add_nomination(pod.clone(), node, HashSet::new());
        }
        self.delayed.add(pod, until);
    }

    /// When [`Engine::next`] should be asked again even if nothing happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [self.next_try(), self.next_retelling()];
        deadlines.into_iter().flatten().min()
    }

    /// When [`Engine::next_telling`] has more to say even if nothing happens.
    pub fn next_retelling(&self) -> Option<Instant> {
        self.queue.next_telling()
    }

    /// When Pods are to be tried even if nothing happens.
    pub fn next_try(&self) -> Option<Instant> {
        let deadlines = [
            self.delayed.deadline(),
            self.queue.next_deadline(),
            self.nominations.next_deadline(),
            self.extending.next_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// The next thing to do; `None`: nothing until something changes (or [`Engine::next_deadline`]).
    pub fn next(&mut self, now: Instant) -> Option<Decision> {
        self.next_binding(now).or_else(|| self.next_telling(now))
    }

    /// The next Pod that has a place or can have one made. Parks every class that has none on the way.
    pub fn next_binding(&mut self, now: Instant) -> Option<Decision> {
        while let Some(pod) = self.delayed.next(now) {
            if self.nominations.contains(&pod.uid) {
                self.nominations.make_ready(&pod.uid);
            } else {
                self.queue.add(pod);
            }
        }
        while let Some(pod) = self.extending.due(now) {
            self.queue.add(pod);
        }
        self.queue.advance(now);
        loop {
            let first = self.queue.first().map(|pod| pod.class.priority);
            // Nodes that extenders are to be asked about.
            let mut noted = Vec::new();
            let (pod, chosen) = match self.nominations.take_ready(first) {
                Some(pod) => {
                    if self.delayed.when.contains_key(&pod.uid) {
                        continue;
                    }
                    let Some(at) = self.retry_nominated(&pod, &mut noted) else {
                        continue;
                    };
                    (pod, Ok(at))
                }
                None => {
                    let pod = match self.extending.next_in_line(first) {
                        Some(pod) if self.queue.is_parked(pod.class.id) => {
                            self.queue.add(pod);
                            continue;
                        }
                        Some(pod) => pod,
                        None => {
                            let Some(pod) = self.queue.first().cloned() else { break };
                            if self.extending.must_queue(&pod) {
                                self.queue.remove(&pod.uid);
                                continue;
                            }
                            pod
                        }
                    };
                    let chosen = self.look(&pod, &mut noted);
                    (pod, chosen)
                }
            };
            let decision = match chosen {
                Ok(at) if !noted.is_empty() => self.consult(pod, at, &noted),
                Ok(at) => self.book(pod, at, now),
                Err(refused) => match self.timed_remedy(&pod, &refused) {
                    Remedy::None(why) => {
                        let (class, mut diagnosis) = (pod.class.id, refused.diagnosis);
                        diagnosis.message = with_remedy(diagnosis.message, why);
                        // One that stood in line for extenders waits with its class.
                        self.queue.add(pod);
                        let parked = self.queue.park(class, diagnosis, now);
                        let metrics = &self.counting.metrics;
                        metrics.incoming("unschedulable", "ScheduleAttemptFailure", parked);
                        None
                    }
                    remedy => self.carry_out(pod, remedy, refused.diagnosis.message),
                },
            };
            if decision.is_some() {
                return decision;
            }
        }
        let ended = self.nominations.next_ended(now)?;
        Some(Decision::Unnominate { pod: ended })
    }

    /// Looks for a node; where extenders are to be asked, notes all that would do.
    fn look(&mut self, pod: &PodInfo, noted: &mut Vec<NodeIndex>) -> Result<NodeIndex, Refused> {
        let gate = match self.extending.want(&pod.class) {
            true => Gate::Note(noted),
            false => Gate::Open,
        };
        let began = Instant::now();
        let mut watch = Watch::start(self.counting.sample());
        let chosen = self.choose(pod, gate, &mut watch);
        self.looked(pod, began, chosen.is_ok(), watch);
        chosen
    }

    /// Books a Pod where it is to be bound; `None` if a plugin could not take there what it needs.
    fn book(&mut self, pod: PodInfo, at: NodeIndex, now: Instant) -> Option<Decision> {
        self.queue.placed(&pod.uid);
        let node = self.snapshot.node(at).map(|info| Arc::clone(&info.name))?;
        let (began, mut watch) = (Instant::now(), Watch::start(self.counting.is_sampled()));
        let reserved = self.reserve(&pod, &node, &mut watch);
        let metrics = &self.counting.metrics;
        metrics.reserved(&pod.class.scheduler, reserved.is_ok(), began.elapsed());
        metrics.parts(&watch.parts);
        if let Err((plugin, refusal)) = reserved {
            let diagnosis = Diagnosis {
                message: format!(
                    "0/{} nodes are available: {}.",
                    self.snapshot.count(),
                    refusal.reasons.join(", ")
                ),
                plugins: vec![plugin],
            };
            let class = pod.class.id;
            self.end_nomination(&pod.uid);
            self.queue.add(pod);
            self.queue.park(class, diagnosis, now);
            return None;
        }
        self.nominations.reserve(&pod.uid);
        self.snapshot.place(pod.clone(), &node);
        self.wake(Event::PodPlaced, Some(at), Some(&pod.class));
        self.end_nomination(&pod.uid);
        Some(Decision::Bind { pod, node })
    }

    /// Has the plugins take what the Pod needs on the node; all or nothing.
    fn reserve(&self, pod: &PodInfo, node: &str, watch: &mut Watch) -> Result<(), (&'static str, Refusal)> {
        let Some(framework) = self.profiles.get(&pod.class.scheduler) else {
            return Ok(());
        };
        for (count, plugin) in framework.binding.iter().enumerate() {
            if let Err(refusal) = watch.part(plugin.name(), Point::Reserve, || plugin.reserve(pod, node)) {
                watch.refused();
                for plugin in framework.binding.iter().take(count + 1) {
                    plugin.unreserve(pod);
                }
                return Err((plugin.name(), refusal));
            }
        }
        Ok(())
    }

    /// What the Pod's profile does around a binding.
    pub fn binding_plugins(&self, pod: &PodInfo) -> Vec<Arc<dyn BindingPlugin>> {
        let framework = self.profiles.get(&pod.class.scheduler);
        framework.map(|framework| framework.binding.clone()).unwrap_or_default()
    }

    /// The next Pods to be told why they wait.
    pub fn next_telling(&mut self, now: Instant) -> Option<Decision> {
        let told = self.nominations.next_telling().or_else(|| self.queue.tell(TELL, now));
        told.map(|(message, pods)| Decision::Tell { message, pods })
    }

    /// The best node for a Pod, or why there is none.
    fn choose(&mut self, pod: &PodInfo, mut gate: Gate<'_>, watch: &mut Watch) -> Result<NodeIndex, Refused> {
        let class = &pod.class;
        let Engine {
            profiles,
            snapshot,
            memories,
            trackings,
            nominations,
            random,
            ..
        } = self;
        let snapshot = &*snapshot;
        let everywhere = |message, plugins| Refused {
            diagnosis: Diagnosis { message, plugins },
            filtered: false,
        };
        let Some(framework) = profiles.get(&class.scheduler) else {
            let message = format!("no profile is named {}", class.scheduler);
            return Err(everywhere(message, Vec::new()));
        };
        for row in &framework.pre_filters {
            if let Err(refusal) = watch.part(row.name, Point::PreFilter, || (row.check)(class)) {
                watch.refused();
                watch.lap(Point::PreFilter);
                let reasons = refusal.reasons.join(", ");
                let message = format!("0/{} nodes are available: {reasons}.", snapshot.count());
                return Err(everywhere(message, vec![row.name]));
            }
        }
        let tracking = tracked(trackings, framework, class, snapshot, watch);
        watch.lap(Point::PreFilter);
        let memory = remembered(memories, framework, class, snapshot, watch);
        let own = nominations.get(&pod.uid).and_then(|own| snapshot.find(&own.node));
        let own_fits = own
            .and_then(|at| Some((at, snapshot.node(at)?)))
            .is_some_and(|(at, info)| {
                refusal(framework, class, info, Some(&pod.uid)).is_none()
                    && tracking.check_nominated(class, at, Some(&pod.uid), snapshot).is_ok()
            });
        if let Some(at) = own
            && own_fits
        {
            // Room was made for it there.
            gate.note(&[at]);
            watch.lap(Point::Filter);
            return Ok(at);
        }
        let mut refused: BTreeMap<String, usize> = BTreeMap::new();
        let mut refusing: BTreeSet<&'static str> = BTreeSet::new();
        if gate.is_open() && tracking.is_idle() && !tracking.concerned_by_nominated(class, snapshot) {
            watch.lap(Point::Filter);
            let best = memory.best(framework, random);
            watch.lap(Point::Score);
            if let Some(at) = best {
                return Ok(at);
            }
        } else {
            watch.lap(Point::Filter);
            memory.rank(framework);
            watch.lap(Point::Score);
            // Whether totals are those of the nodes that pass.
            let settled =
                memory.is_flat() || (!tracking.may_refuse() && !tracking.concerned_by_nominated(class, snapshot));
            if gate.is_open() && settled {
                let best = if tracking.ranks() {
                    let best = tracking.best(memory, pod, snapshot, random, watch);
                    watch.lap(Point::Score);
                    best
                } else {
                    let passes = |at| tracking.check_nominated(class, at, Some(&pod.uid), snapshot).is_ok();
                    let best = memory.best_of(framework, random, passes);
                    watch.lap(Point::Filter);
                    best
                };
                if let Some(at) = best {
                    return Ok(at);
                }
            }
            let (mut nodes, mut raw): (Vec<NodeIndex>, Vec<&[i64]>) = Default::default();
            for (at, scores) in memory.fitting() {
                match tracking.check_nominated(class, at, Some(&pod.uid), snapshot) {
                    Ok(()) => match gate.check(snapshot.name(at)) {
                        Ok(()) => {
                            nodes.push(at);
                            raw.push(scores);
                        }
                        Err(reason) => {
                            refusing.insert(PLUGIN);
                            if let Some(reason) = reason {
                                *refused.entry(reason.to_owned()).or_default() += 1;
                            }
                        }
                    },
                    Err((plugin, refusal)) => {
                        refusing.insert(plugin);
                        match refused.get_mut(refusal.reason) {
                            Some(count) => *count += 1,
                            None => {
                                refused.insert(refusal.reason.to_owned(), 1);
                            }
                        }
                    }
                }
            }
            watch.lap(Point::Filter);
            if !nodes.is_empty() {
                let totals = || nodes.iter().map(|at| memory.total(*at)).collect();
                let totals: Option<Vec<i64>> = settled.then(totals).flatten();
                let mut totals = totals.unwrap_or_else(|| framework.totals(raw.iter().copied()));
                let alone = vec![1; nodes.len()];
                tracking.score(&nodes, &alone, &mut totals, watch);
                for (at, total) in nodes.iter().zip(&mut totals) {
                    *total = total.saturating_add(gate.extra(snapshot.name(*at)));
                }
                gate.note(&nodes);
                let best = nodes[pick(&totals, random)];
                watch.lap(Point::Score);
                return Ok(best);
            }
        }
        for (filter, refusal, nodes) in memory.refusals() {
            refusing.insert(framework.filters[filter].name);
            for reason in &refusal.reasons {
                *refused.entry(reason.clone()).or_default() += nodes;
            }
        }
        Err(Refused {
            diagnosis: Diagnosis {
                message: explain(snapshot.count(), refused),
                plugins: refusing.into_iter().collect(),
            },
            filtered: true,
        })
    }
}

/// What is remembered of a class's shape, brought up to date.
fn remembered<'a>(
    memories: &'a mut Recent<ClassId, Memory>,
    framework: &Framework,
    class: &Arc<Class>,
    snapshot: &Snapshot,
    watch: &mut Watch,
) -> &'a mut Memory {
    let uses = memories.uses;
    if memories.get(class.shape).is_none() {
        memories.put(class.shape, Memory::new(Arc::clone(class), framework, uses));
    }
    let (_, memory) = memories
        .values
        .entry(class.shape)
        .or_insert_with(|| (0, Memory::new(Arc::clone(class), framework, uses)));
    memory.catch_up(framework, snapshot, watch);
    memory
}

/// The cluster plugins' sums for a class, brought up to date.
fn tracked<'a>(
    trackings: &'a mut Recent<ClassId, Tracking>,
    framework: &Framework,
    class: &Arc<Class>,
    snapshot: &Snapshot,
    watch: &mut Watch,
) -> &'a mut Tracking {
    let fresh = trackings
        .get(class.id)
        .is_some_and(|tracking| tracking.catch_up(class, snapshot, watch));
    if !fresh {
        trackings.put(class.id, Tracking::new(framework, class, snapshot, watch));
    }
    let (_, tracking) = trackings
        .values
        .entry(class.id)
        .or_insert_with(|| (0, Tracking::new(framework, class, snapshot, watch)));
    watch.note_rows(&tracking.rows);
    tracking
}

/// The place of the largest total; chance decides between equals.
fn pick(totals: &[i64], random: &mut SmallRng) -> usize {
    let (mut best, mut equals) = (0, 0u32);
    for (at, total) in totals.iter().enumerate() {
        if at == 0 || *total > totals[best] {
            (best, equals) = (at, 1);
        } else if *total == totals[best] {
            equals += 1;
            if random.random_range(0..equals) == 0 {
                best = at;
            }
        }
    }
    best
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
fn explain(nodes: usize, refused: BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut reasons: Vec<String> = refused
        .into_iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    reasons.sort();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}

/// Whether two states of a node offer the same to any Pod.
fn same_offer(before: &Node, after: &Node) -> bool {
    let status = |node: &Node| {
        node.status
            .as_ref()
            .map(|status| (status.allocatable.clone(), status.images.clone()))
    };
    let cordoned = |node: &Node| node.spec.as_ref().and_then(|spec| spec.unschedulable);
    same_domains(before, after) && cordoned(before) == cordoned(after) && status(before) == status(after)
}

/// Whether two states of a node count for the same in affinity and spreads.
fn same_domains(before: &Node, after: &Node) -> bool {
    fn taints(node: &Node) -> &[k8s_openapi::api::core::v1::Taint] {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
        taints.unwrap_or_default()
    }
    before.metadata.labels == after.metadata.labels && taints(before) == taints(after)
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "engine_property_tests.rs"]
mod property_tests;

#[cfg(test)]
#[path = "engine_preemption_tests.rs"]
mod preemption_tests;

#[cfg(test)]
#[path = "engine_extenders_tests.rs"]
mod extenders_tests;
