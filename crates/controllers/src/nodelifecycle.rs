//! Watches over nodes: who is silent counts as gone, and taints say so to scheduler and Pods.
//!
//! A node is alive while its Lease is renewed or its status changes, judged by this process' clock from the moment it
//! saw the change. A silent node's conditions become `Unknown`, its Pods not ready. Conditions become `NoSchedule`
//! taints; a node that is not ready also gets the `NoExecute` taint that drives its Pods away, one node at a time, and
//! none at all while no node of the zone is well: then it is more likely the network that is down than all of them.
//!
//! Differs from upstream: one timer per node, set anew when it fires, in place of a round over all nodes every 5 s.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use sampan_client::{Change, EventType, Informer, Key, Selection, WorkQueue, or_absent};
use serde_json::json;

use crate::pods::{self, BY_NODE};
use crate::{Context, SyncError};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const ZONE: &str = "topology.kubernetes.io/zone";
/// condition, the status that taints, the taint
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The conditions that a node's agent keeps.
const AGENTS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Between two nodes whose Pods are driven away.
const EVICTION_PAUSE: SignedDuration = SignedDuration::from_secs(10);
/// The same while most of a large zone is not well.
const SLOW_PAUSE: SignedDuration = SignedDuration::from_secs(100);
/// Zones smaller than this stop evictions while most of them is not well.
const LARGE_ZONE: usize = 50;
/// Share of nodes not well from which a zone counts as disturbed.
const DISTURBED: f64 = 0.55;

/// What is known of a node beyond the API.
struct Health {
    /// When it last gave a sign of life.
    alive: Timestamp,
    /// Whether it was ready when last looked at.
    ready: bool,
}

#[derive(Default)]
struct State {
    nodes: HashMap<String, Health>,
    /// When a node's Pods were last driven away, by zone.
    evicted: HashMap<String, Timestamp>,
}

struct Lifecycle {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    queue: WorkQueue<Key>,
    state: Mutex<State>,
}

pub(crate) fn start(context: Context) {
    let nodes = context.informers.of::<Node>();
    let pods = context.informers.of::<Pod>();
    pods.add_index(BY_NODE, pods::node_keys);
    let leases = context
        .informers
        .with::<Lease>(Selection::fields("metadata.namespace=kube-node-lease"));
    let queue: WorkQueue<Key> = WorkQueue::default();
    let lifecycle = Arc::new(Lifecycle {
        context: context.clone(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        queue: queue.clone(),
        state: Mutex::default(),
    });
    let this = Arc::clone(&lifecycle);
    nodes.on_change(move |change| this.node_changed(change));
    let this = Arc::clone(&lifecycle);
    leases.on_change(move |change| {
        if let Change::Added(lease) | Change::Modified { new: lease, .. } = change {
            this.sign_of_life(&lease.name_any());
        }
    });
    let ready = async move {
        nodes.synced().await;
        pods.synced().await;
        leases.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let lifecycle = Arc::clone(&lifecycle);
        async move { lifecycle.sync(&key).await }
    });
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status == "True")
}

fn zone(node: &Node) -> String {
    node.labels().get(ZONE).cloned().unwrap_or_default()
}

impl Lifecycle {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign_of_life(&self, name: &str) {
        let now = self.context.clock.now();
        if let Some(health) = self.state().nodes.get_mut(name) {
            health.alive = now;
        }
    }

    fn node_changed(&self, change: &Change<Node>) {
        let node = change.object();
        let name = node.name_any();
        match change {
            Change::Added(_) => {
                let health = Health {
                    alive: self.context.clock.now(),
                    ready: is_ready(node),
                };
                self.state().nodes.insert(name.clone(), health);
                self.say(node, "RegisteredNode", format!("Registered Node {name} in Controller"));
            }
            Change::Modified { old, new } => {
                // What we write ourselves (conditions becoming Unknown) is no sign of life.
                let beat =
                    |node: &Node| AGENTS.map(|kind| condition(node, kind).and_then(|c| c.last_heartbeat_time.clone()));
                if beat(old) != beat(new) {
                    self.sign_of_life(&name);
                }
                if is_ready(old) != is_ready(new) {
                    self.zone_changed(node);
                }
            }
            Change::Deleted(_) => {
                self.state().nodes.remove(&name);
                self.say(node, "RemovingNode", format!("Removing Node {name} from Controller"));
            }
        }
        self.queue.add(Key::new("", name));
    }

    /// One node more or less that is well can change what happens to its neighbours.
    fn zone_changed(&self, node: &Node) {
        let wanted = zone(node);
        for neighbour in self.nodes.list() {
            if zone(&neighbour) == wanted && !is_ready(&neighbour) {
                self.queue.add(Key::of(neighbour.as_ref()));
            }
        }
    }

    fn say(&self, node: &Node, reason: &str, message: String) {
        self.context.recorder.event(node, EventType::Normal, reason, message);
    }

    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(node) = self.nodes.get_key(key) else {
            return Ok(());
        };
        let now = self.context.clock.now();
        let grace = SignedDuration::try_from(self.context.config.node_grace).unwrap_or(SignedDuration::from_secs(40));
        let Some((alive, was_ready)) = self
            .state()
            .nodes
            .get(&key.name)
            .map(|health| (health.alive, health.ready))
        else {
            return Ok(());
        };
        let left = grace - now.duration_since(alive);
        let mut node = Node::clone(&node);
        if left.is_positive() {
            self.queue.add_after(key.clone(), pods::delay(left));
        } else if let Some(status) = silent(&node, now) {
            let mut changed = node.clone();
            changed.status = Some(status);
            let api: Api<Node> = Api::all(self.context.client.clone());
            let written = api.replace_status(&key.name, &PostParams::default(), &changed).await;
            match or_absent(written)? {
                Some(written) => node = written,
                None => return Ok(()),
            }
        }
        let ready = is_ready(&node);
        if was_ready && !ready {
            self.say(
                &node,
                "NodeNotReady",
                format!("Node {} status is now: NodeNotReady", key.name),
            );
        }
        let unknown = condition(&node, "Ready").is_some_and(|c| c.status == "Unknown");
        if !ready && (was_ready || unknown) {
            self.mark_pods_not_ready(&key.name).await?;
        }
        if let Some(health) = self.state().nodes.get_mut(&key.name) {
            health.ready = ready;
        }
        self.taint(&node, now).await
    }

    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), SyncError> {
        for pod in self.pods.by_index(BY_NODE, node) {
            if !pods::is_ready(&pod) {
                continue;
            }
            let status = json!({"conditions": [{
                "type": "Ready", "status": "False", "reason": "NodeNotReady",
                "lastTransitionTime": self.context.clock.time(),
            }]});
            pods::patch_status(&self.context.client, &pod, status).await?;
            self.context
                .recorder
                .event(pod.as_ref(), EventType::Warning, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }

    async fn taint(&self, node: &Node, now: Timestamp) -> Result<(), SyncError> {
        let spec = node.spec.clone().unwrap_or_default();
        let current = spec.taints.clone().unwrap_or_default();
        let drive_away = self.may_drive_away(node, &current, now);
        let wanted = taints(node, &current, drive_away, now);
        if wanted == current {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": wanted},
        });
        let api: Api<Node> = Api::all(self.context.client.clone());
        let written = api
            .patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await;
        or_absent(written)?;
        Ok(())
    }

    /// Whether the Pods of a node that is not ready are to be driven away now.
    fn may_drive_away(&self, node: &Node, current: &[Taint], now: Timestamp) -> bool {
        if is_ready(node) || condition(node, "Ready").is_none() {
            return false;
        }
        let zone_name = zone(node);
        let (mut all, mut unwell) = (0_usize, 0_usize);
        for neighbour in self.nodes.list() {
            if zone(&neighbour) == zone_name {
                all += 1;
                // The cache may be behind what was just written about this node.
                let same = neighbour.metadata.name == node.metadata.name;
                unwell += usize::from(same || !is_ready(&neighbour));
            }
        }
        if unwell >= all {
            return false;
        }
        let under_way = current
            .iter()
            .any(|taint| taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()));
        if under_way {
            return true;
        }
        // Counts of nodes, exact in a double.
        let disturbed = unwell > 2 && unwell as f64 / all as f64 >= DISTURBED;
        let pause = match disturbed {
            false => EVICTION_PAUSE,
            true if all > LARGE_ZONE => SLOW_PAUSE,
            true => return false,
        };
        let mut state = self.state();
        let waited = state
            .evicted
            .get(&zone_name)
            .map_or(pause, |last| now.duration_since(*last));
        if waited < pause {
            let key = Key::of(node);
            self.queue.add_after(key, pods::delay(pause - waited));
            return false;
        }
        state.evicted.insert(zone_name, now);
        true
    }
}

/// The status of a node that has gone silent, unless it says so already.
fn silent(node: &Node, now: Timestamp) -> Option<k8s_openapi::api::core::v1::NodeStatus> {
    let now =
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let mut status = node.status.clone().unwrap_or_default();
    let conditions = status.conditions.get_or_insert_default();
    let mut changed = false;
    for kind in AGENTS {
        match conditions.iter_mut().find(|known| known.type_ == kind) {
            Some(known) if known.status == "Unknown" => {}
            Some(known) => {
                known.status = "Unknown".into();
                known.reason = Some("NodeStatusUnknown".into());
                known.message = Some("Kubelet stopped posting node status.".into());
                known.last_transition_time = Some(now.clone());
                changed = true;
            }
            None => {
                conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(now.clone()),
                });
                changed = true;
            }
        }
    }
    changed.then_some(status)
}

/// The taints a node should have: other people's as they are, ours as its conditions say.
fn taints(node: &Node, current: &[Taint], drive_away: bool, now: Timestamp) -> Vec<Taint> {
    let is = |kind: &str, status: &str| condition(node, kind).is_some_and(|c| c.status == status);
    let mut wanted: Vec<(&str, &str)> = BY_CONDITION
        .iter()
        .filter(|(kind, status, _)| is(kind, status))
        .map(|(_, _, taint)| (*taint, "NoSchedule"))
        .collect();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    if drive_away {
        let key = if is("Ready", "Unknown") { UNREACHABLE } else { NOT_READY };
        wanted.push((key, "NoExecute"));
    }
    // A node that has not said anything yet keeps what it was born with.
    let silent_yet = condition(node, "Ready").is_none();
    let ours = |taint: &Taint| {
        let by_condition = BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key);
        match taint.effect.as_str() {
            "NoSchedule" => (by_condition && !silent_yet) || taint.key == UNSCHEDULABLE,
            "NoExecute" => (taint.key == NOT_READY || taint.key == UNREACHABLE) && !silent_yet,
            _ => false,
        }
    };
    let is_wanted = |taint: &Taint| {
        wanted
            .iter()
            .any(|(key, effect)| *key == taint.key && *effect == taint.effect)
    };
    let mut result: Vec<Taint> = current
        .iter()
        .filter(|taint| !ours(taint) || is_wanted(taint))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !result.iter().any(|taint| taint.key == key && taint.effect == effect) {
            result.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Timestamp::from_second(now.as_second())
                    .ok()
                    .map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time),
            });
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use kube::api::ObjectMeta;
    use sampan_client::Clock;
    use sampan_client::testing::eventually;

    use super::*;
    use crate::testing::{Cluster, set_ready};

    fn node(name: &str, conditions: &[(&str, &str)]) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.status.get_or_insert_default().conditions = Some(
            conditions
                .iter()
                .map(|(kind, status)| NodeCondition {
                    type_: (*kind).into(),
                    status: (*status).into(),
                    ..Default::default()
                })
                .collect(),
        );
        node
    }

    fn keys(taints: &[Taint]) -> Vec<String> {
        taints
            .iter()
            .map(|taint| format!("{}:{}", taint.key.rsplit('/').next().unwrap(), taint.effect))
            .collect()
    }

    #[test]
    fn conditions_become_taints_and_go_again() {
        let other = Taint {
            key: "mine".into(),
            effect: "NoExecute".into(),
            ..Default::default()
        };
        let now = Timestamp::UNIX_EPOCH;
        let bad = node("n", &[("Ready", "Unknown"), ("DiskPressure", "True")]);
        let tainted = taints(&bad, std::slice::from_ref(&other), true, now);
        assert_eq!(
            keys(&tainted),
            [
                "mine:NoExecute",
                "unreachable:NoSchedule",
                "disk-pressure:NoSchedule",
                "unreachable:NoExecute"
            ]
        );
        let good = node("n", &[("Ready", "True"), ("DiskPressure", "False")]);
        assert_eq!(taints(&good, &tainted, false, now), [other]);
        let mut cordoned = good.clone();
        cordoned.spec.get_or_insert_default().unschedulable = Some(true);
        assert_eq!(keys(&taints(&cordoned, &[], false, now)), ["unschedulable:NoSchedule"]);
    }

    fn renew(cluster: &Cluster, node: &str) {
        cluster.api.change::<Lease>("kube-node-lease", node, |lease| {
            lease.spec.get_or_insert_default().renew_time = Some(cluster.clock.micro_time());
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_told_from_the_living() {
        let cluster = Cluster::start(&["node-lifecycle-controller"]);
        let api = &cluster.api;
        for name in ["silent", "alive"] {
            api.create(&Lease {
                metadata: ObjectMeta {
                    name: Some(name.into()),
                    namespace: Some("kube-node-lease".into()),
                    ..Default::default()
                },
                spec: Some(LeaseSpec::default()),
            });
            api.create(&node(name, &[("Ready", "True")]));
        }
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("ns".into());
        pod.spec.get_or_insert_default().node_name = Some("silent".into());
        set_ready(&mut pod, true, cluster.clock.time());
        api.create(&pod);
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            renew(&cluster, "alive");
        }
        let taints_of = |name: &str| {
            let node: Node = api.get("", name).unwrap();
            keys(&node.spec.unwrap_or_default().taints.unwrap_or_default())
        };
        eventually("the silent one is tainted", || async {
            (taints_of("silent") == ["unreachable:NoSchedule", "unreachable:NoExecute"]).then_some(())
        })
        .await;
        let silent: Node = api.get("", "silent").unwrap();
        assert_eq!(condition(&silent, "Ready").unwrap().status, "Unknown");
        assert!(taints_of("alive").is_empty());
        eventually("its Pod is not ready", || async {
            (!pods::is_ready(&api.get::<Pod>("ns", "p")?)).then_some(())
        })
        .await;

        // The other one dies too: nobody is left to move to, so nobody is driven away.
        tokio::time::sleep(Duration::from_secs(60)).await;
        eventually("only scheduling is off", || async {
            (taints_of("silent") == ["unreachable:NoSchedule"] && taints_of("alive") == ["unreachable:NoSchedule"])
                .then_some(())
        })
        .await;

        // Back to life.
        renew(&cluster, "alive");
        api.change::<Node>("", "alive", |node| {
            let ready = &mut node.status.as_mut().unwrap().conditions.as_mut().unwrap()[0];
            ready.status = "True".into();
            ready.last_heartbeat_time = Some(cluster.clock.time());
        });
        eventually("it is free again", || async {
            taints_of("alive").is_empty().then_some(())
        })
        .await;
    }
}
