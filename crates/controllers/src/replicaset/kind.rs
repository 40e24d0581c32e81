//! What ReplicaSets and ReplicationControllers have in common, so that one controller serves both.

use std::fmt::Debug;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::core::{NamespaceResourceScope, Selector};
use sampan_client::owner;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A condition of either kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    pub(super) type_: String,
    pub(super) status: String,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
    pub(super) last_transition_time: Option<Time>,
}

/// The status of either kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Status {
    pub(super) replicas: i32,
    pub(super) fully_labeled: i32,
    pub(super) ready: i32,
    pub(super) available: i32,
    pub(super) terminating: Option<i32>,
    pub(super) observed_generation: i64,
    pub(super) conditions: Vec<Condition>,
}

pub(super) trait Replicated:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Whether the status counts Pods that are on their way out.
    const COUNTS_TERMINATING: bool;
    fn replicas(&self) -> i32;
    fn selector(&self) -> Option<Selector>;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn min_ready_seconds(&self) -> i32;
    fn status(&self) -> Status;
    fn set_status(&mut self, status: Status);
}

fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

macro_rules! conditions_from {
    ($conditions:expr) => {
        $conditions
            .iter()
            .flatten()
            .cloned()
            .map(|known| Condition {
                type_: known.type_,
                status: known.status,
                reason: known.reason,
                message: known.message,
                last_transition_time: known.last_transition_time,
            })
            .collect()
    };
}

macro_rules! conditions_into {
    ($kind:ident, $conditions:expr) => {{
        let conditions: Vec<$kind> = $conditions
            .into_iter()
            .map(|known| $kind {
                type_: known.type_,
                status: known.status,
                reason: known.reason,
                message: known.message,
                last_transition_time: known.last_transition_time,
            })
            .collect();
        (!conditions.is_empty()).then_some(conditions)
    }};
}

impl Replicated for ReplicaSet {
    const COUNTS_TERMINATING: bool = true;

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn selector(&self) -> Option<Selector> {
        owner::selector(self.spec.as_ref().map(|spec| &spec.selector))
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }
    fn min_ready_seconds(&self) -> i32 {
        let spec = self.spec.as_ref();
        spec.and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }
    fn status(&self) -> Status {
        let status = self.status.clone().unwrap_or_default();
        Status {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: status.terminating_replicas,
            observed_generation: status.observed_generation.unwrap_or(0),
            conditions: conditions_from!(status.conditions),
        }
    }
    fn set_status(&mut self, status: Status) {
        self.status = Some(ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: nonzero(status.fully_labeled),
            ready_replicas: nonzero(status.ready),
            available_replicas: nonzero(status.available),
            terminating_replicas: status.terminating,
            observed_generation: Some(status.observed_generation),
            conditions: conditions_into!(ReplicaSetCondition, status.conditions),
        });
    }
}

impl Replicated for ReplicationController {
    const COUNTS_TERMINATING: bool = false;

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn selector(&self) -> Option<Selector> {
        let labels = self.spec.as_ref()?.selector.clone()?;
        let selector: Selector = labels.into_iter().collect();
        (!selector.selects_all()).then_some(selector)
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }
    fn min_ready_seconds(&self) -> i32 {
        let spec = self.spec.as_ref();
        spec.and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }
    fn status(&self) -> Status {
        let status = self.status.clone().unwrap_or_default();
        Status {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: None,
            observed_generation: status.observed_generation.unwrap_or(0),
            conditions: conditions_from!(status.conditions),
        }
    }
    fn set_status(&mut self, status: Status) {
        self.status = Some(ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: nonzero(status.fully_labeled),
            ready_replicas: nonzero(status.ready),
            available_replicas: nonzero(status.available),
            observed_generation: Some(status.observed_generation),
            conditions: conditions_into!(ReplicationControllerCondition, status.conditions),
        });
    }
}
