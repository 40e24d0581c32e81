//! What may be configured: upstream's `KubeSchedulerConfiguration`.

pub mod args;
