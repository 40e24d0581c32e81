//! `autoscaling/v1` HPAs as `v2` ones and back.
//!
//! `v1` knows one metric, CPU utilization. What else a `v2` object says (other metrics, behaviour, statuses,
//! conditions) travels in the annotations upstream uses, in `v1`'s flat metric shapes, so that an old
//! client's read-modify-write loses nothing.

use sampan_api::Object;
use serde_json::{Map, Value, json};

use crate::spec::Conversion;
use crate::tree;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

pub(super) const CONVERSION: Conversion = Conversion {
    storage_version: ("autoscaling", "v2"),
    to_storage,
    from_storage,
};

fn is_cpu_utilization(metric: &Value) -> bool {
    tree::text(metric, "type") == "Resource"
        && tree::text(metric, "resource.name") == "cpu"
        && tree::get(metric, "resource.target.averageUtilization").is_some()
}

fn from_storage(hpa: &mut Object) {
    tree::set(hpa, "apiVersion", "autoscaling/v1");
    drop_annotations(hpa);
    // `v1` always says how many there are, `v2` only when there are any.
    if tree::get(hpa, "status.currentReplicas").is_none() {
        tree::set(hpa, "status.currentReplicas", 0);
    }
    let metrics = take_list(hpa, "spec.metrics");
    if let Some(metric) = metrics.iter().find(|metric| is_cpu_utilization(metric)) {
        let target = tree::int(metric, "resource.target.averageUtilization");
        tree::set(hpa, "spec.targetCPUUtilizationPercentage", target);
    }
    let others: Vec<_> = metrics
        .iter()
        .filter(|metric| !is_cpu_utilization(metric))
        .map(|metric| convert(metric, &SPEC, Direction::Flat))
        .collect();
    annotate_list(hpa, METRICS, others);

    let current = take_list(hpa, "status.currentMetrics");
    for metric in &current {
        if tree::text(metric, "type") == "Resource"
            && tree::text(metric, "resource.name") == "cpu"
            && let Some(now) = tree::opt_int(metric, "resource.current.averageUtilization")
        {
            tree::set(hpa, "status.currentCPUUtilizationPercentage", now);
        }
    }
    let current = current
        .iter()
        .map(|metric| convert(metric, &STATUS, Direction::Flat))
        .collect();
    annotate_list(hpa, CURRENT_METRICS, current);
    let conditions = take_list(hpa, "status.conditions");
    annotate_list(hpa, CONDITIONS, conditions);
    if let Some(behavior) = tree::remove(hpa, "spec.behavior").filter(|behavior| !behavior.is_null()) {
        annotate(hpa, BEHAVIOR, &capitalized(&behavior));
    }
}

fn to_storage(hpa: &mut Object) {
    tree::set(hpa, "apiVersion", "autoscaling/v2");
    if tree::int(hpa, "status.currentReplicas") == 0 {
        tree::remove(hpa, "status.currentReplicas");
    }
    let mut metrics = annotated_list(hpa, METRICS, &SPEC);
    if let Some(target) = tree::remove(hpa, "spec.targetCPUUtilizationPercentage").and_then(|target| target.as_i64()) {
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": target}}}));
    }
    if metrics.is_empty() {
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 80}}}));
    }
    tree::set(hpa, "spec.metrics", metrics);
    if let Some(behavior) = annotated(hpa, BEHAVIOR).filter(|value| tree::len(value, "") > 0) {
        tree::set(hpa, "spec.behavior", uncapitalized(&behavior));
    }
    let now = tree::remove(hpa, "status.currentCPUUtilizationPercentage").and_then(|now| now.as_i64());
    let mut current = annotated_list(hpa, CURRENT_METRICS, &STATUS);
    if let Some(now) = now.filter(|_| current.is_empty()) {
        current.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "current": {"averageUtilization": now}}}));
    }
    if !current.is_empty() {
        tree::set(hpa, "status.currentMetrics", current);
    }
    if let Some(conditions) = annotated(hpa, CONDITIONS).filter(Value::is_array) {
        tree::set(hpa, "status.conditions", conditions);
    }
    drop_annotations(hpa);
}

/// A `v1` object that names no metric at all means CPU. The conversion would say so too; said here, it is a field
/// its writer owns.
pub(super) fn default_target(hpa: &mut Object) {
    const TARGET: &str = "spec.targetCPUUtilizationPercentage";
    if tree::get(hpa, TARGET).is_none() && annotated_list(hpa, METRICS, &SPEC).is_empty() {
        tree::set(hpa, TARGET, 80);
    }
}

fn take_list(object: &mut Object, path: &str) -> Vec<Value> {
    match tree::remove(object, path) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn drop_annotations(hpa: &mut Object) {
    let Some(annotations) = tree::get_mut(hpa, "metadata.annotations").and_then(Value::as_object_mut) else {
        return;
    };
    for key in [METRICS, CURRENT_METRICS, BEHAVIOR, CONDITIONS] {
        annotations.remove(key);
    }
    if annotations.is_empty() {
        tree::remove(hpa, "metadata.annotations");
    }
}

fn annotate(hpa: &mut Object, key: &str, value: &Value) {
    if !hpa.get("metadata").is_some_and(Value::is_object) {
        tree::set(hpa, "metadata", Map::new());
    }
    if let Some(annotations) = hpa
        .get_mut("metadata")
        .and_then(|metadata| tree::child(metadata, "annotations"))
    {
        annotations.insert(key.to_owned(), value.to_string().into());
    }
}

fn annotate_list(hpa: &mut Object, key: &str, list: Vec<Value>) {
    if !list.is_empty() {
        annotate(hpa, key, &list.into());
    }
}

fn annotated(hpa: &Object, key: &str) -> Option<Value> {
    serde_json::from_str(tree::annotation(hpa, key)).ok()
}

fn annotated_list(hpa: &Object, key: &str, shapes: &Shapes) -> Vec<Value> {
    annotated(hpa, key)
        .as_ref()
        .map(|list| tree::items(list, ""))
        .unwrap_or_default()
        .iter()
        .map(|metric| convert(metric, shapes, Direction::Nested))
        .collect()
}

/// Where each field of a metric source is: kind of source, `v1`'s flat name, `v2`'s nested path.
type Shapes = [(&'static str, &'static [(&'static str, &'static str)])];

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Flat,
    Nested,
}

const SPEC: [(&str, &[(&str, &str)]); 5] = [
    (
        "resource",
        &[
            ("name", "name"),
            ("targetAverageUtilization", "target.averageUtilization"),
            ("targetAverageValue", "target.averageValue"),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", "name"),
            ("container", "container"),
            ("targetAverageUtilization", "target.averageUtilization"),
            ("targetAverageValue", "target.averageValue"),
        ],
    ),
    (
        "pods",
        &[
            ("metricName", "metric.name"),
            ("selector", "metric.selector"),
            ("targetAverageValue", "target.averageValue"),
        ],
    ),
    (
        "object",
        &[
            ("metricName", "metric.name"),
            ("selector", "metric.selector"),
            ("target", "describedObject"),
            ("targetValue", "target.value"),
            ("averageValue", "target.averageValue"),
        ],
    ),
    (
        "external",
        &[
            ("metricName", "metric.name"),
            ("metricSelector", "metric.selector"),
            ("targetValue", "target.value"),
            ("targetAverageValue", "target.averageValue"),
        ],
    ),
];

const STATUS: [(&str, &[(&str, &str)]); 5] = [
    (
        "resource",
        &[
            ("name", "name"),
            ("currentAverageUtilization", "current.averageUtilization"),
            ("currentAverageValue", "current.averageValue"),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", "name"),
            ("container", "container"),
            ("currentAverageUtilization", "current.averageUtilization"),
            ("currentAverageValue", "current.averageValue"),
        ],
    ),
    (
        "pods",
        &[
            ("metricName", "metric.name"),
            ("selector", "metric.selector"),
            ("currentAverageValue", "current.averageValue"),
        ],
    ),
    (
        "object",
        &[
            ("metricName", "metric.name"),
            ("selector", "metric.selector"),
            ("target", "describedObject"),
            ("currentValue", "current.value"),
            ("averageValue", "current.averageValue"),
        ],
    ),
    (
        "external",
        &[
            ("metricName", "metric.name"),
            ("metricSelector", "metric.selector"),
            ("currentValue", "current.value"),
            ("currentAverageValue", "current.averageValue"),
        ],
    ),
];

fn convert(metric: &Value, shapes: &Shapes, direction: Direction) -> Value {
    let mut made = json!({"type": tree::text(metric, "type")});
    for (source, fields) in shapes {
        let Some(from) = tree::get(metric, source) else {
            continue;
        };
        let mut to = Value::Object(Map::new());
        for (flat, nested) in *fields {
            let (read, write) = match direction {
                Direction::Flat => (nested, flat),
                Direction::Nested => (flat, nested),
            };
            if let Some(value) = tree::get(from, read) {
                tree::set(&mut to, write, value.clone());
            }
        }
        if direction == Direction::Nested && tree::get(&to, "target").is_some() {
            let kind = if tree::get(&to, "target.averageUtilization").is_some() {
                "Utilization"
            } else if tree::get(&to, "target.averageValue").is_some() {
                "AverageValue"
            } else {
                "Value"
            };
            tree::set(&mut to, "target.type", kind);
        }
        tree::set(&mut made, source, to);
    }
    made
}

/// The behaviour annotation holds Go's field names rather than the API's; policies keep theirs.
fn capitalized(value: &Value) -> Value {
    rename_keys(value, |key| {
        let mut chars = key.chars();
        chars
            .next()
            .map(|first| first.to_ascii_uppercase().to_string() + chars.as_str())
            .unwrap_or_default()
    })
}

fn uncapitalized(value: &Value) -> Value {
    rename_keys(value, |key| {
        let mut chars = key.chars();
        chars
            .next()
            .map(|first| first.to_ascii_lowercase().to_string() + chars.as_str())
            .unwrap_or_default()
    })
}

fn rename_keys(value: &Value, rename: fn(&str) -> String) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (rename(key), rename_keys(value, rename)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(list) => list
            .iter()
            .map(|value| rename_keys(value, rename))
            .collect::<Vec<_>>()
            .into(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_v1_cannot_say_survives_it() {
        let stored = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h", "annotations": {"mine": "x"}},
            "spec": {
                "maxReplicas": 3,
                "behavior": {"scaleDown": {"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}},
                "metrics": [
                    {"type": "Pods", "pods": {"metric": {"name": "qps"}, "target": {"type": "AverageValue", "averageValue": "10"}}},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
                ],
            },
            "status": {
                "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 5, "averageValue": "50m"}}}],
            },
        });
        let mut hpa = stored.clone();
        from_storage(&mut hpa);
        assert_eq!(
            hpa["spec"],
            json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 70})
        );
        assert_eq!(
            hpa["status"],
            json!({"currentCPUUtilizationPercentage": 5, "currentReplicas": 0})
        );
        to_storage(&mut hpa);
        assert_eq!(hpa, stored);
    }

    #[test]
    fn a_v1_object_without_a_target_aims_at_eighty_percent() {
        let mut hpa = json!({"spec": {"maxReplicas": 3}});
        to_storage(&mut hpa);
        assert_eq!(
            hpa["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            80
        );
    }
}
