//! The whole scheduler on the API in memory; the tests play the claims' controller and the drivers.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod, PodResourceClaimStatus};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use sampan_client::testing::{FakeApi, eventually};
use sampan_client::{Informers, Recorder, SystemClock};
use sampan_tasks::{OnExit, Tasks};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Devices, FINALIZER, MOST_USERS, Reservation};
use crate::engine::{Decision, Engine};
use crate::framework::{BindingPlugin, DEFAULT_SCHEDULER, Framework};
use crate::pod::PodInfo;
use crate::run::{Config, run};
use crate::testing::{node, pod, pod_info};

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

#[tokio::test]
async fn a_full_claim_is_waited_for() {
    let world = World::new();
    let user = |index: usize| json!({"resource": "pods", "name": format!("u{index}"), "uid": format!("u{index}")});
    let users: Vec<Value> = (0..MOST_USERS).map(user).collect();
    let status = json!({"allocation": {}, "reservedFor": users});
    world.claim("c", json!({}), json!({}), status);
    let shared = json!([{"name": "c", "resourceClaimName": "c"}]);
    let known = world.pod("known", shared.clone());
    world.pod("new", shared);
    world.waits("known", "resourceclaim in use").await;
    world.waits("new", "resourceclaim in use").await;
    let replace = |at: usize, by: Option<&Pod>| {
        world.api.change::<ResourceClaim>("ns", "c", |claim| {
            let users = claim.status.as_mut().unwrap().reserved_for.as_mut().unwrap();
            match by {
                Some(pod) => users[at].uid = pod.metadata.uid.clone().unwrap(),
                None => drop(users.remove(at)),
            }
        });
    };
    // Full, but one of the users is the Pod itself.
    replace(0, Some(&known));
    world.bound("known").await;
    world.waits("new", "resourceclaim in use").await;
    replace(1, None);
    world.bound("new").await;
    assert_eq!(world.users("c").len(), MOST_USERS);
}

#[tokio::test]
async fn who_waits_for_an_allocation_that_fails_comes_next() {
    let world = World::new();
    let shared = json!([{"name": "c", "resourceClaimName": "c"}]);
    for name in ["one", "two"] {
        world.pod(name, shared.clone());
        world.waits(name, "could not find ResourceClaim \"ns/c\"").await;
    }
    world
        .api
        .fail_next("patch", "resourceclaims", 403, "Forbidden", "not today");
    world.claim("c", json!({}), json!({}), json!({}));
    // The first rests first.
    world.bound("two").await;
    world.bound("one").await;
    assert_eq!(world.users("c"), ["two", "one"]);
}

/// The plugin's parts, to be looked at from inside.
struct Parts {
    api: FakeApi,
    devices: Arc<Devices>,
    _tasks: Tasks,
}

impl Parts {
    /// With an unallocated claim `c`.
    async fn new() -> Parts {
        let (api, tasks) = (FakeApi::new(), Tasks::new());
        let claim = json!({"metadata": {"name": "c", "namespace": "default"}, "spec": {}});
        api.create::<ResourceClaim>(&typed(claim));
        let client = api.client("system:kube-scheduler");
        let informers = Informers::new(client.clone(), &tasks);
        let devices = Devices::new(client, &informers, |_| {});
        devices.synced().await;
        Parts {
            api,
            devices,
            _tasks: tasks,
        }
    }

    fn engine(&self) -> Engine {
        let mut framework = Framework::default();
        framework.pre_filters.push(self.devices.pre_filter());
        framework.binding.push(Arc::new(Reservation(Arc::clone(&self.devices))));
        let mut engine = Engine::new([(DEFAULT_SCHEDULER.to_owned(), framework)], 7);
        engine.node_changed(node("a", json!({"cpu": "8", "memory": "8Gi", "pods": "110"})));
        engine
    }
}

fn asks() -> Value {
    json!({"containers": [{"name": "c"}], "resourceClaims": [{"name": "c", "resourceClaimName": "c"}]})
}

#[tokio::test]
async fn what_was_taken_goes_back_even_if_its_pod_is_gone() {
    for gone in [false, true] {
        let mut engine = Parts::new().await.engine();
        for name in ["one", "two"] {
            engine.pod_changed(&pod(name, asks()));
        }
        let bound = |engine: &mut Engine| -> Option<PodInfo> {
            let decision = engine.next_binding(Instant::now());
            decision.map(|decision| match decision {
                Decision::Bind { pod, .. } => pod,
                _ => panic!("no binding"),
            })
        };
        let one = bound(&mut engine).unwrap();
        assert!(bound(&mut engine).is_none(), "it waits for what becomes of the claim");
        if gone {
            engine.pod_gone("one");
        }
        assert_eq!(engine.bind_failed(one, Instant::now()), !gone);
        assert_eq!(bound(&mut engine).map(|pod| pod.name), Some("two".into()));
    }
}

#[tokio::test]
async fn a_claim_that_says_it_already_is_not_in_flight() {
    let parts = Parts::new().await;
    let (pod, plugin) = (pod_info("p", asks()), Reservation(Arc::clone(&parts.devices)));
    plugin.reserve(&pod, "a").unwrap();
    assert_eq!(parts.devices.in_flight().len(), 1);
    parts.api.change::<ResourceClaim>("default", "c", |claim| {
        let user = json!({"resource": "pods", "name": "p", "uid": "p"});
        claim.status = Some(typed(json!({"allocation": {}, "reservedFor": [user]})));
    });
    eventually("nothing is left to do", || async {
        plugin.pre_bind(&pod, "a").is_none().then_some(())
    })
    .await;
    assert!(parts.devices.in_flight().is_empty());
}
