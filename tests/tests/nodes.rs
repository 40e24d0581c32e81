//! Nodes and their own servers: who may ask what of a node, and machines that join a cluster.

use sampan_e2e::joined::Joined;
use sampan_e2e::{Cluster, binary, output, ready};

/// What the node's own server answers to curl with these arguments: the status code, `000` where there was no answer.
fn ask(cluster: &Cluster, path: &str, arguments: &[&str]) -> String {
    let url = format!("https://127.0.0.1:10250{path}");
    let mut curl = cluster.lab.on_node("curl");
    curl.args(["-sk", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}"]);
    let output = output(curl.args(arguments).arg(url));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Certificates and tokens say who asks; RBAC says what they may.
#[test]
fn the_nodes_server_asks_who_and_whether() {
    if !ready("the_nodes_server_asks_who_and_whether") {
        return;
    }
    let mut cluster = Cluster::start_with("node-server", &["--disable=dns"]);
    let paths = [
        "/pods",
        "/logs/",
        "/metrics",
        "/run/default/p/c",
        "/exec/default/p/c",
        "/healthz",
        "//pods",
    ];
    for path in paths {
        assert_eq!(ask(&cluster, path, &[]), "401", "{path}");
        assert_eq!(
            ask(&cluster, path, &["-H", "Authorization: Bearer nonsense"]),
            "401",
            "{path}"
        );
    }
    let plain = ["-s", "--max-time", "5", "http://127.0.0.1:10250/pods"];
    assert!(
        !output(cluster.lab.on_node("curl").args(plain)).status.success(),
        "without TLS"
    );

    // A certificate of the cluster's authority for a user without rights.
    let dir = cluster.dir.path().join("jane");
    std::fs::create_dir(&dir).expect("a directory");
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (key, request) = (at("key"), at("request"));
    let made = output(std::process::Command::new("openssl").args([
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        &key,
        "-subj",
        "/O=dev/CN=jane",
        "-out",
        &request,
    ]));
    assert!(
        made.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    let encoded = output(std::process::Command::new("base64").args(["-w0", &request])).stdout;
    cluster.apply(&format!(
        "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: jane}}\nspec:\n  \
         request: {}\n  signerName: kubernetes.io/kube-apiserver-client\n  usages: [client auth]\n",
        String::from_utf8_lossy(&encoded)
    ));
    cluster.kubectl("certificate approve jane");
    let mut certificate = String::new();
    cluster.wait("the certificate", 30, |cluster| {
        certificate = cluster.kubectl("get csr jane -o jsonpath={.status.certificate}");
        !certificate.is_empty()
    });
    let decoded = at("certificate.b64");
    std::fs::write(&decoded, certificate).expect("write");
    let pem = output(std::process::Command::new("base64").args(["-d", &decoded])).stdout;
    std::fs::write(at("certificate"), pem).expect("write");
    let certificate = at("certificate");
    let jane = ["--cert", certificate.as_str(), "--key", key.as_str()];
    for path in paths {
        assert_eq!(ask(&cluster, path, &jane), "403", "{path}");
    }

    // A service account with one narrow right, as metrics-server has it.
    cluster.kubectl("create serviceaccount reader");
    cluster.kubectl("create clusterrole reader --verb=get --resource=nodes/metrics");
    cluster.kubectl("create clusterrolebinding reader --clusterrole=reader --serviceaccount=default:reader");
    let token = cluster.kubectl("create token reader");
    let header = format!("Authorization: Bearer {}", token.trim());
    for (path, code) in [
        ("/metrics/resource", "200"),
        ("/pods", "403"),
        ("/exec/default/p/c", "403"),
    ] {
        assert_eq!(ask(&cluster, path, &["-H", &header]), code, "{path}");
    }
    // `nodes/pods` is enough for the Pods, and for nothing else.
    cluster.kubectl("create serviceaccount lister");
    cluster.kubectl("create clusterrole lister --verb=get --resource=nodes/pods");
    cluster.kubectl("create clusterrolebinding lister --clusterrole=lister --serviceaccount=default:lister");
    let token = cluster.kubectl("create token lister");
    let header = format!("Authorization: Bearer {}", token.trim());
    for (path, code) in [
        ("/pods", "200"),
        ("/metrics/resource", "403"),
        ("/run/default/p/c", "403"),
    ] {
        assert_eq!(ask(&cluster, path, &["-H", &header]), code, "{path}");
    }
    // The administrator's certificate.
    let mut node = sampan_e2e::http::Http::new(&cluster);
    node.origin = format!("https://{}:10250", sampan_e2e::NODE);
    assert_eq!(node.get("/pods").code, 200);
}

const REMOTE: &str = "
apiVersion: v1
kind: Secret
metadata: {name: remote}
stringData: {word: hidden}
---
apiVersion: v1
kind: Secret
metadata: {name: elsewhere}
stringData: {word: unseen}
---
apiVersion: v1
kind: Pod
metadata: {name: remote, labels: {app: remote}}
spec:
  nodeName: node-2
  containers:
  - name: c
    image: localhost/sampan/busybox:1.35
    command: [sh, -c, 'echo begun; httpd -f -p 8080 -h /s']
    volumeMounts: [{name: s, mountPath: /s}]
  volumes: [{name: s, secret: {secretName: remote}}]
---
apiVersion: v1
kind: Service
metadata: {name: remote}
spec: {selector: {app: remote}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: local}
spec:
  nodeName: node-1
  containers:
  - name: c
    image: localhost/sampan/busybox:1.35
    command: [sleep, '100000']
";

/// A second machine: it joins with a token, runs Pods like any node, survives its agent's death, and may do no more than a node.
#[test]
fn a_machine_joins() {
    if !ready("a_machine_joins") {
        return;
    }
    let cluster = Cluster::start("join");
    let sampan = |words: &[&str]| {
        let mut command = cluster.lab.on_node(binary());
        output(
            command
                .arg("token")
                .args(words)
                .arg("--kubeconfig")
                .arg(cluster.kubeconfig()),
        )
    };
    let created = sampan(&["create", "--description", "for the test"]);
    let line = String::from_utf8_lossy(&created.stdout).trim().to_owned();
    let words: Vec<&str> = line.split(' ').collect();
    let ["sampan", "agent", "--server", server, "--token", token] = words[..] else {
        panic!("{created:?}");
    };
    let mut node = Joined::new(&cluster);
    // Without a token, and with one of another cluster, it does not get far.
    let refused = output(&mut node.command(&["--server", server]));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("give --token"),
        "{refused:?}"
    );
    let fingerprint = token.rsplit('.').next().unwrap_or_default();
    let foreign = token.replace(fingerprint, &"0".repeat(64));
    let refused = output(&mut node.command(&["--server", server, "--token", &foreign]));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("not the cluster of this token"),
        "{refused:?}"
    );
    let unknown = format!("zzzzzz{}", &token[6..]);
    let refused = output(&mut node.command(&["--server", server, "--token", &unknown]));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("does not know the token zzzzzz"),
        "{refused:?}"
    );

    node.start(&["--server", server, "--token", token]);
    node.wait("the node is Ready", || node.ready());
    let id = token.split('.').next().unwrap_or_default();
    assert!(String::from_utf8_lossy(&sampan(&["list"]).stdout).contains(id));
    assert!(sampan(&["delete", id]).status.success());

    cluster.apply(REMOTE);
    cluster.kubectl("wait --for=condition=Ready pod/remote pod/local --timeout=90s");
    node.wait("logs", || cluster.kubectl("logs remote").contains("begun"));
    assert_eq!(cluster.kubectl("exec remote -- cat /s/word"), "hidden");
    // Debian's static busybox has no working wget: this is one.
    let get = |cluster: &Cluster, address: &str, port: u16| {
        let command = format!("printf 'GET /word HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} {port} | tail -n 1");
        let page = cluster.try_kubectl_args(&["exec", "local", "--", "sh", "-c", &command]);
        page.unwrap_or_default() == "hidden"
    };
    let address = cluster.kubectl("get pod remote -o jsonpath={.status.podIP}");
    node.wait("a Pod reaches the other node's Pod", || get(&cluster, &address, 8080));
    let service = cluster.kubectl("get service remote -o jsonpath={.spec.clusterIP}");
    node.wait("a Pod reaches it by its Service", || get(&cluster, &service, 80));
    for pod in ["local", "remote"] {
        let words = format!("exec {pod} -- nslookup remote.default.svc.cluster.local");
        node.wait("names resolve on both nodes", || {
            cluster
                .try_kubectl(&words)
                .is_ok_and(|answer| answer.contains(&service))
        });
    }

    // The agent dies; what it ran goes on, and it needs no token to be the node again.
    node.kill();
    node.wait("the Pod still answers", || get(&cluster, &address, 8080));
    node.wait("the node is found lost", || !node.ready());
    node.start(&["--server", server]);
    node.wait("the node is back", || node.ready());
    assert_eq!(
        cluster.kubectl("get pod remote -o jsonpath={.status.containerStatuses[0].restartCount}"),
        "0"
    );
    assert_eq!(cluster.kubectl("exec remote -- cat /s/word"), "hidden");

    // Its certificate opens what a node needs, and nothing else.
    let pem = node.dir.path().join("pki/kubelet-client.pem");
    let code = |path: &str| {
        let url = format!("https://{}:6443{path}", sampan_e2e::NODE);
        let mut curl = cluster.lab.outside("curl");
        curl.args([
            "-sk",
            "--max-time",
            "10",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--cert",
        ])
        .arg(&pem)
        .arg("--key")
        .arg(&pem);
        String::from_utf8_lossy(&output(curl.arg(url)).stdout).into_owned()
    };
    for (path, expected) in [
        ("/api/v1/namespaces/default/secrets/remote", "200"),
        ("/api/v1/namespaces/default/secrets/elsewhere", "403"),
        ("/api/v1/namespaces/default/secrets", "403"),
        ("/api/v1/nodes/node-2", "200"),
        ("/api/v1/nodes/node-1", "403"),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-2", "200"),
        ("/api/v1/pods", "403"),
    ] {
        assert_eq!(code(path), expected, "{path}");
    }
    // The token is gone: nobody else joins with it.
    let other = tempfile::tempdir().expect("a directory");
    let mut late = cluster.lab.outside(binary());
    late.args(["agent", "--node-name", "node-3", "--data-dir"])
        .arg(other.path());
    let refused = output(late.args(["--server", server, "--token", token]));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("does not know the token"),
        "{refused:?}"
    );
}
