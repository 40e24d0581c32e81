//! Types as JSON schemas, in the dialects of OpenAPI 2 and 3.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Api, ResourceDesc, defaults};
use crate::schema::{self, Definition, Descriptions, Field, ListKind, Type};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

impl Dialect {
    pub fn reference(self, name: &str) -> String {
        match self {
            Dialect::V2 => format!("#/definitions/{name}"),
            Dialect::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const CRD: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// The definition's name of a custom kind: its group backwards, then version and kind.
pub fn custom_name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').rev().collect();
    parts.push(version);
    parts.push(kind);
    parts.join(".")
}

/// The definition's name of a kind.
pub fn name_of(group: &str, version: &str, kind: &str) -> String {
    schema::builtin().kind(group, version, kind).map_or_else(
        || custom_name(group, version, kind),
        |definition| definition.name.clone().into_owned(),
    )
}

/// Collects the schemas that references reach.
pub struct Schemas<'a> {
    dialect: Dialect,
    api: &'a Api,
    texts: &'a Descriptions,
    pending: Vec<String>,
    seen: BTreeSet<String>,
    done: Map<String, Value>,
}

impl<'a> Schemas<'a> {
    pub fn new(dialect: Dialect, api: &'a Api, texts: &'a Descriptions) -> Self {
        Schemas {
            dialect,
            api,
            texts,
            pending: Vec::new(),
            seen: BTreeSet::new(),
            done: Map::new(),
        }
    }

    /// `{"$ref": …}`; the schema will be there.
    pub fn refer(&mut self, name: &str) -> Value {
        if self.seen.insert(name.to_owned()) {
            self.pending.push(name.to_owned());
        }
        json!({ "$ref": self.dialect.reference(name) })
    }

    pub fn finish(mut self) -> Map<String, Value> {
        while let Some(name) = self.pending.pop() {
            let schema = match schema::builtin().definition(&name) {
                Some(definition) => self.definition(definition),
                None => self.custom(&name),
            };
            self.done.insert(name, schema);
        }
        self.done
    }

    fn definition(&mut self, definition: &Definition) -> Value {
        let mut out = Map::new();
        if let Some(text) = self.texts.definition(&definition.name) {
            out.insert("description".into(), text.into());
        }
        let Some(below) = definition.as_struct() else {
            self.special(&definition.ty, &mut out);
            return Value::Object(out);
        };
        out.insert("type".into(), "object".into());
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (at, field) in below.fields.iter().enumerate() {
            let text = self.texts.field(&definition.name, at);
            let default = (self.dialect == Dialect::V3)
                .then(|| defaults::of(definition, field))
                .flatten();
            properties.insert(field.name.clone().into_owned(), self.field(field, text, default));
            if field.required {
                required.push(Value::from(field.name.as_ref()));
            }
        }
        if !properties.is_empty() {
            out.insert("properties".into(), properties.into());
        }
        if !required.is_empty() {
            out.insert("required".into(), required.into());
        }
        if below.atomic {
            out.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        let kinds = self.kinds(definition);
        if !kinds.is_empty() {
            out.insert("x-kubernetes-group-version-kind".into(), kinds.into());
        }
        Value::Object(out)
    }

    /// The kinds a definition stands for: options and events belong to every group.
    fn kinds(&self, definition: &Definition) -> Vec<Value> {
        let one = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
        let short = definition.short_name();
        if matches!(short, "DeleteOptions" | "WatchEvent") && definition.name.starts_with(META) {
            return self
                .api
                .group_versions()
                .into_iter()
                .map(|(group, version)| one(group, version, short))
                .collect();
        }
        definition
            .gvk
            .iter()
            .map(|gvk| one(&gvk.group, &gvk.version, &gvk.kind))
            .collect()
    }

    fn field(&mut self, field: &Field, text: Option<String>, default: Option<Value>) -> Value {
        let mut out = match self.type_schema(&field.ty) {
            Value::Object(map) => map,
            other => return other,
        };
        let mut markers = markers(field);
        if let Some(default) = default {
            markers.insert("default".into(), default);
        }
        // In version 3 nothing stands beside a reference.
        if self.dialect == Dialect::V3 && out.contains_key("$ref") && (text.is_some() || !markers.is_empty()) {
            out = Map::from_iter([("allOf".to_owned(), json!([out]))]);
        }
        if let Some(text) = text {
            out.insert("description".into(), text.into());
        }
        out.extend(markers);
        Value::Object(out)
    }

    fn type_schema(&mut self, ty: &Type) -> Value {
        match ty {
            Type::String => json!({"type": "string"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Double => json!({"type": "number", "format": "double"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::IntOrString => self.refer(INT_OR_STRING),
            Type::Quantity => self.refer(QUANTITY),
            Type::Time => self.refer(&format!("{META}.Time")),
            Type::MicroTime => self.refer(&format!("{META}.MicroTime")),
            Type::FieldsV1 => self.refer(&format!("{META}.FieldsV1")),
            Type::RawExtension => self.refer(RAW_EXTENSION),
            Type::Json => self.refer(&format!("{CRD}.JSON")),
            Type::PropsOrArray => self.refer(&format!("{CRD}.JSONSchemaPropsOrArray")),
            Type::PropsOrBool => self.refer(&format!("{CRD}.JSONSchemaPropsOrBool")),
            Type::PropsOrStrings => self.refer(&format!("{CRD}.JSONSchemaPropsOrStringArray")),
            Type::Strings => json!({"type": "array", "items": {"type": "string"}}),
            Type::List(list) => json!({"type": "array", "items": self.type_schema(&list.items)}),
            Type::Map(map) => {
                json!({"type": "object", "additionalProperties": self.type_schema(&map.values)})
            }
            Type::Def(id) => {
                let name = &schema::builtin().definition_of(*id).name;
                self.refer(name)
            }
            Type::Struct(_) => json!({"type": "object"}),
        }
    }

    fn special(&mut self, ty: &Type, out: &mut Map<String, Value>) {
        let facts = match (ty, self.dialect) {
            (Type::Quantity, Dialect::V2) => json!({"type": "string"}),
            (Type::Quantity, Dialect::V3) => {
                json!({"oneOf": [{"type": "string"}, {"type": "number"}]})
            }
            (Type::IntOrString, Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
            (Type::IntOrString, Dialect::V3) => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            (Type::Time | Type::MicroTime, _) => json!({"type": "string", "format": "date-time"}),
            (Type::RawExtension | Type::FieldsV1, _) => json!({"type": "object"}),
            _ => json!({}),
        };
        if let Value::Object(facts) = facts {
            out.extend(facts);
        }
    }

    /// The schema of a custom kind or of its list.
    fn custom(&mut self, name: &str) -> Value {
        let api = self.api;
        for resource in &api.resources {
            let Some(own) = &resource.schema else {
                continue;
            };
            let (group, version) = (&resource.group, &resource.version);
            if custom_name(group, version, &resource.kind) == name {
                return self.custom_kind(resource, &own.0);
            }
            if custom_name(group, version, &resource.list_kind) == name {
                return self.custom_list(resource);
            }
        }
        json!({"type": "object"})
    }

    fn custom_kind(&mut self, resource: &ResourceDesc, own: &Value) -> Value {
        let mut own = own.clone();
        unfold(&mut own);
        let preserves = flag(&own, "x-kubernetes-preserve-unknown-fields");
        let selectable = own
            .as_object_mut()
            .and_then(|map| map.remove("x-kubernetes-selectable-fields"));
        // Version 2 readers refuse what they do not know; a kind that keeps unknown fields is simply an object.
        let mut out = if preserves && self.dialect == Dialect::V2 {
            Map::from_iter([("type".to_owned(), Value::from("object"))])
        } else {
            if self.dialect == Dialect::V2 {
                to_v2(&mut own);
            }
            let Value::Object(mut out) = own else {
                return json!({"type": "object"});
            };
            out.entry("type").or_insert_with(|| "object".into());
            let mut properties = match out.remove("properties") {
                Some(Value::Object(properties)) => properties,
                _ => Map::new(),
            };
            properties.extend(self.object_properties("ObjectMeta"));
            out.insert("properties".into(), properties.into());
            let mut whole = Value::Object(out);
            self.embedded(&mut whole);
            match whole {
                Value::Object(out) => out,
                _ => Map::new(),
            }
        };
        out.insert(
            "x-kubernetes-group-version-kind".into(),
            json!([{"group": resource.group, "version": resource.version, "kind": resource.kind}]),
        );
        if let Some(selectable) = selectable {
            out.insert("x-kubernetes-selectable-fields".into(), selectable);
        }
        Value::Object(out)
    }

    /// Whole objects inside a custom kind say so to readers: `apiVersion`, `kind` and `metadata` are theirs, too.
    fn embedded(&mut self, schema: &mut Value) {
        let Some(map) = schema.as_object_mut() else { return };
        if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
            properties.values_mut().for_each(|below| self.embedded(below));
        }
        for key in ["items", "additionalProperties"] {
            if let Some(below) = map.get_mut(key) {
                self.embedded(below);
            }
        }
        let is = |name: &str| map.get(name) == Some(&Value::Bool(true));
        let keeps = is("x-kubernetes-preserve-unknown-fields") && self.dialect == Dialect::V2;
        if keeps || !is("x-kubernetes-embedded-resource") {
            return;
        }
        let mut own = self.object_properties("ObjectMeta");
        for (name, text) in [
            (
                "apiVersion",
                "apiVersion defines the versioned schema of this representation of an object. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources",
            ),
            (
                "kind",
                "kind is a string value representing the type of this object. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
            ),
        ] {
            if let Some(field) = own.get_mut(name).and_then(Value::as_object_mut) {
                field.insert("description".into(), text.into());
            }
        }
        let properties = map.entry("properties").or_insert_with(|| json!({}));
        if let Some(properties) = properties.as_object_mut() {
            properties.extend(own);
        }
        let required = map.entry("required").or_insert_with(|| json!([]));
        if let Some(required) = required.as_array_mut() {
            for name in ["kind", "apiVersion"] {
                if !required.iter().any(|own| own == name) {
                    required.push(name.into());
                }
            }
        }
    }

    fn custom_list(&mut self, resource: &ResourceDesc) -> Value {
        let item = custom_name(&resource.group, &resource.version, &resource.kind);
        let items = self.refer(&item);
        let mut properties = self.object_properties("ListMeta");
        properties.insert(
            "items".into(),
            json!({
                "description": format!(
                    "List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md",
                    resource.plural
                ),
                "type": "array", "items": items,
            }),
        );
        let mut out = json!({
            "description": format!("{} is a list of {}", resource.list_kind, resource.kind),
            "type": "object",
            "required": ["items"],
            "properties": properties,
            "x-kubernetes-group-version-kind":
                [{"group": resource.group, "version": resource.version, "kind": resource.list_kind}],
        });
        let selectable = resource
            .schema
            .as_ref()
            .and_then(|own| own.0.get("x-kubernetes-selectable-fields"));
        if let Some(selectable) = selectable {
            out["x-kubernetes-selectable-fields"] = selectable.clone();
        }
        out
    }

    /// `apiVersion`, `kind` and `metadata` with the texts every built-in kind has.
    fn object_properties(&mut self, meta: &str) -> Map<String, Value> {
        let mut out = Map::new();
        let like = if meta == "ListMeta" {
            "io.k8s.api.core.v1.PodList"
        } else {
            "io.k8s.api.core.v1.Pod"
        };
        let Some(below) = schema::builtin().definition(like).and_then(Definition::as_struct) else {
            return out;
        };
        for (at, field) in below.fields.iter().enumerate() {
            if matches!(field.name.as_ref(), "apiVersion" | "kind" | "metadata") {
                let text = self.texts.field(like, at);
                out.insert(field.name.clone().into_owned(), self.field(field, text, None));
            }
        }
        out
    }
}

fn markers(field: &Field) -> Map<String, Value> {
    let mut out = Map::new();
    if field.list_marked {
        let (kind, keys) = match &field.ty {
            Type::List(list) => (list.kind, list.keys.as_slice()),
            _ => (ListKind::Atomic, &[][..]),
        };
        let kind = match kind {
            ListKind::Atomic => "atomic",
            ListKind::Set => "set",
            ListKind::Map => "map",
        };
        if !keys.is_empty() {
            out.insert("x-kubernetes-list-map-keys".into(), json!(keys));
        }
        out.insert("x-kubernetes-list-type".into(), kind.into());
    }
    if let Some(atomic) = field.atomic {
        let kind = if atomic { "atomic" } else { "granular" };
        out.insert("x-kubernetes-map-type".into(), kind.into());
    }
    if let Some(patch) = &field.patch {
        let strategies: Vec<&str> = [
            (patch.merge, "merge"),
            (patch.retain_keys, "retainKeys"),
            (patch.replace, "replace"),
        ]
        .into_iter()
        .filter_map(|(stated, name)| stated.then_some(name))
        .collect();
        if !strategies.is_empty() {
            out.insert("x-kubernetes-patch-strategy".into(), strategies.join(",").into());
        }
        if let Some(key) = &patch.key {
            out.insert("x-kubernetes-patch-merge-key".into(), key.as_ref().into());
        }
    }
    out
}

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

/// The schemas below a custom kind's schema, logic left out.
fn below(map: &mut Map<String, Value>) -> Vec<&mut Value> {
    let mut found = Vec::new();
    for (key, value) in map.iter_mut() {
        match (key.as_str(), value) {
            ("items" | "additionalProperties", value @ Value::Object(_)) => found.push(value),
            ("properties", Value::Object(all)) => found.extend(all.values_mut()),
            _ => {}
        }
    }
    found
}

/// States in plain words what `x-kubernetes-int-or-string` means.
fn unfold(value: &mut Value) {
    let int_or_string = flag(value, "x-kubernetes-int-or-string");
    let Value::Object(map) = value else { return };
    if int_or_string {
        let either = json!([{"type": "integer"}, {"type": "string"}]);
        let first = map
            .get("allOf")
            .and_then(|all| all.get(0))
            .and_then(|first| first.get("anyOf"));
        if map.get("anyOf") != Some(&either) && first != Some(&either) {
            if map.contains_key("anyOf") {
                let all = map.entry("allOf").or_insert_with(|| json!([]));
                if let Some(all) = all.as_array_mut() {
                    all.insert(0, json!({ "anyOf": either }));
                }
            } else {
                map.insert("anyOf".into(), either);
            }
        }
    }
    below(map).into_iter().for_each(unfold);
}

/// Takes out of a custom kind's schema what version 2 cannot say, and what its readers stumble over.
fn to_v2(value: &mut Value) {
    let (nullable, preserves) = (
        flag(value, "nullable"),
        flag(value, "x-kubernetes-preserve-unknown-fields"),
    );
    let Value::Object(map) = value else {
        return;
    };
    for key in ["allOf", "oneOf", "anyOf", "not", "$schema", "default"] {
        map.remove(key);
    }
    if nullable {
        for key in ["type", "nullable", "items", "properties"] {
            map.remove(key);
        }
    }
    if preserves {
        map.remove("items");
        map.remove("properties");
    }
    let ty = map.get("type").and_then(Value::as_str).unwrap_or_default();
    if (ty == "array" && !map.contains_key("items")) || (preserves && ty == "object") {
        map.remove("type");
    }
    let maybe: Vec<String> = map
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, property)| flag(property, "nullable"))
        .map(|(name, _)| name.clone())
        .collect();
    let loose = map
        .get("additionalProperties")
        .is_some_and(|additional| flag(additional, "nullable"));
    if let Some(Value::Array(required)) = map.get_mut("required") {
        required.retain(|name| !loose && !maybe.iter().any(|own| name == own));
        if required.is_empty() {
            map.remove("required");
        }
    }
    below(map).into_iter().for_each(to_v2);
}
