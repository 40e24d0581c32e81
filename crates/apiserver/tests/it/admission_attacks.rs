//! What bad webhooks and hostile expressions can do to a cluster: nothing to anybody else.

// The requests of a crowd run beside each other, each on a task of its own.
#![allow(clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Api, config_map};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Response;
use http_body::Frame;
use http_body_util::StreamBody;
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use sampan_apiserver::{Body, InProcess};
use serde_json::{Value, json};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
/// Longer than any of this takes on a busy machine.
const GENEROUS: Duration = Duration::from_secs(60);

fn hook(url: &str, bundle: &str, failure: &str) -> Value {
    json!({"name": "bad.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 2,
        "failurePolicy": failure, "clientConfig": {"url": url, "caBundle": STANDARD.encode(bundle)},
        "rules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]})
}

async fn register(api: &Api, kind: &str, hook: Value) {
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": format!("{kind}WebhookConfiguration"), "metadata": {"name": "bad"}, "webhooks": [hook]});
    api.post(
        &format!("{GROUP}/{}webhookconfigurations", kind.to_lowercase()),
        configuration,
    )
    .await
    .ok();
}

async fn forget(api: &Api, kind: &str) {
    api.delete(&format!("{GROUP}/{}webhookconfigurations/bad", kind.to_lowercase()))
        .await
        .ok();
}

/// Takes connections and never says a word.
async fn silence(api: &Api) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, taken) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = taken.clone();
    api.server
        .tasks
        .spawn_until_drain("silence", sampan_tasks::OnExit::Expected, async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                held.push(stream);
            }
        });
    (address, taken)
}

async fn get(mut service: InProcess, path: &'static str) -> u16 {
    let request = http::Request::builder()
        .uri(path)
        .body(http_body_util::Full::<Bytes>::default());
    let answer = tower::Service::call(&mut service, request.unwrap()).await.unwrap();
    answer.status().as_u16()
}

/// The code of an answer.
async fn post(mut service: InProcess, path: &'static str, body: Value) -> u16 {
    let request = http::Request::builder()
        .method("POST")
        .uri(path)
        .header("content-type", "application/json")
        .body(http_body_util::Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let answer = tower::Service::call(&mut service, request).await.unwrap();
    answer.status().as_u16()
}

fn secret(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"a": "b"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_on_a_hanging_webhook_harm_nobody() {
    let api = Api::start().await;
    let (address, taken) = silence(&api).await;
    let url = format!("https://{address}/");
    let bundle = api.server.pki.ca_pem().to_owned();
    // A handshake that does not come is a webhook that fails.
    register(&api, "Validating", hook(&url, &bundle, "Fail")).await;
    let answer = api.post(MAPS, config_map("never")).await;
    assert!(
        answer.code == 500
            && answer.message()
                == format!(
                    "Internal error occurred: failed calling webhook \"bad.example.com\": failed to call webhook: Post \"{url}?timeout=2s\": context deadline exceeded"
                ),
        "{}",
        answer.body
    );
    forget(&api, "Validating").await;
    for kind in ["Validating", "Mutating"] {
        register(&api, kind, hook(&url, &bundle, "Ignore")).await;
        let before = taken.load(Ordering::Relaxed);
        let over = AtomicBool::new(false);
        let crowd = async {
            // Each on a task of its own, as connections are.
            let requests: Vec<_> = (0..1000)
                .map(|index| {
                    let map = config_map(&format!("{}-{index}", kind.to_lowercase()));
                    tokio::spawn(post(api.service.clone(), MAPS, map))
                })
                .collect();
            let mut codes = Vec::new();
            for request in requests {
                codes.push(request.await.unwrap());
            }
            over.store(true, Ordering::Relaxed);
            codes
        };
        let others = async {
            let (mut rounds, mut slowest) = (0, Duration::ZERO);
            while !over.load(Ordering::Relaxed) {
                let started = Instant::now();
                let name = format!("{}-{rounds}", kind.to_lowercase());
                let made = tokio::spawn(post(api.service.clone(), SECRETS, secret(&name)));
                assert_eq!(made.await.unwrap(), 201);
                slowest = slowest.max(started.elapsed());
                rounds += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (rounds, slowest)
        };
        let (codes, (rounds, slowest)) = tokio::join!(crowd, others);
        let failed = codes.iter().filter(|code| **code != 201).count();
        assert_eq!(failed, 0, "all pass over the webhook");
        assert!(taken.load(Ordering::Relaxed) > before, "it was called");
        // How long it took is the machine's business: a thousand handshakes are work.
        assert!(rounds > 2, "{rounds} rounds, the slowest took {slowest:?}");
        println!("{kind}: {rounds} rounds of others, the slowest took {slowest:?}");
        forget(&api, kind).await;
    }
    api.server.stop().await;
}

/// Lies of all kinds, by path.
fn liar() -> Handler {
    Arc::new(|parts, body| {
        Box::pin(async move {
            let review: Value = serde_json::from_slice(&body)?;
            let patch = |patch: Value| STANDARD.encode(patch.to_string());
            let set = |path: &str, value: &str| patch(json!([{"op": "add", "path": path, "value": value}]));
            let with = |patch: String| json!({"allowed": true, "patchType": "JSONPatch", "patch": patch});
            let mut response = match parts.uri.path() {
                "/merge" => json!({"allowed": true, "patchType": "MergePatch", "patch": patch(json!({"data": null}))}),
                "/denied-with-patch" => {
                    json!({"allowed": false, "patchType": "JSONPatch", "patch": set("/data/forged", "yes")})
                }
                "/silent-patch" => json!({"patchType": "JSONPatch", "patch": set("/data/forged", "yes")}),
                "/name" => with(set("/metadata/name", "another")),
                "/uid" => with(set("/metadata/uid", "forged")),
                "/created" => with(set("/metadata/creationTimestamp", "2001-01-01T00:00:00Z")),
                "/revision" => with(set("/metadata/resourceVersion", "1")),
                "/no-metadata" => with(patch(json!([{"op": "remove", "path": "/metadata"}]))),
                "/everything" => with(patch(json!([{"op": "replace", "path": "", "value": []}]))),
                "/deep" => {
                    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
                    let text = format!(r#"[{{"op":"add","path":"/data","value":{deep}}}]"#);
                    with(STANDARD.encode(text))
                }
                "/bomb" => {
                    let copies: Vec<Value> = (0..64)
                        .map(|n| json!({"op": "copy", "from": "/data", "path": format!("/data/{n}")}))
                        .collect();
                    with(patch(json!(copies)))
                }
                "/types" => json!({"allowed": "yes", "uid": 7}),
                "/dribble" => {
                    let drops = futures::stream::unfold((), |()| async {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        Some((Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b" "))), ()))
                    });
                    return Ok(Response::new(Body::wrap(StreamBody::new(drops))));
                }
                _ => json!({"allowed": true}),
            };
            if response["uid"].is_null() {
                response["uid"] = review["request"]["uid"].clone();
            }
            let body = json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response});
            Ok(Response::new(Body::from(body.to_string())))
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lies_are_not_believed() {
    let api = Api::start().await;
    let server = HttpsServer::start(&api.server.pki, &api.server.tasks, &["localhost"], liar())
        .await
        .unwrap();
    let bundle = api.server.pki.ca_pem().to_owned();
    // What a webhook may not touch, it has not touched: on a create the server's own values win or the request ends,
    // on an update the object stays as it was.
    for (path, on_create, on_update) in [
        ("/merge", 500, 500),
        ("/denied-with-patch", 400, 400),
        ("/silent-patch", 400, 400),
        // Who may make an object may name it, as upstream has it.
        ("/name", 201, 400),
        ("/uid", 201, 400),
        ("/created", 201, 400),
        ("/revision", 201, 400),
        ("/no-metadata", 400, 400),
        ("/everything", 500, 500),
        ("/deep", 500, 500),
        ("/bomb", 500, 500),
        ("/types", 500, 500),
        ("/dribble", 500, 500),
    ] {
        let name = path.trim_start_matches('/');
        let there = api.post(MAPS, config_map(&format!("{name}-there"))).await.ok();
        register(&api, "Mutating", hook(&server.url(path), &bundle, "Fail")).await;
        let created = api.post(MAPS, config_map(name)).await;
        let at = format!("{MAPS}/{name}-there");
        let updated = api.merge(&at, json!({"metadata": {"labels": {"a": "b"}}})).await;
        println!(
            "{path}: create {} {:?}; update {} {:?}",
            created.code,
            created.message(),
            updated.code,
            updated.message()
        );
        let as_expected = |code: u16, expected: u16| {
            if expected < 300 {
                code < 300
            } else {
                code >= expected && code < 600
            }
        };
        assert!(as_expected(created.code, on_create), "{path}: {}", created.body);
        forget(&api, "Mutating").await;
        let now = api.get(&at).await.ok();
        for field in ["uid", "creationTimestamp", "name"] {
            assert_eq!(now["metadata"][field], there["metadata"][field], "{path}");
        }
        assert_eq!(now["data"], there["data"], "{path}");
        if updated.code < 300 {
            // Then nothing but what was asked for has changed.
            assert_eq!(now["metadata"]["labels"], json!({"a": "b"}), "{path}");
        } else {
            assert!(as_expected(updated.code, on_update), "{path}: {}", updated.body);
        }
        if created.code < 300 {
            let made = &created.body["metadata"];
            assert_ne!(made["uid"], "forged", "{path}");
            assert_ne!(made["creationTimestamp"], "2001-01-01T00:00:00Z", "{path}");
        }
    }
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_expressions_end() {
    let api = Api::start().await;
    let all = |depth: usize| {
        let mut expression = "true".to_owned();
        for level in 0..depth {
            expression = format!("object.data.all(k{level}, {expression})");
        }
        expression
    };
    let hostile = [
        all(5),
        "object.data.all(a, object.data.all(b, (a + b).matches('(a*)*(b*)*(c*)*$')))".to_owned(),
        "object.data.map(a, object.data.map(b, object.data.map(c, a + b + c))).size() > 0".to_owned(),
    ];
    let data: serde_json::Map<String, Value> = (0..300).map(|n| (format!("key{n}"), "value".into())).collect();
    let mut large = config_map("large");
    large["data"] = data.into();
    for (index, expression) in hostile.iter().enumerate() {
        let name = format!("p{index}");
        let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name}, "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": [""],
                "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]},
            "validations": [{"expression": expression}]}});
        let answer = api.post(&format!("{GROUP}/validatingadmissionpolicies"), policy).await;
        assert!(answer.code < 300 || answer.code == 422, "{}", answer.body);
        if answer.code == 422 {
            continue;
        }
        let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]}});
        let bindings = format!("{GROUP}/validatingadmissionpolicybindings");
        api.post(&bindings, binding).await.ok();
        let over = AtomicBool::new(false);
        let crowd = async {
            let answer = api.post(MAPS, large.clone()).await;
            let more: Vec<_> = (0..4)
                .map(|_| tokio::spawn(post(api.service.clone(), MAPS, large.clone())))
                .collect();
            for request in more {
                assert_eq!(request.await.unwrap(), 422);
            }
            over.store(true, Ordering::Relaxed);
            answer
        };
        let others = async {
            let mut slowest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let started = Instant::now();
                let read = get(api.service.clone(), MAPS);
                assert_eq!(tokio::spawn(read).await.unwrap(), 200);
                slowest = slowest.max(started.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            slowest
        };
        let (answer, slowest) = tokio::join!(crowd, others);
        assert!(
            answer.code == 422 && (answer.message().contains("cost") || answer.message().contains("budget")),
            "{expression}: {}",
            answer.body
        );
        println!("{expression}: others waited at most {slowest:?}");
        assert!(slowest < GENEROUS, "{slowest:?}");
        api.delete(&format!("{bindings}/{name}")).await.ok();
    }
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_priority_and_fairness_the_numbers_are_limits() {
    let api = Api::start_with(|config| {
        config.in_flight = (400, 1);
        config.priority_and_fairness = false;
    })
    .await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "u"}, "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "u"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
    api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", role)
        .await
        .ok();
    let user = Api {
        service: api.transport("u", &[]),
        server: api.server,
    };
    let admin = user.transport("admin", &["system:masters"]);
    let (address, taken) = silence(&user).await;
    let url = format!("https://{address}/");
    let bundle = user.server.pki.ca_pem().to_owned();
    register(&user, "Validating", hook(&url, &bundle, "Ignore")).await;
    let slow = user.post(MAPS, config_map("slow"));
    let meanwhile = async {
        while taken.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let refused = user.post(SECRETS, secret("late")).await;
        assert_eq!(refused.code, 429, "{}", refused.body);
        assert_eq!(refused.headers.get("retry-after").unwrap(), "1");
        let read = user.get(SECRETS).await;
        assert_eq!(read.code, 200);
        assert!(!read.headers.contains_key("x-kubernetes-pf-flowschema-uid"));
        assert_eq!(post(admin.clone(), SECRETS, secret("master")).await, 201);
    };
    let (slow, ()) = tokio::join!(slow, meanwhile);
    slow.ok();
    user.post(SECRETS, secret("later")).await.ok();
    assert_eq!(
        user.get("/debug/api_priority_and_fairness/dump_requests").await.code,
        404
    );
    user.server.stop().await;
}
