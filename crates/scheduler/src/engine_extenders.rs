//! The engine's part in extenders: which Pods wait for an answer, and what it means.
//!
//! A Pod of interest to an extender leaves the queue when the engine's own plugins found nodes for it. The best of them
//! is booked for it while the extenders are asked, so that the answer finds at least that room as it was. The decision
//! is taken when they answered, on the cluster of that moment. What extenders refuse is a Pod, not a class: they see
//! all of it. Such Pods wait one by one for any event (upstream's rule: nobody knows what extenders look at), for their
//! back-off and, in the end, for five minutes to pass.

use std::cell::Cell;
use std::time::Duration;

use super::*;
use crate::extender::{Interests, Opinion, Opinions};
use crate::preemption::Victims;

/// After this a refused Pod is tried again though nothing happened.
pub(super) const LEFTOVER: Duration = Duration::from_secs(300);

/// How the filters' end is reached.
pub(super) enum Gate<'a> {
    /// The nodes that fit decide.
    Open,
    /// They are noted, for extenders to be asked about.
    Note(&'a mut Vec<NodeIndex>),
    /// What extenders make of them is known.
    Known(&'a Known<'a>),
}

pub(super) struct Known<'a> {
    opinions: &'a Opinions,
    /// A node fits that did not when the extenders were asked.
    unasked: Cell<bool>,
}

impl Gate<'_> {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Gate::Open)
    }

    pub(super) fn note(&mut self, nodes: &[NodeIndex]) {
        if let Gate::Note(noted) = self {
            noted.extend_from_slice(nodes);
        }
    }

    /// What the extenders add to a node's score.
    pub(super) fn extra(&self, node: &str) -> i64 {
        match self {
            Gate::Known(known) => match known.opinions.get(node) {
                Some(Opinion::Accepted(score)) => *score,
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Whether a node that fits may be taken; otherwise why not, if that was said.
    pub(super) fn check(&self, node: &str) -> Result<(), Option<&str>> {
        let Gate::Known(known) = self else { return Ok(()) };
        match known.opinions.get(node) {
            Some(Opinion::Accepted(_)) => Ok(()),
            Some(Opinion::Refused { reason }) => Err(reason.as_deref()),
            None => {
                known.unasked.set(true);
                Err(None)
            }
        }
    }
}

/// A Pod whose extenders are being asked.
struct Asked {
    pod: PodInfo,
    /// Its status says where room was being made for it.
    nominated: bool,
    /// A disruption budget protects some who would have to leave for it.
    protected: bool,
}

/// What extenders refused a Pod.
#[derive(Clone, Copy, PartialEq)]
enum Refusing {
    Nodes,
    /// Room, where making it would send away Pods that a disruption budget protects.
    ProtectedVictims,
    /// They could not say.
    Unknown,
}

/// A Pod that extenders refused.
struct RefusedPod {
    pod: PodInfo,
    /// Not before this is it worth trying again.
    ready: Instant,
    deadline: Instant,
    /// What is refused may be to send away whom a disruption budget protects.
    protected: bool,
}

#[derive(Default)]
pub(super) struct Extending {
    interests: Interests,
    asked: HashMap<Arc<str>, Asked>,
    /// Pods whose turn it was while enough others were being asked about.
    line: BTreeMap<Order, PodInfo>,
    in_line: HashMap<Arc<str>, Order>,
    arrivals: u64,
    refused: HashMap<Arc<str>, RefusedPod>,
    deadlines: BTreeSet<(Instant, Arc<str>)>,
    /// Refused Pods that an event would bring forward.
    asleep: Vec<Arc<str>>,
    /// What refused Pods were told last.
    told: HashMap<Arc<str>, String>,
}

impl Extending {
    pub(super) fn want(&self, class: &Class) -> bool {
        self.interests.nodes_of(class)
    }
    pub(super) fn want_victims(&self, class: &Class) -> bool {
        self.interests.victims_of(class)
    }
    fn is_full(&self) -> bool {
        self.asked.len() >= self.interests.at_a_time
    }
    /// (being asked or about to be, refused) Pods.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.asked.len() + self.line.len(), self.refused.len())
    }

    pub(super) fn contains(&self, uid: &str) -> bool {
        self.asked.contains_key(uid) || self.refused.contains_key(uid) || self.in_line.contains_key(uid)
    }

    /// A Pod that waits here.
    pub(super) fn get(&self, uid: &str) -> Option<&PodInfo> {
        let asked = self.asked.get(uid).map(|asked| &asked.pod);
        let pod = asked.or_else(|| self.refused.get(uid).map(|refused| &refused.pod));
        pod.or_else(|| self.line.get(self.in_line.get(uid)?))
    }

    /// Gives Pods another class, where the function has one for them.
    pub(super) fn reclassify(&mut self, mut class: impl FnMut(&PodInfo) -> Option<Arc<Class>>) {
        let asked = self.asked.values_mut().map(|asked| &mut asked.pod);
        let refused = self.refused.values_mut().map(|refused| &mut refused.pod);
        for pod in asked.chain(refused).chain(self.line.values_mut()) {
            if let Some(class) = class(pod) {
                pod.class = class;
            }
        }
    }

    /// Forgets a Pod that needs no node any more: an answer about it will mean nothing.
    pub(super) fn forget(&mut self, uid: &str) {
        self.asked.remove(uid);
        self.told.remove(uid);
        if let Some(order) = self.in_line.remove(uid) {
            self.line.remove(&order);
        }
        self.unrefuse(uid);
    }

    fn unrefuse(&mut self, uid: &str) -> Option<PodInfo> {
        let refused = self.refused.remove(uid)?;
        self.deadlines.remove(&(refused.deadline, Arc::clone(&refused.pod.uid)));
        Some(refused.pod)
    }

    /// Puts a Pod in line if no more may be asked about now.
    pub(super) fn must_queue(&mut self, pod: &PodInfo) -> bool {
        if !self.is_full() || !self.want(&pod.class) {
            return false;
        }
        self.arrivals += 1;
        let order = (Reverse(pod.class.priority), self.arrivals);
        self.line.insert(order, pod.clone());
        self.in_line.insert(Arc::clone(&pod.uid), order);
        true
    }

    /// The next in line, if its turn has come and nobody of higher priority waits in the queue.
    pub(super) fn next_in_line(&mut self, rival: Option<i32>) -> Option<PodInfo> {
        if self.is_full() {
            return None;
        }
        let entry = self.line.first_entry()?;
        if rival.is_some_and(|rival| rival > entry.key().0.0) {
            return None;
        }
        let pod = entry.remove();
        self.in_line.remove(&pod.uid);
        Some(pod)
    }

    pub(super) fn refused_by_profile(&self) -> BTreeMap<String, usize> {
        let mut profiles: BTreeMap<String, usize> = BTreeMap::new();
        for refused in self.refused.values() {
            *profiles.entry(refused.pod.class.scheduler.clone()).or_default() += 1;
        }
        profiles
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// A refused Pod whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<PodInfo> {
        let (at, uid) = self.deadlines.first()?;
        let uid = (*at <= now).then(|| Arc::clone(uid))?;
        self.unrefuse(&uid)
    }

    fn refuse(&mut self, refused: RefusedPod) {
        let uid = &refused.pod.uid;
        self.deadlines.insert((refused.deadline, Arc::clone(uid)));
        if refused.deadline > refused.ready {
            self.asleep.push(Arc::clone(uid));
        }
        self.refused.insert(Arc::clone(uid), refused);
    }

    /// Something happened: refused Pods try again as soon as they may.
    pub(super) fn something_happened(&mut self) {
        for uid in std::mem::take(&mut self.asleep) {
            self.bring_forward(uid);
        }
    }

    /// Disruption budgets changed: Pods refused where victims were protected try again as soon as they may.
    pub(super) fn budgets_changed(&mut self) {
        let refused = &self.refused;
        let protected = |uid: &mut Arc<str>| refused.get(uid).is_some_and(|refused| refused.protected);
        let protected: Vec<Arc<str>> = self.asleep.extract_if(.., protected).collect();
        for uid in protected {
            self.bring_forward(uid);
        }
    }

    fn bring_forward(&mut self, uid: Arc<str>) {
        if let Some(refused) = self.refused.get_mut(&uid) {
            self.deadlines.remove(&(refused.deadline, Arc::clone(&uid)));
            refused.deadline = refused.ready;
            self.deadlines.insert((refused.deadline, uid));
        }
    }
}

/// What a refused Pod is told, and under which reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub pod: PodInfo,
    pub message: String,
    /// An extender could not say, so nobody knows whether the Pod fits.
    pub failed: bool,
}

/// What follows from an extender's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    /// Carry this out.
    Decision(Decision),
    Tell(Told),
    /// Nothing: the Pod needs no node any more, waits on, or was told so before.
    Nothing,
}

impl Engine {
    /// The same engine, asking extenders about the Pods they are interested in.
    pub fn asking(mut self, interests: Interests) -> Self {
        self.extending.interests = interests;
        self
    }

    /// Books a Pod while extenders are asked about the nodes that fit it.
    pub(super) fn consult(&mut self, pod: PodInfo, at: NodeIndex, nodes: &[NodeIndex]) -> Option<Decision> {
        let favourite = Arc::clone(&self.snapshot.node(at)?.name);
        let nominated = self.nominations.contains(&pod.uid);
        self.queue.placed(&pod.uid);
        self.end_nomination(&pod.uid);
        self.snapshot.place(pod.clone(), &favourite);
        let asked = Asked {
            pod: pod.clone(),
            nominated,
            protected: false,
        };
        self.extending.asked.insert(Arc::clone(&pod.uid), asked);
        let nodes = nodes.iter().filter_map(|at| self.snapshot.node(*at)?.node.clone());
        Some(Decision::Consult {
            nodes: nodes.collect(),
            pod,
        })
    }

    /// The extenders answered; an error is that of one that may not be passed over.
    pub fn consulted(&mut self, uid: &str, answer: Result<Opinions, String>, now: Instant) -> Followed {
        let Some(Asked { pod, nominated, .. }) = self.extending.asked.remove(uid) else {
            return Followed::Nothing;
        };
        let booked = self.snapshot.remove_pod(uid).map(|(at, _)| at);
        let mut unasked = false;
        let chosen = answer.map(|opinions| {
            let known = Known {
                opinions: &opinions,
                unasked: Cell::new(false),
            };
            let chosen = self.choose(&pod, Gate::Known(&known), &mut Watch::start(false));
            unasked = known.unasked.get();
            chosen
        });
        let taken = chosen.as_ref().ok().and_then(|chosen| chosen.as_ref().ok()).copied();
        if let Some(at) = booked
            && booked != taken
        {
            // What was booked meanwhile is anybody's.
            self.wake(Event::PodGone, Some(at), Some(&pod.class));
        }
        if taken.is_none() && nominated {
            // Its status says that it will come to where room was made for it.
            self.nominations.end(pod.clone());
        }
        match chosen {
            Ok(Ok(at)) => {
                self.extending.told.remove(uid);
                self.book(pod, at, now).map_or(Followed::Nothing, Followed::Decision)
            }
            Ok(Err(_)) if unasked => {
                let class = pod.class.id;
                self.queue.add(pod);
                self.queue.wake(class, true);
                Followed::Nothing
            }
            Ok(Err(refused)) => {
                let message = refused.diagnosis.message.clone();
                match self.timed_remedy(&pod, &refused) {
                    Remedy::None(why) => self.refuse(pod, with_remedy(message, why), Refusing::Nodes, now),
                    remedy => {
                        let decision = self.carry_out(pod, remedy, message);
                        decision.map_or(Followed::Nothing, Followed::Decision)
                    }
                }
            }
            Err(error) => self.refuse(pod, error, Refusing::Unknown, now),
        }
    }

    /// Sets a Pod aside that extenders refused. It tries again when something happens, but not too often; where nobody
    /// could say whether it fits, without anything happening.
    fn refuse(&mut self, pod: PodInfo, message: String, refusing: Refusing, now: Instant) -> Followed {
        let failed = refusing == Refusing::Unknown;
        if failed {
            self.counting.failed(&pod);
        }
        let uid = Arc::clone(&pod.uid);
        let ready = self.rest(&uid, now);
        let extending = &mut self.extending;
        extending.refuse(RefusedPod {
            pod: pod.clone(),
            ready,
            deadline: if failed { ready } else { now + LEFTOVER },
            protected: refusing == Refusing::ProtectedVictims,
        });
        if extending.told.get(&uid) == Some(&message) {
            return Followed::Nothing;
        }
        extending.told.insert(uid, message.clone());
        Followed::Tell(Told { pod, message, failed })
    }

    /// Extenders have a say in who has to leave: asks them.
    pub(super) fn consult_victims(
        &mut self,
        pod: PodInfo,
        candidates: BTreeMap<Arc<str>, Victims>,
        message: String,
    ) -> Decision {
        self.queue.remove(&pod.uid);
        let asked = Asked {
            pod: pod.clone(),
            nominated: false,
            protected: candidates.values().any(|victims| victims.violations > 0),
        };
        self.extending.asked.insert(Arc::clone(&pod.uid), asked);
        Decision::ConsultVictims {
            pod,
            candidates,
            message,
        }
    }

    /// A Pod on a node by its uid.
    pub fn pod_on(&self, node: &str, uid: &str) -> Option<PodInfo> {
        let info = self.snapshot.node(self.snapshot.find(node)?)?;
        info.pods.get(uid).cloned()
    }

    /// The extenders said who may have to leave where.
    pub fn victims_consulted(
        &mut self,
        uid: &str,
        answer: Result<BTreeMap<Arc<str>, Victims>, String>,
        message: String,
        now: Instant,
    ) -> Followed {
        let Some(asked) = self.extending.asked.remove(uid) else {
            return Followed::Nothing;
        };
        let pod = asked.pod;
        let refusing = match asked.protected {
            true => Refusing::ProtectedVictims,
            false => Refusing::Nodes,
        };
        let why = match answer {
            Err(error) => error,
            Ok(candidates) => match candidates.into_iter().min_by_key(|(_, victims)| victims.cost()) {
                None => "no candidate node for preemption".to_owned(),
                Some((node, victims)) => {
                    self.extending.told.remove(uid);
                    self.nominate(&pod, &node, &victims.pods);
                    return Followed::Decision(Decision::Preempt {
                        pod,
                        node,
                        victims: victims.pods,
                        message,
                    });
                }
            },
        };
        self.refuse(pod, with_remedy(message, Some(why)), refusing, now)
    }
}

/// What a Pod is told, with what came of preemption.
pub(super) fn with_remedy(mut message: String, why: Option<String>) -> String {
    if let Some(why) = why {
        message.push_str(" preemption: ");
        message.push_str(&why);
    }
    message
}
