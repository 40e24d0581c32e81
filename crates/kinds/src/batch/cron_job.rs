//! CronJobs.

use crate::rules::{RULES as PLAIN, Rules};

pub(super) static RULES: Rules = Rules {
    generation: true,
    pod_spec: "spec.jobTemplate.spec.template.spec",
    ..PLAIN
};
