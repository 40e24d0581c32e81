//! The tree of an expression. Macros are gone from it: they are comprehensions and calls.

use std::sync::Arc;

use crate::functions::Function;
use crate::types::Type;

#[derive(Clone, Debug)]
pub(crate) struct Expr {
    /// Where it is, in characters from the beginning.
    pub at: u32,
    /// The height of the tree below, at least 1.
    pub height: u32,
    pub kind: Kind,
    /// Filled in by the checker.
    pub ty: Type,
}

#[derive(Clone, Debug)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Literal(Literal),
    Ident(Arc<str>),
    Select(Box<Select>),
    Call(Box<Call>),
    List(Vec<Element>),
    Map(Vec<MapEntry>),
    Struct(Box<StructExpr>),
    Fold(Box<Fold>),
}

#[derive(Clone, Debug)]
pub(crate) struct Select {
    pub operand: Expr,
    pub field: Arc<str>,
    /// `has(a.b)`.
    pub test: bool,
    /// `a.?b`.
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub function: Arc<str>,
    pub target: Option<Expr>,
    pub args: Vec<Expr>,
    /// Filled in by the checker: what to run, and which of its overloads can apply.
    pub resolved: Option<&'static Function>,
    pub overloads: Vec<usize>,
    /// A pattern that is written in the expression, compiled once.
    pub pattern: Option<regex::Regex>,
}

impl Call {
    pub fn new(function: &str, target: Option<Expr>, args: Vec<Expr>) -> Call {
        Call {
            function: function.into(),
            target,
            args,
            resolved: None,
            overloads: Vec::new(),
            pattern: None,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Element {
    pub value: Expr,
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct MapEntry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct StructExpr {
    pub name: Arc<str>,
    pub fields: Vec<StructField>,
}

#[derive(Clone, Debug)]
pub(crate) struct StructField {
    pub at: u32,
    pub name: Arc<str>,
    pub value: Expr,
    pub optional: bool,
}

/// A loop over a range that carries an accumulator.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    pub range: Expr,
    pub var: Arc<str>,
    pub var2: Option<Arc<str>>,
    pub accu: Arc<str>,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
    /// A variable given a value, no loop at all.
    pub is_bind: bool,
}

impl Expr {
    pub fn new(at: u32, kind: Kind) -> Expr {
        let height = 1 + match &kind {
            Kind::Literal(_) | Kind::Ident(_) => 0,
            Kind::Select(select) => select.operand.height,
            Kind::Call(call) => call
                .target
                .iter()
                .chain(&call.args)
                .map(|arg| arg.height)
                .max()
                .unwrap_or(0),
            Kind::List(elements) => elements.iter().map(|element| element.value.height).max().unwrap_or(0),
            Kind::Map(entries) => entries
                .iter()
                .map(|entry| entry.key.height.max(entry.value.height))
                .max()
                .unwrap_or(0),
            Kind::Struct(made) => made.fields.iter().map(|field| field.value.height).max().unwrap_or(0),
            Kind::Fold(fold) => [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result]
                .iter()
                .map(|part| part.height)
                .max()
                .unwrap_or(0),
        };
        Expr {
            at,
            height,
            kind,
            ty: Type::Dyn,
        }
    }

    pub fn ident(at: u32, name: &str) -> Expr {
        Expr::new(at, Kind::Ident(name.into()))
    }
    pub fn literal(at: u32, literal: Literal) -> Expr {
        Expr::new(at, Kind::Literal(literal))
    }
    pub fn call(at: u32, function: &str, args: Vec<Expr>) -> Expr {
        Expr::new(at, Kind::Call(Box::new(Call::new(function, None, args))))
    }
    pub fn member(at: u32, target: Expr, function: &str, args: Vec<Expr>) -> Expr {
        Expr::new(at, Kind::Call(Box::new(Call::new(function, Some(target), args))))
    }

    /// `a.b.c` as one name, if it is nothing but names.
    pub fn qualified(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.to_string()),
            Kind::Select(select) if !select.test && !select.optional => {
                let mut name = select.operand.qualified()?;
                name.push('.');
                name.push_str(&select.field);
                Some(name)
            }
            _ => None,
        }
    }
}
