//! Quantities and semantic versions.

use std::cmp::Ordering;

use sampan_api::quantity::{Format, Quantity};
use semver::Version;

use crate::error::EvalError;
use crate::functions::{Cost, Outcome, Row};
use crate::library::opaque::{Opaque, value};
use crate::value::Value;

pub(crate) const ROWS: &[Row] = &[
    ("isQuantity", &["(string) bool"], Cost::Parse(1), |_, args| {
        Ok(Value::Bool(Quantity::parse(text(args)?).is_ok()))
    }),
    (
        "quantity",
        &["(string) Quantity"],
        Cost::Parse(1),
        |_, args| match Quantity::parse(text(args)?) {
            Ok(quantity) => Ok(value(Opaque::Quantity(quantity))),
            Err(error) => Err(EvalError::Failed(error.to_string())),
        },
    ),
    ("sign", &["Quantity.() int"], Cost::Fixed(1), |_, args| {
        Ok(Value::Int(quantity(args, 0)?.sign().into()))
    }),
    ("isInteger", &["Quantity.() bool"], Cost::Fixed(1), |_, args| {
        Ok(Value::Bool(whole(quantity(args, 0)?).is_some()))
    }),
    (
        "asInteger",
        &["Quantity.() int"],
        Cost::Fixed(1),
        |_, args| match whole(quantity(args, 0)?) {
            Some(number) => Ok(Value::Int(number)),
            None => Err(EvalError::failed("cannot convert value to integer")),
        },
    ),
    (
        "asApproximateFloat",
        &["Quantity.() double"],
        Cost::Fixed(1),
        |_, args| Ok(Value::Double(quantity(args, 0)?.as_f64())),
    ),
    (
        "add",
        &["Quantity.(Quantity) Quantity", "Quantity.(int) Quantity"],
        Cost::Fixed(1),
        |_, args| {
            let sum = quantity(args, 0)?.add(&operand(args)?);
            Ok(value(Opaque::Quantity(sum)))
        },
    ),
    (
        "sub",
        &["Quantity.(Quantity) Quantity", "Quantity.(int) Quantity"],
        Cost::Fixed(1),
        |_, args| {
            let difference = quantity(args, 0)?.sub(&operand(args)?);
            Ok(value(Opaque::Quantity(difference)))
        },
    ),
    (
        "isGreaterThan",
        &["Quantity.(Quantity) bool", "Semver.(Semver) bool"],
        Cost::Fixed(1),
        |_, args| Ok(Value::Bool(order(args)?.is_gt())),
    ),
    (
        "isLessThan",
        &["Quantity.(Quantity) bool", "Semver.(Semver) bool"],
        Cost::Fixed(1),
        |_, args| Ok(Value::Bool(order(args)?.is_lt())),
    ),
    (
        "compareTo",
        &["Quantity.(Quantity) int", "Semver.(Semver) int"],
        Cost::Fixed(1),
        |_, args| Ok(Value::Int(order(args)? as i64)),
    ),
    (
        "isSemver",
        &["(string) bool", "(string,bool) bool"],
        Cost::Parse(1),
        |_, args| Ok(Value::Bool(parse_version(args)?.is_ok())),
    ),
    (
        "semver",
        &["(string) Semver", "(string,bool) Semver"],
        Cost::Parse(1),
        |_, args| match parse_version(args)? {
            Ok(version) => Ok(value(Opaque::Semver(version))),
            Err(why) => Err(EvalError::Failed(why)),
        },
    ),
    ("major", &["Semver.() int"], Cost::Fixed(1), |_, args| {
        number(version(args, 0)?.major)
    }),
    ("minor", &["Semver.() int"], Cost::Fixed(1), |_, args| {
        number(version(args, 0)?.minor)
    }),
    ("patch", &["Semver.() int"], Cost::Fixed(1), |_, args| {
        number(version(args, 0)?.patch)
    }),
];

fn text<'v>(args: &'v [Value<'_>]) -> Result<&'v str, EvalError> {
    args.first().and_then(Value::as_str).ok_or_else(EvalError::no_overload)
}

fn quantity<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v Quantity, EvalError> {
    match args.get(at) {
        Some(Value::Opaque(opaque)) => match &**opaque {
            Opaque::Quantity(quantity) => Ok(quantity),
            _ => Err(EvalError::no_overload()),
        },
        _ => Err(EvalError::no_overload()),
    }
}

fn version<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v Version, EvalError> {
    match args.get(at) {
        Some(Value::Opaque(opaque)) => match &**opaque {
            Opaque::Semver(version) => Ok(version),
            _ => Err(EvalError::no_overload()),
        },
        _ => Err(EvalError::no_overload()),
    }
}

fn operand(args: &[Value<'_>]) -> Result<Quantity, EvalError> {
    match args.get(1) {
        Some(Value::Int(number)) => Ok(Quantity::new(*number, Format::DecimalSi)),
        _ => quantity(args, 1).cloned(),
    }
}

/// The number it is, if it is a whole one that fits.
fn whole(quantity: &Quantity) -> Option<i64> {
    let number = quantity.value();
    (Quantity::new(number, Format::DecimalSi) == *quantity).then_some(number)
}

fn number<'a>(value: u64) -> Outcome<'a> {
    i64::try_from(value)
        .map(Value::Int)
        .map_err(|_| crate::library::standard::overflow())
}

fn order(args: &[Value<'_>]) -> Result<Ordering, EvalError> {
    if let (Ok(a), Ok(b)) = (quantity(args, 0), quantity(args, 1)) {
        return Ok(a.cmp(b));
    }
    Ok(version(args, 0)?.cmp_precedence(version(args, 1)?))
}

fn parse_version(args: &[Value<'_>]) -> Result<Result<Version, String>, EvalError> {
    let normalize = match args.get(1) {
        None => false,
        Some(Value::Bool(normalize)) => *normalize,
        _ => return Err(EvalError::no_overload()),
    };
    let text = text(args)?;
    let parsed = if normalize {
        Version::parse(&normalized(text))
    } else {
        Version::parse(text)
    };
    Ok(parsed.map_err(|error| format!("invalid semantic version {text:?}: {error}")))
}

/// Takes off a `v`, adds missing parts, and drops leading zeros.
fn normalized(text: &str) -> String {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let mut parts: Vec<&str> = numbers
        .split('.')
        .map(|part| match part.trim_start_matches('0') {
            "" if !part.is_empty() => "0",
            trimmed => trimmed,
        })
        .collect();
    while parts.len() < 3 && rest.is_empty() {
        parts.push("0");
    }
    format!("{}{rest}", parts.join("."))
}
