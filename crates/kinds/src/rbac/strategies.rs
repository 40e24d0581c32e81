//! The rules of roles and bindings.

use crate::names;
use crate::rules::{RULES as PLAIN, Rules};

const RBAC: Rules = Rules {
    name: names::path_segment,
    keeps_status: true,
    create_on_update: true,
    ..PLAIN
};

pub(super) static ROLE: Rules = Rules { ..RBAC };
pub(super) static CLUSTER_ROLE: Rules = Rules { ..RBAC };
pub(super) static BINDING: Rules = Rules { ..RBAC };
pub(super) static CLUSTER_BINDING: Rules = Rules { ..RBAC };
