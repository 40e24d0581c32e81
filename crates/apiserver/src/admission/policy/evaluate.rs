//! One evaluation of a policy: its variables, its budget, and the words of its failures.

use std::rc::Rc;

use sampan_api::Object;
use sampan_auth::{Attributes, Authorizer, UserInfo};
use sampan_cel::policy::Variables;
use sampan_cel::{
    Activation, Authorize, Budget, Decision, EvalError, MATCH_CONDITIONS_BUDGET, Question, RUNTIME_BUDGET, Value,
    admission,
};
use serde_json::{Value as Json, json};

use super::source::{Compiled, Policy};
use crate::admission::review::kind_of;
use crate::admission::{Reader, Review};
use crate::rows::Row;

/// Answers `authorizer` for the user of a request.
pub struct Asker<'a> {
    pub authorizer: &'a Authorizer,
    pub user: &'a UserInfo,
}

impl Authorize for Asker<'_> {
    fn authorize(&self, question: &Question<'_>) -> Decision {
        let robot = question
            .service_account
            .map(|(namespace, name)| UserInfo::service_account(namespace, name, ""));
        let user = robot.as_ref().unwrap_or(self.user);
        let attributes = match question.path {
            Some(path) => Attributes::path(user, question.verb, path),
            None => Attributes {
                version: "*",
                subresource: question.subresource,
                namespace: question.namespace,
                name: question.name,
                ..Attributes::resource(user, question.verb, question.group, question.resource)
            },
        };
        let decision = self.authorizer.authorize(&attributes);
        Decision {
            allowed: decision.allowed,
            reason: decision.reason,
            error: None,
        }
    }
}

/// What the expressions of a policy see, but for the object and the parameters.
pub struct Input {
    request: Json,
    namespace: Json,
    resource: [String; 5],
}

impl Input {
    pub fn of(review: &Review<'_>, matched: &Row, reader: &Reader) -> Input {
        let subresource = review.subresource;
        let kind = |row: &Row| {
            let (group, version, kind) = kind_of(row, subresource);
            json!({"group": group, "version": version, "kind": kind})
        };
        let resource = |row: &Row| {
            let spec = row.spec;
            json!({"group": spec.group, "version": spec.version, "resource": spec.plural})
        };
        let request = json!({
            "kind": kind(matched),
            "resource": resource(matched),
            "subResource": subresource,
            "requestKind": kind(review.row),
            "requestResource": resource(review.row),
            "requestSubResource": subresource,
            "name": review.name,
            "namespace": review.namespace,
            "operation": review.operation.name(),
            "userInfo": {
                "username": review.user.name,
                "uid": review.user.uid,
                "groups": review.user.groups,
                "extra": review.user.extra,
            },
            "dryRun": review.dry_run,
            "options": review.options(),
        });
        let is_namespace = review.row.is("", "namespaces");
        let namespace = if review.namespace.is_empty() || is_namespace {
            None
        } else {
            reader.get("namespaces", review.namespace).map(|entry| entry.object())
        };
        let spec = review.row.spec;
        let resource = [spec.group, spec.plural, subresource, review.namespace, review.name].map(str::to_owned);
        Input {
            request,
            namespace: namespace.unwrap_or(Json::Null),
            resource,
        }
    }

    pub fn activation<'a>(
        &'a self,
        object: Option<&'a Object>,
        old: Option<&'a Object>,
        params: &'a Json,
        asker: &'a Asker<'a>,
    ) -> Activation<'a> {
        let or_null = |object: Option<&'a Object>| object.map_or(Value::Null, Value::json);
        let resource: [&str; 5] = self.resource.each_ref().map(String::as_str);
        Activation::new()
            .with("object", or_null(object))
            .with("oldObject", or_null(old))
            .with("params", Value::json(params))
            .with("request", Value::typed(&self.request, admission::request()))
            .with("namespaceObject", Value::typed(&self.namespace, admission::namespace()))
            .with("authorizer", Value::authorizer(asker))
            .with("authorizer.requestResource", Value::request_resource(asker, resource))
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

/// Whether the match conditions hold. One that does not outweighs errors of the others.
pub fn conditions_hold(policy: &Policy, activation: &Activation<'_>) -> Result<bool, String> {
    let budget = Budget::new(MATCH_CONDITIONS_BUDGET);
    let mut errors = Vec::new();
    for (condition, text) in policy.conditions.iter().zip(&policy.condition_texts) {
        match run(condition, text, activation, &budget) {
            Ok(value) if value.as_bool() == Some(false) => return Ok(false),
            Ok(_) => {}
            Err(Failure::One(why)) => errors.push(why),
            Err(Failure::All(why)) => {
                errors.push(why);
                break;
            }
        }
    }
    match (errors.len(), policy.ignores_failure) {
        (0, _) => Ok(true),
        (_, true) => Ok(false),
        (1, false) => Err(errors.concat()),
        (_, false) => Err(format!("[{}]", errors.join(", "))),
    }
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
