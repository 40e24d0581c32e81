//! Validation of the simpler core kinds.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use sampan_api::field::{Error, Errors, Path};
use sampan_api::quantity::{Format, Quantity};
use sampan_api::{Object, names as api};
use serde_json::{Map, Value};

use crate::apps::validate::{lasting_template, status};
use crate::checks::{self, Check, Rule};
use crate::names;
use crate::pod_spec::resources;
use crate::spec::Part;
use crate::tree;

/// A megabyte: what the data of a ConfigMap or Secret may add up to.
const MAX_DATA: usize = 1024 * 1024;

fn keys(object: &Object, bag: &str, errors: &mut Errors) {
    let path = Path::new(bag);
    for key in tree::map(object, bag).into_iter().flat_map(Map::keys) {
        checks::named(&path.key(key), key, api::config_map_key, errors);
    }
}

/// Bytes of base64 text when decoded.
fn decoded_len(text: &str) -> usize {
    text.trim_end_matches('=').len() * 3 / 4
}

pub(super) fn config_map(object: &Object, errors: &mut Errors) {
    let mut size = 0;
    keys(object, "data", errors);
    for (key, value) in tree::map(object, "data").into_iter().flatten() {
        size += value.as_str().map_or(0, str::len);
        if tree::map(object, "binaryData").is_some_and(|binary| binary.contains_key(key)) {
            errors.push(Error::invalid(
                &Path::new("data").key(key),
                key.as_str(),
                "duplicate of key present in binaryData",
            ));
        }
    }
    keys(object, "binaryData", errors);
    for value in tree::map(object, "binaryData").into_iter().flat_map(Map::values) {
        size += value.as_str().map_or(0, decoded_len);
    }
    if size > MAX_DATA {
        errors.push(Error::too_long(&Path::new("[]"), MAX_DATA));
    }
}

/// What is marked immutable stays as it is, and stays marked.
fn immutable_data(new: &Object, old: &Object, bags: &[&str], errors: &mut Errors) {
    const WHY: &str = "field is immutable when `immutable` is set";
    if !tree::flag(old, "immutable") {
        return;
    }
    if !tree::flag(new, "immutable") {
        errors.push(Error::forbidden(&Path::new("immutable"), WHY));
    }
    for bag in bags {
        if !tree::same_at(new, old, bag) {
            errors.push(Error::forbidden(&Path::new(bag), WHY));
        }
    }
}

pub(super) fn config_map_update(_: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    immutable_data(new, old, &["data", "binaryData"], errors);
}

/// Keys a Secret of a type must have.
const SECRET_KEYS: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

pub(super) fn secret(object: &Object, errors: &mut Errors) {
    let path = Path::new("data");
    keys(object, "data", errors);
    let data = tree::map(object, "data");
    let size: usize = data
        .into_iter()
        .flat_map(Map::values)
        .filter_map(Value::as_str)
        .map(decoded_len)
        .sum();
    if size > MAX_DATA {
        errors.push(Error::too_long(&path, MAX_DATA));
    }
    let has = |key: &str| data.is_some_and(|data| data.contains_key(key));
    let kind = tree::text(object, "type");
    let required = SECRET_KEYS
        .iter()
        .find(|(name, _)| *name == kind)
        .map(|(_, keys)| *keys);
    for key in required.unwrap_or_default() {
        // Upstream looks at the length of a private key, and at the others' presence.
        let text = data
            .and_then(|data| data.get(*key))
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !has(key) || (*key == "ssh-privatekey" && text.is_empty()) {
            errors.push(Error::required(&path.key(key), ""));
        }
    }
    match kind {
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            if tree::annotation(object, NAME).is_empty() {
                let path = Path::new("metadata").child("annotations").key(NAME);
                errors.push(Error::required(&path, ""));
            }
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            errors.push(Error::required(&path.key("username"), ""));
            errors.push(Error::required(&path.key("password"), ""));
        }
        "kubernetes.io/dockercfg" => docker_config(data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => docker_config(data, ".dockerconfigjson", errors),
        _ => {}
    }
}

fn docker_config(data: Option<&Map<String, Value>>, key: &str, errors: &mut Errors) {
    use base64::Engine;
    let Some(text) = data.and_then(|data| data.get(key)).and_then(Value::as_str) else {
        return;
    };
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap_or_default();
    let why = match sampan_api::codec::json::decode(&decoded) {
        Ok(parsed) if parsed.object.is_object() || parsed.object.is_null() => return,
        Ok(parsed) => format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            sampan_api::codec::check::json_kind(&parsed.object)
        ),
        Err(error) => error.to_string(),
    };
    let path = Path::new("data").key(key);
    errors.push(Error::invalid(&path, "<secret contents redacted>", why));
}

pub(super) fn secret_update(_: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    checks::immutable(new, old, &Path::default(), "type", errors);
    immutable_data(new, old, &["data"], errors);
}

fn finalizer(name: &str, path: &Path, errors: &mut Errors) {
    checks::named(path, name, api::qualified_name, errors);
    if !name.contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&name) {
        errors.push(Error::invalid(
            path,
            name,
            "name is neither a standard finalizer name nor is it fully qualified",
        ));
    }
}

pub(super) fn namespace_create(object: &Object, errors: &mut Errors) {
    let path = Path::new("spec").child("finalizers");
    for name in tree::items(object, "spec.finalizers").iter().filter_map(Value::as_str) {
        finalizer(name, &path, errors);
    }
}

pub(super) fn namespace_update(part: Part<'_>, new: &Object, _: &Object, errors: &mut Errors) {
    match part {
        Part::View("status") => {
            let phase = tree::text(new, "status.phase");
            let (wanted, why) = if tree::get(new, "metadata.deletionTimestamp").is_some() {
                (
                    "Terminating",
                    "may only be 'Terminating' if `deletionTimestamp` is not empty",
                )
            } else {
                ("Active", "may only be 'Active' if `deletionTimestamp` is empty")
            };
            if phase != wanted {
                errors.push(Error::invalid(&Path::new("status").child("Phase"), phase, why));
            }
        }
        Part::View("finalize") => {
            let path = Path::new("spec").child("finalizers");
            for (index, name) in tree::items(new, "spec.finalizers").iter().enumerate() {
                finalizer(name.as_str().unwrap_or_default(), &path.index(index), errors);
            }
        }
        _ => {}
    }
}

/// An address traffic may be sent to.
pub(crate) fn endpoint_ip(text: &str, path: &Path, errors: &mut Errors) {
    let Ok(ip) = text.parse::<IpAddr>() else {
        checks::named(path, text, names::ip, errors);
        return;
    };
    let (local, multicast) = match ip {
        IpAddr::V4(ip) => {
            let octets = ip.octets();
            (ip.is_link_local(), octets[..3] == [224, 0, 0])
        }
        IpAddr::V6(ip) => (is_link_local(ip), ip.segments()[0] & 0xff0f == 0xff02),
    };
    let wrong = [
        (ip.is_unspecified(), format!("may not be unspecified ({text})")),
        (
            ip.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned(),
        ),
        (
            local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned(),
        ),
        (
            multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned(),
        ),
    ];
    errors.extend(
        wrong
            .into_iter()
            .filter_map(|(is, why)| is.then(|| Error::invalid(path, text, why))),
    );
}

fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

const ENDPOINT_ADDRESS: &[Check] = &[
    ("hostname", Rule::Named(api::dns1123_label)),
    ("nodeName", Rule::GivenNamed(names::whole_subdomain)),
];

pub(super) fn endpoints(object: &Object, errors: &mut Errors) {
    for (index, subset) in tree::items(object, "subsets").iter().enumerate() {
        let path = Path::new("subsets").index(index);
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|list| tree::items(subset, list).is_empty()) {
            errors.push(Error::required(
                &path,
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for list in lists {
            for (number, address) in tree::items(subset, list).iter().enumerate() {
                let path = path.child(list).index(number);
                let (ip, at) = (tree::text(address, "ip"), path.child("ip"));
                checks::named(&at, ip, names::ip, errors);
                checks::run_at(ENDPOINT_ADDRESS, address, &path, None, errors);
                if ip.parse::<IpAddr>().is_ok() {
                    endpoint_ip(ip, &at, errors);
                } else if !names::has_leading_zeros(ip) {
                    errors.push(Error::invalid(&at, ip, "must be a valid IP address"));
                }
            }
        }
        let ports = tree::items(subset, "ports");
        for (number, port) in ports.iter().enumerate() {
            let path = path.child("ports").index(number);
            if ports.len() > 1 && tree::text(port, "name").is_empty() {
                errors.push(Error::required(&path.child("name"), ""));
            }
            checks::run_at(&[("name", Rule::Named(api::dns1123_label))], port, &path, None, errors);
            checks::port_or_name(&path.child("port"), tree::get(port, "port"), errors);
            checks::run_at(
                &[
                    ("protocol", Rule::RequiredOneOf(&["SCTP", "TCP", "UDP"])),
                    ("appProtocol", Rule::GivenNamed(api::qualified_name)),
                ],
                port,
                &path,
                None,
                errors,
            );
        }
    }
}

pub(super) fn replication_controller(object: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let selector = tree::map(object, "spec.selector").filter(|selector| !selector.is_empty());
    let labels = tree::map(object, "spec.template.metadata.labels");
    if selector.is_none() {
        errors.push(Error::required(&path.child("selector"), ""));
    }
    let template_path = path.child("template");
    if tree::get(object, "spec.template").is_none() {
        errors.push(Error::required(&template_path, ""));
        return;
    }
    let matches = selector
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value));
    if !matches {
        errors.push(Error::invalid(
            &template_path.child("metadata").child("labels"),
            labels.map_or(Value::Null, |labels| labels.clone().into()),
            "`selector` does not match template `labels`",
        ));
    }
    lasting_template(object, &template_path, "ReplicationController", errors);
}

pub(super) fn replication_controller_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if part == Part::View("status") {
        status(new, old, errors);
    }
}

pub(super) fn pod_template(object: &Object, errors: &mut Errors) {
    let nothing = Value::Null;
    let template = tree::get(object, "template").unwrap_or(&nothing);
    crate::pod_spec::validate::template(template, &Path::new("template"), errors);
}

fn amounts(object: &Object, dotted: &str, errors: &mut Errors) {
    let path = dotted.split('.').fold(Path::default(), |path, name| path.child(name));
    if let Some(list) = tree::map(object, dotted) {
        resources::list(list, &path, resources::quota_name, errors);
    }
}

const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

pub(super) fn resource_quota(object: &Object, errors: &mut Errors) {
    amounts(object, "spec.hard", errors);
    let path = Path::new("spec");
    let scopes = tree::items(object, "spec.scopes");
    let at = path.child("scopes");
    for scope in scopes {
        if !SCOPES.iter().any(|known| scope == known) {
            errors.push(Error::invalid(&at, scopes.to_vec(), "unsupported scope"));
        }
    }
    let has = |name: &str| scopes.iter().any(|scope| scope == name);
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if has(one) && has(other) {
            errors.push(Error::invalid(&at, scopes.to_vec(), "conflicting scopes"));
        }
    }
    let at = path.child("scopeSelector").child("matchExpressions");
    for requirement in tree::items(object, "spec.scopeSelector.matchExpressions") {
        let (scope, operator) = (
            tree::text(requirement, "scopeName"),
            tree::text(requirement, "operator"),
        );
        let values = tree::items(requirement, "values");
        if !SCOPES.contains(&scope) {
            errors.push(Error::invalid(&at.child("scopeName"), scope, "unsupported scope"));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.push(Error::required(
                &at.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(Error::invalid(
                &at.child("values"),
                values.to_vec(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.push(Error::invalid(
                &at.child("operator"),
                operator,
                "not a valid selector operator",
            )),
        }
    }
}

pub(super) fn resource_quota_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    match part {
        Part::Main => {
            let scopes = |quota: &Object| -> BTreeSet<String> {
                tree::items(quota, "spec.scopes").iter().map(tree::scalar).collect()
            };
            if scopes(new) != scopes(old) {
                errors.push(Error::invalid(
                    &Path::new("spec").child("scopes"),
                    tree::get(new, "spec.scopes").cloned().unwrap_or_default(),
                    checks::IMMUTABLE,
                ));
            }
        }
        Part::View(_) => {
            amounts(new, "status.hard", errors);
            amounts(new, "status.used", errors);
        }
    }
}

pub(super) fn limit_range(object: &Object, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, limit) in tree::items(object, "spec.limits").iter().enumerate() {
        let path = Path::new("spec").child("limits").index(index);
        let kind = tree::text(limit, "type");
        let before = errors.len();
        checks::named(&path.child("type"), kind, api::qualified_name, errors);
        if errors.len() == before
            && !kind.contains('/')
            && !["Pod", "Container", "PersistentVolumeClaim"].contains(&kind)
        {
            errors.push(Error::invalid(
                &path.child("type"),
                kind,
                "must be a standard limit type or fully qualified",
            ));
        }
        if !seen.insert(kind) {
            errors.push(Error::duplicate(&path.child("type"), kind));
        }
        let name_check = match kind {
            "Pod" | "Container" => resources::container_name,
            _ => resources::any_name,
        };
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            let path = path.child(list);
            let Some(entries) = tree::map(limit, list) else {
                continue;
            };
            if kind == "Pod" && list.starts_with("default") {
                if !entries.is_empty() {
                    errors.push(Error::forbidden(&path, "may not be specified when `type` is 'Pod'"));
                }
                continue;
            }
            for name in entries.keys() {
                name_check(name, &path.key(name), errors);
            }
        }
        if kind == "PersistentVolumeClaim"
            && ["min", "max"]
                .iter()
                .all(|list| tree::map(limit, list).is_none_or(|list| !list.contains_key("storage")))
        {
            errors.push(Error::required(
                &path.child("limits"),
                "either minimum or maximum storage value is required, but neither was provided",
            ));
        }
        limit_order(limit, &path, errors);
    }
}

/// min ≤ default request ≤ default ≤ max
fn limit_order(limit: &Value, path: &Path, errors: &mut Errors) {
    const ORDER: [(&str, &str, &str, &str, &str, bool); 6] = [
        ("min", "max", "min", "min value", "max value", true),
        (
            "min",
            "defaultRequest",
            "defaultRequest",
            "min value",
            "default request value",
            false,
        ),
        (
            "defaultRequest",
            "max",
            "defaultRequest",
            "default request value",
            "max value",
            true,
        ),
        (
            "defaultRequest",
            "default",
            "defaultRequest",
            "default request value",
            "default limit value",
            true,
        ),
        ("min", "default", "default", "min value", "default value", true),
        ("default", "max", "default", "default value", "max value", false),
    ];
    let of = |list: &str, name: &str| {
        tree::map(limit, list)
            .and_then(|list| list.get(name))
            .and_then(|value| Quantity::from_value(value).ok())
    };
    let names: BTreeSet<&String> = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"]
        .iter()
        .filter_map(|list| tree::map(limit, list))
        .flat_map(Map::keys)
        .collect();
    for name in names {
        for (low, high, at, low_words, high_words, shows_low) in ORDER {
            if tree::text(limit, "type") == "Pod" && [low, high].iter().any(|list| list.starts_with("default")) {
                continue;
            }
            if let (Some(small), Some(big)) = (of(low, name), of(high, name))
                && small.sub(&big).sign() > 0
            {
                let shown = if shows_low { &small } else { &big };
                errors.push(Error::invalid(
                    &path.child(at).key(name),
                    shown.to_string(),
                    format!("{low_words} {small} is greater than {high_words} {big}"),
                ));
            }
        }
        if let Some(ratio) = of("maxLimitRequestRatio", name) {
            let at = path.child("maxLimitRequestRatio").key(name);
            limit_ratio(&ratio, of("min", name), of("max", name), &at, errors);
        }
        let is_pod = tree::text(limit, "type") == "Pod";
        if let (Some(default), Some(request)) = (of("default", name), of("defaultRequest", name))
            && !is_pod
            && !resources::may_overcommit(name)
            && !default.sub(&request).is_zero()
        {
            let why = format!("default value {default} must equal to defaultRequest value {request} in {name}");
            let at = path.child("defaultRequest").key(name);
            errors.push(Error::invalid(&at, request.to_string(), why));
        }
    }
}

/// How much more may be used than is asked for: at least as much, and no more than the bounds allow anyway.
fn limit_ratio(ratio: &Quantity, min: Option<Quantity>, max: Option<Quantity>, path: &Path, errors: &mut Errors) {
    // Beyond this many, thousandths do not fit into 64 bits.
    const MOST: i64 = i64::MAX / 1000;
    if ratio.sub(&Quantity::new(1, Format::DecimalSi)).sign() < 0 {
        let why = format!("ratio {ratio} is less than 1");
        errors.push(Error::invalid(path, ratio.to_string(), why));
    }
    let (Some(min), Some(max)) = (min, max) else {
        return;
    };
    let fine = [ratio, &min, &max].iter().all(|one| one.value() < MOST);
    let (asked, low, high) = if fine {
        (
            ratio.milli_value() as f64 / 1000.0,
            min.milli_value(),
            max.milli_value(),
        )
    } else {
        (ratio.value() as f64, min.value(), max.value())
    };
    let bound = high as f64 / low as f64;
    if asked > bound {
        let shown = if bound.is_infinite() {
            (if bound > 0.0 { "+Inf" } else { "-Inf" }).to_owned()
        } else {
            format!("{bound:.6}")
        };
        let why = format!("ratio {ratio} is greater than max/min = {shown}");
        errors.push(Error::invalid(path, ratio.to_string(), why));
    }
}

#[cfg(test)]
mod tests {
    use super::super::strategies;
    use super::*;
    use crate::rules::Rules;
    use crate::spec::Strategy;
    use serde_json::json;

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn created(rules: &Rules, mut object: Value) -> Vec<String> {
        rules.default(&mut object);
        rules.prepare_create(&mut object);
        texts(rules.validate_create(&object))
    }

    #[test]
    fn wrong_objects_are_refused_in_upstreams_words() {
        let cases: Vec<(&Rules, Value, Vec<&str>)> = vec![
            (&strategies::CONFIG_MAP, json!({"data": {"a": "b"}}), vec![]),
            (
                &strategies::CONFIG_MAP,
                json!({"data": {"a b": "c", "k": "v"}, "binaryData": {"k": ""}}),
                vec![
                    "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                    "data[k]: Invalid value: \"k\": duplicate of key present in binaryData",
                ],
            ),
            (&strategies::SECRET, json!({"stringData": {"a": "b"}}), vec![]),
            (
                &strategies::SECRET,
                json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
                vec!["data[tls.key]: Required value"],
            ),
            (
                &strategies::SECRET,
                json!({"type": "kubernetes.io/service-account-token"}),
                vec!["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
            ),
            (&strategies::NAMESPACE, json!({"metadata": {"name": "n"}}), vec![]),
            (
                &strategies::ENDPOINTS,
                json!({"subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 1}, {"port": 2, "name": "b"}]}, {}]}),
                vec![
                    "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                    "subsets[0].ports[0].name: Required value",
                    "subsets[1]: Required value: must specify `addresses` or `notReadyAddresses`",
                ],
            ),
            (
                &strategies::REPLICATION_CONTROLLER,
                json!({"spec": {"selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [{"name": "x", "image": "y"}]}}}}),
                vec![
                    "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                &strategies::LIMIT_RANGE,
                json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}, "default": {"cpu": "1"}, "defaultRequest": {"cpu": "1"}}]}}),
                vec![
                    "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                    "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
                    "spec.limits[0].default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1",
                ],
            ),
            (
                &strategies::LIMIT_RANGE,
                json!({"spec": {"limits": [{"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "4"}, "maxLimitRequestRatio": {"cpu": "3", "memory": "500m"}}]}}),
                vec![
                    "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000",
                    "spec.limits[0].maxLimitRequestRatio[memory]: Invalid value: \"500m\": ratio 500m is less than 1",
                ],
            ),
            (
                &strategies::SECRET,
                json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "aQ=="}}),
                vec![
                    "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": invalid character 'i' looking for beginning of value",
                ],
            ),
            (
                &strategies::RESOURCE_QUOTA,
                json!({"spec": {"hard": {"pods": "-1", "nothing": "1", "count/x.y": "2"}, "scopes": ["Terminating", "NotTerminating"]}}),
                vec![
                    "spec.hard[nothing]: Invalid value: \"nothing\": must be a standard resource type or fully qualified",
                    "spec.hard[nothing]: Invalid value: \"nothing\": must be a standard resource for quota",
                    "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0",
                    "spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\"]: conflicting scopes",
                ],
            ),
        ];
        for (rules, object, wanted) in cases {
            assert_eq!(created(rules, object.clone()), wanted, "{object}");
        }
    }

    #[test]
    fn immutable_data_stays() {
        let old = json!({"immutable": true, "data": {"a": "b"}, "type": "Opaque"});
        let new = json!({"data": {"a": "c"}, "type": "Other"});
        assert_eq!(
            texts(strategies::SECRET.validate_update(Part::Main, &new, &old)),
            [
                "type: Invalid value: \"Other\": field is immutable",
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
    }

    #[test]
    fn a_secret_folds_what_was_written_plainly() {
        let mut secret = json!({"data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}});
        strategies::SECRET.default(&mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "eQ==", "b": "eg=="}}));
    }

    #[test]
    fn a_namespace_is_labelled_active_and_held() {
        let mut namespace = json!({"metadata": {"name": "n"}});
        strategies::NAMESPACE.default(&mut namespace);
        strategies::NAMESPACE.prepare_create(&mut namespace);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "n", "labels": {"kubernetes.io/metadata.name": "n"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
        let mut new = namespace.clone();
        new["spec"] = json!({});
        new["status"] = json!({"phase": "Terminating"});
        strategies::NAMESPACE.prepare_update(Part::View("finalize"), &mut new, &namespace);
        assert_eq!(tree::items(&new, "spec.finalizers"), &[] as &[Value]);
        assert_eq!(new["status"]["phase"], "Active");
        let mut new = namespace.clone();
        new["spec"] = json!({});
        strategies::NAMESPACE.prepare_update(Part::Main, &mut new, &namespace);
        assert_eq!(new["spec"]["finalizers"], json!(["kubernetes"]));
    }

    #[test]
    fn limits_follow_from_each_other() {
        let mut range =
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Gi"}}]}});
        strategies::LIMIT_RANGE.default(&mut range);
        assert_eq!(
            range["spec"]["limits"][0],
            json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Gi"},
                "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2", "memory": "1Gi"}})
        );
    }
}
