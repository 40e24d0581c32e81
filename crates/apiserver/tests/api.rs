//! The API through the in-process transport: verbs, options, and the words of every refusal.

mod common;

use common::{Api, config_map, pod};
use serde_json::json;

const CM: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn with_default_account() -> Api {
    let api = Api::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .ok();
    api
}

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
async fn lists_select_and_page() {
    let api = Api::start().await;
    for number in 0..7 {
        let mut object = config_map(&format!("c{number}"));
        object["metadata"]["labels"] = json!({"parity": if number % 2 == 0 { "even" } else { "odd" }});
        api.post(CM, object).await.ok();
    }
    let list = api.get(&format!("{CM}?labelSelector=parity%3Dodd")).await.ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    assert_eq!(list["kind"], "ConfigMapList");
    let page = api.get(&format!("{CM}?limit=3")).await.ok();
    assert_eq!(page["metadata"]["remainingItemCount"], 4);
    let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
    // What happens between the pages is not seen by them.
    api.delete(&format!("{CM}/c5")).await.ok();
    let rest = api.get(&format!("{CM}?limit=10&continue={token}")).await.ok();
    let names: Vec<_> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["c3", "c4", "c5", "c6"]);
    assert_eq!(rest["metadata"]["resourceVersion"], page["metadata"]["resourceVersion"]);
    let one = api.get(&format!("{CM}?fieldSelector=metadata.name%3Dc2")).await.ok();
    assert_eq!(one["items"].as_array().unwrap().len(), 1);
    let table = api
        .send_as("GET", CM, "", "application/json;as=Table;v=v1;g=meta.k8s.io", "")
        .await
        .ok();
    assert_eq!(
        (table["kind"].as_str(), table["rows"].as_array().unwrap().len()),
        (Some("Table"), 6)
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = api
        .send_as(
            "GET",
            CM,
            "",
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
            "",
        )
        .await
        .ok();
    assert!(partial["items"][0]["metadata"]["name"] == "c0" && partial["items"][0].get("data").is_none());
    let deleted = api.delete(&format!("{CM}?labelSelector=parity%3Deven")).await.ok();
    assert_eq!(deleted["items"].as_array().unwrap().len(), 4);
    assert_eq!(api.get(CM).await.ok()["items"].as_array().unwrap().len(), 2);
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_select_bookmark_and_expire() {
    let api = Api::start().await;
    let first = api.post(CM, config_map("a")).await.ok();
    let version = first["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut all = api.watch(&format!("{CM}?watch=1&resourceVersion={version}")).await;
    let mut labelled = api.watch(&format!("{CM}?watch=1&labelSelector=on")).await;
    let mut listing = api
        .watch(&format!(
            "{CM}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        ))
        .await;
    assert_eq!(listing.brief().await, "ADDED a");
    let mark = listing.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(
        mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    api.merge(&format!("{CM}/a"), json!({"metadata": {"labels": {"on": "1"}}}))
        .await
        .ok();
    api.merge(&format!("{CM}/a"), json!({"metadata": {"labels": {"on": null}}}))
        .await
        .ok();
    api.delete(&format!("{CM}/a")).await.ok();
    for wanted in ["MODIFIED a", "MODIFIED a", "DELETED a"] {
        assert_eq!(all.brief().await, wanted);
        assert_eq!(listing.brief().await, wanted);
    }
    // It came into the selection and left it.
    assert_eq!(labelled.brief().await, "ADDED a");
    assert_eq!(labelled.brief().await, "DELETED a");
    let mut old = api
        .watch(&format!("{CM}?watch=1&resourceVersion=1&timeoutSeconds=1"))
        .await;
    // History reaches back to the start of this store: everything of the namespace is replayed.
    let mut seen = 0;
    while let Some(event) = old.next().await {
        assert_ne!(event["type"], "ERROR");
        seen += 1;
    }
    assert!(seen >= 4);
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
async fn services_get_addresses_and_give_them_back() {
    let api = Api::start().await;
    let path = "/api/v1/namespaces/default/services";
    let service = |name: &str, extra: serde_json::Value| {
        let mut spec = json!({"ports": [{"port": 80}]});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    };
    let made = api.post(path, service("a", json!({"type": "NodePort"}))).await.ok();
    let (ip, port) = (
        made["spec"]["clusterIP"].clone(),
        made["spec"]["ports"][0]["nodePort"].clone(),
    );
    assert!(ip.as_str().unwrap().starts_with("10.96."));
    let taken = api.post(path, service("b", json!({"clusterIP": ip}))).await;
    assert_eq!(taken.code, 422);
    assert!(
        taken.message().contains("provided IP is already allocated"),
        "{}",
        taken.message()
    );
    let outside = api.post(path, service("b", json!({"clusterIP": "1.2.3.4"}))).await;
    assert!(
        outside
            .message()
            .contains("is not in the valid range. The range of valid IPs is 10.96.0.0/16"),
        "{}",
        outside.message()
    );
    let busy = api
        .post(
            path,
            service(
                "b",
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}),
            ),
        )
        .await;
    assert!(
        busy.message().contains("provided port is already allocated"),
        "{}",
        busy.message()
    );
    // An update that says nothing keeps both.
    let kept = api
        .merge(&format!("{path}/a"), json!({"metadata": {"labels": {"x": "y"}}}))
        .await
        .ok();
    assert_eq!(
        (&kept["spec"]["clusterIP"], &kept["spec"]["ports"][0]["nodePort"]),
        (&ip, &port)
    );
    api.delete(&format!("{path}/a")).await.ok();
    let again = api.post(path, service("b", json!({"clusterIP": ip}))).await.ok();
    assert_eq!(again["spec"]["clusterIP"], ip);
    let headless = api.post(path, service("h", json!({"clusterIP": "None"}))).await.ok();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scale_and_apply() {
    let api = Api::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let web = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let yaml = "application/apply-patch+yaml";
    let applied = api
        .send("PATCH", &format!("{path}/web?fieldManager=me"), yaml, web.to_string())
        .await;
    assert_eq!(applied.code, 201, "{}", applied.body);
    let scale = api.get(&format!("{path}/web/scale")).await.ok();
    assert_eq!(
        (scale["kind"].as_str(), scale["status"]["selector"].as_str()),
        (Some("Scale"), Some("app=web"))
    );
    let scaled = api
        .merge(&format!("{path}/web/scale"), json!({"spec": {"replicas": 3}}))
        .await
        .ok();
    assert_eq!(scaled["spec"]["replicas"], 3);
    let web_now = api.get(&format!("{path}/web")).await.ok();
    assert_eq!(
        (&web_now["spec"]["replicas"], &web_now["metadata"]["generation"]),
        (&json!(3), &json!(2))
    );
    // Another manager owns the number now.
    let conflict = api
        .send("PATCH", &format!("{path}/web?fieldManager=me"), yaml, web.to_string())
        .await;
    assert_eq!(conflict.code, 409, "{}", conflict.body);
    assert!(conflict.message().contains(".spec.replicas"), "{}", conflict.message());
    api.send(
        "PATCH",
        &format!("{path}/web?fieldManager=me&force=true"),
        yaml,
        web.to_string(),
    )
    .await
    .ok();
    let version = api.get(&format!("{path}/web")).await.ok()["metadata"]["resourceVersion"].clone();
    api.send("PATCH", &format!("{path}/web?fieldManager=me"), yaml, web.to_string())
        .await
        .ok();
    assert_eq!(
        api.get(&format!("{path}/web")).await.ok()["metadata"]["resourceVersion"],
        version,
        "nothing changed"
    );
    api.send("PATCH", &format!("{path}/web"), yaml, web.to_string())
        .await
        .refused(
            422,
            "Invalid",
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_has_two_faces() {
    let api = Api::start().await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "R", "message": "m", "type": "Normal",
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}});
    api.post("/api/v1/namespaces/default/events", event).await.ok();
    let other = api.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.ok();
    assert_eq!(other["apiVersion"], "events.k8s.io/v1");
    assert_eq!(
        (other["note"].as_str(), other["regarding"]["name"].as_str()),
        (Some("m"), Some("p"))
    );
    let found = api
        .get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp")
        .await
        .ok();
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    let found = api
        .get("/apis/events.k8s.io/v1/namespaces/default/events?fieldSelector=regarding.name%3Dp")
        .await
        .ok();
    assert_eq!(found["items"][0]["note"], "m");
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
async fn rights_are_asked_for() {
    let api = Api::start().await;
    let nobody = api
        .server
        .plane
        .connect(sampan_auth::UserInfo::new("jane", ["system:authenticated"]));
    let api = Api {
        service: nobody,
        server: api.server,
    };
    api.get(PODS).await.refused(
        403,
        "Forbidden",
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"",
    );
    assert_eq!(api.get("/version").await.code, 200);
    let mine = api
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}),
        )
        .await
        .ok();
    assert_eq!(mine["status"]["allowed"], false);
    // Who may patch may not therefore create.
    let admin = Api {
        service: api.server.connect(),
        server: api.server,
    };
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "patcher"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}]});
    admin.post(&format!("{roles}/roles"), role).await.ok();
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "patcher"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "patcher"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    admin.post(&format!("{roles}/rolebindings"), binding).await.ok();
    let jane = admin
        .server
        .plane
        .connect(sampan_auth::UserInfo::new("jane", ["system:authenticated"]));
    let api = Api {
        service: jane,
        server: admin.server,
    };
    let apply = |name: &str| (format!("{CM}/{name}?fieldManager=jane"), config_map(name).to_string());
    let (path, body) = apply("new");
    api.send("PATCH", &path, "application/apply-patch+yaml", body).await.refused(
        403,
        "Forbidden",
        "configmaps \"new\" is forbidden: User \"jane\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\"",
    );
    let admin = Api {
        service: api.server.connect(),
        server: api.server,
    };
    admin.post(CM, config_map("old")).await.ok();
    let jane = admin
        .server
        .plane
        .connect(sampan_auth::UserInfo::new("jane", ["system:authenticated"]));
    let api = Api {
        service: jane,
        server: admin.server,
    };
    let (path, body) = apply("old");
    assert_eq!(
        api.send("PATCH", &path, "application/apply-patch+yaml", body)
            .await
            .code,
        200
    );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_becomes_a_resource() {
    let api = Api::start().await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1}, "color": {"type": "string", "default": "red"}}},
        "status": {"type": "object", "properties": {"size": {"type": "integer"}}}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "boats", "kind": "Boat", "shortNames": ["bt"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
                    "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]},
                {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": schema}}]}});
    let mut events = api.watch(&format!("{definitions}?watch=1")).await;
    api.post(definitions, definition).await.ok();
    loop {
        let event = events.next().await.unwrap();
        let conditions = event["object"]["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if conditions
            .iter()
            .any(|condition| condition["type"] == "Established" && condition["status"] == "True")
        {
            break;
        }
    }
    let path = "/apis/example.com/v1/namespaces/default/boats";
    let boat = |spec: serde_json::Value| json!({"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "b"}, "spec": spec});
    let made = api.post(path, boat(json!({"size": 3, "wings": 2}))).await;
    assert_eq!(made.headers["warning"], "299 - \"unknown field \\\"spec.wings\\\"\"");
    assert_eq!(made.ok()["spec"], json!({"size": 3, "color": "red"}));
    let bad = api.merge(&format!("{path}/b"), json!({"spec": {"size": 0}})).await;
    assert_eq!(
        bad.message(),
        "Boat.example.com \"b\" is invalid: spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"
    );
    let updated = api
        .merge(
            &format!("{path}/b/status"),
            json!({"status": {"size": 2}, "spec": {"size": 9}}),
        )
        .await
        .ok();
    assert_eq!(
        (&updated["spec"]["size"], &updated["status"]["size"]),
        (&json!(3), &json!(2))
    );
    let scaled = api
        .merge(&format!("{path}/b/scale"), json!({"spec": {"replicas": 5}}))
        .await
        .ok();
    assert_eq!(
        (&scaled["spec"]["replicas"], &scaled["status"]["replicas"]),
        (&json!(5), &json!(2))
    );
    let older = api
        .get("/apis/example.com/v1beta1/namespaces/default/boats/b")
        .await
        .ok();
    assert_eq!(
        (older["apiVersion"].as_str(), &older["spec"]["size"]),
        (Some("example.com/v1beta1"), &json!(5))
    );
    let table = api
        .send_as("GET", path, "", "application/json;as=Table;v=v1;g=meta.k8s.io", "")
        .await
        .ok();
    assert_eq!(table["rows"][0]["cells"], json!(["b", 5]));
    let group = api.get("/apis/example.com").await.ok();
    assert_eq!(group["preferredVersion"]["version"], "v1");
    assert!(api.get("/openapi/v3").await.ok()["paths"]["apis/example.com/v1"].is_object());
    let yaml = "application/apply-patch+yaml";
    let applied = api
        .send(
            "PATCH",
            &format!("{path}/c?fieldManager=me"),
            yaml,
            boat(json!({"size": 1})).to_string().replace("\"b\"", "\"c\""),
        )
        .await;
    assert_eq!(applied.code, 201, "{}", applied.body);
    // With the definition go its objects.
    api.delete(&format!("{definitions}/boats.example.com")).await.ok();
    while events.next().await.unwrap()["type"] != "DELETED" {}
    assert_eq!(api.get(&format!("{definitions}/boats.example.com")).await.code, 404);
    let mut code = 200;
    for _ in 0..100 {
        code = api.get(path).await.code;
        if code == 404 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(code, 404);
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregated_roles_follow_their_parts() {
    let api = Api::start().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let list = api.get(roles).await.ok();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = api
        .watch(&format!(
            "{roles}?watch=1&fieldSelector=metadata.name%3Dedit&resourceVersion={version}"
        ))
        .await;
    let part = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "boats", "labels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"}},
        "rules": [{"apiGroups": ["example.com"], "resources": ["boats"], "verbs": ["get"]}]});
    api.post(roles, part).await.ok();
    let event = events.next().await.unwrap();
    assert!(event["object"]["rules"].to_string().contains("boats"));
    api.delete(&format!("{roles}/boats")).await.ok();
    let event = events.next().await.unwrap();
    assert!(!event["object"]["rules"].to_string().contains("boats"));
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_expire_with_history() {
    let api = Api::start().await;
    for number in 0..3 {
        api.post(CM, config_map(&format!("c{number}"))).await.ok();
    }
    let page = api.get(&format!("{CM}?limit=1")).await.ok();
    let token = page["metadata"]["continue"].as_str().unwrap();
    api.post(CM, config_map("c1a")).await.ok();
    let store = api.server.plane.registry().cache.store().clone();
    store.compact(store.revision()).await.unwrap();
    let gone = api.get(&format!("{CM}?limit=1&continue={token}")).await;
    assert_eq!((gone.code, gone.body["reason"].as_str()), (410, Some("Expired")));
    assert!(
        gone.message()
            .starts_with("The provided continue parameter is too old to display a consistent list result.")
    );
    // The refusal carries a token that goes on in the present.
    let token = gone.body["metadata"]["continue"].as_str().unwrap();
    let rest = api.get(&format!("{CM}?continue={token}")).await.ok();
    let names: Vec<_> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["c1", "c1a", "c2"]);
    let version = page["metadata"]["resourceVersion"].as_str().unwrap();
    let old = api
        .get(&format!("{CM}?resourceVersion={version}&resourceVersionMatch=Exact"))
        .await;
    assert_eq!((old.code, old.body["reason"].as_str()), (410, Some("Expired")));
    let future = api.get(&format!("{CM}?resourceVersion=999999")).await;
    assert_eq!(
        (future.code, future.body["details"]["causes"][0]["reason"].as_str()),
        (504, Some("ResourceVersionTooLarge"))
    );
    api.server.stop().await;
}

/// What memory no longer holds is read from the store, in both engines, until it is compacted.
#[tokio::test(flavor = "multi_thread")]
async fn states_older_than_memory_come_from_the_store() {
    use sampan_store::{Store, embedded, etcd};
    let dir = tempfile::tempdir().unwrap();
    let process = sampan_store::testing::EtcdProcess::start();
    let mut engines: Vec<(&str, std::sync::Arc<dyn Store>, sampan_tasks::Tasks)> = Vec::new();
    let opened = embedded::Embedded::open(&dir.path().join("store"), embedded::Options::default()).unwrap();
    engines.push(("embedded", opened, sampan_tasks::Tasks::new()));
    if let Some(process) = &process {
        let tasks = sampan_tasks::Tasks::new();
        let connected = etcd::Etcd::connect(&process.options(), &tasks).await.unwrap();
        engines.push(("etcd", connected, tasks));
    }
    for (name, store, tasks) in engines {
        let server = sampan_apiserver::testing::TestServer::start_over(&dir.path().join(name), store, tasks)
            .await
            .unwrap();
        let service = server.connect();
        let api = Api { server, service };
        for number in 0..4 {
            api.post(CM, config_map(&format!("c{number}"))).await.ok();
        }
        let page = api.get(&format!("{CM}?limit=2")).await.ok();
        let first = api.get(CM).await.ok();
        let version = first["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
        api.delete(&format!("{CM}/c1")).await.ok();
        // More than is kept in memory.
        let large = "x".repeat(50_000);
        for number in 0..530 {
            let change = json!({"data": {"large": large, "n": number.to_string()}});
            api.merge(&format!("{CM}/c3"), change).await.ok();
        }
        // Snapshots that were kept for pages go when others need the room.
        for number in 0..40 {
            let change = json!({"data": {"n": format!("again {number}")}});
            api.merge(&format!("{CM}/c3"), change).await.ok();
            api.get(&format!("{CM}?limit=1")).await.ok();
        }
        let storage = api.server.plane.registry().cache.storage("configmaps").unwrap();
        assert!(
            storage.snapshot_at(version.parse().unwrap()).is_none(),
            "memory still holds it"
        );
        let watch = api.get(&format!("{CM}?watch=1&resourceVersion={version}")).await;
        assert!(
            watch.body.to_string().contains("too old resource version"),
            "{}",
            watch.body
        );
        let then = api
            .get(&format!("{CM}?resourceVersion={version}&resourceVersionMatch=Exact"))
            .await
            .ok();
        assert_eq!(then["items"], first["items"], "{name}");
        assert_eq!(then["metadata"]["resourceVersion"], version.as_str());
        let names = |list: &serde_json::Value| -> Vec<String> {
            let items = list["items"].as_array().unwrap().iter();
            items
                .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
                .collect()
        };
        let rest = api.get(&format!("{CM}?limit=1&continue={token}")).await.ok();
        assert_eq!(
            (names(&rest), rest["metadata"]["remainingItemCount"].as_i64()),
            (vec!["c2".to_owned()], Some(1))
        );
        let rest = api
            .get(&format!(
                "{CM}?continue={}",
                rest["metadata"]["continue"].as_str().unwrap()
            ))
            .await
            .ok();
        assert_eq!(names(&rest), ["c3"], "{name}");
        assert_eq!(rest["items"][0], first["items"][3], "{name}: as it was then");
        let selected = api
            .get(&format!(
                "{CM}?resourceVersion={version}&resourceVersionMatch=Exact&fieldSelector=metadata.name%3Dc1"
            ))
            .await
            .ok();
        assert_eq!(names(&selected), ["c1"], "{name}");

        let store = api.server.plane.registry().cache.store().clone();
        store.compact(store.revision()).await.unwrap();
        for path in [
            format!("{CM}?resourceVersion={version}&resourceVersionMatch=Exact"),
            format!("{CM}?continue={token}"),
        ] {
            let gone = api.get(&path).await;
            assert_eq!(
                (gone.code, gone.body["reason"].as_str()),
                (410, Some("Expired")),
                "{name}"
            );
        }
        api.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn evictions_ask_the_disruption_budget() {
    let api = with_default_account().await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}});
    api.post(budgets, budget).await.ok();
    let allow = async |allowed: i64| {
        let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
        api.merge(&format!("{budgets}/b/status"), status).await.ok();
    };
    let mut object = pod("p");
    object["metadata"]["labels"] = json!({"app": "x"});
    object["spec"]["nodeName"] = "n1".into();
    api.post(PODS, object).await.ok();
    let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    api.merge(&format!("{PODS}/p/status"), running).await.ok();
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p", "namespace": "default"}});
    allow(0).await;
    let refused = api.post(&format!("{PODS}/p/eviction"), eviction.clone()).await;
    refused.refused(
        429,
        "TooManyRequests",
        "Cannot evict pod as it would violate the pod's disruption budget.",
    );
    assert_eq!(
        refused.body["details"]["causes"][0],
        json!({"reason": "DisruptionBudget", "message": "The disruption budget b needs 1 healthy pods and has 1 currently"})
    );
    allow(1).await;
    assert_eq!(api.post(&format!("{PODS}/p/eviction"), eviction).await.code, 201);
    assert!(api.get(&format!("{PODS}/p")).await.ok()["metadata"]["deletionTimestamp"].is_string());
    let spent = api.get(&format!("{budgets}/b")).await.ok();
    assert_eq!(spent["status"]["disruptionsAllowed"], 0);
    assert!(spent["status"]["disruptedPods"]["p"].is_string());
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_made_reviewed_and_bound() {
    let api = with_default_account().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let review = async |token: &str| {
        api.post(
            "/apis/authentication.k8s.io/v1/tokenreviews",
            json!({"spec": {"token": token}}),
        )
        .await
        .ok()["status"]
            .clone()
    };
    api.post(PODS, pod("p")).await.ok();
    let request = json!({"spec": {"expirationSeconds": 3607, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}}});
    let made = api.post(path, request).await.ok();
    let token = made["status"]["token"].as_str().unwrap();
    let known = review(token).await;
    assert_eq!(
        (&known["authenticated"], known["user"]["username"].as_str()),
        (&json!(true), Some("system:serviceaccount:default:default"))
    );
    assert_eq!(
        known["user"]["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["p"])
    );
    api.delete(&format!("{PODS}/p")).await.ok();
    assert_ne!(
        review(token).await["authenticated"],
        true,
        "the token ends with its Pod"
    );
    assert_ne!(review("nonsense").await["authenticated"], true);
    let short = api.post(path, json!({"spec": {"expirationSeconds": 60}})).await;
    assert!(
        short.code == 422
            && short
                .message()
                .contains("may not specify a duration less than 10 minutes"),
        "{}",
        short.body
    );
    let other = api
        .post(
            path,
            json!({"spec": {"boundObjectRef": {"kind": "Pod", "name": "none"}}}),
        )
        .await;
    assert_eq!(other.code, 404);
    api.server.stop().await;
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
