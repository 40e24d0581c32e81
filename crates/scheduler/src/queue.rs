//! The queue: classes of equal Pods, in the order of their first Pod.
//!
//! A class is *active* (worth trying) or *parked* (the cluster as it stands has no place for it). Parking and waking a
//! class costs the same whether it holds one Pod or thirty thousand. Within and between classes the order is priority,
//! then arrival.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

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

struct Queued {
    class: Arc<Class>,
    pods: BTreeMap<Order, PodInfo>,
    parked: Option<Diagnosis>,
    /// Pods not yet told why they wait, or told something else.
    untold: BTreeSet<Order>,
    /// The plugins they were last told of.
    told: Vec<&'static str>,
}

#[derive(Default)]
pub struct Queue {
    classes: HashMap<ClassId, Queued>,
    active: BTreeSet<(Order, ClassId)>,
    place: HashMap<Arc<str>, (ClassId, Order)>,
    /// Parked classes with Pods that wait for an explanation.
    to_tell: BTreeSet<ClassId>,
    arrivals: u64,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.place.len()
    }
    pub fn is_empty(&self) -> bool {
        self.place.is_empty()
    }
    /// (active, parked) Pods.
    pub fn counts(&self) -> (usize, usize) {
        let parked = self
            .classes
            .values()
            .filter(|queued| queued.parked.is_some())
            .map(|queued| queued.pods.len())
            .sum();
        (self.len() - parked, parked)
    }
    pub fn contains(&self, uid: &str) -> bool {
        self.place.contains_key(uid)
    }
    /// The class a queued Pod is in.
    pub fn class_of(&self, uid: &str) -> Option<ClassId> {
        self.place.get(uid).map(|(class, _)| *class)
    }

    /// Queues a Pod. One that is already queued in the same class stays where it is; one whose class changed moves.
    pub fn add(&mut self, pod: PodInfo) {
        if let Some((class, _)) = self.place.get(&pod.uid) {
            if *class == pod.class.id {
                return;
            }
            self.remove(&pod.uid.clone());
        }
        self.arrivals += 1;
        let (class, order) = (pod.class.id, (Reverse(pod.class.priority), self.arrivals));
        self.place.insert(Arc::clone(&pod.uid), (class, order));
        let queued = self.classes.entry(class).or_insert_with(|| Queued {
            class: Arc::clone(&pod.class),
            pods: BTreeMap::new(),
            parked: None,
            untold: BTreeSet::new(),
            told: Vec::new(),
        });
        let first_before = queued.pods.first_key_value().map(|(order, _)| *order);
        queued.pods.insert(order, pod);
        queued.untold.insert(order);
        if queued.parked.is_some() {
            self.to_tell.insert(class);
        } else if first_before.is_none_or(|before| order < before) {
            if let Some(before) = first_before {
                self.active.remove(&(before, class));
            }
            self.active.insert((order, class));
        }
    }

    /// Takes a Pod out, wherever it is.
    pub fn remove(&mut self, uid: &str) -> Option<PodInfo> {
        let (class, order) = self.place.remove(uid)?;
        let queued = self.classes.get_mut(&class)?;
        let was_first = queued.pods.first_key_value().is_some_and(|(first, _)| *first == order);
        let pod = queued.pods.remove(&order);
        queued.untold.remove(&order);
        if queued.untold.is_empty() {
            self.to_tell.remove(&class);
        }
        if queued.parked.is_none() && was_first {
            self.active.remove(&(order, class));
            if let Some((&next, _)) = queued.pods.first_key_value() {
                self.active.insert((next, class));
            }
        }
        if queued.pods.is_empty() {
            self.classes.remove(&class);
            self.to_tell.remove(&class);
        }
        pod
    }

    /// The next Pod worth trying, left in its place.
    pub fn first(&self) -> Option<&PodInfo> {
        let (_, class) = self.active.first()?;
        self.classes.get(class)?.pods.first_key_value().map(|(_, pod)| pod)
    }

    /// Sets a class aside. Its Pods are told again only if other plugins refuse than last time.
    pub fn park(&mut self, class: ClassId, diagnosis: Diagnosis) {
        let Some(queued) = self.classes.get_mut(&class) else {
            return;
        };
        if let Some((&first, _)) = queued.pods.first_key_value() {
            self.active.remove(&(first, class));
        }
        if queued.told != diagnosis.plugins {
            queued.untold = queued.pods.keys().copied().collect();
            queued.told = diagnosis.plugins.clone();
        }
        if !queued.untold.is_empty() {
            self.to_tell.insert(class);
        }
        queued.parked = Some(diagnosis);
    }

    /// Parked classes whose refusal `helped` accepts.
    pub fn parked(&self, helped: impl Fn(&Class, &Diagnosis) -> bool) -> Vec<Arc<Class>> {
        let parked = self.classes.values().filter(|queued| {
            let parked = queued.parked.as_ref();
            parked.is_some_and(|diagnosis| helped(&queued.class, diagnosis))
        });
        parked.map(|queued| Arc::clone(&queued.class)).collect()
    }

    /// Makes a class worth trying again.
    pub fn wake(&mut self, class: ClassId) {
        let Some(queued) = self.classes.get_mut(&class) else {
            return;
        };
        if queued.parked.take().is_some()
            && let Some((&first, _)) = queued.pods.first_key_value()
        {
            self.active.insert((first, class));
        }
    }

    /// At most `limit` Pods of one parked class that were not yet told why they wait, with the explanation.
    pub fn tell(&mut self, limit: usize) -> Option<(String, Vec<PodInfo>)> {
        loop {
            let class = *self.to_tell.first()?;
            let Some(queued) = self.classes.get_mut(&class) else {
                self.to_tell.remove(&class);
                continue;
            };
            let Some(diagnosis) = &queued.parked else {
                // Awake again: whatever comes of the next try will be told then.
                self.to_tell.remove(&class);
                continue;
            };
            let mut pods = Vec::new();
            while pods.len() < limit
                && let Some(order) = queued.untold.pop_first()
            {
                pods.extend(queued.pods.get(&order).cloned());
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
        queue.park(class, diagnosis("Fit"));
        assert!(queue.first().is_none());
        assert_eq!(queue.tell(2).unwrap().1.len(), 2);
        assert_eq!(queue.tell(2).unwrap().1.len(), 1);
        assert!(queue.tell(2).is_none());
        queue.add(pod_info("p4", spec(0, "1")));
        assert!(queue.first().is_none(), "joins the parked class");
        assert_eq!(&*queue.tell(9).unwrap().1[0].name, "p4");
        queue.wake(class);
        assert_eq!(take(&mut queue), "p1");
        queue.park(class, diagnosis("Fit"));
        assert!(queue.tell(9).is_none(), "nothing new to say");
        queue.wake(class);
        queue.park(class, diagnosis("Taints"));
        assert_eq!(queue.tell(9).unwrap().1.len(), 3);
    }

    #[test]
    fn a_pod_whose_wishes_change_moves_to_another_class() {
        let mut queue = Queue::default();
        queue.add(pod_info("p1", spec(0, "1")));
        let parked = queue.first().unwrap().class.id;
        queue.park(parked, diagnosis("Fit"));
        queue.add(pod_info("p1", spec(0, "2")));
        assert_eq!(queue.len(), 1);
        assert_eq!(&*queue.first().unwrap().name, "p1");
        assert!(queue.tell(9).is_none());
    }
}
