//! The strategic merge patch that takes one object to another, as kubectl and client-go compute it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::lists::require_key;
use super::*;

/// The patch from `from` to `to`, objects of the given type.
pub fn diff<'a, S: MergeSchema<'a>>(from: &Value, to: &Value, schema: &S) -> Result<Value> {
    match (from, to) {
        (Value::Object(from), Value::Object(to)) => diff_maps(from, to, schema, false).map(Value::Object),
        _ => Err(StrategicPatchError::NotAnObject),
    }
}

fn diff_maps<'a, S: MergeSchema<'a>>(from: &Tree, to: &Tree, schema: &S, retain: bool) -> Result<Tree> {
    let mut patch = Tree::new();
    for (key, new) in to {
        match (from.get(key), new) {
            (None, _) => {
                patch.insert(key.clone(), new.clone());
            }
            (Some(old), _) if old == new => {}
            (Some(Value::Object(old)), Value::Object(map)) => {
                let field = lookup(schema, key)?;
                let part = if field.strategy.replace {
                    map.clone()
                } else {
                    diff_maps(old, map, &field.schema, field.strategy.retain_keys)?
                };
                if field.strategy.replace || !part.is_empty() {
                    patch.insert(key.clone(), Value::Object(part));
                }
            }
            (Some(Value::Array(old)), Value::Array(list)) => {
                let field = lookup(schema, key)?;
                if field.strategy.merge && !old.is_empty() {
                    diff_lists(key, old, list, &field, &mut patch)?;
                } else {
                    patch.insert(key.clone(), new.clone());
                }
            }
            (Some(_), _) => {
                patch.insert(key.clone(), new.clone());
            }
        }
    }
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    if retain && !patch.is_empty() {
        patch.insert(RETAIN_KEYS.to_owned(), to.keys().cloned().collect());
    }
    Ok(patch)
}

fn diff_lists<'a, S: MergeSchema<'a>>(
    name: &str,
    old: &[Value],
    new: &[Value],
    field: &MergeField<'a, S>,
    patch: &mut Tree,
) -> Result<()> {
    let Some(key) = field
        .strategy
        .merge_key
        .filter(|_| old.iter().chain(new).any(Value::is_object))
    else {
        let added: Vec<_> = new.iter().filter(|item| !old.contains(item)).cloned().collect();
        let removed: Vec<_> = old.iter().filter(|item| !new.contains(item)).cloned().collect();
        let mut put = |name: String, list: Vec<Value>| {
            if !list.is_empty() {
                patch.insert(name, Value::Array(list));
            }
        };
        put(name.to_owned(), added);
        put(format!("{DELETE_FROM}/{name}"), removed);
        put(format!("{SET_ORDER}/{name}"), new.to_vec());
        return Ok(());
    };
    let mut changes = Vec::new();
    let mut order = Vec::new();
    for item in new {
        let id = require_key(item, key)?;
        order.push(json!({ key: id }));
        match old.iter().find(|have| have.get(key) == Some(id)) {
            None => changes.push(item.clone()),
            Some(have) => {
                let (Value::Object(have), Value::Object(item)) = (have, item) else {
                    return Err(wrong_type(GO_MAP, item));
                };
                let mut part = diff_maps(have, item, &field.schema, field.strategy.retain_keys)?;
                if !part.is_empty() {
                    part.insert(key.to_owned(), id.clone());
                    changes.push(Value::Object(part));
                }
            }
        }
    }
    let kept: BTreeSet<String> = order.iter().map(Value::to_string).collect();
    for item in old {
        let id = require_key(item, key)?;
        if !kept.contains(&json!({ key: id }).to_string()) {
            changes.push(json!({ key: id, PATCH: "delete" }));
        }
    }
    if !changes.is_empty() {
        patch.insert(name.to_owned(), Value::Array(changes));
    }
    if !order.is_empty() {
        patch.insert(format!("{SET_ORDER}/{name}"), Value::Array(order));
    }
    Ok(())
}
