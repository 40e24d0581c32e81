//! Trees to messages.
//!
//! Only what is in the tree is written: Go reads an absent scalar as its zero, which is what its absence means.
//! Fields are written in the order of their tags, maps in the order of their keys, as Go writes them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::wire::{self, Writer};
use super::{MAGIC, ProtobufError};
use crate::schema::{self, Definition, Field, Struct, Type};
use crate::time;

const PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut writer = Writer::default();
    // contentType and contentEncoding: Go writes them empty.
    writer.bytes(4, b"");
    writer.bytes(3, b"");
    writer.bytes(2, message);
    let end = writer.len();
    writer.bytes(2, kind.as_bytes());
    writer.bytes(1, api_version.as_bytes());
    writer.close(1, end);
    writer.raw(MAGIC);
    writer.finish()
}

pub fn watch_event(event_type: &str, object: &[u8]) -> Vec<u8> {
    let mut writer = Writer::default();
    let end = writer.len();
    writer.bytes(1, object);
    writer.close(2, end);
    writer.bytes(1, event_type.as_bytes());
    writer.finish()
}

pub fn message(definition: &Definition, object: &Value) -> Result<Vec<u8>, ProtobufError> {
    let mut encoder = Encoder::default();
    if let Some(below) = definition.as_struct() {
        encoder.fields(below, object)?;
    }
    Ok(encoder.writer.finish())
}

/// A list from its items' messages: `metadata` is field 1, `items` field 2 in every list.
pub fn list<'a>(
    definition: &Definition,
    metadata: &Value,
    items: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, ProtobufError> {
    // Forwards, since the items may be many: only the small head is written backwards.
    let mut head = Encoder::default();
    if let Some(field) = definition.as_struct().and_then(|below| below.field("metadata")) {
        head.value(&field.ty, 1, metadata)?;
    }
    let mut bytes = head.writer.finish();
    for item in items {
        wire::header(&mut bytes, 2, item.len());
        bytes.extend_from_slice(item);
    }
    Ok(bytes)
}

#[derive(Default)]
struct Encoder {
    writer: Writer,
    path: Vec<String>,
}

impl Encoder {
    fn fault<T>(&self, why: impl Into<String>) -> Result<T, ProtobufError> {
        Err(ProtobufError::Unwritable {
            path: self.path.join("."),
            why: why.into(),
        })
    }

    /// The fields of a message, last tag first.
    fn fields(&mut self, below: &Struct, value: &Value) -> Result<(), ProtobufError> {
        let Value::Object(map) = value else {
            return self.fault("not an object");
        };
        let mut present: Vec<(&Field, &Value)> = map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .filter_map(|(key, value)| below.field(key).map(|field| (field, value)))
            .filter(|(field, _)| !field.tags.is_empty())
            .collect();
        present.sort_by(|a, b| b.0.tags.cmp(&a.0.tags));
        self.level(&present, 0)
    }

    /// Fields that share the first `depth` tags; those with more belong to embedded messages.
    fn level(&mut self, fields: &[(&Field, &Value)], depth: usize) -> Result<(), ProtobufError> {
        let mut rest = fields;
        while let Some(((field, value), others)) = rest.split_first() {
            let Some(tag) = field.tags.get(depth) else {
                return self.fault("a field without a tag");
            };
            if field.tags.len() == depth + 1 {
                self.path.push(field.name.clone().into_owned());
                self.value(&field.ty, *tag, value)?;
                self.path.pop();
                rest = others;
                continue;
            }
            let same = rest
                .iter()
                .take_while(|(other, _)| other.tags.get(depth) == Some(tag))
                .count();
            let (embedded, others) = rest.split_at(same);
            let end = self.writer.len();
            self.level(embedded, depth + 1)?;
            self.writer.close(*tag, end);
            rest = others;
        }
        Ok(())
    }

    fn value(&mut self, ty: &Type, tag: u32, value: &Value) -> Result<(), ProtobufError> {
        match (ty, value) {
            (Type::List(list), Value::Array(items)) => {
                for item in items.iter().rev() {
                    self.value(&list.items, tag, item)?;
                }
            }
            (Type::Map(map_type), Value::Object(entries)) => {
                for (key, item) in entries.iter().rev() {
                    let end = self.writer.len();
                    self.path.push(key.clone());
                    self.value(&map_type.values, 2, item)?;
                    self.path.pop();
                    self.writer.bytes(1, key.as_bytes());
                    self.writer.close(tag, end);
                }
            }
            (Type::Def(_) | Type::Struct(_), value) => {
                let end = self.writer.len();
                if let Some(below) = ty.as_struct()
                    && !value.is_null()
                {
                    self.fields(below, value)?;
                }
                self.writer.close(tag, end);
            }
            (Type::String, Value::String(text)) => self.writer.bytes(tag, text.as_bytes()),
            (Type::Bool, Value::Bool(flag)) => self.writer.integer(tag, i64::from(*flag)),
            (Type::Int32 | Type::Int64, Value::Number(number)) => match number.as_i64() {
                Some(number) => self.writer.integer(tag, number),
                None => return self.fault("not an integer"),
            },
            (Type::Double, Value::Number(number)) => match number.as_f64() {
                Some(number) => self.writer.double(tag, number),
                None => return self.fault("not a number"),
            },
            (Type::Bytes, Value::String(text)) => match STANDARD.decode(text) {
                Ok(bytes) => self.writer.bytes(tag, &bytes),
                Err(error) => return self.fault(error.to_string()),
            },
            (Type::Quantity, Value::String(text)) => {
                let end = self.writer.len();
                self.writer.bytes(1, text.as_bytes());
                self.writer.close(tag, end);
            }
            (Type::Quantity, Value::Number(number)) => {
                let end = self.writer.len();
                self.writer.bytes(1, number.to_string().as_bytes());
                self.writer.close(tag, end);
            }
            (Type::IntOrString, value) => self.int_or_string(tag, value)?,
            (Type::Time | Type::MicroTime, value) => self.timestamp(ty, tag, value)?,
            (Type::RawExtension | Type::FieldsV1 | Type::Json, value) => {
                let end = self.writer.len();
                if !value.is_null() {
                    self.writer.bytes(1, &super::super::json::encode(value));
                }
                self.writer.close(tag, end);
            }
            (Type::Strings, Value::Array(items)) => {
                let end = self.writer.len();
                for item in items.iter().rev() {
                    match item.as_str() {
                        Some(text) => self.writer.bytes(1, text.as_bytes()),
                        None => return self.fault("not a string"),
                    }
                }
                self.writer.close(tag, end);
            }
            (Type::PropsOrArray | Type::PropsOrBool | Type::PropsOrStrings, value) => {
                self.props(ty, tag, value)?;
            }
            // A null in a list or a map: an empty value of its kind.
            (Type::String | Type::Bytes, Value::Null) => self.writer.bytes(tag, b""),
            (ty, value) => {
                return self.fault(format!("{value} does not fit {ty:?}"));
            }
        }
        Ok(())
    }

    fn int_or_string(&mut self, tag: u32, value: &Value) -> Result<(), ProtobufError> {
        let end = self.writer.len();
        let (kind, number, text) = match value {
            Value::String(text) => (1, 0, text.as_str()),
            other => match other.as_i64() {
                Some(number) => (0, number, ""),
                None => return self.fault("neither an integer nor a string"),
            },
        };
        self.writer.bytes(3, text.as_bytes());
        self.writer.integer(2, number);
        self.writer.integer(1, kind);
        self.writer.close(tag, end);
        Ok(())
    }

    fn timestamp(&mut self, ty: &Type, tag: u32, value: &Value) -> Result<(), ProtobufError> {
        let end = self.writer.len();
        if let Value::String(text) = value {
            let parsed = if matches!(ty, Type::Time) {
                time::parse(text)
            } else {
                time::parse_micro(text)
            };
            let at: Timestamp = match parsed {
                Ok(at) => at,
                Err(error) => return self.fault(error.to_string()),
            };
            // Seconds round towards the past so that nanoseconds are never negative.
            let (mut seconds, mut nanos) = (at.as_second(), at.subsec_nanosecond());
            if nanos < 0 {
                seconds -= 1;
                nanos += 1_000_000_000;
            }
            let nanos = if matches!(ty, Type::MicroTime) { nanos } else { 0 };
            self.writer.integer(2, i64::from(nanos));
            self.writer.integer(1, seconds);
        }
        self.writer.close(tag, end);
        Ok(())
    }

    fn props(&mut self, ty: &Type, tag: u32, value: &Value) -> Result<(), ProtobufError> {
        let Some(schema) = schema::builtin().type_of(PROPS) else {
            return Ok(());
        };
        let end = self.writer.len();
        match (ty, value) {
            (Type::PropsOrBool, Value::Object(_)) => {
                self.value(&schema, 2, value)?;
                self.writer.integer(1, 1);
            }
            (Type::PropsOrBool, Value::Bool(flag)) => self.writer.integer(1, i64::from(*flag)),
            (_, Value::Object(_)) => self.value(&schema, 1, value)?,
            (Type::PropsOrArray, Value::Array(items)) => {
                for item in items.iter().rev() {
                    self.value(&schema, 2, item)?;
                }
            }
            (Type::PropsOrStrings, Value::Array(items)) => {
                for item in items.iter().rev() {
                    self.value(&Type::String, 2, item)?;
                }
            }
            (_, Value::Null) => {}
            _ => return self.fault("not a schema"),
        }
        self.writer.close(tag, end);
        Ok(())
    }
}
