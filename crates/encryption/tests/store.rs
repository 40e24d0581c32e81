//! A store whose values are encrypted, over a real one: what is on the disk, keys that change, and a KMS plug-in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use sampan_encryption::{Encrypted, GroupResource, Resources, Source};
use sampan_store::backup::Backup;
use sampan_store::embedded::{Embedded, Options};
use sampan_store::{Change, Condition, Error, Op, Store, Update, Write, Written, why_unreadable};
use sampan_tasks::{OnExit, Tasks};

const SECRET: &str = "/registry/secrets/default/a";
const PLAIN: &str = "/registry/pods/default/a";
const PATIENCE: Duration = Duration::from_secs(20);
const KEY_1: &str = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=";
const KEY_2: &str = "NjU0MzIxenl4d3Z1dHNycXBvbm1sa2ppaGdmZWRjYmE=";

fn resources() -> Resources {
    Arc::new(|key| {
        let resource = key.strip_prefix("/registry/")?.split('/').next()?;
        (resource != "sampan").then(|| GroupResource::new("", resource))
    })
}

struct World {
    dir: tempfile::TempDir,
    below: Arc<Embedded>,
    tasks: Tasks,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let below = Embedded::open(&dir.path().join("store"), Options::default()).unwrap();
        World {
            dir,
            below,
            tasks: Tasks::new(),
        }
    }

    fn configure(&self, providers: &str) -> PathBuf {
        let path = self.dir.path().join("encryption.yaml");
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: [{providers}]\n"
        );
        let fresh = self.dir.path().join("encryption.new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, &path).unwrap();
        path
    }

    async fn open(&self, providers: &str, reload: bool) -> Arc<Encrypted> {
        let source = Source {
            path: self.configure(providers),
            reload: reload.then_some(Duration::from_millis(20)),
        };
        Encrypted::open(source, self.below.clone(), resources(), &self.tasks)
            .await
            .unwrap()
    }

    async fn raw(&self, key: &str) -> Bytes {
        self.below.get(key).await.unwrap().unwrap().value
    }
}

fn keys(provider: &str, names: &[(&str, &str)]) -> String {
    let keys: Vec<_> = names
        .iter()
        .map(|(name, secret)| format!("{{name: {name}, secret: {secret}}}"))
        .collect();
    format!("{{{provider}: {{keys: [{}]}}}}", keys.join(", "))
}

async fn put(store: &dyn Store, key: &str, value: &'static str) {
    let write = Write {
        key: key.into(),
        condition: Condition::None,
        op: Op::Put {
            value: value.into(),
            lease: None,
        },
    };
    assert!(matches!(store.write(write).await.unwrap(), Written::Committed { .. }));
}

async fn got(store: &dyn Store, key: &str) -> Bytes {
    store.get(key).await.unwrap().unwrap().value
}

#[tokio::test]
async fn values_are_encrypted_below_and_plain_above() {
    for (provider, prefix) in [
        ("aesgcm", "k8s:enc:aesgcm:v1:one:"),
        ("aescbc", "k8s:enc:aescbc:v1:one:"),
        ("secretbox", "k8s:enc:secretbox:v1:one:"),
    ] {
        let world = World::new();
        let store = world
            .open(
                &format!("{}, {{identity: {{}}}}", keys(provider, &[("one", KEY_1)])),
                false,
            )
            .await;
        let mut watch = store.watch("/registry/", 0).await.unwrap();
        put(&*store, SECRET, r#"{"data":"hidden"}"#).await;
        put(&*store, PLAIN, r#"{"spec":"open"}"#).await;
        let raw = world.raw(SECRET).await;
        assert!(raw.starts_with(prefix.as_bytes()), "{provider}");
        assert!(!raw.windows(6).any(|window| window == b"hidden"));
        assert_eq!(world.raw(PLAIN).await, r#"{"spec":"open"}"#);
        assert_eq!(got(&*store, SECRET).await, r#"{"data":"hidden"}"#);
        let page = store.range("/registry/", "/registry/\x7f", 0).await.unwrap();
        assert_eq!(page.entries[1].value, r#"{"data":"hidden"}"#);
        let update = watch.recv().await.unwrap().unwrap();
        let Update::Event { event, .. } = update else {
            panic!("{update:?}")
        };
        assert!(matches!(event.change, Change::Put(put) if put.value == r#"{"data":"hidden"}"#));
        // A refused write tells what is there.
        let write = Write {
            key: SECRET.into(),
            condition: Condition::ModRevision(0),
            op: Op::Delete,
        };
        let Written::Refused { current, .. } = store.write(write).await.unwrap() else {
            panic!()
        };
        assert_eq!(current.unwrap().value, r#"{"data":"hidden"}"#);
        // Backups are of what is on the disk.
        let backup = Backup::of(&**store.below().unwrap()).await.unwrap();
        assert!(backup.entries.iter().any(|entry| entry.value == raw));
        assert!(!store.is_stale(SECRET).await.unwrap());
        world.tasks.drain().start();
    }
}

#[tokio::test]
async fn keys_are_changed_as_upstream_says() {
    let world = World::new();
    put(&*world.below, SECRET, r#"{"old":1}"#).await;
    // What was written before encryption is read by identity and is stale.
    let store = world
        .open(
            &format!("{}, {{identity: {{}}}}", keys("aesgcm", &[("one", KEY_1)])),
            true,
        )
        .await;
    assert_eq!(got(&*store, SECRET).await, r#"{"old":1}"#);
    assert!(store.is_stale(SECRET).await.unwrap());
    put(&*store, SECRET, r#"{"old":1}"#).await;
    assert!(!store.is_stale(SECRET).await.unwrap());
    // A new key before the old one: the server follows the file.
    world.configure(&keys("aesgcm", &[("two", KEY_2), ("one", KEY_1)]));
    let mut left = 500;
    while !store.is_stale(SECRET).await.unwrap() {
        left -= 1;
        assert!(left > 0, "the new configuration was not taken up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(got(&*store, SECRET).await, r#"{"old":1}"#);
    put(&*store, SECRET, r#"{"old":1}"#).await;
    assert!(world.raw(SECRET).await.starts_with(b"k8s:enc:aesgcm:v1:two:"));
    // A wrong one changes nothing and is counted.
    world.configure("{aesgcm: {keys: []}}");
    let mut metrics = String::new();
    while !metrics.contains("reloads_total{status=\"failure\"} 1") {
        left -= 1;
        assert!(left > 0, "{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        metrics.clear();
        store.metrics(&mut metrics);
    }
    assert_eq!(got(&*store, SECRET).await, r#"{"old":1}"#);
    world.tasks.drain().start();
}

#[tokio::test]
async fn what_cannot_be_decrypted_says_why_until_it_can() {
    let world = World::new();
    {
        let store = world.open(&keys("aescbc", &[("one", KEY_1)]), false).await;
        put(&*store, SECRET, r#"{"a":1}"#).await;
    }
    // Another key of another name, then none at all, then a moved value.
    let store = world.open(&keys("aescbc", &[("two", KEY_2)]), true).await;
    let why = got(&*store, SECRET).await;
    assert_eq!(
        why_unreadable(&why),
        Some("no matching key was found for the provided AES transformer")
    );
    let other = world.open(&keys("secretbox", &[("one", KEY_2)]), false).await;
    assert_eq!(
        why_unreadable(&got(&*other, SECRET).await),
        Some("no matching prefix found")
    );
    let plain = world.open("{identity: {}}", false).await;
    assert_eq!(
        why_unreadable(&got(&*plain, SECRET).await),
        Some("no matching prefix found")
    );
    // Once it can be read, whoever watches begins anew.
    let mut watch = store.watch("/registry/", 1).await.unwrap();
    let _unread = got(&*store, SECRET).await;
    world.configure(&keys("aescbc", &[("two", KEY_2), ("one", KEY_1)]));
    let end = tokio::time::timeout(PATIENCE, async {
        loop {
            match watch.recv().await {
                Some(Err(error)) => return error,
                Some(Ok(_)) => {}
                None => panic!("the watch ended"),
            }
        }
    });
    assert!(matches!(end.await.unwrap(), Error::Moved));
    assert_eq!(got(&*store, SECRET).await, r#"{"a":1}"#);
    world.tasks.drain().start();
}

/// A plug-in that turns bytes around and says which key it has.
#[derive(Clone, Default)]
struct Plugin {
    key: Arc<Mutex<String>>,
    healthy: Arc<Mutex<bool>>,
}

#[derive(Clone, PartialEq, Message)]
struct Text3 {
    #[prost(string, tag = "1")]
    one: String,
    #[prost(string, tag = "2")]
    two: String,
    #[prost(string, tag = "3")]
    three: String,
}
#[derive(Clone, PartialEq, Message)]
struct First {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
}
#[derive(Clone, PartialEq, Message)]
struct Sealed {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
    #[prost(string, tag = "2")]
    text: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    annotations: BTreeMap<String, Vec<u8>>,
}

impl Plugin {
    fn answer(&self, path: &str, message: &[u8]) -> Vec<u8> {
        let key = self.key.lock().unwrap().clone();
        match path {
            "/v2.KeyManagementService/Status" => Text3 {
                one: "v2".into(),
                two: if *self.healthy.lock().unwrap() {
                    "ok"
                } else {
                    "out for lunch"
                }
                .into(),
                three: key,
            }
            .encode_to_vec(),
            "/v2.KeyManagementService/Encrypt" => {
                let mut sealed = Sealed::decode(message).unwrap();
                sealed.bytes.reverse();
                sealed.text = key;
                sealed.annotations = [("version.example.org".to_owned(), b"1".to_vec())].into();
                sealed.encode_to_vec()
            }
            _ => {
                let mut bytes = First::decode(message).map(|first| first.bytes).unwrap_or_default();
                bytes.reverse();
                Sealed {
                    bytes,
                    ..Sealed::default()
                }
                .encode_to_vec()
            }
        }
    }

    fn serve(&self, socket: &Path, tasks: &Tasks) {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let (plugin, spawner) = (self.clone(), tasks.clone());
        tasks.spawn_until_drain("plugin", OnExit::Expected, async move {
            while let Ok((stream, _)) = listener.accept().await {
                let plugin = plugin.clone();
                spawner.spawn_until_drain("plugin-connection", OnExit::Expected, async move {
                    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                        let plugin = plugin.clone();
                        async move {
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let answer = plugin.answer(&path, body.get(5..).unwrap_or_default());
                            let mut framed = BytesMut::new();
                            framed.put_u8(0);
                            framed.put_u32(u32::try_from(answer.len()).unwrap());
                            framed.put_slice(&answer);
                            let mut trailers = HeaderMap::new();
                            trailers.insert("grpc-status", HeaderValue::from_static("0"));
                            let frames = [
                                Ok::<_, std::convert::Infallible>(Frame::data(framed.freeze())),
                                Ok(Frame::trailers(trailers)),
                            ];
                            Response::builder()
                                .header("content-type", "application/grpc")
                                .body(StreamBody::new(stream::iter(frames)))
                        }
                    });
                    let _ended = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    }
}

#[tokio::test]
async fn a_plugin_keeps_the_key() {
    let world = World::new();
    let socket = world.dir.path().join("kms.sock");
    let kms = format!(
        "{{kms: {{apiVersion: v2, name: mine, endpoint: 'unix://{}', timeout: 2s}}}}, {{identity: {{}}}}",
        socket.display()
    );
    // Without the plug-in there are no writes, and what is there is read.
    put(&*world.below, SECRET, r#"{"a":1}"#).await;
    let store = world.open(&kms, false).await;
    store.health().await.unwrap();
    let checks = store.checks();
    assert!(checks[0].0 == "kms-provider-0" && checks[0].1.is_err(), "{checks:?}");
    assert_eq!(got(&*store, SECRET).await, r#"{"a":1}"#);
    let write = Write {
        key: SECRET.into(),
        condition: Condition::None,
        op: Op::Put {
            value: "x".into(),
            lease: None,
        },
    };
    assert!(matches!(
        store.write(write).await,
        Err(Error::Engine { action: "encrypt", .. })
    ));
    let plugin = Plugin::default();
    *plugin.key.lock().unwrap() = "key-1".into();
    *plugin.healthy.lock().unwrap() = true;
    plugin.serve(&socket, &world.tasks);
    let store = world.open(&kms, false).await;
    assert_eq!(store.checks(), [("kms-provider-0".to_owned(), Ok(()))]);
    put(&*store, SECRET, r#"{"a":"hidden"}"#).await;
    let raw = world.raw(SECRET).await;
    assert!(raw.starts_with(b"k8s:enc:kms:v2:mine:"));
    assert!(!raw.windows(6).any(|window| window == b"hidden"));
    assert!(!store.is_stale(SECRET).await.unwrap());
    // Another server, with another seed and another key: it reads, and would write differently.
    *plugin.key.lock().unwrap() = "key-2".into();
    let other = world.open(&kms, false).await;
    assert_eq!(got(&*other, SECRET).await, r#"{"a":"hidden"}"#);
    assert!(other.is_stale(SECRET).await.unwrap());
    // Values do not move to other keys.
    put(&*world.below, "/registry/secrets/default/b", "x").await;
    let moved = Write {
        key: "/registry/secrets/default/b".into(),
        condition: Condition::None,
        op: Op::Put {
            value: raw,
            lease: None,
        },
    };
    world.below.write(moved).await.unwrap();
    let why = got(&*other, "/registry/secrets/default/b").await;
    assert_eq!(why_unreadable(&why), Some("cipher: message authentication failed"));
    // A plug-in that is not well is said so.
    *plugin.healthy.lock().unwrap() = false;
    let third = world.open(&kms, false).await;
    let health = third.checks().remove(0).1.unwrap_err();
    assert!(
        health.contains("got unexpected healthz status: out for lunch"),
        "{health}"
    );
    world.tasks.drain().start();
}
