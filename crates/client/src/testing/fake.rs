//! The state of the fake API and its verbs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::patch;
use super::resources::{ROWS, Row};

/// One write that reached the fake.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    pub user: String,
    /// `create`, `update`, `patch`, `delete`
    pub verb: &'static str,
    /// `pods`, `pods/status`
    pub resource: String,
    pub namespace: String,
    pub name: String,
}

pub(super) struct Target {
    pub(super) row: &'static Row,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
}

#[derive(Default)]
pub(super) struct Query {
    pub(super) labels: String,
    pub(super) fields: String,
    pub(super) version: String,
    pub(super) dry_run: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) code: u16,
    reason: String,
    message: String,
}

impl Failure {
    pub(super) fn new(code: u16, reason: &str, message: &str) -> Self {
        Failure {
            code,
            reason: reason.into(),
            message: message.into(),
        }
    }

    pub(super) fn status(&self) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code})
    }
}

type Outcome = Result<Value, Failure>;
/// plural, namespace, name
type ObjectId = (&'static str, String, String);

struct Change {
    version: u64,
    id: ObjectId,
    old: Option<Value>,
    new: Option<Value>,
}

struct Watcher {
    plural: &'static str,
    namespace: Option<String>,
    query: Query,
    sender: mpsc::UnboundedSender<String>,
}

#[derive(Default)]
struct State {
    version: u64,
    names: u64,
    compacted: u64,
    objects: BTreeMap<ObjectId, Value>,
    log: Vec<Change>,
    watchers: Vec<Watcher>,
    actions: Vec<Action>,
    /// verb, resource, what to answer
    failures: Vec<(String, String, Failure)>,
    /// How many more writes are let through; all if absent.
    budget: Option<usize>,
}

/// See [`super`]. Clones share the state.
#[derive(Clone, Default)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
}

impl FakeApi {
    pub fn new() -> Self {
        Self::default()
    }

    /// A client that acts as `user`.
    pub fn client(&self, user: &str) -> kube::Client {
        let (api, user) = (self.clone(), user.to_owned());
        crate::connect(tower::service_fn(move |request| {
            let (api, user) = (api.clone(), user.clone());
            async move { Ok::<_, std::convert::Infallible>(super::http::handle(api, user, request).await) }
        }))
    }

    /// Answers one request of `user`: for tests that answer others themselves.
    pub async fn answer(&self, user: &str, request: http::Request<kube::client::Body>) -> super::http::Reply {
        super::http::handle(self.clone(), user.to_owned(), request).await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writes so far.
    pub fn actions(&self) -> Vec<Action> {
        self.lock().actions.clone()
    }

    pub fn clear_actions(&self) {
        self.lock().actions.clear();
    }

    /// Makes the next `verb` on `resource` (`pods`, `pods/status`) fail.
    pub fn fail_next(&self, verb: &str, resource: &str, code: u16, reason: &str, message: &str) {
        let failure = Failure::new(code, reason, message);
        self.lock().failures.push((verb.into(), resource.into(), failure));
    }

    /// Lets `count` more writes through, events aside, and refuses those after them; `None` lets all through. A component
    /// stopped at any of its writes is tested this way.
    pub fn allow_writes(&self, count: Option<usize>) {
        self.lock().budget = count;
    }

    /// Whether the writes allowed by [`FakeApi::allow_writes`] are used up.
    pub fn is_refusing(&self) -> bool {
        self.lock().budget == Some(0)
    }

    /// Ends all watches.
    pub fn disconnect(&self) {
        self.lock().watchers.clear();
    }

    /// Forgets history: watches from an older version get 410.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.compacted = state.version;
        state.log.clear();
    }

    /// Stores an object as if somebody had created it (status included). Returns it as stored.
    /// # Panics
    /// When the object cannot be created: this is for tests.
    pub fn create<K: kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned>(&self, object: &K) -> K {
        let mut value = serde_json::to_value(object).expect("a serializable object");
        let status = value.get("status").cloned();
        if value["metadata"]["creationTimestamp"].is_null()
            && let Some(metadata) = value["metadata"].as_object_mut()
        {
            metadata.remove("creationTimestamp");
        }
        let target = Target {
            row: row::<K>(),
            namespace: object.meta().namespace.clone(),
            name: None,
            subresource: None,
        };
        let made = self
            .lock()
            .create(&target, value, status, false)
            .unwrap_or_else(|failure| panic!("cannot create: {}", failure.message));
        serde_json::from_value(made).expect("the same kind")
    }

    /// The object as stored now.
    pub fn get<K: kube::Resource<DynamicType = ()> + DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<K> {
        let id = (row::<K>().2, namespace.to_owned(), name.to_owned());
        let value = self.lock().objects.get(&id).cloned()?;
        serde_json::from_value(value).ok()
    }

    /// All objects of a kind, in every namespace.
    pub fn all<K: kube::Resource<DynamicType = ()> + DeserializeOwned>(&self) -> Vec<K> {
        let plural = row::<K>().2;
        self.lock()
            .objects
            .iter()
            .filter(|(id, _)| id.0 == plural)
            .filter_map(|(_, value)| serde_json::from_value(value.clone()).ok())
            .collect()
    }

    /// Changes an object behind everybody's back: any part, status included.
    /// # Panics
    /// When there is no such object.
    pub fn change<K: kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut K),
    ) -> K {
        let id = (row::<K>().2, namespace.to_owned(), name.to_owned());
        let mut state = self.lock();
        let old = state
            .objects
            .get(&id)
            .unwrap_or_else(|| panic!("no {} {namespace}/{name}", id.0))
            .clone();
        let mut object: K = serde_json::from_value(old.clone()).expect("the kind asked for");
        change(&mut object);
        let mut new = serde_json::to_value(&object).expect("a serializable object");
        if new.get("spec") != old.get("spec") {
            bump_generation(&mut new);
        }
        let stored = state.store(id, new);
        serde_json::from_value(stored).expect("the same kind")
    }

    /// Puts any tree where an object of kind `K` should be, however wrong it is.
    pub fn put_raw<K: kube::Resource<DynamicType = ()>>(&self, namespace: &str, name: &str, object: Value) {
        let id = (row::<K>().2, namespace.to_owned(), name.to_owned());
        self.lock().store(id, object);
    }

    /// Removes an object at once, finalizers or not.
    pub fn remove<K: kube::Resource<DynamicType = ()>>(&self, namespace: &str, name: &str) {
        let id = (row::<K>().2, namespace.to_owned(), name.to_owned());
        self.lock().drop_object(&id);
    }

    pub(super) fn watch(&self, target: &Target, query: &Query) -> Result<mpsc::UnboundedReceiver<String>, Failure> {
        let mut state = self.lock();
        let from: u64 = query.version.parse().unwrap_or(state.version);
        if from < state.compacted {
            return Err(Failure::new(410, "Expired", "too old resource version; list again"));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let watcher = Watcher {
            plural: target.row.2,
            namespace: target.namespace.clone(),
            query: Query {
                labels: query.labels.clone(),
                fields: query.fields.clone(),
                ..Query::default()
            },
            sender,
        };
        for change in state.log.iter().filter(|change| change.version > from) {
            watcher.tell(change);
        }
        state.watchers.push(watcher);
        Ok(receiver)
    }

    pub(super) fn read(&self, target: &Target) -> Outcome {
        self.lock().existing(target).cloned()
    }

    pub(super) fn list(&self, target: &Target, query: &Query) -> Outcome {
        let state = self.lock();
        let items: Vec<&Value> = state.select(target, query).map(|(_, value)| value).collect();
        let api_version = api_version(target.row);
        Ok(json!({
            "kind": format!("{}List", target.row.3), "apiVersion": api_version,
            "metadata": {"resourceVersion": state.version.to_string()}, "items": items,
        }))
    }

    pub(super) fn create_in(&self, user: &str, target: &Target, input: Value, query: &Query) -> Outcome {
        let mut state = self.lock();
        let name = input["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        state.act(user, "create", target, &name)?;
        if target.subresource.as_deref() == Some("binding") {
            let id = target.id();
            let mut pod = state.existing(target)?.clone();
            pod["spec"]["nodeName"] = input["target"]["name"].clone();
            return Ok(state.store(id, pod));
        }
        state.create(target, input, None, query.dry_run)
    }

    pub(super) fn update(&self, user: &str, target: &Target, input: Value) -> Outcome {
        let mut state = self.lock();
        state.act(user, "update", target, "")?;
        state.write(target, input)
    }

    pub(super) fn patch(&self, user: &str, target: &Target, content: &str, input: &Value) -> Outcome {
        let mut state = self.lock();
        state.act(user, "patch", target, "")?;
        let mut object = state.existing(target)?.clone();
        match content {
            "application/merge-patch+json" => patch::merge(&mut object, input),
            "application/strategic-merge-patch+json" => patch::strategic(&mut object, input),
            "application/json-patch+json" => {
                let bad = |error: String| Failure::new(422, "Invalid", &error);
                let operations: json_patch::Patch =
                    serde_json::from_value(input.clone()).map_err(|error| bad(error.to_string()))?;
                json_patch::patch(&mut object, &operations).map_err(|error| bad(error.to_string()))?;
            }
            other => {
                return Err(Failure::new(
                    415,
                    "UnsupportedMediaType",
                    &format!("the fake does not know {other}"),
                ));
            }
        }
        state.write(target, object)
    }

    pub(super) fn delete(&self, user: &str, target: &Target, options: &Value) -> Outcome {
        let mut state = self.lock();
        state.act(user, "delete", target, "")?;
        state.delete(target, options)
    }

    pub(super) fn delete_collection(&self, user: &str, target: &Target, query: &Query, options: &Value) -> Outcome {
        let mut state = self.lock();
        state.act(user, "deletecollection", target, "")?;
        let ids: Vec<ObjectId> = state.select(target, query).map(|(id, _)| id.clone()).collect();
        for (_, namespace, name) in ids {
            let one = Target {
                row: target.row,
                namespace: Some(namespace),
                name: Some(name),
                subresource: None,
            };
            state.delete(&one, options)?;
        }
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
    }
}

impl Target {
    fn id(&self) -> ObjectId {
        (
            self.row.2,
            self.namespace.clone().unwrap_or_default(),
            self.name.clone().unwrap_or_default(),
        )
    }
}

impl State {
    fn act(&mut self, user: &str, verb: &'static str, target: &Target, name: &str) -> Result<(), Failure> {
        let resource = match &target.subresource {
            Some(subresource) => format!("{}/{subresource}", target.row.2),
            None => target.row.2.to_owned(),
        };
        let counts = target.row.2 != "events";
        match &mut self.budget {
            Some(0) if counts => return Err(Failure::new(503, "ServiceUnavailable", "no more writes for now")),
            Some(left) if counts => *left -= 1,
            _ => {}
        }
        let planned = self
            .failures
            .iter()
            .position(|(on, what, _)| on == verb && *what == resource);
        self.actions.push(Action {
            user: user.into(),
            verb,
            resource,
            namespace: target.namespace.clone().unwrap_or_default(),
            name: target.name.clone().unwrap_or_else(|| name.to_owned()),
        });
        match planned {
            Some(place) => Err(self.failures.remove(place).2),
            None => Ok(()),
        }
    }

    fn existing(&self, target: &Target) -> Result<&Value, Failure> {
        let id = target.id();
        self.objects.get(&id).ok_or_else(|| {
            let text = format!("{} \"{}\" not found", id.0, id.2);
            Failure::new(404, "NotFound", &text)
        })
    }

    fn select<'a>(&'a self, target: &'a Target, query: &'a Query) -> impl Iterator<Item = (&'a ObjectId, &'a Value)> {
        self.objects.iter().filter(|(id, value)| {
            id.0 == target.row.2
                && target.namespace.as_ref().is_none_or(|wanted| *wanted == id.1)
                && query.matches(value)
        })
    }

    fn create(&mut self, target: &Target, mut object: Value, status: Option<Value>, dry_run: bool) -> Outcome {
        let namespace = target.namespace.clone().unwrap_or_default();
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        self.names += 1;
        let number = self.names;
        let metadata = &mut object["metadata"];
        if metadata["name"].as_str().unwrap_or_default().is_empty() {
            let prefix = metadata["generateName"].as_str().unwrap_or_default();
            if prefix.is_empty() {
                return Err(Failure::new(422, "Invalid", "name or generateName is required"));
            }
            metadata["name"] = json!(format!("{prefix}{number:05x}"));
        }
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        let id = (target.row.2, namespace.clone(), name.clone());
        if self.objects.contains_key(&id) {
            let text = format!("{} \"{name}\" already exists", target.row.2);
            return Err(Failure::new(409, "AlreadyExists", &text));
        }
        let terminating = target.row.4
            && self
                .objects
                .get(&("namespaces", String::new(), namespace.clone()))
                .is_some_and(|namespace| !namespace["metadata"]["deletionTimestamp"].is_null());
        if terminating {
            return Err(Failure::new(
                403,
                "Forbidden",
                "unable to create new content in a namespace that is being terminated",
            ));
        }
        if target.row.4 {
            metadata["namespace"] = json!(namespace);
        }
        if metadata["uid"].as_str().unwrap_or_default().is_empty() {
            metadata["uid"] = json!(format!("uid-{number}"));
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!("2027-01-15T08:00:00Z");
        }
        metadata["generation"] = json!(1);
        object["apiVersion"] = json!(api_version(target.row));
        object["kind"] = json!(target.row.3);
        if target.row.2 == "namespaces" {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
        }
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
            if let Some(status) = status {
                map.insert("status".into(), status);
            }
        }
        if dry_run {
            return Ok(object);
        }
        Ok(self.store(id, object))
    }

    /// An update of the whole or of a subresource.
    fn write(&mut self, target: &Target, mut new: Value) -> Outcome {
        let old = self.existing(target)?.clone();
        let id = target.id();
        let asked = new["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !asked.is_empty() && old["metadata"]["resourceVersion"].as_str() != Some(asked) {
            let text = format!(
                "Operation cannot be fulfilled on {} \"{}\": the object has been modified; please apply your changes to the latest version and try again",
                id.0, id.2
            );
            return Err(Failure::new(409, "Conflict", &text));
        }
        let asked = new["metadata"]["uid"].as_str().unwrap_or_default();
        if !asked.is_empty() && old["metadata"]["uid"].as_str() != Some(asked) {
            return Err(Failure::new(
                409,
                "Conflict",
                "Precondition failed: UID in precondition",
            ));
        }
        for field in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "namespace",
            "name",
        ] {
            if let Some(value) = old["metadata"].get(field) {
                new["metadata"][field] = value.clone();
            } else if let Some(metadata) = new["metadata"].as_object_mut() {
                metadata.remove(field);
            }
        }
        let take = |from: &Value, to: &mut Value, field: &str| match from.get(field) {
            Some(value) => to[field] = value.clone(),
            None => {
                if let Some(map) = to.as_object_mut() {
                    map.remove(field);
                }
            }
        };
        match target.subresource.as_deref() {
            Some("status") => {
                let mut merged = old.clone();
                take(&new, &mut merged, "status");
                take(&new, &mut merged, "metadata");
                new = merged;
            }
            Some("scale") => {
                let mut merged = old.clone();
                merged["spec"]["replicas"] = new["spec"]["replicas"].clone();
                new = merged;
            }
            Some("finalize") => {}
            _ => take(&old, &mut new, "status"),
        }
        if new.get("spec") != old.get("spec") {
            bump_generation(&mut new);
        }
        new["apiVersion"] = old["apiVersion"].clone();
        new["kind"] = old["kind"].clone();
        let mut same = new.clone();
        same["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if same == old {
            return Ok(old);
        }
        if finished(&new) {
            self.drop_object(&id);
            return Ok(new);
        }
        Ok(self.store(id, new))
    }

    fn delete(&mut self, target: &Target, options: &Value) -> Outcome {
        let mut object = self.existing(target)?.clone();
        let id = target.id();
        for (precondition, field) in [("uid", "uid"), ("resourceVersion", "resourceVersion")] {
            let wanted = &options["preconditions"][precondition];
            if !wanted.is_null() && *wanted != object["metadata"][field] {
                return Err(Failure::new(409, "Conflict", "Precondition failed"));
            }
        }
        let mut finalizers: Vec<Value> = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let policy = options["propagationPolicy"].as_str().unwrap_or_default();
        finalizers.retain(|name| policy.is_empty() || (name != "orphan" && name != "foregroundDeletion"));
        match policy {
            "Orphan" => finalizers.push(json!("orphan")),
            "Foreground" => finalizers.push(json!("foregroundDeletion")),
            _ => {}
        }
        let grace = options["gracePeriodSeconds"].as_i64();
        let running = id.0 == "pods"
            && grace != Some(0)
            && object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty())
            && !matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if !finalizers.is_empty() || object["metadata"].get("finalizers").is_some() {
            object["metadata"]["finalizers"] = json!(finalizers);
        }
        let namespace_content = object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|finalizers| !finalizers.is_empty());
        if finalizers.is_empty() && !running && !namespace_content {
            self.drop_object(&id);
            return Ok(object);
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!("2027-01-15T08:00:30Z");
            object["metadata"]["deletionGracePeriodSeconds"] = json!(if running { grace.unwrap_or(30) } else { 0 });
            bump_generation(&mut object);
        }
        if id.0 == "namespaces" {
            object["status"]["phase"] = json!("Terminating");
        }
        Ok(self.store(id, object))
    }

    fn store(&mut self, id: ObjectId, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let old = self.objects.insert(id.clone(), object.clone());
        self.record(Change {
            version: self.version,
            id,
            old,
            new: Some(object.clone()),
        });
        object
    }

    fn drop_object(&mut self, id: &ObjectId) {
        let Some(mut old) = self.objects.remove(id) else {
            return;
        };
        self.version += 1;
        old["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.record(Change {
            version: self.version,
            id: id.clone(),
            old: Some(old),
            new: None,
        });
    }

    fn record(&mut self, change: Change) {
        self.watchers.retain(|watcher| !watcher.sender.is_closed());
        for watcher in &self.watchers {
            watcher.tell(&change);
        }
        self.log.push(change);
    }
}

impl Watcher {
    fn tell(&self, change: &Change) {
        let ours = change.id.0 == self.plural && self.namespace.as_ref().is_none_or(|wanted| *wanted == change.id.1);
        if !ours {
            return;
        }
        let was = change.old.as_ref().filter(|old| self.query.matches(old));
        let is = change.new.as_ref().filter(|new| self.query.matches(new));
        let (kind, object) = match (was, is) {
            (None, Some(new)) => ("ADDED", new),
            (Some(_), Some(new)) => ("MODIFIED", new),
            (Some(old), None) => ("DELETED", change.new.as_ref().unwrap_or(old)),
            (None, None) => return,
        };
        let line = json!({"type": kind, "object": object}).to_string() + "\n";
        // A watcher that is gone is dropped at the next change.
        let _gone = self.sender.send(line);
    }
}

impl Query {
    fn matches(&self, object: &Value) -> bool {
        let fields = self.fields.split(',').filter(|term| !term.is_empty());
        fields.into_iter().all(|term| {
            let (path, wanted, equal) = match term.split_once("!=") {
                Some((path, wanted)) => (path, wanted, false),
                None => match term.split_once('=') {
                    Some((path, wanted)) => (path, wanted.trim_start_matches('='), true),
                    None => return false,
                },
            };
            let pointer = format!("/{}", path.replace('.', "/"));
            let have = match object.pointer(&pointer) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            };
            (have == wanted) == equal
        }) && self.labels_match(object)
    }

    fn labels_match(&self, object: &Value) -> bool {
        if self.labels.is_empty() {
            return true;
        }
        let labels: BTreeMap<String, String> =
            serde_json::from_value(object["metadata"]["labels"].clone()).unwrap_or_default();
        let terms = self.labels.split(',');
        terms.into_iter().all(|term| {
            if let Some((key, value)) = term.split_once("!=") {
                return labels.get(key).map(String::as_str) != Some(value);
            }
            if let Some((key, value)) = term.split_once('=') {
                let selector = LabelSelector {
                    match_labels: Some([(key.into(), value.trim_start_matches('=').into())].into()),
                    ..Default::default()
                };
                return Selector::try_from(selector).is_ok_and(|s| s.matches(&labels));
            }
            match term.strip_prefix('!') {
                Some(key) => !labels.contains_key(key),
                None => labels.contains_key(term),
            }
        })
    }
}

/// Whether a deletion has nothing left to wait for.
fn finished(object: &Value) -> bool {
    let empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let metadata = &object["metadata"];
    !metadata["deletionTimestamp"].is_null()
        && empty(&metadata["finalizers"])
        && (object["kind"] != "Namespace" || empty(&object["spec"]["finalizers"]))
        && (object["kind"] != "Pod" || metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0)
}

fn bump_generation(object: &mut Value) {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
    object["metadata"]["generation"] = json!(generation + 1);
}

fn api_version(row: &Row) -> String {
    if row.0.is_empty() {
        row.1.to_owned()
    } else {
        format!("{}/{}", row.0, row.1)
    }
}

fn row<K: kube::Resource<DynamicType = ()>>() -> &'static Row {
    let (group, plural) = (K::group(&()), K::plural(&()));
    ROWS.iter()
        .find(|row| row.0 == group && row.2 == plural)
        .unwrap_or_else(|| panic!("the fake does not serve {plural}.{group}"))
}
