//! Calls to other people's servers: where they are found, whom we believe, and what failures read like.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::Api;
use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use sampan_apiserver::Body;
use sampan_apiserver::outbound::{Error, Exchange, Place, Spec, Trust};
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use serde_json::json;

fn exchange(path: &str) -> Exchange<'_> {
    Exchange {
        method: Method::POST,
        path,
        headers: HeaderMap::new(),
        body: Bytes::from_static(b"ping"),
        timeout: Duration::from_secs(10),
        limit: 1 << 16,
    }
}

fn handler() -> Handler {
    let calls = Arc::new(AtomicUsize::new(0));
    Arc::new(move |parts, body| {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            match parts.uri.path() {
                "/huge" => Ok(Response::new(Body::from(vec![b'x'; 1 << 20]))),
                "/hang" => std::future::pending().await,
                "/break" => Err("broken off".into()),
                _ => {
                    let host = parts.headers["host"].to_str().unwrap_or_default().to_owned();
                    Ok(Response::new(Body::from(format!(
                        "{call} {host} {}",
                        String::from_utf8_lossy(&body)
                    ))))
                }
            }
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_found_believed_and_called() {
    let api = Api::start().await;
    let server = &api.server;
    let https = HttpsServer::start(
        &server.pki,
        &server.tasks,
        &["hook.default.svc", "localhost"],
        handler(),
    )
    .await
    .unwrap();
    let port = https.address.port();
    let outbound = server.plane.outbound();
    let ca = Trust::Bundle(server.pki.ca_pem().as_bytes().to_vec());
    let spec = |place: &Place, trust: &Trust| Spec {
        place: place.clone(),
        trust: trust.clone(),
        identity: None,
    };
    let service = Place::Service {
        namespace: "default".into(),
        name: "hook".into(),
        port: 443,
    };
    let peer = outbound.peer(&spec(&service, &ca)).unwrap();
    assert!(Arc::ptr_eq(&peer, &outbound.peer(&spec(&service, &ca)).unwrap()));
    assert_eq!(
        peer.call(&exchange("/a")).await.unwrap_err(),
        Error::NoService("hook".into())
    );
    let services = "/api/v1/namespaces/default/services";
    api.post(
        services,
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook"},
            "spec": {"selector": {"app": "hook"}, "ports": [{"port": 443}]}}),
    )
    .await
    .ok();
    assert_eq!(
        peer.call(&exchange("/a"))
            .await
            .unwrap_err()
            .during("Post", &peer.url("/a?timeout=10s")),
        r#"Post "https://hook.default.svc:443/a?timeout=10s": no endpoints available for service "hook""#
    );
    api.delete(&format!("{services}/hook")).await.ok();
    api.post(
        services,
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook"},
            "spec": {"type": "ExternalName", "externalName": "localhost"}}),
    )
    .await
    .ok();
    let service = Place::Service {
        namespace: "default".into(),
        name: "hook".into(),
        port,
    };
    let peer = outbound.peer(&spec(&service, &ca)).unwrap();
    for call in 0..3 {
        let answer = peer.call(&exchange("/a")).await.unwrap();
        assert_eq!(answer.body, format!("{call} hook.default.svc:{port} ping"));
    }
    assert_eq!(
        peer.call(&exchange("/huge")).await.unwrap_err(),
        Error::TooLarge(1 << 16)
    );
    assert_eq!(peer.call(&exchange("/break")).await.unwrap_err(), Error::Broken("EOF"));
    let mut short = exchange("/hang");
    short.timeout = Duration::from_millis(200);
    assert_eq!(peer.call(&short).await.unwrap_err(), Error::Deadline);
    assert!(peer.call(&exchange("/a")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_read_as_in_go() {
    let api = Api::start().await;
    let server = &api.server;
    let https = HttpsServer::start(&server.pki, &server.tasks, &["other"], handler())
        .await
        .unwrap();
    let outbound = server.plane.outbound();
    let own = Trust::Bundle(server.pki.ca_pem().as_bytes().to_vec());
    let dir = tempfile::tempdir().unwrap();
    let foreign = sampan_pki::Pki::load_or_create(dir.path(), sampan_pki::Params::default()).unwrap();
    let foreign = Trust::Bundle(foreign.ca_pem().as_bytes().to_vec());
    let (at, _) = Place::of_url(&https.url("/x")).unwrap();
    let named = |host: &str| Place::Host {
        host: host.into(),
        port: https.address.port(),
    };
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let cases = [
        (
            at.clone(),
            foreign,
            "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned(),
        ),
        (
            named("localhost"),
            own.clone(),
            "tls: failed to verify certificate: x509: certificate is valid for other, not localhost".to_owned(),
        ),
        (
            Place::Host {
                host: "127.0.0.1".into(),
                port: free.port(),
            },
            own.clone(),
            format!("dial tcp {free}: connect: connection refused"),
        ),
        (
            named("nowhere.invalid"),
            own,
            "dial tcp: lookup nowhere.invalid: no such host".to_owned(),
        ),
    ];
    for (place, trust, why) in cases {
        let peer = outbound
            .peer(&Spec {
                place,
                trust,
                identity: None,
            })
            .unwrap();
        assert_eq!(peer.call(&exchange("/x")).await.unwrap_err().to_string(), why);
    }
    let anyone = Spec {
        place: named("localhost"),
        trust: Trust::Anyone,
        identity: None,
    };
    assert!(outbound.peer(&anyone).unwrap().call(&exchange("/x")).await.is_ok());
    let nonsense = Spec {
        trust: Trust::Bundle(b"nonsense".to_vec()),
        ..anyone
    };
    assert_eq!(
        outbound
            .peer(&nonsense)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default(),
        "unable to load root certificates: unable to parse bytes as PEM block"
    );
    assert!(Place::of_url("http://x/").is_err() && Place::of_url("https://[::1]:9443/a?b").is_ok());
}
