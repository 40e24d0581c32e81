//! What every kind with Pods in it shares: defaults, validation and warnings of a PodSpec.

mod containers;
mod defaults;
mod probes;
pub(crate) mod quantities;
pub(crate) mod resources;
pub(crate) mod scheduling;
mod security;
pub(crate) mod validate;
mod volumes;
pub(crate) mod warnings;
mod windows;

pub(crate) use containers::image_spaces;
pub(crate) use defaults::default;

/// The lists of containers in a PodSpec.
pub(crate) const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
