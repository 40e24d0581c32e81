//! Macros: calls that stand for a loop or a test, replaced while parsing.

use std::sync::Arc;

use crate::ast::{Element, Expr, Fold, Kind, Literal, Select};
use crate::error::Issue;

/// The accumulator of every loop; no expression can name it.
pub(crate) const ACCU: &str = "@result";
/// What the target of `optMap` is bound to.
pub(crate) const OPTIONAL_INPUT: &str = "@__opt_input__";
const UNUSED: &str = "#unused";

pub(crate) enum Expansion {
    Done(Box<Expr>),
    /// No macro: target and arguments back.
    Not(Expr, Vec<Expr>),
}

pub(crate) fn has(at: u32, args: Vec<Expr>) -> Result<Expr, Issue> {
    let mut args = args.into_iter();
    match args.next().map(|arg| arg.kind) {
        Some(Kind::Select(select)) if !select.test => {
            Ok(Expr::new(at, Kind::Select(Box::new(Select { test: true, ..*select }))))
        }
        _ => Err(Issue::new(at, "invalid argument to has() macro")),
    }
}

fn variable(arg: &Expr) -> Result<Arc<str>, Issue> {
    match &arg.kind {
        Kind::Ident(name) if &**name == ACCU || &**name == "__result__" => {
            Err(Issue::new(arg.at, "iteration variable overwrites accumulator variable"))
        }
        Kind::Ident(name) => Ok(name.clone()),
        _ => Err(Issue::new(arg.at, "argument must be a simple name")),
    }
}

fn flag(at: u32, value: bool) -> Expr {
    Expr::literal(at, Literal::Bool(value))
}

fn list(at: u32, items: Vec<Expr>) -> Expr {
    let items = items
        .into_iter()
        .map(|value| Element { value, optional: false })
        .collect();
    Expr::new(at, Kind::List(items))
}

struct Loop {
    at: u32,
    range: Expr,
    var: Arc<str>,
    var2: Option<Arc<str>>,
}

impl Loop {
    fn fold(self, init: Expr, condition: Expr, step: Expr, result: Expr) -> Expr {
        Expr::new(
            self.at,
            Kind::Fold(Box::new(Fold {
                range: self.range,
                var: self.var,
                var2: self.var2,
                accu: ACCU.into(),
                init,
                condition,
                step,
                result,
                is_bind: false,
            })),
        )
    }

    fn accu(&self) -> Expr {
        Expr::ident(self.at, ACCU)
    }

    fn all(self, predicate: Expr) -> Expr {
        let at = self.at;
        let condition = Expr::call(at, "@not_strictly_false", vec![self.accu()]);
        let step = Expr::call(at, "_&&_", vec![self.accu(), predicate]);
        let result = self.accu();
        self.fold(flag(at, true), condition, step, result)
    }

    fn exists(self, predicate: Expr) -> Expr {
        let at = self.at;
        let not = Expr::call(at, "!_", vec![self.accu()]);
        let condition = Expr::call(at, "@not_strictly_false", vec![not]);
        let step = Expr::call(at, "_||_", vec![self.accu(), predicate]);
        let result = self.accu();
        self.fold(flag(at, false), condition, step, result)
    }

    fn exists_one(self, predicate: Expr) -> Expr {
        let at = self.at;
        let one = || Expr::literal(at, Literal::Int(1));
        let more = Expr::call(at, "_+_", vec![self.accu(), one()]);
        let step = Expr::call(at, "_?_:_", vec![predicate, more, self.accu()]);
        let result = Expr::call(at, "_==_", vec![self.accu(), one()]);
        self.fold(Expr::literal(at, Literal::Int(0)), flag(at, true), step, result)
    }

    /// Steps only where `filter` holds.
    fn collect(self, init: Expr, filter: Option<Expr>, step: Expr) -> Expr {
        let at = self.at;
        let step = match filter {
            Some(filter) => Expr::call(at, "_?_:_", vec![filter, step, self.accu()]),
            None => step,
        };
        let result = self.accu();
        self.fold(init, flag(at, true), step, result)
    }

    fn list(self, filter: Option<Expr>, item: Expr) -> Expr {
        let at = self.at;
        let step = Expr::call(at, "_+_", vec![self.accu(), list(at, vec![item])]);
        self.collect(list(at, Vec::new()), filter, step)
    }

    fn map(self, filter: Option<Expr>, mut entry: Vec<Expr>) -> Expr {
        let at = self.at;
        entry.insert(0, self.accu());
        let step = Expr::call(at, "cel.@mapInsert", entry);
        self.collect(Expr::new(at, Kind::Map(Vec::new())), filter, step)
    }
}

fn bind(at: u32, var: Arc<str>, value: Expr, result: Expr) -> Expr {
    Expr::new(
        at,
        Kind::Fold(Box::new(Fold {
            range: list(at, Vec::new()),
            var: UNUSED.into(),
            var2: None,
            condition: flag(at, false),
            step: Expr::ident(at, &var),
            accu: var,
            init: value,
            result,
            is_bind: true,
        })),
    )
}

/// A call with a target, if it is a macro.
pub(crate) fn member(at: u32, target: Expr, name: &str, args: Vec<Expr>, bindings: bool) -> Result<Expansion, Issue> {
    let on_cel = matches!(&target.kind, Kind::Ident(name) if &**name == "cel");
    if bindings && on_cel && name == "bind" && args.len() == 3 {
        let mut args = args.into_iter();
        if let (Some(var), Some(value), Some(result)) = (args.next(), args.next(), args.next()) {
            let var = variable(&var)?;
            return Ok(Expansion::Done(Box::new(bind(at, var, value, result))));
        }
        return Err(Issue::new(at, "a macro has too few arguments"));
    }
    let is_macro = matches!(
        (name, args.len()),
        ("all" | "exists" | "exists_one" | "existsOne" | "filter", 2)
            | ("all" | "exists" | "exists_one" | "existsOne", 3)
            | ("map", 2 | 3)
            | ("transformList" | "transformMap" | "transformMapEntry", 3 | 4)
            | ("optMap" | "optFlatMap" | "sortBy", 2)
    );
    if !is_macro {
        return Ok(Expansion::Not(target, args));
    }
    let count = args.len();
    let mut args = args.into_iter();
    let mut next = || {
        args.next()
            .ok_or_else(|| Issue::new(at, "a macro has too few arguments"))
    };
    let first = next()?;
    let var = variable(&first)?;
    let transforms = name.starts_with("transform");
    let two = transforms || (count == 3 && name != "map");
    let mut var2 = None;
    if two {
        let second = next()?;
        let name = variable(&second)?;
        if name == var {
            return Err(Issue::new(second.at, format!("duplicate variable name: {name}")));
        }
        var2 = Some(name);
    }
    if matches!(name, "optMap" | "optFlatMap") {
        return optional(at, target, name == "optMap", var, next()?);
    }
    if name == "sortBy" {
        let input: Arc<str> = "@__sortBy_input__".into();
        let range = Expr::ident(at, &input);
        let keys = Loop {
            at,
            range: range.clone(),
            var,
            var2: None,
        }
        .list(None, next()?);
        let sorted = Expr::member(at, range, "@sortByAssociatedKeys", vec![keys]);
        return Ok(Expansion::Done(Box::new(bind(at, input, target, sorted))));
    }
    let var_ident = Expr::ident(at, &var);
    let target = Loop {
        at,
        range: target,
        var,
        var2,
    };
    let filtered = matches!((name, count), ("map", 3)) || (transforms && count == 4);
    let filter = if filtered { Some(next()?) } else { None };
    let last = next()?;
    let expr = match name {
        "all" => target.all(last),
        "exists" => target.exists(last),
        "exists_one" | "existsOne" => target.exists_one(last),
        "filter" => target.list(Some(last), var_ident),
        "map" | "transformList" => target.list(filter, last),
        "transformMap" => target.map(filter, vec![var_ident, last]),
        _ => target.map(filter, vec![last]),
    };
    Ok(Expansion::Done(Box::new(expr)))
}

/// `a.optMap(v, e)`: the target is bound once, so that it is not evaluated twice.
fn optional(at: u32, target: Expr, wrap: bool, var: Arc<str>, body: Expr) -> Result<Expansion, Issue> {
    let input: Arc<str> = OPTIONAL_INPUT.into();
    let value = Expr::member(at, Expr::ident(at, &input), "value", Vec::new());
    let mapped = bind(at, var, value, body);
    let mapped = if wrap {
        Expr::call(at, "optional.of", vec![mapped])
    } else {
        mapped
    };
    let has = Expr::member(at, Expr::ident(at, &input), "hasValue", Vec::new());
    let none = Expr::call(at, "optional.none", Vec::new());
    let chosen = Expr::call(at, "_?_:_", vec![has, mapped, none]);
    Ok(Expansion::Done(Box::new(bind(at, input, target, chosen))))
}
