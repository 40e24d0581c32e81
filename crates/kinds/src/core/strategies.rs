//! The rules of the simpler core kinds.

use crate::names;
use crate::rules::{RULES, Rules};

pub(super) static CONFIG_MAP: Rules = Rules {
    keeps_status: true,
    ..RULES
};
pub(super) static ENDPOINTS: Rules = Rules {
    keeps_status: true,
    create_on_update: true,
    ..RULES
};
pub(super) static LIMIT_RANGE: Rules = Rules {
    keeps_status: true,
    create_on_update: true,
    ..RULES
};
pub(super) static NAMESPACE: Rules = Rules {
    name: names::label,
    ..RULES
};
pub(super) static POD_TEMPLATE: Rules = Rules {
    generation: true,
    keeps_status: true,
    pod_spec: "template.spec",
    ..RULES
};
pub(super) static REPLICATION_CONTROLLER: Rules = Rules {
    generation: true,
    pod_spec: "spec.template.spec",
    ..RULES
};
pub(super) static RESOURCE_QUOTA: Rules = Rules { ..RULES };
pub(super) static SECRET: Rules = Rules {
    keeps_status: true,
    ..RULES
};
pub(super) static SERVICE_ACCOUNT: Rules = Rules {
    keeps_status: true,
    ..RULES
};
