//! Custom resources through the whole API: words of refusals, defaults from storage, selectable fields, and what
//! happens to clients while a definition changes.

use std::time::Duration;

use crate::common::Api;
use crate::common::boats::{
    BOATS, DEFINITIONS, boat, condition, define, definition, drained, redefine, schema, until, version,
};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_upstreams_and_what_is_not_changed_is_tolerated() {
    let api = Api::start().await;
    let mut bad = definition(vec![version(
        "v1",
        json!({"type": "object", "properties": {"spec": {}}}),
    )]);
    api.post(DEFINITIONS, bad.clone()).await.refused(
        422,
        "Invalid",
        "CustomResourceDefinition.apiextensions.k8s.io \"boats.example.com\" is invalid: spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields",
    );
    bad["metadata"]["name"] = "ships.example.com".into();
    assert!(
        api.post(DEFINITIONS, bad).await.message().contains(
            "metadata.name: Invalid value: \"ships.example.com\": must be spec.names.plural+\".\"+spec.group"
        )
    );
    define(&api, definition(vec![version("v1", schema())])).await;
    let refused = api
        .post(
            BOATS,
            boat("b", json!({"size": "x", "color": "green", "crew": ["a", "a"]})),
        )
        .await;
    refused.refused(
        422,
        "Invalid",
        "Boat.example.com \"b\" is invalid: [spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\", spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\", spec.crew[1]: Duplicate value: \"a\"]",
    );
    assert_eq!(refused.body["details"]["causes"][0]["reason"], "FieldValueNotSupported");
    assert_eq!(refused.body["details"]["causes"][0]["field"], "spec.color");
    api.post(BOATS, boat("b", json!({"size": 3, "crew": ["ann"]})))
        .await
        .ok();
    // The schema is tightened; what is stored stays as it is until it is changed.
    redefine(&api, |definition| {
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["size"]["maximum"] = 2.into();
    })
    .await;
    api.merge(&format!("{BOATS}/b"), json!({"spec": {"color": "red"}}))
        .await
        .ok();
    let refused = api.merge(&format!("{BOATS}/b"), json!({"spec": {"size": 4}})).await;
    assert_eq!(
        refused.message(),
        "Boat.example.com \"b\" is invalid: spec.size: Invalid value: 4: spec.size in body should be less than or equal to 2"
    );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_reach_what_is_stored_already() {
    let api = Api::start().await;
    define(&api, definition(vec![version("v1", schema())])).await;
    api.post(BOATS, boat("b", json!({"size": 3}))).await.ok();
    redefine(&api, |definition| {
        let spec =
            &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        spec["color"]["default"] = "red".into();
        spec.as_object_mut().unwrap().remove("size");
    })
    .await;
    let shown = api.get(&format!("{BOATS}/b")).await.ok();
    assert_eq!(shown["spec"], json!({"color": "red"}));
    let list = api.get(BOATS).await.ok();
    assert_eq!(list["items"][0]["spec"], json!({"color": "red"}));
    let bad = api
        .merge(
            &format!("{DEFINITIONS}/boats.example.com"),
            json!({"spec": {"versions": [version("v1", json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer", "default": "x"}}}}}))]}}),
        )
        .await;
    assert!(
        bad.message().contains(
            "spec.validation.openAPIV3Schema.properties[spec].properties[n].default: Invalid value: \"string\""
        ),
        "{}",
        bad.message()
    );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_selected_by_their_fields() {
    let api = Api::start().await;
    let mut v1 = version("v1", schema());
    v1["selectableFields"] = json!([{"jsonPath": ".spec.color"}, {"jsonPath": ".spec.size"}]);
    define(&api, definition(vec![v1])).await;
    for (name, color, size) in [("a", "red", 1), ("b", "blue", 2), ("c", "red", 3)] {
        api.post(BOATS, boat(name, json!({"color": color, "size": size})))
            .await
            .ok();
    }
    let names = |list: Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let select = |selector: &str| {
        format!(
            "{BOATS}?fieldSelector={}",
            selector.replace('=', "%3D").replace('!', "%21")
        )
    };
    assert_eq!(names(api.get(&select("spec.color=red")).await.ok()), ["a", "c"]);
    assert_eq!(names(api.get(&select("spec.color=red,spec.size=3")).await.ok()), ["c"]);
    assert_eq!(names(api.get(&select("spec.color!=red")).await.ok()), ["b"]);
    api.get(&select("spec.none=x"))
        .await
        .refused(400, "BadRequest", "field label not supported: spec.none");
    let list = api.get(BOATS).await.ok();
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = api
        .watch(&format!(
            "{}&watch=1&resourceVersion={revision}",
            select("spec.color=red")
        ))
        .await;
    api.merge(&format!("{BOATS}/b"), json!({"spec": {"color": "red"}}))
        .await
        .ok();
    api.merge(&format!("{BOATS}/a"), json!({"spec": {"color": "blue"}}))
        .await
        .ok();
    assert_eq!(events.brief().await, "ADDED b");
    assert_eq!(events.brief().await, "DELETED a");
    api.delete(&select("spec.color=red")).await.ok();
    assert_eq!(names(api.get(BOATS).await.ok()), ["a"]);
    let document = api.get("/openapi/v3/apis/example.com/v1").await.ok();
    assert_eq!(
        document["components"]["schemas"]["com.example.v1.Boat"]["x-kubernetes-selectable-fields"],
        json!([{"fieldPath": "spec.color"}, {"fieldPath": "spec.size"}])
    );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_end_when_a_definition_changes_and_begin_afresh() {
    let api = Api::start().await;
    define(&api, definition(vec![version("v1", schema())])).await;
    let events = api.watch(&format!("{BOATS}?watch=1")).await;
    api.post(BOATS, boat("a", json!({"size": 1}))).await.ok();
    redefine(&api, |definition| {
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = "changed".into();
    })
    .await;
    assert_eq!(drained(events).await, ["ADDED a"]);
    // A version that is no longer served is no longer there.
    redefine(&api, |definition| {
        let mut second = version("v2", schema());
        second["served"] = false.into();
        definition["spec"]["versions"].as_array_mut().unwrap().push(second);
    })
    .await;
    assert_eq!(api.get("/apis/example.com/v2/namespaces/default/boats").await.code, 404);
    let document = api.get("/openapi/v3").await.ok();
    assert!(document["paths"].get("apis/example.com/v1").is_some());
    assert!(document["paths"].get("apis/example.com/v2").is_none());
    // Its objects' finalizers hold the definition.
    api.merge(
        &format!("{BOATS}/a"),
        json!({"metadata": {"finalizers": ["example.com/hold"]}}),
    )
    .await
    .ok();
    let events = api.watch(&format!("{BOATS}?watch=1")).await;
    let deleted = api.delete(&format!("{DEFINITIONS}/boats.example.com")).await.ok();
    assert_eq!(
        condition(&deleted, "Terminating").unwrap()["reason"],
        "InstanceDeletionPending"
    );
    until(&api, "boats.example.com", "Terminating", "True").await;
    let mut code = 0;
    for _ in 0..200 {
        code = api.post(BOATS, boat("x", json!({}))).await.code;
        if code == 405 {
            break;
        }
        api.delete(&format!("{BOATS}/x")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(code, 405);
    api.merge(&format!("{BOATS}/a"), json!({"metadata": {"finalizers": null}}))
        .await
        .ok();
    let seen = drained(events).await;
    assert!(seen.contains(&"DELETED a".to_owned()), "{seen:?}");
    for _ in 0..200 {
        if api.get(BOATS).await.code == 404 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Made again, it serves afresh.
    define(&api, definition(vec![version("v1", schema())])).await;
    assert_eq!(api.get(BOATS).await.ok()["items"], json!([]));
    api.post(BOATS, boat("a", json!({"size": 2}))).await.ok();
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_belong_to_whoever_has_them_first() {
    let api = Api::start().await;
    define(&api, definition(vec![version("v1", schema())])).await;
    let mut other = definition(vec![version("v1", schema())]);
    other["metadata"]["name"] = "ships.example.com".into();
    other["spec"]["names"] = json!({"plural": "ships", "kind": "Ship", "shortNames": ["bt"]});
    api.post(DEFINITIONS, other).await.ok();
    let found = until(&api, "ships.example.com", "NamesAccepted", "False").await;
    let named = condition(&found, "NamesAccepted").unwrap();
    assert_eq!(
        (named["reason"].as_str(), named["message"].as_str()),
        (Some("ShortNamesConflict"), Some("\"bt\" is already in use"))
    );
    assert_eq!(api.get("/apis/example.com/v1/ships").await.code, 404);
    api.delete(&format!("{DEFINITIONS}/boats.example.com")).await.ok();
    until(&api, "ships.example.com", "Established", "True").await;
    assert_eq!(api.get("/apis/example.com/v1/ships").await.code, 200);
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_in_cel_are_kept() {
    let api = Api::start().await;
    let mut ruled = schema();
    ruled["properties"]["spec"]["x-kubernetes-validations"] = json!([
        {"rule": "!has(self.size) || !has(oldSelf.size) || self.size >= oldSelf.size", "message": "boats do not shrink", "fieldPath": ".size"},
        {"rule": "!has(self.crew) || self.crew.exists(one, one == 'cook')", "messageExpression": "has(self.color) ? 'no cook in a ' + self.color + ' boat' : 'no cook'"}]);
    let mut wrong = ruled.clone();
    wrong["properties"]["spec"]["x-kubernetes-validations"][0]["rule"] = "self.none > 1".into();
    let refused = api.post(DEFINITIONS, definition(vec![version("v1", wrong)])).await;
    assert!(
        refused.message().contains(
            "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: "
        ) && refused
            .message()
            .contains("compilation failed: ERROR: <input>:1:5: undefined field 'none'"),
        "{}",
        refused.message()
    );
    define(&api, definition(vec![version("v1", ruled)])).await;
    api.post(BOATS, boat("a", json!({"size": 3, "color": "red", "crew": ["ann"]})))
        .await
        .refused(
            422,
            "Invalid",
            "Boat.example.com \"a\" is invalid: spec: Invalid value: no cook in a red boat",
        );
    api.post(BOATS, boat("a", json!({"size": 3, "crew": ["cook"]})))
        .await
        .ok();
    let refused = api.merge(&format!("{BOATS}/a"), json!({"spec": {"size": 2}})).await;
    assert_eq!(
        refused.message(),
        "Boat.example.com \"a\" is invalid: spec.size: Invalid value: boats do not shrink"
    );
    assert_eq!(refused.body["details"]["causes"][0]["field"], "spec.size");
    api.server.stop().await;
}
