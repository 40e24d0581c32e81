//! The scheduler without I/O: events in, decisions out.
//!
//! The caller tells it what changed ([`Engine::node_changed`], [`Engine::pod_changed`], …) and asks for the next
//! [`Decision`] until there is none. A Pod decided for a node is booked there at once, before the API server knows;
//! [`Engine::bind_failed`] takes that back.
//!
//! Invariants:
//! - for classes that node plugins alone decide, a node is judged once per change of its account, not once per Pod;
//! - a parked class is looked at again only for an event that can help the plugins that refused it, and where the event
//!   concerns one node, only if that node would now take it;
//! - the same events in the same order give the same decisions for the same seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::framework::{BindingPlugin, Event, Framework, Prepared, Refusal, Verdict};
use crate::labels::Labels;
use crate::pod::{Class, ClassId, PodInfo, is_finished, scheduler_of};
use crate::preemption::{Budgets, Trial};
use crate::queue::{Diagnosis, Queue};
use crate::snapshot::{NodeIndex, NodeInfo, Snapshot};

#[path = "engine_preemption.rs"]
mod preempting;
use preempting::{Nominations, Refused, Remedy};

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
    /// Tell these Pods why they wait.
    Tell { message: String, pods: Vec<PodInfo> },
}

/// Most Pods in one [`Decision::Tell`].
const TELL: usize = 256;
/// How many classes' answers are remembered at a time.
const MEMORIES: usize = 64;

/// What is remembered of a class: per node the generation of its account and the verdict on it.
#[derive(Default)]
struct Memory {
    class: Option<Arc<Class>>,
    verdicts: Vec<Option<(u64, Verdict)>>,
}

pub struct Engine {
    /// By the scheduler's name that Pods give.
    profiles: HashMap<String, Framework>,
    snapshot: Snapshot,
    queue: Queue,
    memories: HashMap<ClassId, Memory>,
    /// Classes by last use, oldest first.
    recent: VecDeque<ClassId>,
    /// Pods whose binding failed, until they may try again.
    delayed: BTreeMap<(Instant, Arc<str>), PodInfo>,
    failures: HashMap<Arc<str>, u32>,
    nominations: Nominations,
    budgets: Budgets,
    random: SmallRng,
}

impl Engine {
    /// An engine for Pods that name one of the profiles. `seed` decides between equally good nodes.
    pub fn new(profiles: impl IntoIterator<Item = (String, Framework)>, seed: u64) -> Self {
        Engine {
            profiles: profiles.into_iter().collect(),
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            memories: HashMap::new(),
            recent: VecDeque::new(),
            delayed: BTreeMap::new(),
            failures: HashMap::new(),
            nominations: Nominations::default(),
            budgets: Budgets::default(),
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// (active, parked, delayed) Pods.
    pub fn counts(&self) -> (usize, usize, usize) {
        let (active, parked) = self.queue.counts();
        (active, parked + self.nominations.len(), self.delayed.len())
    }

    pub fn node_changed(&mut self, node: Arc<Node>) {
        let before = node
            .metadata
            .name
            .as_deref()
            .and_then(|name| self.snapshot.find(name))
            .and_then(|at| self.snapshot.node(at));
        // Heartbeats change a node's status without changing anything a Pod could ask for.
        if before.is_some_and(|before| before.node.as_ref().is_some_and(|before| same_offer(before, &node))) {
            return;
        }
        if let Some(at) = self.snapshot.set_node(node) {
            self.wake(Event::Node, Some(at));
        }
    }

    pub fn node_gone(&mut self, name: &str) {
        self.snapshot.remove_node(name);
        // Fewer domains can satisfy a spread that was refused.
        self.wake(Event::Node, None);
    }

    pub fn namespace_changed(&mut self, name: &str, labels: Option<Labels>) {
        if self.snapshot.namespace_labels(name) != labels {
            self.snapshot.set_namespace(name, labels);
            self.wake(Event::Namespace, None);
        }
    }

    pub fn pod_changed(&mut self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.as_deref() else { return };
        let spec = pod.spec.as_ref();
        let node = spec
            .and_then(|spec| spec.node_name.as_deref())
            .filter(|name| !name.is_empty());
        if is_finished(pod) {
            return self.pod_gone(uid);
        }
        if let Some(node) = node {
            self.queue.remove(uid);
            self.undelay(uid);
            self.failures.remove(uid);
            let known = self.snapshot.place_of(uid);
            let Some(info) = PodInfo::of(pod, Arc::new(Class::of(pod))) else {
                return;
            };
            let was_booked = known.is_some() && known == self.snapshot.find(node);
            let shrank = known
                .and_then(|at| self.snapshot.node(at))
                .and_then(|info| info.pods.get(uid))
                .map(|before| before.class.id);
            let changed = shrank.is_some_and(|before| before != info.class.id);
            let at = self.snapshot.place(info, node);
            if !was_booked || changed {
                self.wake(Event::PodPlaced, None);
            }
            if changed {
                self.wake(Event::PodGone, Some(at));
            }
            self.end_nomination(uid);
            return;
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
            self.undelay(uid);
            self.end_nomination(uid);
            return;
        }
        if self.delayed.keys().any(|(_, delayed)| **delayed == *uid) {
            return;
        }
        let Some(info) = PodInfo::of(pod, Arc::new(Class::of(pod))) else {
            return;
        };
        if let Some(nomination) = self.nominations.get(uid) {
            if nomination.pod.class.id == info.class.id {
                return;
            }
            // It asks for something else now: what was found for it holds no longer.
            self.end_nomination(uid);
        } else if !self.queue.contains(uid)
            && let Some(node) = pod
                .status
                .as_ref()
                .and_then(|status| status.nominated_node_name.as_deref())
            && !node.is_empty()
        {
            // Nominated before this scheduler started.
            self.nominations.add(info, node.into(), HashSet::new());
            self.nominations.make_ready(|nomination| *nomination.pod.uid == *uid);
            return;
        }
        self.queue.add(info);
    }

    pub fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.undelay(uid);
        self.failures.remove(uid);
        self.end_nomination(uid);
        self.nominations.victim_gone(uid);
        if let Some(at) = self.snapshot.remove_pod(uid) {
            self.wake(Event::PodGone, Some(at));
        }
    }

    /// Objects that plugins keep a view of changed: wakes the classes they concern and forgets what was learned of them.
    pub fn objects_changed(&mut self, event: Event, concerns: impl Fn(&Class) -> bool) {
        let gone: Vec<ClassId> = self
            .memories
            .iter()
            .filter(|(_, memory)| memory.class.as_deref().is_some_and(&concerns))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.memories.remove(&id);
            self.recent.retain(|known| *known != id);
        }
        self.wake_where(event, None, concerns);
    }

    fn undelay(&mut self, uid: &str) {
        // Rare: only Pods whose binding failed are here.
        self.delayed.retain(|(_, delayed), _| **delayed != *uid);
    }

    /// Whether the Pod still waits for a node (so that telling it why makes sense).
    pub fn is_waiting(&self, uid: &str) -> bool {
        self.queue.contains(uid) || self.nominations.contains(uid)
    }

    /// The binding did not happen: the room is free again and the Pod tries again after a while.
    pub fn bind_failed(&mut self, pod: PodInfo, now: Instant) {
        let Some(at) = self.snapshot.remove_pod(&pod.uid) else {
            return;
        };
        if let (Some(framework), Some(node)) = (self.profiles.get(&pod.class.scheduler), self.snapshot.node(at)) {
            for plugin in &framework.binding {
                plugin.unreserve(&pod, &node.name);
            }
        }
        self.delay(pod, now);
        self.wake(Event::PodGone, Some(at));
    }

    /// Sets a Pod aside for longer each time.
    fn delay(&mut self, pod: PodInfo, now: Instant) {
        let failures = self.failures.entry(Arc::clone(&pod.uid)).or_default();
        let delay = Duration::from_secs(1 << (*failures).min(3)).min(Duration::from_secs(10));
        *failures += 1;
        self.delayed.insert((now + delay, Arc::clone(&pod.uid)), pod);
    }

    /// When [`Engine::next`] should be asked again even if nothing happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.delayed.keys().next().map(|(at, _)| *at)
    }

    /// The next thing to do; `None`: nothing until something changes (or [`Engine::next_deadline`]).
    pub fn next(&mut self, now: Instant) -> Option<Decision> {
        self.next_binding(now).or_else(|| self.next_telling())
    }

    /// The next Pod that has a place or can have one made. Parks every class that has none on the way.
    pub fn next_binding(&mut self, now: Instant) -> Option<Decision> {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let pod = entry.remove();
            self.queue.add(pod);
        }
        loop {
            let first = self.queue.first();
            let nominated = self.nominations.take_ready(first.map(|pod| pod.class.priority));
            let (pod, chosen) = match nominated {
                Some(pod) => {
                    let Some(at) = self.retry_nominated(&pod) else { continue };
                    (pod, Ok(at))
                }
                None => {
                    let Some(pod) = first.cloned() else { break };
                    let chosen = self.choose(&pod);
                    (pod, chosen)
                }
            };
            match chosen {
                Ok(at) => {
                    self.queue.remove(&pod.uid);
                    let Some(node) = self.snapshot.node(at).map(|info| Arc::clone(&info.name)) else {
                        continue;
                    };
                    if let Err((plugin, refusal)) = self.reserve(&pod, &node) {
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
                        self.queue.park(class, diagnosis);
                        continue;
                    }
                    self.snapshot.place(pod.clone(), &node);
                    self.wake(Event::PodPlaced, None);
                    self.end_nomination(&pod.uid);
                    return Some(Decision::Bind { pod, node });
                }
                Err(mut refused) => match self.remedy(&pod, &refused) {
                    Remedy::Preempt { node, victims } => {
                        self.nominate(&pod, &node, &victims);
                        let message = refused.diagnosis.message;
                        return Some(Decision::Preempt {
                            pod,
                            node,
                            victims,
                            message,
                        });
                    }
                    Remedy::None(why) => {
                        if let Some(why) = why {
                            refused.diagnosis.message.push_str(" preemption: ");
                            refused.diagnosis.message.push_str(&why);
                        }
                        self.queue.park(pod.class.id, refused.diagnosis);
                    }
                },
            }
        }
        let ended = self.nominations.next_ended()?;
        Some(Decision::Unnominate { pod: ended })
    }

    /// Has the plugins take what the Pod needs on the node; all or nothing.
    fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), (&'static str, Refusal)> {
        let Some(framework) = self.profiles.get(&pod.class.scheduler) else {
            return Ok(());
        };
        for (count, plugin) in framework.binding.iter().enumerate() {
            if let Err(refusal) = plugin.reserve(pod, node) {
                for plugin in framework.binding.iter().take(count + 1) {
                    plugin.unreserve(pod, node);
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
    pub fn next_telling(&mut self) -> Option<Decision> {
        self.queue
            .tell(TELL)
            .map(|(message, pods)| Decision::Tell { message, pods })
    }

    /// The best node for a Pod, or why there is none.
    fn choose(&mut self, pod: &PodInfo) -> Result<NodeIndex, Refused> {
        let class = &pod.class;
        let everywhere = |diagnosis| Refused {
            diagnosis,
            resolvable: Vec::new(),
        };
        self.remember(class.id);
        let Engine {
            profiles,
            snapshot,
            memories,
            nominations,
            budgets,
            random,
            ..
        } = self;
        let Some(framework) = profiles.get(&class.scheduler) else {
            return Err(everywhere(Diagnosis {
                message: format!("no profile is named {}", class.scheduler),
                plugins: Vec::new(),
            }));
        };
        for row in &framework.pre_filters {
            if let Err(refusal) = (row.check)(class) {
                return Err(everywhere(Diagnosis {
                    message: format!(
                        "0/{} nodes are available: {}.",
                        snapshot.count(),
                        refusal.reasons.join(", ")
                    ),
                    plugins: vec![row.name],
                }));
            }
        }
        let memory = memories.entry(class.id).or_default();
        memory.class = Some(Arc::clone(class));
        memory.verdicts.resize_with(snapshot.places(), || None);
        for (at, info) in snapshot.nodes() {
            let slot = &mut memory.verdicts[at];
            if slot
                .as_ref()
                .is_none_or(|(generation, _)| *generation != info.generation)
            {
                *slot = Some((info.generation, framework.judge(class, info)));
            }
        }
        // Nodes with room that is spoken for.
        let mut taken: HashMap<NodeIndex, (&'static str, Refusal)> = HashMap::new();
        for (at, rivals) in nominations.against(pod, snapshot) {
            if !matches!(memory.verdicts.get(at), Some(Some((_, Verdict::Fits(_))))) {
                continue;
            }
            let trial = Trial {
                framework,
                class,
                budgets,
            };
            if let Some(info) = snapshot.node(at).cloned()
                && let Err(refusal) = trial.fits(snapshot, at, &info, &rivals)
            {
                taken.insert(at, refusal);
            }
        }
        let snapshot = &*snapshot;
        let prepared: Vec<_> = framework
            .cluster
            .iter()
            .filter_map(|plugin| Some((plugin, plugin.prepare(class, snapshot)?)))
            .collect();

        let mut refused: BTreeMap<String, usize> = BTreeMap::new();
        let mut refusing: Vec<&'static str> = Vec::new();
        let mut refuse = |plugin: &'static str, reasons: &[String]| {
            for reason in reasons {
                match refused.get_mut(reason) {
                    Some(count) => *count += 1,
                    None => {
                        refused.insert(reason.clone(), 1);
                    }
                }
            }
            if !refusing.contains(&plugin) {
                refusing.push(plugin);
            }
        };
        let mut resolvable: Vec<NodeIndex> = Vec::new();
        let mut fitting: Vec<(NodeIndex, &NodeInfo, &[i64])> = Vec::new();
        'nodes: for (at, info) in snapshot.nodes() {
            match &memory.verdicts[at] {
                Some((_, Verdict::Fits(raw))) => {
                    if let Some((plugin, refusal)) = taken.get(&at) {
                        refuse(plugin, &refusal.reasons);
                        resolvable.extend(refusal.resolvable.then_some(at));
                        continue;
                    }
                    for (plugin, view) in &prepared {
                        if let Err(refusal) = view.check(info) {
                            refuse(plugin.name(), &refusal.reasons);
                            resolvable.extend(refusal.resolvable.then_some(at));
                            continue 'nodes;
                        }
                    }
                    fitting.push((at, info, raw));
                }
                Some((_, Verdict::Refused { filter, refusal })) => {
                    refuse(framework.filters[*filter].name, &refusal.reasons);
                    resolvable.extend(refusal.resolvable.then_some(at));
                }
                None => {}
            }
        }
        if fitting.is_empty() {
            refusing.sort_unstable();
            return Err(Refused {
                diagnosis: Diagnosis {
                    message: explain(snapshot.count(), refused),
                    plugins: refusing,
                },
                resolvable,
            });
        }
        // Room was made for it there.
        if let Some(nomination) = nominations.get(&pod.uid)
            && let Some((at, ..)) = fitting.iter().find(|(_, info, _)| info.name == nomination.node)
        {
            return Ok(*at);
        }
        let mut totals = framework.totals(fitting.iter().map(|(_, _, raw)| *raw));
        if !prepared.is_empty() {
            let nodes: Vec<&NodeInfo> = fitting.iter().map(|(_, info, _)| *info).collect();
            for (plugin, view) in &prepared {
                let scores: Vec<i64> = Prepared::scores(&**view, &nodes);
                for (total, score) in totals.iter_mut().zip(scores) {
                    *total += plugin.weight() * score;
                }
            }
        }
        Ok(fitting[pick(&totals, random)].0)
    }

    /// Keeps a bounded number of memories, dropping the least recently used.
    fn remember(&mut self, class: ClassId) {
        if self.recent.back() == Some(&class) {
            return;
        }
        self.recent.retain(|known| *known != class);
        self.recent.push_back(class);
        if self.recent.len() > MEMORIES
            && let Some(oldest) = self.recent.pop_front()
        {
            self.memories.remove(&oldest);
        }
    }

    /// Wakes the parked classes that `event` can help; `node` is the only node it concerns, if it concerns one.
    fn wake(&mut self, event: Event, node: Option<NodeIndex>) {
        self.wake_where(event, node, |_| true);
    }

    fn wake_where(&mut self, event: Event, node: Option<NodeIndex>, concerns: impl Fn(&Class) -> bool) {
        let snapshot = &self.snapshot;
        let profiles = &self.profiles;
        self.nominations.make_ready(|nomination| {
            let class = &nomination.pod.class;
            let helps = |at| match (snapshot.node(at), profiles.get(&class.scheduler)) {
                (Some(info), Some(framework)) => matches!(framework.judge(class, info), Verdict::Fits(_)),
                _ => false,
            };
            concerns(class)
                && match node {
                    Some(at) => class.looks_beyond_the_node() || *nomination.node == *snapshot.name(at) || helps(at),
                    // Of Pods that come only those can help that others want to be near.
                    None => event != Event::PodPlaced || class.looks_beyond_the_node(),
                }
        });
        if self.queue.is_empty() {
            return;
        }
        let listening: HashMap<&str, Vec<&'static str>> = self
            .profiles
            .iter()
            .map(|(name, framework)| (name.as_str(), framework.helped_by(event)))
            .collect();
        // A class that nobody refused was parked for want of nodes.
        let helped = |class: &Class, diagnosis: &Diagnosis| {
            (diagnosis.plugins.is_empty() && event == Event::Node)
                || listening
                    .get(class.scheduler.as_str())
                    .is_some_and(|listening| diagnosis.plugins.iter().any(|plugin| listening.contains(plugin)))
        };
        for class in self
            .queue
            .parked(|class, diagnosis| concerns(class) && helped(class, diagnosis))
        {
            let would_take = match (node, self.profiles.get(&class.scheduler)) {
                (Some(at), Some(framework)) => match self.snapshot.node(at) {
                    Some(info) => {
                        matches!(framework.judge(&class, info), Verdict::Fits(_)) || class.looks_beyond_the_node()
                    }
                    None => false,
                },
                _ => true,
            };
            if would_take || node.is_some_and(|at| self.could_preempt(&class, at)) {
                self.queue.wake(class.id);
            }
        }
    }
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
    let spec = |node: &Node| node.spec.as_ref().map(|spec| (spec.unschedulable, spec.taints.clone()));
    before.metadata.labels == after.metadata.labels && spec(before) == spec(after) && status(before) == status(after)
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "engine_preemption_tests.rs"]
mod preemption_tests;
