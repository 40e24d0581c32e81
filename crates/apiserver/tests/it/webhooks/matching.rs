//! Which requests webhooks see, and in which version.

use std::time::Duration;

use serde_json::{Value, json};

use super::{ALL, CM, Hooks, PODS, patched, rules, with};
use crate::common::{config_map, pod};

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
