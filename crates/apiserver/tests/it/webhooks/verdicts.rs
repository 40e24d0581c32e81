//! What webhooks say, and what they cannot say.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{ALL, CM, Hooks, PODS, REGISTRATION, rules, with};
use crate::common::{config_map, pod};

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
async fn webhooks_see_and_patch_what_go_prints() {
    let hooks = Hooks::start().await;
    let api = &hooks.api;
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let role = |name: &str| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}});
    let of = || rules(&["CREATE", "UPDATE"], &["clusterroles"]);
    let first = with(
        hooks.hook("first", "/allow", of()),
        "reinvocationPolicy",
        json!("IfNeeded"),
    );
    hooks
        .mutating("same", vec![first, hooks.hook("same", "/same", of())])
        .await;
    let made = api.post(ROLES, role("a")).await.ok();
    let seen = hooks.last("/allow");
    assert_eq!(seen["object"].get("rules"), Some(&Value::Null), "{seen}");
    // A patch that changes nothing is no change: who wants to be called again then is not.
    assert_eq!(hooks.count("/allow"), 1);
    let path = format!("{ROLES}/a");
    assert_eq!(api.put(&path, made.clone()).await.ok(), made);
    assert_eq!(hooks.last("/allow")["oldObject"].get("rules"), Some(&Value::Null));

    hooks.forget().await;
    hooks.mutating("rules", vec![hooks.hook("rules", "/rules", of())]).await;
    let made = api.post(ROLES, role("b")).await.ok();
    assert_eq!(made["rules"], json!([{"nonResourceURLs": ["/x"], "verbs": ["get"]}]));
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
