//! Certificate requests on the real API server: who is approved without a person, what is signed, and that the API server
//! then believes the certificate.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::certificates::v1::CertificateSigningRequest as Csr;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use sampan_apiserver::testing::TestServer;
use sampan_auth::UserInfo;
use sampan_client::Informers;
use sampan_controllers::{Config, Controllers, Signing};
use sampan_pki::request::ask;
use sampan_pki::{LeafSpec, Subject};
use serde_json::json;

const JOINING: [&str; 3] = [
    "system:bootstrappers",
    "system:bootstrappers:sampan:nodes",
    "system:authenticated",
];

async fn eventually<T, F, Fut>(what: &str, mut check: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let begun = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn start() -> TestServer {
    let server = TestServer::start().await.unwrap();
    let plane = Arc::clone(&server.plane);
    let client_for = move |name: &str| {
        let groups = [
            "system:serviceaccounts",
            "system:serviceaccounts:kube-system",
            "system:authenticated",
        ];
        sampan_client::connect(plane.connect(UserInfo::new(name, groups)))
    };
    let manager = UserInfo::new("system:kube-controller-manager", ["system:authenticated"]);
    let informers = Informers::new(sampan_client::connect(server.plane.connect(manager)), &server.tasks);
    let config = Config {
        signing: Some(Signing {
            signer: server.pki.signer(),
            duration: Duration::from_secs(86_400),
        }),
        ..Config::default()
    };
    Controllers::start(config, client_for, &informers, &server.tasks).unwrap();
    server
}

fn user(server: &TestServer, name: &str, groups: &[&str]) -> Client {
    let user = UserInfo::new(name, groups.iter().map(|group| (*group).to_owned()));
    sampan_client::connect(server.plane.connect(user))
}

async fn request(client: &Client, name: &str, signer: &str, usage: &str, spec: &LeafSpec) -> String {
    let (key, pem) = ask(spec).unwrap();
    let csr: Csr = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"request": k8s_openapi::ByteString(pem.into_bytes()), "signerName": signer, "usages": ["digital signature", usage]}
    }))
    .unwrap();
    let api: Api<Csr> = Api::all(client.clone());
    api.create(&PostParams::default(), &csr).await.unwrap();
    key
}

async fn issued(admin: &Api<Csr>, name: &str) -> String {
    eventually(&format!("{name} is issued"), || async {
        let csr = admin.get(name).await.unwrap();
        let bytes = csr.status?.certificate?.0;
        Some(String::from_utf8(bytes).unwrap())
    })
    .await
}

fn conditions(csr: &Csr) -> Vec<(String, String)> {
    let conditions = csr.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .map(|c| (c.type_.clone(), c.message.clone().unwrap_or_default()))
        .collect()
}

fn node_client(name: &str) -> LeafSpec {
    LeafSpec::client(&format!("system:node:{name}"), Some("system:nodes"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_joins_and_renews() {
    const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
    let server = start().await;
    let admin: Api<Csr> = Api::all(sampan_client::connect(server.connect()));
    // With the token's groups: any node's first certificate.
    let joining = user(&server, "system:bootstrap:abcdef", &JOINING);
    let key = request(&joining, "join", SIGNER, "client auth", &node_client("n1")).await;
    let certificate = issued(&admin, "join").await;
    assert_eq!(
        conditions(&admin.get("join").await.unwrap())[0].1,
        "Auto approving kubelet client certificate after SubjectAccessReview."
    );
    // The API server takes it for the node.
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}], \
         clusters: [{{name: c, cluster: {{server: \"{}\", certificate-authority-data: {}}}}}], \
         users: [{{name: u, user: {{client-certificate-data: {}, client-key-data: {}}}}}]}}",
        server.url(), base64(&server.pki.ca_pem()), base64(&certificate), base64(&key)
    ))
    .unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .unwrap();
    let own = Client::try_from(config).unwrap();
    let nodes: Api<Node> = Api::all(own.clone());
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let other: Node = serde_json::from_value(json!({"metadata": {"name": "n2"}})).unwrap();
    assert_eq!(code(nodes.create(&PostParams::default(), &other).await), 403);
    // It renews its own, and gets nobody else's.
    request(&own, "renew", SIGNER, "client auth", &node_client("n1")).await;
    let renewed = issued(&admin, "renew").await;
    assert_eq!(subject(&renewed).common_name, "system:node:n1");
    // With its own address it may serve, once it has told of it.
    let mut serving = LeafSpec::server("system:node:n1", ["n1".to_owned()], ["192.0.2.17".parse().unwrap()]);
    serving.organization = Some("system:nodes".into());
    request(&own, "serve", "kubernetes.io/kubelet-serving", "server auth", &serving).await;
    let addresses = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.17"}]}});
    nodes
        .patch_status("n1", &PatchParams::default(), &Patch::Merge(addresses))
        .await
        .unwrap();
    issued(&admin, "serve").await;
    // And its service proxy gets the name proxies have.
    request(
        &own,
        "proxy",
        "kubernetes.io/kube-apiserver-client",
        "client auth",
        &LeafSpec::client("system:kube-proxy", None),
    )
    .await;
    assert_eq!(subject(&issued(&admin, "proxy").await).common_name, "system:kube-proxy");

    // What must not be let through, and stays for a person.
    let refused = [
        ("other-node", SIGNER, "client auth", node_client("n2")),
        (
            "an-admin",
            "kubernetes.io/kube-apiserver-client",
            "client auth",
            LeafSpec::client("admin", None),
        ),
        ("other-address", "kubernetes.io/kubelet-serving", "server auth", {
            let mut spec = serving.clone();
            spec.addresses = ["192.0.2.18".parse().unwrap()].into();
            spec
        }),
        ("api-server", "kubernetes.io/kubelet-serving", "server auth", {
            let mut spec = serving.clone();
            spec.dns_names = ["kubernetes.default.svc".to_owned()].into();
            spec
        }),
    ];
    for (name, signer, usage, spec) in &refused {
        request(&own, name, signer, usage, spec).await;
    }
    // CertificateSubjectRestriction refuses masters before anybody decides.
    let masters = ask(&LeafSpec::client("jane", Some("system:masters"))).unwrap().1;
    let csr: Csr = serde_json::from_value(
        json!({"metadata": {"name": "masters"}, "spec": {"request": k8s_openapi::ByteString(masters.into_bytes()),
        "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}}),
    )
    .unwrap();
    let requests: Api<Csr> = Api::all(own);
    assert_eq!(code(requests.create(&PostParams::default(), &csr).await), 403);
    // A stranger asking for a node's certificate needs the right for it.
    let jane = user(&server, "jane", &["system:masters", "system:authenticated"]);
    request(&jane, "by-admin", SIGNER, "client auth", &node_client("n9")).await;
    issued(&admin, "by-admin").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (name, ..) in &refused {
        let csr = admin.get(name).await.unwrap();
        assert_eq!(conditions(&csr), [], "{name}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_approves_and_the_rules_still_hold() {
    const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
    let server = start().await;
    let client = sampan_client::connect(server.connect());
    let admin: Api<Csr> = Api::all(client.clone());
    for (name, usage) in [
        ("jane", "client auth"),
        ("wrong", "server auth"),
        ("never", "client auth"),
    ] {
        request(&client, name, SIGNER, usage, &LeafSpec::client(name, Some("dev"))).await;
        let mut csr = admin.get(name).await.unwrap();
        let kind = if name == "never" { "Denied" } else { "Approved" };
        let status =
            json!({"conditions": [{"type": kind, "status": "True", "reason": "Test", "message": "by a person"}]});
        csr.status = serde_json::from_value(status).unwrap();
        admin
            .replace_subresource("approval", name, &PostParams::default(), &csr)
            .await
            .unwrap();
    }
    let certificate = issued(&admin, "jane").await;
    assert_eq!(
        subject(&certificate),
        Subject {
            common_name: "jane".into(),
            organizations: vec!["dev".into()]
        }
    );
    let failed = eventually("the wrong one fails", || async {
        let csr = admin.get("wrong").await.unwrap();
        conditions(&csr).into_iter().find(|(kind, _)| kind == "Failed")
    })
    .await;
    assert_eq!(failed.1, "invalid usage for client certificate: server auth");
    assert!(admin.get("never").await.unwrap().status.unwrap().certificate.is_none());
    server.stop().await;
}

fn subject(pem: &str) -> Subject {
    use rustls_pki_types::pem::PemObject;
    let der = rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    Subject::of(&der).unwrap()
}

fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("{other:?}"),
    }
}

fn base64(text: &str) -> String {
    serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec()))
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned()
}
