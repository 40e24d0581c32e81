//! Ending containers and Pods within their grace period.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use sampan_client::EventType;
use sampan_runtime::{ContainerStatus, PodSandboxState};
use tokio::time::Instant;

use super::Worker;
use crate::network;
use crate::pod::actions::Kill;
use crate::pod::{self, Observed, Role, config, observed::may_run};
use crate::probes::ProbeKind;

/// Containers always get this long between the stop signal and the kill.
const MINIMUM_GRACE: i64 = 2;

impl Worker {
    /// Stops one container: event, pre-stop hook within the grace period, stop signal, kill.
    pub(super) async fn stop_one(
        &self,
        pod: &Pod,
        container: Option<&Container>,
        name: &str,
        id: &str,
        grace: i64,
        message: &str,
    ) -> Result<(), String> {
        let left = self.announce_and_hook(pod, container, name, id, grace, message).await;
        self.signal(id, left).await
    }

    async fn announce_and_hook(
        &self,
        pod: &Pod,
        container: Option<&Container>,
        name: &str,
        id: &str,
        grace: i64,
        message: &str,
    ) -> i64 {
        let first = self.lock().hooks_run.insert(id.to_owned());
        if !first {
            return grace;
        }
        let text = if message.is_empty() {
            format!("Stopping container {name}")
        } else {
            message.to_owned()
        };
        self.container_event(name, EventType::Normal, "Killing", text);
        let hook = container
            .and_then(|container| container.lifecycle.as_ref())
            .and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        let (Some(container), Some(hook)) = (container, hook) else {
            return grace;
        };
        if grace <= 0 {
            return grace;
        }
        let began = Instant::now();
        let limit = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        match tokio::time::timeout(limit, self.run_hook(pod, container, id, hook)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(container = id, error, "a pre-stop hook failed");
                let text = format!("PreStopHook failed: {error}");
                self.container_event(name, EventType::Warning, "FailedPreStopHook", text);
            }
            Err(_) => tracing::debug!(container = id, "a pre-stop hook took the whole grace period"),
        }
        grace - i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX)
    }

    async fn signal(&self, id: &str, grace: i64) -> Result<(), String> {
        let seconds = u64::try_from(grace.max(MINIMUM_GRACE)).unwrap_or(2);
        match self.cx.runtime.stop_container(id, Duration::from_secs(seconds)).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Stops a container that goes alone: a failed probe may give it its own grace period.
    pub(super) async fn kill_condemned(&self, pod: &Pod, observed: &Observed, kill: &Kill) -> Result<(), String> {
        let container = pod::find_container(pod, &kill.name).map(|(_, container)| container);
        let of_probe = kill
            .probe
            .and_then(|kind: ProbeKind| kind.of(container.as_ref()?)?.termination_grace_period_seconds);
        let grace = of_probe
            .or(pod::spec(pod).termination_grace_period_seconds)
            .unwrap_or(30);
        if !observed.containers.iter().any(|record| record.id == kill.id) {
            return Ok(());
        }
        self.stop_one(pod, container.as_ref(), &kill.name, &kill.id, grace, &kill.message)
            .await
    }

    /// Stops every container (sidecars after the others, the last one first), then the sandboxes and their network.
    pub(super) async fn kill_all(&self, pod: &Pod, observed: &Observed, grace: i64) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        let left = || {
            let left = deadline.saturating_duration_since(Instant::now());
            i64::try_from(left.as_secs()).unwrap_or(0)
        };
        let alive: Vec<&ContainerStatus> = observed.containers.iter().filter(|record| may_run(record)).collect();
        let stops = alive.iter().map(|record| async move {
            let name = &record.metadata.name;
            let found = pod::find_container(pod, name);
            let container = found.as_ref().map(|(_, container)| container);
            let rest = self
                .announce_and_hook(pod, container, name, &record.id, grace, "")
                .await;
            match found {
                Some((Role::Sidecar, _)) => Ok(()),
                _ => self.signal(&record.id, rest).await,
            }
        });
        let failed = join_all(stops).await.into_iter().find_map(Result::err);
        let mut sidecars: Vec<(usize, &ContainerStatus)> = pod::init_containers(pod)
            .iter()
            .enumerate()
            .filter(|(_, container)| pod::is_sidecar(container))
            .flat_map(|(index, container)| {
                let named = alive.iter().filter(|record| record.metadata.name == container.name);
                named.map(move |record| (index, *record))
            })
            .collect();
        sidecars.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (_, record) in sidecars {
            self.signal(&record.id, left()).await?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        for sandbox in &observed.sandboxes {
            if sandbox.state == PodSandboxState::Ready {
                let stopped = self.cx.runtime.stop_pod_sandbox(&sandbox.id).await;
                stopped.map_err(|error| error.to_string())?;
            }
            if !pod::host_network(pod) {
                let request = network::request(pod, sandbox.metadata.attempt);
                let down = self.cx.network.teardown(&request).await;
                down.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// The terminating phase: everything stops; a shorter grace period takes over at once.
    pub(super) async fn terminate(self: &Arc<Self>) -> Result<(), String> {
        loop {
            let pod = self.pod();
            let observed = self.observe().await.map_err(|error| error.to_string())?;
            self.lock().terminal = true;
            if observed.containers.iter().any(may_run) {
                // Still running: say so, a terminal phase comes with the ends.
                self.lock().terminal = false;
                self.publish(&observed);
                self.lock().terminal = true;
            }
            let grace = self.grace(&pod);
            let kill = self.kill_all(&pod, &observed, grace);
            tokio::pin!(kill);
            let hurried = loop {
                tokio::select! {
                    result = &mut kill => break result.map(|()| false),
                    () = self.hurry.notified() => {
                        if self.grace(&self.pod()) < grace {
                            break Ok(true);
                        }
                    }
                    () = self.changed.notified() => self.publish_running().await,
                }
            }?;
            if !hurried {
                break;
            }
        }
        self.stop_all_probes();
        let observed = self.observe().await.map_err(|error| error.to_string())?;
        if let Some(record) = observed.containers.iter().find(|record| may_run(record)) {
            return Err(format!("container {} still runs", record.id));
        }
        self.publish(&observed);
        Ok(())
    }

    async fn publish_running(&self) {
        match self.observe().await {
            Ok(observed) => {
                let alive = observed.containers.iter().any(may_run);
                self.lock().terminal = !alive;
                self.publish(&observed);
                self.lock().terminal = true;
            }
            Err(error) => tracing::warn!(uid = self.uid, %error, "the runtime could not be asked"),
        }
    }

    fn grace(&self, pod: &Pod) -> i64 {
        let memory = self.lock();
        if memory
            .verdict
            .as_ref()
            .is_some_and(|verdict| verdict.reason == "Evicted")
        {
            return 1;
        }
        drop(memory);
        pod::grace_seconds(pod)
    }

    /// The terminated phase: volumes go, then the last status is final.
    pub(super) async fn finish(&self) -> Result<(), String> {
        let pod = self.pod();
        // A network may exist without its sandbox, when the sandbox could not be made.
        let observed = self.observe().await.map_err(|error| error.to_string())?;
        if observed.sandboxes.is_empty() && !pod::host_network(&pod) {
            let down = self.cx.network.teardown(&network::request(&pod, 0)).await;
            down.map_err(|error| error.to_string())?;
        }
        let torn_down = self.cx.remove_directory(&self.uid).await;
        torn_down.map_err(|error| error.to_string())?;
        self.cx.sources.unregister(&self.uid);
        {
            let mut memory = self.lock();
            let phase = memory.status.phase.clone().unwrap_or_default();
            if !pod::is_terminal_phase(&phase) {
                // It never ran to an end of its own.
                memory.status.phase = Some("Failed".into());
            }
            memory.finished = true;
        }
        self.publish(&observed);
        Ok(())
    }

    /// Removes what the Pod left, once the API has forgotten it.
    pub(super) async fn remove_records(&self) -> Result<(), String> {
        let pod = self.pod();
        let observed = self.observe().await.map_err(|error| error.to_string())?;
        for sandbox in &observed.sandboxes {
            let removed = self.cx.runtime.remove_pod_sandbox(&sandbox.id).await;
            removed.map_err(|error| error.to_string())?;
        }
        for record in &observed.containers {
            let removed = self.cx.runtime.remove_container(&record.id).await;
            removed.map_err(|error| error.to_string())?;
        }
        let torn_down = self.cx.remove_directory(&self.uid).await;
        torn_down.map_err(|error| error.to_string())?;
        let logs = config::log_directory(
            &self.cx.config.pod_logs_dir(),
            pod::namespace(&pod),
            pod::name(&pod),
            &self.uid,
        );
        match tokio::fs::remove_dir_all(&logs).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("cannot remove {}: {error}", logs.display()))
            }
            _ => Ok(()),
        }
    }
}
