//! What controllers ask about Pods, and how they make and delete them.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Resource, ResourceExt};
use sampan_client::{EventType, Recorder, is_not_found, is_terminating_namespace, or_absent, owner};
use serde_json::json;

/// The index of Pods by the UID of their controller; Pods without one are under [`orphans`].
pub(crate) const BY_OWNER: &str = "controller";
/// The index of Pods by the node they are bound to.
pub(crate) const BY_NODE: &str = "node";

/// Keys for [`BY_OWNER`], for any kind.
pub(crate) fn owner_keys<K: Resource>(object: &K) -> Vec<String> {
    let meta = object.meta();
    match owner::controller_of(meta) {
        Some(reference) => vec![reference.uid.clone()],
        None => vec![orphans(meta.namespace.as_deref().unwrap_or_default())],
    }
}

/// The key under which [`BY_OWNER`] files the Pods of a namespace that nobody controls.
pub(crate) fn orphans(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

/// Keys for [`BY_NODE`].
pub(crate) fn node_keys(pod: &Pod) -> Vec<String> {
    let node = node_name(pod);
    if node.is_empty() {
        Vec::new()
    } else {
        vec![node.to_owned()]
    }
}

pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Succeeded or Failed.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither finished nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_terminating(pod)
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready")
        .filter(|ready| ready.status == "True")
        .and_then(|ready| ready.last_transition_time.as_ref())
        .map(|time| time.0)
}

/// When a ready Pod counts as available: `None` when it is not ready, else how long from `now` (zero: it is).
pub(crate) fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<SignedDuration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(SignedDuration::ZERO);
    }
    let since = ready_since(pod)?;
    let left = SignedDuration::from_secs(min_ready_seconds.into()) - now.duration_since(since);
    Some(left.max(SignedDuration::ZERO))
}

pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_in(pod, min_ready_seconds, now).is_some_and(|left| left.is_zero())
}

/// A new Pod from a template, controlled by `owner`, named after `name_prefix`.
pub(crate) fn from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    name_prefix: &str,
    owner: OwnerReference,
) -> Pod {
    let meta = template.metadata.as_ref();
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            generate_name: Some(format!("{name_prefix}-")),
            labels: meta.and_then(|meta| meta.labels.clone()),
            annotations: meta.and_then(|meta| meta.annotations.clone()),
            finalizers: meta.and_then(|meta| meta.finalizers.clone()),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Writes Pods for an owner and says so in events.
pub(crate) struct PodControl<'a> {
    pub(crate) client: &'a kube::Client,
    pub(crate) recorder: &'a Recorder,
}

impl PodControl<'_> {
    fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) async fn create<K: Resource<DynamicType = ()>>(&self, owner: &K, pod: &Pod) -> kube::Result<Pod> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match self.api(namespace).create(&PostParams::default(), pod).await {
            Ok(made) => {
                self.recorder.event(
                    owner,
                    EventType::Normal,
                    "SuccessfulCreate",
                    format!("Created pod: {}", made.name_any()),
                );
                Ok(made)
            }
            Err(error) => {
                // Nobody will read events in a namespace that goes away.
                if !is_terminating_namespace(&error) {
                    self.recorder.event(
                        owner,
                        EventType::Warning,
                        "FailedCreate",
                        format!("Error creating: {}", api_message(&error)),
                    );
                }
                Err(error)
            }
        }
    }

    /// Deletes exactly this Pod. Returns false when it was gone already.
    pub(crate) async fn delete<K: Resource<DynamicType = ()>>(&self, owner: &K, pod: &Pod) -> kube::Result<bool> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match self.api(namespace).delete(&pod.name_any(), &params).await {
            Ok(_) => {
                self.recorder.event(
                    owner,
                    EventType::Normal,
                    "SuccessfulDelete",
                    format!("Deleted pod: {}", pod.name_any()),
                );
                Ok(true)
            }
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => {
                self.recorder.event(
                    owner,
                    EventType::Warning,
                    "FailedDelete",
                    format!("Error deleting: {}", api_message(&error)),
                );
                Err(error)
            }
        }
    }
}

/// The message of an API error, without this client's wrapping.
pub(crate) fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A tokio delay out of a time difference; never negative.
pub(crate) fn delay(duration: SignedDuration) -> std::time::Duration {
    std::time::Duration::try_from(duration).unwrap_or_default()
}

/// Says in the status of a Pod that it is about to be disrupted, and fails it where `fail` says so.
pub(crate) async fn mark_disrupted(
    client: &kube::Client,
    pod: &Pod,
    reason: &str,
    message: &str,
    fail: bool,
    now: Time,
) -> kube::Result<()> {
    let marked = condition(pod, "DisruptionTarget")
        .is_some_and(|known| known.status == "True" && known.reason.as_deref() == Some(reason));
    if marked && (!fail || is_terminal(pod)) {
        return Ok(());
    }
    let mut status = json!({"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
        "lastTransitionTime": now, "observedGeneration": pod.metadata.generation,
    }]});
    if fail && !is_terminal(pod) {
        status["phase"] = json!("Failed");
        status["observedGeneration"] = json!(pod.metadata.generation);
    }
    patch_status(client, pod, status).await
}

/// Joins `status` into the status of exactly this Pod; conditions are joined by their type.
pub(crate) async fn patch_status(client: &kube::Client, pod: &Pod, status: serde_json::Value) -> kube::Result<()> {
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
    let written = api
        .patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
        .await;
    or_absent(written)?;
    Ok(())
}

/// Deletes exactly this Pod; at once where `force` says so, else with its own grace period.
pub(crate) async fn delete(client: &kube::Client, pod: &Pod, force: bool) -> kube::Result<()> {
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let params = DeleteParams {
        grace_period_seconds: force.then_some(0),
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    or_absent(api.delete(&pod.name_any(), &params).await)?;
    Ok(())
}
