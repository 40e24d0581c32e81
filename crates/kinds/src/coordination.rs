//! `coordination.k8s.io/v1`: Leases.

use jiff::Timestamp;
use sampan_api::Object;
use sampan_api::field::{Error, Errors, Path};
use serde_json::Value;

use crate::checks::{self, Rule};
use crate::defaults::Fill;
use crate::print::{AGE, NAME, age, cell, name, text};
use crate::rules::{RULES, Rules, Status};
use crate::spec::{Column, Resource};
use crate::table::row;
use crate::tree;

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
    validate,
    ..RULES
};

fn validate(lease: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    if let Some(seconds) = tree::opt_int(lease, "spec.leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        errors.push(Error::invalid(
            &path.child("leaseDurationSeconds"),
            seconds,
            "must be greater than 0",
        ));
    }
    checks::run(
        &[
            ("spec.leaseTransitions", Rule::NonNegative),
            ("spec.strategy", Rule::OneOf(&["OldestEmulationVersion"])),
        ],
        lease,
        None,
        errors,
    );
    if !tree::text(lease, "spec.preferredHolder").is_empty() && tree::text(lease, "spec.strategy").is_empty() {
        errors.push(Error::forbidden(
            &path.child("preferredHolder"),
            "may only be specified if `strategy` is defined",
        ));
    }
}

const COLUMNS: &[Column] = &[NAME, text("Holder", "Who holds it."), AGE];

fn cells(lease: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(lease), cell(lease, "spec.holderIdentity"), age(lease, now)]
}
