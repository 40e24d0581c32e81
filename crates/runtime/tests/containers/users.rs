//! Pods with users of their own: root inside is nobody outside, and everything else works as ever.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use sampan_runtime::*;

use crate::testing;
use crate::world::*;

const FIRST: u32 = 7 << 16;

/// A sandbox whose users are `FIRST..FIRST + 65536` of the node.
async fn sandbox(world: &World, change: impl FnOnce(&mut PodSandboxConfig)) -> (String, std::path::PathBuf) {
    let users = UserNamespace {
        path: world.dir.path().join("u1.user"),
        first: FIRST,
        length: 1 << 16,
    };
    let network = world.dir.path().join("u1.net");
    world.engine.make_namespaces(&users, &network).await.unwrap();
    world.engine.make_namespaces(&users, &network).await.unwrap();
    let mut config = world.pod("u1");
    config.linux.netns = Some(network.clone());
    config.linux.users = Some(users);
    change(&mut config);
    (world.engine.run_pod_sandbox(&config).await.unwrap(), network)
}

async fn end(world: World) {
    world.engine.cleanup().await.unwrap();
    for name in ["u1.user", "u1.net"] {
        let path = world.dir.path().join(name);
        nix::mount::umount(&path).unwrap();
    }
    world.end().await;
}

#[tokio::test]
async fn root_inside_is_nobody_outside() {
    let Some(world) = World::new("userns").await else {
        return;
    };
    let (sandbox, _) = sandbox(&world, |_| {}).await;
    let volume = world.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("of-app"), "secret").unwrap();
    std::fs::set_permissions(volume.join("of-app"), PermissionsExt::from_mode(0o400)).unwrap();
    chown(volume.join("of-app"), Some(1001), Some(1002)).unwrap();
    let mount = Mount {
        container_path: "/data/deep".into(),
        host_path: volume.clone(),
        ..Mount::default()
    };
    let script = "
        cat /proc/self/uid_map; id -u
        stat -c '%u %g %n' / /bin/busybox /etc/passwd /data /data/deep /data/deep/of-app /dev /dev/shm /dev/null
        touch /data/deep/made /made /dev/shm/made && chown app:app /made && stat -c '%u:%g' /made /data/deep/made
        echo changed >> /etc/passwd && stat -c '%u' /etc/passwd
        hostname changed && hostname
        ip link add dummy0 type dummy 2>/dev/null; ip addr add 192.0.2.7/32 dev lo && ip addr show lo | grep -o 192.0.2.7
        echo x > /dev/null && mount -t tmpfs x /tmp 2>/dev/null || echo no mount
        mknod /dev/sda b 8 0 2>/dev/null || echo no device";
    let mut config = sh("root", script);
    config.mounts.push(mount.clone());
    config.linux.security_context.capabilities.add = vec!["NET_ADMIN".into(), "SYS_ADMIN".into()];
    let (status, log) = world.script_in(&sandbox, config).await;
    let mut lines = log.lines();
    let map: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", &FIRST.to_string(), "65536"], "{status:?}");
    let rest: Vec<&str> = lines.collect();
    assert_eq!(
        rest,
        [
            "0",
            "0 0 /",
            "0 0 /bin/busybox",
            "0 0 /etc/passwd",
            "0 0 /data",
            "0 0 /data/deep",
            "1001 1002 /data/deep/of-app",
            "0 0 /dev",
            "0 0 /dev/shm",
            "0 0 /dev/null",
            "1001:1002",
            "0:0",
            "0",
            "changed",
            "192.0.2.7",
            "no device",
        ],
        "{status:?}"
    );
    // On disk the volume's files have the owners the Pod sees; another Pod may use them next.
    let made = std::fs::metadata(volume.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0));

    // Another user reads what is theirs and nothing else, and joins as themselves.
    let mut config = sh("app", "cat /data/deep/of-app; echo; id -u; sleep 1000");
    config.mounts.push(mount);
    config.linux.security_context.run_as_username = "app".into();
    let id = world.start(&sandbox, &config).await;
    let pid = world.engine.container_status(&id).await.unwrap().pid;
    let script = "id -u; cat /proc/self/uid_map | wc -l; cat /data/deep/of-app; kill -0 1 && echo may signal";
    let joined = world
        .engine
        .exec_sync(&id, &cmd(&["sh", "-c", script]), LONG)
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&joined.stdout).into_owned();
    assert_eq!(
        said,
        "1001\n1\nsecretmay signal\n",
        "{:?}",
        String::from_utf8_lossy(&joined.stderr)
    );
    let owner = std::fs::metadata(format!("/proc/{pid}")).unwrap().uid();
    assert_eq!(owner, FIRST + 1001, "a user the node does not know");
    end(world).await;
}

#[tokio::test]
async fn namespaces_and_their_parameters_belong_to_the_pod() {
    let Some(world) = World::new("userns-ns").await else {
        return;
    };
    let (sandbox, network) = sandbox(&world, |config| {
        config.linux.namespaces.pid = NamespaceMode::Pod;
        config.linux.sysctls = [
            ("net.ipv4.ip_local_port_range".to_owned(), "40000 40001".to_owned()),
            ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ]
        .into();
    })
    .await;
    let script = "
        cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ping_group_range
        nc -l -p 80 -e true & sleep 0.2; kill $! && echo low port
        stat -c %u /proc/1";
    let mut config = sh("params", script);
    config.linux.security_context.run_as_user = Some(5);
    let (status, log) = world.script_in(&sandbox, config).await;
    let words: Vec<&str> = log.split_whitespace().collect();
    assert_eq!(
        words,
        ["40000", "40001", "1", "0", "65535", "low", "port", "0"],
        "{status:?}"
    );
    // A terminal belongs to its user.
    let mut config = sh(
        "terminal",
        "tty; stat -c %u $(tty); echo x > /dev/console && echo console",
    );
    config.tty = true;
    config.linux.security_context.run_as_user = Some(5);
    let (status, log) = world.script_in(&sandbox, config).await;
    let lines: Vec<&str> = log.lines().map(str::trim).collect();
    assert_eq!(lines, ["/dev/pts/0", "5", "x", "console"], "{status:?}");
    // A user that is not there.
    let mut config = sh("stranger", "id");
    config.linux.security_context.run_as_user = Some(70_000);
    let id = world.engine.create_container(&sandbox, &config).await.unwrap();
    let error = world.engine.start_container(&id).await.unwrap_err();
    assert!(error.to_string().contains("set the"), "{error}");
    drop(network);
    end(world).await;
}

#[tokio::test]
async fn what_cannot_be_mapped_is_said() {
    let Some(world) = World::new("userns-map").await else {
        return;
    };
    let (sandbox, _) = sandbox(&world, |_| {}).await;
    let mut config = sh("proc", "true");
    config.mounts.push(Mount {
        container_path: "/host-proc".into(),
        host_path: "/proc".into(),
        ..Mount::default()
    });
    let id = world.engine.create_container(&sandbox, &config).await.unwrap();
    let error = world.engine.start_container(&id).await.unwrap_err();
    assert!(error.to_string().contains("no id-mapped mounts"), "{error}");
    end(world).await;
    assert!(testing::root_or_skip());
}
