//! The whole scheduler on the API in memory; the tests play binder and provisioner.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use sampan_claims::{BIND_COMPLETED, SELECTED_NODE, annotation, claim_ref, mark};
use sampan_client::testing::{FakeApi, eventually};
use sampan_client::{Informers, Recorder, SystemClock};
use sampan_tasks::{OnExit, Tasks};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::run::{Config, run};

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

struct World {
    api: FakeApi,
    tasks: Tasks,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.drain().start();
    }
}

impl World {
    /// A scheduler, two nodes `a` and `b`, and a class of volumes that wait for their Pods.
    fn new(provisioner: &str) -> World {
        let (api, tasks) = (FakeApi::new(), Tasks::new());
        for name in ["a", "b"] {
            api.create::<Node>(&typed(json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"}}})));
        }
        api.create::<StorageClass>(&typed(json!({"metadata": {"name": "late"}, "provisioner": provisioner,
            "volumeBindingMode": "WaitForFirstConsumer"})));
        let client = api.client("system:kube-scheduler");
        let informers = Informers::new(client.clone(), &tasks);
        let recorder = Recorder::new(client.clone(), "default-scheduler", None, Arc::new(SystemClock), &tasks);
        let scheduler = run(Config::default(), client, informers, recorder, tasks.drain());
        tasks.spawn("scheduler", OnExit::Expected, scheduler);
        World { api, tasks }
    }

    fn claim(&self, name: &str, change: Value) {
        let mut claim = json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "late",
                "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Pending"}});
        merge(&mut claim, change);
        self.api.create::<PersistentVolumeClaim>(&typed(claim));
    }

    /// A free volume, on one node if one is named.
    fn volume(&self, name: &str, node: Option<&str>, change: Value) {
        let mut volume = json!({"metadata": {"name": name}, "status": {"phase": "Available"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "late",
                "hostPath": {"path": "/x"}}});
        if let Some(node) = node {
            volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}});
        }
        merge(&mut volume, change);
        self.api.create::<PersistentVolume>(&typed(volume));
    }

    fn pod(&self, name: &str, claims: &[&str]) {
        let volumes: Vec<Value> = claims
            .iter()
            .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
            .collect();
        self.pod_with(name, json!(volumes));
    }

    fn pod_with(&self, name: &str, volumes: Value) {
        self.api
            .create::<Pod>(&typed(json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c"}], "volumes": volumes}})));
    }

    fn the_claim(&self, name: &str) -> PersistentVolumeClaim {
        self.api.get("ns", name).unwrap()
    }

    fn node_of(&self, pod: &str) -> Option<String> {
        self.api.get::<Pod>("ns", pod)?.spec?.node_name
    }

    async fn selected(&self, claim: &str) -> String {
        eventually(&format!("a node for {claim}"), || async {
            annotation(&self.the_claim(claim).metadata.annotations, SELECTED_NODE).map(str::to_owned)
        })
        .await
    }

    async fn given(&self, claim: &str) -> PersistentVolume {
        eventually(&format!("a volume for {claim}"), || async {
            let volumes = self.api.all::<PersistentVolume>();
            volumes
                .into_iter()
                .find(|volume| claim_ref(volume).and_then(|named| named.name.as_deref()) == Some(claim))
        })
        .await
    }

    async fn bound(&self, pod: &str) -> String {
        eventually(&format!("a node for {pod}"), || async { self.node_of(pod) }).await
    }

    /// Plays the binder: the claim has this volume.
    fn bind(&self, claim: &str, volume: &str) {
        let of = self.the_claim(claim);
        self.api.change::<PersistentVolume>("", volume, |volume| {
            volume.spec.get_or_insert_default().claim_ref = Some(sampan_claims::reference(&of));
            volume.status.get_or_insert_default().phase = Some("Bound".into());
        });
        self.api.change::<PersistentVolumeClaim>("ns", claim, |claim| {
            claim.spec.get_or_insert_default().volume_name = Some(volume.to_owned());
            claim.status.get_or_insert_default().phase = Some("Bound".into());
            mark(&mut claim.metadata.annotations, BIND_COMPLETED, "yes");
        });
    }

    /// What the Pod is told.
    async fn told(&self, pod: &str) -> String {
        eventually(&format!("what {pod} is told"), || async {
            let conditions = self.api.get::<Pod>("ns", pod)?.status?.conditions?;
            let told = conditions
                .into_iter()
                .find(|condition| condition.type_ == "PodScheduled")?;
            told.message
        })
        .await
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

#[tokio::test]
async fn a_claim_is_provisioned_where_its_pod_goes() {
    let world = World::new("example.com/disk");
    world.claim("c", json!({}));
    world.pod("p", &["c"]);
    let node = world.selected("c").await;
    assert_eq!(world.node_of("p"), None);
    // A second Pod of the claim goes the same way.
    world.pod("q", &["c"]);
    world.volume("v", Some(&node), json!({}));
    world.bind("c", "v");
    assert_eq!(world.bound("p").await, node);
    assert_eq!(world.bound("q").await, node);
}

#[tokio::test]
async fn two_pods_never_get_one_volume() {
    let world = World::new("kubernetes.io/no-provisioner");
    world.volume("on-a", Some("a"), json!({}));
    world.volume("on-b", Some("b"), json!({}));
    for number in 0..2 {
        world.claim(&format!("c{number}"), json!({}));
        world.pod(&format!("p{number}"), &[&format!("c{number}")]);
    }
    let mut nodes = Vec::new();
    for number in 0..2 {
        let claim = format!("c{number}");
        let volume = world.given(&claim).await.metadata.name.unwrap();
        world.bind(&claim, &volume);
        let node = world.bound(&format!("p{number}")).await;
        assert_eq!(volume, format!("on-{node}"));
        nodes.push(node);
    }
    nodes.sort();
    assert_eq!(nodes, ["a", "b"]);
}

#[tokio::test]
async fn a_pod_with_two_claims_finds_both_on_one_node() {
    let world = World::new("kubernetes.io/no-provisioner");
    world.volume("small-a", Some("a"), json!({}));
    world.volume("small-b", Some("b"), json!({}));
    world.volume("large-b", Some("b"), json!({"spec": {"capacity": {"storage": "9Gi"}}}));
    world.claim("small", json!({}));
    world.claim(
        "large",
        json!({"spec": {"resources": {"requests": {"storage": "5Gi"}}}}),
    );
    world.pod("p", &["large", "small"]);
    let large = world.given("large").await.metadata.name.unwrap();
    let small = world.given("small").await.metadata.name.unwrap();
    assert_eq!((&*large, &*small), ("large-b", "small-b"));
    world.bind("large", &large);
    world.bind("small", &small);
    assert_eq!(world.bound("p").await, "b");
}

#[tokio::test]
async fn a_claim_sent_back_by_its_provisioner_is_sent_again() {
    let world = World::new("example.com/disk");
    world.claim("c", json!({}));
    world.pod("p", &["c"]);
    world.selected("c").await;
    world.api.change::<PersistentVolumeClaim>("ns", "c", |claim| {
        claim.metadata.annotations.get_or_insert_default().remove(SELECTED_NODE);
    });
    let node = world.selected("c").await;
    world.volume("v", Some(&node), json!({}));
    world.bind("c", "v");
    assert_eq!(world.bound("p").await, node);
}

#[tokio::test]
async fn pods_are_told_what_is_wrong_with_their_claims() {
    let world = World::new("kubernetes.io/no-provisioner");
    world.api.create::<StorageClass>(&typed(
        json!({"metadata": {"name": "soon"}, "provisioner": "x", "volumeBindingMode": "Immediate"}),
    ));
    let bound = |volume: &str, phase: &str| {
        json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}, "spec": {"volumeName": volume},
            "status": {"phase": phase}})
    };
    world.claim("immediate", json!({"spec": {"storageClassName": "soon"}}));
    world.claim("lost", bound("gone", "Lost"));
    world.claim("nowhere", bound("gone", "Bound"));
    world.claim("elsewhere", bound("far", "Bound"));
    world.volume("far", Some("c"), json!({}));
    world.claim("none", json!({}));
    world.claim("own-e", json!({}));
    let all = "0/2 nodes are available: ";
    for (claim, expected) in [
        ("missing", "persistentvolumeclaim \"missing\" not found."),
        ("immediate", "pod has unbound immediate PersistentVolumeClaims."),
        (
            "lost",
            "persistentvolumeclaim \"lost\" bound to non-existent persistentvolume \"gone\".",
        ),
        (
            "nowhere",
            "2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s).",
        ),
        ("elsewhere", "2 node(s) didn't match PersistentVolume's node affinity."),
        ("none", "2 node(s) didn't find available persistent volumes to bind."),
    ] {
        world.pod(claim, &[claim]);
        let told = world.told(claim).await;
        assert!(told.starts_with(&format!("{all}{expected}")), "{claim}: {told}");
    }
    let ephemeral = json!([{"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]);
    for (pod, expected) in [
        ("own", "PVC ns/own-e was not created for pod ns/own (pod is not owner)."),
        (
            "early",
            "waiting for ephemeral volume controller to create the persistentvolumeclaim \"early-e\".",
        ),
    ] {
        world.pod_with(pod, ephemeral.clone());
        let told = world.told(pod).await;
        assert!(told.starts_with(&format!("{all}{expected}")), "{pod}: {told}");
    }
    // What was missing comes, and the Pod goes on.
    world.volume("v", Some("b"), json!({}));
    let given = world.given("none").await.metadata.name.unwrap();
    world.bind("none", &given);
    assert_eq!(world.bound("none").await, "b");
}

/// A claim that has this volume already.
fn has(volume: &str) -> Value {
    json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}, "spec": {"volumeName": volume},
        "status": {"phase": "Bound"}})
}

/// The volume that this claim has.
fn of(claim: &str) -> Value {
    json!({"spec": {"claimRef": {"namespace": "ns", "name": claim}}, "status": {"phase": "Bound"}})
}

const ALL: &str = "0/2 nodes are available: 2 ";

#[tokio::test]
async fn a_claim_for_one_pod_is_used_by_one() {
    let world = World::new("x");
    world.claim("c", has("v"));
    world.api.change::<PersistentVolumeClaim>("ns", "c", |claim| {
        claim.spec.get_or_insert_default().access_modes = Some(vec!["ReadWriteOncePod".into()]);
    });
    world.volume("v", None, of("c"));
    world.pod("p", &["c"]);
    world.pod("q", &["c"]);
    let (first, second) = eventually("one of them", || async {
        match (world.node_of("p"), world.node_of("q")) {
            (Some(_), None) => Some(("p", "q")),
            (None, Some(_)) => Some(("q", "p")),
            (None, None) => None,
            both => panic!("{both:?}"),
        }
    })
    .await;
    let told = world.told(second).await;
    let why = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by \
               another pod.";
    assert!(told.contains(why), "{told}");
    world.api.remove::<Pod>("ns", first);
    world.bound(second).await;
}

#[tokio::test]
async fn volumes_are_reached_from_their_zones() {
    let world = World::new("x");
    let zone = |node: &str, zone: &str| {
        world.api.change::<Node>("", node, |node| {
            let labels = node.metadata.labels.get_or_insert_default();
            labels.insert("topology.kubernetes.io/zone".into(), zone.into());
        });
    };
    zone("a", "z3");
    zone("b", "z3");
    world.claim("c", has("v"));
    let mut volume = of("c");
    volume["metadata"] = json!({"labels": {"failure-domain.beta.kubernetes.io/zone": "z1__z2"}});
    world.volume("v", None, volume);
    world.pod("p", &["c"]);
    let told = world.told("p").await;
    assert!(
        told.starts_with(&format!("{ALL}node(s) had no available volume zone.")),
        "{told}"
    );
    zone("b", "z2");
    assert_eq!(world.bound("p").await, "b");
}

#[tokio::test]
async fn nodes_hold_as_many_volumes_of_a_driver_as_they_say() {
    let world = World::new("x");
    for node in ["a", "b"] {
        world
            .api
            .create::<CSINode>(&typed(json!({"metadata": {"name": node}, "spec": {"drivers": [
            {"name": "disk", "nodeID": node, "allocatable": {"count": 1}}]}})));
    }
    for number in 0..3 {
        let (claim, volume) = (format!("c{number}"), format!("v{number}"));
        world.claim(&claim, has(&volume));
        let mut tree = of(&claim);
        tree["spec"]["csi"] = json!({"driver": "disk", "volumeHandle": volume});
        world.volume(&volume, None, tree);
    }
    world.pod("p0", &["c0"]);
    world.pod("p1", &["c1"]);
    assert_ne!(world.bound("p0").await, world.bound("p1").await);
    world.pod("p2", &["c2"]);
    let told = world.told("p2").await;
    assert!(
        told.starts_with(&format!("{ALL}node(s) exceed max volume count.")),
        "{told}"
    );
    // One that is there already takes no more room.
    world.pod("again", &["c0"]);
    assert_eq!(world.bound("again").await, world.bound("p0").await);
    world.api.remove::<Pod>("ns", "p1");
    world.bound("p2").await;
}

#[tokio::test]
async fn volumes_are_made_where_there_is_room() {
    let world = World::new("disk");
    world.api.create::<CSIDriver>(&typed(
        json!({"metadata": {"name": "disk"}, "spec": {"storageCapacity": true}}),
    ));
    world.claim("c", json!({}));
    let room = |name: &str, node: &str, size: &str| {
        world.api.create::<CSIStorageCapacity>(&typed(
            json!({"metadata": {"name": name, "namespace": "driver"}, "storageClassName": "late",
                "capacity": size, "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": node}}}),
        ));
    };
    room("small", "a", "900Mi");
    // The driver may be learned of later than the Pod.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    world.pod("p", &["c"]);
    let told = world.told("p").await;
    assert!(
        told.starts_with(&format!("{ALL}node(s) did not have enough free storage.")),
        "{told}"
    );
    room("large", "b", "1Gi");
    assert_eq!(world.selected("c").await, "b");
}

#[test]
fn disks_clash_unless_both_only_read() {
    let volume = |source: Value| -> Volume {
        let mut volume = json!({"name": "v"});
        merge(&mut volume, source);
        typed(volume)
    };
    let gce = |name: &str, reads: bool| json!({"gcePersistentDisk": {"pdName": name, "readOnly": reads}});
    let aws = |name: &str| json!({"awsElasticBlockStore": {"volumeID": name, "readOnly": true}});
    let rbd = |monitors: &[&str], reads: bool| json!({"rbd": {"monitors": monitors, "image": "i", "readOnly": reads}});
    let iscsi = |iqn: &str| json!({"iscsi": {"iqn": iqn, "lun": 0, "targetPortal": "p"}});
    for (left, right, expected) in [
        (gce("a", true), gce("a", true), false),
        (gce("a", true), gce("a", false), true),
        (gce("a", false), gce("b", false), false),
        (aws("a"), aws("a"), true),
        (aws("a"), gce("a", false), false),
        (rbd(&["m", "n"], false), rbd(&["n"], true), true),
        (rbd(&["m"], false), rbd(&["n"], false), false),
        (iscsi("a"), iscsi("a"), true),
        (iscsi("a"), iscsi("b"), false),
    ] {
        let found = super::super::volume_restrictions::clash(&volume(left.clone()), &volume(right.clone()));
        assert_eq!(found, expected, "{left} {right}");
    }
}
