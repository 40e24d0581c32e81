//! The cluster as the scheduler keeps it: one account per node, changed in place by events.
//!
//! Nothing here is ever rebuilt from lists. Every change of a node's account gives it a new generation, so that an
//! answer remembered for (class, node) is known to hold by comparing one number.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use k8s_openapi::api::core::v1::Node;

use crate::labels::Labels;
use crate::pod::{HostPort, PodInfo};
use crate::resources::Resources;

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
    pub host_ports: Vec<HostPort>,
    /// How many of the Pods have terms about other Pods, which bind or draw every newcomer.
    pub pods_with_terms: usize,
    /// By name.
    pub images: HashMap<String, Arc<Image>>,
    /// How many nodes there are, this one included.
    pub nodes: Arc<AtomicUsize>,
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
            host_ports: Vec::new(),
            pods_with_terms: 0,
            images: HashMap::new(),
            nodes: Arc::default(),
            generation: 0,
        }
    }

    pub fn labels(&self) -> Option<&Labels> {
        self.node.as_ref()?.metadata.labels.as_ref()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
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

    pub(crate) fn add_pod(&mut self, pod: PodInfo) {
        let class = Arc::clone(&pod.class);
        if self.pods.insert(Arc::clone(&pod.uid), pod).is_some() {
            return;
        }
        self.requested.add(&class.requests);
        self.assumed.add(&class.assumed);
        self.host_ports.extend(class.host_ports.iter().cloned());
        self.pods_with_terms += usize::from(class.has_terms());
    }

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
        Some(pod)
    }
}

/// All nodes, and where each placed Pod is.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<Arc<str>, NodeIndex>,
    placed: HashMap<Arc<str>, NodeIndex>,
    free: Vec<NodeIndex>,
    generation: u64,
    /// All images that nodes hold, by name.
    images: HashMap<String, Arc<Image>>,
    /// How many nodes there are, for those who only see one of them.
    known: Arc<AtomicUsize>,
    /// Namespaces' labels, for affinity terms with a namespace selector.
    namespaces: HashMap<String, Labels>,
}

impl Snapshot {
    /// Nodes that exist, with their places.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeIndex, &NodeInfo)> {
        self.nodes.iter().enumerate().filter(|(_, info)| info.node.is_some())
    }
    /// The name of the node at a place, known or not; empty where none is.
    pub fn name(&self, at: NodeIndex) -> &str {
        self.nodes.get(at).map_or("", |info| &info.name)
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
        self.nodes().count()
    }
    /// Whether any Pod anywhere has terms about other Pods.
    pub fn any_terms(&self) -> bool {
        self.nodes.iter().any(|info| info.pods_with_terms > 0)
    }
    pub fn namespace_labels(&self, namespace: &str) -> Option<Labels> {
        self.namespaces.get(namespace).cloned()
    }
    pub fn place_of(&self, uid: &str) -> Option<NodeIndex> {
        self.placed.get(uid).copied()
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
    }

    fn entry(&mut self, name: &str) -> NodeIndex {
        if let Some(&at) = self.by_name.get(name) {
            return at;
        }
        let name: Arc<str> = name.into();
        let mut info = NodeInfo::new(Arc::clone(&name));
        info.nodes = Arc::clone(&self.known);
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
    }

    pub fn set_node(&mut self, node: Arc<Node>) -> Option<NodeIndex> {
        let at = self.entry(node.metadata.name.as_deref()?);
        if self.nodes[at].node.is_none() {
            self.known.fetch_add(1, Relaxed);
        }
        self.hold_images(at, Some(&node));
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
        self.touch(at);
        self.drop_if_empty(at);
    }

    /// Notes which images a node holds now.
    fn hold_images(&mut self, at: NodeIndex, node: Option<&Node>) {
        let before = std::mem::take(&mut self.nodes[at].images);
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
        for (name, image) in before {
            if image.nodes.fetch_sub(1, Relaxed) == 1 {
                self.images.remove(&name);
            }
        }
        self.nodes[at].images = after;
    }

    fn drop_if_empty(&mut self, at: NodeIndex) {
        let info = &self.nodes[at];
        if info.node.is_none() && info.pods.is_empty() {
            self.by_name.remove(&info.name);
            self.free.push(at);
        }
    }

    /// Books a Pod on a node, moving it if it was booked elsewhere. Booking it twice changes nothing.
    pub fn place(&mut self, pod: PodInfo, node: &str) -> NodeIndex {
        let at = self.entry(node);
        match self.placed.get(&pod.uid) {
            Some(&before) if before == at => {
                // The request may have changed in place (resize).
                if self.nodes[at]
                    .pods
                    .get(&pod.uid)
                    .is_some_and(|known| known.class.id == pod.class.id)
                {
                    // The account is the same; when it started or that it leaves may be new.
                    self.nodes[at].pods.insert(Arc::clone(&pod.uid), pod);
                    return at;
                }
                self.nodes[at].remove_pod(&pod.uid);
            }
            Some(_) => {
                self.remove_pod(&pod.uid.clone());
            }
            None => {}
        }
        self.placed.insert(Arc::clone(&pod.uid), at);
        self.nodes[at].add_pod(pod);
        self.touch(at);
        at
    }

    /// Puts another account in a node's place, for a dry run that puts this one back: nothing else takes notice.
    pub(crate) fn exchange(&mut self, at: NodeIndex, account: NodeInfo) -> Option<NodeInfo> {
        let place = self.nodes.get_mut(at)?;
        Some(std::mem::replace(place, account))
    }

    /// Unbooks a Pod; returns where it was.
    pub fn remove_pod(&mut self, uid: &str) -> Option<NodeIndex> {
        let at = self.placed.remove(uid)?;
        self.nodes[at].remove_pod(uid);
        self.touch(at);
        self.drop_if_empty(at);
        Some(at)
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
        assert_eq!(snapshot.remove_pod("p1"), Some(at));
        let info = snapshot.node(at).unwrap();
        assert_eq!(
            (info.requested.milli_cpu, info.pods.len(), info.host_ports.len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_pod_may_come_before_its_node_and_outlive_it() {
        let mut snapshot = Snapshot::default();
        let at = snapshot.place(pod_info("p1", json!({"containers": []})), "late");
        assert!(snapshot.node(at).is_none());
        snapshot.set_node(node("late", json!({"pods": "1"})));
        assert_eq!(snapshot.node(at).unwrap().pods.len(), 1);
        snapshot.remove_node("late");
        assert_eq!(snapshot.count(), 0);
        snapshot.remove_pod("p1");
        assert_eq!(snapshot.find("late"), None);
    }

    #[test]
    fn every_change_has_its_own_generation() {
        let mut snapshot = Snapshot::default();
        let at = snapshot.set_node(node("n1", json!({"pods": "10"}))).unwrap();
        let first = snapshot.node(at).unwrap().generation;
        snapshot.place(pod_info("p1", json!({"containers": []})), "n1");
        assert!(snapshot.node(at).unwrap().generation > first);
    }
}
