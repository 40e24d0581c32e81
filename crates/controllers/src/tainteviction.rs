//! Deletes Pods from nodes with `NoExecute` taints that they do not tolerate, or no longer.
//!
//! A toleration for a time counts from when the Pod was first seen under the taint, as upstream counts, by the steady
//! clock. If the taints go or change so that the Pod may stay, its deletion is cancelled, and an event says so.
//!
//! Differs from upstream: when taints or tolerations change while a Pod's time runs, what holds now counts. Upstream keeps
//! to what it first decided, also after the taint that was the reason is gone. A Pod that is gone is not told that it may
//! stay.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Taint, Toleration};
use kube::ResourceExt;
use sampan_client::{Change, EventType, Informer, Key, WorkQueue};
use tokio::time::Instant;

use crate::metrics::{TAINT_DELETIONS, TAINT_LATENCY};
use crate::pods::{self, BY_NODE};
use crate::{Context, SyncError};

struct Evictor {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    queue: WorkQueue<Key>,
    /// The Pods that are under taints which they tolerate only for a time.
    leaving: Mutex<HashMap<Key, Leaving>>,
}

/// A Pod whose time runs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Leaving {
    since: Instant,
    /// How long it may stay by the taints and tolerations there are.
    patience: Duration,
    due: Instant,
}

impl Leaving {
    /// When a Pod must go that from `now` on may stay for so long, given what held for it before.
    fn new(before: Option<Leaving>, patience: Duration, now: Instant) -> Self {
        let (since, due) = match before {
            None => (now, now + patience),
            Some(before) if patience == before.patience => (before.since, before.due),
            // Another taint, from now on.
            Some(before) if patience < before.patience => (before.since, before.due.min(now + patience)),
            // What it tolerated least is gone.
            Some(before) => (before.since, before.since + patience),
        };
        Leaving { since, patience, due }
    }
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
        leaving: Mutex::default(),
    });
    let (changed, this) = (queue.clone(), Arc::clone(&evictor));
    pods.on_change(move |change| {
        let pod = change.object();
        let key = Key::of(pod.as_ref());
        if matches!(change, Change::Deleted(_)) {
            this.leaving().remove(&key);
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
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    let (value, had) = (text(&toleration.value), text(&taint.value));
    let numbers = || Some((had.parse::<i64>().ok()?, value.parse::<i64>().ok()?));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or_default() {
            "Exists" => true,
            "Equal" | "" => key == taint.key && value == had,
            "Gt" => numbers().is_some_and(|(had, bound)| had > bound),
            "Lt" => numbers().is_some_and(|(had, bound)| had < bound),
            _ => false,
        }
}

/// How long a Pod may stay.
#[derive(Debug, PartialEq)]
enum Stay {
    Forever,
    For(Duration),
    No,
}

fn stay<'a>(taints: impl Iterator<Item = &'a Taint>, tolerations: &[Toleration]) -> Stay {
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if matching.peek().is_none() {
            return Stay::No;
        }
        for seconds in matching.filter_map(|toleration| toleration.toleration_seconds) {
            // A year is as good as any longer time, and can be added to any moment.
            let time = Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(31_536_000));
            shortest = Some(shortest.map_or(time, |known| known.min(time)));
        }
    }
    shortest.map_or(Stay::Forever, Stay::For)
}

impl Evictor {
    fn leaving(&self) -> MutexGuard<'_, HashMap<Key, Leaving>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sync(&self, key: Key) -> Result<(), SyncError> {
        let Some(pod) = self.pods.get_key(&key) else {
            return Ok(());
        };
        let Some(node) = self.nodes.get("", pods::node_name(&pod)) else {
            return Ok(());
        };
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref());
        let mut due = Instant::now();
        match stay(no_execute(&node), tolerations.unwrap_or_default()) {
            Stay::Forever => {
                if self.leaving().remove(&key).is_some() {
                    self.say(&pod, format!("Cancelling deletion of Pod {key}"));
                }
                return Ok(());
            }
            Stay::No => {}
            Stay::For(patience) => {
                let now = Instant::now();
                let mut leaving = self.leaving();
                let its = Leaving::new(leaving.get(&key).copied(), patience, now);
                leaving.insert(key.clone(), its);
                if its.due > now {
                    self.queue.add_after(key, its.due - now);
                    return Ok(());
                }
                due = its.due;
            }
        }
        if pods::is_terminating(&pod) {
            return Ok(());
        }
        self.say(&pod, format!("Marking for deletion Pod {key}"));
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
        self.leaving().remove(&key);
        let metrics = self.context.metrics();
        metrics.add(&TAINT_DELETIONS, &[], 1);
        metrics.took(&TAINT_LATENCY, &[], due.elapsed());
        Ok(())
    }

    fn say(&self, pod: &Pod, message: String) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: pod.namespace(),
            name: Some(pod.name_any()),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        };
        let recorder = &self.context.recorder;
        recorder.event_about(about, EventType::Normal, "TaintManagerEviction", message);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Event;
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
                Stay::For(Duration::from_secs(10)),
            ),
            (
                vec![toleration("a", Some(-5)), toleration("b", None)],
                Stay::For(Duration::ZERO),
            ),
        ];
        for (tolerations, expected) in cases {
            assert_eq!(stay(taints.iter(), &tolerations), expected, "{tolerations:?}");
        }
        assert_eq!(stay([].iter(), &[]), Stay::Forever);
    }

    #[test]
    fn numbers_are_compared() {
        let numbered = |operator: &str, value: &str| Toleration {
            key: Some("cost".into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            ..Default::default()
        };
        let cost = |value: &str| Taint {
            value: Some(value.into()),
            ..taint("cost")
        };
        let cases = [
            ("Gt", "5", "10", true),
            ("Gt", "10", "10", false),
            ("Lt", "11", "10", true),
            ("Lt", "9", "10", false),
            ("Lt", "9", "cheap", false),
        ];
        for (operator, bound, had, expected) in cases {
            let tolerated = tolerates(&numbered(operator, bound), &cost(had));
            assert_eq!(tolerated, expected, "{had} {operator} {bound}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_holds_now_counts() {
        let start = Instant::now();
        let (after, long) = (|seconds| start + Duration::from_secs(seconds), Duration::from_secs);
        let first = Leaving::new(None, long(300), start);
        assert_eq!(first.due, after(300));
        let again = Leaving::new(Some(first), long(300), after(100));
        assert_eq!(again, first, "the same goes on");
        let shorter = Leaving::new(Some(first), long(10), after(100));
        assert_eq!(shorter.due, after(110), "from when it came");
        assert_eq!(Leaving::new(Some(first), long(299), after(100)).due, after(300));
        let longer = Leaving::new(Some(shorter), long(600), after(105));
        assert_eq!(longer.due, after(600), "from the beginning");
    }

    #[tokio::test(start_paused = true)]
    async fn pods_stay_when_the_taint_goes() {
        let cluster = Cluster::start(&["taint-eviction-controller"]);
        let api = &cluster.api;
        let mut node = Node::default();
        node.metadata.name = Some("n".into());
        node.spec.get_or_insert_default().taints = Some(vec![taint("bad")]);
        api.create(&node);
        let mut pod = Pod::default();
        pod.metadata.name = Some("patient".into());
        pod.metadata.namespace = Some("ns".into());
        let spec = pod.spec.get_or_insert_default();
        spec.node_name = Some("n".into());
        spec.tolerations = Some(vec![toleration("bad", Some(60))]);
        api.create(&pod);
        tokio::time::sleep(Duration::from_secs(40)).await;
        // Clocks that are set neither hasten nor delay it.
        cluster.step_clock(86_400);
        tokio::time::sleep(Duration::from_secs(10)).await;
        api.change::<Node>("", "n", |node| node.spec = None);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!pods::is_terminating(&api.get::<Pod>("ns", "patient").unwrap()));
        let said: Vec<String> = api
            .all::<Event>()
            .into_iter()
            .filter_map(|event| event.message)
            .collect();
        assert_eq!(said, ["Cancelling deletion of Pod ns/patient"]);
        // A new taint is a new time.
        cluster.step_clock(-86_400);
        api.change::<Node>("", "n", |node| {
            node.spec.get_or_insert_default().taints = Some(vec![taint("bad")]);
        });
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(!pods::is_terminating(&api.get::<Pod>("ns", "patient").unwrap()));
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert!(pods::is_terminating(&api.get::<Pod>("ns", "patient").unwrap()));
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
