//! The proxy subresources against applications of all manners, and with real kubectl.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::{Api, pod};
use sampan_pki::LeafSpec;
use sampan_pki::tls::{self, ClientVerifier};
use sampan_tasks::OnExit;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PODS: &str = "/api/v1/namespaces/default/pods";

/// A cluster with a Pod `p` on this machine.
async fn cluster() -> Api {
    let api = Api::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", account).await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    api.post("/api/v1/nodes", node).await.ok();
    let address = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}});
    api.merge("/api/v1/nodes/n1/status", address).await.ok();
    let mut placed = pod("p");
    placed["spec"]["nodeName"] = "n1".into();
    api.post(PODS, placed).await.ok();
    let ip = json!({"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    api.merge(&format!("{PODS}/p/status"), ip).await.ok();
    api
}

/// An application that reads a request's head and says `answer`, after which it hangs up; or says nothing and stays.
async fn application(api: &Api, answer: Option<Vec<u8>>, secure: bool) -> u16 {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let pki = &api.server.pki;
    // Nobody could believe this certificate: it is for another name.
    let identity = pki
        .issue(&LeafSpec::server("app", ["elsewhere".to_owned()], []))
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(
        tls::server_config(&identity, &ClientVerifier::new(pki.ca()).unwrap()).unwrap(),
    );
    api.server
        .tasks
        .spawn_until_drain("application", OnExit::Expected, async move {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream: Box<dyn Io> = if secure {
                    match acceptor.accept(stream).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => continue,
                    }
                } else {
                    Box::new(stream)
                };
                let mut head = Vec::new();
                let mut buffer = [0; 4096];
                // A client that begins with TLS gets its answer at once.
                while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.first() != Some(&0x16) {
                    match stream.read(&mut buffer).await {
                        Ok(read) if read > 0 => head.extend_from_slice(&buffer[..read]),
                        _ => break,
                    }
                }
                match &answer {
                    Some(answer) => {
                        let head = String::from_utf8_lossy(&head).into_owned();
                        let text = String::from_utf8_lossy(answer).replace("{head}", &head);
                        let text = text.replace("{length}", &head.len().to_string());
                        let _gone = stream.write_all(text.as_bytes()).await;
                        let _gone = stream.shutdown().await;
                    }
                    None => kept.push(stream),
                }
            }
        });
    port
}

trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Io for T {}

fn ok(headers: &str, body: &str) -> Option<Vec<u8>> {
    Some(format!("HTTP/1.1 200 OK\r\n{headers}Connection: close\r\n\r\n{body}").into_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_pass_byte_for_byte() {
    let api = cluster().await;
    let port = application(
        &api,
        ok(
            "Content-Length: {length}\r\nX-Own: 1\r\nAccess-Control-Allow-Origin: *\r\n",
            "{head}",
        ),
        false,
    )
    .await;
    let base = format!("{PODS}/p:{port}/proxy");
    for (method, path) in [
        ("GET", "/a%2Fb//c/../d?x=%20+&&y=1"),
        ("DELETE", "/x"),
        ("OPTIONS", "/"),
        ("PATCH", "/"),
        ("POST", "/?a"),
    ] {
        let answer = api.send(method, &format!("{base}{path}"), "x/y", "").await;
        let head = answer.body.as_str().unwrap_or_default();
        assert!(
            head.starts_with(&format!("{method} {path} HTTP/1.1\r\n")),
            "{method} {path}: {}",
            answer.body
        );
        assert!(head.contains("content-type: x/y\r\n"), "{head}");
        assert_eq!(answer.headers["x-own"], "1");
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
        assert!(!answer.headers.contains_key("connection"));
    }
    // https asks for nothing but TLS.
    let port = application(&api, ok("Content-Length: 2\r\n", "hi"), true).await;
    assert_eq!(api.get(&format!("{PODS}/https:p:{port}/proxy/")).await.body, "hi");
    let head = api.send("HEAD", &format!("{PODS}/https:p:{port}/proxy/"), "", "").await;
    assert_eq!(
        (head.code, &head.headers["content-length"]),
        (200, &"2".parse().unwrap())
    );
    // Pages keep the client inside.
    let page = "<a href=\"/x\"><a href=y>";
    let port = application(&api, ok("Content-Type: text/html; charset=utf-8\r\n", page), false).await;
    let base = format!("{PODS}/p:{port}/proxy");
    let answer = api.get(&format!("{base}/")).await;
    assert_eq!(answer.body, format!("<a href=\"{base}/x\"><a href=y>"));
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_in_upstreams_words() {
    let api = cluster().await;
    let get = async |port: &str, path: &str| api.get(&format!("{PODS}/{port}/proxy{path}")).await;
    let closing = application(&api, Some(Vec::new()), false).await;
    get(&format!("p:{closing}"), "/")
        .await
        .refused(503, "ServiceUnavailable", "error trying to reach service: EOF");
    let garbage = application(&api, Some(b"\x00\x01 garbage\r\n\r\n".to_vec()), false).await;
    let answer = get(&format!("p:{garbage}"), "/").await;
    assert_eq!(answer.code, 503);
    assert!(answer.message().contains("malformed HTTP response"), "{}", answer.body);
    let plain = application(&api, ok("", ""), false).await;
    get(&format!("https:p:{plain}"), "/").await.refused(
        503,
        "ServiceUnavailable",
        "error trying to reach service: http: server gave HTTP response to HTTPS client",
    );
    get("p:80:x:y", "/")
        .await
        .refused(400, "BadRequest", "invalid pod request \"p:80:x:y\"");
    get("ftp:p:80", "/")
        .await
        .refused(400, "BadRequest", "invalid pod request \"ftp:p:80\"");
    // A length that is a lie breaks the answer off and nothing else.
    let short = application(&api, ok("Content-Length: 100\r\n", "short"), false).await;
    let request = http::Request::get(format!("{PODS}/p:{short}/proxy/"))
        .body(http_body_util::Full::default())
        .unwrap();
    let response = api.raw(request).await;
    assert_eq!(response.status(), 200);
    assert!(http_body_util::BodyExt::collect(response.into_body()).await.is_err());
    // One that never answers is waited for as long as the client wants to.
    let silent = application(&api, None, false).await;
    let path = format!("p:{silent}");
    let waiting = get(&path, "/");
    assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err());
    // A node is reached at its own port and no other of this machine.
    api.get(&format!("/api/v1/nodes/n1:{closing}/proxy/"))
        .await
        .refused(400, "BadRequest", "address not allowed");
    // Services.
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"selector": {"a": "b"}, "ports": [{"name": "web", "port": 80}]}});
    api.post("/api/v1/namespaces/default/services", service).await.ok();
    let services = "/api/v1/namespaces/default/services";
    api.get(&format!("{services}/s:81/proxy/")).await.refused(
        503,
        "ServiceUnavailable",
        "no service port 81 found for service \"s\"",
    );
    api.get(&format!("{services}/s:web/proxy/")).await.refused(
        503,
        "ServiceUnavailable",
        "no endpoints available for service \"s\"",
    );
    api.get(&format!("{services}/none/proxy/"))
        .await
        .refused(404, "NotFound", "services \"none\" not found");
    api.server.stop().await;
}

fn kubectl() -> Option<PathBuf> {
    let named = std::env::var("SAMPAN_KUBECTL").ok();
    let named = named.and_then(|all| all.split(':').next().map(PathBuf::from));
    let path = std::env::var("PATH").unwrap_or_default();
    named.or_else(|| {
        path.split(':')
            .map(|dir| PathBuf::from(dir).join("kubectl"))
            .find(|file| file.exists())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_finds_its_way() {
    let Some(kubectl) = kubectl() else {
        println!("skipped: there is no kubectl on PATH and SAMPAN_KUBECTL is not set");
        return;
    };
    let api = cluster().await;
    let port = application(&api, ok("Content-Length: 5\r\n", "hello"), false).await;
    let broken = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1.broken.example.com"}, "spec": {"group": "broken.example.com", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": true,
            "service": {"name": "none", "namespace": "default"}}});
    api.post("/apis/apiregistration.k8s.io/v1/apiservices", broken)
        .await
        .ok();
    let config = api.server.kubeconfig().unwrap();
    let cache = api.server.dir().join("cache");
    let (raw, resources, services, through) = tokio::task::spawn_blocking(move || {
        let command = |line: &str| {
            let mut command = Command::new(&kubectl);
            command.arg("--kubeconfig").arg(&config).arg("--cache-dir").arg(&cache);
            command.args(line.split(' '));
            command
        };
        let run = |line: &str| {
            let output = command(line).output().unwrap();
            (
                output.status.success(),
                String::from_utf8_lossy(&output.stdout).into_owned(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        };
        let raw = run(&format!("get --raw {PODS}/p:{port}/proxy/"));
        let resources = run("api-resources");
        let services = run("get apiservices");
        // `kubectl proxy` says where it listens, and passes on whatever it gets.
        let mut proxy = command("proxy --port=0").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut said = std::io::BufReader::new(proxy.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        let head = format!("GET {PODS}/p:{port}/proxy/x HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        let mut through = String::new();
        std::io::Read::read_to_string(&mut stream, &mut through).unwrap();
        proxy.kill().unwrap();
        proxy.wait().unwrap();
        (raw, resources, services, through)
    })
    .await
    .unwrap();
    assert_eq!((raw.0, raw.1.as_str()), (true, "hello"), "{}", raw.2);
    assert!(
        through.starts_with("HTTP/1.1 200") && through.ends_with("hello"),
        "{through}"
    );
    // kubectl leaves out what is stale; all others are there.
    assert!(
        resources.0 && resources.1.contains("deployments") && resources.1.contains("apiservices"),
        "{resources:?}"
    );
    assert!(services.1.contains("False (ServiceNotFound)"), "{services:?}");
    assert!(
        services
            .1
            .lines()
            .any(|line| line.starts_with("v1.apps") && line.contains("Local")),
        "{services:?}"
    );
    api.server.stop().await;
}
