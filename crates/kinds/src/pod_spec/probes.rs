//! Validation of probes and lifecycle hooks.

use sampan_api::names as api;
use serde_json::Value;

use super::validate::{Error, Errors, Path};
use crate::checks::{self, Check, Rule};
use crate::tree;

const PROBE: &[Check] = &[
    ("initialDelaySeconds", Rule::NonNegative),
    ("timeoutSeconds", Rule::NonNegative),
    ("periodSeconds", Rule::NonNegative),
    ("successThreshold", Rule::NonNegative),
    ("failureThreshold", Rule::NonNegative),
];

/// The three probes of a container.
pub(super) fn all(spec: &Value, container: &Value, path: &Path, errors: &mut Errors) {
    for (field, once) in [
        ("livenessProbe", true),
        ("readinessProbe", false),
        ("startupProbe", true),
    ] {
        let Some(probe) = tree::get(container, field) else {
            continue;
        };
        let path = path.child(field);
        handler(spec, probe, &["exec", "httpGet", "tcpSocket", "grpc"], &path, errors);
        checks::run_at(PROBE, probe, &path, None, errors);
        let grace = tree::opt_int(probe, "terminationGracePeriodSeconds");
        if let Some(seconds) = grace.filter(|seconds| *seconds <= 0) {
            errors.push(Error::invalid(
                &path.child("terminationGracePeriodSeconds"),
                seconds,
                "must be greater than 0",
            ));
        }
        if once {
            let threshold = tree::int(probe, "successThreshold");
            if threshold != 1 {
                errors.push(Error::invalid(&path.child("successThreshold"), threshold, "must be 1"));
            }
        } else if let Some(seconds) = grace {
            errors.push(Error::invalid(
                &path.child("terminationGracePeriodSeconds"),
                seconds,
                "must not be set for readinessProbes",
            ));
        }
    }
}

/// The hooks of a container and the signal that stops it.
pub(super) fn lifecycle(spec: &Value, container: &Value, path: &Path, errors: &mut Errors) {
    let Some(lifecycle) = tree::get(container, "lifecycle") else {
        return;
    };
    let path = path.child("lifecycle");
    for hook in ["postStart", "preStop"] {
        if let Some(action) = tree::get(lifecycle, hook) {
            handler(
                spec,
                action,
                &["exec", "httpGet", "tcpSocket", "sleep"],
                &path.child(hook),
                errors,
            );
        }
    }
    if tree::get(lifecycle, "stopSignal").is_some() && tree::get(spec, "os").is_none() {
        errors.push(Error::forbidden(
            &path.child("stopSignal"),
            "may not be set for containers with empty `spec.os.name`",
        ));
    }
}

/// Exactly one of the kinds of action.
fn handler(spec: &Value, action: &Value, kinds: &[&str], path: &Path, errors: &mut Errors) {
    let mut found = false;
    for kind in kinds {
        let Some(details) = tree::get(action, kind) else {
            continue;
        };
        let path = path.child(kind);
        if found {
            errors.push(Error::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        found = true;
        match *kind {
            "exec" => {
                if tree::items(details, "command").is_empty() {
                    errors.push(Error::required(&path.child("command"), ""));
                }
            }
            "httpGet" => http_get(details, &path, errors),
            "sleep" => sleep(spec, details, &path, errors),
            _ => checks::port_or_name(&path.child("port"), tree::get(details, "port"), errors),
        }
    }
    if !found {
        errors.push(Error::required(path, "must specify a handler type"));
    }
}

fn http_get(action: &Value, path: &Path, errors: &mut Errors) {
    checks::run_at(&[("path", Rule::Required(""))], action, path, None, errors);
    checks::port_or_name(&path.child("port"), tree::get(action, "port"), errors);
    checks::run_at(
        &[("scheme", Rule::OneOf(&["HTTP", "HTTPS"]))],
        action,
        path,
        None,
        errors,
    );
    for header in tree::items(action, "httpHeaders") {
        checks::named(
            &path.child("httpHeaders"),
            tree::text(header, "name"),
            api::http_header_name,
            errors,
        );
    }
}

fn sleep(spec: &Value, action: &Value, path: &Path, errors: &mut Errors) {
    let seconds = tree::int(action, "seconds");
    if let Some(grace) = tree::opt_int(spec, "terminationGracePeriodSeconds")
        && !(0..=grace).contains(&seconds)
    {
        let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.push(Error::invalid(path, seconds, why));
    }
}
