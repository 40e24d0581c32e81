//! The rules of HorizontalPodAutoscalers.

use sampan_api::Object;
use serde_json::{Value, json};

use crate::defaults::Fill;
use crate::rules::{RULES as PLAIN, Rules};
use crate::tree;

pub(super) static RULES: Rules = Rules {
    defaults: &[
        ("spec", Fill::Map),
        ("spec.minReplicas", Fill::Int(1)),
        ("status", Fill::Map),
        ("status.desiredReplicas", Fill::Int(0)),
    ],
    default,
    validate: super::validate::autoscaler,
    validate_create: super::validate::autoscaler_create,
    validate_update: super::validate::update,
    ..PLAIN
};

/// What a `v1` object gets before it is converted; the rest is the rules of `v2`.
pub(super) static V1_RULES: Rules = Rules {
    defaults: &[
        ("spec", Fill::Map),
        ("spec.minReplicas", Fill::Int(1)),
        ("status", Fill::Map),
        ("status.desiredReplicas", Fill::Int(0)),
        ("status.currentReplicas", Fill::Int(0)),
    ],
    default: super::convert::default_target,
    ..PLAIN
};

fn default(hpa: &mut Object) {
    if tree::items(hpa, "spec.metrics").is_empty() {
        tree::set(
            hpa,
            "spec.metrics",
            json!([{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    // Rules are filled in only where somebody touched the behaviour at all.
    if tree::get(hpa, "spec.behavior").is_some() {
        let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
        default_rules(
            hpa,
            "spec.behavior.scaleUp",
            &[
                ("stabilizationWindowSeconds", json!(0)),
                ("selectPolicy", json!("Max")),
                ("policies", json!([pods, percent])),
            ],
        );
        default_rules(
            hpa,
            "spec.behavior.scaleDown",
            &[("selectPolicy", json!("Max")), ("policies", json!([percent]))],
        );
    }
}

fn default_rules(hpa: &mut Object, path: &str, defaults: &[(&str, Value)]) {
    for (field, value) in defaults {
        let path = format!("{path}.{field}");
        if tree::get(hpa, &path).is_none() {
            tree::set(hpa, &path, value.clone());
        }
    }
}
