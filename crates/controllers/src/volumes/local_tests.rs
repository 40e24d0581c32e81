use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams};
use sampan_claims::{SELECTED_NODE, annotation, claim_ref};
use sampan_client::testing::{FakeApi, PausedClock, eventually};
use sampan_client::{Informers, connect};
use sampan_tasks::Tasks;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::binder::phase_of;
use crate::{Config, Controllers};

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// The answers of nodes, in order; then 200.
type Answers = Arc<Mutex<Vec<u16>>>;

struct World {
    api: FakeApi,
    /// What nodes were asked to remove.
    asked: Arc<Mutex<Vec<String>>>,
    answers: Answers,
    _tasks: Tasks,
}

/// The binder and the provisioner, and nodes that only answer.
fn world() -> World {
    let (api, tasks) = (FakeApi::new(), Tasks::new());
    let informers = Informers::new(api.client("system:kube-controller-manager"), &tasks);
    let (asked, answers) = (Arc::new(Mutex::new(Vec::new())), Answers::default());
    let (seen, next, inner) = (Arc::clone(&asked), Arc::clone(&answers), api.clone());
    let client = move |user: &str| {
        let (api, seen, next) = (inner.client(user), Arc::clone(&seen), Arc::clone(&next));
        connect(tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (api, seen, next) = (api.clone(), Arc::clone(&seen), Arc::clone(&next));
            async move {
                if !request.uri().path().contains("/proxy/") {
                    return api.send(request).await;
                }
                seen.lock()
                    .unwrap()
                    .push(format!("{} {}", request.method(), request.uri()));
                let mut answers = next.lock().unwrap();
                let code = if answers.is_empty() { 200 } else { answers.remove(0) };
                let mut answer = http::Response::new(kube::client::Body::empty());
                *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
                Ok(answer)
            }
        }))
    };
    let config = Config {
        enabled: vec![
            "persistentvolume-binder-controller".into(),
            "sampan-local-volume-provisioner-controller".into(),
        ],
        ..Config::default()
    };
    Controllers::start_with_clock(config, client, &informers, &tasks, Arc::new(PausedClock::default())).unwrap();
    let world = World {
        api,
        asked,
        answers,
        _tasks: tasks,
    };
    world
        .api
        .create::<StorageClass>(&typed(json!({"metadata": {"name": "local"}, "reclaimPolicy": "Delete",
        "provisioner": "sampan.io/local-volume", "volumeBindingMode": "WaitForFirstConsumer"})));
    world
}

impl World {
    fn node(&self, name: &str, directory: Option<&str>) {
        let annotations = directory.map(|path| json!({"sampan.io/local-volumes": path}));
        self.api
            .create::<Node>(&typed(json!({"metadata": {"name": name, "annotations": annotations,
            "labels": {"kubernetes.io/hostname": name}}})));
    }

    /// A claim for which the scheduler has chosen a node.
    fn claim(&self, name: &str, node: &str, spec: Value) {
        let mut whole = json!({"storageClassName": "local", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}});
        for (key, value) in spec.as_object().cloned().unwrap_or_default() {
            whole[key] = value;
        }
        self.api
            .create::<PersistentVolumeClaim>(&typed(json!({"metadata": {"name": name, "namespace": "ns",
            "annotations": {SELECTED_NODE: node}}, "spec": whole, "status": {"phase": "Pending"}})));
    }

    fn get(&self, name: &str) -> PersistentVolumeClaim {
        self.api.get("ns", name).unwrap()
    }

    async fn bound(&self, name: &str) -> PersistentVolume {
        eventually(&format!("{name} has a volume"), || async {
            let phase = self.get(name).status.unwrap_or_default().phase;
            (phase.as_deref() == Some("Bound")).then_some(())
        })
        .await;
        let volume = sampan_claims::provisioned_name(&self.get(name));
        self.api.get("", &volume).unwrap()
    }

    async fn none_left(&self) {
        eventually("no volume is left", || async {
            self.api.all::<PersistentVolume>().is_empty().then_some(())
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_placed_claim_gets_a_directory_on_its_node_and_gives_it_back() {
    let world = world();
    world.node("n1", Some("/data/volumes/"));
    world.claim("c", "n1", json!({}));
    let volume = world.bound("c").await;
    let name = volume.metadata.name.clone().unwrap();
    let spec = volume.spec.clone().unwrap();
    assert_eq!(spec.local.unwrap().path, format!("/data/volumes/{name}"));
    assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
    let labels = [("kubernetes.io/hostname".to_owned(), "n1".to_owned())].into();
    assert!(sampan_claims::node_affinity(&volume_of(&world, &name), Some(&labels)));
    assert_eq!(claim_ref(&volume).unwrap().uid, world.get("c").metadata.uid);
    // The node is away at first, and asked again.
    world.answers.lock().unwrap().extend([503, 409]);
    world.api.remove::<PersistentVolumeClaim>("ns", "c");
    world.none_left().await;
    let path = format!("DELETE /api/v1/nodes/n1/proxy/localvolumes/{name}?path=/data/volumes/{name}");
    let asked = world.asked.lock().unwrap().clone();
    assert!(asked.len() >= 3 && asked.iter().all(|one| *one == path), "{asked:?}");
}

fn volume_of(world: &World, name: &str) -> PersistentVolume {
    world.api.get("", name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_is_not_insisted_on() {
    let world = world();
    world.node("bare", None);
    for (name, node) in [("a", "bare"), ("b", "absent")] {
        world.claim(name, node, json!({}));
        eventually("the node is chosen again", || async {
            let claim = world.get(name);
            annotation(&claim.metadata.annotations, SELECTED_NODE)
                .is_none()
                .then_some(())
        })
        .await;
    }
    world.node("n1", Some("/v"));
    world.claim("block", "n1", json!({"volumeMode": "Block"}));
    world.claim("many", "n1", json!({"accessModes": ["ReadWriteMany"]}));
    world.claim(
        "copy",
        "n1",
        json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}}),
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(world.api.all::<PersistentVolume>().is_empty());
    for name in ["block", "many", "copy"] {
        // No other node could do better.
        let claim = world.get(name);
        assert_eq!(annotation(&claim.metadata.annotations, SELECTED_NODE), Some("n1"));
    }
}

#[tokio::test(start_paused = true)]
async fn retained_volumes_and_those_of_lost_nodes() {
    let world = world();
    world.node("n1", Some("/v"));
    world.claim("keep", "n1", json!({}));
    let name = world.bound("keep").await.metadata.name.unwrap();
    world.api.change::<PersistentVolume>("", &name, |volume| {
        volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Retain".into());
    });
    world.api.remove::<PersistentVolumeClaim>("ns", "keep");
    eventually("it is released", || async {
        (phase_of(&volume_of(&world, &name)) == "Released").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let volumes: Api<PersistentVolume> = Api::all(world.api.client("admin"));
    volumes.delete(&name, &DeleteParams::default()).await.unwrap();
    world.none_left().await;
    assert!(world.asked.lock().unwrap().is_empty(), "the data stays");
    // A node that was taken away takes its volumes along.
    world.claim("gone", "n1", json!({}));
    world.bound("gone").await;
    world.answers.lock().unwrap().extend([503; 3]);
    world.api.remove::<PersistentVolumeClaim>("ns", "gone");
    tokio::time::sleep(Duration::from_millis(10)).await;
    world.api.remove::<Node>("", "n1");
    world.none_left().await;
}

/// Objects of others that claim to be ours.
#[tokio::test(start_paused = true)]
async fn hostile_volumes_reach_no_other_path() {
    let world = world();
    world.node("n1", Some("/v"));
    let hostile = |name: &str, node: &str| -> PersistentVolume {
        typed(
            json!({"metadata": {"name": name, "finalizers": ["sampan.io/local-volume"], "annotations": {
            "pv.kubernetes.io/provisioned-by": "sampan.io/local-volume", "sampan.io/node": node}},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "local": {"path": "/etc/x?y&z"},
                "persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": "ns", "name": "none", "uid": "u"}},
            "status": {"phase": "Released"}}),
        )
    };
    world.api.create(&hostile("a", "n1/proxy/exec"));
    world.api.create(&hostile("b", "n1"));
    world.none_left().await;
    let mut asked = world.asked.lock().unwrap().clone();
    asked.dedup();
    // The node is told the path and compares it with its own.
    assert_eq!(
        asked,
        ["DELETE /api/v1/nodes/n1/proxy/localvolumes/b?path=/etc/x%3Fy%26z"]
    );
}
