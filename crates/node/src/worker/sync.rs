//! One pass of a Pod that should run: report, prepare, decide, act.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use sampan_client::EventType;
use sampan_runtime::{PodSandboxState, UserNamespace};
use sampan_volumes::Prepared;

use super::{Worker, retry_delay};
use crate::network::{self, NetworkRequest, PodNetworkStatus};
use crate::pod::actions::{self, Actions};
use crate::pod::status::{Verdict, Waiting};
use crate::pod::{self, Observed, Role, config, files};
use crate::probes::ProbeKind;

impl Worker {
    /// One pass. Says whether the Pod is over (completed, failed or past its deadline).
    pub(super) async fn sync(self: &Arc<Self>) -> bool {
        match self.try_sync().await {
            Ok(over) => {
                self.lock().failures = 0;
                over
            }
            Err(error) => {
                let failures = {
                    let mut memory = self.lock();
                    memory.failures = memory.failures.saturating_add(1);
                    memory.failures
                };
                // The first failures are often only somebody else's work not yet done (a ConfigMap on its way).
                if failures.is_multiple_of(5) {
                    let pod = pod::display(&self.pod());
                    tracing::warn!(pod, failures, %error, "a pod could not be synced, will retry");
                } else {
                    tracing::debug!(uid = self.uid, %error, "a pod could not be synced, will retry");
                }
                self.wake_in(retry_delay(failures));
                false
            }
        }
    }

    async fn try_sync(self: &Arc<Self>) -> Result<bool, String> {
        let pod = self.pod();
        let observed = self.observe().await.map_err(|error| error.to_string())?;
        self.adopt(&pod, &observed).await;
        let status = self.publish(&observed);
        if pod::is_terminal_phase(status.phase.as_deref().unwrap_or_default()) {
            return Ok(true);
        }
        if self.past_deadline(&pod, status.start_time.as_ref().map(|time| time.0)) {
            return Ok(true);
        }
        self.cx.sources.register(&pod);
        self.make_directories(&pod).await?;
        let prepared = self.prepare_volumes(&pod).await?;
        let results = self.lock_probes().clone();
        let plan = actions::compute(&pod, &observed, &results);
        let observed = self.act(&pod, observed, plan, &prepared).await?;
        if self.stopping.is_started() {
            return Ok(false);
        }
        self.prune(&observed).await;
        let observed = self.observe().await.map_err(|error| error.to_string())?;
        self.arrange_probes(&pod, &observed);
        let status = self.publish(&observed);
        Ok(pod::is_terminal_phase(status.phase.as_deref().unwrap_or_default()))
    }

    /// Takes over what an earlier process left running: its network, and what its probes had found.
    async fn adopt(&self, pod: &Pod, observed: &Observed) {
        {
            let mut memory = self.lock();
            if memory.adopted {
                return;
            }
            memory.adopted = true;
        }
        if let Some(sandbox) = observed.ready_sandbox()
            && let Some(netns) = sandbox.netns.clone()
        {
            let request = network::request(pod, sandbox.metadata.attempt);
            let status = PodNetworkStatus {
                netns,
                ips: observed.ips(),
            };
            if let Err(error) = self.cx.network.adopt(&request, &status).await {
                tracing::warn!(pod = pod::display(pod), %error, "the network of a running pod could not be adopted");
            }
        }
        let Some(status) = &pod.status else { return };
        let reported = status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .flatten();
        for reported in reported {
            let id = reported
                .container_id
                .as_deref()
                .and_then(|id| id.split_once("://"))
                .map(|(_, id)| id);
            let Some(record) = observed.running().find(|record| Some(record.id.as_str()) == id) else {
                continue;
            };
            let mut results = self.lock_probes();
            if reported.started == Some(true) {
                results.set(&record.id, ProbeKind::Startup, true);
            }
            if reported.ready {
                results.set(&record.id, ProbeKind::Readiness, true);
            }
        }
    }

    fn past_deadline(&self, pod: &Pod, started: Option<Timestamp>) -> bool {
        let (Some(seconds), Some(started)) = (pod::spec(pod).active_deadline_seconds, started) else {
            return false;
        };
        let left = SignedDuration::from_secs(seconds) - Timestamp::now().duration_since(started);
        if let Ok(left) = Duration::try_from(left)
            && !left.is_zero()
        {
            self.wake_in(left);
            return false;
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.event(EventType::Normal, "DeadlineExceeded", message);
        self.condemn(Verdict {
            phase: "Failed".into(),
            reason: "DeadlineExceeded".into(),
            message: message.into(),
            condition: None,
        });
        true
    }

    async fn make_directories(&self, pod: &Pod) -> Result<(), String> {
        let dir = self.cx.volumes.pod_dir(pod::uid(pod)).join("containers");
        tokio::fs::create_dir_all(&dir).await.map_err(|error| {
            let message = format!("error making pod data directories: {}: {error}", dir.display());
            self.event(EventType::Warning, "Failed", message.clone());
            message
        })
    }

    async fn prepare_volumes(&self, pod: &Pod) -> Result<Prepared, String> {
        let prepared = self.cx.volumes.prepare(pod, &self.cx.facts).await;
        for (volume, error) in &prepared.failed {
            let message = format!("MountVolume.SetUp failed for volume \"{volume}\" : {error}");
            self.event(EventType::Warning, "FailedMount", message);
        }
        if let Some((volume, error)) = prepared.failed.first() {
            return Err(format!("volume {volume}: {error}"));
        }
        if let Some(at) = prepared.refresh_at {
            let wait = at.duration_since(Timestamp::now());
            self.wake_in(Duration::try_from(wait).unwrap_or(Duration::from_secs(1)));
        }
        Ok(prepared)
    }

    async fn act(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        observed: Observed,
        plan: Actions,
        prepared: &Prepared,
    ) -> Result<Observed, String> {
        if plan.kill_pod {
            if plan.create_sandbox && observed.sandbox().is_some() {
                self.event(
                    EventType::Normal,
                    "SandboxChanged",
                    "Pod sandbox changed, it will be killed and re-created.",
                );
            }
            let grace = pod::spec(pod).termination_grace_period_seconds.unwrap_or(30);
            let killed = self.stopping.until(self.kill_all(pod, &observed, grace)).await;
            let Some(killed) = killed else { return Ok(observed) };
            killed?;
            if !plan.create_sandbox {
                // Nothing is left to do here: the new status says so.
                self.poke();
                return self.observe().await.map_err(|error| error.to_string());
            }
        } else {
            for kill in &plan.kill {
                let killed = self.stopping.until(self.kill_condemned(pod, &observed, kill)).await;
                let Some(killed) = killed else { return Ok(observed) };
                killed?;
            }
        }
        let mut observed = observed;
        if plan.create_sandbox {
            self.create_sandbox(pod, plan.attempt).await?;
            observed = self.observe().await.map_err(|error| error.to_string())?;
            self.publish(&observed);
        } else if plan.kill_pod || !plan.kill.is_empty() {
            observed = self.observe().await.map_err(|error| error.to_string())?;
        }
        self.write_hosts(pod, &observed).await?;
        let ephemeral = pod::ephemeral_containers(pod);
        let (init, regular) = (pod::init_containers(pod), pod::containers(pod));
        let starts = plan
            .start_ephemeral
            .iter()
            .filter_map(|index| Some((Role::Ephemeral, ephemeral.get(*index)?)))
            .chain(plan.start_init.iter().filter_map(|index| {
                let container = init.get(*index)?;
                let role = if pod::is_sidecar(container) {
                    Role::Sidecar
                } else {
                    Role::Init
                };
                Some((role, container))
            }))
            .chain(
                plan.start
                    .iter()
                    .filter_map(|index| Some((Role::Regular, regular.get(*index)?))),
            );
        for (role, container) in starts {
            if self.stopping.is_started() {
                break;
            }
            let started = self.start(pod, container, role, &observed, prepared).await;
            let mut memory = self.lock();
            match started {
                Ok(()) => {
                    memory.waiting.remove(&container.name);
                }
                Err(waiting) => {
                    memory.waiting.insert(container.name.clone(), waiting);
                }
            }
        }
        Ok(observed)
    }

    async fn create_sandbox(&self, pod: &Arc<Pod>, attempt: u32) -> Result<(), String> {
        let made = self.try_create_sandbox(pod, attempt).await;
        if let Err(error) = &made {
            let message = format!("Failed to create pod sandbox: {error}");
            self.event(EventType::Warning, "FailedCreatePodSandBox", message);
        }
        made
    }

    async fn try_create_sandbox(&self, pod: &Arc<Pod>, attempt: u32) -> Result<(), String> {
        if let Some(what) = pod::unsupported(pod) {
            return Err(what);
        }
        let node = &self.cx.config;
        let domain = &node.cluster_dns.domain;
        let hostname = files::sandbox_hostname(pod, domain)?;
        let host_resolver = tokio::fs::read_to_string(&node.resolv_conf).await.unwrap_or_default();
        let (dns, notes) = files::dns(pod, &node.cluster_dns, &files::parse_resolv_conf(&host_resolver));
        for note in notes {
            self.event(EventType::Warning, "DNSConfigForming", note);
        }
        let request = network::request(pod, attempt);
        let network = if pod::host_network(pod) {
            PodNetworkStatus {
                ips: node.host_ips(),
                ..PodNetworkStatus::default()
            }
        } else {
            self.make_users(pod, &request).await?;
            let setup = self.cx.network.setup(&request).await;
            setup.map_err(|error| format!("the pod network could not be set up: {error}"))?
        };
        let netns = (!pod::host_network(pod)).then(|| network.netns.clone());
        let mut config = config::sandbox(node, pod, attempt, hostname, dns, netns, &network.ips);
        config.linux.users = self.users(pod, &request)?;
        match self.cx.runtime.run_pod_sandbox(&config).await {
            Ok(_id) => Ok(()),
            Err(error) => {
                if !pod::host_network(pod)
                    && let Err(error) = self.cx.network.teardown(&request).await
                {
                    tracing::warn!(pod = pod::display(pod), %error, "a network could not be taken back");
                }
                Err(error.to_string())
            }
        }
    }

    /// The user namespace of a Pod whose users are not the node's.
    fn users(&self, pod: &Pod, request: &NetworkRequest) -> Result<Option<UserNamespace>, String> {
        if pod::host_users(pod) {
            return Ok(None);
        }
        let dir = self.cx.volumes.pod_dir(pod::uid(pod));
        let taken = self.cx.users.take(pod::uid(pod), &dir);
        let (first, length) = taken.map_err(|error| format!("the pod's users: {error}"))?;
        let path = network::users_path(&self.cx.network.namespace(request));
        Ok(Some(UserNamespace { path, first, length }))
    }

    /// Makes the Pod's user namespace, and the network namespace in it, if it is to have one.
    async fn make_users(&self, pod: &Pod, request: &NetworkRequest) -> Result<(), String> {
        let Some(users) = self.users(pod, request)? else {
            return Ok(());
        };
        let network = self.cx.network.namespace(request);
        let made = self.cx.runtime.make_namespaces(&users, &network).await;
        made.map_err(|error| error.to_string())
    }

    /// Writes the Pod's hosts file if it is not as it should be.
    async fn write_hosts(&self, pod: &Pod, observed: &Observed) -> Result<(), String> {
        let of_host = if pod::host_network(pod) {
            tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default()
        } else {
            String::new()
        };
        let domain = &self.cx.config.cluster_dns.domain;
        let text = files::hosts(pod, &observed.ips(), domain, &of_host);
        let path = self.hosts_path(pod);
        if tokio::fs::read(&path).await.is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        // Written in place: containers hold the file itself.
        write_file(&path, text.as_bytes(), 0o644).await
    }

    pub(super) fn hosts_path(&self, pod: &Pod) -> std::path::PathBuf {
        self.cx.volumes.pod_dir(pod::uid(pod)).join("etc-hosts")
    }

    /// Forgets dead containers but the last of each name, and sandboxes that hold none.
    async fn prune(&self, observed: &Observed) {
        let mut seen: std::collections::HashMap<&str, u32> = Default::default();
        let mut kept = std::collections::HashSet::new();
        for record in &observed.containers {
            let count = seen.entry(record.metadata.name.as_str()).or_default();
            *count += 1;
            if *count <= 2 || super::pod::observed::may_run(record) {
                kept.insert(record.sandbox_id.as_str());
                continue;
            }
            if let Err(error) = self.cx.runtime.remove_container(&record.id).await {
                tracing::warn!(container = record.id, %error, "a dead container could not be removed");
                kept.insert(record.sandbox_id.as_str());
                continue;
            }
            let _was_there = self.lock().messages.remove(&record.id);
            remove_log(&record.log_path).await;
            remove_message(record).await;
        }
        for sandbox in observed.sandboxes.iter().skip(1) {
            if sandbox.state == PodSandboxState::Ready || kept.contains(sandbox.id.as_str()) {
                continue;
            }
            if let Err(error) = self.cx.runtime.remove_pod_sandbox(&sandbox.id).await {
                tracing::warn!(sandbox = sandbox.id, %error, "a dead sandbox could not be removed");
            }
        }
    }

    pub(super) fn waiting(reason: &str, message: impl Into<String>) -> Waiting {
        Waiting {
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

/// Removes a log and its rotated parts.
async fn remove_log(path: &Path) {
    let path = path.to_path_buf();
    let removed = tokio::task::spawn_blocking(move || crate::logs::remove(&path)).await;
    if let Ok(Err(error)) = removed {
        tracing::debug!(%error, "a log could not be removed");
    }
}

/// Removes the file that took a container's last words. What a volume holds in its place stays.
async fn remove_message(record: &sampan_runtime::ContainerStatus) {
    let Some(path) = super::message_path(record) else {
        return;
    };
    let ours = path.parent().and_then(Path::parent).and_then(Path::file_name);
    if ours != Some("containers".as_ref()) {
        return;
    }
    match tokio::fs::remove_file(&path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::debug!(path = %path.display(), %error, "a termination message could not be removed");
        }
        _ => {}
    }
}

/// Writes a small file and gives it its mode.
pub(super) async fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(failed)?;
    }
    tokio::fs::write(path, bytes).await.map_err(failed)?;
    tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .await
        .map_err(failed)
}
