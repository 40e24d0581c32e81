//! Match conditions: CEL that spares calls.
//!
//! Compiled with the configuration; evaluated on what the webhook would be shown. One condition that does not hold
//! outweighs the errors of all others; otherwise an error is the failure policy's business.

use sampan_api::Object;
use sampan_auth::{Attributes, Authorizer, UserInfo};
use sampan_cel::{
    Activation, Authorize, Budget, Decision, EvalError, MATCH_CONDITIONS_BUDGET, Program, Question, Value, admission,
};
use serde_json::{Value as Json, json};

use super::super::{Review, text};
use super::matching::Invocation;

/// The conditions of one webhook.
#[derive(Default)]
pub struct Conditions(Vec<(String, Result<Program, String>)>);

impl Conditions {
    pub fn of(hook: &Json) -> Self {
        let conditions = hook.get("matchConditions").and_then(Json::as_array);
        let Some(conditions) = conditions.filter(|conditions| !conditions.is_empty()) else {
            return Conditions::default();
        };
        let env = admission::env();
        let compile = |condition: &Json| {
            let expression = text(condition, "/expression").trim();
            let program = env
                .compile(expression)
                .map_err(|error| format!("compilation error: compilation failed: {error}"));
            (expression.to_owned(), program)
        };
        Conditions(conditions.iter().map(compile).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold; else the errors, where none failed to.
    pub fn hold(
        &self,
        invocation: &Invocation<'_>,
        review: &Review<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        authorizer: &Authorizer,
    ) -> Result<bool, String> {
        let asker = Asker {
            authorizer,
            user: review.user,
        };
        let request = request(invocation, review);
        let spec = review.row.spec;
        let resource = [
            spec.group,
            spec.plural,
            review.subresource,
            review.namespace,
            review.name,
        ];
        let activation = Activation::new()
            .with("object", object.map_or(Value::Null, Value::json))
            .with("oldObject", old.map_or(Value::Null, Value::json))
            .with("request", Value::typed(&request, admission::request()))
            .with("authorizer", Value::authorizer(&asker))
            .with("authorizer.requestResource", Value::request_resource(&asker, resource));
        let budget = Budget::new(MATCH_CONDITIONS_BUDGET);
        let mut errors = Vec::new();
        for (expression, program) in &self.0 {
            let program = match program {
                Ok(program) => program,
                Err(why) => {
                    errors.push(why.clone());
                    continue;
                }
            };
            match program.eval(&activation, &budget) {
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(_) => return Ok(false),
                Err(error @ EvalError::Budget) => {
                    errors.push(error.to_string());
                    break;
                }
                Err(error) => errors.push(format!("expression '{expression}' resulted in error: {error}")),
            }
        }
        match errors.len() {
            0 => Ok(true),
            1 => Err(errors.concat()),
            _ => Err(format!("[{}]", errors.join(", "))),
        }
    }
}

/// The variable `request`.
fn request(invocation: &Invocation<'_>, review: &Review<'_>) -> Json {
    let kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let resource =
        |spec: &sampan_kinds::Resource| json!({"group": spec.group, "version": spec.version, "resource": spec.plural});
    let user = review.user;
    json!({
        "kind": kind(invocation.kind(review)),
        "resource": resource(invocation.row().spec),
        "subResource": review.subresource,
        "requestKind": kind(review.kind()),
        "requestResource": resource(review.row.spec),
        "requestSubResource": review.subresource,
        "name": review.name,
        "namespace": review.namespace,
        "operation": review.operation.name(),
        "userInfo": {"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra},
        "dryRun": review.dry_run,
        "options": review.options(),
    })
}

/// Answers `authorizer` for the user of the request.
struct Asker<'a> {
    authorizer: &'a Authorizer,
    user: &'a UserInfo,
}

impl Authorize for Asker<'_> {
    fn authorize(&self, question: &Question<'_>) -> Decision {
        let account = question
            .service_account
            .map(|(namespace, name)| UserInfo::service_account(namespace, name, ""));
        let user = account.as_ref().unwrap_or(self.user);
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
