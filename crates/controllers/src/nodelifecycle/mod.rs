//! Watches over nodes: who is silent counts as gone, and taints say so to scheduler and Pods.
//!
//! A node is alive while its Lease is renewed or its status posted, judged by this process' steady clock from the moment
//! it saw that: what times stand in the objects, and what becomes of the time of day here or there, does not matter. A
//! silent node's conditions become `Unknown`, its Pods not ready. Conditions become `NoSchedule` taints at once; the
//! `NoExecute` taint, which drives Pods away, waits for the node's turn in its zone ([`zones`]). What an object should
//! say is in [`health`].
//!
//! Differs from upstream: one timer per node, set anew when it fires, in place of a round over all nodes every 5 s. While
//! nobody at all has been heard of for half a grace period nobody's turn comes, for then all will turn out to be silent.
//! A restarted controller leaves taints that still hold as they are, so that Pods' patience does not begin again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use sampan_client::{Change, EventType, Informer, Key, Selection, WorkQueue, or_absent};
use serde_json::json;
use tokio::time::Instant;

use crate::metrics::{EVICTIONS, NODE_HEALTH, ZONE_HEALTH, ZONE_SIZE, ZONE_UNHEALTHY};
use crate::pods::{self, BY_NODE};
use crate::{Context, SyncError};

mod health;
#[cfg(test)]
mod tests;
mod zones;

use health::{condition, is_ready};
use zones::{Shift, Turn, Zones};

/// Keys of zones are in this namespace, which no Pod can be in; those of nodes are in none.
const ZONE: &str = ":zone";

/// What is known of a node beyond the API.
struct Health {
    /// When it last gave a sign of life.
    alive: Instant,
    /// Its Pods are to be marked as not ready.
    mark_pods: bool,
}

struct State {
    nodes: HashMap<String, Health>,
    zones: Zones,
    /// When any node last gave a sign of life.
    heard: Instant,
    /// Turns have been held back because nobody was heard of.
    held: bool,
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
        state: Mutex::new(State {
            nodes: HashMap::new(),
            zones: Zones::new(context.config.nodes),
            heard: Instant::now(),
            held: false,
        }),
    });
    let this = Arc::clone(&lifecycle);
    nodes.on_change(move |change| this.node_changed(change));
    let this = Arc::clone(&lifecycle);
    pods.on_change(move |change| this.pod_changed(change));
    let this = Arc::clone(&lifecycle);
    leases.on_change(move |change| {
        let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let lease = change.object();
        // Any other time is a renewal: the node's clock may have been set back.
        let alive =
            !matches!(change, Change::Deleted(_)) && change.old().is_none_or(|old| renewed(old) != renewed(lease));
        if alive {
            this.sign_of_life(&lease.name_any());
        }
    });
    let this = Arc::clone(&lifecycle);
    let ready = async move {
        nodes.synced().await;
        pods.synced().await;
        leases.synced().await;
        let shift = this.state().zones.complete();
        this.shifted(shift);
    };
    context.run(&queue, ready, move |key| {
        let lifecycle = Arc::clone(&lifecycle);
        async move {
            match key.namespace.as_str() {
                "" => {
                    let began = Instant::now();
                    let done = lifecycle.sync(&key).await;
                    lifecycle.context.metrics().took(&NODE_HEALTH, &[], began.elapsed());
                    done
                }
                ZONE => {
                    lifecycle.give_turns(&key);
                    Ok(())
                }
                _ => lifecycle.sync_pod(&key).await,
            }
        }
    });
}

fn zone_key(zone: &str) -> Key {
    Key::new(ZONE, zone)
}

impl Lifecycle {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign_of_life(&self, name: &str) {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(health) = state.nodes.get_mut(name) {
            health.alive = now;
            state.heard = now;
        }
        if std::mem::take(&mut state.held) {
            self.look_at_zones(&state);
        }
    }

    fn look_at_zones(&self, state: &State) {
        for zone in state.zones.in_demand() {
            self.queue.add(zone_key(&zone));
        }
    }

    fn node_changed(&self, change: &Change<Node>) {
        let node = change.object();
        let name = node.name_any();
        match change {
            Change::Added(_) => {
                let now = Instant::now();
                let health = Health {
                    alive: now,
                    mark_pods: condition(node, "Ready").is_some() && !is_ready(node),
                };
                let mut state = self.state();
                state.nodes.insert(name.clone(), health);
                state.heard = now;
                drop(state);
                let said = format!("Node {name} event: Registered Node {name} in Controller");
                self.say(node, "RegisteredNode", said);
            }
            Change::Modified { old, new } => {
                if health::has_spoken(old, new) {
                    self.sign_of_life(&name);
                }
            }
            Change::Deleted(_) => {
                self.state().nodes.remove(&name);
                let said = format!("Node {name} event: Removing Node {name} from Controller");
                self.say(node, "RemovingNode", said);
            }
        }
        let zone = zones::zone_of(node);
        let stands = |node: &Node| (zones::zone_of(node), is_ready(node), zones::counts(node));
        let same = !matches!(change, Change::Deleted(_)) && change.old().is_some_and(|old| stands(old) == stands(node));
        let mut state = self.state();
        let shift = match change {
            Change::Deleted(_) => state.zones.forget(&name),
            _ => state.zones.observe(&name, &zone, is_ready(node), zones::counts(node)),
        };
        if !same {
            self.count_zone(&state.zones, &zone);
            if let Some(old) = change.old().map(|old| zones::zone_of(old)).filter(|old| *old != zone) {
                self.count_zone(&state.zones, &old);
            }
        }
        // One node more or less that is well can change what happens to its neighbours.
        self.look_at_zones(&state);
        drop(state);
        self.shifted(shift);
        self.queue.add(Key::new("", name));
    }

    fn count_zone(&self, zones: &Zones, zone: &str) {
        let metrics = self.context.metrics();
        match zones.figures(zone) {
            Some((nodes, unwell)) => {
                metrics.set(&ZONE_SIZE, &[zone], nodes as f64);
                metrics.set(&ZONE_UNHEALTHY, &[zone], unwell as f64);
                let well = if nodes == 0 {
                    100.0
                } else {
                    (100 * (nodes - unwell)) as f64 / nodes as f64
                };
                metrics.set(&ZONE_HEALTH, &[zone], well);
                metrics.add(&EVICTIONS, &[zone], 0);
            }
            None => {
                for family in [&ZONE_SIZE, &ZONE_UNHEALTHY, &ZONE_HEALTH] {
                    metrics.forget(family, &[zone]);
                }
            }
        }
    }

    /// A Pod that comes to a node which is not well is not ready, whatever it brought along.
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let moved = !matches!(change, Change::Deleted(_))
            && change
                .old()
                .is_none_or(|old| pods::node_name(old) != pods::node_name(pod));
        if moved && pods::is_ready(pod) && self.is_unwell(pods::node_name(pod)) {
            self.queue.add(Key::of(pod.as_ref()));
        }
    }

    fn is_unwell(&self, node: &str) -> bool {
        let node = self.nodes.get("", node);
        node.is_some_and(|node| condition(&node, "Ready").is_some() && !is_ready(&node))
    }

    /// What becomes of everybody when no node is well any more, or some are again.
    fn shifted(&self, shift: Shift) {
        match shift {
            Shift::Nothing => return,
            Shift::AllUnwell => tracing::warn!("no node is well: nobody is driven away until one is"),
            Shift::Recovered => {
                tracing::info!("some nodes are well again");
                let now = Instant::now();
                let mut state = self.state();
                state.heard = now;
                for health in state.nodes.values_mut() {
                    health.alive = now;
                }
                self.look_at_zones(&state);
            }
        }
        for node in self.nodes.list() {
            self.queue.add(Key::of(node.as_ref()));
        }
    }

    fn say(&self, node: &Node, reason: &str, message: String) {
        self.context.recorder.event(node, EventType::Normal, reason, message);
    }

    /// How long a node may still be silent; zero: it has been too long. `None`: it is gone.
    fn left(&self, node: &Node) -> Option<Duration> {
        let config = &self.context.config.nodes;
        let grace = match condition(node, "Ready") {
            Some(_) => config.monitor_grace_period,
            None => config.startup_grace_period,
        };
        let alive = self.state().nodes.get(&node.name_any())?.alive;
        Some(grace.saturating_sub(alive.elapsed()))
    }

    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(node) = self.nodes.get_key(key) else {
            return Ok(());
        };
        let Some(left) = self.left(&node) else {
            return Ok(());
        };
        if !left.is_zero() {
            self.queue.add_after(key.clone(), left);
            return self.follow_up(&node).await;
        }
        let Some(status) = health::silent(&node, self.context.clock.now()) else {
            return self.follow_up(&node).await;
        };
        let was_ready = is_ready(&node);
        let mut changed = Node::clone(&node);
        changed.status = Some(status);
        let api: Api<Node> = Api::all(self.context.client.clone());
        let written = api.replace_status(&key.name, &PostParams::default(), &changed).await;
        let Some(node) = or_absent(written)? else {
            return Ok(());
        };
        if was_ready {
            if let Some(health) = self.state().nodes.get_mut(&key.name) {
                health.mark_pods = true;
            }
            let said = format!("Node {} status is now: NodeNotReady", key.name);
            self.say(&node, "NodeNotReady", said);
        }
        self.follow_up(&node).await
    }

    /// What follows from the conditions of a node: for its Pods, its taints and its labels.
    async fn follow_up(&self, node: &Node) -> Result<(), SyncError> {
        let name = node.name_any();
        let ready = is_ready(node);
        let mark_pods = match self.state().nodes.get_mut(&name) {
            Some(health) if ready => {
                health.mark_pods = false;
                false
            }
            Some(health) => health.mark_pods,
            None => return Ok(()),
        };
        self.write_spec(node, self.drive_away(node, &name)).await?;
        if mark_pods {
            for pod in self.pods.by_index(BY_NODE, &name) {
                self.mark_not_ready(&pod).await?;
            }
            if let Some(health) = self.state().nodes.get_mut(&name) {
                health.mark_pods = false;
            }
        }
        Ok(())
    }

    /// Whether the Pods of a node are to be driven away if it is not well; if it is not its turn yet, it waits.
    fn drive_away(&self, node: &Node, name: &str) -> bool {
        let mut state = self.state();
        let zones = &mut state.zones;
        if is_ready(node) || condition(node, "Ready").is_none() {
            zones.cancel(name);
            return false;
        }
        let current = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
        let under_way = current.is_some_and(health::no_execute) && !zones.all_unwell();
        if under_way || zones.granted(name) {
            return true;
        }
        if let Some(zone) = zones.wait(name, Instant::now()) {
            self.queue.add(zone_key(&zone));
        }
        false
    }

    fn give_turns(&self, key: &Key) {
        let now = Instant::now();
        let mut state = self.state();
        // If nobody is heard of it is not one node that is broken, and soon all of them will count as silent.
        let grace = self.context.config.nodes.monitor_grace_period;
        let quiet = now.duration_since(state.heard);
        if quiet > grace / 2 && !state.zones.in_demand().is_empty() {
            state.held = true;
            // After that all are judged, and either all are unwell or not.
            if quiet <= grace {
                self.queue
                    .add_after(key.clone(), grace.saturating_sub(quiet) + grace / 10);
                return;
            }
        }
        loop {
            match state.zones.turn(&key.name, now) {
                Turn::Node(name) => self.queue.add(Key::new("", name)),
                Turn::Wait(time) => {
                    self.queue.add_after(key.clone(), time);
                    return;
                }
                Turn::Nobody => return,
            }
        }
    }

    async fn write_spec(&self, node: &Node, drive_away: bool) -> Result<(), SyncError> {
        let spec = node.spec.as_ref();
        let current = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let wanted = health::taints(node, current, drive_away, self.context.clock.now());
        let labels = health::old_labels(node);
        let mut patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version}});
        if wanted != current {
            patch["spec"] = json!({"taints": wanted});
        } else if labels.is_empty() {
            return Ok(());
        }
        for (label, value) in labels {
            patch["metadata"]["labels"][label] = json!(value);
        }
        let api: Api<Node> = Api::all(self.context.client.clone());
        let written = api
            .patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await;
        let begun = health::no_execute(&wanted) && !health::no_execute(current);
        if or_absent(written)?.is_some() && begun {
            self.context.metrics().add(&EVICTIONS, &[&zones::zone_of(node)], 1);
        }
        Ok(())
    }

    async fn sync_pod(&self, key: &Key) -> Result<(), SyncError> {
        match self.pods.get_key(key) {
            Some(pod) if self.is_unwell(pods::node_name(&pod)) => self.mark_not_ready(&pod).await,
            _ => Ok(()),
        }
    }

    async fn mark_not_ready(&self, pod: &Pod) -> Result<(), SyncError> {
        if !pods::is_ready(pod) {
            return Ok(());
        }
        let status = json!({"conditions": [{
            "type": "Ready", "status": "False", "lastTransitionTime": self.context.clock.time(),
        }]});
        pods::patch_status(&self.context.client, pod, status).await?;
        self.context
            .recorder
            .event(pod, EventType::Warning, "NodeNotReady", "Node is not ready");
        Ok(())
    }
}
