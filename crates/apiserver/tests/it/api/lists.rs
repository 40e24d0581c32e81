//! Lists and watches: selections, pages, states of the past.

use serde_json::json;

use super::CM;
use crate::common::{Api, config_map};

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
