//! One committed change of one object, shared by the ring and every watcher.
//!
//! Forms other than plain JSON (Table rows, metadata only, protobuf) are made by the first watcher that
//! needs them and kept with the change.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use sampan_store::Revision;

use super::{ChangeType, Entry};
use crate::sync::lock;

/// A change as the watch cache hands it out.
pub struct Change {
    pub revision: Revision,
    pub kind: ChangeType,
    /// The object after the change; for a deletion the last state, carrying the deletion's revision.
    pub entry: Arc<Entry>,
    /// The object before the change; absent for a creation.
    pub previous: Option<Arc<Entry>>,
    pub(super) at: Instant,
    forms: Mutex<Vec<(FormKey, Bytes)>>,
}

/// Names one encoded form of a change: what the watcher sees it as, and a number that stands for the format.
pub type FormKey = (ChangeType, u32);

impl Change {
    pub fn new(revision: Revision, kind: ChangeType, entry: Arc<Entry>, previous: Option<Arc<Entry>>) -> Self {
        Change {
            revision,
            kind,
            entry,
            previous,
            at: Instant::now(),
            forms: Mutex::default(),
        }
    }

    /// The change in the form `key`, made at most once.
    pub fn form(&self, key: FormKey, make: impl FnOnce() -> Bytes) -> Bytes {
        let mut forms = lock(&self.forms);
        if let Some((_, bytes)) = forms.iter().find(|(known, _)| *known == key) {
            return bytes.clone();
        }
        let bytes = make();
        forms.push((key, bytes.clone()));
        bytes
    }

    /// A rough measure of the memory this change keeps alive.
    pub(super) fn weight(&self) -> usize {
        self.entry.size() + 256
    }
}
