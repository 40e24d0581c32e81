//! Validation of what a Pod wants of its node: affinity, tolerations, spreading.

use sampan_api::names as api;
use serde_json::Value;

use super::validate::{Error, Errors, Path, selector};
use crate::checks::{self, Rule};
use crate::names;
use crate::tree;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn affinity(spec: &Value, path: &Path, errors: &mut Errors) {
    if let Some(affinity) = tree::get(spec, "affinity.nodeAffinity") {
        let path = path.child("nodeAffinity");
        if let Some(required) = tree::get(affinity, REQUIRED) {
            node_selector(required, &path.child(REQUIRED), errors);
        }
        for (index, term) in tree::items(affinity, PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            weight(term, &path, errors);
            if let Some(preference) = tree::get(term, "preference") {
                node_selector_term(preference, false, &path.child("preference"), errors);
            }
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = tree::get(spec, "affinity").and_then(|affinity| tree::get(affinity, kind)) else {
            continue;
        };
        let path = path.child(kind);
        for (index, term) in tree::items(affinity, REQUIRED).iter().enumerate() {
            pod_term(term, &path.child(REQUIRED).index(index), errors);
        }
        for (index, term) in tree::items(affinity, PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            weight(term, &path, errors);
            let nothing = Value::Null;
            let inner = tree::get(term, "podAffinityTerm").unwrap_or(&nothing);
            pod_term(inner, &path.child("podAffinityTerm"), errors);
        }
    }
}

fn weight(term: &Value, path: &Path, errors: &mut Errors) {
    let weight = tree::int(term, "weight");
    if !(1..=100).contains(&weight) {
        errors.push(Error::invalid(
            &path.child("weight"),
            weight,
            "must be in the range 1-100",
        ));
    }
}

/// A NodeSelector, in affinity or in a volume.
pub(crate) fn node_selector(selector: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("nodeSelectorTerms");
    let terms = tree::items(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(Error::required(&path, "must have at least one node selector term"));
    }
    for (index, term) in terms.iter().enumerate() {
        node_selector_term(term, true, &path.index(index), errors);
    }
}

/// `strict`: values must be possible label values. Preferences need not be.
fn node_selector_term(term: &Value, strict: bool, path: &Path, errors: &mut Errors) {
    for (index, requirement) in tree::items(term, "matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = tree::items(requirement, "values");
        let operator = tree::text(requirement, "operator");
        let at = path.child("values");
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.push(Error::required(
                &at,
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(Error::forbidden(
                &at,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Gt" | "Lt" if values.len() != 1 => errors.push(Error::required(
                &at,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.push(Error::invalid(
                &path.child("operator"),
                operator,
                "not a valid selector operator",
            )),
        }
        checks::named(
            &path.child("key"),
            tree::text(requirement, "key"),
            api::qualified_name,
            errors,
        );
        if strict {
            checks::run_at(
                &[("values[]", Rule::Named(api::label_value))],
                requirement,
                &path,
                None,
                errors,
            );
        }
    }
    for (index, requirement) in tree::items(term, "matchFields").iter().enumerate() {
        let path = path.child("matchFields").index(index);
        let operator = tree::text(requirement, "operator");
        if !matches!(operator, "In" | "NotIn") {
            errors.push(Error::invalid(
                &path.child("operator"),
                operator,
                "not a valid selector operator",
            ));
        } else if tree::items(requirement, "values").len() != 1 {
            errors.push(Error::required(
                &path.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ));
        }
        let key = tree::text(requirement, "key");
        if key == "metadata.name" {
            checks::run_at(
                &[("values[]", Rule::GivenNamed(names::whole_subdomain))],
                requirement,
                &path,
                None,
                errors,
            );
        } else {
            errors.push(Error::invalid(
                &path.child("key"),
                key,
                "not a valid field selector key",
            ));
        }
    }
}

fn pod_term(term: &Value, path: &Path, errors: &mut Errors) {
    selector(term, "labelSelector", &path.child("labelSelector"), errors);
    selector(term, "namespaceSelector", &path.child("namespaceSelector"), errors);
    for name in tree::items(term, "namespaces").iter().filter_map(Value::as_str) {
        checks::named(&path.child("namespace"), name, api::dns1123_label, errors);
    }
    label_keys(term, path, errors);
    let key = tree::text(term, "topologyKey");
    if key.is_empty() {
        errors.push(Error::required(&path.child("topologyKey"), "can not be empty"));
    }
    checks::named(&path.child("topologyKey"), key, api::qualified_name, errors);
}

/// `matchLabelKeys` and `mismatchLabelKeys` extend a selector, and not both with one key.
fn label_keys(owner: &Value, path: &Path, errors: &mut Errors) {
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        if tree::items(owner, field).is_empty() {
            continue;
        }
        if tree::get(owner, "labelSelector").is_none() {
            errors.push(Error::forbidden(
                &path.child(field),
                "must not be specified when labelSelector is not set",
            ));
            continue;
        }
        for (index, key) in tree::items(owner, field).iter().enumerate() {
            let key = key.as_str().unwrap_or_default();
            checks::named(&path.child(field).index(index), key, api::qualified_name, errors);
        }
    }
    let mismatch = tree::items(owner, "mismatchLabelKeys");
    for (index, key) in tree::items(owner, "matchLabelKeys").iter().enumerate() {
        if mismatch.contains(key) {
            errors.push(Error::invalid(
                &path.child("matchLabelKeys").index(index),
                key.clone(),
                "exists in both matchLabelKeys and mismatchLabelKeys",
            ));
        }
    }
}

pub(super) fn topology_spread(spec: &Value, path: &Path, errors: &mut Errors) {
    let constraints = tree::items(spec, "topologySpreadConstraints");
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        let skew = tree::int(constraint, "maxSkew");
        if skew <= 0 {
            errors.push(Error::invalid(
                &path.child("maxSkew"),
                skew,
                "must be greater than zero",
            ));
        }
        let (key, action) = (
            tree::text(constraint, "topologyKey"),
            tree::text(constraint, "whenUnsatisfiable"),
        );
        if key.is_empty() {
            errors.push(Error::required(&path.child("topologyKey"), "can not be empty"));
        }
        const ACTIONS: [&str; 2] = ["DoNotSchedule", "ScheduleAnyway"];
        if !ACTIONS.contains(&action) {
            errors.push(Error::not_supported(&path.child("whenUnsatisfiable"), action, &ACTIONS));
        }
        let same =
            |other: &Value| tree::text(other, "topologyKey") == key && tree::text(other, "whenUnsatisfiable") == action;
        if constraints.iter().skip(index + 1).any(same) {
            errors.push(Error::duplicate(
                &path.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{key}, {action}}}"),
            ));
        }
        if let Some(domains) = tree::opt_int(constraint, "minDomains") {
            let at = path.child("minDomains");
            if domains <= 0 {
                errors.push(Error::invalid(&at, domains, "must be greater than zero"));
            }
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.push(Error::invalid(&at, domains, why));
            }
        }
        checks::run_at(
            &[
                ("nodeAffinityPolicy", Rule::GivenOneOf(&["Honor", "Ignore"])),
                ("nodeTaintsPolicy", Rule::GivenOneOf(&["Honor", "Ignore"])),
            ],
            constraint,
            &path,
            None,
            errors,
        );
        label_keys(constraint, &path, errors);
        selector(constraint, "labelSelector", &path.child("labelSelector"), errors);
    }
}

pub(crate) const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(crate) fn tolerations(tolerations: &[Value], path: &Path, errors: &mut Errors) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let (key, operator) = (tree::text(toleration, "key"), tree::text(toleration, "operator"));
        let (value, effect) = (tree::text(toleration, "value"), tree::text(toleration, "effect"));
        if !key.is_empty() {
            checks::named(&path.child("key"), key, api::qualified_name, errors);
        } else if operator != "Exists" {
            errors.push(Error::invalid(
                &path.child("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if tree::get(toleration, "tolerationSeconds").is_some() && effect != "NoExecute" {
            errors.push(Error::invalid(
                &path.child("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator {
            "Equal" | "" => {
                let wrong = api::label_value(value);
                if !wrong.is_empty() {
                    errors.push(Error::invalid(&path.child("operator"), value, wrong.join(";")));
                }
            }
            "Exists" if !value.is_empty() => errors.push(Error::invalid(
                &path.child("operator"),
                value,
                "value must be empty when `operator` is 'Exists'",
            )),
            "Exists" => {}
            _ => errors.push(Error::not_supported(
                &path.child("operator"),
                operator,
                &["Equal", "Exists"],
            )),
        }
        checks::run_at(&[("effect", Rule::OneOf(&EFFECTS))], toleration, &path, None, errors);
    }
}
