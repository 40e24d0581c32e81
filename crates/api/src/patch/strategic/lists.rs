//! Lists in strategic merge patches: merging by key, sets of scalars, and `$setElementOrder`.

use serde_json::Value;

use super::*;

/// The key of a list's elements: the value of the merge key, or the scalar itself.
fn identity<'v>(item: &'v Value, merge_key: Option<&str>) -> Option<&'v Value> {
    match merge_key {
        Some(key) => item.get(key),
        None => Some(item),
    }
}

fn position(list: &[Value], item: &Value, merge_key: Option<&str>) -> Option<usize> {
    let wanted = identity(item, merge_key)?;
    list.iter().position(|have| identity(have, merge_key) == Some(wanted))
}

pub(super) fn require_key<'v>(item: &'v Value, key: &str) -> Result<&'v Value> {
    let map = item.as_object().ok_or_else(|| wrong_type(GO_MAP, item))?;
    map.get(key).ok_or_else(|| StrategicPatchError::NoMergeKey {
        map: go_map(map),
        key: key.to_owned(),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Elements {
    Scalars,
    Maps,
}

/// All elements must be of one type; says which.
fn elements(lists: [&[Value]; 2]) -> Result<Elements> {
    let mut all = lists.iter().copied().flatten();
    let first = all.next().ok_or(StrategicPatchError::NoElements)?;
    if first.is_array() {
        return Err(StrategicPatchError::ListOfLists);
    }
    let same = |item: &Value| std::mem::discriminant(item) == std::mem::discriminant(first);
    if first.is_null() || !all.all(same) {
        return Err(StrategicPatchError::MixedList(format!(
            "[{} {}]",
            go_list(lists[0]),
            go_list(lists[1])
        )));
    }
    Ok(if first.is_object() {
        Elements::Maps
    } else {
        Elements::Scalars
    })
}

/// Merges a patch's list into the object's.
pub(super) fn merge<'a, S: MergeSchema<'a>>(
    old: Vec<Value>,
    new: Vec<Value>,
    field: &MergeField<'a, S>,
    deletes: bool,
) -> Result<Vec<Value>> {
    if old.is_empty() && new.is_empty() {
        return Ok(old);
    }
    let merge_key = field.strategy.merge_key;
    match elements([&old, &new])? {
        Elements::Scalars if deletes => Ok(old.into_iter().filter(|item| !new.contains(item)).collect()),
        Elements::Scalars => {
            let merged = distinct(old.iter().chain(&new));
            Ok(ordered(merged, &new, &old, merge_key))
        }
        Elements::Maps => {
            let Some(key) = merge_key else {
                return Err(StrategicPatchError::KeylessList(field.schema.name()));
            };
            let (old, new) = list_directives(old, new, key)?;
            let names: Vec<Value> = new.clone();
            let merged = merge_maps(old.clone(), new, key, &field.schema)?;
            for item in merged.iter().chain(&names) {
                require_key(item, key)?;
            }
            Ok(ordered(merged, &names, &old, Some(key)))
        }
    }
}

fn distinct<'v>(items: impl Iterator<Item = &'v Value>) -> Vec<Value> {
    let mut seen: Vec<Value> = Vec::new();
    for item in items {
        if !seen.contains(item) {
            seen.push(item.clone());
        }
    }
    seen
}

/// Elements of the patch that are directives: deletions are done, a replacement makes the rest of the patch the list.
fn list_directives(mut old: Vec<Value>, new: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut rest, mut replace) = (Vec::new(), false);
    for item in new {
        let Some(directive) = item.get(PATCH) else {
            rest.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let doomed = require_key(&item, key)?;
                if let Some(at) = old.iter().position(|have| !have.is_object()) {
                    return Err(StrategicPatchError::NotAMap(at));
                }
                old.retain(|have| have.get(key) != Some(doomed));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(StrategicPatchError::MergeDirective),
            _ => {
                return Err(StrategicPatchError::Directive {
                    directive: go(directive),
                    map: go(&item),
                });
            }
        }
    }
    Ok(if replace { (rest, Vec::new()) } else { (old, rest) })
}

fn merge_maps<'a, S: MergeSchema<'a>>(
    mut old: Vec<Value>,
    new: Vec<Value>,
    key: &str,
    schema: &S,
) -> Result<Vec<Value>> {
    for item in new {
        let wanted = require_key(&item, key)?;
        let Value::Object(ref patch) = item else {
            return Err(wrong_type(GO_MAP, &item));
        };
        match old.iter_mut().find(|have| have.get(key) == Some(wanted)) {
            Some(slot) => {
                let patch = patch.clone();
                if let Value::Object(map) = std::mem::take(slot) {
                    *slot = Value::Object(merge_map(map, patch, schema)?);
                }
            }
            None => old.extend(without_directives(item)),
        }
    }
    Ok(old)
}

/// Elements in `order` go in its order; the others keep the server's order; the two are interleaved so that an
/// element of the server comes before those of the patch that the server had after it.
fn ordered(merged: Vec<Value>, order: &[Value], server: &[Value], merge_key: Option<&str>) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| position(list, item, merge_key);
    let (mut named, mut others): (Vec<_>, Vec<_>) = merged.into_iter().partition(|item| place(order, item).is_some());
    named.sort_by_key(|item| place(order, item));
    others.sort_by_key(|item| place(server, item));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(name)) => {
                matches!((place(server, other), place(server, name)), (Some(a), Some(b)) if a < b)
            }
        };
        out.extend(if other_first { others.next() } else { named.next() });
    }
}

/// Applies every `$setElementOrder/<field>` of the patch, with the list it belongs to.
pub(super) fn merge_ordered<'a, S: MergeSchema<'a>>(object: &mut Tree, patch: &mut Tree, schema: &S) -> Result<()> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let order = match patch.remove(&directive) {
            Some(Value::Array(order)) => order,
            other => return Err(wrong_type(GO_LIST, &other.unwrap_or_default())),
        };
        let name = directive
            .strip_prefix(SET_ORDER)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or(StrategicPatchError::SetElementOrder)?;
        let list = |value: Option<&Value>| match value {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list.clone())),
            Some(other) => Err(wrong_type(GO_LIST, other)),
        };
        let (old, new) = (list(object.get(name))?, list(patch.get(name))?);
        let field = lookup(schema, name)?;
        let merge_key = field.strategy.merge_key;
        check_order(new.as_deref().unwrap_or_default(), &order, merge_key)?;
        let server = old.clone().unwrap_or_default();
        let merged = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => new.into_iter().filter_map(without_directives).collect(),
            (Some(old), Some(new)) if field.strategy.merge => merge(old, new, &field, false)?,
            (Some(_), Some(new)) => new,
        };
        if let Some(key) = merge_key {
            for item in merged.iter().chain(&order) {
                require_key(item, key)?;
            }
        }
        let result = ordered(merged, &order, &server, merge_key);
        object.insert(name.to_owned(), Value::Array(result));
        patch.remove(name);
    }
    Ok(())
}

/// What a patch's list sets must come in the order the directive gives.
fn check_order(patch: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<()> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in patch {
        if merge_key.is_some() && !item.is_object() {
            return Err(wrong_type(GO_MAP, item));
        }
        if item.get(PATCH).is_some() {
            continue;
        }
        let wanted = match merge_key {
            Some(key) => require_key(item, key)?,
            None => item,
        };
        let found = rest.by_ref().any(|have| identity(have, merge_key) == Some(wanted));
        if !found {
            return Err(StrategicPatchError::Order {
                patch: go_list(patch),
                order: go_list(order),
            });
        }
    }
    Ok(())
}
