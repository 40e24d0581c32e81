//! `node.k8s.io/v1`: RuntimeClasses.

use std::collections::BTreeSet;

use jiff::Timestamp;
use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::Value;

use crate::checks::Rule;
use crate::pod_spec::{quantities, resources, scheduling};
use crate::print::{AGE, NAME, age, cell, name, text};
use crate::rules::{RULES, Rules, Status};
use crate::spec::{Column, Resource};
use crate::table::row;
use crate::tree;
use crate::warnings;

pub(crate) static RESOURCES: &[Resource] = &[Resource {
    namespaced: false,
    columns: COLUMNS,
    cells,
    strategy: &RUNTIME_CLASS,
    ..row(
        "node.k8s.io",
        "RuntimeClass",
        "RuntimeClassList",
        "runtimeclasses",
        "runtimeclass",
    )
}];

static RUNTIME_CLASS: Rules = Rules {
    status: Status::Plain,
    default: |class| quantities::canonical_at(class, &["overhead.podFixed"]),
    create_on_update: true,
    unconditional_update: false,
    checks: &[
        ("handler", Rule::RequiredNamed(api::dns1123_label)),
        ("handler", Rule::Immutable),
    ],
    validate,
    warnings: warnings::runtime_class,
    ..RULES
};

fn validate(class: &Object, errors: &mut Errors) {
    if let Some(overhead) = tree::map(class, "overhead.podFixed") {
        let path = Path::new("overhead").child("limits");
        resources::list(overhead, &path, resources::container_name, errors);
    }
    let path = Path::new("scheduling");
    if let Some(selector) = tree::get(class, "scheduling.nodeSelector") {
        errors.extend(api::validate_labels(selector, &path.child("nodeSelector")));
    }
    let path = path.child("tolerations");
    let tolerations = tree::items(class, "scheduling.tolerations");
    scheduling::tolerations(tolerations, &path, errors);
    let key = |toleration| ["key", "operator", "value", "effect"].map(|field| tree::text(toleration, field));
    let mut seen = BTreeSet::new();
    for (index, toleration) in tolerations.iter().enumerate() {
        if !seen.insert(key(toleration)) {
            errors.push(Error::duplicate(&path.index(index), toleration.clone()));
        }
    }
}

const COLUMNS: &[Column] = &[NAME, text("Handler", "The runtime's own name for it."), AGE];

fn cells(class: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(class), cell(class, "handler"), age(class, now)]
}
