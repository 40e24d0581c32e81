//! The real client against our streams: skipped where there is no `kubectl`.
#![allow(clippy::disallowed_methods)]

mod common;

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use common::{Role, serve};
use sampan_tasks::Tasks;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

/// Kubectl with SPDY or WebSocket, for the server at `address`; `None` where it is not installed.
async fn kubectl(address: SocketAddr, websocket: bool, arguments: &[&str]) -> Option<(Command, tempfile::TempDir)> {
    let installed = Command::new("kubectl").args(["version", "--client"]).output().await;
    if installed.is_err() {
        println!("skipped: kubectl is not installed");
        return None;
    }
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new("kubectl");
    command
        .env("HOME", home.path())
        .env("KUBECONFIG", "/dev/null")
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket.to_string())
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket.to_string())
        .arg(format!("--server=http://{address}"))
        .arg(format!("--cache-dir={}", home.path().display()))
        .args(arguments)
        .kill_on_drop(true)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Some((command, home))
}

async fn servers(tasks: &Tasks) -> Vec<(SocketAddr, bool)> {
    let node = serve(Role::Node, tasks).await;
    let proxy = serve(Role::Proxy(node), tasks).await;
    let translator = serve(Role::Translator(node), tasks).await;
    [node, proxy, translator]
        .into_iter()
        .flat_map(|address| [(address, false), (address, true)])
        .collect()
}

async fn in_time<F: Future>(test: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(120), test)
        .await
        .expect("kubectl hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_exec_gets_output_and_exit_code() {
    let tasks = Tasks::new();
    for (address, websocket) in servers(&tasks).await {
        let Some((mut command, _home)) = kubectl(address, websocket, &["exec", "p", "--", "exit7"]).await else {
            return;
        };
        let output = in_time(command.output()).await.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.stdout, b"out", "websocket: {websocket}, {errors}");
        assert!(
            errors.starts_with("err") && errors.contains("terminated with exit code 7"),
            "{errors}"
        );
        assert_eq!(output.status.code(), Some(7));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_exec_copies_megabytes_through_cat() {
    let tasks = Tasks::new();
    for (address, websocket) in servers(&tasks).await {
        let Some((mut command, _home)) = kubectl(address, websocket, &["exec", "-i", "p", "--", "cat"]).await else {
            return;
        };
        let sent: Vec<u8> = (0..4u32 << 20).map(|n| (n / 5).to_le_bytes()[0]).collect();
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let copy = sent.clone();
        let input = tokio::spawn(async move {
            stdin.write_all(&copy).await.unwrap();
        });
        let output = in_time(child.wait_with_output()).await.unwrap();
        input.await.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.stdout == sent,
            "websocket: {websocket}, {} bytes, {errors}",
            output.stdout.len()
        );
        assert!(output.status.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_forwards_ports() {
    let tasks = Tasks::new();
    for (address, websocket) in servers(&tasks).await {
        let Some((mut command, _home)) = kubectl(address, websocket, &["port-forward", "pod/p", ":80", ":81"]).await
        else {
            return;
        };
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut ports = std::collections::BTreeMap::new();
        // "Forwarding from 127.0.0.1:40000 -> 80"
        while ports.len() < 2 {
            let Some(line) = in_time(lines.next_line()).await.unwrap() else {
                let mut errors = String::new();
                child.stderr.take().unwrap().read_to_string(&mut errors).await.unwrap();
                panic!("websocket: {websocket}, {errors}");
            };
            let words: Vec<_> = line.split(' ').collect();
            if let ["Forwarding", "from", from, "->", to] = words[..]
                && let Some(port) = from.strip_prefix("127.0.0.1:")
            {
                ports.insert(to.to_owned(), port.parse::<u16>().unwrap());
            }
        }
        in_time(async {
            for _ in 0..3 {
                let mut hello = String::new();
                TcpStream::connect(("127.0.0.1", ports["81"]))
                    .await
                    .unwrap()
                    .read_to_string(&mut hello)
                    .await
                    .unwrap();
                assert_eq!(hello, "hello");
            }
            let echo = async |byte: u8| {
                let sent = vec![byte; 1 << 20];
                let (mut reader, mut writer) = TcpStream::connect(("127.0.0.1", ports["80"]))
                    .await
                    .unwrap()
                    .into_split();
                let copy = sent.clone();
                let input = async {
                    writer.write_all(&copy).await.unwrap();
                    writer.shutdown().await.unwrap();
                };
                let mut got = Vec::new();
                let (_, read) = tokio::join!(input, reader.read_to_end(&mut got));
                read.unwrap();
                assert!(got == sent, "{} bytes", got.len());
            };
            tokio::join!(echo(1), echo(2), echo(3));
        })
        .await;
        child.kill().await.unwrap();
    }
}
