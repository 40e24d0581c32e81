//! The laboratory of the end-to-end tests: a machine made of network namespaces, a cluster on it, real clients.
//!
//! Each test starts its own cluster in its own pair of network namespaces: `node`, where the server runs, and
//! `outside`, a neighbour on the same segment. The machine's own network is never touched. Tests need root and the
//! built binary (`SAMPAN_BIN`, else `target/debug/sampan`); [`ready`] says what is missing and the test is skipped.

pub mod fleet;
pub mod http;
pub mod joined;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The node's address and its neighbour's: of the documentation range, nobody's.
pub const NODE: &str = "192.0.2.10";
pub const OUTSIDE: &str = "192.0.2.1";

/// The binary under test.
pub fn binary() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/sampan");
    std::env::var_os("SAMPAN_BIN").map_or(built, PathBuf::from)
}

/// The archive with the example's images.
pub fn images() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/example-images.tar");
    std::env::var_os("SAMPAN_IMAGES").map_or(built, PathBuf::from)
}

pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// The kubectls to test with: `SAMPAN_KUBECTLS` (paths separated by colons), else the one on PATH and, where other
/// versions lie beside it (`kubectl.1.27`), the oldest and the newest of these.
pub fn kubectls() -> Vec<PathBuf> {
    if let Some(list) = std::env::var_os("SAMPAN_KUBECTLS") {
        return std::env::split_paths(&list).collect();
    }
    let Some(here) = find("kubectl") else { return Vec::new() };
    let beside = fs::canonicalize(&here)
        .ok()
        .and_then(|real| fs::read_dir(real.parent()?).ok());
    let mut versions: Vec<PathBuf> = beside
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("kubectl.1."))
        })
        .collect();
    versions.sort();
    match versions.as_slice() {
        [] => vec![here],
        [only] => vec![only.clone(), here],
        [oldest, .., newest] => vec![oldest.clone(), newest.clone(), here],
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// Whether the tests can run here; says why not.
pub fn ready(test: &str) -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    let missing = [
        (!root, "it needs root"),
        (find("ip").is_none(), "it needs ip (Debian package iproute2)"),
        (
            find("nsenter").is_none(),
            "it needs nsenter (Debian package util-linux)",
        ),
        (!binary().is_file(), "the binary is not built (cargo build -p sampan)"),
        (
            !images().is_file(),
            "the example's images are not there (cargo xtask images)",
        ),
        (kubectls().is_empty(), "it needs kubectl on PATH or in SAMPAN_KUBECTLS"),
    ];
    for (_, why) in missing.iter().filter(|(is, _)| *is) {
        eprintln!("skipped: {test}: {why}");
    }
    missing.iter().all(|(is, _)| !is)
}

/// Runs a command and returns what it wrote, whatever came of it.
pub fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a command that must succeed; returns its standard output.
pub fn must(command: &mut Command) -> String {
    let output = output(command);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}\n{stderr}",
        output.status
    );
    stdout.into_owned()
}

fn ip(words: &str) -> String {
    must(Command::new("ip").args(words.split(' ')))
}

/// Does something in a network namespace, on a thread of its own.
pub fn within<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let file = File::open(namespace).expect("a network namespace");
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        });
        there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Two network namespaces on one segment.
pub struct Lab {
    node: String,
    outside: String,
}

impl Lab {
    pub fn new(name: &str) -> Lab {
        let id = std::process::id();
        let lab = Lab {
            node: format!("e2e-{name}-{id}-n"),
            outside: format!("e2e-{name}-{id}-o"),
        };
        let (node, outside) = (&lab.node, &lab.outside);
        for namespace in [node, outside] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        ip(&format!(
            "-n {node} link add eth0 type veth peer name eth0 netns {outside}"
        ));
        for (namespace, address) in [(node, NODE), (outside, OUTSIDE)] {
            ip(&format!("-n {namespace} addr add {address}/24 dev eth0"));
            ip(&format!("-n {namespace} link set eth0 up"));
        }
        ip(&format!("-n {node} route add default via {OUTSIDE}"));
        lab
    }

    fn command(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{namespace}"))
            .arg("--")
            .arg(program);
        command
    }
    /// The node's network namespace.
    pub fn node_namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.node)
    }

    /// The neighbour's.
    pub fn outside_namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.outside)
    }

    /// A command on the node.
    pub fn on_node(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        Self::command(&self.node, program)
    }
    /// A command on the neighbour.
    pub fn outside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        Self::command(&self.outside, program)
    }
    /// The node's links, addresses, routes and packet filter: what a server must leave as it was.
    pub fn network_state(&self) -> String {
        let mut state = String::new();
        for words in ["-o link", "-o addr", "route", "rule"] {
            let listing = ip(&format!("-n {} {words}", self.node));
            // Timers, and addresses still being probed, are not state.
            let listing = listing.replace(" tentative", "");
            state.extend(
                listing
                    .lines()
                    .map(|line| line.split(" valid_lft").next().unwrap_or(line).to_owned() + "\n"),
            );
        }
        state
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.node, &self.outside] {
            let removed = Command::new("ip").args(["netns", "delete", namespace]).status();
            if !removed.is_ok_and(|status| status.success()) {
                eprintln!("could not delete the network namespace {namespace}");
            }
        }
    }
}

/// A running cluster.
pub struct Cluster {
    pub lab: Lab,
    pub dir: tempfile::TempDir,
    server: Option<Child>,
    arguments: Vec<String>,
    umask: u32,
}

impl Cluster {
    /// A cluster with the example's images, with the node Ready.
    pub fn start(name: &str) -> Cluster {
        Self::start_with(name, &[])
    }

    pub fn start_with(name: &str, arguments: &[&str]) -> Cluster {
        let mut cluster = Self::prepare(name, arguments);
        cluster.import_images();
        cluster.start_server();
        cluster.wait("the node to be Ready", 60, |cluster| {
            cluster.kubectl("get nodes -o jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}")
                == "True"
        });
        cluster.wait("the default service account", 30, |cluster| {
            cluster.try_kubectl("get serviceaccount default").is_ok()
        });
        cluster
    }

    /// Puts the example's images into the store.
    pub fn import_images(&self) {
        must(
            Command::new(binary())
                .args(["image", "--data-dir"])
                .arg(self.dir.path())
                .arg("import")
                .arg(images()),
        );
    }

    /// The laboratory and the arguments, without a server yet.
    pub fn prepare(name: &str, arguments: &[&str]) -> Cluster {
        Cluster {
            lab: Lab::new(name),
            dir: tempfile::Builder::new()
                .prefix(&format!("sampan-e2e-{name}-"))
                .tempdir()
                .expect("a temporary directory"),
            server: None,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            umask: 0o022,
        }
    }

    /// The umask the next server is started with.
    pub fn set_umask(&mut self, umask: u32) {
        self.umask = umask;
    }

    /// What the next start of the server is told.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }

    /// Starts the server process and waits until it is ready to serve; returns how long that took.
    pub fn start_server(&mut self) -> Duration {
        let path = self.dir.path().join("server.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(path)
            .expect("a log file");
        let mut command = self.lab.on_node("sh");
        command
            .args(["-c", &format!("umask {:o}; exec \"$@\"", self.umask), "sh"])
            .arg(binary())
            .args(["server", "--node-name", "node-1", "--data-dir"])
            .arg(self.dir.path())
            // A test must not depend on how full the machine's disk is.
            .args(["--eviction-hard=memory.available<50Mi", "--image-gc-high-threshold=100"])
            .args(&self.arguments);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle"))
            .stderr(log);
        let start = Instant::now();
        self.server = Some(command.spawn().expect("the server starts"));
        self.wait("/readyz", 60, |cluster| {
            let ended = cluster
                .server
                .as_mut()
                .and_then(|server| server.try_wait().ok().flatten());
            assert!(ended.is_none(), "the server ended: {ended:?}\n{}", cluster.log());
            cluster.kubeconfig().is_file() && cluster.try_kubectl("get --raw /readyz").is_ok()
        });
        start.elapsed()
    }

    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("a running server").id()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("a running server");
        server.kill().expect("kill");
        server.wait().expect("wait");
    }

    /// Asks the server to stop and waits for it; returns whether it ended well.
    pub fn stop(&mut self) -> bool {
        let Some(mut server) = self.server.take() else {
            return true;
        };
        let pid = nix::unistd::Pid::from_raw(server.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("SIGTERM");
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(status) = server.try_wait().expect("wait") {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        server.kill().expect("kill");
        server.wait().expect("wait");
        false
    }

    /// `sampan server --cleanup`.
    pub fn cleanup(&self) -> Output {
        output(
            self.lab
                .on_node(binary())
                .args(["server", "--cleanup", "--data-dir"])
                .arg(self.dir.path()),
        )
    }

    pub fn kubectl_command(&self, kubectl: &Path) -> Command {
        let mut command = self.lab.on_node(kubectl);
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(self.dir.path().join("kubectl-cache"));
        command
    }

    /// kubectl with words separated by spaces; standard output, or everything it said.
    pub fn try_kubectl(&self, words: &str) -> Result<String, String> {
        self.try_kubectl_args(&words.split(' ').collect::<Vec<_>>())
    }

    pub fn try_kubectl_args(&self, arguments: &[&str]) -> Result<String, String> {
        let kubectl = kubectls().into_iter().next_back().expect("a kubectl");
        let output = output(self.kubectl_command(&kubectl).args(arguments));
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        if output.status.success() {
            Ok(stdout.into_owned())
        } else {
            Err(format!("{stdout}{stderr}"))
        }
    }

    pub fn kubectl(&self, words: &str) -> String {
        self.try_kubectl(words)
            .unwrap_or_else(|error| panic!("kubectl {words}: {error}\n{}", self.state()))
    }

    pub fn kubectl_args(&self, arguments: &[&str]) -> String {
        self.try_kubectl_args(arguments)
            .unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}\n{}", self.state()))
    }

    pub fn get(&self, words: &str) -> Value {
        serde_json::from_str(&self.kubectl(&format!("get {words} -o json"))).expect("JSON")
    }

    /// Applies manifests given as text.
    pub fn apply(&self, manifests: &str) {
        let path = self.dir.path().join("manifests.yaml");
        fs::write(&path, manifests).expect("write manifests");
        self.kubectl_args(&["apply", "-f", &path.to_string_lossy()]);
    }

    /// What there is to see when a test fails: nodes, Pods, events, and the end of the server's log.
    fn state(&self) -> String {
        let nodes = "get nodes -o custom-columns=NAME:.metadata.name,TAINTS:.spec.taints,\
            CONDITIONS:.status.conditions[*].type,STATUS:.status.conditions[*].status";
        let mut state = String::new();
        for words in [nodes, "get pods -A -o wide", "get events -A"] {
            state += &self.try_kubectl(words).unwrap_or_else(|error| error);
        }
        format!("{state}\n--- server\n{}", tail(&self.log()))
    }

    /// Waits until `done`, at most `seconds`; panics with the state of the cluster.
    pub fn wait(&mut self, what: &str, seconds: u64, mut done: impl FnMut(&mut Cluster) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while !done(self) {
            if Instant::now() > deadline {
                panic!("waited {seconds} s for {what}\n{}", self.state());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The body of a page, fetched on the neighbour with busybox's or curl's client.
    pub fn fetch_outside(&self, url: &str) -> Option<String> {
        let client = find("curl")?;
        let output = output(self.lab.outside(client).args(["-sS", "--fail", "--max-time", "5", url]));
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// One kubectl of those a test goes through.
pub struct Session<'a> {
    pub cluster: &'a Cluster,
    pub kubectl: &'a Path,
    pub version: String,
}

impl<'a> Session<'a> {
    pub fn new(cluster: &'a Cluster, kubectl: &'a Path) -> Self {
        eprintln!("with {}", kubectl.display());
        let version = kubectl.file_name().map(|name| name.to_string_lossy().into_owned());
        Session {
            cluster,
            kubectl,
            version: version.unwrap_or_default(),
        }
    }
    pub fn run(&self, arguments: &[&str]) -> String {
        must(self.cluster.kubectl_command(self.kubectl).args(arguments))
    }
    pub fn words(&self, words: &str) -> String {
        self.run(&words.split(' ').collect::<Vec<_>>())
    }
    /// What a command that must fail complains of.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = output(self.cluster.kubectl_command(self.kubectl).args(arguments));
        assert!(!output.status.success(), "{}: {arguments:?} succeeded", self.version);
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
    pub fn expect(&self, what: &str, found: bool, shown: &str) {
        assert!(found, "kubectl {}: {what}: {shown}", self.version);
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take()
            && (server.kill().is_err() || server.wait().is_err())
        {
            eprintln!("could not end the server");
        }
        let output = self.cleanup();
        if !output.status.success() {
            eprintln!("cleanup failed: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
