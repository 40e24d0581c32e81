//! The webhook authorizer: SubjectAccessReview, asked of somebody else.
//!
//! Match conditions spare calls: one that is false means no opinion; one that cannot be evaluated is the failure
//! policy's business, as is a webhook without an answer. Answers are remembered for as long as the configuration says,
//! but for requests whose user or name is so long that strangers could fill the memory with them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sampan_auth::{Attributes, Decision, Remote, Requirement};
use sampan_cel::{Activation, Budget, MATCH_CONDITIONS_BUDGET, Program, Value as CelValue};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::config::WebhookConfig;
use super::metrics::Metrics;
use crate::answers::Answers;
use crate::outbound::{CallError, Hook, KubeconfigError, Outbound};

const REMEMBERED: usize = 8192;
/// The most that a remembered request may say of itself, in bytes, as upstream has it.
const LONGEST: usize = 10_000;

pub struct Webhook {
    name: String,
    hook: Hook,
    api_version: String,
    timeout: Duration,
    authorized: Duration,
    unauthorized: Duration,
    fail_closed: bool,
    conditions: Arc<Vec<(String, Program)>>,
    answers: Answers<Decision>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook")
            .field("name", &self.name)
            .field("hook", &self.hook)
            .finish_non_exhaustive()
    }
}

impl Webhook {
    pub fn new(
        name: &str,
        config: &WebhookConfig,
        outbound: &Outbound,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, KubeconfigError> {
        Ok(Webhook {
            name: name.to_owned(),
            hook: Hook::read(&config.kubeconfig, outbound)?,
            api_version: format!("authorization.k8s.io/{}", config.version),
            timeout: config.timeout,
            authorized: config.authorized,
            unauthorized: config.unauthorized,
            fail_closed: config.fail_closed,
            conditions: config.conditions.clone(),
            answers: Answers::new(REMEMBERED),
            metrics: metrics.clone(),
        })
    }

    /// What a failure means.
    fn failure(&self, why: &str) -> Decision {
        Decision {
            denied: self.fail_closed,
            error: why.to_owned(),
            ..Decision::default()
        }
    }

    /// Whether all conditions hold. One that does not outweighs the errors of all others.
    fn matches(&self, spec: &Value) -> Result<bool, String> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let seen = complete(spec);
        let activation = Activation::new().with("request", CelValue::json(&seen));
        let budget = Budget::new(MATCH_CONDITIONS_BUDGET);
        let mut errors = Vec::new();
        for (expression, program) in self.conditions.iter() {
            match program.eval(&activation, &budget) {
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(_) => return Ok(false),
                Err(error) => errors.push(format!(
                    "cel evaluation error: expression '{expression}' resulted in error: {error}"
                )),
            }
        }
        match errors.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }

    async fn ask(&self, request: &Attributes<'_>) -> Decision {
        let spec = spec(request, &self.api_version);
        match self.matches(&spec) {
            Ok(true) => {}
            Ok(false) => {
                self.metrics.excluded(&self.name);
                return Decision::default();
            }
            Err(why) => {
                self.metrics.condition_failed(&self.name);
                return self.failure(&why);
            }
        }
        let remember = size(request) < LONGEST;
        let key = Sha256::digest(spec.to_string()).into();
        let asking = async {
            let review = json!({
                "apiVersion": self.api_version, "kind": "SubjectAccessReview",
                "metadata": {"creationTimestamp": null}, "spec": spec, "status": {"allowed": false},
            });
            let started = Instant::now();
            let answer = self.hook.post(&review, self.timeout).await;
            let result = match &answer {
                Ok(_) => "success",
                Err(CallError::Deadline) => "timeout",
                Err(CallError::Failed(_)) => "error",
            };
            self.metrics.asked(&self.name, result, started.elapsed());
            let decision = answer
                .map_err(|error| error.to_string())
                .and_then(|answer| self.read(&answer))
                .map_err(|why| (why, result))?;
            let good_for = match (remember, decision.allowed) {
                (false, _) => Duration::ZERO,
                (true, true) => self.authorized,
                (true, false) => self.unauthorized,
            };
            Ok((decision, good_for))
        };
        match self.answers.get(key, asking).await {
            Ok(decision) => decision,
            Err((why, result)) => {
                tracing::warn!(webhook = self.name, why, "the authorization webhook gave no answer");
                if !self.fail_closed {
                    self.metrics.failed_open(&self.name, result);
                }
                self.failure(&why)
            }
        }
    }

    fn read(&self, answer: &Value) -> Result<Decision, String> {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = (text(answer.get("apiVersion")), text(answer.get("kind")));
        if kind != (self.api_version.clone(), "SubjectAccessReview".to_owned()) {
            return Err(format!(
                "the webhook answered with {} of {:?} instead of SubjectAccessReview of {:?}",
                kind.1, kind.0, self.api_version
            ));
        }
        let status = answer.get("status").unwrap_or(&Value::Null);
        let flag = |field: &str| status.get(field).and_then(Value::as_bool).unwrap_or(false);
        let (allowed, denied) = (flag("allowed"), flag("denied"));
        Ok(Decision {
            allowed: allowed && !denied,
            denied,
            reason: text(status.get("reason")),
            error: match allowed && denied {
                true => "webhook subject access review returned both allow and deny response".into(),
                false => String::new(),
            },
        })
    }
}

impl Remote for Webhook {
    fn decide<'a>(&'a self, request: &'a Attributes<'a>) -> Pin<Box<dyn Future<Output = Decision> + Send + 'a>> {
        Box::pin(self.ask(request))
    }

    fn decide_now(&self, request: &Attributes<'_>) -> Decision {
        match Handle::try_current() {
            Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
                tokio::task::block_in_place(|| handle.block_on(self.ask(request)))
            }
            // There is no other thread that could go on meanwhile.
            _ => self.failure("the webhook cannot be asked from here"),
        }
    }
}

/// The spec of a review; what is empty is left out, as Go's clients do.
fn spec(request: &Attributes<'_>, api_version: &str) -> Value {
    let mut spec = json!({});
    let user = request.user;
    if !user.name.is_empty() {
        spec["user"] = user.name.as_str().into();
    }
    if !user.groups.is_empty() {
        let field = if api_version.ends_with("v1beta1") {
            "group"
        } else {
            "groups"
        };
        spec[field] = user.groups.clone().into();
    }
    if !user.uid.is_empty() {
        spec["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
    let mut attributes = json!({});
    let mut say = |field: &str, value: &str| {
        if !value.is_empty() {
            attributes[field] = value.into();
        }
    };
    if !request.resource_request {
        say("path", request.path);
        say("verb", request.verb);
        spec["nonResourceAttributes"] = attributes;
        return spec;
    }
    for (field, value) in [
        ("namespace", request.namespace),
        ("verb", request.verb),
        ("group", request.group),
        ("version", request.version),
        ("resource", request.resource),
        ("subresource", request.subresource),
        ("name", request.name),
    ] {
        say(field, value);
    }
    if let Some(selectors) = request.selectors {
        for (field, requirements) in [
            ("fieldSelector", &selectors.fields),
            ("labelSelector", &selectors.labels),
        ] {
            if !requirements.is_empty() {
                attributes[field] = json!({"requirements": requirements.iter().map(shown).collect::<Vec<_>>()});
            }
        }
    }
    spec["resourceAttributes"] = attributes;
    spec
}

fn shown(requirement: &Requirement) -> Value {
    let mut shown = json!({"key": requirement.key, "operator": requirement.operator});
    if !requirement.values.is_empty() {
        shown["values"] = requirement.values.clone().into();
    }
    shown
}

/// The spec as conditions see it: every text is there, empty or not.
fn complete(spec: &Value) -> Value {
    let mut seen = spec.clone();
    let Some(map) = seen.as_object_mut() else {
        return seen;
    };
    if let Some(groups) = map.remove("group") {
        map.insert("groups".into(), groups);
    }
    for (field, empty) in [
        ("user", json!("")),
        ("uid", json!("")),
        ("groups", json!([])),
        ("extra", json!({})),
    ] {
        map.entry(field).or_insert(empty);
    }
    let texts: [(&str, &[&str]); 2] = [
        (
            "resourceAttributes",
            &[
                "namespace",
                "verb",
                "group",
                "version",
                "resource",
                "subresource",
                "name",
            ],
        ),
        ("nonResourceAttributes", &["path", "verb"]),
    ];
    for (attributes, fields) in texts {
        if let Some(attributes) = map.get_mut(attributes).and_then(Value::as_object_mut) {
            for field in fields {
                attributes.entry(*field).or_insert_with(|| "".into());
            }
        }
    }
    seen
}

/// What a client can make as long as it likes.
fn size(request: &Attributes<'_>) -> usize {
    [
        request.namespace,
        request.verb,
        request.group,
        request.version,
        request.resource,
        request.subresource,
        request.name,
        request.path,
    ]
    .iter()
    .map(|text| text.len())
    .sum()
}
