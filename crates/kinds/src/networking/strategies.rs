//! The rules of the networking kinds.

use sampan_api::Object;

use crate::defaults::Fill;
use crate::names;
use crate::rules::{RULES, Rules, Status};
use crate::tree;

pub(super) static INGRESS_CLASS: Rules = Rules {
    generation: true,
    status: Status::Plain,
    defaults: &[("spec", Fill::Map), ("spec.parameters.scope", Fill::Text("Cluster"))],
    ..RULES
};
pub(super) static INGRESS: Rules = Rules {
    generation: true,
    defaults: &[
        ("spec", Fill::Map),
        ("status", Fill::Map),
        ("status.loadBalancer", Fill::Map),
    ],
    ..RULES
};
pub(super) static IP_ADDRESS: Rules = Rules {
    name: names::ip_address,
    status: Status::Plain,
    ..RULES
};
pub(super) static NETWORK_POLICY: Rules = Rules {
    generation: true,
    status: Status::Plain,
    defaults: &[
        ("spec", Fill::Map),
        ("spec.podSelector", Fill::Map),
        ("spec.ingress[].ports[].protocol", Fill::Text("TCP")),
        ("spec.egress[].ports[].protocol", Fill::Text("TCP")),
    ],
    default: default_policy_types,
    ..RULES
};
pub(super) static SERVICE_CIDR: Rules = Rules { ..RULES };

/// A policy is about ingress, and about egress too when it has egress rules.
fn default_policy_types(policy: &mut Object) {
    if tree::items(policy, "spec.policyTypes").is_empty() {
        let types: &[&str] = if tree::items(policy, "spec.egress").is_empty() {
            &["Ingress"]
        } else {
            &["Ingress", "Egress"]
        };
        tree::set(policy, "spec.policyTypes", types);
    }
}
