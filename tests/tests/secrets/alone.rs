//! A server without node on a loopback port of its own, as somebody would start it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sampan_e2e::{binary, kubectls};

pub struct Server {
    pub dir: PathBuf,
    pub arguments: Vec<String>,
    child: Option<Child>,
    kubectl: PathBuf,
}

/// A `kubectl get --watch` in the background.
pub struct Watch {
    child: Child,
    file: PathBuf,
}

impl Watch {
    /// Ends it; what it has said.
    pub fn finish(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        fs::read_to_string(&self.file).unwrap()
    }
}

impl Server {
    /// `None`, having said why: it cannot be tried here.
    pub fn start(dir: &Path, ip: &str, arguments: &[&str]) -> Option<Server> {
        let kubectl = kubectls().into_iter().next_back().filter(|_| binary().is_file());
        let Some(kubectl) = kubectl else {
            eprintln!("skipped: it needs kubectl and the binary (cargo build -p sampan)");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let listen = format!("127.0.0.1:{port}");
        let all = [
            "--listen",
            &listen,
            "--node-ip",
            ip,
            "--disable",
            "node,scheduler,dns,proxy",
        ];
        let mut server = Server {
            dir: dir.into(),
            arguments: all
                .iter()
                .chain(arguments)
                .map(|&argument| argument.to_owned())
                .collect(),
            child: None,
            kubectl,
        };
        server.run();
        Some(server)
    }

    pub fn run(&mut self) {
        self.spawn();
        self.wait("ready", 60, || self.kubectl("get --raw /readyz").is_ok());
        self.wait("its own", 30, || self.kubectl("get namespace default").is_ok());
    }

    /// One that cannot become ready.
    pub fn run_unready(&mut self) {
        self.spawn();
        self.wait("alive", 60, || self.kubectl("get --raw /livez").is_ok());
        self.wait("its own", 30, || self.kubectl("get namespace default").is_ok());
    }

    fn spawn(&mut self) {
        fs::create_dir_all(&self.dir).unwrap();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let child = Command::new(binary())
            .args(["server", "--data-dir"])
            .arg(&self.dir)
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(self.dir.join("kubectl-cache"))
            .stdin(Stdio::null());
        command
    }

    pub fn kubectl(&self, words: &str) -> Result<String, String> {
        text(
            self.command()
                .arg("--request-timeout=20s")
                .args(words.split_whitespace())
                .output()
                .unwrap(),
        )
    }

    /// A number of the metrics, summed up.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.kubectl("get --raw /metrics").unwrap();
        text.lines()
            .filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// kubectl with a file of this content.
    pub fn with(&self, words: &str, content: &str) -> Result<String, String> {
        let file = self.dir.join("given");
        fs::write(&file, content).unwrap();
        self.kubectl(&format!("{words} -f {}", file.display()))
    }

    pub fn watch(&self, words: &str) -> Watch {
        let file = self.dir.join("watched");
        let out = fs::File::create(&file).unwrap();
        let child = self
            .command()
            .args(words.split_whitespace())
            .args(["--watch", "--output=yaml"])
            .stdout(out)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Watch { child, file }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    #[track_caller]
    pub fn wait(&self, what: &str, seconds: u64, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(
                begun.elapsed() < Duration::from_secs(seconds),
                "not {what} in time; the server says:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn text(output: Output) -> Result<String, String> {
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

pub fn sampan(arguments: &[&str]) -> Result<String, String> {
    text(Command::new(binary()).args(arguments).output().unwrap())
}
