//! One look at one autoscaler: what was found so far, as its status will tell it.
//!
//! Invariant: a condition's time changes with its status only.

use std::sync::Arc;

use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sampan_client::Key;

/// What a metric asks for.
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// How the metric is called in messages.
    pub(super) name: String,
    pub(super) status: MetricStatus,
}

/// Why a metric asks for nothing: the condition's reason and message, and the error beside them.
pub(super) struct Failure {
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) error: String,
}

/// One look at one autoscaler.
pub(super) struct Look {
    pub(super) key: Key,
    pub(super) before: Arc<HorizontalPodAutoscaler>,
    pub(super) status: HorizontalPodAutoscalerStatus,
    pub(super) now: Time,
    /// What was done, as it is counted.
    pub(super) action: &'static str,
    /// What went wrong is the definition's fault.
    pub(super) misdefined: bool,
}

/// How a wish for so many is counted.
pub(super) fn action(current: i32, wanted: i32) -> &'static str {
    match wanted.cmp(&current) {
        std::cmp::Ordering::Greater => "scale_up",
        std::cmp::Ordering::Less => "scale_down",
        std::cmp::Ordering::Equal => "none",
    }
}

impl Look {
    pub(super) fn set(&mut self, kind: &str, status: bool, reason: &str, message: impl Into<String>) {
        let conditions = self.status.conditions.get_or_insert_default();
        let status = if status { "True" } else { "False" };
        let at = conditions.iter().position(|known| known.type_ == kind);
        let since = at
            .and_then(|at| conditions.get(at))
            .filter(|known| known.status == status)
            .and_then(|known| known.last_transition_time.clone());
        let new = HorizontalPodAutoscalerCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_transition_time: since.or_else(|| Some(self.now.clone())),
        };
        match at.and_then(|at| conditions.get_mut(at)) {
            Some(known) => *known = new,
            None => conditions.push(new),
        }
    }

    pub(super) fn forget(&mut self, kind: &str) {
        if let Some(conditions) = &mut self.status.conditions {
            conditions.retain(|condition| condition.type_ != kind);
        }
    }

    pub(super) fn measured(&mut self, current: i32, desired: i32, metrics: Vec<MetricStatus>) {
        self.status.current_replicas = Some(current);
        self.status.desired_replicas = desired;
        self.status.current_metrics = Some(metrics).filter(|metrics| !metrics.is_empty());
        self.status.observed_generation = None;
    }
}
