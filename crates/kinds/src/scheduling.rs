//! `scheduling.k8s.io/v1`: PriorityClasses.

use jiff::Timestamp;
use sampan_api::Object;
use sampan_api::field::{Error, Errors, Path};
use serde_json::Value;

use crate::checks::{self, Rule};
use crate::defaults::Fill;
use crate::print::{AGE, NAME, age, boolean, cell, count, integer, name, text};
use crate::rules::{RULES, Rules, Status};
use crate::spec::{Column, Part, Resource};
use crate::table::row;
use crate::tree;

pub(crate) static RESOURCES: &[Resource] = &[Resource {
    namespaced: false,
    short_names: &["pc"],
    columns: COLUMNS,
    cells,
    strategy: &PRIORITY_CLASS,
    ..row(
        "scheduling.k8s.io",
        "PriorityClass",
        "PriorityClassList",
        "priorityclasses",
        "priorityclass",
    )
}];

static PRIORITY_CLASS: Rules = Rules {
    status: Status::Plain,
    // Upstream counts the first generation only.
    create: |class| tree::set(class, "metadata.generation", 1),
    defaults: &[
        ("value", Fill::Int(0)),
        ("preemptionPolicy", Fill::Pointer("PreemptLowerPriority")),
    ],
    validate_create: validate,
    validate_update,
    ..RULES
};

/// What users may ask for at most; above it is the system's.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

/// The classes every cluster has: name and value.
const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

fn validate(class: &Object, errors: &mut Errors) {
    let (name, value) = (tree::text(class, "metadata.name"), tree::int(class, "value"));
    if name.starts_with("system-") {
        let why = match SYSTEM_CLASSES.iter().find(|(known, _)| *known == name) {
            None => format!("{name} is not a known system priority class"),
            Some((_, wanted)) if *wanted != value => {
                format!("value of {name} PriorityClass must be {wanted}")
            }
            Some(_) if tree::flag(class, "globalDefault") => {
                format!("globalDefault of {name} PriorityClass must be false")
            }
            Some(_) => return policy(class, errors),
        };
        errors.push(Error::forbidden(
            &Path::new("metadata").child("name"),
            format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}"),
        ));
    } else if value > HIGHEST_USER_PRIORITY {
        errors.push(Error::forbidden(
            &Path::new("value"),
            format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"),
        ));
    }
    policy(class, errors);
}

fn policy(class: &Object, errors: &mut Errors) {
    let policies = Rule::RequiredOneOf(&["PreemptLowerPriority", "Never"]);
    checks::run(&[("preemptionPolicy", policies)], class, None, errors);
}

/// What may not change is all that an update is checked for.
fn validate_update(_: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if tree::int(new, "value") != tree::int(old, "value") {
        errors.push(Error::forbidden(
            &Path::new("value"),
            "may not be changed in an update.",
        ));
    }
    checks::immutable(new, old, &Path::default(), "preemptionPolicy", errors);
}

const COLUMNS: &[Column] = &[
    NAME,
    integer("Value", "The priority of Pods of this class."),
    boolean("Global-Default", "Whether Pods that name no class get this one."),
    AGE,
    text("PreemptionPolicy", "Whether its Pods may displace others."),
];

fn cells(class: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        name(class),
        count(class, "value"),
        tree::flag(class, "globalDefault").into(),
        age(class, now),
        cell(class, "preemptionPolicy"),
    ]
}
