//! The plugins, one idea each. Reasons are worded as upstream words them.

pub mod dynamic_resources;
pub mod images;
pub mod node;
pub mod pod_affinity;
pub mod resources;
pub mod taints;
pub mod topology_spread;
pub mod volume_binding;
pub mod volume_limits;
pub mod volume_restrictions;
pub mod volume_zone;
pub mod volumes;
