//! What upstream checks of the devices a driver publishes.
//!
//! Difference: the policies of shared capacity are checked as far as their shape goes.

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::Value;

use super::validate::{EFFECTS, driver, key_of, label, list, pool, required_label, set};
use crate::checks::{immutable, named};
use crate::pod_spec::scheduling::node_selector;
use crate::spec::Part;
use crate::{names, tree};

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

pub(super) fn fully_qualified(name: &str, path: &Path, errors: &mut Errors) {
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
pub(super) fn binding(owner: &Value, path: &Path, errors: &mut Errors) {
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
