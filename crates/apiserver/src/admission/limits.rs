//! LimitRanger: defaults and bounds that a namespace sets for containers, Pods and claims.
//!
//! Differs from upstream: limits are looked up in the watch cache, which is never behind this server's own writes, so no
//! live look-ups are needed; several violations are told in the order of their names.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sampan_api::quantity::Quantity;
use sampan_api::quota::PodTotals;
use sampan_api::quota::amounts::{self, Amounts};
use sampan_api::{Object, meta};
use serde_json::Value;

use super::{Notes, Operation, Plugin, Reader, Review, text};
use crate::Refusal;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// Beyond this thousandths do not fit.
const MAX_MILLI: i64 = i64::MAX / 1000;

pub struct LimitRanger(Reader);

impl LimitRanger {
    pub fn new(reader: Reader) -> Self {
        LimitRanger(reader)
    }

    fn ranges(&self, namespace: &str) -> Vec<Object> {
        self.0.in_namespace("limitranges", namespace)
    }
}

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        let (creates, updates) = (
            review.operation == Operation::Create,
            review.operation == Operation::Update,
        );
        let asked = match (review.row.spec.plural, review.subresource) {
            ("pods", "resize") => updates,
            ("pods", "") => creates,
            ("persistentvolumeclaims", "") => creates || updates,
            _ => false,
        };
        asked && review.row.spec.group.is_empty() && !review.old.is_some_and(meta::is_deleting)
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        if review.row.spec.plural == "pods" {
            for range in self.ranges(review.namespace) {
                set_defaults(&range, object);
            }
        }
        Ok(())
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let Some(object) = object else { return Ok(()) };
        for range in self.ranges(review.namespace) {
            let errors = match review.row.spec.plural {
                "pods" => pod_errors(&range, object),
                _ => claim_errors(&range, object),
            };
            if let Some(why) = aggregate(errors) {
                return Err(review.refuse(object, &why));
            }
        }
        Ok(())
    }
}

/// Several errors as one text, each once.
fn aggregate(errors: Vec<String>) -> Option<String> {
    let mut once: Vec<String> = Vec::new();
    for error in errors {
        if !once.contains(&error) {
            once.push(error);
        }
    }
    match once.len() {
        0 => None,
        1 => once.pop(),
        _ => Some(format!("[{}]", once.join(", "))),
    }
}

fn items<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn limits_of<'a>(range: &'a Object, kind: &'static str) -> impl Iterator<Item = &'a Value> {
    items(range, "/spec/limits").filter(move |limit| text(limit, "/type") == kind)
}

/// Gives containers what they do not state themselves, and notes it on the Pod.
fn set_defaults(range: &Object, pod: &mut Object) {
    let mut defaults: [(&str, &str, BTreeMap<String, Value>); 2] = [
        ("requests", "request", BTreeMap::new()),
        ("limits", "limit", BTreeMap::new()),
    ];
    for limit in limits_of(range, "Container") {
        for ((_, _, values), field) in defaults.iter_mut().zip(["defaultRequest", "default"]) {
            let stated = limit.get(field).and_then(Value::as_object);
            values.extend(
                stated
                    .into_iter()
                    .flatten()
                    .map(|(name, value)| (name.clone(), value.clone())),
            );
        }
    }
    if defaults.iter().all(|(_, _, values)| values.is_empty()) {
        return;
    }
    let mut notes = Vec::new();
    for (field, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = text(container, "/name").to_owned();
            let resources = meta::ensure_map(meta::ensure_map(container).entry("resources").or_insert(Value::Null));
            for (kind, one, values) in &defaults {
                if values.is_empty() {
                    continue;
                }
                let list = meta::ensure_map(resources.entry(*kind).or_insert(Value::Null));
                let mut set = Vec::new();
                for (name, value) in values {
                    if !list.contains_key(name) {
                        list.insert(name.clone(), value.clone());
                        set.push(name.as_str());
                    }
                }
                if !set.is_empty() {
                    notes.push(format!("{} {one} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        meta::set_annotation(
            pod,
            ANNOTATION,
            &format!("LimitRanger plugin set: {}", notes.join("; ")),
        );
    }
}

/// Values at one precision: thousandths where all three fit.
fn comparable(values: [Option<&Quantity>; 3]) -> [i64; 3] {
    let whole = values.map(|value| value.map_or(0, Quantity::value));
    if whole.iter().all(|value| *value <= MAX_MILLI) {
        values.map(|value| value.map_or(0, Quantity::milli_value))
    } else {
        whole
    }
}

struct Checked<'a> {
    kind: &'a str,
    requests: &'a Amounts,
    limits: &'a Amounts,
}

impl Checked<'_> {
    fn min(&self, name: &str, bound: &Quantity) -> Option<String> {
        let (request, limit) = (self.requests.get(name), self.limits.get(name));
        let [asked, limited, least] = comparable([request, limit, Some(bound)]);
        let rule = format!("minimum {name} usage per {} is {bound}", self.kind);
        match (request, limit) {
            (None, _) => Some(format!("{rule}.  No request is specified")),
            (Some(request), _) if asked < least => Some(format!("{rule}, but request is {request}")),
            (_, Some(limit)) if limited < least => Some(format!("{rule}, but limit is {limit}")),
            _ => None,
        }
    }

    fn max(&self, name: &str, bound: &Quantity) -> Option<String> {
        let (request, limit) = (self.requests.get(name), self.limits.get(name));
        let [asked, limited, most] = comparable([request, limit, Some(bound)]);
        let rule = format!("maximum {name} usage per {} is {bound}", self.kind);
        match (request, limit) {
            (_, None) => Some(format!("{rule}.  No limit is specified")),
            (_, Some(limit)) if limited > most => Some(format!("{rule}, but limit is {limit}")),
            (Some(request), _) if asked > most => Some(format!("{rule}, but request is {request}")),
            _ => None,
        }
    }

    /// For what has no limits of its own.
    fn max_request(&self, name: &str, bound: &Quantity) -> Option<String> {
        let request = self.requests.get(name);
        let [asked, _, most] = comparable([request, None, Some(bound)]);
        let rule = format!("maximum {name} usage per {} is {bound}", self.kind);
        match request {
            None => Some(format!("{rule}.  No request is specified")),
            Some(request) if asked > most => Some(format!("{rule}, but request is {request}")),
            Some(_) => None,
        }
    }

    fn ratio(&self, name: &str, bound: &Quantity) -> Option<String> {
        let [asked, limited, _] = comparable([self.requests.get(name), self.limits.get(name), Some(bound)]);
        let rule = format!("{name} max limit to request ratio per {} is {bound}", self.kind);
        if asked == 0 {
            return Some(format!("{rule}, but no request is specified or request is 0"));
        }
        if limited == 0 {
            return Some(format!("{rule}, but no limit is specified or limit is 0"));
        }
        let ratio = limited as f64 / asked as f64;
        let exceeds = if bound.value() <= MAX_MILLI {
            ratio * 1000.0 > bound.milli_value() as f64
        } else {
            ratio > bound.value() as f64
        };
        exceeds.then(|| format!("{rule}, but provided ratio is {ratio:.6}"))
    }

    fn against(&self, limit: &Value, errors: &mut Vec<String>) {
        for (name, bound) in amounts::read(limit.get("min")) {
            errors.extend(self.min(&name, &bound));
        }
        for (name, bound) in amounts::read(limit.get("max")) {
            errors.extend(self.max(&name, &bound));
        }
        for (name, bound) in amounts::read(limit.get("maxLimitRequestRatio")) {
            errors.extend(self.ratio(&name, &bound));
        }
    }
}

fn pod_errors(range: &Object, pod: &Object) -> Vec<String> {
    let mut errors = Vec::new();
    for limit in items(range, "/spec/limits") {
        match text(limit, "/type") {
            "Container" => {
                for container in items(pod, "/spec/containers").chain(items(pod, "/spec/initContainers")) {
                    Checked {
                        kind: "Container",
                        requests: &amounts::read(container.pointer("/resources/requests")),
                        limits: &amounts::read(container.pointer("/resources/limits")),
                    }
                    .against(limit, &mut errors);
                }
            }
            "Pod" => {
                let totals = PodTotals::of_spec(pod);
                Checked {
                    kind: "Pod",
                    requests: &totals.requests,
                    limits: &totals.limits,
                }
                .against(limit, &mut errors);
            }
            _ => {}
        }
    }
    errors
}

fn claim_errors(range: &Object, claim: &Object) -> Vec<String> {
    let checked = Checked {
        kind: "PersistentVolumeClaim",
        requests: &amounts::read(claim.pointer("/spec/resources/requests")),
        limits: &Amounts::new(),
    };
    let mut errors = Vec::new();
    for limit in limits_of(range, "PersistentVolumeClaim") {
        for (name, bound) in amounts::read(limit.get("min")) {
            errors.extend(checked.min(&name, &bound));
        }
        for (name, bound) in amounts::read(limit.get("max")) {
            errors.extend(checked.max_request(&name, &bound));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(limit: Value) -> Object {
        json!({"spec": {"limits": [limit]}})
    }

    #[test]
    fn defaults_are_set_and_noted() {
        let range = range(
            json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}),
        );
        let mut pod = json!({"spec": {
            "containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}}],
            "initContainers": [{"name": "i"}]}});
        set_defaults(&range, &mut pod);
        assert_eq!(
            pod["spec"]["containers"],
            json!([
                {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}}},
                {"name": "b", "resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}}}])
        );
        assert_eq!(
            meta::annotation(&pod, ANNOTATION),
            Some(
                "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; \
                 memory limit for container b; cpu request for init container i; cpu, memory limit for init container i"
            )
        );
    }

    #[test]
    fn bounds_in_upstreams_words() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
        let cases = [
            (
                json!({"type": "Container", "min": {"cpu": "100m"}}),
                pod(json!({})),
                Some("minimum cpu usage per Container is 100m.  No request is specified"),
            ),
            (
                json!({"type": "Container", "min": {"cpu": "100m"}}),
                pod(json!({"requests": {"cpu": "50m"}})),
                Some("minimum cpu usage per Container is 100m, but request is 50m"),
            ),
            (
                json!({"type": "Pod", "max": {"memory": "1Gi"}}),
                pod(json!({"limits": {"memory": "2Gi"}})),
                Some("maximum memory usage per Pod is 1Gi, but limit is 2Gi"),
            ),
            (
                json!({"type": "Pod", "max": {"memory": "1Gi", "cpu": "1"}}),
                pod(json!({"limits": {"memory": "2Gi"}})),
                Some(
                    "[maximum cpu usage per Pod is 1.  No limit is specified, maximum memory usage per Pod is 1Gi, but limit is 2Gi]",
                ),
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}})),
                Some("cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"),
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod(json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}})),
                None,
            ),
        ];
        for (limit, pod, expected) in cases {
            assert_eq!(aggregate(pod_errors(&range(limit), &pod)).as_deref(), expected);
        }
        let claim = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}});
        let limit = json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}});
        assert_eq!(
            aggregate(claim_errors(&range(limit), &claim)).as_deref(),
            Some("maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi")
        );
    }
}
