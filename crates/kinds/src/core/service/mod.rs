//! Services: what is allocated for them and what follows from what.
//!
//! Addresses and node ports are the engine's to allocate: between `prepare_*` and validation it has the families settled
//! ([`settle_families`]), asks [`needs_cluster_ip`], [`needs_node_port`] and [`needs_health_check_node_port`], writes
//! what it allocated, and releases what an old object had and the new one has no more.

mod change;
mod families;
pub(crate) mod print;
mod validate;
mod warnings;

pub use families::settle_families;

use sampan_api::Object;
use serde_json::{Value, json};

use crate::defaults::Fill;
use crate::names;
use crate::rules::{RULES as PLAIN, Rules};
use crate::tree;

pub(crate) static RULES: Rules = Rules {
    name: names::label,
    create_on_update: true,
    defaults: &[
        ("spec", Fill::Map),
        ("spec.sessionAffinity", Fill::Text("None")),
        ("spec.type", Fill::Text("ClusterIP")),
        ("spec.ports[].protocol", Fill::Text("TCP")),
        ("spec(type=ClusterIP).internalTrafficPolicy", Fill::Pointer("Cluster")),
        ("spec(type=NodePort).internalTrafficPolicy", Fill::Pointer("Cluster")),
        (
            "spec(type=LoadBalancer).internalTrafficPolicy",
            Fill::Pointer("Cluster"),
        ),
        (
            "spec(type=LoadBalancer).allocateLoadBalancerNodePorts",
            Fill::Bool(true),
        ),
        ("status", Fill::Map),
        ("status.loadBalancer", Fill::Map),
    ],
    default,
    create: change::prepare_create,
    update: change::prepare_update,
    validate: validate::service,
    changes_first: true,
    validate_update: validate::update,
    warnings: warnings::of,
    ..PLAIN
};

fn default(service: &mut Object) {
    match tree::text(service, "spec.sessionAffinity") {
        "None" => {
            tree::remove(service, "spec.sessionAffinityConfig");
        }
        "ClientIP" if tree::get(service, "spec.sessionAffinityConfig.clientIP.timeoutSeconds").is_none() => {
            tree::set(
                service,
                "spec.sessionAffinityConfig",
                json!({"clientIP": {"timeoutSeconds": 10800}}),
            );
        }
        _ => {}
    }
    for port in tree::items_mut(service, "spec.ports") {
        let unset = match tree::get(port, "targetPort") {
            None => true,
            Some(target) => *target == json!(0) || *target == json!(""),
        };
        if unset && let Some(number) = tree::get(port, "port").cloned() {
            tree::set(port, "targetPort", number);
        }
    }
    if is_externally_accessible(service) && tree::text(service, "spec.externalTrafficPolicy").is_empty() {
        tree::set(service, "spec.externalTrafficPolicy", "Cluster");
    }
    if tree::text(service, "spec.type") == "LoadBalancer" {
        for ingress in tree::items_mut(service, "status.loadBalancer.ingress") {
            if !tree::text(ingress, "ip").is_empty() && tree::get(ingress, "ipMode").is_none() {
                tree::set(ingress, "ipMode", "VIP");
            }
        }
    }
}

/// Whether the service has cluster addresses at all (`None` counts as one).
pub fn needs_cluster_ip(service: &Object) -> bool {
    tree::text(service, "spec.type") != "ExternalName"
}

/// Whether its ports get node ports.
pub fn needs_node_port(service: &Object) -> bool {
    match tree::text(service, "spec.type") {
        "NodePort" => true,
        "LoadBalancer" => tree::get(service, "spec.allocateLoadBalancerNodePorts")
            .and_then(Value::as_bool)
            .unwrap_or(true),
        _ => false,
    }
}

/// Whether it gets a port where load balancers ask after its health.
pub fn needs_health_check_node_port(service: &Object) -> bool {
    tree::text(service, "spec.type") == "LoadBalancer" && tree::text(service, "spec.externalTrafficPolicy") == "Local"
}

/// Whether it is headless: an address is neither wanted nor there.
pub fn is_headless(service: &Object) -> bool {
    tree::text(service, "spec.clusterIP") == "None"
}

/// Whether the service answers outside the cluster.
pub(crate) fn is_externally_accessible(service: &Object) -> bool {
    match tree::text(service, "spec.type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !tree::items(service, "spec.externalIPs").is_empty(),
        _ => false,
    }
}
