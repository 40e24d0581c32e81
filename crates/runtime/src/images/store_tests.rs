use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::testing::{Tar, TestImage};

fn image() -> TestImage {
    let one = Tar::new()
        .dir("etc", 0o755)
        .file("etc/passwd", b"app:x:7:8::/:/bin/sh\n")
        .finish();
    let two = Tar::new().file("etc/motd", b"hello").finish();
    TestImage::new(
        vec![one, two],
        json!({"Cmd": ["/bin/app"], "User": "7:8", "Env": ["A=b"]}),
    )
}

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path().join("images")).unwrap();
    (dir, store)
}

fn import(store: &ImageStore, archive: &[u8], name: Option<&str>) -> Result<Vec<String>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(archive).unwrap();
    store.import(file.path(), name)
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn both_kinds_of_archive_give_the_same_image_compressed_or_not() {
    let image = image();
    let zstd = zstd::encode_all(&image.oci_archive("web:2")[..], 1).unwrap();
    let (_dir, store) = store();
    for (archive, name) in [
        (image.oci_archive("quay.io/team/web:1"), "quay.io/team/web:1"),
        (image.docker_archive("web:1"), "docker.io/library/web:1"),
        (zstd, "docker.io/library/web:2"),
    ] {
        let ids = import(&store, &archive, None).unwrap();
        let found = store.get(name).unwrap().unwrap();
        assert_eq!(ids, std::slice::from_ref(&found.id));
        assert_eq!((found.uid, found.size), (Some(7), 26));
        assert_eq!(found.config.cmd, ["/bin/app"]);
    }
    assert_eq!(store.list().unwrap().len(), 1);
    let id = store.list().unwrap()[0].id.clone();
    assert!(store.get(&id).unwrap().is_some());
    assert!(store.get(&id[7..20]).unwrap().is_some());
    let layers = store.layer_dirs(&id).unwrap();
    assert_eq!(fs::read(layers[0].join("etc/motd")).unwrap(), b"hello");
    assert!(layers[1].join("etc/passwd").is_file());
}

#[test]
fn a_tag_moves_to_the_newer_image_and_layers_go_with_their_last_image() {
    let (_dir, store) = store();
    import(&store, &image().docker_archive("web:1"), None).unwrap();
    let mut other = image();
    other.layers.pop();
    let other = TestImage::new(other.layers, json!({"Cmd": ["/new"]}));
    import(&store, &other.docker_archive("x:1"), Some("web:1")).unwrap();
    let images = store.list().unwrap();
    assert_eq!(images.len(), 2);
    let old = images.iter().find(|i| i.config.cmd == ["/bin/app"]).unwrap();
    assert!(old.repo_tags.is_empty());
    assert_eq!(entries(&store.root().join("layers")), 2, "one layer is shared");

    let refused = store.remove(&old.id, |_| Some("c1".into())).unwrap_err();
    assert!(matches!(refused, ImageError::InUse { .. }), "{refused}");
    store.remove(&old.id, |_| None).unwrap();
    assert_eq!(entries(&store.root().join("layers")), 1);
    store.remove("web:1", |_| None).unwrap();
    assert_eq!(entries(&store.root().join("layers")), 0);
    assert_eq!(entries(&store.root().join("tmp")), 0);
    assert!(matches!(store.remove("web:1", |_| None), Err(ImageError::NotFound(_))));
}

#[test]
fn two_stores_on_one_directory_see_each_other() {
    let (_dir, first) = store();
    let second = ImageStore::open(first.root()).unwrap();
    import(&first, &image().docker_archive("web:1"), None).unwrap();
    assert!(second.get("web:1").unwrap().is_some());
    second.remove("web:1", |_| None).unwrap();
    assert!(first.list().unwrap().is_empty());
}

#[test]
fn bad_archives_leave_nothing() {
    let (_dir, store) = store();
    let good = image();
    let mut wrong_layer = image();
    wrong_layer.layers[1] = Tar::new().file("etc/motd", b"other").finish();
    let mut wrong_config = image();
    wrong_config.config.push(b' ');
    let evil = TestImage::new(vec![Tar::new().file("../x", b"").finish()], json!({}));
    let outside = json!([{"Config": "../../etc/passwd", "RepoTags": ["a:1"], "Layers": []}]);
    let outside = Tar::new().file("manifest.json", &serde_json::to_vec(&outside).unwrap());
    let leads_out = Tar::new().link("d", "/tmp").file("d/x", b"").finish();
    let cut = good.oci_archive("a:1");
    let table: [(&str, Vec<u8>, &str); 8] = [
        (
            "a layer with other content",
            wrong_layer.docker_archive("a:1"),
            "digest",
        ),
        // The manifest's digest names the configuration that is not there.
        ("another configuration", wrong_config.oci_archive("a:1"), "No such file"),
        ("a layer that escapes", evil.oci_archive("a:1"), "outside"),
        ("a document that names a file outside", outside.finish(), "outside"),
        ("an entry through a link", leads_out, "link"),
        ("an entry outside", Tar::new().file("../x", b"").finish(), "outside"),
        ("no archive", b"hello".to_vec(), "damaged"),
        ("an archive cut short", cut[..3000].to_vec(), ""),
    ];
    for (what, archive, says) in table {
        let error = import(&store, &archive, None).expect_err(what).to_string();
        assert!(error.contains(says), "{what}: {error}");
        assert!(store.list().unwrap().is_empty(), "{what}");
        assert_eq!(entries(&store.root().join("tmp")), 0, "{what}");
    }
    import(&store, &good.oci_archive("a:1"), None).unwrap();
}
