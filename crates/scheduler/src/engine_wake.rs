//! Who is tried again for what happened.
//!
//! An event about one node helps a class if that node would take it now: this is looked at, not guessed. What happens to
//! Pods can also help elsewhere, through affinity and spreads; there the plugins that refused are asked about the very Pod
//! that came or went. A class that was woken in vain a few times rests between tries ([`crate::queue`]).

use super::*;
use crate::queue::NOBODY;

/// Whether a node would take a class now.
#[derive(Clone, Copy, PartialEq)]
enum Fits {
    Yes,
    /// Node plugins say so; the others' sums are not at hand.
    Perhaps,
    /// Who refuses, if there is such a node at all.
    No(Option<&'static str>),
}

/// Node plugins' answers for one node by shape: who refused.
type Verdicts = HashMap<ClassId, Result<(), &'static str>>;

impl Engine {
    /// Wakes what `event` can help. `node` is the node it concerns, if it concerns one, and `pod` the class of the Pod that
    /// came or went; a `PodGone` without is room that is kept for nobody any more.
    pub(super) fn wake(&mut self, event: Event, node: Option<NodeIndex>, pod: Option<&Arc<Class>>) {
        self.wake_where(event, node, pod, |_| true);
    }

    pub(super) fn wake_where(
        &mut self,
        event: Event,
        node: Option<NodeIndex>,
        pod: Option<&Arc<Class>>,
        concerns: impl Fn(&Class) -> bool,
    ) {
        self.extending.something_happened();
        // Where node plugins may have changed their minds.
        let offered = node.filter(|_| matches!(event, Event::Node | Event::PodGone));
        let mut verdicts = Verdicts::new();
        self.wake_nominated(event, offered, pod, &concerns, &mut verdicts);
        if !self.queue.any_parked() {
            return;
        }
        let listening: HashMap<&str, Vec<&'static str>> = self
            .profiles
            .iter()
            .map(|(name, framework)| (name.as_str(), framework.helped_by(event)))
            .collect();
        let mut listed: BTreeSet<&'static str> = listening.values().flatten().copied().collect();
        if event == Event::Node {
            listed.insert(NOBODY);
        }
        // By class: the plugins that refused it and that the event can help.
        let mut parked: Vec<(Arc<Class>, Vec<&'static str>)> = Vec::new();
        for (class, mut plugins) in self.queue.parked_for(listed) {
            let listening = listening.get(class.scheduler.as_str());
            plugins.retain(|plugin| {
                listening.is_some_and(|listening| listening.contains(plugin))
                    || (*plugin == NOBODY && event == Event::Node)
            });
            if !plugins.is_empty() && concerns(&class) {
                parked.push((class, plugins));
            }
        }
        let mut woken = 0;
        for (class, plugins) in parked {
            let fits = offered.map_or(Fits::No(None), |at| self.fits_now(&class, at, &mut verdicts));
            if fits == Fits::Yes {
                woken += self.queue.wake(class.id, true);
            } else if fits == Fits::Perhaps
                || self.helped_elsewhere(&class, &plugins, event, node, pod)
                || offered.is_some_and(|at| self.could_preempt(&class, at))
            {
                woken += self.queue.wake(class.id, false);
            } else if let Fits::No(Some(plugin)) = fits {
                // What was refused for one reason may be so for another now, and wait for other events.
                self.queue.refused_also(class.id, plugin);
            }
        }
        let metrics = &self.counting.metrics;
        metrics.incoming("active", counting::label(event), woken);
    }

    /// Pods that wait for victims are tried when their node changed, or another would take them.
    fn wake_nominated(
        &mut self,
        event: Event,
        offered: Option<NodeIndex>,
        pod: Option<&Arc<Class>>,
        concerns: &impl Fn(&Class) -> bool,
        verdicts: &mut Verdicts,
    ) {
        if self.nominations.len() == 0 {
            return;
        }
        if let Some(at) = offered {
            let node = self.snapshot.name(at);
            self.nominations.make_ready_on(node);
        }
        for class in self.nominations.classes() {
            let helped = concerns(&class)
                && match offered {
                    Some(at) => !matches!(self.fits_now(&class, at, verdicts), Fits::No(_)),
                    None => false,
                };
            let helped = helped
                || (concerns(&class) && {
                    let plugins: Vec<&'static str> = match self.profiles.get(&class.scheduler) {
                        Some(framework) => framework.helped_by(event),
                        None => Vec::new(),
                    };
                    self.helped_elsewhere(&class, &plugins, event, offered, pod)
                });
            if helped {
                self.nominations.make_class_ready(class.id);
            }
        }
    }

    fn fits_now(&mut self, class: &Arc<Class>, at: NodeIndex, verdicts: &mut Verdicts) -> Fits {
        let (Some(info), Some(framework)) = (self.snapshot.node(at), self.profiles.get(&class.scheduler)) else {
            return Fits::No(None);
        };
        let judged = verdicts
            .entry(class.shape)
            .or_insert_with(|| match refusal(framework, class, info, None) {
                None => Ok(()),
                Some((filter, _)) => Err(framework.filters[filter].name),
            });
        if let Err(plugin) = *judged {
            return Fits::No(Some(plugin));
        }
        let snapshot = &self.snapshot;
        let Some(tracking) = self.trackings.get(class.id) else {
            let alone = !class.looks_beyond_the_node() && snapshot.with_terms().is_empty();
            return if alone { Fits::Yes } else { Fits::Perhaps };
        };
        if !tracking.catch_up(class, snapshot, &mut Watch::start(false)) {
            return Fits::Perhaps;
        }
        match tracking.check_nominated(class, at, None, snapshot) {
            Ok(()) => Fits::Yes,
            Err((plugin, _)) => Fits::No(Some(plugin)),
        }
    }

    /// Whether the event can help a class on other nodes than the one it is about.
    fn helped_elsewhere(
        &self,
        class: &Arc<Class>,
        plugins: &[&'static str],
        event: Event,
        node: Option<NodeIndex>,
        pod: Option<&Arc<Class>>,
    ) -> bool {
        let Some(framework) = self.profiles.get(&class.scheduler) else {
            return false;
        };
        if event == Event::Node || (event == Event::PodGone && pod.is_none()) {
            return false;
        }
        plugins.iter().any(|name| {
            let cluster = framework.cluster.iter().find(|row| row.name() == *name);
            match cluster {
                Some(plugin) => plugin.helped(class, event, pod.map(|class| &**class), &self.snapshot),
                // What is about no node may help on any. Claims that only one Pod at a time may use are freed everywhere.
                None => node.is_none() || (!class.volumes.is_empty() && !LOCAL.contains(name)),
            }
        })
    }
}

/// Node plugins that an event about a Pod can help on that Pod's node alone.
const LOCAL: [&str; 2] = ["NodeResourcesFit", "NodePorts"];
