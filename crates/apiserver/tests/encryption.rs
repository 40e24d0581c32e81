//! Encryption at rest as clients see it: nothing, but on the disk; and what cannot be read says so and can be removed.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::Api;
use sampan_apiserver::EncryptionSource;
use sampan_apiserver::testing::TestServer;
use sampan_store::embedded::{Embedded, Options};
use sampan_store::{Store, prefix_end};
use serde_json::json;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const KEY_1: &str = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=";
const KEY_2: &str = "NjU0MzIxenl4d3Z1dHNycXBvbm1sa2ppaGdmZWRjYmE=";

fn configured(dir: &Path, providers: &str) -> EncryptionSource {
    let path: PathBuf = dir.join("encryption.yaml");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets, '*.apps', '*.example.com']\n  providers: [{providers}]\n"
    );
    std::fs::write(&path, text).unwrap();
    EncryptionSource { path, reload: None }
}

async fn api(dir: &Path, providers: &str) -> Api {
    let source = configured(dir, providers);
    let server = TestServer::start_in_with(&dir.join("server"), |config| config.encryption = Some(source))
        .await
        .unwrap();
    let service = server.connect();
    Api { server, service }
}

/// What is stored of a resource, as it is on the disk. The server must be stopped.
async fn stored(dir: &Path, prefix: &str) -> Vec<Vec<u8>> {
    let store: Arc<Embedded> = Embedded::open(&dir.join("server/store"), Options::default()).unwrap();
    let root = format!("/registry/{prefix}/");
    let page = store.range(&root, &prefix_end(&root), 0).await.unwrap();
    store.close();
    page.entries.iter().map(|entry| entry.value.to_vec()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_encrypted_on_the_disk_and_keys_can_change() {
    let dir = tempfile::tempdir().unwrap();
    let first = format!("{{aesgcm: {{keys: [{{name: one, secret: {KEY_1}}}]}}}}, {{identity: {{}}}}");
    let server = api(dir.path(), &first).await;
    let secret =
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}, "stringData": {"k": "hidden"}});
    server.post(SECRETS, secret).await.ok();
    let mut watch = server.watch(&format!("{SECRETS}?watch=1&resourceVersion=0")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["data"]["k"], "aGlkZGVu");
    drop(watch);
    server
        .merge(&format!("{SECRETS}/s"), json!({"data": {"more": "aGlkZGVu"}}))
        .await
        .ok();
    let before = server.get(&format!("{SECRETS}/s")).await.ok();
    // Nothing to write: nothing is written.
    let same = server.put(&format!("{SECRETS}/s"), before.clone()).await.ok();
    assert_eq!(
        same["metadata"]["resourceVersion"],
        before["metadata"]["resourceVersion"]
    );
    let Api { server, service } = server;
    drop(service);
    server.stop().await;
    let raw = stored(dir.path(), "secrets").await;
    assert!(raw.iter().all(|value| value.starts_with(b"k8s:enc:aesgcm:v1:one:")));
    assert!(!raw.is_empty());
    // Another key in front: an update without a change writes, once.
    let second = format!("{{secretbox: {{keys: [{{name: two, secret: {KEY_2}}}]}}}}, {first}");
    let server = api(dir.path(), &second).await;
    let old = server.get(&format!("{SECRETS}/s")).await.ok();
    assert_eq!(old["data"]["k"], "aGlkZGVu");
    let anew = server.put(&format!("{SECRETS}/s"), old.clone()).await.ok();
    assert_ne!(anew["metadata"]["resourceVersion"], old["metadata"]["resourceVersion"]);
    let same = server.put(&format!("{SECRETS}/s"), anew.clone()).await.ok();
    assert_eq!(same["metadata"]["resourceVersion"], anew["metadata"]["resourceVersion"]);
    let Api { server, service } = server;
    drop(service);
    server.stop().await;
    let raw = stored(dir.path(), "secrets").await;
    assert!(raw.iter().any(|value| value.starts_with(b"k8s:enc:secretbox:v1:two:")));
    // Without the keys: reading fails with the reason, and only who may and means it removes what is there.
    let third = format!("{{aescbc: {{keys: [{{name: three, secret: {KEY_1}}}]}}}}, {{identity: {{}}}}");
    let server = api(dir.path(), &third).await;
    let at = format!("{SECRETS}/s");
    server.get(&at).await.refused(
        500,
        "InternalError",
        "Internal error occurred: no matching prefix found",
    );
    let list = server.get(SECRETS).await;
    list.refused(
        500,
        "InternalError",
        "Internal error occurred: unable to transform key \"/registry/secrets/default/s\": no matching prefix found",
    );
    assert_eq!(server.merge(&at, json!({"data": {"k": "eA=="}})).await.code, 500);
    assert_eq!(server.delete(&at).await.code, 500);
    let unsafely =
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "ignoreStoreReadErrorWithClusterBreakingPotential": true});
    server
        .send("DELETE", &at, "application/json", unsafely.to_string())
        .await
        .ok();
    assert_eq!(server.get(&at).await.code, 404);
    server.get(SECRETS).await.ok();
    let Api { server, service } = server;
    drop(service);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_configuration_what_is_encrypted_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let providers = format!("{{aesgcm: {{keys: [{{name: one, secret: {KEY_1}}}]}}}}");
    let server = api(dir.path(), &providers).await;
    let secret = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}});
    server.post(SECRETS, secret).await.ok();
    server.stop().await;
    let server = Api::of(
        TestServer::start_in_with(&dir.path().join("server"), |_| {})
            .await
            .unwrap(),
    );
    const WHY: &str = "identity transformer tried to read encrypted data";
    let at = format!("{SECRETS}/s");
    server
        .get(&at)
        .await
        .refused(500, "InternalError", &format!("Internal error occurred: {WHY}"));
    let listed = server.get(SECRETS).await;
    assert!(listed.code == 500 && listed.message().ends_with(WHY), "{}", listed.body);
    assert_eq!(server.merge(&at, json!({"data": {"k": "eA=="}})).await.code, 500);
    server.stop().await;
    // It is as it was.
    let server = api(dir.path(), &providers).await;
    server.get(&at).await.ok();
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = configured(dir.path(), "{aesgcm: {keys: [{name: one, secret: c2hvcnQ=}]}}");
    let error = TestServer::start_with(|config| config.encryption = Some(source))
        .await
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(text.contains("secret is not of the expected length, got 5"), "{text}");
    assert!(!text.contains("c2hvcnQ"), "{text}");
}
