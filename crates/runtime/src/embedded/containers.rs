//! Containers: create, start, stop, remove, and their ends.

use std::fs;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Mutex, watch};

use super::build::{devices, signal_number};
use super::client;
use super::records::{Container, ContainerRecord, Live, RECORD, Sandbox};
use super::{Embedded, blocking, internal, new_id};
use crate::disk;
use crate::protocol::{Reply, Request};
use crate::runtime::{Result, RuntimeError};
use crate::spec::{self, ExitRecord, StartRecord, file};
use crate::types::*;

/// How long a killed container may take to be gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// Processes a container may have unless told otherwise.
const DEFAULT_PIDS: i64 = 32_768;

impl Embedded {
    pub(super) async fn create(&self, sandbox: &Arc<Sandbox>, config: &ContainerConfig) -> Result<String> {
        if !sandbox.is_ready() {
            return Err(RuntimeError::precondition(format!(
                "sandbox \"{}\" is not ready",
                sandbox.record.id
            )));
        }
        let found = self.images.get(&config.image)?;
        let image = found.ok_or_else(|| {
            RuntimeError::new(
                crate::ErrorKind::NotFound,
                format!("image \"{}\" is not present; pull or import it first", config.image),
            )
        })?;
        let id = new_id();
        let dir = self.container_dir(&id);
        let made = self.prepare(sandbox, config, &image, &id, &dir);
        let record = match made {
            Ok(record) => record,
            Err(error) => {
                disk::remove_dir(&dir).map_err(internal("remove a failed container"))?;
                return Err(error);
            }
        };
        let container = Arc::new(Container {
            record,
            resources: std::sync::Mutex::new(config.linux.resources.clone()),
            live: watch::Sender::new(Live::default()),
            busy: Mutex::default(),
        });
        self.lock().containers.insert(id.clone(), container);
        let (sandbox_id, uid) = (&sandbox.record.id, &sandbox.record.config.metadata.uid);
        self.emit(ContainerEventKind::Created, &id, sandbox_id, uid);
        Ok(id)
    }

    fn prepare(
        &self,
        sandbox: &Sandbox,
        config: &ContainerConfig,
        image: &Image,
        id: &str,
        dir: &Path,
    ) -> Result<ContainerRecord> {
        let cgroup = format!("{}/{id}", sandbox.record.cgroup);
        let signal = config.stop_signal.as_deref().unwrap_or(&image.config.stop_signal);
        let stop_signal = signal_number(signal)?;
        let failed = "write the container's files";
        for name in ["upper", "work", "rootfs", "empty"] {
            fs::create_dir_all(dir.join(name)).map_err(internal(failed))?;
        }
        if let Some(users) = &sandbox.record.config.linux.users {
            // What is written to the root directory itself is the container's too.
            let root = users.outside(0);
            std::os::unix::fs::chown(dir.join("upper"), Some(root), Some(root)).map_err(internal(failed))?;
        }
        let built = self.build(sandbox, config, image, id, &cgroup, dir)?;
        spec::write(&dir.join(file::SPEC), &built.spec, false).map_err(internal(failed))?;
        let log = sandbox.record.config.log_directory.join(&config.log_path);
        let record = ContainerRecord {
            id: id.into(),
            sandbox_id: sandbox.record.id.clone(),
            config: config.clone(),
            created_at: Timestamp::now(),
            image_id: image.id.clone(),
            image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
            mounted_images: built.mounted_images,
            log_path: log,
            cgroup,
            stop_signal,
        };
        // Last: with this file the container exists.
        spec::write(&dir.join(RECORD), &record, false).map_err(internal(failed))?;
        Ok(record)
    }

    pub(super) async fn start(&self, container: &Arc<Container>) -> Result<()> {
        let _busy = container.busy.lock().await;
        if container.state() != ContainerState::Created {
            return Err(RuntimeError::precondition(format!(
                "container \"{}\" was started before",
                container.record.id
            )));
        }
        let sandbox = self.sandbox(&container.record.sandbox_id)?;
        if !sandbox.is_ready() {
            return Err(RuntimeError::precondition("the container's sandbox is not ready"));
        }
        let id = container.record.id.clone();
        let started = match self.prepare_cgroup(container).await {
            Ok(()) => client::ask(&self.socket(&sandbox.record.id), &Request::Start { id: id.clone() }).await,
            Err(error) => Err(error),
        };
        let path = self.container_dir(&id).join(file::START);
        let error = match started {
            Ok(Reply::Started { start, .. }) => {
                self.has_started(container, start);
                return Ok(());
            }
            Ok(other) => RuntimeError::internal("start the container", format!("{other:?}")),
            Err(error) => error,
        };
        // A server that died while it asked finds the container running.
        if !self.container_dir(&id).join(file::EXIT).exists()
            && let Ok(start) = spec::read::<StartRecord>(&path)
        {
            self.has_started(container, start);
            return Ok(());
        }
        let exit = ExitRecord {
            code: 128,
            signal: None,
            oom_killed: false,
            at: Timestamp::now(),
            start_error: Some(error.message.clone()),
            unseen: false,
        };
        let path = self.container_dir(&id).join(file::EXIT);
        if !path.exists() {
            spec::write(&path, &exit, false).map_err(internal("record a failed start"))?;
        }
        self.has_exited(&id, exit).await;
        Err(RuntimeError::start_failed(format!(
            "failed to start container \"{}\": {}",
            container.record.config.metadata.name, error.message
        )))
    }

    async fn prepare_cgroup(&self, container: &Arc<Container>) -> Result<()> {
        let (cgroups, group) = (self.cgroups.clone(), container.record.cgroup.clone());
        let mut limits = container
            .resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let (_, rules) = devices(&container.record.config)?;
        blocking(move || {
            cgroups
                .create(&group)
                .map_err(internal("make the container's control group"))?;
            if cgroups.counts_processes(&group) {
                limits.pids_limit = limits.pids_limit.or(Some(DEFAULT_PIDS));
            }
            cgroups
                .limit(&group, &limits)
                .map_err(internal("limit the container"))?;
            cgroups
                .restrict_devices(&group, &rules)
                .map_err(internal("restrict devices"))
        })
        .await
    }

    fn has_started(&self, container: &Container, start: StartRecord) {
        let changed = container.live.send_if_modified(|live| {
            let new = live.start.is_none();
            live.start.get_or_insert(start);
            new
        });
        if changed {
            let (id, sandbox) = (&container.record.id, &container.record.sandbox_id);
            self.emit(ContainerEventKind::Started, id, sandbox, &self.pod_uid(sandbox));
        }
    }

    /// A shim says (or a file does) that the container has ended.
    pub(super) async fn has_exited(&self, id: &str, exit: ExitRecord) {
        let Ok(container) = self.container(id) else {
            return;
        };
        if exit.start_error.is_none() && container.live.borrow().start.is_none() {
            // It was so quick that its end overtook the reply to its start.
            let path = self.container_dir(id).join(file::START);
            match spec::read::<StartRecord>(&path) {
                Ok(start) => self.has_started(&container, start),
                Err(error) => tracing::warn!(id, %error, "a container ended that never started"),
            }
        }
        let changed = container.live.send_if_modified(|live| {
            let new = live.exit.is_none();
            live.exit.get_or_insert(exit);
            new
        });
        if !changed {
            return;
        }
        let sandbox = &container.record.sandbox_id;
        self.emit(ContainerEventKind::Stopped, id, sandbox, &self.pod_uid(sandbox));
        // A dead container is a record: nothing of it stays in the kernel.
        let (cgroups, group) = (self.cgroups.clone(), container.record.cgroup.clone());
        let removed = blocking(move || cgroups.remove(&group).map_err(internal("control group")));
        if let Err(error) = removed.await {
            tracing::warn!(id, %error, "an ended container's control group stays");
        }
    }

    pub(super) async fn stop(&self, container: &Arc<Container>, grace: Duration) -> Result<()> {
        if container.state() != ContainerState::Running {
            return Ok(());
        }
        let mut live = container.live.subscribe();
        if !grace.is_zero() {
            self.signal(container, container.record.stop_signal, false).await?;
            let exited = live.wait_for(|live| live.exit.is_some());
            if tokio::time::timeout(grace, exited).await.is_ok() {
                return Ok(());
            }
        }
        self.signal(container, libc::SIGKILL, true).await?;
        let exited = live.wait_for(|live| live.exit.is_some());
        match tokio::time::timeout(PATIENCE, exited).await {
            Ok(_) => Ok(()),
            Err(_) => Err(RuntimeError::internal(
                "stop the container",
                "it does not end although it was killed; is a disk or network file system hanging?",
            )),
        }
    }

    async fn signal(&self, container: &Container, signal: i32, all: bool) -> Result<()> {
        let id = container.record.id.clone();
        let request = Request::Kill { id, signal, all };
        match client::ask(&self.socket(&container.record.sandbox_id), &request).await {
            Ok(_) => Ok(()),
            Err(error) if container.state() == ContainerState::Running => {
                // Whoever listens to the shim finds out that it is gone; nothing to signal then.
                tracing::debug!(%error, "signal a container");
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    pub(super) async fn remove(&self, container: &Arc<Container>) -> Result<()> {
        self.stop(container, Duration::ZERO).await?;
        let _busy = container.busy.lock().await;
        let record = &container.record;
        if self.sandbox(&record.sandbox_id).is_ok_and(|sandbox| sandbox.is_ready()) {
            let request = Request::Forget { id: record.id.clone() };
            if let Err(error) = client::ask(&self.socket(&record.sandbox_id), &request).await {
                tracing::debug!(%error, "let a shim forget a container");
            }
        }
        let (cgroups, group) = (self.cgroups.clone(), record.cgroup.clone());
        let dir = self.container_dir(&record.id);
        blocking(move || {
            cgroups
                .remove(&group)
                .map_err(internal("remove the container's control group"))?;
            // The record first: a directory without one is removed at the next start.
            match fs::remove_file(dir.join(RECORD)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(RuntimeError::internal("remove the container", error));
                }
                _ => {}
            }
            disk::remove_dir(&dir).map_err(internal("remove the container"))
        })
        .await?;
        if self.lock().containers.remove(&record.id).is_some() {
            let uid = self.pod_uid(&record.sandbox_id);
            self.emit(ContainerEventKind::Deleted, &record.id, &record.sandbox_id, &uid);
        }
        Ok(())
    }

    pub(super) async fn update(&self, container: &Arc<Container>, change: &LinuxContainerResources) -> Result<()> {
        let _busy = container.busy.lock().await;
        if container.state() == ContainerState::Exited {
            return Err(RuntimeError::precondition("the container has ended"));
        }
        if container.state() == ContainerState::Running {
            let (cgroups, group) = (self.cgroups.clone(), container.record.cgroup.clone());
            let change = change.clone();
            blocking(move || cgroups.limit(&group, &change).map_err(internal("change limits"))).await?;
        }
        let resources = {
            let mut resources = container.resources.lock().unwrap_or_else(PoisonError::into_inner);
            resources.update(change);
            resources.clone()
        };
        // A restarted server says the same.
        let mut record = container.record.clone();
        record.config.linux.resources = resources;
        let path = self.container_dir(&record.id).join(RECORD);
        spec::write(&path, &record, false).map_err(internal("record the limits"))
    }

    pub(super) async fn reopen_log(&self, container: &Arc<Container>) -> Result<()> {
        if container.state() != ContainerState::Running {
            return Err(RuntimeError::precondition("the container is not running"));
        }
        let request = Request::ReopenLog {
            id: container.record.id.clone(),
        };
        client::ask(&self.socket(&container.record.sandbox_id), &request)
            .await
            .map(drop)
    }

    pub(super) async fn stats_of(&self, container: &Arc<Container>) -> Result<ContainerStats> {
        let record = &container.record;
        let running = container.state() == ContainerState::Running;
        let upper = self.container_dir(&record.id).join("upper");
        let (cgroups, group) = (self.cgroups.clone(), record.cgroup.clone());
        let (usage, writable_layer) = blocking(move || {
            let usage = match running {
                true => cgroups.usage(&group).map_err(internal("read the container's usage"))?,
                false => crate::cgroups::Usage::default(),
            };
            let mut layer = disk::filesystem(&upper).map_err(internal("read the writable layer"))?;
            (layer.used_bytes, layer.inodes_used) = disk::occupied(&upper);
            Ok((usage, layer))
        })
        .await?;
        Ok(ContainerStats {
            id: record.id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            started_at: container.status().started_at,
            timestamp: Timestamp::now(),
            cpu: usage.cpu,
            memory: usage.memory,
            writable_layer,
        })
    }
}
