//! Rows of the table from a definition.
//!
//! A row's names must live as long as the process (the table of built-in resources is made of constants, and rows
//! of both kinds are one type). They are kept once per set of names, however often a definition changes: what
//! changes from generation to generation (schema, columns, fields) belongs to the row and goes with it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use sampan_api::schema::{Type, structural};
use sampan_api::{Object, meta};
use sampan_kinds::{Resource, ScalePaths, Subresource, SubresourceKind, Verbs};
use sampan_structural::{Rules, Schema, definition};
use serde_json::{Value, json};

use super::convert::Converter;
use super::{Custom, CustomStrategy, View, flag, items, path, priority, strategy, text};
use crate::rows::{Row, custom_row};
use crate::sync::lock;
use crate::watch_cache::Storage;

const VIEW: &[&str] = &["get", "patch", "update"];

#[derive(Default)]
pub struct Names {
    texts: Mutex<HashSet<&'static str>>,
    resources: Mutex<HashMap<String, &'static Resource>>,
}

impl Names {
    fn keep(&self, text: &str) -> &'static str {
        let mut kept = lock(&self.texts);
        if let Some(known) = kept.get(text) {
            return known;
        }
        let text: &'static str = Box::leak(text.to_owned().into_boxed_str());
        kept.insert(text);
        text
    }

    fn keep_all(&self, texts: &[Value]) -> &'static [&'static str] {
        let texts: Vec<_> = texts
            .iter()
            .filter_map(Value::as_str)
            .map(|text| self.keep(text))
            .collect();
        Box::leak(texts.into_boxed_slice())
    }

    /// The resource of a version; the same one for the same names.
    fn resource(&self, definition: &Object, version: &Value) -> &'static Resource {
        let names = definition.pointer("/status/acceptedNames").unwrap_or(&Value::Null);
        let key = json!([
            definition.pointer("/spec/group"),
            version.get("name"),
            definition.pointer("/spec/scope"),
            names,
            version.pointer("/subresources/status").is_some(),
            version.pointer("/subresources/scale"),
        ])
        .to_string();
        if let Some(known) = lock(&self.resources).get(&key) {
            return known;
        }
        let keep = |text: &str| self.keep(text);
        let kind = keep(text(names, "/kind"));
        let mut subresources = Vec::new();
        if version.pointer("/subresources/status").is_some() {
            subresources.push(Subresource {
                name: "status",
                kind: SubresourceKind::View,
                gvk: ("", "", kind),
                verbs: VIEW,
            });
        }
        if let Some(paths) = self.scale(version) {
            subresources.push(Subresource {
                name: "scale",
                kind: SubresourceKind::Scale(paths),
                gvk: ("autoscaling", "v1", "Scale"),
                verbs: VIEW,
            });
        }
        let (group, plural) = (text(definition, "/spec/group"), text(names, "/plural"));
        let resource: &'static Resource = Box::leak(Box::new(Resource {
            deprecated: "",
            group: keep(group),
            version: keep(text(version, "/name")),
            plural: keep(plural),
            singular: keep(text(names, "/singular")),
            kind,
            list_kind: keep(text(names, "/listKind")),
            namespaced: text(definition, "/spec/scope") == "Namespaced",
            short_names: self.keep_all(items(names, "/shortNames")),
            categories: self.keep_all(items(names, "/categories")),
            verbs: Verbs::All,
            subresources: Box::leak(subresources.into_boxed_slice()),
            columns: &[],
            cells: |_, _| Vec::new(),
            fields: &[],
            storage_prefix: keep(&format!("{group}/{plural}")),
            stored_as: None,
            strategy: &strategy::PLAIN,
        }));
        lock(&self.resources).insert(key, resource);
        resource
    }

    fn scale(&self, version: &Value) -> Option<ScalePaths> {
        let scale = version.pointer("/subresources/scale")?;
        let path = |field: &str| self.keep(text(scale, field).trim_start_matches('.'));
        Some(ScalePaths {
            spec_replicas: path("/specReplicasPath"),
            status_replicas: path("/statusReplicasPath"),
            selector: path("/labelSelectorPath"),
        })
    }

    /// The row of every served version in the order discovery prefers them, and the row objects are stored as,
    /// served or not.
    pub fn rows(
        &self,
        definition: &Object,
        storage: &Arc<Storage>,
        converter: &Converter,
    ) -> (Vec<Arc<Row>>, Option<Arc<Row>>) {
        let versions = items(definition, "/spec/versions");
        let stored = versions.iter().find(|version| flag(version, "/storage"));
        let group = text(definition, "/spec/group");
        let types: Arc<[(String, Type)]> = versions
            .iter()
            .map(|version| (format!("{group}/{}", text(version, "/name")), type_of(version)))
            .collect();
        let make = |version: &Value| {
            Arc::new(self.row(definition, version, storage.clone(), converter.clone(), types.clone()))
        };
        let mut served: Vec<&Value> = versions.iter().filter(|version| flag(version, "/served")).collect();
        served.sort_by_key(|version| priority(text(version, "/name")));
        let rows = served.into_iter().map(make).collect();
        (rows, stored.map(make))
    }

    fn row(
        &self,
        definition: &Object,
        version: &Value,
        storage: Arc<Storage>,
        converter: Converter,
        versions: Arc<[(String, Type)]>,
    ) -> Row {
        let group = text(definition, "/spec/group");
        let stated = version.pointer("/schema/openAPIV3Schema");
        let schema = stated.and_then(|schema| {
            Schema::parse(schema)
                .inspect_err(
                    |error| tracing::warn!(name = meta::name(definition), %error, "the schema is not structural"),
                )
                .ok()
                .map(Arc::new)
        });
        let ty = type_of(version);
        let spec = self.resource(definition, version);
        let stored = items(definition, "/spec/versions")
            .iter()
            .find(|version| flag(version, "/storage"))
            .map_or("", |version| text(version, "/name"));
        let one_version = items(definition, "/spec/versions").len() == 1;
        let (columns, paths) = columns(version);
        let fields: Vec<(String, Arc<[String]>)> = items(version, "/selectableFields")
            .iter()
            .filter_map(|field| {
                let stated = text(field, "/jsonPath");
                let found = definition::field_path(stated, schema.as_deref()?, false).ok()?;
                Some((stated.trim_start_matches('.').to_owned(), found.names.into()))
            })
            .collect();
        let custom = Custom {
            strategy: CustomStrategy {
                rules: stated
                    .zip(schema.as_deref())
                    .and_then(|(stated, schema)| Rules::of(stated, schema, true)),
                schema: schema.clone(),
                has_status: version.pointer("/subresources/status").is_some(),
                scale: self.scale(version),
                api_version: spec.api_version(),
                kind: spec.kind.to_owned(),
            },
            columns,
            paths,
            schema: stated.map(|schema| Arc::new(published(schema, version))),
            fields,
            deprecation: deprecation(definition, version),
            terminating: meta::is_deleting(definition).into(),
            view: View {
                api_version: spec.api_version(),
                stored_version: format!("{group}/{stored}"),
                schema,
                versions,
                pristine: one_version && meta::generation(definition) <= 1,
                converter,
                storage: storage.clone(),
                seen: Mutex::default(),
            },
        };
        custom_row(spec, storage, ty, Arc::new(custom))
    }
}

/// What a version's objects look like.
fn type_of(version: &Value) -> Type {
    let permissive = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    version
        .pointer("/schema/openAPIV3Schema")
        .and_then(|schema| structural::of_kind(schema).ok())
        .or_else(|| structural::of_kind(&permissive).ok())
        .unwrap_or(Type::Json)
}

/// The schema as documents publish it, with the fields selectors may name.
fn published(schema: &Value, version: &Value) -> Value {
    let mut schema = schema.clone();
    let fields: Vec<Value> = items(version, "/selectableFields")
        .iter()
        .map(|field| json!({"fieldPath": text(field, "/jsonPath").trim_start_matches('.')}))
        .collect();
    if !fields.is_empty()
        && let Some(map) = schema.as_object_mut()
    {
        map.insert("x-kubernetes-selectable-fields".into(), fields.into());
    }
    schema
}

fn columns(version: &Value) -> (Value, Vec<(path::JsonPath, bool)>) {
    let age = [json!({
        "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
        "description": "When it was created, by the server's clock.",
    })];
    let mut own = items(version, "/additionalPrinterColumns");
    if own.is_empty() {
        own = &age;
    }
    let mut columns = vec![json!({
        "name": "Name", "type": "string", "format": "name", "priority": 0,
        "description": "Its name, unique among those of its kind in its namespace.",
    })];
    let mut paths = Vec::new();
    for column in own {
        let ty = text(column, "/type");
        let mut description = text(column, "/description").to_owned();
        if description.is_empty() {
            description = format!(
                "Custom resource definition column (in JSONPath format): {}",
                text(column, "/jsonPath")
            );
        }
        columns.push(json!({
            "name": text(column, "/name"), "type": ty, "format": text(column, "/format"),
            "description": description, "priority": column.get("priority").and_then(Value::as_i64).unwrap_or(0),
        }));
        paths.push((path::JsonPath::parse(text(column, "/jsonPath")), ty == "date"));
    }
    (Value::Array(columns), paths)
}

fn deprecation(definition: &Object, version: &Value) -> Option<String> {
    if !flag(version, "/deprecated") {
        return None;
    }
    if let Some(stated) = version.get("deprecationWarning").and_then(Value::as_str) {
        return Some(stated.to_owned());
    }
    let (group, kind) = (text(definition, "/spec/group"), text(definition, "/spec/names/kind"));
    let own = text(version, "/name");
    let mut newer: Vec<&str> = items(definition, "/spec/versions")
        .iter()
        .filter(|other| flag(other, "/served") && !flag(other, "/deprecated"))
        .map(|other| text(other, "/name"))
        .filter(|other| priority(other) < priority(own))
        .collect();
    newer.sort_by_key(|version| priority(version));
    let mut warning = format!("{group}/{own} {kind} is deprecated");
    if let Some(best) = newer.first() {
        warning.push_str(&format!("; use {group}/{best} {kind}"));
    }
    Some(warning)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(description: &str) -> Value {
        json!({"metadata": {"name": "things.g.x", "generation": 1}, "spec": {"group": "g.x", "scope": "Namespaced", "names": {"kind": "Thing"},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "description": description}},
                 "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".spec.a", "description": description}]},
                {"name": "v1beta1", "served": true, "deprecated": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]},
            "status": {"acceptedNames": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}}})
    }

    #[test]
    fn names_are_kept_once() {
        let names = Names::default();
        let storage = Arc::new(Storage::new("g.x/things", Vec::new(), None));
        for round in 0..1000 {
            let (rows, stored) = names.rows(&definition(&format!("round {round}")), &storage, &Converter::None);
            assert_eq!((rows.len(), stored.is_some()), (2, true));
        }
        assert_eq!(lock(&names.resources).len(), 2);
        assert!(lock(&names.texts).len() < 12);
    }

    #[test]
    fn rows_say_what_the_definition_says() {
        let storage = Arc::new(Storage::new("g.x/things", Vec::new(), None));
        let (rows, _) = Names::default().rows(&definition("text"), &storage, &Converter::None);
        let of = |version: &str| {
            rows.iter()
                .find(|row| row.spec.version == version)
                .and_then(|row| row.custom.clone())
                .unwrap()
        };
        assert_eq!(of("v1").columns[1]["description"], "text");
        assert_eq!(
            of("v1beta1").deprecation.as_deref(),
            Some("g.x/v1beta1 Thing is deprecated; use g.x/v1 Thing")
        );
        assert_eq!(of("v1").deprecation, None);
    }
}
