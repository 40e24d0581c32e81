//! The audit log of a real server, as kubectl fills it: stages and levels, streams, rotation, a collector that is slow or
//! gone, and kill -9.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sampan_e2e::{Cluster, kubectls, must, output, ready};
use serde_json::{Value, json};

use crate::alone::Server;

fn policy(dir: &Path, rules: &str) -> String {
    let path = dir.join("policy.yaml");
    fs::write(&path, format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}")).unwrap();
    format!("--audit-policy-file={}", path.display())
}

fn events(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn read(path: &Path) -> Vec<Value> {
    events(&fs::read_to_string(path).unwrap_or_default())
}

/// What the administrator did, for itself or for others; not what the cluster's own components do.
fn of_kubectl(path: &Path) -> Vec<Value> {
    let mut events = read(path);
    events.retain(|event| event["user"]["username"] == "kubernetes-admin");
    events
}

/// The events about a resource (`pods/exec`) and verb.
fn about<'a>(events: &'a [Value], verb: &str, resource: &str) -> Vec<&'a Value> {
    let (plural, sub) = resource.split_once('/').unwrap_or((resource, ""));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events
        .iter()
        .filter(|event| {
            let object = &event["objectRef"];
            event["verb"] == verb && text(&object["resource"]) == plural && text(&object["subresource"]) == sub
        })
        .collect()
}

fn stages(events: &[&Value]) -> Vec<String> {
    events
        .iter()
        .map(|event| event["stage"].as_str().unwrap().to_owned())
        .collect()
}

const RULES: &str = "omitStages: [RequestReceived]
rules:
- {level: None, userGroups: ['system:nodes', 'system:serviceaccounts']}
- {level: None, users: ['system:apiserver', 'system:kube-scheduler', 'system:kube-controller-manager', 'system:kube-proxy']}
- {level: None, nonResourceURLs: ['/readyz*', '/livez*', '/healthz*', '/api*', '/openapi*']}
- {level: RequestResponse, omitManagedFields: true, resources: [{resources: [configmaps]}]}
- {level: RequestResponse, resources: [{resources: [services]}]}
- {level: Request, omitStages: [ResponseStarted], resources: [{resources: [namespaces]}]}
- {level: Metadata}
";

#[test]
fn what_kubectl_did_is_told() {
    if !ready("what_kubectl_did_is_told") {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let log = outside.path().join("audit.log");
    let mut cluster = Cluster::start_with(
        "audit",
        &[
            &policy(outside.path(), RULES),
            &format!("--audit-log-path={}", log.display()),
        ],
    );
    cluster.kubectl("create configmap one --from-literal=a=b");
    cluster.kubectl("create service clusterip web --tcp=80");
    // The client is told the id of its request; one it brings itself is taken (tested beside the API server).
    let kubectl = kubectls().pop().unwrap();
    let shown = output(
        cluster
            .kubectl_command(&kubectl)
            .args(["get", "configmap", "one", "-v=8"]),
    );
    let shown = String::from_utf8_lossy(&shown.stderr).into_owned();
    let id = shown
        .lines()
        .find_map(|line| {
            line.trim()
                .split_once("Audit-Id: ")
                .map(|(_, id)| id.trim().trim_matches('"').to_owned())
        })
        .unwrap_or_else(|| panic!("kubectl saw no Audit-Id: {shown}"));
    // Somebody else, allowed by a role and not.
    cluster.kubectl("create role reader --verb=list --resource=configmaps");
    cluster.kubectl("create rolebinding bob --role=reader --user=bob");
    cluster.kubectl("get configmaps --as bob --as-group devs");
    assert!(cluster.try_kubectl("get secrets --as bob").is_err());
    cluster.kubectl("get endpoints");
    cluster.kubectl("label namespace default pod-security.kubernetes.io/audit=restricted");
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {name: c, image: 'localhost/sampan/busybox:1.35', \
         command: [sh, -c, 'mkdir /www; echo page > /www/index.html; httpd -f -p 8080 -h /www']}\n",
    );
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/p");
    // Streams: what begins is told at once, and its end when it ends.
    let spawn = |words: &str| -> Child {
        cluster
            .kubectl_command(&kubectl)
            .args(words.split(' '))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut streams = [
        spawn("exec p -- sleep 600"),
        spawn("port-forward pod/p 18080:8080"),
        spawn("logs -f p"),
        spawn("get namespaces --watch"),
        spawn("get services --watch"),
    ];
    let told = |verb: &str, resource: &str, stage: &str| {
        let events = of_kubectl(&log);
        about(&events, verb, resource)
            .iter()
            .any(|event| event["stage"] == stage)
    };
    // kubectl asks by WebSocket (GET) or, older, by SPDY (POST).
    let either = |resource: &str, stage: &str| told("get", resource, stage) || told("create", resource, stage);
    let began = |cluster: &mut Cluster| {
        cluster.wait("the streams' beginnings", 30, |_| {
            either("pods/exec", "ResponseStarted")
                && either("pods/portforward", "ResponseStarted")
                && told("get", "pods/log", "ResponseStarted")
                && told("watch", "services", "ResponseStarted")
        });
    };
    let page = |cluster: &Cluster| {
        output(
            cluster
                .lab
                .on_node("curl")
                .args(["-s", "-m", "5", "http://127.0.0.1:18080/"]),
        )
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !String::from_utf8_lossy(&page(&cluster).stdout).contains("page") {
        assert!(Instant::now() < deadline, "no page through the port-forward");
        std::thread::sleep(Duration::from_millis(200));
    }
    began(&mut cluster);
    assert!(!either("pods/exec", "ResponseComplete") && !told("watch", "services", "ResponseComplete"));
    for stream in &mut streams {
        stream.kill().unwrap();
        stream.wait().unwrap();
    }
    cluster.wait("the streams' ends", 30, |_| {
        either("pods/exec", "ResponseComplete")
            && either("pods/portforward", "ResponseComplete")
            && told("get", "pods/log", "ResponseComplete")
            && told("watch", "services", "ResponseComplete")
            && told("watch", "namespaces", "ResponseComplete")
    });
    cluster.kubectl("delete configmap one");
    let all = of_kubectl(&log);

    let created = about(&all, "create", "configmaps");
    let mine: Vec<_> = created
        .into_iter()
        .filter(|event| event["objectRef"]["name"] == "one")
        .collect();
    assert_eq!(stages(&mine), ["ResponseComplete"]);
    let event = mine[0];
    assert_eq!(event["level"], "RequestResponse");
    assert_eq!(event["requestObject"]["data"]["a"], "b");
    assert_eq!(event["responseObject"]["metadata"]["name"], "one");
    assert!(event["responseObject"]["metadata"]["managedFields"].is_null());
    assert_eq!(event["user"]["username"], "kubernetes-admin");
    assert_eq!(event["sourceIPs"], json!(["127.0.0.1"]));
    assert!(event["userAgent"].as_str().unwrap().starts_with("kubectl"), "{event}");
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "allow");
    assert_eq!(
        event["annotations"]["authorization.k8s.io/reason"], "",
        "masters are asked for nothing"
    );
    let service = about(&all, "create", "services");
    assert!(service[0]["responseObject"]["metadata"]["managedFields"].is_array());
    let got = about(&all, "get", "configmaps");
    assert!(got.iter().any(|event| event["auditID"] == id.as_str()), "{id}");
    let listed = about(&all, "list", "configmaps");
    assert_eq!(listed[0]["user"]["username"], "kubernetes-admin");
    assert_eq!(listed[0]["impersonatedUser"]["username"], "bob");
    assert_eq!(
        listed[0]["impersonatedUser"]["groups"],
        json!(["devs", "system:authenticated"])
    );
    let annotations = &listed[0]["annotations"];
    assert_eq!(
        annotations["authorization.k8s.io/reason"],
        "RBAC: allowed by RoleBinding \"bob/default\" of Role \"reader\" to User \"bob\""
    );
    let refused = about(&all, "list", "secrets");
    assert_eq!(refused[0]["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(refused[0]["responseStatus"]["code"], 403);
    assert_eq!(refused[0]["responseStatus"]["reason"], "Forbidden");
    assert_eq!(refused[0]["level"], "Metadata");
    let endpoints = about(&all, "list", "endpoints");
    assert_eq!(endpoints[0]["annotations"]["k8s.io/deprecated"], "true");
    let pod = about(&all, "create", "pods");
    let violations = pod[0]["annotations"]["pod-security.kubernetes.io/audit-violations"]
        .as_str()
        .unwrap();
    assert!(violations.contains("allowPrivilegeEscalation != false"), "{violations}");
    assert!(pod[0]["requestObject"].is_null());
    let exec: Vec<_> = [about(&all, "get", "pods/exec"), about(&all, "create", "pods/exec")].concat();
    assert_eq!(stages(&exec), ["ResponseStarted", "ResponseComplete"]);
    assert_eq!(exec[0]["auditID"], exec[1]["auditID"]);
    assert_eq!(exec[0]["responseStatus"]["code"], 101);
    assert!(
        exec[0]["requestURI"]
            .as_str()
            .unwrap()
            .contains("command=sleep&command=600")
    );
    assert_eq!(exec[0]["objectRef"]["name"], "p");
    // A stage that is left out for a rule is left out for its streams, too.
    let watched = about(&all, "watch", "namespaces");
    let namespaces: BTreeSet<_> = stages(&watched).into_iter().collect();
    assert_eq!(namespaces, BTreeSet::from(["ResponseComplete".to_owned()]));
    assert!(
        read(&log)
            .iter()
            .all(|event| event["stage"] != "Panic" && event["stage"] != "RequestReceived")
    );
    assert!(!cluster.log().contains("panicked"));
    assert!(read(&log).iter().all(|event| {
        !event["user"]["username"]
            .as_str()
            .unwrap_or_default()
            .starts_with("system:kube-")
    }));
}

/// A List of ConfigMaps of this size.
fn config_maps(prefix: &str, count: usize, size: usize) -> String {
    let items: Vec<_> = (0..count)
        .map(|number| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("{prefix}-{number}")},
                "data": {"x": "y".repeat(size)}})
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

#[test]
fn the_log_is_rotated_and_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let rules = "rules:\n- {level: None, userGroups: ['system:serviceaccounts']}\n- {level: RequestResponse, resources: [{resources: [configmaps]}]}\n";
    let policy = policy(dir.path(), rules);
    let log = format!("--audit-log-path={}", logs.join("audit.log").display());
    let rotation = [
        "--audit-log-maxsize=1",
        "--audit-log-maxbackup=3",
        "--audit-log-maxage=1",
        "--audit-log-compress",
    ];
    let arguments: Vec<&str> = [&*policy, &*log].into_iter().chain(rotation).collect();
    let Some(mut server) = Server::start(&dir.path().join("data"), "192.0.2.46", &arguments) else {
        return;
    };
    server.with("create", &config_maps("large", 60, 60_000)).unwrap();
    let files = || -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(&logs)
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        files.sort();
        files
    };
    let packed = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gz");
    server.wait("rotated, compressed, and the oldest gone", 30, || {
        let files = files();
        files.len() == 4 && files.iter().filter(|path| packed(path)).count() == 3
    });
    for file in files() {
        let meta = fs::metadata(&file).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600, "{}", file.display());
        assert!(meta.len() < 1_300_000, "{}", file.display());
        let text = match packed(&file) {
            true => must(Command::new("gzip").arg("-dc").arg(&file)),
            false => fs::read_to_string(&file).unwrap(),
        };
        // Every line is whole.
        for event in events(&text) {
            assert_eq!(event["kind"], "Event");
        }
    }
    assert_eq!(fs::metadata(&logs).unwrap().permissions().mode() & 0o777, 0o700);

    // What was answered is in the log, whatever happens to the server.
    server.kill();
    let kept = dir.path().join("kept.log");
    server.arguments.retain(|argument| !argument.starts_with("--audit-log"));
    server.arguments.push(format!("--audit-log-path={}", kept.display()));
    server.run();
    let stop = AtomicBool::new(false);
    let (answered, server_pid) = (std::sync::Mutex::new(Vec::new()), server.pid());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (server, stop, answered) = (&server, &stop, &answered);
            scope.spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    let name = format!("k-{thread}-{number}");
                    match server.kubectl(&format!("create configmap {name}")) {
                        Ok(_) => answered.lock().unwrap().push(name),
                        Err(_) => return,
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_secs(4));
        let pid = nix::unistd::Pid::from_raw(server_pid as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        stop.store(true, Ordering::Release);
    });
    let answered = answered.into_inner().unwrap();
    let text = fs::read_to_string(&kept).unwrap();
    // The last line may be half written; it is nobody's who was answered.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let told: BTreeSet<String> = events(whole)
        .iter()
        .filter(|event| event["stage"] == "ResponseComplete" && event["responseStatus"]["code"] == 201)
        .map(|event| event["objectRef"]["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    let lost: Vec<_> = answered.iter().filter(|name| !told.contains(*name)).collect();
    assert!(answered.len() > 3 && lost.is_empty(), "of {}: {lost:?}", answered.len());
    server.kill();
    server.run();
    for name in &answered {
        assert!(server.kubectl(&format!("get configmap {name}")).is_ok(), "{name}");
    }
}

/// A collector with TLS in a process of its own, which does what a file says: `ok`, `hang` or `refuse`.
struct Collector {
    child: Child,
    dir: PathBuf,
    config: PathBuf,
}

const COLLECTOR: &str = "
import http.server, json, os, ssl, sys, threading, time
os.chdir(sys.argv[1])
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        while open('mode').read() == 'hang':
            time.sleep(0.1)
        mode = open('mode').read()
        if mode == 'ok':
            with lock:
                with open('batches', 'a') as out:
                    out.write(body.decode() + '\\n')
        self.send_response(200 if mode == 'ok' else 503)
        self.send_header('Content-Length', '0')
        self.end_headers()
    def log_message(self, *a): pass
lock = threading.Lock()
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), H)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('cert.pem', 'key.pem')
server.socket = context.wrap_socket(server.socket, server_side=True)
with open('port.new', 'w') as out:
    out.write(str(server.server_address[1]))
os.rename('port.new', 'port')
server.serve_forever()
";

impl Collector {
    fn start(dir: &Path) -> Option<Collector> {
        let dir = dir.join("collector");
        fs::create_dir(&dir).unwrap();
        let key = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ])
            .args([
                "-subj",
                "/CN=collector",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-keyout",
                "key.pem",
                "-out",
                "cert.pem",
            ])
            .current_dir(&dir)
            .output();
        if !key.is_ok_and(|made| made.status.success()) || Command::new("python3").arg("--version").output().is_err() {
            eprintln!("skipped: it needs openssl and python3");
            return None;
        }
        fs::write(dir.join("mode"), "ok").unwrap();
        let child = Command::new("python3")
            .args(["-c", COLLECTOR])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !dir.join("port").exists() {
            assert!(Instant::now() < deadline, "the collector does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let port = fs::read_to_string(dir.join("port")).unwrap();
        let config = dir.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {{server: 'https://127.0.0.1:{port}/', certificate-authority: {}}}\n\
             contexts:\n- name: x\n  context: {{cluster: c, user: ''}}\ncurrent-context: x\n",
            dir.join("cert.pem").display()
        );
        fs::write(&config, text).unwrap();
        Some(Collector { child, dir, config })
    }

    fn mode(&self, mode: &str) {
        fs::write(self.dir.join("mode.new"), mode).unwrap();
        fs::rename(self.dir.join("mode.new"), self.dir.join("mode")).unwrap();
    }

    fn batches(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("batches")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        events(whole)
    }

    fn events(&self) -> Vec<Value> {
        let batches = self.batches();
        batches
            .iter()
            .flat_map(|batch| batch["items"].as_array().cloned().unwrap_or_default())
            .collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// Kilobytes a process holds.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_collector_that_is_slow_or_gone() {
    let dir = tempfile::tempdir().unwrap();
    let Some(collector) = Collector::start(dir.path()) else {
        return;
    };
    let policy = policy(
        dir.path(),
        "omitStages: [RequestReceived]\nrules:\n- {level: Request, resources: [{resources: [configmaps]}]}\n",
    );
    let webhook = format!("--audit-webhook-config-file={}", collector.config.display());
    let batch = [
        "--audit-webhook-batch-max-size=20",
        "--audit-webhook-batch-max-wait=1s",
        "--audit-webhook-truncate-enabled",
        "--audit-webhook-truncate-max-event-size=300000",
        "--audit-webhook-truncate-max-batch-size=1000000",
        "--audit-webhook-initial-backoff=1s",
    ];
    let arguments: Vec<&str> = [&*policy, &*webhook].into_iter().chain(batch).collect();
    let Some(mut server) = Server::start(&dir.path().join("data"), "192.0.2.47", &arguments) else {
        return;
    };
    let created = |collector: &Collector, prefix: &str| {
        let events = collector.events();
        let mine = about(&events, "create", "configmaps").into_iter().filter(|event| {
            event["objectRef"]["name"]
                .as_str()
                .is_some_and(|name| name.starts_with(prefix))
        });
        mine.cloned().collect::<Vec<_>>()
    };
    server.with("create", &config_maps("small", 50, 10)).unwrap();
    server.with("create", &config_maps("huge", 1, 400_000)).unwrap();
    server.wait("all collected", 30, || {
        created(&collector, "small").len() == 50 && created(&collector, "huge").len() == 1
    });
    assert!(
        collector
            .batches()
            .iter()
            .all(|batch| batch["kind"] == "EventList" && batch["items"].as_array().unwrap().len() <= 20)
    );
    let huge = &created(&collector, "huge")[0];
    assert!(huge["requestObject"].is_null() && huge["annotations"]["audit.k8s.io/truncated"] == "true");
    // Refused for a while: sent again.
    collector.mode("refuse");
    server.with("create", &config_maps("again", 3, 10)).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    collector.mode("ok");
    server.wait("sent again", 60, || created(&collector, "again").len() == 3);

    // It hangs: requests do not wait, memory is bounded, and what is lost is counted. Nothing is stored, so what grows
    // would be events: 400 of 250 kB.
    collector.mode("hang");
    let before = resident(server.pid());
    let begun = Instant::now();
    let list = config_maps("dry", 50, 250_000);
    for _ in 0..8 {
        server.with("create --dry-run=server -o name", &list).unwrap();
    }
    eprintln!("400 requests of 250 kB beside a dead collector: {:?}", begun.elapsed());
    let after = resident(server.pid());
    eprintln!("resident: {before} kB, then {after} kB");
    assert!(after < before + 160_000, "{before} kB, then {after} kB");
    let lost = server.metric("apiserver_audit_error_total", &["buffered"]);
    assert!(lost > 50.0, "{lost} lost");
    collector.mode("ok");
    let known = created(&collector, "dry").len();
    server.wait("collected again", 60, || created(&collector, "dry").len() > known + 50);
    server.with("create", &config_maps("late", 5, 10)).unwrap();
    server.wait("the late ones", 60, || created(&collector, "late").len() == 5);
    // The end of the server brings what waits.
    server.with("create", &config_maps("last", 7, 10)).unwrap();
    server.stop();
    assert_eq!(created(&collector, "last").len(), 7);

    // Blocking: what is answered has arrived.
    server.arguments.push("--audit-webhook-mode=blocking".into());
    server.run();
    server.with("create", &config_maps("now", 3, 10)).unwrap();
    assert_eq!(created(&collector, "now").len(), 3);
    server.kill();
    assert_eq!(created(&collector, "now").len(), 3);
    assert!(!server.log().contains("panicked"));
}
