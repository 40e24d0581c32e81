//! Many writers at once: a list and the watch from its version must together tell exactly what happened.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{Api, config_map};
use futures::StreamExt;
use rand::Rng;
use serde_json::{Value, json};

const CM: &str = "/api/v1/namespaces/default/configmaps";
const OBJECTS: usize = 12;
const WRITERS: usize = 8;
const STEPS: usize = 60;

fn index(list: &Value) -> BTreeMap<String, Value> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| (item["metadata"]["name"].as_str().unwrap().to_owned(), item.clone()))
        .collect()
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

async fn writer(api: Arc<Api>, writes: Arc<AtomicUsize>) {
    for _ in 0..STEPS {
        let (name, step) = {
            let mut random = rand::rng();
            (
                format!("c{}", random.random_range(0..OBJECTS)),
                random.random_range(0..10),
            )
        };
        let path = format!("{CM}/{name}");
        let answer = match step {
            0..=3 => api.post(CM, config_map(&name)).await,
            4..=6 => {
                let label = rand::rng().random_range(0..3).to_string();
                api.merge(&path, json!({"metadata": {"labels": {"l": label}}})).await
            }
            7 => {
                // Read, change, write: may lose the race.
                let current = api.get(&path).await;
                if current.code != 200 {
                    continue;
                }
                let mut object = current.body;
                object["data"]["n"] = rand::rng().random_range(0..1_000_000).to_string().into();
                api.put(&path, object).await
            }
            _ => api.delete(&path).await,
        };
        assert!(
            matches!(answer.code, 200 | 201 | 404 | 409),
            "{}: {}",
            answer.code,
            answer.body
        );
        if answer.code < 300 {
            writes.fetch_add(1, Ordering::Relaxed);
            // A reply to a write is never ahead of what can be read.
            let seen = api.get(CM).await.ok();
            if let Some(written) = answer.body["metadata"]["resourceVersion"].as_str() {
                assert!(version(&seen) >= written.parse().unwrap());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_list_and_its_watch_tell_everything() {
    let api = Arc::new(Api::start().await);
    for number in 0..OBJECTS / 2 {
        api.post(CM, config_map(&format!("c{number}"))).await.ok();
    }
    let list = api.get(CM).await.ok();
    let mut plain = api
        .watch(&format!("{CM}?watch=1&resourceVersion={}", version(&list)))
        .await;
    let mut labelled = api
        .watch(&format!(
            "{CM}?watch=1&labelSelector=l%3D1&resourceVersion={}",
            version(&list)
        ))
        .await;
    let mut single = api
        .watch(&format!(
            "{CM}?watch=1&fieldSelector=metadata.name%3Dc1&resourceVersion={}",
            version(&list)
        ))
        .await;
    let writes = Arc::new(AtomicUsize::new(0));
    futures::stream::iter(0..WRITERS)
        .map(|_| writer(api.clone(), writes.clone()))
        .buffer_unordered(WRITERS)
        .collect::<Vec<_>>()
        .await;
    // The last word, so that every watch knows where to stop.
    let mut end = config_map("c1");
    end["metadata"]["labels"] = json!({"l": "1", "end": "yes"});
    api.delete(&format!("{CM}/c1")).await;
    let last = version(&api.post(CM, end).await.ok());

    let mut model = index(&list);
    let mut before = version(&list);
    let mut events = 0;
    loop {
        let event = plain.next().await.expect("the watch stays open");
        let object = event["object"].clone();
        let at = version(&object);
        assert!(at > before, "versions ascend");
        before = at;
        events += 1;
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let known = model.contains_key(&name);
        match event["type"].as_str().unwrap() {
            "ADDED" => assert!(!known && model.insert(name, object).is_none()),
            "MODIFIED" => assert!(known && model.insert(name, object).is_some()),
            "DELETED" => assert!(model.remove(&name).is_some()),
            other => panic!("{other}"),
        }
        if at == last {
            break;
        }
    }
    assert!(events >= writes.load(Ordering::Relaxed) / 2, "{events} events");
    let now = api.get(CM).await.ok();
    assert_eq!(model, index(&now));

    let mut selected: BTreeMap<String, Value> = index(&list)
        .into_iter()
        .filter(|(_, item)| item["metadata"]["labels"]["l"] == "1")
        .collect();
    loop {
        let event = labelled.next().await.expect("the watch stays open");
        let object = event["object"].clone();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        match event["type"].as_str().unwrap() {
            "DELETED" => assert!(selected.remove(&name).is_some()),
            "ADDED" => assert!(selected.insert(name, object.clone()).is_none()),
            _ => assert!(selected.insert(name, object.clone()).is_some()),
        }
        if version(&object) == last {
            break;
        }
    }
    assert_eq!(
        selected,
        index(&api.get(&format!("{CM}?labelSelector=l%3D1")).await.ok())
    );
    while version(&single.next().await.expect("the watch stays open")["object"]) != last {}
    Arc::into_inner(api).unwrap().server.stop().await;
}
