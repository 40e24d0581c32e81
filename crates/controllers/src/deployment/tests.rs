use std::time::Duration;

use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStatus, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sampan_client::testing::{FakeApi, eventually};

use super::*;
use crate::testing::Cluster;

fn deployment(replicas: i32, image: &str) -> Deployment {
    let labels = std::collections::BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    Deployment {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            ..Default::default()
        },
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            revision_history_limit: Some(2),
            progress_deadline_seconds: Some(600),
            selector: LabelSelector {
                match_labels: Some(labels.clone()),
                ..Default::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::String("25%".into())),
                    max_unavailable: Some(IntOrString::String("25%".into())),
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
                        image: Some(image.into()),
                        ..Default::default()
                    }],
                    ..Default::default()
                }),
            },
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn cluster() -> Cluster {
    let cluster = Cluster::start(&["deployment-controller", "replicaset-controller"]);
    cluster.run_pods();
    cluster
}

fn set_image(api: &FakeApi, image: &str) {
    api.change::<Deployment>("ns", "web", |deployment| {
        deployment
            .spec
            .as_mut()
            .unwrap()
            .template
            .spec
            .as_mut()
            .unwrap()
            .containers[0]
            .image = Some(image.into());
    });
}

async fn status(api: &FakeApi, what: &str, check: impl Fn(&DeploymentStatus) -> bool) -> Deployment {
    eventually(what, || async {
        let deployment: Deployment = api.get("ns", "web")?;
        let status = deployment.status.clone().unwrap_or_default();
        (status.observed_generation == deployment.metadata.generation && check(&status)).then_some(deployment)
    })
    .await
}

/// What `kubectl rollout status` waits for.
async fn rolled_out(api: &FakeApi, replicas: i32) -> Deployment {
    status(api, "rolled out", |status| {
        status.updated_replicas == Some(replicas)
            && status.replicas == Some(replicas)
            && status.available_replicas == Some(replicas)
            && reason(status, "Progressing") == Some("NewReplicaSetAvailable")
            && reason(status, "Available") == Some("MinimumReplicasAvailable")
    })
    .await
}

fn reason<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a str> {
    status::condition(status, kind)?.reason.as_deref()
}

fn revision_of(deployment: &Deployment) -> &str {
    &deployment.annotations()[revision::REVISION]
}

#[tokio::test(start_paused = true)]
async fn a_rollout_and_its_undo() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&deployment(10, "one"));
    let first = rolled_out(api, 10).await;
    assert_eq!(revision_of(&first), "1");
    let set = api.all::<ReplicaSet>().remove(0);
    let hash = &set.labels()[revision::HASH_LABEL];
    assert_eq!(set.name_any(), format!("web-{hash}"));
    assert_eq!(api.all::<Pod>()[0].labels()[revision::HASH_LABEL], *hash);

    set_image(api, "two");
    let second = rolled_out(api, 10).await;
    assert_eq!(revision_of(&second), "2");
    let sizes: Vec<i32> = api.all::<ReplicaSet>().iter().map(rolling::replicas).collect();
    assert_eq!(sizes.iter().sum::<i32>(), 10);
    assert_eq!(sizes.len(), 2);

    // Undo: kubectl writes the old template back.
    set_image(api, "one");
    let third = rolled_out(api, 10).await;
    assert_eq!(revision_of(&third), "3");
    let back: ReplicaSet = api.get("ns", &set.name_any()).unwrap();
    assert_eq!(back.annotations()["deployment.kubernetes.io/revision-history"], "1");

    for image in ["three", "four", "five"] {
        set_image(api, image);
        rolled_out(api, 10).await;
    }
    eventually("history is trimmed to 2", || async {
        (api.all::<ReplicaSet>().len() == 3).then_some(())
    })
    .await;
    // When nothing changes, nothing is written.
    tokio::time::sleep(Duration::from_secs(5)).await;
    api.clear_actions();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(api.actions(), []);
}

#[tokio::test(start_paused = true)]
async fn a_broken_image_stops_within_bounds_and_is_reported() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&deployment(10, "one"));
    rolled_out(api, 10).await;
    set_image(api, "bad");
    // 3 above (25 % rounded up), 2 below (rounded down): 8 old ones stay, 5 new ones hang.
    let stuck = status(api, "as far as it goes", |s| {
        s.updated_replicas == Some(5) && s.available_replicas == Some(8)
    })
    .await;
    assert_eq!(stuck.status.unwrap().unavailable_replicas, Some(5));
    tokio::time::sleep(Duration::from_secs(605)).await;
    status(api, "the deadline shows", |s| {
        reason(s, "Progressing") == Some("ProgressDeadlineExceeded")
    })
    .await;
    // Scaling now is shared out: 13 Pods of 10 become 26 of 20.
    api.change::<Deployment>("ns", "web", |d| d.spec.as_mut().unwrap().replicas = Some(20));
    eventually("both sets grow", || async {
        let mut sizes: Vec<i32> = api.all::<ReplicaSet>().iter().map(rolling::replicas).collect();
        sizes.sort_unstable();
        (sizes == [10, 15]).then_some(())
    })
    .await;
    set_image(api, "one");
    rolled_out(api, 20).await;
}

#[tokio::test(start_paused = true)]
async fn recreate_ends_the_old_before_it_begins_the_new() {
    let cluster = Cluster::start(&["deployment-controller", "replicaset-controller"]);
    let api = &cluster.api;
    let mut recreate = deployment(2, "one");
    recreate.spec.as_mut().unwrap().strategy = Some(DeploymentStrategy {
        type_: Some("Recreate".into()),
        rolling_update: None,
    });
    api.create(&recreate);
    let pods = eventually("two Pods", || async {
        let pods = api.all::<Pod>();
        (pods.len() == 2).then_some(pods)
    })
    .await;
    for pod in &pods {
        api.change::<Pod>("ns", &pod.name_any(), |pod| {
            pod.spec.get_or_insert_default().node_name = Some("n".into());
        });
    }
    set_image(api, "two");
    eventually("the old ones are told to end", || async {
        api.all::<Pod>().iter().all(pods::is_terminating).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(api.all::<ReplicaSet>().len(), 1, "nothing new while old Pods run");
    for pod in &pods {
        api.remove::<Pod>("ns", &pod.name_any());
    }
    eventually("the new ones come", || async {
        let pods = api.all::<Pod>();
        (pods.len() == 2 && pods.iter().all(|pod| !pods::is_terminating(pod))).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn paused_deployments_scale_but_do_not_roll() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&deployment(2, "one"));
    rolled_out(api, 2).await;
    api.change::<Deployment>("ns", "web", |d| d.spec.as_mut().unwrap().paused = Some(true));
    set_image(api, "two");
    api.change::<Deployment>("ns", "web", |d| d.spec.as_mut().unwrap().replicas = Some(4));
    status(api, "scaled with the old image", |s| {
        s.available_replicas == Some(4)
            && s.updated_replicas.is_none()
            && reason(s, "Progressing") == Some("DeploymentPaused")
    })
    .await;
    assert_eq!(api.all::<ReplicaSet>().len(), 1);
    api.change::<Deployment>("ns", "web", |d| d.spec.as_mut().unwrap().paused = Some(false));
    rolled_out(api, 4).await;
    assert_eq!(api.all::<ReplicaSet>().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_name_taken_by_another_leads_to_another_hash() {
    let cluster = cluster();
    let api = &cluster.api;
    let wanted = deployment(1, "one");
    let template = &wanted.spec.as_ref().unwrap().template;
    let taken = format!("web-{}", revision::hash(template, None).unwrap());
    api.create(&ReplicaSet {
        metadata: ObjectMeta {
            name: Some(taken.clone()),
            namespace: Some("ns".into()),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            ..Default::default()
        }),
        ..Default::default()
    });
    api.create(&wanted);
    let done = rolled_out(api, 1).await;
    assert_eq!(done.status.unwrap().collision_count, Some(1));
}
