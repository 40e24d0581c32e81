//! Eviction: a delete that asks the Pod's disruption budget first.

use std::sync::Arc;

use sampan_api::selector::LabelSelector;
use sampan_api::status::{Cause, Status};
use sampan_api::{Object, meta, time};
use sampan_kinds::Part;
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::registry::reply::Reply;
use crate::registry::{Call, Registry};
use crate::request::{DeleteOptions, Query, WriteOptions};
use crate::{Refusal, refuse};

/// Pods a budget remembers as being disrupted, at most.
const REMEMBERED: usize = 2000;
const DISRUPTED: &str = "DisruptionTarget";

pub async fn evict(
    plane: &Arc<ControlPlane>,
    call: &mut Call,
    eviction: &Object,
    options: &WriteOptions,
) -> Result<Reply, Refusal> {
    let name = meta::name(eviction);
    if !name.is_empty() && name != call.info.name {
        return Err(refuse(Status::bad_request(
            "name in URL does not match name in Eviction object",
        )));
    }
    let mut delete = DeleteOptions::parse(&Query::default(), eviction.get("deleteOptions"))?;
    delete.dry_run |= options.dry_run;
    let registry = plane.registry.clone();
    let row = registry.row("", "pods").ok_or_else(|| refuse(Status::no_such_path()))?;
    let storage = call.storage()?;
    let pod = registry
        .current(&storage, &call.path())
        .await
        .ok_or_else(|| call.not_found())?
        .object();
    if needs_budget(&pod) {
        spend(&registry, call, &pod, delete.dry_run).await?;
    }
    // With a precondition on the version the Pod must not change before it is deleted.
    if !delete.dry_run && delete.resource_version.is_none() {
        announce(&registry, call, row.clone(), &pod).await?;
    }
    let mut pods = Call::internal(row, "delete", &call.info.namespace, &call.info.name);
    pods.user = call.user.clone();
    "eviction".clone_into(&mut pods.info.subresource);
    registry.delete(&mut pods, &delete).await?;
    Ok(Reply::Plain(
        201,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// Says in the Pod's status that it is about to be disrupted, so that whoever sees it fail knows why.
async fn announce(registry: &Registry, call: &Call, row: Arc<crate::rows::Row>, pod: &Object) -> Result<(), Refusal> {
    let mut update = Call::internal(row, "update", &call.info.namespace, &call.info.name);
    update.user = call.user.clone();
    let uid = meta::uid(pod).to_owned();
    registry
        .rewrite(
            &mut update,
            Part::View("status"),
            &WriteOptions::default(),
            &mut |_, pod| {
                let mut pod = pod.clone();
                if meta::uid(&pod) == uid {
                    mark(&mut pod);
                }
                Ok(pod)
            },
        )
        .await?;
    Ok(())
}

fn mark(pod: &mut Object) {
    let known = conditions(pod).find(|condition| condition.get("type").and_then(Value::as_str) == Some(DISRUPTED));
    let stands = known.filter(|condition| condition.get("status").and_then(Value::as_str) == Some("True"));
    let since = stands
        .and_then(|condition| condition.get("lastTransitionTime").cloned())
        .unwrap_or_else(|| time::now().into());
    let condition = json!({
        "type": DISRUPTED, "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": since,
        "observedGeneration": meta::generation(pod),
    });
    let mut all: Vec<Value> = conditions(pod).cloned().collect();
    match all
        .iter_mut()
        .find(|known| known.get("type").and_then(Value::as_str) == Some(DISRUPTED))
    {
        Some(known) => *known = condition,
        None => all.push(condition),
    }
    pod["status"]["conditions"] = all.into();
}

/// Pods that are over, or not yet placed, or on their way out, disturb nobody.
fn needs_budget(pod: &Object) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default();
    !matches!(phase, "Succeeded" | "Failed" | "Pending") && !meta::is_deleting(pod)
}

/// Takes one disruption from the Pod's budget.
async fn spend(registry: &Registry, call: &Call, pod: &Object, dry_run: bool) -> Result<(), Refusal> {
    let Some(storage) = registry.storage_of("policy", "poddisruptionbudgets") else {
        return Ok(());
    };
    let prefix = format!("{}/", meta::namespace(pod));
    let budgets: Vec<Object> = storage
        .snapshot(0)
        .index
        .from(&prefix)
        .take_while(|entry| entry.path().starts_with(&prefix))
        .map(|entry| entry.object())
        .filter(|budget| {
            budget
                .pointer("/spec/selector")
                .is_some_and(|selector| LabelSelector::from_value(selector).is_ok_and(|selector| selector.matches(pod)))
        })
        .collect();
    let budget = match budgets.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(refuse(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            )));
        }
    };
    let ready = conditions(pod).any(|condition| {
        condition.get("type").and_then(Value::as_str) == Some("Ready")
            && condition.get("status").and_then(Value::as_str) == Some("True")
    });
    let number = |pointer: &str| budget.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let always = budget
        .pointer("/spec/unhealthyPodEvictionPolicy")
        .and_then(Value::as_str)
        == Some("AlwaysAllow");
    let healthy_enough =
        number("/status/currentHealthy") >= number("/status/desiredHealthy") && number("/status/desiredHealthy") > 0;
    if !ready && (always || healthy_enough) {
        return Ok(());
    }
    let row = registry
        .row("policy", "poddisruptionbudgets")
        .ok_or_else(|| refuse(Status::no_such_path()))?;
    let mut budgets = Call::internal(row, "update", meta::namespace(budget), meta::name(budget));
    budgets.user = call.user.clone();
    let options = WriteOptions {
        dry_run,
        ..WriteOptions::default()
    };
    let pod_name = meta::name(pod).to_owned();
    registry
        .rewrite(&mut budgets, Part::View("status"), &options, &mut |_, budget| {
            let mut budget = budget.clone();
            take(&mut budget, &pod_name)?;
            Ok(budget)
        })
        .await?;
    Ok(())
}

fn conditions(pod: &Object) -> impl Iterator<Item = &Value> {
    pod.pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn take(budget: &mut Object, pod: &str) -> Result<(), Refusal> {
    let number = |pointer: &str| budget.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let name = meta::name(budget).to_owned();
    if number("/status/observedGeneration") < meta::generation(budget) {
        return Err(too_many(
            &name,
            "Cannot evict pod as it would violate the pod's disruption budget.",
            &format!("The disruption budget {name} is still being processed by the server."),
            10,
        ));
    }
    let allowed = number("/status/disruptionsAllowed");
    let disrupted = budget
        .pointer("/status/disruptedPods")
        .and_then(Value::as_object)
        .map_or(0, serde_json::Map::len);
    if allowed < 0 {
        return Err(refuse(Status::forbidden(
            "policy",
            "poddisruptionbudgets",
            &name,
            "pdb disruptions allowed is negative",
        )));
    }
    if disrupted > REMEMBERED {
        return Err(refuse(Status::forbidden(
            "policy",
            "poddisruptionbudgets",
            &name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        )));
    }
    if allowed == 0 {
        let why = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("/status/desiredHealthy"),
            number("/status/currentHealthy")
        );
        return Err(too_many(
            &name,
            "Cannot evict pod as it would violate the pod's disruption budget.",
            &why,
            0,
        ));
    }
    budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
    budget["status"]["disruptedPods"][pod] = time::now().into();
    Ok(())
}

fn too_many(budget: &str, message: &str, why: &str, retry_after: u32) -> Refusal {
    let mut status = Status::too_many_requests(message, retry_after);
    let details = status.details.get_or_insert_default();
    details.name = budget.to_owned();
    details.causes.push(Cause {
        reason: "DisruptionBudget".into(),
        message: why.to_owned(),
        field: String::new(),
    });
    refuse(status)
}
