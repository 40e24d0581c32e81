//! The engine's part in preemption: who is nominated where, and what waiting for victims means.
//!
//! A nominated Pod is out of the queue: its class goes on without it, and its room counts against Pods of equal or lower
//! priority. It is tried again, before its equals, when something happens that can help it.

use std::collections::HashSet;

use super::*;
use crate::preemption::{NOT_HELPFUL, Trial, Victims};

/// Room that a Pod waits for on a node.
pub(super) struct Nomination {
    pub(super) pod: PodInfo,
    pub(super) node: Arc<str>,
    /// Those sent away for it that are not gone yet.
    victims: HashSet<Arc<str>>,
    order: u64,
}

#[derive(Default)]
pub(super) struct Nominations {
    by_pod: HashMap<Arc<str>, Nomination>,
    /// Worth trying again, in order of priority, then nomination.
    ready: BTreeSet<(Reverse<i32>, u64, Arc<str>)>,
    /// Pods whose nomination ended without a binding: their status still says otherwise.
    ended: VecDeque<PodInfo>,
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

    pub(super) fn add(&mut self, pod: PodInfo, node: Arc<str>, victims: HashSet<Arc<str>>) {
        self.remove(&pod.uid.clone());
        self.ended.retain(|ended| ended.uid != pod.uid);
        self.count += 1;
        let nomination = Nomination {
            node,
            victims,
            order: self.count,
            pod,
        };
        self.by_pod.insert(Arc::clone(&nomination.pod.uid), nomination);
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<Nomination> {
        let nomination = self.by_pod.remove(uid)?;
        self.ready.remove(&key(&nomination));
        Some(nomination)
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

    pub(super) fn make_ready(&mut self, which: impl Fn(&Nomination) -> bool) {
        let ready = self.by_pod.values().filter(|nomination| which(nomination)).map(key);
        self.ready.extend(ready);
    }

    pub(super) fn victim_gone(&mut self, uid: &str) {
        for nomination in self.by_pod.values_mut() {
            nomination.victims.remove(uid);
        }
    }

    pub(super) fn next_ended(&mut self) -> Option<PodInfo> {
        self.ended.pop_front()
    }

    /// What else is to come to nodes and counts against this Pod, by node.
    pub(super) fn against(&self, pod: &PodInfo, snapshot: &Snapshot) -> BTreeMap<NodeIndex, Vec<PodInfo>> {
        let mut rivals: BTreeMap<NodeIndex, Vec<PodInfo>> = BTreeMap::new();
        for other in self.by_pod.values() {
            if other.pod.class.priority >= pod.class.priority
                && other.pod.uid != pod.uid
                && let Some(at) = snapshot.find(&other.node)
            {
                rivals.entry(at).or_default().push(other.pod.clone());
            }
        }
        rivals
    }
}

fn key(nomination: &Nomination) -> (Reverse<i32>, u64, Arc<str>) {
    let pod = &nomination.pod;
    (Reverse(pod.class.priority), nomination.order, Arc::clone(&pod.uid))
}

/// A class was refused everywhere.
pub(super) struct Refused {
    pub(super) diagnosis: Diagnosis,
    /// Nodes where the removal of Pods could help.
    pub(super) resolvable: Vec<NodeIndex>,
}

/// What is to be done about a refusal.
pub(super) enum Remedy {
    Preempt {
        node: Arc<str>,
        victims: Vec<PodInfo>,
    },
    /// Nothing; what to say of it, if anything.
    None(Option<String>),
}

impl Engine {
    pub fn budget_changed(&mut self, budget: &k8s_openapi::api::policy::v1::PodDisruptionBudget) {
        self.budgets.set(budget);
    }

    pub fn budget_gone(&mut self, namespace: &str, name: &str) {
        self.budgets.remove(namespace, name);
    }

    /// The victims could not be sent away: the Pod tries again after a while.
    pub fn preemption_failed(&mut self, pod: &PodInfo, now: Instant) {
        if let Some(nomination) = self.nominations.remove(&pod.uid) {
            self.nominations.ended.push_back(nomination.pod.clone());
            self.delay(nomination.pod, now);
            if let Some(at) = self.snapshot.find(&nomination.node) {
                self.wake(Event::PodGone, Some(at));
            }
        }
    }

    /// Ends a nomination because the Pod is bound or gone; its room is anybody's again.
    pub(super) fn end_nomination(&mut self, uid: &str) {
        if let Some(nomination) = self.nominations.remove(uid)
            && let Some(at) = self.snapshot.find(&nomination.node)
        {
            self.wake(Event::PodGone, Some(at));
        }
    }

    /// Tries a nominated Pod again. `Some` if there is a place for it.
    pub(super) fn retry_nominated(&mut self, pod: &PodInfo) -> Option<NodeIndex> {
        let refused = match self.choose(pod) {
            Ok(at) => return Some(at),
            Err(refused) => refused,
        };
        if self.waits_for_victims(pod, &refused) {
            return None;
        }
        // Its room was taken or never came to be: it is as any other Pod again.
        let nomination = self.nominations.remove(&pod.uid)?;
        self.nominations.ended.push_back(pod.clone());
        self.queue.add(pod.clone());
        self.queue.wake(pod.class.id);
        if let Some(at) = self.snapshot.find(&nomination.node) {
            self.wake(Event::PodGone, Some(at));
        }
        None
    }

    /// Whether the Pod is nominated to a node that can still become free for it by Pods that leave already.
    fn waits_for_victims(&self, pod: &PodInfo, refused: &Refused) -> bool {
        let Some(nomination) = self.nominations.get(&pod.uid) else {
            return false;
        };
        let Some(at) = self.snapshot.find(&nomination.node) else {
            return false;
        };
        refused.resolvable.contains(&at)
            && self.snapshot.node(at).is_some_and(|info| {
                let mut pods = info.pods.values();
                pods.any(|other| {
                    other.class.priority < pod.class.priority
                        && (other.preempted || nomination.victims.contains(&other.uid))
                })
            })
    }

    /// Looks for Pods that could make room.
    pub(super) fn remedy(&mut self, pod: &PodInfo, refused: &Refused) -> Remedy {
        let Engine {
            profiles,
            snapshot,
            nominations,
            budgets,
            random,
            ..
        } = self;
        let nodes = snapshot.count();
        let Some((framework, limits)) = profiles
            .get(&pod.class.scheduler)
            .and_then(|framework| Some((framework, framework.preemption.as_ref()?)))
            .filter(|_| nodes > 0)
        else {
            return Remedy::None(None);
        };
        if pod.class.never_preempts {
            return Remedy::None(Some("not eligible due to preemptionPolicy=Never.".into()));
        }
        let trial = Trial {
            framework,
            class: &pod.class,
            budgets,
        };
        let share = nodes * usize::try_from(limits.min_candidate_nodes_percentage).unwrap_or(0) / 100;
        let enough = share
            .max(usize::try_from(limits.min_candidate_nodes_absolute).unwrap_or(0))
            .min(nodes);
        let rivals = nominations.against(pod, snapshot);
        let mut why_not: BTreeMap<String, usize> = BTreeMap::new();
        let mut best: Option<(NodeIndex, Victims)> = None;
        let (mut found, mut peaceful, mut examined) = (0, false, 0);
        let start = match refused.resolvable.len() {
            0 | 1 => 0,
            several => random.random_range(0..several),
        };
        let (later, first) = refused.resolvable.split_at(start);
        for &at in first.iter().chain(later) {
            if found >= enough && peaceful {
                break;
            }
            examined += 1;
            match trial.victims(snapshot, at, rivals.get(&at).map_or(&[], Vec::as_slice)) {
                Ok(victims) => {
                    found += 1;
                    peaceful |= victims.violations == 0;
                    if best.as_ref().is_none_or(|(_, best)| victims.cost() < best.cost()) {
                        best = Some((at, victims));
                    }
                }
                Err(reasons) => {
                    for reason in reasons {
                        *why_not.entry(reason).or_default() += 1;
                    }
                }
            }
        }
        let best = best.and_then(|(at, victims)| Some((Arc::clone(&snapshot.node(at)?.name), victims)));
        match best {
            Some((node, victims)) => Remedy::Preempt {
                node,
                victims: victims.pods,
            },
            None => {
                if nodes > examined {
                    *why_not.entry(NOT_HELPFUL.to_owned()).or_default() += nodes - examined;
                }
                Remedy::None(Some(explain(nodes, why_not)))
            }
        }
    }

    /// Nominates a Pod; those of lower priority that were to come to the node look elsewhere.
    pub(super) fn nominate(&mut self, pod: &PodInfo, node: &Arc<str>, victims: &[PodInfo]) {
        self.queue.remove(&pod.uid);
        let nominations = &mut self.nominations;
        let displaced: Vec<PodInfo> = nominations
            .by_pod
            .values()
            .filter(|other| other.node == *node && other.pod.class.priority < pod.class.priority)
            .map(|other| other.pod.clone())
            .collect();
        let victims = victims.iter().map(|victim| Arc::clone(&victim.uid)).collect();
        nominations.add(pod.clone(), Arc::clone(node), victims);
        for other in displaced {
            nominations.remove(&other.uid);
            nominations.ended.push_back(other.clone());
            let class = other.class.id;
            self.queue.add(other);
            self.queue.wake(class);
        }
    }

    /// Whether a class that waits could now make room for itself on the node.
    pub(super) fn could_preempt(&mut self, class: &Class, at: NodeIndex) -> bool {
        let Some(framework) = self.profiles.get(&class.scheduler) else {
            return false;
        };
        let has_lower = |info: &NodeInfo| info.pods.values().any(|pod| pod.class.priority < class.priority);
        if framework.preemption.is_none() || class.never_preempts || !self.snapshot.node(at).is_some_and(has_lower) {
            return false;
        }
        let trial = Trial {
            framework,
            class,
            budgets: &self.budgets,
        };
        trial.victims(&mut self.snapshot, at, &[]).is_ok()
    }
}
