//! Removes old requests: answered ones after an hour, unanswered ones after a day, and those whose certificate has expired.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest as Csr;
use kube::api::{Api, DeleteParams, Preconditions};
use sampan_client::{Key, WorkQueue};
use sampan_pki::request::expiry;

use super::{certificate, condition, synced, unless_changed, watch};
use crate::pods::delay;
use crate::{Context, SyncError};

const ANSWERED: SignedDuration = SignedDuration::from_hours(1);
const WAITING: SignedDuration = SignedDuration::from_hours(24);

pub(crate) fn start(context: Context) {
    let (requests, queue) = watch(&context, |_| true);
    let state = Arc::new((context.clone(), requests.clone(), queue.clone()));
    context.run(&queue, synced(requests), move |key| {
        let state = Arc::clone(&state);
        async move {
            match state.1.get_key(&key) {
                Some(csr) => sync(&state.0, &state.2, key, &csr).await,
                None => Ok(()),
            }
        }
    });
}

/// When a request may go.
fn expires(csr: &Csr) -> Option<Timestamp> {
    let after = |kind: &str, wait: SignedDuration| {
        let at = condition(csr, kind)?.last_update_time.as_ref()?.0;
        at.checked_add(wait).ok()
    };
    let conditions = csr.status.as_ref().and_then(|status| status.conditions.as_ref());
    let waiting = || csr.metadata.creation_timestamp.as_ref()?.0.checked_add(WAITING).ok();
    let issued = certificate(csr);
    [
        after("Denied", ANSWERED),
        after("Failed", ANSWERED),
        after("Approved", if issued.is_some() { ANSWERED } else { WAITING }),
        conditions.is_none_or(Vec::is_empty).then(waiting).flatten(),
        issued.filter(|_| condition(csr, "Approved").is_some()).and_then(expiry),
    ]
    .into_iter()
    .flatten()
    .min()
}

async fn sync(context: &Context, queue: &WorkQueue<Key>, key: Key, csr: &Csr) -> Result<(), SyncError> {
    let Some(at) = expires(csr).filter(|_| csr.metadata.deletion_timestamp.is_none()) else {
        return Ok(());
    };
    let left = at.duration_since(context.clock.now());
    if !left.is_negative() {
        queue.add_after(key, delay(left + SignedDuration::from_secs(1)));
        return Ok(());
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: csr.metadata.uid.clone(),
            resource_version: csr.metadata.resource_version.clone(),
        }),
        ..DeleteParams::default()
    };
    let api: Api<Csr> = Api::all(context.client.clone());
    unless_changed(api.delete(&key.name, &params).await)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    fn csr(status: serde_json::Value) -> Csr {
        serde_json::from_value(json!({
            "metadata": {"name": "r", "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"request": "", "signerName": rules(), "usages": ["client auth"]}, "status": status
        }))
        .unwrap()
    }

    fn rules() -> &'static str {
        super::super::rules::CLIENT
    }

    #[test]
    fn when_requests_go() {
        let approved = |kind: &str| json!({"conditions": [{"type": kind, "status": "True", "lastUpdateTime": "2030-01-01T01:00:00Z"}]});
        let at = |csr: &Csr| expires(csr).map(|at| at.to_string());
        assert_eq!(at(&csr(json!({}))).as_deref(), Some("2030-01-02T00:00:00Z"));
        assert_eq!(at(&csr(approved("Denied"))).as_deref(), Some("2030-01-01T02:00:00Z"));
        assert_eq!(at(&csr(approved("Failed"))).as_deref(), Some("2030-01-01T02:00:00Z"));
        assert_eq!(at(&csr(approved("Approved"))).as_deref(), Some("2030-01-02T01:00:00Z"));
        let mut issued = csr(approved("Approved"));
        issued.status.as_mut().unwrap().certificate = Some(ByteString(b"not a certificate".to_vec()));
        assert_eq!(at(&issued).as_deref(), Some("2030-01-01T02:00:00Z"));
    }
}
