//! Table output of webhooks and admission policies.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::print::{AGE, NAME, age, cell, integer, name, text};
use crate::spec::Column;
use crate::tree;

pub(super) const WEBHOOKS: &[Column] = &[NAME, integer("Webhooks", "Webhooks in this configuration."), AGE];

pub(super) fn webhooks(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        tree::items(object, "webhooks").len().into(),
        age(object, now),
    ]
}

const PARAM_KIND: Column = text("ParamKind", "The kind of object its parameters come from.");

pub(super) const VALIDATING_POLICY: &[Column] = &[NAME, integer("Validations", "Rules it checks."), PARAM_KIND, AGE];

pub(super) fn validating_policy(object: &Object, now: Timestamp) -> Vec<Value> {
    policy(object, "spec.validations", now)
}

pub(super) const MUTATING_POLICY: &[Column] = &[NAME, integer("Mutations", "Changes it makes."), PARAM_KIND, AGE];

pub(super) fn mutating_policy(object: &Object, now: Timestamp) -> Vec<Value> {
    policy(object, "spec.mutations", now)
}

fn policy(object: &Object, rules: &str, now: Timestamp) -> Vec<Value> {
    let kind = match tree::get(object, "spec.paramKind") {
        None => "<unset>".to_owned(),
        Some(kind) => format!("{}/{}", tree::text(kind, "apiVersion"), tree::text(kind, "kind")),
    };
    vec![
        name(object),
        tree::items(object, rules).len().into(),
        kind.into(),
        age(object, now),
    ]
}

pub(super) const BINDING: &[Column] = &[
    NAME,
    text("PolicyName", "The policy that is bound."),
    text("ParamRef", "The object its parameters come from."),
    AGE,
];

pub(super) fn binding(object: &Object, now: Timestamp) -> Vec<Value> {
    let parameters = match tree::get(object, "spec.paramRef") {
        None => "<unset>".to_owned(),
        Some(reference) => match (tree::text(reference, "namespace"), tree::text(reference, "name")) {
            (_, "") => tree::get(reference, "selector").map_or_else(|| "<unset>".to_owned(), Value::to_string),
            ("", name) => format!("*/{name}"),
            (namespace, name) => format!("{namespace}/{name}"),
        },
    };
    vec![
        name(object),
        cell(object, "spec.policyName"),
        parameters.into(),
        age(object, now),
    ]
}
