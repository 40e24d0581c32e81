//! MutatingAdmissionPolicy.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::schema::{self, Type};
use sampan_api::status::{Cause, Status};
use sampan_api::{Object, meta};
use sampan_auth::Authorizer;
use sampan_cel::policy::Wanted;
use serde_json::Value as Json;

use super::evaluate::{Asker, Failure, Input, budget, conditions_hold, run, with_variables};
use super::matching::Matched;
use super::source::{Active, Binding, Mutation, Policy, Source};
use super::{governed, params, patches};
use crate::admission::{Notes, Operation, Plugin, Reader, Review, Wiring};
use crate::rows::Rows;
use crate::{Refusal, refuse};

const NAME: &str = "MutatingAdmissionPolicy";

pub struct Mutating {
    source: Arc<Source>,
    reader: Reader,
    rows: Arc<Rows>,
    authorizer: Authorizer,
}

/// Policy, binding and parameter of one run.
type Key = (String, String, String);

/// What is remembered between the rounds of one request.
#[derive(Default)]
struct Memory {
    /// Ran, and may run again.
    ran: BTreeSet<Key>,
    /// Shall run again: something has changed since.
    again: BTreeSet<Key>,
    /// The object as this plugin left it.
    left: Option<Object>,
}

impl Memory {
    fn require(&mut self) {
        self.again.append(&mut self.ran);
    }
}

/// A run of a policy.
struct Invocation<'a> {
    policy: &'a Policy,
    binding: &'a Binding,
    matched: Matched,
    param: Json,
}

impl Mutating {
    pub fn new(wiring: &Wiring<'_>) -> Self {
        Mutating {
            source: Source::follow(
                wiring.reader,
                "mutatingadmissionpolicies",
                "mutatingadmissionpolicybindings",
            ),
            reader: wiring.reader.clone(),
            rows: wiring.rows.clone(),
            authorizer: wiring.authorizer.clone(),
        }
    }
}

#[async_trait]
impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        NAME
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        governed(review)
            && matches!(review.operation, Operation::Create | Operation::Update)
            && !self.source.active().is_empty()
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Object, notes: &mut Notes) -> Result<(), Refusal> {
        let mut errors = Vec::new();
        let active = self.source.active();
        let invocations = self.invocations(&active, review, object, &mut errors);
        let second = notes.is_reinvocation();
        let memory: &mut Memory = notes.memory(NAME);
        if second && memory.left.as_ref().is_some_and(|left| left != object) {
            memory.require();
        }
        let mut changed = false;
        for invocation in &invocations {
            let key = invocation.key();
            if second && !memory.again.contains(&key) {
                continue;
            }
            let input = Input::of(review, invocation.matched.row(review), &self.reader);
            match self.run(invocation, review, &input, object, &mut errors) {
                None => continue,
                Some(after) if after != *object => {
                    *object = after;
                    changed = true;
                    memory.require();
                }
                Some(_) => {}
            }
            if invocation.policy.reinvocable {
                memory.ran.insert(key);
            }
        }
        memory.left = Some(object.clone());
        if changed {
            notes.ask_again();
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(refuse(status(review, object, errors))),
        }
    }
}

impl Invocation<'_> {
    fn key(&self) -> Key {
        let param = format!("{}/{}", meta::namespace(&self.param), meta::name(&self.param));
        (self.policy.name.clone(), self.binding.name.clone(), param)
    }

    fn error(&self, why: &str) -> String {
        format!(
            "policy '{}' with binding '{}' denied request: {why}",
            self.policy.name, self.binding.name
        )
    }
}

/// All errors are causes; the first is the message.
fn status(review: &Review<'_>, object: &Object, errors: Vec<(String, &'static str)>) -> Status {
    let mut status = review.forbid(Some(object), "admission request denied by policy");
    if let Some((message, reason)) = errors.first() {
        status.message = message.clone();
        if !reason.is_empty() {
            status.reason = (*reason).into();
        }
    }
    let causes = errors.into_iter().map(|(message, _)| Cause {
        message,
        ..Cause::default()
    });
    status.details.get_or_insert_default().causes.extend(causes);
    status
}

impl Mutating {
    /// What is to run for this request; what is misconfigured becomes an error, unless the policy ignores that.
    fn invocations<'a>(
        &self,
        active: &'a [Active],
        review: &Review<'_>,
        object: &Object,
        errors: &mut Vec<(String, &'static str)>,
    ) -> Vec<Invocation<'a>> {
        let mut invocations = Vec::new();
        for Active { policy, bindings } in active {
            let matched = match policy.criteria.matches(review, Some(object), &self.reader, &self.rows) {
                Ok(None) => continue,
                Ok(Some(matched)) => params::check(policy.params.as_ref(), &self.rows).map(|()| matched),
                Err(why) => Err(why),
            };
            let matched = match matched {
                Ok(matched) => matched,
                Err(why) => {
                    if !policy.ignores_failure {
                        let name = &policy.name;
                        let why = format!("policy {name:?} denied request: failed to configure policy: {why}");
                        errors.push((why, ""));
                    }
                    continue;
                }
            };
            for binding in bindings {
                let found = binding
                    .criteria
                    .as_ref()
                    .map_or(Ok(true), |criteria| {
                        let found = criteria.matches(review, Some(object), &self.reader, &self.rows)?;
                        Ok(found.is_some())
                    })
                    .and_then(|matches| match matches {
                        true => params::collect(policy.params.as_ref(), binding.params.as_ref(), review, &self.rows),
                        false => Ok(Vec::new()),
                    });
                match found {
                    Ok(found) => invocations.extend(found.into_iter().map(|param| Invocation {
                        policy,
                        binding,
                        matched: matched.clone(),
                        param,
                    })),
                    Err(why) if !policy.ignores_failure => {
                        let (policy, binding) = (&policy.name, &binding.name);
                        let why = format!(
                            "policy '{policy}' with binding '{binding}' denied request: failed to configure binding: {why}"
                        );
                        errors.push((why, ""));
                    }
                    Err(_) => {}
                }
            }
        }
        invocations
    }

    /// The object after all mutations of the policy; `None` if its conditions do not hold.
    fn run(
        &self,
        invocation: &Invocation<'_>,
        review: &Review<'_>,
        input: &Input,
        object: &Object,
        errors: &mut Vec<(String, &'static str)>,
    ) -> Option<Object> {
        let Invocation {
            policy, matched, param, ..
        } = invocation;
        let asker = Asker {
            authorizer: &self.authorizer,
            user: review.user,
        };
        let mut fail = |why: String| {
            if !policy.ignores_failure {
                errors.push((invocation.error(&why), "Invalid"));
            }
        };
        let shown_old = review.old.and_then(|old| matched.shown(review, old));
        let old = shown_old.as_ref().or(review.old);
        let mut current = matched.shown(review, object).unwrap_or_else(|| object.clone());
        match conditions_hold(policy, &input.activation(Some(&current), old, param, &asker)) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(why) => {
                fail(why);
                return None;
            }
        }
        for mutation in &policy.mutations {
            let activation = input.activation(Some(&current), old, param, &asker);
            let budget = budget();
            let changed = with_variables(policy, activation, &budget, |activation| {
                match run(&mutation.expression, &mutation.text, activation, &budget) {
                    Ok(made) => self.change(review, matched, mutation, &current, &made),
                    Err(Failure::One(why) | Failure::All(why)) => Err(why),
                }
            });
            match changed {
                Ok(changed) => current = changed,
                Err(why) => fail(why),
            }
        }
        matched.stored(review, &mut current);
        Some(current)
    }

    fn change(
        &self,
        review: &Review<'_>,
        matched: &Matched,
        mutation: &Mutation,
        object: &Object,
        made: &sampan_cel::Value<'_>,
    ) -> Result<Object, String> {
        let row = matched.row(review);
        let mut changed = match mutation.wanted {
            Wanted::JsonPatch => patches::patch(object, made)?,
            _ if review.is_whole() => patches::merge(&row.ty, object, made)?,
            _ => {
                let (group, version, kind) = review.kind();
                let schema = schema::builtin();
                let ty = schema
                    .kind(group, version, kind)
                    .and_then(|definition| schema.type_of(&definition.name))
                    .unwrap_or(Type::Json);
                patches::merge(&ty, object, made)?
            }
        };
        if review.is_whole() && changed != *object {
            row.default(&mut changed);
        }
        Ok(changed)
    }
}
