//! The rules of the networking kinds.

use crate::names;
use crate::rules::{RULES, Rules};

pub(super) static INGRESS_CLASS: Rules = Rules {
    generation: true,
    keeps_status: true,
    ..RULES
};
pub(super) static INGRESS: Rules = Rules {
    generation: true,
    ..RULES
};
pub(super) static IP_ADDRESS: Rules = Rules {
    name: names::ip_address,
    keeps_status: true,
    ..RULES
};
pub(super) static NETWORK_POLICY: Rules = Rules {
    generation: true,
    keeps_status: true,
    ..RULES
};
pub(super) static SERVICE_CIDR: Rules = Rules { ..RULES };
