//! Whole sessions over loopback: each transport, straight to a node, through the proxy and through the translator.
#![allow(clippy::disallowed_methods)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::{Role, read_all, serve};
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use sampan_streams::spdy::{Headers, Session};
use sampan_tasks::Tasks;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role as WsRole;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

async fn send(address: SocketAddr, request: http::request::Builder) -> Response<Incoming> {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(async move {
        // Upgraded connections end as they please.
        let _ended = connection.with_upgrades().await;
    });
    let request = request.header("host", "test").body(Empty::<Bytes>::new()).unwrap();
    sender.send_request(request).await.unwrap()
}

async fn websocket(address: SocketAddr, path: &str, protocol: &str) -> Socket {
    let request = Request::get(path)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", protocol);
    let response = send(address, request).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
    let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    WebSocketStream::from_raw_socket(io, WsRole::Client, None).await
}

async fn spdy(address: SocketAddr, path: &str, protocol: &str, tasks: &Tasks) -> Session {
    let request = Request::post(path)
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("x-stream-protocol-version", protocol);
    let response = send(address, request).await;
    assert_eq!(
        response.status(),
        101,
        "{:?}",
        response.into_body().collect().await.unwrap().to_bytes()
    );
    Session::client(TokioIo::new(hyper::upgrade::on(response).await.unwrap()), tasks)
}

fn kind(kind: &str) -> Headers {
    Headers::new(&[("streamType", kind)])
}

/// What arrived on each channel until the server said goodbye.
async fn drain(socket: &mut Socket) -> [Vec<u8>; 5] {
    let mut channels: [Vec<u8>; 5] = Default::default();
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Binary(bytes) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Message::Close(frame) => {
                assert_eq!(frame.unwrap().code, CloseCode::Normal);
                return channels;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A node, a proxy before it, a translator before it.
async fn ways(tasks: &Tasks) -> [SocketAddr; 3] {
    let node = serve(Role::Node, tasks).await;
    [
        node,
        serve(Role::Proxy(node), tasks).await,
        serve(Role::Translator(node), tasks).await,
    ]
}

async fn in_time<F: Future>(test: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), test)
        .await
        .expect("the test hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_over_spdy_carries_streams_and_exit_code() {
    in_time(async {
        let tasks = Tasks::new();
        for address in ways(&tasks).await {
            let session = spdy(
                address,
                "/exec?command=exit7&stdout=1&stderr=1",
                "v5.channel.k8s.io, v4.channel.k8s.io",
                &tasks,
            )
            .await;
            let error = session.open(kind("error")).await.unwrap();
            let stdout = session.open(kind("stdout")).await.unwrap();
            let stderr = session.open(kind("stderr")).await.unwrap();
            let (out, err, status) = tokio::join!(read_all(stdout), read_all(stderr), read_all(error));
            assert_eq!((&*out, &*err), (&b"out"[..], &b"err"[..]));
            let status: Value = serde_json::from_slice(&status).unwrap();
            assert_eq!(status["details"]["causes"][0]["message"], "7");
            session.ended().cancelled().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cat_over_spdy_moves_a_megabyte_there_and_back() {
    in_time(async {
        let tasks = Tasks::new();
        for address in ways(&tasks).await {
            let session = spdy(
                address,
                "/exec?command=cat&stdin=1&stdout=1",
                "v4.channel.k8s.io",
                &tasks,
            )
            .await;
            let error = session.open(kind("error")).await.unwrap();
            let mut stdin = session.open(kind("stdin")).await.unwrap();
            let stdout = session.open(kind("stdout")).await.unwrap();
            let sent: Vec<u8> = (0..1u32 << 20).map(|n| (n / 7).to_le_bytes()[0]).collect();
            let copy = sent.clone();
            let input = async {
                stdin.write_all(&copy).await.unwrap();
                stdin.shutdown().await.unwrap();
            };
            let ((), out, status) = tokio::join!(input, read_all(stdout), read_all(error));
            assert!(out == sent);
            assert_eq!(serde_json::from_slice::<Value>(&status).unwrap()["status"], "Success");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_spdy_protocols_tell_failures_as_text() {
    in_time(async {
        let tasks = Tasks::new();
        let node = serve(Role::Node, &tasks).await;
        for protocol in ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
            let session = spdy(node, "/exec?command=nonsense&stdout=1", protocol, &tasks).await;
            let error = session.open(kind("error")).await.unwrap();
            let _stdout = session.open(kind("stdout")).await.unwrap();
            let text = String::from_utf8(read_all(error).await).unwrap();
            assert_eq!(text, "Internal error occurred: no such command: nonsense");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_over_websocket_5_half_closes_and_tells_the_result() {
    in_time(async {
        let tasks = Tasks::new();
        for address in ways(&tasks).await {
            let mut socket = websocket(address, "/exec?command=cat&stdin=true&stdout=true", "v5.channel.k8s.io").await;
            let sent: Vec<u8> = (0..1u32 << 20).map(|n| (n / 3).to_le_bytes()[0]).collect();
            let (mut sink, mut stream) = socket.split();
            let copy = sent.clone();
            let input = tokio::spawn(async move {
                for piece in copy.chunks(30_000) {
                    sink.send(Message::binary([&[0], piece].concat())).await.unwrap();
                }
                sink.send(Message::binary(vec![255, 0])).await.unwrap();
                sink
            });
            let (mut out, mut status) = (Vec::new(), Vec::new());
            loop {
                match stream.next().await.unwrap().unwrap() {
                    Message::Binary(bytes) if bytes[0] == 1 => out.extend_from_slice(&bytes[1..]),
                    Message::Binary(bytes) if bytes[0] == 3 => status.extend_from_slice(&bytes[1..]),
                    Message::Close(frame) => break assert_eq!(frame.unwrap().code, CloseCode::Normal),
                    other => panic!("{other:?}"),
                }
            }
            assert!(out == sent);
            assert_eq!(serde_json::from_slice::<Value>(&status).unwrap()["status"], "Success");
            socket = stream.reunite(input.await.unwrap()).unwrap();
            drop(socket);

            let mut socket = websocket(
                address,
                "/exec?command=exit7&stdout=true&stderr=true",
                "v5.channel.k8s.io",
            )
            .await;
            let [_, out, err, status, _] = drain(&mut socket).await;
            assert_eq!((&*out, &*err), (&b"out"[..], &b"err"[..]));
            let status: Value = serde_json::from_slice(&status).unwrap();
            assert_eq!(
                (status["reason"].as_str(), &status["details"]["causes"][0]["message"]),
                (Some("NonZeroExitCode"), &Value::from("7"))
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminals_tell_their_size() {
    in_time(async {
        let tasks = Tasks::new();
        for address in ways(&tasks).await {
            let path = "/exec?command=size&stdin=true&stdout=true&tty=true";
            let mut socket = websocket(address, path, "v5.channel.k8s.io").await;
            let size = br#"{"Width":132,"Height":43}"#;
            socket.send(Message::binary([&[4], &size[..]].concat())).await.unwrap();
            assert_eq!(drain(&mut socket).await[1], b"132x43");

            let session = spdy(address, path, "v4.channel.k8s.io", &tasks).await;
            let _error = session.open(kind("error")).await.unwrap();
            let _stdin = session.open(kind("stdin")).await.unwrap();
            let stdout = session.open(kind("stdout")).await.unwrap();
            let mut resize = session.open(kind("resize")).await.unwrap();
            resize.write_all(size).await.unwrap();
            assert_eq!(read_all(stdout).await, b"132x43");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_websocket_protocols_work() {
    in_time(async {
        let tasks = Tasks::new();
        let node = serve(Role::Node, &tasks).await;
        let mut socket = websocket(node, "/exec?command=exit7&stdout=1&stderr=1", "v4.channel.k8s.io").await;
        let status: Value = serde_json::from_slice(&drain(&mut socket).await[3]).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        let mut socket = websocket(node, "/exec?command=exit7&stdout=1&stderr=1", "channel.k8s.io").await;
        assert_eq!(
            drain(&mut socket).await[3],
            b"command terminated with non-zero exit code: exit status 7"
        );
        let mut socket = websocket(node, "/exec?command=exit7&stdout=1&stderr=1", "base64.channel.k8s.io").await;
        let mut out = Vec::new();
        while let Some(Ok(Message::Text(text))) = socket.next().await {
            if let Some(data) = text.strip_prefix('1') {
                out.extend(STANDARD.decode(data).unwrap());
            }
        }
        assert_eq!(out, b"out");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_everything_in_bounded_memory() {
    in_time(async {
        let tasks = Tasks::new();
        for address in ways(&tasks).await {
            let session = spdy(address, "/exec?command=flood&stdout=1", "v4.channel.k8s.io", &tasks).await;
            let _error = session.open(kind("error")).await.unwrap();
            let mut stdout = session.open(kind("stdout")).await.unwrap();
            let (mut total, mut piece) = (0, [0; 8192]);
            tokio::time::sleep(Duration::from_millis(100)).await;
            loop {
                let read = stdout.read(&mut piece).await.unwrap();
                if read == 0 {
                    break;
                }
                total += read;
            }
            assert_eq!(total, 1 << 20);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_ends_the_command() {
    in_time(async {
        let tasks = Tasks::new();
        for address in ways(&tasks).await {
            let mut socket = websocket(address, "/exec?command=cat&stdin=true&stdout=true", "v5.channel.k8s.io").await;
            socket.send(Message::binary(b"\0hi".to_vec())).await.unwrap();
            while socket.next().await.unwrap().unwrap() != Message::binary(b"\x01hi".to_vec()) {}
            drop(socket);
        }
        // Every session, proxy and translator notices and ends by itself.
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if tasks.shutdown(Duration::ZERO).await == 0 {
                return;
            }
        }
        panic!("tasks are left");
    })
    .await;
}

async fn forward(
    session: &Session,
    port: &str,
    id: &str,
) -> (sampan_streams::spdy::Stream, sampan_streams::spdy::Stream) {
    let open =
        |kind: &'static str| session.open(Headers::new(&[("streamType", kind), ("port", port), ("requestID", id)]));
    (open("error").await.unwrap(), open("data").await.unwrap())
}

async fn check_forwarding(session: Session) {
    let (error, data) = forward(&session, "81", "1").await;
    let (said, wrong) = tokio::join!(read_all(data), read_all(error));
    assert_eq!((&*said, &*wrong), (&b"hello"[..], &b""[..]));
    let (error, _data) = forward(&session, "82", "2").await;
    assert_eq!(read_all(error).await, b"connection to port 82 refused");
    // Several at once, a megabyte each way.
    let mut pairs = Vec::new();
    for id in 3..7 {
        pairs.push(forward(&session, "80", &id.to_string()).await);
    }
    let echoes = pairs.into_iter().enumerate().map(|(n, (error, data))| {
        let sent = vec![u8::try_from(n).unwrap(); 1 << 20];
        async move {
            let (reader, mut writer) = tokio::io::split(data);
            let input = async {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let ((), got, wrong) = tokio::join!(input, read_all(reader), read_all(error));
            assert!(got == sent && wrong.is_empty());
        }
    });
    futures::future::join_all(echoes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded_over_spdy() {
    in_time(async {
        let tasks = Tasks::new();
        for address in ways(&tasks).await {
            check_forwarding(spdy(address, "/portforward", "portforward.k8s.io", &tasks).await).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded_over_spdy_in_a_websocket() {
    in_time(async {
        let tasks = Tasks::new();
        for address in ways(&tasks).await {
            let socket = websocket(address, "/portforward", "SPDY/3.1+portforward.k8s.io").await;
            let (near, far) = tokio::io::duplex(64 * 1024);
            // The client's side of a tunnel: bytes in, binary messages out.
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(far);
                let (mut sink, mut stream) = socket.split();
                let up = async {
                    let mut piece = vec![0; 32 * 1024];
                    while let Ok(read @ 1..) = reader.read(&mut piece).await {
                        if sink.send(Message::binary(piece[..read].to_vec())).await.is_err() {
                            break;
                        }
                    }
                };
                let down = async {
                    while let Some(Ok(Message::Binary(bytes))) = stream.next().await {
                        if writer.write_all(&bytes).await.is_err() {
                            break;
                        }
                    }
                };
                tokio::select! { () = up => {}, () = down => {} }
            });
            check_forwarding(Session::client(near, &tasks)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded_over_websocket_channels() {
    in_time(async {
        let tasks = Tasks::new();
        for address in ways(&tasks).await {
            let mut socket = websocket(address, "/portforward?ports=81&ports=82", "v4.channel.k8s.io").await;
            let channels = drain(&mut socket).await;
            assert_eq!(channels[0], [&81u16.to_le_bytes()[..], b"hello"].concat());
            assert_eq!(channels[1], 81u16.to_le_bytes());
            assert_eq!(channels[2], 82u16.to_le_bytes());
            assert_eq!(
                channels[3],
                [&82u16.to_le_bytes()[..], b"connection to port 82 refused"].concat()
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_reach_the_client_through_the_proxy() {
    in_time(async {
        let tasks = Tasks::new();
        let [node, proxy, translator] = ways(&tasks).await;
        for address in [node, proxy, translator] {
            let request = Request::post("/exec?command=cat&stdin=1")
                .header("connection", "Upgrade")
                .header("upgrade", "SPDY/3.1")
                .header("x-stream-protocol-version", "v9.channel.k8s.io");
            let response = send(address, request).await;
            assert_eq!(response.status(), 403);
            assert!(response.headers().contains_key("x-accepted-stream-protocol-versions"));
            let text = response.into_body().collect().await.unwrap().to_bytes();
            assert!(text.starts_with(b"unable to upgrade"), "{text:?}");
        }
        let request = Request::get("/exec?command=cat")
            .header("connection", "Upgrade")
            .header("upgrade", "h2c");
        let response = send(proxy, request).await;
        assert_eq!(response.status(), 400);
        // A backend that is no HTTP server at all.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broken = serve(Role::Proxy(listener.local_addr().unwrap()), &tasks).await;
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(b"rubbish\r\n\r\n").await.unwrap();
        });
        let request = Request::get("/exec?stdin=1")
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1");
        assert_eq!(send(broken, request).await.status(), 502);
    })
    .await;
}
