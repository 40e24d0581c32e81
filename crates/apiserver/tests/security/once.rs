//! Every request is authorized once: a webhook hears of it once, also where the audit log wants to know why.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::Api;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use sampan_apiserver::audit::{self, BatchOptions, Format, LogOptions, Mode, Rotation};
use sampan_apiserver::body::Body;
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use sampan_pki::{Params, Pki};
use sampan_tasks::Tasks;
use serde_json::{Value, json};
use tower::Service;

/// What the webhook was asked.
type Asked = Arc<Mutex<Vec<Value>>>;

async fn hook(dir: &Path, tasks: &Tasks) -> (HttpsServer, Asked) {
    let pki = Pki::load_or_create(&dir.join("pki"), Params::default()).unwrap();
    let asked = Asked::default();
    let seen = asked.clone();
    let handler: Handler = Arc::new(move |_, body| {
        let mut review: Value = serde_json::from_slice(&body).unwrap();
        seen.lock().unwrap().push(review["spec"].clone());
        let user = review["spec"]["user"].as_str().unwrap_or_default().to_owned();
        review["status"] = match user.as_str() {
            "allowed" | "impersonator" => json!({"allowed": true, "reason": "by the hook"}),
            "silently" => json!({"allowed": true}),
            "denied" => json!({"allowed": false, "denied": true, "reason": "the hook says no"}),
            _ => json!({"allowed": false, "reason": "no opinion"}),
        };
        Box::pin(async move {
            Ok(match user.as_str() {
                "broken" => Response::builder().status(400).body(Body::Empty)?,
                _ => Response::new(Body::from(Bytes::from(review.to_string()))),
            })
        })
    });
    let server = HttpsServer::start(&pki, tasks, &[], handler).await.unwrap();
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {{server: '{}', certificate-authority-data: {}}}\n\
         contexts:\n- name: x\n  context: {{cluster: c, user: ''}}\ncurrent-context: x\n",
        server.url("/authorize"),
        STANDARD.encode(pki.ca_pem())
    );
    std::fs::write(dir.join("hook.yaml"), kubeconfig).unwrap();
    (server, asked)
}

/// Nothing is remembered, so that every question arrives.
fn row(dir: &Path, order: [&str; 2]) -> std::path::PathBuf {
    let authorizers: String = order
        .iter()
        .map(|kind| match *kind {
            "RBAC" => "- {type: RBAC, name: rbac}\n".to_owned(),
            _ => format!(
                "- type: Webhook\n  name: hook\n  webhook: {{timeout: 3s, authorizedTTL: 5m, unauthorizedTTL: 30s, \
                 cacheAuthorizedRequests: false, cacheUnauthorizedRequests: false, subjectAccessReviewVersion: v1, \
                 matchConditionSubjectAccessReviewVersion: v1, failurePolicy: NoOpinion, \
                 connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}}}\n",
                dir.join("hook.yaml").display()
            ),
        })
        .collect();
    let path = dir.join("authorization.yaml");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n{authorizers}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn log(dir: &Path) -> audit::Options {
    let policy = dir.join("policy.yaml");
    let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n";
    std::fs::write(&policy, text).unwrap();
    audit::Options {
        policy_file: Some(policy),
        log: Some(LogOptions {
            path: dir.join("audit.log"),
            format: Format::Json,
            rotation: Rotation {
                max_size: 0,
                max_age: 0,
                max_backups: 0,
                compress: false,
            },
            batch: BatchOptions {
                mode: Mode::Blocking,
                buffer_size: 1,
                max_size: 1,
                max_wait: Duration::ZERO,
                throttle: None,
            },
            truncation: None,
        }),
        webhook: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_asked_once_for_a_request() {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let allowed = "RBAC: allowed by RoleBinding \"b/default\" of Role \"r\" to User \"bound\"";
    // Who asks, as whom, and: questions, code, decision and reason as recorded; by the order of the authorizers.
    let hook_first = [
        ("allowed", "", 1, 200, "allow", "by the hook"),
        // Also where RBAC would have had a reason: it was not asked.
        ("silently", "", 1, 200, "allow", ""),
        ("denied", "", 1, 403, "forbid", "the hook says no"),
        ("bound", "", 1, 200, "allow", allowed),
        ("stranger", "", 1, 403, "forbid", "no opinion"),
        ("broken", "", 1, 403, "forbid", "internal error"),
        // Whether it may act as somebody else, and whether that one may.
        ("impersonator", "stranger", 2, 403, "forbid", "no opinion"),
        ("stranger", "allowed", 1, 403, "", ""),
    ];
    let rbac_first = [
        ("allowed", "", 1, 200, "allow", "by the hook"),
        (
            "silently",
            "",
            0,
            200,
            "allow",
            "RBAC: allowed by RoleBinding \"b/default\" of Role \"r\" to User \"silently\"",
        ),
        ("denied", "", 1, 403, "forbid", "the hook says no"),
        ("bound", "", 0, 200, "allow", allowed),
        ("stranger", "", 1, 403, "forbid", "no opinion"),
        ("impersonator", "bound", 1, 200, "allow", allowed),
    ];
    for (order, cases) in [
        (["Webhook", "RBAC"], &hook_first[..]),
        (["RBAC", "Webhook"], &rbac_first[..]),
    ] {
        for audited in [true, false] {
            let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
            let (_server, asked) = hook(dir.path(), &tasks).await;
            let configuration = row(dir.path(), order);
            let recording = log(dir.path());
            let api = Api::start_with(|config| {
                config.authorization.config_file = Some(configuration);
                if audited {
                    config.audit = recording;
                }
            })
            .await;
            let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
            api.post(
                &format!("{rbac}/roles"),
                json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"},
                    "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]}),
            )
            .await
            .ok();
            let user = |name: &str| json!({"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"});
            api.post(
                &format!("{rbac}/rolebindings"),
                json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
                    "roleRef": {"kind": "Role", "name": "r", "apiGroup": "rbac.authorization.k8s.io"},
                    "subjects": [user("bound"), user("silently")]}),
            )
            .await
            .ok();
            for (number, &(who, acting, questions, code, decision, reason)) in cases.iter().enumerate() {
                let case = format!("{order:?} audited={audited} {who} {acting}");
                let uri = format!("{PODS}?limit={}", number + 1);
                let mut request = Request::builder().uri(&uri);
                if !acting.is_empty() {
                    request = request.header("impersonate-user", acting);
                }
                let request = request.body(Full::<Bytes>::default()).unwrap();
                // What the server's own controllers ask is not counted.
                let mine = |spec: &Value| spec["user"] == who || (!acting.is_empty() && spec["user"] == acting);
                asked.lock().unwrap().clear();
                let response = api.transport(who, &[]).call(request).await.unwrap();
                assert_eq!(response.status(), code, "{case}");
                drop(response.into_body().collect().await);
                let heard = asked.lock().unwrap().iter().filter(|spec| mine(spec)).count();
                assert_eq!(heard, questions, "{case}: {:?}", asked.lock().unwrap());
                if !audited {
                    continue;
                }
                let text = std::fs::read_to_string(dir.path().join("audit.log")).unwrap();
                let event = text
                    .lines()
                    .map(|line| serde_json::from_str::<Value>(line).unwrap())
                    .find(|event| event["requestURI"] == uri)
                    .unwrap();
                let annotation = |name: &str| {
                    event["annotations"][format!("authorization.k8s.io/{name}")]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned()
                };
                assert_eq!(
                    (annotation("decision").as_str(), annotation("reason").as_str()),
                    (decision, reason),
                    "{case}"
                );
            }
            // A review asks once for whom it is about; a stream over a WebSocket is one request.
            asked.lock().unwrap().clear();
            let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "allowed",
                "resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}});
            let answer = api
                .post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
                .await
                .ok();
            assert_eq!(answer["status"], json!({"allowed": true, "reason": "by the hook"}));
            let request = Request::builder()
                .uri(format!("{PODS}/p/exec?command=x&stdout=1"))
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                .header("sec-websocket-protocol", "v4.channel.k8s.io")
                .body(Full::<Bytes>::default())
                .unwrap();
            let refused = api.transport("denied", &[]).call(request).await.unwrap();
            assert_eq!(refused.status(), 403);
            let about = |who: &str| asked.lock().unwrap().iter().filter(|spec| spec["user"] == who).count();
            assert_eq!((about("allowed"), about("denied")), (1, 1));
            // Masters are nobody's question.
            let before = asked.lock().unwrap().len();
            assert_eq!(api.get(PODS).await.code, 200);
            let of_admin = |spec: &Value| spec["user"] == "admin";
            assert!(!asked.lock().unwrap()[before..].iter().any(of_admin));
            tasks.drain().start();
        }
    }
}
