//! What the runtime says of one Pod.

use std::cmp::Reverse;
use std::collections::HashMap;

use sampan_runtime::{ContainerState, ContainerStatus, PodSandboxState, PodSandboxStatus};

use super::label;

/// Sandboxes and containers of a Pod, newest first.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub sandboxes: Vec<PodSandboxStatus>,
    pub containers: Vec<ContainerStatus>,
    /// Termination messages by container id, read by the worker.
    pub messages: HashMap<String, String>,
}

impl Observed {
    /// Sorts what the runtime listed.
    pub fn new(mut sandboxes: Vec<PodSandboxStatus>, mut containers: Vec<ContainerStatus>) -> Self {
        sandboxes.sort_by_key(|sandbox| Reverse((sandbox.metadata.attempt, sandbox.created_at)));
        containers.sort_by_key(|record| Reverse((record.created_at, record.metadata.attempt)));
        Self {
            sandboxes,
            containers,
            messages: HashMap::new(),
        }
    }

    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandboxes.first()
    }

    /// The newest sandbox, if it can hold containers.
    pub fn ready_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandbox().filter(|sandbox| sandbox.state == PodSandboxState::Ready)
    }

    /// The newest container of this name.
    pub fn latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|container| container.metadata.name == name)
    }

    /// The newest container of this name in the newest sandbox: init containers of an earlier one do not count.
    pub fn latest_in_sandbox(&self, name: &str) -> Option<&ContainerStatus> {
        let sandbox = self.sandbox()?;
        self.latest(name).filter(|container| container.sandbox_id == sandbox.id)
    }

    pub fn running(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers.iter().filter(|container| is_running(container))
    }

    /// The Pod's addresses, as its sandbox was labelled with them.
    pub fn ips(&self) -> Vec<String> {
        self.ready_sandbox()
            .and_then(|sandbox| sandbox.annotations.get(label::POD_IPS))
            .map(|text| text.split(',').filter(|ip| !ip.is_empty()).map(str::to_owned).collect())
            .unwrap_or_default()
    }
}

pub fn is_running(container: &ContainerStatus) -> bool {
    container.state == ContainerState::Running
}

/// Running, or perhaps running: what must be stopped before the Pod is over.
pub fn may_run(container: &ContainerStatus) -> bool {
    matches!(container.state, ContainerState::Running | ContainerState::Unknown)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use jiff::{SignedDuration, Timestamp};
    use sampan_runtime::{ContainerMetadata, LinuxContainerResources, NamespaceOptions, PodSandboxMetadata};

    /// A time some seconds after an arbitrary start.
    pub fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000 + seconds)
    }

    pub fn sandbox(attempt: u32, state: PodSandboxState) -> PodSandboxStatus {
        PodSandboxStatus {
            id: format!("sandbox-{attempt}"),
            metadata: PodSandboxMetadata {
                name: "p".into(),
                namespace: "ns".into(),
                uid: "uid-1".into(),
                attempt,
            },
            state,
            created_at: at(i64::from(attempt)),
            labels: Default::default(),
            annotations: [(label::POD_IPS.to_owned(), "10.0.0.7".to_owned())].into(),
            namespaces: NamespaceOptions::default(),
            netns: None,
            pid: 1,
        }
    }

    pub fn container(name: &str, attempt: u32, state: ContainerState) -> ContainerStatus {
        ContainerStatus {
            id: format!("{name}-{attempt}"),
            sandbox_id: "sandbox-0".into(),
            metadata: ContainerMetadata {
                name: name.into(),
                attempt,
            },
            state,
            created_at: at(i64::from(attempt) * 10),
            started_at: (state != ContainerState::Created).then(|| at(i64::from(attempt) * 10 + 1)),
            finished_at: (state == ContainerState::Exited).then(|| at(i64::from(attempt) * 10 + 5)),
            exit_code: None,
            signal: None,
            image: "img".into(),
            image_ref: "img@sha256:1".into(),
            image_id: "sha256:2".into(),
            reason: String::new(),
            message: String::new(),
            labels: Default::default(),
            annotations: Default::default(),
            mounts: Vec::new(),
            log_path: Default::default(),
            resources: LinuxContainerResources::default(),
            pid: 0,
            user: None,
        }
    }

    pub fn exited(name: &str, attempt: u32, code: i32) -> ContainerStatus {
        ContainerStatus {
            exit_code: Some(code),
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            ..container(name, attempt, ContainerState::Exited)
        }
    }

    pub fn running(name: &str, attempt: u32) -> ContainerStatus {
        container(name, attempt, ContainerState::Running)
    }

    /// Containers in a ready first sandbox.
    pub fn observed(containers: Vec<ContainerStatus>) -> Observed {
        Observed::new(vec![sandbox(0, PodSandboxState::Ready)], containers)
    }
}
