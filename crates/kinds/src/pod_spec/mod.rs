//! What every kind with Pods in it shares: defaults and validation of a PodSpec.

use serde_json::Value;

/// Fills in the defaults of a PodSpec, in a Pod or in a template.
pub(crate) fn default(_spec: &mut Value) {}
