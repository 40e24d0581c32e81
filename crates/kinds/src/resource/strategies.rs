//! The rules of the resource allocation kinds.

use crate::defaults::{Default, Fill};
use crate::rules::{RULES, Rules, Status};

pub(super) static DEVICE_CLASS: Rules = Rules {
    generation: true,
    status: Status::Plain,
    ..RULES
};
pub(super) static CLAIM: Rules = Rules {
    defaults: CLAIM_DEFAULTS,
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
    ..RULES
};

pub(super) static SLICE: Rules = Rules {
    generation: true,
    status: Status::Plain,
    ..RULES
};
