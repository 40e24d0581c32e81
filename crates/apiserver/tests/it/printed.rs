//! What Go prints of an object though nobody has given it: everybody who reads sees it, and nobody who writes has to.

use crate::common::{Answer, Api, config_map};
use sampan_apiserver::testing::TestServer;
use sampan_store::embedded::{Embedded, Options};
use sampan_store::{Condition, Op, Store, Write};
use serde_json::{Value, json};

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
const SETS: &str = "/apis/apps/v1/namespaces/default/statefulsets";
const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";
const SCALERS: &str = "/apis/autoscaling";
const JSON_PATCH: &str = "application/json-patch+json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn role(name: &str) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}})
}

/// As sparse as a client may write it: no `status` of the claim, no `resources` of the container.
fn set(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"app": name}}, "serviceName": "s",
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}})
}

fn job(name: &str) -> Value {
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {"suspend": true,
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}})
}

fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap()
}

async fn ask(api: &Api, path: &str, accept: &str) -> Answer {
    api.send_as("GET", path, "", accept, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reader_sees_it() {
    let api = Api::start().await;
    let path = format!("{ROLES}/empty");
    let has = |object: &Value| assert_eq!(object.get("rules"), Some(&Value::Null), "{object}");
    let dry = api.post(&format!("{ROLES}?dryRun=All"), role("empty")).await.ok();
    has(&dry);
    let made = api.post(ROLES, role("empty")).await.ok();
    has(&made);
    assert_eq!(api.get(&path).await.ok(), made);
    has(&ask(&api, &path, "application/yaml;q=0.1, application/json").await.ok());
    let yaml = ask(&api, &path, "application/yaml").await.body;
    assert!(yaml.as_str().unwrap().contains("rules: null"), "{yaml}");
    let yaml = ask(
        &api,
        &format!("{ROLES}?fieldSelector=metadata.name%3Dempty"),
        "application/yaml",
    )
    .await;
    assert!(yaml.body.as_str().unwrap().contains("rules: null"), "{}", yaml.body);
    let listed = api
        .get(&format!("{ROLES}?fieldSelector=metadata.name%3Dempty"))
        .await
        .ok();
    assert_eq!(listed["items"], json!([made]));
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    let table = ask(&api, &format!("{path}?includeObject=Object"), table).await.ok();
    has(&table["rows"][0]["object"]);
    let partial = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    assert_eq!(ask(&api, &path, partial).await.ok().get("rules"), None);
    for query in [
        "watch=1&fieldSelector=metadata.name%3Dempty",
        "watch=1&fieldSelector=metadata.name%3Dempty&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan",
    ] {
        let mut events = api.watch(&format!("{ROLES}?{query}")).await;
        assert_eq!(events.next().await.unwrap()["object"], made);
    }
    // Protobuf has no nulls, and what was written in it is printed like everything else.
    let body = sampan_api::codec::protobuf::encode(&role("other")).unwrap();
    has(&api.send("POST", ROLES, PROTOBUF, body).await.ok());
    let answer = api
        .raw(
            http::Request::get(&path)
                .header("accept", PROTOBUF)
                .body(Default::default())
                .unwrap(),
        )
        .await;
    let bytes = http_body_util::BodyExt::collect(answer.into_body())
        .await
        .unwrap()
        .to_bytes();
    let decoded = sampan_api::codec::protobuf::decode(&bytes, None).unwrap();
    assert_eq!(decoded.get("rules"), None);
    // A dry run of an update shows it as well, and so does a kind that is stored in another version.
    has(&api.put(&format!("{path}?dryRun=All"), role("empty")).await.ok());
    let scaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
    let path = |version: &str| format!("{SCALERS}/{version}/namespaces/default/horizontalpodautoscalers");
    api.post(&path("v2"), scaler).await.ok();
    let newest = api.get(&format!("{}/h", path("v2"))).await.ok();
    assert_eq!(newest["status"], json!({"currentMetrics": null, "desiredReplicas": 0}));
    let first = api.get(&format!("{}/h", path("v1"))).await.ok();
    assert_eq!(first["status"], json!({"currentReplicas": 0, "desiredReplicas": 0}));
    let listed = api.get(&path("v1")).await.ok();
    assert_eq!(listed["items"][0]["status"], first["status"]);
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_without_it_is_the_same() {
    let api = Api::start().await;
    for (collection, sparse) in [(SETS, set("a")), (JOBS, job("a")), (ROLES, role("a"))] {
        let path = format!("{collection}/a");
        let made = api.post(collection, sparse.clone()).await.ok();
        // As it was read, and as somebody without these fields writes it.
        let mut bare = made.clone();
        drop_empty(&mut bare);
        assert_eq!(api.put(&path, made.clone()).await.ok(), made);
        assert_eq!(api.put(&path, bare).await.ok(), made, "{collection}");
        assert_eq!(api.merge(&path, json!({})).await.ok(), made);
        // A configuration as sparse owns nothing it does not say, and applying it again changes nothing.
        let apply = format!("{path}?fieldManager=one&force=true");
        let apply = async || {
            let answer = api.send("PATCH", &apply, "application/apply-patch+yaml", sparse.to_string());
            answer.await.ok()
        };
        let applied = apply().await;
        assert_eq!(applied.get("generation"), made.get("generation"));
        assert_eq!(apply().await, applied);
    }
    // Generations count what somebody meant.
    let path = format!("{SETS}/a");
    let read = api.get(&path).await.ok();
    assert_eq!(read["metadata"]["generation"], 1);
    let mut more = read.clone();
    drop_empty(&mut more);
    more["spec"]["replicas"] = json!(2);
    assert_eq!(api.put(&path, more).await.ok()["metadata"]["generation"], 2);
    api.server.stop().await;
}

/// Takes nulls and empty structs out, as clients of other languages leave them out.
fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| {
                drop_empty(value);
                // Owned fields are sets of empty maps, and an empty selector is not none.
                let counts = matches!(key.as_str(), "managedFields" | "securityContext");
                counts || !(value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty))
            });
        }
        Value::Array(items) => items
            .iter_mut()
            .filter(|item| item.get("fieldsV1").is_none())
            .for_each(drop_empty),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_may_name_it() {
    let api = Api::start().await;
    let path = format!("{ROLES}/a");
    let made = api.post(ROLES, role("a")).await.ok();
    let patch = async |operations: Value| api.send("PATCH", &path, JSON_PATCH, operations.to_string()).await;
    // Nothing but a question: nothing is written.
    let asked = patch(json!([{"op": "test", "path": "/rules", "value": null}]))
        .await
        .ok();
    assert_eq!(version(&asked), version(&made));
    let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
    let replaced = patch(json!([{"op": "replace", "path": "/rules", "value": [rule]}]))
        .await
        .ok();
    assert_eq!(replaced["rules"], json!([rule]));
    let removed = patch(json!([{"op": "remove", "path": "/rules"}])).await.ok();
    assert_eq!(removed["rules"], Value::Null);
    // Merges put into it, and take it away.
    let merged = api.merge(&path, json!({"rules": [rule]})).await.ok();
    assert_eq!(merged["rules"], json!([rule]));
    let merged = api.merge(&path, json!({"rules": null})).await.ok();
    assert_eq!(merged["rules"], Value::Null);
    let strategic = "application/strategic-merge-patch+json";
    let merged = api
        .send("PATCH", &path, strategic, json!({"rules": [rule]}).to_string())
        .await;
    assert_eq!(merged.ok()["rules"], json!([rule]));
    // An empty list is stored as none, as Go's storage has it.
    let emptied = api.merge(&path, json!({"rules": []})).await.ok();
    assert_eq!(emptied["rules"], Value::Null);
    // Custom kinds are nobody's Go types: what is null there stays what it was.
    api.post("/api/v1/namespaces/default/configmaps", config_map("a"))
        .await
        .ok();
    let map = api.get("/api/v1/namespaces/default/configmaps/a").await.ok();
    assert_eq!(map.get("binaryData"), None);
    api.server.stop().await;
}

/// Objects of a store that an older version wrote have none of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_without_it_can_still_be_changed() {
    let dir = std::env::temp_dir().join(format!("sampan-test-{}", uuid::Uuid::new_v4()));
    let server = TestServer::start_in(&dir).await.unwrap();
    let api = Api::of(server);
    let mut made = api.post(SETS, set("a")).await.ok();
    api.stop().await;
    drop_empty(&mut made);
    made["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let store = Embedded::open(&dir.join("store"), Options::default()).unwrap();
    store
        .write(Write {
            key: "/registry/statefulsets/default/a".into(),
            condition: Condition::None,
            op: Op::Put {
                value: made.to_string().into(),
                lease: None,
            },
        })
        .await
        .unwrap();
    store.close();
    drop(store);
    let api = Api::of(TestServer::start_in(&dir).await.unwrap());
    let path = format!("{SETS}/a");
    let read = api.get(&path).await.ok();
    let container = "/spec/template/spec/containers/0";
    assert_eq!(read.pointer(container).unwrap().get("resources"), None, "{read}");
    // Nothing has changed, whichever way it is written.
    assert_eq!(version(&api.put(&path, read.clone()).await.ok()), version(&read));
    // What cannot change has not.
    let scaled = api.merge(&path, json!({"spec": {"replicas": 3}})).await.ok();
    assert_eq!(scaled["metadata"]["generation"], 2);
    assert_eq!(scaled["spec"]["volumeClaimTemplates"][0]["status"]["phase"], "Pending");
    assert_eq!(
        scaled["spec"]["template"]["spec"]["containers"][0]["resources"],
        json!({})
    );
    api.server.stop().await;
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_see_it() {
    let api = Api::start().await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rules = json!({"resourceRules": [{"apiGroups": ["batch"], "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"], "resources": ["jobs"]}]});
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "limits"}, "spec": {"matchConstraints": rules, "validations": [{"message": "no limits",
            "expression": "object.spec.template.spec.containers.all(c, has(c.resources.limits))"}]}});
    api.post(&format!("{group}/validatingadmissionpolicies"), policy)
        .await
        .ok();
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "limits"}, "spec": {"policyName": "limits", "validationActions": ["Deny"]}});
    api.post(&format!("{group}/validatingadmissionpolicybindings"), binding)
        .await
        .ok();
    // Not "no such key: resources".
    let answer = api.post(JOBS, job("a")).await;
    assert!(
        answer.message().ends_with("denied request: no limits"),
        "{}",
        answer.body
    );
    api.server.stop().await;
}
