//! Nodes that fall silent, come back, flap, and clocks that are set, with time that passes when nothing else happens.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Event, Node, NodeCondition, Pod, Taint};
use kube::api::ObjectMeta;
use sampan_client::Clock;
use sampan_client::testing::{FakeApi, eventually};

use super::health::{condition, is_ready, old_labels, taints};
use crate::pods;
use crate::testing::{Cluster, set_ready};

fn node(name: &str, conditions: &[(&str, &str)]) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    let conditions = conditions.iter().map(|(kind, status)| NodeCondition {
        type_: (*kind).into(),
        status: (*status).into(),
        ..Default::default()
    });
    node.status.get_or_insert_default().conditions = Some(conditions.collect());
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
    let worse = node("n", &[("Ready", "False")]);
    assert_eq!(
        keys(&taints(&worse, &tainted, true, now)),
        ["mine:NoExecute", "not-ready:NoSchedule", "not-ready:NoExecute"],
        "one or the other"
    );
    let good = node("n", &[("Ready", "True"), ("DiskPressure", "False")]);
    assert_eq!(taints(&good, &tainted, false, now), [other]);
    let mut cordoned = good.clone();
    cordoned.spec.get_or_insert_default().unschedulable = Some(true);
    assert_eq!(keys(&taints(&cordoned, &[], false, now)), ["unschedulable:NoSchedule"]);
    let born = taints(&worse, &[], false, now);
    assert_eq!(
        taints(&node("n", &[]), &born, false, now),
        born,
        "kept until it has said something"
    );
}

#[test]
fn labels_of_old_follow_those_of_today() {
    let labelled = |labels: &[(&str, &str)]| {
        let mut node = node("n", &[]);
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        node.metadata.labels = Some(labels.collect());
        old_labels(&node)
    };
    assert_eq!(labelled(&[]), []);
    assert_eq!(labelled(&[("beta.kubernetes.io/os", "plan9")]), []);
    assert_eq!(
        labelled(&[
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", "arm64"),
            ("beta.kubernetes.io/arch", "amd64")
        ]),
        [
            ("beta.kubernetes.io/os", "linux".to_owned()),
            ("beta.kubernetes.io/arch", "arm64".to_owned())
        ]
    );
}

/// Nodes whose agents renew their leases as long as they are told to.
struct Fleet {
    cluster: Cluster,
}

impl Fleet {
    fn new(nodes: &[&str]) -> Self {
        let cluster = Cluster::start(&["node-lifecycle-controller"]);
        for name in nodes {
            cluster.api.create(&Lease {
                metadata: ObjectMeta {
                    name: Some((*name).into()),
                    namespace: Some("kube-node-lease".into()),
                    ..Default::default()
                },
                spec: Some(LeaseSpec::default()),
            });
            cluster.api.create(&node(name, &[("Ready", "True")]));
        }
        Fleet { cluster }
    }

    fn api(&self) -> &FakeApi {
        &self.cluster.api
    }

    fn pod(&self, name: &str, node: &str) {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("ns".into());
        pod.spec.get_or_insert_default().node_name = Some(node.into());
        set_ready(&mut pod, true, self.cluster.clock.time());
        self.api().create(&pod);
    }

    /// Ten seconds at a time, at the beginning of which `alive` renew their leases.
    async fn pass(&self, seconds: u64, alive: &[&str]) {
        for _ in 0..seconds / 10 {
            for name in alive {
                self.api().change::<Lease>("kube-node-lease", name, |lease| {
                    lease.spec.get_or_insert_default().renew_time = Some(self.cluster.clock.micro_time());
                });
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    }

    /// Posts the status of a node.
    fn post(&self, name: &str, status: &str) {
        self.api().change::<Node>("", name, |node| {
            let ready = &mut node.status.as_mut().unwrap().conditions.as_mut().unwrap()[0];
            ready.status = status.into();
            ready.last_heartbeat_time = Some(self.cluster.clock.time());
        });
    }

    fn taints(&self, name: &str) -> Vec<String> {
        let node: Node = self.api().get("", name).unwrap();
        keys(&node.spec.unwrap_or_default().taints.unwrap_or_default())
    }

    fn ready(&self, name: &str) -> bool {
        is_ready(&self.api().get::<Node>("", name).unwrap())
    }

    fn writes(&self, resource: &str) -> usize {
        let actions = self.api().actions();
        let writes = actions
            .iter()
            .filter(|a| ["patch", "update", "create"].contains(&a.verb));
        writes.filter(|a| a.resource == resource).count()
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_told_from_the_living() {
    let fleet = Fleet::new(&["silent", "alive"]);
    fleet.pod("p", "silent");
    fleet.pass(40, &["alive"]).await;
    assert!(fleet.ready("silent"), "it has its grace period");
    fleet.pass(20, &["alive"]).await;
    assert_eq!(
        fleet.taints("silent"),
        ["unreachable:NoSchedule", "unreachable:NoExecute"]
    );
    let silent: Node = fleet.api().get("", "silent").unwrap();
    let ready = condition(&silent, "Ready").unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_deref()),
        ("Unknown", Some("NodeStatusUnknown"))
    );
    assert!(fleet.taints("alive").is_empty());
    assert!(!pods::is_ready(&fleet.api().get::<Pod>("ns", "p").unwrap()));
    let events: Vec<Event> = fleet.api().all();
    for (reason, message) in [
        (
            "RegisteredNode",
            "Node silent event: Registered Node silent in Controller",
        ),
        ("NodeNotReady", "Node silent status is now: NodeNotReady"),
        ("NodeNotReady", "Node is not ready"),
    ] {
        let said = events
            .iter()
            .any(|event| event.reason.as_deref() == Some(reason) && event.message.as_deref() == Some(message));
        assert!(said, "{message}");
    }

    // The other one dies too: nobody is left to move to, so nobody is driven away.
    fleet.pass(60, &[]).await;
    for name in ["silent", "alive"] {
        assert_eq!(fleet.taints(name), ["unreachable:NoSchedule"], "{name}");
    }

    // Back to life; the other one is still silent, and has its whole grace period again.
    fleet.post("alive", "True");
    fleet.pass(10, &["alive"]).await;
    assert!(fleet.taints("alive").is_empty());
    fleet.pass(60, &["alive"]).await;
    assert_eq!(
        fleet.taints("silent"),
        ["unreachable:NoSchedule", "unreachable:NoExecute"]
    );
    fleet.post("silent", "True");
    eventually("it is free again", || async {
        fleet.taints("silent").is_empty().then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_spoke_has_its_time_to_start() {
    let fleet = Fleet::new(&["other"]);
    fleet.api().create(&node("new", &[]));
    fleet.pass(50, &["other"]).await;
    let status = || condition(&fleet.api().get::<Node>("", "new").unwrap(), "Ready").map(|ready| ready.reason.clone());
    assert_eq!(status(), None);
    fleet.pass(20, &["other"]).await;
    assert_eq!(status(), Some(Some("NodeStatusNeverUpdated".into())));
    // As long as it renews its lease it counts as starting.
    assert!(fleet.ready("other"));
}

#[tokio::test(start_paused = true)]
async fn every_node_silent_at_once_and_nobody_driven_away() {
    let names: Vec<String> = (0..20).map(|number| format!("n{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let fleet = Fleet::new(&names);
    for name in &names {
        fleet.pod(&format!("p-{name}"), name);
    }
    // Their last signs of life are spread over ten seconds, as in a real cluster.
    for name in &names {
        fleet.api().change::<Lease>("kube-node-lease", name, |lease| {
            lease.spec.get_or_insert_default().renew_time = Some(fleet.cluster.clock.micro_time());
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for name in &names {
            let driven = fleet.taints(name).iter().any(|taint| taint.ends_with("NoExecute"));
            assert!(!driven, "{name}");
        }
    }
    assert!(names.iter().all(|name| !fleet.ready(name)));
    let writes = fleet.writes("nodes") + fleet.writes("nodes/status");
    assert!(writes <= 4 * names.len(), "{writes} writes for {} nodes", names.len());

    // They come back one after the other: nobody is driven away on the way, and nothing is left of it.
    for name in &names {
        fleet.post(name, "True");
        fleet.pass(10, &names).await;
        assert!(
            names
                .iter()
                .all(|name| !fleet.taints(name).iter().any(|t| t.ends_with("NoExecute")))
        );
    }
    assert!(names.iter().all(|name| fleet.taints(name).is_empty()));
}

#[tokio::test(start_paused = true)]
async fn every_node_says_that_it_is_not_ready_at_once() {
    let fleet = Fleet::new(&["a", "b", "c", "d"]);
    fleet.pass(20, &["a", "b", "c", "d"]).await;
    for name in ["a", "b", "c", "d"] {
        fleet.post(name, "False");
        tokio::time::sleep(Duration::from_millis(800)).await;
    }
    fleet.pass(600, &["a", "b", "c", "d"]).await;
    for name in ["a", "b", "c", "d"] {
        assert_eq!(fleet.taints(name), ["not-ready:NoSchedule"]);
    }
    // One is well again: most of a small zone is not, so the others are left alone.
    fleet.post("a", "True");
    fleet.pass(120, &["a", "b", "c", "d"]).await;
    assert_eq!(fleet.taints("b"), ["not-ready:NoSchedule"]);
    // With two, half of it is well, and the rest goes one by one.
    fleet.post("b", "True");
    fleet.pass(120, &["a", "b", "c", "d"]).await;
    for name in ["c", "d"] {
        assert_eq!(fleet.taints(name), ["not-ready:NoSchedule", "not-ready:NoExecute"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_leaves_taints_that_hold() {
    let fleet = Fleet::new(&["a", "b"]);
    fleet.pass(70, &["a"]).await;
    assert_eq!(fleet.taints("b"), ["unreachable:NoSchedule", "unreachable:NoExecute"]);
    let since = fleet.api().get::<Node>("", "b").unwrap().spec;
    let api = fleet.api().clone();
    fleet.cluster.stop();
    let fleet = Fleet {
        cluster: Cluster::with(api, &["node-lifecycle-controller"], |_| {}),
    };
    fleet.pass(120, &["a"]).await;
    assert_eq!(fleet.api().get::<Node>("", "b").unwrap().spec, since);
}

#[tokio::test(start_paused = true)]
async fn clocks_that_are_set_matter_to_nobody() {
    let fleet = Fleet::new(&["a", "b", "c"]);
    let all = ["a", "b", "c"];
    fleet.pass(30, &all).await;
    for step in [3600, -7200, 86_400, -86_400] {
        fleet.cluster.step_clock(step);
        fleet.pass(120, &all).await;
        for name in all {
            assert!(
                fleet.ready(name) && fleet.taints(name).is_empty(),
                "{name} after {step} s"
            );
        }
    }
    // A node whose own clock goes back renews with times before those it had.
    fleet.api().change::<Lease>("kube-node-lease", "a", |lease| {
        let ahead = Timestamp::from_second(4_000_000_000).unwrap();
        lease.spec.as_mut().unwrap().renew_time =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(ahead));
    });
    fleet.pass(120, &all).await;
    assert!(fleet.ready("a"));
    // And who is really silent is found out, whatever the clock says.
    fleet.pass(40, &["a", "b"]).await;
    fleet.cluster.step_clock(-86_400);
    fleet.pass(30, &["a", "b"]).await;
    assert_eq!(fleet.taints("c"), ["unreachable:NoSchedule", "unreachable:NoExecute"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_flaps_is_never_evicted_and_costs_little() {
    let all = ["flaps", "b", "c"];
    let fleet = Fleet::new(&all);
    fleet.pod("p", "flaps");
    fleet.pass(10, &all).await;
    fleet.api().clear_actions();
    // Not ready for 2 s, ready for 2 s, for ten minutes.
    for _ in 0..15 {
        fleet.pass(0, &all).await;
        for name in all {
            fleet.api().change::<Lease>("kube-node-lease", name, |lease| {
                lease.spec.get_or_insert_default().renew_time = Some(fleet.cluster.clock.micro_time());
            });
        }
        for _ in 0..10 {
            for status in ["False", "True"] {
                fleet.post("flaps", status);
                tokio::time::sleep(Duration::from_secs(2)).await;
                assert!(!fleet.taints("flaps").iter().any(|taint| taint.ends_with("NoExecute")));
            }
        }
    }
    // 300 changes: a taint each, and nothing else.
    assert!(fleet.writes("nodes") <= 310, "{} writes", fleet.writes("nodes"));
    assert_eq!(fleet.writes("nodes/status"), 0);
    assert_eq!(fleet.writes("pods/status"), 0);
    assert!(fleet.writes("events") <= 30);
}

#[tokio::test(start_paused = true)]
async fn zones_go_at_their_own_rate() {
    let names: Vec<String> = (0..12).map(|number| format!("n{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let fleet = Fleet::new(&names);
    for (index, name) in names.iter().enumerate() {
        fleet.api().change::<Node>("", name, |node| {
            let zone = if index < 6 { "dark" } else { "light" };
            let labels = node.metadata.labels.get_or_insert_default();
            labels.insert("topology.kubernetes.io/zone".into(), zone.into());
        });
    }
    // All of a zone goes dark: its nodes are given up at the normal rate, one in ten seconds.
    let (dark, light) = names.split_at(6);
    let driven = || {
        let driven = |name: &&&str| fleet.taints(name).iter().any(|taint| taint.ends_with("NoExecute"));
        dark.iter().filter(driven).count()
    };
    fleet.pass(60, light).await;
    let first = driven();
    assert!((1..=2).contains(&first), "{first}");
    fleet.pass(30, light).await;
    assert_eq!(driven(), first + 3);
    fleet.pass(60, light).await;
    assert_eq!(driven(), 6);
    assert!(light.iter().all(|name| fleet.taints(name).is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_gone_is_forgotten() {
    let fleet = Fleet::new(&["a", "b"]);
    fleet.pass(30, &["a", "b"]).await;
    fleet.api().remove::<Node>("", "b");
    fleet.pass(120, &["a"]).await;
    let events: Vec<Event> = fleet.api().all();
    let said = events
        .iter()
        .any(|event| event.message.as_deref() == Some("Node b event: Removing Node b from Controller"));
    assert!(said && fleet.api().all::<Node>().len() == 1);
    assert!(fleet.ready("a"));
}
