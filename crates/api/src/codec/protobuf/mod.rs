//! Kubernetes' protobuf: `k8s\0` and a `runtime.Unknown` around a message, read and written through the tags of
//! the schema table. There is no generated code: a message is a walk over a type, as for every other format.
//!
//! The rules that are not plain protobuf: quantities, times, int-or-strings, raw extensions and field sets have
//! messages of their own; embedded Go structs are messages although their fields are the outer object's in
//! JSON; Go writes every non-pointer scalar, zeros too, so decoded trees go through the same check as JSON,
//! which drops zeros that mean nothing.
//!
//! Only built-in kinds have protobuf, as upstream.

mod decode;
mod encode;
pub(crate) mod wire;

use serde_json::Value;
use thiserror::Error;

use crate::Object;
use crate::schema::{self, Definition};

/// What every enveloped message starts with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProtobufError {
    #[error("empty data")]
    Empty,
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: wrong wireType = {wire_type} for field {field}")]
    WireType { field: String, wire_type: u8 },
    #[error("proto: illegal tag {0} (wire type {1})")]
    IllegalTag(u32, u8),
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: field {0} is nested too deeply")]
    TooDeep(String),
    #[error("proto: field {0} is not valid UTF-8")]
    Utf8(String),
    #[error("proto: field {field} holds JSON that cannot be read: {why}")]
    Json { field: String, why: String },
    #[error("no kind {kind:?} is registered for version {api_version:?} in the built-in schema")]
    UnknownKind { api_version: String, kind: String },
    #[error("cannot write field {path} as protobuf: {why}")]
    Unwritable { path: String, why: String },
}

fn definition(api_version: &str, kind: &str) -> Result<&'static Definition, ProtobufError> {
    schema::builtin()
        .api_kind(api_version, kind)
        .filter(|definition| definition.as_struct().is_some())
        .ok_or_else(|| ProtobufError::UnknownKind {
            api_version: api_version.into(),
            kind: kind.into(),
        })
}

/// Reads an enveloped message. `fallback` is the `apiVersion` and `kind` to assume where the envelope is silent.
///
/// The tree is as written, zeros included: pass it through [`super::check`](fn@super::check).
pub fn decode(bytes: &[u8], fallback: Option<(&str, &str)>) -> Result<Object, ProtobufError> {
    let envelope = decode::envelope(bytes)?;
    let mut api_version = envelope.api_version;
    let mut kind = envelope.kind;
    if let Some((version, name)) = fallback {
        if api_version.is_empty() {
            api_version = version.into();
        }
        if kind.is_empty() {
            kind = name.into();
        }
    }
    if envelope.content_type == "application/json" {
        return super::json::decode(envelope.raw)
            .map(|parsed| parsed.object)
            .map_err(|error| ProtobufError::Json {
                field: "raw".into(),
                why: error.to_string(),
            });
    }
    let definition = definition(&api_version, &kind)?;
    let mut map = match definition.as_struct() {
        Some(below) => decode::message(below, envelope.raw)?,
        None => serde_json::Map::new(),
    };
    map.insert("apiVersion".into(), api_version.into());
    map.insert("kind".into(), kind.into());
    Ok(Value::Object(map))
}

/// Writes an object of a built-in kind, with its envelope.
pub fn encode(object: &Object) -> Result<Vec<u8>, ProtobufError> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    Ok(envelope(api_version, kind, &message(object)?))
}

/// Writes an object's bare message: what a list of it holds, to be put together by [`encode_list`].
pub fn message(object: &Object) -> Result<Vec<u8>, ProtobufError> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let definition = definition(text("apiVersion"), text("kind"))?;
    encode::message(definition, object)
}

/// Puts an envelope around a bare message.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    encode::envelope(api_version, kind, message)
}

/// Writes a list, with its envelope, from the bare messages of its items.
pub fn encode_list<'a>(
    api_version: &str,
    list_kind: &str,
    metadata: &Value,
    items: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, ProtobufError> {
    let list = definition(api_version, list_kind)?;
    let body = encode::list(list, metadata, items)?;
    Ok(envelope(api_version, list_kind, &body))
}

/// Writes one event of a watch: `object` is an enveloped message. Framing is the caller's: upstream puts four
/// bytes of length, big-endian, before each event.
pub fn encode_watch_event(event_type: &str, object: &[u8]) -> Vec<u8> {
    encode::watch_event(event_type, object)
}

#[cfg(test)]
mod tests;
