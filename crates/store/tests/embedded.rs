//! The embedded engine against the store's contract, kill -9 included.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sampan_store::embedded::{Embedded, Options};
use sampan_store::{Change, Condition, Error, Op, Store, Write, Written, prefix_end};

fn open(dir: &std::path::Path) -> Arc<Embedded> {
    Embedded::open(dir, Options::default()).expect("open")
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

async fn commit(store: &Embedded, write: Write) -> u64 {
    match store.write(write).await.expect("write") {
        Written::Committed { revision, .. } => revision,
        Written::Refused { current, .. } => panic!("refused: {current:?}"),
    }
}

#[tokio::test]
async fn conditions_guard_writes_and_say_what_stands() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let created = commit(&store, put("/a", Condition::ModRevision(0), "1")).await;
    assert_eq!(created, 1);
    let refused = store.write(put("/a", Condition::ModRevision(0), "2")).await.unwrap();
    assert!(matches!(refused, Written::Refused { current: Some(entry), revision: 1 } if entry.value == "1"));
    let updated = commit(&store, put("/a", Condition::ModRevision(1), "2")).await;
    let entry = store.get("/a").await.unwrap().unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision, updated), (1, 2, 2));
    assert!(matches!(
        store.write(delete("/a", Condition::ModRevision(1))).await.unwrap(),
        Written::Refused { .. }
    ));
    assert_eq!(commit(&store, delete("/a", Condition::ModRevision(2))).await, 3);
    assert!(store.get("/a").await.unwrap().is_none());
    assert_eq!(
        commit(&store, delete("/a", Condition::None)).await,
        3,
        "deleting nothing is no change"
    );
    assert_eq!(store.revision(), 3);
}

#[tokio::test]
async fn ranges_are_ordered_and_paged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for name in ["b", "a", "c", "aa"] {
        commit(&store, put(&format!("/x/{name}"), Condition::None, name.to_owned())).await;
    }
    commit(&store, put("/y/z", Condition::None, "other")).await;
    let page = store.range("/x/", &prefix_end("/x/"), 3).await.unwrap();
    let keys: Vec<_> = page.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(
        (keys, page.more, page.revision),
        (vec!["/x/a", "/x/aa", "/x/b"], true, 5)
    );
    let rest = store.range("/x/b\0", &prefix_end("/x/"), 3).await.unwrap();
    assert_eq!((rest.entries.len(), rest.more), (1, false));
}

#[tokio::test]
async fn a_watch_replays_then_follows_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for index in 0..10 {
        commit(&store, put(&format!("/w/{index}"), Condition::None, "x")).await;
    }
    let mut watch = store.watch("/w/", 4).await.unwrap();
    commit(&store, put("/elsewhere", Condition::None, "x")).await;
    commit(&store, put("/w/3", Condition::None, "y")).await;
    commit(&store, delete("/w/3", Condition::None)).await;
    let mut seen = Vec::new();
    for _ in 0..8 {
        let event = watch.recv().await.unwrap().unwrap();
        seen.push((
            event.revision,
            matches!(event.change, Change::Put(_)),
            event.previous.is_some(),
        ));
    }
    let replayed = (5..=10).map(|revision| (revision, true, false));
    let expected: Vec<_> = replayed.chain([(12, true, true), (13, false, true)]).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn history_survives_a_restart_and_compaction_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    commit(&store, put("/a", Condition::None, "1")).await;
    commit(&store, put("/a", Condition::None, "2")).await;
    commit(&store, put("/b", Condition::None, "3")).await;
    store.close();
    drop(store);

    let store = open(dir.path());
    assert_eq!(store.revision(), 3);
    let mut watch = store.watch("/", 1).await.unwrap();
    let event = watch.recv().await.unwrap().unwrap();
    assert_eq!(event.previous.unwrap().value, "1");
    store.compact(2).await.unwrap();
    assert!(matches!(
        store.watch("/", 1).await,
        Err(Error::Compacted {
            requested: 1,
            oldest: 2
        })
    ));
    assert!(matches!(store.watch("/", 9).await, Err(Error::Future { .. })));
    assert!(store.watch("/", 2).await.is_ok());
    assert_eq!(
        store.get("/a").await.unwrap().unwrap().value,
        "2",
        "compaction never forgets the present"
    );
}

#[tokio::test]
async fn leases_take_their_keys_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lease = store.grant(Duration::from_millis(150)).await.unwrap();
    let kept = store.grant(Duration::from_secs(3600)).await.unwrap();
    let mut watch = store.watch("/", 0).await.unwrap();
    for (key, lease) in [("/short", lease), ("/long", kept)] {
        let op = Op::Put {
            value: "x".into(),
            lease: Some(lease),
        };
        store
            .write(Write {
                key: key.into(),
                condition: Condition::None,
                op,
            })
            .await
            .unwrap();
    }
    for _ in 0..2 {
        watch.recv().await.unwrap().unwrap();
    }
    let end = tokio::time::timeout(Duration::from_secs(20), watch.recv())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(&*end.key, "/short");
    assert!(matches!(end.change, Change::Delete));
    assert!(matches!(store.keep_alive(lease).await, Err(Error::LeaseNotFound(_))));
    store.keep_alive(kept).await.unwrap();
    store.revoke(kept).await.unwrap();
    assert!(store.get("/long").await.unwrap().is_none());
    let op = Op::Put {
        value: "x".into(),
        lease: Some(kept),
    };
    let refused = store
        .write(Write {
            key: "/late".into(),
            condition: Condition::None,
            op,
        })
        .await;
    assert!(matches!(refused, Err(Error::LeaseNotFound(_))));
}

#[tokio::test]
async fn a_second_opener_is_told_who_holds_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path());
    let Err(error) = Embedded::open(dir.path(), Options::default()) else {
        panic!("opened twice")
    };
    let text = error.to_string();
    assert!(
        text.contains("in use") && text.contains(&std::process::id().to_string()),
        "{text}"
    );
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.close();
    assert!(matches!(
        store.write(put("/a", Condition::None, "1")).await,
        Err(Error::Closed)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn random_writes_agree_with_a_map() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut watch = store.watch("/m/", 0).await.unwrap();
    let writers = (0..8u64).map(|writer| {
        let store = Arc::clone(&store);
        async move {
            for step in 0..50u64 {
                let key = format!("/m/{}", (writer * 31 + step * 7) % 20);
                let write = if step % 5 == 4 {
                    delete(&key, Condition::None)
                } else {
                    put(&key, Condition::None, format!("{writer}-{step}"))
                };
                store.write(write).await.unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
    let mut model = BTreeMap::new();
    let mut last = 0;
    while last < store.revision() {
        let event = watch.recv().await.unwrap().unwrap();
        assert_eq!(event.revision, last + 1, "dense and in order");
        last = event.revision;
        match event.change {
            Change::Put(entry) => model.insert(event.key, entry.value),
            Change::Delete => model.remove(&event.key),
        };
    }
    let page = store.range("/m/", &prefix_end("/m/"), 0).await.unwrap();
    let present: BTreeMap<_, _> = page.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
    assert_eq!(present, model);
}

/// Not a test by itself: the victim of the next one, which runs this binary again with the variable set.
#[tokio::test(flavor = "multi_thread")]
async fn victim() {
    let Ok(dir) = std::env::var("SAMPAN_STORE_VICTIM") else {
        return;
    };
    let store = open(dir.as_ref());
    let writers = (0..16).map(|writer| {
        let store = Arc::clone(&store);
        async move {
            for step in 0.. {
                let key = format!("/{writer}/{step}");
                let revision = commit(&store, put(&key, Condition::ModRevision(0), vec![b'x'; 700])).await;
                println!("acked {key} {revision} .");
            }
        }
    });
    futures::future::join_all(writers).await;
}

/// `acked KEY REVISION .`; the dot tells a whole line from one the kill cut short.
fn acknowledgement(line: &str) -> Option<(String, u64)> {
    let (key, revision) = line.split_once("acked ")?.1.strip_suffix(" .")?.split_once(' ')?;
    Some((key.to_owned(), revision.parse().ok()?))
}

#[tokio::test]
async fn kill_9_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked = BTreeMap::new();
    for round in 0..4 {
        let round_dir = dir.path().join(round.to_string());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env("SAMPAN_STORE_VICTIM", &round_dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        acked.clear();
        while acked.len() < 150 + round * 333 {
            acked.extend(acknowledgement(&lines.next().expect("the victim died early").unwrap()));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            acked.extend(acknowledgement(&line));
        }
        let store = open(&round_dir);
        for (key, revision) in &acked {
            let entry = store
                .get(key)
                .await
                .unwrap()
                .unwrap_or_else(|| panic!("round {round}: {key} was acknowledged and is gone"));
            assert_eq!(entry.mod_revision, *revision);
        }
        let events = store.watch("/", 0).await;
        assert!(events.is_ok(), "the history is whole");
    }
}
