//! What a policy or a binding is about.

use std::sync::Arc;

use sampan_api::Object;
use sampan_api::selector::LabelSelector;
use sampan_api::status::Status;
use serde_json::Value;

use crate::admission::{Operation, Reader, Review, text};
use crate::rows::{Row, Rows};

/// `matchConstraints` or `matchResources`.
pub struct Criteria {
    rules: Vec<Rule>,
    exclude: Vec<Rule>,
    namespaces: Result<LabelSelector, String>,
    objects: Result<LabelSelector, String>,
    equivalent: bool,
}

struct Rule {
    names: Vec<String>,
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Resource and subresource.
    resources: Vec<(String, String)>,
    scope: Option<bool>,
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    let items = value.get(field).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Rule {
    fn of(rule: &Value) -> Rule {
        let split = |resource: String| match resource.split_once('/') {
            Some((resource, sub)) => (resource.to_owned(), sub.to_owned()),
            None => (resource, String::new()),
        };
        Rule {
            names: texts(rule, "resourceNames"),
            operations: texts(rule, "operations"),
            groups: texts(rule, "apiGroups"),
            versions: texts(rule, "apiVersions"),
            resources: texts(rule, "resources").into_iter().map(split).collect(),
            scope: match text(rule, "/scope") {
                "Cluster" => Some(false),
                "Namespaced" => Some(true),
                _ => None,
            },
        }
    }

    fn matches(&self, review: &Review<'_>, row: &Row) -> bool {
        let any = |wanted: &[String], asked: &str| wanted.iter().any(|wanted| wanted == "*" || wanted == asked);
        let namespaced = !review.namespace.is_empty() && !row.is("", "namespaces");
        let spec = row.spec;
        self.scope.is_none_or(|wanted| wanted == namespaced)
            && any(&self.operations, review.operation.name())
            && any(&self.groups, spec.group)
            && any(&self.versions, spec.version)
            && self.resources.iter().any(|(resource, sub)| {
                (resource == "*" || resource == spec.plural) && (sub == "*" || sub == review.subresource)
            })
            && (self.names.is_empty() || self.names.iter().any(|name| name == review.name))
    }
}

fn selector(of: &Value, field: &str) -> Result<LabelSelector, String> {
    match of.get(field) {
        None | Some(Value::Null) => Ok(LabelSelector::everything()),
        Some(selector) => LabelSelector::from_value(selector).map_err(|error| error.to_string()),
    }
}

/// The row that matched: the request's own, or another version of it.
#[derive(Clone)]
pub enum Matched {
    Own,
    Other(Arc<Row>),
}

impl Matched {
    pub fn row<'r>(&'r self, review: &'r Review<'_>) -> &'r Row {
        match self {
            Matched::Own => review.row,
            Matched::Other(row) => row,
        }
    }

    fn converts(&self, review: &Review<'_>) -> bool {
        review.is_whole() && self.row(review).converts()
    }

    /// The object as the policy sees it, if that is not how admission holds it.
    pub fn shown(&self, review: &Review<'_>, object: &Object) -> Option<Object> {
        self.converts(review).then(|| {
            let mut shown = object.clone();
            self.row(review).from_storage(&mut shown);
            shown
        })
    }

    /// The way back.
    pub fn stored(&self, review: &Review<'_>, object: &mut Object) {
        if self.converts(review) {
            self.row(review).to_storage(object);
        }
    }
}

impl Criteria {
    /// `None` matches everything.
    pub fn of(criteria: Option<&Value>) -> Criteria {
        let nothing = Value::Null;
        let criteria = criteria.unwrap_or(&nothing);
        let rules = |field: &str| {
            let rules = criteria.get(field).and_then(Value::as_array).into_iter().flatten();
            rules.map(Rule::of).collect()
        };
        Criteria {
            rules: rules("resourceRules"),
            exclude: rules("excludeResourceRules"),
            namespaces: selector(criteria, "namespaceSelector"),
            objects: selector(criteria, "objectSelector"),
            equivalent: text(criteria, "/matchPolicy") == "Equivalent",
        }
    }

    /// An error counts only if everything else matches.
    pub fn matches(
        &self,
        review: &Review<'_>,
        object: Option<&Object>,
        reader: &Reader,
        rows: &Rows,
    ) -> Result<Option<Matched>, String> {
        let in_namespace = self.namespace(review, object, reader);
        let selected = self.object(review, object);
        if matches!(in_namespace, Ok(false)) || matches!(selected, Ok(false)) {
            return Ok(None);
        }
        if self.by_rules(&self.exclude, review, rows).is_some() {
            return Ok(None);
        }
        let matched = if self.rules.is_empty() {
            Some(Matched::Own)
        } else {
            self.by_rules(&self.rules, review, rows)
        };
        if matched.is_some() {
            in_namespace?;
            selected?;
        }
        Ok(matched)
    }

    fn by_rules(&self, rules: &[Rule], review: &Review<'_>, rows: &Rows) -> Option<Matched> {
        if rules.iter().any(|rule| rule.matches(review, review.row)) {
            return Some(Matched::Own);
        }
        let own = review
            .row
            .storage
            .as_ref()
            .filter(|_| self.equivalent && !rules.is_empty())?;
        let table = rows.get();
        let others: Vec<&Arc<Row>> = table
            .rows
            .iter()
            .filter(|other| {
                let same = other.storage.as_ref().is_some_and(|storage| Arc::ptr_eq(storage, own));
                let key = |row: &Row| (row.spec.group, row.spec.version);
                same && key(other) != key(review.row)
                    && (review.subresource.is_empty() || other.spec.subresource(review.subresource).is_some())
            })
            .collect();
        rules
            .iter()
            .find_map(|rule| others.iter().find(|other| rule.matches(review, other)))
            .map(|other| Matched::Other((*other).clone()))
    }

    fn namespace(&self, review: &Review<'_>, object: Option<&Object>, reader: &Reader) -> Result<bool, String> {
        let is_namespaces = review.row.is("", "namespaces");
        let selector = self.namespaces.as_ref().map_err(Clone::clone)?;
        if selector.is_empty() || (review.namespace.is_empty() && !is_namespaces) {
            return Ok(true);
        }
        let writes = matches!(review.operation, Operation::Create | Operation::Update);
        if is_namespaces && review.subresource.is_empty() && writes {
            return Ok(object.is_some_and(|namespace| selector.matches(namespace)));
        }
        match reader.get("namespaces", review.namespace) {
            Some(namespace) => Ok(selector.matches(&namespace.object())),
            None => Err(Status::not_found("", "namespaces", review.namespace).message),
        }
    }

    /// Either the new or the old object carries the labels.
    fn object(&self, review: &Review<'_>, object: Option<&Object>) -> Result<bool, String> {
        let selector = self.objects.as_ref().map_err(Clone::clone)?;
        let carries = |object: &Object| object.get("metadata").is_some() && selector.matches(object);
        Ok(selector.is_empty() || object.is_some_and(carries) || review.old.is_some_and(carries))
    }
}
