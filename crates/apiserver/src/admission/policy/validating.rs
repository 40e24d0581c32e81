//! ValidatingAdmissionPolicy.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::Object;
use sampan_api::status::{Cause, Status};
use sampan_auth::Authorizer;
use sampan_cel::{Activation, Budget, Value, policy as cel};
use serde_json::{Value as Json, json};

use super::evaluate::{Asker, Failure, Input, budget, conditions_hold, run, with_variables};
use super::source::{Active, Binding, Policy, Source, Validation};
use super::{governed, params};
use crate::admission::{Notes, Plugin, Reader, Review, Wiring};
use crate::rows::Rows;
use crate::{Refusal, refuse};

const MAX_MESSAGE: usize = 5 * 1024;
const MAX_ANNOTATION: usize = 10 * 1024;

pub struct Validating {
    source: Arc<Source>,
    reader: Reader,
    rows: Arc<Rows>,
    authorizer: Authorizer,
}

impl Validating {
    pub fn new(wiring: &Wiring<'_>) -> Self {
        Validating {
            source: Source::follow(
                wiring.reader,
                "validatingadmissionpolicies",
                "validatingadmissionpolicybindings",
            ),
            reader: wiring.reader.clone(),
            rows: wiring.rows.clone(),
            authorizer: wiring.authorizer.clone(),
        }
    }
}

/// What one validation came to.
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
        let mut first: Option<(String, String)> = None;
        for active in self.source.active().iter() {
            let denied = self.policy(active, review, object, notes);
            first = first.or(denied);
        }
        match first {
            None => Ok(()),
            Some((message, reason)) => Err(refuse(status(review, object, message, &reason))),
        }
    }
}

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
    /// The first denial, as message and reason.
    fn policy(
        &self,
        active: &Active,
        review: &Review<'_>,
        object: Option<&Object>,
        notes: &mut Notes,
    ) -> Option<(String, String)> {
        let policy = &active.policy;
        let mut first: Option<(String, String)> = None;
        let mut deny = |binding: Option<&Binding>, denial: Denial| {
            let message = match binding {
                Some(binding) => format!(
                    "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {}",
                    policy.name, binding.name, denial.message
                ),
                None => format!(
                    "ValidatingAdmissionPolicy '{}' denied request: {}",
                    policy.name, denial.message
                ),
            };
            first.get_or_insert((message, denial.reason));
        };
        let misconfigured = |what: &str, why: String| Denial::of(format!("failed to configure {what}: {why}"));
        let matched = match policy.criteria.matches(review, object, &self.reader, &self.rows) {
            Ok(None) => return None,
            Ok(Some(matched)) => params::check(policy.params.as_ref(), &self.rows).map(|()| matched),
            Err(why) => Err(why),
        };
        let matched = match matched {
            Ok(matched) => matched,
            Err(why) => {
                if !policy.ignores_failure {
                    deny(None, misconfigured("policy", why));
                }
                return first;
            }
        };
        let shown = object.and_then(|object| matched.shown(review, object));
        let shown_old = review.old.and_then(|old| matched.shown(review, old));
        let (object_seen, old_seen) = (shown.as_ref().or(object), shown_old.as_ref().or(review.old));
        let mut input = None;
        let mut published: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for binding in &active.bindings {
            let found = binding
                .criteria
                .as_ref()
                .map_or(Ok(true), |criteria| {
                    let found = criteria.matches(review, object, &self.reader, &self.rows)?;
                    Ok(found.is_some())
                })
                .and_then(|matches| {
                    if !matches {
                        return Ok(Vec::new());
                    }
                    params::collect(policy.params.as_ref(), binding.params.as_ref(), review, &self.rows)
                });
            let found = match found {
                Ok(found) => found,
                Err(why) => {
                    if !policy.ignores_failure {
                        deny(Some(binding), misconfigured("binding", why));
                    }
                    continue;
                }
            };
            for param in &found {
                let input = input.get_or_insert_with(|| Input::of(review, matched.row(review), &self.reader));
                let asker = Asker {
                    authorizer: &self.authorizer,
                    user: review.user,
                };
                let budget = budget();
                let activation = input.activation(object_seen, old_seen, param, &asker);
                let outcome = evaluate(policy, activation, &budget);
                for (index, denial) in outcome.denials {
                    for action in &binding.actions {
                        match action.as_str() {
                            "Deny" => deny(
                                Some(binding),
                                Denial {
                                    message: denial.message.clone(),
                                    reason: denial.reason.clone(),
                                },
                            ),
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
                    deny(Some(binding), Denial::of(why));
                }
                for (key, value) in outcome.annotations {
                    let values = published.entry(key).or_default();
                    if !values.contains(&value) {
                        values.push(value);
                    }
                }
            }
        }
        for (key, values) in published {
            notes.annotate(format!("{}/{key}", policy.name), values.join(", "));
        }
        first
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
    match conditions_hold(policy, &activation) {
        Ok(true) => {}
        Ok(false) => return Outcome::default(),
        Err(why) => return Outcome::failed(policy, why),
    }
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
