//! Mounts, namespaces, limits, logs.

use std::path::PathBuf;
use std::time::Duration;

use sampan_runtime::*;

use crate::world::*;

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
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line == b"sleep\x008888\0"
    });
    assert_eq!(left.count(), 0, "what it left in the node's namespace goes with it");
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
async fn mounts_travel_as_their_propagation_says() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let Some(world) = World::new("propagation").await else {
        return;
    };
    let none: Option<&str> = None;
    let host = world.dir.path().join("shared");
    std::fs::create_dir_all(&host).unwrap();
    mount(Some("tmpfs"), &host, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    mount(none, &host, none, MsFlags::MS_SHARED, none).unwrap();
    for name in ["from-node", "from-container"] {
        std::fs::create_dir(host.join(name)).unwrap();
    }
    let sandbox = world.sandbox("u1").await;
    let with = |name: &str, propagation| {
        let mut config = sh(name, "sleep 1000");
        config.linux.security_context.privileged = true;
        config.mounts.push(Mount {
            container_path: "/h".into(),
            host_path: host.clone(),
            propagation,
            ..Mount::default()
        });
        config
    };
    let private = world.start(&sandbox, &with("private", MountPropagation::Private)).await;
    let slave = world
        .start(&sandbox, &with("slave", MountPropagation::HostToContainer))
        .await;
    let both = world
        .start(&sandbox, &with("both", MountPropagation::Bidirectional))
        .await;
    let inner = host.join("from-node");
    mount(Some("tmpfs"), &inner, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    std::fs::write(inner.join("new"), "").unwrap();
    for (id, sees) in [(&private, false), (&slave, true), (&both, true)] {
        let output = world
            .engine
            .exec_sync(id, &cmd(&["test", "-e", "/h/from-node/new"]), LONG)
            .await;
        assert_eq!(output.unwrap().exit_code == 0, sees, "{id}");
    }
    for id in [&private, &slave, &both] {
        let mounted = cmd(&["mount", "-t", "tmpfs", "x", "/h/from-container"]);
        let output = world.engine.exec_sync(id, &mounted, LONG).await.unwrap();
        assert_eq!(output.exit_code, 0, "{}", String::from_utf8_lossy(&output.stderr));
        let seen = mounts_below(&host).iter().any(|line| line.contains("from-container"));
        assert_eq!(seen, *id == both);
    }
    world.engine.remove_pod_sandbox(&sandbox).await.unwrap();
    umount2(&host, MntFlags::MNT_DETACH).unwrap();
    world.end().await;
}

#[tokio::test]
async fn version_2_control_groups_hold_containers_too() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    if !mounts.contains(" cgroup2 ") {
        return println!("skipped: no cgroup2 is mounted");
    }
    let Some(world) = World::with("v2", |config| config.cgroup_version = Some(CgroupVersion::V2)).await else {
        return;
    };
    let mut pod = world.pod("u1");
    pod.linux.namespaces.pid = NamespaceMode::Pod;
    let sandbox = world.engine.run_pod_sandbox(&pod).await.unwrap();
    let script = "cat /proc/self/cgroup | grep ^0: ; cat /sys/fs/cgroup/cgroup.procs | wc -l; \
        mknod /dev/sd b 8 0; cat /dev/sd > /dev/null 2>&1 || echo refused; head -c 3 /dev/zero | wc -c; \
        mkdir /sys/fs/cgroup/x 2>/dev/null || echo protected; sleep 7777 & sleep 1000";
    let id = world.start(&sandbox, &sh("main", script)).await;
    let log = world.engine.container_status(&id).await.unwrap().log_path;
    eventually("the script has run", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("protected"))
    })
    .await;
    let log = world.log(&world.engine.container_status(&id).await.unwrap());
    assert!(
        log.starts_with("0::/\n"),
        "its own group is the root of what it sees: {log}"
    );
    assert!(log.contains("refused\n3\n"), "{log}");
    let output = world
        .engine
        .exec_sync(&id, &cmd(&["grep", "^0:", "/proc/self/cgroup"]), LONG)
        .await;
    assert_eq!(output.unwrap().stdout, b"0::/\n");
    let stats = world.engine.container_stats(&id).await.unwrap();
    assert!(stats.cpu.unwrap().usage_core_nano_seconds > 0);
    world.engine.stop_container(&id, Duration::ZERO).await.unwrap();
    assert_eq!(world.engine.container_status(&id).await.unwrap().exit_code, Some(137));
    let other = world.start(&sandbox, &sh("other", "sleep 1000")).await;
    let output = world.engine.exec_sync(&other, &cmd(&["ps"]), LONG).await.unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    assert!(!list.contains("7777"), "{list}");
    world.end().await;
}
