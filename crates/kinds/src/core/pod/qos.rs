//! What a Pod asks for in all, and the quality of service that gives it.

use sampan_api::quantity::{Format, Quantity};
use serde_json::{Map, Value};

use crate::pod_spec::quantities;
use crate::tree;

/// The effective request of a resource: the larger of what runs together and of any moment of initialization,
/// counting sidecars from where they start.
pub(crate) fn total_requests(spec: &Value, resource: &str) -> Quantity {
    let of = |container: &Value| quantities::of(tree::map(container, "resources.requests"), resource);
    let zero = || Quantity::new(0, Format::DecimalSi);
    let mut together = zero();
    for container in tree::items(spec, "containers") {
        together = together.add(&of(container));
    }
    let (mut sidecars, mut peak) = (zero(), zero());
    for container in tree::items(spec, "initContainers") {
        let now = if tree::text(container, "restartPolicy") == "Always" {
            sidecars = sidecars.add(&of(container));
            sidecars.clone()
        } else {
            sidecars.add(&of(container))
        };
        if now.sub(&peak).sign() > 0 {
            peak = now;
        }
    }
    together = together.add(&sidecars);
    if peak.sub(&together).sign() > 0 { peak } else { together }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from CPU and memory alone.
pub fn qos_class(spec: &Value) -> &'static str {
    let has_own =
        tree::get(spec, "resources").is_some_and(|own| tree::len(own, "requests") > 0 || tree::len(own, "limits") > 0);
    let holders: Vec<&Value> = if has_own {
        vec![spec]
    } else {
        ["containers", "initContainers"]
            .into_iter()
            .flat_map(|list| tree::items(spec, list))
            .collect()
    };
    let positive = |list: Option<&Map<String, Value>>, name: &str| -> Option<Quantity> {
        let quantity = Quantity::from_value(list?.get(name)?).ok()?;
        (quantity.sign() > 0).then_some(quantity)
    };
    let mut any = false;
    let mut guaranteed = true;
    for holder in &holders {
        let requests = tree::map(holder, "resources.requests");
        let limits = tree::map(holder, "resources.limits");
        for name in ["cpu", "memory"] {
            let (request, limit) = (positive(requests, name), positive(limits, name));
            any = any || request.is_some() || limit.is_some();
            guaranteed = guaranteed
                && match (request, limit) {
                    (Some(request), Some(limit)) => request.sub(&limit).is_zero(),
                    (None, Some(_)) => requests.is_none_or(|requests| !requests.contains_key(name)),
                    _ => false,
                };
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes() {
        let one = |resources: Value| json!({"containers": [{"resources": resources}]});
        let cases = [
            (one(json!({})), "BestEffort"),
            (one(json!({"requests": {"cpu": "1"}})), "Burstable"),
            (
                one(json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1024Mi"}})),
                "Guaranteed",
            ),
            (
                one(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}})),
                "Burstable",
            ),
            (one(json!({"limits": {"example.com/gpu": "1"}})), "BestEffort"),
            (
                json!({"containers": [{"resources": {"requests": {"cpu": "1", "memory": "1"}, "limits": {"cpu": "1", "memory": "1"}}}, {}]}),
                "Burstable",
            ),
        ];
        for (spec, class) in cases {
            assert_eq!(qos_class(&spec), class, "{spec}");
        }
    }

    #[test]
    fn initialization_may_need_more_than_running() {
        let request = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = request("1");
        sidecar["restartPolicy"] = "Always".into();
        let spec = json!({"containers": [request("500m")], "initContainers": [sidecar, request("3")]});
        assert_eq!(total_requests(&spec, "cpu").to_string(), "4");
    }
}
