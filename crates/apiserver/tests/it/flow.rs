//! Priority and fairness, lists and watches, as a client meets them.

// The requests of a crowd run beside each other, each on a task of its own.
#![allow(clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{Api, config_map};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use sampan_auth::UserInfo;
use serde_json::{Value, json};
use tower::Service;

const CM: &str = "/api/v1/namespaces/default/configmaps";
const FLOW: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

fn schema(name: &str, level: &str) -> Value {
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": name}, "spec": {
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": 20,
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "jane"}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}]}]}})
}

fn level(name: &str) -> Value {
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration", "metadata": {"name": name},
        "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 1, "lendablePercent": 0,
            "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"}}}})
}

/// Asks again until the answer is as wanted.
async fn until(api: &Api, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..200 {
        let answer = api.get(path).await;
        if answer.code == 200 && wanted(&answer.body) {
            return answer.body;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{path} never became what it should: {}", api.get(path).await.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_decide_who_is_worked_for() {
    let api = Api::start().await;
    let exempt = api.get(&format!("{FLOW}/flowschemas/exempt")).await;
    assert_eq!(
        exempt.headers["x-kubernetes-pf-flowschema-uid"].to_str().unwrap(),
        exempt.body["metadata"]["uid"].as_str().unwrap()
    );
    // A schema without its level dangles and is passed over.
    api.post(&format!("{FLOW}/flowschemas"), schema("jane", "small"))
        .await
        .ok();
    let dangling = |status: &'static str| {
        move |object: &Value| {
            object
                .pointer("/status/conditions/0/status")
                .is_some_and(|is| is == status)
        }
    };
    let path = format!("{FLOW}/flowschemas/jane");
    let object = until(&api, &path, dangling("True")).await;
    let condition = &object["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["reason"]),
        (&"Dangling".into(), &"NotFound".into())
    );
    assert_eq!(
        condition["message"],
        "This FlowSchema references the PriorityLevelConfiguration object named \"small\" but there is no such object"
    );
    api.post(&format!("{FLOW}/prioritylevelconfigurations"), level("small"))
        .await
        .ok();
    until(&api, &path, dangling("False")).await;

    for object in [
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "jane"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]}),
    ] {
        api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", object)
            .await
            .ok();
    }
    let mut jane = api.server.plane.connect(UserInfo::component("jane"));
    let mut list = async || {
        let request = Request::builder().uri(CM).body(Full::<Bytes>::default()).unwrap();
        jane.call(request).await.unwrap()
    };
    // A list takes its seat until it is read.
    let mut unread = Vec::new();
    let refused = loop {
        let response = list().await;
        if response.status() != 200 {
            break response;
        }
        unread.push(response);
        assert!(unread.len() < 50, "there is no limit");
    };
    assert_eq!((refused.status().as_u16(), unread.len()), (429, 3));
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(refused.headers().contains_key("x-kubernetes-pf-prioritylevel-uid"));
    // Others are not concerned, and one that is read makes room.
    api.get(CM).await.ok();
    unread.pop();
    assert_eq!(list().await.status(), 200);

    let page = api
        .get("/debug/api_priority_and_fairness/dump_priority_levels")
        .await
        .body;
    assert!(page.as_str().unwrap().contains("\nsmall,"), "{page}");
    let metrics = api.get("/metrics").await.body;
    assert!(
        metrics.as_str().unwrap().contains(
            "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"jane\",priority_level=\"small\",reason=\"concurrency-limit\"} 1"
        ),
        "{metrics}"
    );
}

/// What waits for a webhook that never answers keeps its seat. So a user with more of that than its level has seats waits
/// for itself; a user of the same level comes before what that one has waiting, and other levels notice nothing.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_webhook_is_in_nobodys_way_but_its_own() {
    const HANGS: Duration = Duration::from_secs(2);
    let api = Api::start().await;
    let never: Handler = Arc::new(|_, _| Box::pin(std::future::pending()));
    let https = HttpsServer::start(&api.server.pki, &api.server.tasks, &["localhost"], never)
        .await
        .unwrap();
    // Three seats; every user has one queue, and room for four in it.
    let mut small = level("small");
    small["spec"]["limited"]["limitResponse"] =
        json!({"type": "Queue", "queuing": {"queues": 64, "handSize": 1, "queueLengthLimit": 4}});
    api.post(&format!("{FLOW}/prioritylevelconfigurations"), small)
        .await
        .ok();
    let mut flows = schema("small", "small");
    flows["spec"]["distinguisherMethod"] = json!({"type": "ByUser"});
    flows["spec"]["rules"][0]["subjects"] =
        json!([{"kind": "User", "user": {"name": "jane"}}, {"kind": "User", "user": {"name": "bob"}}]);
    api.post(&format!("{FLOW}/flowschemas"), flows).await.ok();
    let users = ["jane", "bob", "kate"].map(|name| json!({"kind": "User", "name": name}));
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "all"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}, "subjects": users});
    api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
        .await
        .ok();
    let hook = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "never"}, "webhooks": [{"name": "never.example.com", "failurePolicy": "Ignore",
            "timeoutSeconds": HANGS.as_secs(), "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": https.url("/"), "caBundle": STANDARD.encode(api.server.pki.ca_pem())},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}]});
    api.post(
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        hook,
    )
    .await
    .ok();

    let begun = Instant::now();
    let ask = |user: &str, method: &'static str, body: String| {
        let mut transport = api.transport(user, &["system:authenticated"]);
        tokio::spawn(async move {
            let request = Request::builder()
                .method(method)
                .uri(CM)
                .header("content-type", "application/json");
            let answer = transport
                .call(request.body(Full::<Bytes>::from(body)).unwrap())
                .await
                .unwrap();
            (answer.status().as_u16(), begun.elapsed())
        })
    };
    let create = |name: String| ask("jane", "POST", config_map(&name).to_string());
    let page = "/debug/api_priority_and_fairness/dump_priority_levels";
    // Who runs and who waits, as the server says.
    let occupied = async |executing: usize, waiting: usize| {
        let mut seen = String::new();
        for _ in 0..200 {
            let answer = api.get(page).await.body;
            seen = answer
                .as_str()
                .unwrap()
                .lines()
                .find(|line| line.starts_with("small,"))
                .unwrap()
                .to_owned();
            let columns: Vec<&str> = seen.split(',').map(str::trim).collect();
            if columns[4..6] == [waiting.to_string(), executing.to_string()] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never {executing} and {waiting}: {seen}");
    };
    let mut creates: Vec<_> = (0..3).map(|number| create(format!("c{number}"))).collect();
    occupied(3, 0).await;
    creates.extend((3..6).map(|number| create(format!("c{number}"))));
    occupied(3, 3).await;
    let janes = ask("jane", "GET", String::new());
    occupied(3, 4).await;
    let bobs = ask("bob", "GET", String::new());
    // Jane's queue is full: that is said at once. Those of other levels are served at once.
    let (code, at) = ask("jane", "GET", String::new()).await.unwrap();
    assert_eq!(code, 429);
    assert!(at < HANGS, "{at:?}");
    for user in ["kate", "admin"] {
        if user == "admin" {
            api.get(CM).await.ok();
        } else {
            assert_eq!(ask(user, "GET", String::new()).await.unwrap().0, 200);
        }
    }
    assert!(creates.iter().all(|one| !one.is_finished()) && !janes.is_finished());
    let (janes, bobs) = (janes.await.unwrap(), bobs.await.unwrap());
    assert_eq!((janes.0, bobs.0), (200, 200));
    // Bob comes as soon as there is a seat; Jane after all she had asked for before.
    assert!(bobs.1 < janes.1, "{bobs:?} {janes:?}");
    assert!(janes.1 >= HANGS * 2, "{janes:?}");
    for one in creates {
        let (code, at) = one.await.unwrap();
        assert_eq!(code, 201);
        assert!(at >= HANGS);
    }
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_objects_are_kept() {
    let api = Api::start().await;
    let catch_all = format!("{FLOW}/flowschemas/catch-all");
    let first = api.get(&catch_all).await.ok();
    let refused = api
        .merge(&catch_all, json!({"spec": {"matchingPrecedence": 9999}}))
        .await;
    assert_eq!(refused.code, 422);
    assert!(
        refused
            .message()
            .ends_with("spec of 'catch-all' must equal the fixed value"),
        "{}",
        refused.message()
    );
    api.delete(&catch_all).await.ok();
    until(&api, &catch_all, |object| {
        object["metadata"]["uid"] != first["metadata"]["uid"]
    })
    .await;
    // A suggested one follows the server unless it is told not to.
    let low = format!("{FLOW}/prioritylevelconfigurations/workload-low");
    let shares = |count: i64| json!({"spec": {"limited": {"nominalConcurrencyShares": count}}});
    let is = |count: i64| move |object: &Value| object["spec"]["limited"]["nominalConcurrencyShares"] == count;
    api.merge(&low, shares(7)).await.ok();
    until(&api, &low, is(100)).await;
    let mut mine = shares(7);
    mine["metadata"] = json!({"annotations": {"apf.kubernetes.io/autoupdate-spec": "false"}});
    api.merge(&low, mine).await.ok();
    tokio::time::sleep(Duration::from_millis(300)).await;
    until(&api, &low, is(7)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_in_parts() {
    let api = Api::start().await;
    for number in 0..5 {
        api.post(CM, config_map(&format!("c{number}"))).await.ok();
    }
    let page = api.get(&format!("{CM}?limit=2")).await.ok();
    assert_eq!(page["items"].as_array().map(Vec::len), Some(2));
    let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
    let revision = page["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    // Whoever takes any version takes all of it.
    let all = api.get(&format!("{CM}?limit=2&resourceVersion=0")).await.ok();
    assert!(all["items"].as_array().is_some_and(|items| items.len() >= 5), "{all}");
    assert!(all["metadata"].get("continue").is_none());
    // Later pages are of the same moment.
    api.delete(&format!("{CM}/c4")).await.ok();
    let rest = api.get(&format!("{CM}?limit=500&continue={token}")).await.ok();
    assert_eq!(rest["metadata"]["resourceVersion"], revision.as_str());
    let names: Vec<_> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["metadata"]["name"])
        .collect();
    assert!(names.contains(&&json!("c4")), "{names:?}");
    api.get(&format!("{CM}?continue={token}&resourceVersion={revision}"))
        .await
        .refused(
            400,
            "BadRequest",
            "specifying resource version is not allowed when using continue",
        );
    api.get(&format!("{CM}?resourceVersion=x")).await.refused(
        400,
        "BadRequest",
        "invalid resource version: resourceVersion: Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid syntax",
    );
    let late = api.get(&format!("{CM}?resourceVersion=99999999")).await;
    assert_eq!(
        (late.code, &late.body["details"]["retryAfterSeconds"]),
        (504, &json!(1))
    );
    assert!(
        late.message()
            .starts_with("Too large resource version: 99999999, current: "),
        "{}",
        late.message()
    );
    api.get(&format!("{CM}?timeout=soon")).await.refused(
        400,
        "BadRequest",
        "invalid timeout specified in the request URL - time: invalid duration \"soon\"",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_begin_with_the_state() {
    let api = Api::start().await;
    api.post(CM, config_map("one")).await.ok();
    let name = "fieldSelector=metadata.name%3Done";
    let end = |event: &Value| {
        event
            .pointer("/object/metadata/annotations/k8s.io~1initial-events-end")
            .is_some()
    };
    // Query, whether the state comes first, whether its end is marked.
    for (query, state, marked) in [
        ("", true, false),
        ("resourceVersion=0", true, false),
        ("resourceVersion=0&allowWatchBookmarks=true", true, true),
        (
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
            true,
            true,
        ),
        ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true, false),
        (
            "sendInitialEvents=false&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
            false,
            false,
        ),
    ] {
        let mut events = api.watch(&format!("{CM}?watch=1&{name}&{query}")).await;
        api.merge(&format!("{CM}/one"), json!({"data": {"n": query}}))
            .await
            .ok();
        let mut seen = Vec::new();
        loop {
            let event = events.next().await.unwrap();
            let kind = event["type"].as_str().unwrap().to_owned();
            seen.push(if end(&event) { "END".to_owned() } else { kind.clone() });
            if kind == "MODIFIED" {
                break;
            }
        }
        let mut wanted = vec!["MODIFIED"];
        if marked {
            wanted.insert(0, "END");
        }
        if state {
            wanted.insert(0, "ADDED");
        }
        assert_eq!(seen, wanted, "{query}");
    }
    let future = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=99999999";
    let event = api.watch(&format!("{CM}?watch=1&{future}")).await.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"]),
        (&"ERROR".into(), &json!(504))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_is_told_everything_in_order() {
    let api = Api::start().await;
    let made = api.post(CM, config_map("told")).await.ok();
    let from = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut crowd = Vec::new();
    for _ in 0..60 {
        crowd.push(api.watch(&format!("{CM}?watch=1&resourceVersion={from}")).await);
    }
    const CHANGES: usize = 100;
    for number in 0..CHANGES {
        api.merge(&format!("{CM}/told"), json!({"data": {"n": number.to_string()}}))
            .await
            .ok();
    }
    for mut events in crowd {
        for number in 0..CHANGES {
            let event = events.next().await.unwrap();
            assert_eq!(event["object"]["data"]["n"], number.to_string());
        }
    }
}
