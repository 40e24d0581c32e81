//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: admission written in CEL by the cluster's administrators.
//!
//! Policies are compiled when they change ([`source`]); a request only evaluates. What matches is decided as for
//! webhooks ([`super::matching`]); evaluation is bounded per expression and per binding ([`evaluate`]).
//!
//! Differences from upstream: parameters are read from the watch cache, so there is no informer per kind of
//! parameter to wait for, and a policy that was answered is in force.

mod evaluate;
mod mutating;
mod params;
mod patches;
mod source;
mod validating;

pub use mutating::Mutating;
pub use validating::Validating;

use sampan_api::Object;

use super::Review;
use super::matching::{Matched, Matcher};
use source::{Active, Binding, Policy};

/// Whether policies have a say: not in the server's own writes, not over what governs admission itself, and not
/// over questions that are only asked.
fn governed(review: &Review<'_>) -> bool {
    !review.internal
        && !matches!(
            review.row.spec.group,
            "admissionregistration.k8s.io" | "authentication.k8s.io" | "authorization.k8s.io"
        )
}

/// In which version a policy sees the request, if it does.
fn constrained(
    policy: &Policy,
    review: &Review<'_>,
    object: Option<&Object>,
    matcher: &Matcher,
) -> Result<Option<Matched>, String> {
    let matched = matcher
        .select(&policy.criteria, review, object)
        .map_err(|refusal| refusal.message)?;
    if matched.is_some() {
        params::check(policy.params.as_ref(), matcher.rows())?;
    }
    Ok(matched)
}

/// The parameters a binding evaluates a policy with: none if it is not about the request.
async fn bound(
    Active { policy, .. }: &Active,
    binding: &Binding,
    review: &Review<'_>,
    object: Option<&Object>,
    matcher: &Matcher,
) -> Result<Vec<Object>, String> {
    if let Some(criteria) = &binding.criteria
        && matcher
            .select(criteria, review, object)
            .map_err(|refusal| refusal.message)?
            .is_none()
    {
        return Ok(Vec::new());
    }
    params::collect(policy.params.as_ref(), binding.params.as_ref(), review, matcher.rows()).await
}
