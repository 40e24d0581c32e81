//! Fake nodes, and one fake kubelet for all of them.
//!
//! The kubelet follows one watch of the workload's Pods. A Pod that has a node becomes Running at once and Succeeded
//! after its time. Nothing real runs: what is measured is the control plane.

use std::collections::HashSet;
use std::future::Future;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{Client, JSON, Lane, MERGE, STRATEGIC};
use crate::workloads::{connect, ignore, spread};
use crate::{Result, Target};

/// Nodes of one class, to be selected by the label `sampan-bench=CLASS`, in three zones.
pub struct Fleet {
    pub class: &'static str,
    pub nodes: usize,
    pub cpu: String,
    pub memory: &'static str,
    pub pods: usize,
    /// Against everyone who does not tolerate `sampan-bench`.
    pub tainted: bool,
}

fn node_name(class: &str, index: usize) -> String {
    format!("bench-{class}-{index}")
}

impl Fleet {
    pub fn name(&self, index: usize) -> String {
        node_name(self.class, index)
    }

    pub async fn create(&self, target: &Target) -> Result<()> {
        let mut lanes = connect(&target.client, 16).await?;
        let taints = match self.tainted {
            true => json!([{"key": "sampan-bench", "effect": "NoSchedule"}]),
            false => json!([]),
        };
        let taints = &taints;
        spread(&mut lanes, self.nodes, |mut lane, index| async move {
            let name = node_name(self.class, index);
            let resources = json!({"cpu": self.cpu, "memory": self.memory, "ephemeral-storage": "100Gi", "pods": self.pods.to_string()});
            let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "fake",
                "lastHeartbeatTime": now(), "lastTransitionTime": now()});
            let node = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": {"sampan-bench": self.class, "kubernetes.io/hostname": name,
                    "topology.kubernetes.io/zone": format!("zone-{}", index % 3)}},
                "spec": {"taints": taints},
                "status": {"capacity": resources, "allocatable": resources, "conditions": [ready]},
            });
            ignore(lane.count(Method::POST, "/api/v1/nodes", Some((JSON, node.to_string().into()))).await, StatusCode::CONFLICT)?;
            // Clusters with a cloud or node controller taint newcomers until they report.
            let patch = json!({"status": {"conditions": [ready]}});
            lane.count(Method::PATCH, &format!("/api/v1/nodes/{name}/status"), Some((STRATEGIC, patch.to_string().into()))).await?;
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
                "spec": {"holderIdentity": name, "leaseDurationSeconds": 3600, "renewTime": micro_now()}});
            let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
            ignore(lane.count(Method::POST, leases, Some((JSON, lease.to_string().into()))).await, StatusCode::CONFLICT)?;
            Ok(lane)
        })
        .await?;
        Ok(())
    }

    /// Waits until no node has a taint that is not its own: newcomers are tainted until a controller has seen that they are ready.
    pub async fn welcome(&self, target: &Target) -> Result<()> {
        let path = format!("/api/v1/nodes?labelSelector=sampan-bench%3D{}", self.class);
        for _ in 0..120 {
            let list = target.client.get(&path).await?;
            let foreign = |taint: &Value| taint["key"] != "sampan-bench";
            let tainted = |node: &Value| {
                node["spec"]["taints"]
                    .as_array()
                    .is_some_and(|taints| taints.iter().any(foreign))
            };
            if !list["items"].as_array().is_some_and(|nodes| nodes.iter().any(tainted)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Err("nodes were tainted for a minute; does the node lifecycle controller run?".into())
    }

    /// Renews the nodes' leases, as kubelets do, for as long as it is polled: a silent node is soon taken for dead.
    async fn beat(&self, target: &Target) -> Result<std::convert::Infallible> {
        let mut lanes = connect(&target.client, 2).await?;
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            self.round(&mut lanes, false).await?;
        }
    }

    /// One heartbeat of every node, with its status if wanted; returns the seconds each took.
    pub async fn round(&self, lanes: &mut Vec<Lane>, with_status: bool) -> Result<Vec<f64>> {
        let lease = json!({"spec": {"renewTime": micro_now()}}).to_string();
        let status = json!({"status": {"conditions": [{"type": "Ready", "lastHeartbeatTime": now()}]}}).to_string();
        let (lease, status) = (&lease, &status);
        spread(lanes, self.nodes, |mut lane, index| async move {
            let name = node_name(self.class, index);
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}");
            lane.count(Method::PATCH, &path, Some((MERGE, lease.clone().into())))
                .await?;
            if with_status {
                let path = format!("/api/v1/nodes/{name}/status");
                lane.count(Method::PATCH, &path, Some((STRATEGIC, status.clone().into())))
                    .await?;
            }
            Ok(lane)
        })
        .await
    }

    /// Drives `work` to its end with the nodes alive all the while.
    pub async fn alive<T>(&self, target: &Target, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            outcome = work => outcome,
            outcome = self.beat(target) => match outcome? {},
        }
    }

    pub async fn delete(&self, target: &Target) -> Result<()> {
        let mut lanes = connect(&target.client, 16).await?;
        spread(&mut lanes, self.nodes, |mut lane, index| async move {
            let name = node_name(self.class, index);
            let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}");
            for path in [format!("/api/v1/nodes/{name}"), lease] {
                ignore(lane.count(Method::DELETE, &path, None).await, StatusCode::NOT_FOUND)?;
            }
            Ok(lane)
        })
        .await?;
        Ok(())
    }
}

fn now() -> String {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())
        .unwrap_or_default()
        .to_string()
}

fn micro_now() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

/// What the kubelet saw.
#[derive(Debug, Default)]
pub struct Run {
    /// Seconds from `start` to each Pod's binding, in the order of their bindings.
    pub bound: Vec<f64>,
    pub finished: usize,
}

enum Step {
    Running(String),
    Finished,
}

/// Follows the Pods of `namespace` until `count` have finished, each running for `life`.
pub async fn kubelet(
    client: &Client,
    namespace: &str,
    from: &str,
    count: usize,
    life: Duration,
    start: Instant,
) -> Result<Run> {
    let base = format!("/api/v1/namespaces/{namespace}/pods");
    let mut watch = Box::pin(client.watch(&format!("{base}?watch=1&resourceVersion={from}")).await?);
    let mut run = Run::default();
    let mut seen = HashSet::new();
    let mut steps = FuturesUnordered::new();
    let mut idle = Vec::new();
    let mut waiting: Vec<(String, bool)> = Vec::new();
    for _ in 0..32 {
        idle.push(client.lane());
    }
    let mut timers = FuturesUnordered::new();
    while run.finished < count {
        while let Some(mut lane) = idle.pop() {
            let Some((name, last)) = waiting.pop() else {
                idle.push(lane);
                break;
            };
            let path = format!("{base}/{name}/status");
            let phase = if last { "Succeeded" } else { "Running" };
            let patch = json!({"status": {"phase": phase, "startTime": now(), "podIP": "192.0.2.1", "conditions": [
                {"type": "Ready", "status": if last { "False" } else { "True" }, "lastTransitionTime": now()}]}});
            steps.push(async move {
                let outcome = lane
                    .count(Method::PATCH, &path, Some((STRATEGIC, patch.to_string().into())))
                    .await;
                (lane, outcome, if last { Step::Finished } else { Step::Running(name) })
            });
        }
        tokio::select! {
            line = watch.next() => {
                let line = line.ok_or("the Pod watch ended early")??;
                let event: Value = serde_json::from_slice(&line)?;
                let pod = &event["object"];
                if event["type"] == "ERROR" {
                    return Err(format!("the Pod watch failed: {pod}").into());
                }
                let (name, node) = (pod["metadata"]["name"].as_str().unwrap_or_default(), pod["spec"]["nodeName"].as_str());
                if node.is_some() && event["type"] != "DELETED" && seen.insert(name.to_owned()) {
                    run.bound.push(start.elapsed().as_secs_f64());
                    waiting.insert(0, (name.to_owned(), false));
                }
            }
            Some((lane, outcome, step)) = steps.next(), if !steps.is_empty() => {
                outcome?;
                idle.push(lane);
                match step {
                    Step::Finished => run.finished += 1,
                    Step::Running(name) => timers.push(async move { tokio::time::sleep(life).await; name }),
                }
            }
            Some(name) = timers.next(), if !timers.is_empty() => waiting.push((name, true)),
        }
    }
    Ok(run)
}
