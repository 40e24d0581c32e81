//! Update: the one loop behind PUT, every patch, and the views (status, scale, …).
//!
//! Read, change, check, write on condition that nothing changed meanwhile; start over with what is there
//! now if it did, unless the client named the version it had seen.

use std::sync::Arc;

use bytes::Bytes;
use sampan_api::codec::printed;
use sampan_api::status::Status;
use sampan_api::{Object, field, meta as access};
use sampan_auth::Attributes;
use sampan_kinds::Part;
use sampan_store::{Condition, KeyValue, Op, Revision, Write, Written};

use super::addresses::cluster_addresses;
use super::create::encode;
use super::reply::Reply;
use super::{Call, Registry, managers, meta, store_failure};
use crate::admission::Operation;
use crate::request::WriteOptions;
use crate::watch_cache::{ChangeType, Entry, Offer, Storage};
use crate::{Refusal, refuse};

/// How often an update without a stated version is tried against a moving target.
const ATTEMPTS: usize = 64;

/// The object as it stands, in the forms an update needs. Settled, as what is written will be before rules
/// compare the two.
pub(super) struct Existing {
    pub object: Arc<Object>,
    pub revision: Revision,
    pub key: Arc<str>,
    pub lease: Option<sampan_store::LeaseId>,
    unreadable: Option<String>,
}

impl Existing {
    fn of_entry(entry: &Entry) -> Self {
        Existing {
            object: entry.settled(),
            revision: entry.revision(),
            key: entry.key().clone(),
            lease: None,
            unreadable: entry.unreadable().map(str::to_owned),
        }
    }
    fn of_stored(stored: KeyValue) -> Self {
        let mut object = printed::read(&stored.value);
        printed::settle(&mut object);
        access::set_resource_version(&mut object, &stored.mod_revision.to_string());
        Existing {
            object: Arc::new(object),
            revision: stored.mod_revision,
            key: stored.key,
            lease: stored.lease,
            unreadable: sampan_store::why_unreadable(&stored.value).map(str::to_owned),
        }
    }

    /// What cannot be read cannot be changed.
    fn readable(&self) -> Result<(), Refusal> {
        match &self.unreadable {
            None => Ok(()),
            Some(why) => Err(refuse(Status::internal(why))),
        }
    }
}

/// Makes the new object from the old one (both in the call's version). `None`: it does not exist.
pub(super) type Make<'a> = dyn FnMut(&mut Call, Option<&Object>) -> Result<Object, Refusal> + Send + 'a;

impl Registry {
    /// PUT.
    pub async fn update(
        &self,
        call: &mut Call,
        part: Part<'_>,
        object: Object,
        options: &WriteOptions,
    ) -> Result<Reply, Refusal> {
        let name = access::name(&object);
        if name.is_empty() {
            return Err(refuse(Status::bad_request(format!(
                "the name of the object ({} based on URL) was undeterminable: name must be provided",
                call.info.name
            ))));
        }
        if name != call.info.name {
            return Err(refuse(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                call.info.name
            ))));
        }
        let create = call.row.strategy().allow_create_on_update() && part == Part::Main;
        self.change(call, part, options, create, &mut |_, _| Ok(object.clone()))
            .await
    }

    /// The loop. `create`: an absent object is created.
    pub(super) async fn change(
        &self,
        call: &mut Call,
        part: Part<'_>,
        options: &WriteOptions,
        create: bool,
        make: &mut Make<'_>,
    ) -> Result<Reply, Refusal> {
        let storage = call.storage()?;
        let path = call.path();
        let mut existing = self
            .current(&storage, &path)
            .await
            .map(|entry| Existing::of_entry(&entry));
        for _ in 0..ATTEMPTS {
            let Some(old) = existing else {
                if !create {
                    return Err(call.not_found());
                }
                match self.create_absent(call, options, make).await {
                    Err(refusal) if refusal.reason == "AlreadyExists" => {
                        existing = self
                            .current(&storage, &path)
                            .await
                            .map(|entry| Existing::of_entry(&entry));
                        continue;
                    }
                    result => return result,
                }
            };
            old.readable()?;
            match self
                .change_once(call, part, options, &storage, &path, old, make)
                .await?
            {
                Outcome::Done(reply) => return Ok(reply),
                Outcome::Moved(current) => existing = current.map(Existing::of_stored),
            }
        }
        Err(call
            .conflict("the object has been modified; please apply your changes to the latest version and try again"))
    }

    /// A change the server itself makes to an object (binding, disruption budgets): the strategy is not asked,
    /// admission and validation of what a client may write do not apply.
    pub async fn rewrite(
        &self,
        call: &mut Call,
        part: Part<'_>,
        options: &WriteOptions,
        make: &mut (dyn FnMut(&mut Call, &Object) -> Result<Object, Refusal> + Send),
    ) -> Result<Reply, Refusal> {
        let storage = call.storage()?;
        let path = call.path();
        let mut existing = self
            .current(&storage, &path)
            .await
            .map(|entry| Existing::of_entry(&entry));
        for _ in 0..ATTEMPTS {
            let Some(old) = existing else {
                return Err(call.not_found());
            };
            old.readable()?;
            let mut new = make(call, &old.object)?;
            if part == Part::Main && call.row.strategy().has_generation() && meta::content_differs(&new, &old.object) {
                access::set_generation(&mut new, access::generation(&old.object) + 1);
            }
            if options.dry_run {
                return Ok(Reply::Object(200, new));
            }
            let value = encode(&mut new);
            let _offer = offered(&storage, call, &value, &mut new);
            let write = Write {
                key: old.key.clone(),
                condition: Condition::ModRevision(old.revision),
                op: Op::Put {
                    value: value.clone(),
                    lease: old.lease,
                },
            };
            match self.cache.store().write(write).await.map_err(store_failure)? {
                Written::Committed { revision, .. } => {
                    let entry = self
                        .committed(&storage, old.key, &path, &value, revision, ChangeType::Modified)
                        .await;
                    return Ok(Reply::Entry(200, entry));
                }
                Written::Refused { current, .. } => existing = current.map(Existing::of_stored),
            }
        }
        Err(refuse(Status::modified(
            call.row.spec.group,
            call.row.spec.plural,
            &call.info.name,
        )))
    }

    /// An update that creates needs the right to create.
    fn check_create(&self, call: &Call) -> Result<(), Refusal> {
        let spec = call.row.spec;
        let attributes = Attributes {
            version: spec.version,
            namespace: &call.info.namespace,
            name: &call.info.name,
            path: &call.info.path,
            ..Attributes::resource(&call.user, "create", spec.group, spec.plural)
        };
        self.authorizer
            .check(&attributes)
            .map_err(|why| refuse(Status::forbidden(spec.group, spec.plural, &call.info.name, &why)))
    }

    async fn create_absent(
        &self,
        call: &mut Call,
        options: &WriteOptions,
        make: &mut Make<'_>,
    ) -> Result<Reply, Refusal> {
        self.check_create(call)?;
        let mut object = make(call, None)?;
        if !access::resource_version(&object).is_empty() && access::resource_version(&object) != "0" {
            return Err(call.not_found());
        }
        if !access::uid(&object).is_empty() {
            return Err(call.conflict(&format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: ",
                access::uid(&object)
            )));
        }
        access::ensure_metadata(&mut object).remove("resourceVersion");
        self.create(call, object, options).await
    }

    #[allow(clippy::too_many_arguments)]
    async fn change_once(
        &self,
        call: &mut Call,
        part: Part<'_>,
        options: &WriteOptions,
        storage: &Storage,
        path: &str,
        existing: Existing,
        make: &mut Make<'_>,
    ) -> Result<Outcome, Refusal> {
        let row = call.row.clone();
        let strategy = row.strategy();
        let raw = row.custom.is_some().then(|| Object::clone(&existing.object));
        let old = match &raw {
            Some(raw) => Arc::new(crate::custom::loaded(&row, raw.clone()).await?),
            None => existing.object,
        };
        let shown = row.converts().then(|| Self::in_version(&row, Object::clone(&old)));
        let shown = shown.as_ref().unwrap_or(&old);
        // A merge that lacks a webhook's conversion is done again when it is there.
        let mut made = loop {
            let made = make(call, Some(shown));
            if !call.conversions.answer(&row).await {
                break made?;
            }
        };
        let asks = row.custom.as_ref().is_some_and(|custom| custom.view.converter.asks());
        let sent = asks.then(|| made.clone());
        loop {
            managers::note(call, options, Some(shown), &mut made);
            match &sent {
                Some(sent) if call.conversions.answer(&row).await => made = sent.clone(),
                _ => break,
            }
        }
        let mut new = Self::as_stored(&row, made);
        access::set_type(&mut new, &row.stored_version, row.stored.kind);
        meta::match_namespace(call, &mut new)?;
        let uid = access::uid(&new);
        if !uid.is_empty() && uid != access::uid(&old) {
            return Err(call.conflict(&format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                access::uid(&old)
            )));
        }
        let stated = match access::resource_version(&new) {
            "" | "0" => None,
            stated => Some(stated.to_owned()),
        };
        match &stated {
            Some(stated) => {
                if stated.parse::<u64>().is_err() {
                    let path = field::Path::new("metadata").child("resourceVersion");
                    let error = field::Error::invalid(
                        &path,
                        stated.as_str(),
                        format!("strconv.ParseUint: parsing {stated:?}: invalid syntax"),
                    );
                    return Err(call.invalid(&call.info.name, &[error]));
                }
                if *stated != access::resource_version(&old) {
                    return Err(refuse(Status::modified(
                        row.spec.group,
                        row.spec.plural,
                        &call.info.name,
                    )));
                }
            }
            None if !strategy.allow_unconditional_update() => {
                let path = field::Path::new("metadata").child("resourceVersion");
                let error = field::Error::invalid(&path, 0, "must be specified for an update");
                // Upstream names the resource here, not the kind.
                let spec = &call.row.spec;
                let status = Status::invalid(spec.group, spec.plural, &call.info.name, &[error]);
                return Err(refuse(status));
            }
            None => access::set_resource_version(&mut new, access::resource_version(&old)),
        }
        meta::dedup_owners(call, &mut new);
        self.admit(call, Operation::Update, &mut new, Some(&old), options.into())
            .await?;
        access::set_generation(&mut new, access::generation(&old));
        printed::settle(&mut new);
        strategy.prepare_update(part, &mut new, &old);
        meta::keep_identity(&mut new, &old);
        // What the strategy took away may be something that is always there.
        printed::settle(&mut new);
        let counts = meta::content_differs(&new, &old) || (part == Part::Main && strategy.metadata_counts(&new, &old));
        if strategy.has_generation() && counts {
            access::set_generation(&mut new, access::generation(&old) + 1);
        } else if access::generation(&old) == 0 && access::generation(&new) == 0 {
            access::ensure_metadata(&mut new).remove("generation");
        }
        let mut reserved = self.reserve(&row, &mut new, Some(&old), options.dry_run).await?;
        let mut errors = meta::validate_update(&row, part, &new, &old);
        errors.extend(row.validate_update(part, &new, &old));
        if !errors.is_empty() {
            return Err(call.invalid(&call.info.name, &errors));
        }
        for warning in strategy.update_warnings(&new, &old) {
            if part == Part::Main {
                call.warn(warning);
            }
        }
        let name = call.info.name.clone();
        self.validate(call, Operation::Update, &name, Some(&new), Some(&old), options.into())
            .await?;
        let gone = access::is_deleting(&old)
            && access::deletion_grace_period_seconds(&old).unwrap_or(0) == 0
            && !meta::is_held(&row, &new);
        if options.dry_run {
            return Ok(Outcome::Done(Reply::Object(200, new)));
        }
        let mut written = match &row.custom {
            Some(_) => Some(crate::custom::stored(&row, new.clone()).await?),
            None => None,
        };
        // A custom object may have been stored in another version: then there is something to write.
        let stale = !gone
            && new == *old
            && self
                .cache
                .store()
                .is_stale(&existing.key)
                .await
                .map_err(store_failure)?;
        // What would be stored in another form (another key of encryption) is written though nothing has changed.
        if !gone && new == *old && raw == written && !stale {
            // Nothing to write: the client gets what is there.
            if let Some(entry) = storage.get(path).filter(|entry| entry.revision() == existing.revision) {
                return Ok(Outcome::Done(Reply::Entry(200, entry)));
            }
        }
        self.claim(&mut reserved, &mut new).await?;
        let claimed = reserved.addresses().to_vec();
        let value = encode(written.as_mut().unwrap_or(&mut new));
        // Who gives back what was claimed, or answers with the object, needs the tree.
        let free = !gone && claimed.is_empty() && !row.is("", "services");
        let _offer = match free {
            true => offered(storage, call, &value, &mut new),
            false => None,
        };
        let op = if gone {
            Op::Delete
        } else {
            let lease = self.lease_of(&row, existing.lease).await?;
            Op::Put {
                value: value.clone(),
                lease,
            }
        };
        let key = existing.key;
        let write = Write {
            key: key.clone(),
            condition: Condition::ModRevision(existing.revision),
            op,
        };
        match self.cache.store().write(write).await.map_err(store_failure)? {
            Written::Committed { revision, .. } => {
                reserved.keep();
                if row.is("", "services") {
                    let kept = if gone {
                        Default::default()
                    } else {
                        cluster_addresses(&new)
                    };
                    let lost: Vec<_> = cluster_addresses(&old).difference(&kept).copied().collect();
                    self.give_back(&lost, &old).await;
                }
                if gone {
                    self.cache.reached(revision).await;
                    access::set_resource_version(&mut new, &revision.to_string());
                    return Ok(Outcome::Done(Reply::Object(200, new)));
                }
                let entry = self
                    .committed(storage, key, path, &value, revision, ChangeType::Modified)
                    .await;
                Ok(Outcome::Done(Reply::Entry(200, entry)))
            }
            // A stated version that is no longer true is found out by the next round.
            Written::Refused { current, .. } => {
                self.give_back(&claimed, &new).await;
                Ok(Outcome::Moved(current))
            }
        }
    }

    /// Events that are written again live on for their whole time; others have no lease.
    async fn lease_of(&self, row: &crate::rows::Row, known: Option<u64>) -> Result<Option<u64>, Refusal> {
        if row.stored.storage_prefix == "events" {
            return self
                .leases
                .get(self.cache.store().as_ref())
                .await
                .map(Some)
                .map_err(store_failure);
        }
        Ok(known)
    }
}

/// Offers the tree that `value` was made of, where it is what reading would give: of built-in kinds. Events are not asked
/// for again.
pub(super) fn offered<'a>(storage: &'a Storage, call: &Call, value: &Bytes, object: &mut Object) -> Option<Offer<'a>> {
    if call.row.custom.is_some() || call.row.stored.storage_prefix == "events" {
        return None;
    }
    let mut tree = std::mem::take(object);
    printed::bare(&mut tree);
    Some(storage.offer(value, tree))
}

enum Outcome {
    Done(Reply),
    /// Someone else wrote first; this is what is there now.
    Moved(Option<KeyValue>),
}
