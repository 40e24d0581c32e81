//! exec, attach and port-forward with real streams.

use std::time::{Duration, Instant};

use sampan_runtime::*;

use crate::world::*;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

async fn read_until(stream: &mut DuplexStream, wanted: &str) -> String {
    let mut seen = String::new();
    let reading = async {
        let mut buffer = [0; 1024];
        while !seen.contains(wanted) {
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "ended before {wanted:?}: {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    if tokio::time::timeout(LONG, reading).await.is_err() {
        panic!("waited for {wanted:?}, saw {seen:?}");
    }
    seen
}

#[tokio::test]
async fn exec_carries_streams_terminals_and_sizes() {
    let Some(world) = World::new("streams").await else {
        return;
    };
    let sandbox = world.sandbox("u1").await;
    let id = world.start(&sandbox, &sh("main", "sleep 1000")).await;
    let (mut to, stdin) = duplex(1024);
    let (mut from, stdout) = duplex(1 << 20);
    let streams = Streams {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        ..Streams::default()
    };
    let request = ExecRequest {
        command: cmd(&["sh", "-c", "cat; echo done; exit 6"]),
        tty: false,
    };
    let client = async {
        to.write_all(b"hello\n").await.unwrap();
        drop(to);
        let mut all = String::new();
        from.read_to_string(&mut all).await.unwrap();
        all
    };
    let (code, all) = tokio::join!(world.engine.exec(&id, request, streams), client);
    assert_eq!((code.unwrap(), all.as_str()), (6, "hello\ndone\n"));

    let (mut to, stdin) = duplex(1024);
    let (mut from, stdout) = duplex(1 << 20);
    let (sizes, resize) = mpsc::channel(4);
    let streams = Streams {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: None,
        resize: Some(resize),
    };
    let request = ExecRequest {
        command: cmd(&["sh"]),
        tty: true,
    };
    let client = async {
        sizes.send(TerminalSize { width: 97, height: 31 }).await.unwrap();
        to.write_all(b"tty; test -t 0 && echo is-a-\"terminal\"\n")
            .await
            .unwrap();
        let seen = read_until(&mut from, "is-a-terminal\r\n").await;
        assert!(seen.contains("/dev/pts/"), "{seen}");
        to.write_all(b"stty size\n").await.unwrap();
        read_until(&mut from, "31 97").await;
        to.write_all(b"exit 8\n").await.unwrap();
        let mut rest = Vec::new();
        from.read_to_end(&mut rest).await.unwrap();
    };
    let (code, ()) = tokio::join!(world.engine.exec(&id, request, streams), client);
    assert_eq!(code.unwrap(), 8);
    world.end().await;
}

#[tokio::test]
async fn attach_reads_and_writes_the_containers_own_streams() {
    let Some(world) = World::new("attach").await else {
        return;
    };
    let sandbox = world.sandbox("u1").await;
    let mut config = sh("main", "while read line; do echo got $line; done; echo over; exit 2");
    (config.stdin, config.stdin_once) = (true, true);
    let id = world.start(&sandbox, &config).await;
    let (mut to, stdin) = duplex(1024);
    let (mut from, stdout) = duplex(1 << 20);
    let streams = Streams {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        ..Streams::default()
    };
    let client = async {
        to.write_all(b"one\n").await.unwrap();
        read_until(&mut from, "got one\n").await;
        drop(to);
        let mut rest = String::new();
        from.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "over\n");
    };
    let (attached, ()) = tokio::join!(world.engine.attach(&id, streams), client);
    attached.unwrap();
    let status = world.wait(&id).await;
    assert_eq!(status.exit_code, Some(2));
    assert_eq!(world.log(&status), "got one\nover\n");

    // With a terminal; two clients see the same.
    let mut config = sh("tty", "stty size; read x; stty size; echo bye");
    (config.stdin, config.tty) = (true, true);
    let id = world.start(&sandbox, &config).await;
    let (mut to, stdin) = duplex(1024);
    let (mut from, stdout) = duplex(1 << 20);
    let (mut watcher, second) = duplex(1 << 20);
    let (sizes, resize) = mpsc::channel(4);
    let streams = Streams {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: None,
        resize: Some(resize),
    };
    let watch = Streams {
        stdout: Some(Box::new(second)),
        ..Streams::default()
    };
    let client = async {
        sizes.send(TerminalSize { width: 90, height: 20 }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        to.write_all(b"go\n").await.unwrap();
        read_until(&mut from, "20 90").await;
        read_until(&mut watcher, "20 90").await;
    };
    let (one, two, ()) = tokio::join!(
        world.engine.attach(&id, streams),
        world.engine.attach(&id, watch),
        client
    );
    one.unwrap();
    two.unwrap();
    assert_eq!(world.wait(&id).await.exit_code, Some(0));
    world.end().await;
}

#[tokio::test]
async fn ports_are_forwarded_into_the_sandbox() {
    let Some(world) = World::new("forward").await else {
        return;
    };
    let sandbox = world.sandbox("u1").await;
    let server = "while :; do echo served | nc -l -p 8080 127.0.0.1 || nc -l -p 8080; done";
    let _id = world.start(&sandbox, &sh("main", server)).await;
    let start = Instant::now();
    loop {
        let (mut ours, theirs) = duplex(1024);
        let client = async {
            let mut all = String::new();
            ours.read_to_string(&mut all).await.unwrap();
            drop(ours);
            all
        };
        let forward = world.engine.port_forward(&sandbox, 8080, Box::new(theirs));
        let (forwarded, all) = tokio::time::timeout(LONG, async { tokio::join!(forward, client) })
            .await
            .unwrap();
        match forwarded {
            Ok(()) if all == "served\n" => break,
            other => assert!(start.elapsed() < LONG, "{other:?} {all:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_ours, theirs) = duplex(1024);
    let error = world
        .engine
        .port_forward(&sandbox, 9, Box::new(theirs))
        .await
        .unwrap_err();
    assert!(error.message.contains("localhost:9"), "{error}");
    world.end().await;
}

#[tokio::test]
async fn a_terminal_whose_client_leaves_is_hung_up() {
    let Some(world) = World::new("hangup").await else {
        return;
    };
    let sandbox = world.sandbox("u1").await;
    let id = world.start(&sandbox, &sh("main", "sleep 1000")).await;
    let alive = |what: &'static str| {
        let engine = std::sync::Arc::clone(&world.engine);
        let id = id.clone();
        async move {
            let output = engine.exec_sync(&id, &cmd(&["ps"]), LONG).await.unwrap();
            String::from_utf8(output.stdout).unwrap().contains(what)
        }
    };
    // One that prints to a client who has gone, and a shell that waits for one.
    let noisy = cmd(&["sh", "-c", "while :; do echo 4242; sleep 0.1; done"]);
    for command in [noisy, cmd(&["sh", "-i"])] {
        let (to, stdin) = duplex(64);
        let (from, stdout) = duplex(64);
        let streams = Streams {
            stdin: Some(Box::new(stdin)),
            stdout: Some(Box::new(stdout)),
            ..Streams::default()
        };
        let request = ExecRequest { command, tty: true };
        let leave = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop((to, from));
        };
        let exec = tokio::time::timeout(LONG, world.engine.exec(&id, request, streams));
        let (ended, ()) = tokio::join!(exec, leave);
        let _code_or_hung_up = ended.expect("the session ends");
    }
    let start = Instant::now();
    while alive("4242").await || alive("sh -i").await {
        assert!(start.elapsed() < LONG, "a process outlives its terminal");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.end().await;
}
