//! Messages to trees.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use super::wire::{Payload, Reader};
use super::{MAGIC, ProtobufError};
use crate::schema::{self, Field, Struct, Type};
use crate::time;

/// Deeper messages are refused; no API object comes near.
const DEEPEST: usize = 100;

const PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// `runtime.Unknown`.
#[derive(Default)]
pub struct Envelope<'a> {
    pub api_version: String,
    pub kind: String,
    pub raw: &'a [u8],
    pub content_type: String,
}

pub fn envelope(bytes: &[u8]) -> Result<Envelope<'_>, ProtobufError> {
    if bytes.is_empty() {
        return Err(ProtobufError::Empty);
    }
    let body = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    if body.is_empty() {
        return Err(ProtobufError::Empty);
    }
    let mut envelope = Envelope::default();
    let mut reader = Reader::new(body);
    while let Some((tag, payload)) = reader.field()? {
        match (tag, payload) {
            (1, Payload::Bytes(type_meta)) => {
                let mut reader = Reader::new(type_meta);
                while let Some((tag, payload)) = reader.field()? {
                    match (tag, payload) {
                        (1, Payload::Bytes(text)) => envelope.api_version = string("apiVersion", text)?,
                        (2, Payload::Bytes(text)) => envelope.kind = string("kind", text)?,
                        _ => {}
                    }
                }
            }
            (2, Payload::Bytes(raw)) => envelope.raw = raw,
            (4, Payload::Bytes(text)) => envelope.content_type = string("contentType", text)?,
            _ => {}
        }
    }
    Ok(envelope)
}

pub fn message(below: &Struct, bytes: &[u8]) -> Result<Map<String, Value>, ProtobufError> {
    let mut map = Map::new();
    Decoder { depth: 0 }.message(below, &mut Vec::new(), bytes, &mut map)?;
    Ok(map)
}

fn string(field: &str, bytes: &[u8]) -> Result<String, ProtobufError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| ProtobufError::Utf8(field.into()))
}

fn wrong(field: &str, payload: Payload<'_>) -> ProtobufError {
    ProtobufError::WireType {
        field: field.into(),
        wire_type: payload.wire_type(),
    }
}

struct Decoder {
    depth: usize,
}

impl Decoder {
    /// Reads a message into `map`. `prefix` leads to an embedded struct's message, whose fields are `below`'s.
    fn message(
        &mut self,
        below: &Struct,
        prefix: &mut Vec<u32>,
        bytes: &[u8],
        map: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        if self.depth >= DEEPEST {
            return Err(ProtobufError::TooDeep(below.name.clone().into_owned()));
        }
        self.depth += 1;
        let mut reader = Reader::new(bytes);
        while let Some((tag, payload)) = reader.field()? {
            let at = prefix.len();
            let found = below
                .fields
                .iter()
                .find(|field| field.tags.get(at) == Some(&tag) && field.tags.get(..at) == Some(prefix.as_slice()));
            let Some(field) = found else {
                // A field of a newer or older version.
                continue;
            };
            if field.tags.len() > at + 1 {
                let Payload::Bytes(inner) = payload else {
                    return Err(wrong(&field.name, payload));
                };
                prefix.push(tag);
                self.message(below, prefix, inner, map)?;
                prefix.pop();
                continue;
            }
            self.field(field, payload, map)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn field(
        &mut self,
        field: &Field,
        payload: Payload<'_>,
        map: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        let name = field.name.as_ref();
        match &field.ty {
            Type::List(list) => {
                let items = match map.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
                    Value::Array(items) => items,
                    _ => return Ok(()),
                };
                match (&list.items, payload) {
                    (Type::Int32 | Type::Int64 | Type::Bool, Payload::Bytes(packed)) => {
                        let mut reader = Reader::new(packed);
                        while !reader.is_empty() {
                            let item = Payload::Varint(reader.varint()?);
                            items.push(self.value(name, &list.items, item, None)?);
                        }
                    }
                    (Type::Double, Payload::Bytes(packed)) => {
                        let mut reader = Reader::new(packed);
                        while !reader.is_empty() {
                            let item = Payload::Fixed64(reader.fixed64()?);
                            items.push(self.value(name, &list.items, item, None)?);
                        }
                    }
                    (ty, payload) => items.push(self.value(name, ty, payload, None)?),
                }
            }
            Type::Map(map_type) => {
                let Payload::Bytes(entry) = payload else {
                    return Err(wrong(name, payload));
                };
                let mut key = String::new();
                let mut value = None;
                let mut reader = Reader::new(entry);
                while let Some((tag, payload)) = reader.field()? {
                    match (tag, payload) {
                        (1, Payload::Bytes(text)) => key = string(name, text)?,
                        (2, payload) => value = Some(self.value(name, &map_type.values, payload, None)?),
                        _ => {}
                    }
                }
                let value = value.unwrap_or(Value::Null);
                if let Value::Object(entries) = map.entry(name).or_insert_with(|| Value::Object(Map::new())) {
                    entries.insert(key, value);
                }
            }
            ty => {
                let before = map.remove(name);
                let value = self.value(name, ty, payload, before)?;
                map.insert(name.to_owned(), value);
            }
        }
        Ok(())
    }

    /// One value. `before` is what the field held already: a repeated message adds to it.
    fn value(
        &mut self,
        name: &str,
        ty: &Type,
        payload: Payload<'_>,
        before: Option<Value>,
    ) -> Result<Value, ProtobufError> {
        Ok(match (ty, payload) {
            (Type::Bool, Payload::Varint(value)) => Value::Bool(value != 0),
            // Go keeps the low 32 bits.
            (Type::Int32, Payload::Varint(value)) => Value::from(value as i32),
            (Type::Int64, Payload::Varint(value)) => Value::from(value as i64),
            (Type::Double, Payload::Fixed64(bits)) => {
                Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number)
            }
            (Type::String, Payload::Bytes(bytes)) => Value::String(string(name, bytes)?),
            (Type::Bytes, Payload::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
            (Type::Def(_) | Type::Struct(_), Payload::Bytes(bytes)) => {
                let mut map = match before {
                    Some(Value::Object(map)) => map,
                    _ => Map::new(),
                };
                if let Some(below) = ty.as_struct() {
                    self.message(below, &mut Vec::new(), bytes, &mut map)?;
                }
                Value::Object(map)
            }
            (Type::Quantity, Payload::Bytes(bytes)) => {
                let text = first_bytes(bytes)?.map_or(Ok(String::new()), |text| string(name, text))?;
                Value::String(if text.is_empty() { "0".into() } else { text })
            }
            (Type::IntOrString, Payload::Bytes(bytes)) => int_or_string(name, bytes)?,
            (Type::Time | Type::MicroTime, Payload::Bytes(bytes)) => timestamp(ty, bytes)?,
            (Type::RawExtension | Type::FieldsV1 | Type::Json, Payload::Bytes(bytes)) => match first_bytes(bytes)? {
                Some(raw) => embedded(name, raw)?,
                None => Value::Null,
            },
            (Type::Strings, Payload::Bytes(bytes)) => {
                let mut items = Vec::new();
                let mut reader = Reader::new(bytes);
                while let Some((tag, payload)) = reader.field()? {
                    if let (1, Payload::Bytes(text)) = (tag, payload) {
                        items.push(Value::String(string(name, text)?));
                    }
                }
                Value::Array(items)
            }
            (Type::PropsOrArray | Type::PropsOrBool | Type::PropsOrStrings, Payload::Bytes(bytes)) => {
                self.props(name, ty, bytes)?
            }
            (_, payload) => return Err(wrong(name, payload)),
        })
    }

    /// The unions of a CRD's schema: a schema, or something else.
    fn props(&mut self, name: &str, ty: &Type, bytes: &[u8]) -> Result<Value, ProtobufError> {
        let (mut schema, mut others, mut allows) = (None, Vec::new(), false);
        let mut reader = Reader::new(bytes);
        while let Some((tag, payload)) = reader.field()? {
            match (ty, tag, payload) {
                (Type::PropsOrBool, 1, Payload::Varint(value)) => allows = value != 0,
                (Type::PropsOrBool, 2, Payload::Bytes(_)) | (_, 1, Payload::Bytes(_)) => {
                    schema = Some(self.named(name, payload)?);
                }
                (Type::PropsOrArray, 2, Payload::Bytes(_)) => others.push(self.named(name, payload)?),
                (Type::PropsOrStrings, 2, Payload::Bytes(text)) => {
                    others.push(Value::String(string(name, text)?));
                }
                _ => {}
            }
        }
        Ok(match (schema, ty) {
            (Some(schema), _) => schema,
            (None, Type::PropsOrBool) => Value::Bool(allows),
            (None, _) if others.is_empty() => Value::Null,
            (None, _) => Value::Array(others),
        })
    }

    fn named(&mut self, name: &str, payload: Payload<'_>) -> Result<Value, ProtobufError> {
        match schema::builtin().type_of(PROPS) {
            Some(ty) => self.value(name, &ty, payload, None),
            None => Ok(Value::Null),
        }
    }
}

/// The content of field 1 of a message that has nothing else.
fn first_bytes(bytes: &[u8]) -> Result<Option<&[u8]>, ProtobufError> {
    let mut reader = Reader::new(bytes);
    let mut found = None;
    while let Some((tag, payload)) = reader.field()? {
        if let (1, Payload::Bytes(inner)) = (tag, payload) {
            found = Some(inner);
        }
    }
    Ok(found)
}

fn int_or_string(name: &str, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_string, mut number, mut text) = (false, 0i32, String::new());
    let mut reader = Reader::new(bytes);
    while let Some((tag, payload)) = reader.field()? {
        match (tag, payload) {
            (1, Payload::Varint(value)) => is_string = value == 1,
            (2, Payload::Varint(value)) => number = value as i32,
            (3, Payload::Bytes(value)) => text = string(name, value)?,
            _ => {}
        }
    }
    Ok(if is_string {
        Value::String(text)
    } else {
        Value::from(number)
    })
}

/// An empty message is Go's zero time, which its JSON prints as null.
fn timestamp(ty: &Type, bytes: &[u8]) -> Result<Value, ProtobufError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0i64, 0i32);
    let mut reader = Reader::new(bytes);
    while let Some((tag, payload)) = reader.field()? {
        match (tag, payload) {
            (1, Payload::Varint(value)) => seconds = value as i64,
            (2, Payload::Varint(value)) => nanos = value as i32,
            _ => {}
        }
    }
    let micro = matches!(ty, Type::MicroTime);
    let nanos = if micro { nanos / 1000 * 1000 } else { 0 };
    let at = Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Overflow)?;
    Ok(Value::String(if micro {
        time::format_micro(at)
    } else {
        time::format(at)
    }))
}

/// JSON, or another enveloped message, inside a raw field.
fn embedded(name: &str, raw: &[u8]) -> Result<Value, ProtobufError> {
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    if raw.starts_with(MAGIC) {
        return super::decode(raw, None);
    }
    super::super::json::decode(raw)
        .map(|parsed| parsed.object)
        .map_err(|error| ProtobufError::Json {
            field: name.into(),
            why: error.to_string(),
        })
}
