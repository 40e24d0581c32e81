//! `x-kubernetes-validations`: CEL rules, compiled once per definition and run for every object.
//!
//! Rules run from the root downwards. `oldSelf` is the value the same place had before, items of map-like lists found by their keys;
//! rules that use it wait until there is one (unless they say they need not). A rule that fails on a value an update
//! leaves alone is tolerated, unless it compares with the old value. All rules of an object share one budget.

use std::collections::BTreeMap;
use std::sync::Arc;

use sampan_api::field::{Error, Errors, Path};
use sampan_cel::{Activation, Budget, Decl, Env, EvalError, Program, RUNTIME_BUDGET, Type, Value as Cel};
use serde_json::Value;

use crate::correlate::{Node, old_item};
use crate::definition::field_path;
use crate::schema::{Rule, Schema};

/// The longest message an expression may make.
const LONGEST_MESSAGE: usize = 5 * 1024;

/// The compiled rules of a schema and of those below it.
pub struct Rules {
    decl: Arc<Decl>,
    own: Vec<Compiled>,
    properties: BTreeMap<String, Rules>,
    additional: Option<Box<Rules>>,
    items: Option<Box<Rules>>,
}

struct Compiled {
    rule: Rule,
    /// The program, or what is wrong with the rule.
    program: Result<Program, String>,
    message: Option<Program>,
    uses_old: bool,
    /// Where a failure is reported, relative to the value.
    path: Option<String>,
}

/// Whether to go on with the rules of this object.
type Step = Result<(), Stop>;
struct Stop;

/// A rule's expressions compiled, with what is wrong with either.
pub(crate) struct Expressions {
    pub rule: Result<Program, String>,
    pub message: Option<Result<Program, String>>,
}

/// The declaration of `self` at a schema.
pub(crate) fn declare(stated: &Value, is_root: bool) -> Option<Arc<Decl>> {
    Decl::of_schema(stated, "selfType", is_root)
}

/// Compiles a rule for values declared so.
pub(crate) fn compile(rule: &Rule, decl: &Arc<Decl>) -> Expressions {
    let old = if rule.optional_old_self {
        Arc::new(Decl {
            ty: Type::optional(decl.ty.clone()),
            ..(**decl).clone()
        })
    } else {
        decl.clone()
    };
    let env = Env::new().with("self", decl.clone()).with("oldSelf", old);
    let program = match env.compile(&rule.rule) {
        Err(error) => Err(format!("compilation failed: {error}")),
        Ok(program) if *program.output() != Type::Bool => Err("cel expression must evaluate to a bool".to_owned()),
        Ok(program) => Ok(program),
    };
    let message =
        (program.is_ok() && !rule.message_expression.is_empty()).then(|| match env.compile(&rule.message_expression) {
            Err(error) => Err(format!("messageExpression compilation failed: {error}")),
            Ok(program) if *program.output() != Type::String => {
                Err("messageExpression must evaluate to a string".to_owned())
            }
            Ok(program) => Ok(program),
        });
    Expressions { rule: program, message }
}

impl Rules {
    /// The rules of a schema, given as it is stated and as parsed; nothing when there are none.
    pub fn of(stated: &Value, schema: &Schema, is_root: bool) -> Option<Self> {
        if !schema.has_rules() {
            return None;
        }
        let is_root = is_root || schema.embedded;
        let decl = declare(stated, is_root)?;
        let own = schema
            .rules
            .iter()
            .filter(|rule| !rule.rule.trim().is_empty())
            .map(|rule| {
                let made = compile(rule, &decl);
                Compiled {
                    uses_old: made.rule.as_ref().is_ok_and(|program| program.uses("oldSelf")),
                    program: made.rule,
                    message: made.message.and_then(Result::ok),
                    path: (!rule.field_path.is_empty())
                        .then(|| field_path(&rule.field_path, schema, true).ok())
                        .flatten()
                        .map(|path| path.shown),
                    rule: rule.clone(),
                }
            })
            .collect();
        let properties = schema
            .properties
            .iter()
            .filter_map(|(name, below)| {
                let stated = stated.get("properties")?.get(name)?;
                Some((name.clone(), Rules::of(stated, below, false)?))
            })
            .collect();
        let below = |key: &str, schema: Option<&Schema>| Some(Box::new(Rules::of(stated.get(key)?, schema?, false)?));
        Some(Rules {
            own,
            properties,
            additional: below("additionalProperties", schema.additional.as_deref()),
            items: below("items", schema.items.as_deref()),
            decl,
        })
    }

    /// Runs every rule over an object and what it replaces.
    pub fn check(
        &self,
        schema: &Schema,
        new: &Value,
        old: Option<&Value>,
        ratchet: bool,
        path: &Path,
        errors: &mut Errors,
    ) {
        let current = old.filter(|_| ratchet).map(|old| Node { new, old, schema });
        let run = Run {
            budget: Budget::new(RUNTIME_BUDGET),
        };
        let place = Place {
            current,
            parent: None,
            root: true,
        };
        // Where the budget ends, the error that says so is the last one.
        let _stopped = run.value(self, schema, new, old, place, path, errors);
    }
}

/// What an update does to a place: what ratcheting asks.
#[derive(Clone, Copy)]
struct Place<'a> {
    current: Option<Node<'a>>,
    /// The nearest place above that has an old value.
    parent: Option<Node<'a>>,
    root: bool,
}

impl<'a> Place<'a> {
    fn key(self, key: &str) -> Place<'a> {
        let Some(current) = self.current else {
            return Place { root: false, ..self };
        };
        if self.root && matches!(key, "apiVersion" | "kind") {
            return Place {
                current: None,
                parent: None,
                root: false,
            };
        }
        Place {
            current: current.key(key),
            parent: Some(current),
            root: false,
        }
    }

    fn index(self, index: usize) -> Place<'a> {
        let Some(current) = self.current else {
            return Place { root: false, ..self };
        };
        Place {
            current: current.index(index),
            parent: Some(current),
            root: false,
        }
    }

    fn is_unchanged(self) -> bool {
        self.current.or(self.parent).is_some_and(|node| node.is_unchanged())
    }
}

struct Run {
    budget: Budget,
}

impl Run {
    #[allow(clippy::too_many_arguments)]
    fn value(
        &self,
        rules: &Rules,
        schema: &Schema,
        new: &Value,
        old: Option<&Value>,
        place: Place<'_>,
        path: &Path,
        errors: &mut Errors,
    ) -> Step {
        // Rules about absence and null are the surrounding schema's.
        if new.is_null() {
            return Ok(());
        }
        let old = old.filter(|old| !old.is_null());
        self.own(rules, schema, new, old, place, path, errors)?;
        match new {
            Value::Object(map) => {
                let before = old.and_then(Value::as_object);
                for (key, value) in map {
                    let (below, rules, at) = match (schema.properties.get(key), rules.properties.get(key)) {
                        (Some(below), Some(rules)) => (below, rules, path.child(key)),
                        (Some(_), None) => continue,
                        (None, _) => match (&schema.additional, &rules.additional) {
                            (Some(below), Some(rules)) => (&**below, &**rules, path.key(key)),
                            _ => continue,
                        },
                    };
                    let old = before.and_then(|before| before.get(key));
                    self.value(rules, below, value, old, place.key(key), &at, errors)?;
                }
            }
            Value::Array(items) => {
                if let (Some(below), Some(rules)) = (&schema.items, &rules.items) {
                    let before = old.and_then(Value::as_array);
                    for (index, item) in items.iter().enumerate() {
                        let old = before.and_then(|before| old_item(schema, before, item));
                        self.value(rules, below, item, old, place.index(index), &path.index(index), errors)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn own(
        &self,
        rules: &Rules,
        schema: &Schema,
        new: &Value,
        old: Option<&Value>,
        place: Place<'_>,
        path: &Path,
        errors: &mut Errors,
    ) -> Step {
        for compiled in &rules.own {
            let rule = &compiled.rule;
            let invalid = |why: String| Error::invalid(path, schema.ty.as_str(), why);
            let program = match &compiled.program {
                Ok(program) => program,
                Err(why) => {
                    errors.push(invalid(format!("rule compile error: {why}")));
                    continue;
                }
            };
            if compiled.uses_old && old.is_none() && !rule.optional_old_self {
                continue;
            }
            let mut activation = Activation::new().with("self", Cel::typed(new, &rules.decl));
            if compiled.uses_old {
                let before = old.map(|old| Cel::typed(old, &rules.decl));
                if rule.optional_old_self {
                    activation.set("oldSelf", before.map_or(Cel::Optional(None), Cel::some));
                } else if let Some(before) = before {
                    activation.set("oldSelf", before);
                }
            }
            let named = if rule.message.is_empty() {
                rule.rule.trim()
            } else {
                rule.message.trim()
            };
            match program.eval(&activation, &self.budget) {
                Ok(value) if value.as_bool() == Some(true) => continue,
                Ok(_) => {}
                Err(error) if error.is_budget() => {
                    errors.push(invalid(error.to_string()));
                    return Err(Stop);
                }
                Err(error) if error.is_call_limit() => {
                    errors.push(invalid(format!(
                        "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {named}"
                    )));
                    return Err(Stop);
                }
                Err(error) if error.to_string().starts_with("no such overload") => {
                    errors.push(invalid(format!(
                        "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {named}"
                    )));
                    continue;
                }
                Err(error) => {
                    errors.push(invalid(format!("{error} evaluating rule: {named}")));
                    continue;
                }
            }
            let tolerated = !compiled.uses_old && place.is_unchanged();
            let at = compiled
                .path
                .as_ref()
                .map_or_else(|| path.clone(), |shown| path.child(shown));
            let mut detail = None;
            if let Some(message) = &compiled.message {
                match self.message(message, &activation, &rule.message_expression) {
                    Ok(made) => detail = made,
                    Err(why) => {
                        if !tolerated {
                            errors.push(Error::invalid(&at, schema.ty.as_str(), why));
                        }
                        return Err(Stop);
                    }
                }
            }
            if tolerated {
                continue;
            }
            let detail = detail.unwrap_or_else(|| {
                if rule.message.is_empty() {
                    format!("failed rule: {named}")
                } else {
                    named.to_owned()
                }
            });
            errors.push(failure(rule, &at, new, detail));
        }
        Ok(())
    }

    /// A message that can be shown; nothing when the expression makes none. An error ends everything.
    fn message(&self, program: &Program, activation: &Activation<'_>, source: &str) -> Result<Option<String>, String> {
        match program.eval(activation, &self.budget) {
            Ok(value) => {
                let made = value.as_str().map(str::trim).unwrap_or_default();
                let good = !made.is_empty() && made.len() <= LONGEST_MESSAGE && !made.contains('\n');
                Ok(good.then(|| made.to_owned()))
            }
            Err(EvalError::Budget) => Err(
                "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run"
                    .into(),
            ),
            Err(EvalError::CallLimit) => Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {source:?}"
            )),
            Err(EvalError::Failed(_)) => Ok(None),
        }
    }
}

/// A failed rule as its reason has it. Trees are not repeated in the message.
fn failure(rule: &Rule, path: &Path, value: &Value, detail: String) -> Error {
    let is_tree = value.is_object() || value.is_array();
    let shown = || if is_tree { Value::Null } else { value.clone() };
    let mut error = match rule.reason.as_deref() {
        Some("FieldValueForbidden") => return Error::forbidden(path, detail),
        Some("FieldValueRequired") => return Error::required(path, detail),
        Some("FieldValueDuplicate") => Error::duplicate(path, shown()),
        _ => Error::invalid(path, shown(), detail),
    };
    error.omitted = is_tree;
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(stated: &Value, new: Value, old: Option<Value>) -> Vec<String> {
        let schema = Schema::parse(stated).unwrap();
        let rules = Rules::of(stated, &schema, true).unwrap();
        let mut errors = Errors::new();
        rules.check(&schema, &new, old.as_ref(), true, &Path::default(), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_refuse_in_upstreams_words() {
        let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.metadata.name.startsWith('a')"}],
            "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "message": "min must not be above max", "fieldPath": ".min"},
                {"rule": "self.max < 100", "messageExpression": "'max is ' + string(self.max)", "reason": "FieldValueForbidden"},
                {"rule": "self.max == oldSelf.max", "message": "max is fixed"}],
            "properties": {"min": {"type": "integer"}, "max": {"type": "integer"},
                "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'bad'"}]},
                "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "required": ["k"],
                    "properties": {"k": {"type": "string"}, "v": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf"}]}}}}}}}});
        let object = |spec: Value| json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a"}, "spec": spec});
        assert!(said(&schema, object(json!({"min": 1, "max": 2})), None).is_empty());
        assert_eq!(
            said(&schema, object(json!({"min": 3, "max": 2, "name": "bad"})), None),
            [
                "spec.min: Invalid value: min must not be above max",
                "spec.name: Invalid value: \"bad\": failed rule: self != 'bad'",
            ]
        );
        assert_eq!(
            said(&schema, object(json!({"min": 3, "max": 200})), None),
            ["spec: Forbidden: max is 200"]
        );
        let old = object(json!({"min": 1, "max": 2, "list": [{"k": "x", "v": 5}, {"k": "y", "v": 1}]}));
        assert_eq!(
            said(
                &schema,
                object(
                    json!({"min": 1, "max": 3, "list": [{"k": "y", "v": 0}, {"k": "x", "v": 6}, {"k": "z", "v": 0}]})
                ),
                Some(old)
            ),
            [
                "spec: Invalid value: max is fixed",
                "spec.list[0].v: Invalid value: 0: failed rule: self >= oldSelf",
            ]
        );
        let mut named = object(json!({"min": 1, "max": 2}));
        named["metadata"]["name"] = "b".into();
        assert_eq!(
            said(&schema, named, None),
            ["<nil>: Invalid value: failed rule: self.metadata.name.startsWith('a')"]
        );
        assert_eq!(
            said(&schema, object(json!({"max": 2})), None),
            ["spec: Invalid value: \"object\": no such key: min evaluating rule: min must not be above max"]
        );
    }

    #[test]
    fn what_is_not_changed_is_tolerated() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self.size() < 3"}]},
            "once": {"type": "string", "x-kubernetes-validations": [{"rule": "!oldSelf.hasValue() || self == oldSelf.value()", "optionalOldSelf": true, "message": "set once"}]},
            "other": {"type": "string"}}}}});
        let object = |name: &str, other: &str| json!({"spec": {"name": name, "other": other, "once": name}});
        assert_eq!(said(&schema, object("long", "a"), None).len(), 1);
        let mut new = object("long", "b");
        assert!(said(&schema, new.clone(), Some(object("long", "a"))).is_empty());
        new["spec"]["once"] = "x".into();
        assert_eq!(
            said(&schema, new, Some(object("long", "a"))),
            ["spec.once: Invalid value: \"x\": set once"]
        );
        assert_eq!(said(&schema, object("longer", "a"), Some(object("long", "a"))).len(), 2);
    }

    #[test]
    fn budgets_end_it() {
        let schema = json!({"type": "object", "properties": {"list": {"type": "array", "items": {"type": "string"},
            "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, self.all(c, a + b + c != 'x')))"}]}}});
        let list: Vec<String> = (0..200).map(|number| format!("item{number}")).collect();
        let errors = said(&schema, json!({ "list": list }), None);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].contains("call cost exceeds limit for rule"), "{errors:?}");
    }
}
