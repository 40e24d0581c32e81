//! Validation of webhooks and admission policies (all but their expressions).

use std::collections::BTreeSet;

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::Value;

use crate::checks::{self, Check, Rule};
use crate::names;
use crate::pod_spec::validate::selector;
use crate::tree;

const WEBHOOK: &[Check] = &[
    ("failurePolicy", Rule::OneOf(&["Fail", "Ignore"])),
    ("matchPolicy", Rule::OneOf(&["Equivalent", "Exact"])),
    ("reinvocationPolicy", Rule::OneOf(&["IfNeeded", "Never"])),
    ("matchConditions[].name", Rule::RequiredNamed(api::qualified_name)),
    ("matchConditions[].expression", Rule::Required("")),
];

pub(super) fn webhooks(configuration: &Object, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, hook) in tree::items(configuration, "webhooks").iter().enumerate() {
        let path = Path::new("webhooks").index(index);
        let name = tree::text(hook, "name");
        qualified(name, &path.child("name"), errors);
        if !name.is_empty() && !seen.insert(name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        for (number, rule) in tree::items(hook, "rules").iter().enumerate() {
            operations(rule, &path.child("rules").index(number), errors);
        }
        checks::run_at(WEBHOOK, hook, &path, None, errors);
        let effects = tree::text(hook, "sideEffects");
        const EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
        if effects.is_empty() {
            errors.push(Error::required(
                &path.child("sideEffects"),
                "must specify one of None, NoneOnDryRun",
            ));
        } else if !EFFECTS.contains(&effects) {
            errors.push(Error::not_supported(&path.child("sideEffects"), effects, &EFFECTS));
        }
        if let Some(seconds) = tree::opt_int(hook, "timeoutSeconds").filter(|seconds| !(1..=30).contains(seconds)) {
            errors.push(Error::invalid(
                &path.child("timeoutSeconds"),
                seconds,
                "the timeout value must be between 1 and 30 seconds",
            ));
        }
        for field in ["namespaceSelector", "objectSelector"] {
            selector(hook, field, &path.child(field), errors);
        }
        client(hook, &path.child("clientConfig"), errors);
        review_versions(hook, &path.child("admissionReviewVersions"), errors);
    }
}

/// A name of at least three parts, so that it can hardly clash.
fn qualified(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let wrong = api::dns1123_subdomain(name);
    if !wrong.is_empty() {
        errors.push(Error::invalid(path, name, wrong.join(",")));
    } else if name.split('.').count() < 3 {
        errors.push(Error::invalid(
            path,
            name,
            "should be a domain with at least three segments separated by dots",
        ));
    }
}

fn operations(rule: &Value, path: &Path, errors: &mut Errors) {
    let list = |field: &str| tree::items(rule, field);
    for (field, also) in [
        ("operations", "if '*' is present, must not specify other operations"),
        ("apiGroups", "if '*' is present, must not specify other API groups"),
        ("apiVersions", "if '*' is present, must not specify other API versions"),
    ] {
        let at = path.child(field);
        if list(field).is_empty() {
            errors.push(Error::required(&at, ""));
        } else if list(field).len() > 1 && list(field).iter().any(|value| value == "*") {
            errors.push(Error::invalid(&at, list(field).to_vec(), also));
        }
    }
    if list("resources").is_empty() {
        errors.push(Error::required(&path.child("resources"), ""));
    }
    checks::run_at(
        &[
            (
                "operations[]",
                Rule::OneOf(&["*", "CONNECT", "CREATE", "DELETE", "UPDATE"]),
            ),
            ("scope", Rule::OneOf(&["*", "Cluster", "Namespaced"])),
        ],
        rule,
        path,
        None,
        errors,
    );
}

fn client(hook: &Value, path: &Path, errors: &mut Errors) {
    let url = tree::get(hook, "clientConfig.url").and_then(Value::as_str);
    let service = tree::get(hook, "clientConfig.service");
    match (url, service) {
        (Some(url), None) => {
            if !url.starts_with("https://") {
                errors.push(Error::invalid(
                    &path.child("url"),
                    url,
                    "'https' is the only allowed URL scheme; desired format: https://host[/path]",
                ));
            }
        }
        (None, Some(service)) => {
            let path = path.child("service");
            checks::run_at(
                &[
                    ("name", Rule::Required("service name is required")),
                    ("namespace", Rule::Required("service namespace is required")),
                ],
                service,
                &path,
                None,
                errors,
            );
            let port = tree::int(service, "port");
            let wrong = api::port_number(port);
            if !wrong.is_empty() {
                let why = format!("port is not valid: {}", wrong.join(", "));
                errors.push(Error::invalid(&path.child("port"), port, why));
            }
        }
        _ => errors.push(Error::required(path, "exactly one of url or service is required")),
    }
}

fn review_versions(hook: &Value, path: &Path, errors: &mut Errors) {
    let versions = tree::items(hook, "admissionReviewVersions");
    if versions.is_empty() {
        errors.push(Error::required(path, "must specify one of v1, v1beta1"));
    } else if !versions.iter().any(|version| version == "v1" || version == "v1beta1") {
        errors.push(Error::invalid(
            path,
            versions.to_vec(),
            "must include at least one of v1, v1beta1",
        ));
    }
}

pub(super) const POLICY: &[Check] = &[
    ("spec.failurePolicy", Rule::RequiredOneOf(&["Fail", "Ignore"])),
    ("spec.paramKind.apiVersion", Rule::Required("")),
    ("spec.paramKind.kind", Rule::Required("")),
    ("spec.matchConstraints", Rule::Required("")),
    (
        "spec.matchConstraints.matchPolicy",
        Rule::RequiredOneOf(&["Equivalent", "Exact"]),
    ),
    ("spec.matchConditions[].name", Rule::RequiredNamed(api::qualified_name)),
    ("spec.matchConditions[].expression", Rule::Required("")),
    (
        "spec.validations[].expression",
        Rule::Required("expression is not specified"),
    ),
    ("spec.auditAnnotations[].key", Rule::Required("")),
    ("spec.auditAnnotations[].valueExpression", Rule::Required("")),
    ("spec.variables[].name", Rule::Required("name is not specified")),
    (
        "spec.variables[].expression",
        Rule::Required("expression is not specified"),
    ),
    (
        "spec.mutations[].patchType",
        Rule::RequiredOneOf(&["ApplyConfiguration", "JSONPatch"]),
    ),
];

pub(super) fn policy(policy: &Object, errors: &mut Errors) {
    let path = Path::new("spec").child("matchConstraints");
    let Some(constraints) = tree::get(policy, "spec.matchConstraints") else {
        return;
    };
    let rules = tree::items(constraints, "resourceRules");
    if rules.is_empty() {
        errors.push(Error::required(&path.child("resourceRules"), ""));
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in tree::items(constraints, list).iter().enumerate() {
            operations(rule, &path.child(list).index(index), errors);
        }
    }
    for field in ["namespaceSelector", "objectSelector"] {
        selector(constraints, field, &path.child(field), errors);
    }
}

pub(super) fn validating_policy(object: &Object, errors: &mut Errors) {
    let empty = |field: &str| tree::items(object, field).is_empty();
    if empty("spec.validations") && empty("spec.auditAnnotations") {
        errors.push(Error::required(
            &Path::new("spec").child("validations"),
            "validations or auditAnnotations must contain at least one item",
        ));
    }
    policy(object, errors);
}

pub(super) fn mutating_policy(object: &Object, errors: &mut Errors) {
    if tree::items(object, "spec.mutations").is_empty() {
        errors.push(Error::required(
            &Path::new("spec").child("mutations"),
            "mutations must contain at least one item",
        ));
    }
    policy(object, errors);
}

pub(super) const BINDING: &[Check] = &[
    ("spec.policyName", Rule::RequiredNamed(names::whole_subdomain)),
    (
        "spec.paramRef.parameterNotFoundAction",
        Rule::RequiredOneOf(&["Allow", "Deny"]),
    ),
    ("spec.validationActions[]", Rule::OneOf(&["Audit", "Deny", "Warn"])),
];

pub(super) fn binding(binding: &Object, errors: &mut Errors) {
    let actions = tree::items(binding, "spec.validationActions");
    let path = Path::new("spec").child("validationActions");
    if actions.is_empty() && tree::text(binding, "kind") == "ValidatingAdmissionPolicyBinding" {
        errors.push(Error::required(&path, "at least one validation action is required"));
    }
    for (index, action) in actions.iter().enumerate() {
        if actions.iter().take(index).any(|earlier| earlier == action) {
            errors.push(Error::duplicate(&path.index(index), action.clone()));
        }
    }
    let has = |name: &str| actions.iter().any(|action| action == name);
    if has("Deny") && has("Warn") {
        errors.push(Error::invalid(
            &path,
            actions.to_vec(),
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
        ));
    }
    if let Some(parameters) = tree::get(binding, "spec.paramRef") {
        let named = !tree::text(parameters, "name").is_empty();
        let selected = tree::get(parameters, "selector").is_some();
        let path = Path::new("spec").child("paramRef");
        if named && selected {
            errors.push(Error::forbidden(
                &path.child("name"),
                "name and selector are mutually exclusive",
            ));
        } else if !named && !selected {
            errors.push(Error::required(&path, "one of name or selector must be specified"));
        }
    }
}
