//! Nodes and their own servers: who may ask what of a node, and machines that join a cluster.

use sampan_e2e::{Cluster, output, ready};

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
