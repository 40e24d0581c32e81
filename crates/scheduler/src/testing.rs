//! Small objects for tests.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::pod::{Class, PodInfo};

pub fn node(name: &str, allocatable: Value) -> Arc<Node> {
    node_with(name, json!({}), json!({}), allocatable)
}

pub fn node_with(name: &str, labels: Value, spec: Value, allocatable: Value) -> Arc<Node> {
    let node =
        json!({"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"allocatable": allocatable}});
    Arc::new(serde_json::from_value(node).unwrap())
}

pub fn pod(name: &str, spec: Value) -> Pod {
    labelled_pod(name, json!({}), spec)
}

pub fn labelled_pod(name: &str, labels: Value, spec: Value) -> Pod {
    let metadata = json!({"name": name, "namespace": "default", "uid": name, "labels": labels});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

pub fn pod_info(name: &str, spec: Value) -> PodInfo {
    let pod = pod(name, spec);
    PodInfo::of(&pod, Arc::new(Class::of(&pod))).unwrap()
}
