//! Whether a request is any of a webhook's or a policy's business, in which version it sees the objects, and what
//! it is told of the request: one copy for webhooks, policies and their bindings.
//!
//! A selector that cannot be evaluated counts only if everything else matches. Rules that name the request itself
//! come first; then, unless only exact matches are wanted, those that name another version of the same objects.

mod asker;
mod conditions;
mod request;
mod rules;

use std::borrow::Cow;
use std::sync::Arc;

use sampan_api::codec::{self, printed};
use sampan_api::schema::{self, Type};
use sampan_api::selector::LabelSelector;
use sampan_api::status::Status;
use sampan_api::{Object, meta};
use serde_json::Value;

pub use asker::Asker;
pub use conditions::Conditions;
pub use request::{Request, activation};
use rules::Rule;

use super::review::kind_of;
use super::{Operation, Reader, Review, text};
use crate::rows::{Row, Rows, Table};
use crate::{Refusal, refuse};

/// What somebody wants to see.
pub struct Criteria {
    /// `None`: everything.
    rules: Option<Vec<Rule>>,
    exclude: Vec<Rule>,
    namespaces: Result<LabelSelector, String>,
    objects: Result<LabelSelector, String>,
    /// Whether other versions of what a rule names match as well.
    equivalent: bool,
}

impl Criteria {
    /// Of a webhook: without rules it sees nothing.
    pub fn of_webhook(hook: &Value) -> Self {
        Criteria {
            rules: Some(Rule::list(hook, "rules")),
            ..Self::of(hook)
        }
    }

    /// `matchConstraints` or `matchResources`: without rules everything is seen.
    pub fn of_policy(criteria: &Value) -> Self {
        let rules = Rule::list(criteria, "resourceRules");
        Criteria {
            rules: (!rules.is_empty()).then_some(rules),
            ..Self::of(criteria)
        }
    }

    fn of(value: &Value) -> Self {
        let selector = |field: &str| match value.get(field) {
            None | Some(Value::Null) => Ok(LabelSelector::everything()),
            Some(selector) => LabelSelector::from_value(selector).map_err(|error| error.to_string()),
        };
        Criteria {
            rules: None,
            exclude: Rule::list(value, "excludeResourceRules"),
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
            equivalent: text(value, "/matchPolicy") != "Exact",
        }
    }
}

/// The version in which objects are seen.
#[derive(Clone)]
pub enum Matched {
    /// The request's own.
    Own,
    Other(Arc<Row>),
}

/// Why a changed object is no object of its kind.
#[derive(Debug, thiserror::Error)]
pub enum Misfit {
    #[error("attempted to change the object's {0}")]
    Renamed(&'static str),
    #[error("{0}")]
    Mistyped(String),
}

impl Matched {
    pub fn row<'r>(&'r self, review: &'r Review<'_>) -> &'r Row {
        match self {
            Matched::Own => review.row,
            Matched::Other(row) => row,
        }
    }

    /// Group, version and kind as they are seen.
    pub fn kind(&self, review: &Review<'_>) -> (&'static str, &'static str, &'static str) {
        kind_of(self.row(review), review.subresource)
    }

    /// An object as admission holds it (built-in kinds as they are stored, custom ones in the version of the
    /// request) in this version, with the zeros Go prints. May have to ask somebody.
    pub async fn shown<'o>(
        &self,
        review: &Review<'_>,
        object: Option<&'o Object>,
    ) -> Result<Option<Cow<'o, Object>>, Refusal> {
        let Some(object) = object else { return Ok(None) };
        let row = self.row(review);
        match &row.custom {
            _ if !review.is_whole() => {}
            Some(custom) if meta::api_version(object) != row.api_version => {
                return custom
                    .view
                    .of_any(object.clone())
                    .await
                    .map(|shown| Some(Cow::Owned(shown)));
            }
            Some(_) => return Ok(Some(Cow::Borrowed(object))),
            None => {}
        }
        let mut shown = object.clone();
        if review.is_whole() {
            row.from_storage(&mut shown);
        }
        printed::settle(&mut shown);
        Ok(Some(Cow::Owned(shown)))
    }

    /// The way back.
    pub async fn held(&self, review: &Review<'_>, mut object: Object) -> Result<Object, Refusal> {
        let row = self.row(review);
        match &review.row.custom {
            _ if !review.is_whole() => {}
            Some(custom) if meta::api_version(&object) != review.row.api_version => {
                return custom.view.of_any(object).await;
            }
            None => row.to_storage(&mut object),
            _ => {}
        }
        Ok(object)
    }

    /// What an object in this version looks like.
    pub fn type_of(&self, review: &Review<'_>) -> Type {
        if review.is_whole() {
            return self.row(review).ty.clone();
        }
        let (group, version, kind) = self.kind(review);
        let schema = schema::builtin();
        schema
            .kind(group, version, kind)
            .and_then(|definition| schema.type_of(&definition.name))
            .unwrap_or(Type::Json)
    }

    /// Makes a changed object what decoding would have left of it: of the same kind, of the right types, nothing
    /// unknown in it, defaults filled in. What was unknown is told.
    pub fn conform(&self, review: &Review<'_>, before: &Object, new: &mut Object) -> Result<Vec<String>, Misfit> {
        for field in ["kind", "apiVersion"] {
            if new.get(field) != before.get(field) {
                return Err(Misfit::Renamed(field));
            }
        }
        let findings = codec::check(&self.type_of(review), new).map_err(|error| Misfit::Mistyped(error.to_string()))?;
        if review.is_whole() {
            self.row(review).default(new);
        }
        Ok(findings.unknown)
    }
}

/// Matches requests against criteria.
#[derive(Clone)]
pub struct Matcher {
    reader: Reader,
    rows: Arc<Rows>,
}

impl Matcher {
    pub fn new(reader: Reader, rows: Arc<Rows>) -> Self {
        Matcher { reader, rows }
    }

    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// What of the request the rules name. Cheap: selectors are not looked at.
    pub fn by_rules(&self, criteria: &Criteria, review: &Review<'_>) -> Option<Matched> {
        let named = |rules: &[Rule]| self.named(rules, criteria.equivalent, review);
        if !criteria.exclude.is_empty() && named(&criteria.exclude).is_some() {
            return None;
        }
        criteria.rules.as_ref().map_or(Some(Matched::Own), |rules| named(rules))
    }

    fn named(&self, rules: &[Rule], equivalent: bool, review: &Review<'_>) -> Option<Matched> {
        if rules.iter().any(|rule| rule.names(review, review.row)) {
            return Some(Matched::Own);
        }
        if !equivalent || review.row.storage.is_none() {
            return None;
        }
        let table = self.rows.get();
        let others: Vec<&Arc<Row>> = equivalents(&table, review).collect();
        // Earlier rules first.
        rules
            .iter()
            .find_map(|rule| others.iter().find(|other| rule.names(review, other)))
            .map(|other| Matched::Other((*other).clone()))
    }

    /// Whether a request is seen, and in which version.
    pub fn select(
        &self,
        criteria: &Criteria,
        review: &Review<'_>,
        object: Option<&Object>,
    ) -> Result<Option<Matched>, Refusal> {
        let in_namespace = self.in_namespace(criteria, review, object);
        let selected = is_selected(criteria, review, object);
        if matches!(in_namespace, Ok(false)) || matches!(selected, Ok(false)) {
            return Ok(None);
        }
        let Some(matched) = self.by_rules(criteria, review) else {
            return Ok(None);
        };
        in_namespace?;
        selected?;
        Ok(Some(matched))
    }

    fn in_namespace(&self, criteria: &Criteria, review: &Review<'_>, object: Option<&Object>) -> Result<bool, Refusal> {
        let is_namespace = review.row.is("", "namespaces");
        if review.namespace.is_empty() && !is_namespace {
            return Ok(true);
        }
        let selector = usable(&criteria.namespaces)?;
        if selector.is_empty() {
            return Ok(true);
        }
        let writes = matches!(review.operation, Operation::Create | Operation::Update);
        if is_namespace && review.subresource.is_empty() && writes {
            // What is written counts, not what was.
            return Ok(object.is_some_and(|namespace| selector.matches(namespace)));
        }
        Ok(selector.matches(&self.namespace_named(review.namespace)?))
    }

    /// The Namespace a request is in; none for Namespaces themselves and for what is in none.
    pub fn namespace(&self, review: &Review<'_>) -> Result<Option<Object>, Refusal> {
        if review.namespace.is_empty() || review.row.is("", "namespaces") {
            return Ok(None);
        }
        self.namespace_named(review.namespace).map(Some)
    }

    fn namespace_named(&self, name: &str) -> Result<Object, Refusal> {
        self.reader
            .get("namespaces", name)
            .map(|entry| entry.object())
            .ok_or_else(|| refuse(Status::not_found("", "namespaces", name)))
    }
}

/// Either the new or the old object carries the labels.
fn is_selected(criteria: &Criteria, review: &Review<'_>, object: Option<&Object>) -> Result<bool, Refusal> {
    let selector = usable(&criteria.objects)?;
    // What has no metadata has no labels to be selected by, not even by their absence.
    let carries = |object: &Object| object.get("metadata").is_some() && selector.matches(object);
    Ok(selector.is_empty() || object.is_some_and(carries) || review.old.is_some_and(carries))
}

fn usable(selector: &Result<LabelSelector, String>) -> Result<&LabelSelector, Refusal> {
    selector.as_ref().map_err(|why| refuse(Status::internal(why)))
}

/// Other rows over the same objects that have the same subresource.
fn equivalents<'t>(table: &'t Table, review: &'t Review<'_>) -> impl Iterator<Item = &'t Arc<Row>> {
    let (row, subresource) = (review.row, review.subresource);
    table.rows.iter().filter(move |other| {
        let same = match (&other.storage, &row.storage) {
            (Some(other), Some(own)) => Arc::ptr_eq(other, own),
            _ => false,
        };
        let itself = (other.spec.group, other.spec.version) == (row.spec.group, row.spec.version);
        same && !itself && (subresource.is_empty() || other.spec.subresource(subresource).is_some())
    })
}
