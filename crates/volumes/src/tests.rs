//! Whole-volume tests. Those that mount say so and are skipped without the privilege.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use serde_json::{Value, json};

use crate::{FakeSources, NodeFacts, Volumes, mounts};

fn pod(security: Value, volumes: Value) -> Pod {
    let mounts: Vec<Value> = volumes
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| json!({"name": volume["name"], "mountPath": format!("/{}", volume["name"].as_str().unwrap())}))
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u-1", "labels": {"a": "b"}},
        "spec": {"securityContext": security, "serviceAccountName": "sa", "volumes": volumes,
            "containers": [{"name": "c", "volumeMounts": mounts}]}
    }))
    .unwrap()
}

fn set_config_map(sources: &FakeSources, name: &str, data: Value) {
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap();
    let key = ("n".to_owned(), name.to_owned());
    sources.config_maps.lock().unwrap().insert(key, map);
}

fn set_secret(sources: &FakeSources, name: &str, data: Value) {
    let secret: Secret = serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap();
    let key = ("n".to_owned(), name.to_owned());
    sources.secrets.lock().unwrap().insert(key, secret);
}

fn can_mount(dir: &Path) -> bool {
    let at = dir.join("probe");
    fs::create_dir(&at).unwrap();
    let can = mounts::mount_new("tmpfs", &at, "").is_ok();
    if can {
        mounts::unmount(&at).unwrap();
    } else {
        println!("skipped: mounting needs root");
    }
    can
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn a_config_map_volume_follows_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let sources = Arc::new(FakeSources::default());
    let volumes = Volumes::new(dir.path(), sources.clone());
    let pod = pod(
        json!({}),
        json!([{"name": "v", "configMap": {"name": "cm", "defaultMode": 0o400,
            "items": [{"key": "k", "path": "sub/file", "mode": 0o440}, {"key": "l", "path": "l"}]}}]),
    );
    let facts = NodeFacts::default();
    let got = volumes.prepare(&pod, &facts).await;
    assert_eq!(got.failed[0].1.to_string(), "configmap \"cm\" not found");

    set_config_map(&sources, "cm", json!({"k": "1"}));
    let got = volumes.prepare(&pod, &facts).await;
    assert_eq!(got.failed[0].1.to_string(), "references non-existent config key: l");

    set_config_map(&sources, "cm", json!({"k": "1", "l": "2", "other": "x"}));
    let got = volumes.prepare(&pod, &facts).await;
    assert!(got.failed.is_empty(), "{:?}", got.failed);
    let root = got.volumes["v"].host_path.clone();
    assert!(got.volumes["v"].read_only);
    assert_eq!(fs::read_to_string(root.join("sub/file")).unwrap(), "1");
    assert_eq!(mode(&root.join("sub/file")), 0o440);
    assert_eq!(mode(&root.join("l")), 0o400);
    assert_eq!(mode(&root), 0o777);
    assert!(!root.join("other").exists());

    set_config_map(&sources, "cm", json!({"k": "new", "l": "2"}));
    volumes.update(&pod, &facts).await;
    assert_eq!(fs::read_to_string(root.join("sub/file")).unwrap(), "new");

    assert_eq!(volumes.reconstruct().await.unwrap()[0].uid, "u-1");
    volumes.teardown("u-1").await.unwrap();
    volumes.teardown("u-1").await.unwrap();
    assert!(volumes.reconstruct().await.unwrap().is_empty());
    assert!(volumes.teardown("../x").await.is_err());
}

#[tokio::test]
async fn optional_sources_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let sources = Arc::new(FakeSources::default());
    let volumes = Volumes::new(dir.path(), sources.clone());
    let pod = pod(
        json!({}),
        json!([{"name": "v", "configMap": {"name": "cm", "optional": true}}]),
    );
    let facts = NodeFacts::default();
    let got = volumes.prepare(&pod, &facts).await;
    assert!(got.failed.is_empty());
    let root = got.volumes["v"].host_path.clone();
    set_config_map(&sources, "cm", json!({"k": "1"}));
    volumes.prepare(&pod, &facts).await;
    assert!(root.join("k").exists());
    sources.config_maps.lock().unwrap().clear();
    volumes.prepare(&pod, &facts).await;
    assert!(!root.join("k").exists());
}

#[tokio::test]
async fn projected_on_tmpfs_with_token_rules() {
    let dir = tempfile::tempdir().unwrap();
    if !can_mount(dir.path()) {
        return;
    }
    let sources = Arc::new(FakeSources::default());
    set_secret(&sources, "s", json!({"password": "aHVudGVyMg=="}));
    set_config_map(&sources, "ca", json!({"ca.crt": "CA"}));
    let projected = json!([{"name": "all", "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607, "audience": "aud"}},
        {"configMap": {"name": "ca"}},
        {"secret": {"name": "s", "items": [{"key": "password", "path": "pw/x"}]}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "requests.cpu"}}]}}
    ]}}]);
    let facts = NodeFacts::default();
    for (security, token_mode, other_mode, group) in [
        (json!({}), 0o644, 0o644, None),
        (json!({"fsGroup": 4321}), 0o640, 0o644, Some(4321)),
        (json!({"runAsUser": 1234}), 0o600, 0o644, None),
    ] {
        let volumes = Volumes::new(dir.path(), sources.clone());
        let pod = pod(security.clone(), projected.clone());
        let got = volumes.prepare(&pod, &facts).await;
        assert!(got.failed.is_empty(), "{:?}", got.failed);
        assert!(got.refresh_at.is_some());
        let root = &got.volumes["all"].host_path;
        assert_eq!(mounts::at(root).unwrap().unwrap().kind, "tmpfs");
        assert!(fs::read_to_string(root.join("token")).unwrap().starts_with("token-sa"));
        assert_eq!(mode(&root.join("token")), token_mode, "{security}");
        assert_eq!(mode(&root.join("ca.crt")), other_mode, "{security}");
        assert_eq!(fs::read_to_string(root.join("pw/x")).unwrap(), "hunter2");
        assert_eq!(fs::read_to_string(root.join("labels")).unwrap(), "a=\"b\"");
        assert_eq!(fs::read_to_string(root.join("cpu")).unwrap(), "0");
        if let Some(gid) = group {
            assert_eq!(fs::metadata(root.join("token")).unwrap().gid(), gid);
            assert_eq!(fs::metadata(root).unwrap().gid(), gid);
        }
        if security.get("runAsUser").is_some() {
            assert_eq!(fs::metadata(root.join("token")).unwrap().uid(), 1234);
        }
        volumes.teardown("u-1").await.unwrap();
        assert!(mounts::below(dir.path()).unwrap().is_empty());
    }
    let issued = sources.tokens_issued.lock().unwrap();
    assert_eq!(issued[0].audiences, Some(vec!["aud".to_owned()]));
    let bound = issued[0].bound_object_ref.as_ref().unwrap();
    assert_eq!(bound.uid.as_deref(), Some("u-1"));
}

#[tokio::test]
async fn empty_dirs_of_every_medium() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = Volumes::new(dir.path(), Arc::new(FakeSources::default()));
    let on_disk = pod(json!({"fsGroup": 77}), json!([{"name": "d", "emptyDir": {}}]));
    let facts = NodeFacts::default();
    let got = volumes.prepare(&on_disk, &facts).await;
    assert!(got.failed.is_empty(), "{:?}", got.failed);
    let root = got.volumes["d"].host_path.clone();
    assert_eq!(mode(&root), 0o2777);
    assert_eq!(fs::metadata(&root).unwrap().gid(), 77);
    fs::write(root.join("kept"), "x").unwrap();
    volumes.prepare(&on_disk, &facts).await;
    assert!(root.join("kept").exists());
    fs::write(root.join("big"), vec![1u8; 1 << 20]).unwrap();
    let usage = volumes.empty_dir_usage("u-1", "d").await.unwrap();
    assert!((1 << 20..2 << 20).contains(&usage), "{usage}");
    volumes.teardown("u-1").await.unwrap();

    let unknown = pod(json!({}), json!([{"name": "d", "emptyDir": {"medium": "Paper"}}]));
    let got = volumes.prepare(&unknown, &facts).await;
    assert_eq!(got.failed[0].1.to_string(), "unknown storage medium \"Paper\"");
    let huge = pod(json!({}), json!([{"name": "d", "emptyDir": {"medium": "HugePages"}}]));
    let got = volumes.prepare(&huge, &facts).await;
    assert!(got.failed[0].1.to_string().contains("no resource request"));

    if !can_mount(dir.path()) {
        return;
    }
    let memory = pod(
        json!({}),
        json!([{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]),
    );
    let got = volumes.prepare(&memory, &facts).await;
    assert!(got.failed.is_empty(), "{:?}", got.failed);
    let root = got.volumes["m"].host_path.clone();
    assert_eq!(mode(&root), 0o1777);
    assert!(fs::write(root.join("big"), vec![0u8; 2 << 20]).is_err());
    volumes.prepare(&memory, &facts).await;
    assert_eq!(mounts::below(&root).unwrap().len(), 1);
    volumes.teardown("u-1").await.unwrap();
}

#[tokio::test]
async fn claims_lead_to_their_volume() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let sources = Arc::new(FakeSources::default());
    let volumes = Volumes::new(dir.path().join("root"), sources.clone());
    let pod = pod(
        json!({"fsGroup": 99}),
        json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}}]),
    );
    let facts = NodeFacts::default();
    let claim = |phase: &str| -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "uid": "cu"},
            "spec": {"volumeName": "pv"}, "status": {"phase": phase}}))
        .unwrap()
    };
    let put = |claim| {
        let key = ("n".to_owned(), "c".to_owned());
        sources.claims.lock().unwrap().insert(key, claim);
    };
    put(claim("Pending"));
    let got = volumes.prepare(&pod, &facts).await;
    assert!(got.failed[0].1.to_string().contains("not bound"));
    put(claim("Bound"));
    let pv: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "pv"},
        "spec": {"local": {"path": data}, "claimRef": {"uid": "cu"}}}))
    .unwrap();
    sources.volumes.lock().unwrap().insert("pv".into(), pv);
    let got = volumes.prepare(&pod, &facts).await;
    assert!(got.failed.is_empty(), "{:?}", got.failed);
    assert_eq!(got.volumes["v"].host_path, data);
    assert!(got.volumes["v"].read_only);
    assert_eq!(fs::metadata(&data).unwrap().gid(), 99);
    // A teardown never touches what is outside the pod's directory.
    fs::write(data.join("precious"), "x").unwrap();
    volumes.teardown("u-1").await.unwrap();
    assert!(data.join("precious").exists());
}

#[tokio::test]
async fn sub_paths_are_bound_and_follow_updates() {
    let dir = tempfile::tempdir().unwrap();
    if !can_mount(dir.path()) {
        return;
    }
    let sources = Arc::new(FakeSources::default());
    set_config_map(&sources, "cm", json!({"k": "1"}));
    let volumes = Volumes::new(dir.path(), sources.clone());
    let pod = pod(
        json!({}),
        json!([{"name": "v", "configMap": {"name": "cm"}}, {"name": "e", "emptyDir": {}}]),
    );
    let facts = NodeFacts::default();
    let got = volumes.prepare(&pod, &facts).await;
    let file = volumes
        .sub_path("u-1", "c", 0, "v", &got.volumes["v"], "k")
        .await
        .unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "1");
    let made = volumes
        .sub_path("u-1", "c", 1, "e", &got.volumes["e"], "x/y")
        .await
        .unwrap();
    fs::write(made.join("f"), "z").unwrap();
    assert!(got.volumes["e"].host_path.join("x/y/f").exists());
    // A new container of the pod gets the new file; a running one keeps its old.
    set_config_map(&sources, "cm", json!({"k": "2"}));
    let got = volumes.prepare(&pod, &facts).await;
    assert_eq!(fs::read_to_string(&file).unwrap(), "1");
    let again = volumes
        .sub_path("u-1", "c", 0, "v", &got.volumes["v"], "k")
        .await
        .unwrap();
    assert_eq!(fs::read_to_string(&again).unwrap(), "2");
    let escape = volumes
        .sub_path("u-1", "c", 2, "v", &got.volumes["v"], "../../..")
        .await;
    assert!(escape.is_err());
    volumes.teardown("u-1").await.unwrap();
    assert!(mounts::below(dir.path()).unwrap().is_empty());
}

#[test]
fn nested_mount_points_are_found_once() {
    let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "volumeMounts": [
        {"name": "outer", "mountPath": "/etc/x"},
        {"name": "inner", "mountPath": "/etc/x/in"},
        {"name": "deeper", "mountPath": "/etc/x/in/deep"},
        {"name": "elsewhere", "mountPath": "/y"}]}]}}))
    .unwrap();
    assert_eq!(crate::plugins::nested_mount_points(&pod, "outer"), ["in"]);
    assert_eq!(crate::plugins::nested_mount_points(&pod, "inner"), ["deep"]);
}
