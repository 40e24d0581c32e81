//! A table of ways out of a container that others have found, each of which must lead nowhere: working directories
//! through descriptors (CVE-2024-21626), the runtime's own program (CVE-2019-5736), mounts over `/proc` and `/dev` and
//! links in their place (CVE-2019-16884, CVE-2025-31133, -52565, -52881), links in images and volumes, and what a shell
//! with root's powers tries.
//!
//! A file of the node's that no container was given stands for all of the node.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sampan_runtime::*;

use crate::testing::{self, Tar, TestImage};
use crate::world::*;

const SECRET: &str = "secret-of-the-node";

/// What was tried, and what got through.
#[derive(Default)]
struct Attempts {
    tried: usize,
    through: Vec<String>,
}

impl Attempts {
    fn note(&mut self, what: impl Into<String>, refused: bool) {
        self.tried += 1;
        if !refused {
            self.through.push(what.into());
        }
    }

    #[track_caller]
    fn all_refused(self, what: &str, at_least: usize) {
        println!(
            "{what}: {} attempts, {} refused",
            self.tried,
            self.tried - self.through.len()
        );
        assert_eq!(self.through, Vec::<String>::new(), "{what}: these got through");
        assert!(self.tried >= at_least, "{what}: only {} attempts", self.tried);
    }
}

/// A world with a directory that is no container's business.
struct Prison {
    world: World,
    victim: PathBuf,
}

impl Prison {
    async fn new(name: &str) -> Option<Self> {
        let world = World::new(name).await?;
        let victim = world.dir.path().join("victim");
        std::fs::create_dir_all(victim.join("below")).unwrap();
        std::fs::write(victim.join("secret"), SECRET).unwrap();
        Some(Prison { world, victim })
    }

    /// Whether the node's directory is as it was.
    fn untouched(&self) -> bool {
        let mut names: Vec<_> = std::fs::read_dir(&self.victim)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        let secret = std::fs::read_to_string(self.victim.join("secret")).unwrap();
        let below = std::fs::read_dir(self.victim.join("below")).unwrap().count();
        names == ["below", "secret"] && secret == SECRET && below == 0
    }

    /// Runs to the end, or not at all; what was said either way.
    async fn run(&self, sandbox: &str, config: ContainerConfig) -> String {
        let id = match self.world.engine.create_container(sandbox, &config).await {
            Ok(id) => id,
            Err(error) => return format!("refused: {error}"),
        };
        if let Err(error) = self.world.engine.start_container(&id).await {
            return format!("refused: {error}");
        }
        let status = self.world.wait(&id).await;
        self.world.log(&status)
    }

    /// An image on top of the usual one.
    async fn image(&self, name: &str, above: Tar, run: serde_json::Value) -> bool {
        let Some(base) = testing::busybox() else { return false };
        let mut layers = base.layers;
        layers.push(above.finish());
        let archive = self.world.dir.path().join("image.tar");
        std::fs::write(&archive, TestImage::new(layers, run).docker_archive(name)).unwrap();
        self.world.engine.import_image(&archive, None).await.unwrap();
        true
    }

    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.world.dir.path().join("volumes").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn text(&self, below: &str) -> String {
        self.victim.join(below).to_str().unwrap().to_owned()
    }
}

fn mounted(name: &str, script: &str, host: &Path, path: &str) -> ContainerConfig {
    let mut config = sh(name, script);
    config.mounts.push(Mount {
        container_path: path.into(),
        host_path: host.into(),
        ..Mount::default()
    });
    config
}

#[tokio::test]
async fn working_directories_stay_inside() {
    let Some(prison) = Prison::new("cwd").await else { return };
    let sandbox = prison.world.sandbox("u1").await;
    let mut attempts = Attempts::default();
    let up = "../".repeat(24);
    let secret = prison.text("secret");
    // Wherever it is: the node's root is some steps up, and its files below that.
    let script = format!(
        "pwd -P; cat ./{up}{0} {up}{0} 2>/dev/null; cat ../secret ./secret 2>/dev/null; touch {up}{1}/made 2>/dev/null; true",
        &secret[1..],
        &prison.text("")[1..]
    );
    let mut dirs: Vec<String> = (0..32).map(|fd| format!("/proc/self/fd/{fd}")).collect();
    for fd in [3, 5, 7, 8, 9] {
        dirs.push(format!("/proc/self/fd/{fd}/../../../../../..{}", prison.text("new")));
        dirs.push(format!("/proc/thread-self/fd/{fd}"));
        dirs.push(format!("/dev/fd/{fd}"));
    }
    for other in [
        "/proc/self/cwd",
        "/proc/self/cwd/../../..",
        "/proc/self/root/..",
        "/proc/1/root",
        "/proc/1/cwd",
        "/proc/1/fd/3",
        "/proc/self/task/1/cwd",
        "/../../../..",
    ] {
        dirs.push(other.into());
    }
    dirs.push(format!("{up}{}", &prison.text("")[1..]));
    for (index, dir) in dirs.iter().enumerate() {
        let mut config = sh(&format!("c{index}"), &script);
        config.working_dir = dir.clone();
        let said = prison.run(&sandbox, config).await;
        attempts.note(format!("{dir}: {said}"), !said.contains(SECRET) && prison.untouched());
    }
    // The same from the image, and by a link that is changed while the container runs: exec looks again.
    for (index, link) in ["/proc/self/fd/7", "/proc/self/fd/8", "/proc/1/root", &up, &secret]
        .into_iter()
        .enumerate()
    {
        let tar = Tar::new().link("work", link);
        let run = serde_json::json!({"Env": ["PATH=/bin"], "WorkingDir": "/work"});
        let name = format!("work:{index}");
        if !prison.image(&name, tar, run).await {
            return;
        }
        let mut config = sh(&format!("image{index}"), &script);
        config.image = name;
        let said = prison.run(&sandbox, config).await;
        attempts.note(
            format!("image {link}: {said}"),
            !said.contains(SECRET) && prison.untouched(),
        );

        let volume = prison.dir(&format!("v{index}"));
        std::fs::create_dir(volume.join("work")).unwrap();
        let mut config = mounted(&format!("exec{index}"), "sleep 1000", &volume, "/v");
        config.working_dir = "/v/work".into();
        let id = prison.world.start(&sandbox, &config).await;
        std::fs::remove_dir(volume.join("work")).unwrap();
        symlink(link, volume.join("work")).unwrap();
        let command = cmd(&["sh", "-c", &script]);
        let said = match prison.world.engine.exec_sync(&id, &command, LONG).await {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) => format!("refused: {error}"),
        };
        attempts.note(
            format!("exec {link}: {said}"),
            !said.contains(SECRET) && prison.untouched(),
        );
    }
    attempts.all_refused("working directories out of the container", 60);
    prison.world.end().await;
}

#[tokio::test]
async fn the_runtimes_program_cannot_be_overwritten() {
    let Some(prison) = Prison::new("exe").await else { return };
    let sandbox = prison.world.sandbox("u1").await;
    let program = Path::new(env!("CARGO_BIN_EXE_sampan-shim"));
    let before = std::fs::read(program).unwrap();
    let mut attempts = Attempts::default();
    // Programs that are the runtime's own, and a script whose interpreter it is.
    let tar = Tar::new()
        .owned_file("bin/evil", b"#!/proc/self/exe\n", 0o755, 0, 0)
        .link("bin/self", "/proc/self/exe");
    if !prison
        .image("evil:1", tar, serde_json::json!({"Env": ["PATH=/bin"]}))
        .await
    {
        return;
    }
    for (index, command) in [
        ["/proc/self/exe", "x"],
        ["/bin/evil", "x"],
        ["/bin/self", "x"],
        ["evil", "x"],
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = sh(&format!("c{index}"), "");
        config.image = "evil:1".into();
        config.command = cmd(&command);
        let said = prison.run(&sandbox, config).await;
        attempts.note(
            format!("{command:?}: {said}"),
            std::fs::read(program).unwrap() == before,
        );
    }
    // Somebody waits inside for those who come in, and writes to what they came from.
    // Also to what they still hold: the node's files by their root, directory or descriptors.
    let watcher = format!(
        "while true; do for p in /proc/[0-9]*; do cat $p/root{secret} $p/cwd{secret} $p/cwd/../../../../..{secret} 2>/dev/null; \
        for f in $p/fd/*; do cat $f{secret} $f/../../../../../../../..{secret} 2>/dev/null; done; \
        case $(readlink $p/exe) in /bin/busybox|'') ;; *) \
        echo evil 2>/dev/null >> $p/exe && test $(readlink $p/exe) != /bin/busybox && echo WROTE;; esac; done; done",
        secret = prison.text("secret")
    );
    let mut config = sh("watcher", &watcher);
    config.image = "evil:1".into();
    config.linux.security_context.capabilities.add = vec!["SYS_PTRACE".into(), "DAC_READ_SEARCH".into()];
    let id = prison.world.start(&sandbox, &config).await;
    for index in 0..100 {
        let command = if index % 2 == 0 { "/bin/evil" } else { "/bin/true" };
        let _refused_or_not = prison.world.engine.exec_sync(&id, &cmd(&[command]), LONG).await.is_ok();
        attempts.note(format!("exec {index}"), std::fs::read(program).unwrap() == before);
    }
    prison
        .world
        .engine
        .stop_container(&id, std::time::Duration::ZERO)
        .await
        .unwrap();
    let status = prison.world.wait(&id).await;
    let said = prison.world.log(&status);
    attempts.note(
        format!("the watcher: {said}"),
        !said.contains("WROTE") && !said.contains(SECRET),
    );
    attempts.all_refused("writes to the runtime's program", 45);
    prison.world.end().await;
}

#[tokio::test]
async fn proc_and_dev_are_the_kernels() {
    let Some(prison) = Prison::new("proc").await else {
        return;
    };
    let sandbox = prison.world.sandbox("u1").await;
    let mut attempts = Attempts::default();
    let fake = prison.dir("fake");
    for dir in [
        "self/attr/apparmor",
        "thread-self/attr/apparmor",
        "sys/kernel",
        "1/attr",
        "irq",
    ] {
        std::fs::create_dir_all(fake.join(dir)).unwrap();
    }
    for file in [
        "self/attr/exec",
        "thread-self/attr/apparmor/exec",
        "sysrq-trigger",
        "kcore",
    ] {
        std::fs::write(fake.join(file), "").unwrap();
    }
    let file = fake.join("kcore");
    // Mounts over /proc or a part of it.
    let tar = Tar::new()
        .link("p", "/proc")
        .link("attr", "/proc/self/attr")
        .link("q", "proc/../proc/sys");
    if !prison
        .image("links:1", tar, serde_json::json!({"Env": ["PATH=/bin"]}))
        .await
    {
        return;
    }
    for (index, (host, path)) in [
        (&fake, "/proc"),
        (&fake, "/proc/"),
        (&fake, "//proc"),
        (&fake, "/x/../proc"),
        (&fake, "/proc/self/attr"),
        (&fake, "/proc/1/attr"),
        (&fake, "/proc/sys"),
        (&fake, "/proc/sys/kernel"),
        (&fake, "/p"),
        (&fake, "/p/sys"),
        (&fake, "/attr"),
        (&fake, "/q"),
        (&file, "/proc/kcore"),
        (&file, "/proc/sysrq-trigger"),
        (&file, "/proc/self/attr/exec"),
        (&file, "/proc/1/environ"),
        (&file, "/proc/sys/kernel/core_pattern"),
        (&file, "/attr/exec"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = mounted(&format!("proc{index}"), "echo STARTED", host, path);
        config.image = "links:1".into();
        let said = prison.run(&sandbox, config).await;
        attempts.note(format!("a mount at {path}: {said}"), !said.contains("STARTED"));
    }
    // What is honest works: figures for a container, and the node's /proc elsewhere or in place.
    for (host, path) in [
        (&file, "/proc/meminfo"),
        (&PathBuf::from("/proc"), "/host/proc"),
        (&PathBuf::from("/proc"), "/proc"),
    ] {
        let name = path.replace('/', "-");
        let said = prison.run(&sandbox, mounted(&name, "echo STARTED", host, path)).await;
        assert!(said.contains("STARTED"), "{path}: {said}");
    }

    // Links in place of what the runtime itself uses in /dev.
    let probe = "head -c 16 /proc/kcore | wc -c; head -c 16 /proc/keys | wc -c; \
        (echo '|/bin/evil' > /proc/sys/kernel/core_pattern) 2>/dev/null && echo WROTE; \
        (echo '|/bin/evil' > /dev/console) 2>/dev/null; (echo h > /proc/sysrq-trigger) 2>/dev/null && echo WROTE; \
        head -c 16 /proc/timer_list 2>/dev/null | wc -c; true";
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let mut index = 0;
    for (link, target) in [
        ("null", "/proc/kcore"),
        ("null", "/proc/keys"),
        ("null", "/proc/timer_list"),
        ("null", "/proc/sys/kernel/core_pattern"),
        ("null", "/proc/sysrq-trigger"),
        ("null", "/proc/self/fd/3"),
        ("null", "/etc/passwd"),
        ("null", "/proc"),
        ("console", "/proc/sys/kernel/core_pattern"),
        ("console", "/proc/sysrq-trigger"),
        ("pts", "/proc/self/fd"),
        ("pts", "/tmp"),
        ("ptmx", "/proc/sys/kernel/core_pattern"),
        ("fd", "/proc/1/root"),
        ("shm", "/proc/sys"),
        ("mqueue", "/proc/sys"),
    ] {
        for tty in [false, true] {
            index += 1;
            let dev = prison.dir(&format!("dev{index}"));
            symlink(target, dev.join(link)).unwrap();
            let mut config = mounted(&format!("dev{index}"), probe, &dev, "/dev");
            config.tty = tty;
            let said = prison.run(&sandbox, config).await.replace('\r', "");
            let hidden = said.starts_with("refused") || !said.lines().any(|line| line == "16" || line == "WROTE");
            attempts.note(format!("/dev/{link} to {target}, terminal {tty}: {said}"), hidden);
        }
    }
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(),
        pattern
    );
    attempts.all_refused("mounts and links in /proc and /dev", 45);
    prison.world.end().await;
}

#[tokio::test]
async fn links_lead_nowhere() {
    let Some(prison) = Prison::new("links").await else {
        return;
    };
    let sandbox = prison.world.sandbox("u1").await;
    let mut attempts = Attempts::default();
    let up = format!("{}{}", "../".repeat(24), &prison.text("")[1..]);
    let victim = prison.text("");
    let volume = prison.dir("volume");
    std::fs::write(volume.join("mine"), "").unwrap();
    let file = volume.join("mine");
    for (index, link) in [
        victim.as_str(),
        &up,
        "/proc/self/fd/7",
        "/proc/1/root",
        "/proc/self/root/..",
        "loop",
    ]
    .into_iter()
    .enumerate()
    {
        // The image has links where mounts and devices shall be.
        let tar = Tar::new().link("data", link).link("loop", "loop").link("mnt", "data");
        let name = format!("links:{index}");
        if !prison
            .image(
                &name,
                tar,
                serde_json::json!({"Env": ["PATH=/bin"], "Volumes": {"/data/volume": {}}}),
            )
            .await
        {
            return;
        }
        for (at, (host, path)) in [
            (&volume, "/data"),
            (&volume, "/data/below"),
            (&volume, "/data/new/deep"),
            (&file, "/data/secret"),
            (&file, "/mnt/new"),
            (&volume, "/mnt/../mnt/below"),
        ]
        .into_iter()
        .enumerate()
        {
            for readonly in [false, true] {
                let script = format!(
                    "cat {path}/secret /data/secret {path}/../secret 2>/dev/null; touch {path}/made /data/made; true"
                );
                let mut config = mounted(&format!("m{index}-{at}-{readonly}"), &script, host, path);
                config.image = name.clone();
                config.linux.security_context.readonly_rootfs = readonly;
                let said = prison.run(&sandbox, config).await;
                let _own = std::fs::remove_file(volume.join("made"));
                attempts.note(
                    format!("{link} {path}: {said}"),
                    !said.contains(SECRET) && prison.untouched(),
                );
            }
        }
    }
    // A volume full of links, read from inside.
    for (index, link) in [victim.as_str(), &up, "/proc/1/root", "/proc/self/fd/3", "/proc/1/cwd"]
        .into_iter()
        .enumerate()
    {
        symlink(link, volume.join(format!("out{index}"))).unwrap();
        let script = format!(
            "cat /v/out{index}/secret /v/out{index}/../secret /v/out{index}{victim}/secret; echo x > /v/out{index}/made"
        );
        let said = prison
            .run(&sandbox, mounted(&format!("v{index}"), &script, &volume, "/v"))
            .await;
        attempts.note(
            format!("a volume's {link}: {said}"),
            !said.contains(SECRET) && prison.untouched(),
        );
    }
    // A log that a link has taken the place of is not read.
    let (status, _) = prison.world.script_in(&sandbox, sh("log", "echo hello")).await;
    let log = PathBuf::from(&status.log_path);
    std::fs::remove_file(&log).unwrap();
    let record = format!("2024-01-01T00:00:00Z stdout F {SECRET}\n");
    let elsewhere = prison.world.dir.path().join("elsewhere");
    std::fs::write(&elsewhere, &record).unwrap();
    symlink(&elsewhere, &log).unwrap();
    let mut read = Vec::new();
    let result = logs::read(&log, &logs::LogOptions::default(), std::future::pending(), &mut read).await;
    attempts.note("a log that is a link", result.is_err() && read.is_empty());
    attempts.all_refused("links in images, volumes and logs", 75);
    prison.world.end().await;
}

#[tokio::test]
async fn root_inside_is_nobody_outside() {
    let Some(prison) = Prison::new("root").await else {
        return;
    };
    let sandbox = prison.world.sandbox("u1").await;
    let mut attempts = Attempts::default();
    let secret = prison.text("secret");
    // Each says DONE if it worked.
    for (index, script) in [
        format!("cat {secret} && echo DONE"),
        format!("cat /proc/1/root{secret} && echo DONE"),
        format!("mkdir /tmp/j; chroot /tmp/j /bin/true; cd ../../../../../..; cat .{secret} && echo DONE"),
        "mount -t proc proc /tmp && echo DONE".into(),
        "mount -o remount,rw /proc/sys && echo DONE".into(),
        "mount --bind / /tmp && echo DONE".into(),
        "mount -t cgroup -o memory cgroup /tmp && echo DONE".into(),
        "mount -t cgroup2 cgroup2 /tmp && echo DONE".into(),
        "mount -t debugfs d /tmp && echo DONE".into(),
        "/bin/busybox umount /proc/kcore && echo DONE".into(),
        "/bin/busybox umount /proc/sys && echo DONE".into(),
        "/bin/busybox umount -l /proc && echo DONE".into(),
        "/bin/busybox pivot_root /tmp /tmp && echo DONE".into(),
        "/bin/busybox nsenter -t 1 -m -- true && echo DONE".into(),
        "unshare -m true && echo DONE".into(),
        "unshare -n true && echo DONE".into(),
        "echo b > /proc/sysrq-trigger && echo DONE".into(),
        "echo x > /proc/sys/kernel/core_pattern && echo DONE".into(),
        "echo x > /proc/sys/kernel/modprobe && echo DONE".into(),
        "echo x > /proc/sys/kernel/hostname && echo DONE".into(),
        "echo 1 > /proc/sys/vm/drop_caches && echo DONE".into(),
        "echo 1 > /proc/irq/default_smp_affinity && echo DONE".into(),
        "echo x > /sys/kernel/uevent_helper && echo DONE".into(),
        "echo mem > /sys/power/state && echo DONE".into(),
        "for f in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent; do echo x > $f && echo DONE; done"
            .into(),
        "for f in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs; do echo 1 > $f && echo DONE; done".into(),
        "mkdir /sys/fs/cgroup/memory/x /sys/fs/cgroup/x && echo DONE".into(),
        "test $(head -c 16 /proc/kcore | wc -c) != 0 && echo DONE".into(),
        "test $(head -c 16 /proc/keys | wc -c) != 0 && echo DONE".into(),
        "test $(head -c 16 /proc/timer_list | wc -c) != 0 && echo DONE".into(),
        "test -n \"$(ls /sys/firmware)\" && echo DONE".into(),
        "test -n \"$(ls /proc/acpi)\" && echo DONE".into(),
        "mknod /tmp/d b 8 0 && head -c 1 /tmp/d && echo DONE".into(),
        "mknod /tmp/m c 1 1 && head -c 1 /tmp/m && echo DONE".into(),
        "mknod /tmp/k c 1 11 && head -c 1 /tmp/k && echo DONE".into(),
        "mknod /tmp/f c 10 229 && head -c 1 /tmp/f && echo DONE".into(),
        "test $(ls -d /proc/[0-9]* | wc -l) -gt 8 && echo DONE".into(),
        "kill -0 2 && kill -0 3 && kill -0 4 && kill -0 5 && echo DONE".into(),
        "/bin/busybox insmod /bin/busybox && echo DONE".into(),
        "/bin/busybox swapoff -a && /bin/busybox swapon /bin/busybox && echo DONE".into(),
        "/bin/busybox hwclock -w && echo DONE".into(),
        "/bin/busybox date -s 2001-01-01; test $(/bin/busybox date +%Y) = 2001 && echo DONE".into(),
        "/bin/busybox reboot -f && echo DONE".into(),
        "hostname other && echo DONE".into(),
        "ip link add x type dummy && echo DONE".into(),
        "dd if=/dev/mem bs=1 count=1 && echo DONE".into(),
        "ls /dev | grep -E '^(sd|vd|nvme|mem|kmsg|kvm|loop)' && echo DONE".into(),
        "/bin/busybox dmesg && echo DONE".into(),
        "ls /proc/self/fd | grep -vE '^[0-3]$' && echo DONE".into(),
        "grep -E ' / / .* (ext4|xfs|btrfs) ' /proc/self/mountinfo && echo DONE".into(),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = sh(&format!("c{index}"), &script);
        config.linux.security_context.seccomp = SecurityProfile::RuntimeDefault;
        let said = prison.run(&sandbox, config).await;
        attempts.note(
            format!("{script}: {said}"),
            !said.contains("DONE") && prison.untouched(),
        );
    }
    // What images and containers hold, setuid programs and devices too, is not for the node's other users.
    for dir in ["data", "run"] {
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &prison.world.dir.path().join(dir).metadata().unwrap().permissions(),
        );
        attempts.note(format!("a user of the node in {dir}: {mode:o}"), mode & 0o077 == 0);
    }
    attempts.all_refused("root in a container", 45);
    prison.world.end().await;
}

#[tokio::test]
async fn a_command_runs_as_who_the_container_is() {
    let Some(prison) = Prison::new("who").await else { return };
    let sandbox = prison.world.sandbox("u1").await;
    let mut attempts = Attempts::default();
    // Everybody may write the list of users in this image: the name must not come to mean root.
    let users = b"root:x:0:0:root:/root:/bin/sh\napp:x:1001:1002:App:/home/app:/bin/sh\n";
    let tar = Tar::new().owned_file("etc/passwd", users, 0o666, 0, 0);
    if !prison
        .image("users:1", tar, serde_json::json!({"Env": ["PATH=/bin"], "User": "app"}))
        .await
    {
        return;
    }
    for (index, change) in [
        "echo app:x:0:0:root:/:/bin/sh > /etc/passwd",
        "echo evil:x:1001:0:root:/:/bin/sh > /etc/passwd",
        "echo > /etc/passwd",
    ]
    .into_iter()
    .enumerate()
    {
        for by_name in [true, false] {
            let mut config = sh(
                &format!("c{index}-{by_name}"),
                &format!("{change}; echo ready; sleep 1000"),
            );
            config.image = "users:1".into();
            let security = &mut config.linux.security_context;
            if by_name {
                security.run_as_username = "app".into();
            } else {
                security.run_as_user = Some(1001);
                security.run_as_group = Some(1002);
            }
            let id = prison.world.start(&sandbox, &config).await;
            let status = prison.world.engine.container_status(&id).await.unwrap();
            eventually("the change is made", || {
                std::fs::read_to_string(&status.log_path).is_ok_and(|log| log.contains("ready"))
            })
            .await;
            let script = "id -u; id -g; grep CapEff /proc/self/status | grep -o '[0-9a-f]*$'";
            let output = prison
                .world
                .engine
                .exec_sync(&id, &cmd(&["sh", "-c", script]), LONG)
                .await
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            attempts.note(
                format!("{change} {by_name}: {said}"),
                said == "1001\n1002\n0000000000000000\n",
            );
        }
    }
    // Lists of users that are no files, or never end.
    for (index, list) in ["/dev/zero", "/proc/kmsg", "/etc/passwd", "/proc/self/fd/0"]
        .into_iter()
        .enumerate()
    {
        let tar = Tar::new().file("etc/.wh.passwd", b"").link("etc/passwd", list);
        let name = format!("odd:{index}");
        if !prison
            .image(&name, tar, serde_json::json!({"Env": ["PATH=/bin"]}))
            .await
        {
            return;
        }
        // Not `id`, which reads the list itself.
        let mut config = sh(&format!("odd{index}"), "awk '/^Uid/{print $2}' /proc/self/status");
        config.image = name;
        config.linux.security_context.run_as_user = Some(1001);
        let said = prison.run(&sandbox, config).await;
        attempts.note(
            format!("{list}: {said}"),
            said.starts_with("refused") || said == "1001\n",
        );
    }
    attempts.all_refused("commands as somebody else", 10);
    prison.world.end().await;
}
