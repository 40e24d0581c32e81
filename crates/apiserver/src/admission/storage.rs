//! Default classes: of storage for claims, of ingress for Ingresses.

use async_trait::async_trait;
use sampan_api::{Object, meta};

use super::{Notes, Operation, Plugin, Reader, Review, text};
use crate::Refusal;

/// The newest class marked as default, the smaller name among equals.
fn default_class(reader: &Reader, prefix: &str, annotations: &[&str]) -> Option<String> {
    let mut classes: Vec<Object> = reader
        .all(prefix)
        .iter()
        .map(|entry| entry.object())
        .filter(|class| {
            annotations
                .iter()
                .any(|key| meta::annotation(class, key) == Some("true"))
        })
        .collect();
    classes.sort_by(|a, b| {
        meta::creation_timestamp(b)
            .cmp(&meta::creation_timestamp(a))
            .then_with(|| meta::name(a).cmp(meta::name(b)))
    });
    classes.first().map(|class| meta::name(class).to_owned())
}

/// DefaultStorageClass.
pub struct DefaultStorageClass(Reader);

impl DefaultStorageClass {
    pub fn new(reader: Reader) -> Self {
        DefaultStorageClass(reader)
    }
}

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Create && review.is_core("persistentvolumeclaims")
    }

    async fn mutate(&self, _: &Review<'_>, claim: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        let stated = claim
            .pointer("/spec/storageClassName")
            .is_some_and(|name| !name.is_null())
            || meta::annotation(claim, "volume.beta.kubernetes.io/storage-class").is_some();
        if stated {
            return Ok(());
        }
        let marks = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        if let Some(name) = default_class(&self.0, "storageclasses", &marks) {
            claim["spec"]["storageClassName"] = name.into();
        }
        Ok(())
    }
}

/// DefaultIngressClass.
pub struct DefaultIngressClass(Reader);

impl DefaultIngressClass {
    pub fn new(reader: Reader) -> Self {
        DefaultIngressClass(reader)
    }
}

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Create && review.row.is("networking.k8s.io", "ingresses")
    }

    async fn mutate(&self, _: &Review<'_>, ingress: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        let stated = !text(ingress, "/spec/ingressClassName").is_empty()
            || meta::annotation(ingress, "kubernetes.io/ingress.class").is_some();
        if stated {
            return Ok(());
        }
        if let Some(name) = default_class(
            &self.0,
            "ingressclasses",
            &["ingressclass.kubernetes.io/is-default-class"],
        ) {
            ingress["spec"]["ingressClassName"] = name.into();
        }
        Ok(())
    }
}
