//! `scheduling.k8s.io/v1`: PriorityClasses.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::defaults::Fill;
use crate::print::{AGE, NAME, age, boolean, cell, count, integer, name, text};
use crate::rules::{RULES, Rules, Status};
use crate::spec::{Column, Resource};
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
    generation: true,
    status: Status::Plain,
    defaults: &[("preemptionPolicy", Fill::Text("PreemptLowerPriority"))],
    ..RULES
};

const COLUMNS: &[Column] = &[
    NAME,
    integer("Value", "The priority of Pods of this class."),
    boolean("Global-Default", "Whether Pods that name no class get this one."),
    AGE,
    text("PreemptionPolicy", "Whether its Pods may displace others.").wide(),
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
