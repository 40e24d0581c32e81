//! What a Job's status may say, and that what a Job has come to is not taken back.
//!
//! Others than the Job controller may keep a Job (`spec.managedBy`); whoever watches Jobs relies on these transitions.
//! Most rules are asked only when what they speak of changes: a change of the spec can make a status wrong for a moment,
//! and its keeper must be able to write while it puts it right.

use std::collections::BTreeSet;

use sampan_api::Object;
use sampan_api::field::{Error, Errors, Path};
use serde_json::Value;

use super::indexed;
use crate::checks::{self, Check, Rule};
use crate::print::is_true;
use crate::tree;

const COUNTERS: &[Check] = &[
    ("active", Rule::NonNegative),
    ("succeeded", Rule::NonNegative),
    ("failed", Rule::NonNegative),
    ("ready", Rule::NonNegative),
    ("terminating", Rule::NonNegative),
];

/// The two states of a Job, and what is asked of them.
struct Transition<'a> {
    new: &'a Object,
    old: &'a Object,
    path: Path,
    errors: &'a mut Errors,
}

pub(super) fn update(new: &Object, old: &Object, errors: &mut Errors) {
    let mut transition = Transition {
        new,
        old,
        path: Path::new("status"),
        errors,
    };
    transition.numbers();
    transition.end();
    transition.indexes();
    transition.conditions();
    transition.history();
}

fn has(job: &Object, kind: &str) -> bool {
    is_true(job, "status.conditions", kind)
}

fn finished(job: &Object) -> bool {
    has(job, "Complete") || has(job, "Failed")
}

fn succeeds(job: &Object) -> bool {
    has(job, "SuccessCriteriaMet")
}

fn uncounted(job: &Object, list: &str) -> usize {
    tree::items(job, &format!("status.uncountedTerminatedPods.{list}")).len()
}

fn instant(job: &Object, field: &str) -> Option<jiff::Timestamp> {
    tree::text(job, field).parse().ok()
}

impl Transition<'_> {
    fn now(&self, field: &str) -> Option<&Value> {
        tree::get(self.new, &format!("status.{field}"))
    }

    fn number(&self, field: &str) -> i64 {
        self.now(field).and_then(Value::as_i64).unwrap_or(0)
    }

    /// Whether a field of the status is not what it was; nothing is the same as its zero where Go has no pointer.
    fn changed(&self, field: &str) -> bool {
        !tree::same_at(self.new, self.old, &format!("status.{field}"))
    }

    fn number_changed(&self, field: &str) -> bool {
        let number = |job| tree::int(job, &format!("status.{field}"));
        number(self.new) != number(self.old)
    }

    fn turned(&self, state: impl Fn(&Object) -> bool) -> bool {
        state(self.new) != state(self.old)
    }

    fn invalid(&mut self, field: &str, why: impl Into<String>) {
        let value = self.now(field).cloned().unwrap_or_default();
        self.errors.push(Error::invalid(&self.path.child(field), value, why));
    }

    fn required(&mut self, field: &str, why: &str) {
        self.errors.push(Error::required(&self.path.child(field), why));
    }

    /// About the conditions, which are not repeated.
    fn refuse(&mut self, asked: bool, broken: bool, why: &str) {
        if asked && broken {
            let mut error = Error::invalid(&self.path.child("conditions"), Value::Null, why);
            error.omitted = true;
            self.errors.push(error);
        }
    }

    fn numbers(&mut self) {
        let status = tree::get(self.new, "status").unwrap_or(&Value::Null);
        checks::run_at(COUNTERS, status, &self.path, None, self.errors);
        let mut seen = BTreeSet::new();
        for list in ["succeeded", "failed"] {
            let path = self.path.child("uncountedTerminatedPods").child(list);
            let uids = tree::items(self.new, &format!("status.uncountedTerminatedPods.{list}"));
            for (index, uid) in uids.iter().filter_map(Value::as_str).enumerate() {
                if uid.is_empty() {
                    self.errors
                        .push(Error::invalid(&path.index(index), uid, "must not be empty"));
                } else if !seen.insert(uid) {
                    self.errors.push(Error::duplicate(&path.index(index), uid));
                }
            }
        }
    }

    /// What must be true of a Job that is done, and of the times at which it was.
    fn end(&mut self) {
        let (new, old) = (self.new, self.old);
        let complete = |job: &Object| has(job, "Complete");
        let failed = |job: &Object| has(job, "Failed");
        let target = |job: &Object| has(job, "FailureTarget");
        let (completes, fails) = (self.turned(complete), self.turned(failed));
        let ends = finished(new) != finished(old);
        let timed = self.changed("completionTime");

        self.refuse(
            completes || fails,
            complete(new) && failed(new),
            "cannot set Complete=True and Failed=true conditions",
        );
        self.refuse(
            completes || self.turned(target),
            complete(new) && target(new),
            "cannot set Complete=True and FailureTarget=true conditions",
        );
        let done_at = self.now("completionTime").is_some();
        if (completes || timed) && done_at && !complete(new) {
            let why = "cannot set completionTime when there is no Complete=True condition";
            self.invalid("completionTime", why);
        }
        if (completes || timed) && !done_at && complete(new) {
            self.required("completionTime", "completionTime is required for Complete jobs");
        }
        let times = [instant(new, "status.startTime"), instant(new, "status.completionTime")];
        if (timed || self.changed("startTime"))
            && let [Some(start), Some(end)] = times
            && end < start
        {
            self.invalid("completionTime", "must be equal to or after `startTime`");
        }
        self.refuse(
            fails || self.changed("failedIndexes"),
            failed(new) && !target(new),
            "cannot set Failed=True condition without the FailureTarget=true condition",
        );
        self.refuse(
            completes || self.turned(succeeds),
            complete(new) && !succeeds(new),
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        );
        if !finished(new) {
            return;
        }
        if (ends || self.number_changed("active")) && self.number("active") > 0 {
            self.invalid("active", "active>0 is invalid for finished job");
        }
        let nothing_to_do = tree::flag(new, "spec.suspend") && tree::opt_int(new, "spec.completions") == Some(0);
        if (ends || self.changed("startTime")) && !nothing_to_do && self.now("startTime").is_none() {
            self.required("startTime", "startTime is required for finished job");
        }
        let left = uncounted(new, "succeeded") + uncounted(new, "failed") > 0;
        if (ends || self.changed("uncountedTerminatedPods")) && left {
            let list = |name| self.now(&format!("uncountedTerminatedPods.{name}")).cloned();
            let [good, bad] = ["succeeded", "failed"].map(|name| list(name).unwrap_or_default());
            let shown = format!("{{\"Succeeded\":{good},\"Failed\":{bad}}}");
            let path = self.path.child("uncountedTerminatedPods");
            let error = Error::invalid(&path, Value::Null, "must be empty for finished job").showing(shown);
            self.errors.push(error);
        }
    }

    /// Indexes that are done or failed, and the Pods that are neither yet.
    fn indexes(&mut self) {
        let (completed, failed) = (self.changed("completedIndexes"), self.changed("failedIndexes"));
        let all = tree::opt_int(self.new, "spec.completions");
        let per_index = tree::get(self.new, "spec.backoffLimitPerIndex").is_some();
        let is_indexed = tree::text(self.new, "spec.completionMode") == "Indexed";
        let text = |field: &str| tree::text(self.new, field).to_owned();
        let (done, lost) = (text("status.completedIndexes"), text("status.failedIndexes"));
        let has_lost = self.now("failedIndexes").is_some();

        if completed
            && let Some(all) = all
            && let Err(why) = indexed::count_of(&done, all)
        {
            self.invalid("completedIndexes", format!("error parsing completedIndexes: {why}"));
        }
        if failed
            && per_index
            && let Some(all) = all
            && let Err(why) = indexed::count_of(&lost, all)
        {
            self.invalid("failedIndexes", format!("error parsing failedIndexes: {why}"));
        }
        if completed && !done.is_empty() && !is_indexed {
            let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
            self.invalid("completedIndexes", why);
        }
        if failed && has_lost && !per_index {
            let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
            self.invalid("failedIndexes", why);
        }
        if (completed || failed)
            && has_lost
            && let Some(index) = all.and_then(|all| indexed::common(&done, &lost, all))
        {
            let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
            self.invalid("failedIndexes", why);
        }
        let ends = finished(self.new) != finished(self.old);
        if (ends || self.changed("terminating")) && self.number("terminating") > 0 && finished(self.new) {
            self.invalid("terminating", "terminating>0 is invalid for finished job");
        }
        if (self.changed("ready") || self.number_changed("active")) && self.number("ready") > self.number("active") {
            self.invalid("ready", "cannot set more ready pods than active");
        }
    }

    fn conditions(&mut self) {
        let new = self.new;
        self.refuse(
            succeeds(new),
            has(new, "Failed"),
            "cannot set SuccessCriteriaMet=True and Failed=true conditions",
        );
        self.refuse(
            succeeds(new),
            has(new, "FailureTarget"),
            "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
        );
        self.refuse(
            tree::get(new, "spec.successPolicy").is_some(),
            !succeeds(new) && has(new, "Complete"),
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
        );
    }

    /// What stays once it was said.
    fn history(&mut self) {
        let (new, old) = (self.new, self.old);
        for kind in ["Failed", "Complete", "FailureTarget"] {
            let why = format!("cannot disable the terminal {kind}=True condition");
            self.refuse(has(old, kind), !has(new, kind), &why);
        }
        // Indexed Jobs are scaled down with their parallelism, and count fewer then.
        let scales = tree::text(new, "spec.completionMode") == "Indexed"
            && tree::opt_int(new, "spec.completions") == tree::opt_int(new, "spec.parallelism");
        for (counter, asked) in [("failed", true), ("succeeded", !scales)] {
            if asked && self.number(counter) < tree::int(old, &format!("status.{counter}")) {
                let number = self.number(counter);
                let path = self.path.child(counter);
                let why = format!("cannot decrease the {counter} counter");
                self.errors.push(Error::invalid(&path, number, why));
            }
        }
        let both = |field: &str| [new, old].iter().all(|job| tree::get(job, field).is_some());
        if both("status.completionTime") && self.changed("completionTime") {
            self.invalid("completionTime", checks::IMMUTABLE);
        }
        let resumes = has(old, "Suspended") && is_false(new, "Suspended");
        let started = tree::get(old, "status.startTime").is_some();
        if started && self.changed("startTime") && !resumes && !tree::flag(new, "spec.suspend") {
            self.invalid("startTime", "field is immutable for unsuspended job once set");
        }
        self.refuse(
            succeeds(old),
            !succeeds(new),
            "cannot disable the SuccessCriteriaMet=True condition",
        );
        self.refuse(
            has(old, "Complete") && !succeeds(old),
            succeeds(new),
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
        );
    }
}

fn is_false(job: &Object, kind: &str) -> bool {
    let conditions = tree::items(job, "status.conditions");
    let mut conditions = conditions.iter();
    conditions.any(|condition| tree::text(condition, "type") == kind && tree::text(condition, "status") == "False")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(spec: &Value, old: &Value, new: &Value) -> Vec<String> {
        let job = |status: &Value| json!({"metadata": {"name": "j"}, "spec": spec, "status": status});
        let mut errors = Errors::new();
        update(&job(new), &job(old), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    fn conditions(kinds: &[&str]) -> Value {
        kinds
            .iter()
            .map(|kind| json!({"type": kind, "status": "True"}))
            .collect()
    }

    /// A status with these conditions and times, and with more.
    fn status(kinds: &[&str], more: Value) -> Value {
        let mut status = json!({"conditions": conditions(kinds), "startTime": "2026-01-01T00:00:00Z"});
        if kinds.contains(&"Complete") {
            status["completionTime"] = json!("2026-01-01T00:01:00Z");
        }
        for (field, value) in more.as_object().unwrap() {
            status[field] = value.clone();
        }
        status
    }

    #[test]
    fn a_job_ends_as_it_should() {
        let plain = json!({"completions": 2, "parallelism": 1});
        let indexed =
            json!({"completions": 5, "parallelism": 5, "completionMode": "Indexed", "backoffLimitPerIndex": 1});
        let none = json!({});
        let running = status(&[], json!({"active": 2, "ready": 1}));
        let complete = status(&["SuccessCriteriaMet", "Complete"], json!({}));
        let cases: Vec<(&Value, Value, Value, &[&str])> = vec![
            (&plain, none.clone(), running.clone(), &[]),
            (&plain, running.clone(), complete.clone(), &[]),
            (
                &plain,
                running.clone(),
                status(&["FailureTarget", "Failed"], json!({"failed": 1})),
                &[],
            ),
            (
                &plain,
                running.clone(),
                status(&["Complete"], json!({})),
                &[
                    "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
                ],
            ),
            (
                &plain,
                running.clone(),
                status(&["Failed"], json!({})),
                &[
                    "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition",
                ],
            ),
            (
                &plain,
                complete.clone(),
                status(
                    &["SuccessCriteriaMet"],
                    json!({"completionTime": "2026-01-01T00:01:00Z"}),
                ),
                &[
                    "status.completionTime: Invalid value: \"2026-01-01T00:01:00Z\": cannot set completionTime when there is no Complete=True condition",
                    "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
                ],
            ),
            (
                &plain,
                complete.clone(),
                status(
                    &["SuccessCriteriaMet", "Complete"],
                    json!({"completionTime": "2026-01-01T00:02:00Z"}),
                ),
                &["status.completionTime: Invalid value: \"2026-01-01T00:02:00Z\": field is immutable"],
            ),
            (
                &plain,
                running.clone(),
                status(
                    &["SuccessCriteriaMet", "Complete"],
                    json!({"completionTime": "2025-01-01T00:00:00Z", "active": 1, "terminating": 1,
                        "uncountedTerminatedPods": {"failed": ["a"]}}),
                ),
                &[
                    "status.completionTime: Invalid value: \"2025-01-01T00:00:00Z\": must be equal to or after `startTime`",
                    "status.active: Invalid value: 1: active>0 is invalid for finished job",
                    "status.uncountedTerminatedPods: Invalid value: {\"Succeeded\":null,\"Failed\":[\"a\"]}: must be empty for finished job",
                    "status.terminating: Invalid value: 1: terminating>0 is invalid for finished job",
                ],
            ),
            (
                &plain,
                none.clone(),
                json!({"conditions": conditions(&["SuccessCriteriaMet", "Complete"])}),
                &[
                    "status.completionTime: Required value: completionTime is required for Complete jobs",
                    "status.startTime: Required value: startTime is required for finished job",
                ],
            ),
            (
                &plain,
                running.clone(),
                status(&[], json!({"active": 1, "ready": 2, "failed": -1})),
                &[
                    "status.failed: Invalid value: -1: must be greater than or equal to 0",
                    "status.ready: Invalid value: 2: cannot set more ready pods than active",
                    "status.failed: Invalid value: -1: cannot decrease the failed counter",
                ],
            ),
            (
                &plain,
                running.clone(),
                status(&[], json!({"startTime": "2026-01-02T00:00:00Z"})),
                &[
                    "status.startTime: Invalid value: \"2026-01-02T00:00:00Z\": field is immutable for unsuspended job once set",
                ],
            ),
            (
                &plain,
                status(&["Suspended"], json!({})),
                json!({"conditions": [{"type": "Suspended", "status": "False"}], "startTime": "2026-01-02T00:00:00Z"}),
                &[],
            ),
            (
                &plain,
                running.clone(),
                status(&[], json!({"completedIndexes": "1"})),
                &[
                    "status.completedIndexes: Invalid value: \"1\": cannot set non-empty completedIndexes when non-indexed completion mode",
                ],
            ),
            (
                &indexed,
                status(&[], json!({"succeeded": 4})),
                status(
                    &[],
                    json!({"succeeded": 2, "completedIndexes": "0-2", "failedIndexes": "2,4"}),
                ),
                &[
                    "status.failedIndexes: Invalid value: \"2,4\": failedIndexes and completedIndexes overlap at index: 2",
                ],
            ),
            (
                &indexed,
                running.clone(),
                status(&[], json!({"completedIndexes": "3,1", "failedIndexes": "7"})),
                &[
                    "status.completedIndexes: Invalid value: \"3,1\": error parsing completedIndexes: non-increasing order, previous: 3, current: 1",
                    "status.failedIndexes: Invalid value: \"7\": error parsing failedIndexes: too large index: \"7\"",
                ],
            ),
            // What was wrong before and is not touched stands in nobody's way.
            (
                &plain,
                status(&["Complete"], json!({"active": 1})),
                status(&["Complete"], json!({"active": 1, "failed": 1})),
                &[],
            ),
        ];
        for (spec, old, new, expected) in cases {
            assert_eq!(said(spec, &old, &new), expected, "{old} -> {new}");
        }
    }
}
