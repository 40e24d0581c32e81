//! `policy/v1`: PodDisruptionBudgets.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::defaults::Fill;
use crate::print::{AGE, NAME, age, count, integer, name, text};
use crate::rules::{RULES, Rules};
use crate::spec::{Column, Resource};
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
    unconditional_update: false,
    ..RULES
};

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
