//! Since when what is published is out of date: the time of the change that led to a write, for whoever measures how
//! long it takes to be in force.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use sampan_client::Key;

use crate::pods;

pub(super) const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

#[derive(Default)]
struct Seen {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

/// What each Service's sync has seen so far.
#[derive(Default)]
pub(super) struct Triggers(Mutex<HashMap<Key, Seen>>);

impl Triggers {
    /// The earliest change since the last time this was asked; `None`: what changed has no time of its own.
    pub(super) fn since<'p>(
        &self,
        key: &Key,
        service: &Service,
        selected: impl IntoIterator<Item = &'p Pod>,
    ) -> Option<Timestamp> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = all.entry(key.clone()).or_default();
        let mut earliest: Option<Timestamp> = None;
        let mut changed = |now: Option<Timestamp>, before: Option<Timestamp>| {
            if let Some(now) = now.filter(|now| before.is_none_or(|before| *now > before)) {
                earliest = Some(earliest.map_or(now, |earliest| earliest.min(now)));
            }
        };
        let mut times = HashMap::new();
        for pod in selected {
            let name = pod.name_any();
            let transition = pods::condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref());
            let Some(time) = transition.map(|time| time.0) else {
                continue;
            };
            changed(Some(time), seen.pods.get(&name).copied());
            times.insert(name, time);
        }
        let made = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        changed(made, seen.service);
        *seen = Seen {
            service: made,
            pods: times,
        };
        earliest
    }

    pub(super) fn forget(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Says so in the annotations of what is written, or takes an older time away.
pub(super) fn annotate<K: ResourceExt>(object: &mut K, since: Option<Timestamp>) {
    match since {
        Some(time) => {
            object.annotations_mut().insert(ANNOTATION.to_owned(), time.to_string());
        }
        None if object.meta().annotations.is_some() => {
            object.annotations_mut().remove(ANNOTATION);
        }
        None => {}
    }
}
