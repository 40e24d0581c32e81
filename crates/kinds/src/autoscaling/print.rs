//! Table output of HorizontalPodAutoscalers (the stored, `v2` form).

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::print::{AGE, NAME, age, name, text};
use crate::spec::Column;
use crate::tree;

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    text("Reference", "What it scales."),
    text("Targets", "Metrics now and as wanted."),
    text("MinPods", "It never scales below this."),
    text("MaxPods", "It never scales above this."),
    text("Replicas", "Pods there are."),
    AGE,
];

pub(super) fn cells(hpa: &Object, now: Timestamp) -> Vec<Value> {
    let minimum =
        tree::opt_int(hpa, "spec.minReplicas").map_or_else(|| "<unset>".to_owned(), |number| number.to_string());
    vec![
        name(hpa),
        format!(
            "{}/{}",
            tree::text(hpa, "spec.scaleTargetRef.kind"),
            tree::text(hpa, "spec.scaleTargetRef.name")
        )
        .into(),
        metrics(hpa).into(),
        minimum.into(),
        tree::int(hpa, "spec.maxReplicas").into(),
        tree::int(hpa, "status.currentReplicas").into(),
        age(hpa, now),
    ]
}

/// `cpu: 12%/50%, 3/10 (avg) + 1 more...`
fn metrics(hpa: &Object) -> String {
    let specs = tree::items(hpa, "spec.metrics");
    let statuses = tree::items(hpa, "status.currentMetrics");
    let texts: Vec<_> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| metric(spec, statuses.get(index)))
        .collect();
    match texts.as_slice() {
        [] => "<none>".to_owned(),
        [first, second, more @ ..] if !more.is_empty() => {
            format!("{first}, {second} + {} more...", more.len())
        }
        few => few.join(", "),
    }
}

fn metric(spec: &Value, status: Option<&Value>) -> String {
    let (field, named) = match tree::text(spec, "type") {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".to_owned(),
    };
    let target = tree::get(spec, field).and_then(|source| tree::get(source, "target"));
    let current = status
        .and_then(|status| tree::get(status, field))
        .and_then(|source| tree::get(source, "current"));
    let read = |from: Option<&Value>, name: &str| from.and_then(|from| tree::get(from, name)).map(tree::scalar);
    let unknown = || "<unknown>".to_owned();
    if named {
        let source = tree::get(spec, field)
            .map(|source| tree::text(source, "name"))
            .unwrap_or_default();
        return match read(target, "averageValue") {
            Some(wanted) => {
                let now = read(current, "averageValue").unwrap_or_else(unknown);
                format!("{source}: {now}/{wanted}")
            }
            None => {
                let percent = |text: String| format!("{text}%");
                let now = read(current, "averageUtilization").map_or_else(unknown, percent);
                let wanted = read(target, "averageUtilization").map_or_else(|| "<auto>".to_owned(), percent);
                format!("{source}: {now}/{wanted}")
            }
        };
    }
    match read(target, "averageValue") {
        Some(wanted) => {
            let now = read(current, "averageValue").unwrap_or_else(unknown);
            let suffix = if field == "pods" { "" } else { " (avg)" };
            format!("{now}/{wanted}{suffix}")
        }
        None => {
            let now = read(current, "value").unwrap_or_else(unknown);
            format!("{now}/{}", read(target, "value").unwrap_or_else(|| "0".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn targets_read_as_kubectl_prints_them() {
        let hpa = json!({
            "spec": {"metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 50}}},
                {"type": "Pods", "pods": {"target": {"averageValue": "10"}}},
                {"type": "Object", "object": {"target": {"value": "3"}}},
            ]},
            "status": {"currentMetrics": [
                {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12}}},
            ]},
        });
        assert_eq!(metrics(&hpa), "cpu: 12%/50%, <unknown>/10 + 1 more...");
    }
}
