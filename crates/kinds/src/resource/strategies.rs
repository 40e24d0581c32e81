//! The rules of the resource allocation kinds.

use std::collections::BTreeSet;

use sampan_api::Object;
use serde_json::Value;

use super::{published, validate};
use crate::defaults::{Default, Fill};
use crate::rules::{RULES, Rules, Status};
use crate::spec::Part;
use crate::{names, tree};

pub(super) static DEVICE_CLASS: Rules = Rules {
    name: long_name,
    generation: true,
    status: Status::Plain,
    defaults: &[("spec", Fill::Map)],
    validate: validate::class,
    ..RULES
};
/// A DNS subdomain, in the words of upstream's newer checks: they count bytes.
fn long_name(name: &str, prefix: bool) -> Vec<String> {
    let counted = |why: String| match why.strip_suffix(" characters") {
        Some(rest) if why.starts_with("must be no more than") => format!("{rest} bytes"),
        _ => why,
    };
    names::subdomain(name, prefix).into_iter().map(counted).collect()
}

pub(super) static CLAIM: Rules = Rules {
    defaults: CLAIM_DEFAULTS,
    // A spec that cannot change is not judged again.
    validate_create: validate::claim,
    validate_update: validate::claim_update,
    update: devices_go_with_their_allocation,
    reset: crate::rules::status_keeps_metadata,
    ..RULES
};

/// What drivers said of devices that are allocated no more is dropped, so that whoever gives them back need not know of it.
fn devices_go_with_their_allocation(part: Part<'_>, new: &mut Object, old: &Object) {
    if part != Part::View("status") {
        return;
    }
    let allocated = |claim: &Object| -> BTreeSet<String> {
        let results = tree::items(claim, "status.allocation.devices.results");
        results.iter().map(validate::device_id).collect()
    };
    let (before, now) = (allocated(old), allocated(new));
    let Some(Value::Array(devices)) = tree::get_mut(new, "status.devices") else {
        return;
    };
    devices.retain(|device| {
        let id = validate::device_id(device);
        now.contains(&id) || !before.contains(&id)
    });
    if devices.is_empty() {
        tree::remove(new, "status.devices");
    }
}

const CLAIM_DEFAULTS: &[Default] = &[
    ("spec", Fill::Map),
    ("spec.devices", Fill::Map),
    (
        "spec.devices.requests[].exactly.allocationMode",
        Fill::Text("ExactCount"),
    ),
    (
        "spec.devices.requests[].exactly.tolerations[].operator",
        Fill::Text("Equal"),
    ),
    (
        "spec.devices.requests[].exactly(allocationMode=ExactCount).count",
        Fill::NonZero(1),
    ),
    (
        "spec.devices.requests[].firstAvailable[].allocationMode",
        Fill::Text("ExactCount"),
    ),
    (
        "spec.devices.requests[].firstAvailable[].tolerations[].operator",
        Fill::Text("Equal"),
    ),
    (
        "spec.devices.requests[].firstAvailable[](allocationMode=ExactCount).count",
        Fill::NonZero(1),
    ),
    ("status", Fill::Map),
    ("status.allocation.devices", Fill::Map),
];

pub(super) static CLAIM_TEMPLATE: Rules = Rules {
    status: Status::Plain,
    defaults: &[
        ("spec", Fill::Map),
        ("spec.metadata", Fill::Map),
        ("spec.spec", Fill::Map),
        ("spec.spec.devices", Fill::Map),
        (
            "spec.spec.devices.requests[].exactly.allocationMode",
            Fill::Text("ExactCount"),
        ),
        (
            "spec.spec.devices.requests[].exactly.tolerations[].operator",
            Fill::Text("Equal"),
        ),
        (
            "spec.spec.devices.requests[].exactly(allocationMode=ExactCount).count",
            Fill::NonZero(1),
        ),
        (
            "spec.spec.devices.requests[].firstAvailable[].allocationMode",
            Fill::Text("ExactCount"),
        ),
        (
            "spec.spec.devices.requests[].firstAvailable[].tolerations[].operator",
            Fill::Text("Equal"),
        ),
        (
            "spec.spec.devices.requests[].firstAvailable[](allocationMode=ExactCount).count",
            Fill::NonZero(1),
        ),
    ],
    validate: validate::template,
    validate_update: validate::spec_stays,
    ..RULES
};

pub(super) static SLICE: Rules = Rules {
    generation: true,
    status: Status::Plain,
    defaults: &[("spec.devices[].capacity{}.value", Fill::Text("0"))],
    default: taints_are_dated,
    validate_create: published::slice,
    validate_update: published::slice_update,
    ..RULES
};

/// A taint without a time was added now.
fn taints_are_dated(slice: &mut Object) {
    for device in tree::items_mut(slice, "spec.devices") {
        for taint in tree::items_mut(device, "taints") {
            if taint.is_object() && tree::get(taint, "timeAdded").is_none() {
                tree::set(taint, "timeAdded", sampan_api::time::now());
            }
        }
    }
}
