//! Nobody hands out rights they do not have: the escalation check on roles and bindings.

use async_trait::async_trait;
use sampan_api::{Object, meta};
use sampan_auth::{Authorizer, Rule};
use serde_json::{Value, json};

use super::{Notes, Operation, Plugin, Review, text};
use crate::{Refusal, refuse};

const GROUP: &str = "rbac.authorization.k8s.io";

pub struct NoEscalation(Authorizer);

impl NoEscalation {
    pub fn new(authorizer: Authorizer) -> Self {
        NoEscalation(authorizer)
    }
}

#[async_trait]
impl Plugin for NoEscalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        matches!(review.operation, Operation::Create | Operation::Update)
            && review.row.spec.group == GROUP
            && !review.user.in_group("system:masters")
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let Some(object) = object else { return Ok(()) };
        let plural = review.row.spec.plural;
        let unchanged = |fields: &[&str]| {
            review
                .old
                .is_some_and(|old| fields.iter().all(|field| old.get(field) == object.get(field)))
        };
        let verdict = if plural.ends_with("roles") {
            if unchanged(&["rules", "aggregationRule"]) {
                return Ok(());
            }
            if object.get("aggregationRule").is_some_and(|rule| !rule.is_null()) {
                // Whatever such a role gathers later is not known now: only who may do everything may have it.
                let everything = [
                    Rule::from_value(&json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})),
                    Rule::from_value(&json!({"verbs": ["*"], "nonResourceURLs": ["*"]})),
                ];
                return self
                    .0
                    .may_define_role(review.user, plural, "", meta::name(object), &everything)
                    .map_err(|_| {
                        review.refuse(object, "must have cluster-admin privileges to use an aggregationRule")
                    });
            }
            let wanted = Rule::all_of(object);
            self.0
                .may_define_role(review.user, plural, review.namespace, meta::name(object), &wanted)
        } else {
            if unchanged(&["subjects", "roleRef"])
                || object
                    .get("subjects")
                    .and_then(Value::as_array)
                    .is_none_or(Vec::is_empty)
            {
                return Ok(());
            }
            self.0.may_bind(
                review.user,
                review.namespace,
                text(object, "/roleRef/kind"),
                text(object, "/roleRef/name"),
            )
        };
        verdict.map_err(|why| refuse(review.forbid(Some(object), &why)))
    }
}
