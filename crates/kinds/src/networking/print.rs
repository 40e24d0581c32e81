//! Table output of the networking kinds.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::core::service::print::load_balancer;
use crate::print::{AGE, NAME, age, cell, cell_or, name, selector, text};
use crate::spec::Column;
use crate::tree;

pub(super) const INGRESS_CLASS: &[Column] = &[
    NAME,
    text("Controller", "Who serves Ingresses of this class."),
    text("Parameters", "An object with its settings."),
    AGE,
];

pub(super) fn ingress_class(object: &Object, now: Timestamp) -> Vec<Value> {
    let parameters = match tree::get(object, "spec.parameters") {
        None => "<none>".to_owned(),
        Some(reference) => {
            let kind = tree::text(reference, "kind");
            let kind = match tree::get(reference, "apiGroup").and_then(Value::as_str) {
                Some(group) => format!("{kind}.{group}"),
                None => kind.to_owned(),
            };
            format!("{kind}/{}", tree::text(reference, "name"))
        }
    };
    vec![
        default_name(object, "ingressclass.kubernetes.io/is-default-class"),
        cell(object, "spec.controller"),
        parameters.into(),
        age(object, now),
    ]
}

/// The name, marked when the annotation makes it the default of its kind.
pub(crate) fn default_name(object: &Object, annotation: &str) -> Value {
    let name = tree::text(object, "metadata.name");
    if tree::annotation(object, annotation) == "true" {
        format!("{name} (default)").into()
    } else {
        name.into()
    }
}

pub(super) const INGRESS: &[Column] = &[
    NAME,
    text("Class", "The IngressClass that serves it."),
    text("Hosts", "The first host names it answers."),
    text("Address", "Where it is reachable."),
    text("Ports", "Ports it is reachable at."),
    AGE,
];

pub(super) fn ingress(object: &Object, now: Timestamp) -> Vec<Value> {
    let ports = if tree::items(object, "spec.tls").is_empty() {
        "80"
    } else {
        "80, 443"
    };
    let addresses: Vec<_> = load_balancer(object).into_iter().collect();
    vec![
        name(object),
        cell_or(object, "spec.ingressClassName", "<none>"),
        hosts(object).into(),
        addresses.join(",").into(),
        ports.into(),
        age(object, now),
    ]
}

/// The first three hosts; rules beyond the third named host are counted, whether they name one or not.
fn hosts(object: &Object) -> String {
    let rules = tree::items(object, "spec.rules");
    let mut list = Vec::new();
    let mut more = false;
    for rule in rules {
        more = more || list.len() == 3;
        let host = tree::text(rule, "host");
        if !more && !host.is_empty() {
            list.push(host);
        }
    }
    match (list.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (false, false) => list.join(","),
        (false, true) => format!("{} + {} more...", list.join(","), rules.len() - 3),
    }
}

pub(super) const IP_ADDRESS: &[Column] = &[NAME, text("ParentRef", "What the address belongs to.")];

pub(super) fn ip_address(object: &Object, _now: Timestamp) -> Vec<Value> {
    let parent = match tree::get(object, "spec.parentRef") {
        None => "<none>".to_owned(),
        Some(parent) => {
            let mut text = tree::text(parent, "resource").to_lowercase();
            for (separator, field) in [('.', "group"), ('/', "namespace")] {
                let part = tree::text(parent, field);
                if !part.is_empty() {
                    text.push(separator);
                    text.push_str(part);
                }
            }
            format!("{text}/{}", tree::text(parent, "name"))
        }
    };
    vec![name(object), parent.into()]
}

pub(super) const NETWORK_POLICY: &[Column] = &[NAME, text("Pod-Selector", "The Pods it is about."), AGE];

pub(super) fn network_policy(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        selector(object, "spec.podSelector").into(),
        age(object, now),
    ]
}

pub(super) const SERVICE_CIDR: &[Column] = &[NAME, text("CIDRs", "Ranges cluster addresses come from."), AGE];

pub(super) fn service_cidr(object: &Object, now: Timestamp) -> Vec<Value> {
    let ranges: Vec<_> = tree::items(object, "spec.cidrs").iter().map(tree::scalar).collect();
    vec![name(object), ranges.join(",").into(), age(object, now)]
}
