//! The evaluator: walks the tree, counting what every step costs.

use std::rc::Rc;

use crate::ast::{Call, Element, Expr, Fold, Kind, Literal, Select};
use crate::checker::type_named;
use crate::context::Context;
use crate::cost;
use crate::error::EvalError;
use crate::functions::Outcome;
use crate::library::standard;
use crate::macros::ACCU;
use crate::types::Type;
use crate::value::{Key, List, Made, Map, Text, Value};

/// The variables of an evaluation.
#[derive(Clone, Default)]
pub struct Activation<'a> {
    variables: Vec<(&'a str, Value<'a>)>,
}

impl<'a> Activation<'a> {
    pub fn new() -> Self {
        Self::default()
    }
    /// Sets a variable; a later one of the same name wins.
    pub fn set(&mut self, name: &'a str, value: Value<'a>) -> &mut Self {
        self.variables.push((name, value));
        self
    }
    pub fn with(mut self, name: &'a str, value: Value<'a>) -> Self {
        self.set(name, value);
        self
    }
    pub(crate) fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.variables
            .iter()
            .rev()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }
}

pub(crate) struct Evaluator<'p, 'a> {
    pub activation: &'p Activation<'a>,
    pub context: Context<'p>,
    scopes: Vec<(&'p str, Value<'a>)>,
}

impl<'p, 'a> Evaluator<'p, 'a> {
    pub fn new(activation: &'p Activation<'a>, limit: u64) -> Self {
        Evaluator {
            activation,
            context: Context::new(limit),
            scopes: Vec::new(),
        }
    }

    pub fn eval(&mut self, expr: &'p Expr) -> Outcome<'a> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(match literal {
                Literal::Null => Value::Null,
                Literal::Bool(value) => Value::Bool(*value),
                Literal::Int(value) => Value::Int(*value),
                Literal::Uint(value) => Value::Uint(*value),
                Literal::Double(value) => Value::Double(*value),
                Literal::String(text) => Value::String(Text::Own(text.clone())),
                Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
            }),
            Kind::Ident(name) => {
                self.context.charge(1)?;
                self.variable(name)
            }
            Kind::Select(select) => self.select(select),
            Kind::Call(call) => self.call(call),
            Kind::List(elements) => {
                let items = self.items(elements)?;
                self.context.charge(cost::LIST)?;
                Ok(Value::list(items))
            }
            Kind::Map(entries) => {
                let mut map = std::collections::BTreeMap::new();
                for entry in entries {
                    let key = self.eval(&entry.key)?;
                    let Some(value) = self.element(&entry.value, entry.optional)? else {
                        continue;
                    };
                    if Key::of(&key).is_some_and(|key| map.contains_key(&key)) {
                        return Err(EvalError::Failed(format!(
                            "Failed with repeated key {}",
                            standard::shown(&key)
                        )));
                    }
                    standard::insert(&mut map, &key, &value)?;
                }
                self.context.charge(cost::MAP)?;
                Ok(Value::Map(Map::Own(Rc::new(map))))
            }
            Kind::Struct(made) => {
                let mut fields = Vec::with_capacity(made.fields.len());
                for field in &made.fields {
                    if let Some(value) = self.element(&field.value, field.optional)? {
                        fields.push((field.name.clone(), value));
                    }
                }
                self.context.charge(cost::STRUCT)?;
                Ok(Value::Made(Rc::new(Made {
                    name: made.name.clone(),
                    fields,
                })))
            }
            Kind::Fold(fold) => self.fold(fold),
        }
    }

    fn variable(&self, name: &str) -> Outcome<'a> {
        let local = self.scopes.iter().rev().find(|(known, _)| *known == name);
        if let Some((_, value)) = local {
            return Ok(value.clone());
        }
        if let Some(value) = self.activation.get(name) {
            return Ok(value.clone());
        }
        match type_named(name) {
            Some(ty) => Ok(Value::Type(ty)),
            None => Err(EvalError::Failed(format!("no such attribute(s): {name}"))),
        }
    }

    fn items(&mut self, elements: &'p [Element]) -> Result<Vec<Value<'a>>, EvalError> {
        let mut items = Vec::with_capacity(elements.len());
        for element in elements {
            items.extend(self.element(&element.value, element.optional)?);
        }
        Ok(items)
    }

    /// An element, unless it is optional and absent.
    fn element(&mut self, expr: &'p Expr, optional: bool) -> Result<Option<Value<'a>>, EvalError> {
        let value = self.eval(expr)?;
        if !optional {
            return Ok(Some(value));
        }
        match value {
            Value::Optional(value) => Ok(value.map(|value| (*value).clone())),
            _ => Err(EvalError::no_overload()),
        }
    }

    fn select(&mut self, select: &'p Select) -> Outcome<'a> {
        let operand = self.eval(&select.operand)?;
        let (target, is_optional) = match &operand {
            Value::Optional(None) if select.test => return Ok(Value::Bool(false)),
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(value)) => (&**value, true),
            other => (other, false),
        };
        if select.test {
            return Ok(Value::Bool(target.select(&select.field)?.is_some()));
        }
        self.context.charge(1)?;
        let found = target.select(&select.field)?;
        if is_optional || select.optional {
            return Ok(Value::Optional(found.map(Rc::new)));
        }
        found.ok_or_else(|| EvalError::no_key(&select.field))
    }

    fn call(&mut self, call: &'p Call) -> Outcome<'a> {
        let Some(function) = call.resolved else {
            return Err(EvalError::no_overload());
        };
        match function.name {
            "_&&_" => return self.logic(&call.args, false),
            "_||_" => return self.logic(&call.args, true),
            "_?_:_" => {
                let [condition, yes, no] = &call.args[..] else {
                    return Err(EvalError::no_overload());
                };
                return match self.eval(condition)? {
                    Value::Bool(true) => self.eval(yes),
                    Value::Bool(false) => self.eval(no),
                    _ => Err(EvalError::no_overload()),
                };
            }
            "@not_strictly_false" => {
                // Errors do not end a loop: a later item may decide it.
                let arg = call.args.first().ok_or_else(EvalError::no_overload)?;
                let value = match self.eval(arg) {
                    Err(error) if error.is_final() => return Err(error),
                    value => value,
                };
                self.context.charge(1)?;
                return Ok(Value::Bool(!matches!(value, Ok(Value::Bool(false)))));
            }
            "_+_" => {
                if let [
                    Expr {
                        kind: Kind::Ident(name),
                        ..
                    },
                    Expr {
                        kind: Kind::List(elements),
                        ..
                    },
                ] = &call.args[..]
                    && &**name == ACCU
                {
                    return self.append(elements);
                }
            }
            "cel.@mapInsert" => {
                if let [
                    Expr {
                        kind: Kind::Ident(name),
                        ..
                    },
                    key,
                    value,
                ] = &call.args[..]
                    && &**name == ACCU
                {
                    return self.insert(key, value);
                }
            }
            _ => {}
        }
        let mut args = Vec::with_capacity(call.args.len() + 1);
        for arg in call.target.iter().chain(&call.args) {
            args.push(self.eval(arg)?);
        }
        self.context.pattern.set(call.pattern.as_ref());
        let result = (function.native)(&self.context, &args);
        self.context.pattern.set(None);
        let result = result?;
        self.context.charge(cost::of_call(function, &args, &result))?;
        Ok(result)
    }

    /// `&&` and `||`: one decisive operand outweighs errors of the others.
    fn logic(&mut self, args: &'p [Expr], decisive: bool) -> Outcome<'a> {
        let mut failed = None;
        for arg in args {
            match self.eval(arg) {
                Ok(Value::Bool(value)) if value == decisive => return Ok(Value::Bool(decisive)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = failed.or(Some(EvalError::no_overload())),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(Value::Bool(!decisive)),
        }
    }

    /// Takes the accumulator, so that it can be changed in place.
    fn take_accu(&mut self) -> Option<Value<'a>> {
        let slot = self.scopes.iter_mut().rev().find(|(name, _)| *name == ACCU)?;
        Some(std::mem::replace(&mut slot.1, Value::Null))
    }

    /// `accu + [x]`, without copying what is there.
    fn append(&mut self, elements: &'p [Element]) -> Outcome<'a> {
        let items = self.items(elements)?;
        self.context.charge(2 + cost::LIST)?;
        match self.take_accu() {
            Some(Value::List(List::Own(mut list))) => {
                let list_ref = Rc::make_mut(&mut list);
                list_ref.extend(items);
                Ok(Value::List(List::Own(list)))
            }
            _ => Err(EvalError::no_overload()),
        }
    }

    fn insert(&mut self, key: &'p Expr, value: &'p Expr) -> Outcome<'a> {
        let (key, value) = (self.eval(key)?, self.eval(value)?);
        self.context.charge(2)?;
        match self.take_accu() {
            Some(Value::Map(Map::Own(mut map))) => {
                standard::insert(Rc::make_mut(&mut map), &key, &value)?;
                Ok(Value::Map(Map::Own(map)))
            }
            _ => Err(EvalError::no_overload()),
        }
    }

    fn fold(&mut self, fold: &'p Fold) -> Outcome<'a> {
        let init = self.eval(&fold.init)?;
        let depth = self.scopes.len();
        if fold.is_bind {
            self.context.charge(cost::LIST)?;
            self.scopes.push((&fold.accu, init));
            let result = self.eval(&fold.result);
            self.scopes.truncate(depth);
            return result;
        }
        let range = self.eval(&fold.range)?;
        self.scopes.push((&fold.accu, init));
        let result = self.iterate(fold, &range, depth);
        self.scopes.truncate(depth + 1);
        let result = result.and_then(|()| self.eval(&fold.result));
        self.scopes.truncate(depth);
        result
    }

    fn iterate(&mut self, fold: &'p Fold, range: &Value<'a>, depth: usize) -> Result<(), EvalError> {
        // An error of a step is remembered: what comes after may make it irrelevant.
        let mut failed = None;
        match range {
            Value::List(list) => {
                for at in 0..list.len() {
                    let Some(item) = list.get(at) else { break };
                    let first = if fold.var2.is_some() {
                        Value::Int(at as i64)
                    } else {
                        item.clone()
                    };
                    if !self.step(fold, depth, first, || item, &mut failed)? {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for key in map.keys() {
                    let value = || map.get(&key).unwrap_or(Value::Null);
                    if !self.step(fold, depth, key.value(), value, &mut failed)? {
                        break;
                    }
                }
            }
            _ => return Err(EvalError::no_overload()),
        }
        failed.map_or(Ok(()), Err)
    }

    /// One round; whether there shall be another.
    fn step(
        &mut self,
        fold: &'p Fold,
        depth: usize,
        first: Value<'a>,
        second: impl FnOnce() -> Value<'a>,
        failed: &mut Option<EvalError>,
    ) -> Result<bool, EvalError> {
        self.context.work(1)?;
        self.scopes.push((&fold.var, first));
        if let Some(var2) = &fold.var2 {
            self.scopes.push((var2, second()));
        }
        let go_on = match self.eval(&fold.condition)? {
            Value::Bool(go_on) => go_on,
            _ => true,
        };
        if go_on {
            let is_logic = matches!(&fold.init.kind, Kind::Literal(Literal::Bool(_)));
            match self.eval(&fold.step) {
                Ok(value) => {
                    // A decisive value makes earlier errors irrelevant.
                    if is_logic && failed.is_some() {
                        let decisive = matches!(&fold.init.kind, Kind::Literal(Literal::Bool(false)));
                        if value.as_bool() == Some(decisive) {
                            *failed = None;
                        }
                    }
                    if let Some(slot) = self.scopes.get_mut(depth) {
                        slot.1 = value;
                    }
                }
                Err(error) if error.is_final() || !is_logic => return Err(error),
                Err(error) => *failed = Some(failed.take().unwrap_or(error)),
            }
        }
        self.scopes.truncate(depth + 1);
        Ok(go_on)
    }
}

/// The name of a type at run time, without its parameters.
pub(crate) fn type_name(ty: &Type) -> String {
    match ty {
        Type::List(_) => "list".to_owned(),
        Type::Map(..) => "map".to_owned(),
        Type::Optional(_) => "optional_type".to_owned(),
        Type::Type(_) => "type".to_owned(),
        Type::Null => "null_type".to_owned(),
        Type::Timestamp => "google.protobuf.Timestamp".to_owned(),
        Type::Duration => "google.protobuf.Duration".to_owned(),
        other => other.to_string(),
    }
}
