//! What admission counts, under upstream's names.
//!
//! Times are gathered per phase and booked with one lock. Labels come from plugin names, operations and the
//! names of configured webhooks, so their number is bounded by the configuration.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Operation;
use crate::sync::lock;

const STEP: [f64; 6] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const WEBHOOK: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
const CONDITION: [f64; 7] = [0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25];
/// Codes above are counted as this one.
const LARGEST_CODE: u16 = 600;

/// A series: the metric's name without the common prefix, and its labels as they are printed.
type Series = (&'static str, String);

#[derive(Default)]
struct Sample {
    buckets: Vec<u64>,
    count: u64,
    seconds: f64,
}

#[derive(Default)]
struct Books {
    times: BTreeMap<Series, Sample>,
    counts: BTreeMap<Series, u64>,
}

#[derive(Default)]
pub struct Metrics(Mutex<Books>);

/// The times of one phase of one request; booked when dropped.
pub struct Times<'a> {
    metrics: &'a Metrics,
    kind: &'static str,
    operation: Operation,
    started: Instant,
    plugins: Vec<(&'static str, Duration, bool)>,
}

impl Times<'_> {
    pub fn plugin(&mut self, name: &'static str, took: Duration, rejected: bool) {
        self.plugins.push((name, took, rejected));
    }
}

impl Drop for Times<'_> {
    fn drop(&mut self) {
        if self.plugins.is_empty() {
            return;
        }
        let operation = self.operation.name();
        let rejected = self.plugins.iter().any(|(.., rejected)| *rejected);
        let mut books = lock(&self.metrics.0);
        let common = format!("type=\"{}\",operation=\"{operation}\"", self.kind);
        books.time(
            "step_admission_duration_seconds",
            format!("{common},rejected=\"{rejected}\""),
            self.started.elapsed(),
        );
        for (name, took, rejected) in &self.plugins {
            let labels = format!("name=\"{name}\",{common},rejected=\"{rejected}\"");
            books.time("controller_admission_duration_seconds", labels, *took);
        }
    }
}

impl Books {
    fn time(&mut self, name: &'static str, labels: String, took: Duration) {
        let bounds = bounds(name);
        let sample = self.times.entry((name, labels)).or_default();
        sample.buckets.resize(bounds.len(), 0);
        let seconds = took.as_secs_f64();
        sample.count += 1;
        sample.seconds += seconds;
        for (bound, count) in bounds.iter().zip(&mut sample.buckets) {
            if seconds <= *bound {
                *count += 1;
            }
        }
    }

    fn count(&mut self, name: &'static str, labels: String) {
        *self.counts.entry((name, labels)).or_default() += 1;
    }
}

fn bounds(name: &str) -> &'static [f64] {
    match name {
        "webhook_admission_duration_seconds" => &WEBHOOK,
        "match_condition_evaluation_seconds" => &CONDITION,
        _ => &STEP,
    }
}

impl Metrics {
    /// Begins a phase: `admit` or `validate`.
    pub fn times(&self, kind: &'static str, operation: Operation) -> Times<'_> {
        Times {
            metrics: self,
            kind,
            operation,
            started: Instant::now(),
            plugins: Vec::new(),
        }
    }

    /// A webhook has been called. `kind`: `admit` or `validating`.
    pub fn webhook(&self, name: &str, kind: &str, operation: Operation, took: Duration, code: u16, rejected: bool) {
        let operation = operation.name();
        let common = format!("name={name:?},type=\"{kind}\",operation=\"{operation}\"");
        let mut books = lock(&self.0);
        books.time(
            "webhook_admission_duration_seconds",
            format!("{common},rejected=\"{rejected}\""),
            took,
        );
        let code = code.min(LARGEST_CODE);
        books.count(
            "webhook_request_total",
            format!("{common},code=\"{code}\",rejected=\"{rejected}\""),
        );
    }

    /// A request was refused because of a webhook: `calling_webhook_error`, `apiserver_internal_error` or `no_error`.
    pub fn webhook_rejection(&self, name: &str, kind: &str, operation: Operation, error: &str, code: u16) {
        let (operation, code) = (operation.name(), code.min(LARGEST_CODE));
        lock(&self.0).count(
            "webhook_rejection_count",
            format!(
                "name={name:?},type=\"{kind}\",operation=\"{operation}\",error_type=\"{error}\",rejection_code=\"{code}\""
            ),
        );
    }

    /// A webhook failed and was passed over.
    pub fn webhook_fail_open(&self, name: &str, kind: &str) {
        lock(&self.0).count("webhook_fail_open_count", format!("name={name:?},type=\"{kind}\""));
    }

    /// Match conditions were evaluated. `of`: `webhook` or `policy`; `kind`: `validate` or `admit`.
    pub fn match_conditions(
        &self,
        name: &str,
        of: &str,
        kind: &str,
        operation: Operation,
        took: Duration,
        outcome: Result<bool, ()>,
    ) {
        let labels = format!(
            "name={name:?},kind=\"{of}\",type=\"{kind}\",operation=\"{}\"",
            operation.name()
        );
        let mut books = lock(&self.0);
        match outcome {
            Ok(true) => {}
            Ok(false) => books.count("match_condition_exclusions_total", labels.clone()),
            Err(()) => books.count("match_condition_evaluation_errors_total", labels.clone()),
        }
        books.time("match_condition_evaluation_seconds", labels, took);
    }

    /// The whole exposition.
    pub fn text(&self, out: &mut String) {
        let books = lock(&self.0);
        let mut last = "";
        for ((name, labels), sample) in &books.times {
            if *name != last {
                heading(out, name, "histogram");
                last = name;
            }
            for (bound, count) in bounds(name).iter().zip(&sample.buckets) {
                let _ok = writeln!(
                    out,
                    "apiserver_admission_{name}_bucket{{{labels},le=\"{bound}\"}} {count}"
                );
            }
            let _ok = writeln!(
                out,
                "apiserver_admission_{name}_bucket{{{labels},le=\"+Inf\"}} {}",
                sample.count
            );
            let _ok = writeln!(out, "apiserver_admission_{name}_sum{{{labels}}} {}", sample.seconds);
            let _ok = writeln!(out, "apiserver_admission_{name}_count{{{labels}}} {}", sample.count);
        }
        for ((name, labels), count) in &books.counts {
            if *name != last {
                heading(out, name, "counter");
                last = name;
            }
            let _ok = writeln!(out, "apiserver_admission_{name}{{{labels}}} {count}");
        }
    }
}

fn heading(out: &mut String, name: &str, kind: &str) {
    let help = match name {
        "step_admission_duration_seconds" => "Time of a whole admission phase.",
        "controller_admission_duration_seconds" => "Time in one admission plugin.",
        "webhook_admission_duration_seconds" => "Time of calls to admission webhooks.",
        "webhook_request_total" => "Calls to admission webhooks, by their outcome.",
        "webhook_rejection_count" => "Requests refused because of a webhook.",
        "webhook_fail_open_count" => "Webhooks that failed and were passed over.",
        "match_condition_evaluation_seconds" => "Time of evaluating match conditions.",
        "match_condition_exclusions_total" => "Calls match conditions spared.",
        _ => "Match conditions that could not be evaluated.",
    };
    let _ok = writeln!(
        out,
        "# HELP apiserver_admission_{name} {help}\n# TYPE apiserver_admission_{name} {kind}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_printed_as_upstream_names_them() {
        let metrics = Metrics::default();
        metrics.webhook(
            "a.b.c",
            "admit",
            Operation::Create,
            Duration::from_millis(30),
            200,
            false,
        );
        metrics.webhook_rejection("a.b.c", "validating", Operation::Delete, "no_error", 700);
        let mut text = String::new();
        metrics.text(&mut text);
        for line in [
            r#"apiserver_admission_webhook_admission_duration_seconds_bucket{name="a.b.c",type="admit",operation="CREATE",rejected="false",le="0.025"} 0"#,
            r#"apiserver_admission_webhook_admission_duration_seconds_bucket{name="a.b.c",type="admit",operation="CREATE",rejected="false",le="0.1"} 1"#,
            r#"apiserver_admission_webhook_request_total{name="a.b.c",type="admit",operation="CREATE",code="200",rejected="false"} 1"#,
            r#"apiserver_admission_webhook_rejection_count{name="a.b.c",type="validating",operation="DELETE",error_type="no_error",rejection_code="600"} 1"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
