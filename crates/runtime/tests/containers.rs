//! Real containers, as root, from an image with a static busybox. Skipped with a message elsewhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sampan_runtime::embedded::{Config, Embedded};
use sampan_runtime::*;
use sampan_tasks::Tasks;

#[path = "../src/testing.rs"]
#[allow(dead_code, unused_imports)]
mod testing;

const IMAGE: &str = "test.local/busybox:1";
const LONG: Duration = Duration::from_secs(20);

/// The engine, which a test can take away and give back.
struct Engine(Option<Arc<Embedded>>);

impl std::ops::Deref for Engine {
    type Target = Arc<Embedded>;
    fn deref(&self) -> &Arc<Embedded> {
        self.0.as_ref().expect("there is an engine")
    }
}

impl Engine {
    fn take(&mut self) -> Option<Arc<Embedded>> {
        self.0.take()
    }
}

struct World {
    engine: Engine,
    tasks: Tasks,
    dir: tempfile::TempDir,
    name: String,
}

fn config(dir: &Path, name: &str) -> Config {
    let mut config = Config::new(dir.join("data"), dir.join("run"));
    config.exe = Some(env!("CARGO_BIN_EXE_sampan-shim").into());
    config.shim_cgroup = format!("/sampan-test-shims-{name}");
    config
}

impl World {
    async fn new(name: &str) -> Option<Self> {
        if !testing::root_or_skip() {
            return None;
        }
        let image = testing::busybox()?;
        let dir = tempfile::tempdir().unwrap();
        let name = format!("{name}-{}", std::process::id());
        let tasks = Tasks::new();
        let engine = Embedded::open(config(dir.path(), &name), &tasks).await.unwrap();
        let archive = dir.path().join("image.tar");
        std::fs::write(&archive, image.oci_archive(IMAGE)).unwrap();
        engine.import_image(&archive, None).await.unwrap();
        Some(Self {
            engine: Engine(Some(engine)),
            tasks,
            dir,
            name,
        })
    }

    fn pod(&self, uid: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: "pod".into(),
                namespace: "default".into(),
                uid: uid.into(),
                attempt: 0,
            },
            hostname: "pod-host".into(),
            log_directory: self.dir.path().join("logs").join(uid),
            linux: LinuxPodSandboxConfig {
                cgroup_parent: format!("/sampan-test-{}/pod{uid}", self.name),
                ..LinuxPodSandboxConfig::default()
            },
            ..PodSandboxConfig::default()
        }
    }

    async fn sandbox(&self, uid: &str) -> String {
        self.engine.run_pod_sandbox(&self.pod(uid)).await.unwrap()
    }

    async fn start(&self, sandbox: &str, config: &ContainerConfig) -> String {
        let id = self.engine.create_container(sandbox, config).await.unwrap();
        self.engine.start_container(&id).await.unwrap();
        id
    }

    async fn wait(&self, id: &str) -> ContainerStatus {
        tokio::time::timeout(LONG, self.engine.exited(id))
            .await
            .expect("the container ends");
        self.engine.container_status(id).await.unwrap()
    }

    fn log(&self, status: &ContainerStatus) -> String {
        let text = std::fs::read_to_string(&status.log_path).unwrap();
        text.lines()
            .map(|l| l.splitn(4, ' ').nth(3).unwrap_or("").to_owned() + "\n")
            .collect()
    }

    /// Runs a shell script to its end; returns its code and output.
    async fn script_in(&self, sandbox: &str, config: ContainerConfig) -> (ContainerStatus, String) {
        let id = self.start(sandbox, &config).await;
        let status = self.wait(&id).await;
        let log = self.log(&status);
        (status, log)
    }

    async fn end(self) {
        self.engine.cleanup().await.unwrap();
        assert_eq!(mounts_below(self.dir.path()), Vec::<String>::new());
        self.tasks.shutdown(Duration::from_secs(5)).await;
        let parent = format!("/sampan-test-{}", self.name);
        sampan_runtime::cgroups::Cgroups::detect()
            .unwrap()
            .remove(&parent)
            .unwrap();
    }
}

impl Drop for World {
    /// A failed test leaves no shim behind: those of this world are known by its directory.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let dir = self.dir.path().to_str().unwrap_or("no directory");
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(pid) = pid
                && line.starts_with("sampan\0shim\0")
                && line.contains(dir)
            {
                let _gone_already = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
    }
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let dir = dir.to_str().unwrap();
    table
        .lines()
        .filter(|line| line.contains(dir))
        .map(str::to_owned)
        .collect()
}

fn sh(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: ContainerMetadata {
            name: name.into(),
            attempt: 0,
        },
        image: IMAGE.into(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}/0.log"),
        ..ContainerConfig::default()
    }
}

fn cmd(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_container_runs_logs_and_exits_and_every_step_is_an_event() {
    let Some(world) = World::new("basic").await else { return };
    let mut events = world.engine.events();
    let begin = Instant::now();
    let sandbox = world.sandbox("u1").await;
    let script = "echo out; echo err >&2; hostname; echo $FROM_IMAGE $HOME; cat /etc/release; exit 7";
    let id = world.start(&sandbox, &sh("main", script)).await;
    println!("sandbox and container started in {:?}", begin.elapsed());
    let status = world.wait(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (Some(7), "Error"));
    assert!(status.started_at.unwrap() <= status.finished_at.unwrap());
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    assert!(
        log.contains(" stdout F out\n") && log.contains(" stderr F err\n"),
        "{log}"
    );
    assert!(log.contains("F pod-host\n") && log.contains("F yes /root\n"), "{log}");
    assert!(log.contains("F layer two\n"), "{log}");
    let ok = world.start(&sandbox, &sh("ok", "true")).await;
    assert_eq!(world.wait(&ok).await.reason, "Completed");

    let refused = world.engine.remove_image(IMAGE).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::FailedPrecondition);
    world.engine.remove_container(&id).await.unwrap();
    world.engine.remove_container(&id).await.unwrap();
    world.engine.remove_pod_sandbox(&sandbox).await.unwrap();
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        assert_eq!(event.pod_uid, "u1");
        if event.container_id == id {
            seen.push(event.kind);
        }
    }
    use ContainerEventKind::*;
    assert_eq!(seen, [Created, Started, Stopped, Deleted]);
    assert!(
        world
            .engine
            .pod_sandbox_status(&sandbox)
            .await
            .unwrap_err()
            .is_not_found()
    );
    world.engine.remove_image(IMAGE).await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let Some(world) = World::new("fail").await else { return };
    let sandbox = world.sandbox("u1").await;
    let table: [(&[&str], &str); 3] = [
        (&["nope"], "executable file not found in $PATH"),
        (&["/bin/nope"], "no such file or directory"),
        (&["/etc/passwd"], "permission denied"),
    ];
    for (index, (command, says)) in table.into_iter().enumerate() {
        let mut config = sh(&format!("c{index}"), "");
        config.command = cmd(command);
        let id = world.engine.create_container(&sandbox, &config).await.unwrap();
        let error = world.engine.start_container(&id).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::StartFailed);
        assert!(error.message.contains(says), "{error}");
        let status = world.engine.container_status(&id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (Some(128), "StartError"));
    }
    let mut config = sh("user", "true");
    config.linux.security_context.run_as_username = "nobody-here".into();
    let id = world.engine.create_container(&sandbox, &config).await.unwrap();
    let error = world.engine.start_container(&id).await.unwrap_err();
    assert!(error.message.contains("unable to find user"), "{error}");
    let mut absent = sh("image", "true");
    absent.image = "not/here:1".into();
    let error = world.engine.create_container(&sandbox, &absent).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    let mut pod = world.pod("u2");
    pod.linux.netns = Some(PathBuf::from("/no/such/netns"));
    let error = world.engine.run_pod_sandbox(&pod).await.unwrap_err();
    assert!(error.message.contains("/no/such/netns"), "{error}");
    assert_eq!(
        world
            .engine
            .list_pod_sandboxes(&PodSandboxFilter::default())
            .await
            .unwrap()
            .len(),
        1
    );
    world.end().await;
}

#[tokio::test]
async fn stopping_asks_first_and_kills_when_it_must() {
    let Some(world) = World::new("stop").await else { return };
    let sandbox = world.sandbox("u1").await;
    let polite = "trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done";
    let polite = world.start(&sandbox, &sh("polite", polite)).await;
    let mut quit = sh("quit", "trap 'exit 4' QUIT; while :; do sleep 0.1; done");
    quit.stop_signal = Some("SIGQUIT".into());
    let quit = world.start(&sandbox, &quit).await;
    let deaf = world.start(&sandbox, &sh("deaf", "trap '' TERM; sleep 1000")).await;
    // The traps must stand before the signal comes.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for (id, grace, code) in [
        (&polite, LONG, 3),
        (&quit, LONG, 4),
        (&deaf, Duration::from_millis(300), 137),
    ] {
        world.engine.stop_container(id, grace).await.unwrap();
        let status = world.engine.container_status(id).await.unwrap();
        assert_eq!(status.exit_code, Some(code), "{}", status.metadata.name);
    }
    world.engine.stop_container(&deaf, LONG).await.unwrap();
    let running = world.start(&sandbox, &sh("running", "sleep 1000")).await;
    world.engine.stop_pod_sandbox(&sandbox).await.unwrap();
    world.engine.stop_pod_sandbox(&sandbox).await.unwrap();
    let status = world.engine.container_status(&running).await.unwrap();
    assert_eq!(status.exit_code, Some(137));
    let status = world.engine.pod_sandbox_status(&sandbox).await.unwrap();
    assert_eq!((status.state, status.pid), (PodSandboxState::NotReady, 0));
    let error = world
        .engine
        .create_container(&sandbox, &sh("late", "true"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    world.end().await;
}

#[tokio::test]
async fn a_new_server_adopts_what_runs_and_learns_what_ended() {
    let Some(world) = World::new("adopt").await else { return };
    let sandbox = world.sandbox("u1").await;
    let stays = world.start(&sandbox, &sh("stays", "while :; do sleep 0.1; done")).await;
    let ends = world.start(&sandbox, &sh("ends", "sleep 1; echo last; exit 5")).await;
    let never = world
        .engine
        .create_container(&sandbox, &sh("never", "echo hi"))
        .await
        .unwrap();
    let lost = world.sandbox("u2").await;
    let orphan = world.start(&lost, &sh("orphan", "sleep 1000")).await;
    let shim = world.engine.pod_sandbox_status(&lost).await.unwrap().pid;
    let orphan_pid = world.engine.container_status(&orphan).await.unwrap().pid;
    let pid = world.engine.container_status(&stays).await.unwrap().pid;

    // The second server on a directory is refused.
    let refused = Embedded::open(config(world.dir.path(), &world.name), &Tasks::new()).await;
    assert!(refused.err().unwrap().message.contains("another server"));

    // The server dies without a word: nothing of it is left but files.
    let mut world = world;
    world.tasks.shutdown(Duration::from_secs(5)).await;
    drop(world.engine.take());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let shim = nix::unistd::Pid::from_raw(shim as i32);
    nix::sys::signal::kill(shim, nix::sys::signal::SIGKILL).unwrap();
    std::fs::create_dir_all(world.dir.path().join("data/containers/half-made/upper")).unwrap();

    world.tasks = Tasks::new();
    let config = config(world.dir.path(), &world.name);
    world.engine = Engine(Some(Embedded::open(config, &world.tasks).await.unwrap()));
    let status = world.engine.container_status(&stays).await.unwrap();
    assert_eq!((status.state, status.pid), (ContainerState::Running, pid));
    let status = world.engine.container_status(&ends).await.unwrap();
    assert_eq!((status.exit_code, status.state), (Some(5), ContainerState::Exited));
    assert_eq!(world.log(&status), "last\n");
    let status = world.engine.container_status(&orphan).await.unwrap();
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (Some(255), "ContainerStatusUnknown")
    );
    eventually("the orphan is killed", || {
        !Path::new(&format!("/proc/{orphan_pid}/root")).exists()
    })
    .await;
    let state = world.engine.pod_sandbox_status(&lost).await.unwrap().state;
    assert_eq!(state, PodSandboxState::NotReady);
    assert!(!world.dir.path().join("data/containers/half-made").exists());
    // And goes on as if nothing had been.
    world.engine.start_container(&never).await.unwrap();
    assert_eq!(world.wait(&never).await.exit_code, Some(0));
    let mut events = world.engine.events();
    world.engine.stop_container(&stays, Duration::ZERO).await.unwrap();
    assert_eq!(events.recv().await.unwrap().kind, ContainerEventKind::Stopped);
    world.end().await;
}

#[tokio::test]
async fn a_killed_shim_ends_its_sandbox_and_is_told() {
    let Some(world) = World::new("shim").await else { return };
    let sandbox = world.sandbox("u1").await;
    let id = world.start(&sandbox, &sh("main", "sleep 1000")).await;
    let mut events = world.engine.events();
    let shim = world.engine.pod_sandbox_status(&sandbox).await.unwrap().pid;
    let rss = std::fs::read_to_string(format!("/proc/{shim}/status")).unwrap();
    let rss = rss.lines().find(|l| l.starts_with("RssAnon")).unwrap().to_owned();
    println!("shim {rss}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim as i32), nix::sys::signal::SIGKILL).unwrap();
    assert_eq!(world.wait(&id).await.reason, "ContainerStatusUnknown");
    let first = events.recv().await.unwrap();
    let second = events.recv().await.unwrap();
    assert_eq!((first.container_id, second.container_id), (id, sandbox.clone()));
    world.end().await;
}

#[tokio::test]
async fn commands_run_inside_with_codes_limits_and_the_containers_identity() {
    let Some(world) = World::new("exec").await else { return };
    let sandbox = world.sandbox("u1").await;
    let mut config = sh("main", "sleep 1000");
    config.linux.security_context.run_as_user = Some(1001);
    let id = world.start(&sandbox, &config).await;
    let run = |words: &'static [&'static str], timeout| {
        let engine = Arc::clone(&world.engine);
        let id = id.clone();
        async move { engine.exec_sync(&id, &cmd(words), timeout).await }
    };
    let output = run(&["sh", "-c", "id -u; hostname; echo e >&2; ps; exit 9"], LONG)
        .await
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        stdout.starts_with("1001\npod-host\n") && stdout.contains("sleep 1000"),
        "{stdout}"
    );
    assert_eq!((&output.stderr[..], output.exit_code), (&b"e\n"[..], 9));
    let output = run(&["sh", "-c", "kill -9 $$"], LONG).await.unwrap();
    assert_eq!(output.exit_code, 137);
    let error = run(&["nope"], LONG).await.unwrap_err();
    assert!(error.message.contains("executable file not found"), "{error}");
    let error = run(&["sh", "-c", "sleep 777; true"], Duration::from_millis(300))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let output = run(&["ps"], LONG).await.unwrap();
    let left = String::from_utf8(output.stdout).unwrap();
    assert!(!left.contains("777"), "the command outlived its limit: {left}");
    let big = run(&["sh", "-c", "yes | head -c 3000000"], LONG).await.unwrap();
    assert_eq!(big.stdout.len(), 3_000_000);
    world.engine.stop_container(&id, Duration::ZERO).await.unwrap();
    let error = run(&["true"], LONG).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    world.end().await;
}

mod streams {
    use super::*;
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
}

mod security {
    use super::*;

    #[tokio::test]
    async fn users_groups_capabilities_and_privileges_are_as_asked() {
        let Some(world) = World::new("user").await else { return };
        let sandbox = world.sandbox("u1").await;
        type Change = fn(&mut LinuxContainerSecurityContext);
        let table: [(&str, Change, &str, &str); 9] = [
            ("root", |_| {}, "id -u; id -g; id -G", "0\n0\n0 1600\n"),
            (
                "name",
                |s| s.run_as_username = "app".into(),
                "id -u; id -G; echo $HOME",
                "1001\n1002 1500 1600\n/home/app\n",
            ),
            (
                "number",
                |s| {
                    s.run_as_user = Some(4242);
                    s.run_as_group = Some(7);
                    s.supplemental_groups = vec![8];
                },
                "id -u; id -g; id -G",
                "4242\n7\n7 8\n",
            ),
            (
                "strict",
                |s| {
                    s.run_as_username = "app".into();
                    s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict;
                },
                "id -G",
                "1002\n",
            ),
            (
                "caps",
                |_| {},
                "grep CapEff /proc/self/status | grep -o '[0-9a-f]*$'",
                "00000000a80425fb\n",
            ),
            (
                "none",
                |s| s.capabilities.drop = vec!["ALL".into()],
                "grep -E 'Cap(Eff|Bnd|Prm)' /proc/self/status | grep -o '[0-9a-f]*$'; chown 1 /tmp 2>&1 || echo refused",
                "0000000000000000\n0000000000000000\n0000000000000000\nchown: /tmp: Operation not permitted\nrefused\n",
            ),
            (
                "user-caps",
                |s| s.run_as_user = Some(5),
                "grep CapEff /proc/self/status | grep -o '[0-9a-f]*$'",
                "0000000000000000\n",
            ),
            (
                "nnp",
                |s| s.no_new_privs = true,
                "grep NoNewPrivs /proc/self/status | grep -o '[01]$'",
                "1\n",
            ),
            (
                "reopen",
                |s| s.run_as_user = Some(5),
                "echo again > /dev/stdout; echo twice > /proc/self/fd/2",
                "again\ntwice\n",
            ),
        ];
        for (name, change, script, expected) in table {
            let mut config = sh(name, script);
            change(&mut config.linux.security_context);
            let (status, log) = world.script_in(&sandbox, config).await;
            assert_eq!(log, expected, "{name} {status:?}");
        }
        world.end().await;
    }

    #[tokio::test]
    async fn seccomp_blocks_what_it_should() {
        let Some(world) = World::new("seccomp").await else {
            return;
        };
        let sandbox = world.sandbox("u1").await;
        let script =
            "grep Seccomp: /proc/self/status | grep -o '[0-9]$'; unshare -U true 2>&1 && echo made || echo blocked";
        let profile = world.dir.path().join("profile.json");
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;
        std::fs::write(&profile, text).unwrap();
        let run = |name: &str, script: &str, profile: SecurityProfile, nnp: bool| {
            let mut config = sh(name, script);
            config.linux.security_context.seccomp = profile;
            config.linux.security_context.no_new_privs = nnp;
            world.script_in(&sandbox, config)
        };
        for (name, nnp) in [("default", false), ("default-nnp", true)] {
            let (_, log) = run(name, script, SecurityProfile::RuntimeDefault, nnp).await;
            assert!(log.starts_with("2\n") && log.ends_with("blocked\n"), "{log}");
        }
        let (_, log) = run("none", script, SecurityProfile::Unconfined, false).await;
        assert!(log.starts_with("0\n"), "{log}");
        let local = SecurityProfile::Localhost(profile.to_str().unwrap().into());
        let (_, log) = run("local", "mkdir /tmp/x 2>&1 && echo made || echo blocked", local, true).await;
        assert!(log.ends_with("blocked\n"), "{log}");
        // A process that joins is filtered too.
        let mut config = sh("join", "sleep 1000");
        config.linux.security_context.seccomp = SecurityProfile::RuntimeDefault;
        let id = world.start(&sandbox, &config).await;
        let output = world
            .engine
            .exec_sync(&id, &cmd(&["unshare", "-U", "true"]), LONG)
            .await
            .unwrap();
        assert_ne!(output.exit_code, 0);
        world.end().await;
    }

    #[tokio::test]
    async fn files_are_hidden_and_protected_unless_privileged() {
        let Some(world) = World::new("files").await else { return };
        let sandbox = world.sandbox("u1").await;
        let script = "touch /new && echo wrote-root; touch /tmp/x && echo wrote-tmp; \
            echo 1 > /proc/sys/kernel/printk && echo wrote-sys; \
            cat /proc/timer_list | wc -c; ls /sys/firmware | wc -l; mount -t tmpfs x /tmp && echo mounted; \
            touch /sys/fs/cgroup/memory/x 2>/dev/null && echo wrote-cgroup; \
            mknod /dev/sd b 8 0 && cat /dev/sd >/dev/null 2>&1 && echo read-disk; \
            echo x > /dev/null && head -c 4 /dev/zero | wc -c; ls -d /dev/fd /dev/stdout /dev/ptmx /dev/shm; \
            cat /proc/1/environ >/dev/null && ls /proc/1/root >/dev/null; true";
        let (_, log) = world.script_in(&sandbox, sh("plain", script)).await;
        assert!(log.contains("wrote-root\n") && log.contains("wrote-tmp\n"), "{log}");
        for bad in ["wrote-sys", "mounted", "wrote-cgroup", "read-disk"] {
            assert!(!log.contains(bad), "{bad} in {log}");
        }
        assert!(log.contains("\n4\n") && log.contains("/dev/ptmx\n/dev/shm\n"), "{log}");
        let mut readonly = sh("readonly", script);
        readonly.linux.security_context.readonly_rootfs = true;
        readonly.mounts.push(Mount {
            container_path: "/tmp".into(),
            host_path: world.dir.path().join("tmp"),
            ..Mount::default()
        });
        let (_, log) = world.script_in(&sandbox, readonly).await;
        assert!(!log.contains("wrote-root\n") && log.contains("wrote-tmp\n"), "{log}");
        let mut privileged = sh("privileged", "mount -t tmpfs x /tmp && echo mounted; ls /dev | wc -l");
        privileged.linux.security_context.privileged = true;
        let (_, log) = world.script_in(&sandbox, privileged).await;
        assert!(log.starts_with("mounted\n"), "{log}");
        world.end().await;
    }
}

#[tokio::test]
async fn mounts_come_in_files_directories_images_and_propagation() {
    let Some(world) = World::new("mounts").await else {
        return;
    };
    let sandbox = world.sandbox("u1").await;
    let host = world.dir.path().join("host");
    std::fs::create_dir_all(host.join("sub")).unwrap();
    std::fs::write(host.join("file"), "content").unwrap();
    let bind = |inside: &str, source: PathBuf, readonly| Mount {
        container_path: inside.into(),
        host_path: source,
        readonly,
        ..Mount::default()
    };
    let mut config = sh(
        "main",
        "cat /etc/deep/config; echo; touch /data/made && echo wrote; touch /ro/x || echo protected; \
         cat /image/etc/release; touch /image/x || echo image-protected; ls -d /data/sub /fresh; \
         cat /etc/resolv.conf; cat /sub/release",
    );
    config.mounts = vec![
        bind("/data/sub/inner", host.join("sub"), false),
        bind("/etc/deep/config", host.join("file"), true),
        bind("/data", host.clone(), false),
        bind("/ro", host.clone(), true),
        bind("/fresh", world.dir.path().join("made-on-demand"), false),
        Mount {
            container_path: "/image".into(),
            image: Some(IMAGE.into()),
            ..Mount::default()
        },
        Mount {
            container_path: "/sub".into(),
            image: Some(IMAGE.into()),
            image_sub_path: "etc".into(),
            ..Mount::default()
        },
    ];
    let (status, log) = world.script_in(&sandbox, config).await;
    assert_eq!(status.exit_code, Some(0), "{log}");
    assert!(
        log.contains("can't open '/etc/resolv.conf'"),
        "no resolver was configured: {log}"
    );
    for wanted in [
        "content\n",
        "wrote\n",
        "protected\n",
        "image-protected\n",
        "layer two\n",
        "/fresh\n",
    ] {
        assert!(log.contains(wanted), "{wanted:?} in {log}");
    }
    assert!(host.join("made").exists());

    let mut pod = world.pod("u2");
    pod.dns = Some(DnsConfig {
        servers: vec!["10.0.0.10".into()],
        searches: vec!["default.svc.cluster.local".into()],
        options: vec!["ndots:5".into()],
    });
    let with_dns = world.engine.run_pod_sandbox(&pod).await.unwrap();
    let (_, log) = world
        .script_in(&with_dns, sh("dns", "cat /etc/resolv.conf /etc/hostname"))
        .await;
    let expected = "search default.svc.cluster.local\nnameserver 10.0.0.10\noptions ndots:5\npod-host\n";
    assert_eq!(log, expected);
    // Shared memory is the sandbox's.
    let (_, log) = world
        .script_in(&with_dns, sh("a", "echo shared > /dev/shm/x; stat -f -c %T /dev/shm"))
        .await;
    assert_eq!(log, "tmpfs\n");
    let (_, log) = world.script_in(&with_dns, sh("b", "cat /dev/shm/x")).await;
    assert_eq!(log, "shared\n");
    let (status, _) = world.script_in(&sandbox, sh("c", "cat /dev/shm/x")).await;
    assert_ne!(status.exit_code, Some(0), "another sandbox's memory is another");
    world.end().await;
}

#[tokio::test]
async fn process_namespaces_are_own_shared_or_the_nodes() {
    let Some(world) = World::new("pids").await else { return };
    let own = world.sandbox("u1").await;
    let (_, log) = world.script_in(&own, sh("own", "echo $$; ps | grep -c [s]ampan")).await;
    assert_eq!(log, "1\n0\n");
    let mut pod = world.pod("u2");
    pod.linux.namespaces.pid = NamespaceMode::Pod;
    let shared = world.engine.run_pod_sandbox(&pod).await.unwrap();
    let other = world.start(&shared, &sh("other", "sleep 4321")).await;
    let (_, log) = world
        .script_in(&shared, sh("see", "ps; cat /proc/1/comm; sleep 9999 & exit 0"))
        .await;
    assert!(log.contains("sleep 4321") && log.contains("pause"), "{log}");
    // What a container leaves in a shared namespace goes with it; the others stay.
    let output = world.engine.exec_sync(&other, &cmd(&["ps"]), LONG).await.unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    assert!(!list.contains("9999") && list.contains("4321"), "{list}");
    let mut pod = world.pod("u3");
    pod.linux.namespaces = NamespaceOptions {
        network: NamespaceMode::Node,
        pid: NamespaceMode::Node,
        ipc: NamespaceMode::Node,
    };
    let node = world.engine.run_pod_sandbox(&pod).await.unwrap();
    let script = "for n in net pid ipc; do readlink /proc/self/ns/$n; done; sleep 8888 & exit 0";
    let (_, log) = world.script_in(&node, sh("node", script)).await;
    let ns = |name| {
        std::fs::read_link(format!("/proc/self/ns/{name}"))
            .unwrap()
            .display()
            .to_string()
    };
    assert_eq!(log, format!("{}\n{}\n{}\n", ns("net"), ns("pid"), ns("ipc")));
    world.end().await;
}

#[tokio::test]
async fn memory_limits_kill_and_are_named_and_limits_can_change() {
    let Some(world) = World::new("limits").await else {
        return;
    };
    let sandbox = world.sandbox("u1").await;
    let mut hungry = sh("hungry", "");
    hungry.command = cmd(&["tail", "-c", "200000000", "/dev/zero"]);
    hungry.linux.resources.memory_limit_in_bytes = Some(16 << 20);
    let (status, _) = world.script_in(&sandbox, hungry).await;
    assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", Some(137)));

    let mut config = sh("main", "while :; do :; done");
    config.linux.resources.memory_limit_in_bytes = Some(64 << 20);
    config.linux.resources.cpu_quota = Some(10_000);
    config.linux.resources.cpu_period = Some(100_000);
    let id = world.start(&sandbox, &config).await;
    let change = LinuxContainerResources {
        memory_limit_in_bytes: Some(128 << 20),
        cpu_quota: Some(20_000),
        ..LinuxContainerResources::default()
    };
    world.engine.update_container_resources(&id, &change).await.unwrap();
    let status = world.engine.container_status(&id).await.unwrap();
    assert_eq!(status.resources.memory_limit_in_bytes, Some(128 << 20));
    assert_eq!(status.resources.cpu_period, Some(100_000));
    let read = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    let read = cmd(&["sh", "-c", read]);
    let output = world.engine.exec_sync(&id, &read, LONG).await.unwrap();
    assert_eq!(output.stdout, b"134217728\n");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stats = world.engine.container_stats(&id).await.unwrap();
    assert!(stats.cpu.unwrap().usage_core_nano_seconds > 1_000_000);
    let memory = stats.memory.unwrap();
    assert!(
        memory.usage_bytes > 0 && memory.available_bytes.unwrap() <= 128 << 20,
        "{memory:?}"
    );
    let pod = world.engine.pod_sandbox_stats(&sandbox).await.unwrap();
    assert_eq!(pod.containers.len(), 1);
    assert!(pod.cpu.unwrap().usage_core_nano_seconds >= stats.cpu.unwrap().usage_core_nano_seconds);
    world
        .engine
        .exec_sync(
            &id,
            &cmd(&["dd", "if=/dev/zero", "of=/big", "bs=1000000", "count=3"]),
            LONG,
        )
        .await
        .unwrap();
    let stats = world.engine.container_stats(&id).await.unwrap();
    assert!(stats.writable_layer.used_bytes >= 3_000_000);
    world.end().await;
}

#[tokio::test]
async fn logs_survive_rotation_long_lines_and_missing_ends() {
    let Some(world) = World::new("logs").await else { return };
    let sandbox = world.sandbox("u1").await;
    let script = "echo first; read x; echo second; \
        yes y | head -n 20000 | awk '{printf \"yy\"}'; echo; printf end";
    let mut config = sh("main", script);
    config.stdin = true;
    let id = world.start(&sandbox, &config).await;
    let log = world.engine.container_status(&id).await.unwrap().log_path;
    eventually("the first line is logged", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("first"))
    })
    .await;
    let old = log.with_extension("log.old");
    std::fs::rename(&log, &old).unwrap();
    world.engine.reopen_container_log(&id).await.unwrap();
    let (mut to, stdin) = tokio::io::duplex(64);
    let streams = Streams {
        stdin: Some(Box::new(stdin)),
        ..Streams::default()
    };
    let client = async {
        tokio::io::AsyncWriteExt::write_all(&mut to, b"go\n").await.unwrap();
        drop(to);
    };
    let (attached, ()) = tokio::join!(world.engine.attach(&id, streams), client);
    attached.unwrap();
    world.wait(&id).await;
    assert!(std::fs::read_to_string(&old).unwrap().ends_with("stdout F first\n"));
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with("stdout F second"), "{}", lines[0]);
    assert!(lines.iter().filter(|line| line.contains(" stdout P y")).count() >= 2);
    assert!(lines.last().unwrap().ends_with("stdout F end"));
    let mut whole = Vec::new();
    let options = sampan_runtime::logs::LogOptions::default();
    sampan_runtime::logs::read(&log, &options, std::future::pending(), &mut whole)
        .await
        .unwrap();
    assert_eq!(whole.len(), "second\n".len() + 40_001 + "end\n".len());
    world.end().await;
}

#[tokio::test]
async fn many_quick_containers_are_all_seen_to_end() {
    let Some(world) = World::new("many").await else { return };
    let mut events = world.engine.events();
    let begin = Instant::now();
    let mut running = Vec::new();
    for index in 0..20 {
        let engine = Arc::clone(&world.engine);
        let pod = world.pod(&format!("u{index}"));
        running.push(async move {
            let sandbox = engine.run_pod_sandbox(&pod).await.unwrap();
            let id = engine
                .create_container(&sandbox, &sh("main", &format!("exit {index}")))
                .await
                .unwrap();
            engine.start_container(&id).await.unwrap();
            engine.exited(&id).await;
            engine.container_status(&id).await.unwrap().exit_code
        });
    }
    let codes = futures::future::join_all(running).await;
    println!("20 sandboxes with a container each: {:?}", begin.elapsed());
    assert_eq!(codes, (0..20).map(Some).collect::<Vec<_>>());
    let mut stopped = 0;
    while let Ok(event) = events.try_recv() {
        stopped += usize::from(event.kind == ContainerEventKind::Stopped);
    }
    assert_eq!(stopped, 20);
    world.end().await;
}

/// Debian's registry on loopback, started by the test; with a password file if asked.
struct DockerRegistry {
    child: std::process::Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl DockerRegistry {
    async fn start(users: Option<&str>) -> Option<Self> {
        let program = "/usr/bin/docker-registry";
        if !Path::new(program).exists() {
            println!("skipped: needs docker-registry (apt-get install docker-registry)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let mut config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {0}/data}}}}\nhttp: {{addr: \"{address}\"}}\nlog: {{level: error}}\n",
            dir.path().display()
        );
        if let Some(users) = users {
            std::fs::write(dir.path().join("users"), users).unwrap();
            config += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}/users}}}}\n",
                dir.path().display()
            );
        }
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = std::process::Command::new(program)
            .arg("serve")
            .arg(&file)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let started = Self {
            child,
            address,
            _dir: dir,
        };
        eventually("the registry listens", || {
            std::net::TcpStream::connect(&started.address).is_ok()
        })
        .await;
        Some(started)
    }

    /// Puts an image in through curl, as any client would.
    fn push(&self, image: &testing::TestImage, name: &str, user: &str) -> bool {
        let curl = |args: &[&str], body: Option<&[u8]>| -> Option<String> {
            use std::io::Write;
            let mut command = std::process::Command::new("curl");
            command.args(["-sS", "-f", "-u", user]).args(args);
            command
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped());
            let mut child = command.spawn().ok()?;
            child.stdin.take()?.write_all(body.unwrap_or_default()).ok()?;
            let output = child.wait_with_output().ok()?;
            output
                .status
                .success()
                .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let base = format!("http://{}/v2/{name}", self.address);
        for blob in image.layers.iter().chain([&image.config]) {
            let headers = curl(
                &[
                    "-D",
                    "-",
                    "-o",
                    "/dev/null",
                    "-X",
                    "POST",
                    &format!("{base}/blobs/uploads/"),
                ],
                None,
            );
            let headers = headers.unwrap_or_default();
            let location = headers
                .lines()
                .find_map(|l| l.strip_prefix("Location: "))
                .unwrap_or("")
                .trim()
                .to_owned();
            let url = format!("{location}&digest={}", testing::digest(blob));
            let kind = "Content-Type: application/octet-stream";
            if curl(&["-X", "PUT", "-H", kind, "--data-binary", "@-", &url], Some(blob)).is_none() {
                return false;
            }
        }
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        let url = format!("{base}/manifests/1");
        curl(
            &["-X", "PUT", "-H", kind, "--data-binary", "@-", &url],
            Some(&image.manifest),
        )
        .is_some()
    }
}

#[tokio::test]
async fn images_come_from_a_real_registry_with_and_without_a_password() {
    let Some(world) = World::new("registry").await else {
        return;
    };
    let Some(image) = testing::busybox() else { return };
    // user:secret
    let users = "user:$2b$04$.fg70gWyO0DWjpo608zUXelTkGL4bT4OfGdIEA0ULxw1b0w5a0Qfi\n";
    let Some(open) = DockerRegistry::start(None).await else {
        return;
    };
    if !open.push(&image, "team/app", "nobody:nothing") {
        return println!("skipped: needs curl");
    }
    let name = format!("{}/team/app:1", open.address);
    let id = world.engine.pull_image(&name, None, None).await.unwrap();
    assert_eq!(world.engine.pull_image(&name, None, None).await.unwrap(), id);
    let sandbox = world.sandbox("u1").await;
    let mut config = sh("main", "cat /etc/release");
    config.image = name.clone();
    let (_, log) = world.script_in(&sandbox, config).await;
    assert_eq!(log, "layer two\n");
    let error = world
        .engine
        .pull_image(&format!("{}/team/none:1", open.address), None, None)
        .await
        .unwrap_err();
    assert!(error.message.contains("not found"), "{error}");
    assert_eq!(error.kind, ErrorKind::ImagePull);

    let closed = DockerRegistry::start(Some(users)).await.unwrap();
    let name = format!("{}/team/app:1", closed.address);
    let error = world.engine.pull_image(&name, None, None).await.unwrap_err();
    assert!(error.message.contains("imagePullSecrets"), "{error}");
    let auth = |password: &str| RegistryAuth {
        username: "user".into(),
        password: password.into(),
        ..RegistryAuth::default()
    };
    let error = world
        .engine
        .pull_image(&name, Some(&auth("wrong")), None)
        .await
        .unwrap_err();
    assert!(error.message.contains("authorization failed"), "{error}");
    assert!(closed.push(&image, "team/app", "user:secret"));
    world
        .engine
        .pull_image(&name, Some(&auth("secret")), None)
        .await
        .unwrap();
    world.end().await;
}
