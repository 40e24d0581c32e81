//! The way from a call into the admission chain and back.
//!
//! Admission works on the stored form of an object, except where the request is about something else: the Scale of
//! an object, a Binding, an Eviction, the options of a stream.

use sampan_api::{Object, meta as access};
use serde_json::Value;

use super::{Call, Registry, scale};
use crate::Refusal;
use crate::admission::{Notes, Operation, Options, Review};

impl Call {
    /// What admission sees of this call.
    fn review<'a>(
        &'a self,
        operation: Operation,
        name: &'a str,
        old: Option<&'a Object>,
        options: Options<'a>,
    ) -> Review<'a> {
        let namespace = if self.row.is("", "namespaces") {
            name
        } else {
            &self.info.namespace
        };
        Review {
            row: &self.row,
            operation,
            subresource: &self.info.subresource,
            namespace,
            name,
            user: &self.user,
            old,
            dry_run: options.dry_run(),
            options,
            internal: self.internal,
        }
    }
}

impl Registry {
    /// The mutating phase. `object` is null for a delete.
    pub(crate) async fn admit(
        &self,
        call: &mut Call,
        operation: Operation,
        object: &mut Object,
        old: Option<&Object>,
        options: Options<'_>,
    ) -> Result<(), Refusal> {
        let name = match operation {
            Operation::Create if call.info.name.is_empty() => access::name(object).to_owned(),
            _ => call.info.name.clone(),
        };
        let mut notes = std::mem::take(&mut call.notes);
        let result = match call.scale {
            Some(paths) => {
                let old = old.map(|old| scale::of_stored(call, old, &paths));
                let mut view = scale::of_stored(call, object, &paths);
                let before = view.clone();
                let result = self.mutate(call, operation, &name, &mut view, old.as_ref(), options, &mut notes);
                let result = result.await;
                if view != before {
                    let replicas = view.pointer("/spec/replicas").cloned().unwrap_or(Value::Null);
                    scale::set(object, paths.spec_replicas, replicas);
                }
                result
            }
            None => {
                self.mutate(call, operation, &name, object, old, options, &mut notes)
                    .await
            }
        };
        call.notes = notes;
        result
    }

    #[allow(clippy::too_many_arguments)]
    async fn mutate(
        &self,
        call: &Call,
        operation: Operation,
        name: &str,
        object: &mut Object,
        old: Option<&Object>,
        options: Options<'_>,
        notes: &mut Notes,
    ) -> Result<(), Refusal> {
        let review = call.review(operation, name, old, options);
        self.admission.mutate(&review, object, notes).await
    }

    /// The validating phase. `object` is absent for a delete.
    pub(crate) async fn validate(
        &self,
        call: &mut Call,
        operation: Operation,
        name: &str,
        object: Option<&Object>,
        old: Option<&Object>,
        options: Options<'_>,
    ) -> Result<(), Refusal> {
        let mut notes = std::mem::take(&mut call.notes);
        let scales = call.scale.map(|paths| {
            let of = |whole: &Object| scale::of_stored(call, whole, &paths);
            (object.map(of), old.map(of))
        });
        let (object, old) = match &scales {
            Some((object, old)) => (object.as_ref(), old.as_ref()),
            None => (object, old),
        };
        let review = call.review(operation, name, old, options);
        let result = self.admission.validate(&review, object, &mut notes).await;
        call.notes = notes;
        result
    }

    /// Both phases for an object that is not stored: a Binding, a review, the options of a stream.
    pub(crate) async fn admit_passing(
        &self,
        call: &mut Call,
        operation: Operation,
        object: &mut Object,
        options: Options<'_>,
    ) -> Result<(), Refusal> {
        self.admit(call, operation, object, None, options).await?;
        let name = match call.info.name.as_str() {
            "" => access::name(object).to_owned(),
            name => name.to_owned(),
        };
        self.validate(call, operation, &name, Some(object), None, options).await
    }
}
