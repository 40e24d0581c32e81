//! Admission policies and the versions of what they see: built-in kinds, custom ones that somebody converts,
//! parameters; what is noted for the audit log.

use std::collections::BTreeMap;

use crate::common::boats::{BOATS, Converter, converted, define};
use crate::common::{Answer, Api};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sampan_apiserver::admission::Annotations;
use serde_json::{Value, json};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const EXEC: &str = "/api/v1/namespaces/default/pods/p/exec?command=ls&stdout=true";

/// A policy of any kind and its binding, by the same name.
async fn install(api: &Api, kind: &str, name: &str, spec: Value, binding: Value) {
    let plural = format!("{}ies", kind.to_lowercase().trim_end_matches('y'));
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": name}, "spec": spec});
    api.post(&format!("{GROUP}/{plural}"), policy).await.ok();
    let mut spec = binding;
    spec["policyName"] = name.into();
    if kind == "ValidatingAdmissionPolicy" && spec.get("validationActions").is_none() {
        spec["validationActions"] = json!(["Deny"]);
    }
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}Binding"),
        "metadata": {"name": name}, "spec": spec});
    api.post(&format!("{GROUP}/{}bindings", kind.to_lowercase()), binding)
        .await
        .ok();
}

async fn remove(api: &Api, kind: &str, name: &str) {
    let kind = kind.to_lowercase();
    api.delete(&format!("{GROUP}/{kind}bindings/{name}")).await.ok();
    let plural = format!("{}ies", kind.trim_end_matches('y'));
    api.delete(&format!("{GROUP}/{plural}/{name}")).await.ok();
}

fn rule(group: &str, version: &str, resource: &str) -> Value {
    json!({"apiGroups": [group], "apiVersions": [version], "operations": ["*"], "resources": [resource]})
}

fn only(group: &str, version: &str, resource: &str) -> Value {
    json!({"resourceRules": [rule(group, version, resource)]})
}

/// The same for mutations, which may name writes only.
fn writes(group: &str, version: &str, resource: &str) -> Value {
    let mut rule = rule(group, version, resource);
    rule["operations"] = json!(["CREATE", "UPDATE"]);
    json!({"resourceRules": [rule]})
}

/// What a policy said in its message expression.
fn said(answer: &Answer) -> &str {
    answer
        .message()
        .rsplit_once("denied request: ")
        .map_or("", |(_, said)| said)
}

const VALIDATING: &str = "ValidatingAdmissionPolicy";
const MUTATING: &str = "MutatingAdmissionPolicy";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn built_in_kinds_are_seen_in_the_version_of_the_rule() {
    let api = Api::start().await;
    let kinds = "'%s %s %s'.format([request.kind.group + request.kind.version, \
                 request.requestKind.group + request.requestKind.version, object.apiVersion])";
    let scaler = |version: &str| {
        let mut scaler = json!({"apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h"}, "spec": {"maxReplicas": 2,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
        if version == "v1" {
            scaler["spec"]["targetCPUUtilizationPercentage"] = 70.into();
        } else {
            scaler["spec"]["metrics"] = json!([{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 70}}}]);
        }
        scaler
    };
    let v1 = "string(object.spec.targetCPUUtilizationPercentage)";
    let v2 = "string(object.spec.metrics[0].resource.target.averageUtilization)";
    for (wanted, asked, sees) in [("v1", "v1", v1), ("v1", "v2", v1), ("v2", "v1", v2), ("v2", "v2", v2)] {
        let spec = json!({"matchConstraints": only("autoscaling", wanted, "horizontalpodautoscalers"),
            "validations": [{"expression": "false", "messageExpression": format!("{kinds} + ' ' + {sees}")}]});
        install(&api, VALIDATING, "p", spec, json!({})).await;
        let path = format!("/apis/autoscaling/{asked}/namespaces/default/horizontalpodautoscalers");
        let answer = api.post(&path, scaler(asked)).await;
        let expected = format!("autoscaling{wanted} autoscaling{asked} autoscaling/{wanted} 70");
        assert_eq!(said(&answer), expected, "{}", answer.message());
        remove(&api, VALIDATING, "p").await;
    }
    // Only what is named counts, if the policy says so; and what is excluded is excluded in every version.
    let mut exact = only("autoscaling", "v1", "horizontalpodautoscalers");
    exact["matchPolicy"] = "Exact".into();
    let mut excluded = json!({"resourceRules": [rule("*", "*", "*")]});
    excluded["excludeResourceRules"] = json!([rule("autoscaling", "v1", "horizontalpodautoscalers")]);
    for (name, constraints) in [("exact", exact), ("excluded", excluded)] {
        let spec = json!({"matchConstraints": constraints, "validations": [{"expression": "false"}]});
        install(&api, VALIDATING, "p", spec, json!({})).await;
        let path = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
        let mut scaler = scaler("v2");
        scaler["metadata"]["name"] = name.into();
        api.post(path, scaler).await.ok();
        remove(&api, VALIDATING, "p").await;
    }
    // Events are one and the same in both groups.
    let event = |name: &str| {
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i",
        "action": "a", "reason": "r", "type": "Normal", "note": "hello",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}})
    };
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let spec = json!({"matchConstraints": only("", "v1", "events"),
        "validations": [{"expression": "false", "messageExpression": format!("{kinds} + ' ' + object.message")}]});
    install(&api, VALIDATING, "p", spec, json!({})).await;
    let answer = api.post(events, event("e")).await;
    assert_eq!(said(&answer), "v1 events.k8s.iov1 v1 hello", "{}", answer.message());
    remove(&api, VALIDATING, "p").await;
    // A mutation is written in the rule's version and lands in the request's.
    let spec = json!({"matchConstraints": writes("", "v1", "events"), "reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{message: 'changed', involvedObject: Object.involvedObject{uid: 'u'}}"}}]});
    install(&api, MUTATING, "m", spec, json!({})).await;
    let made = api.post(events, event("e")).await;
    if made.code < 300 {
        assert_eq!(
            (&made.body["note"], &made.body["regarding"]["uid"]),
            (&json!("changed"), &json!("u"))
        );
    } else {
        // References are atomic in upstream's schema.
        assert!(made.message().contains("may not mutate atomic"), "{}", made.message());
    }
    remove(&api, MUTATING, "m").await;
    let spec = json!({"matchConstraints": writes("", "v1", "events"), "reinvocationPolicy": "Never", "mutations": [
        {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'replace', path: '/message', value: 'patched'}]"}}]});
    install(&api, MUTATING, "m", spec, json!({})).await;
    let made = api.post(events, event("f")).await.ok();
    assert_eq!(
        (&made["note"], &made["apiVersion"]),
        (&json!("patched"), &json!("events.k8s.io/v1"))
    );
    api.server.stop().await;
}

fn boat(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("example.com/{version}"), "kind": "Boat", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_kinds_are_converted_for_policies_and_back() {
    let api = Api::start().await;
    let converter = Converter::start(&api.server.pki).await;
    define(&api, converted(&converter)).await;
    let newer = BOATS.replace("/v1/", "/v2/");
    let spec = json!({"matchConstraints": only("example.com", "v2", "boats"), "validations": [
        {"expression": "request.operation == 'DELETE' || object.spec.length < 10",
            "messageExpression": "object.apiVersion + ' ' + string(object.spec.length)"},
        {"expression": "oldObject == null || oldObject.spec.length != 7",
            "messageExpression": "oldObject.apiVersion + ' was seven'"}]});
    install(&api, VALIDATING, "length", spec, json!({})).await;
    for (path, version, field) in [(BOATS, "v1", "size"), (newer.as_str(), "v2", "length")] {
        let answer = api.post(path, boat(version, "long", json!({field: 12}))).await;
        assert_eq!(said(&answer), "example.com/v2 12", "{}", answer.message());
        let name = format!("seven-{version}");
        api.post(path, boat(version, &name, json!({field: 7}))).await.ok();
        let at = format!("{path}/{name}");
        let answer = api.merge(&at, json!({"spec": {field: 8}})).await;
        assert_eq!(said(&answer), "example.com/v2 was seven", "{}", answer.message());
        let answer = api.delete(&at).await;
        assert_eq!(said(&answer), "example.com/v2 was seven", "{}", answer.message());
    }
    // Who converts may refuse to: the failure policy decides.
    let odd = |name: &str| boat("v1", name, json!({"size": 13}));
    let answer = api.post(BOATS, odd("odd")).await;
    assert!(
        said(&answer).starts_with("failed to configure binding: failed to convert object version: ")
            && said(&answer).contains("thirteen is not a size"),
        "{}",
        answer.message()
    );
    let path = format!("{GROUP}/validatingadmissionpolicies/length");
    api.merge(&path, json!({"spec": {"failurePolicy": "Ignore"}}))
        .await
        .ok();
    api.post(BOATS, odd("odd")).await.ok();
    remove(&api, VALIDATING, "length").await;

    // Mutations in another version come back in the request's, and what follows sees them.
    let spec = json!({"matchConstraints": writes("example.com", "v2", "boats"), "reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{spec: Object.spec{length: object.spec.length + 1}}"}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'replace', path: '/spec/length', value: object.spec.length + 1}]"}}]});
    install(&api, MUTATING, "grow", spec, json!({})).await;
    for (path, version, field) in [(BOATS, "v1", "size"), (newer.as_str(), "v2", "length")] {
        let name = format!("grown-{version}");
        let made = api.post(path, boat(version, &name, json!({field: 1}))).await.ok();
        assert_eq!(
            (&made["apiVersion"], &made["spec"]),
            (&json!(format!("example.com/{version}")), &json!({field: 3}))
        );
    }
    remove(&api, MUTATING, "grow").await;

    // Parameters are seen in the version the policy names, whatever is stored.
    let spec = json!({"paramKind": {"apiVersion": "example.com/v2", "kind": "Boat"},
        "matchConstraints": only("", "v1", "configmaps"),
        "validations": [{"expression": "false", "messageExpression": "params.apiVersion + ' ' + string(params.spec.length)"}]});
    let reference = json!({"paramRef": {"name": "grown-v1", "parameterNotFoundAction": "Deny"}});
    install(&api, VALIDATING, "params", spec, reference).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    let answer = api.post(MAPS, map).await;
    assert_eq!(said(&answer), "example.com/v2 3", "{}", answer.message());
    api.server.stop().await;
}

/// Code and annotations of an answer.
async fn noted(api: &Api, method: &str, path: &str, body: Value) -> (u16, BTreeMap<String, String>) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let answer = api.raw(request).await;
    let noted = answer.extensions().get::<Annotations>();
    (
        answer.status().as_u16(),
        noted.map(|noted| (*noted.0).clone()).unwrap_or_default(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actions_and_annotations_are_carried_out_in_all_combinations() {
    let api = Api::start().await;
    let spec = json!({"matchConstraints": only("", "v1", "configmaps"),
        "validations": [{"expression": "true"}, {"expression": "object.metadata.name != 'bad'", "message": "it is bad"}],
        "auditAnnotations": [
            {"key": "name", "valueExpression": "'seen ' + object.metadata.name"},
            {"key": "none", "valueExpression": "null"},
            {"key": "blank", "valueExpression": "' '"}]});
    for (actions, code, warned, audited) in [
        (json!(["Deny"]), 422, false, false),
        (json!(["Warn"]), 201, true, false),
        (json!(["Audit"]), 201, false, true),
        (json!(["Deny", "Audit"]), 422, false, true),
        (json!(["Warn", "Audit"]), 201, true, true),
    ] {
        install(
            &api,
            VALIDATING,
            "p",
            spec.clone(),
            json!({"validationActions": actions}),
        )
        .await;
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bad"}});
        let path = format!("{MAPS}?dryRun=All");
        let answer = api.post(&path, map.clone()).await;
        assert_eq!(answer.code, code, "{actions}");
        assert_eq!(answer.headers.contains_key("warning"), warned, "{actions}");
        let (_, notes) = noted(&api, "POST", &path, map).await;
        assert_eq!(notes.get("p/name").map(String::as_str), Some("seen bad"), "{actions}");
        assert!(
            !notes.contains_key("p/none") && !notes.contains_key("p/blank"),
            "{notes:?}"
        );
        let failure = notes.get("validation.policy.admission.k8s.io/validation_failure");
        let failure: Option<Value> = failure.map(|text| serde_json::from_str(text).unwrap());
        let expected = audited.then(|| {
            json!([{"message": "it is bad", "policy": "p", "binding": "p", "expressionIndex": 1,
                "validationActions": actions}])
        });
        assert_eq!(failure, expected, "{actions}");
        remove(&api, VALIDATING, "p").await;
    }
    // An annotation that cannot be made denies whatever the actions are, unless failures are ignored.
    let wrong = |failure: &str| {
        json!({"matchConstraints": only("", "v1", "configmaps"), "failurePolicy": failure,
            "auditAnnotations": [{"key": "k", "valueExpression": "string(1 / 0)"}]})
    };
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    for (failure, code) in [("Fail", 422), ("Ignore", 201)] {
        install(
            &api,
            VALIDATING,
            "w",
            wrong(failure),
            json!({"validationActions": ["Warn"]}),
        )
        .await;
        assert_eq!(
            api.post(&format!("{MAPS}?dryRun=All"), map.clone()).await.code,
            code,
            "{failure}"
        );
        remove(&api, VALIDATING, "w").await;
    }
    // What is not there is not there: cluster-scoped requests have no namespace.
    let spec = json!({"matchConstraints": only("", "v1", "namespaces"), "validations": [
        {"expression": "has(request.namespace) && namespaceObject == null && !has(request.subResource)"}]});
    install(&api, VALIDATING, "n", spec, json!({})).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
    api.post("/api/v1/namespaces", namespace).await.ok();
    remove(&api, VALIDATING, "n").await;
    let spec = json!({"matchConstraints": only("rbac.authorization.k8s.io", "v1", "clusterroles"), "validations": [
        {"expression": "!has(request.namespace) && namespaceObject == null"}]});
    install(&api, VALIDATING, "c", spec, json!({})).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "c"}});
    api.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", role)
        .await
        .ok();
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_streams_and_the_exempt() {
    let api = Api::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .ok();
    api.post("/api/v1/namespaces/default/pods", crate::common::pod("p"))
        .await
        .ok();
    for name in ["keep-1", "keep-2"] {
        api.post(MAPS, crate::common::config_map(name)).await.ok();
    }
    let spec = json!({"matchConstraints": {"resourceRules": [
            {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["CONNECT"], "resources": ["*/*"]},
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["configmaps"],
                "resourceNames": ["keep-2"]}]},
        "validations": [
            {"expression": "request.operation != 'CONNECT'",
                "messageExpression": "'%s %s %s'.format([request.subResource, object.kind, object.command[0]])"},
            {"expression": "request.operation != 'DELETE'",
                "messageExpression": "'no object: %s, %s'.format([string(object == null), oldObject.data.key])"}]});
    install(
        &api,
        VALIDATING,
        "p",
        spec,
        json!({"validationActions": ["Deny", "Audit"]}),
    )
    .await;
    let answer = api.post(EXEC, Value::Null).await;
    assert_eq!(said(&answer), "exec PodExecOptions ls", "{}", answer.message());
    let (code, notes) = noted(&api, "POST", EXEC, Value::Null).await;
    assert_eq!((code, notes.len()), (422, 1), "{notes:?}");
    // A collection is deleted one by one, and each is asked for.
    let (code, notes) = noted(&api, "DELETE", MAPS, Value::Null).await;
    assert_eq!((code, notes.len()), (422, 1), "{notes:?}");
    assert_eq!(api.get(&format!("{MAPS}/keep-1")).await.code, 404);
    let answer = api.delete(&format!("{MAPS}/keep-2")).await;
    assert_eq!(said(&answer), "no object: true, value", "{}", answer.message());
    remove(&api, VALIDATING, "p").await;
    // Nothing locks the cluster's administrator out, and questions are always answered.
    let everything = json!({"resourceRules": [rule("*", "*", "*/*")]});
    let spec = json!({"matchConstraints": everything, "validations": [{"expression": "false"}]});
    install(&api, VALIDATING, "wall", spec, json!({})).await;
    assert_eq!(api.post(MAPS, crate::common::config_map("c")).await.code, 422);
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        .await
        .ok();
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "w"}, "webhooks": []});
    api.post(&format!("{GROUP}/validatingwebhookconfigurations"), configuration)
        .await
        .ok();
    remove(&api, VALIDATING, "wall").await;
    // Mutations that make no object of it are the request's end, whatever the failure policy.
    let spec = json!({"matchConstraints": writes("", "v1", "configmaps"), "reinvocationPolicy": "Never",
        "failurePolicy": "Ignore", "mutations": [{"patchType": "JSONPatch", "jsonPatch":
            {"expression": "[JSONPatch{op: 'add', path: '/data', value: 7}]"}}]});
    install(&api, MUTATING, "m", spec, json!({})).await;
    let answer = api.post(MAPS, crate::common::config_map("c")).await;
    assert_eq!(
        (answer.code, answer.body["reason"].as_str()),
        (500, Some("InternalError")),
        "{}",
        answer.body
    );
    api.server.stop().await;
}
