//! Signs approved requests with the cluster's authority.
//!
//! A request that breaks its signer's rules is marked Failed; one that cannot be read at all is tried again as everything is.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest as Csr, CertificateSigningRequestCondition as Condition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, PostParams};
use sampan_pki::Present;
use sampan_pki::request::{Request, Signer};

use super::{certificate, condition, is_approved, rules, synced, unless_changed, usages, watch};
use crate::{Context, SyncError};

/// The shortest life of a certificate.
const LEAST: Duration = Duration::from_secs(600);

/// With what, and for how long at most, certificates are signed.
#[derive(Clone, Debug)]
pub struct Signing {
    pub signer: Present<Signer>,
    /// The life of a certificate that asks for none, and the longest.
    pub duration: Duration,
}

impl Signing {
    /// Upstream's default.
    pub const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
}

pub(crate) fn start(context: Context) {
    let Some(signing) = context.config.signing.clone() else {
        tracing::info!("no signing authority was given: certificate requests are not signed here");
        return;
    };
    let (requests, queue) = watch(&context, is_due);
    let state = Arc::new((context.clone(), requests.clone(), signing));
    context.run(&queue, synced(requests), move |key| {
        let state = Arc::clone(&state);
        async move {
            match state.1.get_key(&key) {
                Some(csr) if is_due(&csr) => sync(&state.0, &state.2, &csr).await,
                _ => Ok(()),
            }
        }
    });
}

fn is_due(csr: &Csr) -> bool {
    is_approved(csr) && certificate(csr).is_none() && condition(csr, "Failed").is_none()
}

fn lifetime(asked: Option<i32>, most: Duration) -> Duration {
    match asked.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))) {
        None => most,
        Some(asked) if asked > most => most,
        Some(asked) => asked.max(LEAST),
    }
}

async fn sync(context: &Context, signing: &Signing, csr: &Csr) -> Result<(), SyncError> {
    let name = csr.metadata.name.clone().unwrap_or_default();
    if ![
        rules::CLIENT,
        rules::KUBELET_CLIENT,
        rules::KUBELET_SERVING,
        rules::LEGACY,
    ]
    .contains(&csr.spec.signer_name.as_str())
    {
        return Ok(());
    }
    let request = Request::parse(&csr.spec.request.0);
    let request = request.map_err(|error| SyncError::other(format!("unable to parse csr {name:?}: {error}")))?;
    let Some(checked) = rules::check(&csr.spec.signer_name, &request, usages(csr)) else {
        return Ok(());
    };
    let now = context.clock.now();
    let mut new = csr.clone();
    let status = new.status.get_or_insert_default();
    match checked {
        Ok(()) => {
            let lifetime = lifetime(csr.spec.expiration_seconds, signing.duration);
            let signed = signing.signer.get().sign(&request, usages(csr), lifetime, now);
            let signed = signed.map_err(|error| SyncError::other(format!("error auto signing csr: {error}")))?;
            status.certificate = Some(ByteString(signed.into_bytes()));
        }
        Err(refusal) => status.conditions.get_or_insert_default().push(Condition {
            type_: "Failed".into(),
            status: "True".into(),
            reason: Some("SignerValidationFailure".into()),
            message: Some(refusal),
            last_update_time: Some(Time(now)),
            last_transition_time: Some(Time(now)),
        }),
    }
    let api: Api<Csr> = Api::all(context.client.clone());
    let written = api.replace_status(&name, &PostParams::default(), &new).await;
    unless_changed(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_bounded() {
        let most = Duration::from_secs(86_400);
        for (asked, seconds) in [
            (None, 86_400),
            (Some(3600), 3600),
            (Some(1), 600),
            (Some(i32::MAX), 86_400),
        ] {
            assert_eq!(lifetime(asked, most), Duration::from_secs(seconds));
        }
    }
}
