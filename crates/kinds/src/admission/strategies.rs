//! The rules of webhooks and admission policies.

use sampan_api::Object;
use sampan_api::field::{Error, Errors, Path};

use super::validate;
use crate::checks;
use crate::defaults::{Default, Fill};
use crate::rules::{RULES, Rules, Status};
use crate::spec::Part;
use crate::{tree, warnings};

const ADMISSION: Rules = Rules {
    generation: true,
    status: Status::Plain,
    unconditional_update: false,
    warnings: warnings::static_name,
    ..RULES
};

pub(super) static MUTATING_POLICY: Rules = Rules {
    defaults: POLICY_DEFAULTS,
    validate: validate::mutating_policy,
    ..ADMISSION
};

pub(super) static VALIDATING_POLICY: Rules = Rules {
    status: Status::Reserved,
    defaults: POLICY_DEFAULTS,
    validate: validate::validating_policy,
    validate_update: policy_status,
    reset: crate::rules::status_keeps_metadata,
    ..ADMISSION
};

/// What the server's own controller finds out about a policy, checked like anybody's.
fn policy_status(part: Part<'_>, new: &Object, _: &Object, errors: &mut Errors) {
    if part != Part::View("status") {
        return;
    }
    let path = Path::new("status");
    let warnings = path.child("typeChecking").child("expressionWarnings");
    for (index, warning) in tree::items(new, "status.typeChecking.expressionWarnings")
        .iter()
        .enumerate()
    {
        for name in ["warning", "fieldRef"] {
            if tree::text(warning, name).trim().is_empty() {
                errors.push(Error::required(&warnings.index(index).child(name), ""));
            }
        }
        // How a path begins is all that is looked at here.
        let reference = tree::text(warning, "fieldRef").trim();
        let strange = |c: &char| !(c.is_alphanumeric() || "_@$[\"'.+-".contains(*c));
        if let Some(c) = reference.chars().next().filter(strange) {
            let why = format!(
                "invalid JSONPath: unrecognized character in action: U+{:04X} '{c}'",
                u32::from(c)
            );
            errors.push(Error::invalid(&warnings.index(index).child("fieldRef"), reference, why));
        }
    }
    checks::conditions(tree::items(new, "status.conditions"), &path.child("conditions"), errors);
}

const POLICY_DEFAULTS: &[Default] = &[
    ("spec", Fill::Map),
    ("spec.failurePolicy", Fill::Pointer("Fail")),
    ("spec.matchConstraints.matchPolicy", Fill::Pointer("Equivalent")),
    ("spec.matchConstraints.namespaceSelector", Fill::Map),
    ("spec.matchConstraints.objectSelector", Fill::Map),
    ("spec.matchConstraints.resourceRules[].scope", Fill::Pointer("*")),
    ("spec.matchConstraints.excludeResourceRules[].scope", Fill::Pointer("*")),
];

pub(super) static BINDING: Rules = Rules {
    defaults: &[
        ("spec", Fill::Map),
        ("spec.matchResources.matchPolicy", Fill::Pointer("Equivalent")),
        ("spec.matchResources.namespaceSelector", Fill::Map),
        ("spec.matchResources.objectSelector", Fill::Map),
        ("spec.matchResources.resourceRules[].scope", Fill::Pointer("*")),
        ("spec.matchResources.excludeResourceRules[].scope", Fill::Pointer("*")),
    ],
    validate: validate::binding,
    ..ADMISSION
};

pub(super) static MUTATING_WEBHOOK: Rules = Rules {
    defaults: WEBHOOK_DEFAULTS,
    default: |configuration| {
        crate::defaults::apply(
            &[("webhooks[].reinvocationPolicy", Fill::Pointer("Never"))],
            configuration,
        );
    },
    validate: validate::webhooks,
    ..ADMISSION
};

pub(super) static VALIDATING_WEBHOOK: Rules = Rules {
    defaults: WEBHOOK_DEFAULTS,
    validate: validate::webhooks,
    ..ADMISSION
};

const WEBHOOK_DEFAULTS: &[Default] = &[
    ("webhooks[].failurePolicy", Fill::Pointer("Fail")),
    ("webhooks[].matchPolicy", Fill::Pointer("Equivalent")),
    ("webhooks[].namespaceSelector", Fill::Map),
    ("webhooks[].objectSelector", Fill::Map),
    ("webhooks[].timeoutSeconds", Fill::Int(10)),
    ("webhooks[].rules[].scope", Fill::Pointer("*")),
    ("webhooks[].clientConfig.service.port", Fill::Int(443)),
];
