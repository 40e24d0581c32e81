//! Removes Pods that nobody else will: finished ones beyond a threshold, those bound to nodes that are gone, and those
//! deleted before they were ever bound.
//!
//! Differs from upstream: each is an event, not a round every twenty seconds. A node that disappears gets a while to come
//! back (it may only have registered anew) before its Pods go, and the API is asked once more before that.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::Api;
use sampan_client::{Change, Informer, Key, WorkQueue, or_absent};

use crate::metrics::{FORCED_DELETIONS, FORCED_ERRORS};
use crate::pods::{self, BY_NODE};
use crate::{Context, SyncError};

const QUARANTINE: Duration = Duration::from_secs(40);
/// The index of finished Pods, all under one value.
const FINISHED: &str = "finished";
/// Reasons, as upstream counts them.
const OUT: &str = "out-of-service";
const ORPHANED: &str = "orphaned";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

struct Collector {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
}

pub(crate) fn start(context: Context) {
    let nodes = context.informers.of::<Node>();
    let pods = context.informers.of::<Pod>();
    pods.add_index(BY_NODE, pods::node_keys);
    pods.add_index(FINISHED, |pod| {
        let finished = pods::is_terminal(pod) && !pods::is_terminating(pod);
        finished.then(|| FINISHED.to_owned()).into_iter().collect()
    });
    let queue: WorkQueue<Key> = WorkQueue::default();
    let (changed, known) = (queue.clone(), nodes.clone());
    let threshold = context.config.terminated_pods;
    let index = pods.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        if matches!(change, Change::Deleted(_)) {
            return;
        }
        let node = pods::node_name(pod);
        if pods::is_terminating(pod) {
            changed.add(Key::of(pod.as_ref()));
        } else if !node.is_empty() && known.get("", node).is_none() {
            changed.add_after(Key::new("", node), QUARANTINE);
        }
        if threshold > 0 && index.count_by_index(FINISHED, FINISHED) > threshold {
            changed.add(Key::default());
        }
    });
    let changed = queue.clone();
    nodes.on_change(move |change| {
        let node = change.object();
        match change {
            Change::Deleted(_) => changed.add_after(Key::new("", node.name_any()), QUARANTINE),
            _ if is_out_of_service(node) => changed.add(Key::new("", node.name_any())),
            _ => {}
        }
    });
    let ready = {
        let (nodes, pods) = (nodes.clone(), pods.clone());
        async move {
            nodes.synced().await;
            pods.synced().await;
        }
    };
    let collector = Arc::new(Collector {
        context: context.clone(),
        nodes,
        pods,
    });
    context.run(&queue, ready, move |key| {
        let collector = Arc::clone(&collector);
        async move {
            match (key.namespace.is_empty(), key.name.is_empty()) {
                (_, true) => collector.trim_finished().await,
                (true, false) => collector.sync_node(&key.name).await,
                (false, false) => collector.sync_terminating(&key).await,
            }
        }
    });
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut taints = taints.map(|taint| taint.key.as_str());
    taints.any(|key| key == OUT_OF_SERVICE) && !is_ready(node)
}

fn is_ready(node: &Node) -> bool {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

impl Collector {
    /// Deletes the oldest finished Pods until no more than the threshold are left.
    async fn trim_finished(&self) -> Result<(), SyncError> {
        let mut finished = self.pods.by_index(FINISHED, FINISHED);
        let surplus = finished.len().saturating_sub(self.context.config.terminated_pods);
        let evicted = |pod: &Pod| {
            let reason = pod.status.as_ref().and_then(|s| s.reason.as_deref());
            reason == Some("Evicted")
        };
        finished.sort_by_key(|pod| (!evicted(pod), pod.creation_timestamp(), pod.name_any()));
        for pod in finished.into_iter().take(surplus) {
            self.remove(&pod, "terminated").await?;
        }
        Ok(())
    }

    /// The Pods of a node that is gone, or declared to be.
    async fn sync_node(&self, name: &str) -> Result<(), SyncError> {
        if let Some(node) = self.nodes.get("", name) {
            if is_out_of_service(&node) {
                for pod in self.pods.by_index(BY_NODE, name) {
                    if pods::is_terminating(&pod) {
                        self.remove(&pod, OUT).await?;
                    }
                }
            }
            return Ok(());
        }
        let pods = self.pods.by_index(BY_NODE, name);
        if pods.is_empty() {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.context.client.clone());
        if or_absent(api.get_metadata(name).await)?.is_some() {
            return Ok(());
        }
        for pod in pods {
            self.remove(&pod, ORPHANED).await?;
        }
        Ok(())
    }

    async fn sync_terminating(&self, key: &Key) -> Result<(), SyncError> {
        let Some(pod) = self.pods.get_key(key) else {
            return Ok(());
        };
        let node = pods::node_name(&pod);
        let forsaken = match node {
            "" => Some("unscheduled"),
            name => {
                let node = self.nodes.get("", name);
                node.is_some_and(|node| is_out_of_service(&node)).then_some(OUT)
            }
        };
        if let Some(reason) = forsaken.filter(|_| pods::is_terminating(&pod)) {
            self.remove(&pod, reason).await?;
        }
        Ok(())
    }

    /// Removes a Pod, and counts that for a reason of upstream's.
    async fn remove(&self, pod: &Pod, reason: &str) -> Result<(), SyncError> {
        let removed = self.force(pod, reason).await;
        let (namespace, metrics) = (pod.namespace().unwrap_or_default(), self.context.metrics());
        let family = if removed.is_ok() {
            &FORCED_DELETIONS
        } else {
            &FORCED_ERRORS
        };
        metrics.add(family, &[&namespace, reason], 1);
        removed
    }

    async fn force(&self, pod: &Pod, reason: &str) -> Result<(), SyncError> {
        let client = &self.context.client;
        if !pods::is_terminal(pod) {
            match reason {
                ORPHANED => {
                    let (now, why) = (self.context.clock.time(), "PodGC: node no longer exists");
                    pods::mark_disrupted(client, pod, "DeletionByPodGC", why, true, now).await?;
                }
                _ => {
                    let generation = pod.metadata.generation;
                    let failed = serde_json::json!({"phase": "Failed", "observedGeneration": generation});
                    pods::patch_status(client, pod, failed).await?;
                }
            }
        }
        pods::delete(client, pod, true).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sampan_client::testing::eventually;

    use super::*;
    use crate::testing::Cluster;

    fn pod(name: &str, node: &str, phase: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("ns".into());
        pod.spec.get_or_insert_default().node_name = Some(node.into());
        pod.status.get_or_insert_default().phase = Some(phase.into());
        pod
    }

    fn node(name: &str) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node
    }

    #[tokio::test(start_paused = true)]
    async fn pods_of_vanished_nodes_go_after_a_while() {
        let cluster = Cluster::start(&["pod-garbage-collector-controller"]);
        let api = &cluster.api;
        api.create(&node("stays"));
        api.create(&node("goes"));
        api.create(&pod("a", "goes", "Running"));
        api.create(&pod("b", "stays", "Running"));
        tokio::time::sleep(Duration::from_secs(5)).await;
        api.remove::<Node>("", "goes");
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(api.get::<Pod>("ns", "a").is_some());
        tokio::time::sleep(Duration::from_secs(20)).await;
        eventually("a is gone", || async {
            api.get::<Pod>("ns", "a").is_none().then_some(())
        })
        .await;
        assert!(api.get::<Pod>("ns", "b").is_some());
        let marked = api
            .actions()
            .iter()
            .any(|a| a.resource == "pods/status" && a.name == "a");
        assert!(marked, "it was told why");
    }

    #[tokio::test(start_paused = true)]
    async fn finished_pods_are_kept_up_to_the_threshold() {
        let cluster = Cluster::with(Default::default(), &["pod-garbage-collector-controller"], |config| {
            config.terminated_pods = 3
        });
        let api = &cluster.api;
        api.create(&node("n"));
        for i in 0..5 {
            api.create(&pod(&format!("p{i}"), "n", "Succeeded"));
        }
        api.create(&pod("runs", "n", "Running"));
        eventually("two are gone", || async { (api.all::<Pod>().len() == 4).then_some(()) }).await;
        assert!(api.get::<Pod>("ns", "p4").is_some() && api.get::<Pod>("ns", "p0").is_none());
    }
}
