//! The audit log as its readers find it: events of every stage and level, in a file and at a webhook, and what a webhook
//! that is slow or gone costs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::{Api, config_map};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use sampan_apiserver::Body;
use sampan_apiserver::audit::{BatchOptions, Format, LogOptions, Mode, Options, Rotation, Truncation, WebhookOptions};
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use sampan_pki::{Kubeconfig, Params, Pki, UserCredential, tls};
use sampan_tasks::Tasks;
use serde_json::{Value, json};

const CM: &str = "/api/v1/namespaces/default/configmaps";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const PATIENCE: Duration = Duration::from_secs(20);

fn written(dir: &Path, rules: &str) -> PathBuf {
    let path = dir.join("policy.yaml");
    let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}");
    std::fs::write(&path, text).unwrap();
    path
}

fn blocking() -> BatchOptions {
    BatchOptions {
        mode: Mode::Blocking,
        buffer_size: 1000,
        max_size: 1,
        max_wait: Duration::ZERO,
        throttle: None,
    }
}

fn to_file(dir: &Path, rules: &str) -> Options {
    Options {
        policy_file: Some(written(dir, rules)),
        log: Some(LogOptions {
            path: dir.join("audit.log"),
            format: Format::Json,
            rotation: Rotation {
                max_size: 100,
                max_age: 0,
                max_backups: 0,
                compress: false,
            },
            batch: blocking(),
            truncation: None,
        }),
        webhook: None,
    }
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The events of one request, by its verb and what its URI contains.
fn of<'a>(events: &'a [Value], verb: &str, uri: &str) -> Vec<&'a Value> {
    events
        .iter()
        .filter(|event| event["verb"] == verb && event["requestURI"].as_str().unwrap().contains(uri))
        .collect()
}

fn stages(events: &[&Value]) -> Vec<String> {
    events
        .iter()
        .map(|event| event["stage"].as_str().unwrap().to_owned())
        .collect()
}

const MINE: &str = "rules:
- {level: None, users: ['system:apiserver']}
- {level: RequestResponse, omitManagedFields: true, resources: [{resources: [configmaps, deployments], group: '*'}]}
- {level: Request, resources: [{resources: [secrets, 'serviceaccounts/token']}]}
- {level: Metadata, omitStages: [RequestReceived]}
";

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_recorded_as_the_policy_says() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    let api = Api::start_with(|config| config.audit = to_file(dir.path(), MINE)).await;
    api.post(CM, config_map("one")).await.ok();
    api.merge(&format!("{CM}/one"), json!({"data": {"a": "b"}})).await.ok();
    let apply = "kind: ConfigMap\napiVersion: v1\nmetadata: {name: two}\ndata: {x: word}\n";
    api.send(
        "PATCH",
        &format!("{CM}/two?fieldManager=me"),
        "application/apply-patch+yaml",
        apply,
    )
    .await
    .ok();
    // A protobuf answer is recorded as JSON.
    let protobuf = "application/vnd.kubernetes.protobuf";
    assert_eq!(
        api.send_as("GET", &format!("{CM}/one"), "", protobuf, "").await.code,
        200
    );
    api.get(&format!("{CM}?limit=1")).await.ok();
    api.send(
        "DELETE",
        &format!("{CM}/one"),
        "application/json",
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}).to_string(),
    )
    .await
    .ok();
    api.get(&format!("{CM}/nobody"))
        .await
        .refused(404, "NotFound", "configmaps \"nobody\" not found");
    api.post(
        SECRETS,
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}, "stringData": {"k": "hidden"}}),
    )
    .await
    .ok();
    let path = "/api/v1/namespaces/default/serviceaccounts";
    api.post(
        path,
        json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "sa"}}),
    )
    .await
    .ok();
    api.post(
        &format!("{path}/sa/token"),
        json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}}),
    )
    .await
    .ok();
    let denied = api.transport("eve", &["people"]);
    let request = Request::builder()
        .uri("/api/v1/nodes")
        .body(Full::<Bytes>::default())
        .unwrap();
    let answer = tower::Service::call(&mut denied.clone(), request).await.unwrap();
    assert_eq!(answer.status(), 403);
    let request = Request::builder()
        .uri("/version?as=other")
        .header("impersonate-user", "dan")
        .header("impersonate-group", "devs")
        .body(Full::<Bytes>::default())
        .unwrap();
    assert_eq!(api.raw(request).await.status(), 200);
    let mut watch = api.watch("/api/v1/namespaces?watch=1").await;
    watch.next().await.unwrap();
    let under_way = lines(&log);
    let begun = of(&under_way, "watch", "/namespaces?");
    assert_eq!(stages(&begun), ["ResponseStarted"]);
    drop(watch);
    let deadline = Instant::now() + PATIENCE;
    while stages(&of(&lines(&log), "watch", "/namespaces?")).len() < 2 {
        assert!(Instant::now() < deadline, "the end of the watch is not recorded");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let events = lines(&log);
    assert_eq!(
        stages(&of(&events, "watch", "/namespaces?")),
        ["ResponseStarted", "ResponseComplete"]
    );
    // Create, with everything.
    let created = of(&events, "create", CM);
    assert_eq!(stages(&created), ["RequestReceived", "ResponseComplete"]);
    assert_eq!(created[0]["auditID"], created[1]["auditID"]);
    let event = created[1];
    assert_eq!(
        (event["kind"].as_str(), event["apiVersion"].as_str()),
        (Some("Event"), Some("audit.k8s.io/v1"))
    );
    assert_eq!(event["level"], "RequestResponse");
    assert_eq!(
        event["user"],
        json!({"username": "admin", "groups": ["system:masters", "system:authenticated"]})
    );
    assert_eq!(event["sourceIPs"], json!(["127.0.0.1"]));
    assert_eq!(event["userAgent"], "tests/1");
    assert_eq!(
        event["objectRef"],
        json!({"resource": "configmaps", "namespace": "default", "name": "one", "apiVersion": "v1"})
    );
    assert_eq!(event["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(event["requestObject"]["metadata"]["name"], "one");
    assert_eq!(event["responseObject"]["kind"], "ConfigMap");
    assert!(event["responseObject"]["metadata"]["uid"].is_string());
    assert!(event["responseObject"]["metadata"]["managedFields"].is_null());
    assert_eq!(
        event["annotations"],
        json!({"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""})
    );
    assert_eq!(
        event["stageTimestamp"].as_str().unwrap().len(),
        "2006-01-02T15:04:05.000000Z".len()
    );
    assert!(
        created[0]["responseStatus"].is_null()
            && created[0]["stageTimestamp"] == created[0]["requestReceivedTimestamp"]
    );
    // Patches as they came, in JSON.
    let patched = of(&events, "patch", "/configmaps/");
    assert_eq!(patched[1]["requestObject"], json!({"data": {"a": "b"}}));
    assert_eq!(patched[3]["requestObject"]["metadata"]["name"], "two");
    let got = of(&events, "get", "/configmaps/one");
    assert_eq!(got[1]["responseObject"]["data"]["a"], "b");
    let listed = of(&events, "list", CM);
    assert_eq!(listed[1]["responseObject"]["kind"], "ConfigMapList");
    let deleted = of(&events, "delete", CM);
    assert_eq!(deleted[1]["requestObject"]["kind"], "DeleteOptions");
    assert_eq!(deleted[1]["responseStatus"]["status"], "Success");
    let missing = of(&events, "get", "/configmaps/nobody");
    let status = &missing[1]["responseStatus"];
    assert_eq!(
        (status["code"].as_u64(), status["reason"].as_str()),
        (Some(404), Some("NotFound"))
    );
    assert_eq!(status["details"]["kind"], "configmaps");
    assert_eq!(missing[1]["responseObject"]["kind"], "Status");
    // At level Request there is the request, as upstream, and no answer.
    let secret = of(&events, "create", SECRETS);
    assert_eq!(secret[1]["requestObject"]["data"]["k"], "aGlkZGVu");
    assert!(secret[1]["responseObject"].is_null());
    let token = of(&events, "create", "/sa/token");
    assert!(
        token[1]["annotations"]["authentication.kubernetes.io/issued-credential-id"]
            .as_str()
            .unwrap()
            .starts_with("JTI=")
    );
    assert!(token[1]["responseObject"].is_null());
    // Metadata, without its first stage.
    let denied = of(&events, "list", "/api/v1/nodes");
    assert_eq!(stages(&denied), ["ResponseComplete"]);
    assert_eq!(denied[0]["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(denied[0]["responseStatus"]["code"], 403);
    assert!(denied[0]["requestObject"].is_null());
    let acting = of(&events, "get", "as=other");
    assert_eq!(acting[0]["user"]["username"], "admin");
    assert_eq!(acting[0]["impersonatedUser"]["username"], "dan");
    assert!(
        of(&events, "create", "/")
            .iter()
            .all(|event| event["user"]["username"] != "system:apiserver")
    );
    let metrics = api.get("/metrics").await;
    let text = metrics.body.as_str().unwrap();
    assert!(
        text.contains("apiserver_audit_level_total{level=\"Request\"} "),
        "{text}"
    );
    assert!(text.contains("apiserver_audit_event_total "));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_and_the_network_are_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    let rules = "omitStages: [RequestReceived]\nrules:\n- {level: Metadata, resources: [{resources: [pods]}]}\n- {level: Metadata, nonResourceURLs: [/version]}\n";
    let api = Api::start_with(|config| config.audit = to_file(dir.path(), rules)).await;
    api.merge(
        "/api/v1/namespaces/default",
        json!({"metadata": {"labels": {"pod-security.kubernetes.io/audit": "baseline"}}}),
    )
    .await
    .ok();
    api.post(
        "/api/v1/namespaces/default/serviceaccounts",
        json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}}),
    )
    .await;
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"},
        "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}});
    api.post("/api/v1/namespaces/default/pods", pod).await.ok();
    let events = lines(&log);
    let annotations = &of(&events, "create", "/pods")[0]["annotations"];
    assert_eq!(
        annotations["pod-security.kubernetes.io/enforce-policy"],
        "privileged:latest"
    );
    let violations = annotations["pod-security.kubernetes.io/audit-violations"]
        .as_str()
        .unwrap();
    assert!(violations.contains("hostNetwork"), "{violations}");
    // Over the network: the client's name for its request, its address, and one who proves nothing.
    for (token, code) in [("", 200), ("Bearer nonsense", 401)] {
        let tls = tls::client_config(api.server.pki.ca(), None, &["http/1.1"]).unwrap();
        let stream = tokio::net::TcpStream::connect(api.server.address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("127.0.0.1").unwrap();
        let stream = tokio_rustls::TlsConnector::from(tls)
            .connect(name, stream)
            .await
            .unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        api.server
            .tasks
            .spawn("test-client", sampan_tasks::OnExit::Expected, async move {
                let _ended = connection.await;
            });
        let mut request = Request::builder()
            .uri("/version")
            .header("host", "x")
            .header("audit-id", format!("mine-{code}"))
            .header("x-forwarded-for", "203.0.113.5");
        if !token.is_empty() {
            request = request.header("authorization", token);
        }
        let response = sender
            .send_request(request.body(Full::<Bytes>::default()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), code);
        assert_eq!(response.headers()["audit-id"], format!("mine-{code}"));
        drop(response.into_body().collect().await);
        let events = lines(&log);
        let event = events
            .iter()
            .find(|event| event["auditID"] == format!("mine-{code}"))
            .unwrap();
        assert_eq!(event["sourceIPs"], json!(["203.0.113.5", "127.0.0.1"]));
        assert_eq!(event["responseStatus"]["code"], code);
        if code == 401 {
            assert_eq!(event["stage"], "ResponseStarted");
            assert_eq!(
                event["responseStatus"]["message"],
                "Authentication failed, attempted: bearer"
            );
            assert_eq!(event["user"], json!({}));
        } else {
            assert_eq!(event["user"]["username"], "system:anonymous");
        }
    }
}

/// A webhook that keeps what it gets; the first `failures` posts it refuses.
struct Hook {
    _server: HttpsServer,
    config: PathBuf,
    got: Arc<Mutex<Vec<Value>>>,
    tasks: Tasks,
}

async fn hook(dir: &Path, failures: usize, pause: Duration) -> Hook {
    let pki = Pki::load_or_create(&dir.join("hook-pki"), Params::default()).unwrap();
    let tasks = Tasks::new();
    let got = Arc::new(Mutex::new(Vec::new()));
    let (remember, refused) = (got.clone(), Arc::new(Mutex::new(failures)));
    let handler: Handler = Arc::new(move |parts, body| {
        let (remember, refused) = (remember.clone(), refused.clone());
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            let mut left = refused.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                return Ok(Response::builder().status(503).body(Body::Empty)?);
            }
            assert_eq!(parts.uri.path(), "/events");
            assert_eq!(parts.headers["authorization"], "Bearer opens");
            remember.lock().unwrap().push(serde_json::from_slice(&body)?);
            Ok(Response::new(Body::Empty))
        })
    });
    let server = HttpsServer::start(&pki, &tasks, &["hook"], handler).await.unwrap();
    let config = dir.join("hook.kubeconfig");
    let kubeconfig = Kubeconfig {
        cluster: "hook",
        server: &server.url("/events"),
        ca_pem: &pki.ca_pem(),
        user: "auditor",
        credential: UserCredential::Token("opens".into()),
    };
    kubeconfig.write(&config).unwrap();
    Hook {
        _server: server,
        config,
        got,
        tasks,
    }
}

fn to_hook(dir: &Path, hook: &Hook, batch: BatchOptions, truncation: Option<Truncation>) -> Options {
    Options {
        policy_file: Some(written(dir, "rules:\n- {level: Request, users: [admin]}\n")),
        log: None,
        webhook: Some(WebhookOptions {
            config_file: hook.config.clone(),
            initial_backoff: Duration::from_millis(20),
            batch,
            truncation,
        }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_gets_batches_also_after_failures_and_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let hook = hook(dir.path(), 2, Duration::ZERO).await;
    let batch = BatchOptions {
        mode: Mode::Batch,
        buffer_size: 1000,
        max_size: 400,
        max_wait: Duration::from_secs(60),
        throttle: Some((10.0, 15)),
    };
    let truncation = Truncation {
        max_event: 4096,
        max_batch: 8192,
    };
    let options = to_hook(dir.path(), &hook, batch, Some(truncation));
    let api = Api::start_with(|config| config.audit = options).await;
    for number in 0..10 {
        api.post(CM, config_map(&format!("c{number}"))).await.ok();
    }
    let mut large = config_map("large");
    large["data"]["big"] = "x".repeat(10_000).into();
    api.post(CM, large).await.ok();
    // The batch is not full and its time has not come; the server's end brings it.
    assert!(hook.got.lock().unwrap().is_empty());
    api.server.stop().await;
    let lists = hook.got.lock().unwrap().clone();
    assert!(lists.len() > 1, "a batch is no larger than truncation says");
    let mut events = Vec::new();
    for list in &lists {
        assert_eq!(
            (list["kind"].as_str(), list["apiVersion"].as_str()),
            (Some("EventList"), Some("audit.k8s.io/v1"))
        );
        events.extend(list["items"].as_array().unwrap().iter().cloned());
    }
    assert!(events.iter().all(|event| event["kind"].is_null()));
    assert_eq!(of(&events, "create", CM).len(), 22);
    let cut: Vec<_> = events
        .iter()
        .filter(|event| event["annotations"]["audit.k8s.io/truncated"] == "true")
        .collect();
    assert_eq!(cut.len(), 1);
    assert!(cut[0]["requestObject"].is_null() && cut[0]["objectRef"]["name"] == "large");
    hook.tasks.shutdown(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_webhook_costs_events_and_no_request() {
    let dir = tempfile::tempdir().unwrap();
    let hook = hook(dir.path(), 0, Duration::from_secs(600)).await;
    let batch = BatchOptions {
        mode: Mode::Batch,
        buffer_size: 20,
        max_size: 1,
        max_wait: Duration::from_secs(1),
        throttle: None,
    };
    let options = to_hook(dir.path(), &hook, batch, None);
    let api = Api::start_with(|config| config.audit = options).await;
    let begun = Instant::now();
    for number in 0..100 {
        api.post(CM, config_map(&format!("c{number}"))).await.ok();
    }
    assert!(begun.elapsed() < PATIENCE, "requests waited for the webhook");
    let metrics = api.get("/metrics").await;
    let text = metrics.body.as_str().unwrap();
    let lost = text
        .lines()
        .find_map(|line| line.strip_prefix("apiserver_audit_error_total{plugin=\"buffered\"} "))
        .and_then(|number| number.parse::<u64>().ok())
        .unwrap_or(0);
    assert!(lost > 100, "{lost} lost\n");
    hook.tasks.shutdown(Duration::from_millis(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_must_be_recorded_is_not_served_without() {
    let dir = tempfile::tempdir().unwrap();
    let hook = hook(dir.path(), usize::MAX, Duration::ZERO).await;
    let strict = BatchOptions {
        mode: Mode::BlockingStrict,
        ..blocking()
    };
    let options = to_hook(dir.path(), &hook, strict, None);
    let api = Api::start_with(|config| config.audit = options).await;
    let answer = api.post(CM, config_map("never")).await;
    assert_eq!(answer.code, 500);
    assert!(
        answer.message().contains("failed to store audit event"),
        "{}",
        answer.body
    );
    let others = api.transport("system:kube-scheduler", &["system:masters"]);
    let request = Request::builder()
        .uri(format!("{CM}/never"))
        .body(Full::<Bytes>::default())
        .unwrap();
    let answer = tower::Service::call(&mut others.clone(), request).await.unwrap();
    assert_eq!(answer.status(), 404);
    hook.tasks.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn what_is_wrong_is_said_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let options = to_file(dir.path(), "rules: [{level: Everything}]\n");
    let error = sampan_apiserver::testing::TestServer::start_with(|config| config.audit = options)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("rules[0].level: Unsupported value: \"Everything\""),
        "{error}"
    );
    assert!(error.contains("policy.yaml"), "{error}");
}
