//! Validation of the networking kinds.

use std::net::IpAddr;

use sampan_api::field::{Error, Errors, Path};
use sampan_api::selector::validate_label_selector;
use sampan_api::{Object, names as api};
use serde_json::Value;

use crate::checks::{self, Check, Rule};
use crate::names;
use crate::pod_spec::validate::selector;
use crate::spec::Part;
use crate::tree;

pub(super) fn network_policy(policy: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    if let Some(selector) = tree::get(policy, "spec.podSelector") {
        errors.extend(validate_label_selector(selector, &path.child("podSelector")));
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules = tree::get(policy, "spec").map_or(&[][..], |spec| tree::items(spec, direction));
        for (index, rule) in rules.iter().enumerate() {
            let path = path.child(direction).index(index);
            for (number, port) in tree::items(rule, "ports").iter().enumerate() {
                policy_port(port, &path.child("ports").index(number), errors);
            }
            for (number, peer) in tree::items(rule, peers).iter().enumerate() {
                policy_peer(peer, &path.child(peers).index(number), errors);
            }
        }
    }
    let types = tree::items(policy, "spec.policyTypes");
    let at = path.child("policyTypes");
    if types.len() > 2 {
        errors.push(Error::invalid(
            &at,
            types.to_vec(),
            "may not specify more than two policyTypes",
        ));
        return;
    }
    checks::run(
        &[("spec.policyTypes[]", Rule::GivenOneOf(&["Ingress", "Egress"]))],
        policy,
        None,
        errors,
    );
}

fn policy_port(port: &Value, path: &Path, errors: &mut Errors) {
    checks::run_at(
        &[("protocol", Rule::GivenOneOf(&["TCP", "UDP", "SCTP"]))],
        port,
        path,
        None,
        errors,
    );
    let end = tree::opt_int(port, "endPort");
    let at = path.child("endPort");
    let number = tree::get(port, "port");
    if number.is_some() {
        checks::port_or_name(&path.child("port"), number, errors);
    }
    let Some(end) = end else {
        return;
    };
    match number {
        None => errors.push(Error::invalid(
            &at,
            end,
            "may not be specified when `port` is not specified",
        )),
        Some(Value::String(_)) => errors.push(Error::invalid(
            &at,
            end,
            "may not be specified when `port` is non-numeric",
        )),
        Some(start) => {
            if start.as_i64().is_some_and(|start| end < start) {
                errors.push(Error::invalid(
                    &at,
                    start.clone(),
                    "must be greater than or equal to `port`",
                ));
            }
            checks::port_or_name(&at, tree::get(port, "endPort"), errors);
        }
    }
}

fn policy_peer(peer: &Value, path: &Path, errors: &mut Errors) {
    let mut peers = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if tree::get(peer, field).is_some() {
            peers += 1;
            selector(peer, field, &path.child(field), errors);
        }
    }
    if let Some(block) = tree::get(peer, "ipBlock") {
        peers += 1;
        ip_block(block, &path.child("ipBlock"), errors);
        if peers > 1 {
            errors.push(Error::forbidden(path, "may not specify both ipBlock and another peer"));
        }
    }
    if peers == 0 {
        errors.push(Error::required(path, "must specify a peer"));
    }
}

fn ip_block(block: &Value, path: &Path, errors: &mut Errors) {
    let range = tree::text(block, "cidr");
    if range.is_empty() {
        errors.push(Error::required(&path.child("cidr"), ""));
        return;
    }
    checks::named(&path.child("cidr"), range, names::cidr, errors);
    let Ok(range) = range.parse::<ipnet::IpNet>() else {
        return;
    };
    for (index, except) in tree::items(block, "except").iter().enumerate() {
        let path = path.child("except").index(index);
        let text = except.as_str().unwrap_or_default();
        checks::named(&path, text, names::cidr, errors);
        if let Ok(except) = text.parse::<ipnet::IpNet>()
            && (!range.contains(&except.network()) || range.prefix_len() >= except.prefix_len())
        {
            errors.push(Error::invalid(&path, text, "must be a strict subset of `cidr`"));
        }
    }
}

/// A host name, or a wildcard one.
fn host(text: &str, path: &Path, errors: &mut Errors) {
    let check = if text.contains('*') {
        api::wildcard_dns1123_subdomain
    } else {
        api::dns1123_subdomain
    };
    checks::named(path, text, check, errors);
}

pub(super) fn ingress(ingress: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let rules = tree::items(ingress, "spec.rules");
    let backend = tree::get(ingress, "spec.defaultBackend");
    if rules.is_empty() && backend.is_none() {
        errors.push(Error::invalid(
            &path,
            Value::Null,
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    if let Some(backend) = backend {
        ingress_backend(backend, &path.child("defaultBackend"), errors);
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.child("rules").index(index);
        let name = tree::text(rule, "host");
        if !name.is_empty() {
            if name.parse::<IpAddr>().is_ok() {
                errors.push(Error::invalid(
                    &path.child("host"),
                    name,
                    "must be a DNS name, not an IP address",
                ));
            }
            host(name, &path.child("host"), errors);
        }
        let Some(http) = tree::get(rule, "http") else {
            continue;
        };
        let path = path.child("http").child("paths");
        let paths = tree::items(http, "paths");
        if paths.is_empty() {
            errors.push(Error::required(&path, ""));
        }
        for (number, entry) in paths.iter().enumerate() {
            ingress_path(entry, &path.index(number), errors);
        }
    }
    for (index, tls) in tree::items(ingress, "spec.tls").iter().enumerate() {
        let path = path.child("tls").index(index);
        for (number, name) in tree::items(tls, "hosts").iter().enumerate() {
            host(
                name.as_str().unwrap_or_default(),
                &path.child("hosts").index(number),
                errors,
            );
        }
        checks::run_at(
            &[("secretName", Rule::Named(names::whole_subdomain))],
            tls,
            &path,
            None,
            errors,
        );
    }
    checks::run(
        &[("spec.ingressClassName", Rule::GivenNamed(names::whole_subdomain))],
        ingress,
        None,
        errors,
    );
}

fn ingress_path(entry: &Value, path: &Path, errors: &mut Errors) {
    let text = tree::text(entry, "path");
    let at = path.child("path");
    let kind = tree::text(entry, "pathType");
    match kind {
        "" if tree::get(entry, "pathType").is_none() => {
            errors.push(Error::required(&path.child("pathType"), "pathType must be specified"));
            return;
        }
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                errors.push(Error::invalid(&at, text, "must be an absolute path"));
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(part) {
                    errors.push(Error::invalid(&at, text, format!("must not contain '{part}'")));
                }
            }
            for end in ["/..", "/."] {
                if text.ends_with(end) {
                    errors.push(Error::invalid(&at, text, format!("cannot end with '{end}'")));
                }
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                errors.push(Error::invalid(&at, text, "must be an absolute path"));
            }
        }
        _ => errors.push(Error::not_supported(
            &path.child("pathType"),
            kind,
            &["Exact", "ImplementationSpecific", "Prefix"],
        )),
    }
    let nothing = Value::Null;
    ingress_backend(
        tree::get(entry, "backend").unwrap_or(&nothing),
        &path.child("backend"),
        errors,
    );
}

fn ingress_backend(backend: &Value, path: &Path, errors: &mut Errors) {
    match (tree::get(backend, "resource"), tree::get(backend, "service")) {
        (Some(_), Some(_)) => errors.push(Error::invalid(
            path,
            "",
            "cannot set both resource and service backends",
        )),
        (None, None) => errors.push(Error::invalid(path, "", "resource or service backend is required")),
        (Some(resource), None) => reference(resource, &path.child("resource"), errors),
        (None, Some(service)) => {
            let at = path.child("service");
            checks::run_at(
                &[("name", Rule::RequiredNamed(api::dns1123_label))],
                service,
                &at,
                None,
                errors,
            );
            let (name, number) = (tree::text(service, "port.name"), tree::int(service, "port.number"));
            let at = at.child("port");
            match (name, number) {
                ("", 0) => errors.push(Error::required(path, "port name or number is required")),
                ("", _) => checks::port_or_name(&at.child("number"), tree::get(service, "port.number"), errors),
                (name, 0) => checks::named(&at.child("name"), name, api::port_name, errors),
                _ => errors.push(Error::invalid(path, "", "cannot set both port name & port number")),
            }
        }
    }
}

const REFERENCE: &[Check] = &[
    ("apiGroup", Rule::GivenNamed(api::dns1123_subdomain)),
    ("kind", Rule::RequiredNamed(api::path_segment)),
    ("name", Rule::RequiredNamed(api::path_segment)),
];

fn reference(reference: &Value, path: &Path, errors: &mut Errors) {
    checks::run_at(REFERENCE, reference, path, None, errors);
}

pub(super) fn ingress_create(ingress: &Object, errors: &mut Errors) {
    const CLASS: &str = "kubernetes.io/ingress.class";
    let annotated = tree::annotation(ingress, CLASS);
    let class = tree::text(ingress, "spec.ingressClassName");
    if !annotated.is_empty() && !class.is_empty() && annotated != class {
        errors.push(Error::invalid(
            &Path::new("annotations").child(CLASS),
            annotated,
            "must match `ingressClassName` when both are specified",
        ));
    }
}

pub(super) fn ingress_update(part: Part<'_>, new: &Object, _: &Object, errors: &mut Errors) {
    if part == Part::View("status") {
        checks::run(
            &[
                ("status.loadBalancer.ingress[].ip", Rule::Named(names::ip)),
                (
                    "status.loadBalancer.ingress[].hostname",
                    Rule::Named(api::dns1123_subdomain),
                ),
            ],
            new,
            None,
            errors,
        );
    }
}

pub(super) fn ingress_class_update(_: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    let controller = tree::text(new, "spec.controller");
    if controller != tree::text(old, "spec.controller") {
        let at = Path::new("spec").child("controller");
        errors.push(Error::invalid(&at, controller, checks::IMMUTABLE));
    }
}

pub(super) fn ingress_class(class: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let controller = tree::text(class, "spec.controller");
    let at = path.child("controller");
    if controller.len() > 250 {
        errors.push(Error::too_long(&at, 250));
    }
    domain_path(controller, &at, errors);
    let Some(parameters) = tree::get(class, "spec.parameters") else {
        return;
    };
    let path = path.child("parameters");
    reference(parameters, &path, errors);
    let at = path.child("namespace");
    let namespace = tree::get(parameters, "namespace").and_then(Value::as_str);
    match (tree::text(parameters, "scope"), namespace) {
        ("Cluster", None) => {}
        ("Cluster", Some(_)) => errors.push(Error::forbidden(&at, "`parameters.scope` is set to 'Cluster'")),
        ("Namespace", None) => errors.push(Error::required(&at, "`parameters.scope` is set to 'Namespace'")),
        ("Namespace", Some(name)) => checks::named(&at, name, api::dns1123_label, errors),
        (other, _) => errors.push(Error::not_supported(
            &path.child("scope"),
            other,
            &["Cluster", "Namespace"],
        )),
    }
}

/// `example.com/something`
pub(crate) fn domain_path(text: &str, path: &Path, errors: &mut Errors) {
    if text.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    match text.split_once('/') {
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            for message in api::dns1123_subdomain(domain) {
                errors.push(Error::invalid(path, domain, message));
            }
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
            if !rest.bytes().all(fits) {
                let why = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
                errors.push(Error::invalid(path, rest, why));
            }
        }
        _ => errors.push(Error::invalid(
            path,
            text,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        )),
    }
}

pub(super) const IP_ADDRESS: &[Check] = &[
    ("spec.parentRef", Rule::Given),
    ("spec.parentRef.group", Rule::Named(api::dns1123_subdomain)),
    ("spec.parentRef.resource", Rule::RequiredNamed(api::path_segment)),
    ("spec.parentRef.name", Rule::RequiredNamed(api::path_segment)),
    ("spec.parentRef.namespace", Rule::Named(api::path_segment)),
    ("spec.parentRef", Rule::Immutable),
];

pub(super) fn service_cidr(object: &Object, errors: &mut Errors) {
    let path = Path::new("spec").child("cidrs");
    let ranges = tree::items(object, "spec.cidrs");
    if ranges.is_empty() {
        errors.push(Error::required(&path, "at least one CIDR required"));
        return;
    }
    if ranges.len() > 2 {
        errors.push(Error::invalid(&path, ranges.to_vec(), "may only hold up to 2 values"));
        return;
    }
    for (index, range) in ranges.iter().enumerate() {
        checks::named(
            &path.index(index),
            range.as_str().unwrap_or_default(),
            names::cidr,
            errors,
        );
    }
    let sixes = ranges.iter().filter(|range| tree::scalar(range).contains(':')).count();
    if ranges.len() == 2 && sixes != 1 {
        errors.push(Error::invalid(
            &path,
            ranges.to_vec(),
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        ));
    }
}

/// A second family may be added; what is there stays.
pub(super) fn service_cidr_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if part != Part::Main {
        return;
    }
    let (now, was) = (tree::items(new, "spec.cidrs"), tree::items(old, "spec.cidrs"));
    let path = Path::new("spec").child("cidrs");
    let added = was.len() == 1 && now.len() == 2;
    if now.len() != was.len() && !added {
        let given = tree::get(new, "spec.cidrs").cloned().unwrap_or_default();
        errors.push(Error::invalid(&path, given, checks::IMMUTABLE));
        return;
    }
    for (index, (now, was)) in now.iter().zip(was).enumerate() {
        if now != was {
            errors.push(Error::invalid(&path.index(index), now.clone(), checks::IMMUTABLE));
        }
    }
    if added {
        service_cidr(new, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::super::strategies;
    use super::*;
    use crate::rules::Rules;
    use crate::spec::Strategy;
    use serde_json::json;

    #[test]
    fn wrong_objects_are_refused_in_upstreams_words() {
        let cases: Vec<(&Rules, Value, Vec<&str>)> = vec![
            (
                &strategies::INGRESS,
                json!({"spec": {"rules": [{"host": "a.example", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}),
                vec![],
            ),
            (
                &strategies::INGRESS,
                json!({}),
                vec!["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"],
            ),
            (
                &strategies::INGRESS,
                json!({"spec": {"rules": [{"host": "10.0.0.1", "http": {"paths": [{"path": "x", "pathType": "Exact", "backend": {"service": {"name": "s"}}}]}}]}}),
                vec![
                    "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
                    "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
                    "spec.rules[0].http.paths[0].backend: Required value: port name or number is required",
                ],
            ),
            (
                &strategies::NETWORK_POLICY,
                json!({"spec": {"ingress": [{"from": [{}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}], "ports": [{"port": "x", "endPort": 3}]}]}}),
                vec![
                    "spec.ingress[0].ports[0].endPort: Invalid value: 3: may not be specified when `port` is non-numeric",
                    "spec.ingress[0].from[0]: Required value: must specify a peer",
                    "spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
                ],
            ),
            (
                &strategies::INGRESS_CLASS,
                json!({"spec": {"controller": "x"}}),
                vec!["spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")"],
            ),
            (
                &strategies::SERVICE_CIDR,
                json!({"spec": {"cidrs": ["10.0.0.1/8"]}}),
                vec!["spec.cidrs[0]: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length"],
            ),
            (
                &strategies::IP_ADDRESS,
                json!({"spec": {}}),
                vec!["spec.parentRef: Required value"],
            ),
            (
                &strategies::IP_ADDRESS,
                json!({"spec": {"parentRef": {}}}),
                vec![
                    "spec.parentRef.resource: Required value",
                    "spec.parentRef.name: Required value",
                ],
            ),
        ];
        for (rules, mut object, wanted) in cases {
            rules.default(&mut object);
            let said: Vec<_> = rules.validate_create(&object).iter().map(ToString::to_string).collect();
            assert_eq!(said, wanted, "{object}");
        }
    }

    #[test]
    fn a_policys_types_follow_from_its_rules() {
        let mut policy = json!({"spec": {"egress": [{"ports": [{"port": 53}]}]}});
        strategies::NETWORK_POLICY.default(&mut policy);
        assert_eq!(
            policy,
            json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [{"ports": [{"port": 53, "protocol": "TCP"}]}]}})
        );
    }
}
