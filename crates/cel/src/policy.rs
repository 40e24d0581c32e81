//! The expressions of admission policies and match conditions: what they may use, what they must give, and the
//! variables that are worked out when they are first asked for.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};

use crate::context::Budget;
use crate::env::{Env, Program};
use crate::error::EvalError;
use crate::eval::{Activation, type_name};
use crate::schema::{DYN, Decl};
use crate::types::{AUTHORIZER, Fields, ObjectType, RESOURCE_CHECK, Type};
use crate::value::{Lazy, Value};
use crate::{admission, eval};

/// What an expression must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Anything,
    Bool,
    String,
    StringOrNull,
    /// `Object{…}`
    ApplyConfiguration,
    /// A list of `JSONPatch{…}`.
    JsonPatch,
}

impl Wanted {
    fn refusal(self, found: &Type) -> Option<String> {
        let right = match (self, found) {
            (Wanted::Anything, _)
            | (Wanted::Bool, Type::Bool)
            | (Wanted::String | Wanted::StringOrNull, Type::String)
            | (Wanted::StringOrNull, Type::Null) => true,
            (Wanted::ApplyConfiguration, Type::Object(object)) => object.name == "Object",
            (Wanted::JsonPatch, Type::List(item)) => {
                matches!(&**item, Type::Object(object) if object.name == "JSONPatch")
            }
            _ => false,
        };
        if right {
            return None;
        }
        let found = match found {
            Type::List(_) | Type::Map(..) | Type::Optional(_) => found.to_string(),
            other => type_name(other),
        };
        Some(match self {
            Wanted::StringOrNull => format!("must evaluate to one of [string null_type] but got {found}"),
            Wanted::String => format!("must evaluate to string but got {found}"),
            Wanted::ApplyConfiguration => format!("must evaluate to Object but got {found}"),
            Wanted::JsonPatch => format!("must evaluate to list(JSONPatch) but got {found}"),
            Wanted::Bool | Wanted::Anything => format!("must evaluate to bool but got {found}"),
        })
    }
}

type Declared = Arc<RwLock<BTreeMap<String, Arc<Decl>>>>;

/// Compiles the expressions of one policy. Variables added are visible to what is compiled after them.
pub struct Compiler {
    /// With the authorizer, without variables: match conditions.
    bare: Env,
    /// Without the authorizer and without variables.
    plain: Env,
    full: Env,
    /// Without the authorizer: messages.
    message: Env,
    variables: Declared,
}

impl Compiler {
    /// `params`: whether the policy has parameters, and what they are.
    pub fn new(params: Option<Arc<Decl>>) -> Compiler {
        Self::typed(DYN.clone(), params)
    }

    /// For type checking: `object` and `oldObject` are of a known kind.
    pub fn typed(object: Arc<Decl>, params: Option<Arc<Decl>>) -> Compiler {
        let variables = Declared::default();
        let known = variables.clone();
        let of_variables = Decl::of_object(ObjectType {
            name: "kubernetes.variables".to_owned(),
            fields: Fields::Lazy(Box::new(move |name| {
                known.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
            })),
            constructible: false,
        });
        let mut plain = Env::new()
            .with("object", object.clone())
            .with("oldObject", object)
            .with("request", admission::request().clone())
            .with("namespaceObject", admission::namespace().clone());
        if let Some(params) = params {
            plain = plain.with("params", params);
        }
        let authorized = |env: Env| {
            env.with("authorizer", Decl::made(AUTHORIZER))
                .with("authorizer.requestResource", Decl::made(RESOURCE_CHECK))
        };
        let message = plain.clone().with("variables", of_variables);
        Compiler {
            bare: authorized(plain.clone()),
            plain,
            full: authorized(message.clone()),
            message,
            variables,
        }
    }

    /// For a policy that declares no variables: there is no `variables` then.
    pub fn without_variables(self) -> Compiler {
        Compiler {
            full: self.bare.clone(),
            message: self.plain.clone(),
            ..self
        }
    }

    fn run(env: &Env, expression: &str, wanted: Wanted) -> Result<Program, String> {
        let program = env
            .compile(expression)
            .map_err(|error| format!("compilation failed: {error}"))?;
        match wanted.refusal(program.output()) {
            None => Ok(program),
            Some(why) => Err(why),
        }
    }

    /// A match condition: no variables.
    pub fn condition(&self, expression: &str) -> Result<Program, String> {
        Self::run(&self.bare, expression, Wanted::Bool)
    }

    pub fn expression(&self, expression: &str, wanted: Wanted) -> Result<Program, String> {
        match wanted {
            Wanted::ApplyConfiguration | Wanted::JsonPatch => {
                Self::run(&self.full.clone().for_mutation(), expression, wanted)
            }
            _ => Self::run(&self.full, expression, wanted),
        }
    }

    /// The expression of a message.
    pub fn message(&self, expression: &str) -> Result<Program, String> {
        Self::run(&self.message, expression, Wanted::String)
    }

    /// A variable, for the expressions that follow; of any type if it is wrong.
    pub fn variable(&self, name: &str, expression: &str) -> Result<Program, String> {
        let program = Self::run(&self.full, expression, Wanted::Anything);
        let decl = match &program {
            Ok(program) => Decl::made(program.output().clone()),
            Err(_) => DYN.clone(),
        };
        self.variables
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), decl);
        program
    }
}

/// How deep variables may be worked out within each other, as the sum of their trees' heights.
const MAX_HEIGHT: u32 = 250;

/// `variables`: each worked out at most once, when it is first asked for, at the cost of the budget it is made
/// with. Call [`Variables::end`] when done: a variable can hold `variables` itself.
pub struct Variables<'a> {
    programs: &'a BTreeMap<String, Result<Program, String>>,
    base: Activation<'a>,
    budget: &'a Budget,
    known: RefCell<HashMap<String, Result<Value<'a>, EvalError>>>,
    height: Cell<u32>,
}

impl<'a> Variables<'a> {
    pub fn new(
        programs: &'a BTreeMap<String, Result<Program, String>>,
        base: Activation<'a>,
        budget: &'a Budget,
    ) -> Rc<Self> {
        Rc::new(Variables {
            programs,
            base,
            budget,
            known: RefCell::default(),
            height: Cell::new(0),
        })
    }

    /// The activation with `variables` in it.
    pub fn activation(self: &Rc<Self>) -> Activation<'a> {
        let mut activation = self.base.clone();
        if !self.programs.is_empty() {
            let this: Rc<dyn Lazy<'a> + 'a> = self.clone();
            activation.set("variables", Value::Lazy(this));
        }
        activation
    }

    /// Forgets what was worked out.
    pub fn end(&self) {
        self.known.borrow_mut().clear();
    }
}

impl<'a> Lazy<'a> for Variables<'a> {
    fn field(self: Rc<Self>, name: &str) -> Option<Result<Value<'a>, EvalError>> {
        if let Some(known) = self.known.borrow().get(name) {
            return Some(known.clone());
        }
        let programs = self.programs;
        let value = match programs.get(name)? {
            Err(why) => Err(EvalError::Failed(format!(
                "composited variable {name:?} fails to compile: {why}"
            ))),
            Ok(program) => {
                let height = self.height.get();
                if height + program.height() > MAX_HEIGHT {
                    Err(EvalError::failed("variables refer to each other too deeply"))
                } else {
                    self.height.set(height + program.height());
                    let value = program.eval(&self.activation(), self.budget);
                    self.height.set(height);
                    value.map_err(|error| match error {
                        EvalError::Failed(why) => {
                            EvalError::Failed(format!("composited variable {name:?} fails to evaluate: {why}"))
                        }
                        other => other,
                    })
                }
            }
        };
        self.known.borrow_mut().insert(name.to_owned(), value.clone());
        Some(value)
    }
}

/// What is the type of an evaluated value called, in messages.
pub fn type_of(value: &Value<'_>) -> String {
    eval::type_name(&value.type_of())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RUNTIME_BUDGET;
    use serde_json::json;

    #[test]
    fn variables_are_typed_lazy_and_end() {
        let compiler = Compiler::new(None);
        let mut programs = BTreeMap::new();
        let add = |name: &str, expression: &str, programs: &mut BTreeMap<_, _>| {
            programs.insert(name.to_owned(), compiler.variable(name, expression));
        };
        add("replicas", "object.spec.replicas", &mut programs);
        add("double", "variables.replicas * 2", &mut programs);
        add("text", "'a'", &mut programs);
        add("wrong", "1 / 0", &mut programs);
        add("itself", "[variables]", &mut programs);
        assert!(programs.values().all(Result::is_ok));
        assert_eq!(
            compiler
                .expression("variables.text > 1", Wanted::Bool)
                .err()
                .unwrap()
                .lines()
                .next(),
            Some(
                "compilation failed: ERROR: <input>:1:16: found no matching overload for '_>_' applied to '(string, int)'"
            )
        );
        assert_eq!(
            compiler.expression("variables.text", Wanted::Bool).err().as_deref(),
            Some("must evaluate to bool but got string")
        );
        assert!(compiler.message("string(variables.double)").is_ok());
        assert!(
            compiler
                .message("authorizer.group('').resource('a').check('b').reason()")
                .is_err()
        );
        assert!(compiler.condition("variables.text == ''").is_err());
        let object = json!({"spec": {"replicas": 3}});
        let budget = Budget::new(RUNTIME_BUDGET);
        let base = Activation::new().with("object", Value::json(&object));
        let variables = Variables::new(&programs, base, &budget);
        for (expression, expected) in [
            ("variables.double == 6 && variables.double == 6", Ok(Some(true))),
            ("variables.itself.size() == 1", Ok(Some(true))),
            ("true || variables.wrong == 1", Ok(Some(true))),
            (
                "variables.wrong == 1",
                Err("composited variable \"wrong\" fails to evaluate: division by zero".to_owned()),
            ),
        ] {
            let program = compiler.expression(expression, Wanted::Bool).unwrap();
            let value = program.eval(&variables.activation(), &budget);
            assert_eq!(
                value.map(|value| value.as_bool()).map_err(|error| error.to_string()),
                expected,
                "{expression}"
            );
        }
        variables.end();
        assert_eq!(Rc::strong_count(&variables), 1);
    }
}
