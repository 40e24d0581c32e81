//! Who may, as configured: rows of authorizers, a webhook, and the file that describes them while it changes; and what
//! authentication and authorization cost.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::common::Api;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use sampan_apiserver::body::Body;
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use sampan_auth::UserInfo;
use sampan_pki::{Params, Pki};
use sampan_tasks::Tasks;
use serde_json::{Value, json};
use tower::Service;

fn write(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// What a user is answered.
async fn code(api: &Api, user: &str, path: &str) -> (u16, String) {
    let request = Request::builder().uri(path).body(Full::<Bytes>::default()).unwrap();
    let response = api.transport(user, &[]).call(request).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    (code, status["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_in_a_row_that_changes() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::load_or_create(&dir.path().join("pki"), Params::default()).unwrap();
    let tasks = Tasks::new();
    let count = Arc::new(AtomicU32::new(0));
    let seen: Arc<std::sync::Mutex<Value>> = Arc::default();
    let (counted, last) = (count.clone(), seen.clone());
    let handler: Handler = Arc::new(move |_, body| {
        counted.fetch_add(1, Ordering::Relaxed);
        let mut review: Value = serde_json::from_slice(&body).unwrap();
        *last.lock().unwrap() = review.clone();
        review["status"] = match review["spec"]["user"].as_str() {
            Some("allowed") => json!({"allowed": true, "reason": "by the hook"}),
            Some("denied") => json!({"allowed": false, "denied": true, "reason": "the hook says no"}),
            Some("both") => json!({"allowed": true, "denied": true}),
            _ => json!({"allowed": false, "reason": "no opinion"}),
        };
        let broken = review["spec"]["user"] == "broken";
        Box::pin(async move {
            if broken {
                return Ok(Response::builder().status(400).body(Body::Empty)?);
            }
            Ok(Response::new(Body::from(Bytes::from(review.to_string()))))
        })
    });
    let hook = HttpsServer::start(&pki, &tasks, &[], handler).await.unwrap();
    let ca = STANDARD.encode(pki.ca_pem());
    let kubeconfig = write(
        dir.path(),
        "hook.yaml",
        &format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {{server: '{}', certificate-authority-data: {ca}}}\ncontexts:\n- name: x\n  context: {{cluster: c, user: ''}}\ncurrent-context: x\n",
            hook.url("/authorize")
        ),
    );
    let config = |policy: &str| {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- type: Webhook\n  name: hook\n  webhook:\n    timeout: 3s\n    authorizedTTL: 1m\n    unauthorizedTTL: 1m\n    subjectAccessReviewVersion: v1\n    matchConditionSubjectAccessReviewVersion: v1\n    failurePolicy: {policy}\n    connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}\n    matchConditions:\n    - expression: has(request.resourceAttributes)\n    - expression: '!(\"system:serviceaccounts\" in request.groups)'\n    - expression: request.user != \"\"\n- {{type: Node, name: node}}\n- {{type: RBAC, name: rbac}}\n",
            kubeconfig.display()
        )
    };
    let path = write(dir.path(), "authorization.yaml", &config("Deny"));
    let file = path.clone();
    let api = Api::start_with(|config| config.authorization.config_file = Some(file)).await;
    let after_start = count.load(Ordering::Relaxed);

    let pods = "/api/v1/namespaces/default/pods?labelSelector=a%3Db,c!%3Dd&fieldSelector=spec.nodeName%3Dn1";
    assert_eq!(code(&api, "allowed", pods).await.0, 200);
    let spec = seen.lock().unwrap()["spec"].clone();
    assert_eq!(
        spec["resourceAttributes"],
        json!({"namespace": "default", "verb": "list", "version": "v1", "resource": "pods",
            "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n1"]}]},
            "labelSelector": {"requirements": [{"key": "a", "operator": "In", "values": ["b"]},
                {"key": "c", "operator": "NotIn", "values": ["d"]}]}})
    );
    let (refused, message) = code(&api, "denied", pods).await;
    assert_eq!(refused, 403);
    assert!(
        message.ends_with("in API group \"\" in the namespace \"default\": the hook says no"),
        "{message}"
    );
    assert_eq!(code(&api, "both", pods).await.0, 403);
    let (refused, message) = code(&api, "stranger", pods).await;
    assert_eq!((refused, message.ends_with(": no opinion")), (403, true), "{message}");
    // Remembered.
    let before = count.load(Ordering::Relaxed);
    for user in ["allowed", "denied", "stranger"] {
        code(&api, user, pods).await;
    }
    assert_eq!(count.load(Ordering::Relaxed), before);
    // Not asked: paths and service accounts are kept away by conditions.
    assert_eq!(code(&api, "denied", "/version").await.0, 200);
    // Without an answer nothing is allowed, and something forbidden: RBAC is not asked.
    assert_eq!(code(&api, "broken", pods).await.0, 403);
    let review = |user: &str| {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": user,
            "resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}})
    };
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let status = |answer: crate::common::Answer| answer.ok()["status"].clone();
    let broken = status(api.post(reviews, review("broken")).await);
    assert_eq!((&broken["allowed"], &broken["denied"]), (&json!(false), &json!(true)));
    assert!(
        broken["evaluationError"].as_str().unwrap().contains("status 400"),
        "{broken}"
    );
    assert_eq!(status(api.post(reviews, review("denied")).await)["denied"], true);

    // What everybody may is incomplete now, and says so.
    let rules =
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "x"}});
    let rules = status(
        api.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", rules)
            .await,
    );
    assert_eq!(rules["incomplete"], true);
    assert_eq!(
        rules["evaluationError"],
        "webhook authorizer does not support user rule resolution"
    );

    // The file changes.
    write(dir.path(), "authorization.yaml", "kind: wrong\n");
    write(dir.path(), "authorization.yaml", &config("NoOpinion"));
    let mut denied = Value::Null;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        denied = status(api.post(reviews, review("broken")).await)["denied"].clone();
        if denied.is_null() {
            break;
        }
    }
    assert_eq!(denied, Value::Null);
    let metrics = api.get("/metrics").await.body.to_string();
    for name in [
        "apiserver_authorization_webhook_evaluations_total",
        "apiserver_authorization_webhook_evaluations_fail_open_total",
        "apiserver_authorization_match_condition_exclusions_total",
        "apiserver_authorization_decisions_total",
        "apiserver_authorization_config_controller_automatic_reloads_total",
    ] {
        assert!(metrics.contains(name), "{name}");
    }
    assert!(count.load(Ordering::Relaxed) > after_start);
    tasks.drain().start();
}

#[tokio::test]
async fn rows_by_name() {
    for (modes, code_of_nobody) in [
        (vec!["AlwaysAllow"], 200),
        (vec!["AlwaysDeny"], 403),
        (vec!["RBAC", "AlwaysAllow"], 200),
        (vec!["Node", "RBAC"], 403),
    ] {
        let modes: Vec<String> = modes.into_iter().map(str::to_owned).collect();
        let row = modes.clone();
        let api = Api::start_with(|config| config.authorization.modes = row).await;
        assert_eq!(
            code(&api, "nobody", "/api/v1/nodes").await.0,
            code_of_nobody,
            "{modes:?}"
        );
        assert_eq!(api.get("/api/v1/nodes").await.code, 200);
    }
}

/// With 1,000 role bindings: finding out who shows a token of a service account, and whether it may.
#[tokio::test]
async fn what_it_costs() {
    let api = Api::start().await;
    let rbac = &api.server.plane.authorizer().rbac;
    let role = |name: &str| {
        json!({"metadata": {"name": name, "namespace": "default"},
        "rules": [{"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list"]}]})
    };
    for n in 0..1000 {
        rbac.apply(sampan_auth::Kind::Role, &role(&format!("r{n}")));
        // The one that is asked about has ten of them.
        let subject = match n % 100 {
            0 => json!({"kind": "ServiceAccount", "name": "robot", "namespace": "default"}),
            _ => json!({"kind": "User", "name": format!("u{n}")}),
        };
        let binding = json!({"metadata": {"name": format!("b{n}"), "namespace": "default"},
            "roleRef": {"kind": "Role", "name": format!("r{n}")}, "subjects": [subject]});
        rbac.apply(sampan_auth::Kind::RoleBinding, &binding);
    }
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .ok();
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = "/api/v1/namespaces/default/serviceaccounts/robot/token";
    let token = api.post(path, request).await.ok()["status"]["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut headers = http::HeaderMap::new();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    let authenticator = api.server.plane.authenticator();
    let connection = authenticator.connection(&[]);
    let authorizer = api.server.plane.authorizer();
    fn attributes<'a>(user: &'a UserInfo, resource: &'static str) -> sampan_auth::Attributes<'a> {
        sampan_auth::Attributes {
            namespace: "default",
            version: "v1",
            ..sampan_auth::Attributes::resource(user, "get", "", resource)
        }
    }
    const ROUNDS: u32 = 2000;
    for (what, resource, allowed) in [("allowed", "pods", true), ("refused", "secrets", false)] {
        let started = Instant::now();
        for _ in 0..ROUNDS {
            let user = authenticator
                .request(&connection, &headers, "/api/v1/pods")
                .await
                .unwrap();
            assert_eq!(authorizer.decide(&attributes(&user, resource)).await.allowed, allowed);
        }
        let each = started.elapsed() / ROUNDS;
        println!("authentication and authorization, {what}: {each:?} each");
        // The figure is for an optimised build on a quiet machine; this only notices that something went very wrong.
        assert!(each < Duration::from_millis(2), "{each:?}");
    }
    let who = UserInfo::component("u1");
    assert!(authorizer.decide(&attributes(&who, "pods")).await.allowed);
}
