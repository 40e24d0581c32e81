//! Jobs.

use crate::rules::{RULES as PLAIN, Rules};
use crate::spec::Propagation;

pub(super) static RULES: Rules = Rules {
    generation: true,
    pod_spec: "spec.template.spec",
    propagation: Propagation::Orphan,
    ..PLAIN
};
