use std::time::Duration;

use k8s_openapi::api::apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ObjectMeta;
use sampan_client::testing::{FakeApi, eventually};

use super::*;
use crate::testing::Cluster;

fn set(replicas: i32, change: impl FnOnce(&mut StatefulSetSpec)) -> StatefulSet {
    let labels = std::collections::BTreeMap::from([("app".to_owned(), "db".to_owned())]);
    let mut claim = PersistentVolumeClaim::default();
    claim.metadata.name = Some("data".into());
    let mut spec = StatefulSetSpec {
        replicas: Some(replicas),
        service_name: Some("db".into()),
        selector: LabelSelector {
            match_labels: Some(labels.clone()),
            ..Default::default()
        },
        update_strategy: Some(StatefulSetUpdateStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(RollingUpdateStatefulSetStrategy {
                partition: Some(0),
                max_unavailable: None,
            }),
        }),
        template: PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(labels),
                ..Default::default()
            }),
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "c".into(),
                    image: Some("one".into()),
                    ..Default::default()
                }],
                ..Default::default()
            }),
        },
        volume_claim_templates: Some(vec![claim]),
        ..Default::default()
    };
    change(&mut spec);
    StatefulSet {
        metadata: ObjectMeta {
            name: Some("db".into()),
            namespace: Some("ns".into()),
            ..Default::default()
        },
        spec: Some(spec),
        ..Default::default()
    }
}

fn images(api: &FakeApi) -> Vec<String> {
    let image = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
    api.all::<Pod>().iter().map(image).collect()
}

fn set_image(api: &FakeApi, image: &str) {
    api.change::<StatefulSet>("ns", "db", |set| {
        let template = &mut set.spec.as_mut().unwrap().template;
        template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    });
}

async fn settled(api: &FakeApi, replicas: i32, expected: &[&str]) -> StatefulSetStatus {
    eventually(&format!("{expected:?}"), || async {
        let set: StatefulSet = api.get("ns", "db")?;
        let status = set.status?;
        (images(api) == expected
            && status.observed_generation == set.metadata.generation
            && status.ready_replicas.unwrap_or(0) == replicas
            && status.available_replicas.unwrap_or(0) == replicas)
            .then_some(status)
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn in_order_with_claims_of_their_own() {
    let cluster = Cluster::start(&["statefulset-controller"]);
    let api = &cluster.api;
    api.create(&set(2, |_| {}));
    eventually("db-0", || async { api.get::<Pod>("ns", "db-0") }).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(api.get::<Pod>("ns", "db-1").is_none(), "not before db-0 is ready");
    cluster.run_pods();
    settled(api, 2, &["one", "one"]).await;
    let pod: Pod = api.get("ns", "db-1").unwrap();
    let spec = pod.spec.unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("db-1"));
    assert_eq!(spec.subdomain.as_deref(), Some("db"));
    let volume = &spec.volumes.unwrap()[0];
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "data-db-1");
    assert!(api.get::<PersistentVolumeClaim>("ns", "data-db-1").is_some());
    api.change::<StatefulSet>("ns", "db", |set| set.spec.as_mut().unwrap().replicas = Some(1));
    settled(api, 1, &["one"]).await;
    assert!(
        api.get::<PersistentVolumeClaim>("ns", "data-db-1").is_some(),
        "claims stay"
    );
}

#[tokio::test(start_paused = true)]
async fn updates_go_down_to_the_partition_and_back() {
    let cluster = Cluster::start(&["statefulset-controller"]);
    cluster.run_pods();
    let api = &cluster.api;
    api.create(&set(3, |_| {}));
    settled(api, 3, &["one", "one", "one"]).await;
    api.change::<StatefulSet>("ns", "db", |set| {
        let strategy = set.spec.as_mut().unwrap().update_strategy.as_mut().unwrap();
        strategy.rolling_update.as_mut().unwrap().partition = Some(2);
    });
    set_image(api, "two");
    let status = settled(api, 3, &["one", "one", "two"]).await;
    assert_eq!((status.current_replicas, status.updated_replicas), (Some(2), Some(1)));
    assert_ne!(status.current_revision, status.update_revision);
    // A Pod below the partition that dies comes back as it was.
    api.remove::<Pod>("ns", "db-0");
    settled(api, 3, &["one", "one", "two"]).await;
    api.change::<StatefulSet>("ns", "db", |set| {
        let strategy = set.spec.as_mut().unwrap().update_strategy.as_mut().unwrap();
        strategy.rolling_update.as_mut().unwrap().partition = Some(0);
    });
    settled(api, 3, &["two", "two", "two"]).await;
    eventually("the update is the current revision", || async {
        let status = api.get::<StatefulSet>("ns", "db")?.status?;
        (status.current_revision == status.update_revision && status.current_replicas == Some(3)).then_some(())
    })
    .await;
    set_image(api, "one");
    settled(api, 3, &["one", "one", "one"]).await;
    let revisions: Vec<i64> = api.all::<ControllerRevision>().iter().map(|r| r.revision).collect();
    assert_eq!(revisions.len(), 2);
    assert!(
        revisions.contains(&3),
        "the old revision is the newest again: {revisions:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn in_parallel_all_at_once() {
    let cluster = Cluster::start(&["statefulset-controller"]);
    let api = &cluster.api;
    api.create(&set(3, |spec| spec.pod_management_policy = Some("Parallel".into())));
    eventually("all three", || async { (api.all::<Pod>().len() == 3).then_some(()) }).await;
    cluster.run_pods();
    settled(api, 3, &["one", "one", "one"]).await;
    api.change::<Pod>("ns", "db-1", |pod| {
        pod.status.as_mut().unwrap().phase = Some("Failed".into())
    });
    settled(api, 3, &["one", "one", "one"]).await;
}
