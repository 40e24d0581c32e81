//! Default values as a table of path patterns (see [`crate::path`]), interpreted once.
//!
//! A default fills a field that is absent or null. As with Go's types, text also counts as absent when
//! empty; a number counts as absent when 0 only for fields that are plain integers there ([`Fill::NonZero`]).
//! Rows apply in order, so a row may rely on what an earlier row made. Parents are never made implicitly: a row
//! with [`Fill::Map`] makes them where upstream's type always has them.

use sampan_api::Object;
use serde_json::{Map, Value};

use crate::{path, tree};

/// One row: a field and what it is when nobody said.
pub(crate) type Default = (&'static str, Fill);

#[derive(Clone, Copy)]
pub(crate) enum Fill {
    Text(&'static str),
    /// Text behind a pointer in Go: an empty one was given, and stays for validation to refuse.
    Pointer(&'static str),
    Int(i64),
    /// An integer for which 0 means "not set".
    NonZero(i64),
    Bool(bool),
    /// An empty map.
    Map,
    /// A list of texts, for an absent or empty list.
    Texts(&'static [&'static str]),
}

impl Fill {
    fn value(self) -> Value {
        match self {
            Fill::Text(text) | Fill::Pointer(text) => text.into(),
            Fill::Int(number) | Fill::NonZero(number) => number.into(),
            Fill::Bool(flag) => flag.into(),
            Fill::Map => Value::Object(Map::new()),
            Fill::Texts(texts) => texts.into(),
        }
    }

    fn counts_as_absent(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Fill::Text(_), Value::String(text)) => text.is_empty(),
            (Fill::NonZero(_), Value::Number(number)) => number.as_i64() == Some(0),
            (Fill::Texts(_), Value::Array(list)) => list.is_empty(),
            _ => false,
        }
    }
}

/// Applies the rows to a tree.
pub(crate) fn apply(rows: &[Default], object: &mut Object) {
    for (pattern, fill) in rows {
        path::each_parent_mut(object, pattern, &mut |parent, name| {
            if parent.get(name).is_none_or(|value| fill.counts_as_absent(value)) {
                tree::set(parent, name, fill.value());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_fill_what_is_absent_and_nothing_else() {
        let rows: &[Default] = &[
            ("spec", Fill::Map),
            ("spec.strategy", Fill::Map),
            ("spec.strategy.type", Fill::Text("RollingUpdate")),
            ("spec.strategy(type=RollingUpdate).rollingUpdate", Fill::Map),
            (
                "spec.strategy(type=RollingUpdate).rollingUpdate.maxSurge",
                Fill::Text("25%"),
            ),
            ("spec.list[].port", Fill::NonZero(80)),
            ("spec.list[].mode", Fill::Pointer("M")),
        ];
        let cases = [
            (
                json!({}),
                json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}}}}),
            ),
            (
                json!({"spec": {"strategy": {"type": "Recreate"}, "list": [{"port": 0}, {"port": 1, "mode": ""}]}}),
                json!({"spec": {"strategy": {"type": "Recreate"}, "list": [{"port": 80, "mode": "M"}, {"port": 1, "mode": ""}]}}),
            ),
            (
                json!({"spec": {"strategy": {"type": "", "rollingUpdate": {"maxSurge": 1}}}}),
                json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            ),
        ];
        for (mut given, wanted) in cases {
            apply(rows, &mut given);
            assert_eq!(given, wanted);
            apply(rows, &mut given);
            assert_eq!(given, wanted, "defaulting is idempotent");
        }
    }
}
