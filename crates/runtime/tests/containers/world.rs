//! What the tests share: an engine on directories of its own, an image, and short words.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sampan_runtime::embedded::{Config, Embedded};
use sampan_runtime::*;
use sampan_tasks::Tasks;

use crate::testing;

pub const IMAGE: &str = "test.local/busybox:1";
pub const LONG: Duration = Duration::from_secs(20);

/// The engine, which a test can take away and give back.
pub struct Engine(pub Option<Arc<Embedded>>);

impl std::ops::Deref for Engine {
    type Target = Arc<Embedded>;
    fn deref(&self) -> &Arc<Embedded> {
        self.0.as_ref().expect("there is an engine")
    }
}

impl Engine {
    pub fn take(&mut self) -> Option<Arc<Embedded>> {
        self.0.take()
    }
}

pub struct World {
    pub engine: Engine,
    pub tasks: Tasks,
    pub dir: tempfile::TempDir,
    pub name: String,
}

pub fn config(dir: &Path, name: &str) -> Config {
    let mut config = Config::new(dir.join("data"), dir.join("run"));
    config.exe = Some(env!("CARGO_BIN_EXE_sampan-shim").into());
    config.shim_cgroup = format!("/sampan-test-shims-{name}");
    config
}

impl World {
    pub async fn new(name: &str) -> Option<Self> {
        Self::with(name, |_| {}).await
    }

    pub async fn with(name: &str, change: impl FnOnce(&mut Config)) -> Option<Self> {
        if !testing::root_or_skip() {
            return None;
        }
        let image = testing::busybox()?;
        let dir = tempfile::tempdir().unwrap();
        let name = format!("{name}-{}", std::process::id());
        let tasks = Tasks::new();
        let mut config = config(dir.path(), &name);
        change(&mut config);
        let engine = Embedded::open(config, &tasks).await.unwrap();
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

    pub fn pod(&self, uid: &str) -> PodSandboxConfig {
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

    pub async fn sandbox(&self, uid: &str) -> String {
        self.engine.run_pod_sandbox(&self.pod(uid)).await.unwrap()
    }

    pub async fn start(&self, sandbox: &str, config: &ContainerConfig) -> String {
        let id = self.engine.create_container(sandbox, config).await.unwrap();
        self.engine.start_container(&id).await.unwrap();
        id
    }

    pub async fn wait(&self, id: &str) -> ContainerStatus {
        tokio::time::timeout(LONG, self.engine.exited(id))
            .await
            .expect("the container ends");
        self.engine.container_status(id).await.unwrap()
    }

    pub fn log(&self, status: &ContainerStatus) -> String {
        let text = std::fs::read_to_string(&status.log_path).unwrap();
        text.lines()
            .map(|l| l.splitn(4, ' ').nth(3).unwrap_or("").to_owned() + "\n")
            .collect()
    }

    /// Runs a shell script to its end; returns its code and output.
    pub async fn script_in(&self, sandbox: &str, config: ContainerConfig) -> (ContainerStatus, String) {
        let id = self.start(sandbox, &config).await;
        let status = self.wait(&id).await;
        let log = self.log(&status);
        (status, log)
    }

    pub async fn end(self) {
        self.engine.cleanup().await.unwrap();
        assert_eq!(mounts_below(self.dir.path()), Vec::<String>::new());
        self.tasks.shutdown(Duration::from_secs(5)).await;
        let parent = format!("/sampan-test-{}", self.name);
        let version = sampan_runtime::Runtime::status(&**self.engine)
            .await
            .unwrap()
            .cgroup_version;
        sampan_runtime::cgroups::Cgroups::detect_as(Some(version))
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

pub fn mounts_below(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let dir = dir.to_str().unwrap();
    table
        .lines()
        .filter(|line| line.contains(dir))
        .map(str::to_owned)
        .collect()
}

pub fn sh(name: &str, script: &str) -> ContainerConfig {
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

pub fn cmd(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

pub async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
