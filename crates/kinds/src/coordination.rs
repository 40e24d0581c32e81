//! `coordination.k8s.io/v1`: Leases.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::defaults::Fill;
use crate::print::{AGE, NAME, age, cell, name, text};
use crate::rules::{RULES, Rules, Status};
use crate::spec::{Column, Resource};
use crate::table::row;

pub(crate) static RESOURCES: &[Resource] = &[Resource {
    columns: COLUMNS,
    cells,
    strategy: &LEASE,
    ..row("coordination.k8s.io", "Lease", "LeaseList", "leases", "lease")
}];

static LEASE: Rules = Rules {
    status: Status::Plain,
    defaults: &[("spec", Fill::Map)],
    create_on_update: true,
    unconditional_update: false,
    ..RULES
};

const COLUMNS: &[Column] = &[NAME, text("Holder", "Who holds it."), AGE];

fn cells(lease: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(lease), cell(lease, "spec.holderIdentity"), age(lease, now)]
}
