//! The status of a deployment as its replica sets show it, and its conditions. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rolling;

pub(super) const AVAILABLE: &str = "Available";
pub(super) const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";
pub(super) const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";

pub(super) fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Sets a condition. One with the same status and reason stays as it is; the transition time moves only when the status
/// does.
pub(super) fn set_condition(
    status: &mut DeploymentStatus,
    kind: &str,
    truth: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let known = condition(status, kind);
    if known.is_some_and(|known| known.status == truth && known.reason.as_deref() == Some(reason)) {
        return;
    }
    replace_condition(status, kind, truth, reason, message, now);
}

fn replace_condition(
    status: &mut DeploymentStatus,
    kind: &str,
    truth: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let since = condition(status, kind)
        .filter(|known| known.status == truth)
        .and_then(|known| known.last_transition_time.clone())
        .unwrap_or(Time(now));
    remove_condition(status, kind);
    status.conditions.get_or_insert_default().push(DeploymentCondition {
        type_: kind.into(),
        status: truth.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(since),
    });
}

fn remove_condition(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|known| known.type_ != kind);
    }
}

/// Seconds without progress after which a rollout counts as stuck, if that is watched at all.
pub(super) fn progress_deadline(deployment: &Deployment) -> Option<i32> {
    let spec = deployment.spec.as_ref()?;
    spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)
}

fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// Counts and the condition Available.
pub(super) fn calculate(
    deployment: &Deployment,
    old: &[ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |read: fn(&ReplicaSetStatus) -> i32| -> i32 {
        old.iter()
            .chain(new)
            .filter_map(|set| set.status.as_ref())
            .map(read)
            .sum()
    };
    let asked: i32 = old.iter().chain(new).map(rolling::replicas).sum();
    let available = sum(|status| status.available_replicas.unwrap_or(0));
    let updated = new.and_then(|set| set.status.as_ref()).map_or(0, |s| s.replicas);
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(sum(|status| status.replicas)),
        updated_replicas: nonzero(updated),
        ready_replicas: nonzero(sum(|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero((asked - available).max(0)),
        terminating_replicas: terminating(old, new),
        collision_count: before.collision_count,
        conditions: before.conditions,
    };
    let minimum = rolling::wanted(deployment) - rolling::max_unavailable(deployment);
    let (truth, reason, message) = if available >= minimum {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    set_condition(&mut status, AVAILABLE, truth, reason, message.into(), now);
    status
}

/// How many Pods are on their way out; unknown while a set does not say.
fn terminating(old: &[ReplicaSet], new: Option<&ReplicaSet>) -> Option<i32> {
    let mut total = 0_i32;
    for status in old.iter().chain(new).filter_map(|set| set.status.as_ref()) {
        match status.terminating_replicas {
            Some(count) => total = total.saturating_add(count),
            None if status.observed_generation.unwrap_or(0) == 0 => {}
            None => return None,
        }
    }
    Some(total)
}

/// Whether the rollout has reached its end.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = rolling::wanted(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let count = |value: Option<i32>| value.unwrap_or(0);
    let old = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(after.updated_replicas) > count(before.updated_replicas)
        || old(after) < old(before)
        || count(after.ready_replicas) > count(before.ready_replicas)
        || count(after.available_replicas) > count(before.available_replicas)
}

/// [`calculate`] plus the conditions Progressing and ReplicaFailure.
pub(super) fn rollout(
    deployment: &Deployment,
    old: &[ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = calculate(deployment, old, new, now);
    let before = deployment.status.clone().unwrap_or_default();
    let current = condition(&before, PROGRESSING);
    let deadline = progress_deadline(deployment);
    if deadline.is_none() {
        remove_condition(&mut status, PROGRESSING);
    }
    let settled = status.replicas == status.updated_replicas
        && current.is_some_and(|c| c.reason.as_deref() == Some(NEW_AVAILABLE));
    if deadline.is_some() && !settled {
        let what = match new {
            Some(set) => format!("ReplicaSet {:?}", set.metadata.name.as_deref().unwrap_or_default()),
            None => format!(
                "Deployment {:?}",
                deployment.metadata.name.as_deref().unwrap_or_default()
            ),
        };
        if is_complete(deployment, &status) {
            let message = format!("{what} has successfully progressed.");
            set_condition(&mut status, PROGRESSING, "True", NEW_AVAILABLE, message, now);
        } else if has_progressed(&before, &status) {
            // Said anew even with the same reason: its update time is what the deadline counts from.
            let message = format!("{what} is progressing.");
            replace_condition(&mut status, PROGRESSING, "True", "ReplicaSetUpdated", message, now);
        } else if has_timed_out(deployment, &status, now) {
            let message = format!("{what} has timed out progressing.");
            set_condition(&mut status, PROGRESSING, "False", TIMED_OUT, message, now);
        }
    }
    let failure = new
        .into_iter()
        .chain(old)
        .flat_map(|set| set.status.iter().flat_map(|s| s.conditions.iter().flatten()))
        .find(|c| c.type_ == FAILURE);
    match failure {
        Some(failure) => set_condition(
            &mut status,
            FAILURE,
            &failure.status,
            failure.reason.as_deref().unwrap_or_default(),
            failure.message.clone().unwrap_or_default(),
            now,
        ),
        None => remove_condition(&mut status, FAILURE),
    }
    status
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(known) = condition(status, PROGRESSING) else {
        return false;
    };
    match known.reason.as_deref() {
        Some(NEW_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => until_deadline(deployment, known, now).is_some_and(|left| left.is_negative()),
    }
}

/// How long until the rollout counts as stuck.
fn until_deadline(
    deployment: &Deployment,
    progressing: &DeploymentCondition,
    now: Timestamp,
) -> Option<SignedDuration> {
    let deadline = SignedDuration::from_secs(progress_deadline(deployment)?.into());
    let updated = progressing.last_update_time.as_ref()?.0;
    Some(deadline - now.duration_since(updated))
}

/// When to look at an unfinished rollout again, should nothing happen.
pub(super) fn next_check(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<SignedDuration> {
    let known = condition(status, PROGRESSING)?;
    if is_complete(deployment, status) || known.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let left = until_deadline(deployment, known, now)?;
    Some(left.max(SignedDuration::ZERO) + SignedDuration::from_secs(1))
}
