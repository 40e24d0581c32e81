//! What a quota looks at of the objects that typed informers hold, as trees: all sums are made by `sampan_api::quota`,
//! the same code that charges at admission.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A typed object always encodes; what would not counts as nothing.
pub(super) fn tree<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).unwrap_or(Value::Null)
}

/// The parts of a Pod that are weighed, and no more: this is made for every Pod of a namespace at every computation.
pub(super) fn pod(pod: &Pod) -> Value {
    let mut spec = Map::new();
    if let Some(full) = &pod.spec {
        spec.insert("containers".into(), containers(&full.containers));
        if let Some(init) = &full.init_containers {
            spec.insert("initContainers".into(), containers(init));
        }
        let optional = [
            ("overhead", full.overhead.as_ref().map(tree)),
            ("resources", full.resources.as_ref().map(tree)),
            ("affinity", full.affinity.as_ref().map(tree)),
            ("activeDeadlineSeconds", full.active_deadline_seconds.map(Value::from)),
            (
                "priorityClassName",
                full.priority_class_name.as_deref().map(Value::from),
            ),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                spec.insert(name.into(), value);
            }
        }
    }
    let mut status = Map::new();
    if let Some(full) = &pod.status {
        for (name, value) in [("phase", &full.phase), ("qosClass", &full.qos_class)] {
            if let Some(value) = value {
                status.insert(name.into(), value.as_str().into());
            }
        }
        for (name, list) in [
            ("containerStatuses", &full.container_statuses),
            ("initContainerStatuses", &full.init_container_statuses),
        ] {
            if let Some(list) = list {
                status.insert(name.into(), list.iter().filter_map(given).collect());
            }
        }
        let resize = full.conditions.iter().flatten().find(|c| c.type_ == "PodResizePending");
        if let Some(resize) = resize {
            status.insert(
                "conditions".into(),
                json!([{"type": resize.type_, "reason": resize.reason}]),
            );
        }
    }
    let mut metadata = Map::new();
    if let Some(at) = &pod.metadata.deletion_timestamp {
        metadata.insert("deletionTimestamp".into(), tree(at));
        metadata.insert(
            "deletionGracePeriodSeconds".into(),
            pod.metadata.deletion_grace_period_seconds.into(),
        );
    }
    json!({"metadata": metadata, "spec": spec, "status": status})
}

fn containers(list: &[Container]) -> Value {
    list.iter()
        .map(|container| {
            let mut small = json!({"name": container.name});
            if let Some(resources) = &container.resources {
                small["resources"] = tree(resources);
            }
            if let Some(policy) = &container.restart_policy {
                small["restartPolicy"] = policy.as_str().into();
            }
            small
        })
        .collect()
}

/// Whether what the containers of a Pod have been given, or may be given, has changed.
pub(super) fn given_differs(old: &Pod, new: &Pod) -> bool {
    let (Some(old), Some(new)) = (&old.status, &new.status) else {
        return old.status.is_some() != new.status.is_some();
    };
    let differ = |old: &Option<Vec<ContainerStatus>>, new: &Option<Vec<ContainerStatus>>| {
        let (old, new) = (old.as_deref().unwrap_or_default(), new.as_deref().unwrap_or_default());
        let given = |status: &&ContainerStatus| status.resources.is_some();
        let parts = |status: &ContainerStatus| {
            (
                status.name.clone(),
                status.resources.clone(),
                status.allocated_resources.clone(),
            )
        };
        !old.iter()
            .filter(given)
            .map(parts)
            .eq(new.iter().filter(given).map(parts))
    };
    let pending = |status: &PodStatus| {
        let mut conditions = status.conditions.iter().flatten();
        conditions
            .find(|condition| condition.type_ == "PodResizePending")
            .and_then(|condition| condition.reason.clone())
    };
    differ(&old.container_statuses, &new.container_statuses)
        || differ(&old.init_container_statuses, &new.init_container_statuses)
        || old.qos_class != new.qos_class
        || pending(old) != pending(new)
}

/// What a container has been given, where the node has said so.
fn given(status: &ContainerStatus) -> Option<Value> {
    let resources = status.resources.as_ref()?;
    Some(json!({
        "name": status.name, "resources": tree(resources), "allocatedResources": tree(&status.allocated_resources)}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_small_tree_weighs_as_much_as_the_whole() {
        let full = json!({
            "metadata": {"name": "p", "deletionTimestamp": "2000-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5},
            "spec": {
                "overhead": {"cpu": "1"}, "activeDeadlineSeconds": 7, "priorityClassName": "high",
                "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "zone", "namespaces": ["other"]}]}},
                "initContainers": [{"name": "i", "restartPolicy": "Always", "resources": {"requests": {"memory": "1Gi"}}}],
                "containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}],
            },
            "status": {"phase": "Running", "qosClass": "Burstable",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "c", "image": "x", "imageID": "", "ready": true, "restartCount": 0,
                    "resources": {"requests": {"cpu": "3"}}}]},
        });
        let typed: Pod = serde_json::from_value(full.clone()).unwrap();
        let (small, evaluator) = (pod(&typed), sampan_api::quota::Evaluator::Pods);
        for now in [jiff::Timestamp::UNIX_EPOCH, jiff::Timestamp::MAX] {
            assert_eq!(evaluator.usage(&small, now), evaluator.usage(&full, now));
        }
        let scopes = sampan_api::quota::scopes(&json!({"spec": {"scopes":
            ["Terminating", "NotBestEffort", "PriorityClass", "CrossNamespacePodAffinity"]}}));
        assert!(evaluator.in_scope(&scopes, &small));
    }
}
