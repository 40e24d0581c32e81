//! The workloads. Each cleans up behind itself, so that rounds and targets start alike.

pub mod arrive;
pub mod beat;
pub mod burst;
pub mod crud;
pub mod held;
pub mod idle;
pub mod list;
pub mod load;
pub mod pod;
pub mod schedule;
pub mod watch;

use std::collections::HashSet;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::try_join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{Client, JSON, Lane, Refused};
use crate::{Result, Target};

/// Connections that are open already, so that no handshake is measured.
pub async fn connect(client: &Client, count: usize) -> Result<Vec<Lane>> {
    let lanes = (0..count.max(1)).map(|_| async {
        let mut lane = client.lane();
        lane.count(Method::GET, "/version", None).await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(lane)
    });
    try_join_all(lanes).await
}

/// Runs `step(lane, index)` for every index below `count` on all of `lanes`; returns each step's seconds.
pub async fn spread<F, Fut>(lanes: &mut Vec<Lane>, count: usize, step: F) -> Result<Vec<f64>>
where
    F: Fn(Lane, usize) -> Fut,
    Fut: Future<Output = Result<Lane>>,
{
    let next = AtomicUsize::new(0);
    let (next, step) = (&next, &step);
    let workers = lanes.drain(..).map(|mut lane| async move {
        let mut seconds = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return Ok::<_, Box<dyn std::error::Error + Send + Sync>>((lane, seconds));
            }
            let start = Instant::now();
            lane = step(lane, index).await?;
            seconds.push(start.elapsed().as_secs_f64());
        }
    });
    let mut all = Vec::with_capacity(count);
    for (lane, seconds) in try_join_all(workers).await? {
        lanes.push(lane);
        all.extend(seconds);
    }
    Ok(all)
}

/// A namespace of the workload's own, ready for Pods.
pub async fn namespace(target: &Target, name: &str) -> Result<()> {
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let created = target
        .client
        .lane()
        .count(
            Method::POST,
            "/api/v1/namespaces",
            Some((JSON, body.to_string().into())),
        )
        .await;
    ignore(created, StatusCode::CONFLICT)?;
    // Pods are refused until the namespace has its service account; where no controller makes it, make it.
    let path = format!("/api/v1/namespaces/{name}/serviceaccounts");
    for _ in 0..40 {
        if target.client.get(&format!("{path}/default")).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    ignore(
        target
            .client
            .lane()
            .count(Method::POST, &path, Some((JSON, body.to_string().into())))
            .await,
        StatusCode::CONFLICT,
    )?;
    Ok(())
}

/// Takes a refusal with this status for success.
pub fn ignore(outcome: Result<usize>, status: StatusCode) -> Result<()> {
    match outcome {
        Err(error)
            if error
                .downcast_ref::<Refused>()
                .is_some_and(|refused| refused.status == status) =>
        {
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

/// Deletes everything of a collection, at once, and waits until it is gone.
pub async fn clear(target: &Target, path: &str) -> Result<()> {
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
        "propagationPolicy": "Background"});
    let mut lane = target.client.lane();
    for _ in 0..600 {
        let deleted = lane
            .count(Method::DELETE, path, Some((JSON, options.to_string().into())))
            .await;
        // There may be more than can be deleted in a request's time.
        ignore(deleted, StatusCode::GATEWAY_TIMEOUT)?;
        let left = lane.json(Method::GET, &format!("{path}?limit=1"), None).await?;
        if left["items"].as_array().is_none_or(Vec::is_empty) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("{path} could not be cleared in a minute").into())
}

/// The revision of a collection now, for a watch of what happens after.
pub async fn newest(target: &Target, path: &str) -> Result<String> {
    let list = target.client.get(&format!("{path}?limit=1")).await?;
    let revision = list["metadata"]["resourceVersion"].as_str();
    Ok(revision.ok_or("no resourceVersion")?.to_owned())
}

/// Follows Pods until `seen` has said yes of `count` of them; returns the seconds since `start` of each.
async fn follow(
    client: &Client,
    path: &str,
    from: &str,
    count: usize,
    start: Instant,
    seen: impl Fn(&Value) -> bool,
) -> Result<Vec<f64>> {
    let mut watch = Box::pin(client.watch(&format!("{path}?watch=1&resourceVersion={from}")).await?);
    let (mut names, mut seconds) = (HashSet::new(), Vec::with_capacity(count));
    while seconds.len() < count {
        let line = watch.next().await.ok_or("the Pod watch ended early")??;
        let event: Value = serde_json::from_slice(&line)?;
        if event["type"] == "ERROR" {
            return Err(format!("the Pod watch failed: {}", event["object"]).into());
        }
        if let Some(name) = event["object"]["metadata"]["name"].as_str()
            && seen(&event["object"])
            && names.insert(name.to_owned())
        {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
}

/// Waits until `count` Pods have a node; returns when, in seconds since `start`.
pub async fn bindings(client: &Client, path: &str, from: &str, count: usize, start: Instant) -> Result<Vec<f64>> {
    let bound = |pod: &Value| pod["spec"]["nodeName"].is_string();
    follow(client, path, from, count, start, bound).await
}

/// Waits until `count` Pods have been told that they fit nowhere; returns how long that took, in seconds.
pub async fn told(client: &Client, path: &str, from: &str, count: usize) -> Result<f64> {
    let waits = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["reason"] == "Unschedulable")
    };
    let seconds = follow(client, path, from, count, Instant::now(), waits).await?;
    Ok(seconds.last().copied().unwrap_or(0.0))
}

/// A Pod as a batch would make it, about 1 KiB.
pub fn batch_pod(name: &str, cpu: &str, node_class: &str) -> Bytes {
    pod_tree(name, cpu, node_class).to_string().into()
}

/// The same, held back from every scheduler, so that nobody touches it after its creation.
pub fn gated_pod(name: &str) -> Bytes {
    let mut pod = pod_tree(name, "1m", "nowhere");
    pod["spec"]["schedulingGates"] = json!([{"name": "sampan.dev/bench"}]);
    pod.to_string().into()
}

/// A Job of one such Pod.
pub fn batch_job(name: &str, cpu: &str, node_class: &str) -> Bytes {
    let pod = pod_tree(name, cpu, node_class);
    let template = json!({"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]});
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template}})
    .to_string()
    .into()
}

/// Waits until `count` Jobs are complete.
pub async fn completed(client: &Client, path: &str, from: &str, count: usize) -> Result<()> {
    let complete = |job: &Value| {
        let conditions = job["status"]["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Complete" && condition["status"] == "True")
    };
    follow(client, path, from, count, Instant::now(), complete).await?;
    Ok(())
}

fn pod_tree(name: &str, cpu: &str, node_class: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "bench", "batch": "one"}},
        "spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
            "nodeSelector": {"sampan-bench": node_class},
            "tolerations": [{"key": "sampan-bench", "operator": "Exists"}],
            "containers": [{"name": "work", "image": "localhost/none:1", "command": ["/work", "--step", "1"],
                "env": [{"name": "STEP", "value": "1"}, {"name": "TOTAL", "value": "3000"}],
                "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}, "limits": {"memory": "128Mi"}}}],
        },
    })
}
