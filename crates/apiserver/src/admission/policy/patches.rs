//! What mutations make of an object: configurations merged by its schema, and JSON patches.

use sampan_api::codec::printed;
use sampan_api::patch::apply::{self, FieldSet};
use sampan_api::patch::json::{JsonPatch, JsonPatchError};
use sampan_api::schema::{ListKind, Type};
use sampan_api::{Object, meta, time};
use sampan_cel::{List, Made, Map, Value};
use serde_json::Value as Json;

/// `Object.spec{…}` may stand only where the field `spec` is: upstream's check of what it cannot type.
pub fn check_names(made: &Made<'_>, path: &str) -> Result<(), String> {
    if &*made.name != path {
        return Err(format!(
            "type mismatch: unexpected type name \"{}\", expected \"{path}\", which matches field name path from root Object type",
            made.name
        ));
    }
    made.fields
        .iter()
        .try_for_each(|(name, value)| check_value(value, &format!("{path}.{name}"), 0))
}

fn check_value(value: &Value<'_>, path: &str, depth: usize) -> Result<(), String> {
    if depth > 100 {
        return Err("the value is nested too deeply".to_owned());
    }
    match value {
        Value::Made(made) => check_names(made, path),
        Value::List(List::Own(items)) => items.iter().try_for_each(|item| check_value(item, path, depth + 1)),
        Value::Map(Map::Own(map)) => map.values().try_for_each(|value| check_value(value, path, depth + 1)),
        Value::Optional(Some(value)) => check_value(value, path, depth + 1),
        _ => Ok(()),
    }
}

/// Merges what an expression has made into the object. Nothing is owned by it: managed fields stay as they are.
pub fn merge(ty: &Type, object: &Object, made: &Value<'_>) -> Result<Object, String> {
    let Value::Made(root) = made else {
        return Err("unsupported return type from ApplyConfiguration expression".to_owned());
    };
    check_names(root, "Object")?;
    let mut config = made
        .to_json()
        .ok_or_else(|| "the value cannot be written as JSON".to_owned())?;
    let mut atomics = Vec::new();
    find_atomics(ty, &config, String::new(), &mut atomics);
    if !atomics.is_empty() {
        return Err(format!(
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomics.join(", ")
        ));
    }
    let (api_version, kind) = (meta::api_version(object).to_owned(), meta::kind(object).to_owned());
    config["apiVersion"] = api_version.as_str().into();
    config["kind"] = kind.as_str().into();
    let mut live = object.clone();
    let managed = take_managed(&mut live);
    take_managed(&mut config);
    let context = apply::Context {
        ty,
        api_version: &api_version,
        kind: &kind,
        subresource: "",
        manager: "admission-policy",
        now: &time::now(),
        reset: &FieldSet::default(),
        versions: &apply::OneVersion,
    };
    let mut merged = apply::apply(context, Some(&live), &config, true)
        .map_err(|status| format!("error applying patch: {}", status.message))?;
    take_managed(&mut merged);
    if let Some(managed) = managed {
        merged["metadata"]["managedFields"] = managed;
    }
    Ok(merged)
}

fn take_managed(object: &mut Object) -> Option<Json> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Paths of what would be replaced as a whole: setting a part of it would lose the rest.
fn find_atomics(ty: &Type, value: &Json, path: String, found: &mut Vec<String>) {
    match value {
        Json::Object(map) => {
            let atomic = match ty {
                Type::Map(of) => of.atomic,
                _ => ty.as_struct().is_some_and(|own| own.atomic),
            };
            if atomic {
                found.push(path.clone());
            }
            for (name, value) in map {
                let own = ty.as_struct().and_then(|own| own.field(name));
                let at = format!("{path}.{name}");
                if own.is_some_and(|field| field.atomic == Some(true)) && (value.is_object() || value.is_array()) {
                    found.push(at.clone());
                }
                if let Some(below) = ty.child(name) {
                    find_atomics(below, value, at, found);
                }
            }
        }
        Json::Array(items) => {
            let Some(list) = ty.as_list() else { return };
            if list.kind == ListKind::Atomic {
                found.push(path.clone());
            }
            for (index, item) in items.iter().enumerate() {
                find_atomics(&list.items, item, format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// Applies a list of `JSONPatch{…}`. A failed `test` leaves the object as it is.
pub fn patch(object: &Object, made: &Value<'_>) -> Result<Object, String> {
    let Value::List(list) = made else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned());
    };
    let mut operations = Vec::new();
    for operation in list.iter() {
        if let Value::Made(made) = &operation {
            for (_, value) in made.fields.iter().filter(|(name, _)| &**name == "value") {
                check_root(value)?;
            }
        }
        let json = operation
            .to_json()
            .ok_or_else(|| "JSONPath valueExpression evaluated to a type that could not marshal to JSON".to_owned())?;
        operations.push(json);
    }
    let wrong = |error: JsonPatchError| format!("JSON Patch: {error}");
    let patch = JsonPatch::from_value(Json::Array(operations)).map_err(wrong)?;
    let mut patched = object.clone();
    printed::complete(&mut patched);
    match patch.apply(&mut patched) {
        Ok(()) => {
            printed::bare(&mut patched);
            Ok(patched)
        }
        Err(error) if error.is_failed_test() => Ok(object.clone()),
        Err(error) => Err(wrong(error)),
    }
}

/// A made value in a JSON patch may be of any part of the object, but its own parts must fit.
fn check_root(value: &Value<'_>) -> Result<(), String> {
    match value {
        Value::Made(made) => check_names(made, &made.name),
        _ => Ok(()),
    }
}
