//! The recorder of Events: what happened to an object, for people.
//!
//! Callers never wait: an event goes into a bounded queue and one task writes. The same thing said again about the same
//! object becomes a higher `count` of one Event; many things that differ only in their message become one Event that
//! says so; an object that talks too much is cut off by a token bucket. When the queue is full events are dropped and
//! the number dropped is logged: events are a help, not a record.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use sampan_tasks::{OnExit, Tasks};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::{Clock, is_forbidden, is_not_found};

const QUEUE: usize = 4096;
const REMEMBERED: usize = 4096;
/// Token bucket of one object.
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// More messages than this for one reason within [`SIMILAR_WINDOW`] become one Event.
const SIMILAR: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);

/// `Normal` or `Warning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Records events of one component. Clones share its queue.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Note>,
    dropped: Arc<AtomicU64>,
}

struct Note {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    /// Who says it while doing what, where that is not the recorder's component.
    by: Option<(String, &'static str)>,
}

impl Recorder {
    /// A recorder that writes through `client` as `component` (and, for a node's agent, from `host`).
    pub fn new(
        client: kube::Client,
        component: &str,
        host: Option<&str>,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            client,
            component: component.to_owned(),
            host: host.map(str::to_owned),
            machine: std::fs::read_to_string("/proc/sys/kernel/hostname")
                .ok()
                .map(|name| name.trim().to_owned()),
            clock,
            series: Remembered::new(),
            similar: Remembered::new(),
            buckets: Remembered::new(),
            dropped: Arc::clone(&dropped),
        };
        tasks.spawn_until_drain(format!("events of {component}"), OnExit::Expected, writer.run(receiver));
        Recorder { sender, dropped }
    }

    /// Says `message` about `object`.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut about = object.object_ref(&());
        about.resource_version = object.meta().resource_version.clone();
        self.event_about(about, kind, reason, message);
    }

    /// Says `message` about whatever `about` refers to.
    pub fn event_about(&self, about: ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        self.send(Note {
            about,
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            by: None,
        });
    }

    /// The same in the name of another component, which did something.
    pub fn event_by(
        &self,
        (component, action): (&str, &'static str),
        about: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.send(Note {
            about,
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            by: Some((component.to_owned(), action)),
        });
    }

    fn send(&self, note: Note) {
        if self.sender.try_send(note).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

/// Which object, by kind and identity.
#[derive(Clone, PartialEq, Eq, Hash)]
struct About {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field: String,
}

impl About {
    fn of(reference: &ObjectReference) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        About {
            kind: text(&reference.kind),
            namespace: text(&reference.namespace),
            name: text(&reference.name),
            uid: text(&reference.uid),
            field: text(&reference.field_path),
        }
    }
}

type Reason = (About, EventType, String);

struct Series {
    namespace: String,
    name: String,
    count: i32,
}

struct Writer {
    client: kube::Client,
    component: String,
    host: Option<String>,
    /// The name of the machine this runs on.
    machine: Option<String>,
    clock: Arc<dyn Clock>,
    series: Remembered<(Reason, String), Series>,
    similar: Remembered<Reason, (Instant, Vec<String>)>,
    buckets: Remembered<About, (f64, Instant)>,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                tracing::warn!(
                    component = self.component,
                    dropped,
                    "events came faster than they can be written"
                );
            }
            self.write(note).await;
        }
    }

    async fn write(&mut self, mut note: Note) {
        let about = About::of(&note.about);
        let reason = (about.clone(), note.kind, note.reason.clone());
        if self.too_similar(&reason, &note.message) {
            note.message = format!("(combined from similar events): {}", note.message);
        }
        // Combined events are one series whatever they say last.
        let said = if note.message.starts_with("(combined") {
            "(combined)".to_owned()
        } else {
            note.message.clone()
        };
        if !self.allowed(&about) {
            return;
        }
        let key = (reason, said);
        if let Some(series) = self.series.get_mut(&key) {
            series.count = series.count.saturating_add(1);
            let api: Api<Event> = Api::namespaced(self.client.clone(), &series.namespace);
            let patch = json!({
                "count": series.count,
                "lastTimestamp": self.clock.time(),
                "message": note.message,
            });
            let name = series.name.clone();
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => return,
                // Events live for an hour: this one is gone, begin anew.
                Err(error) if is_not_found(&error) => {}
                Err(error) => {
                    tracing::debug!(%error, "cannot update an event");
                    return;
                }
            }
        }
        let event = self.event(&note);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let name = event.metadata.name.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => self.series.insert(
                key,
                Series {
                    namespace,
                    name,
                    count: 1,
                },
            ),
            // The namespace is going away: nobody will read it.
            Err(error) if is_forbidden(&error) || is_not_found(&error) => {
                tracing::debug!(%error, "cannot write an event");
            }
            Err(error) => {
                tracing::warn!(component = self.component, %error, "cannot write an event, it is lost");
            }
        }
    }

    fn event(&self, note: &Note) -> Event {
        let now = self.clock.time();
        let namespace = note
            .about
            .namespace
            .clone()
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or_else(|| "default".to_owned());
        let nanos = self.clock.now().as_nanosecond();
        let salt: u16 = rand::random();
        let name = format!(
            "{}.{:x}{salt:04x}",
            note.about.name.as_deref().unwrap_or("unknown"),
            nanos >> 16
        );
        let component = note.by.as_ref().map_or(&self.component, |(component, _)| component);
        let instance = match &note.by {
            Some((component, _)) => self.machine.as_ref().map(|machine| format!("{component}-{machine}")),
            None => self.host.clone(),
        };
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: note.about.clone(),
            type_: Some(note.kind.as_str().to_owned()),
            reason: Some(note.reason.clone()),
            message: Some(note.message.clone()),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource {
                component: Some(component.clone()),
                host: self.host.clone(),
            }),
            action: note.by.as_ref().map(|(_, action)| (*action).to_owned()),
            reporting_component: Some(component.clone()),
            reporting_instance: instance,
            ..Default::default()
        }
    }

    /// Whether this reason has been given with too many different messages lately.
    fn too_similar(&mut self, reason: &Reason, message: &str) -> bool {
        let now = Instant::now();
        let Some((since, messages)) = self.similar.get_mut(reason) else {
            self.similar.insert(reason.clone(), (now, vec![message.to_owned()]));
            return false;
        };
        if now.duration_since(*since) > SIMILAR_WINDOW {
            *since = now;
            messages.clear();
        }
        if messages.iter().any(|known| known == message) {
            return false;
        }
        if messages.len() >= SIMILAR {
            return true;
        }
        messages.push(message.to_owned());
        false
    }

    fn allowed(&mut self, about: &About) -> bool {
        let now = Instant::now();
        let Some((tokens, at)) = self.buckets.get_mut(about) else {
            self.buckets.insert(about.clone(), (BURST - 1.0, now));
            return true;
        };
        *tokens = (*tokens + now.duration_since(*at).as_secs_f64() * REFILL_PER_SECOND).min(BURST);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }
}

/// A map that forgets its oldest entries.
struct Remembered<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Clone + Eq + Hash, V> Remembered<K, V> {
    fn new() -> Self {
        Remembered {
            map: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.map.get_mut(key)
    }

    fn insert(&mut self, key: K, value: V) {
        if self.map.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.map.remove(&oldest);
            }
        }
    }
}
