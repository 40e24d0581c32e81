//! The front against clients that mean no good, or know no better: every one of them is bounded, and the next is served.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::common::Api;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sampan_pki::tls;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

type Socket = TlsStream<TcpStream>;

const PATIENCE: Duration = Duration::from_secs(30);

/// A connection as the administrator, speaking `alpn`.
async fn connect(api: &Api, alpn: &str) -> Socket {
    let pki = &api.server.pki;
    let admin = pki.admin_client().unwrap();
    let config = tls::client_config(pki.ca(), Some(&admin), &[alpn]).unwrap();
    let stream = TcpStream::connect(api.server.address).await.unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
    tokio_rustls::TlsConnector::from(config)
        .connect(name, stream)
        .await
        .unwrap()
}

/// The server still answers.
async fn is_well(api: &Api) {
    let mut socket = connect(api, "http/1.1").await;
    socket
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let text = rest(&mut socket).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

/// Everything that comes until the end, however it ends.
async fn rest(socket: &mut Socket) -> String {
    let mut all = Vec::new();
    let _ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut all))
        .await
        .expect("the server ends the connection");
    String::from_utf8_lossy(&all).into_owned()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes
}

/// `GET https://x` of a path, as HPACK without a table.
fn get(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x01, 0x01, b'x', 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.as_bytes());
    block
}

/// Writes until the server has had enough or everything is sent; whether it had enough.
async fn pour(socket: Socket, pieces: impl Iterator<Item = Vec<u8>>) -> bool {
    let (mut reader, mut writer) = tokio::io::split(socket);
    let writing = async {
        writer.write_all(&preface()).await?;
        for piece in pieces {
            writer.write_all(&piece).await?;
        }
        writer.flush().await?;
        std::future::pending::<std::io::Result<()>>().await
    };
    let reading = async {
        let mut all = Vec::new();
        let mut buffer = [0; 16 << 10];
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => return true,
                Ok(read) => all.extend_from_slice(&buffer[..read]),
            }
        }
    };
    tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            closed = reading => closed,
            written = writing => written.is_err(),
        }
    })
    .await
    .unwrap_or(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_opened_and_reset_end_the_connection() {
    let api = Api::start().await;
    let flood = (0..200_000u32).map(|number| {
        let stream = number * 2 + 1;
        let mut both = frame(HEADERS, END_HEADERS | END_STREAM, stream, &get("/api/v1/pods"));
        both.extend(frame(RESET, 0, stream, &8u32.to_be_bytes()));
        both
    });
    assert!(pour(connect(&api, "h2").await, flood).await);
    is_well(&api).await;
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_an_end_end_the_connection() {
    let api = Api::start().await;
    let first = frame(HEADERS, END_STREAM, 1, &get("/"));
    // A literal header of a kilobyte, over and over, in frames that never say they are the last.
    let mut line = vec![0x00, 0x01, b'a', 0x7f, 0x81, 0x07];
    line.extend(vec![b'b'; 1024]);
    let block = line.repeat(8);
    let flood = std::iter::once(first).chain((0..10_000).map(move |_| frame(CONTINUATION, 0, 1, &block)));
    assert!(pour(connect(&api, "h2").await, flood).await);
    // The same without a byte in them.
    let first = frame(HEADERS, END_STREAM, 1, &get("/"));
    let empty = std::iter::once(first).chain((0..1_000_000).map(|_| frame(CONTINUATION, 0, 1, &[])));
    assert!(pour(connect(&api, "h2").await, empty).await);
    is_well(&api).await;
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_have_a_size() {
    let api = Api::start().await;
    let mut socket = connect(&api, "http/1.1").await;
    let line = format!("X-Long: {}\r\n", "x".repeat(8000));
    let text = format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{}", line.repeat(50));
    // The server may stop listening before everything is sent.
    let _maybe = socket.write_all(text.as_bytes()).await;
    let text = rest(&mut socket).await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");

    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(connect(&api, "h2").await))
            .await
            .unwrap();
    api.server
        .tasks
        .spawn_until_drain("client", sampan_tasks::OnExit::Expected, async move {
            let _ended = connection.await;
        });
    let mut request = Request::get("https://x/healthz");
    for number in 0..50 {
        request = request.header(format!("x-long-{number}"), "x".repeat(8000));
    }
    let answer = sender
        .send_request(request.body(Full::<Bytes>::default()).unwrap())
        .await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 431));
    is_well(&api).await;
    api.server.stop().await;
}

/// The answer is there before the request is: the client still gets it, over either protocol.
#[tokio::test(flavor = "multi_thread")]
async fn early_answers_arrive() {
    let api = Api::start().await;
    let cases = [
        ("POST", "/api/v1/namespaces/default/configmaps", 4 << 20, 413),
        ("POST", "/healthz", 2 << 20, 405),
        ("POST", "/apis/apps/v1/nowhere", 2 << 20, 404),
        ("PUT", "/api/v1/namespaces/default/configmaps", 1 << 20, 405),
    ];
    for (method, path, size, expected) in cases {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(connect(&api, "h2").await))
                .await
                .unwrap();
        api.server
            .tasks
            .spawn_until_drain("client", sampan_tasks::OnExit::Expected, async move {
                let _ended = connection.await;
            });
        let request = Request::builder()
            .method(method)
            .uri(format!("https://x{path}"))
            .header("content-type", "application/json")
            .body(Full::<Bytes>::from(vec![b' '; size]))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), expected, "{method} {path}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        assert!(
            !body.is_empty() && (status["code"] == expected || status.is_null()),
            "{status}"
        );

        let mut socket = connect(&api, "http/1.1").await;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let _maybe = socket.write_all(&vec![b' '; size]).await;
        let text = rest(&mut socket).await;
        assert!(
            text.starts_with(&format!("HTTP/1.1 {expected}")),
            "{method} {path}: {text}"
        );
    }
    is_well(&api).await;
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_mean_what_they_mean_upstream() {
    let api = Api::start().await;
    let cases = [
        ("/api/v1/pods", 200),
        ("/api/v1/pods/", 200),
        ("//api/v1/pods", 404),
        ("/api//v1/pods", 404),
        ("/api/v1//pods", 404),
        ("/./api/v1/pods", 404),
        ("/x/../api/v1/pods", 404),
        ("/api/v1/namespaces/default/../kube-system/pods", 404),
        ("/api/v1/namespaces/default/pods/..", 400),
        ("/api/v1/namespaces/default/pods/%2e%2e", 400),
        ("/api/v1/namespaces/default/pods/a%25b", 400),
        ("/%61pi/v1/pods", 200),
        ("/api/v1/namespaces%2Fdefault/pods", 200),
        ("/healthz/../metrics", 404),
    ];
    for (path, expected) in cases {
        let mut socket = connect(&api, "http/1.1").await;
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        let text = rest(&mut socket).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {expected}")), "{path}: {text}");
    }
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_quiet_connections_leave_room_for_one_more() {
    let api = Api::start().await;
    let mut quiet = Vec::new();
    for _ in 0..500 {
        // Some never say a word, some begin a request and stop.
        let mut stream = TcpStream::connect(api.server.address).await.unwrap();
        if quiet.len() % 2 == 0 {
            stream.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
        }
        quiet.push(stream);
    }
    let mut slow = connect(&api, "http/1.1").await;
    slow.write_all(b"GET /healthz HT").await.unwrap();
    is_well(&api).await;
    drop(quiet);
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_have_a_name() {
    let api = Api::start().await;
    for (sent, expected) in [
        ("Audit-ID: mine\r\n", Some("mine")),
        ("", None),
        ("Audit-ID:\r\n", None),
    ] {
        let mut socket = connect(&api, "http/1.1").await;
        let head = format!("GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{sent}\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        let text = rest(&mut socket).await;
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix("audit-id: "))
            .expect("an audit ID");
        match expected {
            Some(expected) => assert_eq!(id, expected),
            None => assert!(uuid::Uuid::parse_str(id).is_ok(), "{id}"),
        }
    }
    api.server.stop().await;
}
