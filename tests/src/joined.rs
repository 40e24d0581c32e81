//! A second machine of a cluster.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::{Cluster, binary, images, must, output};

/// A machine that runs `sampan agent`, beside a cluster's own.
pub struct Joined<'a> {
    cluster: &'a Cluster,
    pub dir: tempfile::TempDir,
    process: Option<Child>,
}

impl<'a> Joined<'a> {
    pub fn new(cluster: &'a Cluster) -> Self {
        let joined = Joined {
            cluster,
            dir: tempfile::Builder::new()
                .prefix("sampan-e2e-agent-")
                .tempdir()
                .expect("a directory"),
            process: None,
        };
        let mut import = std::process::Command::new(binary());
        must(
            import
                .args(["image", "--data-dir"])
                .arg(joined.dir.path())
                .arg("import")
                .arg(images()),
        );
        joined
    }

    pub fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.cluster.lab.outside(binary());
        command
            .args(["agent", "--node-name", "node-2", "--data-dir"])
            .arg(self.dir.path());
        command.args(["--eviction-hard=memory.available<50Mi", "--image-gc-high-threshold=100"]);
        command.args(arguments);
        command
    }

    pub fn start(&mut self, arguments: &[&str]) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("agent.log"));
        let log = log.expect("a log file");
        let mut command = self.command(arguments);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log);
        self.process = Some(command.spawn().expect("the agent starts"));
    }

    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("a running agent");
        process.kill().expect("kill");
        process.wait().expect("wait");
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// Waits until `done`; panics with the agent's log.
    pub fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !done() {
            assert!(Instant::now() < deadline, "never: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn ready(&self) -> bool {
        let path = "get node node-2 -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        self.cluster.try_kubectl(path).is_ok_and(|status| status == "True")
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
        let removed = output(&mut self.command(&["--cleanup"]));
        if !removed.status.success() {
            eprintln!("the agent's cleanup: {}", String::from_utf8_lossy(&removed.stderr));
        }
    }
}
