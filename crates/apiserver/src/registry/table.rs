//! Table output: what `kubectl get` prints, computed here from the row's columns.

use std::sync::Arc;

use sampan_api::Object;
use sampan_api::codec::printed;
use sampan_api::status::Status;
use serde_json::{Value, json};

use crate::request::MetaVersion;
use crate::rows::Row;
use crate::watch_cache::Entry;
use crate::{Refusal, refuse};

/// How much of the object goes into each row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    pub fn parse(text: Option<&str>) -> Result<Self, Refusal> {
        match text {
            None | Some("" | "Metadata") => Ok(Include::Metadata),
            Some("None") => Ok(Include::None),
            Some("Object") => Ok(Include::Object),
            Some(other) => Err(refuse(Status::bad_request(format!(
                "unrecognized includeObject value: {other:?}; it is None, Metadata or Object"
            )))),
        }
    }
}

/// `columnDefinitions`
pub fn columns(row: &Row) -> Value {
    row.columns()
}

/// One row of a table.
pub fn line(row: &Row, entry: &Entry, include: Include, version: MetaVersion, now: jiff::Timestamp) -> Value {
    let object = entry.object();
    line_of(row, object, include, version, now)
}

/// One row, from a stored object's tree.
pub fn line_of(row: &Row, object: Object, include: Include, version: MetaVersion, now: jiff::Timestamp) -> Value {
    let cells = row.cells(&object, now);
    let shown = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(&object, version),
        Include::Object => {
            let mut object = super::Registry::in_version(row, object);
            printed::complete(&mut object);
            object
        }
    };
    json!({"cells": cells, "object": shown})
}

/// `PartialObjectMetadata` of a tree.
pub fn partial(object: &Object, version: MetaVersion) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": version.api_version(),
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}

/// A whole table.
pub fn table(row: &Row, entries: &[Arc<Entry>], metadata: Value, include: Include, version: MetaVersion) -> Value {
    let now = jiff::Timestamp::now();
    let rows: Vec<Value> = entries
        .iter()
        .map(|entry| line(row, entry, include, version, now))
        .collect();
    document(metadata, Some(columns(row)), rows, version)
}

/// The table around its rows; a watch sends the columns only once.
pub fn document(metadata: Value, columns: Option<Value>, rows: Vec<Value>, version: MetaVersion) -> Value {
    json!({
        "kind": "Table", "apiVersion": version.api_version(), "metadata": metadata,
        "columnDefinitions": columns.unwrap_or_else(|| Value::Array(Vec::new())), "rows": rows,
    })
}
