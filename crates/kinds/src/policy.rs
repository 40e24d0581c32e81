//! `policy/v1`: PodDisruptionBudgets.

use jiff::Timestamp;
use sampan_api::Object;
use sampan_api::field::{Error, Errors, Path};
use sampan_api::selector::validate_label_selector;
use serde_json::Value;

use crate::apps::validate::{at_most_all, int_or_percent};
use crate::checks::{self, Rule};
use crate::conditions;
use crate::defaults::Fill;
use crate::names;
use crate::print::{AGE, NAME, age, count, integer, name, text};
use crate::rules::{RULES, Rules};
use crate::spec::{Column, Part, Resource};
use crate::table::{row, status};
use crate::tree;

pub(crate) static RESOURCES: &[Resource] = &[Resource {
    short_names: &["pdb"],
    subresources: &[status("PodDisruptionBudget")],
    columns: COLUMNS,
    cells,
    strategy: &BUDGET,
    ..row(
        "policy",
        "PodDisruptionBudget",
        "PodDisruptionBudgetList",
        "poddisruptionbudgets",
        "poddisruptionbudget",
    )
}];

static BUDGET: Rules = Rules {
    generation: true,
    defaults: &[
        ("spec", Fill::Map),
        ("status", Fill::Map),
        ("status.currentHealthy", Fill::Int(0)),
        ("status.desiredHealthy", Fill::Int(0)),
        ("status.disruptionsAllowed", Fill::Int(0)),
        ("status.expectedPods", Fill::Int(0)),
    ],
    name: names::path_segment,
    unconditional_update: false,
    checks: &[(
        "spec.unhealthyPodEvictionPolicy",
        Rule::GivenOneOf(&["AlwaysAllow", "IfHealthyBudget"]),
    )],
    validate,
    validate_update,
    ..RULES
};

fn validate(budget: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let amounts = ["minAvailable", "maxUnavailable"];
    let nothing = Value::Null;
    let spec = tree::get(budget, "spec").unwrap_or(&nothing);
    if amounts.iter().all(|amount| tree::get(spec, amount).is_some()) {
        errors.push(Error::invalid(
            &path,
            spec.clone(),
            "minAvailable and maxUnavailable cannot be both set",
        ));
    }
    for amount in amounts {
        let value = tree::get(spec, amount);
        int_or_percent(value, &path.child(amount), errors);
        at_most_all(value, &path.child(amount), errors);
    }
    if let Some(selector) = tree::get(spec, "selector") {
        errors.extend(validate_label_selector(selector, &path.child("selector")));
    }
}

fn validate_update(part: Part<'_>, new: &Object, _: &Object, errors: &mut Errors) {
    if part == Part::View("status") {
        let path = Path::new("status").child("conditions");
        conditions::validate(tree::items(new, "status.conditions"), &path, errors);
        checks::run(
            &[
                ("status.disruptionsAllowed", Rule::NonNegative),
                ("status.currentHealthy", Rule::NonNegative),
                ("status.desiredHealthy", Rule::NonNegative),
                ("status.expectedPods", Rule::NonNegative),
            ],
            new,
            None,
            errors,
        );
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Min Available", "Pods that must stay available."),
    text("Max Unavailable", "Pods that may be unavailable."),
    integer("Allowed Disruptions", "Pods that may be disrupted now."),
    AGE,
];

fn cells(budget: &Object, now: Timestamp) -> Vec<Value> {
    let amount = |path| tree::get(budget, path).map_or_else(|| "N/A".to_owned(), tree::scalar);
    vec![
        name(budget),
        amount("spec.minAvailable").into(),
        amount("spec.maxUnavailable").into(),
        count(budget, "status.disruptionsAllowed"),
        age(budget, now),
    ]
}
