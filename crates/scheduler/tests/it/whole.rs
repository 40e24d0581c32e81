//! What a Pod's user sees of the scheduler: where it comes to, and what it is told.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use sampan_scheduler::Configuration;
use sampan_tasks::Tasks;
use serde_json::{Value, json};

use crate::Cluster;

fn asks(cpu: &str) -> Value {
    json!({"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]})
}

fn room(cpu: &str) -> Value {
    json!({"cpu": cpu, "memory": "8Gi", "pods": "110"})
}

fn scheduled(pod: &Pod) -> Option<PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let mut scheduled = conditions.filter(|condition| condition.type_ == "PodScheduled");
    scheduled.next().cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn that_a_pod_waits_is_no_news_but_why_is() {
    let cluster = Cluster::start().await;
    let tasks = Tasks::new();
    cluster.scheduler(Configuration::default(), &tasks).await;
    cluster.node("n1", room("1")).await;
    let mut gated = asks("4");
    gated["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    cluster.pod("p", gated).await;
    cluster.until("p", "SchedulingGated").await;
    let before = scheduled(&cluster.pods().get("p").await.unwrap()).unwrap();
    // Times are written in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let open = json!({"spec": {"schedulingGates": null}});
    let params = PatchParams::default();
    cluster.pods().patch("p", &params, &Patch::Merge(open)).await.unwrap();
    let why = "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 ";
    cluster.until("p", why).await;
    let pod = cluster.pods().get("p").await.unwrap();
    let after = scheduled(&pod).unwrap();
    assert_eq!(after.last_transition_time, before.last_transition_time);
    assert_eq!(after.observed_generation, pod.metadata.generation);
    cluster.node("n2", room("8")).await;
    cluster.until("p", "n2").await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_important_come_in_and_victims_are_told_why() {
    let cluster = Cluster::start().await;
    let tasks = Tasks::new();
    let classes: Api<PriorityClass> = Api::all(cluster.client.clone());
    let class = json!({"metadata": {"name": "high"}, "value": 1000});
    let class = serde_json::from_value(class).unwrap();
    classes.create(&PostParams::default(), &class).await.unwrap();
    cluster.scheduler(Configuration::default(), &tasks).await;
    cluster.node("n1", room("1")).await;
    cluster.pod("low", asks("1")).await;
    cluster.until("low", "n1").await;
    let mut important = asks("1");
    important["priorityClassName"] = "high".into();
    cluster.pod("important", important).await;
    cluster.until("important", "n1").await;
    sampan_client::testing::eventually("the victim was told", || async {
        let events = cluster.events("Preempted").await;
        (events.len() == 1).then_some(())
    })
    .await;
    assert!(cluster.pods().get_opt("low").await.unwrap().is_none());
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_pods_spread() {
    let cluster = Cluster::start().await;
    let tasks = Tasks::new();
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "default");
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    let service = serde_json::from_value(service).unwrap();
    services.create(&PostParams::default(), &service).await.unwrap();
    cluster.scheduler(Configuration::default(), &tasks).await;
    // By room alone all would come to the first.
    for (name, cpu) in [("n1", "800"), ("n2", "16"), ("n3", "16")] {
        cluster.node(name, room(cpu)).await;
    }
    let mut nodes = std::collections::BTreeSet::new();
    for index in 0..6 {
        let name = format!("web-{index}");
        let pod = json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": asks("1")});
        let pod = serde_json::from_value(pod).unwrap();
        cluster.pods().create(&PostParams::default(), &pod).await.unwrap();
        cluster.until(&name, "n").await;
        nodes.extend(cluster.fate(&name).await);
    }
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_no_device_is_allocated_and_reserved() {
    let cluster = Cluster::start().await;
    let tasks = Tasks::new();
    let claims: Api<ResourceClaim> = Api::namespaced(cluster.client.clone(), "default");
    let claim = serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {}})).unwrap();
    claims.create(&PostParams::default(), &claim).await.unwrap();
    cluster.scheduler(Configuration::default(), &tasks).await;
    cluster.node("n1", room("8")).await;
    let mut spec = asks("1");
    spec["resourceClaims"] = json!([{"name": "c", "resourceClaimName": "c"}]);
    let mut users = Vec::new();
    // The second finds the claim allocated.
    for name in ["one", "two"] {
        cluster.pod(name, spec.clone()).await;
        cluster.until(name, "n1").await;
        let uid = cluster.pods().get(name).await.unwrap().metadata.uid;
        users.push(json!({"resource": "pods", "name": name, "uid": uid}));
    }
    let claim = claims.get("c").await.unwrap();
    let finalizers = claim.metadata.finalizers.unwrap_or_default();
    assert_eq!(finalizers, ["resource.kubernetes.io/delete-protection"]);
    let status = claim.status.unwrap();
    assert!(status.allocation.is_some());
    assert_eq!(json!(status.reserved_for), json!(users));
    tasks.shutdown(Duration::from_secs(5)).await;
}
