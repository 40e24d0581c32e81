//! The store's contract, the same for every engine. Where no etcd is installed its half is left out, and says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use sampan_store::embedded::{Embedded, Options};
use sampan_store::etcd::Etcd;
use sampan_store::testing::EtcdProcess;
use sampan_store::{
    Change, Condition, Error, Event, Op, Revision, Store, Update, WatchStream, Write, Written, prefix_end,
};
use sampan_tasks::Tasks;

/// An engine with what keeps it alive.
struct Engine {
    name: &'static str,
    store: Arc<dyn Store>,
    _dir: Option<tempfile::TempDir>,
    _etcd: Option<EtcdProcess>,
}

async fn engines() -> Vec<Engine> {
    let dir = tempfile::tempdir().unwrap();
    let mut engines = vec![Engine {
        name: "embedded",
        store: Embedded::open(dir.path(), Options::default()).unwrap(),
        _dir: Some(dir),
        _etcd: None,
    }];
    if let Some(etcd) = EtcdProcess::start() {
        engines.push(Engine {
            name: "etcd",
            store: Etcd::connect(&etcd.options(), &Tasks::new()).await.unwrap(),
            _dir: None,
            _etcd: Some(etcd),
        });
    }
    engines
}

fn put(key: &str, condition: Condition, value: impl Into<Bytes>) -> Write {
    Write {
        key: key.into(),
        condition,
        op: Op::Put {
            value: value.into(),
            lease: None,
        },
    }
}

fn delete(key: &str, condition: Condition) -> Write {
    Write {
        key: key.into(),
        condition,
        op: Op::Delete,
    }
}

async fn commit(store: &dyn Store, write: Write) -> Revision {
    match store.write(write).await.expect("write") {
        Written::Committed { revision, .. } => revision,
        Written::Refused { current, .. } => panic!("refused: {current:?}"),
    }
}

/// The next change, whatever progress is told in between.
async fn event(watch: &mut WatchStream) -> Event {
    loop {
        let update = tokio::time::timeout(Duration::from_secs(30), watch.recv()).await;
        match update.expect("no event in time").expect("the watch ended") {
            Ok(Update::Event { event, .. }) => return event,
            Ok(Update::Reached(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn conditions_guard_writes_and_say_what_stands() {
    for Engine {
        name,
        store,
        _etcd,
        _dir,
    } in engines().await
    {
        let base = store.newest().await.unwrap();
        let key = "/registry/a";
        let created = commit(&*store, put(key, Condition::ModRevision(0), "1")).await;
        assert_eq!(created, base + 1, "{name}");
        let refused = store.write(put(key, Condition::ModRevision(0), "2")).await.unwrap();
        assert!(
            matches!(refused, Written::Refused { current: Some(entry), revision } if entry.value == "1" && revision == created)
        );
        let updated = commit(&*store, put(key, Condition::ModRevision(created), "2")).await;
        let entry = store.get(key).await.unwrap().unwrap();
        assert_eq!(
            (entry.create_revision, entry.mod_revision, updated),
            (created, created + 1, created + 1)
        );
        assert!(matches!(
            store.write(delete(key, Condition::ModRevision(created))).await.unwrap(),
            Written::Refused { .. }
        ));
        let deleted = commit(&*store, delete(key, Condition::ModRevision(updated))).await;
        assert_eq!(deleted, base + 3, "{name}");
        assert!(store.get(key).await.unwrap().is_none());
        let refused = store
            .write(put(key, Condition::ModRevision(updated), "3"))
            .await
            .unwrap();
        assert!(matches!(refused, Written::Refused { current: None, .. }), "{name}");
        assert_eq!(
            commit(&*store, delete(key, Condition::None)).await,
            deleted,
            "{name}: deleting nothing is no change"
        );
        assert_eq!((store.revision(), store.newest().await.unwrap()), (deleted, deleted));
        assert!(store.size().await.unwrap() > 0);
        store.health().await.unwrap();
    }
}

#[tokio::test]
async fn ranges_are_ordered_and_paged() {
    for Engine {
        name,
        store,
        _etcd,
        _dir,
    } in engines().await
    {
        for name in ["b", "a", "c", "aa"] {
            commit(
                &*store,
                put(&format!("/registry/x/{name}"), Condition::None, name.to_owned()),
            )
            .await;
        }
        let last = commit(&*store, put("/registry/y/z", Condition::None, "other")).await;
        let (start, end) = ("/registry/x/", prefix_end("/registry/x/"));
        let page = store.range(start, &end, 3).await.unwrap();
        let keys: Vec<_> = page.entries.iter().map(|entry| &*entry.key).collect();
        assert_eq!(
            (keys, page.more, page.revision),
            (vec!["/registry/x/a", "/registry/x/aa", "/registry/x/b"], true, last),
            "{name}"
        );
        let rest = store.range("/registry/x/b\0", &end, 3).await.unwrap();
        assert_eq!((rest.entries.len(), rest.more), (1, false), "{name}");
        let all = store.range(start, &end, 0).await.unwrap();
        assert_eq!((all.entries.len(), all.more), (4, false), "{name}");
        let none = store.range("/registry/x/b", "/registry/x/a", 0).await.unwrap();
        assert_eq!((none.entries.len(), none.revision), (0, last), "{name}");
    }
}

#[tokio::test]
async fn a_long_range_is_whole() {
    for Engine {
        name,
        store,
        _etcd,
        _dir,
    } in engines().await
    {
        let writes = (0..4_500).map(|number| {
            let store = store.clone();
            async move { commit(&*store, put(&format!("/registry/n/{number:05}"), Condition::None, "x")).await }
        });
        // Not all at once: on a busy machine etcd lets some of thousands time out.
        futures::stream::iter(writes).buffer_unordered(64).count().await;
        for (limit, wanted, more) in [(0, 4_500, false), (4_100, 4_100, true), (4_500, 4_500, false)] {
            let page = store
                .range("/registry/n/", &prefix_end("/registry/n/"), limit)
                .await
                .unwrap();
            assert_eq!((page.entries.len(), page.more), (wanted, more), "{name} {limit}");
            assert!(page.entries.is_sorted_by(|a, b| a.key < b.key), "{name}");
        }
    }
}

#[tokio::test]
async fn a_watch_replays_then_follows_without_a_gap() {
    for Engine {
        name,
        store,
        _etcd,
        _dir,
    } in engines().await
    {
        let base = store.newest().await.unwrap();
        for index in 0..10 {
            commit(&*store, put(&format!("/registry/w/{index}"), Condition::None, "x")).await;
        }
        let mut watch = store.watch("/registry/w/", base + 4).await.unwrap();
        commit(&*store, put("/registry/elsewhere", Condition::None, "x")).await;
        commit(&*store, put("/registry/w/3", Condition::None, "y")).await;
        commit(&*store, delete("/registry/w/3", Condition::None)).await;
        let mut seen = Vec::new();
        for _ in 0..8 {
            let event = event(&mut watch).await;
            seen.push((
                event.revision - base,
                matches!(event.change, Change::Put(_)),
                event.previous.is_some(),
            ));
        }
        let replayed = (5..=10).map(|revision| (revision, true, false));
        let expected: Vec<_> = replayed.chain([(12, true, true), (13, false, true)]).collect();
        assert_eq!(seen, expected, "{name}");
    }
}

#[tokio::test]
async fn compaction_ends_history_and_never_the_present() {
    for Engine {
        name,
        store,
        _etcd,
        _dir,
    } in engines().await
    {
        let base = store.newest().await.unwrap();
        let (a, b) = ("/registry/a", "/registry/b");
        commit(&*store, put(a, Condition::None, "1")).await;
        commit(&*store, put(a, Condition::None, "2")).await;
        let kept = commit(&*store, put(b, Condition::None, "3")).await;
        store.compact(base + 2).await.unwrap();
        assert_eq!(store.compacted(), base + 2, "{name}");
        assert!(
            matches!(store.watch("/registry/", base + 1).await, Err(Error::Compacted { requested, .. }) if requested == base + 1),
            "{name}"
        );
        assert!(
            matches!(store.watch("/registry/", 1 << 40).await, Err(Error::Future { .. })),
            "{name}"
        );
        let mut watch = store.watch("/registry/", base + 2).await.unwrap();
        assert_eq!(event(&mut watch).await.revision, kept, "{name}");
        assert_eq!(store.get(a).await.unwrap().unwrap().value, "2", "{name}");
        assert_eq!(
            store
                .range("/registry/", &prefix_end("/registry/"), 0)
                .await
                .unwrap()
                .entries
                .len(),
            2
        );
    }
}

#[tokio::test]
async fn leases_take_their_keys_with_them() {
    for Engine {
        name,
        store,
        _etcd,
        _dir,
    } in engines().await
    {
        // Long enough for three writes on a busy machine.
        let lease = store.grant(Duration::from_secs(4)).await.unwrap();
        let kept = store.grant(Duration::from_secs(3600)).await.unwrap();
        let mut watch = store.watch("/registry/", store.newest().await.unwrap()).await.unwrap();
        let attached = |key: &str, lease| Write {
            key: key.into(),
            condition: Condition::None,
            op: Op::Put {
                value: "x".into(),
                lease: Some(lease),
            },
        };
        for (key, lease) in [
            ("/registry/short", lease),
            ("/registry/short-too", lease),
            ("/registry/long", kept),
        ] {
            store.write(attached(key, lease)).await.unwrap();
            assert_eq!(store.get(key).await.unwrap().unwrap().lease, Some(lease), "{name}");
        }
        for _ in 0..3 {
            event(&mut watch).await;
        }
        let mut gone = [event(&mut watch).await, event(&mut watch).await];
        gone.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(
            [&*gone[0].key, &*gone[1].key],
            ["/registry/short", "/registry/short-too"],
            "{name}"
        );
        assert!(gone.iter().all(|event| matches!(event.change, Change::Delete)));
        assert!(
            matches!(store.keep_alive(lease).await, Err(Error::LeaseNotFound(_))),
            "{name}"
        );
        store.keep_alive(kept).await.unwrap();
        store.revoke(kept).await.unwrap();
        assert!(store.get("/registry/long").await.unwrap().is_none(), "{name}");
        assert!(
            matches!(store.revoke(kept).await, Err(Error::LeaseNotFound(_))),
            "{name}"
        );
        let refused = store.write(attached("/registry/late", kept)).await;
        assert!(matches!(refused, Err(Error::LeaseNotFound(_))), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_writes_agree_with_a_map() {
    for Engine {
        name,
        store,
        _etcd,
        _dir,
    } in engines().await
    {
        let mut last = store.newest().await.unwrap();
        let mut watch = store.watch("/registry/m/", last).await.unwrap();
        let writers = (0..8u64).map(|writer| {
            let store = Arc::clone(&store);
            async move {
                for step in 0..50u64 {
                    let key = format!("/registry/m/{}", (writer * 31 + step * 7) % 20);
                    let write = if step % 5 == 4 {
                        delete(&key, Condition::None)
                    } else {
                        put(&key, Condition::None, format!("{writer}-{step}"))
                    };
                    store.write(write).await.unwrap();
                    if step % 10 == 0 {
                        store.newest().await.unwrap();
                    }
                }
            }
        });
        futures::future::join_all(writers).await;
        let mut model = BTreeMap::new();
        while last < store.newest().await.unwrap() {
            let event = event(&mut watch).await;
            assert_eq!(event.revision, last + 1, "{name}: dense and in order");
            last = event.revision;
            match event.change {
                Change::Put(entry) => model.insert(event.key, entry.value),
                Change::Delete => model.remove(&event.key),
            };
        }
        let page = store
            .range("/registry/m/", &prefix_end("/registry/m/"), 0)
            .await
            .unwrap();
        let present: BTreeMap<_, _> = page.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
        assert_eq!(present, model, "{name}");
    }
}

/// Every state since the last compaction can be read, page by page, whatever was compacted before it.
#[tokio::test(flavor = "multi_thread")]
async fn the_past_can_be_read_until_it_is_compacted() {
    for Engine {
        name,
        store,
        _etcd,
        _dir,
    } in engines().await
    {
        let (start, end) = ("/registry/p/", prefix_end("/registry/p/"));
        let mut model: BTreeMap<String, (Bytes, Revision, Revision)> = BTreeMap::new();
        let mut states = BTreeMap::new();
        let mut random = 12345u64;
        for step in 0..300u64 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let number = random >> 33;
            let key = format!("/registry/p/{:02}", number % 15);
            if number.is_multiple_of(11) {
                commit(&*store, put("/registry/else", Condition::None, "x")).await;
            } else if number.is_multiple_of(4) {
                let revision = commit(&*store, delete(&key, Condition::None)).await;
                model.remove(&key);
                states.insert(revision, model.clone());
            } else {
                let value = Bytes::from(format!("{step}"));
                let revision = commit(&*store, put(&key, Condition::None, value.clone())).await;
                let created = model.get(&key).map_or(revision, |(_, created, _)| *created);
                model.insert(key, (value, created, revision));
                states.insert(revision, model.clone());
            }
            if step % 60 == 59 {
                let until = store.newest().await.unwrap() - 25;
                store.compact(until).await.unwrap();
                let before = store.range_at(start, &end, 0, until - 1).await;
                assert!(
                    matches!(before, Err(Error::Compacted { requested, oldest }) if requested == until - 1 && oldest >= until),
                    "{name}: {before:?}"
                );
                states.retain(|revision, _| *revision >= until);
            }
            if step % 20 != 19 {
                continue;
            }
            for (&revision, state) in &states {
                let wanted: Vec<_> = state
                    .iter()
                    .map(|(key, (value, created, modified))| (key.clone(), value.clone(), *created, *modified))
                    .collect();
                for limit in [0, 4] {
                    let (mut seen, mut from) = (Vec::new(), start.to_owned());
                    loop {
                        let page = store.range_at(&from, &end, limit, revision).await.unwrap();
                        assert_eq!(page.revision, revision, "{name}");
                        assert!(limit == 0 || page.entries.len() <= limit);
                        seen.extend(page.entries.iter().map(|entry| {
                            (
                                entry.key.to_string(),
                                entry.value.clone(),
                                entry.create_revision,
                                entry.mod_revision,
                            )
                        }));
                        match page.entries.last() {
                            Some(last) if page.more => from = format!("{}\0", last.key),
                            _ => break,
                        }
                    }
                    assert_eq!(seen, wanted, "{name} at {revision}, by {limit}");
                }
            }
        }
        let future = store.range_at(start, &end, 0, 1 << 40).await;
        assert!(matches!(future, Err(Error::Future { .. })), "{name}: {future:?}");
    }
}
