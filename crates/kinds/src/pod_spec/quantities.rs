//! Resource lists: the maps of quantities in requests, limits, capacities and quotas.

use sampan_api::quantity::{Format, Quantity};
use serde_json::{Map, Value};

use crate::tree;

/// Writes each quantity in its canonical form, rounded up to thousandths, as upstream stores it. What is no quantity is
/// left for validation to refuse.
pub(crate) fn canonical(list: &mut Map<String, Value>) {
    for value in list.values_mut() {
        if let Ok(quantity) = Quantity::from_value(value) {
            *value = quantity.to_string().into();
        }
    }
}

/// [`canonical`] for the lists at the given dotted paths.
pub(crate) fn canonical_at(value: &mut Value, paths: &[&str]) {
    for path in paths {
        if let Some(list) = tree::get_mut(value, path).and_then(Value::as_object_mut) {
            canonical(list);
        }
    }
}

/// Fills `to` with what `from` has and it lacks.
pub(crate) fn fill(to: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (name, quantity) in from {
        if to.get(name).is_none_or(Value::is_null) {
            to.insert(name.clone(), quantity.clone());
        }
    }
}

/// A quantity of a list, zero when absent or not a quantity.
pub(crate) fn of(list: Option<&Map<String, Value>>, name: &str) -> Quantity {
    list.and_then(|list| list.get(name))
        .and_then(|value| Quantity::from_value(value).ok())
        .unwrap_or_else(|| Quantity::new(0, Format::DecimalSi))
}
