//! A node with real containers and a real network, in a network namespace of its own; only the API is in memory.
//! Needs root and a static busybox; says so and skips elsewhere.
//!
//! Without the usual test harness: the program is its own shim, and moves into its namespaces before any thread.

use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Event, Pod, Secret};
use kube::api::{Api, DeleteParams};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sampan_client::Informers;
use sampan_client::testing::FakeApi;
use sampan_network::{PodNetwork, PodNetworkConfig};
use sampan_node::{ClusterDns, Node, NodeConfig, ServerTls};
use sampan_pki::{Params, Pki};
use sampan_runtime::Runtime;
use sampan_runtime::embedded::{Config, Embedded};
use sampan_tasks::Tasks;
use serde_json::{Value, json};

#[path = "../../runtime/src/testing.rs"]
#[allow(dead_code, unused_imports)]
mod testing;

const IMAGE: &str = "test.local/busybox:1";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    if first.as_deref() == Some("shim".as_ref()) {
        return sampan_runtime::shim_main(args);
    }
    if first.as_deref() == Some("--list".as_ref()) {
        return ExitCode::SUCCESS;
    }
    let Some(image) = testing::root_or_skip().then(testing::busybox).flatten() else {
        return ExitCode::SUCCESS;
    };
    if let Err(error) = own_machine() {
        println!("skipped: cannot have namespaces of its own: {error}");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let all = async {
        let mut world = World::new(&image).await;
        world.a_web_server_runs().await;
        world.its_logs_are_served().await;
        world.sources_are_followed().await;
        world.a_job_fails_and_says_why().await;
        world.a_liveness_probe_restarts().await;
        world.a_restart_adopts().await;
        world.deletion_leaves_nothing().await;
        world.end().await;
    };
    // Without a harness a failure must not wait for what hangs.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(180), all).await })
    }));
    runtime.shutdown_background();
    match outcome {
        Ok(Ok(())) => {
            println!("a node with real containers: ok");
            ExitCode::SUCCESS
        }
        Ok(Err(_)) => {
            println!("a node with real containers: not done in time");
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Network and mounts that the machine does not see.
fn own_machine() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|error| error.to_string())?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(|error| error.to_string())?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    match up {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("ip link set lo up: {other:?}")),
    }
}

struct World {
    api: FakeApi,
    dir: tempfile::TempDir,
    pki: Pki,
    cgroup: String,
    tasks: Tasks,
    engine: Option<Arc<Embedded>>,
    node: Option<Node>,
}

async fn eventually<T, F, Fut>(what: &str, mut check: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl World {
    async fn new(image: &testing::TestImage) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let archive = dir.path().join("image.tar");
        std::fs::write(&archive, image.oci_archive(IMAGE)).expect("an image");
        let pki = Pki::load_or_create(&dir.path().join("pki"), Params::default()).expect("certificates");
        let mut world = World {
            api: FakeApi::new(),
            cgroup: format!("/sampan-test-node-{}", std::process::id()),
            dir,
            pki,
            tasks: Tasks::new(),
            engine: None,
            node: None,
        };
        world.start().await;
        let engine = world.engine.as_ref().expect("an engine");
        engine.import_image(&archive, None).await.expect("an imported image");
        world
    }

    async fn start(&mut self) {
        self.tasks = Tasks::new();
        let root = self.dir.path();
        let mut config = Config::new(root.join("runtime"), root.join("run"));
        config.shim_cgroup = format!("{}-shims", self.cgroup);
        let engine = Embedded::open(config, &self.tasks).await.expect("an engine");
        self.engine = Some(Arc::clone(&engine));
        let range = "10.77.0.0/24".parse().expect("a range");
        let mut network = PodNetworkConfig::new(range, root.join("network"));
        network.netns_dir = root.join("netns");
        let network = PodNetwork::new(network).await.expect("a network");
        let address = IpAddr::from([127, 0, 0, 1]);
        let mut config = NodeConfig::new("node-1", vec![address], root.join("node"));
        // How full the machine's disk is must not decide this test.
        config.housekeeping.eviction = "memory.available<50Mi".parse().expect("thresholds");
        config.port = 10250;
        config.cgroup_root = self.cgroup.clone();
        config.cluster_dns = ClusterDns {
            servers: vec!["10.96.0.10".into()],
            domain: "cluster.local".into(),
        };
        let identity = self.pki.node_serving("node-1", &[address]).expect("a certificate");
        let verifier = sampan_pki::tls::ClientVerifier::new(self.pki.ca()).expect("a verifier");
        let tls = ServerTls {
            config: sampan_pki::tls::server_config(&identity, &verifier)
                .expect("TLS")
                .into(),
            verifier,
        };
        let client = self.api.client("system:node:node-1");
        let informers = Informers::new(client.clone(), &self.tasks);
        let node = Node::start(
            config,
            client,
            &informers,
            engine,
            Arc::new(network),
            Some(tls),
            &self.tasks,
        );
        self.node = Some(node.await.expect("a node"));
    }

    async fn stop(&mut self) {
        self.node = None;
        let left = self.tasks.shutdown(Duration::from_secs(10)).await;
        assert_eq!(left, 0, "tasks outlived the drain");
        let engine = self.engine.take().expect("an engine");
        // The lock of its directory goes with the last holder.
        let weak = Arc::downgrade(&engine);
        drop(engine);
        eventually("the engine is closed", || async {
            (weak.strong_count() == 0).then_some(())
        })
        .await;
    }

    fn create(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = json!("node-1");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "labels": {"app": name}}, "spec": spec,
            "status": {"phase": "Pending"}
        }))
        .expect("a pod");
        self.api.create(&pod);
    }

    async fn until(&self, name: &str, what: &str, check: impl Fn(&Pod) -> bool) -> Pod {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let pod: Option<Pod> = self.api.get("ns", name);
            if let Some(pod) = pod.clone().filter(&check) {
                return pod;
            }
            if Instant::now() > end {
                let events: Vec<Event> = self.api.all();
                for event in events {
                    println!("{:?} {:?}", event.reason, event.message);
                }
                panic!("never happened: {name} {what}: {:#?}", pod.and_then(|pod| pod.status));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ready(&self, name: &str) -> Pod {
        self.until(name, "ready", |pod| {
            let status = pod.status.clone().unwrap_or_default();
            let mut conditions = status.conditions.unwrap_or_default().into_iter();
            conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
        .await
    }

    async fn exec(&self, pod: &Pod, container: &str, script: &str) -> String {
        let id = container_id(pod, container);
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let engine = self.engine.as_ref().expect("an engine");
        let output = engine.exec_sync(&id, &command, Duration::from_secs(10)).await;
        let output = output.expect("a command that runs");
        assert_eq!(output.exit_code, 0, "{script}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    async fn get(&self, path: &str, certificate: bool) -> Result<(u16, String), String> {
        let identity = self.pki.kubelet_client();
        let config = sampan_pki::tls::client_config(self.pki.ca(), certificate.then_some(&identity), &["http/1.1"]);
        let connector = tokio_rustls::TlsConnector::from(config.map_err(|error| error.to_string())?);
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", 10250)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let name = "localhost".try_into().map_err(|_| "a name")?;
        let stream = connector.connect(name, stream).await;
        let stream = TokioIo::new(stream.map_err(|error| error.to_string())?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .map_err(|error| error.to_string())?;
        self.tasks
            .spawn_until_drain("client", sampan_tasks::OnExit::Expected, async move {
                let _ended = connection.await;
            });
        let request = http::Request::get(path)
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    }

    async fn a_web_server_runs(&self) {
        let map: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "cm", "namespace": "ns"}, "data": {"greeting": "hello"}}))
        .expect("a map");
        self.api.create(&map);
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "ns"}, "data": {"password": "aHVudGVyMg=="}}))
        .expect("a secret");
        self.api.create(&secret);
        let began = Instant::now();
        self.create(
            "web",
            json!({
                "hostname": "web-host", "terminationGracePeriodSeconds": 3,
                "securityContext": {"fsGroup": 1234},
                "initContainers": [{"name": "fill", "image": IMAGE,
                    "command": ["/bin/sh", "-c", "echo from-init > /data/index"],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "containers": [{"name": "c", "image": IMAGE,
                    "command": ["/bin/sh", "-c", "echo started $(GREETING); exec /bin/busybox httpd -f -p 8080 -h /data"],
                    "env": [{"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "greeting"}}}],
                    "ports": [{"name": "web", "containerPort": 8080}],
                    "resources": {"requests": {"cpu": "50m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                    "readinessProbe": {"httpGet": {"path": "/index", "port": "web"}, "periodSeconds": 1},
                    "livenessProbe": {"exec": {"command": ["/bin/cat", "/data/index"]}, "periodSeconds": 1},
                    "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "echo stopping > /data/stopping"]}}},
                    "volumeMounts": [
                        {"name": "data", "mountPath": "/data"},
                        {"name": "cfg", "mountPath": "/cfg"},
                        {"name": "cfg", "mountPath": "/one/file", "subPath": "greeting"},
                        {"name": "sec", "mountPath": "/sec"}]}],
                "volumes": [{"name": "data", "emptyDir": {}}, {"name": "cfg", "configMap": {"name": "cm"}},
                    {"name": "sec", "secret": {"secretName": "s", "defaultMode": 0o400}}]
            }),
        );
        let pod = self.ready("web").await;
        println!("web was ready after {:?}", began.elapsed());
        let ip = pod.status.clone().and_then(|status| status.pod_ip).expect("an address");
        assert_eq!(self.exec(&pod, "c", "hostname").await, "web-host");
        assert_eq!(self.exec(&pod, "c", "cat /cfg/greeting /one/file").await, "hellohello");
        assert_eq!(self.exec(&pod, "c", "cat /sec/password").await, "hunter2");
        assert_eq!(
            self.exec(&pod, "c", "stat -c %a:%g /sec/..data/password").await,
            "440:1234"
        );
        let hosts = self.exec(&pod, "c", "cat /etc/hosts").await;
        assert!(hosts.contains(&format!("{ip}\tweb-host")), "{hosts}");
        let resolver = self.exec(&pod, "c", "cat /etc/resolv.conf").await;
        assert!(resolver.contains("nameserver 10.96.0.10"), "{resolver}");
        assert!(
            resolver.contains("search ns.svc.cluster.local svc.cluster.local"),
            "{resolver}"
        );
        assert!(self.exec(&pod, "c", "ip addr").await.contains(&ip));
    }

    async fn its_logs_are_served(&self) {
        let logs = self.get("/containerLogs/ns/web/c?tailLines=5", true).await;
        assert_eq!(logs, Ok((200, "started hello\n".into())));
        let (status, text) = self.get("/containerLogs/ns/web/none", true).await.expect("an answer");
        assert_eq!(status, 400, "{text}");
        let (status, _) = self.get("/containerLogs/ns/nobody/c", true).await.expect("an answer");
        assert_eq!(status, 404);
        let (status, text) = self.get("/stats/summary", true).await.expect("an answer");
        assert!(status == 200 && text.contains("\"web\""), "{text}");
        let summary: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let web = summary["pods"].as_array().into_iter().flatten();
        let web = web.filter(|pod| pod["podRef"]["name"] == "web").collect::<Vec<_>>();
        for cpu in [&summary["node"]["cpu"], &web[0]["cpu"], &web[0]["containers"][0]["cpu"]] {
            assert!(cpu["usageNanoCores"].is_u64(), "{cpu} of {summary}");
        }
        let (status, text) = self.get("/metrics/resource", true).await.expect("an answer");
        assert_eq!(status, 200);
        assert!(
            text.contains("container_memory_working_set_bytes{container=\"c\",namespace=\"ns\",pod=\"web\"}"),
            "{text}"
        );
        // Without a certificate or a token nobody is served.
        let (status, text) = self.get("/pods", false).await.expect("an answer");
        assert_eq!(status, 401, "{text}");
    }

    async fn sources_are_followed(&self) {
        let pod = self.ready("web").await;
        self.api.change::<ConfigMap>("ns", "cm", |map| {
            map.data
                .get_or_insert_default()
                .insert("greeting".into(), "changed".into());
        });
        eventually("the container sees the change", || async {
            let seen = self.exec(&pod, "c", "cat /cfg/greeting").await;
            (seen == "changed").then_some(())
        })
        .await;
        assert_eq!(self.exec(&pod, "c", "cat /one/file").await, "hello");
    }

    async fn a_job_fails_and_says_why(&self) {
        self.create(
            "job",
            json!({"restartPolicy": "Never", "containers": [
                {"name": "c", "image": IMAGE, "command": ["/bin/sh", "-c", "echo bye > /dev/termination-log; exit 3"]},
                {"name": "d", "image": IMAGE, "command": ["/bin/sh", "-c", "echo from the log; exit 1"],
                    "terminationMessagePolicy": "FallbackToLogsOnError"},
                {"name": "e", "image": IMAGE, "command": ["/no/such/program"]}]}),
        );
        let pod = self
            .until("job", "failed", |pod| {
                pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Failed")
            })
            .await;
        for (name, code, message) in [("c", 3, "bye\n"), ("d", 1, "from the log\n")] {
            let status = container(&pod, name).expect("a status");
            let end = status.state.and_then(|state| state.terminated).expect("an end");
            assert_eq!((end.exit_code, end.message.as_deref()), (code, Some(message)));
        }
        let status = container(&pod, "e").expect("a status");
        let end = status.state.and_then(|state| state.terminated).expect("an end");
        assert_eq!((end.exit_code, end.reason.as_deref()), (128, Some("StartError")));
        let logs = self.get("/containerLogs/ns/job/d?follow=true", true).await;
        assert_eq!(logs, Ok((200, "from the log\n".into())));
    }

    async fn a_liveness_probe_restarts(&self) {
        self.create(
            "sick",
            json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": IMAGE,
                "command": ["/bin/sh", "-c", "echo x > /ok; sleep 1000"],
                "livenessProbe": {"exec": {"command": ["/bin/cat", "/ok"]}, "periodSeconds": 1, "failureThreshold": 1}}]}),
        );
        let pod = self.ready("sick").await;
        self.exec(&pod, "c", "rm /ok").await;
        let pod = self
            .until("sick", "restarted", |pod| {
                container(pod, "c").is_some_and(|status| status.restart_count == 1 && status.ready)
            })
            .await;
        let logs = self
            .get("/containerLogs/ns/sick/c?previous=true", true)
            .await
            .expect("an answer");
        assert_eq!(logs.0, 200);
        let api: Api<Pod> = Api::namespaced(self.api.client("user"), "ns");
        let params = DeleteParams::default().grace_period(1);
        api.delete(pod.metadata.name.as_deref().unwrap_or_default(), &params)
            .await
            .expect("a deletion");
        self.gone("sick").await;
    }

    async fn gone(&self, name: &str) {
        eventually("the pod is gone", || async {
            let pod: Option<Pod> = self.api.get("ns", name);
            pod.is_none().then_some(())
        })
        .await;
    }

    async fn a_restart_adopts(&mut self) {
        let before = self.ready("web").await;
        let uptime = self.exec(&before, "c", "stat -c %Y /proc/1").await;
        self.stop().await;
        self.start().await;
        let began = Instant::now();
        // Whatever happens to it now, the new node must see.
        let pod = self.ready("web").await;
        assert_eq!(container_id(&pod, "c"), container_id(&before, "c"));
        assert_eq!(container(&pod, "c").map(|status| status.restart_count), Some(0));
        eventually("the pod is served again", || async {
            let logs = self.get("/containerLogs/ns/web/c", true).await.ok()?;
            (logs.0 == 200).then_some(())
        })
        .await;
        println!("adopted after {:?}", began.elapsed());
        assert_eq!(self.exec(&pod, "c", "stat -c %Y /proc/1").await, uptime);
    }

    async fn deletion_leaves_nothing(&self) {
        let api: Api<Pod> = Api::namespaced(self.api.client("user"), "ns");
        let began = Instant::now();
        for name in ["web", "job"] {
            api.delete(name, &DeleteParams::default().grace_period(3))
                .await
                .expect("a deletion");
        }
        for name in ["web", "job"] {
            self.gone(name).await;
        }
        println!("deleted after {:?}", began.elapsed());
        let root = self.dir.path().to_path_buf();
        let left = || -> Vec<String> {
            let names = |path: &str| std::fs::read_dir(root.join(path)).into_iter().flatten().flatten();
            ["node/pods", "node/logs", "netns"]
                .iter()
                .flat_map(|path| names(path).map(|entry| entry.path().display().to_string()))
                .collect()
        };
        let end = Instant::now() + Duration::from_secs(30);
        while !left().is_empty() {
            assert!(Instant::now() < end, "still there: {:?}", left());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let engine = self.engine.as_ref().expect("an engine");
        assert_eq!(
            engine
                .list_pod_sandboxes(&Default::default())
                .await
                .map(|list| list.len())
                .ok(),
            Some(0)
        );
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
        let pods = root.join("node/pods");
        assert!(!table.contains(&pods.display().to_string()), "{table}");
    }

    async fn end(mut self) {
        // Whatever runs below must end before the engine is asked to leave nothing.
        self.node = None;
        let left = self.tasks.shutdown(Duration::from_secs(10)).await;
        assert_eq!(left, 0, "tasks outlived the drain");
        let engine = self.engine.take().expect("an engine");
        let clean = tokio::time::timeout(Duration::from_secs(20), engine.cleanup()).await;
        clean.expect("cleanup in time").expect("a clean machine");
        remove_cgroups(&self.cgroup);
    }
}

/// Removes the groups this test made, in whatever hierarchies there are.
fn remove_cgroups(name: &str) {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    if let Ok(entries) = std::fs::read_dir("/sys/fs/cgroup") {
        roots.extend(entries.flatten().map(|entry| entry.path()));
    }
    for root in roots {
        for name in [name.to_owned(), format!("{name}-shims")] {
            remove_group(&root.join(name.trim_start_matches('/')));
        }
    }
}

fn remove_group(path: &Path) {
    let Ok(entries) = std::fs::read_dir(path) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    if let Err(error) = std::fs::remove_dir(path) {
        println!("left behind: {}: {error}", path.display());
    }
}

fn container(pod: &Pod, name: &str) -> Option<ContainerStatus> {
    let statuses = pod.status.clone()?.container_statuses?;
    statuses.into_iter().find(|status| status.name == name)
}

fn container_id(pod: &Pod, name: &str) -> String {
    let id = container(pod, name)
        .and_then(|status| status.container_id)
        .unwrap_or_default();
    id.split_once("://").map(|(_, id)| id.to_owned()).unwrap_or_default()
}
