//! The generic verbs on any row of the table.
//!
//! One [`Registry`] holds what every verb needs: rows, cache (and through it the store), admission,
//! allocators and leases. A [`Call`] is one request's context. Verbs never look at the kind of an object,
//! only at its row, strategy and metadata.

pub mod addresses;
mod admit;
mod collection;
mod create;
mod delete;
pub mod filter;
mod leases;
mod list;
mod managers;
pub mod meta;
pub mod patch;
pub mod reply;
mod reserve;
pub mod scale;
mod table;
mod update;
mod watch;

use std::sync::Arc;

use http::HeaderMap;
use sampan_api::Object;
use sampan_api::status::Status;
use sampan_auth::{Authorizer, UserInfo};
use sampan_kinds::ScalePaths;
use sampan_store::{self as store, Revision};

use crate::admission::{Chain, Notes};
use crate::allocate::Services;
use crate::audit::Record;
use crate::request::{Media, Query, RequestInfo};
use crate::rows::{Row, Rows};
use crate::watch_cache::{Cache, ChangeType, Entry, Storage};
use crate::{Refusal, refuse};

pub(crate) use create::encode;
pub use filter::Filter;
pub use leases::Leases;
pub use managers::Conversions;
pub use reply::Reply;

/// What all verbs share.
pub struct Registry {
    pub cache: Arc<Cache>,
    pub rows: Arc<Rows>,
    pub admission: Chain,
    /// Asked once more when a patch or an update turns out to create.
    pub authorizer: Authorizer,
    pub services: Arc<Services>,
    pub leases: Leases,
}

/// One request on a row.
pub struct Call {
    pub row: Arc<Row>,
    pub info: RequestInfo,
    pub query: Query,
    pub headers: HeaderMap,
    pub user: Arc<UserInfo>,
    pub media: Media,
    /// Warnings for the client, and what admission left behind.
    pub notes: Notes,
    /// A write of the server itself, which policies and webhooks have no say in.
    pub internal: bool,
    /// The request is about the Scale of the object, at these paths: that is what admission sees.
    pub scale: Option<ScalePaths>,
    /// Whether to note who owns which field. The server's own writes do not.
    pub tracked: bool,
    pub conversions: Conversions,
    /// Where it is recorded, if it is.
    pub audit: Option<Arc<Record>>,
}

impl Call {
    /// A call made by the server itself (bootstrap, controllers of its own), without a request.
    pub fn internal(row: Arc<Row>, verb: &str, namespace: &str, name: &str) -> Self {
        Call {
            info: RequestInfo {
                is_resource: true,
                verb: verb.to_owned(),
                group: row.spec.group.to_owned(),
                version: row.spec.version.to_owned(),
                resource: row.spec.plural.to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                ..RequestInfo::default()
            },
            row,
            query: Query::default(),
            headers: HeaderMap::new(),
            user: Arc::new(UserInfo::api_server()),
            media: Media::default(),
            notes: Notes::default(),
            internal: true,
            scale: None,
            tracked: false,
            conversions: Conversions::default(),
            audit: None,
        }
    }

    pub(crate) fn storage(&self) -> Result<Arc<Storage>, Refusal> {
        self.row.storage.clone().ok_or_else(|| self.not_supported())
    }

    pub(crate) fn path(&self) -> String {
        self.row.path(&self.info.namespace, &self.info.name)
    }

    pub(crate) fn not_found(&self) -> Refusal {
        refuse(Status::not_found(
            self.row.spec.group,
            self.row.spec.plural,
            &self.info.name,
        ))
    }

    pub(crate) fn not_supported(&self) -> Refusal {
        if self.row.custom.is_none() {
            return refuse(Status::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ));
        }
        refuse(Status::method_not_supported(
            self.row.spec.group,
            self.row.spec.plural,
            &self.info.verb,
        ))
    }

    pub(crate) fn conflict(&self, why: &str) -> Refusal {
        refuse(Status::conflict(
            self.row.spec.group,
            self.row.spec.plural,
            &self.info.name,
            why,
        ))
    }

    /// A conflict named after a subresource (`pods/binding`).
    pub(crate) fn conflict_on(&self, what: &str, why: &str) -> Refusal {
        refuse(Status::conflict(self.row.spec.group, what, &self.info.name, why))
    }

    pub(crate) fn invalid(&self, name: &str, errors: &[sampan_api::field::Error]) -> Refusal {
        // What is refused is what would be stored: an event is the core's whichever way it came.
        let stored = self.row.stored;
        refuse(Status::invalid(stored.group, stored.kind, name, errors))
    }

    /// Tells the audit log what the client sent.
    pub(crate) fn record_request(&self, object: &Object) {
        if let Some(record) = &self.audit {
            record.request(object);
        }
    }

    /// Adds a warning once.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.notes.warn(text);
    }
}

/// Waits out the store and maps its failures.
pub(crate) fn store_failure(error: store::Error) -> Refusal {
    refuse(match error {
        store::Error::Closed => Status::unavailable("the API server is shutting down"),
        // Nothing was written: the client may simply try again.
        store::Error::Unavailable { .. } | store::Error::Moved => Status::unavailable(error.to_string()),
        // As upstream passes on what etcd says, and what became of a write without an answer.
        store::Error::Uncertain { reason } | store::Error::Rejected { reason } => Status::new(500, "", reason),
        other => Status::internal(other),
    })
}

/// A refusal if the stored object cannot be read, in the words of upstream's storage.
pub(crate) fn readable(entry: &Entry) -> Result<(), Refusal> {
    match entry.unreadable() {
        None => Ok(()),
        Some(why) => Err(refuse(Status::internal(why))),
    }
}

/// The same for one object of many.
pub(crate) fn unreadable_in_list(entry: &Entry) -> Refusal {
    refuse(Status::internal(format!(
        "unable to transform key {:?}: {}",
        &**entry.key(),
        entry.unreadable().unwrap_or_default()
    )))
}

pub(crate) use meta::match_namespace;

/// Notes who wrote an object that is answered and not stored.
pub(crate) fn note_writer(call: &Call, options: &crate::request::WriteOptions, object: &mut Object) {
    managers::note(call, options, None, object);
}

impl Registry {
    /// One object as it stands, read through.
    pub async fn current(&self, storage: &Storage, path: &str) -> Option<Arc<Entry>> {
        self.cache.caught_up().await;
        storage.get(path)
    }

    /// The stored object as a tree of the call's version.
    pub(crate) fn in_version(row: &Row, mut object: Object) -> Object {
        row.from_storage(&mut object);
        object
    }

    /// An object of the call's version as it is stored.
    pub(crate) fn as_stored(row: &Row, mut object: Object) -> Object {
        row.to_storage(&mut object);
        object
    }

    /// The entry a committed write made: from the cache when it is still the newest, else built again.
    pub(crate) async fn committed(
        &self,
        storage: &Storage,
        key: Arc<str>,
        path: &str,
        value: &[u8],
        revision: Revision,
        kind: ChangeType,
    ) -> Arc<Entry> {
        self.cache.reached(revision).await;
        match storage.get(path) {
            Some(entry) if entry.revision() == revision => entry,
            _ => storage.entry(key, value, revision, kind),
        }
    }

    /// A row by group and plural (the preferred version).
    pub fn row(&self, group: &str, plural: &str) -> Option<Arc<Row>> {
        self.rows.get().of(group, plural).cloned()
    }

    /// The storage of a built-in resource.
    pub fn storage_of(&self, group: &str, plural: &str) -> Option<Arc<Storage>> {
        self.row(group, plural)?.storage.clone()
    }
}
