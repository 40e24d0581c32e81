//! Users, capabilities, seccomp, and what of the node can be seen.

use sampan_runtime::*;

use crate::testing;
use crate::world::*;

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

#[tokio::test]
async fn declared_volumes_stay_writable_and_low_ports_are_free_for_all() {
    let Some(world) = World::new("volumes").await else {
        return;
    };
    let Some(base) = testing::busybox() else { return };
    let above = testing::Tar::new()
        .dir("data", 0o777)
        .file("data/kept", b"content\n")
        .finish();
    let mut layers = base.layers;
    layers.push(above);
    let run = serde_json::json!({"Env": ["PATH=/bin"], "Volumes": {"/data": {}, "/fresh/one": {}}});
    let archive = world.dir.path().join("volumes.tar");
    let image = testing::TestImage::new(layers, run);
    std::fs::write(&archive, image.docker_archive("volumes:1")).unwrap();
    world.engine.import_image(&archive, None).await.unwrap();
    let sandbox = world.sandbox("u1").await;
    let script = "cat /data/kept; touch /data/x && echo wrote; touch /fresh/one/x && echo wrote; \
        touch /x 2>&1 || echo protected; (echo hi | nc -l -p 80 127.0.0.1 & sleep 0.2; nc 127.0.0.1 80 < /dev/null)";
    let mut config = sh("main", script);
    config.image = "volumes:1".into();
    config.linux.security_context.readonly_rootfs = true;
    config.linux.security_context.run_as_user = Some(0);
    let (_, log) = world.script_in(&sandbox, config).await;
    let expected = "content\nwrote\nwrote\ntouch: /x: Read-only file system\nprotected\n";
    assert!(log.starts_with(expected), "{log}");
    let mut port = sh("port", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
    port.linux.security_context.run_as_user = Some(1001);
    let (_, log) = world.script_in(&sandbox, port).await;
    assert_eq!(log, "0\n");
    let mut pod = world.pod("u2");
    let sysctls = [
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_unprivileged_port_start", "1000"),
    ];
    pod.linux.sysctls = sysctls.map(|(k, v)| (k.into(), v.into())).into();
    let sandbox = world.engine.run_pod_sandbox(&pod).await.unwrap();
    let script = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let (_, log) = world.script_in(&sandbox, sh("sysctl", script)).await;
    assert_eq!(log, "1\n1000\n");
    world.end().await;
}
