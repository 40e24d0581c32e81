use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Event, Secret};
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ObjectMeta, PropagationPolicy};
use sampan_client::Informers;
use sampan_client::testing::{FakeApi, PausedClock, eventually};
use sampan_tasks::Tasks;

use crate::testing::Cluster;
use crate::{Config, Controllers};

fn owned(namespace: &str, name: &str, owners: &[&ConfigMap]) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            owner_references: Some(
                owners
                    .iter()
                    .map(|owner| OwnerReference {
                        api_version: "v1".into(),
                        kind: "ConfigMap".into(),
                        name: owner.name_any(),
                        uid: owner.uid().unwrap(),
                        block_owner_deletion: Some(true),
                        controller: None,
                    })
                    .collect(),
            ),
            ..Default::default()
        },
        ..Default::default()
    }
}

fn exists(api: &FakeApi, name: &str) -> bool {
    api.get::<ConfigMap>("ns", name).is_some()
}

async fn gone(api: &FakeApi, names: &[&str]) {
    eventually(&format!("{names:?} are gone"), || async {
        (!names.iter().any(|name| exists(api, name))).then_some(())
    })
    .await;
}

async fn delete(api: &FakeApi, name: &str, params: DeleteParams) {
    let maps: Api<ConfigMap> = Api::namespaced(api.client("admin"), "ns");
    maps.delete(name, &params).await.unwrap();
}

/// Long enough for anything that would happen to have happened.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

fn collector() -> Cluster {
    Cluster::start(&["garbage-collector-controller"])
}

#[tokio::test(start_paused = true)]
async fn in_the_background_dependents_follow_their_owner() {
    let cluster = collector();
    let api = &cluster.api;
    let owner = api.create(&owned("ns", "owner", &[]));
    let child = api.create(&owned("ns", "child", &[&owner]));
    api.create(&owned("ns", "grandchild", &[&child]));
    api.create(&owned("ns", "bystander", &[]));
    settle().await;
    assert!(exists(api, "grandchild"));
    delete(api, "owner", DeleteParams::background()).await;
    gone(api, &["owner", "child", "grandchild"]).await;
    assert!(exists(api, "bystander"));
}

/// The caches follow one API and everything else is asked of another, which is what a cache that errs amounts to.
#[tokio::test(start_paused = true)]
async fn an_owner_that_only_the_cache_has_lost_keeps_its_dependents() {
    let (cached, live) = (FakeApi::new(), FakeApi::new());
    for api in [&cached, &live] {
        let owner = api.create(&owned("ns", "owner", &[]));
        api.create(&owned("ns", "child", &[&owner]));
    }
    let tasks = Tasks::new();
    let informers = Informers::new(cached.client("system:kube-controller-manager"), &tasks);
    let config = Config {
        enabled: vec!["garbage-collector-controller".into()],
        ..Config::default()
    };
    let asked = live.clone();
    let clock = Arc::new(PausedClock::default());
    Controllers::start_with_clock(config, move |user| asked.client(user), &informers, &tasks, clock).unwrap();
    settle().await;
    cached.remove::<ConfigMap>("ns", "owner");
    settle().await;
    assert!(exists(&live, "child"), "its owner is there");
}

#[tokio::test(start_paused = true)]
async fn in_the_foreground_the_owner_goes_last() {
    let cluster = collector();
    let api = &cluster.api;
    let owner = api.create(&owned("ns", "owner", &[]));
    let mut child = owned("ns", "child", &[&owner]);
    child.metadata.finalizers = Some(vec!["example.com/wait".into()]);
    let child = api.create(&child);
    api.create(&owned("ns", "grandchild", &[&child]));
    settle().await;
    delete(api, "owner", DeleteParams::foreground()).await;
    gone(api, &["grandchild"]).await;
    settle().await;
    assert!(exists(api, "owner") && exists(api, "child"), "the child holds both");
    api.remove::<ConfigMap>("ns", "child");
    gone(api, &["owner"]).await;
}

#[tokio::test(start_paused = true)]
async fn orphans_stay() {
    let cluster = collector();
    let api = &cluster.api;
    let owner = api.create(&owned("ns", "owner", &[]));
    api.create(&owned("ns", "child", &[&owner]));
    settle().await;
    delete(api, "owner", DeleteParams::orphan()).await;
    gone(api, &["owner"]).await;
    settle().await;
    let child: ConfigMap = api.get("ns", "child").expect("the child stays");
    assert!(child.owner_references().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_second_owner_keeps_an_object() {
    let cluster = collector();
    let api = &cluster.api;
    let one = api.create(&owned("ns", "one", &[]));
    let two = api.create(&owned("ns", "two", &[]));
    api.create(&owned("ns", "child", &[&one, &two]));
    settle().await;
    delete(api, "one", DeleteParams::foreground()).await;
    gone(api, &["one"]).await;
    eventually("the child belongs to two alone", || async {
        let child: ConfigMap = api.get("ns", "child")?;
        (child.owner_references().len() == 1).then_some(())
    })
    .await;
    delete(api, "two", DeleteParams::background()).await;
    gone(api, &["child"]).await;
}

#[tokio::test(start_paused = true)]
async fn absent_owners_and_wrong_namespaces() {
    let cluster = collector();
    let api = &cluster.api;
    let mut never = owned("ns", "never", &[]);
    never.metadata.uid = Some("no-such-uid".into());
    api.create(&owned("ns", "child-of-nobody", &[&never]));
    gone(api, &["child-of-nobody"]).await;

    let elsewhere = api.create(&owned("other", "owner", &[]));
    settle().await;
    api.create(&owned("ns", "confused", &[&elsewhere]));
    gone(api, &["confused"]).await;
    eventually("it was told", || async {
        api.all::<Event>()
            .into_iter()
            .find(|event| event.reason.as_deref() == Some("OwnerRefInvalidNamespace"))
    })
    .await;
    assert!(api.get::<ConfigMap>("other", "owner").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_namespace_is_told_whoever_is_seen_first() {
    let api = FakeApi::new();
    let owner = api.create(&owned("z", "owner", &[]));
    api.create(&owned("ns", "confused", &[&owner]));
    api.create(&owned("z", "child", &[&owner]));
    let cluster = Cluster::with(api, &["garbage-collector-controller"], |_| {});
    let api = &cluster.api;
    gone(api, &["confused"]).await;
    let told = eventually("it was told", || async {
        let mut events = api.all::<Event>().into_iter();
        events.find(|event| event.reason.as_deref() == Some("OwnerRefInvalidNamespace"))
    })
    .await;
    assert_eq!(told.involved_object.name.as_deref(), Some("confused"));
    assert_eq!(
        told.message.unwrap(),
        format!(
            "ownerRef [v1/ConfigMap, namespace: ns, name: owner, uid: {}] does not exist in namespace \"ns\"",
            owner.uid().unwrap()
        )
    );
    settle().await;
    assert!(api.get::<ConfigMap>("z", "child").is_some());
}

#[tokio::test(start_paused = true)]
async fn what_has_no_namespace_is_not_collected_for_an_owner_that_has_one() {
    let cluster = collector();
    let api = &cluster.api;
    let owner = api.create(&owned("ns", "owner", &[]));
    let mut never = owned("ns", "never", &[]);
    never.metadata.uid = Some("no-such-uid".into());
    for (name, owner) in [("one", &owner), ("two", &never)] {
        let mut metadata = owned("", name, &[owner]).metadata;
        metadata.namespace = None;
        api.create(&ClusterRole {
            metadata,
            ..Default::default()
        });
    }
    settle().await;
    delete(api, "owner", DeleteParams::background()).await;
    gone(api, &["owner"]).await;
    settle().await;
    assert_eq!(api.all::<ClusterRole>().len(), 2);
}

#[tokio::test]
async fn an_object_that_changes_hands_meanwhile_stays() {
    let api = FakeApi::new();
    let (one, two) = (
        api.create(&owned("ns", "one", &[])),
        api.create(&owned("ns", "two", &[])),
    );
    let read = api.create(&owned("ns", "child", &[&one])).metadata;
    let resource = ApiResource::erase::<ConfigMap>(&());
    let maps: Api<DynamicObject> = Api::namespaced_with(api.client("collector"), "ns", &resource);
    let adopted = owned("ns", "x", &[&two]).metadata.owner_references;
    api.change::<ConfigMap>("ns", "child", |child| child.metadata.owner_references = adopted);
    let policy = PropagationPolicy::Background;
    assert!(super::attempt::remove(&maps, &read, policy.clone()).await.is_err());
    assert!(exists(&api, "child"));
    // Any other change does not save it.
    let back = read.owner_references.clone();
    api.change::<ConfigMap>("ns", "child", |child| {
        child.metadata.owner_references = back;
        child.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    });
    super::attempt::remove(&maps, &read, policy).await.unwrap();
    assert!(!exists(&api, "child"));
}

#[tokio::test(start_paused = true)]
async fn circles_in_the_foreground_come_to_an_end() {
    let cluster = collector();
    let api = &cluster.api;
    let a = api.create(&owned("ns", "a", &[]));
    let b = api.create(&owned("ns", "b", &[&a]));
    let c = api.create(&owned("ns", "c", &[&b]));
    api.change::<ConfigMap>("ns", "a", |a| {
        a.metadata.owner_references = owned("ns", "x", &[&c]).metadata.owner_references;
    });
    settle().await;
    assert!(exists(api, "a"));
    delete(api, "a", DeleteParams::foreground()).await;
    gone(api, &["a", "b", "c"]).await;
}

#[tokio::test(start_paused = true)]
async fn what_exists_at_the_start_is_looked_at() {
    let api = FakeApi::new();
    let mut never = owned("ns", "never", &[]);
    never.metadata.uid = Some("no-such-uid".into());
    api.create(&owned("ns", "old", &[&never]));
    let owner = api.create(&owned("ns", "owner", &[]));
    api.create(&owned("ns", "kept", &[&owner]));
    api.create(&Secret {
        metadata: owned("ns", "secret", &[&owner]).metadata,
        ..Default::default()
    });
    let cluster = Cluster::with(api, &["garbage-collector-controller"], |_| {});
    gone(&cluster.api, &["old"]).await;
    settle().await;
    assert!(exists(&cluster.api, "kept"));
    delete(&cluster.api, "owner", DeleteParams::background()).await;
    gone(&cluster.api, &["kept"]).await;
    eventually("other kinds too", || async {
        cluster.api.get::<Secret>("ns", "secret").is_none().then_some(())
    })
    .await;
}
