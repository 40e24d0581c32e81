//! The embedded engine on bad days: no room, failing disks, damaged files. Tests that mount something need root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sampan_store::backup::Backup;
use sampan_store::embedded::{Embedded, Options};
use sampan_store::testing::Faults;
use sampan_store::{Change, Condition, Error, Op, Store, Update, Write, Written};

fn put(key: &str, value: impl Into<bytes::Bytes>) -> Write {
    Write {
        key: key.into(),
        condition: Condition::None,
        op: Op::Put {
            value: value.into(),
            lease: None,
        },
    }
}

fn delete(key: &str) -> Write {
    Write {
        key: key.into(),
        condition: Condition::None,
        op: Op::Delete,
    }
}

async fn commit(store: &dyn Store, write: Write) -> Result<u64, Error> {
    match store.write(write).await? {
        Written::Committed { revision } => Ok(revision),
        Written::Refused { current, .. } => panic!("refused: {current:?}"),
    }
}

/// Tries until it works again.
async fn recovered(store: &dyn Store) -> u64 {
    let begun = Instant::now();
    loop {
        match commit(store, put("/registry/after", "x")).await {
            Ok(revision) => return revision,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(30), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A small file system of its own; gone when dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .output();
        if made.is_ok_and(|made| made.status.success()) {
            return Some(Mount(dir));
        }
        eprintln!("skipped: mounting a file system needs root");
        None
    }
    fn resize(&self, size: &str) {
        let done = Command::new("mount")
            .args(["-o", &format!("remount,size={size}")])
            .arg(self.0.path())
            .status();
        assert!(done.unwrap().success());
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_values_and_recovers_by_itself() {
    let Some(mount) = Mount::new("40m") else { return };
    let store = Embedded::open(&mount.path().join("store"), Options::default()).unwrap();
    let mut acknowledged = Vec::new();
    let error = loop {
        let key = format!("/registry/{}", acknowledged.len());
        match commit(&*store, put(&key, vec![b'x'; 100_000])).await {
            Ok(_) => acknowledged.push(key),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 1_000, "the disk is not that large");
    };
    let text = error.to_string();
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    assert!(text.starts_with("etcdserver: mvcc: database space exceeded"), "{text}");
    assert!(text.contains("store.redb"), "{text}");
    store.health().await.unwrap();
    assert!(store.grant(Duration::from_secs(60)).await.is_err());
    // What makes room goes on.
    let gone = acknowledged.pop().unwrap();
    commit(&*store, delete(&gone)).await.unwrap();
    store.compact(store.revision()).await.unwrap();
    assert!(store.get(&gone).await.unwrap().is_none());
    mount.resize("80m");
    commit(&*store, put("/registry/after", "x")).await.unwrap();

    // Somebody else takes all there is, to the last byte.
    let ballast = mount.path().join("ballast");
    let full = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k", &format!("of={}", ballast.display())])
        .output()
        .unwrap();
    assert!(!full.status.success(), "it is not full");
    for round in 0..5 {
        assert!(commit(&*store, put("/registry/late", "x")).await.is_err(), "{round}");
        // May or may not find room; must neither hang nor end the store.
        let _outcome = store.write(delete("/registry/0")).await;
    }
    acknowledged.retain(|key| key != "/registry/0");
    std::fs::remove_file(ballast).unwrap();
    let last = recovered(&*store).await;
    store.health().await.unwrap();
    drop(store);
    let store = Embedded::open(&mount.path().join("store"), Options::default()).unwrap();
    assert_eq!(store.revision(), last);
    for key in &acknowledged {
        assert!(store.get(key).await.unwrap().is_some(), "{key} was acknowledged");
    }
    assert!(store.get("/registry/late").await.unwrap().is_none());
}

/// Wherever in a commit the disk begins to fail: acknowledged stays, revisions stay dense, watchers hear of exactly
/// what is there, and when it ends the store goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_disk_loses_nothing_acknowledged() {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    const EROFS: i32 = 30;
    let faults = Arc::new(Faults::default());
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        faults: Some(faults.clone()),
        ..Options::default()
    };
    let store = Embedded::open(dir.path(), options).unwrap();
    let mut watch = store.watch("/registry/", 0).await.unwrap();
    let (mut acknowledged, mut refused) = (BTreeMap::new(), 0);
    for round in 0..36usize {
        let number = [EIO, ENOSPC, EROFS][round % 3];
        faults.fail(number, round % 2 == 0, round / 3);
        for step in 0..6 {
            let key = format!("/registry/{round}/{step}");
            match commit(&*store, put(&key, vec![b'x'; 5_000])).await {
                Ok(revision) => drop(acknowledged.insert(key, revision)),
                Err(error) => {
                    refused += 1;
                    let text = error.to_string();
                    assert!(
                        text.contains("os error") || text.contains("database space exceeded"),
                        "{text}"
                    );
                }
            }
        }
        if store.health().await.is_err() {
            let page = store.write(delete("/registry/none")).await;
            assert!(matches!(page, Err(Error::Unavailable { .. })), "{page:?}");
        }
        faults.fail(0, false, 0);
        recovered(&*store).await;
        store.health().await.unwrap();
        if round % 7 == 0 {
            store.compact(store.revision() - 1).await.unwrap();
        }
    }
    assert!(refused > 50, "the disk failed only {refused} times");
    let mut told = BTreeMap::new();
    let mut last = 0;
    while last < store.revision() {
        let Update::Event { event, .. } = watch.recv().await.unwrap().unwrap() else {
            continue;
        };
        assert_eq!(event.revision, last + 1, "dense and in order");
        last = event.revision;
        match event.change {
            Change::Put(entry) => drop(told.insert(event.key, entry.mod_revision)),
            Change::Delete => drop(told.remove(&event.key)),
        }
    }
    let check = |backup: Backup| {
        let present: BTreeMap<_, _> = backup
            .entries
            .into_iter()
            .map(|entry| (entry.key, entry.mod_revision))
            .collect();
        assert_eq!(present, told);
        for (key, revision) in &acknowledged {
            assert_eq!(present.get(&**key), Some(revision), "{key}");
        }
    };
    check(Backup::of(&*store).await.unwrap());
    drop(store);
    let store = Embedded::open(dir.path(), Options::default()).unwrap();
    check(Backup::of(&*store).await.unwrap());
}

async fn filled(dir: &Path) -> PathBuf {
    let store = Embedded::open(dir, Options::default()).unwrap();
    for number in 0..60 {
        commit(&*store, put(&format!("/registry/{number}"), vec![b'a'; 3_000]))
            .await
            .unwrap();
    }
    store.close();
    dir.join("store.redb")
}

#[tokio::test]
async fn a_damaged_file_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(dir.path()).await;
    let whole = std::fs::read(&path).unwrap();
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("empty".into(), Vec::new()),
        ("other".into(), b"something else entirely".repeat(100)),
    ];
    for length in [1, 100, 4_095, 4_096, 8_192, whole.len() / 2, whole.len() - 1] {
        cases.push((format!("cut to {length}"), whole[..length].to_vec()));
    }
    let mut noticed = 0;
    for number in 0..60 {
        let at = whole.len() / 60 * number + number;
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        cases.push((format!("flipped at {at}"), flipped));
    }
    for (what, bytes) in cases {
        std::fs::write(&path, &bytes).unwrap();
        match Embedded::open(dir.path(), Options::default()) {
            Err(error) => {
                noticed += 1;
                let text = error.to_string();
                assert!(matches!(error, Error::Damaged { .. }), "{what}: {text}");
                assert!(
                    text.contains("store.redb") && text.contains("sampan restore"),
                    "{what}: {text}"
                );
            }
            // Free pages hold nothing.
            Ok(store) => {
                assert!(what.starts_with("flipped"), "{what} was not noticed");
                for number in 0..60 {
                    let entry = store.get(&format!("/registry/{number}")).await.unwrap().unwrap();
                    assert!(entry.value.iter().all(|&byte| byte == b'a'), "{what}");
                }
            }
        }
    }
    assert!(noticed > 20, "{noticed}");
    // The way out that the message names.
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let backup = Backup {
        revision: 60,
        entries: Vec::new(),
    };
    let kept = Embedded::restore(dir.path(), &backup, true).unwrap().unwrap();
    assert!(kept.exists());
    Embedded::open(dir.path(), Options::default()).unwrap();
}

/// Compaction gives room back to what comes next. `SAMPAN_STORE_UPDATES` sets how many updates there are.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_does_not_grow_without_bound() {
    let updates: u64 = std::env::var("SAMPAN_STORE_UPDATES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_000);
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Options::default()).unwrap();
    let (rounds, begun) = (10, Instant::now());
    let mut sizes = Vec::new();
    for _ in 0..rounds {
        let before = store.revision();
        for step in 0..updates / rounds / 256 {
            let writes = (0..256u64).map(|writer| {
                let store = store.clone();
                async move {
                    let key = format!("/registry/{:04}", (writer + step * 256) % 1_000);
                    commit(&*store, put(&key, vec![b'x'; 1_000])).await.unwrap();
                }
            });
            futures::future::join_all(writes).await;
        }
        // One interval of history is kept, as the API server keeps it.
        let compacting = Instant::now();
        store.compact(before).await.unwrap();
        let took = compacting.elapsed();
        sizes.push(store.size().await.unwrap() >> 10);
        println!(
            "{} updates: {} KiB, compaction took {took:?}, {:?} in all",
            store.revision(),
            sizes[sizes.len() - 1],
            begun.elapsed()
        );
    }
    let (early, late) = (sizes[3], sizes[sizes.len() - 1]);
    assert!(late <= early + early / 2, "{sizes:?}");
    drop(store);
    let opening = Instant::now();
    Embedded::open(dir.path(), Options::default()).unwrap();
    println!("opened (and checked) in {:?}", opening.elapsed());
}
