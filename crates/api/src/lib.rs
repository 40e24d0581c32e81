//! What an API object is, without any I/O.
//!
//! An object is a JSON tree ([`Object`]) with a schema. Everything here works on trees: metadata access,
//! names, selectors, quantities, patches, schema checks, codecs and OpenAPI documents, once for built-in
//! and custom kinds alike.

pub mod codec;
pub mod field;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod selector;
pub mod status;
pub mod time;

/// An API object: a JSON tree whose root is a map with `apiVersion`, `kind` and usually `metadata`.
/// Maps are sorted by key, which is what Go's encoder prints.
pub type Object = serde_json::Value;
