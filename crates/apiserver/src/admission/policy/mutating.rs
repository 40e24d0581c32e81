//! MutatingAdmissionPolicy.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::status::{Cause, Status};
use sampan_api::{Object, meta};
use sampan_auth::Authorizer;
use sampan_cel::policy::Wanted;
use serde_json::Value as Json;

use super::evaluate::{Failure, Input, budget, conditions_hold, run, with_variables};
use super::source::{Active, Binding, Mutation, Policy, Source};
use super::{bound, constrained, governed, patches};
use crate::admission::matching::{Asker, Matched, Matcher, Misfit};
use crate::admission::{Metrics, Notes, Operation, Plugin, Review, Wiring};
use crate::{Refusal, refuse};

const NAME: &str = "MutatingAdmissionPolicy";

pub struct Mutating {
    source: Arc<Source>,
    matcher: Matcher,
    authorizer: Authorizer,
    metrics: Arc<Metrics>,
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
            matcher: Matcher::new(wiring.reader.clone(), wiring.rows.clone()),
            authorizer: wiring.authorizer.clone(),
            metrics: wiring.metrics.clone(),
        }
    }
}

#[async_trait]
impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        NAME
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        governed(review) && review.operation != Operation::Delete && !self.source.active().is_empty()
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Object, notes: &mut Notes) -> Result<(), Refusal> {
        let mut errors = Vec::new();
        let active = self.source.active();
        let invocations = self.invocations(&active, review, object, &mut errors).await;
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
            match self.run(invocation, review, object, &mut errors).await? {
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
    async fn invocations<'a>(
        &self,
        active: &'a [Active],
        review: &Review<'_>,
        object: &Object,
        errors: &mut Vec<(String, &'static str)>,
    ) -> Vec<Invocation<'a>> {
        let mut invocations = Vec::new();
        for one in active {
            let Active { policy, bindings } = one;
            let matched = match constrained(policy, review, Some(object), &self.matcher) {
                Ok(None) => continue,
                Ok(Some(matched)) => matched,
                Err(_) if policy.ignores_failure => continue,
                Err(why) => {
                    let name = &policy.name;
                    let why = format!("policy {name:?} denied request: failed to configure policy: {why}");
                    errors.push((why, ""));
                    continue;
                }
            };
            for binding in bindings {
                match bound(one, binding, review, Some(object), &self.matcher).await {
                    Ok(found) => invocations.extend(found.into_iter().map(|param| Invocation {
                        policy,
                        binding,
                        matched: matched.clone(),
                        param,
                    })),
                    Err(_) if policy.ignores_failure => {}
                    Err(why) => {
                        let (policy, binding) = (&policy.name, &binding.name);
                        let why = format!(
                            "policy '{policy}' with binding '{binding}' denied request: failed to configure binding: {why}"
                        );
                        errors.push((why, ""));
                    }
                }
            }
        }
        invocations
    }

    /// The object after all mutations of the policy; `None` if its conditions do not hold. A refusal is the
    /// request's end, whatever the failure policy.
    async fn run(
        &self,
        invocation: &Invocation<'_>,
        review: &Review<'_>,
        object: &Object,
        errors: &mut Vec<(String, &'static str)>,
    ) -> Result<Option<Object>, Refusal> {
        let Invocation { policy, matched, .. } = invocation;
        let (shown, old) = match (
            matched.shown(review, Some(object)).await,
            matched.shown(review, review.old).await,
        ) {
            (Ok(shown), Ok(old)) => (shown, old),
            (Err(refusal), _) | (_, Err(refusal)) => {
                if !policy.ignores_failure {
                    let (name, why) = (&policy.name, &refusal.message);
                    let why = format!("policy {name:?} denied request: failed to configure policy: {why}");
                    errors.push((why, ""));
                }
                return Ok(None);
            }
        };
        let input = Input::of(review, matched, &self.matcher)?;
        let Some(shown) = shown else { return Ok(None) };
        match self.mutate_shown(invocation, review, &input, (&shown, old.as_deref()), errors)? {
            // What was not changed need not come back.
            Some(changed) if changed == *shown => Ok(Some(object.clone())),
            Some(changed) => matched.held(review, changed).await.map(Some),
            None => Ok(None),
        }
    }

    fn mutate_shown(
        &self,
        invocation: &Invocation<'_>,
        review: &Review<'_>,
        input: &Input,
        (object, old): (&Object, Option<&Object>),
        errors: &mut Vec<(String, &'static str)>,
    ) -> Result<Option<Object>, Refusal> {
        let Invocation { policy, param, .. } = invocation;
        let asker = Asker {
            authorizer: &self.authorizer,
            user: review.user,
        };
        let mut fail = |why: String| {
            if !policy.ignores_failure {
                errors.push((invocation.error(&why), "Invalid"));
            }
        };
        let activation = input.activation(review, Some(object), old, param, &asker);
        match conditions_hold(policy, review, &activation, &self.metrics, "admit") {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(why) => {
                fail(why);
                return Ok(None);
            }
        }
        let mut current = object.clone();
        for mutation in &policy.mutations {
            let activation = input.activation(review, Some(&current), old, param, &asker);
            let budget = budget();
            let changed = with_variables(policy, activation, &budget, |activation| {
                match run(&mutation.expression, &mutation.text, activation, &budget) {
                    Ok(made) => change(review, &invocation.matched, mutation, &current, &made),
                    Err(Failure::One(why) | Failure::All(why)) => Err(Wrong::Here(why)),
                }
            });
            match changed {
                Ok(changed) => current = changed,
                Err(Wrong::Here(why)) => fail(why),
                Err(Wrong::Everywhere(why)) => return Err(refuse(Status::internal(invocation.error(&why)))),
            }
        }
        Ok(Some(current))
    }
}

/// Why a mutation is none.
enum Wrong {
    /// The failure policy decides.
    Here(String),
    /// What came of it is no object.
    Everywhere(String),
}

fn change(
    review: &Review<'_>,
    matched: &Matched,
    mutation: &Mutation,
    object: &Object,
    made: &sampan_cel::Value<'_>,
) -> Result<Object, Wrong> {
    let patches = mutation.wanted == Wanted::JsonPatch;
    let changed = match patches {
        true => patches::patch(object, made),
        false => patches::merge(&matched.type_of(review), object, made),
    };
    let mut changed = changed.map_err(Wrong::Here)?;
    if changed == *object {
        return Ok(changed);
    }
    let unknown = matched
        .conform(review, object, &mut changed)
        .map_err(|misfit: Misfit| Wrong::Everywhere(misfit.to_string()))?;
    match unknown.is_empty() {
        true => Ok(changed),
        false if matched.row(review).custom.is_some() => Ok(changed),
        false => {
            let unknown: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
            let why = format!("strict decoding error: {}", unknown.join(", "));
            Err(Wrong::Everywhere(why))
        }
    }
}
