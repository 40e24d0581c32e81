//! Deletes Pods from nodes with `NoExecute` taints that they do not tolerate, or no longer.
//!
//! A toleration for a time counts from when the Pod was first seen under the taint, as upstream counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Taint, Toleration};
use kube::ResourceExt;
use sampan_client::{Change, EventType, Informer, Key, WorkQueue};

use crate::pods::{self, BY_NODE};
use crate::{Context, SyncError};

struct Evictor {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    queue: WorkQueue<Key>,
    /// Since when a Pod is under taints that it tolerates only for a time.
    since: Mutex<HashMap<Key, Timestamp>>,
}

pub(crate) fn start(context: Context) {
    let nodes = context.informers.of::<Node>();
    let pods = context.informers.of::<Pod>();
    pods.add_index(BY_NODE, pods::node_keys);
    let queue: WorkQueue<Key> = WorkQueue::default();
    let (changed, known) = (queue.clone(), pods.clone());
    nodes.on_change(move |change| {
        let taints = |node: &Node| no_execute(node).cloned().collect::<Vec<_>>();
        let before = change.old().map(|node| taints(node)).unwrap_or_default();
        if before != taints(change.object()) {
            for pod in known.by_index(BY_NODE, &change.object().name_any()) {
                changed.add(Key::of(pod.as_ref()));
            }
        }
    });
    let evictor = Arc::new(Evictor {
        context: context.clone(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        queue: queue.clone(),
        since: Mutex::default(),
    });
    let (changed, this) = (queue.clone(), Arc::clone(&evictor));
    pods.on_change(move |change| {
        let pod = change.object();
        let key = Key::of(pod.as_ref());
        if matches!(change, Change::Deleted(_)) {
            this.forget(&key);
            return;
        }
        let tolerations = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.tolerations.clone());
        let moved = change
            .old()
            .is_none_or(|old| pods::node_name(old) != pods::node_name(pod) || tolerations(old) != tolerations(pod));
        if moved && !pods::node_name(pod).is_empty() {
            changed.add(key);
        }
    });
    let ready = async move {
        nodes.synced().await;
        pods.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let evictor = Arc::clone(&evictor);
        async move { evictor.sync(key).await }
    });
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute")
}

/// Whether a toleration covers a taint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let value = |value: &Option<String>| value.clone().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or("Equal") {
            "Exists" => true,
            "Equal" | "" => key == taint.key && value(&toleration.value) == value(&taint.value),
            _ => false,
        }
}

/// How long a Pod may stay.
#[derive(Debug, PartialEq)]
enum Stay {
    Forever,
    For(i64),
    No,
}

fn stay<'a>(taints: impl Iterator<Item = &'a Taint>, tolerations: &[Toleration]) -> Stay {
    let mut shortest: Option<i64> = None;
    for taint in taints {
        let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if matching.peek().is_none() {
            return Stay::No;
        }
        for seconds in matching.filter_map(|toleration| toleration.toleration_seconds) {
            let seconds = seconds.max(0);
            shortest = Some(shortest.map_or(seconds, |known| known.min(seconds)));
        }
    }
    shortest.map_or(Stay::Forever, Stay::For)
}

impl Evictor {
    fn forget(&self, key: &Key) {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    async fn sync(&self, key: Key) -> Result<(), SyncError> {
        let Some(pod) = self.pods.get_key(&key) else {
            return Ok(());
        };
        let Some(node) = self.nodes.get("", pods::node_name(&pod)) else {
            return Ok(());
        };
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref());
        match stay(no_execute(&node), tolerations.unwrap_or_default()) {
            Stay::Forever => {
                self.forget(&key);
                return Ok(());
            }
            Stay::No => {}
            Stay::For(seconds) => {
                let now = self.context.clock.now();
                let since = *self
                    .since
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(key.clone())
                    .or_insert(now);
                let left = SignedDuration::from_secs(seconds) - now.duration_since(since);
                if left.is_positive() {
                    self.queue.add_after(key, pods::delay(left));
                    return Ok(());
                }
            }
        }
        if pods::is_terminating(&pod) {
            return Ok(());
        }
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        };
        self.context.recorder.event_about(
            about,
            EventType::Normal,
            "TaintManagerEviction",
            format!("Marking for deletion Pod {key}"),
        );
        let client = &self.context.client;
        pods::mark_disrupted(
            client,
            &pod,
            "DeletionByTaintManager",
            "Taint manager: deleting due to NoExecute taint",
            false,
            self.context.clock.time(),
        )
        .await?;
        pods::delete(client, &pod, false).await?;
        self.forget(&key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sampan_client::testing::eventually;

    use super::*;
    use crate::testing::Cluster;

    fn taint(key: &str) -> Taint {
        Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            ..Default::default()
        }
    }

    fn toleration(key: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some(key.into()).filter(|key: &String| !key.is_empty()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Default::default()
        }
    }

    #[test]
    fn the_shortest_toleration_counts() {
        let taints = [taint("a"), taint("b")];
        let cases = [
            (vec![], Stay::No),
            (vec![toleration("a", None)], Stay::No),
            (vec![toleration("", None)], Stay::Forever),
            (vec![toleration("a", None), toleration("b", None)], Stay::Forever),
            (
                vec![toleration("a", Some(30)), toleration("b", Some(10))],
                Stay::For(10),
            ),
            (vec![toleration("a", Some(-5)), toleration("b", None)], Stay::For(0)),
        ];
        for (tolerations, expected) in cases {
            assert_eq!(stay(taints.iter(), &tolerations), expected, "{tolerations:?}");
        }
        assert_eq!(stay([].iter(), &[]), Stay::Forever);
    }

    #[tokio::test(start_paused = true)]
    async fn pods_leave_when_their_time_is_up() {
        let cluster = Cluster::start(&["taint-eviction-controller"]);
        let api = &cluster.api;
        let mut node = Node::default();
        node.metadata.name = Some("n".into());
        api.create(&node);
        for (name, tolerations) in [
            ("intolerant", vec![]),
            ("patient", vec![toleration("bad", Some(60))]),
            ("stoic", vec![toleration("bad", None)]),
        ] {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            pod.metadata.namespace = Some("ns".into());
            let spec = pod.spec.get_or_insert_default();
            spec.node_name = Some("n".into());
            spec.tolerations = Some(tolerations);
            api.create(&pod);
        }
        let leaves = |name: &str| pods::is_terminating(&api.get::<Pod>("ns", name).unwrap());
        api.change::<Node>("", "n", |node| {
            node.spec.get_or_insert_default().taints = Some(vec![taint("bad")]);
        });
        eventually("the intolerant goes at once", || async {
            leaves("intolerant").then_some(())
        })
        .await;
        let pod: Pod = api.get("ns", "intolerant").unwrap();
        assert!(pods::condition(&pod, "DisruptionTarget").is_some());
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(!leaves("patient"));
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert!(leaves("patient") && !leaves("stoic"));
    }
}
