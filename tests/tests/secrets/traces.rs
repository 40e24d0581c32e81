//! Secrets turn up nowhere but where they belong: not in logs (at the highest level), Events, metrics, audit logs at level
//! Metadata, other objects, command lines, environments, state files that others may read, or the store's file.
//!
//! Not looked for: what a program itself prints or is started with. A probe that prints a Secret puts it into an Event,
//! and `command: [$(PASSWORD)]` into the list of processes, here as upstream.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use sampan_e2e::{Cluster, binary, output, ready};
use serde_json::{Value, json};

use crate::needles::{Search, canary, canary64};

pub const POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n";

/// A configuration that encrypts Secrets with a key of these bytes.
pub fn encryption(key: u8) -> String {
    let key = crate::needles::base64(&[key; 32]);
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
         providers:\n  - aesgcm: {{keys: [{{name: one, secret: '{key}'}}]}}\n  - identity: {{}}\n"
    )
}

/// A Pod with Secrets in every way they get into one, and others that fail on the way.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: uses}
spec:
  terminationGracePeriodSeconds: 1
  imagePullSecrets: [{name: registry}]
  securityContext: {runAsUser: 1000, fsGroup: 2000}
  initContainers:
  - {name: first, image: 'localhost/sampan/busybox:1.35', command: ['true'], envFrom: [{secretRef: {name: applied}}]}
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sleep, '3600']
    env:
    - {name: ONE, valueFrom: {secretKeyRef: {name: applied, key: k}}}
    - {name: TWO, value: 'before $(ONE) after'}
    envFrom: [{secretRef: {name: applied}}]
    volumeMounts:
    - {name: all, mountPath: /all}
    - {name: secret, mountPath: /secret}
    - {name: secret, mountPath: /one, subPath: k}
    - {name: empty, mountPath: /empty}
    livenessProbe: {exec: {command: [test, -s, /all/k]}, periodSeconds: 1}
    lifecycle: {postStart: {exec: {command: ['true']}}}
  volumes:
  - {name: secret, secret: {secretName: applied, defaultMode: 0440}}
  - {name: empty, emptyDir: {}}
  - name: all
    projected:
      sources:
      - {secret: {name: applied}}
      - {serviceAccountToken: {path: token, expirationSeconds: 600}}
      - {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: fails-to-run}
spec:
  containers:
  - {name: main, image: 'localhost/sampan/busybox:1.35', command: [/nothing], envFrom: [{secretRef: {name: applied}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: crashes}
spec:
  containers:
  - {name: main, image: 'localhost/sampan/busybox:1.35', command: [sh, -c, 'exit 5'], envFrom: [{secretRef: {name: applied}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: has-no-key}
spec:
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    env: [{name: ONE, valueFrom: {secretKeyRef: {name: applied, key: absent}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: mounts-nothing}
spec:
  containers: [{name: main, image: 'localhost/sampan/busybox:1.35', volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, secret: {secretName: applied, items: [{key: absent, path: x}]}}]
---
apiVersion: v1
kind: Pod
metadata: {name: cannot-pull}
spec:
  imagePullSecrets: [{name: registry}]
  containers: [{name: main, image: '127.0.0.1:5001/private:1', imagePullPolicy: Always}]
";

/// Refuses Secrets labelled so, with a message made of them, and one whose rule fails on a value of theirs.
const POLICIES: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: refuse}
spec:
  failurePolicy: Fail
  matchConstraints: {resourceRules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [secrets]}]}
  matchConditions: [{name: chosen, expression: \"has(object.metadata.labels) && 'refused' in object.metadata.labels\"}]
  validations: [{expression: 'false', messageExpression: \"'not ' + object.metadata.name + ' of ' + string(size(object.data))\"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: refuse}
spec: {policyName: refuse, validationActions: [Deny, Audit]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: stumble}
spec:
  failurePolicy: Fail
  matchConstraints: {resourceRules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [secrets]}]}
  matchConditions: [{name: chosen, expression: \"has(object.metadata.labels) && 'stumble' in object.metadata.labels\"}]
  validations: [{expression: \"object.data['absent'] == object.data['k']\"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: stumble}
spec: {policyName: stumble, validationActions: [Deny]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: convert}
spec:
  failurePolicy: Fail
  matchConstraints: {resourceRules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [secrets]}]}
  matchConditions: [{name: chosen, expression: \"has(object.metadata.labels) && 'convert' in object.metadata.labels\"}]
  validations: [{expression: \"int(string(object.data['k'])) > 0\"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: convert}
spec: {policyName: convert, validationActions: [Deny, Audit]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: gone}
webhooks:
- name: gone.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  timeoutSeconds: 2
  failurePolicy: Fail
  clientConfig: {url: 'https://127.0.0.1:1/validate'}
  objectSelector: {matchLabels: {webhook: 'yes'}}
  rules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [secrets]}]
";

struct Session<'a> {
    cluster: &'a Cluster,
}

impl Session<'_> {
    /// kubectl with a file of this content; what it said, whatever came of it.
    fn with(&self, words: &str, content: &Value) -> (bool, String) {
        let path = std::env::temp_dir().join(format!("sampan-e2e-secret-{}", std::process::id()));
        fs::write(&path, content.to_string()).expect("write");
        let mut arguments: Vec<&str> = words.split(' ').collect();
        let shown = path.to_string_lossy().into_owned();
        arguments.extend(["-f", &shown]);
        let answer = self.cluster.try_kubectl_args(&arguments);
        fs::remove_file(&path).expect("remove");
        let well = answer.is_ok();
        (well, answer.unwrap_or_else(|error| error))
    }

    #[track_caller]
    fn works(&self, words: &str, content: &Value) {
        let (well, said) = self.with(words, content);
        assert!(well, "{words}: {said}");
    }

    /// A request that must fail, and say this.
    #[track_caller]
    fn fails(&self, words: &str, content: &Value, why: &str) {
        let (well, said) = self.with(words, content);
        assert!(!well && said.contains(why), "{words}: {said}");
    }
}

fn secret(name: &str, key: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: value}})
}

fn with(mut object: Value, path: &str, value: Value) -> Value {
    let (parent, last) = path.rsplit_once('/').expect("a path");
    let parent = object.pointer_mut(parent).expect("the parent");
    parent[last] = value;
    object
}

/// Writes of Secrets, good ones and every kind of bad one.
fn write_secrets(cluster: &Cluster) {
    let session = Session { cluster };
    let value = |name: &str| canary(name);
    session.works("create", &secret("created", "k", &value("create")));
    session.works("apply", &secret("applied", "k", &value("apply")));
    session.works("apply --server-side", &secret("applied2", "k", &value("serverside")));
    session.works("replace", &secret("created", "k", &value("replace")));
    for (kind, patch) in [
        ("merge", json!({"stringData": {"m": value("merge")}})),
        ("strategic", json!({"data": {"s": canary64("strategic")}})),
        (
            "json",
            json!([{"op": "add", "path": "/data/j", "value": canary64("jsonpatch")}]),
        ),
    ] {
        cluster.kubectl_args(&["patch", "secret", "created", "--type", kind, "-p", &patch.to_string()]);
    }
    // Refused: what is wrong is in the value, beside it, or about it.
    let typed = |kind: &str, key: &str, value: String| with(secret("bad", key, &value), "/type", json!(kind));
    session.fails(
        "create",
        &typed("kubernetes.io/dockerconfigjson", ".dockerconfigjson", value("docker")),
        "invalid",
    );
    session.fails(
        "create",
        &typed("kubernetes.io/dockercfg", ".dockercfg", value("dockercfg")),
        "invalid",
    );
    session.fails(
        "create",
        &typed("kubernetes.io/tls", "tls.crt", value("tls")),
        "tls.key",
    );
    session.fails(
        "create",
        &typed("kubernetes.io/ssh-auth", "wrong", value("ssh")),
        "ssh-privatekey",
    );
    session.fails(
        "create",
        &secret("bad", "not a key", &value("key")),
        "a valid config key",
    );
    session.fails("create", &secret("bad", "k", &value("large").repeat(45_000)), "");
    session.fails(
        "create --validate=false",
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bad"}, "data": {"k": format!("{}!", value("decode"))}}),
        "",
    );
    session.fails(
        "create --validate=false",
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bad"}, "data": {"k": {"n": value("shape")}}}),
        "",
    );
    session.fails(
        "create --validate=false",
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bad"}, "data": [value("array")]}),
        "",
    );
    session.fails(
        "create",
        &with(
            secret("bad", "k", &value("unknown")),
            "/dta",
            json!({"k": value("field")}),
        ),
        "unknown field",
    );
    session.fails("create", &secret("created", "k", &value("exists")), "already exists");
    session.fails(
        "replace",
        &with(
            secret("created", "k", &value("conflict")),
            "/metadata/resourceVersion",
            json!("1"),
        ),
        "the object has been modified",
    );
    session.works(
        "apply",
        &with(secret("fixed", "k", &value("fixed")), "/immutable", json!(true)),
    );
    session.fails(
        "apply",
        &with(secret("fixed", "k", &value("changed")), "/immutable", json!(true)),
        "immutable",
    );
    session.fails("create -n nowhere", &secret("bad", "k", &value("nowhere")), "not found");
    session.fails(
        "create --as eve",
        &secret("bad", "k", &value("forbidden")),
        "cannot create resource",
    );
    session.fails(
        "apply --server-side --field-manager other",
        &secret("applied2", "k", &value("taken")),
        "conflict",
    );
    let patches = [
        (
            "json",
            json!([{"op": "test", "path": "/data/k", "value": canary64("tested")}]).to_string(),
        ),
        (
            "json",
            json!([{"op": "replace", "path": "/data/none/x", "value": canary64("lost")}]).to_string(),
        ),
        (
            "json",
            json!([{"op": "nothing", "path": "/data/k", "value": canary64("op")}]).to_string(),
        ),
        ("merge", json!({"data": {"k": [canary64("list")]}}).to_string()),
        ("merge", json!({"data": value("text")}).to_string()),
    ];
    for (kind, patch) in &patches {
        let answer = cluster.try_kubectl_args(&["patch", "secret", "created", "--type", kind, "-p", patch]);
        assert!(answer.is_err(), "{kind} {patch}");
    }
    // Refused by others.
    cluster.apply(POLICIES);
    let labelled = |label: &str, name: &str| {
        with(
            secret(name, "k", &value(name)),
            "/metadata/labels",
            json!({label: "yes"}),
        )
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while session.with("create --dry-run=server", &labelled("refused", "trial")).0 {
        assert!(std::time::Instant::now() < deadline, "the policy does not apply");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    session.fails("create", &labelled("refused", "policy"), "not policy of 1");
    session.fails("create", &labelled("stumble", "cel"), "no such key");
    session.fails("create", &labelled("convert", "number"), "resulted in error");
    session.fails("create", &labelled("webhook", "hook"), "failed calling webhook");
    cluster.kubectl(
        "delete validatingadmissionpolicies,validatingadmissionpolicybindings,validatingwebhookconfigurations --all",
    );
    // Bodies that are nothing at all, and credentials in the wrong place.
    for body in [
        format!("{{\"data\": \"{}", value("broken")),
        format!("kind: Secret\n\tdata: {}", value("yaml")),
    ] {
        let path = cluster.dir.path().join("body");
        fs::write(&path, body).expect("write");
        let refused = cluster.try_kubectl(&format!(
            "create --raw /api/v1/namespaces/default/secrets -f {}",
            path.display()
        ));
        assert!(refused.is_err());
        fs::remove_file(&path).expect("remove");
    }
    for arguments in [
        vec!["--token".to_owned(), value("token")],
        vec![
            "--username".into(),
            "eve".into(),
            "--password".into(),
            value("password"),
        ],
    ] {
        let kubectl = sampan_e2e::kubectls().pop().expect("a kubectl");
        let server = format!("https://{}:6443", sampan_e2e::NODE);
        let refused = output(
            cluster
                .lab
                .on_node(kubectl)
                .args([
                    "--kubeconfig",
                    "/dev/null",
                    "--insecure-skip-tls-verify",
                    "--server",
                    &server,
                ])
                .args(&arguments)
                .args(["get", "secrets"]),
        );
        assert!(!refused.status.success());
    }
    session.works(
        "create",
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry"}, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": json!({"auths": {
                "127.0.0.1:5001": {"username": "jane", "password": value("registry")},
                "127.0.0.1:5000": {"auth": crate::needles::base64(format!("jane:{}", value("auth")).as_bytes())}}}).to_string()}}),
    );
}

/// Tokens of every kind; what of them must turn up nowhere.
fn make_tokens(cluster: &mut Cluster) -> Vec<(String, String)> {
    let mut made = Vec::new();
    let signature = |token: &str| token.trim().rsplit('.').next().expect("a signature").to_owned();
    made.push((
        "a token of a service account".into(),
        signature(&cluster.kubectl("create token default")),
    ));
    made.push((
        "a bound token".into(),
        signature(&cluster.kubectl("create token default --bound-object-kind Secret --bound-object-name applied")),
    ));
    let refused = cluster.try_kubectl("create token default --bound-object-kind Secret --bound-object-name absent");
    assert!(refused.is_err());
    let legacy = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "legacy",
        "annotations": {"kubernetes.io/service-account.name": "default"}}, "type": "kubernetes.io/service-account-token"});
    Session { cluster }.works("create", &legacy);
    cluster.wait("the token of a Secret", 30, |cluster| {
        !cluster
            .kubectl("get secret legacy -o jsonpath={.data.token}")
            .is_empty()
    });
    let token = cluster.get("secret legacy")["data"]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    made.push((
        "a Secret's token, in base64".into(),
        token[token.len() - 60..token.len() - 4].to_owned(),
    ));
    // Used, rightly and after its time.
    let kubectl = sampan_e2e::kubectls().pop().expect("a kubectl");
    let token = cluster.kubectl("create token default --duration=10m");
    let used = cluster
        .lab
        .on_node(kubectl)
        .args(["--kubeconfig", "/dev/null", "--insecure-skip-tls-verify", "--server"])
        .arg(format!("https://{}:6443", sampan_e2e::NODE))
        .args(["--token", token.trim(), "auth", "whoami"])
        .output()
        .expect("kubectl");
    assert!(used.status.success(), "{}", String::from_utf8_lossy(&used.stderr));
    made.push(("a token that was used".into(), signature(&token)));
    let joining = output(
        cluster
            .lab
            .on_node(binary())
            .args(["token", "create", "--kubeconfig"])
            .arg(cluster.kubeconfig()),
    );
    assert!(joining.status.success(), "{}", String::from_utf8_lossy(&joining.stderr));
    let said = String::from_utf8_lossy(&joining.stdout);
    let token = said
        .split_whitespace()
        .find(|word| word.split('.').count() >= 2 && word.find('.') == Some(6))
        .expect("a token");
    made.push((
        "a joining token".into(),
        token.split('.').nth(1).expect("its secret").to_owned(),
    ));
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": canary("review")}});
    Session { cluster }.works("create", &review);
    made
}

/// Everything that can be read of a cluster and is no Secret.
fn look_at_the_api(cluster: &Cluster, search: &mut Search) {
    let kinds = cluster.kubectl("api-resources --verbs=list -o name");
    for kind in kinds.lines().filter(|kind| *kind != "secrets") {
        search.text(
            &format!("kubectl get {kind}"),
            &cluster.kubectl(&format!("get {kind} -A -o yaml")),
        );
    }
    // As a table, with kubectl's own words, and described.
    for words in [
        "get secrets -A",
        "get pods,events -A -o wide",
        "describe secrets -A",
        "describe pods",
        "describe events",
        "describe nodes",
    ] {
        search.text(words, &cluster.kubectl(words));
    }
    let mut pages = 0;
    for page in [
        "/metrics",
        "/readyz?verbose",
        "/livez?verbose",
        "/healthz?verbose",
        "/version",
        "/statusz",
        "/flagz",
        "/configz",
        "/debug/pprof/cmdline",
        "/debug/pprof/heap",
        "/debug/flags/v",
        "/logs",
        "/logs/",
        "/debug/api_priority_and_fairness/dump_requests?includeRequestDetails=1",
        "/debug/api_priority_and_fairness/dump_queues",
        "/debug/api_priority_and_fairness/dump_priority_levels",
        "/openapi/v2",
        "/api/v1/nodes/node-1/proxy/metrics",
        "/api/v1/nodes/node-1/proxy/metrics/resource",
        "/api/v1/nodes/node-1/proxy/metrics/cadvisor",
        "/api/v1/nodes/node-1/proxy/metrics/probes",
        "/api/v1/nodes/node-1/proxy/stats/summary",
        "/api/v1/nodes/node-1/proxy/configz",
        "/api/v1/nodes/node-1/proxy/pods",
        "/api/v1/nodes/node-1/proxy/runningpods/",
        "/api/v1/nodes/node-1/proxy/healthz",
        "/api/v1/nodes/node-1/proxy/logs/",
        "/api/v1/nodes/node-1/proxy/debug/pprof/cmdline",
    ] {
        if let Ok(text) = cluster.try_kubectl_args(&["get", "--raw", page]) {
            search.bytes(page, text.as_bytes());
            pages += 1;
        }
    }
    assert!(pages >= 10, "{pages} pages");
}

/// Command lines and environments of the server and its shims.
fn look_at_processes(cluster: &Cluster, search: &mut Search) {
    let server = cluster.pid();
    let mut seen = 0;
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let dir = entry.path();
        let ours = fs::read(dir.join("cmdline")).is_ok_and(|line| {
            let line = String::from_utf8_lossy(&line).into_owned();
            entry.file_name().to_string_lossy() == server.to_string()
                || (line.contains("shim") && line.contains(&*cluster.dir.path().to_string_lossy()))
        });
        if !ours {
            continue;
        }
        seen += 1;
        for file in ["cmdline", "environ", "comm"] {
            if let Ok(content) = fs::read(dir.join(file)) {
                search.bytes(&dir.join(file).display().to_string(), &content);
            }
        }
    }
    assert!(seen > 2, "only {seen} processes are ours");
}

/// Where Secrets belong: the Pods' own volumes, and what containers are started with, which nobody else may read.
fn belongs(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let of_container =
        ["spec.json", "record.json"].iter().any(|name| path.ends_with(name)) && text.contains("/runtime/containers/");
    if of_container {
        let mode = fs::metadata(path).expect("a file").permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{text} is {mode:o}");
    }
    of_container
        || (text.contains("/node/pods/") && (text.contains("/volumes/kubernetes.io~") || text.contains("/volume-subpaths/")))
        // Container images, which know nothing.
        || text.contains("/runtime/images/")
}

/// A registry that only says no; `None`: it cannot be had here.
fn registry(cluster: &Cluster) -> Option<std::process::Child> {
    const PROGRAM: &str = "
import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header('WWW-Authenticate', 'Basic realm=\"e2e\"')
        self.end_headers()
        self.wfile.write(b'{\"errors\":[{\"code\":\"UNAUTHORIZED\",\"message\":\"who are you\"}]}')
    do_HEAD = do_GET
http.server.HTTPServer(('127.0.0.1', 5001), H).serve_forever()
";
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("without a registry that refuses: it needs python3");
        return None;
    }
    let child = cluster
        .lab
        .on_node("python3")
        .args(["-c", PROGRAM])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    Some(child.expect("python3 starts"))
}

#[test]
fn secrets_turn_up_nowhere() {
    if !ready("secrets_turn_up_nowhere") {
        return;
    }
    let outside = tempfile::tempdir().expect("a directory");
    let place = |name: &str, content: &str| {
        let path = outside.path().join(name);
        fs::write(&path, content).expect("write");
        path.display().to_string()
    };
    let log = outside.path().join("audit/audit.log").display().to_string();
    let tokens = format!("{},known,7,\"system:masters\"\n", canary("static"));
    let mut cluster = Cluster::start_with(
        "secrets",
        &[
            "--log=trace",
            "--audit-log-mode=blocking",
            &format!("--audit-policy-file={}", place("policy.yaml", POLICY)),
            &format!("--audit-log-path={log}"),
            &format!("--token-auth-file={}", place("tokens.csv", &tokens)),
            &format!(
                "--encryption-provider-config={}",
                place("encryption.yaml", &encryption(7))
            ),
        ],
    );
    let mut registry = registry(&cluster);
    write_secrets(&cluster);
    let tokens = make_tokens(&mut cluster);
    cluster.apply(PODS);
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/uses");
    let reason = |cluster: &mut Cluster, pod: &str, why: &str| {
        cluster.wait(&format!("{pod}: {why}"), 60, |cluster| {
            cluster.kubectl(&format!("get pod {pod} -o json")).contains(why)
                || cluster
                    .kubectl("get events")
                    .lines()
                    .any(|line| line.contains(pod) && line.contains(why))
        });
    };
    reason(&mut cluster, "fails-to-run", "no such file or directory");
    reason(&mut cluster, "crashes", "\"exitCode\": 5");
    reason(&mut cluster, "has-no-key", "couldn't find key absent");
    reason(&mut cluster, "mounts-nothing", "FailedMount");
    if registry.is_some() {
        reason(&mut cluster, "cannot-pull", "ErrImagePull");
    }
    // Changed while it is mounted, taken away, and adopted by the next server.
    let applied = secret("applied", "k", &canary("rotated"));
    Session { cluster: &cluster }.works("apply", &applied);
    cluster.wait("the new value", 90, |cluster| {
        cluster
            .kubectl_args(&["exec", "uses", "--", "cat", "/all/k"])
            .starts_with("rotated.")
    });
    cluster.kubectl("delete secret created");
    cluster.kill();
    cluster.start_server();
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/uses");

    let mut search = Search::new();
    for (what, value) in &tokens {
        search.add(what, value);
    }
    look_at_the_api(&cluster, &mut search);
    look_at_processes(&cluster, &mut search);
    let server_log = cluster.log();
    assert!(server_log.contains("TRACE"), "the log is not at its highest level");
    search.text("the server's log", &server_log);
    let audit = fs::read_to_string(&log).expect("the audit log");
    assert!(audit.lines().count() > 100);
    search.text("the audit log", &audit);
    let backup = outside.path().join("backup");
    let wrote = output(
        cluster
            .lab
            .on_node(binary())
            .arg("backup")
            .arg(&backup)
            .arg("--kubeconfig")
            .arg(cluster.kubeconfig()),
    );
    assert!(wrote.status.success(), "{}", String::from_utf8_lossy(&wrote.stderr));
    assert_eq!(
        fs::metadata(&backup).expect("a backup").permissions().mode() & 0o777,
        0o600
    );
    search.bytes("a backup", &fs::read(&backup).expect("a backup"));
    search.directory(cluster.dir.path(), &belongs);
    if let Some(registry) = &mut registry {
        registry.kill().expect("end the registry");
        registry.wait().expect("end the registry");
    }
    search.must_be_clean();
}
