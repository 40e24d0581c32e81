//! Reading API errors, and retrying writes that lost a race.

use std::future::Future;
use std::time::Duration;

use kube::Error;
use kube::core::Status;

fn status(error: &Error) -> Option<&Status> {
    match error {
        Error::Api(status) => Some(status),
        _ => None,
    }
}

pub fn is_not_found(error: &Error) -> bool {
    status(error).is_some_and(Status::is_not_found)
}

/// A write based on a stale version (409 Conflict), not a name already taken.
pub fn is_conflict(error: &Error) -> bool {
    status(error).is_some_and(|s| s.is_conflict() && !s.is_already_exists())
}

pub fn is_already_exists(error: &Error) -> bool {
    status(error).is_some_and(Status::is_already_exists)
}

pub fn is_forbidden(error: &Error) -> bool {
    status(error).is_some_and(Status::is_forbidden)
}

pub fn is_invalid(error: &Error) -> bool {
    status(error).is_some_and(Status::is_invalid)
}

/// 410: the version asked for is no longer kept.
pub fn is_gone(error: &Error) -> bool {
    status(error).is_some_and(|s| s.code == 410 || s.reason == "Expired" || s.reason == "Gone")
}

/// A create refused because the namespace is going away: no retry can help.
pub fn is_terminating_namespace(error: &Error) -> bool {
    status(error).is_some_and(|s| {
        s.is_forbidden()
            && s.details.as_ref().is_some_and(|details| {
                details
                    .causes
                    .iter()
                    .any(|cause| cause.reason == "NamespaceTerminating")
            })
    })
}

/// An object that is already gone is `None`, not an error.
pub fn or_absent<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Calls `write` up to five times while it ends in a conflict. `write` must read the object anew each time.
pub async fn retry_on_conflict<T, F, Fut>(mut write: F) -> kube::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = kube::Result<T>>,
{
    let mut pause = Duration::from_millis(10);
    for _ in 0..4 {
        match write().await {
            Err(error) if is_conflict(&error) => {
                tokio::time::sleep(pause.mul_f64(rand::random_range(1.0..1.5))).await;
                pause *= 2;
            }
            other => return other,
        }
    }
    write().await
}
