//! Group versions that another API server answers: a second control plane behind the front proxy's headers, and
//! extension servers that are broken, slow or hostile.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::Api;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sampan_apiserver::{Body, ControlPlane};
use sampan_auth::UserInfo;
use sampan_pki::LeafSpec;
use sampan_pki::tls::{self, ClientVerifier};
use sampan_tasks::OnExit;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// How an extension server answers.
#[derive(Clone)]
enum Way {
    /// As a whole API server that believes the front proxy's headers.
    Plane(Arc<ControlPlane>),
    /// Tells what it was asked and by whom; some paths are special.
    Echo,
    /// Never.
    Hang,
    /// As a server of boats from before OpenAPI v3, which describes itself in v2 only.
    Old(Arc<Mutex<Value>>),
}

/// An extension server that lets in nobody but the front proxy.
async fn extension(api: &Api, way: Way) -> SocketAddr {
    let pki = &api.server.pki;
    let identity = pki
        .issue(&LeafSpec::server("ext", ["ext.default.svc".to_owned()], [LOOPBACK]))
        .unwrap();
    let authority = CertificateDer::from_pem_slice(pki.front_proxy_ca_pem().as_bytes()).unwrap();
    let verifier = ClientVerifier::new(&authority).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls::strict_server_config(&identity, &verifier).unwrap());
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = api.server.tasks.clone();
    tasks
        .clone()
        .spawn_until_drain("extension", OnExit::Expected, async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, way, verifier, tasks) = (acceptor.clone(), way.clone(), verifier.clone(), tasks.clone());
                tasks
                    .clone()
                    .spawn_until_drain("extension connection", OnExit::Expected, async move {
                        let Ok(stream) = acceptor.accept(stream).await else {
                            return;
                        };
                        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                        assert_eq!(verifier.verify(chain).unwrap().common_name, "front-proxy-client");
                        let service = service_fn(move |request| answer(request, way.clone(), tasks.clone()));
                        let _ended = auto::Builder::new(TokioExecutor::new())
                            .serve_connection_with_upgrades(TokioIo::new(stream), service)
                            .await;
                    });
            }
        });
    address
}

fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect()
}

async fn answer(
    mut request: Request<Incoming>,
    way: Way,
    tasks: sampan_tasks::Tasks,
) -> Result<Response<Body>, std::io::Error> {
    match way {
        Way::Hang => std::future::pending().await,
        Way::Old(document) => {
            let body = match request.uri().path() {
                "/apis/old.example.com/v1" => json!({"kind": "APIResourceList", "apiVersion": "v1",
                    "groupVersion": "old.example.com/v1", "resources": [{"name": "boats", "kind": "Boat",
                        "singularName": "boat", "namespaced": true, "verbs": ["get", "list"]}]}),
                "/openapi/v2" => document.lock().unwrap().clone(),
                _ => {
                    let answer = Response::builder().status(404).body(Body::from("404 page not found"));
                    return Ok(answer.unwrap());
                }
            };
            let answer = Response::builder().header("content-type", "application/json");
            Ok(answer.body(Body::from(body.to_string())).unwrap())
        }
        Way::Plane(plane) => {
            // As every API server does: whoever is known is authenticated.
            let user = UserInfo::new(
                all(request.headers(), "x-remote-user").concat(),
                all(request.headers(), "x-remote-group"),
            );
            let mut request = request.map(Body::incoming);
            request.extensions_mut().insert(user);
            Ok(plane.handle(request).await)
        }
        Way::Echo => match request.uri().path() {
            "/apis/echo.example.com/v1" => Ok(Response::new(Body::from("{}"))),
            "/apis/echo.example.com/v1/moved" => Ok(Response::builder()
                .status(302)
                .header(
                    "location",
                    format!(
                        "https://ext.default.svc:{}/apis/echo.example.com/v1/there?x",
                        request.headers()["host"].to_str().unwrap().rsplit(':').next().unwrap()
                    ),
                )
                .body(Body::Empty)
                .unwrap()),
            "/apis/echo.example.com/v1/broken" => Err(std::io::Error::other("broken")),
            "/apis/echo.example.com/v1/upgraded" => {
                let upgrade = hyper::upgrade::on(&mut request);
                tasks.spawn_until_drain("echo", OnExit::Expected, async move {
                    let mut io = TokioIo::new(upgrade.await.unwrap());
                    let mut buffer = [0; 5];
                    io.read_exact(&mut buffer).await.unwrap();
                    io.write_all(&buffer).await.unwrap();
                    io.shutdown().await.unwrap();
                });
                let user = request.headers()["x-remote-user"].clone();
                Ok(Response::builder()
                    .status(101)
                    .header("connection", "upgrade")
                    .header("upgrade", "echo")
                    .header("x-user", user)
                    .body(Body::Empty)
                    .unwrap())
            }
            _ => {
                let (parts, body) = request.into_parts();
                let headers: Vec<String> = parts
                    .headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or_default()))
                    .collect();
                let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
                let told = json!({"method": parts.method.as_str(), "uri": parts.uri.to_string(), "headers": headers,
                    "body": String::from_utf8_lossy(&body)});
                Ok(Response::builder()
                    .header("content-type", "application/json")
                    .header("x-own", "kept")
                    .body(Body::from(told.to_string()))
                    .unwrap())
            }
        },
    }
}

/// Registers `address` as the server of a group's `v1`.
async fn register(api: &Api, group: &str, address: SocketAddr) {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ext"},
        "spec": {"type": "ExternalName", "externalName": "localhost"}});
    api.post("/api/v1/namespaces/default/services", service).await;
    let bundle = base64(&api.server.pki.ca_pem());
    let registration = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": format!("v1.{group}")}, "spec": {
            "group": group, "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 10, "caBundle": bundle,
            "service": {"name": "ext", "namespace": "default", "port": address.port()}}});
    api.post(SERVICES, registration).await.ok();
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Waits for the condition of an APIService to have this reason; its message.
async fn until(api: &Api, name: &str, reason: &str) -> String {
    let mut last = Value::Null;
    for _ in 0..1000 {
        let condition = api.get(&format!("{SERVICES}/{name}")).await.body["status"]["conditions"][0].clone();
        if condition["reason"] == reason {
            return condition["message"].as_str().unwrap_or_default().to_owned();
        }
        last = condition;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{name} has not become {reason}: {last}");
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A group as aggregated discovery shows it now.
async fn shown(api: &Api, group: &str) -> Option<Value> {
    let answer = api.send_as("GET", "/apis", "", AGGREGATED, "").await.ok();
    let mut groups = answer["items"].as_array().unwrap().iter();
    groups.find(|item| item["metadata"]["name"] == group).cloned()
}

/// The same soon after it was registered: not in the same moment.
async fn aggregated(api: &Api, group: &str) -> Value {
    for _ in 0..1000 {
        if let Some(found) = shown(api, group).await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{group} is not shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_answer_ourselves_is_registered() {
    let api = Api::start().await;
    assert_eq!(
        until(&api, "v1.", "Local").await,
        "Local APIServices are always available"
    );
    let apps = api.get(&format!("{SERVICES}/v1.apps")).await.ok();
    assert_eq!(
        apps["spec"],
        json!({"group": "apps", "version": "v1", "groupPriorityMinimum": 17800, "versionPriority": 15})
    );
    assert_eq!(
        apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"],
        "onstart"
    );
    assert_eq!(
        api.get(&format!("{SERVICES}/v1.apiregistration.k8s.io")).await.code,
        404
    );
    // A custom group version comes and goes with its definition.
    let version = json!({"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.stable.example.com"}, "spec": {"group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo"}, "versions": [version]}});
    api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        .await
        .ok();
    until(&api, "v1.stable.example.com", "Local").await;
    let custom = api.get(&format!("{SERVICES}/v1.stable.example.com")).await.ok();
    assert_eq!(custom["spec"]["groupPriorityMinimum"], 1000);
    // Taken away by hand it comes back; with its definition it goes.
    api.delete(&format!("{SERVICES}/v1.stable.example.com")).await.ok();
    until(&api, "v1.stable.example.com", "Local").await;
    api.delete("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/foos.stable.example.com")
        .await
        .ok();
    for _ in 0..500 {
        if api.get(&format!("{SERVICES}/v1.stable.example.com")).await.code == 404 {
            api.server.stop().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the APIService of a deleted definition remains");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_control_plane_answers_a_group() {
    let other = Api::start().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "reference": {"type": "string", "description": "What it is about."}}}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "flunders.wardle.example.com"}, "spec": {"group": "wardle.example.com", "scope": "Namespaced",
            "names": {"plural": "flunders", "kind": "Flunder", "shortNames": ["fl"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    other
        .post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        .await
        .ok();
    for _ in 0..500 {
        if other.get("/apis/wardle.example.com/v1").await.code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let api = Api::start().await;
    let address = extension(&api, Way::Plane(other.server.plane.clone())).await;
    register(&api, "wardle.example.com", address).await;
    assert_eq!(
        until(&api, "v1.wardle.example.com", "Passed").await,
        "all checks passed"
    );

    // Discovery, in all its forms.
    let group = aggregated(&api, "wardle.example.com").await;
    assert_eq!(group["versions"][0]["freshness"], "Current", "{group}");
    assert_eq!(group["versions"][0]["resources"][0]["resource"], "flunders");
    assert_eq!(group["versions"][0]["resources"][0]["shortNames"], json!(["fl"]));
    let beta = AGGREGATED.replace("v=v2", "v=v2beta1");
    let answer = api.send_as("GET", "/apis", "", &beta, "").await.ok();
    assert_eq!(answer["apiVersion"], "apidiscovery.k8s.io/v2beta1");
    let plain = api.get("/apis/wardle.example.com").await.ok();
    assert_eq!(plain["preferredVersion"]["groupVersion"], "wardle.example.com/v1");
    let list = api.get("/apis/wardle.example.com/v1").await.ok();
    assert_eq!(list["resources"][0]["name"], "flunders");

    // Everything a resource does, a watch included.
    let base = "/apis/wardle.example.com/v1/namespaces/default/flunders";
    let mut events = api.watch(&format!("{base}?watch=true")).await;
    let flunder = json!({"apiVersion": "wardle.example.com/v1", "kind": "Flunder", "metadata": {"name": "one"},
        "spec": {"reference": "x"}});
    api.post(base, flunder).await.ok();
    assert_eq!(events.brief().await, "ADDED one");
    api.merge(&format!("{base}/one"), json!({"spec": {"reference": "y"}}))
        .await
        .ok();
    assert_eq!(events.brief().await, "MODIFIED one");
    assert_eq!(api.get(base).await.ok()["items"][0]["spec"]["reference"], "y");
    api.delete(&format!("{base}/one")).await.ok();
    assert_eq!(events.brief().await, "DELETED one");
    api.get(&format!("{base}/one"))
        .await
        .refused(404, "NotFound", "flunders.wardle.example.com \"one\" not found");

    // Whoever may not do it here does not get there.
    let mut nobody = api.server.plane.connect(UserInfo::new("nobody", ["some"]));
    let request = Request::builder().uri(base).body(Full::<Bytes>::default()).unwrap();
    let refused = tower::Service::call(&mut nobody, request).await.unwrap();
    assert_eq!(refused.status(), 403);

    // OpenAPI: the index leads there, version 2 has it all.
    let index = api.get("/openapi/v3").await.ok();
    let url = index["paths"]["apis/wardle.example.com/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap();
    let document = api.get(url).await.ok();
    assert!(document.to_string().contains("What it is about."), "{document}");
    assert_eq!(api.get(&url.replace("hash=", "hash=0")).await.code, 301);
    let whole = api.get("/openapi/v2").await.ok();
    assert!(whole["paths"][base.replace("/default/", "/{namespace}/")].is_object());
    assert!(whole["definitions"]["com.example.wardle.v1.Flunder"].is_object());
    assert!(whole["paths"]["/api/v1/pods"].is_object());

    // The registration goes, and with it the group.
    api.delete(&format!("{SERVICES}/v1.wardle.example.com")).await.ok();
    for _ in 0..500 {
        if api.get(base).await.code == 404 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(shown(&api, "wardle.example.com").await, None);
    api.server.stop().await;
    other.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_carry_who_asks_and_nothing_a_client_made_up() {
    let api = Api::start().await;
    let address = extension(&api, Way::Echo).await;
    register(&api, "echo.example.com", address).await;
    until(&api, "v1.echo.example.com", "Passed").await;
    let mut user = UserInfo::new("jane", ["system:masters", "devs"]);
    user.uid = "42".into();
    user.extra.insert("example.com/why".into(), vec!["because".into()]);
    let mut service = api.server.plane.connect(user);
    let request = Request::builder()
        .method("PUT")
        .uri("/apis/echo.example.com/v1/things/a%2Fb?x=1&&y=%20+z")
        .header("x-remote-user", "root")
        .header("x-remote-extra-role", "root")
        .header("x-own", "1")
        .header("connection", "x-hop")
        .header("x-hop", "gone")
        .body(Full::from("some body"))
        .unwrap();
    let response = tower::Service::call(&mut service, request).await.unwrap();
    assert_eq!(response.headers()["x-own"], "kept");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let told: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(told["method"], "PUT");
    assert_eq!(told["uri"], "/apis/echo.example.com/v1/things/a%2Fb?x=1&&y=%20+z");
    assert_eq!(told["body"], "some body");
    let headers: Vec<&str> = told["headers"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let named = |prefix: &str| {
        headers
            .iter()
            .filter(|line| line.starts_with(prefix))
            .copied()
            .collect::<Vec<_>>()
    };
    assert_eq!(
        named("x-remote"),
        [
            "x-remote-user: jane",
            "x-remote-uid: 42",
            "x-remote-group: system:masters",
            "x-remote-group: devs",
            "x-remote-group: system:authenticated",
            "x-remote-extra-example.com%2fwhy: because"
        ]
    );
    assert_eq!(named("x-own"), ["x-own: 1"]);
    assert!(
        named("x-hop").is_empty() && named("authorization").is_empty(),
        "{headers:?}"
    );

    // A redirect of the server to itself stays a path here; what breaks is told.
    let moved = api.get("/apis/echo.example.com/v1/moved").await;
    assert_eq!(moved.headers["location"], "/apis/echo.example.com/v1/there?x");
    let broken = api.get("/apis/echo.example.com/v1/broken").await;
    assert_eq!(
        (broken.code, broken.body.as_str().unwrap()),
        (503, "error trying to reach service: EOF\n")
    );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_flows_both_ways() {
    let api = Api::start().await;
    let address = extension(&api, Way::Echo).await;
    register(&api, "echo.example.com", address).await;
    until(&api, "v1.echo.example.com", "Passed").await;
    // Over the network: an upgrade needs a connection.
    let pki = &api.server.pki;
    let admin = pki.admin_client().unwrap();
    let config = tls::client_config(pki.ca(), Some(&admin), &["http/1.1"]).unwrap();
    let stream = tokio::net::TcpStream::connect(api.server.address).await.unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(LOOPBACK.into());
    let mut stream = tokio_rustls::TlsConnector::from(config)
        .connect(name, stream)
        .await
        .unwrap();
    stream
        .write_all(
            b"GET /apis/echo.example.com/v1/upgraded HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\
              X-Remote-User: root\r\nAudit-ID: mine\r\n\r\nhello",
        )
        .await
        .unwrap();
    let mut all = Vec::new();
    let reading = stream.read_to_end(&mut all);
    let _closed = tokio::time::timeout(Duration::from_secs(10), reading).await.unwrap();
    let text = String::from_utf8_lossy(&all);
    assert!(text.starts_with("HTTP/1.1 101"), "{text}");
    assert!(text.contains("x-user: kubernetes-admin"), "{text}");
    assert!(text.contains("audit-id: mine"), "{text}");
    assert!(text.ends_with("\r\n\r\nhello"), "{text}");
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_one_is_told_and_breaks_nothing_else() {
    let api = Api::start().await;
    let registration = |name: &str, service: &str| {
        json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": format!("v1.{name}")},
            "spec": {"group": name, "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100,
                "insecureSkipTLSVerify": true, "service": {"name": service, "namespace": "default"}}})
    };
    api.post(SERVICES, registration("lost.example.com", "none")).await.ok();
    assert_eq!(
        until(&api, "v1.lost.example.com", "ServiceNotFound").await,
        "service/none in \"default\" is not present"
    );
    let service = |port: u16| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "none"},
            "spec": {"ports": [{"name": "api", "port": port}]}})
    };
    api.post("/api/v1/namespaces/default/services", service(80)).await.ok();
    assert_eq!(
        until(&api, "v1.lost.example.com", "ServicePortError").await,
        "service/none in \"default\" is not listening on port 443"
    );
    let path = "/api/v1/namespaces/default/services/none";
    api.merge(path, json!({"spec": {"ports": [{"name": "api", "port": 443}]}}))
        .await
        .ok();
    assert_eq!(
        until(&api, "v1.lost.example.com", "EndpointsNotFound").await,
        "cannot find endpointslices for service/none in \"default\""
    );
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "none-1", "labels": {"kubernetes.io/service-name": "none"}},
        "endpoints": [], "ports": [{"name": "api", "port": 443}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    api.post(slices, slice).await.ok();
    assert_eq!(
        until(&api, "v1.lost.example.com", "MissingEndpoints").await,
        "endpointslices for service/none in \"default\" have no addresses with port name \"api\""
    );
    let refused = api.get("/apis/lost.example.com/v1/namespaces/default/things").await;
    assert_eq!(
        (refused.code, refused.body.as_str()),
        (503, Some("service unavailable\n"))
    );
    assert_eq!(api.get("/apis/lost.example.com/v1").await.code, 503);
    let stale = aggregated(&api, "lost.example.com").await;
    assert_eq!(stale["versions"], json!([{"version": "v1", "freshness": "Stale"}]));
    assert_eq!(api.get("/apis/lost.example.com").await.code, 200);
    assert_eq!(aggregated(&api, "apps").await["versions"][0]["freshness"], "Current");
    assert!(api.get("/openapi/v2").await.ok()["paths"]["/api/v1/pods"].is_object());
    assert!(api.get("/openapi/v3").await.ok()["paths"]["api/v1"].is_object());

    // One that never answers delays nobody.
    let address = extension(&api, Way::Hang).await;
    register(&api, "slow.example.com", address).await;
    let started = Instant::now();
    assert_eq!(
        aggregated(&api, "slow.example.com").await["versions"][0]["freshness"],
        "Stale"
    );
    api.get("/openapi/v2").await.ok();
    assert!(started.elapsed() < Duration::from_secs(4));
    let message = until(&api, "v1.slow.example.com", "FailedDiscoveryCheck").await;
    assert!(
        message.starts_with("failing or missing response from https://ext.default.svc:")
            && message.contains("deadline"),
        "{message}"
    );
    api.server.stop().await;
}

/// The description of a boat by a server from before OpenAPI v3.
fn swagger(description: &str) -> Value {
    json!({"swagger": "2.0", "info": {"title": "Boats", "version": "v1"},
        "paths": {"/apis/old.example.com/v1/namespaces/{namespace}/boats": {
            "parameters": [{"name": "namespace", "in": "path", "type": "string", "required": true}],
            "get": {"operationId": "listBoats", "produces": ["application/json"], "x-kubernetes-action": "list",
                "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Boat"}}}}},
            "/apis/other.example.com/v1/things": {}},
        "definitions": {"Boat": {"description": description, "type": "object",
            "properties": {"metadata": {"description": "m", "$ref": "#/definitions/Meta"}},
            "x-kubernetes-group-version-kind": [{"group": "old.example.com", "kind": "Boat", "version": "v1"}]},
            "Meta": {"type": "object"}, "Unused": {}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_described_in_version_2_only_is_described_in_version_3() {
    let api = Api::start().await;
    let document = Arc::new(Mutex::new(swagger("It floats.")));
    let address = extension(&api, Way::Old(document.clone())).await;
    register(&api, "old.example.com", address).await;
    until(&api, "v1.old.example.com", "Passed").await;
    let index = api.get("/openapi/v3").await.ok();
    let url = index["paths"]["apis/old.example.com/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap();
    let (path, hash) = url.split_once("?hash=").unwrap();
    assert_eq!(path, "/openapi/v3/apis/old.example.com/v1");
    let answer = api.get(url).await;
    assert!(answer.headers["cache-control"].to_str().unwrap().contains("immutable"));
    assert_eq!(answer.headers["etag"], format!("\"{hash}\""));
    let found = answer.ok();
    let refer = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    assert_eq!(
        (&found["openapi"], &found["info"]["title"]),
        (&json!("3.0.0"), &json!("Boats"))
    );
    let schemas = found["components"]["schemas"].as_object().unwrap();
    assert_eq!(schemas.keys().collect::<Vec<_>>(), ["Boat", "Meta"]);
    assert_eq!(
        schemas["Boat"]["properties"]["metadata"],
        json!({"description": "m", "allOf": [refer("Meta")]})
    );
    let paths = found["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 1);
    let list = &paths["/apis/old.example.com/v1/namespaces/{namespace}/boats"]["get"];
    assert_eq!(
        list["responses"]["200"]["content"]["application/json"]["schema"],
        refer("Boat")
    );
    assert_eq!(api.get(&url.replace("hash=", "hash=0")).await.code, 301);
    assert_eq!(api.get(path).await.code, 200);
    let whole = api.get("/openapi/v2").await.ok();
    assert_eq!(whole["definitions"]["Boat"]["description"], "It floats.");

    // What the server says anew is made anew; a change of its Service is a reason to look.
    *document.lock().unwrap() = swagger("It sinks.");
    let service = "/api/v1/namespaces/default/services/ext";
    api.merge(service, json!({"metadata": {"labels": {"look": "again"}}}))
        .await
        .ok();
    let mut description = Value::Null;
    for _ in 0..500 {
        description = api.get(path).await.body["components"]["schemas"]["Boat"]["description"].clone();
        if description == "It sinks." {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(description, "It sinks.");
    assert_eq!(api.get(url).await.code, 301);
    api.delete(&format!("{SERVICES}/v1.old.example.com")).await.ok();
    for _ in 0..500 {
        if api.get(path).await.code == 404 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(api.get(path).await.code, 404);
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_over_the_registration_itself() {
    let api = Api::start().await;
    let address = extension(&api, Way::Echo).await;
    register(&api, "apiregistration.k8s.io", address).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(api.get(SERVICES).await.ok()["kind"], "APIServiceList");
    api.server.stop().await;
}

/// What a real extension server needs of us: its configuration, and answers about tokens and rights.
#[tokio::test(flavor = "multi_thread")]
async fn authentication_and_authorization_are_delegated() {
    let api = Api::start().await;
    let config = api
        .get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")
        .await
        .ok();
    let data = &config["data"];
    assert_eq!(
        data["requestheader-client-ca-file"],
        api.server.pki.front_proxy_ca_pem()
    );
    assert_eq!(data["client-ca-file"], api.server.pki.ca_pem());
    assert_eq!(data["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ext"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .ok();
    let subject = json!([{"kind": "ServiceAccount", "name": "ext", "namespace": "default"}]);
    let role = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    api.post(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings",
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "ext"},
            "subjects": subject, "roleRef": role("Role", "extension-apiserver-authentication-reader")}),
    )
    .await
    .ok();
    api.post(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "ext"},
            "subjects": subject, "roleRef": role("ClusterRole", "system:auth-delegator")}),
    )
    .await
    .ok();
    let token = api
        .post(
            "/api/v1/namespaces/default/serviceaccounts/ext/token",
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}),
        )
        .await
        .ok()["status"]["token"]
        .clone();
    let own = api
        .server
        .plane
        .connect(UserInfo::service_account("default", "ext", ""));
    let as_ext = |method: &'static str, path: &'static str, body: Value| {
        let mut own = own.clone();
        async move {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("content-type", "application/json")
                .body(Full::<Bytes>::from(if body.is_null() {
                    String::new()
                } else {
                    body.to_string()
                }))
                .unwrap();
            let response = tower::Service::call(&mut own, request).await.unwrap();
            let code = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (code, serde_json::from_slice::<Value>(&body).unwrap_or_default())
        }
    };
    let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    assert_eq!(as_ext("GET", path, Value::Null).await.0, 200);
    let (code, review) = as_ext(
        "POST",
        "/apis/authentication.k8s.io/v1/tokenreviews",
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}),
    )
    .await;
    assert_eq!(
        (code, &review["status"]["authenticated"]),
        (201, &json!(true)),
        "{review}"
    );
    let (code, review) = as_ext(
        "POST",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": "jane", "groups": ["system:masters"],
            "resourceAttributes": {"group": "wardle.example.com", "resource": "flunders", "verb": "list"}}}),
    )
    .await;
    assert_eq!((code, &review["status"]["allowed"]), (201, &json!(true)), "{review}");
    api.server.stop().await;
}
