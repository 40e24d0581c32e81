//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: admission written in CEL by the cluster's administrators.
//!
//! Policies are compiled when they change ([`source`]); a request only evaluates. What matches is decided as for
//! webhooks ([`matching`]); evaluation is bounded per expression and per binding ([`evaluate`]).
//!
//! Differences from upstream: parameters are read from the watch cache, so there is no informer per kind of
//! parameter to wait for, and a policy that was answered is in force.

mod evaluate;
mod matching;
mod mutating;
mod params;
mod patches;
mod source;
mod validating;

pub use mutating::Mutating;
pub use validating::Validating;

use super::{Operation, Review};

/// Whether policies have a say: not in the server's own writes, not over what governs admission itself, and not
/// over questions that are only asked.
fn governed(review: &Review<'_>) -> bool {
    let spec = review.row.spec;
    if review.internal {
        return false;
    }
    match spec.group {
        "admissionregistration.k8s.io" => false,
        "authentication.k8s.io" | "authorization.k8s.io" => false,
        _ => review.operation != Operation::Connect || !review.subresource.is_empty(),
    }
}
