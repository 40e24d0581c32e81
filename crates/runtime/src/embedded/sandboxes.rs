//! Sandboxes: starting shims, hearing of exits, stopping, removing.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use sampan_tasks::OnExit;
use tokio::sync::{Mutex, watch};

use super::client::{self, Connection};
use super::records::{RECORD, Sandbox, SandboxLive, SandboxRecord};
use super::{Embedded, blocking, internal, new_id};
use crate::disk::{remove_dir, write_atomic};
use crate::protocol::{Reply, Request, encode};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::shim::spawner;
use crate::spec::{self, ExitRecord, SandboxSpec, file};
use crate::sys;
use crate::types::*;

const DEFAULT_SHM: u64 = 64 << 20;
/// How long a shim may take to say that it is there, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// A sandbox on its way. If that ends early, by an error or because the caller has gone, nothing of it
/// stays.
struct Unfinished {
    socket: PathBuf,
    dir: PathBuf,
    done: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Ok(mut shim) = UnixStream::connect(&self.socket) {
            let told = encode(&Request::Shutdown).and_then(|frame| shim.write_all(&frame));
            if let Err(error) = told {
                tracing::debug!(%error, "end the shim of an unfinished sandbox");
            }
        }
        match fs::remove_file(&self.socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the socket of an unfinished sandbox stays");
            }
            _ => {}
        }
        if let Err(error) = remove_dir(&self.dir) {
            tracing::warn!(%error, "the directory of an unfinished sandbox stays");
        }
    }
}

impl Embedded {
    pub(super) async fn run_sandbox(&self, config: &PodSandboxConfig) -> Result<String> {
        let meta = &config.metadata;
        {
            let state = self.lock();
            let taken = state.sandboxes.values().find(|sandbox| {
                let other = &sandbox.record.config.metadata;
                !meta.uid.is_empty() && (&other.uid, other.attempt) == (&meta.uid, meta.attempt)
            });
            if let Some(taken) = taken {
                return Err(RuntimeError::new(
                    ErrorKind::AlreadyExists,
                    format!(
                        "Pod {}/{} already has sandbox {} of attempt {}",
                        meta.namespace, meta.name, taken.record.id, meta.attempt
                    ),
                ));
            }
        }
        let id = new_id();
        let mut unfinished = Unfinished {
            socket: self.socket(&id),
            dir: self.sandbox_dir(&id),
            done: false,
        };
        self.start_sandbox(&id, config).await?;
        unfinished.done = true;
        self.emit(ContainerEventKind::Created, &id, &id, &meta.uid);
        self.emit(ContainerEventKind::Started, &id, &id, &meta.uid);
        Ok(id)
    }

    async fn start_sandbox(&self, id: &str, config: &PodSandboxConfig) -> Result<()> {
        let linux = &config.linux;
        let cgroup = match linux.cgroup_parent.as_str() {
            "" => format!("/sampan/{id}"),
            parent => parent.to_owned(),
        };
        let record = SandboxRecord {
            id: id.into(),
            config: config.clone(),
            created_at: Timestamp::now(),
            cgroup: cgroup.clone(),
            stopped: false,
        };
        let groups = |name: &str| -> Result<Vec<PathBuf>> {
            let dirs = self.cgroups.dirs(name).map_err(internal("control group"))?;
            Ok(dirs.into_iter().map(|(_, dir)| dir).collect())
        };
        // The shims' group is the machine's: another server's cleanup may have taken it away while it was empty.
        self.cgroups
            .create(&self.config.shim_cgroup)
            .map_err(internal("control group"))?;
        let pause_group = format!("{cgroup}/{id}");
        let shared_pids = linux.namespaces.pid == NamespaceMode::Pod;
        let spec = SandboxSpec {
            id: id.into(),
            hostname: config.hostname.clone(),
            network: linux.namespaces.network,
            netns: linux.netns.clone(),
            ipc: linux.namespaces.ipc,
            pid: linux.namespaces.pid,
            sysctls: linux.sysctls.clone(),
            users: linux.users.clone(),
            shm_size: linux.shm_size.unwrap_or(DEFAULT_SHM),
            cgroups: groups(&self.config.shim_cgroup)?,
            pause_cgroups: if shared_pids { groups(&pause_group)? } else { Vec::new() },
            containers: self.config.root.join("containers"),
        };
        let dir = self.sandbox_dir(id);
        let prepare = {
            let (cgroups, config, dir) = (self.cgroups.clone(), config.clone(), dir.clone());
            let limits = linux.resources.clone();
            move || -> Result<()> {
                cgroups
                    .create(&cgroup)
                    .map_err(internal("make the Pod's control group"))?;
                if let Some(limits) = limits {
                    cgroups.limit(&cgroup, &limits).map_err(internal("limit the Pod"))?;
                }
                if shared_pids {
                    cgroups.create(&pause_group).map_err(internal("make a control group"))?;
                }
                let failed = "write the sandbox's files";
                fs::create_dir_all(&dir).map_err(internal(failed))?;
                if !config.log_directory.as_os_str().is_empty() {
                    fs::create_dir_all(&config.log_directory).map_err(internal(failed))?;
                }
                if let Some(dns) = &config.dns {
                    fs::write(dir.join("resolv.conf"), resolv_conf(dns)).map_err(internal(failed))?;
                }
                if !config.hostname.is_empty() {
                    let text = format!("{}\n", config.hostname);
                    fs::write(dir.join("hostname"), text).map_err(internal(failed))?;
                }
                spec::write(&dir.join(file::SANDBOX), &spec, false).map_err(internal(failed))
            }
        };
        blocking(prepare).await?;
        self.spawn_shim(id)?;
        // Asked on one connection: the shim answers when it is set up, or why it could not be.
        let socket = self.socket(id);
        let hello = client::ask(&socket, &Request::Hello);
        let hello = tokio::time::timeout(PATIENCE, hello).await;
        let pid = match hello {
            Ok(Ok(Reply::Hello { pid })) => pid,
            Ok(Ok(other)) => {
                return Err(RuntimeError::internal("start the sandbox", format!("{other:?}")));
            }
            Ok(Err(error)) => {
                let said = fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
                let said = said.trim();
                let glue = if said.is_empty() { "" } else { ": " };
                return Err(RuntimeError::internal(
                    "start the sandbox",
                    format!("{error}{glue}{said}"),
                ));
            }
            Err(_) => return Err(RuntimeError::internal("start the sandbox", "no answer in time")),
        };
        spec::write(&dir.join(RECORD), &record, false).map_err(internal("record the sandbox"))?;
        let sandbox = Arc::new(Sandbox {
            record,
            live: watch::Sender::new(SandboxLive {
                state: PodSandboxState::Ready,
                pid,
            }),
            busy: Mutex::default(),
        });
        let mut connection = client::connect(&socket).await?;
        connection
            .send(&Request::Events, &[])
            .await
            .map_err(internal("listen to the shim"))?;
        self.lock().sandboxes.insert(id.into(), sandbox.clone());
        self.listen(sandbox, connection);
        Ok(())
    }

    fn spawn_shim(&self, id: &str) -> Result<()> {
        let failed = || internal::<std::io::Error>("start the shim");
        let socket = self.socket(id);
        let listener: OwnedFd = UnixListener::bind(&socket).map_err(failed())?.into();
        let log = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.sandbox_dir(id).join("shim.log"))
            .map_err(failed())?;
        let fds = [listener.as_fd(), log.as_fd()];
        let dir = self.sandbox_dir(id);
        let mut spawner = self.spawner.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has ended (killed, out of memory) is replaced, once.
        for _ in 0..2 {
            let socket = match spawner.take() {
                Some(socket) => socket,
                None => self.start_spawner()?,
            };
            match sys::send_fds(socket.as_fd(), dir.as_os_str().as_bytes(), &fds) {
                Ok(_) => {
                    *spawner = Some(socket);
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, "the spawner of shims is gone"),
            }
        }
        Err(RuntimeError::internal(
            "start the shim",
            "its spawner does not stay alive",
        ))
    }

    /// Starts the process that shims are copies of; it ends when the returned socket is closed.
    fn start_spawner(&self) -> Result<OwnedFd> {
        let (ours, theirs) = crate::init::channel().map_err(internal("start the spawner"))?;
        let mut command = Command::new(format!("/proc/self/fd/{}", self.exe.as_raw_fd()));
        std::os::unix::process::CommandExt::arg0(&mut command, "sampan");
        command
            .args(["shim", &spawner::argument()])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null());
        // Not waited for here: dropped children are reaped by tokio.
        let mut command = tokio::process::Command::from(command);
        drop(command.spawn().map_err(internal("start the spawner"))?);
        Ok(ours)
    }

    /// Hears of the sandbox's exits until its shim is gone.
    pub(super) fn listen(&self, sandbox: Arc<Sandbox>, mut connection: Connection) {
        let Some(engine) = self.this() else { return };
        let drain = self.tasks.drain();
        let name = format!("shim {}", sandbox.record.id.get(..12).unwrap_or_default());
        self.tasks.spawn(name, OnExit::Expected, async move {
            let listening = async {
                loop {
                    match connection.receive().await {
                        Ok(Some(Reply::Exited { id, exit })) => {
                            if let Some(engine) = engine.upgrade() {
                                engine.has_exited(&id, exit).await;
                            }
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => return,
                        Err(error) => return tracing::warn!(%error, "listen to a shim"),
                    }
                }
            };
            if drain.until(listening).await.is_some()
                && let Some(engine) = engine.upgrade()
            {
                engine.shim_gone(&sandbox).await;
            }
        });
    }

    /// The shim has ended: so has everything in its sandbox.
    pub(super) async fn shim_gone(&self, sandbox: &Arc<Sandbox>) {
        for container in self.containers_of(&sandbox.record.id) {
            let path = self.container_dir(&container.record.id).join(file::EXIT);
            if container.live.borrow().exit.is_some() {
                continue;
            }
            let seen = spec::read::<ExitRecord>(&path).ok();
            if seen.is_none() && container.live.borrow().start.is_none() {
                continue; // never started: it stays as it is
            }
            let exit = match seen {
                Some(exit) => exit,
                None => {
                    if let Err(error) = self.cgroups.kill(&container.record.cgroup) {
                        tracing::warn!(%error, "kill what a shim left behind");
                    }
                    let exit = ExitRecord {
                        code: 255,
                        signal: None,
                        oom_killed: false,
                        at: Timestamp::now(),
                        start_error: None,
                        unseen: true,
                    };
                    if let Err(error) = spec::write(&path, &exit, false) {
                        tracing::warn!(%error, "record an end");
                    }
                    exit
                }
            };
            self.has_exited(&container.record.id, exit).await;
        }
        if let Err(error) = self.mark_stopped(sandbox) {
            tracing::warn!(%error, "record that a sandbox stopped");
        }
    }

    /// Records and tells that the sandbox is over.
    pub(super) fn mark_stopped(&self, sandbox: &Sandbox) -> Result<()> {
        let id = &sandbox.record.id;
        let changed = sandbox.live.send_if_modified(|live| {
            let was_ready = live.state == PodSandboxState::Ready;
            *live = SandboxLive {
                state: PodSandboxState::NotReady,
                pid: 0,
            };
            was_ready
        });
        if !changed {
            return Ok(());
        }
        let record = SandboxRecord {
            stopped: true,
            ..sandbox.record.clone()
        };
        let bytes = serde_json::to_vec(&record).map_err(internal("record the sandbox"))?;
        let path = self.sandbox_dir(id).join(RECORD);
        if path.exists() {
            write_atomic(&path, &bytes, false).map_err(internal("record the sandbox"))?;
        }
        match fs::remove_file(self.socket(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a stopped sandbox's socket stays");
            }
            _ => {}
        }
        let uid = &sandbox.record.config.metadata.uid;
        self.emit(ContainerEventKind::Stopped, id, id, uid);
        Ok(())
    }

    pub(super) async fn stop_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let _busy = sandbox.busy.lock().await;
        if !sandbox.is_ready() {
            return Ok(());
        }
        let mut live = sandbox.live.subscribe();
        match client::ask(&self.socket(&sandbox.record.id), &Request::Shutdown).await {
            Ok(_) => {}
            // It is gone already; whoever listens to it finds out.
            Err(error) => tracing::debug!(%error, "shut a shim down"),
        }
        let over = live.wait_for(|live| live.state == PodSandboxState::NotReady);
        match tokio::time::timeout(PATIENCE, over).await {
            Ok(_) => Ok(()),
            Err(_) => Err(RuntimeError::internal(
                "stop the sandbox",
                "its containers do not end although they were killed; is a disk or network \
                 file system hanging?",
            )),
        }
    }

    pub(super) async fn remove_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        self.stop_sandbox(sandbox).await?;
        let id = &sandbox.record.id;
        for container in self.containers_of(id) {
            self.remove(&container).await?;
        }
        let _busy = sandbox.busy.lock().await;
        let shared = {
            let state = self.lock();
            let mut others = state.sandboxes.values();
            others.any(|other| other.record.id != *id && other.record.cgroup == sandbox.record.cgroup)
        };
        let group = match shared {
            false => sandbox.record.cgroup.clone(),
            true => format!("{}/{id}", sandbox.record.cgroup),
        };
        let (cgroups, dir) = (self.cgroups.clone(), self.sandbox_dir(id));
        blocking(move || {
            cgroups
                .remove(&group)
                .map_err(internal("remove the Pod's control group"))?;
            remove_dir(&dir).map_err(internal("remove the sandbox"))
        })
        .await?;
        if self.lock().sandboxes.remove(id).is_some() {
            let uid = &sandbox.record.config.metadata.uid;
            self.emit(ContainerEventKind::Deleted, id, id, uid);
        }
        Ok(())
    }

    pub(super) async fn sandbox_stats(&self, sandbox: &Arc<Sandbox>) -> Result<PodSandboxStats> {
        let mut containers = Vec::new();
        for container in self.containers_of(&sandbox.record.id) {
            if container.state() == ContainerState::Running {
                containers.push(self.stats_of(&container).await?);
            }
        }
        let (cgroups, group) = (self.cgroups.clone(), sandbox.record.cgroup.clone());
        let usage = move || cgroups.usage(&group).map_err(internal("read the Pod's usage"));
        let usage = blocking(usage).await?;
        let status = sandbox.status();
        let network = match status.namespaces.network {
            NamespaceMode::Node => Vec::new(),
            _ => interfaces(status.pid),
        };
        Ok(PodSandboxStats {
            id: status.id,
            timestamp: Timestamp::now(),
            cpu: usage.cpu,
            memory: usage.memory,
            network,
            process_count: usage.processes,
            containers,
        })
    }
}

/// A running container of which the usage is to be read: name, start, control group.
type Running = (String, Option<Timestamp>, String);

impl Embedded {
    /// All groups of the Pod are read in one go.
    pub(super) async fn sandbox_usage(&self, sandbox: &Arc<Sandbox>) -> Result<PodUsage> {
        let running: Vec<Running> = self
            .containers_of(&sandbox.record.id)
            .iter()
            .filter(|container| container.state() == ContainerState::Running)
            .map(|container| {
                let record = &container.record;
                let name = record.config.metadata.name.clone();
                (name, container.status().started_at, record.cgroup.clone())
            })
            .collect();
        let (cgroups, group) = (self.cgroups.clone(), sandbox.record.cgroup.clone());
        blocking(move || {
            let whole = cgroups.usage(&group).map_err(internal("read the Pod's usage"))?;
            let mut containers = Vec::with_capacity(running.len());
            for (name, started_at, group) in running {
                let usage = cgroups.usage(&group).map_err(internal("read the container's usage"))?;
                containers.push(ContainerUsage {
                    name,
                    started_at,
                    timestamp: Timestamp::now(),
                    cpu: usage.cpu,
                    memory: usage.memory,
                });
            }
            Ok(PodUsage {
                timestamp: Timestamp::now(),
                cpu: whole.cpu,
                memory: whole.memory,
                containers,
            })
        })
        .await
    }
}

/// Interfaces of a process's network namespace, as `/proc` lists them.
fn interfaces(pid: u32) -> Vec<NetworkInterfaceUsage> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter(|(name, _)| name.trim() != "lo")
        .map(|(name, numbers)| {
            let numbers: Vec<u64> = numbers.split_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
            let number = |index: usize| numbers.get(index).copied().unwrap_or(0);
            NetworkInterfaceUsage {
                name: name.trim().into(),
                rx_bytes: number(0),
                rx_errors: number(2),
                tx_bytes: number(8),
                tx_errors: number(10),
            }
        })
        .collect()
}
