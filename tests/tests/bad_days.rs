//! Bad days of a control plane, with nodes that are not there: a disk that stalls, kill -9 in the middle of rollouts, edits
//! without end, nodes that join a crowd of waiting Pods.
//!
//! What is asked each time: nothing lost, nothing doubled, no more work than there is, and recovery by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sampan_e2e::fleet::Fleet;
use sampan_e2e::http::Http;
use sampan_e2e::{Cluster, must, output, ready};
use serde_json::json;

const SERVER: &[&str] = &["--disable=node,proxy,dns"];

fn deployment(name: &str, replicas: usize, step: usize) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {{name: main, image: 'localhost/none:1', env: [{{name: STEP, value: '{step}'}}], resources: {{requests: {{cpu: 10m}}}}}}
"
    )
}

fn job(name: &str, completions: usize, parallelism: usize) -> String {
    format!(
        "
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  completions: {completions}
  parallelism: {parallelism}
  template:
    metadata: {{labels: {{sampan.test/ends: Succeeded}}}}
    spec:
      restartPolicy: Never
      containers:
      - {{name: main, image: 'localhost/none:1', resources: {{requests: {{cpu: 10m}}}}}}
"
    )
}

/// Seconds of CPU the server has used.
fn cpu(cluster: &Cluster) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", cluster.pid())).expect("the process");
    let after = stat.rsplit_once(')').expect("a name").1;
    let ticks = |at: usize| {
        after
            .split_whitespace()
            .nth(at)
            .and_then(|ticks| ticks.parse::<f64>().ok())
    };
    (ticks(11).expect("user time") + ticks(12).expect("system time")) / 100.0
}

/// The ReplicaSet that a Deployment's current template belongs to.
fn current(cluster: &Cluster, name: &str) -> String {
    let sets = cluster.get(&format!("replicasets -l app={name}"));
    let mut sets: Vec<(u64, String)> = sets["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|set| {
            let revision = &set["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
            let revision = revision.as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
            (revision, set["metadata"]["name"].as_str().expect("a name").to_owned())
        })
        .collect();
    sets.sort();
    sets.pop().expect("a ReplicaSet").1
}

/// A small file system of its own on a loop device, which can be frozen.
struct Disk {
    at: PathBuf,
    frozen: bool,
}

impl Disk {
    /// `None`, and why, where the machine has no loop devices.
    fn mount(image: &Path, at: &Path) -> Option<Disk> {
        let file = std::fs::File::create(image).expect("a file");
        file.set_len(256 << 20).expect("its size");
        must(Command::new("mkfs.ext4").arg("-q").arg(image));
        std::fs::create_dir_all(at).expect("a directory");
        let mounted = output(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at));
        if !mounted.status.success() {
            eprintln!(
                "skipped: a disk that stalls: {}",
                String::from_utf8_lossy(&mounted.stderr)
            );
            return None;
        }
        Some(Disk {
            at: at.to_owned(),
            frozen: false,
        })
    }
    fn freeze(&mut self) {
        must(Command::new("fsfreeze").arg("-f").arg(&self.at));
        self.frozen = true;
    }
    fn thaw(&mut self) {
        must(Command::new("fsfreeze").arg("-u").arg(&self.at));
        self.frozen = false;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.frozen {
            self.thaw();
        }
        let gone = Command::new("umount").arg("-l").arg(&self.at).status();
        if !gone.is_ok_and(|status| status.success()) {
            eprintln!("could not unmount {}", self.at.display());
        }
    }
}

#[test]
fn a_disk_that_stalls_for_ten_seconds() {
    if !ready("a_disk_that_stalls_for_ten_seconds") {
        return;
    }
    let image = tempfile::NamedTempFile::new().expect("a file");
    let mut cluster = Cluster::prepare("stall", SERVER);
    let Some(mut disk) = Disk::mount(image.path(), &cluster.dir.path().join("store")) else {
        return;
    };
    cluster.start_server();
    let fleet = Fleet::new(&cluster);
    fleet.join("n", 3, 8);
    cluster.apply(&(deployment("web", 30, 1) + "---" + &job("work", 200, 10)));
    cluster.wait("the job to be under way", 60, |_| fleet.ever_of("Job/work") > 30);

    let before = cpu(&cluster);
    disk.freeze();
    let frozen = Instant::now();
    // What is known is told; what is written is not acknowledged before it is on the disk.
    let asked = Instant::now();
    cluster.kubectl("get pods");
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "a read waited {:?}",
        asked.elapsed()
    );
    let refused = cluster.try_kubectl("create configmap early --request-timeout=3s");
    assert!(refused.is_err(), "acknowledged on a disk that stalls: {refused:?}");
    std::thread::sleep(Duration::from_secs(10).saturating_sub(frozen.elapsed()));
    let spent = cpu(&cluster) - before;
    disk.thaw();
    eprintln!("  {spent:.2} s of CPU while the disk stalled");
    assert!(spent < 5.0, "{spent} s of CPU while nothing could be done");

    cluster.kubectl("create configmap late");
    cluster.wait("the job to end", 120, |cluster| {
        cluster.kubectl("get job work -o jsonpath={.status.succeeded}") == "200"
    });
    assert_eq!(fleet.ever_of("Job/work"), 200, "Pods of the Job");
    cluster.kubectl("rollout status deployment/web --timeout=60s");
    let set = current(&cluster, "web");
    assert_eq!(
        fleet.ever_of(&format!("ReplicaSet/{set}")),
        30,
        "Pods of the Deployment"
    );
    drop(fleet);
    cluster.kill();
}

#[test]
fn killed_in_the_middle_of_rollouts() {
    if !ready("killed_in_the_middle_of_rollouts") {
        return;
    }
    let mut cluster = Cluster::prepare("killed", SERVER);
    cluster.start_server();
    let fleet = Fleet::new(&cluster);
    fleet.join("n", 4, 8);
    cluster.apply(&(deployment("web", 40, 1) + "---" + &job("work", 150, 10)));
    // The moments differ from run to run with the machine's speed; what must hold does not.
    for round in 0..5u64 {
        std::thread::sleep(Duration::from_millis(150 + 130 * round));
        cluster.kill();
        cluster.start_server();
        if round == 2 {
            cluster.apply(&deployment("web", 40, 2));
        }
    }
    cluster.wait("the job to end", 120, |cluster| {
        cluster.kubectl("get job work -o jsonpath={.status.succeeded}") == "150"
    });
    assert_eq!(fleet.ever_of("Job/work"), 150, "Pods of the Job");
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    let sets = cluster.get("replicasets -l app=web");
    for set in sets["items"].as_array().expect("items") {
        let name = set["metadata"]["name"].as_str().expect("a name");
        let ever = fleet.ever_of(&format!("ReplicaSet/{name}"));
        assert!(ever <= 40, "{name} had {ever} Pods");
    }
    let pods = cluster.get("pods -l app=web");
    assert_eq!(pods["items"].as_array().map(Vec::len), Some(40));
}

#[test]
fn a_deployment_edited_without_end() {
    if !ready("a_deployment_edited_without_end") {
        return;
    }
    let mut cluster = Cluster::prepare("edited", SERVER);
    cluster.start_server();
    let fleet = Fleet::new(&cluster);
    fleet.join("n", 4, 8);
    cluster.apply(&deployment("web", 10, 0));
    cluster.kubectl("rollout status deployment/web --timeout=60s");
    let (start, before) = (Instant::now(), cpu(&cluster));
    let edits = 125;
    let http = Http::new(&cluster);
    for step in 1..=edits {
        let path = "/apis/apps/v1/namespaces/default/deployments/web";
        let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "env": [{"name": "STEP", "value": format!("e{step}")}]}]}}}});
        let typed = ["Content-Type: application/strategic-merge-patch+json"];
        let answer = http.send("PATCH", path, &typed, patch.to_string().as_bytes());
        assert_eq!(answer.code, 200, "{}", answer.body);
        // 500 a minute.
        std::thread::sleep((Duration::from_millis(120) * step).saturating_sub(start.elapsed()));
    }
    let spent = cpu(&cluster) - before;
    eprintln!("  {edits} edits in {:?}: {spent:.2} s of CPU", start.elapsed());
    cluster.kubectl("rollout status deployment/web --timeout=60s");
    cluster.wait("old revisions to go", 30, |cluster| {
        let sets = cluster.get("replicasets -l app=web");
        sets["items"].as_array().is_some_and(|sets| sets.len() <= 11)
    });
    let newest = current(&cluster, "web");
    let pods = cluster.get("pods -l app=web");
    let pods = pods["items"].as_array().expect("items");
    assert_eq!(pods.len(), 10);
    for pod in pods {
        assert_eq!(pod["metadata"]["ownerReferences"][0]["name"], newest.as_str());
    }
}

/// What makes Pods be driven away at once.
const IMPATIENT: &str = "terminationGracePeriodSeconds: 0
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 0}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 0}";

/// The NoExecute taints of all nodes.
fn evicting(cluster: &Cluster) -> Vec<String> {
    let taints = cluster.kubectl(r#"get nodes -o jsonpath={.items[*].spec.taints[?(@.effect=="NoExecute")].key}"#);
    taints.split_whitespace().map(str::to_owned).collect()
}

fn nodes_ready(cluster: &Cluster, status: &str) -> usize {
    let all = cluster.kubectl(r#"get nodes -o jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#);
    all.split(' ').filter(|ready| *ready == status).count()
}

/// Uids of Pods that are to stay, by node.
fn staying(cluster: &Cluster) -> BTreeMap<String, BTreeSet<String>> {
    let mut staying: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let pods = cluster.get("pods -l app=web");
    for pod in pods["items"].as_array().expect("items") {
        if pod["metadata"]["deletionTimestamp"].is_null() {
            let text = |pointer: &str| pod.pointer(pointer).and_then(|text| text.as_str()).unwrap_or_default();
            let uid = text("/metadata/uid").to_owned();
            staying
                .entry(text("/spec/nodeName").to_owned())
                .or_default()
                .insert(uid);
        }
    }
    staying
}

#[test]
fn all_nodes_fall_silent_and_then_one() {
    if !ready("all_nodes_fall_silent_and_then_one") {
        return;
    }
    let flags = ["--node-monitor-grace-period=24s", "--node-monitor-period=2s"];
    let mut cluster = Cluster::prepare("silent", &[SERVER, &flags].concat());
    cluster.start_server();
    let fleet = Fleet::new(&cluster);
    fleet.join("n", 6, 8);
    let web = deployment("web", 24, 1).replace("terminationGracePeriodSeconds: 0", IMPATIENT);
    cluster.apply(&web);
    cluster.kubectl("rollout status deployment/web --timeout=60s");
    let before = staying(&cluster);

    fleet.silence(&["n-0", "n-1", "n-2", "n-3", "n-4", "n-5"]);
    cluster.wait("all nodes to count as gone", 90, |cluster| {
        assert_eq!(evicting(cluster), [""; 0], "nobody is driven away");
        nodes_ready(cluster, "Unknown") == 6
    });
    let spent = cpu(&cluster);
    std::thread::sleep(Duration::from_secs(10));
    let spent = cpu(&cluster) - spent;
    eprintln!("  {spent:.2} s of CPU in ten seconds without any node");
    assert!(spent < 2.0, "{spent} s of CPU while nothing can be done");
    assert_eq!(evicting(&cluster), [""; 0]);
    assert_eq!(staying(&cluster), before, "every Pod is where it was");

    fleet.wake();
    cluster.wait("all nodes to be back", 60, |cluster| nodes_ready(cluster, "True") == 6);
    cluster.kubectl("rollout status deployment/web --timeout=60s");
    assert_eq!(staying(&cluster), before, "every Pod is where it was");

    fleet.silence(&["n-0"]);
    cluster.wait("the Pods of one node to be elsewhere", 120, |cluster| {
        let now = staying(cluster);
        !now.contains_key("n-0") && now.values().map(BTreeSet::len).sum::<usize>() == 24
    });
    let now = staying(&cluster);
    for (node, pods) in &before {
        assert!(node == "n-0" || pods.is_subset(&now[node]), "{node} keeps its own");
    }
    cluster.kubectl("taint node n-0 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute");
    cluster.wait("what is left on it to go", 60, |cluster| {
        let pods = cluster.get("pods --field-selector spec.nodeName=n-0");
        pods["items"].as_array().is_some_and(Vec::is_empty)
    });
    fleet.wake();
    cluster.wait("the node to be back", 60, |cluster| nodes_ready(cluster, "True") == 6);
    cluster.wait("its taints to go", 30, |cluster| {
        evicting(cluster) == ["node.kubernetes.io/out-of-service"]
    });
    assert_eq!(staying(&cluster), now);
}

/// Waits until the server does next to nothing; returns seconds of CPU in the last five.
fn calm(cluster: &mut Cluster, what: &str) -> f64 {
    let mut last = f64::MAX;
    cluster.wait(what, 180, |cluster| {
        let before = cpu(cluster);
        std::thread::sleep(Duration::from_secs(5));
        last = cpu(cluster) - before;
        last < 0.3
    });
    last
}

/// `SAMPAN_CROWD` asks for another number of Pods than two slow cores carry in a minute.
#[test]
fn nodes_join_a_crowd_of_waiting_pods() {
    if !ready("nodes_join_a_crowd_of_waiting_pods") {
        return;
    }
    let nodes = 50;
    let asked = std::env::var("SAMPAN_CROWD")
        .ok()
        .and_then(|text| text.parse::<usize>().ok());
    let pods = asked.unwrap_or(2000).next_multiple_of(nodes);
    let patience = 240 + pods as u64 / 20;
    let mut cluster = Cluster::prepare("crowd", SERVER);
    cluster.start_server();
    let fleet = Fleet::new(&cluster);
    let job = job("crowd", pods, pods).replace("sampan.test/ends: Succeeded", "crowd: 'yes'");
    let (start, before) = (Instant::now(), cpu(&cluster));
    cluster.apply(&job.replace("cpu: 10m", "cpu: '1'"));
    cluster.wait("all Pods to be told why they wait", patience, |_| {
        fleet.count(|pod| pod.told) == pods
    });
    let spent = cpu(&cluster) - before;
    eprintln!("  {pods} Pods told after {:?}: {spent:.2} s of CPU", start.elapsed());
    // The events about them are written for a while yet; then nothing is left to do.
    let held = calm(&mut cluster, "waiting Pods to cost nothing");
    eprintln!("  {pods} Pods held for 5 s: {held:.2} s of CPU");

    let (start, before) = (Instant::now(), cpu(&cluster));
    fleet.join("n", nodes, pods / nodes);
    cluster.wait("all Pods to run", patience, |_| fleet.count(|pod| pod.ready) == pods);
    cluster.wait("the Job to know", 60, |cluster| {
        cluster.kubectl("get job crowd -o jsonpath={.status.active}/{.status.ready}") == format!("{pods}/{pods}")
    });
    let spent = cpu(&cluster) - before;
    eprintln!(
        "  {pods} Pods run {:?} after {nodes} nodes joined: {spent:.2} s of CPU",
        start.elapsed()
    );
    assert!(spent < 0.1 * pods as f64, "{spent} s of CPU for {pods} Pods");
    let mut taken: BTreeMap<String, u64> = BTreeMap::new();
    for pod in fleet.seen().values() {
        *taken.entry(pod.node.clone().expect("a node")).or_default() += pod.milli_cpu;
    }
    assert_eq!(fleet.ever_of("Job/crowd"), pods, "nothing doubled");
    assert_eq!(fleet.count(|pod| pod.gone), 0, "nothing lost");
    assert_eq!(taken.len(), nodes);
    for (node, milli) in taken {
        assert_eq!(milli, 1000 * (pods / nodes) as u64, "{node}");
    }
    // Then only the nodes' own signs of life are left.
    let idle = calm(&mut cluster, "running Pods to cost nothing");
    eprintln!("  {pods} Pods on {nodes} nodes run for 5 s: {idle:.2} s of CPU");
}

#[test]
fn a_node_that_flaps() {
    if !ready("a_node_that_flaps") {
        return;
    }
    let mut cluster = Cluster::prepare("flaps", SERVER);
    cluster.start_server();
    let fleet = Fleet::new(&cluster);
    fleet.join("n", 3, 8);
    cluster.apply(&deployment("web", 12, 1).replace("terminationGracePeriodSeconds: 0", IMPATIENT));
    cluster.kubectl("rollout status deployment/web --timeout=60s");
    let (before, http) = (staying(&cluster), Http::new(&cluster));
    let (start, spent) = (Instant::now(), cpu(&cluster));
    // Ill for a moment, four times a second: never for as long as it takes to be driven away from it.
    let flaps = 60;
    let (mut ill_since, mut longest) = (None, Duration::ZERO);
    for flap in 0..flaps {
        let status = if flap % 2 == 0 { "False" } else { "True" };
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status, "reason": "Flaps"}]}});
        let typed = ["Content-Type: application/strategic-merge-patch+json"];
        let answer = http.send(
            "PATCH",
            "/api/v1/nodes/n-0/status",
            &typed,
            patch.to_string().as_bytes(),
        );
        assert_eq!(answer.code, 200, "{}", answer.body);
        match flap % 2 {
            0 => ill_since = Some(Instant::now()),
            _ => longest = longest.max(ill_since.map_or(Duration::ZERO, |since: Instant| since.elapsed())),
        }
        std::thread::sleep((Duration::from_millis(250) * (flap + 1)).saturating_sub(start.elapsed()));
    }
    let spent = cpu(&cluster) - spent;
    eprintln!("  {flaps} flaps in {:?}: {spent:.2} s of CPU", start.elapsed());
    assert!(spent < 10.0, "{spent} s of CPU");
    if longest < Duration::from_secs(3) {
        assert_eq!(staying(&cluster), before, "every Pod is where it was");
        assert_eq!(evicting(&cluster), [""; 0]);
    } else {
        // Then it was right to move them.
        eprintln!("  the machine stood still for {longest:?} while the node was ill: not judged");
        return;
    }
    cluster.wait("the node to be as well as the others", 30, |cluster| {
        cluster
            .kubectl("get nodes -o jsonpath={.items[*].spec.taints}")
            .is_empty()
            && nodes_ready(cluster, "True") == 3
    });
    assert_eq!(fleet.ever_of(&format!("ReplicaSet/{}", current(&cluster, "web"))), 12);
}

#[test]
fn a_job_that_always_fails() {
    if !ready("a_job_that_always_fails") {
        return;
    }
    let mut cluster = Cluster::prepare("fails", SERVER);
    cluster.start_server();
    let fleet = Fleet::new(&cluster);
    fleet.join("n", 2, 8);
    let failing = |name: &str, limit: usize| {
        let job = job(name, 1, 1).replace("ends: Succeeded", "ends: Failed");
        job.replace("  completions", &format!("  backoffLimit: {limit}\n  completions"))
    };
    let (start, before) = (Instant::now(), cpu(&cluster));
    // One that is given up after two more tries, one that is never.
    cluster.apply(&(failing("stops", 2) + "---" + &failing("stubborn", 1000)));
    cluster.wait("the Job to be given up", 90, |cluster| {
        let reason = r#"get job stops -o jsonpath={.status.conditions[?(@.type=="Failed")].reason}"#;
        cluster.kubectl(reason) == "BackoffLimitExceeded"
    });
    let (took, spent) = (start.elapsed(), cpu(&cluster) - before);
    eprintln!("  given up after {took:?}: {spent:.2} s of CPU");
    assert!(took > Duration::from_secs(20), "tries are ten and twenty seconds apart");
    assert!(spent < 10.0, "{spent} s of CPU");
    assert_eq!(fleet.ever_of("Job/stops"), 3);
    assert_eq!(cluster.kubectl("get job stops -o jsonpath={.status.failed}"), "3");
    let tried = fleet.ever_of("Job/stubborn");
    assert!(
        (2..=4).contains(&tried),
        "{tried} tries, each twice as long after the one before"
    );
}
