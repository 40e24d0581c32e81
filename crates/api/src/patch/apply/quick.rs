//! The usual write: it changes what its own manager owns, or nobody.
//!
//! Then every other entry stays as it is recorded, and is neither read nor written anew; whether that is so can be seen
//! from the record. What comes out is what the general way would make of it (there is a property test); where that
//! cannot be told at a glance, the general way is gone.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::managed::{self, Manager, Owned};
use super::set::FieldSet;
use super::walk::{self, Comparison};
use super::{Context, MOST_UPDATERS, STRIPPED};

/// One entry, seen without reading its fields.
struct Recorded<'a> {
    applied: bool,
    time: &'a str,
    name: &'a str,
    api_version: &'a str,
    subresource: &'a str,
    fields: &'a Map<String, Value>,
}

impl<'a> Recorded<'a> {
    /// Nothing where the general way would write the entry differently.
    fn of(entry: &'a Value) -> Option<Self> {
        let entry = entry.as_object()?;
        let optional = |key: &str| match entry.get(key) {
            None => Some(""),
            Some(value) => value.as_str().filter(|text| !text.is_empty()),
        };
        let recorded = Recorded {
            applied: match entry.get("operation")?.as_str()? {
                "Apply" => true,
                "Update" => false,
                _ => return None,
            },
            time: optional("time")?,
            name: entry.get("manager")?.as_str()?,
            api_version: entry.get("apiVersion")?.as_str()?,
            subresource: optional("subresource")?,
            fields: entry.get("fieldsV1")?.as_object()?,
        };
        let known = 5 + usize::from(!recorded.time.is_empty()) + usize::from(!recorded.subresource.is_empty());
        (entry.get("fieldsType")? == "FieldsV1" && entry.len() == known).then_some(recorded)
    }

    fn is(&self, other: &Recorded<'_>) -> bool {
        let version = self.applied || self.api_version == other.api_version;
        (self.applied, self.name, self.subresource) == (other.applied, other.name, other.subresource) && version
    }
}

/// Notes in `entries` what `comparison` says that the context's manager has changed. False: nothing was done, and the
/// general way is to be gone.
pub fn note(context: Context<'_>, comparison: &Comparison, entries: &mut Vec<Value>) -> bool {
    if entries.is_empty() {
        return false;
    }
    let Some(recorded) = entries.iter().map(Recorded::of).collect::<Option<Vec<_>>>() else {
        return false;
    };
    let changed = comparison.modified.union(&comparison.added);
    let mut own = None;
    let mut updaters = 0;
    for (index, entry) in recorded.iter().enumerate() {
        if entry.api_version != context.api_version
            || entry.fields.contains_key(".")
            || !walk::is_canonical(context.node(), entry.fields)
            || recorded.iter().take(index).any(|other| other.is(entry))
        {
            return false;
        }
        updaters += usize::from(!entry.applied);
        if !entry.applied && entry.name == context.manager && entry.subresource == context.subresource {
            own = Some(index);
        } else if changed.meets(entry.fields) || comparison.removed.meets(entry.fields) {
            return false;
        }
    }
    if updaters + usize::from(own.is_none()) > MOST_UPDATERS {
        return false;
    }
    if comparison.is_empty() {
        return true;
    }
    let mut owned = Owned {
        api_version: context.api_version.into(),
        ..Owned::default()
    };
    if let Some(entry) = own.and_then(|index| recorded.get(index)) {
        let fields = FieldSet::of_map(entry.fields);
        owned.fields = fields
            .difference(&fields.intersection(&changed))
            .difference(&comparison.removed);
        owned.time = entry.time.into();
    }
    let taken = changed.without_trees(context.reset).difference(&STRIPPED);
    if !taken.is_empty() {
        owned.fields = owned.fields.union(&taken);
        owned.time = context.now.into();
    }
    if let Some(index) = own {
        entries.remove(index);
    }
    if !owned.fields.is_empty() {
        let manager = Manager {
            name: context.manager.into(),
            applied: false,
            api_version: context.api_version.into(),
            subresource: context.subresource.into(),
        };
        entries.push(managed::entry(&manager, &owned));
    }
    entries.sort_by(order);
    true
}

/// As entries are written: appliers first, then by time.
fn order(left: &Value, right: &Value) -> Ordering {
    let text = |entry: &'_ Value, key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let by = |key: &str| text(left, key).cmp(&text(right, key));
    by("operation")
        .then_with(|| by("time"))
        .then_with(|| by("manager"))
        .then_with(|| by("apiVersion"))
        .then_with(|| by("subresource"))
}
