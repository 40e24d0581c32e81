//! `node.k8s.io/v1`: RuntimeClasses.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::print::{AGE, NAME, age, cell, name, text};
use crate::rules::{RULES, Rules, Status};
use crate::spec::{Column, Resource};
use crate::table::row;

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
    create_on_update: true,
    unconditional_update: false,
    ..RULES
};

const COLUMNS: &[Column] = &[NAME, text("Handler", "The runtime's own name for it."), AGE];

fn cells(class: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(class), cell(class, "handler"), age(class, now)]
}
