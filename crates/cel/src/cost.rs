//! What calls cost: as they happen, and at worst before they do. Both follow upstream's figures, because clients
//! meet them: a rule that upstream refuses as too expensive is refused here, and the other way round.

use crate::ast::{Call, Expr, Fold, Kind, Literal};
use crate::functions::{Cost, Function};
use crate::schema::{Decl, Shape};
use crate::types::{ObjectType, Type};
use crate::value::Value;

const TEXT: f64 = 0.1;
const PATTERN: f64 = 0.25;
pub(crate) const LIST: u64 = 10;
pub(crate) const MAP: u64 = 30;
pub(crate) const STRUCT: u64 = 40;

fn scaled(size: u64, factor: f64) -> u64 {
    // Saturates, as casts from floating point do.
    (size as f64 * factor).ceil() as u64
}

/// The price of a call that has happened.
pub(crate) fn of_call(function: &Function, args: &[Value<'_>], result: &Value<'_>) -> u64 {
    let size = |at: usize| args.get(at).map_or(1, Value::size);
    let pattern =
        |text: u64, pattern: u64| scaled(text.saturating_add(1), TEXT).saturating_mul(scaled(pattern, PATTERN));
    match function.cost {
        Cost::Fixed(cost) => cost,
        Cost::Dyn | Cost::Index => 1,
        Cost::Logic | Cost::Conditional => 0,
        Cost::Text(passes) | Cost::Parse(passes) => scaled(size(0), TEXT * f64::from(passes)),
        Cost::Convert => match (function.name, args) {
            ("string", [Value::Bytes(_)]) | ("bytes", [Value::String(_)]) => scaled(size(0), TEXT),
            _ => 1,
        },
        Cost::Replace | Cost::Split => scaled(size(0), 2.0 * TEXT),
        Cost::Join => scaled(result.size(), 2.0 * TEXT),
        Cost::Format | Cost::Affix | Cost::Quote => scaled(size(0), TEXT),
        Cost::Pattern { .. } => pattern(size(0), size(1)),
        Cost::Contains => scaled(size(0), TEXT).saturating_mul(scaled(size(1), TEXT)),
        Cost::In => match args {
            [_, Value::List(list)] => list.len() as u64,
            _ => 1,
        },
        Cost::Compare => match args {
            [Value::Opaque(_), _] => 1,
            _ => scaled(size(0).min(size(1)), TEXT),
        },
        Cost::Add => match args {
            [Value::String(_), _] | [Value::Bytes(_), _] => scaled(size(0).saturating_add(size(1)), TEXT),
            _ => 1,
        },
        Cost::Traverse => args.first().map_or(0, |value| traversal(value, 0)),
        Cost::MakeList => result.size() + 1 + LIST,
        Cost::Flatten => {
            let depth = match args.get(1) {
                Some(Value::Int(depth)) => (*depth).clamp(0, 1_000_000) as u64,
                _ => 1,
            };
            size(0).saturating_mul(depth) + 1 + LIST
        }
        Cost::SelfCompare(at) => {
            let length = size(usize::from(at));
            let texts = match args.get(usize::from(at)) {
                Some(Value::List(list)) => matches!(list.get(0), Some(Value::String(_) | Value::Bytes(_))),
                _ => false,
            };
            let factor = if texts { 2.0 + TEXT } else { 2.0 };
            (length.saturating_mul(length) as f64 * factor) as u64 + 1 + LIST
        }
        Cost::Product(factor) => size(0).saturating_mul(size(1)).saturating_mul(factor.into()) + 1,
        Cost::Selector => LIST + scaled(size(1), TEXT) + scaled(scaled(size(1), 0.5), (LIST + STRUCT) as f64),
        Cost::Ip => match args {
            [Value::String(_)] => scaled(size(0), TEXT),
            _ => 1,
        },
        Cost::ContainsIp | Cost::ContainsCidr => {
            let mut cost = scaled(2 * size(0), TEXT);
            if function.cost == Cost::ContainsCidr {
                cost += scaled(size(0), TEXT) + 1;
            }
            if matches!(args.get(1), Some(Value::String(_))) {
                cost += scaled(size(1), TEXT);
            }
            cost
        }
        Cost::Validate => {
            let of = match args.first() {
                Some(Value::Opaque(opaque)) => match &**opaque {
                    crate::library::opaque::Opaque::Format(format) => format.pattern,
                    _ => 128,
                },
                _ => 128,
            };
            pattern(size(1), of)
        }
    }
}

/// A pass over all there is in a value.
fn traversal(value: &Value<'_>, depth: u32) -> u64 {
    if depth > 100 {
        return 1;
    }
    match value {
        Value::String(text) => (text.len() as f64 * TEXT) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * TEXT) as u64,
        Value::List(list) => list.iter().map(|item| traversal(&item, depth + 1)).sum(),
        Value::Map(map) => map
            .keys()
            .map(|key| {
                let value = map.get(&key).map_or(0, |value| traversal(&value, depth + 1));
                traversal(&key.value(), depth + 1) + value
            })
            .sum(),
        _ => 1,
    }
}

/// From the least to the most, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

/// The root of what is in a list that is no field.
const NOWHERE: &str = "@items";
const UNKNOWN: Range = Range { min: 0, max: u64::MAX };
const NOTHING: Range = Range { min: 0, max: 0 };

impl Range {
    fn fixed(value: u64) -> Range {
        Range { min: value, max: value }
    }
    fn add(self, other: Range) -> Range {
        Range {
            min: self.min.saturating_add(other.min),
            max: self.max.saturating_add(other.max),
        }
    }
    fn times(self, other: Range) -> Range {
        Range {
            min: self.min.saturating_mul(other.min),
            max: self.max.saturating_mul(other.max),
        }
    }
    fn scaled(self, factor: f64) -> Range {
        Range {
            min: scaled(self.min, factor),
            max: scaled(self.max, factor),
        }
    }
    fn union(self, other: Range) -> Range {
        Range {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }
}

/// Sizes of what is in a list or map.
#[derive(Clone, Copy)]
struct Entry {
    is_list: bool,
    key: Range,
    value: Range,
}

impl Entry {
    fn union(a: Option<Entry>, b: Option<Entry>) -> Option<Entry> {
        let (a, b) = (a?, b?);
        Some(Entry {
            is_list: a.is_list,
            key: a.key.union(b.key),
            value: a.value.union(b.value),
        })
    }
}

/// A step from a declared variable to what an expression reads.
#[derive(Clone, Debug)]
enum Step {
    Field(String),
    Items,
    Keys,
    Indices,
}

/// What is known in advance of an expression.
#[derive(Clone)]
struct Estimate<'d> {
    cost: Range,
    size: Option<Range>,
    entry: Option<Entry>,
    /// The variable and the steps from it.
    path: Option<(&'d str, Vec<Step>)>,
}

impl Estimate<'_> {
    fn size(&self) -> Range {
        self.size.unwrap_or(UNKNOWN)
    }
}

struct Local<'d> {
    name: &'d str,
    /// What naming it costs: upstream evaluates the target of `optMap` wherever we name it.
    cost: Range,
    path: Option<(&'d str, Vec<Step>)>,
    size: Option<Range>,
    entry: Option<Entry>,
}

/// The range of costs an expression can have, given how large its variables can get.
pub(crate) fn estimate<'d>(expr: &'d Expr, decl_of: &'d dyn Fn(&str) -> Option<&'d Decl>) -> Range {
    let mut estimator = Estimator {
        decl_of,
        locals: Vec::new(),
    };
    estimator.expr(expr).cost
}

struct Estimator<'d> {
    decl_of: &'d dyn Fn(&str) -> Option<&'d Decl>,
    locals: Vec<Local<'d>>,
}

impl<'d> Estimator<'d> {
    fn declared(&self, path: &(&'d str, Vec<Step>)) -> Option<Range> {
        // Upstream reads every path from `self`, also those of names and of lists that are not declared.
        let mut decl = (self.decl_of)(path.0).or_else(|| (self.decl_of)("self"))?;
        for step in &path.1 {
            decl = match (step, &decl.shape) {
                (Step::Items, Shape::List(item, _) | Shape::Map(item)) => item,
                (Step::Keys, Shape::Map(_)) => return Some(Range { min: 0, max: 0 }),
                (Step::Field(name), Shape::Object(object)) => field(object, name)?,
                _ => return None,
            };
        }
        Some(Range {
            min: 0,
            max: decl.max_elements,
        })
    }

    fn local(&self, name: &str) -> Option<&Local<'d>> {
        self.locals.iter().rev().find(|local| local.name == name)
    }

    /// Completes what is known of a size: from the expression itself, the declaration, the type, the variable.
    fn with_size(&self, expr: &'d Expr, mut known: Estimate<'d>) -> Estimate<'d> {
        if known.size.is_some() {
            return known;
        }
        known.size = match &expr.kind {
            Kind::Literal(literal) => Some(Range::fixed(match literal {
                Literal::String(text) => text.chars().count() as u64,
                Literal::Bytes(bytes) => bytes.len() as u64,
                _ => 1,
            })),
            Kind::List(elements) => Some(Range::fixed(elements.len() as u64)),
            Kind::Map(entries) => Some(Range::fixed(entries.len() as u64)),
            _ => None,
        };
        let rooted = known
            .path
            .as_ref()
            .filter(|(root, _)| *root != crate::macros::ACCU && (!root.starts_with('@') || *root == NOWHERE));
        if known.size.is_none() {
            known.size = rooted.and_then(|path| self.declared(path));
        }
        if known.size.is_none() && expr.ty.is_scalar() {
            known.size = Some(Range::fixed(1));
        }
        if let Kind::Ident(name) = &expr.kind
            && known.size.is_none()
        {
            known.size = self.local(name).and_then(|local| local.size);
        }
        known
    }

    fn expr(&mut self, expr: &'d Expr) -> Estimate<'d> {
        let plain = |cost| Estimate {
            cost,
            size: None,
            entry: None,
            path: None,
        };
        let known = match &expr.kind {
            Kind::Literal(_) => plain(NOTHING),
            Kind::Ident(name) => {
                let mut known = plain(Range::fixed(1));
                match self.local(name) {
                    Some(local) => {
                        known.path = local.path.clone();
                        known.entry = local.entry;
                        known.cost = local.cost;
                    }
                    None => known.path = Some((name, Vec::new())),
                }
                known
            }
            Kind::Select(select) => {
                let operand = self.expr(&select.operand);
                let mut known = plain(operand.cost);
                if !select.test {
                    if select.optional
                        || matches!(
                            select.operand.ty,
                            Type::Map(..) | Type::Object(_) | Type::Param(_) | Type::Opaque(_)
                        )
                    {
                        known.cost = known.cost.add(Range::fixed(1));
                    }
                    known.path = operand.path.map(|(root, mut steps)| {
                        steps.push(Step::Field(select.field.to_string()));
                        (root, steps)
                    });
                }
                known
            }
            Kind::List(elements) => {
                let mut cost = Range::fixed(LIST);
                let mut item = Range {
                    min: if elements.is_empty() { 0 } else { u64::MAX },
                    max: 0,
                };
                for element in elements {
                    let known = self.expr(&element.value);
                    cost = cost.add(known.cost);
                    item = item.union(known.size());
                }
                let mut known = plain(cost);
                known.entry = Some(Entry {
                    is_list: true,
                    key: Range::fixed(1),
                    value: item,
                });
                known
            }
            Kind::Map(entries) => {
                let mut cost = Range::fixed(MAP);
                let none = Range {
                    min: if entries.is_empty() { 0 } else { u64::MAX },
                    max: 0,
                };
                let (mut keys, mut values) = (none, none);
                for entry in entries {
                    let (key, value) = (self.expr(&entry.key), self.expr(&entry.value));
                    cost = cost.add(key.cost).add(value.cost);
                    keys = keys.union(key.size());
                    values = values.union(value.size());
                }
                let mut known = plain(cost);
                known.entry = Some(Entry {
                    is_list: false,
                    key: keys,
                    value: values,
                });
                known
            }
            Kind::Struct(made) => {
                let fields = made.fields.iter();
                let costs = fields.map(|field| self.expr(&field.value).cost).collect::<Vec<_>>();
                plain(costs.into_iter().fold(Range::fixed(STRUCT), Range::add))
            }
            Kind::Fold(fold) if fold.is_bind => self.bind(fold),
            Kind::Fold(fold) => self.fold(fold),
            Kind::Call(call) => self.call(call),
        };
        self.with_size(expr, known)
    }

    fn bind(&mut self, fold: &'d Fold) -> Estimate<'d> {
        let init = self.expr(&fold.init);
        let twice = &*fold.accu == crate::macros::OPTIONAL_INPUT;
        self.locals.push(Local {
            name: &fold.accu,
            cost: if twice { init.cost } else { Range::fixed(1) },
            path: init.path.clone(),
            size: init.size,
            entry: init.entry,
        });
        let result = self.expr(&fold.result);
        self.locals.pop();
        Estimate {
            cost: if twice {
                result.cost
            } else {
                Range::fixed(LIST).add(init.cost).add(result.cost)
            },
            path: None,
            ..result
        }
    }

    fn fold(&mut self, fold: &'d Fold) -> Estimate<'d> {
        let range = self.expr(&fold.range);
        let init = self.expr(&fold.init);
        self.locals.push(Local {
            name: &fold.accu,
            cost: Range::fixed(1),
            path: init.path.clone(),
            size: init.size,
            entry: init.entry,
        });
        let is_list = range
            .entry
            .map_or(matches!(fold.range.ty, Type::List(_)), |entry| entry.is_list);
        let step_to = |step: Step| match range.path.clone() {
            Some((root, mut steps)) => {
                steps.push(step);
                Some((root, steps))
            }
            None => Some((NOWHERE, Vec::new())),
        };
        let keys = (
            step_to(if is_list { Step::Indices } else { Step::Keys }),
            range.entry.map(|entry| entry.key),
        );
        let values = (step_to(Step::Items), range.entry.map(|entry| entry.value));
        let push = |locals: &mut Vec<Local<'d>>, name: &'d str, (path, size)| {
            locals.push(Local {
                name,
                cost: Range::fixed(1),
                path,
                size,
                entry: None,
            });
        };
        let single = if is_list { values.clone() } else { keys.clone() };
        match &fold.var2 {
            Some(var2) => {
                push(&mut self.locals, &fold.var, keys);
                push(&mut self.locals, var2, values);
            }
            None => push(&mut self.locals, &fold.var, single),
        }
        let condition = self.expr(&fold.condition);
        let step = self.expr(&fold.step);
        self.locals.pop();
        if fold.var2.is_some() {
            self.locals.pop();
        }
        let result = self.expr(&fold.result);
        self.locals.pop();
        let each = step.cost.add(condition.cost);
        let cost = range.cost.add(init.cost).add(result.cost).add(range.size().times(each));
        let (size, entry) = match &fold.init.kind {
            Kind::Literal(_) => (init.size, None),
            Kind::List(_) | Kind::Map(_) => (Some(range.size()), step.entry),
            _ => (None, None),
        };
        Estimate {
            cost,
            size,
            entry,
            path: None,
        }
    }

    fn call(&mut self, call: &'d Call) -> Estimate<'d> {
        let mut base = NOTHING;
        let mut all = Vec::with_capacity(call.args.len() + 1);
        if let Some(target) = &call.target {
            let known = self.expr(target);
            base = base.add(known.cost);
            all.push((target, known));
        }
        let mut args_cost = NOTHING;
        let mut costs = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            let known = self.expr(arg);
            args_cost = args_cost.add(known.cost);
            costs.push(known.cost);
            all.push((arg, known));
        }
        let nothing = Estimate {
            cost: NOTHING,
            size: None,
            entry: None,
            path: None,
        };
        let Some(function) = call.resolved else {
            return nothing;
        };
        let first = all.first().map(|(_, known)| known.clone());
        match (function.cost, &first) {
            (Cost::Dyn, Some(first)) => {
                return Estimate {
                    cost: first.cost.add(Range::fixed(1)),
                    size: first.size,
                    entry: first.entry,
                    path: None,
                };
            }
            (Cost::Logic, _) => {
                let min = costs.first().map_or(0, |cost| cost.min);
                return Estimate {
                    cost: Range {
                        min,
                        max: args_cost.max,
                    },
                    ..nothing
                };
            }
            (Cost::Conditional, _) => {
                let [(_, condition), (_, yes), (_, no)] = &all[..] else {
                    return nothing;
                };
                return Estimate {
                    cost: condition.cost.add(yes.cost.union(no.cost)),
                    size: Some(yes.size().union(no.size())),
                    entry: Entry::union(yes.entry, no.entry),
                    path: None,
                };
            }
            _ => {}
        }
        let mut cost = Range { min: u64::MAX, max: 0 };
        let mut size: Option<Range> = None;
        for overload in call.overloads.iter().filter_map(|at| function.overloads.get(*at)) {
            let (own, result) = self.overload(function, &overload.params, call, &all);
            cost = cost.union(own.add(args_cost));
            size = match (size, result) {
                (Some(a), Some(b)) => Some(a.union(b)),
                (a, b) => a.or(b),
            };
        }
        if call.overloads.is_empty() {
            cost = args_cost;
        }
        let mut known = Estimate {
            cost: base.add(cost),
            size,
            ..nothing
        };
        match (function.cost, &all[..]) {
            (Cost::Index, [(_, of), ..]) => {
                known.size = of.entry.map(|entry| entry.value);
                known.path = of.path.clone().map(|(root, mut steps)| {
                    steps.push(Step::Items);
                    (root, steps)
                });
            }
            (Cost::Add, [(_, a), (_, b)]) => known.entry = Entry::union(a.entry, b.entry),
            _ => {}
        }
        known
    }

    /// What one overload costs, without its arguments, and how large its result can get.
    fn overload(
        &self,
        function: &Function,
        params: &[Type],
        call: &Call,
        args: &[(&'d Expr, Estimate<'d>)],
    ) -> (Range, Option<Range>) {
        let size = |at: usize| args.get(at).map_or(UNKNOWN, |(_, known)| known.size());
        let one = Range::fixed(1);
        let plain = |cost| (cost, None);
        let pattern = || {
            let text = size(0).add(one).scaled(TEXT);
            text.times(size(1).scaled(PATTERN))
        };
        let literal = |at: usize| match args.get(at).map(|(expr, _)| &expr.kind) {
            Some(Kind::Literal(Literal::Int(value))) => Some((*value).max(0) as u64),
            _ => None,
        };
        let allocating = |factor: f64, items: Range| (items.scaled(factor).add(Range::fixed(1 + LIST)), Some(items));
        match function.cost {
            Cost::Fixed(cost) => plain(Range::fixed(cost)),
            Cost::Dyn | Cost::Index | Cost::Logic | Cost::Conditional => plain(one),
            Cost::Text(passes) => (size(0).scaled(TEXT * f64::from(passes)), Some(size(0))),
            Cost::Parse(passes) => plain(size(0).scaled(TEXT * f64::from(passes))),
            Cost::Quote => {
                // At most every character is escaped.
                let result = Range {
                    min: size(0).min.saturating_add(2),
                    max: size(0).max.saturating_mul(2).saturating_add(2),
                };
                (size(0).scaled(TEXT), Some(result))
            }
            Cost::Convert => match (function.name, params.first()) {
                ("string", Some(Type::Bytes)) => {
                    let of = size(0);
                    let result = Range {
                        min: of.min / 4,
                        max: of.max,
                    };
                    (of.scaled(TEXT), Some(result))
                }
                ("bytes", Some(Type::String)) => {
                    let of = size(0);
                    let result = Range {
                        min: of.min,
                        max: of.max.saturating_mul(4),
                    };
                    (of.scaled(TEXT), Some(result))
                }
                _ => plain(one),
            },
            Cost::Replace => (size(0).scaled(2.0 * TEXT), Some(replaced(size(0), size(1), size(2)))),
            Cost::Split => {
                let result = Range {
                    min: 0,
                    max: literal(2).unwrap_or(size(0).max),
                };
                (size(0).scaled(2.0 * TEXT), Some(result))
            }
            Cost::Join => {
                let list = size(0);
                let mut total = list.times(self.item_size(args));
                if args.len() > 1 {
                    let between = Range {
                        min: list.min.saturating_sub(1),
                        max: list.max.saturating_sub(1),
                    };
                    total = total.add(size(1).times(between));
                }
                (total.scaled(TEXT), Some(total))
            }
            Cost::Format => plain(size(0).scaled(TEXT)),
            Cost::Affix => plain(size(1).scaled(TEXT)),
            Cost::Pattern { finds } => {
                let result = Range {
                    min: 0,
                    max: size(0).max,
                };
                (pattern(), finds.then_some(result))
            }
            Cost::Contains => plain(size(0).scaled(TEXT).times(size(1).scaled(TEXT))),
            Cost::In => match params.get(1) {
                Some(Type::List(_)) => plain(size(1)),
                _ => plain(one),
            },
            Cost::Compare => {
                let opaque = |at: usize| match args.get(at).map(|(expr, _)| &expr.ty) {
                    Some(Type::Opaque(name)) => Some(*name),
                    _ => None,
                };
                if opaque(0).is_some() && opaque(0) == opaque(1) {
                    return plain(one);
                }
                let sized = matches!(function.name, "_==_" | "_!=_")
                    || matches!(params.first(), Some(Type::String | Type::Bytes));
                if !sized {
                    return plain(one);
                }
                let max = size(0).max.min(size(1).max);
                let range = Range {
                    min: u64::from(max > 0),
                    max,
                };
                plain(range.scaled(TEXT))
            }
            Cost::Add => match params.first() {
                Some(Type::String | Type::Bytes) => {
                    let total = size(0).add(size(1));
                    (total.scaled(TEXT), Some(total))
                }
                Some(Type::List(_)) => (one, Some(size(0).add(size(1)))),
                _ => plain(one),
            },
            Cost::Traverse => match params.first() {
                Some(Type::List(_)) => {
                    let item = match args.first().map(|(expr, _)| &expr.ty) {
                        Some(Type::List(item)) => (**item).clone(),
                        _ => Type::Dyn,
                    };
                    let mut each = one;
                    if matches!(item, Type::String | Type::Bytes) {
                        each = each.add(self.item_size(args).scaled(TEXT));
                    }
                    plain(size(0).times(each))
                }
                _ => plain(size(0).scaled(TEXT)),
            },
            Cost::MakeList => match function.name {
                "slice" => {
                    let (start, end) = (literal(1).unwrap_or(0), literal(2).unwrap_or(size(0).max));
                    allocating(1.0, Range::fixed(end.saturating_sub(start)))
                }
                "lists.range" => allocating(1.0, Range::fixed(literal(0).unwrap_or(u64::MAX))),
                _ => allocating(1.0, size(0)),
            },
            Cost::Flatten => {
                let depth = if call.args.is_empty() {
                    1
                } else {
                    literal(1).unwrap_or(u64::MAX)
                };
                allocating(depth as f64, size(0))
            }
            Cost::SelfCompare(at) => {
                let of = size(usize::from(at));
                let item = params.get(usize::from(at));
                let texts = matches!(item, Some(Type::List(item)) if matches!(**item, Type::String | Type::Bytes));
                allocating(if texts { 2.0 + TEXT } else { 2.0 }, of.times(of))
            }
            Cost::Product(factor) => plain(size(0).times(size(1)).scaled(f64::from(factor)).add(one)),
            Cost::Selector => {
                let text = size(1);
                let requirements = text.scaled(0.5).scaled((LIST + STRUCT) as f64);
                plain(Range::fixed(LIST).add(text.scaled(TEXT)).add(requirements))
            }
            Cost::Ip => match params.first() {
                Some(Type::String) => plain(size(0).scaled(TEXT)),
                _ => plain(one),
            },
            Cost::ContainsIp | Cost::ContainsCidr => {
                let bytes = Range { min: 4, max: 16 };
                let mut cost = bytes.add(bytes).scaled(TEXT);
                if function.cost == Cost::ContainsCidr {
                    cost = cost.add(bytes.scaled(TEXT)).add(one);
                }
                if matches!(params.get(1), Some(Type::String)) {
                    cost = cost.add(size(1).scaled(TEXT));
                }
                plain(cost)
            }
            Cost::Validate => plain(size(1).scaled(TEXT).scaled(128.0 * PATTERN)),
        }
    }

    /// How large the items of the first argument can get.
    fn item_size(&self, args: &[(&'d Expr, Estimate<'d>)]) -> Range {
        let path = args.first().and_then(|(_, known)| known.path.clone());
        let declared = path.and_then(|(root, mut steps)| {
            steps.push(Step::Items);
            self.declared(&(root, steps))
        });
        declared.unwrap_or(UNKNOWN)
    }
}

fn field<'o>(object: &'o ObjectType, name: &str) -> Option<&'o Decl> {
    crate::schema::field_of(object, name)
}

/// How long a text can be in which things were replaced.
fn replaced(text: Range, old: Range, new: Range) -> Range {
    let (max_count, max_kept) = if old.min == 0 {
        (text.max.saturating_add(1), text.max)
    } else if new.max <= old.min {
        (0, text.max)
    } else {
        ((text.max as f64 / old.min as f64).ceil() as u64, 0)
    };
    let (min_count, min_kept) = if old.max == 0 {
        (text.min.saturating_add(1), text.min)
    } else if old.max <= new.min {
        (0, text.min)
    } else {
        ((text.min as f64 / old.max as f64).ceil() as u64, 0)
    };
    Range {
        min: min_count.saturating_mul(new.min).saturating_add(min_kept),
        max: max_count.saturating_mul(new.max).saturating_add(max_kept),
    }
}
