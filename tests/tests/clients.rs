//! The clients people write programs with: Python's and kube-rs.

use std::process::Command;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{AttachParams, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use sampan_e2e::{Cluster, NODE, output, ready};
use serde_json::json;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: shell}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: 'localhost/sampan/busybox:1.35', command: [sh, -c, 'echo started; sleep 3600']}
";

const PROGRAM: &str = r#"
import sys
from kubernetes import client, config, watch
from kubernetes.stream import stream
from kubernetes.client.rest import ApiException

config.load_kube_config(sys.argv[1])
core, apps = client.CoreV1Api(), client.AppsV1Api()
assert [n.metadata.name for n in core.list_node().items] == ["node-1"]
assert client.VersionApi().get_code().major == "1"
assert "apps" in [g.name for g in client.ApisApi().get_api_versions().groups]

made = core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=client.V1ObjectMeta(name="py"), data={"a": "1"}))
assert made.metadata.uid
seen = []
w = watch.Watch()
core.patch_namespaced_config_map("py", "default", {"data": {"a": "2"}})
core.delete_namespaced_config_map("py", "default")
for event in w.stream(core.list_namespaced_config_map, "default", resource_version=made.metadata.resource_version, timeout_seconds=20):
    if event["object"].metadata.name == "py":
        seen.append(event["type"])
        if event["type"] == "DELETED":
            w.stop()
assert seen == ["MODIFIED", "DELETED"], seen
try:
    core.read_namespaced_config_map("py", "default")
    raise SystemExit("it is still there")
except ApiException as error:
    assert error.status == 404 and "not found" in error.body, error
try:
    core.create_namespaced_config_map("default", {"metadata": {"name": "Bad_Name"}})
    raise SystemExit("it was taken")
except ApiException as error:
    assert error.status == 422 and error.reason, error

labels = {"app": "py"}
container = client.V1Container(name="main", image="localhost/sampan/busybox:1.35", command=["sleep", "3600"])
template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=0))
spec = client.V1DeploymentSpec(replicas=1, selector=client.V1LabelSelector(match_labels=labels), template=template)
apps.create_namespaced_deployment("default", client.V1Deployment(metadata=client.V1ObjectMeta(name="py"), spec=spec))
for event in watch.Watch().stream(apps.list_namespaced_deployment, "default", timeout_seconds=60):
    if event["object"].status.ready_replicas == 1:
        break
else:
    raise SystemExit("the Deployment is not ready")
pod = core.list_namespaced_pod("default", label_selector="app=py").items[0].metadata.name
answer = stream(core.connect_get_namespaced_pod_exec, pod, "default", command=["sh", "-c", "echo out; echo err >&2"], stdout=True, stderr=True, stdin=False, tty=False)
assert "out" in answer and "err" in answer, answer
shell = stream(core.connect_get_namespaced_pod_exec, pod, "default", command=["sh"], stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False)
shell.write_stdin("echo $((6*7))\nexit 3\n")
shell.run_forever(timeout=20)
assert shell.read_stdout().strip() == "42"
assert shell.returncode == 3, shell.returncode
assert "started" in core.read_namespaced_pod_log("shell", "default")
scale = apps.patch_namespaced_deployment_scale("py", "default", {"spec": {"replicas": 0}})
assert scale.spec.replicas == 0
apps.delete_namespaced_deployment("py", "default", propagation_policy="Foreground")
print("python is content")
"#;

#[test]
fn python() {
    if !ready("python") {
        return;
    }
    let temp = tempfile::tempdir().expect("a temporary directory");
    let venv = temp.path().join("venv");
    let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: python: it needs python3 with venv (Debian package python3-venv)");
        return;
    }
    let installed =
        output(
            Command::new("timeout")
                .arg("180")
                .arg(venv.join("bin/pip"))
                .args(["install", "-q", "kubernetes"]),
        );
    if !installed.status.success() {
        eprintln!(
            "skipped: python: pip could not install the client: {}",
            String::from_utf8_lossy(&installed.stderr)
        );
        return;
    }
    let cluster = Cluster::start_with("python", &["--disable=dns"]);
    cluster.apply(POD);
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/shell");
    let program = temp.path().join("program.py");
    std::fs::write(&program, PROGRAM).expect("write");
    let output = sampan_e2e::output(
        cluster
            .lab
            .on_node("timeout")
            .arg("100")
            .arg(venv.join("bin/python"))
            .arg(&program)
            .arg(cluster.kubeconfig()),
    );
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && text.contains("python is content"), "{text}");
}

/// kube-rs, which must be inside the node's network: the thread that runs it goes there.
#[test]
fn kube_rs() {
    if !ready("kube_rs") {
        return;
    }
    let cluster = Cluster::start_with("kube-rs", &["--disable=dns"]);
    cluster.apply(POD);
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/shell");
    let namespace = std::fs::File::open(cluster.lab.node_namespace()).expect("the namespace");
    let kubeconfig = cluster.kubeconfig();
    let outcome = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("the node's network");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            tokio::time::timeout(std::time::Duration::from_secs(60), content(&kubeconfig))
                .await
                .expect("in time")
        })
    })
    .join()
    .expect("the thread");
    outcome.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log()));
}

async fn content(kubeconfig: &std::path::Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let client: Client = sampan_client::from_kubeconfig(kubeconfig).await?;
    assert_eq!(client.apiserver_version().await?.major, "1");
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rs"}, "data": {"a": "1"}});
    let mine = PatchParams::apply("kube-rs");
    let made = maps.patch("rs", &mine, &Patch::Apply(&applied)).await?;
    let version = made.metadata.resource_version.clone().expect("a version");
    let other = PatchParams::apply("another");
    let conflicting = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rs"}, "data": {"a": "2"}});
    match maps.patch("rs", &other, &Patch::Apply(&conflicting)).await {
        Err(kube::Error::Api(status)) => assert_eq!((status.code, status.reason.as_str()), (409, "Conflict")),
        outcome => panic!("a conflict was expected: {outcome:?}"),
    }
    maps.patch("rs", &other.force(), &Patch::Apply(&conflicting)).await?;
    maps.patch(
        "rs",
        &PatchParams::default(),
        &Patch::Merge(json!({"data": {"b": "3"}})),
    )
    .await?;
    let read = maps.get("rs").await?;
    assert_eq!(serde_json::to_value(&read.data)?, json!({"a": "2", "b": "3"}));
    assert!(
        maps.list(&ListParams::default().fields("metadata.name=rs"))
            .await?
            .items
            .len()
            == 1
    );
    let mut stale = read.clone();
    stale.metadata.resource_version = Some(version.clone());
    assert!(
        matches!(maps.replace("rs", &PostParams::default(), &stale).await, Err(kube::Error::Api(status)) if status.code == 409)
    );
    maps.delete("rs", &DeleteParams::default()).await?;
    let mut events = maps.watch(&WatchParams::default().timeout(20), &version).await?.boxed();
    let mut seen = Vec::new();
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Modified(map) if map.metadata.name.as_deref() == Some("rs") => seen.push("modified"),
            WatchEvent::Deleted(map) if map.metadata.name.as_deref() == Some("rs") => {
                seen.push("deleted");
                break;
            }
            WatchEvent::Error(error) => panic!("{error:?}"),
            _ => {}
        }
    }
    assert_eq!(seen, ["modified", "modified", "deleted"]);

    let pods: Api<Pod> = Api::default_namespaced(client);
    let pod = pods.get("shell").await?;
    assert_eq!(pod.status.and_then(|status| status.host_ip).as_deref(), Some(NODE));
    let params = AttachParams::default().stdin(true).stdout(true).stderr(false);
    let mut process = pods
        .exec("shell", ["sh", "-c", "read x; echo got $x; exit 4"], &params)
        .await?;
    let mut stdin = process.stdin().expect("stdin");
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"word\n").await?;
    let mut text = String::new();
    let mut stdout = process.stdout().expect("stdout");
    tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut text).await?;
    assert_eq!(text, "got word\n");
    let status = process.take_status().expect("a status").await.expect("an end");
    assert!(
        status.status.as_deref() == Some("Failure") && serde_json::to_string(&status)?.contains("\"4\""),
        "{status:?}"
    );
    assert!(
        pods.logs("shell", &kube::api::LogParams::default())
            .await?
            .contains("started")
    );
    Ok(())
}
