//! Every endpoint and method of the node's server: closed to strangers, refused without the right, not refused with
//! exactly it. The list is the server's own table, so nothing can be served that is not tried here.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use kube::client::Body as KubeBody;
use sampan_client::Informers;
use sampan_client::testing::FakeApi;
use sampan_pki::tls::ClientVerifier;
use sampan_pki::{Identity, LeafSpec, Params, Pki};
use sampan_runtime::fake::FakeRuntime;
use sampan_tasks::{OnExit, Tasks};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{ENDPOINTS, Server, ServerTls};
use crate::{FakeNetworking, Node, NodeConfig};

/// An API server that believes tokens which begin with `user:`, and reads the rights from the users' names:
/// `user:get:pods` may `get` `nodes/pods` of this node.
async fn reviewer(request: Request<KubeBody>) -> Result<Response<KubeBody>, Infallible> {
    let tokens = request.uri().path().ends_with("/tokenreviews");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut review: Value = serde_json::from_slice(&body).unwrap();
    review["status"] = if tokens {
        let token = review["spec"]["token"].as_str().unwrap();
        let known = token.starts_with("user:");
        json!({"authenticated": known, "user": {"username": token, "groups": ["system:authenticated"]}})
    } else {
        let spec = &review["spec"];
        let asked = &spec["resourceAttributes"];
        let right = spec["user"].as_str().unwrap().split(':').skip(1).collect::<Vec<_>>();
        let here = asked["resource"] == "nodes" && asked["name"] == "node-1" && asked["group"].is_null();
        let fits = |at: usize, what: &Value| right.get(at).is_some_and(|had| *had == "*" || what == had);
        json!({"allowed": here && fits(0, &asked["verb"]) && fits(1, &asked["subresource"])})
    };
    let response = Response::builder().header("content-type", "application/json");
    Ok(response.body(KubeBody::from(review.to_string().into_bytes())).unwrap())
}

struct Rig {
    pki: Pki,
    address: std::net::SocketAddr,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Self {
        let tasks = Tasks::new();
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(&dir.path().join("pki"), Params::default()).unwrap();
        let api = FakeApi::new().client("system:node:node-1");
        let informers = Informers::new(api.clone(), &tasks);
        let mut config = NodeConfig::for_tests(&dir.path().join("node"));
        config.port = 0;
        let node = Node::start(
            config,
            api,
            &informers,
            Arc::new(FakeRuntime::new()),
            Arc::<FakeNetworking>::default(),
            None,
            &tasks,
        );
        let node = node.await.unwrap();
        let identity = pki.node_serving("node-1", &[IpAddr::from([127, 0, 0, 1])]).unwrap();
        let verifier = ClientVerifier::new(pki.ca()).unwrap();
        let tls = ServerTls {
            config: sampan_pki::tls::server_config(&identity, &verifier).unwrap().into(),
            verifier,
        };
        let client = kube::Client::new(tower::service_fn(reviewer), "default");
        let address = Server::start(node.manager(), client, tls, &tasks).await.unwrap();
        Rig {
            pki,
            address,
            tasks,
            _dir: dir,
        }
    }

    async fn connect(&self, identity: Option<&Identity>) -> SendRequest<Full<bytes::Bytes>> {
        let config = sampan_pki::tls::client_config(self.pki.ca(), identity, &["http/1.1"]).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", self.address.port())).await.unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
        let (sender, connection) = http1::handshake(TokioIo::new(stream.unwrap())).await.unwrap();
        self.tasks
            .spawn_until_drain("test client", OnExit::Expected, async move {
                let _ended = connection.await;
            });
        sender
    }

    /// What is answered to a token, on a connection that lasts where the server lets it.
    async fn ask(
        &self,
        sender: &mut SendRequest<Full<bytes::Bytes>>,
        method: &Method,
        path: &str,
        token: Option<&str>,
    ) -> (u16, String) {
        if sender.ready().await.is_err() {
            *sender = self.connect(None).await;
        }
        let mut request = Request::builder().method(method).uri(path).header("host", "node");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = sender
            .send_request(request.body(Full::default()).unwrap())
            .await
            .unwrap();
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }
}

/// What upstream asks for on a path of its node server.
fn upstreams(path: &str) -> &'static [&'static str] {
    match path.split('/').nth(1).unwrap_or_default() {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

#[tokio::test]
async fn every_endpoint_and_method_is_authorized() {
    let rig = Rig::start().await;
    let all = [
        "stats",
        "metrics",
        "log",
        "checkpoint",
        "statusz",
        "pods",
        "healthz",
        "configz",
        "proxy",
    ];
    let methods = [
        (Method::GET, "get"),
        (Method::POST, "create"),
        (Method::PUT, "update"),
        (Method::PATCH, "patch"),
        (Method::DELETE, "delete"),
        // No verb: for those who may everything.
        (Method::HEAD, ""),
        (Method::OPTIONS, ""),
    ];
    // What is served, what upstream serves besides, and what nobody does.
    let mut paths: BTreeSet<String> = ENDPOINTS
        .iter()
        .map(|(pattern, _)| format!("/{}", pattern.replace("{}", "x")))
        .collect();
    let served = paths.clone();
    for other in [
        "/",
        "/healthz/ping",
        "/healthz/syncloop",
        "/logs/",
        "/logs/x.log",
        "/metrics/cadvisor",
        "/metrics/probes",
        "/runningpods/",
        "/checkpoint/n/p/c",
        "/statusz",
        "/flagz",
        "/debug/pprof/heap",
        "/debug/flags/v",
        "/cri/exec/x",
        "/stats/",
        "/no/such/path",
    ] {
        paths.insert(other.to_owned());
    }
    let mut sender = rig.connect(None).await;
    let (mut refused, mut allowed, mut untested) = (0, 0, served.clone());
    for path in &paths {
        let needed = upstreams(path);
        for (method, verb) in &methods {
            let shown = format!("{method} {path}");
            for token in [None, Some("nonsense"), Some("")] {
                let (code, text) = rig.ask(&mut sender, method, path, token).await;
                assert_eq!(code, 401, "{shown} as nobody: {text}");
                refused += 1;
            }
            let other = if *verb == "get" { "create" } else { "get" };
            let mut without = vec!["user:".to_owned(), "user:*:".to_owned()];
            for subresource in all {
                if needed.contains(&subresource) {
                    without.push(format!("user:{other}:{subresource}"));
                } else {
                    without.push(format!("user:*:{subresource}"));
                }
            }
            for token in without {
                let (code, text) = rig.ask(&mut sender, method, path, Some(&token)).await;
                assert_eq!(code, 403, "{shown} as {token:?}: {text}");
                if *method != Method::HEAD {
                    let last = needed.last().unwrap();
                    let words = format!("Forbidden (user={token}, verb={verb}, resource=nodes, subresource={last})");
                    assert_eq!(text.trim_end(), words, "{shown}");
                }
                refused += 1;
            }
            for subresource in needed {
                let right = if verb.is_empty() { "*" } else { verb };
                let token = format!("user:{right}:{subresource}");
                let (code, text) = rig.ask(&mut sender, method, path, Some(&token)).await;
                assert!(!matches!(code, 401 | 403), "{shown} as {token:?}: {code} {text}");
                let methods = ENDPOINTS
                    .iter()
                    .find(|(pattern, _)| format!("/{}", pattern.replace("{}", "x")) == *path);
                match methods {
                    None => assert_eq!(code, 404, "{shown}: {text}"),
                    Some((_, methods)) if !methods.is_empty() && !methods.contains(method) => {
                        assert_eq!(code, 405, "{shown}: {text}");
                    }
                    Some(_) => assert_ne!(code, 405, "{shown}: {text}"),
                }
                allowed += 1;
            }
        }
        untested.remove(path);
    }
    println!(
        "{} paths of the node's server, {} methods: {refused} refused, {allowed} let through",
        paths.len(),
        methods.len()
    );
    assert_eq!(
        untested,
        BTreeSet::new(),
        "endpoints without a test of their authorization"
    );

    // Certificates say who asks as well as tokens; those of others are nobody's.
    let certificate = |name: &str| rig.pki.issue(&LeafSpec::client(name, None)).unwrap();
    let strangers = tempfile::tempdir().unwrap();
    let strangers = Pki::load_or_create(strangers.path(), Params::default()).unwrap();
    let theirs = strangers
        .issue(&LeafSpec::client("user:*:*", Some("system:masters")))
        .unwrap();
    for (identity, code) in [
        (certificate("user:get:pods"), 200),
        (certificate("user:get:metrics"), 403),
        (rig.pki.kubelet_client().clone(), 200),
        (theirs, 401),
    ] {
        let mut sender = rig.connect(Some(&identity)).await;
        assert_eq!(rig.ask(&mut sender, &Method::GET, "/pods", None).await.0, code);
    }

    // Paths that are not what they seem: what they are authorized as is what is served.
    let mut tricks = 0;
    for path in [
        "//exec/ns/p/c?command=id",
        "/pods/../exec/ns/p/c?command=id",
        "/pods/..%2fexec/ns/p/c?command=id",
        "/%65xec/ns/p/c?command=id",
        "/metrics/../run/ns/p/c?cmd=id",
        "/stats/%2e%2e/run/ns/p/c",
        "/healthz/../containerLogs/ns/p/c",
        "/metrics//../configz",
        "/Pods",
        "/pods%2f",
        "/pods;x",
        "/.//pods",
    ] {
        for token in ["user:*:metrics", "user:*:stats", "user:*:healthz", "user:*:pods"] {
            for method in [Method::GET, Method::POST] {
                let mut sender = rig.connect(None).await;
                let (code, text) = rig.ask(&mut sender, &method, path, Some(token)).await;
                assert!(
                    matches!(code, 400 | 403 | 404 | 405),
                    "{method} {path} as {token}: {code} {text}"
                );
                assert!(
                    !text.contains("kubeletconfig") && !text.contains("PodList"),
                    "{path}: {text}"
                );
                tricks += 1;
            }
        }
    }
    println!("{tricks} paths that are not what they seem, refused or not found");
}
