//! The rules of roles and bindings.

use crate::defaults::{Default, Fill};
use crate::names;
use crate::rules::{RULES as PLAIN, Rules, Status};

const RBAC: Rules = Rules {
    name: names::path_segment,
    status: Status::Plain,
    create_on_update: true,
    ..PLAIN
};

pub(super) static ROLE: Rules = Rules { ..RBAC };
pub(super) static CLUSTER_ROLE: Rules = Rules { ..RBAC };
pub(super) static BINDING: Rules = Rules {
    defaults: BINDING_DEFAULTS,
    ..RBAC
};
pub(super) static CLUSTER_BINDING: Rules = Rules {
    defaults: BINDING_DEFAULTS,
    ..RBAC
};

const GROUP: &str = "rbac.authorization.k8s.io";

const BINDING_DEFAULTS: &[Default] = &[
    ("roleRef.apiGroup", Fill::Text(GROUP)),
    ("subjects[](kind=User).apiGroup", Fill::Text(GROUP)),
    ("subjects[](kind=Group).apiGroup", Fill::Text(GROUP)),
];
