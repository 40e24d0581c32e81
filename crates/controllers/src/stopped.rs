//! Controllers stopped at each of their writes: others go on from the objects, nothing is doubled and nothing lost. And
//! what a workload costs in writes.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use sampan_client::testing::{FakeApi, eventually};
use serde_json::{Value, json};

use crate::testing::Cluster;

const CONTROLLERS: [&str; 5] = [
    "deployment-controller",
    "replicaset-controller",
    "statefulset-controller",
    "daemonset-controller",
    "job-controller",
];

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": image}]}})
}

fn images(api: &FakeApi) -> Vec<String> {
    let image = |pod: &Pod| pod.spec.as_ref()?.containers.first()?.image.clone();
    api.all::<Pod>().iter().filter_map(image).collect()
}

/// On the node that the Pod is pinned to, or any.
fn place(pod: &Pod) -> String {
    let pinned = serde_json::to_value(pod).unwrap();
    let terms = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let node = pinned.pointer(&format!("{terms}/0/matchFields/0/values/0"));
    node.and_then(Value::as_str).unwrap_or("node").to_owned()
}

/// Brings the objects to rest, then for each number of writes: starts `change`, stops the controllers after that many
/// writes, lets others take over, and waits until `done`.
async fn stopped_at_each_write<Fut: Future<Output = bool>>(
    what: &str,
    prepare: impl Fn(&FakeApi),
    ready: impl Fn(&FakeApi) -> bool,
    change: impl Fn(&FakeApi),
    done: impl Fn(FakeApi) -> Fut,
) {
    let mut stops = 0;
    for writes in 0..60 {
        let api = FakeApi::new();
        let first = Cluster::with(api.clone(), &CONTROLLERS, |_| {});
        first.run_pods_with(place);
        prepare(&api);
        eventually(&format!("{what}: the beginning"), || async {
            ready(&api).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        api.allow_writes(Some(writes));
        change(&api);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let stopped = api.is_refusing();
        first.stop();
        tokio::time::sleep(Duration::from_secs(1)).await;
        api.allow_writes(None);
        let second = Cluster::with(api.clone(), &CONTROLLERS, |_| {});
        second.run_pods_with(place);
        eventually(&format!("{what}, stopped after {writes} writes"), || async {
            done(api.clone()).await.then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(
            done(api.clone()).await,
            "{what}, stopped after {writes} writes: it stays so"
        );
        second.stop();
        if !stopped {
            break;
        }
        stops += 1;
    }
    assert!((3..60).contains(&stops), "{what} takes some writes: {stops}");
}

#[tokio::test(start_paused = true)]
async fn a_rollout_survives_a_stop_at_any_write() {
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template("one")},
    }))
    .unwrap();
    let all = |api: &FakeApi, image: &str| images(api) == [image; 3];
    stopped_at_each_write(
        "a rollout",
        |api| {
            api.create(&deployment);
        },
        |api| all(api, "one"),
        |api| {
            api.change::<Deployment>("ns", "web", |web| {
                let template = &mut web.spec.as_mut().unwrap().template;
                template.spec.as_mut().unwrap().containers[0].image = Some("two".into());
            });
        },
        |api| async move {
            let sizes: i32 = api
                .all::<ReplicaSet>()
                .iter()
                .filter_map(|set| set.spec.as_ref()?.replicas)
                .sum();
            let status = api
                .get::<Deployment>("ns", "web")
                .and_then(|web| web.status)
                .unwrap_or_default();
            images(&api) == ["two"; 3]
                && sizes == 3
                && api.all::<ReplicaSet>().len() == 2
                && status.available_replicas == Some(3)
                && status.updated_replicas == Some(3)
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stateful_update_survives_a_stop_at_any_write() {
    let set: StatefulSet = serde_json::from_value(json!({
        "metadata": {"name": "db", "namespace": "ns"},
        "spec": {"replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "web"}},
            "template": template("one"),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]},
    }))
    .unwrap();
    stopped_at_each_write(
        "a stateful update",
        |api| {
            api.create(&set);
        },
        |api| images(api) == ["one"; 2],
        |api| {
            api.change::<StatefulSet>("ns", "db", |db| {
                let spec = db.spec.as_mut().unwrap();
                spec.replicas = Some(3);
                spec.template.spec.as_mut().unwrap().containers[0].image = Some("two".into());
            });
        },
        |api| async move {
            let names: Vec<String> = api.all::<Pod>().iter().map(|pod| pod.name_any()).collect();
            let claims = api.all::<PersistentVolumeClaim>();
            let status = api
                .get::<StatefulSet>("ns", "db")
                .and_then(|db| db.status)
                .unwrap_or_default();
            names == ["db-0", "db-1", "db-2"]
                && images(&api) == ["two"; 3]
                && claims.len() == 3
                && claims.iter().all(|claim| claim.owner_references().len() == 1)
                && status.updated_replicas == Some(3)
                && status.current_revision == status.update_revision
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_update_survives_a_stop_at_any_write() {
    let set: DaemonSet = serde_json::from_value(json!({
        "metadata": {"name": "d", "namespace": "ns"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template("one"),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}},
    }))
    .unwrap();
    stopped_at_each_write(
        "a daemon update",
        |api| {
            for name in ["a", "b"] {
                let mut node = Node::default();
                node.metadata.name = Some(name.into());
                api.create(&node);
            }
            api.create(&set);
        },
        |api| images(api) == ["one"; 2],
        |api| {
            api.change::<DaemonSet>("ns", "d", |d| {
                let template = &mut d.spec.as_mut().unwrap().template;
                template.spec.as_mut().unwrap().containers[0].image = Some("two".into());
            });
        },
        |api| async move {
            let mut nodes: Vec<String> = api.all::<Pod>().iter().map(place).collect();
            nodes.sort();
            let status = api
                .get::<DaemonSet>("ns", "d")
                .and_then(|d| d.status)
                .unwrap_or_default();
            nodes == ["a", "b"] && images(&api) == ["two"; 2] && status.updated_number_scheduled == Some(2)
        },
    )
    .await;
}

fn job(name: &str, completions: i32) -> Job {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {"parallelism": 2.min(completions), "completions": completions, "backoffLimit": 6,
            "selector": {"matchLabels": {"job": name}},
            "template": {"metadata": {"labels": {"job": name}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "ends"}]}}},
    }))
    .unwrap()
}

fn has_ended(api: &FakeApi, name: &str, succeeded: i32) -> bool {
    let status = api
        .get::<Job>("ns", name)
        .and_then(|job| job.status)
        .unwrap_or_default();
    let complete = status.conditions.iter().flatten().any(|c| c.type_ == "Complete");
    complete && status.succeeded == Some(succeeded) && status.failed.is_none()
}

#[tokio::test(start_paused = true)]
async fn a_job_survives_a_stop_at_any_write() {
    stopped_at_each_write(
        "a job",
        |_| {},
        |_| true,
        |api| {
            api.create(&job("j", 3));
        },
        |api| async move {
            let pods = api.all::<Pod>();
            has_ended(&api, "j", 3) && pods.len() == 3 && pods.iter().all(|pod| pod.finalizers().is_empty())
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_a_small_job_costs() {
    let api = FakeApi::new();
    let cluster = Cluster::with(api.clone(), &CONTROLLERS, |_| {});
    cluster.run_pods_with(place);
    for number in 0..50 {
        api.create(&job(&format!("j{number:02}"), 1));
    }
    eventually("all have ended", || async {
        (0..50)
            .all(|number| has_ended(&api, &format!("j{number:02}"), 1))
            .then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(api.all::<Pod>().iter().all(|pod| pod.finalizers().is_empty()));
    let count = |verb: &str, resource: &str| {
        let actions = api.actions();
        actions
            .iter()
            .filter(|a| a.verb == verb && a.resource == resource)
            .count()
    };
    assert_eq!(count("create", "pods"), 50);
    assert_eq!(
        count("update", "jobs/status"),
        100,
        "that it has begun and that it has ended"
    );
    assert_eq!(count("patch", "pods"), 50, "its finalizer");
}

#[tokio::test(start_paused = true)]
async fn a_deployment_edited_all_the_time_gets_there() {
    let api = FakeApi::new();
    let cluster = Cluster::with(api.clone(), &CONTROLLERS, |_| {});
    cluster.run_pods_with(place);
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns"},
        "spec": {"replicas": 3, "revisionHistoryLimit": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": template("v0")},
    }))
    .unwrap();
    api.create(&deployment);
    for number in 1..=500 {
        api.change::<Deployment>("ns", "web", |web| {
            let template = &mut web.spec.as_mut().unwrap().template;
            template.spec.as_mut().unwrap().containers[0].image = Some(format!("v{number}"));
        });
        tokio::time::sleep(Duration::from_millis(120)).await;
        let sizes: i32 = api
            .all::<ReplicaSet>()
            .iter()
            .filter_map(|set| set.spec.as_ref()?.replicas)
            .sum();
        assert!(sizes <= 4, "never more than the surge allows: {sizes}");
    }
    eventually("the last edit", || async {
        (images(&api) == ["v500"; 3]).then_some(())
    })
    .await;
    eventually("the history is short", || async {
        (api.all::<ReplicaSet>().len() <= 4).then_some(())
    })
    .await;
    let writes = api.actions().iter().filter(|a| a.resource != "events").count();
    // An edit makes a set, moves it up and others down, and every Pod among them comes and goes.
    assert!(writes < 500 * 60, "{writes} writes");
}
