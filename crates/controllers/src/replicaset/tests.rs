use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSetSpec;
use k8s_openapi::api::core::v1::{PodTemplateSpec, ReplicationControllerSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::api::ObjectMeta;
use sampan_client::Clock;
use sampan_client::testing::{FakeApi, eventually};

use super::*;
use crate::testing::Cluster;

fn labels() -> std::collections::BTreeMap<String, String> {
    [("app".to_owned(), "web".to_owned())].into()
}

fn template() -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels()),
            ..Default::default()
        }),
        spec: Some(Default::default()),
    }
}

fn set(replicas: i32) -> ReplicaSet {
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: Some(labels()),
                ..Default::default()
            },
            template: Some(template()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn set_ready(api: &FakeApi, name: &str, since: Time) {
    api.change::<Pod>("ns", name, |pod| crate::testing::set_ready(pod, true, since));
}

async fn pods(api: &FakeApi, count: usize) -> Vec<Pod> {
    eventually(&format!("{count} Pods"), || async {
        let pods = api.all::<Pod>();
        (pods.len() == count).then_some(pods)
    })
    .await
}

async fn status_is(api: &FakeApi, what: &str, check: impl Fn(Status) -> bool) {
    eventually(what, || async {
        check(api.get::<ReplicaSet>("ns", "web")?.status()).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pods_are_made_replaced_and_removed() {
    let cluster = Cluster::start(&["replicaset-controller"]);
    let api = &cluster.api;
    api.create(&set(30));
    let made = pods(api, 30).await;
    assert!(made[0].name_any().starts_with("web-"));
    status_is(api, "30 replicas", |s| s.replicas == 30 && s.observed_generation == 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let creates = api
        .actions()
        .iter()
        .filter(|a| a.verb == "create" && a.resource == "pods")
        .count();
    assert_eq!(creates, 30, "never one too many");

    api.remove::<Pod>("ns", &made[0].name_any());
    api.change::<Pod>("ns", &made[1].name_any(), |pod| {
        pod.status.get_or_insert_default().phase = Some("Failed".into());
    });
    // The failed one stays until the garbage collection of Pods; both are replaced.
    pods(api, 31).await;
    status_is(api, "30 again", |s| s.replicas == 30).await;

    api.change::<ReplicaSet>("ns", "web", |set| {
        set.spec.as_mut().unwrap().replicas = Some(2);
    });
    pods(api, 3).await;
    status_is(api, "2 replicas", |s| s.replicas == 2 && s.observed_generation == 2).await;
}

#[tokio::test(start_paused = true)]
async fn orphans_are_adopted_and_strangers_released() {
    let cluster = Cluster::start(&["replicaset-controller"]);
    let api = &cluster.api;
    let mut orphan = Pod::default();
    orphan.metadata.name = Some("orphan".into());
    orphan.metadata.namespace = Some("ns".into());
    orphan.metadata.labels = Some(labels());
    api.create(&orphan);
    let set = api.create(&set(1));
    eventually("adoption", || async {
        owner::is_controlled_by(&api.get::<Pod>("ns", "orphan")?.metadata, set.metadata.uid.as_deref()?).then_some(())
    })
    .await;
    status_is(api, "the orphan counts", |s| s.replicas == 1).await;
    assert_eq!(api.all::<Pod>().len(), 1);
    api.change::<Pod>("ns", "orphan", |pod| pod.metadata.labels = None);
    let both = pods(api, 2).await;
    let released = both.iter().find(|pod| pod.name_any() == "orphan").unwrap();
    assert!(owner::controller_of(&released.metadata).is_none());
}

#[tokio::test(start_paused = true)]
async fn readiness_becomes_availability_with_time() {
    let cluster = Cluster::start(&["replicaset-controller"]);
    let api = &cluster.api;
    let mut set = set(1);
    set.spec.as_mut().unwrap().min_ready_seconds = Some(30);
    api.create(&set);
    let pod = pods(api, 1).await.remove(0);
    set_ready(api, &pod.name_any(), cluster.clock.time());
    status_is(api, "ready, not available", |s| s.ready == 1 && s.available == 0).await;
    tokio::time::sleep(Duration::from_secs(31)).await;
    status_is(api, "available", |s| s.available == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_pod_is_told_and_tried_again() {
    let cluster = Cluster::start(&["replicaset-controller"]);
    let api = &cluster.api;
    for _ in 0..3 {
        api.fail_next("create", "pods", 403, "Forbidden", "exceeded quota");
    }
    api.create(&set(3));
    status_is(api, "the failure shows", |s| {
        s.conditions.iter().any(|c| {
            c.type_ == FAILURE
                && c.reason.as_deref() == Some("FailedCreate")
                && c.message.as_deref() == Some("exceeded quota")
        })
    })
    .await;
    pods(api, 3).await;
    status_is(api, "all is well", |s| s.conditions.is_empty() && s.replicas == 3).await;
}

#[tokio::test(start_paused = true)]
async fn replication_controllers_work_alike() {
    let cluster = Cluster::start(&["replicationcontroller-controller"]);
    let api = &cluster.api;
    api.create(&ReplicationController {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            ..Default::default()
        },
        spec: Some(ReplicationControllerSpec {
            replicas: Some(2),
            selector: Some(labels()),
            template: Some(template()),
            ..Default::default()
        }),
        ..Default::default()
    });
    let made = pods(api, 2).await;
    set_ready(api, &made[0].name_any(), cluster.clock.time());
    eventually("one ready", || async {
        let status = api.get::<ReplicationController>("ns", "web")?.status?;
        (status.ready_replicas == Some(1) && status.available_replicas == Some(1)).then_some(())
    })
    .await;
}
