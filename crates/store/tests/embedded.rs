//! What only the embedded engine does: its lock, its end, kill -9. The contract is tested in `contract.rs`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use sampan_store::embedded::{Embedded, Options};
use sampan_store::{Condition, Error, Op, Store, Write, Written};

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

async fn commit(store: &Embedded, write: Write) -> u64 {
    match store.write(write).await.expect("write") {
        Written::Committed { revision, .. } => revision,
        Written::Refused { current, .. } => panic!("refused: {current:?}"),
    }
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

/// Not a test by itself: the victim of the next one, which runs this binary again with the variable set.
#[tokio::test(flavor = "multi_thread")]
async fn victim() {
    let Ok(dir) = std::env::var("SAMPAN_STORE_VICTIM") else {
        return;
    };
    let store = open(dir.as_ref());
    let compacting = Arc::clone(&store);
    let compact = async move {
        // The kill comes in the middle of it, too.
        while compacting.compact(compacting.revision()).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
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
    futures::future::join(futures::future::join_all(writers), compact).await;
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
        let events = store.watch("/", store.compacted()).await;
        assert!(events.is_ok(), "the history is whole");
        let (now, then) = (
            store.range("/", "0", 0).await.unwrap(),
            store.range_at("/", "0", 0, store.compacted()).await.unwrap(),
        );
        assert!(then.entries.len() <= now.entries.len());
        store.compact(store.revision()).await.unwrap();
    }
}
