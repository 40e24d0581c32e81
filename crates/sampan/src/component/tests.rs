//! A role's port on a real API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use http::Request;
use http_body_util::BodyExt;
use sampan_apiserver::testing::TestServer;
use sampan_pki::LeafSpec;
use sampan_pki::tls::ClientVerifier;

use super::access::Access;
use super::server::Server;
use super::{Check, Component};

#[tokio::test(flavor = "multi_thread")]
async fn health_is_open_and_the_rest_is_not() {
    let api = TestServer::start().await.unwrap();
    let kubeconfig = api.kubeconfig_as("system:kube-scheduler", None).unwrap();
    let client = sampan_client::from_kubeconfig(&kubeconfig).await.unwrap();
    let ready = Arc::new(AtomicBool::new(false));
    let is_ready = Arc::clone(&ready);
    let server = Server {
        component: Component {
            name: "kube-scheduler",
            checks: vec![Check {
                name: "sched-handler-sync",
                only_ready: true,
                well: Box::new(move || is_ready.load(Relaxed)),
            }],
            metrics: Box::new(|| "some 1\n".into()),
            configuration: ("componentconfig", serde_json::json!({"a": 1})),
        },
        access: Access::new(client, ClientVerifier::new(api.pki.ca()).unwrap()),
    };
    let admin = api.pki.admin_client().unwrap().chain();
    let nobody = api.pki.issue(&LeafSpec::client("nobody", None)).unwrap().chain();
    let monitoring = LeafSpec::client("monitor", Some("system:monitoring"));
    let monitoring = api.pki.issue(&monitoring).unwrap().chain();
    let anonymous = Vec::new();
    let unready = "[+]ping ok\n[-]sched-handler-sync failed: reason withheld\nreadyz check failed\n";
    let forbidden = |user: &str, path: &str| format!("forbidden: User \\\"{user}\\\" cannot get path \\\"{path}\\\"");
    for (path, chain, code, body) in [
        ("/healthz", &anonymous, 200, "ok".to_owned()),
        (
            "/livez?verbose",
            &anonymous,
            200,
            "[+]ping ok\nlivez check passed\n".into(),
        ),
        ("/readyz", &anonymous, 500, unready.into()),
        ("/readyz?exclude=sched-handler-sync", &anonymous, 200, "ok".into()),
        ("/readyz/ping", &anonymous, 200, "ok".into()),
        ("/readyz/nothing", &anonymous, 404, "404".into()),
        ("/healthzx", &anonymous, 403, forbidden("system:anonymous", "/healthzx")),
        ("/metrics", &anonymous, 403, forbidden("system:anonymous", "/metrics")),
        ("/metrics", &nobody, 403, forbidden("nobody", "/metrics")),
        ("/metrics", &monitoring, 200, "some 1\n".into()),
        ("/configz", &monitoring, 403, forbidden("monitor", "/configz")),
        ("/configz", &admin, 200, "{\"componentconfig\":{\"a\":1}}".into()),
        ("/nothing", &admin, 404, "404".into()),
    ] {
        let request = Request::builder().uri(path).body(()).unwrap();
        let answer = server.answer(&request, chain).await;
        let status = answer.status().as_u16();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text);
        assert!(status == code && text.contains(&body), "{path}: {status} {text}");
    }
    ready.store(true, Relaxed);
    let request = Request::builder().uri("/readyz").body(()).unwrap();
    assert_eq!(server.answer(&request, &anonymous).await.status(), 200);
    let request = Request::builder().uri("/metrics").header("authorization", "Bearer x");
    let request = request.body(()).unwrap();
    assert_eq!(server.answer(&request, &anonymous).await.status(), 401);
    api.stop().await;
}
