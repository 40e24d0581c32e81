//! What the engine remembers, in memory and on disk.
//!
//! ```text
//! lock                          held by the one server on this directory
//! images/                       see crate::images
//! sandboxes/<id>/record.json    what was asked for; `stopped` once it is over
//!               /sandbox.json   for the shim; shim.log is what it had to complain about
//!               /resolv.conf, hostname
//! containers/<id>/record.json   what was asked for: the container exists once this file does
//!                /spec.json     for the shim, which writes start.json and exit.json
//!                /upper, work   the writable layer
//! ```

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::spec::{ExitRecord, StartRecord};
use crate::types::*;

pub const RECORD: &str = "record.json";

/// A sandbox on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: String,
    pub config: PodSandboxConfig,
    pub created_at: Timestamp,
    /// Its control group; never empty. It goes with the last sandbox that has it.
    pub cgroup: String,
    pub stopped: bool,
}

/// A container on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox_id: String,
    pub config: ContainerConfig,
    pub created_at: Timestamp,
    pub image_id: String,
    pub image_ref: String,
    /// Images mounted as volumes, which are in use too.
    #[serde(default)]
    pub mounted_images: Vec<String>,
    pub log_path: PathBuf,
    pub cgroup: String,
    /// Signal that asks it to stop.
    pub stop_signal: i32,
}

/// The changing part of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxLive {
    pub state: PodSandboxState,
    pub pid: u32,
}

/// A sandbox in memory.
pub struct Sandbox {
    pub record: SandboxRecord,
    pub live: watch::Sender<SandboxLive>,
    /// One operation at a time.
    pub busy: Mutex<()>,
}

/// The changing part of a container.
#[derive(Clone, Debug, Default)]
pub struct Live {
    pub start: Option<StartRecord>,
    pub exit: Option<ExitRecord>,
}

/// A container in memory.
pub struct Container {
    pub record: ContainerRecord,
    /// Limits in force.
    pub resources: std::sync::Mutex<LinuxContainerResources>,
    pub live: watch::Sender<Live>,
    /// One operation at a time.
    pub busy: Mutex<()>,
}

impl Sandbox {
    pub fn status(&self) -> PodSandboxStatus {
        let live = *self.live.borrow();
        let config = &self.record.config;
        PodSandboxStatus {
            id: self.record.id.clone(),
            metadata: config.metadata.clone(),
            state: live.state,
            created_at: self.record.created_at,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            namespaces: config.linux.namespaces.clone(),
            netns: config.linux.netns.clone(),
            pid: live.pid,
        }
    }

    pub fn is_ready(&self) -> bool {
        self.live.borrow().state == PodSandboxState::Ready
    }
}

impl Container {
    pub fn state(&self) -> ContainerState {
        let live = self.live.borrow();
        match (&live.start, &live.exit) {
            (_, Some(_)) => ContainerState::Exited,
            (Some(_), None) => ContainerState::Running,
            (None, None) => ContainerState::Created,
        }
    }

    pub fn status(&self) -> ContainerStatus {
        let state = self.state();
        let live = self.live.borrow().clone();
        let record = &self.record;
        let (reason, message) = live.exit.as_ref().map(why).unwrap_or_default();
        let running = live.start.as_ref().filter(|_| live.exit.is_none());
        ContainerStatus {
            id: record.id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            metadata: record.config.metadata.clone(),
            state,
            created_at: record.created_at,
            started_at: live.start.as_ref().map(|start| start.started_at),
            finished_at: live.exit.as_ref().map(|exit| exit.at),
            exit_code: live.exit.as_ref().map(|exit| exit.code),
            signal: live.exit.as_ref().and_then(|exit| exit.signal),
            image: record.config.image.clone(),
            image_ref: record.image_ref.clone(),
            image_id: record.image_id.clone(),
            reason,
            message,
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            mounts: record.config.mounts.clone(),
            log_path: record.log_path.clone(),
            resources: self.resources.lock().map(|r| r.clone()).unwrap_or_default(),
            pid: running.map(|start| start.pid).unwrap_or_default(),
            user: live.start.map(|start| start.user),
        }
    }
}

fn why(exit: &ExitRecord) -> (String, String) {
    if let Some(error) = &exit.start_error {
        return (reason::START_ERROR.into(), error.clone());
    }
    if exit.unseen {
        let text = "nobody saw how the container ended: its shim is gone";
        return (reason::UNKNOWN.into(), text.into());
    }
    let reason = if exit.oom_killed {
        reason::OOM_KILLED
    } else if exit.code == 0 {
        reason::COMPLETED
    } else {
        reason::ERROR
    };
    (reason.into(), String::new())
}
