//! Restores and the live move, under writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sampan_store::backup::Backup;
use sampan_store::embedded::{Embedded, Options};
use sampan_store::etcd::Etcd;
use sampan_store::movable::{self, Movable};
use sampan_store::testing::EtcdProcess;
use sampan_store::{Condition, Error, Op, Revision, Store, Write, Written};
use sampan_tasks::Tasks;

fn put(key: &str, value: &str, lease: Option<u64>) -> Write {
    Write {
        key: key.into(),
        condition: Condition::None,
        op: Op::Put {
            value: value.to_owned().into(),
            lease,
        },
    }
}

async fn commit(store: &dyn Store, write: Write) -> Revision {
    match store.write(write).await.unwrap() {
        Written::Committed { revision } => revision,
        refused => panic!("{refused:?}"),
    }
}

#[tokio::test]
async fn a_backup_is_restored_into_either_engine_and_revisions_go_on() {
    let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
    let old = Embedded::open(&dir.path().join("old"), Options::default()).unwrap();
    let lease = old.grant(Duration::from_secs(60)).await.unwrap();
    commit(&*old, put("/registry/a", "1", None)).await;
    commit(&*old, put("/registry/event", "2", Some(lease))).await;
    let mut file = Vec::new();
    Backup::of(&*old).await.unwrap().write(&mut file).unwrap();
    let after = commit(&*old, put("/registry/a", "lost", None)).await;
    let read = || Backup::read(&*file).unwrap();

    let new = dir.path().join("new");
    assert!(Embedded::restore(&new, &read(), false).unwrap().is_none());
    let error = Embedded::restore(&new, &read(), false).unwrap_err().to_string();
    assert!(error.contains("--force"), "{error}");
    assert!(
        Embedded::restore(&new, &read(), true)
            .unwrap()
            .is_some_and(|kept| kept.exists())
    );
    let mut restored: Vec<Arc<dyn Store>> = vec![Embedded::open(&new, Options::default()).unwrap()];
    let etcd = EtcdProcess::start();
    if let Some(etcd) = &etcd {
        movable::restore(&etcd.options(), read(), false, &tasks).await.unwrap();
        assert!(movable::restore(&etcd.options(), read(), false, &tasks).await.is_err());
        restored.push(Etcd::connect(&etcd.options(), &tasks).await.unwrap());
    }
    for store in restored {
        assert_eq!(store.get("/registry/a").await.unwrap().unwrap().value, "1");
        let event = store.get("/registry/event").await.unwrap().unwrap();
        store.keep_alive(event.lease.unwrap()).await.unwrap();
        assert!(matches!(
            store.watch("/registry/", after).await,
            Err(Error::Compacted { .. })
        ));
        assert!(commit(&*store, put("/registry/b", "3", None)).await > after);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_under_writes_loses_nothing_and_revisions_only_grow() {
    let Some(etcd) = EtcdProcess::start() else { return };
    let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
    let embedded = Embedded::open(dir.path(), Options::default()).unwrap();
    let store = Movable::new(embedded.clone(), &tasks);
    for number in 0..500 {
        commit(&*store, put(&format!("/registry/old/{number}"), "x", None)).await;
    }
    let mut watch = store.watch("/registry/", store.revision()).await.unwrap();
    let stop = AtomicBool::new(false);
    let writers = futures::future::join_all((0..8).map(|writer| {
        let (store, stop) = (store.clone(), &stop);
        async move {
            let (mut written, mut last) = (BTreeMap::new(), 0);
            for step in 0.. {
                let key = format!("/registry/w/{writer}/{}", step % 50);
                let revision = commit(&*store, put(&key, &step.to_string(), None)).await;
                assert!(revision > last, "{revision} after {last}");
                last = revision;
                written.insert(key, step.to_string());
                if stop.load(Ordering::Acquire) {
                    break;
                }
            }
            written
        }
    }));
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let moving = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        store.move_to(&etcd.options(), false, &tell).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.store(true, Ordering::Release);
    };
    let (written, ()) = tokio::join!(writers, moving);
    for (key, value) in written.into_iter().flatten() {
        assert_eq!(store.get(&key).await.unwrap().unwrap().value, value, "{key}");
    }
    assert!(store.get("/registry/old/499").await.unwrap().is_some());
    assert!(store.shared());
    let ended = loop {
        if let Err(error) = watch.recv().await.unwrap() {
            break error;
        }
    };
    assert!(matches!(ended, Error::Moved));
    assert!(told.recv().await.is_some());
    embedded.close();
    drop((store, embedded));
    let Err(error) = Embedded::open(dir.path(), Options::default()) else {
        panic!("served again")
    };
    assert!(error.to_string().contains("--etcd-servers http://127.0.0.1"), "{error}");
}
