//! Real kubectl against a real server on loopback. Skipped, saying so, where there is no kubectl.
//!
//! `SAMPAN_KUBECTL` names one or more binaries, separated by `:`; without it the one on `PATH` is used.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sampan_apiserver::testing::TestServer;

struct Kubectl {
    binary: PathBuf,
    config: PathBuf,
    cache: PathBuf,
}

struct Output {
    ok: bool,
    text: String,
}

impl Kubectl {
    fn run_with(&self, arguments: &[&str], input: &str) -> Output {
        use std::io::Write;
        let mut child = Command::new(&self.binary)
            .args([
                "--kubeconfig".as_ref(),
                self.config.as_os_str(),
                "--cache-dir".as_ref(),
                self.cache.as_os_str(),
            ])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(input.as_bytes())
            .expect("kubectl reads");
        let output = child.wait_with_output().expect("kubectl ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Output {
            ok: output.status.success(),
            text,
        }
    }
    #[track_caller]
    fn ok(&self, line: &str) -> String {
        self.ok_with(line, "")
    }
    #[track_caller]
    fn ok_with(&self, line: &str, input: &str) -> String {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = self.run_with(&arguments, input);
        assert!(output.ok, "kubectl {line}: {}", output.text);
        output.text
    }
    #[track_caller]
    fn fails(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = self.run_with(&arguments, "");
        assert!(!output.ok, "kubectl {line} should fail: {}", output.text);
        output.text
    }
    #[track_caller]
    fn shows(&self, line: &str, wanted: &[&str]) {
        let text = self.ok(line);
        for wanted in wanted {
            assert!(
                text.contains(wanted),
                "kubectl {line} does not show {wanted:?}:\n{text}"
            );
        }
    }
}

fn binaries() -> Vec<PathBuf> {
    if let Ok(named) = std::env::var("SAMPAN_KUBECTL") {
        return named.split(':').map(PathBuf::from).collect();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .map(|dir| Path::new(dir).join("kubectl"))
        .find(|path| path.exists())
        .into_iter()
        .collect()
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: nginx, ports: [{containerPort: 80}]}]
";

fn flows(kubectl: &Kubectl) {
    kubectl.shows("version", &["+sampan"]);
    kubectl.shows("api-resources", &["deployments", "ReplicaSet", "networkpolicies"]);
    kubectl.shows("api-versions", &["apps/v1", "batch/v1", "v1"]);
    kubectl.shows("explain pod.spec.containers", &["containers", "List of containers"]);
    kubectl.shows("get namespaces", &["kube-node-lease", "Active"]);
    // Create, read, change, delete.
    kubectl.shows("create configmap one --from-literal=a=1", &["configmap/one created"]);
    kubectl.shows("get configmap one -o jsonpath={.data.a}", &["1"]);
    kubectl.shows("label configmap one tier=x", &["labeled"]);
    kubectl.shows("annotate configmap one note=y", &["annotate"]);
    kubectl.shows("get configmap -l tier=x -o name", &["configmap/one"]);
    kubectl.shows("patch configmap one -p {\"data\":{\"b\":\"2\"}}", &["patched"]);
    kubectl.shows(
        "patch configmap one --type=merge -p {\"data\":{\"a\":null}}",
        &["patched"],
    );
    kubectl.shows(
        "patch configmap one --type=json -p [{\"op\":\"add\",\"path\":\"/data/c\",\"value\":\"3\"}]",
        &["patched"],
    );
    kubectl.shows("get configmap one -o jsonpath={.data}", &["{\"b\":\"2\",\"c\":\"3\"}"]);
    assert!(
        kubectl
            .fails("get configmap none")
            .contains("configmaps \"none\" not found")
    );
    assert!(
        kubectl
            .fails("create configmap one")
            .contains("configmaps \"one\" already exists")
    );
    kubectl.shows("delete configmap one", &["deleted"]);
    // Apply three times: created, unchanged, configured.
    assert!(
        kubectl
            .ok_with("apply -f -", DEPLOYMENT)
            .contains("deployment.apps/web created")
    );
    assert!(
        kubectl
            .ok_with("apply -f -", DEPLOYMENT)
            .contains("deployment.apps/web unchanged")
    );
    let changed = DEPLOYMENT.replace("replicas: 2", "replicas: 4");
    assert!(
        kubectl
            .ok_with("apply --dry-run=server -f -", &changed)
            .contains("configured (server dry run)")
    );
    assert!(
        kubectl
            .ok_with("apply -f -", &changed)
            .contains("deployment.apps/web configured")
    );
    assert!(
        kubectl
            .ok_with("apply --server-side --force-conflicts -f -", &changed)
            .contains("serverside-applied")
    );
    kubectl.shows("get deployment web", &["0/4"]);
    kubectl.shows("get deployment web -o wide", &["nginx", "app=web"]);
    kubectl.shows("scale deployment web --replicas=1", &["scaled"]);
    kubectl.shows("set image deployment/web web=nginx:2", &["image updated"]);
    kubectl.shows("describe deployment web", &["Image:", "nginx:2", "RollingUpdate"]);
    kubectl.shows("expose deployment web --port=80", &["exposed"]);
    kubectl.shows("get service web", &["ClusterIP", "10.96."]);
    kubectl.shows("get all", &["deployment.apps/web", "service/web"]);
    assert!(kubectl.ok_with("replace -f -", &changed).contains("replaced"));
    let wrong = changed.replace("replicas: 4", "replikas: 4");
    let output = kubectl.run_with(&["apply", "-f", "-"], &wrong);
    assert!(!output.ok && output.text.contains("replikas"), "{}", output.text);
    // Pods.
    kubectl.ok("create serviceaccount default");
    kubectl.shows("run p --image=pause", &["pod/p created"]);
    kubectl.shows("get pods", &["Pending"]);
    kubectl.shows(
        "wait pod/p --for=jsonpath={.status.phase}=Pending --timeout=5s",
        &["condition met"],
    );
    kubectl.shows("describe pod p", &["kube-api-access-", "BestEffort"]);
    kubectl.shows("delete pod p", &["deleted"]);
    // Who may what.
    kubectl.shows("auth can-i create pods", &["yes"]);
    assert!(kubectl.ok("create token default").len() > 100);
    kubectl.shows("create role r --verb=get --resource=pods", &["created"]);
    kubectl.shows("create rolebinding r --role=r --user=jane", &["created"]);
    kubectl.shows("auth can-i get pods --as=jane", &["yes"]);
    kubectl.shows("create quota q --hard=pods=3", &["created"]);
    kubectl.shows("create job j --image=pause", &["created"]);
    kubectl.shows("get jobs", &["0/1"]);
    kubectl.shows("get events", &[]);
    kubectl.shows("get --raw /readyz?verbose", &["readyz check passed"]);
    kubectl.shows("delete deployment,service,job --all --wait=false", &["deleted"]);
    kubectl.shows("get secrets -A --chunk-size=1", &[]);
}

impl Kubectl {
    fn tolerant(&self) {
        // `auth can-i` answers no with an exit code of 1.
        let output = self.run_with(&["auth", "can-i", "get", "secrets", "--as=jane"], "");
        assert!(output.text.contains("no"), "{}", output.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_flows() {
    let binaries = binaries();
    if binaries.is_empty() {
        println!("skipped: there is no kubectl on PATH and SAMPAN_KUBECTL is not set");
        return;
    }
    for binary in binaries {
        let server = TestServer::start().await.expect("the server starts");
        let config = server.kubeconfig().expect("a kubeconfig");
        let cache = server.dir().join("cache");
        let kubectl = Kubectl { binary, config, cache };
        println!("with {}", kubectl.binary.display());
        tokio::task::spawn_blocking(move || {
            kubectl.tolerant();
            flows(&kubectl);
        })
        .await
        .expect("the flows pass");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_watches() {
    let Some(binary) = binaries().into_iter().next() else {
        println!("skipped: there is no kubectl on PATH and SAMPAN_KUBECTL is not set");
        return;
    };
    let server = TestServer::start().await.expect("the server starts");
    let config = server.kubeconfig().expect("a kubeconfig");
    let cache = server.dir().join("cache");
    let kubectl = Kubectl { binary, config, cache };
    tokio::task::spawn_blocking(move || {
        let mut watch = Command::new(&kubectl.binary)
            .arg("--kubeconfig")
            .arg(&kubectl.config)
            .args(["get", "configmaps", "-w", "--request-timeout=4s"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        std::thread::sleep(Duration::from_millis(1500));
        kubectl.ok("create configmap seen");
        kubectl.ok("delete configmap seen");
        watch.wait().expect("kubectl ends");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut watch.stdout.take().expect("a pipe"), &mut text).expect("text");
        assert_eq!(text.matches("seen").count(), 2, "{text}");
        assert_eq!(text.matches("NAME").count(), 1, "{text}");
    })
    .await
    .expect("the watch works");
    server.stop().await;
}
