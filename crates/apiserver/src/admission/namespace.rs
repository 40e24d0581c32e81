//! NamespaceLifecycle: nothing is created in a namespace that is missing or going, and some stay forever.

use async_trait::async_trait;
use sampan_api::Object;
use sampan_api::status::{Cause, Status};

use super::{Notes, Operation, Plugin, Reader, Review, text};
use crate::{Refusal, refuse};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct Lifecycle(Reader);

impl Lifecycle {
    pub fn new(reader: Reader) -> Self {
        Lifecycle(reader)
    }
}

#[async_trait]
impl Plugin for Lifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        match review.operation {
            Operation::Delete => review.is_core("namespaces") && IMMORTAL.contains(&review.name),
            // Asking about a namespace that does not exist is fine.
            Operation::Create | Operation::Update => {
                review.row.spec.namespaced && review.row.spec.plural != "localsubjectaccessreviews"
            }
            Operation::Connect => false,
        }
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        if review.operation == Operation::Delete {
            return Ok(());
        }
        let Some(namespace) = self.0.get("namespaces", review.namespace) else {
            return Err(refuse(Status::not_found("", "namespaces", review.namespace)));
        };
        if review.operation != Operation::Create {
            return Ok(());
        }
        // Every namespace has a status. Where none is found at a glance, somebody else wrote the bytes in another way.
        let terminating = match namespace.at(&["status"]) {
            Some(status) => text(&status, "/phase") == "Terminating",
            None => text(&namespace.tree(), "/status/phase") == "Terminating",
        };
        if !terminating
            && namespace
                .at(&["metadata", "deletionTimestamp"])
                .is_none_or(|time| time.is_null())
        {
            return Ok(());
        }
        let mut status = review.forbid(
            Some(object),
            &format!(
                "unable to create new content in namespace {} because it is being terminated",
                review.namespace
            ),
        );
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {} is being terminated", review.namespace),
                field: "metadata.namespace".into(),
            });
        }
        Err(refuse(status))
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        if review.operation == Operation::Delete {
            return Err(refuse(review.forbid(object, "this namespace may not be deleted")));
        }
        Ok(())
    }
}
