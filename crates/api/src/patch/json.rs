//! JSON patches (RFC 6902), as upstream's library applies them.
//!
//! Where the library differs from the RFC, so does this, since clients rely on it: negative indices count from the
//! end, replacing a member that does not exist adds it, a test against null passes on a missing member, and moving
//! or copying a missing member moves or copies null. That, and its texts, is why this is not the `json-patch` crate.
//! A patch has at most [`MAX_OPERATIONS`]; all copies together at most [`MAX_COPIED_BYTES`].

use serde_json::{Map, Value};
use thiserror::Error;

use crate::status::Status;

pub const MAX_OPERATIONS: usize = 10_000;
pub const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JsonPatchError {
    /// The patch itself is not one: 400.
    #[error("{0}")]
    Malformed(String),
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooMany(usize),
    /// The patch does not fit the object: 422.
    #[error("{0}")]
    Failed(String),
}

impl JsonPatchError {
    /// Whether a `test` found another value: the patch is right, but does not apply now.
    pub fn is_failed_test(&self) -> bool {
        matches!(self, JsonPatchError::Failed(why) if why.ends_with(TEST_FAILED))
    }
}

impl From<&JsonPatchError> for Status {
    fn from(error: &JsonPatchError) -> Status {
        match error {
            JsonPatchError::Malformed(text) => Status::bad_request(text),
            JsonPatchError::TooMany(_) => Status::too_large(format!("Request entity too large: {error}")),
            // Upstream says no more than this; the reason is added, for people.
            JsonPatchError::Failed(text) => Status::new(
                422,
                "Invalid",
                format!("the server rejected our request due to an error in our request: {text}"),
            ),
        }
    }
}

/// A decoded patch: a list of operations, each a map.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPatch(Vec<Map<String, Value>>);

const MISSING: &str = "missing value";
const TEST_FAILED: &str = "failed: test failed";

impl JsonPatch {
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonPatchError> {
        let value = serde_json::from_slice(bytes).map_err(|error| JsonPatchError::Malformed(error.to_string()))?;
        Self::from_value(value)
    }

    pub fn from_value(value: Value) -> Result<Self, JsonPatchError> {
        let type_error = |what: &Value, into: &str| {
            JsonPatchError::Malformed(format!(
                "json: cannot unmarshal {} into Go value of type jsonpatch.{into}",
                json_type(what)
            ))
        };
        let operations = match value {
            Value::Null => Vec::new(),
            Value::Array(operations) => operations,
            other => return Err(type_error(&other, "Patch")),
        };
        let operations: Vec<_> = operations
            .into_iter()
            .map(|operation| match operation {
                Value::Object(map) => Ok(map),
                Value::Null => Ok(Map::new()),
                other => Err(type_error(&other, "Operation")),
            })
            .collect::<Result<_, _>>()?;
        if operations.len() > MAX_OPERATIONS {
            return Err(JsonPatchError::TooMany(operations.len()));
        }
        Ok(JsonPatch(operations))
    }

    pub fn operations(&self) -> &[Map<String, Value>] {
        &self.0
    }

    /// Applies every operation, or none: `document` is untouched unless all succeed.
    pub fn apply(&self, document: &mut Value) -> Result<(), JsonPatchError> {
        let mut result = document.clone();
        let mut copied = 0;
        for operation in &self.0 {
            apply_one(operation, &mut result, &mut copied).map_err(JsonPatchError::Failed)?;
        }
        *document = result;
        Ok(())
    }
}

/// Members of operations that no operation has, as paths: `[0].valeu`.
pub fn unknown_members(patch: &Value) -> impl Iterator<Item = String> {
    const MEMBERS: [&str; 4] = ["op", "path", "from", "value"];
    patch
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
        .flat_map(|(index, operation)| {
            operation
                .as_object()
                .into_iter()
                .flat_map(|map| map.keys())
                .filter(|key| !MEMBERS.contains(&key.as_str()))
                .map(move |key| format!("[{index}].{key}"))
        })
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn apply_one(operation: &Map<String, Value>, document: &mut Value, copied: &mut usize) -> Result<(), String> {
    let field = |name: &str| operation.get(name).and_then(Value::as_str);
    let kind = field("op").unwrap_or("unknown");
    let value = operation.get("value");
    let path = || field("path").ok_or_else(|| format!("{kind} operation failed to decode path: {MISSING}"));
    let from = || field("from").ok_or_else(|| format!("{kind} operation failed to decode from: {MISSING}"));
    match kind {
        "add" => {
            let path = path()?;
            let (container, key) = find(document, path)
                .ok_or_else(|| format!("add operation does not apply: doc is missing path: \"{path}\": {MISSING}"))?;
            container
                .add(&key, value.cloned().unwrap_or_default())
                .map_err(|error| format!("error in add for path: '{path}': {error}"))
        }
        "remove" => {
            let path = path()?;
            let (container, key) = find(document, path).ok_or_else(|| {
                format!("remove operation does not apply: doc is missing path: \"{path}\": {MISSING}")
            })?;
            container
                .remove(&key)
                .map_err(|error| format!("error in remove for path: '{path}': {error}"))?;
            Ok(())
        }
        "replace" => replace(document, path()?, value),
        "test" => test(document, path()?, value),
        "move" => {
            let (from, path) = (from()?, path()?);
            let (container, key) = find(document, from)
                .ok_or_else(|| format!("move operation does not apply: doc is missing from path: {from}: {MISSING}"))?;
            let value = container
                .remove(&key)
                .map_err(|error| format!("error in move for path: '{key}': {error}"))?;
            let (container, key) = find(document, path).ok_or_else(|| {
                format!("move operation does not apply: doc is missing destination path: {path}: {MISSING}")
            })?;
            container
                .add(&key, value)
                .map_err(|error| format!("error in move for path: '{path}': {error}"))
        }
        "copy" => {
            let (from, path) = (from()?, path()?);
            let (container, key) = find(document, from)
                .ok_or_else(|| format!("copy operation does not apply: doc is missing from path: {from}: {MISSING}"))?;
            let value = container
                .get(&key)
                .map_err(|error| format!("error in copy for from: '{from}': {error}"))?
                .cloned()
                .unwrap_or_default();
            *copied = copied.saturating_add(size(&value));
            if *copied > MAX_COPIED_BYTES {
                return Err(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED_BYTES}"
                ));
            }
            let (container, key) = find(document, path).ok_or_else(|| {
                format!("copy operation does not apply: doc is missing destination path: {path}: {MISSING}")
            })?;
            container
                .add(&key, value)
                .map_err(|error| format!("error while adding value during copy: {error}"))
        }
        other => Err(format!("Unexpected kind: {other}")),
    }
}

fn replace(document: &mut Value, path: &str, value: Option<&Value>) -> Result<(), String> {
    let value = value.cloned().unwrap_or_default();
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return Err("replace operation value must be object or array".to_owned());
        }
        *document = value;
        return Ok(());
    }
    let (container, key) = find(document, path)
        .ok_or_else(|| format!("replace operation does not apply: doc is missing path: {path}: {MISSING}"))?;
    container
        .get(&key)
        .map_err(|_| format!("replace operation does not apply: doc is missing key: {path}: {MISSING}"))?;
    container
        .set(&key, value)
        .map_err(|error| format!("error in remove for path: '{path}': {error}"))
}

fn test(document: &mut Value, path: &str, value: Option<&Value>) -> Result<(), String> {
    let value = value.unwrap_or(&Value::Null);
    let passed = if path.is_empty() {
        *document == *value
    } else {
        let (container, key) = find(document, path)
            .ok_or_else(|| format!("test operation does not apply: is missing path: {path}: {MISSING}"))?;
        let have = container
            .get(&key)
            .map_err(|error| format!("error in test for path: '{path}': {error}"))?;
        have.unwrap_or(&Value::Null) == value
    };
    if passed {
        Ok(())
    } else {
        Err(format!("testing value {path} {TEST_FAILED}"))
    }
}

/// The length of the value as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, item)| key.len() + 4 + size(item)).sum::<usize>(),
        Value::String(text) => text.len() + 2,
        other => other.to_string().len(),
    }
}

/// A map or a list: what a path's last part is looked up in.
enum Container<'a> {
    Map(&'a mut Map<String, Value>),
    List(&'a mut Vec<Value>),
}

fn container(value: &mut Value) -> Option<Container<'_>> {
    match value {
        Value::Object(map) => Some(Container::Map(map)),
        Value::Array(list) => Some(Container::List(list)),
        _ => None,
    }
}

fn decode(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

/// Walks to the container of a path's last part; `None` when something on the way is missing.
fn find<'a>(document: &'a mut Value, path: &str) -> Option<(Container<'a>, String)> {
    let (parents, key) = path.rsplit_once('/')?;
    let mut at = document;
    for part in parents.split('/').skip(1) {
        let part = decode(part);
        at = match at {
            Value::Object(map) => map.get_mut(&part)?,
            Value::Array(list) => {
                let index = index(&part, list.len()).ok()?;
                list.get_mut(index)?
            }
            _ => return None,
        };
    }
    Some((container(at)?, decode(key)))
}

fn bad_index(index: i64) -> String {
    format!("Unable to access invalid index: {index}: invalid index referenced")
}

fn number(key: &str) -> Result<i64, String> {
    key.parse()
        .map_err(|_| format!("strconv.Atoi: parsing {}: invalid syntax", crate::field::quote(key)))
}

/// An index below `length`; a negative one counts from the end.
fn index(key: &str, length: usize) -> Result<usize, String> {
    let index = number(key)?;
    let real = if index < 0 {
        index.saturating_add_unsigned(length as u64)
    } else {
        index
    };
    usize::try_from(real)
        .ok()
        .filter(|real| *real < length)
        .ok_or_else(|| bad_index(index))
}

impl Container<'_> {
    fn get(&self, key: &str) -> Result<Option<&Value>, String> {
        match self {
            Container::Map(map) => Ok(map.get(key)),
            Container::List(list) => Ok(list.get(index(key, list.len())?)),
        }
    }
    fn set(self, key: &str, value: Value) -> Result<(), String> {
        match self {
            Container::Map(map) => {
                map.insert(key.to_owned(), value);
            }
            Container::List(list) => {
                let index = index(key, list.len())?;
                if let Some(slot) = list.get_mut(index) {
                    *slot = value;
                }
            }
        }
        Ok(())
    }
    fn add(self, key: &str, value: Value) -> Result<(), String> {
        match self {
            Container::List(list) if key == "-" => list.push(value),
            Container::List(list) => {
                number(key).map_err(|error| format!("value was not a proper array index: '{key}': {error}"))?;
                let index = index(key, list.len() + 1)?;
                list.insert(index, value);
            }
            map => return map.set(key, value),
        }
        Ok(())
    }
    fn remove(self, key: &str) -> Result<Value, String> {
        match self {
            Container::Map(map) => map
                .remove(key)
                .ok_or_else(|| format!("Unable to remove nonexistent key: {key}: {MISSING}")),
            Container::List(list) => {
                let index = index(key, list.len())?;
                Ok(list.remove(index))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn apply(mut document: Value, patch: Value) -> Result<Value, String> {
        JsonPatch::from_value(patch)
            .unwrap()
            .apply(&mut document)
            .map(|()| document)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn operations_apply() {
        for (document, patch, result) in [
            (
                json!({"a": 1}),
                json!([{"op": "add", "path": "/b", "value": 2}]),
                json!({"a": 1, "b": 2}),
            ),
            (
                json!({"a": [1, 3]}),
                json!([{"op": "add", "path": "/a/1", "value": 2}]),
                json!({"a": [1, 2, 3]}),
            ),
            (
                json!({"a": [1]}),
                json!([{"op": "add", "path": "/a/-", "value": 2}]),
                json!({"a": [1, 2]}),
            ),
            (
                json!({"a": [1, 2]}),
                json!([{"op": "add", "path": "/a/-1", "value": 3}]),
                json!({"a": [1, 2, 3]}),
            ),
            (
                json!({"a": [1, 2]}),
                json!([{"op": "remove", "path": "/a/-1"}]),
                json!({"a": [1]}),
            ),
            (
                json!({"a/b": {"~": 1}}),
                json!([{"op": "replace", "path": "/a~1b/~0", "value": 2}]),
                json!({"a/b": {"~": 2}}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "/b", "value": 2}]),
                json!({"a": 1, "b": 2}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "move", "from": "/a", "path": "/b"}]),
                json!({"b": 1}),
            ),
            (
                json!({"a": {"x": 1}}),
                json!([{"op": "copy", "from": "/a", "path": "/b"}]),
                json!({"a": {"x": 1}, "b": {"x": 1}}),
            ),
            (
                json!({"a": null}),
                json!([{"op": "test", "path": "/a", "value": null}, {"op": "test", "path": "/zz"}]),
                json!({"a": null}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "", "value": {"b": 1}}]),
                json!({"b": 1}),
            ),
            (
                json!({"": 1}),
                json!([{"op": "add", "path": "/", "value": 2}]),
                json!({"": 2}),
            ),
            (json!({"a": 1}), json!([]), json!({"a": 1})),
        ] {
            assert_eq!(apply(document, patch.clone()), Ok(result), "{patch}");
        }
    }

    #[test]
    fn what_does_not_apply_says_why() {
        let document = json!({"a": [1], "b": {}});
        for (operation, message) in [
            (
                json!({"op": "remove", "path": "/x"}),
                "error in remove for path: '/x': Unable to remove nonexistent key: x: missing value",
            ),
            (
                json!({"op": "remove", "path": "/a/5"}),
                "error in remove for path: '/a/5': Unable to access invalid index: 5: invalid index referenced",
            ),
            (
                json!({"op": "add", "path": "/x/y", "value": 1}),
                "add operation does not apply: doc is missing path: \"/x/y\": missing value",
            ),
            (
                json!({"op": "add", "path": "/a/3", "value": 1}),
                "error in add for path: '/a/3': Unable to access invalid index: 3: invalid index referenced",
            ),
            (
                json!({"op": "replace", "path": "/a/3", "value": 1}),
                "replace operation does not apply: doc is missing key: /a/3: missing value",
            ),
            (
                json!({"op": "test", "path": "/a", "value": 1}),
                "testing value /a failed: test failed",
            ),
            (
                json!({"op": "copy", "from": "/a/0", "path": "/q/x"}),
                "copy operation does not apply: doc is missing destination path: /q/x: missing value",
            ),
            (json!({"op": "jump", "path": "/a"}), "Unexpected kind: jump"),
            (
                json!({"op": "add"}),
                "add operation failed to decode path: missing value",
            ),
            (json!({"path": "/a"}), "Unexpected kind: unknown"),
        ] {
            let patch = json!([{"op": "add", "path": "/new", "value": 1}, operation]);
            assert_eq!(apply(document.clone(), patch), Err(message.to_owned()));
        }
    }

    #[test]
    fn limits_hold() {
        let operation = json!({"op": "test", "path": "/a"});
        let error = JsonPatch::from_value(Value::Array(vec![operation; 10_001])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "The allowed maximum operations in a JSON patch is 10000, got 10001"
        );
        assert_eq!(Status::from(&error).code, 413);
        let doubling: Vec<_> = (0..40)
            .map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"}))
            .collect();
        assert!(
            apply(json!({"a": ["x".repeat(1000)]}), Value::Array(doubling))
                .unwrap_err()
                .contains("exceeding the limit")
        );
        let error = JsonPatch::parse(b"{}").unwrap_err();
        assert_eq!(
            error.to_string(),
            "json: cannot unmarshal object into Go value of type jsonpatch.Patch"
        );
        assert!(JsonPatch::parse(b"[").is_err());
    }

    proptest! {
        #[test]
        fn agrees_with_the_rfc_where_both_apply(a in crate::patch::tests::tree(), b in crate::patch::tests::tree()) {
            // A diff made by another implementation takes one tree to the other.
            let patch = serde_json::to_value(json_patch::diff(&json!({"r": a}), &json!({"r": b}))).unwrap();
            prop_assert_eq!(apply(json!({"r": a}), patch).unwrap(), json!({"r": b}));
        }
    }
}
