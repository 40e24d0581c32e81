//! A table of attempts to take rights that are not there, by a node and by a service account. Each attempt is counted; one that gets
//! through is named.

use crate::attempts::{Attempts, make, named, pod, send};
use crate::common::Api;
use base64::Engine;
use serde_json::{Value, json};

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
