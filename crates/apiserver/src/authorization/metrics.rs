//! What is counted of webhooks, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Duration;

use crate::sync::lock;

#[derive(Debug, Default)]
pub struct Metrics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// By webhook and result: how often, and how long altogether.
    evaluations: BTreeMap<(String, &'static str), (u64, f64)>,
    /// Failures that let the next authorizer decide.
    open: BTreeMap<(String, &'static str), u64>,
    /// Requests that match conditions kept from a webhook.
    excluded: BTreeMap<String, u64>,
    /// Match conditions that could not be evaluated.
    errors: BTreeMap<String, u64>,
}

impl Metrics {
    pub fn asked(&self, name: &str, result: &'static str, took: Duration) {
        let mut counts = lock(&self.0);
        let (count, seconds) = counts.evaluations.entry((name.to_owned(), result)).or_default();
        *count += 1;
        *seconds += took.as_secs_f64();
    }
    pub fn failed_open(&self, name: &str, result: &'static str) {
        *lock(&self.0).open.entry((name.to_owned(), result)).or_default() += 1;
    }
    pub fn excluded(&self, name: &str) {
        *lock(&self.0).excluded.entry(name.to_owned()).or_default() += 1;
    }
    pub fn condition_failed(&self, name: &str) {
        *lock(&self.0).errors.entry(name.to_owned()).or_default() += 1;
    }

    pub fn text(&self, out: &mut String) {
        const PREFIX: &str = "apiserver_authorization";
        let counts = lock(&self.0);
        for ((name, result), (count, seconds)) in &counts.evaluations {
            let labels = format!("name={name:?},result=\"{result}\"");
            let _ok = writeln!(out, "{PREFIX}_webhook_evaluations_total{{{labels}}} {count}");
            let _ok = writeln!(out, "{PREFIX}_webhook_duration_seconds_count{{{labels}}} {count}");
            let _ok = writeln!(out, "{PREFIX}_webhook_duration_seconds_sum{{{labels}}} {seconds}");
        }
        for ((name, result), count) in &counts.open {
            let labels = format!("name={name:?},result=\"{result}\"");
            let _ok = writeln!(out, "{PREFIX}_webhook_evaluations_fail_open_total{{{labels}}} {count}");
        }
        for (name, count) in &counts.excluded {
            let labels = format!("name={name:?},type=\"Webhook\"");
            let _ok = writeln!(out, "{PREFIX}_match_condition_exclusions_total{{{labels}}} {count}");
        }
        for (name, count) in &counts.errors {
            let labels = format!("name={name:?},type=\"Webhook\"");
            let _ok = writeln!(
                out,
                "{PREFIX}_match_condition_evaluation_errors_total{{{labels}}} {count}"
            );
        }
    }
}
