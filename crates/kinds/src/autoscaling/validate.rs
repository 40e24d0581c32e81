//! Validation of HorizontalPodAutoscalers (`v2`).

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::Value;

use crate::checks::{self, Check, Rule};
use crate::pod_spec::resources;
use crate::spec::Part;
use crate::tree;

const TARGET: &[Check] = &[
    ("kind", Rule::RequiredNamed(api::path_segment)),
    ("name", Rule::RequiredNamed(api::path_segment)),
];

pub(super) fn autoscaler(hpa: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let nothing = Value::Null;
    let spec = tree::get(hpa, "spec").unwrap_or(&nothing);
    let (min, max) = (tree::opt_int(spec, "minReplicas"), tree::int(spec, "maxReplicas"));
    let at = path.child("maxReplicas");
    if let Some(min) = min.filter(|min| *min < 1) {
        errors.push(Error::invalid(
            &path.child("minReplicas"),
            min,
            "must be greater than or equal to 1",
        ));
    }
    if max == 0 {
        errors.push(Error::required(&at, "must be set and greater than 0"));
    } else if max < 0 {
        errors.push(Error::invalid(&at, max, "must be greater than or equal to 1"));
    }
    if min.is_some_and(|min| max < min) {
        errors.push(Error::invalid(
            &at,
            max,
            "must be greater than or equal to `minReplicas`",
        ));
    }
    let target = tree::get(spec, "scaleTargetRef").unwrap_or(&nothing);
    // A map that is absent lacks what is required of it.
    let empty = Value::Object(serde_json::Map::new());
    let target = if target.is_null() { &empty } else { target };
    checks::run_at(TARGET, target, &path.child("scaleTargetRef"), None, errors);
    for (index, metric) in tree::items(spec, "metrics").iter().enumerate() {
        metric_spec(metric, &path.child("metrics").index(index), errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        if let Some(rules) = tree::get(spec, "behavior").and_then(|behavior| tree::get(behavior, direction)) {
            scaling_rules(rules, &path.child("behavior").child(direction), errors);
        }
    }
}

const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

fn metric_spec(metric: &Value, path: &Path, errors: &mut Errors) {
    let kind = tree::text(metric, "type");
    if kind.is_empty() {
        errors.push(Error::required(
            &path.child("type"),
            "must specify a metric source type",
        ));
    }
    let Some((_, expected)) = SOURCES.iter().find(|(name, _)| *name == kind) else {
        let names = SOURCES.map(|(name, _)| name);
        errors.push(Error::not_supported(&path.child("type"), kind, &names));
        return;
    };
    if tree::get(metric, expected).is_none() {
        errors.push(Error::required(
            &path.child(expected),
            "must populate information for the given metric source",
        ));
    }
    for (_, field) in SOURCES {
        if field != *expected && tree::get(metric, field).is_some() {
            errors.push(Error::forbidden(
                &path.child(field),
                "must populate the given metric source only",
            ));
        }
    }
    if let Some(source) = tree::get(metric, expected) {
        metric_source(source, expected, &path.child(expected), errors);
    }
}

fn metric_source(source: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    if kind == "object" {
        let empty = Value::Object(serde_json::Map::new());
        let described = tree::get(source, "describedObject").unwrap_or(&empty);
        checks::run_at(TARGET, described, &path.child("describedObject"), None, errors);
    }
    let of_resource = kind == "resource" || kind == "containerResource";
    if of_resource {
        checks::run_at(
            &[("name", Rule::Required("must specify a resource name"))],
            source,
            path,
            None,
            errors,
        );
        if kind == "containerResource" {
            checks::run_at(
                &[("container", Rule::Required("must specify a container"))],
                source,
                path,
                None,
                errors,
            );
        }
    } else if tree::text(source, "metric.name").is_empty() {
        errors.push(Error::required(
            &path.child("metric").child("name"),
            "must specify a metric name",
        ));
    }
    let at = path.child("target");
    let empty = Value::Object(serde_json::Map::new());
    let target = tree::get(source, "target").unwrap_or(&empty);
    match tree::text(target, "type") {
        "" => errors.push(Error::required(&at.child("type"), "must specify a metric target type")),
        "Utilization" | "Value" | "AverageValue" => {}
        other => errors.push(Error::invalid(
            &at.child("type"),
            other,
            "must be either Utilization, Value, or AverageValue",
        )),
    }
    let has = |field: &str| tree::get(target, field).is_some();
    for field in ["value", "averageValue"] {
        if let Some(value) = tree::get(target, field) {
            resources::amount("", value, &at.child(field), errors);
        }
    }
    if of_resource {
        if !has("averageUtilization") && !has("averageValue") {
            errors.push(Error::required(
                &at.child("averageUtilization"),
                "must set either a target raw value or a target utilization",
            ));
        }
        if has("averageUtilization") && has("averageValue") {
            errors.push(Error::forbidden(
                &at.child("averageValue"),
                "may not set both a target raw value and a target utilization",
            ));
        }
    } else if kind == "pods" && !has("averageValue") {
        errors.push(Error::required(
            &at.child("averageValue"),
            "must specify a positive target averageValue",
        ));
    } else if kind != "pods" && !has("value") && !has("averageValue") {
        errors.push(Error::required(
            &at.child("averageValue"),
            "must set either a target value for metric or a per-pod target",
        ));
    }
}

fn scaling_rules(rules: &Value, path: &Path, errors: &mut Errors) {
    let window = tree::opt_int(rules, "stabilizationWindowSeconds");
    let at = path.child("stabilizationWindowSeconds");
    match window {
        Some(seconds) if seconds < 0 => {
            errors.push(Error::invalid(&at, seconds, "must be greater than or equal to zero"))
        }
        Some(seconds) if seconds > 3600 => {
            errors.push(Error::invalid(&at, seconds, "must be less than or equal to 3600"))
        }
        _ => {}
    }
    checks::run_at(
        &[("selectPolicy", Rule::OneOf(&["Disabled", "Max", "Min"]))],
        rules,
        path,
        None,
        errors,
    );
    let path = path.child("policies");
    let policies = tree::items(rules, "policies");
    if policies.is_empty() {
        errors.push(Error::required(&path, "must specify at least one Policy"));
    }
    for (index, policy) in policies.iter().enumerate() {
        let path = path.index(index);
        let kind = tree::text(policy, "type");
        if !["Percent", "Pods"].contains(&kind) {
            errors.push(Error::not_supported(&path.child("type"), kind, &["Percent", "Pods"]));
        }
        for field in ["value", "periodSeconds"] {
            let number = tree::int(policy, field);
            if number <= 0 {
                errors.push(Error::invalid(&path.child(field), number, "must be greater than zero"));
            }
        }
        let period = tree::int(policy, "periodSeconds");
        if period > 1800 {
            errors.push(Error::invalid(
                &path.child("periodSeconds"),
                period,
                "must be less than or equal to 1800",
            ));
        }
    }
}

pub(super) fn update(part: Part<'_>, new: &Object, _: &Object, errors: &mut Errors) {
    if part == Part::View("status") {
        checks::run(
            &[
                ("status.currentReplicas", Rule::NonNegative),
                ("status.desiredReplicas", Rule::NonNegative),
            ],
            new,
            None,
            errors,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Strategy;
    use serde_json::json;

    #[test]
    fn autoscalers() {
        let rules: &crate::rules::Rules = &super::super::strategy::RULES;
        let said = |spec: Value| {
            let mut hpa = json!({"spec": spec});
            rules.default(&mut hpa);
            rules
                .validate_create(&hpa)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        let target = json!({"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"});
        assert_eq!(
            said(
                json!({"maxReplicas": 3, "scaleTargetRef": target, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}})
            ),
            Vec::<String>::new()
        );
        assert_eq!(
            said(json!({"minReplicas": 4, "maxReplicas": 3, "metrics": [{"type": "Pods"}]})),
            [
                "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`",
                "spec.scaleTargetRef.kind: Required value",
                "spec.scaleTargetRef.name: Required value",
                "spec.metrics[0].pods: Required value: must populate information for the given metric source",
            ]
        );
    }

    #[test]
    fn behaviour_is_filled_in_where_touched() {
        let mut hpa = json!({"spec": {"maxReplicas": 1, "behavior": {"scaleDown": {"selectPolicy": "Min"}}}});
        super::super::strategy::RULES.default(&mut hpa);
        assert_eq!(
            hpa["spec"]["behavior"],
            json!({
                "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
                    {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]},
                "scaleDown": {"selectPolicy": "Min", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
            })
        );
    }
}
