//! Custom resources: a CustomResourceDefinition becomes rows of the table while the server runs.
//!
//! One task follows the definitions ([`definitions`]). It registers the rows first and only then says
//! `Established`, so whoever waits for that condition can use the resource at once. Deleting a definition deletes
//! its objects first; changing what it says ends the watches on them, as upstream does, and clients watch again.
//!
//! A row's objects are always in the row's own version: [`loaded`] brings what is stored there, [`stored`] takes it
//! back, [`shown`] does the same for replies. Conversions ask a webhook where the definition has one.

mod conditions;
mod convert;
mod definitions;
mod path;
mod rows;
mod strategy;
mod view;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sampan_api::status::Status;
use sampan_api::{Object, meta, time};
use serde_json::Value;

use crate::registry::{Call, Reply};
use crate::rows::Row;
use crate::watch_cache::scan;
use crate::{Refusal, refuse};

pub use conditions::begin_deletion;
pub use definitions::start;
pub use strategy::CustomStrategy;
pub use view::View;

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";

/// What a custom row has beyond a built-in one.
pub struct Custom {
    pub strategy: CustomStrategy,
    /// The columns of its tables, and where the cells after the name are read.
    pub columns: Value,
    paths: Vec<(path::JsonPath, bool)>,
    /// `openAPIV3Schema`, for the documents.
    pub schema: Option<Arc<Value>>,
    /// Field selectors: the label, and where it leads.
    pub fields: Vec<(String, Arc<[String]>)>,
    /// What users of a deprecated version are told.
    pub deprecation: Option<String>,
    /// The definition is going: nothing is created any more.
    terminating: AtomicBool,
    pub view: View,
}

impl Custom {
    pub fn cells(&self, object: &Object, now: jiff::Timestamp) -> Vec<Value> {
        let mut cells = vec![Value::from(meta::name(object))];
        cells.extend(self.paths.iter().map(|(path, is_date)| {
            let value = path.first(object).cloned().unwrap_or_default();
            match (&value, is_date) {
                (Value::String(at), true) => time::age(Some(at), now).into(),
                (Value::Object(_) | Value::Array(_), _) => value.to_string().into(),
                _ => value,
            }
        }));
        cells
    }

    /// The path of a selectable field.
    pub fn field(&self, label: &str) -> Option<Arc<[String]>> {
        self.fields
            .iter()
            .find(|(known, _)| known == label)
            .map(|(_, path)| path.clone())
    }

    /// Refuses creations while the definition is going.
    pub fn check_create(&self, row: &Row) -> Result<(), Refusal> {
        if !self.terminating.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(refuse(Status::method_not_supported(
            row.spec.group,
            row.spec.plural,
            "create not allowed while custom resource definition is terminating",
        )))
    }

    fn terminate(&self) {
        self.terminating.store(true, Ordering::Release);
    }
}

/// The value of a selectable field in an encoded object, as text; empty where there is none.
pub fn field_of<'a>(object: &'a [u8], path: &[String]) -> Cow<'a, str> {
    let mut found = object;
    for name in path {
        let Some((start, end)) = scan::member(found, 0, name.as_bytes()) else {
            return Cow::Borrowed("");
        };
        found = found.get(start..end).unwrap_or_default();
    }
    match found.first() {
        Some(b'"') => serde_json::from_slice::<String>(found)
            .map(Cow::Owned)
            .unwrap_or_default(),
        Some(b'{' | b'[' | b'n') | None => Cow::Borrowed(""),
        Some(_) => Cow::Borrowed(std::str::from_utf8(found).unwrap_or_default().trim()),
    }
}

/// What is stored, as strategies of the row see it.
pub async fn loaded(row: &Row, object: Object) -> Result<Object, Refusal> {
    match &row.custom {
        Some(custom) => custom.view.object(object).await,
        None => Ok(object),
    }
}

/// What a strategy has agreed to, as it is stored.
pub async fn stored(row: &Row, object: Object) -> Result<Object, Refusal> {
    match &row.custom {
        Some(custom) => custom.view.to_storage(object).await,
        None => Ok(object),
    }
}

/// A verb's result in the call's version.
pub async fn shown(call: &Call, reply: Reply) -> Result<Reply, Refusal> {
    let Some(custom) = call.row.custom.as_ref().filter(|custom| !custom.view.is_plain()) else {
        return Ok(reply);
    };
    Ok(match reply {
        Reply::Entry(code, entry) => match custom.view.entries(vec![entry]).await?.pop() {
            Some(entry) => Reply::Entry(code, entry),
            None => return Err(call.not_found()),
        },
        Reply::Object(code, object) => Reply::Object(code, custom.view.object(object).await?),
        Reply::List(mut list) => {
            list.entries = custom.view.entries(list.entries).await?;
            Reply::List(list)
        }
        other => other,
    })
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
}

fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// Versions in the order discovery prefers them: stable before beta before alpha, higher numbers first.
fn priority(version: &str) -> (u8, i64, i64, String) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len());
        let major: i64 = rest.get(..digits)?.parse().ok()?;
        let (stage, minor) = match rest.get(digits..)? {
            "" => (0, 0),
            beta if beta.starts_with("beta") => (1, beta.get(4..)?.parse().ok()?),
            alpha if alpha.starts_with("alpha") => (2, alpha.get(5..)?.parse().ok()?),
            _ => return None,
        };
        Some((stage, -major, -minor, String::new()))
    };
    parse().unwrap_or((3, 0, 0, version.to_owned()))
}

/// What Go calls the type of a decoded value.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_are_ordered_as_upstream_orders_them() {
        let mut versions = ["v1alpha1", "v2", "v1beta2", "v10", "foo", "v1beta10", "v1"];
        versions.sort_by_key(|version| priority(version));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "foo"]);
    }

    #[test]
    fn fields_are_read_from_bytes() {
        let object = json!({"spec": {"color": "re\"d", "size": 3, "on": true, "none": null, "map": {}}}).to_string();
        let read = |path: &[&str]| {
            let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
            field_of(object.as_bytes(), &path).into_owned()
        };
        assert_eq!(read(&["spec", "color"]), "re\"d");
        assert_eq!(
            (read(&["spec", "size"]), read(&["spec", "on"])),
            ("3".into(), "true".into())
        );
        for nothing in [
            &["spec", "none"][..],
            &["spec", "map"],
            &["spec", "what"],
            &["spec", "color", "x"],
        ] {
            assert_eq!(read(nothing), "", "{nothing:?}");
        }
    }
}
