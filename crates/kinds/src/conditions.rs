//! Validation of conditions of the common type (`meta/v1`), for kinds that check theirs.

use std::collections::BTreeSet;

use sampan_api::field::{Error, Errors, Path};
use sampan_api::names as api;
use serde_json::Value;

use crate::checks::{self, Check, Rule};
use crate::tree;

const STATUSES: &[&str] = &["False", "True", "Unknown"];
const LONGEST_REASON: usize = 1024;
const LONGEST_MESSAGE: usize = 32 * 1024;

const BIRTH: &[Check] = &[
    ("lastTransitionTime", Rule::Required("")),
    ("reason", Rule::RequiredNamed(api::condition_reason)),
];

pub(crate) fn validate(conditions: &[Value], path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        let kind = tree::text(condition, "type");
        if !seen.insert(kind) {
            errors.push(Error::duplicate(&path.child("type"), kind));
        }
        checks::named(&path.child("type"), kind, api::qualified_name, errors);
        let status = tree::text(condition, "status");
        if !STATUSES.contains(&status) {
            errors.push(Error::not_supported(&path.child("status"), status, STATUSES));
        }
        let generation = tree::int(condition, "observedGeneration");
        if generation < 0 {
            errors.push(Error::invalid(
                &path.child("observedGeneration"),
                generation,
                "must be greater than or equal to zero",
            ));
        }
        // What is required of a condition is missing in one that is null.
        let empty = Value::Object(serde_json::Map::new());
        let given = if condition.is_null() { &empty } else { condition };
        checks::run_at(BIRTH, given, &path, None, errors);
        for (field, longest) in [("reason", LONGEST_REASON), ("message", LONGEST_MESSAGE)] {
            if tree::text(condition, field).len() > longest {
                errors.push(Error::too_long(&path.child(field), longest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions() {
        let good = json!({"type": "x.io/Ready", "status": "True", "reason": "A_b,C:d", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let with = |field: &str, value: Value| {
            let mut condition = good.clone();
            condition[field] = value;
            condition
        };
        let cases = [
            (vec![good.clone()], vec![]),
            (
                vec![good.clone(), good.clone()],
                vec![r#"c[1].type: Duplicate value: "x.io/Ready""#],
            ),
            (
                vec![with("status", json!("true"))],
                vec![r#"c[0].status: Unsupported value: "true": supported values: "False", "True", "Unknown""#],
            ),
            (
                vec![with("observedGeneration", json!(-1))],
                vec!["c[0].observedGeneration: Invalid value: -1: must be greater than or equal to zero"],
            ),
            (vec![with("reason", Value::Null)], vec!["c[0].reason: Required value"]),
            (
                vec![with("reason", json!("1a"))],
                vec![
                    "c[0].reason: Invalid value: \"1a\": a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')",
                ],
            ),
        ];
        for (given, wanted) in cases {
            let mut errors = Errors::new();
            validate(&given, &Path::new("c"), &mut errors);
            let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(texts, wanted);
        }
    }
}
