//! `sampan cert`: certificates of a running cluster renewed, and everything that issues them replaced, while people work.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sampan_e2e::joined::Joined;
use sampan_e2e::{Cluster, binary, kubectls, output, ready};
use serde_json::Value;

/// `sampan cert` beside the server: whether it went well, and what it said.
fn cert(cluster: &Cluster, words: &str) -> (bool, String) {
    let mut command = cluster.lab.on_node(binary());
    command
        .arg("cert")
        .args(words.split(' '))
        .arg("--data-dir")
        .arg(cluster.dir.path());
    let output = output(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

fn must_cert(cluster: &Cluster, words: &str) -> String {
    let (good, said) = cert(cluster, words);
    assert!(good, "sampan cert {words}: {said}\n{}", cluster.log());
    said
}

fn listed(cluster: &Cluster, name: &str) -> Value {
    let all: Value = serde_json::from_str(&must_cert(cluster, "list -o json --log error")).expect("JSON");
    let all = all.as_array().expect("a list").clone();
    let found = all.iter().find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {all:?}")).clone()
}

/// kubectl with a kubeconfig of its own.
fn kubectl_with(cluster: &Cluster, kubeconfig: &Path, words: &str) -> Result<String, String> {
    let kubectl = kubectls().into_iter().next_back().expect("a kubectl");
    let mut command = cluster.lab.on_node(kubectl);
    command.arg("--kubeconfig").arg(kubeconfig).args(words.split(' '));
    let output = output(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

/// What a request with a token gets, by curl with these authorities: the status code.
fn with_token(cluster: &Cluster, authorities: &Path, token: &str, path: &str) -> String {
    let mut curl = cluster.lab.on_node("curl");
    curl.args([
        "-s",
        "--max-time",
        "10",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--cacert",
    ]);
    curl.arg(authorities)
        .args(["-H", &format!("Authorization: Bearer {token}")])
        .arg(format!("https://127.0.0.1:6443{path}"));
    String::from_utf8_lossy(&output(&mut curl).stdout).into_owned()
}

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: local}
spec:
  nodeName: node-1
  containers: [{name: c, image: localhost/sampan/busybox:1.35, command: [sleep, '100000']}]
---
apiVersion: v1
kind: Pod
metadata: {name: remote}
spec:
  nodeName: node-2
  containers: [{name: c, image: localhost/sampan/busybox:1.35, command: [sh, -c, 'echo begun; sleep 100000']}]
";

/// Somebody who works all the time, each time with the kubeconfig that is there then.
struct Worker {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Worker {
    fn start(cluster: &Cluster) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let failures: Arc<Mutex<Vec<String>>> = Arc::default();
        let namespace = cluster.lab.node_namespace();
        let (kubeconfig, kubectl) = (
            cluster.kubeconfig(),
            kubectls().into_iter().next_back().expect("a kubectl"),
        );
        let (stopped, counted, told) = (stop.clone(), done.clone(), failures.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let mut command = Command::new("nsenter");
                command
                    .arg(format!("--net={}", namespace.display()))
                    .arg("--")
                    .arg(&kubectl);
                command.arg("--kubeconfig").arg(&kubeconfig);
                let output = output(command.args(["get", "nodes", "-o", "name"]));
                if output.status.success() {
                    counted.fetch_add(1, Ordering::AcqRel);
                } else {
                    told.lock()
                        .expect("no panic")
                        .push(String::from_utf8_lossy(&output.stderr).into_owned());
                }
            }
        });
        Worker {
            stop,
            done,
            failures,
            thread: Some(thread),
        }
    }

    fn end(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the worker ends");
        }
        (
            self.done.load(Ordering::Acquire),
            self.failures.lock().expect("no panic").clone(),
        )
    }
}

/// The authority of a cluster of two machines is replaced, and nobody notices who need not.
#[test]
fn the_authority_is_replaced_without_an_outage() {
    if !ready("the_authority_is_replaced_without_an_outage") {
        return;
    }
    let cluster = Cluster::start("ca");
    let created = cluster
        .lab
        .on_node(binary())
        .args(["token", "create", "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .output();
    let created = String::from_utf8(created.expect("sampan token").stdout).expect("text");
    let words: Vec<&str> = created.trim().split(' ').collect();
    let ["sampan", "agent", "--server", server, "--token", token] = words[..] else {
        panic!("{created}");
    };
    let mut node = Joined::new(&cluster);
    node.start(&["--server", server, "--token", token]);
    node.wait("the node is Ready", || node.ready());
    cluster.apply(PODS);
    cluster.kubectl("wait --for=condition=Ready pod/local pod/remote --timeout=90s");
    let pki = cluster.dir.path().join("pki");
    let copy = |from: PathBuf, name: &str| {
        let to = cluster.dir.path().join(name);
        std::fs::copy(from, &to).expect("a copy");
        to
    };
    let (old_kubeconfig, old_ca) = (
        copy(cluster.kubeconfig(), "old.kubeconfig"),
        copy(pki.join("ca.crt"), "old.crt"),
    );
    let account = cluster.kubectl("create token default --duration=1h").trim().to_owned();
    let who = "/apis/authentication.k8s.io/v1/";
    assert_eq!(with_token(&cluster, &old_ca, &account, who), "200");
    let first = listed(&cluster, "apiserver");
    let kubectl = kubectls().into_iter().next_back().expect("a kubectl");
    let mut watch = cluster.kubectl_command(&kubectl);
    let watch = watch
        .args(["get", "pods", "--watch"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut watch = watch.expect("kubectl");
    let worker = Worker::start(&cluster);

    // A certificate anew, on request.
    let said = must_cert(&cluster, "renew apiserver");
    assert!(said.contains("Renewed: apiserver"), "{said}");
    let renewed = listed(&cluster, "apiserver");
    assert_eq!(renewed["issuer"], first["issuer"]);
    let (good, said) = cert(&cluster, "renew nobody");
    assert!(!good && said.contains("uses no certificate \"nobody\""), "{said}");
    must_cert(&cluster, "check");
    let (good, said) = cert(&cluster, "check --within 400d");
    assert!(
        !good && said.contains("apiserver") && !said.contains("front-proxy-ca  "),
        "{said}"
    );

    // Trusted first.
    let said = must_cert(&cluster, "rotate-ca --only-trust");
    assert!(said.contains("1. The next one is made"), "{said}");
    assert_eq!(listed(&cluster, "apiserver")["issuer"], first["issuer"]);
    // A machine that is away is waited for, and named.
    node.kill();
    let (good, said) = cert(&cluster, "rotate-ca --timeout 2s");
    assert!(
        !good && said.contains("node node-2 (its certificates are of the old authority)"),
        "{said}"
    );
    let (good, said) = cert(&cluster, "rotate-ca --retire");
    assert!(!good && said.contains("still needed by: node node-2"), "{said}");
    assert_ne!(listed(&cluster, "apiserver")["issuer"], first["issuer"]);
    node.start(&["--server", server]);
    let said = must_cert(&cluster, "rotate-ca --timeout 60s");
    assert!(said.contains("3. The server's certificates"), "{said}");
    assert!(must_cert(&cluster, "status").contains("the new one is at work, the old one is still trusted"));

    // Old and new work side by side.
    assert!(kubectl_with(&cluster, &old_kubeconfig, "get nodes").is_ok());
    assert_eq!(with_token(&cluster, &old_ca, &account, who), "200");
    node.wait("the node is Ready", || node.ready());
    node.wait("a Pod's bundle", || {
        let path = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
        let bundle = cluster.try_kubectl(&format!("exec local -- cat {path}"));
        bundle.is_ok_and(|bundle| bundle.matches("BEGIN").count() == 2)
    });
    assert!(watch.try_wait().expect("wait").is_none(), "a watch was ended");

    // And then without the old one.
    must_cert(&cluster, "rotate-ca --retire");
    let refused = kubectl_with(&cluster, &old_kubeconfig, "get nodes").expect_err("it is retired");
    assert!(refused.contains("certificate signed by unknown authority"), "{refused}");
    assert_eq!(with_token(&cluster, &pki.join("ca.crt"), &account, who), "200");
    node.wait("logs", || {
        cluster
            .try_kubectl("logs remote")
            .is_ok_and(|log| log.contains("begun"))
    });
    assert_eq!(cluster.kubectl("exec remote -- echo heard").trim(), "heard");
    assert_eq!(cluster.kubectl("exec local -- echo heard").trim(), "heard");
    // Its agent begins anew with what it has.
    node.kill();
    node.start(&["--server", server]);
    node.wait("logs", || {
        cluster
            .try_kubectl("logs remote")
            .is_ok_and(|log| log.contains("begun"))
    });
    node.wait("the node is Ready", || node.ready());
    assert!(watch.try_wait().expect("wait").is_none(), "a watch was ended");
    watch.kill().expect("kill");
    watch.wait().expect("wait");
    let (done, failures) = worker.end();
    assert!(
        done > 20 && failures.is_empty(),
        "{done} requests, and these failed: {failures:?}"
    );

    // The key of service accounts, likewise.
    must_cert(&cluster, "rotate-service-account-key");
    assert_eq!(with_token(&cluster, &pki.join("ca.crt"), &account, who), "200");
    let keys = |cluster: &Cluster| {
        let keys: Value = serde_json::from_str(&cluster.kubectl("get --raw /openid/v1/jwks")).expect("JSON");
        keys["keys"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(keys(&cluster), 2);
    let (good, said) = cert(&cluster, "rotate-service-account-key --retire");
    assert!(!good && said.contains("running Pods, whose tokens"), "{said}");
    must_cert(&cluster, "rotate-service-account-key --retire --force");
    assert_eq!(keys(&cluster), 1);
    assert_eq!(with_token(&cluster, &pki.join("ca.crt"), &account, who), "401");
}

/// Killed or stopped at any point, the cluster works and the command goes on where it was.
#[test]
fn a_replacement_survives_whatever_is_killed() {
    if !ready("a_replacement_survives_whatever_is_killed") {
        return;
    }
    let mut cluster = Cluster::prepare("ca-kill", &["--disable=node,proxy,dns,scheduler"]);
    cluster.start_server();
    let pki = cluster.dir.path().join("pki");
    let kept = cluster.dir.path().join("kept");
    let files = |from: &Path, to: &Path| {
        if to.exists() {
            std::fs::remove_dir_all(to).expect("remove");
        }
        std::fs::create_dir(to).expect("a directory");
        for entry in std::fs::read_dir(from).expect("a directory") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    };
    let works = |cluster: &Cluster| assert!(cluster.try_kubectl("get namespaces").is_ok());
    let phase = |cluster: &Cluster| {
        let status: Value = serde_json::from_str(&must_cert(cluster, "status -o json --log error")).expect("JSON");
        status["authorities"]["phase"].as_str().unwrap_or_default().to_owned()
    };
    let issuer = listed(&cluster, "apiserver")["issuer"].clone();
    // After each step the server is killed before it has written anything: the store alone knows.
    for (words, expected) in [
        ("rotate-ca --only-trust", "trusted"),
        ("rotate-ca", "issuing"),
        ("rotate-ca --retire", "steady"),
    ] {
        files(&pki, &kept);
        must_cert(&cluster, words);
        cluster.kill();
        files(&kept, &pki);
        cluster.start_server();
        assert_eq!(phase(&cluster), expected, "{words}");
        works(&cluster);
    }
    let second = listed(&cluster, "apiserver")["issuer"].clone();
    assert_ne!(second, issuer);

    // The command is killed while it waits: another goes on.
    let (good, _) = cert(&cluster, "rotate-ca --only-trust");
    assert!(good);
    cluster.kill();
    // Half of a step in the directory is no step.
    std::fs::remove_file(pki.join("ca-next.crt")).expect("remove");
    cluster.start_server();
    assert_eq!(phase(&cluster), "trusted");
    assert!(must_cert(&cluster, "rotate-ca --cancel").contains("forgotten"));
    assert_eq!(phase(&cluster), "steady");

    // On a stopped server.
    assert!(cluster.stop());
    let said = must_cert(&cluster, "rotate-ca");
    assert!(
        said.contains("does not run") && said.contains("2. The new one is at work"),
        "{said}"
    );
    let (good, said) = cert(&cluster, "rotate-ca --retire");
    assert!(!good && said.contains("only a running server knows"), "{said}");
    assert!(must_cert(&cluster, "renew front-proxy-client").contains("Renewed: front-proxy-client"));
    cluster.start_server();
    assert_eq!(phase(&cluster), "issuing");
    assert_ne!(listed(&cluster, "apiserver")["issuer"], second);
    works(&cluster);
    cluster.wait("everybody is told", 30, |cluster| cert(cluster, "rotate-ca --retire").0);
    works(&cluster);
}
