//! Accessors on an object's identity and metadata.
//!
//! Every reader takes the tree as it is: a missing field, or one of the wrong type, reads as absent (empty string,
//! no labels, `None`), so nothing here can fail or panic. Whether metadata is well formed is decided by decoding and
//! by [`crate::names`], not here. Readers borrow; nothing is copied unless it is changed.

use serde_json::{Map, Value};

/// `metadata`, when it is a map.
pub fn metadata(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata").and_then(Value::as_object)
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    metadata(object)
        .and_then(|meta| meta.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn optional<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    metadata(object)?.get(field)?.as_str()
}

fn pairs<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
    metadata(object)
        .and_then(|meta| meta.get(field))
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

fn pair<'a>(object: &'a Value, field: &str, key: &str) -> Option<&'a str> {
    metadata(object)?.get(field)?.get(key)?.as_str()
}

pub fn api_version(object: &Value) -> &str {
    object.get("apiVersion").and_then(Value::as_str).unwrap_or_default()
}
pub fn kind(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or_default()
}

/// `apps/v1` → (`apps`, `v1`); `v1` → (``, `v1`). `None` when it has more than one slash.
pub fn group_version(api_version: &str) -> Option<(&str, &str)> {
    match api_version.split_once('/') {
        None => Some(("", api_version)),
        Some((_, version)) if version.contains('/') => None,
        Some(pair) => Some(pair),
    }
}

/// `("apps", "v1")` → `apps/v1`; `("", "v1")` → `v1`.
pub fn join_group_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

pub fn name(object: &Value) -> &str {
    text(object, "name")
}
pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}
pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}
pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}
pub fn generation(object: &Value) -> i64 {
    metadata(object)
        .and_then(|meta| meta.get("generation"))
        .and_then(Value::as_i64)
        .unwrap_or_default()
}
pub fn creation_timestamp(object: &Value) -> Option<&str> {
    optional(object, "creationTimestamp")
}
/// When deletion was asked for (plus the grace period); `Some` means the object is on its way out.
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    optional(object, "deletionTimestamp")
}
pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    metadata(object)?.get("deletionGracePeriodSeconds")?.as_i64()
}
pub fn is_deleting(object: &Value) -> bool {
    deletion_timestamp(object).is_some()
}

pub fn labels(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    pairs(object, "labels")
}
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    pair(object, "labels", key)
}
pub fn annotations(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    pairs(object, "annotations")
}
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    pair(object, "annotations", key)
}
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    metadata(object)
        .and_then(|meta| meta.get("finalizers"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}
pub fn has_finalizer(object: &Value, finalizer: &str) -> bool {
    finalizers(object).any(|have| have == finalizer)
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: Option<bool>,
    pub block_owner_deletion: Option<bool>,
}

impl OwnerReference {
    pub fn from_value(value: &Value) -> Self {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let flag = |field: &str| value.get(field).and_then(Value::as_bool);
        OwnerReference {
            api_version: text("apiVersion"),
            kind: text("kind"),
            name: text("name"),
            uid: text("uid"),
            controller: flag("controller"),
            block_owner_deletion: flag("blockOwnerDeletion"),
        }
    }

    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        map.insert("apiVersion".into(), self.api_version.as_str().into());
        map.insert("kind".into(), self.kind.as_str().into());
        map.insert("name".into(), self.name.as_str().into());
        map.insert("uid".into(), self.uid.as_str().into());
        if let Some(flag) = self.controller {
            map.insert("controller".into(), flag.into());
        }
        if let Some(flag) = self.block_owner_deletion {
            map.insert("blockOwnerDeletion".into(), flag.into());
        }
        Value::Object(map)
    }
}

pub fn owner_references(object: &Value) -> impl Iterator<Item = OwnerReference> {
    metadata(object)
        .and_then(|meta| meta.get("ownerReferences"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(OwnerReference::from_value)
}

/// The owner that manages this object, if one does.
pub fn controller_of(object: &Value) -> Option<OwnerReference> {
    owner_references(object).find(|owner| owner.controller == Some(true))
}

/// `metadata` for writing, made when it is missing. A root or `metadata` that is not a map becomes an empty one:
/// decoding has refused such objects long before, so this only keeps the function total.
pub fn ensure_metadata(object: &mut Value) -> &mut Map<String, Value> {
    ensure_map(ensure_root(object).entry("metadata").or_insert(Value::Null))
}

fn ensure_root(object: &mut Value) -> &mut Map<String, Value> {
    ensure_map(object)
}

/// The value as a map, made into an empty one when it is something else.
pub fn ensure_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made a map above"),
    }
}

/// The value as a list, made into an empty one when it is something else.
pub fn ensure_list(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("made a list above"),
    }
}

/// Sets a text field of `metadata`; an empty text removes it, as Go's `omitempty` would.
fn set_text(object: &mut Value, field: &str, text: &str) {
    let meta = ensure_metadata(object);
    if text.is_empty() {
        meta.remove(field);
    } else {
        meta.insert(field.to_owned(), text.into());
    }
}

pub fn set_type(object: &mut Value, api_version: &str, kind: &str) {
    let root = ensure_root(object);
    root.insert("apiVersion".into(), api_version.into());
    root.insert("kind".into(), kind.into());
}
pub fn set_name(object: &mut Value, name: &str) {
    set_text(object, "name", name);
}
pub fn set_generate_name(object: &mut Value, prefix: &str) {
    set_text(object, "generateName", prefix);
}
pub fn set_namespace(object: &mut Value, namespace: &str) {
    set_text(object, "namespace", namespace);
}
pub fn set_uid(object: &mut Value, uid: &str) {
    set_text(object, "uid", uid);
}
pub fn set_resource_version(object: &mut Value, version: &str) {
    set_text(object, "resourceVersion", version);
}
pub fn set_creation_timestamp(object: &mut Value, time: &str) {
    set_text(object, "creationTimestamp", time);
}
pub fn set_deletion_timestamp(object: &mut Value, time: &str) {
    set_text(object, "deletionTimestamp", time);
}
pub fn set_deletion_grace_period_seconds(object: &mut Value, seconds: Option<i64>) {
    let meta = ensure_metadata(object);
    match seconds {
        Some(seconds) => meta.insert("deletionGracePeriodSeconds".into(), seconds.into()),
        None => meta.remove("deletionGracePeriodSeconds"),
    };
}
/// Zero removes the field.
pub fn set_generation(object: &mut Value, generation: i64) {
    let meta = ensure_metadata(object);
    if generation == 0 {
        meta.remove("generation");
    } else {
        meta.insert("generation".into(), generation.into());
    }
}

fn set_pair(object: &mut Value, field: &str, key: &str, value: &str) {
    let map = ensure_map(ensure_metadata(object).entry(field).or_insert(Value::Null));
    map.insert(key.to_owned(), value.into());
}

fn remove_pair(object: &mut Value, field: &str, key: &str) -> bool {
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return false;
    };
    let Some(map) = meta.get_mut(field).and_then(Value::as_object_mut) else {
        return false;
    };
    let removed = map.remove(key).is_some();
    if removed && map.is_empty() {
        meta.remove(field);
    }
    removed
}

fn set_pairs<K: Into<String>, V: Into<String>>(
    object: &mut Value,
    field: &str,
    entries: impl IntoIterator<Item = (K, V)>,
) {
    let map: Map<String, Value> = entries
        .into_iter()
        .map(|(key, value)| (key.into(), Value::String(value.into())))
        .collect();
    let meta = ensure_metadata(object);
    if map.is_empty() {
        meta.remove(field);
    } else {
        meta.insert(field.to_owned(), Value::Object(map));
    }
}

pub fn set_label(object: &mut Value, key: &str, value: &str) {
    set_pair(object, "labels", key, value);
}
pub fn remove_label(object: &mut Value, key: &str) -> bool {
    remove_pair(object, "labels", key)
}
/// Replaces all labels.
pub fn set_labels<K: Into<String>, V: Into<String>>(object: &mut Value, labels: impl IntoIterator<Item = (K, V)>) {
    set_pairs(object, "labels", labels);
}
pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    set_pair(object, "annotations", key, value);
}
pub fn remove_annotation(object: &mut Value, key: &str) -> bool {
    remove_pair(object, "annotations", key)
}
/// Replaces all annotations.
pub fn set_annotations<K: Into<String>, V: Into<String>>(
    object: &mut Value,
    annotations: impl IntoIterator<Item = (K, V)>,
) {
    set_pairs(object, "annotations", annotations);
}

fn set_list(object: &mut Value, field: &str, items: Vec<Value>) {
    let meta = ensure_metadata(object);
    if items.is_empty() {
        meta.remove(field);
    } else {
        meta.insert(field.to_owned(), Value::Array(items));
    }
}

/// Replaces all finalizers; none removes the field.
pub fn set_finalizers<T: Into<String>>(object: &mut Value, finalizers: impl IntoIterator<Item = T>) {
    let items = finalizers.into_iter().map(|item| Value::String(item.into())).collect();
    set_list(object, "finalizers", items);
}
/// Adds a finalizer unless it is there; says whether it was added.
pub fn add_finalizer(object: &mut Value, finalizer: &str) -> bool {
    if has_finalizer(object, finalizer) {
        return false;
    }
    let mut all: Vec<String> = finalizers(object).map(str::to_owned).collect();
    all.push(finalizer.to_owned());
    set_finalizers(object, all);
    true
}
/// Removes a finalizer; says whether it was there.
pub fn remove_finalizer(object: &mut Value, finalizer: &str) -> bool {
    if !has_finalizer(object, finalizer) {
        return false;
    }
    let rest: Vec<String> = finalizers(object)
        .filter(|have| *have != finalizer)
        .map(str::to_owned)
        .collect();
    set_finalizers(object, rest);
    true
}
/// Replaces all owner references; none removes the field.
pub fn set_owner_references(object: &mut Value, owners: &[OwnerReference]) {
    set_list(
        object,
        "ownerReferences",
        owners.iter().map(OwnerReference::to_value).collect(),
    );
}

/// Drops `metadata.managedFields` and hands it back.
pub fn strip_managed_fields(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_or_misshapen_reads_as_absent() {
        for object in [
            json!(null),
            json!([]),
            json!({}),
            json!({"metadata": 3}),
            json!({"metadata": {"name": 1, "labels": [], "finalizers": {}, "generation": "x"}}),
        ] {
            assert_eq!((name(&object), namespace(&object), generation(&object)), ("", "", 0));
            assert_eq!(
                labels(&object).count() + finalizers(&object).count() + owner_references(&object).count(),
                0
            );
            assert!(!is_deleting(&object));
        }
    }

    #[test]
    fn writes_are_read_back_and_empty_fields_vanish() {
        let mut object = Value::Null;
        set_type(&mut object, "apps/v1", "Deployment");
        set_name(&mut object, "web");
        set_namespace(&mut object, "default");
        set_label(&mut object, "app", "web");
        assert!(add_finalizer(&mut object, "a/b"));
        assert!(!add_finalizer(&mut object, "a/b"));
        let owner = OwnerReference {
            kind: "X".into(),
            controller: Some(true),
            ..Default::default()
        };
        set_owner_references(&mut object, std::slice::from_ref(&owner));
        assert_eq!(controller_of(&object), Some(owner));
        assert_eq!(label(&object, "app"), Some("web"));
        assert_eq!(group_version(api_version(&object)), Some(("apps", "v1")));
        assert!(remove_finalizer(&mut object, "a/b"));
        assert!(remove_label(&mut object, "app"));
        set_owner_references(&mut object, &[]);
        set_namespace(&mut object, "");
        ensure_metadata(&mut object).insert("managedFields".into(), json!([{}]));
        assert!(strip_managed_fields(&mut object).is_some());
        assert_eq!(
            object,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}})
        );
    }
}
