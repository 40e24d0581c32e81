//! Two servers on one etcd, and a cluster's state on its way out, in and over: with the real kubectl and kill -9.
//!
//! The servers run without node role on loopback ports, so these tests need no network namespaces.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sampan_e2e::{binary, kubectls};
use sampan_store::testing::EtcdProcess;

struct Server {
    dir: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
    kubectl: PathBuf,
}

impl Server {
    fn start(dir: &Path, ip: &str, arguments: &[&str]) -> Option<Server> {
        let Some(kubectl) = kubectls().into_iter().next() else {
            eprintln!("skipped: kubectl is not installed");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let listen = format!("127.0.0.1:{port}");
        let all = ["--listen", &listen, "--node-ip", ip, "--disable", "node,dns,proxy"];
        let mut server = Server {
            dir: dir.into(),
            arguments: all
                .iter()
                .chain(arguments)
                .map(|&argument| argument.to_owned())
                .collect(),
            child: None,
            kubectl,
        };
        server.run();
        Some(server)
    }

    fn run(&mut self) {
        std::fs::create_dir_all(&self.dir).unwrap();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let child = Command::new(binary())
            .args(["server", "--data-dir"])
            .arg(&self.dir)
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
        self.wait("ready", 60, || self.kubectl("get --raw /readyz").is_ok());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    fn kubectl(&self, words: &str) -> Result<String, String> {
        let mut command = Command::new(&self.kubectl);
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--request-timeout=20s");
        text(command.args(words.split_whitespace()).output().unwrap())
    }

    fn wait(&self, what: &str, seconds: u64, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(
                begun.elapsed() < Duration::from_secs(seconds),
                "not {what} in time; the server says:\n{}",
                std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Creates ConfigMaps until told to stop; the names that were acknowledged.
    fn load(&self, name: &str, stop: &AtomicBool) -> Vec<String> {
        let mut acknowledged = Vec::new();
        for step in 0.. {
            if stop.load(Ordering::Acquire) {
                break;
            }
            let name = format!("{name}-{step}");
            match self.kubectl(&format!("create configmap {name} --from-literal=a=b")) {
                Ok(_) => acknowledged.push(name),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
        acknowledged
    }

    fn has_all(&self, acknowledged: &[String]) {
        let present = self
            .kubectl("get configmaps -o jsonpath={.items[*].metadata.name}")
            .unwrap();
        let present: std::collections::BTreeSet<_> = present.split_whitespace().collect();
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|name| !present.contains(name.as_str()))
            .collect();
        assert!(!acknowledged.is_empty() && lost.is_empty(), "lost {lost:?}");
    }

    fn deploys(&self, name: &str) {
        self.kubectl(&format!("create deployment {name} --image=x --replicas=2"))
            .unwrap();
        self.wait("deployed", 90, || {
            self.kubectl(&format!(
                "get rs -l app={name} -o jsonpath={{.items[*].status.replicas}}"
            ))
            .is_ok_and(|replicas| replicas == "2")
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn text(output: Output) -> Result<String, String> {
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn sampan(arguments: &[&str]) -> Result<String, String> {
    text(Command::new(binary()).args(arguments).output().unwrap())
}

#[test]
fn two_servers_on_one_etcd_survive_the_death_of_either() {
    let Some(etcd) = EtcdProcess::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (one, two, url) = (dir.path().join("one"), dir.path().join("two"), etcd.url());
    let Some(mut first) = Server::start(&one, "192.0.2.31", &["--etcd-servers", &url]) else {
        return;
    };
    let alone = Command::new(binary())
        .args(["server", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&two)
        .args(["--etcd-servers", &url])
        .output()
        .unwrap();
    let error = text(alone).expect_err("joined without the token");
    assert!(error.contains("--cluster-token-file"), "{error}");
    let token = one.join("cluster-token").display().to_string();
    let joined = ["--etcd-servers", &url, "--cluster-token-file", &token];
    let mut second = Server::start(&two, "192.0.2.32", &joined).unwrap();
    let addresses = "get endpoints kubernetes -o jsonpath={.subsets[*].addresses[*].ip}";
    first.wait("both listed", 60, || {
        first
            .kubectl(addresses)
            .is_ok_and(|ips| ips.contains("192.0.2.31") && ips.contains("192.0.2.32"))
    });
    // Of two that ask for the same address at the same time one gets it.
    for number in 1..5 {
        let create = |server: &Server, name: &str| {
            server.kubectl(&format!(
                "create service clusterip {name}-{number} --clusterip=10.96.9.{number} --tcp=80"
            ))
        };
        let (a, b) = std::thread::scope(|scope| {
            let a = scope.spawn(|| create(&first, "a"));
            let b = create(&second, "b");
            (a.join().unwrap(), b)
        });
        assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1, "{a:?} {b:?}");
        assert!(
            a.err()
                .or(b.err())
                .unwrap()
                .contains("provided IP is already allocated")
        );
    }
    for round in 0..2 {
        let (dying, living) = if round == 0 {
            (&mut first, &mut second)
        } else {
            (&mut second, &mut first)
        };
        let stop = AtomicBool::new(false);
        let pid = dying.child.as_ref().unwrap().id();
        let acknowledged = std::thread::scope(|scope| {
            let loads: Vec<_> = [&*dying, &*living]
                .into_iter()
                .enumerate()
                .map(|(number, server)| {
                    let (name, stop) = (format!("w-{round}-{number}"), &stop);
                    scope.spawn(move || server.load(&name, stop))
                })
                .collect();
            std::thread::sleep(Duration::from_secs(3));
            assert!(
                Command::new("kill")
                    .args(["-9", &pid.to_string()])
                    .status()
                    .unwrap()
                    .success()
            );
            living.deploys(&format!("after-{round}"));
            stop.store(true, Ordering::Release);
            loads
                .into_iter()
                .flat_map(|load| load.join().unwrap())
                .collect::<Vec<_>>()
        });
        living.has_all(&acknowledged);
        let dead = if round == 0 { "192.0.2.31" } else { "192.0.2.32" };
        living.wait("rid of the dead server", 60, || {
            living.kubectl(addresses).is_ok_and(|ips| !ips.contains(dead))
        });
        dying.kill();
        dying.run();
        dying.has_all(&acknowledged);
    }
}

#[test]
fn state_goes_out_in_and_over_to_etcd_while_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let Some(mut first) = Server::start(&one, "192.0.2.33", &[]) else {
        return;
    };
    first.kubectl("create configmap kept --from-literal=a=b").unwrap();
    let file = dir.path().join("backup").display().to_string();
    let kubeconfig = first.kubeconfig().display().to_string();
    sampan(&["backup", &file, "--kubeconfig", &kubeconfig]).unwrap();
    first.kubectl("create configmap later --from-literal=a=b").unwrap();
    let version = |server: &Server, name: &str| -> u64 {
        let words = format!("get configmap {name} -o jsonpath={{.metadata.resourceVersion}}");
        server.kubectl(&words).unwrap().parse().unwrap()
    };
    let newest = version(&first, "later");

    let target = two.display().to_string();
    sampan(&["restore", &file, "--data-dir", &target]).unwrap();
    let error = sampan(&["restore", &file, "--data-dir", &target]).unwrap_err();
    assert!(error.contains("--force"), "{error}");
    let token = one.join("cluster-token").display().to_string();
    let second = Server::start(&two, "192.0.2.34", &["--cluster-token-file", &token]).unwrap();
    second.kubectl("get configmap kept").unwrap();
    assert!(second.kubectl("get configmap later").is_err());
    second.kubectl("create configmap new --from-literal=a=b").unwrap();
    assert!(version(&second, "new") > newest);
    drop(second);

    let Some(etcd) = EtcdProcess::start() else { return };
    let (url, stop) = (etcd.url(), AtomicBool::new(false));
    let acknowledged = std::thread::scope(|scope| {
        let load = scope.spawn(|| first.load("moving", &stop));
        std::thread::sleep(Duration::from_secs(2));
        let said = sampan(&["migrate", "--etcd-servers", &url, "--kubeconfig", &kubeconfig]);
        std::thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Release);
        assert!(said.as_ref().is_ok_and(|said| said.contains("moved ")), "{said:?}");
        load.join().unwrap()
    });
    first.has_all(&acknowledged);
    first.kubectl("create configmap beyond --from-literal=a=b").unwrap();
    assert!(version(&first, "beyond") > newest);
    first.deploys("moved");
    first.kill();
    let refused = Command::new(binary())
        .args(["server", "--data-dir"])
        .arg(&one)
        .args(["--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let error = text(refused).expect_err("the old store was served again");
    assert!(error.contains("--etcd-servers"), "{error}");
    first.arguments.extend(["--etcd-servers".to_owned(), url]);
    first.run();
    first.has_all(&acknowledged);
}

/// A list of Services as kubectl takes it.
fn services(name: &str, count: usize) -> String {
    let items: Vec<_> = (0..count)
        .map(|number| {
            serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("{name}-{number}")},
                "spec": {"type": "NodePort", "ports": [{"port": 80}]}})
        })
        .collect();
    serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

#[test]
fn two_servers_never_give_out_the_same_and_trust_each_others_tokens() {
    let Some(etcd) = EtcdProcess::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (one, two, url) = (dir.path().join("one"), dir.path().join("two"), etcd.url());
    let small = ["--node-port-range", "30000-30999", "--service-cidr", "10.96.0.0/22"];
    let first = ["--etcd-servers", &url]
        .iter()
        .chain(&small)
        .copied()
        .collect::<Vec<_>>();
    let Some(first) = Server::start(&one, "192.0.2.35", &first) else {
        return;
    };
    let token_file = one.join("cluster-token").display().to_string();
    let joined: Vec<_> = ["--etcd-servers", &url, "--cluster-token-file", &token_file]
        .iter()
        .chain(&small)
        .copied()
        .collect();
    let second = Server::start(&two, "192.0.2.36", &joined).unwrap();
    let create = |server: &Server, name: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, services(name, 250)).unwrap();
        server.kubectl(&format!("create -f {}", file.display())).unwrap();
    };
    std::thread::scope(|scope| {
        for (name, server) in [("a", &first), ("b", &second)] {
            scope.spawn(move || create(server, name));
        }
    });
    let distinct = |path: &str| -> usize {
        let words = format!("get services -o jsonpath={{.items[*].spec.{path}}}");
        let (a, b) = (first.kubectl(&words).unwrap(), second.kubectl(&words).unwrap());
        assert_eq!(a, b, "both tell the same");
        a.split_whitespace().collect::<std::collections::BTreeSet<_>>().len()
    };
    // The 500 and `kubernetes`, which has no node port.
    assert_eq!((distinct("clusterIP"), distinct("ports[*].nodePort")), (501, 500));
    let addresses = first
        .kubectl("get ipaddresses -o jsonpath={.items[*].metadata.name}")
        .unwrap();
    assert_eq!(addresses.split_whitespace().count(), 501);

    let review = dir.path().join("review");
    std::fs::write(
        &review,
        r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#,
    )
    .unwrap();
    for (issuer, other) in [(&first, &second), (&second, &first)] {
        let token = issuer.kubectl("create token default").unwrap();
        let config = std::fs::read_to_string(other.kubeconfig()).unwrap();
        let address = config
            .lines()
            .find_map(|line| line.trim().strip_prefix("server: "))
            .unwrap();
        let who = Command::new(&other.kubectl)
            .args(["--kubeconfig", "/dev/null", "--server", address.trim_matches('"')])
            .arg("--certificate-authority")
            .arg(other.dir.join("pki/ca.crt"))
            .args(["--token", token.trim(), "create", "--raw"])
            .args(["/apis/authentication.k8s.io/v1/selfsubjectreviews", "-f"])
            .arg(&review)
            .output()
            .unwrap();
        let who = text(who).unwrap();
        assert!(who.contains(r#""system:serviceaccount:default:default""#), "{who}");
    }

    // One works for both; when it dies the other takes over.
    let holder = |server: &Server| {
        server.kubectl("get lease -n kube-system kube-controller-manager -o jsonpath={.spec.holderIdentity}")
    };
    first.deploys("before");
    let before = holder(&first).unwrap();
    assert_eq!(before, holder(&second).unwrap());
    let (mut first, mut second) = (first, second);
    first.kill();
    std::thread::sleep(Duration::from_secs(1));
    if holder(&second).unwrap() != before {
        // It had been the other way round.
        eprintln!("the lease moved at once");
    }
    second.deploys("after-the-first");
    first.run();
    second.kill();
    first.deploys("after-the-second");
}

#[test]
fn a_restore_and_a_move_cut_short_can_be_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let one = dir.path().join("one");
    let Some(mut first) = Server::start(&one, "192.0.2.37", &[]) else {
        return;
    };
    let file = dir.path().join("list").display().to_string();
    let items: Vec<_> = (0..1500)
        .map(|number| {
            serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{number}")},
                "data": {"a": "x".repeat(2_000)}})
        })
        .collect();
    std::fs::write(
        &file,
        serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string(),
    )
    .unwrap();
    first.kubectl(&format!("create -f {file}")).unwrap();
    let count = |server: &Server| {
        let names = server.kubectl("get configmaps -o name").unwrap();
        names.lines().filter(|name| name.starts_with("configmap/c")).count()
    };
    let kubeconfig = first.kubeconfig().display().to_string();
    let backup = dir.path().join("backup").display().to_string();
    let cut = |arguments: &[&str], after: Duration| {
        let mut child = Command::new(binary())
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(after);
        let _ended_already = child.kill();
        child.wait().unwrap();
    };
    for millis in [20, 60, 120] {
        cut(
            &["backup", &backup, "--kubeconfig", &kubeconfig],
            Duration::from_millis(millis),
        );
    }
    sampan(&["backup", &backup, "--kubeconfig", &kubeconfig]).unwrap();

    // A file that is no backup, half a backup, none.
    for (name, content) in [
        ("junk", b"junk".to_vec()),
        ("half", {
            let whole = std::fs::read(&backup).unwrap();
            whole[..whole.len() / 2].to_vec()
        }),
    ] {
        let path = dir.path().join(name).display().to_string();
        std::fs::write(&path, content).unwrap();
        let into = dir.path().join("nowhere").display().to_string();
        let error = sampan(&["restore", &path, "--data-dir", &into]).unwrap_err();
        assert!(error.contains(&path), "{error}");
        assert!(!Path::new(&into).join("store/store.redb").exists());
    }
    let error = sampan(&["restore", &backup, "--data-dir", &one.display().to_string(), "--force"]).unwrap_err();
    assert!(error.contains("in use by another process"), "{error}");

    // Killed wherever: a store is either not there, or the old one, or the new one.
    let two = dir.path().join("two").display().to_string();
    for millis in [5, 30, 60, 90, 120, 200, 400] {
        cut(
            &["restore", &backup, "--data-dir", &two, "--force"],
            Duration::from_millis(millis),
        );
    }
    sampan(&["restore", &backup, "--data-dir", &two, "--force"]).unwrap();
    let token = one.join("cluster-token").display().to_string();
    let mut second = Server::start(Path::new(&two), "192.0.2.38", &["--cluster-token-file", &token]).unwrap();
    assert_eq!(count(&second), 1500);
    second.kill();

    let Some(etcd) = EtcdProcess::start() else { return };
    let url = etcd.url();
    cut(
        &["restore", &backup, "--etcd-servers", &url],
        Duration::from_millis(150),
    );
    let mut moved = false;
    for millis in [30, 100, 200, 300] {
        // The server dies while it moves.
        let migrate = Command::new(binary())
            .args(["migrate", "--etcd-servers", &url, "--kubeconfig", &kubeconfig])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        std::thread::sleep(Duration::from_millis(millis));
        first.kill();
        moved = migrate.unwrap().wait().unwrap().success();
        if moved {
            break;
        }
        first.run();
        assert_eq!(count(&first), 1500);
    }
    if !moved {
        // With --force for the moment between etcd's being whole and the old store's mark.
        let said = sampan(&[
            "migrate",
            "--etcd-servers",
            &url,
            "--kubeconfig",
            &kubeconfig,
            "--force",
        ])
        .unwrap();
        assert!(said.contains("moved "), "{said}");
        first.kill();
    }
    first.arguments.extend(["--etcd-servers".to_owned(), url]);
    first.run();
    assert_eq!(count(&first), 1500);
    first.deploys("moved");
}
