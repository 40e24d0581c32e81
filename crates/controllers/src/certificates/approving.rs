//! Approves requests of nodes for client certificates: of machines that join with a token, and of nodes that renew.
//!
//! Who may is decided by authorization: the asker needs `create` on `certificatesigningrequests/nodeclient`, or, asking for the
//! name it already has, on `…/selfnodeclient`.

use std::sync::Arc;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest as Csr;
use kube::api::{Api, PostParams};
use sampan_pki::request::Request;

use super::{approve, is_open, rules, synced, usages, watch};
use crate::{Context, SyncError};

const SELF: (&str, &str) = (
    "selfnodeclient",
    "Auto approving self kubelet client certificate after SubjectAccessReview.",
);
const ANY: (&str, &str) = (
    "nodeclient",
    "Auto approving kubelet client certificate after SubjectAccessReview.",
);

pub(crate) fn start(context: Context) {
    let (requests, queue) = watch(&context, |csr| {
        is_open(csr) && csr.spec.signer_name == rules::KUBELET_CLIENT
    });
    let state = Arc::new((context.clone(), requests.clone()));
    context.run(&queue, synced(requests), move |key| {
        let state = Arc::clone(&state);
        async move {
            match state.1.get_key(&key) {
                Some(csr) => sync(&state.0, &csr).await,
                None => Ok(()),
            }
        }
    });
}

/// The permissions of which one is enough, with what an approval says.
fn permissions(csr: &Csr) -> Vec<(&'static str, &'static str)> {
    if !is_open(csr) || csr.spec.signer_name != rules::KUBELET_CLIENT {
        return Vec::new();
    }
    // What cannot be read stays open for a person to look at.
    let Ok(request) = Request::parse(&csr.spec.request.0) else {
        return Vec::new();
    };
    if rules::kubelet_client(&request, usages(csr)).is_err() {
        return Vec::new();
    }
    if csr.spec.username.as_deref() == Some(request.subject.common_name.as_str()) {
        vec![SELF, ANY]
    } else {
        vec![ANY]
    }
}

async fn sync(context: &Context, csr: &Csr) -> Result<(), SyncError> {
    let permissions = permissions(csr);
    if permissions.is_empty() {
        return Ok(());
    }
    for (permission, message) in &permissions {
        if may(context, csr, permission).await? {
            return approve(context, csr, "AutoApproved", message).await;
        }
    }
    // Tried again, later and later: rights may be given while it waits.
    let name = csr.metadata.name.as_deref().unwrap_or_default();
    let tried: Vec<&str> = permissions.iter().map(|(permission, _)| *permission).collect();
    Err(SyncError::other(format!(
        "recognized csr {name:?} as {tried:?} but subject access review was not approved"
    )))
}

async fn may(context: &Context, csr: &Csr, subresource: &str) -> Result<bool, SyncError> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: csr.spec.username.clone(),
            uid: csr.spec.uid.clone(),
            groups: csr.spec.groups.clone(),
            extra: csr.spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(subresource.into()),
                verb: Some("create".into()),
                version: Some("*".into()),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(context.client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
