//! Create.

use std::sync::Arc;

use bytes::Bytes;
use sampan_api::codec::printed;
use sampan_api::status::{Cause, Details, Status};
use sampan_api::{Object, field, meta as access};
use sampan_store::{Condition, Op, Write, Written};

use super::reply::Reply;
use super::update::offered;
use super::{Call, Registry, managers, meta, store_failure};
use crate::admission::Operation;
use crate::request::WriteOptions;
use crate::rows::Row;
use crate::watch_cache::ChangeType;
use crate::{Refusal, refuse};

/// Attempts at finding a free generated name.
const NAME_ATTEMPTS: usize = 8;

impl Registry {
    /// Creates `object`, decoded and defaulted in the call's version.
    pub async fn create(&self, call: &mut Call, mut object: Object, options: &WriteOptions) -> Result<Reply, Refusal> {
        if !access::resource_version(&object).is_empty() {
            // Upstream's store says this, and its front knows no better code for it.
            return Err(refuse(Status::new(
                500,
                "",
                "resourceVersion should not be set on objects to be created",
            )));
        }
        if let Some(custom) = &call.row.custom {
            custom.check_create(&call.row)?;
        }
        meta::wipe_system_fields(&mut object);
        meta::match_namespace(call, &mut object)?;
        meta::dedup_owners(call, &mut object);
        managers::note(call, options, None, &mut object);
        let mut object = Self::as_stored(&call.row, object);
        self.admit(call, Operation::Create, &mut object, None, options.into())
            .await?;
        // A webhook may have written owners twice, or moved the object elsewhere.
        meta::match_namespace(call, &mut object)?;
        meta::dedup_owners(call, &mut object);
        let generate = access::name(&object).is_empty() && !access::generate_name(&object).is_empty();
        if !generate {
            return self.create_named(call, object, options).await;
        }
        let base = access::generate_name(&object).to_owned();
        for attempt in 1..=NAME_ATTEMPTS {
            let mut named = object.clone();
            access::set_name(&mut named, &meta::generated_name(&base));
            match self.create_named(call, named, options).await {
                Err(refusal) if refusal.reason == "AlreadyExists" && attempt < NAME_ATTEMPTS => {}
                Err(refusal) if refusal.reason == "AlreadyExists" => return Err(name_taken(call, &refusal)),
                result => return result,
            }
        }
        Err(refuse(Status::internal("no generated name was free")))
    }

    /// Creates an object that has a name and has passed mutating admission.
    pub(super) async fn create_named(
        &self,
        call: &mut Call,
        mut object: Object,
        options: &WriteOptions,
    ) -> Result<Reply, Refusal> {
        let row = call.row.clone();
        let strategy = row.strategy();
        meta::fill_system_fields(&mut object);
        for finalizer in strategy.initial_finalizers(&object) {
            access::add_finalizer(&mut object, &finalizer);
        }
        if strategy.has_generation() {
            access::set_generation(&mut object, 1);
        }
        strategy.prepare_create(&mut object);
        let name = access::name(&object).to_owned();
        let mut reserved = self.reserve(&row, &mut object, None, options.dry_run).await?;
        let mut errors = meta::validate_create(&row, &object);
        errors.extend(self.admin_access(&row, &object));
        errors.extend(row.validate_create(&object));
        if !errors.is_empty() {
            return Err(call.invalid(&name, &errors));
        }
        for warning in strategy.warnings(&object) {
            call.warn(warning);
        }
        self.validate(call, Operation::Create, &name, Some(&object), None, options.into())
            .await?;
        let storage = call.storage()?;
        let path = row.path(access::namespace(&object), &name);
        if options.dry_run {
            if let Some(entry) = self.current(&storage, &path).await {
                return Err(already_exists(call, &name, Some(&entry.metadata())));
            }
            return Ok(Reply::Object(201, object));
        }
        self.claim(&mut reserved, &mut object).await?;
        let claimed = reserved.addresses().to_vec();
        let mut object = crate::custom::stored(&row, object).await?;
        let value = encode(&mut object);
        let _offer = match claimed.is_empty() {
            true => offered(&storage, call, &value, &mut object),
            false => None,
        };
        let key: Arc<str> = storage.key(&path).into();
        let expires = row.stored.storage_prefix == "events";
        let mut renewed = false;
        loop {
            let lease = if expires {
                Some(
                    self.leases
                        .get(self.cache.store().as_ref())
                        .await
                        .map_err(store_failure)?,
                )
            } else {
                None
            };
            let write = Write {
                key: key.clone(),
                condition: Condition::ModRevision(0),
                op: Op::Put {
                    value: value.clone(),
                    lease,
                },
            };
            let result = match self.cache.store().write(write).await {
                Ok(Written::Committed { revision, .. }) => {
                    reserved.keep();
                    let entry = self
                        .committed(&storage, key, &path, &value, revision, ChangeType::Added)
                        .await;
                    Ok(Reply::Entry(201, entry))
                }
                Ok(Written::Refused { current, .. }) => {
                    let current = current.map(|current| printed::read(&current.value));
                    let metadata = current.as_ref().and_then(|current| current.get("metadata"));
                    Err(already_exists(call, &name, metadata))
                }
                Err(sampan_store::Error::LeaseNotFound(_)) if !renewed => {
                    renewed = true;
                    self.leases.forget().await;
                    continue;
                }
                Err(error) => Err(store_failure(error)),
            };
            if result.is_err() {
                self.give_back(&claimed, &object).await;
            }
            return result;
        }
    }
}

/// Where a claim of devices, or the template of one, has its requests.
const REQUESTS: [(&str, &str); 2] = [
    ("resourceclaims", "/spec/devices/requests"),
    ("resourceclaimtemplates", "/spec/spec/devices/requests"),
];

impl Registry {
    /// Who wants devices that are in use, as their administrator, may only do so in a namespace made for that.
    fn admin_access(&self, row: &Row, object: &Object) -> Option<field::Error> {
        const LABEL: &str = "resource.kubernetes.io/admin-access";
        let (_, pointer) = REQUESTS.iter().find(|(plural, _)| row.is("resource.k8s.io", plural))?;
        let wants = |request: &Object| request.pointer("/exactly/adminAccess").is_some_and(|flag| flag == true);
        let index = object.pointer(pointer)?.as_array()?.iter().position(wants)?;
        let path = ["devices", "requests"]
            .iter()
            .fold(field::Path::new("spec"), |path, name| path.child(name));
        let namespace = self
            .storage_of("", "namespaces")
            .and_then(|namespaces| namespaces.get(access::namespace(object)))
            .map(|entry| entry.object())
            .unwrap_or_default();
        let allowed = namespace
            .pointer("/metadata/labels")
            .and_then(|labels| labels.get(LABEL))
            .is_some_and(|value| value == "true");
        let why = format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
        (!allowed).then(|| field::Error::forbidden(&path.index(index).child("adminAccess"), why))
    }
}

/// What goes to the store: the tree with all Go prints of it, without its resourceVersion.
pub(crate) fn encode(object: &mut Object) -> Bytes {
    printed::complete(object);
    let version = object
        .get_mut("metadata")
        .and_then(Object::as_object_mut)
        .and_then(|metadata| metadata.remove("resourceVersion"));
    // A tree of maps with text keys always encodes.
    let bytes = Bytes::from(serde_json::to_vec(object).unwrap_or_default());
    if let Some(version) = version {
        access::ensure_metadata(object).insert("resourceVersion".into(), version);
    }
    bytes
}

/// `metadata`: that of what is there. What is about to go is worth another attempt, and clients are told.
fn already_exists(call: &Call, name: &str, metadata: Option<&Object>) -> Refusal {
    let mut status = Status::already_exists(call.row.spec.group, call.row.spec.plural, name);
    if metadata.is_some_and(|metadata| metadata.get("deletionTimestamp").is_some()) {
        status.message.insert_str(0, "object is being deleted: ");
    }
    refuse(status)
}

fn name_taken(call: &Call, refusal: &Status) -> Refusal {
    let mut status = Status::new(
        409,
        "AlreadyExists",
        format!(
            "{}, the server was not able to generate a unique name for the object",
            refusal.message
        ),
    );
    status.details = Some(Details {
        name: refusal
            .details
            .as_ref()
            .map(|details| details.name.clone())
            .unwrap_or_default(),
        group: call.row.spec.group.into(),
        kind: call.row.spec.plural.into(),
        causes: Vec::<Cause>::new(),
        retry_after_seconds: 1,
        ..Details::default()
    });
    refuse(status)
}
