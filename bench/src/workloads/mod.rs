//! The workloads. Each cleans up behind itself, so that rounds and targets start alike.

pub mod burst;
pub mod crud;
pub mod held;
pub mod idle;
pub mod list;
pub mod watch;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::try_join_all;
use http::{Method, StatusCode};
use serde_json::json;

use crate::client::{Client, JSON, Lane, Refused};
use crate::{Result, Target};

/// Runs `step(lane, index)` for every index below `count` on `lanes` connections; returns each step's seconds.
pub async fn spread<F, Fut>(client: &Client, lanes: usize, count: usize, step: F) -> Result<Vec<f64>>
where
    F: Fn(Lane, usize) -> Fut,
    Fut: Future<Output = Result<Lane>>,
{
    let next = Arc::new(AtomicUsize::new(0));
    let step = &step;
    let workers = (0..lanes.max(1)).map(|_| {
        let (next, mut lane) = (Arc::clone(&next), client.lane());
        async move {
            let mut seconds = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok::<_, Box<dyn std::error::Error + Send + Sync>>(seconds);
                }
                let start = Instant::now();
                lane = step(lane, index).await?;
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
    });
    Ok(try_join_all(workers).await?.concat())
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
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
    let mut lane = target.client.lane();
    for _ in 0..600 {
        lane.count(Method::DELETE, path, Some((JSON, options.to_string().into())))
            .await?;
        let left = lane.json(Method::GET, &format!("{path}?limit=1"), None).await?;
        if left["items"].as_array().is_none_or(Vec::is_empty) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("{path} could not be cleared in a minute").into())
}

/// A Pod as a batch would make it, about 1 KiB.
pub fn pod(name: &str, cpu: &str, node_class: &str) -> Bytes {
    let pod = json!({
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
    });
    pod.to_string().into()
}
