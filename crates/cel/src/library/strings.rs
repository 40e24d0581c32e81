//! Texts: the standard functions, the string extensions (version 2), patterns, quoting and `format`.

use crate::context::Context;
use crate::error::EvalError;
use crate::functions::{Cost, Outcome, Row};
use crate::library::lists;
use crate::library::standard::{double_text, plain_text};
use crate::value::{Key, Map, Value};

const PATTERN: Cost = Cost::Pattern { finds: false };
const FIND: Cost = Cost::Pattern { finds: true };

pub(crate) const ROWS: &[Row] = &[
    (
        "contains",
        &["string.(string) bool"],
        Cost::Contains,
        |context, args| {
            let (text, part) = two(args)?;
            context.work((text.len() + part.len()) as u64 / 16)?;
            Ok(Value::Bool(text.contains(part)))
        },
    ),
    ("startsWith", &["string.(string) bool"], Cost::Affix, |_, args| {
        let (text, part) = two(args)?;
        Ok(Value::Bool(text.starts_with(part)))
    }),
    ("endsWith", &["string.(string) bool"], Cost::Affix, |_, args| {
        let (text, part) = two(args)?;
        Ok(Value::Bool(text.ends_with(part)))
    }),
    (
        "matches",
        &["(string,string) bool", "string.(string) bool"],
        PATTERN,
        |context, args| {
            let (text, pattern) = two(args)?;
            Ok(Value::Bool(context.regex(pattern)?.is_match(text)))
        },
    ),
    ("find", &["string.(string) string"], FIND, |context, args| {
        let (text, pattern) = two(args)?;
        let found = context.regex(pattern)?;
        Ok(Value::string(found.find(text).map_or("", |found| found.as_str())))
    }),
    (
        "findAll",
        &["string.(string) list(string)", "string.(string,int) list(string)"],
        FIND,
        |context, args| {
            let (text, pattern) = two(args)?;
            let limit = match args.get(2) {
                Some(Value::Int(limit)) if *limit >= 0 => *limit as usize,
                Some(Value::Int(_)) | None => usize::MAX,
                _ => return Err(EvalError::no_overload()),
            };
            let regex = context.regex(pattern)?;
            let mut found = Vec::new();
            for found_at in regex.find_iter(text).take(limit) {
                context.work(1)?;
                found.push(Value::string(found_at.as_str()));
            }
            Ok(Value::list(found))
        },
    ),
    ("charAt", &["string.(int) string"], Cost::Fixed(1), |_, args| {
        let (text, at) = (one(args)?, int(args, 1)?);
        let length = text.chars().count() as i64;
        if at < 0 || at > length {
            return Err(EvalError::Failed(format!("index out of range: {at}")));
        }
        Ok(Value::string(
            text.chars().nth(at as usize).map(String::from).unwrap_or_default(),
        ))
    }),
    (
        "indexOf",
        &["string.(string) int", "string.(string,int) int", "list(A).(A) int"],
        Cost::Traverse,
        |context, args| match args {
            [Value::List(list), value] => lists::index_of(context, list, value, false),
            _ => index_of(context, args, false),
        },
    ),
    (
        "lastIndexOf",
        &["string.(string) int", "string.(string,int) int", "list(A).(A) int"],
        Cost::Traverse,
        |context, args| match args {
            [Value::List(list), value] => lists::index_of(context, list, value, true),
            _ => index_of(context, args, true),
        },
    ),
    ("lowerAscii", &["string.() string"], Cost::Text(1), |_, args| {
        Ok(Value::string(one(args)?.to_ascii_lowercase()))
    }),
    ("upperAscii", &["string.() string"], Cost::Text(1), |_, args| {
        Ok(Value::string(one(args)?.to_ascii_uppercase()))
    }),
    ("trim", &["string.() string"], Cost::Text(1), |_, args| {
        Ok(Value::string(one(args)?.trim()))
    }),
    (
        "substring",
        &["string.(int) string", "string.(int,int) string"],
        Cost::Text(1),
        |_, args| {
            let text = one(args)?;
            let length = text.chars().count() as i64;
            let start = int(args, 1)?;
            let end = if args.len() > 2 { int(args, 2)? } else { length };
            if args.len() > 2 && start > end {
                return Err(EvalError::Failed(format!(
                    "invalid substring range. start: {start}, end: {end}"
                )));
            }
            for at in [start, end] {
                if at < 0 || at > length {
                    return Err(EvalError::Failed(format!("index out of range: {at}")));
                }
            }
            let part: String = text
                .chars()
                .skip(start as usize)
                .take((end - start).max(0) as usize)
                .collect();
            Ok(Value::string(part))
        },
    ),
    (
        "replace",
        &["string.(string,string) string", "string.(string,string,int) string"],
        Cost::Replace,
        |context, args| {
            let [Value::String(text), Value::String(old), Value::String(new), ..] = args else {
                return Err(EvalError::no_overload());
            };
            let limit = if args.len() > 3 { int(args, 3)? } else { -1 };
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let count = if old.is_empty() {
                text.chars().count() + 1
            } else {
                text.len() / old.len()
            };
            context.work(text.len() as u64 + (count.min(limit) as u64).saturating_mul(new.len() as u64))?;
            Ok(Value::string(text.replacen(&**old, new, limit)))
        },
    ),
    (
        "split",
        &["string.(string) list(string)", "string.(string,int) list(string)"],
        Cost::Split,
        |context, args| {
            let (text, separator) = two(args)?;
            let limit = if args.len() > 2 { int(args, 2)? } else { -1 };
            context.work(text.len() as u64)?;
            let parts: Vec<Value<'_>> = match (usize::try_from(limit), separator) {
                (Ok(0), _) => Vec::new(),
                (Ok(limit), "") => {
                    let mut parts: Vec<String> = text.chars().take(limit - 1).map(String::from).collect();
                    let rest: String = text.chars().skip(limit - 1).collect();
                    if !rest.is_empty() {
                        parts.push(rest);
                    }
                    parts.into_iter().map(Value::string).collect()
                }
                (Err(_), "") => text.chars().map(Value::string).collect(),
                (Ok(limit), separator) => text.splitn(limit, separator).map(Value::string).collect(),
                (Err(_), separator) => text.split(separator).map(Value::string).collect(),
            };
            Ok(Value::list(parts))
        },
    ),
    (
        "join",
        &["list(string).() string", "list(string).(string) string"],
        Cost::Join,
        |context, args| {
            let separator = match args.get(1) {
                Some(Value::String(separator)) => &**separator,
                None => "",
                _ => return Err(EvalError::no_overload()),
            };
            let Some(Value::List(list)) = args.first() else {
                return Err(EvalError::no_overload());
            };
            let mut out = String::new();
            for (index, item) in list.iter().enumerate() {
                let Value::String(text) = &item else {
                    return Err(EvalError::no_overload());
                };
                context.work((text.len() + separator.len() + 1) as u64)?;
                if index > 0 {
                    out.push_str(separator);
                }
                out.push_str(text);
            }
            Ok(Value::string(out))
        },
    ),
    ("strings.quote", &["(string) string"], Cost::Quote, |_, args| {
        Ok(Value::string(quoted(one(args)?)))
    }),
    (
        "format",
        &["string.(list(dyn)) string"],
        Cost::Format,
        |context, args| match args {
            [Value::String(text), Value::List(list)] => {
                let items: Vec<Value<'_>> = list.iter().collect();
                format(context, text, &items).map(Value::string)
            }
            _ => Err(EvalError::no_overload()),
        },
    ),
    ("jsonpatch.escapeKey", &["(string) string"], Cost::Text(1), |_, args| {
        Ok(Value::string(one(args)?.replace('~', "~0").replace('/', "~1")))
    }),
];

fn one<'v>(args: &'v [Value<'_>]) -> Result<&'v str, EvalError> {
    args.first().and_then(Value::as_str).ok_or_else(EvalError::no_overload)
}

fn two<'v>(args: &'v [Value<'_>]) -> Result<(&'v str, &'v str), EvalError> {
    match args {
        [Value::String(a), Value::String(b), ..] => Ok((a, b)),
        _ => Err(EvalError::no_overload()),
    }
}

fn int(args: &[Value<'_>], at: usize) -> Result<i64, EvalError> {
    match args.get(at) {
        Some(Value::Int(value)) => Ok(*value),
        _ => Err(EvalError::no_overload()),
    }
}

/// Positions are in characters.
fn index_of<'a>(context: &Context<'_>, args: &[Value<'a>], last: bool) -> Outcome<'a> {
    let (text, part) = two(args)?;
    context.work((text.len() + part.len()) as u64 / 8)?;
    let length = text.chars().count() as i64;
    let offset = if args.len() > 2 { Some(int(args, 2)?) } else { None };
    if let Some(offset) = offset
        && (offset < 0 || offset > length)
    {
        return Err(EvalError::Failed(format!("index out of range: {offset}")));
    }
    let byte_of = |at: i64| {
        text.char_indices()
            .nth(at as usize)
            .map_or(text.len(), |(byte, _)| byte)
    };
    let found = match (last, offset) {
        (false, offset) => {
            let from = byte_of(offset.unwrap_or(0));
            text.get(from..).and_then(|rest| rest.find(part)).map(|at| at + from)
        }
        (true, None) => text.rfind(part),
        (true, Some(offset)) => {
            let end = (byte_of(offset) + part.len()).min(text.len());
            let end = (end..=text.len())
                .find(|end| text.is_char_boundary(*end))
                .unwrap_or(text.len());
            text.get(..end).and_then(|head| head.rfind(part))
        }
    };
    let at = found
        .and_then(|byte| text.get(..byte))
        .map_or(-1, |head| head.chars().count() as i64);
    Ok(Value::Int(at))
}

pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// More digits than this are refused.
const MAX_PRECISION: usize = 1000;

fn format(context: &Context<'_>, text: &str, args: &[Value<'_>]) -> Result<String, EvalError> {
    let mut out = String::new();
    let mut args = args.iter().enumerate();
    let mut chars = text.chars();
    let fail = |why: String| EvalError::Failed(why);
    while let Some(c) = chars.next() {
        context.work(1)?;
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut verb = chars.next();
        if verb == Some('%') {
            out.push('%');
            continue;
        }
        let mut precision = None;
        if verb == Some('.') {
            let mut digits = String::new();
            verb = chars.next();
            while let Some(digit) = verb.filter(char::is_ascii_digit) {
                digits.push(digit);
                verb = chars.next();
            }
            let wanted: usize = digits
                .parse()
                .map_err(|_| fail("error while converting precision to integer".to_owned()))?;
            if wanted > MAX_PRECISION {
                return Err(fail(format!("precision {wanted} is too large")));
            }
            precision = Some(wanted);
        }
        let Some(verb) = verb else {
            return Err(fail("unexpected end of string".to_owned()));
        };
        let Some((index, arg)) = args.next() else {
            return Err(fail(format!(
                "index {} out of range",
                text.matches('%').count().saturating_sub(1)
            )));
        };
        let wrong = |wanted: &str| {
            EvalError::Failed(format!(
                "error during formatting: {wanted} clause can only be used on another type, was given {} (argument {index})",
                arg.type_of()
            ))
        };
        match (verb, arg) {
            ('s', arg) => print(context, arg, &mut out, false, 0)?,
            ('d', Value::Int(_) | Value::Uint(_)) => print(context, arg, &mut out, false, 0)?,
            ('d', _) => return Err(wrong("decimal")),
            ('f' | 'e', arg) => {
                let value = match arg {
                    Value::Double(value) => *value,
                    Value::String(text) if matches!(&**text, "NaN" | "Infinity" | "-Infinity") => {
                        text.replace("Infinity", "inf").parse().unwrap_or(f64::NAN)
                    }
                    _ => return Err(wrong(if verb == 'f' { "fixed-point" } else { "scientific" })),
                };
                let precision = precision.unwrap_or(6);
                if value.is_nan() {
                    out.push_str("NaN");
                } else if value.is_infinite() {
                    out.push_str(if value > 0.0 { "∞" } else { "-∞" });
                } else if verb == 'f' {
                    out.push_str(&format!("{value:.precision$}"));
                } else {
                    let text = format!("{value:.precision$e}");
                    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                    let (sign, exponent) = match exponent.strip_prefix('-') {
                        Some(exponent) => ('-', exponent),
                        None => ('+', exponent),
                    };
                    out.push_str(&format!("{digits}e{sign}{exponent:0>2}"));
                }
            }
            ('b', Value::Int(value)) => out.push_str(&signed(*value, |value| format!("{value:b}"))),
            ('b', Value::Uint(value)) => out.push_str(&format!("{value:b}")),
            ('b', Value::Bool(value)) => out.push(if *value { '1' } else { '0' }),
            ('b', _) => return Err(wrong("binary")),
            ('o', Value::Int(value)) => out.push_str(&signed(*value, |value| format!("{value:o}"))),
            ('o', Value::Uint(value)) => out.push_str(&format!("{value:o}")),
            ('o', _) => return Err(wrong("octal")),
            ('x' | 'X', arg) => {
                let hex = match arg {
                    Value::Int(value) => signed(*value, |value| format!("{value:x}")),
                    Value::Uint(value) => format!("{value:x}"),
                    Value::String(text) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
                    Value::Bytes(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
                    _ => return Err(wrong("hex")),
                };
                out.push_str(&if verb == 'X' { hex.to_uppercase() } else { hex });
            }
            (other, _) => {
                return Err(fail(format!(
                    "could not parse formatting clause: unrecognized formatting clause \"{other}\""
                )));
            }
        }
    }
    Ok(out)
}

fn signed(value: i64, print: impl Fn(u64) -> String) -> String {
    let text = print(value.unsigned_abs());
    if value < 0 { format!("-{text}") } else { text }
}

/// `%s`. Within lists and maps texts are quoted and spans of time are written as calls.
fn print(
    context: &Context<'_>,
    value: &Value<'_>,
    out: &mut String,
    within: bool,
    depth: usize,
) -> Result<(), EvalError> {
    context.work(1 + out.len() as u64 / 4096)?;
    if depth > 100 {
        return Err(EvalError::failed("value is nested too deeply to be formatted"));
    }
    match value {
        Value::Null => out.push_str("null"),
        Value::String(text) if within => out.push_str(&quoted(text)),
        Value::Bytes(bytes) if within => {
            out.push('b');
            out.push_str(&quoted(&String::from_utf8_lossy(bytes)));
        }
        Value::Bytes(bytes) => out.push_str(&String::from_utf8_lossy(bytes)),
        Value::Double(value) if within => out.push_str(&format!("{value:.6}")),
        Value::Double(value) => out.push_str(&double_text(*value)),
        Value::Timestamp(_) if within => {
            out.push_str(&format!(
                "timestamp({})",
                quoted(&plain_text(value).unwrap_or_default())
            ));
        }
        Value::Duration(_) if within => {
            out.push_str(&format!("duration({})", quoted(&plain_text(value).unwrap_or_default())));
        }
        Value::Type(ty) => out.push_str(&crate::eval::type_name(ty)),
        Value::List(list) => {
            out.push('[');
            for (index, item) in list.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                print(context, &item, out, true, depth + 1)?;
            }
            out.push(']');
        }
        Value::Map(map) => {
            out.push('{');
            let mut entries: Vec<(String, Key<'_>)> = Vec::new();
            for key in map.keys() {
                let mut text = String::new();
                print(context, &key.value(), &mut text, true, depth + 1)?;
                entries.push((text, key));
            }
            entries.sort();
            for (index, (text, key)) in entries.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                out.push_str(text);
                out.push(':');
                print_entry(context, map, key, out, depth)?;
            }
            out.push('}');
        }
        other => match plain_text(other) {
            Some(text) => {
                context.work(text.len() as u64 / 16)?;
                out.push_str(&text);
            }
            None => {
                return Err(EvalError::Failed(format!(
                    "error during formatting: string clause can only be used on strings, bools, bytes, ints, doubles, \
                     maps, lists, types, durations, and timestamps, was given {}",
                    other.type_of()
                )));
            }
        },
    }
    Ok(())
}

fn print_entry<'a>(
    context: &Context<'_>,
    map: &Map<'a>,
    key: &Key<'a>,
    out: &mut String,
    depth: usize,
) -> Result<(), EvalError> {
    match map.get(key) {
        Some(value) => print(context, &value, out, true, depth + 1),
        None => Ok(()),
    }
}
