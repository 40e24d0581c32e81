//! What upstream checks of devices: those a driver publishes, those a claim asks for, and those it was given.
//!
//! Differences: the expressions of selectors are measured here but not compiled (a scheduler does that), and the
//! policies of shared capacity are checked as far as their shape goes.

use std::collections::{BTreeMap, BTreeSet};

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::Value;

use crate::checks::{conditions, immutable, named};
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
const BINDING_CONDITIONS: usize = 4;
const DEVICES: usize = 128;
/// With taints or counters: each device weighs more.
const ADVANCED_DEVICES: usize = 64;
const COUNTER_SETS: usize = 8;
const COUNTERS: usize = 32;
const CONSUMED_SETS: usize = 2;
const ATTRIBUTES: usize = 32;
const TAINTS: usize = 16;
const VALUE_LENGTH: usize = 64;
const NAME_LENGTH: usize = 32;
const DRIVER_LENGTH: usize = 63;
const POOL_LENGTH: usize = 253;
const EXPRESSION_LENGTH: usize = 10 * 1024;
const RAW_LENGTH: usize = 10 * 1024;
const INTERFACE_LENGTH: usize = 256;
const HARDWARE_LENGTH: usize = 128;
const ADDRESSES: usize = 16;

const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

/// Every element of a list by `item`, unless there are too many of them.
fn list(
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
fn set(
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

fn key_of(field: &'static str) -> impl Fn(&Value) -> String {
    move |value| tree::text(value, field).to_owned()
}

fn itself(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn required(value: &Value, name: &str, at: &Path, errors: &mut Errors) {
    if tree::text(value, name).is_empty() {
        errors.push(Error::required(&at.child(name), ""));
    }
}

fn driver(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    if name.len() > DRIVER_LENGTH {
        errors.push(Error::too_long(path, DRIVER_LENGTH));
    }
    named(path, name, |name| api::dns1123_subdomain(&name.to_lowercase()), errors);
}

fn pool(name: &str, path: &Path, errors: &mut Errors) {
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

fn label(value: &Value, name: &str, at: &Path, errors: &mut Errors) {
    named(&at.child(name), tree::text(value, name), api::dns1123_label, errors);
}

fn required_label(value: &Value, name: &str, at: &Path, errors: &mut Errors) {
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
            Some(cel) if tree::text(cel, "expression").len() > EXPRESSION_LENGTH => {
                errors.push(Error::too_long(&path.child("expression"), EXPRESSION_LENGTH));
            }
            Some(_) => {}
        }
    });
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
    if part == Part::Main {
        immutable(new, old, &Path::default(), "spec", errors);
    }
}

pub(super) fn claim_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    spec_stays(part, new, old, errors);
    if part == Part::View("status") {
        claim_status(new, old, errors);
    }
}

/// A device as upstream names it: where it is from, and which share of it.
fn device_id(device: &Value) -> String {
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

/// `{`a`, `b`}`: the fields set, as upstream lists them.
fn listed(fields: &[&str]) -> String {
    let quoted: Vec<_> = fields.iter().map(|field| format!("`{field}`")).collect();
    format!("{{{}}}", quoted.join(", "))
}

pub(super) fn slice(object: &Object, errors: &mut Errors) {
    slice_spec(object, None, errors);
}

pub(super) fn slice_update(_: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    slice_spec(new, Some(old), errors);
}

fn slice_spec(object: &Object, old: Option<&Object>, errors: &mut Errors) {
    let spec = tree::get(object, "spec").unwrap_or(&Value::Null);
    let path = Path::new("spec");
    driver(tree::text(spec, "driver"), &path.child("driver"), errors);
    let at = path.child("pool");
    pool(tree::text(spec, "pool.name"), &at.child("name"), errors);
    let slices = tree::int(spec, "pool.resourceSliceCount");
    if slices <= 0 {
        errors.push(Error::invalid(
            &at.child("resourceSliceCount"),
            slices,
            "must be greater than zero",
        ));
    }
    let generation = tree::int(spec, "pool.generation");
    if generation < 0 {
        errors.push(Error::invalid(
            &at.child("generation"),
            generation,
            "must be greater than or equal to zero",
        ));
    }
    if let Some(old) = old {
        for (at, name) in [(&at, "spec.pool.name"), (&path, "spec.driver")] {
            if tree::text(object, name) != tree::text(old, name) {
                let field = at.child(name.rsplit('.').next().unwrap_or_default());
                errors.push(Error::invalid(
                    &field,
                    tree::text(object, name),
                    crate::checks::IMMUTABLE,
                ));
            }
        }
        immutable(object, old, &Path::default(), "spec.nodeName", errors);
    }
    let mut fields = Vec::new();
    placement(
        spec,
        "must be either unset or set to a non-empty string",
        &path,
        &mut fields,
        errors,
    );
    if let Some(selector) = tree::get(spec, "nodeSelector") {
        let terms = tree::items(selector, "nodeSelectorTerms");
        if terms.len() != 1 {
            errors.push(Error::invalid(
                &path.child("nodeSelector").child("nodeSelectorTerms"),
                terms.to_vec(),
                "must have exactly one node selector term",
            ));
        }
    }
    true_or_unset(spec, "allNodes", &path, &mut fields, errors);
    true_or_unset(spec, "perDeviceNodeSelection", &path, &mut fields, errors);
    const ONE_OF: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match fields.len() {
        0 => errors.push(Error::required(&path, ONE_OF)),
        1 => {}
        _ => errors.push(Error::invalid(
            &path,
            listed(&fields),
            format!("{ONE_OF}, but multiple fields are set"),
        )),
    }
    if tree::get(spec, "sharedCounters").is_some() && tree::get(spec, "devices").is_some() {
        errors.push(Error::invalid(
            &path,
            "",
            "only one of `sharedCounters` or `devices` is allowed",
        ));
    }
    let advanced = tree::items(spec, "devices").iter().any(|device| {
        ["taints", "consumesCounters"]
            .iter()
            .any(|list| !tree::items(device, list).is_empty())
    });
    let max = if advanced { ADVANCED_DEVICES } else { DEVICES };
    let each = tree::flag(spec, "perDeviceNodeSelection");
    let before = old.map_or(&[][..], |old| tree::items(old, "spec.devices"));
    set(
        spec,
        "devices",
        max,
        key_of("name"),
        &path,
        errors,
        |one, path, errors| {
            let name = tree::text(one, "name");
            let before = before.iter().find(|device| tree::text(device, "name") == name);
            device(one, before, each, path, errors);
        },
    );
    set(
        spec,
        "sharedCounters",
        COUNTER_SETS,
        key_of("name"),
        &path,
        errors,
        |counters_of, path, errors| {
            required_label(counters_of, "name", path, errors);
            counters(counters_of, path, errors);
        },
    );
}

/// `nodeName` and `nodeSelector`, of a slice or of a device.
fn placement(owner: &Value, why: &str, path: &Path, fields: &mut Vec<&str>, errors: &mut Errors) {
    match tree::get(owner, "nodeName").and_then(Value::as_str) {
        None => {}
        Some("") => errors.push(Error::invalid(&path.child("nodeName"), "", why)),
        Some(name) => {
            fields.push("nodeName");
            named(&path.child("nodeName"), name, names::whole_subdomain, errors);
        }
    }
    if let Some(selector) = tree::get(owner, "nodeSelector") {
        fields.push("nodeSelector");
        node_selector(selector, &path.child("nodeSelector"), errors);
    }
}

fn true_or_unset(owner: &Value, name: &'static str, path: &Path, fields: &mut Vec<&'static str>, errors: &mut Errors) {
    match tree::get(owner, name).and_then(Value::as_bool) {
        None => {}
        Some(true) => fields.push(name),
        Some(false) => errors.push(Error::invalid(
            &path.child(name),
            false,
            "must be either unset or set to true",
        )),
    }
}

fn counters(owner: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("counters");
    match tree::map(owner, "counters").filter(|map| !map.is_empty()) {
        None => errors.push(Error::required(&path, "")),
        Some(map) if map.len() > COUNTERS => errors.push(Error::too_many(&path, map.len(), COUNTERS)),
        Some(map) => {
            for name in map.keys() {
                named(&path, name, api::dns1123_label, errors);
            }
        }
    }
}

fn device(device: &Value, before: Option<&Value>, placed_alone: bool, path: &Path, errors: &mut Errors) {
    label(device, "name", path, errors);
    let total = tree::len(device, "attributes") + tree::len(device, "capacity");
    if total > ATTRIBUTES {
        errors.push(Error::invalid(
            path,
            total,
            format!("the total number of attributes and capacities must not exceed {ATTRIBUTES}"),
        ));
    }
    for (name, value) in tree::map(device, "attributes").into_iter().flatten() {
        let path = path.child("attributes");
        qualified(name, &path, errors);
        attribute(value, &path.key(name), errors);
    }
    for (name, value) in tree::map(device, "capacity").into_iter().flatten() {
        let path = path.child("capacity");
        qualified(name, &path, errors);
        capacity(
            value,
            tree::flag(device, "allowMultipleAllocations"),
            &path.key(name),
            errors,
        );
    }
    if before.is_none_or(|before| !tree::same_at(before, device, "taints")) {
        list(device, "taints", TAINTS, path, errors, taint);
    }
    set(
        device,
        "consumesCounters",
        CONSUMED_SETS,
        key_of("counterSet"),
        path,
        errors,
        |consumption, path, errors| {
            required_label(consumption, "counterSet", path, errors);
            counters(consumption, path, errors);
        },
    );
    device_placement(device, placed_alone, path, errors);
    binding(device, path, errors);
}

fn device_placement(device: &Value, placed_alone: bool, path: &Path, errors: &mut Errors) {
    if !placed_alone {
        if ["nodeName", "nodeSelector", "allNodes"]
            .iter()
            .any(|name| tree::get(device, name).is_some())
        {
            errors.push(Error::invalid(
                path,
                Value::Null,
                "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
            ));
        }
        return;
    }
    const ONE_OF: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    let mut fields = Vec::new();
    placement(device, "must not be empty", path, &mut fields, errors);
    true_or_unset(device, "allNodes", path, &mut fields, errors);
    match fields.len() {
        0 => errors.push(Error::required(path, ONE_OF)),
        1 => {}
        _ => errors.push(Error::invalid(path, listed(&fields), ONE_OF)),
    }
}

fn identifier(name: &str, path: &Path, errors: &mut Errors) {
    if name.len() > NAME_LENGTH {
        errors.push(Error::too_long(path, NAME_LENGTH));
    }
    named(path, name, api::c_identifier, errors);
}

/// `name`, or `domain/name`. As upstream, more than one slash goes unseen.
fn qualified(name: &str, path: &Path, errors: &mut Errors) {
    let parts: Vec<_> = name.split('/').collect();
    match parts.as_slice() {
        [name] => identifier(name, path, errors),
        [domain, name] => {
            if domain.is_empty() {
                errors.push(Error::invalid(path, "", "the domain must not be empty"));
            } else {
                driver(domain, path, errors);
            }
            if name.is_empty() {
                errors.push(Error::invalid(path, "", "the name must not be empty"));
            } else {
                identifier(name, path, errors);
            }
        }
        _ => {}
    }
}

fn fully_qualified(name: &str, path: &Path, errors: &mut Errors) {
    qualified(name, path, errors);
    if !name.contains('/') {
        errors.push(Error::invalid(
            path,
            name,
            "a fully qualified name must be a domain and a name separated by a slash",
        ));
    }
}

fn attribute(attribute: &Value, path: &Path, errors: &mut Errors) {
    if let Some(text) = tree::get(attribute, "string").and_then(Value::as_str)
        && text.len() > VALUE_LENGTH
    {
        errors.push(Error::too_long(&path.child("string"), VALUE_LENGTH));
    }
    if let Some(version) = tree::get(attribute, "version").and_then(Value::as_str) {
        let path = path.child("version");
        if !is_semver(version) {
            errors.push(Error::invalid(
                &path,
                version,
                "must be a string compatible with semver.org spec 2.0.0",
            ));
        }
        if version.len() > VALUE_LENGTH {
            errors.push(Error::too_long(&path, VALUE_LENGTH));
        }
    }
    let values = ["bool", "int", "string", "version"]
        .iter()
        .filter(|name| tree::get(attribute, name).is_some())
        .count();
    match values {
        0 => errors.push(Error::invalid(path, "", "exactly one value must be specified")),
        1 => {}
        _ => errors.push(Error::invalid(
            path,
            attribute.clone(),
            "exactly one value must be specified",
        )),
    }
}

fn is_semver(text: &str) -> bool {
    let numeric = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'))
    };
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (rest, build) = match text.split_once('+') {
        Some((rest, build)) => (rest, Some(build)),
        None => (text, None),
    };
    let (core, prerelease) = match rest.split_once('-') {
        Some((core, prerelease)) => (core, Some(prerelease)),
        None => (rest, None),
    };
    let numbers: Vec<_> = core.split('.').collect();
    numbers.len() == 3
        && numbers.into_iter().all(numeric)
        && prerelease.is_none_or(|text| {
            text.split('.')
                .all(|part| word(part) && (numeric(part) || part.bytes().any(|b| !b.is_ascii_digit())))
        })
        && build.is_none_or(|text| text.split('.').all(word))
}

fn capacity(capacity: &Value, shared: bool, path: &Path, errors: &mut Errors) {
    let Some(policy) = tree::get(capacity, "requestPolicy") else {
        return;
    };
    let path = path.child("requestPolicy");
    if !shared {
        errors.push(Error::forbidden(&path, "allowMultipleAllocations must be true"));
        return;
    }
    let values = !tree::items(policy, "validValues").is_empty();
    let range = tree::get(policy, "validRange");
    let field = match (values, range) {
        (true, Some(_)) => {
            errors.push(Error::forbidden(
                &path,
                "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time",
            ));
            return;
        }
        (true, None) => "validValues",
        (false, Some(_)) => "validRange",
        (false, None) => return,
    };
    if tree::get(policy, "default").is_none() {
        errors.push(Error::required(
            &path.child("default"),
            format!("required when {field} is defined"),
        ));
    } else if let Some(range) = range
        && tree::get(range, "min").is_none()
    {
        errors.push(Error::required(
            &path.child("validRange").child("min"),
            "required when validRange is defined",
        ));
    }
}

fn taint(taint: &Value, path: &Path, errors: &mut Errors) {
    named(
        &path.child("key"),
        tree::text(taint, "key"),
        api::qualified_name,
        errors,
    );
    let value = tree::text(taint, "value");
    if !value.is_empty() {
        named(&path.child("value"), value, api::label_value, errors);
    }
    match tree::text(taint, "effect") {
        "" => errors.push(Error::required(&path.child("effect"), "")),
        effect if EFFECTS.contains(&effect) => {}
        other => errors.push(Error::not_supported(&path.child("effect"), other, EFFECTS)),
    }
}

/// The conditions a Pod waits for before it is bound, and those that say it never will be.
fn binding(owner: &Value, path: &Path, errors: &mut Errors) {
    const FIELDS: [&str; 2] = ["bindingConditions", "bindingFailureConditions"];
    for name in FIELDS {
        list(
            owner,
            name,
            BINDING_CONDITIONS,
            path,
            errors,
            |condition, path, errors| {
                named(
                    path,
                    condition.as_str().unwrap_or_default(),
                    api::qualified_name,
                    errors,
                );
            },
        );
    }
    let [good, bad] = FIELDS.map(|name| tree::items(owner, name));
    for (name, conditions) in FIELDS.into_iter().zip([good, bad]) {
        for (index, condition) in conditions.iter().enumerate() {
            let path = path.child(name).index(index);
            if conditions[..index].contains(condition) {
                errors.push(Error::duplicate(&path, condition.clone()));
            }
            if name == FIELDS[1] && good.contains(condition) {
                errors.push(Error::invalid(
                    &path,
                    condition.clone(),
                    "bindingFailureConditions must not overlap with bindingConditions",
                ));
            }
        }
    }
    for (name, other, wrong) in [
        (FIELDS[0], FIELDS[1], good.is_empty() && !bad.is_empty()),
        (FIELDS[1], FIELDS[0], bad.is_empty() && !good.is_empty()),
    ] {
        if wrong {
            errors.push(Error::invalid(
                &path.child(name),
                tree::get(owner, name).cloned().unwrap_or_default(),
                format!("{name} are required to use {other}"),
            ));
        }
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
