//! The ways to change an object in part: JSON patch, merge patch, strategic merge patch, and server-side apply.
//!
//! All work on trees. What a list is (a set, a map by key, an atom) comes from the schema, through
//! [`strategic::MergeSchema`].

pub mod apply;
pub mod json;
pub mod merge;
pub mod strategic;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    /// A small tree without nulls.
    pub(crate) fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (-3i64..100).prop_map(Value::from),
            "[a-c/~]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-d~/]{0,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }
}
