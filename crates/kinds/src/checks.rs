//! Validation that needs nothing but the field itself, as a table of path patterns (see [`crate::path`]).

use sampan_api::{Object, field, names};
use serde_json::Value;

use crate::{path, tree};

/// One row: a field and what must hold for it.
pub(crate) type Check = (&'static str, Rule);

#[derive(Clone, Copy)]
pub(crate) enum Rule {
    /// Present and not empty; the detail is upstream's, often empty.
    Required(&'static str),
    /// There, if with nothing in it: what Go points to.
    Given,
    /// When present and not empty, one of these.
    OneOf(&'static [&'static str]),
    /// When given, even as an empty text (a pointer in Go), one of these.
    GivenOneOf(&'static [&'static str]),
    /// When given, even as an empty text, text that passes.
    GivenNamed(fn(&str) -> Vec<String>),
    /// Present and one of these.
    RequiredOneOf(&'static [&'static str]),
    /// When present, at least 0.
    NonNegative,
    /// When present, within these bounds (upstream's "must be between" wording).
    Between(i64, i64),
    /// At least this, with upstream's detail, when given.
    AtLeast(i64, &'static str),
    /// At most this, with upstream's detail, when given.
    AtMost(i64, &'static str),
    /// Text that passes, and the empty text when absent.
    AlwaysNamed(fn(&str) -> Vec<String>),
    /// When present and not empty, text that passes; one error per message.
    Named(fn(&str) -> Vec<String>),
    /// Present, not empty, and text that passes.
    RequiredNamed(fn(&str) -> Vec<String>),
    /// When present, permission bits.
    Mode,
    /// When present, a user or group number.
    UnixId,
    /// When present, not there at all: upstream's words say why.
    Forbidden(&'static str),
    /// Not changed by an update.
    Immutable,
}

pub(crate) const IMMUTABLE: &str = "field is immutable";

/// Runs the rows over a tree; `old` is there for an update.
pub(crate) fn run(rows: &[Check], object: &Object, old: Option<&Object>, errors: &mut field::Errors) {
    run_at(rows, object, &field::Path::default(), old, errors);
}

/// [`run`] for a part of an object that lives at `at`.
pub(crate) fn run_at(rows: &[Check], value: &Value, at: &field::Path, old: Option<&Value>, errors: &mut field::Errors) {
    for (pattern, rule) in rows {
        if let Rule::Immutable = rule {
            if let Some(old) = old {
                immutable(value, old, at, pattern, errors);
            }
            continue;
        }
        path::each(value, at, pattern, &mut |path, value| {
            check(*rule, path, value, errors);
        });
    }
}

/// `field is immutable` when the values at a plain dotted path differ.
pub(crate) fn immutable(new: &Value, old: &Value, at: &field::Path, dotted: &str, errors: &mut field::Errors) {
    if !tree::same_at(new, old, dotted) {
        let path = dotted.split('.').fold(at.clone(), |path, name| path.child(name));
        let value = tree::get(new, dotted).cloned().unwrap_or_default();
        errors.push(field::Error::invalid(&path, value, IMMUTABLE));
    }
}

/// [`immutable`] for a field of the spec that errors call by another path.
pub(crate) fn fixed(new: &Value, old: &Value, dotted: &str, path: &field::Path, errors: &mut field::Errors) {
    if !tree::same_at(new, old, dotted) {
        let value = tree::get(new, dotted).cloned().unwrap_or_default();
        errors.push(field::Error::invalid(path, value, IMMUTABLE));
    }
}

fn is_blank(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}

fn check(rule: Rule, path: &field::Path, value: Option<&Value>, errors: &mut field::Errors) {
    match rule {
        Rule::Required(detail) => {
            if is_blank(value) {
                errors.push(field::Error::required(path, detail));
            }
        }
        Rule::Given => {
            if value.is_none_or(Value::is_null) {
                errors.push(field::Error::required(path, ""));
            }
        }
        Rule::RequiredOneOf(allowed) => {
            if is_blank(value) {
                errors.push(field::Error::required(path, ""));
            } else {
                check(Rule::OneOf(allowed), path, value, errors);
            }
        }
        Rule::OneOf(allowed) => {
            if let Some(text) = value.and_then(Value::as_str)
                && !text.is_empty()
                && !allowed.contains(&text)
            {
                errors.push(field::Error::not_supported(path, text, allowed));
            }
        }
        Rule::GivenOneOf(allowed) => {
            if let Some(text) = value.and_then(Value::as_str)
                && !allowed.contains(&text)
            {
                errors.push(field::Error::not_supported(path, text, allowed));
            }
        }
        Rule::GivenNamed(valid) => {
            if let Some(text) = value.and_then(Value::as_str) {
                named(path, text, valid, errors);
            }
        }
        Rule::AlwaysNamed(valid) => {
            let text = value.and_then(Value::as_str).unwrap_or_default();
            named(path, text, valid, errors);
        }
        Rule::AtLeast(low, why) => {
            if let Some(number) = value.and_then(Value::as_i64).filter(|number| *number < low) {
                errors.push(field::Error::invalid(path, number, why));
            }
        }
        Rule::AtMost(high, why) => {
            if let Some(number) = value.and_then(Value::as_i64).filter(|number| *number > high) {
                errors.push(field::Error::invalid(path, number, why));
            }
        }
        Rule::NonNegative => {
            if let Some(number) = value.and_then(Value::as_i64) {
                non_negative(path, number, errors);
            }
        }
        Rule::Between(low, high) => {
            if let Some(number) = value.and_then(Value::as_i64)
                && !(low..=high).contains(&number)
            {
                errors.push(field::Error::invalid(
                    path,
                    number,
                    format!("must be between {low} and {high}, inclusive"),
                ));
            }
        }
        Rule::Named(valid) => {
            if let Some(text) = value.and_then(Value::as_str)
                && !text.is_empty()
            {
                named(path, text, valid, errors);
            }
        }
        Rule::RequiredNamed(valid) => {
            if is_blank(value) {
                errors.push(field::Error::required(path, ""));
            } else {
                check(Rule::Named(valid), path, value, errors);
            }
        }
        Rule::Mode => {
            if let Some(number) = value.and_then(Value::as_i64)
                && !(0..=0o777).contains(&number)
            {
                let why = "must be a number between 0 and 0777 (octal), both inclusive";
                errors.push(field::Error::invalid(path, number, why));
            }
        }
        Rule::UnixId => {
            if let Some(number) = value.and_then(Value::as_i64) {
                errors.extend(
                    names::unix_id(number)
                        .into_iter()
                        .map(|message| field::Error::invalid(path, number, message)),
                );
            }
        }
        Rule::Forbidden(why) => {
            if !is_blank(value) {
                errors.push(field::Error::forbidden(path, why));
            }
        }
        Rule::Immutable => {}
    }
}

/// One error per message of a name check.
pub(crate) fn named(path: &field::Path, text: &str, valid: fn(&str) -> Vec<String>, errors: &mut field::Errors) {
    errors.extend(
        valid(text)
            .into_iter()
            .map(|message| field::Error::invalid(path, text, message)),
    );
}

/// An integer that is a port number, or text that is a port's name.
pub(crate) fn port_or_name(path: &field::Path, value: Option<&Value>, errors: &mut field::Errors) {
    match value {
        Some(Value::String(name)) => named(path, name, names::port_name, errors),
        other => {
            let number = other.and_then(Value::as_i64).unwrap_or_default();
            errors.extend(
                names::port_number(number)
                    .into_iter()
                    .map(|message| field::Error::invalid(path, number, message)),
            );
        }
    }
}

/// Conditions as upstream's `metav1.Condition` has them.
pub(crate) fn conditions(conditions: &[Value], path: &field::Path, errors: &mut field::Errors) {
    const STATUSES: &[&str] = &["False", "True", "Unknown"];
    const REASON: usize = 1024;
    const MESSAGE: usize = 32 * 1024;
    let mut seen = std::collections::BTreeSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        let kind = tree::text(condition, "type");
        if !seen.insert(kind) {
            errors.push(field::Error::duplicate(&path.child("type"), kind));
        }
        named(&path.child("type"), kind, names::qualified_name, errors);
        let status = tree::text(condition, "status");
        if !STATUSES.contains(&status) {
            errors.push(field::Error::not_supported(&path.child("status"), status, STATUSES));
        }
        let generation = tree::int(condition, "observedGeneration");
        if generation < 0 {
            let why = "must be greater than or equal to zero";
            errors.push(field::Error::invalid(
                &path.child("observedGeneration"),
                generation,
                why,
            ));
        }
        if tree::get(condition, "lastTransitionTime").is_none() {
            errors.push(field::Error::required(&path.child("lastTransitionTime"), ""));
        }
        let reason = tree::text(condition, "reason");
        let at = path.child("reason");
        if reason.is_empty() {
            errors.push(field::Error::required(&at, ""));
        } else {
            named(&at, reason, condition_reason, errors);
            if reason.len() > REASON {
                errors.push(field::Error::too_long(&at, REASON));
            }
        }
        if tree::text(condition, "message").len() > MESSAGE {
            errors.push(field::Error::too_long(&path.child("message"), MESSAGE));
        }
    }
}

fn condition_reason(text: &str) -> Vec<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(word)
        && text.chars().all(|c| word(c) || c == ',' || c == ':')
    {
        return Vec::new();
    }
    vec![names::pattern(
        "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
        "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
        &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"],
    )]
}

pub(crate) fn non_negative(path: &field::Path, number: i64, errors: &mut field::Errors) {
    if number < 0 {
        errors.push(field::Error::invalid(
            path,
            number,
            "must be greater than or equal to 0",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_find_what_is_wrong() {
        let rows: &[Check] = &[
            ("spec.name", Rule::Required("")),
            ("spec.mode", Rule::RequiredOneOf(&["B", "A"])),
            ("spec.list[].size", Rule::NonNegative),
            ("spec.fixed", Rule::Immutable),
            ("spec.pointer", Rule::GivenOneOf(&["A"])),
        ];
        let texts = |new: Value, old: Option<Value>| {
            let mut errors = Vec::new();
            run(rows, &new, old.as_ref(), &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            texts(json!({"spec": {"mode": "C", "list": [{"size": -1}]}}), None),
            [
                "spec.name: Required value",
                r#"spec.mode: Unsupported value: "C": supported values: "B", "A""#,
                "spec.list[0].size: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
        assert_eq!(
            texts(json!({"spec": {"name": "x", "mode": "A", "pointer": ""}}), None),
            [r#"spec.pointer: Unsupported value: "": supported values: "A""#]
        );
        assert_eq!(
            texts(
                json!({"spec": {"name": "x", "mode": "A", "fixed": 2}}),
                Some(json!({"spec": {"fixed": 1}}))
            ),
            ["spec.fixed: Invalid value: 2: field is immutable"]
        );
    }
}
