//! `certificates.k8s.io/v1`: CertificateSigningRequests.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::core::text_field;
use crate::defaults::Fill;
use crate::print::{AGE, NAME, age, cell, cell_or, human, name, text};
use crate::rules::{RULES, Rules, keep_all_but};
use crate::spec::{Column, Resource, SelectableField};
use crate::table::{row, status, view};
use crate::tree;

const KIND: &str = "CertificateSigningRequest";

pub(crate) static RESOURCES: &[Resource] = &[Resource {
    namespaced: false,
    short_names: &["csr"],
    subresources: &[view("approval", KIND), status(KIND)],
    columns: COLUMNS,
    cells,
    fields: &[text_field!("spec.signerName")],
    strategy: &REQUEST,
    ..row(
        "certificates.k8s.io",
        KIND,
        "CertificateSigningRequestList",
        "certificatesigningrequests",
        "certificatesigningrequest",
    )
}];

static REQUEST: Rules = Rules {
    defaults: &[("spec", Fill::Map), ("status", Fill::Map)],
    view: prepare_view,
    ..RULES
};

/// `approval` writes only the decisions, `status` everything else of the status.
fn prepare_view(view: &str, new: &mut Object, old: &Object) -> bool {
    let is_decision = |condition: &Value| matches!(tree::text(condition, "type"), "Approved" | "Denied");
    let (asked, was) = (
        tree::items(new, "status.conditions").to_vec(),
        tree::items(old, "status.conditions").to_vec(),
    );
    match view {
        "approval" => keep_all_but(&["status.conditions"], new, old),
        "status" => {
            keep_all_but(&["status"], new, old);
            let mut conditions: Vec<_> = was.into_iter().filter(is_decision).collect();
            conditions.extend(asked.into_iter().filter(|condition| !is_decision(condition)));
            if !conditions.is_empty() {
                tree::set(new, "status.conditions", conditions);
            }
        }
        _ => return false,
    }
    true
}

const COLUMNS: &[Column] = &[
    NAME,
    AGE,
    text("SignerName", "Who is asked to sign."),
    text("Requestor", "Who asks."),
    text("RequestedDuration", "How long the certificate should be good for."),
    text("Condition", "What has been decided."),
];

fn cells(request: &Object, now: Timestamp) -> Vec<Value> {
    let duration = tree::opt_int(request, "spec.expirationSeconds").map_or_else(|| "<none>".to_owned(), human);
    vec![
        name(request),
        age(request, now),
        cell_or(request, "spec.signerName", "<none>"),
        cell(request, "spec.username"),
        duration.into(),
        condition(request).into(),
    ]
}

fn condition(request: &Object) -> String {
    let has = |kind: &str| {
        tree::items(request, "status.conditions")
            .iter()
            .any(|condition| tree::text(condition, "type") == kind)
    };
    let mut text = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        text.push_str(",Failed");
    }
    if !tree::text(request, "status.certificate").is_empty() {
        text.push_str(",Issued");
    }
    text
}
