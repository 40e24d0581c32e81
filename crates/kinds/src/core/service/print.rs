//! Table output of Services.

use std::collections::BTreeSet;

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::print::{AGE, NAME, age, cell, labels, name, or, text};
use crate::spec::Column;
use crate::tree;

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
