//! Admission webhooks against a TLS server: what upstream's conformance cases check, and what a bad webhook can do.

mod calls;
mod matching;
mod verdicts;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Answer, Api};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use sampan_apiserver::Body;
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use serde_json::{Value, json};

const CM: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";

/// A cluster and a webhook server that remembers what it was asked.
struct Hooks {
    api: Api,
    server: HttpsServer,
    seen: Seen,
}

fn patched(patch: &Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())})
}

fn denied(message: &str) -> Value {
    json!({"allowed": false, "status": {"code": 403, "reason": "Forbidden", "message": message}})
}

/// The answers, by path. `None`: the answer is no review at all.
fn verdict(path: &str, request: &Value) -> Option<Value> {
    let stage = |name: &str| patched(&json!([{"op": "add", "path": format!("/data/{name}"), "value": "yes"}]));
    Some(match path {
        "/allow" => json!({"allowed": true}),
        "/deny" => denied("the object contains unwanted data"),
        "/silent" => json!({"allowed": false}),
        "/stage-1" => stage("mutation-stage-1"),
        "/stage-2" if request["object"]["data"]["mutation-stage-1"] == "yes" => stage("mutation-stage-2"),
        "/stage-2" => json!({"allowed": true}),
        "/once" if request["object"]["data"]["once"].is_null() => stage("once"),
        "/once" => json!({"allowed": true}),
        "/container" => patched(&json!([{"op": "add", "path": "/spec/initContainers",
            "value": [{"name": "added", "image": "busybox"}]}])),
        // Paths that are there only because Go prints them.
        "/rules" => patched(&json!([{"op": "test", "path": "/rules", "value": null},
            {"op": "replace", "path": "/rules", "value": [{"nonResourceURLs": ["/x"], "verbs": ["get"]}]}])),
        "/same" => patched(&json!([{"op": "test", "path": "/metadata/name", "value": "a"}])),
        "/unknown" => patched(&json!([{"op": "add", "path": "/spec/nonsense", "value": 1}])),
        "/mistyped" => patched(&json!([{"op": "add", "path": "/data", "value": 7}])),
        "/kind" => patched(&json!([{"op": "replace", "path": "/kind", "value": "Secret"}])),
        "/move" => patched(&json!([{"op": "replace", "path": "/metadata/namespace", "value": "kube-system"}])),
        "/missing" => patched(&json!([{"op": "remove", "path": "/no/such/path"}])),
        "/no-patch" => json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode("{")}),
        "/uid" => json!({"allowed": true, "uid": "another"}),
        "/warn" => json!({"allowed": true, "warnings": ["first", "second"], "auditAnnotations": {"key": "value"}}),
        "/warn-deny" => json!({"allowed": false, "warnings": ["beware"], "status": {"message": "no"}}),
        "/no-skip" if request["object"]["metadata"]["name"] == "skip" => denied("skip must not come here"),
        "/no-skip" => json!({"allowed": true}),
        _ => return None,
    })
}

type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// What answers reviews, and what it has been asked.
fn handler() -> (Seen, Handler) {
    let seen = Seen::default();
    let remember = seen.clone();
    let handler: Handler = Arc::new(move |parts, body| {
        let path = parts.uri.path().to_owned();
        let review: Value = serde_json::from_slice(&body).unwrap_or_default();
        remember.lock().unwrap().push((path.clone(), review.clone()));
        Box::pin(async move {
            let Some(mut response) = verdict(&path, &review["request"]) else {
                return match path.as_str() {
                    "/hang" => std::future::pending().await,
                    "/slow" => {
                        tokio::time::sleep(Duration::from_millis(400)).await;
                        let response = json!({"allowed": true, "uid": review["request"]["uid"]});
                        let body = json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response});
                        Ok(Response::new(Body::from(body.to_string())))
                    }
                    "/huge" => Ok(Response::new(Body::from(vec![b' '; 16 << 20]))),
                    "/garbage" => Ok(Response::new(Body::from("\u{1}garbage"))),
                    "/empty" => Ok(Response::new(Body::Empty)),
                    "/redirect" => Ok(Response::builder()
                        .status(307)
                        .header("location", "/allow")
                        .body(Body::Empty)?),
                    "/500" => Ok(Response::builder().status(500).body(Body::from("it broke"))?),
                    "/404" => Ok(Response::builder().status(404).body(Body::from("nothing"))?),
                    _ => Err("broken off".into()),
                };
            };
            if response["uid"].is_null() {
                response["uid"] = review["request"]["uid"].clone();
            }
            let body = json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response});
            Ok(Response::new(Body::from(body.to_string())))
        })
    });
    (seen, handler)
}

impl Hooks {
    async fn start() -> Self {
        let api = Api::start().await;
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        api.post("/api/v1/namespaces/default/serviceaccounts", account)
            .await
            .ok();
        let (seen, handler) = handler();
        let server = HttpsServer::start(&api.server.pki, &api.server.tasks, &["localhost"], handler)
            .await
            .unwrap();
        Hooks { api, server, seen }
    }

    fn hook(&self, name: &str, path: &str, rules: Value) -> Value {
        json!({"name": format!("{name}.example.com"), "rules": rules, "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": self.server.url(path), "caBundle": STANDARD.encode(self.api.server.pki.ca_pem())}})
    }

    async fn register(&self, kind: &str, name: &str, hooks: Vec<Value>) -> Answer {
        let plural = format!("{}s", kind.to_lowercase());
        let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": name}, "webhooks": hooks});
        self.api.post(&format!("{REGISTRATION}/{plural}"), configuration).await
    }

    async fn mutating(&self, name: &str, hooks: Vec<Value>) {
        self.register("MutatingWebhookConfiguration", name, hooks).await.ok();
    }

    async fn validating(&self, name: &str, hooks: Vec<Value>) {
        self.register("ValidatingWebhookConfiguration", name, hooks).await.ok();
    }

    async fn forget(&self) {
        for plural in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
            self.api.delete(&format!("{REGISTRATION}/{plural}")).await.ok();
        }
        self.seen.lock().unwrap().clear();
    }

    /// The last request a path was asked.
    fn last(&self, path: &str) -> Value {
        let seen = self.seen.lock().unwrap();
        let found = seen.iter().rev().find(|(asked, _)| asked == path);
        found.map(|(_, review)| review["request"].clone()).unwrap_or_default()
    }

    fn count(&self, path: &str) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|(asked, _)| asked == path)
            .count()
    }
}

fn rules(operations: &[&str], resources: &[&str]) -> Value {
    json!([{"operations": operations, "apiGroups": ["*"], "apiVersions": ["*"], "resources": resources}])
}

fn with(mut hook: Value, field: &str, value: Value) -> Value {
    hook[field] = value;
    hook
}

const ALL: &[&str] = &["CREATE", "UPDATE", "DELETE"];
