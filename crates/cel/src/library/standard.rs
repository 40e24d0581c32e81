//! Operators, conversions and optional values.

use std::cmp::Ordering;
use std::rc::Rc;

use crate::context::Context;
use crate::error::EvalError;
use crate::functions::{Cost, Outcome, Row};
use crate::schema::ListKind;
use crate::time;
use crate::types::Type;
use crate::value::{Key, List, Map, Value, contains, equal, find_by_keys, order};

const COMPARED: &[&str] = &[
    "(bool,bool) bool",
    "(int,int) bool",
    "(int,double) bool",
    "(int,uint) bool",
    "(uint,uint) bool",
    "(uint,double) bool",
    "(uint,int) bool",
    "(double,double) bool",
    "(double,int) bool",
    "(double,uint) bool",
    "(string,string) bool",
    "(bytes,bytes) bool",
    "(timestamp,timestamp) bool",
    "(duration,duration) bool",
];

pub(crate) const ROWS: &[Row] = &[
    ("_&&_", &["(bool,bool) bool"], Cost::Logic, |_, _| {
        Err(EvalError::no_overload())
    }),
    ("_||_", &["(bool,bool) bool"], Cost::Logic, |_, _| {
        Err(EvalError::no_overload())
    }),
    ("_?_:_", &["(bool,A,A) A"], Cost::Conditional, |_, _| {
        Err(EvalError::no_overload())
    }),
    ("!_", &["(bool) bool"], Cost::Fixed(1), |_, args| match args {
        [Value::Bool(value)] => Ok(Value::Bool(!value)),
        _ => Err(EvalError::no_overload()),
    }),
    ("@not_strictly_false", &["(bool) bool"], Cost::Fixed(1), |_, args| {
        Ok(Value::Bool(!matches!(args, [Value::Bool(false)])))
    }),
    ("_==_", &["(A,A) bool"], Cost::Compare, |context, args| match args {
        [a, b] => Ok(Value::Bool(equal(a, b, context)?)),
        _ => Err(EvalError::no_overload()),
    }),
    ("_!=_", &["(A,A) bool"], Cost::Compare, |context, args| match args {
        [a, b] => Ok(Value::Bool(!equal(a, b, context)?)),
        _ => Err(EvalError::no_overload()),
    }),
    ("_<_", COMPARED, Cost::Compare, |_, args| compare(args, Ordering::is_lt)),
    ("_<=_", COMPARED, Cost::Compare, |_, args| {
        compare(args, Ordering::is_le)
    }),
    ("_>_", COMPARED, Cost::Compare, |_, args| compare(args, Ordering::is_gt)),
    ("_>=_", COMPARED, Cost::Compare, |_, args| {
        compare(args, Ordering::is_ge)
    }),
    (
        "_+_",
        &[
            "(bytes,bytes) bytes",
            "(double,double) double",
            "(duration,duration) duration",
            "(duration,timestamp) timestamp",
            "(timestamp,duration) timestamp",
            "(int,int) int",
            "(list(A),list(A)) list(A)",
            "(string,string) string",
            "(uint,uint) uint",
        ],
        Cost::Add,
        add,
    ),
    (
        "_-_",
        &[
            "(double,double) double",
            "(duration,duration) duration",
            "(int,int) int",
            "(timestamp,duration) timestamp",
            "(timestamp,timestamp) duration",
            "(uint,uint) uint",
        ],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Int(a), Value::Int(b)] => a.checked_sub(*b).map(Value::Int).ok_or_else(overflow),
            [Value::Uint(a), Value::Uint(b)] => a.checked_sub(*b).map(Value::Uint).ok_or_else(unsigned_overflow),
            [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a - b)),
            [Value::Duration(a), Value::Duration(b)] => {
                a.checked_sub(*b).map(Value::Duration).ok_or_else(duration_overflow)
            }
            [Value::Timestamp(a), Value::Duration(b)] => b
                .checked_neg()
                .and_then(|b| time::add(*a, b))
                .map(Value::Timestamp)
                .ok_or_else(timestamp_overflow),
            [Value::Timestamp(a), Value::Timestamp(b)] => {
                time::between(*b, *a).map(Value::Duration).ok_or_else(duration_overflow)
            }
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "_*_",
        &["(double,double) double", "(int,int) int", "(uint,uint) uint"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Int(a), Value::Int(b)] => a.checked_mul(*b).map(Value::Int).ok_or_else(overflow),
            [Value::Uint(a), Value::Uint(b)] => a.checked_mul(*b).map(Value::Uint).ok_or_else(unsigned_overflow),
            [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a * b)),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "_/_",
        &["(double,double) double", "(int,int) int", "(uint,uint) uint"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
                Err(EvalError::failed("division by zero"))
            }
            [Value::Int(a), Value::Int(b)] => a.checked_div(*b).map(Value::Int).ok_or_else(overflow),
            [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a / b)),
            [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a / b)),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "_%_",
        &["(int,int) int", "(uint,uint) uint"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
                Err(EvalError::failed("modulus by zero"))
            }
            [Value::Int(a), Value::Int(b)] => a.checked_rem(*b).map(Value::Int).ok_or_else(overflow),
            [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a % b)),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "-_",
        &["(double) double", "(int) int"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Int(value)] => value.checked_neg().map(Value::Int).ok_or_else(overflow),
            [Value::Double(value)] => Ok(Value::Double(-value)),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "_[_]",
        &[
            "(list(A),int) A",
            "(map(A,B),A) B",
            "(optional(list(A)),int) optional(A)",
            "(optional(map(A,B)),A) optional(B)",
        ],
        Cost::Index,
        |_, args| match args {
            [Value::Optional(of), key] => optional_index(of.as_deref(), key),
            [of, key] => of.index(key)?.ok_or_else(|| match of {
                Value::List(_) => EvalError::Failed(format!("index out of bounds: {}", shown(key))),
                _ => EvalError::no_key(shown(key)),
            }),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "_[?_]",
        &[
            "(list(A),int) optional(A)",
            "(optional(list(A)),int) optional(A)",
            "(map(A,B),A) optional(B)",
            "(optional(map(A,B)),A) optional(B)",
        ],
        Cost::Index,
        |_, args| match args {
            [Value::Optional(of), key] => optional_index(of.as_deref(), key),
            [of, key] => optional_index(Some(of), key),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "@in",
        &["(A,list(A)) bool", "(A,map(A,B)) bool"],
        Cost::In,
        |context, args| match args {
            [value, Value::List(list)] => Ok(Value::Bool(contains(list, value, context)?)),
            [value, map @ Value::Map(_)] => Ok(Value::Bool(map.index(value)?.is_some())),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "size",
        &[
            "(bytes) int",
            "bytes.() int",
            "(list(A)) int",
            "list(A).() int",
            "(map(A,B)) int",
            "map(A,B).() int",
            "(string) int",
            "string.() int",
        ],
        Cost::Fixed(1),
        |_, args| match args {
            [value @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => {
                Ok(Value::Int(value.size() as i64))
            }
            _ => Err(EvalError::no_overload()),
        },
    ),
    ("type", &["(A) type(A)"], Cost::Fixed(1), |_, args| match args {
        [value] => Ok(Value::Type(value.type_of())),
        _ => Err(EvalError::no_overload()),
    }),
    ("dyn", &["(A) dyn"], Cost::Dyn, |_, args| {
        args.first().cloned().ok_or_else(EvalError::no_overload)
    }),
    (
        "bool",
        &["(bool) bool", "(string) bool"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Bool(value)] => Ok(Value::Bool(*value)),
            [Value::String(text)] => match &**text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
                _ => Err(conversion("string", "bool")),
            },
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "bytes",
        &["(bytes) bytes", "(string) bytes"],
        Cost::Convert,
        |_, args| match args {
            [bytes @ Value::Bytes(_)] => Ok(bytes.clone()),
            [Value::String(text)] => Ok(Value::Bytes(text.as_bytes().into())),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "double",
        &["(double) double", "(int) double", "(string) double", "(uint) double"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Double(value)] => Ok(Value::Double(*value)),
            [Value::Int(value)] => Ok(Value::Double(*value as f64)),
            [Value::Uint(value)] => Ok(Value::Double(*value as f64)),
            [Value::String(text)] => text
                .parse()
                .map(Value::Double)
                .map_err(|_| conversion("string", "double")),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "int",
        &[
            "(int) int",
            "(double) int",
            "(duration) int",
            "(string) int",
            "(timestamp) int",
            "(uint) int",
        ],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Int(value)] => Ok(Value::Int(*value)),
            [Value::Double(value)] if *value > -9.223_372_036_854_776e18 && *value < 9.223_372_036_854_775e18 => {
                Ok(Value::Int(*value as i64))
            }
            [Value::Double(_)] => Err(overflow()),
            [Value::Duration(value)] => Ok(Value::Int(*value)),
            [Value::Timestamp(at)] => Ok(Value::Int(at.as_second())),
            [Value::Uint(value)] => i64::try_from(*value).map(Value::Int).map_err(|_| overflow()),
            [Value::String(text)] => text.parse().map(Value::Int).map_err(|_| conversion("string", "int")),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "uint",
        &["(uint) uint", "(double) uint", "(int) uint", "(string) uint"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Uint(value)] => Ok(Value::Uint(*value)),
            [Value::Double(value)] if *value >= 0.0 && *value < 1.844_674_407_370_955e19 => {
                Ok(Value::Uint(*value as u64))
            }
            [Value::Double(_)] => Err(unsigned_overflow()),
            [Value::Int(value)] => u64::try_from(*value).map(Value::Uint).map_err(|_| unsigned_overflow()),
            [Value::String(text)] => text.parse().map(Value::Uint).map_err(|_| conversion("string", "uint")),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "string",
        &[
            "(string) string",
            "(bool) string",
            "(bytes) string",
            "(double) string",
            "(duration) string",
            "(int) string",
            "(timestamp) string",
            "(uint) string",
            "(Ip) string",
            "(Cidr) string",
        ],
        Cost::Convert,
        |_, args| match args {
            [text @ Value::String(_)] => Ok(text.clone()),
            [Value::Bytes(bytes)] => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Value::string(text)),
                Err(_) => Err(EvalError::failed("invalid UTF-8 in bytes, cannot convert to string")),
            },
            [value] => plain_text(value).map(Value::string).ok_or_else(EvalError::no_overload),
            _ => Err(EvalError::no_overload()),
        },
    ),
    // Optional values.
    (
        "optional.of",
        &["(A) optional(A)"],
        Cost::Fixed(1),
        |_, args| match args {
            [value] => Ok(Value::some(value.clone())),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "optional.ofNonZeroValue",
        &["(A) optional(A)"],
        Cost::Fixed(1),
        |_, args| match args {
            [value] if is_zero(value) => Ok(Value::Optional(None)),
            [value] => Ok(Value::some(value.clone())),
            _ => Err(EvalError::no_overload()),
        },
    ),
    ("optional.none", &["() optional(A)"], Cost::Fixed(1), |_, _| {
        Ok(Value::Optional(None))
    }),
    ("value", &["optional(A).() A"], Cost::Fixed(1), |_, args| match args {
        [Value::Optional(Some(value))] => Ok((**value).clone()),
        [Value::Optional(None)] => Err(EvalError::failed("optional.none() dereference")),
        _ => Err(EvalError::no_overload()),
    }),
    (
        "hasValue",
        &["optional(A).() bool"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Optional(value)] => Ok(Value::Bool(value.is_some())),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "or",
        &["optional(A).(optional(A)) optional(A)"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Optional(None), other @ Value::Optional(_)] => Ok(other.clone()),
            [value @ Value::Optional(Some(_)), _] => Ok(value.clone()),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "orValue",
        &["optional(A).(A) A"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Optional(None), other] => Ok(other.clone()),
            [Value::Optional(Some(value)), _] => Ok((**value).clone()),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "cel.@mapInsert",
        &["(map(A,B),A,B) map(A,B)", "(map(A,B),map(A,B)) map(A,B)"],
        Cost::Fixed(1),
        |context, args| match args {
            [Value::Map(map), key, value] => {
                let mut map = owned(context, map)?;
                insert(&mut map, key, value)?;
                Ok(Value::Map(Map::Own(Rc::new(map))))
            }
            [Value::Map(map), Value::Map(more)] => {
                let mut map = owned(context, map)?;
                for key in more.keys() {
                    if let Some(value) = more.get(&key) {
                        insert(&mut map, &key.value(), &value)?;
                    }
                }
                Ok(Value::Map(Map::Own(Rc::new(map))))
            }
            _ => Err(EvalError::no_overload()),
        },
    ),
];

type Entries<'a> = std::collections::BTreeMap<Key<'a>, Value<'a>>;

fn owned<'a>(context: &Context<'_>, map: &Map<'a>) -> Result<Entries<'a>, EvalError> {
    context.work(map.len() as u64)?;
    Ok(match map {
        Map::Own(map) => (**map).clone(),
        json => json
            .keys()
            .filter_map(|key| json.get(&key).map(|value| (key, value)))
            .collect(),
    })
}

pub(crate) fn insert<'a>(map: &mut Entries<'a>, key: &Value<'a>, value: &Value<'a>) -> Result<(), EvalError> {
    let Some(key) = Key::of(key) else {
        return Err(EvalError::failed(format!("unsupported key type: {}", key.type_of())));
    };
    if map.contains_key(&key) {
        return Err(EvalError::Failed(format!(
            "insert failed: key {} already exists",
            shown(&key.value())
        )));
    }
    map.insert(key, value.clone());
    Ok(())
}

pub(crate) fn overflow() -> EvalError {
    EvalError::failed("integer overflow")
}
fn unsigned_overflow() -> EvalError {
    EvalError::failed("unsigned integer overflow")
}
fn duration_overflow() -> EvalError {
    EvalError::failed("duration overflow")
}
pub(crate) fn timestamp_overflow() -> EvalError {
    EvalError::failed("timestamp overflow")
}
pub(crate) fn conversion(from: &str, to: &str) -> EvalError {
    EvalError::Failed(format!("type conversion error from '{from}' to '{to}'"))
}

/// A value in a message.
pub(crate) fn shown(value: &Value<'_>) -> String {
    match value {
        Value::String(text) => text.to_string(),
        other => plain_text(other).unwrap_or_else(|| format!("{other:?}")),
    }
}

/// What `string(…)` makes of a value.
pub(crate) fn plain_text(value: &Value<'_>) -> Option<String> {
    Some(match value {
        Value::String(text) => text.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Double(value) => double_text(*value),
        Value::Duration(nanos) => time::format_duration(*nanos),
        Value::Timestamp(at) => time::format_timestamp(*at),
        Value::Opaque(opaque) => opaque.to_text()?,
        _ => return None,
    })
}

/// As Go's `%g` with the fewest digits.
pub(crate) fn double_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let exponent = if value == 0.0 {
        0
    } else {
        value.abs().log10().floor() as i32
    };
    if (-5..21).contains(&exponent) {
        return value.to_string();
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null | Value::Bool(false) | Value::Int(0) | Value::Uint(0) | Value::Duration(0) => true,
        Value::Optional(value) => value.is_none(),
        Value::Double(value) => *value == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.is_empty(),
        _ => false,
    }
}

fn optional_index<'a>(of: Option<&Value<'a>>, key: &Value<'a>) -> Outcome<'a> {
    let Some(of) = of else {
        return Ok(Value::Optional(None));
    };
    Ok(Value::Optional(of.index(key)?.map(Rc::new)))
}

fn compare<'a>(args: &[Value<'a>], wanted: impl Fn(Ordering) -> bool) -> Outcome<'a> {
    let [a, b] = args else {
        return Err(EvalError::no_overload());
    };
    match order(a, b) {
        Some(found) => Ok(Value::Bool(wanted(found))),
        None if matches!((a, b), (Value::Double(_), _) | (_, Value::Double(_))) && is_number(a) && is_number(b) => {
            Err(EvalError::failed("NaN values cannot be ordered"))
        }
        None => Err(EvalError::no_overload()),
    }
}

fn is_number(value: &Value<'_>) -> bool {
    matches!(value.type_of(), Type::Int | Type::Uint | Type::Double)
}

fn add<'a>(context: &Context<'_>, args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Int(a), Value::Int(b)] => a.checked_add(*b).map(Value::Int).ok_or_else(overflow),
        [Value::Uint(a), Value::Uint(b)] => a.checked_add(*b).map(Value::Uint).ok_or_else(unsigned_overflow),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a + b)),
        [Value::Duration(a), Value::Duration(b)] => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(duration_overflow)
        }
        [Value::Timestamp(at), Value::Duration(by)] | [Value::Duration(by), Value::Timestamp(at)] => {
            time::add(*at, *by).map(Value::Timestamp).ok_or_else(timestamp_overflow)
        }
        [Value::String(a), Value::String(b)] => {
            context.work((a.len() + b.len()) as u64)?;
            Ok(Value::string(format!("{}{}", &**a, &**b)))
        }
        [Value::Bytes(a), Value::Bytes(b)] => {
            context.work((a.len() + b.len()) as u64)?;
            Ok(Value::Bytes([&**a, &**b].concat().into()))
        }
        [Value::List(a), Value::List(b)] => add_lists(context, a, b),
        _ => Err(EvalError::no_overload()),
    }
}

/// Adding to a set adds what is new; adding to a list map replaces what has the same keys.
fn add_lists<'a>(context: &Context<'_>, a: &List<'a>, b: &List<'a>) -> Outcome<'a> {
    context.work((a.len() + b.len()) as u64)?;
    let mut items: Vec<Value<'a>> = a.iter().collect();
    match a.kind() {
        ListKind::Atomic => items.extend(b.iter()),
        ListKind::Set => {
            for item in b.iter() {
                if !contains(a, &item, context)? {
                    items.push(item);
                }
            }
        }
        ListKind::Map(keys) => {
            for item in b.iter() {
                match find_by_keys(a, &item, keys, context)? {
                    Some((at, _)) => {
                        if let Some(slot) = items.get_mut(at) {
                            *slot = item;
                        }
                    }
                    None => items.push(item),
                }
            }
        }
    }
    Ok(Value::list(items))
}
