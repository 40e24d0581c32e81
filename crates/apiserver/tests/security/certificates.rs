//! Certificates that live seconds: whoever talks to the server goes on, and so does whomever the server talks to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use sampan_apiserver::testing::TestServer;
use sampan_auth::UserInfo;
use sampan_pki::keys::{Keys, Rotating, Step};
use sampan_pki::tls;
use sampan_pki::{LeafSpec, Pki};
use sampan_tasks::OnExit;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::common::Api;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const TOKEN: &str = "a-token-that-does-not-end";
/// Renewed after 3.7 to 4.8 of them.
const LIFETIME: Duration = Duration::from_secs(5);

type Seen = Arc<Mutex<BTreeSet<Vec<u8>>>>;
type Sender = SendRequest<Full<Bytes>>;

/// A server that lets in only whom the cluster's authority (or the front proxy's) vouches for, and remembers the certificates
/// it was shown. Its own certificate is always fresh.
async fn backend(server: &TestServer, front_proxy: bool) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (pki, tasks, seen) = (server.pki.clone(), server.tasks.clone(), Seen::default());
    let remembered = seen.clone();
    let spec = LeafSpec::server("backend", ["ext.default.svc".to_owned()], [LOOPBACK]);
    let work = async move {
        while let Ok((stream, _)) = listener.accept().await {
            let verifier = if front_proxy {
                pki.front_proxy_verifier()
            } else {
                pki.verifier()
            };
            let config = tls::strict_server_config(pki.issue(&spec).unwrap(), &verifier).unwrap();
            let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await else {
                continue;
            };
            let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
            remembered.lock().unwrap().insert(shown);
            let answer =
                |_: Request<Incoming>| async { Ok::<_, std::io::Error>(Response::new(Full::<Bytes>::from("{}"))) };
            tasks.spawn_until_drain("backend connection", OnExit::Expected, async move {
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer));
                let _ended = serving.await;
            });
        }
    };
    server.tasks.spawn_until_drain("backend", OnExit::Expected, work);
    (address, seen)
}

/// A connection of a client that trusts the authorities there are, and what it was shown.
async fn connect(server: &TestServer, pki: &Pki) -> (Sender, Vec<u8>) {
    let config = tls::client_config_of(&pki.authorities(), None, &["http/1.1"]).unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = rustls_pki_types::ServerName::from(LOOPBACK);
    let stream = tokio_rustls::TlsConnector::from(config)
        .connect(name, stream)
        .await
        .unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    server.tasks.spawn_until_drain("client", OnExit::Expected, async move {
        let _ended = connection.await;
    });
    (sender, shown)
}

async fn ask(sender: &mut Sender, path: &str) -> u16 {
    let request = Request::get(path)
        .header("host", "x")
        .header("authorization", format!("Bearer {TOKEN}"));
    sender.ready().await.unwrap();
    let response = sender
        .send_request(request.body(Full::<Bytes>::default()).unwrap())
        .await
        .unwrap();
    let code = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    code
}

async fn server() -> TestServer {
    let administrator = UserInfo::new("jane", ["system:masters"]);
    TestServer::start_for(LIFETIME, |config| {
        config.fixed_tokens.push((TOKEN.into(), administrator))
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_goes_on_while_certificates_expire() {
    let api = Api::of(server().await);
    let (node, node_saw) = backend(&api.server, false).await;
    let (extension, extension_saw) = backend(&api.server, true).await;
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    api.post("/api/v1/nodes", object).await.ok();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": node.ip().to_string()}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": node.port()}}}});
    api.merge("/api/v1/nodes/n1/status", status).await.ok();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ext"},
        "spec": {"type": "ExternalName", "externalName": "localhost"}});
    api.post("/api/v1/namespaces/default/services", service).await.ok();
    let registration = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1.ext.example.com"}, "spec": {
            "group": "ext.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 10,
            "insecureSkipTLSVerify": true, "service": {"name": "ext", "namespace": "default", "port": extension.port()}}});
    api.post("/apis/apiregistration.k8s.io/v1/apiservices", registration)
        .await
        .ok();
    let pki = api.server.pki.clone();
    let renewals = sampan_apiserver::renewals(pki.clone(), Timestamp::now);
    api.server
        .tasks
        .spawn_until_drain("renewals", OnExit::Critical, renewals);

    let (mut kept, first) = connect(&api.server, &pki).await;
    let mut shown = BTreeSet::from([first]);
    let begun = Instant::now();
    let mut extension_answered = false;
    while begun.elapsed() < LIFETIME * 2 {
        assert_eq!(ask(&mut kept, "/api/v1/namespaces").await, 200);
        let (mut fresh, certificate) = connect(&api.server, &pki).await;
        shown.insert(certificate);
        assert_eq!(ask(&mut fresh, "/api/v1/nodes/n1/proxy/metrics").await, 200);
        let answered = ask(&mut fresh, "/apis/ext.example.com/v1/things").await == 200;
        assert!(answered || !extension_answered, "the extension server was lost");
        extension_answered = answered;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(extension_answered);
    for (what, seen) in [
        ("clients", shown.len()),
        ("the node", node_saw.lock().unwrap().len()),
        ("the extension server", extension_saw.lock().unwrap().len()),
    ] {
        assert!(seen >= 3, "{what} saw {seen} certificates in two lives of one");
    }
    api.stop().await;
}

/// Both authorities are replaced under a running server.
#[tokio::test(flavor = "multi_thread")]
async fn authorities_are_published_believed_and_retired() {
    let api = Api::start().await;
    let pki = api.server.pki.clone();
    let published = || async {
        let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
        let data = api.get(path).await.ok()["data"].clone();
        let count = |key: &str| data[key].as_str().unwrap().matches("BEGIN").count();
        (count("client-ca-file"), count("requestheader-client-ca-file"))
    };
    assert_eq!(published().await, (1, 1));
    let old_trust = tls::client_config(pki.ca(), Some(&pki.admin_client().unwrap()), &["http/1.1"]).unwrap();
    let connect = |config: Arc<rustls::ClientConfig>| {
        let (address, tasks) = (api.server.address, api.server.tasks.clone());
        async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = rustls_pki_types::ServerName::from(LOOPBACK);
            let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
            tasks.spawn_until_drain("client", OnExit::Expected, async move {
                let _ended = connection.await;
            });
            Ok::<Sender, std::io::Error>(sender)
        }
    };
    let get = |mut sender: Sender| async move {
        let request = Request::get("/api/v1/namespaces")
            .header("host", "x")
            .body(Full::<Bytes>::default())
            .unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        let code = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        (code, sender)
    };
    let mut kept = connect(old_trust.clone()).await.unwrap();
    for (step, certificates) in [(Step::Trust, 2), (Step::Issue, 2), (Step::Retire, 1)] {
        let keys = Keys::read(pki.dir())
            .unwrap()
            .step(Rotating::Authorities, step)
            .unwrap();
        keys.write(pki.dir()).unwrap();
        pki.reload().unwrap();
        let begun = Instant::now();
        while published().await != (certificates, certificates) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{step:?} is not published");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (code, sender) = get(kept).await;
        kept = sender;
        if step == Step::Retire {
            // Neither over the connection that was, nor over a new one.
            assert_eq!(code, 401);
            assert!(connect(old_trust.clone()).await.is_err());
        } else {
            assert_eq!(code, 200);
            assert_eq!(get(connect(old_trust.clone()).await.unwrap()).await.0, 200);
        }
        let now = tls::client_config_of(&pki.authorities(), Some(&pki.admin_client().unwrap()), &["http/1.1"]).unwrap();
        assert_eq!(get(connect(now).await.unwrap()).await.0, 200);
    }
    api.stop().await;
}

/// What relying parties outside read: the first issuer, every key, and nothing where the issuer is no URL.
#[tokio::test(flavor = "multi_thread")]
async fn the_issuer_of_tokens_is_published() {
    use sampan_pki::{Params, Pki};
    for (issuers, jwks_uri, published) in [
        (vec!["https://first.example", "https://former.example"], None, true),
        (vec!["https://first.example"], Some("https://keys.example/jwks"), true),
        (vec!["first", "https://former.example"], None, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let params = Params {
            issuers: issuers.iter().map(ToString::to_string).collect(),
            jwks_uri: jwks_uri.map(str::to_owned),
            ..Params::default()
        };
        let pki = Arc::new(Pki::load_or_create(dir.path(), params).unwrap());
        let own = pki.clone();
        let api = Api::start_with(move |config| config.pki = own).await;
        let config = api.get("/.well-known/openid-configuration").await;
        let keys = api.get("/openid/v1/jwks").await;
        let paths = api.get("/").await.ok()["paths"].to_string();
        assert_eq!(paths.contains("/openid/v1/jwks"), published);
        if !published {
            assert_eq!((config.code, keys.code), (404, 404));
            api.stop().await;
            continue;
        }
        assert_eq!(config.headers["cache-control"], "public, max-age=3600");
        assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
        assert_eq!(config.body["issuer"], "https://first.example");
        let told = config.body["jwks_uri"].as_str().unwrap();
        match jwks_uri {
            Some(uri) => assert_eq!(told, uri),
            None => assert!(told.starts_with("https://192.0.2.1:") && told.ends_with("/openid/v1/jwks")),
        }
        assert_eq!(keys.body["keys"][0]["kid"], pki.tokens().key_id());
        // The next key is there before it signs, and the old one as long as it is believed.
        for (step, count) in [(Step::Trust, 2), (Step::Issue, 2), (Step::Retire, 1)] {
            let next = Keys::read(dir.path())
                .unwrap()
                .step(Rotating::AccountKey, step)
                .unwrap();
            next.write(dir.path()).unwrap();
            pki.reload().unwrap();
            let keys = api.get("/openid/v1/jwks").await.body["keys"].clone();
            assert_eq!(keys.as_array().unwrap().len(), count);
            assert_eq!(keys[0]["kid"], pki.tokens().key_id());
        }
        api.stop().await;
    }
}
