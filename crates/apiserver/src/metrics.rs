//! What the server counts, in Prometheus' text format.
//!
//! One short lock per request; label values are interned by the fixed sets they come from.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::control_plane::ControlPlane;
use crate::request::RequestInfo;
use crate::sync::lock;

const BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

#[derive(Default)]
struct Sample {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

#[derive(Default)]
pub struct Metrics {
    samples: Mutex<BTreeMap<Labels, Sample>>,
    reading: AtomicI64,
    writing: AtomicI64,
    long_running: AtomicI64,
    /// What else of this process is told here.
    others: Mutex<Vec<Teller>>,
}

type Teller = Box<dyn Fn(&mut String) + Send + Sync>;

/// A request being measured.
pub struct Measured<'a> {
    metrics: &'a Metrics,
    labels: Labels,
    gauge: &'a AtomicI64,
    long_running: bool,
}

impl Metrics {
    /// `served`: whether the resource exists; unknown names must not become labels.
    pub fn begin(&self, info: &RequestInfo, served: bool, long_running: bool) -> Measured<'_> {
        let gauge = match (long_running, info.is_read_only()) {
            (true, _) => &self.long_running,
            (false, true) => &self.reading,
            (false, false) => &self.writing,
        };
        gauge.fetch_add(1, Ordering::Relaxed);
        let known = |text: &str| if served { text.to_owned() } else { String::new() };
        Measured {
            metrics: self,
            gauge,
            long_running,
            labels: Labels {
                verb: verb(&info.verb),
                group: known(&info.group),
                version: known(&info.version),
                resource: known(&info.resource),
                subresource: known(&info.subresource),
                scope: match (info.is_resource, info.name.is_empty(), info.namespace.is_empty()) {
                    (false, ..) => "",
                    (_, false, _) => "resource",
                    (_, _, false) => "namespace",
                    _ => "cluster",
                },
            },
        }
    }

    /// Has another part of this process tell here what it counts.
    pub fn tell_also(&self, other: Teller) {
        lock(&self.others).push(other);
    }

    /// The whole exposition.
    pub fn text(&self, plane: &ControlPlane) -> String {
        let mut out = String::new();
        let samples = lock(&self.samples);
        heading(
            &mut out,
            "apiserver_request_total",
            "counter",
            "Requests answered, by what they asked and the code.",
        );
        for (labels, sample) in samples.iter() {
            for (code, count) in &sample.codes {
                let _ok = writeln!(
                    out,
                    "apiserver_request_total{{{},code=\"{code}\"}} {count}",
                    show(labels)
                );
            }
        }
        heading(
            &mut out,
            "apiserver_request_duration_seconds",
            "histogram",
            "Time to the head of the answer.",
        );
        for (labels, sample) in samples.iter() {
            let shown = show(labels);
            for (bound, count) in BUCKETS.iter().zip(sample.buckets) {
                let _ok = writeln!(
                    out,
                    "apiserver_request_duration_seconds_bucket{{{shown},le=\"{bound}\"}} {count}"
                );
            }
            let _ok = writeln!(
                out,
                "apiserver_request_duration_seconds_bucket{{{shown},le=\"+Inf\"}} {}",
                sample.count
            );
            let _ok = writeln!(
                out,
                "apiserver_request_duration_seconds_sum{{{shown}}} {}",
                sample.seconds
            );
            let _ok = writeln!(
                out,
                "apiserver_request_duration_seconds_count{{{shown}}} {}",
                sample.count
            );
        }
        drop(samples);
        heading(
            &mut out,
            "apiserver_current_inflight_requests",
            "gauge",
            "Requests in progress.",
        );
        for (kind, gauge) in [("readOnly", &self.reading), ("mutating", &self.writing)] {
            let _ok = writeln!(
                out,
                "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {}",
                gauge.load(Ordering::Relaxed)
            );
        }
        heading(
            &mut out,
            "apiserver_storage_objects",
            "gauge",
            "Objects in the watch cache.",
        );
        let mut storages = plane.registry.cache.storages();
        storages.sort_by(|a, b| a.prefix().cmp(b.prefix()));
        for storage in &storages {
            let _ok = writeln!(
                out,
                "apiserver_storage_objects{{resource={:?}}} {}",
                storage.prefix(),
                storage.len()
            );
        }
        heading(&mut out, "apiserver_registered_watchers", "gauge", "Open watches.");
        for storage in &storages {
            let watchers = storage.watchers();
            if watchers > 0 {
                let _ok = writeln!(
                    out,
                    "apiserver_registered_watchers{{resource={:?}}} {watchers}",
                    storage.prefix()
                );
            }
        }
        heading(
            &mut out,
            "sampan_store_revision",
            "gauge",
            "The store's newest revision.",
        );
        let _ok = writeln!(out, "sampan_store_revision {}", plane.registry.cache.revision());
        plane.registry.admission.metrics().text(&mut out);
        plane.registry.cache.store().metrics(&mut out);
        if let Some(audit) = &plane.audit {
            audit.metrics().text(&mut out);
        }
        crate::flow::metrics(&plane.flow, &mut out);
        plane.authentication.text(&mut out);
        plane.authorization.text(&plane.authorizer, &mut out);
        for other in lock(&self.others).iter() {
            other(&mut out);
        }
        process(&mut out);
        out
    }
}

impl Measured<'_> {
    pub fn end(self, code: u16, took: Duration) {
        let mut samples = lock(&self.metrics.samples);
        let sample = samples.entry(self.labels.clone()).or_default();
        *sample.codes.entry(code).or_default() += 1;
        if !self.long_running {
            let seconds = took.as_secs_f64();
            sample.count += 1;
            sample.seconds += seconds;
            for (bound, count) in BUCKETS.iter().zip(&mut sample.buckets) {
                if seconds <= *bound {
                    *count += 1;
                }
            }
        }
    }
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        self.gauge.fetch_sub(1, Ordering::Relaxed);
    }
}

fn verb(verb: &str) -> &'static str {
    match verb {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" => "POST",
        "update" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "post" => "POST",
        "put" => "PUT",
        "head" => "HEAD",
        _ => "other",
    }
}

fn show(labels: &Labels) -> String {
    format!(
        "verb={:?},group={:?},version={:?},resource={:?},subresource={:?},scope={:?}",
        labels.verb, labels.group, labels.version, labels.resource, labels.subresource, labels.scope
    )
}

fn heading(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ok = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// CPU time and memory of this process, from `/proc`.
fn process(out: &mut String) {
    const TICKS: f64 = 100.0;
    if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
        && let Some((_, rest)) = stat.rsplit_once(") ")
    {
        let number = |index: usize| {
            rest.split(' ')
                .nth(index)
                .and_then(|text| text.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        heading(
            out,
            "process_cpu_seconds_total",
            "counter",
            "CPU time, user and system.",
        );
        let _ok = writeln!(out, "process_cpu_seconds_total {}", (number(11) + number(12)) / TICKS);
    }
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0);
        heading(out, "process_resident_memory_bytes", "gauge", "Resident memory.");
        let _ok = writeln!(out, "process_resident_memory_bytes {}", resident * 1024);
    }
}
