//! The table of built-in resources: what each one is called, how it prints, what may be asked of it,
//! and the [`Strategy`] with its defaults, validation and rules of change.
//!
//! The engine in `sampan-apiserver` is generic: it knows rows, never kinds. A custom resource definition
//! makes the same row at run time. Nothing here does I/O; whatever a rule needs to know of the rest of
//! the cluster belongs to admission or to the engine.
//!
//! Map: [`resources`] gathers the rows of the groups (one module each); a row names a `Rules` value, which is the
//! one implementation of [`Strategy`] and is made of tables (`defaults`, `checks`) and small functions.
//! `print` has the cell formats, `pod_spec` what every kind with a Pod template shares, `tree` and `path` read and
//! change JSON trees.

use std::sync::LazyLock;

mod admission;
mod apps;
mod autoscaling;
mod batch;
mod certificates;
mod checks;
mod conditions;
mod coordination;
pub mod core;
mod defaults;
mod diff;
mod discovery;
mod events;
mod extensions;
mod flowcontrol;
mod internal;
pub mod metrics;
mod names;
mod networking;
mod node;
mod path;
mod pod_spec;
mod policy;
mod print;
mod rbac;
mod resource;
mod reviews;
mod rules;
mod scheduling;
mod spec;
mod storage;
mod table;
mod tree;
mod volume_sources;
mod warnings;

pub use extensions::definition;
pub use spec::*;

/// Every built-in resource of Kubernetes 1.36 that is generally available, in the order discovery lists groups
/// (and, within a group, versions: the preferred one first).
pub fn resources() -> &'static [Resource] {
    // Immutable after it is built: the rows are constants, only their concatenation is not.
    static TABLE: LazyLock<Vec<Resource>> = LazyLock::new(|| {
        [
            core::RESOURCES,
            extensions::REGISTRATION_RESOURCES,
            apps::RESOURCES,
            events::RESOURCES,
            reviews::AUTHENTICATION_RESOURCES,
            reviews::AUTHORIZATION_RESOURCES,
            autoscaling::RESOURCES,
            batch::RESOURCES,
            certificates::RESOURCES,
            networking::RESOURCES,
            policy::RESOURCES,
            rbac::RESOURCES,
            storage::RESOURCES,
            admission::RESOURCES,
            extensions::EXTENSION_RESOURCES,
            scheduling::RESOURCES,
            coordination::RESOURCES,
            node::RESOURCES,
            discovery::RESOURCES,
            resource::RESOURCES,
            flowcontrol::RESOURCES,
        ]
        .concat()
    });
    &TABLE
}

/// The rows that the API server measures instead of storing: see [`metrics`].
pub fn measured() -> &'static [Resource] {
    metrics::RESOURCES
}

/// The row of a resource.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    resources()
        .iter()
        .find(|row| row.group == group && row.version == version && row.plural == plural)
}

/// The row a kind belongs to.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    resources()
        .iter()
        .find(|row| row.group == group && row.version == version && row.kind == kind)
}
