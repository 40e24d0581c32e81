//! A table of attempts that must fail: rights that are not there, identities that are not one's own, paths and requests
//! that are not what they seem. Each attempt is counted; one that gets through is named.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::common::Api;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use sampan_apiserver::InProcess;
use sampan_pki::token::TokenKeys;
use sampan_pki::{Identity, LeafSpec, tls};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::Service;

/// What was tried, and what got through.
#[derive(Default)]
pub struct Attempts {
    tried: usize,
    through: Vec<String>,
}

impl Attempts {
    pub fn note(&mut self, what: impl Into<String>, refused: bool) {
        self.tried += 1;
        if !refused {
            self.through.push(what.into());
        }
    }
    #[track_caller]
    pub fn all_refused(self, what: &str, at_least: usize) {
        println!(
            "{what}: {} attempts, {} refused",
            self.tried,
            self.tried - self.through.len()
        );
        assert_eq!(self.through, Vec::<String>::new(), "{what}: these got through");
        assert!(self.tried >= at_least, "{what}: only {} attempts", self.tried);
    }
}

pub async fn send(
    service: &InProcess,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> (u16, Value) {
    let content_type = match method {
        "PATCH" => "application/merge-patch+json",
        "APPLY" => "application/apply-patch+yaml",
        _ => "application/json",
    };
    let mut request = Request::builder()
        .method(if method == "APPLY" { "PATCH" } else { method })
        .uri(path)
        .header("content-type", content_type);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let response = service
        .clone()
        .call(request.body(Full::new(Bytes::from(body))).unwrap())
        .await
        .unwrap();
    let code = response.status().as_u16();
    if code == 200 && path.contains("watch=") {
        return (code, Value::Null);
    }
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

fn pod(name: &str, node: &str, secret: &str, account: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "nodeName": node, "serviceAccountName": account, "automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "s", "secret": {"secretName": secret}}, {"name": "m", "configMap": {"name": secret}}]}})
}

async fn make(api: &Api, namespace: &str, plural: &str, object: Value) {
    api.post(&format!("/api/v1/namespaces/{namespace}/{plural}"), object)
        .await
        .ok();
}

pub fn named(kind: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}})
}

#[tokio::test]
async fn a_node_stays_with_what_is_its_own() {
    let api = Api::start().await;
    for node in ["n1", "n2"] {
        api.post("/api/v1/nodes", named("Node", node)).await.ok();
    }
    for name in ["one", "two", "three"] {
        make(&api, "default", "secrets", named("Secret", name)).await;
        make(&api, "default", "configmaps", named("ConfigMap", name)).await;
        make(&api, "default", "serviceaccounts", named("ServiceAccount", name)).await;
    }
    make(&api, "default", "pods", pod("p1", "n1", "one", "one")).await;
    make(&api, "default", "pods", pod("p2", "n2", "two", "two")).await;
    let node = api.transport("system:node:n1", &["system:nodes", "system:authenticated"]);
    let n = "/api/v1/namespaces/default";
    assert_eq!(
        send(&node, "GET", &format!("{n}/secrets/one"), &[], Value::Null)
            .await
            .0,
        200
    );
    assert_eq!(
        send(&node, "GET", &format!("{n}/pods/p1"), &[], Value::Null).await.0,
        200
    );
    let token = |bound: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": bound}});
    let of_pod = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": name});
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "n2"}});
    let csi = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": "n2"}, "spec": {"drivers": []}});
    let mut mirror = pod("mirror", "n2", "two", "default");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    mirror["spec"]["volumes"] = json!([]);
    let mut own_mirror = pod("mirror", "n1", "three", "default");
    own_mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    let mut attempts = Attempts::default();
    for (method, path, body) in [
        ("GET", format!("{n}/secrets/two"), Value::Null),
        ("GET", format!("{n}/secrets/three"), Value::Null),
        ("GET", format!("{n}/secrets"), Value::Null),
        ("GET", "/api/v1/secrets".into(), Value::Null),
        ("GET", format!("{n}/secrets?watch=true"), Value::Null),
        (
            "GET",
            format!("{n}/secrets?fieldSelector=metadata.name%3Dtwo"),
            Value::Null,
        ),
        (
            "GET",
            "/api/v1/secrets?fieldSelector=metadata.name%3Done".into(),
            Value::Null,
        ),
        (
            "GET",
            "/api/v1/watch/namespaces/default/secrets/two".into(),
            Value::Null,
        ),
        ("GET", "/api/v1/namespaces/kube-system/secrets/one".into(), Value::Null),
        ("PUT", format!("{n}/secrets/one"), named("Secret", "one")),
        ("DELETE", format!("{n}/secrets/one"), Value::Null),
        ("GET", format!("{n}/configmaps/two"), Value::Null),
        ("GET", format!("{n}/configmaps"), Value::Null),
        ("PATCH", format!("{n}/configmaps/one"), json!({"data": {"a": "b"}})),
        ("GET", format!("{n}/persistentvolumeclaims"), Value::Null),
        ("GET", format!("{n}/persistentvolumeclaims/any"), Value::Null),
        ("GET", "/api/v1/persistentvolumes/any".into(), Value::Null),
        ("GET", format!("{n}/serviceaccounts/two"), Value::Null),
        ("GET", format!("{n}/pods/p2"), Value::Null),
        ("GET", format!("{n}/pods"), Value::Null),
        ("GET", "/api/v1/pods".into(), Value::Null),
        (
            "GET",
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2".into(),
            Value::Null,
        ),
        (
            "GET",
            "/api/v1/pods?fieldSelector=spec.nodeName!%3Dn1".into(),
            Value::Null,
        ),
        ("DELETE", format!("{n}/pods/p2"), Value::Null),
        (
            "PATCH",
            format!("{n}/pods/p2/status"),
            json!({"status": {"phase": "Failed"}}),
        ),
        (
            "PATCH",
            format!("{n}/pods/p1"),
            json!({"metadata": {"labels": {"a": "b"}}}),
        ),
        ("POST", format!("{n}/pods"), pod("q", "n1", "three", "default")),
        ("POST", format!("{n}/pods"), mirror),
        ("POST", format!("{n}/pods"), own_mirror),
        ("POST", format!("{n}/pods/p1/exec?command=sh"), Value::Null),
        ("POST", format!("{n}/serviceaccounts/two/token"), token(of_pod("p2"))),
        ("POST", format!("{n}/serviceaccounts/one/token"), token(of_pod("p2"))),
        ("POST", format!("{n}/serviceaccounts/one/token"), token(Value::Null)),
        ("POST", format!("{n}/serviceaccounts/three/token"), token(Value::Null)),
        ("GET", "/api/v1/nodes/n2".into(), Value::Null),
        ("GET", "/api/v1/nodes".into(), Value::Null),
        (
            "PATCH",
            "/api/v1/nodes/n2/status".into(),
            json!({"status": {"phase": "x"}}),
        ),
        (
            "PATCH",
            "/api/v1/nodes/n2".into(),
            json!({"metadata": {"labels": {"a": "b"}}}),
        ),
        (
            "PATCH",
            "/api/v1/nodes/n1".into(),
            json!({"metadata": {"labels": {"node-restriction.kubernetes.io/a": "b"}}}),
        ),
        (
            "PATCH",
            "/api/v1/nodes/n1".into(),
            json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
        ),
        ("DELETE", "/api/v1/nodes/n2".into(), Value::Null),
        ("GET", "/api/v1/nodes/n2/proxy/pods".into(), Value::Null),
        (
            "POST",
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases".into(),
            lease,
        ),
        (
            "GET",
            "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/x".into(),
            Value::Null,
        ),
        ("POST", "/apis/storage.k8s.io/v1/csinodes".into(), csi),
        ("GET", "/apis/storage.k8s.io/v1/csinodes/n2".into(), Value::Null),
        ("GET", "/apis/resource.k8s.io/v1/resourceslices".into(), Value::Null),
        (
            "GET",
            "/apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.nodeName%3Dn2".into(),
            Value::Null,
        ),
        (
            "GET",
            "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims".into(),
            Value::Null,
        ),
        (
            "GET",
            "/apis/storage.k8s.io/v1/volumeattachments/any".into(),
            Value::Null,
        ),
        (
            "GET",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles".into(),
            Value::Null,
        ),
    ] {
        let (code, answer) = send(&node, method, &path, &[], body).await;
        attempts.note(
            format!("{method} {path}: {code} {answer}"),
            matches!(code, 403 | 404 | 422),
        );
    }
    // Nobody is a node by half.
    for (name, groups) in [
        ("system:node:n1", &["system:authenticated"][..]),
        ("system:node:", &["system:nodes"]),
        ("n1", &["system:nodes"]),
        ("system:node:n1x", &["system:nodes"]),
    ] {
        let other = api.transport(name, groups);
        let (code, _) = send(&other, "GET", &format!("{n}/secrets/one"), &[], Value::Null).await;
        attempts.note(format!("{name} of {groups:?}"), code == 403);
    }
    attempts.all_refused("a node beyond its own", 55);
}

#[tokio::test]
async fn a_service_account_cannot_raise_itself() {
    let api = Api::start().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let own = format!("{rbac}/namespaces/default");
    make(&api, "default", "serviceaccounts", named("ServiceAccount", "robot")).await;
    make(
        &api,
        "kube-system",
        "serviceaccounts",
        named("ServiceAccount", "mighty"),
    )
    .await;
    let bind = |kind: &str, name: &str, role_kind: &str, role: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}]})
    };
    let role = |kind: &str, name: &str, group: &str, resources: &[&str], verbs: &[&str]| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name},
            "rules": [{"apiGroups": [group], "resources": resources, "verbs": verbs}]})
    };
    // It is the admin of its namespace, may write cluster-wide roles and bindings, and ask for certificates.
    api.post(
        &format!("{own}/rolebindings"),
        bind("RoleBinding", "admin", "ClusterRole", "admin"),
    )
    .await
    .ok();
    let writer = role(
        "ClusterRole",
        "writer",
        "rbac.authorization.k8s.io",
        &["clusterroles", "clusterrolebindings"],
        &["get", "list", "create", "update", "patch", "delete"],
    );
    api.post(&format!("{rbac}/clusterroles"), writer).await.ok();
    let asker = role(
        "ClusterRole",
        "asker",
        "certificates.k8s.io",
        &[
            "certificatesigningrequests",
            "certificatesigningrequests/approval",
            "certificatesigningrequests/status",
        ],
        &["create", "get", "update", "patch"],
    );
    api.post(&format!("{rbac}/clusterroles"), asker).await.ok();
    for name in ["writer", "asker"] {
        let binding = bind("ClusterRoleBinding", name, "ClusterRole", name);
        api.post(&format!("{rbac}/clusterrolebindings"), binding).await.ok();
    }
    api.post(&format!("{own}/roles"), role("Role", "mine", "", &["pods"], &["get"]))
        .await
        .ok();
    let robot = api.transport(
        "system:serviceaccount:default:robot",
        &[
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated",
        ],
    );
    // What it has it may pass on.
    let fine = role("Role", "fine", "", &["pods"], &["list"]);
    assert_eq!(send(&robot, "POST", &format!("{own}/roles"), &[], fine).await.0, 201);

    let all = ["*"];
    let mut labelled = role("ClusterRole", "labelled", "", &["nodes"], &["delete"]);
    labelled["metadata"]["labels"] = json!({"rbac.authorization.k8s.io/aggregate-to-admin": "true"});
    let mut gathering = role("ClusterRole", "gathering", "", &[], &[]);
    gathering["rules"] = json!([]);
    gathering["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]});
    let secrets = role("Role", "mine", "", &["secrets"], &["impersonate"]);
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let escalate = role(
        "ClusterRole",
        "up",
        "rbac.authorization.k8s.io",
        &["clusterroles"],
        &["escalate", "bind"],
    );
    let impersonate = role("ClusterRole", "as", "", &["users", "groups"], &["impersonate"]);
    let paths = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "paths"},
        "rules": [{"nonResourceURLs": ["*"], "verbs": ["*"]}]});
    let mut attempts = Attempts::default();
    for (method, path, body) in [
        ("POST", format!("{own}/roles"), role("Role", "all", "*", &all, &all)),
        (
            "POST",
            format!("{own}/roles"),
            role("Role", "nodes", "", &["nodes"], &["get"]),
        ),
        ("PUT", format!("{own}/roles/mine"), secrets.clone()),
        (
            "PATCH",
            format!("{own}/roles/mine"),
            json!({"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]}),
        ),
        (
            "APPLY",
            format!("{own}/roles/mine?fieldManager=x&force=true"),
            role("Role", "mine", "*", &all, &all),
        ),
        (
            "APPLY",
            format!("{own}/roles/fresh?fieldManager=x"),
            role("Role", "fresh", "*", &all, &all),
        ),
        (
            "POST",
            format!("{rbac}/clusterroles"),
            role("ClusterRole", "all", "*", &all, &all),
        ),
        ("POST", format!("{rbac}/clusterroles"), labelled),
        ("POST", format!("{rbac}/clusterroles"), gathering),
        ("POST", format!("{rbac}/clusterroles"), escalate),
        ("POST", format!("{rbac}/clusterroles"), impersonate),
        ("POST", format!("{rbac}/clusterroles"), paths),
        (
            "PATCH",
            format!("{rbac}/clusterroles/writer"),
            json!({"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]}),
        ),
        (
            "PATCH",
            format!("{rbac}/clusterroles/writer"),
            json!({"aggregationRule": {"clusterRoleSelectors": [{}]}}),
        ),
        (
            "PATCH",
            format!("{rbac}/clusterroles/view"),
            json!({"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["*"]}]}),
        ),
        (
            "POST",
            format!("{own}/rolebindings"),
            bind("RoleBinding", "up", "ClusterRole", "cluster-admin"),
        ),
        (
            "POST",
            format!("{own}/rolebindings"),
            bind("RoleBinding", "up", "ClusterRole", "system:node"),
        ),
        (
            "POST",
            format!("{own}/rolebindings"),
            bind("RoleBinding", "up", "ClusterRole", "no-such-role"),
        ),
        (
            "POST",
            format!("{rbac}/clusterrolebindings"),
            bind("ClusterRoleBinding", "up", "ClusterRole", "cluster-admin"),
        ),
        (
            "POST",
            format!("{rbac}/clusterrolebindings"),
            bind("ClusterRoleBinding", "up", "ClusterRole", "view"),
        ),
        (
            "PATCH",
            format!("{rbac}/clusterrolebindings/cluster-admin"),
            json!({"subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}]}),
        ),
        (
            "PUT",
            format!("{rbac}/clusterrolebindings/writer"),
            bind("ClusterRoleBinding", "writer", "ClusterRole", "cluster-admin"),
        ),
        (
            "APPLY",
            format!("{rbac}/clusterrolebindings/fresh?fieldManager=x"),
            bind("ClusterRoleBinding", "fresh", "ClusterRole", "cluster-admin"),
        ),
        (
            "POST",
            format!("{rbac}/namespaces/kube-system/rolebindings"),
            bind("RoleBinding", "up", "ClusterRole", "view"),
        ),
        (
            "POST",
            "/api/v1/namespaces/kube-system/serviceaccounts/mighty/token".into(),
            token,
        ),
        ("GET", "/api/v1/namespaces/kube-system/secrets".into(), Value::Null),
        (
            "PATCH",
            "/api/v1/namespaces/default".into(),
            json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}),
        ),
    ] {
        let (code, answer) = send(&robot, method, &path, &[], body).await;
        attempts.note(
            format!("{method} {path}: {code} {answer}"),
            matches!(code, 403 | 404 | 422),
        );
    }
    // A certificate for those who may everything, or one that it approves itself.
    let csr = |name: &str, signer: &str, organization: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "robot");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, organization);
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"signerName": signer, "usages": ["client auth"],
                "request": base64::engine::general_purpose::STANDARD.encode(pem)}})
    };
    let csrs = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let client = "kubernetes.io/kube-apiserver-client";
    let (code, answer) = send(&robot, "POST", csrs, &[], csr("masters", client, "system:masters")).await;
    attempts.note(format!("a request for system:masters: {code} {answer}"), code == 403);
    assert_eq!(
        send(&robot, "POST", csrs, &[], csr("devs", client, "devs")).await.0,
        201
    );
    let condition = json!({"type": "Approved", "status": "True", "reason": "x", "message": "x"});
    let mut approved = csr("devs", client, "devs");
    approved["status"] = json!({"conditions": [condition]});
    for (method, part, body) in [
        ("PUT", "approval", approved.clone()),
        ("PATCH", "approval", json!({"status": {"conditions": [condition]}})),
        ("PATCH", "status", json!({"status": {"certificate": "AAAA"}})),
    ] {
        let (code, answer) = send(&robot, method, &format!("{csrs}/devs/{part}"), &[], body).await;
        attempts.note(format!("{method} {part}: {code} {answer}"), matches!(code, 403 | 422));
    }
    // Somebody else's name.
    for headers in [
        &[("impersonate-user", "admin")][..],
        &[("impersonate-user", "system:serviceaccount:kube-system:mighty")],
        &[
            ("impersonate-user", "system:serviceaccount:default:robot"),
            ("impersonate-group", "system:masters"),
        ],
        &[("impersonate-user", "system:anonymous")],
        &[
            ("impersonate-user", "system:node:n1"),
            ("impersonate-group", "system:nodes"),
        ],
        &[("impersonate-group", "system:masters")],
        &[("impersonate-uid", "1")],
        &[("impersonate-extra-scopes", "all")],
        &[("impersonate-user", "x"), ("impersonate-uid", "1")],
        &[("impersonate-user", "x"), ("impersonate-extra-a%2fb", "1")],
    ] {
        let (code, answer) = send(&robot, "GET", "/api/v1/namespaces/default/pods", headers, Value::Null).await;
        attempts.note(format!("{headers:?}: {code} {answer}"), matches!(code, 400 | 403));
    }
    attempts.all_refused("a service account raising itself", 40);
}

/// One request over TLS as it stands; everything that comes back.
pub async fn raw(api: &Api, identity: Option<&Identity>, alpn: &str, bytes: &[u8]) -> Vec<u8> {
    let config = tls::client_config(api.server.pki.ca(), identity, &[alpn]).unwrap();
    let stream = TcpStream::connect(api.server.address).await.unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
    let Ok(mut socket) = tokio_rustls::TlsConnector::from(config).connect(name, stream).await else {
        return Vec::new();
    };
    if socket.write_all(bytes).await.is_err() {
        return Vec::new();
    }
    let mut all = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    // What is refused without an answer must not be waited for long.
    while let Ok(Ok(read)) = tokio::time::timeout(Duration::from_millis(700), socket.read(&mut buffer)).await {
        if read == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..read]);
    }
    all
}

async fn get(api: &Api, identity: Option<&Identity>, path: &str, headers: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    let answer = raw(api, identity, "http/1.1", request.as_bytes()).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (code, text)
}

#[tokio::test]
async fn credentials_that_are_none() {
    let api = Api::start().await;
    let pki = api.server.pki.clone();
    let mut attempts = Attempts::default();
    make(&api, "default", "serviceaccounts", named("ServiceAccount", "robot")).await;
    let account = api.get("/api/v1/namespaces/default/serviceaccounts/robot").await.ok();
    let uid = account["metadata"]["uid"].as_str().unwrap().to_owned();
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let keys = pki.tokens();
    let now = jiff::Timestamp::now().as_second();
    let claims = |change: &dyn Fn(&mut Value)| {
        let mut claims = json!({"aud": [keys.issuer()], "exp": now + 600, "iat": now, "nbf": now, "iss": keys.issuer(),
            "sub": "system:serviceaccount:default:robot", "jti": "1",
            "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "robot", "uid": uid}}});
        change(&mut claims);
        keys.sign_claims(&claims).unwrap()
    };
    let good = claims(&|_| {});
    assert_eq!(get(&api, None, "/api", &bearer(&good)).await.0, 200);
    let (head, rest) = good.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let symmetric = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let stranger = TokenKeys::ephemeral(keys.issuer()).unwrap();
    let mut tokens = vec![
        ("expired", claims(&|c| c["exp"] = (now - 120).into())),
        ("not yet", claims(&|c| c["nbf"] = (now + 600).into())),
        ("of the future", claims(&|c| c["iat"] = (now + 600).into())),
        ("without an end", claims(&|c| c["exp"] = Value::Null)),
        ("for somebody else", claims(&|c| c["aud"] = json!(["vault"]))),
        (
            "of another issuer",
            claims(&|c| c["iss"] = "https://evil.example".into()),
        ),
        (
            "of another account",
            claims(&|c| c["sub"] = "system:serviceaccount:kube-system:mighty".into()),
        ),
        (
            "of an account that is gone",
            claims(&|c| c["kubernetes.io"]["serviceaccount"]["uid"] = "old".into()),
        ),
        (
            "of a Pod that never was",
            claims(&|c| c["kubernetes.io"]["pod"] = json!({"name": "p", "uid": "u"})),
        ),
        (
            "of a Secret that never was",
            claims(&|c| c["kubernetes.io"]["secret"] = json!({"name": "p", "uid": "u"})),
        ),
        (
            "of a Node that never was",
            claims(&|c| c["kubernetes.io"]["node"] = json!({"name": "p", "uid": "u"})),
        ),
        ("legacy without a Secret", {
            let account = sampan_pki::token::ObjectRef::new("robot", uid.clone());
            let claims = sampan_pki::token::LegacyClaims {
                namespace: "default".into(),
                service_account: account,
                secret: "none".into(),
            };
            keys.issue_legacy(&claims).unwrap()
        }),
        ("unsigned", format!("{none}.{payload}.")),
        ("unsigned, with a signature", format!("{none}.{payload}.{signature}")),
        ("symmetric", format!("{symmetric}.{payload}.{signature}")),
        ("cut", format!("{head}.{payload}.{}", &signature[..20])),
        ("without a signature", format!("{head}.{payload}.")),
        (
            "of a stranger",
            stranger
                .sign_claims(&json!({"iss": keys.issuer(), "exp": now + 600}))
                .unwrap(),
        ),
        ("nothing", "x".into()),
        ("points", "..".into()),
        ("a bootstrap token that never was", "abc123.0123456789abcdef".into()),
    ];
    // Replayed after the Pod is gone, and after its name is another's.
    make(&api, "default", "pods", pod("p", "", "x", "robot")).await;
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}}});
    let issued = api
        .post("/api/v1/namespaces/default/serviceaccounts/robot/token", request)
        .await
        .ok();
    let of_pod = issued["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(get(&api, None, "/api", &bearer(&of_pod)).await.0, 200);
    api.delete("/api/v1/namespaces/default/pods/p?gracePeriodSeconds=0")
        .await
        .ok();
    attempts.note(
        "replayed after the Pod is gone",
        get(&api, None, "/api", &bearer(&of_pod)).await.0 == 401,
    );
    make(&api, "default", "pods", pod("p", "", "x", "robot")).await;
    tokens.push(("replayed by a Pod of the same name", of_pod));
    for (what, token) in &tokens {
        let (code, text) = get(&api, None, "/api", &bearer(token)).await;
        let learned = ["expired", "audience", "signature", "invalid", "not found"]
            .iter()
            .any(|word| text.contains(word));
        attempts.note(format!("a token {what}: {code} {text}"), code == 401 && !learned);
    }
    for headers in [
        "Authorization: Basic YWRtaW46YWRtaW4=\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer \r\n",
        "Authorization: Negotiate x\r\n",
    ] {
        attempts.note(headers, get(&api, None, "/api", headers).await.0 == 401);
    }

    // Certificates.
    let file = |name: &str| std::fs::read_to_string(api.server.dir().join("pki").join(name)).unwrap();
    let ours = || {
        rcgen::Issuer::from_ca_cert_pem(&file("ca.crt"), rcgen::KeyPair::from_pem(&file("ca.key")).unwrap()).unwrap()
    };
    let theirs = || {
        let name = "front-proxy-ca";
        let key = rcgen::KeyPair::from_pem(&file(&format!("{name}.key"))).unwrap();
        rcgen::Issuer::from_ca_cert_pem(&file(&format!("{name}.crt")), key).unwrap()
    };
    let certificate = |from: i32, until: i32, client: bool, by: Option<rcgen::Issuer<'static, rcgen::KeyPair>>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "kubernetes-admin");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "system:masters");
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.extended_key_usages = vec![match client {
            true => rcgen::ExtendedKeyUsagePurpose::ClientAuth,
            false => rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        }];
        let made = match by {
            Some(issuer) => params.signed_by(&key, &issuer).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        Identity::parse(made.pem(), key.serialize_pem()).unwrap()
    };
    let fine = certificate(2020, 2099, true, Some(ours()));
    assert_eq!(get(&api, Some(&fine), "/api/v1/nodes", "").await.0, 200);
    for (what, identity) in [
        ("expired", certificate(2010, 2020, true, Some(ours()))),
        ("not yet valid", certificate(2090, 2099, true, Some(ours()))),
        ("for servers", certificate(2020, 2099, false, Some(ours()))),
        ("of nobody", certificate(2020, 2099, true, None)),
        (
            "of the front proxy's authority",
            certificate(2020, 2099, true, Some(theirs())),
        ),
    ] {
        let (code, text) = get(&api, Some(&identity), "/api/v1/nodes", "").await;
        attempts.note(format!("a certificate {what}: {code} {text}"), code == 401 || code == 0);
    }

    // Names in headers, from anybody but the front proxy.
    let joe = pki.issue(&LeafSpec::client("joe", None)).unwrap();
    let lookalike = pki.issue(&LeafSpec::client("front-proxy-client", None)).unwrap();
    let spoof = "X-Remote-User: kubernetes-admin\r\nX-Remote-Group: system:masters\r\n";
    for (what, identity, headers, expected) in [
        ("nobody", None, spoof, 401),
        ("joe", Some(&joe), spoof, 403),
        ("a look-alike", Some(&lookalike), spoof, 403),
        (
            "joe in lower case",
            Some(&joe),
            "x-remote-user: admin\r\nx-remote-group: system:masters\r\n",
            403,
        ),
        (
            "joe forwarded",
            Some(&joe),
            "X-Forwarded-User: admin\r\nX-Forwarded-Groups: system:masters\r\n",
            403,
        ),
        (
            "joe as another",
            Some(&joe),
            "Impersonate-User: kubernetes-admin\r\nImpersonate-Group: system:masters\r\n",
            403,
        ),
        (
            "joe with extras",
            Some(&joe),
            "X-Remote-Extra-Scopes: all\r\nX-Remote-Uid: 0\r\n",
            403,
        ),
        (
            "nobody impersonating",
            None,
            "Impersonate-User: kubernetes-admin\r\n",
            401,
        ),
        (
            "an expired proxy",
            Some(&certificate(2010, 2020, true, Some(theirs()))),
            spoof,
            401,
        ),
    ] {
        let (code, text) = get(&api, identity, "/api/v1/nodes", headers).await;
        attempts.note(format!("{what}: {code} {text}"), code == expected);
    }
    attempts.all_refused("credentials that are none", 40);
}

#[tokio::test]
async fn paths_and_requests_that_are_not_what_they_seem() {
    let api = Api::start().await;
    let mut secret = named("Secret", "treasure");
    secret["stringData"] = json!({"a": "b"});
    make(&api, "kube-system", "secrets", secret.clone()).await;
    make(&api, "default", "secrets", secret).await;
    // Joe may read Pods of one namespace, and all that is open to everybody.
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "pods"},
        "rules": [{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}]});
    api.post(&format!("{rbac}/roles"), role).await.ok();
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "pods"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pods"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "joe"}]});
    api.post(&format!("{rbac}/rolebindings"), binding).await.ok();
    let joe = api.server.pki.issue(&LeafSpec::client("joe", None)).unwrap();
    assert_eq!(
        get(&api, Some(&joe), "/api/v1/namespaces/default/pods", "").await.0,
        200
    );
    let mut attempts = Attempts::default();
    let d = "/api/v1/namespaces/default";
    for path in [
        "/api/v1/secrets".to_owned(),
        "/api/v1/secrets/".into(),
        "//api/v1/secrets".into(),
        "/api//v1/secrets".into(),
        "/api/v1//secrets".into(),
        "/api/v1/./secrets".into(),
        "/./api/v1/secrets".into(),
        "/API/V1/SECRETS".into(),
        "/Api/v1/secrets".into(),
        "/api/v1/Secrets".into(),
        "/api/v1/secrets;".into(),
        "/api/v1/secrets;a=b".into(),
        "/api/v1/secrets.".into(),
        "/api/v1/secrets%20".into(),
        "/api/v1/secrets%00".into(),
        "/api/v1/secrets%2f".into(),
        "/api/v1/secrets%3fwatch=1".into(),
        "/api/v1/watch/secrets".into(),
        "/%61pi/v1/secrets".into(),
        "/api/v1/%73ecrets".into(),
        "/api%2fv1%2fsecrets".into(),
        "/healthz/../api/v1/secrets".into(),
        "/healthz/%2e%2e/api/v1/secrets".into(),
        "/healthz/..%2fapi/v1/secrets".into(),
        "/healthz%2f..%2fapi%2fv1%2fsecrets".into(),
        "/version/../api/v1/secrets".into(),
        "/version/..;/api/v1/secrets".into(),
        "/openapi/../api/v1/secrets".into(),
        format!("{d}/../kube-system/secrets"),
        format!("{d}/%2e%2e/kube-system/secrets"),
        format!("{d}/..%2fkube-system%2fsecrets"),
        format!("{d}%2f..%2fkube-system/secrets"),
        format!("{d}/pods/../secrets"),
        format!("{d}/pods/../secrets/treasure"),
        format!("{d}/pods/%2e%2e/secrets"),
        format!("{d}/pods/%2e%2e%2fsecrets%2ftreasure"),
        format!("{d}/pods/..%2fsecrets"),
        format!("{d}/pods/..\\secrets"),
        format!("{d}/pods/.%2e/secrets/treasure"),
        format!("{d}/pods;/../secrets"),
        format!("{d}/pods/..;/secrets"),
        format!("{d}/pods/x/../../secrets"),
        format!("{d}/pods/x/log/../../../secrets"),
        format!("{d}/pods/%252e%252e/secrets"),
        format!("{d}/pods/%c0%ae%c0%ae/secrets"),
        format!("{d}/secrets?fieldSelector=metadata.name%3Dpods"),
        format!("{d}./secrets"),
        format!("{d}%00/secrets"),
        "/api/v1/namespaces/kube-system%2f/secrets".into(),
        "/api/v1/namespaces//secrets".into(),
        "/api/v1/namespaces/*/secrets".into(),
        "/api/v1/namespaces/default,kube-system/secrets".into(),
        "https://x/api/v1/secrets".into(),
        "http://127.0.0.1/api/v1/secrets".into(),
        "/apis/../api/v1/secrets".into(),
        "/apis//v1/secrets".into(),
    ] {
        let (code, text) = get(&api, Some(&joe), &path, "").await;
        attempts.note(
            format!("{path}: {code} {text}"),
            !text.contains("treasure\"") && !(200..300).contains(&code),
        );
    }
    // What changes the meaning of a request.
    for headers in [
        "X-HTTP-Method-Override: DELETE\r\n",
        "X-Original-URL: /api/v1/secrets\r\n",
        "X-Rewrite-URL: /api/v1/secrets\r\n",
        "X-Forwarded-Prefix: /api/v1/secrets\r\n",
        "X-Forwarded-For: 127.0.0.1\r\n",
    ] {
        let (_, text) = get(&api, Some(&joe), &format!("{d}/pods"), headers).await;
        attempts.note(
            format!("{headers}: {text}"),
            text.contains("PodList") && !text.contains("treasure\""),
        );
    }

    // A second request inside the first: it must not be answered.
    let inner = format!("GET {d}/pods HTTP/1.1\r\nHost: x\r\n\r\n");
    let length = inner.len();
    let post = "POST /apis/authentication.k8s.io/v1/selfsubjectreviews HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    for (what, request) in [
        (
            "two lengths",
            format!("{post}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{inner}"),
        ),
        (
            "two lengths in one",
            format!("{post}Content-Length: 0, {length}\r\n\r\n{inner}"),
        ),
        (
            "a length with a sign",
            format!("{post}Content-Length: +{length}\r\n\r\n{inner}"),
        ),
        ("a negative length", format!("{post}Content-Length: -1\r\n\r\n{inner}")),
        (
            "a length in hexadecimal",
            format!("{post}Content-Length: 0x0\r\n\r\n{inner}"),
        ),
        (
            "a length that overflows",
            format!("{post}Content-Length: 18446744073709551616\r\n\r\n{inner}"),
        ),
        (
            "chunked that is not last",
            format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}"),
        ),
        (
            "an unknown coding",
            format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"),
        ),
        (
            "a chunk without a size",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n\r\n\r\n{inner}"),
        ),
        (
            "a chunk of no number",
            format!("{post}Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n{inner}"),
        ),
        (
            "a negative chunk",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n{inner}"),
        ),
        (
            "a chunk that overflows",
            format!("{post}Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n\r\n{inner}"),
        ),
        (
            "a chunk with a wrong end",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n{inner}"),
        ),
        (
            "a folded header",
            format!("{post}X-A: b\r\n Content-Length: 0\r\n\r\n{inner}"),
        ),
        (
            "a folded coding",
            format!("{post}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{inner}"),
        ),
        (
            "a blank before the colon",
            format!("{post}Content-Length : 0\r\n\r\n{inner}"),
        ),
        ("a blank in the name", format!("{post}Content Length: 0\r\n\r\n{inner}")),
        (
            "a NUL in a header",
            format!("{post}X-A: a\0b\r\nContent-Length: 0\r\n\r\n{inner}"),
        ),
        ("no version", format!("GET /api/v1/secrets\r\n\r\n{inner}")),
        (
            "an unknown version",
            format!("GET /version HTTP/9.9\r\nHost: x\r\n\r\n{inner}"),
        ),
        (
            "a blank in the target",
            format!("GET /version x HTTP/1.1\r\nHost: x\r\n\r\n{inner}"),
        ),
    ] {
        let answer = raw(&api, Some(&joe), "http/1.1", request.as_bytes()).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        attempts.note(format!("{what}: {text}"), !text.contains("PodList"));
    }

    // HTTP/2: what stands for the first line, twice, misplaced, or not at all.
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    };
    let literal = |name: &str, value: &str| {
        let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
        bytes.extend(name.as_bytes());
        bytes.push(u8::try_from(value.len()).unwrap());
        bytes.extend(value.as_bytes());
        bytes
    };
    let block = |fields: &[(&str, &str)]| {
        fields
            .iter()
            .flat_map(|(name, value)| literal(name, value))
            .collect::<Vec<u8>>()
    };
    let request = |fields: &[(&str, &str)]| {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(1, 5, 1, &block(fields)));
        bytes
    };
    let answered = |bytes: &[u8]| {
        // A head whose first field is the status 200 of the static table.
        let mut rest = bytes;
        while let [a, b, c, kind, _flags, _s @ ..] = rest {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if *kind == 1 && rest.get(9) == Some(&0x88) {
                return true;
            }
            rest = rest.get(9 + length..).unwrap_or_default();
        }
        false
    };
    let (method, scheme, authority) = ((":method", "GET"), (":scheme", "https"), (":authority", "x"));
    let path = (":path", "/version");
    assert!(answered(
        &raw(&api, Some(&joe), "h2", &request(&[method, scheme, authority, path])).await
    ));
    let secrets = (":path", "/api/v1/secrets");
    for fields in [
        vec![method, scheme, authority, path, secrets],
        vec![method, scheme, authority, secrets, path],
        vec![method, method, scheme, authority, path],
        vec![method, scheme, authority],
        vec![method, authority, path],
        vec![scheme, authority, path],
        vec![method, scheme, authority, (":path", "")],
        vec![method, scheme, authority, (":path", "version")],
        vec![method, scheme, authority, path, ("connection", "close")],
        vec![method, scheme, authority, path, ("transfer-encoding", "chunked")],
        vec![method, scheme, authority, path, ("X-Upper", "a")],
        vec![method, scheme, authority, path, (":status", "200")],
        vec![method, scheme, authority, path, (":unknown", "a")],
        vec![("a", "b"), method, scheme, authority, path],
        vec![method, scheme, authority, path, ("content-length", "5")],
        vec![method, scheme, authority, (":path", "/version\r\nX: y")],
        vec![
            method,
            scheme,
            authority,
            (":path", "/api/v1/namespaces/default/pods/../secrets"),
        ],
    ] {
        let bytes = raw(&api, Some(&joe), "h2", &request(&fields)).await;
        attempts.note(format!("HTTP/2 {fields:?}"), !answered(&bytes));
    }
    // A length that is too much for what follows is told by the end of the stream; the rest must not be taken.
    attempts.all_refused("paths and requests that are not what they seem", 95);
}
