//! What plugins are shown of a request.

use sampan_api::Object;
use sampan_api::status::Status;
use sampan_auth::UserInfo;
use serde_json::{Value, json};

use crate::request::{DeleteOptions, FieldValidation, WriteOptions};
use crate::rows::Row;
use crate::{Refusal, refuse};

/// Group, version and kind of what a row's (sub)resource takes.
pub fn kind_of(row: &Row, subresource: &str) -> (&'static str, &'static str, &'static str) {
    let spec = row.spec;
    match spec.subresource(subresource).map(|sub| sub.gvk) {
        None => (spec.group, spec.version, spec.kind),
        Some(("", "", "")) => (spec.group, spec.version, spec.kind),
        Some(("", "", kind)) => (spec.group, spec.version, kind),
        Some(named) => named,
    }
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// A request as admission sees it. The object itself is handed over separately, so that it can be changed.
pub struct Review<'a> {
    pub row: &'a Row,
    pub operation: Operation,
    pub subresource: &'a str,
    /// Of a Namespace itself: its own name.
    pub namespace: &'a str,
    pub name: &'a str,
    pub user: &'a UserInfo,
    /// The object before an update or a delete.
    pub old: Option<&'a Object>,
    pub dry_run: bool,
    /// What the client asked for besides the object.
    pub options: Options<'a>,
    /// A write of the server itself: policies and webhooks have no say in it.
    pub internal: bool,
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// The options of a request, as reviews carry them.
#[derive(Clone, Copy)]
pub enum Options<'a> {
    None,
    Write(&'a WriteOptions),
    Delete(&'a DeleteOptions),
}

impl<'a> From<&'a WriteOptions> for Options<'a> {
    fn from(options: &'a WriteOptions) -> Self {
        Options::Write(options)
    }
}

impl<'a> From<&'a DeleteOptions> for Options<'a> {
    fn from(options: &'a DeleteOptions) -> Self {
        Options::Delete(options)
    }
}

impl Options<'_> {
    pub fn dry_run(self) -> bool {
        match self {
            Options::None => false,
            Options::Write(options) => options.dry_run,
            Options::Delete(options) => options.dry_run,
        }
    }
}

impl Review<'_> {
    /// Group, version and kind of the object under review: of subresources often another than the row's.
    pub fn kind(&self) -> (&'static str, &'static str, &'static str) {
        kind_of(self.row, self.subresource)
    }

    /// Whether the object under review is the resource's own, and not a Scale, Binding or the like.
    pub fn is_whole(&self) -> bool {
        let (group, version, kind) = self.kind();
        let spec = self.row.spec;
        (group, version, kind) == (spec.group, spec.version, spec.kind)
    }

    /// `CreateOptions` and so on; null where there are none. Named by what is done: a patch that creates has
    /// `CreateOptions`.
    pub fn options(&self) -> Value {
        let mut value = json!({"apiVersion": "meta.k8s.io/v1"});
        match self.options {
            Options::None => return Value::Null,
            Options::Write(options) => {
                value["kind"] = match self.operation {
                    Operation::Create => "CreateOptions".into(),
                    _ => "UpdateOptions".into(),
                };
                if !options.field_manager.is_empty() {
                    value["fieldManager"] = options.field_manager.as_str().into();
                }
                value["fieldValidation"] = match options.field_validation {
                    FieldValidation::Ignore => "Ignore".into(),
                    FieldValidation::Warn => "Warn".into(),
                    FieldValidation::Strict => "Strict".into(),
                };
            }
            Options::Delete(options) => {
                value["kind"] = "DeleteOptions".into();
                if let Some(seconds) = options.grace_period_seconds {
                    value["gracePeriodSeconds"] = seconds.into();
                }
                if let Some(policy) = options.propagation {
                    value["propagationPolicy"] = format!("{policy:?}").into();
                }
                for (field, wanted) in [("uid", &options.uid), ("resourceVersion", &options.resource_version)] {
                    if let Some(wanted) = wanted {
                        value["preconditions"][field] = wanted.as_str().into();
                    }
                }
            }
        }
        if self.dry_run {
            value["dryRun"] = json!(["All"]);
        }
        value
    }

    /// Whether this is about the main resource `plural` of the core group.
    pub fn is_core(&self, plural: &str) -> bool {
        self.subresource.is_empty() && self.row.is("", plural)
    }

    /// A refusal in the plugin's words. `object` gives the name when the path has none.
    pub fn forbid(&self, object: Option<&Object>, why: &str) -> Status {
        let name = match (self.name, object) {
            ("", Some(object)) => match (sampan_api::meta::name(object), sampan_api::meta::generate_name(object)) {
                ("", "") => "Unknown",
                ("", generated) => generated,
                (name, _) => name,
            },
            ("", None) => "Unknown",
            (name, _) => name,
        };
        Status::forbidden(self.row.spec.group, self.row.spec.plural, name, why)
    }

    pub fn refuse(&self, object: &Object, why: &str) -> Refusal {
        refuse(self.forbid(Some(object), why))
    }
}
