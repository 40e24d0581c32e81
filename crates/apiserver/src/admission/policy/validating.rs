//! ValidatingAdmissionPolicy.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sampan_api::Object;
use sampan_api::status::{Cause, Status};
use sampan_auth::Authorizer;
use sampan_cel::{Activation, Budget, Value, policy as cel};
use serde_json::{Value as Json, json};

use super::evaluate::{Failure, Input, budget, conditions_hold, run, with_variables};
use super::source::{Active, Binding, Policy, Source, Validation};
use super::{bound, constrained, governed};
use crate::admission::matching::{Asker, Matched, Matcher};
use crate::admission::{Metrics, Notes, Plugin, Review, Wiring};
use crate::{Refusal, refuse};

/// An evaluation that took this long was expensive.
const LONG: Duration = Duration::from_millis(10);
const MAX_MESSAGE: usize = 5 * 1024;
const MAX_ANNOTATION: usize = 10 * 1024;

pub struct Validating {
    source: Arc<Source>,
    matcher: Matcher,
    authorizer: Authorizer,
    metrics: Arc<Metrics>,
}

impl Validating {
    pub fn new(wiring: &Wiring<'_>) -> Self {
        Validating {
            source: Source::follow(
                wiring.reader,
                "validatingadmissionpolicies",
                "validatingadmissionpolicybindings",
            ),
            matcher: Matcher::new(wiring.reader.clone(), wiring.rows.clone()),
            authorizer: wiring.authorizer.clone(),
            metrics: wiring.metrics.clone(),
        }
    }
}

/// What one validation came to.
#[derive(Clone)]
struct Denial {
    message: String,
    reason: String,
}

impl Denial {
    fn of(message: impl Into<String>) -> Denial {
        Denial {
            message: message.into(),
            reason: String::new(),
        }
    }
}

/// What a policy came to with one parameter.
#[derive(Default)]
struct Outcome {
    /// With the number of the validation.
    denials: Vec<(usize, Denial)>,
    /// Errors of annotations: they deny whatever the binding's actions are.
    errors: Vec<String>,
    annotations: Vec<(String, String)>,
}

impl Outcome {
    fn failed(policy: &Policy, why: String) -> Outcome {
        let mut outcome = Outcome::default();
        if !policy.ignores_failure {
            outcome.denials.push((0, Denial::of(why)));
        }
        outcome
    }
}

#[async_trait]
impl Plugin for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        governed(review) && !self.source.active().is_empty()
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, notes: &mut Notes) -> Result<(), Refusal> {
        let mut verdict = Verdict::default();
        for active in self.source.active().iter() {
            self.policy(active, review, object, notes, &mut verdict).await?;
        }
        match verdict.first {
            None => Ok(()),
            Some((message, reason)) => Err(refuse(status(review, object, message, &reason))),
        }
    }
}

/// What all policies came to: the first denial speaks for all.
#[derive(Default)]
struct Verdict {
    /// Message and reason.
    first: Option<(String, String)>,
}

impl Verdict {
    fn deny(&mut self, policy: &Policy, binding: Option<&Binding>, denial: Denial) {
        let by = binding.map_or_else(String::new, |binding| format!(" with binding '{}'", binding.name));
        self.first.get_or_insert_with(|| {
            let message = format!(
                "ValidatingAdmissionPolicy '{}'{by} denied request: {}",
                policy.name, denial.message
            );
            (message, denial.reason)
        });
    }

    /// A policy or a binding cannot be used.
    fn misconfigured(&mut self, policy: &Policy, binding: Option<&Binding>, why: &str) {
        if !policy.ignores_failure {
            let what = if binding.is_some() { "binding" } else { "policy" };
            self.deny(
                policy,
                binding,
                Denial::of(format!("failed to configure {what}: {why}")),
            );
        }
    }
}

/// What a policy sees of a request, in the version that matched.
struct Seen<'a> {
    object: Option<Cow<'a, Object>>,
    old: Option<Cow<'a, Object>>,
    input: Input,
}

/// Annotations a policy's evaluations ask for, by key.
type Published = BTreeMap<String, Vec<String>>;

/// `Forbidden` in upstream's words, but for reason and code.
fn status(review: &Review<'_>, object: Option<&Object>, message: String, reason: &str) -> Status {
    let mut status = review.forbid(object, &message);
    let (reason, code) = match reason {
        "Forbidden" => ("Forbidden", 403),
        "Unauthorized" => ("Unauthorized", 401),
        "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
        _ => ("Invalid", 422),
    };
    status.reason = reason.into();
    status.code = code;
    status.details.get_or_insert_default().causes.push(Cause {
        message,
        ..Cause::default()
    });
    status
}

impl Validating {
    async fn policy(
        &self,
        active: &Active,
        review: &Review<'_>,
        object: Option<&Object>,
        notes: &mut Notes,
        verdict: &mut Verdict,
    ) -> Result<(), Refusal> {
        let policy = &active.policy;
        let matched = match constrained(policy, review, object, &self.matcher) {
            Ok(None) => return Ok(()),
            Ok(Some(matched)) => matched,
            Err(why) => {
                verdict.misconfigured(policy, None, &why);
                return Ok(());
            }
        };
        let mut published = Published::new();
        // Worked out when the first binding needs it.
        let mut seen: Option<Seen<'_>> = None;
        for binding in &active.bindings {
            let found = match bound(active, binding, review, object, &self.matcher).await {
                Ok(found) => found,
                Err(why) => {
                    verdict.misconfigured(policy, Some(binding), &why);
                    continue;
                }
            };
            if found.is_empty() {
                continue;
            }
            if seen.is_none() {
                match shown(&matched, review, object).await {
                    Ok((object, old)) => {
                        let input = Input::of(review, &matched, &self.matcher)?;
                        seen = Some(Seen { object, old, input });
                    }
                    Err(refusal) => {
                        let why = format!("failed to convert object version: {}", refusal.message);
                        verdict.misconfigured(policy, Some(binding), &why);
                        continue;
                    }
                }
            }
            if let Some(seen) = &seen {
                for param in &found {
                    let started = Instant::now();
                    let outcome = self.evaluate(policy, review, seen, param);
                    if started.elapsed() > LONG {
                        // Others who wait for this thread go first.
                        tokio::task::yield_now().await;
                    }
                    carry_out(policy, binding, outcome, notes, verdict, &mut published);
                }
            }
        }
        for (key, values) in published {
            notes.annotate(format!("{}/{key}", policy.name), values.join(", "));
        }
        Ok(())
    }

    fn evaluate(&self, policy: &Policy, review: &Review<'_>, seen: &Seen<'_>, param: &Json) -> Outcome {
        let asker = Asker {
            authorizer: &self.authorizer,
            user: review.user,
        };
        let budget = budget();
        let (object, old) = (seen.object.as_deref(), seen.old.as_deref());
        let activation = seen.input.activation(review, object, old, param, &asker);
        match conditions_hold(policy, review, &activation, &self.metrics, "validate") {
            Ok(true) => evaluate(policy, activation, &budget),
            Ok(false) => Outcome::default(),
            Err(why) => Outcome::failed(policy, why),
        }
    }
}

/// The new and the old object in the version that matched.
async fn shown<'o>(
    matched: &Matched,
    review: &Review<'o>,
    object: Option<&'o Object>,
) -> Result<(Option<Cow<'o, Object>>, Option<Cow<'o, Object>>), Refusal> {
    Ok((
        matched.shown(review, object).await?,
        matched.shown(review, review.old).await?,
    ))
}

/// Does with an outcome what the binding says.
fn carry_out(
    policy: &Policy,
    binding: &Binding,
    outcome: Outcome,
    notes: &mut Notes,
    verdict: &mut Verdict,
    published: &mut Published,
) {
    for (index, denial) in outcome.denials {
        for action in &binding.actions {
            match action.as_str() {
                "Deny" => verdict.deny(policy, Some(binding), denial.clone()),
                "Warn" => notes.warn(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                    policy.name, binding.name, denial.message
                )),
                "Audit" => notes.annotate(
                    "validation.policy.admission.k8s.io/validation_failure",
                    failure(policy, binding, index, &denial.message),
                ),
                _ => {}
            }
        }
    }
    for why in outcome.errors {
        verdict.deny(policy, Some(binding), Denial::of(why));
    }
    for (key, value) in outcome.annotations {
        let values = published.entry(key).or_default();
        if !values.contains(&value) {
            values.push(value);
        }
    }
}

/// The audit annotation of a failure.
fn failure(policy: &Policy, binding: &Binding, index: usize, message: &str) -> String {
    let failure: Json = json!([{
        "message": message,
        "policy": policy.name,
        "binding": binding.name,
        "expressionIndex": index,
        "validationActions": binding.actions,
    }]);
    failure.to_string()
}

fn evaluate<'a>(policy: &'a Policy, activation: Activation<'a>, budget: &'a Budget) -> Outcome {
    with_variables(policy, activation, budget, |activation| {
        let mut outcome = Outcome::default();
        for (index, validation) in policy.validations.iter().enumerate() {
            match run(&validation.expression, &validation.text, activation, budget) {
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(_) => match message(validation, activation, budget) {
                    Ok(message) => outcome.denials.push((
                        index,
                        Denial {
                            message,
                            reason: validation.reason.clone(),
                        },
                    )),
                    Err(why) if !policy.ignores_failure => outcome.denials.push((index, Denial::of(why))),
                    Err(_) => {}
                },
                Err(Failure::One(why)) if !policy.ignores_failure => outcome.denials.push((index, Denial::of(why))),
                Err(Failure::One(_)) => {}
                Err(Failure::All(why)) => return Outcome::failed(policy, why),
            }
        }
        annotate(policy, activation, &mut outcome);
        outcome
    })
}

/// What is said of a failed validation: the worked-out message, the fixed one, or the expression.
fn message(validation: &Validation, activation: &Activation<'_>, budget: &Budget) -> Result<String, String> {
    let mut said = String::new();
    if let Some(expression) = &validation.message_expression {
        match run(expression, &validation.text, activation, budget) {
            Ok(value) => said = value.as_str().unwrap_or_default().trim().to_owned(),
            Err(Failure::All(why)) => return Err(format!("failed messageExpression: {why}")),
            Err(Failure::One(_)) => {}
        }
        if said.len() > MAX_MESSAGE || said.contains('\n') {
            said.clear();
        }
    }
    Ok(match (said.as_str(), validation.message.as_str()) {
        ("", "") => format!("failed expression: {}", validation.text),
        ("", message) => message.to_owned(),
        (said, _) => said.to_owned(),
    })
}

fn annotate(policy: &Policy, activation: &Activation<'_>, outcome: &mut Outcome) {
    let budget = budget();
    for annotation in &policy.annotations {
        match run(&annotation.expression, &annotation.text, activation, &budget) {
            Ok(Value::Null) => {}
            Ok(Value::String(text)) => {
                let mut text = text.trim().to_owned();
                if text.len() > MAX_ANNOTATION {
                    let end = (0..=MAX_ANNOTATION).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                    text.truncate(end);
                }
                if !text.is_empty() {
                    outcome.annotations.push((annotation.key.clone(), text));
                }
            }
            Ok(other) => outcome.errors.push(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                annotation.text,
                cel::type_of(&other)
            )),
            Err(_) if policy.ignores_failure => {}
            Err(Failure::One(why) | Failure::All(why)) => outcome.errors.push(why),
        }
    }
}
