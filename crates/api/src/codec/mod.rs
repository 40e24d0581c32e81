//! Bytes to trees and back: JSON, YAML and protobuf, and the check of a tree against its type.
//!
//! Decoding never loses a mistake silently: duplicate keys, unknown fields and values of a wrong type are found
//! and worded as upstream words them, because clients print and match these texts. What happens then is the
//! request's field validation: [`Validation::Strict`] refuses, [`Validation::Warn`] answers with warnings,
//! [`Validation::Ignore`] keeps quiet.
//!
//! A checked tree of a built-in kind is what Go's types would print: unknown fields dropped, meaningless zeros
//! dropped, quantities and times canonical. Equality of trees is then equality of objects.
//!
//! Source of the wording: sigs.k8s.io/json, apimachinery's serializers and apiserver's handlers (read for
//! behaviour).

// A refusal is the reply: built once, at the end of a request.
#![allow(clippy::result_large_err)]

pub mod check;
pub mod json;
pub mod printed;
pub mod protobuf;
pub mod yaml;

use thiserror::Error;

use crate::Object;
use crate::schema::{self, Type};
use crate::status::Status;

pub use check::{Findings, TypeError, check};

/// Bytes that are not an object.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum DecodeError {
    /// Not JSON.
    #[error("couldn't get version/kind; json parse error: {0}")]
    Json(json::SyntaxError),
    /// Not YAML.
    #[error(transparent)]
    Yaml(yaml::YamlError),
    #[error(transparent)]
    Protobuf(#[from] protobuf::ProtobufError),
    /// A value of a wrong type.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// Unknown or duplicate fields, refused.
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
    #[error("Object 'Kind' is missing in '{0}'")]
    MissingKind(String),
    #[error("Object 'apiVersion' is missing in '{0}'")]
    MissingVersion(String),
    #[error("unexpected GroupVersion string: {0}")]
    GroupVersion(String),
    /// A kind other than the one the endpoint serves.
    #[error("no kind {} is registered for version {} in scheme \"sampan\"", crate::field::quote(.0), crate::field::quote(.1))]
    UnknownKind(String, String),
}

/// The formats of a request's or reply's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Media {
    Json,
    Yaml,
    Protobuf,
}

impl Media {
    /// From a media type without parameters.
    pub fn parse(media_type: &str) -> Option<Self> {
        match media_type.trim() {
            "application/json" => Some(Media::Json),
            "application/yaml" => Some(Media::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Media::Protobuf),
            _ => None,
        }
    }
    pub fn content_type(self) -> &'static str {
        match self {
            Media::Json => "application/json",
            Media::Yaml => "application/yaml",
            Media::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// What becomes of unknown and duplicate fields (the `fieldValidation` parameter).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validation {
    Strict,
    #[default]
    Warn,
    Ignore,
}

impl Validation {
    /// The parameter's value; empty means the default.
    pub fn parse(value: &str) -> Option<Self> {
        match value {
            "Strict" => Some(Validation::Strict),
            "" | "Warn" => Some(Validation::Warn),
            "Ignore" => Some(Validation::Ignore),
            _ => None,
        }
    }
}

/// A tree and what was noticed while reading it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub object: Object,
    /// Complaints for `Warning` headers; empty unless the validation is [`Validation::Warn`].
    pub warnings: Vec<String>,
}

/// Bytes and what was noticed while parsing them, before any type is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub object: Object,
    /// Paths of repeated keys, such as `spec.replicas`; the last value is the one kept.
    pub duplicates: Vec<String>,
    /// YAML's own complaint about repeated keys.
    pub complaint: Option<String>,
}

/// Parses bytes of any format. Protobuf needs the built-in schema, so it cannot carry custom kinds.
pub fn parse(body: &[u8], media: Media, fallback: Option<(&str, &str)>) -> Result<Parsed, DecodeError> {
    match media {
        Media::Json => json::decode(body).map_err(DecodeError::Json),
        Media::Yaml => yaml::decode(body).map_err(DecodeError::Yaml),
        Media::Protobuf => Ok(Parsed {
            object: protobuf::decode(body, fallback)?,
            duplicates: Vec::new(),
            complaint: None,
        }),
    }
}

/// Reads a request's body as an object of `expected` (its `apiVersion` and `kind`) with the given type, filling
/// in `apiVersion` and `kind` when the body leaves them out.
///
/// The error is the reply: a `BadRequest` worded as upstream's handlers word it.
pub fn decode(
    body: &[u8],
    media: Media,
    expected: (&str, &str),
    ty: &Type,
    validation: Validation,
) -> Result<Decoded, Status> {
    let refuse = |seen: Option<(&str, &str)>, error: &DecodeError| {
        Status::bad_request(match seen {
            Some((api_version, kind)) => {
                let version = api_version.rsplit('/').next().unwrap_or_default();
                format!(
                    "{kind} in version {} cannot be handled as a {}: {error}",
                    crate::field::quote(version),
                    expected.1
                )
            }
            None => format!(
                "the object provided is unrecognized (must be of type {}): {error} ({})",
                expected.1,
                summary(body)
            ),
        })
    };
    let mut parsed = parse(body, media, Some(expected)).map_err(|error| refuse(None, &error))?;
    let Some(root) = parsed.object.as_object_mut() else {
        let error = TypeError::root(
            &parsed.object,
            "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }",
        );
        let error = DecodeError::Json(json::SyntaxError::from(error.to_string()));
        return Err(refuse(None, &error));
    };
    for (key, value) in [("apiVersion", expected.0), ("kind", expected.1)] {
        match root.get(key) {
            None | Some(serde_json::Value::Null) => {
                root.insert(key.into(), value.into());
            }
            Some(serde_json::Value::String(text)) if text.is_empty() => {
                root.insert(key.into(), value.into());
            }
            Some(serde_json::Value::String(_)) => {}
            Some(other) => {
                let field = if key == "kind" { "kind" } else { "apiVersion" };
                let text = format!(
                    "json: cannot unmarshal {} into Go struct field .{field} of type string",
                    check::json_kind(other)
                );
                let error = DecodeError::Json(json::SyntaxError::from(text));
                return Err(refuse(None, &error));
            }
        }
    }
    let api_version = root["apiVersion"].as_str().unwrap_or_default().to_owned();
    let kind = root["kind"].as_str().unwrap_or_default().to_owned();
    if kind != expected.1 {
        let error = DecodeError::UnknownKind(kind.clone(), api_version.clone());
        return Err(refuse(Some((&api_version, &kind)), &error));
    }
    if api_version.split('/').count() > 2 {
        let error = DecodeError::GroupVersion(api_version);
        return Err(refuse(None, &error));
    }
    if api_version != expected.0 && !is_registered(ty, &api_version, &kind) {
        let error = DecodeError::UnknownKind(kind.clone(), api_version.clone());
        return Err(refuse(Some((&api_version, &kind)), &error));
    }
    if api_version != expected.0 {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            expected.0
        )));
    }
    let findings = check(ty, &mut parsed.object)
        .map_err(|error| refuse(Some((&api_version, &kind)), &DecodeError::Type(error)))?;
    let complaints = complaints(ty, &parsed, findings, (media == Media::Json).then_some(body));
    match validation {
        Validation::Strict if !complaints.is_empty() => {
            Err(refuse(Some((&api_version, &kind)), &DecodeError::Strict(complaints)))
        }
        Validation::Warn => Ok(Decoded {
            object: parsed.object,
            warnings: complaints,
        }),
        _ => Ok(Decoded {
            object: parsed.object,
            warnings: Vec::new(),
        }),
    }
}

/// Whether upstream knows the kind in that version, served or not: of a custom kind nobody knows, and versions before
/// the first stable one have all been there once.
fn is_registered(ty: &Type, api_version: &str, kind: &str) -> bool {
    let version = api_version.rsplit('/').next().unwrap_or_default();
    matches!(ty, Type::Struct(_))
        || version.contains("alpha")
        || version.contains("beta")
        || schema::builtin().api_kind(api_version, kind).is_some()
}

/// Everything strict decoding complains of, in upstream's order: for built-in kinds as it stands in the text (`json`),
/// for custom ones duplicates before unknown fields.
fn complaints(ty: &Type, parsed: &Parsed, findings: Findings, json: Option<&[u8]>) -> Vec<String> {
    const MOST: usize = 100;
    if let (Some(json), false) = (json, matches!(ty, Type::Struct(_))) {
        let several = findings.unknown.len() + parsed.duplicates.len() > 1;
        if several || !parsed.duplicates.is_empty() {
            return json::complaints(json, &findings.unknown);
        }
    }
    let unknown = || {
        findings
            .unknown
            .iter()
            .map(|path| format!("unknown field {}", crate::field::quote(path)))
    };
    // A key repeated below an unknown field was never looked at by Go.
    let below_unknown = |path: &str| {
        findings.unknown.iter().any(|unknown| {
            path.strip_prefix(unknown.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    };
    let custom = matches!(ty, Type::Struct(_));
    let mut all: Vec<String> = parsed.complaint.iter().cloned().collect();
    let duplicates: Vec<String> = parsed
        .duplicates
        .iter()
        .filter(|path| parsed.complaint.is_none() && (custom || !below_unknown(path)))
        .map(|path| format!("duplicate field {}", crate::field::quote(path)))
        .collect();
    if custom {
        all.extend(duplicates);
        all.extend(unknown());
    } else {
        all.extend(unknown());
        all.extend(duplicates);
    }
    all.truncate(MOST);
    all
}

/// The first bytes of a body, for messages: text when it looks like JSON, else hexadecimal.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let head = body.get(..SHOWN).unwrap_or(body);
    let mut text = match body.first() {
        None => return "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(head).into_owned(),
        Some(_) => hex::encode(head),
    };
    if body.len() > SHOWN {
        text.push_str(" ...");
    }
    text
}

/// Reads an options object (`DeleteOptions` and its relatives) or another built-in kind by its name in meta/v1.
pub fn decode_meta(body: &[u8], media: Media, kind: &str) -> Result<Object, Status> {
    let ty = schema::builtin()
        .type_of(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))
        .ok_or_else(|| Status::internal(format!("no such kind: {kind}")))?;
    let mut object = parse(body, media, Some(("v1", kind)))
        .map_err(|error| Status::bad_request(error.to_string()))?
        .object;
    check(&ty, &mut object).map_err(|error| Status::bad_request(error.to_string()))?;
    Ok(object)
}

/// Bytes of an object in the given format.
pub fn encode(object: &Object, media: Media) -> Result<Vec<u8>, protobuf::ProtobufError> {
    match media {
        Media::Json => Ok(json::encode(object)),
        Media::Yaml => Ok(yaml::encode(object).into_bytes()),
        Media::Protobuf => protobuf::encode(object),
    }
}

#[cfg(test)]
mod tests;
