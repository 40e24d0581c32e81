//! The rules of the resource allocation kinds.

use crate::rules::{RULES, Rules};

pub(super) static DEVICE_CLASS: Rules = Rules {
    generation: true,
    keeps_status: true,
    ..RULES
};
pub(super) static CLAIM: Rules = Rules { ..RULES };
pub(super) static CLAIM_TEMPLATE: Rules = Rules {
    keeps_status: true,
    ..RULES
};
pub(super) static SLICE: Rules = Rules {
    generation: true,
    keeps_status: true,
    ..RULES
};
