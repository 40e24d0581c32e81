//! The parameters of a binding.

use std::sync::Arc;

use sampan_api::Object;
use sampan_api::selector::LabelSelector;
use serde_json::Value;

use crate::admission::{Review, text};
use crate::rows::{Row, Rows};

/// `paramKind`.
#[derive(Clone)]
pub struct ParamKind {
    api_version: String,
    kind: String,
}

impl ParamKind {
    pub fn of(policy: &Object) -> Option<ParamKind> {
        let kind = policy.pointer("/spec/paramKind").filter(|kind| kind.is_object())?;
        Some(ParamKind {
            api_version: text(kind, "/apiVersion").to_owned(),
            kind: text(kind, "/kind").to_owned(),
        })
    }

    fn row(&self, rows: &Rows) -> Result<Arc<Row>, String> {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        let row = rows.get().of_kind(group, version, &self.kind).cloned();
        row.filter(|row| row.storage.is_some()).ok_or_else(|| {
            let group_version = &self.api_version;
            format!(
                "failed to find resource referenced by paramKind: '{group_version}, Kind={}'",
                self.kind
            )
        })
    }
}

/// `paramRef`.
pub struct ParamRef {
    name: String,
    namespace: String,
    selector: Option<Result<LabelSelector, String>>,
    denies: bool,
}

impl ParamRef {
    pub fn of(binding: &Object) -> Option<ParamRef> {
        let reference = binding
            .pointer("/spec/paramRef")
            .filter(|reference| reference.is_object())?;
        let selector = reference.get("selector").filter(|selector| selector.is_object());
        Some(ParamRef {
            name: text(reference, "/name").to_owned(),
            namespace: text(reference, "/namespace").to_owned(),
            selector: selector.map(|selector| LabelSelector::from_value(selector).map_err(|error| error.to_string())),
            denies: text(reference, "/parameterNotFoundAction") == "Deny",
        })
    }
}

/// Whether the kind of parameters exists.
pub fn check(kind: Option<&ParamKind>, rows: &Rows) -> Result<(), String> {
    kind.map_or(Ok(()), |kind| kind.row(rows).map(|_| ()))
}

/// What the policy is evaluated with, once each: null where it takes no parameters or the binding gives none. No
/// items where none are found and that is allowed.
pub fn collect(
    kind: Option<&ParamKind>,
    reference: Option<&ParamRef>,
    review: &Review<'_>,
    rows: &Rows,
) -> Result<Vec<Value>, String> {
    let (Some(kind), Some(reference)) = (kind, reference) else {
        return Ok(vec![Value::Null]);
    };
    let row = kind.row(rows)?;
    let Some(storage) = &row.storage else {
        return Ok(Vec::new());
    };
    let namespace = match (row.spec.namespaced, reference.namespace.as_str()) {
        (false, "") => "",
        (false, _) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
        (true, "") if review.namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned(),
            );
        }
        (true, "") => review.namespace,
        (true, namespace) => namespace,
    };
    let mut found: Vec<Value> = match &reference.selector {
        _ if !reference.name.is_empty() => storage
            .get(&row.path(namespace, &reference.name))
            .map(|entry| entry.object())
            .into_iter()
            .collect(),
        Some(Ok(selector)) => {
            let snapshot = storage.snapshot(0);
            let entries = snapshot
                .index
                .iter()
                .filter(|entry| !row.spec.namespaced || entry.namespace() == namespace);
            entries
                .map(|entry| entry.object())
                .filter(|object| selector.matches(object))
                .collect()
        }
        Some(Err(why)) => return Err(why.clone()),
        None => return Err("one of name or selector must be provided".to_owned()),
    };
    if row.converts() {
        found.iter_mut().for_each(|param| row.from_storage(param));
    }
    if found.is_empty() && reference.denies {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found)
}
