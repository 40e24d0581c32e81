//! Admission: small plugins between decoding and writing, in upstream's order.
//!
//! A plugin says which requests it handles; only those pay for it. Mutating plugins run before the
//! strategy, validating ones after it. In-process plugins, policies and webhooks share this interface.
//!
//! If a webhook or a mutating policy has changed the object, every mutating plugin gets a second look at it,
//! once ([`Notes::ask_again`]); policies and webhooks decide for themselves which of them run again.

mod certificates;
mod claims;
pub(crate) mod configuration;
mod events;
mod limits;
mod matching;
pub mod metrics;
mod namespace;
mod nodes;
mod notes;
mod optional;
mod placement;
mod pod_security;
mod pods;
mod policy;
mod quota;
mod rbac;
mod requestor;
mod review;
mod selection;
mod service_account;
mod storage;
mod webhook;

use std::sync::{Arc, Weak};
use std::time::Instant;

use async_trait::async_trait;
use sampan_api::Object;
use sampan_api::meta::{ensure_list, ensure_map};
use sampan_auth::Authorizer;
use sampan_tasks::Tasks;
use serde_json::Value;

use crate::Refusal;
use crate::outbound::Outbound;
use crate::rows::Rows;
use crate::watch_cache::{Cache, Entry, Storage};

pub use configuration::{Configuration, ConfigurationError};
pub use metrics::Metrics;
pub use notes::{Annotations, Notes};
pub use pod_security::Exemptions;
pub use review::{Operation, Options, Review};
pub use selection::{Selection, SelectionError};

/// The cluster as plugins may see it: the watch cache, read only.
#[derive(Clone)]
pub struct Reader(Arc<Cache>);

impl Reader {
    pub fn new(cache: Arc<Cache>) -> Self {
        Reader(cache)
    }
    /// For those the cache itself leads to (hooks of its storages): they must not keep it alive.
    pub fn weak(&self) -> WeakReader {
        WeakReader(Arc::downgrade(&self.0))
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
    /// The objects of one namespace, in the order of their names.
    pub fn entries_in_namespace(&self, prefix: &str, namespace: &str) -> Vec<Arc<Entry>> {
        let Some(storage) = self.storage(prefix) else {
            return Vec::new();
        };
        let start = format!("{namespace}/");
        let index = storage.snapshot(0).index;
        let here = index.from(&start).take_while(|entry| entry.path().starts_with(&start));
        here.cloned().collect()
    }
    pub fn in_namespace(&self, prefix: &str, namespace: &str) -> Vec<Object> {
        let entries = self.entries_in_namespace(prefix, namespace);
        entries.iter().map(|entry| entry.object()).collect()
    }
    /// Whether a namespace has any.
    pub fn any_in_namespace(&self, prefix: &str, namespace: &str) -> bool {
        let start = format!("{namespace}/");
        self.storage(prefix).is_some_and(|storage| {
            let index = storage.snapshot(0).index;
            index
                .from(&start)
                .next()
                .is_some_and(|entry| entry.path().starts_with(&start))
        })
    }
    /// For the one plugin that writes.
    pub(crate) fn cache(&self) -> &Cache {
        &self.0
    }
}

/// A [`Reader`] as long as there is a cluster.
#[derive(Clone)]
pub struct WeakReader(Weak<Cache>);

impl WeakReader {
    pub fn upgrade(&self) -> Option<Reader> {
        self.0.upgrade().map(Reader)
    }
}

/// One admission plugin.
#[async_trait]
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;
    /// Whether this request is any of its business. Cheap: asked for every write, in both phases.
    fn handles(&self, review: &Review<'_>) -> bool;
    /// `object` is null for deletes; for connects it holds the options of the stream.
    async fn mutate(&self, _review: &Review<'_>, _object: &mut Object, _notes: &mut Notes) -> Result<(), Refusal> {
        Ok(())
    }
    /// `object` is absent for deletes.
    async fn validate(
        &self,
        _review: &Review<'_>,
        _object: Option<&Object>,
        _notes: &mut Notes,
    ) -> Result<(), Refusal> {
        Ok(())
    }
}

/// What plugins are built from.
pub struct Wiring<'a> {
    pub reader: &'a Reader,
    pub rows: &'a Arc<Rows>,
    pub authorizer: &'a Authorizer,
    pub outbound: &'a Outbound,
    pub tasks: &'a Tasks,
    pub metrics: Arc<Metrics>,
    pub selection: &'a Selection,
}

/// The plugins in order.
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
    metrics: Arc<Metrics>,
}

impl Chain {
    pub fn new(plugins: Vec<Box<dyn Plugin>>, metrics: Arc<Metrics>) -> Self {
        Chain { plugins, metrics }
    }

    /// What is on, in upstream's order.
    pub fn standard(wiring: &Wiring<'_>) -> Self {
        let (reader, authorizer) = (wiring.reader, wiring.authorizer);
        let plugins: Vec<Box<dyn Plugin>> = vec![
            Box::new(namespace::Lifecycle::new(reader.clone())),
            Box::new(limits::LimitRanger::new(reader.clone())),
            Box::new(service_account::ServiceAccount::new(reader.clone())),
            Box::new(nodes::Restriction::new(reader.clone())),
            Box::new(nodes::TaintNewNodes),
            Box::new(optional::AlwaysPullImages),
            Box::new(pod_security::PodSecurity::new(
                reader.clone(),
                wiring.selection.configuration.pod_security.clone(),
            )),
            Box::new(pods::Priority::new(reader.clone())),
            Box::new(pods::DefaultTolerations),
            Box::new(events::EventRateLimit::new(
                &wiring.selection.configuration.event_limits,
            )),
            Box::new(storage::DefaultStorageClass::new(reader.clone())),
            Box::new(claims::InUseProtection),
            Box::new(optional::OwnerPermissions {
                authorizer: authorizer.clone(),
                rows: wiring.rows.clone(),
            }),
            Box::new(claims::Resize(reader.clone())),
            Box::new(pods::RuntimeClass::new(reader.clone())),
            Box::new(certificates::Approval(authorizer.clone())),
            Box::new(certificates::Signing(authorizer.clone())),
            Box::new(certificates::SubjectRestriction),
            Box::new(storage::DefaultIngressClass::new(reader.clone())),
            Box::new(optional::DenyExternalIps),
            Box::new(placement::TopologyLabels(reader.clone())),
            Box::new(placement::PodResize(reader.clone())),
            Box::new(rbac::NoEscalation::new(authorizer.clone())),
            Box::new(requestor::Requestor),
            Box::new(policy::Mutating::new(wiring)),
            Box::new(webhook::Mutating::new(wiring)),
            Box::new(policy::Validating::new(wiring)),
            Box::new(webhook::Validating::new(wiring)),
            // Last: what is charged here must not be refused by anybody after.
            Box::new(quota::ResourceQuota::start(reader.clone(), wiring.tasks)),
        ];
        let on = plugins
            .into_iter()
            .filter(|plugin| wiring.selection.has(plugin.name()))
            .collect();
        Chain::new(on, wiring.metrics.clone())
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub async fn mutate(&self, review: &Review<'_>, object: &mut Object, notes: &mut Notes) -> Result<(), Refusal> {
        self.mutate_once(review, object, notes).await?;
        if notes.begin_again() {
            self.mutate_once(review, object, notes).await?;
        }
        Ok(())
    }

    async fn mutate_once(&self, review: &Review<'_>, object: &mut Object, notes: &mut Notes) -> Result<(), Refusal> {
        let mut times = self.metrics.times("admit", review.operation);
        for plugin in self.plugins.iter().filter(|plugin| plugin.handles(review)) {
            let started = Instant::now();
            let result = plugin.mutate(review, object, notes).await;
            times.plugin(plugin.name(), started.elapsed(), result.is_err());
            result?;
        }
        Ok(())
    }

    pub async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Object>,
        notes: &mut Notes,
    ) -> Result<(), Refusal> {
        let mut times = self.metrics.times("validate", review.operation);
        for plugin in self.plugins.iter().filter(|plugin| plugin.handles(review)) {
            let started = Instant::now();
            let result = plugin.validate(review, object, notes).await;
            times.plugin(plugin.name(), started.elapsed(), result.is_err());
            result?;
        }
        Ok(())
    }
}

/// The list `spec.{field}`, made if absent.
pub(crate) fn spec_list<'a>(object: &'a mut Object, field: &str) -> &'a mut Vec<Value> {
    let spec = ensure_map(ensure_map(object).entry("spec").or_insert(Value::Null));
    ensure_list(spec.entry(field).or_insert(Value::Null))
}

/// A text in a tree by JSON pointer; empty when absent.
pub(crate) fn text<'a>(object: &'a Object, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
