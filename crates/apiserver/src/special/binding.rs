//! Binding a Pod to a node: the scheduler's one write.

use std::sync::Arc;

use sampan_api::status::Status;
use sampan_api::{Object, field, meta, time};
use sampan_kinds::Part;
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::registry::Call;
use crate::registry::reply::Reply;
use crate::request::WriteOptions;
use crate::{Refusal, refuse};

pub async fn bind(
    plane: &Arc<ControlPlane>,
    call: &mut Call,
    binding: &Object,
    options: &WriteOptions,
) -> Result<Reply, Refusal> {
    let name = match call.info.name.as_str() {
        "" => meta::name(binding).to_owned(),
        name => name.to_owned(),
    };
    let stated_name = meta::name(binding);
    if !stated_name.is_empty() && stated_name != name {
        return Err(refuse(Status::bad_request(
            "name in URL does not match name in Binding object",
        )));
    }
    let text = |pointer: &str| binding.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (kind, node) = (text("/target/kind"), text("/target/name").to_owned());
    let target = field::Path::new("target");
    let mut errors = field::Errors::new();
    if !kind.is_empty() && kind != "Node" {
        errors.push(field::Error::not_supported(
            &target.child("kind"),
            kind,
            &["Node", "<empty>"],
        ));
    }
    if node.is_empty() {
        errors.push(field::Error::required(&target.child("name"), ""));
    }
    if !errors.is_empty() {
        return Err(refuse(Status::invalid("", "Binding", &name, &errors)));
    }
    let stated = meta::resource_version(binding).to_owned();
    let uid = meta::uid(binding).to_owned();
    let annotations: Vec<(String, String)> = meta::annotations(binding)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let labels: Vec<(String, String)> = meta::labels(binding)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let registry = plane.registry.clone();
    let row = registry.row("", "pods").ok_or_else(|| refuse(Status::no_such_path()))?;
    let mut pods = Call::internal(row, "update", &call.info.namespace, &name);
    pods.user = call.user.clone();
    "binding".clone_into(&mut pods.info.subresource);
    registry
        .rewrite(&mut pods, Part::View("binding"), options, &mut |call, pod| {
            let conflict = |why: String| Err(call.conflict_on("pods/binding", &why));
            if !uid.is_empty() && uid != meta::uid(pod) {
                return conflict(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(pod)));
            }
            if !stated.is_empty() && stated != meta::resource_version(pod) {
                return conflict(format!(
                    "Precondition failed: ResourceVersion in precondition: {stated}, ResourceVersion in object meta: {}",
                    meta::resource_version(pod)
                ));
            }
            if meta::is_deleting(pod) {
                return conflict(format!("pod {} is being deleted, cannot be assigned to a host", meta::name(pod)));
            }
            let assigned = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
            if !assigned.is_empty() {
                return conflict(format!("pod {} is already assigned to node {assigned:?}", meta::name(pod)));
            }
            if pod.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|gates| !gates.is_empty()) {
                return conflict(format!("pod {} has non-empty .spec.schedulingGates", meta::name(pod)));
            }
            let mut pod = pod.clone();
            pod["spec"]["nodeName"] = node.as_str().into();
            for (key, value) in &annotations {
                meta::set_annotation(&mut pod, key, value);
            }
            for (key, value) in &labels {
                meta::set_label(&mut pod, key, value);
            }
            scheduled(&mut pod);
            Ok(pod)
        })
        .await?;
    Ok(Reply::Plain(
        201,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// Sets the condition `PodScheduled`.
fn scheduled(pod: &mut Object) {
    let status = meta::ensure_map(pod).entry("status").or_insert(Value::Null);
    let conditions = meta::ensure_map(status)
        .entry("conditions")
        .or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else {
        return;
    };
    let is = |condition: &Value| condition.get("type").and_then(Value::as_str) == Some("PodScheduled");
    if conditions
        .iter()
        .any(|condition| is(condition) && condition.get("status").and_then(Value::as_str) == Some("True"))
    {
        return;
    }
    conditions.retain(|condition| !is(condition));
    conditions.push(json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": time::now()}));
}
