//! The scheduler and the controllers as processes of their own; configuration by file and environment; help.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use sampan_e2e::{Cluster, binary, images, must, output, ready};

/// A process of the test, ended with it.
struct Role(Child);

impl Role {
    fn start(cluster: &Cluster, role: &str, log: &str, arguments: &[&str]) -> Role {
        let file = File::create(cluster.dir.path().join(log)).expect("a log file");
        let child = cluster
            .lab
            .on_node(binary())
            .arg(role)
            .arg("--kubeconfig")
            .arg(cluster.kubeconfig())
            .args(["--secure-port", "0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file handle"))
            .stderr(file)
            .spawn()
            .expect("the role starts");
        Role(child)
    }

    fn running(&mut self) -> bool {
        self.0.try_wait().expect("wait").is_none()
    }

    fn kill(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }

    /// SIGTERM; returns whether it ended well.
    fn stop(&mut self) -> bool {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("SIGTERM");
        self.0.wait().expect("wait").success()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        if self.running() {
            self.kill();
        }
    }
}

const APP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec:
  replicas: 2
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: 'localhost/sampan/busybox:1.35', command: [sleep, '3600']}
";

#[test]
fn scheduler_and_controllers_work_alone() {
    if !ready("scheduler_and_controllers_work_alone") {
        return;
    }
    let mut cluster = Cluster::prepare("roles", &["--disable=scheduler,controllers,dns"]);
    must(
        Command::new(binary())
            .args(["image", "--data-dir"])
            .arg(cluster.dir.path())
            .arg("import")
            .arg(images()),
    );
    cluster.start_server();
    cluster.apply(APP);
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(cluster.kubectl("get replicasets -o name"), "", "nobody controls yet");

    let mut controllers = Role::start(&cluster, "controllers", "controllers.log", &[]);
    cluster.wait("Pods", 30, |cluster| {
        cluster.kubectl("get pods -o name").lines().count() == 2
    });
    std::thread::sleep(std::time::Duration::from_secs(1));
    let nodes = cluster.kubectl("get pods -o jsonpath={.items[*].spec.nodeName}");
    assert_eq!(nodes, "", "nobody schedules yet");

    let mut first = Role::start(&cluster, "scheduler", "first.log", &["--leader-elect"]);
    cluster.kubectl("rollout status deployment/app --timeout=60s");
    let holder = |cluster: &Cluster| {
        let leases = cluster.get("leases -n kube-system");
        leases["items"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|lease| {
                lease["metadata"]["name"]
                    .as_str()
                    .is_some_and(|name| name.contains("scheduler"))
            })
            .and_then(|lease| lease["spec"]["holderIdentity"].as_str().map(str::to_owned))
            .unwrap_or_default()
    };
    let leader = holder(&cluster);
    assert!(
        !leader.is_empty(),
        "the first leads: {}",
        cluster.kubectl("get leases -A")
    );
    let mut second = Role::start(&cluster, "scheduler", "second.log", &["--leader-elect"]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(second.running(), "the second waits");
    assert_eq!(holder(&cluster), leader, "the first still leads");
    // Asked to stop, the first gives the lease back and the second takes over.
    assert!(first.stop(), "the first ends well");
    cluster.wait("another leader", 40, |cluster| {
        let now = holder(cluster);
        !now.is_empty() && now != leader
    });
    cluster.kubectl("scale deployment/app --replicas=3");
    cluster.kubectl("rollout status deployment/app --timeout=60s");

    // A controller that dies is replaced by the next; a server that is gone for a while is waited for.
    controllers.kill();
    cluster.kubectl("scale deployment/app --replicas=1");
    let mut controllers = Role::start(&cluster, "controllers", "controllers2.log", &["--leader-elect"]);
    cluster.wait("one Pod", 60, |cluster| {
        cluster.kubectl("get pods -o name").lines().count() == 1
    });
    cluster.kill();
    std::thread::sleep(std::time::Duration::from_secs(2));
    cluster.start_server();
    cluster.kubectl("scale deployment/app --replicas=2");
    cluster.wait("two ready Pods", 60, |cluster| {
        cluster.kubectl("get deployment app -o jsonpath={.status.readyReplicas}") == "2"
    });
    assert!(
        second.running() && controllers.running(),
        "the roles outlive the server's death"
    );
    assert!(controllers.stop() && second.stop(), "the roles end well when asked");
}

#[test]
fn a_file_the_environment_and_flags_configure() {
    if !ready("a_file_the_environment_and_flags_configure") {
        return;
    }
    let mut cluster = Cluster::prepare("config", &[]);
    let file = cluster.dir.path().join("config.yaml");
    fs::write(
        &file,
        "serviceCidr: 10.77.0.0/16\nclusterDomain: from.file\nnodePortRange: 31000-31010\ndisable: [node, dns, proxy]\ntlsSan: [api.example.com]\n",
    )
    .expect("write");
    // The environment is given through `env`, so that it reaches the server and nobody else.
    let start = |cluster: &Cluster, variables: &[&str], arguments: &[&str]| {
        output(
            cluster
                .lab
                .on_node("env")
                .args(variables)
                .arg("timeout")
                .arg("10")
                .arg(binary())
                .arg("server")
                .args(arguments)
                .arg("--data-dir")
                .arg(cluster.dir.path()),
        )
    };
    let bad = |cluster: &Cluster, text: &str, expected: &[&str]| {
        let path = cluster.dir.path().join("bad.yaml");
        fs::write(&path, text).expect("write");
        let output = start(cluster, &[], &["--config", &path.to_string_lossy()]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}: {stderr}");
        for part in expected {
            assert!(stderr.contains(part), "{text}: {part} is not in {stderr}");
        }
    };
    bad(&cluster, "listne: x\n", &["bad.yaml", "listne", "listen"]);
    bad(&cluster, "serviceCidr: 7\n", &["bad.yaml"]);
    bad(&cluster, "serviceCidr: nonsense\n", &["bad.yaml", "nonsense"]);
    bad(&cluster, "a: [1\n", &["bad.yaml"]);
    let output = start(&cluster, &["SAMPAN_DISABLE=nonsense"], &[]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && stderr.contains("nonsense") && stderr.contains("scheduler"),
        "{stderr}"
    );

    let path = file.to_string_lossy().into_owned();
    cluster.set_arguments(&["--config", &path, "--node-port-range", "32000-32005"]);
    cluster.start_server();
    let service = cluster.get("service kubernetes");
    assert_eq!(service["spec"]["clusterIP"], "10.77.0.1", "the file is respected");
    cluster.kubectl("create service nodeport np --tcp=80");
    let service = cluster.get("service np");
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap_or_default();
    assert!((32000..=32005).contains(&port), "a flag beats the file: {port}");
    let certificate = must(cluster.lab.on_node("sh").args([
        "-c",
        "openssl s_client -connect 127.0.0.1:6443 </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName",
    ]));
    assert!(
        certificate.contains("api.example.com") && certificate.contains("10.77.0.1"),
        "{certificate}"
    );
}

#[test]
fn help_is_help() {
    let help = |words: &str| {
        let output = sampan_e2e::output(Command::new(binary()).args(words.split(' ')));
        assert!(output.status.success(), "{words}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    if !binary().is_file() {
        eprintln!("skipped: help_is_help: the binary is not built (cargo build -p sampan)");
        return;
    }
    for (words, parts) in [
        (
            "--help",
            &["server", "scheduler", "controllers", "image", "KUBECONFIG", "--version"][..],
        ),
        (
            "server --help",
            &[
                "--data-dir",
                "--listen",
                "--disable",
                "--cleanup",
                "--config",
                "SAMPAN_LISTEN",
                "--on-exit",
            ],
        ),
        ("scheduler --help", &["--kubeconfig", "--leader-elect"]),
        (
            "controllers --help",
            &["--kubeconfig", "--leader-elect", "--controllers"],
        ),
        ("image --help", &["import", "list", "pull", "remove"]),
        (
            "image pull --help",
            &["--credentials", "--insecure-registries", "--ca-file"],
        ),
    ] {
        let text = help(words);
        for part in parts {
            assert!(text.contains(part), "{words}: {part} is missing in\n{text}");
        }
        assert!(
            text.lines().all(|line| line.chars().count() <= 120),
            "{words}: a line is too long"
        );
    }
    let wrong = sampan_e2e::output(Command::new(binary()).args(["server", "--liste", "x"]));
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(2) && text.contains("--listen"), "{text}");
    for role in ["scheduler", "controllers"] {
        let wrong = sampan_e2e::output(Command::new(binary()).args([role, "--kubeconfig", "/nowhere"]));
        let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert!(!wrong.status.success() && text.contains("/nowhere"), "{role}: {text}");
    }
}
