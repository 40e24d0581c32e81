//! Informers, events, leader election and claims against the API in memory.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::core::ApiResource;
use sampan_client::testing::{FakeApi, PausedClock, eventually};
use sampan_client::{Change, EventType, Informers, Recorder, Selection, SystemClock, leader};
use sampan_tasks::Tasks;

fn config_map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            labels: Some([("name".to_owned(), name.to_owned())].into()),
            managed_fields: Some(vec![Default::default()]),
            ..Default::default()
        },
        ..Default::default()
    }
}

fn set(api: &FakeApi, name: &str, value: &str) {
    api.change::<ConfigMap>("ns", name, |map| {
        map.data.get_or_insert_default().insert("k".into(), value.into());
    });
}

type Log = Arc<Mutex<Vec<String>>>;

fn logger(log: &Log) -> impl Fn(&Change<ConfigMap>) + Send + use<> {
    let log = Arc::clone(log);
    move |change| {
        let value = |map: &ConfigMap| {
            let data = map.data.as_ref().and_then(|data| data.get("k"));
            data.cloned().unwrap_or_default()
        };
        let name = change.object().metadata.name.clone().unwrap_or_default();
        log.lock().unwrap().push(match change {
            Change::Added(map) => format!("+{name}{}", value(map)),
            Change::Modified { old, new } => format!("~{name}{}>{}", value(old), value(new)),
            Change::Deleted(_) => format!("-{name}"),
        });
    }
}

async fn logged(log: &Log, expected: &[&str]) {
    eventually(&format!("{expected:?}"), || async {
        (log.lock().unwrap().as_slice() == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn one_shared_cache_follows_the_api() {
    let (api, tasks) = (FakeApi::new(), Tasks::new());
    api.create(&config_map("a"));
    let informers = Informers::new(api.client("test"), &tasks);
    let maps = informers.of::<ConfigMap>();
    let log = Log::default();
    maps.on_change(|_| panic!("a bad handler hurts nobody else"));
    maps.on_change(logger(&log));
    maps.synced().await;
    logged(&log, &["+a"]).await;
    assert!(
        maps.get("ns", "a").unwrap().metadata.managed_fields.is_none(),
        "managed fields cost memory and nobody reads them"
    );

    api.create(&config_map("b"));
    set(&api, "a", "1");
    api.remove::<ConfigMap>("ns", "b");
    logged(&log, &["+a", "+b", "~a>1", "-b"]).await;

    // The same informer for everyone, and late handlers see what is there.
    let late = Log::default();
    informers.of::<ConfigMap>().on_change(logger(&late));
    logged(&late, &["+a1"]).await;
    assert_eq!(maps.list_namespace("ns").len(), 1);
    assert!(maps.list_namespace("other").is_empty());

    // A selected informer is another one.
    let selected = informers.with::<ConfigMap>(Selection::labels("name=c"));
    selected.synced().await;
    assert!(selected.is_empty());
    api.create(&config_map("c"));
    eventually("c is selected", || async { selected.get("ns", "c") }).await;
}

#[tokio::test]
async fn a_cut_watch_resumes_and_an_expired_one_lists_again() {
    let (api, tasks) = (FakeApi::new(), Tasks::new());
    api.create(&config_map("a"));
    api.create(&config_map("b"));
    let maps = Informers::new(api.client("test"), &tasks).of::<ConfigMap>();
    let log = Log::default();
    maps.on_change(logger(&log));
    maps.synced().await;

    api.disconnect();
    set(&api, "a", "1");
    logged(&log, &["+a", "+b", "~a>1"]).await;

    // While nobody watches: one changes, one goes, one is replaced under its name, one comes; then history is lost.
    api.disconnect();
    set(&api, "a", "2");
    api.remove::<ConfigMap>("ns", "b");
    api.create(&config_map("b"));
    api.create(&config_map("c"));
    api.remove::<ConfigMap>("ns", "c");
    api.create(&config_map("d"));
    api.compact();
    logged(&log, &["+a", "+b", "~a>1", "~a1>2", "-b", "+b", "+d"]).await;
    api.remove::<ConfigMap>("ns", "d");
    eventually("d is gone", || async { maps.get("ns", "d").is_none().then_some(()) }).await;
}

#[tokio::test]
async fn objects_that_cannot_be_decoded_are_left_out() {
    let (api, tasks) = (FakeApi::new(), Tasks::new());
    let bad = || serde_json::json!({"metadata": {"name": "bad", "namespace": "ns"}, "data": 7});
    api.put_raw::<ConfigMap>("ns", "bad", bad());
    api.create(&config_map("a"));
    let maps = Informers::new(api.client("test"), &tasks).of::<ConfigMap>();
    maps.synced().await;
    assert_eq!(maps.len(), 1);
    api.put_raw::<ConfigMap>("ns", "bad", bad());
    api.create(&config_map("b"));
    eventually("life goes on", || async { maps.get("ns", "b") }).await;
    assert_eq!(maps.len_namespace("ns"), 2);
    api.put_raw::<ConfigMap>("ns", "bad", serde_json::to_value(config_map("bad")).unwrap());
    eventually("it is good now", || async { maps.get("ns", "bad") }).await;
}

#[tokio::test]
async fn metadata_informers_hold_only_what_ownership_needs() {
    let (api, tasks) = (FakeApi::new(), Tasks::new());
    api.create(&config_map("a"));
    let resource = ApiResource::erase::<ConfigMap>(&());
    let informers = Informers::new(api.client("test"), &tasks);
    let maps = informers.metadata(&resource);
    maps.synced().await;
    assert_eq!(maps.get("ns", "a").unwrap().metadata.uid, "uid-1");
    maps.stop();
    let again = informers.metadata(&resource);
    again.synced().await;
    assert_eq!(again.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn events_are_counted_not_repeated_and_talkers_are_cut_off() {
    let (api, tasks) = (FakeApi::new(), Tasks::new());
    let recorder = Recorder::new(
        api.client("test"),
        "tester",
        None,
        Arc::new(PausedClock::default()),
        &tasks,
    );
    let pod = api.create(&Pod {
        metadata: ObjectMeta {
            name: Some("p".into()),
            namespace: Some("ns".into()),
            ..Default::default()
        },
        ..Default::default()
    });
    for _ in 0..3 {
        recorder.event(&pod, EventType::Normal, "Again", "the same");
    }
    let event = eventually("one event with count 3", || async {
        let events = api.all::<Event>();
        (events.len() == 1 && events[0].count == Some(3)).then(|| events[0].clone())
    })
    .await;
    assert_eq!(event.involved_object.uid, pod.metadata.uid);
    assert_eq!(event.type_.as_deref(), Some("Normal"));
    for i in 0..50 {
        recorder.event(&pod, EventType::Warning, "Many", format!("number {i}"));
    }
    recorder.event(&config_map("last"), EventType::Normal, "Done", "");
    eventually("the last one", || async {
        api.all::<Event>()
            .iter()
            .any(|event| event.reason.as_deref() == Some("Done"))
            .then_some(())
    })
    .await;
    let events = api.all::<Event>();
    // 3 of the 25 tokens were used; 10 messages are told apart, the other 12 are one Event.
    assert_eq!(events.len(), 1 + 10 + 1 + 1);
    let combined = events
        .iter()
        .find(|event| event.message.as_deref().unwrap_or_default().starts_with("(combined"))
        .unwrap();
    assert_eq!(combined.count, Some(12));
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_another_takes_over() {
    let (api, tasks) = (FakeApi::new(), Tasks::new());
    let leaders = Arc::new(AtomicUsize::new(0));
    let start = |identity: &'static str| {
        let (client, leaders, drain) = (api.client(identity), leaders.clone(), tasks.child());
        let stop = drain.drain();
        let handle = drain.spawn(identity, sampan_tasks::OnExit::Expected, async move {
            let work = || async move {
                leaders.fetch_add(1, SeqCst);
                std::future::pending::<()>().await;
            };
            let election = leader::Election::new("kube-system", "role", identity);
            leader::run(client, election, &SystemClock, work, stop).await;
        });
        (drain, handle)
    };
    let (first, first_end) = start("one");
    eventually("one leads", || async { (leaders.load(SeqCst) == 1).then_some(()) }).await;
    let (_second, _second_end) = start("two");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(leaders.load(SeqCst), 1, "only one works");
    first.drain().start();
    first_end.await.unwrap();
    eventually("two leads", || async { (leaders.load(SeqCst) == 2).then_some(()) }).await;
}

#[tokio::test]
async fn the_fake_holds_finalizers_and_running_pods() {
    let api = FakeApi::new();
    let pods: Api<Pod> = Api::namespaced(api.client("test"), "ns");
    let mut pod = Pod::default();
    pod.metadata.name = Some("p".into());
    pod.spec.get_or_insert_default().node_name = Some("n".into());
    pods.create(&PostParams::default(), &pod).await.unwrap();
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    let dying: Pod = api.get("ns", "p").unwrap();
    assert!(dying.metadata.deletion_timestamp.is_some());
    pods.delete("p", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    assert!(api.get::<Pod>("ns", "p").is_none());
    let error = pods.get("p").await.unwrap_err();
    assert!(sampan_client::is_not_found(&error));
}
