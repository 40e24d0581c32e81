//! For tests: a real etcd (one member in a directory of its own, on free loopback ports, gone when dropped), and
//! disks that fail.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::etcd::Options;

/// A disk that fails when told to; the rest of the time it is what it is.
#[derive(Debug, Default)]
pub struct Faults {
    reads: AtomicI32,
    writes: AtomicI32,
    /// Operations that still succeed.
    spared: AtomicUsize,
}

impl Faults {
    /// From the `after`th operation on, writes (and with `reads`, reads too) fail with this error number; 0 ends it.
    pub fn fail(&self, number: i32, reads: bool, after: usize) {
        self.spared.store(after, Ordering::Release);
        self.reads.store(if reads { number } else { 0 }, Ordering::Release);
        self.writes.store(number, Ordering::Release);
    }

    pub(crate) fn next(&self, writes: bool) -> Option<std::io::Error> {
        let number = if writes { &self.writes } else { &self.reads }.load(Ordering::Acquire);
        let spared = number != 0
            && self
                .spared
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1))
                .is_ok();
        (number != 0 && !spared).then(|| std::io::Error::from_raw_os_error(number))
    }
}

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Certificates of the member and of its clients: authority, certificate, key.
#[derive(Clone, Debug)]
pub struct Tls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// A running etcd.
pub struct EtcdProcess {
    binary: PathBuf,
    dir: PathBuf,
    client: u16,
    peer: u16,
    tls: Option<Tls>,
    arguments: Vec<String>,
    name: String,
    /// `NAME=PEER-URL,...` of all members.
    cluster: String,
    child: Option<Child>,
}

/// The etcd to use: `SAMPAN_ETCD`, else the first on the path.
fn binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("SAMPAN_ETCD") {
        return Some(named.into());
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join("etcd"))
        .find(|path| path.is_file())
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

impl EtcdProcess {
    /// Starts a member, or says why the test is left out: `None` when no etcd is installed.
    pub fn start() -> Option<Self> {
        Self::start_with(None, &[])
    }

    /// With TLS and further arguments.
    pub fn start_with(tls: Option<Tls>, arguments: &[&str]) -> Option<Self> {
        let mut etcd = Self::member("test", tls, arguments)?;
        etcd.cluster = format!("test={}", etcd.peer_url());
        etcd.run();
        Some(etcd)
    }

    /// Starts several members that make one cluster.
    pub fn start_cluster(members: usize) -> Option<Vec<Self>> {
        let mut all: Vec<_> = (0..members)
            .map(|number| Self::member(&format!("m{number}"), None, &[]))
            .collect::<Option<_>>()?;
        let peers: Vec<_> = all
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_url()))
            .collect();
        for member in &mut all {
            member.cluster = peers.join(",");
            member.spawn();
        }
        all.iter().for_each(Self::wait);
        Some(all)
    }

    fn member(name: &str, tls: Option<Tls>, arguments: &[&str]) -> Option<Self> {
        let Some(binary) = binary() else {
            eprintln!("skipped for etcd: it is not installed (apt-get install etcd-server)");
            return None;
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sampan-etcd-{}-{number}", std::process::id()));
        Some(EtcdProcess {
            binary,
            dir,
            client: free_port().ok()?,
            peer: free_port().ok()?,
            tls,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            name: name.to_owned(),
            cluster: String::new(),
            child: None,
        })
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Where clients reach it.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.client)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How to connect to it.
    pub fn options(&self) -> Options {
        Options {
            servers: vec![self.url()],
            ca_file: self.tls.as_ref().map(|tls| tls.ca.clone()),
            cert_file: self.tls.as_ref().map(|tls| tls.cert.clone()),
            key_file: self.tls.as_ref().map(|tls| tls.key.clone()),
            prefix: "/registry".into(),
        }
    }

    /// Starts the process (again) over the same data and waits until it listens.
    pub fn run(&mut self) {
        self.spawn();
        self.wait();
    }

    fn spawn(&mut self) {
        let (url, peer) = (self.url(), self.peer_url());
        let mut command = Command::new(&self.binary);
        command
            .args(["--name", &self.name, "--log-level", "error", "--unsafe-no-fsync"])
            .arg("--data-dir")
            .arg(&self.dir)
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth");
            command.arg("--trusted-ca-file").arg(&tls.ca);
            command
                .arg("--cert-file")
                .arg(&tls.cert)
                .arg("--key-file")
                .arg(&tls.key);
        }
        // The flag is newer than the oldest etcd that is supported.
        let flags = Command::new(&self.binary).arg("--help").output();
        if !flags.is_ok_and(|help| {
            [help.stdout, help.stderr]
                .iter()
                .any(|text| String::from_utf8_lossy(text).contains("unsafe-no-fsync"))
        }) {
            let kept: Vec<_> = command
                .get_args()
                .filter(|argument| *argument != "--unsafe-no-fsync")
                .map(ToOwned::to_owned)
                .collect();
            command = Command::new(&self.binary);
            command.args(kept).stdout(Stdio::null()).stderr(Stdio::null());
        }
        self.child = command.spawn().ok();
    }

    fn wait(&self) {
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.client)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "etcd did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _dead_already = child.kill();
            let _waited = child.wait();
        }
    }

    /// Sends a signal by name: STOP, CONT.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status();
        assert!(status.is_ok_and(|status| status.success()), "kill -{name}");
    }
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        self.kill();
        let _gone = std::fs::remove_dir_all(&self.dir);
    }
}
