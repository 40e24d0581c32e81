//! Certificate requests: who may approve and sign for a signer, and whom no signer here makes a certificate for.

use async_trait::async_trait;
use base64::Engine;
use sampan_api::Object;
use sampan_auth::{Attributes, Authorizer, UserInfo};
use sampan_pki::Subject;

use super::{Notes, Operation, Plugin, Review, text};
use crate::Refusal;

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
const API_CLIENTS: &str = "kubernetes.io/kube-apiserver-client";

/// Whether a user has a right on a signer: on itself, or on all of its domain.
fn may(authorizer: &Authorizer, user: &UserInfo, verb: &str, signer: &str) -> bool {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    [signer, domain.as_str()].into_iter().any(|name| {
        authorizer.allows(&Attributes {
            version: "*",
            name,
            ..Attributes::resource(user, verb, GROUP, "signers")
        })
    })
}

/// CertificateApproval.
pub struct Approval(pub Authorizer);

#[async_trait]
impl Plugin for Approval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Update && review.row.is(GROUP, REQUESTS) && review.subresource == "approval"
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let (Some(object), Some(old)) = (object, review.old) else {
            return Ok(());
        };
        // The old one counts: whoever changes the signer while approving gains nothing.
        let signer = text(old, "/spec/signerName");
        if may(&self.0, review.user, "approve", signer) {
            return Ok(());
        }
        let why = format!("user not permitted to approve requests with signerName {signer:?}");
        Err(review.refuse(object, &why))
    }
}

/// CertificateSigning.
pub struct Signing(pub Authorizer);

#[async_trait]
impl Plugin for Signing {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Update && review.row.is(GROUP, REQUESTS) && review.subresource == "status"
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let (Some(object), Some(old)) = (object, review.old) else {
            return Ok(());
        };
        let same = |pointer: &str| object.pointer(pointer) == old.pointer(pointer);
        let signer = text(old, "/spec/signerName");
        if (same("/status/certificate") && same("/status/conditions")) || may(&self.0, review.user, "sign", signer) {
            return Ok(());
        }
        let why = format!("user not permitted to sign requests with signerName {signer:?}");
        Err(review.refuse(object, &why))
    }
}

/// CertificateSubjectRestriction: nobody becomes a master of the cluster by certificate request.
pub struct SubjectRestriction;

#[async_trait]
impl Plugin for SubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Create && review.row.is(GROUP, REQUESTS) && review.subresource.is_empty()
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let Some(object) = object.filter(|object| text(object, "/spec/signerName") == API_CLIENTS) else {
            return Ok(());
        };
        let pem = base64::engine::general_purpose::STANDARD
            .decode(text(object, "/spec/request"))
            .unwrap_or_default();
        let subject =
            Subject::of_request(&pem).map_err(|why| review.refuse(object, &format!("failed to parse CSR: {why}")))?;
        if subject.organizations.iter().any(|group| group == "system:masters") {
            let why = format!("use of {API_CLIENTS} signer with system:masters group is not allowed");
            return Err(review.refuse(object, &why));
        }
        Ok(())
    }
}
