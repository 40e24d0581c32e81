//! Environments, and programs made in them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ast::{Expr, Kind};
use crate::checker::Checker;
use crate::context::{Budget, PER_CALL_LIMIT};
use crate::cost::{self, Range};
use crate::error::{CompileError, EvalError};
use crate::eval::{Activation, Evaluator};
use crate::parser;
use crate::schema::{DYN, Decl};
use crate::types::{Fields, ObjectType, Type};
use crate::value::Value;

/// The variables an expression may use, and what they are. Cheap to clone.
#[derive(Clone, Default)]
pub struct Env {
    variables: Arc<BTreeMap<String, Arc<Decl>>>,
    mutation: bool,
    bindings: bool,
}

impl Env {
    pub fn new() -> Env {
        Env::default()
    }

    /// Declares a variable. A name may have points in it: `authorizer.requestResource`.
    pub fn with(mut self, name: &str, decl: Arc<Decl>) -> Env {
        Arc::make_mut(&mut self.variables).insert(name.to_owned(), decl);
        self
    }

    /// Allows `Object{…}`, `Object.spec{…}`, `JSONPatch{…}` and the function that goes with it.
    pub fn for_mutation(mut self) -> Env {
        self.mutation = true;
        self
    }

    /// Allows `cel.bind(name, value, expression)`.
    pub fn with_bindings(mut self) -> Env {
        self.bindings = true;
        self
    }

    pub fn variable(&self, name: &str) -> Option<&Decl> {
        self.variables.get(name).map(|decl| &**decl)
    }

    pub(crate) fn is_mutation(&self) -> bool {
        self.mutation
    }

    pub(crate) fn constructible(&self, name: &str) -> Option<Arc<ObjectType>> {
        if !self.mutation {
            return None;
        }
        let fields = if name == "JSONPatch" {
            let text = ["op", "path", "from"].map(|field| (field.to_owned(), Decl::string()));
            let mut fields = BTreeMap::from(text);
            fields.insert("value".to_owned(), DYN.clone());
            Fields::Known(fields)
        } else if name == "Object" || name.starts_with("Object.") {
            Fields::Lazy(Box::new(|_| Some(DYN.clone())))
        } else {
            return None;
        };
        Some(Arc::new(ObjectType {
            name: name.to_owned(),
            fields,
            constructible: true,
        }))
    }

    /// Parses and checks. The error's text is what upstream puts after `compilation failed: `.
    pub fn compile(&self, source: &str) -> Result<Program, CompileError> {
        let mut expr = parser::parse(source, self.bindings)?;
        let mut checker = Checker::new(self);
        checker.run(&mut expr);
        if !checker.issues.is_empty() {
            return Err(CompileError::new(source, checker.issues));
        }
        Ok(Program {
            expr,
            env: self.clone(),
        })
    }
}

/// An expression that can be evaluated. Compiled once, evaluated often, from any thread.
pub struct Program {
    expr: Expr,
    env: Env,
}

impl Program {
    /// The type of the result; `Type::Dyn` if only evaluation can tell.
    pub fn output(&self) -> &Type {
        &self.expr.ty
    }

    /// Evaluates within the limit of one call and what is left of the budget.
    pub fn eval<'a>(&self, activation: &Activation<'a>, budget: &Budget) -> Result<Value<'a>, EvalError> {
        let mut evaluator = Evaluator::new(activation, PER_CALL_LIMIT);
        let result = evaluator.eval(&self.expr);
        budget.spend(evaluator.context.cost())?;
        result
    }

    /// What an evaluation can cost, given the sizes the variables are declared with. For limits on what may be
    /// written into a definition.
    pub fn cost(&self) -> Range {
        let env = &self.env;
        cost::estimate(&self.expr, &|name| env.variable(name))
    }

    /// How deep an evaluation can nest.
    pub fn height(&self) -> u32 {
        self.expr.height
    }

    /// Whether this field of the variable is read, or its presence asked for, anywhere.
    pub fn selects(&self, variable: &str, field: &str) -> bool {
        let mut found = false;
        visit(&self.expr, &mut |expr| {
            if let Kind::Select(select) = &expr.kind
                && &*select.field == field
                && matches!(&select.operand.kind, Kind::Ident(name) if &**name == variable)
            {
                found = true;
            }
        });
        found
    }

    /// Whether the variable is used anywhere; `oldSelf` makes a rule a transition rule.
    pub fn uses(&self, variable: &str) -> bool {
        uses(&self.expr, variable)
    }
}

fn uses(expr: &Expr, name: &str) -> bool {
    let mut found = false;
    visit(expr, &mut |expr| {
        found |= matches!(&expr.kind, Kind::Ident(ident) if &**ident == name);
    });
    found
}

/// Every part of an expression, the whole first.
fn visit(expr: &Expr, see: &mut dyn FnMut(&Expr)) {
    see(expr);
    match &expr.kind {
        Kind::Literal(_) | Kind::Ident(_) => {}
        Kind::Select(select) => visit(&select.operand, see),
        Kind::Call(call) => call.target.iter().chain(&call.args).for_each(|arg| visit(arg, see)),
        Kind::List(elements) => elements.iter().for_each(|element| visit(&element.value, see)),
        Kind::Map(entries) => entries.iter().for_each(|entry| {
            visit(&entry.key, see);
            visit(&entry.value, see);
        }),
        Kind::Struct(made) => made.fields.iter().for_each(|field| visit(&field.value, see)),
        Kind::Fold(fold) => [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result]
            .into_iter()
            .for_each(|part| visit(part, see)),
    }
}
