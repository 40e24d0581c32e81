//! Keeps the objects of priority and fairness as they must be: the bootstrap ones, and every schema's `Dangling`.
//!
//! Mandatory objects always exist with the specification they must have. Suggested ones are made when they are absent and
//! follow this server's idea of them as long as `apf.kubernetes.io/autoupdate-spec` does not say `false`; one
//! an administrator has changed without saying anything is theirs from then on. Woken by changes, never by a clock.

use std::sync::Arc;
use std::time::Duration;

use sampan_api::{Object, meta};
use sampan_kinds::Part;
use sampan_tasks::OnExit;
use serde_json::{Value, json};

use super::{CATCH_ALL, EXEMPT};
use crate::Refusal;
use crate::bootstrap::flow_control;
use crate::control_plane::ControlPlane;
use crate::registry::{Call, Registry};
use crate::request::{DeleteOptions, WriteOptions};
use crate::rows::Row;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// The longest pause after a failed pass.
const PAUSE: Duration = Duration::from_secs(60);

/// The objects without which nothing works.
pub fn mandatory() -> impl Iterator<Item = Object> {
    flow_control().into_iter().filter(is_mandatory)
}

fn is_mandatory(object: &Object) -> bool {
    matches!(meta::name(object), EXEMPT | CATCH_ALL)
}

/// Starts keeping.
pub fn start(plane: &Arc<ControlPlane>) {
    let kept = plane.clone();
    plane
        .tasks
        .spawn_until_drain("flow-objects", OnExit::Critical, async move {
            let mut pause = Duration::from_secs(1);
            loop {
                match pass(&kept).await {
                    Ok(()) => {
                        pause = Duration::from_secs(1);
                        kept.flow.changed().await;
                    }
                    Err(refusal) => {
                        tracing::warn!(error = refusal.message, "flow control's own objects could not be kept");
                        tokio::time::sleep(pause).await;
                        pause = (2 * pause).min(PAUSE);
                    }
                }
            }
        });
}

async fn pass(plane: &Arc<ControlPlane>) -> Result<(), Refusal> {
    let registry = &plane.registry;
    let wanted = flow_control();
    for object in &wanted {
        restore(registry, object).await?;
    }
    for plural in ["flowschemas", "prioritylevelconfigurations"] {
        let Some(row) = registry.rows.get().of(GROUP, plural).cloned() else {
            continue;
        };
        for object in objects(&row, registry) {
            let ours = wanted
                .iter()
                .any(|wanted| meta::name(wanted) == meta::name(&object) && meta::kind(wanted) == row.spec.kind);
            if !ours && auto_update(&object) == Some(true) {
                let mut call = Call::internal(row.clone(), "delete", "", meta::name(&object));
                settled(registry.delete(&mut call, &DeleteOptions::default()).await.map(|_| ()))?;
            } else if row.spec.kind == "FlowSchema" {
                tell_dangling(plane, &row, object).await?;
            }
        }
    }
    Ok(())
}

fn objects(row: &Arc<Row>, registry: &Registry) -> Vec<Object> {
    row.storage
        .as_ref()
        .map(|storage| {
            let snapshot = storage.snapshot(registry.cache.revision());
            snapshot.index.iter().map(|entry| entry.object()).collect()
        })
        .unwrap_or_default()
}

/// Somebody else was quicker, or the object is gone: their change wakes us again.
fn settled(result: Result<(), Refusal>) -> Result<(), Refusal> {
    match result {
        Err(refusal) if matches!(&*refusal.reason, "NotFound" | "Conflict" | "AlreadyExists") => Ok(()),
        other => other,
    }
}

fn auto_update(object: &Object) -> Option<bool> {
    match object.pointer("/metadata/annotations")?.get(AUTO_UPDATE)?.as_str()? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

async fn restore(registry: &Registry, bootstrap: &Object) -> Result<(), Refusal> {
    let table = registry.rows.get();
    let Some(row) = table.of_kind(GROUP, "v1", meta::kind(bootstrap)).cloned() else {
        return Ok(());
    };
    let name = meta::name(bootstrap);
    let mut wanted = bootstrap.clone();
    row.default(&mut wanted);
    let mut call = Call::internal(row.clone(), "create", "", name);
    let Some(current) = call.storage()?.get(name) else {
        let created = registry.create(&mut call, wanted, &WriteOptions::default()).await;
        return settled(created.map(|_| ()));
    };
    let Some(revised) = revise(&current.object(), &wanted, is_mandatory(bootstrap)) else {
        return Ok(());
    };
    call = Call::internal(row, "update", "", name);
    let updated = registry
        .update(&mut call, Part::Main, revised, &WriteOptions::default())
        .await;
    settled(updated.map(|_| ()))
}

/// What has to be written, if anything.
fn revise(current: &Object, bootstrap: &Object, mandatory: bool) -> Option<Object> {
    let follow = auto_update(current).unwrap_or_else(|| current["metadata"]["generation"].as_i64() == Some(1));
    let mut revised = current.clone();
    if mandatory || follow {
        revised["spec"] = bootstrap["spec"].clone();
        // The one thing of a mandatory level that may be the administrator's.
        if !follow && let Some(exempt) = current["spec"].get("exempt") {
            revised["spec"]["exempt"] = exempt.clone();
        }
    }
    // A mandatory schema follows whatever it says; a level's annotation tells whose the exempt part is.
    let says = follow || (mandatory && meta::kind(bootstrap) == "FlowSchema");
    if auto_update(current) != Some(says) {
        if !revised["metadata"]["annotations"].is_object() {
            revised["metadata"]["annotations"] = json!({});
        }
        revised["metadata"]["annotations"][AUTO_UPDATE] = says.to_string().into();
    }
    (revised != *current).then_some(revised)
}

/// Sets the condition that says whether a schema's level exists.
async fn tell_dangling(plane: &Arc<ControlPlane>, row: &Arc<Row>, mut schema: Object) -> Result<(), Refusal> {
    let level = schema
        .pointer("/spec/priorityLevelConfiguration/name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let (status, reason, end) = if plane.flow.has_level(&level) {
        ("False", "Found", "and it exists")
    } else {
        ("True", "NotFound", "but there is no such object")
    };
    let message = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {end}");
    let wanted = [("status", status), ("reason", reason), ("message", message.as_str())];
    let mut conditions = schema
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let known = conditions.iter().position(|condition| condition["type"] == "Dangling");
    if let Some(condition) = known.and_then(|at| conditions.get(at))
        && wanted.iter().all(|(field, value)| condition[*field] == *value)
    {
        return Ok(());
    }
    let condition = json!({
        "type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": sampan_api::time::now(),
    });
    match known.and_then(|at| conditions.get_mut(at)) {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
    schema["status"]["conditions"] = conditions.into();
    let mut call = Call::internal(row.clone(), "update", "", meta::name(&schema));
    let updated = plane
        .registry
        .update(&mut call, Part::View("status"), schema, &WriteOptions::default())
        .await;
    settled(updated.map(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn administrators_keep_what_they_changed() {
        let bootstrap = flow_control()
            .into_iter()
            .find(|object| meta::name(object) == "workload-low")
            .unwrap();
        let object = |annotation: Option<&str>, generation: i64, shares: i64| {
            let mut object = bootstrap.clone();
            object["metadata"] = json!({"name": "workload-low", "generation": generation});
            if let Some(annotation) = annotation {
                object["metadata"]["annotations"] = json!({AUTO_UPDATE: annotation});
            }
            object["spec"]["limited"]["nominalConcurrencyShares"] = shares.into();
            object
        };
        // annotation, generation, shares → annotation and shares after, or nothing to do
        let cases = [
            ((Some("true"), 3, 100), None),
            ((Some("true"), 3, 7), Some(("true", 100))),
            ((Some("false"), 3, 7), None),
            ((None, 1, 7), Some(("true", 100))),
            ((None, 2, 7), Some(("false", 7))),
        ];
        for ((annotation, generation, shares), wanted) in cases {
            let revised = revise(&object(annotation, generation, shares), &bootstrap, false);
            let got = revised.as_ref().map(|object| {
                (
                    object["metadata"]["annotations"][AUTO_UPDATE].as_str().unwrap(),
                    object["spec"]["limited"]["nominalConcurrencyShares"].as_i64().unwrap(),
                )
            });
            assert_eq!(got, wanted, "{annotation:?} {generation}");
        }
        let forced = revise(&object(Some("false"), 3, 7), &bootstrap, true).unwrap();
        assert_eq!(forced["spec"], bootstrap["spec"]);
    }
}
