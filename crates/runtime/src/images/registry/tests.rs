//! Pulls against a small registry of our own on loopback, which can misbehave on purpose, and against
//! Debian's `docker-registry` in the integration tests.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use sampan_tasks::{OnExit, Tasks};
use serde_json::json;

use super::*;
use crate::testing::{Tar, TestImage, digest};

/// What the registry does beyond answering.
#[derive(Clone, Copy, Default, PartialEq)]
enum Mischief {
    #[default]
    None,
    /// Ends the first transfers of a layer halfway.
    CutShort,
    /// Sends other bytes than asked for.
    WrongBytes,
    /// Wants a bearer token, for `user` and `secret`.
    Token,
    /// Wants basic authentication.
    Basic,
}

struct Fake {
    blobs: HashMap<String, Vec<u8>>,
    mischief: Mischief,
    cuts: AtomicU32,
    address: String,
}

type Answer = Response<Full<Bytes>>;

fn answer(status: u16, body: impl Into<Bytes>) -> Answer {
    Response::builder().status(status).body(Full::new(body.into())).unwrap()
}

fn serve_one(fake: &Fake, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let sent = request
        .headers()
        .get("authorization")
        .map(|v| v.to_str().unwrap().to_owned());
    let pair = "Basic dXNlcjpzZWNyZXQ="; // user:secret
    if path == "/token" {
        assert!(
            request
                .uri()
                .query()
                .unwrap()
                .contains("scope=repository%3Ateam%2Fapp%3Apull")
        );
        return match sent.as_deref() == Some(pair) {
            true => answer(200, r#"{"token":"t0ken"}"#),
            false => answer(401, ""),
        };
    }
    let (wanted, challenge) = match fake.mischief {
        Mischief::Token => {
            let realm = format!("http://{}/token", fake.address);
            ("Bearer t0ken", format!("Bearer realm=\"{realm}\",service=\"s\""))
        }
        Mischief::Basic => (pair, "Basic realm=\"r\"".to_owned()),
        _ => ("", String::new()),
    };
    if !wanted.is_empty() && sent.as_deref() != Some(wanted) {
        let mut reply = answer(401, "");
        reply
            .headers_mut()
            .insert("www-authenticate", challenge.parse().unwrap());
        return reply;
    }
    let Some(content) = fake.blobs.get(path.rsplit('/').next().unwrap()) else {
        let message = json!({"errors": [{"message": "manifest unknown"}]}).to_string();
        return answer(404, message);
    };
    if !path.contains("/blobs/") {
        return answer(200, content.clone());
    }
    let mut content = content.clone();
    if fake.mischief == Mischief::WrongBytes {
        content[0] ^= 1;
    }
    let range = request.headers().get("range").map(|v| v.to_str().unwrap().to_owned());
    let from: usize = range.map_or(0, |r| {
        r.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
    });
    let status = if from > 0 { 206 } else { 200 };
    let end = match fake.mischief {
        Mischief::CutShort if fake.cuts.fetch_add(1, Ordering::SeqCst) < 2 => from + (content.len() - from) / 2,
        _ => content.len(),
    };
    answer(status, content[from..end].to_vec())
}

use hyper::body::Incoming;

async fn start(image: &TestImage, mischief: Mischief, tasks: &Tasks) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut blobs = HashMap::from([
        ("v1".to_owned(), image.manifest.clone()),
        (digest(&image.manifest), image.manifest.clone()),
        (digest(&image.config), image.config.clone()),
    ]);
    for layer in &image.layers {
        blobs.insert(digest(layer), layer.clone());
    }
    let index = json!({"schemaVersion": 2, "manifests": [
        {"digest": digest(b"none"), "platform": {"os": "linux", "architecture": "none"}},
        {"digest": digest(&image.manifest),
         "platform": {"os": "linux", "architecture": manifest::architecture()}},
    ]});
    blobs.insert("multi".to_owned(), serde_json::to_vec(&index).unwrap());
    let fake = Arc::new(Fake {
        blobs,
        mischief,
        cuts: AtomicU32::new(0),
        address: address.clone(),
    });
    let inner = tasks.clone();
    tasks.spawn_until_drain("registry", OnExit::Expected, async move {
        while let Ok((stream, _)) = listener.accept().await {
            let fake = fake.clone();
            let service = service_fn(move |request| {
                let reply = serve_one(&fake, request);
                async move { Ok::<_, Infallible>(reply) }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
            inner.spawn("connection", OnExit::Expected, async move {
                let _client_may_leave = connection.await;
            });
        }
    });
    address
}

fn image() -> TestImage {
    let one = Tar::new().file("a", &[1; 100_000]).finish();
    let two = Tar::new().file("b", &[2; 50_000]).finish();
    TestImage::new(vec![one, two], json!({"Cmd": ["x"]}))
}

async fn pull(
    mischief: Mischief,
    tag: &str,
    auth: Option<RegistryAuth>,
) -> (Result<String>, Arc<ImageStore>, tempfile::TempDir, PullProgress) {
    let tasks = Tasks::new();
    let address = start(&image(), mischief, &tasks).await;
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(ImageStore::open(dir.path()).unwrap());
    let registry = Registry::new(&RegistryConfig::default()).unwrap();
    let reference: Reference = format!("{address}/team/app{tag}").parse().unwrap();
    let last = Arc::new(Mutex::new(PullProgress::default()));
    let seen = last.clone();
    let progress: PullProgressFn = Arc::new(move |p| *seen.lock().unwrap() = p);
    let pulled = registry.pull(&store, &reference, auth.as_ref(), Some(progress)).await;
    tasks.drain().start();
    let last = last.lock().unwrap().clone();
    (pulled, store, dir, last)
}

fn secret(password: &str) -> Option<RegistryAuth> {
    Some(RegistryAuth {
        username: "user".into(),
        password: password.into(),
        ..RegistryAuth::default()
    })
}

#[tokio::test]
async fn images_are_pulled_by_tag_index_and_digest() {
    let by_digest = format!("@{}", digest(&image().manifest));
    for tag in [":v1", ":multi", &by_digest] {
        let (pulled, store, _dir, progress) = pull(Mischief::None, tag, None).await;
        let id = pulled.unwrap();
        let found = store.get(&id).unwrap().unwrap();
        assert_eq!(found.repo_digests.len(), 1);
        assert_eq!(found.repo_tags.len(), usize::from(!tag.starts_with('@')));
        assert_eq!((progress.layers, progress.layers_done), (2, 2));
        assert_eq!(progress.bytes, progress.bytes_done);
        assert_eq!(std::fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn broken_transfers_go_on_where_they_stopped() {
    let (pulled, _store, _dir, progress) = pull(Mischief::CutShort, ":v1", None).await;
    pulled.unwrap();
    assert_eq!(progress.bytes, progress.bytes_done, "no byte is counted twice");
}

#[tokio::test]
async fn authentication_by_token_and_basic_and_its_refusal() {
    for mischief in [Mischief::Token, Mischief::Basic] {
        assert!(pull(mischief, ":v1", secret("secret")).await.0.is_ok());
        for wrong in [secret("wrong"), None] {
            let error = pull(mischief, ":v1", wrong).await.0.unwrap_err();
            assert!(matches!(error, ImageError::Refused { .. }), "{error}");
            assert!(error.to_string().contains("imagePullSecrets"), "{error}");
        }
    }
}

#[tokio::test]
async fn wrong_bytes_absent_images_and_silent_registries_are_told_apart() {
    let (pulled, store, ..) = pull(Mischief::WrongBytes, ":v1", None).await;
    assert!(matches!(pulled, Err(ImageError::Digest { .. })), "{pulled:?}");
    assert!(store.list().unwrap().is_empty());

    let error = pull(Mischief::None, ":nope", None).await.0.unwrap_err().to_string();
    assert!(
        error.contains("not found") && error.contains("manifest unknown"),
        "{error}"
    );

    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(ImageStore::open(dir.path()).unwrap());
    let registry = Registry::new(&RegistryConfig::default()).unwrap();
    let nobody: Reference = "127.0.0.1:1/a:b".parse().unwrap();
    let error = registry.pull(&store, &nobody, None, None).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
}
