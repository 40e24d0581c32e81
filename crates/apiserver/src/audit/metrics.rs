//! What auditing counts, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::policy::Level;
use crate::sync::lock;

#[derive(Default)]
pub struct Metrics {
    events: AtomicU64,
    levels: [AtomicU64; 4],
    rejected: AtomicU64,
    errors: Mutex<BTreeMap<&'static str, Errors>>,
}

#[derive(Default)]
struct Errors {
    total: u64,
    /// Told at 1, 2, 4, 8, …: a back end that is gone must not fill the log.
    tell_at: u64,
}

impl Metrics {
    pub fn event(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }
    pub fn level(&self, level: Level) {
        self.levels[level as usize].fetch_add(1, Ordering::Relaxed);
    }
    pub fn rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// Events that did not come to where they should be.
    pub fn error(&self, plugin: &'static str, events: usize, why: &str) {
        let mut errors = lock(&self.errors);
        let entry = errors.entry(plugin).or_default();
        entry.total += events as u64;
        if entry.total >= entry.tell_at {
            entry.tell_at = entry.total * 2;
            tracing::error!(plugin, why, lost = entry.total, "audit events were lost");
        }
    }

    pub fn errors(&self, plugin: &str) -> u64 {
        lock(&self.errors).get(plugin).map_or(0, |errors| errors.total)
    }

    /// In Prometheus' text format.
    pub fn text(&self, out: &mut String) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Writing to a String cannot fail.
        let _ok = write!(
            out,
            "# HELP apiserver_audit_event_total Audit events made and sent to the back ends.\n\
             # TYPE apiserver_audit_event_total counter\n\
             apiserver_audit_event_total {}\n\
             # HELP apiserver_audit_requests_rejected_total Requests refused because their audit event could not be stored.\n\
             # TYPE apiserver_audit_requests_rejected_total counter\n\
             apiserver_audit_requests_rejected_total {}\n\
             # HELP apiserver_audit_level_total Levels of requests by the audit policy.\n\
             # TYPE apiserver_audit_level_total counter\n",
            count(&self.events),
            count(&self.rejected)
        );
        for level in Level::ALL {
            let _ok = writeln!(
                out,
                "apiserver_audit_level_total{{level=\"{}\"}} {}",
                level.name(),
                count(&self.levels[level as usize])
            );
        }
        let _ok = out.write_str(
            "# HELP apiserver_audit_error_total Audit events that were not recorded properly.\n\
             # TYPE apiserver_audit_error_total counter\n",
        );
        for (plugin, errors) in lock(&self.errors).iter() {
            let _ok = writeln!(
                out,
                "apiserver_audit_error_total{{plugin=\"{plugin}\"}} {}",
                errors.total
            );
        }
    }
}
