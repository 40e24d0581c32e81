//! A Pod as the scheduler sees it, and its class.
//!
//! Pods that ask for the same things are one [`Class`]: whatever is learned about one holds for all of them, so a
//! thousand equal Pods are examined once per change of the cluster, not once each. Of their labels only those count that
//! some selector reads ([`crate::classes`]).

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    NodeSelector, Pod, PodAffinityTerm, PreferredSchedulingTerm, Toleration, TopologySpreadConstraint, Volume,
    WeightedPodAffinityTerm,
};
use sha2::{Digest, Sha256};

use crate::labels::Labels;
use crate::owners::OwnerKind;
use crate::plugins::dynamic_resources;
use crate::plugins::images::normalized;
use crate::plugins::node::named_nodes;
use crate::resources::{Resources, pod_requests};

/// A port a Pod wants of its node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: String,
    /// Empty or `0.0.0.0`: all addresses.
    pub address: String,
    pub port: i32,
}

impl HostPort {
    /// Two wishes clash when port and protocol agree and either wants all addresses or both the same.
    pub fn clashes(&self, other: &HostPort) -> bool {
        let all = |address: &str| address.is_empty() || address == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (all(&self.address) || all(&other.address) || self.address == other.address)
    }
}

/// An affinity term with its defaults resolved.
#[derive(Clone, Debug)]
pub struct AffinityTerm {
    pub term: PodAffinityTerm,
    /// Empty with an absent namespace selector: the Pod's own namespace (already filled in).
    pub namespaces: Vec<String>,
}

impl AffinityTerm {
    fn new(term: &PodAffinityTerm, namespace: &str) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        AffinityTerm {
            term: term.clone(),
            namespaces,
        }
    }

    /// Whether the term speaks of a Pod with these labels in this namespace.
    /// An empty namespace selector means all namespaces; others are decided by `namespace_labels`.
    pub fn speaks_of<'a>(
        &self,
        namespace: &str,
        labels: &Labels,
        namespace_labels: impl Fn(&str) -> Option<&'a Labels>,
    ) -> bool {
        let here = self.namespaces.iter().any(|name| name == namespace)
            || self.term.namespace_selector.as_ref().is_some_and(|selector| {
                let none = Labels::new();
                crate::labels::selects(Some(selector), namespace_labels(namespace).unwrap_or(&none))
            });
        here && crate::labels::selects(self.term.label_selector.as_ref(), labels)
    }
}

/// What a class of Pods asks for. Everything a plugin may look at is here.
#[derive(Clone, Debug)]
pub struct Class {
    pub id: ClassId,
    /// Equal for classes that differ in nothing node plugins look at, which is all but labels, namespace and wishes about
    /// other Pods. (The namespace counts where volumes or claims are named.)
    pub shape: ClassId,
    /// Equal for classes that differ in labels alone.
    base: ClassId,
    pub namespace: String,
    /// Those that may matter; see [`crate::classes`].
    pub labels: Labels,
    pub priority: i32,
    pub requests: Resources,
    /// As scoring assumes them.
    pub assumed: Resources,
    pub node_name: Option<String>,
    pub node_selector: Labels,
    pub required_nodes: Option<NodeSelector>,
    pub preferred_nodes: Vec<PreferredSchedulingTerm>,
    pub tolerations: Vec<Toleration>,
    pub host_ports: Vec<HostPort>,
    /// Of all containers and image volumes, with their tags.
    pub images: Vec<String>,
    /// How many containers there are, with those that run first.
    pub containers: usize,
    pub affinity: Vec<AffinityTerm>,
    pub anti_affinity: Vec<AffinityTerm>,
    pub preferred_affinity: Vec<(i32, AffinityTerm)>,
    pub preferred_anti_affinity: Vec<(i32, AffinityTerm)>,
    pub spread: Vec<TopologySpreadConstraint>,
    /// The scheduler it names.
    pub scheduler: String,
    /// It waits however important it is.
    pub never_preempts: bool,
    /// The only nodes its required affinity can mean; see [`crate::plugins::node::named_nodes`].
    pub only_nodes: Option<BTreeSet<String>>,
    /// The workload that controls it, if spreading by default may concern it.
    pub owner: Option<(OwnerKind, String)>,
    /// The volumes that plugins may have to find a place for.
    pub volumes: Vec<Volume>,
    /// The claims of devices it asks for.
    pub claims: Vec<dynamic_resources::Asked>,
    /// Its name and uid, where those decide which claims are meant (volumes made for the Pod alone, devices).
    pub pod: Option<(String, String)>,
}

/// Equal for Pods that the scheduler cannot tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId([u8; 16]);

impl From<Sha256> for ClassId {
    fn from(digest: Sha256) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&digest.finalize()[..16]);
        ClassId(id)
    }
}

/// Digests what is written to it.
struct Digester(Sha256);

impl fmt::Write for Digester {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

/// One Pod, with its class.
#[derive(Clone, Debug)]
pub struct PodInfo {
    pub uid: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub class: Arc<Class>,
    /// All its labels.
    pub labels: Arc<Labels>,
    /// Of its specification.
    pub generation: i64,
    /// Its condition says already that it waits.
    pub told: bool,
    /// When its node took it on, in seconds.
    pub started: Option<i64>,
    /// Its deletion has begun.
    pub leaving: bool,
    /// It was sent away to make room and has not left yet.
    pub preempted: bool,
}

impl PartialEq for PodInfo {
    fn eq(&self, other: &Self) -> bool {
        self.uid == other.uid
    }
}
impl Eq for PodInfo {}
impl Hash for PodInfo {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.uid.hash(state);
    }
}

impl Class {
    /// Whether the answer for one node depends on Pods elsewhere, so that it cannot be remembered per node.
    pub fn looks_beyond_the_node(&self) -> bool {
        !(self.affinity.is_empty()
            && self.anti_affinity.is_empty()
            && self.preferred_affinity.is_empty()
            && self.preferred_anti_affinity.is_empty()
            && self.spread.is_empty())
    }

    /// Whether it has terms about other Pods, which bind or draw others too.
    pub fn has_terms(&self) -> bool {
        !(self.affinity.is_empty()
            && self.anti_affinity.is_empty()
            && self.preferred_affinity.is_empty()
            && self.preferred_anti_affinity.is_empty())
    }

    /// The topology keys its terms and constraints name.
    pub fn topology_keys(&self) -> impl Iterator<Item = &str> {
        let terms = self.terms().map(|term| term.term.topology_key.as_str());
        terms.chain(self.spread.iter().map(|constraint| constraint.topology_key.as_str()))
    }

    fn terms(&self) -> impl Iterator<Item = &AffinityTerm> {
        let required = self.affinity.iter().chain(&self.anti_affinity);
        let preferred = self.preferred_affinity.iter().chain(&self.preferred_anti_affinity);
        required.chain(preferred.map(|(_, term)| term))
    }

    /// The keys of Pods' labels that its terms and constraints read.
    pub fn label_keys(&self) -> impl Iterator<Item = &str> {
        let of_terms = self.terms().filter_map(|term| term.term.label_selector.as_ref());
        let of_spreads = self.spread.iter().filter_map(|spread| spread.label_selector.as_ref());
        let matched = self.spread.iter().filter_map(|spread| spread.match_label_keys.as_ref());
        let selected = of_terms.chain(of_spreads).flat_map(crate::labels::keys);
        selected.chain(matched.flatten().map(String::as_str))
    }

    /// The class of a Pod. Everything that any plugin reads takes part in the identity; of the labels, all.
    pub fn of(pod: &Pod) -> Class {
        Class::without_labels(pod).labelled(pod.metadata.labels.clone().unwrap_or_default())
    }

    /// The class of Pods that ask for the same and have these labels.
    pub fn labelled(self, labels: Labels) -> Class {
        Class {
            id: self.id_with(&labels),
            labels,
            ..self
        }
    }

    /// The identity of [`Class::labelled`].
    pub fn id_with(&self, labels: &Labels) -> ClassId {
        let mut digest = Digester(Sha256::new_with_prefix(self.base.0));
        // Writing into a digest cannot fail.
        let _ = write!(digest, "{labels:?}");
        ClassId::from(digest.0)
    }

    /// What a Pod asks for, whatever its labels.
    pub fn without_labels(pod: &Pod) -> Class {
        let default = Default::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let (requests, assumed) = pod_requests(pod);
        let affinity = spec.affinity.as_ref();
        let node_affinity = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
        let pod_affinity = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let pod_anti_affinity = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let required = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<_> {
            terms
                .into_iter()
                .flatten()
                .map(|term| AffinityTerm::new(term, &namespace))
                .collect()
        };
        let weighted = |terms: Option<&Vec<WeightedPodAffinityTerm>>| -> Vec<_> {
            let terms = terms.into_iter().flatten();
            terms
                .map(|term| (term.weight, AffinityTerm::new(&term.pod_affinity_term, &namespace)))
                .collect()
        };
        let mut host_ports: Vec<_> = spec
            .containers
            .iter()
            .chain(
                spec.init_containers
                    .iter()
                    .flatten()
                    .filter(|container| container.restart_policy.as_deref() == Some("Always")),
            )
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| {
                let number = port.host_port.filter(|&number| number > 0)?;
                Some(HostPort {
                    protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                    address: port.host_ip.clone().unwrap_or_default(),
                    port: number,
                })
            })
            .collect();
        host_ports.sort();
        let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let volumes = spec.volumes.iter().flatten();
        let images = containers()
            .filter_map(|container| container.image.as_deref())
            .chain(volumes.filter_map(|volume| volume.image.as_ref()?.reference.as_deref()))
            .map(normalized)
            .collect();
        let claims = dynamic_resources::asked(pod);
        let mut class = Class {
            id: ClassId::default(),
            shape: ClassId::default(),
            base: ClassId::default(),
            priority: spec.priority.unwrap_or(0),
            requests,
            assumed,
            node_name: None,
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            required_nodes: node_affinity
                .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.clone()),
            preferred_nodes: node_affinity
                .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.clone())
                .unwrap_or_default(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            host_ports,
            images,
            containers: containers().count(),
            affinity: required(
                pod_affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: required(
                pod_anti_affinity
                    .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred_affinity: weighted(
                pod_affinity
                    .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred_anti_affinity: weighted(
                pod_anti_affinity
                    .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            spread: spec.topology_spread_constraints.clone().unwrap_or_default(),
            scheduler: scheduler_of(pod).to_owned(),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            only_nodes: named_nodes(
                node_affinity
                    .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            pod: spec
                .volumes
                .iter()
                .flatten()
                .any(|volume| volume.ephemeral.is_some())
                .max(!claims.is_empty())
                .then(|| {
                    let text = |part: &Option<String>| part.clone().unwrap_or_default();
                    (text(&pod.metadata.name), text(&pod.metadata.uid))
                }),
            volumes: spec
                .volumes
                .iter()
                .flatten()
                .filter(|volume| needs_a_place(volume))
                .cloned()
                .collect(),
            claims,
            owner: owner(pod),
            namespace,
            labels: Labels::new(),
        };
        class.identify();
        // Where a Pod is is not what it asks for: it stays of the same class when it is bound.
        class.node_name = spec.node_name.clone().filter(|name| !name.is_empty());
        class
    }

    /// Debug output is deterministic (all maps are ordered), and naming every field here keeps it from falling behind.
    fn identify(&mut self) {
        let Class {
            id: _,
            shape: _,
            base: _,
            labels: _,
            node_name: _,
            namespace,
            priority,
            requests,
            assumed,
            node_selector,
            required_nodes,
            preferred_nodes,
            tolerations,
            host_ports,
            images,
            containers,
            affinity,
            anti_affinity,
            preferred_affinity,
            preferred_anti_affinity,
            spread,
            scheduler,
            never_preempts,
            only_nodes,
            volumes,
            claims,
            owner,
            pod,
        } = &*self;
        let mut digest = Digester(Sha256::new());
        let asked = (
            priority,
            requests,
            assumed,
            node_selector,
            required_nodes,
            preferred_nodes,
        );
        let more = (tolerations, host_ports, images, containers, scheduler, never_preempts);
        let named = (only_nodes, volumes, claims, pod);
        // Writing into a digest cannot fail.
        let _ = write!(digest, "{asked:?}{more:?}{named:?}");
        if !volumes.is_empty() || !claims.is_empty() {
            let _ = write!(digest, "{namespace}");
        }
        let shape = ClassId::from(digest.0.clone());
        let terms = (affinity, anti_affinity, preferred_affinity, preferred_anti_affinity);
        let _ = write!(digest, "{:?}{terms:?}", (namespace, spread, owner));
        (self.shape, self.base) = (shape, ClassId::from(digest.0));
        self.id = self.id_with(&self.labels);
    }
}

/// Whether where a volume is matters for where its Pod can be.
fn needs_a_place(volume: &Volume) -> bool {
    volume.persistent_volume_claim.is_some()
        || volume.ephemeral.is_some()
        || volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.azure_disk.is_some()
        || volume.iscsi.is_some()
        || volume.rbd.is_some()
}

/// The scheduler a Pod names.
pub fn scheduler_of(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.scheduler_name.as_deref())
        .filter(|name| !name.is_empty())
        .unwrap_or("default-scheduler")
}

impl PodInfo {
    /// `None` for an object without a uid, which no API server serves.
    pub fn of(pod: &Pod, class: Arc<Class>) -> Option<PodInfo> {
        let status = pod.status.as_ref();
        let mut conditions = status
            .and_then(|status| status.conditions.as_ref())
            .into_iter()
            .flatten();
        let preempted = conditions.any(|condition| {
            condition.type_ == "DisruptionTarget"
                && condition.status == "True"
                && condition.reason.as_deref() == Some("PreemptionByScheduler")
        });
        Some(PodInfo {
            uid: pod.metadata.uid.as_deref()?.into(),
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default().into(),
            name: pod.metadata.name.as_deref()?.into(),
            class,
            labels: Arc::new(pod.metadata.labels.clone().unwrap_or_default()),
            generation: pod.metadata.generation.unwrap_or(0),
            told: status
                .and_then(|status| status.conditions.as_ref())
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "PodScheduled" && condition.status == "False"),
            started: status
                .and_then(|status| status.start_time.as_ref())
                .map(|time| time.0.as_second()),
            leaving: pod.metadata.deletion_timestamp.is_some(),
            preempted: preempted && pod.metadata.deletion_timestamp.is_some(),
        })
    }
}

/// The controller of a Pod without constraints of its own, if it is of a kind that spreading by default looks at.
fn owner(pod: &Pod) -> Option<(OwnerKind, String)> {
    let spread = pod.spec.as_ref()?.topology_spread_constraints.iter().flatten().next();
    if spread.is_some() {
        return None;
    }
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    Some((OwnerKind::of(&owner.api_version, &owner.kind)?, owner.name.clone()))
}

/// Whether a Pod no longer uses its node's resources.
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn class(spec: serde_json::Value, name: &str) -> Class {
        Class::of(
            &serde_json::from_value(json!({"metadata": {"name": name, "namespace": "a", "uid": name}, "spec": spec}))
                .unwrap(),
        )
    }

    #[test]
    fn equal_wishes_make_one_class_and_any_difference_another() {
        let base = json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}}]});
        assert_eq!(class(base.clone(), "x").id, class(base.clone(), "y").id);
        for (path, value) in [
            ("/nodeSelector", json!({"a": "b"})),
            ("/priority", json!(7)),
            ("/tolerations", json!([{"operator": "Exists"}])),
            (
                "/topologySpreadConstraints",
                json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]),
            ),
        ] {
            let mut other = base.clone();
            other[path.trim_start_matches('/')] = value;
            assert_ne!(class(base.clone(), "x").id, class(other, "x").id, "{path}");
        }
    }

    #[test]
    fn being_bound_does_not_change_the_class() {
        let waiting = json!({"containers": [{"name": "c"}]});
        let mut bound = waiting.clone();
        bound["nodeName"] = "n1".into();
        let (waiting, bound) = (class(waiting, "x"), class(bound, "x"));
        assert_eq!(waiting.id, bound.id);
        assert_eq!(bound.node_name.as_deref(), Some("n1"));
    }

    #[test]
    fn host_ports_clash_by_address() {
        let port = |address: &str, port| HostPort {
            protocol: "TCP".into(),
            address: address.into(),
            port,
        };
        assert!(port("", 80).clashes(&port("127.0.0.1", 80)));
        assert!(!port("127.0.0.2", 80).clashes(&port("127.0.0.1", 80)));
        assert!(!port("", 80).clashes(&port("", 81)));
    }
}
