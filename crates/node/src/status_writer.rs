//! Writes Pod statuses: only what changed, merged with others' conditions, latest wins; and removes a deleted Pod
//! from the API once its last status is there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use sampan_client::{is_conflict, is_not_found};
use serde_json::{Map, Value, json};

use crate::pod::{self, status::OWNED_CONDITIONS};

/// The fields of a Pod's status that are the node's.
const OWNED_FIELDS: [&str; 11] = [
    "phase",
    "reason",
    "message",
    "hostIP",
    "podIP",
    "startTime",
    "qosClass",
    "observedGeneration",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
];

/// The strategic merge patch that leads from `old` to `new`, or `None` when there is nothing to say.
pub fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (old, new) = (as_map(old), as_map(new));
    let mut status = Map::new();
    for field in OWNED_FIELDS {
        let (before, after) = (old.get(field), new.get(field));
        if before != after {
            status.insert(field.to_owned(), after.cloned().unwrap_or(Value::Null));
        }
    }
    for (field, key) in [("podIPs", "ip"), ("hostIPs", "ip")] {
        let changes = keyed_changes(old.get(field), new.get(field), key, |_| true);
        if !changes.is_empty() {
            status.insert(field.to_owned(), Value::Array(changes));
        }
    }
    let ours = |kind: &str| OWNED_CONDITIONS.contains(&kind) || kind == "DisruptionTarget";
    let changes = keyed_changes(old.get("conditions"), new.get("conditions"), "type", ours);
    if !changes.is_empty() {
        status.insert("conditions".into(), Value::Array(changes));
    }
    (!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status}))
}

fn as_map(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// `after`, with a null for each field, at any depth of objects, that only `before` has: what a patch must say for
/// them to go. Lists are said as they are.
fn with_removals(before: &Value, after: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (before, after) else {
        return after.clone();
    };
    let gone = before.keys().filter(|field| !after.contains_key(*field));
    let gone = gone.map(|field| (field.clone(), Value::Null));
    let said = after.iter().map(|(field, value)| {
        let value = before
            .get(field)
            .map_or_else(|| value.clone(), |old| with_removals(old, value));
        (field.clone(), value)
    });
    Value::Object(said.chain(gone).collect())
}

/// Entries of a list keyed by `key`: those that are new or differ, and deletions of those that are gone.
fn keyed_changes(old: Option<&Value>, new: Option<&Value>, key: &str, ours: impl Fn(&str) -> bool) -> Vec<Value> {
    let list = |value: Option<&Value>| {
        let list = value.and_then(Value::as_array).cloned().unwrap_or_default();
        list.into_iter()
            .filter_map(|item| Some((item.get(key)?.as_str()?.to_owned(), item)))
            .filter(|(name, _)| ours(name))
            .collect::<Vec<_>>()
    };
    let (old, new) = (list(old), list(new));
    let mut out = Vec::new();
    for (name, item) in &new {
        match old.iter().find(|(other, _)| other == name) {
            Some((_, before)) if before == item => {}
            Some((_, before)) => out.push(with_removals(before, item)),
            None => out.push(item.clone()),
        }
    }
    for (name, _) in &old {
        if !new.iter().any(|(other, _)| other == name) {
            out.push(json!({"$patch": "delete", key: name}));
        }
    }
    out
}

/// What was last written of a Pod, and the version it got.
struct Written {
    version: u64,
    status: PodStatus,
}

/// The writer. One per node; called for one Pod at a time.
pub struct StatusWriter {
    client: kube::Client,
    written: Mutex<HashMap<String, Written>>,
}

fn version(pod: &Pod) -> u64 {
    let text = pod.metadata.resource_version.as_deref();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl StatusWriter {
    pub fn new(client: kube::Client) -> Self {
        Self {
            client,
            written: Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Written>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a Pod that is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Brings the API's status of `pod` to `status`; with `finished`, also ends a deleted Pod.
    pub async fn write(&self, pod: &Arc<Pod>, status: &PodStatus, finished: bool) -> Result<(), kube::Error> {
        let uid = pod::uid(pod);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), pod::namespace(pod));
        let known = self
            .lock()
            .get(uid)
            .filter(|written| written.version > version(pod))
            .map(|written| written.status.clone());
        let old = known.unwrap_or_else(|| pod.status.clone().unwrap_or_default());
        if let Some(patch) = patch(uid, &old, status) {
            let params = PatchParams::default();
            match api
                .patch_status(pod::name(pod), &params, &Patch::Strategic(patch))
                .await
            {
                Ok(now) => {
                    let written = Written {
                        version: version(&now),
                        status: now.status.unwrap_or_default(),
                    };
                    self.lock().insert(uid.to_owned(), written);
                }
                // Another Pod has the name now, or nobody has: this one's status matters no more.
                Err(error) if is_not_found(&error) || is_conflict(&error) => {
                    tracing::debug!(pod = pod::display(pod), %error, "a status was not wanted");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        if finished && pod::is_deleting(pod) {
            self.remove(&api, pod).await?;
        }
        Ok(())
    }

    async fn remove(&self, api: &Api<Pod>, pod: &Pod) -> Result<(), kube::Error> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(pod::name(pod), &params).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_changes_are_written() {
        let old = status(
            json!({"phase": "Pending", "podIPs": [{"ip": "10.0.0.1"}], "reason": "x",
            "nominatedNodeName": "theirs",
            "conditions": [
                {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "wait"},
                {"type": "Initialized", "status": "True"},
                {"type": "other/one", "status": "True"}]}),
        );
        assert_eq!(patch("u", &old, &old), None);
        let new = status(json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.2"}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}]}));
        let got = patch("u", &old, &new).unwrap();
        assert_eq!(
            got,
            json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "reason": null,
                "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}]
            }})
        );
    }

    #[test]
    fn removals_are_said() {
        let before = json!({"capacity": {"cpu": "2", "npu": "8"}, "images": [{"sizeBytes": 1}], "phase": "x"});
        let after = json!({"capacity": {"cpu": "2"}, "images": []});
        assert_eq!(
            with_removals(&before, &after),
            json!({"capacity": {"cpu": "2", "npu": null}, "images": [], "phase": null})
        );
    }
}
