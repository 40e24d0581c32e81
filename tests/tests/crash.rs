//! Bad days: kill -9 in a loop, under load, with containers running; a second server; a port in use.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sampan_e2e::{Cluster, binary, output, ready};
use serde_json::{Value, json};

/// Creates ConfigMaps one after another until told to stop; returns the names that were acknowledged.
fn writer(cluster: &Cluster, number: usize, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<BTreeSet<String>> {
    let mut command = cluster.lab.on_node("curl");
    let dir = cluster.dir.path().to_owned();
    let kubeconfig = std::fs::read_to_string(cluster.kubeconfig()).expect("a kubeconfig");
    let material = |key: &str, file: &str| {
        let data = kubeconfig
            .lines()
            .find_map(|line| line.trim().strip_prefix(&format!("{key}: ")))
            .expect(key)
            .to_owned();
        let path = dir.join(format!("{number}-{file}"));
        let decoded = Command::new("sh")
            .arg("-c")
            .arg(format!("echo {data} | base64 -d"))
            .output()
            .expect("base64")
            .stdout;
        std::fs::write(&path, decoded).expect("write");
        path
    };
    let (ca, certificate, key) = (
        material("certificate-authority-data", "ca.pem"),
        material("client-certificate-data", "cert.pem"),
        material("client-key-data", "key.pem"),
    );
    command
        .args(["-sS", "--max-time", "3", "--cacert"])
        .arg(ca)
        .arg("--cert")
        .arg(certificate)
        .arg("--key")
        .arg(key);
    command.args([
        "-H",
        "Content-Type: application/json",
        "-w",
        "\n%{http_code}",
        "-X",
        "POST",
    ]);
    command
        .arg("https://127.0.0.1:6443/api/v1/namespaces/default/configmaps")
        .args(["-d", "@-"]);
    std::thread::spawn(move || {
        let mut acknowledged = BTreeSet::new();
        for step in 0.. {
            if stop.load(Ordering::Acquire) {
                break;
            }
            let name = format!("w{number}-{step}");
            let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v".repeat(500)}});
            let mut child = command
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null())
                .spawn()
                .expect("curl");
            std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), body.to_string().as_bytes())
                .expect("a body");
            let answer = child.wait_with_output().expect("curl ends");
            if String::from_utf8_lossy(&answer.stdout).ends_with("\n201") {
                acknowledged.insert(name);
            }
        }
        acknowledged
    })
}

#[test]
fn kill_9_in_a_loop_loses_nothing_and_containers_go_on() {
    if !ready("kill_9_in_a_loop_loses_nothing_and_containers_go_on") {
        return;
    }
    let mut cluster = Cluster::start("crash");
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: steady}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sh, -c, 'i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.2; done']
",
    );
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/steady");
    let describe = |cluster: &Cluster| -> (Value, Value) {
        let pod = cluster.get("pod steady");
        let status = &pod["status"]["containerStatuses"][0];
        (status["containerID"].clone(), status["restartCount"].clone())
    };
    let before = describe(&cluster);

    let mut acknowledged = BTreeSet::new();
    for round in 0..6 {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..4)
            .map(|writer_number| writer(&cluster, round * 10 + writer_number, Arc::clone(&stop)))
            .collect();
        std::thread::sleep(Duration::from_millis(300 + 170 * round as u64));
        cluster.kill();
        stop.store(true, Ordering::Release);
        for writer in writers {
            acknowledged.extend(writer.join().expect("a writer"));
        }
        cluster.start_server();
        let listed = cluster.get("configmaps");
        let present: BTreeSet<String> = listed["items"]
            .as_array()
            .expect("items")
            .iter()
            .filter_map(|item| Some(item["metadata"]["name"].as_str()?.to_owned()))
            .collect();
        let lost: Vec<_> = acknowledged.difference(&present).collect();
        assert!(lost.is_empty(), "round {round}: acknowledged and gone: {lost:?}");
    }
    assert!(
        acknowledged.len() > 20,
        "only {} writes were acknowledged",
        acknowledged.len()
    );

    cluster.wait("the node to be Ready again", 60, |cluster| {
        cluster.kubectl("get nodes -o jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}") == "True"
    });
    assert_eq!(describe(&cluster), before, "the same container, not restarted");
    let logs = cluster.kubectl("logs steady");
    let ticks: Vec<u32> = logs
        .lines()
        .filter_map(|line| line.strip_prefix("tick ")?.parse().ok())
        .collect();
    let gapless = ticks.iter().enumerate().all(|(index, tick)| *tick == index as u32 + 1);
    assert!(
        gapless && ticks.len() > 20,
        "the log has no gap over the deaths of the server"
    );
    assert_eq!(
        cluster.kubectl("exec steady -- echo alive").trim(),
        "alive",
        "an adopted container can be entered"
    );
}

#[test]
fn an_exit_while_the_server_is_dead_is_learned() {
    if !ready("an_exit_while_the_server_is_dead_is_learned") {
        return;
    }
    let mut cluster = Cluster::start("exit");
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: short}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: 'localhost/sampan/busybox:1.35', command: [sh, -c, 'sleep 3; echo bye; exit 7']}
",
    );
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/short");
    cluster.kill();
    std::thread::sleep(Duration::from_secs(4));
    cluster.start_server();
    cluster.wait("the Pod to have failed", 30, |cluster| {
        cluster.kubectl("get pod short -o jsonpath={.status.phase}") == "Failed"
    });
    let pod = cluster.get("pod short");
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"],
        7
    );
    assert_eq!(cluster.kubectl("logs short").trim(), "bye");
}

#[test]
fn mistakes_at_start_are_explained() {
    if !ready("mistakes_at_start_are_explained") {
        return;
    }
    let cluster = Cluster::start_with("twice", &["--disable=dns"]);
    let second = |arguments: &[&str]| {
        let output = output(cluster.lab.on_node(binary()).arg("server").args(arguments));
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let dir = cluster.dir.path().to_string_lossy().into_owned();
    let text = second(&["--data-dir", &dir]);
    assert!(text.contains("cannot listen on") && text.contains("--listen"), "{text}");
    let text = second(&["--data-dir", &dir, "--listen", "127.0.0.1:7443"]);
    assert!(
        text.contains("in use by another process") && text.contains(&dir),
        "{text}"
    );
    let text = second(&["--listen", "nonsense"]);
    assert!(text.contains("--listen") && text.contains("0.0.0.0:6443"), "{text}");
    let text = second(&["--config", "/nowhere.yaml"]);
    assert!(text.contains("/nowhere.yaml"), "{text}");
}
