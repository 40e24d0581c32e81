//! Custom resources: a CustomResourceDefinition becomes rows of the table while the server runs.
//!
//! One task follows the definitions. It registers the rows first and only then says `Established`, so whoever
//! waits for that condition can use the resource at once. Deleting a definition deletes its objects first.
//!
//! What is there: structural schemas (pruning, defaults, types, required fields, enumerations and bounds), status
//! and scale subresources, printer columns, several versions with conversion `None`. Not yet: conversion
//! webhooks, CEL rules, selectable fields.

mod path;
mod strategy;
mod validate;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use sampan_api::schema::{Type, structural};
use sampan_api::{Object, meta, time};
use sampan_kinds::{Column, Part, Resource, ScalePaths, Subresource, SubresourceKind, Verbs};
use sampan_tasks::OnExit;
use serde_json::{Value, json};

use crate::Refusal;
use crate::control_plane::ControlPlane;
use crate::registry::{Call, Registry};
use crate::request::{DeleteOptions, ListOptions, WriteOptions};
use crate::rows::{Row, custom_row};
use crate::sync::lock;
use crate::watch_cache::{ChangeType, Scope, Start, Storage};

pub use strategy::CustomStrategy;

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
const VIEW: &[&str] = &["get", "patch", "update"];

/// What a custom row has beyond a built-in one.
pub struct Custom {
    pub strategy: CustomStrategy,
    /// Where the cells after the name are read.
    paths: Vec<(path::JsonPath, bool)>,
    /// `openAPIV3Schema`, for the documents.
    pub schema: Option<Arc<Value>>,
    /// Whether stored objects carry another `apiVersion` than this row's.
    pub converts: bool,
}

impl Custom {
    pub fn cells(&self, object: &Object, now: jiff::Timestamp) -> Vec<Value> {
        let mut cells = vec![Value::from(meta::name(object))];
        cells.extend(self.paths.iter().map(|(path, is_date)| {
            let value = path.first(object).cloned().unwrap_or_default();
            match (&value, is_date) {
                (Value::String(at), true) => time::age(Some(at), now).into(),
                (Value::Object(_) | Value::Array(_), _) => value.to_string().into(),
                _ => value,
            }
        }));
        cells
    }
}

/// Rows live as long as the process; their few names are kept once, however often a definition changes.
#[derive(Default)]
struct Names(Mutex<HashSet<&'static str>>);

impl Names {
    fn keep(&self, text: &str) -> &'static str {
        let mut kept = lock(&self.0);
        if let Some(known) = kept.get(text) {
            return known;
        }
        let text: &'static str = Box::leak(text.to_owned().into_boxed_str());
        kept.insert(text);
        text
    }
    fn keep_all(&self, texts: Option<&Value>) -> &'static [&'static str] {
        let texts: Vec<_> = texts
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|text| self.keep(text))
            .collect();
        if texts.is_empty() {
            &[]
        } else {
            Box::leak(texts.into_boxed_slice())
        }
    }
}

struct Definitions {
    plane: Arc<ControlPlane>,
    names: Names,
    /// The generation each definition's rows were made from.
    registered: Mutex<HashMap<String, i64>>,
    /// Definitions whose objects are being deleted.
    cleaning: Mutex<HashSet<String>>,
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
                    continue;
                };
                let backlog: Vec<_> = watch.backlog.drain(..).collect();
                for change in backlog {
                    from = change.revision;
                    definitions.changed(change.kind, &change.entry.object()).await;
                }
                while let Some(change) = watch.queue.recv().await {
                    from = change.revision;
                    definitions.changed(change.kind, &change.entry.object()).await;
                }
                if definitions.plane.tasks.drain().is_started() {
                    return;
                }
            }
        });
    Ok(())
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
}

impl Definitions {
    async fn changed(self: &Arc<Self>, kind: ChangeType, definition: &Object) {
        if kind == ChangeType::Deleted {
            self.forget(definition);
            return;
        }
        if let Err(refusal) = self.sync(definition).await {
            tracing::warn!(
                name = meta::name(definition),
                error = refusal.message,
                "a custom resource definition could not be served"
            );
        }
    }

    fn forget(&self, definition: &Object) {
        let (group, plural) = (text(definition, "/spec/group"), text(definition, "/spec/names/plural"));
        lock(&self.registered).remove(meta::name(definition));
        lock(&self.cleaning).remove(meta::name(definition));
        self.plane.registry.rows.remove(group, plural);
        self.plane.registry.cache.remove(&format!("{group}/{plural}"));
    }

    async fn sync(self: &Arc<Self>, definition: &Object) -> Result<(), Refusal> {
        let name = meta::name(definition).to_owned();
        let conflict = self.name_conflict(definition);
        if conflict.is_none() {
            let generation = meta::generation(definition);
            let known = lock(&self.registered).get(&name).copied();
            if known != Some(generation) {
                self.register(definition).await?;
                lock(&self.registered).insert(name.clone(), generation);
            }
        }
        if meta::is_deleting(definition) {
            if meta::has_finalizer(definition, CLEANUP) && lock(&self.cleaning).insert(name.clone()) {
                let (this, definition) = (self.clone(), definition.clone());
                self.plane
                    .tasks
                    .spawn_until_drain(format!("cleanup of {name}"), OnExit::Expected, async move {
                        if let Err(refusal) = this.clean_up(&definition).await {
                            tracing::warn!(
                                name = meta::name(&definition),
                                error = refusal.message,
                                "objects of a deleted definition remain"
                            );
                            lock(&this.cleaning).remove(meta::name(&definition));
                        }
                    });
            }
            return Ok(());
        }
        if is_settled(definition, conflict.as_deref()) {
            return Ok(());
        }
        let registry = &self.plane.registry;
        let Some(row) = registry.row(GROUP, PLURAL) else {
            return Ok(());
        };
        let mut call = Call::internal(row, "update", "", &name);
        registry
            .rewrite(
                &mut call,
                Part::View("status"),
                &WriteOptions::default(),
                &mut |_, current| {
                    let mut new = current.clone();
                    settle(&mut new, conflict.as_deref());
                    Ok(new)
                },
            )
            .await?;
        Ok(())
    }

    /// Another resource of the group that has one of the names already.
    fn name_conflict(&self, definition: &Object) -> Option<String> {
        let group = text(definition, "/spec/group");
        let (plural, kind) = (
            text(definition, "/spec/names/plural"),
            text(definition, "/spec/names/kind"),
        );
        let table = self.plane.registry.rows.get();
        let taken = table
            .rows
            .iter()
            .find(|row| row.spec.group == group && row.spec.plural != plural && row.spec.kind == kind)?;
        Some(format!("{kind:?} is already in use by {}", taken.qualified()))
    }

    async fn register(&self, definition: &Object) -> Result<(), Refusal> {
        let (group, plural) = (text(definition, "/spec/group"), text(definition, "/spec/names/plural"));
        let registry = &self.plane.registry;
        let storage = Arc::new(Storage::new(&format!("{group}/{plural}"), Vec::new(), None));
        let storage = registry
            .cache
            .add(storage)
            .await
            .map_err(|error| crate::refuse(sampan_api::status::Status::internal(error)))?;
        let versions: Vec<&Value> = definition
            .pointer("/spec/versions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .collect();
        let stored = versions
            .iter()
            .find(|version| flag(version, "/storage"))
            .map_or("", |version| text(version, "/name"));
        let stored_version = format!("{group}/{stored}");
        let one_version = definition
            .pointer("/status/storedVersions")
            .and_then(Value::as_array)
            .is_none_or(|all| all.len() < 2);
        let mut served: Vec<&Value> = versions
            .into_iter()
            .filter(|version| flag(version, "/served"))
            .collect();
        served.sort_by_key(|version| priority(text(version, "/name")));
        let rows: Vec<Arc<Row>> = served
            .into_iter()
            .map(|version| {
                let converts = !one_version || text(version, "/name") != stored;
                Arc::new(self.row(definition, version, storage.clone(), &stored_version, converts))
            })
            .collect();
        registry.rows.replace(group, plural, rows);
        Ok(())
    }

    fn row(
        &self,
        definition: &Object,
        version: &Value,
        storage: Arc<Storage>,
        stored_version: &str,
        converts: bool,
    ) -> Row {
        let keep = |text: &str| self.names.keep(text);
        let schema = version.pointer("/schema/openAPIV3Schema");
        let permissive = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let ty = schema
            .map(structural::of_kind)
            .and_then(|ty| {
                ty.inspect_err(
                    |error| tracing::warn!(name = meta::name(definition), %error, "the schema is not structural"),
                )
                .ok()
            })
            .or_else(|| structural::of_kind(&permissive).ok())
            .unwrap_or(Type::Json);
        let has_status = version.pointer("/subresources/status").is_some();
        let mut subresources = Vec::new();
        let kind = keep(text(definition, "/spec/names/kind"));
        if has_status {
            subresources.push(Subresource {
                name: "status",
                kind: SubresourceKind::View,
                gvk: ("", "", kind),
                verbs: VIEW,
            });
        }
        if let Some(scale) = version.pointer("/subresources/scale") {
            let path = |field: &str| keep(text(scale, field).trim_start_matches('.'));
            let paths = ScalePaths {
                spec_replicas: path("/specReplicasPath"),
                status_replicas: path("/statusReplicasPath"),
                selector: path("/labelSelectorPath"),
            };
            subresources.push(Subresource {
                name: "scale",
                kind: SubresourceKind::Scale(paths),
                gvk: ("autoscaling", "v1", "Scale"),
                verbs: VIEW,
            });
        }
        let mut columns = vec![Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Its name, unique among those of its kind in its namespace.",
            priority: 0,
        }];
        let mut paths = Vec::new();
        let own = version
            .pointer("/additionalPrinterColumns")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_else(|| vec![json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})]);
        for column in &own {
            columns.push(Column {
                name: keep(text(column, "/name")),
                kind: keep(text(column, "/type")),
                format: keep(text(column, "/format")),
                description: keep(text(column, "/description")),
                priority: column.pointer("/priority").and_then(Value::as_i64).unwrap_or(0) as i32,
            });
            paths.push((
                path::JsonPath::parse(text(column, "/jsonPath")),
                text(column, "/type") == "date",
            ));
        }
        let spec: &'static Resource = Box::leak(Box::new(Resource {
            group: keep(text(definition, "/spec/group")),
            version: keep(text(version, "/name")),
            plural: keep(text(definition, "/spec/names/plural")),
            singular: keep(text(definition, "/spec/names/singular")),
            kind,
            list_kind: keep(text(definition, "/spec/names/listKind")),
            namespaced: text(definition, "/spec/scope") == "Namespaced",
            short_names: self.names.keep_all(definition.pointer("/spec/names/shortNames")),
            categories: self.names.keep_all(definition.pointer("/spec/names/categories")),
            verbs: Verbs::All,
            subresources: Box::leak(subresources.into_boxed_slice()),
            columns: Box::leak(columns.into_boxed_slice()),
            cells: |_, _| Vec::new(),
            fields: &[],
            storage_prefix: keep(storage.prefix()),
            stored_as: None,
            strategy: &strategy::PLAIN,
        }));
        let custom = Custom {
            strategy: CustomStrategy::new(ty.clone(), schema.cloned(), has_status),
            paths,
            schema: schema.cloned().map(Arc::new),
            converts,
        };
        custom_row(spec, storage, ty, stored_version.to_owned(), Arc::new(custom))
    }

    /// Deletes every object, waits until they are gone, and lets the definition go.
    async fn clean_up(&self, definition: &Object) -> Result<(), Refusal> {
        let registry = &self.plane.registry;
        let (group, plural) = (text(definition, "/spec/group"), text(definition, "/spec/names/plural"));
        if let Some(row) = registry.row(group, plural)
            && let Some(storage) = row.storage.clone()
        {
            let mut call = Call::internal(row, "deletecollection", "", "");
            registry
                .delete_collection(&mut call, &ListOptions::default(), &DeleteOptions::default())
                .await?;
            let revision = registry.cache.revision();
            if let Ok(mut watch) = storage.watch(Scope::All, Start::Now, revision) {
                while !storage.is_empty() {
                    if watch.queue.recv().await.is_none() {
                        break;
                    }
                }
            }
        }
        release(registry, meta::name(definition)).await
    }
}

/// Takes the finalizer off a definition.
async fn release(registry: &Registry, name: &str) -> Result<(), Refusal> {
    let Some(row) = registry.row(GROUP, PLURAL) else {
        return Ok(());
    };
    let Some(entry) = row.storage.as_ref().and_then(|storage| storage.get(name)) else {
        return Ok(());
    };
    let mut object = entry.object();
    meta::remove_finalizer(&mut object, CLEANUP);
    // Whatever has changed meanwhile, only the finalizer matters.
    let finalizers: Vec<String> = meta::finalizers(&object).map(str::to_owned).collect();
    let mut call = Call::internal(row, "update", "", name);
    let patch = json!({"metadata": {"finalizers": finalizers}}).to_string();
    registry
        .patch(
            &mut call,
            Part::Main,
            crate::registry::patch::PatchType::Merge,
            patch.as_bytes(),
            &WriteOptions::default(),
        )
        .await
        .map(|_| ())
}

/// Versions in the order discovery prefers them: stable before beta before alpha, higher numbers first.
fn priority(version: &str) -> (u8, i64, i64, String) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len());
        let major: i64 = rest.get(..digits)?.parse().ok()?;
        let (stage, minor) = match rest.get(digits..)? {
            "" => (0, 0),
            beta if beta.starts_with("beta") => (1, beta.get(4..)?.parse().ok()?),
            alpha if alpha.starts_with("alpha") => (2, alpha.get(5..)?.parse().ok()?),
            _ => return None,
        };
        Some((stage, -major, -minor, String::new()))
    };
    parse().unwrap_or((3, 0, 0, version.to_owned()))
}

fn condition<'a>(definition: &'a Object, kind: &str) -> Option<&'a Value> {
    definition
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|condition| text(condition, "/type") == kind)
}

fn is_settled(definition: &Object, conflict: Option<&str>) -> bool {
    let is =
        |kind: &str, wanted: &str| condition(definition, kind).is_some_and(|found| text(found, "/status") == wanted);
    let accepted = if conflict.is_some() {
        is("NamesAccepted", "False")
    } else {
        is("NamesAccepted", "True")
            && is("Established", "True")
            && definition.pointer("/status/acceptedNames") == definition.pointer("/spec/names")
    };
    accepted && meta::has_finalizer(definition, CLEANUP)
}

/// Says in its status what has become of a definition.
fn settle(definition: &mut Object, conflict: Option<&str>) {
    meta::add_finalizer(definition, CLEANUP);
    match conflict {
        Some(why) => {
            set_condition(definition, "NamesAccepted", "False", "KindConflict", why);
            set_condition(
                definition,
                "Established",
                "False",
                "NotAccepted",
                "not all names are accepted",
            );
        }
        None => {
            let names = definition.pointer("/spec/names").cloned().unwrap_or_default();
            definition["status"]["acceptedNames"] = names;
            set_condition(definition, "NamesAccepted", "True", "NoConflicts", "no conflicts found");
            set_condition(
                definition,
                "Established",
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted",
            );
        }
    }
}

fn set_condition(definition: &mut Object, kind: &str, status: &str, reason: &str, message: &str) {
    if condition(definition, kind)
        .is_some_and(|found| text(found, "/status") == status && text(found, "/reason") == reason)
    {
        return;
    }
    let status_map = meta::ensure_map(meta::ensure_map(definition).entry("status").or_insert(Value::Null));
    let conditions = status_map.entry("conditions").or_insert(Value::Null);
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|condition| text(condition, "/type") != kind);
        conditions.push(json!({
            "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": time::now()}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_upstream_orders_them() {
        let mut versions = ["v1alpha1", "v2", "v1beta2", "v10", "foo", "v1beta10", "v1"];
        versions.sort_by_key(|version| priority(version));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "foo"]);
    }
}
