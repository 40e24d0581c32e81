//! Mutating and validating admission webhooks.
//!
//! Configurations are compiled once per change ([`config`]) and in force before the write that made them is
//! answered. A request is matched against the compiled rules ([`super::matching`]), shown to the webhook in the version
//! the rule asks for ([`review`]) if its conditions hold, and the answer is checked before anything of it is believed
//! ([`call`]).
//!
//! Mutating webhooks run one after the other in the order of their configurations' names; validating ones run side
//! by side. Writes of the server itself and the configurations of admission are exempt, so that no webhook can lock
//! a cluster up.

mod call;
mod config;
mod review;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use sampan_api::Object;
use sampan_api::codec::printed;
use sampan_api::patch::json::JsonPatch;
use sampan_api::status::Status;
use sampan_auth::Authorizer;
use serde_json::{Value, json};

use self::call::{Failure, Outcome};
use self::config::{Hook, Source};
use super::matching::{Asker, Matched, Matcher, Misfit, Request, activation};
use super::{Metrics, Notes, Plugin, Review, Wiring};
use crate::{Refusal, refuse};

const MUTATING: &str = "MutatingAdmissionWebhook";
const VALIDATING: &str = "ValidatingAdmissionWebhook";
const MUTATION: &str = "mutation.webhook.admission.k8s.io/";
const PATCH: &str = "patch.webhook.admission.k8s.io/";
const VALIDATION: &str = "validating.webhook.admission.k8s.io/";

/// A webhook about to be called, and how it sees objects.
struct Invocation<'a> {
    hook: &'a Hook,
    matched: Matched,
}

/// The configurations of admission themselves: no webhook may stand between a cluster and its repair.
fn is_exempt(review: &Review<'_>) -> bool {
    review.row.spec.group == "admissionregistration.k8s.io"
        && matches!(
            review.row.spec.kind,
            "ValidatingWebhookConfiguration"
                | "MutatingWebhookConfiguration"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
                | "MutatingAdmissionPolicy"
                | "MutatingAdmissionPolicyBinding"
        )
}

/// What both kinds share.
struct Webhooks {
    source: Arc<Source>,
    matcher: Matcher,
    authorizer: Authorizer,
    metrics: Arc<Metrics>,
    /// As metrics name it.
    kind: &'static str,
}

impl Webhooks {
    fn new(wiring: &Wiring<'_>, prefix: &str, kind: &'static str) -> Self {
        let configured = &wiring.selection.configuration;
        let credentials = match kind {
            "admit" => &configured.mutating_webhooks,
            _ => &configured.validating_webhooks,
        };
        let source = Source::new(wiring.outbound.clone(), credentials.clone());
        match wiring.reader.storage(prefix) {
            Some(storage) => source.follow(&storage),
            None => tracing::error!(prefix, "webhooks have no storage to be read from"),
        }
        Webhooks {
            source,
            matcher: Matcher::new(wiring.reader.clone(), wiring.rows.clone()),
            authorizer: wiring.authorizer.clone(),
            metrics: wiring.metrics.clone(),
            kind,
        }
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        if review.internal || is_exempt(review) {
            return false;
        }
        let hooks = self.source.hooks();
        hooks
            .iter()
            .any(|hook| self.matcher.by_rules(&hook.criteria, review).is_some())
    }

    fn select<'a>(
        &self,
        hook: &'a Hook,
        review: &Review<'_>,
        object: Option<&Object>,
    ) -> Result<Option<Invocation<'a>>, Refusal> {
        let matched = self.matcher.select(&hook.criteria, review, object)?;
        Ok(matched.map(|matched| Invocation { hook, matched }))
    }

    /// Whether the match conditions hold. An error of theirs ends the request, or spares the call.
    async fn conditions_hold(
        &self,
        invocation: &Invocation<'_>,
        review: &Review<'_>,
        object: Option<&Object>,
    ) -> Result<bool, Refusal> {
        let hook = invocation.hook;
        if hook.conditions.is_empty() {
            return Ok(true);
        }
        let old = invocation.matched.shown(review, review.old).await?;
        let started = Instant::now();
        let verdict = self.evaluate(invocation, review, object, old.as_deref());
        let kind = if self.kind == "admit" { "admit" } else { "validate" };
        let told = verdict.as_ref().copied().map_err(|_| ());
        self.metrics
            .match_conditions(&hook.name, "webhook", kind, review.operation, started.elapsed(), told);
        match verdict {
            Err(_) if hook.ignores_failure => Ok(false),
            Err(why) => Err(refuse(review.forbid(object, &why))),
            Ok(verdict) => Ok(verdict),
        }
    }

    fn evaluate(
        &self,
        invocation: &Invocation<'_>,
        review: &Review<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
    ) -> Result<bool, String> {
        let asker = Asker {
            authorizer: &self.authorizer,
            user: review.user,
        };
        let request = Request::of(review, &invocation.matched).json();
        let activation = activation(review, &request, object, old, &asker);
        invocation.hook.conditions.hold(&activation)
    }

    /// Calls one webhook and books it. `Err` is what the client hears; a failure that is ignored is `Ok(None)`.
    async fn call(&self, invocation: &Invocation<'_>, review: &Review<'_>, object: Option<&Object>) -> Called {
        let hook = invocation.hook;
        let started = Instant::now();
        let mutating = self.kind == "admit";
        let (said, result) = call::call(invocation, review, object, mutating).await;
        let took = started.elapsed();
        let (rejected, error, code) = match &result {
            Ok(_) => (false, "", 200),
            Err(Failure::Calling { code, .. }) => (!hook.ignores_failure, "calling_webhook_error", *code),
            Err(Failure::Rejected(status)) => (true, "no_error", status.code),
            Err(Failure::Refused(_)) => (true, "apiserver_internal_error", 0),
        };
        let metrics = &self.metrics;
        metrics.webhook(&hook.name, self.kind, review.operation, took, code, rejected);
        if rejected {
            metrics.webhook_rejection(&hook.name, self.kind, review.operation, error, code);
        }
        let failed_open = matches!(&result, Err(Failure::Calling { .. })) && hook.ignores_failure;
        let result = match result {
            Ok(outcome) => Ok(outcome),
            Err(Failure::Calling { why, .. }) => {
                let why = format!("failed calling webhook {:?}: {why}", hook.name);
                if failed_open {
                    tracing::warn!(error = why, "a webhook failed and is passed over");
                    metrics.webhook_fail_open(&hook.name, self.kind);
                    Ok(Outcome::default())
                } else {
                    tracing::warn!(error = why, "a webhook failed and the request with it");
                    Err(refuse(Status::internal(why)))
                }
            }
            Err(Failure::Rejected(status) | Failure::Refused(status)) => Err(status),
        };
        Called {
            said,
            result,
            failed_open,
        }
    }
}

/// What a call came to.
struct Called {
    said: call::Said,
    result: Result<Outcome, Refusal>,
    failed_open: bool,
}

impl Called {
    fn note(&self, hook: &Hook, notes: &mut Notes) {
        for (key, value) in &self.said.annotations {
            notes.annotate(format!("{}/{key}", hook.name), value.as_str());
        }
        for warning in &self.said.warnings {
            notes.warn(warning.as_str());
        }
    }
}

/// MutatingAdmissionWebhook.
pub struct Mutating(Webhooks);

/// What is known of a request between the two rounds.
#[derive(Default)]
struct Rounds {
    /// Webhooks that were called and want to be called again if the object changes after them.
    called: BTreeSet<String>,
    /// Webhooks that are to be called again.
    again: BTreeSet<String>,
    /// The object as the last webhook left it.
    left: Value,
}

impl Rounds {
    fn changed(&mut self) {
        self.again.append(&mut self.called);
    }
}

impl Mutating {
    pub fn new(wiring: &Wiring<'_>) -> Self {
        Mutating(Webhooks::new(wiring, "mutatingwebhookconfigurations", "admit"))
    }
}

#[async_trait]
impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        MUTATING
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        self.0.handles(review)
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Object, notes: &mut Notes) -> Result<(), Refusal> {
        let second = notes.is_reinvocation();
        let round = u8::from(second);
        if second {
            let rounds = notes.memory::<Rounds>(MUTATING);
            if !rounds.called.is_empty() && rounds.left != *object {
                rounds.changed();
            }
        }
        let hooks = self.0.source.hooks();
        for (index, hook) in hooks.iter().enumerate() {
            if second && !notes.memory::<Rounds>(MUTATING).again.contains(&hook.uid) {
                continue;
            }
            let present = (!object.is_null()).then_some(&*object);
            let Some(invocation) = self.0.select(hook, review, present)? else {
                continue;
            };
            let shown = invocation.matched.shown(review, present).await?;
            let seen = shown.as_deref();
            if !self.0.conditions_hold(&invocation, review, seen).await? {
                continue;
            }
            let called = self.0.call(&invocation, review, seen).await;
            called.note(hook, notes);
            let at = format!("round_{round}_index_{index}");
            if called.failed_open {
                notes.annotate(format!("failed-open.{MUTATION}{at}"), hook.name.as_str());
            }
            let patch = called.result?.patch;
            let mut changed = false;
            if let Some(patch) = patch {
                let before = shown.map(Cow::into_owned);
                let (before, new) = patched(&invocation, review, &patch, before, notes).inspect_err(|_| {
                    let (name, error) = (&hook.name, "apiserver_internal_error");
                    self.0
                        .metrics
                        .webhook_rejection(name, self.0.kind, review.operation, error, 0);
                })?;
                changed = new != before;
                if changed {
                    *object = invocation.matched.held(review, new).await?;
                }
                let told = json!({"configuration": hook.configuration, "webhook": hook.name,
                    "patch": patch.operations(), "patchType": "JSONPatch"});
                notes.annotate(format!("{PATCH}{at}"), told.to_string());
            }
            let told = json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": changed});
            notes.annotate(format!("{MUTATION}{at}"), told.to_string());
            let rounds = notes.memory::<Rounds>(MUTATING);
            if changed {
                rounds.changed();
            }
            if hook.reinvocable {
                rounds.called.insert(hook.uid.clone());
            }
            if changed {
                notes.ask_again();
            }
        }
        let rounds = notes.memory::<Rounds>(MUTATING);
        if !rounds.called.is_empty() {
            rounds.left = object.clone();
        }
        Ok(())
    }
}

/// The object before and after a patch.
fn patched(
    invocation: &Invocation<'_>,
    review: &Review<'_>,
    patch: &JsonPatch,
    before: Option<Object>,
    notes: &mut Notes,
) -> Result<(Object, Object), Refusal> {
    let internal = |why: String| refuse(Status::internal(why));
    let before = before.ok_or_else(|| {
        internal(format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            invocation.hook.name
        ))
    })?;
    let mut new = before.clone();
    // The patch is of what the webhook has been sent.
    printed::complete(&mut new);
    patch.apply(&mut new).map_err(|error| internal(error.to_string()))?;
    let hook = invocation.hook;
    let misfit = |misfit: Misfit| match misfit {
        Misfit::Renamed(_) => internal(format!("admission webhook {:?} {misfit}", hook.name)),
        Misfit::Mistyped(why) => internal(why),
    };
    // What is unknown is dropped.
    invocation.matched.conform(review, &before, &mut new).map_err(misfit)?;
    printed::settle(&mut new);
    keep_managers(&before, &mut new, notes);
    Ok((before, new))
}

/// Managed fields that make no sense are put back as they were.
fn keep_managers(before: &Object, new: &mut Object, notes: &mut Notes) {
    const AT: &str = "/metadata/managedFields";
    let Some(managers) = new.pointer(AT).filter(|managers| before.pointer(AT) != Some(*managers)) else {
        return;
    };
    let text = |entry: &Value, field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let wrong = managers.as_array().into_iter().flatten().find_map(|entry| {
        if !matches!(text(entry, "operation").as_str(), "Apply" | "Update") {
            return Some(format!("invalid operation {:?}", text(entry, "operation")));
        }
        if text(entry, "fieldsType") != "FieldsV1" {
            return Some(format!("unsupported fieldsType {:?}", text(entry, "fieldsType")));
        }
        (!entry.get("fieldsV1").is_some_and(Value::is_object)).then(|| "missing fieldsV1".to_owned())
    });
    let Some(why) = wrong else { return };
    notes.warn(format!(
        ".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: {why}"
    ));
    if let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) {
        match before.pointer(AT) {
            Some(known) => metadata.insert("managedFields".into(), known.clone()),
            None => metadata.remove("managedFields"),
        };
    }
}

/// ValidatingAdmissionWebhook.
pub struct Validating(Webhooks);

impl Validating {
    pub fn new(wiring: &Wiring<'_>) -> Self {
        Validating(Webhooks::new(wiring, "validatingwebhookconfigurations", "validating"))
    }
}

#[async_trait]
impl Plugin for Validating {
    fn name(&self) -> &'static str {
        VALIDATING
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        self.0.handles(review)
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, notes: &mut Notes) -> Result<(), Refusal> {
        let hooks = self.0.source.hooks();
        let mut invocations = Vec::new();
        for hook in hooks.iter() {
            if let Some(invocation) = self.0.select(hook, review, object)? {
                let shown = invocation.matched.shown(review, object).await?;
                if self.0.conditions_hold(&invocation, review, shown.as_deref()).await? {
                    invocations.push((invocation, shown));
                }
            }
        }
        let calls = invocations
            .iter()
            .map(|(invocation, shown)| self.0.call(invocation, review, shown.as_deref()));
        let called = futures::future::join_all(calls).await;
        let mut verdict = Ok(());
        for (index, ((invocation, _), called)) in invocations.iter().zip(called).enumerate() {
            called.note(invocation.hook, notes);
            if called.failed_open {
                let key = format!("failed-open.{VALIDATION}round_0_index_{index}");
                notes.annotate(key, invocation.hook.name.as_str());
            }
            // The first in order speaks for all.
            verdict = verdict.and(called.result.map(|_| ()));
        }
        verdict
    }
}
