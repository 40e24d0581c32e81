//! Lists: Kubernetes' own functions, the list extensions (version 3) and sets.

use std::cmp::Ordering;

use crate::context::Context;
use crate::error::EvalError;
use crate::functions::{Cost, Outcome, Row};
use crate::library::standard::overflow;
use crate::value::{List, Value, contains, equal, order};

const SORTED: &[&str] = &[
    "list(int).() bool",
    "list(uint).() bool",
    "list(double).() bool",
    "list(bool).() bool",
    "list(duration).() bool",
    "list(timestamp).() bool",
    "list(string).() bool",
    "list(bytes).() bool",
];
const EXTREME: &[&str] = &[
    "list(int).() int",
    "list(uint).() uint",
    "list(double).() double",
    "list(bool).() bool",
    "list(duration).() duration",
    "list(timestamp).() timestamp",
    "list(string).() string",
    "list(bytes).() bytes",
];
const SORT: &[&str] = &[
    "list(int).() list(int)",
    "list(uint).() list(uint)",
    "list(double).() list(double)",
    "list(bool).() list(bool)",
    "list(duration).() list(duration)",
    "list(timestamp).() list(timestamp)",
    "list(string).() list(string)",
    "list(bytes).() list(bytes)",
];
const SORT_BY: &[&str] = &[
    "list(T).(list(int)) list(T)",
    "list(T).(list(uint)) list(T)",
    "list(T).(list(double)) list(T)",
    "list(T).(list(bool)) list(T)",
    "list(T).(list(duration)) list(T)",
    "list(T).(list(timestamp)) list(T)",
    "list(T).(list(string)) list(T)",
    "list(T).(list(bytes)) list(T)",
];

pub(crate) const ROWS: &[Row] = &[
    ("isSorted", SORTED, Cost::Traverse, |context, args| {
        let list = one(args)?;
        let mut before: Option<Value<'_>> = None;
        for item in list.iter() {
            context.work(1)?;
            if let Some(before) = &before {
                match order(before, &item) {
                    Some(Ordering::Greater) => return Ok(Value::Bool(false)),
                    Some(_) => {}
                    None => return Err(EvalError::no_overload()),
                }
            }
            before = Some(item);
        }
        Ok(Value::Bool(true))
    }),
    (
        "sum",
        &[
            "list(int).() int",
            "list(uint).() uint",
            "list(double).() double",
            "list(duration).() duration",
        ],
        Cost::Traverse,
        |context, args| {
            let list = one(args)?;
            let mut sum: Option<Value<'_>> = None;
            for item in list.iter() {
                context.work(1)?;
                sum = Some(match (sum, item) {
                    (None, item) => item,
                    (Some(Value::Int(a)), Value::Int(b)) => a.checked_add(b).map(Value::Int).ok_or_else(overflow)?,
                    (Some(Value::Uint(a)), Value::Uint(b)) => a.checked_add(b).map(Value::Uint).ok_or_else(overflow)?,
                    (Some(Value::Double(a)), Value::Double(b)) => Value::Double(a + b),
                    (Some(Value::Duration(a)), Value::Duration(b)) => {
                        a.checked_add(b).map(Value::Duration).ok_or_else(overflow)?
                    }
                    _ => return Err(EvalError::no_overload()),
                });
            }
            Ok(sum.unwrap_or(Value::Int(0)))
        },
    ),
    ("max", EXTREME, Cost::Traverse, |context, args| {
        extreme(context, args, Ordering::Greater, "max")
    }),
    ("min", EXTREME, Cost::Traverse, |context, args| {
        extreme(context, args, Ordering::Less, "min")
    }),
    (
        "slice",
        &["list(T).(int,int) list(T)"],
        Cost::MakeList,
        |context, args| {
            let list = one(args)?;
            let (Some(Value::Int(start)), Some(Value::Int(end))) = (args.get(1), args.get(2)) else {
                return Err(EvalError::no_overload());
            };
            if *start < 0 || *end < 0 {
                return Err(EvalError::Failed(format!(
                    "cannot slice({start}, {end}), negative indexes not supported"
                )));
            }
            if start > end {
                return Err(EvalError::Failed(format!(
                    "cannot slice({start}, {end}), start index must be less than or equal to end index"
                )));
            }
            if *end > list.len() as i64 {
                return Err(EvalError::Failed(format!(
                    "cannot slice({start}, {end}), list is length {}",
                    list.len()
                )));
            }
            context.work((end - start) as u64)?;
            Ok(Value::list(
                (*start as usize..*end as usize).filter_map(|at| list.get(at)).collect(),
            ))
        },
    ),
    (
        "flatten",
        &["list(list(T)).() list(T)", "list(dyn).(int) list(dyn)"],
        Cost::Flatten,
        |context, args| {
            let list = one(args)?;
            let depth = match args.get(1) {
                None => 1,
                Some(Value::Int(depth)) if *depth >= 0 => *depth,
                Some(Value::Int(_)) => return Err(EvalError::failed("level must be non-negative")),
                _ => return Err(EvalError::no_overload()),
            };
            let mut out = Vec::new();
            flatten(context, list, depth.min(100), &mut out)?;
            Ok(Value::list(out))
        },
    ),
    ("sort", SORT, Cost::SelfCompare(0), |context, args| {
        let list = one(args)?;
        let items: Vec<Value<'_>> = list.iter().collect();
        sort(context, items.clone(), items)
    }),
    (
        "@sortByAssociatedKeys",
        SORT_BY,
        Cost::SelfCompare(1),
        |context, args| match args {
            [Value::List(list), Value::List(keys)] => sort(context, list.iter().collect(), keys.iter().collect()),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "lists.range",
        &["(int) list(int)"],
        Cost::MakeList,
        |context, args| match args {
            [Value::Int(end)] => {
                context.work((*end).max(0) as u64)?;
                Ok(Value::list((0..*end).map(Value::Int).collect()))
            }
            _ => Err(EvalError::no_overload()),
        },
    ),
    ("reverse", &["list(T).() list(T)"], Cost::MakeList, |context, args| {
        let list = one(args)?;
        context.work(list.len() as u64)?;
        let mut items: Vec<Value<'_>> = list.iter().collect();
        items.reverse();
        Ok(Value::list(items))
    }),
    (
        "distinct",
        &["list(T).() list(T)"],
        Cost::SelfCompare(0),
        |context, args| {
            let list = one(args)?;
            let mut out: Vec<Value<'_>> = Vec::new();
            'items: for item in list.iter() {
                for known in &out {
                    if equal(known, &item, context)? {
                        continue 'items;
                    }
                }
                out.push(item);
            }
            Ok(Value::list(out))
        },
    ),
    ("first", &["list(T).() optional(T)"], Cost::Fixed(1), |_, args| {
        Ok(Value::Optional(one(args)?.get(0).map(Into::into)))
    }),
    ("last", &["list(T).() optional(T)"], Cost::Fixed(1), |_, args| {
        let list = one(args)?;
        Ok(Value::Optional(
            list.len().checked_sub(1).and_then(|at| list.get(at)).map(Into::into),
        ))
    }),
    (
        "sets.contains",
        &["(list(T),list(T)) bool"],
        Cost::Product(1),
        |context, args| {
            let (a, b) = two(args)?;
            covers(context, a, b).map(Value::Bool)
        },
    ),
    (
        "sets.equivalent",
        &["(list(T),list(T)) bool"],
        Cost::Product(2),
        |context, args| {
            let (a, b) = two(args)?;
            Ok(Value::Bool(covers(context, a, b)? && covers(context, b, a)?))
        },
    ),
    (
        "sets.intersects",
        &["(list(T),list(T)) bool"],
        Cost::Product(1),
        |context, args| {
            let (a, b) = two(args)?;
            for item in b.iter() {
                if contains(a, &item, context)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        },
    ),
];

fn one<'v, 'a>(args: &'v [Value<'a>]) -> Result<&'v List<'a>, EvalError> {
    match args.first() {
        Some(Value::List(list)) => Ok(list),
        _ => Err(EvalError::no_overload()),
    }
}

fn two<'v, 'a>(args: &'v [Value<'a>]) -> Result<(&'v List<'a>, &'v List<'a>), EvalError> {
    match args {
        [Value::List(a), Value::List(b)] => Ok((a, b)),
        _ => Err(EvalError::no_overload()),
    }
}

/// Whether `a` has all that `b` has.
fn covers<'a>(context: &Context<'_>, a: &List<'a>, b: &List<'a>) -> Result<bool, EvalError> {
    for item in b.iter() {
        if !contains(a, &item, context)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn extreme<'a>(context: &Context<'_>, args: &[Value<'a>], wanted: Ordering, name: &str) -> Outcome<'a> {
    let mut items = one(args)?.iter();
    let Some(mut best) = items.next() else {
        return Err(EvalError::Failed(format!("{name} called on empty list")));
    };
    for item in items {
        context.work(1)?;
        match order(&item, &best) {
            Some(found) if found == wanted => best = item,
            Some(_) => {}
            None => return Err(EvalError::no_overload()),
        }
    }
    Ok(best)
}

pub(crate) fn index_of<'a>(context: &Context<'_>, list: &List<'a>, value: &Value<'a>, last: bool) -> Outcome<'a> {
    let mut found = -1;
    for (index, item) in list.iter().enumerate() {
        if equal(&item, value, context)? {
            found = index as i64;
            if !last {
                break;
            }
        }
    }
    Ok(Value::Int(found))
}

fn flatten<'a>(context: &Context<'_>, list: &List<'a>, depth: i64, out: &mut Vec<Value<'a>>) -> Result<(), EvalError> {
    for item in list.iter() {
        context.work(1)?;
        match item {
            Value::List(inner) if depth > 0 => flatten(context, &inner, depth - 1, out)?,
            item => out.push(item),
        }
    }
    Ok(())
}

fn sort<'a>(context: &Context<'_>, items: Vec<Value<'a>>, keys: Vec<Value<'a>>) -> Outcome<'a> {
    if items.len() != keys.len() {
        return Err(EvalError::failed(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list",
        ));
    }
    let steps = items.len() as u64;
    context.work(steps.saturating_mul(u64::from(64 - steps.leading_zeros())))?;
    if let Some(first) = keys.first() {
        for key in &keys {
            if std::mem::discriminant(key) != std::mem::discriminant(first) || order(first, key).is_none() {
                return Err(EvalError::failed("list elements must have the same type"));
            }
        }
    }
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.into_iter().zip(items).collect();
    pairs.sort_by(|(a, _), (b, _)| order(a, b).unwrap_or(Ordering::Equal));
    Ok(Value::list(pairs.into_iter().map(|(_, item)| item).collect()))
}
