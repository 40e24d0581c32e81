//! Admission webhooks against a TLS server: what upstream's conformance cases check, and what a bad webhook can do.

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, Api, config_map, pod};
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

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_denied_whatever_is_done_to_them() {
    let hooks = Hooks::start().await;
    let api = &hooks.api;
    api.post(CM, config_map("there")).await.ok();
    hooks
        .validating("deny", vec![hooks.hook("deny", "/deny", rules(ALL, &["configmaps"]))])
        .await;
    let words = "admission webhook \"deny.example.com\" denied the request: the object contains unwanted data";
    api.post(CM, config_map("new")).await.refused(403, "Forbidden", words);
    let request = hooks.last("/deny");
    assert_eq!(request["operation"], "CREATE");
    assert_eq!(
        request["kind"],
        json!({"group": "", "version": "v1", "kind": "ConfigMap"})
    );
    assert_eq!(
        request["requestResource"],
        json!({"group": "", "version": "v1", "resource": "configmaps"})
    );
    assert_eq!(
        (&request["name"], &request["namespace"]),
        (&json!("new"), &json!("default"))
    );
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!(request["object"]["metadata"]["name"], "new");
    assert!(request["object"]["metadata"]["uid"].is_string() && request["oldObject"].is_null());
    assert_eq!(request["options"]["kind"], "CreateOptions");
    assert_eq!(request["options"]["apiVersion"], "meta.k8s.io/v1");
    assert_eq!(request["dryRun"], false);
    let at = format!("{CM}/there");
    api.put(&at, config_map("there")).await.refused(403, "Forbidden", words);
    api.merge(&at, json!({"data": {"x": "y"}}))
        .await
        .refused(403, "Forbidden", words);
    let request = hooks.last("/deny");
    assert_eq!(request["options"]["kind"], "UpdateOptions");
    assert_eq!(request["oldObject"]["data"], json!({"key": "value"}));
    assert_eq!(request["object"]["data"]["x"], "y");
    api.delete(&at).await.refused(403, "Forbidden", words);
    let request = hooks.last("/deny");
    assert_eq!(
        (&request["operation"], &request["object"]),
        (&json!("DELETE"), &Value::Null)
    );
    assert_eq!(request["oldObject"]["metadata"]["name"], "there");
    assert_eq!(request["options"]["kind"], "DeleteOptions");
    api.delete(CM).await.refused(403, "Forbidden", words);
    assert_eq!(hooks.last("/deny")["name"], "there");

    hooks.forget().await;
    hooks
        .validating("deny", vec![hooks.hook("deny", "/silent", rules(ALL, &["*"]))])
        .await;
    api.post(CM, config_map("new")).await.refused(
        400,
        "",
        "admission webhook \"deny.example.com\" denied the request without explanation",
    );
    // Changed configurations count at once: patched to name other operations, then deleted.
    let configuration = format!("{REGISTRATION}/validatingwebhookconfigurations/deny");
    let path = "/webhooks/0/rules/0/operations";
    api.send(
        "PATCH",
        &configuration,
        "application/json-patch+json",
        json!([{"op": "replace", "path": path, "value": ["UPDATE"]}]).to_string(),
    )
    .await
    .ok();
    api.post(CM, config_map("new")).await.ok();
    assert_eq!(api.delete(CM).await.code, 200);
    // Nothing stands between a cluster and its repair.
    hooks
        .validating("wall", vec![hooks.hook("wall", "/deny", rules(&["*"], &["*/*"]))])
        .await;
    assert_eq!(api.post(CM, config_map("new")).await.code, 403);
    api.merge(&configuration, json!({"metadata": {"labels": {"a": "b"}}}))
        .await
        .ok();
    api.delete(&format!("{REGISTRATION}/validatingwebhookconfigurations"))
        .await
        .ok();
    api.post(CM, config_map("new")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn mutations_build_on_each_other_and_are_seen_by_validation() {
    let hooks = Hooks::start().await;
    let api = &hooks.api;
    let create = || rules(&["CREATE"], &["configmaps", "pods"]);
    let of = |what: &str| rules(&["CREATE"], &[what]);
    hooks
        .mutating("b", vec![hooks.hook("two", "/stage-2", of("configmaps"))])
        .await;
    hooks
        .mutating("a", vec![hooks.hook("one", "/stage-1", of("configmaps"))])
        .await;
    hooks
        .validating("see", vec![hooks.hook("see", "/allow", create())])
        .await;
    let made = api.post(CM, config_map("staged")).await.ok();
    assert_eq!(
        made["data"],
        json!({"key": "value", "mutation-stage-1": "yes", "mutation-stage-2": "yes"})
    );
    assert_eq!(hooks.last("/allow")["object"]["data"], made["data"]);
    assert!(hooks.last("/stage-1")["object"]["metadata"]["uid"].is_null());

    // Defaults are filled into what a webhook adds, and unknown fields are dropped.
    hooks.forget().await;
    hooks
        .mutating(
            "pods",
            vec![
                hooks.hook("container", "/container", of("pods")),
                hooks.hook("unknown", "/unknown", of("pods")),
            ],
        )
        .await;
    let made = api.post(PODS, pod("more")).await.ok();
    let added = &made["spec"]["initContainers"][0];
    assert_eq!(added["terminationMessagePolicy"], "File");
    assert_eq!(added["imagePullPolicy"], "Always");
    assert!(made["spec"]["nonsense"].is_null());

    // The first webhook is asked again because the second changed the object; the second is not.
    hooks.forget().await;
    let again = with(
        hooks.hook("again", "/once", of("configmaps")),
        "reinvocationPolicy",
        json!("IfNeeded"),
    );
    hooks
        .mutating("a", vec![again, hooks.hook("later", "/stage-1", of("configmaps"))])
        .await;
    let made = api.post(CM, config_map("again")).await.ok();
    assert_eq!(made["data"]["once"], "yes");
    assert_eq!((hooks.count("/once"), hooks.count("/stage-1")), (2, 1));

    // A dry run reaches only those that say they can bear it, and leaves nothing.
    hooks.forget().await;
    hooks
        .mutating("a", vec![hooks.hook("dry", "/stage-1", of("configmaps"))])
        .await;
    let made = api.post(&format!("{CM}?dryRun=All"), config_map("dry")).await.ok();
    assert_eq!(made["data"]["mutation-stage-1"], "yes");
    let request = hooks.last("/stage-1");
    assert_eq!(
        (&request["dryRun"], &request["options"]["dryRun"]),
        (&json!(true), &json!(["All"]))
    );
    assert_eq!(api.get(&format!("{CM}/dry")).await.code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_webhooks_fail_as_their_policy_says() {
    let hooks = Hooks::start().await;
    let api = &hooks.api;
    let url = hooks.server.url("");
    let call = |why: &str| format!("Internal error occurred: failed calling webhook \"bad.example.com\": {why}");
    let post = |path: &str, why: &str| {
        call(&format!(
            "failed to call webhook: Post \"{url}{path}?timeout=1s\": {why}"
        ))
    };
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for (path, mutating, words) in [
        ("/hang", true, post("/hang", "context deadline exceeded")),
        ("/hang", false, post("/hang", "context deadline exceeded")),
        (
            "/huge",
            true,
            post("/huge", "the response body is larger than 5242880 bytes"),
        ),
        ("/break", false, post("/break", "EOF")),
        (
            "/redirect",
            true,
            call(
                "failed to call webhook: the server responded with the status code 307 but did not return more information",
            ),
        ),
        (
            "/500",
            true,
            call(
                "failed to call webhook: an error on the server (\"it broke\") has prevented the request from succeeding",
            ),
        ),
        (
            "/404",
            false,
            call("failed to call webhook: the server could not find the requested resource"),
        ),
        (
            "/garbage",
            false,
            call("failed to call webhook: couldn't get version/kind; json parse error"),
        ),
        (
            "/empty",
            true,
            call("failed to call webhook: couldn't get version/kind; json parse error"),
        ),
        (
            "/uid",
            true,
            call("received invalid webhook response: expected response.uid="),
        ),
        (
            "/stage-1",
            false,
            call("received invalid webhook response: validating webhook may not return response.patch"),
        ),
        (
            "/no-patch",
            true,
            call("received undecodable patch in webhook response"),
        ),
    ] {
        let hook = with(
            hooks.hook("bad", path, rules(&["CREATE"], &["configmaps"])),
            "timeoutSeconds",
            json!(1),
        );
        for policy in ["Fail", "Ignore"] {
            hooks.forget().await;
            let hook = with(hook.clone(), "failurePolicy", json!(policy));
            if mutating {
                hooks.mutating("bad", vec![hook]).await;
            } else {
                hooks.validating("bad", vec![hook]).await;
            }
            let name = format!("{}-{}-{mutating}", path.trim_start_matches('/'), policy.to_lowercase());
            let answer = api.post(CM, config_map(&name)).await;
            if policy == "Ignore" {
                answer.ok();
            } else {
                assert_eq!(
                    (answer.code, answer.body["reason"].as_str()),
                    (500, Some("InternalError")),
                    "{path}"
                );
                assert!(answer.message().starts_with(&words), "{}\n{words}", answer.message());
            }
        }
    }
    // Patches that cannot be right are the request's end, whatever the policy.
    for (path, words) in [
        ("/missing", "Internal error occurred: "),
        ("/mistyped", "Internal error occurred: "),
        (
            "/kind",
            "Internal error occurred: admission webhook \"bad.example.com\" attempted to change the object's kind",
        ),
        (
            "/move",
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
    ] {
        hooks.forget().await;
        let hook = hooks.hook("bad", path, rules(&["CREATE"], &["configmaps"]));
        hooks
            .mutating("bad", vec![with(hook, "failurePolicy", json!("Ignore"))])
            .await;
        let answer = api.post(CM, config_map("never")).await;
        assert!(answer.code >= 400, "{path}");
        assert!(answer.message().starts_with(words), "{path}: {}", answer.message());
    }
    // Nobody there, and a certificate of somebody else.
    hooks.forget().await;
    let mut hook = hooks.hook("bad", "/allow", rules(&["CREATE"], &["configmaps"]));
    hook["clientConfig"]["url"] = format!("https://{free}/x").into();
    hooks.validating("bad", vec![hook.clone()]).await;
    api.post(CM, config_map("never")).await.refused(
        500,
        "InternalError",
        &call(&format!("failed to call webhook: Post \"https://{free}/x?timeout=10s\": dial tcp {free}: connect: connection refused")),
    );
    hooks.forget().await;
    let dir = tempfile::tempdir().unwrap();
    let foreign = sampan_pki::Pki::load_or_create(dir.path(), sampan_pki::Params::default()).unwrap();
    hook["clientConfig"] = json!({"url": hooks.server.url("/allow"), "caBundle": STANDARD.encode(foreign.ca_pem())});
    hooks.validating("bad", vec![hook.clone()]).await;
    let words = call(&format!(
        "failed to call webhook: Post \"{url}/allow?timeout=10s\": tls: failed to verify certificate: x509: certificate signed by unknown authority"
    ));
    api.post(CM, config_map("never"))
        .await
        .refused(500, "InternalError", &words);
    hooks.forget().await;
    hook["clientConfig"] = json!({"service": {"namespace": "default", "name": "gone"}});
    hooks.validating("bad", vec![hook]).await;
    api.post(CM, config_map("never")).await.refused(
        500,
        "InternalError",
        &call("failed to call webhook: Post \"https://gone.default.svc:443/?timeout=10s\": service \"gone\" not found"),
    );
    // Somebody who may not be dry run is not.
    hooks.forget().await;
    let at = format!("{REGISTRATION}/validatingwebhookconfigurations");
    let refused = hooks
        .register(
            "ValidatingWebhookConfiguration",
            "some",
            vec![with(
                hooks.hook("some", "/allow", rules(&["CREATE"], &["configmaps"])),
                "sideEffects",
                json!("Some"),
            )],
        )
        .await;
    assert_eq!(refused.code, 422, "{at}");
    // What was counted is told.
    let metrics = api.get("/metrics").await;
    let text = metrics.body.as_str().unwrap_or_default();
    for line in [
        "apiserver_admission_webhook_fail_open_count{name=\"bad.example.com\",type=\"validating\"}",
        "apiserver_admission_webhook_rejection_count{name=\"bad.example.com\",type=\"admit\",operation=\"CREATE\",error_type=\"calling_webhook_error\",rejection_code=\"503\"}",
        "apiserver_admission_webhook_rejection_count{name=\"bad.example.com\",type=\"admit\",operation=\"CREATE\",error_type=\"apiserver_internal_error\",rejection_code=\"0\"}",
        "apiserver_admission_controller_admission_duration_seconds_count{name=\"NamespaceLifecycle\",type=\"admit\",operation=\"CREATE\",rejected=\"false\"}",
    ] {
        assert!(text.contains(line), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_and_policies_choose() {
    let hooks = Hooks::start().await;
    let api = &hooks.api;
    let hook = |path: &str| hooks.hook("h", path, rules(&["CREATE", "UPDATE"], &["configmaps", "namespaces"]));
    let selector = json!({"matchLabels": {"hooked": "yes"}});
    hooks
        .validating("ns", vec![with(hook("/deny"), "namespaceSelector", selector.clone())])
        .await;
    api.post(CM, config_map("free")).await.ok();
    let namespace = |name: &str, label: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"hooked": label}}});
    // A namespace is matched by its own labels.
    assert_eq!(api.post("/api/v1/namespaces", namespace("one", "yes")).await.code, 403);
    assert_eq!(hooks.last("/deny")["namespace"], "one");
    api.post("/api/v1/namespaces", namespace("one", "no")).await.ok();
    api.post("/api/v1/namespaces/one/configmaps", config_map("free"))
        .await
        .ok();
    hooks.forget().await;
    api.merge(
        "/api/v1/namespaces/one",
        json!({"metadata": {"labels": {"hooked": "yes"}}}),
    )
    .await
    .ok();
    hooks
        .validating("ns", vec![with(hook("/deny"), "namespaceSelector", selector.clone())])
        .await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/one/serviceaccounts", account).await.ok();
    assert_eq!(
        api.post("/api/v1/namespaces/one/configmaps", config_map("bound"))
            .await
            .code,
        403
    );
    api.post(CM, config_map("still-free")).await.ok();

    hooks.forget().await;
    hooks
        .validating("labels", vec![with(hook("/deny"), "objectSelector", selector)])
        .await;
    let mut labelled = config_map("labelled");
    labelled["metadata"]["labels"] = json!({"hooked": "yes"});
    assert_eq!(api.post(CM, labelled.clone()).await.code, 403);
    labelled["metadata"]["labels"] = json!({"hooked": "no"});
    api.post(CM, labelled).await.ok();
    let put_on = json!({"metadata": {"labels": {"hooked": "yes"}}});
    assert_eq!(api.merge(&format!("{CM}/labelled"), put_on).await.code, 403);

    // Conditions spare calls.
    hooks.forget().await;
    let conditions = json!([{"name": "not-skipped", "expression": "object.metadata.name != 'skip'"},
        {"name": "not-nodes", "expression": "!('system:nodes' in request.userInfo.groups)"}]);
    let conditional = |path: &str| with(hook(path), "matchConditions", conditions.clone());
    hooks.validating("conditions", vec![conditional("/no-skip")]).await;
    hooks.mutating("conditions", vec![conditional("/stage-1")]).await;
    let skipped = api.post(CM, config_map("skip")).await.ok();
    assert_eq!(skipped["data"], json!({"key": "value"}));
    let seen = api.post(CM, config_map("seen")).await.ok();
    assert_eq!(seen["data"]["mutation-stage-1"], "yes");
    assert_eq!(hooks.last("/no-skip")["object"]["metadata"]["name"], "seen");
    hooks.forget().await;
    let broken = with(
        hook("/deny"),
        "matchConditions",
        json!([{"name": "broken", "expression": "object.no.such == 1"}]),
    );
    hooks.validating("conditions", vec![broken.clone()]).await;
    let refused = api.post(CM, config_map("broken")).await;
    assert_eq!(refused.code, 403);
    assert!(
        refused.message().contains("resulted in error: no such key"),
        "{}",
        refused.message()
    );
    hooks.forget().await;
    hooks
        .validating("conditions", vec![with(broken, "failurePolicy", json!("Ignore"))])
        .await;
    api.post(CM, config_map("broken")).await.ok();
    let wrong = with(
        hook("/deny"),
        "matchConditions",
        json!([{"name": "wrong", "expression": "object.("}]),
    );
    let refused = hooks
        .register("ValidatingWebhookConfiguration", "wrong", vec![wrong])
        .await;
    assert_eq!(refused.code, 422);
    assert!(
        refused.message().contains("compilation failed"),
        "{}",
        refused.message()
    );

    // Exact keeps to the version named; Equivalent converts to it.
    hooks.forget().await;
    let v1 = json!([{"operations": ["*"], "apiGroups": ["autoscaling"], "apiVersions": ["v1"],
        "resources": ["horizontalpodautoscalers"]}]);
    let hpas = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let hpa = |name: &str| {
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}})
    };
    hooks
        .validating(
            "exact",
            vec![with(
                hooks.hook("h", "/deny", v1.clone()),
                "matchPolicy",
                json!("Exact"),
            )],
        )
        .await;
    api.post(hpas, hpa("exact")).await.ok();
    hooks.forget().await;
    hooks.mutating("equal", vec![hooks.hook("h", "/allow", v1)]).await;
    api.post(hpas, hpa("equal")).await.ok();
    let request = hooks.last("/allow");
    assert_eq!(request["kind"]["version"], "v1");
    assert_eq!(request["requestKind"]["version"], "v2");
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v1");
    assert_eq!(request["object"]["spec"]["targetCPUUtilizationPercentage"], 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn subresources_and_streams_have_kinds_of_their_own() {
    let hooks = Hooks::start().await;
    let api = &hooks.api;
    api.post(PODS, pod("p")).await.ok();
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    api.post(deployments, deployment).await.ok();
    hooks
        .validating("deny", vec![hooks.hook("deny", "/deny", rules(&["*"], &["*/*"]))])
        .await;
    let kind = |kind: &str| hooks.last("/deny")["kind"]["kind"] == kind;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"name": "n"}});
    assert_eq!(api.post(&format!("{PODS}/p/binding"), binding.clone()).await.code, 403);
    assert!(kind("Binding"));
    let request = hooks.last("/deny");
    assert_eq!(
        (&request["subResource"], &request["operation"]),
        (&json!("binding"), &json!("CREATE"))
    );
    assert_eq!(api.post("/api/v1/namespaces/default/bindings", binding).await.code, 403);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    assert_eq!(api.post(&format!("{PODS}/p/eviction"), eviction).await.code, 403);
    assert_eq!(
        hooks.last("/deny")["kind"],
        json!({"group": "policy", "version": "v1", "kind": "Eviction"})
    );
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(api.post(&format!("{accounts}/default/token"), token).await.code, 403);
    assert!(kind("TokenRequest"));
    let scaled = api
        .merge(&format!("{deployments}/d/scale"), json!({"spec": {"replicas": 5}}))
        .await;
    assert_eq!(scaled.code, 403);
    let request = hooks.last("/deny");
    assert_eq!(
        request["kind"],
        json!({"group": "autoscaling", "version": "v1", "kind": "Scale"})
    );
    assert_eq!(
        (
            &request["object"]["spec"]["replicas"],
            &request["oldObject"]["spec"]["replicas"]
        ),
        (&json!(5), &json!(1))
    );
    let status = api
        .merge(&format!("{PODS}/p/status"), json!({"status": {"phase": "Running"}}))
        .await;
    assert_eq!(status.code, 403);
    assert!(kind("Pod") && hooks.last("/deny")["subResource"] == "status");
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {
        "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(api.post(reviews, review).await.code, 403);
    // Streams are asked about before anything is opened.
    let answer = api
        .post(
            &format!("{PODS}/p/exec?command=sh&stdout=1&container=main"),
            Value::Null,
        )
        .await;
    assert_eq!(answer.code, 403);
    let request = hooks.last("/deny");
    assert_eq!(
        (&request["operation"], &request["subResource"]),
        (&json!("CONNECT"), &json!("exec"))
    );
    assert_eq!(
        request["object"],
        json!({"kind": "PodExecOptions", "apiVersion": "v1", "command": ["sh"], "container": "main", "stdout": true})
    );
    assert!(request["options"].is_null());
    for (path, wanted) in [
        ("attach?stdout=1", "PodAttachOptions"),
        ("portforward?ports=80", "PodPortForwardOptions"),
        ("proxy/a", "PodProxyOptions"),
    ] {
        assert_eq!(
            api.post(&format!("{PODS}/p/{path}"), Value::Null).await.code,
            403,
            "{path}"
        );
        assert!(kind(wanted), "{path}: {}", hooks.last("/deny")["kind"]);
    }
    // Reading is nobody's business.
    assert_ne!(api.get(&format!("{PODS}/p/log")).await.code, 403);
    hooks.forget().await;
    // A webhook that changes the scale changes the object.
    let five = patched(&json!([{"op": "replace", "path": "/spec/replicas", "value": 5}]));
    assert!(five["patch"].is_string());
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    hooks
        .validating("only", vec![hooks.hook("only", "/deny", rules(&["DELETE"], &["pods"]))])
        .await;
    // An eviction is no delete to webhooks.
    api.post(&format!("{PODS}/p/eviction"), eviction).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_are_reviewed_in_the_version_the_rule_names() {
    let hooks = Hooks::start().await;
    let api = &hooks.api;
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "data": {"type": "object", "properties": {"key": {"type": "string"}, "mutation-stage-1": {"type": "string"},
            "filled": {"type": "string", "default": "in"}}}}}});
    let version =
        |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": schema});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [version("v1", false), version("v2", true)]}});
    // Definitions are denied as everything else.
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    hooks
        .validating(
            "crd",
            vec![hooks.hook("crd", "/deny", rules(&["CREATE"], &["customresourcedefinitions"]))],
        )
        .await;
    assert_eq!(api.post(definitions, definition.clone()).await.code, 403);
    hooks.forget().await;
    api.post(definitions, definition).await.ok();
    let things = "/apis/example.com/v1/namespaces/default/things";
    let thing = |name: &str| json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": name}, "data": {"key": "v"}});
    let mut made = api.post(things, thing("first")).await;
    for _ in 0..100 {
        if made.code != 404 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        made = api.post(things, thing("first")).await;
    }
    made.ok();
    let v2 = json!([{"operations": ["CREATE"], "apiGroups": ["example.com"], "apiVersions": ["v2"], "resources": ["things"]}]);
    // The second stage adds a field the schema does not know.
    hooks
        .mutating(
            "things",
            vec![
                hooks.hook("one", "/stage-1", v2.clone()),
                hooks.hook("two", "/stage-2", v2),
            ],
        )
        .await;
    let made = api.post(things, thing("mutated")).await.ok();
    assert_eq!(made["apiVersion"], "example.com/v1");
    assert_eq!(
        made["data"],
        json!({"key": "v", "mutation-stage-1": "yes", "filled": "in"})
    );
    assert_eq!(hooks.count("/stage-2"), 1);
    let request = hooks.last("/stage-1");
    assert_eq!(
        (
            &request["object"]["apiVersion"],
            &request["resource"]["version"],
            &request["requestResource"]["version"]
        ),
        (&json!("example.com/v2"), &json!("v2"), &json!("v1"))
    );
    hooks.forget().await;
    hooks
        .validating("things", vec![hooks.hook("deny", "/deny", rules(ALL, &["things"]))])
        .await;
    assert_eq!(api.post(things, thing("never")).await.code, 403);
    assert_eq!(
        api.merge(&format!("{things}/first"), json!({"data": {"key": "w"}}))
            .await
            .code,
        403
    );
    assert_eq!(api.delete(&format!("{things}/first")).await.code, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_reach_the_client_and_validation_runs_side_by_side() {
    let hooks = Hooks::start().await;
    let api = &hooks.api;
    let create = || rules(&["CREATE"], &["configmaps"]);
    hooks
        .validating("warn", vec![hooks.hook("warn", "/warn", create())])
        .await;
    let answer = api.post(CM, config_map("warned")).await;
    let warnings: Vec<_> = answer.headers.get_all("warning").iter().collect();
    assert_eq!(warnings, ["299 - \"first\"", "299 - \"second\""]);
    hooks
        .validating("warn-deny", vec![hooks.hook("warn-deny", "/warn-deny", create())])
        .await;
    let answer = api.post(CM, config_map("refused")).await;
    assert_eq!(answer.code, 400);
    assert!(
        answer
            .headers
            .get_all("warning")
            .iter()
            .any(|warning| warning == "299 - \"beware\"")
    );
    hooks.forget().await;
    let slow = (0..8)
        .map(|number| hooks.hook(&format!("slow-{number}"), "/slow", create()))
        .collect();
    hooks.validating("slow", slow).await;
    let started = Instant::now();
    api.post(CM, config_map("slow")).await.ok();
    assert!(
        started.elapsed() < Duration::from_millis(2400),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(hooks.count("/slow"), 8);
    hooks.forget().await;
    // While one client's webhook hangs, others are served.
    let hang = with(hooks.hook("hang", "/hang", create()), "timeoutSeconds", json!(30));
    let selected = with(hang, "objectSelector", json!({"matchLabels": {"hang": "yes"}}));
    hooks.validating("hang", vec![selected]).await;
    let mut hanging = config_map("hanging");
    hanging["metadata"]["labels"] = json!({"hang": "yes"});
    tokio::select! {
        answer = api.post(CM, hanging) => panic!("{}", answer.body),
        () = async {
            for number in 0..20 {
                api.post(CM, config_map(&format!("other-{number}"))).await.ok();
            }
        } => {}
    }
}

/// An address of this machine that Services may lead to.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel only says which address it would send from.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_meets_a_webhook_behind_a_service() {
    let Some(address) = own_address() else {
        eprintln!("kubectl_meets_a_webhook_behind_a_service: skipped, this machine has no address but loopback");
        return;
    };
    if std::process::Command::new("kubectl")
        .arg("version")
        .arg("--client")
        .output()
        .is_err()
    {
        eprintln!("kubectl_meets_a_webhook_behind_a_service: skipped, there is no kubectl");
        return;
    }
    let api = Api::start().await;
    let server = &api.server;
    let (_, handler) = handler();
    let https = HttpsServer::start_on(address, &server.pki, &server.tasks, &["hook.default.svc"], handler)
        .await
        .unwrap();
    let config = server.kubeconfig().unwrap();
    let kubectl = async |line: &str, input: String| {
        let mut command = std::process::Command::new("kubectl");
        command.arg("--kubeconfig").arg(&config).args(line.split(' '));
        let file = config.with_extension("input.json");
        std::fs::write(&file, input).unwrap();
        command.stdin(std::fs::File::open(&file).unwrap());
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    };
    let hook = |name: &str, path: &str, selector: &str| {
        json!({"name": format!("{name}.example.com"), "rules": rules(&["CREATE"], &["configmaps"]), "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "objectSelector": {"matchLabels": {"ask": selector}},
            "clientConfig": {"service": {"namespace": "default", "name": "hook", "path": path},
                "caBundle": STANDARD.encode(server.pki.ca_pem())}})
    };
    let registration = |kind: &str, hooks: Vec<Value>| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "hook"}, "webhooks": hooks});
    let all = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": "default"},
            "spec": {"ports": [{"port": 443, "targetPort": https.address.port()}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "hook-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "hook"}},
            "ports": [{"name": "", "port": https.address.port(), "protocol": "TCP"}],
            "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}]},
        registration("MutatingWebhookConfiguration", vec![hook("one", "/stage-1", "change")]),
        registration("ValidatingWebhookConfiguration", vec![hook("deny", "/deny", "deny"), hook("warn", "/warn", "warn")]),
    ]});
    let (ok, text) = kubectl("apply -f -", all.to_string()).await;
    assert!(ok, "{text}");
    let labelled = |name: &str, label: &str| {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({"ask": label});
        object.to_string()
    };
    let (ok, text) = kubectl("create -f -", labelled("denied", "deny")).await;
    assert!(!ok);
    assert!(
        text.contains("Error from server (Forbidden): error when creating \"STDIN\": admission webhook \"deny.example.com\" denied the request: the object contains unwanted data"),
        "{text}"
    );
    let (ok, text) = kubectl("create -f -", labelled("warned", "warn")).await;
    assert!(ok && text.contains("Warning: first"), "{text}");
    let (ok, text) = kubectl("create -f - -o yaml", labelled("changed", "change")).await;
    assert!(ok && text.contains("mutation-stage-1: \"yes\""), "{text}");
    // Without its endpoints the Service leads nowhere, and kubectl is told so.
    let (ok, text) = kubectl("delete endpointslice hook-1", String::new()).await;
    assert!(ok, "{text}");
    let (ok, text) = kubectl("delete service hook", String::new()).await;
    assert!(ok, "{text}");
    let (ok, text) = kubectl("create -f -", labelled("late", "deny")).await;
    assert!(!ok);
    assert!(
        text.contains("failed calling webhook \"deny.example.com\": failed to call webhook: Post \"https://hook.default.svc:443/deny?timeout=10s\": service \"hook\" not found"),
        "{text}"
    );
}
