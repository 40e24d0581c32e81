//! The whole scheduler on the API in memory; the tests play the claims' controller and the drivers.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodResourceClaimStatus};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use sampan_client::testing::{FakeApi, eventually};
use sampan_client::{Informers, Recorder, SystemClock};
use sampan_tasks::{OnExit, Tasks};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::FINALIZER;
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
    /// A scheduler and two nodes `a` and `b`.
    fn new() -> World {
        let (api, tasks) = (FakeApi::new(), Tasks::new());
        for name in ["a", "b"] {
            api.create::<Node>(&typed(json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"}}})));
        }
        let client = api.client("system:kube-scheduler");
        let informers = Informers::new(client.clone(), &tasks);
        let recorder = Recorder::new(client.clone(), "default-scheduler", None, Arc::new(SystemClock), &tasks);
        let scheduler = run(Config::default(), client, informers, recorder, tasks.drain());
        tasks.spawn("scheduler", OnExit::Expected, scheduler);
        World { api, tasks }
    }

    fn pod(&self, name: &str, claims: Value) -> Pod {
        self.api
            .create::<Pod>(&typed(json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c"}], "resourceClaims": claims}})))
    }

    fn claim(&self, name: &str, metadata: Value, spec: Value, status: Value) {
        let mut claim = json!({"metadata": metadata, "spec": spec, "status": status});
        claim["metadata"]["name"] = name.into();
        claim["metadata"]["namespace"] = "ns".into();
        self.api.create::<ResourceClaim>(&typed(claim));
    }

    async fn waits(&self, pod: &str, why: &str) {
        eventually(why, || async {
            let pod: Pod = self.api.get("ns", pod)?;
            let conditions = pod.status?.conditions?;
            let condition = conditions.into_iter().find(|c| c.type_ == "PodScheduled")?;
            condition.message.filter(|message| message.contains(why))
        })
        .await;
    }

    async fn bound(&self, pod: &str) -> String {
        eventually("a node", || async {
            let pod: Pod = self.api.get("ns", pod)?;
            pod.spec?.node_name
        })
        .await
    }

    fn users(&self, claim: &str) -> Vec<String> {
        let claim: ResourceClaim = self.api.get("ns", claim).unwrap();
        let status = claim.status.unwrap_or_default();
        let users = status.reserved_for.unwrap_or_default();
        users.into_iter().map(|user| user.name).collect()
    }
}

fn gpu() -> Value {
    json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}})
}

#[tokio::test]
async fn pods_wait_for_their_claims_and_say_why() {
    let world = World::new();
    let api = &world.api;
    // One Pod per reason: another reason of the same plugin is told later.
    let template = json!([{"name": "c", "resourceClaimTemplateName": "t"}]);
    let named = |claim: &str| json!([{"name": "c", "resourceClaimName": claim}]);
    let other = json!({"devices": {"requests": [{"name": "r", "firstAvailable": [
        {"name": "best", "deviceClassName": "gpu"}, {"name": "other", "deviceClassName": "none"}]}]}});
    api.create::<DeviceClass>(&typed(json!({"metadata": {"name": "gpu"}, "spec": {}})));
    world.claim("foreign", json!({}), gpu(), json!({}));
    world.claim("unknown", json!({}), other, json!({}));
    world.claim("some", json!({}), gpu(), json!({}));
    let pod = world.pod("p", template.clone());
    world.pod("q", template);
    world.pod("r", named("absent"));
    world.pod("s", named("unknown"));
    world.pod("t", named("some"));
    world.waits("p", "pod \"ns/p\": ResourceClaim not created yet").await;
    let record = |pod: &str, claim: &str| {
        api.change::<Pod>("ns", pod, |pod| {
            pod.status.get_or_insert_default().resource_claim_statuses = Some(vec![PodResourceClaimStatus {
                name: "c".into(),
                resource_claim_name: Some(claim.into()),
            }]);
        });
    };
    record("q", "foreign");
    world
        .waits(
            "q",
            "ResourceClaim ns/foreign was not created for Pod ns/q (Pod is not owner)",
        )
        .await;
    world.waits("r", "could not find ResourceClaim \"ns/absent\"").await;
    world
        .waits("s", "request r/other: device class none does not exist")
        .await;
    world.waits("t", "2 cannot allocate all claims").await;
    // A driver allocates one, on one of the nodes.
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod.metadata.uid, "controller": true});
    world.claim("p-c-1", json!({"ownerReferences": [owner]}), gpu(), json!({}));
    record("p", "p-c-1");
    let on = json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}]});
    api.change::<ResourceClaim>("ns", "p-c-1", |claim| {
        claim.status = Some(typed(json!({"allocation": {"nodeSelector": on, "devices": {}}})));
    });
    assert_eq!(world.bound("p").await, "b");
    assert_eq!(world.users("p-c-1"), ["p"]);
}

#[tokio::test]
async fn claims_of_no_device_are_allocated_here() {
    let world = World::new();
    let shared = json!([{"name": "c", "resourceClaimName": "c"}]);
    world.pod("one", shared.clone());
    world.waits("one", "could not find ResourceClaim \"ns/c\"").await;
    world.claim("c", json!({}), json!({}), json!({}));
    world.bound("one").await;
    // Another shares it, and one that has none is not concerned.
    world.pod("two", shared);
    world.pod("three", json!(null));
    world.bound("two").await;
    world.bound("three").await;
    assert_eq!(world.users("c"), ["one", "two"]);
    let claim: ResourceClaim = world.api.get("ns", "c").unwrap();
    assert_eq!(claim.metadata.finalizers.unwrap_or_default(), [FINALIZER]);
    assert!(claim.status.unwrap().allocation.is_some());
}

#[tokio::test]
async fn a_claim_that_leaves_is_not_used() {
    let world = World::new();
    let leaving = json!({"deletionTimestamp": "2027-01-15T08:00:30Z", "finalizers": ["x/y"]});
    world.claim("c", leaving, json!({}), json!({"allocation": {}}));
    world.pod("p", json!([{"name": "c", "resourceClaimName": "c"}]));
    world.waits("p", "resourceclaim \"c\" is being deleted").await;
    world.api.remove::<ResourceClaim>("ns", "c");
    world.claim("c", json!({}), json!({}), json!({"allocation": {}}));
    world.bound("p").await;
    assert_eq!(world.users("c"), ["p"]);
}
