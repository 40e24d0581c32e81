//! The engine's part in preemption: who is nominated where, and what waiting for victims means.
//!
//! A nominated Pod is out of the queue: its class goes on without it, and its room counts against Pods of equal or lower
//! priority. It is tried again, before its equals, when something happens that can help it.

use super::*;

/// Room that a Pod waits for on a node.
pub(super) struct Nomination {
    pub(super) pod: PodInfo,
    pub(super) node: Arc<str>,
    /// Those sent away for it that are not gone yet.
    victims: HashSet<Arc<str>>,
    /// It knows that it waits for them.
    told: bool,
    order: u64,
}

#[derive(Default)]
pub(super) struct Nominations {
    by_pod: HashMap<Arc<str>, Nomination>,
    by_node: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    by_class: BTreeMap<ClassId, BTreeSet<Arc<str>>>,
    by_victim: HashMap<Arc<str>, Vec<Arc<str>>>,
    /// Worth trying again, in order of priority, then nomination.
    ready: BTreeSet<(Reverse<i32>, u64, Arc<str>)>,
    /// Pods whose nomination ended without a binding: their status still says otherwise.
    ended: VecDeque<PodInfo>,
    /// The same, where that could not be written.
    ended_later: Delayed,
    /// Nominated Pods whose binding is under way, with their nodes: should it fail, they are nominated still.
    under_way: HashMap<Arc<str>, Arc<str>>,
    to_tell: VecDeque<(String, PodInfo)>,
    count: u64,
}

impl Nominations {
    pub(super) fn len(&self) -> usize {
        self.by_pod.len()
    }
    pub(super) fn get(&self, uid: &str) -> Option<&Nomination> {
        self.by_pod.get(uid)
    }
    pub(super) fn contains(&self, uid: &str) -> bool {
        self.by_pod.contains_key(uid)
    }
    /// Whether the Pod's status is about to say that it is nominated no longer.
    pub(super) fn is_ending(&self, uid: &str) -> bool {
        self.ended_later.when.contains_key(uid) || self.ended.iter().any(|ended| *ended.uid == *uid)
    }

    fn add(&mut self, pod: PodInfo, node: Arc<str>, victims: HashSet<Arc<str>>) {
        self.remove(&pod.uid);
        self.ended.retain(|ended| ended.uid != pod.uid);
        self.ended_later.remove(&pod.uid);
        self.count += 1;
        let uid = Arc::clone(&pod.uid);
        self.by_node
            .entry(Arc::clone(&node))
            .or_default()
            .insert(Arc::clone(&uid));
        self.by_class.entry(pod.class.id).or_default().insert(Arc::clone(&uid));
        for victim in &victims {
            self.by_victim
                .entry(Arc::clone(victim))
                .or_default()
                .push(Arc::clone(&uid));
        }
        let nomination = Nomination {
            node,
            victims,
            told: false,
            order: self.count,
            pod,
        };
        self.by_pod.insert(uid, nomination);
    }

    fn remove(&mut self, uid: &str) -> Option<Nomination> {
        let nomination = self.by_pod.remove(uid)?;
        self.ready.remove(&key(&nomination));
        if let Some(pods) = self.by_node.get_mut(&nomination.node) {
            pods.remove(uid);
            if pods.is_empty() {
                self.by_node.remove(&nomination.node);
            }
        }
        self.leave_class(nomination.pod.class.id, uid);
        for victim in &nomination.victims {
            if let Some(pods) = self.by_victim.get_mut(victim) {
                pods.retain(|pod| **pod != *uid);
                if pods.is_empty() {
                    self.by_victim.remove(victim);
                }
            }
        }
        Some(nomination)
    }

    fn leave_class(&mut self, class: ClassId, uid: &str) {
        if let Some(pods) = self.by_class.get_mut(&class) {
            pods.remove(uid);
            if pods.is_empty() {
                self.by_class.remove(&class);
            }
        }
    }

    pub(super) fn reclassify(&mut self, mut class: impl FnMut(&PodInfo) -> Option<Arc<Class>>) {
        let pods = self.by_pod.values().map(|nomination| &nomination.pod);
        let changed: Vec<_> = pods
            .filter_map(|pod| Some((Arc::clone(&pod.uid), class(pod)?)))
            .collect();
        for (uid, class) in changed {
            if let Some(nomination) = self.by_pod.get_mut(&uid) {
                let before = std::mem::replace(&mut nomination.pod.class, Arc::clone(&class));
                self.leave_class(before.id, &uid);
                self.by_class.entry(class.id).or_default().insert(uid);
            }
        }
    }

    /// The most important one worth trying, if its priority is at least this.
    pub(super) fn take_ready(&mut self, priority: Option<i32>) -> Option<PodInfo> {
        let (Reverse(mine), _, uid) = self.ready.first()?;
        if priority.is_some_and(|priority| priority > *mine) {
            return None;
        }
        let pod = self.by_pod.get(uid).map(|nomination| nomination.pod.clone());
        self.ready.pop_first();
        pod
    }

    pub(super) fn make_ready(&mut self, uid: &str) {
        self.ready.extend(self.by_pod.get(uid).map(key));
    }

    /// Makes all ready that are nominated to a node.
    pub(super) fn make_ready_on(&mut self, node: &str) {
        let pods = self.by_node.get(node).into_iter().flatten();
        let ready = pods.filter_map(|uid| self.by_pod.get(uid)).map(key);
        self.ready.extend(ready);
    }

    pub(super) fn make_class_ready(&mut self, class: ClassId) {
        let pods = self.by_class.get(&class).into_iter().flatten();
        let ready = pods.filter_map(|uid| self.by_pod.get(uid)).map(key);
        self.ready.extend(ready);
    }

    /// One class of each that is nominated somewhere.
    pub(super) fn classes(&self) -> Vec<Arc<Class>> {
        let pods = self.by_class.values().filter_map(|pods| self.by_pod.get(pods.first()?));
        pods.map(|nomination| Arc::clone(&nomination.pod.class)).collect()
    }

    pub(super) fn victim_gone(&mut self, uid: &str) {
        for pod in self.by_victim.remove(uid).unwrap_or_default() {
            if let Some(nomination) = self.by_pod.get_mut(&pod) {
                nomination.victims.remove(uid);
            }
        }
    }

    /// Notes that the Pod is about to be bound.
    pub(super) fn reserve(&mut self, uid: &str) {
        if let Some((uid, nomination)) = self.by_pod.get_key_value(uid) {
            self.under_way.insert(Arc::clone(uid), Arc::clone(&nomination.node));
        }
    }

    /// The node it was nominated to when it was to be bound. It is asked for once.
    pub(super) fn reserved(&mut self, uid: &str) -> Option<Arc<str>> {
        self.under_way.remove(uid)
    }

    /// A Pod's status is to say no longer where it comes to.
    pub(super) fn end(&mut self, pod: PodInfo) {
        self.ended.push_back(pod);
    }

    pub(super) fn next_ended(&mut self, now: Instant) -> Option<PodInfo> {
        self.ended_later.next(now).or_else(|| self.ended.pop_front())
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.ended_later.deadline()
    }

    pub(super) fn next_telling(&mut self) -> Option<(String, Vec<PodInfo>)> {
        let (message, pod) = self.to_tell.pop_front()?;
        Some((message, vec![pod]))
    }
}

fn key(nomination: &Nomination) -> (Reverse<i32>, u64, Arc<str>) {
    let pod = &nomination.pod;
    (Reverse(pod.class.priority), nomination.order, Arc::clone(&pod.uid))
}

/// A class was refused everywhere.
pub(super) struct Refused {
    pub(super) diagnosis: Diagnosis,
    /// Node by node, so that other Pods' leaving may help; otherwise for what the Pod is.
    pub(super) filtered: bool,
}

/// What is to be done about a refusal.
pub(super) enum Remedy {
    Preempt {
        node: Arc<str>,
        victims: Vec<PodInfo>,
    },
    /// Extenders decide among these.
    Ask(BTreeMap<Arc<str>, Victims>),
    /// Nothing; what to say of it, if anything.
    None(Option<String>),
}

impl Engine {
    pub fn budget_changed(&mut self, budget: &k8s_openapi::api::policy::v1::PodDisruptionBudget) {
        let before = self.budgets.generation;
        self.budgets.set(budget);
        if self.budgets.generation != before {
            self.extending.budgets_changed();
        }
    }

    pub fn budget_gone(&mut self, namespace: &str, name: &str) {
        self.budgets.remove(namespace, name);
        self.extending.budgets_changed();
    }

    /// The victims could not be sent away: the Pod tries again after a while.
    pub fn preemption_failed(&mut self, pod: &PodInfo, now: Instant) {
        if let Some(nomination) = self.take_nomination(&pod.uid) {
            self.nominations.ended.push_back(nomination.pod.clone());
            self.delay(nomination.pod, now);
            if let Some(at) = self.snapshot.find(&nomination.node) {
                self.wake(Event::PodGone, Some(at), None);
            }
        }
    }

    /// It could not be written that the Pod is nominated no longer: that is tried again.
    pub fn unnominate_failed(&mut self, pod: PodInfo, now: Instant) {
        if !self.nominations.contains(&pod.uid) && self.snapshot.place_of(&pod.uid).is_none() {
            self.nominations.ended_later.add(pod, now + self.backoff.longest);
        }
    }

    pub(super) fn add_nomination(&mut self, pod: PodInfo, node: Arc<str>, victims: HashSet<Arc<str>>) {
        self.snapshot.nominate(pod.clone(), &node);
        self.nominations.add(pod, node, victims);
    }

    fn take_nomination(&mut self, uid: &str) -> Option<Nomination> {
        self.snapshot.denominate(uid);
        self.nominations.remove(uid)
    }

    /// Ends a nomination because the Pod is bound or gone; its room is anybody's again.
    pub(super) fn end_nomination(&mut self, uid: &str) {
        if let Some(nomination) = self.take_nomination(uid)
            && let Some(at) = self.snapshot.find(&nomination.node)
        {
            self.wake(Event::PodGone, Some(at), None);
        }
    }

    /// Tries a nominated Pod again. `Some` if there is a place for it.
    pub(super) fn retry_nominated(&mut self, pod: &PodInfo, noted: &mut Vec<NodeIndex>) -> Option<NodeIndex> {
        let refused = match self.look(pod, noted) {
            Ok(at) => return Some(at),
            Err(refused) => refused,
        };
        if self.waits_for_victims(pod) {
            if let Some(nomination) = self.nominations.by_pod.get_mut(&pod.uid)
                && !std::mem::replace(&mut nomination.told, true)
            {
                let mut message = refused.diagnosis.message;
                message.push_str(" preemption: not eligible due to a terminating pod on the nominated node.");
                self.nominations.to_tell.push_back((message, pod.clone()));
            }
            return None;
        }
        // Its room was taken or never came to be: it is as any other Pod again.
        let nomination = self.take_nomination(&pod.uid)?;
        self.nominations.ended.push_back(pod.clone());
        self.queue.add(pod.clone());
        self.queue.wake(pod.class.id, true);
        if let Some(at) = self.snapshot.find(&nomination.node) {
            self.wake(Event::PodGone, Some(at), None);
        }
        None
    }

    /// Whether the Pod is nominated to a node that can still become free for it by Pods that leave already.
    fn waits_for_victims(&mut self, pod: &PodInfo) -> bool {
        let Some(nomination) = self.nominations.get(&pod.uid) else {
            return false;
        };
        let Some((at, info)) = self
            .snapshot
            .find(&nomination.node)
            .and_then(|at| Some((at, self.snapshot.node(at)?)))
        else {
            return false;
        };
        let leaving = |other: &PodInfo| {
            other.class.priority < pod.class.priority && (other.preempted || nomination.victims.contains(&other.uid))
        };
        if !info.pods.values().any(leaving) {
            return false;
        }
        let Some(framework) = self.profiles.get(&pod.class.scheduler) else {
            return false;
        };
        if let Some((_, refusal)) = refusal(framework, &pod.class, info, Some(&pod.uid)) {
            return refusal.resolvable;
        }
        let watch = &mut Watch::start(false);
        let tracking = tracked(&mut self.trackings, framework, &pod.class, &self.snapshot, watch);
        let answer = tracking.check_nominated(&pod.class, at, Some(&pod.uid), &self.snapshot);
        answer.err().is_none_or(|(_, refused)| refused.resolvable)
    }

    /// [`Engine::remedy`], counted.
    pub(super) fn timed_remedy(&mut self, pod: &PodInfo, refused: &Refused) -> Remedy {
        let began = Instant::now();
        let remedy = self.remedy(pod, refused);
        if self.preempts(&pod.class) {
            let helps = !matches!(remedy, Remedy::None(_));
            self.counting.remedied(pod, helps, began.elapsed());
        }
        remedy
    }

    /// Whether preemption is what follows when no node fits.
    fn preempts(&self, class: &Class) -> bool {
        let framework = self.profiles.get(&class.scheduler);
        framework.is_some_and(|framework| framework.preemption.is_some()) && self.snapshot.count() > 0
    }

    /// Looks for Pods that could make room.
    fn remedy(&mut self, pod: &PodInfo, refused: &Refused) -> Remedy {
        let Engine {
            profiles,
            snapshot,
            memories,
            trackings,
            budgets,
            random,
            extending,
            counting,
            ..
        } = self;
        let asks = extending.want_victims(&pod.class);
        let (snapshot, class) = (&*snapshot, &pod.class);
        let nodes = snapshot.count();
        let Some((framework, limits)) = profiles
            .get(&class.scheduler)
            .and_then(|framework| Some((framework, framework.preemption.as_ref()?)))
            .filter(|_| nodes > 0)
        else {
            return Remedy::None(None);
        };
        counting.metrics.preemption_tried();
        if class.never_preempts {
            return Remedy::None(Some("not eligible due to preemptionPolicy=Never.".into()));
        }
        let mut candidates = Candidates::default();
        let mut all = BTreeMap::new();
        if refused.filtered {
            let watch = &mut Watch::start(false);
            let memory = remembered(memories, framework, class, snapshot, watch);
            let tracking = tracked(trackings, framework, class, snapshot, watch);
            let alone = !tracking.may_refuse() && !tracking.concerned_by_nominated(class, snapshot);
            // Of nodes that node plugins let pass, cluster plugins refused each.
            let passed: Vec<NodeIndex> = if alone {
                Vec::new()
            } else {
                memory.fitting().map(|(at, _)| at).collect()
            };
            let passed = passed.into_iter().filter(|&at| {
                let answer = tracking.check_nominated(class, at, Some(&pod.uid), snapshot);
                answer.is_err_and(|(_, refused)| refused.resolvable)
            });
            let passed: Vec<NodeIndex> = passed.collect();
            if snapshot.any_below(class.priority) {
                let resolvable = |at: &NodeIndex| memory.refusal(*at).is_some_and(|(_, refusal)| refusal.resolvable);
                let mut resolvable: Vec<NodeIndex> = (0..snapshot.places()).filter(resolvable).collect();
                resolvable.extend(passed);
                let share = nodes * usize::try_from(limits.min_candidate_nodes_percentage).unwrap_or(0) / 100;
                let enough = share
                    .max(usize::try_from(limits.min_candidate_nodes_absolute).unwrap_or(0))
                    .min(nodes);
                let start = match resolvable.len() {
                    0 | 1 => 0,
                    several => random.random_range(0..several),
                };
                let trial = Trial {
                    framework,
                    class,
                    snapshot,
                    budgets,
                    asking: None,
                };
                let (later, first) = resolvable.split_at(start);
                for &at in first.iter().chain(later) {
                    if candidates.suffice(enough) {
                        break;
                    }
                    let outcome = match alone {
                        true => Arc::clone(memory.outcome(at, &trial)),
                        false => Arc::new(trial.victims(at, Some(tracking))),
                    };
                    if asks && let Outcome::Victims(victims) = &*outcome {
                        all.insert(Arc::from(snapshot.name(at)), victims.clone());
                    }
                    candidates.add(at, &outcome);
                }
            } else {
                let resolvable = memory.refusals().filter(|(_, refusal, _)| refusal.resolvable);
                let resolvable: usize = resolvable.map(|(_, _, nodes)| nodes).sum();
                candidates.add_without_victims(resolvable + passed.len());
            }
        }
        if !all.is_empty() {
            return Remedy::Ask(all);
        }
        match candidates.into_best(nodes) {
            Ok((at, outcome)) => match &*outcome {
                Outcome::Victims(victims) => Remedy::Preempt {
                    node: snapshot.name(at).into(),
                    victims: victims.pods.clone(),
                },
                Outcome::Refused(_) => Remedy::None(None),
            },
            Err(why_not) => Remedy::None(Some(explain(nodes, why_not))),
        }
    }

    /// Does what is to be done about a refusal.
    pub(super) fn carry_out(&mut self, pod: PodInfo, remedy: Remedy, message: String) -> Option<Decision> {
        match remedy {
            Remedy::None(_) => None,
            Remedy::Ask(candidates) => Some(self.consult_victims(pod, candidates, message)),
            Remedy::Preempt { node, victims } => {
                self.nominate(&pod, &node, &victims);
                Some(Decision::Preempt {
                    pod,
                    node,
                    victims,
                    message,
                })
            }
        }
    }

    /// Nominates a Pod; those of lower priority that were to come to the node look elsewhere.
    pub(super) fn nominate(&mut self, pod: &PodInfo, node: &Arc<str>, victims: &[PodInfo]) {
        self.counting.metrics.preempted(victims.len());
        self.queue.placed(&pod.uid);
        let others = self.nominations.by_node.get(node).into_iter().flatten();
        let others = others.filter_map(|uid| self.nominations.get(uid));
        let displaced: Vec<PodInfo> = others
            .filter(|other| other.pod.class.priority < pod.class.priority)
            .map(|other| other.pod.clone())
            .collect();
        let victims = victims.iter().map(|victim| Arc::clone(&victim.uid)).collect();
        self.add_nomination(pod.clone(), Arc::clone(node), victims);
        for other in displaced {
            self.take_nomination(&other.uid);
            self.nominations.ended.push_back(other.clone());
            let class = other.class.id;
            self.queue.add(other);
            self.queue.wake(class, true);
        }
    }

    /// Whether a class that waits could now make room for itself on the node.
    pub(super) fn could_preempt(&mut self, class: &Arc<Class>, at: NodeIndex) -> bool {
        let has_lower = |info: &NodeInfo| {
            let mut groups = info.groups.values();
            groups.any(|group| group.class.priority < class.priority)
        };
        let Some(framework) = self.profiles.get(&class.scheduler) else {
            return false;
        };
        if framework.preemption.is_none() || class.never_preempts || !self.snapshot.node(at).is_some_and(has_lower) {
            return false;
        }
        let trial = Trial {
            framework,
            class,
            snapshot: &self.snapshot,
            budgets: &self.budgets,
            asking: None,
        };
        let mut tracking = self.trackings.get(class.id);
        if tracking
            .as_mut()
            .is_some_and(|tracking| !tracking.catch_up(class, &self.snapshot, &mut Watch::start(false)))
        {
            tracking = None;
        }
        matches!(trial.victims(at, tracking), Outcome::Victims(_))
    }
}
