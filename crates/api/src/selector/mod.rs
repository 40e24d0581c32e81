//! Label and field selectors: parsing, matching, printing, and what an index may learn from them.
//!
//! A selector is a conjunction of requirements. Label selectors come as text (`a=b,c in (d,e),!f`) or as the
//! `LabelSelector` object; field selectors only as text (`metadata.name=x,status.phase!=Running`). Wording of errors
//! is upstream's.

mod fields;
mod labels;

pub use fields::{FieldRequirement, FieldSelector, FieldSelectorError};
pub use labels::{LabelSelector, Operator, Requirement, SelectorError, validate_label_selector};

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Whether one requirement of an object's selector (`matchExpressions` of labels or of a node's terms) holds for the value found.
/// An operator nobody defined never does; `Gt` and `Lt` compare whole numbers, and nothing else.
pub fn holds(operator: &str, value: Option<&str>, wanted: &[String]) -> bool {
    let listed = || value.is_some_and(|value| wanted.iter().any(|one| one == value));
    let compared = || {
        let bound = wanted.first()?.parse::<i64>().ok()?;
        Some(value?.parse::<i64>().ok()?.cmp(&bound))
    };
    match operator {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared() == Some(Ordering::Greater),
        "Lt" => compared() == Some(Ordering::Less),
        _ => false,
    }
}

/// Where a selector looks values up.
pub trait Lookup {
    fn lookup(&self, key: &str) -> Option<&str>;
}

impl Lookup for BTreeMap<String, String> {
    fn lookup(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}
impl Lookup for Option<BTreeMap<String, String>> {
    fn lookup(&self, key: &str) -> Option<&str> {
        self.as_ref()?.lookup(key)
    }
}
/// A map of labels in an object's tree.
impl Lookup for serde_json::Map<String, serde_json::Value> {
    fn lookup(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }
}
/// The labels of an object's tree: the whole object is given, its `metadata.labels` are looked into.
impl Lookup for serde_json::Value {
    fn lookup(&self, key: &str) -> Option<&str> {
        crate::meta::label(self, key)
    }
}
impl<K: AsRef<str>, V: AsRef<str>> Lookup for [(K, V)] {
    fn lookup(&self, key: &str) -> Option<&str> {
        self.iter()
            .find(|(have, _)| have.as_ref() == key)
            .map(|(_, value)| value.as_ref())
    }
}
impl<T: Lookup + ?Sized> Lookup for &T {
    fn lookup(&self, key: &str) -> Option<&str> {
        (**self).lookup(key)
    }
}

/// Looks values up with a function: `By::new(|key| ...)`.
pub struct By<'a, F> {
    find: F,
    found: std::marker::PhantomData<&'a str>,
}

impl<'a, F: Fn(&str) -> Option<&'a str>> By<'a, F> {
    pub fn new(find: F) -> Self {
        By {
            find,
            found: std::marker::PhantomData,
        }
    }
}

impl<'a, F: Fn(&str) -> Option<&'a str>> Lookup for By<'a, F> {
    fn lookup(&self, key: &str) -> Option<&str> {
        (self.find)(key)
    }
}
