//! Admission: small plugins between decoding and writing, in upstream's order.
//!
//! A plugin says which requests it handles; only those pay for it. Mutating plugins run before the
//! strategy, validating ones after it. In-process plugins and (later) webhooks share this interface.

mod namespace;
mod nodes;
mod pods;
mod rbac;
mod requestor;
mod service_account;
mod storage;

use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::Object;
use sampan_api::meta::ensure_map;
use sampan_api::status::Status;
use sampan_auth::{Authorizer, UserInfo};
use serde_json::Value;

use crate::rows::Row;
use crate::watch_cache::{Cache, Entry, Storage};
use crate::{Refusal, refuse};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub namespace: &'a str,
    pub name: &'a str,
    pub user: &'a UserInfo,
    /// The object before an update or a delete.
    pub old: Option<&'a Object>,
    pub dry_run: bool,
}

impl Review<'_> {
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

/// The cluster as plugins may see it: the watch cache, read only.
#[derive(Clone)]
pub struct Reader(Arc<Cache>);

impl Reader {
    pub fn new(cache: Arc<Cache>) -> Self {
        Reader(cache)
    }
    pub fn storage(&self, prefix: &str) -> Option<Arc<Storage>> {
        self.0.storage(prefix)
    }
    /// One object by storage prefix and path.
    pub fn get(&self, prefix: &str, path: &str) -> Option<Arc<Entry>> {
        self.0.storage(prefix)?.get(path)
    }
    /// Every object of a storage.
    pub fn all(&self, prefix: &str) -> Vec<Arc<Entry>> {
        self.0
            .storage(prefix)
            .map(|storage| storage.snapshot(0).index.iter().cloned().collect())
            .unwrap_or_default()
    }
}

/// One admission plugin.
#[async_trait]
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;
    /// Whether this request is any of its business. Cheap: asked for every write.
    fn handles(&self, review: &Review<'_>) -> bool;
    async fn mutate(
        &self,
        _review: &Review<'_>,
        _object: &mut Object,
        _warnings: &mut Vec<String>,
    ) -> Result<(), Refusal> {
        Ok(())
    }
    /// `object` is absent for deletes.
    async fn validate(
        &self,
        _review: &Review<'_>,
        _object: Option<&Object>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), Refusal> {
        Ok(())
    }
}

/// The plugins in order.
pub struct Chain(Vec<Box<dyn Plugin>>);

impl Chain {
    pub fn new(plugins: Vec<Box<dyn Plugin>>) -> Self {
        Chain(plugins)
    }

    /// What is on by default.
    pub fn standard(reader: &Reader, authorizer: &Authorizer) -> Self {
        Chain(vec![
            Box::new(namespace::Lifecycle::new(reader.clone())),
            Box::new(service_account::ServiceAccount::new(reader.clone())),
            Box::new(nodes::TaintNewNodes),
            Box::new(nodes::Restriction::new(reader.clone())),
            Box::new(pods::Priority::new(reader.clone())),
            Box::new(pods::DefaultTolerations),
            Box::new(pods::RuntimeClass::new(reader.clone())),
            Box::new(storage::DefaultStorageClass::new(reader.clone())),
            Box::new(storage::DefaultIngressClass::new(reader.clone())),
            Box::new(rbac::NoEscalation::new(authorizer.clone())),
            Box::new(requestor::Requestor),
        ])
    }

    pub async fn mutate(
        &self,
        review: &Review<'_>,
        object: &mut Object,
        warnings: &mut Vec<String>,
    ) -> Result<(), Refusal> {
        for plugin in self.0.iter().filter(|plugin| plugin.handles(review)) {
            plugin.mutate(review, object, warnings).await?;
        }
        Ok(())
    }

    pub async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Object>,
        warnings: &mut Vec<String>,
    ) -> Result<(), Refusal> {
        for plugin in self.0.iter().filter(|plugin| plugin.handles(review)) {
            plugin.validate(review, object, warnings).await?;
        }
        Ok(())
    }
}

/// The list `spec.{field}`, made if absent.
pub(crate) fn spec_list<'a>(object: &'a mut Object, field: &str) -> &'a mut Vec<Value> {
    let spec = ensure_map(ensure_map(object).entry("spec").or_insert(Value::Null));
    let list = spec.entry(field).or_insert(Value::Null);
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    match list {
        Value::Array(list) => list,
        _ => unreachable!("it was just made a list"),
    }
}

/// A text in a tree by JSON pointer; empty when absent.
pub(crate) fn text<'a>(object: &'a Object, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
