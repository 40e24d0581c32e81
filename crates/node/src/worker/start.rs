//! Starting one container: back-off, image, variables, mounts, creation, start, post-start hook.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use sampan_client::EventType;
use sampan_runtime::{ContainerState, KeyValue, Mount};
use sampan_volumes::Prepared;

use super::Worker;
use super::sync::write_file;
use crate::pod::config::{self, ContainerInput};
use crate::pod::status::Waiting;
use crate::pod::{self, Observed, Role, env};

impl Worker {
    /// Starts `container`, or says what it waits for.
    pub(super) async fn start(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        container: &Container,
        role: Role,
        observed: &Observed,
        prepared: &Prepared,
    ) -> Result<(), Waiting> {
        let name = &container.name;
        self.wait_for_backoff(pod, container, observed)?;
        let Some(sandbox) = observed.ready_sandbox() else {
            return Err(Self::waiting("ContainerCreating", ""));
        };
        let sandbox_id = sandbox.id.clone();
        let image = self.ensure_image(pod, container).await?;
        let attempt = self.next_attempt(pod, container, observed).await;
        let envs = self
            .environment(pod, container, observed)
            .await
            .map_err(|message| self.misconfigured(name, message))?;
        let mounts = self.mounts(pod, container, prepared, &envs).await?;
        let message_file = self.message_file(pod, container, &mounts).await;
        let message_file = message_file.map_err(|message| self.misconfigured(name, message))?;
        // Taken already, unless an earlier agent knew nothing of devices.
        let taken = self.cx.devices.take(pod, &self.cx.volumes.pod_dir(&self.uid));
        taken.map_err(|error| self.misconfigured(name, error.to_string()))?;
        let mut config = config::container(ContainerInput {
            node: &self.cx.config,
            pod,
            container,
            attempt,
            image: &image,
            envs,
            mounts,
            message_file,
            memory_capacity: self.cx.memory_capacity,
        })
        .map_err(|message| self.misconfigured(name, message))?;
        config.devices = self.cx.devices.of(pod, name);
        let id = match self.cx.runtime.create_container(&sandbox_id, &config).await {
            Ok(id) => id,
            Err(error) => {
                self.container_event(name, EventType::Warning, "Failed", format!("Error: {error}"));
                self.retry_later();
                return Err(Self::waiting("CreateContainerError", error.to_string()));
            }
        };
        self.container_event(name, EventType::Normal, "Created", "Container created");
        if let Err(error) = self.cx.runtime.start_container(&id).await {
            self.container_event(name, EventType::Warning, "Failed", format!("Error: {error}"));
            return Err(Self::waiting("RunContainerError", error.to_string()));
        }
        self.container_event(name, EventType::Normal, "Started", "Container started");
        self.post_start(pod, container, role, &id).await
    }

    fn misconfigured(&self, container: &str, message: String) -> Waiting {
        self.container_event(container, EventType::Warning, "Failed", format!("Error: {message}"));
        self.retry_later();
        Self::waiting("CreateContainerConfigError", message)
    }

    /// Nothing may tell us when to try again, so look again in a while.
    fn retry_later(&self) {
        self.wake_in(Duration::from_secs(10));
    }

    /// A container that ended waits before it is started again, longer each time.
    fn wait_for_backoff(&self, pod: &Pod, container: &Container, observed: &Observed) -> Result<(), Waiting> {
        let ended = observed
            .latest(&container.name)
            .filter(|record| record.state == ContainerState::Exited);
        let Some(record) = ended else { return Ok(()) };
        let key = format!("{}/{}/{}", self.uid, container.name, pod::container_hash(container));
        let ended = record.finished_at.unwrap_or(record.created_at);
        let now = Timestamp::now();
        let wait = {
            let mut restarts = self.cx.restarts.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = restarts.wait_since(&key, ended, now);
            if wait.is_none() {
                restarts.next(&key, ended);
            }
            wait
        };
        let Some((delay, left)) = wait else {
            return Ok(());
        };
        self.container_event(
            &container.name,
            EventType::Warning,
            "BackOff",
            format!(
                "Back-off restarting failed container {} in pod {}",
                container.name,
                pod::display(pod)
            ),
        );
        self.wake_in(Duration::try_from(left).unwrap_or_default() + Duration::from_millis(20));
        let message = format!(
            "back-off {} restarting failed container={} pod={}",
            go_duration(delay.as_secs()),
            container.name,
            pod::display(pod)
        );
        Err(Self::waiting("CrashLoopBackOff", message))
    }

    /// One more than the runtime, the last status or the logs on disk know.
    async fn next_attempt(&self, pod: &Pod, container: &Container, observed: &Observed) -> u32 {
        if let Some(record) = observed.latest(&container.name) {
            return record.metadata.attempt.saturating_add(1);
        }
        let dir = config::log_directory(
            &self.cx.config.pod_logs_dir(),
            pod::namespace(pod),
            pod::name(pod),
            pod::uid(pod),
        )
        .join(&container.name);
        let mut next = 0;
        if let Ok(mut entries) = tokio::fs::read_dir(&dir).await {
            while let Ok(Some(entry)) = entries.next_entry().await {
                let name = entry.file_name();
                let number = name
                    .to_str()
                    .and_then(|name| name.split_once(".log"))
                    .and_then(|(number, _)| number.parse::<u32>().ok());
                if let Some(number) = number {
                    next = next.max(number.saturating_add(1));
                }
            }
        }
        next
    }

    async fn environment(
        &self,
        pod: &Pod,
        container: &Container,
        observed: &Observed,
    ) -> Result<Vec<KeyValue>, String> {
        if self.stopping.until(self.cx.services.synced()).await.is_none() {
            return Err("the pod is ending".into());
        }
        let visible = env::visible_services(pod, &self.cx.services.list());
        let services = env::service_variables(&visible);
        let host_ips = self.cx.config.host_ips();
        let facts = env::Facts {
            node_name: self.cx.config.name.clone(),
            pod_ips: if pod::host_network(pod) {
                host_ips.clone()
            } else {
                observed.ips()
            },
            host_ips,
            allocatable: self.cx.facts.allocatable.clone(),
        };
        env::make(pod, container, &services, self.cx.sources.as_ref(), &facts).await
    }

    async fn mounts(
        &self,
        pod: &Arc<Pod>,
        container: &Container,
        prepared: &Prepared,
        envs: &[KeyValue],
    ) -> Result<Vec<Mount>, Waiting> {
        let name = &container.name;
        let mut out = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let sub_path = match mount.sub_path_expr.as_deref().filter(|text| !text.is_empty()) {
                Some(text) => env::expand_strict(text, &env::lookup_in(envs))
                    .map_err(|message| self.misconfigured(name, message))?,
                None => mount.sub_path.clone().unwrap_or_default(),
            };
            let volumes = pod::spec(pod).volumes.iter().flatten();
            let image = volumes
                .filter(|volume| volume.name == mount.name)
                .find_map(|volume| volume.image.as_ref());
            if let Some(source) = image {
                let reference = source.reference.clone().unwrap_or_default();
                let policy = source.pull_policy.as_deref();
                self.ensure_reference(pod, name, &reference, policy).await?;
                out.push(Mount {
                    image: Some(reference),
                    image_sub_path: sub_path,
                    ..config::mount(mount, Default::default(), true)
                });
                continue;
            }
            let Some(volume) = prepared.volumes.get(&mount.name) else {
                let message = format!(
                    "cannot find volume \"{}\" to mount into container \"{name}\"",
                    mount.name
                );
                return Err(self.misconfigured(name, message));
            };
            let host_path = if sub_path.is_empty() {
                volume.host_path.clone()
            } else {
                let bound = self
                    .cx
                    .volumes
                    .sub_path(&self.uid, name, index, &mount.name, volume, &sub_path)
                    .await;
                bound.map_err(|error| {
                    let message = format!(
                        "failed to prepare subPath for volumeMount \"{}\" of container \"{name}\": {error}",
                        mount.name
                    );
                    self.misconfigured(name, message)
                })?
            };
            out.push(config::mount(mount, host_path, volume.read_only));
        }
        let own_hosts = out
            .iter()
            .any(|mount| mount.container_path == std::path::Path::new("/etc/hosts"));
        if !own_hosts {
            out.push(Mount {
                container_path: "/etc/hosts".into(),
                host_path: self.hosts_path(pod),
                ..Mount::default()
            });
        }
        Ok(out)
    }

    /// An empty file for the container's last words, unless a volume already covers their path.
    async fn message_file(
        &self,
        pod: &Pod,
        container: &Container,
        mounts: &[Mount],
    ) -> Result<Option<std::path::PathBuf>, String> {
        let wanted = std::path::Path::new(config::message_path(container));
        if mounts.iter().any(|mount| mount.container_path == wanted) {
            return Ok(None);
        }
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let path = self
            .cx
            .volumes
            .pod_dir(pod::uid(pod))
            .join("containers")
            .join(&container.name)
            .join(&unique[..8]);
        // The container may run as any user.
        write_file(&path, b"", 0o666).await?;
        Ok(Some(path))
    }

    async fn post_start(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        container: &Container,
        role: Role,
        id: &str,
    ) -> Result<(), Waiting> {
        let hook = container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.post_start.as_ref());
        let Some(hook) = hook.filter(|_| role != Role::Ephemeral) else {
            return Ok(());
        };
        self.changed.notify_one();
        let run = self.stopping.until(self.run_hook(pod, container, id, hook)).await;
        let Some(Err(error)) = run else { return Ok(()) };
        self.container_event(
            &container.name,
            EventType::Warning,
            "FailedPostStartHook",
            format!("PostStartHook failed: {error}"),
        );
        let grace = pod::spec(pod).termination_grace_period_seconds.unwrap_or(30);
        let killed = self
            .stop_one(pod, Some(container), &container.name, id, grace, "FailedPostStartHook")
            .await;
        if let Err(error) = killed {
            tracing::warn!(container = id, %error, "a container whose post-start hook failed could not be stopped");
        }
        Err(Self::waiting("PostStartHookError", error))
    }
}

/// As Go prints whole seconds.
fn go_duration(seconds: i64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_read_like_upstreams() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s")] {
            assert_eq!(super::go_duration(seconds), text);
        }
    }
}
