//! Resource metrics over nodes' servers made here.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use sampan_pki::tls::{self, ClientVerifier};
use sampan_tasks::OnExit;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::common::{Api, pod};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";

/// A node that uses half a core since it was started, and runs a Pod `p` with two containers that use a quarter and an
/// eighth; `p` of it counts how often it was asked.
async fn node(api: &Api, name: &str, ready: &str) -> Arc<AtomicU32> {
    let identity = api.server.pki.node_serving(name, &[LOOPBACK]).unwrap();
    let verifier = ClientVerifier::new(api.server.pki.ca()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls::strict_server_config(&identity, &verifier).unwrap());
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let (counter, start, tasks) = (asked.clone(), Instant::now(), api.server.tasks.clone());
    api.server
        .tasks
        .spawn_until_drain("fake node", OnExit::Expected, async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counter) = (acceptor.clone(), counter.clone());
                tasks.spawn_until_drain("fake node connection", OnExit::Expected, async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        assert_eq!(request.uri(), "/metrics/resource");
                        counter.fetch_add(1, Ordering::SeqCst);
                        let seconds = start.elapsed().as_secs_f64() + 100.0;
                        let (now, began) = (Timestamp::now(), Timestamp::now().as_second() - 100);
                        let mut text = format!("node_cpu_usage_seconds_total {} {}\n", seconds / 2.0, now.as_millisecond());
                        text += "node_memory_working_set_bytes 1048576\n";
                        for (container, part) in [("a", 4.0), ("b", 8.0)] {
                            let labels = format!("{{container=\"{container}\",namespace=\"default\",pod=\"p\"}}");
                            text += &format!("container_cpu_usage_seconds_total{labels} {} {}\n", seconds / part, now.as_millisecond());
                            text += &format!("container_memory_working_set_bytes{labels} 2048\ncontainer_start_time_seconds{labels} {began}\n");
                        }
                        async move { Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from(text))) }
                    });
                    let _ended = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    let labels = json!({"role": name});
    api.post(
        "/api/v1/nodes",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}),
    )
    .await
    .ok();
    let status = json!({"status": {
        "conditions": [{"type": "Ready", "status": ready}],
        "addresses": [{"type": "InternalIP", "address": address.ip().to_string()}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}}}});
    api.merge(&format!("/api/v1/nodes/{name}/status"), status).await.ok();
    asked
}

async fn run(api: &Api, name: &str, node: &str, phase: &str) {
    let mut placed = pod(name);
    placed["spec"]["nodeName"] = node.into();
    placed["metadata"]["labels"] = json!({"app": name});
    api.post("/api/v1/namespaces/default/pods", placed).await.ok();
    let path = format!("/api/v1/namespaces/default/pods/{name}/status");
    api.merge(&path, json!({"status": {"phase": phase}})).await.ok();
}

/// In thousandths of a core.
fn milli(usage: &Value) -> i64 {
    sampan_api::quantity::Quantity::from_value(&usage["cpu"])
        .unwrap()
        .milli_value()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nodes_and_pods_use_is_told() {
    let api = Api::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", account).await;
    let asked = node(&api, "n1", "True").await;
    let gone = node(&api, "n2", "Unknown").await;
    run(&api, "p", "n1", "Running").await;
    run(&api, "waits", "n1", "Pending").await;
    run(&api, "silent", "n2", "Running").await;

    // Two at once are one question.
    let path = format!("{METRICS}/nodes");
    let (nodes, pods) = tokio::join!(api.get(&path), async { api.get(&format!("{METRICS}/pods")).await.ok() });
    let nodes = nodes.ok();
    assert_eq!(
        (nodes["kind"].as_str(), &nodes["metadata"]),
        (Some("NodeMetricsList"), &json!({}))
    );
    assert_eq!(nodes["items"].as_array().unwrap().len(), 1);
    let one = &nodes["items"][0];
    assert_eq!(one["metadata"]["name"], "n1");
    assert_eq!(one["metadata"]["labels"], json!({"role": "n1"}));
    assert!((450..550).contains(&milli(&one["usage"])), "{one}");
    assert_eq!(one["usage"]["memory"], "1Mi");
    assert!(one["window"].as_str().unwrap().ends_with('s') && one.get("kind").is_none());
    assert_eq!(pods["items"].as_array().unwrap().len(), 1, "{pods}");
    let containers = pods["items"][0]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 2);
    assert!((220..280).contains(&milli(&containers[0]["usage"])), "{containers:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert_eq!(gone.load(Ordering::SeqCst), 0);

    let one = api.get(&format!("{METRICS}/namespaces/default/pods/p")).await.ok();
    assert_eq!(
        (one["kind"].as_str(), one["apiVersion"].as_str()),
        (Some("PodMetrics"), Some("metrics.k8s.io/v1beta1"))
    );
    let count = async |query: &str| {
        let found = api
            .get(&format!("{METRICS}/namespaces/default/pods?{query}"))
            .await
            .ok();
        found["items"].as_array().unwrap().len()
    };
    assert_eq!(count("labelSelector=app%3Dp").await, 1);
    assert_eq!(count("labelSelector=app%3Dother").await, 0);
    assert_eq!(count("fieldSelector=metadata.name%3Dp").await, 1);
    let elsewhere = api.get(&format!("{METRICS}/namespaces/kube-system/pods")).await.ok();
    assert_eq!(elsewhere["items"], json!([]));
    assert_eq!(asked.load(Ordering::SeqCst), 2, "what is known is told again");

    for (path, message) in [
        ("nodes/other", "nodes \"other\" not found"),
        ("nodes/n2", "nodes.metrics.k8s.io \"n2\" not found"),
        ("namespaces/default/pods/other", "pods \"other\" not found"),
        (
            "namespaces/default/pods/silent",
            "pods.metrics.k8s.io \"default/silent\" not found",
        ),
    ] {
        api.get(&format!("{METRICS}/{path}"))
            .await
            .refused(404, "NotFound", message);
    }
    for (method, path) in [("POST", "nodes"), ("DELETE", "nodes/n1"), ("GET", "nodes?watch=1")] {
        let answer = api
            .send(method, &format!("{METRICS}/{path}"), "application/json", "{}")
            .await;
        assert_eq!(answer.code, 405, "{method} {path}: {}", answer.body);
    }

    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    let shown = api.send_as("GET", &format!("{METRICS}/pods"), "", table, "").await.ok();
    let columns: Vec<_> = shown["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| &column["name"])
        .collect();
    assert_eq!(columns, ["Name", "cpu", "memory", "Window"]);
    assert_eq!(shown["rows"][0]["cells"][2], "4Ki");
    // Whoever would rather have protobuf takes what there is.
    let other = "application/vnd.kubernetes.protobuf, */*";
    let plain = api.send_as("GET", &format!("{METRICS}/nodes"), "", other, "").await;
    assert_eq!(plain.headers["content-type"], "application/json");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_discovered_described_and_given_away() {
    let api = Api::start().await;
    let found = api.get(METRICS).await.ok();
    assert_eq!(
        found["resources"],
        json!([
            {"name": "nodes", "singularName": "", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get", "list"]},
            {"name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get", "list"]},
        ])
    );
    let groups = api.get("/apis").await.ok();
    let names: Vec<_> = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| &group["name"])
        .collect();
    assert_eq!(names.last().unwrap(), &"metrics.k8s.io");
    let document = api.get("/openapi/v3/apis/metrics.k8s.io/v1beta1").await.ok();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    assert!(
        schemas.keys().any(|name| name.ends_with("v1beta1.PodMetrics")),
        "{:?}",
        schemas.keys()
    );
    assert!(document["paths"][format!("{METRICS}/namespaces/{{namespace}}/pods/{{name}}")]["get"].is_object());

    let service = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
    let until = async |reason: &str| {
        for _ in 0..500 {
            let found = api.get(service).await;
            if found.body["status"]["conditions"][0]["reason"] == reason {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {reason}");
    };
    until("Local").await;
    // metrics-server's own manifest, applied.
    let theirs = json!({"spec": {"service": {"name": "metrics-server", "namespace": "kube-system"}, "insecureSkipTLSVerify": true}});
    api.merge(service, theirs).await.ok();
    until("ServiceNotFound").await;
    assert_eq!(api.get(&format!("{METRICS}/nodes")).await.code, 503);
    api.delete(service).await.ok();
    until("Local").await;
    let nodes = api.get(&format!("{METRICS}/nodes")).await.ok();
    assert_eq!(nodes["items"], json!([]));

    let role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/view";
    let rules = api.get(role).await.ok()["rules"].to_string();
    assert!(rules.contains("metrics.k8s.io"), "{rules}");
}
