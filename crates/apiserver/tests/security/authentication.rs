//! Who is asking, over a real connection: outside issuers, bootstrap tokens, static tokens, webhooks, the front proxy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::common::Api;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sampan_apiserver::authentication::{Oidc, Webhook};
use sampan_apiserver::body::Body;
use sampan_apiserver::testing::TestServer;
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use sampan_pki::jws::Algorithm;
use sampan_pki::token::TokenKeys;
use sampan_pki::{Identity, Params, Pki, tls};
use sampan_tasks::Tasks;
use serde_json::{Value, json};

/// Code and body of one request over TLS, with a certificate and headers.
#[allow(clippy::disallowed_methods)]
async fn ask(server: &TestServer, identity: Option<&Identity>, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
    let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let config = tls::client_config(server.pki.ca(), identity, &["http/1.1"]).unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driving = tokio::task::spawn(connection);
    let review = path.ends_with("reviews");
    let mut request = Request::builder()
        .method(if review { "POST" } else { "GET" })
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = match review {
        true => Bytes::from(r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#),
        false => Bytes::new(),
    };
    let response = sender
        .send_request(request.body(Full::new(body)).unwrap())
        .await
        .unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    driving.abort();
    (code, serde_json::from_slice(&body).unwrap_or_default())
}

const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// Whom a token names, or the code of the refusal.
async fn who(server: &TestServer, token: &str) -> Result<Value, u16> {
    let bearer = format!("Bearer {token}");
    let (code, body) = ask(server, None, WHO, &[("authorization", &bearer)]).await;
    match code {
        201 => Ok(body["status"]["userInfo"].clone()),
        401 => {
            // Nothing is learned from it.
            assert_eq!(body["message"], "Unauthorized");
            assert_eq!(body["reason"], "Unauthorized");
            assert!(body.get("details").is_none_or(Value::is_null));
            Err(401)
        }
        code => panic!("{code}: {body}"),
    }
}

/// An issuer that is not ours.
struct Outside {
    server: HttpsServer,
    pki: Pki,
    keys: Arc<std::sync::Mutex<Arc<TokenKeys>>>,
    fetched: Arc<AtomicU32>,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl Outside {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(dir.path(), Params::default()).unwrap();
        let tasks = Tasks::new();
        let keys = Arc::new(std::sync::Mutex::new(TokenKeys::ephemeral("outside").unwrap()));
        let fetched = Arc::new(AtomicU32::new(0));
        let handler: Handler = {
            let (keys, fetched) = (keys.clone(), fetched.clone());
            Arc::new(move |parts, _| {
                let host = parts.headers["host"].to_str().unwrap_or_default().to_owned();
                let url = format!("https://{host}");
                let answer = match parts.uri.path() {
                    "/.well-known/openid-configuration" => json!({"issuer": url, "jwks_uri": format!("{url}/keys")}),
                    "/elsewhere" => json!({"issuer": "https://named.example", "jwks_uri": format!("{url}/keys")}),
                    "/keys" => {
                        fetched.fetch_add(1, Ordering::Relaxed);
                        keys.lock().unwrap().jwks()
                    }
                    _ => Value::Null,
                };
                Box::pin(async move { Ok(Response::new(Body::from(Bytes::from(answer.to_string())))) })
            })
        };
        let server = HttpsServer::start(&pki, &tasks, &["localhost"], handler).await.unwrap();
        Outside {
            server,
            pki,
            keys,
            fetched,
            tasks,
            _dir: dir,
        }
    }

    fn url(&self) -> String {
        self.server.url("")
    }

    fn token(&self, claims: &Value) -> String {
        let mut whole = json!({"iss": self.url(), "aud": "cluster", "exp": now() + 600, "sub": "jane"});
        for (key, value) in claims.as_object().unwrap() {
            whole[key] = value.clone();
        }
        sign(&self.keys.lock().unwrap(), &whole)
    }

    fn authority(&self) -> String {
        self.pki.ca_pem().replace('\n', "\n      ")
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Any claims, signed by a key.
fn sign(keys: &TokenKeys, claims: &Value) -> String {
    keys.sign_claims(claims).unwrap()
}

fn write(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

#[tokio::test]
async fn outside_issuers() {
    let outside = Outside::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = |name: &str| {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous:\n  enabled: true\n  conditions: [{{path: /livez}}]\njwt:\n- issuer:\n    url: {}\n    audiences: [cluster, other]\n    audienceMatchPolicy: MatchAny\n    certificateAuthority: |\n      {}\n  claimValidationRules:\n  - {{expression: '!has(claims.tenant) || claims.tenant != \"bad\"', message: bad tenant}}\n  claimMappings:\n    username: {name}\n    groups: {{claim: groups, prefix: 'out:'}}\n    uid: {{claim: sub}}\n    extra:\n    - {{key: example.com/tenant, valueExpression: 'has(claims.tenant) ? claims.tenant : \"none\"'}}\n  userValidationRules:\n  - {{expression: '!user.username.startsWith(\"system:\")', message: reserved}}\n",
            outside.url(),
            outside.authority()
        )
    };
    let path = write(
        dir.path(),
        "authentication.yaml",
        &config("{claim: sub, prefix: 'out:'}"),
    );
    let file = path.clone();
    let api = Api::start_with(|config| config.authentication.config_file = Some(file)).await;
    let server = &api.server;

    let user = who(
        server,
        &outside.token(&json!({"groups": ["devs", "ops"], "tenant": "acme", "jti": "7"})),
    )
    .await;
    assert_eq!(
        user.unwrap(),
        json!({"username": "out:jane", "uid": "jane",
            "groups": ["out:devs", "out:ops", "system:authenticated"],
            "extra": {"example.com/tenant": ["acme"], "authentication.kubernetes.io/credential-id": ["JTI=7"]}})
    );
    assert_eq!(
        who(server, &outside.token(&json!({"groups": "solo"}))).await.unwrap()["groups"][0],
        "out:solo"
    );
    assert!(
        who(server, &outside.token(&json!({"aud": ["x", "other"]})))
            .await
            .is_ok()
    );
    for claims in [
        json!({"aud": "elsewhere"}),
        json!({"aud": null}),
        json!({"exp": now() - 1}),
        json!({"exp": null}),
        json!({"nbf": now() + 3600}),
        json!({"tenant": "bad"}),
        json!({"sub": 7}),
        json!({"iss": "https://nobody.example"}),
        json!({"groups": {"a": 1}}),
    ] {
        assert_eq!(who(server, &outside.token(&claims)).await, Err(401), "{claims}");
    }
    // A key of nobody's, however often, is asked for but a few times; the algorithm is not the token's to choose.
    let before = outside.fetched.load(Ordering::Relaxed);
    let stranger = TokenKeys::ephemeral("x").unwrap();
    for _ in 0..20 {
        let forged = sign(
            &stranger,
            &json!({"iss": outside.url(), "aud": "cluster", "exp": now() + 600, "sub": "root"}),
        );
        assert_eq!(who(server, &forged).await, Err(401));
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let payload = forged.split('.').nth(1).unwrap();
        assert_eq!(who(server, &format!("{none}.{payload}.")).await, Err(401));
    }
    assert!(outside.fetched.load(Ordering::Relaxed) - before <= 10);
    // The issuer changes its key.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let old = outside.token(&json!({"sub": "joe"}));
    *outside.keys.lock().unwrap() = TokenKeys::ephemeral("outside").unwrap();
    assert_eq!(
        who(server, &outside.token(&json!({}))).await.unwrap()["username"],
        "out:jane"
    );
    assert_eq!(who(server, &old).await, Err(401));

    // Anonymous only where the file says.
    assert_eq!(ask(server, None, "/livez", &[]).await.0, 200);
    assert_eq!(ask(server, None, "/readyz", &[]).await.0, 401);

    // The file changes: a wrong one is not taken, a right one is.
    write(dir.path(), "authentication.yaml", "kind: nonsense\n");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(
        who(server, &outside.token(&json!({}))).await.unwrap()["username"],
        "out:jane"
    );
    write(
        dir.path(),
        "authentication.yaml",
        &config("{expression: '\"new:\" + claims.sub'}"),
    );
    let mut name = Value::Null;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        name = who(server, &outside.token(&json!({}))).await.unwrap()["username"].clone();
        if name == "new:jane" {
            break;
        }
    }
    assert_eq!(name, "new:jane");
    // A rule about the user that came of it.
    write(dir.path(), "authentication.yaml", &config("{claim: sub, prefix: ''}"));
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(
        who(server, &outside.token(&json!({"sub": "system:admin"}))).await,
        Err(401)
    );
    let metrics = String::from_utf8_lossy(api.get("/metrics").await.body.to_string().as_bytes()).into_owned();
    assert!(metrics.contains("apiserver_authentication_config_controller_automatic_reloads_total"));

    // TokenReview says what is wrong; a request does not.
    let review = |token: String| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let known = api.post(path, review(outside.token(&json!({})))).await.ok();
    assert_eq!(known["status"]["authenticated"], true);
    assert_eq!(known["status"]["user"]["username"], "jane");
    let unknown = api.post(path, review(outside.token(&json!({"exp": 1})))).await.ok();
    assert_eq!(unknown["status"]["authenticated"], Value::Null);
    assert!(
        unknown["status"]["error"]
            .as_str()
            .unwrap()
            .contains("token is expired")
    );
    outside.tasks.drain().start();
}

#[tokio::test]
async fn the_older_options_of_one_issuer() {
    let outside = Outside::start().await;
    let dir = tempfile::tempdir().unwrap();
    let ca_file = Some(write(dir.path(), "ca.pem", &outside.pki.ca_pem()));
    let oidc = Oidc {
        issuer_url: outside.url(),
        client_id: "cluster".into(),
        ca_file,
        username_claim: "email".into(),
        username_prefix: None,
        groups_claim: Some("groups".into()),
        groups_prefix: "g:".into(),
        required_claims: vec![("hd".into(), "example.com".into())],
        algorithms: vec![Algorithm::Es256],
    };
    let api = Api::start_with(|config| config.authentication.oidc = Some(oidc)).await;
    let good = json!({"email": "jane@example.com", "email_verified": true, "hd": "example.com", "groups": ["a"]});
    let user = who(&api.server, &outside.token(&good)).await.unwrap();
    assert_eq!(
        (&user["username"], &user["groups"][0]),
        (&json!("jane@example.com"), &json!("g:a"))
    );
    for (key, value) in [
        ("email_verified", json!(false)),
        ("hd", json!("evil.example")),
        ("hd", Value::Null),
    ] {
        let mut claims = good.clone();
        claims[key] = value;
        assert_eq!(who(&api.server, &outside.token(&claims)).await, Err(401), "{key}");
    }
    outside.tasks.drain().start();
}

#[tokio::test]
async fn static_and_bootstrap_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let token_file = write(dir.path(), "tokens.csv", "s3cret,jane,7,\"devs,ops\"\n");
    let api = Api::start_with(|config| {
        config.authentication.token_file = Some(token_file);
        config.authentication.bootstrap_tokens = true;
        config.authentication.anonymous = Some(false);
    })
    .await;
    let server = &api.server;
    assert_eq!(
        who(server, "s3cret").await.unwrap()["groups"],
        json!(["devs", "ops", "system:authenticated"])
    );
    assert_eq!(who(server, "s3crets").await, Err(401));
    assert_eq!(ask(server, None, "/livez", &[]).await.0, 401);

    let token = "abc123.0123456789abcdef";
    assert_eq!(who(server, token).await, Err(401));
    let encode = |text: &str| STANDARD.encode(text);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
    "metadata": {"name": "bootstrap-token-abc123"}, "data": {
        "token-id": encode("abc123"), "token-secret": encode("0123456789abcdef"),
        "usage-bootstrap-authentication": encode("true"),
        "auth-extra-groups": encode("system:bootstrappers:kubeadm:default-node-token"),
    }});
    let path = "/api/v1/namespaces/kube-system/secrets";
    api.post(path, secret).await.ok();
    let user = who(server, token).await.unwrap();
    assert_eq!(user["username"], "system:bootstrap:abc123");
    assert_eq!(
        user["groups"],
        json!([
            "system:bootstrappers",
            "system:bootstrappers:kubeadm:default-node-token",
            "system:authenticated"
        ])
    );
    // It may do what its groups may: nothing yet.
    let bearer = format!("Bearer {token}");
    assert_eq!(
        ask(server, None, "/api/v1/nodes", &[("authorization", &bearer)])
            .await
            .0,
        403
    );
    assert_eq!(who(server, "abc123.0123456789abcdee").await, Err(401));
    let path = format!("{path}/bootstrap-token-abc123");
    let past = json!({"data": {"expiration": encode("2020-01-01T00:00:00Z")}});
    api.merge(&path, past).await.ok();
    assert_eq!(who(server, token).await, Err(401));
    api.merge(&path, json!({"data": {"expiration": null}})).await.ok();
    assert!(who(server, token).await.is_ok());
    api.delete(&path).await.ok();
    assert_eq!(who(server, token).await, Err(401));
}

/// A server that counts and answers reviews.
async fn reviewer(
    pki: &Pki,
    tasks: &Tasks,
    answer: impl Fn(&Value) -> Value + Send + Sync + 'static,
) -> (HttpsServer, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let answer = Arc::new(answer);
    let handler: Handler = Arc::new(move |_, body| {
        counted.fetch_add(1, Ordering::Relaxed);
        let mut review: Value = serde_json::from_slice(&body).unwrap_or_default();
        review["status"] = answer(&review);
        Box::pin(async move {
            if review["status"].is_null() {
                return Ok(Response::builder().status(400).body(Body::Empty)?);
            }
            Ok(Response::new(Body::from(Bytes::from(review.to_string()))))
        })
    });
    (HttpsServer::start(pki, tasks, &[], handler).await.unwrap(), count)
}

fn kubeconfig(dir: &Path, pki: &Pki, url: &str) -> PathBuf {
    let ca = STANDARD.encode(pki.ca_pem());
    write(
        dir,
        "webhook.yaml",
        &format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {{server: '{url}', certificate-authority-data: {ca}}}\ncontexts:\n- name: x\n  context: {{cluster: c, user: u}}\nusers:\n- name: u\n  user: {{token: webhook-token}}\ncurrent-context: x\n"
        ),
    )
}

#[tokio::test]
async fn a_webhook_knows_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::load_or_create(&dir.path().join("pki"), Params::default()).unwrap();
    let tasks = Tasks::new();
    let (hook, count) = reviewer(&pki, &tasks, |review| match review["spec"]["token"].as_str() {
        Some("good") => json!({"authenticated": true, "user": {"username": "w", "uid": "1", "groups": ["a"],
            "extra": {"k": ["v"]}}}),
        Some("for-vault") => json!({"authenticated": true, "user": {"username": "w"}, "audiences": ["vault"]}),
        Some("nameless") => json!({"authenticated": true, "user": {}}),
        Some("broken") => Value::Null,
        _ => json!({"authenticated": false}),
    })
    .await;
    let config_file = kubeconfig(dir.path(), &pki, &hook.url("/review"));
    let api = Api::start_with(|config| {
        config.authentication.webhook = Some(Webhook {
            config_file,
            version: "v1".into(),
            cache_ttl: Duration::from_secs(60),
        });
    })
    .await;
    let server = &api.server;
    for _ in 0..5 {
        assert_eq!(
            who(server, "good").await.unwrap(),
            json!({"username": "w", "uid": "1", "groups": ["a", "system:authenticated"], "extra": {"k": ["v"]}})
        );
        assert_eq!(who(server, "bad").await, Err(401));
    }
    assert_eq!(count.load(Ordering::Relaxed), 2);
    for token in ["for-vault", "nameless", "broken"] {
        assert_eq!(who(server, token).await, Err(401), "{token}");
    }
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": "for-vault", "audiences": ["vault", "x"]}});
    let answer = api
        .post("/apis/authentication.k8s.io/v1/tokenreviews", review)
        .await
        .ok();
    assert_eq!(answer["status"]["audiences"], json!(["vault"]));
    tasks.drain().start();
}

#[tokio::test]
async fn the_front_proxy_speaks_for_others_and_nobody_else_does() {
    let api = Api::start().await;
    let server = &api.server;
    let headers = [
        ("x-remote-user", "jane"),
        ("x-remote-group", "devs"),
        ("x-remote-extra-acme.com%2fkey", "v"),
    ];
    let (code, body) = ask(server, Some(&server.pki.front_proxy_client()), WHO, &headers).await;
    assert_eq!(code, 201, "{body}");
    let user = &body["status"]["userInfo"];
    assert_eq!(
        (&user["username"], &user["extra"]["acme.com/key"][0]),
        (&json!("jane"), &json!("v"))
    );
    // Without a name it speaks for nobody.
    assert_eq!(
        ask(server, Some(&server.pki.front_proxy_client()), WHO, &[]).await.0,
        401
    );
    assert_eq!(ask(server, None, WHO, &headers).await.0, 401);
    let plain = server.pki.issue(&sampan_pki::LeafSpec::client("joe", None)).unwrap();
    let (_, body) = ask(server, Some(&plain), WHO, &headers).await;
    assert_eq!(body["status"]["userInfo"]["username"], "joe");
}

#[tokio::test]
async fn tokens_kept_in_secrets() {
    let api = Api::start().await;
    let server = &api.server;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    let account = api
        .post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .ok();
    let claims = sampan_pki::token::LegacyClaims {
        namespace: "default".into(),
        service_account: sampan_pki::token::ObjectRef::new("robot", account["metadata"]["uid"].as_str().unwrap()),
        secret: "robot-token".into(),
    };
    let token = server.pki.tokens().issue_legacy(&claims).unwrap();
    assert_eq!(who(server, &token).await, Err(401));
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "robot-token", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "data": {"token": STANDARD.encode(&token)}});
    api.post("/api/v1/namespaces/default/secrets", secret).await.ok();
    assert_eq!(
        who(server, &token).await.unwrap()["username"],
        "system:serviceaccount:default:robot"
    );
    let path = "/api/v1/namespaces/default/secrets/robot-token";
    let mut noted = Value::Null;
    for _ in 0..50 {
        noted = api.get(path).await.ok()["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"].clone();
        if !noted.is_null() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(noted.as_str().map(str::len), Some(10));
    let mark = |value: Value| json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": value}}});
    api.merge(path, mark(json!("2026-01-01"))).await.ok();
    assert_eq!(who(server, &token).await, Err(401));
    api.merge(path, mark(Value::Null)).await.ok();
    assert!(who(server, &token).await.is_ok());
    api.merge(path, json!({"data": {"token": STANDARD.encode("another")}}))
        .await
        .ok();
    assert_eq!(who(server, &token).await, Err(401));
}

#[tokio::test]
async fn wrong_files_keep_the_server_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = write(dir.path(), "wrong", "one-column\n");
    let start = |change: Box<dyn FnOnce(&mut sampan_apiserver::Config)>| async {
        TestServer::start_with(change)
            .await
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let file = wrong.clone();
    let why = start(Box::new(move |config| config.authentication.token_file = Some(file))).await;
    assert!(why.contains("must have at least 3 columns"), "{why}");
    let file = wrong.clone();
    let why = start(Box::new(move |config| config.authentication.config_file = Some(file))).await;
    assert!(why.contains("is not valid"), "{why}");
    let file = wrong.clone();
    let why = start(Box::new(move |config| config.authorization.config_file = Some(file))).await;
    assert!(why.contains("is not valid"), "{why}");
    let why = start(Box::new(move |config| config.authorization.modes = vec!["ABAC".into()])).await;
    assert!(why.contains("ABAC is not supported"), "{why}");
}
