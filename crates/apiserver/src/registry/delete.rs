//! Delete: preconditions, grace, finalizers, and the end.

use std::time::Duration;

use sampan_api::codec::printed;
use sampan_api::status::Status;
use sampan_api::{Object, meta as access, time};
use sampan_kinds::Propagation;
use sampan_store::{Condition, KeyValue, Op, Write, Written};
use serde_json::{Value, json};

use super::addresses::cluster_addresses;
use super::create::encode;
use super::reply::Reply;
use super::{Call, Registry, meta, store_failure};
use crate::admission::Operation;
use crate::request::DeleteOptions;
use crate::rows::Row;
use crate::watch_cache::{ChangeType, Entry};
use crate::{Refusal, refuse};

/// How often a delete without a stated version is tried against a moving target.
const ATTEMPTS: usize = 64;

/// Resources whose delete answers with the object; all others answer with a Status.
const ANSWER_WITH_OBJECT: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("", "persistentvolumes"),
    ("", "persistentvolumeclaims"),
    ("", "pods"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
    ("", "services"),
    ("", "serviceaccounts"),
    ("resource.k8s.io", "deviceclasses"),
    ("resource.k8s.io", "resourceclaims"),
    ("resource.k8s.io", "resourceclaimtemplates"),
    ("resource.k8s.io", "resourceslices"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
    ("storage.k8s.io", "volumeattributesclasses"),
];

/// What a delete does to an object.
#[derive(Debug, PartialEq)]
enum Plan {
    /// It is on its way already: nothing to do.
    Pending,
    /// It stays for now, as this.
    Mark(Box<Object>),
    Remove,
}

impl Registry {
    pub async fn delete(&self, call: &mut Call, options: &DeleteOptions) -> Result<Reply, Refusal> {
        let storage = call.storage()?;
        let path = call.path();
        let row = call.row.clone();
        let mut existing = self
            .current(&storage, &path)
            .await
            .map(|entry| (entry.object(), entry.revision(), entry.key().clone()));
        if options.ignore_read_error {
            call.notes
                .annotate("apiserver.k8s.io/unsafe-delete-ignore-read-error", "");
        }
        if let Some(reply) = self.delete_unreadable(call, &storage, &path, options).await? {
            return Ok(reply);
        }
        for _ in 0..ATTEMPTS {
            let Some((old, revision, key)) = existing else {
                return Err(call.not_found());
            };
            check_preconditions(&row, &old, options)?;
            let name = call.info.name.clone();
            let seen = match &row.custom {
                Some(_) => Some(crate::custom::loaded(&row, old.clone()).await?),
                None => None,
            };
            let seen = seen.as_ref().unwrap_or(&old);
            self.admit(call, Operation::Delete, &mut Object::Null, Some(seen), options.into())
                .await?;
            self.validate(call, Operation::Delete, &name, None, Some(seen), options.into())
                .await?;
            let mut plan = plan(&row, &old, options);
            let op = match &mut plan {
                Plan::Pending => return Ok(Reply::Object(200, old)),
                Plan::Mark(new) if options.dry_run => return Ok(Reply::Object(200, (**new).clone())),
                Plan::Remove if options.dry_run => return Ok(deleted(&row, old)),
                Plan::Mark(new) => Op::Put {
                    value: encode(new),
                    lease: None,
                },
                Plan::Remove => Op::Delete,
            };
            let write = Write {
                key: key.clone(),
                condition: Condition::ModRevision(revision),
                op: op.clone(),
            };
            match self.cache.store().write(write).await.map_err(store_failure)? {
                Written::Committed { revision, .. } => {
                    return Ok(match (plan, op) {
                        (Plan::Mark(_), Op::Put { value, .. }) => {
                            let entry = self
                                .committed(&storage, key, &path, &value, revision, ChangeType::Modified)
                                .await;
                            Reply::Entry(200, entry)
                        }
                        _ => {
                            self.cache.reached(revision).await;
                            if row.is("", "services") {
                                let held: Vec<_> = cluster_addresses(&old).into_iter().collect();
                                self.give_back(&held, &old).await;
                            }
                            let mut old = old;
                            access::set_resource_version(&mut old, &revision.to_string());
                            deleted(&row, old)
                        }
                    });
                }
                Written::Refused { current, .. } => {
                    existing = current.map(|current: KeyValue| {
                        let mut object = printed::read(&current.value);
                        access::set_resource_version(&mut object, &current.mod_revision.to_string());
                        (object, current.mod_revision, current.key)
                    });
                }
            }
        }
        Err(refuse(Status::modified(
            row.spec.group,
            row.spec.plural,
            &call.info.name,
        )))
    }

    /// What cannot be read cannot be deleted either, but by somebody who asks for that and may: finalizers, owners and
    /// admission then have no say. `None`: it can be read.
    async fn delete_unreadable(
        &self,
        call: &Call,
        storage: &crate::watch_cache::Storage,
        path: &str,
        options: &DeleteOptions,
    ) -> Result<Option<Reply>, Refusal> {
        let Some(entry) = storage.get(path) else {
            return Ok(None);
        };
        let spec = call.row.spec;
        if !options.ignore_read_error {
            super::readable(&entry)?;
            return Ok(None);
        }
        if entry.unreadable().is_none() {
            let at = sampan_api::field::Path::new("ignoreStoreReadErrorWithClusterBreakingPotential");
            let error = sampan_api::field::Error::invalid(
                &at,
                true,
                "is exclusively used to delete corrupt object(s), try again by removing this option",
            );
            return Err(refuse(Status::invalid(spec.group, "DeleteOptions", "", &[error])));
        }
        let right = sampan_auth::Attributes {
            version: spec.version,
            namespace: &call.info.namespace,
            name: &call.info.name,
            path: &call.info.path,
            ..sampan_auth::Attributes::resource(&call.user, "unsafe-delete-ignore-read-errors", spec.group, spec.plural)
        };
        self.authorizer
            .check(&right)
            .map_err(|why| refuse(Status::forbidden(spec.group, spec.plural, &call.info.name, &why)))?;
        if !options.dry_run {
            let write = Write {
                key: entry.key().clone(),
                condition: Condition::ModRevision(entry.revision()),
                op: Op::Delete,
            };
            match self.cache.store().write(write).await.map_err(store_failure)? {
                Written::Committed { revision } => self.cache.reached(revision).await,
                Written::Refused { .. } => {
                    return Err(refuse(Status::modified(spec.group, spec.plural, &call.info.name)));
                }
            }
        }
        Ok(Some(Reply::Plain(
            200,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": call.info.name, "group": spec.group, "kind": spec.plural}}),
        )))
    }

    /// Deletes one listed object, as part of a collection. Absence is success.
    pub(super) async fn delete_entry(
        &self,
        call: &mut Call,
        entry: &Entry,
        options: &DeleteOptions,
    ) -> Result<(), Refusal> {
        call.info.namespace = entry.namespace().to_owned();
        call.info.name = entry.name().to_owned();
        match self.delete(call, options).await {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.code == 404 => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }
}

/// The answer to a completed delete.
fn deleted(row: &Row, old: Object) -> Reply {
    if ANSWER_WITH_OBJECT.contains(&(row.spec.group, row.spec.plural)) {
        return Reply::Object(200, old);
    }
    let mut details = json!({"name": access::name(&old), "kind": row.spec.plural, "uid": access::uid(&old)});
    if !row.spec.group.is_empty() {
        details["group"] = row.spec.group.into();
    }
    Reply::Plain(
        200,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
    )
}

fn check_preconditions(row: &Row, old: &Object, options: &DeleteOptions) -> Result<(), Refusal> {
    // Upstream names the kind, not the resource, in these two.
    let conflict = |why: String| {
        Err(refuse(Status::conflict(
            row.spec.group,
            row.spec.kind,
            access::name(old),
            &why,
        )))
    };
    if let Some(uid) = &options.uid
        && uid != access::uid(old)
    {
        return conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            access::uid(old)
        ));
    }
    if let Some(version) = &options.resource_version
        && version != access::resource_version(old)
    {
        return conflict(format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
            access::resource_version(old)
        ));
    }
    Ok(())
}

fn plan(row: &Row, old: &Object, options: &DeleteOptions) -> Plan {
    // Negative means "soon".
    let asked = options
        .grace_period_seconds
        .map(|seconds| if seconds < 0 { 1 } else { seconds });
    let mut new = old.clone();
    let mut grace = 0;
    let mut graceful = false;
    if access::is_deleting(old) {
        let left =
            access::deletion_grace_period_seconds(old).map_or(0, |seconds| if seconds < 0 { 1 } else { seconds });
        if left != 0 {
            // Grace can only be shortened.
            let Some(mut period) = asked.filter(|period| *period < left) else {
                return Plan::Pending;
            };
            let until = access::deletion_timestamp(old)
                .and_then(|at| time::parse(at).ok())
                .and_then(|at| at.checked_sub(Duration::from_secs(left as u64)).ok())
                .and_then(|at| at.checked_add(Duration::from_secs(period as u64)).ok());
            let now = jiff::Timestamp::now();
            let until = match until {
                Some(until) if until >= now => until,
                _ => {
                    if period != 0 {
                        period = 1;
                    }
                    now
                }
            };
            access::set_deletion_timestamp(&mut new, &time::format(until));
            access::set_deletion_grace_period_seconds(&mut new, Some(period));
            grace = period;
            graceful = true;
        }
    } else if let Some(seconds) = row.strategy().graceful_deletion(old, asked) {
        let until = jiff::Timestamp::now()
            .checked_add(Duration::from_secs(seconds.max(0) as u64))
            .unwrap_or(jiff::Timestamp::MAX);
        access::set_deletion_timestamp(&mut new, &time::format(until));
        access::set_deletion_grace_period_seconds(&mut new, Some(seconds));
        if access::generation(old) > 0 {
            access::set_generation(&mut new, access::generation(old) + 1);
        }
        grace = seconds;
        graceful = true;
    }
    if row.is("apiextensions.k8s.io", "customresourcedefinitions") && !access::is_deleting(old) {
        crate::custom::begin_deletion(&mut new);
    }
    set_collector_finalizers(row, &mut new, options.propagation);
    let held = meta::is_held(row, &new);
    if graceful && grace > 0 {
        return Plan::Mark(Box::new(new));
    }
    if !held {
        return Plan::Remove;
    }
    if !graceful {
        meta::mark_deleting(&mut new);
    }
    if row.is("", "namespaces") {
        new["status"]["phase"] = "Terminating".into();
    }
    if new == *old {
        Plan::Pending
    } else {
        Plan::Mark(Box::new(new))
    }
}

/// Sets or takes away the garbage collector's two finalizers as the deletion asks.
fn set_collector_finalizers(row: &Row, object: &mut Object, asked: Option<Propagation>) {
    let policy = asked.unwrap_or_else(|| {
        if access::has_finalizer(object, meta::ORPHAN) {
            Propagation::Orphan
        } else if access::has_finalizer(object, meta::FOREGROUND) {
            Propagation::Foreground
        } else {
            row.strategy().default_propagation()
        }
    });
    let wanted = match policy {
        Propagation::Background => None,
        Propagation::Foreground => Some(meta::FOREGROUND),
        Propagation::Orphan => Some(meta::ORPHAN),
    };
    for finalizer in [meta::ORPHAN, meta::FOREGROUND] {
        if wanted == Some(finalizer) {
            access::add_finalizer(object, finalizer);
        } else {
            access::remove_finalizer(object, finalizer);
        }
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
        && metadata
            .get("finalizers")
            .and_then(Value::as_array)
            .is_some_and(Vec::is_empty)
    {
        metadata.remove("finalizers");
    }
}
