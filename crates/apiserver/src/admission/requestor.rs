//! Who asked: certificate requests carry the identity of their author, set here and nowhere else.

use async_trait::async_trait;
use sampan_api::{Object, meta};
use serde_json::Value;

use super::{Notes, Operation, Plugin, Review};
use crate::Refusal;

pub struct Requestor;

#[async_trait]
impl Plugin for Requestor {
    fn name(&self) -> &'static str {
        "CertificateRequestor"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Create
            && review.subresource.is_empty()
            && review.row.is("certificates.k8s.io", "certificatesigningrequests")
    }

    async fn mutate(&self, review: &Review<'_>, request: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        let spec = meta::ensure_map(meta::ensure_map(request).entry("spec").or_insert(Value::Null));
        for field in ["username", "uid", "groups", "extra"] {
            spec.remove(field);
        }
        let user = review.user;
        spec.insert("username".into(), user.name.as_str().into());
        if !user.uid.is_empty() {
            spec.insert("uid".into(), user.uid.as_str().into());
        }
        if !user.groups.is_empty() {
            spec.insert("groups".into(), user.groups.clone().into());
        }
        if !user.extra.is_empty() {
            spec.insert(
                "extra".into(),
                user.extra
                    .iter()
                    .map(|(key, values)| (key.clone(), Value::from(values.clone())))
                    .collect(),
            );
        }
        Ok(())
    }
}
