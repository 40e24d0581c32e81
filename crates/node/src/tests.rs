//! The node as a whole, against an API, a runtime and a network in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Event, Node as ApiNode, Pod};
use sampan_client::Informers;
use sampan_client::testing::{FakeApi, eventually};
use sampan_runtime::fake::{FakeRuntime, Script};
use sampan_runtime::{ErrorKind, ExecOutput, ImageConfig, PodSandboxFilter, Runtime, RuntimeError};
use sampan_tasks::Tasks;
use serde_json::{Value, json};

use crate::{FakeNetworking, Node, NodeConfig};

struct Rig {
    api: FakeApi,
    runtime: FakeRuntime,
    network: Arc<FakeNetworking>,
    data: tempfile::TempDir,
    tasks: Tasks,
    node: Option<Node>,
}

impl Rig {
    async fn new() -> Self {
        let runtime = FakeRuntime::new();
        runtime.add_image("app:1", ImageConfig::default());
        let mut rig = Rig {
            api: FakeApi::new(),
            runtime,
            network: Arc::default(),
            data: tempfile::tempdir().unwrap(),
            tasks: Tasks::new(),
            node: None,
        };
        rig.start().await;
        rig
    }

    async fn start(&mut self) {
        self.tasks = Tasks::new();
        let client = self.api.client("system:node:node-1");
        let informers = Informers::new(client.clone(), &self.tasks);
        let config = NodeConfig::for_tests(self.data.path());
        let node = Node::start(
            config,
            client,
            &informers,
            Arc::new(self.runtime.clone()),
            self.network.clone(),
            None,
            &self.tasks,
        );
        self.node = Some(node.await.unwrap());
    }

    async fn stop(&mut self) {
        self.node = None;
        assert_eq!(self.tasks.shutdown(Duration::from_secs(10)).await, 0);
    }

    fn create(&self, name: &str, spec: Value) -> Pod {
        let mut spec = spec;
        spec["nodeName"] = json!("node-1");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns"}, "spec": spec,
            "status": {"phase": "Pending"}
        }))
        .unwrap();
        self.api.create(&pod)
    }

    fn pod(&self, name: &str) -> Option<Pod> {
        self.api.get("ns", name)
    }

    async fn until(&self, name: &str, what: &str, check: impl Fn(&Pod) -> bool) -> Pod {
        eventually(&format!("{name}: {what}"), || async { self.pod(name).filter(&check) }).await
    }

    async fn running(&self, name: &str) -> Pod {
        self.until(name, "running and ready", |pod| {
            phase(pod) == "Running" && condition(pod, "Ready") == "True"
        })
        .await
    }

    fn events(&self) -> Vec<(String, String)> {
        let all: Vec<Event> = self.api.all();
        all.into_iter()
            .map(|event| (event.reason.unwrap_or_default(), event.message.unwrap_or_default()))
            .collect()
    }

    async fn event(&self, reason: &str, part: &str) {
        eventually(&format!("event {reason}: {part}"), || async {
            let mut all = self.events().into_iter();
            all.find(|(have, message)| have == reason && message.contains(part))
        })
        .await;
    }
}

fn phase(pod: &Pod) -> &str {
    crate::pod::phase(pod)
}

fn condition(pod: &Pod, kind: &str) -> String {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut named = conditions.filter(|condition| condition.type_ == kind);
    named
        .next()
        .map(|condition| condition.status.clone())
        .unwrap_or_default()
}

fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let mut all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    all.find(|status| status.name == name)
}

fn waiting(pod: &Pod, name: &str) -> String {
    container(pod, name)
        .and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone())
        .unwrap_or_default()
}

fn simple() -> Value {
    json!({"containers": [{"name": "c", "image": "app:1"}]})
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted() {
    let mut rig = Rig::new().await;
    rig.create(
        "p",
        json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "c", "image": "app:1",
            "command": ["run", "$(WHO)"], "env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "volumeMounts": [{"name": "e", "mountPath": "/e"}]}], "volumes": [{"name": "e", "emptyDir": {}}]}),
    );
    let pod = rig.running("p").await;
    let status = pod.status.clone().unwrap();
    let ip = status.pod_ip.clone().unwrap();
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.observed_generation, pod.metadata.generation);
    assert_eq!(condition(&pod, "PodReadyToStartContainers"), "True");
    let record = rig.runtime.container_named("c").unwrap();
    let config = rig.runtime.container_config(&record.id).unwrap();
    assert_eq!(config.command, ["run", "p"]);
    assert!(config.envs.iter().any(|env| env.key == "IP" && env.value == ip));
    let paths: Vec<PathBuf> = config.mounts.iter().map(|mount| mount.container_path.clone()).collect();
    for path in ["/e", "/etc/hosts", "/dev/termination-log"] {
        assert!(paths.contains(&PathBuf::from(path)), "{paths:?}");
    }
    for (reason, part) in [("Pulled", "already present"), ("Created", ""), ("Started", "")] {
        rig.event(reason, part).await;
    }

    let api: kube::Api<Pod> = kube::Api::namespaced(rig.api.client("user"), "ns");
    api.delete("p", &kube::api::DeleteParams::default().grace_period(7))
        .await
        .unwrap();
    eventually("the pod is gone", || async { rig.pod("p").is_none().then_some(()) }).await;
    rig.event("Killing", "Stopping container c").await;
    assert!(
        rig.runtime
            .calls()
            .iter()
            .any(|call| call == &format!("stop_container {} 7s", record.id))
    );
    eventually("nothing is left", || async {
        let sandboxes = rig
            .runtime
            .list_pod_sandboxes(&PodSandboxFilter::default())
            .await
            .unwrap();
        let dirs = std::fs::read_dir(rig.data.path().join("pods")).map_or(0, Iterator::count);
        (sandboxes.is_empty() && rig.network.present().is_empty() && dirs == 0).then_some(())
    })
    .await;
    eventually("no worker is left", || async {
        (rig.node.as_ref().unwrap().pod_count() == 0).then_some(())
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn the_node_registers_and_renews_its_lease() {
    let mut rig = Rig::new().await;
    let node = eventually("the node is ready", || async {
        rig.api.get::<ApiNode>("", "node-1").filter(|node| {
            let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
            ready.any(|condition| condition.status == "True")
        })
    })
    .await;
    assert_eq!(node.metadata.labels.unwrap()["kubernetes.io/hostname"], "node-1");
    let status = node.status.unwrap();
    assert_eq!(status.capacity.unwrap()["pods"].0, "110");
    eventually("a lease", || async {
        rig.api.get::<Lease>("kube-node-lease", "node-1")
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn a_crashing_container_waits_longer() {
    let mut rig = Rig::new().await;
    rig.runtime.on_start("c", [Script::Exit(3)]);
    rig.create("p", simple());
    let pod = rig
        .until("p", "crash loop", |pod| waiting(pod, "c") == "CrashLoopBackOff")
        .await;
    let status = container(&pod, "c").unwrap();
    assert_eq!(status.restart_count, 1);
    let last = status.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    let message = status
        .state
        .as_ref()
        .unwrap()
        .waiting
        .as_ref()
        .unwrap()
        .message
        .clone()
        .unwrap();
    assert!(
        message.starts_with("back-off 10s restarting failed container=c pod=p_ns("),
        "{message}"
    );
    assert_eq!(phase(&pod), "Running");
    rig.event("BackOff", "Back-off restarting failed container c in pod p_ns(")
        .await;
    rig.stop().await;
}

#[tokio::test]
async fn images_that_cannot_be_pulled() {
    let mut rig = Rig::new().await;
    for _ in 0..2 {
        rig.runtime
            .fail("pull_image", RuntimeError::new(ErrorKind::ImagePull, "denied"));
    }
    rig.create("p", json!({"containers": [{"name": "c", "image": "secret:1"}]}));
    rig.event("Failed", "Error: ErrImagePull").await;
    let pod = rig
        .until("p", "back-off", |pod| waiting(pod, "c") == "ImagePullBackOff")
        .await;
    let waiting_state = container(&pod, "c").unwrap().state.clone().unwrap().waiting.unwrap();
    assert_eq!(
        waiting_state.message.as_deref(),
        Some("Back-off pulling image \"secret:1\": ErrImagePull: denied")
    );
    assert_eq!(phase(&pod), "Pending");
    rig.event("Failed", "Failed to pull image \"secret:1\": denied").await;
    rig.create("bad", json!({"containers": [{"name": "c", "image": "Not An Image"}]}));
    rig.until("bad", "invalid name", |pod| waiting(pod, "c") == "InvalidImageName")
        .await;
    rig.stop().await;
}

#[tokio::test]
async fn init_containers_sidecars_and_completion() {
    let mut rig = Rig::new().await;
    rig.runtime.on_start("i", [Script::Exit(0)]);
    rig.create(
        "p",
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "app:1"}], "initContainers": [
            {"name": "i", "image": "app:1"}, {"name": "s", "image": "app:1", "restartPolicy": "Always"}]}),
    );
    let pod = rig.running("p").await;
    assert!(container(&pod, "i").unwrap().ready);
    assert_eq!(container(&pod, "s").unwrap().started, Some(true));
    let order: Vec<String> = rig
        .runtime
        .calls()
        .into_iter()
        .filter_map(|call| call.strip_prefix("create_container ").map(str::to_owned))
        .collect();
    assert_eq!(order, ["i", "s", "c"]);
    rig.runtime.exit(&rig.runtime.container_named("c").unwrap().id, 0);
    let pod = rig.until("p", "succeeded", |pod| phase(pod) == "Succeeded").await;
    assert_eq!(condition(&pod, "Ready"), "False");
    // The sidecar was stopped and the network given back; the records stay for logs.
    eventually("the network is gone", || async {
        rig.network.present().is_empty().then_some(())
    })
    .await;
    assert!(rig.runtime.container_named("c").is_some());
    let api: kube::Api<Pod> = kube::Api::namespaced(rig.api.client("user"), "ns");
    api.delete("p", &Default::default()).await.unwrap();
    eventually("the pod is gone", || async { rig.pod("p").is_none().then_some(()) }).await;
    eventually("the records are gone", || async {
        rig.runtime.container_named("c").is_none().then_some(())
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn probes_decide_readiness_and_restarts() {
    let mut rig = Rig::new().await;
    let healthy = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let alive = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (h, a) = (healthy.clone(), alive.clone());
    rig.runtime.on_exec(move |_, command| {
        let flag = if command[0] == "ready" { &h } else { &a };
        let good = flag.load(std::sync::atomic::Ordering::SeqCst);
        ExecOutput {
            exit_code: i32::from(!good),
            stdout: b"because".to_vec(),
            ..ExecOutput::default()
        }
    });
    let probe = |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1});
    rig.create(
        "p",
        json!({"containers": [{"name": "c", "image": "app:1", "readinessProbe": probe("ready"), "livenessProbe": probe("alive")}]}),
    );
    rig.until("p", "running", |pod| phase(pod) == "Running").await;
    rig.event("Unhealthy", "Readiness probe failed: because").await;
    assert_eq!(condition(&rig.pod("p").unwrap(), "Ready"), "False");
    healthy.store(true, std::sync::atomic::Ordering::SeqCst);
    rig.running("p").await;
    alive.store(false, std::sync::atomic::Ordering::SeqCst);
    rig.event("Killing", "Container c failed liveness probe, will be restarted")
        .await;
    alive.store(true, std::sync::atomic::Ordering::SeqCst);
    rig.until("p", "restarted", |pod| {
        container(pod, "c").is_some_and(|c| c.restart_count == 1 && c.ready)
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn what_is_missing_is_waited_for() {
    let mut rig = Rig::new().await;
    rig.create(
        "env",
        json!({"containers": [{"name": "c", "image": "app:1", "env": [{"name": "X",
            "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}]}),
    );
    rig.create(
        "vol",
        json!({"containers": [{"name": "c", "image": "app:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "configMap": {"name": "cm"}}]}),
    );
    rig.until("env", "config error", |pod| {
        waiting(pod, "c") == "CreateContainerConfigError"
    })
    .await;
    rig.event(
        "FailedMount",
        "MountVolume.SetUp failed for volume \"v\" : configmap \"cm\" not found",
    )
    .await;
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "cm", "namespace": "ns"}, "data": {"k": "v1"}}))
    .unwrap();
    rig.api.create(&map);
    rig.running("env").await;
    let pod = rig.running("vol").await;
    let file = rig
        .data
        .path()
        .join("pods")
        .join(crate::pod::uid(&pod))
        .join("volumes/kubernetes.io~configmap/v/k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "v1");
    // A change reaches the running pod.
    rig.api.change::<ConfigMap>("ns", "cm", |map| {
        map.data.get_or_insert_default().insert("k".into(), "v2".into());
    });
    eventually("the new content", || async {
        std::fs::read_to_string(&file).ok().filter(|text| text == "v2")
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn a_restarted_node_adopts_what_runs() {
    let mut rig = Rig::new().await;
    rig.create("p", simple());
    rig.create("gone", json!({"containers": [{"name": "d", "image": "app:1"}]}));
    rig.running("p").await;
    let gone = rig.running("gone").await;
    let before = rig.runtime.container_named("c").unwrap();
    rig.stop().await;
    rig.api.remove::<Pod>("ns", "gone");
    let calls = rig.runtime.calls().len();
    rig.start().await;
    eventually("the forgotten pod is ended", || async {
        rig.runtime.container_named("d").is_none().then_some(())
    })
    .await;
    let left = rig.data.path().join("pods").join(crate::pod::uid(&gone));
    eventually("its directory is gone", || async { (!left.exists()).then_some(()) }).await;
    eventually("the network is adopted", || async {
        rig.network.calls().contains(&"adopt p".to_owned()).then_some(())
    })
    .await;
    let pod = rig.running("p").await;
    assert_eq!(container(&pod, "c").unwrap().restart_count, 0);
    assert_eq!(rig.runtime.container_named("c").unwrap().id, before.id);
    let later = rig.runtime.calls().split_off(calls);
    assert!(
        !later.iter().any(|call| call.starts_with("create_container")),
        "{later:?}"
    );
    // Events of what was adopted still arrive.
    rig.runtime.exit(&before.id, 1);
    rig.until("p", "restarted", |pod| {
        container(pod, "c").is_some_and(|c| c.restart_count == 1)
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn sandboxes_that_fail_or_die() {
    let mut rig = Rig::new().await;
    rig.runtime
        .fail("run_pod_sandbox", RuntimeError::internal("make", "no"));
    rig.create("p", simple());
    rig.event("FailedCreatePodSandBox", "Failed to create pod sandbox: make: no")
        .await;
    rig.running("p").await;
    let sandbox = rig.runtime.container_named("c").unwrap().sandbox_id;
    rig.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    rig.event("SandboxChanged", "it will be killed and re-created").await;
    eventually("another sandbox", || async {
        let now = rig.runtime.container_named("c")?;
        (now.sandbox_id != sandbox && crate::pod::observed::is_running(&now)).then_some(())
    })
    .await;
    rig.running("p").await;
    rig.stop().await;
}

#[tokio::test]
async fn refused_overdue_and_failed_pods() {
    let mut rig = Rig::new().await;
    rig.create(
        "huge",
        json!({"containers": [{"name": "c", "image": "app:1", "resources": {"requests": {"cpu": "100000"}}}]}),
    );
    let pod = rig.until("huge", "refused", |pod| phase(pod) == "Failed").await;
    let status = pod.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert!(
        status
            .message
            .unwrap()
            .starts_with("Pod was rejected: Node didn't have enough resource: cpu")
    );

    rig.create(
        "late",
        json!({"activeDeadlineSeconds": 1, "containers": [{"name": "l", "image": "app:1"}]}),
    );
    let pod = rig.until("late", "deadline", |pod| phase(pod) == "Failed").await;
    assert_eq!(pod.status.unwrap().reason.as_deref(), Some("DeadlineExceeded"));
    eventually("its container is stopped", || async {
        let now = rig.runtime.container_named("l")?;
        (!crate::pod::observed::is_running(&now)).then_some(())
    })
    .await;

    rig.runtime.on_start("f", [Script::Exit(2)]);
    rig.create(
        "failing",
        json!({"restartPolicy": "Never", "containers": [{"name": "f", "image": "app:1"}]}),
    );
    rig.until("failing", "failed", |pod| phase(pod) == "Failed").await;
    rig.runtime
        .on_start("st", [Script::StartError("no such program".into())]);
    rig.create("cannot", json!({"containers": [{"name": "st", "image": "app:1"}]}));
    rig.event("Failed", "Error: no such program").await;
    rig.stop().await;
}

#[tokio::test]
async fn statuses_survive_failing_writes_and_conditions_of_others() {
    let mut rig = Rig::new().await;
    for _ in 0..2 {
        rig.api
            .fail_next("patch", "pods/status", 500, "InternalError", "not now");
    }
    rig.create(
        "p",
        json!({"readinessGates": [{"conditionType": "x/gate"}], "containers": [{"name": "c", "image": "app:1"}]}),
    );
    let pod = rig.until("p", "running", |pod| phase(pod) == "Running").await;
    assert_eq!(condition(&pod, "ContainersReady"), "True");
    assert_eq!(condition(&pod, "Ready"), "False");
    rig.api.change::<Pod>("ns", "p", |pod| {
        let gate = serde_json::from_value(json!({"type": "x/gate", "status": "True"})).unwrap();
        let status = pod.status.get_or_insert_default();
        status.conditions.get_or_insert_default().push(gate);
    });
    let pod = rig.running("p").await;
    assert_eq!(condition(&pod, "x/gate"), "True");
    rig.stop().await;
}

#[tokio::test]
async fn hooks_run_within_the_grace_period() {
    let mut rig = Rig::new().await;
    rig.create(
        "p",
        json!({"containers": [{"name": "c", "image": "app:1", "lifecycle": {
            "postStart": {"exec": {"command": ["hello"]}}, "preStop": {"exec": {"command": ["bye"]}}}}]}),
    );
    rig.running("p").await;
    let id = rig.runtime.container_named("c").unwrap().id;
    assert!(rig.runtime.calls().contains(&format!("exec_sync {id} hello")));
    let api: kube::Api<Pod> = kube::Api::namespaced(rig.api.client("user"), "ns");
    api.delete("p", &Default::default()).await.unwrap();
    eventually("the pod is gone", || async { rig.pod("p").is_none().then_some(()) }).await;
    let calls = rig.runtime.calls();
    let at = |text: String| calls.iter().position(|call| *call == text);
    assert!(at(format!("exec_sync {id} bye")) < at(format!("stop_container {id} 30s")));
    rig.stop().await;
}
