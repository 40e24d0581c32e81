//! Garbage collection of very many objects on the real API server: everything goes, nothing else does, and what is
//! remembered of it goes too. How many is said by SAMPAN_GC_OBJECTS.

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use sampan_apiserver::testing::TestServer;
use sampan_auth::UserInfo;
use sampan_client::Informers;
use sampan_controllers::{Config, Controllers};

/// In flight at once.
const WIDTH: usize = 64;
const NAMESPACE: &str = "default";

async fn start() -> (TestServer, Client) {
    let server = TestServer::start().await.unwrap();
    let plane = server.plane.clone();
    let client_for = move |name: &str| {
        let groups = [
            "system:serviceaccounts",
            "system:serviceaccounts:kube-system",
            "system:authenticated",
        ];
        sampan_client::connect(plane.connect(UserInfo::new(name, groups)))
    };
    let manager = UserInfo::new("system:kube-controller-manager", ["system:authenticated"]);
    let informers = Informers::new(sampan_client::connect(server.plane.connect(manager)), &server.tasks);
    let config = Config {
        enabled: vec!["garbage-collector-controller".into()],
        ..Config::default()
    };
    Controllers::start(config, client_for, &informers, &server.tasks).unwrap();
    let admin = sampan_client::connect(server.connect());
    (server, admin)
}

fn map(name: String, owner: Option<&ConfigMap>) -> ConfigMap {
    let reference = |owner: &ConfigMap| OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: owner.name_any(),
        uid: owner.uid().unwrap(),
        block_owner_deletion: Some(true),
        controller: None,
    };
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name),
            owner_references: owner.map(|owner| vec![reference(owner)]),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

async fn create(api: &Api<ConfigMap>, maps: Vec<ConfigMap>) -> Vec<ConfigMap> {
    futures::stream::iter(maps)
        .map(|map| async move { api.create(&PostParams::default(), &map).await })
        .buffer_unordered(WIDTH)
        .try_collect()
        .await
        .unwrap()
}

async fn until_left(api: &Api<ConfigMap>, wanted: usize) {
    let begun = Instant::now();
    loop {
        let left = api.list_metadata(&ListParams::default()).await.unwrap().items.len();
        if left == wanted {
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(600),
            "{left} objects are left, not {wanted}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_of_thousands_go_with_their_roots() {
    let many: usize = std::env::var("SAMPAN_GC_OBJECTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2_000);
    let (server, client) = start().await;
    let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let roots = create(
        &api,
        ["background", "foreground", "kept"]
            .map(|name| map(name.into(), None))
            .into(),
    )
    .await;
    // Two levels below each of the two that will go, as many below the one that stays.
    let branches = (many / 100).max(3);
    let middle = (0..branches)
        .map(|number| map(format!("m-{number}"), roots.get(number % 3)))
        .collect();
    let middle = create(&api, middle).await;
    let leaves = (0..many)
        .map(|number| map(format!("l-{number}"), middle.get(number % branches)))
        .collect();
    create(&api, leaves).await;
    let kept_branches: Vec<&ConfigMap> = middle
        .iter()
        .filter(|map| map.owner_references().iter().any(|owner| owner.name == "kept"))
        .collect();
    let begun = Instant::now();
    api.delete("background", &DeleteParams::background()).await.unwrap();
    api.delete("foreground", &DeleteParams::foreground()).await.unwrap();
    let kept_leaves = (0..many)
        .filter(|number| {
            let branch = middle.get(number % branches).map(ResourceExt::name_any);
            kept_branches.iter().any(|kept| Some(kept.name_any()) == branch)
        })
        .count();
    until_left(&api, 1 + kept_branches.len() + kept_leaves).await;
    println!(
        "{many} objects in trees, two thirds of them collected in {:?}",
        begun.elapsed()
    );
    server.stop().await;
}
