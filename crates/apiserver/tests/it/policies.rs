//! Admission policies in CEL, against a whole control plane.

use crate::common::Api;
use serde_json::{Value, json};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn rules(resource: &str) -> Value {
    json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
        "resources": [resource]}]})
}

fn validating(name: &str, mut spec: Value) -> Value {
    if spec.get("matchConstraints").is_none() {
        spec["matchConstraints"] = rules("configmaps");
    }
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name}, "spec": spec})
}

fn binding(name: &str, policy: &str, mut spec: Value) -> Value {
    spec["policyName"] = policy.into();
    if spec.get("validationActions").is_none() {
        spec["validationActions"] = json!(["Deny"]);
    }
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name}, "spec": spec})
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

async fn install(api: &Api, policy: Value, binding: Value) {
    api.post(&format!("{GROUP}/validatingadmissionpolicies"), policy)
        .await
        .ok();
    api.post(&format!("{GROUP}/validatingadmissionpolicybindings"), binding)
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validations_deny_in_upstreams_words() {
    let api = Api::start().await;
    install(
        &api,
        validating("limits", json!({
            "variables": [
                {"name": "size", "expression": "has(object.data) ? object.data.size() : 0"},
                {"name": "twice", "expression": "variables.size * 2"},
            ],
            "validations": [
                {"expression": "variables.twice <= 4", "messageExpression": "'too many: ' + string(variables.size)"},
                {"expression": "!has(object.data.secret)", "message": "no secrets", "reason": "Forbidden"},
                {"expression": "object.metadata.name != 'odd'"},
                {"expression": "object.data.number != 'x' || 1 / 0 == 1"},
                {"expression": "request.operation == 'CREATE' || oldObject != null"},
                {"expression": "namespaceObject.metadata.name == 'default' && request.namespace == 'default'"},
                {"expression": "authorizer.requestResource.check('delete').allowed()"},
                {"expression": "authorizer.serviceAccount('default', 'nobody').group('').resource('pods').check('get').allowed() == false"},
            ],
            "matchConditions": [{"name": "not-exempt", "expression": "!object.metadata.name.startsWith('exempt')"}],
        })),
        binding("limits-here", "limits", json!({})),
    )
    .await;
    let said =
        |why: &str| format!("ValidatingAdmissionPolicy 'limits' with binding 'limits-here' denied request: {why}");
    let denied = |name: &str, why: &str| format!("configmaps \"{name}\" is forbidden: {}", said(why));
    let many = json!({"a": "", "b": "", "c": "", "number": ""});
    api.post(MAPS, map("fine", json!({"number": "1"}))).await.ok();
    api.post(MAPS, map("exempt-1", many.clone())).await.ok();
    let answer = api.post(MAPS, map("many", many)).await;
    answer.refused(422, "Invalid", &denied("many", "too many: 4"));
    assert_eq!(
        answer.body["details"]["causes"],
        json!([{"message": said("too many: 4")}])
    );
    api.post(MAPS, map("secret", json!({"secret": "", "number": ""})))
        .await
        .refused(403, "Forbidden", &denied("secret", "no secrets"));
    api.post(MAPS, map("odd", json!({"number": ""}))).await.refused(
        422,
        "Invalid",
        &denied("odd", "failed expression: object.metadata.name != 'odd'"),
    );
    api.post(MAPS, map("wrong", json!({"number": "x"}))).await.refused(
        422,
        "Invalid",
        &denied(
            "wrong",
            "expression 'object.data.number != 'x' || 1 / 0 == 1' resulted in error: division by zero",
        ),
    );
    api.merge(&format!("{MAPS}/fine"), json!({"data": {"a": "", "b": ""}}))
        .await
        .refused(422, "Invalid", &denied("fine", "too many: 3"));
    // Without its binding a policy is not in force.
    api.delete(&format!("{GROUP}/validatingadmissionpolicybindings/limits-here"))
        .await
        .ok();
    api.post(MAPS, map("odd", json!({}))).await.ok();
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_actions_and_failures() {
    let api = Api::start().await;
    for (name, limit, label) in [("small", "1", "x"), ("large", "3", "y")] {
        let mut params = map(name, json!({"limit": limit}));
        params["metadata"]["labels"] = json!({"params": label});
        api.post(MAPS, params).await.ok();
    }
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = |name: &str, count: usize| {
        let data: serde_json::Map<String, Value> = (0..count).map(|n| (format!("k{n}"), "".into())).collect();
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
    };
    let policy = |name: &str, failure: &str| {
        validating(
            name,
            json!({
                "failurePolicy": failure,
                "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
                "matchConstraints": rules("secrets"),
                "validations": [{"expression": "params != null && object.data.size() <= int(params.data.limit)",
                    "messageExpression": "'more than ' + params.data.limit"}],
                "auditAnnotations": [{"key": "k", "valueExpression": "string(params.metadata.name)"}],
            }),
        )
    };
    install(
        &api,
        policy("counted", "Fail"),
        binding(
            "b",
            "counted",
            json!({"paramRef": {"name": "large", "parameterNotFoundAction": "Deny"}}),
        ),
    )
    .await;
    api.post(secrets, secret("s3", 3)).await.ok();
    let answer = api.post(secrets, secret("s4", 4)).await;
    assert!(
        answer.message().ends_with("denied request: more than 3"),
        "{}",
        answer.message()
    );
    // A selector takes the parameters one by one; Warn says it in a header.
    let path = format!("{GROUP}/validatingadmissionpolicybindings/b");
    let mut selected = api.get(&path).await.ok();
    selected["spec"]["paramRef"] =
        json!({"selector": {"matchLabels": {"params": "x"}}, "parameterNotFoundAction": "Allow"});
    selected["spec"]["validationActions"] = json!(["Warn", "Audit"]);
    api.put(&path, selected.clone()).await.ok();
    let answer = api.post(secrets, secret("s2", 2)).await;
    let warning = answer.headers["warning"].to_str().unwrap().to_owned();
    assert_eq!(answer.code, 201);
    assert!(
        warning.contains("Validation failed for ValidatingAdmissionPolicy 'counted' with binding 'b': more than 1"),
        "{warning}"
    );
    // Missing parameters, missing kinds.
    selected["metadata"] =
        json!({"name": "b", "resourceVersion": api.get(&path).await.ok()["metadata"]["resourceVersion"]});
    selected["spec"]["paramRef"] = json!({"name": "gone", "parameterNotFoundAction": "Deny"});
    selected["spec"]["validationActions"] = json!(["Deny"]);
    api.put(&path, selected).await.ok();
    let answer = api.post(secrets, secret("t", 1)).await;
    assert!(
        answer.message().ends_with(
            "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
        ),
        "{}",
        answer.message()
    );
    api.delete(&path).await.ok();
    let mut missing = policy("missing", "Fail");
    missing["spec"]["paramKind"] = json!({"apiVersion": "example.com/v1", "kind": "Thing"});
    install(
        &api,
        missing,
        binding(
            "m",
            "missing",
            json!({"paramRef": {"name": "a", "parameterNotFoundAction": "Allow"}}),
        ),
    )
    .await;
    let answer = api.post(secrets, secret("u", 1)).await;
    assert!(
        answer.message().ends_with(
            "ValidatingAdmissionPolicy 'missing' denied request: failed to configure policy: failed to find resource \
             referenced by paramKind: 'example.com/v1, Kind=Thing'"
        ),
        "{}",
        answer.message()
    );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_matched_by_all_criteria() {
    let api = Api::start().await;
    let namespaces = "/api/v1/namespaces";
    for name in ["marked", "plain"] {
        let labels = json!({"mark": name});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        api.post(namespaces, namespace).await.ok();
    }
    install(
        &api,
        validating("never", json!({
            "matchConstraints": {
                "resourceRules": [{"apiGroups": ["", "autoscaling"], "apiVersions": ["v1"],
                    "operations": ["CREATE", "UPDATE", "DELETE"], "resources": ["*"]}],
                "excludeResourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"],
                    "resources": ["configmaps"], "resourceNames": ["spared", "kube-root-ca.crt"]}],
                "namespaceSelector": {"matchLabels": {"mark": "marked"}},
                "objectSelector": {"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]},
            },
            "validations": [{"expression": "false", "messageExpression": "request.kind.version + request.requestKind.version"}],
        })),
        binding("never", "never", json!({"matchResources": {"objectSelector": {"matchLabels": {"a": "b"}}}})),
    )
    .await;
    let labelled = |name: &str, labels: Value| {
        let mut map = map(name, json!({}));
        map["metadata"]["labels"] = labels;
        map
    };
    let maps = |namespace: &str| format!("/api/v1/namespaces/{namespace}/configmaps");
    api.post(&maps("plain"), labelled("a", json!({"a": "b"}))).await.ok();
    api.post(&maps("marked"), labelled("unlabelled", json!({}))).await.ok();
    api.post(&maps("marked"), labelled("spared", json!({"a": "b"})))
        .await
        .ok();
    api.post(&maps("marked"), labelled("skipped", json!({"a": "b", "skip": ""})))
        .await
        .ok();
    let answer = api.post(&maps("marked"), labelled("a", json!({"a": "b"}))).await;
    assert!(
        answer.message().ends_with("denied request: v1v1"),
        "{}",
        answer.message()
    );
    // The rule names v1; a request of v2 is about the same objects.
    let scaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h", "labels": {"a": "b"}},
        "spec": {"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    let answer = api
        .post(
            "/apis/autoscaling/v2/namespaces/marked/horizontalpodautoscalers",
            scaler,
        )
        .await;
    assert!(
        answer.message().ends_with("denied request: v1v2"),
        "{}",
        answer.message()
    );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_policies_are_refused_when_written() {
    let api = Api::start().await;
    for (spec, expected) in [
        (
            json!({"validations": [{"expression": "object.a == 1 && nothing"}]}),
            "spec.validations[0].expression: Invalid value: \"object.a == 1 && nothing\": compilation failed: ERROR: \
             <input>:1:18: undeclared reference to 'nothing' (in container '')",
        ),
        (
            json!({"validations": [{"expression": "1"}]}),
            "spec.validations[0].expression: Invalid value: \"1\": must evaluate to bool but got int",
        ),
        (
            json!({"validations": [{"expression": "true", "messageExpression": "1"}]}),
            "spec.validations[0].messageExpression: Invalid value: \"1\": must evaluate to string but got int",
        ),
        (
            json!({"validations": [{"expression": "params == null"}]}),
            "undeclared reference to 'params'",
        ),
        (
            json!({"validations": [{"expression": "true"}], "variables": [{"name": "in", "expression": "1 +"}]}),
            "spec.variables[0].name: Invalid value: \"in\": must be a valid CEL identifier",
        ),
        (
            json!({"validations": [{"expression": "true"}], "matchConditions": [{"name": "a", "expression": "''"}]}),
            "spec.matchConditions[0].expression: Invalid value: \"''\": must evaluate to bool but got string",
        ),
        (
            json!({"validations": [{"expression": "true"}], "auditAnnotations": [{"key": "a", "valueExpression": "1"}]}),
            "spec.auditAnnotations[0].valueExpression: Invalid value: \"1\": must evaluate to one of [string null_type] but got int",
        ),
        (
            json!({"validations": [{"expression": format!("{}1{} == 1", "(".repeat(5000), ")".repeat(5000))}]}),
            "expression recursion limit exceeded",
        ),
    ] {
        let answer = api
            .post(&format!("{GROUP}/validatingadmissionpolicies"), validating("p", spec))
            .await;
        assert_eq!(answer.code, 422, "{}", answer.body);
        assert!(answer.message().contains(expected), "{}", answer.message());
    }
    api.server.stop().await;
}

async fn mutate(api: &Api, name: &str, mutations: Value, reinvocation: &str) {
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name}, "spec": {"matchConstraints": rules("*"), "mutations": mutations,
            "reinvocationPolicy": reinvocation}});
    api.post(&format!("{GROUP}/mutatingadmissionpolicies"), policy)
        .await
        .ok();
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name}, "spec": {"policyName": name}});
    api.post(&format!("{GROUP}/mutatingadmissionpolicybindings"), binding)
        .await
        .ok();
}

fn apply(expression: &str) -> Value {
    json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}])
}

fn patch(expression: &str) -> Value {
    json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutations_change_what_is_written() {
    let api = Api::start().await;
    // The later one makes the earlier one, which may run again, count it.
    mutate(
        &api,
        "a-count",
        patch("[JSONPatch{op: 'add', path: '/metadata/annotations', value: {'labels': string(object.metadata.?labels.orValue({}).size())}}]"),
        "IfNeeded",
    )
    .await;
    mutate(
        &api,
        "b-label",
        apply("Object{metadata: Object.metadata{labels: {'added': 'yes'}}}"),
        "Never",
    )
    .await;
    let made = api.post(MAPS, map("m", json!({"a": "1"}))).await.ok();
    assert_eq!(made["metadata"]["labels"], json!({"added": "yes"}));
    assert_eq!(made["metadata"]["annotations"], json!({"labels": "1"}));
    assert_eq!(made["data"], json!({"a": "1"}));
    // Lists are merged by their keys, and defaults follow.
    mutate(
        &api,
        "c-sidecar",
        apply(
            "has(object.spec) && has(object.spec.containers) ? Object{spec: Object.spec{initContainers: \
             [Object.spec.initContainers{name: 'side', image: 'side:1'}]}} : Object{}",
        ),
        "Never",
    )
    .await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"initContainers": [{"name": "own", "image": "own:1"}], "containers": [{"name": "c", "image": "c:1"}]}});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .ok();
    let made = api.post("/api/v1/namespaces/default/pods", pod.clone()).await.ok();
    let names: Vec<&str> = made["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|container| container["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let side = made["spec"]["initContainers"].as_array().unwrap();
    let side = side.iter().find(|container| container["name"] == "side").unwrap();
    assert_eq!(side["imagePullPolicy"], "IfNotPresent");
    // What does not fit is refused.
    mutate(&api, "d-wrong", apply("Object{spec: Object.other{}}"), "Never").await;
    let answer = api.post(MAPS, map("n", json!({}))).await;
    assert_eq!(answer.code, 403);
    assert!(
        answer
            .message()
            .starts_with("policy 'd-wrong' with binding 'd-wrong' denied request: type mismatch: unexpected type name"),
        "{}",
        answer.message()
    );
    api.delete(&format!("{GROUP}/mutatingadmissionpolicybindings/d-wrong"))
        .await
        .ok();
    mutate(
        &api,
        "e-test",
        patch(
            "[JSONPatch{op: 'test', path: '/data/a', value: 'x'}, JSONPatch{op: 'add', path: '/data/b', value: 'y'}]",
        ),
        "Never",
    )
    .await;
    let made = api.post(MAPS, map("t1", json!({"a": "x"}))).await.ok();
    assert_eq!(made["data"], json!({"a": "x", "b": "y"}));
    let made = api.post(MAPS, map("t2", json!({"a": "z"}))).await.ok();
    assert_eq!(made["data"], json!({"a": "z"}));
    let wrong = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": "w"}, "spec": {"matchConstraints": rules("*"), "mutations": apply("[1]"),
            "reinvocationPolicy": "Never"}});
    let answer = api.post(&format!("{GROUP}/mutatingadmissionpolicies"), wrong).await;
    assert!(
        answer.message().contains(
            "spec.mutations[0].applyConfiguration.expression: Invalid value: \"[1]\": must evaluate to Object but got list(int)"
        ),
        "{}",
        answer.message()
    );
    api.server.stop().await;
}
