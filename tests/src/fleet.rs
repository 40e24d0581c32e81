//! Nodes without machines, and one kubelet for all of them: for what needs many nodes or quick Pods and no container.
//!
//! The kubelet is a thread in the cluster's network that follows the Pods by one watch, resumed where it broke, so it sees
//! every Pod there ever was. A bound Pod becomes Running and Ready at once; one labelled `sampan.test/ends` ends with that
//! phase. A Pod that is deleted goes. Servers that are killed meanwhile are waited for. A node that is silenced says nothing
//! and does nothing until it is woken; then it catches up. Answers that are lost are asked for again, so a Pod is never forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::Cluster;

/// How many Pods are seen to at a time.
const AT_ONCE: usize = 16;

/// A Pod that the kubelet once saw.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    pub namespace: String,
    pub name: String,
    /// `Kind/name` of its controller.
    pub owner: String,
    /// Where it was bound, and what it asked for there, in thousandths of a core.
    pub node: Option<String>,
    pub milli_cpu: u64,
    /// It has been told why it waits.
    pub told: bool,
    pub ready: bool,
    /// It is no more.
    pub gone: bool,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    nodes: Mutex<BTreeSet<String>>,
    silent: Mutex<BTreeSet<String>>,
    seen: Mutex<BTreeMap<String, Seen>>,
}

/// Fake nodes, for as long as the value lives.
pub struct Fleet {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fleet {
    /// A kubelet for nodes that [`Fleet::join`] adds; the cluster has to run.
    pub fn new(cluster: &Cluster) -> Fleet {
        let shared = Arc::new(Shared::default());
        let namespace = std::fs::File::open(cluster.lab.node_namespace()).expect("the namespace");
        let (kubeconfig, ours) = (cluster.kubeconfig(), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("the node's network");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(live(&ours, &kubeconfig));
        });
        Fleet {
            shared,
            thread: Some(thread),
        }
    }

    /// Adds nodes of `cpu` cores; they are made by the kubelet, all at once.
    pub fn join(&self, prefix: &str, count: usize, cpu: usize) {
        let mut nodes = self.shared.nodes.lock().expect("the nodes");
        nodes.extend((0..count).map(|index| format!("{prefix}-{index}={cpu}")));
    }

    /// Cuts nodes off, all at once.
    pub fn silence(&self, nodes: &[&str]) {
        let mut silent = self.shared.silent.lock().expect("the silent");
        silent.extend(nodes.iter().map(|node| (*node).to_owned()));
    }

    /// Brings all nodes back.
    pub fn wake(&self) {
        self.shared.silent.lock().expect("the silent").clear();
    }

    /// Every Pod there ever was since the kubelet started, by uid.
    pub fn seen(&self) -> BTreeMap<String, Seen> {
        self.shared.seen.lock().expect("the Pods").clone()
    }

    /// How many Pods there ever were of a controller (`Kind/name`).
    pub fn ever_of(&self, owner: &str) -> usize {
        self.count(|pod| pod.owner == owner)
    }

    /// How many of all Pods there ever were are like that.
    pub fn count(&self, like: impl Fn(&Seen) -> bool) -> usize {
        let seen = self.shared.seen.lock().expect("the Pods");
        seen.values().filter(|pod| like(pod)).count()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the fake kubelet failed");
        }
    }
}

/// What the kubelet knows beyond a connection.
#[derive(Default)]
struct Known {
    /// The version that the watch goes on from.
    from: Option<String>,
    joined: BTreeMap<String, Instant>,
    /// Pods that are to be seen to, as they last were, by uid.
    due: BTreeMap<String, Pod>,
}

impl Known {
    fn see(&mut self, shared: &Shared, pod: Pod, gone: bool) -> Option<Pod> {
        note(shared, &pod, gone);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.from.clone_from(&pod.metadata.resource_version);
        if gone || pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
            self.due.remove(&uid);
            return None;
        }
        self.due.insert(uid, pod.clone());
        Some(pod)
    }

    /// A Pod was seen to, unless it has changed meanwhile.
    fn done(&mut self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let same = |due: &Pod| due.metadata.resource_version == pod.metadata.resource_version;
        if self.due.get(uid).is_some_and(same) {
            self.due.remove(uid);
        }
    }
}

async fn live(shared: &Shared, kubeconfig: &Path) {
    let mut known = Known::default();
    while !shared.stop.load(Ordering::Acquire) {
        let Ok(client) = sampan_client::from_kubeconfig(kubeconfig).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if let Err(error) = session(shared, &client, &mut known).await {
            let gone = matches!(&error, kube::Error::Api(status) if status.code == 410);
            if gone {
                known.from = None;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// What was done.
enum Done {
    Pod(Box<Pod>),
    Beat(String),
}

/// Works until the connection breaks.
async fn session(shared: &Shared, client: &Client, known: &mut Known) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::all(client.clone());
    if known.from.is_none() {
        let list = pods.list(&Default::default()).await?;
        for pod in list.items {
            known.see(shared, pod, false);
        }
        known.from = list.metadata.resource_version;
    }
    let version = known.from.clone().unwrap_or_default();
    let turn = Semaphore::new(AT_ONCE);
    let see_to = |pod: Pod| {
        let turn = &turn;
        async move {
            let _turn = turn.acquire().await;
            act(shared, client, &pod).await.map(|()| Done::Pod(Box::new(pod)))
        }
        .boxed_local()
    };
    let mut acting: FuturesUnordered<_> = known.due.values().cloned().map(see_to).collect();
    let mut beating = BTreeSet::new();
    let mut watch = pods
        .watch(&WatchParams::default().timeout(280), &version)
        .await?
        .boxed();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            event = watch.next() => match event.transpose()? {
                None => return Ok(()),
                Some(WatchEvent::Added(pod) | WatchEvent::Modified(pod)) => acting.extend(known.see(shared, pod, false).map(see_to)),
                Some(WatchEvent::Deleted(pod)) => {
                    known.see(shared, pod, true);
                }
                Some(WatchEvent::Bookmark(_)) => {}
                Some(WatchEvent::Error(status)) => return Err(kube::Error::Api(status)),
            },
            Some(done) = acting.next(), if !acting.is_empty() => match done? {
                Done::Pod(pod) => known.done(&pod),
                Done::Beat(node) => {
                    beating.remove(&node);
                    // One that was silenced meanwhile has to say all anew when it is back.
                    if !is_silent(shared, node.split('=').next()) {
                        known.joined.insert(node, Instant::now());
                    }
                }
            },
            _ = tick.tick() => {
                if shared.stop.load(Ordering::Acquire) {
                    return Ok(());
                }
                let wanted = shared.nodes.lock().expect("the nodes").clone();
                for node in wanted {
                    if is_silent(shared, node.split('=').next()) {
                        known.joined.remove(&node);
                        continue;
                    }
                    let due = known.joined.get(&node).is_none_or(|at| at.elapsed() > Duration::from_secs(10));
                    if due && beating.insert(node.clone()) {
                        let is_known = known.joined.contains_key(&node);
                        let beating = async move { beat(shared, client, &node, is_known).await.map(|()| Done::Beat(node)) };
                        acting.push(beating.boxed_local());
                    }
                }
            }
        }
    }
}

fn note(shared: &Shared, pod: &Pod, gone: bool) {
    let owners = pod.metadata.owner_references.iter().flatten();
    let owner = owners
        .filter(|owner| owner.controller == Some(true))
        .map(|owner| format!("{}/{}", owner.kind, owner.name))
        .next();
    let spec = pod.spec.as_ref();
    let requests = spec
        .and_then(|spec| {
            spec.containers
                .first()?
                .resources
                .as_ref()?
                .requests
                .as_ref()?
                .get("cpu")
        })
        .map_or("0", |quantity| quantity.0.as_str());
    let milli_cpu = match requests.strip_suffix('m') {
        Some(milli) => milli.parse().unwrap_or(0),
        None => requests.parse::<u64>().unwrap_or(0) * 1000,
    };
    let seen = Seen {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        owner: owner.unwrap_or_default(),
        node: spec.and_then(|spec| spec.node_name.clone()),
        milli_cpu,
        told: conditions(pod).any(|condition| condition.reason.as_deref() == Some("Unschedulable")),
        ready: is_ready(pod),
        gone,
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    shared.seen.lock().expect("the Pods").insert(uid, seen);
}

fn now() -> Value {
    serde_json::to_value(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        k8s_openapi::jiff::Timestamp::now(),
    ))
    .expect("a time")
}

fn is_silent(shared: &Shared, node: Option<&str>) -> bool {
    let silent = shared.silent.lock().expect("the silent");
    node.is_some_and(|node| silent.contains(node))
}

async fn beat(shared: &Shared, client: &Client, node: &str, known: bool) -> Result<(), kube::Error> {
    let (name, cpu) = node.split_once('=').unwrap_or((node, "1"));
    let nodes: Api<Node> = Api::all(client.clone());
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let time = k8s_openapi::jiff::Timestamp::now();
    let renewed = json!({"spec": {"renewTime": format!("{time:.6}")}});
    if known {
        leases
            .patch(name, &PatchParams::default(), &Patch::Merge(renewed))
            .await?;
        return Ok(());
    }
    let room = json!({"cpu": cpu, "memory": "256Gi", "ephemeral-storage": "100Gi", "pods": "500"});
    let node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"capacity": room, "allocatable": room, "conditions": [{"type": "Ready", "status": "True",
            "reason": "KubeletReady", "message": "fake", "lastHeartbeatTime": now(), "lastTransitionTime": now()}]},
    });
    let lease = json!({"metadata": {"name": name}, "spec": {"holderIdentity": name, "leaseDurationSeconds": 40,
        "renewTime": format!("{time:.6}")}});
    let parse = |error| kube::Error::SerdeError(error);
    known_already(
        leases
            .create(&PostParams::default(), &serde_json::from_value(lease).map_err(parse)?)
            .await,
    )?;
    let status = json!({"status": node["status"]});
    let created = nodes
        .create(&PostParams::default(), &serde_json::from_value(node).map_err(parse)?)
        .await;
    if created.is_ok() {
        return Ok(());
    }
    known_already(created)?;
    // It was there before: it says how it is, and sees what has become of its Pods.
    leases
        .patch(name, &PatchParams::default(), &Patch::Merge(renewed))
        .await?;
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
        .await?;
    let pods: Api<Pod> = Api::all(client.clone());
    let mine = ListParams::default().fields(&format!("spec.nodeName={name}"));
    for pod in pods.list(&mine).await?.items {
        act(shared, client, &pod).await?;
    }
    Ok(())
}

fn conditions(pod: &Pod) -> impl Iterator<Item = &PodCondition> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten()
}

fn is_ready(pod: &Pod) -> bool {
    conditions(pod).any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn known_already<T>(outcome: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(|_| ()),
    }
}

async fn act(shared: &Shared, client: &Client, pod: &Pod) -> Result<(), kube::Error> {
    let (Some(name), Some(namespace)) = (&pod.metadata.name, &pod.metadata.namespace) else {
        return Ok(());
    };
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    if node.is_none() || is_silent(shared, node) {
        return Ok(());
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let outcome = if pod.metadata.deletion_timestamp.is_some() {
        let preconditions = Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        };
        let now = DeleteParams {
            preconditions: Some(preconditions),
            ..DeleteParams::default().grace_period(0)
        };
        pods.delete(name, &now).await.map(|_| ())
    } else {
        let ends = pod
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("sampan.test/ends"));
        let wanted = match (phase, ends) {
            (Some("Running"), Some(end)) => end.as_str(),
            (Some("Running"), None) if !is_ready(pod) => "Running",
            (Some("Running" | "Succeeded" | "Failed"), _) => return Ok(()),
            _ => "Running",
        };
        let ready = if wanted == "Running" { "True" } else { "False" };
        let status = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"phase": wanted, "podIP": "192.0.2.9", "startTime": now(),
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now()}]}});
        let patch = Patch::Strategic(status);
        pods.patch_status(name, &PatchParams::default(), &patch)
            .await
            .map(|_| ())
    };
    match outcome {
        // Gone, or changed since: its next event will say.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}
