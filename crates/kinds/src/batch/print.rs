//! Table output of Jobs and CronJobs.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::print::{
    AGE, CONTAINERS, IMAGES, NAME, SELECTOR, age, between, boolean, cell, cell_or, containers_and_images, integer,
    is_true, name, selector, since, text,
};
use crate::spec::Column;
use crate::tree;

pub(super) const JOB: &[Column] = &[
    NAME,
    text("Status", "How far it is."),
    text("Completions", "Pods that succeeded of those wanted."),
    text("Duration", "How long it took, or has been taking."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// Conditions and the word for them, the first that is true counting; deletion comes after the first two.
const STATUSES: [(&str, &str); 5] = [
    ("Complete", "Complete"),
    ("Failed", "Failed"),
    ("Suspended", "Suspended"),
    ("FailureTarget", "FailureTarget"),
    ("SuccessCriteriaMet", "SuccessCriteriaMet"),
];

fn status(job: &Object) -> &'static str {
    let found = STATUSES
        .iter()
        .position(|(condition, _)| is_true(job, "status.conditions", condition));
    let deleted = tree::get(job, "metadata.deletionTimestamp").is_some();
    match found {
        Some(index) if index < 2 || !deleted => STATUSES[index].1,
        _ if deleted => "Terminating",
        _ => "Running",
    }
}

pub(super) fn job(job: &Object, now: Timestamp) -> Vec<Value> {
    let succeeded = tree::int(job, "status.succeeded");
    let completions = match tree::opt_int(job, "spec.completions") {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None => match tree::int(job, "spec.parallelism") {
            parallelism if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
            _ => format!("{succeeded}/1"),
        },
    };
    let duration = match (
        tree::text(job, "status.startTime"),
        tree::text(job, "status.completionTime"),
    ) {
        ("", _) => String::new(),
        (start, "") => since(start, now),
        (start, end) => between(start, end).unwrap_or_default(),
    };
    let [names, images] = containers_and_images(job, "spec.template.spec");
    vec![
        name(job),
        status(job).into(),
        completions.into(),
        duration.into(),
        age(job, now),
        names,
        images,
        selector(job, "spec.selector").into(),
    ]
}

pub(super) const CRON_JOB: &[Column] = &[
    NAME,
    text("Schedule", "When it runs, in cron's notation."),
    text("Timezone", "The time zone of the schedule."),
    boolean("Suspend", "Whether it starts nothing for now."),
    integer("Active", "Jobs of it that are running."),
    text("Last Schedule", "When it last started a Job."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn cron_job(object: &Object, now: Timestamp) -> Vec<Value> {
    let last = match tree::text(object, "status.lastScheduleTime") {
        "" => "<none>".to_owned(),
        time => since(time, now),
    };
    let suspend = match tree::get(object, "spec.suspend").and_then(Value::as_bool) {
        None => "<unset>",
        Some(true) => "True",
        Some(false) => "False",
    };
    let [names, images] = containers_and_images(object, "spec.jobTemplate.spec.template.spec");
    vec![
        name(object),
        cell(object, "spec.schedule"),
        cell_or(object, "spec.timeZone", "<none>"),
        suspend.into(),
        tree::items(object, "status.active").len().into(),
        last.into(),
        age(object, now),
        names,
        images,
        selector(object, "spec.jobTemplate.spec.selector").into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_jobs_row() {
        let now = "2026-01-01T00:02:00Z".parse().unwrap();
        let cases = [
            (
                json!({"spec": {"completions": 3}, "status": {"succeeded": 1, "startTime": "2026-01-01T00:01:00Z"}}),
                json!(["Running", "1/3", "60s"]),
            ),
            (
                json!({"spec": {"parallelism": 2}, "status": {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:05Z",
                    "conditions": [{"type": "Complete", "status": "True"}]}}),
                json!(["Complete", "0/1 of 2", "5s"]),
            ),
            (
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"conditions": [{"type": "Suspended", "status": "True"}]}}),
                json!(["Terminating", "0/1", ""]),
            ),
        ];
        for (object, wanted) in cases {
            assert_eq!(Value::from(&job(&object, now)[1..4]), wanted);
        }
    }
}
