//! A KMS plug-in of version 2 in a process of its own: this test program, started anew with a socket to serve. What it
//! answers is in a file, so that it can be changed while it runs.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

/// Says to this program that it is the plug-in, and where.
const SOCKET: &str = "SAMPAN_E2E_KMS_SOCKET";

pub struct Plugin {
    pub socket: PathBuf,
    dir: PathBuf,
    child: Option<Child>,
}

impl Plugin {
    pub fn start(dir: &Path) -> Plugin {
        let mut plugin = Plugin {
            socket: dir.join("kms.sock"),
            dir: dir.into(),
            child: None,
        };
        plugin.control("key-1", "ok", 0);
        plugin.run();
        plugin
    }

    /// From now on: its key, what it does (`ok` or otherwise), and how long it takes.
    pub fn control(&self, key: &str, mode: &str, delay: u64) {
        let fresh = self.dir.join("control.new");
        fs::write(&fresh, format!("{key}\n{mode}\n{delay}")).unwrap();
        fs::rename(fresh, self.dir.join("control")).unwrap();
    }

    pub fn run(&mut self) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "plugin::serves", "--nocapture"])
            .env(SOCKET, &self.socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(&self.socket).is_err() {
            assert!(Instant::now() < deadline, "the plug-in does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// How often it was asked.
    pub fn calls(&self, method: &str) -> usize {
        let log = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        log.lines().filter(|line| line.ends_with(method)).count()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Encrypted {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Decrypt {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Plain {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
}

struct Control {
    key: String,
    mode: String,
    delay: Duration,
}

fn control(dir: &Path) -> Control {
    let text = fs::read_to_string(dir.join("control")).unwrap();
    let mut lines = text.lines();
    let mut next = || lines.next().unwrap_or_default().to_owned();
    Control {
        key: next(),
        mode: next(),
        delay: Duration::from_millis(next().parse().unwrap_or_default()),
    }
}

/// What of a seed is kept by others: good enough for a test.
fn scramble(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().rev().map(|byte| byte ^ 0x5a).collect()
}

fn answer(control: &Control, method: &str, message: &[u8]) -> Result<Vec<u8>, &'static str> {
    Ok(match method {
        "Status" => Status {
            version: if control.mode == "old" { "v1beta1" } else { "v2" }.into(),
            healthz: if control.mode == "ill" { "out for lunch" } else { "ok" }.into(),
            key_id: control.key.clone(),
        }
        .encode_to_vec(),
        "Encrypt" => {
            let plain = Plain::decode(message).map_err(|_| "3")?;
            Encrypted {
                ciphertext: match control.mode.as_str() {
                    "no-seed" => Vec::new(),
                    _ => scramble(&plain.plaintext),
                },
                key_id: match control.mode.as_str() {
                    "other-key" => "another".into(),
                    _ => control.key.clone(),
                },
                annotations: match control.mode.as_str() {
                    "bad-annotation" => [("nodots".to_owned(), Vec::new())].into(),
                    _ => [("version.example.org".to_owned(), b"1".to_vec())].into(),
                },
            }
            .encode_to_vec()
        }
        "Decrypt" => {
            let asked = Decrypt::decode(message).map_err(|_| "3")?;
            if control.mode == "only" && asked.key_id != control.key {
                return Err("5");
            }
            Plain {
                plaintext: scramble(&asked.ciphertext),
            }
            .encode_to_vec()
        }
        _ => return Err("12"),
    })
}

/// The plug-in itself, if this program was started as one.
#[test]
fn serves() {
    let Some(socket) = std::env::var_os(SOCKET).map(PathBuf::from) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let tasks = tokio::task::LocalSet::new();
    runtime.block_on(tasks.run_until(async move {
        // A plug-in that died leaves its socket behind.
        let _absent = fs::remove_file(&socket);
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let dir = socket.parent().unwrap().to_owned();
        while let Ok((stream, _)) = listener.accept().await {
            let dir = dir.clone();
            tokio::task::spawn_local(async move {
                let service =
                    hyper::service::service_fn(move |request: Request<Incoming>| respond(dir.clone(), request));
                let _ended = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }));
}

async fn respond(
    dir: PathBuf,
    request: Request<Incoming>,
) -> Result<Response<StreamBody<impl futures::Stream<Item = Result<Frame<bytes::Bytes>, Infallible>>>>, http::Error> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let mut log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("calls"))
        .unwrap();
    writeln!(log, "{method}").unwrap();
    let control = control(&dir);
    tokio::time::sleep(control.delay).await;
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => bytes::Bytes::new(),
    };
    let (status, message) = match answer(&control, &method, body.get(5..).unwrap_or_default()) {
        Ok(message) => ("0", message),
        Err(code) => (code, Vec::new()),
    };
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or_default());
    framed.put_slice(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let frames = [Ok(Frame::data(framed.freeze())), Ok(Frame::trailers(trailers))];
    Response::builder()
        .header("content-type", "application/grpc")
        .body(StreamBody::new(futures::stream::iter(frames)))
}
