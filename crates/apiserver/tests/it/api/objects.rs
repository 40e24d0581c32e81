//! How objects live and die, and the words of refusals.

use serde_json::json;

use super::{CM, PODS, with_default_account};
use crate::common::{Api, config_map, pod};

#[tokio::test(flavor = "multi_thread")]
async fn an_object_lives_and_dies() {
    let api = Api::start().await;
    let made = api.post(CM, config_map("a")).await;
    assert_eq!(made.code, 201);
    let made = made.body;
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(made["metadata"]["uid"].as_str().is_some_and(|uid| uid.len() == 36));
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "tests");

    let mut changed = made.clone();
    changed["data"]["key"] = "other".into();
    let updated = api.put(&format!("{CM}/a"), changed.clone()).await.ok();
    assert_ne!(
        updated["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    // The same again changes nothing, not even the version.
    let again = api.put(&format!("{CM}/a"), updated.clone()).await.ok();
    assert_eq!(
        again["metadata"]["resourceVersion"],
        updated["metadata"]["resourceVersion"]
    );
    api.put(&format!("{CM}/a"), changed).await.refused(
        409,
        "Conflict",
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again",
    );
    let patched = api
        .merge(&format!("{CM}/a"), json!({"data": {"key": null, "more": "x"}}))
        .await
        .ok();
    assert_eq!(patched["data"], json!({"more": "x"}));
    let gone = api.delete(&format!("{CM}/a")).await.ok();
    assert_eq!(
        (gone["status"].as_str(), gone["details"]["kind"].as_str()),
        (Some("Success"), Some("configmaps"))
    );
    assert_eq!(gone["details"]["uid"], made["metadata"]["uid"]);
    api.get(&format!("{CM}/a"))
        .await
        .refused(404, "NotFound", "configmaps \"a\" not found");
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_worded_as_upstream_words_them() {
    let api = Api::start().await;
    api.post(CM, config_map("a")).await.ok();
    api.post(CM, config_map("a"))
        .await
        .refused(409, "AlreadyExists", "configmaps \"a\" already exists");
    // What is about to go is told apart.
    let mut held = config_map("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.post(CM, held.clone()).await.ok();
    api.delete(&format!("{CM}/held")).await.ok();
    let words = "object is being deleted: configmaps \"held\" already exists";
    for path in [CM.to_owned(), format!("{CM}?dryRun=All")] {
        api.post(&path, held.clone()).await.refused(409, "AlreadyExists", words);
    }
    api.merge(&format!("{CM}/held"), json!({"metadata": {"finalizers": null}}))
        .await
        .ok();
    api.post("/api/v1/namespaces/none/configmaps", config_map("a"))
        .await
        .refused(404, "NotFound", "namespaces \"none\" not found");
    let mut elsewhere = config_map("b");
    elsewhere["metadata"]["namespace"] = "kube-system".into();
    api.post(CM, elsewhere).await.refused(
        400,
        "BadRequest",
        "the namespace of the provided object does not match the namespace sent on the request",
    );
    api.post(CM, json!({"metadata": {}})).await.refused(
        422,
        "Invalid",
        "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
    );
    let bad = api.post(CM, config_map("A_b")).await;
    assert_eq!(bad.code, 422);
    assert!(
        bad.message().starts_with(
            "ConfigMap \"A_b\" is invalid: metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must"
        ),
        "{}",
        bad.message()
    );
    api.put(&format!("{CM}/b"), config_map("a")).await.refused(
        400,
        "BadRequest",
        "the name of the object (a) does not match the name on the URL (b)",
    );
    api.put(&format!("{CM}/b"), config_map("b"))
        .await
        .refused(404, "NotFound", "configmaps \"b\" not found");
    api.get("/api/v1/nothing")
        .await
        .refused(404, "NotFound", "the server could not find the requested resource");
    api.get(&format!("{CM}?limit=x")).await.refused(
        400,
        "BadRequest",
        "invalid limit: strconv.ParseInt: parsing \"x\": invalid syntax",
    );
    api.get(&format!("{CM}?fieldSelector=spec.x%3D1")).await.refused(
        400,
        "BadRequest",
        "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
    );
    api.send("POST", CM, "text/html", "x").await.refused(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    );
    assert_eq!(
        api.send("PATCH", &format!("{CM}/a"), "application/json", "{}")
            .await
            .code,
        415
    );
    assert_eq!(
        api.send("POST", CM, "application/json", vec![b' '; (3 << 20) + 1])
            .await
            .code,
        413
    );
    assert_eq!(api.send("POST", CM, "application/json", "{").await.code, 400);
    api.delete("/api/v1/namespaces/default").await.refused(
        403,
        "Forbidden",
        "namespaces \"default\" is forbidden: this namespace may not be deleted",
    );
    // Preconditions.
    let wrong = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "other"}});
    let conflict = api
        .send("DELETE", &format!("{CM}/a"), "application/json", wrong.to_string())
        .await;
    assert_eq!(
        (conflict.code, conflict.body["reason"].as_str()),
        (409, Some("Conflict"))
    );
    assert!(
        conflict
            .message()
            .contains("the UID in the precondition (other) does not match the UID in record")
    );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn field_validation_is_strict_warns_or_keeps_quiet() {
    let api = Api::start().await;
    let mut object = config_map("a");
    object["dta"] = json!({});
    api.post(&format!("{CM}?fieldValidation=Strict"), object.clone()).await.refused(
        400,
        "BadRequest",
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dta\"",
    );
    let warned = api.post(&format!("{CM}?dryRun=All"), object.clone()).await;
    assert_eq!(
        (warned.code, &warned.headers["warning"]),
        (201, &"299 - \"unknown field \\\"dta\\\"\"".parse().unwrap())
    );
    assert!(warned.body.get("dta").is_none());
    let quiet = api
        .post(&format!("{CM}?fieldValidation=Ignore&dryRun=All"), object)
        .await;
    assert!(quiet.code == 201 && !quiet.headers.contains_key("warning"));
    assert_eq!(api.get(&format!("{CM}/a")).await.code, 404, "a dry run writes nothing");
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_and_pods_go_gracefully() {
    let api = with_default_account().await;
    let mut held = config_map("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.post(CM, held).await.ok();
    let marked = api.delete(&format!("{CM}/held")).await.ok();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let more = api
        .merge(
            &format!("{CM}/held"),
            json!({"metadata": {"finalizers": ["example.com/hold", "example.com/new"]}}),
        )
        .await;
    assert!(
        more.message()
            .contains("no new finalizers can be added if the object is being deleted"),
        "{}",
        more.message()
    );
    api.merge(&format!("{CM}/held"), json!({"metadata": {"finalizers": null}}))
        .await
        .ok();
    assert_eq!(api.get(&format!("{CM}/held")).await.code, 404);

    // A Pod on a node waits for its node; one that never got there goes at once.
    api.post(PODS, pod("loose")).await.ok();
    api.delete(&format!("{PODS}/loose")).await.ok();
    assert_eq!(api.get(&format!("{PODS}/loose")).await.code, 404);
    api.post(PODS, pod("placed")).await.ok();
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "placed"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(
        api.post(&format!("{PODS}/placed/binding"), binding.clone()).await.code,
        201
    );
    api.post(&format!("{PODS}/placed/binding"), binding).await.refused(
        409,
        "Conflict",
        "Operation cannot be fulfilled on pods/binding \"placed\": pod placed is already assigned to node \"n1\"",
    );
    let bound = api.get(&format!("{PODS}/placed")).await.ok();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let going = api.delete(&format!("{PODS}/placed")).await.ok();
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    let node_pods = api.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.ok();
    assert_eq!(node_pods["items"].as_array().unwrap().len(), 1);
    let now = json!({"gracePeriodSeconds": 0});
    api.send("DELETE", &format!("{PODS}/placed"), "application/json", now.to_string())
        .await
        .ok();
    assert_eq!(api.get(&format!("{PODS}/placed")).await.code, 404);
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_there_after_a_restart() {
    let dir = std::env::temp_dir().join(format!("sampan-restart-{}", std::process::id()));
    let server = sampan_apiserver::testing::TestServer::start_in(&dir).await.unwrap();
    let api = Api {
        service: server.connect(),
        server,
    };
    let made = api.post(CM, config_map("kept")).await.ok();
    drop(api.service);
    api.server.stop().await;
    let server = sampan_apiserver::testing::TestServer::start_in(&dir).await.unwrap();
    let api = Api {
        service: server.connect(),
        server,
    };
    assert_eq!(api.get(&format!("{CM}/kept")).await.ok(), made);
    // A watch from before the restart goes on.
    let version = made["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = api.watch(&format!("{CM}?watch=1&resourceVersion={version}")).await;
    api.delete(&format!("{CM}/kept")).await.ok();
    assert_eq!(events.brief().await, "DELETED kept");
    api.server.stop().await;
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_end_in_order() {
    let api = Api::start().await;
    let path = "/api/v1/namespaces";
    let made = api
        .post(
            path,
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}),
        )
        .await
        .ok();
    assert_eq!(
        (made["status"]["phase"].as_str(), &made["spec"]["finalizers"]),
        (Some("Active"), &json!(["kubernetes"]))
    );
    api.post(&format!("{path}/x/configmaps"), config_map("a")).await.ok();
    let going = api.delete(&format!("{path}/x")).await.ok();
    assert_eq!(going["status"]["phase"], "Terminating");
    let late = api.post(&format!("{path}/x/configmaps"), config_map("b")).await;
    late.refused(
        403,
        "Forbidden",
        "configmaps \"b\" is forbidden: unable to create new content in namespace x because it is being terminated",
    );
    assert_eq!(late.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut done = api.get(&format!("{path}/x")).await.ok();
    done["spec"]["finalizers"] = json!([]);
    api.put(&format!("{path}/x/finalize"), done).await.ok();
    assert_eq!(api.get(&format!("{path}/x")).await.code, 404);
    api.server.stop().await;
}
