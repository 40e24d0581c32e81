//! What a quota looks at of the objects that typed informers hold, as trees: all sums are made by `sampan_api::quota`,
//! the same code that charges at admission.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
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
