//! The rules of the resource allocation kinds.

use sampan_api::names as api;

use crate::checks::Rule;
use crate::defaults::{Default, Fill};
use crate::names;
use crate::rules::{RULES, Rules, Status};

pub(super) static DEVICE_CLASS: Rules = Rules {
    generation: true,
    status: Status::Plain,
    ..RULES
};
pub(super) static CLAIM: Rules = Rules {
    defaults: CLAIM_DEFAULTS,
    checks: &[
        ("spec.devices.requests[].name", Rule::RequiredNamed(api::dns1123_label)),
        (
            "spec.devices.requests[].exactly.deviceClassName",
            Rule::RequiredNamed(names::whole_subdomain),
        ),
        (
            "spec.devices.requests[].exactly.allocationMode",
            Rule::OneOf(&["All", "ExactCount"]),
        ),
        ("spec", Rule::Immutable),
    ],
    reset: crate::rules::status_keeps_metadata,
    ..RULES
};

const CLAIM_DEFAULTS: &[Default] = &[
    ("spec", Fill::Map),
    ("spec.devices", Fill::Map),
    (
        "spec.devices.requests[].exactly.allocationMode",
        Fill::Text("ExactCount"),
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
        "spec.devices.requests[].firstAvailable[](allocationMode=ExactCount).count",
        Fill::NonZero(1),
    ),
    ("status", Fill::Map),
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
            "spec.spec.devices.requests[].exactly(allocationMode=ExactCount).count",
            Fill::NonZero(1),
        ),
        (
            "spec.spec.devices.requests[].firstAvailable[].allocationMode",
            Fill::Text("ExactCount"),
        ),
        (
            "spec.spec.devices.requests[].firstAvailable[](allocationMode=ExactCount).count",
            Fill::NonZero(1),
        ),
    ],
    checks: &[("spec", Rule::Immutable)],
    ..RULES
};

pub(super) static SLICE: Rules = Rules {
    generation: true,
    status: Status::Plain,
    checks: &[
        ("spec.driver", Rule::RequiredNamed(names::whole_subdomain)),
        ("spec.pool.name", Rule::Required("")),
        ("spec.nodeName", Rule::Immutable),
        ("spec.driver", Rule::Immutable),
        ("spec.pool.name", Rule::Immutable),
    ],
    ..RULES
};
