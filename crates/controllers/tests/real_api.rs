//! The controllers on the real API server, each under its own identity: authorization, validation, defaulting and
//! concurrency are the ones of a cluster. Only the node is played.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use sampan_apiserver::testing::TestServer;
use sampan_auth::UserInfo;
use sampan_client::{Change, Clock, Informers, Key, SystemClock, WorkQueue, run_controller};
use sampan_controllers::{Config, Controllers};
use sampan_tasks::OnExit;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

struct Cluster {
    server: TestServer,
    admin: Client,
}

/// Waits for something to become true; longer than any machine should need.
async fn eventually<T, F, Fut>(what: &str, mut check: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let begun = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The machine's clock, as somebody sets it.
#[derive(Default)]
struct Stepping(AtomicI64);

impl Clock for Stepping {
    fn now(&self) -> jiff::Timestamp {
        let seconds = jiff::SignedDuration::from_secs(self.0.load(Ordering::Relaxed));
        jiff::Timestamp::now().checked_add(seconds).unwrap()
    }
}

impl Cluster {
    async fn start() -> Self {
        Self::with_clock(Arc::new(SystemClock)).await
    }

    async fn with_clock(clock: Arc<dyn Clock>) -> Self {
        // RUST_LOG shows what went on; a second test in the process finds it set up already.
        let _set = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let server = TestServer::start().await.unwrap();
        let admin = sampan_client::connect(server.connect());
        let plane = Arc::clone(&server.plane);
        let client_for = move |name: &str| {
            let groups = [
                "system:serviceaccounts",
                "system:serviceaccounts:kube-system",
                "system:authenticated",
            ];
            sampan_client::connect(plane.connect(UserInfo::new(name, groups)))
        };
        let manager = UserInfo::new("system:kube-controller-manager", ["system:authenticated"]);
        let informers = Informers::new(sampan_client::connect(server.plane.connect(manager)), &server.tasks);
        let config = Config {
            root_ca: Some(server.pki.ca_bundle()),
            ..Config::default()
        };
        Controllers::start_with_clock(config, client_for, &informers, &server.tasks, clock).unwrap();
        let cluster = Cluster { server, admin };
        cluster.play_node();
        cluster
    }

    /// Binds every Pod, runs it, and ends it when asked to.
    fn play_node(&self) {
        let informers = Informers::new(self.admin.clone(), &self.server.tasks);
        let pods = informers.of::<Pod>();
        let queue: WorkQueue<Key> = WorkQueue::default();
        let changed = queue.clone();
        pods.on_change(move |change| {
            if !matches!(change, Change::Deleted(_)) {
                changed.add(Key::of(change.object().as_ref()));
            }
        });
        let (client, drain) = (self.admin.clone(), self.server.tasks.drain());
        self.server.tasks.spawn("played node", OnExit::Expected, async move {
            let sync = |key: Key| {
                let (pods, client) = (pods.clone(), client.clone());
                async move {
                    let Some(pod) = pods.get_key(&key) else {
                        return Ok(());
                    };
                    play(&Api::namespaced(client, &key.namespace), &pod).await
                }
            };
            run_controller("played node", queue, 8, sync, drain).await;
        });
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.admin.clone(), namespace)
    }

    async fn make<K>(&self, namespace: &str, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api(namespace)
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }

    async fn namespace(&self, name: &str) {
        let api: Api<Namespace> = Api::all(self.admin.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        api.create(&PostParams::default(), &namespace).await.unwrap();
        eventually("the default service account", || async {
            self.api::<ServiceAccount>(name).get_opt("default").await.unwrap()
        })
        .await;
    }

    async fn pods(&self, namespace: &str) -> Vec<Pod> {
        let list = self.api::<Pod>(namespace).list(&Default::default()).await;
        list.unwrap().items
    }
}

async fn play(api: &Api<Pod>, pod: &Pod) -> kube::Result<()> {
    let name = pod.name_any();
    let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
    if pod.metadata.deletion_timestamp.is_some() {
        let params = DeleteParams::default().grace_period(0);
        sampan_client::or_absent(api.delete(&name, &params).await)?;
        return Ok(());
    }
    if !bound {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "played"},
        });
        let done: kube::Result<Value> = api
            .create_subresource("binding", &name, &PostParams::default(), &binding)
            .await
            .or_else(|error| match error {
                kube::Error::SerdeError(_) => Ok(Value::Null),
                other => Err(other),
            });
        return sampan_client::or_absent(done).map(|_| ());
    }
    if phase.as_deref() == Some("Pending") {
        let ends = pod.labels().contains_key("ends");
        let phase = if ends { "Succeeded" } else { "Running" };
        let status = json!({"status": {
            "phase": phase, "podIP": "10.9.9.9", "podIPs": [{"ip": "10.9.9.9"}],
            "conditions": [{"type": "Ready", "status": if ends { "False" } else { "True" },
                "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }});
        let patched = api
            .patch_status(&name, &PatchParams::default(), &Patch::Strategic(status))
            .await;
        sampan_client::or_absent(patched)?;
    }
    Ok(())
}

fn deployment(replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 8080, "name": "http"}]}]},
            },
        },
    })
}

async fn rolled_out(cluster: &Cluster, namespace: &str, replicas: i32) -> Deployment {
    eventually("rolled out", || async {
        let deployment = cluster.api::<Deployment>(namespace).get("web").await.unwrap();
        let status = deployment.status.clone()?;
        let done = status.observed_generation == deployment.metadata.generation
            && status.updated_replicas == Some(replicas)
            && status.replicas == Some(replicas)
            && status.available_replicas == Some(replicas);
        done.then_some(deployment)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_from_birth_to_death() {
    let cluster = Cluster::start().await;
    cluster.namespace("demo").await;
    eventually("the root CA", || async {
        cluster
            .api::<ConfigMap>("demo")
            .get_opt("kube-root-ca.crt")
            .await
            .unwrap()
    })
    .await;
    // Endpoints are those of Pods on nodes that exist.
    let node = json!({"metadata": {"name": "played"}, "status": {"conditions": [{"type": "Ready", "status": "True",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    nodes
        .create(&PostParams::default(), &serde_json::from_value(node).unwrap())
        .await
        .unwrap();
    cluster.make::<Deployment>("demo", deployment(3, "one")).await;
    rolled_out(&cluster, "demo", 3).await;
    let service = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    });
    cluster.make::<Service>("demo", service).await;
    eventually("endpoints", || async {
        let slices = cluster
            .api::<EndpointSlice>("demo")
            .list(&Default::default())
            .await
            .unwrap();
        let ready = slices
            .items
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten())
            .filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)))
            .count();
        let legacy = cluster.api::<Endpoints>("demo").get_opt("web").await.unwrap()?;
        let addresses = legacy.subsets?.first()?.addresses.as_ref()?.len();
        (ready == 3 && addresses >= 1).then_some(())
    })
    .await;

    // Roll on, roll back.
    let api = cluster.api::<Deployment>("demo");
    let image = |image: &str| {
        Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}))
    };
    for (name, revision) in [("two", "2"), ("one", "3")] {
        api.patch("web", &PatchParams::default(), &image(name)).await.unwrap();
        let now = rolled_out(&cluster, "demo", 3).await;
        assert_eq!(now.annotations()["deployment.kubernetes.io/revision"], revision);
    }
    assert_eq!(
        cluster
            .api::<ReplicaSet>("demo")
            .list(&Default::default())
            .await
            .unwrap()
            .items
            .len(),
        2
    );

    // Scale through the subresource, as kubectl does.
    api.patch_scale(
        "web",
        &PatchParams::default(),
        &Patch::Merge(json!({"spec": {"replicas": 5}})),
    )
    .await
    .unwrap();
    rolled_out(&cluster, "demo", 5).await;

    api.delete("web", &DeleteParams::foreground()).await.unwrap();
    eventually("everything is gone", || async {
        let left = cluster.pods("demo").await.len()
            + usize::from(api.get_opt("web").await.unwrap().is_some())
            + cluster
                .api::<ReplicaSet>("demo")
                .list(&Default::default())
                .await
                .unwrap()
                .items
                .len();
        (left == 0).then_some(())
    })
    .await;
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_run_and_are_counted() {
    let cluster = Cluster::start().await;
    cluster.namespace("batch").await;
    let job = |name: &str, mode: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {
                "completions": 6, "parallelism": 3, "completionMode": mode,
                "template": {
                    "metadata": {"labels": {"ends": "well"}},
                    "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]},
                },
            },
        })
    };
    for (name, mode) in [("plain", "NonIndexed"), ("indexed", "Indexed")] {
        cluster.make::<Job>("batch", job(name, mode)).await;
        let status = eventually("complete", || async {
            let status = cluster.api::<Job>("batch").get(name).await.unwrap().status?;
            let complete = status
                .conditions
                .iter()
                .flatten()
                .any(|c| c.type_ == "Complete" && c.status == "True");
            complete.then_some(status)
        })
        .await;
        assert_eq!((status.succeeded, status.failed.unwrap_or(0)), (Some(6), 0), "{name}");
        if mode == "Indexed" {
            assert_eq!(status.completed_indexes.as_deref(), Some("0-5"));
        }
    }
    assert_eq!(cluster.pods("batch").await.len(), 12);
    // The Job's end is written first.
    eventually("no finalizers are left", || async {
        let pods = cluster.pods("batch").await;
        pods.iter().all(|pod| pod.finalizers().is_empty()).then_some(())
    })
    .await;
    cluster
        .api::<Job>("batch")
        .delete("plain", &DeleteParams::background())
        .await
        .unwrap();
    eventually("its Pods are gone", || async {
        (cluster.pods("batch").await.len() == 6).then_some(())
    })
    .await;
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_end_with_all_they_hold() {
    let cluster = Cluster::start().await;
    cluster.namespace("doomed").await;
    cluster.make::<Deployment>("doomed", deployment(2, "one")).await;
    rolled_out(&cluster, "doomed", 2).await;
    cluster
        .make::<Secret>("doomed", json!({"metadata": {"name": "s"}}))
        .await;
    let api: Api<Namespace> = Api::all(cluster.admin.clone());
    api.delete("doomed", &DeleteParams::default()).await.unwrap();
    eventually("it is gone", || async {
        api.get_opt("doomed").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(cluster.pods("doomed").await.is_empty());
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_ranges_and_taints() {
    let cluster = Cluster::start().await;
    let api: Api<Node> = Api::all(cluster.admin.clone());
    let node = |name: &str| serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    let mut ranges = Vec::new();
    for name in ["a", "b"] {
        api.create(&PostParams::default(), &node(name)).await.unwrap();
        let range = eventually("a range", || async { api.get(name).await.unwrap().spec?.pod_cidr }).await;
        ranges.push(range);
    }
    ranges.sort();
    assert_eq!(ranges, ["10.244.0.0/24", "10.244.1.0/24"]);
    let ready =
        |status: &str| Patch::Strategic(json!({"status": {"conditions": [{"type": "Ready", "status": status}]}}));
    let taints = || async {
        let spec = api.get("a").await.unwrap().spec.unwrap_or_default();
        let taints = spec.taints.unwrap_or_default();
        taints
            .iter()
            .map(|taint| format!("{}:{}", taint.key, taint.effect))
            .collect::<Vec<_>>()
    };
    api.patch_status("b", &PatchParams::default(), &ready("True"))
        .await
        .unwrap();
    api.patch_status("a", &PatchParams::default(), &ready("True"))
        .await
        .unwrap();
    eventually("no taints", || async { taints().await.is_empty().then_some(()) }).await;
    api.patch_status("a", &PatchParams::default(), &ready("False"))
        .await
        .unwrap();
    eventually("not ready", || async {
        let mut found = taints().await;
        found.sort();
        (found
            == [
                "node.kubernetes.io/not-ready:NoExecute",
                "node.kubernetes.io/not-ready:NoSchedule",
            ])
        .then_some(())
    })
    .await;
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_pods_daemons_budgets_and_quiet() {
    let cluster = Cluster::start().await;
    cluster.namespace("more").await;
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": "played"}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let ready = Patch::Strategic(json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
    nodes
        .patch_status("played", &PatchParams::default(), &ready)
        .await
        .unwrap();
    let template = |app: &str| json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let set = json!({
        "metadata": {"name": "db"},
        "spec": {
            "replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": template("db"),
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
        },
    });
    cluster.make::<StatefulSet>("more", set).await;
    let daemon = json!({
        "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": template("d")},
    });
    cluster.make::<DaemonSet>("more", daemon).await;
    let budget = json!({
        "metadata": {"name": "b"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "db"}}},
    });
    cluster.make::<PodDisruptionBudget>("more", budget).await;
    eventually("the named ones", || async {
        let status = cluster.api::<StatefulSet>("more").get("db").await.unwrap().status?;
        (status.ready_replicas == Some(2) && status.current_revision == status.update_revision).then_some(())
    })
    .await;
    let claims = cluster
        .api::<PersistentVolumeClaim>("more")
        .list(&Default::default())
        .await;
    assert_eq!(claims.unwrap().items.len(), 2);
    eventually("the daemon", || async {
        let status = cluster.api::<DaemonSet>("more").get("d").await.unwrap().status?;
        (status.number_available == Some(1)).then_some(())
    })
    .await;
    eventually("the budget", || async {
        let status = cluster
            .api::<PodDisruptionBudget>("more")
            .get("b")
            .await
            .unwrap()
            .status?;
        (status.disruptions_allowed == Some(1) && status.current_healthy == Some(2)).then_some(())
    })
    .await;

    // Once all is as it should be, nobody writes anything.
    let version = || async {
        let list = cluster
            .api::<ConfigMap>("more")
            .list(&Default::default())
            .await
            .unwrap();
        list.metadata.resource_version.unwrap()
    };
    let mut before = version().await;
    eventually("quiet for two seconds", || {
        let last = std::mem::take(&mut before);
        let version = &version;
        async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            (version().await == last).then_some(())
        }
    })
    .await;
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources_own_and_are_owned() {
    let cluster = Cluster::start().await;
    cluster.namespace("custom").await;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.admin.clone());
    let definition = serde_json::from_value(json!({
        "metadata": {"name": "boats.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "boats", "singular": "boat", "kind": "Boat"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    }))
    .unwrap();
    definitions.create(&PostParams::default(), &definition).await.unwrap();
    let resource = kube::core::ApiResource {
        group: "example.com".into(),
        version: "v1".into(),
        api_version: "example.com/v1".into(),
        kind: "Boat".into(),
        plural: "boats".into(),
    };
    let boats: Api<DynamicObject> = Api::namespaced_with(cluster.admin.clone(), "custom", &resource);
    let boat = DynamicObject::new("sampan", &resource);
    let boat = eventually("the resource is served", || async {
        boats.create(&PostParams::default(), &boat).await.ok()
    })
    .await;
    let owned = json!({"metadata": {"name": "sail", "ownerReferences": [
        {"apiVersion": "example.com/v1", "kind": "Boat", "name": "sampan", "uid": boat.metadata.uid}]}});
    cluster.make::<ConfigMap>("custom", owned).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        cluster
            .api::<ConfigMap>("custom")
            .get_opt("sail")
            .await
            .unwrap()
            .is_some()
    );
    boats.delete("sampan", &DeleteParams::background()).await.unwrap();
    eventually("what it owned is gone", || async {
        let left = cluster.api::<ConfigMap>("custom").get_opt("sail").await.unwrap();
        left.is_none().then_some(())
    })
    .await;
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_service_addresses_stays_while_it_is_needed() {
    let cluster = Cluster::start().await;
    cluster.namespace("demo").await;
    let ranges: Api<ServiceCIDR> = Api::all(cluster.admin.clone());
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24"]}});
    let range = serde_json::from_value(range).unwrap();
    ranges.create(&PostParams::default(), &range).await.unwrap();
    let is = |name: &'static str, status: &'static str, reason: &'static str, message: &'static str| {
        let ranges = ranges.clone();
        async move {
            eventually(message, || async {
                let range = ranges.get(name).await.unwrap();
                let mut told = range.status?.conditions?.into_iter();
                told.find(|told| told.status == status && told.reason == reason && told.message.contains(message))?;
                assert!(range.metadata.finalizers.is_some(), "held before it is ready");
                Some(())
            })
            .await;
        }
    };
    is("more", "True", "", "Kubernetes Service CIDR is ready").await;
    is("kubernetes", "True", "", "Kubernetes Service CIDR is ready").await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.200.0.9", "ports": [{"port": 80}]}});
    cluster.make::<Service>("demo", service).await;
    let deleted = Instant::now();
    ranges.delete("more", &DeleteParams::default()).await.unwrap();
    is("more", "False", "Terminating", "There are still IPAddresses").await;
    let services = cluster.api::<Service>("demo");
    services.delete("s", &DeleteParams::default()).await.unwrap();
    eventually("the range is gone", || async {
        ranges.get_opt("more").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(
        deleted.elapsed() >= Duration::from_secs(9),
        "others had no time to hear of it"
    );
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_forth_and_back_changes_nothing() {
    let clock = Arc::new(Stepping::default());
    let cluster = Cluster::with_clock(clock.clone()).await;
    cluster.namespace("demo").await;
    let node = json!({"metadata": {"name": "played"}, "status": {"conditions": [{"type": "Ready", "status": "True",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let node = serde_json::from_value(node).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    // Every Pod there ever was, with whose it is.
    let ever: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    let informers = Informers::new(cluster.admin.clone(), &cluster.server.tasks);
    let seen = Arc::clone(&ever);
    informers.of::<Pod>().on_change(move |change| {
        let pod = change.object();
        let owner = pod.owner_references().first().map(|owner| owner.kind.clone());
        let mut seen = seen.lock().unwrap();
        seen.insert(pod.uid().unwrap_or_default(), owner.unwrap_or_default());
    });
    let turning = Arc::clone(&clock);
    let drain = cluster.server.tasks.drain();
    cluster
        .server
        .tasks
        .spawn("somebody sets the clock", OnExit::Expected, async move {
            for turn in 0i64.. {
                turning
                    .0
                    .store([0, 86_400, -86_400, 7][turn as usize % 4], Ordering::Relaxed);
                let pause = tokio::time::sleep(Duration::from_millis(70));
                if drain.until(pause).await.is_none() {
                    return;
                }
            }
        });
    cluster.make::<Deployment>("demo", deployment(6, "one")).await;
    let job = json!({
        "metadata": {"name": "work"},
        "spec": {"completions": 30, "parallelism": 5, "template": {
            "metadata": {"labels": {"ends": "yes"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
    });
    cluster.make::<Job>("demo", job).await;
    rolled_out(&cluster, "demo", 6).await;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}});
    let deployments = cluster.api::<Deployment>("demo");
    let patch = Patch::Strategic(image);
    deployments.patch("web", &PatchParams::default(), &patch).await.unwrap();
    rolled_out(&cluster, "demo", 6).await;
    let ended = eventually("the Job ends", || async {
        let job = cluster.api::<Job>("demo").get("work").await.unwrap();
        let conditions = job.status.clone()?.conditions?;
        conditions
            .iter()
            .any(|known| known.type_ == "Complete" && known.status == "True")
            .then_some(job)
    })
    .await;
    assert_eq!(ended.status.unwrap().succeeded, Some(30));
    // For a while longer: nobody is driven away, made anew or taken away.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let count = |kind: &str| ever.lock().unwrap().values().filter(|of| *of == kind).count();
    assert_eq!(count("Job"), 30);
    assert_eq!(count("ReplicaSet"), 12);
    assert_eq!(
        nodes.get("played").await.unwrap().spec.and_then(|spec| spec.taints),
        None
    );
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubeconfig_leads_over_the_network() {
    let server = TestServer::start().await.unwrap();
    let client = sampan_client::from_kubeconfig(&server.kubeconfig().unwrap())
        .await
        .unwrap();
    let informers = Informers::new(client.clone(), &server.tasks);
    let namespaces = informers.of::<Namespace>();
    namespaces.synced().await;
    assert!(namespaces.get("", "kube-system").is_some());
    let api: Api<Namespace> = Api::all(client);
    let namespace = serde_json::from_value(json!({"metadata": {"name": "far"}})).unwrap();
    api.create(&PostParams::default(), &namespace).await.unwrap();
    eventually("it is seen", || async { namespaces.get("", "far") }).await;
    let missing = sampan_client::from_kubeconfig(std::path::Path::new("/nonexistent/kubeconfig")).await;
    assert!(missing.err().unwrap().to_string().contains("/nonexistent/kubeconfig"));
    server.stop().await;
}

/// What the controller of claims writes passes the rights and rules of the API server.
#[tokio::test]
async fn claims_of_devices_come_and_go_with_their_pods() {
    let cluster = Cluster::start().await;
    let template = json!({"metadata": {"name": "t"}, "spec": {"spec": {"devices": {}}}});
    let _made: ResourceClaimTemplate = cluster.make("default", template).await;
    let (pods, claims) = (cluster.api::<Pod>("default"), cluster.api::<ResourceClaim>("default"));
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "resourceClaims": [{"name": "c", "resourceClaimTemplateName": "t"}]}}))
    .unwrap();
    // Its service account takes a moment.
    eventually("a Pod", || async {
        pods.create(&PostParams::default(), &pod).await.ok()
    })
    .await;
    let name = eventually("the claim's name", || async {
        let mut recorded = pods.get("p").await.ok()?.status?.resource_claim_statuses?;
        recorded.pop()?.resource_claim_name
    })
    .await;
    let patch = |change: Value| Patch::Merge(change);
    let params = PatchParams::default();
    let kept = json!({"metadata": {"finalizers": ["resource.kubernetes.io/delete-protection"]}});
    claims.patch(&name, &params, &patch(kept)).await.unwrap();
    let allocated = json!({"status": {"allocation": {"devices": {}}}});
    claims.patch_status(&name, &params, &patch(allocated)).await.unwrap();
    eventually("a reservation for the Pod, which has a node", || async {
        let users = claims.get(&name).await.ok()?.status?.reserved_for?;
        (users.len() == 1 && users[0].name == "p").then_some(())
    })
    .await;
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    eventually("the claim is gone", || async {
        claims.get_opt(&name).await.ok()?.is_none().then_some(())
    })
    .await;
    cluster.server.stop().await;
}

#[tokio::test]
async fn aggregated_rules_are_applied() {
    let cluster = Cluster::start().await;
    let roles: Api<ClusterRole> = Api::all(cluster.admin.clone());
    for role in [
        json!({"metadata": {"name": "whole"}, "rules": null,
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "whole"}}]}}),
        json!({"metadata": {"name": "part", "labels": {"to": "whole"}},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
    ] {
        let role: ClusterRole = serde_json::from_value(role).unwrap();
        roles.create(&PostParams::default(), &role).await.unwrap();
    }
    let applied = eventually("the rules, and whose they are", || async {
        let whole = roles.get("whole").await.ok()?;
        assert!(whole.rules.is_none_or(|rules| rules.len() <= 1));
        let managers = whole.metadata.managed_fields?;
        let mut managers = managers.into_iter();
        managers.find(|entry| {
            entry.manager.as_deref() == Some("clusterrole-aggregation-controller")
                && entry.operation.as_deref() == Some("Apply")
        })
    })
    .await;
    let fields = applied.fields_v1.map(|fields| fields.0);
    assert_eq!(fields, Some(json!({"f:rules": {}})));
    cluster.server.stop().await;
}
