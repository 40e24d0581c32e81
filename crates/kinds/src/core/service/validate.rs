//! Validation of Services.

use std::collections::BTreeSet;

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::{Value, json};

use super::{is_externally_accessible, needs_health_check_node_port};
use crate::checks::{self, Check, Rule};
use crate::core::validate::endpoint_ip;
use crate::internal;
use crate::names;
use crate::spec::Part;
use crate::tree;

const SPEC: &[Check] = &[
    ("sessionAffinity", Rule::RequiredOneOf(&["ClientIP", "None"])),
    (
        "type",
        Rule::RequiredOneOf(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]),
    ),
    ("internalTrafficPolicy", Rule::GivenOneOf(&["Cluster", "Local"])),
    (
        "trafficDistribution",
        Rule::GivenOneOf(&["PreferClose", "PreferSameZone", "PreferSameNode"]),
    ),
];

fn kind(service: &Object) -> &str {
    tree::text(service, "spec.type")
}

/// Upstream's notion here: the list of addresses says `None`.
fn is_headless(service: &Object) -> bool {
    tree::items(service, "spec.clusterIPs") == [json!("None")]
}

pub(super) fn service(service: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let nothing = Value::Null;
    let spec = tree::get(service, "spec").unwrap_or(&nothing);
    let ports = tree::items(spec, "ports");
    let headless = is_headless(service);
    if ports.is_empty() && !headless && kind(service) != "ExternalName" {
        errors.push(Error::required(&path.child("ports"), ""));
    }
    match kind(service) {
        kind @ ("LoadBalancer" | "NodePort") if headless => errors.push(Error::invalid(
            &path.child("clusterIPs").index(0),
            "None",
            format!("may not be set to 'None' for {kind} services"),
        )),
        "ExternalName" => external_name(spec, &path, errors),
        _ => {}
    }
    let mut port_names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        service_port(
            port,
            ports.len() > 1,
            &mut port_names,
            &path.child("ports").index(index),
            errors,
        );
    }
    if let Some(selector) = tree::get(spec, "selector") {
        errors.extend(api::validate_labels(selector, &path.child("selector")));
    }
    session_affinity(spec, &path.child("sessionAffinityConfig"), errors);
    if kind(service) != "ExternalName" {
        addresses(service, &[], &path, errors);
    }
    for (index, ip) in tree::items(spec, "externalIPs").iter().enumerate() {
        endpoint_ip(
            ip.as_str().unwrap_or_default(),
            &path.child("externalIPs").index(index),
            errors,
        );
    }
    checks::run_at(SPEC, spec, &path, None, errors);
    port_numbers(service, &path.child("ports"), errors);
    balancer(service, &path, errors);
    traffic_policies(service, &path, errors);
}

fn external_name(spec: &Value, path: &Path, errors: &mut Errors) {
    const WHY: Rule = Rule::Forbidden("may not be set for ExternalName services");
    checks::run_at(
        &[("clusterIPs", WHY), ("ipFamilies", WHY), ("ipFamilyPolicy", WHY)],
        spec,
        path,
        None,
        errors,
    );
    let name = tree::text(spec, "externalName");
    let name = name.strip_suffix('.').unwrap_or(name);
    let path = path.child("externalName");
    if name.is_empty() {
        errors.push(Error::required(&path, ""));
    } else {
        checks::named(&path, name, api::dns1123_subdomain, errors);
    }
}

fn service_port<'a>(port: &'a Value, needs_name: bool, seen: &mut BTreeSet<&'a str>, path: &Path, errors: &mut Errors) {
    let name = tree::text(port, "name");
    if !name.is_empty() {
        checks::named(&path.child("name"), name, api::dns1123_label, errors);
        if !seen.insert(name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
    } else if needs_name {
        errors.push(Error::required(&path.child("name"), ""));
    }
    let number = tree::get(port, "port").filter(|number| number.is_number());
    checks::port_or_name(&path.child("port"), number, errors);
    checks::run_at(
        &[("protocol", Rule::RequiredOneOf(&["SCTP", "TCP", "UDP"]))],
        port,
        path,
        None,
        errors,
    );
    checks::port_or_name(&path.child("targetPort"), tree::get(port, "targetPort"), errors);
    checks::run_at(
        &[("appProtocol", Rule::GivenNamed(api::qualified_name))],
        port,
        path,
        None,
        errors,
    );
}

fn session_affinity(spec: &Value, path: &Path, errors: &mut Errors) {
    let config = tree::get(spec, "sessionAffinityConfig");
    match tree::text(spec, "sessionAffinity") {
        "ClientIP" => {
            let at = path.child("clientIP").child("timeoutSeconds");
            match config.and_then(|config| tree::opt_int(config, "clientIP.timeoutSeconds")) {
                None => errors.push(Error::required(&at, "when session affinity type is ClientIP")),
                Some(seconds) if !(1..=86400).contains(&seconds) => errors.push(Error::invalid(
                    &at,
                    seconds,
                    "must be greater than 0 and less than 86400",
                )),
                Some(_) => {}
            }
        }
        "None" if config.is_some() => {
            errors.push(Error::forbidden(path, "must not be set when session affinity is None"))
        }
        _ => {}
    }
}

/// The single and the listed addresses agree, are addresses, and are of the families asked for.
/// `known`: addresses it had before, which stay good.
pub(super) fn addresses(service: &Object, known: &[Value], path: &Path, errors: &mut Errors) {
    let single = tree::text(service, "spec.clusterIP");
    let listed = tree::items(service, "spec.clusterIPs");
    let shown = || listed.to_vec();
    let at = path.child("clusterIPs");
    if single.is_empty() {
        if !listed.is_empty() {
            errors.push(Error::invalid(
                &at,
                shown(),
                "must be empty when `clusterIP` is not specified",
            ));
        }
    } else if listed.is_empty() {
        errors.push(Error::required(&at, ""));
    } else if listed.first().is_some_and(|first| first != single) {
        errors.push(Error::invalid(&at, shown(), "first value must match `clusterIP`"));
    }
    let families = tree::items(service, "spec.ipFamilies");
    for (index, family) in families.iter().enumerate() {
        let path = path.child("ipFamilies").index(index);
        if !["IPv4", "IPv6"].iter().any(|known| family == known) {
            errors.push(Error::not_supported(&path, family.clone(), &["IPv4", "IPv6"]));
        }
        if families.iter().take(index).any(|earlier| earlier == family) {
            errors.push(Error::duplicate(&path, family.clone()));
        }
    }
    checks::run_at(
        &[(
            "ipFamilyPolicy",
            Rule::GivenOneOf(&["PreferDualStack", "RequireDualStack", "SingleStack"]),
        )],
        tree::get(service, "spec").unwrap_or(&Value::Null),
        path,
        None,
        errors,
    );
    let before = errors.len();
    for (index, ip) in listed.iter().enumerate() {
        let is_known = known.contains(ip);
        let ip = ip.as_str().unwrap_or_default();
        if index == 0 && ip == "None" {
            if listed.len() > 1 {
                errors.push(Error::invalid(&at, shown(), "'None' must be the first and only value"));
            }
            continue;
        }
        if !is_known {
            checks::named(&at.index(index), ip, names::ip, errors);
        }
    }
    let malformed = errors.len() > before;
    if listed.len() > 2 {
        errors.push(Error::invalid(&at, shown(), "may only hold up to 2 values"));
    }
    if malformed {
        return;
    }
    let is_six = |ip: &Value| ip.as_str().is_some_and(|ip| ip.contains(':'));
    if listed.len() > 1 && (listed.iter().all(is_six) || !listed.iter().any(is_six)) {
        errors.push(Error::invalid(
            &at,
            shown(),
            "may specify no more than one IP for each IP family",
        ));
    }
    if is_headless(service) {
        return;
    }
    for (index, (ip, family)) in listed.iter().zip(families).enumerate() {
        let wanted = family.as_str().unwrap_or_default();
        if (wanted == "IPv6") != is_six(ip) {
            let why = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
            errors.push(Error::invalid(&at.index(index), ip.clone(), why));
        }
    }
}

/// No two ports of one protocol share a number, inside or on the nodes.
fn port_numbers(service: &Object, path: &Path, errors: &mut Errors) {
    let ports = tree::items(service, "spec.ports");
    let (mut on_nodes, mut inside) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let protocol = tree::text(port, "protocol");
        let (number, node) = (tree::int(port, "port"), tree::int(port, "nodePort"));
        if node != 0 {
            if kind(service) == "ClusterIP" {
                errors.push(Error::forbidden(
                    &path.child("nodePort"),
                    "may not be used when `type` is 'ClusterIP'",
                ));
            }
            if !on_nodes.insert((protocol, node)) {
                errors.push(Error::duplicate(&path.child("nodePort"), node));
            }
        }
        if !inside.insert((protocol, number)) {
            let key = json!({"protocol": protocol, "port": number});
            let shown = internal::object(internal::SERVICE_PORT, Some(&key));
            errors.push(Error::duplicate(&path, Value::Null).showing(shown));
        }
    }
}

const ONLY_BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";

fn balancer(service: &Object, path: &Path, errors: &mut Errors) {
    let balanced = kind(service) == "LoadBalancer";
    let ranges = tree::items(service, "spec.loadBalancerSourceRanges");
    if !ranges.is_empty() {
        let path = path.child("LoadBalancerSourceRanges");
        if !balanced {
            errors.push(Error::forbidden(&path, ONLY_BALANCED));
        }
        for (index, range) in ranges.iter().enumerate() {
            let text = range.as_str().unwrap_or_default().trim();
            checks::named(&path.index(index), text, names::cidr, errors);
        }
    }
    let allocate = tree::get(service, "spec.allocateLoadBalancerNodePorts");
    if allocate.is_some() && !balanced {
        errors.push(Error::forbidden(
            &path.child("allocateLoadBalancerNodePorts"),
            ONLY_BALANCED,
        ));
    }
    if allocate.is_none() && balanced {
        errors.push(Error::required(&Path::new("allocateLoadBalancerNodePorts"), ""));
    }
    balancer_class(service, path, errors);
}

fn balancer_class(service: &Object, path: &Path, errors: &mut Errors) {
    if let Some(class) = tree::get(service, "spec.loadBalancerClass").and_then(Value::as_str) {
        let path = path.child("loadBalancerClass");
        if kind(service) == "LoadBalancer" {
            checks::named(&path, class, api::qualified_name, errors);
        } else {
            errors.push(Error::forbidden(&path, ONLY_BALANCED));
        }
    }
}

fn traffic_policies(service: &Object, path: &Path, errors: &mut Errors) {
    let external = tree::text(service, "spec.externalTrafficPolicy");
    let at = path.child("externalTrafficPolicy");
    if !is_externally_accessible(service) {
        if !external.is_empty() {
            errors.push(Error::invalid(
                &at,
                external,
                "may only be set for externally-accessible services",
            ));
        }
    } else if external.is_empty() {
        errors.push(Error::required(&at, ""));
    } else if !["Cluster", "Local"].contains(&external) {
        errors.push(Error::not_supported(&at, external, &["Cluster", "Local"]));
    }
    let port = tree::int(service, "spec.healthCheckNodePort");
    let at = path.child("healthCheckNodePort");
    match (needs_health_check_node_port(service), port) {
        (false, 0) => {}
        (false, port) => errors.push(Error::invalid(
            &at,
            port,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        )),
        (true, 0) => errors.push(Error::required(&at, "")),
        (true, _) => checks::port_or_name(&at, tree::get(service, "spec.healthCheckNodePort"), errors),
    }
    let internal = tree::get(service, "spec.internalTrafficPolicy");
    if internal.is_none() && matches!(kind(service), "NodePort" | "LoadBalancer" | "ClusterIP") {
        errors.push(Error::required(&path.child("internalTrafficPolicy"), ""));
    }
}

pub(super) fn update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    match part {
        Part::Main => main_update(new, old, errors),
        Part::View("status") => status_update(new, errors),
        Part::View(_) => {}
    }
}

/// Addresses and families stay what they are once set, the second of a pair aside.
fn main_update(new: &Object, old: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let external = kind(new) == "ExternalName" || kind(old) == "ExternalName";
    let (headless, was_headless) = (is_headless(new), is_headless(old));
    if !(external || headless && was_headless) {
        fixed_addresses(new, old, errors);
    }
    if !external && !headless && !was_headless {
        fixed_families(new, old, errors);
    }
    let balanced = kind(new) == "LoadBalancer" && kind(old) == "LoadBalancer";
    if balanced && !tree::same_at(new, old, "spec.loadBalancerClass") {
        errors.push(Error::invalid(
            &path.child("loadBalancerClass"),
            tree::get(new, "spec.loadBalancerClass").cloned().unwrap_or_default(),
            "may not change once set",
        ));
    }
    // As upstream does, which looks at the class once as a change and once more with everything else.
    balancer_class(new, &path, errors);
    if needs_health_check_node_port(new)
        && needs_health_check_node_port(old)
        && !tree::same_at(new, old, "spec.healthCheckNodePort")
    {
        errors.push(Error::forbidden(&path.child("healthCheckNodePort"), checks::IMMUTABLE));
    }
}

const FIXED: &str = "may not change once set";

fn fixed_addresses(new: &Object, old: &Object, errors: &mut Errors) {
    let path = Path::new("spec").child("clusterIPs");
    let (now, was) = (tree::items(new, "spec.clusterIPs"), tree::items(old, "spec.clusterIPs"));
    let invalid = |index: usize, why: &str| Error::invalid(&path.index(index), now.to_vec(), why);
    if now.len() == was.len() {
        let changed = now.iter().zip(was).enumerate().filter(|(_, (now, was))| now != was);
        errors.extend(changed.map(|(index, _)| invalid(index, FIXED)));
        return;
    }
    if now.is_empty() {
        errors.push(invalid(0, "primary clusterIP can not be unset"));
    } else if was.first().is_some_and(|first| now.first() != Some(first)) {
        errors.push(invalid(0, FIXED));
    }
    if was.len() > now.len() && now.len() == 1 {
        still_two(new, "secondary clusterIP", errors);
    }
}

/// Errors of the first family show the addresses where the number of families changed, as upstream has it.
fn fixed_families(new: &Object, old: &Object, errors: &mut Errors) {
    let path = Path::new("spec").child("ipFamilies").index(0);
    let (now, was) = (tree::items(new, "spec.ipFamilies"), tree::items(old, "spec.ipFamilies"));
    let addresses = tree::items(new, "spec.clusterIPs");
    if now.len() == was.len() {
        let changed = now.iter().zip(was).filter(|(now, was)| now != was);
        errors.extend(changed.map(|_| Error::invalid(&path, now.to_vec(), FIXED)));
        return;
    }
    if was.len() > now.len() && addresses.is_empty() {
        errors.push(Error::invalid(&path, now.to_vec(), "primary ipFamily can not be unset"));
    }
    if let (Some(now), Some(was)) = (now.first(), was.first())
        && now != was
    {
        errors.push(Error::invalid(&path, addresses.to_vec(), FIXED));
    }
    if was.len() > now.len() && now.len() == 1 {
        still_two(new, "secondary ipFamily", errors);
    }
}

fn still_two(service: &Object, second: &str, errors: &mut Errors) {
    if tree::text(service, "spec.ipFamilyPolicy") != "SingleStack" {
        errors.push(Error::invalid(
            &Path::new("spec").child("ipFamilyPolicy"),
            tree::get(service, "spec.ipFamilyPolicy").cloned().unwrap_or_default(),
            format!("must be set to 'SingleStack' when releasing the {second}"),
        ));
    }
}

fn status_update(service: &Object, errors: &mut Errors) {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let points = tree::items(service, "status.loadBalancer.ingress");
    if kind(service) != "LoadBalancer" {
        if !points.is_empty() {
            errors.push(Error::forbidden(
                &path,
                "may only be used when `spec.type` is 'LoadBalancer'",
            ));
        }
        return;
    }
    for (index, point) in points.iter().enumerate() {
        let path = path.index(index);
        let (ip, mode) = (tree::text(point, "ip"), tree::text(point, "ipMode"));
        if !ip.is_empty() {
            checks::named(&path.child("ip"), ip, names::ip, errors);
        }
        match (ip.is_empty(), mode) {
            (false, _) if tree::get(point, "ipMode").is_some() => {}
            (false, "") => errors.push(Error::required(
                &path.child("ipMode"),
                "must be specified when `ip` is set",
            )),
            (true, mode) if !mode.is_empty() => errors.push(Error::forbidden(
                &path.child("ipMode"),
                "may not be specified when `ip` is not set",
            )),
            _ => {}
        }
        checks::run_at(
            &[
                ("ipMode", Rule::GivenOneOf(&["Proxy", "VIP"])),
                ("hostname", Rule::Named(api::dns1123_subdomain)),
            ],
            point,
            &path,
            None,
            errors,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;
    use crate::spec::Strategy;

    const RULES: &Rules = &super::super::RULES;

    fn made(changes: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
        for (key, value) in changes.as_object().unwrap() {
            service["spec"][key] = value.clone();
        }
        RULES.default(&mut service);
        RULES.prepare_create(&mut service);
        service
    }

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_minimal_service_is_made_whole() {
        assert_eq!(
            made(json!({})),
            json!({"metadata": {"name": "s"}, "spec": {
                "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            }, "status": {"loadBalancer": {}}})
        );
        assert_eq!(
            made(json!({"type": "NodePort", "sessionAffinity": "ClientIP", "clusterIP": "10.0.0.1"}))["spec"],
            json!({
                "type": "NodePort", "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
                "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            })
        );
    }

    #[test]
    fn services_are_refused_in_upstreams_words() {
        let cases = [
            (json!({}), vec![]),
            (json!({"clusterIP": "None", "ports": []}), vec![]),
            (
                json!({"type": "ExternalName", "externalName": "example.com", "ports": []}),
                vec![],
            ),
            (json!({"ports": []}), vec!["spec.ports: Required value"]),
            (
                json!({"ports": [{"port": 80}, {"port": 81}]}),
                vec![
                    "spec.ports[0].name: Required value",
                    "spec.ports[1].name: Required value",
                ],
            ),
            (
                json!({"ports": [{"port": 0}]}),
                vec![
                    "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                    "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                json!({"type": "Magic"}),
                vec![
                    "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                ],
            ),
            (
                json!({"ports": [{"port": 80, "nodePort": 30000}]}),
                vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (
                json!({"clusterIP": "nope"}),
                vec![
                    "spec.clusterIPs[0]: Invalid value: \"nope\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ],
            ),
            (
                json!({"externalIPs": ["127.0.0.1"]}),
                vec![
                    "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                ],
            ),
        ];
        for (changes, wanted) in cases {
            assert_eq!(
                texts(RULES.validate_create(&made(changes.clone()))),
                wanted,
                "{changes}"
            );
        }
    }

    #[test]
    fn an_address_stays() {
        let old = made(json!({"clusterIP": "10.0.0.1"}));
        let mut new = old.clone();
        new["spec"]["clusterIP"] = json!("10.0.0.2");
        RULES.prepare_update(Part::Main, &mut new, &old);
        assert_eq!(
            texts(RULES.validate_update(Part::Main, &new, &old)),
            ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"]
        );
    }
}
