//! Path patterns: how the tables of defaults and checks name fields.
//!
//! A pattern is names joined by dots. A name may be followed by
//! - `[]`: every element of the list;
//! - `{}`: every value of the map;
//! - `(field=value)`: only where the map's `field` is that text;
//! - `(field)` / `(!field)`: only where the map has / does not have `field`.
//!
//! `spec.strategy(type=RollingUpdate).rollingUpdate` names one field of one kind of strategy;
//! `spec.containers[].ports[].protocol` names a field of every port of every container.

use sampan_api::field;
use serde_json::Value;

use crate::tree;

/// One step of a pattern, parsed on the way: patterns are short and this is cheaper than keeping them parsed.
struct Step<'a> {
    name: &'a str,
    condition: Option<&'a str>,
    each: Each,
    rest: &'a str,
}

#[derive(PartialEq)]
enum Each {
    Itself,
    Element,
    MapValue,
}

fn step(pattern: &str) -> Step<'_> {
    // A dot inside a condition belongs to its value.
    let mut depth = 0;
    let end = pattern
        .char_indices()
        .find(|(_, c)| {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            *c == '.' && depth == 0
        })
        .map_or(pattern.len(), |(index, _)| index);
    let (mut head, rest) = (&pattern[..end], pattern.get(end + 1..).unwrap_or_default());
    let mut condition = None;
    if let Some((name, tail)) = head.split_once('(') {
        condition = tail.strip_suffix(')');
        head = name;
    }
    let (name, each) = if let Some(name) = head.strip_suffix("[]") {
        (name, Each::Element)
    } else if let Some(name) = head.strip_suffix("{}") {
        (name, Each::MapValue)
    } else {
        (head, Each::Itself)
    };
    Step {
        name,
        condition,
        each,
        rest,
    }
}

fn holds(condition: Option<&str>, value: &Value) -> bool {
    match condition {
        None => true,
        Some(condition) => match condition.split_once('=') {
            Some((field, wanted)) => tree::text(value, field) == wanted,
            None => match condition.strip_prefix('!') {
                Some(field) => tree::get(value, field).is_none(),
                None => tree::get(value, condition).is_some(),
            },
        },
    }
}

/// Calls `act` with the map that holds (or would hold) the last name of the pattern, once per match.
pub(crate) fn each_parent_mut(value: &mut Value, pattern: &str, act: &mut impl FnMut(&mut Value, &str)) {
    let step = step(pattern);
    if step.rest.is_empty() {
        if value.is_object() {
            act(value, step.name);
        }
        return;
    }
    let Some(next) = value.get_mut(step.name).filter(|next| !next.is_null()) else {
        return;
    };
    let mut enter = |next: &mut Value| {
        if holds(step.condition, next) {
            each_parent_mut(next, step.rest, act);
        }
    };
    match step.each {
        Each::Itself => enter(next),
        Each::Element => next.as_array_mut().into_iter().flatten().for_each(enter),
        Each::MapValue => {
            if let Some(map) = next.as_object_mut() {
                map.values_mut().for_each(enter);
            }
        }
    }
}

/// Calls `act` with the field's path and value (`None` when absent) once per match of the pattern's parents.
/// A pattern that ends in `[]` visits the elements themselves.
pub(crate) fn each<'v>(
    value: &'v Value,
    at: &field::Path,
    pattern: &str,
    act: &mut impl FnMut(&field::Path, Option<&'v Value>),
) {
    let step = step(pattern);
    let path = at.child(step.name);
    let next = value.get(step.name).filter(|next| !next.is_null());
    if step.rest.is_empty() && step.each == Each::Itself {
        act(&path, next);
        return;
    }
    let Some(next) = next else {
        return;
    };
    let mut enter = |path: &field::Path, next: &'v Value| {
        if !holds(step.condition, next) {
            return;
        }
        if step.rest.is_empty() {
            act(path, Some(next));
        } else {
            each(next, path, step.rest, act);
        }
    };
    match step.each {
        Each::Itself => enter(&path, next),
        Each::Element => {
            for (index, element) in next.as_array().into_iter().flatten().enumerate() {
                enter(&path.index(index), element);
            }
        }
        Each::MapValue => {
            for (key, element) in next.as_object().into_iter().flatten() {
                enter(&path.key(key), element);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patterns_find_their_fields() {
        let tree = json!({
            "list": [{"kind": "a", "n": 1}, {"kind": "b"}],
            "map": {"x.y": {"n": 2}},
        });
        let found = |pattern: &str| {
            let mut found = Vec::new();
            each(&tree, &field::Path::default(), pattern, &mut |path, value| {
                found.push(format!("{path}={}", value.unwrap_or(&Value::Null)));
            });
            found
        };
        assert_eq!(found("list[].n"), ["list[0].n=1", "list[1].n=null"]);
        assert_eq!(found("list[](kind=b).n"), ["list[1].n=null"]);
        assert_eq!(found("list[](n).kind"), ["list[0].kind=\"a\""]);
        assert_eq!(found("list[](!n).kind"), ["list[1].kind=\"b\""]);
        assert_eq!(found("map{}.n"), ["map[x.y].n=2"]);
        assert_eq!(found("absent.n"), Vec::<String>::new());
    }
}
