//! Decodes the table of built-in definitions. The table is part of this crate and checked by its tests, so a
//! malformed one is a defect of the build, the one thing here that may panic.
//!
//! A line `d NAME TYPE` opens a definition: `*` a struct, `*a` one that apply replaces whole, else a special
//! type's code. `g GROUP|VERSION|KIND` names its kind. `f NAME TAGS TYPE MARKS…` is a field; types are codes:
//! `[T` a list, `{T` a map, `@NAME` a reference, one letter for the rest.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::Arc;

use super::{DefId, Definition, Descriptions, Field, Gvk, List, ListKind, Map, Name, Printed, Schema, Struct, Type};

pub(super) static FACTS: &[u8] = include_bytes!("facts.deflate");
static DESCRIPTIONS: &[u8] = include_bytes!("descriptions.deflate");

fn inflate(bytes: &[u8]) -> String {
    let mut text = String::new();
    match flate2::read::DeflateDecoder::new(bytes).read_to_string(&mut text) {
        Ok(_) => text,
        Err(error) => panic!("the built-in schema does not decompress: {error}"),
    }
}

pub(super) fn decode() -> Schema {
    // Lives as long as the process: every name in the schema borrows from it.
    let text: &'static str = Box::leak(inflate(FACTS).into_boxed_str());
    match parse(text) {
        Some(schema) => schema,
        None => panic!("the built-in schema is malformed; run `cargo run -p sampan-xtask -- gen-schema`"),
    }
}

fn parse(text: &'static str) -> Option<Schema> {
    let mut by_name: HashMap<Name, DefId> = HashMap::new();
    for (at, line) in text.lines().filter(|line| line.starts_with("d ")).enumerate() {
        let name = line.split(' ').nth(1)?;
        by_name.insert(name.into(), DefId(u16::try_from(at).ok()?));
    }
    let mut definitions: Vec<Definition> = Vec::with_capacity(by_name.len());
    let mut fields: Vec<Field> = Vec::new();
    let close = |definitions: &mut Vec<Definition>, fields: &mut Vec<Field>| {
        if let Some(Definition {
            ty: Type::Struct(below),
            ..
        }) = definitions.last_mut()
            && let Some(below) = Arc::get_mut(below)
        {
            below.fields = fields.as_slice().to_vec();
        }
        fields.clear();
    };
    for line in text.lines() {
        let (head, rest) = line.split_once(' ')?;
        match head {
            "d" => {
                close(&mut definitions, &mut fields);
                let (name, code) = rest.split_once(' ')?;
                let ty = if let Some(mark) = code.strip_prefix('*') {
                    Type::Struct(Arc::new(Struct {
                        name: name.rsplit('.').next()?.into(),
                        atomic: mark == "a",
                        ..Struct::default()
                    }))
                } else {
                    parse_type(code, &by_name)?
                };
                definitions.push(Definition {
                    name: name.into(),
                    gvk: None,
                    ty,
                });
            }
            "g" => {
                let mut parts = rest.split('|');
                definitions.last_mut()?.gvk = Some(Gvk {
                    group: parts.next()?.into(),
                    version: parts.next()?.into(),
                    kind: parts.next()?.into(),
                });
            }
            "f" => fields.push(parse_field(rest, &by_name)?),
            _ => return None,
        }
    }
    close(&mut definitions, &mut fields);
    let mut by_kind: HashMap<(Name, Name), Vec<DefId>> = HashMap::new();
    for (at, definition) in definitions.iter().enumerate() {
        if let Some(gvk) = &definition.gvk {
            by_kind
                .entry((gvk.version.clone(), gvk.kind.clone()))
                .or_default()
                .push(DefId(u16::try_from(at).ok()?));
        }
    }
    Some(Schema {
        definitions,
        by_name,
        by_kind,
    })
}

fn parse_field(line: &'static str, by_name: &HashMap<Name, DefId>) -> Option<Field> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let tags = words.next()?;
    let ty = parse_type(words.next()?, by_name)?;
    let mut field = Field::new(name, ty);
    if !tags.is_empty() {
        field.tags = tags.split('.').map(|tag| tag.parse().ok()).collect::<Option<_>>()?;
    }
    for word in words {
        let (mark, value) = word.split_at_checked(1)?;
        match mark {
            "r" => field.required = true,
            "z" => field.keep_zero = true,
            "p" => field.printed = Printed::Zero,
            "N" => field.printed = Printed::Null,
            "G" => field.go_type = Some(value.into()),
            "a" => field.atomic = Some(true),
            "n" => field.atomic = Some(false),
            "L" => {
                field.list_marked = true;
                let (kind, keys) = value.split_once(':').unwrap_or((value, ""));
                let Type::List(list) = &mut field.ty else {
                    // Bytes are a list in Go, and some are marked as one.
                    if kind == "atomic" {
                        continue;
                    }
                    return None;
                };
                list.kind = match kind {
                    "atomic" => ListKind::Atomic,
                    "set" => ListKind::Set,
                    "map" => ListKind::Map,
                    _ => return None,
                };
                list.keys = keys.split(',').filter(|key| !key.is_empty()).map(Name::from).collect();
            }
            "P" => {
                let patch = field.patch.get_or_insert_default();
                for strategy in value.split(',') {
                    match strategy {
                        "merge" => patch.merge = true,
                        "retainKeys" => patch.retain_keys = true,
                        "replace" => patch.replace = true,
                        _ => return None,
                    }
                }
            }
            "D" => field.default = Some(Box::new(serde_json::from_str(value).ok()?)),
            "K" => field.patch.get_or_insert_default().key = Some(value.into()),
            _ => return None,
        }
    }
    if let Type::Map(map) = &mut field.ty {
        map.atomic = field.atomic == Some(true);
    }
    Some(field)
}

fn parse_type(code: &'static str, by_name: &HashMap<Name, DefId>) -> Option<Type> {
    let (head, rest) = code.split_at_checked(1)?;
    Some(match head {
        "[" => Type::List(Box::new(List {
            items: parse_type(rest, by_name)?,
            kind: ListKind::Atomic,
            keys: Vec::new(),
            nullable_items: false,
        })),
        "{" => Type::Map(Box::new(Map {
            values: parse_type(rest, by_name)?,
            atomic: false,
            nullable_values: false,
        })),
        "@" => Type::Def(*by_name.get(rest)?),
        "s" => Type::String,
        "b" => Type::Bool,
        "i" => Type::Int32,
        "l" => Type::Int64,
        "d" => Type::Double,
        "y" => Type::Bytes,
        "o" => Type::IntOrString,
        "q" => Type::Quantity,
        "t" => Type::Time,
        "m" => Type::MicroTime,
        "x" => Type::RawExtension,
        "v" => Type::FieldsV1,
        "j" => Type::Json,
        "A" => Type::PropsOrArray,
        "B" => Type::PropsOrBool,
        "S" => Type::PropsOrStrings,
        "w" => Type::Strings,
        _ => return None,
    })
}

pub(super) fn descriptions(schema: &Schema) -> Descriptions {
    let text = inflate(DESCRIPTIONS);
    let mut lines = HashMap::with_capacity(schema.definitions.len());
    let mut at = 0usize;
    for definition in &schema.definitions {
        let count = 1 + definition.as_struct().map_or(0, |below| below.fields.len());
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            let end = text
                .get(at..)
                .and_then(|rest| memchr::memchr(b'\n', rest.as_bytes()))
                .map_or(text.len(), |offset| at + offset);
            // The text is under a megabyte.
            ranges.push((at as u32, end as u32));
            at = end + 1;
        }
        lines.insert(definition.name.clone(), ranges);
    }
    Descriptions { text, lines }
}
