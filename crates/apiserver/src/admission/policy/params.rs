//! The parameters of a binding.

use std::sync::Arc;

use sampan_api::Object;
use sampan_api::selector::LabelSelector;

use crate::admission::{Review, text};
use crate::rows::{Row, Rows};
use crate::watch_cache::Entry;

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
            format!(
                "failed to find resource referenced by paramKind: '{group}/{version}, Kind={}'",
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

/// What the policy is evaluated with, once each, in the version it names: null where it takes no parameters or the
/// binding gives none. No items where none are found and that is allowed.
pub async fn collect(
    kind: Option<&ParamKind>,
    reference: Option<&ParamRef>,
    review: &Review<'_>,
    rows: &Rows,
) -> Result<Vec<Object>, String> {
    let (Some(kind), Some(reference)) = (kind, reference) else {
        return Ok(vec![Object::Null]);
    };
    let row = kind.row(rows)?;
    let namespace = reference.namespace(&row, review)?;
    let entries = reference.entries(&row, namespace)?;
    let mut found: Vec<Object> = match &row.custom {
        Some(custom) => {
            let shown = custom.view.entries(entries).await.map_err(|refusal| refusal.message)?;
            shown.iter().map(|entry| entry.object()).collect()
        }
        None => entries.iter().map(|entry| entry.object()).collect(),
    };
    if reference.name.is_empty()
        && let Some(Ok(selector)) = &reference.selector
    {
        found.retain(|param| selector.matches(param));
    }
    found.iter_mut().for_each(|param| row.from_storage(param));
    if found.is_empty() && reference.denies {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found)
}

impl ParamRef {
    /// Where to look: as the reference says, or where the request is.
    fn namespace<'a>(&'a self, row: &Row, review: &Review<'a>) -> Result<&'a str, String> {
        match (row.spec.namespaced, self.namespace.as_str()) {
            (false, "") => Ok(""),
            (false, _) => Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned()),
            (true, "") if review.namespace.is_empty() => {
                Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned())
            }
            (true, "") => Ok(review.namespace),
            (true, namespace) => Ok(namespace),
        }
    }

    /// The named object, or all there are: a selector sees them in the policy's version.
    fn entries(&self, row: &Row, namespace: &str) -> Result<Vec<Arc<Entry>>, String> {
        let Some(storage) = &row.storage else {
            return Ok(Vec::new());
        };
        match &self.selector {
            _ if !self.name.is_empty() => Ok(storage.get(&row.path(namespace, &self.name)).into_iter().collect()),
            Some(Ok(_)) if row.spec.namespaced => {
                let start = format!("{namespace}/");
                let index = storage.snapshot(0).index;
                let here = index.from(&start).take_while(|entry| entry.path().starts_with(&start));
                Ok(here.cloned().collect())
            }
            Some(Ok(_)) => Ok(storage.snapshot(0).index.iter().cloned().collect()),
            Some(Err(why)) => Err(why.clone()),
            None => Err("one of name or selector must be provided".to_owned()),
        }
    }
}
