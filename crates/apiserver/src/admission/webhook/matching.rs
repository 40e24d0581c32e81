//! Whether a webhook is called for a request, and in which version it sees the object.

use std::sync::Arc;

use sampan_api::selector::LabelSelector;
use sampan_api::status::Status;
use sampan_api::{Object, meta};

use super::super::review::kind_of;
use super::super::{Operation, Reader, Review};
use super::config::{Hook, Rule};
use super::{as_held, in_version};
use crate::rows::{Row, Rows, Table};
use crate::{Refusal, refuse};

/// The configurations of admission themselves: no webhook may stand between a cluster and its repair.
pub fn is_exempt(review: &Review<'_>) -> bool {
    review.row.spec.group == "admissionregistration.k8s.io"
        && matches!(
            review.row.spec.kind,
            "ValidatingWebhookConfiguration"
                | "MutatingWebhookConfiguration"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
                | "MutatingAdmissionPolicy"
                | "MutatingAdmissionPolicyBinding"
        )
}

/// A webhook about to be called.
pub struct Invocation<'a> {
    pub hook: &'a Hook,
    own: &'a Row,
    /// Another version of the resource, if that is what the rule named.
    other: Option<Arc<Row>>,
}

/// The row a rule matched.
pub enum Matched {
    Own,
    Other(Arc<Row>),
}

impl Invocation<'_> {
    /// What the rule named: the request's own row, or another version of it.
    pub fn row(&self) -> &Row {
        self.other.as_deref().unwrap_or(self.own)
    }

    fn converts(&self, review: &Review<'_>, object: &Object) -> bool {
        let row = self.row();
        let elsewhere = row.custom.is_some() && meta::api_version(object) != row.api_version;
        review.is_whole() && (row.converts() || elsewhere)
    }

    /// The object as this webhook sees it, where that is not how it is stored.
    pub async fn shown(&self, review: &Review<'_>, object: Option<&Object>) -> Result<Option<Object>, Refusal> {
        match object {
            Some(object) if self.converts(review, object) => in_version(self.row(), object.clone()).await.map(Some),
            _ => Ok(None),
        }
    }

    /// The way back.
    pub async fn stored(&self, review: &Review<'_>, object: Object) -> Result<Object, Refusal> {
        let (row, own) = (self.row(), self.own);
        if review.is_whole() && (row.converts() || (row.custom.is_some() && self.other.is_some())) {
            as_held(row, own, object).await
        } else {
            Ok(object)
        }
    }

    /// Group, version and kind as the webhook sees them.
    pub fn kind(&self, review: &Review<'_>) -> (&'static str, &'static str, &'static str) {
        kind_of(self.row(), review.subresource)
    }
}

pub struct Match {
    reader: Reader,
    rows: Arc<Rows>,
}

impl Match {
    pub fn new(reader: Reader, rows: Arc<Rows>) -> Self {
        Match { reader, rows }
    }

    /// What of the request the webhook's rules name.
    pub fn by_rules(&self, hook: &Hook, review: &Review<'_>, row: &Row) -> Option<Matched> {
        let namespaced = !review.namespace.is_empty() && !row.is("", "namespaces");
        let names = |rule: &Rule, row: &Row| {
            let spec = row.spec;
            let resource = (spec.group, spec.version, spec.plural);
            rule.matches(review.operation, resource, review.subresource, namespaced)
        };
        if hook.rules.iter().any(|rule| names(rule, row)) {
            return Some(Matched::Own);
        }
        if !hook.equivalent || row.storage.is_none() {
            return None;
        }
        let table = self.rows.get();
        let others: Vec<&Arc<Row>> = equivalents(&table, row, review.subresource).collect();
        // Earlier rules first.
        hook.rules
            .iter()
            .find_map(|rule| others.iter().find(|other| names(rule, other)))
            .map(|other| Matched::Other((*other).clone()))
    }

    /// Whether the webhook is called. An error is one only if everything else matches.
    pub fn select<'a>(
        &self,
        hook: &'a Hook,
        review: &Review<'a>,
        object: Option<&Object>,
    ) -> Result<Option<Invocation<'a>>, Refusal> {
        let in_namespace = self.namespace_matches(hook, review, object);
        let selected = object_matches(hook, review, object);
        if matches!(in_namespace, Ok(false)) || matches!(selected, Ok(false)) {
            return Ok(None);
        }
        let other = match self.by_rules(hook, review, review.row) {
            None => return Ok(None),
            Some(Matched::Own) => None,
            Some(Matched::Other(row)) => Some(row),
        };
        in_namespace?;
        selected?;
        Ok(Some(Invocation {
            hook,
            own: review.row,
            other,
        }))
    }

    fn namespace_matches(&self, hook: &Hook, review: &Review<'_>, object: Option<&Object>) -> Result<bool, Refusal> {
        let is_namespaces = review.row.spec.plural == "namespaces";
        if review.namespace.is_empty() && !is_namespaces {
            return Ok(true);
        }
        let selector = usable(&hook.namespaces)?;
        if selector.is_empty() {
            return Ok(true);
        }
        let writes = matches!(review.operation, Operation::Create | Operation::Update);
        if is_namespaces && review.subresource.is_empty() && writes {
            // What is written counts, not what was.
            return Ok(object.is_some_and(|namespace| selector.matches(namespace)));
        }
        let namespace = self
            .reader
            .get("namespaces", review.namespace)
            .ok_or_else(|| refuse(Status::not_found("", "namespaces", review.namespace)))?;
        Ok(selector.matches(&namespace.object()))
    }
}

/// Either the new or the old object carries the labels.
fn object_matches(hook: &Hook, review: &Review<'_>, object: Option<&Object>) -> Result<bool, Refusal> {
    let selector = usable(&hook.objects)?;
    // What has no metadata has no labels to be selected by, not even by their absence.
    let carries = |object: &Object| object.get("metadata").is_some() && selector.matches(object);
    Ok(selector.is_empty() || object.is_some_and(carries) || review.old.is_some_and(carries))
}

fn usable(selector: &Result<LabelSelector, String>) -> Result<&LabelSelector, Refusal> {
    selector.as_ref().map_err(|why| refuse(Status::internal(why)))
}

/// Other rows over the same objects that have the same subresource.
fn equivalents<'a>(table: &'a Table, row: &'a Row, subresource: &'a str) -> impl Iterator<Item = &'a Arc<Row>> {
    table.rows.iter().filter(move |other| {
        let same = match (&other.storage, &row.storage) {
            (Some(other), Some(own)) => Arc::ptr_eq(other, own),
            _ => false,
        };
        let itself = (other.spec.group, other.spec.version) == (row.spec.group, row.spec.version);
        same && !itself && (subresource.is_empty() || other.spec.subresource(subresource).is_some())
    })
}
