//! Custom resources through the whole API: words of refusals, defaults from storage, selectable fields, conversion by
//! a webhook, and what happens to clients while a definition changes.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use common::{Api, Events};
use http::Response;
use sampan_apiserver::Body;
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const BOATS: &str = "/apis/example.com/v1/namespaces/default/boats";

fn version(name: &str, schema: Value) -> Value {
    json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": schema}})
}

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "size": {"type": "integer", "minimum": 1}, "color": {"type": "string", "enum": ["red", "blue"]},
            "crew": {"type": "array", "maxItems": 3, "x-kubernetes-list-type": "set", "items": {"type": "string", "maxLength": 5}}}},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
}

fn definition(versions: Vec<Value>) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "boats", "kind": "Boat", "shortNames": ["bt"]}, "versions": versions}})
}

fn boat(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": name}, "spec": spec})
}

fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    definition["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|found| found["type"] == kind)
}

/// Waits until the definition's condition is so.
async fn until(api: &Api, name: &str, kind: &str, status: &str) -> Value {
    for _ in 0..500 {
        let found = api.get(&format!("{DEFINITIONS}/{name}")).await.body;
        if condition(&found, kind).is_some_and(|found| found["status"] == status) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{name} never had {kind}={status}");
}

async fn define(api: &Api, definition: Value) {
    let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
    api.post(DEFINITIONS, definition).await.ok();
    until(api, &name, "Established", "True").await;
}

/// Changes the stored definition and waits until it is served so.
async fn redefine(api: &Api, change: impl Fn(&mut Value)) {
    let path = format!("{DEFINITIONS}/boats.example.com");
    let mut found = api.get(&path).await.ok();
    change(&mut found);
    api.put(&path, found).await.ok();
    tokio::time::sleep(Duration::from_millis(200)).await;
}

async fn drained(mut events: Events) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        seen.push(format!(
            "{} {}",
            event["type"].as_str().unwrap(),
            event["object"]["metadata"]["name"].as_str().unwrap_or_default()
        ));
    }
    seen
}

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

/// A webhook that knows `size` (v1) as `length` (v2).
fn converter(calls: Arc<AtomicUsize>) -> Handler {
    Arc::new(move |parts, body| {
        let calls = calls.clone();
        Box::pin(async move {
            calls.fetch_add(1, Ordering::Relaxed);
            assert_eq!(parts.uri.path(), "/convert");
            let review: Value = serde_json::from_slice(&body)?;
            let request = &review["request"];
            let wanted = request["desiredAPIVersion"].as_str().unwrap_or_default();
            let (from, to) = if wanted.ends_with("v2") {
                ("size", "length")
            } else {
                ("length", "size")
            };
            let mut objects = request["objects"].as_array().cloned().unwrap_or_default();
            let mut result = json!({"status": "Success"});
            for object in &mut objects {
                object["apiVersion"] = wanted.into();
                object["metadata"]["annotations"]["converted"] = wanted.into();
                object["metadata"]["generation"] = 99.into();
                if let Some(spec) = object["spec"].as_object_mut()
                    && let Some(value) = spec.remove(from)
                {
                    if value == 13 {
                        result = json!({"status": "Failure", "message": "thirteen is not a size"});
                    }
                    spec.insert(to.into(), value);
                }
            }
            let answer = json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview",
                "response": {"uid": request["uid"], "result": result, "convertedObjects": objects}});
            Ok(Response::new(Body::from(answer.to_string())))
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_between_versions() {
    let api = Api::start().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let https = HttpsServer::start(
        &api.server.pki,
        &api.server.tasks,
        &["localhost"],
        converter(calls.clone()),
    )
    .await
    .unwrap();
    let bundle = base64::engine::general_purpose::STANDARD.encode(api.server.pki.ca_pem());
    let second = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "length": {"type": "integer"}, "color": {"type": "string"}}}}});
    let mut v2 = version("v2", second);
    v2["selectableFields"] = json!([{"jsonPath": ".spec.length"}]);
    let mut both = definition(vec![version("v1", schema()), v2]);
    both["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1", "v1beta1"],
        "clientConfig": {"url": format!("https://localhost:{}/convert", https.address.port()), "caBundle": bundle}}});
    define(&api, both).await;
    let newer = BOATS.replace("/v1/", "/v2/");
    api.post(BOATS, boat("a", json!({"size": 3}))).await.ok();
    assert_eq!(calls.load(Ordering::Relaxed), 0, "nothing to convert");
    let shown = api.get(&format!("{newer}/a")).await.ok();
    assert_eq!(
        (&shown["apiVersion"], &shown["spec"], &shown["metadata"]["generation"]),
        (&json!("example.com/v2"), &json!({"length": 3}), &json!(1))
    );
    assert_eq!(shown["metadata"]["annotations"]["converted"], "example.com/v2");
    // A list is one call, and what is known needs none.
    api.post(BOATS, boat("b", json!({"size": 4}))).await.ok();
    api.post(BOATS, boat("c", json!({"size": 5}))).await.ok();
    let before = calls.load(Ordering::Relaxed);
    let list = api.get(&newer).await.ok();
    let lengths: Vec<&Value> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["spec"]["length"])
        .collect();
    assert_eq!(lengths, [3, 4, 5]);
    api.get(&newer).await.ok();
    assert_eq!(calls.load(Ordering::Relaxed) - before, 1);
    let selected = api.get(&format!("{newer}?fieldSelector=spec.length%3D4")).await.ok();
    assert_eq!(selected["items"].as_array().map(Vec::len), Some(1));
    // Writes of the other version, patches and apply among them, store the storage version.
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = api.watch(&format!("{newer}?watch=1&resourceVersion={revision}")).await;
    api.merge(&format!("{newer}/a"), json!({"spec": {"length": 7}}))
        .await
        .ok();
    let event = events.next().await.unwrap();
    assert_eq!(
        (
            &event["type"],
            &event["object"]["apiVersion"],
            &event["object"]["spec"]["length"]
        ),
        (&json!("MODIFIED"), &json!("example.com/v2"), &json!(7))
    );
    assert_eq!(api.get(&format!("{BOATS}/a")).await.ok()["spec"], json!({"size": 7}));
    let applied =
        json!({"apiVersion": "example.com/v2", "kind": "Boat", "metadata": {"name": "d"}, "spec": {"length": 8}});
    let made = api
        .send(
            "PATCH",
            &format!("{newer}/d?fieldManager=me"),
            "application/apply-patch+yaml",
            applied.to_string(),
        )
        .await;
    assert_eq!(
        (made.code, &made.body["spec"]["length"]),
        (201, &json!(8)),
        "{}",
        made.body
    );
    assert_eq!(api.get(&format!("{BOATS}/d")).await.ok()["spec"]["size"], 8);
    assert_eq!(events.next().await.unwrap()["object"]["spec"]["length"], 8);
    let table = api
        .send_as("GET", &newer, "", "application/json;as=Table;v=v1;g=meta.k8s.io", "")
        .await
        .ok();
    assert_eq!(table["rows"].as_array().map(Vec::len), Some(4));
    // What the webhook says is what the client hears.
    let refused = api.merge(&format!("{newer}/a"), json!({"spec": {"length": 13}})).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            500,
            "conversion webhook for example.com/v2, Kind=Boat failed: thirteen is not a size"
        )
    );
    // Another storage version: a write brings an object there, and the definition remembers both.
    redefine(&api, |definition| {
        definition["spec"]["versions"][0]["storage"] = false.into();
        definition["spec"]["versions"][1]["storage"] = true.into();
    })
    .await;
    let stored = api.get(&format!("{DEFINITIONS}/boats.example.com")).await.ok();
    assert_eq!(stored["status"]["storedVersions"], json!(["v1", "v2"]));
    let before = api.get(&format!("{BOATS}/a")).await.ok();
    let after = api.put(&format!("{BOATS}/a"), before.clone()).await.ok();
    assert_ne!(
        before["metadata"]["resourceVersion"],
        after["metadata"]["resourceVersion"]
    );
    assert_eq!(after["spec"], json!({"size": 7}));
    let again = api.put(&format!("{BOATS}/a"), after.clone()).await.ok();
    assert_eq!(
        again["metadata"]["resourceVersion"],
        after["metadata"]["resourceVersion"]
    );
    api.delete(&format!("{newer}/a")).await.ok();
    api.server.stop().await;
}

/// A webhook that answers as the object's colour says: badly, in one way or another.
fn saboteur() -> Handler {
    Arc::new(move |_, body| {
        Box::pin(async move {
            let review: Value = serde_json::from_slice(&body)?;
            let request = &review["request"];
            let mut objects = request["objects"].as_array().cloned().unwrap_or_default();
            let way = objects
                .first()
                .and_then(|object| object["metadata"]["labels"]["way"].as_str())
                .unwrap_or_default()
                .to_owned();
            let mut answer = json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview",
                "response": {"uid": request["uid"], "result": {"status": "Success"}}});
            for object in &mut objects {
                object["apiVersion"] = request["desiredAPIVersion"].clone();
                match way.as_str() {
                    "version" => object["apiVersion"] = "example.com/v1".into(),
                    "name" => object["metadata"]["name"] = "other".into(),
                    "labels" => object["metadata"]["labels"] = json!({"Bad Key": "x"}),
                    _ => {}
                }
            }
            if way == "fewer" {
                objects.clear();
            }
            answer["response"]["convertedObjects"] = objects.into();
            match way.as_str() {
                "uid" => answer["response"]["uid"] = "another".into(),
                "kind" => answer["kind"] = "Else".into(),
                "silent" => answer["response"]["result"] = json!({}),
                "nothing" => answer = json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview"}),
                "status" => {
                    let response = Response::builder().status(503);
                    return Ok(response.body(Body::from("gone fishing")).unwrap());
                }
                "text" => return Ok(Response::new(Body::from("gone fishing"))),
                _ => {}
            }
            Ok(Response::new(Body::from(answer.to_string())))
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_answers_of_a_webhook_are_named() {
    let api = Api::start().await;
    let https = HttpsServer::start(&api.server.pki, &api.server.tasks, &["localhost"], saboteur())
        .await
        .unwrap();
    let bundle = base64::engine::general_purpose::STANDARD.encode(api.server.pki.ca_pem());
    let second = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer"}, "sails": {"type": "integer", "default": 2}}}}});
    let mut both = definition(vec![version("v1", schema()), version("v2", second)]);
    both["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": format!("https://localhost:{}/convert", https.address.port()), "caBundle": bundle}}});
    define(&api, both).await;
    let newer = BOATS.replace("/v1/", "/v2/");
    let invalid = "returned invalid converted object at index 0: ";
    let cases = [
        ("version", format!("{invalid}invalid groupVersion (expected example.com/v2, received example.com/v1)")),
        ("name", format!("{invalid}must have the same name: name != other")),
        ("labels", format!("{invalid}metadata.labels: Invalid value: \"Bad Key\": name part must consist of")),
        ("fewer", "returned 0 objects, expected 1".to_owned()),
        ("uid", "failed: expected response.uid=".to_owned()),
        ("kind", "failed: expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got apiextensions.k8s.io/v1, Kind=Else".to_owned()),
        ("silent", "failed: response.result.status was '', not 'Success'".to_owned()),
        ("nothing", "failed: no response provided".to_owned()),
        ("status", "failed: an error on the server (\"gone fishing\") has prevented the request from succeeding".to_owned()),
        ("text", "failed: couldn't get version/kind; json parse error: ".to_owned()),
    ];
    for (way, wanted) in cases {
        let mut made = boat(way, json!({"size": 3}));
        made["metadata"]["labels"] = json!({"way": way});
        api.post(BOATS, made).await.ok();
        let refused = api.get(&format!("{newer}/{way}")).await;
        let start = format!("conversion webhook for example.com/v1, Kind=Boat {wanted}");
        assert_eq!(refused.code, 500, "{way}");
        assert!(refused.message().starts_with(&start), "{way}: {}", refused.message());
        // One that cannot be shown spoils a list, but neither the other version nor its own deletion.
        assert_eq!(api.get(&newer).await.code, 500, "{way}");
        api.delete(&format!("{BOATS}/{way}")).await.ok();
    }
    // Defaults come after the conversion; metadata alone can be had, too.
    api.post(BOATS, boat("good", json!({"size": 3}))).await.ok();
    let shown = api.get(&format!("{newer}/good")).await.ok();
    assert_eq!(shown["spec"], json!({"size": 3, "sails": 2}));
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let list = api.send_as("GET", &newer, "", partial, "").await.ok();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0]["metadata"]["name"], "good");
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_are_known_across_versions() {
    let api = Api::start().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let https = HttpsServer::start(&api.server.pki, &api.server.tasks, &["localhost"], converter(calls))
        .await
        .unwrap();
    let bundle = base64::engine::general_purpose::STANDARD.encode(api.server.pki.ca_pem());
    let second = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "length": {"type": "integer"}, "color": {"type": "string"}}}}});
    let mut both = definition(vec![version("v1", schema()), version("v2", second)]);
    both["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": format!("https://localhost:{}/convert", https.address.port()), "caBundle": bundle}}});
    define(&api, both).await;
    let shared = &api;
    let apply = |version: &'static str, manager: &'static str, spec: Value| async move {
        let mut object = boat("a", spec);
        object["apiVersion"] = format!("example.com/{version}").into();
        let path = format!(
            "{}/a?fieldManager={manager}",
            BOATS.replace("/v1/", &format!("/{version}/"))
        );
        shared
            .send("PATCH", &path, "application/apply-patch+yaml", object.to_string())
            .await
    };
    assert_eq!(apply("v1", "a", json!({"size": 3, "color": "red"})).await.code, 201);
    // A conflict is about the field as its owner knows it.
    let refused = apply("v2", "b", json!({"length": 4})).await;
    assert_eq!(
        (refused.code, refused.message()),
        (409, "Apply failed with 1 conflict: conflict with \"a\": .spec.size")
    );
    assert_eq!(apply("v2", "b", json!({"length": 3})).await.code, 200);
    // What one version's owner no longer states in the other goes, unless somebody else owns it there.
    let made = apply("v2", "a", json!({})).await.ok();
    assert_eq!(made["spec"], json!({"length": 3}), "{made}");
    // An update in one version takes fields from owners in the other.
    let newer = BOATS.replace("/v1/", "/v2/");
    api.merge(&format!("{BOATS}/a?fieldManager=c"), json!({"spec": {"size": 9}}))
        .await
        .ok();
    let shown = api.get(&format!("{newer}/a")).await.ok();
    let owners: Vec<(&str, bool)> = shown["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let spec = &entry["fieldsV1"]["f:spec"];
            let owns = spec.get("f:size").is_some() || spec.get("f:length").is_some();
            (entry["manager"].as_str().unwrap(), owns)
        })
        .collect();
    assert!(
        owners.contains(&("c", true)) && !owners.contains(&("b", true)),
        "{shown}"
    );
    // Built-in kinds with several versions, by their own conversions.
    let scaler = |version: &str, spec: Value| {
        let mut spec = spec;
        spec["scaleTargetRef"] = json!({"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"});
        json!({"apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": spec})
    };
    let apply = |version: &'static str, manager: &'static str, spec: Value| async move {
        let path =
            format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers/h?fieldManager={manager}");
        shared
            .send(
                "PATCH",
                &path,
                "application/apply-patch+yaml",
                scaler(version, spec).to_string(),
            )
            .await
    };
    let first = apply(
        "v1",
        "a",
        json!({"maxReplicas": 5, "targetCPUUtilizationPercentage": 50}),
    )
    .await;
    assert_eq!(first.code, 201, "{}", first.body);
    let metric = |percent: u32| json!({"maxReplicas": 5, "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}]});
    let refused = apply("v2", "b", metric(60)).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            409,
            "Apply failed with 1 conflict: conflict with \"a\": .spec.targetCPUUtilizationPercentage"
        )
    );
    assert_eq!(apply("v2", "b", metric(50)).await.code, 200);
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_cannot_be_asked_is_named() {
    let api = Api::start().await;
    let mut both = definition(vec![version("v1", schema()), version("v2", json!({"type": "object"}))]);
    both["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"service": {"namespace": "default", "name": "none", "path": "/c"}}}});
    define(&api, both).await;
    api.post(BOATS, boat("a", json!({"size": 3}))).await.ok();
    let refused = api.get(&format!("{}/a", BOATS.replace("/v1/", "/v2/"))).await;
    assert_eq!(refused.code, 500);
    assert_eq!(
        refused.message(),
        "conversion webhook for example.com/v1, Kind=Boat failed: Post \"https://none.default.svc:443/c?timeout=30s\": service \"none\" not found"
    );
    // The version that needs no conversion is unharmed.
    api.get(&format!("{BOATS}/a")).await.ok();
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
