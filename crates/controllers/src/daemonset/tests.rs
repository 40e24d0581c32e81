use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use sampan_client::testing::{FakeApi, eventually};
use serde_json::json;

use super::*;
use crate::testing::Cluster;

fn set(api: &FakeApi, strategy: serde_json::Value) {
    let set: DaemonSet = serde_json::from_value(json!({
        "metadata": {"name": "d", "namespace": "ns"},
        "spec": {
            "selector": {"matchLabels": {"app": "d"}},
            "updateStrategy": strategy,
            "template": {
                "metadata": {"labels": {"app": "d"}},
                "spec": {"containers": [{"name": "c", "image": "one"}]},
            },
        },
    }))
    .unwrap();
    api.create(&set);
}

fn rolling() -> serde_json::Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}})
}

fn node(api: &FakeApi, name: &str) {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    api.create(&node);
}

fn set_image(api: &FakeApi, image: &str) {
    api.change::<DaemonSet>("ns", "d", |set| {
        let template = &mut set.spec.as_mut().unwrap().template;
        template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    });
}

fn places(api: &FakeApi) -> Vec<String> {
    let mut found: Vec<String> = api.all::<Pod>().iter().filter_map(node::target).collect();
    found.sort();
    found
}

async fn status(api: &FakeApi, what: &str, check: impl Fn(&DaemonSetStatus) -> bool) {
    eventually(what, || async {
        let set: DaemonSet = api.get("ns", "d")?;
        let status = set.status?;
        (status.observed_generation == set.metadata.generation && check(&status)).then_some(())
    })
    .await;
}

/// Runs Pods on the node they are pinned to.
fn run(cluster: &Cluster) {
    cluster.run_pods_with(|pod| node::target(pod).unwrap_or_default());
}

#[tokio::test(start_paused = true)]
async fn one_on_every_node_that_fits() {
    let cluster = Cluster::start(&["daemonset-controller"]);
    let api = &cluster.api;
    node(api, "a");
    node(api, "b");
    run(&cluster);
    set(api, rolling());
    status(api, "two daemons", |s| {
        s.number_available == Some(2) && s.desired_number_scheduled == 2
    })
    .await;
    node(api, "c");
    status(api, "a third", |s| s.number_available == Some(3)).await;
    assert_eq!(places(api), ["a", "b", "c"]);
    api.change::<Node>("", "b", |node| {
        node.spec.get_or_insert_default().taints = Some(vec![Taint {
            key: "mine".into(),
            effect: "NoExecute".into(),
            ..Default::default()
        }]);
    });
    status(api, "not on b", |s| {
        s.desired_number_scheduled == 2 && s.number_misscheduled == 0
    })
    .await;
    assert_eq!(places(api), ["a", "c"]);
    // A failed one is replaced.
    let name = api.all::<Pod>()[0].name_any();
    api.change::<Pod>("ns", &name, |pod| {
        pod.status.as_mut().unwrap().phase = Some("Failed".into())
    });
    eventually("a new one", || async {
        api.get::<Pod>("ns", &name).is_none().then_some(())
    })
    .await;
    status(api, "two again", |s| s.number_available == Some(2)).await;
}

#[tokio::test(start_paused = true)]
async fn updates_go_one_by_one_and_stop_at_trouble() {
    let cluster = Cluster::start(&["daemonset-controller"]);
    let api = &cluster.api;
    for name in ["a", "b", "c"] {
        node(api, name);
    }
    run(&cluster);
    set(api, rolling());
    status(api, "three daemons", |s| s.number_available == Some(3)).await;
    set_image(api, "two");
    status(api, "all new", |s| {
        s.updated_number_scheduled == Some(3) && s.number_available == Some(3)
    })
    .await;
    set_image(api, "bad");
    status(api, "one in trouble", |s| {
        s.updated_number_scheduled == Some(1) && s.number_unavailable == Some(1)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    status(api, "still only one", |s| s.updated_number_scheduled == Some(1)).await;
    set_image(api, "two");
    status(api, "back", |s| {
        s.updated_number_scheduled == Some(3) && s.number_available == Some(3)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn with_a_surge_the_new_one_comes_before_the_old_one_goes() {
    let cluster = Cluster::start(&["daemonset-controller"]);
    let api = &cluster.api;
    node(api, "a");
    node(api, "b");
    run(&cluster);
    set(
        api,
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
    );
    status(api, "two daemons", |s| s.number_available == Some(2)).await;
    set_image(api, "bad");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(places(api).len(), 3, "the old ones stay while the new one is not ready");
    set_image(api, "two");
    status(api, "all new", |s| {
        s.updated_number_scheduled == Some(2) && s.number_available == Some(2)
    })
    .await;
    assert_eq!(places(api), ["a", "b"]);
}
