//! Validation of HorizontalPodAutoscalers (`v2`).

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api, quantity::Quantity};
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
    let metrics = tree::items(spec, "metrics");
    for (index, metric) in metrics.iter().enumerate() {
        metric_spec(metric, &path.child("metrics").index(index), errors);
    }
    let elsewhere = |metric| matches!(tree::text(metric, "type"), "Object" | "External");
    if min == Some(0) && !metrics.iter().any(elsewhere) {
        errors.push(Error::forbidden(
            &path.child("metrics"),
            "must specify at least one Object or External metric to support scaling to zero replicas",
        ));
    }
    for direction in ["scaleUp", "scaleDown"] {
        if let Some(rules) = tree::get(spec, "behavior").and_then(|behavior| tree::get(behavior, direction)) {
            scaling_rules(rules, &path.child("behavior").child(direction), errors);
        }
    }
}

/// What is checked where it is new: the versions of what is scaled and of what metrics describe.
pub(super) fn autoscaler_create(hpa: &Object, errors: &mut Errors) {
    scale_target(hpa, errors);
    errors.extend(described_objects(hpa));
}

/// What an autoscaler scales is in a group: of the core's kinds only ReplicationControllers scale.
fn scale_target(hpa: &Object, errors: &mut Errors) {
    let version = tree::text(hpa, "spec.scaleTargetRef.apiVersion");
    let why = match version.matches('/').count() {
        0 if tree::text(hpa, "spec.scaleTargetRef.kind") == "ReplicationController" => return,
        0 => "apiVersion must specify API group".to_owned(),
        1 => return,
        _ => format!("unexpected GroupVersion string: {version}"),
    };
    let path = Path::new("spec").child("scaleTargetRef").child("apiVersion");
    errors.push(Error::invalid(&path, version, why));
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
    let expected = SOURCES.iter().find(|(name, _)| *name == kind).map(|(_, field)| *field);
    let unknown = || {
        let mut names = SOURCES.map(|(name, _)| name);
        names.sort_unstable();
        Error::not_supported(&path.child("type"), kind, &names)
    };
    if expected.is_none() {
        errors.push(unknown());
    }
    let present: Vec<_> = SOURCES
        .iter()
        .filter_map(|(_, field)| Some((*field, tree::get(metric, field)?)))
        .collect();
    // Whatever the type says, the first source there is gets looked at.
    if let Some((field, source)) = present.first() {
        metric_source(source, field, &path.child(field), errors);
    }
    match expected {
        None => errors.push(unknown()),
        Some(field) if tree::get(metric, field).is_none() => errors.push(Error::required(
            &path.child(field),
            "must populate information for the given metric source",
        )),
        Some(_) => {}
    }
    for (field, _) in &present {
        if present.len() > 1 && Some(*field) != expected {
            errors.push(Error::forbidden(
                &path.child(field),
                "must populate the given metric source only",
            ));
        }
    }
}

const CONTAINER: &[Check] = &[
    ("container", Rule::Required("must specify a container")),
    ("container", Rule::Named(api::dns1123_label)),
];

const METRIC: &[Check] = &[
    ("name", Rule::Required("must specify a metric name")),
    ("name", Rule::Named(api::path_segment)),
];

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
            let name = tree::text(source, "name");
            if !name.is_empty() {
                resources::container_name(name, &path.child("name"), errors);
            }
            checks::run_at(CONTAINER, source, path, None, errors);
        }
    } else {
        let nothing = Value::Null;
        let metric = tree::get(source, "metric").unwrap_or(&nothing);
        checks::run_at(METRIC, metric, &path.child("metric"), None, errors);
    }
    let at = path.child("target");
    let empty = Value::Object(serde_json::Map::new());
    let target = tree::get(source, "target").unwrap_or(&empty);
    let kind_of_target = tree::text(target, "type");
    if kind_of_target.is_empty() {
        errors.push(Error::required(&at.child("type"), "must specify a metric target type"));
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind_of_target) {
        errors.push(Error::invalid(
            &at.child("type"),
            kind_of_target,
            "must be either Utilization, Value, or AverageValue",
        ));
    }
    let has = |field: &str| tree::get(target, field).is_some();
    for field in ["value", "averageValue"] {
        if let Some(value) = tree::get(target, field)
            && Quantity::from_value(value).is_ok_and(|quantity| quantity.sign() <= 0)
        {
            errors.push(Error::invalid(&at.child(field), value.clone(), "must be positive"));
        }
    }
    if let Some(share) = tree::opt_int(target, "averageUtilization").filter(|share| *share < 1) {
        errors.push(Error::invalid(
            &at.child("averageUtilization"),
            share,
            "must be greater than 0",
        ));
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
    } else if kind == "object" && !has("value") && !has("averageValue") {
        errors.push(Error::required(
            &at.child("averageValue"),
            "must set either a target value or averageValue",
        ));
    } else if kind == "external" && has("value") == has("averageValue") {
        if has("value") {
            errors.push(Error::forbidden(
                &at.child("value"),
                "may not set both a target value for metric and a per-pod target",
            ));
        } else {
            errors.push(Error::required(
                &at.child("averageValue"),
                "must set either a target value for metric or a per-pod target",
            ));
        }
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
        &[("selectPolicy", Rule::GivenOneOf(&["Disabled", "Max", "Min"]))],
        rules,
        path,
        None,
        errors,
    );
    let (path, tolerances) = (path.child("policies"), path.child("tolerance"));
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
    if let Some(tolerance) = tree::get(rules, "tolerance")
        && Quantity::from_value(tolerance).is_ok_and(|quantity| quantity.sign() < 0)
    {
        let why = "must be greater than or equal to 0";
        errors.push(Error::invalid(&tolerances, tolerance.clone(), why));
    }
}

/// An object that a metric describes may be the core's: its group may be empty, its version not be nonsense.
fn described_objects(hpa: &Object) -> Errors {
    let path = Path::new("spec").child("metrics");
    tree::items(hpa, "spec.metrics")
        .iter()
        .enumerate()
        .filter(|(_, metric)| tree::text(metric, "type") == "Object")
        .filter_map(|(index, metric)| {
            let version = tree::text(metric, "object.describedObject.apiVersion");
            let path = path.index(index).child("object").child("describedObject");
            (version.matches('/').count() > 1).then(|| {
                let why = format!("unexpected GroupVersion string: {version}");
                Error::invalid(&path.child("apiVersion"), version, why)
            })
        })
        .collect()
}

pub(super) fn update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    // What was let in before this was checked may stay.
    if part == Part::Main && described_objects(old).is_empty() {
        errors.extend(described_objects(new));
    }
    let target = ["spec.scaleTargetRef.apiVersion", "spec.scaleTargetRef.kind"];
    if part == Part::Main && target.iter().any(|field| !tree::same_at(new, old, field)) {
        scale_target(new, errors);
    }
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
                "spec.scaleTargetRef.apiVersion: Invalid value: \"\": apiVersion must specify API group",
            ]
        );
        let metric = json!({"type": "External", "external": {"metric": {"name": "a/b"}, "target": {"type": "Value", "value": "-1", "averageValue": "1"}}});
        assert_eq!(
            said(json!({"maxReplicas": 1, "scaleTargetRef": target, "metrics": [metric]})),
            [
                "spec.metrics[0].external.metric.name: Invalid value: \"a/b\": may not contain '/'",
                "spec.metrics[0].external.target.value: Invalid value: \"-1\": must be positive",
                "spec.metrics[0].external.target.value: Forbidden: may not set both a target value for metric and a per-pod target",
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
