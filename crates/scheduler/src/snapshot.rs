//! The cluster as the scheduler keeps it: one account per node, changed in place by events.
//!
//! Nothing here is ever rebuilt from lists. Every change of a node's account gives it a new generation and a line in
//! the log of changes, so that whoever remembers something per node catches up by reading what changed since.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use k8s_openapi::api::core::v1::Node;

use crate::labels::Labels;
use crate::owners::Owners;
use crate::pod::{Class, ClassId, HostPort, PodInfo};
use crate::resources::Resources;
use crate::topology::{KeyId, NOWHERE, Topology, ValueId};

/// A node's place in the snapshot; stable while the node exists.
pub type NodeIndex = usize;

/// An image that nodes hold.
#[derive(Debug)]
pub struct Image {
    /// In bytes, as the first node reported it.
    pub size: i64,
    /// How many nodes hold it.
    pub nodes: AtomicUsize,
}

/// The Pods of one class on a node.
#[derive(Clone, Debug)]
pub struct Group {
    pub class: Arc<Class>,
    /// Not being deleted.
    pub live: u32,
    /// Being deleted.
    pub leaving: u32,
}

/// One node and what is spoken for on it.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub name: Arc<str>,
    /// `None` while only Pods are known of it: such a node is never a candidate.
    pub node: Option<Arc<Node>>,
    pub allocatable: Resources,
    pub allowed_pods: i64,
    pub requested: Resources,
    /// As scoring assumes it.
    pub assumed: Resources,
    pub pods: HashMap<Arc<str>, PodInfo>,
    /// The same Pods by class.
    pub groups: HashMap<ClassId, Group>,
    pub host_ports: Vec<HostPort>,
    /// How many of the Pods have terms about other Pods.
    pub pods_with_terms: usize,
    /// Pods that are to come here once there is room for them; the room is kept from those of no higher priority.
    pub nominated: Vec<PodInfo>,
    /// By name.
    pub images: Arc<HashMap<String, Arc<Image>>>,
    /// How many nodes there are, this one included.
    pub nodes: Arc<AtomicUsize>,
    /// Where it is in every topology that anybody asked about.
    domains: Vec<ValueId>,
    pub generation: u64,
}

impl NodeInfo {
    fn new(name: Arc<str>) -> Self {
        NodeInfo {
            name,
            node: None,
            allocatable: Resources::default(),
            allowed_pods: 0,
            requested: Resources::default(),
            assumed: Resources::default(),
            pods: HashMap::new(),
            groups: HashMap::new(),
            host_ports: Vec::new(),
            pods_with_terms: 0,
            nominated: Vec::new(),
            images: Arc::default(),
            nodes: Arc::default(),
            domains: Vec::new(),
            generation: 0,
        }
    }

    pub fn labels(&self) -> Option<&Labels> {
        self.node.as_ref()?.metadata.labels.as_ref()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }

    pub fn domain(&self, key: KeyId) -> ValueId {
        self.domains.get(key).copied().unwrap_or(NOWHERE)
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        self.allocatable = allocatable.map(Resources::from_list).unwrap_or_default();
        self.allowed_pods = allocatable
            .and_then(|list| list.get("pods"))
            .and_then(|quantity| sampan_api::quantity::Quantity::parse(&quantity.0).ok())
            .map_or(0, |quantity| quantity.value());
        self.node = Some(node);
    }

    /// Adds a Pod to the account. For a copy of a node this asks "what if".
    pub(crate) fn add_pod(&mut self, pod: PodInfo) -> Option<PodInfo> {
        let before = self.remove_pod(&pod.uid);
        let class = Arc::clone(&pod.class);
        self.requested.add(&class.requests);
        self.assumed.add(&class.assumed);
        self.host_ports.extend(class.host_ports.iter().cloned());
        self.pods_with_terms += usize::from(class.has_terms());
        let group = self.groups.entry(class.id).or_insert_with(|| Group {
            class,
            live: 0,
            leaving: 0,
        });
        if pod.leaving {
            group.leaving += 1;
        } else {
            group.live += 1;
        }
        self.pods.insert(Arc::clone(&pod.uid), pod);
        before
    }

    /// Takes a Pod off the account.
    pub(crate) fn remove_pod(&mut self, uid: &str) -> Option<PodInfo> {
        let pod = self.pods.remove(uid)?;
        self.requested.subtract(&pod.class.requests);
        self.assumed.subtract(&pod.class.assumed);
        for port in &pod.class.host_ports {
            if let Some(at) = self.host_ports.iter().position(|used| used == port) {
                self.host_ports.swap_remove(at);
            }
        }
        self.pods_with_terms -= usize::from(pod.class.has_terms());
        if let Some(group) = self.groups.get_mut(&pod.class.id) {
            if pod.leaving {
                group.leaving -= 1;
            } else {
                group.live -= 1;
            }
            if group.live + group.leaving == 0 {
                self.groups.remove(&pod.class.id);
            }
        }
        Some(pod)
    }

    /// The node as if the Pods nominated to it that a Pod of `priority` must yield to were there; `None` if there are
    /// none. `except` is the Pod that asks: it does not yield to itself.
    pub fn with_nominated(&self, priority: i32, except: Option<&str>) -> Option<NodeInfo> {
        let before_it =
            |pod: &&PodInfo| pod.class.priority >= priority && except.is_none_or(|except| *pod.uid != *except);
        let mut nominated = self.nominated.iter().filter(before_it).peekable();
        nominated.peek()?;
        let mut copy = self.clone();
        for pod in nominated {
            copy.add_pod(pod.clone());
        }
        Some(copy)
    }
}

/// Changes that the log holds; whoever is further behind starts over.
const LOG: usize = 1 << 15;

/// All nodes, and where each placed Pod is.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<Arc<str>, NodeIndex>,
    placed: HashMap<Arc<str>, NodeIndex>,
    nominated: HashMap<Arc<str>, NodeIndex>,
    free: Vec<NodeIndex>,
    generation: u64,
    /// Which nodes changed, the newest (at `generation`) last.
    log: VecDeque<NodeIndex>,
    /// All images that nodes hold, by name.
    images: HashMap<String, Arc<Image>>,
    /// How many nodes there are, for those who only see one of them.
    known: Arc<AtomicUsize>,
    /// Nodes with Pods that have terms about other Pods.
    with_terms: BTreeSet<NodeIndex>,
    /// Nodes that Pods are nominated to.
    with_nominations: BTreeSet<NodeIndex>,
    /// How many nominated Pods have terms about other Pods.
    nominated_terms: usize,
    /// How many placed Pods have which priority.
    priorities: BTreeMap<i32, usize>,
    owners: Owners,
    /// Namespaces' labels, for affinity terms with a namespace selector.
    namespaces: HashMap<String, Labels>,
    namespaces_generation: u64,
    topology: Topology,
}

impl Snapshot {
    /// Nodes that exist, with their places.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeIndex, &NodeInfo)> {
        self.nodes.iter().enumerate().filter(|(_, info)| info.node.is_some())
    }
    /// One more than the largest place in use.
    pub fn places(&self) -> usize {
        self.nodes.len()
    }
    pub fn node(&self, at: NodeIndex) -> Option<&NodeInfo> {
        self.nodes.get(at).filter(|info| info.node.is_some())
    }
    pub fn find(&self, name: &str) -> Option<NodeIndex> {
        self.by_name.get(name).copied()
    }
    pub fn count(&self) -> usize {
        self.known.load(Relaxed)
    }
    /// Nodes with Pods that have terms about other Pods.
    pub fn with_terms(&self) -> &BTreeSet<NodeIndex> {
        &self.with_terms
    }
    pub fn with_nominations(&self) -> &BTreeSet<NodeIndex> {
        &self.with_nominations
    }
    /// Whether a nominated Pod has terms about other Pods.
    pub fn any_nominated_terms(&self) -> bool {
        self.nominated_terms > 0
    }
    /// Whether any placed Pod is of less priority.
    pub fn any_below(&self, priority: i32) -> bool {
        self.priorities
            .first_key_value()
            .is_some_and(|(lowest, _)| *lowest < priority)
    }
    pub fn owners(&self) -> &Owners {
        &self.owners
    }
    pub fn owners_mut(&mut self) -> &mut Owners {
        &mut self.owners
    }
    pub fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces.get(namespace)
    }
    /// Changes whenever a namespace's labels do.
    pub fn namespaces_generation(&self) -> u64 {
        self.namespaces_generation
    }
    /// The name of the node at a place, known or not; empty where none is.
    pub fn name(&self, at: NodeIndex) -> &str {
        self.nodes.get(at).map_or("", |info| &info.name)
    }
    /// A placed Pod.
    pub fn pod(&self, uid: &str) -> Option<&PodInfo> {
        self.nodes.get(*self.placed.get(uid)?)?.pods.get(uid)
    }
    pub fn place_of(&self, uid: &str) -> Option<NodeIndex> {
        self.placed.get(uid).copied()
    }
    pub fn key(&self, name: &str) -> Option<KeyId> {
        self.topology.key(name)
    }
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The nodes that changed since `generation`, oldest change first; `None` if that is too long ago to tell.
    pub fn changed_since(&self, generation: u64) -> Option<impl Iterator<Item = NodeIndex>> {
        let behind = usize::try_from(self.generation.saturating_sub(generation)).ok()?;
        let from = self.log.len().checked_sub(behind)?;
        Some(self.log.range(from..).copied())
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        self.namespaces_generation += 1;
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
    }

    /// Keeps the topologies that a class speaks of.
    pub fn learn(&mut self, class: &Class) {
        for key in class.topology_keys() {
            self.learn_key(key);
        }
    }

    pub fn learn_key(&mut self, key: &str) {
        let Some(id) = self.topology.learn(key) else { return };
        for info in &mut self.nodes {
            let labels = info.node.as_ref().and_then(|node| node.metadata.labels.as_ref());
            let domain = self.topology.domain(id, labels);
            info.domains.push(domain);
        }
    }

    fn entry(&mut self, name: &str) -> NodeIndex {
        if let Some(&at) = self.by_name.get(name) {
            return at;
        }
        let name: Arc<str> = name.into();
        let mut info = NodeInfo::new(Arc::clone(&name));
        info.nodes = Arc::clone(&self.known);
        info.domains = self.topology.domains(None);
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at] = info;
                at
            }
            None => {
                self.nodes.push(info);
                self.nodes.len() - 1
            }
        };
        self.by_name.insert(name, at);
        at
    }

    fn touch(&mut self, at: NodeIndex) {
        self.generation += 1;
        self.nodes[at].generation = self.generation;
        if self.nodes[at].pods_with_terms > 0 {
            self.with_terms.insert(at);
        } else {
            self.with_terms.remove(&at);
        }
        if self.nodes[at].nominated.is_empty() {
            self.with_nominations.remove(&at);
        } else {
            self.with_nominations.insert(at);
        }
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(at);
    }

    pub fn set_node(&mut self, node: Arc<Node>) -> Option<NodeIndex> {
        let at = self.entry(node.metadata.name.as_deref()?);
        if self.nodes[at].node.is_none() {
            self.known.fetch_add(1, Relaxed);
        }
        self.hold_images(at, Some(&node));
        self.nodes[at].domains = self.topology.domains(node.metadata.labels.as_ref());
        self.nodes[at].set_node(node);
        self.touch(at);
        Some(at)
    }

    /// Forgets a node. Pods still bound to it keep their account until they go too.
    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.find(name) else { return };
        if self.nodes[at].node.take().is_some() {
            self.known.fetch_sub(1, Relaxed);
        }
        self.hold_images(at, None);
        self.nodes[at].domains = self.topology.domains(None);
        self.touch(at);
        self.drop_if_empty(at);
    }

    /// Notes which images a node holds now.
    fn hold_images(&mut self, at: NodeIndex, node: Option<&Node>) {
        let mut after: HashMap<String, Arc<Image>> = HashMap::new();
        let images = node.and_then(|node| node.status.as_ref()?.images.as_ref());
        for image in images.into_iter().flatten() {
            for name in image.names.iter().flatten() {
                if after.contains_key(name) {
                    continue;
                }
                let known = self.images.entry(name.clone()).or_insert_with(|| {
                    Arc::new(Image {
                        size: image.size_bytes.unwrap_or(0),
                        nodes: AtomicUsize::new(0),
                    })
                });
                known.nodes.fetch_add(1, Relaxed);
                after.insert(name.clone(), Arc::clone(known));
            }
        }
        let before = std::mem::replace(&mut self.nodes[at].images, Arc::new(after));
        for (name, image) in before.iter() {
            if image.nodes.fetch_sub(1, Relaxed) == 1 {
                self.images.remove(name);
            }
        }
    }

    fn drop_if_empty(&mut self, at: NodeIndex) {
        let info = &self.nodes[at];
        if info.node.is_none() && info.pods.is_empty() && info.nominated.is_empty() {
            self.by_name.remove(&info.name);
            self.free.push(at);
        }
    }

    /// Books a Pod on a node, moving it if it was booked elsewhere. Booking it twice changes nothing.
    pub fn place(&mut self, pod: PodInfo, node: &str) -> NodeIndex {
        self.learn(&pod.class);
        let at = self.entry(node);
        match self.placed.get(&pod.uid) {
            Some(&before) if before == at => {
                // Its request (resize) or its labels may have changed, or it began to leave.
                let known = self.nodes[at].pods.get_mut(&pod.uid);
                if let Some(known) = known
                    && known.class.id == pod.class.id
                    && known.leaving == pod.leaving
                    && known.started == pod.started
                {
                    *known = pod;
                    return at;
                }
            }
            Some(_) => {
                self.remove_pod(&pod.uid.clone());
            }
            None => {}
        }
        self.denominate(&pod.uid.clone());
        // What was dropped for being empty may have been this very node.
        let at = self.entry(node);
        self.placed.insert(Arc::clone(&pod.uid), at);
        *self.priorities.entry(pod.class.priority).or_default() += 1;
        if let Some(before) = self.nodes[at].add_pod(pod) {
            self.discount(&before);
        }
        self.touch(at);
        at
    }

    fn discount(&mut self, pod: &PodInfo) {
        if let Some(count) = self.priorities.get_mut(&pod.class.priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&pod.class.priority);
            }
        }
    }

    /// Unbooks a Pod; returns where it was, and the Pod.
    pub fn remove_pod(&mut self, uid: &str) -> Option<(NodeIndex, PodInfo)> {
        let at = self.placed.remove(uid)?;
        let pod = self.nodes[at].remove_pod(uid)?;
        self.discount(&pod);
        self.touch(at);
        self.drop_if_empty(at);
        Some((at, pod))
    }

    /// Gives Pods another class, where the function has one for them.
    pub fn reclassify(&mut self, mut class: impl FnMut(&PodInfo) -> Option<Arc<Class>>) {
        for at in 0..self.nodes.len() {
            let info = &mut self.nodes[at];
            let changed = info.pods.values().filter_map(|pod| {
                let class = class(pod)?;
                Some(PodInfo { class, ..pod.clone() })
            });
            let changed: Vec<PodInfo> = changed.collect();
            for pod in &mut info.nominated {
                if let Some(class) = class(pod) {
                    pod.class = class;
                }
            }
            if !changed.is_empty() {
                for pod in changed {
                    info.add_pod(pod);
                }
                self.touch(at);
            }
        }
    }

    /// Keeps room on a node for a Pod that is to come there.
    pub fn nominate(&mut self, pod: PodInfo, node: &str) -> NodeIndex {
        self.learn(&pod.class);
        self.denominate(&pod.uid.clone());
        let at = self.entry(node);
        self.nominated.insert(Arc::clone(&pod.uid), at);
        self.nominated_terms += usize::from(pod.class.has_terms());
        self.nodes[at].nominated.push(pod);
        self.touch(at);
        at
    }

    /// Keeps no room for the Pod any more; returns where it was kept.
    pub fn denominate(&mut self, uid: &str) -> Option<NodeIndex> {
        let at = self.nominated.remove(uid)?;
        let nominated = &mut self.nodes[at].nominated;
        if let Some(place) = nominated.iter().position(|pod| *pod.uid == *uid) {
            let pod = nominated.remove(place);
            self.nominated_terms -= usize::from(pod.class.has_terms());
        }
        self.touch(at);
        self.drop_if_empty(at);
        Some(at)
    }

    /// The node a Pod is nominated to.
    pub fn nomination_of(&self, uid: &str) -> Option<NodeIndex> {
        self.nominated.get(uid).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod_info};
    use serde_json::json;

    #[test]
    fn accounts_return_to_zero() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node("n1", json!({"cpu": "2", "memory": "4Gi", "pods": "10"})));
        let spec = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}], "resources": {"requests": {"cpu": "500m"}}}]});
        let pod = pod_info("p1", spec);
        let at = snapshot.place(pod.clone(), "n1");
        snapshot.place(pod, "n1");
        let info = snapshot.node(at).unwrap();
        assert_eq!(
            (info.requested.milli_cpu, info.pods.len(), info.host_ports.len()),
            (500, 1, 1)
        );
        assert_eq!(snapshot.remove_pod("p1").map(|(at, _)| at), Some(at));
        assert!(!snapshot.any_below(i32::MAX));
        let info = snapshot.node(at).unwrap();
        assert_eq!(
            (info.requested.milli_cpu, info.pods.len(), info.host_ports.len()),
            (0, 0, 0)
        );
        assert!(info.groups.is_empty());
    }

    #[test]
    fn a_pod_may_come_before_its_node_and_outlive_it() {
        let mut snapshot = Snapshot::default();
        let at = snapshot.place(pod_info("p1", json!({"containers": []})), "late");
        assert!(snapshot.node(at).is_none());
        snapshot.set_node(node("late", json!({"pods": "1"})));
        assert_eq!((snapshot.node(at).unwrap().pods.len(), snapshot.count()), (1, 1));
        snapshot.remove_node("late");
        assert_eq!(snapshot.count(), 0);
        snapshot.remove_pod("p1");
        assert_eq!(snapshot.find("late"), None);
    }

    #[test]
    fn every_change_has_its_own_generation_and_is_in_the_log() {
        let mut snapshot = Snapshot::default();
        let at = snapshot.set_node(node("n1", json!({"pods": "10"}))).unwrap();
        let first = snapshot.node(at).unwrap().generation;
        snapshot.place(pod_info("p1", json!({"containers": []})), "n1");
        assert!(snapshot.node(at).unwrap().generation > first);
        snapshot.set_node(node("n2", json!({"pods": "10"})));
        let since = |generation| snapshot.changed_since(generation).map(Iterator::collect::<Vec<_>>);
        assert_eq!(since(first), Some(vec![0, 1]));
        assert_eq!(since(snapshot.generation()), Some(vec![]));
        assert_eq!(since(0), Some(vec![0, 0, 1]));
    }

    #[test]
    fn nominations_keep_room_until_the_pod_is_placed_or_gone() {
        let mut snapshot = Snapshot::default();
        let at = snapshot.set_node(node("n1", json!({"pods": "10"}))).unwrap();
        let pod = pod_info("p1", json!({"priority": 5, "containers": []}));
        snapshot.nominate(pod.clone(), "n1");
        let with = |snapshot: &Snapshot, priority, except| {
            snapshot
                .node(at)
                .unwrap()
                .with_nominated(priority, except)
                .map(|info| info.pods.len())
        };
        assert_eq!(with(&snapshot, 5, None), Some(1));
        assert_eq!(with(&snapshot, 5, Some("p1")), None, "a Pod does not yield to itself");
        assert_eq!(with(&snapshot, 6, None), None, "the more important does not yield");
        snapshot.place(pod.clone(), "n1");
        assert_eq!(with(&snapshot, 0, None), None);
        snapshot.nominate(pod, "elsewhere");
        assert_eq!(
            snapshot.nomination_of("p1").map(|at| snapshot.name(at)),
            Some("elsewhere")
        );
        snapshot.denominate("p1");
        assert_eq!(snapshot.find("elsewhere"), None);
    }

    #[test]
    fn a_new_topology_is_read_off_all_nodes() {
        let mut snapshot = Snapshot::default();
        for (name, zone) in [("n1", "a"), ("n2", "b"), ("n3", "a")] {
            snapshot.set_node(crate::testing::node_with(
                name,
                json!({"zone": zone}),
                json!({}),
                json!({}),
            ));
        }
        assert_eq!(snapshot.key("zone"), None);
        snapshot.learn_key("zone");
        let key = snapshot.key("zone").unwrap();
        snapshot.set_node(node("n4", json!({})));
        let domains: Vec<_> = snapshot.nodes().map(|(_, info)| info.domain(key)).collect();
        assert_eq!(domains, [1, 2, 1, NOWHERE]);
    }
}
