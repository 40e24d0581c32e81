//! In-process admission plugins on a whole control plane: Pod security, volumes in use, topology labels, certificates.

mod common;

use common::{Api, pod};
use serde_json::{Value, json};

async fn namespace(api: &Api, name: &str, labels: Value) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    api.post("/api/v1/namespaces", namespace).await.ok();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post(&format!("/api/v1/namespaces/{name}/serviceaccounts"), account)
        .await
        .ok();
}

#[tokio::test]
async fn namespaces_hold_their_pods_to_a_standard() {
    let api = Api::start().await;
    namespace(
        &api,
        "strict",
        json!({"pod-security.kubernetes.io/enforce": "baseline"}),
    )
    .await;
    let pods = "/api/v1/namespaces/strict/pods";
    api.post(pods, pod("plain")).await.ok();
    let mut host = pod("host");
    host["spec"]["hostNetwork"] = true.into();
    api.post(pods, host.clone()).await.refused(
        403,
        "Forbidden",
        "pods \"host\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)",
    );
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": host["spec"]}}});
    let made = api
        .post("/apis/apps/v1/namespaces/strict/deployments", deployment)
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    let warning = made
        .headers
        .get("warning")
        .and_then(|text| text.to_str().ok())
        .unwrap_or_default();
    assert_eq!(
        warning,
        "299 - \"would violate PodSecurity \\\"baseline:latest\\\": host namespaces (hostNetwork=true)\""
    );
    let label = |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let stricter = api.merge("/api/v1/namespaces/strict", label("restricted")).await;
    let warnings: Vec<&str> = stricter
        .headers
        .get_all("warning")
        .iter()
        .filter_map(|text| text.to_str().ok())
        .collect();
    assert!(
        warnings[0].contains("existing pods in namespace \\\"strict\\\" violate the new PodSecurity enforce level \\\"restricted:latest\\\""),
        "{warnings:?}"
    );
    assert!(
        warnings[1].contains("plain: allowPrivilegeEscalation != false, "),
        "{warnings:?}"
    );
    api.merge("/api/v1/namespaces/strict", label("nonsense")).await.refused(
        422,
        "Invalid",
        "Namespace \"strict\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"nonsense\": must be one of privileged, baseline, restricted",
    );
}

#[tokio::test]
async fn volumes_nodes_and_certificates() {
    let api = Api::start().await;
    namespace(&api, "n", json!({})).await;
    let claims = "/api/v1/namespaces/n/persistentvolumeclaims";
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "s", "resources": {"requests": {"storage": "1Gi"}}}});
    let mut made = api.post(claims, claim).await.ok();
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    made["status"] = json!({"phase": "Bound"});
    api.put(&format!("{claims}/c/status"), made).await.ok();
    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    api.merge(&format!("{claims}/c"), larger).await.refused(
        403,
        "Forbidden",
        "persistentvolumeclaims \"c\" is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    );

    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1", "labels": {
        "topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "other": "x"}}});
    api.post("/api/v1/nodes", node).await.ok();
    let pods = "/api/v1/namespaces/n/pods";
    api.post(pods, pod("p")).await.ok();
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "node-1"}});
    api.post(&format!("{pods}/p/binding"), binding).await.ok();
    let bound = api.get(&format!("{pods}/p")).await.ok();
    assert_eq!(
        bound["metadata"]["labels"],
        json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"})
    );
}
