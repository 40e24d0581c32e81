//! How a Service's change becomes whole: old clients know only some of the fields that belong together, and a
//! change of type leaves values behind that no longer mean anything.

use std::collections::{BTreeMap, BTreeSet};

use sampan_api::Object;

use super::{is_externally_accessible, needs_cluster_ip, needs_health_check_node_port};
use crate::spec::Part;
use crate::tree;

/// An old client's single address is also the list's.
pub(super) fn prepare_create(service: &mut Object) {
    let single = tree::text(service, "spec.clusterIP").to_owned();
    if !single.is_empty() && tree::items(service, "spec.clusterIPs").is_empty() {
        tree::set(service, "spec.clusterIPs", vec![single]);
    }
}

pub(super) fn prepare_update(part: Part<'_>, new: &mut Object, old: &Object) {
    if part != Part::Main {
        return;
    }
    keep_allocated(new, old);
    agree_on_addresses(new, old);
    drop_what_the_type_does_not_have(new, old);
}

/// By type alone: a LoadBalancer that opted out of node ports may still carry some.
fn may_have_node_ports(service: &Object) -> bool {
    matches!(tree::text(service, "spec.type"), "NodePort" | "LoadBalancer")
}

fn node_ports(service: &Object) -> BTreeSet<i64> {
    tree::items(service, "spec.ports")
        .iter()
        .map(|port| tree::int(port, "nodePort"))
        .filter(|port| *port != 0)
        .collect()
}

/// What was allocated stays when the client left it out.
fn keep_allocated(new: &mut Object, old: &Object) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        if tree::text(new, "spec.clusterIP").is_empty() {
            tree::carry(new, old, "spec.clusterIP");
        }
        if tree::items(new, "spec.clusterIPs").is_empty() {
            tree::carry(new, old, "spec.clusterIPs");
        }
    }
    if may_have_node_ports(old) && may_have_node_ports(new) {
        let used: BTreeSet<_> = node_ports(old).intersection(&node_ports(new)).copied().collect();
        let by_name: BTreeMap<_, _> = tree::items(old, "spec.ports")
            .iter()
            .map(|port| (tree::text(port, "name"), tree::int(port, "nodePort")))
            .collect();
        for port in tree::items_mut(new, "spec.ports") {
            if tree::int(port, "nodePort") == 0
                && let Some(known) = by_name.get(tree::text(port, "name"))
                && *known != 0
                && !used.contains(known)
            {
                tree::set(port, "nodePort", *known);
            }
        }
    }
    if needs_health_check_node_port(old)
        && needs_health_check_node_port(new)
        && tree::int(new, "spec.healthCheckNodePort") == 0
    {
        tree::carry(new, old, "spec.healthCheckNodePort");
    }
}

/// The single address was changed or cleared and the list left alone: the list follows.
fn agree_on_addresses(new: &mut Object, old: &Object) {
    let (now, before) = (
        tree::text(new, "spec.clusterIP").to_owned(),
        tree::text(old, "spec.clusterIP"),
    );
    if now != before && tree::same_at(new, old, "spec.clusterIPs") {
        if now.is_empty() {
            tree::remove(new, "spec.clusterIPs");
        } else {
            tree::set(new, "spec.clusterIPs", vec![now]);
        }
    }
}

/// A change of type drops what no longer applies, unless the client changed it too: then validation says no.
fn drop_what_the_type_does_not_have(new: &mut Object, old: &Object) {
    let drop_if_same = |new: &mut Object, path: &str| {
        if tree::same_at(new, old, path) {
            tree::remove(new, path);
        }
    };
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        if tree::same_at(new, old, "spec.clusterIP") && tree::same_at(new, old, "spec.clusterIPs") {
            tree::remove(new, "spec.clusterIP");
            tree::remove(new, "spec.clusterIPs");
        }
        drop_if_same(new, "spec.ipFamilies");
        drop_if_same(new, "spec.ipFamilyPolicy");
    }
    if may_have_node_ports(old) && !may_have_node_ports(new) && node_ports(old).is_superset(&node_ports(new)) {
        for port in tree::items_mut(new, "spec.ports") {
            tree::remove(port, "nodePort");
        }
    }
    if needs_health_check_node_port(old) && !needs_health_check_node_port(new) {
        drop_if_same(new, "spec.healthCheckNodePort");
    }
    let is_balanced = |service: &Object| tree::text(service, "spec.type") == "LoadBalancer";
    if is_balanced(old) && !is_balanced(new) {
        drop_if_same(new, "spec.allocateLoadBalancerNodePorts");
        drop_if_same(new, "spec.loadBalancerClass");
    }
    if is_externally_accessible(old) && !is_externally_accessible(new) {
        drop_if_same(new, "spec.externalTrafficPolicy");
    }
    if !is_balanced(new) {
        tree::set(new, "status.loadBalancer", serde_json::Map::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn an_update_keeps_what_was_allocated_and_drops_what_its_type_does_not_have() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80, "nodePort": 30000}]}});
        let changed = |spec: Value| {
            let mut new = json!({"spec": spec});
            prepare_update(Part::Main, &mut new, &old);
            new["spec"].clone()
        };
        let kept = changed(json!({"type": "NodePort", "ports": [{"port": 81}]}));
        assert_eq!(kept["clusterIP"], "10.0.0.1");
        assert_eq!(kept["clusterIPs"], json!(["10.0.0.1"]));
        assert_eq!(kept["ports"], json!([{"port": 81, "nodePort": 30000}]));

        let mut spec = old["spec"].clone();
        spec["type"] = "ClusterIP".into();
        let inside = changed(spec.clone());
        assert_eq!(inside["ports"], json!([{"port": 80}]));
        assert_eq!(inside["clusterIP"], "10.0.0.1");
        assert_eq!(inside.get("externalTrafficPolicy"), None);

        spec["type"] = "ExternalName".into();
        let outside = changed(spec);
        assert_eq!(
            outside,
            json!({"type": "ExternalName", "internalTrafficPolicy": "Cluster", "ports": [{"port": 80}]})
        );
    }
}
