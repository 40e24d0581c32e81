//! The books of a Job: how finished Pods get into its counters exactly once.
//!
//! 1. A finished Pod that holds the tracking finalizer is noted in the status by UID (an Indexed Job notes a succeeded
//!    index instead).
//! 2. Only then the finalizer is removed.
//! 3. Only when the finalizer is gone the UID becomes a number.
//!
//! A crash between any two steps repeats a step and counts nothing twice.
//!
//! Differs from upstream at a Job's end: when nothing runs any more, the last Pods are counted and the Job is ended in one
//! write ([`count_all`]), and their finalizers go after it. A Job that has ended is never counted again, so this needs no
//! notes; finalizers that a crash leaves are taken off as those of any Pod whose Job has ended.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::indexes;
use super::policy::{self, Verdict};
use super::view::{View, condition, is_failed, is_indexed, new_condition};
use crate::pods;

/// How many Pods are noted at a time: bounds the size of the status.
const MOST_UNCOUNTED: usize = 500;

/// Step 1: notes finished Pods. Returns those whose finalizer may go, and whether some had to be left for another time.
pub(super) fn note(
    job: &Job,
    status: &mut JobStatus,
    view: &View,
    ending: Option<&JobCondition>,
) -> (Vec<Arc<Pod>>, bool) {
    let indexed = is_indexed(&view.spec);
    let completions = view.spec.completions.unwrap_or(i32::MAX);
    let failing = ending.is_some_and(|ending| ending.type_ == "FailureTarget");
    let mut done = {
        let text = status.completed_indexes.as_deref().unwrap_or_default();
        indexes::Indexes::parse(text, completions)
    };
    let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let mut good = uncounted.succeeded.take().unwrap_or_default();
    let mut bad = uncounted.failed.take().unwrap_or_default();
    let mut release = Vec::new();
    let (mut noted, mut more) = (0, false);
    for pod in &view.pods {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if !view.tracked.contains(&uid) {
            continue;
        }
        let succeeded = pods::phase(pod) == "Succeeded";
        let failed = is_failed(&view.spec, pod);
        let index = indexes::of(pod);
        let free = job.metadata.deletion_timestamp.is_some() || ending.is_some() || succeeded;
        let held_back = index
            .and_then(|index| view.held_back.get(&index))
            .is_some_and(|held| held.metadata.uid == pod.metadata.uid);
        if !free && (!failed || held_back) {
            continue;
        }
        if noted + good.len() + bad.len() >= MOST_UNCOUNTED {
            more = true;
            break;
        }
        release.push(Arc::clone(pod));
        let counts = !indexed || index.is_some_and(|index| index < completions);
        if succeeded && !bad.contains(&uid) {
            if indexed {
                if let Some(index) = index.filter(|_| counts) {
                    noted += usize::from(done.insert(index));
                }
            } else if !good.contains(&uid) {
                good.push(uid);
            }
        } else if (failed || failing) && counts && !bad.contains(&uid) && policy::judge(job, pod) != Verdict::Ignore {
            bad.push(uid);
        }
    }
    uncounted.succeeded = Some(good).filter(|uids| !uids.is_empty());
    uncounted.failed = Some(bad).filter(|uids| !uids.is_empty());
    status.uncounted_terminated_pods = Some(uncounted);
    if indexed {
        status.succeeded = Some(done.len()).filter(|count| *count > 0);
        status.completed_indexes = Some(done.to_string()).filter(|text| !text.is_empty());
        if view.spec.backoff_limit_per_index.is_some() {
            status.failed_indexes = Some(view.failed_indexes.to_string());
        }
    }
    (release, more)
}

/// Step 3: what is noted and no longer holds the finalizer becomes a number.
pub(super) fn count(status: &mut JobStatus, tracked: &HashSet<String>) {
    let Some(uncounted) = &mut status.uncounted_terminated_pods else {
        return;
    };
    let settle = |uids: &mut Option<Vec<String>>, counter: &mut Option<i32>| {
        let Some(list) = uids else {
            return;
        };
        let before = list.len();
        list.retain(|uid| tracked.contains(uid));
        let settled = i32::try_from(before - list.len()).unwrap_or(0);
        if settled > 0 {
            *counter = Some(counter.unwrap_or(0) + settled);
        }
        if list.is_empty() {
            *uids = None;
        }
    };
    settle(&mut uncounted.succeeded, &mut status.succeeded);
    settle(&mut uncounted.failed, &mut status.failed);
}

/// Counts everything that is noted, whatever still holds the finalizer: only with the write that ends the Job.
pub(super) fn count_all(status: &mut JobStatus) {
    count(status, &HashSet::new());
}

/// Adds the interim condition of an ending Job.
pub(super) fn announce(status: &mut JobStatus, ending: &JobCondition) {
    if condition(status, &ending.type_).is_none() {
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|known| known.type_ != ending.type_);
        conditions.push(ending.clone());
    }
}

/// Ends the Job if nothing is left to count and nothing runs. Returns the final condition if so.
pub(super) fn finish(status: &mut JobStatus, ending: &JobCondition, now: Timestamp) -> Option<JobCondition> {
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    if uncounted.succeeded.is_some() || uncounted.failed.is_some() || status.terminating.unwrap_or(0) > 0 {
        return None;
    }
    let kind = if ending.type_ == "SuccessCriteriaMet" {
        "Complete"
    } else {
        "Failed"
    };
    let reason = ending.reason.as_deref().unwrap_or_default();
    let message = ending.message.as_deref().unwrap_or_default();
    let last = new_condition(kind, reason, message, now);
    if kind == "Complete" {
        // Not before it started, even if the clock was set back meanwhile: the API refuses that.
        status.completion_time = last.last_transition_time.clone().max(status.start_time.clone());
    }
    status.conditions.get_or_insert_default().push(last.clone());
    Some(last)
}

/// Sets or clears the condition Suspended. Returns whether that changed anything worth telling.
pub(super) fn note_suspension(status: &mut JobStatus, suspended: bool, now: Timestamp) -> bool {
    let (truth, reason, message) = if suspended {
        ("True", "JobSuspended", "Job suspended")
    } else {
        ("False", "JobResumed", "Job resumed")
    };
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|known| known.type_ == "Suspended") {
        Some(known) if known.status == truth => return false,
        Some(known) => {
            let fresh = new_condition("Suspended", reason, message, now);
            *known = JobCondition {
                status: truth.into(),
                ..fresh
            };
        }
        None if !suspended => return false,
        None => conditions.push(new_condition("Suspended", reason, message, now)),
    }
    // The deadline counts from the resumption.
    let now = Timestamp::from_second(now.as_second()).ok().map(Time);
    status.start_time = now.filter(|_| !suspended);
    true
}
