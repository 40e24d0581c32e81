//! The expressions of admission policies, as they are written: each must compile and give what is wanted.

use std::collections::BTreeSet;

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, meta, names as api};
use sampan_cel::policy::{Compiler, Wanted};
use sampan_cel::{Decl, escape};
use serde_json::Value;

use crate::{checks, tree};

const MAX_CONDITIONS: usize = 64;
const MAX_ANNOTATIONS: usize = 20;
const MAX_ANNOTATION_EXPRESSION: usize = 5 * 1024;

fn compiler(policy: &Object) -> Compiler {
    Compiler::new(tree::get(policy, "spec.paramKind").map(|_| Decl::dynamic()))
}

fn judge<T>(result: Result<T, String>, path: &Path, expression: &str, errors: &mut Errors) {
    if let Err(why) = result {
        errors.push(Error::invalid(path, expression, why));
    }
}

/// Match conditions, of policies and of webhooks (`compiler`: none).
pub(super) fn conditions(compiler: Option<&Compiler>, conditions: &[Value], path: &Path, errors: &mut Errors) {
    if conditions.is_empty() {
        return;
    }
    if conditions.len() > MAX_CONDITIONS {
        errors.push(Error::too_many(path, conditions.len(), MAX_CONDITIONS));
    }
    let own = compiler.is_none().then(|| Compiler::new(None));
    let mut seen = BTreeSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        let expression = tree::text(condition, "expression").trim();
        let at = path.child("expression");
        if expression.is_empty() {
            errors.push(Error::required(&at, ""));
        } else if let Some(compiler) = compiler.or(own.as_ref()) {
            judge(compiler.condition(expression), &at, expression, errors);
        }
        let name = tree::text(condition, "name");
        let at = path.child("name");
        if name.is_empty() {
            errors.push(Error::required(&at, ""));
            continue;
        }
        checks::named(&at, name, api::qualified_name, errors);
        if !seen.insert(name) {
            errors.push(Error::duplicate(&at, name));
        }
    }
}

fn variables(compiler: &Compiler, policy: &Object, errors: &mut Errors) {
    let path = Path::new("spec").child("variables");
    for (index, variable) in tree::items(policy, "spec.variables").iter().enumerate() {
        let path = path.index(index);
        let (name, expression) = (tree::text(variable, "name"), tree::text(variable, "expression"));
        let at = path.child("name");
        if name.trim().is_empty() {
            errors.push(Error::required(&at, "name is not specified"));
        } else if !is_identifier(name) {
            errors.push(Error::invalid(&at, name, "must be a valid CEL identifier"));
        }
        let at = path.child("expression");
        if expression.trim().is_empty() {
            errors.push(Error::required(&at, "expression is not specified"));
        } else {
            judge(compiler.variable(name, expression), &at, expression, errors);
        }
    }
}

/// A word the language would read as a variable.
fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        // A reserved word is the only such name that is escaped as a whole.
        && escape(name).is_none_or(|escaped| escaped != format!("__{name}__"))
}

fn both(policy: &Object, errors: &mut Errors) -> Compiler {
    let compiler = compiler(policy);
    let path = Path::new("spec");
    conditions(
        Some(&compiler),
        tree::items(policy, "spec.matchConditions"),
        &path.child("matchConditions"),
        errors,
    );
    variables(&compiler, policy, errors);
    compiler
}

pub(super) fn validating(policy: &Object, errors: &mut Errors) {
    let mut compiler = both(policy, errors);
    if tree::items(policy, "spec.variables").is_empty() {
        compiler = compiler.without_variables();
    }
    let path = Path::new("spec").child("validations");
    let empty = |field: &str| tree::items(policy, field).is_empty();
    if empty("spec.validations") && empty("spec.auditAnnotations") {
        for field in ["validations", "auditAnnotations"] {
            errors.push(Error::required(
                &Path::new("spec").child(field),
                "validations or auditAnnotations must contain at least one item",
            ));
        }
    }
    for (index, validation) in tree::items(policy, "spec.validations").iter().enumerate() {
        let path = path.index(index);
        let text = |field: &str| tree::text(validation, field);
        let at = path.child("expression");
        if text("expression").trim().is_empty() {
            errors.push(Error::required(&at, "expression is not specified"));
        } else {
            let result = compiler.expression(text("expression"), Wanted::Bool);
            judge(result, &at, text("expression"), errors);
        }
        let blank = |field: &str| !text(field).is_empty() && text(field).trim().is_empty();
        let at = path.child("messageExpression");
        if blank("messageExpression") {
            errors.push(Error::invalid(
                &at,
                text("messageExpression"),
                "must be non-empty if specified",
            ));
        } else if !text("messageExpression").is_empty() {
            let result = compiler.message(text("messageExpression"));
            judge(result, &at, text("messageExpression"), errors);
        }
        if blank("message") {
            let at = path.child("message");
            errors.push(Error::invalid(&at, text("message"), "must be non-empty if specified"));
        }
        if text("message").trim().contains(['\n', '\r']) {
            errors.push(Error::invalid(
                &path.child("message"),
                text("message"),
                "must not contain line breaks",
            ));
        }
        const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
        if let Some(reason) = tree::get(validation, "reason").and_then(Value::as_str)
            && !REASONS.contains(&reason)
        {
            errors.push(Error::not_supported(&path.child("reason"), reason, &REASONS));
        }
    }
    annotations(&compiler, policy, errors);
}

fn annotations(compiler: &Compiler, policy: &Object, errors: &mut Errors) {
    let path = Path::new("spec").child("auditAnnotations");
    let annotations = tree::items(policy, "spec.auditAnnotations");
    if annotations.len() > MAX_ANNOTATIONS {
        errors.push(Error::invalid(
            &path,
            annotations.to_vec(),
            format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations"),
        ));
    }
    let mut seen = BTreeSet::new();
    for (index, annotation) in annotations.iter().enumerate() {
        let path = path.index(index);
        let (key, expression) = (tree::text(annotation, "key"), tree::text(annotation, "valueExpression"));
        let name = meta::name(policy);
        if name.is_empty() {
            errors.push(Error::invalid(
                &path.child("key"),
                key,
                "requires metadata.name be non-empty",
            ));
        } else {
            let whole = format!("{name}/{key}");
            for why in api::qualified_name(&whole) {
                errors.push(Error::invalid(&path.child("key"), whole.as_str(), why));
            }
        }
        let at = path.child("valueExpression");
        let trimmed = expression.trim();
        if trimmed.len() > MAX_ANNOTATION_EXPRESSION {
            let why = format!("must not exceed {MAX_ANNOTATION_EXPRESSION} bytes in length");
            errors.push(Error::required(&at, why));
        } else if trimmed.is_empty() {
            errors.push(Error::required(&at, "valueExpression is not specified"));
        } else {
            judge(
                compiler.expression(trimmed, Wanted::StringOrNull),
                &at,
                expression,
                errors,
            );
        }
        if !seen.insert(key) {
            errors.push(Error::duplicate(&path.child("key"), key));
        }
    }
}

pub(super) fn mutating(policy: &Object, errors: &mut Errors) {
    let compiler = both(policy, errors);
    let path = Path::new("spec").child("mutations");
    if tree::items(policy, "spec.mutations").is_empty() {
        errors.push(Error::required(&path, "mutations must contain at least one item"));
    }
    for (index, mutation) in tree::items(policy, "spec.mutations").iter().enumerate() {
        let path = path.index(index);
        const TYPES: [(&str, &str, Wanted); 2] = [
            ("JSONPatch", "jsonPatch", Wanted::JsonPatch),
            ("ApplyConfiguration", "applyConfiguration", Wanted::ApplyConfiguration),
        ];
        let patch_type = tree::text(mutation, "patchType");
        let at = path.child("patchType");
        match patch_type {
            "" => errors.push(Error::required(&at, "")),
            "ApplyConfiguration" | "JSONPatch" => {}
            other => errors.push(Error::not_supported(&at, other, &["ApplyConfiguration", "JSONPatch"])),
        }
        for (ty, field, wanted) in TYPES {
            let at = path.child(field);
            match (tree::get(mutation, field), ty == patch_type) {
                (None, true) => errors.push(Error::required(
                    &at,
                    format!("must be specified when patchType is {ty}"),
                )),
                (Some(patch), true) => {
                    let expression = tree::text(patch, "expression").trim();
                    let at = at.child("expression");
                    if expression.is_empty() {
                        errors.push(Error::required(&at, ""));
                    } else {
                        judge(compiler.expression(expression, wanted), &at, expression, errors);
                    }
                }
                (Some(_), false) if TYPES.iter().any(|(known, ..)| *known == patch_type) => {
                    errors.push(Error::invalid(
                        &at,
                        format!("{{{field}}}"),
                        format!("must not be specified when patchType is {patch_type}"),
                    ))
                }
                _ => {}
            }
        }
    }
    const REINVOCATIONS: [&str; 2] = ["IfNeeded", "Never"];
    let at = Path::new("spec").child("reinvocationPolicy");
    match tree::text(policy, "spec.reinvocationPolicy") {
        "" => errors.push(Error::required(&at, "")),
        policy if !REINVOCATIONS.contains(&policy) => errors.push(Error::not_supported(&at, policy, &REINVOCATIONS)),
        _ => {}
    }
}

/// Only what creates and updates can be changed.
pub(super) fn operations(object: &Object, rules: &str, path: &Path, errors: &mut Errors) {
    const OPERATIONS: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];
    let at = path.child("resourceRules").child("operations");
    for rule in tree::items(object, rules) {
        for operation in tree::items(rule, "operations").iter().filter_map(Value::as_str) {
            if !OPERATIONS.contains(&operation) {
                errors.push(Error::not_supported(&at, operation, &OPERATIONS));
            }
        }
    }
}
