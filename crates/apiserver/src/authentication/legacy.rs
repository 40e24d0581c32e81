//! Tokens kept in Secrets: when they were used last.
//!
//! The day stands in a label of the Secret, as upstream has it, so that unused tokens can be found and taken out of
//! use. Authentication only notes that one was used; a task writes, at most once a day and Secret.

use std::sync::{Arc, Mutex};

use sampan_auth::authentication::LAST_USED;
use sampan_tasks::{OnExit, Tasks};
use serde_json::json;
use tokio::sync::mpsc;

use crate::control_plane::ControlPlane;
use crate::registry::Call;
use crate::registry::patch::PatchType;
use crate::request::WriteOptions;
use crate::sync::lock;
use sampan_kinds::Part;

/// Notes that wait to be written; more are lost, and come again with the next use.
const WAITING: usize = 256;

type Note = (String, String);

/// Takes notes of used tokens. Cheap to clone.
#[derive(Clone)]
pub struct Tracker {
    notes: mpsc::Sender<Note>,
    receiver: Arc<Mutex<Option<mpsc::Receiver<Note>>>>,
}

impl Default for Tracker {
    fn default() -> Self {
        let (notes, receiver) = mpsc::channel(WAITING);
        Tracker {
            notes,
            receiver: Arc::new(Mutex::new(Some(receiver))),
        }
    }
}

/// Today and tomorrow: another server's clock may be ahead.
fn days() -> [String; 2] {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let tomorrow = today.tomorrow().unwrap_or(today);
    [today, tomorrow].map(|day| day.to_string())
}

impl Tracker {
    /// The token of a Secret was used, whose label says `last`.
    pub fn used(&self, namespace: &str, secret: &str, last: Option<&str>) {
        if last.is_some_and(|last| days().iter().any(|day| day == last)) {
            return;
        }
        if self.notes.try_send((namespace.to_owned(), secret.to_owned())).is_err() {
            tracing::debug!(namespace, secret, "the use of a token is not noted this time");
        }
    }

    /// Writes what is noted, as long as the server runs.
    pub fn start(&self, plane: &Arc<ControlPlane>, tasks: &Tasks) {
        let Some(mut receiver) = lock(&self.receiver).take() else {
            return;
        };
        let plane = Arc::downgrade(plane);
        tasks.spawn_until_drain("legacy-token-tracking", OnExit::Critical, async move {
            while let Some((namespace, secret)) = receiver.recv().await {
                let Some(plane) = plane.upgrade() else { return };
                note(&plane, &namespace, &secret).await;
            }
        });
    }
}

async fn note(plane: &Arc<ControlPlane>, namespace: &str, secret: &str) {
    let Some(row) = plane.registry.row("", "secrets") else {
        return;
    };
    let last = row
        .storage
        .as_ref()
        .and_then(|storage| storage.get(&format!("{namespace}/{secret}")));
    let last = last.and_then(|entry| {
        let label = sampan_api::meta::label(&json!({"metadata": entry.metadata()}), LAST_USED)?.to_owned();
        Some(label)
    });
    let [today, tomorrow] = days();
    if last.is_some_and(|last| last == today || last == tomorrow) {
        return;
    }
    let patch = json!({"metadata": {"labels": {LAST_USED: today}}}).to_string();
    let mut call = Call::internal(row, "patch", namespace, secret);
    let written = plane
        .registry
        .patch(
            &mut call,
            Part::Main,
            PatchType::Merge,
            patch.as_bytes(),
            &WriteOptions::default(),
        )
        .await;
    if let Err(refusal) = written {
        tracing::warn!(
            namespace,
            secret,
            why = refusal.message,
            "the use of a token could not be noted"
        );
    }
}
