//! Which objects a list, a watch or a collection delete is about.

use std::borrow::Cow;
use std::sync::Arc;

use sampan_api::selector::{FieldSelector, LabelSelector};
use sampan_api::status::Status;

use crate::request::ListOptions;
use crate::rows::Row;
use crate::watch_cache::{Entry, Scope, Storage};
use crate::{Refusal, refuse};

/// Selectors and scope of one request, ready to be asked about entries.
pub struct Filter {
    /// What the watch cache can narrow down itself.
    pub scope: Scope,
    namespace: String,
    labels: LabelSelector,
    terms: Vec<Term>,
}

struct Term {
    field: Field,
    negated: bool,
    value: String,
}

enum Field {
    Name,
    Namespace,
    At(usize),
    /// A custom kind's, by its path.
    Own(Arc<[String]>),
}

impl Filter {
    /// `namespace` is empty for requests across namespaces; `name` is set for watches of one object by path.
    pub fn new(
        row: &Row,
        storage: &Storage,
        namespace: &str,
        name: &str,
        options: &ListOptions,
    ) -> Result<Self, Refusal> {
        let labels = LabelSelector::parse(&options.label_selector)
            .map_err(|error| refuse(Status::bad_request(error.to_string())))?;
        let selector = FieldSelector::parse(&options.field_selector)
            .map_err(|error| refuse(Status::bad_request(error.to_string())))?;
        let mut terms = Vec::with_capacity(selector.requirements().len());
        for requirement in selector.requirements() {
            let field = match requirement.field.as_str() {
                "metadata.name" => Field::Name,
                "metadata.namespace" if row.spec.namespaced => Field::Namespace,
                label => match &row.custom {
                    Some(custom) => Field::Own(custom.field(label).ok_or_else(|| unknown_field(row, label))?),
                    None => Field::At(row.field(label).ok_or_else(|| unknown_field(row, label))?),
                },
            };
            terms.push(Term {
                field,
                negated: requirement.negated,
                value: requirement.value.clone(),
            });
        }
        let object = if name.is_empty() {
            selector.exact_match("metadata.name").unwrap_or_default()
        } else {
            name
        };
        let namespace = match selector.exact_match("metadata.namespace") {
            Some(asked) if namespace.is_empty() && row.spec.namespaced => asked,
            _ => namespace,
        };
        let indexed = storage.indexed_label().and_then(|label| selector.exact_match(label));
        let scope = match indexed {
            _ if !object.is_empty() && (!row.spec.namespaced || !namespace.is_empty()) => {
                Scope::Object(row.path(namespace, object))
            }
            Some(value) => Scope::Indexed(value.to_owned()),
            None if !namespace.is_empty() => Scope::Namespace(namespace.to_owned()),
            None => Scope::All,
        };
        Ok(Filter {
            scope,
            namespace: namespace.to_owned(),
            labels,
            terms,
        })
    }

    /// Whether selectors leave everything in the namespace (or all of them) in.
    pub fn is_plain(&self) -> bool {
        self.labels.is_empty() && self.terms.is_empty()
    }

    /// Whether it looks at fields of custom objects, which must be shown in the version asked for.
    pub fn reads_fields(&self) -> bool {
        self.terms.iter().any(|term| matches!(term.field, Field::Own(_)))
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn matches(&self, storage: &Storage, entry: &Entry) -> bool {
        let scope = match &self.scope {
            // The term of the indexed field is among `terms`; only the namespace is left.
            Scope::Indexed(_) | Scope::All => self.namespace.is_empty() || entry.namespace() == self.namespace,
            scope => scope.holds(entry, ""),
        };
        if !scope || self.is_plain() {
            return scope;
        }
        let needs_fields = self.terms.iter().any(|term| matches!(term.field, Field::At(_)));
        if self.labels.is_empty() && !needs_fields {
            return self.terms.iter().all(|term| term.holds(entry, &[]));
        }
        let attributes = entry.attributes(storage.fields());
        self.terms.iter().all(|term| term.holds(entry, &attributes.fields)) && self.labels.matches(&*attributes.labels)
    }
}

impl Term {
    fn holds(&self, entry: &Entry, fields: &[Box<str>]) -> bool {
        let value = match &self.field {
            Field::Name => Cow::Borrowed(entry.name()),
            Field::Namespace => Cow::Borrowed(entry.namespace()),
            Field::At(index) => Cow::Borrowed(fields.get(*index).map_or("", |value| value)),
            Field::Own(path) => crate::custom::field_of(entry.as_slice(), path),
        };
        (*value == *self.value) != self.negated
    }
}

fn unknown_field(row: &Row, label: &str) -> Refusal {
    refuse(Status::bad_request(
        if row.spec.fields.is_empty() && row.custom.is_none() {
            let known = if row.spec.namespaced {
                r#""metadata.name", "metadata.namespace""#
            } else {
                r#""metadata.name""#
            };
            format!("{label:?} is not a known field selector: only {known}")
        } else {
            format!("field label not supported: {label}")
        },
    ))
}
