use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, Taint};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use sampan_client::testing::{FakeApi, eventually};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::testing::Cluster;

const NAME: &str = "kubernetes.io/csi/disk^h1";

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Nodes `a` and `b`, and a claim `c` that has volume `v1` of the driver `disk`.
fn world() -> Cluster {
    let cluster = Cluster::start(&["persistentvolume-attach-detach-controller"]);
    let api = &cluster.api;
    for name in ["a", "b"] {
        api.create::<Node>(&typed(
            json!({"metadata": {"name": name, "annotations": {MANAGED: "true"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        ));
    }
    api.create::<PersistentVolumeClaim>(&typed(
        json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u1"},
        "spec": {"volumeName": "v1"}, "status": {"phase": "Bound"}}),
    ));
    let uid = api.get::<PersistentVolumeClaim>("ns", "c").unwrap().metadata.uid;
    api.create::<PersistentVolume>(&typed(json!({"metadata": {"name": "v1"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "csi": {"driver": "disk", "volumeHandle": "h1"},
        "claimRef": {"namespace": "ns", "name": "c", "uid": uid}}})));
    cluster
}

fn pod(api: &FakeApi, name: &str, node: &str) {
    api.create::<Pod>(&typed(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {
        "nodeName": node, "containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}})));
}

fn attachments(api: &FakeApi) -> Vec<(String, String)> {
    let all = api.all::<VolumeAttachment>().into_iter();
    all.map(|one| (one.metadata.name.unwrap(), one.spec.node_name))
        .collect()
}

async fn attachment_to(api: &FakeApi, node: &str) -> String {
    eventually(&format!("an attachment to {node}"), || async {
        attachments(api).into_iter().find(|(_, to)| to == node)
    })
    .await
    .0
}

async fn none(api: &FakeApi) {
    eventually("no attachment", || async { attachments(api).is_empty().then_some(()) }).await;
}

fn answer(api: &FakeApi, name: &str, status: Value) {
    api.change::<VolumeAttachment>("", name, |attachment| attachment.status = Some(typed(status)));
}

async fn node_has(api: &FakeApi, node: &str, wanted: &[&str]) {
    eventually(&format!("{node} to have {wanted:?}"), || async {
        let shown = shown(&api.get::<Node>("", node)?);
        shown
            .iter()
            .map(String::as_str)
            .eq(wanted.iter().copied())
            .then_some(())
    })
    .await;
}

fn in_use(api: &FakeApi, node: &str, used: &[&str]) {
    api.change::<Node>("", node, |node| {
        let used = used.iter().map(ToString::to_string).collect();
        node.status.get_or_insert_default().volumes_in_use = Some(used);
    });
}

async fn told(api: &FakeApi, reason: &str) -> String {
    eventually(reason, || async {
        let mut events = api.all::<Event>().into_iter();
        let found = events.rfind(|event| event.reason.as_deref() == Some(reason));
        found?.message
    })
    .await
}

#[tokio::test]
async fn a_volume_is_where_its_pods_are_and_only_there() {
    let cluster = world();
    let api = &cluster.api;
    pod(api, "p", "a");
    let name = attachment_to(api, "a").await;
    // As everyone computes it.
    assert_eq!(name.len(), 68);
    let driver = api.get::<VolumeAttachment>("", &name).unwrap().spec;
    assert_eq!(
        (&*driver.attacher, driver.source.persistent_volume_name.as_deref()),
        ("disk", Some("v1"))
    );
    answer(
        api,
        &name,
        json!({"attached": false, "attachError": {"message": "busy"}}),
    );
    assert_eq!(
        told(api, "FailedAttachVolume").await,
        "AttachVolume.Attach failed for volume \"v1\" : busy"
    );
    answer(api, &name, json!({"attached": true}));
    node_has(api, "a", &[NAME]).await;
    assert_eq!(
        told(api, "SuccessfulAttachVolume").await,
        "AttachVolume.Attach succeeded for volume \"v1\" "
    );
    in_use(api, "a", &[NAME]);
    // Another node has to wait, and its Pod is told for whom.
    pod(api, "q", "b");
    eventually("the second Pod to be told", || async {
        let mut events = api.all::<Event>().into_iter();
        let wanted = "Multi-Attach error for volume \"v1\" Volume is already used by pod(s) p";
        events.rfind(|event| event.message.as_deref() == Some(wanted))
    })
    .await;
    api.remove::<Pod>("ns", "p");
    tokio::time::sleep(Duration::from_millis(100)).await;
    node_has(api, "a", &[NAME]).await;
    in_use(api, "a", &[]);
    node_has(api, "a", &[]).await;
    let name = attachment_to(api, "b").await;
    answer(api, &name, json!({"attached": true}));
    node_has(api, "b", &[NAME]).await;
    assert_eq!(attachments(api).len(), 1);
    // A Pod that is done needs it no more.
    api.change::<Pod>("ns", "q", |pod| {
        pod.status.get_or_insert_default().phase = Some("Succeeded".into())
    });
    none(api).await;
    node_has(api, "b", &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_lost_loses_its_volumes_after_six_minutes() {
    let cluster = world();
    let api = &cluster.api;
    pod(api, "p", "a");
    let name = attachment_to(api, "a").await;
    answer(api, &name, json!({"attached": true}));
    node_has(api, "a", &[NAME]).await;
    in_use(api, "a", &[NAME]);
    api.change::<Node>("", "a", |node| {
        node.status.get_or_insert_default().conditions = Some(typed(json!([{"type": "Ready", "status": "Unknown"}])));
    });
    api.remove::<Pod>("ns", "p");
    tokio::time::sleep(Duration::from_secs(350)).await;
    assert_eq!(attachments(api).len(), 1);
    tokio::time::sleep(Duration::from_secs(20)).await;
    none(api).await;
}

#[tokio::test]
async fn a_node_out_of_service_loses_them_at_once() {
    let cluster = world();
    let api = &cluster.api;
    pod(api, "p", "a");
    let name = attachment_to(api, "a").await;
    answer(api, &name, json!({"attached": true}));
    node_has(api, "a", &[NAME]).await;
    in_use(api, "a", &[NAME]);
    api.remove::<Pod>("ns", "p");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(attachments(api).len(), 1);
    api.change::<Node>("", "a", |node| {
        let taint: Taint = typed(json!({"key": OUT_OF_SERVICE, "effect": "NoExecute"}));
        node.spec.get_or_insert_default().taints = Some(vec![taint]);
    });
    none(api).await;
    node_has(api, "a", &[]).await;
}

#[tokio::test]
async fn what_needs_no_attaching_is_not_attached() {
    let cluster = world();
    let api = &cluster.api;
    api.create::<CSIDriver>(&typed(
        json!({"metadata": {"name": "disk"}, "spec": {"attachRequired": false}}),
    ));
    tokio::time::sleep(Duration::from_millis(100)).await;
    pod(api, "p", "a");
    // A node whose kubelet attaches itself.
    api.create::<Node>(&typed(json!({"metadata": {"name": "own"}})));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(attachments(api), []);
}
