//! The rules of the networking kinds.

use sampan_api::Object;

use super::validate;
use crate::defaults::Fill;
use crate::names;
use crate::rules::{RULES, Rules, Status};
use crate::tree;
use crate::warnings;

pub(super) static INGRESS_CLASS: Rules = Rules {
    generation: true,
    status: Status::Plain,
    defaults: &[("spec", Fill::Map), ("spec.parameters.scope", Fill::Pointer("Cluster"))],
    validate: validate::ingress_class,
    validate_update: validate::ingress_class_update,
    changes_first: true,
    ..RULES
};
pub(super) static INGRESS: Rules = Rules {
    generation: true,
    defaults: &[
        ("spec", Fill::Map),
        ("status", Fill::Map),
        ("status.loadBalancer", Fill::Map),
    ],
    validate: validate::ingress,
    validate_create: validate::ingress_create,
    validate_update: validate::ingress_update,
    warnings: warnings::ingress,
    ..RULES
};
pub(super) static IP_ADDRESS: Rules = Rules {
    name: names::ip_address,
    status: Status::Plain,
    defaults: &[("spec", Fill::Map)],
    checks: validate::IP_ADDRESS,
    ..RULES
};
pub(super) static NETWORK_POLICY: Rules = Rules {
    generation: true,
    status: Status::Plain,
    defaults: &[
        ("spec", Fill::Map),
        ("spec.podSelector", Fill::Map),
        ("spec.ingress[].ports[].protocol", Fill::Pointer("TCP")),
        ("spec.egress[].ports[].protocol", Fill::Pointer("TCP")),
    ],
    default: default_policy_types,
    validate: validate::network_policy,
    warnings: warnings::network_policy,
    ..RULES
};
pub(super) static SERVICE_CIDR: Rules = Rules {
    defaults: &[("spec", Fill::Map), ("status", Fill::Map)],
    validate_create: validate::service_cidr,
    validate_update: validate::service_cidr_update,
    reset: crate::rules::status_keeps_metadata,
    ..RULES
};

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
