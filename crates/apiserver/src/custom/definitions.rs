//! Follows the definitions: registers and takes away rows, gives names, cleans up after a deletion.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sampan_api::{Object, meta};
use sampan_kinds::Part;
use sampan_tasks::OnExit;
use serde_json::Value;

use super::conditions::{self, CLEANUP, Taken};
use super::convert::Converter;
use super::rows::Names;
use super::{GROUP, PLURAL, text};
use crate::Refusal;
use crate::control_plane::ControlPlane;
use crate::registry::Call;
use crate::request::{DeleteOptions, ListOptions, WriteOptions};
use crate::rows::Row;
use crate::watch_cache::{ChangeType, Scope, Start, Storage};

use crate::sync::lock;

/// How long objects may take to go before the definition says that it waits for them.
const PATIENCE: Duration = Duration::from_secs(60);

struct Definitions {
    plane: Arc<ControlPlane>,
    names: Names,
    /// What each definition's rows were made from.
    registered: Mutex<HashMap<String, Registered>>,
    /// Definitions whose objects are being deleted.
    cleaning: Mutex<HashSet<String>>,
}

/// The rows of a definition and what they were made from.
struct Registered {
    uid: String,
    spec: Value,
    accepted: Value,
    group: String,
    plural: String,
    rows: Vec<Arc<Row>>,
    /// The row of the storage version, served or not.
    stored: Option<Arc<Row>>,
}

/// Registers what is stored and follows what changes.
pub async fn start(plane: &Arc<ControlPlane>) -> Result<(), Refusal> {
    let Some(storage) = plane.registry.storage_of(GROUP, PLURAL) else {
        return Ok(());
    };
    let definitions = Arc::new(Definitions {
        plane: plane.clone(),
        names: Names::default(),
        registered: Mutex::default(),
        cleaning: Mutex::default(),
    });
    let known: Vec<_> = storage.snapshot(0).index.iter().cloned().collect();
    for entry in known {
        definitions.sync(&entry.object()).await?;
    }
    let from = plane.registry.cache.revision();
    plane
        .tasks
        .clone()
        .spawn_until_drain("custom-resources", OnExit::Critical, async move {
            let mut from = from;
            loop {
                let Ok(mut watch) = storage.watch(Scope::All, Start::After(from), from) else {
                    // History was trimmed under a stuck task: begin again with what is there.
                    from = definitions.plane.registry.cache.revision();
                    definitions.resync(&storage).await;
                    continue;
                };
                let backlog: Vec<_> = watch.backlog.drain(..).collect();
                for change in backlog {
                    from = change.revision;
                    definitions.changed(change.kind, &change.entry.object(), &storage).await;
                }
                while let Some(change) = watch.queue.recv().await {
                    from = change.revision;
                    definitions.changed(change.kind, &change.entry.object(), &storage).await;
                }
                if definitions.plane.tasks.drain().is_started() {
                    return;
                }
            }
        });
    Ok(())
}

impl Definitions {
    async fn changed(self: &Arc<Self>, kind: ChangeType, definition: &Object, storage: &Arc<Storage>) {
        if kind == ChangeType::Deleted {
            self.forget(meta::name(definition));
        } else {
            self.try_sync(definition).await;
        }
        // Names may have become free.
        let group = text(definition, "/spec/group");
        let waiting: Vec<Object> = storage
            .snapshot(0)
            .index
            .iter()
            .filter(|entry| entry.name() != meta::name(definition))
            .map(|entry| entry.object())
            .filter(|other| text(other, "/spec/group") == group && !conditions::is_true(other, "NamesAccepted"))
            .collect();
        for other in waiting {
            self.try_sync(&other).await;
        }
    }

    /// Begins again with what is there.
    async fn resync(self: &Arc<Self>, storage: &Storage) {
        let entries: Vec<_> = storage.snapshot(0).index.iter().cloned().collect();
        let gone: Vec<String> = lock(&self.registered)
            .keys()
            .filter(|name| !entries.iter().any(|entry| entry.name() == name.as_str()))
            .cloned()
            .collect();
        for name in gone {
            self.forget(&name);
        }
        for entry in entries {
            self.try_sync(&entry.object()).await;
        }
    }

    async fn try_sync(self: &Arc<Self>, definition: &Object) {
        if let Err(refusal) = self.sync(definition).await {
            tracing::warn!(
                name = meta::name(definition),
                error = refusal.message,
                "a custom resource definition could not be served"
            );
        }
    }

    fn forget(&self, name: &str) {
        lock(&self.cleaning).remove(name);
        if let Some(known) = lock(&self.registered).remove(name) {
            self.plane.registry.rows.remove(&known.group, &known.plural);
            // Its watches end with it.
            self.plane
                .registry
                .cache
                .remove(&format!("{}/{}", known.group, known.plural));
        }
    }

    /// Names others in the group have, built-in kinds included.
    fn taken(&self, definition: &Object) -> Taken {
        let group = text(definition, "/spec/group");
        let mut taken = Taken::default();
        let table = self.plane.registry.rows.get();
        for row in table
            .rows
            .iter()
            .filter(|row| row.spec.group == group && row.custom.is_none())
        {
            let spec = row.spec;
            taken.resources.extend(
                [spec.plural, spec.singular]
                    .into_iter()
                    .chain(spec.short_names.iter().copied())
                    .map(str::to_owned),
            );
            taken.kinds.insert(spec.kind.to_owned());
            taken.kinds.insert(spec.list_kind.to_owned());
        }
        if let Some(storage) = self.plane.registry.storage_of(GROUP, PLURAL) {
            for entry in storage.snapshot(0).index.iter() {
                if entry.name() == meta::name(definition) {
                    continue;
                }
                let other = entry.object();
                if text(&other, "/spec/group") == group
                    && let Some(accepted) = other.pointer("/status/acceptedNames")
                {
                    taken.add(accepted);
                }
            }
        }
        taken
    }

    async fn sync(self: &Arc<Self>, definition: &Object) -> Result<(), Refusal> {
        let name = meta::name(definition).to_owned();
        let taken = self.taken(definition);
        let mut settled = definition.clone();
        conditions::settle(&mut settled, &taken);
        if conditions::serves(&settled) {
            self.register(&settled).await?;
        }
        if meta::is_deleting(definition) {
            if let Some(known) = lock(&self.registered).get(&name) {
                for row in known.rows.iter().chain(&known.stored) {
                    if let Some(custom) = &row.custom {
                        custom.terminate();
                    }
                }
            }
            if meta::has_finalizer(definition, CLEANUP) && lock(&self.cleaning).insert(name.clone()) {
                let (this, definition) = (self.clone(), definition.clone());
                self.plane
                    .tasks
                    .spawn_until_drain(format!("cleanup of {name}"), OnExit::Expected, async move {
                        let mut delay = Duration::from_secs(1);
                        while let Err(refusal) = this.clean_up(&definition).await {
                            tracing::warn!(
                                name = meta::name(&definition),
                                error = refusal.message,
                                "objects of a deleted definition remain; trying again"
                            );
                            tokio::time::sleep(delay).await;
                            delay = (delay * 2).min(PATIENCE);
                        }
                        lock(&this.cleaning).remove(meta::name(&definition));
                    });
            }
            return Ok(());
        }
        if settled == *definition {
            return Ok(());
        }
        self.write_status(&name, &mut |current| conditions::settle(current, &taken))
            .await
    }

    async fn write_status(&self, name: &str, change: &mut (dyn FnMut(&mut Object) + Send)) -> Result<(), Refusal> {
        let registry = &self.plane.registry;
        let Some(row) = registry.row(GROUP, PLURAL) else {
            return Ok(());
        };
        let mut call = Call::internal(row, "update", "", name);
        let written = registry
            .rewrite(
                &mut call,
                Part::View("status"),
                &WriteOptions::default(),
                &mut |_, current| {
                    let mut new = current.clone();
                    change(&mut new);
                    Ok(new)
                },
            )
            .await;
        match written {
            Ok(_) => Ok(()),
            // Deleted in the meantime: there is nothing to say any more.
            Err(refusal) if refusal.code == 404 => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// Makes the rows what the definition says, unless they are already.
    async fn register(&self, definition: &Object) -> Result<(), Refusal> {
        let name = meta::name(definition);
        let accepted = definition.pointer("/status/acceptedNames").cloned().unwrap_or_default();
        let (spec, uid) = (
            definition.get("spec").cloned().unwrap_or_default(),
            meta::uid(definition),
        );
        let same = lock(&self.registered)
            .get(name)
            .is_some_and(|known| known.spec == spec && known.accepted == accepted && known.uid == uid);
        if same {
            return Ok(());
        }
        let (group, plural) = (text(definition, "/spec/group"), text(definition, "/spec/names/plural"));
        let registry = &self.plane.registry;
        let storage = Arc::new(Storage::new(&format!("{group}/{plural}"), Vec::new(), None));
        let storage = registry
            .cache
            .add(storage)
            .await
            .map_err(|error| crate::refuse(sampan_api::status::Status::internal(error)))?;
        let converter = Converter::of(definition, &self.plane.outbound);
        let (rows, stored) = self.names.rows(definition, &storage, &converter);
        registry.rows.replace(group, plural, rows.clone());
        // Whoever watches has seen the last of the old shape; clients watch again and see the new one.
        storage.end_watches();
        lock(&self.registered).insert(
            name.to_owned(),
            Registered {
                uid: uid.to_owned(),
                spec,
                accepted,
                group: group.to_owned(),
                plural: plural.to_owned(),
                rows,
                stored,
            },
        );
        Ok(())
    }

    /// Deletes every object, waits until they are gone, and lets the definition go.
    async fn clean_up(&self, definition: &Object) -> Result<(), Refusal> {
        let name = meta::name(definition);
        let terminating = |status: &'static str, reason: &'static str, message: &'static str| {
            move |current: &mut Object| conditions::set_condition(current, "Terminating", status, reason, message)
        };
        self.write_status(
            name,
            &mut terminating(
                "True",
                "InstanceDeletionInProgress",
                "CustomResource deletion is in progress",
            ),
        )
        .await?;
        let row = lock(&self.registered).get(name).and_then(|known| known.stored.clone());
        match row {
            Some(row) if conditions::is_true(definition, "Established") => {
                self.delete_objects(name, row).await?;
                self.write_status(
                    name,
                    &mut terminating("False", "InstanceDeletionCompleted", "removed all instances"),
                )
                .await?;
            }
            _ => {
                self.write_status(
                    name,
                    &mut terminating("False", "NeverEstablished", "resource was never established"),
                )
                .await?;
            }
        }
        self.release(name).await
    }

    async fn delete_objects(&self, name: &str, row: Arc<Row>) -> Result<(), Refusal> {
        let registry = &self.plane.registry;
        let Some(storage) = row.storage.clone() else {
            return Ok(());
        };
        let mut call = Call::internal(row, "deletecollection", "", "");
        let deleted = registry
            .delete_collection(&mut call, &ListOptions::default(), &DeleteOptions::default())
            .await;
        if let Err(refusal) = deleted {
            let why = format!("could not issue all deletes: {}", refusal.message);
            self.write_status(name, &mut |current| {
                conditions::set_condition(current, "Terminating", "True", "InstanceDeletionFailed", &why);
            })
            .await?;
            return Err(refusal);
        }
        loop {
            let Ok(mut watch) = storage.watch(Scope::All, Start::Now, registry.cache.revision()) else {
                return Ok(());
            };
            let gone = async {
                while !storage.is_empty() {
                    if watch.queue.recv().await.is_none() {
                        return storage.is_empty();
                    }
                }
                true
            };
            match tokio::time::timeout(PATIENCE, gone).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(_late) => {
                    self.write_status(name, &mut |current| {
                        conditions::set_condition(
                            current,
                            "Terminating",
                            "True",
                            "InstanceDeletionCheck",
                            "could not confirm zero CustomResources remaining: context deadline exceeded",
                        );
                    })
                    .await?;
                }
            }
        }
    }

    /// Takes the finalizer off a definition.
    async fn release(&self, name: &str) -> Result<(), Refusal> {
        let registry = &self.plane.registry;
        let Some(row) = registry.row(GROUP, PLURAL) else {
            return Ok(());
        };
        for _ in 0..8 {
            let Some(entry) = row.storage.as_ref().and_then(|storage| storage.get(name)) else {
                return Ok(());
            };
            let mut object = entry.object();
            meta::remove_finalizer(&mut object, CLEANUP);
            // Whatever has changed meanwhile, only the finalizer matters; a change in between is seen by the version.
            let finalizers: Vec<String> = meta::finalizers(&object).map(str::to_owned).collect();
            let version = meta::resource_version(&object).to_owned();
            let mut call = Call::internal(row.clone(), "update", "", name);
            let patch =
                serde_json::json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}}).to_string();
            let patched = registry
                .patch(
                    &mut call,
                    Part::Main,
                    crate::registry::patch::PatchType::Merge,
                    patch.as_bytes(),
                    &WriteOptions::default(),
                )
                .await;
            match patched {
                Err(refusal) if refusal.code == 409 => continue,
                Err(refusal) if refusal.code == 404 => return Ok(()),
                result => return result.map(|_| ()),
            }
        }
        Ok(())
    }
}
