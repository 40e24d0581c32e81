//! The rules of the workload kinds.

use crate::rules::{RULES, Rules};

const TEMPLATE: &str = "spec.template.spec";

pub(super) static CONTROLLER_REVISION: Rules = Rules {
    keeps_status: true,
    ..RULES
};
pub(super) static DAEMON_SET: Rules = Rules {
    generation: true,
    pod_spec: TEMPLATE,
    ..RULES
};
pub(super) static DEPLOYMENT: Rules = Rules {
    generation: true,
    pod_spec: TEMPLATE,
    ..RULES
};
pub(super) static REPLICA_SET: Rules = Rules {
    generation: true,
    pod_spec: TEMPLATE,
    ..RULES
};
pub(super) static STATEFUL_SET: Rules = Rules {
    generation: true,
    pod_spec: TEMPLATE,
    ..RULES
};
