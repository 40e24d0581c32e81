//! Strategic merge patches: merge patches that know which lists are maps by key and which are sets.
//!
//! Directives, all understood: `$patch` (`replace`, `delete`, `merge`), `$retainKeys`,
//! `$deleteFromPrimitiveList/<field>` and `$setElementOrder/<field>`. The order of a merged list is upstream's: what
//! the patch names comes in the patch's order, what only the server has keeps its place among what both know.
//!
//! Custom resources have no such schema; their caller answers 415 before coming here.
//!
//! On purpose different from upstream: directives inside a part of the patch that is new to the object are dropped
//! with that part's merge (upstream stores some of them as unknown fields until conversion drops them), and where
//! upstream walks a map in random order this walks it sorted.

mod diff;
mod lists;

pub use diff::diff;

use serde_json::{Map, Value};
use thiserror::Error;

use crate::schema::Type;
use crate::status::Status;

pub(crate) const PATCH: &str = "$patch";
pub(crate) const RETAIN_KEYS: &str = "$retainKeys";
pub(crate) const DELETE_FROM: &str = "$deleteFromPrimitiveList";
pub(crate) const SET_ORDER: &str = "$setElementOrder";

/// How a field takes a patch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FieldStrategy<'a> {
    /// Lists merge (by key, or as sets of scalars) instead of being replaced.
    pub merge: bool,
    /// A map is replaced as a whole.
    pub replace: bool,
    /// Clients say which members to keep (`$retainKeys`).
    pub retain_keys: bool,
    /// What identifies an element of a merging list of maps.
    pub merge_key: Option<&'a str>,
}

impl<'a> FieldStrategy<'a> {
    /// From OpenAPI's `x-kubernetes-patch-strategy` (`merge`, `replace`, `retainKeys`, or two with a comma) and
    /// `x-kubernetes-patch-merge-key`.
    pub fn from_markers(strategies: &str, merge_key: Option<&'a str>) -> Self {
        let has = |name: &str| strategies.split(',').any(|strategy| strategy.trim() == name);
        FieldStrategy {
            merge: has("merge"),
            replace: has("replace"),
            retain_keys: has("retainKeys"),
            merge_key: merge_key.filter(|key| !key.is_empty()),
        }
    }
}

/// A field as a patch sees it.
#[derive(Clone, Debug)]
pub struct MergeField<'a, S> {
    pub strategy: FieldStrategy<'a>,
    /// The type of the field when it is a map; of its elements when it is a list.
    pub schema: S,
}

/// What a patch needs to know of a type. A cheap handle, such as a reference into the schema.
pub trait MergeSchema<'a>: Clone {
    /// The named field; `None` when the type has no such field. For a type of free keys (`map[string]T`), every
    /// name is a field of type `T`.
    fn field(&self, name: &str) -> Option<MergeField<'a, Self>>;
    /// The type's name, for messages.
    fn name(&self) -> String;
}

/// The built-in kinds: `apply(object, patch, &&definition.ty)`.
impl<'a> MergeSchema<'a> for &'a Type {
    fn field(&self, name: &str) -> Option<MergeField<'a, Self>> {
        let ty: &'a Type = self;
        let below = |ty: &'a Type| ty.items().unwrap_or(ty);
        if let Some(map) = ty.as_map() {
            let strategy = FieldStrategy::default();
            return Some(MergeField {
                strategy,
                schema: below(&map.values),
            });
        }
        let field = ty.as_struct()?.field(name)?;
        let strategy = FieldStrategy {
            merge: field.merges(),
            replace: field.patch.as_ref().is_some_and(|patch| patch.replace),
            retain_keys: field.retains_keys(),
            merge_key: field.merge_key(),
        };
        Some(MergeField {
            strategy,
            schema: below(&field.ty),
        })
    }
    fn name(&self) -> String {
        self.as_struct().map_or_else(String::new, |own| {
            own.name.rsplit('.').next().unwrap_or_default().to_owned()
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StrategicPatchError {
    #[error("invalid JSON document")]
    NotAnObject,
    #[error("lists of lists are not supported")]
    ListOfLists,
    #[error("invalid patch format of primitive list")]
    PrimitiveList,
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    #[error("invalid patch format of setElementOrder list")]
    SetElementOrder,
    #[error("map: {map} does not contain declared merge key: {key}")]
    NoMergeKey { map: String, key: String },
    #[error("expected a {expected}, but received a {received}")]
    Type {
        expected: &'static str,
        received: &'static str,
    },
    #[error("unknown patch type: {directive} in map: {map}")]
    Directive { directive: String, map: String },
    #[error("merging lists cannot yet be specified in the patch")]
    MergeDirective,
    #[error("cannot merge lists without merge key for {0}")]
    KeylessList(String),
    #[error("unable to find api field in struct {schema} for the json field {}", crate::field::quote(.field))]
    UnknownField { schema: String, field: String },
    #[error("list element types are not identical: {0}")]
    MixedList(String),
    #[error("no elements in any of the given slices")]
    NoElements,
    #[error("value for key {0} is not a map")]
    NotAMap(usize),
    #[error("The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n")]
    Order { patch: String, order: String },
}

impl From<&StrategicPatchError> for Status {
    fn from(error: &StrategicPatchError) -> Status {
        use StrategicPatchError as E;
        match error {
            E::NotAnObject | E::PrimitiveList | E::RetainKeys | E::SetElementOrder => {
                Status::bad_request(error.to_string())
            }
            E::ListOfLists => Status::new(
                422,
                "Invalid",
                "the server rejected our request due to an error in our request",
            ),
            // Upstream lets the others out as internal errors (500), though the patch is at fault.
            _ => Status::internal(error),
        }
    }
}

type Result<T> = std::result::Result<T, StrategicPatchError>;
type Tree = Map<String, Value>;

/// Applies a patch to an object of the given type.
pub fn apply<'a, S: MergeSchema<'a>>(object: Value, patch: Value, schema: &S) -> Result<Value> {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => merge_map(object, patch, schema).map(Value::Object),
        _ => Err(StrategicPatchError::NotAnObject),
    }
}

fn lookup<'a, S: MergeSchema<'a>>(schema: &S, field: &str) -> Result<MergeField<'a, S>> {
    schema.field(field).ok_or_else(|| StrategicPatchError::UnknownField {
        schema: schema.name(),
        field: field.to_owned(),
    })
}

fn merge_map<'a, S: MergeSchema<'a>>(mut object: Tree, mut patch: Tree, schema: &S) -> Result<Tree> {
    if let Some(directive) = patch.get(PATCH) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(PATCH);
                Ok(patch)
            }
            Some("delete") => Ok(Tree::new()),
            _ => Err(StrategicPatchError::Directive {
                directive: go(directive),
                map: go_map(&patch),
            }),
        };
    }
    retain_keys(&mut object, &mut patch)?;
    lists::merge_ordered(&mut object, &mut patch, schema)?;
    for (key, value) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_FROM) {
            None => (key, false),
            Some(rest) => match rest.strip_prefix('/') {
                Some(field) => (field.to_owned(), true),
                None => return Err(StrategicPatchError::PrimitiveList),
            },
        };
        if value.is_null() {
            object.remove(&key);
            continue;
        }
        let Some(slot) = object.get_mut(&key) else {
            if !deletes && let Some(value) = without_directives(value) {
                object.insert(key, value);
            }
            continue;
        };
        let merged = match (std::mem::take(slot), value) {
            (Value::Object(old), Value::Object(new)) => {
                let field = lookup(schema, &key)?;
                Some(Value::Object(if field.strategy.replace {
                    new
                } else {
                    merge_map(old, new, &field.schema)?
                }))
            }
            (Value::Array(old), Value::Array(new)) => {
                let field = lookup(schema, &key)?;
                Some(Value::Array(if field.strategy.merge || deletes {
                    lists::merge(old, new, &field, deletes)?
                } else {
                    new
                }))
            }
            (old, _) if deletes => Some(old),
            (_, new) => without_directives(new),
        };
        match merged {
            Some(value) => *slot = value,
            None => {
                object.remove(&key);
            }
        }
    }
    Ok(object)
}

/// `$retainKeys`: members it does not name go; members the patch sets must be named.
fn retain_keys(object: &mut Tree, patch: &mut Tree) -> Result<()> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keep) = directive else {
        return Err(StrategicPatchError::RetainKeys);
    };
    let kept = |key: &str| keep.iter().any(|item| item.as_str() == Some(key));
    let unnamed = patch.iter().any(|(key, value)| {
        !value.is_null() && !key.starts_with(DELETE_FROM) && !key.starts_with(SET_ORDER) && !kept(key)
    });
    if unnamed {
        return Err(StrategicPatchError::RetainKeys);
    }
    object.retain(|key, _| kept(key));
    Ok(())
}

/// A value new to the object: nulls, directives, and parts that are only a directive do not become part of it.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => Some(Value::Object(
            map.into_iter()
                .filter(|(key, value)| {
                    !value.is_null()
                        && key != RETAIN_KEYS
                        && !key.starts_with(DELETE_FROM)
                        && !key.starts_with(SET_ORDER)
                })
                .filter_map(|(key, value)| Some((key, without_directives(value)?)))
                .collect(),
        )),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}

/// A value as Go's `%v` prints it, for messages.
pub fn go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => go_list(items),
        Value::Object(map) => go_map(map),
        other => other.to_string(),
    }
}
fn go_list(items: &[Value]) -> String {
    format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(" "))
}
fn go_map(map: &Tree) -> String {
    let members: Vec<_> = map.iter().map(|(key, value)| format!("{key}:{}", go(value))).collect();
    format!("map[{}]", members.join(" "))
}
const GO_MAP: &str = "map[string]interface {}";
const GO_LIST: &str = "[]interface {}";
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => GO_LIST,
        Value::Object(_) => GO_MAP,
    }
}
fn wrong_type(expected: &'static str, received: &Value) -> StrategicPatchError {
    StrategicPatchError::Type {
        expected,
        received: go_type(received),
    }
}

#[cfg(test)]
mod tests;
