//! `certificates.k8s.io/v1`: CertificateSigningRequests.

use base64::Engine;
use jiff::Timestamp;
use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api, time::human_duration};
use serde_json::Value;

use crate::checks::{self, Rule};
use crate::core::text_field;
use crate::defaults::Fill;
use crate::names;
use crate::print::{AGE, NAME, age, cell, cell_or, name, text};
use crate::rules::{RULES, Rules, keep_all_but};
use crate::spec::{Column, Part, Resource, SelectableField};
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
    name: names::path_segment,
    view: prepare_view,
    reset: |part| {
        Some(match part {
            Part::Main => &["spec", "status"],
            Part::View("approval") => &["spec", "status.certificate"],
            Part::View(_) => &["spec", "status.conditions"],
        })
    },
    // What is asked for is fixed once asked.
    update: |part, new, old| {
        if part == Part::Main {
            tree::carry(new, old, "spec");
        }
    },
    validate,
    validate_update,
    ..RULES
};

const USAGES: &[&str] = &[
    "signing",
    "digital signature",
    "content commitment",
    "key encipherment",
    "key agreement",
    "data encipherment",
    "cert sign",
    "crl sign",
    "encipher only",
    "decipher only",
    "any",
    "server auth",
    "client auth",
    "code signing",
    "email protection",
    "s/mime",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "timestamping",
    "ocsp signing",
    "microsoft sgc",
    "netscape sgc",
];

/// The signature inside the request is checked by whoever signs it; here the request only has to be whole.
fn validate(request: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let text = tree::text(request, "spec.request");
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap_or_default();
    if let Err(why) = request_block(&String::from_utf8_lossy(&decoded)).and_then(|der| whole(&der)) {
        let shown = tree::get(request, "spec.request").cloned().unwrap_or_default();
        errors.push(Error::invalid(&path.child("request"), shown, why));
    }
    let usages = tree::items(request, "spec.usages");
    let at = path.child("usages");
    if usages.is_empty() {
        errors.push(Error::required(&at, ""));
    }
    for (index, usage) in usages.iter().enumerate() {
        if !USAGES.iter().any(|known| usage == known) {
            let mut usages = USAGES.to_vec();
            usages.sort_unstable();
            errors.push(Error::not_supported(&at.index(index), usage.clone(), &usages));
        }
        if usages.iter().take(index).any(|earlier| earlier == usage) {
            errors.push(Error::duplicate(&at.index(index), usage.clone()));
        }
    }
    let signer = tree::text(request, "spec.signerName");
    let at = path.child("signerName");
    if signer == "kubernetes.io/legacy-unknown" {
        errors.push(Error::invalid(
            &at,
            signer,
            "the legacy signerName is not allowed via this API version",
        ));
    } else {
        signer_name(signer, &at, errors);
    }
    if let Some(seconds) = tree::opt_int(request, "spec.expirationSeconds").filter(|seconds| *seconds < 600) {
        errors.push(Error::invalid(
            &path.child("expirationSeconds"),
            seconds,
            "may not specify a duration less than 600 seconds (10 minutes)",
        ));
    }
}

/// What is between the marks of the first block, if it is one of a request.
fn request_block(pem: &str) -> Result<Vec<u8>, &'static str> {
    const NONE: &str = "PEM block type must be CERTIFICATE REQUEST";
    let (_, rest) = pem.split_once("-----BEGIN ").ok_or(NONE)?;
    let (label, rest) = rest.split_once("-----").ok_or(NONE)?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----")).ok_or(NONE)?;
    if label != "CERTIFICATE REQUEST" {
        return Err(NONE);
    }
    let text: String = body.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| NONE)
}

/// Whether the outermost element is all there and nothing comes after it.
fn whole(der: &[u8]) -> Result<(), &'static str> {
    const TRUNCATED: &str = "asn1: syntax error: data truncated";
    let (first, rest) = match der {
        [0x30, first, rest @ ..] => (*first, rest),
        [] | [_] => return Err(TRUNCATED),
        _ => return Err("asn1: structure error: tags don't match"),
    };
    let (length, content) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (length, content) = rest.split_at_checked(usize::from(first & 0x7f)).ok_or(TRUNCATED)?;
        let number = length.iter().try_fold(0usize, |sum, byte| {
            sum.checked_mul(256).map(|sum| sum | usize::from(*byte))
        });
        (number.ok_or("asn1: structure error: length too large")?, content)
    };
    match content.len() {
        there if there < length => Err(TRUNCATED),
        there if there > length => Err("asn1: syntax error: trailing data"),
        _ => Ok(()),
    }
}

/// `example.com/name`
fn signer_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let [domain, _] = name.split('/').collect::<Vec<_>>()[..] else {
        errors.push(Error::invalid(
            path,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ));
        return;
    };
    for label in domain.split('.') {
        if let Some(message) = api::dns1123_label(label).first() {
            errors.push(Error::invalid(
                path,
                domain,
                format!("validating label {label:?}: {message}"),
            ));
            break;
        }
    }
    if !domain.contains('.') {
        errors.push(Error::invalid(
            path,
            domain,
            "should be a domain with at least two segments separated by dots",
        ));
    }
}

/// Decisions are made once, and a certificate is issued once.
fn validate_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if part == Part::Main {
        return;
    }
    let path = Path::new("status");
    let at = path.child("conditions");
    let now = tree::items(new, "status.conditions");
    let count = |conditions: &[Value], kind: &str| {
        conditions
            .iter()
            .filter(|condition| tree::text(condition, "type") == kind)
            .count()
    };
    for kind in ["Approved", "Denied", "Failed"] {
        if count(now, kind) < count(tree::items(old, "status.conditions"), kind) {
            let why = format!("updates may not remove a condition of type {kind:?}");
            errors.push(Error::forbidden(&at, why));
        }
    }
    for (index, condition) in now.iter().enumerate() {
        let path = at.index(index);
        let kind = tree::text(condition, "type");
        let allowed: &[&str] = match kind {
            "Approved" | "Denied" | "Failed" => &["True"],
            _ => &["False", "True", "Unknown"],
        };
        checks::run_at(
            &[("type", Rule::Required("")), ("status", Rule::Required(""))],
            condition,
            &path,
            None,
            errors,
        );
        let status = tree::text(condition, "status");
        if !status.is_empty() && !allowed.contains(&status) {
            errors.push(Error::not_supported(&path.child("status"), status, allowed));
        }
        if now
            .iter()
            .take(index)
            .any(|earlier| tree::text(earlier, "type") == kind)
        {
            errors.push(Error::duplicate(&path.child("type"), kind));
        }
    }
    if count(now, "Approved") > 0 && count(now, "Denied") > 0 {
        errors.push(Error::invalid(
            &at,
            "Denied",
            "Approved and Denied conditions are mutually exclusive",
        ));
    }
    let (certificate, before) = (
        tree::text(new, "status.certificate"),
        tree::text(old, "status.certificate"),
    );
    if certificate != before && !before.is_empty() {
        errors.push(Error::forbidden(
            &path.child("certificate"),
            "updates may not modify existing certificate content",
        ));
    }
}

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
    let duration = tree::opt_int(request, "spec.expirationSeconds").map_or_else(|| "<none>".to_owned(), human_duration);
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
