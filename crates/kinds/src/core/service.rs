//! Services.

use std::collections::BTreeSet;

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::{Value, json};

use crate::defaults::Fill;
use crate::names;
use crate::print::{AGE, NAME, age, cell, labels, name, or, text};
use crate::rules::{RULES as PLAIN, Rules};
use crate::spec::Column;
use crate::tree;

pub(crate) static RULES: Rules = Rules {
    name: names::label_1035,
    create_on_update: true,
    defaults: &[
        ("spec", Fill::Map),
        ("spec.sessionAffinity", Fill::Text("None")),
        ("spec.type", Fill::Text("ClusterIP")),
        ("spec.ports[].protocol", Fill::Text("TCP")),
        ("spec(type=NodePort).externalTrafficPolicy", Fill::Text("Cluster")),
        ("spec(type=LoadBalancer).externalTrafficPolicy", Fill::Text("Cluster")),
        ("spec(type=ClusterIP).internalTrafficPolicy", Fill::Text("Cluster")),
        ("spec(type=NodePort).internalTrafficPolicy", Fill::Text("Cluster")),
        ("spec(type=LoadBalancer).internalTrafficPolicy", Fill::Text("Cluster")),
        (
            "spec(type=LoadBalancer).allocateLoadBalancerNodePorts",
            Fill::Bool(true),
        ),
        ("status", Fill::Map),
        ("status.loadBalancer", Fill::Map),
    ],
    default,
    ..PLAIN
};

fn default(service: &mut Object) {
    match tree::text(service, "spec.sessionAffinity") {
        "None" => {
            tree::remove(service, "spec.sessionAffinityConfig");
        }
        "ClientIP" => {
            if tree::get(service, "spec.sessionAffinityConfig.clientIP.timeoutSeconds").is_none() {
                tree::set(
                    service,
                    "spec.sessionAffinityConfig",
                    json!({"clientIP": {"timeoutSeconds": 10800}}),
                );
            }
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
    let external_ips = !tree::items(service, "spec.externalIPs").is_empty();
    if external_ips
        && tree::text(service, "spec.type") == "ClusterIP"
        && tree::text(service, "spec.externalTrafficPolicy").is_empty()
    {
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

pub(crate) const COLUMNS: &[Column] = &[
    NAME,
    text("Type", "How the service is exposed."),
    text("Cluster-IP", "Its first address inside the cluster."),
    text("External-IP", "Its addresses outside."),
    text("Port(s)", "Its ports, node ports and protocols."),
    AGE,
    text("Selector", "Labels of the Pods behind it.").wide(),
];

pub(crate) fn cells(service: &Object, now: Timestamp) -> Vec<Value> {
    let ip = tree::items(service, "spec.clusterIPs")
        .first()
        .and_then(Value::as_str)
        .unwrap_or("<none>");
    vec![
        name(service),
        cell(service, "spec.type"),
        ip.into(),
        external(service).into(),
        or(&ports(service), "<none>").into(),
        age(service, now),
        labels(service, "spec.selector").into(),
    ]
}

fn texts<'a>(object: &'a Object, path: &str) -> Vec<&'a str> {
    tree::items(object, path).iter().filter_map(Value::as_str).collect()
}

fn external(service: &Object) -> String {
    let addresses = texts(service, "spec.externalIPs");
    match tree::text(service, "spec.type") {
        "ClusterIP" | "NodePort" => or(&addresses.join(","), "<none>").to_owned(),
        "LoadBalancer" => {
            let balancer = load_balancer(service);
            let mut all: Vec<_> = balancer.iter().map(String::as_str).collect();
            all.extend(addresses);
            or(&all.join(","), "<pending>").to_owned()
        }
        "ExternalName" => tree::text(service, "spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

/// Addresses or host names a load balancer answers at, sorted.
pub(crate) fn load_balancer(object: &Object) -> BTreeSet<String> {
    tree::items(object, "status.loadBalancer.ingress")
        .iter()
        .map(|one| or(tree::text(one, "ip"), tree::text(one, "hostname")).to_owned())
        .filter(|text| !text.is_empty())
        .collect()
}

fn ports(service: &Object) -> String {
    tree::items(service, "spec.ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (tree::int(port, "port"), tree::text(port, "protocol"));
            match tree::int(port, "nodePort") {
                0 => format!("{number}/{protocol}"),
                node => format!("{number}:{node}/{protocol}"),
            }
        })
        .collect::<Vec<_>>()
        .join(",")
}
