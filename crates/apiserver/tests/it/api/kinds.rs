//! Kinds with ways of their own: Services, scales, Events, definitions, evictions.

use serde_json::json;

use super::{PODS, with_default_account};
use crate::common::{Api, pod};

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
    // Nothing says which family its endpoints have.
    assert_eq!(headless["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(headless["spec"]["ipFamilyPolicy"], "RequireDualStack");
    // A dry run takes nothing.
    let asked = json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 31234}]});
    for name in ["d", "e"] {
        api.post(&format!("{path}?dryRun=All"), service(name, asked.clone()))
            .await
            .ok();
    }
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
    let evicted = api.get(&format!("{PODS}/p")).await.ok();
    assert!(evicted["metadata"]["deletionTimestamp"].is_string());
    let conditions = evicted["status"]["conditions"].as_array().unwrap();
    let target = conditions
        .iter()
        .find(|condition| condition["type"] == "DisruptionTarget")
        .unwrap();
    assert_eq!(
        (&target["status"], &target["reason"], &target["message"]),
        (
            &json!("True"),
            &json!("EvictionByEvictionAPI"),
            &json!("Eviction API: evicting")
        )
    );
    let spent = api.get(&format!("{budgets}/b")).await.ok();
    assert_eq!(spent["status"]["disruptionsAllowed"], 0);
    assert!(spent["status"]["disruptedPods"]["p"].is_string());
    api.server.stop().await;
}
