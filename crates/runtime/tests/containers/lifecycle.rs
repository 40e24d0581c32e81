//! Start, exit, stop, adoption, exec: the life of a container.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sampan_runtime::embedded::Embedded;
use sampan_runtime::*;
use sampan_tasks::Tasks;

use crate::world::*;

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

/// Shims whose directory is this world's, by pid.
fn shims(dir: &Path) -> Vec<u32> {
    let dir = dir.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            let is_shim = line.starts_with("sampan\0shim\0") && line.contains(dir);
            // Its children look the same until they are programs; they have other names or parents.
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let session = stat.rsplit(") ").next()?.split(' ').nth(3)?;
            (is_shim && session == entry.file_name().to_str()?).then_some(pid)
        })
        .collect()
}

#[tokio::test]
async fn a_server_killed_at_any_moment_leaves_nothing_unknown() {
    let Some(mut world) = World::new("crash").await else {
        return;
    };
    let mut started: Vec<String> = Vec::new();
    for round in 0..8_u64 {
        world.tasks.shutdown(Duration::from_secs(5)).await;
        drop(world.engine.take());
        // A server of its own, killed in full swing.
        let mut server = std::process::Command::new(env!("CARGO_BIN_EXE_sampan-shim"))
            .arg("churn")
            .args([
                world.dir.path().to_str().unwrap(),
                &world.name,
                IMAGE,
                &round.to_string(),
            ])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(20 + round * 60)).await;
        server.kill().unwrap();
        let output = server.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        // Whole lines only: it was killed while it spoke.
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        started.extend(whole.lines().map(str::to_owned));

        world.tasks = Tasks::new();
        let config = config(world.dir.path(), &world.name);
        world.engine = Engine(Some(Embedded::open(config, &world.tasks).await.unwrap()));
        for id in &started {
            let status = world.engine.container_status(id).await.unwrap();
            assert_eq!(
                status.state,
                ContainerState::Running,
                "an acknowledged container is lost"
            );
        }
        let ready = PodSandboxFilter {
            state: Some(PodSandboxState::Ready),
            ..PodSandboxFilter::default()
        };
        let ready = world.engine.list_pod_sandboxes(&ready).await.unwrap();
        eventually("every shim belongs to a sandbox that is known", || {
            shims(world.dir.path()).len() == ready.len()
        })
        .await;
    }
    println!("{} containers survived 8 kills of their server", started.len());
    assert!(started.len() > 4, "the test did start something: {}", started.len());
    let sandboxes = world
        .engine
        .list_pod_sandboxes(&PodSandboxFilter::default())
        .await
        .unwrap();
    for sandbox in sandboxes {
        world.engine.remove_pod_sandbox(&sandbox.id).await.unwrap();
    }
    assert_eq!(shims(world.dir.path()), Vec::<u32>::new());
    world.end().await;
}
