//! What an indexed Job may say: how many indexes, how many of them may fail, and which must succeed.

use sampan_api::field::{Error, Errors, Path};
use serde_json::Value;

use crate::checks::{self, Rule};
use crate::tree;

/// Most Pods at once, and most indexes that may fail.
const MOST: i64 = 100_000;
/// More indexes than these need tighter limits where each has retries of its own.
const MANY: i64 = 100_000;
const MOST_OF_MANY: i64 = 10_000;
const RULES: usize = 20;
const INDEXES_LEN: usize = 64 * 1024;

/// The limits of an indexed Job.
pub(super) fn limits(spec: &Value, path: &Path, errors: &mut Errors) {
    let of = |name: &str| tree::opt_int(spec, name);
    let (parallelism, failed, completions) = (of("parallelism"), of("maxFailedIndexes"), of("completions"));
    if completions.is_none() {
        let why = "when completion mode is Indexed";
        errors.push(Error::required(&path.child("completions"), why));
    }
    let mut at_most = |name: &str, value: Option<i64>, max: i64, why: String| {
        if let Some(value) = value.filter(|value| *value > max) {
            errors.push(Error::invalid(&path.child(name), value, why));
        }
    };
    let why = format!("must be less than or equal to {MOST} when completion mode is Indexed");
    at_most("parallelism", parallelism, MOST, why);
    if let Some(all) = completions {
        let why = "must be less than or equal to completions".to_owned();
        at_most("maxFailedIndexes", failed, all, why);
    }
    let why = format!("must be less than or equal to {MOST}");
    at_most("maxFailedIndexes", failed, MOST, why);
    if completions.is_none_or(|all| all <= MANY) || of("backoffLimitPerIndex").is_none() {
        return;
    }
    if failed.is_none() {
        let why = format!("must be specified when completions is above {MANY}");
        errors.push(Error::required(&path.child("maxFailedIndexes"), why));
    }
    for (name, value) in [("parallelism", parallelism), ("maxFailedIndexes", failed)] {
        if let Some(value) = value.filter(|value| *value > MOST_OF_MANY) {
            let why = format!(
                "must be less than or equal to {MOST_OF_MANY} when completions are above {MANY} and used with backoff limit per index"
            );
            errors.push(Error::invalid(&path.child(name), value, why));
        }
    }
}

/// When an indexed Job counts as done before all its indexes are.
pub(super) fn success_policy(spec: &Value, policy: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("rules");
    let rules = tree::items(policy, "rules");
    if rules.is_empty() {
        errors.push(Error::required(
            &path,
            "at least one rules must be specified when the successPolicy is specified",
        ));
    }
    if rules.len() > RULES {
        errors.push(Error::too_many(&path, rules.len(), RULES));
    }
    // Without a number of completions, which is an error of its own, there is nothing to compare with.
    let all = tree::opt_int(spec, "completions");
    for (index, rule) in rules.iter().enumerate() {
        success_rule(rule, all, &path.index(index), errors);
    }
}

fn success_rule(rule: &Value, all: Option<i64>, path: &Path, errors: &mut Errors) {
    let count = tree::opt_int(rule, "succeededCount");
    let indexes = tree::get(rule, "succeededIndexes").and_then(Value::as_str);
    if count.is_none() && indexes.is_none() {
        errors.push(Error::required(
            path,
            "at least one of succeededCount or succeededIndexes must be specified",
        ));
    }
    let mut named = None;
    if let (Some(indexes), Some(all)) = (indexes, all) {
        let path = path.child("succeededIndexes");
        if indexes.len() > INDEXES_LEN {
            errors.push(Error::too_long(&path, INDEXES_LEN));
        }
        named = Some(count_of(indexes, all).unwrap_or_else(|why| {
            let why = format!("error parsing succeededIndexes: {why}");
            errors.push(Error::invalid(&path, indexes, why));
            0
        }));
    }
    checks::run_at(&[("succeededCount", Rule::NonNegative)], rule, path, None, errors);
    let Some(count) = count else { return };
    let limits = [
        (all, "specified completions"),
        (named, "indexes in the specified succeededIndexes field"),
    ];
    for (max, what) in limits {
        if let Some(max) = max.filter(|max| count > *max) {
            let why = format!("must be less than or equal to {max} (the number of {what})");
            errors.push(Error::invalid(&path.child("succeededCount"), count, why));
        }
    }
}

/// How many indexes `1,3-5,7` names. They come in order, and all are below `all`.
pub(super) fn count_of(indexes: &str, all: i64) -> Result<i64, String> {
    if indexes.is_empty() {
        return Ok(0);
    }
    let (mut last, mut count) = (None, 0);
    for interval in indexes.split(',') {
        let (first, end) = interval_of(interval, all)?;
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        count += end - first + 1;
        last = Some(end);
    }
    Ok(count)
}

/// The first index that both name. What cannot be read is skipped; that is an error of its own.
pub(super) fn common(one: &str, other: &str, all: i64) -> Option<i64> {
    let intervals = |text: &str| -> Vec<(i64, i64)> {
        text.split(',')
            .filter_map(|interval| interval_of(interval, all).ok())
            .collect()
    };
    let (one, other) = (intervals(one), intervals(other));
    let (mut left, mut right) = (one.iter().peekable(), other.iter().peekable());
    while let (Some((first, last)), Some((start, end))) = (left.peek(), right.peek()) {
        if first <= end && start <= last {
            return Some(*first.max(start));
        }
        if first <= start {
            left.next();
        } else {
            right.next();
        }
    }
    None
}

fn interval_of(text: &str, all: i64) -> Result<(i64, i64), String> {
    let index = |text: &str| {
        let number: i64 = text
            .parse()
            .map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        match number >= all {
            true => Err(format!("too large index: {text:?}")),
            false => Ok(number),
        }
    };
    match text.split('-').collect::<Vec<_>>().as_slice() {
        [one] => index(one).map(|one| (one, one)),
        [first, last] => {
            let (first, last) = (index(first)?, index(last)?);
            match first >= last {
                true => Err(format!("non-increasing order, previous: {first}, current: {last}")),
                false => Ok((first, last)),
            }
        }
        _ => Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_two_lists_share() {
        let cases = [
            ("0-2", "2,4", Some(2)),
            ("0,5-7", "1-4,6", Some(6)),
            ("0,2,4", "1,3,5", None),
            ("", "1", None),
            ("x,3", "3", Some(3)),
            ("9", "9", None),
        ];
        for (one, other, expected) in cases {
            assert_eq!(common(one, other, 8), expected, "{one} {other}");
        }
    }

    #[test]
    fn indexes_are_counted() {
        for (text, all, wanted) in [
            ("", 3, Ok(0)),
            ("0", 1, Ok(1)),
            ("0-2,4,6-7", 8, Ok(6)),
            ("0", 0, Err("too large index: \"0\"")),
            ("0-3", 3, Err("too large index: \"3\"")),
            ("a", 3, Err("cannot convert string to integer for index: \"a\"")),
            ("-1", 3, Err("cannot convert string to integer for index: \"\"")),
            ("2-1", 3, Err("non-increasing order, previous: 2, current: 1")),
            ("1,1", 3, Err("non-increasing order, previous: 1, current: 1")),
            (
                "0-1-2",
                3,
                Err(
                    "the fragment \"0-1-2\" violates the requirement that an index interval can have at most two parts separated by '-'",
                ),
            ),
        ] {
            assert_eq!(count_of(text, all), wanted.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn indexed_jobs_are_refused_in_upstreams_words() {
        let said = |changes: Value| {
            let mut spec = json!({"completions": 3, "parallelism": 1});
            for (key, value) in changes.as_object().unwrap() {
                spec[key] = value.clone();
            }
            let mut errors = Errors::new();
            let path = Path::new("spec");
            limits(&spec, &path, &mut errors);
            if let Some(policy) = tree::get(&spec, "successPolicy") {
                success_policy(&spec, policy, &path.child("successPolicy"), &mut errors);
            }
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let rule = |rule: Value| json!({"successPolicy": {"rules": [rule]}});
        for (changes, wanted) in [
            (json!({}), vec![]),
            (
                json!({"completions": null, "parallelism": 100_001, "successPolicy": {"rules": [{"succeededCount": 1}]}}),
                vec![
                    "spec.completions: Required value: when completion mode is Indexed",
                    "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed",
                ],
            ),
            (
                json!({"maxFailedIndexes": 4}),
                vec!["spec.maxFailedIndexes: Invalid value: 4: must be less than or equal to completions"],
            ),
            (
                json!({"completions": 200_000, "backoffLimitPerIndex": 1, "parallelism": 20_000}),
                vec![
                    "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000",
                    "spec.parallelism: Invalid value: 20000: must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index",
                ],
            ),
            (
                json!({"successPolicy": {"rules": []}}),
                vec![
                    "spec.successPolicy.rules: Required value: at least one rules must be specified when the successPolicy is specified",
                ],
            ),
            (
                rule(json!({})),
                vec![
                    "spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified",
                ],
            ),
            (
                rule(json!({"succeededCount": 4, "succeededIndexes": "0-1"})),
                vec![
                    "spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 (the number of specified completions)",
                    "spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 2 (the number of indexes in the specified succeededIndexes field)",
                ],
            ),
            (
                rule(json!({"succeededCount": -1, "succeededIndexes": "x"})),
                vec![
                    "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"x\": error parsing succeededIndexes: cannot convert string to integer for index: \"x\"",
                    "spec.successPolicy.rules[0].succeededCount: Invalid value: -1: must be greater than or equal to 0",
                ],
            ),
        ] {
            assert_eq!(said(changes.clone()), wanted, "{changes}");
        }
    }
}
