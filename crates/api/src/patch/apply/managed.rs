//! `metadata.managedFields`: who owns what, read from an object and written back.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::FieldSet;
use crate::{field, meta};

/// Who did something: entries with equal managers are one entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    pub name: String,
    pub applied: bool,
    /// Empty for appliers: one applier has one entry whatever version it applies.
    pub api_version: String,
    pub subresource: String,
}

impl Manager {
    /// As conflicts name it: `"kubectl" with subresource "status" using apps/v1`.
    pub fn shown(&self) -> String {
        let mut text = field::quote(&self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {}", field::quote(&self.subresource)));
        }
        if !self.applied {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// What one manager owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    pub fields: FieldSet,
    pub api_version: String,
    /// When it last changed, as the entry prints it; empty when unknown.
    pub time: String,
}

pub type Managers = BTreeMap<Manager, Owned>;

/// What becomes of the entries an object carries.
pub enum Read {
    /// No entries.
    None,
    /// One empty entry: the client asks to forget all owners.
    Reset,
    Managers(Managers),
    /// Entries that make no sense.
    Malformed(String),
}

/// The entries of an object, as they are recorded.
pub fn entries(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

/// Reads the entries of an object.
pub fn read(entries: Option<&Value>) -> Read {
    let Some(Value::Array(entries)) = entries else {
        return Read::None;
    };
    if entries.is_empty() {
        return Read::Reset;
    }
    if let [Value::Object(one)] = entries.as_slice()
        && one.is_empty()
    {
        return Read::Reset;
    }
    let mut managers = Managers::new();
    for (index, entry) in entries.iter().enumerate() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let applied = match text("operation").as_str() {
            "Apply" => true,
            "Update" => false,
            _ => return Read::Malformed("operation must be `Apply` or `Update`".into()),
        };
        let api_version = text("apiVersion");
        if api_version.is_empty() {
            return Read::Malformed("apiVersion must not be empty".into());
        }
        match text("fieldsType").as_str() {
            "FieldsV1" => {}
            "" => {
                return Read::Malformed(format!("missing fieldsType in managed fields entry {index}"));
            }
            other => {
                return Read::Malformed(format!(
                    "invalid fieldsType {} in managed fields entry {index}",
                    field::quote(other)
                ));
            }
        }
        let manager = Manager {
            name: text("manager"),
            applied,
            api_version: if applied { String::new() } else { api_version.clone() },
            subresource: text("subresource"),
        };
        let owned = Owned {
            fields: FieldSet::from_value(entry.get("fieldsV1").unwrap_or(&Value::Null)),
            api_version,
            time: text("time"),
        };
        managers.insert(manager, owned);
    }
    Read::Managers(managers)
}

/// Writes the entries into an object, appliers first, then by time.
pub fn write(object: &mut Value, managers: &Managers) {
    let metadata = meta::ensure_metadata(object);
    if managers.is_empty() {
        metadata.remove("managedFields");
        return;
    }
    let mut entries: Vec<(&Manager, &Owned)> = managers.iter().collect();
    // RFC 3339 in UTC with whole seconds sorts as text.
    entries.sort_by(|(a, x), (b, y)| {
        b.applied
            .cmp(&a.applied)
            .then_with(|| x.time.cmp(&y.time))
            .then_with(|| a.name.cmp(&b.name))
            .then_with(|| x.api_version.cmp(&y.api_version))
            .then_with(|| a.subresource.cmp(&b.subresource))
    });
    let entries: Vec<Value> = entries
        .into_iter()
        .map(|(manager, owned)| entry(manager, owned))
        .collect();
    metadata.insert("managedFields".into(), entries.into());
}

/// One entry as it is recorded.
pub fn entry(manager: &Manager, owned: &Owned) -> Value {
    let mut entry = Map::new();
    entry.insert("manager".into(), manager.name.as_str().into());
    let operation = if manager.applied { "Apply" } else { "Update" };
    entry.insert("operation".into(), operation.into());
    entry.insert("apiVersion".into(), owned.api_version.as_str().into());
    if !owned.time.is_empty() {
        entry.insert("time".into(), owned.time.as_str().into());
    }
    entry.insert("fieldsType".into(), "FieldsV1".into());
    entry.insert("fieldsV1".into(), owned.fields.to_value());
    if !manager.subresource.is_empty() {
        entry.insert("subresource".into(), manager.subresource.as_str().into());
    }
    Value::Object(entry)
}
