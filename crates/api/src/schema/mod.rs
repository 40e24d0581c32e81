//! What shape objects have: one model for built-in definitions and for the structural schemas of custom kinds.
//!
//! A [`Type`] says what a value is; a [`Struct`] is a set of [`Field`]s with the facts that walkers need: list
//! and map kinds (apply), patch strategy and merge key (strategic merge), protobuf tags, required and kept
//! zeros (checks). Strict decoding, pruning, patches, apply, protobuf and OpenAPI all walk these types.
//!
//! The built-in definitions are facts, not code: `facts.deflate` is a table written by `xtask gen-schema` from
//! the sources of the Apache-2.0 crates `k8s-openapi` (names, types, descriptions) and `k8s-pb` (protobuf tags
//! and list, map and patch markers), both generated from Kubernetes' API definitions. It is decoded once, on
//! first use, into a few hundred kilobytes that live as long as the process; descriptions
//! (`descriptions.deflate`) stay compressed until a document is asked for.
//!
//! Invariants: fields of a struct are sorted by name; a [`DefId`] is only ever made by the built-in schema, so
//! it always resolves.

mod builtin;
pub mod structural;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

/// A name that is usually borrowed from the decoded table.
pub type Name = Cow<'static, str>;

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// base64 text in JSON, bytes in protobuf.
    Bytes,
    IntOrString,
    Quantity,
    /// RFC 3339 with whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// An object of any kind.
    RawExtension,
    /// The field sets of managed fields: any object.
    FieldsV1,
    /// Any value at all.
    Json,
    /// CRD schemas: a schema or a list of schemas.
    PropsOrArray,
    /// CRD schemas: a schema or a boolean.
    PropsOrBool,
    /// CRD schemas: a schema or a list of strings.
    PropsOrStrings,
    /// A list of strings that is a message of its own in protobuf (`ExtraValue`).
    Strings,
    List(Box<List>),
    Map(Box<Map>),
    /// A struct of the built-in schema.
    Def(DefId),
    /// A struct of a custom kind.
    Struct(Arc<Struct>),
}

impl Type {
    /// The fields of this type, when it is a struct.
    pub fn as_struct(&self) -> Option<&Struct> {
        match self {
            Type::Def(id) => builtin().get(*id).ty.own_struct(),
            Type::Struct(own) => Some(own),
            _ => None,
        }
    }
    fn own_struct(&self) -> Option<&Struct> {
        match self {
            Type::Struct(own) => Some(own),
            _ => None,
        }
    }
    pub fn as_list(&self) -> Option<&List> {
        match self {
            Type::List(list) => Some(list),
            _ => None,
        }
    }
    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Type::Map(map) => Some(map),
            _ => None,
        }
    }
    /// The type below a key: a struct's field or a map's values.
    pub fn child(&self, key: &str) -> Option<&Type> {
        match self {
            Type::Map(map) => Some(&map.values),
            _ => self.as_struct()?.field(key).map(|field| &field.ty),
        }
    }
    /// The type of a list's items.
    pub fn items(&self) -> Option<&Type> {
        self.as_list().map(|list| &list.items)
    }
    /// Whether a value of this type is one thing for apply: a scalar, or a tree nobody looks into.
    pub fn is_leaf(&self) -> bool {
        !matches!(self, Type::List(_) | Type::Map(_) | Type::Def(_) | Type::Struct(_))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct List {
    pub items: Type,
    pub kind: ListKind,
    /// For [`ListKind::Map`]: the fields that identify an item.
    pub keys: Vec<Name>,
    pub nullable_items: bool,
}

/// How a list is merged by apply (`x-kubernetes-list-type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    /// Replaced as a whole; also what a list without a marker is.
    #[default]
    Atomic,
    Set,
    Map,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    pub values: Type,
    /// Replaced as a whole by apply (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    pub nullable_values: bool,
}

/// A set of named fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Struct {
    /// The short name, such as `PodSpec`; empty for the inner structs of custom kinds.
    pub name: Name,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Replaced as a whole by apply.
    pub atomic: bool,
    /// Unknown fields are kept (`x-kubernetes-preserve-unknown-fields`).
    pub preserve_unknown: bool,
    /// A whole object with `apiVersion`, `kind` and `metadata` of its own (`x-kubernetes-embedded-resource`).
    pub embedded: bool,
}

impl Struct {
    pub fn field(&self, name: &str) -> Option<&Field> {
        let at = self
            .fields
            .binary_search_by(|field| field.name.as_ref().cmp(name))
            .ok()?;
        self.fields.get(at)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: Name,
    pub ty: Type,
    /// Protobuf tags from the message inwards: usually one; more where Go embeds a struct that is a message of
    /// its own; none for `apiVersion`, `kind` and custom kinds.
    pub tags: Box<[u32]>,
    pub required: bool,
    /// The zero value of this optional field means something (a pointer in Go): it is kept, not dropped. For a
    /// struct: an empty one is not the same as none.
    pub keep_zero: bool,
    pub nullable: bool,
    /// What Go prints of a field nobody has given.
    pub printed: Printed,
    /// The Go type, where it is another than the value's type tells: an enumeration's name.
    pub go_type: Option<Name>,
    /// Whether apply replaces the map or struct below as a whole, where the field says so itself.
    pub atomic: Option<bool>,
    pub patch: Option<Box<Patch>>,
    /// The default the schema states: a custom kind's, or one that identifies items of a list (a port's protocol).
    pub default: Option<Box<Value>>,
    /// Whether the table states the list kind, for OpenAPI.
    pub list_marked: bool,
}

/// What Go prints of a field that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Printed {
    /// Nothing: the field is left out.
    #[default]
    Nothing,
    /// The zero of its type: a struct with nothing in it, an empty text, false or 0.
    Zero,
    /// `null`: a list, a map, a time or a pointer that is never left out.
    Null,
}

/// How strategic merge patch treats a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    pub merge: bool,
    pub retain_keys: bool,
    /// The strategy is stated as `replace`.
    pub replace: bool,
    pub key: Option<Name>,
}

impl Field {
    /// An optional field without markers.
    pub fn new(name: impl Into<Name>, ty: Type) -> Self {
        Field {
            name: name.into(),
            ty,
            tags: Box::default(),
            required: false,
            keep_zero: false,
            nullable: false,
            printed: Printed::Nothing,
            go_type: None,
            atomic: None,
            patch: None,
            default: None,
            list_marked: false,
        }
    }
    /// The merge key of a list that strategic merge patch merges.
    pub fn merge_key(&self) -> Option<&str> {
        self.patch.as_ref()?.key.as_deref()
    }
    pub fn merges(&self) -> bool {
        self.patch.as_ref().is_some_and(|patch| patch.merge)
    }
    pub fn retains_keys(&self) -> bool {
        self.patch.as_ref().is_some_and(|patch| patch.retain_keys)
    }
    /// Whether apply treats the value as one thing.
    pub fn is_atomic(&self) -> bool {
        match &self.ty {
            Type::List(list) => list.kind == ListKind::Atomic,
            Type::Map(map) => map.atomic,
            ty if ty.is_leaf() => true,
            ty => self
                .atomic
                .unwrap_or_else(|| ty.as_struct().is_some_and(|below| below.atomic)),
        }
    }
}

/// A definition of the built-in schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DefId(u16);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gvk {
    pub group: Name,
    pub version: Name,
    pub kind: Name,
}

/// A named type, such as `io.k8s.api.core.v1.Pod`.
#[derive(Clone, Debug)]
pub struct Definition {
    pub name: Name,
    pub gvk: Option<Gvk>,
    /// [`Type::Struct`], or the special type this name stands for.
    pub ty: Type,
}

impl Definition {
    pub fn as_struct(&self) -> Option<&Struct> {
        self.ty.own_struct()
    }
    /// The name after the last dot.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// All built-in definitions.
#[derive(Debug)]
pub struct Schema {
    definitions: Vec<Definition>,
    by_name: HashMap<Name, DefId>,
    by_kind: HashMap<(Name, Name), Vec<DefId>>,
}

/// Kinds every group understands, whatever `apiVersion` they are sent with.
const ANY_GROUP: [&str; 7] = [
    "CreateOptions",
    "DeleteOptions",
    "GetOptions",
    "ListOptions",
    "PatchOptions",
    "UpdateOptions",
    "WatchEvent",
];

impl Schema {
    fn get(&self, id: DefId) -> &Definition {
        &self.definitions[usize::from(id.0)]
    }
    /// Every definition, sorted by name.
    pub fn definitions(&self) -> impl ExactSizeIterator<Item = &Definition> {
        self.definitions.iter()
    }
    /// By definition name, such as `io.k8s.api.core.v1.Pod`.
    pub fn definition(&self, name: &str) -> Option<&Definition> {
        self.by_name.get(name).map(|id| self.get(*id))
    }
    pub fn definition_of(&self, id: DefId) -> &Definition {
        self.get(id)
    }
    /// By group (empty for core), version and kind, lists included.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Definition> {
        if ANY_GROUP.contains(&kind) {
            return self.definition(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"));
        }
        // Metadata-only objects are the same in every version of their group.
        let version = if group == "meta.k8s.io" { "v1" } else { version };
        self.by_kind
            .get(&(Cow::Borrowed(version), Cow::Borrowed(kind)) as &(Cow<'_, str>, Cow<'_, str>))?
            .iter()
            .map(|id| self.get(*id))
            .find(|definition| definition.gvk.as_ref().is_some_and(|gvk| gvk.group == group))
    }
    /// By `apiVersion` and `kind` as an object states them.
    pub fn api_kind(&self, api_version: &str, kind: &str) -> Option<&Definition> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.kind(group, version, kind)
    }
    /// The type to refer to a definition by: [`Type::Def`] for structs, the special type otherwise.
    pub fn type_of(&self, name: &str) -> Option<Type> {
        let id = *self.by_name.get(name)?;
        Some(match &self.get(id).ty {
            Type::Struct(_) => Type::Def(id),
            special => special.clone(),
        })
    }
    /// Descriptions of every definition and field, decompressed for this call.
    pub fn descriptions(&self) -> Descriptions {
        builtin::descriptions(self)
    }
}

/// The texts of the built-in schema, for building documents. Large: drop it when done.
pub struct Descriptions {
    text: String,
    /// Per definition: byte ranges of its own line and its fields' lines.
    lines: HashMap<Name, Vec<(u32, u32)>>,
}

impl Descriptions {
    pub fn definition(&self, name: &str) -> Option<String> {
        self.line(name, 0)
    }
    /// The description of the field at `index` of the definition's struct.
    pub fn field(&self, definition: &str, index: usize) -> Option<String> {
        self.line(definition, index + 1)
    }
    fn line(&self, definition: &str, at: usize) -> Option<String> {
        let (start, end) = *self.lines.get(definition)?.get(at)?;
        let raw = self.text.get(start as usize..end as usize)?;
        if raw.is_empty() {
            return None;
        }
        let mut text = String::with_capacity(raw.len());
        let mut chars = raw.chars();
        while let Some(char) = chars.next() {
            match char {
                '\\' => match chars.next() {
                    Some('n') => text.push('\n'),
                    Some(other) => text.push(other),
                    None => {}
                },
                other => text.push(other),
            }
        }
        Some(text)
    }
}

/// What tells one table of built-in definitions from another: their compressed bytes.
pub fn fingerprint() -> &'static [u8] {
    builtin::FACTS
}

/// The built-in definitions, decoded on first use.
pub fn builtin() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(builtin::decode)
}

#[cfg(test)]
mod tests;
