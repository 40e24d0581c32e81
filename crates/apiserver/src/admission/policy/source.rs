//! Policies and their bindings, compiled when they change.
//!
//! The storages' hooks keep them, so a policy counts from the moment its write is answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};

use sampan_api::{Object, meta};
use sampan_cel::policy::{Compiler, Wanted};
use sampan_cel::{Decl, Program};
use serde_json::Value;

use super::params::{ParamKind, ParamRef};
use crate::admission::matching::{Conditions, Criteria};
use crate::admission::{Reader, text};
use crate::sync::{lock, read, write};
use crate::watch_cache::ChangeType;

pub type Compiled = Result<Program, String>;

/// What both kinds of policies have.
pub struct Policy {
    pub name: String,
    pub criteria: Criteria,
    pub params: Option<ParamKind>,
    pub ignores_failure: bool,
    pub conditions: Conditions,
    pub variables: BTreeMap<String, Compiled>,
    pub validations: Vec<Validation>,
    pub annotations: Vec<Annotation>,
    pub mutations: Vec<Mutation>,
    /// Whether it may run again when something later changed the object.
    pub reinvocable: bool,
}

pub struct Validation {
    pub text: String,
    pub expression: Compiled,
    pub message: String,
    pub message_expression: Option<Compiled>,
    pub reason: String,
}

pub struct Annotation {
    pub key: String,
    pub text: String,
    pub expression: Compiled,
}

pub struct Mutation {
    pub text: String,
    pub wanted: Wanted,
    pub expression: Compiled,
}

pub struct Binding {
    pub name: String,
    pub policy: String,
    pub criteria: Option<Criteria>,
    pub params: Option<ParamRef>,
    pub actions: Vec<String>,
}

/// A policy and the bindings that put it into force.
pub struct Active {
    pub policy: Arc<Policy>,
    pub bindings: Vec<Arc<Binding>>,
}

fn items<'o>(object: &'o Object, pointer: &str) -> impl Iterator<Item = &'o Value> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

impl Policy {
    fn compile(object: &Object) -> Policy {
        let params = ParamKind::of(object);
        let compiler = Compiler::new(params.as_ref().map(|_| Decl::dynamic()));
        let nothing = Value::Null;
        let spec = object.get("spec").unwrap_or(&nothing);
        let mut variables = BTreeMap::new();
        for variable in items(object, "/spec/variables") {
            let name = text(variable, "/name");
            let compiled = compiler.variable(name, text(variable, "/expression"));
            variables.insert(name.to_owned(), compiled);
        }
        let validations = items(object, "/spec/validations").map(|validation| {
            let expression = text(validation, "/expression");
            let message = text(validation, "/messageExpression");
            Validation {
                text: expression.trim().to_owned(),
                expression: compiler.expression(expression, Wanted::Bool),
                message: text(validation, "/message").trim().to_owned(),
                message_expression: (!message.trim().is_empty()).then(|| compiler.message(message)),
                reason: text(validation, "/reason").to_owned(),
            }
        });
        let annotations = items(object, "/spec/auditAnnotations").map(|annotation| {
            let expression = text(annotation, "/valueExpression");
            Annotation {
                key: text(annotation, "/key").to_owned(),
                text: expression.to_owned(),
                expression: compiler.expression(expression.trim(), Wanted::StringOrNull),
            }
        });
        let mutations = items(object, "/spec/mutations").map(|mutation| {
            let (wanted, pointer) = match text(mutation, "/patchType") {
                "JSONPatch" => (Wanted::JsonPatch, "/jsonPatch/expression"),
                _ => (Wanted::ApplyConfiguration, "/applyConfiguration/expression"),
            };
            let expression = text(mutation, pointer).trim();
            Mutation {
                text: expression.to_owned(),
                wanted,
                expression: compiler.expression(expression, wanted),
            }
        });
        Policy {
            name: meta::name(object).to_owned(),
            criteria: Criteria::of_policy(spec.get("matchConstraints").unwrap_or(&nothing)),
            params,
            ignores_failure: text(object, "/spec/failurePolicy") == "Ignore",
            conditions: Conditions::of(spec, &compiler),
            validations: validations.collect(),
            annotations: annotations.collect(),
            mutations: mutations.collect(),
            variables,
            reinvocable: text(object, "/spec/reinvocationPolicy") == "IfNeeded",
        }
    }
}

impl Binding {
    fn compile(object: &Object) -> Binding {
        let criteria = object
            .pointer("/spec/matchResources")
            .filter(|criteria| criteria.is_object());
        Binding {
            name: meta::name(object).to_owned(),
            policy: text(object, "/spec/policyName").to_owned(),
            criteria: criteria.map(Criteria::of_policy),
            params: ParamRef::of(object),
            actions: items(object, "/spec/validationActions")
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        }
    }
}

#[derive(Default)]
struct Known {
    policies: BTreeMap<String, Arc<Policy>>,
    bindings: BTreeMap<String, Arc<Binding>>,
}

/// All policies of one kind.
#[derive(Default)]
pub struct Source {
    known: Mutex<Known>,
    active: RwLock<Arc<Vec<Active>>>,
}

impl Source {
    /// Follows the storages of policies and bindings.
    pub fn follow(reader: &Reader, policies: &str, bindings: &str) -> Arc<Source> {
        let source = Arc::new(Source::default());
        if let Some(storage) = reader.storage(policies) {
            let source = source.clone();
            storage.set_hook(Box::new(move |change, object| {
                let policy = (change.kind != ChangeType::Deleted).then(|| Arc::new(Policy::compile(object)));
                source.change(|known| set(&mut known.policies, change.entry.name(), policy));
            }));
        }
        if let Some(storage) = reader.storage(bindings) {
            let source = source.clone();
            storage.set_hook(Box::new(move |change, object| {
                let binding = (change.kind != ChangeType::Deleted).then(|| Arc::new(Binding::compile(object)));
                source.change(|known| set(&mut known.bindings, change.entry.name(), binding));
            }));
        }
        source
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut known = lock(&self.known);
        change(&mut known);
        let mut bound: BTreeMap<&str, Vec<Arc<Binding>>> = BTreeMap::new();
        for binding in known.bindings.values() {
            bound.entry(&binding.policy).or_default().push(binding.clone());
        }
        let active = bound.into_iter().filter_map(|(policy, bindings)| {
            let policy = known.policies.get(policy)?.clone();
            Some(Active { policy, bindings })
        });
        *write(&self.active) = Arc::new(active.collect());
    }

    pub fn active(&self) -> Arc<Vec<Active>> {
        read(&self.active).clone()
    }
}

fn set<T>(map: &mut BTreeMap<String, T>, name: &str, value: Option<T>) {
    match value {
        Some(value) => map.insert(name.to_owned(), value),
        None => map.remove(name),
    };
}
