//! What every kind with Pods in it shares: defaults and validation of a PodSpec.

mod defaults;
pub(crate) mod quantities;

pub(crate) use defaults::default;

/// The lists of containers in a PodSpec.
pub(crate) const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
