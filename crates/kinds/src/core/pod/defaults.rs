//! What only a Pod gets by default, not a template: requests from limits, host ports, service links.

use sampan_api::Object;
use serde_json::{Map, Value};

use crate::pod_spec::quantities;
use crate::tree;

pub(super) fn default(pod: &mut Object) {
    mirror_addresses(pod);
    let Some(spec) = pod.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    if tree::opt_int(spec, "terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        tree::set(spec, "terminationGracePeriodSeconds", 1);
    }
    let host_network = tree::flag(spec, "hostNetwork");
    for list in ["containers", "initContainers"] {
        for container in tree::items_mut(spec, list) {
            if let Some(resources) = tree::get_mut(container, "resources") {
                requests_from_limits(resources);
            }
            if host_network {
                host_ports(container);
            }
        }
    }
    default_pod_resources(spec);
    if tree::get(spec, "enableServiceLinks").is_none() {
        tree::set(spec, "enableServiceLinks", true);
    }
}

fn requests_from_limits(resources: &mut Value) {
    let Some(limits) = tree::map(resources, "limits").cloned() else {
        return;
    };
    if let Some(requests) = tree::child(resources, "requests") {
        quantities::fill(requests, &limits);
    }
}

fn host_ports(container: &mut Value) {
    for port in tree::items_mut(container, "ports") {
        let number = tree::int(port, "containerPort");
        if tree::int(port, "hostPort") == 0 && number != 0 {
            tree::set(port, "hostPort", number);
        }
    }
}

/// Requests of the whole Pod: where only its limits are given, what its containers ask for together, else the limit.
fn default_pod_resources(spec: &mut Value) {
    let Some(limits) = tree::map(spec, "resources.limits").cloned() else {
        return;
    };
    let mut requests = tree::map(spec, "resources.requests").cloned().unwrap_or_default();
    let mut asked = Map::new();
    for container in tree::items(spec, "containers") {
        for name in tree::map(container, "resources.requests")
            .into_iter()
            .flat_map(Map::keys)
        {
            asked.insert(name.clone(), Value::Null);
        }
    }
    for name in ["cpu", "memory"].into_iter().filter(|name| asked.contains_key(*name)) {
        let total = super::qos::total_requests(spec, name);
        if !requests.contains_key(name) {
            requests.insert(name.to_owned(), total.to_string().into());
        }
    }
    quantities::fill(&mut requests, &limits);
    if !requests.is_empty() {
        tree::set(spec, "resources.requests", requests);
    }
}

/// The singular field and the first of the plural ones say the same; the singular wins, for old node agents.
fn mirror_addresses(pod: &mut Object) {
    let (one, all) = ("status.podIP", "status.podIPs");
    let single = tree::text(pod, one).to_owned();
    let first = tree::items(pod, all).first().map(|ip| tree::text(ip, "ip").to_owned());
    match first {
        Some(first) if single.is_empty() => tree::set(pod, one, first),
        Some(first) if first == single => {}
        _ if single.is_empty() => {}
        _ => tree::set(pod, all, vec![Value::from_iter([("ip", single)])]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn limits_become_requests_and_ports_host_ports() {
        let mut pod = json!({"spec": {"hostNetwork": true, "containers": [{
            "name": "a", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}}}]}});
        default(&mut pod);
        assert_eq!(
            pod,
            json!({"spec": {"hostNetwork": true, "enableServiceLinks": true, "containers": [{
                "name": "a", "ports": [{"containerPort": 80, "hostPort": 80}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "1Gi"}}}]}})
        );
    }

    #[test]
    fn addresses_agree() {
        let cases = [
            (
                json!({"podIP": "10.0.0.1"}),
                json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}),
            ),
            (
                json!({"podIPs": [{"ip": "10.0.0.1"}]}),
                json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}),
            ),
            (
                json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.1"}]}),
                json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}),
            ),
            (json!({}), json!({})),
        ];
        for (status, wanted) in cases {
            let mut pod = json!({"status": status});
            default(&mut pod);
            assert_eq!(pod["status"], wanted);
        }
    }
}
