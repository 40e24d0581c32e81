//! Logs, exec and proxies through the API server to a node's server made here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::common::{Api, pod};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sampan_pki::tls::{self, ClientVerifier};
use sampan_streams::{ExitStatus, Options, accept_remote_command};
use sampan_tasks::{OnExit, Tasks};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Answers like a node: tells what it was asked, and echoes standard input.
async fn node(api: &Api) -> SocketAddr {
    let identity = api.server.pki.node_serving("n1", &[LOOPBACK]).unwrap();
    let verifier = ClientVerifier::new(api.server.pki.ca()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls::strict_server_config(&identity, &verifier).unwrap());
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = api.server.tasks.clone();
    tasks
        .clone()
        .spawn_until_drain("fake node", OnExit::Expected, async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, tasks) = (acceptor.clone(), tasks.clone());
                tasks
                    .clone()
                    .spawn_until_drain("fake node connection", OnExit::Expected, async move {
                        let Ok(stream) = acceptor.accept(stream).await else {
                            return;
                        };
                        let service = service_fn(move |request| answer(request, tasks.clone()));
                        let serving =
                            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                        let _ended = serving.with_upgrades().await;
                    });
            }
        });
    address
}

async fn answer(
    mut request: Request<Incoming>,
    tasks: Tasks,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let target = request.uri().to_string();
    if !request.uri().path().starts_with("/exec/") {
        return Ok(Response::new(Full::from(format!("asked for {target}\n"))));
    }
    let options = Options::from_query(request.uri().query().unwrap_or_default()).unwrap();
    match accept_remote_command(&mut request, options, &tasks) {
        Ok((response, command)) => {
            tasks.spawn_until_drain("fake command", OnExit::Expected, async move {
                let Ok(mut command) = command.await else { return };
                let mut input = Vec::new();
                if let Some(stdin) = &mut command.stdin {
                    stdin.read_to_end(&mut input).await.unwrap();
                }
                if let Some(stdout) = &mut command.stdout {
                    stdout.write_all(format!("{target} ").as_bytes()).await.unwrap();
                    stdout.write_all(&input).await.unwrap();
                    stdout.flush().await.unwrap();
                }
                command
                    .status
                    .finish(ExitStatus::Code(if target.contains("fail") { 3 } else { 0 }));
            });
            Ok(response)
        }
        Err(refusal) => panic!("{refusal:?}"),
    }
}

async fn cluster() -> Api {
    let api = Api::start().await;
    let address = node(&api).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .ok();
    api.post(
        "/api/v1/nodes",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}),
    )
    .await
    .ok();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address.ip().to_string()}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}}}});
    api.merge("/api/v1/nodes/n1/status", status).await.ok();
    let mut placed = pod("p");
    placed["spec"]["nodeName"] = "n1".into();
    api.post("/api/v1/namespaces/default/pods", placed).await.ok();
    let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    api.merge("/api/v1/namespaces/default/pods/p/status", running)
        .await
        .ok();
    api
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_proxies_reach_the_node() {
    let api = cluster().await;
    let logs = api
        .get("/api/v1/namespaces/default/pods/p/log?tailLines=5&follow=true")
        .await;
    assert_eq!(
        (logs.code, logs.body.as_str()),
        (
            200,
            Some("asked for /containerLogs/default/p/main?follow=true&tailLines=5\n")
        )
    );
    assert_eq!(logs.headers["content-type"], "text/plain");
    api.get("/api/v1/namespaces/default/pods/p/log?container=x")
        .await
        .refused(400, "BadRequest", "container x is not valid for pod p");
    assert_eq!(
        api.get("/api/v1/namespaces/default/pods/p/log?tailLines=-1").await.code,
        422
    );
    let proxied = api.get("/api/v1/nodes/n1/proxy/metrics/resource?x=1").await;
    assert_eq!(proxied.body.as_str(), Some("asked for /metrics/resource?x=1\n"));
    assert_eq!(api.get("/api/v1/nodes/n2/proxy/metrics").await.code, 404);
    assert_eq!(
        api.get("/api/v1/namespaces/default/services/none/proxy/").await.code,
        404
    );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_exec_reaches_the_command() {
    let found = std::env::var("PATH")
        .unwrap_or_default()
        .split(':')
        .any(|dir| std::path::Path::new(dir).join("kubectl").exists());
    let named = std::env::var("SAMPAN_KUBECTL").ok();
    if !found && named.is_none() {
        println!("skipped: there is no kubectl on PATH and SAMPAN_KUBECTL is not set");
        return;
    }
    let api = cluster().await;
    let config = api.server.kubeconfig().unwrap();
    let api = Arc::new(api);
    let output = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        let run = |arguments: &[&str], input: &str| {
            let mut child = Command::new(named.as_deref().unwrap_or("kubectl"))
                .arg("--kubeconfig")
                .arg(&config)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        let good = run(&["exec", "-i", "p", "--", "cat", "a b"], "hello");
        let bad = run(&["exec", "p", "--", "fail"], "");
        let logs = run(&["logs", "p", "--tail=1"], "");
        (good, bad, logs)
    })
    .await
    .unwrap();
    let (good, bad, logs) = output;
    let text = String::from_utf8_lossy(&good.stdout);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(
        text.starts_with("/exec/default/p/main?") && text.contains("command=a%20b") && text.ends_with(" hello"),
        "{text}"
    );
    assert_eq!(bad.status.code(), Some(3), "{}", String::from_utf8_lossy(&bad.stderr));
    assert!(String::from_utf8_lossy(&logs.stdout).contains("tailLines=1"));
    Arc::into_inner(api).unwrap().server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_port_is_proxied() {
    let api = cluster().await;
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    api.server
        .tasks
        .spawn_until_drain("fake application", OnExit::Expected, async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(|request: Request<Incoming>| async move {
                    let moved = request.uri().path() == "/old";
                    let text = format!("{} {}", request.method(), request.uri());
                    let response = Response::builder()
                        .status(if moved { 302 } else { 200 })
                        .header("location", "/new");
                    Ok::<_, std::convert::Infallible>(response.body(Full::<Bytes>::from(text)).unwrap())
                });
                let _ended = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        });
    let ip = json!({"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    api.merge("/api/v1/namespaces/default/pods/p/status", ip).await.ok();
    let base = format!("/api/v1/namespaces/default/pods/p:{port}/proxy");
    let answer = api.send("PUT", &format!("{base}/a/b?c=d"), "text/plain", "body").await;
    assert_eq!((answer.code, answer.body.as_str()), (200, Some("PUT /a/b?c=d")));
    let moved = api.get(&format!("{base}/old")).await;
    assert_eq!(
        (moved.code, moved.headers["location"].to_str().unwrap()),
        (302, format!("{base}/new").as_str())
    );
    let bare = api.get(&base).await;
    assert_eq!(
        (bare.code, bare.headers["location"].to_str().unwrap()),
        (301, format!("{base}/").as_str())
    );
    let nobody = api.get("/api/v1/namespaces/default/pods/p:1/proxy/").await;
    nobody.refused(
        503,
        "ServiceUnavailable",
        "error trying to reach service: dial tcp 127.0.0.1:1: connect: connection refused",
    );
    api.server.stop().await;
}
