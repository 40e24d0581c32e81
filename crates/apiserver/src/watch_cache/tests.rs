//! The cache over the real embedded engine.

use std::time::Duration;

use bytes::Bytes;
use sampan_store::{Condition, Op, Write, Written, embedded};
use serde_json::json;

use super::*;

fn node_of(object: &sampan_api::Object) -> String {
    object
        .pointer("/spec/nodeName")
        .and_then(|name| name.as_str())
        .unwrap_or_default()
        .to_owned()
}

static FIELDS: [sampan_kinds::SelectableField; 1] = [sampan_kinds::SelectableField {
    label: "spec.nodeName",
    read: node_of,
}];

struct World {
    _dir: tempfile::TempDir,
    tasks: Tasks,
    cache: Arc<Cache>,
    pods: Arc<Storage>,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let tasks = Tasks::new();
    let store = embedded::Embedded::open(dir.path(), embedded::Options::default()).unwrap();
    let pods = Arc::new(Storage::new("pods", FIELDS.to_vec(), Some("spec.nodeName")));
    let cache = Cache::start(store, vec![pods.clone()], &tasks).await.unwrap();
    World {
        _dir: dir,
        tasks,
        cache,
        pods,
    }
}

impl World {
    async fn put(&self, path: &str, node: &str, condition: Condition) -> Revision {
        let value = json!({"metadata": {"name": path}, "spec": {"nodeName": node}}).to_string();
        self.write(
            path,
            condition,
            Op::Put {
                value: Bytes::from(value),
                lease: None,
            },
        )
        .await
    }
    async fn write(&self, path: &str, condition: Condition, op: Op) -> Revision {
        let key = self.pods.key(path).into();
        match self.cache.store().write(Write { key, condition, op }).await.unwrap() {
            Written::Committed { revision, .. } => {
                self.cache.reached(revision).await;
                revision
            }
            refused => panic!("{refused:?}"),
        }
    }
}

fn paths(snapshot: &Snapshot) -> Vec<String> {
    snapshot.index.iter().map(|entry| entry.path().to_owned()).collect()
}

#[tokio::test]
async fn reads_follow_writes_and_history_can_be_rolled_back() {
    let world = world().await;
    let first = world.put("a/x", "n1", Condition::ModRevision(0)).await;
    let second = world.put("a/y", "", Condition::None).await;
    let third = world.put("a/x", "n2", Condition::ModRevision(first)).await;
    let fourth = world.write("a/y", Condition::None, Op::Delete).await;
    assert_eq!(world.pods.get("a/x").unwrap().revision(), third);
    assert_eq!(paths(&world.pods.snapshot(world.cache.revision())), ["a/x"]);
    assert_eq!(paths(&world.pods.snapshot_at(second).unwrap()), ["a/x", "a/y"]);
    assert_eq!(paths(&world.pods.snapshot_at(first).unwrap()), ["a/x"]);
    assert_eq!(
        world
            .pods
            .snapshot_at(second)
            .unwrap()
            .index
            .get("a/x")
            .unwrap()
            .revision(),
        first
    );
    assert_eq!(paths(&world.pods.indexed("n2", fourth)), ["a/x"]);
    assert!(paths(&world.pods.indexed("n1", fourth)).is_empty());
    world.tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_watch_sees_the_past_then_the_present_and_only_its_scope() {
    let world = world().await;
    let first = world.put("a/x", "", Condition::None).await;
    world.put("b/x", "", Condition::None).await;
    let mut all = world
        .pods
        .watch(Scope::All, Start::After(first), world.cache.revision())
        .unwrap();
    let mut node = world
        .pods
        .watch(Scope::Indexed("n1".into()), Start::Now, world.cache.revision())
        .unwrap();
    let mut namespace = world
        .pods
        .watch(
            Scope::Namespace("b".into()),
            Start::After(first),
            world.cache.revision(),
        )
        .unwrap();
    assert_eq!((all.backlog.len(), namespace.backlog.len()), (1, 1));
    assert!(node.initial.take().unwrap().index.is_empty());
    world.put("a/x", "n1", Condition::None).await;
    world.write("a/x", Condition::None, Op::Delete).await;
    let change = node.queue.recv().await.unwrap();
    assert_eq!((change.kind, change.entry.name()), (ChangeType::Modified, "x"));
    assert_eq!(node.queue.recv().await.unwrap().kind, ChangeType::Deleted);
    assert_eq!(all.queue.recv().await.unwrap().kind, ChangeType::Modified);
    assert!(namespace.queue.try_recv().is_err());
    world.tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_dropped_and_harms_nobody() {
    let world = world().await;
    let mut slow = world.pods.watch(Scope::All, Start::Now, 0).unwrap();
    for round in 0..2100 {
        let event = store::Event {
            revision: world.cache.revision() + 10 + round,
            key: world.pods.key("a/x").into(),
            change: store::Change::Put(store::KeyValue {
                key: world.pods.key("a/x").into(),
                value: Bytes::from_static(b"{\"metadata\":{}}"),
                create_revision: 1,
                mod_revision: 2,
                lease: None,
            }),
            previous: None,
        };
        world.pods.apply(&event);
    }
    let mut seen = 0;
    while slow.queue.recv().await.is_some() {
        seen += 1;
    }
    assert_eq!(seen, 2048);
    world.tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn history_survives_a_restart_of_the_cache() {
    let world = world().await;
    let first = world.put("a/x", "", Condition::None).await;
    world.put("a/x", "n1", Condition::None).await;
    world.write("a/x", Condition::None, Op::Delete).await;
    let pods = Arc::new(Storage::new("pods", FIELDS.to_vec(), Some("spec.nodeName")));
    let again = Cache::start(world.cache.store().clone(), vec![pods.clone()], &world.tasks)
        .await
        .unwrap();
    world.put("a/z", "", Condition::None).await;
    again.caught_up().await;
    let watch = pods.watch(Scope::All, Start::After(first), again.revision()).unwrap();
    let kinds: Vec<_> = watch.backlog.iter().map(|change| change.kind).collect();
    assert_eq!(kinds, [ChangeType::Modified, ChangeType::Deleted, ChangeType::Added]);
    world.tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_tree_comes_back_with_its_bytes() {
    let world = world().await;
    let tree = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "x"}});
    let value = Bytes::from(tree.to_string());
    let offer = world.pods.offer(&value, tree);
    let lease = None;
    let revision = world.write("n/a", Condition::None, Op::Put { value, lease }).await;
    drop(offer);
    let entry = world.pods.get("n/a").unwrap();
    assert!(Arc::ptr_eq(&entry.tree(), &entry.settled()), "nothing is parsed");
    assert_eq!(sampan_api::meta::resource_version(&entry.tree()), revision.to_string());
    world.write("n/a", Condition::None, Op::Delete).await;
    assert!(!Arc::ptr_eq(&entry.tree(), &entry.tree()), "what is gone keeps no tree");
    // Who offers nothing gets nothing.
    world.put("n/b", "x", Condition::None).await;
    let entry = world.pods.get("n/b").unwrap();
    assert!(!Arc::ptr_eq(&entry.tree(), &entry.tree()));
    world.tasks.shutdown(Duration::from_secs(5)).await;
}
