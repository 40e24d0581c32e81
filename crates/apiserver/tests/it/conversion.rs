//! Conversion of custom objects by a webhook: what it is asked, what it may answer, what is stored in other versions,
//! and what it costs when it does not answer.

// The requests that wait stand beside each other, each on a task of its own.
#![allow(clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::boats::{
    BOATS, Converter, DEFINITIONS, boat, converted, define, definition, redefine, schema, version,
};
use crate::common::{Api, config_map};
use base64::Engine as _;
use http::Response;
use sampan_apiserver::Body;
use sampan_apiserver::testing::TestServer;
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use serde_json::{Value, json};

/// What takes a moment may take so long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_between_versions() {
    let api = Api::start().await;
    let converter = Converter::start(&api.server.pki).await;
    let mut both = converted(&converter);
    both["spec"]["versions"][1]["selectableFields"] = json!([{"jsonPath": ".spec.length"}]);
    define(&api, both).await;
    let newer = BOATS.replace("/v1/", "/v2/");
    api.post(BOATS, boat("a", json!({"size": 3}))).await.ok();
    assert_eq!(converter.calls(), 0, "nothing to convert");
    let shown = api.get(&format!("{newer}/a")).await.ok();
    assert_eq!(
        (&shown["apiVersion"], &shown["spec"], &shown["metadata"]["generation"]),
        (&json!("example.com/v2"), &json!({"length": 3}), &json!(1))
    );
    assert_eq!(shown["metadata"]["annotations"]["converted"], "example.com/v2");
    // A list is one call, and what is known needs none.
    api.post(BOATS, boat("b", json!({"size": 4}))).await.ok();
    api.post(BOATS, boat("c", json!({"size": 5}))).await.ok();
    let before = converter.calls();
    let list = api.get(&newer).await.ok();
    let lengths: Vec<&Value> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["spec"]["length"])
        .collect();
    assert_eq!(lengths, [3, 4, 5]);
    api.get(&newer).await.ok();
    assert_eq!(converter.calls() - before, 1);
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
    let converter = Converter::start(&api.server.pki).await;
    let both = converted(&converter);
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

/// Name and value of the boats of a list, as its version names it.
fn sizes(list: &Value, field: &str) -> Vec<(String, i64)> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| {
            let name = item["metadata"]["name"].as_str().unwrap().to_owned();
            assert_eq!(item["apiVersion"], list["apiVersion"]);
            (name, item["spec"][field].as_i64().unwrap_or_default())
        })
        .collect()
}

fn all(sizes: &[(&str, i64)]) -> Vec<(String, i64)> {
    sizes.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
}

/// Boats of which some are stored in v1 and some in v2, before and after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn lists_and_watches_of_what_is_stored_in_mixed_versions() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::of(TestServer::start_in(dir.path()).await.unwrap());
    let converter = Converter::start(&api.server.pki).await;
    define(&api, converted(&converter)).await;
    let newer = BOATS.replace("/v1/", "/v2/");
    let second = |name: &str, spec: Value| {
        let mut boat = boat(name, spec);
        boat["apiVersion"] = "example.com/v2".into();
        boat
    };
    for (name, size) in [("a", 1), ("b", 2), ("c", 3)] {
        api.post(BOATS, boat(name, json!({"size": size, "color": "red"})))
            .await
            .ok();
    }
    let stored_in = |first: bool| {
        move |definition: &mut Value| {
            definition["spec"]["versions"][0]["storage"] = first.into();
            definition["spec"]["versions"][1]["storage"] = (!first).into();
        }
    };
    redefine(&api, stored_in(false)).await;
    api.post(BOATS, boat("d", json!({"size": 4}))).await.ok();
    api.post(&newer, second("e", json!({"length": 5, "color": "red"})))
        .await
        .ok();
    // A write brings an object to the storage version, through whichever version it comes.
    api.merge(&format!("{BOATS}/b"), json!({"spec": {"size": 20}}))
        .await
        .ok();
    let everything = all(&[("a", 1), ("b", 20), ("c", 3), ("d", 4), ("e", 5)]);
    let (calls, objects) = (converter.calls(), converter.objects());
    let old = api.get(BOATS).await.ok();
    assert_eq!(sizes(&old, "size"), everything);
    let new = api.get(&newer).await.ok();
    assert_eq!(sizes(&new, "length"), everything);
    // One call for each list at most, for no more than what is of the other version.
    assert!(converter.calls() - calls <= 2, "{}", converter.calls() - calls);
    assert!(converter.objects() - objects <= 5, "{}", converter.objects() - objects);
    let (calls, revision) = (
        converter.calls(),
        new["metadata"]["resourceVersion"].as_str().unwrap().to_owned(),
    );

    // Pages, selections and metadata are of one version all through.
    let mut paged = Vec::new();
    let mut next = String::new();
    loop {
        let page = api.get(&format!("{newer}?limit=2&continue={next}")).await.ok();
        paged.extend(sizes(&page, "length"));
        next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if next.is_empty() {
            break;
        }
    }
    assert_eq!(paged, everything);
    let exact = format!("?resourceVersion={revision}&resourceVersionMatch=Exact");
    assert_eq!(
        sizes(&api.get(&format!("{BOATS}{exact}")).await.ok(), "size"),
        everything
    );
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let list = api.send_as("GET", &newer, "", partial, "").await.ok();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(5));
    assert!(converter.calls() - calls <= 1, "what is known is not asked for again");

    // Watches see every change in their own version, whichever the object is stored in.
    let mut watches = [
        (
            api.watch(&format!("{BOATS}?watch=1&resourceVersion={revision}")).await,
            "v1",
            "size",
        ),
        (
            api.watch(&format!("{newer}?watch=1&resourceVersion={revision}")).await,
            "v2",
            "length",
        ),
    ];
    api.merge(&format!("{newer}/a"), json!({"spec": {"length": 10}}))
        .await
        .ok();
    api.delete(&format!("{BOATS}/c")).await.ok();
    api.delete(&format!("{BOATS}/d")).await.ok();
    redefine(&api, stored_in(true)).await;
    for (events, version, field) in &mut watches {
        for (kind, name, size) in [("MODIFIED", "a", 10), ("DELETED", "c", 3), ("DELETED", "d", 4)] {
            let event = events.next().await.unwrap();
            let object = &event["object"];
            assert_eq!(
                (&event["type"], &object["metadata"]["name"], &object["spec"][&**field]),
                (&json!(kind), &json!(name), &json!(size)),
                "{event}"
            );
            assert_eq!(object["apiVersion"], format!("example.com/{version}"));
        }
        assert!(events.next().await.is_none(), "the watch ends with the old definition");
    }
    // Now a, b and e are of v2 and new ones of v1.
    api.post(&newer, second("f", json!({"length": 6}))).await.ok();
    let remaining = all(&[("a", 10), ("b", 20), ("e", 5), ("f", 6)]);
    for (path, field) in [(BOATS, "size"), (newer.as_str(), "length")] {
        assert_eq!(sizes(&api.get(path).await.ok(), field), remaining);
    }
    drop(watches);
    api.stop().await;

    // A server that starts over them knows which is which.
    let api = Api::of(TestServer::start_in(dir.path()).await.unwrap());
    for (path, field) in [(BOATS, "size"), (newer.as_str(), "length")] {
        let mut found = Vec::new();
        let mut events = api
            .watch(&format!(
                "{path}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
            ))
            .await;
        loop {
            let event = events.next().await.unwrap();
            if event["type"] == "BOOKMARK" {
                break;
            }
            let object = &event["object"];
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            found.push((name, object["spec"][field].as_i64().unwrap_or_default()));
        }
        assert_eq!(found, remaining, "{path}");
        assert_eq!(sizes(&api.get(path).await.ok(), field), remaining);
    }
    let stored = api.get(&format!("{DEFINITIONS}/boats.example.com")).await.ok();
    assert_eq!(stored["status"]["storedVersions"], json!(["v1", "v2"]));
    // Selected by fields of either version, and all deleted in the one they are mostly not stored in.
    let deleted = api.delete(BOATS).await.ok();
    assert_eq!(sizes(&deleted, "size"), remaining);
    assert_eq!(api.get(&newer).await.ok()["items"], json!([]));
    api.server.stop().await;
}

/// Half a minute of silence costs those who need the conversion, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_hangs_harms_only_those_who_need_it() {
    let api = Arc::new(Api::start().await);
    let converter = Converter::start(&api.server.pki).await;
    define(&api, converted(&converter)).await;
    let newer = BOATS.replace("/v1/", "/v2/");
    for name in ["a", "b"] {
        api.post(BOATS, boat(name, json!({"size": 3}))).await.ok();
    }
    let list = api.get(BOATS).await.ok();
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = api.watch(&format!("{newer}?watch=1&resourceVersion={revision}")).await;
    converter.hang(true);
    let begun = Instant::now();
    let event = tokio::spawn(async move { events.next_within(Duration::from_secs(90)).await });
    let second =
        json!({"apiVersion": "example.com/v2", "kind": "Boat", "metadata": {"name": "n"}, "spec": {"length": 1}});
    let from_second = "conversion webhook for example.com/v2, Kind=Boat";
    let from_first = "conversion webhook for example.com/v1, Kind=Boat";
    let requests = [
        ("GET", format!("{newer}/a"), "", String::new(), from_first),
        ("GET", newer.clone(), "", String::new(), from_first),
        (
            "POST",
            newer.clone(),
            "application/json",
            second.to_string(),
            from_second,
        ),
        (
            "PATCH",
            format!("{newer}/a"),
            "application/merge-patch+json",
            "{\"spec\":{\"length\":2}}".into(),
            from_first,
        ),
        (
            "PATCH",
            format!("{newer}/n?fieldManager=m"),
            "application/apply-patch+yaml",
            second.to_string(),
            from_second,
        ),
        ("DELETE", format!("{newer}/b"), "", String::new(), from_first),
    ];
    let waiting: Vec<_> = requests
        .into_iter()
        .map(|(method, path, media, body, who)| {
            let api = api.clone();
            tokio::spawn(async move {
                let answer = api.send(method, &path, media, body).await;
                (format!("{method} {path}"), who, answer)
            })
        })
        .collect();
    let asked = converter.calls();
    while converter.calls() < asked + 4 && begun.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Meanwhile: the stored version, other kinds, definitions.
    let calm = Instant::now();
    let mut olds = api.watch(&format!("{BOATS}?watch=1&resourceVersion={revision}")).await;
    for round in 0..20 {
        let name = format!("calm-{round}");
        api.post(BOATS, boat(&name, json!({"size": 1}))).await.ok();
        assert_eq!(olds.brief().await, format!("ADDED {name}"));
        api.merge(&format!("{BOATS}/{name}"), json!({"spec": {"size": 2}}))
            .await
            .ok();
        assert_eq!(olds.brief().await, format!("MODIFIED {name}"));
        api.get(BOATS).await.ok();
        api.post("/api/v1/namespaces/default/configmaps", config_map(&name))
            .await
            .ok();
    }
    api.get("/openapi/v3/apis/example.com/v2").await.ok();
    api.get("/apis/example.com").await.ok();
    assert!(calm.elapsed() < PATIENCE, "{:?}", calm.elapsed());
    assert!(waiting.iter().all(|one| !one.is_finished()), "they still wait");
    for one in waiting {
        let (what, who, answer) = one.await.unwrap();
        let wanted = format!(
            "{who} failed: Post \"{}?timeout=30s\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            converter.url()
        );
        assert_eq!((answer.code, answer.message()), (500, wanted.as_str()), "{what}");
    }
    assert!(begun.elapsed() >= Duration::from_secs(29) && begun.elapsed() < Duration::from_secs(90));
    // The watch of the other version ends with the same words: it cannot show what has changed.
    let event = event.await.unwrap().unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"], &event["object"]["kind"]),
        (&json!("ERROR"), &json!(500), &json!("Status"))
    );
    let said = event["object"]["message"].as_str().unwrap_or_default();
    assert!(
        said.starts_with(from_first) && said.contains("Client.Timeout exceeded"),
        "{said}"
    );
    // Who hangs can be taken out of the definition, and whoever comes then is served at once.
    redefine(&api, |definition| {
        definition["spec"]["conversion"] = json!({"strategy": "None"})
    })
    .await;
    assert_eq!(
        api.get(&format!("{newer}/a")).await.ok()["apiVersion"],
        "example.com/v2"
    );
    converter.hang(false);
    redefine(&api, |definition| {
        definition["spec"]["conversion"] = converter.conversion()
    })
    .await;
    assert_eq!(api.get(&format!("{newer}/a")).await.ok()["spec"], json!({"length": 3}));
}
