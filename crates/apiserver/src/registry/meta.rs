//! What the engine does to metadata: names, identities, deletion marks, generations.

use std::collections::HashSet;

use rand::Rng;
use sampan_api::status::Status;
use sampan_api::{Object, field, meta, names, time};
use sampan_kinds::{MetadataCheck, Part};
use serde_json::{Map, Value};

use super::Call;
use crate::rows::Row;
use crate::{Refusal, refuse};

/// Finalizers the garbage collector answers to.
pub const ORPHAN: &str = "orphan";
pub const FOREGROUND: &str = "foregroundDeletion";

/// Upstream's alphabet for generated names: no vowels (no words), nothing easily confused.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 5;
const MAX_BASE: usize = 63 - SUFFIX;

/// A random suffix for names.
pub fn suffix() -> String {
    let mut random = rand::rng();
    (0..SUFFIX)
        .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
        .collect()
}

/// `base` and a random suffix.
pub fn generated_name(base: &str) -> String {
    let end = base
        .char_indices()
        .map(|(at, _)| at)
        .chain([base.len()])
        .take_while(|at| *at <= MAX_BASE)
        .last();
    format!("{}{}", &base[..end.unwrap_or(0)], suffix())
}

/// Takes away what a creator may not set.
pub fn wipe_system_fields(object: &mut Object) {
    let metadata = meta::ensure_metadata(object);
    for field in [
        "creationTimestamp",
        "uid",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
    ] {
        metadata.remove(field);
    }
}

/// The object's namespace must be the request's; an empty one becomes it.
pub fn match_namespace(call: &Call, object: &mut Object) -> Result<(), Refusal> {
    let expected = if call.row.spec.namespaced {
        call.info.namespace.as_str()
    } else {
        ""
    };
    let actual = meta::namespace(object);
    if actual == expected {
        return Ok(());
    }
    if actual.is_empty() {
        meta::set_namespace(object, expected);
        return Ok(());
    }
    Err(refuse(Status::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    )))
}

/// Drops repeated owner references, saying so.
pub fn dedup_owners(call: &mut Call, object: &mut Object) {
    let Some(owners) = object
        .pointer_mut("/metadata/ownerReferences")
        .and_then(Value::as_array_mut)
    else {
        return;
    };
    let mut seen = HashSet::new();
    let mut repeated = Vec::new();
    owners.retain(|owner| {
        let uid = owner.get("uid").and_then(Value::as_str).unwrap_or_default().to_owned();
        let first = seen.insert(owner.to_string());
        if !first {
            repeated.push(uid);
        }
        first
    });
    if !repeated.is_empty() {
        call.warn(format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            repeated.join(", ")
        ));
    }
}

/// Identity and birth of a new object.
pub fn fill_system_fields(object: &mut Object) {
    meta::set_uid(object, &uuid::Uuid::new_v4().to_string());
    meta::set_creation_timestamp(object, &time::now());
}

/// Validates metadata of a new object.
pub fn validate_create(row: &Row, object: &Object) -> field::Errors {
    let path = field::Path::new("metadata");
    let mut errors = field::Errors::new();
    let generate = meta::generate_name(object);
    if !generate.is_empty() {
        for message in row.validate_name(generate, true) {
            errors.push(field::Error::invalid(&path.child("generateName"), generate, message));
        }
    }
    let name = meta::name(object);
    if !name.is_empty() {
        for message in row.validate_name(name, false) {
            errors.push(field::Error::invalid(&path.child("name"), name, message));
        }
    }
    errors.extend(names::validate_object_meta(
        object,
        row.spec.namespaced,
        accept_name,
        &path,
    ));
    finalizer_names(row, object, &path, &mut errors);
    errors
}

/// Finalizers of built-in kinds are standard ones or have a domain in their name.
fn finalizer_names(row: &Row, object: &Object, path: &field::Path, errors: &mut field::Errors) {
    if row.custom.is_some() {
        return;
    }
    for (index, name) in meta::finalizers(object).enumerate() {
        if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
            errors.push(field::Error::invalid(
                &path.child("finalizers").index(index),
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
}

/// Validates metadata of a changed object: as of a new one, then what an update may do, as the engine's business and
/// again as the kind's. Who counts the causes of a refusal sees what is wrong with a label three times or more, as upstream
/// tells it.
pub fn validate_update(row: &Row, part: Part<'_>, new: &Object, old: &Object) -> field::Errors {
    let path = field::Path::new("metadata");
    let whole = || names::validate_object_meta(new, row.spec.namespaced, accept_name, &path);
    let change = || names::validate_object_meta_update(new, old, &path);
    let mut errors = whole();
    errors.extend(change());
    for check in row.strategy().metadata_checks(part) {
        errors.extend(match check {
            MetadataCheck::Whole => whole(),
            MetadataCheck::Change => change(),
        });
        finalizer_names(row, new, &path, &mut errors);
    }
    errors
}

/// The finalizers that need no domain in their name, on objects of built-in kinds.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

fn accept_name(_: &str, _: bool) -> Vec<String> {
    Vec::new()
}

/// Carries over what no update may change.
pub fn keep_identity(new: &mut Object, old: &Object) {
    let none = Map::new();
    let old = meta::metadata(old).unwrap_or(&none);
    let metadata = meta::ensure_metadata(new);
    let keep = |metadata: &mut Map<String, Value>, field: &str| {
        if let Some(value) = old.get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    };
    if metadata
        .get("uid")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .is_empty()
    {
        keep(metadata, "uid");
    }
    keep(metadata, "creationTimestamp");
    keep(metadata, "deletionTimestamp");
    if !metadata.contains_key("deletionGracePeriodSeconds") {
        keep(metadata, "deletionGracePeriodSeconds");
    }
    if !old.contains_key("deletionTimestamp") {
        // Only a delete marks an object as going.
        metadata.remove("deletionTimestamp");
        metadata.remove("deletionGracePeriodSeconds");
    }
    metadata.remove("selfLink");
}

/// Whether anything but metadata and status differs.
pub fn content_differs(new: &Object, old: &Object) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else {
        return new != old;
    };
    let counts = |key: &str| !matches!(key, "metadata" | "status");
    new.iter()
        .filter(|(key, _)| counts(key))
        .any(|(key, value)| old.get(key) != Some(value))
        || old.keys().any(|key| counts(key) && !new.contains_key(key))
}

/// Whether finalizers still hold the object: its own, and a Namespace's `spec.finalizers`.
pub fn is_held(row: &Row, object: &Object) -> bool {
    meta::finalizers(object).next().is_some() || is_held_namespace(row, object)
}

fn is_held_namespace(row: &Row, object: &Object) -> bool {
    row.is("", "namespaces")
        && object
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_some_and(|held| !held.is_empty())
}

/// Marks an object as being deleted now.
pub fn mark_deleting(object: &mut Object) {
    if !meta::is_deleting(object) && meta::generation(object) > 0 {
        let next = meta::generation(object) + 1;
        meta::set_generation(object, next);
    }
    let now = time::now();
    // RFC 3339 in UTC orders as text.
    if meta::deletion_timestamp(object).is_none_or(|at| at > now.as_str()) {
        meta::set_deletion_timestamp(object, &now);
    }
    meta::set_deletion_grace_period_seconds(object, Some(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit() {
        let name = generated_name(&"a".repeat(100));
        assert_eq!(name.len(), 63);
        assert!(generated_name("web-").starts_with("web-"));
        assert_eq!(generated_name("web-").len(), 9);
        assert_ne!(generated_name("x"), generated_name("x"));
    }

    #[test]
    fn only_content_bumps_the_generation() {
        let old = serde_json::json!({"metadata": {"a": 1}, "spec": {"x": 1}, "status": {}});
        let mut new = old.clone();
        new["metadata"]["a"] = 2.into();
        new["status"]["y"] = 1.into();
        assert!(!content_differs(&new, &old));
        new["spec"]["x"] = 2.into();
        assert!(content_differs(&new, &old));
        assert!(content_differs(&serde_json::json!({}), &old));
    }
}
