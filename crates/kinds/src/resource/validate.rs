//! What upstream checks of devices that a claim asks for and of those it was given; [`super::published`] checks those a
//! driver offers.
//!
//! Difference: the policies of shared capacity are checked as far as their shape goes.

use std::collections::{BTreeMap, BTreeSet};

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use sampan_cel::device::{self, Refusal};
use serde_json::Value;

use super::published::{binding, fully_qualified};
use crate::checks::{IMMUTABLE, conditions, immutable, named};
use crate::pod_spec::scheduling::node_selector;
use crate::spec::Part;
use crate::{names, tree};

const REQUESTS: usize = 32;
const ALTERNATIVES: usize = 8;
const SELECTORS: usize = 32;
const CONSTRAINTS: usize = 32;
const CONFIGS: usize = 32;
const RESULTS: usize = 32;
const CONSUMERS: usize = 256;
const CONDITIONS: usize = 8;
const DRIVER_LENGTH: usize = 63;
const POOL_LENGTH: usize = 253;
const EXPRESSION_LENGTH: usize = 10 * 1024;
const RAW_LENGTH: usize = 10 * 1024;
const INTERFACE_LENGTH: usize = 256;
const HARDWARE_LENGTH: usize = 128;
const ADDRESSES: usize = 16;

pub(super) const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

/// Every element of a list by `item`, unless there are too many of them.
pub(super) fn list(
    owner: &Value,
    name: &str,
    max: usize,
    at: &Path,
    errors: &mut Errors,
    mut item: impl FnMut(&Value, &Path, &mut Errors),
) -> bool {
    let (path, items) = (at.child(name), tree::items(owner, name));
    if items.len() > max {
        errors.push(Error::too_many(&path, items.len(), max));
        return false;
    }
    for (index, value) in items.iter().enumerate() {
        item(value, &path.index(index), errors);
    }
    true
}

/// [`list`], whose elements differ in `key`.
pub(super) fn set(
    owner: &Value,
    name: &str,
    max: usize,
    key: impl Fn(&Value) -> String,
    at: &Path,
    errors: &mut Errors,
    item: impl FnMut(&Value, &Path, &mut Errors),
) {
    if !list(owner, name, max, at, errors, item) {
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, value) in tree::items(owner, name).iter().enumerate() {
        let key = key(value);
        if !seen.insert(key.clone()) {
            errors.push(Error::duplicate(&at.child(name).index(index), key));
        }
    }
}

pub(super) fn key_of(field: &'static str) -> impl Fn(&Value) -> String {
    move |value| tree::text(value, field).to_owned()
}

fn itself(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(super) fn required(value: &Value, name: &str, at: &Path, errors: &mut Errors) {
    if tree::text(value, name).is_empty() {
        errors.push(Error::required(&at.child(name), ""));
    }
}

pub(super) fn driver(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    if name.len() > DRIVER_LENGTH {
        errors.push(Error::too_long(path, DRIVER_LENGTH));
    }
    named(path, name, |name| api::dns1123_subdomain(&name.to_lowercase()), errors);
}

pub(super) fn pool(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    if name.len() > POOL_LENGTH {
        errors.push(Error::too_long(path, POOL_LENGTH));
    }
    for part in name.split('/') {
        named(path, part, api::dns1123_subdomain, errors);
    }
}

pub(super) fn label(value: &Value, name: &str, at: &Path, errors: &mut Errors) {
    named(&at.child(name), tree::text(value, name), api::dns1123_label, errors);
}

pub(super) fn required_label(value: &Value, name: &str, at: &Path, errors: &mut Errors) {
    if tree::text(value, name).is_empty() {
        required(value, name, at, errors);
    } else {
        label(value, name, at, errors);
    }
}

/// The names requests have, each with those of its alternatives when it has some.
type Requests<'a> = BTreeMap<&'a str, Option<BTreeSet<&'a str>>>;

fn requests(devices: &Value) -> Requests<'_> {
    tree::items(devices, "requests")
        .iter()
        .map(|request| {
            let alternatives = tree::items(request, "firstAvailable");
            let names = alternatives
                .iter()
                .map(|alternative| tree::text(alternative, "name"))
                .collect();
            (tree::text(request, "name"), (!alternatives.is_empty()).then_some(names))
        })
        .collect()
}

fn request_reference(name: &str, requests: &Requests<'_>, path: &Path, errors: &mut Errors) {
    const WHY: &str =
        "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let parts: Vec<_> = name.split('/').collect();
    if parts.len() > 2 {
        errors.push(Error::invalid(path, name, WHY));
        return;
    }
    for part in &parts {
        named(path, part, api::dns1123_label, errors);
    }
    let known = match parts.as_slice() {
        [request] => requests.contains_key(request),
        [request, alternative] => requests
            .get(request)
            .and_then(Option::as_ref)
            .is_some_and(|names| names.contains(alternative)),
        _ => false,
    };
    if !known {
        errors.push(Error::invalid(path, name, WHY));
    }
}

fn request_references(owner: &Value, requests: &Requests<'_>, at: &Path, errors: &mut Errors) {
    set(owner, "requests", REQUESTS, itself, at, errors, |name, path, errors| {
        request_reference(name.as_str().unwrap_or_default(), requests, path, errors);
    });
}

fn selectors(owner: &Value, at: &Path, errors: &mut Errors) {
    list(owner, "selectors", SELECTORS, at, errors, |selector, path, errors| {
        let path = path.child("cel");
        match tree::get(selector, "cel") {
            None => errors.push(Error::required(&path, "")),
            Some(cel) => expression(tree::text(cel, "expression"), &path.child("expression"), errors),
        }
    });
}

/// A selector must compile, and not cost too much.
fn expression(text: &str, path: &Path, errors: &mut Errors) {
    if text.len() > EXPRESSION_LENGTH {
        errors.push(Error::too_long(path, EXPRESSION_LENGTH));
        return;
    }
    match device::selector(text) {
        Ok(_) => {}
        Err(Refusal::Invalid(why)) => errors.push(Error::invalid(path, text, why)),
        Err(Refusal::TooExpensive) => errors.push(Error::forbidden(path, "too complex, exceeds cost limit")),
    }
}

fn toleration(toleration: &Value, path: &Path, errors: &mut Errors) {
    let key = tree::text(toleration, "key");
    if !key.is_empty() {
        named(&path.child("key"), key, api::qualified_name, errors);
    }
    let value = tree::text(toleration, "value");
    match tree::text(toleration, "operator") {
        "Exists" if !value.is_empty() => errors.push(Error::invalid(
            &path.child("value"),
            value,
            "must be empty for operator `Exists`",
        )),
        "Exists" => {}
        "Equal" => named(&path.child("value"), value, api::label_value, errors),
        "" => errors.push(Error::required(&path.child("operator"), "")),
        other => errors.push(Error::not_supported(
            &path.child("operator"),
            other,
            &["Equal", "Exists"],
        )),
    }
    let effect = tree::text(toleration, "effect");
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        errors.push(Error::not_supported(&path.child("effect"), effect, EFFECTS));
    }
}

/// What a request and an alternative of one both say of the devices wanted.
fn wanted(request: &Value, path: &Path, errors: &mut Errors) {
    let class = tree::text(request, "deviceClassName");
    if class.is_empty() {
        errors.push(Error::required(&path.child("deviceClassName"), ""));
    } else {
        named(&path.child("deviceClassName"), class, names::whole_subdomain, errors);
    }
    selectors(request, path, errors);
    let count = tree::int(request, "count");
    match tree::text(request, "allocationMode") {
        "All" if count != 0 => errors.push(Error::invalid(
            &path.child("count"),
            count,
            "must not be specified when allocationMode is 'All'",
        )),
        "ExactCount" if count <= 0 => {
            errors.push(Error::invalid(&path.child("count"), count, "must be greater than zero"))
        }
        "All" | "ExactCount" => {}
        other => errors.push(Error::not_supported(
            &path.child("allocationMode"),
            other,
            &["All", "ExactCount"],
        )),
    }
    for (index, one) in tree::items(request, "tolerations").iter().enumerate() {
        toleration(one, &path.child("tolerations").index(index), errors);
    }
}

fn request(request: &Value, path: &Path, errors: &mut Errors) {
    label(request, "name", path, errors);
    let alternatives = !tree::items(request, "firstAvailable").is_empty();
    match (tree::get(request, "exactly"), alternatives) {
        (None, false) => errors.push(Error::required(
            path,
            "exactly one of `exactly` or `firstAvailable` is required",
        )),
        (Some(_), true) => errors.push(Error::invalid(
            path,
            Value::Null,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        )),
        (Some(exactly), false) => wanted(exactly, &path.child("exactly"), errors),
        (None, true) => set(
            request,
            "firstAvailable",
            ALTERNATIVES,
            key_of("name"),
            path,
            errors,
            |alternative, path, errors| {
                label(alternative, "name", path, errors);
                wanted(alternative, path, errors);
            },
        ),
    }
}

/// The raw object a driver reads; nobody else knows its fields.
fn raw(value: Option<&Value>, path: &Path, errors: &mut Errors) {
    match value {
        None | Some(Value::Null) => errors.push(Error::required(path, "")),
        Some(value) if value.to_string().len() > RAW_LENGTH => errors.push(Error::too_long(path, RAW_LENGTH)),
        Some(Value::Object(_)) => {}
        Some(_) => errors.push(Error::invalid(path, "<value omitted>", "must be a valid JSON object")),
    }
}

fn configuration(config: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("opaque");
    let Some(opaque) = tree::get(config, "opaque") else {
        errors.push(Error::required(&path, ""));
        return;
    };
    driver(tree::text(opaque, "driver"), &path.child("driver"), errors);
    raw(opaque.get("parameters"), &path.child("parameters"), errors);
}

fn claim_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(devices) = tree::get(spec, "devices") else {
        return;
    };
    let (path, requests) = (path.child("devices"), requests(devices));
    set(devices, "requests", REQUESTS, key_of("name"), &path, errors, request);
    list(
        devices,
        "constraints",
        CONSTRAINTS,
        &path,
        errors,
        |constraint, path, errors| {
            request_references(constraint, &requests, path, errors);
            let attribute = ["matchAttribute", "distinctAttribute"]
                .into_iter()
                .find_map(|name| Some((name, tree::get(constraint, name)?.as_str()?)));
            match attribute {
                Some((field, name)) => fully_qualified(name, &path.child(field), errors),
                // Upstream's own words, though none is set.
                None => errors.push(Error::required(
                    path,
                    "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
                )),
            }
        },
    );
    list(devices, "config", CONFIGS, &path, errors, |config, path, errors| {
        request_references(config, &requests, path, errors);
        configuration(config, path, errors);
    });
}

pub(super) fn claim(object: &Object, errors: &mut Errors) {
    if let Some(spec) = tree::get(object, "spec") {
        claim_spec(spec, &Path::new("spec"), errors);
    }
}

pub(super) fn template(object: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    if let Some(labels) = tree::get(object, "spec.metadata.labels") {
        errors.extend(api::validate_labels(labels, &path.child("metadata").child("labels")));
    }
    if let Some(annotations) = tree::get(object, "spec.metadata.annotations") {
        let path = path.child("metadata").child("annotations");
        errors.extend(api::validate_annotations(annotations, &path));
    }
    if let Some(spec) = tree::get(object, "spec.spec") {
        claim_spec(spec, &path.child("spec"), errors);
    }
}

pub(super) fn spec_stays(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    // To the letter: an access that is refused is not one that was never asked for.
    let now = tree::get(new, "spec");
    if part == Part::Main && now != tree::get(old, "spec") {
        let shown = now.cloned().unwrap_or_default();
        errors.push(Error::invalid(&Path::new("spec"), shown, IMMUTABLE));
    }
}

pub(super) fn claim_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    spec_stays(part, new, old, errors);
    if part == Part::View("status") {
        claim_status(new, old, errors);
    }
}

/// A device as upstream names it: where it is from, and which share of it.
pub(super) fn device_id(device: &Value) -> String {
    let mut id = ["driver", "pool", "device"]
        .map(|name| tree::text(device, name))
        .join("/");
    if let Some(share) = tree::get(device, "shareID").and_then(Value::as_str) {
        id.push('/');
        id.push_str(share);
    }
    id
}

fn claim_status(new: &Object, old: &Object, errors: &mut Errors) {
    let Some(status) = tree::get(new, "status") else {
        return;
    };
    let path = Path::new("status");
    set(
        status,
        "reservedFor",
        CONSUMERS,
        key_of("uid"),
        &path,
        errors,
        |consumer, path, errors| {
            for name in ["resource", "name", "uid"] {
                required(consumer, name, path, errors);
            }
        },
    );
    let allocated: BTreeSet<_> = tree::items(status, "allocation.devices.results")
        .iter()
        .map(device_id)
        .collect();
    set(
        status,
        "devices",
        usize::MAX,
        device_id,
        &path,
        errors,
        |device, path, errors| device_status(device, &allocated, path, errors),
    );
    let consumers = tree::items(status, "reservedFor");
    let allocation = tree::get(status, "allocation");
    if !consumers.is_empty() {
        let before = tree::items(old, "status.reservedFor");
        if allocation.is_none() {
            errors.push(Error::forbidden(
                &path.child("reservedFor"),
                "may not be specified when `allocated` is not set",
            ));
        } else if tree::get(new, "metadata.deletionTimestamp").is_some()
            && consumers.iter().any(|consumer| !before.contains(consumer))
        {
            errors.push(Error::forbidden(
                &path.child("reservedFor"),
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
            ));
        }
    }
    let Some(allocation) = allocation else {
        return;
    };
    // An allocation is made once; what was stored is not judged by today's rules.
    if tree::get(old, "status.allocation").is_some() {
        immutable(new, old, &Path::default(), "status.allocation", errors);
        return;
    }
    let path = path.child("allocation");
    if let Some(devices) = tree::get(allocation, "devices") {
        let spec = tree::get(new, "spec.devices").unwrap_or(&Value::Null);
        allocation_result(devices, &requests(spec), &path.child("devices"), errors);
    }
    if let Some(selector) = tree::get(allocation, "nodeSelector") {
        node_selector(selector, &path.child("nodeSelector"), errors);
    }
}

fn allocation_result(devices: &Value, requests: &Requests<'_>, path: &Path, errors: &mut Errors) {
    list(devices, "results", RESULTS, path, errors, |result, path, errors| {
        request_reference(tree::text(result, "request"), requests, &path.child("request"), errors);
        driver(tree::text(result, "driver"), &path.child("driver"), errors);
        pool(tree::text(result, "pool"), &path.child("pool"), errors);
        label(result, "device", path, errors);
        binding(result, path, errors);
    });
    // Those of the class and those of the claim.
    list(devices, "config", 2 * CONFIGS, path, errors, |config, path, errors| {
        const SOURCES: &[&str] = &["FromClaim", "FromClass"];
        match tree::text(config, "source") {
            "" => errors.push(Error::required(&path.child("source"), "")),
            source if SOURCES.contains(&source) => {}
            other => errors.push(Error::not_supported(&path.child("source"), other, SOURCES)),
        }
        request_references(config, requests, path, errors);
        configuration(config, path, errors);
    });
}

fn device_status(device: &Value, allocated: &BTreeSet<String>, path: &Path, errors: &mut Errors) {
    driver(tree::text(device, "driver"), &path.child("driver"), errors);
    pool(tree::text(device, "pool"), &path.child("pool"), errors);
    label(device, "device", path, errors);
    let id = device_id(device);
    if !allocated.contains(&id) {
        errors.push(Error::invalid(path, id, "must be an allocated device in the claim"));
    }
    let given = tree::items(device, "conditions");
    if given.len() > CONDITIONS {
        errors.push(Error::too_many(&path.child("conditions"), given.len(), CONDITIONS));
    }
    conditions(given, &path.child("conditions"), errors);
    if let Some(data) = tree::get(device, "data") {
        raw(Some(data), &path.child("data"), errors);
    }
    let Some(network) = tree::get(device, "networkData") else {
        return;
    };
    let path = path.child("networkData");
    for (name, max) in [
        ("interfaceName", INTERFACE_LENGTH),
        ("hardwareAddress", HARDWARE_LENGTH),
    ] {
        if tree::text(network, name).len() > max {
            errors.push(Error::too_long(&path.child(name), max));
        }
    }
    set(network, "ips", ADDRESSES, itself, &path, errors, |_, _, _| {});
}

pub(super) fn class(object: &Object, errors: &mut Errors) {
    let Some(spec) = tree::get(object, "spec") else {
        return;
    };
    let path = Path::new("spec");
    selectors(spec, &path, errors);
    list(spec, "config", CONFIGS, &path, errors, configuration);
    if let Some(name) = tree::get(spec, "extendedResourceName").and_then(Value::as_str)
        && !crate::pod_spec::resources::is_extended(name)
    {
        errors.push(Error::invalid(
            &path.child("extendedResourceName"),
            name,
            "must be a valid extended resource name",
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::strategies::{CLAIM, SLICE};
    use crate::spec::Strategy;

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn slices_are_checked_as_upstream_does() {
        let slice = |device: Value| {
            json!({"metadata": {"name": "s"}, "spec": {"driver": "d.example", "nodeName": "n",
                "pool": {"name": "p", "resourceSliceCount": 1}, "devices": [device]}})
        };
        for (device, wanted) in [
            (
                json!({"name": "d", "attributes": {"v": {"version": "1.2.3-rc.1+b"}}}),
                "",
            ),
            (
                json!({"name": "d", "attributes": {"v": {"version": "1.02.3"}}}),
                r#"spec.devices[0].attributes[v].version: Invalid value: "1.02.3": must be a string compatible with semver.org spec 2.0.0"#,
            ),
            (
                json!({"name": "d", "attributes": {"v": {}}}),
                r#"spec.devices[0].attributes[v]: Invalid value: "": exactly one value must be specified"#,
            ),
            (
                json!({"name": "d", "taints": [{"key": "a", "effect": "other"}]}),
                r#"spec.devices[0].taints[0].effect: Unsupported value: "other": supported values: "NoExecute", "NoSchedule", "None""#,
            ),
            (
                json!({"name": "d", "bindingConditions": ["a"]}),
                "spec.devices[0].bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use bindingConditions",
            ),
        ] {
            assert_eq!(texts(SLICE.validate_create(&slice(device))).join("\n"), wanted);
        }
        let mut dated = slice(json!({"name": "d", "taints": [{"key": "a", "effect": "None"}]}));
        SLICE.default(&mut dated);
        assert!(dated.pointer("/spec/devices/0/taints/0/timeAdded").is_some());
        let mut other = dated.clone();
        tree::set(&mut other, "spec.driver", "e.example");
        assert_eq!(
            texts(SLICE.validate_update(Part::Main, &other, &dated)),
            [r#"spec.driver: Invalid value: "e.example": field is immutable"#]
        );
    }

    #[test]
    fn claims_name_their_requests() {
        let claim = |spec: Value| texts(CLAIM.validate_create(&json!({"metadata": {"name": "c"}, "spec": spec})));
        let request = json!({"name": "gpu", "exactly":
            {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1}});
        assert_eq!(
            claim(json!({"devices": {"requests": [{"name": "gpu"}]}})),
            ["spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required"]
        );
        assert_eq!(
            claim(json!({"devices": {"requests": [request.clone(), request.clone()]}})),
            [r#"spec.devices.requests[1]: Duplicate value: "gpu""#]
        );
        let opaque = json!({"driver": "d.example", "parameters": {}});
        assert_eq!(
            claim(json!({"devices": {"requests": [request],
                "config": [{"requests": ["gpu"], "opaque": opaque}, {"requests": ["gpu/x"], "opaque": opaque}]}})),
            [
                r#"spec.devices.config[1].requests[0]: Invalid value: "gpu/x": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"#
            ]
        );
    }

    #[test]
    fn what_is_said_of_devices_goes_with_their_allocation() {
        let device = |name: &str| json!({"driver": "d.example", "pool": "p", "device": name});
        let claim = |allocated: Value, said: Value| json!({"spec": {}, "status": {"allocation": {"devices": {"results": allocated}}, "devices": said}});
        let old = claim(json!([device("a"), device("b")]), json!([device("a"), device("b")]));
        let mut new = claim(json!([device("a")]), json!([device("a"), device("b"), device("c")]));
        CLAIM.prepare_update(Part::View("status"), &mut new, &old);
        assert_eq!(tree::items(&new, "status.devices"), [device("a"), device("c")]);
        let mut free = json!({"spec": {}, "status": {"devices": [device("a")]}});
        CLAIM.prepare_update(Part::View("status"), &mut free, &old);
        assert!(tree::get(&free, "status.devices").is_none());
    }

    #[test]
    fn an_allocation_is_judged_once() {
        let old = json!({"spec": {"devices": {"requests": [{"name": "gpu"}]}}, "status": {}});
        let mut new = old.clone();
        let result = json!({"request": "gpu", "driver": "d.example", "pool": "p", "device": ""});
        tree::set(
            &mut new,
            "status",
            json!({"allocation": {"devices": {"results": [result]}}}),
        );
        let errors = texts(CLAIM.validate_update(Part::View("status"), &new, &old));
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0].starts_with(r#"status.allocation.devices.results[0].device: Invalid value: """#),
            "{errors:?}"
        );
        assert!(CLAIM.validate_update(Part::View("status"), &new, &new).is_empty());
    }
}
