//! Coming back: what a new server does with what an old one left.
//!
//! Shims that live are listened to again and first say which containers ended meanwhile. A sandbox
//! whose shim is gone is over, and so are its containers. Directories without a record, sockets
//! without a sandbox and processes without a shim are remains, and are removed.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, watch};

use super::client::{self, Connection};
use super::records::{Container, ContainerRecord, Live, RECORD, Sandbox, SandboxLive, SandboxRecord};
use super::{Embedded, internal};
use crate::disk::remove_dir;
use crate::protocol::{Reply, Request};
use crate::runtime::Result;
use crate::spec::{self, file};
use crate::types::PodSandboxState;

/// A shim that lives answers at once.
const PATIENCE: Duration = Duration::from_secs(10);

impl Embedded {
    /// A handle for tasks that must not keep the engine alive.
    pub(super) fn this(&self) -> Option<Weak<Self>> {
        self.this.get().cloned()
    }

    pub(super) async fn adopt(self: &Arc<Self>) -> Result<()> {
        if self.this.set(Arc::downgrade(self)).is_err() {
            return Ok(());
        }
        self.load_sandboxes()?;
        self.load_containers()?;
        let sandboxes: Vec<Arc<Sandbox>> = self.lock().sandboxes.values().cloned().collect();
        for sandbox in sandboxes.iter().filter(|sandbox| sandbox.is_ready()) {
            match self.reconnect(sandbox).await {
                Some(connection) => self.listen(sandbox.clone(), connection),
                None => {
                    tracing::info!(sandbox = sandbox.record.id, "the sandbox's shim is gone");
                    self.shim_gone(sandbox).await;
                }
            }
        }
        self.remove_sockets().await
    }

    /// Takes the connection up again and hears what has ended meanwhile.
    async fn reconnect(&self, sandbox: &Sandbox) -> Option<Connection> {
        let socket = self.socket(&sandbox.record.id);
        let asked = async {
            let Reply::Hello { pid } = client::ask(&socket, &Request::Hello).await.ok()? else {
                return None;
            };
            sandbox.live.send_modify(|live| live.pid = pid);
            let mut connection = client::connect(&socket).await.ok()?;
            connection.send(&Request::Events, &[]).await.ok()?;
            loop {
                match connection.receive().await.ok()?? {
                    Reply::Exited { id, exit } => self.has_exited(&id, exit).await,
                    Reply::Current => return Some(connection),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.ok()?
    }

    fn load_sandboxes(&self) -> Result<()> {
        for (id, dir) in entries(&self.config.root.join("sandboxes"))? {
            let Ok(record) = spec::read::<SandboxRecord>(&dir.join(RECORD)) else {
                tracing::info!(id, "removing the remains of a sandbox");
                remove_dir(&dir).map_err(internal("remove the remains of a sandbox"))?;
                continue;
            };
            let state = match record.stopped {
                true => PodSandboxState::NotReady,
                false => PodSandboxState::Ready,
            };
            let sandbox = Sandbox {
                live: watch::Sender::new(SandboxLive { state, pid: 0 }),
                record,
                busy: Mutex::default(),
            };
            self.lock().sandboxes.insert(id, Arc::new(sandbox));
        }
        Ok(())
    }

    fn load_containers(&self) -> Result<()> {
        for (id, dir) in entries(&self.config.root.join("containers"))? {
            let record = spec::read::<ContainerRecord>(&dir.join(RECORD)).ok();
            let known = record
                .as_ref()
                .is_some_and(|record| self.lock().sandboxes.contains_key(&record.sandbox_id));
            let Some(record) = record.filter(|_| known) else {
                tracing::info!(id, "removing the remains of a container");
                remove_dir(&dir).map_err(internal("remove the remains of a container"))?;
                continue;
            };
            let container = Container {
                resources: std::sync::Mutex::new(record.config.linux.resources.clone()),
                live: watch::Sender::new(Live {
                    start: spec::read(&dir.join(file::START)).ok(),
                    exit: spec::read(&dir.join(file::EXIT)).ok(),
                }),
                record,
                busy: Mutex::default(),
            };
            self.lock().containers.insert(id, Arc::new(container));
        }
        Ok(())
    }

    /// Ends shims nobody knows: a server died before it had recorded their sandbox.
    async fn remove_sockets(&self) -> Result<()> {
        let known: Vec<_> = {
            let state = self.lock();
            let ready = state.sandboxes.values().filter(|sandbox| sandbox.is_ready());
            ready.map(|sandbox| Self::socket_name(&sandbox.record.id)).collect()
        };
        for (name, _) in entries(&self.config.state)? {
            if !name.ends_with(".sock") || known.contains(&name) {
                continue;
            }
            // By descriptor, as when connecting to any shim.
            let path = self.socket(name.trim_end_matches(".sock"));
            let shutdown = client::ask(&path, &Request::Shutdown);
            match tokio::time::timeout(PATIENCE, shutdown).await {
                Ok(Ok(_)) => tracing::info!(?path, "ended a shim without a sandbox"),
                Ok(Err(_)) => {}
                Err(_) => tracing::warn!(?path, "a shim without a sandbox does not answer"),
            }
            fs::remove_file(&path).map_err(internal("remove the socket of an old shim"))?;
        }
        Ok(())
    }
}

fn entries(dir: &Path) -> Result<Vec<(String, std::path::PathBuf)>> {
    let failed = || internal(format!("read {}", dir.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(found)
}
