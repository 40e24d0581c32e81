//! The type checker: resolves names and overloads, and complains as cel-go does.

use std::sync::Arc;

use crate::ast::{Call, Expr, Fold, Kind, Literal, Select, StructExpr};
use crate::env::Env;
use crate::error::Issue;
use crate::functions::{self, Function};
use crate::types::{Bindings, Type, most_general};

pub(crate) struct Checker<'e> {
    env: &'e Env,
    scopes: Vec<(Arc<str>, Type)>,
    bindings: Bindings,
    /// How many calls of `format` are around: their lists may mix types.
    formatting: u32,
    pub issues: Vec<Issue>,
}

impl<'e> Checker<'e> {
    pub fn new(env: &'e Env) -> Self {
        Checker {
            env,
            scopes: Vec::new(),
            bindings: Bindings::default(),
            formatting: 0,
            issues: Vec::new(),
        }
    }

    /// Checks, and fills in types, functions and patterns.
    pub fn run(&mut self, expr: &mut Expr) {
        self.check(expr);
        self.finish(expr);
    }

    fn complain(&mut self, at: u32, message: String) {
        self.issues.push(Issue::new(at, message));
    }

    fn mismatch(&mut self, at: u32, expected: &Type, found: &Type) {
        let show = |ty: &Type| self.bindings.substitute(ty, true);
        let message = format!("expected type '{}' but found '{}'", show(expected), show(found));
        self.complain(at, message);
    }

    fn undeclared(&mut self, at: u32, name: &str) {
        self.complain(at, format!("undeclared reference to '{name}' (in container '')"));
    }

    fn lookup(&self, name: &str) -> Option<Type> {
        let local = self.scopes.iter().rev().find(|(known, _)| **known == *name);
        local
            .map(|(_, ty)| ty.clone())
            .or_else(|| self.env.variable(name).map(|decl| decl.ty.clone()))
            .or_else(|| type_named(name).map(|ty| Type::Type(Arc::new(ty))))
    }

    fn check(&mut self, expr: &mut Expr) {
        let at = expr.at;
        let mut replacement = None;
        let ty = match &mut expr.kind {
            Kind::Literal(literal) => match literal {
                Literal::Null => Type::Null,
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) => Type::Int,
                Literal::Uint(_) => Type::Uint,
                Literal::Double(_) => Type::Double,
                Literal::String(_) => Type::String,
                Literal::Bytes(_) => Type::Bytes,
            },
            Kind::Ident(name) => match self.lookup(name) {
                Some(ty) => ty,
                None => {
                    let name = name.clone();
                    self.undeclared(at, &name);
                    Type::Error
                }
            },
            Kind::Select(select) => {
                let whole = if select.test || select.optional {
                    None
                } else {
                    qualified(select)
                };
                match whole.and_then(|name| self.lookup(&name).map(|ty| (name, ty))) {
                    Some((name, ty)) if !self.is_local(&name) => {
                        replacement = Some(Kind::Ident(name.into()));
                        ty
                    }
                    _ => self.select(at, select),
                }
            }
            Kind::Call(call) => self.call(at, call),
            Kind::List(elements) => {
                let mut item: Option<Type> = None;
                for element in elements {
                    self.check(&mut element.value);
                    let mut found = element.value.ty.clone();
                    if element.optional {
                        found = self.unwrapped(element.value.at, found);
                    }
                    item = Some(self.join(element.value.at, item, found));
                }
                Type::list(item.unwrap_or_else(|| self.bindings.fresh()))
            }
            Kind::Map(entries) => {
                let (mut key, mut value): (Option<Type>, Option<Type>) = (None, None);
                for entry in entries {
                    self.check(&mut entry.key);
                    key = Some(self.join(entry.key.at, key, entry.key.ty.clone()));
                    self.check(&mut entry.value);
                    let mut found = entry.value.ty.clone();
                    if entry.optional {
                        found = self.unwrapped(entry.value.at, found);
                    }
                    value = Some(self.join(entry.value.at, value, found));
                }
                let key = key.unwrap_or_else(|| self.bindings.fresh());
                Type::map(key, value.unwrap_or_else(|| self.bindings.fresh()))
            }
            Kind::Struct(made) => self.made(at, made),
            Kind::Fold(fold) => self.fold(fold),
        };
        if let Some(kind) = replacement {
            expr.kind = kind;
        }
        expr.ty = ty;
    }

    fn is_local(&self, qualified: &str) -> bool {
        let first = qualified.split('.').next().unwrap_or_default();
        self.scopes.iter().any(|(name, _)| **name == *first)
    }

    /// An element with `?` must be an optional value.
    fn unwrapped(&mut self, at: u32, found: Type) -> Type {
        let found = self.bindings.substitute(&found, false);
        match &found {
            Type::Optional(of) => (**of).clone(),
            other if other.is_dyn() => found,
            other => {
                self.mismatch(at, &Type::optional(other.clone()), other);
                found
            }
        }
    }

    fn join(&mut self, at: u32, before: Option<Type>, found: Type) -> Type {
        let Some(before) = before else { return found };
        if self.bindings.assign(&before, &found) {
            return most_general(&before, &found);
        }
        if self.formatting > 0 {
            return Type::Dyn;
        }
        self.mismatch(at, &before, &found);
        Type::Error
    }

    fn select(&mut self, at: u32, select: &mut Select) -> Type {
        self.check(&mut select.operand);
        let operand = self.bindings.substitute(&select.operand.ty, false);
        let (target, is_optional) = operand.unwrap_optional();
        let result = match target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(object) => match object.field(&select.field) {
                Some(decl) => decl.ty.clone(),
                None => {
                    let field = select.field.clone();
                    self.complain(at, format!("undefined field '{field}'"));
                    Type::Error
                }
            },
            Type::Param(_) => {
                let target = target.clone();
                self.bindings.assign(&Type::Dyn, &target);
                Type::Dyn
            }
            other if other.is_dyn() => Type::Dyn,
            other => {
                let message = format!("type '{other}' does not support field selection");
                self.complain(at, message);
                Type::Dyn
            }
        };
        if select.test {
            return Type::Bool;
        }
        let result = if is_optional || select.optional {
            Type::optional(result)
        } else {
            result
        };
        self.bindings.substitute(&result, false)
    }

    fn function(&self, name: &str) -> Option<&'static Function> {
        functions::find(name).filter(|function| !function.mutation_only || self.env.is_mutation())
    }

    fn call(&mut self, at: u32, call: &mut Call) -> Type {
        let formats = u32::from(&*call.function == "format");
        self.formatting += formats;
        for arg in &mut call.args {
            self.check(arg);
        }
        self.formatting -= formats;
        // `a.b.c(…)` is a function of that whole name, or a member of what `a.b` is.
        if let Some(target) = &call.target
            && let Some(prefix) = target.qualified()
        {
            let whole = format!("{prefix}.{}", call.function);
            if let Some(function) = self.function(&whole) {
                call.function = whole.into();
                call.target = None;
                return self.overload(at, function, call);
            }
        }
        if let Some(target) = &mut call.target {
            self.check(target);
        }
        match self.function(&call.function) {
            Some(function) => self.overload(at, function, call),
            None => {
                let name = call.function.clone();
                self.undeclared(at, &name);
                Type::Error
            }
        }
    }

    fn overload(&mut self, at: u32, function: &'static Function, call: &mut Call) -> Type {
        let member = call.target.is_some();
        let args: Vec<Type> = call.target.iter().chain(&call.args).map(|arg| arg.ty.clone()).collect();
        call.resolved = Some(function);
        if matches!(function.name, "_&&_" | "_||_") {
            call.overloads.push(0);
            let mut ty = Type::Bool;
            for arg in &call.args {
                if !self.bindings.assign(&arg.ty, &Type::Bool) {
                    self.mismatch(arg.at, &Type::Bool, &arg.ty);
                    ty = Type::Error;
                }
            }
            return ty;
        }
        let mut result: Option<Type> = None;
        for (index, overload) in function.overloads.iter().enumerate() {
            if overload.member != member || overload.params.len() != args.len() {
                continue;
            }
            let (params, returns) = overload.instantiate(&mut self.bindings);
            if !self.bindings.assign_all(args.iter().zip(&params)) {
                continue;
            }
            call.overloads.push(index);
            let returns = self.bindings.substitute(&returns, false);
            result = Some(match result {
                None => returns,
                Some(known) if known.is_dyn() || known == returns => known,
                Some(_) => Type::Dyn,
            });
        }
        let Some(result) = result else {
            let args: Vec<String> = args
                .iter()
                .map(|arg| self.bindings.substitute(arg, true).to_string())
                .collect();
            let signature = match args.split_first() {
                Some((target, rest)) if member => format!("{target}.({})", rest.join(", ")),
                _ => format!("({})", args.join(", ")),
            };
            self.complain(
                at,
                format!(
                    "found no matching overload for '{}' applied to '{signature}'",
                    function.name
                ),
            );
            return Type::Error;
        };
        self.literals(function.name, call);
        result
    }

    /// Literals that can be read now must be right: patterns, spans and points of time.
    fn literals(&mut self, name: &str, call: &mut Call) {
        let literal = |arg: Option<&Expr>| match arg.map(|arg| (&arg.kind, arg.at)) {
            Some((Kind::Literal(Literal::String(text)), at)) => Some((text.clone(), at)),
            _ => None,
        };
        match name {
            "matches" | "find" | "findAll" => {
                let at = if call.target.is_some() { 0 } else { 1 };
                if let Some((text, at)) = literal(call.args.get(at)) {
                    match crate::pattern::compile(&text) {
                        Ok(pattern) => call.pattern = Some(pattern),
                        // Only `matches` is looked at in advance upstream; the others fail when they run.
                        Err(_) if name == "matches" => self.complain(at, "invalid matches argument".to_owned()),
                        Err(_) => {}
                    }
                }
            }
            "duration" => {
                if let Some((text, at)) = literal(call.args.first())
                    && crate::time::parse_duration(&text).is_none()
                {
                    self.complain(at, "invalid duration argument".to_owned());
                }
            }
            "timestamp" => {
                if let Some((text, at)) = literal(call.args.first())
                    && crate::time::parse_timestamp(&text).is_none()
                {
                    self.complain(at, "invalid timestamp argument".to_owned());
                }
            }
            _ => {}
        }
    }

    fn made(&mut self, at: u32, made: &mut StructExpr) -> Type {
        let Some(object) = self.env.constructible(&made.name) else {
            match self.lookup(&made.name) {
                None => self.undeclared(at, &made.name),
                Some(Type::Type(of)) => self.complain(at, format!("'{of}' is not a message type")),
                Some(other) => self.complain(at, format!("'{other}' is not a type")),
            }
            for field in &mut made.fields {
                self.check(&mut field.value);
            }
            return Type::Error;
        };
        for field in &mut made.fields {
            self.check(&mut field.value);
            let mut found = field.value.ty.clone();
            if field.optional {
                found = self.unwrapped(field.value.at, found);
            }
            match object.field(&field.name) {
                None => self.complain(field.at, format!("undefined field '{}'", field.name)),
                Some(decl) => {
                    if !self.bindings.assign(&decl.ty, &found) {
                        let found = self.bindings.substitute(&found, true);
                        self.complain(
                            field.at,
                            format!(
                                "expected type of field '{}' is '{}' but provided type is '{found}'",
                                field.name, decl.ty
                            ),
                        );
                    }
                }
            }
        }
        Type::Object(object)
    }

    fn fold(&mut self, fold: &mut Fold) -> Type {
        self.check(&mut fold.range);
        self.check(&mut fold.init);
        let range = self.bindings.substitute(&fold.range.ty, false);
        let (first, second) = match &range {
            Type::List(item) if fold.var2.is_some() => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.bindings.assign(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.complain(fold.range.at, message);
                (Type::Error, Type::Error)
            }
        };
        let accu = fold.init.ty.clone();
        self.scopes.push((fold.accu.clone(), accu.clone()));
        let inner = self.scopes.len();
        self.scopes.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.scopes.push((var2.clone(), second));
        }
        self.check(&mut fold.condition);
        self.assert(&fold.condition, &Type::Bool);
        self.check(&mut fold.step);
        self.assert(&fold.step, &accu);
        self.scopes.truncate(inner);
        self.check(&mut fold.result);
        self.scopes.truncate(inner - 1);
        self.bindings.substitute(&fold.result.ty, false)
    }

    fn assert(&mut self, expr: &Expr, wanted: &Type) {
        if !self.bindings.assign(wanted, &expr.ty) {
            self.mismatch(expr.at, wanted, &expr.ty);
        }
    }

    /// Type parameters become what they stand for, or dyn.
    fn finish(&self, expr: &mut Expr) {
        expr.ty = self.bindings.substitute(&expr.ty, true);
        match &mut expr.kind {
            Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select(select) => self.finish(&mut select.operand),
            Kind::Call(call) => call
                .target
                .iter_mut()
                .chain(&mut call.args)
                .for_each(|arg| self.finish(arg)),
            Kind::List(elements) => elements.iter_mut().for_each(|element| self.finish(&mut element.value)),
            Kind::Map(entries) => entries.iter_mut().for_each(|entry| {
                self.finish(&mut entry.key);
                self.finish(&mut entry.value);
            }),
            Kind::Struct(made) => made.fields.iter_mut().for_each(|field| self.finish(&mut field.value)),
            Kind::Fold(fold) => [
                &mut fold.range,
                &mut fold.init,
                &mut fold.condition,
                &mut fold.step,
                &mut fold.result,
            ]
            .into_iter()
            .for_each(|part| self.finish(part)),
        }
    }
}

fn qualified(select: &Select) -> Option<String> {
    let mut name = select.operand.qualified()?;
    name.push('.');
    name.push_str(&select.field);
    Some(name)
}

/// Types that have a name in expressions.
pub(crate) fn type_named(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "double" => Type::Double,
        "google.protobuf.Duration" => Type::Duration,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "int" => Type::Int,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "null_type" => Type::Null,
        "string" => Type::String,
        "type" => Type::Type(Arc::new(Type::Dyn)),
        "uint" => Type::Uint,
        "optional_type" => Type::optional(Type::Dyn),
        "kubernetes.Quantity" => Type::Opaque("kubernetes.Quantity"),
        "kubernetes.URL" => Type::Opaque("kubernetes.URL"),
        "kubernetes.Semver" => Type::Opaque("kubernetes.Semver"),
        "net.IP" => Type::Opaque("net.IP"),
        "net.CIDR" => Type::Opaque("net.CIDR"),
        _ => return None,
    })
}
