//! Lists of amounts by resource name, and sums over them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::{Format, Quantity};

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// So many whole things.
pub fn number(count: i64) -> Quantity {
    Quantity::new(count, Format::DecimalSi)
}

/// A map of quantities as it stands in an object. What cannot be read counts as nothing: validation refuses it.
pub fn read(list: Option<&Value>) -> Amounts {
    list.and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), Quantity::from_value(value).ok()?)))
        .collect()
}

/// The same as a tree.
pub fn write(amounts: &Amounts) -> Value {
    amounts
        .iter()
        .map(|(name, amount)| (name.clone(), Value::from(amount.to_string())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Adds one amount to a sum.
pub fn add(sum: &mut Amounts, name: &str, amount: &Quantity) {
    match sum.get_mut(name) {
        Some(known) => *known = known.add(amount),
        None => {
            sum.insert(name.to_owned(), amount.clone());
        }
    }
}

pub fn add_all(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        add(sum, name, amount);
    }
}

/// The larger of each.
pub fn raise_all(sum: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        match sum.get_mut(name) {
            Some(known) if *known >= *amount => {}
            _ => {
                sum.insert(name.clone(), amount.clone());
            }
        }
    }
}

/// What of `new` goes beyond `old`, never less than nothing.
pub fn beyond(new: &Amounts, old: &Amounts) -> Amounts {
    new.iter()
        .map(|(name, amount)| {
            let rest = match old.get(name) {
                Some(before) => amount.sub(before),
                None => amount.clone(),
            };
            let rest = if rest.is_negative() { Quantity::zero() } else { rest };
            (name.clone(), rest)
        })
        .collect()
}

/// `cpu=1,memory=2Gi`
pub fn shown(amounts: &Amounts) -> String {
    let parts: Vec<String> = amounts
        .iter()
        .map(|(name, amount)| format!("{name}={amount}"))
        .collect();
    parts.join(",")
}
