//! One evaluation of a policy: its variables, its budget, and the words of its failures.

use std::rc::Rc;
use std::time::Instant;

use sampan_api::Object;
use sampan_cel::policy::Variables;
use sampan_cel::{Activation, Budget, EvalError, RUNTIME_BUDGET, Value, admission};
use serde_json::Value as Json;

use super::source::{Compiled, Policy};
use crate::Refusal;
use crate::admission::matching::{self, Asker, Matched, Matcher, Request};
use crate::admission::{Metrics, Review};

/// What the expressions of a policy see, but for the objects and the parameters.
pub struct Input {
    request: Json,
    namespace: Json,
}

impl Input {
    pub fn of(review: &Review<'_>, matched: &Matched, matcher: &Matcher) -> Result<Input, Refusal> {
        Ok(Input {
            request: Request::of(review, matched).json(),
            namespace: matcher.namespace(review)?.unwrap_or(Json::Null),
        })
    }

    pub fn activation<'a>(
        &'a self,
        review: &Review<'a>,
        object: Option<&'a Object>,
        old: Option<&'a Object>,
        params: &'a Json,
        asker: &'a Asker<'a>,
    ) -> Activation<'a> {
        matching::activation(review, &self.request, object, old, asker)
            .with("params", Value::json(params))
            .with("namespaceObject", Value::typed(&self.namespace, admission::namespace()))
    }
}

/// Why an expression has no value.
pub enum Failure {
    /// This expression failed.
    One(String),
    /// Nothing more can be evaluated.
    All(String),
}

/// Evaluates with the words of upstream for what goes wrong.
pub fn run<'a>(
    expression: &Compiled,
    text: &str,
    activation: &Activation<'a>,
    budget: &Budget,
) -> Result<Value<'a>, Failure> {
    let program = expression
        .as_ref()
        .map_err(|why| Failure::One(format!("compilation error: {why}")))?;
    program.eval(activation, budget).map_err(|error| match error {
        EvalError::Budget => Failure::All(error.to_string()),
        error => Failure::One(format!("expression '{text}' resulted in error: {error}")),
    })
}

/// Whether the match conditions hold; booked. `kind`: `validate` or `admit`. Where errors are ignored, they spare
/// the evaluation.
pub fn conditions_hold(
    policy: &Policy,
    review: &Review<'_>,
    activation: &Activation<'_>,
    metrics: &Metrics,
    kind: &str,
) -> Result<bool, String> {
    if policy.conditions.is_empty() {
        return Ok(true);
    }
    let started = Instant::now();
    let verdict = policy.conditions.hold(activation);
    let told = verdict.as_ref().copied().map_err(|_| ());
    let took = started.elapsed();
    metrics.match_conditions(&policy.name, "policy", kind, review.operation, took, told);
    verdict.or_else(|why| if policy.ignores_failure { Ok(false) } else { Err(why) })
}

/// Gives the activation with the policy's variables to `evaluate`, and clears them away afterwards.
pub fn with_variables<'a, T>(
    policy: &'a Policy,
    base: Activation<'a>,
    budget: &'a Budget,
    evaluate: impl FnOnce(&Activation<'a>) -> T,
) -> T {
    let variables: Rc<Variables<'a>> = Variables::new(&policy.variables, base, budget);
    let result = evaluate(&variables.activation());
    variables.end();
    result
}

pub fn budget() -> Budget {
    Budget::new(RUNTIME_BUDGET)
}
