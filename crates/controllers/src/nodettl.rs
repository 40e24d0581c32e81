//! Tells nodes how long they may keep Secrets and ConfigMaps they have fetched, by the size of the cluster.
//!
//! A cluster's size moves in steps that overlap, so that one node that comes and goes does not change all others.
//!
//! Differs from upstream: when the step changes, all nodes are told; upstream waits for the next change of each.

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use sampan_client::{Change, Key, WorkQueue, or_absent};
use serde_json::json;

use crate::Context;

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// From how many nodes, up to how many, and the time in seconds.
const STEPS: [(usize, usize, u32); 5] = [
    (0, 100, 0),
    (90, 500, 15),
    (450, 1000, 30),
    (900, 2000, 60),
    (1800, usize::MAX, 300),
];

/// The step that `nodes` are in who were in `step` before.
fn step(mut step: usize, nodes: usize) -> usize {
    while STEPS.get(step).is_some_and(|(_, most, _)| nodes > *most) {
        step += 1;
    }
    while STEPS.get(step).is_some_and(|(least, _, _)| nodes < *least) {
        step -= 1;
    }
    step
}

fn seconds(step: usize) -> u32 {
    STEPS.get(step).map_or(0, |(_, _, seconds)| *seconds)
}

#[derive(Default)]
struct Size {
    nodes: usize,
    step: usize,
}

pub(crate) fn start(context: Context) {
    let nodes = context.informers.of::<Node>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let size: Arc<Mutex<Size>> = Arc::default();
    let (changed, counted, all) = (queue.clone(), Arc::clone(&size), nodes.clone());
    nodes.on_change(move |change| {
        let mut size = counted.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Added(_) => size.nodes += 1,
            Change::Deleted(_) => size.nodes = size.nodes.saturating_sub(1),
            Change::Modified { .. } => {}
        }
        let before = std::mem::replace(&mut size.step, 0);
        size.step = step(before, size.nodes);
        if size.step != before {
            for node in all.list() {
                changed.add(Key::of(node.as_ref()));
            }
        }
        let annotation = |node: &Node| node.annotations().get(ANNOTATION).cloned();
        let node = change.object();
        if change.old().is_none_or(|old| annotation(old) != annotation(node)) {
            changed.add(Key::of(node.as_ref()));
        }
    });
    let known = nodes.clone();
    let ready = async move { nodes.synced().await };
    let client = context.client.clone();
    context.run(&queue, ready, move |key| {
        let (client, node) = (client.clone(), known.get_key(&key));
        let wanted = seconds(size.lock().unwrap_or_else(PoisonError::into_inner).step);
        async move {
            let told = |node: &Node| node.annotations().get(ANNOTATION)?.parse().ok();
            if node.is_none_or(|node| told(&node) == Some(wanted)) {
                return Ok(());
            }
            let patch = json!({"metadata": {"annotations": {ANNOTATION: wanted.to_string()}}});
            let api: Api<Node> = Api::all(client);
            let written = api
                .patch_metadata(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            or_absent(written)?;
            Ok(())
        }
    });
}

#[cfg(test)]
mod tests {
    use sampan_client::testing::eventually;

    use super::*;
    use crate::testing::Cluster;

    #[test]
    fn steps_overlap() {
        let mut now = 0;
        let mut at = |nodes: usize| {
            now = step(now, nodes);
            seconds(now)
        };
        assert_eq!([at(1), at(100), at(101), at(95), at(90), at(89)], [0, 0, 15, 15, 15, 0]);
        assert_eq!([at(5000), at(1800), at(1799), at(0)], [300, 300, 60, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_are_told_by_the_size_of_the_cluster() {
        let cluster = Cluster::start(&["ttl-controller"]);
        let node = |number: usize| {
            let mut node = Node::default();
            node.metadata.name = Some(format!("n{number}"));
            node
        };
        let told = |seconds: &str| {
            let all: Vec<Node> = cluster.api.all();
            all.iter()
                .all(|node| node.annotations().get(ANNOTATION).map(String::as_str) == Some(seconds))
        };
        for number in 0..100 {
            cluster.api.create(&node(number));
        }
        eventually("a small cluster", || async { told("0").then_some(()) }).await;
        cluster.api.create(&node(100));
        eventually("one of a hundred and more", || async { told("15").then_some(()) }).await;
        cluster
            .api
            .change::<Node>("", "n0", |node| node.metadata.annotations = None);
        eventually("told again", || async { told("15").then_some(()) }).await;
        let writes = cluster.api.actions().iter().filter(|a| a.resource == "nodes").count();
        assert!(writes < 100 + 101 + 10, "{writes}");
    }
}
